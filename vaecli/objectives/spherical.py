"""Densities on the unit sphere of R^d: von Mises-Fisher and uniform, with respect to the sphere's area.

vMF(z; mu, kappa) = exp(kappa mu'z) / (area of the sphere * F(kappa)), where F(kappa) = 0F1(; d/2; kappa^2 / 4), so that
KL(vMF || uniform) = kappa A - log F with A = F' / F = I_{d/2}(kappa) / I_{d/2-1}(kappa), the length of the mean
(Davidson et al. 2018, "Hyperspherical Variational Auto-Encoders", appendix B, without its Bessel functions, which leave
float64 for large kappa or d). Numbers of one per image are in float64 wherever the device has it.

Shapes: B batch, D = d coordinates, S values, R proposals.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributions as td
from numpy.polynomial import Polynomial
from torch import Tensor

from vaecli.objectives.distributions import Curved, Space

ORDER = 50.0  # of Bessel functions from which on eight terms of their uniform expansion are exact to 1e-15
TERMS = 8
PROPOSALS = 24  # the sampler accepts two of three or more: one of 10^11 draws takes a proposal that was rejected
NODES = 48  # of the quadrature; what lies DEPTH nats below the draw is left out
DEPTH = 45.0


# ------------------------------------------------------------------------------------------------------ normalisation


def log_normaliser(kappa_B: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """(log F, A / kappa), (B,) each, for kappa >= 0; the second is 1 / d at kappa = 0.

    F_n = 0F1(; n + 1; kappa^2 / 4) goes down from a large n by F_n / F_{n+1} = 1 + s_n with
    s_n = c_n / (1 + s_{n+1}), c_n = kappa^2 / (4 (n + 1)(n + 2)), all terms positive.
    """
    n = d / 2 - 1
    steps = max(0, math.ceil(ORDER - n))
    top = n + steps
    log_f_B, s_B = _large_order(kappa_B, top)
    for _ in range(steps):
        top -= 1
        s_B = kappa_B.square() / (4 * (top + 1) * (top + 2)) / (1 + s_B)
        log_f_B = log_f_B + torch.log1p(s_B)
    return log_f_B, 1 / (2 * (n + 1) * (1 + s_B))


def _large_order(kappa_B: Tensor, n: float) -> tuple[Tensor, Tensor]:
    """(log F_n, s_n) for a large n: Debye's expansions of I_n and its derivative (DLMF 10.41.3 and 10.41.5), divided by
    what they are at kappa = 0."""
    z_B = kappa_B / n
    root_B = torch.sqrt(1 + z_B.square())
    rise_B = z_B.square() / (1 + root_B)  # root - 1
    p_B = 1 / root_B
    own_B, other_B, at_zero = torch.zeros_like(p_B), torch.zeros_like(p_B), 0.0
    for k, (u, w) in enumerate(_debye()):
        own_B = own_B + _polynomial(u, p_B) / n**k
        other_B = other_B + _polynomial(w, p_B) / n ** (k + 1)
        at_zero += sum(u) / n**k
    log_f_B = n * (rise_B - torch.log1p(rise_B / 2)) - 0.5 * root_B.log() + own_B.log() - math.log(at_zero)
    ratio_B = 1 / (1 + root_B) - p_B * other_B / own_B  # of I_{n+1} to z I_n
    return log_f_B, n / (2 * (n + 1) * ratio_B) - 1


def _polynomial(coefficients: list[float], p_B: Tensor) -> Tensor:
    value_B = torch.zeros_like(p_B)
    for coefficient in reversed(coefficients):
        value_B = value_B * p_B + coefficient
    return value_B


@cache
def _debye() -> list[tuple[list[float], list[float]]]:
    """Coefficients of the polynomials u_0 ... u_8 (DLMF 10.41.9) and of p u / 2 + p^2 u', which make those of the
    derivative (10.41.10: v_{k+1} = u_{k+1} - (1 - p^2)(p u_k / 2 + p^2 u_k'))."""
    found, u = [], Polynomial([1.0])
    for _ in range(TERMS + 1):
        w = Polynomial([0.0, 0.5]) * u + Polynomial([0.0, 0.0, 1.0]) * u.deriv()
        found.append(([float(c) for c in u.coef], [float(c) for c in w.coef]))
        u = Polynomial([0.0, 0.0, 0.5, 0.0, -0.5]) * u.deriv() + 0.125 * (Polynomial([1.0, 0.0, -5.0]) * u).integ()
    return found


def log_area(d: int) -> float:
    """log of the area of the unit sphere of R^d."""
    return math.log(2) + 0.5 * d * math.log(math.pi) - math.lgamma(d / 2)


def _exact(t: Tensor) -> Tensor:
    return t if t.device.type == "mps" else t.double()


def _sloped(value: Tensor, slope: Tensor, x: Tensor) -> Tensor:
    """`value`, whose derivative by x is `slope`, both known as numbers."""
    value, slope = value.detach().to(x.dtype), slope.detach().to(x.dtype)
    return value + slope * (x - x.detach()) if x.requires_grad else value


# -------------------------------------------------------------------------------------------------------------- space


class Sphere(Space):
    """Directions: z with |z| = 1."""

    text = "along a great circle"

    def project(self, z_ND: Tensor) -> Tensor:
        """The point of the sphere in the direction of z."""
        on_it_ND: Tensor = z_ND / z_ND.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return on_it_ND

    def placed(self, z_ND: Tensor, column: int, value_N: Tensor) -> Tensor:
        """The points whose coordinate is that value, the others in their proportion to each other as they were (alike
        where they are all 0): a great circle through the axis."""
        rest_ND = z_ND.clone()
        rest_ND[:, column] = 0
        empty_N1 = rest_ND.norm(dim=1, keepdim=True) < 1e-6
        even_ND = torch.ones_like(rest_ND)
        even_ND[:, column] = 0
        rest_ND = self.project(torch.where(empty_N1, even_ND, rest_ND))
        value_N = value_N.to(z_ND).clamp(-1, 1)
        rest_ND = rest_ND * torch.sqrt((1 - value_N) * (1 + value_N)).unsqueeze(1)
        rest_ND[:, column] = value_N
        return rest_ND

    def way(self, a_D: Tensor, b_D: Tensor, t_S: Tensor) -> Tensor:
        """The great circle from a to b at even speed, (S, D)."""
        a_D, b_D = (self.project(v[None])[0] for v in (a_D, b_D))
        cosine = float(a_D @ b_D)
        aside_D = b_D - cosine * a_D
        sine = float(aside_D.norm())
        if sine < 1e-12:  # the same point, or opposite ones: through the axis most nearly at right angles
            aside_D = torch.zeros_like(a_D)
            axis = int(a_D.abs().argmin())
            aside_D[axis] = 1.0
            aside_D = aside_D - a_D[axis] * a_D
        angle_S1 = (t_S * math.atan2(sine, cosine)).unsqueeze(1)
        along_SD: Tensor = torch.cos(angle_S1) * a_D + torch.sin(angle_S1) * aside_D / aside_D.norm()
        return along_SD


# ------------------------------------------------------------------------------------------------------- distributions


class UniformOnSphere(Curved):
    """Every direction alike, n of them; `mode` is one like all others, the diagonal."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True
    space = Sphere()
    unit = "quantiles of the prior"

    def __init__(self, n: int, d: int, device: torch.device | None = None) -> None:
        self.n, self.d, self.device = n, d, device
        super().__init__(torch.Size([n]), torch.Size([d]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.n, self.d, device=self.device)

    @property
    def variance(self) -> Tensor:
        return torch.full((self.n, self.d), 1 / self.d, device=self.device)

    @property
    def mode(self) -> Tensor:
        return torch.full((self.n, self.d), 1 / math.sqrt(self.d), device=self.device)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        z = torch.randn(*sample_shape, self.n, self.d, device=self.device)
        direction: Tensor = z / z.norm(dim=-1, keepdim=True)
        return direction

    def tempered(self, temperature: float) -> Tensor:
        """A draw: flat at any temperature."""
        return self.rsample()

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_full(value.shape[:-1], -log_area(self.d))

    def values(self, column: int, t_S: Tensor) -> Tensor:
        """Of a coordinate the quantiles at those of a normal: (1 + z) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2)."""
        share_S = torch.special.ndtr(t_S.double())
        angle = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
        middle = 0.5 * (angle[1:] + angle[:-1])
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), torch.sin(middle).pow(self.d - 2).cumsum(0)])
        found = np.interp((1 - share_S).numpy(), (mass / mass[-1]).numpy(), angle.numpy())
        return torch.cos(torch.from_numpy(np.asarray(found)))


class VonMisesFisher(Curved):
    """Directions around `mu_BD`, |mu| = 1, with concentration `kappa_B` >= 0.

    Draws can be differentiated: by mu through the rotation, by kappa through the distribution function of mu'z
    (implicit reparameterisation, Figurnov et al. 2018, eq. 5), which needs no correction for the rejection sampler.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True
    space = Sphere()
    unit = "quantiles of the prior"

    def __init__(self, mu_BD: Tensor, kappa_B: Tensor) -> None:
        self.mu_BD, self.kappa_B, self.d = mu_BD, kappa_B, mu_BD.shape[1]
        exact_B = _exact(kappa_B.detach())
        self.log_f_B, self.ratio_B = log_normaliser(exact_B, self.d)
        self.length_B = exact_B * self.ratio_B  # A
        super().__init__(mu_BD.shape[:1], mu_BD.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.length_B.to(self.mu_BD.dtype).unsqueeze(1) * self.mu_BD

    @property
    def variance(self) -> Tensor:
        """Of each coordinate: the diagonal of (A / kappa)(I - mu mu') + A' mu mu'."""
        square_BD = _exact(self.mu_BD).square()
        along_B1, across_B1 = self._bend().unsqueeze(1), self.ratio_B.unsqueeze(1)
        return (across_B1 * (1 - square_BD) + along_B1 * square_BD).to(self.mu_BD.dtype)

    @property
    def mode(self) -> Tensor:
        return self.mu_BD

    def _bend(self) -> Tensor:
        """A' = 1 - A^2 - (d - 1) A / kappa, the variance of mu'z."""
        return (1 - self.length_B.square() - (self.d - 1) * self.ratio_B).clamp(min=0)

    def log_prob(self, value: Tensor) -> Tensor:
        # mu'z = 1 - |z - mu|^2 / 2 on the sphere, without the rounding of a product near 1.
        log_f_B = _sloped(self.log_f_B - _exact(self.kappa_B.detach()), self.length_B - 1, self.kappa_B)
        return -0.5 * self.kappa_B * (value - self.mu_BD).square().sum(dim=-1) - log_f_B - log_area(self.d)

    def kl_to_uniform(self) -> Tensor:
        """KL to the uniform density in nats, (B,); its derivative by kappa is kappa A'."""
        exact_B = _exact(self.kappa_B.detach())
        kl_B = (exact_B * self.length_B - self.log_f_B).clamp(min=0)
        return _sloped(kl_B, exact_B * self._bend(), self.kappa_B)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if tuple(sample_shape):
            raise NotImplementedError("one draw at a time")
        angle_B = self._angle()
        angle_B = _sloped(angle_B, self._slope(angle_B), self.kappa_B)
        # A direction at right angles to mu: what is left of noise when its part along mu is taken away.
        noise_BD = torch.randn_like(self.mu_BD)
        across_BD = noise_BD - (noise_BD * self.mu_BD).sum(dim=1, keepdim=True) * self.mu_BD
        across_BD = across_BD / across_BD.norm(dim=1, keepdim=True).clamp(min=1e-30)
        cosine_B1, sine_B1 = torch.cos(angle_B).unsqueeze(1), torch.sin(angle_B).unsqueeze(1)
        drawn_BD: Tensor = cosine_B1 * self.mu_BD + sine_B1 * across_BD
        return drawn_BD

    def _angle(self) -> Tensor:
        """Between mu and a draw, (B,): Wood's rejection sampler (1994; Davidson et al., algorithm 1), all proposals at
        once, so that no draw depends on how many others were rejected."""
        k_B1 = _exact(self.kappa_B.detach()).unsqueeze(1)
        m = self.d - 1
        b_B1 = m / (2 * k_B1 + torch.sqrt(4 * k_B1.square() + m * m))
        half_BR = k_B1.new_full((len(k_B1), PROPOSALS), m / 2)
        eps_BR = torch.distributions.Beta(half_BR, half_BR, validate_args=False).sample()
        below_BR = 1 - (1 - b_B1) * eps_BR
        less_BR = 2 * b_B1 * eps_BR / below_BR  # 1 - w
        x_B1 = (1 - b_B1) / (1 + b_B1)
        # kappa (w - x0) + m log((1 - x0 w) / (1 - x0^2)), the last quotient being (1 + b) / (2 below)
        log_accept_BR = k_B1 * (1 - x_B1 - less_BR) + m * (torch.log1p(b_B1) - math.log(2) - torch.log(below_BR))
        taken_BR = torch.rand_like(log_accept_BR).log() <= log_accept_BR
        first_B1 = taken_BR.to(torch.uint8).argmax(dim=1, keepdim=True)
        return 2 * torch.asin(torch.sqrt(less_BR.gather(1, first_B1)[:, 0] / 2).clamp(max=1))

    def _slope(self, angle_B: Tensor) -> Tensor:
        """d angle / d kappa = -(dF / d kappa) / f of the angle's density f ~ exp(kappa cos a) sin(a)^(d-2), (B,):
        the integral of (cos a - A) f on the side where that has one sign."""
        k_B = _exact(self.kappa_B.detach())
        less_B = 2 * torch.sin(angle_B / 2).square()
        short_B = less_B < 1 - self.length_B  # nearer to mu than the mean is
        room_B = torch.where(short_B, -angle_B, math.pi - angle_B)
        low_B, high_B = torch.zeros_like(room_B), torch.ones_like(room_B)
        for _ in range(20):
            middle_B = 0.5 * (low_B + high_B)
            deep_B = self._fall(k_B, angle_B, middle_B * room_B) < -DEPTH
            low_B, high_B = torch.where(deep_B, low_B, middle_B), torch.where(deep_B, middle_B, high_B)
        node_R, weight_R = (torch.as_tensor(t, dtype=k_B.dtype, device=k_B.device) for t in _legendre())
        length_B1 = (high_B * room_B).unsqueeze(1)
        step_BR = length_B1 * node_R
        at_BR = angle_B.unsqueeze(1) + step_BR
        excess_BR = (1 - self.length_B).unsqueeze(1) - 2 * torch.sin(at_BR / 2).square()
        density_BR = torch.exp(self._fall(k_B.unsqueeze(1), angle_B.unsqueeze(1), step_BR))
        return (length_B1 * weight_R * excess_BR * density_BR).sum(dim=1)

    def _fall(self, k: Tensor, angle: Tensor, step: Tensor) -> Tensor:
        """log f(angle + step) - log f(angle)."""
        gain = -2 * k * torch.sin(angle + step / 2) * torch.sin(step / 2)
        if self.d == 2:
            return gain
        sines = torch.sin(angle + step).clamp(min=1e-300) / torch.sin(angle).clamp(min=1e-300)
        return gain + (self.d - 2) * sines.log()


@cache
def _legendre() -> tuple[Any, Any]:
    """Nodes and weights on [0, 1]."""
    node, weight = np.polynomial.legendre.leggauss(NODES)
    return 0.5 * (node + 1), 0.5 * weight


@td.register_kl(VonMisesFisher, UniformOnSphere)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_to_uniform(q: VonMisesFisher, p: UniformOnSphere) -> Tensor:
    return q.kl_to_uniform()


__all__ = ["Sphere", "UniformOnSphere", "VonMisesFisher", "log_area", "log_normaliser"]
