"""Groups of runs as a picture or a table for a paper: numbers in, text out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from vaecli.report import charts
from vaecli.report.charts import Line
from vaecli.report.markup import Html, tag

PANEL, ACROSS, MARGIN = (300, 210), 3, 12


@dataclass(frozen=True)
class Panel:
    """One quantity: of each group the values of its seeds, their mean and standard deviation (None: one seed)."""

    heading: str
    seeds: Sequence[Sequence[float]]
    mean: Sequence[float | None]
    sd: Sequence[float | None]


def svg(panels: Sequence[Panel], name: str, x: Sequence[float] | None, labels: Sequence[str]) -> str:
    """Each quantity against the setting `name`, seeds as points, mean and standard deviation as a line with bars; `x`
    None stands for settings that are no numbers, which have a place each."""
    places = list(x) if x is not None else [float(i) for i in range(len(labels))]
    drawn = [one for panel in panels if (one := _panel(panel, name, places, None if x is not None else labels))]
    width = MARGIN + min(ACROSS, max(len(drawn), 1)) * (PANEL[0] + MARGIN)
    height = MARGIN + -(-len(drawn) // ACROSS) * (PANEL[1] + 40)
    parts = []
    for i, (heading, chart) in enumerate(drawn):
        left, top = MARGIN + i % ACROSS * (PANEL[0] + MARGIN), MARGIN + i // ACROSS * (PANEL[1] + 40)
        parts.append(tag("text", heading, x=left, y=top + 12, class_="head"))
        parts.append(tag("text", name, x=left + PANEL[0] / 2, y=top + PANEL[1] + 26, text_anchor="middle"))
        parts.append(tag("svg", chart, x=left, y=top + 18, width=PANEL[0], height=PANEL[1]))
    if x is None:  # what stands at which place, where the names are too long for an axis
        for i, label in enumerate(labels):
            parts.append(tag("text", f"{i}: {label}", x=MARGIN, y=height + 6 + 16 * i))
        height += 16 * len(labels) + MARGIN
    sheet = (files("vaecli.report") / "page.css").read_text(encoding="utf-8")
    light = sheet.split("@media", 1)[0]
    rules = [rule for rule in sheet.splitlines() if re.match(r"(svg text|\.grid|\.mark|\.line|\.dots|\.k0)", rule)]
    style = tag("style", Html("\n".join([light, *rules, "text.head{font-size:13px;font-weight:650;fill:var(--ink)}"])))
    back = tag("rect", width="100%", height="100%", fill="white")
    whole = tag(
        "svg", style, back, *parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width,
        height=height,
    )  # fmt: skip
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{whole}\n'


def _panel(panel: Panel, name: str, places: Sequence[float], labels: Sequence[str] | None) -> tuple[str, Html] | None:
    known = [(place, mean) for place, mean in zip(places, panel.mean, strict=True) if mean is not None]
    if not known:
        return None
    bars = [
        Line(f"sd at {place:g}", (place, place), (mean - sd, mean + sd), 0)
        for place, mean, sd in zip(places, panel.mean, panel.sd, strict=True)
        if mean is not None and sd is not None
    ]
    points = [(place, value) for place, values in zip(places, panel.seeds, strict=True) for value in values]
    seeds = Line("seeds", [p[0] for p in points], [p[1] for p in points], 1, joined=False)
    ordered = sorted(known)
    mean = Line("mean", [p[0] for p in ordered], [p[1] for p in ordered], 0, dots=True, joined=labels is None)
    chart = charts.line_chart(
        [*bars, mean, seeds], panel.heading, x_name=name, size=PANEL, x_texts=labels, whole=labels is not None
    )
    return None if chart is None else (panel.heading, chart)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of GitHub's Markdown."""
    escaped = [[cell.replace("\\", "\\\\").replace("|", "\\|") for cell in row] for row in (headings, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    rule = "|" + "|".join(["---", *["---:"] * (len(headings) - 1)]) + "|"
    return [lines[0], rule, *lines[1:]]


_LATEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


def latex(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A tabular of the package booktabs; cells that begin and end with `$` are mathematics and stay."""

    def cell(text: str) -> str:
        if len(text) > 1 and text[0] == text[-1] == "$":
            return text
        return "".join(_LATEX.get(sign, sign) for sign in text)

    lines = [" & ".join(map(cell, row)) + r" \\" for row in (headings, *rows)]
    columns = "l" + "r" * (len(headings) - 1)
    return [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
            r"\end{tabular}"]  # fmt: skip
