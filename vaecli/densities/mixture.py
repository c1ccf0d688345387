"""A mixture of Gaussians with full covariances, by expectation maximisation.

The ex-post density of Ghosh et al. 2020 (10 components), fitted by scikit-learn from k-means.
"""

import importlib.util
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vaecli.densities import base
from vaecli.errors import ConfigError

REGULARISED = 1e-6  # of the codes' mean variance, on every component's diagonal


class Config(base.DensityConfig):
    """`components`: how many Gaussians; a bound keeps a hostile file from reaching an allocation."""

    name: Literal["mixture"] = "mixture"
    components: Annotated[int, Field(gt=0, le=4096)] = 10


class Density(base.Density):
    config: Config
    weight_K: Tensor
    mean_KD: Tensor
    factor_KDD: Tensor

    def __init__(self, config: Config, latents: int) -> None:
        super().__init__(config, latents)
        k = config.components
        self.register_buffer("weight_K", torch.full((k,), 1 / k, dtype=torch.float64))
        self.register_buffer("mean_KD", torch.zeros(k, latents, dtype=torch.float64))
        self.register_buffer("factor_KDD", torch.eye(latents, dtype=torch.float64).repeat(k, 1, 1))

    def check(self, codes: int) -> None:
        if self.config.components > codes:
            raise ConfigError(
                f"{self.config.components:,} components, but only {codes:,} codes", "take fewer components"
            )
        if importlib.util.find_spec("sklearn") is None:
            raise ConfigError("a mixture is fitted by scikit-learn", 'pip install "vaecli[analyze]"')

    def fit(self, codes_ND: Tensor, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        self.check(len(codes_ND))
        from sklearn.mixture import GaussianMixture

        variance = float(codes_ND.var(dim=0, correction=0).mean())
        # Scaled to variance one, so that the regularisation means the same for every code.
        mixture = GaussianMixture(
            self.config.components, covariance_type="full", tol=1e-3, max_iter=2000, reg_covar=REGULARISED,
            random_state=int(torch.randint(2**31, ())),
        )  # fmt: skip
        scale = max(variance, 1e-300) ** 0.5
        mixture.fit((codes_ND / scale).numpy())
        self.weight_K.copy_(torch.from_numpy(mixture.weights_))
        self.mean_KD.copy_(torch.from_numpy(mixture.means_) * scale)
        self.factor_KDD.copy_(base.cholesky(torch.from_numpy(mixture.covariances_)) * scale)
        progress(len(codes_ND))

    def sample(self, n: int) -> Tensor:
        chosen_N = torch.multinomial(self.weight_K, n, replacement=True)
        eps_ND = torch.randn(n, self.latents, 1, dtype=torch.float64)
        return (self.mean_KD[chosen_N] + (self.factor_KDD[chosen_N] @ eps_ND).squeeze(2)).float()

    def log_prob(self, z_BD: Tensor) -> Tensor:
        parts = MultivariateNormal(self.mean_KD, scale_tril=self.factor_KDD, validate_args=False)
        mixture = MixtureSameFamily(Categorical(self.weight_K), parts, validate_args=False)
        found: Tensor = mixture.log_prob(z_BD.double())  # type: ignore[no-untyped-call]
        return found

    def text(self) -> str:
        return f"a mixture of {self.config.components} Gaussians with full covariances"
