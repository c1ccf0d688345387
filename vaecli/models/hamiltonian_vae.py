"""Hamiltonian VAE: a posterior moved towards the true one by leapfrog steps that read the decoder.

Caterini, Doucet & Sejdinovic 2018, "Hamiltonian Variational Auto-Encoder", algorithm 1 and eq. 10: with (z_K, rho_K)
what K leapfrog steps of size epsilon make of z_0 ~ q(z|x) and rho_0 ~ N(0, I / beta_0), the momentum cooled after each,
loss = -E[log p(x, z_K) + log N(rho_K; 0, I) - log q(z_0|x) - log N(rho_0; 0, I / beta_0) + (D / 2) log beta_0].
At K = 0 it is the VAE's. The gradient goes through the steps, and so through second derivatives of the decoder: smooth
activations suit it. Epsilon, one number a latent, and beta_0 are trained with the rest.

pythae prints this bound without two of its constants, 0.42 nats a latent too good (gradients are the same), and its NLL
is off by (D / 4) log(1 / beta_0) nats where beta_0 is not 1.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import GaussianVAE, Hyper, NetConfig, Posterior, Term, Values
from vaecli.nets import coders
from vaecli.objectives import distributions, terms
from vaecli.objectives.distributions import Gaussian
from vaecli.objectives.hamiltonian import Hamiltonian
from vaecli.settings import schedules

LARGEST = 0.5  # step; the paper bounds it by a constant, too


class Config(NetConfig):
    """`steps` is K. `step_size` and `beta_zero` are where epsilon and beta_0 start, or stay without `learn`; at
    beta_zero = 1 nothing is tempered, and nothing of it learned."""

    tiny: ClassVar[dict[str, Any]] = {**NetConfig.tiny, "steps": 2}
    name: Literal["hamiltonian-vae"] = "hamiltonian-vae"
    steps: Annotated[int, Field(ge=0, le=1000)] = 3
    step_size: Annotated[float, Field(gt=0, lt=LARGEST)] = 0.05
    beta_zero: Annotated[float, Field(gt=0, le=1)] = 0.3
    learn: bool = True
    net: coders.NetConfig = coders.MlpConfig(hidden=[300], activation="softplus")

    @model_validator(mode="after")
    def _still(self) -> "Config":
        moving = getattr(self.likelihood, "variance", "fixed") in ("optimal", "running")
        if moving or schedules.moving(self.likelihood):
            raise ValueError(
                "leapfrog steps need a likelihood that stands still: `variance` fixed or learned, no schedule"
            )
        return self


class Model(GaussianVAE):
    """The encoder's Gaussian is the base of what the steps move."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        learn = config.learn and config.steps > 0
        self.cooled = config.beta_zero < 1
        raw_beta = _logit(config.beta_zero) if self.cooled else 0.0
        self.raw_step_D = nn.Parameter(torch.full((config.latent_dim,), _logit(config.step_size / LARGEST)), learn)
        self.raw_beta = nn.Parameter(torch.tensor(raw_beta), learn and self.cooled)

    # ---- the distributions

    def features(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """(mean, logvar) of z_0, (B, D) each, and the image, which the steps read."""
        return *super().features(x_BCHW), x_BCHW

    def log_joint(self, z_BD: Tensor, x_BCHW: Tensor) -> Tensor:
        """log p(x, z) in nats but for the prior's constant, (B,)."""
        return self.log_prob(x_BCHW, {"z": z_BD}, self.hyper(0)) - 0.5 * z_BD.square().sum(dim=1)

    def q(self, level: str, features: tuple[Tensor, Tensor, Tensor], given: Values) -> Hamiltonian:  # type: ignore[override]
        mean_BD, logvar_BD, x_BCHW = features
        step_D = LARGEST * self.raw_step_D.sigmoid()
        beta = self.raw_beta.sigmoid() if self.cooled else torch.ones_like(self.raw_beta)
        return Hamiltonian(Gaussian(mean_BD, logvar_BD), x_BCHW, self.log_joint, self.config.steps, step_D, beta)

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        mean_BD, variance_BD = distributions.moments(self.q("z", self.features(x_BCHW), {}))
        assert variance_BD is not None
        return Posterior(mean_BD, variance_BD.log())

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        q = self.q("z", self.features(batch.x_BCHW), {})
        z_BD = q.rsample()
        recon = -self.log_prob(batch.x_BCHW, {"z": z_BD}, hyper).mean()
        kl = (q.log_prob(z_BD) - terms.log_normal(z_BD, z_BD.new_zeros(()), z_BD.new_zeros(())).sum(dim=1)).mean()
        return {
            "recon": Term(recon),
            "kl": Term(kl),
            "elbo": Term(-(recon + kl), None),
            "step_size": Term(q.step_D.detach().mean(), None, "1"),
            "beta_zero": Term(q.root.detach().square(), None, "1"),
        }

    def kl_weight(self, hyper: Hyper) -> float:
        return 1.0

    def objective_text(self, hyper: Hyper) -> str:
        c = self.config
        how = f"{c.steps} leapfrog steps of {c.step_size:.4g}, beta_0 = {c.beta_zero:.4g}" + (
            ", learned" if c.learn else ""
        )
        return f"minimise recon + rate of latents and momentum; {how}; {self.likelihood.text(hyper)}; {terms.UNITS}"


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)
