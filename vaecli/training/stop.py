"""What ends a training early: signals, a time limit, want of memory."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vaecli import output
from vaecli.errors import MachineError


class Stop:
    """Set by a signal or a time limit; polled by every long loop. `reason` is None while training goes on."""

    def __init__(self, max_seconds: float | None = None) -> None:
        self.signal: int | None = None
        self.saves = 0  # how often saving was asked for; each run remembers how many of these it has obeyed
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds

    @property
    def reason(self) -> str | None:
        if self.signal is not None:
            return "interrupted"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "time limit"
        return None

    def agree(self) -> None:
        """Called before each step: what several processes decide together becomes known here."""

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within: the first INT, TERM or HUP stops after the step, a second at once; USR1 saves and goes on."""
        wanted = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._stop)
        wanted[signal.SIGUSR1] = self._save
        # What the caller has the process ignore (nohup, `vae train &` in a script) stays ignored.
        old = {s: signal.signal(s, f) for s, f in wanted.items() if signal.getsignal(s) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: Any) -> None:
        if self.signal is not None:
            os._exit(128 + number)  # the last committed checkpoint is intact by construction
        self.signal = number
        output.notice("stopping after this step and saving; press again to stop now")

    def _save(self, number: int, _: Any) -> None:
        self.saves += 1


@contextmanager
def memory_errors(batch_size: int, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn running out of memory into an error with the remedies."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not output.is_out_of_memory(error):
            raise
        raise MachineError(
            f"out of memory with batches of {batch_size} images of shape {'x'.join(map(str, shape))}",
            "lower train.batch_size, take a smaller model.net, or use another --device",
        ) from error
