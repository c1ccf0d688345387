"""Two-stage VAE: a second VAE learns how the codes of a first are distributed, and samples start where codes lie.

Dai & Wipf 2019, "Diagnosing and Enhancing VAE Models", section 4. The first stage is a VAE with one learned standard
deviation gamma: minimise -log N(x; decoder(z), gamma^2 I) + KL(q(z|x) || N(0, I)). Then, while the first stands still,
the second is a VAE of its codes z ~ q(z|x), drawn anew at every step, with as many latents u as there are codes and a
gamma_z of its own: minimise -log N(z; decoder'(u), gamma_z^2 I) + KL(q(u|z) || N(0, I)).
An image is drawn by u ~ N(0, I), z ~ p(z|u), E[x|z].

Until the second stage begins the model is the first alone: z ~ N(0, I), and u says nothing.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.batch import Batch, DataInfo, Split
from vaecli.models.base import GaussianVAE, Hyper, Level, NetConfig, Player, Posterior, Term, Values
from vaecli.nets.stochastic import Shortcut
from vaecli.objectives import distributions, likelihoods, terms
from vaecli.objectives.distributions import Gaussian, Standard, from_numbers
from vaecli.settings import schedules
from vaecli.settings.optim import Adam, OptimConfig, on_defaults
from vaecli.settings.section import Positive, Width

SECOND_OPTIM = Adam(lr=1e-4)


class Config(NetConfig):
    """`second_hidden` are the widths of the second stage's nets, reversed on the way down, whose last layer reads the
    net's input again; `second_optim` is its optimizer, `gamma_z` where its standard deviation starts."""

    tiny: ClassVar[dict[str, Any]] = {**NetConfig.tiny, "second_hidden": [16, 16]}
    name: Literal["two-stage-vae"] = "two-stage-vae"
    latent_dim: Width = 64
    likelihood: likelihoods.LikelihoodConfig = likelihoods.GaussianLikelihoodConfig(variance="learned")
    second_hidden: list[Width] = Field(default=[1024, 1024, 1024], min_length=1, max_length=16)
    second_optim: Annotated[OptimConfig, on_defaults(SECOND_OPTIM)] = SECOND_OPTIM
    gamma_z: Positive = 1.0

    @model_validator(mode="after")
    def _steady(self) -> "Config":
        if schedules.moving(self.likelihood):
            raise ValueError("a schedule in `likelihood` would begin anew with the second stage; give a number")
        return self


class Model(GaussianVAE):
    """Levels u and z in the order of generation; inferred from the image upwards."""

    stages = ("first", "second")
    sequential = True
    config: Config
    begun: Tensor

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        d, widths = config.latent_dim, config.second_hidden
        self.levels = (Level("u", (d,), standard=True), Level("z", (d,)))
        self.up, self.down = Shortcut(d, widths, 2 * d), Shortcut(d, widths[::-1], d)
        self.log_gamma_z = nn.Parameter(torch.tensor(math.log(config.gamma_z)))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))  # whether the second stage has, as it is kept
        self.second = False  # the same: what a program is recorded by must not be read from a tensor
        self.register_load_state_dict_post_hook(_recall)  # type: ignore[no-untyped-call]

    # ---- training

    def players(self, optim: OptimConfig) -> list[Player]:
        first = [*self.encoder.parameters(), *self.decoder.parameters(), *self.likelihood.parameters()]
        second = [*self.up.parameters(), *self.down.parameters(), self.log_gamma_z]
        return [
            Player("first", first, optim, stage="first"),
            Player("second", second, self.config.second_optim, stage="second"),
        ]

    def due(self, step: int, stage: str = "main") -> bool:
        return stage == "second" and step == 0

    def prepare(self, step: int, stage: str, train: Split) -> None:
        self.begun.fill_(True)
        self.second = True

    def train(self, mode: bool = True) -> "Model":
        """What stands still is in evaluation mode: no running statistics of the first stage move in the second."""
        super().train(mode)
        if mode and self.second:
            for part in (self.encoder, self.decoder, self.likelihood):
                part.eval()
        return self

    def loss(self, batch: Batch, hyper: Hyper, player: str = "first") -> dict[str, Term]:
        return self._of_codes(batch, hyper) if player == "second" else self._of_images(batch, hyper)

    def _of_images(self, batch: Batch, hyper: Hyper) -> dict[str, Term]:
        mean_BD, logvar_BD = self.features(batch.x_BCHW)
        z_BD = terms.reparameterize(mean_BD, logvar_BD)
        recon = -self.log_prob(batch.x_BCHW, {"z": z_BD}, hyper).mean()
        kl = terms.kl_normal(mean_BD, logvar_BD).sum(dim=1).mean()
        parts = {"recon": Term(recon), "kl": Term(kl)}
        if not self.second:  # then it is no longer the model's
            parts["elbo"] = Term(-(recon + kl), None)
        if isinstance(self.likelihood, likelihoods.LearnedGaussian):
            parts["gamma"] = Term(self.likelihood.log_sigma.exp(), None, "grey levels, white being 1")
        return parts

    def _of_codes(self, batch: Batch, hyper: Hyper) -> dict[str, Term]:
        x_BCHW = batch.x_BCHW
        with torch.no_grad():
            numbers = self.encoder(x_BCHW)  # in full precision: codes are this stage's data
            q_z = from_numbers(numbers)
            z_BD = q_z.rsample()
        q_u = from_numbers(self.network(self.up, z_BD))
        u_BD = q_u.rsample()
        log_p_B = distributions.log_prob(self._p_z(u_BD), z_BD)
        kl = terms.kl_normal(q_u.loc, q_u.logvar).sum(dim=1).mean()
        parts = {
            "code": Term(-log_p_B.mean()),
            "kl_u": Term(kl),
            "gamma_z": Term(self.log_gamma_z.exp(), None, "units of z"),
        }
        if not self.training and self.second:  # of both stages together
            recon = -self.log_prob(x_BCHW, {"z": z_BD}, hyper).mean()
            rate = (distributions.log_prob(q_z, z_BD) - log_p_B).mean() + kl
            parts |= {"recon": Term(recon, None), "elbo": Term(-(recon + rate), None)}
        return parts

    # ---- the distributions

    def inference_order(self) -> list[str]:
        return ["z", "u"]

    def q(self, level: str, features: tuple[Tensor, Tensor], given: Values) -> Gaussian:
        if level == "z":
            return Gaussian(*features)
        if not self.second:
            return Standard(tuple(given["z"].shape), self.device)
        return from_numbers(self.network(self.up, given["z"]))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "u":
            return super().p(level, given, n)
        return self._p_z(given["u"]) if self.second else Standard((n, self.config.latent_dim), self.device)

    def _p_z(self, u_BD: Tensor) -> Gaussian:
        mean_BD = self.network(self.down, u_BD)
        return Gaussian(mean_BD, (2 * self.log_gamma_z).expand_as(mean_BD))

    def draw_at(self, stage: str, n: int, temperature: float = 1.0) -> Values:
        """Of the first stage z ~ N(0, I), with the u that the second would infer of it."""
        if stage != "first":
            return super().draw_at(stage, n, temperature)
        z_ND = distributions.sample(Standard((n, self.config.latent_dim), self.device), temperature)
        return {"z": z_ND, "u": distributions.mode(self.q("u", (z_ND, z_ND), {"z": z_ND}))}

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        return super(GaussianVAE, self).posterior(x_BCHW)

    # ---- words and numbers

    def facts(self) -> dict[str, float]:
        of_codes = {"code_variance": float((2 * self.log_gamma_z.detach()).exp())} if self.second else {}
        return {**super().facts(), **of_codes}

    def kl_weight(self, hyper: Hyper) -> float:
        return 1.0

    def objective_text(self, hyper: Hyper) -> str:
        return (
            f"minimise recon + KL(q(z|x) || N(0, I)), then of the codes -log N(z; decoder'(u), gamma_z^2) + "
            f"KL(q(u|z) || N(0, I)), gamma_z learned; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )


def _recall(model: Model, *_: Any) -> None:
    model.second = bool(model.begun)
