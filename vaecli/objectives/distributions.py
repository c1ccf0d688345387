"""Distributions over latents: torch's, with what they lack here: modes, moments and rates of those we use.

Shapes: B batch, D latents of a level (its values flattened), V values of a label or codes of a codebook.
"""

import math
from typing import Any, Protocol

import torch
import torch.distributions as td
from torch import Tensor

from vaecli.objectives import terms
from vaecli.objectives.labels import OneHotBlocks

MOMENT_DRAWS = 64  # of a posterior whose mean and variance have no closed form


class Gaussian(td.Normal):
    """N(mean, exp(logvar)), latent by latent; the log-variance is kept, so that nothing is lost in exp and log."""

    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.logvar = logvar
        super().__init__(mean, torch.exp(0.5 * logvar), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparameterised draws (Kingma & Welling 2014, 2.4)."""
        if tuple(sample_shape):
            return super().rsample(sample_shape)
        return terms.reparameterize(self.loc, self.logvar)

    def log_prob(self, value: Tensor) -> Tensor:
        return terms.log_normal(value, self.loc, self.logvar)


def from_numbers(numbers: Tensor) -> Gaussian:
    """A network's numbers (B, 2 D) as N(mean, exp(logvar)) of (B, D); log-variances limited as `terms.clamp_logvar`."""
    mean_BD, logvar_BD = numbers.chunk(2, dim=1)
    return Gaussian(mean_BD, terms.clamp_logvar(logvar_BD))


class Standard(Gaussian):
    """N(0, I) for n draws of some shape."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | None = None) -> None:
        zeros = torch.zeros(shape, device=device)
        super().__init__(zeros, zeros)


class Point(td.Distribution):
    """All mass on one value: what a deterministic encoder says. It has no density, hence no rate."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape[:1], value.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def mode(self) -> Tensor:
        return self.value

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.value.expand(*sample_shape, *self.value.shape)


class Indices(td.Distribution):
    """Positions of a codebook, each known for certain (a quantised posterior): int64 (B, ...) in [0, V).

    Against a uniform prior over V codes its KL is exactly log V a position (van den Oord et al. 2017, section 3.2).
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, index: Tensor, codes: int) -> None:
        self.index, self.codes = index, codes
        super().__init__(index.shape[:1], index.shape[1:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        return self.index

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.index.expand(*sample_shape, *self.index.shape)


class UniformIndices(td.Distribution):
    """Every code equally likely, each position by itself."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, shape: tuple[int, ...], codes: int, device: torch.device | None = None) -> None:
        self.shape, self.codes, self.device = shape, codes, device
        super().__init__(torch.Size(shape[:1]), torch.Size(shape[1:]), validate_args=False)

    @property
    def mode(self) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.int64, device=self.device)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.randint(self.codes, (*sample_shape, *self.shape), device=self.device)


class Drawn(td.Distribution):
    """A distribution whose mean and variance have no closed form but those of draws."""

    def drawn_moments(self) -> tuple[Tensor, Tensor]:
        """(mean, variance) of every latent over draws whose noise is the same for every image and every call."""
        raise NotImplementedError


class Space(Protocol):
    """Where latents live that are not any numbers: a sphere, a ball."""

    text: str  # what a way is

    def project(self, z_ND: Tensor) -> Tensor:
        """The point of the space that stands for z, which may lie outside."""
        ...

    def placed(self, z_ND: Tensor, column: int, value_N: Tensor) -> Tensor:
        """Points of the space whose coordinate is that value, the others as near as may be to what they were."""
        ...

    def way(self, a_D: Tensor, b_D: Tensor, t_S: Tensor) -> Tensor:
        """The shortest way from a to b at even speed, at shares t of it, (S, D)."""
        ...


class Curved(td.Distribution):
    """A density over a `Space`, with respect to that space's own volume; the latents of a draw belong together.

    `unit` says in a word what `values` counts.
    """

    space: Space
    unit: str

    def values(self, column: int, t_S: Tensor) -> Tensor:
        """What a coordinate takes at the values `t_S` of a traversal, (S,), float64."""
        raise NotImplementedError

    def tempered(self, temperature: float) -> Tensor:
        """A draw with deviations from the mode scaled."""
        raise NotImplementedError


@td.register_kl(Gaussian, Gaussian)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_gaussians(q: Gaussian, p: Gaussian) -> Tensor:
    """0.5 (d^2 / s_p^2 + r - 1 - log r) with r the ratio of variances; expm1 keeps the digits where they agree."""
    log_ratio = q.logvar - p.logvar
    return 0.5 * ((q.loc - p.loc).square() * torch.exp(-p.logvar) + torch.expm1(log_ratio) - log_ratio)


@td.register_kl(Gaussian, Standard)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_to_standard(q: Gaussian, p: Standard) -> Tensor:
    return terms.kl_normal(q.loc, q.logvar)


@td.register_kl(Indices, UniformIndices)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_indices(q: Indices, p: UniformIndices) -> Tensor:
    return torch.full(q.index.shape, math.log(p.codes), device=q.index.device)


# ----------------------------------------------------------------------------------------- what is asked of any of them


def exact_moments(q: td.Distribution) -> bool:
    """Whether mean and variance are known in closed form; else `moments` draws."""
    return not isinstance(q, (td.TransformedDistribution, Drawn)) or isinstance(q, td.RelaxedOneHotCategorical)


def independent_normal(q: td.Distribution) -> bool:
    """Whether it is a Gaussian whose latents are independent."""
    return isinstance(q.base_dist if isinstance(q, td.Independent) else q, td.Normal)


def exact_kl(q: td.Distribution, p: td.Distribution) -> bool:
    """Whether KL(q || p) has a closed form."""
    try:
        td.kl_divergence(q, p)
    except NotImplementedError:
        return False
    return True


def mode(q: td.Distribution) -> Tensor:
    """The most likely value; for a transformed one, what becomes of its base's mode (no mode, but a fixed point of it);
    for a mixture the mean of the heaviest component."""
    if isinstance(q, td.RelaxedOneHotCategorical):  # for torch a transformed one, too
        return torch.nn.functional.one_hot(q.logits.argmax(dim=-1), q.logits.shape[-1]).to(q.logits.dtype)
    if isinstance(q, td.TransformedDistribution):
        value = mode(q.base_dist)
        for transform in q.transforms:
            value = transform(value)
        return value
    if isinstance(q, td.MixtureSameFamily):
        best = q.mixture_distribution.probs.argmax(dim=-1)
        centres = q.component_distribution.mean  # (B, components, ...)
        found: Tensor = centres[torch.arange(len(centres), device=centres.device), best]
        return found
    if isinstance(q, td.Independent):
        return mode(q.base_dist)
    if isinstance(q, td.Uniform):
        return q.mean
    return q.mode


def sample(q: td.Distribution, temperature: float = 1.0) -> Tensor:
    """One draw from torch's global generator, by reparameterisation where there is one.

    `temperature` scales deviations from the mean (a categorical's logits are divided by it); 0 gives the mode.
    NotImplementedError for a temperature where neither is meant by anything.
    """
    if temperature == 1.0:
        return q.rsample() if q.has_rsample else _plain_sample(q)
    if temperature == 0.0:
        return mode(q)
    if isinstance(q, UniformIndices):  # flat at any temperature
        return q.sample()
    if isinstance(q, Curved):
        return q.tempered(temperature)
    if isinstance(q, td.Independent):
        return sample(q.base_dist, temperature)
    if isinstance(q, (td.Normal, td.Uniform)):
        return q.mean + temperature * (q.rsample() - q.mean)
    if isinstance(q, OneHotBlocks):
        return q.tempered(temperature).sample()
    if isinstance(q, td.OneHotCategorical):
        tempered: Any = td.OneHotCategorical(logits=q.logits / temperature, validate_args=False)
        return _plain_sample(tempered)
    if isinstance(q, td.MixtureSameFamily):
        chosen = _plain_sample(q.mixture_distribution)
        centres, drawn = q.component_distribution.mean, _plain_sample(q.component_distribution)
        rows = torch.arange(len(centres), device=centres.device)
        result: Tensor = centres[rows, chosen] + temperature * (drawn[rows, chosen] - centres[rows, chosen])
        return result
    raise NotImplementedError(f"a temperature means nothing for {type(q).__name__}")


def _plain_sample(q: Any) -> Tensor:
    drawn: Tensor = q.sample()
    return drawn


def spanning(shape: torch.Size, least: int) -> Tensor:
    """At least `least` points (N, *shape), the same at every call, of which and of whose negatives together the first
    three moments are those of N(0, I): the rows of random rotations, each rotation at a distance drawn as N(0, I)'s,
    so that the more there are the nearer all else is to N(0, I), too. Of more than 128 numbers only `least` rows of
    one, for which the second moments hold on average.
    """
    d, generator = shape.numel(), torch.Generator().manual_seed(20_160_615)
    draws_BDD = torch.randn(math.ceil(least / d), d, d, generator=generator, dtype=torch.float64)
    distance_B = torch.randn(len(draws_BDD), d, generator=generator, dtype=torch.float64).norm(dim=1)
    distance_B = distance_B * (d / distance_B.square().mean()).sqrt()
    points_ND = (torch.linalg.qr(draws_BDD)[0].mT * distance_B[:, None, None]).reshape(-1, d)
    found: Tensor = (points_ND if d <= 128 else points_ND[:least]).reshape(-1, *shape)
    return found


def moments(q: td.Distribution, draws: int = MOMENT_DRAWS) -> tuple[Tensor, Tensor | None]:
    """(mean, variance) of every latent, the variance None for a point.

    Without a closed form, over `draws` or more whose base noise is the same for every image and every call: the result
    is a function of the image alone. The noise is `spanning`, so that both are exact where the value is affine in it.
    """
    if isinstance(q, Point):
        return q.value, None
    if isinstance(q, Gaussian):
        return q.loc, torch.exp(q.logvar)
    if isinstance(q, td.RelaxedOneHotCategorical):  # of the labels that it relaxes
        return q.probs, q.probs * (1 - q.probs)
    if isinstance(q, Drawn):
        return q.drawn_moments()
    if not isinstance(q, td.TransformedDistribution):
        return q.mean, q.variance
    base: Any = q.base_dist.base_dist if isinstance(q.base_dist, td.Independent) else q.base_dist
    half = spanning(base.loc.shape[1:], draws // 2).to(base.loc)
    total, squares = torch.zeros_like(base.loc, dtype=torch.float64), torch.zeros_like(base.loc, dtype=torch.float64)
    for eps in torch.cat([half, -half]):  # antithetic: exact for whatever is linear in the noise
        value = base.loc + base.scale * eps
        for transform in q.transforms:
            value = transform(value)
        total += value.double()
        squares += value.double().square()
    mean = total / (2 * len(half))
    variance = (squares / (2 * len(half)) - mean.square()).clamp(min=1e-12)
    return mean.to(base.loc.dtype), variance.to(base.loc.dtype)


def rate(q: td.Distribution, p: td.Distribution, value: Tensor) -> Tensor | None:
    """What a level costs in nats given the values above it: KL(q || p), latent by latent (B, ...), where it has a
    closed form; else log q(value) - log p(value) of the one draw, (B,). None where q has no density."""
    if isinstance(q, Point):
        return None
    try:
        return td.kl_divergence(q, p)
    except NotImplementedError:
        return _total(q.log_prob(value)) - _total(p.log_prob(value))


def log_prob(q: td.Distribution, value: Tensor) -> Tensor:
    """log q(value) in nats, summed over the latents, (B,)."""
    return _total(q.log_prob(value))


def _total(per_latent: Tensor) -> Tensor:
    return per_latent.flatten(1).sum(dim=1) if per_latent.dim() > 1 else per_latent


__all__ = [
    "Curved", "Drawn", "Gaussian", "Indices", "Point", "Space", "Standard", "UniformIndices", "exact_kl",
    "exact_moments", "from_numbers", "log_prob", "mode", "moments", "rate", "sample",
]  # fmt: skip
