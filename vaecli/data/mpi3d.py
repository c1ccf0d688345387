"""MPI3D: over a million colour 64x64 images of a robot's arm, seven known factors; from your .npz file.

Gondal et al. 2019, https://github.com/rr-learning/disentanglement_dataset: rendered simply (`toy`), realistically
(`realistic`) and photographed (`real`), 1,036,800 images each; `complex`: 460,800 photographs of everyday objects.
"""

import math
from typing import Literal

from vaecli.data import _containers, _disk, _labels, _published, array
from vaecli.data.base import DataConfig, Dataset, Holdout, grid_labels
from vaecli.errors import InputError

FACTORS = {
    "object_color": ("white", "green", "red", "blue", "brown", "olive"),
    "object_shape": ("cone", "cube", "cylinder", "hexagonal", "pyramid", "sphere"),
    "object_size": ("small", "large"),
    "camera_height": ("top", "center", "bottom"),
    "background_color": ("purple", "sea green", "salmon"),
    "horizontal_axis": tuple(map(str, range(40))),
    "vertical_axis": tuple(map(str, range(40))),
}
COMPLEX = {
    "object_color": ("yellow", "green", "olive", "red"),
    "object_shape": ("coffee-cup", "tennis-ball", "croissant", "beer-cup"),
}
FILES = {
    "toy": ["mpi3d_toy.npz"],
    "realistic": ["mpi3d_realistic.npz"],
    "real": ["mpi3d_real.npz", "real.npz"],
    "complex": ["real3d_complicated_shapes_ordered.npz", "mpi3d_real_complex.npz"],
}
SIDE = 64


class Config(DataConfig):
    """`variant`: toy, realistic, real or complex. `path`: the file, or the folder that has it; else it is looked for in
    $VAE_DATA_DIR/mpi3d and $VAE_DATA_DIR.

    `store`: `memory` (12.7 GB), `disk` (batches are read from the file) or `auto`.
    """

    holdout: Holdout = 0.01
    variant: Literal["toy", "realistic", "real", "complex"] = "toy"
    path: str | None = None
    store: _disk.Where = "auto"


def load(config: Config) -> Dataset:
    """InputError where the file is missing or not the published one."""
    path = _published.find(
        config.path, "mpi3d", FILES[config.variant], "https://github.com/rr-learning/disentanglement_dataset"
    )
    values = FACTORS | COMPLEX if config.variant == "complex" else FACTORS
    sizes = [len(names) for names in values.values()]
    with _containers.opened(path) as members:
        if "images" not in members:
            raise InputError(f"{path} has no array `images`: it is not the published file")
        images = members["images"]
        _published.check_shape(path, images.shape, images.dtype, (math.prod(sizes), SIDE, SIDE, 3))
        parts = array.held(path, config.store, [images], ["images"])
    shown = [[] if name.endswith("_axis") else list(names) for name, names in values.items()]
    factors = _labels.Factors(grid_labels(sizes), list(values), shown)
    return array.finish(config, path, parts, factors, {}, "dtype", "hwc", config.variant)
