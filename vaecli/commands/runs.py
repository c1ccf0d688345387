"""`vae runs`: the runs of a folder, from the files in them; nothing is loaded."""

import contextlib
import fcntl
import math
import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vaecli import output, safe_files
from vaecli.commands._labels import IDLE, labels
from vaecli.errors import ConfigError, InputError

LARGEST = 64 << 20  # bytes of a file that are read
HEADERS = ("run", "what differs", "step", "ELBO", "age", "status")


def run(folder: str | None, json: bool, paths_alone: bool = False) -> None:
    """A table of the runs, newest first: model and data, in which settings they differ from others of the same, step,
    last ELBO in nats, `(train)` behind it where none are held out, age and how they ended; or their paths alone.

    InputError where there is no such folder.
    """
    root = Path(folder or os.environ.get("VAE_RUNS_DIR") or "runs")
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder", "vae train makes it; vae runs FOLDER and $VAE_RUNS_DIR name another"
        )
    found = [record for path in sorted(root.iterdir()) if (record := read(path)) is not None]
    found.sort(key=lambda record: record["started"] or "", reverse=True)
    _say_what_differs(found)
    if json:
        kept = [{key: value for key, value in record.items() if key != "settings"} for record in found]
        output.result_json({"schema": 1, "folder": str(root), "runs": kept})
        return
    if paths_alone:
        for record in found:
            output.result_path(record["path"])
        return
    if not found:
        output.notice(f"{root}: no runs")
        return
    rows = [
        [
            record["name"], record["what"], _step(record), _elbo(record), age(record["started"]), record["status"],
        ]
        for record in found
    ]  # fmt: skip
    output.table(HEADERS, rows, left=2)


def read(path: Path) -> dict[str, Any] | None:
    """What a run directory says of itself; None where it is none."""
    if not safe_files.is_plain(path / "run.json"):
        return None
    facts = safe_files.json_object(_text(path / "run.json"))
    settings = _settings(path / "config.yaml")
    last, elbo = None, None
    for line in _text(path / "metrics.jsonl").splitlines():
        record = safe_files.json_object(line)
        last = record.get("step", last)
        if record.get("kind") == "val":
            elbo = record.get("elbo", elbo)
    step = facts.get("step", last)
    steps = settings.get("train.steps")
    stages = [v for k, v in settings.items() if k.startswith("train.steps.") and isinstance(v, int)]
    status = str(facts.get("status", "unknown"))[:40]
    if status == "running" and not _held(path / ".lock"):
        status = "killed"
    return {
        "name": path.name,
        "path": str(path),
        "model": settings.get("model.name"),
        "data": settings.get("data.name"),
        "step": step if isinstance(step, int) else None,
        "steps": steps if isinstance(steps, int) else sum(stages) or None,
        "evaluated": "train" if facts.get("evaluated", "val") != "val" or settings.get("data.holdout") == 0 else "val",
        "elbo": float(elbo) if isinstance(elbo, (int, float)) and math.isfinite(elbo) else None,
        "started": facts.get("started") if isinstance(facts.get("started"), str) else None,
        "seconds": facts.get("seconds"),
        "status": status,
        "settings": settings,
    }


def _say_what_differs(found: list[dict[str, Any]]) -> None:
    """For each run the settings in which it differs from the others of its model and data set."""
    kinds = Counter((record["model"], record["data"]) for record in found)
    for model, data in kinds:
        members = [record for record in found if (record["model"], record["data"]) == (model, data)]
        keys = [key for key in dict.fromkeys(k for record in members for k in record["settings"]) if key not in IDLE]
        differing = [key for key in keys if len({str(record["settings"].get(key)) for record in members}) > 1]
        named = labels([{key: record["settings"].get(key) for key in differing} for record in members])
        for record, label in zip(members, named, strict=True):
            record["differs"] = {key: record["settings"].get(key) for key in differing}
            record["what"] = f"{model} on {data}" + (f", {label}" if label else "")


def _settings(path: Path) -> dict[str, Any]:
    from vaecli import config as configs
    from vaecli.config import tree as trees

    with contextlib.suppress(ConfigError, InputError, OSError):
        return dict(configs.flat(trees.read_file(path).values))
    return {}


def _elbo(record: dict[str, Any]) -> str:
    if record["elbo"] is None:
        return "-"
    return f"{record['elbo']:.2f}" + (" (train)" if record["evaluated"] == "train" else "")


def _step(record: dict[str, Any]) -> str:
    if record["step"] is None or (record["step"] == 0 and record["status"] == "finished"):  # fitted, not trained
        return "-"
    return f"{record['step']:,}" + (f"/{record['steps']:,}" if record["steps"] else "")


def age(started: str | None) -> str:
    """`12 min`, `3 h`, `5 d` since an ISO time."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(started or "")).total_seconds()
    except (ValueError, TypeError):
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0) / 60:.0f} min"


def _held(lock: Path) -> bool:
    """Whether a process holds a run; it is only looked at."""
    try:
        number = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(number)
    return False


def _text(path: Path) -> str:
    try:
        return safe_files.read(path, LARGEST).decode(errors="replace")
    except OSError:
        return ""
