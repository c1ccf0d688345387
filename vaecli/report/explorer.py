"""The explorer: sliders over the latents, whose picture a server or the page itself decodes; alone or in a report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from vaecli.report import charts
from vaecli.report.markup import Html, data_uri, document, join, tag
from vaecli.report.section import Section, note, section


@dataclass(frozen=True)
class Slider:
    """One thing that can be moved: a number between `low` and `high` (`whole`: a count), or one of `options`."""

    name: str
    level: str
    note: str
    low: float
    high: float
    whole: bool = False
    options: Sequence[str] | None = None
    dead: bool = False


@dataclass(frozen=True)
class Exploration:
    """What the page shows. `start` and `rest` have a value for each slider, `images` a PNG, a name and these values.

    `columns` are those that `vae decode` reads.
    `follow` are the levels that can follow those above them; `net` the layers that decode in the page, None where a
    server does.
    """

    title: str
    subtitle: str
    shape: tuple[int, int, int]
    sliders: Sequence[Slider]
    start: Sequence[float]
    rest: Sequence[float]
    images: Sequence[tuple[bytes, str, Sequence[float]]]
    follow: Sequence[str] = ()
    net: Sequence[Mapping[str, Any]] | None = None
    columns: Sequence[tuple[str, int, int | None]] = ()  # of the code: name, slider and, of labels, which option


def data(shown: Exploration) -> Html:
    """What the script reads, as an element of the page."""
    columns = shown.columns or [(slider.name, i, None) for i, slider in enumerate(shown.sliders)]
    told = {
        "shape": list(shown.shape),
        "movers": [
            {
                "name": s.name, "level": s.level, "note": s.note, "low": s.low, "high": s.high, "whole": s.whole,
                "options": None if s.options is None else list(s.options), "dead": s.dead,
            }
            for s in shown.sliders
        ],
        "start": list(shown.start),
        "rest": list(shown.rest),
        "images": [{"picture": data_uri(png), "name": name, "code": list(code)} for png, name, code in shown.images],
        "columns": [list(column) for column in columns],
        "follow": [{"name": name} for name in shown.follow],
        "net": shown.net,
    }  # fmt: skip
    # A text between these tags ends at the first `</`, and nowhere else: names come from files of strangers.
    text = json.dumps(told, allow_nan=False).replace("<", "\\u003c")
    return tag("script", Html(text), type="application/json", id="data")


def style() -> str:
    return (files("vaecli.report") / "explorer.css").read_text(encoding="utf-8")


def script() -> str:
    parts = files("vaecli.report")
    return "".join((parts / name).read_text(encoding="utf-8") for name in ("nets.js", "explorer.js"))


def render(shown: Exploration) -> str:
    """The page as text; without `net` it asks `decode` beside it, and nothing else."""
    body = join([
        tag("header", tag("h1", shown.title), tag("p", shown.subtitle, class_="sub")),
        tag("main", tag("div", id="explorer")),
        data(shown),
    ])  # fmt: skip
    page = (files("vaecli.report") / "page.css").read_text(encoding="utf-8") + style() + charts.cell_style()
    return document(shown.title, body, page, script(), asks=shown.net is None)


def part(shown: Exploration | None, why: str | None) -> Section | None:
    """The explorer within a report, behind a button; or `why` there is none."""
    if shown is None:
        return section("explore", "Explore", None if why is None else note(why))
    button = tag("button", "move the latents", type="button", id="open")
    return section("explore", "Explore", tag("div", button, id="explorer"), data(shown))
