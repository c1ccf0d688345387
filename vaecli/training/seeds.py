"""Several seeds of one configuration: taking turns on one GPU, or a process with one thread for each CPU core.

Each run directory is what `--seed` alone would have made: same order of images, same noise, numbers equal within the
rounding of another thread count or of recorded steps.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from vaecli import output
from vaecli.data.base import free_memory
from vaecli.errors import ConfigError, VaeError

MOST = 1000
Value = TypeVar("Value")


def parse(text: str) -> list[int]:
    """`0-9`, `3`, `0,2,5-7`; ConfigError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= MOST:
            raise ConfigError(f"--seeds {text!r}: not a list of seeds", "write 0-9 or 0,2,5")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text!r}: names a seed twice")
    return seeds


def taking_turns(runs: Sequence[Generator[None, None, Value]]) -> tuple[list[Value | None], list[VaeError]]:
    """Let trainings advance one after another until all have ended; what each returned, and the errors met.

    A run that fails does not end the others.
    """
    values: list[Value | None] = [None] * len(runs)
    errors: list[VaeError] = []
    active = dict(enumerate(runs))
    while active:
        for number, run in list(active.items()):
            try:
                next(run)
                continue
            except StopIteration as end:
                values[number] = end.value
            except Exception as error:
                known = error if isinstance(error, VaeError) else VaeError(f"{type(error).__name__}: {error}"[:300])
                output.error(known.message, known.hint, known.more)
                errors.append(known)
            del active[number]
    return values, errors


def cpu_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_at_once(seeds: int, data_bytes: int) -> int:
    """As many as there are cores, unless memory is short: each process holds the data and about 1 GB of its own."""
    cores = cpu_cores()
    free = free_memory()
    fitting = cores if free is None else int(0.8 * free / (data_bytes + 1e9))
    return max(1, min(seeds, cores, fitting))


class Done(NamedTuple):
    """What became of a command: its exit code (minus the signal that killed it), stdout, and its error in a line."""

    name: str
    code: int
    out: str
    error: str


def last_error(lines: Sequence[str]) -> str:
    """The last error among lines of stderr, without what it begins with; "" where there is none."""
    return next(
        (line.partition("error: ")[2].strip() for line in reversed(lines) if line.startswith("vae: error:")), ""
    )


Ended = Callable[[Done], None]  # told what became of a command when it ends


def in_processes(
    commands: Sequence[tuple[str, list[str]]], at_once: int, ended: Ended = lambda done: None
) -> list[Done]:
    """Run (name, arguments of `vae`) pairs, `at_once` at a time and each on its share of the cores; what became of
    them, in order. Their messages come through with the name before each line. Signals are passed on, and what was
    still waiting then has ended by the signal too.
    """
    threads = max(1, cpu_cores() // at_once)
    with contextlib.suppress(KeyError, ValueError):
        threads = max(1, min(threads, int(os.environ["OMP_NUM_THREADS"])))  # the user's own limit
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    results: list[Done | None] = [None] * len(commands)
    running: set[subprocess.Popen[str]] = set()
    waiting = list(enumerate(commands))
    lock = threading.Lock()
    told: list[int] = []  # signals that ask to stop

    def work() -> None:
        while True:
            with lock:
                if not waiting or told:
                    return
                number, (name, arguments) = waiting.pop(0)
                try:
                    process = subprocess.Popen(
                        # -P: no module of the current directory, which may be a stranger's, instead of ours
                        [sys.executable, "-P", "-m", "vaecli", *arguments],
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment,
                        start_new_session=True,  # the terminal's Ctrl-C comes here, and is passed on once
                    )  # fmt: skip
                except OSError as error:
                    problem = f"no process could be started: {error.strerror}"
                    output.error(f"{name}: {problem}")
                    results[number] = Done(name, 5, "", problem)
                    continue
                running.add(process)
                if told:  # while it was being started
                    process.send_signal(told[-1])
            assert process.stderr is not None and process.stdout is not None
            lines: deque[str] = deque(maxlen=100)
            for line in process.stderr:
                lines.append(line)
                output.relay(f"[{name}] {line.rstrip()}")
            out = process.stdout.read()
            results[number] = done = Done(name, process.wait(), out, last_error(list(lines)))
            with lock:
                running.discard(process)
                ended(done)

    def pass_on(signum: int, _: Any) -> None:
        if signum != signal.SIGUSR1:
            told.append(signum)
        for process in list(running):
            process.send_signal(signum)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    old = {s: signal.signal(s, pass_on) for s in signals if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        workers = [threading.Thread(target=work) for _ in range(at_once)]
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.5)  # in pieces, so that signals are seen
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    code = 128 + told[-1] if told else 1
    named = zip(commands, results, strict=True)
    return [Done(name, code, "", "it was not started") if done is None else done for (name, _), done in named]


def arguments_of(argv: Sequence[str], seed: int, name: str | None) -> list[str]:
    """The command line of one seed: that of all, without --seeds, --name and --json, with its own seed and name."""
    kept: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word in ("--seeds", "--name"):
            skip = True
        elif not word.startswith(("--seeds=", "--name=")) and word != "--json":
            kept.append(word)
    return [*kept, "--seed", str(seed), *(["--name", f"{name}-s{seed}"] if name else [])]
