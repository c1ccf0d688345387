"""Mutual information gap: per factor, how far its best latent is ahead of its second best (20 bins, means).

Chen et al. 2018, with the histogram estimator of disentanglement_lib (Locatello et al. 2019): mean over factors
of [I(z_(1); v) - I(z_(2); v)] / H(v). A bin that holds two values of a factor keeps the score below 1: the ceiling of
32 or 40 values in 20 bins is about 0.8.
"""

from vaecli.analysis.metrics._information import best_two, measure
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ("factors",)


def score(codes: Codes, seed: int) -> Score:
    """With a single latent the second best counts 0."""
    found = measure(codes, seed)
    best_K, second_K = best_two(found.mi_DK, axis=0)
    return Score({"mig": found.mean_share(best_K - second_K)}, found.settings, found.matrices, found.notes)
