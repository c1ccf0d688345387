"""Raw pixels: the image itself as its code, a latent a pixel; a baseline without training.

Higgins et al. 2017, "beta-VAE", table 1, row "Raw pixels". Decoding gives the code back. There is no prior to sample
from. Codes of large images are large, too: `--limit` keeps tables of them in memory.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from torch.distributions import Distribution

from vaecli.batch import DataInfo, Split
from vaecli.models.base import Hyper, Level, ModelConfig, NoPrior, Values
from vaecli.models.base import Model as Base
from vaecli.objectives.distributions import Point


class Config(ModelConfig):
    """No settings."""

    name: Literal["pixels"] = "pixels"


class Model(Base):
    """z = x, channel by channel, row by row."""

    closed_form = True
    has_likelihood = False

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (info.pixels,), "point"),)

    def fit(self, train: Split, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        """Nothing to fit."""

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        return Point(features.flatten(1))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        raise NoPrior("raw pixels have no prior to sample from", "train a model with one: pca, vae, beta-vae")

    def image(self, values: Values) -> Tensor:
        return values["z"].reshape(-1, *self.info.shape)

    def objective_text(self, hyper: Hyper) -> str:
        return "none: the code is the image"
