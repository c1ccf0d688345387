"""`vae train`: from a resolved configuration to a run directory with checkpoints."""

import itertools
import re
import shlex
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vaecli import config as configs
from vaecli import data, device, models, noise, output, presets, registry
from vaecli.analysis import tables
from vaecli.analysis.diagnosis import discriminator_wins, final_report, warn_while_training, with_past
from vaecli.analysis.gathering import limited
from vaecli.batch import at_once
from vaecli.commands._labels import RECORDING
from vaecli.config import RunConfig
from vaecli.config import tree as trees
from vaecli.data.base import SplitView
from vaecli.errors import ConfigError, MachineError, SeedsFailed, VaeError
from vaecli.models.base import Model, NoPrior
from vaecli.speed import fast
from vaecli.training import banner, rundir, session, together
from vaecli.training import seeds as several_seeds
from vaecli.training.stop import Stop

WON = 2_000  # steps for which a discriminator has to know every image before it is said
DEFAULT_PRESET = "beta-vae-dsprites"
# What may differ when a run is continued in place; anything else would make it another run.
MAY_CHANGE = (
    "train.steps",
    *RECORDING,
    "train.log",
    "data.path",  # where the same images are now
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
            parsed = data.parse(value)
            tree.merge(trees.Tree({"data": parsed}, {("data",): flag, **{("data", name): flag for name in parsed}}))
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


def check_flags(layers: Layers, tree: trees.Tree) -> None:
    """ConfigError for a flag of a setting that the model does not have, with the models that have it."""
    section = tree.values.get("model", {})
    name = section.get("name", "vae") if isinstance(section, dict) else section
    name = registry.standard("model", str(name))
    if name not in registry.names("model"):
        return  # which the configuration says
    for key, (flag, value) in layers.flags.items():
        field = key.partition(".")[2]
        if key.startswith("model.") and field != "name" and not _takes(str(name), field):
            takers = [other for other in registry.names("model") if _takes(other, field)]
            first = f"{field}-vae" if f"{field}-vae" in takers else takers[0]
            data_set = "-".join((layers.preset or "").split("-")[-1:])
            preset = f"{first}-{data_set}" if f"{first}-{data_set}" in presets.paths() else None
            instead = f"--preset {preset}" if preset else f"--model {first}"
            raise ConfigError(
                f"{flag} {value:g}: the model {name} has no {field}",
                f"{instead} {flag} {value:g}; models that have it: {', '.join(takers)}",
            )


def _takes(model: str, field: str) -> bool:
    return field in registry.load("model", model).Config.model_fields


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


def duration(text: str | None, flag: str = "--max-time") -> float | None:
    """`90`, `90s`, `2m`, `1h30m` in seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not match or not any(match.groups()):
        raise ConfigError(f"{flag} {text!r} is not a duration", "write 90s, 2m or 1h30m")
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
    """Train; the run directory is the one line on stdout (with `seeds` a line each). Several processes, as torchrun
    starts them, share one training, of which the first speaks."""
    if not together.started():
        _run(layers, name, runs_dir, resume, init_from, max_time, seeds, device_name, dry_run, force, json, None)
        return
    if seeds is not None or dry_run:
        raise ConfigError(f"several processes train one run; {'--seeds' if seeds else '--dry-run'} is for one process")
    group = together.Group()
    if not group.first:
        output.configure(True)
    try:
        _run(layers, name, runs_dir, resume, init_from, max_time, None, device_name, False, force, json, group)
    except VaeError as error:
        if group.first or isinstance(error, MachineError):
            raise
        time.sleep(3.0)  # torchrun ends all when one has ended, and the first is to say why
        sys.exit(error.exit_code)
    group.leave()


def _run(
    layers: Layers,
    name: str | None,
    runs_dir: str | None,
    resume: str | None,
    init_from: str | None,
    max_time: str | None,
    seeds: str | None,
    device_name: str,
    dry_run: bool,
    force: bool,
    json: bool,
    group: together.Group | None,
) -> None:
    started = time.monotonic()
    limit = duration(max_time)
    where = device.pick(device_name)
    if group is not None:
        where = device.pick(together.own_device(str(where)))
    device.deterministic(where)
    fast.tune_allocator()
    parent = Path(runs_dir) if runs_dir else rundir.runs_dir()
    if resume is not None and seeds is not None:
        raise ConfigError("--seeds starts new runs; continue each with --resume")
    if resume == "auto":
        if name is None:
            raise ConfigError("--resume auto needs --name, to know which run to look for")
        rundir.check_name(name)
        started_before = rundir.is_run(parent / name)
        saved = started_before and any((parent / name / "checkpoints").glob("step-*"))
        if group is not None:  # as the first process sees it, before it makes anything
            saved = bool(group.largest([int(saved and group.first)])[0])
        if saved:
            resume, name, runs_dir, init_from = str(parent / name), None, None, None
        else:
            output.notice(f"{parent / name}: nothing to resume; starting afresh")
            resume, force = None, force or started_before  # killed before its first checkpoint: nothing is lost
    if resume is not None:
        given = {"--init-from": init_from, "--name": name, "--runs-dir": runs_dir, "--force": force}
        if idle := [flag for flag, value in given.items() if value]:
            raise ConfigError(f"--resume continues a run where it is; leave {', '.join(idle)} out")
        options = session.Resumed(where, limit, started, dry_run, group)
        record = session.resume(Path(resume), lambda old: _changed(old, layers, resume), options, Judge())
        if group is None or group.first:
            _result(record, json)
        return
    if not names_a_run(layers):
        how = "vae train --preset vae-mnist; or --data folder:PHOTOS for images of your own"
        if init_from is not None and rundir.is_run(Path(init_from)):
            run = shlex.quote(init_from)
            how = f"vae train -c {run}/config.yaml --init-from {run} trains on as it was trained"
        raise ConfigError("nothing to train is named: a preset, a model, data or a configuration", how)
    if seeds is not None and ("seed" in layers.flags or any(text.partition("=")[0] == "seed" for text in layers.sets)):
        raise ConfigError("--seeds and --seed exclude each other")
    tree = resolve(layers)
    prefix = run_prefix(layers.preset, tree)
    check_flags(layers, tree)
    config = configs.build(tree)
    if name is not None:
        rundir.check_name(name)
    session.check_given(config, tree)
    several = None if seeds is None else several_seeds.parse(seeds)
    if dry_run:
        if several is not None:
            output.notice(f"seeds      {len(several)} runs like this one:")
        facts = banner.dry_run(config, where, parent / (name or f"{prefix}-s{config.seed}-<time>"))
        _result(facts, json)
        return
    wanted = session.Wanted(
        where, parent, prefix, layers.preset, name, init_from, limit, started, force, several is None, group
    )
    if several is None:
        record = session.start(config, wanted, Judge())
        if group is None or group.first:
            _result(record, json)
        return
    records, code = session.start_several(several, config, wanted, Judge())
    done = [record for record in records if record is not None]
    if json:
        output.result_json({"schema": 1, "runs": done})
    else:
        for record in done:
            output.result_path(str(record["run"]))
    if len(done) > 1:
        runs = shlex.join(str(record["run"]) for record in done)
        output.notice(f"next       vae compare {runs} for mean and spread over the seeds")
    missing = [str(seed) for seed, record in zip(several, records, strict=True) if record is None]
    if missing:
        raise SeedsFailed(f"{len(missing)} of {len(several)} seeds did not finish: {', '.join(missing)}", code or 1)


def _changed(old: RunConfig, layers: Layers, run: str) -> RunConfig:
    """The run's own configuration with the changes asked for, if they are of the kind a run may take."""
    tree = resolve(layers)
    place = shlex.quote(run)
    instead = (
        f"vae train -c {place}/config.yaml with the change starts a new run, "
        f"and --init-from {place} beside it one from these weights, where they fit it"
    )
    if not tree.values:
        return old
    moved = layers._replace(flags={key: flag for key, flag in layers.flags.items() if key != "data.name"})
    if not names_a_run(moved):  # only changes; otherwise the whole command line again, as a scheduler repeats it
        changes, tree = tree, trees.Tree(old.to_tree(), {})
        tree.merge(changes)
    tree.values.setdefault("data", old.to_tree()["data"])
    try:
        new = configs.build(tree)
    except ConfigError as error:
        if not any(key.startswith("model.") for key in layers.flags):  # a slip, and no wish for another model
            raise
        raise ConfigError(
            f"a run is continued with its own configuration; {error.message}", instead, error.more
        ) from None
    new = replace(new, model=models.settled_as(new.model, old.model))
    session.check_given(new, resolve(layers))
    refused = [f"{k}: {a} -> {b}" for k, (a, b) in configs.diff(old, new).items() if not k.startswith(MAY_CHANGE)]
    if refused:
        raise ConfigError("a run is continued with its own configuration; refused: " + "; ".join(refused), instead)
    for key, (a, b) in configs.diff(old, new).items():
        output.notice(f"changed for the rest of the run: {key}: {a} -> {b}")
    return new


def _look(record: Mapping[str, Any]) -> None:
    """What to look at next, in one line."""
    run = shlex.quote(str(record["run"]))
    if record.get("status") == "time limit":
        output.notice(f"next       vae report {run}; vae train --resume {run} goes on from here")
    elif record.get("status") == "finished":
        output.notice(f"next       vae report {run} for all of it as a page, or vae explore {run}")


def _result(record: Mapping[str, Any], json: bool) -> None:
    if "status" in record:
        _look(record)
    if json:
        output.result_json(dict(record))
    else:
        output.result_path(str(record["run"]))


class Judge(session.Judge):
    """What the analysis has to say about a training, while it goes on and at its end."""

    def __init__(self) -> None:
        self._won_since: weakref.WeakKeyDictionary[Model, int] = weakref.WeakKeyDictionary()

    def concern(self, model: Model, record: Mapping[str, Any], config: RunConfig, step: int, last: int) -> str | None:
        hyper = model.hyper(config.train.in_stage(step))
        found = warn_while_training(record.get("kl_j", ()), step, last, hyper, model)
        if not discriminator_wins(record):
            self._won_since.pop(model, None)
        elif found is None and step - self._won_since.setdefault(model, step) >= WON:
            found = (
                f"the discriminator knows every image (D(x) above 0.98, D(G) below 0.02) since step "
                f"{self._won_since[model]:,}: the generator learns little; spectral norm in the discriminator, "
                "instance noise, or a lower learning rate for it may help"
            )
        return found

    def picture(self, model: Model, config: RunConfig) -> bytes | None:
        from vaecli.report import figures

        n = min(config.train.samples, at_once(model.info.shape, 1024))
        if n == 0:
            return None
        device.seed(config.seed, "picture")
        with torch.no_grad():
            try:
                x_BCHW = model.image(model.draw(n))
            except NoPrior:
                return None
        if x_BCHW.shape[1] not in (1, 3):  # its first channel: what `--channels` is for other commands, training lacks
            x_BCHW = x_BCHW[:, :1]
        return figures.grid(x_BCHW.float().cpu().numpy()) if bool(x_BCHW.isfinite().all()) else None

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
        """The latents over (at most `train.eval_images`) held-out images, on stderr, and the verdict; the totals with
        their standard errors, as `analyze` of the same images has them."""
        if stop.signal is not None:
            return None
        model.eval()
        unless_stopped = itertools.takewhile(
            lambda _: stop.signal is None, held_out.batches(at_once(model.info.shape, 500))
        )
        stats, shown, lines, found = final_report(
            model,
            limited(unless_stopped, config.train.eval_images),
            model.hyper(config.train.in_stage(step)),
            title=f"latents over {{images}} images ({held_out.name})",
            factors=factors,
            step=step,
            draws=noise.draws(min(len(held_out), config.train.eval_images)),
        )
        found = with_past(found, past, step, model)
        for table in shown:
            output.table(table.headers, table.rows, styles=table.styles, title=table.title, to_stderr=True)
        for line in lines:
            output.notice(line)
        output.notice(f"verdict: {found.name}", *found.sentences)
        return {**tables.totals(stats), "split": held_out.name, "verdict": found.name}
