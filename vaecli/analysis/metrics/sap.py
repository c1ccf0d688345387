"""SAP: by how much the best latent predicts each factor better than the second best, one latent at a time.

Kumar, Sattigeri & Balakrishnan, "Variational Inference of Disentangled Latent Concepts from Unlabeled Observations"
(2018), section 3, in the protocol of disentanglement_lib. `sap`: test accuracy of a linear support vector machine per
latent and factor (one against the rest, squared hinge, C = 0.01, balanced weights). `sap_r2`: squared correlation,
for factors whose order means something. Nothing is weighted, and a dead latent is a legal second best.

The machine has two parameters, so that its minimum is found exactly and from sums over sorted codes; the optimum is
that of scikit-learn's `LinearSVC(C=0.01, class_weight="balanced")`, whose solver stops near it.
"""

from typing import NamedTuple

import numpy as np

from vaecli.analysis.metrics._sampling import train_test
from vaecli.analysis.metrics.base import Array, Codes, Score

NEEDS = ("factors",)
C = 0.01
STEPS = 200  # Newton steps and halvings; about ten are needed
CONSTANT = 1e-12  # variance below which a latent correlates with nothing


def score(codes: Codes, seed: int) -> Score:
    """NaN with a single latent, which has no second best. Matrices `accuracy` and `r2`, (D, K)."""
    train, test = train_test(codes, seed)
    assert train.factors_NK is not None and test.factors_NK is not None
    accuracy_DK = np.array(
        [
            [
                (predict(x_N, y_N, x_M) == y_M).mean()
                for y_N, y_M in zip(train.factors_NK.T, test.factors_NK.T, strict=True)
            ]
            for x_N, x_M in zip(train.mean_ND.T, test.mean_ND.T, strict=True)
        ]
    )
    r2_DK = _squared_correlation(train.mean_ND, train.factors_NK)
    settings = {
        "train_points": len(train),
        "test_points": len(test),
        "predictor": f"linear SVM, squared hinge, C={C}, balanced, one against the rest",
        "seed": seed,
    }
    notes = () if codes.latents > 1 else ("sap compares latents, and there is only one.",)
    values = {"sap": _gap(accuracy_DK), "sap_r2": _gap(r2_DK)}
    return Score(values, settings, {"accuracy": accuracy_DK, "r2": r2_DK}, notes)


def _gap(score_DK: Array) -> float:
    if len(score_DK) == 1:
        return float("nan")
    best_DK = np.sort(score_DK, axis=0)
    return float((best_DK[-1] - best_DK[-2]).mean())


def _squared_correlation(x_ND: Array, y_NK: Array) -> Array:
    x_ND = x_ND - x_ND.mean(axis=0)
    y_NK = y_NK - y_NK.mean(axis=0)
    x2_D, y2_K = np.square(x_ND).sum(axis=0), np.square(y_NK).sum(axis=0)
    scale_DK = x2_D[:, None] * y2_K
    known_DK = (x2_D[:, None] > CONSTANT * len(x_ND)) & (y2_K > 0)
    return np.asarray(np.divide(np.square(x_ND.T @ y_NK), scale_DK, out=np.zeros_like(scale_DK), where=known_DK))


# -------------------------------------------------------------------------------------------- one-input linear machines


def predict(x_N: Array, label_N: Array, x_M: Array) -> Array:
    """Train on one input and integer labels, and label the test inputs."""
    classes_C, index_N, count_C = np.unique(label_N, return_inverse=True, return_counts=True)
    if len(classes_C) == 1:
        return np.full(len(x_M), classes_C[0])
    weight_C = len(x_N) / (len(classes_C) * count_C)
    if len(classes_C) == 2:
        w, b = fit(x_N, index_N, C * weight_C, C * weight_C[::-1])
        return np.asarray(classes_C[(w[1] * x_M + b[1] > 0).astype(int)])
    w_C, b_C = fit(x_N, index_N, C * weight_C, np.full(len(classes_C), C))
    return np.asarray(classes_C[(x_M[:, None] * w_C + b_C).argmax(axis=1)])


class _Sums(NamedTuple):
    """Count, sum of x and sum of x^2 of the rows inside the margin, for each class: its own, the others."""

    own_3C: Array
    rest_3C: Array


class _Margins:
    """The rows inside the margin of w x + b are those on one side of a threshold: sums over sorted rows, by class."""

    def __init__(self, x_N: Array, index_N: Array) -> None:
        order_N = np.argsort(x_N, kind="stable")
        self.x_N = x_N[order_N]
        powers_3N = np.stack([np.ones_like(self.x_N), self.x_N, np.square(self.x_N)])
        by_class_N = np.argsort(index_N[order_N], kind="stable")
        self.below_3N = _running(powers_3N)
        self.class_below_3N = _running(powers_3N[:, by_class_N])
        count_C = np.bincount(index_N)
        # Sorted by class and then by x; the number of class c's rows among the first r of all is found by bisection.
        self.key_N = index_N[order_N][by_class_N] * (len(x_N) + 1) + by_class_N
        self.base_C = np.arange(len(count_C)) * (len(x_N) + 1)
        self.stop_C = np.cumsum(count_C)
        self.first_C = self.stop_C - count_C

    def inside(self, w_C: Array, b_C: Array) -> _Sums:
        rising_C = w_C >= 0
        slope_C = np.where(w_C == 0, 0.0, w_C)  # no -0, whose inverse would have the wrong sign
        with np.errstate(divide="ignore", invalid="ignore"):
            own_C, rest_C = (1 - b_C) / slope_C, (-1 - b_C) / slope_C
        _, own_below, own_above = self._sides(own_C)
        below, class_below, class_above = self._sides(rest_C)
        above = self.below_3N[:, -1:] - below
        return _Sums(
            np.where(rising_C, own_below, own_above),
            np.where(rising_C, above - class_above, below - class_below),
        )

    def _sides(self, threshold_C: Array) -> tuple[Array, Array, Array]:
        """Sums of all rows below a threshold, and of each class's rows below and above it."""
        rank_C = np.searchsorted(self.x_N, threshold_C)
        place_C = np.searchsorted(self.key_N, self.base_C + rank_C)
        class_below = self.class_below_3N[:, place_C] - self.class_below_3N[:, self.first_C]
        class_above = self.class_below_3N[:, self.stop_C] - self.class_below_3N[:, place_C]
        return self.below_3N[:, rank_C], class_below, class_above


def _running(values_3N: Array) -> Array:
    return np.concatenate([np.zeros((3, 1)), np.cumsum(values_3N, axis=1)], axis=1)


def fit(x_N: Array, index_N: Array, own_C: Array, rest_C: Array) -> tuple[Array, Array]:
    """Slopes and intercepts (C,), each the minimum of

        (w^2 + b^2) / 2 + own_c sum_{class c} max(0, 1 - w x - b)^2 + rest_c sum_{others} max(0, 1 + w x + b)^2,

    by Newton steps, halved where one does not descend: the objective is quadratic between changes of the margin.
    """
    margins = _Margins(x_N, index_N)
    w_C, b_C = np.zeros(len(own_C)), np.zeros(len(own_C))
    value_C = np.full(len(own_C), np.inf)
    step_w, step_b = np.zeros_like(w_C), np.zeros_like(b_C)
    for _ in range(STEPS):
        try_w, try_b = w_C + step_w, b_C + step_b
        sums = margins.inside(try_w, try_b)
        n, sx, sxx = 2 * own_C * sums.own_3C + 2 * rest_C * sums.rest_3C
        yn, yx, _ = 2 * own_C * sums.own_3C - 2 * rest_C * sums.rest_3C
        hww, hbb = 1 + sxx, 1 + n
        quadratic = hww * try_w**2 + 2 * sx * try_w * try_b + hbb * try_b**2
        value = (quadratic + n) / 2 - yx * try_w - yn * try_b
        better = value <= value_C
        determinant = hww * hbb - sx**2
        newton_w = (hbb * yx - sx * yn) / determinant - try_w
        newton_b = (hww * yn - sx * yx) / determinant - try_b
        w_C, b_C = np.where(better, try_w, w_C), np.where(better, try_b, b_C)
        value_C = np.where(better, value, value_C)
        step_w, step_b = np.where(better, newton_w, step_w / 2), np.where(better, newton_b, step_b / 2)
        if (np.abs(step_w) + np.abs(step_b) <= 1e-10 * (1 + np.abs(w_C) + np.abs(b_C))).all():
            break
    return w_C, b_C
