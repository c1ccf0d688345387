"""Latents against principal axes: exact on models in closed form, turned by hand, and none where there are none."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from vaecli import models, registry
from vaecli.analysis import axes
from vaecli.batch import DataInfo
from vaecli.data.base import Dataset, Floats

EIGENVALUES = np.array([4.0, 2.0, 1.9, 0.5, 0.1, 0.1]) / 100  # the second and third are 5 % apart


def made(latents: int = 4) -> tuple[Any, Any]:
    """A ppca of images whose covariance (1/N) has exactly these eigenvalues."""
    n, rng = 300, np.random.default_rng(0)
    raw = rng.standard_normal((n, 6))
    white = np.linalg.qr(raw - raw.mean(axis=0))[0] * math.sqrt(n)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    x = torch.from_numpy(0.5 + white * np.sqrt(EIGENVALUES) @ basis).float().reshape(n, 1, 2, 3)
    info = DataInfo("rows", (1, 2, 3), n)
    dataset = Dataset(info, Floats(x), None, {"train": torch.arange(n)})
    model = models.build(registry.load("model", "ppca").Config(latent_dim=latents), info)
    model.fit(dataset.training(0), lambda: False, lambda _: None)
    return model, dataset.split("train")


def test_principal_axes_are_found_at_no_angle() -> None:
    model, view = made()
    found = axes.measure(model, view)
    assert found is not None and list(found["latents"]) == ["z0", "z1", "z2", "z3"]
    for d, one in enumerate(found["latents"].values()):
        assert one["axis"] == d and one["angle"] < 0.05
        assert one["eigenvalue"] == pytest.approx(EIGENVALUES[d], rel=1e-5)
    assert [one["gap"] for one in found["latents"].values()] == pytest.approx([0.5, 0.05, 0.1 / 1.9, 0.8], rel=1e-3)
    assert found["isolated"] == 2 and found["largest_angle"] < 0.05 and found["images"] == 300
    assert "z0 1 at 0" in axes.text(found) and "within 0.0 degrees" in axes.text(found)


def test_a_turn_is_measured_in_degrees() -> None:
    model, view = made()
    rows = model.decode_DP.clone()
    for degrees in (10.0, 30.0):
        a, unit = math.radians(degrees), rows / rows.norm(dim=1, keepdim=True)
        model.decode_DP.copy_(rows)
        model.decode_DP[0] = 3 * (math.cos(a) * unit[0] + math.sin(a) * unit[3])
        model.decode_DP[2] = -rows[1]  # the sign is free, and two latents may share an axis
        found = axes.measure(model, view)
        assert found is not None
        assert found["latents"]["z0"]["angle"] == pytest.approx(degrees, abs=0.05)
        assert found["largest_angle"] == pytest.approx(degrees, abs=0.05)
        assert found["latents"]["z2"]["axis"] == 1 and found["latents"]["z2"]["angle"] < 0.05


def test_latents_that_move_nothing_are_left_out() -> None:
    model, view = made()
    model.decode_DP[1:3] = 0
    found = axes.measure(model, view)
    assert found is not None and list(found["latents"]) == ["z0", "z3"]
    model.decode_DP.zero_()
    nothing = axes.measure(model, view)
    assert nothing is not None and nothing["largest_angle"] is None and nothing["isolated"] == 0


def test_none_where_axes_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, view = made()
    assert axes.measure(model, view.sample(5)) is None
    monkeypatch.setattr(axes, "LARGEST", 5)
    assert axes.measure(model, view) is None
