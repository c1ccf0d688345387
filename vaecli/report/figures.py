"""Pictures of images: arrays in, PNG or GIF bytes out. Pillow only; nothing here knows a model.

Images are float arrays (N, C, H, W) in [0, 1]. One channel is drawn grey, three as RGB; of any other number those that
`show` chooses, or else the first one, grey. Small images are enlarged by whole factors without smoothing, so every
pixel stays visible.
"""

import base64
import contextlib
import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vaecli import output, safe_files
from vaecli.errors import ConfigError

Images = NDArray[np.floating]

SMALLEST_CELL = 64  # pixels on the longer side of an image as drawn
LARGEST_SHEET = 100_000_000  # pixels of a whole sheet; what is larger no viewer opens
GAP = 4
MARGIN = 16
# Neutral greys: a sheet of grey images stays grey, hence small and, as GIF, exact.
WHITE, INK, SOFT, MUTED = ((level,) * 3 for level in (255, 34, 108, 176))
TEXT, SMALL, HEADING = 14, 12, 16


@dataclass(frozen=True)
class Row:
    """Images side by side. `label` and, smaller below it, `detail` stand at the left; a caption (its lines split at
    newlines) stands under each image. Text of a `muted` row, or of the images marked so, is pale. `mark` is a place
    that a small triangle above the row points at, in columns from the middle of the first."""

    images_NCHW: Images
    label: str = ""
    detail: str = ""
    captions: Sequence[str] = ()
    muted: bool | Sequence[bool] = False
    mark: float | None = None

    def is_muted(self, column: int) -> bool:
        return self.muted if isinstance(self.muted, bool) else self.muted[column]


_shown: list[int] | None = None  # channels
_told = False  # that there are others


def show(channels: str | None) -> None:
    """Which channels pictures show from now on, `2` or `0,1,2`; ConfigError where they are neither one nor three."""
    global _shown, _told
    words = [] if channels is None else channels.split(",")
    if channels is not None and (len(words) not in (1, 3) or not all(w.strip().isdecimal() for w in words)):
        raise ConfigError(f"--channels {channels[:40]}", "one number, or three with commas: 0,1,2, counted from 0")
    _shown, _told = [int(word) for word in words] or None, False


def _channels(count: int) -> list[int]:
    """Those that are drawn of so many, one or three; ConfigError where there are not so many."""
    global _told
    if _shown is None and count not in (1, 3):
        if not _told:
            output.notice(f"pictures show channel 0 of {count}; --channels=A or A,B,C shows others")
        _told = True
    found = _shown or (list(range(count)) if count in (1, 3) else [0])
    if max(found) >= count:
        raise ConfigError(f"--channels: there is no channel {max(found)}, the images have {count}, from 0")
    return found


def to_uint8(images_NCHW: Images) -> NDArray[np.uint8]:
    """(N, C, H, W) in [0, 1] to (N, H, W, 3) in 0..255: rounded, clipped, NaN as 0."""
    images = np.asarray(images_NCHW)
    if (found := _channels(images.shape[1])) != list(range(images.shape[1])):
        images = images[:, found]
    levels = np.rint(np.clip(np.nan_to_num(images, nan=0.0), 0, 1) * 255.0).astype(np.uint8)
    return np.broadcast_to(levels.transpose(0, 2, 3, 1), (len(levels), *levels.shape[2:], 3))


def scale_of(height: int, width: int) -> int:
    """The whole factor that brings the longer side to at least 64 pixels."""
    return max(1, math.ceil(SMALLEST_CELL / max(height, width)))


def check_size(rows: int, columns: int, height: int, width: int) -> None:
    """ConfigError where so many images of that size would make a picture of more than 100 megapixels."""
    scale = scale_of(height, width)
    across, down = columns * (width * scale + GAP), rows * (height * scale + GAP)
    if across * down > LARGEST_SHEET:
        raise ConfigError(
            f"a picture of {rows} x {columns} images would have {across} x {down} pixels", "ask for fewer images"
        )


def sheet(rows: Sequence[Row], headings: Sequence[str] = (), title: str = "", footer: str = "") -> Image.Image:
    """Rows of images on white, with `headings` over the columns. All images have one size.

    ConfigError where it would be too large (`check_size`).
    """
    height, width = rows[0].images_NCHW.shape[2:]
    scale = scale_of(height, width)
    cell_h, cell_w = height * scale, width * scale
    columns = max(len(row.images_NCHW) for row in rows)
    font, small, big = _font(TEXT), _font(SMALL), _font(HEADING)
    line, small_line = _line(font), _line(small)

    marked = any(row.mark is not None for row in rows)
    margin = MARGIN if any((headings, title, footer, *(row.label or row.captions for row in rows))) else GAP
    label_w = max(
        (max(_width(font, row.label), *(_width(small, t) for t in row.detail.split("\n"))) for row in rows), default=0
    )
    caption_w = max((_width(small, text) for row in rows for c in row.captions for text in c.split("\n")), default=0)
    heading_w = max((_width(small, text) for text in headings), default=0)
    # Columns widen where their text would run into the neighbour's.
    pitch = max(cell_w, caption_w + 6, heading_w + 6) + GAP
    left = margin + (label_w + 14 if label_w else 0)
    top = margin + (_line(big) + 8 if title else 0) + (small_line + 4 if headings else 0) + (6 if marked else 0)
    caption_h = [max((c.count("\n") + 1 for c in row.captions), default=0) * small_line for row in rows]
    # Under a caption more room, so that it belongs to the image above it.
    gap = 2 * GAP if marked else GAP
    pitches = [cell_h + (gap if not h else h + 14) for h in caption_h]
    title_lines, footer_lines = [title] if title else [], footer.split("\n") if footer else []
    text_w = max((_width(f, t) for f, ts in ((big, title_lines), (small, footer_lines)) for t in ts), default=0)
    sheet_w = max(left + columns * pitch - GAP, margin + text_w) + margin
    body_h = sum(pitches) - (gap if not caption_h[-1] else 8)
    sheet_h = top + body_h + (10 + small_line * len(footer_lines) if footer else 0) + margin
    # Even, as makers of films want them.
    sheet_w, sheet_h = sheet_w + sheet_w % 2, sheet_h + sheet_h % 2
    check_size(len(rows), columns, height, width)

    canvas = Image.new("RGB", (sheet_w, sheet_h), WHITE)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((margin, margin), title, fill=INK, font=big, anchor="la")
    for column, text in enumerate(headings):
        centre = left + column * pitch + (pitch - GAP) / 2
        draw.text((centre, top - (12 if marked else 6)), text, fill=SOFT, font=small, anchor="ms")
    y = top
    for row, row_pitch in zip(rows, pitches, strict=True):
        ink, soft = (MUTED, MUTED) if row.muted is True else (INK, SOFT)
        details = row.detail.split("\n") if row.detail else []
        block = line + small_line * len(details)
        text_y = y + (cell_h - block) // 2
        draw.text((margin, text_y), row.label, fill=ink, font=font, anchor="la")
        for i, text in enumerate(details):
            draw.text((margin, text_y + line + i * small_line), text, fill=soft, font=small, anchor="la")
        for column, pixels in enumerate(to_uint8(row.images_NCHW)):
            x = left + column * pitch + (pitch - GAP - cell_w) // 2
            tile = Image.fromarray(np.ascontiguousarray(pixels)).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            canvas.paste(tile, (x, y))
        if row.mark is not None:
            x = round(left + row.mark * pitch + (pitch - GAP) / 2)
            draw.polygon([(x - 5, y - 6), (x + 5, y - 6), (x, y - 1)], fill=ink)
        for column, caption in enumerate(row.captions):
            centre = left + column * pitch + (pitch - GAP) / 2
            for i, text in enumerate(caption.split("\n")):
                fill = MUTED if row.is_muted(column) else INK if i == 0 else SOFT
                draw.text((centre, y + cell_h + 3 + i * small_line), text, fill=fill, font=small, anchor="ma")
        y += row_pitch
    for i, text in enumerate(footer_lines):
        draw.text((margin, top + body_h + 10 + i * small_line), text, fill=SOFT, font=small, anchor="la")
    return canvas


def columns_for(count: int, height: int = 1, width: int = 1) -> int:
    """How many columns make `count` images of that shape about square."""
    return max(1, min(count, math.ceil(math.sqrt(count * height / width))))


def in_rows(images_NCHW: Images, columns: int) -> list[Row]:
    """Images in reading order, cut into rows."""
    return [Row(images_NCHW[i : i + columns]) for i in range(0, len(images_NCHW), columns)]


def grid(images_NCHW: Images, columns: int | None = None) -> bytes:
    """PNG of all images in reading order, about square, without text."""
    count, _, height, width = images_NCHW.shape
    return png(sheet(in_rows(images_NCHW, columns or columns_for(count, height, width))))


def single(image_CHW: Images) -> bytes:
    """PNG of one image at its own size."""
    return png(Image.fromarray(np.ascontiguousarray(to_uint8(np.asarray(image_CHW)[None])[0])))


def png(picture: Image.Image) -> bytes:
    """The picture as PNG; grey where it holds no colour."""
    picture = _without_colour(picture)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def as_named(name: str, picture: bytes) -> bytes:
    """A PNG as the kind of file that its name asks for: within an SVG, or a page of a PDF, its pixels as they are."""
    ending = name.lower()[-4:]
    if not picture.startswith(b"\x89PNG") or ending not in (".svg", ".pdf"):
        return picture
    drawn = Image.open(io.BytesIO(picture))
    width, height = drawn.size
    if ending == ".svg":
        href = "data:image/png;base64," + base64.b64encode(picture).decode()
        size = f'width="{width}" height="{height}"'
        image = f'<image href="{href}" {size} style="image-rendering:pixelated"/>'
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>{image}</svg>\n'.encode()
    return _pdf(drawn)


def _pdf(picture: Image.Image) -> bytes:
    """A page of the size of the picture at 150 pixels an inch; Pillow's own would make a JPEG of the pixels."""
    grey = picture.mode in ("1", "L")
    pixels = zlib.compress(picture.convert("L" if grey else "RGB").tobytes(), 9)
    width, height = picture.size
    across, down = width * 72 / 150, height * 72 / 150
    drawing = f"q {across:.2f} 0 0 {down:.2f} 0 0 cm /I Do Q".encode()
    about = (
        f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /BitsPerComponent 8 /Filter /FlateDecode "
        f"/ColorSpace /Device{'Gray' if grey else 'RGB'} /Length {len(pixels)}"
    )
    page = f"/Type /Page /Parent 2 0 R /MediaBox [0 0 {across:.2f} {down:.2f}] /Contents 4 0 R"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< {page} /Resources << /XObject << /I 5 0 R >> >> >>".encode(),
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(drawing), drawing),
        b"<< %b >>\nstream\n%b\nendstream" % (about.encode(), pixels),
    ]
    written, places = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(written))
        written += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(written))
    return written + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + end


def signed(picture: bytes, facts: Mapping[str, str]) -> bytes:
    """A PNG (a text chunk a fact, RFC 2083) or GIF (one comment) with facts about it; other bytes as they are."""
    if picture.startswith(b"\x89PNG\r\n\x1a\n"):
        after = 8 + 25  # the signature and the header
        chunks = b"".join(_text_chunk(key, value) for key, value in facts.items())
        return picture[:after] + chunks + picture[after:]
    if picture[:6] in (b"GIF87a", b"GIF89a"):
        size = 13 + (3 * 2 ** ((picture[10] & 7) + 1) if picture[10] & 128 else 0)
        text = "\n".join(f"{key}: {value}" for key, value in facts.items()).encode()
        blocks = b"".join(bytes([len(text[i : i + 255])]) + text[i : i + 255] for i in range(0, len(text), 255))
        return b"GIF89a" + picture[6:size] + b"!\xfe" + blocks + b"\0" + picture[size:]
    return picture


def is_signed(path: Path) -> bool:
    """Whether a file is a PNG that this program wrote, by what is signed into it."""
    with contextlib.suppress(OSError):
        return b"iTXtSoftware\0\0\0\0\0vae " in safe_files.read(path)[:200]
    return False


def _text_chunk(key: str, value: str) -> bytes:
    body = b"iTXt" + key.encode("latin-1") + b"\0\0\0\0\0" + value.encode("utf-8", "replace")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def gif(frames: Sequence[Image.Image], milliseconds: int = 90, hold: int = 500) -> bytes:
    """An endless animation, forth and back; the first and the last frame stay for `hold` milliseconds."""
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    grey = [_without_colour(frame) for frame in frames]
    # No dithering: it would crawl over still images.
    drawn = [g if g.mode == "L" else g.quantize(256, dither=Image.Dither.NONE) for g in grey]
    pictures = [drawn[i] for i in order]
    durations = [hold if i in (0, len(frames) - 1) else milliseconds for i in order]
    stream = io.BytesIO()
    pictures[0].save(
        stream, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
    )
    return stream.getvalue()


def _without_colour(picture: Image.Image) -> Image.Image:
    """The picture, as one channel where its three agree."""
    red, green, blue = picture.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else picture


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return math.ceil(font.getlength(text))


def _line(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    _, top, _, bottom = font.getbbox("Ay")
    return math.ceil(bottom - top) + 5
