"""3D Cars: 17,568 colour images of 183 rendered cars, three known factors; from your folder of .mat files.

Reed et al. 2015, "Deep Visual Analogy-Making": nips2015-analogy-data.tar.gz, its folder data/cars. Elevation (4),
azimuth (24) and car (183); 128x128 as published. Reading them needs SciPy: pip install "vaecli[analyze]".
"""

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vaecli import output
from vaecli.data import _labels, _published, array
from vaecli.data.base import DataConfig, Dataset, grid_labels
from vaecli.errors import ConfigError, InputError

FACTORS = {"elevation": 4, "azimuth": 24, "object_type": 183}
SIDE = 128
SOURCE = "http://www.scottreed.info/files/nips2015-analogy-data.tar.gz (unpack it)"

Array = np.ndarray[Any, Any]


class Config(DataConfig):
    """`path`: the folder with the .mat files; else `cars` in $VAE_DATA_DIR/cars3d, $VAE_DATA_DIR/cars3d/data and
    $VAE_DATA_DIR.

    `image_size`: a square's side; 64 is what work on disentanglement has.
    """

    path: str | None = None
    image_size: Annotated[int, Field(gt=0, le=512)] = 64


def load(config: Config) -> Dataset:
    """InputError where files are missing or not the published ones; ConfigError without SciPy."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ConfigError("the files of cars3d are read by SciPy", 'pip install "vaecli[analyze]"') from None
    root = Path(config.path or "").expanduser()
    if config.path is None or not any(root.glob("*.mat")):
        root = _published.find(config.path, "cars3d", ["cars", "data/cars"], SOURCE)
    elevations, azimuths, cars = FACTORS.values()
    paths = _files(root)
    if len(paths) != cars:
        raise InputError(f"{root}: {len(paths)} files of cars, {cars} were published", f"get them from {SOURCE}")
    side = config.image_size
    images = np.empty((elevations, azimuths, cars, 3, side, side), np.uint8)
    with output.progress("reading cars", cars) as advance:
        for i, path in enumerate(paths):
            try:
                found = loadmat(path, variable_names=["im"])["im"]
            except Exception as error:  # SciPy raises nearly everything on damaged files
                raise InputError(f"{path}: not a MATLAB file with an array `im` ({type(error).__name__})") from None
            expected = (SIDE, SIDE, 3, azimuths, elevations)
            _published.check_shape(path, found.shape, found.dtype, expected)
            views = found.transpose(4, 3, 2, 0, 1).reshape(-1, 3, SIDE, SIDE)  # elevation, azimuth, C, H, W
            images[:, :, i] = _published.resized(views, side).reshape(elevations, azimuths, 3, side, side)
            advance(1)
    factors = _labels.Factors(grid_labels(tuple(FACTORS.values())), list(FACTORS), [[], [], []])
    flat = images.reshape(math.prod(FACTORS.values()), 3, side, side)
    return array.finish(config, root, [flat], factors, {}, "dtype", "chw", "official")


def _files(root: Path) -> list[Path]:
    """In the published order, which list.txt tells; without it by name."""
    try:
        names = (root / "list.txt").read_text(encoding="utf-8").split()
        return [root / f"{name.removesuffix('.mat')}.mat" for name in names]
    except (OSError, UnicodeDecodeError):
        return sorted(root.glob("*.mat"))
