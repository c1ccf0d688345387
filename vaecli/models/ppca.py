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
    """q(z|x) = N((x - mean) V sqrt(l - t) / l, t / l) with l the eigenvalues and t = beta s^2, here s^2; a latent whose
    eigenvalue is not above t is N(0, 1) whatever x. p(x|z) = N(mean + W z, s^2 I).
    """

    has_likelihood = True
    noise: Tensor  # s^2

    def __init__(self, config: LinearConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), standard=True),)
        self.register_buffer("noise", torch.ones(()))

    @property
    def beta(self) -> float:
        """The weight of the KL."""
        return 1.0

    def noise_variance(self, value_D: Tensor, total: float) -> float:
        """s^2, from the eigenvalues kept and the sum of all."""
        left = self.info.pixels - len(value_D)
        noise = (total - float(value_D.sum())) / left if left else 0.0
        if not noise > 1e-12 * total:
            raise InputError(f"{len(value_D)} components leave no variance for the noise", "lower model.latent_dim")
        return noise

    def maps(
        self, axes_PD: Tensor, value_D: Tensor, moments: Moments, train: Split, stop: Stop
    ) -> tuple[Tensor, Tensor]:
        noise = self.noise_variance(value_D, float(moments.scatter_PP.trace() / moments.count))
        self.noise.fill_(noise)
        scale_D = (value_D - self.beta * noise).clamp(min=0).sqrt()
        return axes_PD * scale_D / value_D, (axes_PD * scale_D).T

    def facts(self) -> dict[str, float]:
        """Over the images fitted to, ELBO and KL exactly: the errors along the axes kept are t each on average, or
        their eigenvalue where inactive (see the module's docstring)."""
        value_D, noise, pixels = self.eigenvalue_D.double(), float(self.noise), self.info.pixels
        total = float(self.total_variance)
        kept_D = value_D.clamp(max=self.beta * noise)
        error = total - float(value_D.sum()) + float(kept_D.sum())
        kl = 0.5 * float((value_D / kept_D).log().sum())
        return {
            **super().facts(),
            "noise_variance": noise,
            "elbo": -0.5 * (pixels * math.log(2 * math.pi * noise) + error / noise) - kl,
            "kl": kl,
            "active_latents": int((value_D > self.beta * noise).sum()),
        }

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        mean_BD = (features.flatten(1) - self.mean_P) @ self.encode_PD
        threshold = self.beta * self.noise
        return Gaussian(mean_BD, (threshold / self.eigenvalue_D.clamp(min=threshold)).log().expand_as(mean_BD))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        return Standard((n, self.config.latent_dim), self.device)

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return terms.gaussian_log_prob(x_BCHW, self.image(values), math.sqrt(float(self.noise)))

    def objective_text(self, hyper: Hyper) -> str:
        return "maximise log p(x), in closed form; Gaussian likelihood, one variance; nats, sum over pixels"
