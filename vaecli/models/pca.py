"""PCA: the first principal components, mean-centred and not scaled; a baseline without training.

Pearson 1901; Higgins et al. 2017, "beta-VAE", table 1 (their row is the whitened one, `pca-white`, which scores alike).
z = (x - mean) V with V the eigenvectors of the exact covariance to its largest eigenvalues. No linear map of so few
numbers leaves a smaller squared error. Without noise it has no likelihood: that is `ppca`.
"""

from typing import Literal

from torch import Tensor

from vaecli.batch import Split
from vaecli.models._linear import LinearConfig, LinearModel, Moments, Stop


class Config(LinearConfig):
    """Components kept."""

    name: Literal["pca"] = "pca"


class Model(LinearModel):
    """The codes' variances are the eigenvalues; near-equal ones leave their axes free to turn in their plane."""

    def maps(
        self, axes_PD: Tensor, value_D: Tensor, moments: Moments, train: Split, stop: Stop
    ) -> tuple[Tensor, Tensor]:
        return axes_PD, axes_PD.T
