"""Inverse autoregressive flows: bijections of latents whose Jacobian is triangular, each a masked network.

Kingma et al. 2016, "Improved Variational Inference with Inverse Autoregressive Flow", section 4; the masks are those of
MADE (Germain et al. 2015, "MADE: Masked Autoencoder for Distribution Estimation", section 4). Shapes: any leading axes,
D latents, C numbers of context, H units of a hidden layer.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Transform, constraints

GATE_BIAS = 1.5  # of a sigmoid: untrained, a step keeps 0.8 of what it is given (section 4 asks for one or two)


class MaskedLinear(nn.Linear):
    """A linear layer that reads an input of degree i in an output of degree o where i <= o (`strict`: i < o)."""

    mask: Tensor

    def __init__(self, in_I: Tensor, out_O: Tensor, strict: bool = False) -> None:
        super().__init__(len(in_I), len(out_O))
        mask_OI = in_I < out_O.unsqueeze(1) if strict else in_I <= out_O.unsqueeze(1)
        self.register_buffer("mask", mask_OI.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class MADE(nn.Module):
    """(z, context) -> two numbers for each latent, (..., D) each, that depend on the latents before it and the context.

    `reverse` counts them from the last. Hidden units have degrees from 0, which reads no latent but lets the context
    through to the first one, to D - 1; the context is added before the first activation (ELU, as in the paper).
    """

    degree_D: Tensor

    def __init__(self, latents: int, context: int, hidden: Sequence[int], reverse: bool = False) -> None:
        super().__init__()
        degree_D = torch.arange(1, latents + 1)
        degree_D = degree_D.flip(0) if reverse else degree_D
        degrees = [degree_D, *(torch.arange(width) * latents // width for width in hidden)]
        self.layers = nn.ModuleList(MaskedLinear(below, above) for below, above in pairwise(degrees))
        self.last = MaskedLinear(degrees[-1], degree_D.repeat(2), strict=True)
        self.context = nn.Linear(context, hidden[0], bias=False)
        self.register_buffer("degree_D", degree_D, persistent=False)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        h: Tensor = self.context(context)
        for i, layer in enumerate(self.layers):
            h = F.elu(layer(z) + h if i == 0 else layer(h))
        first, second = self.last(h).chunk(2, dim=-1)
        return first, second


class InverseAutoregressive(Transform):
    """One step: z -> g z + (1 - g) m, where (m, s) = net(z, context) and g = sigmoid(s + 1.5) (eq. 12 to 14).

    All latents move at once, and the log-determinant is the sum of log g (eq. 11). The inverse solves for one latent
    after the other, D passes of the net; the value moved last is remembered with where it came from, so that the
    density of a draw costs nothing.
    """

    domain, codomain, bijective = constraints.real_vector, constraints.real_vector, True

    def __init__(self, net: MADE, context_BC: Tensor) -> None:
        super().__init__(cache_size=1)
        self.net, self.context_BC = net, context_BC
        self._last: tuple[Tensor, Tensor] | None = None  # what was moved, and its log g

    def _gates(self, z: Tensor) -> tuple[Tensor, Tensor]:
        m, s = self.net(z, self.context_BC)
        return m, s + GATE_BIAS

    def _call(self, z: Tensor) -> Tensor:
        m, s = self._gates(z)
        self._last = z, F.logsigmoid(s)
        return m + torch.sigmoid(s) * (z - m)

    def _inverse(self, y: Tensor) -> Tensor:
        z = torch.zeros_like(y)
        for degree in range(1, y.shape[-1] + 1):
            m, s = self._gates(z)
            z = torch.where(self.net.degree_D == degree, m + (y - m) / torch.sigmoid(s), z)
        return z

    def log_scale(self, z: Tensor) -> Tensor:
        """log g at z, latent by latent, (..., D): the logarithm of the Jacobian's diagonal."""
        if self._last is None or self._last[0] is not z:
            self._last = z, F.logsigmoid(self._gates(z)[1])
        return self._last[1]

    def log_abs_det_jacobian(self, z: Tensor, y: Tensor) -> Tensor:
        return self.log_scale(z).sum(dim=-1)


__all__ = ["GATE_BIAS", "MADE", "InverseAutoregressive", "MaskedLinear"]
