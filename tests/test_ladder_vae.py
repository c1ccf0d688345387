"""ladder-vae: the weighting by precision, the bound recomputed in float64, a model whose posterior is exact, and what
moves where in the hierarchy."""

import copy
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch import distributions as td

from vaecli import data, models
from vaecli.batch import Batch, DataInfo
from vaecli.data.squares import Config as Squares
from vaecli.models import ladder_vae
from vaecli.models.base import total
from vaecli.nets.stochastic import dense, gaussian, precision_weighted
from vaecli.objectives import distributions

F64 = torch.float64
INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)
TINY = {"latent_dim": 4, "upper": [3, 2], "hidden": [16, 12, 8], "net": {"name": "mlp", "hidden": [16]}}


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def build(info: DataInfo = INFO, **options: Any) -> Any:
    torch.manual_seed(0)
    return models.build(ladder_vae.Config.model_validate({**TINY, **options}), info).double()


def toy(n: int = 32, info: DataInfo = INFO) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, *info.shape, generator=g) > 0.5).double(), torch.arange(n))


@cache
@torch.enable_grad()
def trained() -> Any:
    """A model whose levels say something of the images, in evaluation mode: not to be changed."""
    model, batch = build(beta=0.2), toy(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        total(model.loss(batch, model.hyper(0)))[0].backward()
        optimizer.step()
    return model.eval()


# ---- the blocks


def test_precisions_add_and_means_are_averaged_in_their_proportion() -> None:
    a, u, b, v = (rand(5, 3, seed=i, scale=2.0) for i in range(4))
    mean, logvar = precision_weighted(a, u, b, v)
    x, y = torch.exp(-u), torch.exp(-v)
    same(logvar, -torch.log(x + y))
    same(mean, (a * x + b * y) / (x + y))
    swapped = precision_weighted(b, v, a, u)
    same(swapped[0], mean)
    same(swapped[1], logvar)


def test_the_product_of_the_densities_is_the_density_but_for_a_factor() -> None:
    a, u, b, v = (rand(3, seed=i) for i in range(4))
    mean, logvar = precision_weighted(a, u, b, v)
    z = rand(50, 3, seed=9, scale=3.0)

    def log_prob(m: Tensor, w: Tensor) -> Tensor:
        return td.Normal(m, (w / 2).exp()).log_prob(z)

    factor = log_prob(a, u) + log_prob(b, v) - log_prob(mean, logvar)
    same(factor, factor[:1].expand_as(factor))


def test_weighting_at_the_bounds_of_the_log_variance() -> None:
    """One of the two knows nothing: the other is left, exactly and with gradients, in float32 too."""
    mean, other = torch.tensor([3.0, -2.0]), torch.tensor([100.0, 100.0], requires_grad=True)
    found, logvar = precision_weighted(mean, torch.full((2,), -30.0), other, torch.full((2,), 20.0))
    assert torch.equal(found, mean) and torch.equal(logvar, torch.full((2,), -30.0))
    found.sum().backward()
    assert other.grad is not None and bool(other.grad.isfinite().all())


def test_layers_of_the_blocks() -> None:
    assert [type(m) for m in dense(3, [4, 5], nn.Tanh(), batch_norm=True)] == 2 * [nn.Linear, nn.BatchNorm1d, nn.Tanh]
    net = gaussian(3, [4], 2, nn.LeakyReLU(0.1)).double()
    x, (first, last) = rand(6, 3), [m for m in net if isinstance(m, nn.Linear)]
    h = x @ first.weight.T + first.bias
    same(net(x), torch.where(h > 0, h, 0.1 * h) @ last.weight.T + last.bias)


# ---- the objective


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_bound_recomputed_by_hand(training: bool, batch_norm: bool) -> None:
    model, batch = build(beta=0.7, batch_norm=batch_norm).train(training), toy()
    state = {key: t.clone() for key, t in model.state_dict().items()}
    torch.manual_seed(3)
    terms = total(model.loss(batch, model.hyper(0)))[1]
    if batch_norm and training:  # its statistics moved
        assert all(int(n) == 1 for key, n in model.state_dict().items() if key.endswith("num_batches_tracked"))
    model.load_state_dict(state)
    torch.manual_seed(3)
    leaky = nn.LeakyReLU(0.1)
    d1 = leaky(model.encoder(batch.x_BCHW))
    d2 = model.up[1](d1)
    d3 = model.up[2](d2)
    m1, m2, m3 = (head(d).chunk(2, dim=1) for head, d in zip(model.seen, (d1, d2, d3), strict=True))
    q3 = td.Normal(m3[0], (m3[1] / 2).exp())
    z3 = m3[0] + q3.scale * torch.randn(32, 2, dtype=F64)
    kl3 = td.kl_divergence(q3, td.Normal(0.0, 1.0)).sum(dim=1).mean()
    kls, above = [kl3], z3
    for down, (mean, logvar), size in ((model.down[1], m2, 3), (model.down[0], m1, 4)):
        p_mean, p_logvar = down(above).chunk(2, dim=1)
        prior = td.Normal(p_mean, (p_logvar / 2).exp())
        precision = 1 / logvar.exp() + 1 / prior.variance
        q = td.Normal((mean / logvar.exp() + prior.mean / prior.variance) / precision, precision.rsqrt())
        above = q.mean + q.scale * torch.randn(32, size, dtype=F64)
        kls.append(td.kl_divergence(q, prior).sum(dim=1).mean())
    recon = -td.Bernoulli(logits=model.decoder(above)).log_prob(batch.x_BCHW).sum(dim=(1, 2, 3)).mean()
    kl = kls[0] + kls[1] + kls[2]
    expected = {"loss": recon + 0.7 * kl, "recon": recon, "kl": kl, "elbo": -(recon + kl)}
    expected |= {"kl_z3": kls[0], "kl_z2": kls[1], "kl_z1": kls[2]}
    assert terms.keys() == {*expected, "recon.weight", "kl.weight"} and terms["kl.weight"] == 0.7
    for name, value in expected.items():
        same(torch.as_tensor(terms[name]), value)


def test_the_elbo_of_ancestral_draws_is_the_reconstruction_and_the_sum_of_the_rates() -> None:
    model, batch = trained(), toy()
    with torch.no_grad():
        torch.manual_seed(3)
        terms = total(model.loss(batch, model.hyper(0)))[1]
        torch.manual_seed(3)
        found = model.infer(batch.x_BCHW, sample=True)
        rates = model.rates(found)
        assert list(rates) == ["z3", "z2", "z1"]
        recon = -model.log_prob(batch.x_BCHW, found.values, model.hyper(0))
        cost = sum(rate.sum(dim=1) for rate in rates.values())
    same(-(recon + cost).mean(), torch.as_tensor(terms["elbo"]))
    for name, rate in rates.items():
        same(rate.sum(dim=1).mean(), torch.as_tensor(terms[f"kl_{name}"]))
        assert float(rate.sum(dim=1).mean()) > 0.05  # every level carries something here


def test_where_the_ladders_form_is_exact_every_draw_weighs_log_p() -> None:
    """z2 ~ N(0, 1), z1 ~ N(a z2, s^2), x ~ N(w z1, sigma^2): what comes up is N(x / w, sigma^2 / w^2), its product with
    the prior the true posterior, and so log p(x, z) - log q(z|x) = log p(x) whatever z is drawn."""
    a, s, w, sigma = 0.8, 0.6, 1.7, 0.5
    info = DataInfo("linear", (1, 1, 2), 64)
    options = {"latent_dim": 2, "upper": [2], "hidden": [2, 2], "net": {"name": "mlp", "hidden": []}}
    model = build(info, **options, likelihood={"name": "gaussian", "sigma": sigma})
    noise = w**2 * s**2 + sigma**2  # of x given z2
    precision = 1 + (w * a) ** 2 / noise

    def linear(scale: float, logvar: float | None = None) -> nn.Linear:
        made = nn.Linear(2, 2 if logvar is None else 4).double()
        with torch.no_grad():
            made.weight.zero_()
            made.weight[:2] = scale * torch.eye(2, dtype=F64)
            made.bias.zero_()
            made.bias[2:] = 0.0 if logvar is None else logvar
        return made

    model.encoder, model.decoder = nn.Flatten(), nn.Sequential(linear(w), nn.Unflatten(1, (1, 1, 2)))
    model.up = nn.ModuleList([nn.Identity(), nn.Identity()])
    model.seen = nn.ModuleList(
        [linear(1 / w, 2 * math.log(sigma / w)), linear(w * a / noise / precision, -math.log(precision))]
    )
    model.down = nn.ModuleList([linear(a, 2 * math.log(s))])
    x = rand(20, 1, 1, 2, scale=2.0)
    log_p = td.Normal(torch.zeros(2, dtype=F64), math.sqrt((w * a) ** 2 + noise)).log_prob(x).sum(dim=(1, 2, 3))
    for seed in (1, 2):
        torch.manual_seed(seed)
        found = model.infer(x, sample=True)
        weight = model.log_prob(x, found.values, model.hyper(0))
        for name, q in found.posteriors.items():
            value = found.values[name]
            weight = weight + distributions.log_prob(model.p(name, found.values, 20), value)
            weight = weight - distributions.log_prob(q, value)
        same(weight, log_p)


def test_the_weight_warms_up_and_the_levels_are_those_of_the_settings() -> None:
    config = ladder_vae.Config()
    assert [config.beta.at(step) for step in (0, 5000, 10_000, 20_000)] == [0.0, 0.5, 1.0, 1.0]  # type: ignore[union-attr]
    model = build(beta={"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 10})
    batch = toy()
    for step, beta in ((0, 0.0), (5, 0.5), (10, 1.0)):
        assert model.kl_weight(model.hyper(step)) == beta
        loss, logged = total(model.loss(batch, model.hyper(step)))
        same(loss, torch.as_tensor(logged["recon"]) + beta * torch.as_tensor(logged["kl"]))
    assert [(level.name, level.shape, level.standard) for level in model.levels] == [
        ("z3", (2,), True),
        ("z2", (3,), False),
        ("z1", (4,), False),
    ]
    assert "z3 (2) -> z2 (3) -> z1 (4) -> image" in model.objective_text(model.hyper(0))
    two = build(upper=[3], hidden=[8, 8])
    assert [level.name for level in two.levels] == ["z2", "z1"]
    for wrong in ({"hidden": [8, 8]}, {"upper": []}, {"beta": -1.0}):
        with pytest.raises(ValidationError):
            ladder_vae.Config.model_validate({**TINY, **wrong})


# ---- the hierarchy


@torch.no_grad()
def test_moving_the_top_changes_the_image_through_the_levels_below() -> None:
    model = trained()
    low, high = ({"z3": torch.full((1, 2), value, dtype=F64)} for value in (-2.0, 2.0))
    a, b = model.complete(low), model.complete(high)
    assert (model.image(a) - model.image(b)).abs().max() > 0.05
    p_mean = model.down[1](low["z3"]).chunk(2, dim=1)[0]
    same(a["z2"], p_mean)
    same(a["z1"], model.down[0](p_mean).chunk(2, dim=1)[0])
    same(model.image(a), model.decoder(a["z1"]).sigmoid())
    assert torch.equal(model.image({**b, "z1": a["z1"]}), model.image(a))  # the decoder reads z1 alone
    table = model.flatten({**b, "z1": a["z1"]})
    shown = copy.deepcopy(model).float().decode(table)
    torch.testing.assert_close(shown.double(), model.image(a), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_level_is_drawn_with_noise_of_its_own() -> None:
    """z1 and z2 are their priors' means and deviations times the same noise, whatever is above."""
    model = copy.deepcopy(trained()).float()
    noises = []
    for given in ({}, {"z3": rand(200, 2, seed=4).float()}):
        torch.manual_seed(5)
        values = model.draw(200, given=given)
        noise = {}
        for name in ("z2", "z1"):
            prior = model.p(name, values, 200)
            noise[name] = (values[name] - prior.mean) / prior.stddev
        noises.append(noise)
    for name in ("z2", "z1"):
        torch.testing.assert_close(noises[0][name], noises[1][name], rtol=0.0, atol=1e-3)
        np.testing.assert_allclose(noises[0][name].mean(), 0.0, atol=0.2)
        np.testing.assert_allclose(noises[0][name].std(), 1.0, atol=0.15)


@torch.no_grad()
def test_the_table_holds_the_moments_and_the_divergences_at_the_modes_above() -> None:
    model, x = trained(), toy(6).x_BCHW
    q = model.posterior(x)
    assert model.latent_names() == ["z3.0", "z3.1", "z2.0", "z2.1", "z2.2", "z1.0", "z1.1", "z1.2", "z1.3"]
    seen = model.features(x)
    same(q.mean_BD[:, :2], seen["z3"].loc)
    prior = model.p("z2", {"z3": seen["z3"].loc}, 6)
    mean, logvar = precision_weighted(seen["z2"].loc, seen["z2"].logvar, prior.loc, prior.logvar)
    same(q.mean_BD[:, 2:5], mean)
    same(q.logvar_BD[:, 2:5], logvar)
    exact = td.kl_divergence(td.Normal(mean, (logvar / 2).exp()), td.Normal(prior.loc, prior.scale))
    same(q.kl_BD[:, 2:5], exact)


@pytest.mark.parametrize(
    ("net", "shape"), [("burgess", (1, 32, 32)), ({"name": "resnet", "width": 4}, (3, 9, 14)), ("mlp", (1, 5, 3))]
)
def test_any_net_leads_to_the_lowest_level_and_back(net: Any, shape: tuple[int, int, int]) -> None:
    model = build(DataInfo("toy", shape, 8), net=net).float()
    values = model.draw(3)
    assert model.image(values).shape == (3, *shape)
    assert {name: tuple(v.shape) for name, v in model.infer(torch.rand(5, *shape)).values.items()} == {
        **{"z3": (5, 2), "z2": (5, 3), "z1": (5, 4)}
    }


def test_the_decoder_starts_at_the_mean_image() -> None:
    squares = data.load(Squares(name="squares"))
    model = build(squares.info)
    train = squares.training(0)
    model.begin(train)
    mean = torch.cat([batch.x_BCHW for batch in train.batches(256)]).double().mean(dim=0).clamp(0.001, 0.999)
    same(model.decoder[-2].bias, mean.logit().flatten())
