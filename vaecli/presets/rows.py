"""Rows of `vae reproduce`: numbers with a known answer, as YAML files under `presets/reproduce`.

A row says what is expected and the command lines it stands for, which anyone can run by hand:

    # One line that says what the row shows.
    kind: exact | re-run | direction | published
    source: where the expected number is from
    time: how long it takes on two CPU cores
    needs: [mnist]                                  # data that are not rendered or shipped, libraries, models
    seeds: 0-2                                      # unless --seeds says otherwise
    train: {vae: "--data mnist --model vae --seed {seed}"}      # name: arguments of `vae train`; {vae} is then its run
    then: ["density {vae} --fit mixture --force"]   # commands between the trainings and what is measured
    measure: {loss: {command: "analyze {vae} --split test", value: "-totals.elbo"}}
    derive: {spread: {spread: loss}}                # from all values of what was measured, see `DERIVED`
    judge:
    - {value: loss, expected: 105.6, tolerance: 0.6}            # `tolerance: 1 %` of the expected; `exact`, texts too
    - {less: [loss, other], by: 0.5}                            # means over the seeds; either may be a number
    print: {loss: 105.6}                            # published numbers beside ours, never judged
    found: what is known about why it falls short, where it does

`value` is a dotted path into the JSON that the command prints with `--json`; an item of a list of objects is found by
its `name` or `latent` or by its number, and `*` takes all of them; `max PATH` and `min PATH` keep one of these. A minus
sign before a path turns the number around. A command with `{vae:all}`, the runs of all seeds, is run once.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vaecli import presets
from vaecli.errors import ConfigError
from vaecli.registry import nearest

KINDS = ("exact", "re-run", "direction", "published")
KEYS = {"kind", "source", "time", "needs", "seeds", "train", "then", "measure", "derive", "judge", "print", "found"}
RUN = re.compile(r"\{(\w+)(:all)?\}")  # a run's place in a command; braces of YAML look otherwise
REDUCED: Mapping[str, Callable[[Any], Any]] = {"max": max, "min": min}  # of the values that a path with `*` finds
# What is taken from one or two measured values over all seeds.
DERIVED = {
    "min": 1,
    "max": 1,
    "spread": 1,  # max - min
    "apart": 2,  # the difference of the medians, without its sign
    "difference": 2,  # of the means
    "ratio": 2,  # of the means
    "spearman": 2,  # rank correlation
}


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
    then: tuple[str, ...] = ()
    measure: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    derive: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    judge: tuple[Mapping[str, Any], ...] = ()
    published: Mapping[str, Any] = field(default_factory=dict)
    found: str = ""


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
        then=tuple(map(str, values.get("then", ()))),
        measure=values.get("measure", {}),
        derive=values.get("derive", {}),
        judge=tuple(values.get("judge", ())),
        published=values.get("print", {}),
        found=str(values.get("found", "")),
    )
    _check(path, row)
    return row


def _check(path: Path, row: Row) -> None:
    if row.kind not in KINDS:
        raise ConfigError(f"{path}: kind: {row.kind!r}{nearest(row.kind, KINDS)}")
    for run, arguments in row.train.items():
        for name, everywhere in RUN.findall(arguments):
            if name != "seed" and (everywhere or name not in list(row.train)[: list(row.train).index(run)]):
                raise ConfigError(f"{path}: train.{run}: no run before it is called {name!r}")
    if (row.kind == "published") == bool(row.judge):
        raise ConfigError(f"{path}: a published row is not judged, every other one is")
    for command in row.then:
        _check_runs(path, "then", command, row)
    for key, entry in row.measure.items():
        if not isinstance(entry, dict) or entry.keys() != {"command", "value"}:
            raise ConfigError(f"{path}: measure.{key}: give `command` and `value`")
        one = str(entry["value"]).rpartition(" ")[0]
        if one and one not in REDUCED:
            raise ConfigError(f"{path}: measure.{key}: {one!r}{nearest(one, REDUCED)}")
        _check_runs(path, f"measure.{key}", str(entry["command"]), row)
    for key, entry in row.derive.items():
        if not isinstance(entry, dict) or len(entry) != 1 or key in row.measure:
            raise ConfigError(f"{path}: derive.{key}: give one of {', '.join(DERIVED)}, under a name of its own")
        ((how, of),) = entry.items()
        if how not in DERIVED:
            raise ConfigError(f"{path}: derive.{key}: {how!r}{nearest(str(how), DERIVED)}")
        if len(names_in(of)) != DERIVED[how]:
            raise ConfigError(f"{path}: derive.{key}: {how} is of {DERIVED[how]}, not {len(names_in(of))}")
        for name in names_in(of):
            _check_value(path, f"derive.{key}", name, row.measure)
    for check in row.judge:
        keys = set(check)
        if not (keys == {"value", "expected", "tolerance"} or {"less"} <= keys <= {"less", "by"}):
            raise ConfigError(f"{path}: judge: give value, expected and tolerance, or less and by: {sorted(keys)}")
        sides = check.get("less", [check.get("value")])
        if "less" in check and (not isinstance(sides, list) or len(sides) != 2):
            raise ConfigError(f"{path}: judge: less is of two: {sides}")
        for name in sides:
            if isinstance(name, bool) or not isinstance(name, (int, float)) or "value" in check:
                _check_value(path, "judge", name, {**row.measure, **row.derive})
        if isinstance(check.get("expected"), str) and check["tolerance"] != "exact":
            raise ConfigError(f"{path}: judge: a text is expected: tolerance: exact")


def names_in(of: Any) -> list[str]:
    """The values that something is derived from."""
    return [str(name) for name in of] if isinstance(of, list) else [str(of)]


def _check_runs(path: Path, where: str, command: str, row: Row) -> None:
    for run, everywhere in RUN.findall(command):
        if run not in row.train and (run != "seed" or everywhere):
            raise ConfigError(f"{path}: {where}: no run is called {run!r}{nearest(run, row.train)}")


def _check_value(path: Path, where: str, name: Any, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ConfigError(f"{path}: {where}: nothing measured is called {name!r}{nearest(str(name), known)}")
