"""The first layer of a decoder that reads points of a Poincare ball.

Mathieu et al. 2019, section 3.2 (after Ganea et al. 2018): each unit is a geodesic hyperplane through p with normal a,
and its output the signed distance of z to it, times the length of a in p: what <a, z - p> is in a flat space.

Shapes: B batch, D coordinates, H hyperplanes.
"""

import math

import torch
from torch import Tensor, nn


class Gyroplanes(nn.Module):
    """(B, D) points to (B, H) weighted distances. A normal is stored as the vector at 0 that is carried to p."""

    def __init__(self, latent_dim: int, planes: int, c: float) -> None:
        super().__init__()
        self.c = c
        bound = 1 / math.sqrt(latent_dim)
        self.normal_HD = nn.Parameter(torch.empty(planes, latent_dim).uniform_(-bound, bound))
        self.foot_HD = nn.Parameter(torch.empty(planes, latent_dim).uniform_(-bound, bound))  # p = exp_0 of half of it

    def forward(self, z_BD: Tensor) -> Tensor:
        c, root = self.c, math.sqrt(self.c)
        far_H1 = root * self.foot_HD.norm(dim=1, keepdim=True).clamp(min=1e-12)
        p_HD = torch.tanh(far_H1 / 2) * self.foot_HD / far_H1
        p2_H, z2_B1 = p_HD.square().sum(dim=1), z_BD.square().sum(dim=1, keepdim=True)
        length_H = self.normal_HD.norm(dim=1).clamp(min=1e-12)
        unit_HD = self.normal_HD / length_H.unsqueeze(1)
        pz_BH, az_BH, ap_H = z_BD @ p_HD.T, z_BD @ unit_HD.T, (unit_HD * p_HD).sum(dim=1)
        # m = (-p) + z: its part along a, and 1 - c |m|^2, from products alone
        below_BH = (1 - 2 * c * pz_BH + c * c * p2_H * z2_B1).clamp(min=1e-12)
        along_BH = ((1 - c * p2_H) * az_BH - (1 - 2 * c * pz_BH + c * z2_B1) * ap_H) / below_BH
        margin_BH = ((1 - c * p2_H) * (1 - c * z2_B1) / below_BH).clamp(min=1e-12)
        # |a|_p = lambda(p) |a carried to p| = 2 |a at 0|
        distance_BH: Tensor = 2 * length_H / root * torch.asinh(2 * root * along_BH / margin_BH)
        return distance_BH


__all__ = ["Gyroplanes"]
