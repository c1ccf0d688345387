"""Images in a NumPy file, .npy or .npz: (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3, uint8, bool or float [0, 1].

In an npz the images are `images`, `imgs` or `x`, or the only array; factor classes, (N,) or (N, K) integers counted
from 0 (-1 where unknown), are `factors`, `labels` or `latents_classes`, their names `factor_names`. uint8 images
that hold nothing above 1 are binary.
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

from vaecli.data.base import DataConfig, Dataset, assemble, chunks, require_memory, store
from vaecli.errors import InputError

IMAGES = ("images", "imgs", "x")
FACTORS = ("factors", "labels", "latents_classes")

Array = np.ndarray[Any, Any]


class Config(DataConfig):
    """`path`: the .npy or .npz file."""

    path: str


def load(config: Config) -> Dataset:
    """InputError for a file that cannot be used, with the first bad image; MachineError where it does not fit."""
    path = Path(config.path).expanduser()
    try:
        if not path.is_file():  # a pipe would be waited for
            raise InputError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
        images, factors, names = _read(path)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy's own words may advise to allow pickle: only those of the system are passed on.
        reason = getattr(error, "strerror", None) or "it is damaged, or holds Python objects, which are never read"
        raise InputError(f"{path}: {reason}", "save plain arrays with numpy.savez or numpy.save") from None
    images_NCHW = np.ascontiguousarray(_images(path, images))
    labels_NK = None if factors is None else _factors(path, factors, len(images_NCHW))
    k = 0 if labels_NK is None else labels_NK.shape[1]
    if names is None or len(names) != k:
        names = ["class"] if k == 1 else [f"factor{i}" for i in range(k)]
    images_store, binary = store(images_NCHW)
    return assemble(
        config,
        images_store,
        labels_NK=labels_NK,
        factor_names=names,
        factor_sizes=[] if labels_NK is None else [int(size) + 1 for size in labels_NK.amax(dim=0)],
        binary=binary,
        source={"kind": "array", "sha256": hashlib.sha256(images_NCHW.data).hexdigest()},
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
                names = _member(path, member, archive.getinfo(arrays["factor_names"]).file_size)
            return images, factors, [str(name)[:80] for name in names.ravel()[:1000]]


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
    if not 0 <= nbytes <= size:
        raise EOFError  # the header claims more than there is
    require_memory(nbytes, f"{path}: an array {dtype} {shape}", "use a smaller array, or uint8 images")
    data = bytearray(nbytes)
    view, got = memoryview(data), 0
    while got < nbytes:
        part = file.read(min(1 << 24, nbytes - got))
        if not part:
            raise EOFError
        view[got : got + len(part)] = part
        got += len(part)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _images(path: Path, images: Array) -> Array:
    """Checked images (N, C, H, W), uint8 0..255 or float32 in [0, 1]."""
    if images.dtype.kind not in "bf" and images.dtype != np.uint8:
        raise InputError(f"{path}: images of type {images.dtype}", "convert them to uint8, or to floats in [0, 1]")
    shape = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or shape[1] not in (1, 3):
        raise InputError(f"{path}: images of shape {shape}", "use (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3")
    if 0 in shape:
        raise InputError(f"{path}: there are no images in an array of shape {shape}")
    if images.dtype.kind == "b":
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype == np.uint8:
        return images * np.uint8(255) if images.max() <= 1 else images
    start = 0
    for part in chunks(images):
        # Written so that NaN, which compares false, counts as bad.
        bad = np.flatnonzero(~((part >= 0) & (part <= 1)).reshape(len(part), -1).all(axis=1))
        if len(bad):
            image = part[bad[0]]
            hint = "divide by 255, or save as uint8" if np.isfinite(image).all() else "replace the missing values"
            values = f"values from {image.min():g} to {image.max():g}"
            raise InputError(f"{path}: image {start + int(bad[0])} has {values}, not in [0, 1]", hint)
        start += len(part)
    return images.astype(np.float32, copy=False)


def _factors(path: Path, factors: Array, n: int) -> torch.Tensor:
    """Checked labels, int64 (N, K)."""
    hint = "factors are integers counted from 0, (N,) or (N, K)"
    if factors.dtype.kind not in "iub" or factors.ndim not in (1, 2) or 0 in factors.shape:
        raise InputError(f"{path}: factors of type {factors.dtype} and shape {factors.shape}", hint)
    if len(factors) != n:
        raise InputError(f"{path}: {len(factors):,} rows of factors for {n:,} images", hint)
    if factors.min() < -1 or factors.max() >= 2**31:
        raise InputError(f"{path}: factors from {factors.min()} to {factors.max()}", hint)
    return torch.from_numpy(factors.reshape(n, -1).astype(np.int64))
