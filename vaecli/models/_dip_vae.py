"""What the two DIP-VAEs share: a VAE with a penalty on a covariance of its codes."""

from typing import ClassVar

from torch import Tensor

from vaecli.models.base import FreeBitsConfig, GaussianVAE, Hyper, Posterior, Term, kl_terms, kl_text, unless_free
from vaecli.objectives import terms
from vaecli.objectives.covariance import from_identity
from vaecli.settings.schedules import Weight


class DipConfig(FreeBitsConfig):
    """`lambda_od` weighs the squared covariances off the diagonal, `lambda_d` those of the variances less 1; left out,
    `lambda_d` is a multiple of `lambda_od`, as in the paper and in later studies. `beta` weighs the KL."""

    multiple: ClassVar[float]
    lambda_od: Weight = 10.0
    lambda_d: Weight | None = None
    beta: Weight = 1.0


class DipModel(GaussianVAE):
    """loss = recon + beta KL + lambda_od sum_i!=j C_ij^2 + lambda_d sum_i (C_ii - 1)^2."""

    config: DipConfig
    batch_dependent = True
    least_batch = 2
    of: ClassVar[str]  # what C is the covariance of, for the banner

    def covariance(self, q: Posterior) -> Tensor:
        """C, (D, D)."""
        raise NotImplementedError

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        off, diagonal = from_identity(self.covariance(q))
        return {
            **kl_terms(self.config, q.kl_BD, hyper, hyper["beta"]),
            "off_diagonal": Term(off, hyper["lambda_od"], "1"),
            "diagonal": Term(diagonal, self.lambda_d(hyper), "1"),
        }

    def lambda_d(self, hyper: Hyper) -> float:
        """The weight of the diagonal, whichever way it was given."""
        return self.config.multiple * hyper["lambda_od"] if self.config.lambda_d is None else hyper["lambda_d"]

    def kl_weight(self, hyper: Hyper) -> float | None:
        alone = hyper["lambda_od"] == 0 and self.lambda_d(hyper) == 0
        return unless_free(hyper, hyper["beta"]) if alone else None

    def objective_text(self, hyper: Hyper) -> str:
        weights = (
            f"lambda_od = {hyper['lambda_od']:.4g}, lambda_d = {self.lambda_d(hyper):.4g}, beta = {hyper['beta']:.4g}"
        )
        return (
            f"minimise recon + beta {kl_text(hyper)} + lambda_od |C off its diagonal|^2 + lambda_d |diag C - 1|^2, "
            f"C = {self.of} over the batch; {weights}; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )
