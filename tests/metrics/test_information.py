"""The information metrics: against their definitions written out, brute force, and codes whose answer is known."""

import math
from collections.abc import Callable

import known_codes as known
import numpy as np
import pytest

from vaecli import registry
from vaecli.analysis import codes as coding
from vaecli.analysis.codes import Array, Codes
from vaecli.analysis.metrics import (
    aam,
    dcimig,
    edi,
    gaussian_total_correlation,
    infomec,
    jemmig,
    med,
    mig,
    mig_exact,
    mig_sup,
    modularity,
    mutual_information_score,
    wasserstein_correlation,
)
from vaecli.analysis.metrics._information import (
    best_two,
    binned,
    entropy,
    measure,
    mutual_information,
    neighbour_information,
)
from vaecli.analysis.metrics._information import sample as sampled

H = [math.log(n) for n in known.SIZES]  # entropies of the factors
K = len(H)


def value(name: str, codes: Codes, seed: int = 0) -> float:
    return registry.load("metric", name).score(codes, seed).value


# ------------------------------------------------------------------------------------ histograms against the definition


def information_by_definition(mean_ND: Array, factors_NK: Array) -> Array:
    """What disentanglement_lib computes, without its code: digitised means, plug-in sum over the joint table."""
    result = np.zeros((mean_ND.shape[1], factors_NK.shape[1]))
    for d in range(mean_ND.shape[1]):
        bins = np.digitize(mean_ND[:, d], np.histogram(mean_ND[:, d], 20)[1][:-1])
        for k in range(factors_NK.shape[1]):
            for a in np.unique(bins):
                for b in np.unique(factors_NK[:, k]):
                    p = np.mean((bins == a) & (factors_NK[:, k] == b))
                    if p > 0:
                        pa, pb = np.mean(bins == a), np.mean(factors_NK[:, k] == b)
                        result[d, k] += p * math.log(p / (pa * pb))
    return result


@pytest.mark.parametrize(
    "codes", [known.noisy(), known.rotated(seed=3), known.random()], ids=["noisy", "turned", "random"]
)
def test_mig_and_modularity_are_those_of_disentanglement_lib(codes: Codes) -> None:
    assert codes.factors_NK is not None
    mi_DK = information_by_definition(codes.mean_ND, codes.factors_NK)
    np.testing.assert_allclose(measure(codes, 0).mi_DK, mi_DK, atol=1e-12)
    ordered = np.sort(mi_DK, axis=0)[::-1]
    assert value("mig", codes) == pytest.approx(np.mean((ordered[0] - ordered[1]) / H), abs=1e-12)
    scores = []
    for row in mi_DK:
        others = np.delete(row, row.argmax())
        scores.append(1 - (others**2).sum() / (row.max() ** 2 * (K - 1)))
    assert value("modularity", codes) == pytest.approx(np.mean(scores), abs=1e-12)


def test_information_matches_scikit_learn() -> None:
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 7, (500, 2)), rng.integers(0, 4, (500, 1))
    a[:, 1] = b[:, 0] + (rng.random(500) < 0.2)
    expected = [[mutual_info_score(a[:, d], b[:, 0])] for d in range(2)]
    np.testing.assert_allclose(mutual_information(a, b), expected, atol=1e-14)


def test_information_of_a_small_table_by_hand() -> None:
    a = np.array([0, 0, 0, 1])[:, None]
    b = np.array([0, 0, 1, 1])[:, None]
    by_hand = 0.5 * math.log(0.5 / (0.75 * 0.5)) + 0.25 * math.log(0.25 / (0.75 * 0.5)) + 0.25 * math.log(2)
    assert mutual_information(a, b)[0, 0] == pytest.approx(by_hand, abs=1e-15)
    assert entropy(np.array([2, 0, 2])) == pytest.approx(math.log(2), abs=1e-15)
    assert mutual_information(np.zeros((4, 1), dtype=int), b)[0, 0] == 0.0  # exactly: modularity asks whether it is 0


def test_bins_and_samples() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 3)) * [1, 1e-9, 1e6]
    for d in range(3):
        assert (binned(x)[:, d] == np.digitize(x[:, d], np.histogram(x[:, d], 20)[1][:-1]) - 1).all()
    assert (binned(np.full((5, 1), 0.1) + np.array([[0.0], [1e-17], [0], [0], [0]])) == 0).all()
    codes = known.perfect((3, 6, 40, 32))
    first, again, other = sampled(codes, 0), sampled(codes, 0), sampled(codes, 1)
    assert len(first) == 10_000 and (first.mean_ND == again.mean_ND).all() and (first.mean_ND != other.mean_ND).any()
    assert len(np.unique(first.factors_NK, axis=0)) == 10_000  # each row once
    assert len(sampled(known.perfect(), 0)) == math.prod(known.SIZES)


def test_second_best_of_one_is_nothing() -> None:
    best, second = best_two(np.array([[0.5, 0.25]]), axis=0)
    assert best.tolist() == [0.5, 0.25] and second.tolist() == [0, 0]
    best, second = best_two(np.array([[0.5, 0.25], [0.125, 1.0]]), axis=1)
    assert best.tolist() == [0.5, 1.0] and second.tolist() == [0.25, 0.125]


# --------------------------------------------------------------------------------------------------- nearest neighbours


def test_nearest_neighbour_estimate_is_that_of_scikit_learn() -> None:
    from sklearn.feature_selection import mutual_info_classif

    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 4)) * [1, 1e-3, 50, 1] + [0, 5, -100, 0]
    labels = np.stack([np.digitize(x[:, 0] + 0.3 * rng.normal(size=2000), [-1, -0.3, 0.2, 1.4]), x[:, 3] > 0.5], axis=1)
    x[:, 3] = np.round(x[:, 3], 1)  # ties, which only the noise breaks
    for neighbours in (3, 10):
        expected = [mutual_info_classif(x, y, n_neighbors=neighbours, random_state=7) for y in labels.T]
        found = neighbour_information(x, labels.astype(int), 7, neighbours)
        np.testing.assert_allclose(found, np.transpose(expected), atol=1e-12)
        assert found[0, 0] > 0.5 and found[1, 0] < 0.05


def test_nearest_neighbour_estimate_with_rare_values_by_brute_force() -> None:
    rng = np.random.default_rng(2)
    n, k = 120, 5
    labels = np.concatenate([[7], rng.integers(0, 7, 40) // 6, np.repeat([2, 3, 4, 5], [20, 3, 2, 54])])
    x = rng.normal(size=n) + 0.7 * labels

    def digamma(i: int) -> float:
        return sum(1 / j for j in range(1, i)) - 0.5772156649015329

    x_scaled = x / x.std()
    keep = [i for i in range(n) if (labels == labels[i]).sum() > 1]
    terms = []
    for i in keep:
        same = sorted(abs(x_scaled[i] - x_scaled[j]) for j in keep if labels[j] == labels[i] and j != i)
        near = min(k, len(same))
        within = sum(abs(x_scaled[i] - x_scaled[j]) < same[near - 1] - 1e-7 for j in keep)
        terms.append(digamma(near) - digamma(len(same) + 1) - digamma(within))
    expected = digamma(len(keep)) + np.mean(terms)
    assert expected > 0.3
    assert neighbour_information(x[:, None], labels[:, None], 0, k)[0, 0] == pytest.approx(expected, abs=1e-6)


def test_constant_latents_know_nothing() -> None:
    codes = known.constant()
    assert codes.factors_NK is not None
    assert (neighbour_information(codes.mean_ND + 0.1, codes.factors_NK, 0, 3) == 0).all()


# --------------------------------------------------------------------------------------------------------------- q(z|x)


def brute_force(mean_N: Array, sigma_N: Array, factor_N: Array) -> float:
    """H(z) - H(z|v) on a fine grid, every Gaussian by itself."""
    z = np.linspace((mean_N - 8 * sigma_N).min(), (mean_N + 8 * sigma_N).max(), 60_001)

    def h(rows: Array) -> float:
        q = np.zeros_like(z)
        for m, s in zip(mean_N[rows], sigma_N[rows], strict=True):
            q += np.exp(-0.5 * ((z - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
        q /= rows.sum()
        return float(-(q[q > 0] * np.log(q[q > 0])).sum() * (z[1] - z[0]))

    everything = np.ones(len(mean_N), dtype=bool)
    return h(everything) - sum((factor_N == v).mean() * h(factor_N == v) for v in np.unique(factor_N))


@pytest.mark.parametrize(
    ("spread", "logvar", "varied", "error"),
    [
        (0.3, -4, 1.0, 1e-6),
        (0.02, -7, 0.3, 1e-6),
        (0.3, -8, 2.0, 4e-3),  # 200 spikes of very different widths, some below the resolution
        (0.3, -5, 1.3, 1e-5),
        (1.0, 0, 0.5, 1e-6),
        (0.0, -3, 0.0, 1e-6),
    ],
)
def test_information_of_q_against_brute_force(spread: float, logvar: float, varied: float, error: float) -> None:
    rng = np.random.default_rng(0)
    factor_N = rng.integers(0, 5, 200)
    mean_N = 0.5 * factor_N + spread * rng.normal(size=200)
    logvar_N = logvar + varied * rng.normal(size=200)
    found, _ = mig_exact.information(mean_N[:, None], logvar_N[:, None], factor_N[:, None])
    assert found[0, 0] == pytest.approx(brute_force(mean_N, np.exp(logvar_N / 2), factor_N), abs=error)


def test_information_of_q_in_closed_form() -> None:
    factor_NK = np.arange(12)[:, None] % 4
    apart = 3.0 * factor_NK
    for sigma in (0.1, 1e-4, 1e-12):  # too narrow for any grid, yet the values are apart
        found, _ = mig_exact.information(apart, np.full((12, 1), 2 * math.log(sigma)), factor_NK)
        assert found[0, 0] == pytest.approx(math.log(4), abs=1e-6)
    # Whatever is added to or multiplied with the latent, the information is the same.
    rng = np.random.default_rng(0)
    mean_N, logvar_N = rng.normal(size=(12, 1)) + factor_NK, rng.normal(size=(12, 1))
    once, _ = mig_exact.information(mean_N, logvar_N, factor_NK)
    scaled, _ = mig_exact.information(1e4 * mean_N - 7e3, logvar_N + 2 * math.log(1e4), factor_NK)
    assert scaled[0, 0] == pytest.approx(once[0, 0], abs=1e-6) and once[0, 0] > 0.1
    # A latent that is the prior whatever the image knows nothing, nor does one with an absurd scale.
    prior, _ = mig_exact.information(np.zeros((12, 1)), np.zeros((12, 1)), factor_NK)
    absurd, _ = mig_exact.information(apart, np.full((12, 1), 1500.0), factor_NK)
    assert prior[0, 0] < 1e-12 and absurd[0, 0] < 1e-6


def test_many_values_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = known.noisy((5, 16))
    assert codes.logvar_ND is not None and codes.factors_NK is not None
    whole, _ = mig_exact.information(codes.mean_ND, codes.logvar_ND, codes.factors_NK)
    monkeypatch.setattr(mig_exact, "TABLE", 5000)
    parts, _ = mig_exact.information(codes.mean_ND, codes.logvar_ND, codes.factors_NK)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_noise_of_q_lowers_the_exact_gap_and_not_that_of_the_means() -> None:
    codes = known.perfect()
    assert codes.logvar_ND is not None
    wide = coding.make(codes.mean_ND, codes.logvar_ND + 2 * math.log(50), codes.factors_NK)
    assert value("mig", wide) == pytest.approx(1)
    assert 0.2 < value("mig-exact", wide) < 0.8 < 0.999 < value("mig-exact", codes)


def test_widened_posteriors_are_told() -> None:
    found = mig_exact.score(known.entangled(), 0)
    assert "100.0%" in found.notes[0] and "z0" in found.notes[0]
    assert mig_exact.score(known.perfect(), 0).notes == ()


# -------------------------------------------------------------------------------------------------------- known answers

ROWS: dict[str, Callable[[], Codes]] = {
    "perfect": known.perfect,
    "permuted": known.permuted,
    "duplicated": known.duplicated,
    "constant": known.constant,
    "one": lambda: known.one_latent(factor=3),
    "fewer": known.fewer,
}
EMPTY = [1 - h / (h + math.log(20)) for h in H]  # JEMMIG of a constant latent, or of two best ones
OF_ONE = [1 - (H[3] + h) / (h + math.log(20)) for h in H[:3]]  # JEMMIG of the latent that is factor 3 for the others
OF_TWO = [1 - (H[0] + h) / (h + math.log(20)) for h in H[2:]]
KNOWN = {
    #                              perfect, permuted, duplicated, constant, one, fewer
    "mig": (1, 1, 0, 0, 1 / 4, 2 / 4),
    "mig-exact": (1, 1, 0, 0, 1 / 4, 2 / 4),
    "mig-sup": (1, 1, 1, 0, 1, 1),
    "aam": (1, 1, 0, 0, 1 / 4, 2 / 4),
    "jemmig": (1, 1, sum(EMPTY) / K, sum(EMPTY) / K, (1 + sum(OF_ONE)) / K, (2 + sum(OF_TWO)) / K),
    "dcimig": (1, 1, 1, 0, H[3] / sum(H), (H[0] + H[1]) / sum(H)),
    "med": (1, 1, 1, 0, 1, 1),
    "modularity": (1, 1, 1, 0, 1, 1),
    "mutual-information-score": (0, 0, sum(H) * 2 / (8 * 7), 0, math.nan, 0),
    "gaussian-total-correlation": (0, 0, math.inf, 0, 0, 0),
    "wasserstein-correlation": (0, 0, 8 * (2 - math.sqrt(2)), 0, 0, 0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name: str) -> None:
    for (case, codes), expected in zip(ROWS.items(), KNOWN[name], strict=True):
        found = value(name, codes())
        # Ties between equal latents are broken by rounding, and the covariance divides by N - 1.
        assert found == pytest.approx(expected, abs=5e-3 * max(1, abs(expected)), nan_ok=True), (case, found)


@pytest.mark.parametrize(("name", "turned", "random"), [
    ("mig", 0.5, 0.01), ("mig-exact", 0.5, 0.02), ("mig-sup", 0.5, 0.02), ("dcimig", 0.5, 0.01), ("aam", 0.9, 0.001),
])  # fmt: skip
def test_rotation_noise_and_ignorance_lower_a_score(name: str, turned: float, random: float) -> None:
    assert value(name, known.rotated()) < turned
    assert value(name, known.random()) < random
    noise = [value(name, known.noisy(std=std)) for std in (0.01, 0.1, 0.3, 1.0)]
    assert noise == sorted(noise, reverse=True) and noise[0] > 0.95 and noise[-1] < 0.75


def test_jemmig_punishes_a_latent_that_holds_more_than_its_factor() -> None:
    # The latent is the row's number: the best there is for every factor, and nothing is second. MIG sees a part only.
    codes = known.entangled()
    joint = [math.log(20) + h - i for h, i in zip(H, measure(codes, 0).mi_DK[0], strict=True)]
    expected = [1 - (j - i) / (h + math.log(20)) for j, h, i in zip(joint, H, measure(codes, 0).mi_DK[0], strict=True)]
    assert value("jemmig", codes) == pytest.approx(np.mean(expected), abs=1e-3)
    assert value("jemmig", codes) < value("mig", codes)


def test_med_weighs_latents_and_factors_by_their_information() -> None:
    """By hand from a matrix of mutual informations: two latents of which one holds two factors alike."""
    factors_NK = known.grid((4, 4))
    both, first = factors_NK[:, 0] * 4 + factors_NK[:, 1], factors_NK[:, 0]
    codes = known.made(np.stack([both, first], axis=1).astype(float), factors_NK)
    found = med.score(codes, 0)
    h = math.log(4)
    np.testing.assert_allclose(found.matrices["mutual_information"], [[h, h], [h, 0]], atol=1e-9)
    # The first latent, of 2/3 of all information, concentrates on nothing; so does the first factor.
    assert found.values["disentanglement"] == pytest.approx(1 / 3, abs=1e-6)
    assert found.values["completeness"] == pytest.approx(1 / 3, abs=1e-6)
    duplicated = med.score(known.duplicated(), 0).values["completeness"]
    assert duplicated == pytest.approx(1 - math.log(2) / math.log(2 * K), abs=1e-3)


def test_a_single_factor() -> None:
    codes = known.perfect((6, 1)).factors_only([0]).latents_only([0])
    for name in ("mig", "mig-exact", "mig-sup", "aam", "dcimig", "jemmig"):
        assert value(name, codes) == pytest.approx(1, abs=1e-6)
    found = modularity.score(codes, 0)
    assert math.isnan(found.value) and "only one" in found.notes[0]


def test_a_factor_that_vanishes_in_the_sample_is_left_out() -> None:
    factors_NK = np.concatenate([known.grid((30, 20, 20)), np.zeros((12_000, 1), dtype=int)], axis=1)
    factors_NK[0, 3] = 1  # one row of 12,000
    codes = known.made(known.standardised(factors_NK), factors_NK)
    seed = next(s for s in range(50) if np.ptp(sampled(codes, s).factors_NK[:, 3]) == 0)
    found = mig.score(codes, seed)
    assert found.value == pytest.approx(mig.score(codes.factors_only([0, 1, 2]), seed).value, abs=1e-12)
    assert "f3" in found.notes[0]
    for metric in (aam, dcimig, jemmig, mig_sup, modularity, infomec, edi):
        assert all(math.isfinite(v) for v in metric.score(codes, seed).values.values())


def test_values_of_the_2019_study_on_the_grid_of_dsprites() -> None:
    """Computed with disentanglement_lib's own functions on 10,000 points; the points here are others."""
    codes = known.perfect(known.DSPRITES)
    dead = np.zeros((len(codes), 5))
    ten = coding.make(np.concatenate([codes.mean_ND, dead], axis=1), None, codes.factors_NK)
    twelve = coding.make(
        np.concatenate([codes.mean_ND[:, [3, 0, 1, 4, 2, 0, 3]], dead], axis=1), None, codes.factors_NK
    )
    assert value("mig", codes) == pytest.approx(0.896, abs=2e-3)
    best_K, second_K = best_two(measure(codes, 0, bins=10).mi_DK, axis=0)
    assert measure(codes, 0, bins=10).mean_share(best_K - second_K) == pytest.approx(0.787, abs=2e-3)
    assert value("mig-sup", codes) == pytest.approx(0.896, abs=2e-3)
    assert value("mig-sup", ten) == pytest.approx(0.449, abs=2e-3)
    assert value("mig", twelve) == pytest.approx(0.528, abs=2e-3)
    assert value("dcimig", twelve) == pytest.approx(0.863, abs=2e-3)


# --------------------------------------------------------------------------------------------------------- correlations


def correlated(rho: float, scale: float = 1.0, n: int = 400) -> Codes:
    """Two latents whose sample covariance is exactly scale^2 [[1, rho], [rho, 1]] (divided by N)."""
    x = np.random.default_rng(0).normal(size=(n, 2))
    x = (x - x.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True))).T
    return coding.make(scale * x @ np.linalg.cholesky(np.array([[1, rho], [rho, 1]])).T + 3.0)


@pytest.mark.parametrize("rho", [0.0, 0.6, -0.99])
def test_correlations_in_closed_form(rho: float) -> None:
    for scale in (1.0, 30.0):
        codes = correlated(rho, scale)
        found = gaussian_total_correlation.score(codes, 0).value
        assert found == pytest.approx(-0.5 * math.log(1 - rho**2), abs=1e-9)
        both = wasserstein_correlation.score(codes, 0).values
        normalised = 2 - math.sqrt(1 + rho) - math.sqrt(1 - rho)
        assert both["wasserstein_correlation_normalised"] == pytest.approx(normalised, abs=1e-9)
        trace = 2 * scale**2 * 400 / 399
        assert both["wasserstein_correlation"] == pytest.approx(trace * normalised, rel=1e-9, abs=1e-9 * trace)


def test_constant_latents_do_not_correlate() -> None:
    codes = correlated(0.6)
    more = coding.make(np.concatenate([codes.mean_ND, np.full((400, 1), 0.1)], axis=1))
    assert gaussian_total_correlation.score(more, 0).value == pytest.approx(-0.5 * math.log(0.64), abs=1e-9)


# ------------------------------------------------------------------------------------------------------ InfoMEC and EDI


def test_infomec_of_known_codes() -> None:
    perfect, double = infomec.score(known.perfect(), 0).values, infomec.score(known.duplicated(), 0).values
    assert min(perfect.values()) > 0.99
    assert double["info_m"] > 0.99 and double["info_e"] > 0.99
    assert double["info_c"] == pytest.approx((1 / 2 - 1 / 8) / (1 - 1 / 8), abs=0.01)
    turned, few = infomec.score(known.rotated(), 0).values, infomec.score(known.fewer(), 0).values
    assert turned["info_e"] > 0.99 and turned["info_m"] < 0.8
    assert few["info_m"] > 0.98 and few["info_e"] == pytest.approx(0.5, abs=0.02)
    assert infomec.score(known.random(), 0).values["info_e"] < 0.02
    constant = infomec.score(known.constant(), 0)
    assert constant.values["info_m"] == 0 and constant.values["info_e"] == 0 and math.isnan(constant.values["info_c"])
    assert "0 of 3" in constant.notes[0]
    assert math.isnan(infomec.score(known.one_latent(), 0).values["info_c"])


def test_infomec_is_its_definition() -> None:
    from sklearn.feature_selection import mutual_info_classif
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.preprocessing import StandardScaler

    codes = known.noisy(std=0.5)
    assert codes.factors_NK is not None
    narrow = 0.001 * codes.mean_ND[:, :1]  # a range below a twentieth: no part of InfoM and InfoC, but of InfoE
    codes = coding.make(np.concatenate([codes.mean_ND, narrow], axis=1), None, codes.factors_NK)
    assert codes.factors_NK is not None
    columns = [mutual_info_classif(codes.mean_ND, y, n_neighbors=10, random_state=0) for y in codes.factors_NK.T]
    nmi_DK = (np.stack(columns, axis=1) / H)[:4]
    found = infomec.score(codes, 0)
    assert found.settings["latents_used"] == 4
    rows, columns_ = nmi_DK.max(axis=1) / nmi_DK.sum(axis=1), nmi_DK.max(axis=0) / nmi_DK.sum(axis=0)
    assert found.values["info_m"] == pytest.approx((rows.mean() - 1 / 4) / (1 - 1 / 4), abs=1e-9)
    assert found.values["info_c"] == pytest.approx((columns_.mean() - 1 / 4) / (1 - 1 / 4), abs=1e-9)
    x = StandardScaler().fit_transform(codes.mean_ND)
    explicit = []
    for k, y in enumerate(codes.factors_NK.T):
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100).fit(x, y)
        explicit.append(1 - log_loss(y, model.predict_proba(x)) / H[k])
    assert found.values["info_e"] == pytest.approx(np.mean(explicit), abs=1e-6) and 0.2 < np.mean(explicit) < 0.8


def test_edi_of_known_codes() -> None:
    def of(codes: Codes) -> list[float]:
        return [round(v, 2) for v in edi.score(codes, 0).values.values()]

    assert of(known.perfect()) == of(known.perfect(dead=4)) == of(known.permuted()) == [1, 1, 1]
    assert of(known.duplicated()) == [1, round(1 - math.sqrt(1 / 7), 2), 1]
    assert of(known.fewer()) == [0.5, 0.5, 0.5] and of(known.one_latent(factor=3)) == [0.25, 0.25, 0.25]
    assert of(known.random()) == of(known.constant()) == [0, 0, 0]
    turned = of(known.rotated())
    assert turned[0] < 0.7 and turned[1] < 0.7 and turned[2] > 0.98  # all is there, nothing is apart


def test_edi_exclusivity_by_hand() -> None:
    found = edi._exclusivity(np.array([[0.9, 0.3, 0.4], [0.2, 0.2, 0.2], [1, 0, 0]]))
    np.testing.assert_allclose(found, [0.9 - math.sqrt((0.09 + 0.16) / 2), 0, 1], atol=1e-12)
    assert edi._exclusivity(np.array([[0.7]])).tolist() == [0.7]


@pytest.mark.parametrize("noise", [0.3, 0.8])
def test_edi_explicitness_of_a_noisy_channel(noise: float) -> None:
    """Two latents that each hold v + noise: together they know what one with noise / sqrt 2 does."""
    rng = np.random.default_rng(0)
    factors_NK = np.stack([np.arange(8000) % 3, np.arange(8000) % 2], axis=1)
    mean_ND = factors_NK[:, :1] + noise * rng.normal(size=(8000, 2))
    z = np.linspace(-6, 8, 20_001)
    densities = [np.exp(-((z - v) ** 2) / noise**2) / (noise * math.sqrt(math.pi)) for v in range(3)]
    h = [-float((q * np.log(np.maximum(q, 1e-300))).sum() * (z[1] - z[0])) for q in (*densities, sum(densities) / 3)]
    truth = (h[3] - sum(h[:3]) / 3) / math.log(3)
    found = edi.score(coding.make(mean_ND, None, factors_NK), 0).values["explicitness"]
    assert found == pytest.approx(truth / 2, abs=0.01)  # the other factor is not there at all


def test_deterministic_and_different_with_another_seed() -> None:
    codes = known.noisy((3, 4, 30, 30))
    for metric in (mig, infomec, edi, mutual_information_score):
        first, again, other = metric.score(codes, 0), metric.score(codes, 0), metric.score(codes, 1)
        assert first.values == again.values != other.values
        assert first.settings["points"] == 10_000
