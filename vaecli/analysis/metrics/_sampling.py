"""Drawing rows for metrics: a training and a test set, and rows that share the value of a factor.

Shapes: N rows, D latents, K factors, M draws of L rows.
"""

import numpy as np

from vaecli.analysis.metrics.base import Array, Codes

TRAIN, TEST = 10_000, 5_000  # points of the 2019 study (Locatello et al., disentanglement_lib)


def train_test(codes: Codes, seed: int) -> tuple[Codes, Codes]:
    """10,000 and 5,000 different rows drawn at random; all rows, two thirds and one third, where there are fewer."""
    rng = np.random.default_rng(seed)
    rows = min(len(codes), TRAIN + TEST)
    train = TRAIN if rows == TRAIN + TEST else max(1, rows * 2 // 3)
    chosen = rng.choice(len(codes), rows, replace=False)
    return codes.rows(chosen[:train]), codes.rows(chosen[train:])


def standardised(train_ND: Array, test_MD: Array) -> tuple[Array, Array]:
    """Both with the means and deviations of the first; columns that are constant there become 0."""
    std_D = train_ND.std(axis=0)
    constant_D = np.ptp(train_ND, axis=0) == 0
    scale_D = np.where(constant_D | (std_D == 0), np.inf, std_D)
    mean_D = train_ND.mean(axis=0)
    return (train_ND - mean_D) / scale_D, (test_MD - mean_D) / scale_D


class Sharing:
    """The rows of a table of factors by the value of each factor.

    Any table will do. On a full grid the other factors of a drawn row are independent and uniform, as in the protocols
    of the metrics; elsewhere they are as the table has them.
    """

    def __init__(self, factors_NK: Array) -> None:
        self._factors_NK = factors_NK
        values = int(factors_NK.max()) + 1
        narrow = np.int16 if values < 2**15 else np.int64  # sorting 16 bits is a radix sort, many times faster
        self._order_KN = np.stack([np.argsort(column.astype(narrow), kind="stable") for column in factors_NK.T])
        self._count_KV = np.stack([np.bincount(column, minlength=values) for column in factors_NK.T])
        self._start_KV = np.cumsum(self._count_KV, axis=1) - self._count_KV

    def draw(self, factor_M: Array, like_M: Array, count: int, rng: np.random.Generator) -> Array:
        """Per draw `count` rows, with replacement, that share factor `factor_M` with row `like_M`: (M, L)."""
        value_M = self._factors_NK[like_M, factor_M]
        place_ML = rng.integers(0, self._count_KV[factor_M, value_M][:, None], (len(factor_M), count))
        place_ML += self._start_KV[factor_M, value_M][:, None]
        return np.asarray(self._order_KN[factor_M[:, None], place_ML])
