"""Images in a NumPy file, .npy or .npz: (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3, of bool, integers or floats.

In an npz the images are `images`, `imgs` or `x`, or the only array; factor classes, (N,) or (N, K) integers counted
from 0 (-1 where unknown), are `factors`, `labels` or `latents_classes`, their names `factor_names`. Labels of -1 and 1
are two values; rows that are 1 in one place and 0 elsewhere are one factor. `_range` says what becomes of pixels.
"""

import hashlib
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from vaecli import output
from vaecli.data import _range
from vaecli.data.base import Dataset, assemble, chunks, content_keys, require_memory, store
from vaecli.errors import InputError

IMAGES = ("images", "imgs", "x")
FACTORS = ("factors", "labels", "latents_classes")

Array = np.ndarray[Any, Any]


class Config(_range.RangeConfig):
    """`path`: the .npy or .npz file."""

    path: str


def load(config: Config) -> Dataset:
    """InputError for a file that cannot be used, with the first bad image; MachineError where it does not fit."""
    path = Path(config.path).expanduser()
    _range.check(config.range)
    try:
        if not path.is_file():  # a pipe would be waited for
            raise InputError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
        images, factors, names_given = _read(path)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy's own words may advise to allow pickle: only those of the system are passed on.
        reason = getattr(error, "strerror", None) or "it is damaged, or holds Python objects, which are never read"
        raise InputError(f"{path}: {reason}", "save plain arrays with numpy.savez or numpy.save") from None
    images_NCHW, ranges = _images(path, images, config.range)
    labels_NK: torch.Tensor | None = None
    names: list[str] = []
    value_names: list[list[str]] = []
    if factors is not None:
        labels_NK, names, value_names = _factors(path, factors, names_given, len(images_NCHW))
    images_store, binary = store(images_NCHW)
    return assemble(
        config,
        images_store,
        labels_NK=labels_NK,
        factor_names=names,
        factor_sizes=[] if labels_NK is None else [int(size) + 1 for size in labels_NK.amax(dim=0)],
        value_names=value_names,
        binary=binary,
        content_N=content_keys(images_NCHW),
        source={"kind": "array", "sha256": hashlib.sha256(images_NCHW.data).hexdigest(), "range": ranges},
    )


def _read(path: Path) -> tuple[Array, Array | None, list[str] | None]:
    """Images, factors and their names, as they are in the file."""
    with path.open("rb") as file:
        start = file.read(64)
        file.seek(0)
        if start.startswith(b"\x93NUMPY"):
            return _member(path, file, os.fstat(file.fileno()).st_size), None, None
        if not start.startswith(b"PK"):
            kind = next((word for mark, word in _LOOKS.items() if start.lstrip().lower().startswith(mark)), None)
            raise InputError(
                f"{path} is not a NumPy file" + (f": it looks like {kind}" if kind else ""),
                "give a .npy or .npz file: --data array:FILE",
            )
        with zipfile.ZipFile(file) as archive:
            arrays = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            key = next((name for name in IMAGES if name in arrays), None)
            if key is None and len(arrays) == 1:
                key = next(iter(arrays))
            if key is None:
                listed = ", ".join(sorted(arrays)[:10]) or "none"
                raise InputError(f"{path} has no array `images`; its arrays: {listed}", "call the array `images`")
            with archive.open(arrays[key]) as member:
                images = _member(path, member, archive.getinfo(arrays[key]).file_size)
            factor_key = next((name for name in FACTORS if name in arrays), None)
            if factor_key is None:
                return images, None, None
            with archive.open(arrays[factor_key]) as member:
                factors = _member(path, member, archive.getinfo(arrays[factor_key]).file_size)
            if "factor_names" not in arrays:
                return images, factors, None
            with archive.open(arrays["factor_names"]) as member:
                try:
                    names = _member(path, member, archive.getinfo(arrays["factor_names"]).file_size)
                except ValueError:
                    output.warning(f"{path}: factor_names are Python objects, which are never read; save them as text")
                    return images, factors, None
            return images, factors, [_text(name)[:80] for name in names.ravel()[:1000]]


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


_LOOKS = {
    b"<": "a web page (HTML)",
    b"version https://git-lfs": "a git-lfs pointer; run git lfs pull",
    b"\x89hdf": "an HDF5 file",
    b"\x80": "a pickle, which is never read",
}


def _member(path: Path, file: IO[bytes], size: int) -> Array:
    """One array of a file of `size` bytes; its size is judged by its header, before anything is allocated."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(version)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
    if dtype.hasobject:
        raise ValueError("objects")
    nbytes = math.prod(shape) * dtype.itemsize
    require_memory(nbytes, f"{path}: an array {dtype} {shape}", "use a smaller array, or uint8 images")
    if not 0 <= nbytes <= size:
        raise EOFError  # the header claims more than there is
    data = bytearray(nbytes)
    view, got = memoryview(data), 0
    while got < nbytes:
        part = file.read(min(1 << 24, nbytes - got))
        if not part:
            raise EOFError
        view[got : got + len(part)] = part
        got += len(part)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _images(path: Path, images: Array, wanted: _range.Wanted) -> tuple[Array, dict[str, list[float]]]:
    """Images (N, C, H, W), contiguous, uint8 0..255 or float32 in [0, 1], and the range they were read by."""
    if images.dtype.kind not in "bfiu":
        raise InputError(f"{path}: images of type {images.dtype}", "convert them to uint8, or to floats in [0, 1]")
    shape = images.shape
    if images.ndim == 3 and shape[2] == 3 < min(shape[:2]):
        output.notice(f"{path}: shape {shape} is taken for one colour image; (N, H, W) would be {shape[0]:,} grey ones")
        images = images[None].transpose(0, 3, 1, 2)
    elif images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or shape[1] not in (1, 3):
        raise InputError(f"{path}: images of shape {shape}", "use (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3")
    if 0 in shape:
        raise InputError(f"{path}: there are no images in an array of shape {shape}")
    kind = _range.kind(images.dtype)
    if kind == "bool":
        return np.ascontiguousarray(images.astype(np.uint8) * np.uint8(255)), {}
    given = _range.pair(wanted, kind) is not None
    low, high, start = np.inf, -np.inf, 0
    for part in chunks(images):
        least, greatest = float(part.min()), float(part.max())
        if not np.isfinite([least, greatest]).all() or (not given and _range.problem(kind, least, greatest)):
            _refuse_first(path, part, start, kind, given)
        low, high, start = min(low, least), max(high, greatest), start + len(part)
    ranges = _range.find(wanted, {kind: (low, high)})
    _range.say(path, wanted, ranges, {kind: (low, high)})
    ends = ranges[kind]
    if kind == "uint8" and ends == [0, 255]:
        return np.ascontiguousarray(images), ranges
    result = np.empty(images.shape, np.float32 if kind == "float" else np.uint8)
    for part, target in zip(chunks(images), chunks(result), strict=True):
        if kind == "float":
            target[:] = _range.to_unit(part.astype(np.float32), ends)
        else:
            target[:] = _range.to_bytes(part, ends)
    return result, ranges


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


def _factors(
    path: Path, factors: Array, names: list[str] | None, n: int
) -> tuple[torch.Tensor, list[str], list[list[str]]]:
    """Checked labels, int64 (N, K), the factors' names and those of their values."""
    hint = "factors are integers counted from 0, (N,) or (N, K)"
    if factors.dtype.kind not in "iub" or factors.ndim not in (1, 2) or 0 in factors.shape:
        raise InputError(f"{path}: factors of type {factors.dtype} and shape {factors.shape}", hint)
    if len(factors) != n:
        raise InputError(f"{path}: {len(factors):,} rows of factors for {n:,} images", hint)
    if factors.min() < -1 or factors.max() >= 2**31:
        raise InputError(f"{path}: factors from {factors.min()} to {factors.max()}", hint)
    labels_NK, value_names = factors.reshape(n, -1).astype(np.int64), []
    k = labels_NK.shape[1]
    if names is not None and len(names) != k:
        output.warning(f"{path}: {len(names):,} factor_names for {k:,} factors; they are left out")
        names = None
    if bool((np.abs(labels_NK) == 1).all()) and (labels_NK == -1).any() and (labels_NK == 1).any():
        output.notice(f"{path}: the labels are -1 and 1, which are taken for two values of each factor, 0 and 1")
        labels_NK = (labels_NK + 1) // 2
        value_names = [["-1", "1"]] * k
    elif k > 1 and bool(((labels_NK == 0) | (labels_NK == 1)).all()) and bool((labels_NK.sum(axis=1) == 1).all()):
        output.notice(f"{path}: the labels are one-hot: they are taken for one factor of {k} classes")
        labels_NK, value_names, names, k = labels_NK.argmax(axis=1)[:, None], [names or []], None, 1
    if names is None:
        names = ["class"] if k == 1 else [f"factor{i}" for i in range(k)]
    return torch.from_numpy(labels_NK), names, value_names
