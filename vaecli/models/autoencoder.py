"""Deterministic autoencoder: reconstruction alone, a baseline without prior or KL.

Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks":
loss = -log p(x | decoder input encoder(x)).
"""

from typing import Literal

from torch import Tensor

from vaecli import likelihoods, nets
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import GaussianConfig, Hyper, NoPrior, Posterior
from vaecli.models.base import Model as Base


class Config(GaussianConfig):
    """Code size, likelihood and net, as for the VAE it is compared with."""

    name: Literal["autoencoder"] = "autoencoder"


class Model(Base):
    """z = encoder(x): a point, not a distribution."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.groups = {"z": config.latent_dim}
        self.encoder, self.decoder = nets.build(config.net, info.shape, config.latent_dim, config.latent_dim)
        self.likelihood = likelihoods.build(config.likelihood)

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        return Posterior(self.encoder(x_BCHW))

    def decode(self, z_BD: Tensor) -> Tensor:
        return self.likelihood.mean(self.decoder(z_BD))

    def nll(self, x_BCHW: Tensor, z_BD: Tensor, hyper: Hyper) -> Tensor:
        return -self.likelihood.log_prob(x_BCHW, self.decoder(z_BD), hyper)

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
