"""The first signal asks, the second ends the process at once, whatever it is doing."""

import signal
import subprocess
import sys

import pytest

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
