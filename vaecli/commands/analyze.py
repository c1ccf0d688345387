"""`vae analyze`: which latents are in use, over a whole split."""

import csv as csv_format
import io
import math
import sys

import torch

from vaecli import checkpoint as checkpoints
from vaecli import data, diagnosis
from vaecli import device as devices
from vaecli import output as streams
from vaecli.errors import ConfigError

FIELDS = ("latent", "mean_mu", "var_mu", "mean_sigma2", "sum", "kl", "status")


def run(
    checkpoint: str,
    split: str | None,
    limit: int | None,
    batch_size: int,
    seed: int,
    device: str,
    json: bool,
    csv: bool,
) -> None:
    """Statistics of each latent, ordered by KL, then totals and a verdict.

    On a terminal everything is on stdout. In a pipe, and with `csv`, stdout has the rows of the latents alone and
    stderr the rest; with `json` stdout has one object with all of it.
    """
    if json and csv:
        raise ConfigError("--json and --csv exclude each other")
    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}; it must be at least 1")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be at least 1")
    loaded = checkpoints.load(checkpoint, devices.pick(device))
    dataset = data.load(loaded.config.data, loaded.info)
    view = dataset.split(split or "test")
    images = len(view) if limit is None else min(limit, len(view))
    instead = f" (there is no split {split or 'test'})" if view.name != (split or "test") else ""
    streams.notice(f"{loaded.info.name}: split {view.name}{instead}, {images:,} of {len(view):,} images")
    model, hyper, names = loaded.model, loaded.model.hyper(loaded.step), loaded.model.latent_names()
    devices.seed(seed, "analyze")
    with torch.inference_mode(), streams.progress("analyzing", images) as advance:
        batches = diagnosis.limited(view.batches(batch_size), images)
        stats = diagnosis.latent_statistics(model, batches, hyper, advance)
    verdict = diagnosis.verdict(
        stats, names, hyper, factors=dataset.varying_factors, step=loaded.step, standard_prior=len(model.groups) == 1
    )
    for name, value in diagnosis.totals(stats).items():
        if isinstance(value, float) and not math.isfinite(value) and stats.n > 1:
            streams.warning(f"{name} is not finite")
    if json:
        streams.result_json({
            "schema": 1,
            "checkpoint": str(loaded.path),
            "step": loaded.step,
            "model": loaded.config.model.name,
            "data": {"name": loaded.info.name, "source": loaded.info.source},
            "split": view.name,
            "n": stats.n,
            "seed": seed,
            "latents": diagnosis.records(stats, names),
            "totals": diagnosis.totals(stats),
            "verdict": {"name": verdict.name, "sentences": verdict.sentences},
        })  # fmt: skip
        return
    if csv:
        text = io.StringIO()
        writer = csv_format.writer(text, lineterminator="\n")
        writer.writerow(FIELDS)
        for record in diagnosis.records(stats, names):
            writer.writerow(["" if record[field] is None else record[field] for field in FIELDS])
        streams.result(text.getvalue().rstrip("\n"))
    else:
        headers, rows, styles = diagnosis.table_rows(stats, names)
        streams.table(headers, rows, styles=styles)
    say = streams.result if sys.stdout.isatty() and not csv else streams.notice
    say(diagnosis.totals_text(stats))
    say(f"verdict: {verdict.name}")
    for sentence in verdict.sentences:
        say(f"  {sentence}")
