"""What latents follow, and how they are spread: pictures of codes.

Shapes: D latents, K factors, N images, G points, V values of a factor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vaecli.analysis.codes import Array, Codes
from vaecli.report import charts, profiles
from vaecli.report.charts import Line
from vaecli.report.markup import MISSING, Html, figure, image, join, number, tag
from vaecli.report.section import Section, note, section

MOST_PANELS = 12  # latents drawn in maps, curves and marginals; with more the page says so
MOST_CELLS = 128 * 128  # of a position map
MOST_LINES = 5  # values of a factor that get a line of their own
CURVED = 12  # factors with a curve


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
    codes: Codes | None,
    latents: Sequence[int],
    values: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, tuple[float, float, str]] | None = None,
) -> Section | None:
    """For each of these latents its mean over positions and against every other factor (Higgins et al. 2017, figure of
    the 2D shapes). `values` names the values of a factor, which then has no order and is drawn as dots; `units` are
    those of the others."""
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
    drawn = [m for m in (map_XYD, *curves.values()) if m is not None]
    group_names = _value_names(codes, role.group, sizes, values)
    rows: list[Html] = []
    alone: list[Html] = []  # panels, where each latent has one
    for d in chosen:
        panels: list[Html] = []
        span = max((float(np.nanmax(np.abs(m[..., d]))) for m in drawn), default=1.0) or 1.0
        if map_XYD is not None:
            panels.append(_position_map(map_XYD[..., d], codes, role, codes.latent_names[d], span))
        for k, mean in curves.items():
            lines = group_names if mean.shape[1] > 1 else ["all"]
            name = codes.factor_names[k]
            nominal = bool((values or {}).get(name))
            x_texts = _value_names(codes, k, sizes, values) if nominal or sizes[k] <= MOST_LINES else None
            unit = (units or {}).get(name)
            panels.append(_factor_curve(mean[..., d], codes.latent_names[d], name, lines, x_texts, span, nominal, unit))
        if map_XYD is None and len(curves) == 1:
            alone += panels
            continue
        scale = tag("span", f" in this row from {number(-span, 2)} to {number(span, 2)}", class_="note")
        rows += [tag("h3", codes.latent_names[d], scale), tag("div", *panels, class_="small maps")]
    if alone:
        rows = [tag("div", *alone, class_="small maps")]
    keys = []
    if map_XYD is not None:
        bar = charts.map_png(np.linspace(-1, 1, 128)[None], 1.0)
        alt = "Colour scale from blue for the lowest value of a row over white for 0 to orange for its highest"
        ends = (tag("span", "lowest of the row"), image(bar, 192, 11, alt), tag("span", "highest"))
        keys.append(tag("p", *ends, class_="scalebar"))
    if role.group is not None:
        keys.append(charts.legend([Line(name, (), (), i, joined=False) for i, name in enumerate(group_names)]))
    left_out = f" The {len(latents) - len(chosen)} with less KL are left out." if len(latents) > len(chosen) else ""
    about = note(
        f"The mean of μ over all {len(codes):,} images that share a value of the factor, whatever their other factors; "
        f"one scale in a row of panels, which its heading tells.{left_out}"
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
    mean_VG: Array,
    latent: str,
    factor: str,
    groups: Sequence[str],
    x_texts: Sequence[str] | None,
    span: float,
    nominal: bool = False,
    unit: tuple[float, float, str] | None = None,
) -> Html:
    """A line over the factor's values for each group, dots where they have no order; `groups` has a name for each."""
    x: list[float] = [float(v) for v in range(len(mean_VG))]
    if unit is not None and not nominal:
        x, x_texts = np.linspace(unit[0], unit[1], len(x)).tolist(), None
    lines = [
        Line(name, x, mean_VG[:, g].tolist(), g, dots=len(x) < 12, joined=not nominal) for g, name in enumerate(groups)
    ]
    drawn = charts.line_chart(
        lines,
        f"Mean of {latent}",
        x_name=factor,
        y_range=(-1.05 * span, 1.05 * span),
        size=(200, 165),
        x_texts=x_texts,
        whole=unit is None,
    )
    shown = f"{factor} ({unit[2]})" if unit is not None and unit[2] else factor
    return figure(drawn or tag("p", MISSING), join([latent, tag("span", " ", shown)]))


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
            y_range=(0.0, 1.05 * top), size=(200, 135), fill=True,
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
