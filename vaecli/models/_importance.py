"""What IWAE and its kin share: a VAE of one level of latents or two, its weighted draws, and the bounds made of them.

Burda et al. 2016, "Importance Weighted Autoencoders": log w_i = log p(x, z_i) - log q(z_i|x) of draws of the posterior,
with two levels p(x, z) = p(z2) p(z1|z2) p(x|z1) and q(z|x) = q(z1|x) q(z2|z1), as in their section 5.

Shapes: B images, M groups of K draws of each, D latents of a level, N = B M K.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from vaecli import device as devices
from vaecli.batch import Batch, DataInfo
from vaecli.data.base import free_memory
from vaecli.errors import MachineError
from vaecli.models.base import GaussianVAE, Hyper, Level, NetConfig, Posterior, Term, Values
from vaecli.nets.stochastic import gaussian
from vaecli.objectives.distributions import Gaussian, from_numbers
from vaecli.settings.section import Width

SHARE = 0.8  # of the memory that is free, which a step may take
Samples = Annotated[int, Field(gt=0, le=10_000)]


class Config(NetConfig):
    """`samples` is K. `upper` latents make a second level above the `latent_dim` that the decoder reads, with tanh nets
    of `upper_hidden` between the two, reversed on the way down. `gradient` is the encoder's, see `Model.bound`."""

    tiny: ClassVar[dict[str, Any]] = {**NetConfig.tiny, "samples": 3, "upper": 2, "upper_hidden": [8]}
    latent_dim: Width = 50
    samples: Samples = 5
    gradient: Literal["standard", "dreg"] = "standard"
    upper: Width | None = None
    upper_hidden: list[Width] = Field(default=[100, 100], max_length=16)

    @property
    def draws(self) -> int:
        """Of each image in a step."""
        return self.samples


@dataclass(frozen=True)
class Draws:
    """Of the posterior: `log_w_BMK` = `log_prob_N` - `log_ratio_N`, log p(x|z) and log q(z|x) - log p(z)."""

    log_w_BMK: Tensor
    log_prob_N: Tensor
    log_ratio_N: Tensor


class Model(GaussianVAE):
    """The VAE, or one of two levels inferred from the image upwards."""

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
        return from_numbers(self.network(self.above, given["z1"])) if level == "z2" else Gaussian(*features)

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "z1":
            return from_numbers(self.network(self.below, given["z2"]))
        return super().p(level, given, n)

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(values[self.levels[-1].name]))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(values[self.levels[-1].name]), hyper)

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        return super(GaussianVAE, self).posterior(x_BCHW)

    # ---- training

    def check_memory(self, batch_size: int) -> None:
        """MachineError, with the number that fits, where what a step keeps for its gradients is more than is free."""
        k, free = self.config.draws, free_memory(self.device)
        if k == 1 or free is None:
            return
        with devices.aside():  # what is drawn here changes nothing that is drawn later
            passing = 2 * 4 * self.info.pixels  # gradients on their way through the decoder's last layer
            each = (self._kept(3) - self._kept(2) + passing) * batch_size
        if each * k > SHARE * free:
            fits, gib = int(SHARE * free / each), 2**30
            raise MachineError(
                f"{draws_text(k)} of each of {batch_size} images take {each * k / gib:,.1f} GiB of memory in a step, "
                f"but {free / gib:,.1f} GiB are free",
                f"with this batch at most {fits:,} draws fit" if fits else "lower train.batch_size, too",
            )

    def _kept(self, k: int) -> int:
        """Bytes of what k draws of one image keep for their gradients, each tensor once."""
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
            return tensor

        x_BCHW = torch.full((1, *self.info.shape), 0.5, device=self.device)
        batch = Batch(x_BCHW, torch.zeros(1, dtype=torch.int64, device=self.device))
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.weigh(batch, self.hyper(0), 1, k)
        return sum(storage.nbytes() for storage in kept.values())

    def weigh(self, batch: Batch, hyper: Hyper, groups: int, k: int, counted: "Counted | None" = None) -> Draws:
        """`groups` times k weighted draws of each image. With `counted` the densities of q read values that are counted
        and parameters that stay, so that the encoder is reached through the values alone."""
        x_BCHW = batch.x_BCHW
        n = groups * k
        mean_ND, logvar_ND = (t.repeat_interleave(n, dim=0) for t in self.features(x_BCHW))
        drawn: Values = {}  # as the encoder's parameters make them
        values: Values = {}  # the same, where densities read them
        log_q = mean_ND.new_zeros(len(mean_ND))
        for name in self.inference_order():
            q = self.q(name, (mean_ND, logvar_ND), drawn)
            drawn[name] = q.rsample()
            values[name] = drawn[name] if counted is None else counted(drawn[name])
            density = q if counted is None else self._held(name, (mean_ND, logvar_ND), values)
            log_q = log_q + density.log_prob(values[name]).sum(dim=1)
        log_p = torch.stack([_log_prob(self.p(name, values, len(log_q)), z) for name, z in values.items()]).sum(dim=0)
        log_prob = self.log_prob(x_BCHW.repeat_interleave(n, dim=0), values, hyper)
        return Draws((log_prob + log_p - log_q).view(-1, groups, k), log_prob, log_q - log_p)

    def bound(
        self, batch: Batch, hyper: Hyper, groups: int, k: int, beta: float = 0.0, gradient: str = "standard"
    ) -> dict[str, Term]:
        """Minus the mean over the groups of beta mean_i log w_i + (1 - beta) log (1/k) sum_i w_i, and what is logged.

        `gradient: dreg` has the same expectation with less noise for the encoder (Tucker et al. 2019, "Doubly
        Reparameterized Gradient Estimators for Monte Carlo Objectives", eq. 8 and section 4): with u_i = w_i / sum w
        log w_i is followed through z_i alone, u_i^2 of it in place of u_i; what generates has its gradient as before.
        """
        counted = Counted() if gradient == "dreg" else None
        draws = self.weigh(batch, hyper, groups, k, counted)
        log_w_BMK = draws.log_w_BMK
        bound_BM = log_w_BMK.logsumexp(dim=2) - math.log(k)
        if beta != 0:
            bound_BM = beta * log_w_BMK.mean(dim=2) + (1 - beta) * bound_BM
        if counted is not None:
            share_BMK = log_w_BMK.detach().softmax(dim=2)
            moves_BMK = beta / k + (1 - beta) * share_BMK  # the bound's derivative by log w_i
            counted.share_N = ((beta / k + (1 - beta) * share_BMK.square()) / moves_BMK.clamp(min=1e-38)).flatten()
            follow_BM = (moves_BMK * log_w_BMK).sum(dim=2)
            bound_BM = bound_BM.detach() + follow_BM - follow_BM.detach()  # the bound's value, the estimator's gradient
        return {
            "nll_bound": Term(-bound_BM.mean(dim=1)),
            "recon": Term(-draws.log_prob_N.mean(), None),
            "kl": Term(draws.log_ratio_N.mean(), None),
            "elbo": Term(log_w_BMK.mean(dim=(1, 2)), None),
        }

    def _held(self, level: str, features: tuple[Tensor, Tensor], given: Values) -> Gaussian:
        """The posterior of a level with parameters that stay, for gradients through values alone."""
        if level != "z2":
            return Gaussian(*(t.detach() for t in features))
        weights = {name: parameter.detach() for name, parameter in self.above.named_parameters()}

        def held(z_ND: Tensor) -> Tensor:
            return functional_call(self.above, weights, (z_ND,))  # type: ignore[no-any-return]

        return from_numbers(self.network(held, given["z1"]))  # type: ignore[arg-type]


class Counted:
    """Values whose gradient is multiplied by `share_N`, a number a row that is known only when all values are."""

    share_N: Tensor

    def __call__(self, z_ND: Tensor) -> Tensor:
        seen_ND = z_ND.view_as(z_ND)
        if seen_ND.requires_grad:
            seen_ND.register_hook(lambda gradient_ND: gradient_ND * self.share_N.unsqueeze(1))  # type: ignore[no-untyped-call]
        return seen_ND


def draws_text(n: int) -> str:
    return f"{n} draw{'s' if n > 1 else ''}"


def _log_prob(p: Distribution, z_ND: Tensor) -> Tensor:
    log_prob_ND: Tensor = p.log_prob(z_ND)
    return log_prob_ND.sum(dim=1)
