"""Variational autoencoder: maximises the evidence lower bound.

Kingma & Welling 2014, "Auto-Encoding Variational Bayes", eq. 3:
loss = -E_q(z|x)[log p(x|z)] + KL(q(z|x) || p(z)).
"""

from typing import Literal

from torch import Tensor

from vaecli.models.base import GaussianVAE, Hyper, NetConfig, Posterior, Term
from vaecli.objectives import terms


class Config(NetConfig):
    """A VAE has no settings beyond its latents, likelihood and net."""

    name: Literal["vae"] = "vae"


class Model(GaussianVAE):
    """The VAE; `beta-vae` at beta = 1."""

    config: Config

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        return {"kl": Term(q.kl_BD.sum(dim=1).mean())}

    def kl_weight(self, hyper: Hyper) -> float:
        return 1.0

    def objective_text(self, hyper: Hyper) -> str:
        return f"minimise recon + KL; {self.likelihood.text(hyper)}; {terms.UNITS}"
