"""`vae doctor`: what the tool finds on this machine, and what would stop it."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from vaecli import __version__, output, paths, presets, registry
from vaecli.errors import MachineError

LOW = 2e9  # bytes of free disk below which a run may not save
EXTRAS = {"sklearn": "scikit-learn, for metrics that fit classifiers"}


class Finding(NamedTuple):
    """`state` is ok, note or problem."""

    what: str
    text: str
    state: str = "ok"


def run(json: bool) -> None:
    """Versions, device, folders and disk; MachineError, after the output, where something would stop a training."""
    found = [*_versions(), *_device(), *_folders(), *_extras()]
    if json:
        output.result_json({"schema": 1, "findings": [finding._asdict() for finding in found]})
    else:
        styles = [{"problem": "red", "note": "yellow"}.get(finding.state) for finding in found]
        output.table(("what", "found", "state"), [list(finding) for finding in found], styles=styles, left=3)
    if problems := [finding for finding in found if finding.state == "problem"]:
        raise MachineError("; ".join(f"{finding.what}: {finding.text}" for finding in problems))


def _versions() -> list[Finding]:
    found = [
        Finding("vae", __version__),
        Finding("Python", platform.python_version(), "ok" if sys.version_info[:2] < (3, 14) else "note"),
    ]
    for name in ("torch", "torchvision", "numpy", "pillow", "safetensors", "pydantic", "rich", "typer"):
        try:
            found.append(Finding(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append(Finding(name, "not installed", "problem"))
    return found


def _device() -> list[Finding]:
    import torch

    from vaecli import device

    found = [Finding("device", device.describe(device.pick("auto")))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found.append(Finding("CPU", f"{cores} cores, {threads} threads for torch", "ok" if threads <= cores else "note"))
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found.append(Finding("GPU memory", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"))
    return found


def _folders() -> list[Finding]:
    found = []
    where = {"runs": Path(os.environ.get("VAE_RUNS_DIR") or "runs"), "data": paths.data_dir(),
             "cache": paths.cache_dir()}  # fmt: skip
    for what, folder in where.items():
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        text = f"{folder}, {free / 1e9:.1f} GB free" + ("" if folder.exists() else ", not made yet")
        writable = os.access(there, os.W_OK | os.X_OK)
        if not writable:
            text += ", cannot be written"
        needed = what != "data"  # data sets that are there need not be written
        state = "problem" if needed and not writable else "note" if not writable or free < LOW else "ok"
        found.append(Finding(f"{what} folder", text, state))
    known = {name: paths.data_dir() / name.replace("-", "_") for name in registry.names("dataset")}
    there_are = [name for name, folder in known.items() if folder.is_dir()]
    found.append(
        Finding("data sets there", ", ".join(there_are) or "none; dsprites and others are drawn, none is kept")
    )
    found.append(Finding("presets", f"{len(presets.paths())} in {', '.join(map(str, presets.folders()))}"))
    return found


def _extras() -> list[Finding]:
    return [
        Finding(
            name,
            f"{'there' if importlib.util.find_spec(name) else 'not installed'} ({what})",
            "ok" if importlib.util.find_spec(name) else "note",
        )
        for name, what in EXTRAS.items()
    ]
