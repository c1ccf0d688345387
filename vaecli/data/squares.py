"""Squares: 507 binary 16x16 images of a white square, for quick trials; drawn in no time, all factors known."""

import hashlib

import numpy as np

from vaecli.data.base import Bits, DataConfig, Dataset, assemble, grid_labels

SIDE = 16
FACTORS = {"size": 3, "posX": 13, "posY": 13}


class Config(DataConfig):
    """The common options only."""


def load(config: Config) -> Dataset:
    """A square of 2, 3 or 4 pixels a side, its upper left corner at (posX, posY)."""
    labels_NK = grid_labels(tuple(FACTORS.values()))
    size_N1, left_N1, top_N1 = labels_NK.numpy().T[:, :, None]
    pixel = np.arange(SIDE)
    columns_NW = (pixel >= left_N1) & (pixel < left_N1 + size_N1 + 2)
    rows_NH = (pixel >= top_N1) & (pixel < top_N1 + size_N1 + 2)
    images = Bits.pack((rows_NH[:, :, None] & columns_NW[:, None, :])[:, None])
    return assemble(
        config,
        images,
        labels_NK=labels_NK,
        factor_names=tuple(FACTORS),
        factor_sizes=tuple(FACTORS.values()),
        binary=True,
        source={"kind": "drawn", "sha256": hashlib.sha256(images.data.numpy().data).hexdigest()},
    )
