"""CIWAE: a mixture of the ELBO and the IWAE bound of the same draws.

Rainforth et al. 2018, "Tighter Variational Bounds are Not Necessarily Better", section 6:
loss = -[beta (1/K) sum_k log w_k + (1 - beta) log (1/K) sum_k w_k], w_k = p(x, z_k) / q(z_k|x).
beta = 0 is IWAE, beta = 1 the VAE with K draws; between them the encoder's gradient keeps the ELBO's signal.
"""

from typing import Literal

from vaecli.batch import Batch
from vaecli.models import _importance
from vaecli.models.base import Hyper, Term
from vaecli.objectives import terms
from vaecli.settings.section import Fraction


class Config(_importance.Config):
    """`beta` is the share of the ELBO, `samples` K. The rest is as in `iwae`."""

    name: Literal["ciwae"] = "ciwae"
    samples: _importance.Samples = 64
    beta: Fraction = 0.05


class Model(_importance.Model):
    """IWAE's model, trained by a bound between the ELBO and IWAE's."""

    config: Config

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        return self.bound(batch, hyper, 1, self.config.samples, self.config.beta, self.config.gradient)

    def kl_weight(self, hyper: Hyper) -> float | None:
        """1 where the bound is the ELBO; else it is no sum of a reconstruction and a KL."""
        return 1.0 if self.config.samples == 1 or self.config.beta == 1 else None

    def objective_text(self, hyper: Hyper) -> str:
        beta, k = self.config.beta, self.config.samples
        return (
            f"minimise beta (-ELBO) + (1 - beta) (-IWAE bound), beta = {beta:.4g}, K = {_importance.draws_text(k)} an "
            f"image, {self.config.gradient} gradient; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )
