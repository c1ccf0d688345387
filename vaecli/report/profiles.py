"""How codes go with factors, and how they are spread: the numbers behind the pictures.

Shapes: N images, D latents, K factors, G points.
"""

from collections.abc import Sequence

import numpy as np

from vaecli.analysis.codes import Array, Codes

COMPONENTS = 4000  # of the mixture drawn for q(z): more change no pixel of a curve


def means_over(codes: Codes, factors: Sequence[int]) -> Array:
    """Mean code at each combination of values of these factors, over all images that have it: (*sizes, D).

    NaN where there is no such image. Higgins et al. 2017 draw it over (posX, posY), (scale, shape), (rotation, shape).
    """
    assert codes.factors_NK is not None
    columns = [codes.factors_NK[:, k] for k in factors]
    sizes = tuple(int(column.max()) + 1 for column in columns)
    cell_N = np.ravel_multi_index(columns, sizes)
    cells = int(np.prod(sizes))
    count = np.bincount(cell_N, minlength=cells)
    sums = np.stack([np.bincount(cell_N, weights=z_N, minlength=cells) for z_N in codes.mean_ND.T], axis=-1)
    with np.errstate(invalid="ignore"):
        mean = np.where(count[:, None] > 0, sums / count[:, None], np.nan)
    return np.asarray(mean.reshape(*sizes, -1))


def explained(codes: Codes) -> Array:
    """Share of each latent's variance (of mu) that one factor alone explains, (D, K), between 0 and 1.

    The correlation ratio, less what it would be by chance from so few images (epsilon squared, Kelley 1935). Unlike a
    correlation it sees any curve: an angle, a category.
    """
    assert codes.factors_NK is not None
    total_D = codes.mean_ND.var(axis=0)
    shares = []
    for k in range(codes.factors_NK.shape[1]):
        _, inverse_N, count_V = np.unique(codes.factors_NK[:, k], return_inverse=True, return_counts=True)
        mean_VD = means_over(codes.factors_only([k]), [0])
        mean_VD = mean_VD[~np.isnan(mean_VD).any(axis=1)]
        between_D = (count_V[:, None] * np.square(mean_VD - codes.mean_ND.mean(axis=0))).sum(axis=0) / len(inverse_N)
        # A latent that is constant but for rounding is explained by nothing.
        usable_D = total_D > 1e-12 * np.square(codes.mean_ND).mean(axis=0)
        eta_D = np.where(usable_D, between_D / np.where(usable_D, total_D, 1.0), 0.0)
        chance = (len(count_V) - 1) / max(len(inverse_N) - 1, 1)
        shares.append(np.clip((eta_D - chance) / (1 - chance), 0.0, 1.0) if chance < 1 else np.zeros_like(eta_D))
    return np.stack(shares, axis=1)


def mixture_density(mean_N: Array, logvar_N: Array, z_G: Array) -> Array:
    """q(z) = mean over images of N(z; mu, sigma^2) at each z, (G,): over 4,000 images if there are more."""
    if len(mean_N) > COMPONENTS:
        chosen = np.linspace(0, len(mean_N) - 1, COMPONENTS).round().astype(int)
        mean_N, logvar_N = mean_N[chosen], logvar_N[chosen]
    inverse_N = np.exp(-0.5 * logvar_N)
    scaled_GN = (z_G[:, None] - mean_N) * inverse_N
    return np.asarray((np.exp(-0.5 * np.square(scaled_GN)) * inverse_N).mean(axis=1) / np.sqrt(2 * np.pi))


def normal_density(z_G: Array) -> Array:
    return np.asarray(np.exp(-0.5 * np.square(z_G)) / np.sqrt(2 * np.pi))
