"""log p(x) of a model by importance sampling with draws of its posterior, streamed: memory does not depend on K.

Burda et al. 2016, "Importance Weighted Autoencoders", eq. 8: L_K = E log (1/K) sum_k w_k with w_k = p(x|z_k) p(z_k) /
q(z_k|x), z standing for all levels. L_1 is the ELBO, L_K rises with K and tends to log p(x): on average -L_K is never
less than the negative log-likelihood. The draws of an image are a function of the seed and its place in the data set,
and the first of K draws are those of any smaller K, so that neither batches nor other images change a number.

Shapes: B images at a time, C H W image, D latents, K draws an image, N rows (draws of several images side by side).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from vaecli import device as devices
from vaecli.analysis.statistics import Moments
from vaecli.data.base import SplitView
from vaecli.models.base import Hyper, Model, NoPrior, Values
from vaecli.objectives import distributions

IMAGES = 1000  # over which the mean is taken unless told otherwise
GLANCE = (100, 200)  # draws an image and images of a first look, in a full diagnosis
UNIT = 100  # draws of an image that share a seed
READ = 128  # images whose features are computed at a time
VALUES = 1 << 22  # pixels decoded at a time
CERTAIN = (distributions.Point, distributions.Indices)  # posteriors without a density
FEW = 10.0  # effective draws, below which the estimate hangs on single ones

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Nll:
    """-log p(x) in nats an image, mean over `images`, with its standard error over them.

    `negative_elbo`  -L_1 of the same draws: what the K draws improve upon.
    `effective`      median over the images of (sum w)^2 / sum w^2, between 1 and K.
    `kind`           what log p(x) is the logarithm of: `probability` of an image whose pixels have a finite number of
                     values; `density` over [0, 1] for each pixel, which is above 1 where it may; of a Bernoulli at
                     pixels between its two values `cross-entropy`, which belongs to no distribution; of more levels
                     that the pixels are not on, that of a `bin` around each.
    `bits_per_dim`   nll / (log 2 * values of an image); None but for a probability: a density has no bits unless noise
                     of the width of a grey level is added to the pixels, which nothing here does.
    """

    nll: float
    error: float
    negative_elbo: float
    negative_elbo_error: float
    k: int
    images: int
    effective: float
    kind: str
    bits_per_dim: float | None
    each_N: Tensor  # -L_K of each image, float64, in the order of the view

    @property
    def hangs_on_few(self) -> bool:
        """Whether for half of the images a handful of the K draws make up the estimate."""
        return self.effective < min(FEW, self.k / 2)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "nll": self.nll, "standard_error": self.error, "negative_elbo": self.negative_elbo,
            "negative_elbo_standard_error": self.negative_elbo_error, "k": self.k, "images": self.images,
            "effective_draws": self.effective, "kind": self.kind, "bits_per_dim": self.bits_per_dim,
        }  # fmt: skip


def refusal(model: Model, x_BCHW: Tensor, hyper: Hyper) -> str | None:
    """Why there is no such estimate of a model, found out on some images; None where there is one."""
    name = model.config.name
    if not model.has_likelihood:
        return f"{name} has no likelihood p(x|z)"
    if hidden := [level.name for level in model.levels if not level.inferred]:
        return f"nothing in {name} infers {' and '.join(hidden)} from an image"
    with torch.inference_mode(), devices.aside():
        x_BCHW = x_BCHW.to(model.device)
        values: Values = {}
        features, posteriors = model.features(x_BCHW), {}
        for level in model.inference_order():
            q = model.q(level, features, values)
            if isinstance(q, CERTAIN):
                return f"the posterior of {name} puts all on one value of {level}, which has no density"
            values[level] = distributions.sample(q)
            posteriors[level] = q
        for level, q in posteriors.items():
            try:
                p = model.p(level, values, len(x_BCHW))
                distributions.log_prob(p, values[level])
                distributions.log_prob(q, values[level])
                known = not isinstance(q, td.RelaxedOneHotCategorical) or type(p) is type(q)
            except NoPrior as error:
                return error.message
            except (NotImplementedError, ValueError):
                known = False
            if not known:
                return f"the density of {level} under the posterior or prior of {name} is not known"
        return None if model.log_prob(x_BCHW, values, hyper) is not None else f"{name} has no likelihood p(x|z)"


class Weights:
    """Log-weights of B images taken in as they come: the running log-sum-exp of each image, and of its squares."""

    def __init__(self, images: int) -> None:
        self.count_B = torch.zeros(images, dtype=torch.float64)
        self.top_B = torch.full((images,), -math.inf, dtype=torch.float64)
        self.sum_B, self.squares_B, self.mean_B = (torch.zeros(images, dtype=torch.float64) for _ in range(3))

    def add(self, image: int, log_weight_K: Tensor) -> None:
        """More draws of one image."""
        log_weight_K = log_weight_K.detach().cpu().double()
        top = torch.maximum(self.top_B[image], log_weight_K.max())
        # Of nothing but zeros: their sum is 0 and no 0 / 0.
        shift = top if bool(top > -math.inf) else top.new_zeros(())
        before = torch.exp(self.top_B[image] - shift)
        weight_K = torch.exp(log_weight_K - shift)
        self.sum_B[image] = self.sum_B[image] * before + weight_K.sum()
        self.squares_B[image] = self.squares_B[image] * before.square() + weight_K.square().sum()
        self.top_B[image] = top
        self.count_B[image] += len(log_weight_K)
        self.mean_B[image] += (log_weight_K - self.mean_B[image]).sum() / self.count_B[image]

    @property
    def bound_B(self) -> Tensor:
        """log (1/K) sum of the weights."""
        return self.top_B + self.sum_B.log() - self.count_B.log()

    @property
    def effective_B(self) -> Tensor:
        """(sum w)^2 / sum w^2: of how many equal weights the sum would vary as much (Kong 1992)."""
        return self.sum_B.square() / self.squares_B


def estimate(
    model: Model,
    view: SplitView,
    hyper: Hyper,
    k: int,
    *,
    images: int = IMAGES,
    seed: int = 0,
    rows: int | None = None,
    advance: Advance = lambda amount: None,
) -> Nll:
    """Over `images` images of a view (all, if there are fewer), with K draws each.

    `rows` draws are decoded at a time, as many as a few million pixels hold by default. `advance` is told the images
    done. The model is one for which there is no `refusal`.
    """
    view = view.sample(images)
    rows = rows or max(UNIT, min(1000, VALUES // model.info.pixels))
    bound, elbo, effective, on_levels = Moments(), Moments(), [], True
    each = []
    levels = getattr(getattr(model, "likelihood", None), "levels", None)
    with torch.inference_mode():
        for batch in view.batches(READ):
            x_BCHW = batch.x_BCHW.to(model.device)
            if levels is not None:
                grey_BCHW = x_BCHW.double() if x_BCHW.device.type != "mps" else x_BCHW
                off = (grey_BCHW * (levels - 1) - (grey_BCHW * (levels - 1)).round()).abs().max()
                on_levels = on_levels and bool(off < 0.01)
            weights = Weights(len(x_BCHW))
            drawn: list[tuple[int, Values, Tensor]] = []
            for i, values, log_q_N in _draws(model, x_BCHW, batch.index_B.tolist(), k, seed):
                drawn.append((i, values, log_q_N))
                if sum(len(part[2]) for part in drawn) + UNIT > rows:
                    _weigh(model, x_BCHW, drawn, hyper, weights)
                    advance(sum(len(part[2]) for part in drawn) / k)
                    drawn = []
            if drawn:
                _weigh(model, x_BCHW, drawn, hyper, weights)
                advance(sum(len(part[2]) for part in drawn) / k)
            bound.add(weights.bound_B)
            each.append(-weights.bound_B)
            elbo.add(weights.mean_B)
            effective.append(weights.effective_B)
    kind = "density" if levels is None else "probability" if on_levels else "cross-entropy" if levels == 2 else "bin"
    nll = -float(bound.mean)
    return Nll(
        nll,
        float(bound.standard_error),
        -float(elbo.mean),
        float(elbo.standard_error),
        k,
        bound.n,
        float(torch.cat(effective).median()),
        kind,
        nll / (math.log(2) * model.info.pixels) if kind == "probability" else None,
        torch.cat(each),
    )


def _draws(model: Model, x_BCHW: Tensor, place_B: list[int], k: int, seed: int) -> Iterator[tuple[int, Values, Tensor]]:
    """K draws of each image, at most UNIT at a time: (which image, values of all levels, log q of them)."""
    features = model.features(x_BCHW)
    for i, place in enumerate(place_B):
        mine = _repeated(features, i, UNIT)
        if mine is None:
            mine = model.features(x_BCHW[i : i + 1].expand(UNIT, *x_BCHW.shape[1:]))
        for unit in range(math.ceil(k / UNIT)):
            devices.seed(seed, "nll", place, unit)
            keep = min(UNIT, k - unit * UNIT)  # drawn whole: the first draws do not depend on K
            values: Values = {}
            log_q_N = torch.zeros(UNIT, device=x_BCHW.device)
            for name in model.inference_order():
                q = model.q(name, mine, values)
                values[name] = distributions.sample(q)
                # At once: a flow remembers where its last draw came from.
                log_q_N = log_q_N + distributions.log_prob(q, values[name])
            yield i, {name: value[:keep] for name, value in values.items()}, log_q_N[:keep]


def _repeated(features: Any, row: int, times: int) -> Any:
    """One image's part of what `Model.features` gave for several, repeated; None where it is of an unknown make."""
    if isinstance(features, Tensor):
        return features[row : row + 1].expand(times, *features.shape[1:])
    if isinstance(features, distributions.Gaussian):
        return distributions.Gaussian(*(_repeated(part, row, times) for part in (features.loc, features.logvar)))
    parts = list(features.values()) if isinstance(features, dict) else features
    if not isinstance(parts, (list, tuple)):
        return None
    found = [_repeated(part, row, times) for part in parts]
    if any(part is None for part in found):
        return None
    return dict(zip(features, found, strict=True)) if isinstance(features, dict) else type(features)(found)


def _weigh(
    model: Model, x_BCHW: Tensor, drawn: list[tuple[int, Values, Tensor]], hyper: Hyper, weights: Weights
) -> None:
    """log p(x|z) + log p(z) - log q(z|x) of draws of some images, side by side."""
    counts = torch.tensor([len(log_q) for _, _, log_q in drawn])
    image_N = torch.tensor([i for i, _, _ in drawn]).repeat_interleave(counts).to(x_BCHW.device)
    values = {name: torch.cat([values[name] for _, values, _ in drawn]) for name in drawn[0][1]}
    log_prob_N = model.log_prob(x_BCHW[image_N], values, hyper)
    assert log_prob_N is not None
    log_weight_N = log_prob_N.cpu().double() - torch.cat([log_q for _, _, log_q in drawn]).cpu().double()
    for name, value in values.items():
        log_weight_N += distributions.log_prob(model.p(name, values, len(image_N)), value).cpu().double()
    for (i, _, _), part in zip(drawn, torch.split(log_weight_N, counts.tolist()), strict=True):
        weights.add(i, part)


KINDS = {
    "probability": "a probability of images whose pixels have the likelihood's grey levels",
    "density": "a density over pixels in [0, 1], which may exceed 1; no bits/dim, as no noise fills the grey levels",
    "bin": "the probability of a bin around each pixel, as the images are of other grey levels than the likelihood's",
    "cross-entropy": "the cross-entropy of pixels between black and white, no likelihood: of use against itself alone",
}


def rows(found: Nll) -> list[list[str]]:
    """In words: what it is, and its value."""
    bits = "" if found.bits_per_dim is None else f" = {found.bits_per_dim:.4f} bits/dim"
    return [
        [f"-log p(x), K = {found.k:,}", f"{found.nll:.2f} +- {found.error:.2f} nats{bits} ({found.images:,} images)"],
        ["-ELBO of the same draws", f"{found.negative_elbo:.2f} +- {found.negative_elbo_error:.2f} nats"],
        ["effective draws, median", f"{found.effective:.1f} of {found.k:,}"],
        ["p(x) is", KINDS[found.kind]],
    ]
