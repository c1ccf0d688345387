"""Random codes: standard normal numbers for each image, which tell nothing of it; the floor under every score.

A control that needs no training. The codes are drawn once for all from the run's seed and from which image it is, so
they stay the same between calls. What can be expected of an image given such a code is the mean image, and that is what
it is decoded to.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from vaecli.batch import DataInfo, Split
from vaecli.errors import InputError
from vaecli.models._fingerprint import fingerprint
from vaecli.models.base import Hyper, Level, ModelConfig, Values
from vaecli.models.base import Model as Base
from vaecli.objectives.distributions import Point, Standard
from vaecli.settings.section import Width


class Config(ModelConfig):
    """`latent_dim`: numbers an image."""

    tiny: ClassVar[dict[str, Any]] = {"latent_dim": 3}
    name: Literal["random"] = "random"
    latent_dim: Width = 10


class Model(Base):
    """z ~ N(0, I), independent of x: E[x|z] = E[x]."""

    closed_form = True
    has_likelihood = False
    config: Config
    mean_CHW: Tensor
    key: Tensor

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), "point"),)
        self.register_buffer("mean_CHW", torch.zeros(info.shape))
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))

    def fit(self, train: Split, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        self.key.copy_(torch.randint(2**62, ()))
        total_CHW, seen = torch.zeros(self.info.shape, dtype=torch.float64), 0
        for batch in train.batches(2048):
            total_CHW += batch.x_BCHW.cpu().sum(dim=0, dtype=torch.float64)
            seen += len(batch.x_BCHW)
            progress(len(batch.x_BCHW))
            if stop():
                break
        if not seen:
            raise InputError("there are no images")
        self.mean_CHW.copy_(total_CHW / seen)

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        noise_BD = normals(fingerprint(features), self.config.latent_dim, int(self.key))
        return Point(noise_BD.to(features))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        return Standard((n, self.config.latent_dim), self.device)

    def image(self, values: Values) -> Tensor:
        return self.mean_CHW.expand(len(values["z"]), *self.info.shape)

    def objective_text(self, hyper: Hyper) -> str:
        return "none: the codes are random"


def normals(which_B: Tensor, d: int, key: int) -> Tensor:
    """d standard normal numbers for each of some integers, float64 (B, D), a function of them and `key` alone.

    The counter-based generator SplitMix64 (Steele, Lea & Flood 2014) and the normal distribution's quantiles.
    """
    start_B1 = which_B.cpu().numpy().view(np.uint64)[:, None] ^ _mixed(np.array([key], np.uint64))
    place_D = np.arange(1, d + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits_BD = _mixed(_mixed(start_B1) + place_D)
    uniform_BD = ((bits_BD >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    normal_BD: Tensor = torch.special.ndtri(torch.from_numpy(uniform_BD))
    return normal_BD


def _mixed(z: Any) -> Any:
    """A bijection of 64 bits after which every bit depends on every other."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
