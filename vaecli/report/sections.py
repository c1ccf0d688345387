"""The sections of the page: numbers and images in, `Html` out, or None where there is nothing to show.

Shapes: N images, S steps, D latents, K factors, C H W image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vaecli.analysis.codes import Array, Codes
from vaecli.analysis.metrics import Result
from vaecli.report import charts, figures, profiles
from vaecli.report.charts import Line
from vaecli.report.markup import MISSING, Cell, Html, decimals, details, figure, image, join, number, signed, table, tag

MOST_PANELS = 24  # latents drawn in maps, curves and marginals; with more the page says so
FIRST_MATRICES = ("mutual_information", "importance")  # shown at once, the others on demand
MOST_CELLS = 128 * 128  # of a position map
MOST_ROWS = 64  # of a matrix
MOST_LINES = 5  # values of a factor that get a line of their own
CURVED = 12  # factors with a curve
STRIP = 760  # pixels: the width up to which rows of images are enlarged by whole factors
HEADINGS = {
    "share": "of variance", "mean_mu": "mean μ", "var_mu": "var μ", "mean_sigma2": "mean σ²", "kl": "KL (nats)",
    "mean_sigma": "mean sd", "ks": "KS", "marginal_kl": "KL of q(z) (nats)", "range_low": "1 % of q(z)",
    "range_high": "99 % of q(z)", "rho2_10": "ρ² 10 %", "rho2_50": "ρ² 50 %", "rho2_90": "ρ² 90 %",
    "gain": "gain (nats)", "prior_gain": "gain by prior (nats)", "sensitivity": "|∂x/∂z|",
}  # fmt: skip
RULE = "inactive_"
TOTALS = {
    "elbo": "ELBO (nats)", "recon": "reconstruction (nats)", "mse": "MSE a pixel", "kl": "KL (nats)",
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


@dataclass(frozen=True)
class Traversals:
    rows: Sequence[Traversal]
    values: Sequence[float]
    about: str
    unit: str = ""


class Section(NamedTuple):
    """A part of the page that the list of contents leads to."""

    id: str
    heading: str
    html: Html


def section(name: str, heading: str, *content: object) -> Section | None:
    """None where all content is None."""
    if all(part is None for part in content):
        return None
    return Section(name, heading, tag("section", tag("h2", heading), *content, id=name))


def note(*sentences: object) -> Html:
    return tag("p", *sentences, class_="note")


# -------------------------------------------------------------------------------------------------------------- summary


def verdict(name: str, sentences: Sequence[str]) -> Html:
    """The verdict, its evidence and, in bold, what to try first."""
    kind = {"healthy": "good", "collapsed": "bad", "not finite": "bad", "n/a": "", "not judged": ""}.get(name, "warn")
    said = [tag("p", s, class_="first" if s.startswith("First") else None) for s in sentences]
    return tag("div", tag("p", f"Verdict: {name}", class_="name"), *said, class_=f"verdict {kind}".strip())


def key_numbers(totals: Mapping[str, Any]) -> Html:
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
            more = f"of {number(totals.get('latents'))}"
        shown = number(value, digits) if isinstance(value, float) else number(value)
        value_html = tag("dd", shown, tag("span", f" {more}", class_="more") if more else None)
        entries.append(tag("div", tag("dt", label), value_html))
    return tag("dl", *entries, class_="keys")


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
        return section("reconstructions", "Resyntheses", caption, *bands)
    caption = note(
        f"Inputs above outputs, z being the mode of q(z|x): {shown.source}. Mean squared error per pixel {mse}, "
        f"reconstruction term {number(float(np.mean(shown.nll_N)), 2)} nats, over these images."
    )
    return section("reconstructions", "Reconstructions", caption, *bands)


def samples(images_NCHW: figures.Images | None, why: str | None = None) -> Section | None:
    """Images drawn from what `why` names, or why there are none."""
    if images_NCHW is None or not len(images_NCHW):
        return section("samples", "Samples", note(why)) if why else None
    width = images_NCHW.shape[3]
    columns = min(len(images_NCHW), 8 if width > 44 else 16)
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
        parts += [who, _strip(row.images_SCHW, len(row.images_SCHW), _movement(row, shown))]
    marks = [tag("span", signed(f"{value:.4g}")) for value in shown.values]
    _, width, _ = charts.montage(shown.rows[0].images_SCHW, len(shown.values))
    width *= max(1, STRIP // width)
    ruler = tag("svg", viewBox=f"0 0 {width} 1", width=width, height=1, aria_hidden="true")
    axis = tag("div", ruler, tag("div", *marks, class_="axis"), aria_hidden="true", class_="ruled")
    parts += [tag("div", class_="blank"), axis]
    return section("traversals", "Traversals", note(shown.about), tag("div", *parts, class_="rows"))


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


# --------------------------------------------------------------------------------------------------------------- tables


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level of `a b` names; short lists as text, long ones as their length."""
    out: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{prefix} {key}".strip().replace("_", " ") if prefix else str(key)
        if isinstance(value, Mapping):
            out.update(flat(value, name))
        elif isinstance(value, (list, tuple)):
            plain = all(isinstance(v, (str, int, float, type(None))) for v in value)
            out[name] = ", ".join(number(v) for v in value) if plain and len(value) <= 12 else f"{len(value)} values"
        else:
            out[name] = value
    return out


def latent_table(
    latents: Sequence[Mapping[str, Any]], standard_prior: bool = True, levels: Sequence[str] = ()
) -> Section | None:
    """One row a latent with all that its record has; sortable. `x` and `x_error` share a column, and so do all the
    rules by which a latent can be inactive."""
    if not latents:
        return section("latents", "Latents", *(note(line) for line in levels)) if levels else None
    rules = [
        key.removeprefix(RULE)
        for key in latents[0]
        if key.startswith(RULE) and any(record.get(key) is not None for record in latents)
    ]
    records = [flat(_with_rules(record, rules)) for record in latents]
    keys = [k for k in dict.fromkeys(k for record in records for k in record) if not k.endswith("_error")]
    keys = [k for k in keys if any(record.get(k) is not None for record in records)]
    numeric = [k != "latent" and _is_numeric([r.get(k) for r in records]) for k in keys]
    places = [decimals(r.get(k) for r in records) for k in keys]
    rows = []
    for record in records:
        cells = []
        for key, is_number, digits in zip(keys, numeric, places, strict=True):
            value, error = record.get(key), record.get(f"{key}_error")
            shown = number(value, digits if isinstance(value, float) else None)
            if value is None and not is_number:
                shown = ""
            elif error is not None and shown != MISSING:
                shown += f" ± {number(error, digits)}"
            cells.append(Cell(shown, float(value) if is_number and value is not None else None))
        rows.append(cells)
    sorted_by = keys.index("kl") if "kl" in keys else keys.index("var_mu") if "var_mu" in keys else 0
    law = "; a trained-out latent has mean 0 and var μ + mean σ² = 1" if standard_prior else ""
    what = "Moments of q(z|x) over the images, each latent by itself" if "mean_mu" in keys else "Over the images"
    caption = f"{what}{law}. Press a header to sort."
    if rules:
        caption += f" Rules by which a latent is inactive: {', '.join(rules).replace('_', ' ')}."
    headings = [HEADINGS.get(k, k.replace("_", " ")) for k in keys]
    muted = [record.get("status") == "inactive" for record in latents]
    whole = table(headings, rows, caption, numeric=numeric, sorted_by=sorted_by, muted=muted)
    return section("latents", "Latents", *(note(line) for line in levels), whole)


def _with_rules(record: Mapping[str, Any], rules: Sequence[str]) -> dict[str, Any]:
    """The record with the number of rules it meets in place of the rules, and without its index."""
    kept = {key: value for key, value in record.items() if key != "index" and not key.startswith(RULE)}
    if rules:
        known = [flag for rule in rules if (flag := record.get(RULE + rule)) is not None]
        kept["inactive by"] = f"{sum(map(bool, known))} of {len(known)} rules"
    return kept


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [v for v in values if v is not None]
    return bool(known) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known)


def facts(entries: Mapping[str, Any], caption: str) -> Html | None:
    """Names and values in two columns; None without entries."""
    if not entries:
        return None
    rows = []
    for name, value in entries.items():
        shown = _command(value) if name == "command" else number(value)
        rows.append([Cell(name), Cell(shown)])
    return table((), rows, caption, numeric=(False, False), class_="facts")


def _command(line: str) -> Html:
    """A command line that breaks between its words only, as far as they are short."""
    words = line.split(" ")
    return join(part for word in words for part in (tag("span", word, class_="word" if len(word) <= 30 else None), " "))


def heat_table(
    values_RC: Array, rows: Sequence[str], columns: Sequence[str], caption: object, plain: Sequence[bool] = ()
) -> Html:
    """A matrix as a table whose cells are coloured by their value: from 0 up, or around 0 where some are negative.

    `plain` rows are pale and without colour: what they say of a latent that does nothing means little.
    """
    muted = list(plain) or [False] * len(rows)
    finite = values_RC[np.isfinite(values_RC)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    low = low if low < -1e-9 else 0.0
    places = 0 if (finite == finite.round()).all() and high > 1 else 2
    cells = [
        [
            Cell(name),
            *(
                Cell(number(float(v), places), class_=None if pale else charts.cell_class(float(v), low, high))
                for v in line
            ),
        ]
        for name, line, pale in zip(rows, values_RC, muted, strict=True)
    ]
    numeric = [False, *(True for _ in columns)]
    return table(("", *columns), cells, caption, numeric=numeric, muted=muted, class_="heat")


def matrices(
    results: Sequence[Result],
    share_DK: Array | None,
    latents: Sequence[str],
    factors: Sequence[str],
    order: Sequence[int],
    active: Sequence[int],
) -> Section | None:
    """Latents against factors: the variance explained, and the matrices of the metrics, each drawn once.

    `latents` are all of them in index order, `order` the order of the rows; those not in `active` stay without colour.
    """
    rows = list(order[:MOST_ROWS])
    names, plain = [latents[d] for d in rows], [d not in active for d in rows]
    parts: list[Html] = []
    others: list[Html] = []
    if share_DK is not None:
        caption = (
            "Share of the variance of μ that a factor alone explains (correlation ratio, corrected for chance). A "
            "latent that holds one factor has one value near 1 in its row."
        )
        parts.append(heat_table(share_DK[rows], names, factors, caption, plain))
    seen: list[Array] = []
    for result in results:
        for name, matrix in (result.score.matrices if result.score is not None else {}).items():
            values = np.asarray(matrix, dtype=np.float64)
            if values.ndim != 2 or any(np.array_equal(values, old, equal_nan=True) for old in seen):
                continue
            seen.append(values)
            plain_name = name.replace("_", " ")
            caption = plain_name if plain_name == result.name else f"{plain_name} ({result.name})"
            shown = parts if name in FIRST_MATRICES else others
            columns = list(factors) if values.shape[1] == len(factors) else []
            if values.shape[1] == len(latents) and not columns:
                values, columns = values[:, rows], names
            if len(values) == len(latents):
                shown.append(heat_table(values[rows], names, columns or _numbers(values.shape[1]), caption, plain))
            elif max(values.shape) <= MOST_ROWS:
                shown.append(heat_table(values, _numbers(len(values)), columns or _numbers(values.shape[1]), caption))
    if not parts and not others:
        return None
    about = note("Rows are latents by KL; those of inactive latents are without colour.") if any(plain) else None
    more = details(f"{len(others)} more, of other metrics", tag("div", *others, class_="pair")) if others else None
    return section("matrices", "Latents against factors", about, tag("div", *parts, class_="pair"), more)


def _numbers(count: int) -> list[str]:
    return [str(i) for i in range(count)] if count > 1 else [""]


def metrics(results: Sequence[Result]) -> Section | None:
    """Every value with what chance and the factors themselves would score."""
    if not results:
        return None
    rows, notes, settings = [], [], []
    problems: dict[str, list[str]] = {}
    for result in results:
        if result.score is None:
            problems.setdefault(result.problem or "could not be computed", []).append(result.name)
            continue
        for name, value in result.score.values.items():
            active, chance, ceiling = (
                None if values is None else values.get(name)
                for values in (result.active.values if result.active else None, result.chance, result.ceiling)
            )
            label = result.name if len(result.score.values) == 1 else f"{result.name}: {name}"
            rows.append([
                Cell(label.replace("_", " ")),
                Cell(number(value, 3), value),
                Cell("" if active is None else number(active, 3), active),
                Cell("" if chance is None else number(chance, 3), chance),
                Cell("" if ceiling is None else number(ceiling, 3), ceiling),
                Cell(charts.bar(value, chance, ceiling) or "", class_="mid"),
            ])  # fmt: skip
        notes += [tag("li", tag("b", result.name), ": ", sentence) for sentence in result.score.notes]
        if result.score.settings:
            text = "; ".join(f"{k.replace('_', ' ')} {v}" for k, v in flat(result.score.settings).items())
            settings.append(tag("li", tag("b", result.name), ": ", text))
    left_out = [tag("li", tag("b", ", ".join(names)), f": {why}") for why, names in problems.items()]
    drawn = table(
        ("metric", "value", "active latents only", "chance", "ceiling", "from 0 to 1"),
        rows,
        "Chance: codes that know nothing of the factors. Ceiling: the factors themselves as codes. In the bars chance "
        "is the mark below, the ceiling the mark above.",
        numeric=(False, True, True, True, True, False),
    )
    return section(
        "metrics",
        "Metrics",
        drawn if rows else None,
        tag("ul", *notes, class_="note") if notes else None,
        note("Not computed:") if problems else None,
        tag("ul", *left_out, class_="note") if problems else None,
        details("Settings of the estimators", tag("ul", *settings, class_="note")) if settings else None,
    )


def diagnosis(numbers: Mapping[str, str]) -> Section | None:
    """The numbers of the model as a whole that take more than one pass, in words."""
    return section("diagnosis", "Diagnosis", facts(numbers, "The model as a whole"))


# ------------------------------------------------------------------------------------------------- latents and factors


@dataclass(frozen=True)
class Roles:
    """Which factors are drawn how: a pair as a map (across, down), one as lines of its own, the rest along an axis."""

    across: int | None
    down: int | None
    group: int | None
    curves: Sequence[int]


def roles(names: Sequence[str], sizes: Sequence[int]) -> Roles:
    """By name: x and y positions make a map; a `shape` of few values gives one line a value."""
    plain = [name.lower().replace("_", "").replace("-", "").replace(" ", "") for name in names]

    def find(*wanted: str) -> int | None:
        return next((k for k, name in enumerate(plain) if name in wanted and sizes[k] > 1), None)

    across, down = find("posx", "positionx", "xposition", "x"), find("posy", "positiony", "yposition", "y")
    if across is None or down is None or sizes[across] * sizes[down] > MOST_CELLS:
        across = down = None
    group = find("shape", "objectshape", "objshape")
    if group is not None and sizes[group] > MOST_LINES:
        group = None
    rest = [k for k, size in enumerate(sizes) if size > 1 and k not in (across, down)]
    return Roles(across, down, group, rest[:CURVED])


def profiles_of(
    codes: Codes | None, latents: Sequence[int], values: Mapping[str, Sequence[str]] | None = None
) -> Section | None:
    """For each of these latents its mean over positions and against every other factor (Higgins et al. 2017, figure of
    the 2D shapes). `values` names the values of a factor."""
    if codes is None or codes.factors_NK is None or not len(latents) or not codes.varying:
        return None
    sizes = [int(column.max()) + 1 for column in codes.factors_NK.T]
    role = roles(codes.factor_names, sizes)
    chosen = list(latents[:MOST_PANELS])
    map_XYD = None if role.across is None or role.down is None else profiles.means_over(codes, (role.across, role.down))
    curves = {}
    for k in role.curves:
        split = role.group is not None and k != role.group
        mean = profiles.means_over(codes, (k, role.group) if split else (k,))  # type: ignore[arg-type]
        curves[k] = mean if split else mean[:, None]
    drawn = [m[..., chosen] for m in (map_XYD, *curves.values()) if m is not None]
    span = max((float(np.nanmax(np.abs(m))) for m in drawn), default=1.0) or 1.0
    group_names = _value_names(codes, role.group, sizes, values)
    rows = []
    for d in chosen:
        panels = []
        if map_XYD is not None:
            panels.append(_position_map(map_XYD[..., d], codes, role, codes.latent_names[d], span))
        for k, mean in curves.items():
            lines = group_names if mean.shape[1] > 1 else ["all"]
            x_texts = _value_names(codes, k, sizes, values) if sizes[k] <= MOST_LINES else None
            panels.append(
                _factor_curve(mean[..., d], codes.latent_names[d], codes.factor_names[k], lines, x_texts, span)
            )
        rows += [tag("h3", codes.latent_names[d]), tag("div", *panels, class_="small maps")]
    keys = []
    if map_XYD is not None:
        bar = charts.map_png(np.linspace(-span, span, 128)[None], span)
        alt = f"Colour scale from blue for {number(-span)} over white for 0 to orange for {number(span)}"
        ends = (tag("span", number(-span)), image(bar, 192, 11, alt), tag("span", number(span)))
        keys.append(tag("p", *ends, class_="scalebar"))
    if role.group is not None:
        keys.append(charts.legend([Line(name, (), (), i) for i, name in enumerate(group_names)]))
    left_out = f" The {len(latents) - len(chosen)} with less KL are left out." if len(latents) > len(chosen) else ""
    about = note(
        f"The mean of μ over all {len(codes):,} images that share a value of the factor, whatever their other factors; "
        f"one scale in all panels.{left_out}"
    )
    return section("factors", "What each latent follows", about, *keys, *rows)


def _value_names(
    codes: Codes, k: int | None, sizes: Sequence[int], values: Mapping[str, Sequence[str]] | None
) -> list[str]:
    if k is None:
        return [""]
    known = (values or {}).get(codes.factor_names[k], ())
    return list(known) if len(known) == sizes[k] else [f"{codes.factor_names[k]} {v}" for v in range(sizes[k])]


def _position_map(mean_XY: Array, codes: Codes, role: Roles, name: str, span: float) -> Html:
    assert role.across is not None and role.down is not None
    across, down = codes.factor_names[role.across], codes.factor_names[role.down]
    low, high = (np.unravel_index(f(mean_XY), mean_XY.shape) for f in (np.nanargmin, np.nanargmax))
    alt = (
        f"{name} over positions: lowest mean {number(float(mean_XY[low]), 2)} at {across} {low[0]}, {down} {low[1]}; "
        f"highest {number(float(mean_XY[high]), 2)} at {across} {high[0]}, {down} {high[1]}."
    )
    picture = image(charts.map_png(mean_XY.T, span), 192, 192, alt)
    return figure(picture, f"{across} →, {down} ↓")


def _factor_curve(
    mean_VG: Array, latent: str, factor: str, groups: Sequence[str], x_texts: Sequence[str] | None, span: float
) -> Html:
    """A line over the factor's values for each group; `groups` has a name for each."""
    x = list(range(len(mean_VG)))
    lines = [Line(name, x, mean_VG[:, g].tolist(), g, dots=len(x) < 12) for g, name in enumerate(groups)]
    drawn = charts.line_chart(
        lines,
        f"Mean of {latent}",
        x_name=factor,
        y_range=(-1.05 * span, 1.05 * span),
        size=(200, 190),
        x_texts=x_texts,
        whole=True,
    )
    return figure(drawn or tag("p", MISSING), factor)


def marginals(codes: Codes | None, latents: Sequence[int], standard_prior: bool) -> Section | None:
    """q(z_i) of each latent, the mixture of all q(z_i|x), against the prior."""
    if codes is None or codes.logvar_ND is None or not len(latents):
        return None
    chosen = list(latents[:MOST_PANELS])
    panels = []
    for d in chosen:
        mean_N, logvar_N = codes.mean_ND[:, d], codes.logvar_ND[:, d]
        sigma = np.exp(0.5 * logvar_N)
        low = min(-4.0, float(np.quantile(mean_N - 3 * sigma, 0.001)))
        high = max(4.0, float(np.quantile(mean_N + 3 * sigma, 0.999)))
        z_G = np.linspace(low, high, 241)
        density_G = profiles.mixture_density(mean_N, logvar_N, z_G)
        lines = [Line("q(z)", z_G.tolist(), density_G.tolist(), 0)]
        if standard_prior:
            lines.append(Line("N(0, 1)", z_G.tolist(), profiles.normal_density(z_G).tolist(), 1, dashed=True))
        top = max(float(max(line.y)) for line in lines)
        name = codes.latent_names[d]
        peak = number(float(z_G[int(density_G.argmax())]), 2)
        drawn = charts.line_chart(
            lines, f"Density of {name}, highest at {peak} with {number(float(density_G.max()), 3)},", x_name="z",
            y_range=(0.0, 1.05 * top), size=(200, 150), fill=True,
        )  # fmt: skip
        panels.append(figure(drawn or tag("p", MISSING), name))
    prior = (
        "N(0, 1)" if standard_prior else "a prior that this page does not draw, as it is not N(0, 1) for every latent"
    )
    keys = [Line("q(z), the mean of all q(z|x)", (), (), 0)]
    keys += [Line("N(0, 1)", (), (), 1, dashed=True)] if standard_prior else []
    left_out = f" The {len(latents) - len(chosen)} with less KL are left out." if len(latents) > len(chosen) else ""
    about = note(f"What the decoder is trained on, against what it is sampled from: {prior}.{left_out}")
    return section("marginals", "Marginals of q(z)", about, charts.legend(keys), tag("div", *panels, class_="small"))


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
        tag("div", *(t for t in tables if t is not None), class_="pair"),
        tag("h3", "Configuration"),
        note("Written to a file, vae train --config repeats the run with it."),
        config,
    )
