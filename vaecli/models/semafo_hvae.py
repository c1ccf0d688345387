"""SemafoHVAE: SemafoVAE with a level of detail between z0 and the image, a few positions of a feature map.

Trung Ngo Trong et al. 2022, "SemafoVAE" (arXiv 2203.05074), after the code published with it. The decoder stops at a
feature map h(z0); there a spatial latent z1 comes in, with prior p(z1|z0, u) and posterior q(z1|z0, x), which sees the
encoder's map of the same size. To the objective of semafo-vae comes - beta_z1 KL(q(z1|z0, x) || p(z1|z0, u)): labels
say what is shown, z0 how it looks as a whole, z1 the detail.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from vaecli.batch import DataInfo
from vaecli.models import semafo_vae
from vaecli.models.base import Hyper, Level, Values
from vaecli.models.semafo_vae import gaussian
from vaecli.nets import semafo
from vaecli.objectives import distributions
from vaecli.objectives.distributions import Gaussian
from vaecli.settings.schedules import Weight
from vaecli.settings.section import NonNegative, Width

FLOOR_Z1 = 9.118819655545162e-4  # exp(-7), of standard deviations


class Config(semafo_vae.Config):
    """As semafo-vae's, with the net `semafo` alone, and of z1:

    `detail_channels`  latents at each of its positions (16 on MNIST, 32 on dSprites).
    `beta_z1`          weighs its rate.
    `u_skip`           scales what u adds to its prior; 0 leaves u out.
    `residual`         adds h to what comes back from z1; `deterministic` lets h pass beside z1 through the bottleneck.
    """

    tiny: ClassVar[dict[str, Any]] = {
        **{"latent_dim": 3, "net": {"name": "semafo", "width": 4}, "label_width": 16, "prior_width": 16},
        **{"warm_up": 20, "detail_channels": 2},
    }
    name: Literal["semafo-hvae"] = "semafo-hvae"  # type: ignore[assignment]
    net: Annotated[
        semafo.SemafoConfig, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)
    ] = semafo.SemafoConfig()
    detail_channels: Width = 16
    beta_z1: Weight = 1.0
    u_skip: NonNegative = 1.0
    residual: bool = True
    deterministic: bool = True


class Model(semafo_vae.Model):
    """Levels u, y, z0, z1; the encoder gives a feature map, from which `summary` gives z0; `unfold` gives h of z0, and
    the decoder reads what z1 makes of it."""

    config: Config

    def build_coders(self, config: semafo_vae.Config, info: DataInfo) -> None:
        assert isinstance(config, Config)
        plan, d = semafo.layout(info.shape), config.latent_dim
        encoder, decoder = semafo.build(config.net, info.shape, 2 * d, d)
        up, down = plan.tap
        self.encoder, self.summary = encoder[:up], encoder[up:]
        self.unfold, self.decoder = decoder[:down], decoder[down:]
        self.detail = semafo.Detail(
            2 * config.net.width, plan.between, config.detail_channels, self.width_y,
            config.u_skip, config.residual, config.deterministic,
        )  # fmt: skip
        self.levels = (*self.levels, Level("z1", self.detail.shape))

    # ---- the distributions

    def inference_order(self) -> Sequence[str]:
        return ["z0", "y", "u", "z1"]

    def features(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of q(z0|x), (B, 2 D), and the encoder's feature map (B, F, H, W)."""
        seen = self.network(self.encoder, x_BCHW)
        return self.network(self.summary, seen), seen

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        if level == "z1":
            return self._q_z1(self.network(self.unfold, given["z0"]), features[1])
        return super().q(level, features[0] if level == "z0" else None, given)

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "z1":
            return self._p_z1(self._prior_numbers(self.network(self.unfold, given["z0"])), given["u"])
        return super().p(level, given, n)

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self._shown(self.network(self.unfold, values["z0"]), values["z1"]))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        shown = self._shown(self.network(self.unfold, values["z0"]), values["z1"])
        return self.likelihood.log_prob(x_BCHW, shown, hyper)

    def _q_z1(self, h_BFHW: Tensor, seen_BFHW: Tensor) -> Gaussian:
        both = torch.cat([h_BFHW, seen_BFHW], dim=1)
        return gaussian(self.network(self.detail.posterior, both), FLOOR_Z1)

    def _prior_numbers(self, h_BFHW: Tensor) -> Tensor:
        return self.network(self.detail.prior, h_BFHW)

    def _p_z1(self, numbers: Tensor, u_BC: Tensor) -> Gaussian:
        return gaussian(self.detail.shifted(numbers, u_BC), FLOOR_Z1)

    def _shown(self, h_BFHW: Tensor, z1: Tensor) -> Tensor:
        return self.out(self.detail(h_BFHW, z1))

    # ---- training: h is computed once

    def reconstruct(self, x_BCHW: Tensor, features: Any, z_BD: Tensor, hyper: Hyper) -> tuple[Tensor, Any]:
        h_BFHW = self.network(self.unfold, z_BD)
        q_z1 = self._q_z1(h_BFHW, features[1])
        shown = self._shown(h_BFHW, distributions.sample(q_z1))
        return -self.likelihood.log_prob(x_BCHW, shown, hyper), (q_z1, self._prior_numbers(h_BFHW))

    def rate_below(self, below: Any, u_BC: Tensor) -> Tensor:
        q_z1, numbers = below
        return kl_divergence(q_z1, self._p_z1(numbers, u_BC)).flatten(1).sum(dim=1)

    def weighed_below(self, below: Any, u_BC: Tensor, q_u: Distribution, hyper: Hyper) -> Tensor:
        u = distributions.sample(q_u) if self.as_reference("redraw") else u_BC
        return hyper["beta_z1"] * self.rate_below(below, u)

    def objective_text(self, hyper: Hyper) -> str:
        return super().objective_text(hyper).replace("; labels of", f"; beta_z1 = {hyper['beta_z1']:.4g}; labels of", 1)
