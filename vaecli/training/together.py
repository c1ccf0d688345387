"""One model over several processes, as `torchrun` starts them: by DistributedDataParallel, equal to one process.

The batch of a step is the configured one, its images those of one process: each process reads its part of them. Noise
is drawn for the whole batch from the seed of the step, and each takes the rows of its part. So loss and gradients are
those of one process within rounding, for objectives that are means over images; others are refused, with the reason.
The processes decide together when to stop and save; the first alone writes and speaks.

Shapes: B images of a batch, b = B / processes those of one process.
"""

import datetime
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vaecli import device as devices
from vaecli.batch import Batch
from vaecli.config import RunConfig
from vaecli.data.base import Stream
from vaecli.errors import ConfigError, MachineError
from vaecli.models.base import Hyper, Model, total
from vaecli.settings import schedules
from vaecli.training.state import TrainState
from vaecli.training.stop import Stop

Value = TypeVar("Value")
CLOSE = 1e-4  # relative difference of losses that rounding makes


def started() -> bool:
    """Whether this process is one of several that `torchrun` has started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(name: str) -> str:
    """The device of this process: of several GPUs that of its number on this machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name


class Group:
    """The processes of one training."""

    def __init__(self) -> None:
        """Meet the others. MachineError where they do not come."""
        try:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
        except (RuntimeError, ValueError) as error:
            raise MachineError(
                f"the processes do not find each other: {_line(error)}", "start them by torchrun"
            ) from None
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._parallel: nn.Module | None = None
        self._unused = True  # whether the loss may leave parameters out

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """Of the rows of a batch of n images those of this process."""
        b = n // self.size
        return slice(self.rank * b, (self.rank + 1) * b)

    # ---- what they tell each other

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest of what each process says, number by number."""
        found = torch.tensor(list(numbers), dtype=torch.int64)
        self._all(lambda: dist.all_reduce(found, dist.ReduceOp.MAX))
        return [int(number) for number in found]

    def means(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The mean over the processes of each number; all have the same names."""
        found = torch.tensor(list(numbers.values()), dtype=torch.float64)
        self._all(lambda: dist.all_reduce(found))
        return dict(zip(numbers, (found / self.size).tolist(), strict=True))

    def one_after_the_other(self, work: Callable[[], Value]) -> Value:
        """Done by the first process before the others do it."""
        if not self.first:
            self.largest([0])
        value = work()
        if self.first:
            self.largest([0])
        return value

    def _all(self, tell: Callable[[], Any]) -> None:
        try:
            tell()
        except RuntimeError as error:
            raise MachineError(f"another process of this training has ended ({_line(error)})") from None

    def leave(self) -> None:
        dist.destroy_process_group()

    # ---- the objective

    def loss(self, model: Model, batch: Batch, hyper: Hyper, player: str) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of this process' part of a batch; going back from it averages the gradients over all."""
        if self._parallel is None:
            parallel: Any = nn.parallel.DistributedDataParallel
            known = inspect.signature(parallel).parameters  # there are no buffers that move: see `check`
            still = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
            self._parallel = parallel(_Objective(model), find_unused_parameters=self._unused, **still)
        with Rows(self, len(batch.x_BCHW)):
            found: tuple[Tensor, dict[str, Tensor | float]] = self._parallel(batch, hyper, player)
        return found

    def check(self, model: Model, config: RunConfig, stream: Stream, state: TrainState) -> None:
        """ConfigError, with the reason, where the parts of a batch do not make up the whole; tried on the next one."""
        name, size = config.model.name, config.train.batch_size
        if size % self.size:
            raise ConfigError(
                f"train.batch_size is {size}, which {self.size} processes cannot share evenly",
                f"take a multiple of {self.size}",
            )
        reason = None
        if not state.players:
            reason = "it is fitted in closed form"
        elif schedules.highest(getattr(config.model, "free_bits", 0.0)) > 0:
            reason = "free bits are counted over a whole batch"
        elif model.batch_dependent:
            reason = "terms of its objective depend on which images share a batch"
        elif len(state.players) > 1:
            reason = "it has several players"
        elif type(model).due is not Model.due:
            reason = "it does work between steps"
        elif state.step < state.last:
            reason = self._differs(model, config, stream, state)
        if reason is not None:
            raise ConfigError(f"{name} is not trained by several processes: {reason}", "train it in one process")

    def _differs(self, model: Model, config: RunConfig, stream: Stream, state: TrainState) -> str | None:
        """Why the loss of the next batch is not the mean of those of its parts; None where it is."""
        hyper, ((player, _),) = model.hyper(state.step - state.stage.start), state.playing()
        buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
        whole = stream.batch(state.step).to(model.device)
        part = PartOf(stream, self).batch(state.step).to(model.device)
        model.train()
        with torch.no_grad():
            devices.seed(config.seed, "step", state.step)
            expected = float(total(model.loss(whole, hyper, player.name))[0])
            moved = [key for key, buffer in model.named_buffers() if not torch.equal(buffer, buffers[key])]
            for key, buffer in model.named_buffers():
                buffer.copy_(buffers[key])
        devices.seed(config.seed, "step", state.step)
        with Rows(self, len(part.x_BCHW)) as rows:
            loss = total(model.loss(part, hyper, player.name))[0]
        own, reached = float(loss.detach()), torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        self._unused = any(gradient is None for gradient in reached)
        with torch.no_grad():
            for key, buffer in model.named_buffers():
                buffer.copy_(buffers[key])
        found = self.means({"loss": own})["loss"]
        if moved:
            return f"it keeps numbers of its batches ({moved[0]})"
        if rows.foreign:
            return f"it draws numbers that are not divided among processes ({rows.foreign[0]})"
        if not abs(found - expected) <= CLOSE * max(1.0, abs(expected)):
            return f"the loss of a batch is {expected:.6g}, the mean over its parts {found:.6g}"
        return None


class _Objective(nn.Module):
    """A model's loss as a module, which DistributedDataParallel wants."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, hyper: Hyper, player: str) -> tuple[Tensor, dict[str, Tensor | float]]:
        return total(self.model.loss(batch, hyper, player))


class PartOf:
    """The training batches of a run, of each the images of this process."""

    def __init__(self, stream: Stream, group: Group) -> None:
        self._stream, self._group = stream, group

    @property
    def order(self) -> Any:
        return self._stream.order

    @order.setter
    def order(self, order: Any) -> None:
        self._stream.order = order

    def batch(self, step: int, stream: int = 0) -> Batch:
        """This process' part of the batch of a step."""
        index_B = self._stream.indices(step, stream)
        return self._stream.read(index_B[self._group.part(len(index_B))])


class Rows(TorchFunctionMode):
    """Within: noise for a batch is drawn for the whole of it, and the rows of this process are taken.

    Shapes of b, or b times k, rows belong to the batch, k for each image in turn, else those of b columns; what has
    neither is the same in all processes. `foreign` names what is drawn in other ways.
    """

    def __init__(self, group: Group, b: int) -> None:
        super().__init__()
        self.group, self.b = group, b
        self.foreign: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn, torch.rand):
            sizes = args if args else (kwargs.pop("size"),)
            shape = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
            return self._own(shape, lambda whole: func(whole, **kwargs))
        if func in (torch.randn_like, torch.rand_like):
            return self._own(tuple(args[0].shape), lambda whole: func(args[0].new_empty(whole), **kwargs))
        if func is torch.normal and isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            mean, std = args[:2]
            shape = tuple((mean + std).shape)
            drawn = self._own(shape, lambda whole: torch.randn(whole, dtype=mean.dtype, device=mean.device))
            return mean + std * drawn
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.exponential_):
            filled = self._own(tuple(args[0].shape), lambda whole: func(args[0].new_empty(whole), *args[1:], **kwargs))
            return args[0].copy_(filled)
        if func in _FOREIGN:
            self.foreign.append(func.__name__)
        return func(*args, **kwargs)

    def _own(self, shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        axis = next((i for i, n in enumerate(shape[:2]) if n and n % self.b == 0 and (i == 0 or n == self.b)), None)
        if axis is None:
            return draw(shape)
        whole = (*shape[:axis], shape[axis] * self.group.size, *shape[axis + 1 :])
        return draw(whole).narrow(axis, self.group.rank * shape[axis], shape[axis]).contiguous()


_FOREIGN = {
    torch.bernoulli, torch.multinomial, torch.poisson, torch.randperm, torch.randint, torch._sample_dirichlet,
    torch.nn.functional.dropout, torch.randint_like, Tensor.bernoulli_, Tensor.random_,
}  # fmt: skip


class StopTogether(Stop):
    """A signal or the time limit of any process is obeyed by all, after the same step; `agree` makes them known."""

    def __init__(self, max_seconds: float | None, group: Group) -> None:
        super().__init__(max_seconds)
        self._group = group
        self._number, self._asked, self._over = 0, 0, False

    @property
    def reason(self) -> str | None:
        if self.signal is not None:
            return "interrupted"
        return "time limit" if self._over else None

    def agree(self) -> None:
        told, over, self.saves = self._group.largest([self._number, int(super().reason == "time limit"), self._asked])
        self.signal, self._over = told or None, bool(over)

    def _first(self, number: int) -> None:
        self._number = number

    def _again(self, number: int) -> None:
        if self._group.first:  # the others may have been told by torchrun and by the terminal
            super()._again(number)

    def _save(self, number: int, _: Any) -> None:
        self._asked += 1


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
