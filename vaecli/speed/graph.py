"""Training steps without a word between host and device: the whole step as one CUDA graph, replayed.

A small model's step is some fifty kernels that take less time than their launches. Here everything that changes from
step to step is a tensor on the device: the rows of the batch, scheduled numbers, learning rates (a window of steps is
uploaded at once), the sums that are logged, and whether all was finite. So one step can be recorded and replayed, and
the host reads the device only at boundaries. `StaticSteps` computes what `update` computes, in the same order,
from the same noise; unrecorded it runs on any device, which is how it is tested where there is no GPU.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vaecli import device
from vaecli.batch import Batch
from vaecli.config import RunConfig
from vaecli.data.base import Stream
from vaecli.models.base import Model, Player, total
from vaecli.settings import schedules
from vaecli.settings.optim import Adagrad, Adam, AdamW

WINDOW = 1000  # steps whose rows and schedules are uploaded at once; 0.5 MB for batches of 64
AHEAD = 100  # steps launched before the host looks at signals, or at the other seeds


def obstacle(model: Model, config: RunConfig) -> str | None:
    """Why the steps of this run cannot be recorded, or None as far as can be told beforehand."""
    players = model.players(config.optim)
    if len(players) > 1 or players[0].updates > 1 or players[0].batches > 1 or isinstance(config.train.steps, dict):
        return f"{config.model.name} has several players, updates or stages"
    optim = players[0].optim
    if isinstance(optim, Adagrad):
        if not _constant(optim.lr) or optim.lr_decay > 0 or optim.weight_decay != 0:
            return "adagrad with weight decay or a learning rate that changes cannot be recorded"
    elif not isinstance(optim, (Adam, AdamW)):
        return f"{optim.name} cannot be recorded"
    if not _constant(optim.weight_decay) or not (optim.grad_clip is None or _constant(optim.grad_clip)):
        return "a schedule on weight_decay or grad_clip cannot be recorded"
    return None


def _constant(value: schedules.Scalar) -> bool:
    return isinstance(value, (int, float))


class Noise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within: random operations draw from one generator of our own, so that several models can be recorded and replayed
    side by side. The numbers are those of torch's global generator seeded alike.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        aten = torch.ops.aten
        like = {aten.randn_like.default: "normal_", aten.rand_like.default: "uniform_"}
        fresh = {aten.randn.default: "normal_", aten.rand.default: "uniform_"}
        if func in like:
            return getattr(torch.empty_like(args[0], **kwargs), like[func])(generator=self.generator)
        if func in fresh:
            return getattr(torch.empty(*args, **kwargs), fresh[func])(generator=self.generator)
        if any(argument.name == "generator" for argument in func._schema.arguments):
            kwargs = {**kwargs, "generator": self.generator}
        elif torch.Tag.nondeterministic_seeded in func.tags:
            raise NotImplementedError(f"{func} takes no generator")
        return func(*args, **kwargs)


class CannotRecord(RuntimeError):
    """Something in the step of this model cannot be part of a CUDA graph; the message says what."""


class StaticSteps:
    """A run's steps from one set of tensors that stay where they are.

    On CUDA the first `launch` records the step; before it some steps must have been made by `update`, so that
    libraries have chosen their kernels and optimizers made their state.
    """

    def __init__(
        self, model: Model, config: RunConfig, stream: Stream, player: Player, optimizer: torch.optim.Optimizer
    ) -> None:
        self.model, self.config, self.stream = model, config, stream
        self.player, self.optimizer = player, optimizer
        where = model.device
        self.moving = schedules.moving(config.model)  # and what a model's own `hyper` turns out to move, see _upload
        self.constant = model.hyper(0)
        self.generator = torch.Generator(where)
        self.rows = torch.zeros(WINDOW, config.train.batch_size, dtype=torch.int64, device=where)
        self.numbers = torch.zeros(WINDOW, len(self.moving) + 1, dtype=torch.float32, device=where)
        self.position = torch.zeros(1, dtype=torch.int64, device=where)
        self.alive = torch.ones((), dtype=torch.bool, device=where)  # until something is not finite
        self.done = torch.zeros((), dtype=torch.int64, device=where)  # steps made while alive
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=where) for name in self._names()}
        self.fixed: dict[str, float] = {}  # what the loss reports as plain numbers: the weights that do not move
        self.lr = torch.zeros((), device=where)
        self._uploaded = (0, 0)  # the steps that the tables hold: from, until
        self.graph: Any = None
        self._side: Any = torch.cuda.Stream(where) if where.type == "cuda" else None  # type: ignore[no-untyped-call]

    def _names(self) -> list[str]:
        """What the loss reports as tensors, found out in evaluation mode, where nothing changes."""
        batch = self.stream.read(self.stream.indices(0)[:2])
        self.model.eval()
        with torch.no_grad():
            logged = total(self.model.loss(batch, self._hyper(self.numbers[0]), self.player.name))[1]
        return [*(name for name, value in logged.items() if isinstance(value, Tensor)), "grad_norm"]

    def _hyper(self, numbers: Tensor) -> dict[str, Any]:
        """The hyper-parameters of a step whose row of the table this is."""
        return {**self.constant, **{name: numbers[i] for i, name in enumerate(self.moving)}}

    # ---- one step

    def compute(self) -> None:
        """One step from the tables' current row; nothing is read by the host."""
        row_B = self.rows.index_select(0, self.position).squeeze(0)
        numbers = self.numbers.index_select(0, self.position).squeeze(0)
        batch: Batch = self.stream.read(row_B)
        self.lr.copy_(numbers[-1])
        buffers = [b for b in self.model.buffers() if b.numel() > 0]
        kept = [b.clone() for b in buffers]  # running statistics move in the forward pass
        self.model.zero_grad(set_to_none=True)
        loss, logged = total(self.model.loss(batch, self._hyper(numbers), self.player.name))
        torch.autograd.backward(loss)
        optimizer, optim = self.optimizer, self.player.optim
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        values = {**logged, "grad_norm": norm}
        tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
        finite = torch.stack([v.float() for v in tensors.values()]).isfinite().all()
        self.alive.logical_and_(finite)
        if optim.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, schedules.at(optim.grad_clip, 0), norm)
        self._move(optimizer, parameters)
        for buffer, old in zip(buffers, kept, strict=True):
            buffer.copy_(torch.where(self.alive, buffer, old))
        for name, tensor in tensors.items():
            self.sums[name].add_(torch.where(self.alive, tensor.double(), 0.0))
        self.fixed = {name: float(value) for name, value in values.items() if not isinstance(value, Tensor)}
        self.done.add_(self.alive)
        self.position.add_(1)

    def _move(self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> None:
        """The optimizer's step, or none once something was not finite: the weights stay those of the last good step."""
        if isinstance(optimizer, torch.optim.Adagrad):  # a gradient of zero moves neither its weights nor its sums
            for p in parameters:
                assert p.grad is not None
                p.grad.copy_(torch.where(self.alive, p.grad, 0.0))
            optimizer.step()
        else:  # fused ones look at this attribute, through which gradient scaling tells them to do nothing
            optimizer.found_inf = (~self.alive).float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.found_inf = None  # type: ignore[attr-defined]

    # ---- many steps

    def launch(self, step: int, until: int) -> int:
        """Launch the steps from `step`, at most to `until`; returns the step reached. The host waits for nothing.

        Raises CannotRecord, with nothing launched.
        """
        until = min(until, step + AHEAD)
        if not self._uploaded[0] <= step < self._uploaded[1]:
            self._upload(step)
        until = min(until, self._uploaded[1])
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.player.optim.lr if isinstance(self.optimizer, torch.optim.Adagrad) else self.lr
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream())
            if self.graph is None:
                self._record()
        with torch.cuda.stream(self._side):
            for now in range(step, until):
                self.generator.manual_seed(device.derive(self.config.seed, "step", now))
                if self.graph is not None:
                    self.graph.replay()
                else:
                    with Noise(self.generator):
                        self.compute()
        return until

    def forget(self) -> None:
        """Which images the coming steps read has changed: what was uploaded of them is not to be used."""
        self._uploaded = (0, 0)

    def _upload(self, step: int) -> None:
        steps = range(step, min(step + WINDOW, self.config.train.total_steps))
        own = type(self.model).hyper is not Model.hyper
        every = [self.model.hyper(now) if self.moving or own else self.constant for now in steps]
        found = [
            n for n, number in self.constant.items() if n not in self.moving and any(h[n] != number for h in every)
        ]
        if found:  # a schedule that the model computes by itself: it must not stay at the number that was recorded
            self.moving += found
            self.numbers = self.numbers.new_zeros(WINDOW, len(self.moving) + 1)
            self.graph = None
            self.sums.update(
                {n: torch.zeros_like(self.done, dtype=torch.float64) for n in self._names() if n not in self.sums}
            )
        numbers = [
            [h[n] for n in self.moving] + [schedules.at(self.player.optim.lr, s)]
            for h, s in zip(every, steps, strict=True)
        ]
        with torch.cuda.stream(self._side):
            self.rows[: len(steps)].copy_(torch.stack([self.stream.indices(now) for now in steps]))
            self.numbers[: len(steps)].copy_(torch.tensor(numbers, dtype=torch.float32))
            self.position.zero_()
        self._uploaded = (steps.start, steps.stop)

    def _record(self) -> None:
        """Record the step; it is not carried out by that."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        self.model.zero_grad(set_to_none=True)
        mode = torch.cuda.get_sync_debug_mode()
        try:
            # A host that waits for the device is told so before CUDA is, which leaves the recording in good order.
            with warnings.catch_warnings():  # that this mode does not see everything
                warnings.simplefilter("ignore", UserWarning)
                torch.cuda.set_sync_debug_mode("error")
            with torch.cuda.graph(graph, stream=self._side), Noise(self.generator):
                self.compute()
        except Exception as error:  # models are anyone's, and plain steps will say more
            raise CannotRecord(str(error).partition("\n")[0][:200]) from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            self._count_on_host(-1)  # the recording itself went through Adagrad's count
            self.optimizer.found_inf = None  # type: ignore[attr-defined]
        self.graph = graph

    def _count_on_host(self, steps: int) -> None:
        """Adagrad counts its steps on the host, which takes no part in a replay."""
        if isinstance(self.optimizer, torch.optim.Adagrad):
            for entry in self.optimizer.state.values():
                entry["step"] += steps

    def collect(self) -> tuple[dict[str, float], int, bool]:
        """Sums of the logged scalars since the last call, the good steps among them, and whether all was finite.

        The one place where the host waits for the device.
        """
        if self._side is not None:
            self._side.synchronize()
        done, alive = int(self.done), bool(self.alive)
        sums = {name: float(found) for name, found in self.sums.items()}
        sums |= {name: value * done for name, value in self.fixed.items()}
        if self.graph is not None:
            self._count_on_host(done)
        for found in self.sums.values():
            found.zero_()
        self.done.zero_()
        self.alive.fill_(True)
        return sums, done, alive
