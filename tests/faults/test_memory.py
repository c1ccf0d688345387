"""Want of memory is the machine's, told in one line with what would help, wherever it strikes."""

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Result, command

from vaecli import data
from vaecli.training import trainer

WANTS = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
]


@pytest.mark.parametrize("error", WANTS, ids=["Python's", "torch's"])
def test_the_hosts_want_of_memory(
    error: Exception, tiny_run: Path, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "update", full)
        done = vae("train", *TINY, "--runs-dir", "runs", "-q")
        assert done.code == 5 and "batches of 32 images of shape 1x16x16" in done.err, done.err
        assert "train.batch_size" in done.err and len(done.err.splitlines()) == 2
    monkeypatch.setattr(data, "load", full)
    for args in (["train", *TINY, "--runs-dir", "r"], ["analyze", tiny_run]):
        done = vae(*args, "-q")
        assert done.code == 5 and "error: out of memory" in done.err and len(done.err.splitlines()) == 2, done.err


def test_a_net_that_does_not_fit() -> None:
    """For real: 4 GB of weights where the process may have 4 GB in all; what was made before stays as it was."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # noqa: E731
    wide = ("-S", "model.net={name: mlp, hidden: [30000, 30000]}", "--steps", 2, "--runs-dir", "r", "--name", "x", "-q")
    line = command("train", "--data", "squares", "--model", "vae", *wide)
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert done.returncode == 5 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    assert "out of memory" in done.stderr and len(done.stderr.splitlines()) == 2, done.stderr
