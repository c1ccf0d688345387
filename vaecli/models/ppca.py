"""Probabilistic PCA: the linear Gaussian model at its largest likelihood, to which a linear VAE converges.

Tipping & Bishop 1999, "Probabilistic Principal Component Analysis", section 3: x = mean + W z + noise, z ~ N(0, I),
noise ~ N(0, s^2 I); s^2 is the mean of the eigenvalues left out and W = V sqrt(eigenvalues - s^2). With these axes
q(z|x) is exactly a Gaussian of independent latents, of variances s^2 / eigenvalue, so the ELBO is log p(x) itself.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from vaecli.batch import DataInfo, Split
from vaecli.errors import InputError
from vaecli.models._linear import LinearConfig, LinearModel, Moments, Stop
from vaecli.models.base import Hyper, Level, Values
from vaecli.objectives import terms
from vaecli.objectives.distributions import Gaussian, Standard


class Config(LinearConfig):
    """Components kept."""

    name: Literal["ppca"] = "ppca"


class Model(LinearModel):
    """q(z|x) = N((x - mean) V sqrt(l - s^2) / l, s^2 / l) with l the eigenvalues, p(x|z) = N(mean + W z, s^2 I)."""

    has_likelihood = True
    noise: Tensor  # s^2

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), standard=True),)
        self.register_buffer("noise", torch.ones(()))

    def maps(
        self, axes_PD: Tensor, value_D: Tensor, moments: Moments, train: Split, stop: Stop
    ) -> tuple[Tensor, Tensor]:
        left, total = self.info.pixels - len(value_D), float(moments.scatter_PP.trace() / moments.count)
        noise = (total - float(value_D.sum())) / left if left else 0.0
        if not noise > 1e-12 * total:
            raise InputError(f"{len(value_D)} components leave no variance for the noise", "lower model.latent_dim")
        self.noise.fill_(noise)
        scale_D = (value_D - noise).sqrt()
        return axes_PD * scale_D / value_D, (axes_PD * scale_D).T

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        mean_BD = (features.flatten(1) - self.mean_P) @ self.encode_PD
        return Gaussian(mean_BD, (self.noise / self.eigenvalue_D).log().expand_as(mean_BD))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        return Standard((n, self.config.latent_dim), self.device)

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return terms.gaussian_log_prob(x_BCHW, self.image(values), math.sqrt(float(self.noise)))

    def objective_text(self, hyper: Hyper) -> str:
        return "maximise log p(x), in closed form; Gaussian likelihood, one variance; nats, sum over pixels"
