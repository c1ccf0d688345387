"""The training loop. It knows the `Model` contract and no model by name.

Everything that depends on time is a pure function of (seed, step): the batch, the noise, every schedule. So the state
to save is the weights, the optimizers and the step, and a resumed run repeats what an uninterrupted one would do.
"""

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch

from vaecli import device, output
from vaecli.batch import Batch, Split
from vaecli.config import RunConfig
from vaecli.errors import Diverged, Interrupted, MachineError
from vaecli.models.base import Model
from vaecli.settings import schedules
from vaecli.speed import graph
from vaecli.training import checkpoint
from vaecli.training.evaluation import evaluate
from vaecli.training.rundir import RunDir
from vaecli.training.state import TrainState
from vaecli.training.steps import Concern, Data, NotFinite, check_first_batch, update
from vaecli.training.stop import Stop

Value = TypeVar("Value")


@dataclass(frozen=True)
class Outcome:
    """How a sitting ended: `finished`, `time limit` or `interrupted`."""

    status: str
    evaluation: dict[str, Any]


@dataclass(frozen=True)
class Hooks:
    """What the loop tells and asks of its caller.

    `report`    called after every step with the means of a window where one is over, else with nothing.
    `concern`   a warning that an evaluation gives reason for, given the record, the step and the last step.
    `progress`  told the images that a fit has seen.
    `picture`   a picture (PNG) for the run directory, of the model as it is; None where there is nothing to be seen.
    """

    report: Callable[[TrainState, Mapping[str, float]], None] = lambda state, means: None
    concern: Concern = lambda record, step, last: None
    progress: Callable[[float], None] = lambda images: None
    picture: Callable[[], bytes | None] = lambda: None


def fit(
    run: RunDir,
    model: Model,
    config: RunConfig,
    state: TrainState,
    data: Data,
    train: Split,
    held_out: Split,
    stop: Stop,
    hooks: Hooks,
    recorded: graph.StaticSteps | None = None,
) -> Generator[None, None, Outcome]:
    """Train from `state.step` to the last step, evaluating, saving and stopping only at the one boundary.

    A generator that yields between steps, so that several runs can take turns (`finish` runs one to its end); its value
    is the outcome. `recorded` makes the steps instead of `update` and is asked for numbers only where they are wanted.
    Raises Diverged with the parameters of the last finite step kept, Interrupted after a signal, once saved.
    """
    last = state.last
    evaluation: dict[str, Any] = {}
    evaluated = saved = state.step if state.step else None
    prepared: int | None = None  # work between steps comes after saving: a resumed run repeats it
    warm_up, warned, obeyed = 3, False, stop.saves
    # Held-out losses of one objective: not while it changes from step to step, or from stage to stage.
    comparable = model.comparable and not schedules.moving(config.model) and len(state.stages) == 1
    alarmed: int | None = -1  # the sound step after which an unsound one was warned of
    clock = time.monotonic()
    shortened = None  # why a fit has not seen all images
    if not state.players:
        device.seed(config.seed, "fit")
        model.fit(train, lambda: stop.reason is not None, hooks.progress)
        shortened = stop.reason
    else:
        data.order = model.order(train, config.seed, config.train.batch_size)

    def save() -> None:
        nonlocal saved, clock, alarmed
        state.seconds, clock = state.seconds + time.monotonic() - clock, time.monotonic()
        if not all(bool(t.isfinite().all()) for t in model.state_dict().values() if t.is_floating_point()):
            raise Diverged(
                f"training diverged: the weights are not finite after step {state.step:,}", remedy(run, state)
            )
        if state.sound:
            state.sound_step = state.step
        if comparable and evaluated == state.step and (loss := evaluation.get("loss")) is not None:
            state.best = (loss, state.step) if state.best is None or loss <= state.best[0] else state.best
        best = None if state.best is None else state.best[1]
        if run.writes:
            facts = (model, config, state.step, config.train.keep, state.tensors(), state.values())
            folder = run.checkpoints
            try:
                checkpoint.commit(folder, *facts, best=best, spared=(state.sound_step,))
            except MachineError:
                if run.checkpoints == folder:
                    raise
                checkpoint.commit(run.checkpoints, *facts, best=best, spared=(state.sound_step,))  # moved on the way
        saved = state.step
        if not state.sound and alarmed != state.sound_step:
            alarmed = state.sound_step
            kept = f"; step {state.sound_step:,} is kept" if state.sound_step is not None else ""
            output.warning(
                f"step {state.step:,}: the loss is {state.loss:.4g}, that of the untrained model was "
                f"{state.untrained:.4g}: lower optim.lr, or set optim.grad_clip{kept}"
            )

    while True:
        # ---- boundary: the only place that evaluates, saves or stops
        stop.agree()
        finished = state.step >= last
        ending = finished or stop.reason is not None
        due = state.step and state.step % config.train.eval_every == 0
        if (due or ending) and evaluated != state.step and stop.signal is None:
            record = evaluate(model, held_out, config, state, stop)
            if record is not None:  # None: a signal came in between; no half record
                evaluation = record
                run.record("val", state.step, record)
                evaluated = state.step
                if run.writes and (picture := hooks.picture()) is not None:
                    run.picture(state.step, picture)
                concern = hooks.concern(record, state.step, last)
                if concern is not None and not warned:
                    output.warning(concern)
                warned = concern is not None  # said once, and again if it comes back
        # One look, for saving and leaving alike: a signal or the deadline may have come during the evaluation.
        reason, number, asked = stop.reason, stop.signal, stop.saves
        leaving = finished or reason is not None or asked > obeyed
        patience = 60 * config.train.save_minutes
        overdue = 0 < patience <= time.monotonic() - clock  # since the last save, or the start
        if saved != state.step and (leaving or (state.step and (overdue or state.step % config.train.save_every == 0))):
            save()
        obeyed = asked
        if finished and (shortened is None or number is None):
            return Outcome(shortened or "finished", evaluation)
        if number is not None:
            name = signal.Signals(number).name
            if not state.players:  # there is nothing to go on with
                raise Interrupted(f"stopped by {name}; saved is the fit to the images seen until then", number)
            raise Interrupted(
                f"stopped by {name} at step {state.step:,}; saved", number, f"vae train --resume {run.path}"
            )
        if reason is not None:
            return Outcome(reason, evaluation)

        # ---- work between steps
        stage = state.stage
        local, name_of_stage = state.step - stage.start, stage.name or model.stages[0]
        if prepared != state.step and model.due(local, name_of_stage):
            device.seed(config.seed, "prepare", state.step)
            model.eval()
            model.prepare(local, name_of_stage, train)
            data.order = model.order(train, config.seed, config.train.batch_size)
            if recorded is not None:
                recorded.forget()
        prepared = state.step

        # ---- one step, or recorded ones to the next boundary
        try:
            if recorded is None or warm_up > 0:
                _step(run, model, config, state, data)
                warm_up -= 1
            else:
                every = (config.train.log_every, config.train.eval_every, config.train.save_every)
                until = min(stage.end, *(state.step - state.step % n + n for n in every))
                until = _next_due(model, state, until)
                reached = state.step
                try:
                    while True:
                        reached = recorded.launch(reached, until)
                        yield
                        if reached >= until or stop.reason is not None or stop.saves > obeyed:
                            break
                except graph.CannotRecord as error:
                    output.notice(f"steps are launched one by one: {error}")
                    recorded = None
                    continue
                _collect(run, model, config, state, data, recorded, reached)
        except Diverged as error:
            if len(state.stages) == 1:
                # The last loss is from before the last update: what that led to is not known yet.
                found = evaluate(model, held_out, config, state, stop) or {}
                state.loss = found.get("loss") if found.get("loss") is not None else math.inf
            with contextlib.suppress(Diverged):  # unless these are not finite either
                if saved != state.step and (state.sound or state.sound_step is None):
                    save()
            error.hint = remedy(run, state)
            raise
        if state.step % config.train.log_every == 0:
            means = state.take_means()
            seconds = round(state.seconds + time.monotonic() - clock, 3)
            values = {name: mean for name, mean in means.items() if not name.endswith(".weight")}
            weights = {name.removesuffix(".weight"): mean for name, mean in means.items() if name.endswith(".weight")}
            hyper = scheduled(model, config, state, state.step - 1)
            run.record("train", state.step, {**values, "weights": weights, "hyper": hyper, "seconds": seconds})
            hooks.report(state, means)
        else:
            hooks.report(state, {})
        yield


def _next_due(model: Model, state: TrainState, until: int) -> int:
    """The first step after this one, and before `until`, that work between steps comes before; `until` if none."""
    if type(model).due is Model.due:
        return until
    stage = state.stage
    name = stage.name or model.stages[0]
    return next((s for s in range(state.step + 1, until) if model.due(s - stage.start, name)), until)


def finish(run: Generator[None, None, Value]) -> Value:
    """Run one training to its end; what it returned."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            value: Value = end.value
            return value


def _step(run: RunDir, model: Model, config: RunConfig, state: TrainState, data: Data) -> None:
    """One step by `update`, its scalars added to the window."""
    batch = data.batch(state.step).to(model.device)
    if state.step == 0:
        check_first_batch(batch)
    try:
        values = update(model, config, state, batch, data)
    except NotFinite as error:
        diverged(run, model, state, batch, error.player, error.values)
    state.count(values)


def _collect(
    run: RunDir,
    model: Model,
    config: RunConfig,
    state: TrainState,
    data: Data,
    recorded: graph.StaticSteps,
    reached: int,
) -> None:
    """Take in what the device did since the last boundary. Where it met numbers that are not finite, the weights are
    those before that step, and the step is made once more by `update`, which says what is wrong.
    """
    sums, done, finite = recorded.collect()
    state.count(sums, done)
    if not finite:
        _step(run, model, config, state, data)
        raise Diverged(f"training diverged: recorded step {state.step - 1:,} was not finite, repeated it is")
    assert state.step == reached


def scheduled(model: Model, config: RunConfig, state: TrainState, step: int) -> dict[str, float]:
    """The values, at `step`, of the hyper-parameters that are schedules, and the learning rates, with the player's name
    before those of all but the first."""
    stage = next(s for s in state.stages if step < s.end)
    now = model.hyper(step - stage.start)
    moving = {name: now[name] for name in schedules.moving(config.model) if not name.endswith("_optim.lr")}
    playing = [player for player, _ in state.players.values() if stage.plays(player)]
    rates = {
        "lr" if player is playing[0] else f"{player.name}.lr": schedules.at(player.optim.lr, step - stage.start)
        for player in playing
    }
    return {**moving, **rates}


def diverged(
    run: RunDir, model: Model, state: TrainState, batch: Batch, player: str, values: Mapping[str, float]
) -> NoReturn:
    """Write diverged.json and raise. Nothing has moved, so the weights are those of the last finite step."""
    with torch.inference_mode():
        try:
            logvar = model.posterior(batch.x_BCHW).logvar_BD
        except (ValueError, RuntimeError):  # a distribution that refuses its parameters
            logvar = None
    largest = None if logvar is None else float(logvar.abs().max())
    facts = {
        "step": state.step,
        "player": player,
        "terms": {k: v if math.isfinite(v) else str(v) for k, v in values.items()},
        "batch_indices": batch.index_B.tolist(),
        "max_abs_logvar": largest if largest is not None and math.isfinite(largest) else str(largest),
    }
    run.write("diverged.json", json.dumps(facts, indent=1))
    bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
    whose = f" of {player}" if len(state.players) > 1 else ""
    raise Diverged(
        f"training diverged at step {state.step:,}: {bad}{whose} not finite; details in {run.path / 'diverged.json'}"
    )


def remedy(run: RunDir, state: TrainState) -> str:
    """What to try after a divergence, and what there is to go on from: the last weights that were sound, else those
    that are finite, said to be no more."""
    last, latest = "there is no checkpoint to go on from", run.checkpoints / "latest"
    if latest.exists():
        sound = None if state.sound_step is None else run.checkpoints / f"step-{state.sound_step:08d}"
        if sound is not None and sound.is_dir():
            start = run.path if sound.name == latest.resolve().name else sound
            last = "to go on from the last sound weights with other settings"
        else:
            start, last = run.path, "no weights that were saved are sound; the last that are finite"
        last = f"{last}: vae train -c {run.path / 'config.yaml'} --init-from {start}"
    return f"lower optim.lr, or set optim.grad_clip; {last}"
