"""vamp-vae: the prior's density and draws against mixtures of torch's own, the objective recomputed in float64."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch import distributions as td

from vaecli import data, models
from vaecli.batch import Batch, DataInfo
from vaecli.data.squares import Config as Squares
from vaecli.models import vamp_vae
from vaecli.models.base import total
from vaecli.objectives import distributions

F64 = torch.float64
INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)
TINY = {"latent_dim": 3, "net": {"name": "mlp", "hidden": [16]}, "components": 6}


def build(info: DataInfo = INFO, spread: float = 6.0, **options: Any) -> Any:
    """In float64, with pseudo-images and posteriors that differ (by `spread`) from one to the next."""
    torch.manual_seed(0)
    model: Any = models.build(vamp_vae.Config.model_validate({**TINY, **options}), info).double()
    with torch.no_grad():
        model.pseudo_KCHW.copy_(torch.randn_like(model.pseudo_KCHW) * 3)
        model.encoder[3].weight[:3] *= spread
        model.encoder[3].weight[3:] *= 2.0
    return model


def same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), rtol=1e-9, atol=1e-9)


def toy(n: int = 32) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 4, 4, generator=g) > 0.5).double(), torch.arange(n))


def parts_of(model: Any) -> tuple[Tensor, Tensor]:
    mean, logvar = model.encoder(1 / (1 + torch.exp(-model.pseudo_KCHW))).chunk(2, dim=1)
    return mean, (logvar / 2).exp()


def prior_of(model: Any) -> td.MixtureSameFamily:
    mean, scale = parts_of(model)
    shares = td.Categorical(probs=torch.full((len(mean),), 1 / len(mean), dtype=F64))
    return td.MixtureSameFamily(shares, td.Independent(td.Normal(mean, scale), 1))


def test_the_objective_recomputed_by_hand() -> None:
    model, batch = build(beta=0.5), toy()
    torch.manual_seed(3)
    terms = total(model.loss(batch, model.hyper(0)))[1]
    torch.manual_seed(3)
    mean, logvar = model.encoder(batch.x_BCHW).chunk(2, dim=1)
    q = td.Normal(mean, (logvar / 2).exp())
    z = mean + q.scale * torch.randn(32, 3, dtype=F64)
    kl = (q.log_prob(z).sum(dim=1) - prior_of(model).log_prob(z)).mean()
    recon = -td.Bernoulli(logits=model.decoder(z)).log_prob(batch.x_BCHW).sum(dim=(1, 2, 3)).mean()
    expected = {"loss": recon + 0.5 * kl, "recon": recon, "kl": kl, "elbo": -(recon + kl)}
    assert terms.keys() == {*expected, "recon.weight", "kl.weight"} and terms["kl.weight"] == 0.5
    for name, value in expected.items():
        same(terms[name], value)
    assert model.kl_weight(model.hyper(0)) == 0.5


def test_the_prior_is_the_mean_of_the_pseudo_images_posteriors() -> None:
    """Its density from the definition, and the same by the model's two ways."""
    model = build()
    z = 2 * torch.randn(40, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    mean, scale = parts_of(model)
    squares = ((z.unsqueeze(1) - mean) / scale).square().sum(dim=2)
    density = (torch.exp(-squares / 2) / (scale.prod(dim=1) * (2 * math.pi) ** 1.5)).mean(dim=1)
    same(model.log_prior(z), density.log())
    same(distributions.log_prob(model.p("z", {}, 40), z), density.log())


def test_with_one_component_the_prior_is_a_gaussian() -> None:
    model, batch = build(components=1, spread=20.0), toy()
    (mean, scale), n = parts_of(model), 4000
    q = distributions.Gaussian(*model.features(batch.x_BCHW))
    exact = td.kl_divergence(td.Normal(q.loc, q.scale), td.Normal(mean, scale)).sum(dim=1).mean()
    torch.manual_seed(1)
    with torch.no_grad():
        many = Batch(batch.x_BCHW.repeat(n, 1, 1, 1), torch.arange(32 * n))
        found = float(model.loss(many, model.hyper(0))["kl"].value)
    assert float(exact.detach()) > 1.0 and found == pytest.approx(float(exact.detach()), rel=0.02)


def test_where_every_image_is_a_component_none_costs_more_than_the_log_of_their_number() -> None:
    """p(z) is the aggregate posterior then: its sum holds q(z|x) itself, and the mean rate is what z tells of x."""
    model, batch = build(components=32, spread=20.0), toy(32)
    with torch.no_grad():
        model.pseudo_KCHW.copy_(torch.where(batch.x_BCHW > 0.5, 40.0, -800.0))
        torch.manual_seed(1)
        found = model.infer(batch.x_BCHW, sample=True)
        (rate,) = model.rates(found).values()
    assert rate.shape == (32,) and bool((rate <= math.log(32) + 1e-9).all()) and float(rate.mean()) > 1.0


# ---- draws


@torch.no_grad()
def test_draws_come_from_all_components_alike() -> None:
    model, n = build(spread=120.0), 30_000
    mean, scale = parts_of(model)
    torch.manual_seed(2)
    z = model.draw(n)["z"]
    assert z.shape == (n, 3)
    nearest = prior_of(model).component_distribution.log_prob(z.unsqueeze(1)).argmax(dim=1)
    shares = torch.bincount(nearest, minlength=6) / n
    torch.testing.assert_close(shares, torch.full((6,), 1 / 6), rtol=0.0, atol=0.02)
    whole = prior_of(model)
    assert ((z.mean(dim=0) - whole.mean).abs() < 5 * (whole.variance / n).sqrt()).all()
    torch.testing.assert_close(z.var(dim=0), whole.variance, rtol=0.03, atol=0.0)
    for k in range(6):
        torch.testing.assert_close(z[nearest == k].std(dim=0), scale[k], rtol=0.15, atol=0.0)
        assert ((z[nearest == k].mean(dim=0) - mean[k]).abs() < 0.1 * scale[k] + 0.05).all()
    torch.manual_seed(2)
    narrow = model.draw(n, temperature=0.1)["z"]
    distance = torch.cdist(narrow, mean).min(dim=1).values
    assert float(distance.square().mean()) == pytest.approx(0.01 * float(scale.square().sum(dim=1).mean()), rel=0.05)


def test_the_level_says_that_its_prior_is_not_standard() -> None:
    model = build()
    assert not model.standard_prior and [level.standard for level in model.levels] == [False]
    assert model.posterior(toy().x_BCHW).kl_BD is None
    same(model.posterior(toy().x_BCHW).mean_BD, model.encoder(toy().x_BCHW)[:, :3])


# ---- pseudo-images


@pytest.mark.parametrize("components", [5, 1000])
def test_they_start_at_training_images(components: int) -> None:
    """Again from the first where there are more of them than images, a little inside (0, 1)."""
    squares = data.load(Squares(name="squares"))
    train = squares.training(0)
    model = models.build(vamp_vae.Config.model_validate({**TINY, "components": components}), squares.info)
    model.begin(train)
    images = torch.cat([batch.x_BCHW for batch in train.batches(256)])
    wanted = images[torch.arange(components) % len(images)].clamp(0.05, 0.95)
    torch.testing.assert_close(model.pseudo_KCHW.sigmoid(), wanted)
    if components == 5:
        noise = models.build(vamp_vae.Config.model_validate({**TINY, "start": "noise"}), squares.info)
        before = noise.pseudo_KCHW.clone()
        noise.begin(train)
        assert torch.equal(noise.pseudo_KCHW, before) and 0 < float(before.detach().std()) < 0.02
        assert float(noise.decoder[-2].bias.detach().std()) > 0.1  # the mean image, all the same


def test_learned_pseudo_images_make_the_prior_fit_the_codes() -> None:
    """Two kinds of image, and an encoder that stays: trained alone, the pseudo-images bring the rate near log 2, what
    two far parts of equal shares cost at best."""
    model = build(components=2, spread=1.0)
    x = torch.zeros(32, 1, 4, 4, dtype=F64)
    x[::2, :, :, :2], x[1::2, :, :, 2:] = 1.0, 1.0
    batch = Batch(x, torch.arange(32))
    with torch.no_grad():
        model.encoder[3].weight[:3] *= 8.0
        model.encoder[3].weight[3:] = 0.0
        model.encoder[3].bias[3:] = -3.0
        model.pseudo_KCHW.copy_(0.01 * torch.randn_like(model.pseudo_KCHW))
    optimizer = torch.optim.Adam([model.pseudo_KCHW], lr=0.1)
    kls = []
    for step in range(400):
        optimizer.zero_grad()
        torch.manual_seed(step)
        loss, logged = total(model.loss(batch, model.hyper(0)))
        kls.append(float(torch.as_tensor(logged["kl"]).detach()))
        loss.backward()
        optimizer.step()
    assert kls[0] > 3.0
    assert sum(kls[-20:]) / 20 == pytest.approx(math.log(2), abs=0.1)


def test_options() -> None:
    for wrong in ({"components": 0}, {"start": "zero"}, {"beta": -1.0}):
        with pytest.raises(ValidationError):
            vamp_vae.Config.model_validate({**TINY, **wrong})
    model = build(beta={"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 10})
    assert [model.kl_weight(model.hyper(step)) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert "6 pseudo-images" in model.objective_text(model.hyper(0))
