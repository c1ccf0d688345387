"""Poincare VAE: latents in a hyperbolic ball, where there is room for trees, with wrapped normals.

Mathieu et al. 2019, "Continuous Hierarchical Representations with Poincare Variational Auto-Encoders", section 3:
q(z|x) is a wrapped normal around mu(x) = exp_0 of the encoder's numbers, p(z) one around 0, the decoder's first layer
measures distances to geodesic hyperplanes; loss = -E_q[log p(x|z)] + E_q[log q(z|x) - log p(z)], of the draw, densities
with respect to the ball's volume. At small curvature it is a VAE whose plane is measured at half its length.

pythae stops at 0.004 of the radius from the rim, 6.2 from the centre, and draws there differ from their densities; here
it is 12.2, in float64. Its Riemannian normal, the paper's other choice, is not here.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import (
    FreeBitsConfig,
    Hyper,
    Level,
    NetModel,
    Posterior,
    Term,
    Values,
    kl_terms,
    kl_text,
    unless_free,
)
from vaecli.nets import coders
from vaecli.nets.gyroplanes import Gyroplanes
from vaecli.objectives import distributions, terms
from vaecli.objectives.hyperbolic import Ball, WrappedNormal
from vaecli.settings.schedules import Weight
from vaecli.settings.section import Positive, Width


class Config(FreeBitsConfig):
    """`curvature` is c: the ball has radius 1 / sqrt(c). `prior_scale` is the standard deviation of the prior, measured
    along geodesics. `planes` hyperplanes stand before the decoder's net; without, it reads the coordinates. `beta`
    weighs the KL, which is that of all coordinates together, and so are the `free_bits`."""

    tiny: ClassVar[dict[str, Any]] = {**FreeBitsConfig.tiny, "planes": 8}
    name: Literal["poincare-vae"] = "poincare-vae"
    curvature: Positive = 1.0
    prior_scale: Positive = 1.0
    planes: Width | None = 128
    beta: Weight = 1.0


class Model(NetModel):
    """The encoder gives a point of the ball and the log-variances around it."""

    config: Config
    outputs_per_latent = 2

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        d, planes = config.latent_dim, config.planes
        self.levels = (Level("z", (d,)),)
        self.ball = Ball(config.curvature)
        if planes is not None:
            self.encoder, decoder = coders.build(config.net, info.shape, 2 * d, planes)
            self.decoder = nn.Sequential(Gyroplanes(d, planes, config.curvature), nn.ReLU(), *decoder)

    # ---- the distributions

    def features(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar), (B, D) each."""
        raw_BD, logvar_BD = self.network(self.encoder, x_BCHW).chunk(2, dim=1)
        return self.ball.project(self.ball.reach(2 * raw_BD)), terms.clamp_logvar(logvar_BD)

    def q(self, level: str, features: tuple[Tensor, Tensor], given: Values) -> WrappedNormal:
        return WrappedNormal(*features, self.config.curvature)

    def p(self, level: str, given: Values, n: int) -> WrappedNormal:
        zeros = torch.zeros(n, self.config.latent_dim, device=self.device, dtype=next(self.parameters()).dtype)
        scale = torch.as_tensor(self.config.prior_scale, dtype=zeros.dtype, device=self.device)
        return WrappedNormal(zeros, zeros + 2 * scale.log(), self.config.curvature)

    def out(self, z_BD: Tensor) -> Tensor:
        """Of what is not in the ball that of the point nearest to it."""
        return super().out(self.ball.project(z_BD))

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        """Means alone: who reads log-variances from a table takes them for those of independent Gaussians."""
        return Posterior(distributions.moments(self.q("z", self.features(x_BCHW), {}))[0])

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        q = self.q("z", self.features(batch.x_BCHW), {})
        z_BD = q.rsample()
        recon = -self.log_prob(batch.x_BCHW, {"z": z_BD}, hyper).mean()
        kl_B = q.log_prob(z_BD) - self.p("z", {}, len(z_BD)).log_prob(z_BD)
        kl = kl_terms(self.config, kl_B.view(-1, 1), hyper, hyper["beta"])
        return {
            "recon": Term(recon),
            **kl,
            "elbo": Term(-(recon + kl["kl"].value), None),
            "distance": Term(self.ball.direction(q.mu_ND.detach()).norm(dim=1).mean(), None, "from 0"),
        }

    def kl_weight(self, hyper: Hyper) -> float | None:
        return unless_free(hyper, hyper["beta"])

    def objective_text(self, hyper: Hyper) -> str:
        c = self.config
        return (
            f"minimise recon + beta {kl_text(hyper, '')} of wrapped normals in the Poincare ball; beta = "
            f"{hyper['beta']:.4g}; curvature -{c.curvature:.4g}, prior's scale "
            f"{c.prior_scale:.4g}; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )
