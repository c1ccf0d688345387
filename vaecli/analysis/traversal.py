"""Moving one latent: where the others stand, through which values it goes, and what follows it.

A latent of an upper level takes the levels below along: they stand at the mode of their prior given what is above,
except those whose prior is N(0, I) whatever is above, which stay.

Shapes: S values of the one that moves, D latents of all levels side by side, C H W image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

from vaecli.analysis.codes import Array
from vaecli.analysis.statistics import Statistics
from vaecli.batch import at_once
from vaecli.models.base import Level, Model, NoPrior, Values
from vaecli.objectives import distributions

BATCH = 256


@dataclass(frozen=True)
class Mover:
    """A latent that can be moved: a number of a level, a block of labels, or a position of codes.

    `index` is its place in the table of the latents inferred, None for noise.
    """

    level: Level
    column: int  # within the level
    name: str
    index: int | None
    size: int = 1  # columns: more than one for a block of labels

    @property
    def counted(self) -> bool:
        """Whether it steps through values that are counted, not through numbers."""
        return self.level.kind in ("codes", "labels")


def movers(model: Model, levels: Sequence[Level]) -> list[Mover]:
    """All that can be moved in these levels, in their order."""
    places, start = {}, 0
    for level in model.inferred:
        places[level.name] = start
        start += level.size
    found = []
    for level in levels:
        names, first = model.latent_names([level]), places.get(level.name)
        if level.kind == "labels":
            column = 0
            for block, size in enumerate(level.sizes):
                name = level.name if len(level.sizes) == 1 else f"{level.name}[{block}]"
                found.append(Mover(level, column, name, None if first is None else first + column, size))
                column += size
            continue
        for d, name in enumerate(names):
            found.append(Mover(level, d, name, None if first is None else first + d))
    return found


def followers(model: Model, level: Level) -> list[str]:
    """The levels below one that change with it where nothing else is said: those whose prior may depend on it."""
    names = [one.name for one in model.levels]
    below = model.levels[names.index(level.name) + 1 :]
    return [one.name for one in below if not one.standard and one.kind != "point"]


def at_rest(model: Model) -> Values:
    """Every level at the mode of its prior given those above, one image. NoPrior where one has none."""
    return model.complete({model.levels[0].name: distributions.mode(model.p(model.levels[0].name, {}, 1))})


def at_mean(model: Model, stats: Statistics) -> Values:
    """The mean codes, noise at its prior's mode."""
    return model.complete(model.unflatten(stats.mean_D.float()[None].to(model.device)))


def of_image(model: Model, x_BCHW: Tensor) -> Values:
    """Every level of an image at its mode, one after the other; noise at its prior's mode."""
    return model.complete(model.infer(x_BCHW.to(model.device)).values)


def unit(model: Model, middle: Values, mover: Mover, stats: Statistics | None) -> str:
    """What the values of a traversal are multiples of: `` the latent itself, `sd of the codes`, `sd of the prior`; or
    that they go over the `range of the prior`."""
    if mover.counted or mover.level.standard:
        return ""
    if mover.level.kind == "point":
        return "" if stats is None else "sd of the codes"
    p = _prior(model, middle, mover)
    if isinstance(p, distributions.Curved):
        return p.unit
    return "" if p is None else "range of the prior" if isinstance(p, td.Uniform) else "sd of the prior"


def _prior(model: Model, middle: Values, mover: Mover) -> td.Distribution | None:
    """Of the mover's level given what is above, latent by latent; None where there is none."""
    try:
        p = model.p(mover.level.name, middle, 1)
    except NoPrior:
        return None
    return p.base_dist if isinstance(p, td.Independent) else p


def deviation(model: Model, middle: Values, mover: Mover) -> float | None:
    """The standard deviation of a latent's prior given what is above it; None where it has none."""
    p = None if mover.counted else _prior(model, middle, mover)
    variance = None if p is None else distributions.moments(p)[1]
    return None if variance is None else math.sqrt(float(variance.flatten()[mover.column]))


def values_of(model: Model, middle: Values, mover: Mover, t_S: Array, stats: Statistics | None) -> Tensor:
    """What the latent takes at the values `t_S` of a traversal, (S,), float64: of codes and labels indices, evenly
    spread; under a uniform prior evenly from its one end to the other, whatever `t_S`; else in the `unit`."""
    t = torch.as_tensor(t_S, dtype=torch.float64)
    level = mover.level
    if mover.counted:
        last = (level.sizes[0] if level.kind == "codes" else mover.size) - 1
        return torch.linspace(0, last, len(t), dtype=torch.float64).round()
    if level.kind == "point":
        if stats is None or mover.index is None:
            return t
        return stats.mean_D[mover.index] + t * stats.var_D[mover.index].sqrt()
    if level.standard:
        return t
    p = _prior(model, middle, mover)
    if p is None:
        return t
    if isinstance(p, distributions.Curved):
        return p.values(mover.column, t)
    if isinstance(p, td.Uniform):
        low, high = (float(v.flatten()[mover.column]) for v in (p.low, p.high))
        return torch.linspace(low, high, len(t), dtype=torch.float64)
    mean, variance = distributions.moments(p)
    spread = 0.0 if variance is None else math.sqrt(float(variance.flatten()[mover.column]))
    return float(mean.flatten()[mover.column]) + t * spread


def images_along(model: Model, middle: Values, mover: Mover, values_S: Tensor) -> Array:
    """(S, C, H, W): the latent at each value, the others as in `middle`, the levels below following.

    Where latents live on a sphere or in a ball the others of the level give way, so that they stay there.
    """
    n = len(values_S)
    left = followers(model, mover.level)
    values = {name: v.repeat(n, *[1] * (v.dim() - 1)) for name, v in middle.items() if name not in left}
    moved = values[mover.level.name].flatten(1).clone()
    if mover.level.kind == "labels":
        block = moved[:, mover.column : mover.column + mover.size]
        block.zero_().scatter_(1, values_S.long()[:, None].to(block.device), 1.0)
    elif mover.level.kind == "gaussian" and isinstance(p := _prior(model, middle, mover), distributions.Curved):
        moved = p.space.placed(moved, mover.column, values_S.to(moved))  # and not off the sphere
    else:
        moved[:, mover.column] = values_S.to(moved)
    values[mover.level.name] = moved.reshape(n, *mover.level.shape)
    parts = []
    size = at_once(model.info.shape, BATCH)
    for start in range(0, n, size):
        part = {name: v[start : start + size] for name, v in values.items()}
        parts.append(model.image(model.complete(part)).float().cpu().numpy())
    return np.concatenate(parts)
