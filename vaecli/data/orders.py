"""Which training images make a batch: orders, each a pure function of (seed, step).

An order speaks of positions within the training split, 0 to N - 1; the stream turns them into images. `stream` numbers
independent rows of batches of one run: 0 is the step's own batch.

Shapes: N images of the training split, B batch, K factors.
"""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from vaecli.errors import ConfigError


class Order(Protocol):
    """Positions of a batch in the training split."""

    def indices(self, step: int, stream: int = 0) -> Tensor:
        """int64 (B,), on the CPU."""
        ...


def generator(*key: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of `key`: streams of neighbouring seeds have nothing in common."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class _Epochs:
    """n things as an endless row of permutations drawn from (key, epoch); the last one is remembered."""

    def __init__(self, n: int, *key: object) -> None:
        self.n, self.key = n, key
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # Drawn on the CPU whatever the device, so that the order is the same on all of them.
            self._order = torch.randperm(self.n, generator=generator("epoch", *self.key, epoch))
            self._epoch = epoch
        return self._order

    def take(self, start: int, count: int) -> Tensor:
        """The things at positions [start, start + count) of the row."""
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self.n)
            part = self.permutation(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


class Shuffled:
    """An endless row of epochs: batch `s` covers the positions [s B, (s + 1) B) and crosses from one epoch into the
    next where it must, also when B > N."""

    def __init__(self, n: int, seed: int, batch_size: int) -> None:
        self.n, self.seed, self.batch_size = n, seed, batch_size
        self._rows: dict[int, _Epochs] = {}

    def indices(self, step: int, stream: int = 0) -> Tensor:
        key = (self.seed,) if stream == 0 else (self.seed, "stream", stream)
        row = self._rows.setdefault(stream, _Epochs(self.n, *key))
        return row.take(step * self.batch_size, self.batch_size)


class Buffered:
    """Images in the order in which they lie in shards, shuffled by a buffer: at each place a random one of `buffer`
    images is taken, whose room the next one in the shards gets. The shards are in random order in each epoch.

    `shard_N`: the shard of each image, `place_N` its place among all. What a stream of shards gives in a row of epochs,
    as a function of (seed, step): each epoch is drawn by itself, and the last one is remembered.
    """

    def __init__(self, shard_N: Tensor, place_N: Tensor, seed: int, batch_size: int, buffer: int) -> None:
        self.seed, self.batch_size, self.buffer = seed, batch_size, buffer
        order = torch.argsort(place_N, stable=True)
        _, counts = torch.unique_consecutive(shard_N[order], return_counts=True)
        self._shards = torch.split(order, counts.tolist())
        self.n = len(place_N)
        self._epoch, self._stream, self._order = -1, -1, torch.empty(0, dtype=torch.int64)

    def epoch(self, epoch: int, stream: int = 0) -> Tensor:
        """All images once, int64 (N,)."""
        if (epoch, stream) == (self._epoch, self._stream):
            return self._order
        g = generator("shards", self.seed, stream, epoch)
        rest = torch.cat([self._shards[s] for s in torch.randperm(len(self._shards), generator=g).tolist()]).tolist()
        size = min(self.buffer, self.n)
        room, rest, taken = rest[:size], rest[size:], []
        for slot, following in zip(torch.randint(size, (len(rest),), generator=g).tolist(), rest, strict=True):
            taken.append(room[slot])
            room[slot] = following
        taken += [room[i] for i in torch.randperm(size, generator=g).tolist()]
        self._epoch, self._stream, self._order = epoch, stream, torch.tensor(taken, dtype=torch.int64)
        return self._order

    def indices(self, step: int, stream: int = 0) -> Tensor:
        start, count, parts = step * self.batch_size, self.batch_size, []
        while count > 0:
            epoch, offset = divmod(start, self.n)
            part = self.epoch(epoch, stream)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)


class Mixed:
    """Exactly ceil(share B) images with labels in every batch, which come first, the rest from all others; each kind in
    epochs of its own. Where all have labels, or none is asked for, a batch is of one kind.

    ConfigError where there are no labelled images to take from.
    """

    def __init__(self, labelled_N: Tensor, seed: int, batch_size: int, share: float) -> None:
        self.labelled = labelled_N.nonzero()[:, 0]
        self.others = (~labelled_N).nonzero()[:, 0]
        # Of the decimal number that was written: 0.28 * 100 is a little more than 28 in binary.
        count = min(batch_size, math.ceil(Fraction(str(share)) * batch_size))
        self.count = count if len(self.others) else batch_size
        if len(self.labelled) == 0 and self.count > 0:
            raise ConfigError("no training image has a label, but every batch is to hold some", "raise data.labelled")
        self.seed, self.batch_size = seed, batch_size
        self._rows: dict[tuple[str, int], _Epochs] = {}

    def indices(self, step: int, stream: int = 0) -> Tensor:
        rest = self.batch_size - self.count
        known = self._row("labelled", stream, len(self.labelled)).take(step * self.count, self.count)
        if rest == 0:
            return self.labelled[known]
        other = self._row("others", stream, len(self.others)).take(step * rest, rest)
        return torch.cat([self.labelled[known], self.others[other]])

    def _row(self, kind: str, stream: int, n: int) -> _Epochs:
        return self._rows.setdefault((kind, stream), _Epochs(n, self.seed, kind, stream))


class InTurn:
    """The two kinds of a `Mixed` order's batch as batches of their own: even streams have the images with labels, odd
    ones the others, so that an update of each kind follows the other."""

    def __init__(self, mixed: Mixed) -> None:
        if mixed.count == mixed.batch_size:
            raise ConfigError("every training image has a label: there are no others to take turns with")
        self.mixed = mixed

    def indices(self, step: int, stream: int = 0) -> Tensor:
        both = self.mixed.indices(step, stream // 2)
        return both[self.mixed.count :] if stream % 2 else both[: self.mixed.count]


class WarmUp:
    """Another order for the first `steps` of a run."""

    def __init__(self, first: Order, steps: int, then: Order) -> None:
        self.first, self.steps, self.then = first, steps, then

    def indices(self, step: int, stream: int = 0) -> Tensor:
        return (self.first if step < self.steps else self.then).indices(step, stream)


class OneFactorVaries:
    """Batches in which one factor varies and all others are the same (DC-IGN, Kulkarni et al. 2015, section 3.1).

    The factor of a step is drawn from `weights` over the factors; `factor(step)` tells it. The common values are those
    of a random image that has companions: all images that agree with it in every other factor, with repetition where
    they are fewer than B. ConfigError where no factor can vary alone.
    """

    def __init__(self, labels_NK: Tensor, seed: int, batch_size: int, weights: Sequence[float]) -> None:
        self.labels, self.seed, self.batch_size = labels_NK.cpu(), seed, batch_size
        if len(weights) != labels_NK.shape[1] or bool((self.labels < 0).any()):
            raise ConfigError("batches of one varying factor need the labels of every image, and a weight a factor")
        self.weights = torch.tensor(list(weights), dtype=torch.float64)
        sizes = (self.labels.max(dim=0).values + 1).tolist()
        self._groups: list[tuple[Tensor, Tensor]] = []  # of each factor: images sorted by the others, where each starts
        self._of: list[Tensor] = []
        self._pool: list[Tensor] = []  # of each factor: the images that have a companion, from which a batch starts
        for k in range(len(weights)):
            key_N = torch.zeros(len(self.labels), dtype=torch.int64)
            for other, size in enumerate(sizes):
                if other != k:
                    key_N = key_N * size + self.labels[:, other]
            _, group_N, count_G = torch.unique(key_N, return_inverse=True, return_counts=True)
            start_G = torch.cat([torch.zeros(1, dtype=torch.int64), count_G.cumsum(0)])
            self._groups.append((torch.argsort(group_N, stable=True), start_G))
            self._of.append(group_N)
            self._pool.append((count_G[group_N] > 1).nonzero()[:, 0])
            if self.weights[k] > 0 and int(count_G.max()) < 2:
                raise ConfigError(f"no two images differ in factor {k} alone", "train on the whole grid of factors")

    def factor(self, step: int, stream: int = 0) -> int:
        draw = torch.multinomial(self.weights, 1, generator=generator("factor", self.seed, stream, step))
        return int(draw)

    def indices(self, step: int, stream: int = 0) -> Tensor:
        k = self.factor(step, stream)
        g = generator("one factor", self.seed, stream, step)
        order_N, start_G = self._groups[k]
        first = self._pool[k][int(torch.randint(len(self._pool[k]), (), generator=g))]
        group = int(self._of[k][int(first)])
        members = order_N[int(start_G[group]) : int(start_G[group + 1])]
        if len(members) >= self.batch_size:
            return members[torch.randperm(len(members), generator=g)[: self.batch_size]]
        return members[torch.randint(len(members), (self.batch_size,), generator=g)]


class Balanced:
    """Batches whose histogram of `assignment_N` matches the whole set's (epitomic VAE, Yeung et al. 2017): the images
    of each kind, in a permutation of their own, are spread evenly over the epoch, which is then cut into batches."""

    def __init__(self, assignment_N: Tensor, seed: int, batch_size: int) -> None:
        if assignment_N.is_meta:  # of a model that is only described, and has assigned nothing
            assignment_N = torch.full(assignment_N.shape, -1, device="cpu")
        self.assignment, self.seed, self.batch_size = assignment_N.cpu(), seed, batch_size
        self._epoch, self._key, self._order = -1, -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int, stream: int = 0) -> Tensor:
        n, start, count, parts = len(self.assignment), step * self.batch_size, self.batch_size, []
        while count > 0:
            epoch, offset = divmod(start, n)
            part = self._permutation(epoch, stream)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _permutation(self, epoch: int, stream: int) -> Tensor:
        if (epoch, stream) == (self._epoch, self._key):
            return self._order
        g = generator("balanced", self.seed, stream, epoch)
        shuffled = torch.randperm(len(self.assignment), generator=g)
        kind_N = self.assignment[shuffled]
        by_kind = torch.argsort(kind_N, stable=True)
        counts = torch.unique_consecutive(kind_N[by_kind], return_counts=True)[1]
        # The i-th of c images of a kind stands at (i + u) / c of the epoch, u random: any stretch holds its share.
        place = torch.cat([(torch.arange(c) + torch.rand((), generator=g)) / c for c in counts.tolist()])
        self._epoch, self._key, self._order = epoch, stream, shuffled[by_kind[torch.argsort(place, stable=True)]]
        return self._order
