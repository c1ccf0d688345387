"""Images within Parquet tables, as Hugging Face has them: their bytes are put into a file of the cache, once, and are
spans from then on. Other columns of numbers or words are labels.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from vaecli import output, safe_files
from vaecli.data import _disk
from vaecli.data._spans import Index, Span
from vaecli.errors import ConfigError, InputError, MachineError

IMAGES = ("image", "img", "images", "png", "jpg", "jpeg", "bytes")


def index(root: Path, tables: Sequence[Path]) -> Index:
    """ConfigError where PyArrow is not installed; InputError for a table that is none, or without images."""
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError:
        message = "Parquet tables are read by PyArrow, which is not installed"
        raise ConfigError(message, 'pip install "vaecli[parquet]"') from None
    kept = _disk.place("parquet", [_disk.identity(table) for table in tables])
    blob = kept.with_suffix(".bytes")

    def make() -> tuple[dict[str, Any], _disk.Survey]:
        facts: dict[str, Any] = {"names": [], "offset": [], "size": [], "cells": {}, "classes": {}}
        keys: list[int] = []
        with _making(blob, sum(table.stat().st_size for table in tables)) as file:
            for table in tables:
                try:
                    with parquet.ParquetFile(table) as held:
                        _look(table, held, file, facts, keys)
                except (ArrowException, OSError) as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise
                    raise InputError(f"{table}: not a Parquet table, or a damaged one") from None
        keys_N = torch.tensor(keys, dtype=torch.int64)
        facts["file"] = _disk.identity(blob)[1:]
        return facts, _disk.Survey(hashlib.sha256(keys_N.numpy().tobytes()).hexdigest(), keys_N, False)

    def holds(facts: dict[str, Any]) -> bool:
        return blob.exists() and facts["file"] == _disk.identity(blob)[1:]

    facts, found = _disk.remembered(kept, make, holds)
    spans = [
        Span(os.path.join(root, name), str(blob), offset, size)
        for name, offset, size in zip(facts["names"], facts["offset"], facts["size"], strict=True)
    ]
    return Index(spans, facts["cells"], found, facts["classes"])


@contextmanager
def _making(blob: Path, nbytes: int) -> Iterator[IO[bytes]]:
    try:
        blob.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(blob.parent).free) < nbytes:
            raise MachineError(
                f"{blob.parent} has {free / 1e9:,.1f} GB free, and the images take {nbytes / 1e9:,.1f} GB there",
                "free some space, or set VAE_CACHE_DIR to a disk that has more",
            )
        with safe_files.replacing(blob) as file:
            yield file
    except OSError as error:
        raise MachineError(f"{blob}: {error.strerror}", "VAE_CACHE_DIR names another folder for the cache") from None


def _look(table: Path, held: Any, file: IO[bytes], facts: dict[str, Any], keys: list[int]) -> None:
    """Take in the rows of a table."""
    from pyarrow import types

    schema = held.schema_arrow
    pictures = [
        field.name
        for field in schema
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    column = next((name for name in pictures if name.lower() in IMAGES), pictures[0] if len(pictures) == 1 else None)
    if column is None:
        listed = ", ".join(schema.names[:10])
        raise InputError(f"{table} has no column `image` of the bytes of images; its columns: {listed}")
    labels = [
        field.name
        for field in schema
        if types.is_integer(field.type) or types.is_floating(field.type) or types.is_boolean(field.type)
        or types.is_string(field.type) or types.is_large_string(field.type)
    ]  # fmt: skip
    facts["classes"] |= _classes(schema.metadata or {})
    before = len(facts["names"])
    with output.progress(f"reading {table.name}", held.metadata.num_rows) as advance:
        for batch in held.iter_batches(batch_size=256, columns=[column, *labels]):
            for row in batch.to_pylist():
                content = row[column]["bytes"] if isinstance(row[column], dict) else row[column]
                number = len(facts["names"]) - before
                if not content:
                    raise InputError(f"{table}: row {number} has no image within the table")
                facts["names"].append(f"{table.name}/{number}")
                facts["offset"].append(file.tell())
                facts["size"].append(len(content))
                keys.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1)
                file.write(content)
                for name in labels:
                    # A column that earlier tables lack is empty there.
                    cells = facts["cells"].setdefault(name, [""] * (len(facts["names"]) - 1))
                    cells.append(_cell(row[name]))
            for cells in facts["cells"].values():
                cells += [""] * (len(facts["names"]) - len(cells))
            advance(batch.num_rows)


def _cell(value: Any) -> str:
    return "" if value is None else str(int(value) if isinstance(value, bool) else value)


def _classes(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names of the values of columns that Hugging Face calls ClassLabel."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: list(map(str, f["names"])) for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
