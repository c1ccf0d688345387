"""FactorVAE: which factor was held fixed, told from the one latent that varies least.

Kim & Mnih, "Disentangling by Factorising" (2018), section 3, in the protocol of disentanglement_lib: a vote draws 64
images that share the value of a factor and names the latent of the smallest variance relative to its variance over
all images; each latent stands for the factor it is named for most in 10,000 votes; the score is how often that is
right in 5,000 more. Latents of standard deviation below 0.05 are left out; where none remains the score is 0. Chance
is 1/K.
"""

from typing import Any

import numpy as np

from vaecli.analysis.metrics._information import sample
from vaecli.analysis.metrics._sampling import TEST, TRAIN, Sharing
from vaecli.analysis.metrics.base import Array, Codes, Score

NEEDS = ("factors",)
IMAGES = 64  # of a vote; 200 in the paper
DEAD = 0.05  # standard deviation
CHUNK = 500  # votes worked on together, so that they stay in the processor's cache


def score(codes: Codes, seed: int) -> Score:
    """Matrix `votes` (D, K): how often each latent was named for each factor in the training votes."""
    assert codes.factors_NK is not None
    variance_D = sample(codes, seed).mean_ND.var(axis=0, ddof=1)
    used = np.flatnonzero(np.sqrt(variance_D) >= DEAD)
    settings: dict[str, Any] = {
        "train_votes": TRAIN,
        "test_votes": TEST,
        "images": IMAGES,
        "variance_points": min(len(codes), 10_000),
        "smallest_deviation": DEAD,
        "latents_used": len(used),
        "seed": seed,
    }
    votes_DK = np.zeros((codes.latents, codes.factors_NK.shape[1]))
    if len(used) == 0:
        note = f"no latent has a standard deviation of {DEAD} or more, which the score counts as 0."
        return Score({"accuracy": 0.0}, settings, {"votes": votes_DK}, (note, *_cut(codes, used)))
    rng = np.random.default_rng(seed)
    scaled_ND = codes.mean_ND[:, used] / np.sqrt(variance_D[used])
    factor_M, latent_M = _votes(scaled_ND, codes.factors_NK, TRAIN + TEST, rng)
    np.add.at(votes_DK, (used[latent_M[:TRAIN]], factor_M[:TRAIN]), 1)
    right_M = votes_DK.argmax(axis=1)[used[latent_M]] == factor_M
    settings["train_accuracy"] = float(right_M[:TRAIN].mean())
    return Score({"accuracy": float(right_M[TRAIN:].mean())}, settings, {"votes": votes_DK}, _cut(codes, used))


def _cut(codes: Codes, used: Array) -> tuple[str, ...]:
    """A note where the absolute bound leaves out what varies with the image."""
    cut = np.setdiff1d(np.flatnonzero(codes.active_D), used)
    if not len(cut):
        return ()
    names = ", ".join(codes.latent_names[int(d)] for d in cut[:8]) + (" and more" if len(cut) > 8 else "")
    return (
        f"{names}: left out by the protocol's absolute bound, a standard deviation of {DEAD}, though active; "
        "a code without a scale of its own scores by its units, and one of larger numbers would not be cut.",
    )


def _votes(scaled_ND: Array, factors_NK: Array, votes: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Per vote the factor that was held fixed and the latent of the smallest variance, (M,) each."""
    sharing = Sharing(factors_NK)
    factor_M = rng.integers(0, factors_NK.shape[1], votes)
    like_M = rng.integers(0, len(scaled_ND), votes)
    latent_M = np.empty(votes, dtype=np.int64)
    for start in range(0, votes, CHUNK):
        chunk = slice(start, start + CHUNK)
        rows_ML = sharing.draw(factor_M[chunk], like_M[chunk], IMAGES, rng)
        latent_M[chunk] = scaled_ND[rows_ML].var(axis=1, ddof=1).argmin(axis=1)
    return factor_M, latent_M
