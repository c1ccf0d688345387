"""Axis-aligned metric: per factor, what its best latent knows beyond all the others together.

The `disentangling-vae` code base (Dubois et al. 2019): mean over factors of max(0, I_(1) - I_(2) - I_(3) - ...) / I_(1)
with I_(j) the informations of the latents in falling order, here the histogram estimate for the means. A factor that no
latent knows counts 0.
"""

import numpy as np

from vaecli.analysis.metrics._information import measure
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ("factors",)


def score(codes: Codes, seed: int) -> Score:
    """Over all rows: the sum over latents adds up the bias that each estimate has on few."""
    found = measure(codes, seed, points=None)
    best_K = found.mi_DK.max(axis=0)
    ahead_K = np.maximum(2 * best_K - found.mi_DK.sum(axis=0), 0.0)
    value = float(np.divide(ahead_K, best_K, out=np.zeros_like(best_K), where=best_K > 0).mean())
    return Score({"aam": value}, found.settings, found.matrices, found.notes)
