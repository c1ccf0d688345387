"""What every data source returns: images resident in memory, labels, splits, and the order in which training reads.

Shapes: N images of the set, B batch, C H W image, K factors, P packed bytes of an image.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, PrivateAttr
from torch import Tensor

from vaecli import device as devices
from vaecli import label_expressions
from vaecli.batch import Batch, DataInfo
from vaecli.data.orders import Order, Shuffled, generator
from vaecli.errors import ConfigError, MachineError
from vaecli.registry import nearest
from vaecli.settings.section import PositiveInt, Section


def _fraction(of_all: bool) -> BeforeValidator:
    """Says what a number with a decimal point may be, `of_all` 1 too, in place of what an integer may be."""

    def check(value: object) -> object:
        if isinstance(value, float) and not (0 <= value < 1 or (of_all and value == 1)):
            interval = "[0, 1]" if of_all else "[0, 1)"
            raise ValueError(f"a fraction is in {interval}, and a number of images a whole number")
        return value

    return BeforeValidator(check)


# An integer is a number of images, a number with a decimal point a fraction.
Holdout = Annotated[
    Annotated[int, Field(ge=0, le=2**53)] | Annotated[float, Field(ge=0, lt=1)], _fraction(of_all=False)
]
Labelled = Annotated[
    Annotated[int, Field(ge=0, le=2**53)] | Annotated[float, Field(ge=0, le=1)], _fraction(of_all=True)
]
Values = str | int | Annotated[list[str | int], Field(min_length=1)]  # of a factor

_SPLIT_SEED = 20_170_424  # fixed: which images are held out must not depend on the seed of a training run


class DataConfig(Section):
    """The options that every source honours.

    `holdout`   images kept out of training as the split `val`: a fraction in [0, 1) or a count. Of files and arrays,
                which people add to, rename and copy, an image's content decides; see `assemble`.
    `limit`     train on no more than this many images, a fixed random subset.
    `labelled`  how many of the known labels of training images an objective may see, a fraction or a count of them, or
                null for all; as a mapping from factors to such numbers, of each factor by itself (others: none).
    `exclude`   a combination that no split holds but `excluded`, as values by factor: {shape: heart, posX: 0-15}; a
                value, `a|b`, `lo-hi` or a list. Whether a model makes what it has never seen is told by these.
    """

    name: str
    holdout: Holdout = 0.1
    limit: PositiveInt | None = None
    labelled: Labelled | dict[str, Labelled] | None = None
    exclude: dict[str, Values] | None = Field(default=None, min_length=1)

    _division: str | None = PrivateAttr(default=None)  # what `DIVISION` in a model's source says of its training


DIVISION = "held_below"  # of a source: the content key (hexadecimal) below which images are held out
BY_POSITION = "position"  # the division of runs from before content decided


class Store(Protocol):
    """Images in memory. `gather` gives float32 (B, C, H, W) in [0, 1] on the store's device."""

    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def nbytes(self) -> int: ...

    def to(self, device: torch.device | str) -> "Store": ...

    def gather(self, index_B: Tensor) -> Tensor: ...


class _Store:
    """What the three stores share: one tensor whose first axis counts the images."""

    def __init__(self, data: Tensor, shape: tuple[int, int, int]) -> None:
        self.data = data
        self.shape = shape

    def __len__(self) -> int:
        return self.data.shape[0]

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.data.to(device), self.shape)

    def _select(self, index_B: Tensor) -> Tensor:
        return self.data.index_select(0, index_B.to(self.device))


class Bytes(_Store):
    """uint8 (N, C, H, W), a pixel being its byte / 255."""

    def __init__(self, data_NCHW: Tensor, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(data_NCHW, shape or _image_shape(data_NCHW))

    def gather(self, index_B: Tensor) -> Tensor:
        # Division, not multiplication by 1 / 255: 255 must give exactly 1.
        return self._select(index_B).float().div_(255.0)


class Coins(Bytes):
    """Grey images thrown as coins: a pixel is white with a probability of its byte / 255, else black.

    A throw is a pure function of its number, the image and the pixel; image i in throw t is asked for as i + N t.
    """

    thrown = True  # anew in each step of training

    def gather(self, index_B: Tensor) -> Tensor:
        index_B = index_B.to(self.device)
        bytes_BCHW = self._select(index_B % len(self))
        pixels = math.prod(self.shape)
        place_BP = index_B[:, None] * pixels + torch.arange(pixels, device=self.device)
        random_BP = mixed(place_BP) & (2**24 - 1)
        # Whole numbers, so that 255 is white and 0 black for sure.
        return (random_BP.view_as(bytes_BCHW) * 255 < bytes_BCHW.long() * 2**24).float()


def mixed(x: Tensor) -> Tensor:
    """int64 to int64, near numbers to unrelated ones: the finalizer of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = x * -0x61C8864680B583EB  # the golden ratio's odd number of 64 bits, as a signed one
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    return x ^ ((x >> 31) & (2**33 - 1))


class Floats(_Store):
    """float32 (N, C, H, W) in [0, 1]."""

    def __init__(self, data_NCHW: Tensor, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(data_NCHW, shape or _image_shape(data_NCHW))

    def gather(self, index_B: Tensor) -> Tensor:
        return self._select(index_B)


class Bits(_Store):
    """Binary images as uint8 (N, P), eight pixels a byte, the first in the highest bit (the order of np.packbits)."""

    def __init__(self, data_NP: Tensor, shape: tuple[int, int, int]) -> None:
        super().__init__(data_NP, shape)
        bits = (torch.arange(256).unsqueeze(1) >> torch.arange(7, -1, -1)) & 1
        self._table = bits.to(torch.float32).to(data_NP.device)  # (256, 8): the pixels of every byte

    @classmethod
    def pack(cls, images_NCHW: np.ndarray[Any, Any]) -> "Bits":
        """From an array in which every value but 0 is white."""
        packed_NP = np.packbits(images_NCHW.reshape(len(images_NCHW), -1) != 0, axis=1)
        c, h, w = images_NCHW.shape[1:]
        return cls(torch.from_numpy(packed_NP), (c, h, w))

    def gather(self, index_B: Tensor) -> Tensor:
        bytes_BP = self._select(index_B)
        pixels = self._table.index_select(0, bytes_BP.flatten().int()).view(len(bytes_BP), -1)
        return pixels[:, : math.prod(self.shape)].reshape(-1, *self.shape)


def content_keys(images_NCHW: np.ndarray[Any, Any]) -> Tensor:
    """For each image a number that its values alone decide, as if drawn evenly from 0 to 2**63 - 1; int64 (N,)."""
    keys = [
        int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "big") >> 1
        for part in chunks(images_NCHW)
        for image in np.ascontiguousarray(part)
    ]
    return torch.tensor(keys, dtype=torch.int64)


class Derived:
    """What stores have in common whose images are made of those of another whenever they are read."""

    images: "Store"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def nbytes(self) -> int:
        return self.images.nbytes


class Pooled(Derived):
    """The images of another store as means of `side` by `side` pixels, taken anew whenever they are read."""

    def __init__(self, images: Store, side: int) -> None:
        self.images, self.side = images, side
        c, h, w = images.shape
        self.shape: tuple[int, int, int] = (c, h // side, w // side)

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.images.to(device), self.side)

    def gather(self, index_B: Tensor) -> Tensor:
        return F.avg_pool2d(self.images.gather(index_B), self.side)


def _image_shape(data_NCHW: Tensor) -> tuple[int, int, int]:
    c, h, w = data_NCHW.shape[1:]
    return c, h, w


def store(images_NCHW: np.ndarray[Any, Any]) -> tuple[Store, bool]:
    """The smallest store for uint8 0..255 or float [0, 1] images, and whether every pixel is 0 or 1."""
    top = 255 if images_NCHW.dtype == np.uint8 else 1
    if all(bool(((part == 0) | (part == top)).all()) for part in chunks(images_NCHW)):
        return Bits.pack(images_NCHW), True
    if images_NCHW.dtype == np.uint8:
        return Bytes(torch.from_numpy(np.ascontiguousarray(images_NCHW))), False
    return Floats(torch.from_numpy(np.ascontiguousarray(images_NCHW, dtype=np.float32))), False


def chunks(array: np.ndarray[Any, Any], size: int = 256) -> Iterator[np.ndarray[Any, Any]]:
    """Slices of the first axis, so that a check of a big array needs little memory on top of it."""
    for start in range(0, len(array), size):
        yield array[start : start + size]


@dataclass
class Dataset:
    """Images with their labels (int64 (N, K), -1 where not known) and the parts they fall into.

    `splits` has `train`, `val` and `test` where images are held out, and `excluded` where a combination of factors is.
    Its indices are in random order (a first part is a fair sample), but for a published test set, which keeps the
    published order, as `all` does.
    `files` names the file that each image is from, within the folder of the set; None where images have none.
    """

    info: DataInfo
    images: Store
    labels: Tensor | None
    splits: dict[str, Tensor]
    labelled: int | float | dict[str, int | float] | None = None
    files: Sequence[str] | None = None

    def to(self, device: torch.device | str) -> "Dataset":
        """Moves images, labels and indices; in place and returning itself, as a module does."""
        self.images = self.images.to(device)
        self.labels = None if self.labels is None else self.labels.to(device)
        self.splits = {name: index.to(device) for name, index in self.splits.items()}
        return self

    @property
    def varying_factors(self) -> int | None:
        """How many factors vary, where the images are the full grid of them; class labels do not say what varies."""
        sizes = self.info.factor_sizes
        if len(sizes) < 2 or math.prod(sizes) != len(self.images):
            return None
        return sum(size > 1 for size in sizes)

    def split(self, name: str) -> "SplitView":
        """`train`, `val`, `test`, `all` or `excluded`; the view's name says which it is.

        `test` falls back to `val`, and `val` to `train` where nothing is held out (never to a test set, which must not
        leak into the choice of a model). ConfigError for another name.
        """
        if name not in ("train", "val", "test", "all") and name not in self.splits:
            names = ", ".join(["train", "val", "test", "all", *(["excluded"] if "excluded" in self.splits else [])])
            raise ConfigError(f"no split is called {name[:80]!r}; there are: {names}")
        if name == "test" and name not in self.splits:
            name = "val"
        if name == "val" and name not in self.splits:
            name = "train"
        index = torch.arange(len(self.images), device=self.images.device) if name == "all" else self.splits[name]
        return SplitView(self, name, index)

    def training(self, seed: int) -> "SplitView":
        """The split `train` with the labels that `labelled` lets a model of this seed see; the others are -1."""
        return SplitView(self, "train", self.splits["train"], _visible_labels(self, seed))

    def held_out(self, name: str) -> "SplitView":
        """A split as an objective may see it: with none of its labels, which only `truth_BK` has."""
        view = self.split(name)
        return SplitView(
            self, view.name, view.indices, None if self.labels is None else torch.full_like(self.labels, -1)
        )

    def stream(self, seed: int, batch_size: int, order: Order | None = None) -> "Stream":
        """The endless sequence of training batches that `seed` stands for, shuffled unless `order` says otherwise."""
        return Stream(self, seed, batch_size, order)

    def batch(self, index_B: Tensor, labels: Tensor | None = None) -> Batch:
        """The images at these positions, with their labels (or those of `labels`, a table like `self.labels`)."""
        labels = self.labels if labels is None else labels
        index_B = index_B.to(self.images.device)
        x_BCHW, index_B = self.images.gather(index_B), index_B % len(self.images)
        seen, truth = (
            None if table is None else table.index_select(0, index_B.to(table.device))
            for table in (labels, self.labels)
        )
        return Batch(x_BCHW, index_B, seen, truth)


@dataclass(frozen=True)
class SplitView:
    """A part of a data set, read in the order of `indices`."""

    dataset: Dataset
    name: str
    indices: Tensor
    labels: Tensor | None = None  # in place of the data set's

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels_NK(self) -> Tensor | None:
        """What an objective may see of these images' labels, int64 (N, K)."""
        table = self.dataset.labels if self.labels is None else self.labels
        return None if table is None else table.index_select(0, self.indices.to(table.device))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All of it; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.dataset.batch(self.indices[start : start + batch_size], self.labels)

    def sample(self, n: int | None) -> "SplitView":
        """A view of n of the images (all where there are no more): the first of a split that is in random order, else
        a random part that is the same each time.
        """
        if n is None or n >= len(self):
            return self
        index = self.indices
        if self.name in ("test", "all"):
            order = torch.randperm(len(self), generator=generator("sample", len(self)))
            index = index[order.to(index.device)]
        return SplitView(self.dataset, self.name, index[:n], self.labels)

    def take(self, n: int) -> Batch:
        """The first n images (all, if there are fewer) as one batch."""
        return self.dataset.batch(self.indices[:n], self.labels)


class Stream:
    """The training batches of a run: at every step those that its order gives, whatever was read before."""

    def __init__(self, dataset: Dataset, seed: int, batch_size: int, order: Order | None = None) -> None:
        self.dataset = dataset
        self.seed = seed
        self.batch_size = batch_size
        self._train = dataset.splits["train"]
        self._labels = _visible_labels(dataset, seed)
        self.order = order or Shuffled(len(self._train), seed, batch_size)

    @property
    def order(self) -> Order:
        return self._order

    @order.setter
    def order(self, order: Order) -> None:
        """An order of a model's own; or else all images at random, as far as the store can be read at random."""
        runs = getattr(self.dataset.images, "runs", None)
        if runs is not None and type(order) is Shuffled:
            order = runs(self._train, self.seed, self.batch_size)
        self._order = order

    def indices(self, step: int, stream: int = 0) -> Tensor:
        """Positions in the data set of a batch at `step`, int64 (B,); of coins those of a throw of its own."""
        index_B = self._train[self.order.indices(step, stream).to(self._train.device)]
        if getattr(self.dataset.images, "thrown", False):
            throw = devices.derive(self.seed, "coins", step, stream) % 2**30
            index_B = index_B + len(self.dataset.images) * throw
        return index_B

    def batch(self, step: int, stream: int = 0) -> Batch:
        """The batch at `step`; labels beyond `data.labelled` are -1."""
        return self.read(self.indices(step, stream))

    def read(self, index_B: Tensor) -> Batch:
        """The images at these positions of the data set, as training sees them."""
        return self.dataset.batch(index_B, self._labels)


def _visible_labels(dataset: Dataset, seed: int) -> Tensor | None:
    """The label table with all labels set to -1 that the model may not see.

    Counts are of labels that are known: `labelled` of the rows with a known label or, as a mapping, of each factor.
    """
    labels_NK, labelled = dataset.labels, dataset.labelled
    if labels_NK is None or labelled is None:
        return labels_NK
    train = dataset.splits["train"].cpu()
    table_NK = labels_NK.cpu()
    visible_NK = torch.full_like(table_NK, -1)
    if isinstance(labelled, dict):
        for name, share in labelled.items():
            k = dataset.info.factor_names.index(name)
            known = train[table_NK[train, k] >= 0]
            kept = _dealt(known, table_NK[:, k], share, generator("labelled", seed, name))
            visible_NK[kept, k] = table_NK[kept, k]
    else:
        known = train[(table_NK[train] >= 0).any(dim=1)]
        classes = table_NK[:, 0] if table_NK.shape[1] == 1 else None
        kept = _dealt(known, classes, labelled, generator("labelled", seed))
        visible_NK[kept] = table_NK[kept]
    return visible_NK.to(labels_NK.device)


def _dealt(rows: Tensor, class_N: Tensor | None, share: int | float, generator: torch.Generator) -> Tensor:
    """A share of these rows, at random; with classes dealt out class by class, one image of each in turn: the counts of
    any two classes differ by one at most, unless a class runs out."""
    keep = rows[torch.randperm(len(rows), generator=generator)]
    if class_N is not None and len(keep):
        label = class_N[keep]
        by_class = torch.argsort(label, stable=True)
        counts = torch.unique_consecutive(label[by_class], return_counts=True)[1]
        turn = torch.cat([torch.arange(count) for count in counts.tolist()])
        keep = keep[by_class[torch.argsort(turn, stable=True)]]
    return keep[: count_of(share, len(rows))]


def count_of(share: int | float, n: int) -> int:
    """A share of n images as a number: an int is that number, a float a fraction (to the nearest image)."""
    return share if isinstance(share, int) else round(share * n)


def assemble(
    config: DataConfig,
    images: Store,
    *,
    labels_NK: Tensor | None = None,
    factor_names: Sequence[str] = (),
    factor_sizes: Sequence[int] = (),
    value_names: Sequence[Sequence[str]] = (),
    binary: bool,
    source: dict[str, Any],
    files: Sequence[str] | None = None,
    content_N: Tensor | None = None,
    val: int = 0,
    test: int = 0,
) -> Dataset:
    """The data set with its splits; the last `test` images are a published test set, the `val` before them are held out
    in place of `holdout`.

    With `content_N` (`content_keys`) those are held out whose key is below a bound, which the source remembers: images
    that come later, and copies, fall where their content belongs, and none that was trained on is ever held out. Equal
    images stay together, so there may be fewer than asked for.

    ConfigError where `holdout` or `exclude` leaves nothing to train on, or `labelled` or `exclude` does not fit.
    """
    value_names_ = tuple(tuple(names) for names in value_names)
    n = len(images) - test - val
    held = 0 if val else count_of(config.holdout, n)
    if isinstance(config.holdout, float):
        held = min(held, n - 1)  # a fraction never takes the only image
    if held >= n:
        raise ConfigError(f"data.holdout is {held:,}, but there are only {n:,} images", "hold out fewer images")
    if content_N is None or config._division == BY_POSITION:
        order = torch.randperm(n, generator=generator("split", _SPLIT_SEED))
    else:
        order = content_N[:n].argsort(stable=True)
        below = int(content_N[order[held]]) if held else 0
        if config._division is not None:
            below = int(config._division, 16)
        held = int((content_N[:n] < below).sum())
        source = {**source, DIVISION: f"{below:016x}"}
    splits = {"train": order[held:]}
    if held:
        splits["val"] = order[:held]
    if val:
        splits["val"] = n + torch.randperm(val, generator=generator("val", _SPLIT_SEED))
    if test:
        splits["test"] = torch.arange(n + val, n + val + test)
    if config.exclude is not None:
        info = DataInfo(
            config.name, images.shape, 0, tuple(factor_names), tuple(factor_sizes), value_names=value_names_
        )
        splits = _without(splits, _excluded(config.exclude, info, labels_NK))
    splits["train"] = splits["train"][: config.limit]
    if config.labelled is not None:
        if labels_NK is None:
            raise ConfigError(
                f"data.labelled is {config.labelled}, but the images have no labels", "leave out data.labelled"
            )
        _check_labelled(config.labelled, labels_NK[splits["train"]], factor_names)
    info = DataInfo(
        name=config.name,
        shape=images.shape,
        size=len(splits["train"]),
        factor_names=tuple(factor_names),
        factor_sizes=tuple(factor_sizes),
        value_names=value_names_,
        total=len(images),
        binary=binary,
        contrast=1.0 if binary else _contrast(images, splits["train"]),
        source=source,
    )
    return Dataset(info, images, labels_NK, splits, config.labelled, files)


def _contrast(images: Store, index_N: Tensor) -> float:
    """See `DataInfo`; of the first images, which are a fair sample, as many as 8 million values."""
    n = min(1000, max(16, 2**23 // math.prod(images.shape)))
    x = images.gather(index_N[:n])
    mean = float(x.mean(dtype=torch.float64))
    squares = float(x.square().mean(dtype=torch.float64))
    return (squares - mean**2) / (mean * (1 - mean)) if 0 < mean < 1 else 0.0


def _excluded(exclude: Mapping[str, Values], info: DataInfo, labels_NK: Tensor | None) -> Tensor:
    """Which images have this combination, bool (N,); ConfigError with the names that there are, or where none has."""
    if labels_NK is None:
        raise ConfigError("data.exclude names factors, but the images have no labels", "leave out data.exclude")
    found_N = torch.ones(len(labels_NK), dtype=torch.bool)
    for factor, given in exclude.items():
        if factor not in info.factor_names:
            raise ConfigError(f"data.exclude: no factor is called {factor[:80]!r}{nearest(factor, info.factor_names)}")
        words = "|".join(map(str, given)) if isinstance(given, list) else str(given)
        values = label_expressions.positions(words, info, factor, "data.exclude")
        found_N &= torch.isin(labels_NK[:, info.factor_names.index(factor)], torch.tensor(values))
    if not bool(found_N.any()):
        raise ConfigError("data.exclude: no image has this combination of values")
    return found_N


def _without(splits: Mapping[str, Tensor], excluded_N: Tensor) -> dict[str, Tensor]:
    """The splits without the images excluded, and those of all of them, in random order, as `excluded`."""
    kept = {name: index[~excluded_N[index]] for name, index in splits.items()}
    if not len(kept["train"]):
        raise ConfigError(
            "data.exclude leaves no image to train on", "name more factors: an image must have all values"
        )
    taken = torch.cat([index[excluded_N[index]] for index in splits.values()])
    order = torch.randperm(len(taken), generator=generator("excluded", _SPLIT_SEED))
    return {**{name: index for name, index in kept.items() if len(index)}, "excluded": taken[order]}


def _check_labelled(
    labelled: int | float | dict[str, int | float], labels_NK: Tensor, factor_names: Sequence[str]
) -> None:
    """ConfigError where more labels are to be seen than are known, or those of a factor that there is not."""
    shares: list[tuple[str | None, int | float]] = (
        [*labelled.items()] if isinstance(labelled, dict) else [(None, labelled)]
    )
    for name, share in shares:
        if name is None:
            key, known_N = "data.labelled", (labels_NK >= 0).any(dim=1)
        elif name in factor_names:
            key, known_N = f"data.labelled.{name}", labels_NK[:, list(factor_names).index(name)] >= 0
        else:
            raise ConfigError(f"data.labelled: no factor is called {name[:80]!r}{nearest(name, factor_names)}")
        known = int(known_N.sum())
        if count_of(share, known) > known:
            raise ConfigError(
                f"{key} is {share:,}, but only {known:,} labels of training images are known",
                f"{known} or fewer; a number with a decimal point is a fraction",
            )


def grid_labels(sizes: Sequence[int]) -> Tensor:
    """Labels of a full grid of factors in order, the last one fastest: int64 (prod(sizes), K)."""
    index_N, labels = torch.arange(math.prod(sizes)), []
    for size in reversed(sizes):
        labels.append(index_N % size)
        index_N = index_N // size
    return torch.stack(labels[::-1], dim=1)


def grid_index(labels_BK: Tensor, sizes: Sequence[int]) -> Tensor:
    """The inverse of `grid_labels`: positions (B,) of images with these factors."""
    index_B = torch.zeros_like(labels_BK[:, 0])
    for k, size in enumerate(sizes):
        index_B = index_B * size + labels_BK[:, k]
    return index_B


def free_memory(where: torch.device | None = None) -> int | None:
    """Bytes of memory that may be taken, of a CUDA device or of the computer, where the system tells."""
    if where is not None and where.type == "cuda":
        held = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)  # by torch, to be used again
        return int(torch.cuda.mem_get_info(where)[0]) + held
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None


def require_memory(nbytes: int, what: str, hint: str) -> None:
    """MachineError if `nbytes` are more than 80 % of the memory that is free, where the system tells."""
    free = free_memory()
    if free is not None and nbytes > 0.8 * free:
        raise MachineError(f"{what} needs {nbytes / 2**30:,.1f} GiB, but {free / 2**30:,.1f} GiB are free", hint)
