"""VAE-GAN: a VAE whose reconstruction is measured in the features of a discriminator; no likelihood of pixels, no ELBO.

Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity metric", algorithm 1: with f the features of
the discriminator, x' = Dec(z) of z ~ q(z|x) and x'' = Dec(z_p) of z_p ~ N(0, I),
encoder: KL(q(z|x) || p(z)) + |f(x) - f(x')|^2 / 2; decoder: gamma |f(x) - f(x')|^2 / 2 - log D(x') - log D(x'');
discriminator: -log D(x) - log(1 - D(x')) - log(1 - D(x'')).
|f - f'|^2 / 2 is -log N(f(x); f(x'), I) (their eq. 7) but for its constant. As features move, so does what it means: it
is no likelihood of x. The decoder minimises -log D in place of log(1 - D), as Goodfellow et al. 2014 advise.

In pythae (at 021a07a) the discriminator sees no x' (that term is commented out), the decoder maximises the
discriminator's loss, which hardly moves a decoder that is found out, distances are not halved (a variance of 1/2 in
place of 1), and the side that is ahead may miss its update, after the authors' code.
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vaecli.batch import Batch, DataInfo
from vaecli.models import _perceptual
from vaecli.models.base import Hyper, Player, Term, kl_terms, kl_text
from vaecli.nets import adversarial, spectral
from vaecli.objectives import terms
from vaecli.settings.optim import Adam, OptimConfig
from vaecli.settings.schedules import Weight


class Config(_perceptual.Config):
    """`gamma` weighs the features' distance against the discriminator's word in what the decoder minimises, `beta` the
    KL against it in what the encoder does.

    `net` are encoder and decoder; `discriminator` a net of `infogan`'s, whose trunk gives the features, and
    `discriminator_optim` its optimizer. How far two images are apart in features differs a hundredfold from net to
    net, and `beta`, which is 1 in the paper, is to go with it: too much of it and no latent is used, too little and
    q(z) is not the prior. The values here are for `spectral`.
    """

    tiny: ClassVar[dict[str, Any]] = {**_perceptual.Config.tiny, "discriminator": {"name": "mlp", "hidden": [16]}}
    name: Literal["vae-gan"] = "vae-gan"
    beta: Weight = 0.2
    gamma: Weight = 1.0
    discriminator: adversarial.NetConfig = adversarial.SpectralConfig()
    discriminator_optim: OptimConfig = Adam(lr=2e-4, betas=(0.5, 0.999))


class Model(_perceptual.Model):
    """Three players, `encoder`, `decoder` and `discriminator`, each updated once a step, in this order."""

    config: Config
    comparable = False  # features move

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        # Its generator and coder are not wanted: the least there is of them.
        _, self.trunk, self.verdict, _ = adversarial.build(config.discriminator, info.shape, 1, 1)

    def players(self, optim: OptimConfig) -> list[Player]:
        judges = [*self.trunk.parameters(), *self.verdict.parameters()]
        return [
            Player("encoder", list(self.encoder.parameters()), optim),
            Player("decoder", list(self.decoder.parameters()), optim),
            Player("discriminator", judges, self.config.discriminator_optim),
        ]

    def seen(self, x_BCHW: Tensor) -> Tensor:
        """The discriminator's features of images, (B, F)."""
        return self.network(self.trunk, x_BCHW)

    def real(self, features_BF: Tensor) -> Tensor:
        """The logit of "real", (B,)."""
        return self.network(self.verdict, features_BF)[:, 0]

    def loss(self, batch: Batch, hyper: Hyper, player: str = "encoder") -> dict[str, Term]:
        x_BCHW = batch.x_BCHW
        mean_BD, logvar_BD = self.features(x_BCHW)
        z_BD = terms.reparameterize(mean_BD, logvar_BD)
        if player == "encoder":
            made_BCHW = self.image({"z": z_BD})
            return {
                "distance": Term(_distance(self.seen(x_BCHW), self.seen(made_BCHW)), 1.0, "squared distance"),
                **kl_terms(self.config, terms.kl_normal(mean_BD, logvar_BD), hyper, hyper["beta"]),
                "mse": Term((x_BCHW - made_BCHW).square().mean(), None, "a pixel"),
            }
        made_BCHW, drawn_BCHW = (self.image({"z": z}) for z in (z_BD.detach(), torch.randn_like(z_BD)))
        if player == "decoder":
            seen_BF = self.seen(made_BCHW)
            return {
                "distance": Term(_distance(self.seen(x_BCHW), seen_BF), hyper["gamma"], "squared distance"),
                "fool_made": Term(F.softplus(-self.real(seen_BF))),
                "fool_drawn": Term(F.softplus(-self.real(self.seen(drawn_BCHW)))),
            }
        if self.training:
            spectral.iterate(self.trunk, self.verdict)
        real_B, made_B, drawn_B = (
            self.real(self.seen(images)) for images in (x_BCHW, made_BCHW.detach(), drawn_BCHW.detach())
        )
        return {
            "real": Term(F.softplus(-real_B)),
            "made": Term(F.softplus(made_B)),
            "drawn": Term(F.softplus(drawn_B)),
            "D_real": Term(real_B.detach().sigmoid(), None, "probability"),
            "D_drawn": Term(drawn_B.detach().sigmoid(), None, "probability"),
        }

    def objective_text(self, hyper: Hyper) -> str:
        return (
            f"encoder minimises beta {kl_text(hyper)} + distance of D's features, decoder gamma distance - log D(x') - "
            f"log D(x''), D -log D(x) - log(1 - D(x')) - log(1 - D(x'')); gamma = {hyper['gamma']:.4g}, beta = "
            f"{hyper['beta']:.4g}; distances are squares / 2; sum over latents and features, mean over the batch"
        )


def _distance(real_BF: Tensor, made_BF: Tensor) -> Tensor:
    """|f - f'|^2 / 2, (B,)."""
    return 0.5 * (real_BF - made_BF).square().flatten(1).sum(dim=1)
