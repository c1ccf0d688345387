"""Wasserstein distance of the means to independence, as if they were Gaussian; no factors needed, lower is better.

The unsupervised score of disentanglement_lib (Locatello et al. 2019): the squared 2-Wasserstein distance of N(0, C) and
N(0, diag C), 2 tr C - 2 tr (diag(C)^1/2 C diag(C)^1/2)^1/2, with C the covariance of the means over all rows; and the
same divided by tr C, which does not depend on the scale of the code.
"""

import numpy as np

from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ()


def score(codes: Codes, seed: int) -> Score:
    """Both are 0 for a code that does not vary."""
    centred_ND = codes.mean_ND - codes.mean_ND.mean(axis=0)
    covariance_DD = centred_ND.T @ centred_ND / (len(codes) - 1)
    std_D = np.sqrt(np.diag(covariance_DD))
    trace = float(np.trace(covariance_DD))
    eigenvalues_D = np.linalg.eigvalsh(covariance_DD * np.outer(std_D, std_D))
    distance = max(0.0, 2 * trace - 2 * float(np.sqrt(np.maximum(eigenvalues_D, 0.0)).sum()))
    return Score(
        {
            "wasserstein_correlation": distance,
            "wasserstein_correlation_normalised": distance / trace if trace > 0 else 0.0,
        },
        {"points": len(codes)},
        {"covariance": covariance_DD},
    )
