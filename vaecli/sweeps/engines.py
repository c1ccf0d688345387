"""What runs the command lines of a sweep: processes here, jobs of Slurm, or tasks of a Ray cluster.

Every engine gets (name, arguments of `vae`) pairs, tells what became of each as it ends, and gives back all. A worker
that was killed, and not by itself, is started again: the command line goes on where the run was saved. The machines
share the sweep's folder.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vaecli import extras, output
from vaecli.errors import ConfigError, MachineError
from vaecli.training import seeds
from vaecli.training.seeds import Done, Ended

Commands = Sequence[tuple[str, list[str]]]
Engine = Callable[[Commands, Ended], list[Done]]
NAMES = ("local", "slurm", "ray")
ATTEMPTS = 3  # of a run whose worker is killed
KILLED = -signal.SIGKILL


def make(name: str, options: Mapping[str, str], folder: Path, at_once: int | None) -> tuple[Engine, int]:
    """The engine, and how many commands it is best given at once. ConfigError for another name, an option that it has
    not, or without its extra; MachineError where there is nothing to run on."""
    if name not in NAMES:
        raise ConfigError(f"--on {name[:40]!r}: there is no such engine; there are: {', '.join(NAMES)}")
    if name == "local":
        if options:
            raise ConfigError("--option is for --on slurm and --on ray; processes here have --jobs")
        most = at_once or seeds.processes_at_once(1_000_000, 0)
        return again(lambda commands, ended: seeds.in_processes(commands, min(most, len(commands)), ended)), most
    if name == "slurm":
        extras.require("submitit", "slurm", "--on slurm")
        return again(_slurm(dict(options), folder)), at_once or 1_000
    extras.require("ray", "ray", "--on ray")
    return again(_ray(dict(options))), at_once or 1_000


def again(engine: Engine) -> Engine:
    """The same, with those that were killed once more."""

    def run(commands: Commands, ended: Ended) -> list[Done]:
        results: dict[str, Done] = {}
        left = list(commands)
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            told = ended if last else lambda done: None if done.code == KILLED else ended(done)
            results |= {done.name: done for done in engine(left, told)}
            left = [pair for pair in left if results[pair[0]].code == KILLED]
            if not left or last:
                break
            for name, _ in left:
                output.notice(f"[{name}] its worker was killed; it goes on from where it was saved")
        return [results[name] for name, _ in commands]

    return run


def call(arguments: list[str], threads: int, place: str, variables: dict[str, str]) -> tuple[int, str, list[str]]:
    """Run one command line on a worker, in the folder and with the variables of whoever sent it: exit code (or minus
    the signal), stdout, and the lines of stderr. The worker takes it along when it dies."""
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vaecli", *arguments], capture_output=True, text=True, errors="replace",
        env=environment, cwd=place, preexec_fn=_die_with_parent if sys.platform.startswith("linux") else None,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.splitlines()


def _here() -> tuple[str, dict[str, str]]:
    """What a worker needs of this process: its folder and its own variables."""
    return os.getcwd(), {key: value for key, value in os.environ.items() if key.startswith("VAE_")}


def _die_with_parent() -> None:
    """An orphan would hold the run's lock, and the run could not go on elsewhere."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _told(name: str, found: tuple[int, str, list[str]]) -> Done:
    code, out, lines = found
    for line in lines:
        output.relay(f"[{name}] {line}")
    return Done(name, code, out, seeds.last_error(lines))


# ---------------------------------------------------------------------------------------------------------------- Slurm


def _slurm(options: dict[str, str], folder: Path) -> Engine:
    """Jobs by submitit: `--option slurm_partition=gpu --option timeout_min=600 ...` are its own names of the options of
    sbatch; `--option cluster=local` runs them as processes here."""
    import submitit

    cluster = options.pop("cluster", "slurm")
    if cluster == "slurm" and shutil.which("sbatch") is None:  # submitit would take processes here instead
        raise MachineError("--on slurm: there is no sbatch here", "--option cluster=local tries it without Slurm")
    given = {key: _number(value) for key, value in options.items()}
    try:
        executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=cluster)
        executor.update_parameters(**{"timeout_min": 24 * 60, **given})
    except RuntimeError as error:
        raise MachineError(f"--on slurm: {_line(error)}") from None
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"--option: {_line(error)}", "names are those of submitit: timeout_min, slurm_partition"
        ) from None
    threads = given.get("cpus_per_task", 1)

    def run(commands: Commands, ended: Ended) -> list[Done]:
        # A process here runs no more jobs than there are cores; Slurm has a queue of its own.
        most = seeds.cpu_cores() if cluster == "local" else len(commands)
        waiting = list(commands)
        running: dict[str, Any] = {}
        results: dict[str, Done] = {}
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    name, arguments = waiting.pop(0)
                    running[name] = executor.submit(call, arguments, threads, *_here())
                for name, job in [(name, job) for name, job in running.items() if job.done()]:
                    del running[name]
                    results[name] = _of_job(name, job)
                    ended(results[name])
                time.sleep(0.2)
        except BaseException:
            for job in running.values():
                job.cancel(check=False)
            raise
        return [results[name] for name, _ in commands]

    def _of_job(name: str, job: Any) -> Done:
        try:
            return _told(name, job.result())
        except Exception as error:  # submitit's own: the job left no result
            return Done(name, KILLED, "", f"job {job.job_id}: {_line(error)}")

    return run


# ------------------------------------------------------------------------------------------------------------------ Ray


def _ray(options: dict[str, str]) -> Engine:
    """Tasks of a cluster that `ray start` has begun: `--option address=HOST:PORT` (default: that of this machine),
    `num_cpus` and `num_gpus` of a run, and Ray's other options of a task."""
    ray = extras.need("ray", "ray", "--on ray")
    address = options.pop("address", "auto")
    given = {"num_cpus": 1, "max_retries": 0, **{key: _number(value) for key, value in options.items()}}
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        remote = ray.remote(**given)(call)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise MachineError(
            f"--on ray: no cluster at {address!r}: {_line(error)}", "ray start --head begins one"
        ) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--option: {_line(error)}") from None

    def run(commands: Commands, ended: Ended) -> list[Done]:
        threads = max(1, int(given["num_cpus"]))
        names = {remote.remote(arguments, threads, *_here()): name for name, arguments in commands}
        results: dict[str, Done] = {}
        try:
            left = list(names)
            while left:
                ready, left = ray.wait(left, timeout=1.0)
                for task in ready:
                    try:
                        results[names[task]] = _told(names[task], ray.get(task))
                    except ray.exceptions.RayError as error:  # the worker or its machine is gone
                        results[names[task]] = Done(names[task], KILLED, "", _line(error))
                    ended(results[names[task]])
        except BaseException:
            for task in names:
                ray.cancel(task, force=True)
            raise
        return [results[name] for name, _ in commands]

    return run


def _number(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
