"""3D Shapes: 480,000 colour 64x64 images of a shape in a room, six known factors; from your 3dshapes.h5 (HDF5).

Burgess & Kim 2018, https://github.com/google-deepmind/3d-shapes. Needs h5py: pip install "vaecli[hdf5]".
"""

import math

import torch

from vaecli.data import _containers, _disk, _labels, _published, array
from vaecli.data.base import DataConfig, Dataset, Holdout, grid_labels
from vaecli.errors import InputError

FACTORS = {"floor_hue": 10, "wall_hue": 10, "object_hue": 10, "scale": 8, "shape": 4, "orientation": 15}
SIDE = 64


class Config(DataConfig):
    """`path`: the file, or the folder that has it; else it is looked for in $VAE_DATA_DIR/shapes3d and $VAE_DATA_DIR.

    `store`: `memory` (5.9 GB), `disk` (unpacked once into the cache, batches are read from there) or `auto`.
    """

    holdout: Holdout = 0.01
    path: str | None = None
    store: _disk.Where = "auto"


def load(config: Config) -> Dataset:
    """InputError where the file is missing or not the published one; ConfigError without h5py."""
    path = _published.find(config.path, "shapes3d", ["3dshapes.h5"], "https://storage.googleapis.com/3d-shapes")
    n, names = math.prod(FACTORS.values()), list(FACTORS)
    with _containers.opened(path) as members:
        if not members.keys() >= {"images", "labels"}:
            raise InputError(f"{path} has no `images` and `labels`: it is not the published file")
        images = members["images"]
        _published.check_shape(path, images.shape, images.dtype, (n, SIDE, SIDE, 3))
        factors = _labels.from_array(path, members["labels"].read(), names, n)
        if factors is None or not torch.equal(factors.labels_NK, grid_labels(tuple(FACTORS.values()))):
            raise InputError(f"{path}: its labels are not those of the published file")
        parts = array.held(path, config.store, [images], ["images"])
    return array.finish(config, path, parts, factors, {}, "dtype", "hwc", "official")
