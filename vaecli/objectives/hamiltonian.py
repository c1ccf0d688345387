"""A posterior that leapfrog steps of Hamiltonian dynamics have moved towards the true one.

Caterini, Doucet & Sejdinovic 2018, "Hamiltonian Variational Auto-Encoder", section 3: z_0 ~ q(z|x), a momentum
rho_0 ~ N(0, I / beta_0), then K times a leapfrog step for U(z) = -log p(x, z), whose momentum is scaled by
sqrt(beta_{k-1} / beta_k) after it, with 1 / sqrt(beta_k) = 1 / sqrt(beta_0) + (1 - 1 / sqrt(beta_0)) k^2 / K^2, so that
beta_K = 1. The steps draw nothing, can be undone, and change volumes by beta_0^{D/2}.

Shapes: B batch, D latents.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vaecli.objectives import terms
from vaecli.objectives.distributions import Drawn, Gaussian

DRAWS = 16  # for the moments of one image; each takes K gradients


class Hamiltonian(Drawn):
    """Where the base's draws come to after K steps of `step_D` in the potential -log_joint(z, x).

    The density of z alone has no closed form. `log_prob` is log q(z, rho) - log N(rho; 0, I) of one rho: that which
    came with the draw, or a fresh one for a value of other origin. For draws p(x, z) over exp of it is an unbiased
    estimate of p(x), which is what importance-weighted bounds need; for a given value exp of it is one of its density.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(
        self,
        base: Gaussian,
        x_BCHW: Tensor,
        log_joint: Callable[[Tensor, Tensor], Tensor],
        steps: int,
        step_D: Tensor,
        beta_zero: Tensor,
    ) -> None:
        self.base, self.x_BCHW, self.log_joint, self.steps, self.step_D = base, x_BCHW, log_joint, steps, step_D
        self.root = beta_zero.sqrt()
        heat = 1 / self.root
        self.heats = [heat + (1 - heat) * (k / steps) ** 2 for k in range(steps + 1)] if steps else [heat]
        self._last: tuple[Tensor, Tensor] | None = None  # a draw and its log-density
        super().__init__(base.loc.shape[:1], base.loc.shape[1:], validate_args=False)

    # ---- the dynamics

    def slope(self, z_BD: Tensor, x_BCHW: Tensor) -> Tensor:
        """The gradient of log p(x, z) by z, (B, D); itself with a gradient where gradients are recorded."""
        recorded = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if not recorded:
                z_BD, x_BCHW = z_BD.clone(), x_BCHW.clone()  # tensors of inference may not be differentiated
            if not (recorded and z_BD.requires_grad):
                z_BD = z_BD.detach().requires_grad_()
            whole = self.log_joint(z_BD, x_BCHW).sum()
            (found_BD,) = torch.autograd.grad(whole, z_BD, create_graph=recorded)
        return found_BD

    def move(self, z_BD: Tensor, rho_BD: Tensor, x_BCHW: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(z_K, rho_K) of (z_0, rho_0)."""
        x_BCHW = self.x_BCHW if x_BCHW is None else x_BCHW
        if not self.steps:
            return z_BD, rho_BD * self.root
        slope_BD = self.slope(z_BD, x_BCHW)
        for before, after in pairwise(self.heats):
            half_BD = rho_BD + 0.5 * self.step_D * slope_BD
            z_BD = z_BD + self.step_D * half_BD
            slope_BD = self.slope(z_BD, x_BCHW)
            rho_BD = (half_BD + 0.5 * self.step_D * slope_BD) * (after / before)
        return z_BD, rho_BD

    def undo(self, z_BD: Tensor, rho_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(z_0, rho_0) of (z_K, rho_K)."""
        if not self.steps:
            return z_BD, rho_BD / self.root
        slope_BD = self.slope(z_BD, self.x_BCHW)
        for before, after in reversed(list(pairwise(self.heats))):
            half_BD = rho_BD * (before / after) - 0.5 * self.step_D * slope_BD
            z_BD = z_BD - self.step_D * half_BD
            slope_BD = self.slope(z_BD, self.x_BCHW)
            rho_BD = half_BD - 0.5 * self.step_D * slope_BD
        return z_BD, rho_BD

    # ---- the distribution

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if tuple(sample_shape):
            raise NotImplementedError("one draw at a time")
        start_BD = self.base.rsample()
        noise_BD = torch.randn_like(start_BD)
        z_BD, rho_BD = self.move(start_BD, noise_BD / self.root)
        self._last = z_BD, self._density(start_BD, noise_BD, rho_BD)
        return z_BD

    def _density(self, start_BD: Tensor, noise_BD: Tensor, rho_BD: Tensor) -> Tensor:
        """log q(z_K, rho_K) - log N(rho_K; 0, I), (B,), of rho_0 = noise / sqrt(beta_0): the density of rho_0 brings
        beta_0^{D/2}, which the change of volume takes away."""
        log_q_BD = terms.log_normal(start_BD, self.base.loc, self.base.logvar)
        return (log_q_BD + 0.5 * (rho_BD.square() - noise_BD.square())).sum(dim=1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._last is not None and self._last[0] is value:
            return self._last[1]
        rho_BD = torch.randn_like(value)
        start_BD, first_BD = self.undo(value, rho_BD)
        return self._density(start_BD, first_BD * self.root, rho_BD)

    @property
    def mode(self) -> Tensor:
        """What becomes of the base's mode without momentum: no mode, but a fixed point of it."""
        return self.move(self.base.loc, torch.zeros_like(self.base.loc))[0]

    def drawn_moments(self) -> tuple[Tensor, Tensor]:
        half = design(self.base.loc.shape[1:]).to(self.base.loc)
        total, squares = (torch.zeros_like(self.base.loc, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            for noise_2D in torch.cat([half, -half]):
                start_BD = self.base.loc + self.base.scale * noise_2D[0]
                value_BD = self.move(start_BD, (noise_2D[1] / self.root).expand_as(start_BD))[0].double()
                total, squares = total + value_BD, squares + value_BD.square()
        mean_BD = total / DRAWS
        variance_BD = (squares / DRAWS - mean_BD.square()).clamp(min=1e-12)
        return mean_BD.to(self.base.loc.dtype), variance_BD.to(self.base.loc.dtype)


def design(shape: torch.Size) -> Tensor:
    """Starts and momenta (DRAWS / 2, 2, *shape) of signs, which with their negatives have mean 0 and variance 1 in each
    number exactly. Every latent's start is uncorrelated with every momentum, and with the starts of all but each
    (DRAWS / 4)th other: a latent that mostly keeps to itself has its variance from few draws.
    """
    signs = torch.ones(1, 1)
    while len(signs) < DRAWS // 2:  # Sylvester's construction of a matrix of signs with orthogonal columns
        signs = torch.cat([torch.cat([signs, signs], dim=1), torch.cat([signs, -signs], dim=1)])
    column_D = torch.arange(shape.numel()) % (DRAWS // 4)
    return torch.stack([signs[:, column_D], signs[:, column_D + DRAWS // 4]], dim=1).reshape(-1, 2, *shape)


__all__ = ["Hamiltonian"]
