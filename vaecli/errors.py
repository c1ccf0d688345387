"""Errors a user can act on. Each knows the exit code of the process and, where there is one, the remedy.

`cli.main` is the only place that turns them into text; everything else raises and lets them pass.
"""

from collections.abc import Sequence


class VaeError(Exception):
    """Base of all expected errors; `hint` says what to do about it.

    `message` is one line and each of `more` another: a line break within one is a stranger's, and shown escaped.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None, more: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *more]))
        self.message, self.hint, self.more = message, hint, tuple(more)


class ConfigError(VaeError):
    """Bad usage or bad configuration: nothing was started or written."""

    exit_code = 2


class InputError(VaeError):
    """An input (checkpoint, dataset, image) could not be used."""

    exit_code = 3


class Diverged(VaeError):
    """Training met a non-finite loss or gradient; the last good parameters are kept."""

    exit_code = 4


class MachineError(VaeError):
    """The machine said no: disk full, out of memory, device absent, locked or read-only directory, offline."""

    exit_code = 5


class Interrupted(VaeError):
    """A stop signal was obeyed after saving; the exit code is 128 plus the signal's number."""

    def __init__(self, message: str, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number


class FailedVerdict(VaeError):
    """The verdict on a model is one that the caller asked to fail on (`--fail-if`)."""

    exit_code = 6


class SeedsFailed(VaeError):
    """Some of several runs failed; the exit code is that of the first which did."""

    def __init__(self, message: str, exit_code: int, more: Sequence[str] = ()) -> None:
        super().__init__(message, more=more)
        self.exit_code = exit_code
