"""The section on labels: how far they control what the model makes, in numbers and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vaecli.report import charts, figures
from vaecli.report.markup import Cell, Html, figure, image, number, table, tag
from vaecli.report.section import Section, note, section
from vaecli.report.sections import STRIP


@dataclass(frozen=True)
class Picture:
    """Rows of images under `headings`, one a column; `about` says what they show."""

    heading: str
    about: str
    images_NCHW: figures.Images
    headings: Sequence[str]


@dataclass(frozen=True)
class Controlled:
    """`rows` are (measure, of what, value), `reader` says who read the factors."""

    rows: Sequence[tuple[str, str, str]]
    reader: str
    pictures: Sequence[Picture]


def control(shown: Controlled | None) -> Section | None:
    """None where no labels can be asked for."""
    if shown is None:
        return None
    cells = [[Cell(measure), Cell(of), Cell(value.replace("+-", "±"))] for measure, of, value in shown.rows]
    caption = "Factors are read from the images that the model makes; errors are standard errors of a share."
    numbers = table(("measure", "of", "value"), cells, caption, numeric=(False, False, False))
    return section(
        "control", "Control by labels", note(f"Read by {shown.reader}."), *map(_drawn, shown.pictures), numbers
    )


def _drawn(picture: Picture) -> Html:
    columns = len(picture.headings)
    png, width, height = charts.montage(picture.images_NCHW, columns)
    scale = max(1, STRIP // width)
    spread = float(np.asarray(picture.images_NCHW, dtype=np.float64).std(axis=0).mean())
    alt = (
        f"{picture.heading}: {len(picture.images_NCHW)} images in columns: {', '.join(picture.headings)}; mean "
        f"standard deviation of a pixel between images {number(spread)}."
    )
    marks = tag("p", f"Columns: {', '.join(picture.headings)}.", class_="note")
    shown = tag("div", image(png, width * scale, height * scale, alt), class_="strip")
    return tag("div", tag("h3", picture.heading), note(picture.about), figure(shown, marks))
