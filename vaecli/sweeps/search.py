"""Search by Optuna (Akiba et al. 2019): trials in a journal on disk, which several processes and machines share.

A trial whose process has died on this machine is taken over: its run goes on where it was saved.
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaecli import extras
from vaecli.sweeps import plan
from vaecli.sweeps.plan import Range, Task

JOURNAL = "optuna.journal"
MINE = f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Trial:
    """Settings that are tried, one run a seed."""

    number: int
    values: dict[str, str]
    tasks: list[Task]


class Study:
    """The trials of a sweep; a larger value is better."""

    def __init__(self, folder: Path, space: Mapping[str, Sequence[str] | Range], seeds: Sequence[int]) -> None:
        self._optuna: Any = extras.need("optuna", "sweep", "--search optuna")
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        journal = self._optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        storage = self._optuna.storages.JournalStorage(journal)
        self._study = self._optuna.create_study(
            study_name="sweep", storage=storage, direction="maximize", load_if_exists=True
        )
        self._folder, self._space, self._seeds = folder, space, seeds

    def take(self, most: int, trials: int) -> list[Trial]:
        """Up to `most` trials to be run now: those left by the dead, then new ones until there are `trials` in all."""
        running = self._optuna.trial.TrialState.RUNNING
        with plan.alone(self._folder):
            known = self._study.get_trials(deepcopy=False)
            left = [t for t in known if t.state == running and _dead(t.user_attrs.get("owner", ""))][:most]
            for trial in left:
                self._storage_of(trial.number, "owner", MINE)
            found = [self._trial(t.number, t.user_attrs["values"]) for t in left if "values" in t.user_attrs]
            while len(found) < most and len(known) < trials:
                trial = self._study.ask()
                values = {key: self._suggested(trial, key, choices) for key, choices in self._space.items()}
                trial.set_user_attr("values", values)
                trial.set_user_attr("owner", MINE)
                known = [*known, trial]
                found.append(self._trial(trial.number, values))
        return found

    def tell(self, trial: Trial, value: float | None) -> None:
        """What a trial came to; None where it failed."""
        failed = self._optuna.trial.TrialState.FAIL
        if value is None:
            self._study.tell(trial.number, state=failed)
        else:
            self._study.tell(trial.number, value)

    def best(self) -> tuple[Trial, float] | None:
        """The best of those that came to an end."""
        complete = self._optuna.trial.TrialState.COMPLETE
        done = [t for t in self._study.get_trials(deepcopy=False) if t.state == complete and t.value is not None]
        if not done:
            return None
        top = max(done, key=lambda t: float(t.value))
        return self._trial(top.number, top.user_attrs["values"]), float(top.value)

    def counts(self) -> dict[str, int]:
        """Trials by how they ended: COMPLETE, FAIL, RUNNING."""
        states = [t.state.name for t in self._study.get_trials(deepcopy=False)]
        return {name: states.count(name) for name in sorted(set(states))}

    def _trial(self, number: int, values: Mapping[str, str]) -> Trial:
        prefix, sets = f"trial_{number}", tuple(f"{key}={value}" for key, value in values.items())
        tasks = [Task(plan.run_name(values, seed, prefix), sets, seed) for seed in self._seeds]
        return Trial(number, dict(values), tasks)

    def _suggested(self, trial: Any, key: str, choices: Sequence[str] | Range) -> str:
        if not isinstance(choices, Range):
            return str(trial.suggest_categorical(key, list(choices)))
        if choices.whole:
            return str(trial.suggest_int(key, int(choices.low), int(choices.high), log=choices.log))
        return f"{trial.suggest_float(key, choices.low, choices.high, log=choices.log):.6g}"

    def _storage_of(self, number: int, key: str, value: str) -> None:
        storage = self._study._storage
        storage.set_trial_user_attr(
            storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number), key, value
        )


def _dead(owner: str) -> bool:
    """Whether the process that a trial belongs to was on this machine and is no more."""
    host, _, number = owner.rpartition(":")
    if host != socket.gethostname() or not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


Score = Callable[[Trial], float | None]
