"""Quantised-latent autoencoder: every latent takes one of a few learned values of its own.

Hsu et al. 2023, "Disentanglement via Latent Quantization", section 3: latent j is put to the nearest entry of a scalar
codebook V_j of n values; loss = recon + quantisation |sg(z) - v|^2 + commitment |z - sg(v)|^2, the gradient of recon
being handed from v to z as it is (straight through). Strong weight decay (AdamW, 0.1) keeps the networks simple; it
leaves codebooks and biases alone, as in the authors' program.

As codes, latents are the ranks of their values, so that neighbouring numbers are neighbouring values.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Hyper, Level, NetConfig, NetModel, Player, Term, Values
from vaecli.objectives.distributions import Indices, UniformIndices
from vaecli.settings.optim import OptimConfig
from vaecli.settings.schedules import Weight

MOST = 1024


class Config(NetConfig):
    """`values` is n, the values that a latent can take. The weights of the two terms count, as the authors', for means
    over the latents against a reconstruction averaged over pixels; ours are sums, so they are multiplied by C H W / D.
    """

    tiny: ClassVar[dict[str, Any]] = {**NetConfig.tiny, "values": 5}
    name: Literal["qlae"] = "qlae"
    values: Annotated[int, Field(ge=2, le=MOST)] = 10
    quantisation: Weight = 0.01
    commitment: Weight = 0.01


class Model(NetModel):
    """An encoder to D numbers, D scalar codebooks, and a decoder."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        d, n = config.latent_dim, config.values
        self.levels = (Level("z", (d,), "codes", sizes=(n,), ordered=True),)
        # Evenly over [-1/2, 1/2], as the authors start them.
        self.codebook_DV = nn.Parameter(torch.linspace(-0.5, 0.5, n).repeat(d, 1))

    def players(self, optim: OptimConfig) -> list[Player]:
        spared = [p for name, p in self.named_parameters() if name == "codebook_DV" or name.endswith("bias")]
        return [Player("main", list(self.parameters()), optim, undecayed=spared)]

    def weight(self, hyper: Hyper, name: str) -> float:
        """What a term summed over latents is multiplied with."""
        return hyper[name] * self.info.pixels / self.config.latent_dim

    def nearest(self, z_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(values, ranks) of the codebook entries nearest to z, (B, D) each; the ranks int64."""
        sorted_DV = self.codebook_DV.sort(dim=1).values
        rank_BD = (z_BD.unsqueeze(2) - sorted_DV).abs().argmin(dim=2)
        return self.values(rank_BD), rank_BD

    def values(self, rank_BD: Tensor) -> Tensor:
        """The values of these ranks, (B, D)."""
        sorted_DV = self.codebook_DV.sort(dim=1).values
        return sorted_DV.expand(rank_BD.shape[0], -1, -1).gather(2, rank_BD.unsqueeze(2)).squeeze(2)

    def features(self, x_BCHW: Tensor) -> Tensor:
        return self.network(self.encoder, x_BCHW)

    def q(self, level: str, features: Tensor, given: Values) -> Indices:
        return Indices(self.nearest(features)[1], self.config.values)

    def p(self, level: str, given: Values, n: int) -> UniformIndices:
        return UniformIndices((n, self.config.latent_dim), self.config.values, self.device)

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(self.values(values["z"])))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(self.values(values["z"])), hyper)

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        z_BD = self.features(batch.x_BCHW)
        value_BD, rank_BD = self.nearest(z_BD)
        through_BD = z_BD + (value_BD - z_BD).detach()
        recon = -self.likelihood.log_prob(batch.x_BCHW, self.out(through_BD), hyper).mean()
        used_DV = torch.zeros_like(self.codebook_DV.detach()).scatter_(1, rank_BD.T, 1.0)
        return {
            "recon": Term(recon),
            "quantisation": Term(
                (z_BD.detach() - value_BD).square().sum(dim=1).mean(), self.weight(hyper, "quantisation"), "1"
            ),
            "commitment": Term(
                (z_BD - value_BD.detach()).square().sum(dim=1).mean(), self.weight(hyper, "commitment"), "1"
            ),
            "used": Term(used_DV.mean(), None, "share of values"),
        }

    def objective_text(self, hyper: Hyper) -> str:
        quantisation, commitment = (self.weight(hyper, name) for name in ("quantisation", "commitment"))
        weights = f"quantisation {quantisation:.4g}, commitment {commitment:.4g}"
        return (
            f"minimise recon + quantisation + commitment; weights {weights}; {self.config.values} values a latent; "
            f"{self.likelihood.text(hyper)}; nats and squares, sum over pixels and latents, mean over the batch"
        )
