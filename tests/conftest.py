"""Fixtures shared by all tests: `vae(...)` runs the command in this process, `vae_process` in one of its own."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from vaecli import cli, output, registry

HERE = Path(__file__).parent
torch.set_num_threads(1)  # tests run side by side; threads on tiny tensors only wait for each other


@dataclass
class Result:
    code: int
    out: str
    err: str
    raw: bytes = b""


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No network, no terminal tricks, and every directory the tool writes to inside the test's own."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("VAE_RUNS_DIR", "VAE_PRESET_PATH", "VAE_DEVICE", "VAE_DEBUG", "FORCE_COLOR", "PYTHONSAFEPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(output, "_quiet", False)  # what a test before this one may have asked for
    # VAE_TEST_DEVICE=cuda lets the commands of all tests run on a GPU.
    monkeypatch.setenv("VAE_DEVICE", os.environ.get("VAE_TEST_DEVICE", "cpu"))
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path_factory.getbasetemp().parent / "vae-cache"))
    monkeypatch.setenv("VAE_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toy_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models of tests/models, which use every part of the model contract, registered beside the real ones."""
    monkeypatch.syspath_prepend(str(HERE))
    places = [*registry.PACKAGES["model"], ("models", HERE / "models")]
    monkeypatch.setitem(registry.PACKAGES, "model", places)
    return sorted(p.stem.replace("_", "-") for p in (HERE / "models").glob("[a-z]*.py"))


@pytest.fixture
def known_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of tests/known, of which every answer is known, registered beside the real ones."""
    monkeypatch.syspath_prepend(str(HERE))
    places = [*registry.PACKAGES["model"], ("known", HERE / "known")]
    monkeypatch.setitem(registry.PACKAGES, "model", places)


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Result]:
    """`vae("train", "--preset", ...)` -> exit code, stdout, stderr."""

    def run(*args: object) -> Result:
        capfdbinary.readouterr()
        monkeypatch.setattr(sys, "argv", ["vae", *map(str, args)])
        code = 0
        pipe = signal.getsignal(signal.SIGPIPE)
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        finally:
            signal.signal(signal.SIGPIPE, pipe)
        out, err = capfdbinary.readouterr()
        return Result(code, out.decode(errors="replace"), err.decode(errors="replace"), out)

    return run


def command(*args: object) -> list[str]:
    """The command line of `vae` with this interpreter."""
    return [sys.executable, "-m", "vaecli", *map(str, args)]


@pytest.fixture
def vae_process() -> Callable[..., Result]:
    """The same in a process of its own, with a time limit."""

    def run(*args: object, timeout: float = 120, stdin: bytes | None = None, **env: str) -> Result:
        environment = {**os.environ, **env}
        done = subprocess.run(command(*args), capture_output=True, timeout=timeout, env=environment, input=stdin)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode(), done.stdout)

    return run


# A run small enough for any test: 16x16 squares, a tiny net, a step in a millisecond.
TINY = ("--data", "squares", "-S", "model.net={name: mlp, hidden: [16]}", "--latent-dim", "3", "--batch-size", "32")


@pytest.fixture
def tiny_run(vae: Callable[..., Result], tmp_path: Path) -> Path:
    """A finished run of 30 steps of a tiny beta-VAE."""
    done = vae(
        "train", "--model", "beta-vae", *TINY, "--steps", 30, "--runs-dir", tmp_path / "runs", "--name", "tiny", "-q"
    )
    assert done.code == 0, done.err
    return Path(done.out.strip())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU here"))
