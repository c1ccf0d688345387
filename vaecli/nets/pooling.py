"""Convolutions with pooling: the net of DC-IGN.

Kulkarni et al. 2015, "Deep Convolutional Inverse Graphics Network", figure 1, with the kernels and widths that Higgins
et al. 2017 give it for 2D shapes (appendix, table 1).
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import nn

from vaecli.errors import ConfigError
from vaecli.nets.coders import Pair, Shape
from vaecli.settings.section import Section, Width


class PoolingConfig(Section):
    """3x3 convolutions, each followed by 2x2 pooling and ReLU; the decoder resizes to twice the size before each.

    `widths` are the encoder's channels, reversed in the decoder. Sides must be multiples of 2 for each of them.
    """

    name: Literal["pooling"] = "pooling"
    widths: list[Width] = Field(default=[96, 48, 48], min_length=1, max_length=8)


def build(config: PoolingConfig, shape: Shape, n_out: int, latent_dim: int) -> Pair:
    """Encoder (B, C, H, W) -> (B, n_out) and decoder (B, D) -> (B, C, H, W); ConfigError for odd sides."""
    channels, height, width = shape
    smallest = 2 ** len(config.widths)
    if height % smallest or width % smallest:
        raise ConfigError(
            f"net 'pooling' halves images {len(config.widths)} times, but the data has {height}x{width}",
            hint=f"set data.image_size to a multiple of {smallest}, or model.net to mlp or resnet",
        )
    inner = (config.widths[-1], height // smallest, width // smallest)
    values = inner[0] * inner[1] * inner[2]
    encoder: list[nn.Module] = []
    for n_in, n_maps in pairwise([channels, *config.widths]):
        encoder += [nn.Conv2d(n_in, n_maps, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
    decoder: list[nn.Module] = [nn.Linear(latent_dim, values), nn.ReLU(), nn.Unflatten(1, inner)]
    for n_in, n_maps in pairwise([*reversed(config.widths), channels]):
        decoder += [nn.Upsample(scale_factor=2), nn.Conv2d(n_in, n_maps, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*encoder, nn.Flatten(), nn.Linear(values, n_out)), nn.Sequential(*decoder[:-1])
