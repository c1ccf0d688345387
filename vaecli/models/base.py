"""The contract between a model and the rest of the tool, and the Gaussian VAE that most models start from.

The trainer, the checkpoint and the commands know this contract and no model by name. Conventions everywhere: nats,
sum over pixels and latents, mean over the batch; images in [0, 1]; hyper-parameters arrive as plain numbers already
evaluated at the step (`hyper`), so a model keeps no counters. Randomness comes from torch's global generator, which
the caller seeds as a function of (seed, step).

A model's latents stand in levels, in the order in which images are generated; a VAE has one. `q` and `p` are its
posterior and prior over a level, as distributions, given the values of the levels before it. Where commands want all
latents as a table they are flattened side by side, level by level.

Shapes: B batch, C H W image, D latents (all levels side by side, flattened), K factors.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _BatchNorm

from vaecli import device as devices
from vaecli.batch import Batch, DataInfo, Split
from vaecli.data.orders import Order, Shuffled
from vaecli.errors import ConfigError
from vaecli.nets import coders
from vaecli.objectives import distributions, likelihoods, terms
from vaecli.settings import schedules
from vaecli.settings.optim import OptimConfig
from vaecli.settings.schedules import Weight
from vaecli.settings.section import Precision, Section, Width

Hyper = Mapping[str, float]  # `{"beta": 4.0, "likelihood.sigma": 1.0, ...}` at one step
Values = dict[str, Tensor]  # a value of each level, (B, *shape) by the level's name


class NoPrior(ConfigError):
    """Sampling was asked of a model that has no distribution over its latents."""


class NoLabels(ConfigError):
    """Images of given labels were asked of a model that has no level of labels."""


class ModelConfig(Section):
    """What every model's section has: the registered name.

    `tiny` are settings with which the model takes 16x16 images in a moment, for tests and first trials.
    """

    tiny: ClassVar[dict[str, Any]] = {}
    name: str


@dataclass(frozen=True)
class Level:
    """A group of latents that are drawn together.

    `kind`      gaussian (or any density on numbers) | point (an encoder without distribution) | labels (one-hot blocks
                side by side, of `sizes` values each) | codes (positions of codebooks of `sizes[0]` entries, int64).
    `standard`  its prior is N(0, I) whatever stands above.
    `inferred`  False for noise that no encoder recovers from an image.
    `factors`   of labels: the data's factors that its blocks stand for, one name a block.
    `ordered`   of codes: neighbouring indices are neighbouring values, so that they are numbers to compare.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["gaussian", "point", "labels", "codes"] = "gaussian"
    standard: bool = False
    inferred: bool = True
    sizes: tuple[int, ...] = ()
    factors: tuple[str, ...] = ()
    ordered: bool = False

    @property
    def size(self) -> int:
        """Latents in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Term:
    """A part of the objective, () or (B,): the trainer minimises the sum of weight * mean, and logs both the mean as it
    is and the weight. A weight of None stands for a number that is logged only."""

    value: Tensor
    weight: float | None = 1.0  # a tensor of one number in recorded steps
    unit: str = "nats"


@dataclass(frozen=True)
class Player:
    """Parameters with an optimizer of their own, updated `updates` times a step while those of others stay.

    Each update reads `batches` independent batches: the first update's first is the step's own, the others come as
    `batch.others`. `stage` is the stage of training in which it takes part. Weight decay leaves `undecayed` alone.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    optim: OptimConfig
    updates: int = 1
    batches: int = 1
    stage: str = "main"
    undecayed: Sequence[nn.Parameter] = ()


@dataclass(frozen=True)
class Posterior:
    """q(z|x) of the latents that are inferred, as tables; the moments of a level are those given the modes above it.

    `logvar_BD` is None unless every latent has a variance, `kl_BD` (of q(z_j|x) to its prior, in nats) unless each has
    a divergence of its own in closed form.
    """

    mean_BD: Tensor
    logvar_BD: Tensor | None = None
    kl_BD: Tensor | None = None


@dataclass(frozen=True)
class Inference:
    """Values of the levels, drawn or at their modes one after the other, and the distributions they are from."""

    values: Values
    posteriors: dict[str, Distribution]


class Model(nn.Module):
    """What the trainer and the commands ask of a model.

    `levels`           see `Level`; set in the constructor, in order of generation.
    `stages`           parts of the training, one after the other where `train.steps` gives each a number of its own.
    `sequential`       whether they cannot go side by side: one number of steps is then that of each.
    `uses_labels`      whether `loss` reads `batch.labels_BK` (entries of -1 are unknown).
    `has_likelihood`   whether there is p(x|z): without it there is no reconstruction in nats, no ELBO, no IWAE bound.
    `batch_dependent`  whether a term depends on which images share a batch, so that it is evaluated on whole ones; of
                       any model with free bits, which are counted over a batch.
    `comparable`       whether a loss means later what it meant before: not where another player, who moves, is the
                       measure of all of it. Then no step is the best by it, and none is suspected because it has grown.
    `least_batch`      how many images a batch must have for the objective to say anything.
    `closed_form`      whether it has no players and is fitted, once, by `fit`.
    `settled`          the step from which the loss is of all that it is about: in a warm-up it may be of less.
    `precision`        the arithmetic of the networks while training, set by the trainer; see `network`.
    `origin`           of weights that training started from: `path`, `sha256` and `step`; None from scratch.
    """

    stages: ClassVar[tuple[str, ...]] = ("main",)
    sequential: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False
    has_likelihood: ClassVar[bool] = True
    batch_dependent: bool = False
    comparable: ClassVar[bool] = True
    least_batch: ClassVar[int] = 1
    closed_form: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, info: DataInfo) -> None:
        super().__init__()
        self.config = config
        self.info = info
        self.batch_dependent = self.batch_dependent or schedules.highest(getattr(config, "free_bits", 0.0)) > 0
        self.levels: tuple[Level, ...] = ()
        self.precision: Precision = "fp32"
        self.settled = 0
        self.origin: dict[str, Any] | None = None

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

    def players(self, optim: OptimConfig) -> list[Player]:
        """In the order in which a step updates them, `optim` being the section of that name; none in closed form."""
        return [] if self.closed_form else [Player("main", list(self.parameters()), optim)]

    def parameters_but(self, others: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """All but these, those of a likelihood among them."""
        left_out = {id(p) for p in others}
        return [p for p in self.parameters() if id(p) not in left_out]

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        """The terms of a player's objective, and whatever else is to be logged."""
        raise NotImplementedError

    def hyper(self, step: int) -> dict[str, float]:
        """The numbers of the configuration at `step`, counted from the start of the stage."""
        return schedules.resolve(self.config, step)

    def kl_weight(self, hyper: Hyper) -> float | None:
        """What KL(q(z|x) || p(z)) weighs in the objective against -log p(x|z); None where that is not the question."""
        return None

    def objective_text(self, hyper: Hyper) -> str:
        """The objective in words and numbers, for the banner."""
        raise NotImplementedError

    def order(self, train: Split, seed: int, batch_size: int) -> Order:
        """Which images of the training split make a batch: a pure function of (seed, step) and the model's buffers,
        asked for once, and again after `prepare`. ConfigError where the data do not have what it takes."""
        self.check_batch(batch_size)
        return Shuffled(len(train), seed, batch_size)

    def check_batch(self, batch_size: int) -> None:
        """ConfigError where so few images make no batch for this objective or its networks."""
        hint = "set train.batch_size to 2 or more"
        if batch_size < self.least_batch:
            raise ConfigError(
                f"{self.config.name} compares the images of a batch: one of {batch_size} tells nothing", hint
            )
        if batch_size == 1 and any(isinstance(module, _BatchNorm) for module in self.modules()):
            raise ConfigError("a network normalises over the batch, which one image does not make", hint)

    def check_memory(self, batch_size: int) -> None:
        """MachineError where a step of so many images, on the device that the model is on, visibly cannot fit."""

    def begin(self, train: Split) -> None:
        """Called once before the first step of a run that starts from no other's weights."""

    def due(self, step: int, stage: str = "main") -> bool:
        """Whether there is work before `step` of a stage (`prepare`): at its start, at the start of an epoch, ..."""
        return False

    def prepare(self, step: int, stage: str, train: Split) -> None:
        """Work between steps, a function of weights and step alone: it comes after saving, so that a resumed run
        repeats it."""

    def fit(self, train: Split, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        """Fit a model in closed form, once, telling `progress` of the images seen. When `stop()` says so the fit is
        finished with what has been seen so far; InputError where that is not enough."""

    # ---- the distributions

    def features(self, x_BCHW: Tensor) -> Any:
        """What every `q` needs of the images, computed once."""
        return x_BCHW

    def inference_order(self) -> Sequence[str]:
        """The levels in the order in which they are inferred."""
        return [level.name for level in self.levels if level.inferred]

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        """The posterior of a level, `given` the values of those inferred before it."""
        raise NotImplementedError

    def p(self, level: str, given: Values, n: int) -> Distribution:
        """The prior of a level for n images, `given` values of those generated before it. NoPrior if there is none."""
        found = self.level(level)
        if not found.standard:
            raise NoPrior(f"{self.config.name} has no prior over {level} to sample from")
        return distributions.Standard((n, *found.shape), self.device)

    def image(self, values: Values) -> Tensor:
        """The expected image E[x|values], (B, C, H, W); the generated one where there is no likelihood."""
        raise NotImplementedError

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor | None:
        """log p(x|values) in nats, (B,); None without a likelihood."""
        return None

    # ---- what follows from them

    def level(self, name: str) -> Level:
        return next(level for level in self.levels if level.name == name)

    def infer(self, x_BCHW: Tensor, given: Values | None = None, sample: bool = False) -> Inference:
        """The levels of images one after the other, at their modes or drawn; those `given` are kept."""
        values: Values = dict(given or {})
        posteriors, features = {}, self.features(x_BCHW)
        for name in self.inference_order():
            q = self.q(name, features, values)
            posteriors[name] = q
            if name not in values:
                values[name] = distributions.sample(q) if sample else distributions.mode(q)
        return Inference(values, posteriors)

    def draw(self, n: int, given: Values | None = None, temperature: float = 1.0) -> Values:
        """n ancestral draws, the levels `given` kept. Each level has noise of its own: fixing one changes no other's.

        `temperature` scales the standard deviations. NoPrior where a level has no distribution to draw from.
        """
        values: Values = dict(given or {})
        key = int(torch.randint(2**62, ()).item()) if len(self.levels) > 1 else None
        for level in self.levels:
            if level.name not in values:
                if key is not None:
                    devices.seed(key, level.name)
                values[level.name] = distributions.sample(self.p(level.name, values, n), temperature)
        if key is not None:
            devices.seed(key, "after")
        return values

    def draw_at(self, stage: str, n: int, temperature: float = 1.0) -> Values:
        """n draws of all levels from the prior that there was when a stage was over. ConfigError for a stage that had
        none of its own, NoPrior as `draw`."""
        if stage == self.stages[-1]:
            return self.draw(n, temperature=temperature)
        raise ConfigError(f"{self.config.name} has no prior of a stage {stage[:40]!r} to draw from")

    def condition(self, labels_BK: Tensor) -> Values:
        """What to keep in `draw` for images of given labels: the levels of labels, and whatever of the levels before
        them is inferred from labels alone (drawn). Labels of -1 are drawn from the prior. NoLabels if there are none.

        `labels_BK` are positions among a factor's values, in the order of the `factors` of the levels of labels.
        """
        raise NoLabels(f"{self.config.name} has no level of labels to ask for")

    def complete(self, values: Values) -> Values:
        """The values, and for levels that are missing the modes of their priors given those before them."""
        n = next(iter(values.values())).shape[0]  # len() of it would fix the batch of an exported model
        full: Values = {}
        for level in self.levels:
            known = values.get(level.name)
            full[level.name] = distributions.mode(self.p(level.name, full, n)) if known is None else known
        return full

    def rates(self, found: Inference) -> dict[str, Tensor]:
        """What each level inferred costs in nats along these values: KL(q || p) latent by latent, (B, *shape), where it
        has a closed form, else log q - log p of the value, (B,). Levels without a density are left out.

        Where a level above is inferred from this one (stages, bottom-up encoders) its prior was not there before its
        value: the divergence to that prior is not what the ELBO subtracts, and the log-ratio of the values is.
        """
        names = [level.name for level in self.levels]
        rates: dict[str, Tensor] = {}
        before: set[str] = set()
        for name, q in found.posteriors.items():
            upwards = any(above in found.posteriors.keys() - before for above in names[: names.index(name)])
            before.add(name)
            if isinstance(q, distributions.Point):
                continue
            value = found.values[name]
            p = self.p(name, found.values, value.shape[0])
            if upwards:
                rates[name] = distributions.log_prob(q, value) - distributions.log_prob(p, value)
            elif (rate := distributions.rate(q, p, value)) is not None:
                rates[name] = rate
        return rates

    # ---- the latents as a table

    @property
    def inferred(self) -> tuple[Level, ...]:
        return tuple(level for level in self.levels if level.inferred)

    def latent_names(self, levels: Sequence[Level] | None = None) -> list[str]:
        """Of the levels inferred, or those given: `z0 z1 ...` for a model of one level, else `level.0 level.1 ...`."""
        levels = self.inferred if levels is None else levels
        mark = "" if len(self.levels) == 1 else "."
        return [f"{level.name}{mark}{d}" for level in levels for d in range(level.size)]

    def flatten(self, values: Values, levels: Sequence[Level] | None = None) -> Tensor:
        """(B, D): the levels inferred, or those given, side by side."""
        levels = self.inferred if levels is None else levels
        parts = [values[level.name].flatten(1) for level in levels]
        return parts[0] if len(parts) == 1 else torch.cat([part.to(torch.float32) for part in parts], dim=1)

    def unflatten(self, z_BD: Tensor) -> Values:
        """The inverse, of all levels or of those inferred, as the number of columns says."""
        whole = z_BD.shape[1] == sum(level.size for level in self.levels)
        values: Values = {}
        for level in self.levels if whole else self.inferred:
            part, z_BD = z_BD[:, : level.size], z_BD[:, level.size :]
            if level.kind == "codes":
                part = part.round().long().clamp(0, level.sizes[0] - 1)
            values[level.name] = part.reshape(part.shape[0], *level.shape)
        return values

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        """q(z|x) of all latents inferred, a function of each image alone."""
        found = self.infer(x_BCHW)
        means, variances, rates = [], [], self.rates(found)
        for level in self.inferred:
            q = found.posteriors[level.name]
            if level.kind == "codes":
                means.append(found.values[level.name].flatten(1).float())
                continue
            mean, variance = distributions.moments(q)
            means.append(mean.flatten(1))
            if variance is not None:
                exact = q.logvar if isinstance(q, distributions.Gaussian) else variance.clamp(min=1e-12).log()
                variances.append(exact.flatten(1))
        per_latent = [
            rates[level.name].flatten(1)
            for level in self.inferred
            if level.name in rates and rates[level.name].dim() > 1 and level.kind == "gaussian"
        ]
        return Posterior(
            torch.cat(means, dim=1),
            torch.cat(variances, dim=1) if len(variances) == len(means) else None,
            torch.cat(per_latent, dim=1) if len(per_latent) == len(means) else None,
        )

    def decode(self, z_BD: Tensor) -> Tensor:
        """The expected image E[x|z], (B, C, H, W); noise that is not in the table stands at its prior's mode."""
        return self.image(self.complete(self.unflatten(z_BD)))

    def nll(self, x_BCHW: Tensor, z_BD: Tensor, hyper: Hyper) -> Tensor:
        """-log p(x|z) in nats, (B,), of a model with a likelihood."""
        found = self.log_prob(x_BCHW, self.complete(self.unflatten(z_BD)), hyper)
        assert found is not None, f"{self.config.name} has no likelihood"
        return -found

    def facts(self) -> dict[str, float]:
        """Numbers that the model knows of itself, for `analyze`: of a fit, over the images it is of."""
        return {}

    @property
    def standard_prior(self) -> bool:
        """Whether all there is is one level under N(0, I): what the variance law and tests of moments speak of."""
        return len(self.levels) == 1 and self.levels[0].standard

    @property
    def device(self) -> torch.device:
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")


def total(parts: Mapping[str, Term]) -> tuple[Tensor, dict[str, Tensor | float]]:
    """What is minimised, the sum of weight * mean over the terms, and all that is logged: it, the means as they are,
    and as `NAME.weight` what each weighs."""
    loss: Tensor | None = None
    logged: dict[str, Tensor | float] = {}
    for name, term in parts.items():
        mean = term.value if term.value.dim() == 0 else term.value.mean()
        logged[name] = mean
        if term.weight is None:
            continue
        logged[f"{name}.weight"] = term.weight
        part = mean if isinstance(term.weight, (int, float)) and term.weight == 1 else term.weight * mean
        loss = part if loss is None else loss + part
    assert loss is not None, "an objective needs a term that weighs something"
    return loss, {"loss": loss, **logged}


class NetConfig(ModelConfig):
    """The section of models made of one named net, one group of latents and a likelihood.

    `output_bias`: `data` starts the decoder's last bias at the mean training image, so that the first steps are not
    spent on it (nor Adagrad's step sizes used up by it); `default` leaves the net's own start. `auto` is `data` for
    outputs that are logits, else `default`: where the output is the image itself, errors around the mean image are
    noise at first, Adam's equal steps overshoot, and what comes back kills rectified units: on MNIST with two layers of
    400 every latent collapsed for good.
    """

    tiny: ClassVar[dict[str, Any]] = {"latent_dim": 3, "net": {"name": "mlp", "hidden": [16]}}
    latent_dim: Width = 10
    likelihood: likelihoods.LikelihoodConfig = likelihoods.AutoConfig()
    net: coders.NetConfig = coders.AutoConfig()
    output_bias: Literal["auto", "data", "default"] = "auto"


class FreeBitsConfig(NetConfig):
    """The section of models whose objective has a KL of their latents in it.

    `free_bits`: so many nats of each latent's KL, in the mean of a batch, cost the same whether they are used or not.
    """

    free_bits: Weight = 0.0


class HasFreeBits(Protocol):
    """A section with free bits, of whatever kind."""

    @property
    def free_bits(self) -> Weight: ...


def kl_terms(config: HasFreeBits, kl_BD: Tensor, hyper: Hyper, weight: float = 1.0) -> dict[str, Term]:
    """The KL as a term of an objective, `kl`; with free bits that is logged alone, as it is and as it counts in the
    ELBO, and what is minimised is `kl_free`."""
    kl = kl_BD.sum(dim=1).mean()
    if schedules.highest(config.free_bits) <= 0:  # an estimate below 0 is to count as such
        return {"kl": Term(kl, weight)}
    return {"kl": Term(kl, None), "kl_free": Term(terms.free_bits(kl_BD, hyper["free_bits"]), weight)}


def unless_free(hyper: Hyper, weight: float) -> float | None:
    """The weight of the KL; None where some of it is free."""
    return None if hyper.get("free_bits", 0.0) > 0 else weight


def kl_text(hyper: Hyper, each: str = " over the latents") -> str:
    """The KL in an objective's text; `each` says what free bits are counted over."""
    free = hyper.get("free_bits", 0.0)
    return f"{'sum of ' if each else ''}max({free:.4g}, KL){each}" if free > 0 else "KL"


class NetModel(Model):
    """Encoder, decoder and likelihood by name; `outputs_per_latent` numbers of the encoder describe one latent."""

    config: NetConfig
    outputs_per_latent: ClassVar[int] = 1

    def __init__(self, config: NetConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), "point"),)
        n_out = self.outputs_per_latent * config.latent_dim
        self.encoder, self.decoder = coders.build(config.net, info.shape, n_out, config.latent_dim)
        self.likelihood = likelihoods.build(config.likelihood, info.binary, info.contrast)

    def begin(self, train: Split) -> None:
        bias = self.config.output_bias
        if bias == "data" or (bias == "auto" and self.likelihood.logits):
            # A training split is in random order: its first images are a fair sample.
            sums, seen = torch.zeros(self.info.shape, dtype=torch.float64), 0
            for batch in train.batches(256):
                sums += batch.x_BCHW.cpu().double().sum(dim=0)
                seen += len(batch.x_BCHW)
                if seen >= 10_000:
                    break
            coders.set_output_bias(self.decoder, self.likelihood.raw(sums / seen))

    def out(self, z_BD: Tensor) -> Tensor:
        """The decoder's raw output, which the likelihood reads, (B, C, H, W)."""
        return self.network(self.decoder, z_BD)

    def facts(self) -> dict[str, float]:
        sigma = getattr(self.likelihood, "log_sigma", None)
        variance = getattr(self.likelihood, "variance", None) if sigma is None else (2 * sigma.detach()).exp()
        return {} if variance is None else {"noise_variance": float(variance)}

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(values["z"]))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(values["z"]), hyper)


class GaussianVAE(NetModel):
    """q(z|x) = N(mean, diag exp(logvar)), p(z) = N(0, I); minimises recon + `penalty` (Kingma & Welling 2014).

    A model built on it overrides `penalty` (what is added to the reconstruction) and `objective_text`.
    """

    outputs_per_latent = 2

    def __init__(self, config: NetConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        self.levels = (Level("z", (config.latent_dim,), standard=True),)

    def features(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, logvar) of q(z|x), (B, D) each."""
        mean_BD, logvar_BD = self.network(self.encoder, x_BCHW).chunk(2, dim=1)
        return mean_BD, terms.clamp_logvar(logvar_BD)

    def q(self, level: str, features: tuple[Tensor, Tensor], given: Values) -> Distribution:
        return distributions.Gaussian(*features)

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        """The terms added to the reconstruction, by the name under which they are logged; `kl` is logged anyway."""
        raise NotImplementedError

    # Training and the flat table, without a detour through distributions.

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        mean_BD, logvar_BD = self.features(x_BCHW)
        return Posterior(mean_BD, logvar_BD, terms.kl_normal(mean_BD, logvar_BD))

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        q = self.posterior(batch.x_BCHW)
        assert q.logvar_BD is not None and q.kl_BD is not None
        z_BD = terms.reparameterize(q.mean_BD, q.logvar_BD)
        recon = -self.likelihood.log_prob(batch.x_BCHW, self.out(z_BD), hyper).mean()
        kl = q.kl_BD.sum(dim=1).mean()
        return {
            "recon": Term(recon),
            "kl": Term(kl, None),
            **self.penalty(q, z_BD, hyper),
            "elbo": Term(-(recon + kl), None),
        }
