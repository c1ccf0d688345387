"""A network that tells codes from codes whose latents were exchanged between images.

Shapes: B batch, D latents.
"""

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from vaecli.settings.section import Section, Width


class CriticConfig(Section):
    """Fully connected layers with leaky ReLU of slope 0.2, six of 1000 by default (Kim & Mnih 2018, appendix A)."""

    width: Width = 1000
    layers: Annotated[int, Field(gt=0, le=64)] = 6


def build(config: CriticConfig, latent_dim: int) -> nn.Sequential:
    """Codes (B, D) to two logits (B, 2), with fresh parameters from torch's global generator."""
    widths = [latent_dim, *[config.width] * config.layers]
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return nn.Sequential(*hidden, nn.Linear(config.width, 2))


def permuted(z_BD: Tensor) -> Tensor:
    """Every latent dealt anew among the batch, each in an order of its own: from codes of q(z), codes of the product
    of its marginals, but for the share 1/B that finds itself (Kim & Mnih 2018, algorithm 1)."""
    return z_BD.gather(0, torch.rand_like(z_BD).argsort(dim=0))
