"""InfoMEC: modularity, compactness and explicitness by nearest neighbours and a linear probe.

Hsu et al., "Disentanglement via Latent Quantization" (2023), protocol of its code over 10,000 points. With
NMI_jk = I(z_j; v_k) / H(v_k), latents of a range below a twentieth of the largest left out (D remain of them):

    InfoM = (mean_j max_k NMI_jk / sum_k NMI_jk - 1/K) / (1 - 1/K)
    InfoC = (mean_k max_j NMI_jk / sum_j NMI_jk - 1/D) / (1 - 1/D)
    InfoE = mean_k 1 - (cross-entropy of a logistic regression of v_k on the latents) / (that of one without latents)

InfoM and InfoC are ratios, and ratios of mere noise are far from 0: read them beside the chance level.
"""

import math
import warnings

import numpy as np

from vaecli.analysis.metrics._information import entropies, neighbour_information, sample, scikit_learn, varies
from vaecli.analysis.metrics.base import Array, Codes, Score

NEEDS = ("factors",)
NEIGHBOURS = 10
RANGE = 1 / 20


def score(codes: Codes, seed: int) -> Score:
    """NaN for InfoM with one factor and InfoC with one latent, which compare nothing. Needs scikit-learn."""
    version = scikit_learn("infomec")
    codes = sample(codes, seed)
    factors_NK = codes.factors_NK
    assert factors_NK is not None
    h_K = entropies(factors_NK)
    mi_DK = neighbour_information(codes.mean_ND, factors_NK, seed, NEIGHBOURS)
    nmi_DK = np.divide(mi_DK, h_K, out=np.zeros_like(mi_DK), where=h_K > 0)
    range_D = np.ptp(codes.mean_ND, axis=0)
    used_D = range_D > range_D.max() * RANGE
    settings = {
        "points": len(codes),
        "neighbours": NEIGHBOURS,
        "predictor": "unpenalised multinomial logistic regression, balanced classes, 100 iterations, training fit",
        "scikit-learn": version,
        "latents_used": int(used_D.sum()),
    }
    explicit_K = [_explicitness(codes.mean_ND, factors_NK[:, k]) for k in range(factors_NK.shape[1]) if h_K[k] > 0]
    values = {
        "info_m": _preference(nmi_DK[used_D]),
        "info_c": _preference(nmi_DK[used_D].T),
        "info_e": float(np.mean(explicit_K)) if explicit_K else math.nan,
    }
    notes = []
    if factors_NK.shape[1] == 1:
        notes.append("InfoM compares factors, and there is only one.")
    if used_D.sum() < 2:
        notes.append(f"InfoC compares latents, and {int(used_D.sum())} of {codes.latents} vary enough.")
    return Score(values, settings, {"normalised_information": nmi_DK}, tuple(notes))


def _preference(nmi: Array) -> float:
    """How much of each row is in its largest entry: 0 where all are equal (or all 0), 1 where there is only one."""
    rows, columns = nmi.shape
    if columns < 2:
        return math.nan
    if rows == 0:
        return 0.0
    total = nmi.sum(axis=1)
    share = np.divide(nmi.max(axis=1), total, out=np.full(rows, 1 / columns), where=total > 0)
    return float((share.mean() - 1 / columns) / (1 - 1 / columns))


def _explicitness(mean_ND: Array, factor_N: Array) -> float:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    _, label_N = np.unique(factor_N, return_inverse=True)
    varying_D = varies(mean_ND)
    if not varying_D.any():
        return 0.0
    x_ND = mean_ND[:, varying_D] - mean_ND[:, varying_D].mean(axis=0)
    x_ND /= x_ND.std(axis=0)
    # Products this small are slower on several threads than on one.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # that 100 iterations do not converge is the protocol
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100).fit(x_ND, label_N)
    logit_NV = model.decision_function(x_ND)
    if logit_NV.ndim == 1:  # two values
        logit_NV = np.stack([np.zeros_like(logit_NV), logit_NV], axis=1)
    logit_NV = logit_NV - logit_NV.max(axis=1, keepdims=True)
    log_norm_N = np.log(np.exp(logit_NV).sum(axis=1))
    cross_entropy = float((log_norm_N - logit_NV[np.arange(len(label_N)), label_N]).mean())
    # Balanced classes without latents: every value is equally likely.
    return 1.0 - cross_entropy / math.log(logit_NV.shape[1])
