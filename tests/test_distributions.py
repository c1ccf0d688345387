"""Distributions over latents against torch's own, numeric sums and closed forms, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from vaecli.objectives import distributions
from vaecli.objectives.distributions import Gaussian, Indices, Point, Standard, UniformIndices

F64 = torch.float64
DRAWS = 40_000


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# ---- divergences and densities


def test_kl_of_gaussians_equals_torchs() -> None:
    a, b = (rand(6, 4), rand(6, 4, seed=1, scale=2.0)), (rand(6, 4, seed=2), rand(6, 4, seed=3, scale=2.0))
    q, p = (td.Normal(mean, (0.5 * logvar).exp()) for mean, logvar in (a, b))
    same(distributions.rate(Gaussian(*a), Gaussian(*b), a[0]), td.kl_divergence(q, p))
    same(distributions.rate(Gaussian(*a), p, a[0]), td.kl_divergence(q, p))
    standard = td.Normal(torch.zeros(4, dtype=F64), 1.0)
    same(distributions.rate(Gaussian(*a), Standard((6, 4)), a[0]), td.kl_divergence(q, standard))
    same(distributions.log_prob(Gaussian(*a), b[0]), q.log_prob(b[0]).sum(dim=1))


def test_kl_of_near_gaussians_keeps_its_digits_in_float32() -> None:
    logvar = torch.full((1, 3), -2.0)
    near = distributions.rate(Gaussian(torch.zeros(1, 3), logvar + 1e-3), Gaussian(torch.zeros(1, 3), logvar), logvar)
    torch.testing.assert_close(near, torch.full((1, 3), 0.25e-6), rtol=1e-2, atol=0.0)


def test_the_rate_of_codes_is_the_log_of_their_number() -> None:
    index = torch.randint(7, (3, 2, 4))
    q, p = Indices(index, 7), UniformIndices((3, 2, 4), 7)
    torch.testing.assert_close(distributions.rate(q, p, index), torch.full((3, 2, 4), math.log(7)))
    assert torch.equal(distributions.mode(q), index) and torch.equal(distributions.sample(q), index)


def test_without_a_closed_form_the_rate_is_that_of_the_value() -> None:
    base, shift = rand(5, 3), rand(3, seed=4)
    flow = td.TransformedDistribution(td.Independent(td.Normal(base, 0.5), 1), [td.AffineTransform(shift, 3.0, 1)])
    assert (
        not distributions.exact_kl(flow, Standard((5, 3)))
        and distributions.exact_kl(Gaussian(base, base), flow) is False
    )
    z = rand(5, 3, seed=5)
    wanted = td.Normal(3.0 * base + shift, 1.5).log_prob(z).sum(dim=1) - td.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
    same(distributions.rate(flow, Standard((5, 3)), z), wanted)
    assert distributions.exact_kl(Gaussian(base, base), Standard((5, 3)))
    assert distributions.rate(Point(z), Standard((5, 3)), z) is None


def test_the_rate_of_labels_equals_its_sum() -> None:
    logits = rand(4, 3)
    q, p = td.OneHotCategorical(logits=logits), td.OneHotCategorical(logits=torch.zeros(4, 3, dtype=F64))
    shares = torch.softmax(logits, dim=1)
    same(distributions.rate(q, p, q.sample()), (shares * (shares * 3).log()).sum(dim=1))


# ---- modes


def test_modes() -> None:
    mean, logvar = rand(4, 3), rand(4, 3, seed=1)
    same(distributions.mode(Gaussian(mean, logvar)), mean)
    same(distributions.mode(Standard((4, 3))), torch.zeros(4, 3))
    same(distributions.mode(Point(mean)), mean)
    same(distributions.mode(td.Independent(td.Normal(mean, 1.0), 1)), mean)
    same(distributions.mode(td.Uniform(mean - 1, mean + 3)), mean + 1)
    wanted = torch.eye(3, dtype=F64)[mean.argmax(dim=1)]
    for kind in (td.OneHotCategorical(logits=mean), td.RelaxedOneHotCategorical(torch.tensor(0.5), logits=mean)):
        same(distributions.mode(kind).to(F64), wanted)
    flow = td.TransformedDistribution(td.Normal(mean, 1.0), [td.ExpTransform(), td.AffineTransform(1.0, -2.0)])
    same(distributions.mode(flow), 1 - 2 * mean.exp())  # what becomes of the base's mode
    assert torch.equal(distributions.mode(UniformIndices((2, 5), 7)), torch.zeros(2, 5, dtype=torch.int64))


def mixture(n: int = 4) -> tuple[td.MixtureSameFamily, Tensor]:
    """Three components of two latents for each of n images, and their centres."""
    centres = rand(n, 3, 2, seed=6, scale=5.0)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64).roll(1).expand(n, 3)
    parts = td.Independent(td.Normal(centres, 0.3), 1)
    return td.MixtureSameFamily(td.Categorical(probs=weights), parts), centres


def test_the_mode_of_a_mixture_is_the_centre_of_its_heaviest_component() -> None:
    q, centres = mixture()
    same(distributions.mode(q), centres[:, 2])
    mean, variance = distributions.moments(q)
    weights = torch.tensor([0.3, 0.2, 0.5], dtype=F64).view(3, 1)
    same(mean, (weights * centres).sum(dim=1))
    assert variance is not None
    same(variance, (weights * (centres.square() + 0.09)).sum(dim=1) - mean.square())


# ---- draws


def many(q: td.Distribution, temperature: float) -> Tensor:
    torch.manual_seed(0)
    return distributions.sample(q, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("wrapped", [False, True])
def test_temperature_scales_the_deviations_of_gaussians(temperature: float, wrapped: bool) -> None:
    mean, logvar = torch.tensor([1.0, -2.0], dtype=F64).expand(DRAWS, 2), torch.tensor([0.5, -3.0]).expand(DRAWS, 2)
    q: td.Distribution = Gaussian(mean, logvar.double())
    drawn = many(td.Independent(q, 1) if wrapped else q, temperature)
    error = (0.5 * logvar[0]).exp().double() / DRAWS**0.5
    assert ((drawn.mean(dim=0) - mean[0]).abs() < 5 * error).all()
    torch.testing.assert_close(drawn.std(dim=0), temperature * (0.5 * logvar[0]).exp().double(), rtol=0.02, atol=0.0)
    if temperature == 0.5:  # the same draw, at half the distance from the mean
        torch.testing.assert_close(drawn - mean, 0.5 * (many(q, 1.0) - mean))


def test_temperature_of_a_uniform() -> None:
    q = td.Uniform(torch.full((DRAWS,), 1.0), torch.full((DRAWS,), 3.0))
    drawn = many(q, 0.25)
    assert 1.75 <= drawn.min() < 1.76 and 2.24 < drawn.max() <= 2.25
    assert drawn.std().item() == pytest.approx(0.25 * 2 / 12**0.5, rel=0.02)


def test_temperature_divides_the_logits_of_a_label() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0])
    for temperature in (1.0, 0.5, 2.0):
        drawn = many(td.OneHotCategorical(logits=logits.expand(DRAWS, 3)), temperature)
        assert torch.equal(drawn.sum(dim=1), torch.ones(DRAWS))
        wanted = torch.softmax(logits / temperature, dim=0)
        assert ((drawn.mean(dim=0) - wanted).abs() < 5 * (wanted * (1 - wanted) / DRAWS).sqrt()).all()


def test_temperature_of_a_mixture_narrows_its_components_and_keeps_their_shares() -> None:
    q, centres = mixture(1)
    wide = td.MixtureSameFamily(
        td.Categorical(probs=q.mixture_distribution.probs.expand(DRAWS, 3)),
        td.Independent(td.Normal(centres.expand(DRAWS, 3, 2), 0.3), 1),
    )
    for temperature in (1.0, 0.5):
        drawn = many(wide, temperature)
        distance, nearest = torch.cdist(drawn, centres[0]).min(dim=1)
        shares = torch.bincount(nearest, minlength=3) / DRAWS
        torch.testing.assert_close(shares, torch.tensor([0.3, 0.2, 0.5]), rtol=0.0, atol=0.015)
        assert distance.square().mean().item() == pytest.approx(2 * (0.3 * temperature) ** 2, rel=0.05)


def test_temperature_zero_is_the_mode_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    q, centres = mixture()
    same(distributions.sample(q, 0.0), centres[:, 2])
    same(distributions.sample(Gaussian(centres, centres), 0.0), centres)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_temperature_that_means_nothing_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="Indices"):
        distributions.sample(Indices(torch.zeros(2, 3, dtype=torch.int64), 4), 0.5)


def test_a_uniform_choice_is_as_uniform_at_any_temperature() -> None:
    torch.manual_seed(0)
    count_V = torch.bincount(distributions.sample(UniformIndices((4000,), 4), 0.5), minlength=4)
    assert float((count_V / 4000 - 0.25).abs().max()) < 0.03


def test_draws_can_be_differentiated_where_that_is_possible() -> None:
    mean, logvar = rand(3, 2).requires_grad_(), rand(3, 2, seed=1).requires_grad_()
    torch.manual_seed(3)
    z = distributions.sample(Gaussian(mean, logvar))
    torch.manual_seed(3)
    eps = torch.randn(3, 2, dtype=F64)
    same(z, mean + (0.5 * logvar).exp() * eps)
    z.sum().backward()
    assert mean.grad is not None and logvar.grad is not None
    same(mean.grad, torch.ones(3, 2, dtype=F64))
    same(logvar.grad, 0.5 * (0.5 * logvar).exp().detach() * eps)


def test_uniform_indices_are_uniform() -> None:
    drawn = many(UniformIndices((DRAWS, 2), 5), 1.0)
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn.flatten(), minlength=5)
    assert len(counts) == 5 and ((counts - DRAWS * 2 / 5).abs() < 5 * (DRAWS * 2 / 5) ** 0.5).all()


# ---- moments


def test_moments_in_closed_form() -> None:
    mean, logvar = rand(4, 3), rand(4, 3, seed=1)
    found = distributions.moments(Gaussian(mean, logvar))
    assert found[1] is not None and found[0] is mean
    same(found[1], logvar.exp())
    assert distributions.moments(Point(mean)) == (mean, None)
    mean_U, variance_U = distributions.moments(td.Uniform(mean, mean + 6))
    assert variance_U is not None
    same(mean_U, mean + 3)
    same(variance_U, torch.full((4, 3), 3.0, dtype=F64))
    shares = torch.softmax(mean, dim=1)
    for kind in (td.OneHotCategorical(logits=mean), td.RelaxedOneHotCategorical(torch.tensor(0.5), logits=mean)):
        first, second = distributions.moments(kind)
        assert second is not None and distributions.exact_moments(kind)
        same(first, shares)
        same(second, shares - shares.square())


@pytest.mark.parametrize("independent", [False, True])
def test_moments_of_an_affine_flow(independent: bool) -> None:
    """Antithetic noise: the mean is exact, and the variance is the sample's of the same noise, 1 within its error."""
    mean, scale, shift = rand(5, 3), rand(5, 3, seed=1).exp(), rand(3, seed=2)
    base: td.Distribution = td.Normal(mean, scale)
    event = 0
    if independent:
        base, event = td.Independent(base, 1), 1
    flow = td.TransformedDistribution(base, [td.AffineTransform(shift, -2.5, event)])
    assert not distributions.exact_moments(flow)
    torch.manual_seed(1)
    found, variance = distributions.moments(flow)
    same(found, shift - 2.5 * mean)
    assert variance is not None
    ratio = variance / (2.5 * scale).square()
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-6, atol=0.0)  # one noise for every image
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-6)  # exact where it is affine
    torch.manual_seed(2)
    again = distributions.moments(flow)
    assert again[1] is not None and torch.equal(again[0], found) and torch.equal(again[1], variance)


@pytest.mark.parametrize("shape", [(1,), (3,), (32,), (50,), (2, 4)])
def test_points_that_span_have_the_first_moments_of_noise(shape: tuple[int, ...]) -> None:
    half = distributions.spanning(torch.Size(shape), 32)
    assert len(half) >= 32 and half.shape[1:] == shape and half.dtype == F64
    x_ND = torch.cat([half, -half]).flatten(1)
    same(x_ND.mean(dim=0), torch.zeros(x_ND.shape[1], dtype=F64))
    same(x_ND.T @ x_ND / len(x_ND), torch.eye(x_ND.shape[1], dtype=F64))
    assert torch.equal(half, distributions.spanning(torch.Size(shape), 32))


def test_moments_of_a_flow_whose_latents_are_mixed() -> None:
    """z_1 and z_2 = z_1 / 2 + e: their variances are s^2 and s^2 / 4 + t^2, to rounding with few draws."""
    base = td.Independent(td.Normal(torch.zeros(1, 2, dtype=F64), torch.tensor([[2.0, 0.3]], dtype=F64)), 1)
    flow = td.TransformedDistribution(base, [Mix()])
    variance = distributions.moments(flow)[1]
    assert variance is not None
    same(variance, torch.tensor([[4.0, 1.09]], dtype=F64))


class Mix(td.transforms.Transform):
    domain, codomain, bijective = td.constraints.real_vector, td.constraints.real_vector, True

    def _call(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], x[:, 0] / 2 + x[:, 1]], dim=1)


def test_moments_of_a_flow_that_is_not_affine() -> None:
    """A log-normal, with more draws: exp(m + s^2 / 2) and (exp(s^2) - 1) exp(2 m + s^2)."""
    m, s = torch.tensor([[0.3, -1.0]], dtype=F64), 0.4
    flow = td.TransformedDistribution(td.Normal(m, torch.full_like(m, s)), [td.ExpTransform()])
    mean, variance = distributions.moments(flow, draws=20_000)
    assert variance is not None
    np.testing.assert_allclose(mean, (m + s**2 / 2).exp(), rtol=0.01)
    np.testing.assert_allclose(variance, (math.exp(s**2) - 1) * (2 * m + s**2).exp(), rtol=0.05)
