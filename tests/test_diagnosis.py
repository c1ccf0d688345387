"""Statistics against numpy in one go, on codes streamed in odd batches; verdicts on constructed cases."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, Result
from torch import Tensor

from vaecli import data
from vaecli.analysis import advice, diagnosis, tables
from vaecli.analysis.advice import Evidence
from vaecli.analysis.codes import make as make_codes
from vaecli.analysis.diagnosis import Verdict, verdict, warn_while_training, with_past
from vaecli.analysis.gathering import latent_statistics, limited
from vaecli.analysis.statistics import Moments, Statistics
from vaecli.analysis.told import varying_factors
from vaecli.batch import Batch, DataInfo
from vaecli.errors import InputError
from vaecli.models import annealed_vae
from vaecli.models import vae as vae_model
from vaecli.models.base import Hyper, Level, Model, ModelConfig, Values
from vaecli.objectives.distributions import Gaussian, Point
from vaecli.training import checkpoint
from vaecli.training.rundir import Past

Vae = Callable[..., Result]


class Known(Model):
    """q(z|x) is read off the image: the first D pixels are the mean, the next D the log-variance."""

    def __init__(self, latents: int, deterministic: bool = False) -> None:
        super().__init__(ModelConfig(name="known"), DataInfo("random", (1, 1, 2 * latents), 100))
        kind = "point" if deterministic else "gaussian"
        self.levels = (Level("z", (latents,), kind, standard=not deterministic),)

    def q(self, level: str, features: Tensor, given: Values) -> Gaussian | Point:
        mean_BD, logvar_BD = features.flatten(1).chunk(2, dim=1)
        return Point(mean_BD) if self.levels[0].kind == "point" else Gaussian(mean_BD, logvar_BD)

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return -values["z"].square().sum(dim=1)


def batches(x_BCHW: Tensor, sizes: list[int]) -> Iterator[Batch]:
    start = 0
    for size in sizes:
        yield Batch(x_BCHW[start : start + size], torch.arange(start, start + size))
        start += size


def codes(n: int, latents: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Tensor]:
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(n, latents)) * np.linspace(0.01, 2, latents) + np.linspace(-3, 3, latents)
    logvar = rng.normal(size=(n, latents)) - 2
    x = np.concatenate([mean, logvar], axis=1).astype(np.float32)
    mean, logvar = np.split(x.astype(np.float64), 2, axis=1)
    return mean, logvar, torch.from_numpy(x)[:, None, None, :]


def test_statistics_equal_numpy_in_float64() -> None:
    n, latents = 1009, 6
    mean, logvar, x = codes(n, latents)
    seen: list[int] = []
    torch.manual_seed(0)
    stats = latent_statistics(Known(latents), batches(x, [1, 2, 500, 7, 0, 499]), {}, seen.append)
    sigma2 = np.exp(logvar)
    kl = 0.5 * (mean**2 + sigma2 - logvar - 1)
    assert stats.n == n and sum(seen) == n
    np.testing.assert_allclose(stats.mean_D.numpy(), mean.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.var_D.numpy(), mean.var(axis=0), rtol=1e-11)
    np.testing.assert_allclose(stats.sigma2_D.numpy(), sigma2.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.total_D.numpy(), mean.var(axis=0) + sigma2.mean(axis=0), rtol=1e-11)
    np.testing.assert_allclose(stats.kl_D.numpy(), kl.mean(axis=0), rtol=1e-5)  # the model computes it in float32
    assert stats.kl == pytest.approx(kl.sum(axis=1).mean(), rel=1e-5)
    assert stats.active_D.tolist() == (mean.var(axis=0) > 0.01).tolist() == [False] + [True] * 5
    assert stats.order() == np.argsort(-kl.mean(axis=0)).tolist()
    # E_q[|z|^2] = mean^2 + sigma^2 has a closed form; one draw an image comes within its standard error.
    expected = (mean**2 + sigma2).sum(axis=1).mean()
    assert abs(stats.recon - expected) < 4 * stats.recon_error < 0.2 * expected
    assert stats.elbo == pytest.approx(-(stats.recon + stats.kl), rel=1e-15)


def test_standard_error_of_the_elbo_is_that_of_the_sums() -> None:
    mean, _, x = codes(301, 3)
    model = Known(3)
    x[..., 3:] = -200.0  # no noise to speak of: z is the mean
    stats = latent_statistics(model, batches(x, [100, 100, 101]), {})
    per_image = (mean**2).sum(axis=1) + 0.5 * (mean**2 + 200 - 1).sum(axis=1)
    assert stats.recon_error == pytest.approx((mean**2).sum(axis=1).std(ddof=1) / math.sqrt(301), rel=1e-4)
    assert stats.elbo_error == pytest.approx(per_image.std(ddof=1) / math.sqrt(301), rel=1e-4)


def test_moments_stay_exact_far_from_zero() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=20_000) + 1e8  # E[x^2] - E[x]^2 has no correct digit here
    moments = Moments()
    for part in np.array_split(values, 37):
        moments.add(torch.from_numpy(part))
    assert moments.n == 20_000
    assert float(moments.mean) == pytest.approx(values.mean(), rel=1e-15)
    assert float(moments.variance) == pytest.approx(values.var(), rel=1e-9)


def test_same_seed_same_numbers() -> None:
    _, _, x = codes(64, 4)

    def recon(seed: int) -> float:
        return latent_statistics(Known(4), batches(x, [64]), {}, seed=seed).recon

    assert recon(1) == recon(1) != recon(2)


def test_deterministic_code_has_no_kl_and_orders_by_variance() -> None:
    mean, _, x = codes(200, 4)
    stats = latent_statistics(Known(4, deterministic=True), batches(x, [150, 50]), {})
    assert stats.kl is None and stats.elbo is None and stats.sigma2_D is None and stats.total_D is None
    assert stats.recon == pytest.approx((mean**2).sum(axis=1).mean(), rel=1e-6)  # z is the code itself
    assert stats.order() == [3, 2, 1, 0]
    headers, rows, _ = tables.table_rows(stats, ["a", "b", "c", "d"])
    assert [row[0] for row in rows] == ["d", "c", "b", "a"]
    assert headers == ["latent", "mean mu", "var mu", "status"]  # what there is none of has no column


def test_no_images_is_an_error() -> None:
    with pytest.raises(InputError, match="no images"):
        latent_statistics(Known(2), iter([]), {})


@pytest.mark.parametrize(("limit", "sizes"), [(0, []), (3, [3]), (4, [4]), (6, [4, 2]), (99, [4, 4, 1])])
def test_limited_cuts_inside_a_batch(limit: int, sizes: list[int]) -> None:
    x = torch.arange(9.0).reshape(9, 1, 1, 1)
    parts = list(limited(batches(x, [4, 4, 1]), limit))
    assert [len(part.x_BCHW) for part in parts] == sizes
    assert [i for part in parts for i in part.index_B.tolist()] == list(range(min(limit, 9)))


def test_variance_law_holds_at_the_optimum_of_a_linear_vae() -> None:
    # PPCA: s2_i = s^2 / lambda_i and Var[mu_i] = 1 - s^2 / lambda_i; collapsed where lambda_i <= s^2.
    lambdas, noise = np.array([9.0, 4.0, 1.5]), 1.0
    rng = np.random.default_rng(0)
    white = rng.normal(size=(500, 3))
    white = (white - white.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T, bias=True))).T
    mean = white * np.sqrt(1 - noise / lambdas)
    x = np.concatenate([mean, np.broadcast_to(np.log(noise / lambdas), mean.shape)], axis=1)
    stats = latent_statistics(Known(3), batches(torch.from_numpy(x)[:, None, None], [500]), {})
    np.testing.assert_allclose(stats.total_D.numpy(), 1.0, rtol=1e-9)
    np.testing.assert_allclose(stats.kl_D.numpy(), 0.5 * np.log(lambdas / noise), rtol=1e-9)
    assert verdict(stats).name == "healthy" and len(verdict(stats).sentences) == 1


# ------------------------------------------------------------------------------------------------------------ verdicts


def made(var: list[float], kl: list[float], **changes: object) -> Statistics:
    """Latents that obey the variance law."""
    var_D = torch.tensor(var, dtype=torch.float64)
    stats = Statistics(
        n=1000,
        mean_D=torch.zeros_like(var_D),
        var_D=var_D,
        sigma2_D=1 - var_D,
        kl_D=torch.tensor(kl, dtype=torch.float64),
        recon=50.0,
        recon_error=0.1,
        elbo_error=0.1,
    )
    return replace(stats, **changes)  # type: ignore[arg-type]


NAMES = [f"z{d}" for d in range(10)]
ALL = made([0.9] * 10, [2.0] * 10)
SEVEN = made([0.9] * 7 + [1e-4] * 3, [2.0] * 7 + [1e-3] * 3)
TWO = made([0.9] * 2 + [1e-4] * 8, [2.0] * 2 + [1e-3] * 8)
NONE = made([1e-5] * 10, [1e-5] * 10)


def test_healthy() -> None:
    name, sentences = verdict(ALL, NAMES, {"beta": 1.0})
    assert name == "healthy" and len(sentences) == 1
    assert "10 of 10" in sentences[0] and "20 nats" in sentences[0]


def test_spare_latents_are_no_fault() -> None:
    name, sentences = verdict(SEVEN, NAMES, {"beta": 4.0}, factors=5)
    assert name == "healthy"
    assert "z7, z8, z9" in sentences[1] and "beta = 4" in sentences[1] and "5 factors" in sentences[1]


def test_fewer_active_latents_than_factors() -> None:
    name, sentences = verdict(TWO, NAMES, {"beta": 16.0}, factors=5, step=10**6)
    assert name == "partly collapsed"
    assert "5 factors" in sentences[1] and "--set model.beta=4" in sentences[-1]


def test_mostly_unused_without_known_factors() -> None:
    name, sentences = verdict(TWO, NAMES)
    assert name == "partly collapsed" and "latent_dim 2" in sentences[1]


@pytest.mark.parametrize(
    ("hyper", "step", "remedy"),
    [
        ({"beta": 8.0}, 50_000, "--set model.beta=2"),
        ({"beta_norm": 0.1}, 50_000, "--set model.beta_norm=0.025"),
        ({"gamma": 1000.0, "capacity": 0.0}, 50_000, "larger capacity"),
        ({"likelihood.sigma": 1.0}, 50_000, "--set model.likelihood.sigma=0.25"),
        ({"beta": 1.0}, 50_000, "warm the KL up"),
        ({}, None, "warm the KL up"),
        ({"beta": 8.0}, 10, "train longer"),
    ],
)
def test_collapsed_with_the_cheapest_remedy(hyper: dict[str, float], step: int | None, remedy: str) -> None:
    name, sentences = verdict(NONE, NAMES, hyper, step=step)
    assert name == "collapsed" and "0 of 10" in sentences[0] and remedy in sentences[-1]


def test_kl_paid_for_nothing_is_collapse() -> None:
    constant = made([1e-6] * 4, [3.0] * 4, sigma2_D=torch.full((4,), 0.01))
    name, sentences = verdict(constant)
    assert name == "collapsed" and "same for every image" in sentences[1]


def test_variance_law_broken_is_said_with_numbers() -> None:
    moved = torch.zeros(10, dtype=torch.float64)
    moved[4] = 0.5
    name, sentences = verdict(replace(ALL, mean_D=moved), NAMES)
    assert name == "undertrained" and "z4 has mean 0.50" in sentences[1] and "1 of 10" in sentences[1]
    assert len(verdict(replace(ALL, mean_D=moved), NAMES, standard_prior=False).sentences) == 1


def test_nan_is_named_and_never_healthy() -> None:
    kl_D = torch.full((10,), 2.0, dtype=torch.float64)
    kl_D[6] = math.nan
    broken = replace(ALL, kl_D=kl_D)
    assert verdict(broken, NAMES).name == "not finite" and "z6" in verdict(broken, NAMES).sentences[0]
    assert broken.order()[-1] == 6
    assert verdict(replace(ALL, recon=math.inf), NAMES).name == "not finite"
    assert [row[1] for row in tables.table_rows(broken, NAMES)[1]][-1] == "n/a"


def test_codes_of_an_autoencoder() -> None:
    code = made([1e-9, 5.0, 400.0], [0.0] * 3, sigma2_D=None, kl_D=None, elbo_error=None)
    name, sentences = verdict(code)
    assert name == "partly collapsed" and "z0" in sentences[1] and code.active == 2
    assert verdict(replace(code, var_D=torch.tensor([1e-6, 2e-6, 1e-6]).double())).name == "healthy"
    assert verdict(replace(code, var_D=torch.zeros(3).double())).name == "collapsed"


# ----------------------------------------------------------------------------------------------- verdicts on the prior

FINE = Evidence(mi=6.8, auc=0.77, auc_error=0.003, moment_kl=0.09, weight=1.0)
LOW = made([0.7] * 4, [0.6] * 4, n=10_000)  # 2.4 nats, where 10,000 images take 9.2


def test_evidence_of_a_sound_model_is_told_and_no_fault() -> None:
    name, sentences = verdict(ALL, NAMES, {"beta": 1.0}, evidence=FINE)
    assert name == "healthy" and "6.8 of the 6.91 nats" in sentences[1] and "AUC 0.77" in sentences[2]
    # A rate far above log N and narrow posteriors are what a sound VAE has (MNIST: 20 nats, log N = 9.2).
    rich = made([0.995] * 10, [2.6] * 10)
    assert verdict(rich, NAMES, evidence=FINE).name == "healthy"


@pytest.mark.parametrize(
    ("hyper", "evidence", "remedy"),
    [
        ({"beta": 16.0}, None, "--set model.beta=4"),
        ({"beta": 16.0}, Evidence(mi=2.2, weight=16.0), "--set model.beta=4"),
        ({"beta_norm": 0.2}, None, "--set model.beta_norm=0.05"),
        ({"gamma": 1000.0, "capacity": 2.4}, None, "larger capacity"),
        ({"likelihood.sigma": 1.0}, Evidence(weight=25.0, sigma=1.0, gamma=0.2), "--set model.likelihood.sigma=0.2 "),
    ],
)
def test_over_regularised(hyper: dict[str, float], evidence: Evidence | None, remedy: str) -> None:
    name, sentences = verdict(LOW, None, hyper, step=50_000, evidence=evidence)
    assert name == "over-regularised" and "half of the 9.21" in sentences[-2] and remedy in sentences[-1]


@pytest.mark.parametrize(
    ("stats", "hyper", "step"),
    [
        (LOW, {"beta": 1.0}, 50_000),  # at weight 1 the data are not worth more
        (LOW, {"beta": 16.0}, 500),  # early
        (LOW, {"gamma": 1000.0, "capacity": 25.0}, 50_000),  # the capacity is not what holds it back
        (replace(LOW, kl_D=2 * LOW.kl_D), {"beta": 16.0}, 50_000),  # 4.8 of 9.2
    ],
)
def test_not_over_regularised(stats: Statistics, hyper: dict[str, float], step: int) -> None:
    assert verdict(stats, None, hyper, step=step).name == "healthy"


def test_a_learned_sigma_is_not_blamed() -> None:
    # `likelihood.sigma` is where it started; only the diagnosis knows whether it is fixed.
    assert verdict(LOW, None, {"likelihood.sigma": 1.0}, step=50_000).name == "healthy"


def test_prior_mismatch_by_the_classifier() -> None:
    far = replace(FINE, auc=0.99)
    name, sentences = verdict(ALL, NAMES, evidence=far)
    assert name == "prior mismatch" and "AUC 0.990" in sentences[1] and "train longer" in sentences[-1]
    assert verdict(ALL, NAMES, evidence=replace(far, auc=0.954, auc_error=0.003)).name == "healthy"  # within the error
    assert verdict(TWO, NAMES, evidence=far).name == "partly collapsed"  # the graver fault first


def test_prior_mismatch_by_moments_needs_no_diagnosis() -> None:
    shifted = replace(ALL, mean_D=torch.full((10,), 0.7, dtype=torch.float64))
    assert shifted.moment_kl == pytest.approx(0.5 * 10 * 0.49)
    name, sentences = verdict(shifted, NAMES)
    assert name == "prior mismatch" and "2.45 nats" in sentences[-2] and "Not at rest" in sentences[1]
    assert verdict(shifted, NAMES, standard_prior=False).name == "healthy"
    assert verdict(replace(shifted, kl_D=10 * ALL.kl_D), NAMES).name == "undertrained"  # little of a rate of 200 nats
    assert verdict(replace(shifted, n=50), NAMES).name == "not judged"


def test_of_few_images_nothing_is_called_healthy() -> None:
    for hyper in ({"beta": 16.0}, {"beta": 1e-4}, None):
        name, sentences = verdict(replace(ALL, n=99), NAMES, hyper)
        assert name == "not judged" and "99 images are too few" in sentences[-1] and "100" in sentences[-1]
    assert verdict(replace(ALL, n=100), NAMES).name == "healthy"


def test_of_a_handful_of_images_no_latents_are_counted() -> None:
    """Of 2 images one latent in a few is alike by chance."""
    name, sentences = verdict(replace(TWO, n=19), NAMES, factors=5)
    assert name == "not judged" and "5 factors" not in " ".join(sentences)
    assert verdict(replace(TWO, n=20), NAMES, factors=5).name == "partly collapsed"


def test_what_is_fitted_in_closed_form_is_not_told_to_train(vae: Vae) -> None:
    options = ("--data", "squares", "--model", "linear-vae", "--latent-dim", 3, "--runs-dir", "runs", "-q")
    for name, variance in (("low", 0.01), ("high", 1000.0)):
        assert vae("train", *options, "-S", f"model.variance={variance}", "--name", name).code == 0
    model = checkpoint.load("runs/low", torch.device("cpu")).model
    shifted = replace(ALL, mean_D=ALL.mean_D + 1.0)
    assert "train longer" in " ".join(verdict(shifted, NAMES, {"beta": 1.0}, step=10**6).sentences)
    found = verdict(shifted, NAMES, {"beta": 1.0}, step=0, model=model)
    assert found.name == "prior mismatch" and found.sentences[-1].startswith("First: a larger beta")
    assert "train longer" not in " ".join(found.sentences)
    collapsed = json.loads(vae("analyze", "runs/high", "--json").out)["verdict"]
    assert collapsed["name"] == "collapsed" and "smaller variance" in collapsed["sentences"][-1]


def test_factors_are_counted_where_each_varies_for_itself() -> None:
    """A part of a grid, in which sampling leaves little dependence; not a class alone, nor attributes that go with each
    other, nor a class that another column refines."""
    rng = np.random.default_rng(0)

    def count(factors_NK: np.ndarray) -> int | None:
        names = [f"f{k}" for k in range(factors_NK.shape[1])]
        return varying_factors(make_codes(rng.normal(size=(len(factors_NK), 2)), None, factors_NK, names))

    grid = np.stack(np.meshgrid(*map(np.arange, (3, 6, 40, 32)), indexing="ij"), axis=-1).reshape(-1, 4)
    constant = np.zeros((len(grid), 1), dtype=int)
    assert count(np.concatenate([grid, constant], axis=1)) == 4
    assert count(grid[rng.permutation(len(grid))[:60]]) == 4
    classes = rng.integers(10, size=(500, 1))
    assert count(classes) is None
    assert count(np.concatenate([classes, 3 * classes + rng.integers(3, size=(500, 1))], axis=1)) is None
    common = rng.normal(size=(500, 1))
    assert count((common + rng.normal(size=(500, 40)) > 0).astype(int)) is None


def test_worse_than_one_constant_image_is_undertrained() -> None:
    assert ALL.recon is not None and ALL.kl is not None
    better = replace(ALL, blank=ALL.recon + ALL.kl + 1.0, blank_error=0.1)
    assert verdict(better, NAMES, step=50_000).name == "healthy"
    worse = replace(ALL, blank=0.5 * ALL.recon, blank_error=0.1)
    name, sentences = verdict(worse, NAMES, step=50_000)
    assert name == "undertrained" and f"{0.5 * ALL.recon:.4g} nats in place of {ALL.recon:.4g}" in sentences[1]
    assert "smaller --set optim.lr" in sentences[2]
    assert "train longer than 50 steps" in verdict(worse, NAMES, step=50)[1][-1]
    # Reconstructed well, at a price that is not worth it: 20 nats for a gain of 5.
    heavy = replace(worse, recon_error=0.9 * ALL.recon)  # a few images blew up: the error is as large as what it is of
    assert verdict(heavy, NAMES).name == "undertrained"
    dear = replace(ALL, blank=ALL.recon + 5.0, blank_error=0.1)
    name, sentences = verdict(dear, NAMES, {"beta": 1.0}, step=50_000)
    assert name == "undertrained" and "The KL of 20 nats costs more" in sentences[1] and "= 5 nats" in sentences[1]
    noisy = replace(dear, blank_error=6.0)  # 15 nats are within three standard errors
    assert verdict(noisy, NAMES, step=50_000).name == "healthy"


def test_a_kl_that_is_not_paid_for_is_under_regularised_of_any_number_of_images(vae: Vae) -> None:
    """beta = 1e-4: the rate is far above what the latents gain, and 51 images are enough to see it."""
    options = ("--steps", 400, "--lr", 1e-2, "--runs-dir", "runs", "-q")
    run = vae("train", *TINY, "--model", "beta-vae", "--beta", 1e-4, *options).out.strip()
    record = json.loads(vae("analyze", run, "--json").out)
    assert record["n"] == 51 and record["verdict"]["name"] == "under-regularised", record["verdict"]
    assert "--set model.beta=1" in record["verdict"]["sentences"][-1]


def test_a_handful_of_images_is_no_evidence_against_a_model() -> None:
    """Their own mean image is near each of them: of three it is a better rival than of all."""
    poor = replace(ALL, recon=100.0, blank=50.0, blank_error=0.1, recon_error=0.1)
    assert verdict(replace(poor, n=19), NAMES).name == "not judged"
    assert verdict(replace(poor, n=20), NAMES).name == "undertrained"
    alone = verdict(replace(poor, n=1), NAMES)
    assert alone.name == "not judged" and "One image" in alone.sentences[0]


def test_a_held_out_elbo_that_was_better_is_overfitted() -> None:
    held_out, train = [(100, -120.0), (200, -100.0), (300, -130.0)], [(100, -110.0), (200, -90.0), (300, -70.0)]
    past, info = Past(held_out, train, 200), DataInfo("toy", (1, 4, 4), 100)
    plain = vae_model.Model(vae_model.Config(latent_dim=2, net={"name": "mlp", "hidden": [4]}), info)
    rising = annealed_vae.Model(annealed_vae.Config(latent_dim=2, net={"name": "mlp", "hidden": [4]}), info)
    for name in ("healthy", "undertrained", "not judged"):
        said = Verdict(name, ["about.", "more.", "First: train longer."])
        found = with_past(said, past, 300, plain)
        assert found.name == "overfitted" and found.sentences[:2] == ["about.", "more."]
        assert "was -100 nats at step 200 and is -130 at step 300" in found.sentences[2]
        assert "`checkpoints/best` of step 200" in found.sentences[3] and "--steps 200" in found.sentences[3]
        assert "train longer" not in " ".join(found.sentences)
        best = with_past(said, past, 200, plain)  # of the best checkpoint itself, from which the run went on
        assert best.name == name and best.sentences[:2] == ["about.", "more."] and len(best.sentences) == 3
        assert "will not help: the ELBO" in best.sentences[2] and "-130 at step 300" in best.sentences[2]
        assert with_past(said, past, 100, plain) == said  # the best is yet to come
        assert with_past(said, past, 300, rising) == said  # what is asked for changes
        assert with_past(said, None, 300, plain) == said
        assert with_past(said, Past(held_out[:1], train, 100), 300, plain) == said
        fallen = Past(held_out, [(100, -90.0), (200, -90.0), (250, -95.0), (300, -99.0)], 200)
        assert with_past(said, fallen, 300, plain) == said  # it went wrong, and learned nothing by heart
        for now, wanted in ((-105.9, name), (-106.1, "overfitted")):
            near = Past([(200, -100.0), (300, now)], train, None)
            assert with_past(said, near, 300, plain).name == wanted
        later = with_past(said, Past([*held_out, (400, -90.0)], train, 400), 300, plain)  # the best is yet to come
        assert later.name == "overfitted" and "checkpoints" not in " ".join(later.sentences)
        unsaved = with_past(said, Past(held_out, train, 300), 300, plain)
        assert "checkpoints" not in " ".join(unsaved.sentences) and "--steps 200" in unsaved.sentences[-1]
    also = with_past(Verdict("partly collapsed", ["about.", "First: this."]), past, 300, plain)
    assert also.name == "partly collapsed" and "Overfitted" in also.sentences[2] and "Then:" in also.sentences[3]
    more = Verdict("undertrained", ["about.", "First: train longer. Weight decay does it too."])
    assert with_past(more, past, 200, plain).sentences[2] == "Weight decay does it too."
    calm = Verdict("partly collapsed", ["about.", "First: --beta 1."])
    assert with_past(calm, past, 200, plain) == calm  # longer training was not advised
    for other in (Verdict("not finite", ["NaN."]), Verdict("not judged", [diagnosis.ONE_IMAGE])):
        assert with_past(other, past, 300, plain) == other


def test_too_long_a_training_on_few_images_is_called_so(vae: Vae) -> None:
    """By `train` and by `analyze`, from what the run itself wrote down; not of its best checkpoint."""
    few = ("-S", "data.limit=60", "-S", "data.holdout=20", "-S", "model.net={name: mlp, hidden: [64]}")
    done = vae(
        "train", "--data", "digits", *few, "--model", "vae", "--latent-dim", 4, "--steps", 1500, "--lr", 3e-3,
        "--batch-size", 32, "-S", "train.eval_every=100", "-S", "train.save_every=100",
        "-S", "model.likelihood={name: gaussian, sigma: 0.1}", "--runs-dir", "runs", "--name", "r",
    )  # fmt: skip
    assert done.code == 0 and "verdict: overfitted" in done.err, done.err
    record = json.loads(vae("analyze", "runs/r", "--json").out)
    assert record["verdict"]["name"] == "overfitted"
    assert vae("analyze", "runs/r", "--fail-if", "overfitted").code == 6
    best = json.loads(vae("analyze", "runs/r/checkpoints/best", "--json").out)
    assert best["step"] < 1500 and best["verdict"]["name"] != "overfitted"
    assert not any(sentence.startswith("First: train longer") for sentence in best["verdict"]["sentences"])
    assert f"`checkpoints/best` of step {best['step']:,}" in record["verdict"]["sentences"][-1]
    one = json.loads(vae("analyze", "runs/r", "--limit", 1, "--json").out)
    assert one["verdict"]["name"] == "not judged"
    kept = done.err.replace("\n", " ")
    again = vae(
        "train", "--data", "digits", "-S", "data.limit=60", "-S", "data.holdout=0", *few[4:], "--model", "vae",
        "--latent-dim", 4, "--steps", 300, "--batch-size", 32, "--runs-dir", "runs", "--name", "all", "-q",
    )  # fmt: skip
    assert again.code == 0 and "overfitted" in kept and "overfitted" not in again.err


def test_the_mean_image_costs_what_it_costs(vae: Vae) -> None:
    run = vae("train", *TINY, "--model", "vae", "--steps", 2, "--runs-dir", "runs", "-q").out.strip()
    loaded = checkpoint.load(run, torch.device("cpu"))
    view = data.load(loaded.config.data).split("val")
    stats = diagnosis.latent_statistics(loaded.model, view.batches(20), loaded.hyper)
    x = view.take(1000).x_BCHW.double()
    p = x.mean(dim=0).clamp(0.001, 0.999)
    each = -(x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(dim=1)
    assert stats.blank == pytest.approx(float(each.mean()), rel=1e-5)
    assert stats.blank_error == pytest.approx(float(each.std() / len(x) ** 0.5), rel=1e-4)


def test_the_mean_image_is_of_images_from_all_over(vae: Vae) -> None:
    """Of a set in order, 3,000 black images and then 3,000 white ones, and the same in any batches: their mean is grey,
    ln 2 a pixel, where that of the first 2,000 is black."""
    run = vae("train", *TINY, "--model", "vae", "--steps", 1, "--runs-dir", "runs", "-q").out.strip()
    model = checkpoint.load(run, torch.device("cpu")).model
    x_NCHW = (torch.arange(6000) >= 3000).float()[:, None, None, None].expand(-1, *model.info.shape)

    def blank(size: int) -> float | None:
        parts = torch.arange(6000).split(size)
        return latent_statistics(model, (Batch(x_NCHW[i], i) for i in parts), model.hyper(1)).blank

    assert blank(512) == pytest.approx(model.info.pixels * math.log(2), rel=1e-2)
    assert blank(512) == pytest.approx(blank(1999), rel=1e-6)


def test_advice_speaks_of_no_setting_that_does_nothing_and_is_given_once() -> None:
    for variance, told in (("fixed", True), ("optimal", False), ("learned", False), ("running", False)):
        config = vae_model.Config(name="vae", latent_dim=3, likelihood={"name": "gaussian", "variance": variance})
        model = vae_model.Model(config, DataInfo("toy", (1, 16, 16), 100))
        hyper = {"likelihood.sigma": 1.0}
        assert (advice.levers(hyper, model).sigma is not None) == told
        assert ("likelihood.sigma=" in advice.remedy(advice.levers(hyper, model), 50_000)) == told
    shifted = replace(ALL, mean_D=torch.full((10,), 0.7, dtype=torch.float64))
    said = " ".join(verdict(shifted, NAMES)[1])
    assert said.count("First:") == 1 and said.count("train longer") == 1 and "Then:" in said


def test_under_regularised() -> None:
    # Ten times the prior's scale: the KL is hardly felt.
    wide = replace(ALL, var_D=torch.full((10,), 100.0).double(), sigma2_D=torch.full((10,), 0.01).double())
    wide = replace(wide, kl_D=torch.full((10,), 50.0).double())
    name, sentences = verdict(wide, NAMES, {"beta": 0.001})
    assert name == "under-regularised" and "500 nats, is more than the 6.91" in sentences[-3]
    assert sentences[-1].endswith("--set model.beta=1.")
    # In scale, but weighed little and told from the prior.
    evidence = Evidence(mi=6.9, auc=1.0, auc_error=0.0, moment_kl=0.1, weight=0.003, sigma=0.01, gamma=0.18)
    name, sentences = verdict(ALL, NAMES, {"likelihood.sigma": 0.01}, evidence=evidence)
    assert name == "under-regularised" and "--set model.likelihood.sigma=0.18" in sentences[-1]
    assert verdict(ALL, NAMES, evidence=replace(evidence, auc=0.7)).name == "healthy"
    assert verdict(ALL, NAMES, evidence=replace(evidence, weight=1.0)).name == "prior mismatch"


def test_every_verdict_has_its_name() -> None:
    found = {verdict(s).name for s in (ALL, TWO, NONE, replace(ALL, recon=math.nan))}
    assert found < set(diagnosis.VERDICTS) and len(diagnosis.VERDICTS) == 10


def test_codes_without_a_model_have_no_reconstruction() -> None:
    stats = replace(ALL, recon=None, recon_error=None, elbo_error=None)
    assert stats.elbo is None and verdict(stats).name == "healthy" and "reconstruction" not in verdict(stats)[1][0]
    assert tables.totals_text(stats) == (
        "KL 20.000 nats; 10 of 10 latents active by var mu > 0.01; 10 with KL > 0.01 nats; 1,000 images"
    )


# ------------------------------------------------------------------------------------------------------ while training


def test_a_collapse_is_called_while_training() -> None:
    said = warn_while_training([0.001] * 10, 5000, 50_000, {"beta": 8.0})
    assert said is not None and said.startswith("collapsed so far: KL 0.01 nats in all 10") and "model.beta=2" in said
    assert "5,000 steps" in said and "\n" not in said


@pytest.mark.parametrize(
    ("kl", "step", "steps", "hyper"),
    [
        ([0.001] * 10, 900, 2000, {}),  # early for any run
        ([0.001] * 10, 5000, 300_000, {}),  # early for this one
        ([0.001] * 9 + [0.2], 5000, 50_000, {}),  # one latent is enough
        ([0.001] * 10, 5000, 50_000, {"gamma": 1000.0, "capacity": 0.05}),  # as the schedule wants it
        ([], 5000, 50_000, {}),
    ],
)
def test_no_false_alarm_while_training(kl: list[float], step: int, steps: int, hyper: dict[str, float]) -> None:
    assert warn_while_training(kl, step, steps, hyper) is None


def test_a_kl_that_is_not_finite_is_called_at_once() -> None:
    said = warn_while_training([1.0, None, math.inf], 10)
    assert said is not None and "z1, z2" in said and said.startswith("not finite")


def test_latents_that_are_active_in_vain_are_counted_apart() -> None:
    stats = made([0.5, 0.5, 0.5, 0.5], [1.0, 0.5, 0.009, 0.001])
    assert stats.active == 4 and stats.worth == 2
    assert "var mu > 0.01, 2 with a KL above 0.01 nats" in verdict(stats)[1][0]


def test_rows_are_ordered_and_inactive_ones_dimmed() -> None:
    stats = made([0.001, 0.9, 0.5], [0.01, 1.25, 2.5])
    headers, rows, styles = tables.table_rows(stats, ["a", "b", "c"])
    assert list(headers) == ["latent", "KL (nats)", "mean mu", "var mu", "mean sigma^2", "sum", "status"]
    assert rows[0] == ["c", "2.5000", "0.0000", "0.5000", "0.5000", "1.0000", "active"]
    assert [row[0] for row in rows] == ["c", "b", "a"] and styles == [None, None, "dim"]


def test_sampling_noise_is_no_unrest() -> None:
    """Few images of a model at rest: their mean and variance are off by what chance allows, and nothing is said."""
    generator = torch.Generator().manual_seed(0)
    for n in (51, 150, 2000):
        mean_ND = torch.randn(n, 10, generator=generator, dtype=torch.float64) * 0.95
        sigma2_D = torch.full((10,), 1 - 0.95**2, dtype=torch.float64)
        var_D = mean_ND.var(dim=0, unbiased=False)
        stats = Statistics(n, mean_ND.mean(dim=0), var_D, sigma2_D, torch.ones(10), 10.0, 0.1, 0.1)
        assert not any("Not at rest" in s for s in verdict(stats).sentences)
        moved = Statistics(n, mean_ND.mean(dim=0) + 0.8, var_D, sigma2_D, torch.ones(10), 10.0, 0.1, 0.1)
        assert any("Not at rest" in s for s in verdict(moved).sentences) == (n > 100)
