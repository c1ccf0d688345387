"""What the two DIP-VAEs share: a VAE with a penalty on a covariance of its codes."""

from typing import Any, ClassVar

from pydantic import model_validator
from torch import Tensor

from vaecli.models.base import FreeBitsConfig, GaussianVAE, Hyper, Posterior, Term, kl_terms, kl_text, unless_free
from vaecli.objectives import terms
from vaecli.objectives.covariance import from_identity
from vaecli.settings.schedules import Weight


class DipConfig(FreeBitsConfig):
    """`lambda_od` weighs the squared covariances off the diagonal, `lambda_d` those of the variances less 1; left out,
    `lambda_d` is a multiple of `lambda_od`, as in the paper and in later studies, which may be given in its place as
    `lambda_d_factor` where `lambda_od` is a number. `beta` weighs the KL."""

    also: ClassVar[tuple[str, ...]] = ("lambda_d_factor",)
    multiple: ClassVar[float]
    lambda_od: Weight = 10.0
    lambda_d: Weight | None = None
    beta: Weight = 1.0

    @model_validator(mode="before")
    @classmethod
    def _factor(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "lambda_d_factor" not in data:
            return data
        od, factor = data.get("lambda_od", cls.model_fields["lambda_od"].default), data["lambda_d_factor"]
        if data.get("lambda_d") is not None:
            raise ValueError("`lambda_d_factor` takes the place of `lambda_d`; give one of them")
        if not all(isinstance(number, (int, float)) for number in (od, factor)):
            raise ValueError("`lambda_d_factor` is a number that multiplies `lambda_od`, a number; give `lambda_d`")
        return {**{k: v for k, v in data.items() if k != "lambda_d_factor"}, "lambda_d": float(factor * od)}


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
