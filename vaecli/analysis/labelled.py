"""Images of given labels: drawn by a model with a level of labels, or from a density of the codes of each label.

Shapes: B images, K labels that can be asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vaecli import registry
from vaecli.analysis.draws import Source
from vaecli.analysis.gathering import label_factors
from vaecli.errors import ConfigError
from vaecli.models.base import Level, Model, NoLabels, Values
from vaecli.objectives import distributions


@dataclass(frozen=True)
class Block:
    """The columns of a level of labels that stand for one factor of the data."""

    level: str
    factor: str
    start: int
    size: int


class Sampler(Protocol):
    """What draws images of given labels: `model.image` makes images of the values."""

    @property
    def model(self) -> Model: ...

    @property
    def factors(self) -> tuple[str, ...]:
        """Whose values can be asked for, in the order of the labels' columns."""
        ...

    @property
    def text(self) -> str:
        """What is drawn from, in words."""
        ...

    def draw(self, labels_BK: Tensor, temperature: float = 1.0) -> Values:
        """Values of all levels for images of these labels, int64 (B, K), from torch's global generator; labels of -1
        are drawn. The noise is the same whatever the labels."""
        ...


@runtime_checkable
class LabelledDensity(Protocol):
    """A density that knows of which labels the codes were that it is fitted to."""

    factors: tuple[str, ...]

    def sample_labelled(self, labels_BK: Tensor) -> Tensor:
        """A draw of p(z|labels) a row, float32 (B, D); labels of -1 are drawn in the proportions of the fit."""
        ...

    def text(self) -> str: ...


@dataclass(frozen=True)
class OfModel:
    """Ancestral draws given what `Model.condition` says of the labels."""

    model: Model
    text: str = "the model"

    @property
    def factors(self) -> tuple[str, ...]:
        return tuple(block.factor for block in blocks(self.model))

    def draw(self, labels_BK: Tensor, temperature: float = 1.0) -> Values:
        labels_BK = labels_BK.to(self.model.device)
        return self.model.draw(len(labels_BK), self.model.condition(labels_BK), temperature)


@dataclass(frozen=True)
class OfDensity:
    """Draws of a density fitted to the codes of each label."""

    model: Model
    density: LabelledDensity

    @property
    def factors(self) -> tuple[str, ...]:
        return self.density.factors

    @property
    def text(self) -> str:
        return self.density.text()

    def draw(self, labels_BK: Tensor, temperature: float = 1.0) -> Values:
        if temperature != 1.0:
            raise ConfigError("a temperature scales the model's own prior, and a density has none")
        return self.model.unflatten(self.density.sample_labelled(labels_BK.cpu()).to(self.model.device))


def sampler(source: Source) -> Sampler:
    """By what images of given labels are drawn: the density, where it knows labels, else the model. NoLabels."""
    if isinstance(source.density, LabelledDensity):
        return OfDensity(source.model, source.density)
    name = source.model.config.name
    if not blocks(source.model):
        fitted = ", or fit a density of each label: vae density RUN --fit class-normal"
        more = fitted if "class-normal" in registry.names("density") else ""
        raise NoLabels(f"{name} has no labels to ask for", f"train a model of labels (vae models){more}")
    return OfModel(source.model)


def blocks(model: Model) -> list[Block]:
    """The labels that can be asked for, in the order of `Model.condition`; none where the model has no such method, or
    it cannot be told what they are labels of."""
    if type(model).condition is Model.condition:
        return []
    found = []
    for level in model.levels:
        if level.kind != "labels":
            continue
        names = model.info.factor_names
        factors = level.factors or [None if k is None else names[k] for k in label_factors(level, model.info)]
        start = 0
        for factor, size in zip(factors, level.sizes, strict=True):
            if factor is None:
                return []
            found.append(Block(level.name, factor, start, size))
            start += size
    return found


def labels_of(model: Model, values: Values) -> Tensor:
    """The labels in values of the levels of labels, int64 (B, K): the largest of each block."""
    columns = [values[block.level][:, block.start : block.start + block.size].argmax(dim=1) for block in blocks(model)]
    return torch.stack(columns, dim=1)


def read(model: Model, x_BCHW: Tensor) -> Tensor:
    """The labels that the model itself reads in images, the mode of q(y|x), int64 (B, K)."""
    with torch.inference_mode():
        return labels_of(model, model.infer(x_BCHW.to(model.device)).values)


def from_labels(model: Model, labels_BK: Tensor) -> Values:
    """What `condition` keeps for images of these labels, at its mode in place of a draw. Labels of -1 are drawn."""
    values = model.condition(labels_BK.to(model.device))
    kinds = {level.name: level.kind for level in model.levels}
    given = {name: value for name, value in values.items() if kinds[name] == "labels"}
    for name in (name for name in model.inference_order() if name in values and name not in given):
        given[name] = distributions.mode(model.q(name, None, given))  # of labels alone: no image is needed
    return given


def below_labels(model: Model) -> list[Level]:
    """The levels of numbers that an image of given labels still has to be drawn from, in order of generation; without
    labels, all of them."""
    known = blocks(model)
    if not known:
        return [level for level in model.levels if level.kind == "gaussian"]
    fixed = from_labels(model, torch.zeros(1, len(known), dtype=torch.int64))
    return [level for level in model.levels if level.kind == "gaussian" and level.name not in fixed]


def columns_in(names: Sequence[str], factors: Sequence[str]) -> list[int]:
    """Where each of the factors stands among the names."""
    return [list(names).index(factor) for factor in factors]
