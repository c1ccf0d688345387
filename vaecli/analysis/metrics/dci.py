"""DCI: disentanglement, completeness and informativeness of boosted trees that predict each factor from the code.

Eastwood & Williams, "A Framework for the Quantitative Evaluation of Disentangled Representations" (2018), section 2,
with the predictor and the informativeness (test accuracy) of disentanglement_lib: gradient boosting with
scikit-learn's defaults, here in an implementation of our own (`dci-sklearn` runs scikit-learn's). With R the
importance of latent d for factor k,

    disentanglement = sum_d w_d (1 - H_K(R_d / sum_k R_dk)),  w_d = sum_k R_dk / sum R,
    completeness    = sum_k w_k (1 - H_D(R_k / sum_d R_dk)),  w_k = sum_d R_dk / sum R,

where H_n is the entropy in base n, and 1e-11 is added to each importance in it.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vaecli.analysis.metrics import _boosting
from vaecli.analysis.metrics._sampling import train_test
from vaecli.analysis.metrics.base import Array, Codes, Score

NEEDS = ("factors",)
TINY = 1e-11


def score(codes: Codes, seed: int) -> Score:
    """NaN for disentanglement with one factor and completeness with one latent, which compare nothing."""
    train, test = train_test(codes, seed)
    assert train.factors_NK is not None and test.factors_NK is not None
    found = _boosting.boost(train.mean_ND, train.factors_NK, test.mean_ND, seed)
    how = "exact splits" if found.exact else f"{_boosting.BINS} quantile bins"
    settings = {
        "train_points": len(train),
        "test_points": len(test),
        "predictor": f"gradient boosting: {_boosting.STAGES} stages, depth {_boosting.DEPTH}, "
        f"learning rate {_boosting.RATE}, log loss, {how}",
        "seed": seed,
    }
    result = summarise(found.importance_DK, found.accuracy(test.factors_NK), settings)
    if found.exact:
        return result
    binned = "thresholds are of 256 quantile bins, as no kernel could be compiled here: on noisy codes up to 0.06 off."
    return replace(result, notes=(*result.notes, binned))


def summarise(importance_DK: Array, accuracy_K: Array, settings: Mapping[str, Any]) -> Score:
    """The three values of a matrix of importances (each column summing to 1, or to 0) and the accuracies."""
    values = {
        "disentanglement": concentration(importance_DK),
        "completeness": concentration(importance_DK.T),
        "informativeness": float(accuracy_K.mean()),
    }
    matrices = {"importance": importance_DK, "accuracy": accuracy_K[None, :]}
    return Score(values, settings, matrices, single(importance_DK))


def single(importance_DK: Array) -> tuple[str, ...]:
    """What is to be said of a single latent or factor."""
    latents, factors = importance_DK.shape
    notes = []
    if factors == 1:
        notes.append("disentanglement compares factors, and there is only one.")
    if latents == 1:
        notes.append("completeness compares latents, and there is only one.")
    return tuple(notes)


def concentration(importance: Array) -> float:
    """1 where each row has one entry, 0 where its entries are equal; the mean is weighted by the sums of the rows."""
    columns = importance.shape[1]
    if columns == 1:
        return math.nan
    p = importance + TINY
    p /= p.sum(axis=1, keepdims=True)
    concentration = 1.0 + (p * np.log(p)).sum(axis=1) / math.log(columns)
    weight = importance.sum(axis=1)
    return float(np.average(concentration, weights=weight if weight.sum() > 0 else None))
