"""Toy of partly known factors: a label, a latent whose prior depends on it, and a share of known labels in every batch
(the M2 of Kingma et al. 2014 with a relaxed label)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, OneHotCategorical

from vaecli.batch import Batch, DataInfo, Split
from vaecli.data.orders import Mixed, Order
from vaecli.models.base import Hyper, Level, ModelConfig, Term, Values
from vaecli.models.base import Model as Base
from vaecli.objectives import distributions, terms
from vaecli.objectives.distributions import Gaussian


class Config(ModelConfig):
    name: Literal["labels"] = "labels"


class Model(Base):
    uses_labels = True

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.values = info.factor_sizes[0]
        self.levels = (Level("y", (self.values,), "labels", sizes=(self.values,)), Level("z", (3,)))
        self.classifier, self.encoder = nn.Linear(info.pixels, self.values), nn.Linear(info.pixels + self.values, 6)
        self.centres, self.decoder = nn.Linear(self.values, 3), nn.Linear(self.values + 3, info.pixels)

    def order(self, train: Split, seed: int, batch_size: int) -> Order:
        assert train.labels_NK is not None
        return Mixed(train.labels_NK[:, 0].cpu() >= 0, seed, batch_size, share=0.25)

    def q(self, level: str, features: Tensor, given: Values) -> Distribution:
        if level == "y":
            return OneHotCategorical(logits=self.classifier(features.flatten(1)))
        mean, logvar = self.encoder(torch.cat([features.flatten(1), given["y"]], dim=1)).chunk(2, dim=1)
        return Gaussian(mean, logvar)

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "y":
            return OneHotCategorical(logits=torch.zeros(n, self.values, device=self.device))
        mean = self.centres(given["y"])
        return Gaussian(mean, torch.zeros_like(mean))

    def out(self, values: Values) -> Tensor:
        return self.decoder(torch.cat([values["y"], values["z"]], dim=1)).unflatten(1, self.info.shape)

    def image(self, values: Values) -> Tensor:
        return self.out(values).sigmoid()

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return terms.bernoulli_log_prob(x_BCHW, self.out(values))

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        assert batch.labels_BK is not None
        x, label_B = batch.x_BCHW, batch.labels_BK[:, 0]
        known_B = label_B >= 0
        q_y: Any = self.q("y", x, {})
        told = F.one_hot(label_B.clamp(min=0), self.values).to(x.dtype)
        y = torch.where(known_B.unsqueeze(1), told, F.gumbel_softmax(q_y.logits, tau=0.5))
        q_z = self.q("z", x, {"y": y})
        z = distributions.sample(q_z)
        kl_y = distributions.rate(q_y, self.p("y", {}, len(x)), y)
        kl_z = distributions.rate(q_z, self.p("z", {"y": y}, len(x)), z)
        assert kl_y is not None and kl_z is not None
        cross = F.nll_loss(q_y.logits, label_B, ignore_index=-1, reduction="sum") / known_B.sum().clamp(min=1)
        return {
            "recon": Term(-self.log_prob(x, {"y": y, "z": z}, hyper)),
            "kl": Term(torch.where(known_B, 0.0, kl_y) + kl_z.sum(dim=1)),
            "label": Term(cross),
            "known": Term(known_B.to(x.dtype), None, "share"),
        }

    def objective_text(self, hyper: Hyper) -> str:
        return "minimise recon + KL + cross-entropy of the known labels"
