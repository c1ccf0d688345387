"""Our boosted trees against scikit-learn's, and their parts against direct computation."""

import time

import numpy as np
import pytest
import torch

from vaecli.analysis import codes
from vaecli.analysis.codes import Array
from vaecli.analysis.metrics import _boosting, dci, dci_sklearn
from vaecli.analysis.metrics._boosting import boost
from vaecli.speed import native

ensemble = pytest.importorskip("sklearn.ensemble")


def problem(values: int, classes: int, rows: int = 800, test: int = 400) -> tuple[Array, Array]:
    """Four inputs of about `values` values each; labels of `classes` and of two values that they partly tell."""
    rng = np.random.default_rng(3)
    x = np.round(rng.normal(size=(rows + test, 4)) * values / 6)
    z = x @ rng.normal(size=(4, 3)) * 6 / values
    label = np.clip(np.floor((z[:, 0] + 0.3 * rng.normal(size=len(x))) * classes / 4 + classes / 2), 0, classes - 1)
    return x, np.stack([label, z[:, 1] + z[:, 2] > 0], axis=1).astype(np.int64)


@pytest.mark.parametrize("classes", [3, 6])
def test_equals_scikit_learn_where_no_value_is_lost_in_bins(classes: int) -> None:
    x, y = problem(48, classes)
    ours = boost(x[:800], y[:800], x, seed=0)
    for k in range(2):
        theirs = ensemble.GradientBoostingClassifier(random_state=0).fit(x[:800], y[:800, k])
        np.testing.assert_allclose(ours.importance_DK[:, k], theirs.feature_importances_, atol=4e-3)
        difference = np.abs(ours.probability_MC[k] - theirs.predict_proba(x)).mean(axis=1)
        # Splits that gain the same are drawn by lot in both.
        assert difference[:800].mean() < 5e-3 and difference[800:].mean() < 2e-2
        assert ours.accuracy(y)[k] == pytest.approx(theirs.score(x, y[:, k]), abs=0.01)


def test_equals_scikit_learn_to_rounding_without_ties() -> None:
    """Two inputs, three stages: every leaf is large, no two splits gain the same."""
    x, y = problem(48, 4)
    ours = boost(x[:800, :2], y[:800], x[:, :2], seed=0, stages=3)
    for k in range(2):
        theirs = ensemble.GradientBoostingClassifier(n_estimators=3).fit(x[:800, :2], y[:800, k])
        np.testing.assert_allclose(ours.importance_DK[:, k], theirs.feature_importances_, atol=1e-5)
        np.testing.assert_allclose(ours.probability_MC[k][:800], theirs.predict_proba(x[:800, :2]), atol=1e-5)


def test_continuous_inputs_are_split_exactly() -> None:
    """Bins were off by 0.02 here, and by 0.04 in disentanglement on codes with noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 4))
    y = np.digitize(x[:, 0] + 0.5 * x[:, 1] + 0.2 * rng.normal(size=1500), [-1, 0, 1])
    ours = boost(x[:1000], y[:1000, None], x[1000:], seed=0)
    theirs = ensemble.GradientBoostingClassifier(random_state=0).fit(x[:1000], y[:1000])
    assert ours.exact
    np.testing.assert_allclose(ours.importance_DK[:, 0], theirs.feature_importances_, atol=1e-3)
    np.testing.assert_allclose(ours.probability_MC[0], theirs.predict_proba(x[1000:]), atol=0.05)


def noisy_positions(rows: int, values: int) -> tuple[Array, Array]:
    """Two factors of many values, each in a latent of its own with noise as wide as several values, and pure noise."""
    rng = np.random.default_rng(1)
    factors = rng.integers(0, values, (rows, 2))
    code = (factors - factors.mean(axis=0)) / factors.std(axis=0) + 0.3 * rng.normal(size=(rows, 2))
    return np.concatenate([code, rng.normal(size=(rows, 1))], axis=1), factors


@pytest.mark.parametrize(("rows", "values"), [(1500, 6), pytest.param(6000, 32, marks=pytest.mark.long)])
def test_dci_is_that_of_scikit_learn_at_five_times_its_speed(rows: int, values: int) -> None:
    x, y = noisy_positions(rows, values)
    times, found = [], []
    for of in (dci, dci_sklearn):
        start = time.process_time()
        found.append(of.score(codes.make(x, None, y), 0))
        times.append(time.process_time() - start)
    # Over its own seeds scikit-learn's values of 1,000 points differ by 4e-3.
    error = 3e-3 if rows > 5000 else 6e-3
    for key, value in found[1].values.items():
        assert found[0].values[key] == pytest.approx(value, abs=error if key != "informativeness" else 0.01), key
    assert times[1] > 5 * times[0] or rows < 5000  # small problems are dominated by what is done once


def test_without_the_kernel_bins_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = noisy_positions(600, 3)
    assert dci.score(codes.make(x, None, y), 0).notes == ()
    monkeypatch.setattr(native, "load", lambda: None)
    found = dci.score(codes.make(x, None, y), 0)
    assert "256 quantile bins" in found.notes[0] and "256 quantile bins" in found.settings["predictor"]


def test_continuous_inputs_lose_little_in_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: None)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 4))
    y = np.digitize(x[:, 0] + 0.5 * x[:, 1] + 0.2 * rng.normal(size=1500), [-1, 0, 1])
    ours = boost(x[:1000], y[:1000, None], x[1000:], seed=0)
    theirs = ensemble.GradientBoostingClassifier(random_state=0).fit(x[:1000], y[:1000])
    np.testing.assert_allclose(ours.importance_DK[:, 0], theirs.feature_importances_, atol=0.02)
    assert ours.accuracy(y[1000:, None])[0] == pytest.approx(theirs.score(x[1000:], y[1000:]), abs=0.02)


def test_first_split_and_leaves_by_hand() -> None:
    """One input tells a balanced label: residuals are +-1/2 and curvature 1/4, so each leaf adds +-2 times the rate."""
    x = np.repeat([0.0, 1.0], 50)[:, None]
    y = x.astype(np.int64)
    one = boost(x, y, x[[0, -1]], seed=0, stages=1)
    p = 1 / (1 + np.exp(-0.2))
    np.testing.assert_allclose(one.probability_MC[0], [[p, 1 - p], [1 - p, p]], atol=1e-6)
    np.testing.assert_array_equal(one.importance_DK, [[1.0]])


def test_problems_do_not_touch_each_other() -> None:
    x, y = problem(48, 5)
    both = boost(x[:800], y[:800], x[800:], seed=0)
    alone = boost(x[:800], y[:800, :1], x[800:], seed=0)
    np.testing.assert_allclose(both.probability_MC[0], alone.probability_MC[0], atol=0.2)
    np.testing.assert_allclose(both.importance_DK[:, 0], alone.importance_DK[:, 0], atol=5e-3)


def test_equal_inputs_share_the_importance() -> None:
    x, y = problem(48, 4)
    importance = boost(np.tile(x[:800, :1], 2), y[:800], x[:1, [0, 0]], seed=0).importance_DK
    assert importance.min() > 0.35
    np.testing.assert_allclose(importance.sum(axis=0), 1.0)


def test_nothing_to_split_or_to_tell() -> None:
    y = np.stack([np.repeat([4, 7], [30, 70]), np.full(100, 2)], axis=1)
    found = boost(np.zeros((100, 2)), y, np.zeros((3, 2)), seed=0)
    np.testing.assert_array_equal(found.importance_DK, 0.0)
    np.testing.assert_allclose(found.probability_MC[0], [[0.3, 0.7]] * 3, atol=1e-6)
    np.testing.assert_array_equal(found.probability_MC[1], 1.0)
    np.testing.assert_array_equal(found.accuracy(np.array([[7, 2], [4, 2], [7, 9]])), [2 / 3, 2 / 3])
    only = boost(np.zeros((5, 1)), np.full((5, 1), 3), np.zeros((2, 1)), seed=0)
    assert only.accuracy(np.array([[3], [4]])) == [0.5] and only.importance_DK == [[0.0]]


def test_seed_decides_everything() -> None:
    x, y = problem(48, 4)
    first, again = (boost(x[:800], y[:800], x[800:], seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.importance_DK, again.importance_DK)
    np.testing.assert_array_equal(first.probability_MC[0], again.probability_MC[0])


def test_bins() -> None:
    np.testing.assert_array_equal(_boosting._edges(np.array([3.0, 1.0, 1.0, 2.0])), [1.5, 2.5])
    assert len(_boosting._edges(np.zeros(9))) == 0
    x = np.random.default_rng(0).normal(size=10_000)
    edges = _boosting._edges(x)
    counts = np.bincount(np.searchsorted(edges, x, side="left"))
    assert len(edges) == 255 and counts.min() >= 39 and counts.max() <= 40
    tied = np.concatenate([np.zeros(5000), x[:5000]])
    assert (np.diff(_boosting._edges(tied)) > 0).all() and len(_boosting._edges(tied)) < 255
    # Neighbouring numbers have no middle: the lower is the threshold, so that the upper goes right.
    np.testing.assert_array_equal(_boosting._edges(np.array([1.0, np.nextafter(1.0, 2.0)])), [1.0])


def spread(rows: torch.Tensor) -> float:
    return float((rows - rows.mean()).square().sum()) if len(rows) else 0.0


def test_sums_of_nodes_equal_direct_ones() -> None:
    """The histograms of a grown tree: gains against sums of squares over the rows of each node."""
    x, _ = problem(48, 4)
    bins = _boosting._bin(x, [_boosting._edges(column) for column in x.T])
    residual = torch.from_numpy(np.random.default_rng(1).normal(size=(3, len(x)))).float()
    splits, leaf = _boosting._Forest(bins, 0).grow(residual)
    for t in range(3):
        r = residual[t].double()
        for depth, split in enumerate(splits):
            for j in range(2**depth):
                rows = r[leaf[t] >> (3 - depth) == j]
                left = r[leaf[t] >> (2 - depth) == 2 * j]
                right = r[leaf[t] >> (2 - depth) == 2 * j + 1]
                gained = spread(rows) - spread(left) - spread(right)
                assert float(split.gain_JT[j, t]) == pytest.approx(gained, rel=1e-4)
