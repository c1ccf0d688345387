"""A model of the squares whose every answer is known: labels say size and column, a latent the row, another the shade.

u ~ N(0, I) has a number for each label's value, the largest of which is the label. z0 holds the labels' values as they
stand in u (deviation 0.01), the row as a quantile of N(0, 1), and a number w ~ N(size, 0.5^2) that moves nothing, but
that a share `slip` of its upper quantiles paints the next size. z1 (two numbers around the row's) shades the square.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Hyper, Level, ModelConfig, Term, Values
from vaecli.models.base import Model as Base
from vaecli.objectives import distributions, labels
from vaecli.objectives.distributions import Gaussian
from vaecli.objectives.labels import OneHotBlocks

SIZES = (3, 13)
C = sum(SIZES)
NARROW, WIDE = 0.01, 0.5


class Config(ModelConfig):
    """`slip`: the share of images that get a size which nobody asked for."""

    tiny: ClassVar[dict[str, Any]] = {}
    name: Literal["painter"] = "painter"
    slip: float = 0.0


class Model(Base):
    config: Config
    uses_labels = True

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (
            Level("u", (C,), standard=True),
            Level("y", (C,), "labels", sizes=SIZES, factors=("size", "posX")),
            Level("z0", (C + 2,)),
            Level("z1", (2,)),
        )
        self.nothing = nn.Parameter(torch.zeros(1))

    def inference_order(self) -> list[str]:
        return ["z0", "y", "u", "z1"]

    # ---- the distributions

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "y":
            return OneHotBlocks(50 * given["u"], SIZES)
        if level == "z0":
            y = OneHotBlocks(given["u"], SIZES).mode
            rest = torch.stack([self.nothing.expand(n), y[:, :3].argmax(dim=1).float()], dim=1)
            scale = torch.tensor([NARROW] * C + [1.0, WIDE])
            return Gaussian(torch.cat([y, rest], dim=1), scale.log().mul(2).expand(n, -1))
        if level == "z1":
            return Gaussian(given["z0"][:, C : C + 1].expand(-1, 2), torch.zeros(n, 2))
        return super().p(level, given, n)

    def q(self, level: str, features: Tensor, given: Values) -> Distribution:
        if level == "y":
            return OneHotBlocks(50 * given["z0"][:, :C], SIZES)
        if level == "u":
            return Gaussian(3 * given["y"] - 1, torch.full_like(given["y"], -9.0))
        on = (features > 0.4).squeeze(1)
        size, left, top = on.any(dim=1).sum(dim=1) - 2, *(on.any(dim=d).int().argmax(dim=1) for d in (1, 2))
        if level == "z1":
            shade = (1 - features.flatten(1).amax(dim=1)).clamp(1e-4, 0.2 - 1e-4) / 0.2
            mean = torch.stack([shade.logit(), torch.zeros(len(size))], dim=1)
            return Gaussian(mean, torch.full_like(mean, -8.0))
        known = torch.stack([size.clamp(0, 2), left.clamp(max=12)], dim=1)
        row = torch.special.ndtri((top.clamp(max=12) + 0.5) / 13)
        mean = torch.cat([labels.one_hot(known, SIZES), row[:, None], size[:, None].float()], dim=1)
        return Gaussian(mean, torch.full_like(mean, -8.0))

    def condition(self, labels_BK: Tensor) -> Values:
        u = torch.randn(len(labels_BK), C)
        known = labels.spread(labels_BK >= 0, SIZES)
        y = torch.where(known, labels.one_hot(labels_BK, SIZES), OneHotBlocks(u, SIZES).mode)
        return {"y": y, "u": distributions.sample(self.q("u", torch.zeros(0), {"y": y}))}

    def image(self, values: Values) -> Tensor:
        z0 = values["z0"]
        size, left = (block.argmax(dim=1) for block in z0[:, :C].split(list(SIZES), dim=1))
        slipped = torch.special.ndtr((z0[:, C + 1] - size) / WIDE) > 1 - self.config.slip
        side = 2 + torch.where(slipped, (size + 1) % 3, size)
        top = (13 * torch.special.ndtr(z0[:, C])).long().clamp(0, 12)
        place = torch.arange(16)
        rows, columns = ((place >= start[:, None]) & (place < (start + side)[:, None]) for start in (top, left))
        shade = 1 - 0.2 * values["z1"][:, 0].sigmoid()
        return (rows[:, None, :, None] & columns[:, None, None, :]) * shade[:, None, None, None]

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return -(x_BCHW - self.image(values)).square().flatten(1).sum(dim=1)

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        return {"nothing": Term(self.nothing.square().sum())}

    def objective_text(self, hyper: Hyper) -> str:
        return "nothing to learn"
