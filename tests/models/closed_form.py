"""Toy without gradient steps: probabilistic PCA fitted from the covariance (Tipping & Bishop 1999)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from vaecli.batch import DataInfo, Split
from vaecli.errors import InputError
from vaecli.models.base import Hyper, Level, ModelConfig, Values
from vaecli.models.base import Model as Base
from vaecli.objectives import terms
from vaecli.objectives.distributions import Gaussian


class Config(ModelConfig):
    name: Literal["closed-form"] = "closed-form"
    latent_dim: int = 3


class Model(Base):
    closed_form = True
    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), standard=True),)
        self.register_buffer("mean_P", torch.zeros(info.pixels))
        self.register_buffer("axes_PD", torch.zeros(info.pixels, config.latent_dim))
        self.register_buffer("variance_D", torch.ones(config.latent_dim))
        self.register_buffer("noise", torch.ones(()))

    def fit(self, train: Split, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        where = self.device
        seen, sum_P, squares_PP = 0, torch.zeros(self.info.pixels, device=where).double(), torch.zeros((), device=where)
        for batch in train.batches(32):
            x_BP = batch.x_BCHW.to(where).flatten(1).double()
            seen, sum_P, squares_PP = seen + len(x_BP), sum_P + x_BP.sum(0), squares_PP + x_BP.T @ x_BP
            progress(seen)
            if stop():
                break
        d = self.config.latent_dim
        if seen <= d + 1:
            raise InputError(f"{seen} images are too few")
        mean_P = sum_P / seen
        values, vectors = torch.linalg.eigh(squares_PP / seen - torch.outer(mean_P, mean_P))
        self.mean_P.copy_(mean_P)
        self.noise.copy_(values[:-d].mean())
        self.variance_D.copy_(values[-d:].flip(0))
        self.axes_PD.copy_(vectors[:, -d:].flip(1) * (values[-d:].flip(0) - values[:-d].mean()).sqrt())

    def q(self, level: str, features: Tensor, given: Values) -> Distribution:
        m_DD = self.axes_PD.T @ self.axes_PD + self.noise * torch.eye(len(self.variance_D), device=self.device)
        mean_BD = torch.linalg.solve(m_DD, self.axes_PD.T @ (features.flatten(1) - self.mean_P).T).T
        return Gaussian(mean_BD, (self.noise / self.variance_D).log().expand_as(mean_BD))

    def image(self, values: Values) -> Tensor:
        return (self.mean_P + values["z"] @ self.axes_PD.T).unflatten(1, self.info.shape)

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return terms.gaussian_log_prob(x_BCHW, self.image(values), math.sqrt(float(self.noise)))

    def objective_text(self, hyper: Hyper) -> str:
        return "maximise log p(x) in closed form"
