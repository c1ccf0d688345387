"""What every disentanglement metric takes and gives.

A metric is a file of this folder with `score(codes, seed) -> Score`, and its first docstring line is its summary in
`vae metrics`. It sees codes whose factors all vary, with at least one latent. The driver (`vaecli.metrics.evaluate`)
adds the score over active latents, the chance level and the ceiling by calling it on other codes of the same factors.

Shapes: N rows, D latents, K factors. Information in nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vaecli.analysis.codes import Array, Codes

__all__ = ["Array", "Codes", "Score"]


@dataclass(frozen=True)
class Score:
    """The result of one metric on one set of codes.

    `values`    by name, the headline first: `{"disentanglement": .., "completeness": .., "informativeness": ..}`.
                NaN where it has no value for these codes; a note says why.
    `settings`  of the estimator: points, bins, predictor, library versions.
    `matrices`  (D, K) or other arrays worth showing, such as `importance` or `mutual_information`.
    `notes`     sentences a reader must know to read the number.
    """

    values: dict[str, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    matrices: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The headline."""
        return next(iter(self.values.values()))
