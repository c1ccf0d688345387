"""Noise that belongs to an image: its distribution, and that no number of a checkpoint depends on the batches."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result
from torch import Tensor

from vaecli import data, device, models, noise, registry
from vaecli.analysis.gathering import latent_statistics
from vaecli.batch import Batch
from vaecli.commands._groups import Column, Group, Run, Summary, best_of
from vaecli.data.squares import Config as Squares
from vaecli.noise import ByImage

Vae = Callable[..., Result]
N = 100_000


def test_numbers_have_the_distributions_asked_for() -> None:
    with ByImage(1, torch.arange(N)):
        normal, uniform = torch.randn(N, 2, dtype=torch.float64), torch.rand(N, dtype=torch.float64)
        exponential = torch.empty(N, dtype=torch.float64).exponential_()
        drawn = torch.multinomial(torch.tensor([[0.1, 0.2, 0.7]]).expand(N, 3), 1)[:, 0]
        coins = torch.bernoulli(torch.full((N,), 0.3))
        of_torch = torch.distributions.Normal(torch.full((N,), 3.0), 2.0).sample()
        beta = torch.distributions.Beta(torch.full((N // 50,), 2.0), torch.ones(N // 50))
    five = 5 / math.sqrt(N)
    for values, moments in ((normal[:, 0], (0, 1, 0, 3)), (uniform, (1 / 2, 1 / 3, 1 / 4, 1 / 5))):
        for power, moment in enumerate(moments, start=1):
            sd = float((values**power).std())
            assert float((values**power).mean()) == pytest.approx(moment, abs=five * sd)
    assert float(exponential.mean()) == pytest.approx(1, abs=five)
    assert float((normal[:, 0] * normal[:, 1]).mean()) == pytest.approx(0, abs=five)  # neighbours of a row
    assert float((normal[1:, 0] * normal[:-1, 0]).mean()) == pytest.approx(0, abs=five)  # and of a column
    assert (drawn.bincount() / N).tolist() == pytest.approx([0.1, 0.2, 0.7], abs=five)
    assert float(coins.mean()) == pytest.approx(0.3, abs=five)
    assert float(of_torch.mean()) == pytest.approx(3, abs=2 * five) and float(of_torch.std()) == pytest.approx(2, 0.02)
    assert beta.batch_shape == (N // 50,)


@pytest.mark.parametrize(
    "draw",
    [
        lambda b: torch.randn(b, 3),
        lambda b: torch.randn_like(torch.zeros(b, 3, dtype=torch.float64)),
        lambda b: torch.rand(b),
        lambda b: torch.randn(2, b, 3).transpose(0, 1),
        lambda b: torch.randn(4 * b, 3).view(b, 4, 3),
        lambda b: torch.normal(torch.zeros(b, 2), torch.ones(b, 2)),
        lambda b: torch.empty(b, 2).exponential_(),
        lambda b: torch.empty(b, 2).uniform_(2, 3),
        lambda b: torch.zeros(b, 2).normal_(1, 0.5),
        lambda b: torch.bernoulli(torch.full((b, 9), 0.5)),
        lambda b: torch.multinomial(torch.ones(b, 50), 5, True),
        lambda b: torch.multinomial(torch.ones(5000), b, True),
        lambda b: torch.distributions.Beta(torch.full((b, 2), 1.5), torch.full((b, 2), 1.5)).sample(),
        lambda b: torch.distributions.Categorical(torch.ones(b, 3, 900)).sample(),
    ],
)
def test_an_image_has_the_same_noise_in_any_batch(draw: Callable[[int], Tensor]) -> None:
    index_N = torch.tensor([70, 3, 8, 41, 5, 600])

    def of(index_B: Tensor, seed: int = 0, number: int = 0) -> Tensor:
        with ByImage(seed, index_B, number):
            first, second = draw(len(index_B)), draw(len(index_B))
        assert not torch.equal(first, second)
        return first

    whole = of(index_N)
    assert torch.equal(of(index_N[2:5]), whole[2:5])
    assert torch.equal(of(index_N.flip(0)), whole.flip(0))
    assert not torch.equal(of(index_N, seed=1), whole) and not torch.equal(of(index_N, number=1), whole)


def test_how_many_draws() -> None:
    assert [noise.draws(n) for n in (1, 51, 500, 1999, 2000, 10**6)] == [64, 40, 4, 2, 1, 1]


@pytest.mark.parametrize("name", registry.names("model"))
def test_statistics_do_not_depend_on_the_batches(name: str) -> None:
    """Of every model: with noise tied to the batch a reconstruction moves by its standard error."""
    module = registry.load("model", name)
    dataset = data.load(Squares(name="squares"))
    torch.manual_seed(0)
    model = models.build(module.Config.model_validate(module.Config.tiny), dataset.info).eval()
    if not model.inferred:
        pytest.skip("nothing is inferred")
    if model.closed_form:
        model.fit(dataset.split("train"), lambda: False, lambda images: None)
    view = dataset.split("val").sample(30)
    few, many = (latent_statistics(model, view.batches(size), model.hyper(50), seed=3, draws=3) for size in (7, 30))
    for key in ("recon", "kl", "elbo", "mse"):
        a, b = getattr(few, key), getattr(many, key)
        assert a == pytest.approx(b, rel=2e-5, abs=1e-5) if a is not None else b is None, key
    if few.recon is not None and few.kl_D is not None:
        assert few.elbo_N is not None and float(few.elbo_N.mean()) == pytest.approx(few.elbo, rel=1e-6)


def test_a_mean_over_draws_has_the_error_of_the_images_alone() -> None:
    """With z ~ N(0, 1) and -log p = z^2 an image: one draw is off by sqrt(2 / N), K draws by sqrt(2 / (N K))."""

    class Noisy(models.base.Model):
        def __init__(self) -> None:
            super().__init__(models.base.ModelConfig(name="noisy"), data.load(Squares(name="squares")).info)
            self.levels = (models.base.Level("z", (1,), standard=True),)

        def q(self, level: str, features: Tensor, given: models.base.Values) -> torch.distributions.Distribution:
            from vaecli.objectives.distributions import Gaussian

            return Gaussian(torch.zeros(len(features), 1), torch.zeros(len(features), 1))

        def log_prob(self, x_BCHW: Tensor, values: models.base.Values, hyper: object) -> Tensor:
            return -values["z"].square().sum(dim=1)

    batches = [Batch(torch.zeros(50, 1, 2, 2), torch.arange(50))]
    found = {k: [latent_statistics(Noisy(), batches, {}, seed=s, draws=k).recon for s in range(60)] for k in (1, 40)}
    for k, values in found.items():
        assert np.mean(values) == pytest.approx(1, abs=4 * math.sqrt(2 / 50 / k / 60))
        assert np.std(values) == pytest.approx(math.sqrt(2 / 50 / k), rel=0.35)


@pytest.mark.parametrize("model", ["beta-vae", "vae", "ladder-vae", "m2", "svae", "iaf-vae"])
def test_training_final_table_and_analysis_agree(vae: Vae, tmp_path: Path, model: str) -> None:
    data_set = ("--data", "squares")
    tiny = registry.load("model", model).Config.tiny
    settings = [part for key, value in tiny.items() for part in ("-S", f"model.{key}={json.dumps(value)}")]
    done = vae(
        "train", "--model", model, *data_set, *settings, "--steps", 20, "--seed", 7, "--batch-size", 16,
        "--runs-dir", tmp_path, "--name", "r", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads(done.out)
    found = json.loads(vae("analyze", tmp_path / "r", "--split", "val", "--json", "-q").out)["totals"]
    other = json.loads(vae("analyze", tmp_path / "r", "--split", "val", "--json", "-q", "--batch-size", 9).out)[
        "totals"
    ]
    for key in ("elbo", "recon", "kl"):
        assert record["final"][key] == pytest.approx(found[key], rel=1e-5, abs=1e-5)
        assert other[key] == pytest.approx(found[key], rel=1e-5, abs=1e-5)
    if found["elbo"] is not None:
        assert record["final"]["elbo_standard_error"] == pytest.approx(found["elbo_standard_error"], rel=1e-4)
        assert f"{found['elbo']:.2f} +- {found['elbo_standard_error']:.2f} nats" in done.err
        assert f"{found['recon']:.2f} +- {found['recon_standard_error']:.2f} nats" in done.err
    if model in ("beta-vae", "vae"):
        for key in ("elbo", "recon", "kl"):
            assert record["val"][key] == pytest.approx(found[key], rel=1e-5)


# ------------------------------------------------------------------------------------------------------------- a winner


def group(elbo_N: list[float], images: str = "same") -> Group:
    run = Run("r", Path("r"), None, None, 0, images=images)  # type: ignore[arg-type]
    run.per_image = {"elbo": np.array(elbo_N)}
    mean, sd = float(np.mean(elbo_N)), float(np.std(elbo_N, ddof=1))
    return Group([run], {}, {"elbo": Summary(mean, None, sd / math.sqrt(len(elbo_N)))})


def test_no_winner_within_the_errors() -> None:
    column = Column("elbo", "ELBO", 2, 1)
    rng = np.random.default_rng(0)
    base = rng.normal(-100, 30, 400)
    same, noisy = (base + 0.5), (base + 0.5 + rng.normal(0, 30, 400))
    # The images are the same: their spread of 30 nats is in both, and a half nat more of each image is a difference.
    assert best_of(column, [group(list(base)), group(list(same))]) == [1]
    assert best_of(column, [group(list(base)), group(list(noisy - noisy.mean() + base.mean() + 0.5))]) == []
    by_seeds = [
        Group([Run("r", Path("r"), None, None, 0)] * 3, {}, {"elbo": Summary(mean, sd)})  # type: ignore[arg-type]
        for mean, sd in ((-100.0, 1.0), (-99.0, 1.0))
    ]
    assert best_of(column, by_seeds) == []  # 1 is less than 2 sqrt(2 / 3)
    by_seeds[1].values["elbo"] = Summary(-98.0, 1.0)
    assert best_of(column, by_seeds) == [1]


# ---- the caller's generators


def test_generators_set_aside_are_those_of_every_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[int]] = []

    @contextlib.contextmanager
    def fork(devices: object) -> Iterator[None]:
        kept.append(list(devices))  # type: ignore[call-overload]
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    for used in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with device.aside():
            pass
    assert kept == [[], [0, 1]]


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_is_seeded_aside_changes_no_generator(where: str) -> None:
    torch.randn(3, device=where)
    state = torch.get_rng_state() if where == "cpu" else torch.cuda.get_rng_state()
    with device.aside():
        device.seed(5, "anything")
        first = torch.randn(3, device=where)
    assert torch.equal(state, torch.get_rng_state() if where == "cpu" else torch.cuda.get_rng_state())
    with device.aside():
        device.seed(5, "anything")
        assert torch.equal(first, torch.randn(3, device=where))
