"""S-VAE: latents on a sphere, with von Mises-Fisher posteriors and the uniform prior.

Davidson et al. 2018, "Hyperspherical Variational Auto-Encoders", section 3: q(z|x) = vMF(mu(x), kappa(x)) on the unit
sphere of R^D, p(z) uniform on it, loss = -E_q[log p(x|z)] + KL(q(z|x) || p(z)), the KL in closed form and of kappa
alone. The prior has no centre to pull codes to, and no mu is dearer than another.

The authors' code and pythae's leave out the correction that the gradient through a rejection sampler needs, and turn a
draw to mu by a reflection that is 0 / 0 at the first axis. Here the gradient by kappa is that of the distribution
function of mu'z, exact, and the turn a projection, smooth everywhere; densities are the same.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

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
from vaecli.objectives import terms
from vaecli.objectives.spherical import Sphere, UniformOnSphere, VonMisesFisher
from vaecli.settings.schedules import Weight
from vaecli.settings.section import NonNegative

KAPPA_MAX = 1e6  # a cap of 0.001 radians; far from where float32 directions lose it


class Config(FreeBitsConfig):
    """`latent_dim` coordinates: the sphere itself has one dimension less (theirs of d = 10 has 11 coordinates).

    `kappa_min` is added to softplus of the encoder's number: 1 in the authors' code, so that no posterior collapses, 0
    in pythae's. The KL is never below that of this kappa, about kappa_min^2 / (2 D) nats.

    `beta` weighs the KL. It is that of all coordinates together, and so are the `free_bits`.
    """

    tiny: ClassVar[dict[str, Any]] = {**FreeBitsConfig.tiny, "latent_dim": 4}
    name: Literal["svae"] = "svae"
    latent_dim: Annotated[int, Field(ge=2, le=65_536)] = 11
    kappa_min: NonNegative = 1.0
    beta: Weight = 1.0


class Model(NetModel):
    """The encoder gives a direction and one concentration; the decoder reads directions."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        d = config.latent_dim
        self.levels = (Level("z", (d,)),)
        self.encoder, self.decoder = coders.build(config.net, info.shape, d + 1, d)

    # ---- the distributions

    def features(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, kappa), (B, D) and (B,)."""
        out = self.network(self.encoder, x_BCHW)
        kappa_B = self.config.kappa_min + F.softplus(out[:, -1])
        return Sphere().project(out[:, :-1]), kappa_B.clamp(max=KAPPA_MAX)

    def q(self, level: str, features: tuple[Tensor, Tensor], given: Values) -> VonMisesFisher:
        return VonMisesFisher(*features)

    def p(self, level: str, given: Values, n: int) -> UniformOnSphere:
        return UniformOnSphere(n, self.config.latent_dim, self.device)

    def out(self, z_BD: Tensor) -> Tensor:
        """Of what is not on the sphere (means, codes of other origin) that of its direction."""
        return super().out(Sphere().project(z_BD))

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        """Means alone: who reads log-variances from a table takes them for those of independent Gaussians."""
        return Posterior(super().posterior(x_BCHW).mean_BD)

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        q = self.q("z", self.features(batch.x_BCHW), {})
        recon = -self.log_prob(batch.x_BCHW, {"z": q.rsample()}, hyper).mean()
        kl = kl_terms(self.config, q.kl_to_uniform().unsqueeze(1), hyper, hyper["beta"])
        return {
            "recon": Term(recon),
            **kl,
            "elbo": Term(-(recon + kl["kl"].value), None),
            "kappa": Term(q.kappa_B.mean(), None, "1"),
        }

    def kl_weight(self, hyper: Hyper) -> float | None:
        return unless_free(hyper, hyper["beta"])

    def objective_text(self, hyper: Hyper) -> str:
        d = self.config.latent_dim
        return (
            f"minimise recon + beta {kl_text(hyper, '')}, vMF to uniform on the unit sphere of R^{d}; "
            f"beta = {hyper['beta']:.4g}; kappa >= {self.config.kappa_min:.4g}; "
            f"{self.likelihood.text(hyper)}; {terms.UNITS}"
        )
