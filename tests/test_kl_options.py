"""Warm-up, cyclical weights and free bits of the KL, of every model that has them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Result
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from vaecli import models, registry
from vaecli.analysis.advice import levers
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import FreeBitsConfig, Model, total
from vaecli.objectives import distributions, terms
from vaecli.settings import schedules

INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)


def config_class(name: str) -> Any:
    return registry.load("model", name).Config


FREE = [name for name in registry.names("model") if issubclass(config_class(name), FreeBitsConfig)]
WEIGHED = [name for name in FREE if "beta" in config_class(name).model_fields]
TOGETHER = {"vamp-vae", "svae", "poincare-vae"}  # whose latents have no KL of their own
EXTRA: dict[str, dict[str, Any]] = {"info-vae": {"alpha": 0.25, "strength": 0.75}}  # by default its KL weighs nothing


def build(name: str, **options: Any) -> Model:
    torch.manual_seed(0)
    cls = config_class(name)
    model = models.build(cls.model_validate({**cls.tiny, **EXTRA.get(name, {}), **options}), INFO).double()
    with torch.no_grad():  # posteriors that differ, so that some latents have more than the free bits and some less
        for p in model.parameters():
            p.mul_(3.0)
    return model


def batch() -> Batch:
    generator = torch.Generator().manual_seed(7)
    return Batch((torch.rand(64, 1, 4, 4, generator=generator) > 0.5).double(), torch.arange(64))


def logged(model: Model, step: int = 0) -> dict[str, float]:
    torch.manual_seed(3)
    with torch.no_grad():
        return {key: float(value) for key, value in total(model.loss(batch(), model.hyper(step)))[1].items()}


def kl_of(model: Model, name: str) -> Tensor:
    """The KL of the draw that the loss makes, (B, D), or (B, 1) where it is that of all latents together."""
    torch.manual_seed(3)
    x = batch().x_BCHW
    with torch.no_grad():
        if name == "iaf-vae":
            return model.sample(x)[1]  # type: ignore[operator, no-any-return]
        found = model.infer(x, sample=True)
        rates = {
            level: rate for level, rate in model.rates(found).items() if level != "y"
        }  # an epitome has no free bits
        rates = [rate if rate.dim() > 1 else rate.unsqueeze(1) for rate in rates.values()]
        return torch.cat(rates, dim=1)


def test_who_has_them() -> None:
    """Whoever has a KL that weighs something of its own, unless its KL is another term's (a capacity, a total
    correlation, an importance-weighted bound)."""
    assert {"vae", "beta-vae", "factor-vae", "dip-vae-i", "iaf-vae", "ladder-vae", "vamp-vae", "svae"} <= set(FREE)
    assert not {"iwae", "annealed-vae", "beta-tcvae", "autoencoder", "rae", "vq-vae"} & set(FREE)
    assert set(FREE) - set(WEIGHED) == {"vae", "info-vae"}  # the one is beta-vae then, the other has alpha


@pytest.mark.parametrize("name", FREE)
def test_free_bits_are_of_the_mean_over_the_batch_and_leave_kl_and_elbo_as_they_are(name: str) -> None:
    kl_BD = kl_of(build(name), name)
    each_D = kl_BD.mean(dim=0)
    free = float(each_D.median()) + 0.01 if name not in TOGETHER else float(each_D) + 1.5
    plain, freed = logged(build(name)), logged(model := build(name, free_bits=free))
    wanted = sum(max(free, float(kl)) for kl in each_D)
    assert wanted > float(each_D.sum()) + 0.005 and (name in TOGETHER or bool((each_D > free).any()))
    weight = freed["kl_free.weight"]
    assert freed["kl_free"] == pytest.approx(wanted, abs=1e-9)
    assert freed["kl"] == pytest.approx(float(each_D.sum()), abs=1e-9) and "kl.weight" not in freed
    assert weight == plain["kl.weight"]
    assert freed["loss"] == pytest.approx(plain["loss"] + weight * (wanted - plain["kl"]), abs=1e-9)
    for key in plain.keys() & {"kl", "elbo", "recon"}:
        assert freed[key] == plain[key]
    assert model.kl_weight(model.hyper(0)) is None
    assert f"max({free:.4g}, KL)" in model.objective_text(model.hyper(0))
    assert "max(" not in build(name).objective_text(build(name).hyper(0))


@pytest.mark.parametrize("name", FREE)
def test_none_at_all_is_the_plain_objective(name: str) -> None:
    plain = logged(build(name))
    assert logged(build(name, free_bits=0.0)) == plain and "kl_free" not in plain
    with pytest.raises(ValidationError, match="must never be negative"):
        build(name, free_bits=-0.1)
    with pytest.raises(ValidationError, match="must never be negative"):
        build(name, free_bits={"schedule": "linear", "start": 0.5, "end": -0.1, "steps": 10})


def test_free_bits_have_no_gradient_below_and_the_plain_one_above() -> None:
    kl_BD = torch.tensor([[0.1, 0.9], [0.3, 0.1], [0.2, 2.0]], dtype=torch.float64, requires_grad=True)
    found = terms.free_bits(kl_BD, 0.25)
    assert float(found.detach()) == pytest.approx(0.25 + 1.0, abs=1e-12)  # means 0.2 and 1.0; no image's own maximum
    torch.autograd.backward(found)
    assert kl_BD.grad is not None
    third = 1 / 3
    torch.testing.assert_close(kl_BD.grad, torch.tensor([[0.0, third]] * 3, dtype=torch.float64))


def test_free_bits_by_schedule() -> None:
    model = build("vae", free_bits={"schedule": "piecewise", "points": [[0, 0.0], [10, 5.0]]})
    kl = logged(model)["kl"]
    assert logged(model)["kl_free"] == pytest.approx(kl, abs=1e-12)  # at 0: an exact KL is never below
    assert logged(model, 4)["kl_free"] == pytest.approx(
        sum(max(2.0, float(v)) for v in kl_of(model, "vae").mean(dim=0)), abs=1e-9
    )
    assert model.kl_weight(model.hyper(0)) == 1.0 and model.kl_weight(model.hyper(4)) is None


SCHEDULES: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "linear": ({"start": 0.0, "end": 1.0, "steps": 8}, {0: 0.0, 2: 0.25, 8: 1.0, 99: 1.0}),
    "cosine": ({"start": 0.0, "end": 1.0, "steps": 8}, {0: 0.0, 4: 0.5, 6: 0.5 + math.sqrt(0.125), 8: 1.0}),
    "cyclical": ({"start": 0.0, "end": 1.0, "period": 10, "ratio": 0.5}, {0: 0.0, 3: 0.6, 7: 1.0, 10: 0.0, 13: 0.6}),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", WEIGHED)
def test_the_weight_of_the_kl_by_schedule(name: str, kind: str) -> None:
    """What is minimised, what is logged, and what `kl_weight` says where the KL alone is beside the reconstruction."""
    section, values = SCHEDULES[kind]
    alone = {"factor-vae": {"gamma": 0.0}, "dip-vae-i": {"lambda_od": 0.0}, "dip-vae-ii": {"lambda_od": 0.0}}
    model = build(name, beta={"schedule": kind, **section}, **alone.get(name, {}))
    for step, wanted in values.items():
        found = logged(model, step)
        assert found["kl.weight"] == pytest.approx(wanted, abs=1e-12)
        choice = found.get("choice", 0.0)
        assert found["loss"] == pytest.approx(found["recon"] + wanted * found["kl"] + choice, abs=1e-9)
        assert found["elbo"] == pytest.approx(-(found["recon"] + found["kl"] + choice), abs=1e-9)
        assert model.kl_weight(model.hyper(step)) == pytest.approx(wanted, abs=1e-12)
    assert f"beta = {values[0]:.4g}" in model.objective_text(model.hyper(0))


@pytest.mark.parametrize(
    ("name", "player", "unlike"), [("msssim-vae", "main", "unlike"), ("vae-gan", "encoder", "distance")]
)
def test_models_without_a_likelihood_have_them_too(name: str, player: str, unlike: str) -> None:
    def found(**options: Any) -> dict[str, float]:
        torch.manual_seed(0)
        cls = config_class(name)
        small = {"window": 3} if name == "msssim-vae" else {}
        model = models.build(cls.model_validate({**cls.tiny, **small, **options}), INFO).double()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(3.0)
            torch.manual_seed(3)
            assert ("max(" in model.objective_text(model.hyper(0))) == ("free_bits" in options)
            kl_D = terms.kl_normal(*model.features(batch().x_BCHW)).mean(dim=0)
            torch.manual_seed(3)
            logged = {key: float(v) for key, v in total(model.loss(batch(), model.hyper(2), player))[1].items()}
        return {**logged, "wanted": sum(max(float(options.get("free_bits", 0)), float(kl)) for kl in kl_D)}

    plain, warm = found(beta=1.0), found(beta={"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 8})
    assert plain["kl.weight"] == 1.0 and warm["kl.weight"] == 0.25
    assert warm["loss"] == pytest.approx(plain["loss"] - 0.75 * plain["kl"], abs=1e-9)
    free = plain["kl"] / 3
    freed = found(free_bits=free, beta=0.5)
    assert freed["kl"] == plain["kl"] == pytest.approx(plain["wanted"], abs=1e-9) and "kl.weight" not in freed
    assert freed["kl_free"] == pytest.approx(freed["wanted"], abs=1e-9) and freed["kl_free"] > plain["kl"]
    weight = freed[f"{unlike}.weight"]
    assert freed["loss"] == pytest.approx(weight * freed[unlike] + 0.5 * freed["kl_free"], abs=1e-9)


def test_where_there_is_another_way_to_say_it() -> None:
    with pytest.raises(ValidationError, match=r"set model\.name to beta-vae"):
        build("vae", beta=1.0)
    with pytest.raises(ValidationError, match="at `alpha` = 1 the KL weighs nothing"):
        build("info-vae", alpha=1.0, strength=1.0, free_bits=0.1)


def test_a_vae_is_exchangeable_with_beta_vae_unless_some_of_its_kl_is_free() -> None:
    plain, freed = build("vae"), build("vae", free_bits=0.2)
    assert levers(plain.hyper(0), plain).exchangeable and not levers(freed.hyper(0), freed).exchangeable


def test_highest_number_of_a_schedule() -> None:
    for section, (low, high) in {
        '{"schedule": "linear", "start": 1.0, "end": 5.0, "steps": 3}': (1.0, 5.0),
        '{"schedule": "cosine", "start": 4.0, "end": -1.0, "steps": 3}': (-1.0, 4.0),
        '{"schedule": "cyclical", "start": 0.0, "end": 2.0, "period": 3}': (0.0, 2.0),
        '{"schedule": "decay", "start": 3.0, "factor": 0.5, "every": 2}': (3.0, 3.0),
        '{"schedule": "piecewise", "points": [[0, 1.0], [2, -3.0], [5, 2.0]]}': (-3.0, 2.0),
    }.items():
        schedule = TypeAdapter(schedules.Schedule).validate_json(section)
        assert (schedules.lowest(schedule), schedules.highest(schedule)) == (low, high)
    assert schedules.highest(2) == 2


def test_numbers_of_a_network_as_a_gaussian() -> None:
    numbers = torch.tensor([[1.0, -2.0, 0.5, 99.0]], dtype=torch.float64)
    q = distributions.from_numbers(numbers)
    assert q.loc.tolist() == [[1.0, -2.0]] and q.logvar.tolist() == [[0.5, 20.0]]


def test_in_training_and_in_the_banner(vae: Callable[..., Result]) -> None:
    done = vae(
        "train", "--model", "vae", *TINY, "--steps", 12, "-S", "model.free_bits=0.4", "-S", "train.log_every=6",
        "-S", "train.eval_every=6", "--runs-dir", "runs", "--name", "r",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "minimise recon + sum of max(0.4, KL) over the latents" in done.err
    records = [json.loads(line) for line in Path("runs/r/metrics.jsonl").read_text().splitlines()]
    for record in records:
        assert record["elbo"] == pytest.approx(-(record["recon"] + record["kl"]), rel=1e-5)
        assert record["kl_free"] >= 3 * 0.4 - 1e-6
        if record["kind"] == "train":
            assert record["weights"] == {"recon": 1.0, "kl_free": 1.0}
    refused = vae("train", "--model", "vae", *TINY, "-S", "model.free_bits=-1", "--runs-dir", "runs")
    assert refused.code == 2 and "model.free_bits: must never be negative" in refused.err
