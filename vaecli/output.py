"""The two streams. stdout carries the result and nothing else; stderr carries notices, warnings, progress and errors.

User text never passes through rich's markup (a path may hold brackets), and control characters are shown escaped, line
breaks among them: a message is one line, and where it has more of them it is given line by line.
"""

import csv
import io
import json
import logging
import math
import os
import select
import shutil
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

NARROW = 12  # characters that the words of a row have at least, in a terminal that is too narrow; the rest wraps
PADDING = 3  # between two columns

_quiet = False
stdout_was_closed = False  # when the command was started
_log = logging.getLogger("vaecli")  # a run directory attaches its train.log here
_log.addHandler(logging.NullHandler())  # without any, logging itself would print to stderr, and wait for its reader


class _Earlier(logging.Handler):
    """What was said before there was a log, for the first one that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=200)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_earlier = _Earlier()
_log.addHandler(_earlier)


def log_to(handler: logging.Handler) -> None:
    """Have messages kept from now on, too; what the command said before comes first. `log_no_more` ends it."""
    while _earlier.records:
        handler.handle(_earlier.records.popleft())
    _log.removeHandler(_earlier)
    _log.addHandler(handler)


def log_no_more(handler: logging.Handler) -> None:
    _log.removeHandler(handler)


def ensure_streams() -> None:
    """Put /dev/null where a standard stream is closed, so that no file opened later takes its number."""
    global stdout_was_closed
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            stdout_was_closed = stdout_was_closed or number == 1
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


def is_quiet() -> bool:
    return _quiet


def configure(quiet: bool) -> None:
    """Set once per command: with `quiet`, no notices and no progress; warnings and errors stay."""
    global _quiet
    _quiet = quiet
    _earlier.records.clear()
    _log.addHandler(_earlier)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    # A name with a lone surrogate, or a terminal that cannot encode a sign, must not end a run.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the machine's want of memory; torch on the CPU reports it as a plain RuntimeError."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def safe(text: object, allowed: str = "") -> str:
    """Text with control and bidirectional characters escaped, so that a file's content cannot drive the terminal."""
    return "".join(
        c
        if c in allowed or (c.isprintable() and c not in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068")
        else ascii(c)[1:-1]
        for c in str(text)
    )


def _lines(*lines: str) -> str:
    return "\n  ".join(map(safe, lines))


def width_of(stream: Any) -> int:
    """Characters in a line of the terminal that a stream is; COLUMNS, where set, is believed first."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return shutil.get_terminal_size().columns


def _shown(text: str, stream: Any) -> str:
    """Prose as it is, or on a terminal in lines that end between words; what follows a line is indented below it."""
    try:
        if not stream.isatty():
            return text
    except (ValueError, AttributeError):
        return text
    lines = []
    for line in text.split("\n"):
        label, start = _label(line), len(line) - len(line.lstrip(" "))
        below = " " * (start + 2 if label is None else label)
        lines += textwrap.wrap(
            line, max(width_of(stream), 2 * len(below), NARROW), subsequent_indent=below, break_long_words=False,
            break_on_hyphens=False, drop_whitespace=True, replace_whitespace=False,
        ) or [""]  # fmt: skip
    return "\n".join(lines)


def _label(line: str) -> int | None:
    """Where the text begins after a word that stands in a column of its own, as in `model      vae: 20 latents`."""
    word, gap, rest = line.partition("  ")
    return len(line) - len(rest.lstrip(" ")) if gap and rest and word and " " not in word else None


def notice(text: str, *more: str) -> None:
    """A line of information on stderr, and `more` below it."""
    _log.info(_lines(text, *more))
    if not _quiet:
        _stderr(_shown(_lines(text, *more), sys.stderr))


def prose(text: str) -> None:
    """A sentence of the result on stdout; on a terminal it breaks between words."""
    result(*_shown(safe(text), sys.stdout).split("\n"))


def warning(text: str) -> None:
    """One line that is shown even when quiet."""
    _log.warning(safe(text))
    _stderr(_shown(f"vae: warning: {safe(text)}", sys.stderr))


def relay(line: str) -> None:
    """A line that another process of ours meant for stderr; it has decided itself what a quiet run leaves out."""
    _stderr(safe(line, "\t"))


def error(text: str, hint: str | None = None, more: Sequence[str] = ()) -> None:
    """The one or two lines with which a command fails; `more` where there is a list of what is wrong."""
    _log.error(_lines(text, *more))
    _stderr(_shown(f"vae: error: {_lines(text, *more)}", sys.stderr))
    if hint:
        _stderr(_shown(f"  hint: {safe(hint)}", sys.stderr))


PATIENCE = 5.0  # seconds that a message waits for a reader who does not read
_patience = PATIENCE


def _has_room(seconds: float) -> bool:
    """Whether stderr takes a message of some lines within so many seconds; true where that cannot be told."""
    try:
        return bool(select.select([], [sys.stderr.fileno()], [], seconds)[1])
    except (OSError, ValueError, AttributeError):
        return True


def _stderr(text: str) -> None:
    global _patience
    try:
        # A full pipe whose reader has stopped must not hold up a training run, nor the signal that asks it to stop. The
        # first message waits a while; when it was in vain those after it do not, until the reader reads on.
        if not _has_room(_patience):
            _patience = 0.0
            return
        _patience = PATIENCE
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError, RuntimeError):
        pass  # a closed terminal must not end a training run, nor a signal in the middle of a message


def interactive() -> bool:
    """Whether live progress may be drawn: a terminal on stderr, not quiet, not CI."""
    try:
        return not _quiet and "CI" not in os.environ and os.environ.get("TERM") != "dumb" and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def stderr_console() -> Any:
    """A rich console on stderr that never interprets user text as markup."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, at most one line every 30 s elsewhere; yields `advance(amount)`."""
    if interactive():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=min(40, max(4, width_of(sys.stderr) - len(description) - 32))),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=stderr_console(), transient=True) as bars:
            task = bars.add_task(description, total=total)
            yield lambda amount: bars.advance(task, amount)
        return
    done, last = 0.0, time.monotonic()

    def advance(amount: float) -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= 30.0:
            last = time.monotonic()
            notice(f"{description}: {done:,.0f}" + (f" of {total:,.0f}" if total else ""))

    yield advance


def result(*lines: str) -> None:
    """Lines of the result on stdout; what is not printable in them is escaped."""
    text = "".join(safe(line, "\t") + "\n" for line in lines)
    result_bytes(text.encode(sys.stdout.encoding or "utf-8", errors="backslashreplace"))


def result_path(path: str) -> None:
    """A path as the result: in a pipe its very bytes, which `run=$(vae train ...)` needs; escaped on a terminal."""
    if sys.stdout.isatty():
        result(path)
    else:
        result_bytes(os.fsencode(path) + b"\n")


def csv_lines(rows: Iterable[Sequence[object]]) -> list[str]:
    """Rows as lines of CSV: what is not printable in a cell is escaped, a line break too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([safe(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue().splitlines()


def result_bytes(content: bytes) -> None:
    """Bytes of the result on stdout. Exits quietly with 141 where the reader has gone, as Unix producers do."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def result_json(value: Any) -> None:
    """The result as one JSON object or array: sorted keys, NaN and infinities as null."""
    result(*json.dumps(_plain(value), sort_keys=True, indent=2, allow_nan=False).splitlines())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    styles: Sequence[str | None] | None = None,
    to_stderr: bool = False,
    asked: bool = False,
    left: int = 1,
) -> None:
    """A rich table on a terminal (`styles`: one rich style a row; the first `left` columns hold words, the others
    numbers, which are never cut: where they do not fit side by side, they stand in tables one below the other, and
    names that head the rows are shortened in their middle); tab-separated and untruncated in a pipe. On stderr a quiet
    command shows only what an option of its own `asked` for.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    lines = ["\t".join(map(safe, row)) for row in (headers, *rows)]
    if to_stderr:
        _log.info("\n".join([*([safe(title)] if title else []), *lines]))
        if _quiet and not asked:
            return
    if not stream.isatty():
        if to_stderr:
            _stderr("\n".join(lines))
        else:
            result(*lines)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    cells = [[safe(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(line) for row in cells for line in row[i].splitlines() or [""]) for i in range(len(headers))]
    words = min(sum(widths[:left]) + PADDING * left, max(NARROW, console.width // 3))
    if left == 1:
        names = shortened([row[0] for row in cells], words)
        cells = [[name, *row[1:]] for name, row in zip(names, cells, strict=True)]
    for k, block in enumerate(blocks(widths[left:], words, console.width)):
        drawn = Table(title=Text(safe(title)) if title and k == 0 else None, box=box.SIMPLE_HEAD, pad_edge=False)
        kept = [*range(left), *(left + i for i in block)]
        for i in kept:
            drawn.add_column(
                Text(cells[0][i]), justify="left" if i < left else "right", no_wrap=i >= left, overflow="fold"
            )
        for row, style in zip(cells[1:], styles or [None] * len(rows), strict=True):
            drawn.add_row(*(Text(row[i]) for i in kept), style=style or "")
        console.print(drawn)


def shortened(names: Sequence[str], room: int) -> list[str]:
    """Names of at most so many characters, `…` in place of their middle; as they are where two would look alike."""
    head = room - 1 - (room - 1) // 2
    cut = [n if len(n) <= room else f"{n[:head]}…{n[len(n) - (room - 1 - head) :]}" for n in names]
    return cut if len(set(cut)) == len(set(names)) else list(names)


def blocks(widths: Sequence[int], taken: int, width: int) -> list[list[int]]:
    """Columns of these widths in lines of a terminal: as many side by side as fit beside what is `taken`, one at
    least."""
    found: list[list[int]] = [[]]
    left = width - taken
    for i, needed in enumerate(widths):
        if found[-1] and left < needed + PADDING:
            found.append([])
            left = width - taken
        found[-1].append(i)
        left -= needed + PADDING
    return found
