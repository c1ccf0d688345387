"""MIWAE: the mean of several IWAE bounds, whose gradient for the encoder has less noise than that of one bound.

Rainforth et al. 2018, "Tighter Variational Bounds are Not Necessarily Better", section 6: M groups of K draws,
loss = -(1/M) sum_m log (1/K) sum_k w_mk, w_mk = p(x, z_mk) / q(z_mk|x). M = 1 is IWAE, K = 1 the VAE with M draws.
The signal-to-noise ratio of the gradient goes as sqrt(M / K) for the encoder, as sqrt(M K) for the decoder (theorem 1).
"""

from typing import Literal

from vaecli.batch import Batch
from vaecli.models import _importance
from vaecli.models.base import Hyper, Term
from vaecli.objectives import terms


class Config(_importance.Config):
    """`groups` is M and `samples` K: an image is drawn M K times. The rest is as in `iwae`."""

    name: Literal["miwae"] = "miwae"
    groups: _importance.Samples = 8
    samples: _importance.Samples = 8

    @property
    def draws(self) -> int:
        return self.groups * self.samples


class Model(_importance.Model):
    """IWAE's model, trained by the mean of M bounds of K draws."""

    config: Config

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        return self.bound(batch, hyper, self.config.groups, self.config.samples, gradient=self.config.gradient)

    def kl_weight(self, hyper: Hyper) -> float | None:
        """1 for groups of one draw; with more of them the bound is no sum of a reconstruction and a KL."""
        return 1.0 if self.config.samples == 1 else None

    def objective_text(self, hyper: Hyper) -> str:
        m, k = self.config.groups, self.config.samples
        return (
            f"minimise -(1/M) sum of log (1/K) sum of p(x, z) / q(z|x); M = {m} groups of K = "
            f"{_importance.draws_text(k)} an image, {self.config.gradient} gradient; {self.likelihood.text(hyper)}; "
            f"{terms.UNITS}"
        )
