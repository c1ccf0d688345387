"""MED: DCI's disentanglement and completeness with mutual information as the importance; nothing is trained.

Cao et al., "An Empirical Study on Disentanglement of Negative-free Contrastive Learning" (2022); the information is
that of binned means (20 bins, as MIG's), in nats, and the entropies are those of `dci`.
"""

from vaecli.analysis.metrics._information import measure
from vaecli.analysis.metrics.base import Codes, Score
from vaecli.analysis.metrics.dci import concentration, single

NEEDS = ("factors",)


def score(codes: Codes, seed: int) -> Score:
    """NaN for disentanglement with one factor and completeness with one latent, which compare nothing."""
    found = measure(codes, seed)
    values = {"disentanglement": concentration(found.mi_DK), "completeness": concentration(found.mi_DK.T)}
    return Score(values, found.settings, found.matrices, (*found.notes, *single(found.mi_DK)))
