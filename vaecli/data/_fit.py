"""From an image of any size to the size wanted, bicubic and antialiased, in one of three ways:

crop     the largest part in the middle that has the wanted proportions
pad      the whole image in the middle, on black
stretch  the whole image, each direction by a factor of its own
"""

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

Array = np.ndarray[Any, Any]
Fit = Literal["crop", "pad", "stretch"]


def misfit(image: Image.Image, height: int, width: int) -> float:
    """How far proportions are apart, 0 where they agree: the share of the image that `crop` cuts off, and the share of
    the result that `pad` leaves black."""
    across, down = image.width / width, image.height / height
    return 1 - min(across, down) / max(across, down)


def fitted(image: Image.Image, height: int, width: int, fit: Fit = "crop") -> Array:
    """uint8 (C, height, width)."""
    if image.size == (width, height):
        return _channels_first(image)
    if fit == "crop":
        return _cropped(image, height, width)
    if fit == "stretch":
        return _stretched(image, height, width)
    scale = max(image.width / width, image.height / height)
    inner_height, inner_width = (max(1, round(side / scale)) for side in (image.height, image.width))
    inner_CHW = _stretched(image, inner_height, inner_width)
    padded_CHW = np.zeros((len(inner_CHW), height, width), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    padded_CHW[:, top : top + inner_height, left : left + inner_width] = inner_CHW
    return padded_CHW


def _cropped(image: Image.Image, height: int, width: int) -> Array:
    scale = min(image.width / width, image.height / height)
    if scale < 1:  # to be enlarged: a whole pixel, which the part would be rounded to below, is much
        left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
        part = (left, top, left + scale * width, top + scale * height)
        return _channels_first(image.resize((width, height), Image.Resampling.BICUBIC, box=part))
    # Big images are first averaged in blocks, down to three times the size wanted (of what does not fill a block, up to
    # two thirds of a pixel is left out).
    block = max(1, int(scale / 3))
    across, down = (round(scale * side) // block * block for side in (width, height))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    return _resampled(image.reduce(block, (left, top, left + across, top + down)), height, width)


def _stretched(image: Image.Image, height: int, width: int) -> Array:
    if image.width < width or image.height < height:
        return _channels_first(image.resize((width, height), Image.Resampling.BICUBIC))
    blocks = max(1, int(image.width / width / 3)), max(1, int(image.height / height / 3))
    across, down = (side // block * block for side, block in zip(image.size, blocks, strict=True))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    return _resampled(image.reduce(blocks, (left, top, left + across, top + down)), height, width)


def _resampled(image: Image.Image, height: int, width: int) -> Array:
    pixels_1CHW = torch.from_numpy(_channels_first(image))[None]
    # PyTorch's resampling of bytes differs from Pillow's by one level at most and takes half the time.
    return functional.interpolate(pixels_1CHW, size=(height, width), mode="bicubic", antialias=True)[0].numpy()


def _channels_first(image: Image.Image) -> Array:
    return np.array(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
