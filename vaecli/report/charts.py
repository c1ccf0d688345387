"""Charts as inline SVG and pictures as PNG: numbers in, `Html` or bytes out.

Every picture carries a text that says in numbers what is seen. Colours of lines and cells are classes of the style
sheet, so that they suit a light and a dark page; those of PNG pictures suit both.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vaecli.analysis.codes import Array
from vaecli.report import figures
from vaecli.report.markup import Html, number, signed, tag

LEVELS = 16  # of the colours of table cells
COLOURS = 6  # of lines
POINTS = 300  # of a line as drawn
GAP = 2  # pixels between images
SMALLEST = 32  # pixels: the width to which images are enlarged

RGB = tuple[int, int, int]
# Ordered by lightness, safe for the colour-blind: pale yellow - teal - indigo; and blue - white - orange.
SEQUENTIAL: Sequence[RGB] = (
    (252, 250, 232),
    (196, 226, 190),
    (98, 186, 172),
    (42, 128, 150),
    (46, 72, 128),
    (48, 22, 84),
)
DARK: Sequence[RGB] = ((32, 30, 52), (44, 58, 110), (36, 106, 136), (60, 158, 136), (150, 206, 110), (246, 232, 90))
DIVERGING: Sequence[RGB] = (
    (18, 66, 124), (64, 136, 196), (168, 206, 232), (246, 244, 240), (250, 200, 150), (222, 118, 34), (128, 54, 4),
)  # fmt: skip


def colour(anchors: Sequence[RGB], share: float) -> RGB:
    """The colour at `share` in [0, 1] of the way through the anchors, linear in between; beyond the ends, the ends."""
    position = min(max(share, 0.0), 1.0) * (len(anchors) - 1)
    i = min(int(position), len(anchors) - 2)
    part = position - i
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(anchors[i], anchors[i + 1], strict=True))
    return red, green, blue


def contrast(a: RGB, b: RGB) -> float:
    """WCAG 2.2 contrast ratio of two colours, 1 to 21."""

    def luminance(rgb: RGB) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def cell_style() -> str:
    """CSS of the cell classes: s0 to s15 from low to high, d0 to d15 from negative over zero to positive."""

    def rules(prefix: str, anchors: Sequence[RGB]) -> str:
        lines = []
        for level in range(LEVELS):
            back = colour(anchors, level / (LEVELS - 1))
            ink = max(((12, 14, 20), (255, 255, 255)), key=lambda text, back=back: contrast(text, back))  # type: ignore[misc]
            lines.append(f".{prefix}{level}{{background:#{_hex(back)};color:#{_hex(ink)}}}")
        return "\n".join(lines)

    dark = f"@media screen and (prefers-color-scheme:dark){{\n{rules('s', DARK)}\n}}"
    return f"{rules('s', SEQUENTIAL)}\n{rules('d', DIVERGING)}\n{dark}\n"


def _hex(rgb: RGB) -> str:
    return "".join(f"{c:02x}" for c in rgb)


def cell_class(value: float, low: float, high: float) -> str | None:
    """The class of a cell: sequential from `low` >= 0 to `high`, or diverging around 0 where `low` < 0."""
    if not math.isfinite(value):
        return None
    if low < 0:
        span = max(-low, high)
        return f"d{round((value / span + 1) / 2 * (LEVELS - 1))}"
    share = (value - low) / (high - low) if high > low else 0.0
    return f"s{round(min(max(share, 0.0), 1.0) * (LEVELS - 1))}"


# ---------------------------------------------------------------------------------------------------------------- lines


@dataclass(frozen=True)
class Scale:
    """From values in [low, high] to pixels between `start` and `end`, linearly or in the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 4) -> list[float]:
        """Round values within the scale: powers of ten (with 2 and 5 where those are few), or steps of 1, 2 or 5."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for mantissas in ((1,), (1, 3), (1, 2, 5)):
                found = [m * 10.0**e for e in range(first, last + 1) for m in mantissas]
                found = [v for v in found if self.low <= v * (1 + 1e-9) and v <= self.high * (1 + 1e-9)]
                if len(found) >= 3:
                    return found[:: math.ceil(len(found) / (about + 2))]
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / about))
        choices = [self._multiples(m * power) for m in (1, 2, 5, 10)]
        return min(choices, key=lambda ticks: abs(len(ticks) - about))

    def _multiples(self, step: float) -> list[float]:
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


@dataclass(frozen=True)
class Line:
    """A line of a chart. `colour` counts the style sheet's line colours, None being grey; `label` stands at its end."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = 0
    dashed: bool = False
    dots: bool = False
    label: bool = False
    joined: bool = True  # False of values that have no order: dots alone

    def points(self) -> list[tuple[float, float]]:
        """The finite ones, at most 300, evenly taken, the last always."""
        found = [
            (float(a), float(b)) for a, b in zip(self.x, self.y, strict=True) if math.isfinite(a) and math.isfinite(b)
        ]
        if len(found) <= POINTS:
            return found
        return [found[round(i * (len(found) - 1) / (POINTS - 1))] for i in range(POINTS)]

    @property
    def classes(self) -> str:
        return f"k{self.colour % COLOURS}" if self.colour is not None else "kx"


def path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    """SVG path data, tenths of a pixel."""
    return "".join(f"{'L' if i else 'M'}{x(a):.1f} {y(b):.1f}" for i, (a, b) in enumerate(points))


def is_log(values: Sequence[float]) -> bool:
    """Whether an axis had better be logarithmic: all values positive, the largest over four times the smallest."""
    finite = [v for v in values if math.isfinite(v)]
    return bool(finite) and min(finite) > 0 and max(finite) > 4 * min(finite)


def line_chart(
    lines: Sequence[Line],
    title: str,
    *,
    x_name: str = "step",
    log: bool = False,
    y_range: tuple[float, float] | None = None,
    mark: float | None = None,
    size: tuple[int, int] = (300, 200),
    fill: bool = False,
    x_texts: Sequence[str] | None = None,
    whole: bool = False,
) -> Html | None:
    """A chart of lines, None where no line has a point. `mark` is a vertical line; `fill` shades below the first line;
    `x_texts` name x = 0, 1, 2, ... where there is room for them; `whole`: x counts, so no ticks between."""
    drawn = [(line, points) for line in lines if (points := line.points())]
    if not drawn:
        return None
    width, height = size
    xs = [a for _, points in drawn for a, _ in points]
    ys = [b for _, points in drawn for _, b in points]
    labelled = [line for line, _ in drawn if line.label]
    right = 8 + (max(len(line.name) for line in labelled) * 6.4 if labelled else 0)
    low, high = y_range or _padded(min(ys), max(ys), log)
    first, last = min(xs), max(xs)
    if first == last:  # one evaluation: from the start to it, or as far on both sides
        first, last = (0.0, first) if first > 0 and not whole else (first - 0.5, last + 0.5)
    y = Scale(low, high, height - 24, 10, log)
    y_ticks = y.ticks(4)
    y_texts = _tick_texts(y_ticks)
    left = 8 + 6.2 * max((len(t) for t in y_texts), default=1)
    x = Scale(first, last, left + 4, width - right - 4)
    parts: list[Html] = []
    for value, shown in zip(y_ticks, y_texts, strict=True):
        at = f"{y(value):.1f}"
        parts.append(tag("line", x1=f"{left:.1f}", x2=f"{width - right:.1f}", y1=at, y2=at, class_="grid"))
        parts.append(tag("text", shown, x=f"{left - 4:.1f}", y=at, dy=".35em", text_anchor="end"))
    x_ticks = [value for value in x.ticks(4) if not whole or value == round(value)]
    x_shown = _tick_texts(x_ticks)
    if x_texts is not None and 6.5 * sum(len(text) + 2 for text in x_texts) < width - right - left:
        x_ticks, x_shown = [float(i) for i in range(len(x_texts))], list(x_texts)
    for value, shown in zip(x_ticks, x_shown, strict=True):
        half = 3.2 * len(shown)
        place = min(max(x(value), left - 6 + half), width - half)
        parts.append(tag("text", shown, x=f"{place:.1f}", y=height - 9, text_anchor="middle"))
    if mark is not None and first <= mark <= last:
        at = f"{x(mark):.1f}"
        parts.append(tag("line", x1=at, x2=at, y1=10, y2=height - 24, class_="mark"))
    if fill:
        line, points = drawn[0]
        base = f"L{x(points[-1][0]):.1f} {y(low):.1f}L{x(points[0][0]):.1f} {y(low):.1f}Z"
        parts.append(tag("path", d=path(points, x, y) + base, class_=f"area {line.classes}"))
    for line, points in drawn:
        dash = "5 3" if line.dashed else None
        if line.joined:
            parts.append(tag("path", d=path(points, x, y), class_=f"line {line.classes}", stroke_dasharray=dash))
        if line.dots or not line.joined or len(points) == 1:
            dots = [tag("circle", cx=f"{x(a):.1f}", cy=f"{y(b):.1f}", r="2.2") for a, b in points]
            parts.append(tag("g", *dots, class_=f"dots {line.classes}"))
    ends = [(y(points[-1][1]), line, points[-1][0]) for line, points in drawn if line.label]
    ends.sort(key=lambda end: end[0])
    for place, (_, line, end) in zip(_apart([e[0] for e in ends], 11.0, 10, height - 24), ends, strict=True):
        at = f"{x(end) + 6:.1f}"
        parts.append(tag("text", line.name, x=at, y=f"{place:.1f}", dy=".35em", class_=f"end {line.classes}"))
    said = f"{title} against {x_name}. " + "; ".join(_said(line, points, x_name) for line, points in drawn[:12])
    said += f"; and {len(drawn) - 12} more" if len(drawn) > 12 else ""
    return tag("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=f"{said}.", class_="chart")


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return (low / 1.1, high * 1.1) if high > low else (low / 2, high * 2)
    margin = 0.05 * (high - low) or 0.2 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin


def _tick_texts(values: Sequence[float]) -> list[str]:
    """Ticks as short as they can be and still differ: 20k for 20,000."""
    if not values:
        return []
    top = max(map(abs, values))
    scale, unit = (1e6, "M") if top >= 1e6 else (1e3, "k") if top >= 1e4 else (1.0, "")
    return [signed(f"{v / scale:.6g}{unit if v else ''}") for v in values]


def _said(line: Line, points: Sequence[tuple[float, float]], x_name: str) -> str:
    (a, b), (c, d) = points[0], points[-1]
    if len(points) == 1:
        return f"{line.name}: {number(b)} at {x_name} {number(a)}"
    return f"{line.name}: from {number(b)} at {x_name} {_whole(a)} to {number(d)} at {x_name} {_whole(c)}"


def _whole(value: float) -> str:
    return number(int(value) if value == int(value) else value)


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Increasing places moved as little as keeps them `gap` apart and, where there is room, within [low, high]."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else low))
    over = moved[-1] - high if moved else 0.0
    for i in range(len(moved) - 1, -1, -1):
        limit = high if i == len(moved) - 1 else moved[i + 1] - gap
        if over > 0:
            moved[i] = min(moved[i], limit)
    return moved


def legend(lines: Sequence[Line]) -> Html:
    """What the lines of a chart are."""
    entries = []
    for line in lines:
        dash = "5 3" if line.dashed else None
        stroke = tag("path", d="M0 5L22 5", class_=f"line {line.classes}", stroke_dasharray=dash)
        if not line.joined:
            stroke = tag("g", tag("circle", cx=11, cy=5, r=4), class_=f"dots {line.classes}")
        key = tag("svg", stroke, viewBox="0 0 22 10", width=22, height=10, aria_hidden="true")
        entries.append(tag("span", key, line.name))
    return tag("p", *entries, class_="legend")


def bar(value: float, chance: float | None, ceiling: float | None) -> Html | None:
    """A value between 0 and 1 as a bar, with marks at its chance level (below) and ceiling (above); else None."""
    known = [v for v in (value, chance, ceiling) if v is not None and math.isfinite(v)]
    if not math.isfinite(value) or not all(-1e-9 <= v <= 1 + 1e-9 for v in known):
        return None
    width = 140
    parts = [
        tag("rect", x=0, y=5, width=width, height=8, class_="track"),
        tag("rect", x=0, y=5, width=f"{max(value, 0) * width:.1f}", height=8, class_="value"),
    ]
    for mark, top, name in ((chance, 9, "chance"), (ceiling, 1, "ceiling")):
        if mark is not None and math.isfinite(mark):
            at = f"{min(max(mark * width, 1), width - 1):.1f}"
            parts.append(tag("line", x1=at, x2=at, y1=top, y2=top + 8, class_=name))
    return tag("svg", *parts, viewBox=f"0 0 {width} 18", width=width, height=18, aria_hidden="true", class_="bar")


# ------------------------------------------------------------------------------------------------------------- pictures


def montage(images_NCHW: figures.Images, columns: int) -> tuple[bytes, int, int]:
    """PNG of images in reading order, with transparent gaps, and its width and height.

    Images narrower than 32 pixels are enlarged by a whole factor, so that the gaps stay small beside them.
    """
    pixels = figures.to_uint8(images_NCHW)
    factor = max(1, SMALLEST // pixels.shape[2])
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width = pixels.shape[:3]
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), np.uint8)
    for i, image_HW3 in enumerate(pixels):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        canvas[top : top + height, left : left + width, :3] = image_HW3
        canvas[top : top + height, left : left + width, 3] = 255
    grey = bool((canvas[..., :1] == canvas[..., 1:3]).all())
    picture = Image.fromarray(np.ascontiguousarray(canvas[..., 2:])) if grey else Image.fromarray(canvas)
    return _png(picture), canvas.shape[1], canvas.shape[0]


def map_png(value_YX: Array, span: float) -> bytes:
    """A map with one pixel a cell, blue for -span over white to orange for +span; transparent where NaN."""
    share_YX = np.clip(np.nan_to_num(value_YX) / span, -1, 1) / 2 + 0.5 if span > 0 else np.full(value_YX.shape, 0.5)
    place = np.linspace(0, 1, len(DIVERGING))
    channels = [np.interp(share_YX, place, [anchor[c] for anchor in DIVERGING]) for c in range(3)]
    alpha = np.where(np.isnan(value_YX), 0, 255)
    rgba = np.rint(np.stack([*channels, alpha], axis=-1)).astype(np.uint8)
    return _png(Image.fromarray(rgba))


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
