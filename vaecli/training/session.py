"""A run from its configuration to its end: started, one of several seeds, or resumed."""

import contextlib
import dataclasses
import hashlib
import signal
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from json import loads as parse_json
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from vaecli import config as configs
from vaecli import data, device, models, output, paths, safe_files
from vaecli.config import RunConfig
from vaecli.config.tree import Tree
from vaecli.data.base import Dataset, SplitView
from vaecli.densities.base import Density
from vaecli.errors import ConfigError, InputError, Interrupted, MachineError, VaeError
from vaecli.models.base import Model
from vaecli.speed import graph
from vaecli.training import banner, checkpoint, placing, rundir, seeds, stored_density, trackers, trainer
from vaecli.training.meter import Meter
from vaecli.training.state import Stage, TrainState, stage_at, stages
from vaecli.training.stop import Stop, memory_errors
from vaecli.training.together import Group, PartOf, StopTogether

Value = TypeVar("Value")


class Judge:
    """What is said of a model while it is trained and at the end; nothing, unless the caller knows more."""

    def concern(self, model: Model, record: Mapping[str, Any], config: RunConfig, step: int, last: int) -> str | None:
        """A warning that an evaluation at `step` gives reason for."""
        return None

    def picture(self, model: Model, config: RunConfig) -> bytes | None:
        """Samples of a model in evaluation mode (PNG), the same draws each time."""
        return None

    def final(
        self,
        model: Model,
        held_out: SplitView,
        config: RunConfig,
        step: int,
        stop: Stop,
        factors: int | None,
        past: rundir.Past | None,
    ) -> dict[str, Any] | None:
        """The last word, on stderr, and its numbers for the record of the result; `past` is what the run's log tells,
        where images are held out."""
        return None


class Wanted(NamedTuple):
    """What the command line says about a new run beside its configuration."""

    where: torch.device
    parent: Path
    prefix: str  # what the directory's name starts with
    preset: str | None
    name: str | None
    init_from: str | None
    limit: float | None
    started: float
    force: bool
    alone: bool
    group: Group | None = None  # the processes that share the training, where there are several


class Resumed(NamedTuple):
    """The same of a run that goes on."""

    where: torch.device
    limit: float | None
    started: float
    dry_run: bool
    group: Group | None = None


def check_given(config: RunConfig, tree: Tree) -> None:
    """ConfigError for settings of steps that were given to a model which takes none."""
    if models.takes_steps(config.model):
        return
    idle = sorted(f"optim.{key}" for key in _given(tree, "optim"))
    kept = ("eval_images", "samples", "keep", "fast")
    idle += sorted(f"train.{key}" for key in _given(tree, "train") if key not in kept)
    if idle:
        raise ConfigError(
            f"{config.model.name} is fitted in closed form and takes no steps: {', '.join(idle)} would do nothing",
            "leave them out",
        )


def _given(tree: Tree, section: str) -> list[str]:
    value = tree.values.get(section)
    return list(value) if isinstance(value, dict) else []


def start(config: RunConfig, wanted: Wanted, judge: Judge) -> dict[str, Any]:
    """One new run, to its end; the record of its result."""
    rundir.check_place(wanted.parent)
    dataset = placing.to_device(_in_turn(wanted.group, lambda: data.load(config.data)), wanted.where)
    stop = _stop(wanted.limit, wanted.group)
    with stop.signals():
        return trainer.finish(_start(config, dataset, wanted, stop, judge))


def _in_turn(group: Group | None, work: Callable[[], Value]) -> Value:
    """Of several processes the first does it before the others."""
    return work() if group is None else group.one_after_the_other(work)


def _stop(limit: float | None, group: Group | None) -> Stop:
    return Stop(limit) if group is None else StopTogether(limit, group)


def _start(
    config: RunConfig, dataset: Dataset, wanted: Wanted, stop: Stop, judge: Judge
) -> Generator[None, None, dict[str, Any]]:
    """A new run from its first step to its last."""
    trackers.check(config.train.log)
    banner.check_labels(config, dataset.info)
    config = banner.choose(config, dataset.info)
    device.seed(config.seed, "init")
    model = models.build(config.model, dataset.info)
    banner.check(model, config, dataset)
    placing.ready(model, config, wanted.where)
    model.check_memory(config.train.batch_size // (1 if wanted.group is None else wanted.group.size))
    if wanted.init_from is not None:
        _take_weights(model, wanted.init_from)
    else:
        device.seed(config.seed, "begin")
        model.begin(dataset.training(config.seed))
    state = TrainState.fresh(model, config)
    banner.check_disk(wanted.parent, model, config)
    _join(wanted.group, model, config, dataset, state)
    if wanted.group is None or wanted.group.first:
        run_dir = rundir.create(wanted.parent, f"{wanted.prefix}-s{config.seed}", wanted.name, wanted.force)
    else:
        run_dir = rundir.Elsewhere(wanted.parent)
    run_dir.write("config.yaml", configs.dump(config))
    run_dir.status(
        **rundir.provenance(),
        device=device.describe(wanted.where),
        processes=1 if wanted.group is None else wanted.group.size,
        data=dataset.info.source,
        preset=wanted.preset,
        origin=model.origin,
    )
    return (yield from _train(run_dir, model, config, state, dataset, stop, wanted.started, judge, wanted.alone))


def start_several(
    numbers: Sequence[int], config: RunConfig, wanted: Wanted, judge: Judge
) -> tuple[list[dict[str, Any] | None], int]:
    """One run for each seed. The records, in the order of the seeds (None for those that did not finish), and the first
    exit code that is not 0."""
    rundir.check_place(wanted.parent)
    dataset = data.load(config.data)
    ways = [dataclasses.replace(config, seed=seed) for seed in numbers]
    if _share_the_device(config, dataset, wanted.where):
        dataset = placing.to_device(dataset, wanted.where)
        output.notice(f"seeds      {len(numbers)} runs take turns on {device.describe(wanted.where)}")
        stop = Stop(wanted.limit)
        with stop.signals():
            names = [None if wanted.name is None else f"{wanted.name}-s{seed}" for seed in numbers]
            each = [
                _start(way, dataset, wanted._replace(name=name), stop, judge)
                for way, name in zip(ways, names, strict=True)
            ]
            records, errors = seeds.taking_turns(each)
        return records, errors[0].exit_code if errors else 0
    at_once = seeds.processes_at_once(len(numbers), dataset.images.nbytes) if wanted.where.type == "cpu" else 1
    how = f"{at_once} at a time, a process each" if at_once > 1 else "one after another"
    output.notice(f"seeds      {len(numbers)} runs, {how}")
    del dataset
    commands = [(f"seed {seed}", [*seeds.arguments_of(sys.argv[1:], seed, wanted.name), "--json"]) for seed in numbers]
    found = seeds.in_processes(commands, at_once)
    code = next((done.code if done.code > 0 else 128 - done.code for done in found if done.code), 0)
    return [None if done.code else parse_json(done.out) for done in found], code


def _share_the_device(config: RunConfig, dataset: Dataset, where: torch.device) -> bool:
    """Whether several runs can be in one process: on a GPU, where each is recorded and has a stream of its own."""
    if where.type != "cuda" or not models.takes_steps(config.model) or not config.train.fast:
        return False
    with device.without_values():
        model = models.build(config.model, dataset.info)
    return graph.obstacle(model, config) is None and placing.fits(dataset, where)


def resume(path: Path, changed: Callable[[RunConfig], RunConfig], options: Resumed, judge: Judge) -> dict[str, Any]:
    """Go on with a run where it stands, with the configuration that `changed` makes of its own; the record of its
    result. ConfigError where there is nothing to resume."""
    if not path.exists():
        raise ConfigError(f"{path}: no such run to resume", "`--resume auto` starts afresh where there is none")
    group = options.group
    one_step = path.parent.name == "checkpoints" and path.is_dir()  # named by hand: never fall back to another
    run_path = path.resolve().parent.parent if one_step else path
    if not rundir.is_run(run_path):
        raise ConfigError(f"{path}: not a run directory", "give the directory that `vae train` printed")
    run_dir = rundir.RunDir(run_path) if group is None or group.first else rundir.Elsewhere(run_path)
    if one_step:
        checkpoint.verify(path)
    step_dir = path.resolve() if one_step else _in_turn(group, lambda: checkpoint.newest_intact(path))
    where = options.where
    loaded = checkpoint.load_model(step_dir / checkpoint.MODEL_FILE, where)
    config = changed(loaded.config)
    takes_steps = models.takes_steps(config.model)
    if config.train.total_steps < loaded.step and takes_steps:
        raise ConfigError(f"{run_path} is at step {loaded.step:,}, past train.steps = {config.train.total_steps:,}")
    _check_stages(loaded, config)
    trackers.check(config.train.log)
    finished = not takes_steps or config.train.total_steps == loaded.step
    if finished and (config.density is None or _density_of(step_dir, loaded.model) is not None):
        output.notice(f"{run_path} is finished at step {loaded.step:,}: nothing to do")
        return _record(run_path, "finished", loaded.step, rundir.last_evaluation(run_path))
    if options.dry_run:
        output.notice(f"would resume {run_path} at step {loaded.step:,}")
        return banner.dry_run(config, where, run_path)
    dataset = placing.to_device(data.load(config.data, loaded.info), where)
    if config.data != loaded.config.data and dataset.info.source.get("sha256") != loaded.info.source.get("sha256"):
        raise InputError("these are not the images the run was trained on", "--init-from starts a new run")
    if not len(dataset.splits["train"]):
        raise InputError(f"{config.data.name}: none of the images that there are now is one to train on")
    model = placing.ready(loaded.model, config, where)
    banner.check(model, config, dataset)
    model.check_memory(config.train.batch_size // (1 if group is None else group.size))
    state = TrainState.fresh(model, config)
    state.restore(*checkpoint.load_trainer(step_dir))
    _join(group, model, config, dataset, state)  # after which all have read what is to be read
    if run_dir.writes:
        checkpoint.clean_up(run_dir.checkpoints, state.step)
    run_dir.truncate_metrics(state.step if takes_steps else -1)
    run_dir.write("config.yaml", configs.dump(config))
    processes, before = 1 if group is None else group.size, rundir.processes(run_path)
    told = {"device": device.describe(where), "resumed_at": state.step, "processes": processes}
    run_dir.status(**rundir.provenance(), **told)
    output.notice(f"resuming {run_path} at step {state.step:,}")
    if processes != before:
        output.notice(f"with {processes} processes, before it were {before}: the continuation is not bit-exact")
    if where.type != "cpu":
        output.notice("on this device the continuation is not bit-exact")
    stop = _stop(options.limit, group)
    with stop.signals():
        return trainer.finish(_train(run_dir, model, config, state, dataset, stop, options.started, judge))


def _join(group: Group | None, model: Model, config: RunConfig, dataset: Dataset, state: TrainState) -> None:
    """Make the state one of several processes; ConfigError where the model is none for them."""
    if group is not None:
        order = model.order(dataset.training(config.seed), config.seed, config.train.batch_size)
        group.check(model, config, dataset.stream(config.seed, config.train.batch_size, order), state)
        state.group = group


def _check_stages(loaded: checkpoint.Loaded, config: RunConfig) -> None:
    """ConfigError where the configuration has other steps for stages that are over, or has ended the one at work."""
    if loaded.step == 0 or not models.takes_steps(config.model):
        return
    was, now = (stage_at(stages(loaded.model, c), loaded.step - 1) for c in (loaded.config, config))
    if (was.name, was.start) != (now.name, now.start):
        raise ConfigError(
            f"train.steps: step {loaded.step:,} was made in {_stage_text(was)}, and would be in {_stage_text(now)}",
            "the steps of the stage at work can be changed to more than are made, and those of later ones",
        )


def _stage_text(stage: Stage) -> str:
    return "all stages at once" if stage.name is None else f"stage {stage.name}, begun after step {stage.start:,}"


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
    digest = hashlib.sha256(safe_files.read(loaded.path)).hexdigest()
    model.origin = {"path": paths.portable(str(loaded.path)), "sha256": digest, "step": loaded.step}
    output.notice(f"weights from {loaded.path} (step {loaded.step:,}); the steps count from 0")


def _train(
    run_dir: rundir.RunDir,
    model: Model,
    config: RunConfig,
    state: TrainState,
    dataset: Dataset,
    stop: Stop,
    started: float,
    judge: Judge,
    alone: bool = True,
) -> Generator[None, None, dict[str, Any]]:
    """Train in a run directory and report; yields between steps, and its value is the record of the result."""
    banner.banner(model, config, dataset, model.device)
    output.notice(f"run        {run_dir.path}")
    meter, first = Meter(config, state, started, live=alone, deadline=stop.deadline), state.step
    code, status, evaluation, final = 1, "failed", {}, None
    names = config.train.log if run_dir.writes else []
    told = trackers.Trackers(names, run_dir.path, config.to_tree(), state.step)
    run_dir.log = told.log
    try:
        with memory_errors(config.train.batch_size, dataset.info.shape):
            stream, held_out = dataset.stream(config.seed, config.train.batch_size), dataset.held_out("val")
            run_dir.status(status="running", evaluated=held_out.name)
            recorded = None if state.group is not None else placing.recorded(model, config, state, stream)
            batches = PartOf(stream, state.group) if isinstance(state.group, Group) else stream
            training = dataset.training(config.seed)
            with meter, output.progress("fitting", len(training)) if not state.players else _silent() as progress:
                hooks = trainer.Hooks(
                    meter.report,
                    lambda record, step, last: judge.concern(model, record, config, step, last),
                    progress,
                    lambda: judge.picture(model, config),
                )
                outcome = yield from trainer.fit(
                    run_dir, model, config, state, batches, training, held_out, stop, hooks, recorded
                )
            code, status, evaluation = 0, outcome.status, outcome.evaluation
            how = f" at step {state.step:,}" if state.players else ", in closed form"
            rate = f": {meter.summary()}" if state.step > first else ""
            output.notice(f"{status}{how}{rate}")
            if config.density is not None and run_dir.writes:
                status = _fit_density(run_dir, config, model.device, dataset, state.step, status, stop)
            if run_dir.writes:
                past = rundir.past(run_dir.path) if held_out.name == "val" else None
                factors = dataset.varying_factors
                final = judge.final(model, held_out, config, state.step, stop, factors, past)
    except VaeError as error:
        code = error.exit_code
        status = {4: "diverged"}.get(code, "interrupted" if code > 128 else "failed")
        raise
    finally:
        with contextlib.suppress(OSError, MachineError):  # a full disk must not hide why the run ended
            run_dir.status(status=status, exit_code=code, step=state.step, seconds=round(state.seconds, 1))
        told.close(failed=code not in (0, 130, 143))
        run_dir.close()
    record = _record(run_dir.path, status, state.step, evaluation)
    return record if final is None else {**record, "final": final}


def _fit_density(
    run_dir: rundir.RunDir, config: RunConfig, where: torch.device, dataset: Dataset, step: int, status: str, stop: Stop
) -> str:
    """What `vae density --fit` would do with the checkpoint of the last step; how the run has ended then.

    Interrupted, with nothing stored, after a signal; `--resume` fits it.
    """
    assert config.density is not None
    later = f"vae train --resume {run_dir.path}"
    if status != "finished":
        output.notice(f"density    none: it is fitted when the training is over; to go on: {later}")
        return status
    folder = run_dir.checkpoints / f"step-{step:08d}"
    loaded = checkpoint.load_model(folder / checkpoint.MODEL_FILE, where)
    if _density_of(folder, loaded.model) is not None:
        return status
    fitted = stored_density.fit(config.density, loaded.model, dataset.split("train"), config.seed, stop)
    if stop.signal is not None:
        name = signal.Signals(stop.signal).name
        raise Interrupted(f"stopped by {name} before the density was fitted; the weights are saved", stop.signal, later)
    if fitted.cut_short:
        output.notice(f"density    none: the time was over before it was fitted; to fit it: {later}")
        return "time limit"
    stored_density.add(folder, fitted.density, fitted.fitted_on)
    output.notice(f"density    {fitted.density.text()}, fitted to {fitted.fitted_on}")
    run_dir.status(density=f"{fitted.density.text()}, fitted to {fitted.fitted_on}")
    return status


def _density_of(step: Path, model: Model) -> Density | None:
    """The one stored beside the weights of a step."""
    found = stored_density.load(step, stored_density.latents(model))
    return None if found is None else found[0]


@contextlib.contextmanager
def _silent() -> Generator[Callable[[float], None], None, None]:
    yield lambda images: None


def _record(path: Path, status: str, step: int, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": 1, "run": str(path), "status": status, "step": step, "val": dict(evaluation)}
