"""IWAE: trains the bound that several weighted draws of the posterior give, tighter than the ELBO.

Burda et al. 2016, "Importance Weighted Autoencoders", eq. 8, of one level of latents or two:
loss = -E log (1/k) sum_i w_i, w_i = p(x, z_i) / q(z_i|x), z_1 ... z_k drawn from q; at k = 1 it is the VAE's.
With two levels p(x, z) = p(z2) p(z1|z2) p(x|z1) and q(z|x) = q(z1|x) q(z2|z1), as in their section 5.
`gradient: dreg` has the same expectation with less noise for the encoder (Tucker et al. 2019, "Doubly Reparameterized
Gradient Estimators for Monte Carlo Objectives", eq. 8): with u_i = w_i / sum w, log w_i is followed through z_i alone,
u_i^2 of it; the decoder's gradient is sum_i u_i grad log p as before.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from vaecli.batch import Batch, DataInfo
from vaecli.models.base import GaussianVAE, Hyper, Level, NetConfig, Posterior, Term, Values
from vaecli.nets.stochastic import gaussian
from vaecli.objectives import terms
from vaecli.objectives.distributions import Gaussian
from vaecli.settings.section import Width


class Config(NetConfig):
    """`samples` is k. `upper` latents make a second level above the `latent_dim` that the decoder reads, with tanh nets
    of `upper_hidden` between the two, reversed on the way down."""

    tiny: ClassVar[dict[str, Any]] = {**NetConfig.tiny, "samples": 3, "upper": 2, "upper_hidden": [8]}
    name: Literal["iwae"] = "iwae"
    latent_dim: Width = 50
    samples: Annotated[int, Field(gt=0, le=10_000)] = 5
    gradient: Literal["standard", "dreg"] = "standard"
    upper: Width | None = None
    upper_hidden: list[Width] = Field(default=[100, 100], max_length=16)


class Model(GaussianVAE):
    """The VAE, or one of two levels inferred from the image upwards, trained by the bound of k draws."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        if config.upper is not None:
            self.levels = (Level("z2", (config.upper,), standard=True), Level("z1", (config.latent_dim,)))
            widths = config.upper_hidden
            self.above = gaussian(config.latent_dim, widths, config.upper, nn.Tanh())
            self.below = gaussian(config.upper, widths[::-1], config.latent_dim, nn.Tanh())

    # ---- the distributions

    def inference_order(self) -> list[str]:
        return [level.name for level in reversed(self.levels)]

    def q(self, level: str, features: tuple[Tensor, Tensor], given: Values) -> Gaussian:
        return _gaussian(self.network(self.above, given["z1"])) if level == "z2" else Gaussian(*features)

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "z1":
            return _gaussian(self.network(self.below, given["z2"]))
        return super().p(level, given, n)

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(values[self.levels[-1].name]))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(values[self.levels[-1].name]), hyper)

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        return super(GaussianVAE, self).posterior(x_BCHW)

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        k, dreg = self.config.samples, self.config.gradient == "dreg"
        features = self.features(batch.x_BCHW)
        mean, logvar = (t.repeat_interleave(k, dim=0) for t in features)
        counted = Counted()
        drawn: Values = {}  # as the encoder's parameters make them
        values: Values = {}  # the same, where densities read them
        log_q = mean.new_zeros(len(mean))
        for name in self.inference_order():
            q = self.q(name, (mean, logvar), drawn)
            drawn[name] = q.rsample()
            values[name] = counted(drawn[name]) if dreg else drawn[name]
            density = self._held(name, (mean, logvar), values) if dreg else q
            log_q = log_q + density.log_prob(values[name]).sum(dim=1)
        log_p = torch.stack([_log_prob(self.p(name, values, len(mean)), z) for name, z in values.items()]).sum(dim=0)
        log_prob = self.log_prob(batch.x_BCHW.repeat_interleave(k, dim=0), values, hyper)
        log_w_BK = (log_prob + log_p - log_q).view(-1, k)
        bound_B = log_w_BK.logsumexp(dim=1) - math.log(k)
        if dreg:
            share_BK = log_w_BK.detach().softmax(dim=1)
            counted.share_N = share_BK.flatten()
            follow_B = (share_BK * log_w_BK).sum(dim=1)
            bound_B = bound_B.detach() + follow_B - follow_B.detach()  # the bound's value, the estimator's gradient
        return {
            "nll_bound": Term(-bound_B),
            "recon": Term(-log_prob.mean(), None),
            "kl": Term((log_q - log_p).mean(), None),
            "elbo": Term(log_w_BK.mean(dim=1), None),
        }

    def _held(self, level: str, features: tuple[Tensor, Tensor], given: Values) -> Gaussian:
        """The posterior of a level with parameters that stay, for gradients through values alone."""
        if level != "z2":
            return Gaussian(*(t.detach() for t in features))
        weights = {name: parameter.detach() for name, parameter in self.above.named_parameters()}

        def held(z_ND: Tensor) -> Tensor:
            return functional_call(self.above, weights, (z_ND,))  # type: ignore[no-any-return]

        return _gaussian(self.network(held, given["z1"]))  # type: ignore[arg-type]

    def kl_weight(self, hyper: Hyper) -> float | None:
        """1 for one draw; with more of them the bound is no sum of a reconstruction and a KL."""
        return 1.0 if self.config.samples == 1 else None

    def objective_text(self, hyper: Hyper) -> str:
        k = self.config.samples
        how = f"k = {k} draw{'s' if k > 1 else ''} an image, {self.config.gradient} gradient"
        return f"minimise -log (1/k) sum of p(x, z) / q(z|x); {how}; {self.likelihood.text(hyper)}; {terms.UNITS}"


class Counted:
    """Values whose gradient is multiplied by `share_N`, a number a row that is known only when all values are."""

    share_N: Tensor

    def __call__(self, z_ND: Tensor) -> Tensor:
        seen_ND = z_ND.view_as(z_ND)
        if seen_ND.requires_grad:
            seen_ND.register_hook(lambda gradient_ND: gradient_ND * self.share_N.unsqueeze(1))  # type: ignore[no-untyped-call]
        return seen_ND


def _gaussian(numbers: Tensor) -> Gaussian:
    """(N, 2 D) -> N(mean, exp(logvar)) of (N, D)."""
    mean_ND, logvar_ND = numbers.chunk(2, dim=1)
    return Gaussian(mean_ND, terms.clamp_logvar(logvar_ND))


def _log_prob(p: Distribution, z_ND: Tensor) -> Tensor:
    log_prob_ND: Tensor = p.log_prob(z_ND)
    return log_prob_ND.sum(dim=1)
