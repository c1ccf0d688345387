"""Layers whose weights are divided by their spectral norm, so that no layer stretches anything.

Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", section 2.1 and algorithm 1: u follows
the largest left singular vector by a step of power iteration now and then, and sigma(W) ~ u' W v, v = W' u / |W' u|.
That is |W' u|, whose gradient in W is u v', as if both were constants. u moves in `iterate` alone: a forward pass
changes nothing, in training or out of it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WARM_UP = 15  # iterations when a layer is made: a random u underestimates sigma


class _Spectral(nn.Module):
    """What the layers below share; `weight` counts its outputs along the first axis."""

    weight: Tensor
    u_O: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("u_O", torch.empty(len(self.weight)))
        self.start()

    def start(self) -> None:
        """Find u from a random one: called when the weight has its first values."""
        if self.weight.is_meta:  # which has no values, and takes seconds to find that out
            return
        self.u_O.copy_(F.normalize(torch.randn_like(self.u_O), dim=0))
        for _ in range(WARM_UP):
            self.iterate()

    def iterate(self) -> None:
        """One step of power iteration."""
        with torch.no_grad():
            weight_OI = self.weight.flatten(1)
            v_I = F.normalize(weight_OI.T @ self.u_O, dim=0, eps=1e-12)
            self.u_O.copy_(F.normalize(weight_OI @ v_I, dim=0, eps=1e-12))

    def sigma(self) -> Tensor:
        """The largest singular value, from below, ()."""
        # Products element by element stay in full precision under autocast.
        sigma: Tensor = (self.weight.flatten(1) * self.u_O.unsqueeze(1)).sum(dim=0).norm()
        return sigma.clamp(min=1e-12)

    def normed(self) -> Tensor:
        return self.weight / self.sigma()


class SpectralLinear(_Spectral, nn.Linear):
    """`nn.Linear` with W / sigma(W)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normed(), self.bias)


class SpectralConv2d(_Spectral, nn.Conv2d):
    """`nn.Conv2d` with W / sigma(W), W taken as a matrix of a row for each output channel."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, self.normed(), self.bias)
        return out


def iterate(*nets: nn.Module) -> None:
    """One step of power iteration in every such layer of some networks."""
    for net in nets:
        for layer in net.modules():
            if isinstance(layer, _Spectral):
                layer.iterate()


def start(*nets: nn.Module) -> None:
    """Find u anew in every such layer, whose weights have been set."""
    for net in nets:
        for layer in net.modules():
            if isinstance(layer, _Spectral):
                layer.start()
