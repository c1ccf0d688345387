"""Trackers of experiments, `train.log: [tensorboard, wandb, trackio, mlflow]`: they get what `metrics.jsonl` gets.

Each is an extra of its own name, imported only where it is named. One that fails is warned of once and left alone: a
training never ends for it. Where they write and who they speak to is their own business and that of their variables
(WANDB_MODE, WANDB_PROJECT, TRACKIO_DIR, MLFLOW_TRACKING_URI, ...); TensorBoard's events lie in the run directory.
"""

import importlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from vaecli import extras, output, safe_files
from vaecli.config import flat

PROJECT = "vaecli"  # unless the tracker's own variable names another
_MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}


class Tracker(Protocol):
    """What a tracker is asked to do. `values` are finite numbers by names such as `train/elbo`."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


def check(names: Iterable[str]) -> None:
    """ConfigError with the pip line of the first that is not installed; nothing is imported."""
    for name in names:
        extras.require(_MODULES[name], name, f"train.log: {name}")


class Trackers:
    """All that a run logs to."""

    def __init__(self, names: Iterable[str], run: Path, settings: Mapping[str, Any], step: int) -> None:
        """`step` is that of the run now: a tracker forgets or continues what it has of it."""
        self._live: dict[str, Tracker] = {}
        for name in names:
            with _Once(self._live, name):
                self._live[name] = _KINDS[name](run, settings, step)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One record, as `metrics.jsonl` has it: nested numbers and lists of numbers get names with slashes."""
        if not self._live:
            return
        numbers = {f"{kind}/{name}": value for name, value in _numbers(values)}
        for name, tracker in list(self._live.items()):
            with _Once(self._live, name):
                tracker.log(step, numbers)

    def close(self, failed: bool) -> None:
        for name, tracker in list(self._live.items()):
            with _Once(self._live, name):
                tracker.close(failed)
        self._live.clear()


class _Once:
    """Within: an error is warned of, and the tracker taken out."""

    def __init__(self, live: dict[str, Tracker], name: str) -> None:
        self.live, self.name = live, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        if not isinstance(error, Exception) and not (isinstance(error, SystemExit) and self.name == "wandb"):
            return False
        self.live.pop(self.name, None)
        text = str(error).strip().partition("\n")[0][:200]
        output.warning(f"train.log: {self.name} failed and gets no more: {type(error).__name__}: {text}")
        return True


def _numbers(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, (list, tuple)):
            yield from _numbers({f"{name}/{i}": part for i, part in enumerate(value)})
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield name, float(value)


# ------------------------------------------------------------------------------------------------------- each of them


class TensorBoard:
    """Event files in RUN/tensorboard, for `tensorboard --logdir`; a resumed run hides what is after its step."""

    def __init__(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(run / "tensorboard"), purge_step=step + 1 if step else None, flush_secs=10)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases; the run's name is its id, so that a resumed run goes on where it was."""

    def __init__(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name, id=run.name, resume="allow",
            dir=str(run), config=dict(settings), settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    """trackio's table on this machine, for `trackio show`."""

    def __init__(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        self._trackio = importlib.import_module("trackio")
        self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=run.name, config=dict(flat(dict(settings))),
            resume="allow", embed=False,
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self._trackio.finish()


class Mlflow:
    """MLflow; which of its runs it is stands in RUN/mlflow-run, so that a resumed run goes on in it."""

    def __init__(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        mlflow = importlib.import_module("mlflow")
        self._client = mlflow.MlflowClient()
        self._entities = importlib.import_module("mlflow.entities")
        mark = run / "mlflow-run"
        if step and safe_files.is_plain(mark):
            self._id = safe_files.read(mark, 1000).decode().strip()
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        safe_files.replace(mark, self._id.encode())
        params = [self._entities.Param(key, str(value)[:500]) for key, value in flat(dict(settings))]
        for start in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[start : start + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._id, metrics=metrics[start : start + 1000])

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


_KINDS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}
