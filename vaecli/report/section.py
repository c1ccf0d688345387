"""A part of the page."""

from typing import NamedTuple

from vaecli.report.markup import Html, tag


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
