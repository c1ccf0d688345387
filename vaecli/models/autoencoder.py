"""Deterministic autoencoder: reconstruction alone, a baseline without prior or KL.

Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks":
loss = -log p(x | decoder input encoder(x)).
"""

from typing import Literal

from torch import Tensor

from vaecli.batch import Batch
from vaecli.models.base import Hyper, NetConfig, NetModel, NoPrior, Posterior


class Config(NetConfig):
    """Code size, likelihood and net, as for the VAE it is compared with."""

    name: Literal["autoencoder"] = "autoencoder"


class Model(NetModel):
    """z = encoder(x): a point, not a distribution."""

    config: Config

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        return Posterior(self.network(self.encoder, x_BCHW))

    def loss(self, batch: Batch, hyper: Hyper, phase: str = "main") -> dict[str, Tensor]:
        recon = self.nll(batch.x_BCHW, self.posterior(batch.x_BCHW).mean_BD, hyper).mean()
        return {"loss": recon, "recon": recon}

    def prior(self, n: int, temperature: float = 1.0) -> Tensor:
        raise NoPrior(
            "a deterministic autoencoder has no prior to sample from",
            hint="train a model with one (vae, beta-vae), or fit a density to its codes after training",
        )

    def objective_text(self, hyper: Hyper) -> str:
        return f"minimise recon; {self.likelihood.text(hyper)}; nats, sum over pixels, mean over the batch"
