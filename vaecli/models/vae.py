"""Variational autoencoder: maximises the evidence lower bound.

Kingma & Welling 2014, "Auto-Encoding Variational Bayes", eq. 3:
loss = -E_q(z|x)[log p(x|z)] + KL(q(z|x) || p(z)).
"""

from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor

from vaecli.models.base import FreeBitsConfig, GaussianVAE, Hyper, Posterior, Term, kl_terms, kl_text, unless_free
from vaecli.objectives import terms


class Config(FreeBitsConfig):
    """A VAE has no settings beyond its latents, likelihood, net and free bits."""

    name: Literal["vae"] = "vae"

    @model_validator(mode="before")
    @classmethod
    def _no_weight(cls, data: Any) -> Any:
        if isinstance(data, dict) and "beta" in data:
            raise ValueError("with `beta`, a number or a warm-up, the KL has a weight: set model.name to beta-vae")
        return data


class Model(GaussianVAE):
    """The VAE; `beta-vae` at beta = 1."""

    config: Config

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        return kl_terms(self.config, q.kl_BD, hyper)

    def kl_weight(self, hyper: Hyper) -> float | None:
        return unless_free(hyper, 1.0)

    def objective_text(self, hyper: Hyper) -> str:
        return f"minimise recon + {kl_text(hyper)}; {self.likelihood.text(hyper)}; {terms.UNITS}"
