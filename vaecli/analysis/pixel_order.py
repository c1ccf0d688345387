"""Whether pixels know the order of a factor's values: is the next value nearer to an image than any other value is?

Where every value is as far from every other as from its neighbour, a loss that compares pixels has nothing to line the
values up by, whatever beta: the claim of Michlo et al. (arXiv 2202.13341), whose XYSquares are made that way. The pairs
that are compared differ in one factor alone: of random pairs, which differ in all, even neighbours are the nearer.

Shapes: L lines (images that differ in one factor alone, all its values), S values, C H W image.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vaecli.data.base import Dataset, grid_index
from vaecli.data.orders import generator

LINES = 64  # of each factor; all of them where there are no more
NO_ORDER = 0.1  # an order below this is none


@dataclass(frozen=True)
class PixelOrder:
    """Squared distances of images that differ in this factor alone, summed over pixels: `step` between neighbouring
    values, `other` between any two. `named`: its values are categories, of which no order is expected."""

    factor: str
    values: int
    step: float
    other: float
    named: bool = False

    @property
    def ratio(self) -> float | None:
        """step / other: 1 where a neighbour is as far as any other value; None where no value changes the image."""
        return self.step / self.other if self.other > 0 else None

    @property
    def order(self) -> float | None:
        """0 for a ratio of 1, and 1 for 3 / (S + 1), where squared distances are in proportion to the steps between, as
        while a moved shape overlaps itself; more where they grow faster. None where there are but two values, or all
        images are the same."""
        if self.ratio is None or self.values < 3:
            return None
        return (1 - self.ratio) / (1 - 3 / (self.values + 1))


def measure(dataset: Dataset, seed: int = 0, lines: int = LINES) -> list[PixelOrder] | None:
    """The order of each factor that varies, from `lines` random lines of it; None where the images are no full grid of
    several factors, or a place of the grid holds two of them."""
    if dataset.varying_factors is None or dataset.labels is None:
        return None
    sizes = dataset.info.factor_sizes
    place_N = grid_index(dataset.labels.cpu(), sizes)
    image_N = torch.argsort(place_N)
    if not torch.equal(place_N[image_N], torch.arange(len(place_N))):
        return None
    found = []
    for k, (name, size) in enumerate(zip(dataset.info.factor_names, sizes, strict=True)):
        if size < 2:
            continue
        others = (*sizes[:k], 1, *sizes[k + 1 :])
        line_L = torch.randperm(math.prod(others), generator=generator("pixel order", seed, name))[:lines]
        start_LK = torch.stack(torch.unravel_index(line_L, others), dim=1)
        step = other = 0.0
        for start_K in start_LK:
            labels_SK = start_K.repeat(size, 1)
            labels_SK[:, k] = torch.arange(size)
            x_SP = dataset.images.gather(image_N[grid_index(labels_SK, sizes)]).cpu().flatten(1).double()
            distance_SS = torch.cdist(x_SP, x_SP, compute_mode="donot_use_mm_for_euclid_dist").square()
            step += float(distance_SS.diagonal(1).mean()) / len(line_L)
            other += float(distance_SS.sum()) / (size * (size - 1)) / len(line_L)
        named = len(dataset.info.value_names) > k and bool(dataset.info.value_names[k])
        found.append(PixelOrder(name, size, step, other, named))
    return found


def record(found: Sequence[PixelOrder]) -> dict[str, Any]:
    """For JSON, with the sentence."""
    factors = [{**asdict(f), "ratio": f.ratio, "order": f.order} for f in found]
    return {"factors": factors, "without": without(found), "sentence": sentence(found)}


def without(found: Sequence[PixelOrder]) -> list[str]:
    """The factors whose values pixels do not line up, of those of which an order is expected."""
    return [f.factor for f in found if not f.named and f.order is not None and f.order < NO_ORDER]


def sentence(found: Sequence[PixelOrder]) -> str | None:
    """What these numbers mean for a loss that compares pixels; None where no factor can be judged."""
    judged, lost = sum(not f.named and f.order is not None for f in found), without(found)
    if not judged:
        return None
    if not lost:
        return "in pixels, neighbouring values of every factor are nearer to each other than its other values are"
    which = "every factor" if len(lost) == judged > 1 else ", ".join(lost)
    return (
        f"in pixels, neighbouring values of {which} are as far apart as any two of its values: a loss that compares "
        "pixels cannot tell their order, and no beta will line them up"
    )
