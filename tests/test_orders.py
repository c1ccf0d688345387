"""Which images make a batch: each order is a function of (seed, step) and does what its name says."""

import hashlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vaecli import data
from vaecli.data.base import grid_labels
from vaecli.data.orders import Balanced, Mixed, OneFactorVaries, Order, Shuffled
from vaecli.data.squares import Config as Squares
from vaecli.errors import ConfigError

N, B = 90, 16
SIZES = (3, 5, 6)  # a grid of 90
LABELS = grid_labels(SIZES)
KNOWN = torch.arange(N) % 9 == 4  # ten of them
KIND = torch.arange(N) % 7 % 4  # four kinds, in unequal numbers
ORDERS: dict[str, Callable[[int], Order]] = {
    "shuffled": lambda seed: Shuffled(N, seed, B),
    "mixed": lambda seed: Mixed(KNOWN, seed, B, 0.25),
    "one factor varies": lambda seed: OneFactorVaries(LABELS, seed, B, [1.0, 1.0, 1.0]),
    "balanced": lambda seed: Balanced(KIND, seed, B),
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_function_of_seed_step_and_stream_alone(name: str) -> None:
    """Read forwards, backwards, and each step in an order of its own; the global generator has no part in it."""
    make = ORDERS[name]
    order, back = make(5), make(5)
    torch.manual_seed(0)
    forwards = {(stream, step): order.indices(step, stream) for step in range(30) for stream in (0, 1)}
    torch.manual_seed(1)
    backwards = {(stream, step): back.indices(step, stream) for step in reversed(range(30)) for stream in (1, 0)}
    for key, index_B in forwards.items():
        assert index_B.dtype == torch.int64 and index_B.shape == (B,) and index_B.device.type == "cpu"
        assert index_B.min() >= 0 and index_B.max() < N
        assert torch.equal(index_B, backwards[key]), key
        assert torch.equal(index_B, make(5).indices(key[1], key[0])), key
    rows = {tuple(index_B.tolist()) for index_B in forwards.values()}
    assert len(rows) == 60  # steps and streams have nothing in common
    assert not any(torch.equal(make(6).indices(step), forwards[0, step]) for step in range(30))


# ---- shuffled


@pytest.mark.parametrize("stream", [0, 3])
@pytest.mark.parametrize("batch_size", [16, 90, 200])
def test_shuffled_is_a_permutation_every_epoch(batch_size: int, stream: int) -> None:
    order = Shuffled(N, 1, batch_size)
    row = torch.cat([order.indices(step, stream) for step in range(math.ceil(4 * N / batch_size))])
    epochs = row[: 4 * N].view(4, N)
    assert all(torch.equal(epoch.sort().values, torch.arange(N)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_shuffled_is_the_order_that_runs_of_earlier_versions_had() -> None:
    """Numbers noted down from version 0.1.0: a resumed run must go on with the same batches."""
    dataset = data.load(Squares(name="squares"))
    stream = dataset.stream(3, 200)
    noted = {
        0: ([122, 291, 478, 398, 497, 427], [191, 356, 374, 90, 176, 265], 5130957),
        2: ([446, 73, 419, 152, 506, 68], [503, 250, 150, 315, 158, 92], 5064509),
        7: ([249, 63, 243, 60, 388, 397], [368, 84, 382, 486, 278, 372], 5311577),
    }
    for step, (first, last, total) in noted.items():
        index = stream.indices(step)
        assert (index[:6].tolist(), index[-6:].tolist()) == (first, last)
        assert int((index * torch.arange(200)).sum()) == total
    big = dataset.stream(1, 1000).indices(1)  # more than two epochs in one batch
    assert big[[0, 1, 455, 456, 457, 999]].tolist() == [17, 30, 226, 88, 236, 114]
    assert int((big * torch.arange(1000)).sum()) == 128791918


def test_an_epoch_is_drawn_from_the_hash_of_seed_and_epoch() -> None:
    def permutation(*key: object) -> Tensor:
        number = int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "big") >> 1
        return torch.randperm(N, generator=torch.Generator().manual_seed(number))

    order = Shuffled(N, 4, N)
    for epoch in range(3):
        assert torch.equal(order.indices(epoch), permutation("epoch", 4, epoch))
        assert torch.equal(order.indices(epoch, 2), permutation("epoch", 4, "stream", 2, epoch))


# ---- mixed


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.25, 0.3, 1.0])
def test_mixed_has_exactly_its_share_of_labels(share: float) -> None:
    order, count = Mixed(KNOWN, 2, B, share), math.ceil(share * B)
    steps = [order.indices(step) for step in range(90)]
    assert all(int(KNOWN[index_B].sum()) == count for index_B in steps)
    # Each kind in epochs of its own: whole rounds through its images, then no image twice before all have come.
    for kind, rows in ((True, count), (False, B - count)):
        pool = (kind == KNOWN).nonzero()[:, 0]
        row = torch.cat([index_B[KNOWN[index_B] == kind] for index_B in steps])
        assert len(row) == 90 * rows
        for epoch in row.split(len(pool)):
            assert len(epoch.unique()) == len(epoch)
            if len(epoch) == len(pool):
                assert torch.equal(epoch.sort().values, pool)


def test_the_share_is_the_decimal_number_that_was_written() -> None:
    """0.28 of 100 are 28, though 0.28 * 100 is a little more in floating point."""
    order = Mixed(torch.arange(500) < 200, 2, 100, 0.28)
    assert int((order.indices(0) < 200).sum()) == 28


def test_mixed_where_all_or_none_are_labelled() -> None:
    everything = Mixed(torch.ones(N, dtype=torch.bool), 2, N, 0.25)
    assert torch.equal(everything.indices(0).sort().values, torch.arange(N))
    nothing = torch.zeros(N, dtype=torch.bool)
    with pytest.raises(ConfigError, match="no training image has a label"):
        Mixed(nothing, 2, B, 0.25)
    assert len(Mixed(nothing, 2, B, 0.0).indices(0)) == B  # none was asked for


# ---- one factor varies


def test_exactly_one_factor_differs() -> None:
    order = OneFactorVaries(LABELS, 3, B, [1.0, 1.0, 1.0])
    for step in range(60):
        labels_BK = LABELS[order.indices(step)]
        varied = [k for k in range(3) if len(labels_BK[:, k].unique()) > 1]
        assert varied == [order.factor(step)]


def test_companions_are_all_that_agree_in_the_other_factors() -> None:
    """With no more places than values each value comes once, in every group alike."""
    order, wide = (OneFactorVaries(LABELS, 3, size, [0.0, 0.0, 1.0]) for size in (6, 60))
    seen = set()
    for step in range(200):
        labels_BK = LABELS[order.indices(step)]
        assert sorted(labels_BK[:, 2].tolist()) == list(range(6))
        seen.add((int(labels_BK[0, 0]), int(labels_BK[0, 1])))
        assert len(wide.indices(step)) == 60  # with repetition where there are fewer
    assert len(seen) == 15  # groups: 15 of 200 draws, each missed with probability 1e-6


def test_factors_vary_as_often_as_their_weights_say() -> None:
    order, steps = OneFactorVaries(LABELS, 3, B, [3.0, 1.0, 0.0]), 2000
    counts = torch.bincount(torch.tensor([order.factor(step) for step in range(steps)]), minlength=3)
    assert counts[2] == 0 and abs(int(counts[0]) - 1500) < 5 * (steps * 0.75 * 0.25) ** 0.5


def test_what_one_factor_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="labels of every image"):
        OneFactorVaries(torch.where(torch.arange(N).unsqueeze(1) == 7, -1, LABELS), 0, B, [1.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match="a weight a factor"):
        OneFactorVaries(LABELS, 0, B, [1.0, 1.0])
    diagonal = torch.arange(5).unsqueeze(1).expand(5, 2)
    with pytest.raises(ConfigError, match="factor 0 alone"):
        OneFactorVaries(diagonal, 0, B, [1.0, 0.0])
    still = torch.stack([torch.arange(5), torch.zeros(5, dtype=torch.int64)], dim=1)
    assert len(OneFactorVaries(still, 0, B, [1.0, 0.0]).indices(0)) == B  # a factor of weight 0 need not vary


# ---- balanced


@pytest.mark.parametrize(
    "kinds", [KIND, torch.zeros(N, dtype=torch.int64), torch.arange(N) % 30, torch.arange(N) // 80]
)
@pytest.mark.parametrize("batch_size", [7, 16, 64])
def test_a_balanced_batch_within_an_epoch_has_the_histogram_of_the_whole(kinds: Tensor, batch_size: int) -> None:
    order, share = Balanced(kinds, 9, batch_size), torch.bincount(kinds) / N
    row = torch.cat([order.indices(step) for step in range(math.ceil(3 * N / batch_size))])
    for epoch in row[: 3 * N].view(3, N):
        assert torch.equal(epoch.sort().values, torch.arange(N))  # every image once
        for batch in epoch.split(batch_size):
            counts = torch.bincount(kinds[batch], minlength=len(share))
            assert (counts - share * len(batch)).abs().max() <= 1 + 1e-6, counts


def test_balanced_kinds_are_shuffled_anew_every_epoch() -> None:
    order = Balanced(KIND, 9, N)
    first, second = order.indices(0), order.indices(1)
    for kind in range(4):
        mine = [epoch[KIND[epoch] == kind] for epoch in (first, second)]
        assert not torch.equal(*mine) and torch.equal(mine[0].sort().values, mine[1].sort().values)
