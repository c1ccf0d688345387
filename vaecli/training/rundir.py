"""A run directory: made exclusively, locked by one process, and telling what happened in it.

runs/beta-vae-dsprites-s0-20261120T231500Z-3fa9/
  config.yaml    resolved and complete; `vae train --config` on it repeats the run
  run.json       what ran, where, with which versions, and how it ended
  metrics.jsonl  one JSON object per record, appended
  train.log      what went to stderr, without progress
  samples/       step-00010000.png: what the model draws at each evaluation, from the same noise
  checkpoints/   see vaecli.checkpoint
"""

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vaecli import __version__, output, safe_files
from vaecli.errors import ConfigError, MachineError

LARGEST_LOG = 64 << 20  # bytes of a metrics.jsonl that are read
LARGEST_RECORD = 1 << 24  # bytes of a run.json that are read


def runs_dir() -> Path:
    """$VAE_RUNS_DIR, else ./runs."""
    return Path(os.environ.get("VAE_RUNS_DIR") or "runs")


class RunDir:
    """One open, locked run directory."""

    writes = True

    def __init__(self, path: Path) -> None:
        """Lock an existing directory. MachineError if another process holds it or it cannot be written, also where a
        link, a pipe or a device stands in the place of one of its files: the directory may be a stranger's.
        """
        self._path = path
        self._folder: int | None = None  # open, to find it again
        if self.checkpoints.is_symlink():  # what is in it is deleted in time
            raise MachineError(
                f"{self.checkpoints}: is a link, which is not followed here", "move the steps into the run"
            )
        try:
            self._lock = safe_files.append(path / ".lock")
        except OSError as error:
            raise MachineError(f"{path / '.lock'}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                raise MachineError(
                    f"{path}: cannot be locked: {error.strerror}", "choose a file system with locks: --runs-dir"
                ) from None
            self._lock.seek(0)
            holder = self._lock.read(200).strip() or "another process"
            raise MachineError(f"{path}: in use by {holder}", "wait for it, or start a run of another name") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()
        try:
            self._metrics = safe_files.append(path / "metrics.jsonl")
            self._log = safe_files.append(path / "train.log")
        except OSError as error:
            self._lock.close()
            raise MachineError(f"{error.filename}: {error.strerror}") from None
        self.log: Callable[[str, int, dict[str, Any]], None] = lambda kind, step, values: None  # told every record
        self._folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._handler = logging.StreamHandler(self._log)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        output.log_to(self._handler)

    @property
    def path(self) -> Path:
        """Where the directory is. It may be moved while the run is at work: what is open moves along, and so must what
        is written later, or the run would be split in two. MachineError once it is gone.
        """
        if self._folder is None or _is_at(self._path, self._folder):
            return self._path
        moved = _place_of(self._folder)
        if moved is None:
            raise MachineError(
                f"{self._path}: the run directory is gone: deleted, or moved to another disk",
                "what was saved before may be resumed where it is now: vae train --resume",
            )
        old, self._path = self._path, moved
        output.notice(f"{old} was moved: the run goes on in {moved}")
        return moved

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def write(self, name: str, text: str) -> None:
        """A small text file, replaced atomically."""
        safe_files.replace(self.path / name, text.encode())

    def picture(self, step: int, content: bytes) -> None:
        """Samples of a step (PNG). MachineError where they cannot be written, or their folder is a link."""
        folder = self.path / "samples"
        try:
            if folder.is_symlink():
                raise OSError(errno.ELOOP, "is a link, which is not followed here")
            folder.mkdir(exist_ok=True)
            safe_files.replace(folder / f"step-{step:08d}.png", content)
        except OSError as error:
            raise MachineError(
                f"{folder}: {error.strerror}", f"free some space, then vae train --resume {folder.parent}"
            ) from None

    def status(self, **facts: Any) -> None:
        """Merge facts into run.json."""
        try:
            known = json.loads(safe_files.read(self.path / "run.json", LARGEST_RECORD))
        except (OSError, ValueError, RecursionError):  # not there yet, or not ours
            known = {}
        known = known if isinstance(known, dict) else {}
        self.write("run.json", json.dumps({**known, **facts}, indent=1, sort_keys=True))

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; MachineError where that cannot be."""
        path = self.path / "metrics.jsonl"  # where that is gone, it is told before more steps are made for nothing
        try:
            self._metrics.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise MachineError(
                f"{path}: {error.strerror}", f"free some space, then vae train --resume {path.parent}"
            ) from None
        self.log(kind, step, values)

    def truncate_metrics(self, step: int) -> None:
        """Forget the records after `step`, which a resumed run will write again."""
        path = self.path / "metrics.jsonl"
        kept = []
        for line in safe_files.read(path).decode(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the half line of a killed process
        self._metrics.close()
        self.write("metrics.jsonl", "".join(line + "\n" for line in kept))
        self._metrics = safe_files.append(path)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not hide why the run ended
            self._metrics.close()
        output.log_no_more(self._handler)
        self._handler.close()
        with contextlib.suppress(OSError):
            self._log.close()
        self._lock.truncate(0)
        self._lock.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


class Elsewhere(RunDir):
    """The run directory as the other processes of one training know it: they write nothing."""

    writes = False

    def __init__(self, path: Path) -> None:
        self._path, self._folder = path, None
        self.log = lambda kind, step, values: None

    def write(self, name: str, text: str) -> None:
        pass

    def status(self, **facts: Any) -> None:
        pass

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        pass

    def truncate_metrics(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


def _is_at(path: Path, folder: int) -> bool:
    """Whether the open directory is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(folder))
    except OSError:
        return False


def _place_of(folder: int) -> Path | None:
    """Where the open directory is by now; None where it is nowhere, or the system does not tell."""
    try:
        if sys.platform == "darwin":
            found = Path(os.fsdecode(fcntl.fcntl(folder, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
        else:
            found = Path(os.readlink(f"/proc/self/fd/{folder}"))
    except OSError:
        return None
    return found if _is_at(found, folder) else None


def is_run(path: Path) -> bool:
    """Whether a run directory is there."""
    return safe_files.is_plain(path / "run.json")


def processes(path: Path) -> int:
    """How many processes the last sitting of a run had; 1 where that is not told."""
    try:
        found = json.loads(safe_files.read(path / "run.json", LARGEST_RECORD)).get("processes", 1)
        return found if isinstance(found, int) else 1
    except (OSError, ValueError, AttributeError, RecursionError):
        return 1


@dataclass(frozen=True)
class Past:
    """Steps and ELBOs (nats) of a run, of held-out images and of training batches, and the step of its best checkpoint
    (by the loss of held-out images, among those saved), where there is one."""

    held_out: list[tuple[int, float]]
    train: list[tuple[int, float]]
    best: int | None

    def better(self, step: int, elbo: float) -> bool:
        """Whether the best checkpoint is of an earlier step and had a higher ELBO, as far as an evaluation tells."""
        at_best = [found for at, found in self.held_out if at == self.best and at < step]
        return max(at_best, default=-math.inf) > elbo


def _records(run: Path) -> list[dict[str, Any]] | None:
    """The lines of a run's metrics.jsonl; None where it cannot be read."""
    try:
        lines = safe_files.read(run / "metrics.jsonl", LARGEST_LOG).splitlines()
    except OSError:
        return None
    return [safe_files.json_object(line) for line in lines]


def past(inside: Path) -> Past | None:
    """What the metrics.jsonl of the run that a path lies in tells of it; None where there is none."""
    run = next((parent for parent in (inside, *inside.parents[:3]) if is_run(parent)), None)
    if run is None:
        return None
    records = _records(run)
    if records is None:
        return None
    found: dict[str, list[tuple[int, float]]] = {"val": [], "train": []}
    for record in records:
        with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
            if math.isfinite(record["elbo"]):
                found[record["kind"]].append((int(record["step"]), float(record["elbo"])))
    best = None
    with contextlib.suppress(OSError, ValueError):
        best = int(os.readlink(run / "checkpoints" / "best").removeprefix("step-"))
    return Past(sorted(found["val"]), sorted(found["train"]), best)


def last_evaluation(run: Path) -> dict[str, Any]:
    """The last record of held-out images in a run's metrics.jsonl, empty where there is none."""
    found = [record for record in _records(run) or () if record.get("kind") == "val"]
    return {key: value for key, value in found[-1].items() if key not in ("kind", "step")} if found else {}


def check_name(name: str) -> None:
    """ConfigError for a run name that is no plain directory name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", name):
        raise ConfigError(
            f"{name[:80]!r} is not usable as a run name",
            "1 to 121 letters, digits, '.', '_' and '-', a letter or digit first",
        )


def check_place(parent: Path) -> None:
    """MachineError where no run directory can be made in `parent`, told before data and model are loaded."""
    place = parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise MachineError(f"{place}: a run directory cannot be made here: a file", "choose another --runs-dir")
    if not os.access(place, os.W_OK | os.X_OK):
        raise MachineError(f"{place}: a run directory cannot be made here: not writable", "choose another --runs-dir")


def create(parent: Path, prefix: str, name: str | None, force: bool = False) -> RunDir:
    """Make and lock a fresh run directory. An existing `name` is refused, or with `force` emptied first."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    if name is not None:
        check_name(name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if name is None:
            while True:
                path = parent / f"{prefix}-{stamp}-{secrets.token_hex(2)}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    continue
        else:
            path = parent / name
            if path.exists() and force:
                if not is_run(path):
                    raise ConfigError(f"{path}: exists and is not a run directory; --force does not remove it")
                held = RunDir(path)  # refuses while another process is at work in it
                for entry in path.iterdir():
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
                held.close()
            path.mkdir(exist_ok=force)
        (path / "checkpoints").mkdir()
    except FileExistsError:
        if name is not None and (parent / name / ".lock").exists():
            RunDir(parent / name).close()
        raise ConfigError(
            f"{parent / (name or '')}: exists already",
            "continue it with --resume, choose another --name, or replace it with --force",
        ) from None
    except OSError as error:
        raise MachineError(
            f"{parent}: a run directory cannot be made here: {error.strerror}", "choose another --runs-dir"
        ) from None
    return RunDir(path)


def _commit() -> str | None:
    """The commit of the program's own source, where it runs from a checkout; of nothing around it."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "-c", "core.fsmonitor=false"]
    here = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of another repository
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True, env=here
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", "vaecli", "presets"],
            capture_output=True, text=True, timeout=10, check=True, env=here,
        )  # fmt: skip
        return done.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
    return None


def provenance() -> dict[str, Any]:
    """What produced a run: program, its commit, versions, machine, time."""
    import torch

    return {
        "argv": sys.argv[1:],
        "vaecli": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # type: ignore[no-untyped-call]
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
