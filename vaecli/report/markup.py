"""HTML that cannot be injected into: `tag` escapes every child and attribute that is not `Html` already.

Names, paths and configurations come from files of strangers. The page also forbids itself everything but its own style
and script (by hash) and pictures within it, so that it neither asks the network for anything nor runs what it shows.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vaecli import output

VOID = ("img", "meta", "link", "br", "input")
MISSING = "n/a"
TALL = 30  # rows of a table that is shown whole
MINUS = "\N{MINUS SIGN}"


class Html(str):
    """Text that is HTML: escaped, or made of tags."""


def text(value: object) -> Html:
    """Any value as text: markup escaped, and control and bidirectional characters written out."""
    return value if isinstance(value, Html) else Html(escape(output.safe(value, "\n\t")))


def join(parts: Iterable[object]) -> Html:
    """Parts side by side, without those that are None."""
    return Html("".join(text(part) for part in parts if part is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """`tag("p", "a < b", class_="x", aria_label="y")`; None leaves an attribute out, True gives it no value."""
    written = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(attribute)
        elif value is not None and value is not False:
            written.append(f'{attribute}="{text(str(value))}"')
    opening = f"<{' '.join(written)}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def document(title: str, body: Html, style: str, script: str, asks: bool = False) -> str:
    """A whole page. `style` and `script` are ours, and the policy names them by their sha256; only a page that `asks`
    may ask anything of where it is from."""
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        + ("connect-src 'self'; " if asks else "")
        + "base-uri 'none'; form-action 'none'"
    )
    head = join([
        tag("meta", charset="utf-8"),
        # Quotes need no escape within double quotes, and the policy has nothing else to escape.
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(style)),
    ])  # fmt: skip
    page = tag("html", tag("head", head), tag("body", body, tag("script", Html(script))), lang="en")
    return f"<!doctype html>\n{page}\n"


def _source(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


# -------------------------------------------------------------------------------------------------------------- numbers


def number(value: object, decimals: int | None = None) -> str:
    """A number for readers: `decimals` places, or four significant digits; `n/a` where there is none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return MISSING if value is None or isinstance(value, (int, float)) else str(value)
    if isinstance(value, int):
        shown = f"{value:,}"
    elif decimals is not None:
        shown = f"{value:,.{decimals}f}"
    elif value != 0 and not 1e-4 <= abs(value) < 1e6:
        shown = f"{value:.3g}"
    else:
        shown = f"{value:,.{max(0, 3 - _magnitude(value))}f}"
    return signed(shown)


def signed(shown: str) -> str:
    """With a real minus sign, and none before a zero."""
    if shown.startswith("-") and not any(c in "123456789" for c in shown):
        return shown[1:]
    return shown.replace("-", MINUS)


def decimals(values: Iterable[object]) -> int:
    """Decimals for a column of numbers: five digits for the largest, between one and four."""
    sizes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v)]
    return min(4, max(1, 4 - _magnitude(max(sizes, default=1.0))))


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


# --------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Cell:
    """`shown` in the table, sorted by `value` where that is a number."""

    shown: object
    value: float | None = None
    class_: str | None = None


def table(
    headers: Sequence[object],
    rows: Sequence[Sequence[Cell]],
    caption: object,
    *,
    numeric: Sequence[bool],
    sorted_by: int | None = None,
    muted: Sequence[bool] = (),
    class_: str = "",
    more: Sequence[bool] = (),
) -> Html:
    """A table in a box of its own that scrolls sideways; the first column heads its rows. Columns of `more` are shown
    when the box before it is ticked.

    With `sorted_by` (the column by which it is sorted already, largest first) its headers are buttons that sort it.
    """
    sortable = sorted_by is not None

    def hidden(i: int) -> bool:
        return i < len(more) and more[i]

    head = []
    for i, header in enumerate(headers):
        order = None if not sortable else "descending" if i == sorted_by else "none"
        label = tag("button", header, type="button") if sortable else header
        classes = " ".join(filter(None, ("n" if numeric[i] else "", "more" if hidden(i) else ""))) or None
        head.append(tag("th", label, scope="col", class_=classes, aria_sort=order))
    body = []
    for j, row in enumerate(rows):
        cells = []
        for i, cell in enumerate(row):
            value = cell.value if cell.value is not None and math.isfinite(cell.value) else None
            words = ("n" if numeric[i] else "", "more" if hidden(i) else "", cell.class_ or "")
            classes = " ".join(filter(None, words)) or None
            key = repr(value) if sortable and value is not None else None
            scope = {"scope": "row"} if i == 0 else {}
            cells.append(tag("td" if i else "th", cell.shown, class_=classes, data_v=key, **scope))
        body.append(tag("tr", *cells, class_="muted" if j < len(muted) and muted[j] else None))
    whole = tag(
        "table",
        tag("caption", tag("div", caption)),
        tag("thead", tag("tr", *head)) if head else None,
        tag("tbody", *body),
        class_=" ".join(filter(None, ("sortable" if sortable else "", class_))) or None,
    )
    tall = len(rows) > TALL
    if not any(more):
        return scroll(whole, "table", tall)
    box = tag("label", tag("input", type="checkbox"), f" all {len(headers)} columns")
    return tag("div", box, scroll(whole, "table", tall), class_="wide")


def scroll(content: Html, what: str, tall: bool = False) -> Html:
    """A box that scrolls sideways, by keyboard too; a `tall` one is no higher than a screen and scrolls down, too."""
    return tag(
        "div", content, class_="scroll tall" if tall else "scroll", tabindex=0, role="region",
        aria_label=f"{what}, scrolls {'both ways' if tall else 'sideways'}",
    )  # fmt: skip


def details(summary: str, *content: object) -> Html:
    return tag("details", tag("summary", summary), *content)


def figure(content: Html, caption: object, class_: str | None = None) -> Html:
    return tag("figure", content, tag("figcaption", caption), class_=class_)


def image(png: bytes, width: int, height: int, alt: str, class_: str | None = None) -> Html:
    return tag("img", src=data_uri(png), width=width, height=height, alt=alt, class_=class_)
