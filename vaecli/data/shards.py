"""Shards of image files: a file or folder of .tar (WebDataset) or .parquet (Hugging Face), decoded as folders are.

Labels are the classes in .cls files and the numbers and words in .json files, or the other columns of tables. A set
that is too large is decoded once into the cache, or (`store: stream`) read from the shards as it is needed: in training
through a shuffle buffer, which is a function of the seed and the step, so that a resumed run reads what it would have.
"""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vaecli import output
from vaecli.data import _labels, _parquet, _range, _spans, folder
from vaecli.data._fit import Fit
from vaecli.data._labels import Factors
from vaecli.data._spans import Span
from vaecli.data.base import Dataset, assemble
from vaecli.data.orders import Buffered
from vaecli.errors import ConfigError, InputError

Array = np.ndarray[Any, Any]


class Config(_range.RangeConfig):
    """`path`: a .tar or .parquet file, or a folder with several. `image_size`, `channels`, `fit`, `on_bad_image`: as
    of a folder.

    `store`: `memory`, `disk` (decoded once into the cache), `stream` (decoded whenever they are read) or `auto`:
    memory or disk. `buffer`: images among which a streamed training set is shuffled.
    """

    path: str
    image_size: folder.Size = None
    channels: Literal[1, 3] | None = None
    fit: Fit = "crop"
    on_bad_image: Literal["error", "skip"] = "error"
    store: Literal["auto", "memory", "disk", "stream"] = "auto"
    buffer: Annotated[int, Field(gt=0, le=10_000_000)] = 4096


def load(config: Config) -> Dataset:
    """InputError for shards that are none or have no images; ConfigError for what a stream cannot give."""
    given = Path(config.path).expanduser()
    _range.check(config.range)
    root = given.parent if given.is_file() else given
    every = [given] if given.is_file() else sorted(given.glob("*"), key=lambda path: _labels.natural(path.name))
    shards, tables = ([path for path in every if path.suffix.lower() == end] for end in (".tar", ".parquet"))
    if bool(shards) == bool(tables):
        what = "shards of both kinds" if shards else "no shards found"
        raise InputError(f"{given}: {what}", "give a .tar or .parquet file, or a folder with files of one kind")
    if tables:
        shards, index = tables, _parquet.index(root, tables)
    else:
        index = _spans.index(root, shards, lambda name: os.path.splitext(name)[1].lower() in folder.SUFFIXES)
    if not index.spans:
        raise InputError(f"{given}: no images in {len(shards):,} shards")
    place = {str(span): i for i, span in enumerate(index.spans)}
    if len(place) < len(index.spans):
        twice = next(name for name, n in Counter(map(str, index.spans)).items() if n > 1)
        raise InputError(f"{given}: two images are called {os.path.relpath(twice, root)}")

    def factors(good: list[str], files: list[str]) -> Factors | None:
        rows = [place[name] for name in good]
        columns = [[column[i] for i in rows] for column in index.cells.values()]
        return _labels.from_table(given, list(index.cells), columns, index.classes) if columns else None

    common = config.model_dump(exclude={"path", "buffer", "store"})
    read = folder.Config(**common, path=str(root), store="auto" if config.store == "stream" else config.store)
    read._division = config._division
    if config.store != "stream":

        def known(good: list[str]) -> tuple[str, Tensor]:
            return index.found.sha256, index.found.keys_N[torch.tensor([place[name] for name in good])]

        return folder.read(read, root, list(index.spans), {}, factors, known=known)
    if config.on_bad_image == "skip":
        raise ConfigError("what is bad in a stream is known only when it is read", "data.store=disk leaves it out")
    _, (_, *shape) = folder.surveyed(read, root, list(index.spans))
    images = Streamed(index.spans, (shape[0], shape[1], shape[2]), config)
    output.notice(
        f"{given}: {len(images):,} images in {len(shards):,} shards are decoded as they are read; "
        f"in training a buffer of {config.buffer:,} shuffles them"
    )
    labels = factors(list(index.spans), [])
    return assemble(
        config,
        images,
        **(labels.for_assemble() if labels else {}),
        binary=False,
        source={
            "kind": "folder",
            "sha256": index.found.sha256,
            "range": images.ranges,
            "fit": {"how": config.fit, "most": 0.0},
        },
        content_N=index.found.keys_N,
        files=[os.path.relpath(span, root) for span in index.spans],
    )


class Streamed:
    """Images that are decoded whenever they are read, by as many threads as torch has."""

    def __init__(self, spans: list[Span], shape: tuple[int, int, int], config: Config) -> None:
        self.spans, self.shape, self.config = spans, shape, config
        # Not all values are known: each type is read by its own range.
        kinds = ("uint8", "uint16", "int32", "float")
        self.ranges = {kind: _range.at_first(config.range, kind) for kind in kinds}
        if config.range == "auto":
            self.ranges = {"uint8": self.ranges["uint8"]}
        number = {shard: i for i, shard in enumerate(dict.fromkeys(span.shard for span in spans))}
        self._shard_N = torch.tensor([number[span.shard] for span in spans])

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        """Nothing is kept."""
        return 0

    def to(self, device: torch.device | str) -> Self:
        return self

    def runs(self, index_N: Tensor, seed: int, batch_size: int) -> Buffered:
        """The order in which these images are trained on."""
        index_N = index_N.cpu()
        return Buffered(self._shard_N[index_N], index_N, seed, batch_size, self.config.buffer)

    def gather(self, index_B: Tensor) -> Tensor:
        found = np.empty((len(index_B), *self.shape), np.uint8)
        for i, image_CHW in enumerate(self._decoded([self.spans[j] for j in index_B.tolist()])):
            found[i] = image_CHW
        return torch.from_numpy(found).float().div_(255.0)

    def _decoded(self, spans: list[Span]) -> Iterator[Array]:
        read = partial(_one, shape=self.shape, wanted=self.config.range, fit=self.config.fit)
        workers = min(torch.get_num_threads(), len(spans))
        if workers < 2:
            yield from map(read, spans)
            return
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(read, spans)


def _one(span: Span, shape: tuple[int, int, int], wanted: _range.Wanted, fit: Fit) -> Array:
    try:
        return folder.read_pixels(span, *shape, wanted, fit)
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        text = str(getattr(error, "strerror", None) or error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{span}: {text}", "data.store=disk with data.on_bad_image=skip leaves such images out"
        ) from None
