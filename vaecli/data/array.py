"""Images in a NumPy file, .npy or .npz, in HDF5 or in a table of pixels (.csv); 1 to 16 channels, any plain numbers.

In a file of several arrays the images are `images`, `imgs` or `x`, the only array, or what `key` names: (N, H, W),
(N, H, W, C) or (N, C, H, W). Labels are `labels`, `factors`, `latents_classes`, `y`, ... or what `labels` names, a key
or a table beside the file; `_labels` says what becomes of them. Arrays `x_train`, `x_test` and the like are the parts
of the set. `_range` says what becomes of pixels. Large sets are read from disk a batch at a time (`store`).
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vaecli import output
from vaecli.data import _containers, _disk, _labels, _range
from vaecli.data._containers import Member
from vaecli.data._labels import Factors
from vaecli.data.base import DataConfig, Dataset, assemble, chunks, content_keys, store
from vaecli.errors import ConfigError, InputError

IMAGES = ("images", "imgs", "x", "data", "image", "img")
LABELS = ("factors", "labels", "latents_classes", "label", "y", "targets", "target", "classes", "class")
PARTS = ("train", "val", "test")  # in the order in which they are put together
MOST_CHANNELS = 16
_SAID = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}

Array = np.ndarray[Any, Any]
Side = Annotated[int, Field(gt=0, le=8192)]
Named = str | dict[Literal["train", "val", "test"], str]  # an array, or one for each part of the set


class Config(_range.RangeConfig):
    """`path`: the .npy, .npz, .h5 or .csv file.

    `key`: the array of images, or those of the parts, {train: a, val: b, test: c}. `labels`: the array of labels, those
    of the parts, or a table (.csv, .tsv) with a row for each image.
    `layout`: whether the channels come first, `chw`, or last, `hwc`; null where the shape tells. `shape`: of images in
    a table, [height, width] or [channels, height, width], where they are no squares.
    `store`: `memory`, `disk` (rows are read a batch at a time) or `auto`: on disk what is large.
    """

    path: str
    key: Named | None = None
    labels: Named | None = None
    layout: Literal["chw", "hwc"] | None = None
    shape: Annotated[list[Side], Field(min_length=2, max_length=3)] | None = None
    store: _disk.Where = "auto"


def load(config: Config) -> Dataset:
    """InputError for a file that cannot be used, with the first bad image; MachineError where it does not fit."""
    path = Path(config.path).expanduser()
    _range.check(config.range)
    if _labels.is_table(path.name):
        return _from_table(config, path)
    with _containers.opened(path) as members:
        keys = _image_keys(path, members, config.key)
        raws = [members[key] for key in keys.values()]
        factors = _factors(path, members, keys, config)
        parts = held(path, config.store, raws, list(keys.values()))
    counts = dict(zip(keys, map(len, parts), strict=True))
    return finish(config, path, parts, factors, counts, config.range, config.layout)


def finish(
    config: DataConfig,
    path: Path,
    parts: Sequence[Array | _disk.Rows],
    factors: Factors | None,
    counts: Mapping[str, int],
    wanted: _range.Wanted,
    layout: str | None = None,
    kind: str = "array",
) -> Dataset:
    """The data set of these arrays, one a part of the set, in memory or on disk, read by a `wanted` range."""
    planes = _planes(path, parts[0].dtype, [part.shape for part in parts], layout)
    if arrays := [part for part in parts if isinstance(part, np.ndarray)]:
        raw = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        images_NCHW, ranges = _in_memory(path, planes(raw), wanted)
        images, binary = store(images_NCHW)
        sha256, keys_N = hashlib.sha256(images_NCHW.data).hexdigest(), content_keys(images_NCHW)
    else:
        images, ranges, found = _from_disk(path, [p for p in parts if isinstance(p, _disk.Rows)], planes, wanted)
        sha256, keys_N, binary = found.sha256, found.keys_N, found.binary
    return assemble(
        config,
        images,
        **(factors.for_assemble() if factors else {}),
        binary=binary,
        content_N=keys_N,
        source={"kind": kind, "sha256": sha256, "range": ranges},
        val=counts.get("val", 0),
        test=counts.get("test", 0),
    )


# ---- which arrays


def _image_keys(path: Path, members: Mapping[str, Member], wanted: Named | None) -> dict[str, str]:
    """The array of images of each part, `train` alone where there are none."""
    if isinstance(wanted, dict) and "train" not in wanted:
        raise ConfigError("data.key names no array to train on", "data.key={train: NAME, test: NAME}")
    if wanted is not None:
        given = {str(part): name for part, name in ({"train": wanted} if isinstance(wanted, str) else wanted).items()}
        return {part: _member(path, members, name, "key") for part in PARTS if (name := given.get(part)) is not None}
    if found := _by_part(members, IMAGES):
        listed = ", ".join(f"{key} ({part})" for part, key in found.items())
        output.notice(f"{path}: the arrays {listed} are taken for the parts of the set")
        return found
    if (key := _called(members, IMAGES)) is not None:
        return {"train": key}
    if len(members) == 1:
        return {"train": next(iter(members))}
    many = [name for name, member in members.items() if len(member.shape) > 2 and member.dtype.kind in "biuf"]
    if len(many) == 1:
        output.notice(f"{path}: the images are taken from {many[0]!r}, the only array of more than two axes")
        return {"train": many[0]}
    listed = ", ".join(sorted(members)[:10]) or "none"
    raise InputError(f"{path} has no array `images`; its arrays: {listed}", "name that of the images: -S data.key=NAME")


def _called(members: Mapping[str, Member], names: tuple[str, ...]) -> str | None:
    lower = {name.lower(): name for name in reversed(list(members))}
    return next((lower[name] for name in names if name in lower), None)


def _by_part(members: Mapping[str, Member], names: tuple[str, ...]) -> dict[str, str]:
    """Arrays that are called `x_train`, `test_images` and the like, by part; empty where there is none of `train`."""
    found: dict[str, str] = {}
    for key in members:
        words = re.split(r"[_/\-. ]", key.lower())
        for part in PARTS:
            if len(words) == 2 and set(words) & set(_SAID[part]) and set(words) & set(names):
                found.setdefault(part, key)
    return {part: found[part] for part in PARTS if part in found} if "train" in found else {}


def _member(path: Path, members: Mapping[str, Member], name: str, option: str) -> str:
    if name not in members:
        listed = ", ".join(sorted(members)[:10]) if list(members) != [""] else "one without a name"
        raise InputError(f"{path}: data.{option} is {name[:80]!r}, but its arrays are: {listed}")
    return name


def _factors(path: Path, members: Mapping[str, Member], keys: Mapping[str, str], config: Config) -> Factors | None:
    """The labels of all parts, one after another, and a notice of the arrays that are not used."""
    counts = [members[key].shape[0] if members[key].shape else 0 for key in keys.values()]
    wanted = config.labels
    if isinstance(wanted, str) and _labels.is_table(wanted):
        return _labels.of_rows(_labels.find(wanted, path.parent), sum(counts))
    if isinstance(wanted, dict):
        found = {str(part): _member(path, members, name, "labels") for part, name in wanted.items()}
        if found.keys() != keys.keys():
            raise ConfigError(f"data.labels names arrays for {', '.join(wanted)}, the images are of {', '.join(keys)}")
    elif wanted is not None:
        found = {"train": _member(path, members, wanted, "labels")}
        if len(keys) > 1:
            raise ConfigError("data.labels is one array, but the images are of several parts", "name one for each part")
    elif len(keys) > 1:
        found = {part: key for part, key in _by_part(members, LABELS).items() if part in keys}
    else:
        by_part, key = _by_part(members, LABELS), _called(members, LABELS)
        found = {"train": key} if key is not None else {"train": by_part["train"]} if by_part else {}
    unused = set(members) - set(keys.values()) - set(found.values()) - {"factor_names", "latents_values", "metadata"}
    rows = [name for name in sorted(unused) if members[name].shape[:1] in [(n,) for n in counts]]
    if rows:
        output.notice(f"{path}: not used: {', '.join(rows[:10])}; data.key and data.labels name others")
    if found.keys() != keys.keys():
        if found:
            output.warning(f"{path}: the labels of {', '.join(keys.keys() - found.keys())} are missing; none is taken")
        return None
    values = [members[key].read() for key in found.values()]
    for array, key, n in zip(values, found.values(), counts, strict=True):
        if array.shape[:1] != (n,):
            _labels.from_array(f"{path}: {key}" if key else path, array, None, n)  # which refuses it
    joined = values[0] if len(values) == 1 else np.concatenate(values)
    return _labels.from_array(path, joined, _factor_names(path, members), sum(counts))


def _factor_names(path: Path, members: Mapping[str, Member]) -> list[str] | None:
    if "factor_names" not in members:
        return None
    try:
        names = members["factor_names"].read()
    except ValueError:
        output.warning(f"{path}: factor_names are Python objects, which are never read; save them as text")
        return None
    return [(n.decode(errors="replace") if isinstance(n, bytes) else str(n))[:80] for n in names.ravel()[:1000]]


# ---- from what is stored to images


def _planes(
    path: Path, dtype: np.dtype[Any], shapes: list[tuple[int, ...]], layout: str | None
) -> Callable[[Array], Array]:
    """What makes (N, C, H, W) of such arrays, or of rows of them; InputError where they are no images."""
    shape = shapes[0]
    if dtype.kind not in "bfiu":
        raise InputError(f"{path}: images of type {dtype}", "convert them to uint8, or to floats in [0, 1]")
    if any(other[1:] != shape[1:] for other in shapes):
        raise InputError(f"{path}: the parts have images of several shapes: {', '.join(map(str, shapes))}")
    if any(0 in each for each in shapes):
        raise InputError(f"{path}: there are no images in an array of shape {shape}")
    if len(shape) == 3 and shape[2] == 3 < min(shape[:2]) and len(shapes) == 1:
        output.notice(f"{path}: shape {shape} is taken for one colour image; (N, H, W) would be {shape[0]:,} grey ones")
        return lambda a: a[None].transpose(0, 3, 1, 2)
    if len(shape) == 3:
        return lambda a: a[:, None]
    if len(shape) == 4 and (found := layout or _layout(shape)) is not None:
        channels = shape[3 if found == "hwc" else 1]
        if channels <= MOST_CHANNELS:
            if channels not in (1, 3):
                output.notice(f"{path}: shape {shape} is taken for {channels} channels, {_WHERE[found]}")
            return (lambda a: a.transpose(0, 3, 1, 2)) if found == "hwc" else (lambda a: a)
    raise InputError(
        f"{path}: images of shape {shape}",
        f"use (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 to {MOST_CHANNELS}; data.layout=chw or hwc says which it is",
    )


_WHERE = {"hwc": "which come last", "chw": "which come first"}


def _layout(shape: tuple[int, ...]) -> str | None:
    """Where the channels are; None where that cannot be told."""
    first, last = shape[1], shape[3]
    if last in (1, 3) or first in (1, 3):
        return "hwc" if last in (1, 3) else "chw"
    if min(first, last) > MOST_CHANNELS or first == last:
        return None
    return "hwc" if last < first else "chw"


def _in_memory(path: Path, images: Array, wanted: _range.Wanted) -> tuple[Array, dict[str, list[float]]]:
    """Images (N, C, H, W), contiguous, uint8 0..255 or float32 in [0, 1], and the range they were read by."""
    ranges = _ranges(path, images.dtype, chunks(images), wanted)
    convert = _converter(images.dtype, ranges)
    if images.dtype == np.uint8 and ranges["uint8"] == [0, 255]:
        return np.ascontiguousarray(images), ranges
    result = np.empty(images.shape, np.float32 if images.dtype.kind == "f" else np.uint8)
    for part, target in zip(chunks(images), chunks(result), strict=True):
        target[:] = convert(part)
    return result, ranges


def _ranges(path: Path, dtype: np.dtype[Any], parts: Iterator[Array], wanted: _range.Wanted) -> dict[str, list[float]]:
    """Which values become black and white, said; InputError for the first image that cannot be used."""
    kind = _range.kind(dtype)
    if kind == "bool":
        return {}
    given = _range.pair(wanted, kind) is not None
    low, high, start = np.inf, -np.inf, 0
    for part in parts:
        least, greatest = float(part.min()), float(part.max())
        if not np.isfinite([least, greatest]).all() or (not given and _range.problem(kind, least, greatest)):
            _refuse_first(path, part, start, kind, given)
        low, high, start = min(low, least), max(high, greatest), start + len(part)
    ranges = _range.find(wanted, {kind: (low, high)})
    _range.say(path, wanted, ranges, {kind: (low, high)})
    return ranges


def _converter(dtype: np.dtype[Any], ranges: Mapping[str, list[float]]) -> Callable[[Array], Array]:
    """From stored values to uint8 or float32, contiguous."""
    kind = _range.kind(dtype)

    def convert(part: Array) -> Array:
        if kind == "bool":
            part = part.astype(np.uint8) * np.uint8(255)
        elif kind == "float":
            part = _range.to_unit(part.astype(np.float32), ranges[kind])
        else:
            part = _range.to_bytes(part, ranges[kind])
        return np.ascontiguousarray(part)

    return convert


def _refuse_first(path: Path, part: Array, start: int, kind: str, given: bool) -> None:
    """InputError for the first image of these that cannot be used."""
    for i, image in enumerate(part):
        low, high = float(image.min()), float(image.max())
        wrong = _range.problem(kind, low, high)
        if wrong and not (given and np.isfinite([low, high]).all()):
            # What to do follows from all of them: one image may have a part of the values only.
            finite = np.isfinite([low, high]).all()
            every = _range.problem(kind, float(part.min()), float(part.max())) if finite else None
            raise InputError(f"{path}: image {start + i} {wrong[0]}", (every or wrong)[1])


# ---- on disk


def held(path: Path, wanted: _disk.Where, raws: Sequence[Member], keys: Sequence[str]) -> Sequence[Array | _disk.Rows]:
    """The values of arrays in memory, or their rows on disk."""
    return _on_disk(path, wanted, raws, keys) or [raw.read() for raw in raws]


def _on_disk(path: Path, wanted: _disk.Where, raws: Sequence[Member], keys: Sequence[str]) -> list[_disk.Rows] | None:
    """The rows of arrays that stay on disk, unpacked into the cache where they do not lie in the file as they are; None
    where they are to be in memory."""
    if any(len(raw.shape) < 3 or raw.dtype.kind not in "biuf" for raw in raws):
        return None  # no images: which will be said
    # Memory would hold the values as they are and, unless they are bytes, converted ones beside them.
    nbytes = sum(raw.nbytes * (1 if raw.dtype == np.uint8 else 2) for raw in raws)
    if not _disk.stays_on_disk(wanted, nbytes):
        return None
    found = []
    for raw, key in zip(raws, keys, strict=True):
        if raw.rows is not None:
            found.append(raw.rows())
        else:
            kept = _disk.place("array", *_disk.identity(path), key)
            found.append(_disk.unpacked(kept, raw.shape, raw.dtype, raw.parts))
    how = "as they lie in the file" if all(raw.rows for raw in raws) else "unpacked into the cache"
    output.notice(f"{path}: {nbytes / 1e9:,.2f} GB of images stay on disk, {how}; batches are read from there")
    return found


def _from_disk(
    path: Path, parts: list[_disk.Rows], planes: Callable[[Array], Array], wanted: _range.Wanted
) -> tuple[_disk.OnDisk, dict[str, list[float]], _disk.Survey]:
    dtype = parts[0].dtype

    def raw() -> Iterator[Array]:
        for rows in parts:
            for start in range(0, len(rows), 256):
                yield planes(rows[start : start + 256])

    def images(ranges: Mapping[str, list[float]]) -> _disk.OnDisk:
        convert = _converter(dtype, ranges)
        c, h, w = planes(parts[0][0:1]).shape[1:]
        itemsize = 4 if dtype.kind == "f" else 1
        return _disk.OnDisk(parts, lambda rows: convert(planes(rows)), (c, h, w), itemsize)

    def make() -> tuple[dict[str, Any], _disk.Survey]:
        ranges = _ranges(path, dtype, raw(), wanted)
        found = images(ranges)
        return {"range": ranges}, _disk.survey(found.chunks(), len(found), "looking at all images")

    key = [[*_disk.identity(rows.path), rows.offset, rows.shape, str(rows.dtype)] for rows in parts]
    shape = planes(parts[0][0:1]).shape[1:]
    facts, found = _disk.remembered(_disk.place("set", key, json.loads(json.dumps(wanted)), shape), make)
    return images(facts["range"]), facts["range"], found


# ---- tables of pixels


@dataclass(frozen=True)
class _Pixels:
    values_NP: Array
    label_N: list[str] | None


def _from_table(config: Config, path: Path) -> Dataset:
    """Rows of pixels, perhaps with a column `label` before or behind them."""
    if config.key is not None:
        raise ConfigError("data.key names an array, but a table has none", "leave out data.key")
    table = _read_pixels(path)
    n, p = table.values_NP.shape
    c, h, w = _shape_of(path, p, config.shape)
    factors = None if table.label_N is None else _labels.from_table(path, ["class"], [table.label_N])
    if config.labels is not None:
        if not (isinstance(config.labels, str) and _labels.is_table(config.labels)):
            raise ConfigError("data.labels of a table of pixels is another table", "data.labels=FILE.csv")
        factors = _labels.of_rows(_labels.find(config.labels, path.parent), n)
    return finish(config, path, [table.values_NP.reshape(n, c, h, w)], factors, {}, config.range, "chw", "table")


def _read_pixels(path: Path) -> _Pixels:
    """Numbers as the smallest type that holds them; a row that has others is named."""
    parts: list[Array] = []
    try:
        with _labels.text(path) as lines:
            first = next(lines, "")
            delimiter = _labels.delimiter(first)
            names = [cell.strip().strip('"').lower() for cell in first.split(delimiter)]
            header, columns = not all(map(is_number, names)), len(names)
            label = next((j for j, name in enumerate(names) if header and name in LABELS), None)
            if label is None and not _squares(columns) and _squares(columns - 1):
                label = 0
                output.notice(f"{path}: {columns} columns: the first is taken for labels, the others for pixels")
            labels: list[str] = []

            def pixels() -> Iterator[str]:
                for line in lines if header else itertools.chain([first], lines):
                    if not line.strip():
                        continue
                    if label is not None:
                        cells = line.split(delimiter)
                        labels.append(cells.pop(label).strip().strip('"') if len(cells) > label else "")
                        line = delimiter.join(cells)
                    yield line

            left, row = pixels(), 1 + header
            while some := list(itertools.islice(left, 1024)):
                parts.append(_parsed(path, some, delimiter, columns - (label is not None), row))
                row += len(some)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or 'it is no table in UTF-8'}") from None
    if not parts:
        raise InputError(f"{path}: there are no images in this table")
    values_NP = np.concatenate(parts)
    return _Pixels(_smallest(values_NP), None if label is None else labels)


def _parsed(path: Path, lines: list[str], delimiter: str, columns: int, row: int) -> Array:
    """float32 (n, P); InputError for the first of these rows, the first of which is the table's `row`, that is none."""
    try:
        found = np.loadtxt(lines, np.float32, delimiter=delimiter, ndmin=2, comments=None, quotechar='"')
        if found.shape != (len(lines), columns):
            raise ValueError
        return found
    except ValueError:
        if len(lines) > 1:
            for i, line in enumerate(lines):
                _parsed(path, [line], delimiter, columns, row + i)
        cells = lines[0].count(delimiter) + 1
        what = f"{cells} cells, not {columns}" if cells != columns else "cells that are no numbers"
        raise InputError(
            f"{path}: row {row} has {what}", "a row is the pixels of an image, and perhaps a label"
        ) from None


def _smallest(values_NP: Array) -> Array:
    """Whole numbers as integers, unless all are 0 and 1."""
    low, high = float(values_NP.min()), float(values_NP.max())
    if not np.isfinite([low, high]).all() or (low >= 0 and high <= 1) or not (values_NP == np.rint(values_NP)).all():
        return values_NP
    return values_NP.astype(np.uint8 if low >= 0 and high < 256 else np.int32)


def is_number(cell: str) -> bool:
    """Whether a cell of a table of text is read as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _squares(pixels: int) -> tuple[int, int, int] | None:
    """The shape of square images of so many values, grey or of three channels."""
    for c in (1, 3):
        side = round((pixels / c) ** 0.5)
        if pixels > 1 and c * side * side == pixels:
            return c, side, side
    return None


def _shape_of(path: Path, pixels: int, given: list[int] | None) -> tuple[int, int, int]:
    c, h, w = (given if len(given) == 3 else [1, *given]) if given else (_squares(pixels) or (0, 0, 0))
    if c * h * w != pixels:
        what = f"data.shape is {given}" if given else "which are no square images"
        raise InputError(f"{path}: rows of {pixels:,} pixels, {what}", "data.shape=[height, width], or [channels, ...]")
    if c > MOST_CHANNELS:
        raise ConfigError(f"data.shape has {c} channels", f"there are 1 to {MOST_CHANNELS}")
    return c, h, w
