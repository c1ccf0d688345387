"""What a set of images asks for: size, latents, steps, and what a capacity can be, from the images alone.

The latents are counted on the spectrum of the images, the eigenvalues of their covariance. A linear VAE whose decoder
has variance s^2 a pixel uses as many latents as there are eigenvalues above s^2, each at a KL of half the logarithm of
eigenvalue / s^2 (Lucas et al. 2019, "Don't Blame the ELBO!"): there the numbers are exact. A deep decoder bends its
axes, so that it needs fewer latents for the same error; what it does not use switches off.

Shapes: N images, P = C H W pixels, E eigenvalues.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaecli.data.base import Dataset, SplitView

IMAGES = 2_000  # at most, whose spectrum is taken
VALUES = 2**26  # of those, where they are large
UNEXPLAINED = 0.1  # the share of a pixel's variance that a decoder is taken to leave, where nothing else is said
MOST_LATENTS = 128
PASSES = 100  # through the images: more is learned by heart
FEWEST_STEPS, MOST_STEPS = 5_000, 50_000
SIDES = (64, 32, 16)  # of the shorter side of images that come in several sizes, or large; the first that none is below
ALIKE = 0.05  # by which proportions may differ and yet count as the same


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the covariance of `images`, falling, and the variance of all pixels together, their sum.

    There are no more than images - 1 that are not 0, whatever the rest of the set holds.
    """

    value_E: Tensor  # float64
    images: int
    pixels: int

    @property
    def total(self) -> float:
        return float(self.value_E.sum())

    def noise(self, unexplained: float = UNEXPLAINED) -> float:
        """The variance s^2 a pixel of a decoder that leaves this share of the mean variance of a pixel."""
        return unexplained * self.total / self.pixels

    def active(self, noise: float) -> int:
        """How many latents a linear VAE of this decoder variance uses."""
        return int((self.value_E > noise).sum())

    def rate(self, noise: float, latents: int) -> float:
        """The KL of a linear VAE of this decoder variance and so many latents, nats."""
        value_D = self.value_E[: min(latents, self.active(noise))]
        return float((value_D / noise).log().sum()) / 2


def spectrum(view: SplitView) -> Spectrum:
    """By the smaller of the covariance and the products of images with each other, which have the same eigenvalues."""
    pixels = view.dataset.info.pixels
    part = view.sample(max(2, min(IMAGES, VALUES // pixels)))
    x_NP = torch.cat([batch.x_BCHW.flatten(1).cpu() for batch in part.batches(256)])
    x_NP = x_NP - x_NP.mean(dim=0, dtype=torch.float64).float()
    rows = x_NP if len(x_NP) <= pixels else x_NP.T
    # Products in blocks of float64, so that small eigenvalues keep their digits and memory stays that of the images.
    product = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for block in torch.split(rows, max(1, 2**22 // len(rows)), dim=1):
        product += block.double() @ block.double().T
    value_E = torch.linalg.eigvalsh(product / len(x_NP)).flip(0).clamp(min=0)
    return Spectrum(value_E, len(x_NP), pixels)


def latents(found: Spectrum, noise: float, factors: int | None) -> tuple[int, str]:
    """How many to give a model, and why: those that a linear one would use, but no more than twice the factors that are
    known to vary, than a quarter of the images where it is they that end the spectrum, and than `MOST_LATENTS`."""
    active = found.active(noise)
    why = f"{active:,} eigenvalues are above the decoder's variance"
    if factors is not None and active > 2 * factors:
        return 2 * factors, f"twice the {factors} factors that vary ({why})"
    if 2 * active > found.images and found.images // 4 < MOST_LATENTS:
        few = f"a quarter of the {found.images:,} images, which are too few to show how many there are"
        return max(2, found.images // 4), f"{few} ({why})"
    if active > MOST_LATENTS:
        return MOST_LATENTS, f"the most that is worth a first trial ({why})"
    return max(2, active), why


def capacity(found: Spectrum, noise: float, latents: int, dataset: Dataset) -> tuple[float, str]:
    """A C_max for `annealed-vae`, nats, and why: the KL of a linear model of these latents; of images that are all the
    combinations of their factors twice what tells them apart, if that is less."""
    rate, apart = found.rate(noise, latents), math.log(len(dataset.images))
    if dataset.varying_factors is not None and rate > 2 * apart:
        return 2 * apart, f"twice the ln {len(dataset.images):,} = {apart:.1f} nats that tell all images apart"
    return rate, "the KL of a linear model of these latents"


def steps(images: int, batch_size: int) -> int:
    """`PASSES` through the images, within bounds, in round numbers."""
    wanted = min(max(PASSES * images / batch_size, FEWEST_STEPS), MOST_STEPS)
    return round(wanted / 1000) * 1000


def image_size(sizes: Sequence[tuple[int, int]]) -> list[int] | None:
    """[height, width] to bring images of these (height, width) to; None where they are of one size, and not large.

    The shorter side is 64 (or less, where they are smaller), the longer one follows where nearly all agree on
    proportions, as a multiple of 16.
    """
    if len(set(sizes)) == 1 and max(sizes[0]) <= 2 * SIDES[0]:
        return None
    shorter = statistics.median(min(size) for size in sizes)
    side = next((side for side in SIDES if side <= shorter), SIDES[-1])
    ratios = [width / height for height, width in sizes]
    middle = statistics.median(ratios)
    alike = sum(abs(math.log(ratio / middle)) < ALIKE for ratio in ratios) >= 0.9 * len(ratios)
    if not alike:
        return [side, side]
    longer = min(512, max(side, 16 * round(side * max(middle, 1 / middle) / 16)))
    return [side, longer] if middle >= 1 else [longer, side]


def record(found: Spectrum, noise: float) -> dict[str, Any]:
    """For JSON: the spectrum's largest eigenvalues and what they make of several decoder variances."""
    shares = (0.5, 0.2, 0.1, 0.05, 0.02)
    return {
        "images": found.images,
        "total_variance": found.total,
        "eigenvalues": found.value_E[:200].tolist(),
        "decoder_sigma": math.sqrt(noise),
        "active": found.active(noise),
        "at": [
            {"unexplained": share, "sigma": math.sqrt(s2), "active": found.active(s2), "kl": found.rate(s2, 10**9)}
            for share, s2 in ((share, found.noise(share)) for share in shares)
        ],
    }


__all__ = ["MOST_LATENTS", "Spectrum", "capacity", "image_size", "latents", "record", "spectrum", "steps"]
