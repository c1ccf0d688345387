"""svae: the von Mises-Fisher density, its draws and their gradients against integrals, scipy and closed forms."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from scipy import integrate, special, stats
from torch import Tensor
from torch import distributions as td

from vaecli import models
from vaecli.batch import Batch, DataInfo
from vaecli.commands import interpolate
from vaecli.models import svae
from vaecli.models.base import total
from vaecli.objectives import distributions, spherical
from vaecli.objectives.spherical import Sphere, UniformOnSphere, VonMisesFisher

F64 = torch.float64
GAUSS = np.polynomial.legendre.leggauss(400)
INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)
dims = pytest.mark.parametrize("d", [2, 3, 5, 11, 50, 200])


def same(found: Any, wanted: Any, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    a, b = (torch.as_tensor(t, dtype=F64).detach() for t in (found, wanted))
    torch.testing.assert_close(a, b.expand_as(a), rtol=rtol, atol=atol)


def direction(d: int, seed: int = 0) -> Tensor:
    return Sphere().project(torch.randn(1, d, dtype=F64, generator=torch.Generator().manual_seed(seed)))


def vmf(d: int, kappa: float, n: int = 1, seed: int = 0) -> VonMisesFisher:
    return VonMisesFisher(direction(d, seed).expand(n, d), torch.full((n,), kappa, dtype=F64))


# ---- the normaliser and the KL


@dims
def test_the_normaliser_against_scipys_bessel_functions(d: int) -> None:
    kappa = np.array([1e-3, 0.1, 1.0, 7.0, 30.0, 150.0, 600.0])
    log_f, ratio = spherical.log_normaliser(torch.from_numpy(kappa), d)
    v = d / 2 - 1
    usable = special.ive(v, kappa) > 1e-280  # where scipy's do not underflow
    kappa, log_f, ratio = kappa[usable], log_f[usable], ratio[usable]
    assert usable.sum() >= (3 if d == 200 else 6)
    bessel = np.log(special.ive(v, kappa)) + kappa
    same(log_f, special.gammaln(v + 1) + bessel - v * np.log(kappa / 2))
    same(ratio * kappa, special.ive(v + 1, kappa) / special.ive(v, kappa))


def test_the_normaliser_in_three_dimensions_is_elementary_at_any_concentration() -> None:
    """F = sinh(kappa) / kappa and A = coth(kappa) - 1 / kappa; the densities integrate to one over the sphere."""
    kappa = torch.tensor([1e-9, 1e-4, 0.5, 3.0, 80.0, 5e3, 1e6], dtype=F64)
    log_f, ratio = spherical.log_normaliser(kappa, 3)
    wanted = torch.where(
        kappa < 1e-3, kappa.square() / 6, kappa - (2 * kappa).log() + torch.log1p(-torch.exp(-2 * kappa))
    )
    same(log_f, wanted)
    same(ratio * kappa, torch.where(kappa < 1e-3, kappa / 3, 1 / torch.tanh(kappa) - 1 / kappa))
    for k in (0.0, 0.7, 25.0):
        q = vmf(3, k)
        mu = q.mu_BD[0]
        aside = Sphere().project(torch.linalg.cross(mu, torch.tensor([0.3, 1.0, -0.2], dtype=F64))[None])[0]

        def density(w: float, q: Any = q, mu: Tensor = mu, aside: Tensor = aside) -> float:
            z = w * mu + math.sqrt(1 - w * w) * aside
            return 2 * math.pi * float(q.log_prob(z[None]).exp())

        same(integrate.quad(density, -1, 1, epsabs=1e-12)[0], 1.0)
        same(integrate.quad(lambda w, f=density: w * f(w), -1, 1, epsabs=1e-12)[0], float(q.length_B))
        z = direction(3, 5)
        other = stats.vonmises_fisher(mu.numpy(), k).logpdf(z.numpy())[0] if k else -math.log(4 * math.pi)
        same(q.log_prob(z)[0], other)


@dims
def test_the_kl_to_the_uniform_density_by_numerical_integration(d: int) -> None:
    """E_q[log q - log p] over w = mu'z, whose density is that of the cap: exp(kappa w) (1 - w^2)^((d-3)/2)."""
    prior = UniformOnSphere(1, d)
    for kappa in (0.0, 0.3, 4.0, 60.0):
        q = vmf(d, kappa)
        angle, weight = GAUSS
        angle, weight = 0.5 * math.pi * (angle + 1), 0.5 * math.pi * weight
        mass = np.exp(kappa * (np.cos(angle) - 1)) * np.sin(angle) ** (d - 2) * weight
        share = mass / mass.sum()
        caps = np.sin(angle) ** (d - 2) * weight
        log_ratio = kappa * np.cos(angle) - math.log((np.exp(kappa * np.cos(angle)) * caps).sum() / caps.sum())
        wanted = (share * log_ratio).sum()
        kl = distributions.rate(q, prior, q.mode)
        assert kl is not None and kl.shape == (1,)
        same(kl[0], wanted)
        ratio = q.log_prob(q.mode) - prior.log_prob(q.mode)
        same(ratio[0], kappa - float(q.log_f_B))
        same(q.variance.sum(), 1 - q.mean.square().sum())  # |z| = 1
        same(q.mean, float((share * np.cos(angle)).sum()) * q.mu_BD)
        along = float((share * np.cos(angle) ** 2).sum() - (share * np.cos(angle)).sum() ** 2)
        same(q.variance, along * q.mu_BD**2 + float((share * np.sin(angle) ** 2).sum()) / (d - 1) * (1 - q.mu_BD**2))
    area = math.log(2) + d / 2 * math.log(math.pi) - special.gammaln(d / 2)
    same(prior.log_prob(direction(d)), torch.tensor([-area], dtype=F64))


@dims
def test_derivatives_by_kappa_are_those_of_differences(d: int) -> None:
    for value in (0.2, 3.0, 45.0):
        kappa = torch.tensor([value], dtype=F64, requires_grad=True)
        z = direction(d, 3)
        q = VonMisesFisher(direction(d), kappa)
        (by_kl,) = torch.autograd.grad(q.kl_to_uniform(), kappa)
        (by_density,) = torch.autograd.grad(q.log_prob(z), kappa)
        h = 1e-4 * value
        up, down = vmf(d, value + h), vmf(d, value - h)
        same(by_kl, (up.kl_to_uniform() - down.kl_to_uniform()) / (2 * h), rtol=1e-5, atol=1e-7)
        same(by_density, (up.log_prob(z) - down.log_prob(z)) / (2 * h), rtol=1e-5, atol=1e-7)


# ---- draws


@pytest.mark.parametrize("d", [2, 3, 11, 60])
@pytest.mark.parametrize("kappa", [0.0, 2.0, 40.0, 1e4])
def test_draws_have_the_moments_of_the_density(d: int, kappa: float) -> None:
    n = 8_000
    q = vmf(d, kappa, n)
    torch.manual_seed(1)
    z = q.rsample()
    same(z.norm(dim=1), torch.ones(n))
    error = (q.variance[0] / n).sqrt()
    assert bool(((z.mean(dim=0) - q.mean[0]).abs() < 5 * error + 1e-12).all())
    same(z.var(dim=0), q.variance[0], rtol=0.12, atol=3e-9)
    w = z @ q.mu_BD[0]
    cosines = np.cos(np.linspace(0, math.pi, 200_001))
    angle = np.arccos(cosines)
    mass = np.exp(kappa * (cosines - 1)) * np.sin(angle) ** (d - 2)
    cumulated = np.cumsum(mass) / mass.sum()
    if kappa <= 40:
        found = stats.kstest(np.arccos(w.clamp(-1, 1).numpy()), lambda a: np.interp(a, angle, cumulated))
        assert found.pvalue > 1e-3
    across = z - w.unsqueeze(1) * q.mu_BD[0]
    assert float(across.mean(dim=0).abs().max()) < 0.04  # all sides alike


def test_uniform_draws_and_the_quantiles_of_a_coordinate() -> None:
    for d in (2, 3, 8):
        prior = UniformOnSphere(20_000, d)
        torch.manual_seed(0)
        z = prior.rsample()
        same(z.norm(dim=1), torch.ones(20_000), atol=1e-6)
        half = (d - 1) / 2
        assert stats.kstest((1 + z[:, 1].numpy()) / 2, stats.beta(half, half).cdf).pvalue > 1e-3
        assert float(z.mean(dim=0).abs().max()) < 0.02
        t = torch.linspace(-3, 3, 13, dtype=F64)
        same(prior.values(1, t), 2 * stats.beta(half, half).ppf(stats.norm.cdf(t.numpy())) - 1, atol=1e-3)
        same(distributions.mode(prior).norm(dim=1), torch.ones(20_000), atol=1e-6)
        torch.manual_seed(0)
        same(distributions.sample(prior, 0.5), z, atol=0)


@pytest.mark.parametrize("d", [2, 3, 7, 40])
@pytest.mark.parametrize("value", [0.05, 2.0, 30.0, 800.0])
def test_the_implicit_derivative_of_a_draw_keeps_its_quantile(d: int, value: float) -> None:
    """Moved along d angle / d kappa a draw stays at its share of the distribution function."""
    nodes, weights = GAUSS

    def share(angle: float, kappa: float) -> float:
        def mass(low: float, high: float) -> float:
            a = low + (high - low) * 0.5 * (nodes + 1)
            return float((weights * np.exp(kappa * (np.cos(a) - 1)) * np.sin(a) ** (d - 2)).sum() * (high - low) / 2)

        return mass(0, angle) / (mass(0, angle) + mass(angle, math.pi))

    q = vmf(d, value, 12)
    torch.manual_seed(2)
    angle = q._angle()
    slope = q._slope(angle)
    h = 1e-4 * value
    for a, s in zip(angle.tolist(), slope.tolist(), strict=True):
        by_kappa = (share(a, value + h) - share(a, value - h)) / (2 * h)
        e = 1e-5 * min(a, math.pi - a)
        by_angle = (share(a + e, value) - share(a - e, value)) / (2 * e)
        assert s == pytest.approx(-by_kappa / by_angle, rel=2e-5, abs=1e-9)


def test_the_derivative_on_the_ordinary_sphere_in_closed_form() -> None:
    """d = 3: F(w) = (e^{kappa w} - e^{-kappa}) / (e^kappa - e^{-kappa}); dw/dkappa = -F_kappa / F_w, to 1e-9."""
    kappa = torch.tensor([0.4, 3.0, 20.0], dtype=F64).repeat_interleave(4)
    q = VonMisesFisher(direction(3).expand(12, 3), kappa)
    angle = torch.tensor([0.05, 0.6, 1.5, 3.0], dtype=F64).repeat(3)
    w = torch.cos(angle)
    k = kappa.clone().requires_grad_()
    cdf = (torch.exp(k * (w - 1)) - torch.exp(-2 * k)) / (1 - torch.exp(-2 * k))
    (by_kappa,) = torch.autograd.grad(cdf.sum(), k)
    by_w = kappa * torch.exp(kappa * (w - 1)) / (1 - torch.exp(-2 * kappa))
    same(-torch.sin(angle) * q._slope(angle), -by_kappa / by_w)


@pytest.mark.parametrize("d", [3, 6])
def test_gradients_of_expectations_through_draws(d: int) -> None:
    """d/d kappa and d/d mu of E[a'z] = A a'mu, and of E[(a'z)^2]: over many draws, within their error."""
    n, kappa = 60_000, torch.tensor(5.0, dtype=F64, requires_grad=True)
    raw = direction(d).clone().requires_grad_()
    a = torch.arange(1.0, d + 1, dtype=F64)
    torch.manual_seed(0)
    mu = raw / raw.norm()
    z = VonMisesFisher(mu.expand(n, d), kappa.expand(n)).rsample()
    exact = vmf(d, 5.0)
    exact_kappa = torch.tensor(5.0, dtype=F64, requires_grad=True)
    exact_raw = direction(d).clone().requires_grad_()
    exact_mu = exact_raw / exact_raw.norm()
    length, bend = exact.length_B[0], exact._bend()[0]
    length = length + bend * (exact_kappa - exact_kappa.detach())  # A' is its derivative
    (found_k, found_m) = torch.autograd.grad((z @ a).mean(), (kappa, raw), retain_graph=True)
    (wanted_k, wanted_m) = torch.autograd.grad(length * (exact_mu[0] @ a), (exact_kappa, exact_raw), retain_graph=True)
    same(found_k, wanted_k, rtol=0.02, atol=2e-3)
    same(found_m, wanted_m, rtol=0.02, atol=0.02)
    across = length / exact_kappa  # E[(a'z)^2] = a'Cov a + (a'mean)^2 = (A / kappa) |a|^2 + (1 - d A / kappa) (a'mu)^2
    second = across * (a @ a) + (1 - d * across) * (exact_mu[0] @ a).square()
    (found_k, found_m) = torch.autograd.grad((z @ a).square().mean(), (kappa, raw))
    (wanted_k, wanted_m) = torch.autograd.grad(second, (exact_kappa, exact_raw))
    same(found_k, wanted_k, rtol=0.03, atol=5e-3)
    same(found_m, wanted_m, rtol=0.03, atol=0.1)


# ---- the sphere


def test_places_and_ways_stay_on_the_sphere() -> None:
    sphere = Sphere()
    z = sphere.project(torch.tensor([[0.6, 0.0, -0.8], [1.0, 0.0, 0.0]], dtype=F64)).repeat_interleave(3, dim=0)
    value = torch.tensor([-1.0, 0.2, 0.9], dtype=F64).repeat(2)
    placed = sphere.placed(z, 0, value)
    same(placed.norm(dim=1), torch.ones(6))
    same(placed[:, 0], value)
    same(placed[:3, 1:], torch.stack([torch.zeros(3), -(1 - value[:3] ** 2).sqrt()], dim=1))
    same(placed[3:, 1], placed[3:, 2])  # the others were all 0: alike
    a, b = direction(4)[0], direction(4, 9)[0]
    for end in (b, a, -a):
        t = torch.linspace(0, 1, 5, dtype=F64)
        way = sphere.way(a, end, t)
        same(way.norm(dim=1), torch.ones(5))
        same(way[0], a)
        same(way[-1], end)
        steps = (way[1:] - way[:-1]).norm(dim=1)
        same(steps, steps[:1].expand(4))
    same(sphere.way(a, b, t), interpolate.great_circle(a.numpy(), b.numpy(), t.numpy()))


# ---- the model


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    config = {"latent_dim": 4, "net": {"name": "mlp", "hidden": [8]}, **options}
    return models.build(svae.Config.model_validate(config), INFO).double()


def toy(n: int = 6) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 4, 4, generator=g) > 0.5).double(), torch.arange(n))


def test_the_loss_recomputed_by_hand() -> None:
    model, batch = build(kappa_min=0.5), toy()
    torch.manual_seed(1)
    found = {name: float(v) for name, v in total(model.loss(batch, model.hyper(0)))[1].items()}
    out = model.encoder(batch.x_BCHW)
    mu = out[:, :4] / out[:, :4].norm(dim=1, keepdim=True)
    kappa = (0.5 + torch.nn.functional.softplus(out[:, 4])).detach().numpy()
    torch.manual_seed(1)
    z = VonMisesFisher(mu, torch.as_tensor(kappa)).rsample()
    recon = -td.Bernoulli(logits=model.decoder(z)).log_prob(batch.x_BCHW).sum(dim=(1, 2, 3)).mean()
    length = special.ive(2, kappa) / special.ive(1, kappa)
    log_c = np.log(kappa) - 2 * math.log(2 * math.pi) - np.log(special.ive(1, kappa)) - kappa
    kl = (kappa * length + log_c + math.log(2 * math.pi**2)).mean()
    assert found["recon"] == pytest.approx(float(recon), abs=1e-9)
    assert found["kl"] == pytest.approx(kl, abs=1e-9)
    assert found["loss"] == pytest.approx(float(recon) + kl, abs=1e-9) and found["elbo"] == pytest.approx(
        -found["loss"]
    )
    assert found["kappa"] == pytest.approx(kappa.mean(), abs=1e-12)
    q = model.posterior(batch.x_BCHW)
    assert q.logvar_BD is None and q.kl_BD is None and not model.standard_prior
    same(q.mean_BD, torch.as_tensor(length)[:, None] * mu)
    same(model.decode(q.mean_BD), model.decode(mu))  # of a mean its direction
    assert model.kl_weight(model.hyper(0)) == 1.0
    (gradient,) = torch.autograd.grad(model.loss(batch, model.hyper(0))["kl"].value, model.encoder[-1].bias)
    same(gradient[:4], torch.zeros(4))  # the KL is of kappa alone
    assert float(gradient[4]) > 0


def test_latents_stay_on_the_sphere_through_the_commands(vae: Callable[..., Result]) -> None:
    line = ["train", "--data", "squares", "--model", "svae", "--latent-dim", 3, "--steps", 60, "--batch-size", 32]
    line += ["-S", "model.net={name: mlp, hidden: [16]}", "--runs-dir", "runs", "--name", "r", "-q"]
    assert vae(*line).code == 0
    sampled = vae("sample", "runs/r", "-n", 50, "-o", "s.npz")
    assert sampled.code == 0, sampled.err
    same(np.linalg.norm(np.load("s.npz")["z"], axis=1), np.ones(50), atol=1e-6)
    for center in ("prior", "3"):
        done = vae("traverse", "runs/r", "--center", center, "--steps", 5, "-o", f"t{center}.png", "--json")
        assert done.code == 0, done.err
        record = json.loads(done.out)
        assert record["unit"] == "quantiles of the prior, at those of a normal"
    shown = vae("interpolate", "runs/r", 0, 5, "-o", "i.png", "--json")
    assert shown.code == 0, shown.err
    same(
        np.linalg.norm(json.loads(shown.out)["codes"], axis=1), np.ones(len(json.loads(shown.out)["codes"])), atol=1e-6
    )
    assert vae("encode", "runs/r", "-o", "c.npz").code == 0
    assert "logvar" not in np.load("c.npz")
    analysis = vae("analyze", "runs/r", "--json", "--diagnosis", "--split", "all")
    assert analysis.code == 0, analysis.err
    found = json.loads(analysis.out)
    assert found["diagnosis"]["law"] is None and found["diagnosis"]["moment_kl"] is None
    assert found["levels"][0]["exact"] is True and all(latent["kl"] is None for latent in found["latents"])
    assert found["verdict"]["name"] != "not judged" and Path("t3.png").exists()
