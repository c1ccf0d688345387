"""The aggregate posterior against closed forms, numerical quadrature and brute force in float64."""

import math

import numpy as np
import pytest
import torch

from vaecli.analysis import aggregate
from vaecli.analysis.aggregate import Marginals

Z = np.linspace(-12.0, 12.0, 200_001)  # a grid fine enough for quadrature to ten digits


def density(mean: np.ndarray, var: np.ndarray, z: np.ndarray = Z) -> np.ndarray:
    parts = np.exp(-0.5 * (z[:, None] - mean) ** 2 / var) / np.sqrt(2 * math.pi * var)
    return np.asarray(parts.mean(axis=1))


def phi(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def normal_codes(n: int, mean: list[float], cov: list[list[float]], var: float) -> tuple[np.ndarray, np.ndarray]:
    """n codes whose q(z) tends to N(mean, cov + var I)."""
    rng = np.random.default_rng(0)
    mu = rng.multivariate_normal(mean, cov, size=n)
    return mu, np.full(mu.shape, math.log(var))


# -------------------------------------------------------------------------------------------------------------- moments


def test_moments_of_two_components_by_hand() -> None:
    # Half N(-1, 1/4), half N(1, 1/4): V = 5/4, fourth moment 1 + 6/4 + 3/16.
    m = aggregate.marginals(np.array([[-1.0], [1.0]]), np.log(np.full((2, 1), 0.25)))
    assert m.mean_D[0] == 0 and m.var_mu_D[0] == 1 and m.variance_D[0] == 1.25 and m.skewness_D[0] == 0
    assert m.kurtosis_D[0] == pytest.approx(2.6875 / 1.5625, rel=1e-14)
    assert m.sigma2_D is not None and m.sigma2_D[0] == pytest.approx(0.25) and m.sigma_D[0] == pytest.approx(0.5)
    assert m.rho2_3D is not None and np.allclose(m.rho2_3D, 0.25)
    assert m.kl_D is not None and m.kl_D[0] == pytest.approx(0.5 * (1 + 0.25 - math.log(0.25) - 1))


def test_moments_of_a_lopsided_mixture_by_quadrature() -> None:
    mean, var = np.array([-1.5, 0.3, 2.0]), np.array([0.04, 1.0, 0.5])
    m = aggregate.marginals(mean[:, None], np.log(var)[:, None])
    q, dz = density(mean, var), Z[1] - Z[0]
    centre = (q * Z).sum() * dz
    central = [(q * (Z - centre) ** k).sum() * dz for k in (2, 3, 4)]
    assert m.mean_D[0] == pytest.approx(centre, abs=1e-9)
    assert m.variance_D[0] == pytest.approx(central[0], rel=1e-9)
    assert m.skewness_D[0] == pytest.approx(central[1] / central[0] ** 1.5, rel=1e-8)
    assert m.kurtosis_D[0] == pytest.approx(central[2] / central[0] ** 2, rel=1e-8)


def test_kurtosis_where_every_image_obeys_the_law() -> None:
    # sigma^2 = 1 - mu^2 for each image: V = 1 and the kurtosis 3 - 2 E[mu^4] is below that of the prior.
    mu = np.concatenate([np.linspace(-0.9, 0.9, 101), np.zeros(20)])[:, None]
    m = aggregate.marginals(mu, np.log(1 - mu**2))
    assert m.variance_D[0] == pytest.approx(1.0, rel=1e-13)
    assert m.kurtosis_D[0] == pytest.approx(3 - 2 * (mu**4).mean(), rel=1e-12)


def test_standard_errors_of_skewness_and_kurtosis_are_those_of_repeated_draws() -> None:
    rng = np.random.default_rng(1)
    found, errors = [], []
    for _ in range(400):
        mu = 3 * rng.beta(2.0, 5.0, size=(500, 1))
        m = aggregate.marginals(mu, np.log(rng.uniform(0.05, 0.1, size=mu.shape)))
        found.append([m.skewness_D[0], m.kurtosis_D[0]])
        errors.append([m.skewness_error_D[0], m.kurtosis_error_D[0]])
    assert np.std(found, axis=0) == pytest.approx(np.mean(errors, axis=0), rel=0.2)


def test_normal_draws_have_the_textbook_errors() -> None:
    n = 200_000
    m = aggregate.marginals(np.random.default_rng(2).standard_normal((n, 1)), None)
    assert m.skewness_error_D[0] == pytest.approx(math.sqrt(6 / n), rel=0.05)
    assert m.kurtosis_error_D[0] == pytest.approx(math.sqrt(24 / n), rel=0.1)
    assert abs(m.kurtosis_D[0] - 3) < 4 * m.kurtosis_error_D[0]
    assert m.sigma2_D is None and m.kl_D is None and m.variance_D[0] == m.var_mu_D[0]


def test_a_latent_that_stands_still_has_no_shape() -> None:
    m = aggregate.marginals(np.ones((5, 1)), None)
    assert m.variance_D[0] == 0 and math.isnan(m.skewness_D[0]) and math.isnan(m.kurtosis_D[0])


def test_moment_kl_and_covariance() -> None:
    cov = np.array([[1.5, 0.4], [0.4, 0.8]])
    mean = np.array([0.3, -0.2])
    expected = 0.5 * (2.3 + 0.13 - 2 - math.log(1.5 * 0.8 - 0.16))
    assert aggregate.moment_kl(mean, cov) == pytest.approx(expected, rel=1e-14)
    assert aggregate.moment_kl(np.zeros(3), np.eye(3)) == 0
    assert aggregate.moment_kl(np.zeros(2), np.ones((2, 2))) == math.inf
    mu, logvar = np.array([[1.0, -2.0], [-1.0, 2.0]]), np.log(np.array([[0.1, 0.2], [0.3, 0.4]]))
    np.testing.assert_allclose(aggregate.covariance(mu, logvar), [[1.2, -2.0], [-2.0, 4.3]])
    assert aggregate.largest_covariance(mu, logvar) == 2.0 and aggregate.largest_covariance(mu[:, :1], None) == 0.0


# ---------------------------------------------------------------------------------------------------------------- rules


def rules(sigma: list[float], var_mu: list[float], gain: list[float] | None = None) -> dict[str, list[bool] | None]:
    s, v = np.array(sigma), np.array(var_mu)
    zero = np.zeros_like(s)
    m = Marginals(zero, v, v + s**2, zero, zero, zero, zero, s**2, s, zero, np.zeros((3, len(s))))
    found = aggregate.inactive(m, None if gain is None else np.array(gain))
    return {rule: None if flags is None else flags.tolist() for rule, flags in found.items()}


def test_all_rules_agree_where_latents_are_clearly_used_or_not() -> None:
    found = rules([0.1, 0.99, 0.2, 1.01], [0.98, 1e-3, 0.95, 1e-4], [30.0, 0.001, 4.0, -0.002])
    assert set(found) == set(aggregate.RULES)
    assert all(flags == [False, True, False, True] for flags in found.values())


def test_each_rule_has_its_own_threshold() -> None:
    # Var[mu] between the thresholds; sigma = 0.85: mean sigma above 0.8, sigma^2 = 0.72 below it and below 0.95.
    found = rules([0.85, 0.85, 0.85], [0.015, 0.03, 0.06], [100.0, 1.0, 1.1])
    assert found["burda"] == [False] * 3 and found["yeung"] == [True, False, False]
    assert found["split_mu"] == [True, True, False] and found["split_sigma2"] == [False] * 3
    assert found["balancing"] == [True] * 3 and found["odin"] == [False] * 3
    assert found["gain"] == [False, True, False]


def test_without_the_prior_s_scale_only_the_gain_judges() -> None:
    m = aggregate.marginals(np.array([[0.0, 1e-3], [1.0, 0.0]]), None)
    found = aggregate.inactive(m, np.array([5.0, 0.0]))
    assert found.pop("gain").tolist() == [False, True] and set(found.values()) == {None}


# ---------------------------------------------------------------------------------------------------------- information


def test_log_density_by_brute_force() -> None:
    rng = np.random.default_rng(3)
    mean, logvar = rng.normal(3.0, 2.0, size=(700, 4)), rng.normal(-2.0, 1.0, size=(700, 4))
    z = aggregate.draw(mean, logvar, np.arange(0, 700, 7), rng)
    each = -0.5 * ((z[:, None] - mean) ** 2 / np.exp(logvar) + logvar + math.log(2 * math.pi))
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-3)):
        joint, marginal = aggregate.log_density(z, mean, logvar, dtype)
        np.testing.assert_allclose(joint, np.log(np.exp(each.sum(axis=2)).mean(axis=1)), atol=tolerance)
        np.testing.assert_allclose(marginal, np.log(np.exp(each).mean(axis=1)), atol=tolerance)


def test_information_of_normal_codes() -> None:
    cov, var = [[0.9, 0.7, 0.0], [0.7, 0.8, 0.0], [0.0, 0.0, 1e-9]], 0.3
    mu, logvar = normal_codes(20_000, [0.2, 0.0, -0.5], cov, var)
    seen = []
    found = aggregate.information(mu, logvar, seed=0, advance=seen.append)
    assert sum(seen) == 20_000 and found.points == aggregate.POINTS and found.dtype == "float32"
    q = np.cov(mu.T, bias=True) + var * np.eye(3)  # of these very codes: less to chance than the true one
    mi = 0.5 * (np.linalg.slogdet(q)[1] - 3 * math.log(var))
    tc = 0.5 * (np.log(np.diag(q)).sum() - np.linalg.slogdet(q)[1])
    dwkl_D = 0.5 * (np.diag(q) + mu.mean(axis=0) ** 2 - 1 - np.log(np.diag(q)))
    assert abs(found.mi - mi) < 4 * found.mi_error < 0.1
    assert abs(found.tc - tc) < 4 * found.tc_error < 0.1 < tc
    assert abs(found.dwkl - dwkl_D.sum()) < 4 * found.dwkl_error < 0.15 < found.dwkl
    assert found.dwkl == pytest.approx(found.dwkl_D.sum(), rel=1e-12)
    assert found.kl == pytest.approx(mi + tc + dwkl_D.sum(), abs=2e-3)  # what the identity says of the closed forms
    assert found.residual == pytest.approx(found.kl - found.mi - found.tc - found.dwkl, abs=1e-9)
    assert abs(found.residual) < 4 * found.residual_error
    assert found.numerical_error < aggregate.PRECISION


def test_information_of_images_that_no_code_confuses_is_log_n() -> None:
    mu = np.linspace(-20, 20, 64)[:, None] * np.array([1.0, -0.5])
    found = aggregate.information(mu, np.full(mu.shape, -8.0), seed=1)
    assert found.mi == pytest.approx(math.log(64), abs=1e-6) and found.log_n == math.log(64)
    assert found.tc == pytest.approx(math.log(64), abs=1e-3)  # each latent alone tells them apart too


def test_information_of_codes_that_do_not_vary_is_nothing() -> None:
    found = aggregate.information(np.zeros((500, 3)), np.zeros((500, 3)), seed=2)
    for value in (found.mi, found.tc, found.dwkl, found.kl):
        assert value == pytest.approx(0.0, abs=1e-6)


def test_narrow_posteriors_are_summed_in_float64() -> None:
    rng = np.random.default_rng(4)
    mu, logvar = rng.normal(size=(3000, 2)), np.full((3000, 2), 2 * math.log(1e-4))
    found = aggregate.information(mu, logvar, seed=0)
    assert found.dtype == "float64" and found.numerical_error < aggregate.PRECISION
    # Alone in two dimensions; crowded in one, where the 3000 are 1e-3 apart and ten widths away.
    assert found.mi == pytest.approx(math.log(3000), abs=0.01)


def test_points_keep_within_the_budget() -> None:
    assert aggregate.points_within(737_280, 10) == aggregate.POINTS
    assert aggregate.points_within(737_280, 64) == int(3e10 / (737_280 * 64))
    assert aggregate.points_within(10**8, 100) == 256


# ---------------------------------------------------------------------------------------------------- distance to prior


def test_shape_of_single_normals() -> None:
    mu = np.zeros((50, 4)) + np.array([0.0, 0.5, 0.0, 0.0])
    logvar = np.zeros((50, 4)) + 2 * np.log([1.0, 1.0, 2.0, 1e-3])
    found = aggregate.shape(mu, logvar)
    crossing = math.sqrt(2 * math.log(2) / (1 - 0.25))  # where N(0, 1) and N(0, 4) have equal densities
    expected = [0.0, phi(0.25) - phi(-0.25), phi(crossing) - phi(crossing / 2), 0.5]
    assert (np.abs(found.ks_D - expected) < [1e-6, 1e-4, 1e-4, 0.01]).all()
    np.testing.assert_allclose(found.low_D, [-2.3263, -1.8263, -4.6527, -0.0023], atol=5e-4)
    np.testing.assert_allclose(found.high_D, [2.3263, 2.8263, 4.6527, 0.0023], atol=5e-4)


def test_shape_of_a_mixture_by_quadrature() -> None:
    mean, var = np.array([-1.5, 0.3, 2.0]), np.array([0.04, 1.0, 0.5])
    found = aggregate.shape(mean[:, None], np.log(var)[:, None])
    cdf = np.cumsum(density(mean, var)) * (Z[1] - Z[0])
    normal = np.cumsum(density(np.zeros(1), np.ones(1))) * (Z[1] - Z[0])
    assert found.ks_D[0] == pytest.approx(np.abs(cdf - normal).max(), abs=2e-3)
    assert found.low_D[0] == pytest.approx(np.interp(0.01, cdf, Z), abs=0.02)
    assert found.high_D[0] == pytest.approx(np.interp(0.99, cdf, Z), abs=0.02)


def test_mmd_by_double_loop() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(40, 3)), rng.normal(0.5, 1.0, size=(40, 3))
    found = aggregate.mmd(a, b, seed=0)
    pooled = np.concatenate([a, b])
    distances = np.linalg.norm(pooled[:, None] - pooled[None], axis=2)
    k = np.exp(-(distances**2) / (2 * found.bandwidth**2))
    off = ~np.eye(40, dtype=bool)
    expected = k[:40, :40][off].mean() + k[40:, 40:][off].mean() - 2 * k[:40, 40:].mean()
    assert found.mmd2 == pytest.approx(expected, rel=1e-10)
    assert found.bandwidth == pytest.approx(np.median(distances[:40, 40:]), rel=0.01) and found.points == 40


def test_mmd_of_equal_and_of_shifted_samples() -> None:
    rng = np.random.default_rng(6)
    equal = [aggregate.mmd(*rng.normal(size=(2, 200, 4)), seed=s, permutations=99) for s in range(40)]
    assert abs(np.mean([e.mmd2 for e in equal])) < 4 * np.std([e.mmd2 for e in equal]) / math.sqrt(40)
    assert 0.3 < np.mean([e.p_value for e in equal]) < 0.7
    assert np.mean([e.mmd2 > e.null for e in equal]) < 0.2
    shifted = aggregate.mmd(rng.normal(0.3, 1, size=(1000, 4)), rng.normal(size=(1000, 4)), seed=0)
    assert shifted.p_value == 1 / 201 and shifted.mmd2 > 3 * shifted.null > 0


def test_bandwidth_is_the_median_distance_between_the_two() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 2)), rng.normal(5, 3, size=(40, 2))
    distances = np.linalg.norm(a[:, None] - b, axis=2).ravel()
    lower = np.sort(distances)[(distances.size - 1) // 2]  # as torch has it: of an even number the lower
    assert aggregate.mmd(a, b, seed=0, permutations=1).bandwidth == pytest.approx(lower, rel=1e-9)


def test_auc_counts_pairs() -> None:
    a, b = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 2.0, 3.0])
    pairs = [(x > y) + 0.5 * (x == y) for x in a.tolist() for y in b.tolist()]
    assert aggregate.auc(a, b)[0] == pytest.approx(np.mean(pairs))
    assert aggregate.auc(a + 10, b) == (1.0, 0.0)
    torch.manual_seed(0)
    value, error = aggregate.auc(torch.randn(3000), torch.randn(2000))
    assert error == pytest.approx(math.sqrt(5001 / (12 * 3000 * 2000)), rel=0.03)  # Mann-Whitney under equality
    assert abs(value - 0.5) < 4 * error


def test_error_of_the_auc_counts_images_and_not_their_draws() -> None:
    """Of 50 images with 40 draws each: over many such sets the AUC varies as the error says."""
    torch.manual_seed(0)
    found = []
    for _ in range(300):
        image = torch.randn(50).repeat_interleave(40)
        found.append(aggregate.auc(image + 0.3 * torch.randn(2000), torch.randn(2000), torch.arange(2000) // 40))
    values, errors = np.array(found).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=0.12)
    alone = aggregate.auc(image, torch.randn(2000))[1]
    assert alone < errors.mean() / 4  # what it was without clusters
    torch.manual_seed(1)
    a, b = torch.randn(300), torch.randn(200)
    assert aggregate.auc(a, b, torch.arange(300)) == pytest.approx(aggregate.auc(a, b))


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_classifier_finds_what_the_best_one_could(shift: float) -> None:
    mu, logvar = normal_codes(4000, [shift, 0.0], [[0.5, 0.0], [0.0, 0.5]], 0.5)
    prior = np.random.default_rng(7).standard_normal((8000, 2))
    before = torch.get_rng_state()
    with torch.inference_mode():
        found = aggregate.classifier(mu, logvar, prior, seed=0)
    assert torch.equal(before, torch.get_rng_state()) and found.held_out == 4000
    best = phi(shift / math.sqrt(2))
    assert abs(found.auc - best) < 4 * found.error + 0.01 and found.error < 0.01


def test_classifier_sees_what_moments_do_not() -> None:
    # Four clusters with mean 0 and variance 1, so with the first two moments of the prior.
    rng = np.random.default_rng(8)
    mu = rng.choice([-0.98, 0.98], size=(2000, 2))
    logvar = np.full(mu.shape, math.log(1 - 0.98**2))
    m = aggregate.marginals(mu, logvar)
    assert aggregate.moment_kl(m.mean_D, aggregate.covariance(mu, logvar)) < 0.01
    assert aggregate.classifier(mu, logvar, rng.standard_normal((8000, 2)), seed=0).auc > 0.8
    assert math.isnan(aggregate.classifier(mu[:7], logvar[:7], rng.standard_normal((80, 2)), seed=0).auc)
