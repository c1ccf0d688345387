"""Explicitness: how well a linear classifier of all latents ranks each value of each factor, as an area under the ROC.

Ridgeway & Mozer, "Learning Deep Disentangled Embeddings With the F-Statistic Loss" (2018), section 3, in the protocol
of disentanglement_lib: one logistic regression per factor on standardised codes; the area under the one-vs-rest ROC
curve on the test points, mean over values and then factors. 0.5 is chance, 1 the best.
"""

import math
import warnings

import numpy as np

from vaecli.analysis.metrics._information import scikit_learn
from vaecli.analysis.metrics._sampling import standardised, train_test
from vaecli.analysis.metrics.base import Array, Codes, Score

NEEDS = ("factors",)
CHANCE = {"explicitness": 0.5}


def score(codes: Codes, seed: int) -> Score:
    """NaN where no test point tells (a handful of rows). ConfigError without scikit-learn."""
    version = scikit_learn("explicitness")
    train, test = train_test(codes, seed)
    assert train.factors_NK is not None and test.factors_NK is not None
    train_ND, test_MD = standardised(train.mean_ND, test.mean_ND)
    area_K = np.array(
        [_area(train_ND, y_N, test_MD, y_M) for y_N, y_M in zip(train.factors_NK.T, test.factors_NK.T, strict=True)]
    )
    settings = {
        "train_points": len(train),
        "test_points": len(test),
        "predictor": "LogisticRegression(C=1, lbfgs, max_iter=100)",
        "scikit-learn": version,
        "seed": seed,
    }
    known_K = area_K[~np.isnan(area_K)]
    value = float(known_K.mean()) if len(known_K) else math.nan
    notes = () if len(known_K) == len(area_K) else ("factors whose test points all have one value are left out.",)
    return Score({"explicitness": value}, settings, {"area": area_K[None, :]}, notes)


def _area(train_ND: Array, label_N: Array, test_MD: Array, label_M: Array) -> float:
    """Mean area over the values that some test points have and some have not."""
    from sklearn.linear_model import LogisticRegression

    classes_C = np.unique(label_N)
    if len(classes_C) == 1:
        p_MC = np.ones((len(test_MD), 1))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 100 iterations may not converge is the protocol
            p_MC = LogisticRegression().fit(train_ND, label_N).predict_proba(test_MD)
    areas = []
    for value in np.unique(label_M):
        is_M = label_M == value
        if not is_M.all():
            c = int(np.searchsorted(classes_C, value))
            unseen = c == len(classes_C) or classes_C[c] != value
            areas.append(0.5 if unseen else roc_area(p_MC[:, c], is_M))
    return float(np.mean(areas)) if areas else math.nan


def roc_area(score_M: Array, is_M: Array) -> float:
    """P(score of a positive > that of a negative) + P(equal) / 2, for both kinds present (Mann-Whitney)."""
    _, place_M, count = np.unique(score_M, return_inverse=True, return_counts=True)
    rank_M = (np.cumsum(count) - (count - 1) / 2)[place_M]  # from 1; equal scores share their mean rank
    positives = int(is_M.sum())
    wins = rank_M[is_M].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * (len(is_M) - positives)))
