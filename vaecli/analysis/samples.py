"""How good the images are that a model makes, in the features of a small classifier of the data (`oracle`), or of
Inception where the user has its weights (`inception`), which makes the distance an FID.

FCD is the Frechet distance of Heusel et al. 2017 ("GANs Trained by a Two Time-Scale Update Rule", eq. 6) between the
Gaussians that fit two sets' features, here those of a classifier of the data itself: a number of the same make as an
FID, on another scale. Precision and recall are those of Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric
for Assessing Generative Models", section 2: a set's manifold is the union of balls around its features, each of which
reaches to the k-th nearest of the others; precision is the share of samples in the real images' manifold, recall the
converse.

All of them depend on the number of images: FCD falls with it towards its value, precision and recall move either way.
Every set here has the same number, and what real images reach at that number stands beside what the model does.

Shapes: N images, M images of another set, F features, B batch, C H W image.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vaecli import device as devices
from vaecli.analysis.draws import Source
from vaecli.data.base import Dataset, SplitView
from vaecli.data.orders import generator
from vaecli.errors import ConfigError, InputError

NEIGHBOURS = 3  # k of Kynkaanniemi et al.
FEWEST = 10  # images of a set
DISTANCES = 1 << 22  # held at a time
BATCH = 256

Advance = Callable[[float], None]


class Judge(Protocol):
    """Whose features images are compared in. `distance` is what the Frechet distance in them is called; distances by
    judges that differ in `digest` cannot be compared."""

    @property
    def distance(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def features(self, x_BCHW: Tensor) -> Tensor:
        """(B, F) of images with values in [0, 1]."""
        ...

    def text(self) -> str: ...

    def record(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Samples:
    """Of `n` samples against `n` held-out images; what is None there are no images for.

    `distance`       the Frechet distance, named by the judge.
    `floor`          between `n` other real images and the same held-out ones: what samples of a perfect model have.
    `reconstructed`  of the held-out images' reconstructions, which are not other images and may come below the floor.
    `precision_real`       and `recall_real`: of the other real images, as if they were samples.
    """

    n: int
    distance: float
    floor: float | None
    reconstructed: float | None
    precision: float
    recall: float
    precision_real: float | None
    recall_real: float | None
    k: int
    features: int
    split: str
    drawn_from: str
    judge: Judge

    def record(self) -> dict[str, Any]:
        """For JSON: the distance by its name, as `fcd`, and `oracle` for the classifier, `inception` for Inception."""
        called = self.judge.distance.lower()
        names = ("precision", "recall", "precision_real", "recall_real", "k", "features", "split", "drawn_from")
        return {
            "n": self.n,
            called: self.distance,
            f"{called}_floor": self.floor,
            f"{called}_reconstructions": self.reconstructed,
            **{name: getattr(self, name) for name in names},
            "inception" if called == "fid" else "oracle": self.judge.record(),
        }


# ------------------------------------------------------------------------------------------------------------ distances


def moments(features_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and covariance (F, F), divided by N - 1, in float64."""
    features_NF = features_NF.double()
    mean_F = features_NF.mean(dim=0)
    off_NF = features_NF - mean_F
    return mean_F, off_NF.T @ off_NF / (len(features_NF) - 1)


def frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians: |a - b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)
    (Dowson & Landau 1982), float64.

    With the symmetric roots of A and B by eigen-decomposition, the last root's trace is the sum of the singular values
    of A^1/2 B^1/2, whose squares are the eigenvalues of the symmetric product: no root is taken of eigenvalues that are
    zero but for rounding, of which there are many where images are few.
    """
    cross = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def _root(cov_FF: Tensor) -> Tensor:
    value_F, vectors_FF = torch.linalg.eigh((cov_FF + cov_FF.T) / 2)
    rounding = len(value_F) * torch.finfo(value_F.dtype).eps * value_F[-1]
    root_FF: Tensor = (vectors_FF * torch.where(value_F > rounding, value_F, 0.0).sqrt()) @ vectors_FF.T
    return root_FF


def fcd(a_NF: Tensor, b_MF: Tensor) -> float:
    """The Frechet distance of the Gaussians that fit two sets of features."""
    return frechet(*moments(a_NF), *moments(b_MF))


def precision_recall(real_NF: Tensor, made_MF: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """(share of made features within the real ones' manifold, share of real ones within the made ones' manifold)."""
    centre_F = real_NF.double().mean(dim=0)  # of numbers near 0 the squares lose fewest digits
    real_NF, made_MF = real_NF.double() - centre_F, made_MF.double() - centre_F
    real_N, made_M = radii(real_NF, k), radii(made_MF, k)
    return within(made_MF, real_NF, real_N), within(real_NF, made_MF, made_M)


def radii(points_NF: Tensor, k: int) -> Tensor:
    """Squared distance from each point to the k-th nearest of the others, (N,)."""
    found, start = [], 0
    for part_BF in _parts(points_NF, len(points_NF)):
        squares_BN = _squares(part_BF, points_NF)
        rows_B = torch.arange(len(part_BF))
        squares_BN[rows_B, start + rows_B] = torch.inf  # itself
        found.append(squares_BN.kthvalue(k, dim=1).values)
        start += len(part_BF)
    return torch.cat(found)


def within(points_NF: Tensor, centres_MF: Tensor, radius_M: Tensor) -> float:
    """Share of the points that lie in one of the balls, given by squared radii; on the rim counts as in."""
    # Rounding must not decide over a point on the rim.
    reach_M = radius_M + 1e-12 * (centres_MF.square().sum(dim=1) + radius_M)
    inside = 0
    for part_BF in _parts(points_NF, len(centres_MF)):
        inside += int((_squares(part_BF, centres_MF) <= reach_M).any(dim=1).sum())
    return inside / len(points_NF)


def _parts(points_NF: Tensor, others: int) -> Iterable[Tensor]:
    """As many points at a time as there is room for their distances to the others."""
    return torch.split(points_NF, max(1, DISTANCES // others))


def _squares(a_BF: Tensor, b_MF: Tensor) -> Tensor:
    """Squared distances (B, M)."""
    products_BM = a_BF @ b_MF.T
    return (a_BF.square().sum(dim=1, keepdim=True) + b_MF.square().sum(dim=1) - 2 * products_BM).clamp(min=0)


# -------------------------------------------------------------------------------------------------------------- measure


def sets(dataset: Dataset, view: SplitView, n: int) -> tuple[Tensor, Tensor | None]:
    """Positions of the real images to compare with, and of as many others for the floor: from outside the split, else
    from the rest of it; None where there are too few.

    There are n of them, or as many as the split has; half of it where images are left nowhere else. ConfigError for
    fewer than `FEWEST`.
    """
    everything_N = torch.ones(len(dataset.images), dtype=torch.bool)
    everything_N[view.indices.cpu()] = False
    outside_N = everything_N.nonzero()[:, 0]
    count = min(n, len(view))
    if len(outside_N) < count and view.name in ("train", "all"):
        count = min(n, max(len(outside_N), len(view) // 2))
    if count < FEWEST:
        raise ConfigError(f"{count} images are too few to compare samples with", f"{FEWEST} or more: see --split")
    reference_N = view.sample(count).indices.cpu()
    if len(outside_N) < count:
        everything_N[view.indices.cpu()] = True
        everything_N[reference_N] = False
        outside_N = everything_N.nonzero()[:, 0]
    if len(outside_N) < count:
        return reference_N, None
    order = torch.randperm(len(outside_N), generator=generator("floor", len(outside_N)))
    return reference_N, outside_N[order[:count]]


def measure(
    source: Source,
    dataset: Dataset,
    view: SplitView,
    n: int,
    judge: Judge,
    *,
    seed: int = 0,
    advance: Advance = lambda amount: None,
) -> Samples:
    """Draw n images as `vae sample -n N --seed SEED` does, and compare. `advance` is told the images judged, at most
    four times n. NoPrior where there is nothing to draw from, InputError where an image is not finite."""
    model = source.model
    reference_N, other_N = sets(dataset, view, n)
    count = len(reference_N)

    def features(parts: Iterable[Tensor], whose: str) -> Tensor:
        found = []
        for x_BCHW in parts:
            if not bool(x_BCHW.isfinite().all()):
                raise InputError(f"{whose} of the model hold values that are not finite")
            found.append(judge.features(x_BCHW).cpu().double())
            advance(len(x_BCHW))
        return torch.cat(found)

    def real(index_N: Tensor) -> Iterable[Tensor]:
        return (dataset.images.gather(index_B) for index_B in torch.split(index_N, BATCH))

    with torch.inference_mode():
        devices.seed(seed, "sample")
        made_NF = features((x_BCHW for x_BCHW, _ in source.images(count)), "samples")
        real_NF = features(real(reference_N), "images")
        other_NF = None if other_N is None else features(real(other_N), "images")
        again_NF = None
        if model.inferred:
            again = (model.image(model.complete(model.infer(x.to(model.device)).values)) for x in real(reference_N))
            again_NF = features(again, "reconstructions")
    precision, recall = precision_recall(real_NF, made_NF)
    reached = (None, None) if other_NF is None else precision_recall(real_NF, other_NF)
    return Samples(
        n=count,
        distance=fcd(made_NF, real_NF),
        floor=None if other_NF is None else fcd(other_NF, real_NF),
        reconstructed=None if again_NF is None else fcd(again_NF, real_NF),
        precision=precision,
        recall=recall,
        precision_real=reached[0],
        recall_real=reached[1],
        k=NEIGHBOURS,
        features=real_NF.shape[1],
        split=view.name,
        drawn_from=source.text,
        judge=judge,
    )


def rows(found: Samples) -> list[list[str]]:
    """In words: what it is, and its value."""

    def text(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.3f}"

    n, called = f"n = {found.n:,}", found.judge.distance
    return [
        [
            f"{called} of samples",
            f"{text(found.distance)} ({n}, drawn from {found.drawn_from}, against the split {found.split})",
        ],
        [f"{called} of reconstructions", text(found.reconstructed)],
        [f"{called} of other real images", f"{text(found.floor)} (as samples of a perfect model)"],
        ["precision", f"{text(found.precision)} (of real images {text(found.precision_real)}; k = {found.k})"],
        ["recall", f"{text(found.recall)} (of real images {text(found.recall_real)})"],
        ["judged by", f"{found.judge.text()} ({found.judge.digest})"],
        ["to be compared", f"at {n} and by the same judge alone: fewer images make it larger"],
    ]
