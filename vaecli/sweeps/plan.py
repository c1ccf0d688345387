"""What a sweep varies, and its folder: `sweep.json` with what was asked for, and a run directory for each run.

A run is one command line with files and an exit code: `vae train ... --name NAME --resume auto` starts it, goes on with
it where it was killed, and says so where it is finished. Its name carries what varies: `beta_4-latent_dim_10-s0`.
"""

import fcntl
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaecli import safe_files
from vaecli.errors import ConfigError, MachineError

FILE = "sweep.json"
MOST = 10_000  # runs of a sweep
LARGEST = 1 << 24


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included, that a search may take."""

    low: float
    high: float
    log: bool
    whole: bool


@dataclass(frozen=True)
class Task:
    """One run: its name, what it sets (texts of `--set`), and its seed."""

    name: str
    sets: tuple[str, ...]
    seed: int

    def arguments(self, base: Sequence[str], folder: Path) -> list[str]:
        """Its command line after `vae`."""
        sets = [word for text in self.sets for word in ("--set", text)]
        named = ["--name", self.name, "--runs-dir", str(folder), "--resume", "auto", "--json"]
        return ["train", *base, *sets, "--seed", str(self.seed), *named]


def parse_grid(texts: Sequence[str]) -> dict[str, list[str] | Range]:
    """`KEY=1,4,16` as a list of values, `KEY=1..16` or `KEY=1e-4..1e-2:log` as a range; ConfigError for anything else.

    Commas within brackets separate nothing.
    """
    grid: dict[str, list[str] | Range] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise ConfigError(f"--grid {text[:80]!r}: not KEY=VALUES", "write --grid model.beta=1,4,16")
        if key in grid:
            raise ConfigError(f"--grid: {key} is named twice", f"write all its values as {key}=1,4,16")
        if key == "seed":
            raise ConfigError("--grid: a sweep has seeds of its own", "write --seeds 0-4")
        grid[key] = _range(values) or _values(values, text)
    return grid


def _range(text: str) -> Range | None:
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    found = re.fullmatch(rf"\s*({number})\.\.({number})(:log)?\s*", text)
    if found is None:
        return None
    low, high, log = float(found[1]), float(found[2]), found[3] is not None
    if not low < high or (log and low <= 0):
        raise ConfigError(f"--grid: {text.strip()!r} is no range", "the first number is the smaller; above 0 for :log")
    return Range(low, high, log, all(re.fullmatch(r"[-+]?\d+", part) for part in found.groups()[:2]))


def _values(text: str, whole: str) -> list[str]:
    values, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            values.append("")
        else:
            values[-1] += sign
    values = [value.strip() for value in values]
    if not all(values) or len(set(values)) < len(values):
        raise ConfigError(f"--grid {whole[:80]!r}: a value is empty or there twice", "write --grid model.beta=1,4,16")
    return values


def tasks(grid: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[Task]:
    """Every combination with every seed, the first key slowest. ConfigError for too many."""
    combinations = list(itertools.islice(itertools.product(*grid.values()), MOST + 1))
    if len(combinations) * len(seeds) > MOST:
        raise ConfigError(f"the sweep would have more than {MOST:,} runs")
    found = [
        Task(run_name(dict(zip(grid, values, strict=True)), seed), _sets(dict(zip(grid, values, strict=True))), seed)
        for values in combinations
        for seed in seeds
    ]
    if len({task.name for task in found}) < len(found):
        raise ConfigError("two runs of the sweep would have the same name", "give values that differ in their letters")
    return found


def _sets(values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in values.items())


def run_name(values: Mapping[str, str], seed: int, prefix: str = "") -> str:
    """What varies, in letters that a directory's name may have, and the seed."""
    short = [key.rpartition(".")[2] for key in values]
    parts = [prefix] if prefix else []
    for key, last, value in zip(values, short, values.values(), strict=True):
        word = last if short.count(last) == 1 else key
        plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", value).strip("_.")
        if not re.fullmatch(r"[\w.+-]{1,24}", value):  # a section or a long text: what is left of it need not differ
            plain = f"{plain[:16]}_{hashlib.sha256(value.encode()).hexdigest()[:6]}"
        parts.append(f"{word}_{plain}".replace("+", ""))
    name = "-".join([*parts, f"s{seed}"])
    if len(name) > 120:
        name = f"{name[:90]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}-s{seed}"
    return name


# ----------------------------------------------------------------------------------------------------------- the folder


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return safe_files.is_plain(folder / FILE)


def runs(folder: Path) -> list[Path]:
    """The run directories of a sweep, by name."""
    return sorted(path.parent for path in folder.glob("*/run.json") if safe_files.is_plain_folder(path.parent))


def check_folder(folder: Path, asked: Mapping[str, Any]) -> None:
    """ConfigError where the folder is of another `base` command line, or something else than a sweep's."""
    if is_sweep(folder):
        try:
            known = json.loads(safe_files.read(folder / FILE, LARGEST))
            base = list(known["base"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise ConfigError(f"{folder / FILE}: damaged", "start a sweep of another --name") from None
        if base != list(asked["base"]) or (known.get("search") is None) != (asked.get("search") is None):
            raise ConfigError(
                f"{folder}: is a sweep of `vae train {' '.join(base)}`",
                "--grid, --seeds and --trials may grow; for other settings give another --name",
            )
    elif folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ConfigError(f"{folder}: exists and is no sweep", "give another --name")


def write(folder: Path, asked: Mapping[str, Any]) -> None:
    """Make the sweep's folder, with what was asked for. MachineError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        safe_files.replace(folder / FILE, json.dumps({"schema": 1, **asked}, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise MachineError(f"{folder}: cannot be written: {error.strerror}", "choose another --runs-dir") from None


def finished(folder: Path, task: Task) -> bool:
    """Whether its run has come to its end."""
    try:
        record = json.loads(safe_files.read(folder / task.name / "run.json", LARGEST))
        return bool(record.get("status") == "finished")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within: no other process of this sweep, on any machine that shares the folder and its locks."""
    with safe_files.append(folder / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
