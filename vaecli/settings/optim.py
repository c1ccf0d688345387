"""Optimizers by name: the section `optim`, and those of a model's further players."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vaecli.settings.schedules import Weight
from vaecli.settings.section import Fraction, NonNegative, Positive, Section


class _Optim(Section):
    lr: Weight = 1e-3
    weight_decay: Weight = 0.0
    grad_clip: Weight | None = None  # largest 2-norm of the gradient of one phase


_Rate = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[_Rate, _Rate], Field(strict=False)]


class Adam(_Optim):
    name: Literal["adam"] = "adam"
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8


class AdamW(_Optim):
    name: Literal["adamw"]
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8


class Adagrad(_Optim):
    name: Literal["adagrad"]
    lr_decay: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.0
    eps: Positive = 1e-10


class RMSprop(_Optim):
    name: Literal["rmsprop"]
    alpha: Fraction = 0.99
    momentum: NonNegative = 0.0
    eps: Positive = 1e-8


class SGD(_Optim):
    name: Literal["sgd"]
    momentum: NonNegative = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov(self) -> "SGD":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


def on_defaults(default: Adam) -> BeforeValidator:
    """For a field that starts as `default`: what a section of that optimizer leaves out is as there, so that
    `{lr: 1e-5}` is one, with its betas."""

    def completed(value: Any) -> Any:
        if isinstance(value, dict) and value.get("name", default.name) == default.name:
            return {**default.model_dump(), **value}
        return value

    return BeforeValidator(completed)


OPTIMS: tuple[type[_Optim], ...] = (Adam, AdamW, Adagrad, RMSprop, SGD)
OptimConfig = Annotated[Adam | AdamW | Adagrad | RMSprop | SGD, Field(discriminator="name")]
