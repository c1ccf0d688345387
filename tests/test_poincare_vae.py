"""poincare-vae: maps that undo each other, a density that integrates to one, distances to planes, the objective."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from pydantic import ValidationError
from scipy import stats
from torch import Tensor
from torch import distributions as td

from vaecli import models
from vaecli.batch import Batch, DataInfo
from vaecli.models import poincare_vae
from vaecli.models.base import total
from vaecli.nets.gyroplanes import Gyroplanes
from vaecli.objectives import distributions
from vaecli.objectives.hyperbolic import Ball, WrappedNormal

F64 = torch.float64
INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)
curvatures = pytest.mark.parametrize("c", [0.3, 1.0, 2.5])


def same(found: Any, wanted: Any, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    a, b = (torch.as_tensor(t, dtype=F64).detach() for t in (found, wanted))
    torch.testing.assert_close(a, b.expand_as(a), rtol=rtol, atol=atol)


def points(c: float, n: int = 6, d: int = 3, seed: int = 0, size: float = 1.5) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return Ball(c).reach(size * torch.randn(n, d, dtype=F64, generator=g))


# ---- the ball


@curvatures
def test_exp_and_log_undo_each_other_and_addition_can_be_undone(c: float) -> None:
    ball, a, b = Ball(c), points(c), points(c, seed=1)
    u = torch.randn(6, 3, dtype=F64, generator=torch.Generator().manual_seed(2)) / ball.conformal(a)
    same(ball.log(a, ball.exp(a, u)), u)
    same(ball.exp(a, ball.log(a, b)), b)
    same(ball.add(-a, ball.add(a, b)), b)
    same(ball.direction(ball.reach(u)), u)
    arcosh = 1 + 2 * c * (a - b).square().sum(dim=1) / (
        (1 - c * a.square().sum(dim=1)) * (1 - c * b.square().sum(dim=1))
    )
    same(ball.distance(a, b), torch.acosh(arcosh) / math.sqrt(c))
    same(ball.distance(a, ball.exp(a, u)), ball.conformal(a)[:, 0] * u.norm(dim=1))  # lengths as the metric has them


@curvatures
def test_ways_are_geodesics_and_places_stay_inside(c: float) -> None:
    ball = Ball(c)
    a, b = points(c)[0], points(c, seed=1)[0]
    way = ball.way(a, b, torch.linspace(0, 1, 5, dtype=F64))
    same(way[0], a)
    same(way[-1], b)
    steps = ball.distance(way[:-1], way[1:])
    same(steps, steps[0])
    same(steps.sum(), ball.distance(a[None], b[None])[0])
    radius = 1 / math.sqrt(c)
    z = points(c)[:1].repeat(4, 1)
    value = radius * torch.tensor([-2.0, -0.9, 0.1, 0.999], dtype=F64)
    placed = ball.placed(z, 1, value)
    assert float(placed.norm(dim=1).max()) < radius
    same(placed[1:, 1], value[1:])
    same(placed[2, [0, 2]], z[2, [0, 2]])  # where there is room the others stay
    same(placed[:, 0] * z[:, 2], placed[:, 2] * z[:, 0])  # and where not, keep their proportion
    assert float(ball.project(torch.full((1, 3), 9.0, dtype=F64)).norm()) < radius
    same(ball.project(z), z)


# ---- the wrapped normal


@curvatures
def test_the_density_integrates_to_one_over_the_disc(c: float) -> None:
    """In polar coordinates around 0, with the volume lambda^2 of the ball; a centre off 0, widths that differ."""
    mu = torch.tensor([[0.35, -0.2]], dtype=F64) / math.sqrt(c)
    node, weight = np.polynomial.legendre.leggauss(600)
    far = torch.from_numpy(6.5 * (node + 1))  # distance from 0
    angle = torch.arange(400, dtype=F64) * 2 * math.pi / 400
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    z = Ball(c).reach(far[:, None, None] * circle).view(-1, 2)
    q = WrappedNormal(mu.expand(len(z), 2), torch.tensor([[-0.8, 0.3]], dtype=F64).expand(len(z), 2), c)
    area = torch.from_numpy(6.5 * weight) * torch.sinh(math.sqrt(c) * far) / math.sqrt(c)  # of a circle's element
    density = q.log_prob(z).exp().view(600, 400)
    same((density.mean(dim=1) * 2 * math.pi * area).sum(), 1.0, atol=1e-7)


@curvatures
def test_draws_lie_where_the_density_says(c: float) -> None:
    """Their tangent vectors are normal with the given widths; and E[1 / q] over a piece of the disc is its area."""
    n = 20_000
    mu = points(c, 1, 2)
    logvar = torch.tensor([[-1.0, -0.2]], dtype=F64)
    q = WrappedNormal(mu.expand(n, 2), logvar.expand(n, 2), c)
    torch.manual_seed(0)
    z = q.rsample()
    ball = Ball(c)
    v = ball.conformal(mu) * ball.log(mu.expand(n, 2), z)
    for d in range(2):
        assert stats.kstest(v[:, d].numpy(), stats.norm(0, math.exp(logvar[0, d] / 2)).cdf).pvalue > 1e-3
    near = (ball.distance(mu.expand(n, 2), z) < 0.4).double()  # a disc of area 2 pi (cosh(sqrt(c) r) - 1) / c
    shares = near / q.log_prob(z).exp()
    area = 2 * math.pi * (math.cosh(math.sqrt(c) * 0.4) - 1) / c
    assert float(shares.mean()) == pytest.approx(area, abs=5 * float(shares.std()) / math.sqrt(n))
    torch.manual_seed(0)
    half = distributions.sample(q, 0.5)
    same(ball.distance(mu.expand(n, 2), half), 0.5 * ball.distance(mu.expand(n, 2), z), atol=1e-8)
    same(distributions.mode(q), mu)
    mean, variance = distributions.moments(q)
    assert variance is not None and not distributions.exact_moments(q)
    error = z.std(dim=0) / 8
    assert bool(((mean[0] - z.mean(dim=0)).abs() < 4 * error).all())
    assert bool(((variance[0] / z.var(dim=0)).log().abs() < 0.8).all())


def test_the_log_density_written_out_and_values_along_an_axis() -> None:
    c, d = 1.7, 4
    mu, z = points(c, d=d), points(c, d=d, seed=3)
    logvar = 0.3 * torch.randn(6, d, dtype=F64, generator=torch.Generator().manual_seed(5))
    ball = Ball(c)
    v = ball.conformal(mu) * ball.log(mu, z)
    r = ball.distance(mu, z)
    wanted = td.Normal(torch.zeros((), dtype=F64), (logvar / 2).exp()).log_prob(v).sum(dim=1)
    wanted = wanted - (d - 1) * (torch.sinh(math.sqrt(c) * r) / (math.sqrt(c) * r)).log()
    same(WrappedNormal(mu, logvar, c).log_prob(z), wanted)
    same(v.norm(dim=1), r)
    p = WrappedNormal(torch.zeros(1, d, dtype=F64), torch.full((1, d), 2 * math.log(0.7), dtype=F64), c)
    t = torch.linspace(-3, 3, 7, dtype=F64)
    on_axis = torch.zeros(7, d, dtype=F64)
    on_axis[:, 2] = p.values(2, t)
    same(ball.distance(torch.zeros_like(on_axis), on_axis), 0.7 * t.abs())
    assert bool((on_axis[1:, 2] > on_axis[:-1, 2]).all()) and p.unit == "sd of the prior"


# ---- the hyperplanes


@curvatures
def test_hyperplanes_give_signed_distances(c: float) -> None:
    """Against the nearest of many points of the plane, which are exp_p(u) of u at right angles to the normal."""
    torch.manual_seed(0)
    layer, ball = Gyroplanes(2, 5, c).double(), Ball(c)
    z = points(c, d=2)
    found = layer(z)
    for h in range(5):
        p = ball.reach(layer.foot_HD[h : h + 1].detach())
        a = layer.normal_HD[h].detach() * (1 - c * float(p.square().sum()))  # carried to p
        across = torch.tensor([[-a[1], a[0]]]) / a.norm()
        plane = ball.exp(p, torch.linspace(-6, 6, 40_001, dtype=F64)[:, None] * across / ball.conformal(p))
        weight = ball.conformal(p)[0, 0] * a.norm()
        for i in range(6):
            least = ball.distance(plane, z[i : i + 1].expand(len(plane), 2)).min()
            side = torch.sign((a * ball.log(p, z[i : i + 1])).sum())
            same(found[i, h], side * weight * least, rtol=1e-5, atol=1e-5)


# ---- the model


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    config = {"latent_dim": 3, "net": {"name": "mlp", "hidden": [8]}, "planes": 6, **options}
    return models.build(poincare_vae.Config.model_validate(config), INFO).double()


def toy(n: int = 6) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 4, 4, generator=g) > 0.5).double(), torch.arange(n))


def test_the_loss_by_hand() -> None:
    c = 1.4
    model, batch = build(curvature=c, prior_scale=1.3), toy()
    torch.manual_seed(2)
    found = {
        name: float(torch.as_tensor(v).detach()) for name, v in total(model.loss(batch, model.hyper(0)))[1].items()
    }
    raw, logvar = model.encoder(batch.x_BCHW).chunk(2, dim=1)
    length = raw.norm(dim=1, keepdim=True)
    mu = torch.tanh(math.sqrt(c) * length) * raw / (math.sqrt(c) * length)  # exp_0
    ball = Ball(c)
    torch.manual_seed(2)
    v = (logvar / 2).exp() * torch.randn_like(mu)
    z = ball.exp(mu, v / ball.conformal(mu))
    r = v.norm(dim=1)
    r0 = ball.distance(torch.zeros_like(z), z)

    def log_density(v: Tensor, sd: Any, r: Tensor) -> Tensor:
        stretch = (torch.sinh(math.sqrt(c) * r) / (math.sqrt(c) * r)).log()
        return td.Normal(torch.zeros((), dtype=F64), sd).log_prob(v).sum(dim=1) - 2 * stretch

    to_z = r0.unsqueeze(1) * z / z.norm(dim=1, keepdim=True)
    kl = (log_density(v, (logvar / 2).exp(), r) - log_density(to_z, 1.3, r0)).mean()
    recon = -td.Bernoulli(logits=model.decoder(z)).log_prob(batch.x_BCHW).sum(dim=(1, 2, 3)).mean()
    assert found["recon"] == pytest.approx(float(recon.detach()), abs=1e-9)
    assert found["kl"] == pytest.approx(float(kl.detach()), abs=1e-9)
    assert found["loss"] == pytest.approx(float((recon + kl).detach()), abs=1e-9) and found["elbo"] == -found["loss"]
    assert not model.standard_prior and model.posterior(batch.x_BCHW).logvar_BD is None
    outside = model.decode(9.0 * mu)
    same(outside, model.decode(ball.project(9.0 * mu)))


def test_as_the_ball_flattens_it_is_the_gaussian_vae() -> None:
    """c -> 0: the rate is that of normals around 2 x the encoder's numbers, for lengths are doubled at 0."""
    model, x = build(curvature=1e-8), toy(3).x_BCHW
    raw, logvar = model.encoder(x).chunk(2, dim=1)
    torch.manual_seed(1)
    found = model.infer(x.repeat_interleave(20_000, dim=0), sample=True)
    rate = model.rates(found)["z"].detach().view(3, -1)
    wanted = 0.5 * ((2 * raw).square() + logvar.exp() - 1 - logvar).sum(dim=1)
    error = rate.std(dim=1) / math.sqrt(20_000)
    assert bool(((rate.mean(dim=1) - wanted).abs() < 5 * error).all())


def test_latents_stay_in_the_ball_through_the_commands(vae: Callable[..., Result]) -> None:
    line = ["train", "--data", "squares", "--model", "poincare-vae", "--latent-dim", 2, "--steps", 60]
    line += ["-S", "model.net={name: mlp, hidden: [16]}", "-S", "model.planes=8", "-S", "model.curvature=2.0"]
    line += ["--batch-size", 32, "--runs-dir", "runs", "--name", "r", "-q"]
    assert vae(*line).code == 0
    radius = 1 / math.sqrt(2.0)
    for temperature in (1.0, 3.0):
        sampled = vae("sample", "runs/r", "-n", 80, "--temperature", temperature, "-o", "s.npz", "--force")
        assert sampled.code == 0, sampled.err
        assert float(np.linalg.norm(np.load("s.npz")["z"], axis=1).max()) < radius
    for center in ("prior", "3"):
        done = vae(
            "traverse", "runs/r", "--center", center, "--steps", 5, "--range", 9, "-o", f"t{center}.png", "--json"
        )
        assert done.code == 0, done.err
        assert json.loads(done.out)["unit"] == "standard deviations of the prior"
    shown = vae("interpolate", "runs/r", 0, 5, "-o", "i.png", "--json")
    assert shown.code == 0, shown.err
    codes = np.array(json.loads(shown.out)["codes"])
    assert float(np.linalg.norm(codes, axis=1).max()) < radius
    assert vae("encode", "runs/r", "-o", "c.npz").code == 0
    assert "logvar" not in np.load("c.npz")
    analysis = vae("analyze", "runs/r", "--json", "--diagnosis")
    assert analysis.code == 0, analysis.err
    found = json.loads(analysis.out)
    assert found["diagnosis"]["law"] is None and found["diagnosis"]["moment_kl"] is None
    assert found["levels"][0]["exact"] is False


def test_settings() -> None:
    plain = build(planes=None)
    same(plain.image({"z": torch.zeros(1, 3, dtype=F64)}), plain.decoder(torch.zeros(1, 3, dtype=F64)).sigmoid())
    for wrong in ({"curvature": 0.0}, {"prior_scale": -1.0}, {"planes": 0}):
        with pytest.raises(ValidationError):
            poincare_vae.Config.model_validate({"latent_dim": 3, **wrong})
