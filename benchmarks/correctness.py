"""What the errors and choices of well-known implementations change, in numbers, on inputs whose answer is known.

    python benchmarks/correctness.py            the table, as it stands in docs/correctness.md
    python benchmarks/correctness.py --write    into docs/correctness.md

Each entry computes the published formula by this package and the other formula, written anew from what the repository
named does, over the same seeded numbers in float64. A test holds the page to what this file says.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaecli.objectives import mmd, terms, total_correlation
from vaecli.objectives.covariance import covariance

PAGE = Path(__file__).parents[1] / "docs" / "correctness.md"
BEGIN, END = "<!-- effects: written by benchmarks/correctness.py -->", "<!-- /effects -->"


class Effect(NamedTuple):
    """`numbers`: what both give, in words and digits."""

    where: str
    what: str
    setting: str
    numbers: str


def normals(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def stratified_weights() -> Effect:
    """The odd weights and those of the image itself in the first two columns instead of on the diagonals."""
    b, n, d, sigma, batches = 64, 737_280, 6, 0.1, 200
    logvar_BD = torch.full((b, d), 2 * math.log(sigma), dtype=torch.float64)
    wrong_BB = torch.full((b, b), 1 / (b - 1), dtype=torch.float64)
    wrong_BB[:, 0], wrong_BB[:, 1], wrong_BB[b - 2, 0] = 1 / n, (n - b + 1) / (n * (b - 1)), (n - b + 1) / (n * (b - 1))
    found = {"ours": torch.zeros(2, dtype=torch.float64), "theirs": torch.zeros(2, dtype=torch.float64)}
    for i in range(batches):
        mean_BD = normals(b, d, seed=2 * i) * math.sqrt(1 - sigma**2)
        z_BD = mean_BD + sigma * normals(b, d, seed=2 * i + 1)
        own_B = terms.log_normal(z_BD, mean_BD, logvar_BD).sum(dim=1)
        for name, weight_BB in (
            ("ours", total_correlation.log_weights(b, n, "mss", z_BD)),
            ("theirs", wrong_BB.log()),
        ):
            joint_B, marginal_BD = total_correlation.log_mixture(z_BD, mean_BD, logvar_BD, weight_BB)
            mi, tc = (own_B - joint_B).mean(), (joint_B - marginal_BD.sum(dim=1)).mean()
            found[name] += torch.stack([mi, tc]) / batches
    truth = -d * math.log(sigma)
    (mi, tc), (mi_wrong, tc_wrong) = (found[name].tolist() for name in ("ours", "theirs"))
    return Effect(
        "rtqichen/beta-tcvae (and disentangling-vae, pythae, PyTorch-VAE, disentangling-correlated-factors)",
        "beta-TCVAE, stratified weights: a stride of B over the B x B matrix fills columns, not diagonals",
        f"B = {b}, N = {n:,}, {d} independent latents, sigma {sigma}: MI {truth:.1f}, TC 0 nats",
        f"MI {mi:.1f}, TC {tc:.1f}; theirs MI {mi_wrong:.1f}, TC {tc_wrong:.1f}",
    )


def weighted_constants() -> Effect:
    """MWS as it stands, read as a total correlation."""
    b, n, d = 64, 737_280, 6
    mean_BD = normals(b, d, seed=1) * math.sqrt(0.99)
    logvar_BD = torch.full((b, d), math.log(0.01), dtype=torch.float64)
    z_BD = mean_BD + 0.1 * normals(b, d, seed=2)
    mss, mws = (total_correlation.decompose(z_BD, mean_BD, logvar_BD, n, kind) for kind in ("mss", "mws"))
    return Effect(
        "rtqichen/beta-tcvae, disentangling-vae logs",
        "beta-TCVAE, weighted sampling: TC printed with its constant (D - 1) log N (no gradient depends on it)",
        "the same",
        f"TC by mss {mss.tc_B.mean():.1f}, by mws {mws.tc_B.mean():.1f}, of which {(d - 1) * math.log(n):.1f} constant",
    )


def dip_scalar() -> Effect:
    """DIP-VAE-II with the mean variance added to every entry of the covariance."""
    b, d, weight = 4096, 10, 10.0
    sigma2_D = torch.linspace(0.05, 0.5, d, dtype=torch.float64)
    mean_BD = normals(b, d, seed=0) * (1 - sigma2_D).sqrt()
    ours = _departure(covariance(mean_BD, sigma2_D.log().expand(b, d)), weight, weight)
    theirs = _departure(covariance(mean_BD) + sigma2_D.mean(), weight, weight)
    return Effect(
        "nmichlo/disent 0.9.3, amir-abdi/disentanglement-pytorch",
        "DIP-VAE-II: the mean of all variances is added to every entry of Cov[mu], not each to its place",
        f"codes whose Cov[z] is the identity (B = {b:,}, D = {d}), lambda_od = lambda_d = {weight:g}",
        f"penalty {ours:.2f}; theirs {theirs:.1f}",
    )


def dip_other_axis() -> Effect:
    """DIP-VAE centred over latents, not divided by B, with exp(2 logvar)."""
    b, d, weight = 144, 10, 10.0
    sigma2_D = torch.linspace(0.05, 0.5, d, dtype=torch.float64)
    mean_BD = normals(b, d, seed=0) * (1 - sigma2_D).sqrt()
    ours = _departure(covariance(mean_BD, sigma2_D.log().expand(b, d)), weight, weight)
    across_BD = mean_BD - mean_BD.mean(dim=1, keepdim=True)
    theirs = _departure(across_BD.T @ across_BD + sigma2_D.square().mean(), weight, weight)
    return Effect(
        "AntixK/PyTorch-VAE",
        "DIP-VAE: centred over the latents of an image, summed over the batch, variances as exp(2 logvar)",
        f"the same at B = {b}",
        f"penalty {ours:.1f}; theirs {theirs:,.0f}",
    )


def _departure(cov_DD: Tensor, od: float, diagonal: float) -> float:
    """Written out: lambda_od sum of squares off the diagonal + lambda_d sum of (C_ii - 1)^2."""
    own_D = cov_DD.diagonal()
    return float(od * (cov_DD.square().sum() - own_D.square().sum()) + diagonal * (own_D - 1).square().sum())


def mean_over_pixels() -> Effect:
    """The beta that mean squared error and a KL weight of 0.00025 stand for, against a Gaussian of variance 1."""
    beta = {side: 0.00025 * channels * side**2 / 2 for side, channels in ((28, 1), (64, 3), (128, 3))}
    shown = ", ".join(f"{value:.3g} at {side}x{side}" for side, value in beta.items())
    return Effect(
        "AntixK/PyTorch-VAE",
        "reconstruction averaged over pixels, KL summed and weighed by 0.00025 in training and by 1 in validation",
        "the beta of a Gaussian likelihood of variance 1 that this is, 1 channel at 28x28, else 3",
        f"{shown}; {1 / 0.00025:,.0f} times that in validation",
    )


def capacity_per_image() -> Effect:
    """|KL - C| of each image, averaged, against |mean KL - C|."""
    kl_B = torch.from_numpy(np.random.default_rng(0).gamma(25.0, 1.0, 64))
    kl_B += 25.0 - kl_B.mean()
    ours, theirs = 1000 * (kl_B.mean() - 25.0).abs(), 1000 * (kl_B - 25.0).abs().mean()
    return Effect(
        "pythae, odin-ai (a choice: disentanglement_lib and the first author have the batch mean)",
        "annealed-vae: the capacity is compared with the KL of each image",
        "64 images of KL 25 +- 5 nats, C = 25, gamma = 1000",
        f"penalty {abs(float(ours)):.0f} nats; theirs {theirs:,.0f}",
    )


def squared_error_times_255() -> Effect:
    """A Gaussian likelihood whose error is multiplied by 255."""
    return Effect(
        "disentangling-vae, disentangling-correlated-factors",
        "Gaussian reconstruction multiplied by 255 (Laplace by 3), so that hyper-parameters carry over",
        "the beta that beta = 4 then is",
        f"{4 / 255:.4f}",
    )


def vamp_precedence() -> Effect:
    """log N with the log-variance divided by the variance, too."""
    z, mean, logvar = (torch.tensor([v], dtype=torch.float64) for v in (0.3, 0.0, -2.0))
    ours = terms.log_normal(z, mean, logvar)
    theirs = -0.5 * ((logvar + (z - mean).square()) / logvar.exp() + terms.LOG_2PI)
    return Effect(
        "AntixK/PyTorch-VAE",
        "VampPrior: (logvar + (z - mu)^2) / var in log N in place of logvar + (z - mu)^2 / var; samples from N(0, I)",
        "one latent, z - mu = 0.3, logvar -2",
        f"log N {float(ours):.3f} nats; theirs {float(theirs):.3f}",
    )


def mmd_scales() -> Effect:
    """A kernel whose width is multiplied by D twice, means with the diagonal, and all of it divided by B (B - 1)."""
    b, d = 144, 10
    x_BD, y_BD = 0.5 * normals(b, d, seed=1), normals(b, d, seed=2)
    ours = float(mmd.mmd2(x_BD, y_BD, "rbf"))
    xx, yy, xy = (float(mmd.kernel(p, q, "rbf", (d,)).mean()) for p, q in ((x_BD, x_BD), (y_BD, y_BD), (x_BD, y_BD)))
    theirs = (xx + yy - 2 * xy) / (b * (b - 1))
    return Effect(
        "AntixK/PyTorch-VAE",
        "InfoVAE with the rbf kernel: squared distances divided by D twice, and the mean once more by B (B - 1)",
        f"q(z) = N(0, 0.25 I), {d} latents, {b} draws each, kernel exp(-d^2 / 2D)",
        f"MMD^2 {ours:.1e}; theirs {theirs:.1e}",
    )


def mig_without_transposing() -> Effect:
    """Samples (N, D) read as (D, N): entropies at points of other latents and other images."""
    values, sigma = 8, 0.05
    factors_NK = torch.cartesian_prod(*[torch.arange(values)] * 3).double()
    mean_ND = (factors_NK - factors_NK.mean(dim=0)) / factors_NK.std(dim=0)
    sample_ND = mean_ND + sigma * normals(*mean_ND.shape, seed=0)
    gaps = []
    for points_ND in (sample_ND, sample_ND.reshape(3, -1).T):
        gaps.append(_gap(points_ND, mean_ND, factors_NK.long(), 2 * math.log(sigma), values))
    return Effect(
        "YannDubs/disentangling-vae",
        "MIG: the samples (N, D) are read as (D, N) by a view where a transpose is needed",
        f"codes that are the factors ({values}^3 images, sd {sigma})",
        f"MIG {gaps[0]:.3f}; theirs {gaps[1]:.3f}",
    )


def _gap(points_ND: Tensor, mean_ND: Tensor, factors_NK: Tensor, logvar: float, values: int) -> float:
    """MIG of q(z|x) from one sample an image, entropies by the exact mixtures."""

    def entropy_D(rows: Tensor) -> Tensor:
        var = torch.full_like(mean_ND[rows], logvar)
        weight = torch.full((len(rows), len(rows)), -math.log(len(rows)), dtype=torch.float64)
        return -total_correlation.log_mixture(points_ND[rows], mean_ND[rows], var, weight)[1].mean(dim=0)

    everywhere_D, gaps = entropy_D(torch.arange(len(mean_ND))), []
    for k in range(factors_NK.shape[1]):
        given_D = torch.stack([entropy_D((factors_NK[:, k] == v).nonzero()[:, 0]) for v in range(values)]).mean(dim=0)
        first, second = (everywhere_D - given_D).sort(descending=True).values[:2]
        gaps.append(float((first - second) / math.log(values)))
    return sum(gaps) / len(gaps)


def first_batch_over_batches() -> Effect:
    """Test losses of one batch, divided by the number of batches."""
    losses = 100 + 3 * np.random.default_rng(0).standard_normal(8)
    return Effect(
        "YannDubs/disentangling-vae",
        "test losses: returned within the loop, so that one batch's is divided by the number of batches",
        "8 batches of 100 nats",
        f"{losses.mean():.1f}; theirs {losses[0] / 8:.1f}",
    )


def gradient_penalty_of_images() -> Effect:
    """RAE's |grad_z D|^2 of a linear autoencoder, and the derivative of all pixels' sum by the image that went in."""
    encoder_DP, decoder_PD = normals(2, 20, seed=1) / math.sqrt(20), normals(20, 2, seed=2)
    ours = float(decoder_PD.square().sum())
    theirs = float((encoder_DP.T @ decoder_PD.sum(dim=0)).square().sum())
    return Effect(
        "pythae",
        "RAE-GP: the squared derivative of the sum of all pixels by the input image, not of each pixel by the latent",
        "linear decoder and encoder, 20 pixels, 2 latents",
        f"|grad_z D|^2 {ours:.1f}; theirs {theirs:.1f}",
    )


def law_of_deviations() -> Effect:
    """The variance law with a standard deviation where a variance belongs."""
    sigma2 = 0.25
    return Effect(
        "asperti/BalancingVAE",
        "variance law: the network's log sigma is called zlogvar and exponentiated once",
        f"a latent of variance of mu {1 - sigma2:g} and sigma^2 {sigma2:g}, for which it holds",
        f"Var[mu] + E[sigma^2] = {1.0:.2f}; theirs {1 - sigma2 + math.sqrt(sigma2):.2f}",
    )


def dc_ign_sign() -> Effect:
    """One step of gradient descent by the invariance term, and by minus twice it."""
    v_B = normals(20, seed=0)
    v_B = v_B / v_B.std(correction=0)
    rate = 10.0  # large, to be seen: the term weighs 1/100
    after = [float((v_B - rate * s * (v_B - v_B.mean())).var(correction=0)) for s in (0.01, -0.02)]
    return Effect(
        "willwhitney/dc-ign",
        "DC-IGN: the invariance gradient is added twice and with the sign of ascent",
        f"20 codes of variance 1, a step of size {rate:g}, strength 1/100",
        f"variance {after[0]:.2f}; theirs {after[1]:.2f}",
    )


def swapped_groups() -> Effect:
    """PIWAE's bound for the encoder with its means and logarithms over each other's axis."""
    log_w_MK = 3 * normals(2, 16, seed=3)

    def bound(axis: int) -> float:
        return float((torch.logsumexp(log_w_MK, dim=axis) - math.log(log_w_MK.shape[axis])).mean())

    return Effect(
        "pythae 0.1.2",
        "PIWAE: the encoder's logarithm is over the M groups, its mean over the K draws",
        "M = 2, K = 16, log w of standard deviation 3",
        f"bound {bound(1):.2f} nats; theirs {bound(0):.2f}",
    )


EFFECTS: tuple[Callable[[], Effect], ...] = (
    stratified_weights, weighted_constants, dip_scalar, dip_other_axis, mean_over_pixels, capacity_per_image,
    squared_error_times_255, vamp_precedence, mmd_scales, mig_without_transposing, first_batch_over_batches,
    gradient_penalty_of_images, law_of_deviations, dc_ign_sign, swapped_groups,
)  # fmt: skip


def table() -> str:
    lines = ["| where | what | on | ours; theirs |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in effect()) + " |" for effect in EFFECTS]
    return "\n".join(lines)


def written(page: str, text: str) -> str:
    """The page with the table between the marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text(), table()))
    else:
        print(table())
