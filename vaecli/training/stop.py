"""What ends a training early: signals, a time limit, want of memory."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vaecli import output
from vaecli.errors import MachineError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_listening = False  # whether what this process hears goes into a pipe of its own


def _deafen() -> None:
    """A child would write what it hears into its parent's pipe: one Ctrl-C to the group would count as two."""
    if _listening:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_deafen)


class Stop:
    """Set by a signal or a time limit; polled by every long loop. `reason` is None while training goes on."""

    def __init__(self, max_seconds: float | None = None) -> None:
        self.signal: int | None = None
        self._heard: dict[str, int] = Counter()  # signals that end the training, by who heard them
        self._told = threading.Lock()  # taken by who tells of the first, and kept
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
        global _listening
        wanted = dict.fromkeys(STOPPING, self._stop)
        wanted[signal.SIGUSR1] = self._save
        # What the caller has the process ignore (nohup, `vae train &` in a script) stays ignored.
        old = {s: signal.signal(s, f) for s, f in wanted.items() if signal.getsignal(s) is not signal.SIG_IGN}
        read, write = os.pipe()
        os.set_blocking(write, False)
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        listener = threading.Thread(target=self._listen, args=(read,), name="signals", daemon=True)
        listener.start()
        _listening = True
        try:
            yield
        finally:
            _listening = False
            signal.set_wakeup_fd(before)
            for number, handler in old.items():
                signal.signal(number, handler)
            os.close(write)  # which ends the listener
            listener.join()
            os.close(read)

    def _listen(self, read: int) -> None:
        """A handler runs between two lines of Python, and one call into torch may take long: here signals are heard at
        once."""
        while numbers := os.read(read, 64):
            for number in numbers:
                if number in STOPPING:
                    self._hear("listener", number)

    def _stop(self, number: int, _: Any) -> None:
        self._hear("handler", number)

    def _hear(self, who: str, number: int) -> None:
        """Each signal is heard by the listener and by the handler, in either order; several may be one for either.

        Nothing is held while it is told: the handler may have interrupted the main thread within a line on the screen,
        which the listener then waits for.
        """
        self._heard[who] += 1
        if self._heard[who] > 1:
            os._exit(128 + number)  # the last committed checkpoint is intact by construction
        if self._told.acquire(blocking=False):
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
