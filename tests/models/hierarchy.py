"""Toy with two groups of latents, the second with a prior learned from the first, and a classifier on known labels."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Hyper, ModelConfig, Posterior
from vaecli.models.base import Model as Base
from vaecli.objectives import terms as objective


class Config(ModelConfig):
    name: Literal["hierarchy"] = "hierarchy"


class Model(Base):
    uses_labels = True

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.groups = {"top": 2, "low": 3}
        self.encoder = nn.Linear(info.pixels, 10)
        self.prior_net = nn.Linear(2, 3)
        self.decoder = nn.Linear(5, info.pixels)
        self.classifier = nn.Linear(2, info.factor_sizes[0])

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        mean_BD, logvar_BD = self.encoder(x_BCHW.flatten(1)).chunk(2, dim=1)
        shift_BD = torch.cat([torch.zeros_like(mean_BD[:, :2]), self.prior_net(mean_BD[:, :2])], dim=1)
        return Posterior(mean_BD, logvar_BD, objective.kl_normal(mean_BD - shift_BD, logvar_BD))

    def decode(self, z_BD: Tensor) -> Tensor:
        return self.decoder(z_BD).sigmoid().unflatten(1, self.info.shape)

    def nll(self, x_BCHW: Tensor, z_BD: Tensor, hyper: Hyper) -> Tensor:
        return -objective.bernoulli_log_prob(x_BCHW, self.decoder(z_BD).unflatten(1, self.info.shape))

    def prior(self, n: int, temperature: float = 1.0) -> Tensor:
        top_BD = temperature * torch.randn(n, 2)
        return torch.cat([top_BD, self.prior_net(top_BD) + temperature * torch.randn(n, 3)], dim=1)

    def loss(self, batch: Batch, hyper: Hyper, phase: str = "main") -> dict[str, Tensor]:
        q = self.posterior(batch.x_BCHW)
        recon = self.nll(batch.x_BCHW, q.sample(), hyper).mean()
        kl = q.kl_BD.sum(1).mean()
        known_B = batch.labels_BK[:, 0] >= 0
        logits = self.classifier(q.mean_BD[:, :2])
        label = F.cross_entropy(logits, batch.labels_BK[:, 0], ignore_index=-1, reduction="sum") / known_B.sum().clamp(
            min=1
        )
        seen = known_B.double().mean()
        return {
            "loss": recon + kl + label,
            "recon": recon,
            "kl": kl,
            "elbo": -(recon + kl),
            "label": label,
            "seen": seen,
        }

    def objective_text(self, hyper: Hyper) -> str:
        return "minimise recon + KL + cross-entropy of the known labels"
