"""VAE with inverse autoregressive flow: a posterior whose latents depend on each other.

Kingma et al. 2016, "Improved Variational Inference with Inverse Autoregressive Flow", section 4, in its flat form:
z_0 = mean(x) + sd(x) eps and z_t = g_t z_{t-1} + (1 - g_t) m_t, where g_t and m_t read the latents before each and a
context h(x); every other step counts the latents from the last. log q(z_T|x) = log N(z_0) - sum_t sum log g_t (eq. 11),
so that KL(q(z|x) || N(0, I)) is estimated by log q - log p of the draw.
loss = recon + beta KL; `free_bits` are of appendix C.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution, TransformedDistribution

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import FreeBitsConfig, Hyper, Level, NetModel, Term, Values, kl_terms, kl_text, unless_free
from vaecli.nets.flows import MADE, InverseAutoregressive
from vaecli.objectives import distributions, terms
from vaecli.settings.schedules import Weight
from vaecli.settings.section import Width


class Config(FreeBitsConfig):
    """`steps` of the flow, each a masked net of `hidden` widths; without any it is the diagonal Gaussian.

    `beta` weighs the KL; a latent's part of it, which `free_bits` are of, is what it adds to log q - log p.
    """

    tiny: ClassVar[dict[str, Any]] = {**FreeBitsConfig.tiny, "steps": 2, "hidden": [12]}
    name: Literal["iaf-vae"] = "iaf-vae"
    latent_dim: Width = 32
    steps: Annotated[int, Field(ge=0, le=64)] = 2
    hidden: list[Width] = Field(default=[320], min_length=1, max_length=16)
    beta: Weight = 1.0


class Model(NetModel):
    """A Gaussian's draw, sent through the flow; the encoder gives mean, log-variance and a context as wide as each."""

    config: Config
    outputs_per_latent = 3

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), standard=True),)
        d = config.latent_dim
        self.flow = nn.ModuleList(MADE(d, d, config.hidden, reverse=bool(t % 2)) for t in range(config.steps))

    def features(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, logvar) of z_0 and the context, (B, D) each."""
        mean_BD, logvar_BD, context_BD = self.network(self.encoder, x_BCHW).chunk(3, dim=1)
        return mean_BD, terms.clamp_logvar(logvar_BD), context_BD

    def q(self, level: str, features: tuple[Tensor, Tensor, Tensor], given: Values) -> Distribution:
        mean_BD, logvar_BD, context_BD = features
        base = distributions.Gaussian(mean_BD, logvar_BD)
        if not self.flow:
            return base
        moves: list[Any] = [InverseAutoregressive(net, context_BD) for net in self.made]
        return TransformedDistribution(base, moves, validate_args=False)

    @property
    def made(self) -> list[MADE]:
        """The net of each step."""
        return [net for net in self.flow if isinstance(net, MADE)]

    def sample(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """A draw z_T of q(z|x) and what each latent of it adds to log q - log p, (B, D) each.

        Only the sum is a log-ratio of densities; its parts are what free bits count.
        """
        mean_BD, logvar_BD, context_BD = self.features(x_BCHW)
        z_BD = terms.reparameterize(mean_BD, logvar_BD)
        if not self.flow:
            return z_BD, terms.kl_normal(mean_BD, logvar_BD)
        log_q_BD = terms.log_normal(z_BD, mean_BD, logvar_BD)
        for net in self.made:
            move = InverseAutoregressive(net, context_BD)
            before_BD, z_BD = z_BD, move(z_BD)
            log_q_BD = log_q_BD - move.log_scale(before_BD)
        return z_BD, log_q_BD - terms.log_normal(z_BD, z_BD.new_zeros(()), z_BD.new_zeros(()))

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        z_BD, rate_BD = self.sample(batch.x_BCHW)
        recon = -self.likelihood.log_prob(batch.x_BCHW, self.out(z_BD), hyper).mean()
        kl = kl_terms(self.config, rate_BD, hyper, hyper["beta"])
        return {"recon": Term(recon), **kl, "elbo": Term(-(recon + kl["kl"].value), None)}

    def kl_weight(self, hyper: Hyper) -> float | None:
        return unless_free(hyper, hyper["beta"])

    def objective_text(self, hyper: Hyper) -> str:
        how = f"{self.config.steps} steps of inverse autoregressive flow" if self.flow else "a diagonal posterior"
        weight = f"beta = {hyper['beta']:.4g}"
        return f"minimise recon + beta {kl_text(hyper)}; {weight}; {how}; {self.likelihood.text(hyper)}; {terms.UNITS}"
