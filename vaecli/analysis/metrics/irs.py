"""IRS: how little a latent moves when the other factors do, while the factor it stands for is held fixed.

Suter et al., "Robustly Disentangled Causal Mechanisms" (2019), section 4, as in disentanglement_lib: with mu_kv the
mean code where factor k has value v, the 99th percentile of |z_j - mu_kv| over those rows (the maximum in the paper),
mean over v, divided by the largest |z_j - mean z_j|, and IRS_jk = 1 - that. The score is the mean over latents of
max_k IRS_jk, weighted by the largest deviation. Factors are binned to 20 values first and constant latents left out.
Heavy tails raise it: a Gaussian code that knows nothing gets about 0.375.
"""

import numpy as np

from vaecli.analysis.metrics._information import BINS, binned, sample, varies
from vaecli.analysis.metrics.base import Array, Codes, Score

NEEDS = ("factors",)
QUANTILE = 0.99


def score(codes: Codes, seed: int) -> Score:
    """0 where all latents are constant. Matrix `irs` (D, K), 0 for constant latents."""
    chosen = sample(codes, seed)
    assert chosen.factors_NK is not None
    used_D = varies(chosen.mean_ND)
    settings = {
        "points": len(chosen),
        "factor_bins": BINS,
        "quantile": QUANTILE,
        "latents_used": int(used_D.sum()),
        "seed": seed,
    }
    irs_DK = np.zeros((codes.latents, chosen.factors_NK.shape[1]))
    if not used_D.any():
        return Score({"irs": 0.0}, settings, {"irs": irs_DK}, ("all latents are constant, which counts as 0.",))
    irs_DK[used_D], largest_D = robustness(chosen.mean_ND[:, used_D], binned(chosen.factors_NK))
    value = np.average(irs_DK[used_D].max(axis=1), weights=largest_D)
    return Score({"irs": float(value)}, settings, {"irs": irs_DK})


def robustness(z_ND: Array, values_NK: Array) -> tuple[Array, Array]:
    """IRS of each latent and factor (D, K), and the largest deviation of each latent (D,), none of them constant."""
    largest_D = np.abs(z_ND - z_ND.mean(axis=0)).max(axis=0)
    moved_DK = np.empty((z_ND.shape[1], values_NK.shape[1]))
    for k, value_N in enumerate(values_NK.T):
        groups = np.split(z_ND[np.argsort(value_N, kind="stable")], np.cumsum(np.bincount(value_N))[:-1])
        deviations = [np.abs(group - group.mean(axis=0)) for group in groups if len(group)]
        moved_DK[:, k] = np.mean([np.quantile(deviation, QUANTILE, axis=0) for deviation in deviations], axis=0)
    return 1.0 - moved_DK / largest_D[:, None], largest_D
