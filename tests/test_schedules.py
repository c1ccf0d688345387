"""Schedules at steps whose values are known by hand, including before, at and beyond their ends."""

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from vaecli.models import beta_vae
from vaecli.objectives.likelihoods import GaussianLikelihoodConfig
from vaecli.settings import schedules

CASES: list[tuple[dict[str, Any], dict[int, float]]] = [
    (
        {"schedule": "linear", "start": 1.0, "end": 5.0, "steps": 100, "delay": 20},
        {0: 1.0, 20: 1.0, 21: 1.04, 45: 2.0, 70: 3.0, 120: 5.0, 121: 5.0, 10**9: 5.0},
    ),
    ({"schedule": "linear", "start": 5.0, "end": 0.0, "steps": 1}, {0: 5.0, 1: 0.0, 2: 0.0}),
    (
        {"schedule": "cosine", "start": 4.0, "end": 0.0, "steps": 100, "delay": 10},
        {0: 4.0, 10: 4.0, 35: 2.0 + math.sqrt(2.0), 60: 2.0, 85: 2.0 - math.sqrt(2.0), 110: 0.0, 999: 0.0},
    ),
    (
        {"schedule": "cyclical", "start": 0.0, "end": 4.0, "period": 100, "ratio": 0.5},
        {0: 0.0, 25: 2.0, 49: 3.92, 50: 4.0, 99: 4.0, 100: 0.0, 125: 2.0, 1050: 4.0},
    ),
    ({"schedule": "cyclical", "start": 1.0, "end": 2.0, "period": 4, "ratio": 1.0}, {3: 1.75, 4: 1.0, 5: 1.25}),
    (
        {"schedule": "decay", "start": 8.0, "factor": 0.5, "every": 10},
        {0: 8.0, 9: 8.0, 10: 4.0, 19: 4.0, 20: 2.0, 30: 1.0},
    ),
    (
        {"schedule": "piecewise", "points": [[10, 1.0], [20, 3.0], [40, 2.0]]},
        {0: 1.0, 10: 1.0, 15: 2.0, 20: 3.0, 30: 2.5, 40: 2.0, 41: 2.0},
    ),
]


@pytest.mark.parametrize(("section", "values"), CASES)
def test_values_at_known_steps(section: dict[str, Any], values: dict[int, float]) -> None:
    schedule: Any = TypeAdapter(schedules.Schedule).validate_python(section)
    # Read backwards as well: a value may depend on the step alone.
    for step in [*values, *reversed(values)]:
        assert schedule.at(step) == pytest.approx(values[step], abs=1e-12)


def test_a_plain_number_is_constant() -> None:
    assert schedules.at(3, 0) == schedules.at(3.0, 10**9) == 3.0


def test_resolve_names_nested_sections_and_evaluates_schedules() -> None:
    config = beta_vae.Config.model_validate(
        {
            "beta": {"schedule": "linear", "start": 0.0, "end": 4.0, "steps": 8},
            "likelihood": {"name": "gaussian", "sigma": {"schedule": "decay", "start": 1.0, "factor": 0.5, "every": 2}},
        }
    )
    values = schedules.resolve(config, 6)
    assert values["beta"] == 3.0
    assert values["likelihood.sigma"] == 0.125
    assert values["latent_dim"] == 10.0
    assert "beta_norm" not in values
    assert "name" not in values


@pytest.mark.parametrize(
    "section",
    [
        {"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 0},
        {"schedule": "linear", "start": 0.0, "end": math.nan, "steps": 5},
        {"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 5, "dealy": 3},
        {"schedule": "cyclical", "start": 0.0, "end": 1.0, "period": 10, "ratio": 1.5},
        {"schedule": "decay", "start": 1.0, "factor": 0.0, "every": 3},
        {"schedule": "piecewise", "points": []},
        {"schedule": "piecewise", "points": [[5, 1.0], [5, 2.0]]},
        {"schedule": "sine", "start": 0.0},
    ],
)
def test_unusable_schedules_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(schedules.Schedule).validate_python(section)


@pytest.mark.parametrize(
    "value",
    [
        -1.0,
        {"schedule": "linear", "start": 1.0, "end": -0.1, "steps": 5},
        {"schedule": "cosine", "start": -1.0, "end": 1.0, "steps": 5},
        {"schedule": "cyclical", "start": 0.0, "end": -1.0, "period": 5},
        {"schedule": "decay", "start": -1.0, "factor": 0.5, "every": 5},
        {"schedule": "piecewise", "points": [[0, 1.0], [3, -1.0], [5, 1.0]]},
    ],
)
def test_weights_that_turn_negative_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="never be negative"):
        beta_vae.Config.model_validate({"beta": value})
    with pytest.raises(ValidationError, match="greater than 0"):
        GaussianLikelihoodConfig.model_validate({"sigma": value})


def test_zero_is_a_weight_but_no_standard_deviation() -> None:
    assert beta_vae.Config(beta=0.0).beta == 0.0
    with pytest.raises(ValidationError, match="greater than 0"):
        GaussianLikelihoodConfig(sigma=0.0)
