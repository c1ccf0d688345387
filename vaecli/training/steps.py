"""One training step: every player's updates in turn, and nothing moved where a number is not finite."""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from vaecli import device
from vaecli.batch import Batch
from vaecli.config import RunConfig
from vaecli.errors import InputError
from vaecli.models.base import Model, total
from vaecli.settings import schedules
from vaecli.training.state import TrainState


class Data(Protocol):
    """What a step asks of a data set: the batch of a step, and by `stream` further independent ones."""

    order: Any

    def batch(self, step: int, stream: int = 0) -> Batch: ...


class NotFinite(Exception):
    """A loss or gradient was NaN or infinite, and everything is as it was before the step."""

    def __init__(self, player: str, values: dict[str, float]) -> None:
        super().__init__(player)
        self.player, self.values = player, values


class Before:
    """Weights, buffers and optimizers as they were before a step, to be put back where it fails.

    Of a model with one update a step only the buffers are kept (running statistics move in the forward pass): its
    weights move last, once all is known to be finite.
    """

    def __init__(self, model: Model, state: TrainState) -> None:
        updates = [(optimizer, n) for player, optimizer in state.playing() for n in range(player.updates)]
        self._live = [b for b in model.buffers() if b.numel() > 0]
        self._optimizers: list[tuple[torch.optim.Optimizer, dict[Any, dict[str, Any]]]] = []
        for optimizer, n in updates[:-1]:  # the last update moves only once all is known to be finite
            if n == 0:
                self._live += [p for group in optimizer.param_groups for p in group["params"]]
                kept = {
                    p: {k: v.clone() if isinstance(v, Tensor) else v for k, v in entry.items()}
                    for p, entry in optimizer.state.items()
                }
                self._optimizers.append((optimizer, kept))
        self._kept = [t.detach().clone() for t in self._live]

    def restore(self) -> None:
        with torch.no_grad():
            for live, kept in zip(self._live, self._kept, strict=True):
                live.copy_(kept)
        for optimizer, kept_state in self._optimizers:
            for parameter in [p for p in optimizer.state if p not in kept_state]:
                del optimizer.state[parameter]  # its first step is undone
            for parameter, entry in kept_state.items():
                for key, value in entry.items():
                    live = optimizer.state[parameter][key]
                    if isinstance(live, Tensor):
                        live.copy_(value)
                    else:
                        optimizer.state[parameter][key] = value


def update(
    model: Model, config: RunConfig, state: TrainState, batch: Batch, data: Data | None = None
) -> dict[str, float]:
    """The updates of every player of the stage, in order; the logged scalars of all of them, with the player's name
    before those of all but the first.

    `batch` is the step's own, on the model's device; `data` is asked for more where a player wants them. Raises
    NotFinite, with weights, buffers and optimizers as they were before the step.
    """
    if not model.training:
        model.train()
    device.seed(config.seed, "step", state.step)
    hyper = model.hyper(state.step - state.stage.start)
    logged: dict[str, float] = {}
    before = Before(model, state)

    @cache
    def read(stream: int) -> Batch:
        if stream == 0:
            return batch
        assert data is not None, "a player asks for several batches"
        return data.batch(state.step, stream).to(model.device)

    playing = state.playing()
    for player, optimizer in playing:
        optim = player.optim
        for group in optimizer.param_groups:
            group["lr"] = schedules.at(optim.lr, state.step - state.stage.start)
            if group.get("decays", True):
                group["weight_decay"] = schedules.at(optim.weight_decay, state.step - state.stage.start)
        for n in range(player.updates):
            streams = range(n * player.batches, (n + 1) * player.batches)
            own = _joined([read(stream) for stream in streams])
            model.zero_grad(set_to_none=True)  # of all parameters: a loss may reach through another player's network
            if state.group is None:
                loss, values = total(model.loss(own, hyper, player.name))
            else:
                loss, values = state.group.loss(model, own, hyper, player.name)
            torch.autograd.backward(loss)
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = state.norm([p.grad for p in parameters if p.grad is not None])
            numbers = {name: _number(value) for name, value in {**values, "grad_norm": norm}.items()}
            if state.group is not None:
                numbers = state.group.means(numbers)
            # Before the optimizer moves anything: what is kept and saved is always finite.
            if not all(map(math.isfinite, numbers.values())):
                before.restore()
                raise NotFinite(player.name, numbers)
            if optim.grad_clip is not None:
                clip = schedules.at(optim.grad_clip, state.step - state.stage.start)
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            optimizer.step()
        prefix = "" if player is playing[0][0] else f"{player.name}."
        logged.update({f"{prefix}{name}": value for name, value in numbers.items()})
    return logged


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _joined(batches: list[Batch]) -> Batch:
    first, *others = batches
    if not others:
        return first
    return Batch(first.x_BCHW, first.index_B, first.labels_BK, first.truth_BK, tuple(others))


def probe(
    model: Model, config: RunConfig, data: Data, steps: int = 20, seconds: float = 10.0, first: int = 0
) -> tuple[float, int]:
    """Seconds of a step (the median, after two to warm up) and peak bytes of memory, from some that are forgotten; they
    are of the stage of step `first`.

    Memory is that of the process on a CPU and that of the device's allocator on CUDA; 0 where it cannot be told.
    """
    state, times, started = TrainState.fresh(model, config), [], time.monotonic()
    state.step = first
    for step in range(steps + 2):
        start = time.monotonic()
        try:
            update(model, config, state, data.batch(step).to(model.device), data)
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


Concern = Callable[[dict[str, Any], int, int], str | None]  # (evaluation, step, last step) -> a warning
