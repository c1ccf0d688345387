"""What ends a training early: signals, a time limit, want of memory."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from vaecli import output
from vaecli.errors import MachineError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENOUGH = b"\0"  # no signal's number: the listener's last

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
        self._telling = threading.Lock()  # taken by who tells of the first, and kept
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
        """Within: the first INT, TERM or HUP stops after the step, a second at once; USR1 saves and goes on.

        ValueError in any thread but the main one, to which alone Python brings signals.
        """
        global _listening
        outer, was_listening = signal.set_wakeup_fd(-1), _listening
        wanted = dict.fromkeys(STOPPING, self._stop)
        wanted[signal.SIGUSR1] = self._save
        old: dict[int, Any] = {}
        with ExitStack() as undo:
            undo.callback(signal.set_wakeup_fd, outer)
            read, write = os.pipe()
            undo.callback(os.close, read)
            undo.callback(os.close, write)
            os.set_blocking(write, False)
            listener = threading.Thread(target=self._listen, args=(read,), name="signals", daemon=True)
            listener.start()
            undo.callback(listener.join)
            # Not by closing the pipe, which forked readers hold open as well.
            undo.callback(os.write, write, ENOUGH)
            try:
                signal.set_wakeup_fd(write, warn_on_full_buffer=False)
                _listening = True
                # What the caller has the process ignore (nohup, `vae train &` in a script) stays ignored.
                heard = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
                old.update((number, signal.signal(number, wanted[number])) for number in heard)
                yield
            finally:
                for number, handler in old.items():
                    signal.signal(number, handler)
                _listening = was_listening
                signal.set_wakeup_fd(-1)

    def _listen(self, read: int) -> None:
        """A handler runs between two lines of Python, and one call into torch may take long: here signals are heard at
        once."""
        while True:
            for number in os.read(read, 64):
                if number in STOPPING:
                    self._hear("listener", number)
                elif number == ENOUGH[0]:
                    return

    def _stop(self, number: int, _: Any) -> None:
        self._hear("handler", number)

    def _hear(self, who: str, number: int) -> None:
        """Each signal is heard by the listener and by the handler, in either order; several may be one for either.

        Nothing is held while it is told: the handler may have interrupted the main thread within a line on the screen,
        which the listener then waits for.
        """
        self._heard[who] += 1
        if self._heard[who] > 1:
            self._again(number)
        elif self._telling.acquire(blocking=False):
            self._first(number)
            output.notice("stopping after this step and saving; press again to stop now")

    def _first(self, number: int) -> None:
        self.signal = number

    def _again(self, number: int) -> None:
        os._exit(128 + number)  # the last committed checkpoint is intact by construction

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
