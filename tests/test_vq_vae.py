"""vq-vae: the codebook against computations of our own in float64, its gradients, its restarts, and that it learns."""

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch import distributions as dist

from vaecli import data, device, models
from vaecli.batch import Batch, DataInfo
from vaecli.data.orders import generator
from vaecli.data.squares import Config as Squares
from vaecli.models import vq_vae
from vaecli.models.base import total
from vaecli.nets.codebook import Codebook, perplexity, straight_through
from vaecli.objectives import distributions

F64 = torch.float64
INFO = DataInfo("toy", (1, 8, 12), 64, binary=True)
SPATIAL = {"name": "spatial", "width": 8, "blocks": 1}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def codebook(ema: bool = True, size: int = 5, dim: int = 3, **options: float) -> Codebook:
    torch.manual_seed(1)
    book = Codebook(size, dim, ema, **options).double()
    with torch.no_grad():
        book.entries_KC.copy_(rand(size, dim, seed=7))
    return book


def build(info: DataInfo = INFO, **options: Any) -> vq_vae.Model:
    torch.manual_seed(0)
    config = vq_vae.Config.model_validate({"codes": 6, "code_dim": 4, "net": SPATIAL, **options})
    return vq_vae.Model(config, info)


def toy(n: int = 16, info: DataInfo = INFO) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, *info.shape, generator=g) > 0.5).float(), torch.arange(n))


# ---- the codebook


def test_the_nearest_entry_is_at_the_smallest_distance() -> None:
    book, z = codebook(size=40), rand(6, 2, 9, 3, seed=3)
    distance = (z.unsqueeze(-2) - book.entries_KC).norm(dim=-1)
    found = book.nearest(z)
    assert found.dtype == torch.int64 and torch.equal(found, distance.argmin(dim=-1))
    assert torch.equal(book.look_up(found), book.entries_KC[found])
    assert len(found.unique()) > 10


def test_moving_averages_against_a_loop() -> None:
    """Appendix A.1, eq. 6 to 8, with Laplace smoothing of the counts, vector by vector."""
    decay, epsilon = 0.9, 0.01
    book = codebook(decay=decay, epsilon=epsilon)
    book.count_K.copy_(torch.tensor([2.0, 0.5, 1.0, 3.0, 1e-3]))
    book.sum_KC.copy_(rand(5, 3, seed=8))
    counts, sums = book.count_K.numpy().copy(), book.sum_KC.numpy().copy()
    chosen: Counter[int] = Counter()
    for batch in range(3):
        z = rand(4, 2, 3, seed=20 + batch)
        index = book.nearest(z)
        book.learn(z, index)
        for k in range(5):
            mine = [v for v, i in zip(z.reshape(-1, 3).numpy(), index.flatten().tolist(), strict=True) if i == k]
            counts[k] = decay * counts[k] + (1 - decay) * len(mine)
            sums[k] = decay * sums[k] + (1 - decay) * sum(mine, np.zeros(3))
            chosen[k] += len(mine)
        n = counts.sum()
        entries = np.stack([sums[k] / ((counts[k] + epsilon) / (n + 5 * epsilon) * n) for k in range(5)])
        np.testing.assert_allclose(book.entries_KC.numpy(), entries, rtol=1e-9)
    np.testing.assert_allclose(book.count_K.numpy(), counts, rtol=1e-9)
    assert book.chosen_K.tolist() == [chosen[k] for k in range(5)]
    assert min(chosen.values()) == 0 < max(chosen.values())  # of an unchosen one only the average decays


def test_entries_settle_at_the_mean_of_what_chooses_them() -> None:
    book, z = codebook(), rand(30, 3, seed=4)
    index = book.nearest(z)
    for _ in range(2000):
        book.learn(z, index)
    for k in index.unique().tolist():
        torch.testing.assert_close(book.entries_KC[k], z[index == k].mean(dim=0), rtol=1e-4, atol=1e-4)


def test_perplexity_is_two_to_the_entropy_in_bits() -> None:
    book = codebook(size=4)
    index = torch.tensor([[0, 1, 1], [3, 3, 3]])
    assert book.counts(index).tolist() == [1.0, 2.0, 0.0, 3.0]
    shares = np.array([1 / 6, 2 / 6, 3 / 6])
    assert perplexity(book.counts(index)).item() == pytest.approx(2 ** -(shares * np.log2(shares)).sum(), rel=1e-12)
    assert perplexity(torch.full((7,), 3.0, dtype=F64)).item() == pytest.approx(7.0, rel=1e-12)
    assert perplexity(torch.tensor([0.0, 9.0], dtype=F64)).item() == 1.0


@pytest.mark.parametrize("ema", [True, False])
def test_dead_entries_come_back_at_vectors_of_the_encoder(ema: bool) -> None:
    book, z_NC = codebook(ema, size=6), rand(9, 3, seed=5)
    book.learn(z_NC[:4], torch.tensor([0, 2, 2, 4]))
    before = book.entries_KC.detach().clone()
    assert book.restart(z_NC, generator("x", 1)) == 3
    assert torch.equal(book.entries_KC[[0, 2, 4]], before[[0, 2, 4]])
    rows = [(z_NC == book.entries_KC[k]).all(dim=1).nonzero()[:, 0].tolist() for k in (1, 3, 5)]
    assert all(len(row) == 1 for row in rows) and len({row[0] for row in rows}) == 3  # three different ones
    if ema:  # the averages agree with where they stand
        torch.testing.assert_close(book.sum_KC[1] / book.count_K[1], book.entries_KC[1])
    # Of the next window all are dead; where there are fewer vectors than entries each serves about as often.
    assert book.restart(z_NC[:2], generator("x", 2)) == 6
    assert sorted(Counter((book.entries_KC == z_NC[0]).all(dim=1).tolist()).values()) == [3, 3]
    book.learn(z_NC[:6], torch.arange(6))
    kept = book.entries_KC.detach().clone()
    assert book.restart(z_NC, generator("x", 3)) == 0 and torch.equal(book.entries_KC, kept)


# ---- the objective


@pytest.mark.parametrize("how", ["ema", "loss"])
def test_terms_recomputed(how: str) -> None:
    model, x = build(codebook=how, commitment=0.5).double().eval(), toy().x_BCHW.double()
    terms = model.loss(Batch(x, torch.arange(16)), model.hyper(0))
    z = model.encoder(x)
    assert z.shape == (16, 2, 3, 4)
    entries = model.codebook.entries_KC
    index = torch.cdist(z.reshape(-1, 4), entries, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    code = entries[index].view_as(z)
    recon = -dist.Bernoulli(logits=model.decoder(code)).log_prob(x).sum(dim=(1, 2, 3)).mean()
    squares = (z - code).square().sum(dim=(1, 2, 3)).mean()
    shares = torch.bincount(index, minlength=6) / index.numel()
    expected = {
        "recon": recon,
        "commitment": squares,
        "kl": torch.tensor(6 * math.log(6)),
        "elbo": -(recon + 6 * math.log(6)),
        "usage": (shares > 0).sum(),
        "perplexity": dist.Categorical(probs=shares.double()).entropy().exp(),
        **({"codebook": squares} if how == "loss" else {}),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        exact = 1e-6 if name in ("kl", "elbo") else 1e-9  # log K is kept in single precision
        torch.testing.assert_close(terms[name].value.double(), value.double(), rtol=exact, atol=exact)
    loss = total(terms)[0]
    assert loss.item() == pytest.approx((recon + (1.5 if how == "loss" else 0.5) * squares).item(), rel=1e-9)
    assert {name for name, term in terms.items() if term.unit == "codes"} == {"usage", "perplexity"}


@pytest.mark.parametrize("how", ["ema", "loss"])
def test_gradients_go_straight_through(how: str) -> None:
    """Encoder: d recon / d code carried over to z, and the commitment; decoder: d recon; entries: their own term or
    nothing. Each from autograd over the part alone."""
    model, x = build(codebook=how).double().train(), toy().x_BCHW.double()
    entries = model.codebook.entries_KC.detach().clone()
    total(model.loss(Batch(x, torch.arange(16)), model.hyper(0)))[0].backward()
    z = model.encoder(x)
    code = entries[torch.cdist(z.detach().reshape(-1, 4), entries).argmin(dim=1)].view_as(z).requires_grad_()
    recon = -dist.Bernoulli(logits=model.decoder(code)).log_prob(x).sum(dim=(1, 2, 3)).mean()
    decoder, encoder = list(model.decoder.parameters()), list(model.encoder.parameters())
    at_code, *of_decoder = torch.autograd.grad(recon, [code, *decoder])
    upstream = at_code + 0.25 * 2 * (z - code).detach() / 16
    of_encoder = torch.autograd.grad(z, encoder, upstream)
    for parameter, wanted in zip([*decoder, *encoder], [*of_decoder, *of_encoder], strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-9)
    if how == "ema":
        assert not model.codebook.entries_KC.requires_grad
    else:
        wanted = torch.zeros_like(entries)
        index = torch.cdist(z.detach().reshape(-1, 4), entries).argmin(dim=1)
        wanted.index_add_(0, index, (2 * (code - z) / 16).detach().reshape(-1, 4))
        torch.testing.assert_close(model.codebook.entries_KC.grad, wanted, rtol=1e-9, atol=1e-9)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other() -> None:
    z, code = rand(3, 2).requires_grad_(), rand(3, 2, seed=1).requires_grad_()
    out = straight_through(z, code)
    torch.testing.assert_close(out, code, rtol=1e-12, atol=1e-12)
    (out * rand(3, 2, seed=2)).sum().backward()
    torch.testing.assert_close(z.grad, rand(3, 2, seed=2))
    assert code.grad is None


def test_the_codebook_moves_in_training_alone() -> None:
    model, batch = build(), toy()
    before = {name: b.clone() for name, b in model.named_buffers()}
    model.eval()
    model.loss(batch, model.hyper(0))
    model.train()
    model.posterior(batch.x_BCHW)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    model.loss(batch, model.hyper(0))
    assert not any(torch.equal(b, before[name]) for name, b in model.named_buffers())


# ---- the distributions


def test_a_level_of_codes() -> None:
    model, x = build().eval(), toy().x_BCHW
    [level] = model.levels
    assert (level.kind, level.shape, level.sizes, level.size) == ("codes", (2, 3), (6,), 6)
    found = model.infer(x)
    index = found.values["z"]
    assert index.dtype == torch.int64 and torch.equal(index, model.infer(x, sample=True).values["z"])
    rate = model.rates(found)["z"]
    torch.testing.assert_close(rate, torch.full((16, 2, 3), math.log(6)))
    table = model.posterior(x)
    assert torch.equal(table.mean_BD, index.flatten(1).float()) and table.logvar_BD is None and table.kl_BD is None
    entries = model.codebook.entries_KC
    torch.testing.assert_close(model.decode(table.mean_BD), torch.sigmoid(model.decoder(entries[index])))
    assert torch.equal(model.unflatten(table.mean_BD + 0.3)["z"], index)
    assert model.unflatten(torch.full((1, 6), 9.0))["z"].tolist() == [[[5] * 3] * 2]  # beyond the book: its last


def test_draws_are_uniform() -> None:
    torch.manual_seed(0)
    drawn = build().draw(5000)["z"]
    counts = torch.bincount(drawn.flatten(), minlength=6)
    assert drawn.shape == (5000, 2, 3) and len(counts) == 6
    assert ((counts - 5000).abs() < 5 * 5000**0.5).all()  # five standard deviations
    assert distributions.rate(distributions.Indices(drawn, 6), build().p("z", {}, 5000), drawn).shape == drawn.shape


@pytest.mark.parametrize("net", ["resnet", "conv", {"name": "mlp", "hidden": [8]}])
def test_flat_codes(net: Any) -> None:
    info = DataInfo("toy", (1, 16, 20), 8)
    model = build(info, net=net, positions=5).eval()
    assert model.levels[0].shape == (5,)
    x = toy(16, info).x_BCHW
    assert model.posterior(x).mean_BD.shape == (16, 5) and model.decode(torch.zeros(2, 5)).shape == (2, *info.shape)
    assert model.rates(model.infer(x))["z"].sum(dim=1).tolist() == pytest.approx([5 * math.log(6)] * 16)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 28, 28), (1, 5, 7), (1, 1, 1), (1, 30, 64)])
def test_any_size_of_image(shape: tuple[int, int, int]) -> None:
    info = DataInfo("toy", shape, 8)
    model = build(info)
    assert model.levels[0].shape == (math.ceil(shape[1] / 4), math.ceil(shape[2] / 4))
    total(model.loss(toy(4, info), model.hyper(0)))[0].backward()
    assert model.decode(model.posterior(toy(4, info).x_BCHW).mean_BD).shape == (4, *shape)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"positions": 4}, "leave `positions` out"),
        ({"net": "mlp"}, "give `positions`"),
        ({"net": "spatil"}, "spatial"),
        ({"codes": 1}, "greater than 1"),
        ({"codebook": "mean"}, "ema"),
        ({"commitment": -1.0}, "negative"),
    ],
)
def test_refusals(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        vq_vae.Config.model_validate({"net": SPATIAL, **wrong})


def test_a_dumped_section_reads_back() -> None:
    for options in ({}, {"net": "mlp", "positions": 4}, {"net": {"name": "spatial", "width": 4}}):
        config = vq_vae.Config.model_validate(options)
        assert vq_vae.Config.model_validate(config.model_dump(mode="json")) == config


# ---- training


def steps(model: vq_vae.Model, dataset: Any, first: int, last: int, optimizer: torch.optim.Optimizer) -> float:
    stream, value = dataset.stream(0, 32), math.nan
    for step in range(first, last):
        if model.due(step):
            model.prepare(step, "main", dataset.training(0))
        device.seed(0, "step", step)
        model.train()
        optimizer.zero_grad()
        loss, logged = total(model.loss(stream.batch(step), model.hyper(step)))
        loss.backward()
        optimizer.step()
        value = float(torch.as_tensor(logged["recon"]).detach())
    return value


@pytest.mark.parametrize("how", ["ema", "loss"])
@pytest.mark.parametrize("net", [{"net": SPATIAL}, {"net": {"name": "mlp", "hidden": [64]}, "positions": 4}])
def test_it_learns(how: str, net: dict[str, Any]) -> None:
    """In 300 steps well below the best constant image, with more than one code in use."""
    dataset = data.load(Squares(name="squares"))
    config = {"codes": 16, "code_dim": 8, "codebook": how, **net}
    torch.manual_seed(0)
    model = models.build(vq_vae.Config.model_validate(config), dataset.info)
    assert isinstance(model, vq_vae.Model)
    model.begin(dataset.training(0))
    steps(model, dataset, 0, 300, torch.optim.Adam(model.parameters(), lr=3e-3))
    model.eval()
    x = dataset.split("val").take(50).x_BCHW
    train = torch.cat([b.x_BCHW for b in dataset.split("train").batches(64)])
    constant = train.mean(dim=0).clamp(1e-3, 1 - 1e-3)
    best = -dist.Bernoulli(probs=constant).log_prob(x).sum(dim=(1, 2, 3)).mean().item()
    terms = model.loss(Batch(x, torch.arange(50)), model.hyper(0))
    assert terms["recon"].value.item() < 0.6 * best
    assert terms["perplexity"].value.item() > 2.0


@pytest.mark.parametrize("how", ["ema", "loss"])
def test_restarts_are_a_function_of_weights_and_step(how: str) -> None:
    dataset = data.load(Squares(name="squares"))
    one, other = build(dataset.info, codebook=how), build(dataset.info, codebook=how)
    assert [step for step in range(250) if one.due(step)] == [0, 100, 200]
    assert not build(dataset.info, restart_every=0).due(0)
    one.prepare(0, "main", dataset.training(0))
    first = one.codebook.entries_KC.detach().clone()
    torch.manual_seed(99)
    other.eval()  # as after an evaluation, whatever the global generator has come to
    other.prepare(0, "main", dataset.training(0))
    assert torch.equal(other.codebook.entries_KC, first)
    assert len(first.unique(dim=0)) > 1
    one.prepare(100, "main", dataset.training(0))  # nothing was chosen: all anew, from other images' vectors
    assert not torch.equal(one.codebook.entries_KC, first)


def test_resumed_steps_equal_uninterrupted_ones() -> None:
    """Saved before the work that is due at step 100, and gone on from in a fresh model."""
    dataset = data.load(Squares(name="squares"))
    one, other = build(dataset.info), build(dataset.info)
    optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
    steps(one, dataset, 0, 100, optimizer)
    other.load_state_dict({name: t.clone() for name, t in one.state_dict().items()})
    resumed = torch.optim.Adam(other.parameters(), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(one, dataset, 100, 130, optimizer)
    steps(other, dataset, 100, 130, resumed)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
