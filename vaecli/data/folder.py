"""A folder of image files, sub-folders included: png, jpg, bmp, webp, gif, tif; sub-folder names are class labels.

What becomes of an image, in this order: the first frame; turned upright by its EXIF tag; transparency laid over white;
16 bits divided by 257, floats in [0, 1] times 255; palette, CMYK and the like to RGB; three channels to one by the luma
0.299 R + 0.587 G + 0.114 B; with `image_size`, cropped at the centre to that aspect and resized (bicubic, antialiased).
Hidden files are skipped and links to folders not followed. Images are decoded once and stay in memory.
"""

import ctypes
import hashlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from vaecli import output
from vaecli.data.base import DataConfig, Dataset, assemble, require_memory, store
from vaecli.errors import InputError, MachineError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
# What Pillow may try, whatever a file is called: left to itself it goes by the content, and would start Ghostscript on
# PostScript that is named .png.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
MAX_PIXELS = 89_478_485  # of one file: where Pillow begins to suspect a decompression bomb
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_SHOWN = 10

_WORKERS = 16  # processes that read, at most: what more of them make, one process can hardly take in
_TASK, _TASK_BYTES = 32, 2**20  # files that one reads at a time, and bytes of what becomes of them
_PR_SET_PDEATHSIG = 1  # of prctl
_SLOW_START = 20  # how many times as many files a process must have where it does not start as a copy

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
    paths, sizes = _find(root), []
    if config.image_size is None:
        read = list(_read(config, "scanning images", paths, read_header, size=256, enough=4000))
        paths, sizes = [path for path, _ in read], [size for _, (size, _) in read]
        grey = all(mode in _GREY for _, (_, mode) in read)
    else:
        grey = config.channels is None and all(map(_is_grey, paths))  # the first that is not ends it
    channels = config.channels or (1 if grey else 3)
    height, width = _target_size(config, root, sizes)
    size = channels * height * width
    what = f"{root}: {len(paths):,} images of {channels}x{height}x{width}"
    require_memory(len(paths) * size, what, "set a smaller data.image_size")
    images_NCHW = np.empty((len(paths), channels, height, width), np.uint8)
    decode = partial(read_pixels, channels=channels, height=height, width=width)
    good: list[str] = []
    for path, image_CHW in _read(config, "decoding images", paths, decode, size, enough=250):
        images_NCHW[len(good)] = image_CHW
        good.append(path)
    images_NCHW = images_NCHW[: len(good)]
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


def _find(root: Path) -> list[str]:
    """Paths of the images, sorted by their parts."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", "give the folder with the images: --data folder:PATH")
    paths = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
    ]
    paths = [path for path in paths if os.path.isfile(path)]  # a pipe or a dangling link is no image
    if not paths:
        raise InputError(f"{root}: no images found", f"files ending in {' '.join(sorted(SUFFIXES))} are looked for")
    return sorted(paths, key=lambda path: path.split(os.sep))


@dataclass(frozen=True)
class _Bad:
    problem: str


class _Files(TorchDataset[Any]):
    """What `read` makes of each file, or what is wrong with it."""

    def __init__(self, paths: list[str], read: Callable[[str], Any]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on metadata and size; what matters is checked here
                return self.read(self.paths[i])
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            text = str(getattr(error, "strerror", None) or error).partition("\n")[0]
            return _Bad(text or type(error).__name__)


def _end_with_parent(_: int) -> None:
    """Have this process killed with the one that started it: it may wait at a full pipe, where it would see nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(
    config: Config, what: str, paths: list[str], read: Callable[[str], T], size: int, enough: int
) -> Iterator[tuple[str, T]]:
    """Good files and what `read` makes of them, in order; read by a process for each thread that torch may use, if that
    leaves each `enough` files to pay for its start (threads would wait for the interpreter's lock half of the time).

    `size`: bytes of one result. Bad files end it, or are reported and left out, as `on_bad_image` says.
    """
    enough *= 1 if multiprocessing.get_start_method() == "fork" else _SLOW_START
    workers = min(torch.get_num_threads(), _WORKERS, len(paths) // enough)
    loader = DataLoader(
        _Files(paths, read),
        batch_size=max(1, min(_TASK, _TASK_BYTES // size)),
        num_workers=workers if workers > 1 else 0,
        collate_fn=list,  # as they are: tensors would pass through /dev/shm, and what finds no room there is never said
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # or it would draw from the one that training draws from
    )
    bad: list[str] = []
    left = iter(paths)
    try:
        with output.progress(what, len(paths)) as advance:
            for results in loader:
                for path, result in zip(islice(left, len(results)), results, strict=True):
                    if isinstance(result, _Bad):
                        bad.append(f"{path} ({result.problem})")
                    else:
                        yield path, result
                advance(len(results))
                if len(bad) > _SHOWN and config.on_bad_image == "error":
                    break
    except RuntimeError as error:  # what a DataLoader says of a worker that was killed
        message = f"{what}: {str(error).partition(chr(10))[0]}"
        raise MachineError(message, "was memory short? OMP_NUM_THREADS=1 reads in one process") from error
    if bad:
        listed = ", ".join(bad[:_SHOWN]) + (", ..." if len(bad) > _SHOWN else "")
        if config.on_bad_image == "error" or len(bad) == len(paths):
            hint = "repair or remove them, or set data.on_bad_image=skip" if len(bad) < len(paths) else None
            raise InputError(f"images that cannot be read: {listed}", hint)
        output.warning(f"{len(bad):,} images that cannot be read are left out: {listed}")


@contextmanager
def _open(path: str) -> Iterator[Image.Image]:
    # Not by its name: Pillow would map an uncompressed TIFF into memory, and scramble it if it is to be turned.
    with open(path, "rb") as file:
        try:
            opened = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError("not an image of a known format") from None
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
            yield image


# Where Pillow looks for a PNG's orientation.
_ORIENTED = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}


def read_header(path: str) -> tuple[tuple[int, int], str]:
    """Upright (height, width) and mode, without decoding."""
    with _open(path) as image:
        # A PNG whose header has no orientation would be decoded as a whole to look for one behind the pixels.
        told = image.format != "PNG" or not image.info.keys().isdisjoint(_ORIENTED)
        turned = told and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose size some versions of Pillow turn by themselves
            width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
        return (width, height) if turned else (height, width), image.mode


def _is_grey(path: str) -> bool:
    try:
        with _open(path) as image:
            return image.mode in _GREY
    except Exception:  # what is wrong with it will be said when it is decoded
        return True


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


def read_pixels(path: str, channels: int, height: int, width: int) -> Array:
    """uint8 (C, H, W)."""
    with _open(path) as image:
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            # A JPEG can be decoded at a half, a quarter or an eighth; never below twice the size wanted, so that the
            # resampling that follows still decides.
            side = 2 * max(height, width)
            image.draft(image.mode, (side, side))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
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
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # which would copy
    if image.size == (width, height):
        return _channels_first(image)
    # The largest part in the middle that has the wanted proportions.
    scale = min(image.width / width, image.height / height)
    if scale < 1:  # to be enlarged: a whole pixel, which the part would be rounded to below, is much
        left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
        part = (left, top, left + scale * width, top + scale * height)
        return _channels_first(image.resize((width, height), Image.Resampling.BICUBIC, box=part))
    # Big images are first averaged in blocks, down to three times the size wanted (of what does not fill a block, up to
    # two thirds of a pixel is left out).
    block = max(1, int(scale / 3))
    across, down = (round(scale * side) // block * block for side in (width, height))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    image = image.reduce(block, (left, top, left + across, top + down))
    pixels_1CHW = torch.from_numpy(_channels_first(image))[None]
    # PyTorch's resampling of bytes differs from Pillow's by one level at most and takes half the time.
    return functional.interpolate(pixels_1CHW, size=(height, width), mode="bicubic", antialias=True)[0].numpy()


def _channels_first(image: Image.Image) -> Array:
    return np.array(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def _classes(root: Path, paths: list[str]) -> tuple[Tensor | None, list[str]]:
    """Labels (N, 1) by immediate sub-folder in sorted order, if all images are in sub-folders and there are several."""
    folders = [os.path.relpath(path, root).rpartition(os.sep)[0].partition(os.sep)[0] for path in paths]
    classes = sorted(set(folders))
    if len(classes) < 2 or "" in classes:
        return None, []
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([[number[folder]] for folder in folders]), classes
