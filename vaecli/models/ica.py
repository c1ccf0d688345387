"""ICA: whitened PCA, turned by FastICA to axes that are as independent as can be; a baseline without training.

Hyvarinen 1999, "Fast and Robust Fixed-Point Algorithms for Independent Component Analysis"; Higgins et al. 2017,
"beta-VAE", table 1. Log cosh, all components at once, at most 200 iterations, from a random start. After whitening what
is left to find is a rotation in so many dimensions as there are latents, for which 30,000 images are enough; so all
images fit, and the paper's fits to pairs of shapes (`ica-pairs`) are not needed. On dSprites it does not converge: the
position's components have no unique independent axes, and scores differ by 10 points between seeds, as the paper's do.
"""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from vaecli import output
from vaecli.batch import Split
from vaecli.errors import ConfigError
from vaecli.models._linear import LinearConfig, LinearModel, Moments, Progress, Stop, whitened

ROWS = 30_000  # images that the rotation is found on
ITERATIONS = 200
TOLERANCE = 1e-4


class Config(LinearConfig):
    """Components kept. The start of FastICA is drawn from the seed of the run."""

    name: Literal["ica"] = "ica"


class Model(LinearModel):
    """z = (x - mean) V / sqrt(eigenvalues) R^T with R orthogonal; decoding is the mixing matrix."""

    converged: Tensor

    def __init__(self, config: LinearConfig, info: Any) -> None:
        super().__init__(config, info)
        self.register_buffer("converged", torch.zeros((), dtype=torch.bool))

    def fit(self, train: Split, stop: Stop, progress: Progress) -> None:
        """ConfigError, before anything is read, where scikit-learn is not installed."""
        _fast_ica()
        super().fit(train, stop, progress)

    def maps(
        self, axes_PD: Tensor, value_D: Tensor, moments: Moments, train: Split, stop: Stop
    ) -> tuple[Tensor, Tensor]:
        encode_PD, decode_DP = whitened(axes_PD, value_D)
        turn_DD = self.rotation(self.sample(encode_PD, moments, train, stop).cpu()).to(axes_PD.device)
        return encode_PD @ turn_DD.T, turn_DD @ decode_DP

    def sample(self, encode_PD: Tensor, moments: Moments, train: Split, stop: Stop) -> Tensor:
        """Whitened codes of the first images of the split, which is in random order: (M, D)."""
        parts, count = [], 0
        for _, x_BP in self.blocks(train):
            parts.append((x_BP - moments.mean_P) @ encode_PD)
            count += len(parts[-1])
            if count >= min(ROWS, moments.count) or stop():
                break
        return torch.cat(parts)[:ROWS]

    def rotation(self, white_MD: Tensor) -> Tensor:
        """R (D, D), orthogonal, whose rows are the axes; a warning where it did not converge."""
        start = int(torch.randint(2**31 - 1, ()))
        ica = _fast_ica()(
            whiten=False, fun="logcosh", algorithm="parallel", max_iter=ITERATIONS, tol=TOLERANCE, random_state=start
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said below, once and in our words
            ica.fit(white_MD.numpy())
        self.converged.fill_(ica.n_iter_ < ITERATIONS)
        if not self.converged:
            output.warning(f"FastICA did not converge in {ITERATIONS} iterations: its axes depend on the seed")
        return torch.from_numpy(ica.components_.copy())


def _fast_ica() -> Any:
    """scikit-learn's class."""
    try:
        from sklearn.decomposition import FastICA
    except ImportError:
        raise ConfigError("ica needs scikit-learn", 'pip install "vaecli[analyze]"') from None
    return FastICA
