"""Ladder VAE: several levels of latents, whose posterior on the way down weighs what came up against the prior.

Sonderby et al. 2016, "Ladder Variational Autoencoders", section 2.1. Images are generated from the top down,
p(x, z) = p(z3) p(z2|z3) p(z1|z2) p(x|z1). A deterministic pass goes up: d1 = net(x), d2 = MLP(d1), ...; each gives
a Gaussian N(m_i, s_i^2) of its level. q(z3|x) is the top's; below, q(z_i|z_{i+1}, x) is the product of
N(m_i, s_i^2) and the prior p(z_i|z_{i+1}), precisions adding (eq. 17 and 18).
loss = -E_q[log p(x|z1)] + beta sum_i E_q[KL(q(z_i|z_{i+1}, x) || p(z_i|z_{i+1}))], beta warming up from 0 to 1
(section 2.2).
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import FreeBitsConfig, Hyper, Level, NetModel, Term, Values, kl_terms, kl_text, unless_free
from vaecli.nets import coders
from vaecli.nets.stochastic import dense, gaussian, precision_weighted
from vaecli.objectives import likelihoods, terms
from vaecli.objectives.distributions import Gaussian, from_numbers
from vaecli.settings.schedules import Linear, Weight
from vaecli.settings.section import Width


class Config(FreeBitsConfig):
    """`latent_dim` is the size of z1, which the decoder reads, `upper` those of z2, z3, ... above it.

    `hidden` has a width for each level from z1 up, of d_i and of the two-layer nets to and from it. `batch_norm` is of
    those nets (as in the paper). `beta` weighs the KL; `free_bits` are those of a latent of any level.
    """

    tiny: ClassVar[dict[str, Any]] = {
        **{"latent_dim": 4, "upper": [3, 2], "hidden": [16, 12, 8], "net": {"name": "mlp", "hidden": [16]}},
        "beta": {"schedule": "linear", "start": 0.1, "end": 1.0, "steps": 20},
    }
    name: Literal["ladder-vae"] = "ladder-vae"
    latent_dim: Width = 32
    upper: list[Width] = Field(default=[16, 8], min_length=1, max_length=16)
    hidden: list[Width] = Field(default=[256, 128, 64])
    batch_norm: bool = True
    beta: Weight = Linear(schedule="linear", start=0.0, end=1.0, steps=10_000)

    @model_validator(mode="after")
    def _one_width_a_level(self) -> "Config":
        if len(self.hidden) != 1 + len(self.upper):
            raise ValueError(f"there are {1 + len(self.upper)} levels, but `hidden` has {len(self.hidden)} widths")
        return self


class Model(NetModel):
    """Levels zL, ..., z1, in this order of generation and of inference; only zL has the prior N(0, I)."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super(NetModel, self).__init__(config, info)  # whose nets are those of a single level
        sizes, widths, leaky = [config.latent_dim, *config.upper], config.hidden, nn.LeakyReLU(0.1)
        top = len(sizes)
        self.levels = tuple(Level(f"z{i}", (sizes[i - 1],), standard=i == top) for i in range(top, 0, -1))
        self.encoder, self.decoder = coders.build(config.net, info.shape, widths[0], sizes[0])
        self.likelihood = likelihoods.build(config.likelihood, info.binary, info.contrast)
        self.up = nn.ModuleList([leaky])  # from d_{i-1} to d_i; the encoder's output is still to be activated
        for below, width in pairwise(widths):
            self.up.append(nn.Sequential(*dense(below, [width, width], leaky, config.batch_norm)))
        self.seen = nn.ModuleList(gaussian(widths[i], [], sizes[i], leaky) for i in range(top))
        self.down = nn.ModuleList(  # from z_{i+1} to the prior of z_i
            gaussian(sizes[i + 1], [widths[i]] * 2, sizes[i], leaky, config.batch_norm) for i in range(top - 1)
        )

    # ---- the distributions

    def features(self, x_BCHW: Tensor) -> dict[str, Gaussian]:
        """What the pass upwards says of each level."""
        d, seen = self.network(self.encoder, x_BCHW), {}
        for i, (up, head) in enumerate(zip(self.up, self.seen, strict=True), start=1):
            d = self.network(up, d)
            seen[f"z{i}"] = from_numbers(self.network(head, d))
        return seen

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == self.levels[0].name:
            return super().p(level, given, n)
        i = int(level[1:])
        return from_numbers(self.network(self.down[i - 1], given[f"z{i + 1}"]))

    def q(self, level: str, features: dict[str, Gaussian], given: Values) -> Distribution:
        seen = features[level]
        return self._combined(level, seen, self.p(level, given, seen.loc.shape[0]))

    def _combined(self, level: str, seen: Gaussian, prior: Distribution) -> Gaussian:
        """The posterior from what came up and what comes down; at the top nothing does."""
        if level == self.levels[0].name:
            return seen
        assert isinstance(prior, Gaussian)
        return Gaussian(*precision_weighted(seen.loc, seen.logvar, prior.loc, prior.logvar))

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(values["z1"]))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(values["z1"]), hyper)

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        seen = self.features(batch.x_BCHW)
        values: Values = {}
        kls: dict[str, Tensor] = {}
        for name in self.inference_order():
            p = self.p(name, values, len(batch.x_BCHW))  # once: a batch norm counts its batches
            q = self._combined(name, seen[name], p)
            values[name] = q.rsample()
            kls[name] = kl_divergence(q, p)
        recon = -self.log_prob(batch.x_BCHW, values, hyper).mean()
        kl = kl_terms(self.config, torch.cat(list(kls.values()), dim=1), hyper, hyper["beta"])
        return {
            "recon": Term(recon),
            **kl,
            **{f"kl_{name}": Term(kl_BD.sum(dim=1).mean(), None) for name, kl_BD in kls.items()},
            "elbo": Term(-(recon + kl["kl"].value), None),
        }

    def kl_weight(self, hyper: Hyper) -> float | None:
        return unless_free(hyper, hyper["beta"])

    def objective_text(self, hyper: Hyper) -> str:
        way = " -> ".join(f"{level.name} ({level.size})" for level in self.levels)
        return (
            f"minimise recon + beta {kl_text(hyper)}; beta = {hyper['beta']:.4g}; {way} -> image; "
            f"{self.likelihood.text(hyper)}; {terms.UNITS}"
        )
