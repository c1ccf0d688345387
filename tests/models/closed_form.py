"""Toy without gradient steps: probabilistic PCA fitted from the covariance (Tipping & Bishop 1999)."""

import math
from typing import Literal

import torch
from torch import Tensor

from vaecli.batch import DataInfo, Split
from vaecli.models.base import Hyper, ModelConfig, Posterior
from vaecli.models.base import Model as Base
from vaecli.objectives import terms as objective


class Config(ModelConfig):
    name: Literal["closed-form"] = "closed-form"
    latent_dim: int = 3


class Model(Base):
    phases = ()

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.groups = {"z": config.latent_dim}
        self.register_buffer("mean_P", torch.zeros(info.pixels))
        self.register_buffer("axes_PD", torch.zeros(info.pixels, config.latent_dim))
        self.register_buffer("variance_D", torch.ones(config.latent_dim))
        self.register_buffer("noise", torch.ones(()))

    def begin(self, train: Split) -> None:
        x_NP = torch.cat([b.x_BCHW.flatten(1) for b in train.batches(256)]).double()
        self.mean_P = x_NP.mean(0).float()
        values, vectors = torch.linalg.eigh(torch.cov(x_NP.T, correction=0))
        d = self.groups["z"]
        self.noise = values[:-d].mean().float()
        self.variance_D = values[-d:].flip(0).float()
        self.axes_PD = (vectors[:, -d:].flip(1) * (values[-d:].flip(0) - values[:-d].mean()).sqrt()).float()

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        m_DD = self.axes_PD.T @ self.axes_PD + self.noise * torch.eye(len(self.variance_D))
        mean_BD = torch.linalg.solve(m_DD, self.axes_PD.T @ (x_BCHW.flatten(1) - self.mean_P).T).T
        logvar_BD = (self.noise / self.variance_D).log().expand_as(mean_BD)
        return Posterior(mean_BD, logvar_BD, objective.kl_normal(mean_BD, logvar_BD))

    def decode(self, z_BD: Tensor) -> Tensor:
        return (self.mean_P + z_BD @ self.axes_PD.T).unflatten(1, self.info.shape)

    def nll(self, x_BCHW: Tensor, z_BD: Tensor, hyper: Hyper) -> Tensor:
        return -objective.gaussian_log_prob(x_BCHW, self.decode(z_BD), math.sqrt(float(self.noise)))

    def prior(self, n: int, temperature: float = 1.0) -> Tensor:
        return temperature * torch.randn(n, self.groups["z"])

    def objective_text(self, hyper: Hyper) -> str:
        return "maximise log p(x) in closed form"
