"""DC-IGN: a VAE whose batches vary one factor, each factor having latents of its own.

Kulkarni et al. 2015, "Deep Convolutional Inverse Graphics Network", section 3: in a batch in which one factor varies,
mean and log-variance of every latent that belongs to another are replaced by one value for all its images (clamped), so
that the factor's own latents alone can explain what varies; in place of the gradient that does not reach them any more,
the clamped ones are drawn towards that value by invariance * (v - mean of v). That is the gradient of the penalty
    invariance / 2 * sum over clamped latents of (v - mean of v)^2,
which stands here. The factor's value is never used, only which one varies.

loss = -E_q~[log p(x|z)] + beta KL(q~ || p) + invariance * penalty, q~ being q(z|x) with clamped parameters.
On images whose labels are not known (held-out ones, and whatever is encoded) nothing is clamped.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vaecli.batch import Batch, DataInfo, Split
from vaecli.data.orders import OneFactorVaries, Order
from vaecli.errors import ConfigError
from vaecli.models.base import GaussianVAE, Hyper, NetConfig, Term
from vaecli.objectives import terms
from vaecli.registry import nearest
from vaecli.settings.schedules import Weight
from vaecli.settings.section import NonNegative, Width


class Config(NetConfig):
    """`latents_per_factor` names how many latents a factor has, the first named having the first latents. Factors that
    it does not name have one each if their values have an order, and share the rest if their values are kinds with
    names (shapes); without such kinds the rest is dealt out among the ordered ones.

    `ratio`       how often batches vary a factor, against 1 for those that it does not name.
    `clamp`       the value for all images: the batch's `mean` (the paper), that of its `first` image (the code that its
                  authors published), or `none`: clamped nowhere, a VAE with the penalty alone.
    `invariance`  weight of the penalty; 1/100 in the paper.
    """

    tiny: ClassVar[dict[str, Any]] = {"latent_dim": 3, "net": {"name": "mlp", "hidden": [16]}}
    name: Literal["dc-ign"] = "dc-ign"
    latents_per_factor: dict[str, Width] = Field(default_factory=dict)
    ratio: dict[str, NonNegative] = Field(default_factory=dict)
    clamp: Literal["mean", "first", "none"] = "mean"
    invariance: Weight = 0.01
    beta: Weight = 1.0


class Model(GaussianVAE):
    """q(z|x) and p(z) are a VAE's; `of_KD` tells which latent belongs to which factor."""

    config: Config
    of_KD: Tensor
    uses_labels = True
    batch_dependent = True
    least_batch = 2

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.latents = latents_of_factors(config, info)
        of_KD = torch.zeros(len(info.factor_names), config.latent_dim, dtype=torch.bool)
        for factor, latents in self.latents.items():
            of_KD[info.factor_names.index(factor), latents] = True
        self.register_buffer("of_KD", of_KD, persistent=False)

    # ---- which factor varies

    def order(self, train: Split, seed: int, batch_size: int) -> Order:
        labels_NK = train.labels_NK
        if labels_NK is None:
            raise ConfigError("dc-ign needs to know which images differ in one factor alone, but there are no labels")
        self.check_batch(batch_size)
        weights = [self.config.ratio.get(f, 1.0) if f in self.latents else 0.0 for f in self.info.factor_names]
        return OneFactorVaries(labels_NK, seed, batch_size, weights)

    def active(self, labels_BK: Tensor | None) -> Tensor:
        """Whether each latent may vary within the batch, bool (D,): one that belongs to a factor which does, or of
        which that is not known."""
        if labels_BK is None:
            return self.of_KD.any(dim=0)
        varies_K = ((labels_BK != labels_BK[:1]) | (labels_BK < 0)).any(dim=0)
        return (self.of_KD & varies_K.unsqueeze(1)).any(dim=0)

    def shared(self, v_BD: Tensor) -> Tensor:
        """What clamped latents are replaced by and drawn towards, (1, D), without gradient."""
        first = self.config.clamp == "first"
        return (v_BD[:1] if first else v_BD.mean(dim=0, keepdim=True)).detach()

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        q = self.posterior(batch.x_BCHW)
        assert q.logvar_BD is not None and q.kl_BD is not None
        active_D = self.active(batch.labels_BK)
        clamped, away = [], []
        for v_BD in (q.mean_BD, q.logvar_BD):
            shared_D = self.shared(v_BD)
            clamped.append(v_BD if self.config.clamp == "none" else torch.where(active_D, v_BD, shared_D))
            away.append(((v_BD - shared_D).square() * ~active_D).sum(dim=1).mean())
        z_BD = terms.reparameterize(*clamped)
        kl = q.kl_BD.sum(dim=1).mean()
        return {
            "recon": Term(-self.likelihood.log_prob(batch.x_BCHW, self.out(z_BD), hyper).mean()),
            "kl": Term(kl, None),  # of the codes as they are, to compare with other models
            "kl_clamped": Term(terms.kl_normal(*clamped).sum(dim=1).mean(), hyper["beta"]),
            "away": Term(0.5 * (away[0] + away[1]), hyper["invariance"], "squared distance"),
        }

    def kl_weight(self, hyper: Hyper) -> float | None:
        """That of a VAE, where nothing is clamped and no penalty is added."""
        return hyper["beta"] if self.config.clamp == "none" and hyper["invariance"] == 0 else None

    def objective_text(self, hyper: Hyper) -> str:
        weights = f"beta = {hyper['beta']:.4g}, invariance = {hyper['invariance']:.4g}"
        how = "clamped nowhere" if self.config.clamp == "none" else f"clamped to the batch's {self.config.clamp}"
        assigned = ", ".join(f"{factor} {_span(latents)}" for factor, latents in self.latents.items())
        objective = f"minimise recon + beta KL + invariance |v - {_REFERENCE[self.config.clamp]}|^2 / 2 of latents"
        tail = f"{self.likelihood.text(hyper)}; {terms.UNITS}"
        return f"{objective} whose factor does not vary, {how}; {weights}; {assigned}; {tail}"


_REFERENCE = {"mean": "mean v", "first": "first v", "none": "mean v"}


def _span(latents: list[int]) -> str:
    return f"z{latents[0]}" if len(latents) == 1 else f"z{latents[0]} to z{latents[-1]}"


def latents_of_factors(config: Config, info: DataInfo) -> dict[str, list[int]]:
    """The positions of each varying factor's latents, as `Config` says; ConfigError where the two do not fit."""
    kinds: Mapping[str, tuple[str, ...]] = dict(zip(info.factor_names, info.value_names, strict=False))
    varying = [name for name, size in zip(info.factor_names, info.factor_sizes, strict=True) if size > 1]
    for section, names in (("latents_per_factor", config.latents_per_factor), ("ratio", config.ratio)):
        for name in names:
            if name not in varying:
                raise ConfigError(f"model.{section}: no factor {name[:80]!r} that varies{nearest(name, varying)}")
    if len(varying) < 2:
        raise ConfigError(
            f"dc-ign needs two factors that vary or more, but {info.name} has {len(varying)}",
            "train on images whose factors are known, such as dsprites",
        )
    never = [name for name in varying if config.ratio.get(name, 1.0) == 0]
    if never:  # its latents would keep their first values for ever
        raise ConfigError(f"model.ratio: no batch varies {', '.join(never)}, and nothing would train its latents")
    counts = dict(config.latents_per_factor)
    named = [name for name in varying if kinds.get(name) and name not in counts]
    ordered = [name for name in varying if not kinds.get(name) and name not in counts]
    counts.update(dict.fromkeys(ordered, 1))
    takers = named or ordered
    rest = config.latent_dim - sum(counts.values())
    if rest < len(named) or (rest > 0 and not takers):
        need = sum(counts.values()) + len(named)
        fit = f"{need} latents or more" if takers else f"{need} latents"
        raise ConfigError(f"model.latent_dim is {config.latent_dim}, but the factors of {info.name} take {fit}")
    for i in range(rest):
        counts[takers[i % len(takers)]] = counts.get(takers[i % len(takers)], 0) + 1
    positions = iter(range(config.latent_dim))
    return {name: [next(positions) for _ in range(count)] for name, count in counts.items()}
