"""What a trained model's latents do over a data set: moments of q(z|x), rates along ancestral draws, use of codes.

Everything accumulates in float64, batch by batch, so a data set of any size fits. All KL and likelihoods in nats.

Shapes: B batch, D latents (of a level, or of all of them side by side), V values of a label or codes of a codebook.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributions as td
from torch import Tensor

from vaecli.batch import Batch, DataInfo
from vaecli.errors import InputError
from vaecli.models.base import Inference, Level, Model, NoPrior
from vaecli.objectives import distributions

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5: a latent is active if Var_x[E_q[z|x]] exceeds it
ACTIVE_SHARE = 1e-4  # a deterministic code has no scale of its own: its variance is compared with the largest one
JUDGED = ("gaussian", "point")  # kinds of levels whose latents are active or not


class Moments:
    """Running mean and variance of rows, merged batch by batch (Chan, Golub & LeVeque 1983, eq. 2.1).

    Stable where the textbook sum of squares cancels: means far from zero, millions of rows.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)  # sum of squared deviations from the mean

    def add(self, rows: Tensor) -> None:
        """Take in rows along the first axis: (B,) or (B, D), any float type, any device."""
        # MPS has no float64, and B x D numbers are cheap to move.
        values = rows.detach().cpu().double()
        count = len(values)
        if count == 0:
            return
        mean = values.mean(dim=0)
        delta = mean - self.mean
        total = self.n + count
        self._squares = self._squares + (values - mean).square().sum(dim=0) + delta.square() * (self.n * count / total)
        self.mean = self.mean + delta * (count / total)
        self.n = total

    @property
    def variance(self) -> Tensor:
        """Population variance (divided by N)."""
        return self._squares / max(self.n, 1)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean; NaN for fewer than two rows."""
        if self.n < 2:
            return torch.full_like(self._squares, math.nan)
        return (self._squares / (self.n - 1) / self.n).sqrt()


@dataclass(frozen=True)
class Usage:
    """How the codes of a codebook are used over the images: perplexities are exp of entropies, between 1 and V."""

    codes: int  # V
    perplexity: float  # of all positions together
    dead: float  # share of the codes that no image has anywhere
    perplexity_D: Tensor  # of each position; 1 where every image has the same code

    @property
    def varies_D(self) -> Tensor:
        return self.perplexity_D > 1.0


@dataclass(frozen=True)
class Accuracy:
    """How often the most likely value of a label is the true one, over the images whose truth is known."""

    factor: str
    accuracy: float
    error: float  # standard error
    images: int


@dataclass(frozen=True)
class LevelStatistics:
    """Of one level; vectors are float64 of shape (D,), D its latents. None is what there is none of.

    `kl_D`           E_x[KL(q(z_j|x) || p(z_j))] along ancestral draws, where each latent has a closed form.
    `sampled`        else E_x[log q - log p] of the whole level along the same draws, or its KL as a whole.
    `exact`          whether the rate is a mean of KL in closed form.
    `exact_moments`  whether mean and variance of q(z|x) are known in closed form.
    `normal`         whether q(z|x) is a Gaussian with independent latents, so that q(z) is a mixture of these.
    `importance_D`   what orders latents without a KL: the model's own importance, or variances relative to the prior's.
    """

    level: Level
    mean_D: Tensor  # E_x[mu]
    var_D: Tensor  # Var_x[mu]
    sigma2_D: Tensor | None = None  # E_x[sigma^2]
    kl_D: Tensor | None = None
    sampled: float | None = None
    rate_error: float | None = None
    exact: bool = True
    exact_moments: bool = True
    normal: bool = True
    importance_D: Tensor | None = None
    usage: Usage | None = None
    labels: tuple[Accuracy, ...] = ()

    @property
    def rate(self) -> float | None:
        """What the level costs in nats an image."""
        return self.sampled if self.kl_D is None else float(self.kl_D.sum())

    @property
    def total_D(self) -> Tensor | None:
        """Var_x[mu] + E_x[sigma^2], the variance of the aggregated posterior.

        The variance law: exactly 1, with mean 0, whatever beta and the likelihood, over the training images at a
        stationary point of a loss in which only the KL to N(0, I) penalises q, if a shift and a scaling of z_j can be
        undone: the heads for mu and log sigma^2 and the decoder's first layer are affine with free weights and biases
        (no weight decay on them, no batch norm between, no log sigma^2 at its bounds). For then the derivatives of the
        KL along both vanish: E[mu] = 0 and E[mu^2 + sigma^2] = 1. Latents that ignore the image satisfy it as 0 + 1.
        """
        return None if self.sigma2_D is None else self.var_D + self.sigma2_D

    @property
    def standard(self) -> bool:
        """Whether the variance law and tests of moments against N(0, I) say something of it."""
        return self.level.standard and self.level.kind == "gaussian" and self.exact_moments and self.total_D is not None

    @property
    def active_D(self) -> Tensor:
        """Which latents depend on the image: Var_x[mu] > 0.01, as a share of the whole variance where the prior is not
        N(0, I); for a deterministic code, a hundredth of the largest standard deviation; codes and labels that vary."""
        if self.usage is not None:
            return self.usage.varies_D
        if self.total_D is None:
            return self.var_D > ACTIVE_SHARE * self.var_D.max()
        if self.level.standard or self.level.kind != "gaussian":
            return self.var_D > ACTIVE_VARIANCE
        return self.var_D > ACTIVE_VARIANCE * self.total_D

    @property
    def moment_kl(self) -> float | None:
        """KL(N(mean, diag variance of q) || N(0, I)) in nats: how far q(z) is from the prior by its marginal moments
        alone, at most the same with the whole covariance. None for another prior."""
        total_D = self.total_D
        if total_D is None or not self.standard:
            return None
        return float(0.5 * (total_D + self.mean_D.square() - 1 - total_D.log()).sum())

    def order(self) -> list[int]:
        """Latents by mean KL, largest first; without one by importance, else by variance; codes as they stand."""
        if self.usage is not None:
            return list(range(len(self.mean_D)))
        key_D = next(k for k in (self.kl_D, self.importance_D, self.var_D) if k is not None)
        # NaN compares as nothing, so it is put last by hand.
        return torch.argsort(key_D.nan_to_num(nan=-math.inf), descending=True, stable=True).tolist()

    def status(self, latent: int) -> str:
        """`active`, `inactive` or, where a number is not finite, `n/a`; of codes and labels `varies` or `constant`."""
        if not math.isfinite(float(self.var_D[latent])):
            return "n/a"
        yes, no = ("active", "inactive") if self.level.kind in JUDGED else ("varies", "constant")
        return yes if bool(self.active_D[latent]) else no


@dataclass(frozen=True)
class Statistics:
    """Over `n` images, of all latents side by side; vectors are float64 of shape (D,).

    `sigma2_D` and `kl_D` are None unless every latent has one. Without `levels` the latents are one level, whose prior
    is N(0, I) where they have variances.
    """

    n: int
    mean_D: Tensor  # E_x[mu]
    var_D: Tensor  # Var_x[mu]
    sigma2_D: Tensor | None  # E_x[sigma^2]
    kl_D: Tensor | None  # E_x[KL(q(z_j|x) || p(z_j))]
    recon: float | None  # E_x[-log p(x|z)], one z ~ q(z|x) an image; None without likelihood or model
    recon_error: float | None  # standard error of `recon`
    elbo_error: float | None
    levels: tuple[LevelStatistics, ...] = ()
    noise: tuple[Level, ...] = ()  # levels that nothing infers
    mse: float | None = None  # a pixel, of the image at the modes; of models without likelihood
    mse_error: float | None = None
    kl_error: float | None = None  # of `kl`, where it is an estimate from draws

    @property
    def parts(self) -> tuple[LevelStatistics, ...]:
        """The levels inferred."""
        if self.levels:
            return self.levels
        kind, size = "point" if self.sigma2_D is None else "gaussian", (len(self.mean_D),)
        level = Level("z", size, kind, standard=kind == "gaussian")  # type: ignore[arg-type]
        return (LevelStatistics(level, self.mean_D, self.var_D, self.sigma2_D, self.kl_D),)

    def _of(self, latent: int) -> tuple[LevelStatistics, int]:
        """The level that a latent belongs to, and its place there."""
        for part in self.parts:
            if latent < len(part.mean_D):
                return part, latent
            latent -= len(part.mean_D)
        raise IndexError(latent)

    @property
    def total_D(self) -> Tensor | None:
        return None if self.sigma2_D is None else self.var_D + self.sigma2_D

    @property
    def active_D(self) -> Tensor:
        """Which latents depend on the image."""
        return torch.cat([part.active_D for part in self.parts])

    @property
    def judged(self) -> int:
        """Latents that are active or not: all but codes and labels."""
        return sum(len(part.mean_D) for part in self.parts if part.level.kind in JUDGED)

    @property
    def active(self) -> int | None:
        """Number of active units; None where all latents are codes and labels."""
        if not self.judged:
            return None
        return sum(int(part.active_D.sum()) for part in self.parts if part.level.kind in JUDGED)

    @property
    def kl(self) -> float | None:
        """The rates of all levels together: for one with a closed form E_x[KL(q(z|x) || p(z))]."""
        rates = [part.rate for part in self.parts]
        known = [rate for rate in rates if rate is not None]
        return sum(known) if known and len(known) == len(rates) else None

    @property
    def elbo(self) -> float | None:
        """The evidence lower bound, -(recon + rates) of the same draws, with weight 1 whatever the training objective.
        None where a level is not inferred: what its best value gives is no bound."""
        return None if self.kl is None or self.recon is None or self.noise else -(self.recon + self.kl)

    @property
    def moment_kl(self) -> float | None:
        """That of the one level there is."""
        return self.parts[0].moment_kl if len(self.parts) == 1 else None

    def order(self) -> list[int]:
        """Level by level, within each in the order of `LevelStatistics.order`."""
        found, start = [], 0
        for part in self.parts:
            found += [start + d for d in part.order()]
            start += len(part.mean_D)
        return found

    def status(self, latent: int) -> str:
        part, d = self._of(latent)
        return part.status(d)

    def kl_of(self, latent: int) -> float | None:
        part, d = self._of(latent)
        return None if part.kl_D is None else float(part.kl_D[d])


def limited(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """At most the first `images` images of a stream of batches."""
    for batch in batches:
        if images <= 0:
            return
        if len(batch.x_BCHW) > images:
            batch = batch.part(images)
        images -= len(batch.x_BCHW)
        yield batch


def latent_statistics(
    model: Model,
    batches: Iterable[Batch],
    hyper: Mapping[str, float],
    on_batch: Callable[[int], None] | None = None,
) -> Statistics:
    """Stream over images and gather `Statistics`; the model should be in evaluation mode.

    Reconstruction and rates are of one ancestral draw an image, which comes from torch's global generator: seed it
    first. `on_batch` is told the number of images of each batch. InputError if there are no images.
    """
    gathered = [_Gathered(model, level) for level in model.inferred]
    recon, cost, bound, mse = (Moments() for _ in range(4))
    n = 0
    with torch.inference_mode():
        for batch in batches:
            x_BCHW = batch.x_BCHW.to(model.device)
            n += len(x_BCHW)
            found = model.infer(x_BCHW, sample=True)
            rates = model.rates(found)
            tables = _tables(model, x_BCHW, found)
            for level, part in zip(model.inferred, gathered, strict=True):
                part.add(batch, found, rates.get(level.name), *tables[level.name])
            costs = [rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate for rate in rates.values()]
            if costs:
                cost.add(sum(costs[1:], costs[0]))
            if model.has_likelihood:
                log_prob_B = model.log_prob(x_BCHW, model.complete(found.values), hyper)
                assert log_prob_B is not None
                nll_B = -log_prob_B
                recon.add(nll_B)
                if all(level.name in rates for level in model.levels):
                    bound.add(nll_B + sum(costs[1:], costs[0]))
            elif gathered:
                y_BCHW = model.image(model.complete(model.infer(x_BCHW).values))
                mse.add((x_BCHW.cpu().double() - y_BCHW.cpu().double()).square().flatten(1).mean(dim=1))
            if on_batch is not None:
                on_batch(len(x_BCHW))
    if n == 0:
        raise InputError("there are no images to analyze")
    levels = tuple(part.statistics() for part in gathered)
    mean_D, var_D = (_side_by_side([getattr(part, key) for part in levels]) for key in ("mean_D", "var_D"))
    assert mean_D is not None and var_D is not None
    return Statistics(
        n=n,
        mean_D=mean_D,
        var_D=var_D,
        sigma2_D=_side_by_side([part.sigma2_D for part in levels]),
        kl_D=_side_by_side([part.kl_D for part in levels]),
        recon=float(recon.mean) if recon.n else None,
        recon_error=float(recon.standard_error) if recon.n else None,
        elbo_error=float(bound.standard_error) if bound.n else None,
        levels=_with_importance(model, levels),
        noise=tuple(level for level in model.levels if not level.inferred),
        mse=float(mse.mean) if mse.n else None,
        mse_error=float(mse.standard_error) if mse.n else None,
        kl_error=float(cost.standard_error) if cost.n and not all(part.exact for part in levels) else None,
    )


def _side_by_side(vectors: Sequence[Tensor | None]) -> Tensor | None:
    known = [v for v in vectors if v is not None]
    if len(known) < len(vectors):
        return None
    return torch.cat(known) if known else torch.zeros(0, dtype=torch.float64)


def _tables(model: Model, x_BCHW: Tensor, found: Inference) -> dict[str, tuple[Tensor, Tensor | None]]:
    """(mean, variance) of each level as float64 tables, a function of the image alone: of one level they are those of
    the posterior just drawn from, of several those given the modes above."""
    if len(model.inferred) > 1:
        found = model.infer(x_BCHW)
    tables: dict[str, tuple[Tensor, Tensor | None]] = {}
    for level in model.inferred:
        q = found.posteriors[level.name]
        if level.kind == "codes":
            tables[level.name] = found.values[level.name].flatten(1).cpu().double(), None
            continue
        mean, variance = distributions.moments(q)
        if isinstance(q, distributions.Gaussian):
            variance_BD: Tensor | None = q.logvar.flatten(1).cpu().double().exp()
        else:
            variance_BD = None if variance is None else variance.flatten(1).cpu().double()
        tables[level.name] = mean.flatten(1).cpu().double(), variance_BD
    return tables


class _Gathered:
    """What is gathered of one level, batch by batch."""

    def __init__(self, model: Model, level: Level) -> None:
        self.model, self.level = model, level
        self.mean, self.sigma2, self.kl, self.rate, self.prior = (Moments() for _ in range(5))
        self.exact = self.exact_moments = self.normal = True
        self.counts_DV: Tensor | None = None
        self.factors = label_factors(level, model.info)
        self.hits = [Moments() for _ in self.factors]

    def add(
        self, batch: Batch, found: Inference, rate: Tensor | None, mean_BD: Tensor, variance_BD: Tensor | None
    ) -> None:
        level, q = self.level, found.posteriors[self.level.name]
        self.exact_moments = distributions.exact_moments(q)
        self.normal = isinstance(q.base_dist if isinstance(q, td.Independent) else q, td.Normal)
        self.mean.add(mean_BD)
        if variance_BD is not None:
            self.sigma2.add(variance_BD)
        if rate is not None and rate.dim() > 1 and level.kind == "gaussian":
            self.kl.add(rate.flatten(1))
        elif rate is not None:
            self.rate.add(rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate)
            self.exact = rate.dim() > 1 or (not self._upwards() and self._closed(found))
        if level.kind in JUDGED and not self.kl.n:
            self._add_prior(found)
        if level.kind == "codes":
            self._add_codes(found.values[level.name])
        if level.kind == "labels" and batch.truth_BK is not None:
            self._add_labels(mean_BD, batch.truth_BK.cpu())

    def _upwards(self) -> bool:
        """Whether a level above is inferred from this one, so that its rate is no divergence to its prior."""
        order = list(self.model.inference_order())
        names = [level.name for level in self.model.levels]
        above = [name for name in names[: names.index(self.level.name)] if name in order]
        return any(order.index(name) > order.index(self.level.name) for name in above)

    def _closed(self, found: Inference) -> bool:
        p = self.model.p(self.level.name, found.values, len(found.values[self.level.name]))
        return distributions.exact_kl(found.posteriors[self.level.name], p)

    def _add_prior(self, found: Inference) -> None:
        try:
            p = self.model.p(self.level.name, self.model.complete(found.values), len(found.values[self.level.name]))
        except NoPrior:
            return
        if distributions.exact_moments(p) and (variance := distributions.moments(p)[1]) is not None:
            self.prior.add(variance.flatten(1))

    def _add_codes(self, index: Tensor) -> None:
        index_BD, codes = index.flatten(1).cpu(), self.level.sizes[0]
        if self.counts_DV is None:
            self.counts_DV = torch.zeros(index_BD.shape[1], codes, dtype=torch.int64)
        self.counts_DV.scatter_add_(1, index_BD.T.contiguous(), torch.ones_like(index_BD.T))

    def _add_labels(self, mean_BD: Tensor, truth_BK: Tensor) -> None:
        blocks = torch.split(mean_BD, list(self.level.sizes), dim=1)
        for block_BV, factor, hits in zip(blocks, self.factors, self.hits, strict=True):
            if factor is not None:
                known_B = truth_BK[:, factor] >= 0
                hits.add((block_BV.argmax(dim=1) == truth_BK[:, factor])[known_B].double())

    def statistics(self) -> LevelStatistics:
        names = self.model.info.factor_names
        sampled = self.rate if self.rate.n else None
        return LevelStatistics(
            self.level,
            self.mean.mean,
            self.mean.variance,
            self.sigma2.mean if self.sigma2.n else None,
            self.kl.mean if self.kl.n else None,
            None if sampled is None else float(sampled.mean),
            None if sampled is None else float(sampled.standard_error),
            self.exact,
            self.exact_moments,
            self.normal,
            self.mean.variance / self.prior.mean if self.prior.n else None,
            None if self.counts_DV is None else usage(self.counts_DV),
            tuple(
                Accuracy(names[factor], float(hits.mean), float(hits.standard_error), hits.n)
                for factor, hits in zip(self.factors, self.hits, strict=True)
                if factor is not None and hits.n
            ),
        )


def usage(counts_DV: Tensor) -> Usage:
    """From how often each of V codes stands at each of D positions."""
    perplexity_D = _perplexity(counts_DV)
    pooled_V = counts_DV.sum(dim=0)
    # Exactly 1 where a position has one code: logarithms would leave a rounding error.
    perplexity_D = torch.where((counts_DV > 0).sum(dim=1) == 1, torch.ones_like(perplexity_D), perplexity_D)
    dead = float((pooled_V == 0).double().mean())
    return Usage(counts_DV.shape[1], float(_perplexity(pooled_V[None])[0]), dead, perplexity_D)


def _perplexity(counts_DV: Tensor) -> Tensor:
    share_DV = counts_DV.double() / counts_DV.sum(dim=1, keepdim=True)
    return torch.exp(-torch.special.xlogy(share_DV, share_DV).sum(dim=1))


def label_factors(level: Level, info: DataInfo) -> list[int | None]:
    """The factor of the data that each block of labels stands for, None where it cannot be told: the one that bears
    the level's name, or those of the blocks' sizes in this order, if but one choice of factors fits."""
    if level.kind != "labels":
        return []
    sizes, known = list(level.sizes), list(info.factor_sizes)
    if len(sizes) == 1 and level.name in info.factor_names:
        named = list(info.factor_names).index(level.name)
        return [named] if known[named] == sizes[0] else [None]
    if sizes == known:
        return list(range(len(known)))
    fits = _choices(sizes, known, 0)
    return list(fits[0]) if len(fits) == 1 else [None] * len(sizes)


def _choices(sizes: Sequence[int], known: Sequence[int], start: int) -> list[tuple[int, ...]]:
    """Up to two ways to find the sizes in order among the known ones."""
    if not sizes:
        return [()]
    found: list[tuple[int, ...]] = []
    for k in range(start, len(known)):
        if known[k] == sizes[0]:
            found += [(k, *rest) for rest in _choices(sizes[1:], known, k + 1)]
        if len(found) > 1:
            break
    return found[:2]


def _with_importance(model: Model, levels: tuple[LevelStatistics, ...]) -> tuple[LevelStatistics, ...]:
    """With the model's own importance of its latents, if it has one: `importance()` gives (D,) over all inferred."""
    own = getattr(model, "importance", None)
    if own is None:
        return levels
    parts = torch.split(torch.as_tensor(own()).detach().cpu().double(), [len(part.mean_D) for part in levels])
    return tuple(replace(part, importance_D=values) for part, values in zip(levels, parts, strict=True))
