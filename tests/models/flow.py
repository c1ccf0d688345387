"""Toy whose posterior is a Gaussian sent through an affine coupling: neither its moments nor its KL are exact."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Transform, TransformedDistribution, constraints

from models._bound import bound
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Hyper, Level, NetConfig, NetModel, Term, Values
from vaecli.objectives import terms
from vaecli.objectives.distributions import Gaussian


class Config(NetConfig):
    name: Literal["flow"] = "flow"


class Coupling(Transform):
    """The last latents are scaled and shifted by what `net` makes of the first."""

    domain, codomain, bijective = constraints.real_vector, constraints.real_vector, True

    def __init__(self, net: nn.Module, kept: int) -> None:
        super().__init__(cache_size=1)
        self.net, self.kept = net, kept

    def _split(self, z_BD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, last = z_BD[..., : self.kept], z_BD[..., self.kept :]
        scale, shift = self.net(first).chunk(2, dim=-1)
        return first, last, scale.tanh(), shift

    def _call(self, z_BD: Tensor) -> Tensor:
        first, last, scale, shift = self._split(z_BD)
        return torch.cat([first, last * scale.exp() + shift], dim=-1)

    def _inverse(self, z_BD: Tensor) -> Tensor:
        first, last, scale, shift = self._split(z_BD)
        return torch.cat([first, (last - shift) * (-scale).exp()], dim=-1)

    def log_abs_det_jacobian(self, z_BD: Tensor, _: Tensor) -> Tensor:
        return self._split(z_BD)[2].sum(dim=-1)


class Model(NetModel):
    outputs_per_latent = 2

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), standard=True),)
        kept = config.latent_dim // 2
        self.coupling = nn.Sequential(nn.Linear(kept, 8), nn.Tanh(), nn.Linear(8, 2 * (config.latent_dim - kept)))

    def features(self, x_BCHW: Tensor) -> Any:
        return self.network(self.encoder, x_BCHW).chunk(2, dim=1)

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        base = Independent(Gaussian(features[0], terms.clamp_logvar(features[1])), 1)
        return TransformedDistribution(base, [Coupling(self.coupling, self.config.latent_dim // 2)])

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        return bound(self, batch, hyper)

    def objective_text(self, hyper: Hyper) -> str:
        return "minimise recon + log q - log p"
