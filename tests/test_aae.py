"""aae: both players' terms recomputed in float64, and a critic that finds a density ratio that is known."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from vaecli import models
from vaecli.batch import Batch, DataInfo
from vaecli.models import aae
from vaecli.models.base import total
from vaecli.settings.optim import Adam

F64 = torch.float64
INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)


def build(info: DataInfo = INFO, **options: Any) -> Any:
    torch.manual_seed(0)
    config = {"latent_dim": 3, "net": {"name": "mlp", "hidden": [8]}, "critic": {"width": 16, "layers": 2}, **options}
    return models.build(aae.Config.model_validate(config), info).double()


def toy(n: int = 6) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 4, 4, generator=g) > 0.5).double(), torch.arange(n))


def logged(model: Any, batch: Batch, player: str) -> dict[str, float]:
    torch.manual_seed(1)
    return {
        n: float(torch.as_tensor(v).detach()) for n, v in total(model.loss(batch, model.hyper(0), player))[1].items()
    }


def test_the_terms_of_both_players_by_hand() -> None:
    model, batch = build(strength=3.0), toy()
    z = model.encoder(batch.x_BCHW)
    recon = -td.Bernoulli(logits=model.decoder(z)).log_prob(batch.x_BCHW).sum(dim=(1, 2, 3)).mean()
    d = torch.softmax(model.critic(z), dim=1)[:, 0]
    found = logged(model, batch, "main")
    assert found["recon"] == pytest.approx(float(recon.detach()), abs=1e-9)
    assert found["fool"] == pytest.approx(float(-d.log().mean().detach()), abs=1e-9)
    assert found["loss"] == pytest.approx(float((recon - 3.0 * d.log().mean()).detach()), abs=1e-9)
    torch.manual_seed(1)
    other = torch.softmax(model.critic(torch.randn_like(z)), dim=1)[:, 0]
    found = logged(model, batch, "critic")
    wanted = -0.5 * other.log().mean() - 0.5 * (1 - d).log().mean()
    assert found["loss"] == found["told"] == pytest.approx(float(wanted.detach()), abs=1e-9)
    right = 0.5 * (other > 0.5).double().mean() + 0.5 * (d < 0.5).double().mean()
    assert found["right"] == pytest.approx(float(right))


def test_the_critic_moves_no_encoder_and_the_autoencoder_no_critic() -> None:
    model, batch = build(), toy()
    main, critic = model.players(Adam())
    assert {id(p) for p in critic.parameters} == {id(p) for p in model.critic.parameters()}
    torch.autograd.backward(total(model.loss(batch, model.hyper(0), "critic"))[0])
    assert all(p.grad is None for p in main.parameters)
    assert all(p.grad is not None for p in critic.parameters)
    (gradient,) = torch.autograd.grad(model.loss(batch, model.hyper(0))["fool"].value, model.encoder[1].weight)
    assert float(gradient.abs().max()) > 0


def test_the_critic_reaches_a_known_density_ratio() -> None:
    """Codes that are N(m, s^2): log p(z) - log q(z) is a quadratic, and the critic's loss log 2 less a divergence."""
    info = DataInfo("numbers", (1, 1, 2), 64)
    model = build(info, latent_dim=2, net={"name": "mlp", "hidden": []}, critic={"width": 48, "layers": 2})
    mean, scale = torch.tensor([0.8, -0.4], dtype=F64), torch.tensor([0.7, 1.2], dtype=F64)
    with torch.no_grad():
        model.encoder[1].weight.copy_(torch.diag(scale))
        model.encoder[1].bias.copy_(mean)
    optimizer = torch.optim.Adam(model.critic.parameters(), lr=0.01)
    torch.manual_seed(2)
    for step in range(900):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * 0.5 ** (step // 200)
        x = torch.randn(512, 1, 1, 2, dtype=F64)
        loss = total(model.loss(Batch(x, torch.arange(512)), model.hyper(0), "critic"))[0]
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    q, p = td.Normal(mean, scale), td.Normal(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64))

    def log_ratio(z: Tensor) -> Tensor:
        return (p.log_prob(z) - q.log_prob(z)).sum(dim=1)

    with torch.no_grad():
        z = torch.cat([q.sample((4000,)), p.sample((4000,))])
        found, wanted = model.log_ratio(z), log_ratio(z)
        near = wanted.abs() < 3
        assert float((found - wanted)[near].abs().mean()) < 0.12
        assert float(wanted[near].std()) > 0.8
        x = (q.sample((20_000,)) - mean) / scale
        told = float(
            model.loss(Batch(x.view(-1, 1, 1, 2), torch.arange(20_000)), model.hyper(0), "critic")["told"].value
        )
        z_p, z_q = p.sample((20_000,)), q.sample((20_000,))
        best = 0.5 * torch.nn.functional.softplus(-log_ratio(z_p)).mean()
        best = best + 0.5 * torch.nn.functional.softplus(log_ratio(z_q)).mean()
    assert told == pytest.approx(float(best), abs=0.01) and float(best) < math.log(2) - 0.1


def test_codes_are_points_under_a_standard_prior() -> None:
    model = build(critic_optim={"lr": 1e-5}, critic_updates=2)
    (level,) = model.levels
    assert level.kind == "point" and level.standard and model.posterior(toy().x_BCHW).logvar_BD is None
    player = model.players(Adam())[1]
    assert (player.updates, player.optim.lr, player.optim.betas) == (2, 1e-5, (0.5, 0.999))
    assert "critic of 2 layers of 16, adam lr 1e-05" in model.objective_text(model.hyper(0))
