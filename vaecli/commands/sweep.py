"""`vae sweep`: many runs of one configuration, a grid or a search, on an engine; what is finished is not run again."""

import json as json_format
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vaecli import config as configs
from vaecli import extras, output, registry
from vaecli.commands import train
from vaecli.commands.compare import direction
from vaecli.errors import ConfigError, SeedsFailed
from vaecli.sweeps import engines, plan
from vaecli.sweeps.engines import Engine
from vaecli.sweeps.plan import Range, Task
from vaecli.training import rundir
from vaecli.training import seeds as several_seeds
from vaecli.training.seeds import Done, Ended

SHOWN = (("ELBO", "elbo"), ("reconstruction", "recon"), ("KL", "kl"))


class Search(NamedTuple):
    """By which library, for what, and how often."""

    kind: str
    objective: str
    trials: int


def run(
    layers: train.Layers,
    base: list[str],
    how: list[str],
    grid_texts: Sequence[str],
    seeds_text: str,
    search: Search | None,
    on: str,
    options: Sequence[str],
    jobs: int | None,
    name: str | None,
    runs_dir: str | None,
    dry_run: bool,
    json: bool,
) -> None:
    """Run every combination of the grid with every seed, or the trials of a search; the sweep's folder on stdout.

    `base` is the command line of `vae train` that all share, `layers` the same, and `how` what of it changes nothing
    in a run's numbers. ConfigError, before anything is
    started, where any of the runs would be refused; SeedsFailed at the end, with a list, where some did not finish.
    """
    if not train.names_a_run(layers):
        raise ConfigError("nothing to train is named", "vae sweep -p beta-vae-dsprites --grid model.beta=1,4,16")
    grid, seeds = plan.parse_grid(grid_texts), several_seeds.parse(seeds_text)
    for key in grid:
        if any(text.partition("=")[0].strip() == key for text in layers.sets) or key in layers.flags:
            raise ConfigError(f"--grid: {key} is set, too", "leave out one of them")
    if search is None and (found := [key for key, values in grid.items() if isinstance(values, Range)]):
        raise ConfigError(f"--grid: {found[0]} is a range, which only --search takes", "give values: KEY=1,4,16")
    tree = train.resolve(layers)
    folder = _folder(layers, tree, grid, name, runs_dir)
    if search is not None:
        _check_search(search, grid)
    lists = {key: _ends(values) if isinstance(values, Range) else list(values) for key, values in grid.items()}
    planned = plan.tasks(lists, seeds)
    for task in {task.sets: task for task in planned}.values():
        _check(layers, task)
    if dry_run:
        count = len(planned) if search is None else search.trials * len(seeds)
        output.notice(f"sweep      {count} runs in {folder}, on {on}")
        lines = [shlex.join(["vae", *task.arguments([*base, *how], folder)]) for task in planned if search is None]
        if json:
            output.result_json({"schema": 1, "sweep": str(folder), "count": count, "commands": lines})
        else:
            output.result(*lines)
        return
    asked: dict[str, Any] = {"base": base, "grid": [*grid_texts], "seeds": seeds_text, "on": on, "options": [*options]}
    asked |= {} if search is None else {"search": search._asdict()}
    plan.check_folder(folder, asked)
    engine, at_once = engines.make(on, _options(options), folder, jobs)
    plan.write(folder, asked)
    if search is None:
        failed = _run_grid(planned, [*base, *how], folder, engine, on)
        facts: dict[str, Any] = {}
    else:
        failed, facts = _run_search(search, grid, seeds, [*base, *how], folder, engine, at_once)
    _report(folder, failed, facts, json)


def _run_grid(planned: list[Task], base: list[str], folder: Path, engine: Engine, on: str) -> list[Done]:
    todo = [task for task in planned if not plan.finished(folder, task)]
    rest = f", {len(planned) - len(todo)} of them finished before" if len(todo) < len(planned) else ""
    output.notice(f"sweep      {len(planned)} runs{rest}, on {on}: {folder}")
    if not todo:
        return []
    output.notice(f"meanwhile  vae runs {shlex.quote(str(folder))} shows how far they are")
    with _counted(len(todo)) as ended:
        return [done for done in engine(_lines(todo, base, folder), ended) if done.code]


def _lines(tasks: Sequence[Task], base: list[str], folder: Path) -> list[tuple[str, list[str]]]:
    """What an engine runs. The runs speak of what is wrong alone: all that they say is in the `train.log` of each."""
    return [(task.name, [*task.arguments(base, folder), "--quiet"]) for task in tasks]


@contextmanager
def _counted(count: int) -> Iterator[Ended]:
    """A bar on a terminal, and a line for each run that ends."""
    seen = 0
    with output.progress("runs", count) as advance:

        def ended(done: Done) -> None:
            nonlocal seen
            seen += 1
            output.notice(f"[{seen}/{count}] {done.name}: {_became(done)}")
            advance(1)

        yield ended


def _became(done: Done) -> str:
    """A run's numbers in a line; where it failed, its exit code."""
    if done.code:
        return f"exit code {_code(done)}"
    try:
        record = json_format.loads(done.out)
        final, verdict = record["final"], record["final"]["verdict"]
        numbers = [f"{label} {final[key]:.4g}" for label, key in SHOWN if final.get(key) is not None]
        if final.get("active_units") is not None:
            numbers.append(f"{final['active_units']} of {final['latents']} active")
        status = [] if record["status"] == "finished" else [f"{record['status']} at step {record['step']:,}"]
        return ", ".join([*status, *numbers, *([verdict] if verdict else [])])
    except (ValueError, KeyError, TypeError):
        return "no numbers"


def _run_search(
    search: Search,
    grid: Mapping[str, Sequence[str] | Range],
    seeds: Sequence[int],
    base: list[str],
    folder: Path,
    engine: Engine,
    at_once: int,
) -> tuple[list[Done], dict[str, Any]]:
    """Trials until there are as many as were asked for: trained, scored by `vae compare`, and told to the study."""
    from vaecli.sweeps.search import Study, Trial

    study = Study(folder, grid, seeds)
    failed: list[Done] = []
    while trials := study.take(max(1, at_once // len(seeds)), search.trials):
        tasks = [task for trial in trials for task in trial.tasks]
        with _counted(len(tasks)) as ended:
            results = {done.name: done for done in engine(_lines(tasks, base, folder), ended)}
        sound: list[Trial] = []
        for trial in trials:
            bad = [results[task.name] for task in trial.tasks if results[task.name].code]
            failed += bad
            if any(done.code in (128 + 2, 128 + 15, 128 + 1) for done in bad):  # asked to stop: the trial goes on later
                return failed, _facts(study, search)
            sound += [] if bad else [trial]
            if bad:
                study.tell(trial, None)
        known = () if search.objective == "elbo" else ("--metrics", search.objective)
        scoring = [
            (f"trial_{t.number}", ["compare", *(str(folder / task.name) for task in t.tasks), *known, "--json", "-q"])
            for t in sound
        ]
        for trial, done in zip(sound, engine(scoring, lambda done: None) if scoring else [], strict=True):
            value = _score(done, search.objective)
            if value is None:
                failed.append(done._replace(code=done.code or 3, error=done.error or f"no {search.objective}"))
            study.tell(trial, value)
            shown = "no value" if value is None else f"{search.objective} {value:.4f}"
            settings = ", ".join(f"{key}={text}" for key, text in trial.values.items())
            output.notice(f"trial {trial.number}: {settings}: {shown}")
    return failed, _facts(study, search)


def _score(done: Done, objective: str) -> float | None:
    try:
        (group,) = json_format.loads(done.out)["groups"]
        value = group["values"][objective]["mean"]
        return None if value is None else float(value)
    except (ValueError, KeyError, TypeError):
        return None


def _facts(study: Any, search: Search) -> dict[str, Any]:
    found, counts = study.best(), study.counts()
    facts: dict[str, Any] = {"objective": search.objective, "trials": counts}
    if found is not None:
        trial, value = found
        facts["best"] = {"trial": trial.number, "values": trial.values, "value": value}
        settings = " ".join(f"-S {shlex.quote(f'{key}={text}')}" for key, text in trial.values.items())
        output.notice(f"best       trial {trial.number}, {search.objective} {value:.4f}: {settings}")
    return facts


# ------------------------------------------------------------------------------------------------------------ arguments


def _check_search(search: Search, grid: Mapping[str, Sequence[str] | Range]) -> None:
    if search.kind != "optuna":
        raise ConfigError(f"--search {search.kind[:40]!r}: there is no such search; there is: optuna")
    if not grid:
        raise ConfigError("--search needs a space to search in", "write --grid model.beta=1..16:log")
    if search.trials < 1:
        raise ConfigError(f"--trials is {search.trials}; it must be at least 1")
    if search.objective != "elbo":
        names = registry.names("metric")
        if search.objective not in names:
            near = registry.nearest(search.objective, ["elbo", *names])
            raise ConfigError(f"--objective: no metric is called {search.objective[:60]!r}{near}")
        if not direction(search.objective):
            raise ConfigError(f"--objective {search.objective}: larger is not better", "take mig, dci or elbo")
    extras.require("optuna", "sweep", "--search optuna")


def _ends(values: Range) -> list[str]:
    """The ends of a range, which must do for what is between them."""
    return [f"{int(v)}" if values.whole else f"{v:.6g}" for v in (values.low, values.high)]


def _check(layers: train.Layers, task: Task) -> None:
    """ConfigError where `vae train` would refuse the settings."""
    changed = layers._replace(sets=[*layers.sets, *task.sets])
    tree = train.resolve(changed)
    train.check_flags(changed, tree)
    for text in task.sets:  # what is wrong with them is said of the flag that gave them
        key = tuple(text.partition("=")[0].split("."))
        tree.origins[key] = "--grid"
    configs.build(tree)


def _folder(
    layers: train.Layers, tree: Any, grid: Mapping[str, object], name: str | None, runs_dir: str | None
) -> Path:
    if name is None:
        keys = [key.rpartition(".")[2] for key in grid] or ["seeds"]
        name = "-".join([train.run_prefix(layers.preset, tree), *keys])[:120]
    rundir.check_name(name)
    return (Path(runs_dir) if runs_dir else rundir.runs_dir()) / name


def _options(texts: Sequence[str]) -> dict[str, str]:
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--option {text[:80]!r}: not KEY=VALUE", "--option slurm_partition=gpu")
        options[key] = value
    return options


def _report(folder: Path, failed: list[Done], facts: Mapping[str, Any], json: bool) -> None:
    """The folder on stdout; failures, if any, as an error at the end."""
    if json:
        listed = [{"run": done.name, "exit_code": _code(done), "error": done.error} for done in failed]
        runs = [str(path) for path in plan.runs(folder)]
        output.result_json({"schema": 1, "sweep": str(folder), "runs": runs, "failed": listed, **facts})
    else:
        output.result_path(str(folder))
    if failed:
        lines = [f"{done.name}: exit code {_code(done)}{': ' + done.error if done.error else ''}" for done in failed]
        raise SeedsFailed(f"{len(failed)} of the runs did not finish:", _code(failed[0]), lines)
    output.notice(f"next       vae compare {shlex.quote(str(folder))}")


def _code(done: Done) -> int:
    return done.code if done.code > 0 else 128 - done.code
