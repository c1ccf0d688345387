"""`vae sample --label`: images of the labels asked for, and what is read back of them.

Shapes: N images, M combinations of labels, L labels that can be asked for, B batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaecli import data, label_expressions
from vaecli import output as streams
from vaecli.analysis import labelled, readers
from vaecli.analysis.draws import CHUNK
from vaecli.analysis.labelled import Sampler
from vaecli.analysis.readers import Reader
from vaecli.batch import DataInfo
from vaecli.errors import ConfigError, VaeError
from vaecli.report import figures
from vaecli.training.checkpoint import Loaded


@dataclass(frozen=True)
class Request:
    """`rows_ML` are the combinations asked for, -1 for what is to be drawn; image i is of the i-th of them, over and
    over. `headings` are theirs in words."""

    sampler: Sampler
    info: DataInfo
    rows_ML: Tensor
    headings: Sequence[str]

    def labels(self, start: int, count: int) -> Tensor:
        """What is asked for of these images, int64 (B, L)."""
        return self.rows_ML[(start + torch.arange(count)) % len(self.rows_ML)]


def request(sampler: Sampler, info: DataInfo, texts: Sequence[str], n: int) -> Request:
    """ConfigError with the names that there are, or where there are fewer images than combinations."""
    wanted = label_expressions.wanted(texts, info, sampler.factors)
    rows = label_expressions.combinations(wanted, sampler.factors)
    if len(rows) > n:
        raise ConfigError(f"--label stands for {len(rows):,} combinations, but -n is {n:,}", f"-n {len(rows)}")
    headings = []
    for row in rows:
        named = label_expressions.text_of(row, info, sampler.factors)
        alone = len(wanted) == 1
        headings.append(", ".join(f"{value}" if alone else f"{f} {value}" for f, value in named.items() if value))
    return Request(sampler, info, torch.tensor(rows, dtype=torch.int64), headings)


@dataclass(frozen=True)
class Drawn:
    """Images and latents of all levels, with the labels asked for (-1: drawn), those they are of (None where only the
    density knows), and those read back by the model's q(y|x) and by a reader of images, where there are."""

    request: Request
    x_NCHW: NDArray[np.float32]
    z_ND: NDArray[np.float32]
    asked_NL: Tensor
    labels_NL: Tensor | None
    model_NL: Tensor | None
    reader: Reader | None
    reader_NL: Tensor | None

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a .npz: what is known of `labels`, `asked`, `read_by_model`, `read_by_oracle` (N, L), `label_names`."""
        known = {
            "asked": self.asked_NL, "labels": self.labels_NL, "read_by_model": self.model_NL,
            "read_by_oracle": self.reader_NL,
        }  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {name: t.numpy() for name, t in known.items() if t is not None}
        arrays["label_names"] = np.array(self.request.sampler.factors, dtype=np.str_)
        return arrays

    def right(self, read_NL: Tensor | None) -> dict[str, float]:
        """By factor asked for, the share of images of which it was read back."""
        factors = self.request.sampler.factors
        if read_NL is None:
            return {}
        same = [readers.canonical(self.reader, labels_NL, factors) for labels_NL in (read_NL, self.asked_NL)]
        found = {}
        for k, factor in enumerate(factors):
            asked_N = self.asked_NL[:, k] >= 0
            if bool(asked_N.any()):
                found[factor] = float((same[0] == same[1])[asked_N, k].double().mean())
        return found

    def record(self) -> dict[str, Any]:
        """For JSON: labels by name, image by image, and how often they were read back."""
        tables = {"asked": self.asked_NL, "labels": self.labels_NL, "model": self.model_NL, "oracle": self.reader_NL}
        factors, info = self.request.sampler.factors, self.request.info
        named = {
            key: None if t is None else [label_expressions.text_of(row, info, factors) for row in t.tolist()]
            for key, t in tables.items()
        }
        images = [
            {key: None if texts is None else texts[i] for key, texts in named.items()} for i in range(len(self.x_NCHW))
        ]
        read = {"model": self.right(self.model_NL) or None, "oracle": self.right(self.reader_NL) or None}
        reader = None if self.reader is None else self.reader.record()
        return {"images": images, "read_back": read, "reader": reader, "drawn_from": self.request.sampler.text}

    def text(self) -> str:
        """How often what was asked for was read back, in a line."""
        parts = []
        for what, read_NL in (("the model's q(y|x)", self.model_NL), ("the oracle", self.reader_NL)):
            if shares := self.right(read_NL):
                parts.append(", ".join(f"{factor} {value:.1%}" for factor, value in shares.items()) + f" by {what}")
        return "read back as asked for: " + ("; ".join(parts) or "by nothing here")

    def sheet(self, title: str) -> bytes:
        """A column a combination, PNG; a plain grid for a single one."""
        x_NCHW, headings = self.x_NCHW, self.request.headings
        if len(headings) == 1:
            columns = figures.columns_for(len(x_NCHW), *x_NCHW.shape[2:])
            return figures.png(figures.sheet(figures.in_rows(x_NCHW, columns), (), f"{title} · {headings[0]}"))
        return figures.png(figures.sheet(figures.in_rows(x_NCHW, len(headings)), headings, title))


def draw(asked: Request, n: int, temperature: float, loaded: Loaded) -> Drawn:
    """`n` images with what is read back of them; seed torch's generator first."""
    model, reader = asked.sampler.model, of(loaded)
    x, z, labels, own, read = [], [], [], [], []
    known = bool(labelled.blocks(model))
    with torch.inference_mode(), streams.progress("sampling", n) as advance:
        for start in range(0, n, CHUNK):
            keep = min(CHUNK, n - start)
            values = asked.sampler.draw(asked.labels(start, CHUNK), temperature)
            x_BCHW = model.image(values).float()[:keep]
            x.append(x_BCHW.cpu())
            z.append(model.flatten(values, model.levels)[:keep].float().cpu())
            if known:
                labels.append(labelled.labels_of(model, values)[:keep].cpu())
                own.append(labelled.read(model, x_BCHW).cpu())
            if reader is not None:
                columns = [reader.factors.index(factor) for factor in asked.sampler.factors]
                read.append(reader.predict(x_BCHW).cpu()[:, columns])
            advance(keep)
    tables = [torch.cat(parts) if parts else None for parts in (labels, own, read)]
    asked_NL = asked.labels(0, n)
    return Drawn(asked, torch.cat(x).numpy(), torch.cat(z).numpy(), asked_NL, tables[0], tables[1], reader, tables[2])


def batches(drawn: Drawn) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """As `write_images` takes them."""
    yield drawn.x_NCHW, drawn.z_ND


def of(loaded: Loaded, train: bool = False) -> Reader | None:
    """Who reads factors of images of a model's kind, where that takes no training or it may be trained; a notice says
    why there is nobody."""
    try:
        found = readers.reader(data.load(loaded.config.data, loaded.info), loaded.model.device, train)
    except VaeError as error:
        streams.notice(f"not read back by an oracle: {error.message}")
        return None
    if found is None:
        streams.notice("not read back by an oracle: none is trained yet, which vae analyze RUN --control does")
    return found
