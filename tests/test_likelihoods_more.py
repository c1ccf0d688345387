"""Likelihoods beside Bernoulli and Gaussian: values, normalisation, means; and the running variance."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from pydantic import TypeAdapter
from torch import Tensor
from torch import distributions as dist

from vaecli.objectives import likelihoods, terms
from vaecli.objectives.likelihoods import GaussianLikelihoodConfig

READ: TypeAdapter[Any] = TypeAdapter(likelihoods.LikelihoodConfig)
F64 = torch.float64


def made(written: Any) -> likelihoods.Likelihood:
    return likelihoods.build(READ.validate_python(written)).double()


def images(seed: int, shape: tuple[int, ...] = (4, 1, 3, 5)) -> Tensor:
    return torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_laplace_is_torchs(variance: str) -> None:
    x, out = images(0), images(1)
    likelihood = made({"name": "laplace", "variance": variance, "scale": 0.3})
    if variance == "learned":
        likelihood.log_scale.data.fill_(math.log(0.3))  # which was rounded to float32
    exact = dist.Laplace(out, 0.3).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(x, out, {}), exact, rtol=1e-12, atol=1e-12)
    # A learned scale has its maximum at the mean absolute error.
    if variance == "learned":
        best = math.log(float((x - out).abs().mean()))
        likelihood.log_scale.data.fill_(best)
        (slope,) = torch.autograd.grad(likelihood.log_prob(x, out, {}).sum(), likelihood.log_scale)
        assert float(slope) == pytest.approx(0.0, abs=1e-10)


def test_continuous_bernoulli_is_a_density() -> None:
    """Against torch's, whose own series is only good to 1e-4 near 1/2, and by its integral everywhere."""
    logits = torch.tensor([-40.0, -5.0, -0.3, -0.0999, -0.01, 0.0, 1e-6, 0.05, 0.1001, 2.0, 30.0], dtype=F64)
    x = torch.linspace(0, 1, 20_001, dtype=F64)
    each = x[:, None, None, None].expand(-1, 1, 1, 1)
    for logit in logits.tolist():
        log_p = terms.continuous_bernoulli_log_prob(each, torch.full_like(each, logit))
        assert float(torch.trapezoid(log_p.exp(), x)) == pytest.approx(1.0, abs=2e-6), logit
        mean = float(torch.trapezoid(log_p.exp() * x, x))
        found = float(terms.continuous_bernoulli_mean(torch.tensor(logit, dtype=F64)))
        assert found == pytest.approx(mean, abs=2e-6), logit
    far = torch.tensor([[-3.0, 1.5, 4.0]], dtype=F64)[:, None]
    x = images(2, (1, 1, 1, 3))
    exact = dist.ContinuousBernoulli(logits=far[None]).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(terms.continuous_bernoulli_log_prob(x, far[None]), exact, rtol=1e-9, atol=1e-9)


def test_continuous_bernoulli_series_meets_the_formula() -> None:
    """Where one takes over from the other both are right to 1e-10, and the gradient has no step."""
    logit = torch.tensor([0.0999999, 0.1000001], dtype=F64, requires_grad=True)
    value = terms._log_constant(logit)
    exact = (logit / torch.tanh(logit / 2)).log()
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-10)
    (slope,) = torch.autograd.grad(value.sum(), logit)
    (wanted,) = torch.autograd.grad(exact.sum(), logit)
    torch.testing.assert_close(slope, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["laplace", "continuous-bernoulli", "discretized-logistic"])
def test_raw_is_the_inverse_of_mean(name: str) -> None:
    likelihood = made(name)
    mean = torch.tensor([0.001, 0.2, 0.5, 0.77, 0.999], dtype=F64)
    torch.testing.assert_close(likelihood.mean(likelihood.raw(mean)), mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("mean", "scale"), [(0.3, 0.1), (-0.2, 0.02), (1.4, 0.5), (0.5, 1e-3)])
def test_discretized_logistic_probabilities_sum_to_one(levels: int, mean: float, scale: float) -> None:
    grid = torch.linspace(0, 1, levels, dtype=F64)[:, None, None, None]
    log_p = terms.discretized_logistic_log_prob(
        grid, torch.full_like(grid, mean), torch.tensor(math.log(scale), dtype=F64), levels
    )
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    cdf = lambda v: torch.sigmoid((v - mean) / scale)  # noqa: E731
    half = 0.5 / (levels - 1)
    inner = grid.flatten()[1:-1]
    exact = cdf(inner + half) - cdf(inner - half)
    torch.testing.assert_close(log_p[1:-1].exp(), exact, rtol=1e-6, atol=1e-12)
    assert bool(log_p.isfinite().all())


def test_running_variance_never_rises_and_ends_at_the_error() -> None:
    likelihood = likelihoods.build(GaussianLikelihoodConfig(variance="running")).double()
    x, out = images(3), images(4)
    mse = float((x - out).square().mean())
    seen = []
    for n in range(1500):
        wild = out if n % 50 else out + 10  # a batch with a large error moves nothing
        likelihood.log_prob(x, wild, {"likelihood.sigma": 1.0})
        seen.append(float(likelihood.variance))
    assert all(b <= a for a, b in pairwise(seen))
    assert mse < seen[-1] < 1.001 * mse  # from above
    assert seen[1] == pytest.approx(0.99 + 0.01 * mse, rel=1e-12)  # the first was a wild one
    likelihood.eval()
    likelihood.variance.fill_(mse)
    per_batch = -likelihood.log_prob(x, out, {}).mean()
    pixels = x[0].numel()
    assert float(per_batch) == pytest.approx(0.5 * pixels * (1 + math.log(2 * math.pi * mse)), rel=1e-12)


def test_running_variance_is_a_ratchet_over_batches_that_differ() -> None:
    """The published update, batch by batch; and of batches with the same error on average it ends below that."""
    likelihood = likelihoods.build(GaussianLikelihoodConfig(variance="running", sigma=0.5)).double()
    x, rng, variance, errors = images(3), torch.Generator().manual_seed(0), 0.25, []
    for _ in range(3000):
        off = 0.1 * (1 + 0.2 * torch.rand((), generator=rng, dtype=F64))
        likelihood.log_prob(x, x + off, {"likelihood.sigma": 1.0})
        errors.append(float(off) ** 2)
        variance = min(variance, 0.99 * variance + 0.01 * errors[-1])
    assert float(likelihood.variance) == pytest.approx(variance, rel=1e-9)
    assert min(errors) < variance < 0.95 * sum(errors) / len(errors)


def test_learned_running_and_optimal_agree() -> None:
    """The three variances that are not fixed meet at the mean squared error of the best constant image."""
    x = images(5, (64, 1, 4, 4))
    found = {}
    for variance in ("learned", "running", "optimal"):
        likelihood = likelihoods.build(GaussianLikelihoodConfig(variance=variance)).double()
        out = torch.nn.Parameter(torch.zeros(1, 1, 4, 4, dtype=F64))
        optimizer = torch.optim.Adam([out, *likelihood.parameters()], lr=0.02)
        for _ in range(1200):
            optimizer.zero_grad()
            (-likelihood.log_prob(x, out.expand_as(x), {"likelihood.sigma": 1.0}).mean()).backward()
            optimizer.step()
        likelihood.eval()
        found[variance] = float(likelihood.sigma(x, out.expand_as(x), {}).detach())
    exact = float((x - x.mean(dim=0, keepdim=True)).square().mean().sqrt())
    for variance, sigma in found.items():
        assert sigma == pytest.approx(exact, rel=0.01), variance


@pytest.mark.parametrize(("bias", "alive"), [("auto", True), ("data", False)])
def test_a_gaussian_decoder_with_rectified_layers_does_not_start_at_the_mean_image(
    vae: Callable[..., Result], tmp_path: Path, bias: str, alive: bool
) -> None:
    # Started there, its units are dead within 100 steps and every latent collapses for good.
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    blobs = [
        np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * s * s))
        for cy, cx, s in chance.uniform((5, 5, 1), (10, 10, 2.5), (2000, 3))
    ]
    np.save(tmp_path / "blobs.npy", (255 * np.stack(blobs)).astype(np.uint8))
    net = "model.net={name: mlp, hidden: [400, 400]}"
    how = ["-S", net, "-S", "model.likelihood={name: gaussian, sigma: 0.3}", "-S", f"model.output_bias={bias}"]
    done = vae("train", "--data", f"array:{tmp_path / 'blobs.npy'}", "--latent-dim", 8, *how, "--lr", 1e-3,
               "--batch-size", 128, "--steps", 200, "--name", "run", "--seed", 0)  # fmt: skip
    assert done.code == 0, done.err
    kl = json.loads(vae("analyze", "runs/run", "--json").out)["totals"]["kl"]
    assert (kl > 1) is alive, kl
