"""Drawn sets whose channels repeat: each distinct channel is kept once, so that a set of 0.9 GB takes some megabytes.

Shapes: N images, B batch, C H W image, M distinct channels.
"""

import hashlib
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


class Channels:
    """Images put together from a table of channels: uint8 (M, H, W), a pixel being its byte / 255, and the rows of it
    that each image takes, int32 (N, C)."""

    def __init__(self, table_MHW: Tensor, rows_NC: Tensor) -> None:
        self.table = table_MHW
        self.rows = rows_NC
        _, h, w = table_MHW.shape
        self.shape: tuple[int, int, int] = (rows_NC.shape[1], h, w)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + self.rows.nbytes

    @property
    def sha256(self) -> str:
        """Of the table and the rows, which say what the images are."""
        digest = hashlib.sha256(self.table.cpu().numpy().data)
        digest.update(self.rows.cpu().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.table.to(device), self.rows.to(device))

    def gather(self, index_B: Tensor) -> Tensor:
        rows_M = self.rows.index_select(0, index_B.to(self.device)).flatten()
        return self.table.index_select(0, rows_M).view(-1, *self.shape).float().div_(255.0)


def squares(left_M: Array, top_M: Array, side_M: Array, pixels: int) -> Array:
    """Filled squares with these upper left corners, a picture each: uint8 (M, pixels, pixels), 255 inside."""
    place = np.arange(pixels)
    columns_MW, rows_MH = (
        (place >= start_M[:, None]) & (place < (start_M + side_M)[:, None]) for start_M in (left_M, top_M)
    )
    return (rows_MH[:, :, None] & columns_MW[:, None, :]) * np.uint8(255)
