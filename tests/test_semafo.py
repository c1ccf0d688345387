"""semafo-vae and semafo-hvae: the objective recomputed in float64, the bound against p(x) by brute force, gradients
that must and must not be there, which images have labels, what labels do to the prior and to images."""

import copy
import json
import math
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributions as td
from conftest import Result, command
from torch import Tensor, nn

from vaecli import data, models, registry
from vaecli.analysis.transitivity import transitivity
from vaecli.batch import Batch, DataInfo
from vaecli.data.array import Config as Array
from vaecli.data.base import Dataset
from vaecli.data.digits import Config as Digits
from vaecli.data.orders import InTurn, Mixed, WarmUp
from vaecli.data.squares import Config as Squares
from vaecli.errors import ConfigError, InputError
from vaecli.models.base import Inference, total
from vaecli.nets import semafo
from vaecli.objectives import distributions, labels
from vaecli.settings.optim import Adam

F64 = torch.float64
INFO = DataInfo("toy", (1, 4, 4), 64, ("kind", "other"), (3, 2))
FLAT = {"name": "semafo-vae", "latent_dim": 3, "net": {"name": "mlp", "hidden": [16]}, "label_width": 8}
DEEP = {"name": "semafo-hvae", "latent_dim": 3, "net": {"name": "semafo", "width": 4}, "label_width": 8}
MODELS = {"semafo-vae": FLAT, "semafo-hvae": {**DEEP, "detail_channels": 2}}
both = pytest.mark.parametrize("name", MODELS)


def build(name: str = "semafo-vae", info: DataInfo = INFO, **options: Any) -> Any:
    torch.manual_seed(0)
    values = {**MODELS[name], "prior_width": 8, **options}
    return models.build(registry.load("model", name).Config.model_validate(values), info)


def batch_of(rows: list[tuple[int, int]], info: DataInfo = INFO) -> Batch:
    g = torch.Generator().manual_seed(7)
    x = torch.rand(len(rows), *info.shape, generator=g).double()
    return Batch(x, torch.arange(len(rows)), torch.tensor(rows))


ROWS = [(0, 1), (2, 0), (-1, -1), (1, -1), (-1, -1), (-1, 0), (-1, -1)]  # both labels, one, none


def same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found).double(), torch.as_tensor(wanted).double(), rtol=1e-9, atol=1e-9)


# ---- the objective, once more


def normal(numbers: Tensor, floor: float) -> td.Normal:
    mean, raw = numbers.chunk(2, dim=1)
    return td.Normal(mean, nn.functional.softplus(raw) + floor)


def by_hand(model: Any, batch: Batch, c: dict[str, float], reference: tuple[str, ...] = (), hard: bool = False) -> Any:
    """The two means of A.2's objectives, row by row, from the model's nets and torch's distributions, with the noise in
    the order in which the model draws it."""
    config, x, deep = model.config, batch.x_BCHW, hasattr(model, "detail")
    tau, sizes = config.temperature, (3, 2)
    if deep:
        seen = model.encoder(x)
        q_z = normal(model.summary(seen), 1e-5)
    else:
        q_z = normal(model.encoder(x), 1e-5)
    z = q_z.loc + q_z.scale * torch.randn_like(q_z.loc)
    logits = torch.cat([part.log_softmax(dim=1) for part in model.classifier(z).split(sizes, dim=1)], dim=1)
    noisy = logits - torch.empty_like(logits).exponential_().log()
    if hard:
        guess = [
            nn.functional.one_hot(part.argmax(dim=1), part.shape[1]).double() for part in noisy.split(sizes, dim=1)
        ]
    else:
        guess = [(part / tau).softmax(dim=1) for part in noisy.split(sizes, dim=1)]
    y = torch.stack(
        [
            torch.cat(
                [
                    nn.functional.one_hot(label, size).double() if label >= 0 else guess[k][row]
                    for k, (label, size) in enumerate(zip(batch.labels_BK[row], sizes, strict=True))
                ]
            )
            for row in range(len(x))
        ]
    )
    q_u = normal(model.label_encoder(y), 1e-5)
    u = q_u.loc + q_u.scale * torch.randn_like(q_u.loc)
    p_z = normal(model.prior(u), 1e-5)
    kl_u = td.kl_divergence(q_u, td.Normal(torch.zeros_like(u), torch.ones_like(u))).sum(dim=1)
    kl_z = td.kl_divergence(q_z, p_z).sum(dim=1)
    if "kl" in reference:
        kl_z = (q_z.log_prob(z) - p_z.log_prob(z)).sum(dim=1)
    kl_z1 = torch.zeros(len(x))
    if deep:
        h = model.unfold(z)
        q_1 = normal(model.detail.posterior(torch.cat([h, seen], dim=1)), math.exp(-7))
        z1 = q_1.loc + q_1.scale * torch.randn_like(q_1.loc)
        image = model.decoder(model.detail.back(torch.cat([z1, model.detail.path(h)], dim=1)) + h)
        other = u if "redraw" not in reference else q_u.loc + q_u.scale * torch.randn_like(q_u.loc)
        p_1 = normal(model.detail.prior(h) + model.detail.of_u(other), math.exp(-7))
        kl_z1 = td.kl_divergence(q_1, p_1).flatten(1).sum(dim=1)
    else:
        image = model.decoder(z)
    log_x = (x * nn.functional.logsigmoid(image) + (1 - x) * nn.functional.logsigmoid(-image)).flatten(1).sum(dim=1)
    heads = [part.log_softmax(dim=1) for part in model.label_decoder(u).split(sizes, dim=1)]
    objectives: dict[bool, list[Tensor]] = {True: [], False: []}
    for row in range(len(x)):
        told = [int(label) for label in batch.labels_BK[row]]
        labelled = max(told) >= 0
        g, b = (c["gs"], c["bs"]) if labelled else (c["gu"], c["bu"])
        j = g * log_x[row] - b * (kl_z[row] + kl_u[row]) - c["b1"] * kl_z1[row]
        for k, part in enumerate(logits.split(sizes, dim=1)):
            j = j + g * c["gy"] * (y.split(sizes, dim=1)[k][row] * heads[k][row]).sum()
            relaxed = td.RelaxedOneHotCategorical(torch.tensor(tau, dtype=F64), logits=part[row])
            if told[k] >= 0:
                hot = nn.functional.one_hot(torch.tensor(told[k]), sizes[k]).double()
                log_q = part[row][told[k]]
                if "classifier" in reference:
                    clipped = hot.clamp(1e-6, 1 - 1e-6)
                    # torch checks that it sums to one, which the clipped label does not quite
                    log_q = labels.relaxed_log_prob(clipped.log()[None], part[row][None], (sizes[k],), tau)[0, 0]
                j = j + g * c["gy"] * log_q
            elif "entropy" in reference:
                log_q = (guess[k][row] * part[row]).sum() if hard else relaxed.log_prob(guess[k][row])
                j = j - c["cH"] * log_q
            else:
                j = j + c["cH"] * td.Categorical(logits=part[row]).entropy()
        objectives[labelled].append(j)
    return -torch.stack(objectives[True]).mean(), -torch.stack(objectives[False]).mean()


WEIGHTS = {"gs": 1.3, "gu": 7.0, "gy": 3.0, "bs": 0.7, "bu": 1.9, "cH": 2.5, "b1": 0.6}
NAMES = {
    "gs": "gamma_labelled", "gu": "gamma_unlabelled", "gy": "gamma_y", "bs": "beta_labelled", "bu": "beta_unlabelled",
    "cH": "entropy", "b1": "beta_z1",
}  # fmt: skip


@both
@pytest.mark.parametrize(
    ("options", "single"),
    [
        *(({}, single) for single in ("", *WEIGHTS)),
        *(({"reference": True}, single) for single in ("", *WEIGHTS)),
        *((options, "") for options in ({"labels": "hard"}, {"reference": ["kl"]}, {"reference": ["redraw"]})),
    ],
)
def test_the_objective_by_hand(name: str, options: dict[str, Any], single: str) -> None:
    """Value and gradient, all weights at once and each alone."""
    c = dict.fromkeys(WEIGHTS, 0.0) | ({single: WEIGHTS[single], "gs": 1.0, "gu": 1.0} if single else WEIGHTS)
    settings = {NAMES[key]: value for key, value in c.items() if key != "b1" or name == "semafo-hvae"}
    model = build(name, DataInfo("toy", (1, 8, 8), 64, ("kind", "other"), (3, 2)), **settings, **options).double()
    batch = batch_of(ROWS, model.info)
    reference = options.get("reference", ())
    every = ("classifier", "kl", "entropy", "redraw")
    torch.manual_seed(5)
    terms = model.loss(batch, model.hyper(0))
    torch.manual_seed(5)
    wanted = by_hand(model, batch, c, every if reference is True else tuple(reference), "labels" in options)
    same(terms["labelled"].value, wanted[0])
    same(terms["unlabelled"].value, wanted[1])
    loss = total(terms)[0]
    same(loss, wanted[0] + wanted[1])  # both halves have the same weight, whatever their counts
    parameters = [p for p in model.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True),
        torch.autograd.grad(wanted[0] + wanted[1], parameters, allow_unused=True),
        strict=True,
    ):
        if mine is None or theirs is None:
            assert (mine is None or not mine.any()) and (theirs is None or not theirs.any())
        else:
            same(mine, theirs)


def test_the_defaults_are_the_papers() -> None:
    hyper = models.build(registry.load("model", "semafo-hvae").Config(name="semafo-hvae"), INFO).hyper(0)
    wanted = {"gs": 1, "gu": 10, "gy": 10, "bs": 1, "bu": 1, "cH": 1, "b1": 1}
    assert {key: hyper[name] for key, name in NAMES.items()} == wanted
    assert hyper["temperature"] == 0.5 and hyper["labelled_share"] == 0.1


@both
def test_one_kind_of_image_alone(name: str) -> None:
    """Each half is the mean over its own images; where there are none it is 0 and finite, gradient included."""
    model = build(name, DataInfo("toy", (1, 8, 8), 64, ("kind", "other"), (3, 2)))
    for rows, there, gone in ((ROWS[:2], "labelled", "unlabelled"), ([ROWS[2]] * 3, "unlabelled", "labelled")):
        batch = batch_of(rows, model.info)
        terms = model.loss(Batch(batch.x_BCHW.float(), batch.index_B, batch.labels_BK), model.hyper(0))
        assert terms[gone].value.item() == 0.0 and terms[there].value.item() > 0
        total(terms)[0].backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval()
    held_out = model.loss(Batch(batch.x_BCHW.float(), batch.index_B, batch.labels_BK), model.hyper(0))
    assert math.isnan(float(held_out["classifier"].value))  # no image has a label to be told


# ---- the bound


UNIT = {"gamma_unlabelled": 1.0, "gamma_y": 1.0}


@cache
@torch.enable_grad()
def small() -> Any:
    """Four pixels, one label of three values, two latents, trained a little with every weight 1: in evaluation mode."""
    info = DataInfo("toy", (1, 2, 2), 64, ("kind",), (3,))
    model = build("semafo-vae", info, latent_dim=2, **UNIT)
    g = torch.Generator().manual_seed(1)
    kind_N = torch.randint(3, (256, 1), generator=g)
    p_N = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.1, 0.9, 0.9, 0.1], [0.9, 0.1, 0.1, 0.9]])[kind_N[:, 0]]
    x = torch.bernoulli(p_N, generator=g).view(-1, 1, 2, 2)
    seen_N = torch.where(torch.arange(256)[:, None] < 64, kind_N, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        total(model.loss(Batch(x, torch.arange(256), seen_N), model.hyper(0)))[0].backward()
        optimizer.step()
    model.x, model.kind = x[:4], kind_N[:4]
    return model.eval()


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def log_mean_exp(log_w_KB: Tensor) -> Tensor:
    return log_w_KB.logsumexp(dim=0) - math.log(len(log_w_KB))


@torch.no_grad()
def test_the_bound_is_one_and_grows_with_more_draws_towards_log_p() -> None:
    """log p(x) by 400,000 ancestral draws that know nothing of the encoder."""
    model = small()
    torch.manual_seed(0)
    for x in model.x:
        n = 400_000
        drawn = model.draw(n)
        log_p = float(log_mean_exp(model.log_prob(x.expand(n, 1, 2, 2), drawn, {}).double()[:, None]))
        n = 64_000
        found = model.infer(x.expand(n, 1, 2, 2), sample=True)
        log_w = model.log_prob(x.expand(n, 1, 2, 2), found.values, {}).double()
        for rate in model.rates(found).values():
            log_w = log_w - (rate.sum(dim=1) if rate.dim() > 1 else rate)
        u, q_u = found.values["u"], found.posteriors["u"]
        # the divergence of u in closed form is replaced by its draw: only then are these weights
        kl_u = td.kl_divergence(q_u, model.p("u", {}, n)).sum(dim=1)
        log_w_drawn = log_w + kl_u - (q_u.log_prob(u) - model.p("u", {}, n).log_prob(u)).sum(dim=1)
        elbo, error = mean_and_error(log_w)
        bounds = [mean_and_error(log_mean_exp(log_w_drawn.view(k, -1))) for k in (1, 4, 64, 1000)]
        assert elbo < log_p and elbo == pytest.approx(bounds[0][0], abs=5 * (error + bounds[0][1]))
        assert all(a[0] < b[0] + 2 * (a[1] + b[1]) for a, b in pairwise(bounds))
        assert bounds[-1][0] == pytest.approx(log_p, abs=5 * bounds[-1][1] + 0.02)
        assert bounds[-1][0] - bounds[0][0] > 5 * bounds[0][1]  # and there is something to be gained


@torch.no_grad()
def test_what_is_minimised_with_weights_of_one_is_that_bound_if_labels_are_enumerated() -> None:
    """J_u with the label gone through: E_q(z) sum_y q(y|z) [...], J_s less the classifier a bound of log p(x, y)."""
    model = small()
    torch.manual_seed(1)
    n, x, y_true = 20_000, model.x[0], int(model.kind[0])
    many = x.expand(n, 1, 2, 2)
    q_z = model.q("z0", model.features(many), {})
    z = q_z.rsample()
    q_y = model.q("y", None, {"z0": z})
    log_x = model.log_prob(many, {"z0": z}, {}).double()
    j_u = torch.zeros(n, dtype=F64)
    for value in range(3):
        y = labels.one_hot(torch.full((n, 1), value), (3,))
        q_u = model.q("u", None, {"y": y})
        u = q_u.rsample()
        p_y, p_z = model.p("y", {"u": u}, n), model.p("z0", {"u": u}, n)
        rates = td.kl_divergence(q_u, model.p("u", {}, n)).sum(dim=1)
        rates = rates + (q_z.log_prob(z) - p_z.log_prob(z)).sum(dim=1)
        each = log_x + p_y.log_prob(y).double() - rates
        j_u += q_y.probs[:, value] * (each - q_y.logits[:, value])
        if value == y_true:
            divergence = td.kl_divergence(q_z, p_z).sum(dim=1)  # given the label u knows nothing of z: this is exact
            drawn, closed = each, each + (q_z.log_prob(z) - p_z.log_prob(z)).sum(dim=1) - divergence
    found = model.infer(many, sample=True)
    hard = model.log_prob(many, found.values, {}).double()
    for rate in model.rates(found).values():
        hard = hard - (rate.sum(dim=1) if rate.dim() > 1 else rate)
    a, b = mean_and_error(j_u), mean_and_error(hard)
    assert a[0] == pytest.approx(b[0], abs=5 * (a[1] + b[1]))
    # The labelled objective, with and without the divergence in closed form, and what the model reports.
    a, b = mean_and_error(drawn), mean_and_error(closed)
    assert a[0] == pytest.approx(b[0], abs=5 * (a[1] + b[1]))
    told = Batch(many, torch.arange(n), torch.full((n, 1), y_true))
    terms = model.loss(told, model.hyper(0))
    j_s = -float(terms["labelled"].value) + float(terms["classifier"].value)
    assert j_s == pytest.approx(b[0], abs=6 * b[1])
    n = 400_000
    drawn_values = model.draw(n)
    joint = model.log_prob(x.expand(n, 1, 2, 2), drawn_values, {}).double()
    joint = joint + drawn_values["y"][:, y_true].double().log()
    assert j_s < float(log_mean_exp(joint[:, None]))


@torch.no_grad()
def test_on_images_without_labels_the_closed_divergence_is_no_less_than_the_drawn_one() -> None:
    """There u is inferred from z: the divergence to its prior, u being what it is, costs more than the bound's."""
    model = small()
    torch.manual_seed(2)
    n = 60_000
    found = model.infer(model.x[:1].expand(n, 1, 2, 2), sample=True)
    p_z, q_z = model.p("z0", found.values, n), found.posteriors["z0"]
    gap = td.kl_divergence(q_z, p_z).sum(dim=1) - model.rates(found)["z0"]
    mean, error = mean_and_error(gap.double())
    assert mean > -5 * error


# ---- gradients


def test_the_entropy_of_hard_labels_by_their_score_has_no_gradient_on_average() -> None:
    """E[d log q(y)] = 0: what is left of it is noise; the entropy itself has one."""
    logits = torch.tensor([[0.5, -1.0, 0.2]], dtype=F64)
    gradients = {}
    for reference in (True, False):
        model = build("semafo-vae", DataInfo("toy", (1, 2, 2), 9, ("kind",), (3,)), labels="hard", reference=reference)
        leaf = logits.repeat(50_000, 1).requires_grad_()
        torch.manual_seed(0)
        q_y = labels.OneHotBlocks(leaf, (3,))
        guess, log_guess = model._guess(q_y)
        model._unsure(q_y, guess, log_guess).sum().backward()
        assert leaf.grad is not None
        gradients[reference] = leaf.grad
    error = gradients[True].std(dim=0) / 50_000**0.5
    assert (gradients[True].mean(dim=0).abs() < 5 * error).all() and float(gradients[True].std(dim=0).min()) > 0.3
    probs, log_probs = logits.softmax(dim=1), logits.log_softmax(dim=1)
    entropy = -(probs * log_probs).sum()
    same(gradients[False].mean(dim=0), (-probs * (log_probs + entropy))[0])
    assert float(gradients[False].mean(dim=0).abs().max()) > 20 * float(error.max())


def test_relaxed_labels_pass_gradients_and_hard_ones_do_not() -> None:
    for how in ("relaxed", "hard"):
        model = build(labels=how, gamma_y=1.0, entropy=0.0)
        batch = batch_of([(-1, -1)] * 4)
        terms = model.loss(Batch(batch.x_BCHW.float(), batch.index_B, batch.labels_BK), model.hyper(0))
        total(terms)[0].backward()
        moved = model.classifier[0].weight.grad
        assert (moved is not None and bool(moved.any())) == (how == "relaxed")


def test_without_label_and_rate_nothing_moves_the_prior() -> None:
    for weight in (0.0, 1.0):
        options = {"gamma_y": weight, "beta_labelled": weight, "beta_unlabelled": weight}
        model = build(**options)
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        batch = batch_of(ROWS)
        for _ in range(3):
            optimizer.zero_grad()
            total(model.loss(Batch(batch.x_BCHW.float(), batch.index_B, batch.labels_BK), model.hyper(0)))[0].backward()
            optimizer.step()
        stayed = all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if "prior" in key)
        assert stayed == (weight == 0.0)


# ---- the images with labels


def digits(labelled: Any, seed: int = 0) -> tuple[Dataset, Any]:
    dataset = data.load(Digits(name="digits", labelled=labelled))
    model = build("semafo-vae", dataset.info)
    return dataset, model.order(dataset.training(seed), seed, 64)


def test_every_batch_has_exactly_its_share_of_labels_dealt_out_class_by_class() -> None:
    dataset, order = digits(100, seed=3)
    stream = dataset.stream(3, 64, order)
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(100):
        batch = stream.batch(step)
        assert batch.labels_BK is not None and batch.truth_BK is not None
        labelled = batch.labels_BK[:, 0] >= 0
        assert labelled.tolist() == [True] * 7 + [False] * 57  # ceil(0.1 * 64)
        assert torch.equal(batch.labels_BK[labelled], batch.truth_BK[labelled])
        seen.update(zip(batch.labels_BK[labelled, 0].tolist(), batch.index_B[labelled].tolist(), strict=True))
    assert len(seen) == 100 and Counter(label for label, _ in seen) == dict.fromkeys(range(10), 10)
    assert {*seen.values()} == {7}  # 700 places for 100 images
    again, other = digits(100, seed=3)[1], digits(100, seed=4)[1]
    assert all(torch.equal(order.indices(step), again.indices(step)) for step in (0, 5, 99, 1))
    assert not torch.equal(order.indices(0), other.indices(0))


def test_the_warm_up_has_labelled_images_alone_and_turns_are_taken_afterwards() -> None:
    dataset = data.load(Digits(name="digits", labelled=100))
    for mode, updates in (("sum", 1), ("alternate", 2)):
        model = build("semafo-vae", dataset.info, warm_up=5, update_mode=mode)
        (player,) = model.players(Adam())
        assert player.updates == updates
        stream = dataset.stream(0, 64, model.order(dataset.training(0), 0, 64))
        for step in (0, 4, 5, 9):
            for update in range(updates):
                known = stream.batch(step, update).labels_BK
                assert known is not None
                share = [float((known >= 0).double().mean()), len(known)]
                wanted = [1.0, 64] if step < 5 else [7 / 64, 64] if mode == "sum" else [[1.0, 7], [0.0, 57]][update]
                assert share == wanted
    mixed = Mixed(torch.arange(90) % 9 == 4, 1, 16, 0.25)
    turns = InTurn(mixed)
    for stream in (0, 1):
        both_kinds = torch.cat([turns.indices(3, 2 * stream), turns.indices(3, 2 * stream + 1)])
        assert torch.equal(both_kinds, mixed.indices(3, stream))
    warm = WarmUp(mixed, 4, turns)
    assert torch.equal(warm.indices(3), mixed.indices(3)) and torch.equal(warm.indices(4), turns.indices(4))
    with pytest.raises(ConfigError, match="no others to take turns with"):
        InTurn(Mixed(torch.ones(9, dtype=torch.bool), 1, 4, 0.25))


def test_labels_that_are_not_there_are_asked_for_before_training() -> None:
    with pytest.raises(ConfigError, match=r"no labelled training image has digit = [0-9], [0-9], [0-9] and 4 more"):
        digits(3)
    with pytest.raises(ConfigError, match=r"no labelled training image has digit = 0, 1, 2 and 7 more values"):
        digits(0)
    dataset = data.load(Squares(name="squares", labelled={"size": 30}))
    with pytest.raises(ConfigError, match="no labelled training image has posX"):
        build("semafo-vae", dataset.info).order(dataset.training(0), 0, 16)
    model = build("semafo-vae", dataset.info, factors=["size"])
    model.order(dataset.training(0), 0, 16)
    assert model.factors == ("size",) and model.level("y").sizes == (3,) and model.level("u").shape == (3,)
    with pytest.raises(ConfigError, match="no factor 'sise' that varies; did you mean 'size'"):
        build("semafo-vae", dataset.info, factors=["sise"])
    with pytest.raises(ConfigError, match=r"model\.factors is empty"):
        build("semafo-vae", dataset.info, factors=[])
    with pytest.raises(ConfigError, match="has none that differ"):
        build("semafo-vae", DataInfo("plain", (1, 4, 4), 9))


def test_a_value_that_no_image_has_needs_no_label() -> None:
    images, kind = np.random.default_rng(0).random((60, 4, 4)), np.arange(60)[:, None] % 3
    kind[kind == 1] = 3
    np.savez("d.npz", images=images, factors=kind, factor_names=["kind"], factor_sizes=[4])
    dataset = data.load(Array(name="array", path="d.npz", labelled=12))
    build("semafo-vae", dataset.info).order(dataset.training(0), 0, 16)


# ---- labels asked for


@both
@torch.no_grad()
def test_labels_asked_for_and_left_open(name: str) -> None:
    model = build(name, DataInfo("toy", (1, 8, 8), 64, ("kind", "other"), (3, 2))).eval()
    torch.manual_seed(3)
    asked = torch.tensor([[2, 0], [0, 1]]).repeat(200, 1)
    kept = model.condition(asked)
    assert sorted(kept) == ["u", "y"] and torch.equal(kept["y"], labels.one_hot(asked, (3, 2)))
    torch.manual_seed(3)
    half = model.condition(torch.where(torch.tensor([True, False]), asked, -1))
    assert torch.equal(half["y"][:, :3], kept["y"][:, :3])
    same(labels.by_block(half["y"], (3, 2)), torch.ones(400, 2))
    # u's noise is the same, whatever is asked: (u - mean) / sd
    for found in (kept, half):
        q = model.q("u", None, {"y": found["y"]})
        noise = (found["u"] - q.loc) / q.scale
        if found is kept:
            first = noise
    torch.testing.assert_close(noise, first, rtol=1e-3, atol=1e-3)
    assert float(first.std()) == pytest.approx(1, abs=0.1)
    torch.manual_seed(4)
    open_y = model.condition(torch.full((20_000, 2), -1))["y"]
    torch.manual_seed(5)
    ancestral = model.draw(20_000)["y"]
    assert (open_y.mean(dim=0) - ancestral.mean(dim=0)).abs().max() < 0.025
    for bad in (torch.tensor([[3, 0]]), torch.tensor([[0]])):
        with pytest.raises(InputError, match=r"the labels of semafo-.*vae are kind 0 to 2, other 0 to 1"):
            model.condition(bad)
    drawn = model.draw(400, kept)
    assert all(torch.equal(drawn[level], kept[level]) for level in ("u", "y"))


@torch.no_grad()
def test_sampling_needs_no_encoder() -> None:
    model = build("semafo-hvae", DataInfo("toy", (1, 8, 8), 64, ("kind", "other"), (3, 2))).eval()

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder was asked")

    for part in (model.encoder, model.summary, model.detail.posterior, model.classifier):
        part.register_forward_pre_hook(refuse)
    model.image(model.draw(3, model.condition(torch.tensor([[1, 1], [0, -1], [2, 0]]))))
    with pytest.raises(AssertionError):
        model.infer(torch.rand(1, 1, 8, 8))


# ---- the level of detail


@pytest.mark.parametrize(
    ("shape", "channels", "z1", "kernel", "stride"),
    [
        ((1, 28, 28), 16, (16, 2, 2), 14, 7),
        ((1, 64, 64), 32, (32, 2, 2), 8, 4),
        ((3, 64, 64), 32, (32, 2, 2), 8, 4),
        ((3, 32, 32), 32, (32, 4, 4), 8, 4),
        ((1, 20, 12), 3, (3, 2, 2), (10, 6), (5, 3)),
    ],
)
def test_the_shapes_of_detail(shape: Any, channels: int, z1: Any, kernel: Any, stride: Any) -> None:
    info = DataInfo("toy", shape, 64, ("kind",), (3,))
    model = build("semafo-hvae", info, detail_channels=channels)
    assert model.level("z1").shape == z1 and [level.name for level in model.levels] == ["u", "y", "z0", "z1"]

    def pair(v: Any) -> tuple[int, int]:
        return v if isinstance(v, tuple) else (v, v)

    for layer in (model.detail.prior[1], model.detail.posterior[1], model.detail.path[1], model.detail.back[0]):
        assert (layer.kernel_size, layer.stride) == (pair(kernel), pair(stride))
    values = model.draw(2)
    h = model.unfold(values["z0"])
    assert h.shape == model.encoder(torch.rand(2, *shape)).shape == model.detail(h, values["z1"]).shape
    assert model.image(values).shape == (2, *shape)


def test_what_can_be_left_out_of_the_level_of_detail() -> None:
    torch.manual_seed(0)
    h, z1, u = torch.randn(2, 6, 8, 8), torch.randn(2, 4, 2, 2), torch.randn(2, 5)
    for skip, residual, path in ((1.0, True, True), (0.5, True, True), (0.0, False, False)):
        torch.manual_seed(1)
        detail = semafo.Detail(6, (8, 8), 4, 5, skip, residual, path)
        numbers = detail.prior(h)
        shift = detail.shifted(numbers, u) - numbers
        if skip:
            torch.testing.assert_close(shift, skip * detail.of_u(u))
        else:
            assert detail.of_u is None and not shift.any()
        inner = torch.cat([z1, detail.path(h)], dim=1) if path else z1
        torch.testing.assert_close(detail(h, z1), detail.back(inner) + (h if residual else 0))
        assert sum(p.numel() for p in detail.parameters()) == (
            (6 * 64 + 1) * 8 + (12 * 64 + 1) * 8 
            + ((5 + 1) * 256 + 257 * 32 if skip else 0)
            + ((6 * 64 + 1) * 4 if path else 0)
            + (8 if path else 4) * 64 * 6 + 6
        )  # fmt: skip


# ---- turns


def test_alternating_updates_are_those_of_each_kind() -> None:
    """Labelled first, then the others: after a step the weights are those of two steps by hand."""
    dataset = data.load(Digits(name="digits", labelled=100))
    model = build("semafo-vae", dataset.info, update_mode="alternate")
    mine = copy.deepcopy(model)
    from vaecli import config as configs
    from vaecli import device
    from vaecli.config import tree
    from vaecli.training.state import TrainState
    from vaecli.training.steps import update

    section = {**MODELS["semafo-vae"], "prior_width": 8, "update_mode": "alternate"}
    values = {"data": {"name": "digits", "labelled": 100}, "model": section, "optim": {"name": "adam", "lr": 0.01}}
    config = configs.build(tree.Tree({**values, "train": {"steps": 5, "batch_size": 64, "fast": False}, "seed": 1}, {}))
    order = model.order(dataset.training(1), 1, 64)
    stream = dataset.stream(1, 64, order)
    logged = update(model, config, TrainState.fresh(model, config), stream.batch(0), stream)
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.01)
    device.seed(1, "step", 0)
    for turn, kind in enumerate(("labelled", "unlabelled")):
        optimizer.zero_grad()
        terms = mine.loss(stream.batch(0, turn), mine.hyper(0))
        terms[kind].value.backward()
        optimizer.step()
    for a, b in zip(model.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert logged["unlabelled"] == pytest.approx(float(terms["unlabelled"].value), rel=1e-5)
    assert "classifier" not in logged  # the record is of the second update, which tells no label


# ---- transitive information


def test_information_through_the_label_is_a_lower_bound_on_any_counts() -> None:
    g = torch.Generator().manual_seed(0)
    tight = 0
    for trial in range(300):
        sizes = [int(n) for n in torch.randint(2, 6, (3,), generator=g)]
        y = torch.randint(sizes[2], (200,), generator=g)
        noisy = torch.rand(2, 200, generator=g) < (trial % 10) / 10
        a, b = (
            torch.where(noisy[i], torch.randint(sizes[i], (200,), generator=g), y.clamp(max=sizes[i] - 1))
            for i in (0, 1)
        )
        found = transitivity(a, b, y)
        assert found.slack >= -1e-9
        tight += found.slack < 0.05
        joint = torch.zeros(sizes[0], sizes[1], sizes[2], dtype=F64)
        joint.index_put_((a, b, y), torch.ones(200, dtype=F64) / 200, accumulate=True)
        for pair, value in (((2,), found.a_b), ((1,), found.a_y), ((0,), found.y_b)):
            table = joint.sum(dim=pair)
            independent = table.sum(dim=1, keepdim=True) * table.sum(dim=0, keepdim=True)
            kept = table > 0
            assert value == pytest.approx(
                float((table[kept] * (table[kept] / independent[kept]).log()).sum()), abs=1e-9
            )
        share = joint.sum(dim=(0, 1))
        assert found.y == pytest.approx(-float(torch.special.xlogy(share, share).sum()), abs=1e-9)
    assert 0 < tight < 300
    y = torch.arange(12) % 3
    perfect = transitivity(y, y, y)
    assert perfect.bound == pytest.approx(math.log(3)) and perfect.slack == pytest.approx(0, abs=1e-12)


# ---- small trainings


def trained(dataset: Dataset, steps: int, seed: int = 0, batch_size: int = 32, lr: float = 3e-3, **options: Any) -> Any:
    name = options.pop("name", "semafo-vae")
    model = build(name, dataset.info, **options)
    model.begin(dataset.training(seed))
    model.train()
    stream = dataset.stream(seed, batch_size, model.order(dataset.training(seed), seed, batch_size))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    torch.manual_seed(seed)
    for step in range(steps):
        optimizer.zero_grad()
        total(model.loss(stream.batch(step), model.hyper(step)))[0].backward()
        nn.utils.clip_grads_with_norm_(model.parameters(), 100.0, nn.utils.get_total_norm([
            p.grad for p in model.parameters() if p.grad is not None
        ]))  # fmt: skip
        optimizer.step()
    return model.eval()


def read(dataset: Dataset, images: Tensor) -> Tensor:
    """The digit of the nearest image of all."""
    every = dataset.split("all").take(2000)
    assert every.truth_BK is not None
    return every.truth_BK[torch.cdist(images.flatten(1), every.x_BCHW.flatten(1)).argmin(dim=1), 0]


@torch.no_grad()
def drawn_for_each_digit(model: Any, dataset: Dataset, n: int = 50) -> tuple[Tensor, Tensor]:
    """(10, n): what is read from n images of each digit, and whether it is what was asked for."""
    torch.manual_seed(9)
    asked = torch.arange(10).repeat_interleave(n)[:, None]
    found = read(dataset, model.image(model.draw(10 * n, model.condition(asked)))).view(10, n)
    return found, found == asked.view(10, n)


@torch.no_grad()
def log_x(model: Any, dataset: Dataset) -> float:
    batch = dataset.split("val").take(180)
    torch.manual_seed(9)
    return float(model.log_prob(batch.x_BCHW, model.infer(batch.x_BCHW, sample=True).values, {}).mean())


DIGIT = {"net": {"name": "mlp", "hidden": [128]}, "latent_dim": 8, "label_width": 64, "prior_width": 64}


@pytest.mark.slow
def test_labels_choose_what_is_drawn_and_labels_dealt_out_at_random_do_not() -> None:
    """200 labels of 8x8 digits: the digit asked for comes out; with the labels shuffled it does no more often than by
    chance, and images are reconstructed as well. The prior follows from the label."""
    dataset = data.load(Digits(name="digits", labelled=200))
    model = trained(dataset, 1200, batch_size=64, warm_up=100, **DIGIT)
    shuffled = copy.copy(dataset)
    assert dataset.labels is not None
    shuffled.labels = dataset.labels[torch.randperm(len(dataset.labels), generator=torch.Generator().manual_seed(0))]
    lost = trained(shuffled, 1200, batch_size=64, warm_up=100, **DIGIT)
    batch = dataset.split("val").take(180)
    assert batch.truth_BK is not None
    assert float(drawn_for_each_digit(model, dataset)[1].double().mean()) > 0.65
    assert float(drawn_for_each_digit(lost, dataset)[1].double().mean()) == pytest.approx(0.1, abs=0.06)
    assert log_x(lost, dataset) == pytest.approx(log_x(model, dataset), abs=1.0)
    with torch.no_grad():
        hot = [labels.one_hot(torch.tensor([[value]]), (10,)) for value in range(10)]
        priors = [model.p("z0", {"u": model.q("u", None, {"y": y}).loc}, 1) for y in hot]
        gaps = [float(td.kl_divergence(priors[a], priors[b]).sum()) for a in range(10) for b in range(10) if a != b]
        assert min(gaps) > 1.0
        found = model.infer(batch.x_BCHW)
        a, b = found.values["y"].argmax(dim=1), model.p("y", found.values, 180).probs.argmax(dim=1)
        assert float((a == batch.truth_BK[:, 0]).double().mean()) > 0.8
        triple = transitivity(a, b, batch.truth_BK[:, 0])
        assert triple.slack >= -1e-9 and triple.bound > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["semafo-vae", pytest.param("semafo-hvae", marks=pytest.mark.long)])
def test_sixty_four_images_are_learned_by_heart(name: str) -> None:
    """Every label right, and what is drawn for a label is read as it more often than as any other."""
    dataset = data.load(Digits(name="digits", limit=64))
    net = {"net": {"name": "semafo", "width": 8}} if name == "semafo-hvae" else {}
    model = trained(dataset, 500, name=name, batch_size=64, lr=1e-2, **{**DIGIT, **net})
    batch = dataset.split("train").take(64)
    assert batch.truth_BK is not None
    with torch.no_grad():
        said = model.infer(batch.x_BCHW).values["y"].argmax(dim=1)
    assert torch.equal(said, batch.truth_BK[:, 0])
    readings, right = drawn_for_each_digit(model, dataset)
    assert readings.mode(dim=1).values.tolist() == list(range(10)) and float(right.double().mean()) > 0.5


SQUARE = {"net": {"name": "mlp", "hidden": [64]}, "latent_dim": 12, "label_width": 32}


@pytest.mark.slow
def test_labels_can_be_read_from_z0_by_a_linear_map_as_well_as_by_any() -> None:
    """Within two points; of a VAE of the same size the linear map lags further behind."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    neural = pytest.importorskip("sklearn.neural_network")
    dataset = data.load(Squares(name="squares", holdout=0.3))
    gaps = {}
    for kind in ("semafo", "vae"):
        if kind == "semafo":
            model = trained(dataset, 1500, **SQUARE)
        else:
            module = registry.load("model", "beta-vae")
            section = {"name": "beta-vae", "beta": 0.1, "latent_dim": SQUARE["latent_dim"], "net": SQUARE["net"]}
            torch.manual_seed(0)
            model = models.build(module.Config.model_validate(section), dataset.info)
            model.begin(dataset.training(0))
            optimizer, stream = torch.optim.Adam(model.parameters(), lr=3e-3), dataset.stream(0, 32)
            for step in range(1500):
                optimizer.zero_grad()
                total(model.loss(stream.batch(step), model.hyper(step)))[0].backward()
                optimizer.step()
            model.eval()
        scores = []
        with torch.no_grad():
            codes, truth = {}, {}
            for part in ("train", "val"):
                batch = dataset.split(part).take(600)
                found = model.infer(batch.x_BCHW).values
                codes[part], truth[part] = found["z0" if kind == "semafo" else "z"].numpy(), batch.truth_BK.numpy()
        for probe in (
            linear_model.LogisticRegression(C=100.0, max_iter=3000),
            neural.MLPClassifier((100,), alpha=1e-3, max_iter=1500, random_state=0),
        ):
            scale = codes["train"].std(axis=0) + 1e-9
            each = [
                probe.fit(codes["train"] / scale, truth["train"][:, k]).score(codes["val"] / scale, truth["val"][:, k])
                for k in range(3)
            ]
            scores.append(float(np.mean(each)))
        gaps[kind] = scores[1] - scores[0]
    assert gaps["semafo"] < 0.02 < gaps["vae"], gaps


# ---- resuming


@pytest.mark.long
@pytest.mark.parametrize("name", ["semafo-vae", "semafo-hvae"])
def test_killed_in_the_warm_up_and_resumed(name: str, vae: Callable[..., Result]) -> None:
    """kill -9 while labelled images alone are read; the resumed run goes on like a straight one."""
    from test_every_model import options, same_run

    line = [*options(name, save_every=5), "-S", "model.warm_up=200"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command(*line, "--steps", 10**6, "--name", "killed"), stderr=subprocess.PIPE, env=alone)
    folder = Path("runs/killed/checkpoints")
    deadline = time.monotonic() + 150
    while not (folder / "latest").is_symlink() or os.readlink(folder / "latest") < "step-00000010":
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    reached = int(os.readlink(folder / "latest").removeprefix("step-"))
    assert 10 <= reached < 200
    resumed = vae("train", "--resume", "runs/killed", "--steps", 230, "-q")
    assert resumed.code == 0, resumed.err
    assert vae(*line, "--steps", 230, "--name", "straight").code == 0
    same_run(Path("runs/straight"), Path("runs/killed"))


def test_the_command_trains_with_few_labels_and_says_so(vae: Callable[..., Result]) -> None:
    line = ["train", "--data", "digits", "--model", "semafo-vae", "-S", "data.labelled=40", "--batch-size", 32]
    line += ["-S", "model.net={name: mlp, hidden: [16]}", "--latent-dim", 4, "--runs-dir", "runs", "--name", "r"]
    done = vae(*line, "--steps", 20, "-S", "train.log_every=1", "-S", "model.warm_up=10")
    assert done.code == 0, done.err
    assert "that of the untrained model" not in done.err  # the loss grows when all of it comes in
    assert "labels of digit, relaxed at 0.5" in done.err and "10 latents u + labels 10 + 4 latents z0" in done.err
    records = [json.loads(text) for text in Path("runs/r/metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert [record["unlabelled"] == 0 for record in train] == [True] * 10 + [False] * 10
    (val,) = (record for record in records if record["kind"] == "val")
    assert val["classifier"] is None and val["labelled"] == 0
    assert val["elbo"] == pytest.approx(-(val["recon"] + val["kl"]), rel=1e-6)
    assert vae(*line[:-2], "--name", "s", "-S", "data.labelled=5", "--steps", 5).code == 2


def test_the_loss_reports_the_bound_of_one_hot_labels() -> None:
    """Also where the objective reads relaxed ones: against the rates of ancestral draws."""
    model = small()
    x = model.x[:1].expand(20_000, 1, 2, 2)
    with torch.no_grad():
        torch.manual_seed(0)
        terms = model.loss(Batch(x, torch.arange(20_000), torch.full((20_000, 1), -1)), model.hyper(0))
        found: Inference = model.infer(x, sample=True)
        elbo = model.log_prob(x, found.values, {}).double()
        for rate in model.rates(found).values():
            elbo = elbo - (rate.sum(dim=1) if rate.dim() > 1 else rate)
    mean, error = mean_and_error(elbo)
    assert float(terms["elbo"].value) == pytest.approx(mean, abs=8 * error)
    assert distributions.exact_kl(found.posteriors["u"], model.p("u", {}, 1))
