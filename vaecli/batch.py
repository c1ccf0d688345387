"""What the data side hands to a model: `DataInfo` once, a `Batch` each step, a `Split` where a model fits itself.

Shapes: B batch, C H W image, K factors.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class DataInfo:
    """The facts about a data set that a model may depend on; stored in every checkpoint."""

    name: str
    shape: tuple[int, int, int]  # C, H, W
    size: int  # training images: the N of minibatch estimators of q(z)
    factor_names: tuple[str, ...] = ()
    factor_sizes: tuple[int, ...] = ()
    binary: bool = False  # every pixel is 0 or 1
    source: dict[str, Any] = field(default_factory=dict)  # where the images came from: kind, sha256, ...

    @property
    def pixels(self) -> int:
        """Values in an image, C * H * W: the N of Higgins' beta_norm = beta * latent_dim / N."""
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1], their positions in the data set, and labels: int64 (B, K), -1 where a label is not known."""

    x_BCHW: Tensor
    index_B: Tensor
    labels_BK: Tensor | None = None


class Split(Protocol):
    """A named part of a data set, read in order."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[Batch]: ...
