"""hamiltonian-vae: leapfrog steps that can be undone, the volume they change, the bound by hand and log p(x)."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch import distributions as td

from vaecli import models
from vaecli.batch import Batch, DataInfo
from vaecli.models import hamiltonian_vae
from vaecli.models.base import total
from vaecli.objectives import distributions, hamiltonian
from vaecli.speed import fast

F64 = torch.float64
INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)


def build(info: DataInfo = INFO, **options: Any) -> Any:
    torch.manual_seed(0)
    net = {"name": "mlp", "hidden": [8], "activation": "softplus"}
    config = hamiltonian_vae.Config.model_validate({"latent_dim": 3, "net": net, "step_size": 0.2, **options})
    model = models.build(config, info).double()
    with torch.no_grad():
        if config.beta_zero < 1:
            model.raw_beta.fill_(math.log(config.beta_zero) - math.log1p(-config.beta_zero))  # to float64's last digit
        model.raw_step_D += torch.linspace(-0.5, 0.5, len(model.raw_step_D), dtype=F64)  # a step of its own each
    return model


def toy(n: int = 5) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 4, 4, generator=g) > 0.5).double(), torch.arange(n))


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# ---- the dynamics


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_steps_can_be_undone(steps: int) -> None:
    model = build(steps=steps)
    q = model.q("z", model.features(toy().x_BCHW), {})
    z, rho = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    there = q.move(z, rho)
    assert steps == 0 or float((there[0] - z).detach().abs().min()) > 1e-3
    back = q.undo(*there)
    same(back[0], z)
    same(back[1], rho)


@pytest.mark.parametrize(("steps", "beta"), [(1, 1.0), (3, 0.3), (4, 0.05)])
def test_the_change_of_volume_is_that_of_the_cooling_alone(steps: int, beta: float) -> None:
    model = build(steps=steps, beta_zero=beta)
    q = model.q("z", model.features(toy(1).x_BCHW), {})

    def moved(both: Tensor) -> Tensor:
        return torch.cat(q.move(both[None, :3], both[None, 3:]), dim=1)[0]

    jacobian = torch.autograd.functional.jacobian(moved, torch.randn(6, dtype=F64))
    same(torch.linalg.slogdet(jacobian).logabsdet, torch.tensor(1.5 * math.log(beta), dtype=F64))


def test_the_loss_written_out() -> None:
    """Leapfrog with gradients of log p(x, z) by hand, every density in full; and its derivatives by differences."""
    model, batch, steps, beta = build(steps=3, beta_zero=0.3), toy(), 3, 0.3
    x = batch.x_BCHW
    standard = td.Normal(torch.zeros((), dtype=F64), 1.0)

    def log_joint(z: Tensor) -> Tensor:
        return td.Bernoulli(logits=model.decoder(z)).log_prob(x).sum(dim=(1, 2, 3)) + standard.log_prob(z).sum(dim=1)

    def slope(z: Tensor) -> Tensor:
        return torch.autograd.grad(log_joint(z).sum(), z, create_graph=True)[0]

    mean, logvar = model.encoder(x).chunk(2, dim=1)
    torch.manual_seed(3)
    z0 = mean + (logvar / 2).exp() * torch.randn_like(mean)
    rho0 = torch.randn_like(mean) / math.sqrt(beta)
    step = 0.5 * torch.sigmoid(model.raw_step_D)
    z, rho, old = z0, rho0, math.sqrt(beta)
    for k in range(1, steps + 1):
        rho = rho + step / 2 * slope(z)
        z = z + step * rho
        rho = rho + step / 2 * slope(z)
        new = 1 / ((1 - 1 / math.sqrt(beta)) * k**2 / steps**2 + 1 / math.sqrt(beta))
        rho, old = old / new * rho, new
    assert old == pytest.approx(1.0)
    log_q = td.Normal(mean, (logvar / 2).exp()).log_prob(z0).sum(dim=1)
    log_q = log_q + td.Normal(torch.zeros((), dtype=F64), 1 / math.sqrt(beta)).log_prob(rho0).sum(dim=1)
    log_q = log_q - 1.5 * math.log(beta)  # the change of volume
    wanted = -(log_joint(z) + standard.log_prob(rho).sum(dim=1) - log_q).mean()

    def loss() -> Tensor:
        torch.manual_seed(3)
        return total(model.loss(batch, model.hyper(0)))[0]

    found = loss()
    same(found, wanted)
    inner = (model.encoder[3].weight, model.decoder[0].weight, model.raw_step_D)
    for a, b in zip(torch.autograd.grad(found, inner), torch.autograd.grad(wanted, inner), strict=True):
        same(a, b)
    for parameter in (model.raw_beta, model.raw_step_D, model.decoder[2].bias):
        (gradient,) = torch.autograd.grad(loss(), parameter)
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[0] += 1e-5
            up = float(loss())
            flat[0] -= 2e-5
            down = float(loss())
            flat[0] += 1e-5
        assert float(gradient.view(-1)[0]) == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-9)


def test_without_steps_it_is_the_elbo() -> None:
    model, batch = build(steps=0), toy()
    torch.manual_seed(3)
    logged = total(model.loss(batch, model.hyper(0)))[1]
    mean, logvar = model.encoder(batch.x_BCHW).chunk(2, dim=1)
    torch.manual_seed(3)
    q = td.Normal(mean, (logvar / 2).exp())
    z = mean + q.scale * torch.randn_like(mean)
    kl = (q.log_prob(z) - td.Normal(torch.zeros((), dtype=F64), 1.0).log_prob(z)).sum(dim=1).mean()
    recon = -td.Bernoulli(logits=model.decoder(z)).log_prob(batch.x_BCHW).sum(dim=(1, 2, 3)).mean()
    same(torch.as_tensor(logged["kl"]), kl)
    same(torch.as_tensor(logged["loss"]), recon + kl)
    assert not any(p.requires_grad for p in (model.raw_step_D, model.raw_beta))


# ---- a model whose likelihood and posterior are known


class Linear:
    """x ~ N(w z, sigma^2), z ~ N(0, 1), two of each; the encoder's Gaussian is off its place and too wide."""

    w, sigma, off, wide = 1.3, 0.6, 0.5, 1.6

    def __init__(self, steps: int, beta: float = 0.5, step: float = 0.2) -> None:
        self.info = DataInfo("linear", (1, 1, 2), 64)
        self.model = build(
            self.info,
            latent_dim=2,
            steps=steps,
            step_size=step,
            beta_zero=beta,
            net={"name": "mlp", "hidden": []},
            likelihood={"name": "gaussian", "sigma": self.sigma},
        )
        with torch.no_grad():
            self.model.raw_step_D.fill_(math.log(step / 0.5) - math.log1p(-step / 0.5))
            self.model.decoder[0].weight.copy_(self.w * torch.eye(2))
            self.model.decoder[0].bias.zero_()
            noise = self.w**2 + self.sigma**2
            self.model.encoder[1].weight.copy_(torch.cat([self.w / noise * torch.eye(2), torch.zeros(2, 2)]))
            variance = self.wide * self.sigma**2 / noise
            self.model.encoder[1].bias.copy_(torch.tensor([self.off, -self.off, *[math.log(variance)] * 2]))
        self.x = torch.tensor([[0.8, -1.5]], dtype=F64).view(1, 1, 1, 2)
        self.log_p = float(td.Normal(torch.zeros((), dtype=F64), math.sqrt(noise)).log_prob(self.x).sum())

    def log_weights(self, n: int) -> Tensor:
        torch.manual_seed(1)
        x = self.x.expand(n, 1, 1, 2)
        with torch.no_grad():
            q = self.model.q("z", self.model.features(x), {})
            z = q.rsample()
            log_p = self.model.log_prob(x, {"z": z}, self.model.hyper(0)) + td.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
            return log_p - q.log_prob(z)


def test_steps_tighten_the_bound_and_many_draws_make_it_log_p() -> None:
    """Of a base that stays, 1.56 nats from the posterior, four steps leave 1.0. (Not 0: steps of a finer size keep the
    divergence to the posterior as it is, and cooling alone loses some of it.)"""
    n, gaps = 40_000, []
    for steps in range(5):
        toy = Linear(steps)
        log_w = toy.log_weights(n)
        ratio = (log_w - toy.log_p).exp()
        assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * float(ratio.std()) / math.sqrt(n))
        gaps.append(toy.log_p - float(log_w.mean()))
        error = float(log_w.std()) / math.sqrt(n)
        assert len(gaps) == 1 or gaps[-2] - gaps[-1] > 3 * error
        bounds = torch.stack([(log_w.view(-1, k).logsumexp(dim=1) - math.log(k)).mean() for k in (1, 10, 100, 4000)])
        rises = (bounds - toy.log_p).tolist()
        assert rises == sorted(rises) and abs(rises[-1]) < 0.03
    variance = Linear.sigma**2 / (Linear.w**2 + Linear.sigma**2)
    of_base = 2 * 0.5 * (Linear.wide - 1 - math.log(Linear.wide) + Linear.off**2 / variance)
    assert gaps[0] == pytest.approx(of_base, abs=0.05) and gaps[-1] < 0.7 * gaps[0]


def test_the_design_of_starts_and_momenta() -> None:
    half = hamiltonian.design(torch.Size([6]))
    assert half.shape == (8, 2, 6) and bool((half.abs() == 1).all())
    moments_DD = half.flatten(1).T @ half.flatten(1) / 8
    wanted = torch.eye(12)
    for first in (0, 6):  # the fifth and sixth latents are moved as the first and second are
        for d in (0, 1):
            wanted[first + d, first + d + 4] = wanted[first + d + 4, first + d] = 1.0
    assert torch.equal(moments_DD, wanted)


def test_moments_and_density_of_the_moved_posterior_where_it_is_a_gaussian() -> None:
    """Linear dynamics: z_K is a Gaussian whose mean and variance follow from the map; its density without momentum."""
    toy = Linear(3)
    with torch.no_grad():
        q = toy.model.q("z", toy.model.features(toy.x), {})
        zero, unit = torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)
        start = q.move(zero, zero)[0]
        by_z = torch.cat([q.move(unit[i : i + 1], zero)[0] - start for i in range(2)])
        by_rho = torch.cat([q.move(zero, unit[i : i + 1])[0] - start for i in range(2)])
        mean = start + q.base.loc @ by_z
        cov = by_z.T @ torch.diag(q.base.scale[0] ** 2) @ by_z + by_rho.T @ by_rho / q.root**2
        same(distributions.mode(q), mean)
        found, variance = distributions.moments(q)
        same(found, mean)  # antithetic draws: exact for a linear map
        assert variance is not None and not distributions.exact_moments(q)
        assert bool(((variance[0] / cov.diag()).log().abs() < 1.5).all())
        value = mean + torch.tensor([[0.3, -0.4]], dtype=F64)
        exact = td.MultivariateNormal(mean[0], cov).log_prob(value[0])
        n = 60_000
        x = toy.x.expand(n, 1, 1, 2)
        torch.manual_seed(4)
        many = toy.model.q("z", toy.model.features(x), {}).log_prob(value.expand(n, 2))
        ratio = (many - exact).exp()
        assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * float(ratio.std()) / math.sqrt(n))
        assert float(many.std()) > 0.05


def test_the_density_of_a_draw_is_that_of_its_own_momentum() -> None:
    model = build(steps=2)
    with torch.inference_mode():  # as in an analysis
        found = model.infer(toy().x_BCHW, sample=True)
        q, z = found.posteriors["z"], found.values["z"]
        once, again = q.log_prob(z), q.log_prob(z)
        other, fresh = q.log_prob(z.clone()), q.log_prob(z.clone())
    assert torch.equal(once, again) and not torch.equal(other, fresh)
    rate = model.rates(found)["z"]
    same(rate, once - td.Normal(0.0, 1.0).log_prob(z).sum(dim=1))
    first, second = model.posterior(toy().x_BCHW), model.posterior(toy().x_BCHW)
    assert torch.equal(first.mean_BD, second.mean_BD) and first.kl_BD is None


def test_settings() -> None:
    for wrong in (
        {"step_size": 0.5},
        {"beta_zero": 0.0},
        {"likelihood": {"name": "gaussian", "variance": "running"}},
        {"likelihood": {"name": "gaussian", "sigma": {"schedule": "linear", "start": 1.0, "end": 0.1, "steps": 9}}},
    ):
        with pytest.raises(ValidationError):
            hamiltonian_vae.Config.model_validate({"latent_dim": 3, **wrong})
    plain, still = build(beta_zero=1.0), build(learn=False)
    assert not plain.raw_beta.requires_grad and plain.raw_step_D.requires_grad
    assert not still.raw_beta.requires_grad and not still.raw_step_D.requires_grad
    assert float(plain.q("z", plain.features(toy().x_BCHW), {}).root) == 1.0


def test_the_quicker_layers_give_the_same_gradients_through_the_steps() -> None:
    """The decoder stands behind itself in every step; so it does in a net that is applied twice."""
    quick, plain = build(steps=3).float(), build(steps=3).float()
    if not fast.accelerate(quick):
        pytest.skip("no quicker layers here")
    x = toy().x_BCHW.float()
    for model in (quick, plain):
        torch.manual_seed(3)
        torch.autograd.backward(total(model.loss(Batch(x, torch.arange(5)), model.hyper(0)))[0])
    for (name, p), other in zip(plain.named_parameters(), quick.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(other.grad, p.grad, rtol=1e-4, atol=1e-5, msg=name)
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    fast.accelerate(nets[1])
    found = []
    for net in nets:
        y = net(net(torch.linspace(-1, 1, 24).view(4, 6))).square().sum()
        found.append(torch.autograd.grad(y, list(net.parameters()), create_graph=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
