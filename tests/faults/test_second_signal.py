"""The first signal asks, the second ends the process at once, whatever it is doing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Result, command
from PIL import Image

from vaecli import config as configs
from vaecli import data, models, noise
from vaecli.config import tree as trees
from vaecli.models.vae import Model
from vaecli.training import checkpoint
from vaecli.training.evaluation import evaluate
from vaecli.training.state import TrainState
from vaecli.training.stop import Stop

TWICE = """
import os, sys, time
from vaecli.training.stop import Stop
stop = Stop()
with stop.signals():
    os.kill(os.getpid(), {number})
    assert stop.signal == {number} and stop.reason == "interrupted"
    print("asked", flush=True)
    os.kill(os.getpid(), {number})
    time.sleep(1)
    print("still here", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_ends_at_once(number: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", TWICE.format(number=int(number))], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, "asked\n"), done.stderr
    assert "press again" in done.stderr


LONG_CALL = """
import hashlib
from vaecli.training.stop import Stop
stop = Stop()
with stop.signals():
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes without a line of Python, as a step of a large net
"""


def test_a_call_that_takes_long_hears_signals() -> None:
    """One step of ten seconds: the first Ctrl-C is answered at once, the second ends it at once."""
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_CALL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heeding,
    )  # fmt: skip
    too_long = threading.Timer(30, process.kill)
    too_long.start()
    try:
        assert process.stdout is not None and process.stdout.readline() == "begun\n" and process.stderr is not None
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert "press again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    finally:
        too_long.cancel()
        process.kill()
        process.communicate()


FORKED = """
import os, time
from vaecli.training.stop import Stop
stop = Stop()
with stop.signals():
    [os.fork() for _ in range(2)]
    os.write(1, b"begun\\n")
    for _ in range(20):
        time.sleep(0.1)
    if stop.reason:
        print("went on", flush=True)
"""


def test_one_ctrl_c_to_the_group_is_one() -> None:
    """Forked readers hear it too, and tell nobody."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKED], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, preexec_fn=heeding, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and [process.stdout.readline() for _ in range(4)] == ["begun\n"] * 4
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "went on" in out


OUTLIVED = """
import os, signal, time
from vaecli.training.stop import Stop
before, descriptors = signal.getsignal(signal.SIGINT), len(os.listdir("/proc/self/fd"))
for _ in range(3):
    with Stop().signals():
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
assert signal.getsignal(signal.SIGINT) is before and signal.set_wakeup_fd(-1) == -1
assert len(os.listdir("/proc/self/fd")) == descriptors
os.killpg(0, signal.SIGKILL)
"""


TOGETHER = """
import os, signal, sys, time
from types import SimpleNamespace
from vaecli.training.together import StopTogether
stop = StopTogether(None, SimpleNamespace(first=sys.argv[1] == "first", largest=lambda numbers: numbers))
with stop.signals():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    assert stop.reason is None  # until all know
    stop.agree()
    assert stop.reason == "interrupted" and stop.signal == signal.SIGINT
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    print("went on")
"""


@pytest.mark.parametrize(("place", "code", "says"), [("first", 143, ""), ("another", 0, "went on\n")])
def test_of_several_processes_one_ends_at_once(place: str, code: int, says: str) -> None:
    """The first; the others may have been told by torchrun and by the terminal. None stops before all know."""
    done = subprocess.run([sys.executable, "-c", TOGETHER, place], capture_output=True, text=True, preexec_fn=heeding)
    assert (done.returncode, done.stdout) == (code, says), done.stderr
    assert done.stderr == "stopping after this step and saving; press again to stop now\n"


def test_a_reader_that_lives_on_holds_nothing_up() -> None:
    """It has the pipe of signals open as well; what listened ends all the same, and leaves nothing behind."""
    command = [sys.executable, "-c", OUTLIVED]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=25)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_no_handler_is_left_where_there_is_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError(24, "Too many open files")

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="Too many"), Stop().signals():
        patched.setattr(os, "pipe", none)
        with Stop().signals():
            pass
    assert signal.getsignal(signal.SIGINT) is before


def heeding() -> None:
    """Ctrl-C is ignored by what runs in the background, tests among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_it_saves(times: int, vae: Callable[..., Result]) -> None:
    """To the whole group, as a terminal sends it, and nearly always within a commit: 130, and every step is whole."""
    often = ("-S", "train.save_every=1", "-S", "train.keep=3", "--steps", 10_000_000)
    process = subprocess.Popen(
        command("train", *TINY, "--model", "vae", *often, "--runs-dir", "r", "--name", "x", "-q"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heeding, start_new_session=True,
    )  # fmt: skip
    folder = Path("r/x/checkpoints")
    for _ in range(900):
        if len(list(folder.glob("step-*"))) == 3:
            break
        time.sleep(0.1)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.0005)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err, err
    steps = list(folder.glob("step-*"))
    assert steps
    for step in steps:
        checkpoint.verify(step)
    assert vae("info", "r/x").code == 0
    if times == 1:
        assert "saved" in err


READING = """
import sys, time, pathlib, torch
from vaecli import cli
from vaecli.data import folder
torch.set_num_threads(2)
read = folder._read
def slow(path):
    pathlib.Path("reading").touch()
    time.sleep(60)
folder._read = lambda config, what, paths, each, size, enough: read(config, what, paths, slow, size, 1)
sys.argv[0] = "vae"
cli.main()
"""


def test_ctrl_c_while_images_are_read() -> None:
    """Those who read are told as well, and say nothing of it."""
    Path("images").mkdir()
    for i in range(80):
        Image.fromarray(np.full((16, 16), i, np.uint8)).save(f"images/{i}.png")
    process = subprocess.Popen(
        [sys.executable, "-c", READING, "train", "--data", "folder:images", "--runs-dir", "r"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heeding, start_new_session=True,
    )  # fmt: skip
    for _ in range(900):
        if Path("reading").exists():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err, err


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_an_evaluation_ends_with_the_batch_at_work(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten thousand images it may take minutes; and what is cut short, in its last batch too, is no result."""
    config = configs.build(
        trees.Tree({"data": "squares", "model": {"name": "vae", "net": {"name": "mlp", "hidden": [4]}}}, {})
    )
    dataset, stop, seen = data.load(config.data), Stop(), list[int]()
    model = models.build(config.model, dataset.info)
    split, loss = dataset.split("train"), Model.loss
    calls = batch * noise.draws(len(split)) + 1  # once for every draw; the first of this batch is the last

    def stopped(self: Model, *args: Any) -> Any:
        seen.append(len(args[0].x_BCHW))
        if len(seen) == calls:
            stop.signal = signal.SIGTERM
        return loss(self, *args)

    monkeypatch.setattr(Model, "loss", stopped)
    monkeypatch.setattr("vaecli.training.evaluation.at_once", lambda *_: 160)
    torch.manual_seed(0)
    assert len(split) == 456 and evaluate(model, split, config, TrainState.fresh(model, config), stop) is None
    assert len(seen) == calls
