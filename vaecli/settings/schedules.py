"""Schedules: pure functions of the global step.

Wherever the configuration takes a `Scalar`, a mapping such as `{schedule: linear, start: 0, end: 4, steps: 10000}` may
stand in place of the number. Nothing here counts: the value at a step is the same whatever was evaluated in between
and however often the run was stopped and resumed.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from vaecli.settings.section import Count, PositiveInt, Section


class _Ramp(Section):
    """From `start`, held until step `delay`, to `end`, reached `steps` later and held."""

    start: float
    end: float
    steps: PositiveInt
    delay: Count = 0

    def share(self, step: int) -> float:
        """How much of the ramp is done at `step`, in [0, 1]."""
        return min(1.0, max(0, step - self.delay) / self.steps)


class Linear(_Ramp):
    """A straight line."""

    schedule: Literal["linear"]

    def at(self, step: int) -> float:
        return self.start + (self.end - self.start) * self.share(step)


class Cosine(_Ramp):
    """Half a cosine wave (Loshchilov & Hutter 2017, eq. 5, without restarts)."""

    schedule: Literal["cosine"]

    def at(self, step: int) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * self.share(step)))


class Cyclical(Section):
    """Repeated warm-up: each `period` rises from `start` to `end` in its first `ratio`, then stays (Fu et al. 2019)."""

    schedule: Literal["cyclical"]
    start: float
    end: float
    period: PositiveInt
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5

    def at(self, step: int) -> float:
        share = min(1.0, (step % self.period) / (self.period * self.ratio))
        return self.start + (self.end - self.start) * share


class Decay(Section):
    """`start` times `factor` for every `every` steps gone by (a staircase)."""

    schedule: Literal["decay"]
    start: float
    factor: Annotated[float, Field(gt=0, le=1)]
    every: PositiveInt

    def at(self, step: int) -> float:
        return self.start * self.factor ** (step // self.every)


class Piecewise(Section):
    """Straight lines through `points`, a list of [step, value] with rising steps; constant outside."""

    schedule: Literal["piecewise"]
    points: list[Annotated[tuple[Count, float], Field(strict=False)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> "Piecewise":
        steps = [step for step, _ in self.points]
        if any(b <= a for a, b in pairwise(steps)):
            raise ValueError("the steps of `points` must rise")
        return self

    def at(self, step: int) -> float:
        if step <= self.points[0][0]:
            return self.points[0][1]
        for (s0, v0), (s1, v1) in pairwise(self.points):
            if step <= s1:
                return v0 + (v1 - v0) * (step - s0) / (s1 - s0)
        return self.points[-1][1]


Schedule = Annotated[Linear | Cosine | Cyclical | Decay | Piecewise, Field(discriminator="schedule")]
Scalar = float | Schedule


def lowest(value: Scalar) -> float:
    """The least number that `value` stands for at any step; for a decay, which never changes sign, its start."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Piecewise):
        return min(number for _, number in value.points)
    if isinstance(value, Decay):
        return value.start
    return min(value.start, value.end)


def highest(value: Scalar) -> float:
    """The largest number that `value` stands for at any step."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Piecewise):
        return max(number for _, number in value.points)
    return value.start if isinstance(value, Decay) else max(value.start, value.end)


def _not_negative(value: Scalar) -> Scalar:
    if lowest(value) < 0:
        raise ValueError("must never be negative")
    return value


# The coefficient of a term: a number or schedule that is never negative.
Weight = Annotated[Scalar, AfterValidator(_not_negative)]


def at(value: Scalar, step: int) -> float:
    """The number that `value` stands for at `step`."""
    return value if isinstance(value, (int, float)) else value.at(step)


def resolve(section: Section, step: int) -> dict[str, float]:
    """Every number of a section at `step`, schedules evaluated, nested sections by dotted name (`likelihood.sigma`)."""
    values: dict[str, float] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, (Linear, Cosine, Cyclical, Decay, Piecewise)):
            values[name] = value.at(step)
        elif isinstance(value, Section):
            values.update({f"{name}.{key}": number for key, number in resolve(value, step).items()})
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values[name] = float(value)
    return values


def moving(section: Section) -> list[str]:
    """The dotted names of the values that are schedules."""
    names: list[str] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, (Linear, Cosine, Cyclical, Decay, Piecewise)):
            names.append(name)
        elif isinstance(value, Section):
            names.extend(f"{name}.{inner}" for inner in moving(value))
    return names
