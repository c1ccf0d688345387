"""What a disk does to a run: it fills up, refuses, forgets what was not asked to be kept, and lets folders be moved."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Result, command

from vaecli import safe_files
from vaecli.errors import MachineError
from vaecli.training import checkpoint, rundir

Vae = Callable[..., Result]
CPU = torch.device("cpu")
OFTEN = ("-S", "train.save_every=10", "-S", "train.log_every=5", "-S", "train.keep=2")


def whole(folder: Path) -> list[str]:
    """The steps there, each verified, and nothing half made beside them."""
    for step in folder.glob("step-*"):
        checkpoint.verify(step)
    assert not list(folder.glob(".tmp-*"))
    return sorted(step.name for step in folder.glob("step-*"))


# ------------------------------------------------------------------------------------------------------ forgetful disks


def test_every_file_is_on_the_disk_before_it_has_its_name(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename may outlive a crash of the machine that the content does not: of a step and of the run's own files."""
    loaded = checkpoint.load(tiny_run, CPU)
    synced: set[int] = set()
    named: list[Path] = []
    fsync, replace = os.fsync, os.replace

    def note(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def rename(old: Path, new: Path) -> None:
        for file in [old] if old.is_file() else [p for p in old.rglob("*") if p.is_file()]:
            assert file.stat().st_ino in synced, f"{file.name} of {Path(new).name} was never synced"
        named.append(Path(new))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", rename)
    checkpoint.commit(tiny_run / "checkpoints", loaded.model, loaded.config, 31, 5, {}, {})
    safe_files.replace(tiny_run / "run.json", b"{}")
    assert [path.name for path in named] == ["step-00000031", "latest", "run.json"]


def test_a_commit_that_fails_puts_back_the_step_it_set_aside(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not when the run is resumed: `analyze` and `sample` read it meanwhile."""

    class Refusing(checkpoint.Files):
        def rename(self, old: Path, new: Path) -> None:
            if new.name.startswith("step-"):
                raise OSError(5, "Input/output error")
            super().rename(old, new)

    loaded = checkpoint.load(tiny_run, CPU)
    folder = tiny_run / "checkpoints"
    monkeypatch.setattr(checkpoint, "FILES", Refusing())
    with pytest.raises(MachineError, match="could not be written"):
        checkpoint.commit(folder, loaded.model, loaded.config, 30, 2, {}, {})
    assert whole(folder) == ["step-00000030"] and checkpoint.load(tiny_run, CPU).step == 30


# ----------------------------------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, for those who may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux mounts a disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(place: Path) -> Path:
    """Leave not a byte."""
    rest = place / "other people's files"
    with rest.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return rest


@pytest.mark.parametrize("when", ["a step is saved", "a record is written", "the last step is saved"])
def test_a_disk_that_fills_up(
    when: str, small_disk: Path, vae: Vae, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line, which names the file; what was saved before is whole; with room again the run goes on."""
    commit, record = checkpoint.commit, rundir.RunDir.record
    full = {"a step is saved": 20, "a record is written": 15, "the last step is saved": 30}[when]

    def full_at(step: int, reached: int) -> None:
        if reached == step:
            fill(small_disk)

    def committing(*args: Any, **more: Any) -> Path:
        full_at(full, args[3] if when != "a record is written" else -1)
        return commit(*args, **more)

    def recording(run: rundir.RunDir, kind: str, step: int, values: dict[str, Any]) -> None:
        full_at(full, step if when == "a record is written" else -1)
        record(run, kind, step, {**values, "padding": "x" * 9000})

    monkeypatch.setattr(checkpoint, "commit", committing)
    monkeypatch.setattr(rundir.RunDir, "record", recording)
    done = vae("train", *TINY, "--model", "vae", *OFTEN, "--steps", 30, "--runs-dir", small_disk, "--name", "x", "-q")
    assert done.code == 5 and done.out == "", done.err
    errors = [line for line in done.err.splitlines() if not line.startswith("  hint")]
    assert len(errors) == 1 and "No space left" in errors[0] and str(small_disk) in errors[0], done.err
    before = ["step-00000010", "step-00000020"] if "last" in when else ["step-00000010"]
    assert whole(small_disk / "x" / "checkpoints") == before
    assert not [p.name for p in (small_disk / "x").iterdir() if p.name.endswith(".part")]
    (small_disk / "other people's files").unlink()
    monkeypatch.setattr(checkpoint, "commit", commit)
    monkeypatch.setattr(rundir.RunDir, "record", record)
    assert vae("train", "--resume", small_disk / "x", "-q").code == 0
    assert vae("info", small_disk / "x").code == 0


def test_a_limit_on_files_is_a_full_disk(vae: Vae) -> None:
    """For those who are not root, and as a quota does it."""
    args = ("train", *TINY, "--model", "vae", *OFTEN, "--steps", 20, "--name", "x", "-q")
    assert vae(*args).code == 0
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    line = command("train", "--resume", "runs/x", "--steps", 40, "-q")
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert done.returncode == 5 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    assert "step-00000030: the checkpoint could not be written: File too large" in done.stderr, done.stderr
    assert "are free" in done.stderr and whole(Path("runs/x/checkpoints"))[-1] == "step-00000020"
    assert vae("train", "--resume", "runs/x", "--steps", 40, "-q").code == 0


def test_a_dry_run_tells_that_the_disk_is_too_small(vae: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("D", (), {"free": 1000})())
    done = vae("train", *TINY, "--runs-dir", "runs", "--dry-run")
    assert done.code == 5 and "free" in done.err and not Path("runs").exists(), done.err


# ----------------------------------------------------------------------------------------------------------- moved runs


def during(
    monkeypatch: pytest.MonkeyPatch, at: int, happens: Callable[[], object], in_the_middle: bool = False
) -> None:
    """Have it happen once: when the records of step `at` are written, or while its checkpoint is."""
    record, write_all, left = rundir.RunDir.record, checkpoint._write_all, [happens]

    def recording(run: rundir.RunDir, kind: str, step: int, values: dict[str, Any]) -> None:
        record(run, kind, step, values)
        if (kind, step, in_the_middle) == ("train", at, False) and left:
            left.pop()()

    def writing(folder: Path, contents: Any) -> None:
        write_all(folder, contents)
        if in_the_middle and folder.name.startswith(f".tmp-step-{at:08d}") and left:
            left.pop()()

    monkeypatch.setattr(rundir.RunDir, "record", recording)
    monkeypatch.setattr(checkpoint, "_write_all", writing)


MOVED = ("train", *TINY, "--model", "vae", *OFTEN, "--steps", 40, "--runs-dir", "runs", "--name", "x")


@pytest.mark.parametrize("in_the_middle", [False, True], ids=["between two saves", "while it saves"])
@pytest.mark.parametrize("replaced", [False, True], ids=["", "another in its place"])
def test_a_run_that_is_moved_goes_on_where_it_is(
    replaced: bool, in_the_middle: bool, vae: Vae, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Records went on in the moved directory, and checkpoints in a new one by the old name."""

    def move() -> None:
        Path("runs/x").rename("kept")
        if replaced:
            shutil.copytree("kept", "runs/x", symlinks=True)

    during(monkeypatch, 20, move, in_the_middle)
    done = vae(*MOVED)
    assert done.code == 0 and done.out == f"{tmp_path}/kept\n", done.err
    assert done.err.count(f"runs/x was moved: the run goes on in {tmp_path}/kept") == 1
    left = [p for p in Path("kept/checkpoints").iterdir() if p.name.startswith(".tmp-")]
    assert len(left) == in_the_middle  # what it was writing went along; resuming drops it
    records = [json.loads(line) for line in Path("kept/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert json.loads(Path("kept/run.json").read_text())["status"] == "finished"
    assert vae("train", "--resume", "kept", "--steps", 50, "-q").code == 0
    assert whole(Path("kept/checkpoints"))[-2:] == ["step-00000040", "step-00000050"]
    if replaced:
        assert max(p.name for p in Path("runs/x/checkpoints").glob("step-*")) <= "step-00000020"
    else:
        assert not Path("runs/x").exists()


@pytest.mark.parametrize("in_the_middle", [False, True], ids=["between two saves", "while it saves"])
def test_a_run_whose_directory_is_gone_stops(in_the_middle: bool, vae: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted, or copied to another disk and deleted: no part of it comes back by the old name."""

    def copied() -> None:
        shutil.copytree("runs/x", "copy", symlinks=True)
        shutil.rmtree("runs/x")

    during(monkeypatch, 20, copied, in_the_middle)
    done = vae(*MOVED, "-q")
    assert done.code == 5 and done.out == "" and "runs/x: the run directory is gone" in done.err, done.err
    assert len(done.err.splitlines()) == 2 and not Path("runs/x").exists()
    assert vae("train", "--resume", "copy", "-q").code == 0


def test_a_commit_brings_no_run_back(tiny_run: Path) -> None:
    """Gone after the run last looked: what is saved needs the run around it."""
    loaded = checkpoint.load(tiny_run, CPU)
    with pytest.raises(MachineError, match="No such file"):
        checkpoint.commit(Path("gone/checkpoints"), loaded.model, loaded.config, 1, 1, {}, {})
    assert not Path("gone").exists()
