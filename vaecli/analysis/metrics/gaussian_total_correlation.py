"""Total correlation of the means as if they were Gaussian; no factors needed, lower is more independent.

The unsupervised score of disentanglement_lib (Locatello et al. 2019): 1/2 (sum log C_ii - log det C) nats of the
covariance C of the means, over all rows. It depends on the correlations alone, and latents that never vary add 0.
"""

import math

import numpy as np

from vaecli.analysis.metrics._information import varies
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ()


def score(codes: Codes, seed: int) -> Score:
    """Infinite where one latent is a linear function of others."""
    varying_D = varies(codes.mean_ND)
    settings = {"points": len(codes)}
    if not varying_D.any():
        return Score({"gaussian_total_correlation": 0.0}, settings, notes=("no latent varies.",))
    standard_ND = codes.mean_ND[:, varying_D] - codes.mean_ND[:, varying_D].mean(axis=0)
    standard_ND /= standard_ND.std(axis=0)
    correlation_DD = standard_ND.T @ standard_ND / len(codes)
    eigenvalues_D = np.linalg.eigvalsh(correlation_DD)
    matrices = {"correlation": correlation_DD}
    if eigenvalues_D[0] <= 1e-12 * len(eigenvalues_D):
        note = "infinite: a latent is a linear function of the others."
        return Score({"gaussian_total_correlation": math.inf}, settings, matrices, (note,))
    correlation = max(0.0, float(-0.5 * np.log(eigenvalues_D).sum()))
    return Score({"gaussian_total_correlation": correlation}, settings, matrices)
