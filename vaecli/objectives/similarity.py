"""Structural similarity of images, at one scale and at several.

Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", eq. 13, and Wang,
Simoncelli & Bovik 2003, "Multiscale Structural Similarity for Image Quality Assessment", eq. 7, of images in [0, 1].
Windows are Gaussians of standard deviation 1.5 that lie within the image; a scale is half as large as the one before,
by means of 2x2 pixels. Equal images have similarity 1.

Shapes: B batch, C H W image, N = B C, M scales.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first (2003, section 3.2)
LUMINANCE, CONTRAST = 0.01**2, 0.03**2
SPREAD = 1.5
LEAST = 0.01  # below it, and below 0, where a power is none, a factor goes on as LEAST / (2 - factor / LEAST)


def scales_that_fit(height: int, width: int, window: int) -> int:
    """How many of the five scales are at least as large as a window."""
    side, count = min(height, width), 0
    while side >= window and count < len(WEIGHTS):
        side, count = side // 2, count + 1
    return count


def ms_ssim(x_BCHW: Tensor, y_BCHW: Tensor, scales: int = 5, window: int = 11) -> Tensor:
    """The similarity of each pair, in (0, 1], (B,): l_M^{w_M} prod_j cs_j^{w_j}, each factor a mean over positions and
    channels; of fewer than five `scales` the finest, their weights made to sum to 1."""
    weights = [w / sum(WEIGHTS[:scales]) for w in WEIGHTS[:scales]]
    log_similarity_B = x_BCHW.new_zeros(len(x_BCHW))
    for j, weight in enumerate(weights):
        if j > 0:
            x_BCHW, y_BCHW = F.avg_pool2d(x_BCHW, 2), F.avg_pool2d(y_BCHW, 2)
        luminance, structure = _maps(x_BCHW, y_BCHW, window)
        factor = luminance * structure if j == scales - 1 else structure
        log_similarity_B = log_similarity_B + weight * _positive(factor.flatten(1).mean(dim=1)).log()
    return log_similarity_B.exp()


def _positive(factor_B: Tensor) -> Tensor:
    """The factor itself where it is at least LEAST; else what has its value and slope there, stays above 0 and keeps
    falling, so that images of opposite structure can still be told how to improve."""
    below_B = LEAST / (2 - factor_B.clamp(max=LEAST) / LEAST)
    return torch.where(factor_B < LEAST, below_B, factor_B)


def _maps(x_BCHW: Tensor, y_BCHW: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """(luminance, contrast times structure) around every position, (B, C, H', W') each."""
    channels = x_BCHW.shape[1]
    offset = torch.arange(window, dtype=x_BCHW.dtype, device=x_BCHW.device) - (window - 1) / 2
    bell = torch.exp(-0.5 * (offset / SPREAD).square())
    bell = bell / bell.sum()
    down, across = (bell.view(1, 1, *shape).expand(channels, 1, *shape) for shape in ((window, 1), (1, window)))

    def mean(t_BCHW: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(t_BCHW, down, groups=channels), across, groups=channels)

    mean_x, mean_y = mean(x_BCHW), mean(y_BCHW)
    squares = mean(x_BCHW.square() + y_BCHW.square()) - mean_x.square() - mean_y.square()
    product = mean(x_BCHW * y_BCHW) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + LUMINANCE) / (mean_x.square() + mean_y.square() + LUMINANCE)
    return luminance, (2 * product + CONTRAST) / (squares + CONTRAST)


__all__ = ["WEIGHTS", "ms_ssim", "scales_that_fit"]
