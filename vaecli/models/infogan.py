"""InfoGAN: a generator whose codes can be told from its images; no likelihood, no ELBO.

Chen et al. 2016, "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial
Nets", eq. 5 and 6: min over G and Q, max over D of V(D, G) - info_weight * E[log Q(c | G(z, c))], with V of Goodfellow
et al. 2014, G minimising -log D(G) in place of log(1 - D(G)), as they advise. Q shares D's layers but for a head. As in
Lin et al. 2020 ("InfoGAN-CR") codes c and noise z are uniform in (-1, 1), the information term is in the objective of
both players, and each step makes one update of D with Q, then two of G, all three from the same codes, noise and real
images: the second sees what the first has made of G.

A code in (-1, 1) and Q of unit variance: the information term is 1.0856 nats a code where Q knows nothing, 0.9189 where
it knows all, so R^2 = 1 - 3 (c - mean of Q)^2 is logged beside it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Uniform

from vaecli import device as devices
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Hyper, Inference, Level, ModelConfig, Player, Posterior, Term, Values
from vaecli.models.base import Model as Base
from vaecli.nets import adversarial, spectral
from vaecli.objectives import distributions
from vaecli.settings.optim import Adam, OptimConfig
from vaecli.settings.schedules import Weight
from vaecli.settings.section import PositiveInt, Width

MADE = 10_000  # images that `facts` are of
LOGVAR_MIN = -6.0  # of a learned variance: a code known to 0.05; below it the term would fall without end


class Config(ModelConfig):
    """`codes` and `noise` latents, the first found again by Q, the others not.

    `q_variance`           `unit`, or `learned`: Q says how sure it is.
    `pixels`               what the networks see: images in `unit` [0, 1] or `symmetric` [-1, 1] (tanh).
    `instance_noise`       standard deviation of noise on all images that the discriminator sees in training.
    `generator_updates`    of G for one of D; `optim` is G's section, `discriminator_optim` that of D and Q.
    `redraw`               every update of a step draws codes and noise anew.
    """

    tiny: ClassVar[dict[str, Any]] = {"codes": 2, "noise": 2, "net": {"name": "mlp", "hidden": [16]}}
    name: Literal["infogan"] = "infogan"
    codes: Width = 5
    noise: Width = 5
    info_weight: Weight = 0.05
    q_variance: Literal["unit", "learned"] = "unit"
    pixels: Literal["unit", "symmetric"] = "unit"
    instance_noise: Weight = 0.0
    generator_updates: PositiveInt = 2
    redraw: bool = False
    discriminator_optim: OptimConfig = Adam(lr=2e-3, betas=(0.5, 0.999))
    net: adversarial.NetConfig = adversarial.MlpConfig()


class Model(Base):
    """Levels `noise`, which nothing infers, and `code`, whose posterior is Q."""

    config: Config
    has_likelihood = False
    comparable = False  # D's loss is least where G's images are worst

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("noise", (config.noise,), inferred=False), Level("code", (config.codes,)))
        n_out = config.codes * (2 if config.q_variance == "learned" else 1)
        nets = adversarial.build(config.net, info.shape, config.noise + config.codes, n_out)
        self.generator, self.trunk, self.verdict, self.coder = nets
        self._drawn: Values | None = None  # by the step's update of D

    # ---- the distributions

    def seen(self, x_BCHW: Tensor, sd: float = 0.0) -> Tensor:
        """Images in [0, 1] as the discriminator sees them."""
        seen_BCHW = 2.0 * x_BCHW - 1.0 if self.config.pixels == "symmetric" else x_BCHW
        if self.training and self.config.instance_noise != 0:
            seen_BCHW = seen_BCHW + sd * torch.randn_like(seen_BCHW)
        return seen_BCHW

    def features(self, x_BCHW: Tensor) -> Tensor:
        """What both heads read, (B, F)."""
        return self.network(self.trunk, self.seen(x_BCHW))

    def q(self, level: str, features: Tensor, given: Values) -> distributions.Gaussian:
        out = self.network(self.coder, features)
        if self.config.q_variance == "unit":
            return distributions.Gaussian(out, torch.zeros_like(out))
        mean, logvar = out.chunk(2, dim=1)
        return distributions.Gaussian(mean, logvar.clamp(min=LOGVAR_MIN, max=-LOGVAR_MIN))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        one = torch.ones(n, *self.level(level).shape, device=self.device)
        return Uniform(-one, one, validate_args=False)

    def image(self, values: Values) -> Tensor:
        raw_BCHW = self.network(self.generator, torch.cat([values["noise"], values["code"]], dim=1))
        return 0.5 * (raw_BCHW.tanh() + 1.0) if self.config.pixels == "symmetric" else raw_BCHW.sigmoid()

    def rates(self, found: Inference) -> dict[str, Tensor]:
        """None: there is no bound that a rate would be part of (and that of a Gaussian to a uniform is infinite)."""
        return {}

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        """Q as a table, without variances where these are 1 by convention: they do not say how sure it is."""
        found = super().posterior(x_BCHW)
        return found if self.config.q_variance == "learned" else replace(found, logvar_BD=None)

    def facts(self) -> dict[str, float]:
        """Of 10,000 images made of codes drawn always alike: R^2 of each code as Q finds it again, how many of them are
        above 0.5, and the share of white pixels."""
        squares_D, white = torch.zeros(self.config.codes, device=self.device), 0.0
        with torch.no_grad(), devices.aside():
            devices.seed("infogan facts")
            for _ in range(MADE // 500):
                drawn = self.draw(500)
                made_BCHW = self.image(drawn)
                mean_BD = self.q("code", self.features(made_BCHW), {}).mean
                squares_D += (drawn["code"] - mean_BD).square().sum(dim=0)
                white += float((made_BCHW > 0.5).to(made_BCHW.dtype).mean()) * 500
        r2 = (1.0 - 3.0 * squares_D / MADE).tolist()
        found = sum(value > 0.5 for value in r2)
        return {**{f"r2_code.{d}": value for d, value in enumerate(r2)}, "codes_found": found, "white": white / MADE}

    # ---- training

    def players(self, optim: OptimConfig) -> list[Player]:
        judges = [p for net in (self.trunk, self.verdict, self.coder) for p in net.parameters()]
        makers = list(self.generator.parameters())
        return [
            Player("discriminator", judges, self.config.discriminator_optim),
            Player("generator", makers, optim, updates=self.config.generator_updates),
        ]

    def loss(self, batch: Batch, hyper: Hyper, player: str = "discriminator") -> dict[str, Term]:
        repeated = self._drawn if player == "generator" and self.training and not self.config.redraw else None
        drawn = self.draw(len(batch.x_BCHW)) if repeated is None else repeated
        sd = hyper["instance_noise"]
        if player == "generator":
            with frozen(self.trunk, self.verdict, self.coder):
                judged = self.network(self.trunk, self.seen(self.image(drawn), sd))
                fool_B = F.softplus(-self.network(self.verdict, judged)[:, 0])
                info_B = -distributions.log_prob(self.q("code", judged, {}), drawn["code"])
            return {"fool": Term(fool_B), "info": Term(info_B, hyper["info_weight"])}
        if self.training:
            self._drawn = drawn
            spectral.iterate(self.trunk, self.verdict, self.coder)
        with torch.no_grad():
            made_BCHW = self.image(drawn)
        judged_real = self.network(self.trunk, self.seen(batch.x_BCHW, sd))
        judged_made = self.network(self.trunk, self.seen(made_BCHW, sd))
        real_B = self.network(self.verdict, judged_real)[:, 0]
        made_B = self.network(self.verdict, judged_made)[:, 0]
        q = self.q("code", judged_made, {})
        code_BD = drawn["code"]
        r2_D = 1.0 - 3.0 * (code_BD - q.mean.detach()).square().mean(dim=0)
        return {
            "real": Term(F.softplus(-real_B)),
            "made": Term(F.softplus(made_B)),
            "info": Term(-distributions.log_prob(q, code_BD), hyper["info_weight"]),
            "D_real": Term(real_B.detach().sigmoid(), None, "probability"),
            "D_made": Term(made_B.detach().sigmoid(), None, "probability"),
            **{f"r2_{d}": Term(r2, None, "R2") for d, r2 in enumerate(r2_D)},
            "white": Term((made_BCHW > 0.5).to(made_BCHW.dtype).mean(), None, "share of pixels"),
        }

    def objective_text(self, hyper: Hyper) -> str:
        noise = hyper["instance_noise"]
        weights = f"info_weight = {hyper['info_weight']:.4g}" + (f", instance noise {noise:.4g}" if noise else "")
        info = "info_weight log Q(c|G)"
        return (
            f"D, Q minimise -log D(x) - log(1 - D(G)) - {info}; G minimises -log D(G) - {info}, "
            f"{self.config.generator_updates} updates a step; {weights}; nats, mean over the batch"
        )


@contextlib.contextmanager
def frozen(*nets: nn.Module) -> Iterator[None]:
    """Within, no gradient of these networks' parameters is asked for, only one through them."""
    parameters = [p for net in nets for p in net.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
