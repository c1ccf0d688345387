"""`factor-vae`: every term in float64, the permutation, and a critic that learns a known density ratio."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from vaecli import models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Model, total
from vaecli.models.factor_vae import Model as FactorVAE
from vaecli.nets import critics
from vaecli.settings.optim import Adam

INFO = DataInfo("toy", (1, 4, 4), 50, binary=True)  # for a Bernoulli likelihood
F64 = torch.float64


def made(**settings: object) -> FactorVAE:
    torch.manual_seed(0)
    values = {
        "name": "factor-vae",
        "latent_dim": 3,
        "net": {"name": "mlp", "hidden": [8], "activation": "tanh"},
        "critic": {"width": 16, "layers": 2},
        **settings,
    }
    model: Model = models.build(registry.load("model", "factor-vae").Config.model_validate(values), INFO)
    assert isinstance(model, FactorVAE)
    return model.double()


def batch(n: int = 6, seed: int = 1) -> Batch:
    x_BCHW = torch.rand(n, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return Batch(x_BCHW, torch.arange(n))


def both(n: int = 6) -> Batch:
    first = batch(n)
    return Batch(first.x_BCHW, first.index_B, others=(batch(n, seed=2),))


def codes(model: FactorVAE, b: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, logvar, one draw)."""
    mean_BD, logvar_BD = model.encoder(b.x_BCHW).chunk(2, dim=1)
    return mean_BD, logvar_BD, mean_BD + (0.5 * logvar_BD).exp() * torch.randn(mean_BD.shape, dtype=F64)


def probabilities(model: FactorVAE, z_BD: Tensor) -> Tensor:
    """D_0 and D_1 by the critic's layers one after the other, (B, 2)."""
    h = z_BD
    for layer in list(model.critic)[:-1]:
        h = h @ layer.weight.T + layer.bias if hasattr(layer, "weight") else torch.where(h > 0, h, 0.2 * h)
    logits = (h @ model.critic[-1].weight.T + model.critic[-1].bias).exp()  # type: ignore[operator,union-attr]
    return logits / logits.sum(1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------- permutation


def test_permuting_keeps_marginals_and_breaks_pairs() -> None:
    torch.manual_seed(0)
    b = 20_000
    first_B = torch.randn(b, dtype=F64)
    z_BD = torch.stack([first_B, first_B, 0.6 * first_B + 0.8 * torch.randn(b, dtype=F64)], dim=1)
    p_BD = critics.permuted(z_BD)
    assert torch.equal(p_BD.sort(dim=0).values, z_BD.sort(dim=0).values)
    rho = torch.corrcoef(torch.cat([z_BD, p_BD], dim=1).T)
    assert float(rho[0, 2]) > 0.55
    others = [rho[i, j] for i, j in itertools.combinations(range(6), 2) if j >= 3]
    assert float(torch.stack(others).abs().max()) < 4.5 / math.sqrt(b)


def test_every_order_is_as_likely_and_latents_have_orders_of_their_own() -> None:
    torch.manual_seed(1)
    z_BD = torch.arange(3.0).repeat(2, 1).T
    draws = 3600
    counts: dict[tuple[float, ...], int] = {}
    for _ in range(draws):
        key = tuple(critics.permuted(z_BD).T.flatten().tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 36  # 3! orders of each latent
    chi2 = sum((count - draws / 36) ** 2 / (draws / 36) for count in counts.values())
    assert chi2 < 66.6  # the 99.9 % quantile of 35 degrees of freedom


# --------------------------------------------------------------------------------------------------------------- terms


def test_the_default_critic_is_the_papers() -> None:
    net = critics.build(critics.CriticConfig(), 10)
    widths = [tuple(layer.weight.shape) for layer in net if isinstance(layer, torch.nn.Linear)]
    assert widths == [(1000, 10), *[(1000, 1000)] * 5, (2, 1000)]
    assert [layer.negative_slope for layer in net if isinstance(layer, torch.nn.LeakyReLU)] == [0.2] * 6
    optim = registry.load("model", "factor-vae").Config().critic_optim
    assert (optim.name, optim.lr, optim.betas) == ("adam", 1e-4, (0.5, 0.9))


def test_what_the_critics_optimizer_leaves_out_is_the_papers() -> None:
    optim = made(critic_optim={"lr": 1e-5}).config.critic_optim
    assert isinstance(optim, Adam) and (optim.lr, optim.betas) == (1e-5, (0.5, 0.9))
    assert made(critic_optim={"name": "adam", "betas": [0.9, 0.99]}).config.critic_optim == Adam(
        lr=1e-4, betas=(0.9, 0.99)
    )
    other = made(critic_optim={"name": "sgd", "lr": 0.1}).config.critic_optim
    assert (other.name, other.lr) == ("sgd", 0.1)


def test_the_vaes_terms() -> None:
    model, b = made(gamma=6.5), batch()
    torch.manual_seed(4)
    parts = model.loss(b, model.hyper(0))
    torch.manual_seed(4)
    mean_BD, logvar_BD, z_BD = codes(model, b)
    logits = model.decoder(z_BD)
    recon = -(b.x_BCHW * logits.sigmoid().log() + (1 - b.x_BCHW) * (-logits).sigmoid().log()).flatten(1).sum(1).mean()
    kl = 0.5 * (mean_BD.square() + logvar_BD.exp() - logvar_BD - 1).sum(1).mean()
    share = probabilities(model, z_BD)
    tc = (share[:, 0].log() - share[:, 1].log()).mean()
    for name, value, weight in (("recon", recon, 1.0), ("kl", kl, 1.0), ("tc", tc, 6.5)):
        assert parts[name].value.item() == pytest.approx(value.item(), abs=1e-9)
        assert parts[name].weight == weight
    assert total(parts)[0].item() == pytest.approx((recon + kl + 6.5 * tc).item(), abs=1e-9)
    assert abs(tc.item()) > 1e-3


def test_the_critics_terms_read_permuted_codes_of_the_second_batch() -> None:
    model, b = made(), both()
    torch.manual_seed(4)
    parts = model.loss(b, model.hyper(0), "critic")
    torch.manual_seed(4)
    z_BD, other_BD = codes(model, b)[2], codes(model, b.others[0])[2]
    order_BD = torch.rand(6, 3, dtype=F64).argsort(dim=0)
    permuted_BD = torch.stack([other_BD[order_BD[:, d], d] for d in range(3)], dim=1)
    real, fake = probabilities(model, z_BD), probabilities(model, permuted_BD)
    told = -0.5 * real[:, 0].log().mean() - 0.5 * fake[:, 1].log().mean()
    assert parts["told"].value.item() == pytest.approx(told.item(), abs=1e-9)
    right = 0.5 * (real[:, 0] > 0.5).double().mean() + 0.5 * (fake[:, 1] > 0.5).double().mean()
    assert parts["right"].value.item() == pytest.approx(right.item(), abs=1e-12)
    assert parts["right"].weight is None


def test_each_player_has_its_own_parameters_and_gradients() -> None:
    model = made(critic_optim={"name": "adam", "lr": 3e-3})
    main, critic = model.players(Adam(lr=1e-4))
    assert (main.batches, critic.batches, main.optim.lr, critic.optim.lr) == (1, 2, 1e-4, 3e-3)
    ids = [{id(p) for p in player.parameters} for player in (main, critic)]
    assert not ids[0] & ids[1] and ids[0] | ids[1] == {id(p) for p in model.parameters()}
    torch.autograd.backward(total(model.loss(both(), model.hyper(0), "critic"))[0])
    assert all(p.grad is None for p in main.parameters)
    assert all(float(p.grad.abs().max()) > 0 for p in critic.parameters if p.grad is not None)
    # The other way round the total correlation does pull at the encoder.
    tc = model.loss(batch(), model.hyper(0))["tc"].value
    (slope,) = torch.autograd.grad(tc, model.encoder[-1].weight)  # type: ignore[arg-type]
    assert float(slope.abs().max()) > 0


# ------------------------------------------------------------------------------------------------------------- learning


def test_the_critic_learns_a_known_density_ratio() -> None:
    """Codes from N(0, R) with all correlations 1/2: TC = -1/2 log det R = 0.3466, and the log-ratio is quadratic."""
    model = made(net={"name": "mlp", "hidden": []}, critic={"width": 64, "layers": 3}, critic_optim={"name": "adam"})
    model.float()
    with torch.no_grad():  # z = the first three pixels
        model.encoder[-1].weight.zero_()  # type: ignore[union-attr,operator]
        model.encoder[-1].weight[:3, :3] = torch.eye(3)  # type: ignore[index]
        model.encoder[-1].bias.copy_(torch.tensor([0.0] * 3 + [-30.0] * 3))  # type: ignore[union-attr,operator]
    r_DD = torch.full((3, 3), 0.5) + 0.5 * torch.eye(3)
    root_DD = torch.linalg.cholesky(r_DD)

    def drawn(n: int) -> Batch:
        pixels = torch.zeros(n, 16)
        pixels[:, :3] = torch.randn(n, 3) @ root_DD.T
        return Batch(pixels.unflatten(1, (1, 4, 4)), torch.arange(n))

    torch.manual_seed(0)
    critic = model.players(Adam())[1]
    optimizer = torch.optim.Adam(critic.parameters, lr=3e-3, betas=(0.5, 0.9))
    steps = 600
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        first, second = drawn(512), drawn(512)
        b = Batch(first.x_BCHW, first.index_B, others=(second,))
        optimizer.zero_grad()
        torch.autograd.backward(total(model.loss(b, model.hyper(0), "critic"))[0])
        optimizer.step()
    exact = -0.5 * float(torch.logdet(r_DD))
    assert exact == pytest.approx(0.5 * math.log(2), abs=1e-6)
    with torch.no_grad():
        test = drawn(50_000)
        found = float(model.loss(test, model.hyper(0))["tc"].value)
        z_BD = test.x_BCHW.flatten(1)[:, :3]
        ratio_B = exact - 0.5 * ((z_BD @ torch.linalg.inv(r_DD)) * z_BD).sum(1) + 0.5 * z_BD.square().sum(1)
        off_B = model.log_ratio(z_BD) - ratio_B
    assert found == pytest.approx(exact, rel=0.06)
    assert float(off_B.abs().quantile(0.9)) < 0.25 * float(ratio_B.std())
