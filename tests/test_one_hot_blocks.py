"""Labels as one-hot blocks: every term against torch's own distributions in float64, relaxed draws, frequencies."""

import math

import pytest
import torch
import torch.distributions as td
from torch import Tensor

from vaecli.objectives import distributions, labels
from vaecli.objectives.labels import OneHotBlocks

F64 = torch.float64
SIZES = (3, 2, 5)


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-9, atol=1e-9)


def parts(values: Tensor) -> list[Tensor]:
    return list(values.split(list(SIZES), dim=1))


def test_labels_to_blocks() -> None:
    hot = labels.one_hot(torch.tensor([[2, 0, 4], [-1, 1, -1]]), SIZES)
    assert hot.tolist() == [[0, 0, 1, 1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]]
    same(labels.by_block(hot, SIZES), torch.tensor([[1, 1, 1], [0, 1, 0]]))
    known = labels.spread(torch.tensor([[True, False, True]]), SIZES)
    assert known.tolist() == [[True] * 3 + [False] * 2 + [True] * 5]


def test_every_term_against_torch() -> None:
    logits, others = rand(4, 10, scale=2.0), rand(4, 10, seed=1)
    q, p = OneHotBlocks(logits, SIZES), OneHotBlocks(others, SIZES)
    qs, ps = ([td.OneHotCategorical(logits=part) for part in parts(of)] for of in (logits, others))
    same(q.probs, torch.cat([one.probs for one in qs], dim=1))
    same(q.variance, torch.cat([one.variance for one in qs], dim=1))
    same(labels.entropy(q.logits, SIZES), torch.stack([one.entropy() for one in qs], dim=1))
    same(q.entropy(), torch.stack([one.entropy() for one in qs]).sum(dim=0))
    same(td.kl_divergence(q, p), sum(td.kl_divergence(a, b) for a, b in zip(qs, ps, strict=True)))
    value = labels.one_hot(torch.tensor([[0, 1, 3], [2, 0, 0], [1, 1, 4], [0, 0, 1]]), SIZES).double()
    same(q.log_prob(value), sum(one.log_prob(v) for one, v in zip(qs, parts(value), strict=True)))
    same(distributions.log_prob(q, value), q.log_prob(value))
    same(q.mode, torch.cat([one.mode for one in qs], dim=1))
    same(distributions.moments(q)[0], q.probs)
    sure = OneHotBlocks(
        torch.tensor([[800.0, 0.0, 0.0, 0.0, 900.0, 0.0, 0.0, 0.0, 0.0, 950.0]]).requires_grad_(), SIZES
    )
    assert sure.entropy().item() == 0.0
    (slope,) = torch.autograd.grad(sure.entropy().sum(), sure.logits)
    assert bool(slope.isfinite().all())


def test_draws_have_their_frequencies() -> None:
    logits = rand(1, 10, scale=1.5)
    torch.manual_seed(0)
    q = OneHotBlocks(logits.expand(40_000, 10), SIZES)
    for drawn in (q.sample(), distributions.sample(q)):
        assert set(drawn.unique().tolist()) == {0.0, 1.0}
        same(labels.by_block(drawn, SIZES), torch.ones(40_000, 3))
        assert (drawn.mean(dim=0) - q.probs[0]).abs().max() < 5 * 0.5 / 200
    cold = distributions.sample(q, 0.5)
    assert (cold.mean(dim=0) - OneHotBlocks(2 * logits, SIZES).probs[0]).abs().max() < 5 * 0.5 / 200
    same(distributions.sample(q, 0.0), q.mode)


def test_relaxed_draws_lie_on_the_simplex_and_their_largest_part_has_the_labels_frequencies() -> None:
    """The property by which the Gumbel noise is known: whatever the temperature, argmax ~ the categorical."""
    logits = rand(1, 10, scale=1.5)
    torch.manual_seed(0)
    for temperature in (0.2, 2.0):
        y = labels.relaxed(logits.expand(40_000, 10), SIZES, temperature).exp()
        same(labels.by_block(y, SIZES), torch.ones(40_000, 3))
        hard = torch.cat([torch.nn.functional.one_hot(v.argmax(dim=1), v.shape[1]) for v in parts(y)], dim=1)
        assert (hard.double().mean(dim=0) - OneHotBlocks(logits, SIZES).probs[0]).abs().max() < 5 * 0.5 / 200
    soft = float(labels.relaxed(logits.expand(40_000, 10), SIZES, 2.0).exp().var(dim=0).mean())
    assert soft < float(labels.relaxed(logits.expand(40_000, 10), SIZES, 0.2).exp().var(dim=0).mean())


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_the_relaxed_density_is_torchs(temperature: float) -> None:
    logits, y = rand(6, 10), torch.cat([part.softmax(dim=1) for part in parts(rand(6, 10, seed=2))], dim=1)
    found = labels.relaxed_log_prob(y.log(), logits, SIZES, temperature)
    t = torch.tensor(temperature, dtype=F64)
    wanted = [
        td.RelaxedOneHotCategorical(t, logits=a).log_prob(b) for a, b in zip(parts(logits), parts(y), strict=True)
    ]
    same(found, torch.stack(wanted, dim=1))
    flat = labels.relaxed_log_prob(torch.full((1, 3), -math.log(3), dtype=F64), torch.zeros(1, 3, dtype=F64), (3,), 1.0)
    assert float(flat) == pytest.approx(math.log(2))  # uniform on the triangle, whose density is (3 - 1)!


@pytest.mark.parametrize(
    ("values", "temperature", "best"),
    [
        *((10, t, b) for t, b in ((0.5, 0.991), (0.2, 0.638), (0.1, 0.307))),
        *((3, t, b) for t, b in ((0.5, 0.998), (0.2, 0.888), (0.1, 0.666))),
        *((40, t, b) for t, b in ((0.5, 0.963), (0.2, 0.289), (0.1, 0.093))),
    ],
)
def test_where_the_relaxed_density_of_a_label_is_largest(values: int, temperature: float, best: float) -> None:
    """Not at the label: below a temperature of 0.5 a classifier trained by it is told to doubt what it knows. By
    symmetry all wrong values are alike, and one logit is left to be gone through."""
    told = torch.zeros(1, values, dtype=F64)
    told[0, 0] = 1.0
    log_y = told.clamp(1e-6, 1 - 1e-6).log()
    right = torch.linspace(-3, 12, 15_001, dtype=F64)
    logits = torch.zeros(len(right), values, dtype=F64)
    logits[:, 0] = right
    density = labels.relaxed_log_prob(log_y.expand_as(logits), logits, (values,), temperature)[:, 0]
    assert float(logits[density.argmax()].softmax(dim=0)[0]) == pytest.approx(best, abs=0.005)
    cross = OneHotBlocks(logits, (values,)).log_prob(told.expand_as(logits))
    assert int(cross.argmax()) == len(right) - 1  # of the cross-entropy it is at the label
