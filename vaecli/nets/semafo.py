"""The convolutional net of SemafoVAE: ELU, He-normal start, images scaled to [-1, 1] inside the encoder.

Sources: Trung Ngo Trong et al. 2022 (the code published with it); the layers are those of its 28x28 and 64x64 nets at
`width` 32. Images under 64 pixels are halved twice (kernels of 5, every other layer halves), from 64 on four times
(kernels of 4), so that their sides must be multiples of 4, or of 16.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from vaecli.errors import ConfigError
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
            "set model.net to mlp or resnet, or data.image_size to 28, 32 or 64",
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


def he_normal(layer: nn.Module) -> None:
    """Weights of variance 2 / fan-in, biases of 0 (He et al. 2015); layers of another kind are left alone."""
    if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


__all__ = ["Layout", "SemafoConfig", "Symmetric", "build", "convolution", "doubling", "he_normal", "layout"]
