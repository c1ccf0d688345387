"""Codes over a full factor grid for which the answer of a metric is known (`from known_codes import perfect, ...`).

Rows run through the grid in C order: the last factor changes fastest. Codes that know a factor hold it standardised
(mean 0, variance 1), and q(z|x) is narrow against the distance of two values.
"""

from collections.abc import Sequence

import numpy as np

from vaecli.analysis import codes
from vaecli.analysis.codes import Array, Codes

SIZES = (3, 6, 8, 8)
DSPRITES = (3, 6, 40, 32, 32)
SIGMA = 0.01  # of q(z|x) in latents that know a factor


def grid(sizes: Sequence[int] = SIZES) -> Array:
    """All combinations of factor values, (prod(sizes), K) int64."""
    return np.indices(sizes).reshape(len(sizes), -1).T.astype(np.int64)


def standardised(factors_NK: Array) -> Array:
    """Each column with mean 0 and variance 1; constant columns become 0."""
    std_K = factors_NK.std(axis=0)
    return (factors_NK - factors_NK.mean(axis=0)) / np.where(std_K > 0, std_K, 1.0)


def made(mean_ND: Array, factors_NK: Array, sigma: float = SIGMA) -> Codes:
    """Codes with the same standard deviation of q(z|x) everywhere."""
    names = [f"f{k}" for k in range(factors_NK.shape[1])]
    return codes.make(mean_ND, np.full(mean_ND.shape, 2 * np.log(sigma)), factors_NK, names)


def perfect(sizes: Sequence[int] = SIZES, dead: int = 0) -> Codes:
    """Latent k is factor k; then `dead` latents that are the prior, with means of standard deviation 0.001."""
    factors_NK = grid(sizes)
    code = made(standardised(factors_NK), factors_NK)
    if not dead:
        return code
    noise = 0.001 * np.random.default_rng(0).normal(size=(len(factors_NK), dead))
    logvar = np.concatenate([code.logvar_ND, np.zeros_like(noise)], axis=1)
    return codes.make(np.concatenate([code.mean_ND, noise], axis=1), logvar, factors_NK, code.factor_names)


def permuted(sizes: Sequence[int] = SIZES, seed: int = 0) -> Codes:
    """The perfect code with its latents in another order, each scaled, shifted and maybe with its sign changed."""
    rng = np.random.default_rng(seed)
    factors_NK = grid(sizes)
    order = rng.permutation(len(sizes))
    scale = rng.uniform(0.5, 2, len(sizes)) * rng.choice([-1, 1], len(sizes))
    return made(standardised(factors_NK)[:, order] * scale + rng.normal(size=len(sizes)), factors_NK)


def rotated(sizes: Sequence[int] = SIZES, seed: int = 0) -> Codes:
    """The perfect code turned by a random orthogonal matrix: everything is there, nothing is apart."""
    factors_NK = grid(sizes)
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(sizes), len(sizes))))
    return made(standardised(factors_NK) @ (q * np.sign(np.diag(r))), factors_NK)


def noisy(sizes: Sequence[int] = SIZES, std: float = 0.3, seed: int = 0) -> Codes:
    """The perfect code with Gaussian noise on the means."""
    factors_NK = grid(sizes)
    mean_ND = standardised(factors_NK)
    return made(mean_ND + std * np.random.default_rng(seed).normal(size=mean_ND.shape), factors_NK)


def duplicated(sizes: Sequence[int] = SIZES) -> Codes:
    """The perfect code twice: latent k and latent K + k are factor k."""
    factors_NK = grid(sizes)
    return made(np.tile(standardised(factors_NK), 2), factors_NK)


def random(sizes: Sequence[int] = SIZES, latents: int = 5, seed: int = 0) -> Codes:
    """Standard normal codes that know nothing of the factors."""
    factors_NK = grid(sizes)
    return made(np.random.default_rng(seed).normal(size=(len(factors_NK), latents)), factors_NK)


def constant(sizes: Sequence[int] = SIZES, latents: int = 3) -> Codes:
    """The same code for every row: a collapsed model."""
    factors_NK = grid(sizes)
    return made(np.zeros((len(factors_NK), latents)), factors_NK, sigma=1.0)


def one_latent(sizes: Sequence[int] = SIZES, factor: int = 0) -> Codes:
    """A single latent that is one of the factors."""
    factors_NK = grid(sizes)
    return made(standardised(factors_NK)[:, [factor]], factors_NK)


def fewer(sizes: Sequence[int] = SIZES, latents: int = 2) -> Codes:
    """More factors than latents: the perfect code's first latents only."""
    return perfect(sizes).latents_only(range(latents))


def entangled(sizes: Sequence[int] = SIZES) -> Codes:
    """One latent that tells all factors: the row's number in the grid. Complete, but not modular."""
    factors_NK = grid(sizes)
    return made(standardised(np.arange(len(factors_NK))[:, None]), factors_NK, sigma=1e-5)
