"""Everything the tool can say about a trained model over a data set, gathered once for `analyze`, `report`, `compare`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vaecli import metrics
from vaecli.checkpoint import Loaded
from vaecli.codes import Codes
from vaecli.data.base import Dataset, SplitView
from vaecli.diagnosis import Statistics, Verdict


@dataclass(frozen=True)
class Analysis:
    """`latents` has one record a latent, ordered by KL; `diagnosis` the numbers of the model as a whole that take more
    than one pass, empty unless asked for; `record()` is what `vae analyze --json` prints."""

    loaded: Loaded
    dataset: Dataset
    view: SplitView
    seed: int
    stats: Statistics
    verdict: Verdict
    latents: list[dict[str, Any]]
    codes: Codes | None = None  # where metrics or the diagnosis needed them
    diagnosis: dict[str, Any] = field(default_factory=dict)
    results: list[metrics.Result] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        raise NotImplementedError


def analyze(
    loaded: Loaded,
    dataset: Dataset,
    split: str | None = None,
    limit: int | None = None,
    *,
    metric_names: Sequence[str] = (),
    diagnose: bool = False,
    batch_size: int = 512,
    seed: int = 0,
) -> Analysis:
    """Statistics, verdict and, on demand, the diagnosis of q(z) and metrics; progress on stderr."""
    raise NotImplementedError
