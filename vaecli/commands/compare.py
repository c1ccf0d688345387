"""`vae compare`: several runs side by side, the seeds of one setting as mean and standard deviation."""

import hashlib
import json as json_format
import math
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vaecli import config as configs
from vaecli import data, registry
from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import analyze as analysis
from vaecli.analysis import codes as code_files
from vaecli.analysis import metrics
from vaecli.analysis.codes import Codes
from vaecli.analysis.tables import number_text
from vaecli.batch import DataInfo
from vaecli.config import RunConfig
from vaecli.errors import ConfigError
from vaecli.training import checkpoint as checkpoints

NARROW = 12  # characters of a run's name at least; the rest wraps
PADDING = 3  # between two columns
IMAGES_OF_SEVERAL = 10_000  # a metric of several models gets so many images of each


class Column(NamedTuple):
    """A number to compare: `better` is 1 where larger is better, -1 where smaller is, 0 where neither."""

    key: str
    heading: str
    digits: int
    better: int


TOTALS = (
    Column("elbo", "ELBO (nats)", 2, 1),
    Column("recon", "recon (nats)", 2, -1),
    Column("kl", "KL (nats)", 2, 0),
    Column("active_units", "active", 0, 0),
)


@dataclass
class Run:
    """One checkpoint and what was measured of it; `values` by column, None where there is none."""

    given: str
    file: Path
    config: RunConfig
    info: DataInfo
    step: int
    name: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    over: str = ""  # in words, the images it was measured over
    images: str = ""  # the same as a checksum: equal where the images are
    n: int = 0
    codes: Codes | None = None
    likelihood: str | None = None  # in words, with its settings; None where there is none


class Summary(NamedTuple):
    """Over the seeds of a group. `mean` is None unless every seed has the value, `sd` (ddof 1) with fewer than two."""

    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed; `settings` are the values in which groups differ."""

    runs: list[Run]
    settings: dict[str, Any]
    values: dict[str, Summary]

    @property
    def name(self) -> str:
        more = f" +{len(self.runs) - 1}" if len(self.runs) > 1 else ""
        return self.runs[0].name + more


def run(
    paths: list[str],
    split: str | None,
    limit: int | None,
    metrics_text: str | None,
    seed: int,
    device: str,
    json: bool,
    csv: bool,
) -> None:
    """One row for all runs of one configuration, step and data set, whatever their seeds: ELBO, reconstruction, KL,
    active units and the headline of each metric, and the settings in which the rows differ.

    A metric of several models (`udr`) is taken over the runs of a row. The best mean of a column is marked on a
    terminal; in a pipe, and with `csv`, mean and standard deviation have columns of their own. `json` has the values
    of every run too.
    """
    names = metrics.chosen(metrics_text, several=True)
    several = [name for name in names if getattr(registry.load("metric", name), "SEVERAL", False)]
    alone = [name for name in names if name not in several]
    lenient = "all" in (metrics_text or "").split(",")
    columns = [*TOTALS, *(Column(name, name, 3, _direction(name)) for name in names)]
    runs = _read(paths)
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
    groups = _summarised(grouped, columns)
    comparable = _warnings(runs)
    best = {c.key: _best(c, groups) if comparable.get(c.key, comparable["all"]) else [] for c in columns}
    if json:
        streams.result_json({**_record(groups, columns, best, seed), "comparable": comparable["all"]})
    elif csv:
        headings, rows = _flat(groups, columns, None)
        streams.result(*streams.csv_lines([headings, *rows]))
    elif sys.stdout.isatty():
        _draw(groups, columns, best)
    else:
        headings, rows = _flat(groups, columns, "n/a")
        streams.table(headings, rows)


# ---------------------------------------------------------------------------------------------------------------- runs


def _read(paths: Sequence[str]) -> list[Run]:
    """What the checkpoints are, from their headers alone: a wrong path costs no time. The same file counts once."""
    runs: dict[Path, Run] = {}
    for given in paths:
        file = checkpoints.resolve(given)
        same = file.resolve()
        if same in runs:
            streams.notice(f"{given}: is {runs[same].given}, already in the comparison")
            continue
        config, info, step = checkpoints.read_config(file, checkpoints.read_header(file)[0])
        runs[same] = Run(given, file, config, info, step)
    short = [_short_name(run) for run in runs.values()]
    counts = Counter(short)
    for run, name in zip(runs.values(), short, strict=True):
        run.name = name if counts[name] == 1 else run.given
    return list(runs.values())


def _short_name(run: Run) -> str:
    """The name of the run directory where the file is in one, else what was given."""
    folders = run.file.absolute().parts
    return folders[-4] if len(folders) > 4 and folders[-3] == "checkpoints" else run.given


def _grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of the same configuration but for the seed, the same step and the same data, in order of appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        tree = {**run.config.to_tree(), "seed": None}
        groups.setdefault(json_format.dumps([tree, run.step, run.info.source], sort_keys=True), []).append(run)
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
    if result.score is not None and not math.isfinite(result.score.value):
        streams.notice(f"{run.name}: no {result.name}: {' '.join(result.score.notes)}")
    if result.problem is not None:
        streams.notice(f"{run.name}: no {result.name}: {result.problem}")


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


def _direction(metric: str) -> int:
    """Scores that need no factors are best for a model that has learnt nothing: no run wins by them."""
    module = registry.load("metric", metric)
    return 1 if "factors" in getattr(module, "NEEDS", ()) or getattr(module, "SEVERAL", False) else 0


# -------------------------------------------------------------------------------------------------------------- numbers


def _summarised(grouped: Sequence[list[Run]], columns: Sequence[Column]) -> list[Group]:
    first = grouped[0][0]
    differing = {key for members in grouped for key in configs.diff(first.config, members[0].config)} - {"seed"}
    groups = []
    for members in grouped:
        flat = dict(configs.flat(members[0].config.to_tree()))
        settings = {key: flat.get(key) for key in sorted(differing)}
        if any(other[0].step != first.step for other in grouped):
            settings["step"] = members[0].step
        values = {c.key: summary([run.values.get(c.key) for run in members]) for c in columns}
        groups.append(Group(members, settings, values))
    if any(one is not other and one.settings == other.settings for one in groups for other in groups):
        for group in groups:  # the same settings, on images that have changed
            group.settings["data.sha256"] = str(group.runs[0].info.source.get("sha256"))[:8]
    return groups


def summary(values: Sequence[float | None]) -> Summary:
    """Mean and sample standard deviation; a value that is missing or not finite leaves nothing to average."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return Summary(None, None)
    return Summary(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def _best(column: Column, groups: Sequence[Group]) -> list[int]:
    """The groups whose mean is best, more than one where they are equal; none where there is nothing to compare."""
    means = {i: m for i, group in enumerate(groups) if (m := group.values[column.key].mean) is not None}
    if not column.better or len(means) < 2:
        return []
    top = max(column.better * mean for mean in means.values())
    return [i for i, mean in means.items() if column.better * mean == top]


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
    words: str = own.text(model.hyper(loaded.step))
    return words.replace(" likelihood", "")


# --------------------------------------------------------------------------------------------------------------- output


def _flat(groups: Sequence[Group], columns: Sequence[Column], missing: str | None) -> tuple[list[str], list[list[str]]]:
    """Headings and rows with mean and standard deviation apart; rounded where `missing` says what stands for none,
    else with all digits."""
    keys = list(groups[0].settings)
    headings = ["run", "seeds", *keys, *(text for c in columns for text in (c.key, f"{c.key}_sd"))]
    rows = []
    for group in groups:
        row = [group.name, str(len(group.runs)), *(_setting_text(group.settings[key]) for key in keys)]
        for column in columns:
            for value in group.values[column.key]:
                if missing is None:
                    row.append("" if value is None else repr(value))
                else:
                    row.append(missing if value is None else f"{value:.{_digits(column, group)}f}")
        rows.append(row)
    return headings, rows


def _digits(column: Column, group: Group) -> int:
    """A mean of counts needs a decimal that a count does not."""
    return max(column.digits, 1) if len(group.runs) > 1 else column.digits


def _setting_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json_format.dumps(value)


def _cell(value: Summary, digits: int) -> str:
    spread = "" if value.sd is None else f" +- {value.sd:.{digits}f}"
    return f"{number_text(value.mean, digits)}{spread}"


def _draw(groups: Sequence[Group], columns: Sequence[Column], best: dict[str, list[int]]) -> None:
    """On a terminal: the best of each column bold and with a star. Where it is too narrow for all columns they go
    into several tables, one below the other, each with the names of the runs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def number(i: int, column: Column) -> Text:
        text = _cell(groups[i].values[column.key], _digits(column, groups[i]))
        return Text(f"{text} *", style="bold") if i in best[column.key] else Text(text)

    parts = [
        [Text(key), *(Text(streams.safe(_setting_text(g.settings[key]))) for g in groups)] for key in groups[0].settings
    ]
    parts.append([Text("seeds"), *(Text(str(len(group.runs))) for group in groups)])
    parts += [[Text(c.heading), *(number(i, c) for i in range(len(groups)))] for c in columns]
    names = [Text(streams.safe(group.name)) for group in groups]
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    width_of_names = min(max(map(len, names)), max(NARROW, console.width // 3))
    while parts:
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        drawn.add_column(Text("run"), overflow="fold")
        taken: list[list[Text]] = []
        left = console.width - width_of_names - 2
        while parts and (not taken or left >= max(map(len, parts[0])) + PADDING):
            left -= max(map(len, parts[0])) + PADDING
            taken.append(parts.pop(0))
        for heading, *_ in taken:
            drawn.add_column(heading, justify="right", no_wrap=True)
        for name, *cells in zip(names, *(cells for _, *cells in taken), strict=True):
            drawn.add_row(name, *cells)
        console.print(drawn)
    if any(best.values()):
        streams.notice("* the best mean of its column")
    if any(len(group.runs) > 1 for group in groups):
        streams.notice("+- the standard deviation over seeds (n - 1)")


def _record(
    groups: Sequence[Group], columns: Sequence[Column], best: dict[str, list[int]], seed: int
) -> dict[str, Any]:
    runs = [
        {
            "name": run.name, "checkpoint": str(run.file), "group": i, "seed": run.config.seed, "step": run.step,
            "model": run.config.model.name, "data": run.info.name, "over": run.over, "n": run.n,
            "values": run.values, "metrics": run.metrics,
        }
        for i, group in enumerate(groups)
        for run in group.runs
    ]  # fmt: skip
    return {
        "schema": 1,
        "seed": seed,
        "columns": [c.key for c in columns],
        "runs": runs,
        "groups": [
            {
                "name": group.name,
                "runs": [run.name for run in group.runs],
                "seeds": [run.config.seed for run in group.runs],
                "settings": group.settings,
                "values": {key: value._asdict() for key, value in group.values.items()},
            }
            for group in groups
        ],
        "best": best,
    }
