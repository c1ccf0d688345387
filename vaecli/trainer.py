"""The training loop. It knows the `Model` contract and no model by name.

Everything that depends on time is a pure function of (seed, step): the batch, the noise, every schedule. So the state
to save is the weights, the optimizers and the step, and a resumed run repeats what an uninterrupted one would do.
"""

import contextlib
import functools
import inspect
import json
import math
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor

from vaecli import checkpoint, device, fast, graph, output, schedules
from vaecli.batch import Batch, Split
from vaecli.config import OptimConfig, RunConfig
from vaecli.diagnosis import warn_while_training
from vaecli.errors import Diverged, InputError, Interrupted, MachineError
from vaecli.models.base import Model
from vaecli.rundir import RunDir

Value = TypeVar("Value")


class Data(Protocol):
    """What the loop asks of a data set."""

    def batch(self, step: int) -> Batch: ...


# ------------------------------------------------------------------------------------------------------------- stopping


class Stop:
    """Set by a signal or a time limit; polled by every long loop. `reason` is None while training goes on."""

    def __init__(self, max_seconds: float | None = None) -> None:
        self.signal: int | None = None
        self.saves = 0  # how often saving was asked for; each run remembers how many of these it has obeyed
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds

    @property
    def reason(self) -> str | None:
        if self.signal is not None:
            return "interrupted"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "time limit"
        return None

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


# ---------------------------------------------------------------------------------------------------------------- state


@functools.cache
def _without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """torch's optimizers import its compiler, only to tell it to leave them alone: 1.4 seconds and 120 MB of memory.

    Nothing is compiled here. So the methods get the mark that the compiler would give them, and a step is made without
    the wrapper around it. Where a version of torch is built otherwise, the import happens.
    """
    for method in vars(torch.optim.Optimizer).values():
        original = getattr(method, "__wrapped__", None)
        if inspect.isfunction(method) and original is not None:
            original.__dict__.setdefault("__dynamo_disable", original)
    return type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def make_optimizer(parameters: list[torch.nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """The torch optimizer of a settings section, its scheduled numbers at step 0."""
    settings = config.model_dump(exclude={"name", "grad_clip", "lr", "weight_decay"})
    common = {"lr": schedules.at(config.lr, 0), "weight_decay": schedules.at(config.weight_decay, 0)}
    kinds: dict[str, Any] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "sgd": torch.optim.SGD,
    }
    # One pass over the memory instead of five; the arithmetic is the same.
    device_type = parameters[0].device.type
    fusable = {"cpu": ("adam", "adamw", "adagrad", "sgd"), "cuda": ("adam", "adamw", "sgd")}
    extra = {"capturable": True} if device_type == "cuda" and config.name in ("adam", "adamw") else {}
    fused = config.name in fusable.get(device_type, ()) and all(p.is_floating_point() for p in parameters)
    optimizer = _without_compiler(kinds[config.name])(
        parameters, **common, **settings, **extra, **({"fused": True} if fused else {})
    )
    if extra:  # the first steps are made without a graph, on purpose: no warning about it
        optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


@dataclass
class TrainState:
    """All that changes while training, apart from the weights."""

    optimizers: dict[str, tuple[torch.optim.Optimizer, OptimConfig]]
    step: int = 0
    seconds: float = 0.0  # time spent in training, over all sittings
    window: dict[str, float] = field(default_factory=dict)  # sums of logged scalars since the last record
    window_steps: int = 0
    norm: Callable[[list[Tensor]], Tensor] = torch.nn.utils.get_total_norm  # of the gradients

    @classmethod
    def fresh(cls, model: Model, config: RunConfig) -> "TrainState":
        groups = model.optimizers(config.optim)
        state = cls({phase: (make_optimizer(*groups[phase]), groups[phase][1]) for phase in model.phases})
        if config.train.fast and model.device.type == "cpu":
            state.norm = fast.total_norm
            for optimizer, _ in state.optimizers.values():
                fast.quicken(optimizer)
        return state

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' tensors under flat names `phase/parameter/key`."""
        return {
            f"{phase}/{index}/{key}": value
            for phase, (optimizer, _) in self.optimizers.items()
            for index, entry in optimizer.state_dict()["state"].items()
            for key, value in entry.items()
            if isinstance(value, Tensor)
        }

    def values(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "window": self.window, "window_steps": self.window_steps}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `tensors` and `values` gave. CheckpointError if it does not fit the optimizers.

        Checked to the shape: a fused optimizer trusts its state and would read past the end of a smaller tensor.
        """
        try:
            self.step, self.seconds = int(values["step"]), float(values["seconds"])
            self.window = {str(k): float(v) for k, v in values["window"].items()}
            self.window_steps = int(values["window_steps"])
            for phase, (optimizer, _) in self.optimizers.items():
                state: dict[int, dict[str, Tensor]] = {}
                for name, tensor in tensors.items():
                    owner, index, key = name.split("/")
                    if owner == phase:
                        state.setdefault(int(index), {})[key] = tensor
                check_optimizer_state(state, optimizer, self.step)
                match_layout(state, optimizer)
                optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise checkpoint.CheckpointError(f"the trainer's state does not fit this model: {error}") from None


STATE_KEYS: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.Adagrad: {"step", "sum"},
    torch.optim.RMSprop: {"step", "square_avg", "momentum_buffer"},
    torch.optim.SGD: {"momentum_buffer"},
}


def check_optimizer_state(
    state: Mapping[int, Mapping[str, Tensor]], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """ValueError unless every tensor belongs to a parameter, has its shape (or is the step count), and is finite."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if step > 0 and not state and not isinstance(optimizer, torch.optim.SGD):
        raise ValueError("the optimizer's tensors are missing")
    if any(index not in range(len(parameters)) for index in state):
        raise ValueError("the optimizer has tensors for more parameters than the model")
    for index, entry in state.items():
        wanted = next(STATE_KEYS[kind] for kind in type(optimizer).__mro__ if kind in STATE_KEYS)
        if not entry.keys() <= wanted or (entry.keys() ^ wanted) - {"momentum_buffer"}:
            raise ValueError(f"the optimizer's tensors of parameter {index} are {sorted(entry)}")
        for key, tensor in entry.items():
            shape = torch.Size() if key == "step" else parameters[index].shape
            if tensor.shape != shape or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise ValueError(f"the optimizer's {key} of parameter {index} is not usable")


def match_layout(state: dict[int, dict[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """Lay each checked tensor out in memory as its parameter is: a fused optimizer goes through both side by side."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entry in state.items():
        for key, tensor in entry.items():
            if tensor.dim() > 0:
                entry[key] = torch.empty_like(parameters[index], dtype=tensor.dtype).copy_(tensor)


@dataclass(frozen=True)
class Outcome:
    """How a sitting ended: `finished`, `time limit` or `interrupted`."""

    status: str
    evaluation: dict[str, Any]


# ----------------------------------------------------------------------------------------------------------------- loop


def fit(
    run: RunDir,
    model: Model,
    config: RunConfig,
    state: TrainState,
    stream: Data,
    train: Split,
    held_out: Split,
    stop: Stop,
    report: Callable[[TrainState, Mapping[str, float]], None],
    recorded: graph.StaticSteps | None = None,
) -> Generator[None, None, Outcome]:
    """Train from `state.step` to the last step, evaluating, saving and stopping only at the one boundary.

    A generator that yields between steps, so that several runs can take turns (`finish` runs one to its end); its value
    is the outcome. `recorded` makes the steps instead of `update` and is asked for numbers only where they are wanted.
    Raises Diverged with the parameters of the last finite step kept, Interrupted after a signal, once saved.
    """
    last = config.train.steps if model.phases else 0
    evaluation: dict[str, Any] = {}
    evaluated = saved = state.step if state.step else None
    warm_up, warned, obeyed = 3, False, stop.saves
    clock = time.monotonic()

    def save() -> None:
        nonlocal saved, clock
        state.seconds, clock = state.seconds + time.monotonic() - clock, time.monotonic()
        if not all(bool(t.isfinite().all()) for t in model.state_dict().values() if t.is_floating_point()):
            raise Diverged(f"training diverged: the weights are not finite after step {state.step:,}", remedy(run))
        checkpoint.commit(
            run.checkpoints, model, config, state.step, config.train.keep, state.tensors(), state.values()
        )
        saved = state.step

    while True:
        # ---- boundary: the only place that evaluates, saves or stops
        finished = state.step >= last
        if finished and saved != state.step:
            device.seed(config.seed, "end")
            model.end(train)
        ending = finished or stop.reason is not None
        due = state.step and state.step % config.train.eval_every == 0
        if (due or ending) and evaluated != state.step and stop.signal is None:
            record = evaluate(model, held_out, config, state.step, stop)
            if record is not None:  # None: a signal came in between; no half record
                evaluation = record
                run.record("val", state.step, record)
                evaluated = state.step
                concern = warn_while_training(record.get("kl_j", ()), state.step, last, model.hyper(state.step))
                if concern is not None and not warned:
                    output.warning(concern)
                warned = concern is not None  # said once, and again if it comes back
        # One look, for saving and leaving alike: a signal or the deadline may have come during the evaluation.
        reason, number, asked = stop.reason, stop.signal, stop.saves
        leaving = finished or reason is not None or asked > obeyed
        if saved != state.step and (leaving or (state.step and state.step % config.train.save_every == 0)):
            save()
        obeyed = asked
        if finished:
            return Outcome("finished", evaluation)
        if number is not None:
            name = signal.Signals(number).name
            raise Interrupted(
                f"stopped by {name} at step {state.step:,}; saved", number, f"vae train --resume {run.path}"
            )
        if reason is not None:
            return Outcome(reason, evaluation)

        # ---- one step, or recorded ones to the next boundary
        try:
            if recorded is None or warm_up > 0:
                _step(run, model, config, state, stream)
                warm_up -= 1
            else:
                every = (config.train.log_every, config.train.eval_every, config.train.save_every)
                until = min(last, *(state.step - state.step % n + n for n in every))
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
                _collect(run, model, config, state, stream, recorded, reached)
        except Diverged as error:
            with contextlib.suppress(Diverged):  # unless these are not finite either
                if saved != state.step:
                    save()
            error.hint = remedy(run)
            raise
        if state.step % config.train.log_every == 0:
            means = {name: total / state.window_steps for name, total in state.window.items()}
            state.window, state.window_steps = {}, 0
            seconds = round(state.seconds + time.monotonic() - clock, 3)
            run.record(
                "train", state.step, {**means, "hyper": scheduled(model, config, state.step - 1), "seconds": seconds}
            )
            report(state, means)
        else:
            report(state, {})
        yield


def finish(run: Generator[None, None, Value]) -> Value:
    """Run one training to its end; what it returned."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            value: Value = end.value
            return value


def _step(run: RunDir, model: Model, config: RunConfig, state: TrainState, stream: Data) -> None:
    """One step by `update`, its scalars added to the window."""
    batch, where = stream.batch(state.step), model.device
    labels_BK = None if batch.labels_BK is None else batch.labels_BK.to(where)
    batch = Batch(batch.x_BCHW.to(where), batch.index_B, labels_BK)
    if state.step == 0:
        check_first_batch(batch)
    try:
        terms = update(model, config, state, batch)
    except NotFinite as error:
        diverged(run, model, state, batch, error.phase, error.values)
    for name, value in terms.items():
        state.window[name] = state.window.get(name, 0.0) + value
    state.step += 1
    state.window_steps += 1


def _collect(
    run: RunDir,
    model: Model,
    config: RunConfig,
    state: TrainState,
    stream: Data,
    recorded: graph.StaticSteps,
    reached: int,
) -> None:
    """Take in what the device did since the last boundary. Where it met numbers that are not finite, the weights are
    those before that step, and the step is made once more by `update`, which says what is wrong.
    """
    sums, done, finite = recorded.collect()
    for name, value in sums.items():
        state.window[name] = state.window.get(name, 0.0) + value
    state.step += done
    state.window_steps += done
    if not finite:
        _step(run, model, config, state, stream)
        raise Diverged(f"training diverged: recorded step {state.step - 1:,} was not finite, repeated it is")
    assert state.step == reached


class NotFinite(Exception):
    """A loss or gradient was NaN or infinite, and its optimizer did not move."""

    def __init__(self, phase: str, values: dict[str, float]) -> None:
        super().__init__(phase)
        self.phase, self.values = phase, values


def update(model: Model, config: RunConfig, state: TrainState, batch: Batch) -> dict[str, float]:
    """One update of every optimizer, in the order of `model.phases`; the logged scalars of all phases.

    Raises NotFinite, with the weights as they were before the phase in which it happened.
    """
    if not model.training:
        model.train()
    device.seed(config.seed, "step", state.step)
    hyper = model.hyper(state.step)
    logged: dict[str, float] = {}
    for phase in model.phases:
        optimizer, optim = state.optimizers[phase]
        for group in optimizer.param_groups:
            group["lr"] = schedules.at(optim.lr, state.step)
            group["weight_decay"] = schedules.at(optim.weight_decay, state.step)
        model.zero_grad(set_to_none=True)  # of all parameters: a phase may reach through another phase's network
        terms = model.loss(batch, hyper, phase)
        torch.autograd.backward(terms["loss"])
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = state.norm([p.grad for p in parameters if p.grad is not None])
        values = {name: float(value.detach()) for name, value in {**terms, "grad_norm": norm}.items()}
        # Before the optimizer moves anything: what is kept and saved is always finite.
        if not all(map(math.isfinite, values.values())):
            raise NotFinite(phase, values)
        if optim.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, schedules.at(optim.grad_clip, state.step), norm)
        optimizer.step()
        prefix = "" if phase == model.phases[0] else f"{phase}."
        logged.update({f"{prefix}{name}": value for name, value in values.items()})
    return logged


def scheduled(model: Model, config: RunConfig, step: int) -> dict[str, float]:
    """The values, at `step`, of the hyper-parameters that are schedules, and the learning rate."""
    now = model.hyper(step)
    return {**{name: now[name] for name in schedules.moving(config.model)}, "lr": schedules.at(config.optim.lr, step)}


def evaluate(model: Model, split: Split, config: RunConfig, step: int, stop: Stop) -> dict[str, Any] | None:
    """The training objective, in evaluation mode, averaged over the held-out images; `kl_j` per latent.

    The noise is the same at every evaluation of a run. None if a signal asked to stop on the way.
    """
    model.eval()
    hyper = model.hyper(step)
    sums: dict[str, float] = {}
    kl_D: Tensor | None = None
    seen = 0
    with torch.no_grad():  # not inference mode: a loss may take gradients of its own inside
        for i, batch in enumerate(split.batches(max(256, config.train.batch_size))):
            if stop.signal is not None:
                return None
            device.seed(config.seed, "evaluate", i)
            size = min(len(batch.x_BCHW), config.train.eval_images - seen)
            labels = None if batch.labels_BK is None else batch.labels_BK[:size].to(model.device)
            part = Batch(batch.x_BCHW[:size].to(model.device), batch.index_B[:size], labels)
            for phase in model.phases:
                prefix = "" if phase == model.phases[0] else f"{phase}."
                for name, value in model.loss(part, hyper, phase).items():
                    sums[prefix + name] = sums.get(prefix + name, 0.0) + float(value) * size
            kl_BD = model.posterior(part.x_BCHW).kl_BD
            if kl_BD is not None:
                total = kl_BD.double().sum(dim=0).cpu()
                kl_D = total if kl_D is None else kl_D + total
            seen += size
            if seen >= config.train.eval_images:
                break
    record: dict[str, Any] = {name: total / seen for name, total in sums.items()}
    record = {name: value if math.isfinite(value) else None for name, value in record.items()}
    if kl_D is not None:
        record["kl_j"] = [round(v, 6) if math.isfinite(v) else None for v in (kl_D / seen).tolist()]
    return {**record, "images": seen}


def probe(model: Model, config: RunConfig, stream: Data, steps: int = 20, seconds: float = 10.0) -> tuple[float, int]:
    """Seconds of a step (the median, after two to warm up) and peak bytes of memory, from some that are forgotten.

    Memory is that of the process on a CPU and that of the device's allocator on CUDA; 0 where it cannot be told.
    """
    state, times, started = TrainState.fresh(model, config), [], time.monotonic()
    for step in range(steps + 2):
        start = time.monotonic()
        batch = stream.batch(step)
        labels_BK = None if batch.labels_BK is None else batch.labels_BK.to(model.device)
        try:
            update(model, config, state, Batch(batch.x_BCHW.to(model.device), batch.index_B, labels_BK))
        except NotFinite:
            break  # it takes as long
        finally:
            times.append(time.monotonic() - start)
        if time.monotonic() - started > seconds:
            break
    if model.device.type == "cuda":
        return statistics.median(times[2:] or times), torch.cuda.max_memory_allocated(model.device)
    try:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except (OSError, ValueError):
        peak = 0
    return statistics.median(times[2:] or times), peak * (1 if sys.platform == "darwin" else 1024)


def check_first_batch(batch: Batch) -> None:
    """Refuse numbers no objective here can use, before a thousand steps are spent on them."""
    low, high = float(batch.x_BCHW.min()), float(batch.x_BCHW.max())
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0.0 and high <= 1.0):
        bad = (~((batch.x_BCHW >= 0) & (batch.x_BCHW <= 1))).flatten(1).any(dim=1).nonzero()[0, 0]
        raise InputError(
            f"image {int(batch.index_B[bad])} holds values outside [0, 1] (from {low:g} to {high:g} in its batch)",
            "scale the images to [0, 1]",
        )


def diverged(
    run: RunDir, model: Model, state: TrainState, batch: Batch, phase: str, values: Mapping[str, float]
) -> NoReturn:
    """Write diverged.json and raise. The optimizer has not moved, so the weights are those of the last finite step."""
    with torch.inference_mode():
        logvar = model.posterior(batch.x_BCHW).logvar_BD
    largest = None if logvar is None else float(logvar.abs().max())
    facts = {
        "step": state.step,
        "phase": phase,
        "terms": {k: v if math.isfinite(v) else str(v) for k, v in values.items()},
        "batch_indices": batch.index_B.tolist(),
        "max_abs_logvar": largest if largest is not None and math.isfinite(largest) else str(largest),
    }
    run.write("diverged.json", json.dumps(facts, indent=1))
    bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
    raise Diverged(
        f"training diverged at step {state.step:,}: {bad} not finite; details in {run.path / 'diverged.json'}"
    )


def remedy(run: RunDir) -> str:
    """What to try after a divergence, and what there is to go on from."""
    last = "there is no checkpoint to go on from"
    if (run.checkpoints / "latest").exists():
        last = f"to go on from the last finite weights with other settings, vae train --init-from {run.path}"
    return f"lower optim.lr, or set optim.grad_clip; {last}"


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
