"""dSprites: 737,280 binary 64x64 sprites with five known factors, read from the official file or rendered.

Matthey et al. 2017, https://github.com/google-deepmind/dsprites-dataset. The official npz is used where it is given or
found. Without it the images are rendered from a geometry that reproduces every frame the authors show in their
repository bit for bit; over the whole set some tens of its 3.0e9 pixels may differ from the official file.

The constant factor `color` is left out: shape (square, ellipse, heart), scale, orientation, posX, posY.
"""

import hashlib
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from vaecli import output
from vaecli.data._paths import cache_dir, data_dir
from vaecli.data.base import Bits, DataConfig, Dataset, Holdout, assemble, grid_labels
from vaecli.errors import InputError

FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "posX": 32, "posY": 32}
SIZE = math.prod(FACTORS.values())
SIDE = 64
OFFICIAL = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
OFFICIAL_MD5 = "7da33b31b13a06f4b04a70402ce90c2e"

_HALF = 0.15 * SIDE  # half extent of a shape at scale 1, pixels
_SNAP = 256  # vertices lie on a grid of 1/256 pixel, which makes everything after it exact integer arithmetic
_POSITIONS = 16.0 + 32.0 * np.linspace(0.0, 1.0, 32)

_Array = np.ndarray[Any, Any]


class Config(DataConfig):
    """`path`: the official npz; without it the file is looked for in $VAE_DATA_DIR and $VAE_DATA_DIR/dsprites."""

    holdout: Holdout = 0.01
    path: str | None = None


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
    return assemble(
        config,
        Bits(torch.from_numpy(packed), (1, SIDE, SIDE)),
        labels_NK=grid_labels(tuple(FACTORS.values())),
        factor_names=tuple(FACTORS),
        factor_sizes=tuple(FACTORS.values()),
        binary=True,
        source={"kind": kind, "sha256": sha256},
    )


# ---- the official file


def _check_official(path: Path) -> None:
    try:
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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
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

    # Edges from their upper to their lower end. An edge reaches the scanlines with y_upper < y <= y_lower: this and
    # the rounding up of `column` give a centre on an edge to left and bottom edges, not to right and top ones.
    x0_PV, y0_PV, x1_PV, y1_PV = x_PV, y_PV, np.roll(x_PV, -1, axis=1), np.roll(y_PV, -1, axis=1)
    first_PV = np.minimum(y0_PV, y1_PV) // _SNAP_ROW(1) if False else _first_row(np.minimum(y0_PV, y1_PV))
    end_PV = _first_row(np.maximum(y0_PV, y1_PV))
    raise NotImplementedError
