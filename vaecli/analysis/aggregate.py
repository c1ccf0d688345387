"""The aggregate posterior q(z) = (1/N) sum_x q(z|x) from the codes of N images alone, a mixture of N Gaussians.

Its moments, how far it is from the prior, and what z says about the image. Everything is in nats. `logvar_ND` None is
a deterministic code: q(z) is then the N points themselves, and whatever needs a density is left out.

Shapes: N images (components), D latents, M sampled points, G points of a grid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from vaecli.analysis.codes import Array
from vaecli.device import aside, derive
from vaecli.objectives.total_correlation import log_mixture
from vaecli.speed.optimizers import without_compiler

POINTS = 2048  # draws from q(z) over which the information terms are averaged, where the budget allows
BUDGET = 3e10  # M N D kernel evaluations; a nanosecond each on one core
TILE = 1 << 18  # elements of a tile of (points, components): it stays in the cache
NEGLIGIBLE = -80.0  # exponents below are set to it: exp is ten times slower where it underflows
PRECISION = 1e-3  # nats: the error allowed in log q(z) at single precision

Advance = Callable[[float], None]


def _quiet(amount: float) -> None:
    """No progress wanted."""


# -------------------------------------------------------------------------------------------------------------- moments


@dataclass(frozen=True)
class Marginals:
    """Moments of each q(z_i); float64 of shape (D,). Those of a deterministic code have no sigma^2.

    Standard errors are over images (delta method on each image's contribution), as for N images drawn at random.
    """

    mean_D: Array
    var_mu_D: Array
    variance_D: Array  # Var[mu] + E[sigma^2]
    skewness_D: Array
    skewness_error_D: Array
    kurtosis_D: Array  # 3 for a normal
    kurtosis_error_D: Array
    sigma2_D: Array | None = None
    sigma_D: Array | None = None  # E[sigma], not the root of E[sigma^2]
    kl_D: Array | None = None
    rho2_3D: Array | None = None  # 10, 50 and 90 % quantiles over images of sigma^2 / mu^2


def marginals(mean_ND: Array, logvar_ND: Array | None) -> Marginals:
    """The first four moments of q(z_i) by the formulas of a mixture, without sampling.

    With m = E[mu], a = mu - m and s2 = sigma^2: V = E[a^2 + s2], third central moment E[a^3 + 3 a s2], fourth
    E[a^4 + 6 a^2 s2 + 3 s2^2]. A latent that does not vary at all has NaN for skewness and kurtosis.
    """
    n, d = mean_ND.shape
    columns = []
    for i in range(d):  # one latent at a time: a dozen temporaries of N numbers, not of N D
        mu = mean_ND[:, i]
        s2 = np.zeros(n) if logvar_ND is None else np.exp(logvar_ND[:, i])
        centre = mu.mean()
        a = mu - centre
        second, third = a * a + s2, a * (a * a + 3 * s2)
        fourth = a**4 + 6 * a * a * s2 + 3 * s2 * s2
        v, m3, m4 = second.mean(), third.mean(), fourth.mean()
        if v > 0:
            skew, kurt = m3 / v**1.5, m4 / v**2
            # What one image more would change: the mean moves by a, and with it the higher moments.
            skew_N = (third - m3 - 3 * v * a) / v**1.5 - 1.5 * skew * (second - v) / v
            kurt_N = (fourth - m4 - 4 * m3 * a) / v**2 - 2 * kurt * (second - v) / v
            errors = skew_N.std() / math.sqrt(n), kurt_N.std() / math.sqrt(n)
        else:
            skew, kurt, errors = math.nan, math.nan, (math.nan, math.nan)
        column = [centre, np.mean(a * a), v, skew, errors[0], kurt, errors[1]]
        if logvar_ND is not None:
            with np.errstate(divide="ignore", over="ignore"):
                rho2 = s2 / (mu * mu)
            kl = _mean_kl(mu, logvar_ND[:, i])
            column += [s2.mean(), np.sqrt(s2).mean(), kl, *np.quantile(rho2, (0.1, 0.5, 0.9), method="inverted_cdf")]
        columns.append(column)
    rows = np.array(columns, dtype=np.float64).T
    mean, var_mu, variance, skewness, skewness_error, kurtosis, kurtosis_error = rows[:7]
    first_four = Marginals(mean, var_mu, variance, skewness, skewness_error, kurtosis, kurtosis_error)
    if logvar_ND is None:
        return first_four
    return replace(first_four, sigma2_D=rows[7], sigma_D=rows[8], kl_D=rows[9], rho2_3D=rows[10:])


def _mean_kl(mean_N: Array, logvar_N: Array) -> float:
    """E KL(N(mean, exp(logvar)) || N(0, 1))."""
    return float(0.5 * np.mean(np.square(mean_N) + np.expm1(logvar_N) - logvar_N))


def covariance(mean_ND: Array, logvar_ND: Array | None) -> Array:
    """Cov of q(z), (D, D): Cov[mu] + diag E[sigma^2]."""
    centred = mean_ND - mean_ND.mean(axis=0)
    cov_DD: Array = centred.T @ centred / len(mean_ND)
    return cov_DD if logvar_ND is None else np.asarray(cov_DD + np.diag(np.exp(logvar_ND).mean(axis=0)))


def moment_kl(mean_D: Array, cov_DD: Array) -> float:
    """KL(N(mean, cov) || N(0, I)) = (tr cov + |mean|^2 - D - log det cov) / 2; infinite where cov is singular."""
    sign, logdet = np.linalg.slogdet(cov_DD)
    if sign <= 0:
        return math.inf
    return float(0.5 * (np.trace(cov_DD) + mean_D @ mean_D - len(mean_D) - logdet))


def largest_covariance(mean_ND: Array, logvar_ND: Array | None) -> float:
    """The largest absolute covariance of two different latents under q(z); 0 for a single latent."""
    cov_DD = covariance(mean_ND, logvar_ND)
    return float(np.abs(cov_DD - np.diag(np.diag(cov_DD))).max())


# ------------------------------------------------------------------------------------------------------------- inactive

RULES = {
    "burda": "Var[mu] < 0.01 (Burda et al. 2016)",
    "yeung": "Var[mu] < 0.02 (Yeung et al. 2017)",
    "split_mu": "Var[mu] < 0.05 (Split-VAE's code, first rule)",
    "split_sigma2": "E[sigma^2] > 0.95 (Split-VAE's code, second rule)",
    "balancing": "E[sigma] > 0.8 (BalancingVAE's code: its `logvar` holds log sigma, so the variance it says it tests "
    "is the standard deviation)",
    "odin": "|E[sigma] - 1| < 0.05 (odin's code)",
    "gain": "reconstruction gain at most 1 % of the largest",
}


def inactive(m: Marginals, gain_D: Array | None = None, *, standard_prior: bool = True) -> dict[str, Array | None]:
    """By rule of `RULES`, which latents it calls inactive, (D,) of bool; None where the rule does not apply.

    `gain_D`: what the reconstruction loses in nats when a latent is zeroed. The rules disagree on latents in between;
    on clearly used and clearly unused ones (sigma^2 near 0 or near 1) they agree. The rules of the mean and of sigma
    presume the scale of a N(0, 1) prior: of other latents (`standard_prior` False, or a deterministic code) only the
    gain is judged.
    """
    found: dict[str, Array | None] = dict.fromkeys(RULES)
    if standard_prior and m.sigma2_D is not None and m.sigma_D is not None:
        found["burda"], found["yeung"], found["split_mu"] = (m.var_mu_D < t for t in (0.01, 0.02, 0.05))
        found["split_sigma2"] = m.sigma2_D > 0.95
        found["balancing"] = m.sigma_D > 0.8
        found["odin"] = np.abs(m.sigma_D - 1.0) < 0.05
    if gain_D is not None:
        found["gain"] = gain_D <= 0.01 * gain_D.max()
    return found


# ---------------------------------------------------------------------------------------------------------- information


def draw(mean_ND: Array, logvar_ND: Array | None, index_M: Array, rng: np.random.Generator) -> Array:
    """One z from q(z|x) for each of these images, (M, D)."""
    z_MD = mean_ND[index_M]
    if logvar_ND is None:
        return z_MD
    return np.asarray(z_MD + np.exp(0.5 * logvar_ND[index_M]) * rng.standard_normal(z_MD.shape))


@dataclass(frozen=True)
class Information:
    """What z says, and E KL(q(z|x) || N(0, I)) taken apart (Hoffman & Johnson 2016; Chen et al. 2018, eq. 2).

    kl = mi + tc + dwkl: the information between image and code, the total correlation of q(z), and the sum over
    latents of KL(q(z_i) || N(0, 1)). `kl` is a closed form over all N images; the three terms are averages over
    `points` draws z of log-densities under the whole mixture, each with its standard error. `residual` = kl - mi - tc
    - dwkl must be 0 within a few `residual_error`.
    """

    mi: float  # at most log N, as q(z) >= q(z|x) / N
    mi_error: float
    tc: float
    tc_error: float
    dwkl: float
    dwkl_error: float
    kl: float
    residual: float
    residual_error: float
    log_n: float
    images: int
    points: int
    dtype: str  # the precision it was computed in
    numerical_error: float  # nats: largest error found in log q(z) at the 16 hardest points
    dwkl_D: Array  # (D,)


def points_within(n: int, d: int) -> int:
    """How many draws the budget allows for N components and D latents: POINTS, fewer for very many codes."""
    return int(min(POINTS, max(256, BUDGET / (n * d))))


def information(mean_ND: Array, logvar_ND: Array, seed: int, advance: Advance = _quiet) -> Information:
    """The terms of `Information`, by sampling z from q(z) and summing over all N components.

    `advance` is told the components done, of N in all.
    """
    n, d = mean_ND.shape
    rng = np.random.default_rng(derive(seed, "information"))
    points = points_within(n, d)
    index_M = np.concatenate([rng.permutation(n) for _ in range(-(-points // n))])[:points]
    z_MD = draw(mean_ND, logvar_ND, index_M, rng)
    own_MD = -0.5 * (np.square(z_MD - mean_ND[index_M]) * np.exp(-logvar_ND[index_M]) + logvar_ND[index_M] + _LOG_2PI)
    # Hardest in single precision: far from the centre in units of the width, where the squares cancel.
    stretch_M = (np.square(z_MD - mean_ND.mean(axis=0)) * np.exp(-logvar_ND[index_M])).sum(axis=1)
    hard = np.argsort(stretch_M)[-16:]
    exact_M = np.array([_log_density_directly(z_D, mean_ND, logvar_ND) for z_D in z_MD[hard]])
    for dtype in (torch.float32, torch.float64):
        error = float(np.abs(log_density(z_MD[hard], mean_ND, logvar_ND, dtype)[0] - exact_M).max())
        if error < PRECISION:
            break
    if dtype is torch.float64 and n * points * d > BUDGET / 4:  # four times as slow
        points = max(256, points // 4)
        index_M, z_MD, own_MD = index_M[:points], z_MD[:points], own_MD[:points]
    joint_M, marginal_MD = log_density(z_MD, mean_ND, logvar_ND, dtype, advance)
    prior_MD = -0.5 * (np.square(z_MD) + _LOG_2PI)
    kl = sum(_mean_kl(mean_ND[:, i], logvar_ND[:, i]) for i in range(d))
    mi, mi_error = _mean(own_MD.sum(axis=1) - joint_M)
    tc, tc_error = _mean(joint_M - marginal_MD.sum(axis=1))
    gap_MD = marginal_MD - prior_MD
    dwkl, dwkl_error = _mean(gap_MD.sum(axis=1))
    total, residual_error = _mean((own_MD - prior_MD).sum(axis=1))
    return Information(
        mi, mi_error, tc, tc_error, dwkl, dwkl_error, kl, kl - total, residual_error, math.log(n), n, points,
        str(dtype).removeprefix("torch."), error, gap_MD.mean(axis=0),
    )  # fmt: skip


_LOG_2PI = math.log(2 * math.pi)


def _mean(values_M: Array) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values_M.mean()), float(values_M.std(ddof=1) / math.sqrt(len(values_M)))


def log_density(
    z_MD: Array, mean_ND: Array, logvar_ND: Array, dtype: torch.dtype = torch.float64, advance: Advance = _quiet
) -> tuple[Array, Array]:
    """log q(z), (M,), and log q(z_i) of every latent, (M, D), at M points; float64.

    The joint exponents come as one matrix product over the features (z^2, z) of the points, taken about the centre of
    the codes, and are summed as logarithms. The marginals are summed as they are: a point drawn from the mixture lies
    within its own component, whose density cannot underflow.
    """
    (m, d), n = z_MD.shape, len(mean_ND)
    centre_D = mean_ND.mean(axis=0)
    z = torch.from_numpy(z_MD - centre_D)
    features_MF = torch.cat([z.square(), z], dim=1).to(dtype)
    z_DM = z.T.contiguous().to(dtype)
    size = max(1, TILE // m)
    joint_M = torch.full((m,), -math.inf, dtype=torch.float64)
    density_DM = torch.zeros(d, m, dtype=torch.float64)
    tile = torch.empty(m * size, dtype=dtype)
    for start in range(0, n, size):
        mean = torch.from_numpy(mean_ND[start : start + size] - centre_D)
        logvar = torch.from_numpy(logvar_ND[start : start + size])
        precision, k = (-logvar).exp(), len(mean)
        weights_FK = torch.cat([-0.5 * precision, mean * precision], dim=1).T
        constant_K = -0.5 * (mean.square() * precision + logvar + _LOG_2PI).sum(dim=1)
        exponent_MK = torch.addmm(constant_K.to(dtype), features_MF, weights_FK.to(dtype), out=tile[: m * k].view(m, k))
        top_M = exponent_MK.amax(dim=1, keepdim=True)
        part_M = exponent_MK.sub_(top_M).clamp_(min=NEGLIGIBLE).exp_().sum(dim=1).double().log() + top_M[:, 0].double()
        joint_M = torch.logaddexp(joint_M, part_M)
        narrow_KD = (0.5 * precision).sqrt()
        for i in range(d):
            t_MK = torch.sub(z_DM[i, :, None], mean[:, i].to(dtype), out=tile[: m * k].view(m, k))
            t_MK.mul_(narrow_KD[:, i].to(dtype)).square_().neg_().clamp_(min=NEGLIGIBLE).exp_()
            density_DM[i] += torch.mv(t_MK, narrow_KD[:, i].to(dtype)).double()
        advance(k)
    marginal_MD = (density_DM.T / (n * math.sqrt(math.pi))).log()
    return (joint_M - math.log(n)).numpy(), marginal_MD.numpy()


def _log_density_directly(z_D: Array, mean_ND: Array, logvar_ND: Array) -> float:
    """log q(z) at one point in float64, from differences that cancel nothing."""
    z, mean, logvar = (torch.from_numpy(a) for a in (z_D[None], mean_ND, logvar_ND))
    weight = torch.full((1, len(mean)), -math.log(len(mean)), dtype=torch.float64)
    return float(log_mixture(z, mean, logvar, weight)[0])


# ---------------------------------------------------------------------------------------------------- distance to prior


@dataclass(frozen=True)
class Shape:
    """Each q(z_i) against N(0, 1), (D,)."""

    ks_D: Array  # sup |F_q - Phi|
    low_D: Array  # the 1 % quantile of q(z_i)
    high_D: Array  # the 99 % quantile


def shape(mean_ND: Array, logvar_ND: Array, advance: Advance = _quiet, grid: int = 128) -> Shape:
    """The Kolmogorov-Smirnov distance by the mixture's distribution function F(z) = mean of Phi((z - mu) / sigma).

    Taken over `grid` quantiles of the prior and as many of q(z_i) itself: both functions rise by at most about 1/grid
    between neighbours, which bounds what can be missed; for smooth q(z_i) it is far less. `advance`: components, of N.
    """
    n, d = mean_ND.shape
    share_G = torch.linspace(0, 1, grid + 2, dtype=torch.float64)[1:-1]
    normal_G = torch.special.ndtri(share_G)
    # Quantiles of a thinned mixture, four points a component, are near enough to place a grid.
    thin = mean_ND[:: max(1, n // 4096)], np.exp(0.5 * logvar_ND[:: max(1, n // 4096)])
    around = np.concatenate([thin[0] + t * thin[1] for t in (-2.5, -0.8, 0.0, 0.8, 2.5)])
    own_GD = np.quantile(
        around, np.concatenate([[0.0, 0.002, 0.005, 0.01], share_G, [0.99, 0.995, 0.998, 1.0]]), axis=0
    )
    far_D = np.abs(around).max(axis=0) + 1.0
    z_DG = torch.stack([
        torch.cat([torch.tensor([-far_D[i], far_D[i]]), normal_G, torch.from_numpy(own_GD[:, i])]).sort().values
        for i in range(d)
    ])  # fmt: skip
    rises_DG = torch.zeros_like(z_DG)
    size = max(1, TILE // z_DG.shape[1])
    dtype = torch.float32 if float(logvar_ND.min()) > 2 * math.log(1e-3) else torch.float64
    for start in range(0, n, size):
        mean = torch.from_numpy(mean_ND[start : start + size])
        narrow = (-0.5 * torch.from_numpy(logvar_ND[start : start + size])).exp() / math.sqrt(2)
        for i in range(d):
            t_GK = (z_DG[i, :, None].to(dtype) - mean[:, i].to(dtype)).mul_(narrow[:, i].to(dtype)).erf_()
            rises_DG[i] += t_GK.sum(dim=1).double()
        advance(len(mean))
    cdf_DG = 0.5 + 0.5 * rises_DG / n
    ks_D = (cdf_DG - torch.special.ndtr(z_DG)).abs().amax(dim=1)
    # Between grid points straight in the normal's own scale, in which the tails of a normal are a line.
    probit_DG = torch.special.ndtri(cdf_DG.clamp(1e-12, 1 - 1e-12)).numpy()
    low_D, high_D = (
        np.array([np.interp(t, probit_DG[i], z_DG[i].numpy()) for i in range(d)]) for t in (-2.326348, 2.326348)
    )
    return Shape(ks_D.numpy(), low_D, high_D)


@dataclass(frozen=True)
class Discrepancy:
    """MMD^2 between draws of q(z) and p(z); `null` is the 95 % quantile and `p_value` the rank under permutation."""

    mmd2: float
    null: float
    p_value: float
    bandwidth: float
    points: int  # of each


def mmd(z_MD: Array, prior_MD: Array, seed: int, permutations: int = 200) -> Discrepancy:
    """The unbiased squared maximum mean discrepancy with kernel exp(-|a - b|^2 / (2 h^2)) (Gretton et al. 2012, eq. 3).

    h is the median distance between a point of one and a point of the other. Around 0 (also below) for equal
    distributions.
    """
    m = min(len(z_MD), len(prior_MD))
    pooled = torch.from_numpy(np.concatenate([z_MD[:m], prior_MD[:m]]))
    pooled = pooled - pooled.mean(dim=0)
    norms = pooled.square().sum(dim=1)
    squares = (norms[:, None] + norms[None] - 2 * pooled @ pooled.T).clamp_(min=0.0)
    bandwidth2 = max(float(squares[:m, m:].median()), 1e-300)
    kernel = squares.div_(-2 * bandwidth2).exp_()
    kernel.fill_diagonal_(0.0)
    # With labels y = +1, -1: within + across = sum K and within - across = y'Ky.
    generator = torch.Generator().manual_seed(derive(seed, "mmd"))
    labels = torch.ones(2 * m, permutations + 1, dtype=torch.float64)
    labels[m:, 0] = -1
    for p in range(1, permutations + 1):
        labels[torch.randperm(2 * m, generator=generator)[m:], p] = -1
    signed = (labels * (kernel @ labels)).sum(dim=0)
    total = float(kernel.sum())
    within, across = 0.5 * (total + signed), 0.5 * (total - signed)
    values = within / (m * (m - 1)) - across / (m * m)
    p_value = (1 + int((values[1:] >= values[0]).sum())) / (permutations + 1)
    return Discrepancy(float(values[0]), float(values[1:].quantile(0.95)), p_value, math.sqrt(bandwidth2), m)


@dataclass(frozen=True)
class Separation:
    """How well a small network tells draws of q(z) from draws of p(z): 0.5 not at all, 1 without error."""

    auc: float  # on held-out draws, of images the network did not see
    error: float  # standard error (DeLong et al. 1988)
    held_out: int  # of each


def classifier(
    mean_ND: Array, logvar_ND: Array | None, prior_MD: Array, seed: int, steps: int = 500, advance: Advance = _quiet
) -> Separation:
    """A classifier two-sample test (Lopez-Paz & Oquab 2017): a network of two layers, trained on half of the images.

    `prior_MD` are draws from p(z), half of them to train on. Its randomness is its own. NaN for fewer than 8 images.
    """
    n, m = len(mean_ND), len(prior_MD) // 2
    if n < 8:
        return Separation(math.nan, math.nan, 0)
    rng = np.random.default_rng(derive(seed, "classifier"))
    order = rng.permutation(n)
    halves = [np.resize(half, m) for half in (order[: n // 2], order[n // 2 :])]
    q_train, q_test = (torch.from_numpy(draw(mean_ND, logvar_ND, half, rng)).float() for half in halves)
    p_train, p_test = (torch.from_numpy(part).float() for part in (prior_MD[:m], prior_MD[m : 2 * m]))
    train_x = torch.cat([q_train, p_train])
    centre, scale = train_x.mean(dim=0), train_x.std(dim=0).clamp(min=1e-12)
    train_x, test_x = (train_x - centre) / scale, (torch.cat([q_test, p_test]) - centre) / scale
    train_y = torch.cat([torch.ones(m), torch.zeros(m)])
    with aside(), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(derive(seed, "classifier"))
        net = nn.Sequential(nn.Linear(mean_ND.shape[1], 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        optimizer = without_compiler(torch.optim.AdamW)(net.parameters(), lr=5e-3, weight_decay=1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            index = torch.randint(2 * m, (512,))
            loss = nn.functional.binary_cross_entropy_with_logits(net(train_x[index])[:, 0], train_y[index])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            advance(1)
        with torch.no_grad():
            score = net(test_x)[:, 0].double()
    # An image of few is drawn many times over, and its draws are no independent points.
    return Separation(*auc(score[:m], score[m:], torch.from_numpy(halves[1])), m)


def auc(positive_A: Tensor, negative_B: Tensor, cluster_A: Tensor | None = None) -> tuple[float, float]:
    """P(a positive scores above a negative), ties counted half, and its standard error (DeLong et al. 1988).

    Positives of the same `cluster_A` (integers) count as one, the mean of theirs (Obuchowski 1997, "Nonparametric
    analysis of clustered ROC curve data", with clusters of positives alone).
    """
    below_A = _share_below(positive_A, negative_B)
    above_B = 1 - _share_below(negative_B, positive_A)
    auc = float(below_A.mean())
    if cluster_A is None:
        square = float(below_A.var()) / len(below_A)
    else:
        number_A = torch.from_numpy(np.unique(cluster_A.numpy(), return_inverse=True)[1])
        clusters = int(number_A.max()) + 1
        off_C = torch.zeros(clusters, dtype=torch.float64).index_add_(0, number_A, below_A - auc)
        square = float(off_C.square().sum()) * clusters / max(clusters - 1, 1) / len(below_A) ** 2
    return auc, math.sqrt(square + float(above_B.var()) / len(above_B))


def _share_below(x: Tensor, others: Tensor) -> Tensor:
    """For each x the share of the others below it, those equal to it counted half."""
    ordered = others.sort().values
    left = torch.searchsorted(ordered, x, right=False)
    right = torch.searchsorted(ordered, x, right=True)
    return (left + right).double() / (2 * len(others))
