"""`vae analyze`: which latents are in use, over a whole split; metrics and a full diagnosis of q(z)."""

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vaecli import data, registry
from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import analyze as analysis
from vaecli.analysis import codes, diagnosis, metrics, tables, told
from vaecli.analysis import control as controls
from vaecli.analysis.analyze import Analysis, CodesAnalysis
from vaecli.analysis.quality import NOTHING, Request
from vaecli.data.orders import generator
from vaecli.errors import ConfigError, FailedVerdict
from vaecli.training import checkpoint as checkpoints


def run(
    checkpoint: str,
    split: str | None,
    limit: int | None,
    metric_names: str | None = None,
    diagnose: bool = False,
    fail_if: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
    csv: bool = False,
    data_at: str | None = None,
    asked: Request = NOTHING,
    control: bool = False,
) -> None:
    """Statistics of each latent, ordered by KL, then totals and a verdict; of a checkpoint, or of codes in an `.npz`.

    On a terminal all of it is on stdout as tables: latents, totals, diagnosis, metrics, verdict. In a pipe stdout has
    one table alone, tab-separated with a header, and stderr the rest (a quiet command: what options asked for of it).
    The table has the metrics where they are asked for; else, and with `diagnose`, the latents, seven columns always and
    those of the diagnosis after them. With `csv` it is the same table with more digits. With `json` stdout has one
    object with everything.

    With `control` also how far labels control what the model makes (`analysis.control`), as the table of a pipe where
    nothing else is asked for; NoLabels where nothing can be asked for.

    FailedVerdict, after the output, if the verdict is one that `fail_if` names.
    """
    if json and csv:
        raise ConfigError("--json and --csv exclude each other")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}; it must be at least 1")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be at least 1")
    bad_verdicts, names = _verdicts(fail_if), metrics.chosen(metric_names)
    lenient = "all" in (metric_names or "").split(",")
    if bad_verdicts & {"under-regularised", "prior mismatch"} and not diagnose:
        streams.notice("without --diagnosis a mismatch with the prior is only seen in means and variances")
    found: Analysis | CodesAnalysis
    controlled: controls.Control | None = None
    if checkpoint.lower().endswith(".npz"):
        if asked.samples is not None or asked.nll is not None:
            raise ConfigError("--samples and --nll are for checkpoints; a file of codes has no model")
        if control:
            raise ConfigError("--control is for checkpoints; a file of codes has no model")
        if data_at is not None or batch_size is not None:
            idle = "--data" if data_at is not None else "--batch-size"
            raise ConfigError(f"{idle} is for checkpoints; a file of codes is of no images")
        found = _of_codes(checkpoint, split, limit, names, diagnose, seed, lenient)
    else:
        loaded = checkpoints.load(checkpoint, devices.pick(device), data_at)
        dataset = data.load(loaded.config.data, loaded.info)
        subject = controls.subject(loaded, dataset, seed, asked.density) if control else None
        found = analysis.analyze(
            loaded, dataset, split, limit, metric_names=names, diagnose=diagnose, batch_size=batch_size, seed=seed,
            lenient=lenient, asked=asked,
        )  # fmt: skip
        controlled = None if subject is None else controls.measure(loaded, subject, found.view)
    for name, value in tables.totals(found.stats).items():
        if isinstance(value, float) and not math.isfinite(value) and found.stats.n > 1:
            streams.warning(f"{name} is not finite")
    if isinstance(found, Analysis):
        for sentence in found.judged.warnings():
            streams.warning(sentence)
    metrics_alone = bool(names) and not diagnose
    control_alone = controlled is not None and not names and not diagnose
    control_rows = [] if controlled is None else controls.rows(controlled)
    if controlled is not None:
        streams.notice(f"read by {controlled.subject.reader.text()}")
    if json:
        record = found.record()
        streams.result_json(record if controlled is None else {**record, "control": controlled.record()})
    elif csv:
        table: list[Sequence[object]] = [controls.HEADERS, *control_rows]
        if not control_alone:
            table = _metrics_cells(found) if metrics_alone else _cells(found.latents)
        streams.result(*streams.csv_lines(table))
        _rest(found, streams.notice, to_stderr=True, with_metrics=not metrics_alone)
    elif sys.stdout.isatty():
        _latents(found)
        if control_rows:
            streams.table(controls.HEADERS, control_rows, left=3)
        streams.prose(tables.totals_text(found.stats))
        _rest(found, streams.prose, to_stderr=False, totals=False)
    elif control_alone:
        streams.table(controls.HEADERS, control_rows)
        _rest(found, streams.notice, to_stderr=True)
    else:
        if control_rows:
            streams.table(controls.HEADERS, control_rows, to_stderr=True, asked=True)
        if metrics_alone:
            streams.table(tables.METRIC_HEADERS, tables.metric_rows(found.results))
        else:
            _rows(found.latents)
        _rest(found, streams.notice, to_stderr=True, with_metrics=not metrics_alone)
    if found.verdict.name in bad_verdicts:
        raise FailedVerdict(f"{checkpoint}: the verdict is {found.verdict.name}, which --fail-if names")


def _of_codes(
    path: str, split: str | None, limit: int | None, names: list[str], diagnose: bool, seed: int, lenient: bool
) -> CodesAnalysis:
    if split is not None:
        raise ConfigError("--split is for checkpoints; codes in a file have no splits")
    read = codes.read(path)
    if limit is not None and limit < len(read):
        # A random part, the same each time, as of a checkpoint's images: rows may stand in order.
        order = torch.randperm(len(read), generator=generator("sample", len(read))).numpy()
        read = read.rows(np.sort(order[:limit]))
    prior = "KL and q(z) are against N(0, I)" if read.logvar_ND is not None else "no logvar: neither KL nor density"
    streams.notice(f"{path}: {len(read):,} codes of {read.latents} latents; {prior}")
    return analysis.analyze_codes(read, metric_names=names, diagnose=diagnose, seed=seed, lenient=lenient)


def _verdicts(text: str | None) -> set[str]:
    """The verdicts in `collapsed,partly-collapsed`, spaces or dashes; ConfigError with the nearest for another."""
    known = {_plain(name): name for name in diagnosis.VERDICTS}
    chosen = set()
    for word in (text or "").split(",") if text is not None else ():
        if _plain(word) not in known:
            nearest = registry.nearest(word.strip().lower(), known.values())
            raise ConfigError(f"--fail-if: no verdict is called {word.strip()[:80]!r}{nearest}")
        chosen.add(known[_plain(word)])
    return chosen


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").replace("_", " ").replace("regularized", "regularised").split())


def _cells(latents: list[tables.Record]) -> list[Sequence[object]]:
    """The latents for CSV, below their header."""
    fields = tables.columns(latents)
    rows = [["" if record.get(field) is None else record[field] for field in fields] for record in latents]
    return [fields, *rows]


def _metrics_cells(found: Analysis | CodesAnalysis) -> list[Sequence[object]]:
    """The metrics for CSV, below their header."""
    return [tables.METRIC_HEADERS, *tables.metric_rows(found.results, digits=9)]


def _rows(latents: list[tables.Record]) -> None:
    """The latents on a pipe."""
    fields = tables.columns(latents)
    headings = [tables.HEADINGS.get(field, field) for field in fields]
    streams.table(headings, [[_cell(field, record.get(field)) for field in fields] for record in latents])


def _cell(field: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return tables.cell(field, value)


def _latents(found: Analysis | CodesAnalysis) -> None:
    """The latents on a terminal."""
    for table in tables.level_tables(found.stats, [], found.latents):
        streams.table(table.headers, table.rows, styles=table.styles, title=table.title)
    styles = ["dim" if record["status"] in tables.DIM else None for record in found.latents]
    for title, headers, rows in tables.latent_tables(found.latents):
        streams.table(headers, rows, styles=styles, title=title)


def _rest(
    found: Analysis | CodesAnalysis,
    say: Callable[[str], None],
    *,
    to_stderr: bool,
    totals: bool = True,
    with_metrics: bool = True,
) -> None:
    """All but the latents."""
    if totals:
        say(tables.totals_text(found.stats))
    if isinstance(found, Analysis) and (about := tables.nll_text(found.loaded.model)) is not None:
        say(about)
    for line in tables.level_texts(found.stats):
        say(line)
    if isinstance(found, Analysis) and (facts := found.loaded.model.facts()):
        say(tables.facts_text(facts))
    if found.diagnosis:
        rows = tables.diagnosis_rows(found.diagnosis)
        streams.table(("diagnosis", ""), rows, to_stderr=to_stderr, asked=True, left=2)
        if (leaks := found.diagnosis.get("leak")) is not None:
            table = tables.leak_table(leaks, found.latents)
            streams.table(table.headers, table.rows, styles=table.styles, title=table.title, to_stderr=to_stderr)
    if isinstance(found, Analysis):
        for title, rows in found.judged.tables():
            streams.table((title, ""), rows, to_stderr=to_stderr, asked=True, left=2)
    if found.results and with_metrics:
        streams.table(tables.METRIC_HEADERS, tables.metric_rows(found.results), to_stderr=to_stderr, asked=True)
    if found.factors:
        streams.table(told.HEADERS, told.rows(found.factors), to_stderr=to_stderr)
    if settings := tables.settings_texts(found.results):
        say(f"settings of the metrics, seed {found.seed}:")
        for line in settings:
            say(f"  {line}")
    for result in found.results:
        for note in (*(() if result.score is None else result.score.notes), *filter(None, [result.problem])):
            say(f"  {result.name}: {note}")
    say(f"verdict: {found.verdict.name}")
    for sentence in found.verdict.sentences:
        say(f"  {sentence}")
