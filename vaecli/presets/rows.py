"""Rows of `vae reproduce`: numbers with a known answer, as YAML files under `presets/reproduce`.

A row says what is expected and the command lines it stands for, which anyone can run by hand:

    # One line that says what the row shows.
    kind: exact | re-run | direction | published
    source: where the expected number is from
    time: how long it takes on two CPU cores
    needs: [mnist]                                  # data that are not rendered or shipped
    seeds: 0-2                                      # unless --seeds says otherwise
    train: {vae: "--data mnist --model vae --seed {seed}"}      # name: arguments of `vae train`; {vae} is then its run
    measure: {loss: {command: "analyze {vae} --split test", value: "-totals.elbo"}}
    judge:
    - {value: loss, expected: 105.6, tolerance: 0.6}            # `tolerance: 1 %` of the expected
    - {less: [loss, other], by: 0.5}                            # means over the seeds
    print: {loss: 105.6}                            # published numbers beside ours, never judged

`value` is a dotted path into the JSON that the command prints with `--json`; an item of a list of objects is found by
its `name` or `latent`. A minus sign before it turns the number around.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vaecli import presets
from vaecli.errors import ConfigError
from vaecli.registry import nearest

KINDS = ("exact", "re-run", "direction", "published")
KEYS = {"kind", "source", "time", "needs", "seeds", "train", "measure", "judge", "print"}


@dataclass(frozen=True)
class Row:
    """What a file says; `summary` is its first comment line."""

    name: str
    summary: str
    kind: str
    source: str
    time: str
    needs: tuple[str, ...] = ()
    seeds: str = "0"
    train: Mapping[str, str] = field(default_factory=dict)
    measure: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    judge: tuple[Mapping[str, Any], ...] = ()
    published: Mapping[str, Any] = field(default_factory=dict)


def folder() -> Path | None:
    """The folder `reproduce` of the presets, the first that there is."""
    return next((f / "reproduce" for f in presets.folders() if (f / "reproduce").is_dir()), None)


def names() -> list[str]:
    """All rows, sorted."""
    found = folder()
    return [] if found is None else sorted(path.stem for path in found.glob("*.yaml"))


def load(name: str) -> Row:
    """ConfigError with the nearest name where there is no such row, or with what is wrong in its file."""
    found = folder()
    if found is None or name not in names():
        raise ConfigError(f"no row is called {name[:80]!r}{nearest(name, names())}")
    path = found / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {type(error).__name__}") from None
    if not isinstance(values, dict) or not {"kind", "source", "time"} <= values.keys() <= KEYS:
        given = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ConfigError(f"{path}: a row has kind, source, time and of the rest {', '.join(sorted(KEYS))}: {given}")
    row = Row(
        name=name,
        summary=presets.summary(path),
        kind=str(values["kind"]),
        source=str(values["source"]),
        time=str(values["time"]),
        needs=tuple(values.get("needs", ())),
        seeds=str(values.get("seeds", "0")),
        train={str(k): str(v) for k, v in values.get("train", {}).items()},
        measure=values.get("measure", {}),
        judge=tuple(values.get("judge", ())),
        published=values.get("print", {}),
    )
    _check(path, row)
    return row


def _check(path: Path, row: Row) -> None:
    if row.kind not in KINDS:
        raise ConfigError(f"{path}: kind: {row.kind!r}{nearest(row.kind, KINDS)}")
    if (row.kind == "published") == bool(row.judge):
        raise ConfigError(f"{path}: a published row is not judged, every other one is")
    for key, entry in row.measure.items():
        if not isinstance(entry, dict) or entry.keys() != {"command", "value"}:
            raise ConfigError(f"{path}: measure.{key}: give `command` and `value`")
        for run in re.findall(r"\{(\w+)\}", str(entry["command"])):
            if run not in row.train and run != "seed":
                raise ConfigError(f"{path}: measure.{key}: no run is called {run!r}{nearest(run, row.train)}")
    for check in row.judge:
        keys = set(check)
        if not (keys == {"value", "expected", "tolerance"} or {"less"} <= keys <= {"less", "by"}):
            raise ConfigError(f"{path}: judge: give value, expected and tolerance, or less and by: {sorted(keys)}")
        for name in check.get("less", [check.get("value")]):
            if name not in row.measure:
                raise ConfigError(
                    f"{path}: judge: nothing measured is called {name!r}{nearest(str(name), row.measure)}"
                )
