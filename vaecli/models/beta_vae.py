"""beta-VAE: weighs the KL by beta, for disentangled latents.

Higgins et al. 2017, "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", eq. 4:
loss = -E_q(z|x)[log p(x|z)] + beta KL(q(z|x) || p(z)).
"""

from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor

from vaecli.models.base import FreeBitsConfig, GaussianVAE, Hyper, Posterior, Term, kl_terms, kl_text, unless_free
from vaecli.objectives import terms
from vaecli.settings.schedules import Weight


class Config(FreeBitsConfig):
    """`beta`, or `beta_norm` = beta * latent_dim / (C H W), which carries over between image and latent sizes."""

    name: Literal["beta-vae"] = "beta-vae"
    beta: Weight | None = 4.0
    beta_norm: Weight | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, data: Any) -> Any:
        # Setting `beta` to None here lets a dumped section, which names every field, be read back.
        if isinstance(data, dict) and data.get("beta_norm") is not None:
            if data.get("beta") is not None:
                raise ValueError("`beta` and `beta_norm` exclude each other; leave one out or set it to null")
            return {**data, "beta": None}
        return data

    @model_validator(mode="after")
    def _one_at_least(self) -> "Config":
        if self.beta is None and self.beta_norm is None:
            raise ValueError("give `beta` or `beta_norm`")
        return self


class Model(GaussianVAE):
    """The VAE with a weight, constant or scheduled, on the KL."""

    config: Config

    def beta(self, hyper: Hyper) -> float:
        """The weight of the KL, whichever way it was given."""
        if self.config.beta_norm is None:
            return hyper["beta"]
        return terms.beta_from_norm(hyper["beta_norm"], self.config.latent_dim, self.info.pixels)

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        return kl_terms(self.config, q.kl_BD, hyper, self.beta(hyper))

    def kl_weight(self, hyper: Hyper) -> float | None:
        return unless_free(hyper, self.beta(hyper))

    def objective_text(self, hyper: Hyper) -> str:
        beta = self.beta(hyper)
        norm = terms.norm_from_beta(beta, self.config.latent_dim, self.info.pixels)
        weight = f"beta = {beta:.4g} (beta_norm = {norm:.3g})"
        return f"minimise recon + beta {kl_text(hyper)}; {weight}; {self.likelihood.text(hyper)}; {terms.UNITS}"
