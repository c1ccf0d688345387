"""Setting a level of an image to another value: what stands above is kept, what is below follows, its noise is kept.

The noise of a level of numbers is where its value lies within its prior, eps = (z - mean) / sd given what was above it;
given what is above it now the value is mean' + sd' eps. Of generated images the noise is known; of an image it is
recovered from what the posterior says of it. Labels below follow as the mode of their prior.

Shapes: B images, K labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributions as td
from torch import Tensor

from vaecli import device as devices
from vaecli.analysis import labelled
from vaecli.models.base import Level, Model, NoPrior, Values
from vaecli.objectives import distributions


@dataclass(frozen=True)
class Change:
    """What is set: labels by their column among the model's (`labelled.blocks`), to one position or one an image, and
    numbers, in standard deviations of their prior given what is above, by level and column. Levels in `keep` stay."""

    labels: Mapping[int, int | Tensor] = field(default_factory=dict)
    numbers: Mapping[tuple[str, int], float] = field(default_factory=dict)
    keep: Sequence[str] = ()


def apply(model: Model, old: Values, change: Change) -> Values:
    """The values of all levels after the change; `old` has all levels."""
    set_first: Values = {}
    if change.labels:
        labels_BK = labelled.labels_of(model, old).clone()
        for column, position in change.labels.items():
            labels_BK[:, column] = position
        # What follows from labels alone stands above them, and keeps its noise, too.
        before, after = (labelled.from_labels(model, labels) for labels in (labelled.labels_of(model, old), labels_BK))
        for name, value in after.items():
            set_first[name] = old[name] if name in change.keep else value
            if model.level(name).kind == "gaussian" and name not in change.keep:
                q_old, q_new = (model.q(name, None, given) for given in (before, after))
                set_first[name] = moved(old[name], q_old, q_new)
    return follow(model, old, set_first, change)


def follow(model: Model, old: Values, given: Values, change: Change | None = None) -> Values:
    """The values of all levels with those `given`, and numbers set as the change says; a level is what it was unless
    something above it is not."""
    numbers = {} if change is None else change.numbers
    keep = () if change is None else change.keep
    new: Values = {}
    changed = False
    for level in model.levels:
        value = old[level.name]
        if level.name in given:
            value = given[level.name]
        elif changed and level.name not in keep and not level.standard:
            value = _below(model, level, old, new)
        for (name, column), sd in numbers.items():
            if name == level.name:
                value = _placed(model, level, value, new, column, sd)
        changed = changed or not torch.equal(value, old[level.name])
        new[level.name] = value
    return new


def _below(model: Model, level: Level, old: Values, new: Values) -> Tensor:
    value = old[level.name]
    try:
        before, after = (model.p(level.name, values, len(value)) for values in (old, new))
    except NoPrior:
        return value
    return distributions.mode(after) if level.kind == "labels" else moved(value, before, after)


def moved(value: Tensor, before: td.Distribution, after: td.Distribution) -> Tensor:
    """The value that lies within `after` where this one lies within `before`; distributions without a scale of their
    own leave it where it is."""
    before, after = (p.base_dist if isinstance(p, td.Independent) else p for p in (before, after))
    if isinstance(before, td.Normal) and isinstance(after, td.Normal):
        return after.loc + after.scale * ((value - before.loc) / before.scale)
    if isinstance(before, td.Uniform) and isinstance(after, td.Uniform):
        return after.low + (after.high - after.low) * ((value - before.low) / (before.high - before.low))
    if isinstance(after, distributions.Point):
        return after.value
    return value


def _placed(model: Model, level: Level, value: Tensor, new: Values, column: int, sd: float) -> Tensor:
    """The level with one latent at its prior's mean and so many standard deviations; without a prior at that number."""
    flat_BD = value.flatten(1).clone()
    try:
        mean, variance = distributions.moments(model.p(level.name, new, len(value)))
    except NoPrior:
        flat_BD[:, column] = sd
    else:
        assert variance is not None
        flat_BD[:, column] = mean.flatten(1)[:, column] + sd * variance.flatten(1)[:, column].sqrt()
    return flat_BD.reshape(value.shape)


# ------------------------------------------------------------------------------------------------- generated images


def generated(model: Model, labels_BK: Tensor, *key: int | str) -> Values:
    """Values of images of these labels; the noise is a function of the key alone, for each level by itself."""
    devices.seed(*key, "labels")
    given = model.condition(labels_BK.to(model.device))
    devices.seed(*key, "draw")
    return model.draw(len(labels_BK), given)


def redrawn(model: Model, values: Values, level: str, *key: int | str) -> Values:
    """The same images with another draw at one level: what is above it is kept, what is below follows."""
    names = [one.name for one in model.levels]
    above = {name: values[name] for name in names[: names.index(level)]}
    devices.seed(*key, "redrawn")
    other = model.draw(len(values[level]), above)[level]
    return follow(model, values, {**above, level: other})


def of_image(model: Model, x_BCHW: Tensor) -> Values:
    """All levels of images at their modes; noise that nothing infers at its prior's mode."""
    return model.complete(model.infer(x_BCHW.to(model.device)).values)


def mixed(model: Model, one: Values, other: Values, take: Sequence[str]) -> Values:
    """The levels of one image with those to `take` of another, as they are. Labels that are taken are set as in
    `apply`, so that the levels below them follow."""
    if not any(model.level(name).kind == "labels" for name in take):
        return {name: other[name] if name in take else value for name, value in one.items()}
    theirs_BK = labelled.labels_of(model, other)
    taken = {k: theirs_BK[:, k] for k, block in enumerate(labelled.blocks(model)) if block.level in take}
    followed = apply(model, one, Change(taken))
    return {name: other[name] if name in take else value for name, value in followed.items()}
