"""What the data side hands to a model: `DataInfo` once, a `Batch` each step, a `Split` where a model fits itself.

Shapes: B batch, C H W image, K factors.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

MOST_VALUES = 2**21  # of the images that a network takes at once where it does not train


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
    total: int = 0  # images of all splits together; 0 where a checkpoint of an earlier version does not tell
    value_names: tuple[tuple[str, ...], ...] = ()  # of each factor the names of its values, () where they have none
    # The variance of all pixels together over the m (1 - m) of black and white ones of the same mean m: 1 if binary.
    contrast: float = 0.0

    @property
    def pixels(self) -> int:
        """Values in an image, C * H * W: the N of Higgins' beta_norm = beta * latent_dim / N."""
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1], their positions in the data set, and labels: int64 (B, K), -1 where a label is not known.

    `labels_BK` is what an objective may see, `truth_BK` what is known, for reports. `others` are further independent
    batches, where a player asks for several.
    """

    x_BCHW: Tensor
    index_B: Tensor
    labels_BK: Tensor | None = None
    truth_BK: Tensor | None = None
    others: tuple["Batch", ...] = ()

    def to(self, device: Any) -> "Batch":
        """The same on another device."""

        def moved(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device)

        others = tuple(batch.to(device) for batch in self.others)
        return Batch(self.x_BCHW.to(device), self.index_B, moved(self.labels_BK), moved(self.truth_BK), others)

    def part(self, n: int) -> "Batch":
        """The first n images."""

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[:n]

        others = tuple(batch.part(n) for batch in self.others)
        return Batch(self.x_BCHW[:n], self.index_B[:n], cut(self.labels_BK), cut(self.truth_BK), others)


def at_once(shape: tuple[int, int, int], most: int = 512) -> int:
    """How many images a network takes at once where it does not train: `most`, or fewer that are as large as 512 grey
    ones of 64x64, so that memory does not depend on how many images there are."""
    return max(1, min(most, MOST_VALUES // math.prod(shape)))


class Split(Protocol):
    """A named part of a data set, read in order."""

    def __len__(self) -> int: ...

    @property
    def indices(self) -> Tensor:
        """Positions of its images in the data set, int64 (N,)."""
        ...

    @property
    def labels_NK(self) -> Tensor | None:
        """What an objective may see of these images' labels, int64 (N, K); -1 where a label is not known."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]: ...
