"""Files that hold arrays by name: .npy, .npz and HDF5, what their headers say, and ways to read them.

Sizes are judged by the header before anything is allocated. Python objects are never read.
"""

import itertools
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vaecli.data import _disk
from vaecli.data.base import require_memory
from vaecli.errors import ConfigError, InputError

Array = np.ndarray[Any, Any]

_LOOKS = {
    b"<": "a web page (HTML)",
    b"version https://git-lfs": "a git-lfs pointer; run git lfs pull",
    b"\x80": "a pickle, which is never read",
}
_HDF5 = b"\x89hdf"
_PIECE = 1 << 24  # bytes read at a time
ENDINGS = (".npz", ".npy", ".h5", ".hdf5")


@dataclass(frozen=True)
class Member:
    """An array within a file. `read` gives it as a whole, `parts` piece by piece along its first axis, `rows`, where it
    lies in the file as it is, a way to its rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]
    parts: Callable[[], Iterator[Array]]
    rows: Callable[[], _disk.Rows] | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def opened(path: Path) -> Iterator[dict[str, Member]]:
    """The arrays of a file by name (that of an .npy is empty). InputError for a file that cannot be used, also while
    they are read."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise InputError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            start = file.read(64)
            file.seek(0)
            if start.startswith(b"\x93NUMPY"):
                yield {"": _npy(path, lambda: path.open("rb"), os.fstat(file.fileno()).st_size, 0)}
            elif start.startswith(b"PK"):
                with zipfile.ZipFile(file) as archive:
                    yield dict(_npz(path, file, archive))
            elif start.lower().startswith(_HDF5):
                with _h5py().File(path, "r") as held:
                    yield dict(_hdf5(path, held))
            else:
                kind = next((word for mark, word in _LOOKS.items() if start.lstrip().lower().startswith(mark)), None)
                raise InputError(
                    f"{path} is not a NumPy file" + (f": it looks like {kind}" if kind else ""),
                    "give a .npy, .npz, .h5 or .csv file: --data array:FILE",
                )
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        # NumPy's own words may advise to allow pickle: only those of the system are passed on.
        reason = getattr(error, "strerror", None) or "it is damaged, or holds Python objects, which are never read"
        raise InputError(f"{path}: {reason}", "save plain arrays with numpy.savez or numpy.save") from None


def _npz(path: Path, file: IO[bytes], archive: zipfile.ZipFile) -> Iterator[tuple[str, Member]]:
    for info in archive.infolist():
        if info.filename.endswith(".npy"):
            offset = None
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                file.seek(info.header_offset + 26)  # the local header's lengths: of the name, and of what else it has
                offset = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            yield (
                info.filename.removesuffix(".npy"),
                _npy(path, lambda info=info: archive.open(info), info.file_size, offset),  # type: ignore[misc]
            )


def _npy(path: Path, start: Callable[[], IO[bytes]], size: int, offset: int | None) -> Member:
    """An array of NumPy's format in a stream of `size` bytes; `offset`: where in the file it lies, if not packed."""
    with start() as stream:
        shape, fortran, dtype = _header(stream)
        begins = stream.tell()

    def checked() -> int:
        if dtype.hasobject:
            raise ValueError("objects")
        nbytes = math.prod(shape) * dtype.itemsize
        if not 0 <= nbytes <= size:
            raise EOFError  # the header claims more than there is
        return nbytes

    def read() -> Array:
        if not dtype.hasobject:
            nbytes = math.prod(shape) * dtype.itemsize
            require_memory(nbytes, f"{path}: an array {dtype} {shape}", "use a smaller array, or uint8 images")
        data = bytearray(checked())
        with start() as stream:
            _header(stream)
            _fill(stream, memoryview(data))
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

    def parts() -> Iterator[Array]:
        checked()
        if fortran or not shape:
            yield read()
            return
        width = max(1, math.prod(shape[1:]) * dtype.itemsize)
        with start() as stream:
            _header(stream)
            for first in range(0, shape[0], step := max(1, _PIECE // width)):
                n = min(step, shape[0] - first)
                data = bytearray(n * math.prod(shape[1:]) * dtype.itemsize)
                _fill(stream, memoryview(data))
                yield np.frombuffer(data, dtype).reshape(n, *shape[1:])

    def rows() -> _disk.Rows:
        checked()
        return _disk.Rows(path, dtype, shape, (offset or 0) + begins)

    direct = offset is not None and not fortran and len(shape) > 0
    return Member(shape, dtype, read, parts, rows if direct else None)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(version)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(stream)
    return shape, fortran, dtype


def _fill(stream: IO[bytes], view: memoryview) -> None:
    while len(view):
        part = stream.read(min(_PIECE, len(view)))
        if not part:
            raise EOFError
        view[: len(part)] = part
        view = view[len(part) :]


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ConfigError("HDF5 files are read by h5py, which is not installed", 'pip install "vaecli[hdf5]"') from None
    return h5py


def _hdf5(path: Path, held: Any) -> Iterator[tuple[str, Member]]:
    h5py, found = _h5py(), {}
    # Which goes along neither soft nor external links.
    held.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
    for name, item in found.items():
        if item.external or item.is_virtual:
            raise InputError(f"{path}: the array {name!r} refers to other files", "save the values themselves")
        if item.shape is not None:
            yield name, _dataset(path, item, h5py.check_string_dtype(item.dtype) is not None)


def _dataset(path: Path, item: Any, words: bool) -> Member:
    shape: tuple[int, ...] = item.shape
    dtype: np.dtype[Any] = np.dtype(str) if words else item.dtype

    def read() -> Array:
        if words:
            return np.array(item.asstr(errors="replace")[()], dtype=str)
        if dtype.hasobject:
            raise ValueError("objects")
        nbytes = math.prod(shape) * dtype.itemsize
        require_memory(nbytes, f"{path}: an array {dtype} {shape}", "use a smaller array, or uint8 images")
        value: Array = item[()]
        return value

    def parts() -> Iterator[Array]:
        # Whole chunks, as they are packed.
        step = max(1, _PIECE // max(1, math.prod(shape[1:]) * dtype.itemsize))
        if item.chunks:
            step = -(-step // item.chunks[0]) * item.chunks[0]
        for first, last in itertools.pairwise([*range(0, shape[0], step), shape[0]]):
            yield item[first:last]

    offset: int = 0 if words or dtype.hasobject or not shape else item.id.get_offset() or 0
    return Member(shape, dtype, read, parts, (lambda: _disk.Rows(path, dtype, shape, offset)) if offset else None)
