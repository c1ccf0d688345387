"""Generators and discriminators by name, for InfoGAN.

A generator maps latents (B, D) to raw images (B, C, H, W), which the model squashes. A discriminator is a trunk from
images to features (B, F) and two heads on it: the verdict (B, 1), a logit of "real", and the coder (B, n_out), which
says what codes an image was made from.
"""

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field
from torch import nn

from vaecli.errors import ConfigError
from vaecli.nets import spectral
from vaecli.nets.coders import Shape
from vaecli.nets.conv import RESIZE
from vaecli.settings.section import Section, Width

SLOPE = 0.2  # of every leaky ReLU
SPREAD = 0.02  # standard deviation of the first weights (Radford et al. 2016, section 3)


class SpectralConfig(Section):
    """The nets of InfoGAN as modified by Lin et al. 2020 ("InfoGAN-CR", appendix): spectral norm in the discriminator,
    batch norm, after the activations, in the generator. Square images of 8, 16, 32 or 64 pixels a side.
    """

    name: Literal["spectral"] = "spectral"


class DcganConfig(Section):
    """Convolutions with batch norm in both nets but at the images' ends (Radford et al. 2016), with the widths that
    Higgins et al. 2017, table 1, has for 2D shapes. Square images of 8, 16, 32 or 64 pixels a side.
    """

    name: Literal["dcgan"] = "dcgan"


class MlpConfig(Section):
    """Fully connected layers for any size, with spectral norm in the discriminator; `hidden` is reversed in it."""

    name: Literal["mlp"] = "mlp"
    hidden: list[Width] = Field(default=[128, 128], min_length=1, max_length=64)


NetConfig = Annotated[
    SpectralConfig | DcganConfig | MlpConfig,
    Field(discriminator="name"),
    BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
]


class Nets(NamedTuple):
    generator: nn.Sequential
    trunk: nn.Sequential
    verdict: nn.Sequential
    coder: nn.Sequential


def build(config: NetConfig, shape: Shape, latents: int, n_out: int) -> Nets:
    """The four networks with fresh parameters from torch's global generator; ConfigError where the size is wrong."""
    if isinstance(config, SpectralConfig):
        nets = _spectral(shape, latents, n_out)
    elif isinstance(config, DcganConfig):
        nets = _dcgan(shape, latents, n_out)
    else:
        nets = _mlp(config, shape, latents, n_out)
    spectral.start(*nets)
    return nets


def _spectral(shape: Shape, latents: int, n_out: int) -> Nets:
    n = _halvings("spectral", shape)
    generator: list[nn.Module] = [nn.Linear(latents, 128), nn.ReLU(), nn.BatchNorm1d(128)]
    generator += [nn.Linear(128, 1024), nn.ReLU(), nn.BatchNorm1d(1024), nn.Unflatten(1, (64, 4, 4))]
    for n_in, n_maps in pairwise([64, 64, 32, 32][:n]):
        generator += [_doubling(n_in, n_maps), nn.LeakyReLU(SLOPE), nn.BatchNorm2d(n_maps)]
    generator.append(_doubling([64, 64, 32, 32][n - 1], shape[0]))
    trunk: list[nn.Module] = []
    for n_in, n_maps in pairwise([shape[0], *[32, 32, 64, 64][-n:]]):
        trunk += [spectral.SpectralConv2d(n_in, n_maps, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
    return _started(
        nn.Sequential(*generator), nn.Sequential(*trunk, nn.Flatten()), _head(1024, 128, 1), _head(1024, 128, n_out)
    )


def _dcgan(shape: Shape, latents: int, n_out: int) -> Nets:
    n = _halvings("dcgan", shape)
    widths = [256, 128, 64, 32][:n]
    generator: list[nn.Module] = [nn.Linear(latents, 256), nn.BatchNorm1d(256), nn.ReLU()]
    generator += [nn.Linear(256, 256 * 16), nn.BatchNorm1d(256 * 16), nn.ReLU(), nn.Unflatten(1, (256, 4, 4))]
    for n_in, n_maps in pairwise(widths):
        generator += [_doubling(n_in, n_maps), nn.BatchNorm2d(n_maps), nn.ReLU()]
    generator.append(_doubling(widths[-1], shape[0]))
    trunk: list[nn.Module] = [nn.Conv2d(shape[0], widths[-1], 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
    for n_in, n_maps in pairwise(reversed(widths)):
        trunk += [nn.Conv2d(n_in, n_maps, 4, stride=2, padding=1), nn.BatchNorm2d(n_maps), nn.LeakyReLU(SLOPE)]
    coder = [nn.Linear(256 * 16, 128), nn.BatchNorm1d(128), nn.LeakyReLU(SLOPE), nn.Linear(128, n_out)]
    verdict = [nn.Linear(256 * 16, 256), nn.BatchNorm1d(256), nn.LeakyReLU(SLOPE), nn.Linear(256, 1)]
    return _started(
        nn.Sequential(*generator), nn.Sequential(*trunk, nn.Flatten()), nn.Sequential(*verdict), nn.Sequential(*coder)
    )


def _mlp(config: MlpConfig, shape: Shape, latents: int, n_out: int) -> Nets:
    values = shape[0] * shape[1] * shape[2]
    generator: list[nn.Module] = []
    for n_in, n_units in pairwise([latents, *config.hidden]):
        generator += [nn.Linear(n_in, n_units), nn.ReLU()]
    generator += [nn.Linear(config.hidden[-1], values), nn.Unflatten(1, shape)]
    trunk: list[nn.Module] = [nn.Flatten()]
    for n_in, n_units in pairwise([values, *reversed(config.hidden)]):
        trunk += [spectral.SpectralLinear(n_in, n_units), nn.LeakyReLU(SLOPE)]
    features = config.hidden[0]
    return Nets(
        nn.Sequential(*generator),
        nn.Sequential(*trunk),
        nn.Sequential(spectral.SpectralLinear(features, 1)),
        nn.Sequential(spectral.SpectralLinear(features, n_out)),
    )


def _halvings(name: str, shape: Shape) -> int:
    """How often an image is halved until 4 pixels a side are left."""
    _, height, width = shape
    if height != width or height not in (8, 16, 32, 64):
        raise ConfigError(
            f"net {name!r} takes square images of 8, 16, 32 or 64 pixels, but the data has {height}x{width}",
            hint=f"mlp is for any size: take it in place of {name}, or resize the images to 64{RESIZE}",
        )
    return height.bit_length() - 3


def _doubling(n_in: int, n_out: int) -> nn.Module:
    return nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1)


def _head(n_in: int, hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        spectral.SpectralLinear(n_in, hidden), nn.LeakyReLU(SLOPE), spectral.SpectralLinear(hidden, n_out)
    )


def _started(*nets: nn.Sequential) -> Nets:
    """Small weights, N(0, 0.02^2) cut off at two standard deviations, and no biases."""
    for layer in nn.ModuleList(nets).modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=SPREAD, a=-2 * SPREAD, b=2 * SPREAD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return Nets(*nets)
