"""Whitened PCA: the first principal components divided by their standard deviations; a baseline without training.

Higgins et al. 2017, "beta-VAE", table 1, row "PCA": 10 components of the pixels, 60.8 % of the variance of 2D shapes.
"""

from typing import Literal

from torch import Tensor

from vaecli.batch import Split
from vaecli.models._linear import LinearConfig, LinearModel, Moments, Stop, whitened


class Config(LinearConfig):
    """Components kept."""

    name: Literal["pca-white"] = "pca-white"


class Model(LinearModel):
    """z = (x - mean) V / sqrt(eigenvalues): mean 0, variance 1, uncorrelated."""

    def maps(
        self, axes_PD: Tensor, value_D: Tensor, moments: Moments, train: Split, stop: Stop
    ) -> tuple[Tensor, Tensor]:
        return whitened(axes_PD, value_D)
