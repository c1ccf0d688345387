"""Strided convolutions for images of any size, square or not: no more than what the fast kernels run in one call.

Kernels of 4 at stride 2 with ReLU, as in Burgess et al. 2018, as often as it takes until the shorter side has no more
than 7 positions, then one dense layer; the decoder is its mirror. Sides that do not halve so often are padded with
zeros around the middle, which the decoder cuts off again. Weights start He-normal (He et al. 2015) by the inputs that
reach an output, so that signals neither fade nor grow on the way through seven levels, and transposed kernels start as
an enlargement, without the checkerboards that it takes long to unlearn.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vaecli.errors import ConfigError
from vaecli.settings.section import Section, Width

RESIZE = " pixels (data.image_size, of data sets that have it)"  # how images get a side that a net takes

Shape = tuple[int, int, int]  # C, H, W

SMALLEST, LARGEST, CHANNELS = 16, 512, 16  # pixels of a side and channels that it takes
GRID = 7  # positions of the shorter side at which halving ends


class ConvConfig(Section):
    """Strided convolutions for sides of 16 to 512 pixels and 1 to 16 channels, square or not; depth by the size.

    `width` is the channels of the two deepest levels, half of it those of the two before and a quarter those of the
    rest, no fewer than 16: multiples of 16 are the fast ones. `dense` is the dense layer's units.
    """

    name: Literal["conv"] = "conv"
    width: Annotated[int, Field(gt=0, le=1024)] = 64
    dense: Width = 256


def takes(shape: Shape) -> bool:
    """Whether images of this shape are among those that the net is for."""
    channels, *sides = shape
    return channels <= CHANNELS and min(sides) >= SMALLEST and max(sides) <= LARGEST


def halvings(height: int, width: int) -> int:
    """How often an image is halved, rounding up, until its shorter side has no more than `GRID` positions."""
    return max(0, math.ceil(math.log2(min(height, width) / GRID)))


def channels(config: ConvConfig, levels: int) -> list[int]:
    """Of each level, the largest first."""
    return [max(min(16, config.width), config.width // 2 ** min(depth // 2, 2)) for depth in reversed(range(levels))]


class Frame(nn.ZeroPad2d):
    """Zeros around an image until its sides are multiples of 2^halvings; with `off` the way back."""

    def __init__(self, height: int, width: int, halvings: int, off: bool = False) -> None:
        borders: list[int] = []
        for side in (width, height):
            missing = -side % 2**halvings
            borders += [missing // 2, missing - missing // 2]
        super().__init__(tuple(-border for border in borders) if off else tuple(borders))  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not any(self.padding):
            return x_BCHW
        return functional.pad(x_BCHW, list(self.padding))


def build(config: ConvConfig, shape: Shape, n_out: int, latent_dim: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder (B, C, H, W) -> (B, n_out) and decoder (B, latent_dim) -> (B, C, H, W).

    The layers at both ends, to the latents' numbers and to pixels, have PyTorch's own, smaller start. ConfigError
    where an image is too small, too large or of too many channels.
    """
    if not takes(shape):
        raise ConfigError(
            f"net 'conv' takes sides of {SMALLEST} to {LARGEST} pixels and 1 to {CHANNELS} channels, but the data has "
            f"{shape[1]}x{shape[2]} with {shape[0]}",
            f"set model.net to mlp or resnet, or resize the images to 64{RESIZE}",
        )
    _, height, width = shape
    levels = halvings(height, width)
    widths = channels(config, levels)
    inner = (widths[-1], math.ceil(height / 2**levels), math.ceil(width / 2**levels))

    encoder: list[nn.Module] = [Frame(height, width, levels), *halving([shape[0], *widths]), nn.ReLU(), nn.Flatten()]
    encoder += [nn.Linear(math.prod(inner), config.dense), nn.ReLU()]
    decoder: list[nn.Module] = [nn.Linear(latent_dim, config.dense), nn.ReLU()]
    decoder += [nn.Linear(config.dense, math.prod(inner)), nn.ReLU(), nn.Unflatten(1, inner)]
    decoder += doubling([*reversed(widths), shape[0]])
    for layer in (*encoder, *decoder[:-1]):
        he_normal(layer)
    start_as_enlargement(decoder)
    head = nn.Linear(config.dense, n_out)
    return nn.Sequential(*encoder, head), nn.Sequential(*decoder, Frame(height, width, levels, off=True))


def halving(widths: list[int]) -> list[nn.Module]:
    """Convolutions that halve, with ReLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
    return layers[:-1]


def doubling(widths: list[int]) -> list[nn.Module]:
    """Transposed convolutions that double, with ReLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
    return layers[:-1]


def start_as_enlargement(layers: list[nn.Module]) -> None:
    """Let the four pixels that transposed convolutions make of the same 2x2 inputs start alike, whatever the weights:
    they are then the nearest-neighbour enlargement of a convolution (Aitken et al. 2017, "Checkerboard artifact free
    sub-pixel convolution", section 3).

    Output 2u - 1 + r (r = 0, 1) sees the inputs u - 1 and u through the kernel's rows 2 + r and r.
    """
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose2d):
            with torch.no_grad():
                half = layer.weight[:, :, ::2, ::2]
                layer.weight.copy_(half.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def he_normal(layer: nn.Module) -> None:
    """Weights of variance 2 / (inputs that reach an output), biases of 0; layers without weights are left alone."""
    if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        return
    reaching = layer.weight[0].numel()
    if isinstance(layer, nn.ConvTranspose2d):  # a quarter of the kernel, from every channel
        reaching = len(layer.weight) * math.prod(layer.kernel_size) // math.prod(layer.stride)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / reaching))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


__all__ = [
    "ConvConfig",
    "Frame",
    "build",
    "channels",
    "doubling",
    "halving",
    "halvings",
    "he_normal",
    "start_as_enlargement",
    "takes",
]
