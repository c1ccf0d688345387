"""VQ-VAE: discrete latents, each the nearest entry of a learned codebook.

van den Oord et al. 2017, "Neural Discrete Representation Learning", eq. 3:
loss = -log p(x|e) + |sg[z] - e|^2 + commitment |z - sg[e]|^2, sg a stopped gradient, z = encoder(x), e the entry
nearest to it at every position. Distances are summed over the positions, as -log p is over the pixels, so that their
ratio is the same for images of any size (section 3.2 has means of both). Under the uniform prior of training
KL(q(z|x) || p(z)) is log K a position whatever the weights, and so no part of what is minimised.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.batch import Batch, DataInfo, Split
from vaecli.data.orders import generator
from vaecli.models.base import Hyper, Level, ModelConfig, Term, Values
from vaecli.models.base import Model as Base
from vaecli.nets import coders, conv
from vaecli.nets.codebook import Codebook, perplexity, straight_through
from vaecli.objectives import distributions, likelihoods
from vaecli.settings.schedules import Weight
from vaecli.settings.section import Count, Fraction, Positive, Section, Width

SAMPLE = 1024  # images that tell where the mean lies, and whose vectors take the place of dead entries


class SpatialConfig(Section):
    """The paper's convolutions: the image halved twice, then residual blocks; one code for every 4x4 pixels.

    `width` is the channels inside (256 in the paper), `blocks` the residual blocks at either end.
    """

    name: Literal["spatial"] = "spatial"
    width: Annotated[int, Field(gt=1, le=1024)] = 64
    blocks: Annotated[int, Field(ge=0, le=16)] = 2


class Config(ModelConfig):
    """`codes` entries of `code_dim` numbers each.

    `net`            `spatial`: a code for every 4x4 pixels; any other: `positions` codes of the whole image.
    `codebook`       `ema`: entries are moving averages (`decay`, `epsilon`); `loss`: they follow their own term.
    `restart_every`  steps after which entries that no image chose meanwhile are put at an encoder's output; at step 0
                     all of them are. 0: never.
    """

    tiny: ClassVar[dict[str, Any]] = {"net": {"name": "spatial", "width": 8}, "codes": 8, "code_dim": 4}
    name: Literal["vq-vae"] = "vq-vae"
    codes: Annotated[int, Field(gt=1, le=65_536)] = 512
    code_dim: Width = 64
    positions: Width | None = None
    commitment: Weight = 0.25
    codebook: Literal["ema", "loss"] = "ema"
    decay: Fraction = 0.99
    epsilon: Positive = 1e-5
    restart_every: Count = 100
    likelihood: likelihoods.LikelihoodConfig = likelihoods.AutoConfig()
    net: Annotated[
        SpatialConfig
        | coders.HigginsFcConfig
        | coders.BurgessConfig
        | coders.LocatelloConfig
        | coders.KerasConfig
        | coders.MlpConfig
        | conv.ConvConfig
        | coders.PoolingConfig
        | coders.ResnetConfig,
        Field(discriminator="name"),
        BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
    ] = SpatialConfig()

    @model_validator(mode="after")
    def _positions(self) -> "Config":
        spatial = isinstance(self.net, SpatialConfig)
        if spatial and self.positions is not None:
            raise ValueError("the net `spatial` has as many positions as 4x4 pixels; leave `positions` out")
        if not spatial and self.positions is None:
            raise ValueError(f"the net `{self.net.name}` describes the whole image: give `positions`")
        return self


class Model(Base):
    """q(z|x) has all its mass on one code a position."""

    config: Config
    batch_dependent = True  # how many codes a batch uses

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        shape: tuple[int, ...]
        if isinstance(config.net, SpatialConfig):
            shape, self.encoder, self.decoder = _spatial(config.net, info.shape, config.code_dim)
        else:
            assert config.positions is not None
            shape, numbers = (config.positions,), config.positions * config.code_dim
            encoder, decoder = coders.build(config.net, info.shape, numbers, numbers)
            self.encoder = nn.Sequential(*encoder, nn.Unflatten(1, (config.positions, config.code_dim)))
            self.decoder = nn.Sequential(nn.Flatten(), *decoder)
        self.levels = (Level("z", shape, "codes", sizes=(config.codes,)),)
        self.codebook = Codebook(config.codes, config.code_dim, config.codebook == "ema", config.decay, config.epsilon)
        self.likelihood = likelihoods.build(config.likelihood, info.binary, info.contrast)

    def begin(self, train: Split) -> None:
        first = next(iter(train.batches(SAMPLE)))
        coders.set_output_bias(self.decoder, self.likelihood.raw(first.x_BCHW.mean(dim=0)))

    # ---- the distributions

    def features(self, x_BCHW: Tensor) -> Tensor:
        """The encoder's vectors, (B, positions, code_dim)."""
        return self.network(self.encoder, x_BCHW)

    def q(self, level: str, features: Tensor, given: Values) -> Distribution:
        return distributions.Indices(self.codebook.nearest(features), self.config.codes)

    def p(self, level: str, given: Values, n: int) -> Distribution:
        return distributions.UniformIndices((n, *self.levels[0].shape), self.config.codes, self.device)

    def out(self, code: Tensor) -> Tensor:
        """The decoder's raw output, which the likelihood reads, (B, C, H, W)."""
        return self.network(self.decoder, code)

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(self.codebook.look_up(values["z"])))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(self.codebook.look_up(values["z"])), hyper)

    # ---- training

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        z = self.features(batch.x_BCHW)
        index = self.codebook.nearest(z)
        code = self.codebook.look_up(index)
        recon = -self.likelihood.log_prob(batch.x_BCHW, self.out(straight_through(z, code)), hyper).mean()
        distances = {"commitment": Term(_distance(z, code.detach()), hyper["commitment"], "squared distance")}
        if self.config.codebook == "loss":
            distances["codebook"] = Term(_distance(z.detach(), code), 1.0, "squared distance")
        kl = distributions.rate(self.q("z", z, {}), self.p("z", {}, len(z)), index)
        assert kl is not None
        kl = kl.flatten(1).sum(dim=1).mean()
        counts_K = self.codebook.counts(index)
        if self.training:
            self.codebook.learn(z, index)
        return {
            "recon": Term(recon),
            **distances,
            "kl": Term(kl, None),
            "elbo": Term(-(recon + kl), None),
            "usage": Term((counts_K > 0).sum().to(recon.dtype), None, "codes"),
            "perplexity": Term(perplexity(counts_K), None, "codes"),
        }

    def due(self, step: int, stage: str = "main") -> bool:
        return self.config.restart_every > 0 and step % self.config.restart_every == 0

    def prepare(self, step: int, stage: str, train: Split) -> None:
        x_BCHW = next(iter(train.batches(SAMPLE))).x_BCHW.to(self.device)  # in random order: a fair sample
        with torch.no_grad():
            # Not `features`, whose precision depends on what was done before.
            z_NC = torch.cat([self.encoder(part).flatten(0, -2) for part in torch.split(x_BCHW, 128)])
        self.codebook.restart(z_NC, generator("codebook", step))

    def objective_text(self, hyper: Hyper) -> str:
        own = "|sg[z] - e|^2 + " if self.config.codebook == "loss" else ""
        weight = f"commitment = {hyper['commitment']:.4g}"
        how = "entries as moving averages; " if self.config.codebook == "ema" else ""
        objective = f"minimise recon + {own}commitment |z - sg[e]|^2; {weight}"
        return f"{objective}; {how}{self.likelihood.text(hyper)}; nats, sum over pixels, mean over the batch"


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 summed over positions, its mean over the batch."""
    return (a - b).square().flatten(1).sum(dim=1).mean()


class _Block(nn.Module):
    """x + conv1(relu(conv3(relu(x)))), section 4.1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = x_BCHW + self.outer(torch.relu(self.inner(torch.relu(x_BCHW))))
        return out


class _Last(nn.Module):
    """Channels first to channels last, or back."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.source, self.target)


def _spatial(
    config: SpatialConfig, image: coders.Shape, code_dim: int
) -> tuple[tuple[int, int], nn.Sequential, nn.Sequential]:
    """Positions (h, w), encoder (B, C, H, W) -> (B, h, w, code_dim) and decoder back, as in section 4.1.

    Sides that are no multiples of 4 are filled up with black, which the decoder cuts off again.
    """
    channels, height, width = image
    h, w = (height + 3) // 4, (width + 3) // 4
    down, right = 4 * h - height, 4 * w - width
    n = config.width
    encoder = nn.Sequential(
        nn.ConstantPad2d((0, right, 0, down), 0.0),
        nn.Conv2d(channels, n // 2, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(n // 2, n, 4, stride=2, padding=1),
        *(_Block(n) for _ in range(config.blocks)),
        nn.ReLU(),
        nn.Conv2d(n, code_dim, 1),
        _Last(1, -1),
    )
    decoder = nn.Sequential(
        _Last(-1, 1),
        nn.Conv2d(code_dim, n, 3, padding=1),
        *(_Block(n) for _ in range(config.blocks)),
        nn.ReLU(),
        nn.ConvTranspose2d(n, n // 2, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(n // 2, channels, 4, stride=2, padding=1),
        nn.ConstantPad2d((0, -right, 0, -down), 0.0),
    )
    return (h, w), encoder, decoder
