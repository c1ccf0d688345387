"""`vae report`: the whole analysis of a checkpoint as one HTML page."""

import math
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaecli import __version__, data, paths, registry, safe_files
from vaecli import config as configs
from vaecli import device as devices
from vaecli import output as streams
from vaecli import report as html
from vaecli.analysis import analyze as analysis
from vaecli.analysis import codes, draws, tables, traversal
from vaecli.analysis import metrics as metric_driver
from vaecli.analysis.analyze import Analysis
from vaecli.commands import _artifact, _control, explore, sample, traverse
from vaecli.models.base import NoPrior
from vaecli.report import offline, profiles
from vaecli.report.explorer import Exploration
from vaecli.training import checkpoint as checkpoints
from vaecli.training import rundir
from vaecli.training.checkpoint import Loaded

DEFAULT_NAME = "report.html"
RECONSTRUCTED, SAMPLED, STEPS, RANGE = 16, 32, 11, 3.0
ENCODED = 20_000  # images behind maps and marginals where the analysis needed no codes
PART = 2_000  # images of a split that are analyzed unless all are asked for
CARRIED = 8 << 20  # bytes of weights that a report takes along to be explored
SLOW = ("dci-sklearn", "edi", "infomec")  # metrics that alone take longer than the rest together
RECORDED = {
    "vaecli": "vae", "commit": "commit", "python": "Python", "torch": "torch", "cuda": "CUDA", "cudnn": "cuDNN",
    "platform": "system", "device": "device", "preset": "preset", "status": "state of the run", "started": "started",
}  # fmt: skip


def run(
    checkpoint: str,
    output: str | None,
    split: str | None,
    limit: int | None,
    metrics: str | None,
    seed: int,
    device: str,
    force: bool,
    json: bool,
    data_at: str | None = None,
    full: bool = False,
) -> None:
    """Analyze, draw and write the page. What the checkpoint has no run, factors or prior for is left out.

    Over `PART` images of the split unless `limit` says how many, and without the metrics that take minutes; `full`
    takes all images and all metrics.

    With `json` stdout has the record of `vae analyze --json` and the page's path; else the path alone.
    """
    path = _artifact.check(output, DEFAULT_NAME, force, json, text=True, endings=(".html", ".htm"))
    names, lenient = metric_driver.chosen(metrics), "all" in (metrics or "all").split(",")
    if metrics == "all" and not full:
        names = [name for name in names if name not in SLOW]
    loaded = checkpoints.load(checkpoint, devices.pick(device), data_at)
    dataset = data.load(loaded.config.data, loaded.info)
    analysed = analysis.analyze(
        loaded,
        dataset,
        split,
        limit if limit is not None or full else PART,
        metric_names=names,
        diagnose=True,
        seed=seed,
        lenient=lenient,
    )
    arguments = ["--split", analysed.view.name, "--seed", str(seed)]
    arguments += ["--limit", str(limit)] if limit is not None else []
    arguments += ["--metrics", metrics] if metrics not in (None, "all") else []
    arguments += ["--full"] if full else []
    command = paths.without_homes(shlex.join(["vae", "report", checkpoint, *map(str, arguments)]))
    content, record, controlled = gather(analysed, command, full), analysed.record(), _control.gathered(analysed)
    if controlled is not None:
        content, record = replace(content, control=controlled[0]), {**record, "control": controlled[1]}
    path = _artifact.write(output, DEFAULT_NAME, html.render(content).encode(), force)
    _artifact.report(path, record if json else {}, json)


def gather(analysed: Analysis, command: str, full: bool = False) -> html.Content:
    """What the page shows: the analysis, with pictures the model makes and what its run directory tells."""
    loaded, stats = analysed.loaded, analysed.stats
    names = loaded.model.latent_names()
    codes_ = analysed.codes
    if codes_ is None and analysed.verdict.name != "not finite" and loaded.model.inferred:
        with streams.progress("encoding", min(stats.n, ENCODED)) as advance:
            codes_ = codes.encode(loaded, analysed.view, min(stats.n, ENCODED), advance=advance)
    if not analysis.are_numbers(stats).all():
        codes_ = None  # means of indices would say nothing
    folder = run_folder(loaded.path)
    active = [d for d in stats.order() if stats.status(d) in ("active", "varies")]
    shares = _shares(codes_)
    follows = {d: shares[d] for d in active if d in shares}
    with torch.inference_mode():
        drawn, why = _samples(loaded, analysed.seed)
        reconstructions = _reconstructions(analysed)
        traversals = _traversals(analysed, active, follows, full)
        exploration, why_not = _exploration(analysed, full)
    source, whole = loaded.info, analysed.dataset.split(analysed.view.name)
    channels, height, width = source.shape
    known = registry.names("dataset")
    return html.Content(
        title=f"{loaded.config.model.name} on {source.name}",
        subtitle=(
            f"Step {loaded.step:,}; {stats.n:,} images of the split {analysed.view.name}; "
            f"{len(names)} latents; images of {height}x{width} pixels and {channels} channel{'s' * (channels > 1)}"
        ),
        step=loaded.step,
        verdict=(analysed.verdict.name, analysed.verdict.sentences),
        totals=tables.totals(stats),
        names=names,
        latents=[_with_factor(record, follows) for record in analysed.latents],
        active=active,
        configuration=paths.without_homes(configs.dump(loaded.config)),
        standard_prior=analysis.standard(stats),
        mixture=analysis.mixture(stats),
        history=None if folder is None else history(_read(folder / "metrics.jsonl"), len(names)),
        reconstructions=reconstructions,
        likelihood=loaded.model.has_likelihood,
        levels=tables.level_texts(stats),
        samples_NCHW=drawn,
        samples_from=why,
        traversals=traversals,
        exploration=exploration,
        exploration_from=why_not,
        codes=codes_,
        # A checkpoint of an earlier version does not know them.
        value_names=dict(zip(source.factor_names, analysed.dataset.info.value_names, strict=False)),
        units=getattr(registry.load("dataset", source.name), "UNITS", {}) if source.name in known else {},
        about_nll=tables.nll_text(loaded.model),
        leak=analysed.diagnosis.get("leak"),
        diagnosis={
            what: text.replace("+-", "±")
            for what, text in (tables.diagnosis_rows(analysed.diagnosis) if analysed.diagnosis else ())
        },
        results=analysed.results,
        factors=analysed.factors,
        environment={} if folder is None else environment(_read(folder / "run.json")),
        source={
            "name": source.name,
            "training images": source.size,
            "factors": ", ".join(
                f"{name} ({size})" for name, size in zip(source.factor_names, source.factor_sizes, strict=False)
            )
            or None,
            **source.source,
        },
        computed={
            "command": command,
            # Below the folder of the runs: whose machine this was is nobody's business.
            "checkpoint": loaded.path.name
            if folder is None
            else str(loaded.path.absolute().relative_to(folder.parent)),
            "split": f"{analysed.view.name}, {stats.n:,} of {len(whole):,} images",
            "codes": None if codes_ is None else f"{len(codes_):,} images",
            "seed": str(analysed.seed),
            "vae": __version__,
            "Python": platform.python_version(),
            "torch": str(torch.__version__),
            "NumPy": np.__version__,
        },
    )


def _reconstructions(analysed: Analysis) -> html.Reconstructions | None:
    """Of images spread evenly over those analyzed: a split that is in order shows all its kinds."""
    model, view = analysed.loaded.model, analysed.view
    if not model.inferred:
        return None
    count = min(RECONSTRUCTED, analysed.stats.n)
    place = np.unique(np.linspace(0, analysed.stats.n - 1, count).round().astype(int))
    index_B = view.indices[torch.as_tensor(place, device=view.indices.device)]
    x_BCHW = view.dataset.batch(index_B).x_BCHW.to(model.device)
    values = model.complete(model.infer(x_BCHW).values)
    log_prob_B = model.log_prob(x_BCHW, values, analysed.loaded.hyper)
    return html.Reconstructions(
        x_BCHW.cpu().numpy(),
        model.image(values).float().cpu().numpy(),
        None if log_prob_B is None else (-log_prob_B).double().cpu().tolist(),
        f"{len(place)} images spread evenly over the split {view.name}",
    )


def _samples(loaded: Loaded, seed: int) -> tuple[np.ndarray[Any, Any] | None, str | None]:
    """As `vae sample` draws them, and what from; or why there are none."""
    devices.seed(seed, "sample")
    source = draws.source(loaded)
    try:
        return np.concatenate([x_BCHW for x_BCHW, _ in sample.draw(source, SAMPLED, 1.0)]), source.text
    except NoPrior as error:
        return None, f"No samples: {error}."


def _exploration(analysed: Analysis, full: bool) -> tuple[Exploration | None, str | None]:
    """The explorer with the decoder in the page, as `vae explore -o` writes it; or the reason why there is none."""
    loaded = analysed.loaded
    run = "vae explore RUN moves the latents in a browser"
    if not loaded.model.levels or analysed.verdict.name == "not finite":
        return None, None
    if not full and (size := offline.size_of(loaded.model)) > CARRIED:
        return None, f"The decoder has {size / 1e6:.0f} MB of weights, more than fits a page to be sent: {run}."
    try:
        layers = offline.layers_of(loaded.model)
        return explore.Explored(loaded, analysed.dataset, analysed.stats).page(layers), None
    except offline.Unwritable as error:
        return None, f"Not in this page: {error.message}; {run}."


def _traversals(
    analysed: Analysis, active: Sequence[int], follows: Mapping[int, tuple[str, float]], full: bool = False
) -> html.Traversals | None:
    """As `vae traverse` makes them, of the latents that depend on the image."""
    loaded, stats = analysed.loaded, analysed.stats
    model = loaded.model
    movers = traverse.ordered(traversal.movers(model, model.inferred), stats)
    used = [m for m in movers if m.index is not None and any(m.index + i in active for i in range(m.size))]
    if not used:
        return None
    t_S = np.linspace(-RANGE, RANGE, STEPS)
    coded = traverse._codes(loaded, analysed.dataset)
    at = "prior" if coded is None else str(traverse.typical(coded))
    middle, where = traverse.centre(loaded, at, analysed.dataset, None, stats)
    where += "" if coded is None else ", a typical one (marked in each row)"
    left_out = used[traverse.ROWS :] if not full else []
    used = used[: len(used) - len(left_out)]
    devices.seed(analysed.seed, "traverse")
    rows, units, along = [], [], []
    for mover in used:
        values_S = traversal.values_of(model, middle, mover, t_S, stats)
        images_SCHW = traversal.images_along(model, middle, mover, values_S)
        factor = "{} {:.0%}".format(*found) if (found := follows.get(mover.index or 0)) else ""
        steps = "through its values" if mover.counted else ""
        place = None if coded is None else traverse.mark(traverse.own(middle, mover), values_S)
        rows.append(html.Traversal(mover.name, [traverse.label_of(stats, mover), factor, steps], images_SCHW, place))
        units.append(traversal.unit(model, middle, mover, stats))
        along.append(values_S)
    inactive = len(movers) - len(used) - len(left_out)
    order = traverse.order_text(model, stats)
    about = f"Each active latent by itself at the value below, the others at {where}; ordered by {order}."
    if any(traversal.followers(model, mover.level) for mover in used):
        about += " The levels below one that moves follow."
    if inactive:
        dead = [mover for mover in movers if mover not in used and mover not in left_out]
        about += f" Without a row, as inactive: {traverse.named(dead)}."
    about += f" {len(left_out)} more, with less KL, are shown with --full." if left_out else ""

    def whose(what: str) -> str:
        return ", ".join(sorted({mover.level.name for mover, unit in zip(used, units, strict=True) if unit == what}))

    if set(units) == {"sd of the codes"}:
        about += " Values are standard deviations from the mean of the codes."
    elif "sd of the prior" in units:
        about += f" Values of {whose('sd of the prior')} are standard deviations from the mode of the prior."
    if traverse.QUANTILES in units:
        about += f" Values of {whose(traverse.QUANTILES)} are quantiles of the prior, at those of a normal."
    if traverse.WHOLE in units:
        about += f" {whose(traverse.WHOLE)} goes evenly over the range of its prior."
        if set(units) == {traverse.WHOLE} and all(torch.equal(v_S, along[0]) for v_S in along):
            t_S = along[0].numpy()
    unit = " standard deviations" if len(set(units)) == 1 and units[0].startswith("sd") else ""
    return html.Traversals(rows, t_S.tolist(), about, unit)


def _shares(codes_: codes.Codes | None) -> dict[int, tuple[str, float]]:
    """For each latent the factor that explains most of its variance, and how much."""
    if codes_ is None or not codes_.varying:
        return {}
    varied = codes_.factors_only(codes_.varying)
    return {
        d: (varied.factor_names[int(share_K.argmax())], float(share_K.max()))
        for d, share_K in enumerate(profiles.explained(varied))
    }


def _with_factor(record: Mapping[str, Any], follows: Mapping[int, tuple[str, float]]) -> dict[str, Any]:
    """A latent's record with the factor it follows, before what only a full diagnosis knows."""
    factor, share = follows.get(record["index"], (None, None))
    first = {key: record[key] for key in tables.FIELDS if key in record}
    return {**first, "factor": factor, "share": share, **record}


# -------------------------------------------------------------------------------------------------------- run directory


def run_folder(checkpoint: Path) -> Path | None:
    """The run directory around a checkpoint file, if it is in one."""
    path = Path(checkpoint).absolute()
    if len(path.parents) < 3 or path.parents[1].name != "checkpoints":
        return None
    return path.parents[2] if os.path.lexists(path.parents[2] / "run.json") else None


def _read(path: Path) -> str:
    """A text of the run; nothing where it is missing, too large to be one, or a link, which may lead anywhere."""
    try:
        return safe_files.read(path, rundir.LARGEST_LOG).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        streams.notice(f"{path}: {error.strerror}: left out")
        return ""


def history(text: str, latents: int) -> html.History | None:
    """The curves in the lines of a metrics.jsonl, in order of steps; lines and values that are none are passed over."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {"train": {}, "val": {}}
    kl_D: list[list[tuple[float, float]]] = [[] for _ in range(latents)]
    for line in text.splitlines():
        record = safe_files.json_object(line)
        step, kind = _finite(record.get("step")), record.get("kind")
        if step is None or kind not in ("train", "val"):
            continue
        for key in ("loss", "recon", "kl", "elbo"):
            if (value := _finite(record.get(key))) is not None:
                curves[kind].setdefault(key, []).append((step, value))
        per_latent = record.get("kl_j")
        if isinstance(per_latent, list) and len(per_latent) == latents:
            for points, entry in zip(kl_D, per_latent, strict=True):
                if (value := _finite(entry)) is not None:
                    points.append((step, value))
    for points in [*(p for kind in curves.values() for p in kind.values()), *kl_D]:
        points.sort(key=lambda point: point[0])
    return html.History(curves, kl_D) if any(curves.values()) else None


def environment(text: str) -> dict[str, Any]:
    """What a run.json says about program and machine, without the names of the machine and of its user."""
    known = safe_files.json_object(text)
    facts = {
        label: str(known[key])[:200] for key, label in RECORDED.items() if isinstance(known.get(key), (str, int, float))
    }
    argv = known.get("argv")
    if isinstance(argv, list) and all(isinstance(word, str) for word in argv):
        facts["command"] = shlex.join(["vae", *argv])[:1000]
    return {label: paths.without_homes(text) for label, text in facts.items()}


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
