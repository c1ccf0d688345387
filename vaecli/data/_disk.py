"""Sets larger than memory: rows of a file read a batch at a time, and what is derived once kept in the cache.

Rows are read by their position, not mapped: pages of a mapped file would count as the process's memory, and stay. The
cache holds arrays as .npy files, written aside and renamed, whose facts (sha256, range, keys of the split) lie beside
them; they are derived anew where the file they are from has another size or time.

Shapes: N rows, B batch, C H W image.
"""

import hashlib
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from vaecli import output, safe_files
from vaecli.data.base import Bytes, Floats, Store, chunks, content_keys, free_memory
from vaecli.errors import InputError, MachineError
from vaecli.paths import cache_dir

Array = np.ndarray[Any, Any]
Where = Literal["auto", "memory", "disk"]

LARGE = 2**30  # bytes above which a set stays on disk
SHARE = 0.25  # of the memory that is free: above it, too


def stays_on_disk(wanted: Where, nbytes: int) -> bool:
    """Whether a set of so many bytes is read from disk a batch at a time."""
    if wanted != "auto":
        return wanted == "disk"
    free = free_memory()
    return nbytes > LARGE or (free is not None and nbytes > SHARE * free)


class Rows:
    """The rows of an array in C order that lies in a file, at `offset` bytes from its start."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: Sequence[int], offset: int) -> None:
        self.path, self.dtype, self.shape, self.offset = path, dtype, tuple(shape), offset
        self._width = math.prod(self.shape[1:]) * dtype.itemsize
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if os.fstat(self._handle).st_size < offset + self.shape[0] * self._width:
            raise EOFError

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Array:
        start, stop, _ = part.indices(len(self))
        found = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        self._read(found, start)
        return found

    def take(self, index_B: Array) -> Array:
        """The rows at these positions."""
        found = np.empty((len(index_B), *self.shape[1:]), self.dtype)
        if hasattr(os, "posix_fadvise"):  # the system may fetch all while the first is copied
            for i in index_B.tolist() if len(index_B) * self._width < 2**26 else ():
                os.posix_fadvise(self._handle, self.offset + i * self._width, self._width, os.POSIX_FADV_WILLNEED)
        ends = np.flatnonzero(np.diff(index_B) != 1) + 1  # neighbours are read together
        for start, stop in zip([0, *ends.tolist()], [*ends.tolist(), len(index_B)], strict=True):
            if stop > start:
                self._read(found[start:stop], int(index_B[start]))
        return found

    def _read(self, target: Array, row: int) -> None:
        view, place = target.reshape(-1).view(np.uint8).data, self.offset + row * self._width
        while len(view):
            got = os.preadv(self._handle, [view[: 1 << 30]], place)
            if not got:
                raise InputError(f"{self.path} ends early: it was changed while it was read")
            view, place = view[got:], place + got


class OnDisk:
    """Images that lie in files, one after another; `convert` makes uint8 or float32 (B, C, H, W) of rows."""

    def __init__(
        self, parts: Sequence[Rows], convert: Callable[[Array], Array], shape: tuple[int, int, int], itemsize: int
    ) -> None:
        self.parts, self.convert, self.shape = list(parts), convert, shape
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self._itemsize = itemsize

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        """What the images would take in memory."""
        return len(self) * math.prod(self.shape) * self._itemsize

    def to(self, device: torch.device | str) -> Store | Self:
        """On another device all of them, in its memory."""
        if torch.device(device).type == "cpu":
            return self
        dtype = torch.uint8 if self._itemsize == 1 else torch.float32
        data_NCHW = torch.empty((len(self), *self.shape), dtype=dtype, device=device)
        start = 0
        for part in self.chunks():
            data_NCHW[start : start + len(part)] = torch.from_numpy(part)
            start += len(part)
        return (Bytes if dtype == torch.uint8 else Floats)(data_NCHW)

    def chunks(self, size: int = 256) -> Iterator[Array]:
        """All images in order, uint8 or float32 (n, C, H, W)."""
        for rows in self.parts:
            for start in range(0, len(rows), size):
                yield self.convert(rows[start : start + size])

    def gather(self, index_B: Tensor) -> Tensor:
        places = index_B.cpu().numpy()
        order = np.argsort(places, kind="stable")
        sorted_B = places[order]
        which_B = np.searchsorted(self._starts, sorted_B, side="right") - 1
        found = [self.parts[p].take(sorted_B[which_B == p] - self._starts[p]) for p in np.unique(which_B).tolist()]
        images = torch.from_numpy(self.convert(found[0] if len(found) == 1 else np.concatenate(found)))
        x_BCHW = torch.empty(images.shape)
        x_BCHW[torch.from_numpy(order)] = images.float().div_(255.0) if images.dtype == torch.uint8 else images
        return x_BCHW


# ---- what is known of a set


@dataclass(frozen=True)
class Survey:
    """Of all images: sha256 of their values, content keys, int64 (N,), and whether every pixel is black or white."""

    sha256: str
    keys_N: Tensor
    binary: bool


def survey(images: Iterable[Array], n: int, what: str) -> Survey:
    """Of converted images in order."""
    digest, keys, binary = hashlib.sha256(), [], True
    with output.progress(what, n) as advance:
        for big in images:
            for part in chunks(big):
                part = np.ascontiguousarray(part)
                digest.update(part.data)
                keys.append(content_keys(part))
                top = 255 if part.dtype == np.uint8 else 1
                binary = binary and bool(((part == 0) | (part == top)).all())
                advance(len(part))
    return Survey(digest.hexdigest(), torch.cat(keys) if keys else torch.empty(0, dtype=torch.int64), binary)


def identity(path: Path) -> list[Any]:
    """What a file is known by without reading it: its full path, size and time."""
    stat = path.stat()
    return [os.path.realpath(path), stat.st_size, stat.st_mtime_ns]


def place(kind: str, *key: Any) -> Path:
    """Where in the cache something is that follows from `key`, without an ending."""
    text = json.dumps([1, *key], sort_keys=True, default=str)
    return cache_dir() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def remembered(
    kept: Path,
    make: Callable[[], tuple[dict[str, Any], Survey]],
    holds: Callable[[dict[str, Any]], bool] = lambda facts: True,
) -> tuple[dict[str, Any], Survey]:
    """Facts and a survey from the cache file at `kept`, if they still hold, or made now and put there (if it can be
    written)."""
    kept = kept.with_suffix(".facts.npz")
    try:
        with io.BytesIO(safe_files.read(kept)) as file, np.load(file, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            keys_N = torch.from_numpy(arrays["keys"])
            if holds(facts["facts"]):
                return facts["facts"], Survey(facts["sha256"], keys_N, facts["binary"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):  # which has sums of its own
        output.warning(f"{kept} is damaged and is made again")
    facts, found = make()
    text = json.dumps({"facts": facts, "sha256": found.sha256, "binary": found.binary}).encode()
    file = io.BytesIO()
    np.savez(file, facts=np.frombuffer(text, np.uint8), keys=found.keys_N.numpy())
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        safe_files.replace(kept, file.getvalue())
    except OSError as error:
        output.notice(f"{kept}: {error.strerror}; what was found out about the images is not kept")
    return facts, found


# ---- arrays in the cache


def unpacked(kept: Path, shape: Sequence[int], dtype: np.dtype[Any], parts: Callable[[], Iterator[Array]]) -> Rows:
    """An array as rows on disk: found at `kept` in the cache, or put there from `parts`, its pieces in order."""
    kept = kept.with_suffix(".npy")
    if (found := rows_at(kept, shape, dtype)) is not None:
        return found
    with making(kept, shape, dtype) as place, output.progress("unpacking", shape[0]) as advance:
        start = 0
        for part in parts():
            place.write(start, part)
            start += len(part)
            advance(len(part))
        place.end(start)
    made = rows_at(kept, shape, dtype)
    if made is None:
        raise InputError("the array is not as long as its header says")
    return made


def rows_at(kept: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> Rows | None:
    """The array at this place, if it is one of that shape and type and is whole."""
    try:
        if not safe_files.is_plain(kept):
            return None
        with kept.open("rb") as file:
            np.lib.format.read_magic(file)
            shape_there, fortran, dtype_there = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        if tuple(shape_there) != tuple(shape) or fortran or dtype_there != dtype:
            return None
        if kept.stat().st_size != offset + math.prod(shape) * dtype.itemsize:
            return None
        return Rows(kept, dtype, shape, offset)
    except (OSError, ValueError, EOFError):
        return None


class Place:
    """An .npy file that is being written, in any order."""

    def __init__(self, file: IO[bytes], shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self._file, self._shape, self._dtype = file, tuple(shape), dtype
        self._width = math.prod(shape[1:]) * dtype.itemsize
        self._header(self._shape[0])
        self._start = file.tell()

    def _header(self, n: int) -> None:
        shape, descr = (n, *self._shape[1:]), np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)  # which leaves room for other numbers of rows

    def write(self, start: int, rows: Array) -> None:
        """Rows, from the one at `start` on."""
        self._file.seek(self._start + start * self._width)
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)

    def end(self, n: int) -> None:
        """All is written, and there are `n` rows."""
        self._file.seek(0)
        self._header(n)
        if self._file.tell() != self._start:
            raise OSError(0, "the header of an array does not fit in its place")
        self._file.truncate(self._start + n * self._width)


@contextmanager
def making(kept: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> Iterator[Place]:
    """A new .npy file of the cache, which gets its name at the end; `shape` is what it has at most.

    MachineError, before anything is written, where the disk has no room for it.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(kept.parent).free) < nbytes + 2**26:
            raise MachineError(
                f"{kept.parent} has {free / 1e9:,.1f} GB free, and the images take {nbytes / 1e9:,.1f} GB there",
                "free some space, or set VAE_CACHE_DIR to a disk that has more",
            )
        with safe_files.replacing(kept) as file:
            yield Place(file, shape, dtype)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise MachineError(f"{kept}: {error.strerror}", "VAE_CACHE_DIR names another folder for the cache") from None
    output.notice(f"{nbytes / 1e9:,.2f} GB of images are kept in {kept}")
