"""What tells of what: each latent's factor and each factor's two best latents, beside every metric; and whether factors
tell of each other.

By NMI, the mutual information of binned means (20 bins, as MIG's) over the factor's entropy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vaecli.analysis.codes import Codes
from vaecli.analysis.metrics import Result
from vaecli.analysis.metrics import _information as information

HEADERS = ("factor", "best latent", "NMI", "second latent", "second NMI", "gap", "informativeness")
TELLING = 0.1  # of its entropy: factors of which one tells so much of another do not vary each for itself

Record = dict[str, Any]


def measure(
    codes: Codes | None, latents: Sequence[Record], results: Sequence[Result], seed: int
) -> tuple[list[Record], list[Record]]:
    """Of the codes that the metrics were given: the records of latents with `best_factor` and `best_factor_nmi`, and
    one record a factor that varies: `latents`, the best two with their NMI, `gap` between them (its mean is MIG, but
    for factors that a sample leaves constant), and `informativeness`, the accuracy of DCI's predictor, None where DCI
    was not computed. Without a metric, or a factor that varies, the latents as they are."""
    if codes is None or not results or not codes.varying or len(codes) < 2:
        return list(latents), []
    found = information.measure(codes.factors_only(codes.varying), seed)
    names = [codes.factor_names[k] for k in codes.varying]
    entropy_K = found.factor_entropy_K
    nmi_DK = found.mi_DK / np.where(entropy_K > 0, entropy_K, 1.0)
    informed_K = _informativeness(results, len(names))
    factors = []
    for k, name in enumerate(names):
        best = [int(d) for d in np.argsort(-nmi_DK[:, k], kind="stable")[:2]]
        pair = [{"latent": codes.latent_names[d], "nmi": float(nmi_DK[d, k])} for d in best]
        gap = float(nmi_DK[best[0], k] - (nmi_DK[best[1], k] if len(best) > 1 else 0.0))
        factors.append({"factor": name, "latents": pair, "gap": gap, "informativeness": informed_K[k]})
    best_D = nmi_DK.argmax(axis=1)
    tells = {
        latent: {"best_factor": names[k], "best_factor_nmi": float(nmi_DK[d, k])}
        for d, (latent, k) in enumerate(zip(codes.latent_names, best_D, strict=True))
    }
    return [{**record, **tells.get(record["latent"], {})} for record in latents], factors


def _informativeness(results: Sequence[Result], factors: int) -> Sequence[float | None]:
    scores = (result.score for result in results if result.name == "dci" and result.score is not None)
    for score in scores:
        accuracy_1K = score.matrices.get("accuracy")
        if accuracy_1K is not None and accuracy_1K.size == factors:
            return [float(value) for value in accuracy_1K.ravel()]
    return [None] * factors


def rows(factors: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The factors, below `HEADERS`; without a second latent where there is one alone."""
    return [_row(record) for record in factors]


def _row(record: Mapping[str, Any]) -> list[str]:
    pair = [cell for one in record["latents"] for cell in (one["latent"], f"{one['nmi']:.4f}")]
    informed = record["informativeness"]
    last = "n/a" if informed is None else f"{informed:.4f}"
    return [record["factor"], *(pair + ["n/a"] * 4)[:4], f"{record['gap']:.4f}", last]


def varying_factors(codes: Codes) -> int | None:
    """How many factors vary, where each varies whatever the others do, as in a grid; None where one tells of another
    (its mutual information with it is above a tenth of its entropy, more than by chance): classes and attributes do not
    say what varies, nor does a single factor."""
    if codes.factors_NK is None or len(codes.varying) < 2:
        return None
    labels_NK = information.sample(codes.factors_only(codes.varying), 0).factors_NK
    assert labels_NK is not None
    columns_NK = np.stack([np.unique(column, return_inverse=True)[1] for column in labels_NK.T], axis=1)
    least_KK = np.minimum.outer(information.entropies(columns_NK), information.entropies(columns_NK))
    rng = np.random.default_rng(0)
    chance_SKK = np.stack([information.mutual_information(columns_NK, rng.permutation(columns_NK)) for _ in range(8)])
    telling_KK = information.mutual_information(columns_NK, columns_NK) - chance_SKK.mean(axis=0)
    np.fill_diagonal(telling_KK, 0.0)
    far_KK = np.maximum(TELLING * least_KK, 5 * chance_SKK.std(axis=0))
    return None if (telling_KK > far_KK).any() else len(codes.varying)
