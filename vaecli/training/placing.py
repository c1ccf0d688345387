"""A model and its data on the device, in the layers and the precision that `train` asks for."""

import torch

from vaecli import device, output
from vaecli.config import RunConfig
from vaecli.data.base import Dataset, Stream, free_memory
from vaecli.errors import MachineError
from vaecli.models.base import Model
from vaecli.speed import fast, graph
from vaecli.training.state import TrainState


def ready(model: Model, config: RunConfig, where: torch.device) -> Model:
    """The model on its device, its layers and precision as `train` asks; before an optimizer sees the parameters, whose
    memory layout the fast layers change.
    """
    if config.train.precision == "bf16" and not fast.supports_bf16(where):
        raise MachineError(
            f"train.precision is bf16, but {device.describe(where)} has no bfloat16 arithmetic",
            "leave train.precision at fp32",
        )
    if not config.train.deterministic:
        if where.type == "cuda":
            device.quickest()
        else:
            output.notice(f"train.deterministic=false is of no effect on {where.type}")
    model.precision = config.train.precision
    model.to(where)
    if config.train.fast and (applied := fast.accelerate(model)):
        output.notice("fast       " + ", ".join(applied))
    return model


def fits(dataset: Dataset, where: torch.device) -> bool:
    """Whether the images take less than half of what is free on a CUDA device."""
    free = free_memory(where)
    return free is None or dataset.images.nbytes < free / 2


def to_device(dataset: Dataset, where: torch.device) -> Dataset:
    """The data set in the device's memory, where it takes no more than half of what is free there."""
    if where.type == "cuda" and fits(dataset, where):
        return dataset.to(where)
    if where.type == "cuda":
        output.notice("the images stay in host memory: they are more than half of what is free on the device")
    return dataset


def recorded(model: Model, config: RunConfig, state: TrainState, stream: Stream) -> graph.StaticSteps | None:
    """The steps as a CUDA graph, where there is a GPU and nothing speaks against it."""
    if model.device.type != "cuda" or not state.players or not config.train.fast:
        return None
    problem = graph.obstacle(model, config)
    if stream.dataset.images.device.type != "cuda":
        problem = "the images are not on the device"
    if problem is not None:
        output.notice(f"steps are launched one by one: {problem}")
        return None
    output.notice("fast       steps recorded as a CUDA graph")
    ((player, optimizer),) = state.players.values()
    return graph.StaticSteps(model, config, stream, player, optimizer)
