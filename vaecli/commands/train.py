"""`vae train`: from a resolved configuration to a run directory with checkpoints."""

import contextlib
import dataclasses
import itertools
import re
import shutil
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from json import loads as parse_json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vaecli import (
    checkpoint,
    data,
    device,
    fast,
    graph,
    models,
    output,
    presets,
    registry,
    rundir,
    safe_files,
    schedules,
    trainer,
)
from vaecli import config as configs
from vaecli import tree as trees
from vaecli.batch import DataInfo
from vaecli.commands import _seeds
from vaecli.commands._meter import Meter
from vaecli.config import RunConfig
from vaecli.data.base import Dataset, SplitView, Stream
from vaecli.diagnosis import latent_statistics, limited, table_rows, verdict
from vaecli.errors import ConfigError, MachineError, SeedsFailed, VaeError
from vaecli.models.base import Model

DEFAULT_PRESET = "beta-vae-dsprites"
# What may differ when a run is continued in place; anything else would make it another run.
MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.eval_images",
    "train.save_every",
    "train.keep",
)


class Layers(NamedTuple):
    """What the user gave, lowest layer first: preset, file, flags (dotted key -> flag and value), `--set` texts."""

    preset: str | None = None
    config_file: str | None = None
    flags: Mapping[str, tuple[str, Any]] = {}
    sets: Sequence[str] = ()


def resolve(layers: Layers) -> trees.Tree:
    """The layers of the configuration, merged."""
    tree = trees.Tree()
    if layers.preset is not None:
        tree.merge(presets.load(layers.preset))
    if layers.config_file is not None:
        tree.merge(presets.load_file(Path(layers.config_file)))
    for key, (flag, value) in layers.flags.items():
        if key == "data.name":
            tree.merge(trees.Tree({"data": data.parse(value)}, {("data",): flag}))
        else:
            tree.set(key, value, flag)
    for text in layers.sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write --set key=value")
        tree.set(key, trees.parse_value(value, f"--set {text}"), "--set")
    return tree


def names_a_run(layers: Layers) -> bool:
    """Whether a preset, file, model or data set is named, so that the rest of the settings are meant to be defaults."""
    named = {"data", "data.name", "model", "model.name"}
    set_keys = {text.partition("=")[0] for text in layers.sets}
    return bool(layers.preset or layers.config_file or named & (layers.flags.keys() | set_keys))


def with_default(layers: Layers) -> Layers:
    """The layers, with the default preset below them where neither a setting nor a model nor data is named."""
    if names_a_run(layers):
        return layers
    output.notice(f"no preset, configuration, model or data named: using --preset {DEFAULT_PRESET}")
    return layers._replace(preset=DEFAULT_PRESET)


def run_prefix(preset: str | None, tree: trees.Tree) -> str:
    """What a run directory's name starts with: the preset, or model and data set."""
    if preset is not None:
        return preset
    names = []
    for section in ("model", "data"):
        value = tree.values.get(section, {})
        name = value.get("name", "vae") if isinstance(value, dict) else str(value)
        names.append(str(name).partition(":")[0])
    return "-".join(names)


def duration(text: str | None) -> float | None:
    """`90`, `90s`, `2m`, `1h30m` in seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not match or not any(match.groups()):
        raise ConfigError(f"--max-time {text!r} is not a duration", "write 90s, 2m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def run(
    layers: Layers,
    name: str | None = None,
    runs_dir: str | None = None,
    resume: str | None = None,
    init_from: str | None = None,
    max_time: str | None = None,
    seeds: str | None = None,
    device_name: str = "auto",
    dry_run: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Train; the run directory is the one line on stdout (with `seeds` a line each)."""
    started = time.monotonic()
    limit = duration(max_time)
    where = device.pick(device_name)
    device.deterministic(where)
    fast.tune_allocator()
    parent = Path(runs_dir) if runs_dir else rundir.runs_dir()
    if resume is not None and seeds is not None:
        raise ConfigError("--seeds starts new runs; continue each with --resume")
    if resume == "auto":
        if name is None:
            raise ConfigError("--resume auto needs --name, to know which run to look for")
        rundir.check_name(name)
        started_before = safe_files.is_plain(parent / name / "run.json")
        if started_before and any((parent / name / "checkpoints").glob("step-*")):
            resume, name, runs_dir, init_from = str(parent / name), None, None, None
        else:
            output.notice(f"{parent / name}: nothing to resume; starting afresh")
            resume, force = None, force or started_before  # killed before its first checkpoint: nothing is lost
    if resume is not None:
        given = {"--init-from": init_from, "--name": name, "--runs-dir": runs_dir, "--force": force}
        if idle := [flag for flag, value in given.items() if value]:
            raise ConfigError(f"--resume continues a run where it is; leave {', '.join(idle)} out")
        _resume(Path(resume), layers, where, limit, dry_run, json)
        return
    layers = with_default(layers)
    if seeds is not None and ("seed" in layers.flags or any(text.partition("=")[0] == "seed" for text in layers.sets)):
        raise ConfigError("--seeds and --seed exclude each other")
    tree = resolve(layers)
    prefix = run_prefix(layers.preset, tree)
    config = configs.build(tree)
    if name is not None:
        rundir.check_name(name)
    several = None if seeds is None else _seeds.parse(seeds)
    if dry_run:
        if several is not None:
            output.notice(f"seeds      {len(several)} runs like this one:")
        _dry_run(config, where, parent / (name or f"{prefix}-s{config.seed}-<time>"), json)
        return
    wanted = Wanted(where, parent, prefix, name, init_from, limit, started, force, alone=several is None)
    if several is not None:
        _several(several, config, data.load(config.data), wanted, json)
        return
    dataset = _to_device(data.load(config.data), where)
    stop = trainer.Stop(limit)
    with stop.signals():
        record = trainer.finish(_start(config, dataset, wanted, stop))
    _result(record, json)


class Wanted(NamedTuple):
    """What the command line says about a new run beside its configuration."""

    where: torch.device
    parent: Path
    prefix: str
    name: str | None
    init_from: str | None
    limit: float | None
    started: float
    force: bool
    alone: bool


def _start(
    config: RunConfig, dataset: Dataset, wanted: Wanted, stop: trainer.Stop
) -> Generator[None, None, dict[str, Any]]:
    """A new run from its first step to its last."""
    device.seed(config.seed, "init")
    _check_labels(config, dataset.info)
    model = _ready(models.build(config.model, dataset.info), config, wanted.where)
    if wanted.init_from is not None:
        _take_weights(model, wanted.init_from)
    else:
        device.seed(config.seed, "begin")
        model.begin(dataset.training(config.seed))
    state = trainer.TrainState.fresh(model, config)
    _check_disk(wanted.parent, model, config)
    run_dir = rundir.create(wanted.parent, f"{wanted.prefix}-s{config.seed}", wanted.name, wanted.force)
    run_dir.write("config.yaml", configs.dump(config))
    run_dir.status(
        **rundir.provenance(), device=device.describe(wanted.where), data=dataset.info.source, preset=wanted.prefix
    )
    return (yield from _train(run_dir, model, config, state, dataset, wanted.where, stop, wanted.started, wanted.alone))


def _several(seeds: Sequence[int], config: RunConfig, dataset: Dataset, wanted: Wanted, json: bool) -> None:
    """One run for each seed; their directories on stdout, in the order of the seeds."""
    ways = [dataclasses.replace(config, seed=seed) for seed in seeds]
    records: list[dict[str, Any] | None]
    if _share_the_device(config, dataset, wanted.where):
        dataset = _to_device(dataset, wanted.where)
        output.notice(f"seeds      {len(seeds)} runs take turns on {device.describe(wanted.where)}")
        stop = trainer.Stop(wanted.limit)
        with stop.signals():
            names = [None if wanted.name is None else f"{wanted.name}-s{seed}" for seed in seeds]
            each = [
                _start(way, dataset, wanted._replace(name=name), stop) for way, name in zip(ways, names, strict=True)
            ]
            records, errors = _seeds.taking_turns(each)
        code = errors[0].exit_code if errors else 0
    else:
        at_once = _seeds.processes_at_once(len(seeds), dataset.images.nbytes) if wanted.where.type == "cpu" else 1
        how = f"{at_once} at a time, a process each" if at_once > 1 else "one after another"
        output.notice(f"seeds      {len(seeds)} runs, {how}")
        del dataset
        commands = [(seed, [*_seeds.arguments_of(sys.argv[1:], seed, wanted.name), "--json"]) for seed in seeds]
        texts, code = _seeds.in_processes(commands, at_once)
        records = [None if text is None else parse_json(text) for text in texts]
    done = [record for record in records if record is not None]
    if json:
        output.result_json({"schema": 1, "runs": done})
    else:
        for record in done:
            output.result_path(str(record["run"]))
    missing = [str(seed) for seed, record in zip(seeds, records, strict=True) if record is None]
    if missing:
        raise SeedsFailed(f"{len(missing)} of {len(seeds)} seeds did not finish: {', '.join(missing)}", code or 1)


def _share_the_device(config: RunConfig, dataset: Dataset, where: torch.device) -> bool:
    """Whether several runs can be in one process: on a GPU, where each is recorded and has a stream of its own."""
    with torch.device("meta"):
        model = models.build(config.model, dataset.info)
    recordable = bool(model.phases) and config.train.fast and graph.obstacle(model, config) is None
    return where.type == "cuda" and recordable and _fits(dataset, where)


def _resume(path: Path, layers: Layers, where: torch.device, limit: float | None, dry_run: bool, json: bool) -> None:
    started = time.monotonic()
    if not path.exists():
        raise ConfigError(f"{path}: no such run to resume", "`--resume auto` starts afresh where there is none")
    one_step = path.parent.name == "checkpoints" and path.is_dir()  # named by hand: never fall back to another
    run_path = path.resolve().parent.parent if one_step else path
    if not safe_files.is_plain(run_path / "run.json"):
        raise ConfigError(f"{path}: not a run directory", "give the directory that `vae train` printed")
    run_dir = rundir.RunDir(run_path)
    if one_step:
        checkpoint.verify(path)
    step_dir = path.resolve() if one_step else checkpoint.newest_intact(path)
    loaded = checkpoint.load_model(step_dir / checkpoint.MODEL_FILE, where)
    config = _changed(loaded.config, layers)
    if config.train.steps < loaded.step and loaded.model.phases:
        raise ConfigError(f"{run_path} is at step {loaded.step:,}, past train.steps = {config.train.steps:,}")
    if not loaded.model.phases or config.train.steps == loaded.step:
        output.notice(f"{run_path} is finished at step {loaded.step:,}: nothing to do")
        _result(_record(run_path, "finished", loaded.step, {}), json)
        return
    if dry_run:
        output.notice(f"would resume {run_path} at step {loaded.step:,}")
        _dry_run(config, where, run_path, json)
        return
    dataset = _to_device(data.load(config.data, loaded.info), where)
    model = _ready(loaded.model, config, where)
    state = trainer.TrainState.fresh(model, config)
    state.restore(*checkpoint.load_trainer(step_dir))
    checkpoint.clean_up(run_dir.checkpoints, state.step)
    run_dir.truncate_metrics(state.step)
    run_dir.write("config.yaml", configs.dump(config))
    run_dir.status(**rundir.provenance(), device=device.describe(where), resumed_at=state.step)
    output.notice(f"resuming {run_path} at step {state.step:,}")
    if where.type != "cpu":
        output.notice("on this device the continuation is not bit-exact")
    stop = trainer.Stop(limit)
    with stop.signals():
        record = trainer.finish(_train(run_dir, model, config, state, dataset, where, stop, started))
    _result(record, json)


def _ready(model: Model, config: RunConfig, where: torch.device) -> Model:
    """The model on its device, its layers and precision as `train` asks; before an optimizer sees the parameters, whose
    memory layout the fast layers change.
    """
    if config.train.precision == "bf16" and not fast.supports_bf16(where):
        raise MachineError(
            f"train.precision is bf16, but {device.describe(where)} has no bfloat16 arithmetic",
            "leave train.precision at fp32",
        )
    model.precision = config.train.precision
    model.to(where)
    if config.train.fast and (applied := fast.accelerate(model)):
        output.notice("fast       " + ", ".join(applied))
    return model


def _changed(old: RunConfig, layers: Layers) -> RunConfig:
    """The run's own configuration with the changes asked for, if they are of the kind a run may take."""
    tree = resolve(layers)
    if not tree.values:
        return old
    if not names_a_run(layers):  # only changes; otherwise the whole command line again, as a scheduler repeats it
        changes, tree = tree, trees.Tree(old.to_tree(), {})
        tree.merge(changes)
    new = configs.build(tree)
    refused = [f"{k}: {a} -> {b}" for k, (a, b) in configs.diff(old, new).items() if k not in MAY_CHANGE]
    if refused:
        raise ConfigError(
            "a run is continued with its own configuration; refused: " + "; ".join(refused),
            "start a new run from these weights with --init-from",
        )
    for key, (a, b) in configs.diff(old, new).items():
        output.notice(f"changed for the rest of the run: {key}: {a} -> {b}")
    return new


def _take_weights(model: Model, path: str) -> None:
    loaded = checkpoint.load(path, torch.device("cpu"))
    own, given = model.state_dict(), loaded.model.state_dict()
    differing = sorted(
        k for k in own.keys() | given.keys() if k not in own or k not in given or own[k].shape != given[k].shape
    )
    if differing:
        raise ConfigError(
            f"--init-from {path}: its weights do not fit this model: {', '.join(differing[:5])}"
            + (f" and {len(differing) - 5} more" if len(differing) > 5 else ""),
            "model.latent_dim, model.net and the image shape must be the same",
        )
    model.load_state_dict(given)
    output.notice(f"weights from {loaded.path} (step {loaded.step:,}); the steps count from 0")


def _check_labels(config: RunConfig, info: DataInfo) -> None:
    uses_labels = registry.load("model", config.model.name).Model.uses_labels
    if config.data.labelled is not None and not uses_labels:
        raise ConfigError(f"data.labelled is set, but {config.model.name} uses no labels", "leave data.labelled out")
    if uses_labels and not info.factor_names:
        raise ConfigError(f"{config.model.name} needs labels, but {info.name} has none", "take data with labels")


def _check_disk(parent: Path, model: Model, config: RunConfig) -> None:
    """Refuse to start where the checkpoints visibly cannot fit."""
    there = parent
    while not there.exists():
        there = there.parent
    free, needed = shutil.disk_usage(there).free, (config.train.keep + 2) * _checkpoint_bytes(model)
    if free < needed:
        raise MachineError(
            f"{parent}: {free / 1e9:.2f} GB free, but the run's checkpoints may take {needed / 1e9:.2f} GB",
            "free some space, choose another --runs-dir, or set train.keep=1",
        )


def _checkpoint_bytes(model: Model) -> int:
    weights: int = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return 3 * weights + 100_000  # the weights and, with Adam, two tensors a weight


def _dry_run(config: RunConfig, where: torch.device, target: Path, json: bool) -> None:
    """Everything short of the work: resolve, look at the data, build the model, try some steps, and say what would
    happen and what it would take.
    """
    dataset = _to_device(data.load(config.data), where)
    _check_labels(config, dataset.info)
    with torch.device("meta"):
        model = models.build(config.model, dataset.info)
    _check_disk(target.parent, model, config)
    parameters = sum(p.numel() for p in model.parameters())
    _banner(model, config, dataset, where)
    size = _checkpoint_bytes(model)
    facts = {
        "schema": 1,
        "run": str(target),
        "parameters": parameters,
        "steps": config.train.steps if model.phases else 0,
        "checkpoint_bytes": size,
        "device": str(where),
        "config": config.to_tree(),
    }
    if model.phases:
        model = _ready(models.build(config.model, dataset.info), config, where)
        seconds, memory = trainer.probe(model, config, dataset.stream(config.seed, config.train.batch_size))
        facts |= {"seconds": seconds * config.train.steps, "peak_bytes": memory}
        output.notice(
            f"probe      {config.train.batch_size / seconds:,.0f} images/s: {_hours(seconds * config.train.steps)} for "
            f"{config.train.steps:,} steps, without evaluations; memory {memory / 1e9:.2f} GB at the peak"
        )
    output.notice(f"dry run: no run was made; a checkpoint would take about {size / 1e6:.1f} MB")
    if json:
        output.result_json(facts)
    else:
        output.result_path(str(target))


def _hours(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _banner(model: Model, config: RunConfig, dataset: Dataset, where: torch.device) -> None:
    info: DataInfo = dataset.info
    parameters = sum(p.numel() for p in model.parameters())
    train, held_out = len(dataset.split("train")), dataset.split("val")
    held = f"{len(held_out):,} held out" if held_out.name == "val" else "none held out"
    net = getattr(getattr(config.model, "net", None), "name", None)
    optim = config.optim
    output.notice(
        f"model      {config.model.name}: {' + '.join(f'{n} latents' for n in model.groups.values())}, "
        f"{parameters:,} parameters" + (f", net {net}" if net else "")
    )
    output.notice(f"objective  {model.objective_text(model.hyper(0))}")
    for key, _ in configs.flat({"model": config.model.model_dump(), "optim": config.optim.model_dump()}):
        if key.endswith(".schedule"):
            output.notice(f"schedule   {key.removesuffix('.schedule')}: {_schedule_text(config, key)}")
    output.notice(
        f"data       {info.name}: {train:,} images {'x'.join(map(str, info.shape))} to train on, {held}; "
        f"{info.source.get('kind', 'as given')}"
    )
    if model.phases:
        epochs = config.train.steps * config.train.batch_size / train
        lr = f"{schedules.at(optim.lr, 0):g}"
        output.notice(
            f"training   {config.train.steps:,} steps of {config.train.batch_size} images ({epochs:.1f} epochs), "
            f"{optim.name} lr {lr}, {config.train.precision}, seed {config.seed}, {device.describe(where)}"
        )
    if getattr(getattr(config.model, "likelihood", None), "name", "") == "bernoulli" and not info.binary:
        output.notice(
            "note       the pixels are not all 0 or 1: the Bernoulli likelihood is then a cross-entropy, not a density"
        )


def _schedule_text(config: RunConfig, key: str) -> str:
    """`linear, start 0, end 25, steps 100,000` for the schedule at a dotted key."""
    section: Any = config.to_tree()
    for part in key.split(".")[:-1]:
        section = section[part]
    return ", ".join(f"{name} {value}" if name != "schedule" else str(value) for name, value in section.items())


def _train(
    run_dir: rundir.RunDir,
    model: Model,
    config: RunConfig,
    state: trainer.TrainState,
    dataset: Dataset,
    where: torch.device,
    stop: trainer.Stop,
    started: float,
    alone: bool = True,
) -> Generator[None, None, dict[str, Any]]:
    """Train in a run directory and report; yields between steps, and its value is the record of the result."""
    _banner(model, config, dataset, where)
    output.notice(f"run        {run_dir.path}")
    meter = Meter(config, state, started, live=alone)
    code, status, evaluation = 1, "failed", {}
    try:
        with trainer.memory_errors(config.train.batch_size, dataset.info.shape):
            run_dir.status(status="running")
            stream, held_out = dataset.stream(config.seed, config.train.batch_size), dataset.split("val")
            recorded = _recorded(model, config, state, stream)
            training = dataset.training(config.seed)
            with meter:
                outcome = yield from trainer.fit(
                    run_dir, model, config, state, stream, training, held_out, stop, meter.report, recorded
                )
            code, status, evaluation = 0, outcome.status, outcome.evaluation
            output.notice(f"{status} at step {state.step:,}: {meter.summary()}")
            _final_table(model, held_out, config, state.step, stop, dataset.varying_factors)
    except VaeError as error:
        code = error.exit_code
        status = {4: "diverged"}.get(code, "interrupted" if code > 128 else "failed")
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk must not hide why the run ended
            run_dir.status(status=status, exit_code=code, step=state.step, seconds=round(state.seconds, 1))
        run_dir.close()
    return _record(run_dir.path, status, state.step, evaluation)


def _fits(dataset: Dataset, where: torch.device) -> bool:
    free: int = torch.cuda.mem_get_info(where)[0]
    return dataset.images.nbytes < free / 2


def _to_device(dataset: Dataset, where: torch.device) -> Dataset:
    """The data set in the device's memory, where it takes no more than half of what is free there."""
    if where.type == "cuda" and _fits(dataset, where):
        return dataset.to(where)
    if where.type == "cuda":
        output.notice("the images stay in host memory: they are more than half of what is free on the device")
    return dataset


def _recorded(model: Model, config: RunConfig, state: trainer.TrainState, stream: Stream) -> graph.StaticSteps | None:
    """The steps as a CUDA graph, where there is a GPU and nothing speaks against it."""
    if model.device.type != "cuda" or not model.phases or not config.train.fast:
        return None
    problem = graph.obstacle(model, config)
    if stream.dataset.images.device.type != "cuda":
        problem = "the images are not on the device"
    if problem is not None:
        output.notice(f"steps are launched one by one: {problem}")
        return None
    output.notice("fast       steps recorded as a CUDA graph")
    return graph.StaticSteps(model, config, stream, state.optimizers)


def _record(path: Path, status: str, step: int, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": 1, "run": str(path), "status": status, "step": step, "val": dict(evaluation)}


def _result(record: Mapping[str, Any], json: bool) -> None:
    if json:
        output.result_json(dict(record))
    else:
        output.result_path(str(record["run"]))


def _final_table(
    model: Model, held_out: SplitView, config: RunConfig, step: int, stop: trainer.Stop, factors: int | None
) -> None:
    """The per-latent table over (at most `train.eval_images`) held-out images, on stderr, and the verdict."""
    if stop.signal is not None:
        return
    model.eval()
    device.seed(config.seed, "final")
    hyper = model.hyper(step)
    unless_stopped = itertools.takewhile(lambda _: stop.signal is None, held_out.batches(500))
    statistics = latent_statistics(model, limited(unless_stopped, config.train.eval_images), hyper)
    names = model.latent_names()
    headers, rows, styles = table_rows(statistics, names)
    title = f"latents over {statistics.n:,} images ({held_out.name})"
    output.table(headers, rows, styles=styles, title=title, to_stderr=True)
    found = verdict(statistics, names, hyper, factors=factors, step=step, standard_prior=len(model.groups) == 1)
    output.notice(f"verdict: {found.name}", *found.sentences)
