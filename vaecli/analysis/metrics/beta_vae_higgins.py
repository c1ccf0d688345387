"""BetaVAE in the protocol of Higgins et al. as far as known: 30 pairs, shape free, a linear classifier by Adagrad.

Higgins et al., "beta-VAE" (2017), section 3 and appendix. Of three scores, with points and batches of their own, the
mean, and `best_half`, the mean of the better ones: the paper drops the lower half of its scores. The number of pairs
and where Adagrad stops are inferred, not the paper's words: over all of dSprites 30 pairs give raw pixels 0.49 (paper
0.4575) and whitened PCA 0.884 (paper 0.849), 20 pairs 0.447 and 0.854. 30 is what `beta_vae` has.
"""

from vaecli.analysis.metrics import beta_vae
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ("factors",)
IN_ALL = False


def score(codes: Codes, seed: int) -> Score:
    """NaN for a single factor."""
    return beta_vae.score(codes, seed, beta_vae.HIGGINS)
