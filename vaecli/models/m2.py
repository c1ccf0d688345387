"""M2: a VAE of a label and a latent that are independent, the label known of a few images.

Kingma et al. 2014, "Semi-Supervised Learning with Deep Generative Models", eq. 6 to 9: p(x|y, z) p(y) p(z) with y
uniform and z ~ N(0, I); q(y|x) q(z|x, y). With L(x, y) = E_q(z|x,y)[-log p(x|y, z)] + KL(q(z|x, y) || p(z)) - log p(y),
minimised is the mean over images with labels of L(x, y) - alpha log q(y|x), and over the others of
sum_y q(y|x) L(x, y) - H(q(y|x)), every label being gone through; the sum of both means. `beta` weighs all but
-log p(x|y, z) and alpha's term; at 1 it is the paper's.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.batch import Batch, DataInfo
from vaecli.errors import ConfigError
from vaecli.models import _labels
from vaecli.models.base import Hyper, Level, Term, Values
from vaecli.nets import coders
from vaecli.nets.stochastic import gaussian
from vaecli.objectives import distributions, labels, terms
from vaecli.objectives.distributions import Gaussian
from vaecli.objectives.labels import OneHotBlocks
from vaecli.settings.schedules import Weight
from vaecli.settings.section import Positive, Width

ENUMERATED = 64  # combinations of labels whose images are decoded one by one, at most
NEVER = -1e4  # log-probability of what is known not to be


class Config(_labels.Config):
    """`alpha` weighs the classifier's log q(y|x) (in the paper a tenth of all images, for a sum over them).

    `unknown`  labels are gone through one by one, `enumerate`, or where there are many combinations drawn `relaxed`
               (Gumbel-softmax of `temperature`), which is not the paper's.
    `hidden`   what the encoder gives to both q(y|x), by a linear map, and to q(z|x, y), with a layer between.
    """

    tiny: ClassVar[dict[str, Any]] = {
        **{"latent_dim": 3, "net": {"name": "mlp", "hidden": [16]}, "hidden": 16},
        "factors": ["size"],
    }
    name: Literal["m2"] = "m2"
    alpha: Weight = 10.0
    beta: Weight = 1.0
    unknown: Literal["enumerate", "relaxed"] = "enumerate"
    temperature: Positive = 0.5
    hidden: Width = 256


class Model(_labels.Model):
    """Levels y and z; the decoder reads both."""

    config: Config
    combination_MC: Tensor  # all combinations of labels as one-hot blocks

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        d, c, width = config.latent_dim, self.width_y, config.hidden
        self.levels = (self.level_y(), Level("z", (d,), standard=True))
        self.encoder, self.decoder = coders.build(config.net, info.shape, width, d + c)
        self.classifier = nn.Linear(width, c)
        self.to_z = gaussian(width + c, [width], d, nn.ELU())
        count = 1
        for size in self.sizes:
            count *= size
        if config.unknown == "enumerate":
            if count > ENUMERATED:
                raise ConfigError(
                    f"m2 would decode each image {count:,} times, once for every combination of its labels",
                    "set model.unknown to relaxed, or name one factor in model.factors",
                )
            every_MK = torch.cartesian_prod(*(torch.arange(size) for size in self.sizes)).reshape(count, -1)
            self.register_buffer("combination_MC", labels.one_hot(every_MK, self.sizes), persistent=False)

    # ---- the distributions

    def features(self, x_BCHW: Tensor) -> Tensor:
        """What q(y|x) and q(z|x, y) have in common, (B, hidden)."""
        return F.elu(self.network(self.encoder, x_BCHW))

    def q(self, level: str, features: Tensor, given: Values) -> Distribution:
        if level == "y":
            return OneHotBlocks(self.classifier(features), self.sizes)
        mean_BD, logvar_BD = self.to_z(torch.cat([features, given["y"]], dim=1)).chunk(2, dim=1)
        return Gaussian(mean_BD, terms.clamp_logvar(logvar_BD))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        return self.uniform(n) if level == "y" else super().p(level, given, n)

    def inference_order(self) -> Sequence[str]:
        return ["y", "z"]

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(torch.cat([values["z"], values["y"]], dim=1)))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(torch.cat([values["z"], values["y"]], dim=1)), hyper)

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        labels_BK = self.labels_of(batch)
        known_BK = labels_BK >= 0
        labelled_B, known_BC = known_BK.any(dim=1), labels.spread(known_BK, self.sizes)
        told_BC, features = labels.one_hot(labels_BK, self.sizes), self.features(batch.x_BCHW)
        q_y = self.q("y", features, {})
        assert isinstance(q_y, OneHotBlocks)
        told_B = -(told_BC * q_y.logits).sum(dim=1)
        # -log p(y) where y is known, else KL(q(y|x) || p(y)): of each label by itself.
        against_BC = q_y.probs * (q_y.logits - self.uniform(len(told_BC)).logits)
        prior_C = -self.uniform(1).logits[0]
        kl_y_B = torch.where(known_BC, told_BC * prior_C, against_BC).sum(dim=1)
        if self.config.unknown == "enumerate":
            recon_BM, kl_BM = self._every_label(batch.x_BCHW, features, hyper)
            log_weight_BC = torch.where(known_BC, NEVER * (1 - told_BC), q_y.logits)
            weight_BM = (log_weight_BC @ self.combination_MC.T).exp()
            recon_B, kl_B = (weight_BM * recon_BM).sum(dim=1), (weight_BM * kl_BM).sum(dim=1)
            own_BM = (q_y.logits @ self.combination_MC.T).exp()  # as if nothing were known
            recon = (own_BM * recon_BM).sum(dim=1).mean()
            kl = ((own_BM * kl_BM).sum(dim=1) + against_BC.sum(dim=1)).mean()
            logged = {"recon": recon, "kl": kl, "elbo": -(recon + kl)}
        else:
            guess_BC = labels.relaxed(q_y.logits, self.sizes, self.config.temperature).exp()
            recon_B, kl_B = self._of(batch.x_BCHW, features, torch.where(known_BC, told_BC, guess_BC), hyper)
            logged = {"recon": recon_B.mean(), "kl_z": kl_B.mean()}
        loss_B = recon_B + hyper["beta"] * (kl_B + kl_y_B) + hyper["alpha"] * told_B
        return {
            "labelled": Term(_labels.mean_over(loss_B, labelled_B)),
            "unlabelled": Term(_labels.mean_over(loss_B, ~labelled_B)),
            **{name: Term(value.detach(), None) for name, value in logged.items()},
            "classifier": Term(self.known_mean(told_B, labelled_B), None),
        }

    def _of(self, x_BCHW: Tensor, features: Tensor, y_BC: Tensor, hyper: Hyper) -> tuple[Tensor, Tensor]:
        """-log p(x|y, z) of a draw of z, and KL(q(z|x, y) || p(z)), (B,) each."""
        q_z = self.q("z", features, {"y": y_BC})
        kl_B = torch.distributions.kl_divergence(q_z, self.p("z", {}, len(y_BC))).sum(dim=1)
        return -self.log_prob(x_BCHW, {"y": y_BC, "z": distributions.sample(q_z)}, hyper), kl_B

    def _every_label(self, x_BCHW: Tensor, features: Tensor, hyper: Hyper) -> tuple[Tensor, Tensor]:
        """The same for every combination of labels, (B, M) each."""
        n, m = len(x_BCHW), len(self.combination_MC)
        each = (x_BCHW.repeat_interleave(m, dim=0), features.repeat_interleave(m, dim=0))
        recon, kl = self._of(*each, self.combination_MC.repeat(n, 1), hyper)
        return recon.view(n, m), kl.view(n, m)

    def kl_weight(self, hyper: Hyper) -> float:
        return hyper["beta"]

    def objective_text(self, hyper: Hyper) -> str:
        how = "every label gone through" if self.config.unknown == "enumerate" else "unknown labels relaxed"
        return (
            f"minimise recon + beta (KL of z, and of y where it is not known) + alpha classifier; "
            f"beta = {hyper['beta']:.4g}, alpha = {hyper['alpha']:.4g}; labels of {', '.join(self.factors)}, {how}; "
            f"{self.likelihood.text(hyper)}; {terms.UNITS}"
        )
