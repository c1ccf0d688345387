"""MIG-sup: per latent, how far its best factor is ahead of its second best.

Li et al., "Progressive Learning and Disentanglement of Hierarchical Representations" (2020): mean over
latents of I(z; v_(1)) - I(z; v_(2)), each information divided by H(v). Latents that know nothing count 0, so the value
over the active latents is the one to read.
"""

import numpy as np

from vaecli.analysis.metrics._information import best_two, measure
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ("factors",)


def score(codes: Codes, seed: int) -> Score:
    """With a single factor the second best counts 0."""
    found = measure(codes, seed)
    h_K = found.factor_entropy_K
    share_DK = np.divide(found.mi_DK, h_K, out=np.zeros_like(found.mi_DK), where=h_K > 0)
    best_D, second_D = best_two(share_DK, axis=1)
    value = float((best_D - second_D).mean())
    return Score({"mig_sup": value}, found.settings, {"normalised_information": share_DK}, found.notes)
