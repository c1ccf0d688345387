"""What two readings of a label say of each other through it: I(a; b) >= I(a; y) + I(y; b) - H(y).

For any a, b and discrete y, since H(y) >= I(y; a, b) = I(y; a) + I(y; b|a) and I(y; b|a) = I(y; b) - I(a; b) +
I(a; b|y). So a model that raises the information between image and label, and between label and label latent, raises a
bound of that between image and label latent, which it never computes (SemafoVAE, Trung Ngo Trong et al. 2022: the
"transitive information"). Of counts it holds exactly: with another result the counting is wrong.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitivity:
    """In nats, of the empirical distribution of triples (a, b, y)."""

    a_b: float  # I(a; b)
    a_y: float  # I(a; y)
    y_b: float  # I(y; b)
    y: float  # H(y)

    @property
    def bound(self) -> float:
        """I(a; y) + I(y; b) - H(y): H(y) at most, where both readings are always right."""
        return self.a_y + self.y_b - self.y

    @property
    def slack(self) -> float:
        """I(a; b) less its bound: never negative, but for rounding."""
        return self.a_b - self.bound


def transitivity(a_N: Tensor, b_N: Tensor, y_N: Tensor) -> Transitivity:
    """Of N triples of values, int64 from 0 up each: a read from the image, b from the label latent, y the truth."""
    return Transitivity(_information(a_N, b_N), _information(a_N, y_N), _information(y_N, b_N), _entropy(y_N))


def _information(a_N: Tensor, b_N: Tensor) -> float:
    """I(a; b) = H(a) + H(b) - H(a, b)."""
    return _entropy(a_N) + _entropy(b_N) - _entropy(a_N * (int(b_N.max()) + 1) + b_N)


def _entropy(value_N: Tensor) -> float:
    share_V = torch.bincount(value_N).double() / len(value_N)
    return -float(torch.special.xlogy(share_V, share_V).sum())
