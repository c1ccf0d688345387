"""Which factor each latent tells most of, and which two latents each factor is told by: beside every metric.

By NMI, the mutual information of binned means (20 bins, as MIG's) over the factor's entropy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaecli.analysis.codes import Codes
from vaecli.analysis.metrics import Result
from vaecli.analysis.metrics._information import measure

HEADERS = ("factor", "best latent", "NMI", "second latent", "second NMI", "gap", "informativeness")


@dataclass(frozen=True)
class Told:
    """`latents`: by name, `best_factor` and `best_factor_nmi`. `factors`: one record a factor that varies, `latents`
    the best two with their NMI, `gap` between them (its mean is MIG, but for factors that a sample leaves constant),
    and `informativeness`, the accuracy of DCI's predictor, None where DCI was not computed."""

    latents: dict[str, dict[str, Any]]
    factors: list[dict[str, Any]]


_NOTHING = Told({}, [])


def measure_all(codes: Codes | None, results: Sequence[Result], seed: int) -> Told:
    """Of the codes that the metrics were given; nothing where there is no factor that varies, or no metric."""
    if codes is None or not results or not codes.varying or len(codes) < 2:
        return _NOTHING
    found = measure(codes.factors_only(codes.varying), seed)
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
    latents = {
        latent: {"best_factor": names[k], "best_factor_nmi": float(nmi_DK[d, k])}
        for d, (latent, k) in enumerate(zip(codes.latent_names, best_D, strict=True))
    }
    return Told(latents, factors)


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
