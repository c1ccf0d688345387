"""One Gaussian with a full covariance, at the codes' mean.

Its maximum-likelihood fit: mean and covariance (divided by N) of the codes (Ghosh et al. 2020, section 4, "N").
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaecli.densities import base


class Config(base.DensityConfig):
    """Nothing to set."""

    name: Literal["normal"] = "normal"


class Density(base.Density):
    mean_D: Tensor
    factor_DD: Tensor

    def __init__(self, config: Config, latents: int) -> None:
        super().__init__(config, latents)
        self.register_buffer("mean_D", torch.zeros(latents, dtype=torch.float64))
        self.register_buffer("factor_DD", torch.eye(latents, dtype=torch.float64))

    def fit(self, codes_ND: Tensor, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        self.mean_D.copy_(codes_ND.mean(dim=0))
        self.factor_DD.copy_(base.cholesky(torch.cov(codes_ND.T, correction=0).reshape(self.latents, self.latents)))
        progress(len(codes_ND))

    def sample(self, n: int) -> Tensor:
        eps_ND = torch.randn(n, self.latents, dtype=torch.float64)
        return (self.mean_D + eps_ND @ self.factor_DD.T).float()

    def log_prob(self, z_BD: Tensor) -> Tensor:
        density = MultivariateNormal(self.mean_D, scale_tril=self.factor_DD, validate_args=False)
        found: Tensor = density.log_prob(z_BD.double())  # type: ignore[no-untyped-call]
        return found

    def text(self) -> str:
        return "a Gaussian with full covariance"
