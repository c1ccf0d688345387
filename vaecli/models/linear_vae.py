"""Linear VAE: the optimum of its ELBO in closed form, for a decoder variance learned or fixed, and for any beta.

Lucas et al. 2019, "Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse": decoder W z + mean with noise
N(0, s^2 I), encoder N(V' (x - mean), D). At the optimum the columns of W are principal axes of length
sqrt(eigenvalue - beta s^2): the latents whose eigenvalue is not above beta s^2 have collapsed, which is no fault of any
training. q(z|x) has variance beta s^2 / eigenvalue, the KL is the sum of log(eigenvalue / (beta s^2)) / 2 over the
active latents. At beta = 1 with learned variance it is `ppca` wherever that has no collapsed latent.
"""

from typing import Any, ClassVar, Literal

from torch import Tensor

from vaecli.errors import InputError
from vaecli.models import ppca
from vaecli.models._linear import LinearConfig
from vaecli.models.base import Hyper
from vaecli.settings.section import Positive


class Config(LinearConfig):
    """`variance`: that of the decoder's noise, a pixel's, or `learned`. `beta`: the weight of the KL."""

    tiny: ClassVar[dict[str, Any]] = {"latent_dim": 3, "variance": 0.05}
    name: Literal["linear-vae"] = "linear-vae"
    variance: Positive | Literal["learned"] = "learned"
    beta: Positive = 1.0


class Model(ppca.Model):
    """`threshold` is beta s^2, above which an eigenvalue makes its latent active."""

    config: Config

    @property
    def beta(self) -> float:
        return self.config.beta

    def noise_variance(self, value_D: Tensor, total: float) -> float:
        """The s^2 given, or that of the largest ELBO: what A active latents explain leaves total - sum of their
        eigenvalues, and they return beta s^2 each, so that P s^2 = left + A beta s^2, for the A that goes with it."""
        if self.config.variance != "learned":
            return self.config.variance
        beta, pixels = self.config.beta, self.info.pixels
        for active in range(len(value_D), -1, -1):
            left = total - float(value_D[:active].sum())
            freedom = pixels - active * beta
            if freedom <= 0 or not left > 1e-12 * total:
                continue
            noise = left / freedom
            if active == 0 or float(value_D[active - 1]) > beta * noise:
                return noise
        raise InputError(f"{len(value_D)} components leave no variance for the noise", "lower model.latent_dim")

    def kl_weight(self, hyper: Hyper) -> float:
        return self.config.beta

    def objective_text(self, hyper: Hyper) -> str:
        variance = self.config.variance
        noise = "learned variance" if variance == "learned" else f"variance {variance:g}"
        weighed = "KL" if self.config.beta == 1 else f"{self.config.beta:g} * KL"
        return f"minimise recon + {weighed}, in closed form; Gaussian likelihood, {noise}; nats, sum over pixels"
