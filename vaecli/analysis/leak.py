"""How much of a latent moves with which factor: its variance among images that differ in that factor alone.

The table by which a model with latents of its own for each factor (DC-IGN, Kulkarni et al. 2015) is judged: each column
should be large in its own factor's row only. Unlike a score it shows a latent that has collapsed, and one that moves
with two factors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vaecli.data.orders import OneFactorVaries
from vaecli.errors import ConfigError

GROUPS, SIZE = 50, 20  # of each factor, and images in each


def table(
    encode: Callable[[Tensor], Tensor], labels_NK: Tensor, factors: Sequence[str], names: Sequence[str], seed: int = 0
) -> dict[str, Any] | None:
    """`leak` with its names and settings, for records: by latent the variances in the order of `factors`, those that
    vary, and the next as a share of the most (`spill`). None where fewer than two vary, a label is not known, or no two
    images differ in a factor alone."""
    varying = [k for k in range(len(factors)) if int(labels_NK[:, k].max()) > int(labels_NK[:, k].min())]
    if len(varying) < 2:
        return None
    try:
        found_KD = leak(encode, labels_NK[:, varying], seed)
    except ConfigError:
        return None
    variance = dict(zip(names, found_KD.T.tolist(), strict=True))
    return {
        "factors": [factors[k] for k in varying],
        "groups": GROUPS,
        "size": SIZE,
        "variance": variance,
        "next": {name: spill(variance_K)[1] for name, variance_K in variance.items()},
    }


def spill(variance_K: Sequence[float]) -> tuple[int, float | None]:
    """The factor that moves a latent most, and the next one's variance as a share of that factor's; None where the
    latent does not move at all."""
    order = sorted(range(len(variance_K)), key=lambda k: -variance_K[k])
    most, next_ = variance_K[order[0]], variance_K[order[1]]
    return order[0], next_ / most if most > 0 else None


def leak(
    encode: Callable[[Tensor], Tensor], labels_NK: Tensor, seed: int = 0, groups: int = GROUPS, size: int = SIZE
) -> Tensor:
    """The mean over `groups` of each latent's variance among images in which factor k alone varies, float64 (K, D).

    `encode` gives the codes (B, D) of the images at positions int64 (B,) of the N. A group is a random image and others
    that agree with it in all factors but one, `size` altogether, with repetition where they are fewer; rows of factors
    that do not vary are 0. ConfigError where no two images differ in a factor alone, or a label is not known.
    """
    varies_K = labels_NK.amax(dim=0) > labels_NK.amin(dim=0)
    order = OneFactorVaries(labels_NK, seed, size, varies_K.double().tolist())
    seen_K = torch.zeros(len(varies_K), dtype=torch.int64)
    total_KD: Tensor | None = None
    step = 0
    while bool((seen_K[varies_K.cpu()] < groups).any()):
        k = order.factor(step)
        if seen_K[k] < groups:
            z_BD = encode(order.indices(step)).double().cpu()
            if total_KD is None:
                total_KD = torch.zeros(len(varies_K), z_BD.shape[1], dtype=torch.float64)
            total_KD[k] += z_BD.var(dim=0, correction=0)
            seen_K[k] += 1
        step += 1
    assert total_KD is not None, "no factor varies"
    return total_KD / seen_K.clamp(min=1).unsqueeze(1)
