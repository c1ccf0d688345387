"""BetaVAE (z_diff): which factor was held fixed, told by a linear classifier from mean differences of pairs of codes.

Higgins et al., "beta-VAE" (2017), section 3, in the protocol of disentanglement_lib: a point is the mean of |mu_1 -
mu_2| over 64 pairs of images that share the value of one factor, its label that factor; logistic regression (L2
penalty, C = 1) on 10,000 points, accuracy on 5,000 more. The paper's own classifier has the same form, without
penalty and trained by Adagrad at 0.01 until it converges.
"""

import warnings
from typing import Any

import numpy as np

from vaecli.analysis.metrics._information import scikit_learn
from vaecli.analysis.metrics._sampling import TEST, TRAIN, Sharing
from vaecli.analysis.metrics.base import Array, Codes, Score

NEEDS = ("factors",)
PAIRS = 64
CHUNK = 500  # points worked on together, so that they stay in the processor's cache


def score(codes: Codes, seed: int) -> Score:
    """NaN for a single factor, which cannot be mistaken. ConfigError without scikit-learn."""
    version = scikit_learn("beta-vae")
    settings: dict[str, Any] = {
        "train_points": TRAIN,
        "test_points": TEST,
        "pairs": PAIRS,
        "predictor": "LogisticRegression(C=1, lbfgs, max_iter=100)",
        "scikit-learn": version,
        "seed": seed,
    }
    assert codes.factors_NK is not None
    if codes.factors_NK.shape[1] == 1:
        return Score({"accuracy": float("nan")}, settings, notes=("beta-vae compares factors, and there is only one.",))
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    feature_MD, factor_M = _points(codes, TRAIN + TEST, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 100 iterations may not converge is the protocol
        model = LogisticRegression().fit(feature_MD[:TRAIN], factor_M[:TRAIN])
    right_M = model.predict(feature_MD) == factor_M
    return Score(
        {"accuracy": float(right_M[TRAIN:].mean())}, {**settings, "train_accuracy": float(right_M[:TRAIN].mean())}
    )


def _points(codes: Codes, points: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Mean absolute differences (M, D) of pairs of codes, and the factor that each point's pairs share (M,)."""
    assert codes.factors_NK is not None
    sharing = Sharing(codes.factors_NK)
    factor_M = rng.integers(0, codes.factors_NK.shape[1], points)
    feature_MD = np.empty((points, codes.latents))
    for start in range(0, points, CHUNK):
        chunk = factor_M[start : start + CHUNK]
        first = rng.integers(0, len(codes), len(chunk) * PAIRS)
        second = sharing.draw(np.repeat(chunk, PAIRS), first, 1, rng)[:, 0]
        difference = np.abs(codes.mean_ND[first] - codes.mean_ND[second])
        feature_MD[start : start + CHUNK] = difference.reshape(len(chunk), PAIRS, -1).mean(axis=1)
    return feature_MD, factor_M
