"""Deterministic autoencoder: reconstruction alone, a baseline without prior or KL.

Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks":
loss = -log p(x | decoder input encoder(x)).
"""

from typing import Literal

from torch import Tensor
from torch.distributions import Distribution

from vaecli.batch import Batch
from vaecli.models.base import Hyper, NetConfig, NetModel, NoPrior, Term, Values
from vaecli.objectives.distributions import Point


class Config(NetConfig):
    """Code size, likelihood and net, as for the VAE it is compared with."""

    name: Literal["autoencoder"] = "autoencoder"


class Model(NetModel):
    """z = encoder(x): a point, not a distribution."""

    config: Config

    def features(self, x_BCHW: Tensor) -> Tensor:
        return self.network(self.encoder, x_BCHW)

    def q(self, level: str, features: Tensor, given: Values) -> Point:
        return Point(features)

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        return {"recon": Term(-self.log_prob(batch.x_BCHW, {"z": self.features(batch.x_BCHW)}, hyper).mean())}

    def p(self, level: str, given: Values, n: int) -> Distribution:
        raise NoPrior(
            "a deterministic autoencoder has no prior to sample from",
            hint="train a model with one (vae, beta-vae), or fit a density to its codes after training",
        )

    def objective_text(self, hyper: Hyper) -> str:
        return f"minimise recon; {self.likelihood.text(hyper)}; nats, sum over pixels, mean over the batch"
