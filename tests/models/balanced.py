"""Toy with work between steps: every tenth step images are assigned anew to the latent that speaks loudest of them, and
batches are balanced by that (as in the epitomic VAE, Yeung et al. 2017)."""

from typing import Literal

import torch
from torch import Tensor

from vaecli.batch import DataInfo, Split
from vaecli.data.orders import Balanced, Order
from vaecli.models.base import GaussianVAE, Hyper, NetConfig, Posterior, Term


class Config(NetConfig):
    name: Literal["balanced"] = "balanced"


class Model(GaussianVAE):
    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.register_buffer("assignment_N", torch.zeros(info.size, dtype=torch.int64))

    def due(self, step: int, stage: str = "main") -> bool:
        return step % 10 == 0

    def prepare(self, step: int, stage: str, train: Split) -> None:
        with torch.no_grad():
            found = [
                self.encoder(batch.x_BCHW.to(self.device))[:, : self.config.latent_dim] for batch in train.batches(64)
            ]
        self.assignment_N.copy_(torch.cat(found).abs().argmax(dim=1))

    def order(self, train: Split, seed: int, batch_size: int) -> Order:
        return Balanced(self.assignment_N, seed, batch_size)

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        return {"kl": Term(q.kl_BD.sum(dim=1))}

    def objective_text(self, hyper: Hyper) -> str:
        return "minimise recon + KL"
