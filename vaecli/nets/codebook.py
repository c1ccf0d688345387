"""A codebook: K vectors, the nearest of which stands in for what an encoder says (vector quantisation).

van den Oord et al. 2017, "Neural Discrete Representation Learning", section 3 and appendix A.1. Shapes: any leading
axes before the C numbers of a vector are positions; N all positions of a batch in one row, K entries.
"""

import math

import torch
from torch import Tensor, nn


class Codebook(nn.Module):
    """Entries (K, C) that learn by a loss of their own, or as moving averages of what they stand in for.

    With `ema` they are buffers, moved by `learn` alone: counts and sums of the vectors that chose an entry decay by
    `decay` a batch (appendix A.1, eq. 6 to 8), and a share `epsilon` is added to every count, so that an entry that
    nothing chooses any more is not divided by zero.
    """

    entries_KC: Tensor
    count_K: Tensor
    sum_KC: Tensor
    chosen_K: Tensor  # how often each entry was chosen in training since the last `restart`

    def __init__(self, size: int, dim: int, ema: bool, decay: float = 0.99, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.ema, self.decay, self.epsilon = ema, decay, epsilon
        entries_KC = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        if ema:
            self.register_buffer("entries_KC", entries_KC)
            self.register_buffer("count_K", torch.ones(size))
            self.register_buffer("sum_KC", entries_KC.clone())
        else:
            self.entries_KC = nn.Parameter(entries_KC)
        self.register_buffer("chosen_K", torch.zeros(size, dtype=torch.int64))

    def nearest(self, z: Tensor) -> Tensor:
        """The entry at the smallest distance from each vector: (..., C) -> int64 (...)."""
        with torch.no_grad():  # |z|^2 is the same for every entry
            squares_K = self.entries_KC.square().sum(dim=1)
            distance_NK = torch.addmm(squares_K, z.reshape(-1, z.shape[-1]), self.entries_KC.T, alpha=-2.0)
            return distance_NK.argmin(dim=1).view(z.shape[:-1])

    def look_up(self, index: Tensor) -> Tensor:
        """(...) -> (..., C)."""
        return self.entries_KC.index_select(0, index.flatten()).view(*index.shape, -1)

    def counts(self, index: Tensor) -> Tensor:
        """How often each entry is chosen, (K,), in floating point."""
        return self._choices(index).sum(dim=0)

    def _choices(self, index: Tensor) -> Tensor:
        """One-hot rows (N, K): sums by multiplication are the same each time, which scattered ones on a GPU are not."""
        every_K = torch.arange(len(self.entries_KC), device=index.device)
        return (index.reshape(-1, 1) == every_K).to(self.entries_KC.dtype)

    def learn(self, z: Tensor, index: Tensor) -> None:
        """Take in which vectors chose which entries; with `ema` the entries move."""
        with torch.no_grad():
            choices_NK = self._choices(index)
            counts_K = choices_NK.sum(dim=0)
            self.chosen_K.add_(counts_K.long())
            if not self.ema:
                return
            self.count_K.lerp_(counts_K, 1 - self.decay)
            self.sum_KC.lerp_(choices_NK.T @ z.reshape(-1, z.shape[-1]), 1 - self.decay)
            total = self.count_K.sum()
            smooth_K = (self.count_K + self.epsilon) / (total + len(self.count_K) * self.epsilon) * total
            self.entries_KC.copy_(self.sum_KC / smooth_K.unsqueeze(1))

    def restart(self, z_NC: Tensor, generator: torch.Generator) -> int:
        """Put entries that were not chosen since the last time at vectors of `z_NC`, drawn without repetition where
        there are enough; how many there were. In a codebook that has not learned yet that is all of them."""
        with torch.no_grad():
            dead = (self.chosen_K == 0).nonzero()[:, 0]
            self.chosen_K.zero_()
            if len(dead):
                rounds = math.ceil(len(dead) / len(z_NC))
                order = torch.cat([torch.randperm(len(z_NC), generator=generator) for _ in range(rounds)])
                new_DC = z_NC[order[: len(dead)].to(z_NC.device)].to(self.entries_KC.dtype)
                self.entries_KC[dead] = new_DC
                if self.ema:  # as if each had been chosen once, by the vector that it is now
                    self.count_K[dead] = 1.0
                    self.sum_KC[dead] = new_DC
            return len(dead)


def straight_through(z: Tensor, code: Tensor) -> Tensor:
    """The value of `code` with the gradient of `z` (section 3.2: copied from the decoder's input to the encoder)."""
    return z + (code - z).detach()


def perplexity(counts_K: Tensor) -> Tensor:
    """exp of the entropy of the shares in which entries are chosen: K if all alike, 1 if always the same one."""
    entropy: Tensor = torch.special.entr(counts_K / counts_K.sum()).sum()
    return entropy.exp()
