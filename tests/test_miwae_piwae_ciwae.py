"""miwae, ciwae and piwae: their bounds recomputed in float64 from the same draws, and whom which gradient moves."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch import distributions as td

from vaecli import models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import total
from vaecli.settings.optim import Adam

F64 = torch.float64
INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)
TINY = {"latent_dim": 3, "net": {"name": "mlp", "hidden": [8]}, "upper_hidden": [6]}
levels = pytest.mark.parametrize("upper", [None, 2])


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = models.build(registry.load("model", name).Config.model_validate({**TINY, **options}), INFO).double()
    with torch.no_grad():  # so that weights are far from equal
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def toy(n: int = 8) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 4, 4, generator=g) > 0.5).double(), torch.arange(n))


def weights(model: Any, batch: Batch, n: int) -> Tensor:
    """log w of n draws of each image by the global generator, (B, n), written out with torch's own distributions."""
    x = batch.x_BCHW.repeat_interleave(n, dim=0)
    features = model.encoder(batch.x_BCHW).repeat_interleave(n, dim=0)

    def normal(numbers: Tensor) -> td.Normal:
        mean, logvar = numbers.chunk(2, dim=1)
        return td.Normal(mean, (logvar / 2).exp())

    def draw(q: td.Normal) -> Tensor:
        return q.mean + q.scale * torch.randn_like(q.mean)

    standard = td.Normal(torch.zeros((), dtype=F64), 1.0)
    q1 = normal(features)
    z1 = draw(q1)
    log_ratio = -q1.log_prob(z1).sum(dim=1)
    if model.config.upper is None:
        log_ratio = log_ratio + standard.log_prob(z1).sum(dim=1)
    else:
        q2 = normal(model.above(z1))
        z2 = draw(q2)
        log_ratio = log_ratio - q2.log_prob(z2).sum(dim=1) + standard.log_prob(z2).sum(dim=1)
        log_ratio = log_ratio + normal(model.below(z2)).log_prob(z1).sum(dim=1)
    return (td.Bernoulli(logits=model.decoder(z1)).log_prob(x).sum(dim=(1, 2, 3)) + log_ratio).view(-1, n)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: torch.zeros_like(named[name]) if g is None else g for name, g in zip(named, found, strict=True)}


def loss_of(model: Any, batch: Batch, player: str = "main", seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.as_tensor(v) for name, v in total(model.loss(batch, model.hyper(0), player))[1].items()}


@levels
@pytest.mark.parametrize(("m", "k"), [(1, 4), (3, 1), (3, 4), (4, 3)])
def test_miwae_is_the_mean_of_iwae_bounds(m: int, k: int, upper: int | None) -> None:
    model, batch = build("miwae", groups=m, samples=k, upper=upper), toy()
    found = loss_of(model, batch)
    torch.manual_seed(3)
    log_w = weights(model, batch, m * k)
    bounds = log_w.view(-1, m, k).exp().mean(dim=2).log()
    same(found["loss"], -bounds.mean())
    same(found["elbo"], log_w.mean())
    same(found["recon"] + found["kl"], -log_w.mean())
    tight = (log_w.logsumexp(dim=1) - math.log(m * k)).mean().detach()
    assert float(found["elbo"]) <= -float(found["loss"]) <= float(tight) + 1e-9
    assert model.kl_weight(model.hyper(0)) == (1.0 if k == 1 else None)
    if m == 1:
        plain = build("iwae", samples=k, upper=upper)
        for name, gradient in gradients(plain, loss_of(plain, batch)["loss"]).items():
            same(gradients(model, loss_of(model, batch)["loss"])[name], gradient)


@levels
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.7, 1.0])
def test_ciwae_lies_between_the_elbo_and_iwaes_bound(beta: float, upper: int | None) -> None:
    model, batch, k = build("ciwae", samples=6, beta=beta, upper=upper), toy(), 6
    found = loss_of(model, batch)
    torch.manual_seed(3)
    log_w = weights(model, batch, k)
    elbo, iwae = log_w.mean(), (log_w.logsumexp(dim=1) - math.log(k)).mean()
    same(found["loss"], -(beta * elbo + (1 - beta) * iwae))
    same(found["elbo"], elbo)
    assert float(iwae - elbo) > 0.1
    torch.manual_seed(3)
    again = weights(model, batch, k)
    wanted = -(beta * again.mean() + (1 - beta) * (again.logsumexp(dim=1) - math.log(k)).mean())
    mine = gradients(model, found["loss"])
    for name, gradient in gradients(model, wanted).items():
        same(mine[name], gradient)
    assert model.kl_weight(model.hyper(0)) == (1.0 if beta == 1 else None)


@levels
@pytest.mark.parametrize(("m", "k"), [(2, 5), (5, 2)])
def test_each_of_piwaes_players_moves_by_its_own_bound(m: int, k: int, upper: int | None) -> None:
    """What generates by the bound of all M K draws, what infers by the mean of M bounds of K; and no weight by both."""
    model, batch = build("piwae", groups=m, samples=k, upper=upper), toy()
    players = {player.name: {id(p) for p in player.parameters} for player in model.players(Adam())}
    named = dict(model.named_parameters())
    infers = {name for name, p in named.items() if id(p) in players["encoder"]}
    assert {name.split(".")[0] for name in infers} == ({"encoder"} if upper is None else {"encoder", "above"})
    assert {name for name, p in named.items() if id(p) in players["main"]} == named.keys() - infers
    torch.manual_seed(3)
    log_w = weights(model, batch, m * k)
    tight = -(log_w.logsumexp(dim=1) - math.log(m * k)).mean()
    mean = -(log_w.view(-1, m, k).logsumexp(dim=2) - math.log(k)).mean()
    swapped = -(log_w.view(-1, m, k).logsumexp(dim=1) - math.log(m)).mean()  # another bound where M != K
    assert abs(float(mean - swapped)) > 1e-3 and abs(float(mean - tight)) > 1e-3
    main, encoder = loss_of(model, batch), loss_of(model, batch, "encoder")
    same(main["loss"], tight)
    same(encoder["loss"], mean)
    by_all, by_groups = gradients(model, tight), gradients(model, mean)
    found_main, found_encoder = gradients(model, main["loss"]), gradients(model, encoder["loss"])
    for name in named:
        mine, wanted, other = (found_encoder, by_groups, by_all) if name in infers else (found_main, by_all, by_groups)
        same(mine[name], wanted[name])
        assert not torch.allclose(wanted[name], other[name])


@pytest.mark.parametrize(("name", "options"), [("miwae", {"groups": 2}), ("ciwae", {"beta": 0.4})])
def test_the_doubly_reparameterised_gradient_has_the_same_expectation(name: str, options: dict[str, Any]) -> None:
    standard = build(name, samples=3, gradient="standard", **options)
    dreg = build(name, samples=3, gradient="dreg", **options)
    one = toy(1).x_BCHW
    batch = Batch(one.expand(4000, 1, 4, 4), torch.arange(4000))
    gaps: dict[str, list[Tensor]] = {}
    for seed in range(12):
        losses = [loss_of(model, batch, seed=seed)["loss"] for model in (standard, dreg)]
        same(losses[0], losses[1])
        a, b = gradients(standard, losses[0]), gradients(dreg, losses[1])
        for key in a:
            gaps.setdefault(key, []).append(a[key] - b[key])
    for key, values in gaps.items():
        gap = torch.stack(values)
        if key.startswith("decoder"):
            same(gap, torch.zeros_like(gap))
            continue
        assert bool((gap != 0).any()), key
        error = gap.std(dim=0) / math.sqrt(12)
        assert bool((gap.mean(dim=0).abs() <= 6 * error + 1e-12).all()), key


def test_settings() -> None:
    for name, wrong in (("miwae", {"groups": 0}), ("piwae", {"samples": 0}), ("ciwae", {"beta": 1.5})):
        with pytest.raises(ValidationError):
            registry.load("model", name).Config.model_validate({**TINY, **wrong})
    for name, said in (("miwae", "M = 8 groups of K = 8"), ("piwae", "M = 8, K = 8"), ("ciwae", "beta = 0.05, K = 64")):
        model = build(name)
        assert said in model.objective_text(model.hyper(0))
