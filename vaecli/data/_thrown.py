"""Sets of grey images that take colours or noise at random, in the manner of Locatello et al. 2019 (appendix, their
Color- and Noisy-dSprites): anew in every step of training, and the same each time where images are only looked at.

Shapes: N images, B batch, C H W image.
"""

import math
from typing import Self

import torch
from torch import Tensor

from vaecli.data.base import Derived, Store, mixed


class Thrown(Derived):
    """The images of another store, with something thrown for each. A throw is a pure function of its number and the
    image; image i in throw t is asked for as i + N t."""

    thrown = True
    channels = 3

    def __init__(self, images: Store) -> None:
        self.images = images
        _, h, w = images.shape
        self.shape: tuple[int, int, int] = (self.channels, h, w)

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.images.to(device))

    def gather(self, index_B: Tensor) -> Tensor:
        index_B = index_B.to(self.device)
        return self.changed(self.images.gather(index_B % len(self)), index_B)

    def changed(self, x_B1HW: Tensor, throw_B: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] of grey ones."""
        raise NotImplementedError

    def uniform(self, throw_B: Tensor, *shape: int) -> Tensor:
        """Even random numbers in [0, 1) of these throws, float32 (B, *shape)."""
        count = math.prod(shape)
        place_BK = throw_B[:, None] * count + torch.arange(count, device=throw_B.device)
        return ((mixed(place_BK) & (2**24 - 1)).float() / 2**24).view(-1, *shape)
