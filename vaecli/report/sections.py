"""The sections of the page: numbers and images in, `Html` out, or None where there is nothing to show.

Shapes: N images, S steps, D latents, K factors, C H W image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaecli.analysis.codes import Array
from vaecli.analysis.statistics import WORTH
from vaecli.report import charts, figures
from vaecli.report.charts import Line
from vaecli.report.markup import Html, details, figure, image, join, number, signed, tag
from vaecli.report.section import Section, note, section
from vaecli.report.tables import facts, flat

STRIP = 760  # pixels: the width up to which rows of images are enlarged by whole factors
TOTALS = {
    "kl": "KL (nats)", "recon": "reconstruction (nats)", "elbo": "ELBO (nats)", "mse": "MSE a pixel",
    "active_units": "active latents", "images": "images",
}  # fmt: skip


@dataclass(frozen=True)
class History:
    """Records of metrics.jsonl: per kind (`train`, `val`) the quantities by name as (step, value); per-latent KL."""

    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
    kl_D: Sequence[Sequence[tuple[float, float]]] = ()


@dataclass(frozen=True)
class Reconstructions:
    inputs_NCHW: figures.Images
    outputs_NCHW: figures.Images
    nll_N: Sequence[float] | None  # None without a likelihood
    source: str


@dataclass(frozen=True)
class Traversal:
    """One latent going through `values`, the others at rest; `detail` says more in words."""

    name: str
    detail: Sequence[str]
    images_SCHW: figures.Images
    mark: float | None = None  # the place of the image's own value among the images


@dataclass(frozen=True)
class Traversals:
    rows: Sequence[Traversal]
    values: Sequence[float]
    about: str
    unit: str = ""


# -------------------------------------------------------------------------------------------------------------- summary


def verdict(name: str, sentences: Sequence[str]) -> Html:
    """The verdict, its evidence and, in bold, what to try first."""
    kind = {"healthy": "good", "collapsed": "bad", "not finite": "bad", "not judged": ""}.get(name, "warn")
    said = [tag("p", s, class_="first" if s.startswith("First") else None) for s in sentences]
    return tag("div", tag("p", f"Verdict: {name}", class_="name"), *said, class_=f"verdict {kind}".strip())


def key_numbers(totals: Mapping[str, Any], about: str | None = None) -> Html:
    """The numbers of the model as a whole, large."""
    entries = []
    for key, label in TOTALS.items():
        value = totals.get(key)
        if value is None:
            continue
        error = totals.get(f"{key}_standard_error")
        digits = 6 if key == "mse" else 2
        more = f"± {number(error, digits)}" if isinstance(error, float) and math.isfinite(error) else None
        if key == "active_units":
            more = f"of {number(totals.get('latents'))}, by {str(totals.get('active_rule')).replace('mu', 'μ')}"
            if totals.get("latents_with_kl") is not None:
                more += f"; {number(totals['latents_with_kl'])} with KL > {WORTH:g}"
        shown = number(value, digits) if isinstance(value, float) else number(value)
        value_html = tag("dd", shown, tag("span", f" {more}", class_="more") if more else None)
        entries.append(tag("div", tag("dt", label), value_html))
    said = None if about is None else note(about[0].upper() + about[1:] + ".")
    return join([tag("dl", *entries, class_="keys"), said])


# ------------------------------------------------------------------------------------------------------------- training


def training(history: History | None, names: Sequence[str], step: int, likelihood: bool = True) -> Section | None:
    """Curves of the run: reconstruction, KL, negative ELBO, the KL of each latent; the checkpoint's step is marked."""
    if history is None:
        return None
    drawn = []
    shown = {"recon": ("reconstruction", 1.0), "kl": ("KL", 1.0), "elbo": ("negative ELBO", -1.0)}
    if not likelihood or not any("recon" in curves for curves in history.curves.values()):
        shown = {"loss": ("loss", 1.0)}
    both = [Line("training", (), (), 0), Line("evaluations", (), (), 1, dots=True)]
    for key, (title, sign) in shown.items():
        lines = []
        for style, kind in zip(both, ("train", "val"), strict=True):
            points = history.curves.get(kind, {}).get(key, ())
            x, y = [p[0] for p in points], [sign * p[1] for p in points]
            lines.append(Line(style.name, x, y, style.colour, dots=style.dots))
        log = key != "kl" and charts.is_log([v for line in lines for v in line.y])
        unit = ", ".join(filter(None, ["nats" if likelihood else "", "logarithmic" if log else ""]))
        drawn.append(_chart(lines, title, unit, log=log, mark=float(step)))
    drawn.append(_latent_kl(history.kl_D, names, step))
    panels = [panel for panel in drawn if panel is not None]
    if not panels:
        return None
    about = note("Against training steps. The dotted line is the checkpoint shown here, at step ", number(step), ".")
    return section("training", "Training", about, charts.legend(both), tag("div", *panels, class_="charts"))


def _chart(lines: Sequence[Line], title: str, unit: str, **options: Any) -> Html | None:
    drawn = charts.line_chart(lines, title, **options)
    return None if drawn is None else figure(drawn, join([title, " ", tag("span", unit)]))


def _latent_kl(kl_D: Sequence[Sequence[tuple[float, float]]], names: Sequence[str], step: int) -> Html | None:
    if len(kl_D) != len(names) or not any(kl_D):
        return None
    last = [points[-1][1] if points else -math.inf for points in kl_D]
    rank = sorted(range(len(names)), key=lambda d: -last[d])
    named = {d: place for place, d in enumerate(rank[:8]) if last[d] > 0.1}
    lines = []
    for d in reversed(rank):  # the largest are drawn last, on top
        place = named.get(d)
        x, y = [p[0] for p in kl_D[d]], [p[1] for p in kl_D[d]]
        again = place is not None and place >= charts.COLOURS
        lines.append(Line(names[d], x, y, place, dashed=again, dots=len(x) < 12, label=place is not None))
    return _chart(lines, "KL of each latent", "nats", mark=float(step))


# ------------------------------------------------------------------------------------------------------------- pictures


def _strip(images_NCHW: figures.Images, columns: int, alt: str) -> Html:
    """Images side by side, enlarged by the browser."""
    png, width, height = charts.montage(images_NCHW, columns)
    scale = max(1, STRIP // width)
    return image(png, width * scale, height * scale, alt)


def reconstructions(shown: Reconstructions | None) -> Section | None:
    """Inputs above outputs in bands of eight."""
    if shown is None or not len(shown.inputs_NCHW):
        return None
    x, y = np.asarray(shown.inputs_NCHW, dtype=np.float64), np.asarray(shown.outputs_NCHW, dtype=np.float64)
    mse_N = np.square(x - y).mean(axis=(1, 2, 3))
    columns = min(8, len(x))
    made = "resyntheses" if shown.nll_N is None else "reconstructions"
    bands = []
    for start in range(0, len(x), columns):
        part = slice(start, start + columns)
        low, high = mse_N[part].min(), mse_N[part].max()
        alt = (
            f"{len(x[part])} inputs above their {made}; the mean squared error per pixel is between "
            f"{number(float(low))} and {number(float(high))}."
        )
        missing = columns - len(x[part])
        blank = np.ones((missing, *x.shape[1:]))
        bands.append(tag("div", _strip(np.concatenate([x[part], blank, y[part]]), columns, alt), class_="strip"))
    mse = number(float(mse_N.mean()))
    if shown.nll_N is None:
        caption = note(
            f"Inputs above what is made of their codes, z being the mode of q(z|x): {shown.source}. Mean squared error "
            f"per pixel {mse} over these images."
        )
        return section("resyntheses", "Resyntheses", caption, *bands)
    caption = note(
        f"Inputs above outputs, z being the mode of q(z|x): {shown.source}. Mean squared error per pixel {mse}, "
        f"reconstruction term {number(float(np.mean(shown.nll_N)), 2)} nats, over these images."
    )
    return section("reconstructions", "Reconstructions", caption, *bands)


def samples(images_NCHW: figures.Images | None, why: str | None = None) -> Section | None:
    """Images drawn from what `why` names, or why there are none."""
    if images_NCHW is None or not len(images_NCHW):
        return section("samples", "Samples", note(why)) if why else None
    columns = min(len(images_NCHW), 8)
    spread = float(np.asarray(images_NCHW, dtype=np.float64).std(axis=0).mean())
    alt = (
        f"{len(images_NCHW)} images decoded from draws of {why or 'the prior'}; mean pixel value "
        f"{number(float(images_NCHW.mean()))}, mean standard deviation of a pixel between images {number(spread)}."
    )
    caption = note(f"{len(images_NCHW)} draws from {why or 'the prior'}, decoded.")
    return section("samples", "Samples", caption, tag("div", _strip(images_NCHW, columns, alt), class_="strip"))


def traversals(shown: Traversals | None) -> Section | None:
    """A row of images for each latent."""
    if shown is None or not shown.rows:
        return None
    parts = []
    for row in shown.rows:
        who = tag("div", tag("b", row.name), " · ".join(filter(None, row.detail)), class_="who")
        strip = _strip(row.images_SCHW, len(row.images_SCHW), _movement(row, shown))
        parts += [who, join([_mark(row), strip]) if row.mark is None else tag("div", _mark(row), strip)]
    marks = [tag("span", signed(f"{value:.4g}")) for value in shown.values]
    _, width, _ = charts.montage(shown.rows[0].images_SCHW, len(shown.values))
    width *= max(1, STRIP // width)
    ruler = tag("svg", viewBox=f"0 0 {width} 1", width=width, height=1, aria_hidden="true")
    axis = tag("div", ruler, tag("div", *marks, class_="axis"), aria_hidden="true", class_="ruled")
    parts += [tag("div", class_="blank"), axis]
    return section("traversals", "Traversals", note(shown.about), tag("div", *parts, class_="rows"))


def _mark(row: Traversal) -> Html | None:
    """A triangle that points at the image's own value."""
    if row.mark is None:
        return None
    _, width, _ = charts.montage(row.images_SCHW, len(row.images_SCHW))
    width *= max(1, STRIP // width)
    x = (row.mark + 0.5) * width / len(row.images_SCHW)
    triangle = tag("polygon", points=f"{x - 6:.1f},0 {x + 6:.1f},0 {x:.1f},7")
    return tag("svg", triangle, viewBox=f"0 0 {width} 8", width=width, height=8, aria_hidden="true", class_="own")


def _movement(row: Traversal, shown: Traversals) -> str:
    """What a traversal does, in numbers: how far pixels change, and where the light moves."""
    images = np.asarray(row.images_SCHW, dtype=np.float64).mean(axis=1)
    change = float(np.abs(images[-1] - images[0]).mean())
    text = (
        f"{row.name} from {signed(f'{shown.values[0]:.4g}')} to {signed(f'{shown.values[-1]:.4g}')}{shown.unit} in "
        f"{len(images)} images: mean pixel value from {number(float(images[0].mean()))} to "
        f"{number(float(images[-1].mean()))}, mean change of a pixel {number(change)}"
    )
    first, last = _centre(images[0]), _centre(images[-1])
    if first is not None and last is not None:
        text += (
            f"; the centre of brightness goes from column {first[0]:.1f}, row {first[1]:.1f} to column {last[0]:.1f}, "
            f"row {last[1]:.1f}"
        )
    return f"{text}."


def _centre(image_HW: Array) -> tuple[float, float] | None:
    total = float(image_HW.sum())
    if not math.isfinite(total) or total <= 0:
        return None
    rows, columns = np.indices(image_HW.shape)
    return float((columns * image_HW).sum() / total), float((rows * image_HW).sum() / total)


# ----------------------------------------------------------------------------------------------------------- provenance


def provenance(
    configuration: str, environment: Mapping[str, Any], source: Mapping[str, Any], computed: Mapping[str, Any]
) -> Section | None:
    """Configuration, environment, data, and how the page was computed."""
    tables = [
        facts(computed, "How this page was computed"),
        facts(environment, "What trained the model"),
        facts(flat(source), "Data"),
    ]
    config = tag("pre", configuration, tabindex=0, role="region", aria_label="configuration, scrolls sideways")
    return section(
        "provenance",
        "Configuration and provenance",
        details("What was run, and on what", tag("div", *(t for t in tables if t is not None), class_="pair")),
        details("Configuration", note("Written to a file, vae train --config repeats the run with it."), config),
    )
