"""Metrics that predict factors or hold them fixed, on codes whose score is known and beside plain loops."""

import math
from collections.abc import Callable
from dataclasses import replace

import known_codes
import numpy as np
import pytest

from vaecli import registry
from vaecli.analysis import codes as codes_of
from vaecli.analysis.codes import Array, Codes
from vaecli.analysis.metrics import _sampling, beta_vae, dci, dci_sklearn, explicitness, factor_vae, irs, sap, udr
from vaecli.errors import ConfigError, InputError

sklearn = pytest.importorskip("sklearn")
ALL = {"beta-vae": beta_vae, "factor-vae": factor_vae, "dci": dci, "sap": sap, "explicitness": explicitness, "irs": irs}
FACTORS = len(known_codes.SIZES)
VALUES = float(np.prod(known_codes.SIZES))


def sparse(seed: int = 0) -> Codes:
    """A noisy code of a third of the grid's rows, in no order."""
    code = known_codes.noisy()
    return code.rows(np.random.default_rng(seed).permutation(len(code))[:400])


# ------------------------------------------------------------------------------------------------------------- sampling


def test_drawn_rows_share_the_value_of_their_factor() -> None:
    for code in (known_codes.perfect(), sparse()):
        factors = code.factors_NK
        assert factors is not None
        rng = np.random.default_rng(0)
        factor_M, like_M = rng.integers(0, FACTORS, 500), rng.integers(0, len(code), 500)
        rows_ML = _sampling.Sharing(factors).draw(factor_M, like_M, 30, rng)
        assert rows_ML.shape == (500, 30)
        assert (factors[rows_ML, factor_M[:, None]] == factors[like_M, factor_M][:, None]).all()


def test_other_factors_are_uniform_and_independent_on_a_grid() -> None:
    factors = known_codes.grid()
    rng = np.random.default_rng(0)
    draws = 200_000
    rows_ML = _sampling.Sharing(factors).draw(np.array([2]), np.array([0]), draws, rng)
    count = np.bincount(rows_ML[0], minlength=len(factors))[factors[:, 2] == factors[0, 2]]
    assert len(count) == VALUES / 8 and count.sum() == draws
    expected = draws / len(count)
    chi2 = ((count - expected) ** 2 / expected).sum()
    assert abs(chi2 - len(count) + 1) < 5 * math.sqrt(2 * len(count))


def test_train_and_test_are_different_rows() -> None:
    code = known_codes.perfect(known_codes.DSPRITES)
    marked = replace(code, mean_ND=np.arange(len(code), dtype=float)[:, None], logvar_ND=None)
    train, test = _sampling.train_test(marked, 0)
    assert (len(train), len(test)) == (10_000, 5_000)
    assert len(np.unique(np.concatenate([train.mean_ND, test.mean_ND]))) == 15_000
    few = _sampling.train_test(known_codes.perfect(), 0)
    assert [len(part) for part in few] == [768, 384]
    assert [len(part) for part in _sampling.train_test(known_codes.perfect().rows(np.arange(2)), 0)] == [1, 1]


# -------------------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("name", ALL)
def test_order_scale_and_sign_do_not_matter_to_a_perfect_code(name: str) -> None:
    if name == "sap":  # the penalty of its machine knows the scale; the correlation does not
        assert sap.score(known_codes.permuted(), 0).values["sap_r2"] == pytest.approx(1.0, abs=0.02)
        return
    value = ALL[name].score(known_codes.permuted(), 0).value
    low = {"irs": 0.99, "explicitness": 0.9, "dci": 0.97}.get(name, 0.999)
    assert low <= value <= 1.0


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_score(name: str) -> None:
    code = sparse().latents_only([0, 2])
    first, again, other = (ALL[name].score(code, seed) for seed in (0, 0, 1))
    assert first.values == again.values
    for key in first.matrices:
        np.testing.assert_array_equal(first.matrices[key], again.matrices[key])
    if name != "irs":  # which looks at all rows of a table this small
        assert first.values != other.values


@pytest.mark.parametrize("name", ALL)
def test_any_table_of_codes_gives_numbers(name: str) -> None:
    """A handful of rows, a value seen once, more factors than latents, a constant latent among others."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 7, 60):
        factors = np.stack(
            [np.arange(n) % 2, np.arange(n) == 0, rng.integers(0, 5, n) + 10 * (np.arange(n) == 1)], axis=1
        )
        mean = np.stack([rng.normal(size=n), np.full(n, 0.1)], axis=1)
        score = ALL[name].score(codes_of.make(mean, None, factors.astype(int)), 0)
        finite = [value for value in score.values.values() if not math.isnan(value)]
        assert all(-1e-9 <= value <= 1 + 1e-9 for value in finite)
        assert len(finite) == len(score.values) or score.notes


def test_beta_vae() -> None:
    assert beta_vae.score(known_codes.perfect(), 0).value == 1.0
    assert beta_vae.score(known_codes.duplicated(), 0).value == 1.0
    assert beta_vae.score(known_codes.noisy(), 0).value > 0.99
    # A rotation of well separated differences is still linearly separable: the known blind spot of this metric.
    assert beta_vae.score(known_codes.rotated(), 0).value > 0.85
    for code in (known_codes.random(), known_codes.constant()):
        assert beta_vae.score(code, 0).value == pytest.approx(1 / FACTORS, abs=0.03)
    # One latent tells its own factor from the others, and those not from one another: 1/4 + 3/4 x 1/3.
    assert beta_vae.score(known_codes.one_latent(factor=2), 0).value == pytest.approx(0.5, abs=0.03)
    assert math.isnan(beta_vae.score(known_codes.perfect().factors_only([1]), 0).value)


def test_beta_vae_points_by_hand() -> None:
    """E|mu_1 - mu_2| of two uniform values of n is (n^2 - 1) / 3n steps, and 0 for the shared factor."""
    code = known_codes.perfect()
    feature_MD, factor_M = beta_vae._points(code, 4000, np.random.default_rng(0))
    step_D = np.array([np.diff(np.unique(column))[0] for column in code.mean_ND.T])
    sizes = np.array(known_codes.SIZES)
    expected_D = (sizes**2 - 1) / (3 * sizes) * step_D
    for k in range(FACTORS):
        own = feature_MD[factor_M == k]
        np.testing.assert_array_equal(own[:, k], 0.0)
        others = np.delete(np.arange(FACTORS), k)
        np.testing.assert_allclose(own[:, others].mean(axis=0), expected_D[others], rtol=0.02)


def test_factor_vae_says_where_its_absolute_bound_acts() -> None:
    code = known_codes.perfect(dead=1)
    assert factor_vae.score(code, 0).notes == ()  # what is cut is not active
    tiny = codes_of.make(0.01 * code.mean_ND, None, code.factors_NK)
    (empty, cut) = factor_vae.score(tiny, 0).notes
    assert "0.05" in cut and "z0, z1" in cut and "counts as 0" in empty


def test_factor_vae() -> None:
    perfect = factor_vae.score(known_codes.perfect(dead=3), 0)
    assert perfect.value == 1.0 and perfect.settings["latents_used"] == FACTORS
    votes = perfect.matrices["votes"]
    assert votes.sum() == 10_000 and (votes[:FACTORS] == np.diag(np.diag(votes[:FACTORS]))).all()
    np.testing.assert_allclose(np.diag(votes[:FACTORS]), 2500, atol=250)
    assert factor_vae.score(known_codes.duplicated(), 0).value == 1.0
    assert factor_vae.score(known_codes.noisy(), 0).value == 1.0
    # Enough rows that the mean of a factor's value is not itself known to a code of noise.
    assert factor_vae.score(known_codes.random(known_codes.DSPRITES), 0).value == pytest.approx(1 / 5, abs=0.02)
    # A single latent gets every vote, so that one factor is always right.
    for code in (known_codes.one_latent(), known_codes.entangled()):
        assert factor_vae.score(code, 0).value == pytest.approx(1 / FACTORS, abs=0.03)
    # Two latents for four factors: their own factors always, and one latent's votes for the others are lost.
    assert factor_vae.score(known_codes.fewer(latents=2), 0).value == pytest.approx(0.5, abs=0.05)
    constant = factor_vae.score(known_codes.constant(), 0)
    assert constant.value == 0.0 and constant.notes


def test_factor_vae_votes_equal_a_plain_loop() -> None:
    code = sparse()
    factors = code.factors_NK
    assert factors is not None
    factor_M, latent_M = factor_vae._votes(code.mean_ND, factors, 600, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    np.testing.assert_array_equal(factor_M, rng.integers(0, FACTORS, 600))
    like_M = rng.integers(0, len(code), 600)
    sharing = _sampling.Sharing(factors)
    rows = [sharing.draw(factor_M[s], like_M[s], 64, rng) for s in (slice(0, 500), slice(500, 600))]
    for m, drawn in enumerate(np.concatenate(rows)):
        variances = [np.sum((z - z.mean()) ** 2) / 63 for z in code.mean_ND[drawn].T]
        assert latent_M[m] == int(np.argmin(variances))


def test_sap() -> None:
    # Evenly spaced values and one linear machine per value against the rest: only the outer values are told apart.
    perfect = sap.score(known_codes.perfect(), 0)
    assert perfect.values["sap_r2"] == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(np.diag(perfect.matrices["r2"]), 1.0)
    assert perfect.matrices["accuracy"][0, 0] == 1.0
    for key in ("sap", "sap_r2"):
        assert sap.score(known_codes.duplicated(), 0).values[key] == 0.0
        assert sap.score(known_codes.constant(), 0).values[key] == 0.0
        assert sap.score(known_codes.random(), 0).values[key] < 0.05 < perfect.values[key]
        assert sap.score(known_codes.rotated(), 0).values[key] < perfect.values[key]
        assert math.isnan(sap.score(known_codes.one_latent(), 0).values[key])
    fewer = sap.score(known_codes.fewer(latents=2), 0).values["sap_r2"]
    assert fewer == pytest.approx(2 / FACTORS, abs=0.02)


@pytest.mark.parametrize("make", [known_codes.perfect, known_codes.noisy, known_codes.random, known_codes.constant])
@pytest.mark.parametrize("sizes", [(2, 3, 7), (2, 19)])
def test_sap_machine_equals_linear_svc(make: Callable[..., Codes], sizes: tuple[int, ...]) -> None:
    from sklearn.svm import LinearSVC

    code = make(sizes)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(code), 600)
    for x in code.mean_ND[rows].T[:3] * rng.uniform(0.3, 30) + 2.0:
        for y in code.rows(rows).factors_NK.T:  # type: ignore[union-attr]
            exact = LinearSVC(C=0.01, class_weight="balanced", tol=1e-9, max_iter=100_000).fit(x[:400, None], y[:400])
            default = LinearSVC(C=0.01, class_weight="balanced").fit(x[:400, None], y[:400])
            accuracy = (sap.predict(x[:400], y[:400], x[400:]) == y[400:]).mean()
            if make is not known_codes.constant:  # where values that are equally frequent tie
                assert accuracy == pytest.approx(default.score(x[400:, None], y[400:]), abs=5e-3)
            _, index, count = np.unique(y[:400], return_inverse=True, return_counts=True)
            own = 0.01 * 400 / (len(count) * count)
            rest = own[::-1] if len(count) == 2 else np.full(len(count), 0.01)
            w, b = sap.fit(x[:400], index, own, rest)
            at = slice(1, 2) if len(count) == 2 else slice(None)
            np.testing.assert_allclose(w[at], exact.coef_[:, 0], atol=1e-6)
            np.testing.assert_allclose(b[at], exact.intercept_, atol=1e-6)


def test_sap_machine_by_hand() -> None:
    """One row of each class at +-1: w = b + ... solves (1 + 4c) w = 4c with all rows inside the margin, b = 0."""
    w, b = sap.fit(np.array([-1.0, 1.0]), np.array([0, 1]), np.full(2, 0.1), np.full(2, 0.1))
    np.testing.assert_allclose(w, [-0.4 / 1.4, 0.4 / 1.4])
    np.testing.assert_allclose(b, 0.0, atol=1e-12)


def test_explicitness() -> None:
    noisy, random = (explicitness.score(code, 0) for code in (known_codes.noisy(), known_codes.random()))
    perfect = explicitness.score(known_codes.perfect(), 0)
    assert 0.97 < perfect.value <= 1.0 and 0.9 < noisy.value < perfect.value
    assert explicitness.score(known_codes.duplicated(), 0).value == pytest.approx(perfect.value, abs=5e-3)
    # A linear classifier of all latents does not care about a rotation.
    assert explicitness.score(known_codes.rotated(), 0).value == pytest.approx(perfect.value, abs=0.01)
    assert random.value == pytest.approx(0.5, abs=0.04)
    assert explicitness.score(known_codes.constant(), 0).value == 0.5
    one = explicitness.score(known_codes.one_latent(factor=2), 0).matrices["area"][0]
    assert one[2] > 0.97
    np.testing.assert_allclose(np.delete(one, 2), 0.5, atol=0.05)


def test_explicitness_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    train, test = _sampling.train_test(known_codes.noisy(), 0)
    assert train.factors_NK is not None and test.factors_NK is not None
    scaler = StandardScaler().fit(train.mean_ND)
    expected = []
    for y, y_test in zip(train.factors_NK.T, test.factors_NK.T, strict=True):
        model = LogisticRegression().fit(scaler.transform(train.mean_ND), y)
        p = model.predict_proba(scaler.transform(test.mean_ND))
        expected.append(roc_auc_score(y_test[:, None] == model.classes_, p))
    assert explicitness.score(known_codes.noisy(), 0).value == pytest.approx(np.mean(expected), abs=1e-6)


def test_area_counts_equal_scores_half() -> None:
    score = np.array([0.1, 0.5, 0.5, 0.5, 0.9])
    is_positive = np.array([False, True, False, True, True])
    # Six pairs of a positive and a negative: against 0.1 three wins, against 0.5 two draws and a win.
    assert explicitness.roc_area(score, is_positive) == pytest.approx((3 + 1 + 2 * 0.5) / 6)


def directly(z: Array, factors: Array) -> float:
    """IRS in plain loops, the factors of at most 20 values."""
    best, weights = [], []
    for column in z.T:
        largest = max(abs(value - column.mean()) for value in column)
        scores = []
        for factor in factors.T:
            quantiles = []
            for value in sorted(set(factor)):
                rows = column[factor == value]
                ordered = np.sort(np.abs(rows - rows.mean()))
                place = 0.99 * (len(ordered) - 1)
                low = math.floor(place)
                high = min(low + 1, len(ordered) - 1)
                quantiles.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
            scores.append(1 - float(np.mean(quantiles)) / largest)
        best.append(max(scores))
        weights.append(largest)
    return float(np.dot(best, weights) / np.sum(weights))


def test_irs_equals_plain_loops() -> None:
    for code in (sparse(), known_codes.random(), known_codes.rotated()):
        assert code.factors_NK is not None
        expected = directly(code.mean_ND, code.factors_NK)
        assert irs.score(code, 0).value == pytest.approx(expected, abs=1e-6)
        padded = replace(code, mean_ND=np.hstack([code.mean_ND, np.full((len(code), 1), 0.1)]), logvar_ND=None)
        assert irs.score(padded, 0).value == pytest.approx(expected, abs=1e-6)


def test_irs() -> None:
    # Held at one value of its factor, a latent of the perfect code does not move at all.
    for code in (known_codes.perfect(), known_codes.duplicated(), known_codes.one_latent(), known_codes.fewer()):
        assert irs.score(code, 0).value == pytest.approx(1.0, abs=1e-9)
    # With another factor held it moves as far as it can, but for the percentile.
    matrix = irs.score(known_codes.perfect(), 0).matrices["irs"]
    np.testing.assert_allclose(matrix, np.eye(FACTORS), atol=1e-9)
    rotated = irs.score(known_codes.rotated(), 0).value
    assert 0.05 < rotated < irs.score(known_codes.noisy(), 0).value < 0.9
    constant = irs.score(known_codes.constant(), 0)
    assert constant.value == 0.0 and constant.notes


def test_irs_of_a_gaussian_that_knows_nothing() -> None:
    """1 - q99(|z|) / max|z| of a Gaussian, about 0.375 over 10,000 rows: tails count as robustness."""
    value = irs.score(known_codes.random(known_codes.DSPRITES, latents=10), 0).value
    assert value == pytest.approx(0.375, abs=0.04)


def test_factors_of_many_values_are_binned_to_20() -> None:
    code = known_codes.perfect((2, 40))
    matrix = irs.score(code, 0).matrices["irs"]
    # Two neighbouring values share a bin: half a step from their mean, of 19.5 steps to the largest.
    assert matrix[1, 1] == pytest.approx(1 - 0.5 / 19.5, abs=1e-9)


# ------------------------------------------------------------------------------------------------------------------ dci


def test_dci() -> None:
    perfect = dci.score(known_codes.perfect(), 0)
    assert perfect.values == {key: pytest.approx(1.0, abs=0.03) for key in perfect.values}
    np.testing.assert_allclose(perfect.matrices["importance"], np.eye(FACTORS), atol=5e-3)
    noisy, rotated, random = (
        dci.score(code, 0) for code in (known_codes.noisy(), known_codes.rotated(), known_codes.random())
    )
    for key in ("disentanglement", "completeness"):
        assert random.values[key] < 0.1 < rotated.values[key] < noisy.values[key] < perfect.values[key]
    shares = np.mean([1 / size for size in known_codes.SIZES])
    assert random.values["informativeness"] == pytest.approx(shares, abs=0.05)
    # A copy of a latent costs completeness, by ln 2 of ln 2K nats (who gets a split is drawn by lot), and nothing else.
    twice = dci.score(known_codes.duplicated(), 0)
    assert twice.values["disentanglement"] == pytest.approx(perfect.values["disentanglement"], abs=0.01)
    assert twice.values["completeness"] == pytest.approx(1 - math.log(2) / math.log(2 * FACTORS), abs=0.04)


def test_dci_of_codes_that_compare_nothing() -> None:
    constant = dci.score(known_codes.constant(), 0)
    assert constant.values["disentanglement"] == pytest.approx(0.0, abs=1e-12)
    assert constant.values["completeness"] == pytest.approx(0.0, abs=1e-12)
    one = dci.score(known_codes.one_latent(factor=0), 0)
    assert math.isnan(one.values["completeness"]) and one.notes
    assert one.matrices["accuracy"][0, 0] == 1.0
    single = dci.score(known_codes.perfect().factors_only([1]), 0)
    assert math.isnan(single.values["disentanglement"]) and single.values["completeness"] > 0.95
    fewer = dci.score(known_codes.fewer(latents=2), 0)
    np.testing.assert_allclose(fewer.matrices["accuracy"][0, :2], 1.0)


def test_dci_formulae_by_hand() -> None:
    """Two latents for three factors, R = [[1, 1/2, 0], [0, 1/2, 1]]: by entropies of (2/3, 1/3, 0) and (1/2, 1/2)."""
    importance = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    found = dci.summarise(importance, np.array([1.0, 0.5, 0.0]), {})
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(3)
    assert found.values["disentanglement"] == pytest.approx(1 - entropy, abs=1e-8)
    assert found.values["completeness"] == pytest.approx(2 / 3, abs=1e-8)
    assert found.values["informativeness"] == 0.5
    # A latent counts by how much it is used.
    weighted = dci.summarise(np.array([[1.0, 0.5], [0.0, 0.5]]), np.ones(2), {})
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(2)
    assert weighted.values["disentanglement"] == pytest.approx(0.75 * (1 - entropy) + 0.25, abs=1e-8)


def test_dci_is_near_that_of_scikit_learn() -> None:
    code = sparse()
    ours, theirs = dci.score(code, 0), dci_sklearn.score(code, 0)
    for key, tolerance in {"disentanglement": 0.02, "completeness": 0.02, "informativeness": 0.03}.items():
        assert ours.values[key] == pytest.approx(theirs.values[key], abs=tolerance)
    np.testing.assert_allclose(ours.matrices["importance"], theirs.matrices["importance"], atol=0.02)
    assert theirs.settings["scikit-learn"] == sklearn.__version__ and dci_sklearn.IN_ALL is False


# ------------------------------------------------------------------------------------------------------------------ udr


def test_udr_of_models_that_agree() -> None:
    """The same latents in another order: every correlation is 0 or 1. The lasso's coefficients are 1 - alpha."""
    models = [known_codes.permuted(seed=seed) for seed in range(3)]
    for score in udr.score_models(models, 0):
        assert score.values["udr_spearman"] == pytest.approx(1.0, abs=1e-6)
        assert score.values["udr_lasso"] == pytest.approx(0.9, abs=1e-3)


def test_udr_leaves_out_what_is_the_prior() -> None:
    models = [known_codes.perfect(), known_codes.perfect(dead=3), known_codes.permuted()]
    for score in udr.score_models(models, 0):
        assert score.values["udr_spearman"] == pytest.approx(1.0, abs=1e-6)
        assert score.settings["latents_used"] == FACTORS


def test_udr_takes_latents_without_a_kl_for_informative_where_they_vary() -> None:
    """As those whose prior is not N(0, 1): their distance to it says nothing."""
    models = [known_codes.perfect(dead=3), known_codes.permuted()]
    other = np.arange(models[0].latents) > 0
    strange = replace(models[0], standard_D=~other)
    assert strange.kl_D is not None and np.isnan(strange.kl_D).tolist() == other.tolist()
    found, _ = udr.score_models([strange, models[1]], 0)
    assert found.settings["latents_used"] == FACTORS and "without a KL" in found.notes[0]
    assert found.values["udr_spearman"] == pytest.approx(1.0, abs=1e-6)


def test_udr_of_models_that_disagree() -> None:
    rotated = [known_codes.rotated(seed=seed) for seed in range(3)]
    random = [known_codes.random(seed=seed) for seed in range(3)]
    for turned, noise in zip(udr.score_models(rotated, 0), udr.score_models(random, 0), strict=True):
        assert noise.value == 0.0  # no correlation reaches the lasso's penalty
        assert noise.values["udr_spearman"] < 0.05
        assert 0.1 < turned.values["udr_spearman"] < 0.75 and 0.1 < turned.value < 0.75
    collapsed = udr.score_models([known_codes.perfect(), known_codes.constant()], 0)
    assert [score.value for score in collapsed] == [0.0, 0.0] and collapsed[1].notes


def test_udr_is_the_median_over_partners() -> None:
    """Two models agree, and each of three has a value with each partner."""
    models = [known_codes.perfect(), known_codes.permuted(), known_codes.random()]
    scores = udr.score_models(models, 0)
    for score in scores:
        assert score.value == pytest.approx(np.median(score.matrices["lasso"]))
        assert score.matrices["lasso"].shape == (1, 2)
    np.testing.assert_allclose(scores[0].matrices["spearman"][0, 0], 1.0)
    assert scores[0].matrices["spearman"][0, 1] < 0.05


def test_udr_likeness_by_hand() -> None:
    # By columns 0.64/1.0 and 0.25/0.5, by rows 0.64/0.8 and 0.25/0.7.
    relation = np.array([[0.8, 0.0], [0.2, 0.5]])
    assert udr.likeness(relation) == pytest.approx((0.64 + 0.5 + 0.8 + 0.25 / 0.7) / 4)
    # The mean is over the informative latents of both: one and two here.
    assert udr.likeness(np.array([[1.0, 0.0]])) == pytest.approx(((1 + 0) / 2 + 1) / 2)
    assert udr.likeness(np.zeros((0, 3))) == 0.0


def test_udr_relations_equal_scikit_learn_and_ranks() -> None:
    from scipy.stats import spearmanr
    from sklearn.linear_model import Lasso

    a, b = known_codes.noisy(seed=1).mean_ND, known_codes.rotated().mean_ND
    expected = np.array([[abs(spearmanr(x, y).statistic) for y in b.T] for x in a.T])
    np.testing.assert_allclose(udr._correlation(udr._ranks(a), udr._ranks(b)), expected, atol=1e-9)
    relation = udr._lasso(a, b)
    for j in range(FACTORS):
        np.testing.assert_allclose(relation[:, j], np.abs(Lasso(alpha=0.1).fit(a, b[:, j]).coef_), atol=1e-6)


def test_udr_needs_models_over_the_same_images() -> None:
    perfect = known_codes.perfect()
    with pytest.raises(InputError, match="there is 1"):
        udr.score_models([perfect], 0)
    with pytest.raises(InputError, match="1,152 rows"):
        udr.score_models([perfect, known_codes.perfect((2, 2))], 0)
    with pytest.raises(InputError, match="factors"):
        udr.score_models([perfect, perfect.rows(np.arange(len(perfect))[::-1])], 0)


# ------------------------------------------------------------------------------------------------------------- contract


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    for name in ("beta-vae", "explicitness", "dci-sklearn"):
        with pytest.raises(ConfigError, match=f"{name} needs scikit-learn"):
            registry.load("metric", name).score(known_codes.perfect(), 0)
    with pytest.raises(ConfigError, match="udr needs scikit-learn"):
        udr.score_models([known_codes.perfect()] * 2, 0)
    for name in ("dci", "factor-vae", "irs", "sap"):
        assert ALL[name].score(known_codes.perfect(), 0).value > 0.05


@pytest.mark.parametrize("name", [*ALL, "dci-sklearn", "udr"])
def test_listing(name: str) -> None:
    assert registry.summary("metric", name).endswith(".")
    assert (
        registry.load("metric", name).SEVERAL if name == "udr" else registry.load("metric", name).NEEDS == ("factors",)
    )


@pytest.mark.parametrize("name", ALL)
def test_settings_say_what_was_done(name: str) -> None:
    settings = ALL[name].score(sparse(), 7).settings
    assert settings["seed"] == 7
    if name in ("dci", "sap", "explicitness"):
        assert (settings["train_points"], settings["test_points"]) == (266, 134)
