"""Small NORB: 48,600 grey 96x96 photographs of toys, five known factors; from your six files of the NYU.

LeCun, Huang & Bottou 2004, https://cs.nyu.edu/~ylclab/data/norb-v1.0-small. The published test files (other toys of the
same categories) are the split `test`. Of the two cameras the left one, unless `camera` says otherwise.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from vaecli.data import _labels, _published, array
from vaecli.data.base import DataConfig, Dataset
from vaecli.errors import InputError

STEMS = ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing")
CATEGORIES = ["animal", "human", "airplane", "truck", "car"]
# Of each factor the values in the files, the published names, and how many there are in all.
FACTORS = {"category": 5, "instance": 10, "elevation": 9, "azimuth": 18, "lighting": 6}
IMAGES, SIDE = 24_300, 96  # of each of the two parts
_TYPES: dict[int, np.dtype[Any]] = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}

Array = np.ndarray[Any, Any]


class Config(DataConfig):
    """`path`: the folder with the files (.mat or .mat.gz); else $VAE_DATA_DIR/smallnorb and $VAE_DATA_DIR.

    `image_size`: a square's side, 96 as published. `camera`: left, right, or both as two channels. `join`: the
    published test images are trained on with the others, as work on disentanglement has it.
    """

    path: str | None = None
    image_size: Annotated[int, Field(gt=0, le=512)] = 64
    camera: Literal["left", "right", "both"] = "left"
    join: bool = False


def load(config: Config) -> Dataset:
    """InputError where a file is missing or not the published one."""
    parts, labels = [], []
    for stem in STEMS:
        images, category, info = (_matrix(config, f"{stem}-{kind}.mat") for kind in ("dat", "cat", "info"))
        for found, expected in ((images, (IMAGES, 2, SIDE, SIDE)), (category, (IMAGES,)), (info, (IMAGES, 4))):
            if found.shape != expected:
                raise InputError(f"{stem}: an array of shape {found.shape}, the published one is {expected}")
        cameras = {"left": slice(0, 1), "right": slice(1, 2), "both": slice(0, 2)}[config.camera]
        parts.append(_published.resized(images[:, cameras], config.image_size))
        label_NK = np.column_stack([category, info]).astype(np.int64)
        label_NK[:, 3] //= 2  # the azimuth is given as 0 to 34, in steps of 20 degrees
        if (label_NK < 0).any() or (label_NK >= list(FACTORS.values())).any():
            raise InputError(f"{stem}: labels beyond {FACTORS}: these are not the published files")
        labels.append(label_NK)
    factors = _labels.Factors(
        torch.from_numpy(np.concatenate(labels)), list(FACTORS), [CATEGORIES, *[[] for _ in range(4)]]
    )
    counts = {} if config.join else {"train": len(parts[0]), "test": len(parts[1])}
    where = Path(config.path or "smallnorb")
    return array.finish(config, where, parts, factors, counts, "dtype", "chw", "official")


def _matrix(config: Config, name: str) -> Array:
    """An array in the files' own format: type, number of axes, sizes (three at least), values; little-endian."""
    path = _published.find(
        config.path, "smallnorb", [name, name + ".gz"], "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small"
    )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic, axes = struct.unpack("<Ii", file.read(8))
            if magic not in _TYPES or not 1 <= axes <= 4:
                raise InputError(f"{path} is not a file of small NORB")
            sizes = struct.unpack(f"<{max(3, axes)}i", file.read(4 * max(3, axes)))[:axes]
            dtype, count = _TYPES[magic], math.prod(sizes)
            if min(sizes) < 0 or count * dtype.itemsize > 2**31:
                raise InputError(f"{path} is not a file of small NORB: its sizes are {sizes}")
            content = file.read(count * dtype.itemsize)
        return np.frombuffer(bytearray(content), dtype, count).reshape(sizes)
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or 'it is damaged'}", "get it again") from None
