"""The covariance of the codes of a batch, and how far it is from the identity.

Shapes: B batch, D latents.
"""

import torch
from torch import Tensor


def covariance(mean_BD: Tensor, logvar_BD: Tensor | None = None) -> Tensor:
    """Cov[mu(x)] over the batch with 1/B, (D, D); with log-variances that of z ~ q(z), which has the mean variances on
    its diagonal besides (the law of total covariance; Kumar et al. 2018, eq. 5)."""
    off_BD = mean_BD - mean_BD.mean(dim=0)
    found_DD = off_BD.T @ off_BD / len(mean_BD)
    return found_DD if logvar_BD is None else found_DD + torch.diag_embed(logvar_BD.exp().mean(dim=0))


def from_identity(covariance_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squares off the diagonal, and of the diagonal's distances from 1, () each."""
    variance_D = covariance_DD.diagonal()
    off_DD = covariance_DD - torch.diag_embed(variance_D)
    return off_DD.square().sum(), (variance_D - 1).square().sum()
