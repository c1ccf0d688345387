"""The terms of the objectives as pure functions of tensors.

Nats everywhere; images in [0, 1]. Shapes: B batch, C H W image, D latents.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

UNITS = "nats, sum over pixels and latents, mean over the batch"
LOG_2PI = math.log(2.0 * math.pi)
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0


# ---- Gaussian posteriors


def clamp_logvar(logvar: Tensor) -> Tensor:
    """Log-variances limited to [-30, 20]; any shape.

    No healthy posterior comes near the bounds: a standard deviation of exp(-15) = 3e-7 is at the resolution of a
    float32 latent of size 1, so a narrower one samples nothing but its mean, and exp(10) = 22,000 is that many widths
    of the prior. Between them exp(logvar), its sum over latents and its gradient stay far from overflow.
    """
    return logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)


def kl_normal(mean_BD: Tensor, logvar_BD: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of every latent in nats, (B, D).

    0.5 (mean^2 + exp(logvar) - logvar - 1), Kingma & Welling 2014, appendix B; expm1 keeps the digits of a collapsed
    latent, where the terms cancel.
    """
    return 0.5 * (mean_BD.square() + torch.expm1(logvar_BD) - logvar_BD)


def reparameterize(mean_BD: Tensor, logvar_BD: Tensor) -> Tensor:
    """One draw mean + exp(logvar / 2) eps, eps ~ N(0, I) from torch's global generator (Kingma & Welling 2014, 2.4)."""
    return mean_BD + torch.exp(0.5 * logvar_BD) * torch.randn_like(mean_BD)


def log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, exp(logvar)) in nats, element by element; the arguments broadcast."""
    return -0.5 * ((z - mean).square() * torch.exp(-logvar) + logvar + LOG_2PI)


# ---- likelihoods


def bernoulli_log_prob(x_BCHW: Tensor, logits_BCHW: Tensor) -> Tensor:
    """Sum over pixels of x log p + (1 - x) log(1 - p), p = sigmoid(logits), in nats, (B,).

    The log-probability of a binary image; for x between 0 and 1 the (negative) cross-entropy, whose best p is x.
    """
    return -F.binary_cross_entropy_with_logits(logits_BCHW, x_BCHW, reduction="none").flatten(1).sum(dim=1)


def gaussian_log_prob(x_BCHW: Tensor, mean_BCHW: Tensor, sigma: float | Tensor) -> Tensor:
    """log N(x; mean, sigma^2 I) summed over pixels in nats, constants included, (B,); sigma > 0 is one number."""
    log_sigma = sigma.log() if isinstance(sigma, Tensor) else math.log(sigma)
    squares_B = ((x_BCHW - mean_BCHW) / sigma).square().flatten(1).sum(dim=1)
    return -0.5 * squares_B - x_BCHW[0].numel() * (log_sigma + 0.5 * LOG_2PI)


def laplace_log_prob(x_BCHW: Tensor, mean_BCHW: Tensor, scale: float | Tensor) -> Tensor:
    """log Laplace(x; mean, scale) summed over pixels in nats, (B,): -|x - mean| / scale - log(2 scale)."""
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    off_B = (x_BCHW - mean_BCHW).abs().flatten(1).sum(dim=1) / scale
    return -off_B - x_BCHW[0].numel() * (log_scale + math.log(2.0))


def continuous_bernoulli_log_prob(x_BCHW: Tensor, logits_BCHW: Tensor) -> Tensor:
    """The Bernoulli's x log p + (1 - x) log(1 - p) made a density on [0, 1] by its constant log C, summed over pixels
    in nats, (B,) (Loaiza-Ganem & Cunningham 2019, eq. 7); C = l / tanh(l / 2) in logits l, which is 2 at l = 0."""
    return bernoulli_log_prob(x_BCHW, logits_BCHW) + _log_constant(logits_BCHW).flatten(1).sum(dim=1)


def _log_constant(logits: Tensor) -> Tensor:
    """log(l / tanh(l / 2)); near 0, where it is 0 / 0, its series log 2 + l^2 / 12 - 7 l^4 / 1440."""
    near = logits.abs() < 0.1
    far = torch.where(near, torch.ones_like(logits), logits).abs()
    square = torch.where(near, logits, torch.zeros_like(logits)).square()
    series = math.log(2.0) + square / 12 - 7 * square.square() / 1440 + 31 * square**3 / 90720
    return torch.where(near, series, far.log() - torch.tanh(far / 2).log())


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """E[x] of a continuous Bernoulli: sigmoid(l) / tanh(l / 2) - 1 / l, and 1/2 + l/12 - l^3/720 near 0; any shape."""
    near = logits.abs() < 0.1
    far = torch.where(near, torch.ones_like(logits), logits)
    close = torch.where(near, logits, torch.zeros_like(logits))
    series = 0.5 + close / 12 - close**3 / 720 + close**5 / 30240
    return torch.where(near, series, torch.sigmoid(far) / torch.tanh(far / 2) - 1 / far)


def discretized_logistic_log_prob(x_BCHW: Tensor, mean_BCHW: Tensor, log_scale: Tensor, levels: int = 256) -> Tensor:
    """log P(x) of images of `levels` grey levels under logistics cut into bins of 1 / (levels - 1) around each level,
    the outer ones open, summed over pixels in nats, (B,) (Kingma et al. 2016, appendix). A probability, not a density.

    Both tails are taken where they are small: no difference of numbers that are nearly 1.
    """
    half = 0.5 / (levels - 1)
    scale = torch.exp(log_scale)
    above, below = (x_BCHW - mean_BCHW + half) / scale, (x_BCHW - mean_BCHW - half) / scale
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
    inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(below - above))
    lowest, highest = x_BCHW <= half, x_BCHW >= 1 - half
    each = torch.where(lowest, F.logsigmoid(above), torch.where(highest, F.logsigmoid(-below), inside))
    return each.flatten(1).sum(dim=1)


# ---- weights of the KL


def free_bits(kl_BD: Tensor, free: float) -> Tensor:
    """sum_d max(free, mean over the batch of KL_d) in nats, () (Kingma et al. 2016, appendix C): below `free` nats in
    the mean of the batch a latent's KL has no gradient. Where latents belong together they are one column, (B, 1)."""
    return kl_BD.mean(dim=0).clamp(min=free).sum()


def capacity(kl_mean: Tensor, c: float) -> Tensor:
    """|KL - C| with the KL already averaged over the batch (Burgess et al. 2018, eq. 8, where it weighs gamma).

    The absolute value is taken of the mean, not averaged over images: single images may carry more or less than C.
    """
    return (kl_mean - c).abs()


def beta_from_norm(beta_norm: float, latent_dim: int, pixels: int) -> float:
    """beta = beta_norm N / M for M latents and N = C H W values an image (Higgins et al. 2017, section 4.2)."""
    return beta_norm * pixels / latent_dim


def norm_from_beta(beta: float, latent_dim: int, pixels: int) -> float:
    """beta_norm = beta M / N, the inverse of `beta_from_norm`."""
    return beta * latent_dim / pixels
