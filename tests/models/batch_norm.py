"""Toy with running statistics, and with a weight that it computes by itself at every step."""

from typing import Literal

from torch import Tensor, nn

from vaecli.batch import DataInfo
from vaecli.models.base import GaussianVAE, Hyper, NetConfig, Posterior, Term


class Config(NetConfig):
    name: Literal["batch-norm"] = "batch-norm"


class Model(GaussianVAE):
    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.encoder.insert(1, nn.BatchNorm1d(info.pixels))

    def hyper(self, step: int) -> dict[str, float]:
        return {**super().hyper(step), "warmth": min(1.0, step / 20)}

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        return {"kl": Term(q.kl_BD.sum(dim=1), hyper["warmth"])}

    def objective_text(self, hyper: Hyper) -> str:
        return f"minimise recon + {hyper['warmth']:.2g} KL"
