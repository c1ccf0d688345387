"""DIP-VAE-II: presses the covariance of the codes themselves to the identity.

Kumar et al. 2018, "Variational Inference of Disentangled Latent Concepts from Unlabeled Observations", eq. 7:
loss = -E_q(z|x)[log p(x|z)] + KL(q(z|x) || p(z)) + lambda_od sum_i!=j C_ij^2 + lambda_d sum_i (C_ii - 1)^2,
C = Cov[z] = Cov[mu(x)] + E[diag sigma^2(x)].
"""

from typing import Literal

from torch import Tensor

from vaecli.models._dip_vae import DipConfig, DipModel
from vaecli.models.base import Posterior
from vaecli.objectives.covariance import covariance


class Config(DipConfig):
    """`lambda_od` weighs the squared covariances, `lambda_d` (`lambda_od` if left out) the variances less 1."""

    multiple = 1.0
    name: Literal["dip-vae-ii"] = "dip-vae-ii"


class Model(DipModel):
    """The VAE with the penalty on Cov[z], z ~ q(z)."""

    config: Config
    of = "Cov[mu] + E[sigma^2]"

    def covariance(self, q: Posterior) -> Tensor:
        return covariance(q.mean_BD, q.logvar_BD)
