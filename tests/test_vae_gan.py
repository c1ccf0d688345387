"""vae-gan: the terms of its three players recomputed in float64, whom each moves, and that they get somewhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Result
from torch import Tensor

from vaecli import data, models
from vaecli.batch import Batch, DataInfo
from vaecli.data.digits import Config as Digits
from vaecli.models import vae_gan
from vaecli.models.base import total
from vaecli.settings.optim import Adam
from vaecli.training import checkpoint

F64 = torch.float64
INFO = DataInfo("toy", (1, 8, 8), 64, binary=True)


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    return models.build(vae_gan.Config.model_validate({**vae_gan.Config.tiny, **options}), INFO).double()


def toy(n: int = 6) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 8, 8, generator=g) > 0.5).double(), torch.arange(n))


@pytest.mark.parametrize("discriminator", [{"name": "mlp", "hidden": [16, 12]}, "dcgan"])
def test_the_terms_of_the_three_players_by_hand(discriminator: Any) -> None:
    model, batch = build(gamma=0.3, beta=0.7, discriminator=discriminator), toy()
    model.eval()  # so that batch norm and power iteration stand still
    x = batch.x_BCHW
    mean, logvar = model.encoder(x).chunk(2, dim=1)
    torch.manual_seed(5)
    z = mean + (logvar / 2).exp() * torch.randn_like(mean)
    drawn = model.decoder(torch.randn_like(z)).sigmoid()
    made = model.decoder(z).sigmoid()

    def d(images: Tensor) -> Tensor:
        return model.verdict(model.trunk(images)).sigmoid()

    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
    distance = 0.5 * (model.trunk(x) - model.trunk(made)).square().sum(dim=1).mean()
    wanted = {
        "encoder": 0.7 * kl + distance,
        "decoder": 0.3 * distance - d(made).log().mean() - d(drawn).log().mean(),
        "discriminator": -d(x).log().mean() - (1 - d(made)).log().mean() - (1 - d(drawn)).log().mean(),
    }
    for player, value in wanted.items():
        torch.manual_seed(5)
        found, logged = total(model.loss(batch, model.hyper(0), player))
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9)
        mine = next(p for p in model.players(Adam()) if p.name == player).parameters
        for a, b in zip(
            torch.autograd.grad(found, mine), torch.autograd.grad(value, mine, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        if player == "encoder":
            torch.testing.assert_close(logged["kl"], kl, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(logged["mse"], (x - made).square().mean(), rtol=1e-9, atol=1e-9)
        if player == "discriminator":
            torch.testing.assert_close(logged["D_real"], d(x).mean().detach(), rtol=1e-9, atol=1e-9)


def test_equal_images_are_at_no_distance_and_players_share_nothing() -> None:
    model, batch = build(), toy()
    assert float(vae_gan._distance(model.seen(batch.x_BCHW), model.seen(batch.x_BCHW)).detach().abs().max()) == 0.0
    owners = {player.name: {id(p) for p in player.parameters} for player in model.players(Adam())}
    assert sum(map(len, owners.values())) == len(set().union(*owners.values())) == len(list(model.parameters()))
    torch.autograd.backward(total(model.loss(batch, model.hyper(0), "discriminator"))[0])
    assert all(p.grad is None for net in (model.encoder, model.decoder) for p in net.parameters())
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(total(model.loss(batch, model.hyper(0), "decoder"))[0])
    assert all(p.grad is None for p in model.encoder.parameters())


def test_it_has_a_prior_and_a_rate_but_no_likelihood() -> None:
    model, x = build(), toy().x_BCHW
    assert not model.has_likelihood and model.standard_prior and model.log_prob(x, model.infer(x).values, {}) is None
    rate = model.rates(model.infer(x))["z"]
    mean, logvar = model.encoder(x).chunk(2, dim=1)
    torch.testing.assert_close(rate, 0.5 * (mean.square() + logvar.exp() - 1 - logvar), rtol=1e-9, atol=1e-9)
    drawn = model.float().image(model.draw(4)).detach()
    assert 0.0 < float(drawn.min()) < float(drawn.max()) < 1.0


@pytest.mark.slow
def test_it_learns_digits(vae: Callable[..., Result]) -> None:
    """Images come back nearer than the mean image is, and draws from the prior are no two alike, but digits to D."""
    small = ["-S", "model.net={name: mlp, hidden: [128]}", "--latent-dim", 8, "--lr", 0.001, "--runs-dir", "runs"]
    line = ["train", "--data", "digits", "--model", "vae-gan", *small, "--steps", 400, "--name", "r", "-q"]
    assert vae(*line).code == 0
    model = checkpoint.load("runs/r", torch.device("cpu")).model
    images = data.load(Digits(name="digits"))
    x = images.split("val").take(200).x_BCHW
    with torch.no_grad():
        mse = (model.image({"z": model.posterior(x).mean_BD}) - x).square().mean()
        torch.manual_seed(0)
        drawn = model.image({"z": torch.randn(200, 8)})
        judged = model.real(model.seen(drawn)).sigmoid().mean()
    assert mse < 0.75 * (x.mean(dim=0) - x).square().mean()
    assert drawn.std(dim=0).mean() > 0.5 * x.std(dim=0).mean()
    assert judged > 0.2  # a third of what D sees is real
