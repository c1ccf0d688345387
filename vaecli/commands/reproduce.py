"""`vae reproduce`: numbers with a known answer, obtained beside expected."""

import json as json_format
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vaecli import __version__, output, registry
from vaecli.errors import ConfigError, FailedVerdict, InputError, VaeError
from vaecli.paths import data_dir
from vaecli.presets import rows
from vaecli.presets.rows import Row
from vaecli.training import rundir

HOLDS, SHORT, OPEN = "holds", "falls short", "not judged"
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
    short leaves its row not judged. FailedVerdict, after the output, where a judged row falls short.
    """
    from vaecli.training import seeds as several_seeds  # torch, which a listing need not wait for

    if not names:
        raise ConfigError("which rows?", "vae reproduce --list shows them")
    chosen = [rows.load(name) for name in dict.fromkeys(names)]
    for row in chosen:
        _check_needs(row)
    parent = Path(directory) if directory else rundir.runs_dir() / "reproduce"
    records = [_reproduce(row, several_seeds.parse(seeds or row.seeds), budget, parent) for row in chosen]
    if json:
        output.result_json({"schema": 1, "rows": records})
    else:
        output.table(HEADERS, [line for record in records for line in _lines(record)], left=2)
    short = [record["row"] for record in records if record["verdict"] == SHORT]
    if short:
        raise FailedVerdict(f"{', '.join(short)}: falls short of what is expected")


def _check_needs(row: Row) -> None:
    """InputError, before anything is trained, where data or a library is missing."""
    for need in row.needs:
        if need == "scikit-learn":
            import importlib.util

            if importlib.util.find_spec("sklearn") is None:
                raise ConfigError(f"{row.name} needs scikit-learn", 'pip install "vaecli[analyze]"')
        elif need not in registry.names("dataset"):
            raise ConfigError(f"{row.name} needs {need!r}{registry.nearest(need, registry.names('dataset'))}")
        elif os.environ.get("VAE_OFFLINE") and not (data_dir() / need.replace("-", "_")).exists():
            raise InputError(
                f"{row.name} needs {need}, which is not in {data_dir()} and cannot be downloaded with VAE_OFFLINE",
                "set VAE_DATA_DIR, or unset VAE_OFFLINE",
            )


def _reproduce(row: Row, seeds: Sequence[int], budget: str | None, parent: Path) -> dict[str, Any]:
    started = time.monotonic()
    values: dict[str, list[float]] = {key: [] for key in row.measure}
    settings: dict[str, Any] = {}
    complete = True
    for seed in seeds:
        runs: dict[str, str] = {}
        for key, arguments in row.train.items():
            name = f"{row.name}-{key}-s{seed}"
            words = shlex.split(_filled(arguments, seed, runs))
            limit = [] if budget is None else ["--max-time", budget]
            given = ["train", *words, "--runs-dir", str(parent), "--name", name, "--resume", "auto", *limit]
            output.notice(f"{row.name}: vae {shlex.join(given)}")
            trained = _vae([*given, "--json"])
            complete &= trained["status"] == "finished"
            runs[key] = str(trained["run"])
        answers: dict[str, Any] = {}
        for key, entry in row.measure.items():
            command = _filled(str(entry["command"]), seed, runs)
            if command not in answers:
                output.notice(f"{row.name}: vae {command}")
                answers[command] = _vae([*shlex.split(command), "--json"])
            values[key].append(_lookup(answers[command], str(entry["value"]), key))
        settings = {"runs": runs, "commands": list(answers)}
    obtained = {key: _summary(numbers) for key, numbers in values.items()}
    checks = [_judged(check, obtained) for check in row.judge]
    verdict = OPEN
    if row.kind != "published" and complete:
        verdict = HOLDS if all(check["holds"] for check in checks) else SHORT
    return {
        "row": row.name, "kind": row.kind, "summary": row.summary, "source": row.source, "published": row.published,
        "obtained": obtained, "checks": checks, "verdict": verdict, "complete": complete, "seeds": list(seeds),
        "settings": settings, "seconds": round(time.monotonic() - started, 1),
        "versions": {"vae": __version__, "python": platform.python_version(), **_versions()},
    }  # fmt: skip


def _filled(text: str, seed: int, runs: Mapping[str, str]) -> str:
    """The text with `{seed}` and the runs' `{name}` put in; other braces, as of YAML, stay."""
    values = {"seed": str(seed), **{key: shlex.quote(path) for key, path in runs.items()}}
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("torch", "numpy")}


def _vae(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON of a command in a process of its own, whose messages come through. VaeError with its exit code."""
    done = subprocess.run([sys.executable, "-P", "-m", "vaecli", *arguments], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        error = VaeError(f"vae {shlex.join(arguments)} ended with exit code {done.returncode}")
        error.exit_code = done.returncode if done.returncode > 0 else 128 - done.returncode
        raise error
    found: dict[str, Any] = json_format.loads(done.stdout)
    return found


def _lookup(answer: Any, path: str, key: str) -> float:
    """The number at a dotted path; ConfigError where there is none."""
    here = answer
    for part in path.removeprefix("-").split("."):
        if isinstance(here, list):
            here = next((item for item in here if part in (item.get("name"), item.get("latent"))), None)
        else:
            here = here.get(part) if isinstance(here, dict) else None
    if isinstance(here, bool) or not isinstance(here, (int, float)):
        raise ConfigError(f"measure.{key}: there is no number at {path!r} in what the command prints")
    return -float(here) if path.startswith("-") else float(here)


def _summary(numbers: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "sd": spread, "values": list(numbers)}


def _judged(check: Mapping[str, Any], obtained: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether a value is as expected, or one mean less than another."""
    if "less" in check:
        low, high = (obtained[name]["mean"] for name in check["less"])
        return {**check, "holds": math.isfinite(high - low) and high - low >= check.get("by", 0.0)}
    expected, tolerance = float(check["expected"]), str(check["tolerance"])
    allowed = float(tolerance.removesuffix("%")) / 100 * abs(expected) if "%" in tolerance else float(tolerance)
    return {**check, "holds": abs(obtained[check["value"]]["mean"] - expected) <= allowed}


def _lines(record: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    judged = {check["value"]: check for check in record["checks"] if "value" in check}
    for key, found in record["obtained"].items():
        spread = "" if found["sd"] is None else f" +- {found['sd']:.3g}"
        check = judged.get(key)
        expected = record["published"].get(key, "") if check is None else check["expected"]
        verdict = "" if check is None else OPEN if not record["complete"] else HOLDS if check["holds"] else SHORT
        tolerance = "" if check is None else str(check["tolerance"])
        lines.append([record["row"], key, str(expected), tolerance, f"{found['mean']:.6g}{spread}", verdict])
    for check in record["checks"]:
        if "less" in check:
            verdict = OPEN if not record["complete"] else HOLDS if check["holds"] else SHORT
            by = f" by {check['by']:g}" if "by" in check else ""
            lines.append([record["row"], f"{check['less'][0]} < {check['less'][1]}{by}", "", "", "", verdict])
    return lines
