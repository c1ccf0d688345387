"""The terms of the objectives against torch.distributions, numeric integration and closed forms, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch import distributions as dist

from vaecli.objectives import terms as objective

F64 = torch.float64


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_kl_equals_torch_distributions() -> None:
    mean, logvar = rand(50, 7), rand(50, 7, seed=1, scale=3.0)
    q, p = dist.Normal(mean, (0.5 * logvar).exp()), dist.Normal(torch.zeros((), dtype=F64), 1.0)
    torch.testing.assert_close(objective.kl_normal(mean, logvar), dist.kl_divergence(q, p), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("mean", "logvar"), [(0.0, 0.0), (1.5, -2.0), (-0.3, 1.1), (2.0, -5.0)])
def test_kl_equals_its_integral(mean: float, logvar: float) -> None:
    sigma = math.exp(0.5 * logvar)
    z = torch.linspace(mean - 14 * sigma, mean + 14 * sigma, 200_001, dtype=F64)
    log_q = -0.5 * ((z - mean) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
    log_p = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    integral = torch.trapezoid(log_q.exp() * (log_q - log_p), z)
    kl = objective.kl_normal(torch.tensor([[mean]], dtype=F64), torch.tensor([[logvar]], dtype=F64))
    assert kl.item() == pytest.approx(integral.item(), abs=1e-9)


def test_kl_of_a_nearly_collapsed_latent_keeps_its_digits_in_float32() -> None:
    # KL ~ logvar^2 / 4 there; exp(logvar) - 1 would round most of it away.
    logvar = torch.linspace(1e-4, 1e-3, 20).view(1, 20)
    torch.testing.assert_close(
        objective.kl_normal(torch.zeros(1, 20), logvar), logvar.square() / 4, rtol=1e-2, atol=0.0
    )


@pytest.mark.parametrize("extreme", [-1e4, -100.0, 100.0, 1e4])
def test_extreme_log_variances_stay_finite(extreme: float) -> None:
    mean = torch.full((4, 3), 2.0, requires_grad=True)
    raw = torch.full((4, 3), extreme, requires_grad=True)
    logvar = objective.clamp_logvar(raw)
    kl, z = objective.kl_normal(mean, logvar), objective.reparameterize(mean, logvar)
    (kl.sum() + z.square().sum() + objective.log_normal(z, mean, logvar).sum()).backward()
    for tensor in (kl, z, mean.grad, raw.grad):
        assert tensor is not None
        assert torch.isfinite(tensor).all()
    assert kl.min() > 10.0  # still far from the prior: the bound hides nothing


def test_ordinary_log_variances_are_not_clamped() -> None:
    logvar = torch.linspace(-29.0, 19.0, 100)
    assert torch.equal(objective.clamp_logvar(logvar), logvar)
    assert objective.clamp_logvar(torch.tensor(math.nan)).isnan()  # so that divergence is seen


def test_reparameterize_has_the_mean_and_variance_asked_for() -> None:
    torch.manual_seed(0)
    mean, logvar = torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([0.5, -3.0], dtype=F64)
    z = objective.reparameterize(mean.expand(200_000, 2), logvar.expand(200_000, 2))
    torch.testing.assert_close(z.mean(0), mean, rtol=0.0, atol=0.015)
    torch.testing.assert_close(z.var(0), logvar.exp(), rtol=0.02, atol=0.0)


def test_reparameterize_differentiates_along_the_noise() -> None:
    mean, logvar = rand(3, 2).requires_grad_(), rand(3, 2, seed=1).requires_grad_()
    torch.manual_seed(5)
    z = objective.reparameterize(mean, logvar)
    z.sum().backward()
    torch.manual_seed(5)
    noise = torch.randn(3, 2, dtype=F64)
    torch.testing.assert_close(z.detach(), mean.detach() + noise * (0.5 * logvar.detach()).exp())
    torch.testing.assert_close(mean.grad, torch.ones(3, 2, dtype=F64))
    torch.testing.assert_close(logvar.grad, 0.5 * noise * (0.5 * logvar.detach()).exp())


def test_log_normal_equals_torch_distributions_and_broadcasts() -> None:
    z, mean, logvar = rand(6, 1, 3), rand(1, 5, 3, seed=1), rand(1, 5, 3, seed=2)
    expected = dist.Normal(mean, (0.5 * logvar).exp()).log_prob(z)
    assert expected.shape == (6, 5, 3)
    torch.testing.assert_close(objective.log_normal(z, mean, logvar), expected, rtol=1e-12, atol=1e-12)


def test_bernoulli_equals_torch_distributions() -> None:
    logits = rand(5, 2, 3, 4, scale=3.0)
    x = (rand(5, 2, 3, 4, seed=1) > 0).to(F64)
    expected = dist.Bernoulli(logits=logits).log_prob(x).sum(dim=(1, 2, 3))
    torch.testing.assert_close(objective.bernoulli_log_prob(x, logits), expected, rtol=1e-12, atol=1e-12)


def test_bernoulli_of_grey_pixels_is_the_cross_entropy_and_peaks_at_x() -> None:
    x = torch.rand(4, 1, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(0)).clamp(0.01, 0.99)
    p = torch.sigmoid(rand(4, 1, 3, 3))
    expected = (x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
    torch.testing.assert_close(objective.bernoulli_log_prob(x, p.logit()), expected, rtol=1e-10, atol=1e-10)
    logits = x.logit().requires_grad_()
    objective.bernoulli_log_prob(x, logits).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(x), rtol=0.0, atol=1e-12)


def test_bernoulli_of_extreme_logits_is_finite_and_linear() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]]).view(2, 1, 1, 2)
    assert objective.bernoulli_log_prob(x, logits).tolist() == [0.0, -400.0]


@pytest.mark.parametrize("sigma", [0.05, 1.0, 3.0])
def test_gaussian_equals_torch_distributions(sigma: float) -> None:
    x, mean = rand(5, 3, 2, 4), rand(5, 3, 2, 4, seed=1)
    expected = dist.Normal(mean, sigma).log_prob(x).sum(dim=(1, 2, 3))
    torch.testing.assert_close(objective.gaussian_log_prob(x, mean, sigma), expected, rtol=1e-12, atol=1e-12)
    as_tensor = objective.gaussian_log_prob(x, mean, torch.tensor(sigma, dtype=F64))
    torch.testing.assert_close(as_tensor, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (objective.kl_normal, [(3, 4), (3, 4)]),
        (objective.log_normal, [(3, 4), (3, 4), (3, 4)]),
        (lambda logits: objective.bernoulli_log_prob(rand(2, 1, 2, 3, seed=9).sigmoid(), logits), [(2, 1, 2, 3)]),
        (lambda x, mean, s: objective.gaussian_log_prob(x, mean, s.exp()), [(2, 1, 2, 3), (2, 1, 2, 3), ()]),
        (lambda kl: objective.capacity(kl.square().mean(), 0.1), [(6,)]),
    ],
)
def test_gradients(function: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    inputs = [rand(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize(("kl", "slope"), [(3.0, -1.0), (7.0, 1.0)])
def test_capacity_pushes_the_kl_towards_c_from_both_sides(kl: float, slope: float) -> None:
    kl_mean = torch.tensor(kl, dtype=F64, requires_grad=True)
    value = objective.capacity(kl_mean, 5.0)
    value.backward()
    assert value.item() == 2.0
    assert kl_mean.grad is not None
    assert kl_mean.grad.item() == slope


def test_beta_norm_of_higgins_examples() -> None:
    assert objective.norm_from_beta(4.0, 10, 64 * 64) == pytest.approx(0.009765625)
    assert objective.norm_from_beta(250.0, 32, 3 * 64 * 64) == pytest.approx(0.651, abs=5e-4)
    assert objective.norm_from_beta(5.0, 32, 64 * 64) == pytest.approx(0.0390625)
    assert objective.beta_from_norm(0.009765625, 10, 4096) == 4.0
    assert objective.beta_from_norm(objective.norm_from_beta(7.3, 12, 1234), 12, 1234) == pytest.approx(7.3)


def test_elbo_bounds_the_log_likelihood_of_a_linear_gaussian_model() -> None:
    """x = W z + b + sigma e has a known log p(x) and posterior, diagonal because the columns of W are orthogonal."""
    sigma, pixels, latents = 0.3, 6, 2
    w = torch.linalg.qr(rand(pixels, latents))[0] * torch.tensor([1.5, 0.7], dtype=F64)
    b, x = rand(pixels, seed=1), rand(8, pixels, seed=2)
    evidence = dist.MultivariateNormal(b, w @ w.T + sigma**2 * torch.eye(pixels, dtype=F64)).log_prob(x)

    def elbo(mean: Tensor, logvar: Tensor) -> Tensor:
        # E_q log p(x|z) in closed form: the value at the mean less trace(W' W diag var) / (2 sigma^2).
        expected = objective.gaussian_log_prob(x.view(8, 1, 2, 3), (mean @ w.T + b).view(8, 1, 2, 3), sigma)
        spread = (w.square().sum(0) * logvar.exp()).sum(1) / (2 * sigma**2)
        return expected - spread - objective.kl_normal(mean, logvar).sum(1)

    m = w.square().sum(0) + sigma**2
    exact_mean, exact_logvar = (x - b) @ w / m, (sigma**2 / m).log().expand(8, latents)
    torch.testing.assert_close(elbo(exact_mean, exact_logvar), evidence, rtol=1e-12, atol=1e-12)
    for seed in range(5):
        shift, stretch = rand(8, latents, seed=10 + seed, scale=0.3), rand(8, latents, seed=20 + seed, scale=0.3)
        gap = evidence - elbo(exact_mean + shift, exact_logvar + stretch)
        # The gap is exactly KL(q || exact posterior).
        q = dist.Normal(exact_mean + shift, (0.5 * (exact_logvar + stretch)).exp())
        p = dist.Normal(exact_mean, (0.5 * exact_logvar).exp())
        torch.testing.assert_close(gap, dist.kl_divergence(q, p).sum(1), rtol=1e-9, atol=1e-9)
        assert (gap > 0).all()
