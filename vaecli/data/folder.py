"""A folder of image files, sub-folders included: png, jpg, bmp, webp, gif, tif; sub-folder names are class labels.

What becomes of an image, in this order: the first frame; turned upright by its EXIF tag; transparency laid over white;
16 bits divided by 257, floats in [0, 1] times 255; palette, CMYK and the like to RGB; three channels to one by the luma
0.299 R + 0.587 G + 0.114 B; with `image_size`, cropped at the centre to that aspect and resized (Lanczos).
Hidden files are skipped and links to folders not followed. Images are decoded once and stay in memory.
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field

from vaecli import output
from vaecli.data.base import DataConfig, Dataset, assemble, require_memory, store
from vaecli.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
MAX_PIXELS = 89_478_485  # of one file: where Pillow begins to suspect a decompression bomb
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_SHOWN = 10

Array = np.ndarray[Any, Any]
T = TypeVar("T")

Side = Annotated[int, Field(gt=0, le=8192)]


class Config(DataConfig):
    """`image_size`: a square's side or [height, width]; null where all images have one size already.

    `channels`: 1 or 3; null for 1 where all images are grey, else 3. `on_bad_image`: `error`, or `skip` to go without.
    """

    path: str
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    channels: Literal[1, 3] | None = None
    on_bad_image: Literal["error", "skip"] = "error"


def load(config: Config) -> Dataset:
    """InputError where there are no images, some cannot be read, or their sizes differ and none is asked for;
    MachineError where they do not fit into memory.
    """
    root = Path(config.path).expanduser()
    paths = _find(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata and size; what matters is checked here
        paths, headers = _read(config, "scanning images", paths, read_header)
        grey = all(mode in _GREY for _, mode in headers)
        channels = config.channels or (1 if grey else 3)
        height, width = _target_size(config, root, [size for size, _ in headers])
        require_memory(
            len(paths) * channels * height * width,
            f"{root}: {len(paths):,} images of {channels}x{height}x{width}",
            "set a smaller data.image_size",
        )
        images_NCHW = np.empty((len(paths), channels, height, width), np.uint8)
        row = {path: i for i, path in enumerate(paths)}

        def decode(path: Path) -> None:
            images_NCHW[row[path]] = read_pixels(path, channels, height, width)

        good, _ = _read(config, "decoding images", paths, decode)
    if len(good) < len(paths):
        images_NCHW = images_NCHW[[row[path] for path in good]]
    labels_NK, classes = _classes(root, good)
    images, binary = store(images_NCHW)
    return assemble(
        config,
        images,
        labels_NK=labels_NK,
        factor_names=("class",) if classes else (),
        factor_sizes=(len(classes),) if classes else (),
        binary=binary,
        source={"kind": "folder", "sha256": hashlib.sha256(images_NCHW.data).hexdigest()},
    )


def _find(root: Path) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", "give the folder with the images: --data folder:PATH")
    paths = [
        Path(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
    ]
    paths = sorted(path for path in paths if path.is_file())  # a pipe or a dangling link is no image
    if not paths:
        raise InputError(f"{root}: no images found", f"files ending in {' '.join(sorted(SUFFIXES))} are looked for")
    return paths


def _read(config: Config, what: str, paths: list[Path], read: Callable[[Path], T]) -> tuple[list[Path], list[T]]:
    """Apply `read` to all files in threads (Pillow decodes without the interpreter lock): good files, their results.

    Bad files end it, or are reported and left out, as `on_bad_image` says.
    """

    def attempt(path: Path) -> tuple[T | None, str | None]:
        try:
            return read(path), None
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            return None, str(getattr(error, "strerror", None) or error).partition("\n")[0] or type(error).__name__

    good: list[Path] = []
    results: list[T] = []
    bad: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, output.progress(what, len(paths)) as advance:
        for start in range(0, len(paths), 1024):  # in pieces, so that a hopeless folder is given up soon
            piece = paths[start : start + 1024]
            tasks = [piece[i : i + 32] for i in range(0, len(piece), 32)]  # one by one, threads wait for each other
            attempts = chain.from_iterable(pool.map(lambda task: list(map(attempt, task)), tasks))
            for path, (result, problem) in zip(piece, attempts, strict=True):
                if problem is None:
                    good.append(path)
                    results.append(cast(T, result))
                else:
                    bad.append(f"{path} ({problem})")
            advance(len(piece))
            if len(bad) > _SHOWN and config.on_bad_image == "error":
                break
    if bad:
        listed = ", ".join(bad[:_SHOWN]) + (", ..." if len(bad) > _SHOWN else "")
        if config.on_bad_image == "error" or not good:
            hint = "repair or remove them, or set data.on_bad_image=skip" if good else None
            raise InputError(f"images that cannot be read: {listed}", hint)
        output.warning(f"{len(bad):,} images that cannot be read are left out: {listed}")
    return good, results


def _open(path: Path) -> Image.Image:
    image = Image.open(path)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
    return image


# Where Pillow looks for a PNG's orientation.
_ORIENTED = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}


def read_header(path: Path) -> tuple[tuple[int, int], str]:
    """Upright (height, width) and mode, without decoding."""
    with _open(path) as image:
        # A PNG whose header has no orientation would be decoded as a whole to look for one behind the pixels.
        told = image.format != "PNG" or not image.info.keys().isdisjoint(_ORIENTED)
        turned = told and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        size = (image.width, image.height) if turned else (image.height, image.width)
        return size, image.mode


def _target_size(config: Config, root: Path, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    if isinstance(config.image_size, int):
        return config.image_size, config.image_size
    if config.image_size is not None:
        return config.image_size[0], config.image_size[1]
    counts = Counter(sizes).most_common()
    if len(counts) > 1:
        listed = ", ".join(f"{w}x{h} ({n:,})" for (h, w), n in counts[:5]) + (", ..." if len(counts) > 5 else "")
        raise InputError(
            f"{root}: the images have {len(counts)} sizes (width x height): {listed}",
            "set data.image_size to a side, e.g. 64, or to [height, width]",
        )
    return counts[0][0]


def read_pixels(path: Path, channels: int, height: int, width: int) -> Array:
    """uint8 (C, H, W)."""
    with _open(path) as opened:
        if opened.format == "JPEG" and opened.mode in ("L", "RGB"):
            # A JPEG can be decoded at a half, a quarter or an eighth; never below twice the size wanted, so that the
            # resampling that follows still decides.
            side = 2 * max(height, width)
            opened.draft(opened.mode, (side, side))
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        image = Image.fromarray(np.rint(np.clip(np.asarray(image), 0, 65535) / 257.0).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0.0 and values.max() <= 1.0):
            raise ValueError(f"float values from {values.min():g} to {values.max():g} are not in [0, 1]")
        image = Image.fromarray(np.rint(255.0 * values).astype(np.uint8))
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        # The largest part in the middle that has the wanted proportions; big images are first averaged in blocks, down
        # to three times the size wanted.
        across, down = min(image.width, image.height * width / height), min(image.height, image.width * height / width)
        left, top = (image.width - across) / 2, (image.height - down) / 2
        part = (left, top, left + across, top + down)
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=part, reducing_gap=3.0)
    pixels_HWC = np.asarray(image).reshape(height, width, channels)
    return pixels_HWC.transpose(2, 0, 1)


def _classes(root: Path, paths: list[Path]) -> tuple[torch.Tensor | None, list[str]]:
    """Labels (N, 1) by immediate sub-folder in sorted order, if all images are in sub-folders and there are several."""
    parts = [path.relative_to(root).parts for path in paths]
    classes = sorted({part[0] for part in parts})
    if len(classes) < 2 or any(len(part) < 2 for part in parts):
        return None, []
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([[number[part[0]]] for part in parts]), classes
