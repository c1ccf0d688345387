"""FactorVAE: penalises the latents' total correlation, which a second network estimates.

Kim & Mnih 2018, "Disentangling by Factorising", eq. 2 and algorithm 2:
loss = -E_q(z|x)[log p(x|z)] + KL(q(z|x) || p(z)) + gamma TC(z), TC(z) = E[l_0(z) - l_1(z)].
The critic's logits l_0 and l_1 say whether z is a code of q(z) or of the product of its marginals, for which each
latent of the codes of a second batch is permuted; the critic minimises -1/2 E[log D_0(z)] - 1/2 E[log D_1(permuted)].
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import (
    FreeBitsConfig,
    GaussianVAE,
    Hyper,
    Player,
    Posterior,
    Term,
    kl_terms,
    kl_text,
    unless_free,
)
from vaecli.nets import critics
from vaecli.objectives import terms
from vaecli.settings import schedules
from vaecli.settings.optim import Adam, OptimConfig, on_defaults
from vaecli.settings.schedules import Weight

CRITIC_OPTIM = Adam(lr=1e-4, betas=(0.5, 0.9))


class Config(FreeBitsConfig):
    """`gamma` weighs the total correlation; `critic` is the second network and `critic_optim` its optimizer.

    `beta` weighs the KL.
    """

    tiny: ClassVar[dict[str, Any]] = {**FreeBitsConfig.tiny, "critic": {"width": 16, "layers": 2}}
    name: Literal["factor-vae"] = "factor-vae"
    gamma: Weight = 35.0
    beta: Weight = 1.0
    critic: critics.CriticConfig = critics.CriticConfig()
    critic_optim: Annotated[OptimConfig, on_defaults(CRITIC_OPTIM)] = CRITIC_OPTIM


class Model(GaussianVAE):
    """Two players: `main`, the VAE, and `critic`, each updated once a step, the critic last."""

    config: Config
    batch_dependent = True  # latents are permuted within the batch
    least_batch = 2

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.critic = critics.build(config.critic, config.latent_dim)

    def players(self, optim: OptimConfig) -> list[Player]:
        judges = list(self.critic.parameters())
        return [
            Player("main", self.parameters_but(judges), optim),
            Player("critic", judges, self.config.critic_optim, batches=2),
        ]

    def log_ratio(self, z_BD: Tensor) -> Tensor:
        """The critic's estimate of log q(z) - sum_d log q(z_d), (B,)."""
        logits_B2 = self.network(self.critic, z_BD)
        return logits_B2[:, 0] - logits_B2[:, 1]

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        return {
            **kl_terms(self.config, q.kl_BD, hyper, hyper["beta"]),
            "tc": Term(self.log_ratio(z_BD).mean(), hyper["gamma"]),
        }

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        if player == "main":
            return super().loss(batch, hyper)
        with torch.no_grad():  # the critic's gradients end at the codes
            z_BD, other_BD = (terms.reparameterize(*self.features(b.x_BCHW)) for b in (batch, batch.others[0]))
            permuted_BD = critics.permuted(other_BD)
        real_B, made_B = self.log_ratio(z_BD), self.log_ratio(permuted_BD)
        told = 0.5 * F.softplus(-real_B).mean() + 0.5 * F.softplus(made_B).mean()
        right = 0.5 * (real_B > 0).double().mean() + 0.5 * (made_B < 0).double().mean()
        return {"told": Term(told), "right": Term(right, None, "share of codes")}

    def kl_weight(self, hyper: Hyper) -> float | None:
        return unless_free(hyper, hyper["beta"]) if hyper["gamma"] == 0 else None

    def objective_text(self, hyper: Hyper) -> str:
        critic, optim = self.config.critic, self.config.critic_optim
        by = f"{critic.layers} layers of {critic.width}, {optim.name} lr {schedules.at(optim.lr, 0):g}"
        return (
            f"minimise recon + beta {kl_text(hyper)} + gamma TC; beta = {hyper['beta']:.4g}, "
            f"gamma = {hyper['gamma']:.4g}; TC by a critic of {by}; "
            f"{self.likelihood.text(hyper)}; {terms.UNITS}"
        )
