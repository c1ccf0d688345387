"""`vae traverse`: what each latent does to the image."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from vaecli import data, label_expressions, registry
from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import codes, draws, labelled, traversal
from vaecli.analysis.gathering import latent_statistics, limited
from vaecli.analysis.statistics import Statistics
from vaecli.analysis.traversal import Mover
from vaecli.batch import at_once
from vaecli.commands import _artifact
from vaecli.data.base import Dataset
from vaecli.errors import ConfigError, InputError, MachineError, VaeError
from vaecli.models.base import Level, Model, NoPrior, Values
from vaecli.report import figures, profiles
from vaecli.training.checkpoint import Loaded

RANKED_BY = 10_000  # held-out images over which the mean KL is taken
CANDIDATES = 2_000  # held-out images among which a typical one is looked for
ROWS = 12  # of a picture, unless others are asked for
FOLLOWED = 0.1  # share of a latent's variance from which on the factor that explains it is named
BATCH = 256
MUTED = ("inactive", "constant")
QUANTILES, WHOLE = "quantiles of the prior", "range of the prior"
UNITS = {
    "": "latent",
    "sd of the codes": "standard deviations of the code",
    "sd of the prior": "standard deviations of the prior",
    QUANTILES: "quantiles of the prior, at those of a normal",
    WHOLE: "latent, over the range of the prior",
}


TYPICAL = "typical"


class Coded(NamedTuple):
    """Held-out images by index, their codes and, where they are known, their factors."""

    index_N: np.ndarray
    z_ND: np.ndarray
    labels_NK: np.ndarray | None
    factors: tuple[str, ...]


def run(
    checkpoint: str,
    dims: list[str],
    value_range: float,
    steps: int,
    center: str | None,
    output: str | None,
    seed: int,
    device: str,
    force: bool,
    json: bool,
    level: str | None = None,
    data_at: str | None = None,
    label: Sequence[str] = (),
    rows: int | None = None,
) -> None:
    """One row of images a latent, the latent going from -range to range, the others at the centre; PNG or GIF.

    The centre is the code of a typical image (`typical`) unless `center` is `prior`, an index or a file; a mark in
    each row is where the image itself is. Latents that are inactive make no row, nor do those after the first twelve,
    or `rows` of them (0: all); the picture names them, and `dims` shows any.

    Rows are ordered by mean KL, largest first (Burgess et al. 2018, figure 7), level by level; without the data, by
    index. A latent takes the levels below it along. The latents of a deterministic code have no natural scale: theirs
    goes in standard deviations from the mean of the codes; that of a prior that is not N(0, I) in its standard
    deviations; one under a uniform prior goes from its one end to the other. Codes and labels step through their
    values. Noise is shown where `level` or `dims` name it.

    With `label` (one value a factor; others are drawn) the others stand at the modes of their priors given the labels,
    and what is shown are the levels that labels control, by the standard deviation of their prior; no data are needed.
    """
    if steps < 2:
        raise ConfigError(f"--steps is {steps}; it must be at least 2")
    if not (math.isfinite(value_range) and value_range > 0):
        raise ConfigError(f"--range is {value_range}; it must be more than 0")
    path = _artifact.check(output, "traversal.png", force, json, endings=(".png", ".gif"))
    loaded = _artifact.load(checkpoint, devices.pick(device), data_at)
    model = loaded.model
    all_of_them = traversal.movers(model, _levels(model, level))
    chosen = [_chosen(text, all_of_them) for text in dims]
    shown = chosen or [mover for mover in all_of_them if mover.index is not None or level is not None]
    most = len(shown) if chosen or rows == 0 else rows or ROWS
    if not shown:
        raise ConfigError(f"{model.config.name} infers no latents", f"--level {model.levels[0].name} moves noise")
    moving = path.lower().endswith(".gif")
    height, width = loaded.info.shape[1:]
    figures.check_size(min(most, len(shown)), 1 if moving else steps, height, width)
    devices.seed(seed, "traverse")
    with torch.inference_mode():
        stats, over, spread, follows = None, "", {}, {}
        image = False  # whether the centre is that of an image
        if label:
            middle, where = _of_labels(loaded, label, center)
            spread = {mover.name: traversal.deviation(model, middle, mover) for mover in shown}
            if not chosen:
                controlled = [one.name for one in labelled.below_labels(model)]
                shown = [mover for mover in shown if level is not None or mover.level.name in controlled]
                shown = by_deviation(shown, spread)
        else:
            dataset, missing = _dataset(loaded)
            stats, over = _statistics(loaded, dataset) if dataset is not None and model.inferred else (None, "")
            if missing is not None:
                streams.notice(f"latents in index order, without KL: the data set is not available ({missing})")
            about = None if dataset is None or not model.inferred else _codes(loaded, dataset)
            follows = {} if about is None else followed(about)
            if center in (None, TYPICAL):
                center = "prior" if about is None else str(typical(about))
                typically = about is not None
            else:
                typically = False
            middle, where = centre(loaded, center, dataset, missing, stats)
            where += ", a typical one" if typically else ""
            image = center != "prior"
        t_S = np.linspace(-value_range, value_range, steps)
        if stats is not None and not chosen:
            shown = ordered(shown, stats)
        everything = shown
        values_of_all = [traversal.values_of(model, middle, mover, t_S, stats) for mover in everything]
        labels_of_all = [label_of(stats, mover, spread.get(mover.name)) for mover in everything]
        dead = [] if chosen else [m for m, text in zip(shown, labels_of_all, strict=True) if text.startswith(MUTED)]
        dead = dead if len(dead) < len(shown) else []  # of a collapsed model all are shown
        shown = [mover for mover in shown if mover not in dead][:most]
        left_out = [mover for mover in everything if mover not in dead and mover not in shown]
        values = [v_S for mover, v_S in zip(everything, values_of_all, strict=True) if mover in shown]
        images = [traversal.images_along(model, middle, m, v_S) for m, v_S in zip(shown, values, strict=True)]
        units = [traversal.unit(model, middle, mover, stats) for mover in shown]
    common = len(set(units)) == 1 and not any(mover.counted for mover in shown)
    labels = [label_of(stats, mover, spread.get(mover.name)) for mover in shown]
    heading = _artifact.title(loaded.config.model.name, loaded.info.name, f"step {loaded.step:,}")
    suffix = " sd" if common and units[0].startswith("sd") else ""
    if common and units[0] == WHOLE and all(torch.equal(v_S, values[0]) for v_S in values):
        t_S = values[0].numpy()
    texts = [f"{text}{suffix}" for text in _value_texts(t_S)]
    details = [
        "\n".join(
            filter(None, [", ".join(filter(None, [text, "" if common else unit])), follows.get(mover.index or 0)])
        )
        for mover, text, unit in zip(shown, labels, units, strict=True)
    ]
    marks = [mark(own(middle, mover), v_S) if image else None for mover, v_S in zip(shown, values, strict=True)]
    footer = f"one latent at the {'quantile of its prior' if units[0] == QUANTILES and common else 'value'} shown"
    footer += f", the others at {where}"
    if any(traversal.followers(model, mover.level) for mover in shown):
        footer += "; the levels below follow"
    if over and not chosen:
        footer += f"; ordered by {order_text(model, stats)} over {over}"
    if label and not chosen:
        footer += "; ordered by the standard deviation of the prior"
    if any(place is not None for place in marks):
        footer += "\nthe mark above a row is the image's own value; where it is in no row, it lies beyond"
    if dead:
        footer += f"\nwithout a row: {named(dead)} ({'constant' if dead[0].counted else 'inactive'})"
    if left_out:
        footer += f"\nwithout a row: {named(left_out)}, which come after the first {most}; --rows 0 shows all"
    names = [mover.name for mover in shown]
    if moving:
        picture = _animation(images, names, details, texts, heading, footer)
    else:
        drawn = [
            _row(mover, detail, x_SCHW, v_S, place)
            for mover, detail, x_SCHW, v_S, place in zip(shown, details, images, values, marks, strict=True)
        ]
        headings = [] if all(mover.counted for mover in shown) else texts
        picture = figures.png(figures.sheet(drawn, headings, heading, footer))
    path = _artifact.write(output, "traversal.png", picture, force)
    latents = [
        _record(model, mover, stats, v_S.tolist())
        | ({"prior_sd": spread[mover.name]} if label else {})
        | ({"own": own(middle, mover)} if image and not mover.counted else {})
        | {"shown": mover in shown}
        for mover, v_S in zip(everything, values_of_all, strict=True)
    ]
    record = {
        "checkpoint": str(loaded.path), "step": loaded.step, "seed": seed, "center": center or TYPICAL,
        "values": t_S.tolist(),
        "unit": UNITS[units[0]] if common else "by latent", "latents": latents,
    }  # fmt: skip
    if label:
        record["labels"] = where
    _artifact.report(path, record, json)


def named(movers: Sequence[Mover]) -> str:
    """Their names, so many as fit into a line."""
    names = [mover.name for mover in movers]
    return ", ".join(names if len(names) <= 10 else [*names[:9], f"and {len(names) - 9} more"])


def own(middle: Values, mover: Mover) -> float:
    """Where a latent stands at the centre."""
    return float(middle[mover.level.name].flatten(1)[0, mover.column])


def mark(value: float, values_S: torch.Tensor) -> float | None:
    """The place of a value among those of a row, in columns; None where it is beyond them."""
    first, last = float(values_S[0]), float(values_S[-1])
    if first == last:
        return None
    place = (value - first) / (last - first) * (len(values_S) - 1)
    return place if -0.5 <= place <= len(values_S) - 0.5 else None


def _row(mover: Mover, detail: str, x_SCHW: figures.Images, values_S: torch.Tensor, place: float | None) -> figures.Row:
    muted = detail.startswith(MUTED)
    if not mover.counted:
        return figures.Row(x_SCHW, mover.name, detail, muted=muted, mark=place)
    value_S = values_S.long().tolist()  # more columns than values: each once
    first = [s for s, value in enumerate(value_S) if value not in value_S[:s]]
    return figures.Row(x_SCHW[first], mover.name, detail, [str(value_S[s]) for s in first], muted)


def _record(model: Model, mover: Mover, stats: Statistics | None, values: list[float]) -> dict[str, object]:
    known = stats if mover.index is not None else None
    status = None if known is None or mover.index is None else known.status(mover.index)
    record: dict[str, object] = {
        "latent": mover.name,
        "index": mover.index,
        "kl": None if known is None or mover.index is None else known.kl_of(mover.index),
        "var_mu": None if known is None else float(known.var_D[mover.index]),
        "status": status if mover.index is not None else "not inferred",
    }
    if len(model.levels) > 1 or mover.counted:
        record |= {"level": mover.level.name, "values": values}
    return record


def _levels(model: Model, names: str | None) -> list[Level]:
    """All levels, or those named, with commas; ConfigError with the names there are for another."""
    if names is None:
        return list(model.levels)
    known = {level.name: level for level in model.levels}
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--level: no level is called {name[:80]!r}{registry.nearest(name, known)}")
    return [known[name] for name in chosen]


def _of_labels(loaded: Loaded, texts: Sequence[str], center: str | None) -> tuple[Values, str]:
    """All levels of one image of these labels at the modes of their priors, and that in words. ConfigError with the
    names that there are; NoLabels where the model has none."""
    if center not in ("prior", None):
        raise ConfigError("--label says where the others stay, and so does --center", "leave out one of them")
    model = loaded.model
    factors = labelled.sampler(draws.Source(model)).factors
    rows = label_expressions.combinations(label_expressions.wanted(texts, loaded.info, factors), factors)
    if len(rows) > 1:
        raise ConfigError(f"--label stands for {len(rows):,} combinations, but a traversal is around one")
    values = labelled.from_labels(model, torch.tensor(rows))
    named = label_expressions.text_of(labelled.labels_of(model, values)[0].tolist(), loaded.info, factors)
    return model.complete(values), "the prior's mode given " + ", ".join(f"{f} {value}" for f, value in named.items())


def by_deviation(shown: Sequence[Mover], spread: Mapping[str, float | None]) -> list[Mover]:
    """Level by level, the latents of the largest deviation first."""
    place = {name: i for i, name in enumerate(dict.fromkeys(mover.level.name for mover in shown))}
    return sorted(shown, key=lambda mover: (place[mover.level.name], -(spread[mover.name] or 0.0)))


def ordered(shown: Sequence[Mover], stats: Statistics) -> list[Mover]:
    """In the order of the statistics, noise last."""
    place = {index: rank for rank, index in enumerate(stats.order())}
    return sorted(shown, key=lambda mover: len(place) if mover.index is None else place[mover.index])


def order_text(model: Model, stats: Statistics | None) -> str:
    """What latents are ordered by."""
    if stats is None or all(part.kl_D is not None for part in stats.parts):
        return "mean KL"
    if len(stats.parts) > 1:
        return "level"
    if stats.parts[0].usage is not None:
        return "position"
    return "importance" if hasattr(model, "importance") else "variance"


def _chosen(text: str, movers: Sequence[Mover]) -> Mover:
    """The latent that `3`, `z3` or `group.3` stands for."""
    for mover in movers:
        if mover.name == text:
            return mover
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(movers):
        return movers[int(text)]
    names = [mover.name for mover in movers]
    valid = f"{names[0]} to {names[-1]}" if len(names) > 12 else ", ".join(names)
    raise ConfigError(f"--dim {text}: no such latent; there are {valid}, or 0 to {len(names) - 1}")


def _dataset(loaded: Loaded) -> tuple[Dataset | None, VaeError | None]:
    """The data set named in the checkpoint, or why it cannot be had."""
    try:
        return data.load(loaded.config.data, loaded.info), None
    except (ConfigError, InputError, MachineError) as error:
        return None, error


def _statistics(loaded: Loaded, dataset: Dataset) -> tuple[Statistics, str]:
    split = dataset.split("val")
    total = min(len(split), RANKED_BY)
    with streams.progress("ranking latents", total) as advance:
        batches = limited(split.batches(at_once(loaded.info.shape, BATCH)), RANKED_BY)
        stats = latent_statistics(loaded.model, batches, loaded.hyper, advance)
    return stats, f"{total:,} images of {split.name}"


def _codes(loaded: Loaded, dataset: Dataset) -> Coded | None:
    """Codes of held-out images; None where they are no numbers to compare."""
    view = dataset.split("val")
    index_N, parts = view.indices[:CANDIDATES].cpu(), []
    for batch in limited(view.batches(at_once(loaded.info.shape, BATCH)), CANDIDATES):
        found = loaded.model.infer(batch.x_BCHW.to(loaded.model.device))
        parts.append(loaded.model.flatten(found.values).double().cpu())
    z_ND = torch.cat(parts)[: len(index_N)]
    if not bool(z_ND.isfinite().all()) or not len(z_ND):
        return None
    labels_NK = None if dataset.labels is None else dataset.labels[index_N.to(dataset.labels.device)].cpu().numpy()
    return Coded(index_N[: len(z_ND)].numpy(), z_ND.numpy(), labels_NK, tuple(dataset.info.factor_names))


def typical(coded: Coded) -> int:
    """The image whose code is nearest to the mean of the codes, each latent by its standard deviation: an image that
    there is, where what the mean decodes to may be none."""
    deviation_D = coded.z_ND.std(axis=0)
    scaled_ND = (coded.z_ND - coded.z_ND.mean(axis=0)) / np.where(deviation_D > 0, deviation_D, 1.0)
    used_D = deviation_D > 0.1 * deviation_D.max()  # those that hold nothing would only add noise
    return int(coded.index_N[int(np.square(scaled_ND[:, used_D]).sum(axis=1).argmin())])


def followed(coded: Coded) -> dict[int, str]:
    """For each latent the factor that explains most of its variance, `orientation 62%`, where it explains some."""
    labels_NK = coded.labels_NK
    if labels_NK is None or labels_NK.ndim != 2 or (labels_NK < 0).any() or len(labels_NK) < 100:
        return {}
    known = codes.Codes(coded.z_ND, None, labels_NK, coded.factors)
    if not known.varying:
        return {}
    varied = known.factors_only(known.varying)
    return {
        d: f"{varied.factor_names[int(share_K.argmax())]} {share_K.max():.0%}"
        for d, share_K in enumerate(profiles.explained(varied))
        if share_K.max() >= FOLLOWED
    }


def centre(
    loaded: Loaded, center: str, dataset: Dataset | None, missing: VaeError | None, stats: Statistics | None
) -> tuple[Values, str]:
    """Where latents that do not move stand, values of every level for one image, and that in words."""
    model = loaded.model
    if center == "prior":
        try:
            at = traversal.at_rest(model)
        except NoPrior:
            if stats is not None:
                return traversal.at_mean(model, stats), "the mean code"
            return model.unflatten(torch.zeros(1, len(model.latent_names()), device=model.device)), "0"
        return at, "0" if all(level.standard for level in model.levels) else "the prior's mode"
    if center.isascii() and center.isdigit():
        if dataset is None:
            assert missing is not None
            raise missing
        if len(center) > 18 or int(center) >= len(dataset.images):
            raise ConfigError(f"--center {center[:40]}: the data set has images 0 to {len(dataset.images) - 1}")
        x_BCHW = dataset.images.gather(torch.tensor([int(center)]))
        text = f"the code of image {center} of {loaded.info.name}"
    else:
        x_BCHW = _artifact.read_image(center, loaded.info)[None]
        text = f"the code of {center}"
    return traversal.of_image(model, x_BCHW), streams.safe(text)


def label_of(stats: Statistics | None, mover: Mover, deviation: float | None = None) -> str:
    """What is known of a latent, in a word: of its codes, or the deviation of its prior where that is given."""
    if deviation is not None:
        return f"sd {deviation:.3g}"
    if mover.index is None:
        return "not inferred"
    if stats is None:
        return ""
    statuses = {stats.status(mover.index + i) for i in range(mover.size)}
    if mover.counted:
        return "varies" if "varies" in statuses else "constant"
    kl = stats.kl_of(mover.index)
    if statuses == {"inactive"}:
        return "inactive"
    return f"var {float(stats.var_D[mover.index]):#.3g}" if kl is None else f"KL {kl:.2f}"


def _value_texts(values: np.ndarray) -> list[str]:
    digits = next((k for k in range(3) if np.allclose(values, np.round(values, k), atol=1e-9)), 2)
    return [f"{value + 0.0:.{digits}f}" for value in values.round(digits)]


def _animation(
    images: list[figures.Images], names: list[str], labels: list[str], texts: list[str], heading: str, footer: str
) -> bytes:
    """All latents as tiles, moving together."""
    height, width = images[0].shape[2:]
    columns = figures.columns_for(len(images), height, width)
    captions = [f"{name}\n{label}" if label else name for name, label in zip(names, labels, strict=True)]
    muted = [label.startswith(MUTED) for label in labels]
    frames = []
    for i, text in enumerate(texts):
        tiles = np.stack([x_SCHW[i] for x_SCHW in images])
        rows = [
            figures.Row(tiles[a : a + columns], captions=captions[a : a + columns], muted=muted[a : a + columns])
            for a in range(0, len(tiles), columns)
        ]
        # Written first, the value keeps its place while it changes.
        frames.append(figures.sheet(rows, title=f"z = {text}", footer="\n".join([heading, *footer.split("; ")])))
    return figures.gif(frames)
