"""A number for each image that no other image has: for codes that depend on which image it is and on nothing in it.

Shapes: B images, P = C H W pixels.
"""

from functools import cache

import torch
from torch import Tensor

from vaecli.data.orders import generator

LEVELS = 2**24 - 1  # pixels are told apart in steps of 1 / LEVELS, float32's; odd, so that no bit of a sum is lost


@cache
def _weights(pixels: int) -> Tensor:
    return torch.randint(-(2**62), 2**62, (pixels,), generator=generator("fingerprint", pixels)) * 2 + 1


def fingerprint(x_BCHW: Tensor) -> Tensor:
    """int64 (B,), the same on every device: sums, modulo 2^64, of pixels with random weights.

    Two different images share one with a probability of 2^-57 or less (multilinear hashing, Carter & Wegman 1979).
    """
    level_BP = (x_BCHW.flatten(1) * float(LEVELS)).round().long()
    return (level_BP * _weights(level_BP.shape[1]).to(level_BP.device)).sum(dim=1)
