"""The squared maximum mean discrepancy between two samples (Gretton et al. 2012).

Shapes: M and N points, D latents.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["rbf", "imq"]


def kernel(a_MD: Tensor, b_ND: Tensor, name: Kernel, scales: Sequence[float]) -> Tensor:
    """k(a, b) summed over scales s, (M, N): exp(-|a - b|^2 / C) for `rbf`, C / (C + |a - b|^2) for `imq`, with
    C = 2 D s, which is the mean of |a - b|^2 for two draws of N(0, s I) (Tolstikhin et al. 2018, section 4)."""
    square_MN = (a_MD.unsqueeze(1) - b_ND).square().sum(dim=2)  # of differences: nothing cancels
    widths = [2 * a_MD.shape[1] * scale for scale in scales]
    each = [torch.exp(-square_MN / c) if name == "rbf" else c / (c + square_MN) for c in widths]
    return torch.stack(each).sum(dim=0)


def mmd2(a_MD: Tensor, b_ND: Tensor, name: Kernel, scales: Sequence[float] = (1.0,)) -> Tensor:
    """The unbiased estimate, (), also below 0: the mean kernel of different points within each sample, less twice that
    across (Gretton et al. 2012, eq. 3). A sample of one point counts as 0 within."""
    across = kernel(a_MD, b_ND, name, scales).mean()
    return _within(kernel(a_MD, a_MD, name, scales)) + _within(kernel(b_ND, b_ND, name, scales)) - 2 * across


def _within(kernel_MM: Tensor) -> Tensor:
    m = len(kernel_MM)
    return (kernel_MM.sum() - kernel_MM.diagonal().sum()) / max(1, m * (m - 1))
