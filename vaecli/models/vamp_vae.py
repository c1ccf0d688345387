"""VampPrior VAE: the prior is the mixture of the posteriors of learned pseudo-images.

Tomczak & Welling 2018, "VAE with a VampPrior", eq. 8: p(z) = (1/K) sum_k q(z|u_k), u_1 ... u_K trained with the nets.
loss = -E_q[log p(x|z)] + beta E_q[log q(z|x) - log p(z)]; the divergence has no closed form and is that of the draw.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily

from vaecli.batch import Batch, DataInfo, Split
from vaecli.models.base import (
    FreeBitsConfig,
    GaussianVAE,
    Hyper,
    Level,
    Posterior,
    Term,
    Values,
    kl_terms,
    kl_text,
    unless_free,
)
from vaecli.objectives import terms
from vaecli.objectives.distributions import Gaussian
from vaecli.settings.schedules import Weight

EDGE = 0.05  # pseudo-images start this far inside [0, 1], where a sigmoid still moves


class Config(FreeBitsConfig):
    """`components` is K. `start`: pseudo-images are at first training images (`data`) or noise around a half.

    `beta` weighs the KL. It is that of all latents together, and so are the `free_bits`.
    """

    tiny: ClassVar[dict[str, Any]] = {**FreeBitsConfig.tiny, "components": 5}
    name: Literal["vamp-vae"] = "vamp-vae"
    latent_dim: int = 40
    components: Annotated[int, Field(gt=0, le=65_536)] = 500
    start: Literal["data", "noise"] = "data"
    beta: Weight = 1.0


class Model(GaussianVAE):
    """The VAE whose prior its own encoder makes; pseudo-images are kept as logits of their pixels."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,)),)
        self.pseudo_KCHW = nn.Parameter(torch.empty(config.components, *info.shape).normal_(std=0.01))

    def begin(self, train: Split) -> None:
        super().begin(train)
        if self.config.start == "noise":
            return
        found, missing = [], self.config.components
        while missing > 0:  # again from the first image where there are too few
            for batch in train.batches(min(missing, 256)):
                found.append(batch.x_BCHW[:missing].cpu())
                missing -= len(found[-1])
                if missing == 0:
                    break
        with torch.no_grad():
            self.pseudo_KCHW.copy_(torch.cat(found).clamp(EDGE, 1 - EDGE).logit())

    # ---- the distributions

    def components(self) -> tuple[Tensor, Tensor]:
        """(mean, logvar) of q(z|u_k), (K, D) each."""
        return self.features(self.pseudo_KCHW.sigmoid())

    def p(self, level: str, given: Values, n: int) -> Distribution:
        mean_NKD, logvar_NKD = (t.expand(n, *t.shape) for t in self.components())
        even_NK = mean_NKD.new_zeros(mean_NKD.shape[:2])
        parts = Independent(Gaussian(mean_NKD, logvar_NKD), 1, validate_args=False)
        return Mixture(Categorical(logits=even_NK, validate_args=False), parts, validate_args=False)

    def log_prior(self, z_BD: Tensor) -> Tensor:
        """log p(z) in nats, (B,)."""
        mean_KD, logvar_KD = self.components()
        log_prob_BK = terms.log_normal(z_BD.unsqueeze(1), mean_KD, logvar_KD).sum(dim=2)
        return log_prob_BK.logsumexp(dim=1) - math.log(len(mean_KD))

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        return super(GaussianVAE, self).posterior(x_BCHW)

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        mean_BD, logvar_BD = self.features(batch.x_BCHW)
        z_BD = terms.reparameterize(mean_BD, logvar_BD)
        recon = -self.likelihood.log_prob(batch.x_BCHW, self.out(z_BD), hyper).mean()
        log_q_B = terms.log_normal(z_BD, mean_BD, logvar_BD).sum(dim=1)
        kl = kl_terms(self.config, (log_q_B - self.log_prior(z_BD)).unsqueeze(1), hyper, hyper["beta"])
        return {"recon": Term(recon), **kl, "elbo": Term(-(recon + kl["kl"].value), None)}

    def kl_weight(self, hyper: Hyper) -> float | None:
        return unless_free(hyper, hyper["beta"])

    def objective_text(self, hyper: Hyper) -> str:
        return (
            f"minimise recon + beta {kl_text(hyper, '')}; beta = {hyper['beta']:.4g}, "
            f"prior of {self.config.components} pseudo-images; "
            f"{self.likelihood.text(hyper)}; {terms.UNITS}"
        )


class Mixture(MixtureSameFamily):
    """A mixture that draws of each row's chosen component alone: n draws take no n K D numbers."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if tuple(sample_shape):
            return super().sample(sample_shape)  # type: ignore[no-any-return, no-untyped-call]
        with torch.no_grad():
            parts: Any = self.component_distribution
            chosen_N = torch.multinomial(self.mixture_distribution.probs, 1)[:, 0]
            rows_N = torch.arange(len(chosen_N), device=chosen_N.device)
            logvar_ND = parts.base_dist.logvar[rows_N, chosen_N]
            return terms.reparameterize(parts.base_dist.loc[rows_N, chosen_N], logvar_ND)
