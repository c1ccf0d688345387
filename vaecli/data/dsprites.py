"""dSprites: 737,280 binary 64x64 sprites with five known factors, read from the official file or rendered.

Matthey et al. 2017, https://github.com/google-deepmind/dsprites-dataset. The official npz is used where it is given or
found. Without it the images are rendered from a geometry that reproduces every frame the authors show in their
repository bit for bit; over the whole set some tens of its 3.0e9 pixels may differ from the official file.

The constant factor `color` is left out: shape (square, ellipse, heart), scale, orientation, posX, posY.
"""

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch

from vaecli import output, safe_files
from vaecli.data.base import Bits, DataConfig, Dataset, Holdout, Pooled, assemble, grid_labels
from vaecli.errors import InputError
from vaecli.paths import cache_dir, data_dir

FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "posX": 32, "posY": 32}
SHAPES = ("square", "ellipse", "heart")
SIZE = math.prod(FACTORS.values())
# What the values of an ordered factor are, as the data set's authors tell: first, last and unit.
UNITS = {"scale": (0.5, 1.0, ""), "orientation": (0.0, 360.0, "°"), "posX": (0.0, 1.0, ""), "posY": (0.0, 1.0, "")}
SIDE = 64
OFFICIAL = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
OFFICIAL_MD5 = "7da33b31b13a06f4b04a70402ce90c2e"

_HALF = 0.15 * SIDE  # half extent of a shape at scale 1, pixels
_SNAP = 256  # vertices lie on a grid of 1/256 pixel, which makes everything after it exact integer arithmetic
_POSITIONS = 16.0 + 32.0 * np.linspace(0.0, 1.0, 32)

_Array = np.ndarray[Any, Any]


class Config(DataConfig):
    """`path`: the official npz; without it the file is looked for in $VAE_DATA_DIR and $VAE_DATA_DIR/dsprites.

    `pool`: means of so many by so many pixels, for quick trials; 2 gives grey images of 32x32.
    """

    holdout: Holdout = 0.01
    path: str | None = None
    pool: Literal[1, 2, 4, 8] = 1


def load(config: Config) -> Dataset:
    """InputError where the official file is missing (if named) or not the published one."""
    if config.path is not None:
        official: Path | None = Path(config.path).expanduser()
    else:
        found = (folder / OFFICIAL for folder in (data_dir(), data_dir() / "dsprites"))
        official = next((path for path in found if path.is_file()), None)
    if official is not None:
        _check_official(official)
        kind, packed, sha256 = "official", *_cached("dsprites-official", lambda: read_official(official))
    else:
        kind, packed, sha256 = "rendered", *_cached("dsprites-rendered", render)
    images = Bits(torch.from_numpy(packed), (1, SIDE, SIDE))
    return assemble(
        config,
        images if config.pool == 1 else Pooled(images, config.pool),
        labels_NK=grid_labels(tuple(FACTORS.values())),
        factor_names=tuple(FACTORS),
        factor_sizes=tuple(FACTORS.values()),
        value_names=[SHAPES if name == "shape" else () for name in FACTORS],
        binary=config.pool == 1,
        source={"kind": kind, "sha256": sha256} | ({} if config.pool == 1 else {"pool": config.pool}),
    )


# ---- the official file


def _check_official(path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file")  # a pipe would be waited for
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "leave out data.path to use rendered images") from None
    if md5 != OFFICIAL_MD5:
        raise InputError(
            f"{path} is not the official dSprites file: its md5 is {md5}, not {OFFICIAL_MD5}",
            "download it again, or move it away to use rendered images",
        )


def read_official(path: Path, size: int = SIZE) -> _Array:
    """Packed images uint8 (N, 512) of an npz in the official layout, decompressed piece by piece.

    Neither `metadata` (a pickle) nor the labels are read: the checksum fixes the order of the images.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as member:
            if np.lib.format.read_magic(member) != (1, 0):
                raise ValueError("unknown version")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            if shape != (size, SIDE, SIDE) or fortran or dtype != np.uint8:
                raise ValueError(f"`imgs` is {dtype} {shape}")
            packed = np.empty((size, SIDE * SIDE // 8), np.uint8)
            with output.progress("reading dSprites", size) as advance:
                for start in range(0, size, 4096):
                    rows = packed[start : start + 4096]
                    images = np.frombuffer(_read_exactly(member, len(rows) * SIDE * SIDE), np.uint8)
                    rows[:] = np.packbits(images.reshape(len(rows), -1), axis=1)
                    advance(len(rows))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not readable as dSprites ({error})", "download it again") from None
    return packed


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("`imgs` ends early")
    return data


# ---- rendering


def render() -> _Array:
    """All images in the order of the official file, packed: uint8 (737280, 512)."""
    words = np.empty((3, 6, 40, 32, 32, SIDE), ">u8")  # a row of 64 pixels is a word, its left pixel the highest bit
    with output.progress("rendering dSprites", SIZE) as advance:
        for shape in range(3):
            for scale in range(6):
                for orientation in range(39):
                    words[shape, scale, orientation] = _sprites(shape, scale, orientation)
                    advance(1024)
                words[shape, scale, 39] = words[shape, scale, 0]  # a full turn
                advance(1024)
    return words.view(np.uint8).reshape(SIZE, -1)


def _outline(shape: int) -> tuple[_Array, _Array]:
    """Vertices of a shape at scale 1 around the origin, y pointing down."""
    if shape == 0:
        return _HALF * np.array([-1.0, 1.0, 1.0, -1.0]), _HALF * np.array([-1.0, -1.0, 1.0, 1.0])
    n = (100, 150)[shape - 1]
    t = 2.0 * math.pi * np.arange(n) / n
    if shape == 1:
        return 1.33 * _HALF * np.cos(t), _HALF / 1.33 * np.sin(t)
    y = 13.0 * np.cos(t) - 5.0 * np.cos(2.0 * t) - 2.0 * np.cos(3.0 * t) - np.cos(4.0 * t)
    return _HALF * np.sin(t) ** 3, -_HALF * (y / 14.5 + 0.15)


def _sprites(shape: int, scale: int, orientation: int) -> _Array:
    """A shape at all positions: uint64 (posX 32, posY 32, rows 64).

    Even-odd filling by scanlines through the pixel centres. Where an edge crosses a scanline, the pixels from there
    to the right end are inverted, so a row is the exclusive or of one mask for each crossing. Which edge crosses which
    scanline depends on posY alone, so each crossing is found once and moved to the 32 places of posX.
    """
    x, y = _outline(shape)
    size = np.linspace(0.5, 1.0, 6)[scale]
    angle = -np.linspace(0.0, 2.0 * math.pi, 40)[orientation]
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = size * (cos * x - sin * y), size * (sin * x + cos * y)
    x_PV, y_PV = (np.floor((_POSITIONS[:, None] + v) * _SNAP + 0.5).astype(np.int64) for v in (x, y))

    # An edge reaches the scanlines with y_upper < y <= y_lower: this and the rounding up of the column below give a
    # centre on an edge to left and bottom edges, not to right and top ones. Scanline r is at y = 256 r + 128.
    y1_PV = np.roll(y_PV, -1, axis=1)
    first_PV = (np.minimum(y_PV, y1_PV) + _SNAP // 2) // _SNAP
    count_PV = (np.maximum(y_PV, y1_PV) + _SNAP // 2) // _SNAP - first_PV
    pos_y_M, vertex_M = np.divmod(np.repeat(np.arange(count_PV.size), count_PV.ravel()), len(x))
    within_M = np.arange(len(pos_y_M)) - np.repeat(np.cumsum(count_PV) - count_PV.ravel(), count_PV.ravel())
    row_M = first_PV[pos_y_M, vertex_M] + within_M

    dy_M1 = (y1_PV - y_PV)[pos_y_M, vertex_M][:, None]
    down_M1 = (row_M * _SNAP + _SNAP // 2 - y_PV[pos_y_M, vertex_M])[:, None]
    dx_MP = (np.roll(x_PV, -1, axis=1) - x_PV).T[vertex_M]
    # One division of integers below 2^53 suffices: a quotient is an integer or 1 / (256 dy) away from one.
    column_MP = np.ceil(((x_PV.T[vertex_M] - _SNAP // 2) * dy_M1 + down_M1 * dx_MP) / (_SNAP * dy_M1))
    mask_MP = np.uint64(2**SIDE - 1) >> column_MP.astype(np.uint64)

    line_M = pos_y_M * SIDE + row_M
    order_M = np.argsort(line_M, kind="stable")
    lines, starts = np.unique(line_M[order_M], return_index=True)
    sprites = np.zeros((32, 32 * SIDE), np.uint64)
    sprites[:, lines] = np.bitwise_xor.reduceat(mask_MP[order_M], starts, axis=0).T
    return sprites.reshape(32, 32, SIDE)


# ---- the cache


def _cached(name: str, make: Callable[[], _Array]) -> tuple[_Array, str]:
    """Packed images and their sha256, from the cache or made now and put there.

    The file is the images followed by their hash in hexadecimal, so that both appear at once. Two processes may both
    make it: each renames a whole file of its own, and the last one stays.
    """
    path = cache_dir() / f"{name}.bits"
    nbytes = SIZE * SIDE * SIDE // 8
    try:
        if path.stat().st_size == nbytes + 64:
            with path.open("rb") as file:
                packed = np.fromfile(file, np.uint8, nbytes)
                recorded = file.read()
            sha256 = hashlib.sha256(packed.data).hexdigest()
            if sha256.encode() == recorded:
                return packed.reshape(SIZE, -1), sha256
        output.warning(f"{path} is damaged and is made again")
    except OSError:
        pass  # not there yet or not readable: made again
    packed = make()
    sha256 = hashlib.sha256(packed.data).hexdigest()
    kind = name.removeprefix("dsprites-")
    try:
        _write(path, packed, sha256)
        output.notice(f"dSprites: {SIZE:,} {kind} images, cached in {path}")
    except OSError as error:
        output.notice(f"dSprites: {SIZE:,} {kind} images, kept in memory only ({path}: {error.strerror})")
    return packed, sha256


def _write(path: Path, packed: _Array, sha256: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with safe_files.replacing(path) as file:
        file.write(packed.data)
        file.write(sha256.encode())
        file.flush()
        os.fsync(file.fileno())
