"""iwae: the bound recomputed in float64, what it does as the number of draws grows, and the two gradients."""

import copy
import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch import distributions as td

from vaecli import models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.errors import MachineError
from vaecli.models import _importance, iwae, vae
from vaecli.models.base import total

F64 = torch.float64
INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)
TINY = {"latent_dim": 3, "net": {"name": "mlp", "hidden": [8]}, "upper_hidden": [6]}
levels = pytest.mark.parametrize("upper", [None, 2])


def build(info: DataInfo = INFO, **options: Any) -> Any:
    torch.manual_seed(0)
    return models.build(iwae.Config.model_validate({**TINY, **options}), info).double()


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def toy(n: int = 16) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 4, 4, generator=g) > 0.5).double(), torch.arange(n))


def logged(model: Any, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {name: torch.as_tensor(v) for name, v in total(model.loss(batch, model.hyper(0)))[1].items()}


# ---- the bound


@levels
@pytest.mark.parametrize("gradient", ["standard", "dreg"])
@pytest.mark.parametrize("k", [1, 4])
def test_the_bound_recomputed_by_hand(k: int, gradient: str, upper: int | None) -> None:
    model, batch = build(samples=k, gradient=gradient, upper=upper), toy()
    terms = logged(model, batch)
    torch.manual_seed(3)
    x = batch.x_BCHW.repeat_interleave(k, dim=0)

    def normal(numbers: Tensor) -> td.Normal:
        mean, logvar = numbers.chunk(2, dim=1)
        return td.Normal(mean, (logvar / 2).exp())

    def draw(q: td.Normal) -> Tensor:
        return q.mean + q.scale * torch.randn_like(q.mean)

    standard = td.Normal(torch.zeros((), dtype=F64), 1.0)
    q1 = normal(model.encoder(x))
    z1 = draw(q1)
    log_q = q1.log_prob(z1).sum(dim=1)
    if upper is None:
        log_p = standard.log_prob(z1).sum(dim=1)
    else:
        q2 = normal(model.above(z1))
        z2 = draw(q2)
        log_q = log_q + q2.log_prob(z2).sum(dim=1)
        log_p = standard.log_prob(z2).sum(dim=1) + normal(model.below(z2)).log_prob(z1).sum(dim=1)
    log_prob = td.Bernoulli(logits=model.decoder(z1)).log_prob(x).sum(dim=(1, 2, 3))
    weights = (log_prob + log_p - log_q).view(16, k)
    bound = weights.exp().mean(dim=1).log().mean()
    expected = {"loss": -bound, "nll_bound": -bound, "recon": -log_prob.mean(), "kl": (log_q - log_p).mean()}
    expected["elbo"] = weights.mean()
    assert terms.keys() == {*expected, "nll_bound.weight"}
    for name, value in expected.items():
        same(terms[name], value)
    if k == 1:
        same(bound, weights.mean())
    assert model.kl_weight(model.hyper(0)) == (1.0 if k == 1 else None)


def test_one_draw_is_the_vaes_elbo_but_for_the_estimate_of_the_kl() -> None:
    model, plain = (
        build(samples=1),
        models.build(vae.Config.model_validate({"latent_dim": 3, "net": TINY["net"]}), INFO),
    )
    plain = plain.double()
    with torch.no_grad():
        model.encoder[3].weight *= 6.0
    plain.load_state_dict(model.state_dict())
    batch = Batch(toy().x_BCHW.repeat(500, 1, 1, 1), torch.arange(8000))
    found, wanted = logged(model, batch), logged(plain, batch)
    same(found["recon"], wanted["recon"])
    assert float(found["kl"].detach()) == pytest.approx(float(wanted["kl"].detach()), abs=0.05)
    assert float(wanted["kl"].detach()) > 1.0


class Linear:
    """z2 ~ N(0, 1), z1 ~ N(a z2, s^2), x ~ N(w z1, sigma^2), two of each side by side; of one level, z1 ~ N(0, 1)."""

    a, s, w, sigma = 0.8, 0.6, 1.7, 0.5
    info = DataInfo("linear", (1, 1, 2), 64)

    def __init__(self, two: bool, **options: Any) -> None:
        likelihood = {"name": "gaussian", "sigma": self.sigma}
        net = {"name": "mlp", "hidden": []}
        upper = {"upper": 2, "upper_hidden": []} if two else {}
        self.model = build(self.info, **{"latent_dim": 2, "net": net, "likelihood": likelihood, **upper, **options})
        variance = self.a**2 + self.s**2 if two else 1.0  # of z1
        noise = self.w**2 * variance + self.sigma**2
        self.x = 2.0 * torch.randn(6, 1, 1, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
        zero = torch.zeros((), dtype=F64)
        self.log_p = td.Normal(zero, math.sqrt(noise)).log_prob(self.x).sum(dim=(1, 2, 3))
        self.put(self.model.encoder, variance * self.w / noise, variance * self.sigma**2 / noise)
        self.put(self.model.decoder, self.w)
        if two:
            self.put(self.model.above, self.a / variance, self.s**2 / variance)
            self.put(self.model.below, self.a, self.s**2)

    @staticmethod
    def put(net: nn.Sequential, scale: float, variance: float | None = None) -> None:
        """z -> scale z, and the variance if it is a Gaussian's net."""
        (layer,) = (m for m in net if isinstance(m, nn.Linear))
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[:2] = scale * torch.eye(2, dtype=F64)
            layer.bias.zero_()
            if variance is not None:
                layer.bias[2:] = math.log(variance)

    def worse(self) -> None:
        """A posterior that is too wide and off its place."""
        with torch.no_grad():
            self.model.encoder[1].bias += torch.tensor([0.15, -0.15, 0.8, 0.8], dtype=F64)
            if len(self.model.levels) > 1:
                self.model.above[0].bias += torch.tensor([-0.2, 0.1, 0.5, -0.5], dtype=F64)

    def bound(self, k: int, draws: int = 2000) -> tuple[float, float]:
        """The mean over images of log p(x) - L_k, and its error."""
        self.model.config = self.model.config.model_copy(update={"samples": k})
        n = max(1, draws // k)
        x = self.x.repeat(n, 1, 1, 1)
        with torch.no_grad():
            torch.manual_seed(k)
            value = self.model.loss(Batch(x, torch.arange(len(x))), self.model.hyper(0))["nll_bound"].value
        gap = (self.log_p.repeat(n) + value).view(n, 6).mean(dim=1)
        return float(gap.mean()), float(gap.std()) / math.sqrt(n) if n > 1 else 0.0


@pytest.mark.parametrize("two", [False, True])
def test_with_the_true_posterior_every_draw_weighs_log_p(two: bool) -> None:
    toy = Linear(two)
    for k in (1, 7):
        value = toy.model
        value.config = value.config.model_copy(update={"samples": k})
        same(value.loss(Batch(toy.x, torch.arange(6)), value.hyper(0))["nll_bound"].value, -toy.log_p)


@pytest.mark.parametrize("two", [False, True])
def test_the_bound_rises_with_the_draws_up_to_log_p(two: bool) -> None:
    toy = Linear(two)
    toy.worse()
    found = [toy.bound(k, 60_000) for k in (1, 2, 5, 20, 1000)]
    for (gap, error), (less, other) in pairwise(found[:-1]):
        assert gap - less > 4 * (error + other)
    assert found[0][0] > 0.3
    assert abs(found[-1][0]) < 0.01 + 5 * found[-1][1]


# ---- the gradients


def gradients(model: Any, batch: Batch, gradient: str, seed: int) -> dict[str, Tensor]:
    model.config = model.config.model_copy(update={"gradient": gradient})
    model.zero_grad()
    torch.manual_seed(seed)
    total(model.loss(batch, model.hyper(0)))[0].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@levels
def test_both_gradients_have_the_same_expectation(upper: int | None) -> None:
    """Of every parameter, over 12 batches of 4,000 draws; and for what generates they are the same numbers."""
    model, one = build(samples=3, upper=upper), toy(1).x_BCHW
    batch = Batch(one.expand(4000, 1, 4, 4), torch.arange(4000))
    gaps: dict[str, list[Tensor]] = {}
    spread = {"standard": 0.0, "dreg": 0.0}
    for seed in range(12):
        a, b = (gradients(model, batch, kind, seed) for kind in ("standard", "dreg"))
        for name in a:
            gaps.setdefault(name, []).append(a[name] - b[name])
    for name, values in gaps.items():
        gap = torch.stack(values)
        if name.startswith(("decoder", "below")):
            same(gap, torch.zeros_like(gap))
            continue
        assert bool((gap != 0).any()), name
        error = gap.std(dim=0) / math.sqrt(12)
        assert bool((gap.mean(dim=0).abs() <= 6 * error + 1e-12).all()), name
        assert float(error.max()) < 0.02
    for kind in spread:
        few = torch.stack([gradients(model, batch.part(50), kind, seed)["encoder.3.weight"] for seed in range(40)])
        spread[kind] = float(few.var(dim=0).sum())
    assert spread["dreg"] < spread["standard"]


@levels
def test_the_doubly_reparameterised_gradient_draw_by_draw(upper: int | None) -> None:
    """Of the encoder: of sum u^2 log w, the u as numbers and the densities of q from a copy that stays."""
    model, batch, k = build(samples=4, upper=upper, gradient="dreg"), toy(), 4
    with torch.no_grad():  # so that the shares are far from equal
        for parameter in model.parameters():
            parameter.mul_(3.0)
    found = gradients(model, batch, "dreg", 5)
    model.zero_grad()
    held = copy.deepcopy(model).requires_grad_(False)
    x = batch.x_BCHW.repeat_interleave(k, dim=0)
    torch.manual_seed(5)
    z = model.infer(x, sample=True).values
    log_w = held.log_prob(x, z, model.hyper(0))
    for name, q in held.infer(x, given=z).posteriors.items():
        log_w = log_w + held.p(name, z, len(x)).log_prob(z[name]).sum(dim=1) - q.log_prob(z[name]).sum(dim=1)
    share = log_w.detach().view(-1, k).softmax(dim=1).flatten()
    assert share.view(-1, k).std() > 0.1
    (-(share.square() * log_w).sum() / 16).backward()
    names = [name for name in found if name.startswith(("encoder", "above"))]
    assert len(names) == (4 if upper is None else 8)
    for name in names:
        same(found[name], model.get_parameter(name).grad)


@pytest.mark.parametrize("two", [False, True])
def test_at_the_true_posterior_the_doubly_reparameterised_gradient_has_no_noise(two: bool) -> None:
    """log w does not change with z there: nothing is left to follow, where the standard gradient is pure noise."""
    toy = Linear(two, samples=4)
    batch = Batch(toy.x, torch.arange(6))
    dreg, standard = (gradients(toy.model, batch, kind, 1) for kind in ("dreg", "standard"))
    for name in dreg:
        if name.startswith(("encoder", "above")):
            same(dreg[name], torch.zeros_like(dreg[name]))
            assert standard[name].abs().max() > 1e-3
        else:
            assert dreg[name].abs().max() > 1e-3


# ---- the levels


@pytest.mark.parametrize("name, options", [("iwae", {"samples": 100}), ("miwae", {"samples": 10, "groups": 10})])
def test_more_draws_than_memory_are_refused_with_the_number_that_fits(
    name: str, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(free: int | None, **options: Any) -> None:
        monkeypatch.setattr(_importance, "free_memory", lambda where: free)
        section = registry.load("model", name).Config.model_validate({**TINY, "name": name, **options})
        model = models.build(section, INFO)
        before = torch.random.get_rng_state()
        try:
            model.check_memory(32)
        finally:
            assert torch.equal(before, torch.random.get_rng_state())

    checked(10**12, **options)
    checked(None, **options)
    with pytest.raises(MachineError, match="100 draws of each of 32 images") as refused:
        checked(10**6, **options)
    fits = int(re.findall(r"at most ([\d,]+) draws fit", refused.value.hint or "")[0])
    assert 1 < fits < 100
    options = {"samples": fits, **({"groups": 1} if name == "miwae" else {})}
    checked(10**6, **options)
    with pytest.raises(MachineError):
        checked(10**6, **{**options, "samples": fits + 1})


def test_levels_are_inferred_upwards_and_generated_downwards() -> None:
    two, one = build(upper=2), build()
    assert [(v.name, v.shape, v.standard) for v in two.levels] == [("z2", (2,), True), ("z1", (3,), False)]
    assert two.inference_order() == ["z1", "z2"] and one.inference_order() == ["z"] and one.standard_prior
    x = toy().x_BCHW
    found = two.infer(x)
    same(found.values["z1"], two.encoder(x).chunk(2, dim=1)[0])
    same(found.values["z2"], two.above(found.values["z1"]).chunk(2, dim=1)[0])
    same(two.p("z1", found.values, 16).mean, two.below(found.values["z2"]).chunk(2, dim=1)[0])
    same(two.image(found.values), two.decoder(found.values["z1"]).sigmoid())
    for wrong in ({"samples": 0}, {"gradient": "none"}, {"upper": 0}):
        with pytest.raises(ValidationError):
            iwae.Config.model_validate({**TINY, **wrong})
