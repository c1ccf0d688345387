"""SemafoVAE: a VAE whose prior follows from labels, learned from a few labelled images.

Trung Ngo Trong et al. 2022, "SemafoVAE" (arXiv 2203.05074), after the code published with it. A latent u ~ N(0, I)
gives both the label, p(y|u), and the prior of the image's latents, p(z0|u); the image is of z0 alone, p(x|z0). Inferred
is z0 ~ q(z0|x), from it y ~ q(y|z0), a linear map by design, and from that u ~ q(u|y). So the labels wanted choose the
prior that is drawn from. Maximised is, for images with labels,
    J = gamma_labelled (E log p(x|z0) + gamma_y (E log p(y|u) + log q(y|z0)))
        - beta_labelled (KL(q(z0|x) || p(z0|u)) + KL(q(u|y) || N(0, I))),
and for the others, whose label is a relaxed draw of q(y|z0),
    J = gamma_unlabelled (E log p(x|z0) + gamma_y E log p(y|u)) - beta_unlabelled (KL + KL) + entropy H(q(y|z0));
the sum of both means, however few have labels. With weights of 1 it is a lower bound of log p(x) (of log p(x, y)
without the classifier's term) for labels that are one-hot; what is logged as `elbo` is that bound, for one-hot draws.

Where an image has some labels and lacks others, it counts as labelled, and the blocks that it lacks are drawn, with
their entropy.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vaecli.batch import Batch, DataInfo
from vaecli.data.orders import InTurn, Mixed, Order
from vaecli.models import _labels
from vaecli.models.base import Hyper, Level, Player, Term, Values
from vaecli.nets import coders
from vaecli.nets.stochastic import dense
from vaecli.objectives import distributions, labels, terms
from vaecli.objectives.distributions import Gaussian
from vaecli.objectives.labels import OneHotBlocks
from vaecli.settings.optim import OptimConfig
from vaecli.settings.schedules import Weight
from vaecli.settings.section import Positive, Width

FLOOR = 1e-5  # of standard deviations
CLIP = 1e-6  # the reference's distance of a label from 0 and 1, where its density would be infinite


class Config(_labels.Config):
    """The defaults are the paper's code but for the four points of `reference`.

    `gamma_labelled`, `gamma_unlabelled`  weigh the likelihoods, `gamma_y` those of labels beside that of pixels,
    `beta_labelled`, `beta_unlabelled`    the rates, `entropy` that of q(y|z0) where the label is not known.
    `labels`       unknown ones are `relaxed` (Gumbel-softmax of `temperature`, through which gradients flow) or `hard`
                   draws, through which none do.
    `update_mode`  `sum` of both objectives in one update, or `alternate`: an update by the images with labels, then one
                   by the others, of which the records are then.
    `classifier`   `linear`, so that labels can be read from z0 by a linear map; `mlp` (two layers) is an ablation.
    `prior`        of z0 given u: one hidden layer (`shallow`) or three (`deep`) of `prior_width`.
    `label_width`  of the two hidden layers between y and u, either way.
    `reference`    false; or true, or a list of what is to be as in the paper's code: `classifier` (the relaxed density
                   at the label in place of the cross-entropy), `kl` (log q - log p of the draw of z0 in place of the
                   divergence), `entropy` (-log q of the drawn label in place of the entropy), and in semafo-hvae
                   `redraw` (u is drawn anew for the prior of z1).
    """

    tiny: ClassVar[dict[str, Any]] = {
        **{"latent_dim": 3, "net": {"name": "mlp", "hidden": [16]}, "label_width": 16, "prior_width": 16},
        "warm_up": 20,
    }
    name: Literal["semafo-vae"] = "semafo-vae"
    gamma_labelled: Weight = 1.0
    gamma_unlabelled: Weight = 10.0
    gamma_y: Weight = 10.0
    beta_labelled: Weight = 1.0
    beta_unlabelled: Weight = 1.0
    entropy: Weight = 1.0
    labels: Literal["relaxed", "hard"] = "relaxed"
    temperature: Positive = 0.5
    update_mode: Literal["sum", "alternate"] = "sum"
    classifier: Literal["linear", "mlp"] = "linear"
    prior: Literal["shallow", "deep"] = "shallow"
    prior_width: Width = 256
    label_width: Width = 512
    reference: bool | list[Literal["classifier", "kl", "entropy", "redraw"]] = False


class Model(_labels.Model):
    """Levels u, y, z0 in the order of generation; inferred from z0 up."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        d, c, relu = config.latent_dim, self.width_y, nn.ReLU()
        self.levels = (Level("u", (c,), standard=True), self.level_y(), Level("z0", (d,)))
        self.build_coders(config, info)
        hidden = [512, 512] if config.classifier == "mlp" else []
        self.classifier = nn.Sequential(*dense(d, hidden, relu), nn.Linear(hidden[-1] if hidden else d, c))
        self.label_encoder = _mlp(c, [config.label_width] * 2, 2 * c)
        self.label_decoder = _mlp(c, [config.label_width] * 2, c)
        self.prior = _mlp(c, [config.prior_width] * (3 if config.prior == "deep" else 1), 2 * d)

    def build_coders(self, config: Config, info: DataInfo) -> None:
        self.encoder, self.decoder = coders.build(config.net, info.shape, 2 * config.latent_dim, config.latent_dim)

    def as_reference(self, what: str) -> bool:
        """Whether this point is to be as in the paper's code."""
        chosen = self.config.reference
        return chosen if isinstance(chosen, bool) else what in chosen

    # ---- the distributions

    def inference_order(self) -> Sequence[str]:
        return ["z0", "y", "u"]

    def features(self, x_BCHW: Tensor) -> Any:
        return self.network(self.encoder, x_BCHW)

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        if level == "z0":
            return gaussian(features)
        if level == "y":
            return OneHotBlocks(self.classifier(given["z0"]), self.sizes)
        return gaussian(self.label_encoder(given["y"]))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "y":
            return OneHotBlocks(self.label_decoder(given["u"]), self.sizes)
        if level == "z0":
            return gaussian(self.prior(given["u"]))
        return super().p(level, given, n)

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(values["z0"]))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(values["z0"]), hyper)

    def condition(self, labels_BK: Tensor) -> Values:
        """y, and a draw of q(u|y). Labels of -1 are those of an ancestral draw, p(u) p(y|u); they use up the same noise
        whether there are any, so that u's is the same for any labels."""
        told_BC, known_BC = self.asked_for(labels_BK)
        drawn = distributions.sample(self.p("u", {}, len(labels_BK)))
        y = torch.where(known_BC, told_BC, distributions.sample(self.p("y", {"u": drawn}, len(labels_BK))))
        return {"y": y, "u": distributions.sample(self.q("u", None, {"y": y}))}

    # ---- training

    def afterwards(self, mixed: Mixed) -> Order:
        return InTurn(mixed) if self.config.update_mode == "alternate" else mixed

    def players(self, optim: OptimConfig) -> list[Player]:
        updates = 2 if self.config.update_mode == "alternate" else 1
        return [Player("main", list(self.parameters()), optim, updates=updates)]

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        """Labelled or not, all images go through the nets together; each is then weighed by its own objective."""
        x, labels_BK = batch.x_BCHW, self.labels_of(batch)
        known_BK = labels_BK >= 0
        labelled_B = known_BK.any(dim=1)
        features = self.features(x)
        q_z = self.q("z0", features, {})
        z = distributions.sample(q_z)
        q_y = self.q("y", features, {"z0": z})
        assert isinstance(q_y, OneHotBlocks)
        told_BC = labels.one_hot(labels_BK, self.sizes)
        guess_BC, log_guess_BC = self._guess(q_y)
        y = torch.where(labels.spread(known_BK, self.sizes), told_BC, guess_BC)
        q_u = self.q("u", features, {"y": y})
        u = distributions.sample(q_u)
        p_y, p_z = self.p("y", {"u": u}, len(x)), self.p("z0", {"u": u}, len(x))

        recon_B, below = self.reconstruct(x, features, z, hyper)
        label_B = -p_y.log_prob(y)
        rate_B = kl_divergence(q_u, self.p("u", {}, len(x))).sum(dim=1)
        if self.as_reference("kl"):
            rate_B = rate_B + distributions.log_prob(q_z, z) - distributions.log_prob(p_z, z)
        else:
            rate_B = rate_B + kl_divergence(q_z, p_z).sum(dim=1)
        told_B = (self._told(q_y, told_BC) * known_BK).sum(dim=1)
        unsure_B = (self._unsure(q_y, guess_BC, log_guess_BC) * ~known_BK).sum(dim=1)

        gamma_B, beta_B = (
            torch.where(labelled_B, told_B.new_ones(()) * hyper[f"{weight}_labelled"], hyper[f"{weight}_unlabelled"])
            for weight in ("gamma", "beta")
        )
        loss_B = gamma_B * (recon_B + hyper["gamma_y"] * (label_B + told_B)) + beta_B * rate_B
        loss_B = loss_B + self.weighed_below(below, u, q_u, hyper) - hyper["entropy"] * unsure_B
        kl = self._bound_rate(q_z, q_y, z, below).mean()
        logged = {"recon": recon_B.mean(), "kl": kl, "elbo": -(recon_B.mean() + kl), "label": label_B.mean()}
        logged["entropy"] = q_y.entropy().mean()
        if self.config.update_mode == "sum":
            logged["classifier"] = self.known_mean(told_B, labelled_B)
        return {
            "labelled": Term(_labels.mean_over(loss_B, labelled_B)),
            "unlabelled": Term(_labels.mean_over(loss_B, ~labelled_B)),
            **{name: Term(value.detach(), None) for name, value in logged.items()},
        }

    def reconstruct(self, x_BCHW: Tensor, features: Any, z_BD: Tensor, hyper: Hyper) -> tuple[Tensor, Any]:
        """-log p(x|...) in nats, (B,), and whatever was drawn below z0 on the way."""
        return -self.likelihood.log_prob(x_BCHW, self.out(z_BD), hyper), None

    def rate_below(self, below: Any, u_BC: Tensor) -> Tensor | float:
        """What the levels below z0 cost given u, (B,)."""
        return 0.0

    def weighed_below(self, below: Any, u_BC: Tensor, q_u: Distribution, hyper: Hyper) -> Tensor | float:
        """The same as it stands in the objective, u being a draw of q(u|y)."""
        return 0.0

    def _guess(self, q_y: OneHotBlocks) -> tuple[Tensor, Tensor]:
        """A label for each image, drawn from q(y|z0), (B, C), and its logarithm."""
        if self.config.labels == "hard":
            hard_BC = q_y.sample()
            return hard_BC, hard_BC.log()
        log_BC = labels.relaxed(q_y.logits, self.sizes, self.config.temperature)
        return log_BC.exp(), log_BC

    def _told(self, q_y: OneHotBlocks, told_BC: Tensor) -> Tensor:
        """What it costs to tell each label from z0, (B, K)."""
        if self.as_reference("classifier"):
            clipped_BC = told_BC.to(q_y.logits.dtype).clamp(CLIP, 1 - CLIP).log()
            return -labels.relaxed_log_prob(clipped_BC, q_y.logits, self.sizes, self.config.temperature)
        return -labels.by_block(told_BC * q_y.logits, self.sizes)

    def _unsure(self, q_y: OneHotBlocks, guess_BC: Tensor, log_guess_BC: Tensor) -> Tensor:
        """The entropy of each label of q(y|z0), (B, K), or the reference's estimate of it by the label drawn.

        Of hard draws that has no gradient to speak of: E[d/dw log q(y)] = 0, and what is left is noise.
        """
        if not self.as_reference("entropy"):
            return labels.entropy(q_y.logits, self.sizes)
        if self.config.labels == "hard":
            return -labels.by_block(guess_BC * q_y.logits, self.sizes)
        return -labels.relaxed_log_prob(log_guess_BC, q_y.logits, self.sizes, self.config.temperature)

    @torch.no_grad()
    def _bound_rate(self, q_z: Distribution, q_y: OneHotBlocks, z_BD: Tensor, below: Any) -> Tensor:
        """What all levels cost along one draw whose labels are one-hot, (B,): the bound of log p(x) is -recon less it.

        The prior of z0 follows from a u inferred from z0, so that it is the log-ratio at the draw that counts.
        """
        y = q_y.sample()
        q_u = self.q("u", None, {"y": y})
        u = distributions.sample(q_u)
        p_y, p_z = self.p("y", {"u": u}, len(y)), self.p("z0", {"u": u}, len(y))
        rate_B = kl_divergence(q_u, self.p("u", {}, len(y))).sum(dim=1)
        for q, p, value in ((q_y, p_y, y), (q_z, p_z, z_BD)):
            rate_B = rate_B + distributions.log_prob(q, value) - distributions.log_prob(p, value)
        return rate_B + self.rate_below(below, u)

    def kl_weight(self, hyper: Hyper) -> float | None:
        """Of the images without labels, which are nearly all."""
        gamma = hyper["gamma_unlabelled"]
        return hyper["beta_unlabelled"] / gamma if gamma else None

    def objective_text(self, hyper: Hyper) -> str:
        told, rest = (
            f"gamma {hyper[f'gamma_{kind}']:.4g}, beta {hyper[f'beta_{kind}']:.4g}"
            for kind in ("labelled", "unlabelled")
        )
        return (
            f"minimise gamma (recon + gamma_y label) + beta rates, less the entropy of unknown labels; "
            f"labelled: {told}; others: {rest}; gamma_y = {hyper['gamma_y']:.4g}, entropy = {hyper['entropy']:.4g}; "
            f"{self._labels_text()}; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )

    def _labels_text(self) -> str:
        how = f"relaxed at {self.config.temperature:g}" if self.config.labels == "relaxed" else "hard"
        return f"labels of {', '.join(self.factors)}, {how}"


def gaussian(numbers: Tensor, floor: float = FLOOR) -> Gaussian:
    """(B, 2 D, ...) -> N(mean, (softplus(raw) + floor)^2) of (B, D, ...)."""
    mean, raw = numbers.chunk(2, dim=1)
    return Gaussian(mean, 2.0 * torch.log(F.softplus(raw) + floor))


def _mlp(n_in: int, widths: Sequence[int], n_out: int) -> nn.Sequential:
    return nn.Sequential(*dense(n_in, widths, nn.ReLU()), nn.Linear(widths[-1], n_out))
