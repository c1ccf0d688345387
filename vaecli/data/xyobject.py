"""XYObject: 75,000 colour 64x64 images of one square, five known factors; drawn bit for bit as published.

Michlo et al., disent (https://github.com/nmichlo/disent), the variant `shaded`, in which the colour is two factors. The
square's place (x, y), its side (7 to 15 pixels), its brightness (quarters of full) and its hue; black elsewhere.
"""

import numpy as np
import torch

from vaecli.data._drawn import Channels, squares
from vaecli.data.base import DataConfig, Dataset, assemble, grid_labels

SIDE = 64
FACTORS = {"x": 25, "y": 25, "scale": 5, "intensity": 4, "hue": 6}
HUES = {
    "red": (255, 0, 0),
    "yellow": (255, 255, 0),
    "green": (0, 255, 0),
    "cyan": (0, 255, 255),
    "blue": (0, 0, 255),
    "magenta": (255, 0, 255),
}
_LARGEST = 15


class Config(DataConfig):
    """The common options only."""


def load(config: Config) -> Dataset:
    """The whole grid of factors, hue fastest."""
    labels_NK = grid_labels(tuple(FACTORS.values()))
    x_M, y_M, scale_M = grid_labels((FACTORS["x"], FACTORS["y"], FACTORS["scale"])).numpy().T
    side_M = 7 + 2 * scale_M
    margin_M = (_LARGEST - side_M) // 2  # squares of all sizes have their centres on the same grid
    white_MHW = squares(2 * x_M + margin_M, 2 * y_M + margin_M, side_M, SIDE)
    # Black and four levels of brightness of each square make all the channels there are.
    levels = np.array([0, *(255 * quarter // 4 for quarter in range(1, 5))], np.uint8)
    table = torch.from_numpy(np.minimum(white_MHW[None], levels[:, None, None, None]).reshape(-1, SIDE, SIDE))
    lit_6C = torch.tensor(list(HUES.values())) > 0
    square_N = torch.arange(len(labels_NK)) // (FACTORS["intensity"] * FACTORS["hue"])
    level_NC = (1 + labels_NK[:, 3:4]) * lit_6C[labels_NK[:, 4]]
    images = Channels(table, (level_NC * len(white_MHW) + square_N[:, None]).int())
    return assemble(
        config,
        images,
        labels_NK=labels_NK,
        factor_names=tuple(FACTORS),
        factor_sizes=tuple(FACTORS.values()),
        value_names=[tuple(HUES) if name == "hue" else () for name in FACTORS],
        binary=False,
        source={"kind": "drawn", "sha256": images.sha256},
    )
