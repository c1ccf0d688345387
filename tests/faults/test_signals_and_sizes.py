"""Signals before and during training, closed and full streams, commits cut short, and files that claim too much."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Result, command

from vaecli.config import tree as trees
from vaecli.errors import ConfigError
from vaecli.training import checkpoint
from vaecli.training.checkpoint import Files

CPU = torch.device("cpu")

# Stands in for data that take long to load.
SLOW_DATA = """
import pathlib, sys, time
from vaecli import cli, data
load = data.load
def slow(*args):
    pathlib.Path("loading").touch()
    for _ in range(20):
        time.sleep(0.1)
    return load(*args)
data.load = slow
sys.argv[0] = "vae"
cli.main()
"""


def wait_for(path: Path) -> None:
    for _ in range(900):
        if path.exists():
            return
        time.sleep(0.1)
    pytest.fail(f"{path} never came")


def test_asked_to_save_while_the_data_load() -> None:
    line = ["train", *TINY, "--steps", "3", "--runs-dir", "r", "--name", "x", "-q"]
    process = subprocess.Popen([sys.executable, "-c", SLOW_DATA, *line], stdout=subprocess.PIPE, text=True)
    wait_for(Path("loading"))
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and out == "r/x\n"


def test_closed_stdout_is_told(tiny_run: Path) -> None:
    for args in (["sample", tiny_run, "-n", 1, "-o", "-"], ["encode", tiny_run, "-n", 1, "-o", "-"]):
        line = " ".join(f"'{word}'" for word in command(*args)) + " >&-"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and "stdout, which is closed" in done.stderr, done.stderr


def test_full_stderr_does_not_hold_up_the_first_signal() -> None:
    read, write = os.pipe()  # which nobody reads
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(4096))
    except BlockingIOError:
        os.set_blocking(write, True)
    endless = command(
        "train", *TINY, "--steps", 10_000_000, "-S", "train.log_every=1", "--runs-dir", "r", "--name", "x"
    )
    process = subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=write)
    metrics = Path("r/x/metrics.jsonl")
    wait_for(metrics)
    while not metrics.stat().st_size:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    os.close(read)
    os.close(write)
    assert process.returncode == 143 and Path("r/x/checkpoints/latest/model.safetensors").is_file()


HALF_WRITTEN = """
import pathlib, signal, sys, time
from vaecli import cli, data, safe_files
def load(*_):
    with safe_files.replacing(pathlib.Path("cache.bits")) as file:
        file.write(b"half")
        pathlib.Path("loading").touch()
        time.sleep(60)
data.load = load
sys.argv[0] = "vae"
cli.main()
"""


def test_nothing_half_written_is_left_by_a_signal() -> None:
    line = ["train", *TINY, "--runs-dir", "r"]
    process = subprocess.Popen([sys.executable, "-c", HALF_WRITTEN, *line], stderr=subprocess.PIPE, text=True)
    wait_for(Path("loading"))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err == ""
    assert sorted(p.name for p in Path().iterdir()) == ["loading"]


class Killed(BaseException):
    """The process ends here: nothing after it happens."""


class Crash(Files):
    """Killed at the k-th operation, so that not even tidying up happens."""

    def __init__(self, k: int) -> None:
        self.left = k

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)

    def fsync_folder(self, path: Path) -> None:
        self._count()
        super().fsync_folder(path)

    def symlink(self, target: str, link: Path) -> None:
        self._count()
        super().symlink(target, link)


def test_the_same_step_once_more_never_loses_it(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at whichever operation: the step is found, intact, and tidying up does not take it away."""
    loaded = checkpoint.load(tiny_run, CPU)
    folder = tiny_run / "checkpoints"
    for k in range(9):
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(checkpoint, "FILES", Crash(k))
            checkpoint.commit(folder, loaded.model, loaded.config, 30, 2, {}, {"seconds": 1.0})
        assert checkpoint.newest_intact(tiny_run).name == "step-00000030", k
        checkpoint.clean_up(folder, 30)
        assert {p.name for p in folder.iterdir()} - {"best"} == {"latest", "step-00000030"}
        assert checkpoint.load(tiny_run, CPU).step == 30


def test_a_step_is_deleted_out_of_sight(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it deletes an old step: what is left of it does not look like a checkpoint."""
    loaded = checkpoint.load(tiny_run, CPU)
    folder = tiny_run / "checkpoints"

    def killed(path: Path, **_: object) -> None:
        if "step-00000030" in path.name:
            (path / "manifest.json").unlink()
            raise Killed

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        checkpoint.commit(folder, loaded.model, loaded.config, 31, 1, {}, {"seconds": 1.0})
    for step in folder.glob("step-*"):
        checkpoint.verify(step)


def test_an_array_that_claims_more_than_there_is(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before memory is taken, in a file by itself and in an npz."""
    from vaecli.data import _containers

    monkeypatch.setattr(_containers, "require_memory", lambda *_: None)  # there is enough
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (500000, 32, 32), }"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    Path("x.npy").write_bytes(content)
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr("images.npy", content)
    for name in ("x.npy", "x.npz"):
        tracemalloc.start()
        done = vae("train", "--data", f"array:{name}", "--runs-dir", "r")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert done.code == 3 and "damaged" in done.err, done.err
        assert most < 100e6
    np.save("y.npy", np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8))
    assert vae("train", "--data", "array:y.npy", "--runs-dir", "r", "--dry-run").code == 0


def test_a_list_without_end_is_refused_at_once() -> None:
    start = time.process_time()
    with pytest.raises(ConfigError, match="more than"):
        trees.parse_yaml("model: [" + "1," * 499_000 + "1]", "x.yaml")
    assert time.process_time() - start < 5
