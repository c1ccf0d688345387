"""Exclusivity disentanglement index: modularity, compactness and explicitness of exclusive information.

Julka, Wang & Granitzer, "Towards an Improved Metric for Evaluating Disentangled Representations" (2024), in the version
of an author's code (there called DCII). With the exclusivity of a vector e(a) = max a - root mean square of the others
and NMI_jk = I(z_j; v_k) / I(z; v_k):

    modularity   = mean_k min(1, sum of e(NMI_j.) over the latents j whose largest entry is k)
    compactness  = mean_k e(NMI_.k)
    explicitness = mean_k I(z; v_k) / H(v_k)

I(z_j; v_k) is the nearest-neighbour estimate (3 neighbours, 10,000 points), and 0 where it is not twice what any latent
seems to know of the same factor in shuffled rows: of a factor that no latent knows, both sides of the ratio are noise.
I(z; v_k), for which the authors train a network, is the best of three lower bounds: H(v_k) minus the held-out
cross-entropy of extremely randomised trees, the same for linear discriminants, and the best single I(z_j; v_k).

It depends on how many images there are, and is compared between equal numbers alone. Of known codes of four factors at
300, 1,000, 3,000 and 4,608 images: modularity 0.995, 1, 1, 1 of one with noise, and 0.38, 0.42, 0.47, 0.53 of one that
is turned at random; explicitness 0.630, 0.616, 0.615, 0.614 of the first.
"""

import math

import numpy as np

from vaecli.analysis.metrics._information import entropies, neighbour_information, sample, scikit_learn
from vaecli.analysis.metrics.base import Array, Codes, Score

NEEDS = ("factors",)
NEIGHBOURS = 3
SHUFFLED = 20  # informations in shuffled rows, of all latents together
TREES = 20
UNIFORM = (0.01, 0.03, 0.1, 0.3, 1.0)  # shares of the uniform distribution mixed into a prediction; the best one counts
RIDGE = 1e-6  # of a latent's variance


def score(codes: Codes, seed: int) -> Score:
    """With a single factor (or latent) the others count 0. Needs scikit-learn."""
    version = scikit_learn("edi")
    codes = sample(codes, seed)
    factors_NK = codes.factors_NK
    assert factors_NK is not None
    h_K = entropies(factors_NK)
    mi_DK = np.minimum(neighbour_information(codes.mean_ND, factors_NK, seed, NEIGHBOURS), h_K)
    rng, noise_K = np.random.default_rng(seed), np.zeros(len(h_K))
    for _ in range(math.ceil(SHUFFLED / codes.latents)):
        shuffled_NK = factors_NK[rng.permutation(len(codes))]
        noise_DK = neighbour_information(codes.mean_ND, shuffled_NK, seed, NEIGHBOURS)
        noise_K = np.maximum(noise_K, noise_DK.max(axis=0))
    mi_DK[mi_DK <= 2 * noise_K] = 0.0
    all_K = mi_DK.max(axis=0)
    for k in np.flatnonzero(h_K > 0):
        _, label_N = np.unique(factors_NK[:, k], return_inverse=True)
        for cross_entropy in (_by_trees(codes.mean_ND, label_N, seed), _by_discriminants(codes.mean_ND, label_N, seed)):
            all_K[k] = max(all_K[k], h_K[k] - cross_entropy)
    nmi_DK = np.divide(mi_DK, all_K, out=np.zeros_like(mi_DK), where=all_K > 0)
    credited_K = np.zeros(len(h_K))
    np.add.at(credited_K, nmi_DK.argmax(axis=1), _exclusivity(nmi_DK))
    explicit_K = np.divide(all_K, h_K, out=np.zeros_like(h_K), where=h_K > 0)
    values = {
        "modularity": float(np.minimum(credited_K, 1.0).mean()),
        "compactness": float(_exclusivity(nmi_DK.T).mean()),
        "explicitness": float(explicit_K.mean()),
    }
    settings = {
        "points": len(codes),
        "neighbours": NEIGHBOURS,
        "predictor": f"best of {TREES} extremely randomised trees, linear discriminants, one latent",
        "scikit-learn": version,
    }
    notes = ["I(z; v) is the best of three lower bounds, in the place of the authors' neural estimate."]
    if len(h_K) == 1:
        values["modularity"] = math.nan
        notes.append("Modularity compares factors, and there is only one.")
    return Score(values, settings, {"normalised_information": nmi_DK}, tuple(notes))


def _exclusivity(rows: Array) -> Array:
    """Largest entry minus the root mean square of the others, of each row."""
    best = rows.max(axis=1)
    if rows.shape[1] == 1:
        return np.asarray(best)
    others = np.maximum(np.square(rows).sum(axis=1) - np.square(best), 0.0) / (rows.shape[1] - 1)
    return np.asarray(best - np.sqrt(others))


def _by_trees(mean_ND: Array, label_N: Array, seed: int) -> float:
    """Cross-entropy of predictions for rows that a tree did not see (out of its bootstrap)."""
    from sklearn.ensemble import ExtraTreesClassifier

    forest = ExtraTreesClassifier(TREES, min_samples_leaf=5, max_features=0.7, bootstrap=True, random_state=seed)
    forest.fit(mean_ND, label_N)
    unseen_NV = np.zeros((len(label_N), int(label_N.max()) + 1))
    for tree, rows in zip(forest.estimators_, forest.estimators_samples_, strict=True):
        out = np.setdiff1d(np.arange(len(label_N)), rows)
        if len(out):
            unseen_NV[out] += tree.predict_proba(mean_ND[out])
    total_N = unseen_NV.sum(axis=1, keepdims=True)  # 0 where every tree saw the row
    uniform_NV = np.full_like(unseen_NV, 1.0 / unseen_NV.shape[1])
    return _cross_entropy(np.divide(unseen_NV, total_N, out=uniform_NV, where=total_N > 0), label_N)


def _by_discriminants(mean_ND: Array, label_N: Array, seed: int) -> float:
    """The same of linear discriminants, each half of the rows predicted from the other."""
    values = int(label_N.max()) + 1
    half_N = np.random.default_rng(seed).permutation(len(label_N)) % 2
    predicted_NV = np.full((len(label_N), values), 1.0 / values)
    for half in (0, 1):
        x_ND, label_n = mean_ND[half_N != half], label_N[half_N != half]
        counts_V = np.bincount(label_n, minlength=values)
        seen = np.flatnonzero(counts_V)
        sum_VD = np.stack([np.bincount(label_n, x_N, values) for x_N in x_ND.T], axis=1)
        centre_VD = sum_VD / np.maximum(counts_V, 1)[:, None]
        within_ND = x_ND - centre_VD[label_n]
        scatter_DD = within_ND.T @ within_ND / len(x_ND)
        variance_D = x_ND.var(axis=0)
        scatter_DD[np.diag_indices_from(scatter_DD)] += np.where(variance_D > 0, RIDGE * variance_D, 1.0)
        weight_VD = np.linalg.solve(scatter_DD, centre_VD[seen].T).T
        offset_V = np.log(counts_V[seen]) - 0.5 * (weight_VD * centre_VD[seen]).sum(axis=1)
        logit_nV = mean_ND[half_N == half] @ weight_VD.T + offset_V
        p_nV = np.exp(logit_nV - logit_nV.max(axis=1, keepdims=True))
        held_out_nV = np.zeros((len(p_nV), values))
        held_out_nV[:, seen] = p_nV / p_nV.sum(axis=1, keepdims=True)
        predicted_NV[half_N == half] = held_out_nV
    return _cross_entropy(predicted_NV, label_N)


def _cross_entropy(predicted_NV: Array, label_N: Array) -> float:
    p_N, uniform = predicted_NV[np.arange(len(label_N)), label_N], 1.0 / predicted_NV.shape[1]
    return min(float(-np.log((1 - share) * p_N + share * uniform).mean()) for share in UNIFORM)
