"""`vae compare`: several runs side by side, the seeds of one setting as mean and standard deviation."""

import hashlib
import json as json_format
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vaecli import config as configs
from vaecli import data, hub, registry
from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import analyze as analysis
from vaecli.analysis import codes as code_files
from vaecli.analysis import metrics
from vaecli.analysis.codes import Codes
from vaecli.analysis.metrics import beta_vae
from vaecli.commands import _artifact, _side_by_side
from vaecli.commands._groups import Column, Run, Summary, best_of, summarised
from vaecli.commands._labels import IDLE
from vaecli.errors import ConfigError, InputError
from vaecli.sweeps import plan
from vaecli.training import checkpoint as checkpoints

IMAGES_OF_SEVERAL = 10_000  # a metric of several models gets so many images of each


TOTALS = (
    Column("elbo", "ELBO (nats)", 2, 1),
    Column("recon", "recon (nats)", 2, -1),
    Column("kl", "KL (nats)", 2, 0),
    Column("active_units", "active", 0, 0),
)


def run(
    paths: list[str],
    split: str | None,
    limit: int | None,
    metrics_text: str | None,
    seed: int,
    device: str,
    json: bool,
    csv: bool,
    data_at: str | None = None,
    form: str | None = None,
    plot: str | None = None,
    force: bool = False,
) -> None:
    """One row for all runs of one configuration, step and data set, whatever their seeds: ELBO, reconstruction, KL,
    active units and the headline of each metric, and the settings in which the rows differ.

    A metric of several models (`udr`) is taken over the runs of a row. The best mean of a column is marked on a
    terminal; in a pipe, and with `csv`, mean and standard deviation have columns of their own. `json` has the values
    of every run too; `form` is `latex`, `markdown` or `csv`, and `plot` an SVG file that is written as well, with the
    columns against the setting in which the rows differ. InputError, after the output, where a run could not be used,
    as one that has not saved yet.
    """
    if form not in (None, "csv", "latex", "markdown"):
        raise ConfigError(f"--format {str(form)[:40]}: no such format", "latex, markdown or csv")
    if json and form is not None:
        raise ConfigError("--json and --format: give one of them")
    csv = csv or form == "csv"
    if plot is not None:
        plot = _artifact.check(plot, plot, force, json, text=True, endings=(".svg",))
        if plot == "-":
            raise ConfigError("--plot needs the name of a file", "stdout has the table")
    names = metrics.chosen(metrics_text, several=True)
    several = [name for name in names if getattr(registry.load("metric", name), "SEVERAL", False)]
    alone = [name for name in names if name not in several]
    lenient = "all" in (metrics_text or "").split(",")
    columns = [*TOTALS, *(Column(name, name, 3, direction(name)) for name in names)]
    runs, unusable = _read(paths, data_at)
    grouped = _grouped(runs)
    together = {run.file for members in grouped if several and len(members) > 1 for run in members}
    picked = devices.pick(device)
    done = 0
    for members in _by_data(runs):
        dataset = data.load(members[0].config.data, members[0].info)
        for run in members:
            done += 1
            streams.notice(f"run {done} of {len(runs)}: {run.name}")
            loaded = checkpoints.load(run.file, picked)
            found = analysis.analyze(loaded, dataset, split, limit, metric_names=alone, seed=seed, lenient=lenient)
            _take(run, found)
            if run.file in together:
                run.codes = _sample(found.codes or code_files.encode(loaded, found.view, limit), seed)
    for name in several:
        _add_several(name, grouped, seed, lenient)
    groups = summarised(grouped, columns)
    for name in (name for name in names if name in metrics.Z_DIFF):
        half = Column(f"{name}-best-half", f"{name}, best half", 3, 1)
        columns.insert([c.key for c in columns].index(name) + 1, half)
        for group in groups:
            group.values[half.key] = _best_half([score for run in group.runs for score in run.scores.get(name, [])])
    _say_pca(runs)
    comparable = _warnings(runs)
    best = {c.key: best_of(c, groups) if comparable.get(c.key, comparable["all"]) else [] for c in columns}
    if json:
        streams.result_json({**_side_by_side.record(groups, columns, best, seed), "comparable": comparable["all"]})
    elif csv:
        headings, rows = _side_by_side.flat(groups, columns, None)
        streams.result(*streams.csv_lines([headings, *rows]))
    elif form is not None:
        streams.result(*_side_by_side.formatted(groups, columns, best, form))
        _side_by_side.legend(groups, columns, best, "bold:")
    elif sys.stdout.isatty():
        _side_by_side.draw(groups, columns, best)
    else:
        headings, rows = _side_by_side.flat(groups, columns, "n/a")
        streams.table(headings, rows)
    if plot is not None:
        _artifact.write(plot, plot, _side_by_side.plot(groups, columns).encode(), force)
        streams.notice(f"plot       {plot}")
    if unusable:
        raise InputError(f"left out: {', '.join(unusable)}")


# ---------------------------------------------------------------------------------------------------------------- runs


def _read(paths: Sequence[str], data_at: str | None = None) -> tuple[list[Run], list[str]]:
    """What the checkpoints are, from their headers alone, and the paths that cannot be used, each of them warned of.
    The same file counts once. InputError where none can be used."""
    runs: dict[Path, Run] = {}
    problems: list[InputError] = []
    unusable: list[str] = []
    for given in _with_runs_of_sweeps(paths):
        if not hub.is_name(given) and not os.path.lexists(given):
            checkpoints.resolve(given)  # which is an error: a slip of the hand, and no run that has not saved yet
        try:
            file = checkpoints.resolve(given)
            metadata = checkpoints.read_header(file)[0]
            config, info, step = checkpoints.read_config(file, metadata)
            origin = checkpoints.read_origin(file, metadata)
            if data_at is not None:
                config = replace(config, data=data.elsewhere(config.data, info, data_at))
        except InputError as error:
            problems.append(error)
            unusable.append(given)
            continue
        same = file.resolve()
        if same in runs:
            streams.notice(f"{given}: is {runs[same].given}, already in the comparison")
        else:
            runs[same] = Run(given, file, config, info, step, origin=origin)
    if problems and not runs:
        raise problems[0]
    for problem in problems:
        streams.warning(f"{problem.message}; left out of the comparison")
    short = [_short_name(run) for run in runs.values()]
    counts = Counter(short)
    for run, name in zip(runs.values(), short, strict=True):
        run.name = name if counts[name] == 1 else run.given
    return list(runs.values()), unusable


def _with_runs_of_sweeps(paths: Sequence[str]) -> list[str]:
    """The paths, the folder of a sweep standing for all of its runs; InputError where it has none yet."""
    found = []
    for given in paths:
        if hub.is_name(given) or not plan.is_sweep(Path(given)):
            found.append(given)
            continue
        runs = [str(path) for path in plan.runs(Path(given))]
        if not runs:
            raise InputError(f"{given}: the sweep has no run yet")
        found += runs
    return found


def _short_name(run: Run) -> str:
    """The name of the run directory where the file is in one, else what was given."""
    folders = run.file.absolute().parts
    return folders[-4] if len(folders) > 4 and folders[-3] == "checkpoints" else run.given


def _grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of the same configuration but for the seed, the same step, data and origin, in order of appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        told = {key: value for key, value in configs.flat(run.config.to_tree()) if key not in ("seed", *IDLE)}
        groups.setdefault(
            json_format.dumps([told, run.step, run.info.source, (run.origin or {}).get("sha256")], sort_keys=True), []
        ).append(run)
    for members in groups.values():
        for one, seed in ((run, run.config.seed) for run in members):
            twin = next(run for run in members if run.config.seed == seed)
            if twin is not one:
                streams.warning(f"{one.name} has the seed of {twin.name} ({seed}): they are no independent runs")
    return list(groups.values())


def _by_data(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that share a data set, so that it is loaded once."""
    parts: dict[str, list[Run]] = {}
    for run in runs:
        wanted = run.config.data.model_dump(mode="json")
        key = json_format.dumps([wanted, run.info.shape, run.info.source.get("sha256")], sort_keys=True)
        parts.setdefault(key, []).append(run)
    return list(parts.values())


def _take(run: Run, found: analysis.Analysis) -> None:
    """The numbers that are compared, so that model and data can be let go of."""
    stats, view = found.stats, found.view
    active = None if stats.active is None else float(stats.active)
    run.values = {"elbo": stats.elbo, "recon": stats.recon, "kl": stats.kl, "active_units": active}
    for key, value_N in (("elbo", stats.elbo_N), ("recon", stats.recon_N)):
        if value_N is not None and run.values[key] is not None:
            run.per_image[key] = value_N.numpy()
    run.likelihood = likelihood_of(found.loaded)
    for result in found.results:
        _keep(run, result)
    info = view.dataset.info
    run.n, run.over = stats.n, f"{info.name} {view.name}, {stats.n:,} images"
    index_N = view.indices[: stats.n].cpu().numpy()
    run.images = f"{info.source.get('sha256')} {hashlib.sha256(index_N.tobytes()).hexdigest()}"


def _keep(run: Run, result: metrics.Result) -> None:
    run.values[result.name] = None if result.score is None else result.score.value
    run.metrics.append(result.record())
    if result.score is not None and result.name in metrics.Z_DIFF:
        run.scores[result.name] = list(result.score.settings.get("accuracies", [result.score.value]))
    if result.score is not None and not math.isfinite(result.score.value):
        streams.notice(f"{run.name}: no {result.name}: {' '.join(result.score.notes)}")
    if result.problem is not None:
        streams.notice(f"{run.name}: no {result.name}: {result.problem}")


def _best_half(scores: Sequence[float]) -> Summary:
    """Of the better half of all scores of a group, as Higgins et al. 2017 report z_diff; None of a single score."""
    if len(scores) < 2 or not all(map(math.isfinite, scores)):
        return Summary(None, None)
    mean, deviation = beta_vae.best_half(scores)
    return Summary(mean, deviation if math.isfinite(deviation) else None)


def _say_pca(runs: Sequence[Run]) -> None:
    """What principal components of the same images score, once for each set of images."""
    for run in {run.images: run for run in reversed(runs)}.values():
        found = {m["name"]: next(iter(m["pca"].values())) for m in run.metrics if m["pca"]}
        if found:
            scores = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            streams.notice(f"PCA of the same images ({run.over}), without training: {scores}")


def _sample(codes: Codes, seed: int) -> Codes:
    """A part of many rows, the same of all runs over the same images."""
    if len(codes) <= IMAGES_OF_SEVERAL:
        return codes
    return codes.rows(np.random.default_rng(seed).permutation(len(codes))[:IMAGES_OF_SEVERAL])


def _add_several(name: str, grouped: Sequence[Sequence[Run]], seed: int, lenient: bool) -> None:
    """A metric of the runs of a group together: a score for each of them."""
    metric = registry.load("metric", name)
    for members in grouped:
        scores, problem = [None] * len(members), "it needs two or more seeds of one setting"
        if len(members) > 1:
            try:
                scores = metric.score_models([run.codes for run in members], seed)
            except ConfigError as error:  # its library is missing
                if not lenient:
                    raise
                problem = str(error)
        for run, score in zip(members, scores, strict=True):
            _keep(run, metrics.Result(name, score, problem=problem if score is None else None))


def direction(metric: str) -> int:
    """Scores that need no factors are best for a model that has learnt nothing: no run wins by them."""
    module = registry.load("metric", metric)
    return 1 if "factors" in getattr(module, "NEEDS", ()) or getattr(module, "SEVERAL", False) else 0


# ---------------------------------------------------------------------------------------------------------- comparable


def _warnings(runs: Sequence[Run]) -> dict[str, bool]:
    """Say what makes numbers not comparable; by column key, and `all` for the others, whether they are."""
    comparable = {"all": len({run.images for run in runs}) == 1}
    if not comparable["all"]:
        over = {run.images: f"{run.over} ({run.name})" for run in reversed(runs)}
        streams.warning(f"not comparable, as measured over different images: {'; '.join(reversed(over.values()))}")
    likelihoods = {run.likelihood: run.name for run in reversed(runs)}
    if len(likelihoods) > 1:
        named = "; ".join(f"{words or 'none'} ({run})" for words, run in reversed(likelihoods.items()))
        streams.warning(f"ELBO and reconstruction are not comparable between likelihoods: {named}")
        comparable.update(elbo=False, recon=False)
    return comparable


def likelihood_of(loaded: checkpoints.Loaded) -> str | None:
    """What a model's log p(x|z) is, in words, its settings at the checkpoint included; None without one.

    A number that was learned or follows the error is not told: it is a result, and no choice of another density.
    """
    model = loaded.model
    if not model.has_likelihood:
        return None
    own = getattr(model, "likelihood", None)
    if own is None:
        return f"that of {model.config.name}"
    words: str = own.text(loaded.hyper)
    return words.replace(" likelihood", "")
