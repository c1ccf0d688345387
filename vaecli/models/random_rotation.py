"""Whitened PCA turned by a random orthogonal matrix: the control for `ica`; a baseline without training.

ICA of whitened components is a rotation of them. What it gains over one drawn at random is what independence is worth.
"""

from typing import Literal

from torch import Tensor

from vaecli.batch import Split
from vaecli.models._linear import LinearConfig, LinearModel, Moments, Stop, random_rotation, whitened


class Config(LinearConfig):
    """Components kept. The rotation is drawn from the seed of the run."""

    name: Literal["random-rotation"] = "random-rotation"


class Model(LinearModel):
    """The codes of `pca-white` times a matrix that is uniform over all rotations and reflections."""

    def maps(
        self, axes_PD: Tensor, value_D: Tensor, moments: Moments, train: Split, stop: Stop
    ) -> tuple[Tensor, Tensor]:
        encode_PD, decode_DP = whitened(axes_PD, value_D)
        turn_DD = random_rotation(len(value_D)).to(axes_PD.device)
        return encode_PD @ turn_DD, turn_DD.T @ decode_DP
