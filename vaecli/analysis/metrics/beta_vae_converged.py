"""BetaVAE with standardised codes and a classifier that has converged: 25 pairs, shape free, logistic regression.

What of Higgins et al., "beta-VAE" (2017), section 3, depends neither on the scale of the codes nor on when a classifier
was stopped (see `beta_vae`).
"""

from vaecli.analysis.metrics import beta_vae
from vaecli.analysis.metrics.base import Codes, Score

NEEDS = ("factors",)
IN_ALL = False


def score(codes: Codes, seed: int) -> Score:
    """NaN for a single factor. ConfigError without scikit-learn."""
    return beta_vae.score(codes, seed, beta_vae.CONVERGED)
