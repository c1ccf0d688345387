"""InfoVAE: trades the KL of single images for the distance of all codes together from the prior.

Zhao et al. 2019, "InfoVAE: Balancing Learning and Inference in Variational Autoencoders", section 3, with an MMD as
the divergence of q(z) from the prior:
loss = -E_q(z|x)[log p(x|z)] + (1 - alpha) KL(q(z|x) || p(z)) + (alpha + lambda - 1) MMD^2(q(z), p(z)).
alpha = 1 is the MMD-VAE, which leaves the information in z about x free; alpha = 0, lambda = 1 the VAE.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from vaecli.models.base import FreeBitsConfig, GaussianVAE, Hyper, Posterior, Term, kl_terms, kl_text, unless_free
from vaecli.objectives import terms
from vaecli.objectives.mmd import Kernel, mmd2
from vaecli.settings import schedules
from vaecli.settings.schedules import Weight
from vaecli.settings.section import Positive


class Config(FreeBitsConfig):
    """`strength` is lambda, which counts against a reconstruction summed over pixels. The kernel is summed over
    `scales` s: exp(-|a - b|^2 / (2 D s)) for `rbf`, 2 D s / (2 D s + |a - b|^2) for `imq`."""

    name: Literal["info-vae"] = "info-vae"
    alpha: Weight = 1.0
    strength: Weight = 1000.0
    kernel: Kernel = "rbf"
    scales: list[Positive] = Field(default=[1.0], min_length=1, max_length=64)

    @model_validator(mode="after")
    def _weights(self) -> "Config":
        if schedules.highest(self.alpha) > 1:
            raise ValueError("`alpha` must never exceed 1: the KL would weigh less than nothing")
        if schedules.lowest(self.alpha) + schedules.lowest(self.strength) < 1:
            raise ValueError("`alpha` + `strength` must be at least 1: the MMD would weigh less than nothing")
        if schedules.highest(self.free_bits) > 0 and schedules.lowest(self.alpha) == 1:
            raise ValueError("`free_bits` would do nothing: at `alpha` = 1 the KL weighs nothing")
        return self


class Model(GaussianVAE):
    """The VAE with an MMD between a batch of codes and as many draws of the prior."""

    config: Config
    batch_dependent = True
    least_batch = 2

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        mmd = mmd2(z_BD, torch.randn_like(z_BD), self.config.kernel, self.config.scales)
        return {
            **kl_terms(self.config, q.kl_BD, hyper, 1 - hyper["alpha"]),
            "mmd": Term(mmd, hyper["alpha"] + hyper["strength"] - 1, "1"),
        }

    def kl_weight(self, hyper: Hyper) -> float | None:
        alone = hyper["alpha"] + hyper["strength"] == 1
        return unless_free(hyper, 1 - hyper["alpha"]) if alone else None

    def objective_text(self, hyper: Hyper) -> str:
        alpha, strength = hyper["alpha"], hyper["strength"]
        return (
            f"minimise recon + {1 - alpha:.4g} {kl_text(hyper)} + {alpha + strength - 1:.4g} "
            f"MMD^2({self.config.kernel}); alpha = {alpha:.4g}, lambda = {strength:.4g}; "
            f"{self.likelihood.text(hyper)}; {terms.UNITS}"
        )
