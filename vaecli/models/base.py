"""The contract between a model and the rest of the tool, and the Gaussian VAE that most models start from.

The trainer, the checkpoint and the commands know this contract and no model by name. Conventions everywhere: nats,
sum over pixels and latents, mean over the batch; images in [0, 1]; hyper-parameters arrive as plain numbers already
evaluated at the step (`hyper`), so a model keeps no counters. Randomness comes from torch's global generator, which
the caller seeds as a function of (seed, step).

Shapes: B batch, C H W image, D latents (all groups side by side), K factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from vaecli.batch import Batch, DataInfo, Split
from vaecli.errors import ConfigError
from vaecli.nets import coders as nets
from vaecli.objectives import likelihoods
from vaecli.objectives import terms as objective
from vaecli.settings import schedules
from vaecli.settings.section import Precision, Section, Width

if TYPE_CHECKING:
    from vaecli.settings.optim import OptimConfig

Hyper = Mapping[str, float]  # `{"beta": 4.0, "likelihood.sigma": 1.0, ...}` at one step


class ModelConfig(Section):
    """What every model's section has: the registered name."""

    name: str


@dataclass(frozen=True)
class Posterior:
    """q(z|x) as diagonal Gaussians over all D latents; a deterministic code has neither log-variance nor KL."""

    mean_BD: Tensor
    logvar_BD: Tensor | None = None
    kl_BD: Tensor | None = None  # KL(q(z_j|x) || p(z_j)) in nats

    def sample(self) -> Tensor:
        """One reparameterised draw, (B, D); the mean itself for a deterministic code."""
        if self.logvar_BD is None:
            return self.mean_BD
        return objective.reparameterize(self.mean_BD, self.logvar_BD)


class Model(nn.Module):
    """What the trainer and the commands ask of a model.

    `phases`       the names of the optimizers, in the order in which one training step updates them. An adversarial
                   model has two; a model without gradient steps has none and does its work in `begin` or `end`.
    `uses_labels`  whether `loss` reads `batch.labels_BK` (entries of -1 are unknown).
    `groups`       latent groups in order, name to size: one for a flat model, several for a hierarchy.
    `precision`    the arithmetic of the networks while training, set by the trainer; see `network`.
    """

    phases: ClassVar[tuple[str, ...]] = ("main",)
    uses_labels: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, info: DataInfo) -> None:
        super().__init__()
        self.config = config
        self.info = info
        self.groups: dict[str, int] = {}
        self.precision: Precision = "fp32"

    def network(self, net: nn.Module, x: Tensor) -> Tensor:
        """What `net` makes of `x`, in the model's precision while training and in full precision otherwise.

        The result is float32 in any case, and so are losses, noise and latents: only a network's own products and
        activations are ever in bfloat16, which has 8 bits of precision.
        """
        if self.precision == "fp32" or not self.training:
            out: Tensor = net(x)
            return out
        with torch.autocast(x.device.type, torch.bfloat16):
            out = net(x)
        return out.float()

    # ---- training

    def optimizers(self, optim: "OptimConfig") -> dict[str, tuple[list[nn.Parameter], "OptimConfig"]]:
        """For each phase the parameters it updates and the settings of its optimizer."""
        return {phase: (list(self.parameters()), optim) for phase in self.phases}

    def begin(self, train: Split) -> None:
        """Called once before the first step of a run that starts from no other's weights; a closed-form model is fitted
        here."""

    def end(self, train: Split) -> None:
        """Called once after the last step, before the final checkpoint."""

    def loss(self, batch: Batch, hyper: Hyper, phase: str = "main") -> dict[str, Tensor]:
        """Scalars of one phase: `loss` (minimised) and whatever else is to be logged (`recon`, `kl`, `elbo`, ...)."""
        raise NotImplementedError

    def hyper(self, step: int) -> dict[str, float]:
        """The numbers of the configuration at `step`."""
        return schedules.resolve(self.config, step)

    def objective_text(self, hyper: Hyper) -> str:
        """The objective in words and numbers, for the banner."""
        raise NotImplementedError

    # ---- use

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        """q(z|x)."""
        raise NotImplementedError

    def decode(self, z_BD: Tensor) -> Tensor:
        """The expected image E[x|z], (B, C, H, W)."""
        raise NotImplementedError

    def nll(self, x_BCHW: Tensor, z_BD: Tensor, hyper: Hyper) -> Tensor:
        """-log p(x|z) in nats, (B,)."""
        raise NotImplementedError

    def prior(self, n: int, temperature: float = 1.0) -> Tensor:
        """n draws from p(z), (n, D), standard deviations scaled by `temperature`; ConfigError if there is no prior."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def latent_names(self) -> list[str]:
        """`z0 z1 ...`; with several groups `group.0 group.1 ...`."""
        if len(self.groups) == 1:
            return [f"z{d}" for d in range(next(iter(self.groups.values())))]
        return [f"{group}.{d}" for group, size in self.groups.items() for d in range(size)]


class NetConfig(ModelConfig):
    """The section of models made of one named net, one group of latents and a likelihood.

    `output_bias`: `data` starts the decoder's last bias at the mean training image, so that the first steps are not
    spent on it (nor Adagrad's step sizes used up by it); `default` leaves the net's own start.
    """

    latent_dim: Width = 10
    likelihood: likelihoods.LikelihoodConfig = likelihoods.BernoulliConfig()
    net: nets.NetConfig = nets.MlpConfig()
    output_bias: Literal["data", "default"] = "data"


class NetModel(Model):
    """Encoder, decoder and likelihood by name; `outputs_per_latent` numbers of the encoder describe one latent."""

    config: NetConfig
    outputs_per_latent: ClassVar[int] = 1

    def __init__(self, config: NetConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        self.groups = {"z": config.latent_dim}
        n_out = self.outputs_per_latent * config.latent_dim
        self.encoder, self.decoder = nets.build(config.net, info.shape, n_out, config.latent_dim)
        self.likelihood = likelihoods.build(config.likelihood)

    def begin(self, train: Split) -> None:
        if self.config.output_bias == "data":
            # A training split is in random order: its first images are a fair sample.
            sums, seen = torch.zeros(self.info.shape, dtype=torch.float64), 0
            for batch in train.batches(256):
                sums += batch.x_BCHW.cpu().double().sum(dim=0)
                seen += len(batch.x_BCHW)
                if seen >= 10_000:
                    break
            nets.set_output_bias(self.decoder, self.likelihood.raw(sums / seen))

    def decode(self, z_BD: Tensor) -> Tensor:
        return self.likelihood.mean(self.network(self.decoder, z_BD))

    def nll(self, x_BCHW: Tensor, z_BD: Tensor, hyper: Hyper) -> Tensor:
        return -self.likelihood.log_prob(x_BCHW, self.network(self.decoder, z_BD), hyper)


class GaussianVAE(NetModel):
    """q(z|x) = N(mean, diag exp(logvar)), p(z) = N(0, I); minimises recon + `penalty` (Kingma & Welling 2014).

    A model built on it overrides `penalty` (what is added to the reconstruction) and `objective_text`.
    """

    outputs_per_latent = 2

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        mean_BD, logvar_BD = self.network(self.encoder, x_BCHW).chunk(2, dim=1)
        logvar_BD = objective.clamp_logvar(logvar_BD)
        return Posterior(mean_BD, logvar_BD, objective.kl_normal(mean_BD, logvar_BD))

    def prior(self, n: int, temperature: float = 1.0) -> Tensor:
        return temperature * torch.randn(n, self.config.latent_dim, device=self.device)

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Tensor]:
        """The weighted scalars added to the reconstruction, by the name under which they are logged."""
        raise NotImplementedError

    def loss(self, batch: Batch, hyper: Hyper, phase: str = "main") -> dict[str, Tensor]:
        q = self.posterior(batch.x_BCHW)
        assert q.kl_BD is not None
        z_BD = q.sample()
        recon = self.nll(batch.x_BCHW, z_BD, hyper).mean()
        kl = q.kl_BD.sum(dim=1).mean()
        penalties = self.penalty(q, z_BD, hyper)
        loss = torch.stack([recon, *penalties.values()]).sum()
        return {"loss": loss, "recon": recon, "kl": kl, "elbo": -(recon + kl), **penalties}


class NoPrior(ConfigError):
    """Sampling was asked of a model that has no distribution over its latents."""
