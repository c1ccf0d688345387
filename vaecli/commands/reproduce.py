"""`vae reproduce`: numbers with a known answer, obtained beside expected."""

import hashlib
import json as json_format
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from vaecli import extras, output, presets, registry
from vaecli.errors import ConfigError, FailedVerdict, VaeError
from vaecli.presets import rows
from vaecli.presets.rows import Row
from vaecli.training import rundir

HOLDS, SHORT, OPEN = "holds", "falls short", "not judged"
Value = float | str
HEADERS = ("row", "value", "expected", "tolerance", "obtained", "verdict")


def show(published: bool, json: bool) -> None:
    """The rows that there are: name, kind, time, summary. With `published` those alone, with their numbers."""
    found = [rows.load(name) for name in rows.names()]
    found = [row for row in found if not published or row.kind == "published"]
    if json:
        output.result_json({"schema": 1, "rows": [asdict(row) for row in found]})
    elif published:
        numbers = [[r.name, key, str(value), r.source] for r in found for key, value in r.published.items()]
        output.table(("row", "value", "published", "source"), numbers, left=4)
    else:
        output.table(("row", "kind", "time", "summary"), [[r.name, r.kind, r.time, r.summary] for r in found], left=4)


def run(names: Sequence[str], seeds: str | None, budget: str | None, directory: str | None, json: bool) -> None:
    """Train or compute what each row asks for, then print it beside what is expected.

    Runs are ordinary run directories below `directory`, found again and gone on with. A training that a `budget` cuts
    short leaves its row not judged. FailedVerdict, after the output, where a judged row falls short; where a row fails
    altogether, what those before it gave is printed, too.
    """
    from vaecli.commands import train  # torch, which a listing need not wait for
    from vaecli.training import seeds as several_seeds

    if not names:
        raise ConfigError("which rows?", "vae reproduce --list shows them")
    train.duration(budget, "--budget")
    chosen = [rows.load(name) for name in dict.fromkeys(names)]
    wanted = {row.name: several_seeds.parse(seeds or row.seeds) for row in chosen}
    for row in chosen:
        _check_needs(row)
    parent = Path(directory) if directory else rundir.runs_dir() / "reproduce"
    asked = "".join(f" {flag} {value}" for flag, value in (("--seeds", seeds), ("--budget", budget)) if value)
    records: list[dict[str, Any]] = []
    try:
        for row in chosen:
            record = _reproduce(row, wanted[row.name], budget, parent)
            records.append({**record, "command": f"vae reproduce {row.name}{asked}"})
    finally:  # what was obtained by then, hours of work, where a later row fails
        if json and records:
            output.result_json({"schema": 1, "rows": records})
        elif records:
            printed = all(record["kind"] == "published" for record in records)
            headers = ["published" if printed and name == "expected" else name for name in HEADERS]
            output.table(headers, [line for record in records for line in table_rows(record)], left=2)
    short = [record["row"] for record in records if record["verdict"] == SHORT]
    for row in chosen:
        if row.name in short and row.found:
            output.notice(f"{row.name} fell short before: {row.found}")
    if short:
        raise FailedVerdict(f"{', '.join(short)}: falls short of what is expected")


def _check_needs(row: Row) -> None:
    """The error of what is missing, data or a library, before anything is trained."""
    from vaecli import data

    for need in row.needs:
        if need == "scikit-learn":
            import importlib.util

            if importlib.util.find_spec("sklearn") is None:
                raise ConfigError(f"{row.name} needs scikit-learn", 'pip install "vaecli[analyze]"')
        elif need in registry.names("dataset"):
            try:  # its files are read, or fetched
                data.load(registry.load("dataset", need).Config(name=need))
            except VaeError as error:
                error.message = f"{row.name} needs {need}: {error.message}"
                raise
        elif need not in registry.names("model"):
            known = [*registry.names("dataset"), *registry.names("model"), "scikit-learn"]
            raise ConfigError(f"{row.name} needs {need!r}, which is not there{registry.nearest(need, known)}")


def _reproduce(row: Row, seeds: Sequence[int], budget: str | None, parent: Path) -> dict[str, Any]:
    started = time.monotonic()
    values: dict[str, list[Value]] = {key: [] for key in row.measure}
    answers: dict[str, Any] = {}
    there = {path.parent.name for path in parent.glob("*/run.json")}
    trained = [_train(row, seed, budget, parent) for seed in seeds]
    for seed, (runs, _) in zip(seeds, trained, strict=True):
        others = {f"{key}:all": [before[key] for before, _ in trained] for key in runs}
        named = {"seed": [str(seed)], **{key: [path] for key, path in runs.items()}, **others}
        for command in row.then:
            _say_and_run(row, _filled(command, named))
        for key, entry in row.measure.items():
            command = _filled(str(entry["command"]), named)
            if command not in answers:
                answers[command] = _say_and_run(row, command)
            elif ":all}" in entry["command"] and values[key]:
                continue
            values[key] += _lookup(answers[command], str(entry["value"]), key)
    values |= {key: [_derived(entry, values)] for key, entry in row.derive.items()}
    obtained = {key: _summary(found) for key, found in values.items()}
    checks = [_judged(check, obtained) for check in row.judge]
    complete = all(finished for _, finished in trained)
    verdict = OPEN
    if row.kind != "published" and complete:
        verdict = HOLDS if all(check["holds"] for check in checks) else SHORT
    return {
        "row": row.name, "kind": row.kind, "summary": row.summary, "source": row.source, "published": row.published,
        "obtained": obtained, "checks": checks, "verdict": verdict, "complete": complete, "seeds": list(seeds),
        "settings": {
            "train": row.train, "then": row.then, "measure": row.measure, "derive": row.derive,
            "metrics": _metric_settings(answers),
        },
        "data": _data(answers), "seconds": round(time.monotonic() - started, 1),
        "found_again": sum(Path(run).name in there for runs, _ in trained for run in runs.values()),
        "versions": extras.versions(),
    }  # fmt: skip


def _train(row: Row, seed: int, budget: str | None, parent: Path) -> tuple[dict[str, str], bool]:
    """The runs of a seed by name, found again where they are there, and whether all have reached their end."""
    runs: dict[str, str] = {}
    complete = True
    for key, arguments in row.train.items():
        before = {name: [path] for name, path in runs.items()}
        words = shlex.split(_filled(arguments, {"seed": [str(seed)], **before}))
        limit = [] if budget is None else ["--max-time", budget]
        # Named by what is trained, so that rows that need the same run share it.
        digest = _named_by(shlex.split(_filled(arguments, before)))
        where = ["--runs-dir", str(parent), "--name", f"{key}-{digest}-s{seed}", "--resume", "auto"]
        record = _say_and_run(row, shlex.join(["train", *words, *where, *limit]))
        complete &= record["status"] == "finished"
        runs[key] = str(record["run"])
    return runs, complete


def _named_by(words: Sequence[str]) -> str:
    """Eight digits for a training: of its arguments, and of what the preset among them says today."""
    text = shlex.join(words)
    for flag, name in pairwise(words):
        if flag in ("--preset", "-p"):
            text += json_format.dumps(presets.load(name).values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _say_and_run(row: Row, command: str) -> dict[str, Any]:
    output.notice(f"{row.name}: vae {command}")
    return _vae([*shlex.split(command), "--json"])


def _filled(text: str, named: Mapping[str, Sequence[str]]) -> str:
    """The text with `{seed}`, the runs' `{name}` and `{name:all}` put in; other braces, as of YAML, stay."""

    def put(found: re.Match[str]) -> str:
        key = found[1] + (found[2] or "")
        return shlex.join(named[key]) if key in named else found[0]

    return rows.RUN.sub(put, text)


def _metric_settings(answers: Mapping[str, Any]) -> dict[str, Any]:
    """What each metric was computed with, the same for all seeds but for the seed itself."""
    found: dict[str, Any] = {}
    for answer in answers.values():
        for metric in answer.get("metrics") or []:
            found.setdefault(metric["name"], metric["settings"])
    return found


def _data(answers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data sets that were measured over, each once."""
    found = [answer["data"] for answer in answers.values() if "data" in answer]
    return [data for i, data in enumerate(found) if isinstance(data, dict) and data not in found[:i]]


def _vae(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON of a command in a process of its own, whose messages come through. VaeError with its exit code."""
    quiet = ["-q"] if output.is_quiet() else []
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vaecli", *arguments, *quiet], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        error = VaeError(f"vae {shlex.join(arguments)} ended with exit code {done.returncode}")
        error.exit_code = done.returncode if done.returncode > 0 else 128 - done.returncode
        raise error
    found: dict[str, Any] = json_format.loads(done.stdout)
    return found


def _lookup(answer: Any, path: str, key: str) -> list[Value]:
    """What is at a dotted path, numbers or a text; ConfigError where there is none."""
    one, _, place = path.rpartition(" ")
    here = [answer]
    for part in place.removeprefix("-").split("."):
        here = [child for item in here for child in _children(item, part)]
    if not here or any(isinstance(value, bool) or not isinstance(value, (int, float, str)) for value in here):
        raise ConfigError(f"measure.{key}: there is no number at {place!r} in what the command prints")
    values = [-value if place.startswith("-") and not isinstance(value, str) else value for value in here]
    return [rows.REDUCED[one](values)] if one else values


def _children(item: Any, part: str) -> list[Any]:
    if part == "*":
        return list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
    if isinstance(item, list) and part.isdecimal():
        return item[int(part) :][:1]
    if isinstance(item, list):
        return [one for one in item if isinstance(one, dict) and part in (one.get("name"), one.get("latent"))][:1]
    return [item[part]] if isinstance(item, dict) and part in item else []


def _derived(entry: Mapping[str, Any], values: Mapping[str, Sequence[Value]]) -> float:
    ((how, of),) = entry.items()
    numbers = [[float(value) for value in values[name]] for name in rows.names_in(of)]
    if how in ("min", "max"):
        return (min if how == "min" else max)(numbers[0])
    if how == "spread":
        return max(numbers[0]) - min(numbers[0])
    if how == "apart":
        return abs(statistics.median(numbers[0]) - statistics.median(numbers[1]))
    if how == "difference":
        return statistics.fmean(numbers[0]) - statistics.fmean(numbers[1])
    if how == "ratio":
        below = statistics.fmean(numbers[1])
        return statistics.fmean(numbers[0]) / below if below else math.nan
    try:
        return statistics.correlation(_ranks(numbers[0]), _ranks(numbers[1]))
    except statistics.StatisticsError:  # one value, or all the same
        return math.nan


def _ranks(values: list[float]) -> list[float]:
    """Equal values share their mean rank."""
    return [sum(other < value for other in values) + 0.5 * values.count(value) for value in values]


def _summary(values: Sequence[Value]) -> dict[str, Any]:
    """Mean and standard deviation of numbers; a text, where all are the same."""
    numbers = [float(value) for value in values if not isinstance(value, str)]
    if len(numbers) < len(values):
        return {"mean": values[0] if len(set(values)) == 1 else None, "sd": None, "values": list(values)}
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "sd": spread, "values": numbers}


def _judged(check: Mapping[str, Any], obtained: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether a value is as expected, or one mean (and `by`) not above another."""
    if "less" in check:
        low, high = (obtained[side]["mean"] if isinstance(side, str) else side for side in check["less"])
        return {**check, "holds": math.isfinite(high - low) and high - low >= check.get("by", 0.0)}
    found, expected, tolerance = obtained[check["value"]]["mean"], check["expected"], str(check["tolerance"])
    if tolerance == "exact":
        return {**check, "holds": found == expected}
    allowed = float(tolerance.removesuffix("%")) / 100 * abs(expected) if "%" in tolerance else float(tolerance)
    return {**check, "holds": abs(found - expected) <= allowed}


def table_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """A row a value or comparison, below `HEADERS`."""
    lines = []
    judged = {check["value"]: check for check in record["checks"] if "value" in check}
    for key, found in record["obtained"].items():
        spread = "" if found["sd"] is None else f" +- {found['sd']:.3g}"
        check = judged.get(key)
        expected = record["published"].get(key, "") if check is None else check["expected"]
        verdict = "" if check is None else OPEN if not record["complete"] else HOLDS if check["holds"] else SHORT
        tolerance = "" if check is None else str(check["tolerance"])
        mean = f"{found['mean']:.6g}" if isinstance(found["mean"], float) else str(found["mean"])
        lines.append([record["row"], key, str(expected), tolerance, f"{mean}{spread}", verdict])
    others = {key: value for key, value in record["published"].items() if key not in record["obtained"]}
    lines += [[record["row"], key, str(value), "", "", ""] for key, value in others.items()]
    for check in record["checks"]:
        if "less" in check:
            verdict = OPEN if not record["complete"] else HOLDS if check["holds"] else SHORT
            by, (low, high) = check.get("by", 0.0), check["less"]
            more = f" {'+' if by > 0 else '-'} {abs(by):g}" if by else ""
            lines.append([record["row"], f"{low}{more} <= {high}", "", "", "", verdict])
    return lines
