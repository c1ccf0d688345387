"""What changes while training, apart from the weights: optimizers, the step, sums of what is logged; and its stages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vaecli.batch import Batch
from vaecli.config import RunConfig
from vaecli.errors import ConfigError
from vaecli.models.base import Hyper, Model, Player
from vaecli.registry import nearest
from vaecli.settings import schedules
from vaecli.settings.optim import OptimConfig
from vaecli.speed import optimizers
from vaecli.training import checkpoint


class Together(Protocol):
    """What a step asks of several processes: see `together.Group`."""

    def loss(
        self, model: Model, batch: Batch, hyper: Hyper, player: str
    ) -> tuple[Tensor, dict[str, Tensor | float]]: ...

    def means(self, numbers: Mapping[str, float]) -> dict[str, float]: ...


@dataclass(frozen=True)
class Stage:
    """The steps from `start` to `end` (global), in which the players of that name take part; all where it is None."""

    name: str | None
    start: int
    end: int

    def plays(self, player: Player) -> bool:
        return self.name is None or player.stage == self.name


def stages(model: Model, config: RunConfig) -> list[Stage]:
    """The stages of a run. ConfigError where `train.steps` names one that there is not, or leaves one out."""
    steps = config.train.steps
    if not isinstance(steps, dict):
        return [Stage(None, 0, steps if model.players(config.optim) else 0)]
    for name in steps:
        if name not in model.stages:
            raise ConfigError(
                f"train.steps: {config.model.name} has no stage {name[:80]!r}{nearest(name, model.stages)}"
            )
    if missing := [name for name in model.stages if name not in steps]:
        raise ConfigError(f"train.steps: how many steps has the stage {missing[0]!r}?", f"give {missing[0]}: N")
    found, start = [], 0
    for name in model.stages:
        found.append(Stage(name, start, start + steps[name]))
        start += steps[name]
    return found


def stage_at(all_stages: list[Stage], step: int) -> Stage:
    """The stage in which `step` is made; after the last step the last one."""
    return next((stage for stage in all_stages if step < stage.end), all_stages[-1])


def make_optimizer(
    parameters: list[torch.nn.Parameter], config: OptimConfig, undecayed: Sequence[torch.nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The torch optimizer of a settings section, its scheduled numbers at step 0. Parameters that no weight decay is to
    reach are a group of their own, with `decays` False, where there is a decay."""
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
    groups: list[Any] = parameters
    if undecayed and schedules.highest(config.weight_decay) > 0:
        spared = {id(p) for p in undecayed}
        groups = [
            {"params": [p for p in parameters if id(p) not in spared], "decays": True},
            {"params": [p for p in parameters if id(p) in spared], "decays": False, "weight_decay": 0.0},
        ]
    optimizer = optimizers.without_compiler(kinds[config.name])(
        groups, **common, **settings, **extra, **({"fused": True} if fused else {})
    )
    if extra:  # the first steps are made without a graph, on purpose: no warning about it
        optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


@dataclass
class TrainState:
    """All that changes while training, apart from the weights."""

    players: dict[str, tuple[Player, torch.optim.Optimizer]]
    stages: list[Stage]
    step: int = 0
    seconds: float = 0.0  # time spent in training, over all sittings
    window: dict[str, float] = field(default_factory=dict)  # sums of logged scalars since the last record
    window_steps: int = 0
    norm: Callable[[list[Tensor]], Tensor] = torch.nn.utils.get_total_norm  # of the gradients
    untrained: float | None = None  # the loss of the first step, or of that from which it is of everything
    settled: int = 0  # which step that is
    comparable: bool = True  # whether losses of several steps are
    loss: float | None = None  # of the step before, or a mean over those since
    sound_step: int | None = None  # the newest that was saved while `sound`
    group: "Together | None" = None  # the processes that share the batch, where there are several
    best: tuple[float, int] | None = None  # the least held-out loss of a step that was saved, and the step

    @classmethod
    def fresh(cls, model: Model, config: RunConfig) -> "TrainState":
        players = model.players(config.optim)
        state = cls(
            {p.name: (p, make_optimizer(list(p.parameters), p.optim, p.undecayed)) for p in players},
            stages(model, config),
        )
        state.settled, state.comparable = model.settled, model.comparable
        if config.train.fast and model.device.type == "cpu":
            state.norm = optimizers.total_norm
            for _, optimizer in state.players.values():
                optimizers.quicken(optimizer)
        return state

    @property
    def sound(self) -> bool:
        """Whether the loss is not far above that of the untrained model: numbers that are finite need not be sound."""
        if self.loss is None or self.untrained is None:
            return True
        return self.loss <= self.untrained + abs(self.untrained)

    @property
    def stage(self) -> Stage:
        return stage_at(self.stages, self.step)

    @property
    def last(self) -> int:
        """The step at which training is over."""
        return self.stages[-1].end

    def playing(self) -> list[tuple[Player, torch.optim.Optimizer]]:
        """Who takes part in the current step, in order."""
        stage = self.stage
        return [(player, optimizer) for player, optimizer in self.players.values() if stage.plays(player)]

    def count(self, values: Mapping[str, float], steps: int = 1) -> None:
        """Add to the window what `steps` steps logged."""
        for name, value in values.items():
            self.window[name] = self.window.get(name, 0.0) + value
        if "loss" in values and len(self.stages) == 1:
            self.loss = values["loss"] / steps
            if self.comparable and self.untrained is None and self.step <= self.settled < self.step + steps:
                self.untrained = self.loss
        self.step += steps
        self.window_steps += steps

    def take_means(self) -> dict[str, float]:
        """Means over the window, which is emptied; a weight, the same for all steps or nearly so, is a mean too."""
        means = {name: total / self.window_steps for name, total in self.window.items()}
        self.window, self.window_steps = {}, 0
        return means

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' tensors under flat names `player/parameter/key`."""
        return {
            f"{name}/{index}/{key}": value
            for name, (_, optimizer) in self.players.items()
            for index, entry in optimizer.state_dict()["state"].items()
            for key, value in entry.items()
            if isinstance(value, Tensor)
        }

    def values(self) -> dict[str, Any]:
        kept = {"untrained": self.untrained, "sound_step": self.sound_step, "best": self.best}
        return {"seconds": self.seconds, "window": self.window, "window_steps": self.window_steps, **kept}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `tensors` and `values` gave. CheckpointError if it does not fit the optimizers.

        Checked to the shape: a fused optimizer trusts its state and would read past the end of a smaller tensor.
        """
        try:
            self.step, self.seconds = int(values["step"]), float(values["seconds"])
            self.window = {str(k): float(v) for k, v in values["window"].items()}
            self.window_steps = int(values["window_steps"])
            untrained, sound_step, best = (values.get(key) for key in ("untrained", "sound_step", "best"))
            self.untrained = None if untrained is None else float(untrained)
            self.sound_step = None if sound_step is None else int(sound_step)
            self.best = None if best is None else (float(best[0]), int(best[1]))
            for name, (player, optimizer) in self.players.items():
                state: dict[int, dict[str, Tensor]] = {}
                for flat, tensor in tensors.items():
                    owner, index, key = flat.split("/")
                    if owner == name:
                        state.setdefault(int(index), {})[key] = tensor
                begun = any(stage.plays(player) and stage.start < self.step for stage in self.stages)
                check_optimizer_state(state, optimizer, self.step if begun else 0)
                match_layout(state, optimizer)
                optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
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
