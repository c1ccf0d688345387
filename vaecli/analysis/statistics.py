"""What a trained model's latents do over a data set: moments of q(z|x), rates along ancestral draws, use of codes.

The numbers, level by level, and what follows from them; `gathering` takes them. All KL and likelihoods in nats.

Shapes: B batch, D latents (of a level, or of all of them side by side), V values of a label or codes of a codebook.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaecli.models.base import Level

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5: a latent is active if Var_x[E_q[z|x]] exceeds it
WORTH = 0.01  # nats: what is counted beside the active latents, as the variance of mu alone calls some active in vain
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
    def active_rule(self) -> str:
        """When a latent that has mean and variance counts as active, in words."""
        if self.total_D is None:
            return f"var mu > {ACTIVE_SHARE:g} of the largest"
        if self.level.standard or self.level.kind != "gaussian":
            return f"var mu > {ACTIVE_VARIANCE:g}"
        return f"var mu > {ACTIVE_VARIANCE:g} of var z"

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
    blank: float | None = None  # E_x[-log p(x|...)] of the mean image in place of every decoded one, in nats
    blank_error: float | None = None  # its standard error
    recon_N: Tensor | None = None  # of each image, in their order
    elbo_N: Tensor | None = None

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
    def active_rule(self) -> str:
        """When they count as active, in words; with the names of the levels where that differs."""
        rules: dict[str, list[str]] = {}
        for part in self.parts:
            if part.level.kind in JUDGED:
                rules.setdefault(part.active_rule, []).append(part.level.name)
        if len(rules) < 2:
            return "".join(rules)
        return ", ".join(f"{rule} ({', '.join(names)})" for rule, names in rules.items())

    @property
    def worth(self) -> int | None:
        """Number of latents whose mean KL is above `WORTH`; None unless every one that is judged has a KL."""
        parts = [part for part in self.parts if part.level.kind in JUDGED]
        known = [part.kl_D for part in parts if part.kl_D is not None]
        return sum(int((kl_D > WORTH).sum()) for kl_D in known) if known and len(known) == len(parts) else None

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
