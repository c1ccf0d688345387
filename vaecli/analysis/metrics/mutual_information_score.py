"""Mean mutual information of two latents (20 bins, means); no factors needed, lower is more independent.

The unsupervised score of disentanglement_lib (Locatello et al. 2019). Nats.
"""

import numpy as np

from vaecli.analysis.metrics._information import BINS, binned, mutual_information, sample
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ()


def score(codes: Codes, seed: int) -> Score:
    """NaN for a single latent."""
    codes = sample(codes, seed)
    settings = {"points": len(codes), "bins": BINS}
    if codes.latents == 1:
        return Score({"mutual_information_score": float("nan")}, settings, notes=("there is only one latent.",))
    bins_ND = binned(codes.mean_ND)
    mi_DD = mutual_information(bins_ND, bins_ND)
    value = float(mi_DD[~np.eye(codes.latents, dtype=bool)].mean())
    return Score({"mutual_information_score": value}, settings, {"mutual_information_of_latents": mi_DD})
