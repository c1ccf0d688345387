"""The Poincare ball of curvature -c and the wrapped normal on it, with respect to the ball's own volume.

Mathieu et al. 2019, "Continuous Hierarchical Representations with Poincare Variational Auto-Encoders", section 2 and
appendix A: points |z| < 1 / sqrt(c), lengths multiplied by lambda(z) = 2 / (1 - c |z|^2), Moebius addition in place of
addition. Arithmetic is in float64 wherever the device has it: float32 knows the rim only to a few digits.

Shapes: N points, D coordinates, S values.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vaecli.objectives import terms
from vaecli.objectives.distributions import Curved, Drawn, Space, spanning

RIM = 1e-5  # points are kept this share of the radius off the rim: at a distance of at most 12.2 / sqrt(c) from 0
DRAWS = 256  # for the moments of a point's coordinates, which are far from affine in the noise


def _exact(t: Tensor) -> Tensor:
    return t if t.device.type == "mps" else t.double()


class Ball(Space):
    """Points, tangent vectors and distances for one c > 0."""

    text = "along a geodesic"

    def __init__(self, c: float) -> None:
        self.c, self.root = c, math.sqrt(c)

    def add(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        """Moebius addition; add(-a, add(a, b)) = b."""
        ab, a2, b2 = ((s * t).sum(dim=-1, keepdim=True) for s, t in ((a_ND, b_ND), (a_ND, a_ND), (b_ND, b_ND)))
        c = self.c
        top = (1 + 2 * c * ab + c * b2) * a_ND + (1 - c * a2) * b_ND
        total: Tensor = top / (1 + 2 * c * ab + c * c * a2 * b2).clamp(min=1e-15)
        return total

    def conformal(self, z_ND: Tensor) -> Tensor:
        """lambda(z), (N, 1)."""
        factor_N1: Tensor = 2 / (1 - self.c * z_ND.square().sum(dim=-1, keepdim=True)).clamp(min=1e-15)
        return factor_N1

    def reach(self, v_ND: Tensor) -> Tensor:
        """exp_0(v / 2): the point at distance |v| from 0 in the direction of v."""
        length = v_ND.norm(dim=-1, keepdim=True).clamp(min=1e-15)
        z_ND: Tensor = torch.tanh(self.root * length / 2) * v_ND / (self.root * length)
        return z_ND

    def direction(self, z_ND: Tensor) -> Tensor:
        """The inverse of `reach`."""
        length = z_ND.norm(dim=-1, keepdim=True).clamp(min=1e-15)
        inside = (self.root * length).clamp(max=1 - 1e-15)
        v_ND: Tensor = 2 * torch.atanh(inside) * z_ND / (self.root * length)
        return v_ND

    def exp(self, at_ND: Tensor, u_ND: Tensor) -> Tensor:
        """Where the geodesic from a point with initial velocity u is at time 1."""
        return self.add(at_ND, self.reach(self.conformal(at_ND) * u_ND))

    def log(self, at_ND: Tensor, z_ND: Tensor) -> Tensor:
        """The inverse: the velocity with which a geodesic comes to z at time 1."""
        return self.direction(self.add(-at_ND, z_ND)) / self.conformal(at_ND)

    def distance(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        """(N,)."""
        distance_N: Tensor = self.direction(self.add(-a_ND, b_ND)).norm(dim=-1)
        return distance_N

    # ---- as a space of latents

    def project(self, z_ND: Tensor) -> Tensor:
        """Points outside, or nearer to the rim than RIM, are drawn in along their radius."""
        length = z_ND.norm(dim=-1, keepdim=True)
        most = (1 - RIM) / self.root
        return torch.where(length > most, z_ND * (most / length.clamp(min=1e-15)), z_ND)

    def placed(self, z_ND: Tensor, column: int, value_N: Tensor) -> Tensor:
        """The points whose coordinate is that value; where they would be outside, the others are drawn in."""
        most = (1 - RIM) / self.root
        rest_ND: Tensor = z_ND.clone()
        rest_ND[:, column] = 0
        value_N = value_N.to(z_ND).clamp(-most, most)
        room_N = torch.sqrt((most - value_N) * (most + value_N))
        rest_ND = rest_ND * (room_N / rest_ND.norm(dim=1).clamp(min=1e-15)).clamp(max=1).unsqueeze(1)
        rest_ND[:, column] = value_N
        return rest_ND

    def way(self, a_D: Tensor, b_D: Tensor, t_S: Tensor) -> Tensor:
        """The geodesic from a to b at even speed, (S, D)."""
        a_D, b_D = self.project(a_D), self.project(b_D)
        return self.add(a_D.expand(len(t_S), -1), self.reach(t_S[:, None] * self.direction(self.add(-a_D, b_D))))


class WrappedNormal(Curved, Drawn):
    """v ~ N(0, diag exp(logvar)) in the tangent space at `mu_ND`, lengths as there, sent along geodesics (eq. 5 and 6).

    log-density log N(v; 0, exp(logvar)) - (D - 1) log(sinh(sqrt(c) |v|) / (sqrt(c) |v|)), |v| the distance from mu.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True
    unit = "sd of the prior"  # as a distance, along the axis

    def __init__(self, mu_ND: Tensor, logvar_ND: Tensor, c: float) -> None:
        self.mu_ND, self.logvar_ND, self.d = mu_ND, logvar_ND, mu_ND.shape[1]
        self.space = self.ball = Ball(c)
        super().__init__(mu_ND.shape[:1], mu_ND.shape[1:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The centre, of the highest density."""
        return self.mu_ND

    def _sent(self, v_ND: Tensor) -> Tensor:
        z_ND = self.ball.add(_exact(self.mu_ND), self.ball.reach(v_ND))
        return self.ball.project(z_ND).to(self.mu_ND.dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if tuple(sample_shape):
            raise NotImplementedError("one draw at a time")
        return self.tempered(1.0)

    def tempered(self, temperature: float) -> Tensor:
        sd_ND = torch.exp(0.5 * _exact(self.logvar_ND))
        return self._sent(temperature * sd_ND * torch.randn_like(self.mu_ND))

    def log_prob(self, value: Tensor) -> Tensor:
        v_ND = self.ball.direction(self.ball.add(-_exact(self.mu_ND), _exact(value)))
        log_normal_N = terms.log_normal(v_ND, torch.zeros_like(v_ND), _exact(self.logvar_ND)).sum(dim=-1)
        length_N = (self.ball.root * v_ND.norm(dim=-1)).clamp(min=1e-7)
        # log(sinh(r) / r) without sinh's overflow
        stretch_N = length_N + torch.log(-torch.expm1(-2 * length_N)) - torch.log(2 * length_N)
        found_N: Tensor = log_normal_N - (self.d - 1) * stretch_N
        return found_N.to(self.mu_ND.dtype)

    def values(self, column: int, t_S: Tensor) -> Tensor:
        """Of a coordinate, on its axis: at t standard deviations from 0 by the ball's own distance."""
        sd = torch.exp(0.5 * self.logvar_ND[0, column].double().cpu())
        return torch.tanh(self.ball.root * t_S.double() * sd / 2) / self.ball.root

    def drawn_moments(self) -> tuple[Tensor, Tensor]:
        """Of the coordinates, which have no meaning of their own on a curved space."""
        half = spanning(torch.Size([self.d]), DRAWS // 2).to(_exact(self.mu_ND))
        sd_ND = torch.exp(0.5 * _exact(self.logvar_ND))
        total, squares = (torch.zeros_like(sd_ND) for _ in range(2))
        for noise_D in torch.cat([half, -half]):
            value_ND = _exact(self._sent(sd_ND * noise_D))
            total, squares = total + value_ND, squares + value_ND.square()
        mean_ND = total / (2 * len(half))
        variance_ND = (squares / (2 * len(half)) - mean_ND.square()).clamp(min=1e-12)
        return mean_ND.to(self.mu_ND.dtype), variance_ND.to(self.mu_ND.dtype)


__all__ = ["Ball", "WrappedNormal"]
