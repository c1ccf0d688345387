"""Mutual information of codes and factors, estimated by histograms or by nearest neighbours; entropies and gaps.

Shapes: N rows, D latents, K factors. Nats everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaecli.analysis.metrics.base import Array, Codes
from vaecli.errors import ConfigError

POINTS = 10_000  # of the 2019 study (Locatello et al., disentanglement_lib)
BINS = 20  # of the same
ROUNDING = 1e-12  # nats; less is the rounding of a difference of entropies, and no information


def sample(codes: Codes, seed: int, points: int | None = POINTS) -> Codes:
    """A random subset of at most `points` rows without replacement, the same for the same seed; None for all rows."""
    if points is None or len(codes) <= points:
        return codes
    chosen = np.random.default_rng(seed).choice(len(codes), points, replace=False, shuffle=False)
    return codes.rows(np.sort(chosen))


# ----------------------------------------------------------------------------------------------------------- histograms


def binned(mean_ND: Array, bins: int = BINS) -> Array:
    """Each column in `bins` equal-width bins over its own smallest to largest value, numbered from 0, (N, D).

    The discretisation of disentanglement_lib, `np.digitize(x, np.histogram(x, bins)[1][:-1]) - 1`.
    """
    bins_ND = np.zeros(mean_ND.shape, dtype=np.int64)
    for d in np.flatnonzero(varies(mean_ND)):
        inner_edges = np.histogram_bin_edges(mean_ND[:, d], bins)[1:-1]
        bins_ND[:, d] = np.searchsorted(inner_edges, mean_ND[:, d], side="right")
    return bins_ND


def varies(mean_ND: Array) -> Array:
    """Which columns hold more than one number, up to rounding, (D,)."""
    return np.asarray(np.ptp(mean_ND, axis=0) > 1e-13 * np.abs(mean_ND).max(axis=0))


def entropy(counts: Array) -> float:
    """Plug-in entropy of a table of counts or weights, of any shape."""
    p = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(p * np.log(p)).sum()))


def entropies(columns_NK: Array) -> Array:
    """Plug-in entropy of each column of non-negative integers, (K,)."""
    return np.array([entropy(np.bincount(column)) for column in columns_NK.T])


def mutual_information(a_ND: Array, b_NK: Array) -> Array:
    """Plug-in mutual information of each pair of columns of non-negative integers, (D, K)."""
    h_D, h_K = entropies(a_ND), entropies(b_NK)
    joint_DK = np.zeros((a_ND.shape[1], b_NK.shape[1]))
    for k, b_N in enumerate(np.ascontiguousarray(b_NK.T)):
        values = int(b_N.max()) + 1
        for d, a_N in enumerate(np.ascontiguousarray(a_ND.T)):
            joint_DK[d, k] = entropy(np.bincount(a_N * values + b_N))
    information_DK = h_D[:, None] + h_K - joint_DK
    return np.where(information_DK > ROUNDING, information_DK, 0.0)


@dataclass(frozen=True)
class Information:
    """Binned mutual information of every latent with every factor, and what goes with it into a `Score`."""

    mi_DK: Array
    latent_entropy_D: Array  # of the binned codes
    factor_entropy_K: Array
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def matrices(self) -> dict[str, Array]:
        return {"mutual_information": self.mi_DK}

    def mean_share(self, part_K: Array) -> float:
        """Mean over factors of `part_K` divided by the factor's entropy; NaN without a factor that varies."""
        varying_K = self.factor_entropy_K > 0
        if not varying_K.any():
            return float("nan")
        return float((part_K[varying_K] / self.factor_entropy_K[varying_K]).mean())


def measure(codes: Codes, seed: int, points: int | None = POINTS, bins: int = BINS) -> Information:
    """Histogram estimate of the mutual information over a sample of rows."""
    codes = sample(codes, seed, points)
    assert codes.factors_NK is not None
    bins_ND = binned(codes.mean_ND, bins)
    factor_entropy_K = entropies(codes.factors_NK)
    rare = [name for name, h in zip(codes.factor_names, factor_entropy_K, strict=True) if h == 0]
    notes = (f"{', '.join(rare)} did not vary in the sample and is left out of the mean.",) if rare else ()
    return Information(
        mutual_information(bins_ND, codes.factors_NK),
        entropies(bins_ND),
        factor_entropy_K,
        {"points": len(codes), "bins": bins},
        notes,
    )


def best_two(values: Array, axis: int) -> tuple[Array, Array]:
    """The largest and second largest along an axis; the second is 0 where there is only one."""
    ordered = np.sort(values, axis=axis)
    best = ordered.take(-1, axis=axis)
    return best, ordered.take(-2, axis=axis) if values.shape[axis] > 1 else np.zeros_like(best)


# --------------------------------------------------------------------------------------------------- nearest neighbours


def neighbour_information(mean_ND: Array, factors_NK: Array, seed: int, neighbours: int) -> Array:
    """Nearest-neighbour estimate of the mutual information of each latent with each factor, (D, K).

    Ross, "Mutual Information between Discrete and Continuous Data Sets" (2014), with the scaling, the noise that
    breaks ties and the treatment of rare values of scikit-learn's `mutual_info_classif(..., random_state=seed)`.
    Latents that do not vary have none, where the noise would give them some.
    """
    n, latents = mean_ND.shape
    varies_D = varies(mean_ND)
    x_ND = mean_ND / np.where(varies_D, mean_ND.std(axis=0), 1.0)
    noise_ND = np.random.RandomState(seed).standard_normal(x_ND.shape)
    x_ND = x_ND + 1e-10 * np.maximum(1.0, np.abs(x_ND).mean(axis=0)) * noise_ND
    # psi(i) = -gamma + 1 + 1/2 + ... + 1/(i - 1); the constants cancel.
    digamma = np.concatenate([[0.0, 0.0], np.cumsum(1.0 / np.arange(1, n + 1))])
    information_DK = np.zeros((latents, factors_NK.shape[1]))
    for d in np.flatnonzero(varies_D):
        for k in range(factors_NK.shape[1]):
            information_DK[d, k] = _ross(x_ND[:, d], factors_NK[:, k], neighbours, digamma)
    return information_DK


def _ross(x_N: Array, label_N: Array, neighbours: int, digamma: Array) -> float:
    counts_N = np.bincount(label_N)[label_N]
    keep_N = counts_N > 1  # a value seen once has no neighbour
    x_N, label_N, counts_N = x_N[keep_N], label_N[keep_N], counts_N[keep_N]
    n = len(x_N)
    if n == 0:
        return 0.0
    order_N = np.lexsort((x_N, label_N))
    x_N, label_N, counts_N = x_N[order_N], label_N[order_N], counts_N[order_N]
    # The k nearest of the same label are k of the 2k around it: the best window of k + 1 that contains the point.
    radius_N = np.full(n, np.inf)
    for left in range(neighbours + 1):
        at = np.arange(left, n - neighbours + left)
        if not len(at):
            continue
        first, last = at - left, at - left + neighbours
        reach = np.maximum(x_N[at] - x_N[first], x_N[last] - x_N[at])
        reach[label_N[first] != label_N[last]] = np.inf
        radius_N[at] = np.minimum(radius_N[at], reach)
    few_N = counts_N <= neighbours  # all others of the label are then its neighbours
    first_of_label = np.searchsorted(label_N, label_N, side="left")
    widest_N = np.maximum(x_N - x_N[first_of_label], x_N[first_of_label + counts_N - 1] - x_N)
    radius_N = np.where(few_N, widest_N, radius_N)
    within_N = _closer_than(x_N, radius_N)
    k_N = np.minimum(neighbours, counts_N - 1)
    information = digamma[n] + digamma[k_N].mean() - digamma[counts_N].mean() - digamma[within_N].mean()
    return max(0.0, float(information))


def _closer_than(x_N: Array, radius_N: Array) -> Array:
    """How many of all points, itself included, lie strictly within the radius of each."""
    sorted_N = np.sort(x_N)
    n = len(x_N)
    low_N = np.searchsorted(sorted_N, x_N - radius_N, side="right")
    high_N = np.searchsorted(sorted_N, x_N + radius_N, side="left")
    # x +- radius is rounded, the differences are what counts: a neighbour at exactly the radius must stay outside.
    while (move := (low_N < n) & (x_N - sorted_N[np.minimum(low_N, n - 1)] >= radius_N) & (radius_N > 0)).any():
        low_N = low_N + move
    while (move := (low_N > 0) & (x_N - sorted_N[np.maximum(low_N - 1, 0)] < radius_N)).any():
        low_N = low_N - move
    while (move := (high_N > 0) & (sorted_N[np.maximum(high_N - 1, 0)] - x_N >= radius_N) & (radius_N > 0)).any():
        high_N = high_N - move
    while (move := (high_N < n) & (sorted_N[np.minimum(high_N, n - 1)] - x_N < radius_N)).any():
        high_N = high_N + move
    return np.asarray(np.maximum(high_N - low_N, 1))


def scikit_learn(metric: str) -> str:
    """The version of scikit-learn; ConfigError where it is not installed."""
    try:
        import sklearn
    except ImportError:
        raise ConfigError(f"metric {metric} needs scikit-learn", "pip install 'vaecli[analyze]'") from None
    return str(sklearn.__version__)
