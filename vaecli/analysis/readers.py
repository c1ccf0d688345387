"""Reading factors back from images that a model made: by the nearest template where it is known how images are drawn,
which is exact, else by a classifier trained on all labels.

Shapes: B images of a model, N templates (the images of the data set), C H W image, P its pixels, K factors, M distinct
channels, S sums over blocks of pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vaecli.analysis import oracle as oracles
from vaecli.data._drawn import Channels
from vaecli.data.base import Bits, Dataset, Store
from vaecli.data.orders import generator
from vaecli.errors import ConfigError

DRAWN = ("drawn", "rendered", "official")  # kinds of sources whose images are every combination of factors, exactly
TRIED = 64  # images on which the reader is tried
CHUNK = 1024  # templates at once
FIRST, MOST = 32, 8192  # templates compared at first, and at most
COARSE, FINE = 8, 4  # pixels a side of the blocks whose sums bound a distance


class Reader(Protocol):
    """`accuracy` says by factor how often it is right on the data set's own images."""

    @property
    def factors(self) -> tuple[str, ...]: ...

    @property
    def accuracy(self) -> dict[str, float]: ...

    def predict(self, x_BCHW: Tensor) -> Tensor:
        """The value of each factor, int64 (B, K), as the data set counts them."""
        ...

    def text(self) -> str: ...

    def record(self) -> dict[str, Any]: ...


def reader(dataset: Dataset, device: torch.device | str = "cpu", train: bool = True) -> Reader | None:
    """By nearest template for drawn sets, else the oracle, which is trained where it is not in the cache; without
    `train`, None in its place. ConfigError where the images have no labels."""
    if dataset.info.source.get("kind") in DRAWN and dataset.varying_factors is not None:
        return templates(dataset)
    return oracles.oracle(dataset, device) if train or oracles.is_trained(dataset) else None


@dataclass(frozen=True)
class Templates:
    """The nearest image of the data set in squared distance of pixels, of several equally near the first.

    `search` gives the position of the nearest. `same` maps of each factor the values to the first that gives the same
    images: a full turn is none.
    """

    dataset: Dataset
    same: tuple[Tensor, ...]
    accuracy: dict[str, float]
    search: Callable[[Tensor], Tensor]

    @property
    def factors(self) -> tuple[str, ...]:
        return tuple(self.dataset.info.factor_names)

    def predict(self, x_BCHW: Tensor) -> Tensor:
        labels_NK = self.dataset.labels
        assert labels_NK is not None
        with torch.inference_mode():
            found = [self.search(x) for x in torch.split(x_BCHW.detach().cpu().float(), 32)]
        return labels_NK.cpu()[torch.cat(found)]

    def text(self) -> str:
        right = ", ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
        return f"nearest of {len(self.dataset.images):,} images; right on {TRIED:,} of them: {right}"

    def record(self) -> dict[str, Any]:
        return {"kind": "templates", "accuracy": self.accuracy, "templates": len(self.dataset.images)}


def templates(dataset: Dataset) -> Templates:
    """Of a data set whose images are every combination of its factors. ConfigError where they are not."""
    labels_NK, info = dataset.labels, dataset.info
    if labels_NK is None or dataset.varying_factors is None:
        raise ConfigError(f"{info.name}: its images are not every combination of factors, to compare others with")
    images = dataset.images
    search = _Layers(images) if isinstance(images, Channels) else _Bounded(images, info.binary)
    found = Templates(dataset, _same(dataset), {}, search)
    some_N = torch.randperm(len(labels_NK), generator=generator("templates", len(labels_NK)))[:TRIED]
    read_NK, truth_NK = found.predict(dataset.images.gather(some_N)), labels_NK.cpu()[some_N]
    right_NK = canonical(found, read_NK, found.factors) == canonical(found, truth_NK, found.factors)
    found.accuracy.update(zip(info.factor_names, right_NK.double().mean(dim=0).tolist(), strict=True))
    return found


def canonical(reader: Reader | None, labels_BK: Tensor, factors: tuple[str, ...] | list[str]) -> Tensor:
    """Labels of these factors with the first of the values between which no reader of images could tell; -1 stays."""
    if not isinstance(reader, Templates):
        return labels_BK
    columns = []
    for label_B, factor in zip(labels_BK.cpu().unbind(dim=1), factors, strict=True):
        same_V = reader.same[reader.factors.index(factor)]
        columns.append(torch.where(label_B < 0, label_B, same_V[label_B.clamp(min=0)]))
    return torch.stack(columns, dim=1).to(labels_BK.device)


def _same(dataset: Dataset) -> tuple[Tensor, ...]:
    """Whether a factor comes full circle: whether its last value gives the images of its first."""
    labels_NK, found = dataset.labels, []
    assert labels_NK is not None
    for k, size in enumerate(dataset.info.factor_sizes):
        same_V = torch.arange(size)
        first, last = ((labels_NK[:, k] == value).nonzero()[:, 0] for value in (0, size - 1))
        if size > 2:
            some = torch.linspace(0, len(first) - 1, min(len(first), 500)).long()
            if torch.equal(*(dataset.images.gather(index[some].cpu()) for index in (first, last))):
                same_V[size - 1] = 0
        found.append(same_V)
    return tuple(found)


class _Layers:
    """Of sets put together from few channels: the distance is the sum over an image's channels, each of which is a
    shape times a brightness, and the shapes are fewer still."""

    def __init__(self, images: Channels) -> None:
        table_MP = images.table.flatten(1).cpu()
        self.level_M = table_MP.amax(dim=1).float() / 255.0
        if bool(((table_MP != 0) & (table_MP != table_MP.amax(dim=1, keepdim=True))).any()):
            shapes_MP, self.level_M = table_MP, torch.ones(len(table_MP))  # of no even brightness
        else:
            shapes_MP = (table_MP != 0) * torch.tensor(255, dtype=torch.uint8)
        place: dict[bytes, int] = {}  # of each distinct shape
        self.which_M = torch.tensor([place.setdefault(row.tobytes(), len(place)) for row in shapes_MP.numpy()])
        shapes = np.frombuffer(b"".join(place), np.uint8).reshape(len(place), -1)
        self.shapes_UP = torch.from_numpy(shapes.astype(np.float32)) / 255.0
        self.area_M = self.shapes_UP.square().sum(dim=1)[self.which_M]
        self.rows_NC = images.rows.cpu().long()

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        b, c = x_BCHW.shape[:2]
        overlap_QM = (x_BCHW.flatten(2).flatten(0, 1) @ self.shapes_UP.T)[:, self.which_M]
        distance_BCM = (self.level_M.square() * self.area_M - 2 * self.level_M * overlap_QM).view(b, c, -1)
        total_BN = distance_BCM[:, 0][:, self.rows_NC[:, 0]]
        for channel in range(1, c):
            total_BN += distance_BCM[:, channel][:, self.rows_NC[:, channel]]
        return total_BN.argmin(dim=1)


class _Bounded:
    """Images are compared in the order of a bound on their distance until the bound exceeds the least one found, which
    is exact; what is near no image at all is given up after `MOST` of them.

    The bound is by sums over blocks of pixels: the square of a sum of n differences is at most n times the sum of their
    squares.
    """

    def __init__(self, images: Store, binary: bool) -> None:
        self.images = images
        self.fine_NS = _sums_of_all(images, binary)
        fine = (images.shape[0], -(-images.shape[1] // FINE), -(-images.shape[2] // FINE))
        parts = [_sums(part.float().view(-1, *fine), COARSE // FINE) for part in torch.split(self.fine_NS, 1 << 16)]
        self.coarse_NS = torch.cat([part.to(self.fine_NS.dtype) for part in parts])

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        bound_BN = _bound(_sums(x_BCHW, COARSE), self.coarse_NS, COARSE**2)
        return torch.tensor([self._one(x_CHW, bound_N) for x_CHW, bound_N in zip(x_BCHW, bound_BN, strict=True)])

    def _one(self, x_CHW: Tensor, bound_N: Tensor) -> int:
        best, at, compared = torch.inf, 0, 0
        slack = 1e-5 * (1 + float(x_CHW.square().sum()))  # of single precision
        tried = bound_N.topk(min(FIRST, len(bound_N)), largest=False).indices
        while len(tried):
            distance = (self.images.gather(tried).cpu() - x_CHW).flatten(1).square().sum(dim=1)
            least = float(distance.min())
            first = int(tried[distance == least].min())
            at = first if least < best else min(at, first) if least == best else at
            best, compared = min(best, least), compared + len(tried)
            bound_N[tried] = torch.inf
            left = (bound_N <= best + slack).nonzero()[:, 0]
            if compared == FIRST and len(left) > FIRST:
                bound_N[left] = _bound(_sums(x_CHW[None], FINE), self.fine_NS[left], FINE**2)[0]
                left = left[bound_N[left] <= best + slack]
            tried = left[bound_N[left].argsort()[:CHUNK]] if compared < MOST else left[:0]
        return at


def _bound(x_BS: Tensor, sums_MS: Tensor, area: int) -> Tensor:
    """|x - t|^2 of the sums, divided by the pixels of a block, (B, M)."""
    inside_B1 = x_BS.square().sum(dim=1, keepdim=True)
    parts = []
    for part in torch.split(sums_MS, 1 << 16):
        t_TS = part.float()
        parts.append((inside_B1 + t_TS.square().sum(dim=1) - 2 * x_BS @ t_TS.T) / area)
    return torch.cat(parts, dim=1)


def _sums(x_BCHW: Tensor, side: int) -> Tensor:
    """Sums over blocks of side x side pixels, (B, S); blocks at the edges may be cut off."""
    height, width = x_BCHW.shape[2:]
    padded = F.pad(x_BCHW, (0, -width % side, 0, -height % side))
    return F.avg_pool2d(padded, side, divisor_override=1).flatten(1)


def _sums_of_all(images: Store, binary: bool) -> Tensor:
    """(N, S) of fine blocks; uint8 for binary images, whose sums are small whole numbers: a quarter of the memory."""
    if isinstance(images, Bits) and FINE == 4 and not (images.shape[1] % 4 or images.shape[2] % 8):
        return torch.cat([_sums_of_bits(part, images.shape) for part in torch.split(images.data.cpu(), 1 << 14)])
    dtype = torch.uint8 if binary else torch.float32
    indices = torch.split(torch.arange(len(images)), 4096)
    return torch.cat([_sums(images.gather(index_T).cpu(), FINE).to(dtype) for index_T in indices])


def _sums_of_bits(data_NP: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The same without unpacking: the ones in each half of a byte, added over four rows."""
    c, h, w = shape
    pairs = data_NP - ((data_NP >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    halves = torch.stack([fours >> 4, fours & 0x0F], dim=-1).view(-1, c, h // 4, 4, w // 4)
    return halves.sum(dim=3, dtype=torch.uint8).flatten(1)
