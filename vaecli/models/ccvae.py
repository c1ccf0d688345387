"""CCVAE: a VAE whose latents are split in those that labels are read from and the rest.

Joy et al. 2021, "Capturing Label Characteristics in VAEs", eq. 4 and 5. Each value of a label has a latent of its own
in zc; p(zc|y) is a Gaussian of independent latents, with one mean where its value is the label's and one where it is
not (2 and -2 at first); the others, zs, are N(0, I). Inferred are zc and zs from the image, y from zc alone, by a
scale and a shift of each latent. Minimised is, over images with labels,
    -w (log p(x|z) + log p(z|y) - log q(z|x) - log q(y|zc)) - log p(y) - alpha log q(y|x),
with w = q(y|zc) / q(y|x) and q(y|x) the mean of q(y|zc) over further draws, and over the others
    -E_q(y|zc)[log p(x|z) + log p(z|y) + log p(y) - log q(z|x) - log q(y|zc)],
in which y is summed over in closed form; the sum of both means. `beta` weighs all but log p(x|z) and log q(y|x); with
alpha and beta at 1 it is the paper's. As in its code w passes no gradient to zc; ours is that zc is among the draws of
q(y|x), so that w is at most their number.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.batch import Batch, DataInfo
from vaecli.models import _labels
from vaecli.models.base import Hyper, Level, Term, Values
from vaecli.nets import coders
from vaecli.objectives import distributions, labels, terms
from vaecli.objectives.distributions import Gaussian
from vaecli.objectives.labels import OneHotBlocks
from vaecli.settings.schedules import Weight
from vaecli.settings.section import PositiveInt


class Config(_labels.Config):
    """`latent_dim` is the size of zs; zc has one latent for each value of the labels. `draws`: of zc, for q(y|x)."""

    tiny: ClassVar[dict[str, Any]] = {
        **{"latent_dim": 3, "net": {"name": "mlp", "hidden": [16]}, "draws": 5},
    }
    name: Literal["ccvae"] = "ccvae"
    alpha: Weight = 1.0
    beta: Weight = 1.0
    draws: PositiveInt = 100


class Model(_labels.Model):
    """Levels y, zc and zs; zc and y are inferred upwards."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        d, c = config.latent_dim, self.width_y
        self.levels = (self.level_y(), Level("zc", (c,)), Level("zs", (d,), standard=True))
        self.encoder, self.decoder = coders.build(config.net, info.shape, 2 * (c + d), c + d)
        self.slope_C, self.shift_C = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
        self.mean_2C = nn.Parameter(torch.full((2, c), -2.0))  # where a value is not y's, and is
        self.mean_2C.data[1] = 2.0
        self.logvar_2C = nn.Parameter(torch.zeros(2, c))

    # ---- the distributions

    def inference_order(self) -> Sequence[str]:
        return ["zc", "zs", "y"]

    def features(self, x_BCHW: Tensor) -> dict[str, Gaussian]:
        """q(zc|x) and q(zs|x)."""
        mean_BD, logvar_BD = self.network(self.encoder, x_BCHW).chunk(2, dim=1)
        logvar_BD, c = terms.clamp_logvar(logvar_BD), self.width_y
        return {"zc": Gaussian(mean_BD[:, :c], logvar_BD[:, :c]), "zs": Gaussian(mean_BD[:, c:], logvar_BD[:, c:])}

    def q(self, level: str, features: dict[str, Gaussian], given: Values) -> Distribution:
        return OneHotBlocks(self._logits(given["zc"]), self.sizes) if level == "y" else features[level]

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "y":
            return self.uniform(n)
        if level == "zc":
            mean_BC, logvar_BC = (torch.lerp(both[0], both[1], given["y"]) for both in (self.mean_2C, self.logvar_2C))
            return Gaussian(mean_BC, logvar_BC)
        return super().p(level, given, n)

    def _logits(self, zc_BC: Tensor) -> Tensor:
        return self.slope_C * zc_BC + self.shift_C

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(torch.cat([values["zc"], values["zs"]], dim=1)))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(torch.cat([values["zc"], values["zs"]], dim=1)), hyper)

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        labels_BK = self.labels_of(batch)
        known_BK = labels_BK >= 0
        labelled_B, known_BC = known_BK.any(dim=1), labels.spread(known_BK, self.sizes)
        told_BC, seen = labels.one_hot(labels_BK, self.sizes), self.features(batch.x_BCHW)
        zc, zs = distributions.sample(seen["zc"]), distributions.sample(seen["zs"])
        recon_B = -self.log_prob(batch.x_BCHW, {"zc": zc, "zs": zs}, hyper)
        kl_zs_B = torch.distributions.kl_divergence(seen["zs"], self.p("zs", {}, len(zs))).sum(dim=1)
        q_y = OneHotBlocks(self._logits(zc), self.sizes)
        log_q_zc_B = distributions.log_prob(seen["zc"], zc)

        def rate(y_BC: Tensor) -> Tensor:
            """log q(z|x) q(y|zc) - log p(z|y), (B,), at labels, or as a mean under probabilities of them."""
            return log_q_zc_B - self._log_prior(zc, y_BC) + kl_zs_B + q_y.log_prob(y_BC)

        log_p_y = -sum(math.log(size) for size in self.sizes)
        log_q_told_B = self._log_q_told(seen["zc"], zc, told_BC)  # 0 where nothing is told, and so w = 1
        weight_B = (self._log_q(zc.detach(), told_BC) - log_q_told_B).exp()
        rate_B = rate(torch.where(known_BC, told_BC, q_y.probs))
        loss_B = weight_B * (recon_B + hyper["beta"] * rate_B) - hyper["beta"] * log_p_y - hyper["alpha"] * log_q_told_B
        kl_B = rate(q_y.probs) - log_p_y
        logged = {"recon": recon_B.mean(), "kl": kl_B.mean(), "elbo": -(recon_B + kl_B).mean()}
        return {
            "labelled": Term(_labels.mean_over(loss_B, labelled_B)),
            "unlabelled": Term(_labels.mean_over(loss_B, ~labelled_B)),
            **{name: Term(value.detach(), None) for name, value in logged.items()},
            "classifier": Term(self.known_mean(-log_q_told_B, labelled_B), None),
        }

    def _log_prior(self, zc_BC: Tensor, y_BC: Tensor) -> Tensor:
        """log p(zc|y), (B,); of probabilities y its mean, exactly: each latent's Gaussian has y or has not."""
        away_BC, at_BC = (
            terms.log_normal(zc_BC, mean_C, logvar_C)
            for mean_C, logvar_C in zip(self.mean_2C, self.logvar_2C, strict=True)
        )
        return torch.lerp(away_BC, at_BC, y_BC).sum(dim=1)

    def _log_q(self, zc_BC: Tensor, told_BC: Tensor) -> Tensor:
        """log q(y|zc) of the labels told, (B,)."""
        return OneHotBlocks(self._logits(zc_BC), self.sizes).log_prob(told_BC)

    def _log_q_told(self, q_zc: Gaussian, zc_BC: Tensor, told_BC: Tensor) -> Tensor:
        """log q(y|x) of the labels told, (B,): of the mean of q(y|zc) over zc and draws like it."""
        k = self.config.draws
        eps_KBC = torch.randn(k - 1, *zc_BC.shape, device=zc_BC.device)
        every_KBC = torch.cat([zc_BC.unsqueeze(0), q_zc.loc + q_zc.scale * eps_KBC])
        log_q_KB = self._log_q(every_KBC.flatten(0, 1), told_BC.repeat(k, 1)).view(k, -1)
        return log_q_KB.logsumexp(dim=0) - math.log(k)

    def kl_weight(self, hyper: Hyper) -> float:
        return hyper["beta"]

    def objective_text(self, hyper: Hyper) -> str:
        return (
            f"minimise recon + beta rates of zc, zs and y, where y is known weighed by q(y|zc) / q(y|x), - alpha "
            f"log q(y|x); beta = {hyper['beta']:.4g}, alpha = {hyper['alpha']:.4g}; "
            f"labels of {', '.join(self.factors)}; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )
