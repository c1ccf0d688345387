"""The likelihood sections and modules: names users write, values in nats, and the variances that are not fixed."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch import distributions as dist

from vaecli.objectives import likelihoods
from vaecli.objectives.likelihoods import BernoulliConfig, GaussianLikelihoodConfig

F64 = torch.float64
SHAPE = (4, 3, 2, 5)
READ: TypeAdapter[Any] = TypeAdapter(likelihoods.LikelihoodConfig)


def images(seed: int) -> Tensor:
    return torch.rand(SHAPE, dtype=F64, generator=torch.Generator().manual_seed(seed))


def gaussian(variance: Any, sigma: float = 1.0) -> likelihoods.Likelihood:
    return likelihoods.build(GaussianLikelihoodConfig(variance=variance, sigma=sigma)).double()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("bernoulli", BernoulliConfig()),
        ("bce", BernoulliConfig()),
        ("gaussian", GaussianLikelihoodConfig()),
        ("mse", GaussianLikelihoodConfig()),
        ({"name": "mse", "sigma": 0.5}, GaussianLikelihoodConfig(sigma=0.5)),
        (GaussianLikelihoodConfig(variance="learned"), GaussianLikelihoodConfig(variance="learned")),
    ],
)
def test_names_and_aliases(written: Any, meant: Any) -> None:
    assert READ.validate_python(written) == meant
    assert READ.validate_python(meant.model_dump(mode="json")) == meant


@pytest.mark.parametrize(
    "written",
    [
        "poisson",
        {"name": "bernoulli", "sigma": 1.0},
        {"name": "gaussian", "variance": "free"},
        {"sigma": 1.0},
        {"name": ["gaussian"]},
        3,
    ],
)
def test_unknown_names_and_options_are_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        READ.validate_python(written)


@pytest.mark.parametrize("variance", ["learned", "optimal"])
def test_a_schedule_that_would_do_nothing_is_refused(variance: str) -> None:
    schedule = {"schedule": "linear", "start": 1.0, "end": 0.1, "steps": 10}
    assert READ.validate_python({"name": "gaussian", "sigma": schedule}).sigma.at(5) == pytest.approx(0.55)
    with pytest.raises(ValidationError, match="does nothing"):
        READ.validate_python({"name": "gaussian", "variance": variance, "sigma": schedule})


def test_bernoulli() -> None:
    likelihood, x, out = likelihoods.build(BernoulliConfig()), images(0).round(), 4 * images(1) - 2
    expected = dist.Bernoulli(logits=out).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(x, out, {}), expected)
    torch.testing.assert_close(likelihood.mean(out), 1 / (1 + (-out).exp()))
    assert not list(likelihood.state_dict())


def test_fixed_gaussian_reads_sigma_at_the_step() -> None:
    likelihood, x, out = gaussian("fixed"), images(0), images(1)
    for sigma in (0.2, 1.0):
        expected = dist.Normal(out, sigma).log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(likelihood.log_prob(x, out, {"likelihood.sigma": sigma}), expected)
    assert torch.equal(likelihood.mean(out), out)
    assert "0.2" in likelihood.text({"likelihood.sigma": 0.2})


def test_learned_sigma_starts_at_sigma_and_ends_at_the_root_mean_square_error() -> None:
    likelihood, x, out = gaussian("learned", 0.5), images(0), images(1)
    expected = dist.Normal(out, 0.5).log_prob(x).flatten(1).sum(1)
    # The parameter is made in float32, so it carries log(0.5) to seven digits.
    torch.testing.assert_close(likelihood.log_prob(x, out, {}), expected, rtol=1e-6, atol=1e-6)
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -likelihood.log_prob(x, out, {}).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    [log_sigma] = likelihood.parameters()
    assert log_sigma.item() == pytest.approx(0.5 * math.log((x - out).square().mean().item()), abs=1e-6)


def test_optimal_sigma_scores_a_training_batch_by_its_own_error() -> None:
    likelihood, x, out = gaussian("optimal"), images(0), images(1)
    mse = (x - out).square().mean().item()
    value = -likelihood.log_prob(x, out, {}).mean().item()
    assert value == pytest.approx(30 / 2 * (1 + math.log(2 * math.pi * mse)), rel=1e-12)
    # No fixed sigma does better on this batch.
    fixed = [-dist.Normal(out, s).log_prob(x).flatten(1).sum(1).mean().item() for s in (0.9 * mse**0.5, 1.1 * mse**0.5)]
    assert value < min(fixed)


def test_optimal_sigma_has_the_gradient_of_the_profile_likelihood() -> None:
    likelihood, x = gaussian("optimal"), images(0)
    held, through = images(1).requires_grad_(), images(1).requires_grad_()
    (-likelihood.log_prob(x, held, {})).mean().backward()
    (30 / 2 * (2 * math.pi * (x - through).square().mean()).log()).backward()
    assert through.grad is not None
    assert through.grad.abs().min() > 0
    torch.testing.assert_close(held.grad, through.grad, rtol=1e-10, atol=1e-12)


def test_optimal_sigma_in_eval_mode_is_the_saved_running_value() -> None:
    likelihood, x, out = gaussian("optimal", 0.5), images(0), images(1)
    mse = (x - out).square().mean().item()
    for _ in range(3):
        likelihood.log_prob(x, out, {})
    variance = mse + (0.25 - mse) * 0.95**3
    assert likelihood.state_dict()["variance"].item() == pytest.approx(variance, rel=1e-6)
    copy = gaussian("optimal")
    copy.load_state_dict(likelihood.state_dict())
    copy.eval()
    expected = dist.Normal(out, variance**0.5).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(copy.log_prob(x, out, {}), expected, rtol=1e-6, atol=1e-6)
    # One image alone is scored as it is among others, and scoring leaves the value as it was.
    torch.testing.assert_close(copy.log_prob(x[:1], out[:1], {}), expected[:1], rtol=1e-6, atol=1e-6)
    assert torch.equal(copy.state_dict()["variance"], likelihood.state_dict()["variance"])


def test_optimal_sigma_of_a_perfect_reconstruction_is_finite() -> None:
    likelihood, x = gaussian("optimal"), images(0)
    expected = -30 / 2 * math.log(2 * math.pi * 1e-6)
    torch.testing.assert_close(likelihood.log_prob(x, x.clone(), {}), torch.full((4,), expected, dtype=F64))
