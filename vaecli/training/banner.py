"""What a training says before it starts: the banner, the dry run, and what cannot work refused."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vaecli import config as configs
from vaecli import data, device, models, output, registry
from vaecli.batch import DataInfo
from vaecli.config import RunConfig
from vaecli.data.base import Dataset
from vaecli.errors import ConfigError, MachineError
from vaecli.models.base import Level, Model, Player
from vaecli.settings import schedules
from vaecli.training import state, steps, stored_density
from vaecli.training.placing import ready, to_device


def check_labels(config: RunConfig, info: DataInfo) -> None:
    """ConfigError where the model and the data do not agree on labels; before it is built, which may count them."""
    uses_labels: bool = registry.load("model", config.model.name).Model.uses_labels
    if config.data.labelled is not None and not uses_labels:
        raise ConfigError(f"data.labelled is set, but {config.model.name} uses no labels", "leave data.labelled out")
    if uses_labels and not info.factor_names:
        raise ConfigError(f"{config.model.name} needs labels, but {info.name} has none", "take data with labels")


def choose(config: RunConfig, info: DataInfo) -> RunConfig:
    """The configuration with what the model leaves to the data decided, saying what was chosen and why."""
    section, reasons = models.settled(config.model, info)
    for reason in reasons:
        output.notice(f"chosen     {reason}")
    return replace(config, model=section)


def check(model: Model, config: RunConfig, dataset: Dataset) -> None:
    """ConfigError where stages, the order of batches or a density do not fit the model and the data."""
    if config.density is not None:
        stored_density.check(config.density, model, len(dataset.split("train")))
    if model.players(config.optim):
        state.stages(model, config)
        model.order(dataset.training(config.seed), config.seed, config.train.batch_size)


def check_disk(parent: Path, model: Model, config: RunConfig) -> None:
    """Refuse to start where the checkpoints visibly cannot fit."""
    there = parent
    while not there.exists():
        there = there.parent
    free, needed = shutil.disk_usage(there).free, (config.train.keep + 2) * checkpoint_bytes(model)
    if free < needed:
        raise MachineError(
            f"{parent}: {free / 1e9:.2f} GB free, but the run's checkpoints may take {needed / 1e9:.2f} GB",
            "free some space, choose another --runs-dir, or set train.keep=1",
        )


def checkpoint_bytes(model: Model) -> int:
    weights: int = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return 3 * weights + 100_000  # the weights and, with Adam, two tensors a weight


def dry_run(config: RunConfig, where: torch.device, target: Path) -> dict[str, Any]:
    """Everything short of the work: resolve, look at the data, build the model, try some steps, and say what would
    happen and what it would take.
    """
    dataset = to_device(data.load(config.data), where)
    check_labels(config, dataset.info)
    config = choose(config, dataset.info)
    with device.without_values():
        model = models.build(config.model, dataset.info)
    check(model, config, dataset)
    check_disk(target.parent, model, config)
    parameters = sum(p.numel() for p in model.parameters())
    banner(model, config, dataset, where)
    size = checkpoint_bytes(model)
    all_stages = state.stages(model, config)
    all_steps = all_stages[-1].end
    facts = {
        "schema": 1,
        "run": str(target),
        "parameters": parameters,
        "steps": all_steps,
        "checkpoint_bytes": size,
        "device": str(where),
        "config": config.to_tree(),
    }
    if all_steps:
        model = ready(models.build(config.model, dataset.info), config, where)
        model.check_memory(config.train.batch_size)
        order = model.order(dataset.training(config.seed), config.seed, config.train.batch_size)
        stream, whole, memory = dataset.stream(config.seed, config.train.batch_size, order), 0.0, 0
        for stage in all_stages:
            seconds, memory = steps.probe(model, config, stream, first=stage.start)
            whole += seconds * (stage.end - stage.start)
        facts |= {"seconds": whole, "peak_bytes": memory}
        output.notice(
            f"probe      {config.train.batch_size * all_steps / whole:,.0f} images/s: {_hours(whole)} for "
            f"{all_steps:,} steps, without evaluations; memory {memory / 1e9:.2f} GB at the peak"
        )
    output.notice(f"dry run: no run was made; a checkpoint would take about {size / 1e6:.1f} MB")
    return facts


def _hours(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def banner(model: Model, config: RunConfig, dataset: Dataset, where: torch.device) -> None:
    info: DataInfo = dataset.info
    parameters = sum(p.numel() for p in model.parameters())
    train, held_out = len(dataset.split("train")), dataset.split("val")
    held = f"{len(held_out):,} held out" if held_out.name == "val" else "none held out"
    net = getattr(getattr(config.model, "net", None), "name", None)
    output.notice(
        f"model      {config.model.name}: {' + '.join(map(_level_text, model.levels))}, "
        f"{parameters:,} parameters" + (f", net {net}" if net else "")
    )
    output.notice(f"objective  {model.objective_text(model.hyper(0))}")
    for key, _ in configs.flat({"model": config.model.model_dump(), "optim": config.optim.model_dump()}):
        if key.endswith(".schedule"):
            output.notice(f"schedule   {key.removesuffix('.schedule')}: {_schedule_text(config, key)}")
    output.notice(
        f"data       {info.name}: {train:,} images {'x'.join(map(str, info.shape))} to train on, {held}; "
        f"{info.source.get('kind', 'as given')}{_range_text(info.source)}{_fit_text(info)}"
    )
    if config.density is not None:
        density = stored_density.check(config.density, model, train)
        codes = f"{min(train, stored_density.CODES):,} codes"
        output.notice(f"density    {density.text()}, fitted to {codes} when the training is over")
    players = model.players(config.optim)
    if not players:
        output.notice(f"training   fitted in closed form, seed {config.seed}, {device.describe(where)}")
    else:
        all_stages = state.stages(model, config)
        all_steps = all_stages[-1].end
        epochs = all_steps * config.train.batch_size / train
        alone = f"{_optim_text(players[0])}, " if len(players) == 1 else ""
        kernels = ", quickest kernels" if where.type == "cuda" and not config.train.deterministic else ""
        output.notice(
            f"training   {all_steps:,} steps of {config.train.batch_size} images ({epochs:.1f} epochs), "
            f"{alone}{config.train.precision}{kernels}, seed {config.seed}, {device.describe(where)}"
        )
        for player in players if len(players) > 1 else []:
            stage = next(stage for stage in all_stages if stage.plays(player))
            when = "" if stage.name is None else f", stage {stage.name} of {stage.end - stage.start:,} steps"
            output.notice(f"player     {player.name}: {_optim_text(player)}{when}")
    if getattr(getattr(config.model, "likelihood", None), "name", "") == "bernoulli" and not info.binary:
        output.notice(
            "note       the pixels are not all 0 or 1: the Bernoulli likelihood is then a cross-entropy, not a density"
        )


def _optim_text(player: Player) -> str:
    """`adam lr 0.001`, and how many updates a step where they are several."""
    updates = f", {player.updates} updates a step" if player.updates > 1 else ""
    return f"{player.optim.name} lr {schedules.at(player.optim.lr, 0):g}{updates}"


def _range_text(source: Mapping[str, Any]) -> str:
    """`; uint8 0 is black, 255 white`, of images whose range of values was looked for."""
    ranges = source.get("range")
    if not isinstance(ranges, dict) or not ranges:
        return ""
    return "; " + ", ".join(f"{kind} {low:g} is black, {high:g} white" for kind, (low, high) in ranges.items())


def _fit_text(info: DataInfo) -> str:
    """`; cropped to 64x64, up to 44% of an image cut off`, of images that had other proportions."""
    fit = info.source.get("fit")
    if not isinstance(fit, dict) or not fit["most"]:
        return ""
    how, most = fit["how"], fit["most"]
    done = {
        "crop": f"cropped to them, up to {most:.0%} of an image cut off",
        "pad": f"padded to them, up to {most:.0%} of an image black",
        "stretch": f"stretched to them, by up to {1 / (1 - most):.2f} in one direction",
    }
    return f"; of other proportions than {info.shape[1]}x{info.shape[2]}: {done[how]}"


def _level_text(level: Level) -> str:
    """`10 latents`, `codes 7x7 of 512`, `labels 10`, `noise 62`."""
    if level.kind == "codes":
        return f"codes {'x'.join(map(str, level.shape))} of {level.sizes[0]}"
    if level.kind == "labels":
        return f"labels {' x '.join(map(str, level.sizes))}"
    if not level.inferred:
        return f"noise {level.size}"
    named = "" if level.name == "z" else f" {level.name}"
    return f"{level.size} latents{named}"


def _schedule_text(config: RunConfig, key: str) -> str:
    """`linear, start 0, end 25, steps 100,000` for the schedule at a dotted key."""
    section: Any = config.to_tree()
    for part in key.split(".")[:-1]:
        section = section[part]
    return ", ".join(f"{name} {value}" if name != "schedule" else str(value) for name, value in section.items())
