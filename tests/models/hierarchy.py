"""Toy hierarchy: the decoder reads the lowest level only, whose prior and posterior depend on the level above it."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from models._bound import bound
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Hyper, Level, ModelConfig, Term, Values
from vaecli.models.base import Model as Base
from vaecli.objectives import terms
from vaecli.objectives.distributions import Gaussian


class Config(ModelConfig):
    name: Literal["hierarchy"] = "hierarchy"


class Model(Base):
    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("top", (2,), standard=True), Level("low", (3, 1, 2)))
        self.to_top, self.to_low = nn.Linear(info.pixels, 4), nn.Linear(info.pixels + 2, 12)
        self.prior_net = nn.Linear(2, 12)
        self.decoder = nn.Linear(6, info.pixels)

    def q(self, level: str, features: Tensor, given: Values) -> Distribution:
        if level == "top":
            return _gaussian(self.to_top(features.flatten(1)), (2,))
        return _gaussian(self.to_low(torch.cat([features.flatten(1), given["top"]], dim=1)), (3, 1, 2))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        return super().p(level, given, n) if level == "top" else _gaussian(self.prior_net(given["top"]), (3, 1, 2))

    def out(self, values: Values) -> Tensor:
        return self.decoder(values["low"].flatten(1)).unflatten(1, self.info.shape)

    def image(self, values: Values) -> Tensor:
        return self.out(values).sigmoid()

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return terms.bernoulli_log_prob(x_BCHW, self.out(values))

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        return bound(self, batch, hyper)

    def objective_text(self, hyper: Hyper) -> str:
        return "minimise recon + KL of both levels"


def _gaussian(numbers: Tensor, shape: tuple[int, ...]) -> Gaussian:
    mean, logvar = torch.chunk(numbers, 2, dim=1)
    return Gaussian(mean.unflatten(1, shape), logvar.unflatten(1, shape))
