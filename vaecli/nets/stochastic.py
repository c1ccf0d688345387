"""Blocks of models whose latents stand in several levels: what leads from one level's numbers to another's Gaussian.

Shapes: B batch, D latents of a level.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def dense(n_in: int, widths: Sequence[int], activation: nn.Module, batch_norm: bool = False) -> list[nn.Module]:
    """Linear layers through `widths`, the activation (it has no state) after each, behind a batch norm if wanted."""
    layers: list[nn.Module] = []
    for below, above in pairwise([n_in, *widths]):
        layers.append(nn.Linear(below, above, bias=not batch_norm))  # the norm takes a bias away, and has its own
        layers += [nn.BatchNorm1d(above), activation] if batch_norm else [activation]
    return layers


def gaussian(n_in: int, widths: Sequence[int], n_out: int, activation: nn.Module, norm: bool = False) -> nn.Sequential:
    """(B, n_in) -> (B, 2 n_out): means, then log-variances, of a level of `n_out` latents."""
    last = widths[-1] if widths else n_in
    return nn.Sequential(*dense(n_in, widths, activation, norm), nn.Linear(last, 2 * n_out))


class Shortcut(nn.Module):
    """ReLU layers through `widths`, the input beside the last of them (Dai & Wipf 2019, their code)."""

    def __init__(self, n_in: int, widths: Sequence[int], n_out: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*dense(n_in, widths, nn.ReLU()))
        self.last = nn.Linear(widths[-1] + n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.cat([self.hidden(x), x], dim=1))
        return out


def precision_weighted(
    mean_BD: Tensor, logvar_BD: Tensor, other_mean_BD: Tensor, other_logvar_BD: Tensor
) -> tuple[Tensor, Tensor]:
    """(mean, logvar) of the product of two Gaussians, latent by latent, made a density again.

    Precisions add and means are averaged in their proportion (Sonderby et al. 2016, eq. 17 and 18).
    """
    logvar = -torch.logaddexp(-logvar_BD, -other_logvar_BD)
    share = torch.sigmoid(other_logvar_BD - logvar_BD)  # of the first in the precision
    return other_mean_BD + share * (mean_BD - other_mean_BD), logvar


__all__ = ["Shortcut", "dense", "gaussian", "precision_weighted"]
