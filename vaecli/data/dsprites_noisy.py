"""Noisy dSprites: the sprites of dSprites, white on a background of colour noise; factors as dSprites.

Locatello et al. 2019, "Challenging Common Assumptions": each value of the background is drawn evenly from 0 to 1.
"""

from dataclasses import replace

from torch import Tensor

from vaecli.data import dsprites
from vaecli.data._thrown import Thrown
from vaecli.data.base import Dataset

Config = dsprites.Config


class Noisy(Thrown):
    """Noise for each pixel and channel of a throw."""

    def changed(self, x_B1HW: Tensor, throw_B: Tensor) -> Tensor:
        return (x_B1HW + self.uniform(throw_B, *self.shape)).clamp(max=1.0)


def load(config: dsprites.Config) -> Dataset:
    """InputError as dSprites."""
    grey = dsprites.load(config)
    images = Noisy(grey.images)
    info = replace(grey.info, shape=images.shape, binary=False, source={**grey.info.source, "noise": "thrown"})
    return replace(grey, info=info, images=images)
