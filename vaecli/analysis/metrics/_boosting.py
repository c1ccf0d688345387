"""Gradient boosted trees for many classification problems on the same inputs at once.

The algorithm and the defaults of scikit-learn's `GradientBoostingClassifier` (Friedman, "Greedy Function
Approximation: A Gradient Boosting Machine", 2001, algorithms 5 and 6): log loss, regression trees of depth 3 on the
residuals split by squared error, one Newton step per leaf, learning rate 0.1, 100 stages, importance = impurity
decrease. Every split is the best there is, found by a compiled kernel for all trees of a stage side by side (inputs in
float32, as scikit-learn has them). Where there is no compiled kernel, thresholds are taken from at most 256 quantile
bins of each input, as in histogram boosting (Ke et al., "LightGBM", 2017), which on noisy codes is another number:
`Boosted.exact` says which it was.

Shapes: N training rows, M test rows, D inputs, K problems, C classes of one problem, T trees of a stage (one per
class; one for a problem of two classes), B bins, J nodes of a level.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vaecli.analysis.metrics.base import Array
from vaecli.speed import native

BINS = 256
STAGES = 100
DEPTH = 3
RATE = 0.1
TIE = 1e-5  # gains nearer than this are the same number in float32


@dataclass(frozen=True)
class Boosted:
    """`importance_DK` sums to 1 per problem (all 0 where nothing could be split). Per problem, `probability_MC` has the
    predictions for the test rows and `classes_C` the labels its columns stand for."""

    importance_DK: Array
    probability_MC: list[Array]
    classes_C: list[Array]
    exact: bool = True

    def accuracy(self, label_MK: Array) -> Array:
        """Share of the test rows whose most probable class is theirs, (K,)."""
        guesses = [
            classes_C[p_MC.argmax(axis=1)] for classes_C, p_MC in zip(self.classes_C, self.probability_MC, strict=True)
        ]
        return np.array([(guess_M == label_MK[:, k]).mean() for k, guess_M in enumerate(guesses)])


def boost(x_ND: Array, label_NK: Array, test_MD: Array, seed: int, stages: int = STAGES) -> Boosted:
    """Fit every column of integer labels on `x_ND` and predict the test rows. `seed` breaks ties of equal splits."""
    kernels = native.load()
    forest: _Exact | _Forest
    if kernels is not None:
        forest, problems = _Exact(kernels, x_ND, test_MD, seed), _Problems(label_NK, torch.float64)
    else:
        edges = [_edges(column) for column in x_ND.T]
        forest, problems = _Forest(_bin(x_ND, edges), seed, _bin(test_MD, edges)), _Problems(label_NK)
    with torch.inference_mode():
        score_TN = problems.start_T[:, None].repeat(1, len(x_ND))
        score_TM = problems.start_T[:, None].repeat(1, len(test_MD))
        importance_DK = np.zeros((x_ND.shape[1], label_NK.shape[1]))
        for _ in range(stages if len(score_TN) else 0):
            p_TN = problems.probability(score_TN)
            residual_TN = problems.target_TN - p_TN
            trees, leaf_TN = forest.grow(residual_TN)
            value_TL = RATE * problems.newton(residual_TN, p_TN, leaf_TN)
            score_TN += value_TL.gather(1, leaf_TN.long())
            score_TM += value_TL.gather(1, forest.leaves(trees).long())
            for split in trees:
                problems.credit(importance_DK, split)
        p_TM = problems.probability(score_TM).double().numpy()
    total_K = importance_DK.sum(axis=0)
    importance_DK = np.divide(importance_DK, total_K, out=np.zeros_like(importance_DK), where=total_K > 0)
    return Boosted(importance_DK, problems.columns(p_TM), problems.classes, kernels is not None)


# --------------------------------------------------------------------------------------------------------------- inputs


def _edges(x_N: Array) -> Array:
    """Thresholds between bins, increasing: between all neighbouring values where there are few, else at quantiles."""
    low, high = (values := np.unique(x_N))[:-1], values[1:]
    if len(values) > BINS:
        ordered_N = np.sort(x_N)
        cut = np.arange(1, BINS) * len(x_N) // BINS
        cut = cut[ordered_N[cut - 1] < ordered_N[cut]]
        low, high = ordered_N[cut - 1], ordered_N[cut]
    middle = low + (high - low) / 2
    return np.unique(np.where(middle < high, middle, low))


def _bin(x_ND: Array, edges: list[Array]) -> Tensor:
    bins = [
        np.searchsorted(edge, column, side="left").astype(np.uint8) for edge, column in zip(edges, x_ND.T, strict=True)
    ]
    return torch.from_numpy(np.stack(bins))


class _Problems:
    """The classification problems laid side by side: which trees belong to which, targets, loss, leaf values."""

    def __init__(self, label_NK: Array, dtype: torch.dtype = torch.float32) -> None:
        self.classes: list[Array] = []
        self.slices: list[slice] = []
        starts, targets, shares = [np.zeros(0)], [np.zeros((0, len(label_NK)), dtype=bool)], [np.zeros(0)]
        trees = 0
        for column in label_NK.T:
            classes_C, count_C = np.unique(column, return_counts=True)
            log_odds_C = np.log(count_C / count_C.sum())
            target_CN = column == classes_C[:, None]
            if len(classes_C) == 2:
                log_odds_C, target_CN = log_odds_C[1:] - log_odds_C[:1], target_CN[1:]
            elif len(classes_C) == 1:  # nothing to tell apart, no trees
                log_odds_C, target_CN = log_odds_C[1:], target_CN[1:]
            # The factor (C - 1) / C is Friedman's, for the symmetric multinomial loss alone.
            share = (len(classes_C) - 1) / len(classes_C) if len(classes_C) > 2 else 1.0
            self.classes.append(classes_C)
            self.slices.append(slice(trees, trees := trees + len(log_odds_C)))
            starts.append(log_odds_C)
            targets.append(target_CN)
            shares.append(np.full(len(log_odds_C), share))
        self.start_T = torch.from_numpy(np.concatenate(starts)).to(dtype)
        self.target_TN = torch.from_numpy(np.concatenate(targets)).to(dtype)
        self.share_T = torch.from_numpy(np.concatenate(shares))
        self.problem_T = np.repeat(np.arange(len(self.slices)), [s.stop - s.start for s in self.slices])

    def probability(self, score_TN: Tensor) -> Tensor:
        p_TN = torch.empty_like(score_TN)
        for trees in self.slices:
            one = trees.stop - trees.start == 1
            p_TN[trees] = score_TN[trees].sigmoid() if one else score_TN[trees].softmax(dim=0)
        return p_TN

    def columns(self, p_TM: Array) -> list[Array]:
        """(M, C) per problem, the columns summing to 1."""
        found = []
        for classes_C, trees in zip(self.classes, self.slices, strict=True):
            p_MC = p_TM[trees].T
            found.append(p_MC if len(classes_C) > 2 else np.hstack([1.0 - p_MC.sum(axis=1, keepdims=True), p_MC]))
        return found

    def newton(self, residual_TN: Tensor, p_TN: Tensor, leaf_TN: Tensor) -> Tensor:
        """One Newton step of the loss per leaf, (T, leaves); 0 in a leaf without curvature."""
        leaves = 2**DEPTH
        trees = len(leaf_TN)
        flat = (leaf_TN.long() + leaves * torch.arange(trees)[:, None]).numpy().ravel()
        # np.bincount adds in float64: these sums nearly cancel in leaves that are already fitted.
        slope = np.bincount(flat, residual_TN.numpy().ravel(), trees * leaves).reshape(trees, leaves)
        curve = np.bincount(flat, (p_TN * (1.0 - p_TN)).numpy().ravel(), trees * leaves).reshape(trees, leaves)
        step = np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
        return (self.share_T[:, None] * torch.from_numpy(step)).to(p_TN.dtype)

    def credit(self, importance_DK: Array, split: "_Split") -> None:
        """Add the impurity decreases of a level to the inputs that were split on."""
        inputs, problems = importance_DK.shape
        flat = split.input_JT.numpy() * problems + self.problem_T
        gained = np.bincount(flat.ravel(), split.gain_JT.numpy().ravel(), inputs * problems)
        importance_DK += gained.reshape(inputs, problems)


# ---------------------------------------------------------------------------------------------------------------- trees


@dataclass(frozen=True)
class _Split:
    """How the nodes of one level are split: right where the bin of the input is above the threshold."""

    input_JT: Tensor  # int64
    threshold_JT: Tensor  # a bin, uint8, or a value, float32; the largest (all go left) where nothing is gained
    gain_JT: Tensor  # decrease of the sum of squares


def _right(bins_DN: Tensor, split: _Split, node_TN: Tensor) -> Tensor:
    """Which rows go right at this level, uint8 (T, N)."""
    right_TN = torch.zeros_like(node_TN)
    for j in range(len(split.input_JT)):
        above_TN = bins_DN[split.input_JT[j]] > split.threshold_JT[j][:, None]
        right_TN |= above_TN.logical_and_(node_TN == j).view(torch.uint8)
    return right_TN


def _leaves(bins_DN: Tensor, splits: list[_Split]) -> Tensor:
    node_TN = torch.zeros((splits[0].input_JT.shape[1], bins_DN.shape[1]), dtype=torch.uint8)
    for split in splits:
        node_TN = 2 * node_TN + _right(bins_DN, split, node_TN)
    return node_TN


class _Exact:
    """Grows the trees of a stage by the compiled kernel."""

    def __init__(self, kernels: native.Kernels, x_ND: Array, test_MD: Array, seed: int) -> None:
        self.kernels = kernels
        self.x_DN, x_DM = (np.ascontiguousarray(x.T, dtype=np.float32) for x in (x_ND, test_MD))
        self.order_DN = np.argsort(self.x_DN, axis=1, kind="stable").astype(np.int32)
        self.x_DM = torch.from_numpy(x_DM)
        self.ties = np.random.default_rng(seed)

    def grow(self, residual_TN: Tensor) -> tuple[list[_Split], Tensor]:
        """As `_Forest.grow`."""
        turn_TD = self.ties.permuted(np.tile(np.arange(len(self.x_DN)), (len(residual_TN), 1)), axis=1)
        found = self.kernels.grow_trees(self.x_DN, self.order_DN, residual_TN.numpy(), turn_TD)
        input_JT, threshold_JT, gain_JT, leaf_TN = (
            torch.from_numpy(a) for a in (*(part.T for part in found[:3]), found[3])
        )
        levels = [slice(2**depth - 1, 2 ** (depth + 1) - 1) for depth in range(DEPTH)]
        return [_Split(input_JT[j].long(), threshold_JT[j], gain_JT[j]) for j in levels], leaf_TN

    def leaves(self, splits: list[_Split]) -> Tensor:
        """As `_Forest.leaves`."""
        return _leaves(self.x_DM, splits)


class _Forest:
    """Grows the trees of a stage. Sums over bins are bags of rows: for each bin of each input the rows that fall in it,
    added with all trees side by side, which is many times faster than a histogram per tree."""

    def __init__(self, bins_DN: Tensor, seed: int, bins_DM: Tensor | None = None) -> None:
        inputs = len(bins_DN)
        self.bins_DM = bins_DM
        self.bins_DN = bins_DN
        self.width = int(bins_DN.max()) + 1
        self.row = torch.argsort(bins_DN.int(), dim=1, stable=True).int().ravel()
        count_DB = torch.stack([torch.bincount(column.int(), minlength=self.width) for column in bins_DN])
        self.start = (count_DB.ravel().cumsum(0) - count_DB.ravel()).int()
        self.below_1DB1 = count_DB.cumsum(1).float().view(1, inputs, self.width, 1)
        self.ties = torch.Generator().manual_seed(seed)

    def grow(self, residual_TN: Tensor) -> tuple[list[_Split], Tensor]:
        """The splits of each level, and in which leaf each training row ends, uint8 (T, N)."""
        node_TN = torch.zeros(residual_TN.shape, dtype=torch.uint8)
        sum_JDBT = self._below(residual_TN)
        count_JDBT = self.below_1DB1
        splits = []
        for depth in range(DEPTH):
            split = self._best(sum_JDBT, count_JDBT)
            splits.append(split)
            node_TN = 2 * node_TN + _right(self.bins_DN, split, node_TN)
            if depth < DEPTH - 1:
                lefts = [(node_TN == 2 * j).float() for j in range(2**depth)]
                sum_JDBT = _children(sum_JDBT, self._below(*[left * residual_TN for left in lefts]))
                count_JDBT = _children(count_JDBT, self._below(*lefts))
        return splits, node_TN

    def leaves(self, splits: list[_Split]) -> Tensor:
        """In which leaf each test row ends, uint8 (T, M)."""
        assert self.bins_DM is not None
        return _leaves(self.bins_DM, splits)

    def _below(self, *values_TN: Tensor) -> Tensor:
        """Sums of the rows up to each bin, (J, D, B, T) for J arrays of values per tree and row."""
        columns = torch.cat(values_TN).T.contiguous()
        sums = torch.nn.functional.embedding_bag(self.row, columns, self.start, mode="sum")
        sums_DBJT = sums.view(len(self.bins_DN), self.width, len(values_TN), -1).cumsum(1)
        return sums_DBJT.permute(2, 0, 1, 3)

    def _best(self, sum_JDBT: Tensor, count_JDBT: Tensor) -> _Split:
        """The split of each node with the largest decrease of the sum of squares, an input drawn among equal ones."""
        total_J11T, count_J11T = sum_JDBT[:, :1, -1:], count_JDBT[:, :1, -1:]
        # With sums S and counts n: S_l^2/n_l + S_r^2/n_r - S^2/n = (S_l - S n_l/n)^2 n / (n_l n_r).
        weight_JDBT = count_JDBT * (count_J11T - count_JDBT)
        weight_JDBT = torch.where(weight_JDBT > 0, count_J11T / weight_JDBT, 0.0)
        mean_J11T = total_J11T / count_J11T.clamp(min=1.0)
        gain_JDBT = (sum_JDBT - mean_J11T * count_JDBT).square_().mul_(weight_JDBT)
        gain_JDT, threshold_JDT = gain_JDBT.max(dim=2)
        best_JT = gain_JDT.amax(dim=1)
        draw_JDT = torch.rand(gain_JDT.shape, generator=self.ties)
        input_JT = torch.where(gain_JDT >= (1.0 - TIE) * best_JT[:, None], draw_JDT, -1.0).argmax(dim=1)
        # Bins that are empty in a node make no difference to its own rows; the middle of them is fairest to others.
        count_JBT = count_JDBT.expand(sum_JDBT.shape).gather(1, _over_bins(input_JT, self.width))[:, 0]
        left_J1T = count_JBT.gather(1, threshold_JDT.gather(1, input_JT[:, None]))
        threshold_JT = ((count_JBT < left_J1T).sum(1) + (count_JBT <= left_J1T).sum(1) - 1) // 2
        return _Split(input_JT, torch.where(best_JT > 0, threshold_JT, 255).to(torch.uint8), best_JT)


def _over_bins(index_JT: Tensor, width: int) -> Tensor:
    return index_JT[:, None, None].expand(-1, 1, width, -1)


def _children(parent_JDBT: Tensor, left_JDBT: Tensor) -> Tensor:
    """Sums of the nodes of the next level, left and right in turn."""
    return torch.stack([left_JDBT, parent_JDBT - left_JDBT], dim=1).flatten(0, 1)
