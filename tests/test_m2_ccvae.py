"""m2 and ccvae: objectives recomputed in float64 row by row, bounds against p(x) by brute force, what labels do."""

import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributions as td
from torch import Tensor, nn

from vaecli import models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.errors import ConfigError
from vaecli.models.base import total
from vaecli.objectives import labels

F64 = torch.float64
INFO = DataInfo("toy", (1, 2, 2), 64, ("kind", "other"), (3, 2))
SECTIONS = {
    "m2": {"name": "m2", "latent_dim": 2, "net": {"name": "mlp", "hidden": [16]}, "hidden": 8},
    "ccvae": {"name": "ccvae", "latent_dim": 2, "net": {"name": "mlp", "hidden": [16]}, "draws": 7},
}
both = pytest.mark.parametrize("name", SECTIONS)
ROWS = [(0, 1), (2, 0), (-1, -1), (1, -1), (-1, -1), (-1, 0)]


def build(name: str, info: DataInfo = INFO, **options: Any) -> Any:
    torch.manual_seed(0)
    return models.build(registry.load("model", name).Config.model_validate({**SECTIONS[name], **options}), info)


def batch_of(rows: list[tuple[int, int]]) -> Batch:
    x = torch.rand(len(rows), 1, 2, 2, generator=torch.Generator().manual_seed(7)).double()
    return Batch(x, torch.arange(len(rows)), torch.tensor(rows))


def same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found).double(), torch.as_tensor(wanted).double(), rtol=1e-9, atol=1e-9)


def cross_entropy(x: Tensor, image: Tensor) -> Tensor:
    return -(x * nn.functional.logsigmoid(image) + (1 - x) * nn.functional.logsigmoid(-image)).flatten(1).sum(dim=1)


def gaussian(numbers: Tensor) -> td.Normal:
    mean, logvar = numbers.chunk(2, dim=1)
    return td.Normal(mean, (logvar / 2).exp())


STANDARD = td.Normal(torch.zeros((), dtype=F64), torch.ones((), dtype=F64))


# ---- m2


def m2_by_hand(model: Any, batch: Batch, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Kingma et al. 2014, eq. 6 to 9, a row and a combination of labels at a time, noise in the model's order."""
    x = batch.x_BCHW
    combos = [(a, b) for a in range(3) for b in range(2)]
    h = nn.functional.elu(model.encoder(x))
    log_q = [part.log_softmax(dim=1) for part in model.classifier(h).split((3, 2), dim=1)]
    noise = torch.randn(len(x) * 6, 2, dtype=F64).view(len(x), 6, 2)
    means: dict[bool, list[Tensor]] = {True: [], False: []}
    for row in range(len(x)):
        told, loss = [int(label) for label in batch.labels_BK[row]], torch.zeros((), dtype=F64)
        for m, combo in enumerate(combos):
            y = torch.cat([nn.functional.one_hot(torch.tensor(v), n) for v, n in zip(combo, (3, 2), strict=True)])
            q_z = gaussian(model.to_z(torch.cat([h[row], y.double()])[None]))
            z = q_z.loc + q_z.scale * noise[row, m]
            recon = cross_entropy(x[row : row + 1], model.decoder(torch.cat([z, y.double()[None]], dim=1)))[0]
            each = recon + beta * td.kl_divergence(q_z, STANDARD).sum()
            weight = torch.ones((), dtype=F64)
            for k, value in enumerate(combo):
                weight = weight * (float(told[k] == value) if told[k] >= 0 else log_q[k][row, value].exp())
            loss = loss + weight * each
        for k, size in enumerate((3, 2)):
            if told[k] >= 0:
                loss = loss + beta * math.log(size) - alpha * log_q[k][row, told[k]]
            else:
                loss = loss + beta * (math.log(size) - td.Categorical(logits=log_q[k][row]).entropy())
        means[max(told) >= 0].append(loss)
    return torch.stack(means[True]).mean(), torch.stack(means[False]).mean()


def test_m2_by_hand() -> None:
    model, batch = build("m2", alpha=2.5, beta=0.3).double(), batch_of(ROWS)
    torch.manual_seed(4)
    terms = model.loss(batch, model.hyper(0))
    torch.manual_seed(4)
    wanted = m2_by_hand(model, batch, 2.5, 0.3)
    same(terms["labelled"].value, wanted[0])
    same(terms["unlabelled"].value, wanted[1])
    parameters = list(model.parameters())
    mine = torch.autograd.grad(total(terms)[0], parameters)
    for a, b in zip(mine, torch.autograd.grad(wanted[0] + wanted[1], parameters), strict=True):
        same(a, b)


def test_m2_with_relaxed_labels() -> None:
    """One draw of z and of the label for each image in place of all labels."""
    model, batch = build("m2", alpha=2.5, beta=0.3, unknown="relaxed").double(), batch_of(ROWS)
    torch.manual_seed(4)
    terms = model.loss(batch, model.hyper(0))
    torch.manual_seed(4)
    h = nn.functional.elu(model.encoder(batch.x_BCHW))
    logits = labels.log_probs(model.classifier(h), (3, 2))
    noisy = (logits - torch.empty_like(logits).exponential_().log()) / 0.5
    y = torch.cat([part.softmax(dim=1) for part in noisy.split((3, 2), dim=1)], dim=1)
    told = labels.one_hot(batch.labels_BK, (3, 2)).double()
    known = labels.spread(batch.labels_BK >= 0, (3, 2))
    y = torch.where(known, told, y)
    q_z = gaussian(model.to_z(torch.cat([h, y], dim=1)))
    z = q_z.loc + q_z.scale * torch.randn_like(q_z.loc)
    size = torch.tensor([3.0] * 3 + [2.0] * 2, dtype=F64)
    y_cost = torch.where(known, told * size.log(), logits.exp() * (logits + size.log())).sum(dim=1)
    loss = cross_entropy(batch.x_BCHW, model.decoder(torch.cat([z, y], dim=1)))
    loss = loss + 0.3 * (td.kl_divergence(q_z, STANDARD).sum(dim=1) + y_cost) - 2.5 * (told * logits).sum(dim=1)
    labelled = known.any(dim=1)
    same(terms["labelled"].value, loss[labelled].mean())
    same(terms["unlabelled"].value, loss[~labelled].mean())
    assert "elbo" not in terms  # of relaxed labels there is none


def test_too_many_combinations_to_go_through_are_refused() -> None:
    info = DataInfo("toy", (1, 2, 2), 64, ("a", "b"), (13, 5))
    with pytest.raises(ConfigError, match="m2 would decode each image 65 times"):
        build("m2", info)
    build("m2", info, unknown="relaxed")
    build("m2", info, factors=["a"])


# ---- ccvae


def ccvae_by_hand(model: Any, batch: Batch, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Joy et al. 2021, eq. 4 and 5, a row at a time, every label gone through, noise in the model's order."""
    x = batch.x_BCHW
    mean, logvar = model.encoder(x).chunk(2, dim=1)
    q = td.Normal(mean, (logvar / 2).exp())
    zc = mean[:, :5] + q.scale[:, :5] * torch.randn(len(x), 5, dtype=F64)
    zs = mean[:, 5:] + q.scale[:, 5:] * torch.randn(len(x), 2, dtype=F64)
    recon = cross_entropy(x, model.decoder(torch.cat([zc, zs], dim=1)))
    further = mean[:, :5] + q.scale[:, :5] * torch.randn(6, len(x), 5).double()

    def log_q_of(codes: Tensor) -> list[Tensor]:
        return [part.log_softmax(dim=-1) for part in (model.slope_C * codes + model.shift_C).split((3, 2), dim=-1)]

    means: dict[bool, list[Tensor]] = {True: [], False: []}
    for row in range(len(x)):
        told = [int(label) for label in batch.labels_BK[row]]
        log_q, free, every = (
            log_q_of(zc[row]),
            log_q_of(zc[row].detach()),
            log_q_of(torch.cat([zc[None], further])[:, row]),
        )
        rates = (td.Normal(mean[row, :5], q.scale[row, :5]).log_prob(zc[row])).sum()
        rates = rates + td.kl_divergence(td.Normal(mean[row, 5:], q.scale[row, 5:]), STANDARD).sum()
        ratio, log_q_y_x = torch.zeros((), dtype=F64), torch.zeros(7, dtype=F64)
        start = 0
        for k, size in enumerate((3, 2)):
            for value in range(size):
                weight = log_q[k][value].exp() if told[k] < 0 else float(told[k] == value)
                prior = torch.zeros((), dtype=F64)
                for j in range(size):
                    at = int(j == value)
                    scale = (model.logvar_2C[at, start + j] / 2).exp()
                    prior = prior + td.Normal(model.mean_2C[at, start + j], scale).log_prob(zc[row, start + j])
                rates = rates + weight * (log_q[k][value] - prior)
            if told[k] >= 0:
                ratio, log_q_y_x = ratio + free[k][told[k]], log_q_y_x + every[k][:, told[k]]
            start += size
        log_q_y_x = log_q_y_x.exp().mean().log()
        w = (ratio - log_q_y_x).exp()
        loss = w * (recon[row] + beta * rates) + beta * math.log(6) - alpha * log_q_y_x
        means[max(told) >= 0].append(loss)
    return torch.stack(means[True]).mean(), torch.stack(means[False]).mean()


def test_ccvae_by_hand() -> None:
    model, batch = build("ccvae", alpha=2.5, beta=0.3).double(), batch_of(ROWS)
    with torch.no_grad():
        for parameter in (model.slope_C, model.shift_C, model.mean_2C, model.logvar_2C):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    torch.manual_seed(4)
    terms = model.loss(batch, model.hyper(0))
    torch.manual_seed(4)
    wanted = ccvae_by_hand(model, batch, 2.5, 0.3)
    same(terms["labelled"].value, wanted[0])
    same(terms["unlabelled"].value, wanted[1])
    parameters = list(model.parameters())
    mine = torch.autograd.grad(total(terms)[0], parameters)
    for a, b in zip(mine, torch.autograd.grad(wanted[0] + wanted[1], parameters), strict=True):
        same(a, b)


def test_ccvae_starts_as_published() -> None:
    model = build("ccvae")
    assert model.mean_2C.tolist() == [[-2.0] * 5, [2.0] * 5] and not model.logvar_2C.any()
    y = labels.one_hot(torch.tensor([[1, 0]]), (3, 2))
    assert model.p("zc", {"y": y}, 1).loc.tolist() == [[-2.0, 2.0, -2.0, 2.0, -2.0]]
    assert [level.shape for level in model.levels] == [(5,), (5,), (2,)]
    assert registry.load("model", "ccvae").Config().draws == 100


# ---- both


@cache
@torch.enable_grad()
def trained(name: str) -> Any:
    """Four pixels that tell the kind, trained a little by the paper's objective: in evaluation mode."""
    info = DataInfo("toy", (1, 2, 2), 256, ("kind",), (3,))
    model = build(name, info)
    g = torch.Generator().manual_seed(1)
    kind_N = torch.randint(3, (256, 1), generator=g)
    p_N = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.1, 0.9, 0.9, 0.1], [0.9, 0.1, 0.1, 0.9]])[kind_N[:, 0]]
    x = torch.bernoulli(p_N, generator=g).view(-1, 1, 2, 2)
    seen_N = torch.where(torch.arange(256)[:, None] < 64, kind_N, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(400):
        optimizer.zero_grad()
        total(model.loss(Batch(x, torch.arange(256), seen_N), model.hyper(0)))[0].backward()
        optimizer.step()
    model.x, model.kind = x[:4], kind_N[:4]
    return model.eval()


@both
@torch.no_grad()
def test_the_objective_of_an_unlabelled_image_is_a_bound_of_log_p(name: str) -> None:
    """With beta = 1: minus the mean over draws is below log p(x) by 400,000 ancestral draws, and it is logged."""
    model = trained(name)
    torch.manual_seed(0)
    for x in model.x:
        n = 400_000
        log_prob = model.log_prob(x.expand(n, 1, 2, 2), model.draw(n), {}).double()
        log_p = float(log_prob.logsumexp(dim=0)) - math.log(n)
        many = Batch(x.expand(20_000, 1, 2, 2), torch.arange(20_000), torch.full((20_000, 1), -1))
        terms = model.loss(many, model.hyper(0))
        bound = -float(terms["unlabelled"].value)
        assert bound < log_p and bound == pytest.approx(log_p, abs=0.8)
        assert float(terms["elbo"].value) == pytest.approx(bound, abs=1e-4)
        found = model.infer(x.expand(20_000, 1, 2, 2), sample=True)
        elbo = model.log_prob(many.x_BCHW, found.values, {}).double()
        for rate in model.rates(found).values():
            elbo = elbo - (rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate)
        assert float(elbo.mean()) == pytest.approx(bound, abs=8 * float(elbo.std()) / 20_000**0.5)


@both
@torch.no_grad()
def test_the_objective_of_a_labelled_image_is_a_bound_of_log_p_x_y(name: str) -> None:
    model = trained(name)
    torch.manual_seed(0)
    for x, kind in zip(model.x, model.kind, strict=True):
        n = 400_000
        log_prob = model.log_prob(x.expand(n, 1, 2, 2), model.draw(n, model.condition(kind.expand(n, 1))), {}).double()
        log_p = float(log_prob.logsumexp(dim=0)) - math.log(n) - math.log(3)
        told = Batch(x.expand(50_000, 1, 2, 2), torch.arange(50_000), kind.expand(50_000, 1))
        terms = model.loss(told, model.hyper(0))
        bound = -float(terms["labelled"].value)
        if name == "m2":  # the classifier's term is beside the bound; in ccvae it is part of it
            bound += 10.0 * float(terms["classifier"].value)
        assert bound < log_p + 0.01 and bound > log_p - 1.5


@both
@torch.no_grad()
def test_labels_choose_what_is_drawn(name: str) -> None:
    model = trained(name)
    torch.manual_seed(0)
    asked = torch.arange(3).repeat_interleave(500)[:, None]
    kept = model.condition(asked)
    assert list(kept) == ["y"]
    images = model.image(model.draw(1500, kept)).flatten(1).view(3, 500, 4).mean(dim=1)
    wanted = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.1, 0.9, 0.9, 0.1], [0.9, 0.1, 0.1, 0.9]])
    assert (images - wanted).abs().max() < 0.25
    torch.manual_seed(1)
    open_y = model.condition(torch.full((30_000, 1), -1))["y"].mean(dim=0)
    assert (open_y - 1 / 3).abs().max() < 0.02
