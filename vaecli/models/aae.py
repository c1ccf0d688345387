"""Adversarial autoencoder: codes that a second network cannot tell from draws of the prior.

Makhzani et al. 2016, "Adversarial Autoencoders", section 2, with a deterministic encoder E:
autoencoder: minimise -log p(x|E(x)) - strength log D(E(x)); critic: minimise -1/2 log D(z) - 1/2 log (1 - D(E(x))),
z ~ N(0, I), with D = sigmoid(l_0 - l_1) of the critic's two logits, so that l_0 - l_1 estimates log p(z) - log q(z).

The paper moves the encoder in two phases a step, by the reconstruction and by the critic, each with its own step size;
here both are one objective with a weight, as in WAE-GAN (Tolstikhin et al. 2018, algorithm 1). pythae's encoder is a
Gaussian whose width nothing but the critic holds, and its weights 1/2 stand beside a reconstruction summed over pixels.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Hyper, Level, NetConfig, NetModel, Player, Term, Values
from vaecli.nets import critics
from vaecli.objectives import terms
from vaecli.objectives.distributions import Point
from vaecli.settings import schedules
from vaecli.settings.optim import Adam, OptimConfig, on_defaults
from vaecli.settings.schedules import Weight
from vaecli.settings.section import PositiveInt

CRITIC_OPTIM = Adam(lr=1e-3, betas=(0.5, 0.999))


class Config(NetConfig):
    """`strength` weighs the critic's word against a reconstruction in nats, summed over pixels; `critic` is the second
    network, `critic_optim` its optimizer and `critic_updates` its updates a step."""

    tiny: ClassVar[dict[str, Any]] = {**NetConfig.tiny, "critic": {"width": 16, "layers": 2}}
    name: Literal["aae"] = "aae"
    strength: Weight = 10.0
    critic: critics.CriticConfig = critics.CriticConfig(width=1000, layers=2)
    critic_optim: Annotated[OptimConfig, on_defaults(CRITIC_OPTIM)] = CRITIC_OPTIM
    critic_updates: PositiveInt = 1


class Model(NetModel):
    """Two players: `main`, the autoencoder, and `critic`, which moves last."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), "point", standard=True),)
        self.critic = critics.build(config.critic, config.latent_dim)

    def players(self, optim: OptimConfig) -> list[Player]:
        judges = list(self.critic.parameters())
        return [
            Player("main", self.parameters_but(judges), optim),
            Player("critic", judges, self.config.critic_optim, updates=self.config.critic_updates),
        ]

    def features(self, x_BCHW: Tensor) -> Tensor:
        return self.network(self.encoder, x_BCHW)

    def q(self, level: str, features: Tensor, given: Values) -> Point:
        return Point(features)

    def log_ratio(self, z_BD: Tensor) -> Tensor:
        """The critic's estimate of log p(z) - log q(z), (B,)."""
        logits_B2 = self.network(self.critic, z_BD)
        return logits_B2[:, 0] - logits_B2[:, 1]

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        if player == "main":
            z_BD = self.features(batch.x_BCHW)
            return {
                "recon": Term(-self.log_prob(batch.x_BCHW, {"z": z_BD}, hyper).mean()),
                "fool": Term(F.softplus(-self.log_ratio(z_BD)).mean(), hyper["strength"]),
            }
        with torch.no_grad():  # the critic's gradients end at the codes
            z_BD = self.features(batch.x_BCHW)
        prior_B, code_B = self.log_ratio(torch.randn_like(z_BD)), self.log_ratio(z_BD)
        told = 0.5 * F.softplus(-prior_B).mean() + 0.5 * F.softplus(code_B).mean()
        right = 0.5 * (prior_B > 0).double().mean() + 0.5 * (code_B < 0).double().mean()
        return {"told": Term(told), "right": Term(right, None, "share of codes")}

    def objective_text(self, hyper: Hyper) -> str:
        critic, optim = self.config.critic, self.config.critic_optim
        by = f"{critic.layers} layers of {critic.width}, {optim.name} lr {schedules.at(optim.lr, 0):g}"
        return (
            f"minimise recon - strength log D(z); strength = {hyper['strength']:.4g}; D by a critic of {by}, between "
            f"N(0, I) and the codes; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )
