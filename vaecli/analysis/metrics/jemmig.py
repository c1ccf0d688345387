"""Joint entropy minus information gap: like MIG, but a latent that holds more than its factor loses too.

Do & Tran, "Theory and Evaluation Metrics for Learning Disentangled Representations" (2020), normalised so that 1 is
best: mean over factors of 1 - [H(z*, v) - I(z*; v) + I(z'; v)] / (H(v) + log bins), with z* the best and z' the second
best latent of the factor, here with the means in 20 bins. A constant code has H(z) = 0, hence not 0 but
log bins / (H(v) + log bins): read the value beside the chance level.
"""

import math

import numpy as np

from vaecli.analysis.metrics._information import BINS, best_two, measure
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ("factors",)


def score(codes: Codes, seed: int) -> Score:
    """With a single latent the second best counts 0."""
    found = measure(codes, seed)
    best_K, second_K = best_two(found.mi_DK, axis=0)
    h_K = found.factor_entropy_K
    joint_K = found.latent_entropy_D[np.argmax(found.mi_DK, axis=0)] + h_K - best_K
    share_K = 1.0 - (joint_K - best_K + second_K) / (h_K + math.log(BINS))
    value = float(share_K[h_K > 0].mean()) if (h_K > 0).any() else math.nan
    return Score({"jemmig": value}, found.settings, found.matrices, found.notes)
