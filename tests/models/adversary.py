"""Toy without likelihood: a generator of a code and of noise that nothing infers, a critic, and an encoder of the code
(InfoGAN, Chen et al. 2016, made tiny)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Hyper, Level, ModelConfig, Player, Term, Values
from vaecli.models.base import Model as Base
from vaecli.objectives import distributions
from vaecli.objectives.distributions import Gaussian
from vaecli.settings.optim import OptimConfig


class Config(ModelConfig):
    name: Literal["adversary"] = "adversary"


class Model(Base):
    has_likelihood = False

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("noise", (4,), standard=True, inferred=False), Level("code", (2,), standard=True))
        self.generator, self.encoder = nn.Linear(6, info.pixels), nn.Linear(info.pixels, 4)
        self.critic = nn.Linear(info.pixels, 1)

    def players(self, optim: OptimConfig) -> list[Player]:
        own = [*self.generator.parameters(), *self.encoder.parameters()]
        return [Player("critic", list(self.critic.parameters()), optim), Player("generator", own, optim, updates=2)]

    def q(self, level: str, features: Tensor, given: Values) -> Distribution:
        mean, logvar = self.encoder(features.flatten(1)).chunk(2, dim=1)
        return Gaussian(mean, logvar)

    def image(self, values: Values) -> Tensor:
        z_BD = torch.cat([values["noise"], values["code"]], dim=1)
        return self.generator(z_BD).sigmoid().unflatten(1, self.info.shape)

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        values = self.draw(len(batch.x_BCHW))
        made = self.image(values)
        verdict = self.critic(made.flatten(1))
        if player == "critic":
            return {"tell": Term(F.softplus(-self.critic(batch.x_BCHW.flatten(1))).mean() + F.softplus(verdict).mean())}
        info = -distributions.log_prob(self.q("code", made, {}), values["code"])
        return {"fool": Term(F.softplus(-verdict).mean()), "info": Term(info, 0.1)}

    def objective_text(self, hyper: Hyper) -> str:
        return "minimise fool - 0.1 log q(code|image)"
