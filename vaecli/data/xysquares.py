"""XYSquares: 262,144 colour 64x64 images of three squares, six factors; at spacing 8 pixels carry no order of them.

Michlo et al., disent (https://github.com/nmichlo/disent), and "Overlooked Implications of the Reconstruction Loss for
VAE Disentanglement", arXiv 2202.13341. A red, a green and a blue square of 8x8 pixels, each at one of 8x8 places that
lie `spacing` pixels apart. At 8 a square at its next place shares no pixel with itself, so that all its places are
equally far from each other; the smaller the spacing, the more neighbours overlap.
"""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from vaecli.data._drawn import Channels, squares
from vaecli.data.base import DataConfig, Dataset, assemble, grid_labels

SIDE = 64
SQUARE = 8
PLACES = 8
FACTORS = tuple(f"{axis}_{channel}" for channel in "RGB" for axis in "xy")


class Config(DataConfig):
    """`spacing`: pixels from one place of a square to the next, 1 to 8."""

    spacing: Annotated[int, Field(ge=1, le=SIDE // PLACES)] = 8


def load(config: Config) -> Dataset:
    """The whole grid of factors, y of the blue square fastest."""
    sizes = (PLACES,) * len(FACTORS)
    margin = (SIDE - (SQUARE + (PLACES - 1) * config.spacing)) // 2
    left_M, top_M = margin + config.spacing * grid_labels((PLACES, PLACES)).numpy().T
    table_MHW = torch.from_numpy(squares(left_M, top_M, np.full_like(left_M, SQUARE), SIDE))
    images = Channels(table_MHW, grid_labels((PLACES**2,) * 3).int())
    return assemble(
        config,
        images,
        labels_NK=grid_labels(sizes),
        factor_names=FACTORS,
        factor_sizes=sizes,
        binary=True,
        source={"kind": "drawn", "sha256": images.sha256},
    )
