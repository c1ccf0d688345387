"""A folder of image files, sub-folders included: png, jpg, bmp, webp, gif, tif; sub-folder names are class labels.

What becomes of an image, in this order: the first frame, or each (`frames`); turned upright by its EXIF tag;
transparency laid over white; more than 8 bits and floats to bytes, by the range of their values (see `_range`);
palette, CMYK and the like to RGB; three channels to one by the luma 0.299 R + 0.587 G + 0.114 B; with `image_size`,
resized to it as `fit` says (see `_fit`). Hidden files are skipped and links to folders not followed. Images are decoded
once (those whose range is not that of their type, twice) and stay in memory or, large sets, in a file of the cache.

Where the first folders are called train, val and test, they are the parts of the set, and the classes are below them.
What is left out or added (frames, files of other kinds, what a crop cuts off or padding adds) is said.
"""

import ctypes
import hashlib
import math
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from vaecli import output
from vaecli.data import _disk, _labels, _range, _spans
from vaecli.data._fit import Fit, fitted, misfit
from vaecli.data._labels import Factors
from vaecli.data.base import Dataset, Store, assemble, content_keys, require_memory, store
from vaecli.errors import InputError, MachineError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
# What Pillow may try, whatever a file is called: left to itself it goes by the content, and would start Ghostscript on
# PostScript that is named .png.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
MAX_PIXELS = 89_478_485  # of one file: where Pillow begins to suspect a decompression bomb
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_SHOWN = 10
# Files beside images that nobody takes for images; all others that are passed over are named.
_BESIDE = {
    ".txt",
    ".md",
    ".json",
    ".csv",
    ".tsv",
    ".xml",
    ".yaml",
    ".yml",
    ".html",
    ".pdf",
    ".py",
    ".ini",
    ".log",
    ".db",
}
_PARTS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2}
_CUT = 0.25  # the share of an image that a crop may take before it is a warning

_WORKERS = 16  # processes that read, at most: what more of them make, one process can hardly take in
_TASK, _TASK_BYTES = 32, 2**20  # files that one reads at a time, and bytes of what becomes of them
_PR_SET_PDEATHSIG = 1  # of prctl
_SLOW_START = 20  # how many times as many files a process must have where it does not start as a copy

Array = np.ndarray[Any, Any]
T = TypeVar("T")

Side = Annotated[int, Field(gt=0, le=8192)]
Size = Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None


class Config(_range.RangeConfig):
    """`image_size`: a square's side or [height, width]; null where all images have one size already.

    `fit`: what becomes of other proportions: `crop` to the middle, `pad` with black, or `stretch`.
    `channels`: 1 or 3; null for 1 where all images are grey, else 3. `on_bad_image`: `error`, or `skip` to go without.
    `frames`: of files that hold several (GIF, APNG, WebP, stacks of TIFF), the `first`, or `all`, images of their own.
    `labels`: a table (.csv, .tsv), one column of which has the names of files and every other one a factor's values.
    `store`: `memory`, `disk` (decoded once into the cache, where batches are read) or `auto`: on disk what is large.
    """

    path: str
    image_size: Size = None
    fit: Fit = "crop"
    channels: Literal[1, 3] | None = None
    on_bad_image: Literal["error", "skip"] = "error"
    frames: Literal["first", "all"] = "first"
    labels: str | None = None
    store: _disk.Where = "auto"


def load(config: Config) -> Dataset:
    """InputError where there are no images, some cannot be read, or their sizes differ and none is asked for;
    MachineError where they do not fit into memory.
    """
    root = Path(config.path).expanduser()
    _range.check(config.range)
    paths = _find(root)
    parts = _parts(root, paths)

    def factors(good: list[str], files: list[str]) -> Factors | None:
        found = _classes(root, good, depth=1 if parts else 0)
        if config.labels is None:
            return found
        return _labels.joined([found, _labels.of_files(_labels.find(config.labels, root), files)])

    return read(config, root, paths, parts, factors)


def read(
    config: Config,
    root: Path,
    paths: list[str],
    parts: dict[str, int],
    factors_of: Callable[[list[str], list[str]], Factors | None],
    middle: float = 1.0,
    known: Callable[[list[str]], tuple[str, Tensor]] | None = None,
) -> Dataset:
    """The data set of these files, those of one part (0, 1 or 2, as `_parts`) one after another.

    `factors_of` is given, for each image, its path and its name in the set. `middle`: images are first cropped to a
    square in the middle that has this share of the shorter side; not at all where it is 1. `known`: sha256 and content
    keys of files, in place of those of their decoded images.
    """
    paths, (n, channels, height, width) = surveyed(
        config, root, sorted(paths, key=parts.__getitem__) if parts else paths
    )
    size = channels * height * width
    set_shape = n, channels, height, width
    read_as = config, root, paths, set_shape[1:], middle
    images: Store
    if _disk.stays_on_disk(config.store, n * size):
        images, found, decoded = _on_disk(read_as, n)
    else:
        what = f"{root}: {n:,} images of {channels}x{height}x{width}"
        require_memory(n * size, what, "set a smaller data.image_size, or data.store=disk")
        images_NCHW = np.empty(set_shape, np.uint8)
        decoded = _decode_all(*read_as, write=lambda start, x: images_NCHW.__setitem__(slice(start, start + len(x)), x))
        images_NCHW = images_NCHW[: sum(decoded.counts)]
        images, binary = store(images_NCHW)
        sha256 = hashlib.sha256(images_NCHW.data).hexdigest()
        found = _disk.Survey(sha256, content_keys(images_NCHW), binary)
    good, facts, every = decoded.good, decoded.facts, config.frames == "all"
    _range.say(root, config.range, decoded.ranges, _extents(facts))
    _say_frames(root, good, facts, every)
    most = _say_fit(root, facts, height, width, config.fit)
    files = [os.path.relpath(path, root) for path in good]
    if every:
        counted = list(zip(good, files, decoded.counts, strict=True))
        files = [f"{name}[{i}]" if n > 1 else name for _, name, n in counted for i in range(n)]
        good = [path for path, _, n in counted for _ in range(n)]
    factors = factors_of(good, files)
    sha256, keys_N = known(good) if known else (found.sha256, found.keys_N)
    counts = Counter(parts[path] for path in good) if parts else Counter()
    if parts and not counts[0]:
        raise InputError(f"{root}: no image to train on can be read")
    return assemble(
        config,
        images,
        **(factors.for_assemble() if factors else {}),
        binary=found.binary,
        source={
            "kind": "folder",
            "sha256": sha256,
            "range": decoded.ranges,
            "fit": {"how": config.fit, "most": most},
        },
        content_N=keys_N,
        files=files,
        val=counts[1],
        test=counts[2],
    )


def surveyed(config: Config, root: Path, paths: list[str]) -> tuple[list[str], tuple[int, int, int, int]]:
    """The files that are images, as far as can be told without decoding them, and N, C, H, W of all."""
    n, sizes = len(paths), []
    if config.image_size is None or config.frames == "all":
        survey = partial(_survey, count=config.frames == "all")
        read = list(_read(config, "scanning images", paths, survey, size=256, enough=4000))
        paths, sizes = [path for path, _ in read], [size for _, (size, _, _) in read]
        grey = all(mode in _GREY for _, (_, mode, _) in read)
        n = sum(frames for _, (_, _, frames) in read)
    else:
        grey = config.channels is None and all(map(_is_grey, paths))  # the first that is not ends it
    return paths, (n, config.channels or (1 if grey else 3), *_target_size(config, root, sizes))


@dataclass(frozen=True)
class _Decoded:
    """The files that could be read, how many images each gave, what is known of each, and the ranges of values."""

    good: list[str]
    counts: list[int]
    facts: "list[Facts]"
    ranges: dict[str, list[float]]


def _decode_all(
    config: Config,
    root: Path,
    paths: list[str],
    shape: "Shape",
    middle: float,
    write: Callable[[int, Array], object],
) -> _Decoded:
    """Decode files in order; `write` is given the place of the first image of each and its images, uint8 (F, C, H, W),
    twice where the range of values is not what it seemed."""
    good: list[str] = []
    facts: list[Facts] = []
    starts = [0]  # of each file's frames among the images, and the end of the last

    def decoded(paths: list[str], wanted: _range.Wanted) -> Iterator[tuple[str, tuple[Array, Facts]]]:
        every = config.frames == "all"
        decode = partial(_decode, shape=shape, wanted=wanted, fit=config.fit, every=every, middle=middle)
        return _read(config, "decoding images", paths, decode, math.prod(shape), enough=250)

    for path, (frames_FCHW, fact) in decoded(paths, config.range):
        write(starts[-1], frames_FCHW)
        starts.append(starts[-1] + len(frames_FCHW))
        good.append(path)
        facts.append(fact)
    ranges = _range.find(config.range, _extents(facts))
    # What is asked for is known at once, but what is to be found only now.
    other = {
        path: i
        for i, (path, fact) in enumerate(zip(good, facts, strict=True))
        if ranges[fact.kind] != _range.at_first(config.range, fact.kind)
    }
    if other:
        for path, (frames_FCHW, _) in decoded(list(other), ranges):
            write(starts[other[path]], frames_FCHW)
    return _Decoded(good, [end - start for start, end in pairwise(starts)], facts, ranges)


def _on_disk(
    read_as: "tuple[Config, Path, list[str], Shape, float]", n: int
) -> tuple[_disk.OnDisk, _disk.Survey, _Decoded]:
    """Images as they are in a file of the cache, decoded now or when they were first asked for."""
    config, root, paths, shape, middle = read_as
    listed = hashlib.sha256()
    for path in paths:
        listed.update(f"{path}\0{_spans.identity(path)}\0".encode(errors="surrogateescape"))
    how = [config.range, config.fit, config.frames, config.on_bad_image]
    kept = _disk.place("folder", os.path.realpath(root), listed.hexdigest(), shape, middle, how)
    file = kept.with_suffix(".npy")

    def make() -> tuple[dict[str, Any], _disk.Survey]:
        with _disk.making(file, (n, *shape), np.dtype(np.uint8)) as place:
            decoded = _decode_all(*read_as, write=place.write)
            place.end(sum(decoded.counts))
        images = opened(decoded)
        facts = {
            "good": [os.path.relpath(path, root) for path in decoded.good],
            "counts": decoded.counts,
            "facts": [list(astuple(fact)) for fact in decoded.facts],
            "range": decoded.ranges,
            "file": _disk.identity(file)[1:],
        }
        return facts, _disk.survey(images.chunks(), len(images), "looking at all images")

    def opened(decoded: _Decoded) -> _disk.OnDisk:
        rows = _disk.rows_at(file, (sum(decoded.counts), *shape), np.dtype(np.uint8))
        if rows is None:
            raise MachineError(f"{file} is gone", "was the cache emptied in between? start again")
        return _disk.OnDisk([rows], np.ascontiguousarray, shape, 1)

    facts, found = _disk.remembered(
        kept, make, lambda facts: file.exists() and facts["file"] == _disk.identity(file)[1:]
    )
    decoded = _Decoded(
        [os.path.join(root, name) for name in facts["good"]],
        facts["counts"],
        [Facts(*fact) for fact in facts["facts"]],
        facts["range"],
    )
    images = opened(decoded)
    output.notice(
        f"{root}: {images.nbytes / 1e9:,.2f} GB of decoded images stay on disk, in {file}; read a batch at a time"
    )
    return images, found, decoded


def sizes(config: Config) -> list[tuple[int, int]]:
    """Upright (height, width) of the images that can be read, without decoding them; InputError as `load`."""
    paths = _find(Path(config.path).expanduser())
    return [size for _, (size, _) in _read(config, "scanning images", paths, read_header, size=256, enough=4000)]


def _find(root: Path) -> list[str]:
    """Paths of the images, sorted by their parts."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", "give the folder with the images: --data folder:PATH")
    paths, passed = [], Counter[str]()
    for folder, _, names in os.walk(root):
        for name in names:
            if name.startswith(".") or not os.path.isfile(os.path.join(folder, name)):
                continue  # a pipe or a dangling link is no image
            ending = os.path.splitext(name)[1].lower()
            if ending in SUFFIXES:
                paths.append(os.path.join(folder, name))
            elif ending not in _BESIDE:
                passed[ending or "no ending"] += 1
    if not paths:
        raise InputError(f"{root}: no images found", f"files ending in {' '.join(sorted(SUFFIXES))} are looked for")
    if passed:
        listed = ", ".join(f"{ending} ({n:,})" for ending, n in passed.most_common(5)) + ", ..." * (len(passed) > 5)
        output.warning(f"{root}: {passed.total():,} files are passed over: {listed}")
    return sorted(paths, key=lambda path: path.split(os.sep))


def _folders(root: Path, path: str) -> list[str]:
    """The folders below the root in which an image lies."""
    return os.path.relpath(path, root).split(os.sep)[:-1]


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
                        bad.append(f"{path} ({_in_words(path, result.problem)})")
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
            hint = (
                "repair or remove them; vae train and vae suggest go without them by --set data.on_bad_image=skip"
                if len(bad) < len(paths)
                else None
            )
            raise InputError(f"images that cannot be read: {listed}", hint)
        output.warning(f"{len(bad):,} images that cannot be read are left out: {listed}")


def _in_words(path: str, problem: str) -> str:
    """What is wrong with a file; of a TIFF that Pillow does not know, how its values are stored."""
    try:
        with warnings.catch_warnings(action="ignore"), _spans.opened(path) as file:
            if (start := file.read(8))[:4] not in (b"II*\0", b"MM\0*") or "known format" not in problem:
                return problem
            tags = TiffImagePlugin.ImageFileDirectory_v2(start)
            file.seek(tags.next)
            tags.load(file)
        bits, channels, kind = tags.get(258, (1,)), tags.get(277, 1), tags.get(339, (1,))
        number = {1: "unsigned integers", 2: "signed integers", 3: "floats"}.get(kind[0], "values")
    except Exception:  # it is damaged after all
        return problem
    return (
        f"a TIFF of {channels} channels of {bits[0]}-bit {number}, which is not read: save it with 8 or 16 bits, or "
        "all as one NumPy array"
    )


@contextmanager
def _open(path: str) -> Iterator[Image.Image]:
    # Not by its name: Pillow would map an uncompressed TIFF into memory, and scramble it if it is to be turned.
    with _spans.opened(path) as file:
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
    return _survey(path)[:2]


def _survey(path: str, count: bool = False) -> tuple[tuple[int, int], str, int]:
    """The same, and the number of frames if they are to be counted."""
    with _open(path) as image:
        # A PNG whose header has no orientation would be decoded as a whole to look for one behind the pixels.
        told = image.format != "PNG" or not image.info.keys().isdisjoint(_ORIENTED)
        turned = told and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose size some versions of Pillow turn by themselves
            width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
        size = (width, height) if turned else (height, width)
        return size, _mode(image), _frames(image) if count else 1


def _mode(image: Image.Image) -> str:
    """Its mode; `L` for a palette of greys."""
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGB":
        colours_N3 = np.frombuffer(bytes(image.palette.palette), np.uint8)
        colours_N3 = colours_N3[: len(colours_N3) // 3 * 3].reshape(-1, 3)
        if len(colours_N3) and bool((colours_N3 == colours_N3[:, :1]).all()):
            return "L"
    return image.mode


def _is_grey(path: str) -> bool:
    try:
        with _open(path) as image:
            return _mode(image) in _GREY
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


def read_pixels(
    path: str, channels: int, height: int, width: int, wanted: _range.Wanted = "auto", fit: Fit = "crop"
) -> Array:
    """uint8 (C, H, W), by a range as in the settings or as it was stored with a run.

    What is to be found from a whole set (`auto`) is for integers the range of their type here.
    """
    frames_FCHW, _ = _decode(path, (channels, height, width), wanted, fit)
    pixels_CHW: Array = frames_FCHW[0]
    return pixels_CHW


@dataclass(frozen=True)
class Facts:
    """What is known of an image file once it is decoded: the type of its values, the smallest and the greatest, how
    far its proportions are from those wanted (`misfit`), and how many frames there are."""

    kind: str
    low: float
    high: float
    misfit: float
    frames: int


Shape = tuple[int, int, int]  # C, H, W


def _decode(
    path: str, shape: Shape, wanted: _range.Wanted, fit: Fit, every: bool = False, middle: float = 1.0
) -> tuple[Array, Facts]:
    """The first frame or `every` one as uint8 (F, C, H, W), and the facts."""
    with _open(path) as image:
        frames = _frames(image)
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            # A JPEG can be decoded at a half, a quarter or an eighth; never below twice the size wanted, so that the
            # resampling that follows still decides.
            side = 2 * max(shape[1:])
            image.draft(image.mode, (side, side))
        if not every or frames == 1:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if middle != 1:
                side = round(middle * min(image.size))
                left, top = (image.width - side) // 2, (image.height - side) // 2
                image = image.crop((left, top, left + side, top + side))
            pixels_CHW, facts = _pixels(image, shape, wanted, fit)
            return pixels_CHW[None], replace(facts, frames=frames)
        read, size = [], None
        for i in range(frames):
            image.seek(i)
            frame = ImageOps.exif_transpose(image)  # a copy: the next frame may be drawn over this one
            read.append(_pixels(frame, shape, wanted, fit))
            size = size or frame.size
            if frame.size != size or read[i][1].kind != read[0][1].kind:
                raise ValueError(f"frame {i} has another size or type than frame 0: data.frames=first takes that alone")
    facts_F = [facts for _, facts in read]
    low, high = min(facts.low for facts in facts_F), max(facts.high for facts in facts_F)
    return np.stack([pixels for pixels, _ in read]), replace(facts_F[0], low=low, high=high, frames=frames)


def _pixels(image: Image.Image, shape: Shape, wanted: _range.Wanted, fit: Fit) -> tuple[Array, Facts]:
    """A decoded, upright frame as uint8 (C, H, W), and the facts."""
    channels, height, width = shape
    kind = {"1": "bool", "I": "int32", "F": "float"}.get(image.mode, "uint16" if image.mode[0] == "I" else "uint8")
    ends = _range.at_first(wanted, kind)
    if kind in ("uint16", "int32", "float"):
        values = np.asarray(image)
        extent = float(values.min()), float(values.max())
        wrong = _range.problem(kind, *extent)
        if wrong and (wanted == "auto" or not np.isfinite(extent).all()):
            raise ValueError(f"{wrong[0]}: {wrong[1]}")
        image = Image.fromarray(_range.to_bytes(values, ends))
    elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # which would copy
    if kind == "uint8":
        least, greatest = zip(*(image.getextrema() if channels > 1 else [image.getextrema()]), strict=True)
        extent = float(min(least)), float(max(greatest))
        if ends != [0, 255]:
            image = image.point(_range.to_bytes(np.arange(256), ends).tolist() * channels)
    elif kind == "bool":
        extent = 0.0, 1.0
    facts = Facts(kind, *extent, misfit(image, height, width), frames=1)
    return fitted(image, height, width, fit), facts


def _frames(image: Image.Image) -> int:
    """How many there are; one where that cannot be told, and of the previews that cameras put into a JPEG."""
    try:
        return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except Exception:  # of the frames behind the first, which alone is read, one may be damaged
        return 1


def _extents(facts: list[Facts]) -> dict[str, _range.Extent]:
    """The smallest and the greatest value of each type."""
    found: dict[str, _range.Extent] = {}
    for fact in facts:
        low, high = found.get(fact.kind, (fact.low, fact.high))
        found[fact.kind] = min(low, fact.low), max(high, fact.high)
    return found


def _say_frames(root: Path, paths: list[str], facts: list[Facts], every: bool) -> None:
    """Frames behind the first, and whether `every` one is taken."""
    if several := [path for path, fact in zip(paths, facts, strict=True) if fact.frames > 1]:
        more = sum(fact.frames - 1 for fact in facts)
        text = f"{root}: {len(several):,} files hold several frames"
        if every:
            output.notice(f"{text}, all of which are taken: {more + len(facts):,} images from {len(facts):,} files")
        else:
            output.warning(
                f"{text}, of which the first is taken; {more:,} are left out (in {several[0]} and others); "
                "data.frames=all takes them"
            )


def _say_fit(root: Path, facts: list[Facts], height: int, width: int, fit: Fit) -> float:
    """What becomes of other proportions than those wanted; the largest misfit."""
    misfits = [fact.misfit for fact in facts if fact.misfit > (_CUT if fit == "crop" else 0)]
    if not misfits:
        return max(fact.misfit for fact in facts)
    most, n = max(misfits), f"{root}: {len(misfits):,} images"
    shares = " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(misfits), most)))
    if fit == "crop":
        output.warning(
            f"{n} are cropped to the proportions of {width}x{height}, which cuts off {shares} of each"
            "; data.fit=pad or stretch keeps all of them, data.image_size=[height, width] sets other proportions"
        )
    elif fit == "pad":
        output.notice(f"{n} are padded to {width}x{height}: {shares} of each is black border")
    else:
        output.notice(f"{n} are stretched to {width}x{height}, by up to {1 / (1 - most):.2f} in one direction")
    return most


def _parts(root: Path, paths: list[str]) -> dict[str, int]:
    """0 of an image to train on, 1 of one of `val`, 2 of `test`; empty where the first folders are not called so."""
    first = {path: (_folders(root, path) or [""])[0].lower() for path in paths}
    if not set(first.values()) <= _PARTS.keys():
        return {}
    parts = {path: _PARTS[name] for path, name in first.items()}
    if 0 not in parts.values() or len(set(parts.values())) == 1:
        return {}
    listed = ", ".join(sorted(set(first.values())))
    output.notice(f"{root}: the folders {listed} are taken for the parts of the set, not for classes")
    return parts


def _classes(root: Path, paths: list[str], depth: int) -> Factors | None:
    """The factor `class`, by the folders at this depth, numbers in their order, if there are several; images beside
    them have none."""
    name_N = [(_folders(root, path)[depth:] or [""])[0] for path in paths]
    classes = sorted(set(name_N) - {""}, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name))
    if len(classes) < 2:
        return None
    if beside := name_N.count(""):
        output.warning(f"{root}: {beside:,} images lie beside the folders of the classes; they have no label")
    number = {name: i for i, name in enumerate(classes)} | {"": -1}
    return Factors(torch.tensor([[number[name]] for name in name_N]), ["class"], [classes])


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()
