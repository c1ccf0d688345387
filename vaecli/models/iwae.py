"""IWAE: trains the bound that several weighted draws of the posterior give, tighter than the ELBO.

Burda et al. 2016, "Importance Weighted Autoencoders", eq. 8, of one level of latents or two:
loss = -E log (1/k) sum_i w_i, w_i = p(x, z_i) / q(z_i|x), z_1 ... z_k drawn from q; at k = 1 it is the VAE's.
`gradient: dreg` has the same expectation with less noise for the encoder (Tucker et al. 2019, "Doubly Reparameterized
Gradient Estimators for Monte Carlo Objectives", eq. 8).
"""

from typing import Literal

from vaecli.batch import Batch
from vaecli.models import _importance
from vaecli.models.base import Hyper, Term
from vaecli.objectives import terms


class Config(_importance.Config):
    """`samples` is k. `upper` latents make a second level above the `latent_dim` that the decoder reads, with tanh nets
    of `upper_hidden` between the two, reversed on the way down."""

    name: Literal["iwae"] = "iwae"


class Model(_importance.Model):
    """The VAE, or one of two levels, trained by the bound of k draws."""

    config: Config

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        return self.bound(batch, hyper, 1, self.config.samples, gradient=self.config.gradient)

    def kl_weight(self, hyper: Hyper) -> float | None:
        """1 for one draw; with more of them the bound is no sum of a reconstruction and a KL."""
        return 1.0 if self.config.samples == 1 else None

    def objective_text(self, hyper: Hyper) -> str:
        k = self.config.samples
        how = f"k = {_importance.draws_text(k)} an image, {self.config.gradient} gradient"
        return f"minimise -log (1/k) sum of p(x, z) / q(z|x); {how}; {self.likelihood.text(hyper)}; {terms.UNITS}"
