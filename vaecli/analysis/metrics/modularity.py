"""Modularity: does each latent know one factor only?

Ridgeway & Mozer, "Learning Deep Disentangled Embeddings With the F-Statistic Loss" (2018), section 3, as in
disentanglement_lib: per latent 1 - sum of the other squared informations / (largest squared information (K - 1)), mean
over latents. A latent without any information counts 0, one with a trace of it anything between: read the value over
the active latents.
"""

import numpy as np

from vaecli.analysis.metrics._information import measure
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ("factors",)


def score(codes: Codes, seed: int) -> Score:
    """NaN for a single factor, which any latent knows alone."""
    found = measure(codes, seed)
    factors = found.mi_DK.shape[1]
    if factors == 1:
        note = "modularity compares factors, and there is only one."
        return Score({"modularity": float("nan")}, found.settings, found.matrices, (*found.notes, note))
    squared_DK = np.square(found.mi_DK)
    best_D = squared_DK.max(axis=1)
    others_D = (squared_DK.sum(axis=1) - best_D) / (factors - 1)
    lost_D = np.divide(others_D, best_D, out=np.ones_like(best_D), where=best_D > 0)
    return Score({"modularity": float((1.0 - lost_D).mean())}, found.settings, found.matrices, found.notes)
