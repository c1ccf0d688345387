"""Image files that lie within shards: tar archives as WebDataset has them, found once and read by their place.

A sample is the files whose names agree up to the first dot: its image, a class (.cls) and a table of values (.json).
Nothing is ever extracted, and no link within an archive is followed.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from vaecli import output
from vaecli.data import _disk
from vaecli.errors import InputError

MOST = 2**30  # bytes of one image file


class Span(str):
    """The name of a file within a shard, and where its bytes are."""

    shard: str
    offset: int
    size: int

    def __new__(cls, name: str, shard: str, offset: int, size: int) -> "Span":
        span = super().__new__(cls, name)
        span.shard, span.offset, span.size = shard, offset, size
        return span

    def __getnewargs__(self) -> tuple[str, str, int, int]:  # type: ignore[override]
        return str(self), self.shard, self.offset, self.size

    def read(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def opened(path: str) -> BinaryIO | IO[bytes]:
    """A file, or one within a shard, to be read."""
    return io.BytesIO(path.read()) if isinstance(path, Span) else open(path, "rb")


def identity(path: str) -> tuple[int, int]:
    """What tells that a file is another one than before."""
    stat = os.stat(path.shard if isinstance(path, Span) else path)
    return (path.offset, path.size) if isinstance(path, Span) else (stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Index:
    """The images of shards in order: their spans, the cells of each label, by its name ("" where an image has none),
    keys and sha256 of the bytes of the files, and of labels that are numbers of classes the classes' names."""

    spans: list[Span]
    cells: dict[str, list[str]]
    found: _disk.Survey
    classes: Mapping[str, list[str]] = field(default_factory=dict)


def index(root: Path, shards: Sequence[Path], is_image: Callable[[str], bool]) -> Index:
    """InputError for a shard that is no plain tar archive."""

    def make() -> tuple[dict[str, Any], _disk.Survey]:
        facts: dict[str, Any] = {"names": [], "shard": [], "offset": [], "size": [], "labels": []}
        keys: list[int] = []
        with output.progress("looking through shards", len(shards)) as advance:
            for s, shard in enumerate(shards):
                _look(shard, s, is_image, facts, keys)
                advance(1)
        keys_N = torch.tensor(keys, dtype=torch.int64)
        return facts, _disk.Survey(hashlib.sha256(keys_N.numpy().tobytes()).hexdigest(), keys_N, False)

    facts, found = _disk.remembered(_disk.place("shards", [_disk.identity(shard) for shard in shards]), make)
    names = [os.path.join(os.path.relpath(shard, root), "") for shard in shards]
    spans = [
        Span(os.path.join(root, names[s] + name), str(shards[s]), offset, size)
        for name, s, offset, size in zip(facts["names"], facts["shard"], facts["offset"], facts["size"], strict=True)
    ]
    every = dict.fromkeys(key for labels in facts["labels"] for key in labels)
    cells = {key: [labels.get(key, "") for labels in facts["labels"]] for key in every}
    return Index(spans, cells, found)


def _look(shard: Path, s: int, is_image: Callable[[str], bool], facts: dict[str, Any], keys: list[int]) -> None:
    """Take in the samples of a shard."""
    of_key: dict[str, dict[str, str]] = {}  # the labels of a sample, which may stand before its image or behind it
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                if not member.isreg() or member.issparse() or base.startswith("."):
                    continue
                key, _, ending = base.partition(".")
                labels = of_key.setdefault(f"{folder}/{key}", {})
                if is_image(base) and member.size <= MOST:
                    content = _content(archive, member)
                    keys.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1)
                    row = (os.path.normpath("/" + member.name)[1:], s, member.offset_data, member.size, labels)
                    for column, value in zip(("names", "shard", "offset", "size", "labels"), row, strict=True):
                        facts[column].append(value)
                elif ending.lower() == "cls" and member.size < 1000:
                    labels["class"] = _content(archive, member).decode(errors="replace").strip()
                elif ending.lower() == "json" and member.size < 2**20:
                    labels.update(_scalars(_content(archive, member)))
    except (tarfile.TarError, OSError, EOFError) as error:
        text = getattr(error, "strerror", None) or "not a tar archive (of those that are packed, unpack the .gz first)"
        raise InputError(f"{shard}: {text}") from None


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) != member.size:
        raise EOFError
    return content


def _scalars(content: bytes) -> dict[str, str]:
    """The numbers and words of a JSON object."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {str(key)[:80]: str(value) for key, value in values.items() if isinstance(value, str | int | float)}
