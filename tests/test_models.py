"""vae, beta-vae, annealed-vae and autoencoder: losses recomputed by hand, options, text, sampling."""

from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import distributions as dist

from vaecli import data, models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.data.squares import Config as Squares
from vaecli.errors import ConfigError
from vaecli.models import annealed_vae, autoencoder, beta_vae, vae
from vaecli.models.base import Level, NoPrior, Term, total
from vaecli.settings.optim import Adam
from vaecli.settings.schedules import Linear

INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)
NET = {"name": "mlp", "hidden": [16]}


def build(module: ModuleType, **options: Any) -> Any:
    torch.manual_seed(0)
    config = module.Config.model_validate({"latent_dim": 3, "net": NET, **options})
    return models.build(config, INFO)


def toy(n: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 4, 4, generator=generator) > 0.5).float(), torch.arange(n))


def loss(model: Any, hyper: dict[str, float] | None = None) -> dict[str, Any]:
    """What is minimised, and all that is logged, in the model's precision."""
    torch.manual_seed(3)
    x_BCHW = toy().x_BCHW.to(next(model.parameters()).dtype)
    return total(model.loss(Batch(x_BCHW, torch.arange(len(x_BCHW))), model.hyper(0) if hyper is None else hyper))[1]


def test_vae_loss_recomputed_with_torch_distributions() -> None:
    model, x = build(vae).double(), toy().x_BCHW.double()
    torch.manual_seed(3)
    terms = total(model.loss(Batch(x, torch.arange(64)), model.hyper(0)))[1]
    mean, logvar = model.encoder(x).split(3, dim=1)
    q = dist.Normal(mean, (logvar / 2).exp())
    torch.manual_seed(3)
    z = mean + q.scale * torch.randn(64, 3, dtype=torch.float64)
    recon = -dist.Bernoulli(logits=model.decoder(z)).log_prob(x).sum(dim=(1, 2, 3)).mean()
    kl = dist.kl_divergence(q, dist.Normal(0.0, 1.0)).sum(dim=1).mean()
    expected = {"loss": recon + kl, "recon": recon, "kl": kl, "elbo": -(recon + kl)}
    assert terms.keys() == {*expected, "recon.weight", "kl.weight"}
    assert terms["recon.weight"] == terms["kl.weight"] == 1.0
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-10, atol=1e-10)


def test_what_is_minimised_is_the_weighed_sum_of_the_terms() -> None:
    """Means of images' values count as means do; a weight of None is for the log; a weight may be a tensor."""
    a_B, b = torch.tensor([1.0, 2.0, 6.0]), torch.tensor(5.0)
    scheduled = torch.tensor(0.5)
    value, logged = total({"a": Term(a_B), "b": Term(b, 4.0), "c": Term(b, None), "d": Term(2 * a_B, scheduled)})
    assert value.item() == 3.0 + 4.0 * 5.0 + 0.5 * 6.0
    assert {name: float(number) for name, number in logged.items()} == {
        **{"loss": 26.0, "a": 3.0, "a.weight": 1.0, "b": 5.0, "b.weight": 4.0},
        **{"c": 5.0, "d": 6.0, "d.weight": 0.5},
    }
    with pytest.raises(AssertionError, match="weighs something"):
        total({"c": Term(b, None)})


def test_beta_weighs_the_kl_and_leaves_the_elbo_alone() -> None:
    plain, weighted = loss(build(vae).double()), loss(build(beta_vae, beta=4.0).double())
    torch.testing.assert_close(weighted["loss"], plain["recon"] + 4.0 * plain["kl"], rtol=1e-12, atol=1e-12)
    assert weighted["kl.weight"] == 4.0
    torch.testing.assert_close(weighted["kl"], plain["kl"])
    torch.testing.assert_close(weighted["elbo"], plain["elbo"])
    torch.testing.assert_close(loss(build(beta_vae, beta=1.0).double())["loss"], plain["loss"], rtol=0.0, atol=0.0)


def test_beta_norm_gives_identical_losses() -> None:
    by_beta, by_norm = build(beta_vae, beta=4.0), build(beta_vae, beta_norm=4.0 * 3 / 16)
    for name, value in loss(by_beta).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(loss(by_norm)[name])), name
    scheduled = build(beta_vae, beta_norm={"schedule": "linear", "start": 0.0, "end": 0.75, "steps": 10})
    assert torch.equal(loss(scheduled, scheduled.hyper(10))["loss"], loss(by_beta)["loss"])
    at_zero = loss(scheduled)
    assert torch.equal(at_zero["loss"], at_zero["recon"])


def test_beta_and_beta_norm_exclude_each_other() -> None:
    assert beta_vae.Config().beta == 4.0
    config = beta_vae.Config(beta_norm=0.01)
    assert config.beta is None
    assert beta_vae.Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="exclude each other"):
        beta_vae.Config(beta=4.0, beta_norm=0.01)
    with pytest.raises(ValidationError, match="give `beta` or `beta_norm`"):
        beta_vae.Config(beta=None)


def test_capacity_compares_the_mean_kl_of_the_batch_with_c() -> None:
    model = build(annealed_vae, gamma=10.0).double()
    mean_BD, logvar_BD = model.encoder(toy().x_BCHW.double()).split(3, dim=1)
    kl_B = dist.kl_divergence(dist.Normal(mean_BD, (logvar_BD / 2).exp()), dist.Normal(0.0, 1.0)).sum(dim=1)
    assert kl_B.std() > 0  # single images miss C on both sides, which must not count
    mean = kl_B.mean().item()
    for c in (mean - 0.5, mean, mean + 2.0):
        terms = loss(model, {"capacity": c, "gamma": 10.0})
        assert terms["loss"].item() == pytest.approx(terms["recon"].item() + 10.0 * abs(mean - c), abs=1e-9)


def test_capacity_rises_by_default_and_takes_the_usual_names() -> None:
    config = annealed_vae.Config()
    model = build(annealed_vae)
    values = [model.hyper(step)["capacity"] for step in (0, 50_000, 100_000, 200_000)]
    assert values == [0.0, 12.5, 25.0, 25.0]
    assert model.hyper(0)["gamma"] == 1000.0
    assert annealed_vae.Config.model_validate({"c_max": 25.0, "c_steps": 100_000}) == config
    short = annealed_vae.Config.model_validate({"c_max": 5, "c_steps": 10})
    assert short.capacity == Linear(schedule="linear", start=0.0, end=5.0, steps=10)
    assert annealed_vae.Config.model_validate(short.model_dump(mode="json")) == short
    for wrong in ({"c_max": -1.0}, {"c_steps": 0}, {"c_max": 5.0, "capacity": 5.0}, {"gamma": -1.0}, {"cmax": 5.0}):
        with pytest.raises(ValidationError):
            annealed_vae.Config.model_validate(wrong)


@pytest.mark.parametrize("c", [1.0, 4.0])
def test_annealed_vae_holds_the_kl_at_c(c: float) -> None:
    model = build(annealed_vae, gamma=30.0, capacity={"schedule": "linear", "start": 0.0, "end": c, "steps": 200})
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    kls = []
    for step in range(600):
        optimizer.zero_grad()
        value, logged = total(model.loss(toy(), model.hyper(step)))
        value.backward()
        optimizer.step()
        kls.append(float(torch.as_tensor(logged["kl"]).detach()))
    assert max(abs(kl - c) for kl in kls[-100:]) < 1.0


def test_autoencoder_is_deterministic_and_has_no_prior() -> None:
    model, batch = build(autoencoder), toy()
    q = model.posterior(batch.x_BCHW)
    assert q.logvar_BD is None
    assert q.kl_BD is None
    assert torch.equal(model.infer(batch.x_BCHW, sample=True).values["z"], q.mean_BD)
    terms = total(model.loss(batch, model.hyper(0)))[1]
    logits = model.decoder(model.encoder(batch.x_BCHW))
    expected = -dist.Bernoulli(logits=logits).log_prob(batch.x_BCHW).sum(dim=(1, 2, 3)).mean()
    assert terms.keys() == {"loss", "recon", "recon.weight"}
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(model.decode(q.mean_BD), torch.sigmoid(logits))
    with pytest.raises(NoPrior) as caught:
        model.draw(4)
    assert isinstance(caught.value, ConfigError)
    assert caught.value.hint is not None
    assert "beta-vae" in caught.value.hint


def test_prior_is_standard_normal_scaled_by_temperature() -> None:
    model = build(vae)
    torch.manual_seed(1)
    z = model.draw(100_000)["z"]
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0.0, atol=0.015)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3), rtol=0.0, atol=0.02)
    torch.manual_seed(1)
    assert torch.equal(model.draw(100_000, temperature=0.5)["z"], 0.5 * z)


def test_kl_weights() -> None:
    model = build(beta_vae, beta={"schedule": "linear", "start": 0.0, "end": 4.0, "steps": 8})
    assert model.kl_weight(model.hyper(2)) == 1.0
    assert build(beta_vae, beta_norm=0.75).kl_weight({"beta_norm": 0.75}) == 4.0
    assert build(vae).kl_weight({}) == 1.0
    for module in (annealed_vae, autoencoder):
        model = build(module)
        assert model.kl_weight(model.hyper(0)) is None


def test_free_bits_depend_on_the_batch() -> None:
    assert not build(vae).batch_dependent and build(vae, free_bits=0.1).batch_dependent
    rising = {"schedule": "linear", "start": 0.0, "end": 0.1, "steps": 8}
    assert build(beta_vae, free_bits=rising).batch_dependent


def test_what_models_of_one_level_are() -> None:
    for module in (vae, beta_vae, annealed_vae):
        model = build(module)
        assert model.standard_prior and model.levels == (Level("z", (3,), standard=True),)
        assert model.has_likelihood and model.stages == ("main",)
        assert model.batch_dependent == (module is annealed_vae)  # |KL - C| is of a batch's mean
        assert model.latent_names() == ["z0", "z1", "z2"]
    plain = build(autoencoder)
    assert not plain.standard_prior and plain.levels == (Level("z", (3,), "point"),)


def test_decode_is_the_mean_image() -> None:
    z = torch.zeros(2, 3)
    model = build(vae)
    torch.testing.assert_close(model.decode(z), torch.sigmoid(model.decoder(z)))
    model = build(vae, likelihood="gaussian")
    assert torch.equal(model.decode(z), model.decoder(z))


def test_nll_and_loss_use_the_scheduled_sigma() -> None:
    sigma = {"schedule": "linear", "start": 1.0, "end": 0.5, "steps": 4}
    model, x, z = build(vae, likelihood={"name": "gaussian", "sigma": sigma}), toy().x_BCHW, torch.zeros(64, 3)
    for step, value in ((0, 1.0), (2, 0.75), (9, 0.5)):
        expected = -dist.Normal(model.decoder(z), value).log_prob(x).sum(dim=(1, 2, 3))
        torch.testing.assert_close(model.nll(x, z, model.hyper(step)), expected)


def test_learned_sigma_is_trained_and_optimal_sigma_is_saved() -> None:
    learned = build(vae, likelihood={"name": "gaussian", "variance": "learned"})
    loss(learned)["loss"].backward()
    assert learned.likelihood.log_sigma.grad.abs() > 0
    assert any(p is learned.likelihood.log_sigma for p in learned.players(Adam())[0].parameters)
    optimal = build(vae, likelihood={"name": "gaussian", "variance": "optimal"})
    before = optimal.state_dict()["likelihood.variance"].clone()
    loss(optimal)
    assert optimal.state_dict()["likelihood.variance"] < before


@pytest.mark.parametrize(
    ("module", "options", "parts"),
    [
        (vae, {}, ["recon + KL", "Bernoulli"]),
        (beta_vae, {"beta": 4.0}, ["recon + beta KL", "beta = 4 (beta_norm = 0.75)"]),
        (beta_vae, {"beta_norm": 0.75}, ["beta = 4 (beta_norm = 0.75)"]),
        (annealed_vae, {"gamma": 30.0, "capacity": 2.5}, ["|KL - C|", "gamma = 30", "C = 2.5 nats"]),
        (autoencoder, {"likelihood": {"name": "gaussian", "sigma": 0.1}}, ["recon", "Gaussian", "sigma = 0.1"]),
    ],
)
def test_objective_text_states_terms_numbers_and_units(
    module: ModuleType, options: dict[str, Any], parts: list[str]
) -> None:
    model = build(module, **options)
    text = model.objective_text(model.hyper(0))
    assert all(part in text for part in [*parts, "nats", "sum over pixels", "mean over the batch"]), text


@pytest.mark.parametrize("name", ["vae", "beta-vae", "annealed-vae", "autoencoder"])
def test_registered_with_a_summary_and_built_without_memory(name: str) -> None:
    module = registry.load("model", name)
    assert module.Config().name == name
    assert registry.summary("model", name).endswith(".")
    with pytest.raises(ValidationError):
        module.Config(name="other")
    config = module.Config.model_validate({"latent_dim": 65_536, "net": {"name": "mlp", "hidden": [65_536] * 8}})
    with torch.device("meta"):
        model = models.build(config, INFO)
    assert all(p.is_meta for p in model.parameters())
    assert [(level.name, level.shape) for level in model.levels] == [("z", (65_536,))]
    assert model.latent_names()[-1] == "z65535"


@pytest.mark.parametrize("module", [vae, beta_vae, annealed_vae, autoencoder])
def test_training_reduces_the_loss_and_no_parameter_is_idle(module: ModuleType) -> None:
    options: dict[str, Any] = {"capacity": 3.0, "gamma": 5.0} if module is annealed_vae else {}
    model = build(module, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    first = loss(model)["loss"].item()
    for step in range(200):
        optimizer.zero_grad()
        value = total(model.loss(toy(), model.hyper(step)))[0]
        value.backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        optimizer.step()
    assert loss(model)["loss"].item() < first - 0.1


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("net", ["mlp", "resnet"])
def test_an_untrained_decoder_starts_at_the_mean_image(likelihood: str, net: str) -> None:
    """With a linear path from the last bias, zeroing the last weights leaves the mean image (a conv: per channel)."""
    dataset = data.load(Squares(name="squares"))
    config = beta_vae.Config.model_validate(
        {"latent_dim": 3, "likelihood": likelihood, "net": net, "output_bias": "data"}
    )
    model = beta_vae.Model(config, dataset.info)
    model.begin(dataset.split("train"))
    last = [m for m in model.decoder.modules() if getattr(m, "bias", None) is not None][-1]
    with torch.no_grad():
        last.weight.zero_()
    found = model.decode(torch.randn(2, 3))
    mean_CHW = torch.cat([b.x_BCHW for b in dataset.split("train").batches(64)]).mean(dim=0)
    wanted = mean_CHW.clamp(0.001, 0.999) if likelihood == "bernoulli" else mean_CHW
    if net == "resnet":
        wanted = (
            (wanted.logit() if likelihood == "bernoulli" else wanted).mean(dim=(1, 2), keepdim=True).expand_as(wanted)
        )
        wanted = wanted.sigmoid() if likelihood == "bernoulli" else wanted
    torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-5)
