"""Labels as people keep them, to factors: columns of numbers or words become classes, each with its name.

    integers counted from 0     as they are, -1 where not known
    -1 and 1 alone              two values, 0 and 1
    one-hot rows                one factor
    other numbers, words        the different values in their order (2 before 10), which are the names; NaN and empty
                                ones are not known

A column of more than 1,000 different values says what no class does: it is left out, which is said. Tables are text
files, comma, semicolon or tab between the columns.

Shapes: N images, K factors.
"""

import csv
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaecli import output
from vaecli.errors import InputError

Array = np.ndarray[Any, Any]

MOST = 1000  # different values of one factor
LONGEST = 80  # characters of a name
# What columns with the names of files are called.
_FILE = ("file", "filename", "file_name", "image", "image_id", "img", "path", "image_path", "filepath", "name", "id")


@dataclass(frozen=True)
class Factors:
    """Classes, int64 (N, K), -1 where not known; the names of the factors, and of each one's values (or none)."""

    labels_NK: Tensor
    names: list[str]
    value_names: list[list[str]]

    @property
    def sizes(self) -> list[int]:
        return [max(int(top) + 1, len(names), 1) for top, names in zip(self._top(), self.value_names, strict=True)]

    def _top(self) -> list[int]:
        return [int(top) for top in self.labels_NK.amax(dim=0).tolist()]

    def for_assemble(self) -> dict[str, Any]:
        """As `assemble` takes them."""
        return {
            "labels_NK": self.labels_NK,
            "factor_names": self.names,
            "factor_sizes": self.sizes,
            "value_names": self.value_names,
        }


def joined(parts: Sequence[Factors | None]) -> Factors | None:
    """The factors of all, side by side; where a name comes twice, those of the later one."""
    columns: dict[str, tuple[Tensor, list[str]]] = {}
    for part in parts:
        for k, name in enumerate(part.names if part else ()):
            assert part is not None
            columns[name] = part.labels_NK[:, k], part.value_names[k]
    if not columns:
        return None
    labels = torch.stack([label_N for label_N, _ in columns.values()], dim=1)
    return Factors(labels, list(columns), [names for _, names in columns.values()])


def from_array(where: object, values: Array, names: Sequence[str] | None, n: int) -> Factors | None:
    """The factors of an array (N,) or (N, K) of any plain type; None where every column is left out.

    InputError where there are not N rows, or of another type.
    """
    hint = "labels are integers counted from 0, other numbers or words, (N,) or (N, K)"
    if values.ndim not in (1, 2) or 0 in values.shape or values.dtype.kind not in "biufUS":
        raise InputError(f"{where}: labels of type {values.dtype} and shape {values.shape}", hint)
    if len(values) != n:
        raise InputError(f"{where}: {len(values):,} rows of labels for {n:,} images", hint)
    values = values.reshape(n, -1)
    k = values.shape[1]
    if names is not None and len(names) != k:
        output.warning(f"{where}: {len(names):,} factor_names for {k:,} factors; they are left out")
        names = None
    if k > 1 and values.dtype.kind in "biuf" and _one_hot(values):
        output.notice(f"{where}: the labels are one-hot: they are taken for one factor of {k} classes")
        labels = torch.from_numpy(values.argmax(axis=1).astype(np.int64))[:, None]
        return Factors(labels, ["class"], [list(names or [])])
    whole = [_whole(values[:, j]) if values.dtype.kind in "biuf" else None for j in range(k)]
    two = all(found is not None and set(np.unique(found).tolist()) <= {-1, 1} for found in whole)
    if two := two and any((values == -1).ravel()) and any((values == 1).ravel()):
        # Elsewhere -1 says that a label is not known.
        output.warning(f"{where}: the labels are -1 and 1: -1 is taken for one of two values, not for a missing label")
    columns: dict[str, tuple[Array, list[str]] | None] = {}
    for j, name in enumerate(names or (["class"] if k == 1 else [f"factor{j}" for j in range(k)])):
        if two:
            columns[name] = (values[:, j].astype(np.int64) + 1) // 2, ["-1", "1"]
        else:
            columns[name] = _factor(values[:, j], counted=True)
    return _gathered(where, columns)


def from_table(
    where: object,
    names: Sequence[str],
    columns: Sequence[Sequence[str]],
    classes: Mapping[str, list[str]] | None = None,
) -> Factors | None:
    """The same of columns of text. Integers that are not counted from 0 are names, as words are; those of `classes` are
    numbers of the classes there."""
    found: dict[str, tuple[Array, list[str]] | None] = {}
    for name, column in zip(names, columns, strict=True):
        values = _numbers(column)
        if classes and name in classes and values is not None:
            label_N = np.nan_to_num(values, nan=-1).astype(np.int64)
            if bool((label_N >= len(classes[name])).any()):
                raise InputError(f"{where}: {name} is {label_N.max()}, but it has {len(classes[name])} classes")
            found[name] = label_N.clip(min=-1), [word[:LONGEST] for word in classes[name]]
        elif values is not None and set(np.unique(values[~np.isnan(values)]).tolist()) == {-1.0, 1.0}:
            label_N = np.where(np.isnan(values), -1, (np.nan_to_num(values) + 1) // 2).astype(np.int64)
            found[name] = label_N, ["-1", "1"]
        else:
            found[name] = _factor(np.array(column, dtype=str) if values is None else values)
    return _gathered(where, found)


def _gathered(where: object, columns: dict[str, tuple[Array, list[str]] | None]) -> Factors | None:
    kept = {name[:LONGEST]: column for name, column in columns.items() if column is not None}
    if left := [name for name, column in columns.items() if column is None]:
        listed = ", ".join(left[:5]) + ", ..." * (len(left) > 5)
        output.warning(f"{where}: of more than {MOST:,} different values, which are no classes: {listed}; left out")
    if not kept:
        return None
    labels_NK = torch.from_numpy(np.stack([label_N for label_N, _ in kept.values()], axis=1))
    return Factors(labels_NK, list(kept), [names for _, names in kept.values()])


def _one_hot(values_NK: Array) -> bool:
    return bool(((values_NK == 0) | (values_NK == 1)).all()) and bool((values_NK.sum(axis=1) == 1).all())


def _whole(values_N: Array) -> Array | None:
    """Integers, int64, -1 for NaN; None where there are others."""
    if values_N.dtype.kind in "biu":
        return values_N.astype(np.int64)
    known_N = ~np.isnan(values_N)
    filled_N = np.where(known_N, values_N, -1)
    if not bool(np.isfinite(filled_N).all()) or bool((np.abs(filled_N) > 2**53).any()):
        return None
    return filled_N.astype(np.int64) if bool((filled_N == np.rint(filled_N)).all()) else None


def _factor(values_N: Array, counted: bool = False) -> tuple[Array, list[str]] | None:
    """Classes, and their names where they are more than their numbers; None where they are too many.

    `counted`: integers are taken as numbers of classes even if some below the greatest do not occur.
    """
    if values_N.dtype.kind in "US":
        words = np.array([word.decode(errors="replace") if isinstance(word, bytes) else word for word in values_N])
        different = sorted(set(words.tolist()) - {""}, key=natural)
        names = [word[:LONGEST] for word in different]
        number = {word: i for i, word in enumerate(different)} | {"": -1}
        return None if len(different) > MOST else (np.array([number[w] for w in words.tolist()], np.int64), names)
    whole_N = _whole(values_N)
    if whole_N is not None:
        distinct = np.unique(whole_N[whole_N != -1])
        top = int(distinct[-1]) if len(distinct) else -1
        if not len(distinct) or (distinct[0] >= 0 and top < MOST and (counted or len(distinct) == top + 1)):
            return whole_N, []
    known_N = ~np.isnan(values_N) if values_N.dtype.kind == "f" else np.ones(len(values_N), bool)
    distinct, place = np.unique(values_N[known_N], return_inverse=True)
    if len(distinct) > MOST:
        return None
    label_N = np.full(len(values_N), -1, np.int64)
    label_N[known_N] = place
    return label_N, [f"{value:g}" if values_N.dtype.kind == "f" else str(value) for value in distinct.tolist()]


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key by which `img2` comes before `img10`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(0, int(part), part) if part[0].isascii() and part.isdigit() else (1, 0, part) for part in parts]


def _numbers(column: Sequence[str]) -> Array | None:
    """float64 (N,), NaN for an empty cell; None where there are words, or nothing at all."""
    values = np.full(len(column), np.nan)
    for i, cell in enumerate(column):
        if cell:
            try:
                values[i] = float(cell)
            except ValueError:
                return None
    return None if bool(np.isnan(values).all()) else values


# ---- tables


@dataclass(frozen=True)
class Table:
    """Rows of text cells, all of one length."""

    path: Path
    rows: list[list[str]]

    def columns(self) -> list[list[str]]:
        return [[row[j] for row in self.rows] for j in range(len(self.rows[0]))]


def is_table(name: str) -> bool:
    return name.lower().endswith((".csv", ".tsv"))


@contextmanager
def text(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a text file, UTF-8 with or without a mark; InputError where there is no file."""
    if not path.is_file():
        raise InputError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield iter(file)


def delimiter(line: str) -> str:
    """Which of comma, semicolon and tab divides the columns."""
    return max(",;\t", key=line.count)


def read_table(path: Path) -> Table:
    """InputError naming the row where they have different lengths; for what is no text; where there are none."""
    try:
        with text(path) as lines:
            first = next(lines, "")
            reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter(first))
            rows = [[cell.strip() for cell in row] for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no table in UTF-8"
        raise InputError(f"{path}: {reason}", "save it as CSV, UTF-8") from None
    if not rows:
        raise InputError(f"{path} is empty")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise InputError(f"{path}: row {i + 1} has {len(row)} columns, the first has {len(rows[0])}")
    return Table(path, rows)


def find(path: str, beside: Path) -> Path:
    """The file of `data.labels`: as it is called, or within the folder of the images."""
    given = Path(path).expanduser()
    return beside / given if not given.exists() and not given.is_absolute() and (beside / given).exists() else given


def of_rows(path: Path, n: int) -> Factors | None:
    """The factors of a table with a row for each of `n` images, in their order, and perhaps a first one of names."""
    rows = read_table(path).rows
    if len(rows) not in (n, n + 1):
        raise InputError(f"{path}: {len(rows):,} rows for {n:,} images", "one row an image, and perhaps one of names")
    names = rows[0] if len(rows) == n + 1 else _numbered(len(rows[0]))
    return from_table(path, names, Table(path, rows[-n:]).columns())


def _numbered(k: int) -> list[str]:
    return ["class"] if k == 1 else [f"factor{j}" for j in range(k)]


def of_files(path: Path, files: Sequence[str]) -> Factors | None:
    """The factors of a table in which one column has the names of files, with or without folders and endings.

    `files`: the paths of the images below their folder. Images that no row names have no labels, and rows may name
    other files, which is counted and said. InputError where no row names an image, or two rows name one.
    """
    rows = read_table(path).rows
    place: dict[str, list[int]] = {}
    for i, file in enumerate(files):
        file = file.replace(os.sep, "/")
        stem, base = os.path.splitext(file)[0], file.rpartition("/")[2]
        for name in {file, stem, base, os.path.splitext(base)[0]}:
            place.setdefault(name, []).append(i)

    def images(cell: str) -> list[int]:
        """Those a cell names: one, or the frames of one file, but not several that are called alike."""
        found = place.get(cell.replace("\\", "/").removeprefix("./"), [])
        return found if len({files[i].partition("[")[0] for i in found}) == 1 else []

    if len(rows[0]) < 2:
        raise InputError(f"{path} has one column", "a table of labels has a column of file names and others beside it")
    some = rows[:200]
    hits = [sum(bool(images(row[j])) for row in some) for j in range(len(rows[0]))]
    named = [row.lower() in _FILE for row in rows[0]]
    column = max(range(len(hits)), key=lambda j: (hits[j], named[j], -j))
    if not hits[column] and not any(images(row[column]) for row in rows):
        example = next((row[column] for row in rows[1:]), rows[0][column])
        raise InputError(
            f"{path}: no row names an image: it has {example!r}, the images are called {files[0]!r} and so on",
            "a column must have the names of the files, with or without their folders and endings",
        )
    header = not images(rows[0][column])
    names = rows[0] if header else [f"factor{j}" for j in range(len(rows[0]))]
    body, others = rows[header:], [j for j in range(len(names)) if j != column]
    row_of: dict[int, int] = {}
    unknown = []
    for r, row in enumerate(body):
        found = images(row[column])
        if not found:
            unknown.append(row[column])
        for i in found:
            if i in row_of:
                raise InputError(f"{path}: rows {row_of[i] + 1 + header} and {r + 1 + header} name {files[i]}")
            row_of[i] = r
    if unknown:
        output.notice(f"{path}: {len(unknown):,} rows name no image here, {unknown[0]!r} among them")
    if without := [file for i, file in enumerate(files) if i not in row_of]:
        output.warning(f"{path}: {len(without):,} images are in no row and have no label, {without[0]!r} among them")
    columns = [[body[row_of[i]][j] if i in row_of else "" for i in range(len(files))] for j in others]
    return from_table(path, _distinct([names[j] for j in others]) if header else _numbered(len(others)), columns)


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two columns of the table are called {twice[:LONGEST]!r}")
    return names
