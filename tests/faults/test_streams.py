"""Whoever reads a run's messages goes away, cannot take them, or knows few letters: the run goes on, and its result is
as it would be."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Result, command

from vaecli import output

LINE = ("train", *TINY, "--model", "vae", "--steps", 20, "-S", "train.log_every=5", "--runs-dir", "r", "--name", "x")


@pytest.mark.parametrize("stderr", ["whose reader has gone", "on a full disk"])
def test_messages_that_nobody_takes_do_not_end_a_run(stderr: str) -> None:
    read, write = os.pipe()
    os.close(read)
    if stderr == "on a full disk":
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        os.close(write)
        write = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(command(*LINE), stdout=subprocess.PIPE, stderr=write, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stdout) == (0, "r/x\n")
    log = Path("r/x/train.log").read_text()
    assert "finished at step 20" in log and "Traceback" not in log


def test_the_reader_of_the_result_went_away_while_it_trained() -> None:
    """The run is whole; only then is it said, as by any Unix producer."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command(*LINE, "-q"), stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    assert Path("r/x/checkpoints/latest/model.safetensors").is_file()


FEW = [
    {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
]


@pytest.mark.parametrize("variables", FEW, ids=lambda v: v["PYTHONIOENCODING"].partition(":")[0] or "LC_ALL=C")
def test_letters_that_a_stream_does_not_know(variables: dict[str, str], vae_process: Callable[..., Result]) -> None:
    """Escaped in messages and results; a path that is the result comes as its bytes."""
    name = "Übung-λ-数"
    done = subprocess.run(
        command("train", *TINY, "--model", "vae", "--steps", 3, "--runs-dir", name, "--name", "x"),
        env={**os.environ, **variables}, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == os.fsencode(f"{name}/x\n"), done.stderr
    assert b"run        " in done.stderr and b"bung-" in done.stderr and b"Traceback" not in done.stderr
    assert "bung-" in Path(name, "x", "train.log").read_text("utf-8")


@pytest.mark.parametrize("letters", ["ascii", "latin-1", "cp1252"])
def test_what_is_told_is_told_whatever_the_terminal_knows(letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message was lost as a whole: a letter that cannot be written is an error of the stream, passed over."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=letters, errors="strict"))
    output.configure(False)
    output.warning("λ is too small")
    output.result("λ")
    assert sys.stderr.buffer.getvalue() == b"vae: warning: \\u03bb is too small\n"
    assert sys.stdout.buffer.getvalue() == b"\\u03bb\n"
