"""Noise that belongs to an image: numbers of a checkpoint must not depend on which images share a batch.

Within `ByImage` whatever torch draws for a batch, row by row, is a pure function of (seed, image, draw, how many draws
came before), the same on every device and in any batch. Numbers come from counters, without state: each is a hash
(Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", the finaliser of SplitMix64).

Shapes: B images of a batch, R rows, n numbers a row.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vaecli import device as devices

Keys = np.ndarray[Any, np.dtype[np.uint64]]

DRAWS_OF_ALL = 2_000  # of few images so many draws are made in all
MOST_DRAWS = 64  # of an image

_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFT = tuple(map(np.uint64, (30, 27, 31, 11)))


def draws(images: int) -> int:
    """How many draws an image gets where `images` are evaluated: one of many, several of few, whose mean is then that
    of the model and not of the noise."""
    return max(1, min(MOST_DRAWS, math.ceil(DRAWS_OF_ALL / max(1, images))))


def lot(index_B: Tensor, name: str) -> Tensor:
    """A number for each image by which some of them can be drawn, (B,) float64 in [0, 1): uniform, and a function of
    its position and of what is drawn alone."""
    keys_B = index_B.detach().cpu().numpy().astype(np.uint64) + np.array([devices.derive(0, name)], dtype=np.uint64)
    return torch.from_numpy((_mixed(keys_B) >> _SHIFT[3]).astype(np.float64) * 2.0**-53)


class ByImage(TorchFunctionMode):
    """Within: the noise of the images at positions `index_B` of their data set, in their `draw`-th draw.

    `calls` counts how often noise was asked for. What has no row an image (as many draws as the caller likes of a
    prior, permutations) comes from torch's global generator, which is seeded from the same numbers.
    """

    def __init__(self, seed: int, index_B: Tensor, draw: int = 0) -> None:
        super().__init__()
        self.index_B = index_B.detach().cpu().numpy().astype(np.uint64)
        self.key = devices.derive(seed, "noise", draw)
        self.key_1 = np.array([self.key], dtype=np.uint64)
        self.calls = 0

    def __enter__(self) -> "ByImage":
        first = int(self.index_B[0]) if len(self.index_B) else 0
        devices.seed(self.key, first)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        own = _OWN.get(func)
        if own is None:
            return func(*args, **kwargs)
        self.calls += 1
        found = own(self, *args, **kwargs)
        return func(*args, **kwargs) if found is None else found

    def uniform(self, shape: tuple[int, ...]) -> Tensor | None:
        """float64 in (0, 1), on the CPU; None for a shape without a row an image."""
        rows = self._keys(shape)
        if rows is None:
            return None
        key_R, axis = rows
        n = math.prod(shape) // len(key_R)
        bits_Rn = _mixed(key_R[:, None] + _STEP * np.arange(1, n + 1, dtype=np.uint64))
        u = torch.from_numpy(((bits_Rn >> _SHIFT[3]).astype(np.float64) + 0.5) * 2.0**-53)
        if axis == 0:
            return u.view(shape)
        return u.view(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()

    def normal(self, shape: tuple[int, ...]) -> Tensor | None:
        """float64 from N(0, 1), on the CPU, by the inverse of its distribution function."""
        u = self.uniform(shape)
        return None if u is None else torch.special.ndtri(u)

    def _keys(self, shape: tuple[int, ...]) -> tuple[Keys, int] | None:
        """A key for each row, and which axis the rows are along: B rows, or B times k rows, k for each image in turn;
        else B of the second axis."""
        images = len(self.index_B)
        if images == 0 or 0 in (shape or (0,)):
            return None
        if shape[0] % images and (len(shape) < 2 or shape[1] != images):
            return None
        key_B = _mixed(_mixed(self.index_B + self.key_1) + _STEP * np.array([self.calls], dtype=np.uint64))
        if shape[0] % images:
            return key_B, 1
        each = shape[0] // images
        each_k = np.arange(each).astype(np.uint64)
        return (key_B if each == 1 else _mixed(key_B[:, None] + each_k).ravel()), 0


def _mixed(x: Keys) -> Keys:
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> _SHIFT[0])) * _MIX[0]
    x = (x ^ (x >> _SHIFT[1])) * _MIX[1]
    return x ^ (x >> _SHIFT[2])


# ------------------------------------------------------------------------------------- what torch's functions draw


def _sized(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    sizes = args if args else (kwargs["size"],)
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)


def _made(drawn: Tensor | None, dtype: Any, device: Any) -> Tensor | None:
    return None if drawn is None else drawn.to(dtype=dtype or torch.get_default_dtype()).to(device or "cpu")


def _fresh(kind: str) -> Callable[..., Tensor | None]:
    def make(noise: ByImage, *args: Any, **kwargs: Any) -> Tensor | None:
        if kwargs.get("generator") is not None or kwargs.get("out") is not None:
            return None  # noise of its own
        return _made(getattr(noise, kind)(_sized(args, kwargs)), kwargs.get("dtype"), kwargs.get("device"))

    return make


def _like(kind: str) -> Callable[..., Tensor | None]:
    def make(noise: ByImage, like: Tensor, **kwargs: Any) -> Tensor | None:
        drawn = getattr(noise, kind)(tuple(like.shape))
        return _made(drawn, kwargs.get("dtype") or like.dtype, kwargs.get("device") or like.device)

    return make


def _normal(noise: ByImage, mean: Any, std: Any = 1.0, *args: Any, **kwargs: Any) -> Tensor | None:
    """torch.normal of tensors, as torch.distributions call it."""
    if not isinstance(mean, Tensor) or kwargs.get("generator") is not None:
        return None
    shape = tuple((mean + std).shape)
    drawn = _made(noise.normal(shape), mean.dtype, mean.device)
    return None if drawn is None else mean + std * drawn


def _filled(kind: str) -> Callable[..., Tensor | None]:
    """The methods that fill a tensor: normal_(mean, std), uniform_(from, to), exponential_(rate)."""

    def fill(noise: ByImage, t: Tensor, a: float | None = None, b: float | None = None, **kw: Any) -> Tensor | None:
        if kw:
            return None
        drawn = (noise.normal if kind == "normal" else noise.uniform)(tuple(t.shape))
        if drawn is None:
            return None
        if kind == "normal":
            drawn = (0.0 if a is None else a) + (1.0 if b is None else b) * drawn
        elif kind == "uniform":
            low, high = (0.0 if a is None else a), (1.0 if b is None else b)
            drawn = low + (high - low) * drawn
        else:
            drawn = -drawn.log() / (1.0 if a is None else a)
        return t.copy_(drawn)

    return fill


def _bernoulli(noise: ByImage, p: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    if args or kwargs:
        return None
    drawn = noise.uniform(tuple(p.shape))
    return None if drawn is None else (drawn.to(p.device) < p).to(p.dtype)


def _multinomial(
    noise: ByImage, weights: Tensor, num_samples: int, replacement: bool = False, **kwargs: Any
) -> Tensor | None:
    if kwargs or not (replacement or num_samples == 1):
        return None
    # Of one row of weights a draw for each image, of several a row of draws each.
    shape = (num_samples,) if weights.dim() == 1 else (len(weights), num_samples)
    drawn = noise.uniform(shape)
    if drawn is None:
        return None
    cdf = weights.detach().cpu().double().cumsum(dim=-1)
    place = torch.searchsorted(cdf, (drawn * cdf[..., -1:]).contiguous(), right=True)
    return place.clamp(max=weights.shape[-1] - 1).to(weights.device)


def _dirichlet(noise: ByImage, concentration: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Row by row from torch's own generator, seeded for each: there is no shorter way from a uniform number."""
    rows = noise._keys(tuple(concentration.shape))
    if rows is None or rows[1] != 0:
        return None
    with devices.aside():
        found = []
        for key, row in zip(rows[0].tolist(), concentration.detach().cpu(), strict=True):
            torch.default_generator.manual_seed(key >> 1)
            found.append(torch._sample_dirichlet(row[None]))
    return torch.cat(found).to(concentration)


_OWN: dict[Any, Callable[..., Tensor | None]] = {
    torch.randn: _fresh("normal"),
    torch.rand: _fresh("uniform"),
    torch.randn_like: _like("normal"),
    torch.rand_like: _like("uniform"),
    torch.normal: _normal,
    torch.bernoulli: _bernoulli,
    torch.multinomial: _multinomial,
    torch._sample_dirichlet: _dirichlet,
    Tensor.normal_: _filled("normal"),
    Tensor.uniform_: _filled("uniform"),
    Tensor.exponential_: _filled("exponential"),
}
