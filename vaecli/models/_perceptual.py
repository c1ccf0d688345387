"""A Gaussian VAE without p(x|z): images are the sigmoid of the decoder's output, and how far two are apart is for the
model to say (in features, in structure)."""

from typing import Any, ClassVar

from torch import Tensor
from torch.distributions import Distribution

from vaecli.batch import DataInfo
from vaecli.models.base import Level, ModelConfig, Values
from vaecli.models.base import Model as Base
from vaecli.nets import coders
from vaecli.objectives import distributions, terms
from vaecli.settings.schedules import Weight
from vaecli.settings.section import Width


class Config(ModelConfig):
    """Encoder and decoder by name, as in models with a likelihood.

    `beta` weighs the KL, `free_bits` are those of `FreeBitsConfig`.
    """

    tiny: ClassVar[dict[str, Any]] = {"latent_dim": 3, "net": {"name": "mlp", "hidden": [16]}}
    latent_dim: Width = 10
    net: coders.NetConfig = coders.AutoConfig()
    beta: Weight = 1.0
    free_bits: Weight = 0.0


class Model(Base):
    """q(z|x) = N(mean, diag exp(logvar)), p(z) = N(0, I), and one image for each z."""

    config: Config
    has_likelihood = False

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), standard=True),)
        self.encoder, self.decoder = coders.build(config.net, info.shape, 2 * config.latent_dim, config.latent_dim)

    def features(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, logvar) of q(z|x), (B, D) each."""
        mean_BD, logvar_BD = self.network(self.encoder, x_BCHW).chunk(2, dim=1)
        return mean_BD, terms.clamp_logvar(logvar_BD)

    def q(self, level: str, features: tuple[Tensor, Tensor], given: Values) -> Distribution:
        return distributions.Gaussian(*features)

    def image(self, values: Values) -> Tensor:
        return self.network(self.decoder, values["z"]).sigmoid()
