"""Colour dSprites: the sprites of dSprites, each in a random colour, on black; factors as dSprites.

Locatello et al. 2019, "Challenging Common Assumptions": red, green and blue of a sprite are drawn evenly from 0.5 to 1.
"""

from dataclasses import replace

from torch import Tensor

from vaecli.data import dsprites
from vaecli.data._thrown import Thrown
from vaecli.data.base import Dataset

Config = dsprites.Config


class Coloured(Thrown):
    """A colour for each throw."""

    def changed(self, x_B1HW: Tensor, throw_B: Tensor) -> Tensor:
        return x_B1HW * (0.5 + 0.5 * self.uniform(throw_B, 3, 1, 1))


def load(config: dsprites.Config) -> Dataset:
    """InputError as dSprites."""
    grey = dsprites.load(config)
    images = Coloured(grey.images)
    info = replace(grey.info, shape=images.shape, binary=False, source={**grey.info.source, "color": "thrown"})
    return replace(grey, info=info, images=images)
