"""DCIMIG: per factor, the clearest latent about it, each latent counted for its best factor only.

Sepliarskaia, Kiseleva & de Rijke, "How to Not Measure Disentanglement" (2019): a latent's gap is I(z; v_(1)) minus
I(z; v_(2)), credited to v_(1); the score is the sum over factors of the largest gap credited to them, divided by the
sum of H(v). A second latent for the same factor costs nothing, unlike in MIG.
"""

import numpy as np

from vaecli.analysis.metrics._information import best_two, measure
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ("factors",)


def score(codes: Codes, seed: int) -> Score:
    """With a single factor a latent's second best counts 0."""
    found = measure(codes, seed)
    best_D, second_D = best_two(found.mi_DK, axis=1)
    credited_K = np.zeros(found.mi_DK.shape[1])
    np.maximum.at(credited_K, found.mi_DK.argmax(axis=1), best_D - second_D)
    total = float(found.factor_entropy_K.sum())
    value = float(credited_K.sum()) / total if total > 0 else float("nan")
    return Score({"dcimig": value}, found.settings, found.matrices, found.notes)
