"""Encoders and decoders, chosen by `net:` in a model's section.

An encoder maps images (B, C, H, W) in [0, 1] to (B, n_out); a decoder maps latents (B, D) to raw outputs (B, C, H, W),
which the likelihood reads as logits or means. Where a paper's table is the source the layers are exactly that table's;
weights start as PyTorch's defaults unless stated.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from vaecli.errors import ConfigError
from vaecli.nets import conv, semafo
from vaecli.nets.conv import RESIZE
from vaecli.settings.section import Section, Width

Shape = tuple[int, int, int]  # C, H, W
Pair = tuple[nn.Sequential, nn.Sequential]  # encoder, decoder


class AutoConfig(Section):
    """The net that fits the images: `conv` where a side has 32 pixels or more, else `mlp`; see `chosen`."""

    name: Literal["auto"] = "auto"


class HigginsFcConfig(Section):
    """The fully connected net of Higgins et al. 2017, table 1, made for 64x64x1; other sizes are flattened alike."""

    name: Literal["higgins-fc"] = "higgins-fc"


class BurgessConfig(Section):
    """The convolutional net of Burgess et al. 2018 for 64x64, and for 32x32 with one layer less at each end."""

    name: Literal["burgess"] = "burgess"


class LocatelloConfig(Section):
    """The convolutional net of Locatello et al. 2019 (disentanglement_lib) for 64x64, with its Glorot-uniform start."""

    name: Literal["locatello"] = "locatello"


class KerasConfig(Section):
    """The convolutional net of Keras' VAE example for 28x28, with its Glorot-uniform start; sides divisible by 4."""

    name: Literal["keras"] = "keras"


class MlpConfig(Section):
    """Fully connected layers for any size: `hidden` widths, reversed in the decoder; none gives a linear model.

    `leaky-relu` has slope 0.2.
    """

    name: Literal["mlp"] = "mlp"
    hidden: list[Width] = Field(default=[400, 400], max_length=64)
    activation: Literal["relu", "tanh", "elu", "silu", "leaky-relu", "softplus"] = "relu"


class PoolingConfig(Section):
    """The net of DC-IGN (Kulkarni et al. 2015, figure 1), with the kernels and widths that Higgins et al. 2017 give it
    for 2D shapes (table 1): 3x3 convolutions, each followed by 2x2 pooling and ReLU; the decoder resizes to twice the
    size before each.

    `widths` are the encoder's channels, reversed in the decoder. Sides must be multiples of 2 for each of them.
    """

    name: Literal["pooling"] = "pooling"
    widths: list[Width] = Field(default=[96, 48, 48], min_length=1, max_length=8)


class ResnetConfig(Section):
    """Residual convolutions for any size, square or not.

    Each level halves the image (rounding up) until no side exceeds 4. Levels with a side of more than `blocks_up_to`
    are strided convolutions alone; from there on each has so many residual `blocks`. `width` is the channels of the
    first level that has some, doubled at each of the next three.
    """

    name: Literal["resnet"] = "resnet"
    width: Annotated[int, Field(gt=0, le=1024)] = 24
    blocks: Annotated[int, Field(gt=0, le=16)] = 1
    blocks_up_to: Annotated[int, Field(ge=4, le=8192)] = 16


def _expand(value: Any) -> Any:
    """`burgess` for `{name: burgess}`, an `mlp` for settings that it alone has, and `higgins` as the field says it."""
    if isinstance(value, dict) and value and value.keys() <= MlpConfig.model_fields.keys() - {"name"}:
        return {"name": "mlp", **value}
    if isinstance(value, str):
        value = {"name": value}
    return {**value, "name": "higgins-fc"} if isinstance(value, dict) and value.get("name") == "higgins" else value


NetConfig = Annotated[
    AutoConfig
    | HigginsFcConfig
    | BurgessConfig
    | LocatelloConfig
    | KerasConfig
    | MlpConfig
    | conv.ConvConfig
    | PoolingConfig
    | ResnetConfig
    | semafo.SemafoConfig,
    Field(discriminator="name"),
    BeforeValidator(_expand),
]


BIG = 32  # pixels of a side from which on a net of convolutions is chosen


def chosen(shape: Shape) -> tuple[MlpConfig | conv.ConvConfig, str]:
    """The net for images of this shape where none is asked for, and why."""
    size = f"{shape[1]}x{shape[2]}"
    if max(shape[1:]) < BIG:
        return MlpConfig(), f"net mlp: images of {size} are small enough to be seen as vectors of pixels"
    if not conv.takes(shape):
        few = f"sides of {conv.SMALLEST} to {conv.LARGEST} pixels and {conv.CHANNELS} channels at most"
        return MlpConfig(), f"net mlp: conv takes {few}, and the images are {shape[0]}x{size}"
    return conv.ConvConfig(), f"net conv: images of {size} are too large to be seen as vectors of pixels, as mlp does"


def build(config: NetConfig, shape: Shape, n_out: int, latent_dim: int) -> Pair:
    """Encoder and decoder with fresh parameters from torch's global generator; ConfigError where the size is wrong."""
    if isinstance(config, AutoConfig):
        config = chosen(shape)[0]
    if isinstance(config, HigginsFcConfig):
        return _higgins_fc(shape, n_out, latent_dim)
    if isinstance(config, BurgessConfig):
        _check_size(config.name, shape, 64, 32)
        return _burgess(shape, n_out, latent_dim)
    if isinstance(config, LocatelloConfig):
        _check_size(config.name, shape, 64)
        return _locatello(shape, n_out, latent_dim)
    if isinstance(config, KerasConfig):
        return _keras(shape, n_out, latent_dim)
    if isinstance(config, MlpConfig):
        return _mlp(config, shape, n_out, latent_dim)
    if isinstance(config, conv.ConvConfig):
        return conv.build(config, shape, n_out, latent_dim)
    if isinstance(config, semafo.SemafoConfig):
        return semafo.build(config, shape, n_out, latent_dim)
    if isinstance(config, PoolingConfig):
        return _pooling(config, shape, n_out, latent_dim)
    return _resnet(config, shape, n_out, latent_dim)


def _check_size(name: str, shape: Shape, *sides: int) -> None:
    _, height, width = shape
    if height != width or height not in sides:
        wanted = " or ".join(f"{side}x{side}" for side in sides)
        raise ConfigError(
            f"net {name!r} takes images of {wanted} pixels, but the data has {height}x{width}",
            hint=f"set model.net to conv, mlp or resnet, or resize the images to {sides[0]}{RESIZE}",
        )


def _values(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _dense(widths: list[int], activation: nn.Module) -> list[nn.Module]:
    """Linear layers through `widths`, the activation (it has no state) after each."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation]
    return layers


def _convolutions(channels: list[int], kernel: int) -> list[nn.Module]:
    """Halvings with ReLU; the padding is TensorFlow's "same" for kernels 2 and 4 and even sides."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(channels):
        layers += [nn.Conv2d(n_in, n_out, kernel, stride=2, padding=(kernel - 2) // 2), nn.ReLU()]
    return layers


def _deconvolutions(channels: list[int]) -> list[nn.Module]:
    """Doublings with 4x4 kernels, ReLU between them and nothing after the last."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(channels):
        layers += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
    return layers[:-1]


def _higgins_fc(shape: Shape, n_out: int, latent_dim: int) -> Pair:
    values = _values(shape)
    encoder = [nn.Flatten(), *_dense([values, 1200, 1200], nn.ReLU()), nn.Linear(1200, n_out)]
    decoder = [*_dense([latent_dim, 1200, 1200, 1200], nn.Tanh()), nn.Linear(1200, values), nn.Unflatten(1, shape)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def _burgess(shape: Shape, n_out: int, latent_dim: int) -> Pair:
    hidden = [32] * (4 if shape[1] == 64 else 3)
    encoder = [*_convolutions([shape[0], *hidden], 4), nn.Flatten(), *_dense([512, 256, 256], nn.ReLU())]
    decoder = [*_dense([latent_dim, 256, 256, 512], nn.ReLU()), nn.Unflatten(1, (32, 4, 4))]
    decoder += _deconvolutions([*hidden, shape[0]])
    return nn.Sequential(*encoder, nn.Linear(256, n_out)), nn.Sequential(*decoder)


def _locatello(shape: Shape, n_out: int, latent_dim: int) -> Pair:
    head = nn.Linear(256, n_out)
    encoder = nn.Sequential(
        *_convolutions([shape[0], 32, 32], 4),
        *_convolutions([32, 64, 64], 2),
        nn.Flatten(),
        *_dense([1024, 256], nn.ReLU()),
        head,
    )
    decoder = nn.Sequential(
        *_dense([latent_dim, 256, 1024], nn.ReLU()),
        nn.Unflatten(1, (64, 4, 4)),
        *_deconvolutions([64, 64, 32, 32, shape[0]]),
    )
    _glorot(encoder, decoder, head, n_out // latent_dim)
    return encoder, decoder


def _glorot(encoder: nn.Sequential, decoder: nn.Sequential, head: nn.Linear, parts: int) -> None:
    """Glorot-uniform weights and biases of 0."""
    for layer in (*encoder, *decoder):
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    # The originals have a layer each for means and log-variances, and Glorot's range depends on a layer's outputs.
    for part in head.weight.data.chunk(max(1, parts)):
        nn.init.xavier_uniform_(part)


def _keras(shape: Shape, n_out: int, latent_dim: int) -> Pair:
    channels, height, width = shape
    if height % 4 or width % 4:
        raise ConfigError(
            f"net 'keras' halves images twice, but the data has {height}x{width}",
            hint=f"set model.net to conv, mlp or resnet, or resize the images to 28{RESIZE}",
        )
    inner = (64, height // 4, width // 4)
    head = nn.Linear(16, n_out)
    same = nn.ZeroPad2d((0, 1, 0, 1))  # TensorFlow's "same" of kernel 3 and stride 2 for even sides
    encoder = nn.Sequential(
        *(same, nn.Conv2d(channels, 32, 3, stride=2), nn.ReLU()),
        *(same, nn.Conv2d(32, 64, 3, stride=2), nn.ReLU()),
        nn.Flatten(),
        *_dense([_values(inner), 16], nn.ReLU()),
        head,
    )
    decoder = nn.Sequential(
        *_dense([latent_dim, _values(inner)], nn.ReLU()),
        nn.Unflatten(1, inner),
        *(nn.ConvTranspose2d(64, 64, 3, stride=2, padding=1, output_padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1), nn.ReLU()),
        nn.ConvTranspose2d(32, channels, 3, padding=1),
    )
    _glorot(encoder, decoder, head, n_out // latent_dim)
    return encoder, decoder


_ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "tanh": nn.Tanh(),
    "elu": nn.ELU(),
    "silu": nn.SiLU(),
    "leaky-relu": nn.LeakyReLU(0.2),
    "softplus": nn.Softplus(),
}


def _mlp(config: MlpConfig, shape: Shape, n_out: int, latent_dim: int) -> Pair:
    up, down = [_values(shape), *config.hidden], [latent_dim, *reversed(config.hidden)]
    activation = _ACTIVATIONS[config.activation]
    encoder = [nn.Flatten(), *_dense(up, activation), nn.Linear(up[-1], n_out)]
    decoder = [*_dense(down, activation), nn.Linear(down[-1], _values(shape)), nn.Unflatten(1, shape)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def _pooling(config: PoolingConfig, shape: Shape, n_out: int, latent_dim: int) -> Pair:
    channels, height, width = shape
    smallest = 2 ** len(config.widths)
    if height % smallest or width % smallest:
        raise ConfigError(
            f"net 'pooling' halves images {len(config.widths)} times, but the data has {height}x{width}",
            hint=f"resize the images to a multiple of {smallest}{RESIZE}, or set model.net to conv, mlp or resnet",
        )
    inner = (config.widths[-1], height // smallest, width // smallest)
    encoder: list[nn.Module] = []
    for n_in, n_maps in pairwise([channels, *config.widths]):
        encoder += [nn.Conv2d(n_in, n_maps, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
    decoder: list[nn.Module] = [nn.Linear(latent_dim, _values(inner)), nn.ReLU(), nn.Unflatten(1, inner)]
    for n_in, n_maps in pairwise([*reversed(config.widths), channels]):
        decoder += [nn.Upsample(scale_factor=2), nn.Conv2d(n_in, n_maps, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*encoder, nn.Flatten(), nn.Linear(_values(inner), n_out)), nn.Sequential(*decoder[:-1])


class _Block(nn.Module):
    """x + conv(act(conv(act(x)))): pre-activation (He et al. 2016), without norms, which would tie images together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = x_BCHW + self.outer(F.silu(self.inner(F.silu(x_BCHW))))
        return out


def _resnet(config: ResnetConfig, shape: Shape, n_out: int, latent_dim: int) -> Pair:
    sizes = [shape[1:]]
    while max(sizes[-1]) > 4:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    lowered = sum(max(size) > config.blocks_up_to for size in sizes)
    sizes = sizes[lowered:]
    widths = [config.width * 2 ** min(level, 3) for level in range(len(sizes))]
    inner = (widths[-1], *sizes[-1])

    def blocks(level: int) -> list[nn.Module]:
        return [_Block(widths[level]) for _ in range(config.blocks)]

    encoder, end = _lowering(shape, widths[0], lowered)
    encoder += blocks(0)
    for level in range(1, len(sizes)):
        encoder += [nn.Conv2d(widths[level - 1], widths[level], 3, stride=2, padding=1), *blocks(level)]
    encoder += [nn.SiLU(), nn.Flatten(), nn.Linear(_values(inner), n_out)]

    decoder: list[nn.Module] = [nn.Linear(latent_dim, _values(inner)), nn.Unflatten(1, inner), *blocks(len(sizes) - 1)]
    for level in range(len(sizes) - 2, -1, -1):
        # Resizing to the encoder's recorded size is what lets odd sides through.
        decoder += [nn.Upsample(size=sizes[level]), nn.Conv2d(widths[level + 1], widths[level], 3, padding=1)]
        decoder += blocks(level)
    return nn.Sequential(*encoder), nn.Sequential(*decoder, nn.SiLU(), *end)


def _lowering(shape: Shape, width: int, halvings: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """From an image to `width` maps of a size so often halved, and the way back."""
    if not halvings:
        return [nn.Conv2d(shape[0], width, 3, padding=1)], [nn.Conv2d(width, shape[0], 3, padding=1)]
    widths = [shape[0], *[max(min(16, width), width // 2)] * (halvings - 1), width]
    down, up = conv.halving(widths), conv.doubling(widths[::-1])
    for layer in (*down, *up[:-1]):
        conv.he_normal(layer)
    conv.start_as_enlargement(up)
    frame = [conv.Frame(*shape[1:], halvings, off=off) for off in (False, True)]
    return [frame[0], *down], [*up, frame[1]]


def set_output_bias(decoder: nn.Module, raw_CHW: Tensor) -> None:
    """Let an untrained decoder put out `raw_CHW` on average: per value where its last layer has a bias for each, else
    per channel.
    """
    layers = [m for m in decoder.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
    bias = layers[-1].bias
    if bias is not None:
        with torch.no_grad():
            bias.copy_(raw_CHW.flatten() if bias.numel() == raw_CHW.numel() else raw_CHW.mean(dim=(1, 2)))
