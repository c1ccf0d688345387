"""Disentanglement metrics: `evaluate` runs some of them on codes, each with its chance level and ceiling."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vaecli.codes import Codes
from vaecli.metrics.base import Score


@dataclass(frozen=True)
class Result:
    """One metric on one set of codes. Where it could not be computed `score` is None and `problem` says why."""

    name: str
    score: Score | None  # over all latents
    active: Score | None = None  # over the active latents, where some are not active
    chance: Mapping[str, float] | None = None  # the same values for codes that know nothing of the factors
    ceiling: Mapping[str, float] | None = None  # the same values for the factors themselves as codes
    problem: str | None = None

    def record(self) -> dict[str, Any]:
        """For JSON: plain numbers, matrices as nested lists."""
        raise NotImplementedError


def chosen(text: str | None) -> list[str]:
    """The names in `all`, `none` or `mig,dci`; ConfigError with the nearest name for a wrong one."""
    raise NotImplementedError


def evaluate(
    names: Sequence[str], codes: Codes, seed: int, advance: Callable[[str], None] = lambda name: None
) -> list[Result]:
    """Run metrics in turn; `advance` is called with each name as it is finished."""
    raise NotImplementedError
