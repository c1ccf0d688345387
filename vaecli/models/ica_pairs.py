"""ICA fitted to the images of all values but one of a factor, as Higgins et al. did with pairs of the three shapes.

Higgins et al. 2017, "beta-VAE", appendix: FastICA of all whitened images did not fit into their memory, so it was
fitted to two of the three shapes of dSprites at a time, and the three scores were averaged. A run leaves out one value
(`left_out`: 0, 1, 2); the paper's row is three runs, each scored on the images that it was fitted to: with `ica` and
-S 'data.exclude={shape: heart}' -S data.holdout=0 these are the split `train` (`vae analyze RUN --split train`), while
here `all` holds the images left out, too. `ica` alone, fitted to all images, replaces both but for that row.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vaecli.batch import Batch, DataInfo
from vaecli.errors import ConfigError
from vaecli.models import ica
from vaecli.models._linear import LinearConfig
from vaecli.registry import nearest
from vaecli.settings.section import Count


class Config(LinearConfig):
    """`factor` of which one value, the number `left_out` of those from 0, is not fitted to."""

    tiny: ClassVar[dict[str, Any]] = {"latent_dim": 3, "factor": "size"}
    name: Literal["ica-pairs"] = "ica-pairs"
    factor: str = "shape"
    left_out: Count = 0


class Model(ica.Model):
    """As `ica`. Images without a label for the factor are not fitted to either."""

    uses_labels = True
    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        if config.factor not in info.factor_names:
            raise ConfigError(
                f"model.factor: {info.name} has no factor {config.factor[:80]!r}"
                + (nearest(config.factor, info.factor_names) if info.factor_names else "")
            )
        self._factor = info.factor_names.index(config.factor)
        if config.left_out >= info.factor_sizes[self._factor]:
            raise ConfigError(f"model.left_out is {config.left_out}, but {config.factor} has values 0 to "
                              f"{info.factor_sizes[self._factor] - 1}")  # fmt: skip

    def rows(self, batch: Batch) -> Tensor:
        assert batch.labels_BK is not None
        value_B = batch.labels_BK[:, self._factor]
        kept_B = (value_B >= 0) & (value_B != self.config.left_out)
        x_BP = batch.x_BCHW.flatten(1)
        return x_BP.index_select(0, torch.nonzero(kept_B)[:, 0].to(x_BP.device))
