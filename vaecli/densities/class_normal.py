"""A Gaussian for the codes of each label, fitted to a few labelled codes: what labels do for a model that has none.

p(z|y) = N(sum of an effect of each label, covariance), by least squares; for one label the effects are the means of its
classes, and each class has a covariance of its own where there are codes enough (Gaussian discriminant analysis). With
several labels their effects add up, so that combinations that were never seen can be drawn too.
"""

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vaecli.batch import DataInfo
from vaecli.densities import base
from vaecli.errors import ConfigError, InputError
from vaecli.objectives import labels
from vaecli.registry import nearest

ENOUGH = 2  # codes of a class for each latent, for a covariance of its own
MIXED = 4096  # combinations of labels over which log p(z) is summed, at most


class Config(base.DensityConfig):
    """`factors`     the data's labels that can be asked for; null for all that differ.
    `labelled`    how many codes have labels, a count or a fraction; dealt out class by class where there is one factor.
    `covariance`  of each class its `own`, `shared` by all, or `auto`: its own where there are codes enough.
    `sizes`       values of each factor; written by the fit.
    """

    name: Literal["class-normal"] = "class-normal"
    factors: list[str] | None = Field(default=None, min_length=1, max_length=64)
    labelled: Annotated[int, Field(gt=0, le=2**53)] | Annotated[float, Field(gt=0, le=1)] = 1.0
    covariance: Literal["auto", "own", "shared"] = "auto"
    sizes: list[Annotated[int, Field(gt=0, le=4096)]] = Field(default=[], max_length=64)


class Density(base.Density):
    """`factor_MDD`: one covariance's lower factor, or one for each class."""

    config: Config
    labelled: ClassVar[bool] = True
    effect_CD: Tensor
    share_C: Tensor
    factor_MDD: Tensor

    def __init__(self, config: Config, latents: int) -> None:
        super().__init__(config, latents)
        self._labels_NK: Tensor | None = None  # while it is fitted
        own = config.covariance == "own" and len(config.sizes) == 1
        self._allocate(config.sizes[0] if own else 1)

    def _allocate(self, covariances: int) -> None:
        c, d = sum(self.config.sizes), self.latents
        self.register_buffer("effect_CD", torch.zeros(c, d, dtype=torch.float64))
        self.register_buffer("share_C", torch.zeros(c, dtype=torch.float64))
        self.register_buffer("factor_MDD", torch.eye(d, dtype=torch.float64).repeat(covariances, 1, 1))

    @property
    def factors(self) -> tuple[str, ...]:
        return tuple(self.config.factors or ())

    # ---- fitting

    def told(self, labels_NK: Tensor, info: DataInfo) -> None:
        varying = [name for name, size in zip(info.factor_names, info.factor_sizes, strict=True) if size > 1]
        for name in self.factors:
            if name not in varying:
                raise ConfigError(f"density.factors: no factor {name[:80]!r} that varies{nearest(name, varying)}")
        chosen = [name for name in varying if self.config.factors is None or name in self.factors]
        columns = [info.factor_names.index(name) for name in chosen]
        self.config = self.config.model_copy(
            update={"factors": chosen, "sizes": [info.factor_sizes[column] for column in columns]}
        )
        self._labels_NK = labels_NK[:, columns].cpu()

    def fit(self, codes_ND: Tensor, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        if self._labels_NK is None:
            raise ConfigError("density class-normal is fitted to codes with labels, and there are none")
        rows = self._chosen_rows(self._labels_NK)
        self.used = len(rows)
        labels_NK, z_ND = self._labels_NK[rows], codes_ND[rows]
        hot_NC = labels.one_hot(labels_NK, self.config.sizes).double()
        count_C = hot_NC.sum(dim=0)
        self._check_counts(count_C)
        one = len(self.config.sizes) == 1
        enough = float(count_C.min()) >= ENOUGH * self.latents
        if self.config.covariance == "own" and not (one and float(count_C.min()) > self.latents):
            raise ConfigError(
                f"density.covariance is own, but {'a class has' if one else 'classes of several factors have'} "
                f"too few codes for {self.latents} latents",
                "set covariance=shared or auto, or raise labelled",
            )
        own = self.config.covariance == "own" or (self.config.covariance == "auto" and one and enough)
        self.config = self.config.model_copy(update={"covariance": "own" if own else "shared"})
        self._allocate(len(count_C) if own else 1)
        # Least squares; blocks of several factors share a constant, so that the matrix has no inverse.
        self.effect_CD.copy_(torch.linalg.pinv(hot_NC.T @ hot_NC, hermitian=True) @ (hot_NC.T @ z_ND))
        self.share_C.copy_(count_C / len(rows))
        rest_ND = z_ND - hot_NC @ self.effect_CD
        groups = [rest_ND[labels_NK[:, 0] == value] for value in range(len(count_C))] if own else [rest_ND]
        self._labels_NK = None
        covariances = [group_ND.T @ group_ND / len(group_ND) for group_ND in groups]
        self.factor_MDD.copy_(torch.stack([base.cholesky(covariance) for covariance in covariances]))
        progress(len(codes_ND))

    def _chosen_rows(self, labels_NK: Tensor) -> Tensor:
        """The codes whose labels are used: of those that have all of them, in turn from each class of one factor."""
        known = (labels_NK >= 0).all(dim=1).nonzero()[:, 0]
        known = known[torch.randperm(len(known))]
        wanted = self.config.labelled
        count = min(len(known), wanted if isinstance(wanted, int) else round(wanted * len(known)))
        if len(self.config.sizes) == 1:
            of_class = labels_NK[known, 0]
            place = torch.empty_like(known)
            for value in range(self.config.sizes[0]):
                at = (of_class == value).nonzero()[:, 0]
                place[at] = torch.arange(len(at))
            known = known[torch.argsort(place, stable=True)]
        return known[:count]

    def _check_counts(self, count_C: Tensor) -> None:
        for factor, count_V in zip(self.factors, torch.split(count_C, self.config.sizes), strict=True):
            missing = (count_V == 0).nonzero()[:, 0].tolist()
            if missing:
                raise ConfigError(
                    f"no labelled code has {factor} = {', '.join(map(str, missing[:3]))}"
                    + (f" and {len(missing) - 3} more values" if len(missing) > 3 else ""),
                    "raise labelled, or name other factors",
                )

    # ---- drawing

    def sample(self, n: int) -> Tensor:
        return self.sample_labelled(torch.full((n, len(self.factors)), -1))

    def sample_labelled(self, labels_BK: Tensor) -> Tensor:
        """A draw of p(z|labels) a row, float32 (B, D); labels of -1 are drawn in the proportions of the fit, each by
        itself. The noise is the same whatever the labels. InputError for values that there are not."""
        sizes_K = torch.tensor(self.config.sizes)
        if labels_BK.shape[1:] != sizes_K.shape or bool((labels_BK >= sizes_K).any()):
            raise InputError(
                f"labels of {', '.join(self.factors)} have {', '.join(map(str, self.config.sizes))} values"
            )
        shares = torch.split(self.share_C, self.config.sizes)
        drawn_BK = torch.stack([torch.multinomial(share_V, len(labels_BK), True) for share_V in shares], dim=1)
        labels_BK = torch.where(labels_BK < 0, drawn_BK, labels_BK)
        eps_BD = torch.randn(len(labels_BK), self.latents, dtype=torch.float64)
        hot_BC = labels.one_hot(labels_BK, self.config.sizes).double()
        factor_BDD = self.factor_MDD[labels_BK[:, 0] if len(self.factor_MDD) > 1 else torch.zeros_like(labels_BK[:, 0])]
        return (hot_BC @ self.effect_CD + (factor_BDD @ eps_BD.unsqueeze(2)).squeeze(2)).float()

    def log_prob(self, z_BD: Tensor) -> Tensor | None:
        """Of the mixture over all labels, each by itself; None where their combinations are too many."""
        count = math.prod(self.config.sizes)
        if count > MIXED:
            return None
        every_MK = torch.cartesian_prod(*(torch.arange(size) for size in self.config.sizes)).reshape(count, -1)
        hot_MC = labels.one_hot(every_MK, self.config.sizes).double()
        mean_MD, log_share_M = hot_MC @ self.effect_CD, hot_MC @ self.share_C.log()
        factor_MDD = self.factor_MDD.expand(count, -1, -1)
        parts = MultivariateNormal(mean_MD, scale_tril=factor_MDD, validate_args=False)
        mixture = MixtureSameFamily(Categorical(logits=log_share_M), parts, validate_args=False)
        found: Tensor = mixture.log_prob(z_BD.double())  # type: ignore[no-untyped-call]
        return found

    def text(self) -> str:
        which = "its own covariance" if len(self.factor_MDD) > 1 else "one covariance"
        return f"a Gaussian for each {' and '.join(self.factors) or 'label'}, {which}"
