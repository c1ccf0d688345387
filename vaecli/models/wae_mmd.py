"""WAE-MMD: an autoencoder whose codes, taken together, are to be distributed as the prior.

Tolstikhin et al. 2018, "Wasserstein Auto-Encoders", algorithm 2, with a deterministic encoder:
loss = |x - D(E(x))|^2 + lambda MMD^2(q(z), p(z)), by default with the inverse multiquadratic kernel summed over seven
scales. The default likelihood, a Gaussian of variance 1/2, is the squared error and a constant.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Hyper, Level, NetConfig, NetModel, Term, Values
from vaecli.objectives import likelihoods, terms
from vaecli.objectives.distributions import Point
from vaecli.objectives.mmd import Kernel, mmd2
from vaecli.settings.schedules import Weight
from vaecli.settings.section import Positive


class Config(NetConfig):
    """`strength` is lambda, which counts against a squared error summed over pixels. The kernel is summed over `scales`
    s: 2 D s / (2 D s + |a - b|^2) for `imq`, exp(-|a - b|^2 / (2 D s)) for `rbf`."""

    name: Literal["wae-mmd"] = "wae-mmd"
    likelihood: likelihoods.LikelihoodConfig = likelihoods.GaussianLikelihoodConfig(sigma=math.sqrt(0.5))
    strength: Weight = 10.0
    kernel: Kernel = "imq"
    scales: list[Positive] = Field(default=[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0], min_length=1, max_length=64)


class Model(NetModel):
    """z = E(x), a point; the prior N(0, I) is what all points together are pressed to."""

    config: Config
    batch_dependent = True
    least_batch = 2

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), "point", standard=True),)

    def features(self, x_BCHW: Tensor) -> Tensor:
        return self.network(self.encoder, x_BCHW)

    def q(self, level: str, features: Tensor, given: Values) -> Point:
        return Point(features)

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        z_BD = self.features(batch.x_BCHW)
        return {
            "recon": Term(-self.log_prob(batch.x_BCHW, {"z": z_BD}, hyper).mean()),
            "mmd": Term(
                mmd2(z_BD, torch.randn_like(z_BD), self.config.kernel, self.config.scales), hyper["strength"], "1"
            ),
        }

    def objective_text(self, hyper: Hyper) -> str:
        return (
            f"minimise recon + lambda MMD^2({self.config.kernel}, {len(self.config.scales)} scales); "
            f"lambda = {hyper['strength']:.4g}; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )
