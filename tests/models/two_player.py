"""Toy with two optimizers: a VAE, and a critic that learns to tell its codes from the prior's."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import GaussianVAE, Hyper, NetConfig, Posterior
from vaecli.settings.optim import Adam, OptimConfig


class Config(NetConfig):
    name: Literal["two-player"] = "two-player"
    critic_optim: OptimConfig = Adam(lr=1e-2, betas=(0.5, 0.9))


class Model(GaussianVAE):
    phases = ("main", "critic")

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.critic = nn.Linear(config.latent_dim, 1)

    def optimizers(self, optim: OptimConfig) -> dict[str, tuple[list[nn.Parameter], OptimConfig]]:
        own = [p for name, p in self.named_parameters() if not name.startswith("critic.")]
        return {"main": (own, optim), "critic": (list(self.critic.parameters()), self.config.critic_optim)}

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Tensor]:
        return {"kl_term": q.kl_BD.sum(dim=1).mean(), "fool": -self.critic(z_BD).mean()}

    def loss(self, batch: Batch, hyper: Hyper, phase: str = "main") -> dict[str, Tensor]:
        if phase == "main":
            return super().loss(batch, hyper)
        with torch.no_grad():
            z_BD = self.posterior(batch.x_BCHW).sample()
        fake, real = self.critic(z_BD), self.critic(torch.randn_like(z_BD))
        return {"loss": F.softplus(-real).mean() + F.softplus(fake).mean()}

    def objective_text(self, hyper: Hyper) -> str:
        return "minimise recon + KL - critic(z)"
