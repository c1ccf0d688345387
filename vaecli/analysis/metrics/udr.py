"""UDR: how alike the latents of models trained with other seeds are; needs no factors.

Duan et al., "Unsupervised Model Selection for Variational Disentangled Representation Learning" (2020), section 4.
For two models, R_ab is how strongly latent a of the one goes with latent b of the other over the same images: the
absolute Spearman correlation, or the absolute coefficient of a lasso (alpha 0.1) that predicts b from all
standardised latents of the other. Latents of a mean KL of 0.01 nats or less are set to 0 and left out. The score of a
pair is

    (mean_b [(max_a R_ab)^2 / sum_a R_ab] + mean_a [(max_b R_ab)^2 / sum_b R_ab]) / 2,

as in the authors' program, and that of a model the median over its partners. (The paper's equation 2 divides the sums
over a and b by the number of all informative latents, the same where both models have equally many.)
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from vaecli.analysis.metrics._information import sample, scikit_learn
from vaecli.analysis.metrics._sampling import standardised
from vaecli.analysis.metrics.base import Array, Codes, Score
from vaecli.errors import InputError

NEEDS = ()
SEVERAL = True
INFORMATIVE = 0.01  # nats
ALPHA = 0.1


def score_models(models: Sequence[Codes], seed: int) -> list[Score]:
    """A score per model: `udr_lasso` and `udr_spearman`, and their values with each partner.

    All models must be given the same images in the same order. InputError for fewer than two models, or for models of
    different numbers of rows or different factors. ConfigError without scikit-learn.
    """
    version = scikit_learn("udr")
    _check(models)
    chosen = [sample(codes, seed) for codes in models]
    informative = [_informative(codes) for codes in models]
    latents = [
        standardised(codes.mean_ND, codes.mean_ND)[0] * kept for codes, kept in zip(chosen, informative, strict=True)
    ]
    ranks = [_ranks(z_ND) for z_ND in latents]
    lasso = _pairs(latents, informative, _lasso)
    spearman = _pairs(ranks, informative, _correlation)
    settings = {
        "points": len(chosen[0]),
        "models": len(models),
        "informative_kl": INFORMATIVE,
        "lasso_alpha": ALPHA,
        "scikit-learn": version,
        "seed": seed,
    }
    scores = []
    for m, kept in enumerate(informative):
        partners = np.arange(len(models)) != m
        values = {
            "udr_lasso": float(np.median(lasso[partners, m])),
            "udr_spearman": float(np.median(spearman[partners, m])),
        }
        matrices = {"lasso": lasso[partners, m][None], "spearman": spearman[partners, m][None]}
        notes = ["no latent has a mean KL above 0.01 nats, which the score counts as 0."] if not kept.any() else []
        if (kl_D := models[m].kl_D) is None or np.isnan(kl_D).any():
            notes.append("latents without a KL to N(0, 1) are taken for informative where they vary.")
        scores.append(Score(values, {**settings, "latents_used": int(kept.sum())}, matrices, tuple(notes)))
    return scores


def _check(models: Sequence[Codes]) -> None:
    if len(models) < 2:
        raise InputError(f"udr compares models, and there is {len(models)}", "give checkpoints of several seeds")
    first = models[0]
    for other in models[1:]:
        if len(other) != len(first):
            raise InputError(
                f"udr needs the same images: {first.source} has {len(first):,} rows, {other.source} {len(other):,}"
            )
        if first.factors_NK is None or other.factors_NK is None:
            continue
        if not np.array_equal(first.factors_NK, other.factors_NK):
            raise InputError(f"udr needs the same images: the factors of {first.source} and {other.source} differ")


def _informative(codes: Codes) -> Array:
    if codes.kl_D is None:
        return codes.active_D
    return np.where(np.isnan(codes.kl_D), codes.active_D, codes.kl_D > INFORMATIVE)


def _pairs(codes: Sequence[Array], informative: Sequence[Array], relation: Callable[[Array, Array], Array]) -> Array:
    """The score of each ordered pair of models, NaN on the diagonal."""
    found = np.full((len(codes), len(codes)), np.nan)
    for a, b in np.argwhere(~np.eye(len(codes), dtype=bool)):
        found[a, b] = likeness(relation(codes[a], codes[b])[np.ix_(informative[a], informative[b])])
    return found


def likeness(relation_AB: Array) -> float:
    """1 where each latent of one model goes with exactly one of the other at strength 1; 0 where none goes with any."""
    if relation_AB.size == 0:
        return 0.0
    return float(0.5 * (_strength(relation_AB).mean() + _strength(relation_AB.T).mean()))


def _strength(relation_AB: Array) -> Array:
    total_B = relation_AB.sum(axis=0)
    strength_B = relation_AB.max(axis=0) ** 2
    return np.asarray(np.divide(strength_B, total_B, out=np.zeros_like(total_B), where=total_B > 0))


def _ranks(z_ND: Array) -> Array:
    """Ranks of each column, standardised; equal values share their mean rank."""
    ranks = []
    for column in z_ND.T:
        _, place_N, count = np.unique(column, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place_N])
    rank_ND = np.stack(ranks, axis=1)
    return standardised(rank_ND, rank_ND)[0]


def _correlation(a_NA: Array, b_NB: Array) -> Array:
    return np.asarray(np.abs(a_NA.T @ b_NB) / len(a_NA))


def _lasso(a_NA: Array, b_NB: Array) -> Array:
    from sklearn.linear_model import Lasso

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # latents that are all 0 converge at once, with a warning
        coefficient_BA = Lasso(alpha=ALPHA).fit(a_NA, b_NB).coef_
    return np.abs(np.reshape(coefficient_BA, (b_NB.shape[1], a_NA.shape[1]))).T
