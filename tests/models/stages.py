"""Toy in two stages, inferred upwards: a VAE, then a prior of its codes, which is another VAE (Dai & Wipf 2019); the
weight of a KL may follow a schedule, which each stage counts from its own start."""

from typing import Literal

from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import GaussianVAE, Hyper, Level, NetConfig, Player, Term, Values
from vaecli.models.base import Model as Base
from vaecli.objectives import distributions, terms
from vaecli.objectives.distributions import Gaussian
from vaecli.settings.optim import OptimConfig
from vaecli.settings.schedules import Weight


class Config(NetConfig):
    name: Literal["stages"] = "stages"
    beta: Weight = 1.0


class Model(GaussianVAE):
    stages = ("main", "second")

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("u", (2,), standard=True), Level("z", (config.latent_dim,)))
        self.up, self.down = nn.Linear(config.latent_dim, 4), nn.Linear(2, 2 * config.latent_dim)

    def players(self, optim: OptimConfig) -> list[Player]:
        second = [*self.up.parameters(), *self.down.parameters()]
        first = [*self.encoder.parameters(), *self.decoder.parameters(), *self.likelihood.parameters()]
        return [Player("main", first, optim), Player("second", second, optim, stage="second")]

    def inference_order(self) -> list[str]:
        return ["z", "u"]

    def q(self, level: str, features: tuple[Tensor, Tensor], given: Values) -> Distribution:
        return Gaussian(*features) if level == "z" else Gaussian(*self.up(given["z"]).chunk(2, dim=1))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        return Gaussian(*self.down(given["u"]).chunk(2, dim=1)) if level == "z" else super().p(level, given, n)

    posterior = Base.posterior  # of both levels

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        mean, logvar = self.features(batch.x_BCHW)
        z = terms.reparameterize(mean, logvar)
        if player == "main":
            recon = -self.log_prob(batch.x_BCHW, {"z": z}, hyper)
            return {"recon": Term(recon), "kl": Term(terms.kl_normal(mean, logvar).sum(dim=1), hyper["beta"])}
        z = z.detach()
        q_u = self.q("u", (mean, logvar), {"z": z})
        u = distributions.sample(q_u)
        kl = distributions.rate(q_u, self.p("u", {}, len(z)), u)
        assert kl is not None
        log_prob = distributions.log_prob(self.p("z", {"u": u}, len(z)), z)
        return {"code": Term(-log_prob), "kl": Term(kl.sum(dim=1), hyper["beta"])}

    def objective_text(self, hyper: Hyper) -> str:
        return f"minimise recon + beta KL, then the same of the codes; beta = {hyper['beta']:.4g}"
