"""The convolutional net of SemafoVAE: ELU, He-normal start, images scaled to [-1, 1] inside the encoder.

Sources: Trung Ngo Trong et al. 2022 (the code published with it); the layers are those of its 28x28 and 64x64 nets at
`width` 32. Images under 64 pixels are halved twice (kernels of 5, every other layer halves), from 64 on four times
(kernels of 4), so that their sides must be multiples of 4, or of 16.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vaecli.errors import ConfigError
from vaecli.nets.conv import RESIZE
from vaecli.settings.section import Section

Shape = tuple[int, int, int]  # C, H, W
BIG = 64  # pixels of a side from which on an image is halved four times


class SemafoConfig(Section):
    """The convolutional net of SemafoVAE, for sides that are multiples of 4 (from 64 pixels on, of 16).

    `width` is the channels of its first layers, half those of its last: 32 in the paper.
    """

    name: Literal["semafo"] = "semafo"
    width: Annotated[int, Field(gt=0, le=1024)] = 32


class Symmetric(nn.Module):
    """[0, 1] -> [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x - 1.0


@dataclass(frozen=True)
class Layout:
    """What follows from the size of the images.

    `strides`  of the encoder's convolutions; `first` is the decoder's first feature map (C, H, W).
    `tap`      the encoder's and the decoder's parts that end in feature maps of the same size, halfway.
    `between`  that map's sides.
    """

    kernel: int
    strides: tuple[int, ...]
    first: Shape
    tap: tuple[int, int]
    between: tuple[int, int]


def layout(shape: Shape) -> Layout:
    """ConfigError where a side does not halve often enough."""
    colours, height, width = shape
    big = max(height, width) >= BIG
    factor = 16 if big else 4
    if height % factor or width % factor:
        raise ConfigError(
            f"net 'semafo' takes images whose sides are multiples of {factor}{' from 64 pixels on' if big else ''}, "
            f"but the data has {height}x{width}",
            f"set model.net to conv, mlp or resnet, or resize the images to 28, 32 or 64{RESIZE}",
        )
    channels = (8 if big else 4) * (1 if colours == 1 else 2)
    first = (channels, height // factor, width // factor)
    if big:
        return Layout(4, (2, 2, 2, 2), first, (7, 4), (height // 8, width // 8))
    return Layout(5, (1, 2, 1, 2), first, (7, 6), (height // 2, width // 2))


def build(config: SemafoConfig, shape: Shape, n_out: int, latent_dim: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder (B, C, H, W) -> (B, n_out) and decoder (B, latent_dim) -> (B, C, H, W).

    The layers that give (B, n_out) from the features keep PyTorch's own, smaller start.
    """
    plan, w = layout(shape), config.width
    channels = [shape[0], w, w, 2 * w, 2 * w]
    features = plan.first[0] * plan.first[1] * plan.first[2]
    encoder: list[nn.Module] = [Symmetric()]
    for below, above, stride in zip(channels, channels[1:], plan.strides, strict=False):
        encoder += [convolution(below, above, plan.kernel, stride), nn.ELU()]
    encoder += [nn.Flatten(), nn.Linear(2 * w * plan.first[1] * plan.first[2], features)]

    decoder: list[nn.Module] = [nn.Linear(latent_dim, features), nn.Unflatten(1, plan.first)]
    widths = [plan.first[0], 2 * w, 2 * w, w, w]
    for below, above, stride in zip(widths, widths[1:], reversed(plan.strides), strict=False):
        doubles = stride == 2
        decoder.append(doubling(below, above, plan.kernel) if doubles else convolution(below, above, plan.kernel, 1))
        decoder.append(nn.ELU())
    decoder.append(nn.Conv2d(w, shape[0], 1))
    for layer in (*encoder, *decoder):
        he_normal(layer)
    return nn.Sequential(*encoder, nn.Linear(features, n_out)), nn.Sequential(*decoder)


def convolution(n_in: int, n_out: int, kernel: int, stride: int) -> nn.Conv2d:
    """With the padding under which a stride of 2 halves an even side and one of 1 keeps any (TensorFlow's "same")."""
    return nn.Conv2d(n_in, n_out, kernel, stride, padding=(kernel - 1) // 2)


def doubling(n_in: int, n_out: int, kernel: int) -> nn.ConvTranspose2d:
    """The transposed convolution of stride 2 that doubles a side."""
    padding = (kernel - 1) // 2
    return nn.ConvTranspose2d(n_in, n_out, kernel, 2, padding, output_padding=2 + 2 * padding - kernel)


class Detail(nn.Module):
    """A spatial level of latents between the decoder's feature map h and what follows it, `channels` of them at each of
    a few positions: what p(z1|z0, u) and q(z1|z0, x) are made of, and the way back.

    `u_skip` scales what u adds to the prior's numbers; `residual` adds h to what comes back; `path` gives h a way of
    its own through the bottleneck, beside z1.
    """

    def __init__(
        self,
        features: int,
        sides: tuple[int, int],
        channels: int,
        width_u: int,
        u_skip: float,
        residual: bool,
        path: bool,
    ) -> None:
        super().__init__()
        up, left = reduction(sides[0]), reduction(sides[1])
        self.shape = (channels, sides[0] // up, sides[1] // left)
        self.u_skip, self.residual = u_skip, residual
        self.prior = reducing(features, 2 * channels, up, left)
        self.posterior = reducing(2 * features, 2 * channels, up, left)
        self.of_u: nn.Module | None = None
        if u_skip:
            numbers = (2 * channels, *self.shape[1:])
            last = nn.Linear(256, numbers[0] * numbers[1] * numbers[2])
            self.of_u = nn.Sequential(nn.Linear(width_u, 256), nn.ReLU(), last, nn.Unflatten(1, numbers))
        self.path = reducing(features, channels, up, left) if path else None
        kernel, padding = (2 * up, 2 * left), ((up + 1) // 2, (left + 1) // 2)
        inner = channels * (2 if path else 1)
        back = nn.ConvTranspose2d(inner, features, kernel, (up, left), padding, (up % 2, left % 2))
        self.back = nn.Sequential(back, nn.ELU())
        self.apply(he_normal)

    def shifted(self, numbers: Tensor, u_BC: Tensor) -> Tensor:
        """The prior's numbers, (B, 2 channels, ...), from those that h gives and u."""
        return numbers if self.of_u is None else numbers + self.u_skip * self.of_u(u_BC)

    def forward(self, h_BFHW: Tensor, z1: Tensor) -> Tensor:
        """The feature map that z1 makes of h."""
        inner = z1 if self.path is None else torch.cat([z1, self.path(h_BFHW)], dim=1)
        out: Tensor = self.back(inner)
        return out + h_BFHW if self.residual else out


def reduction(side: int) -> int:
    """By what a side shrinks: to 2 positions, or from 16 on, where it divides, to 4."""
    return side // 4 if side >= 16 and side % 4 == 0 else side // 2


def reducing(n_in: int, n_out: int, up: int, left: int) -> nn.Sequential:
    """A convolution of stride (up, left) and twice that kernel, padded so that sides become exactly those shares."""
    padding = nn.ZeroPad2d((left // 2, left - left // 2, up // 2, up - up // 2))
    return nn.Sequential(padding, nn.Conv2d(n_in, n_out, (2 * up, 2 * left), (up, left)))


def he_normal(layer: nn.Module) -> None:
    """Weights of variance 2 / fan-in, biases of 0 (He et al. 2015); layers of another kind are left alone."""
    if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


__all__ = ["Detail", "Layout", "SemafoConfig", "Symmetric", "build", "convolution", "doubling", "he_normal", "layout"]
