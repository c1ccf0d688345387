"""Toy with two optimizers: a VAE, and a critic with running statistics that learns to tell the codes of one batch from
those of another in which every latent is permuted; twice a step, each time from two batches of its own."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import GaussianVAE, Hyper, NetConfig, Player, Posterior, Term
from vaecli.objectives import terms
from vaecli.settings.optim import Adam, OptimConfig


class Config(NetConfig):
    name: Literal["two-player"] = "two-player"
    critic_optim: OptimConfig = Adam(lr=1e-2, betas=(0.5, 0.9))


class Model(GaussianVAE):
    config: Config
    batch_dependent = True

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.critic = nn.Sequential(nn.Linear(config.latent_dim, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def players(self, optim: OptimConfig) -> list[Player]:
        own = [p for name, p in self.named_parameters() if not name.startswith("critic.")]
        critic = Player("critic", list(self.critic.parameters()), self.config.critic_optim, updates=2, batches=2)
        return [Player("main", own, optim), critic]

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        return {"kl": Term(q.kl_BD.sum(dim=1)), "tc": Term(self.critic(z_BD).mean(), 0.5)}

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        if player == "main":
            return super().loss(batch, hyper)
        with torch.no_grad():
            (mean, logvar), (mean2, logvar2) = (self.features(b.x_BCHW) for b in (batch, *batch.others))
        joint, other = terms.reparameterize(mean, logvar), terms.reparameterize(mean2, logvar2)
        permuted = torch.stack([z_B[torch.randperm(len(z_B))] for z_B in other.unbind(dim=1)], dim=1)
        return {"tell": Term(F.softplus(-self.critic(joint)).mean() + F.softplus(self.critic(permuted)).mean())}

    def objective_text(self, hyper: Hyper) -> str:
        return "minimise recon + KL + 0.5 critic(z)"
