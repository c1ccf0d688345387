"""The report page: its numbers, charts and escaping by value, and `vae report` on models of every kind."""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Result
from PIL import Image

from vaecli import data, device
from vaecli import report as html
from vaecli.analysis import analyze as analysis
from vaecli.analysis import codes, diagnosis, metrics, tables
from vaecli.analysis.analyze import Analysis
from vaecli.analysis.gathering import latent_statistics, limited
from vaecli.analysis.metrics.base import Score
from vaecli.commands import report, traverse
from vaecli.report import charts, markup, profiles, sections
from vaecli.report import factors as report_factors
from vaecli.report import tables as report_tables
from vaecli.report.charts import Line, Scale
from vaecli.training import checkpoint

HOSTILE = "<script>window.hacked=1</script>\"'><img src=x onerror=hacked=1>&amp;"
SIZES = (3, 4, 6, 5)


def factors() -> np.ndarray[Any, Any]:
    return np.indices(SIZES).reshape(len(SIZES), -1).T.astype(np.int64)


def example() -> html.Content:
    """A page with every section. Latents z0 to z3 hold size, posX, posY and, negated and halved, posX."""
    factors_NK = factors()
    rng = np.random.default_rng(0)
    mean_ND = 0.01 * rng.standard_normal((len(factors_NK), 12))
    for d, (k, sign) in enumerate([(1, 1.0), (2, 1.0), (3, 1.0), (2, -0.5)]):
        column = factors_NK[:, k] - factors_NK[:, k].mean()
        mean_ND[:, d] = sign * column / factors_NK[:, k].std()
    logvar_ND = np.where(np.arange(12) < 4, math.log(0.05), 0.0) * np.ones_like(mean_ND)
    code = codes.make(mean_ND, logvar_ND, factors_NK, ("shape", f"size {HOSTILE}", "posX", "posY"))
    kl_D = code.kl_D
    assert kl_D is not None
    order = np.argsort(-kl_D, kind="stable").tolist()
    latents = [
        {
            "latent": f"z{d}", "index": d, "mean_mu": float(mean_ND[:, d].mean() + 0.01 * (d * 7 % 12)),
            "var_mu": float(mean_ND[:, d].var()), "mean_sigma2": 0.05 if d < 4 else 1.0, "sum": 1.0,
            "kl": float(kl_D[d]), "status": "active" if d < 4 else "inactive", "gain": None if d == 7 else 5.0 - d,
            "gain_error": 0.25, "factor": HOSTILE, "inactive_burda": d >= 4, "inactive_yeung": d >= 3,
        }
        for d in order
    ]  # fmt: skip
    steps = range(100, 2100, 100)
    history = html.History(
        {
            "train": {"recon": [(s, 700 * math.exp(-s / 300) + 90) for s in steps], "kl": [(s, s / 200) for s in steps],
                      "elbo": [(s, -700 * math.exp(-s / 300) - 90 - s / 200) for s in steps]},
            "val": {"recon": [(1000, 120.0), (2000, 95.0)], "kl": [(1000, 5.1), (2000, 9.7)]},
        },
        [[(1000, 2.0 / (d + 1)), (2000, 4.0 / (d + 1))] for d in range(12)],
    )  # fmt: skip
    images = rng.random((16, 3, 8, 8))
    matrix_DK = rng.random((12, 4))
    results = [
        metrics.Result("mig", Score({"mig": 0.4}, {"bins": 20}, {"mutual_information": matrix_DK}),
                       Score({"mig": 0.5}), {"mig": 0.01}, {"mig": 0.9}),
        metrics.Result("dci", Score({"disentanglement": 0.6, "completeness": float("nan")}, {"predictor": HOSTILE},
                                    {"importance": matrix_DK - 0.5}, (f"Slow {HOSTILE}.",))),
        metrics.Result("gaussian-tc", Score({"gaussian_tc": 1.7})),
        metrics.Result("sap", None, problem=f"broken: {HOSTILE}"),
    ]  # fmt: skip
    return html.Content(
        title=f"beta-vae on {HOSTILE}",
        subtitle="Step 2,000",
        step=2000,
        verdict=("healthy", ["4 of 12 latents are active.", f"First: {HOSTILE}"]),
        totals={"elbo": -105.25, "elbo_standard_error": 0.5, "recon": 95.0, "kl": 10.25, "latents": 12,
                "active_units": 4, "images": len(code)},
        names=code.latent_names,
        latents=latents,
        active=[d for d in order if d < 4],
        configuration=f"model: {{name: beta-vae}}\n# {HOSTILE}\n",
        history=history,
        reconstructions=html.Reconstructions(images, np.clip(images + 0.1, 0, 1), [10.0] * 16, "16 images"),
        samples_NCHW=images,
        traversals=html.Traversals(
            [html.Traversal(f"z{d}", ["KL 1.23", HOSTILE], rng.random((11, 3, 8, 8))) for d in range(4)],
            np.linspace(-3, 3, 11).tolist(), "Each by itself.",
        ),
        codes=code,
        diagnosis={"information I(x; z)": "9.50 nats", HOSTILE: HOSTILE},
        results=results,
        environment={"torch": HOSTILE},
        source={"kind": "folder", "path": f"/data/{HOSTILE}"},
        computed={"command": f"vae report '{HOSTILE}'"},
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- markup


def test_tags_escape_children_and_attributes() -> None:
    assert markup.tag("p", "a < b & c", class_="x", data_v='"', hidden=True, title=None) == (
        '<p class="x" data-v="&quot;" hidden>a &lt; b &amp; c</p>'
    )
    assert markup.tag("div", markup.tag("br"), None, 3) == "<div><br>3</div>"


def test_an_attribute_is_never_html() -> None:
    assert markup.tag("i", title=markup.Html('"><script>')) == '<i title="&quot;&gt;&lt;script&gt;"></i>'


def test_control_and_bidirectional_characters_are_written_out() -> None:
    assert markup.text("a\x00b\x1b[31m\u202ec") == "a\\x00b\\x1b[31m\\u202ec"
    assert markup.text("\ud800").encode() == b"\\ud800"


def test_the_policy_names_the_style_and_the_script_by_hash() -> None:
    page = html.render(example())
    for element, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in page
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy[0].startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy[0]
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_hostile_text_stays_text_and_nothing_is_fetched() -> None:
    page = html.render(example())
    assert page.count("<script>") == 1 and page.count("</script>") == 1
    assert "<img src=x" not in page and " onerror=hacked=1>&" not in page
    assert page.count("&lt;script&gt;window.hacked=1&lt;/script&gt;") >= 12
    for attributes in re.findall(r"<\w+((?:\s[\w-]+(?:=\"[^\"]*\")?)*)\s*>", page):
        names = re.findall(r"\s([\w-]+)(?:=\"[^\"]*\")?", attributes)
        assert not [name for name in names if name == "style" or name.startswith("on")]
    # Every address is a place in the page or a picture in it.
    links = re.findall(r'<[^>]*\s(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith(("#", "data:image/png;base64,", "data:,")) for link in links)
    assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (-1.23456, "-1.235"), (12345.678, "12,346"), (97.594, "97.59"), (1e-7, "1e-07"), (3, "3"),
     (1234567, "1,234,567"), (-0.00001, "-1e-05"), (None, "n/a"), (math.nan, "n/a"), (True, "yes"), ("a", "a"),
     (0.0096, "0.009600")],
)  # fmt: skip
def test_numbers(value: object, shown: str) -> None:
    assert markup.number(value) == shown.replace("-", markup.MINUS)


def test_numbers_in_columns() -> None:
    assert markup.number(-0.0001, 2) == "0.00" and markup.number(1234.5, 1) == "1,234.5"
    assert [markup.decimals([v]) for v in (0.2, 9.9, 12.0, 123.0, 1e5)] == [4, 4, 3, 2, 1]
    assert markup.decimals([1.0, None, math.nan, 250.0]) == 2


# --------------------------------------------------------------------------------------------------------------- charts


def test_scales() -> None:
    down = Scale(0.0, 10.0, 100.0, 0.0)
    assert [down(v) for v in (0, 2.5, 10)] == [100.0, 75.0, 0.0]
    log = Scale(1.0, 1000.0, 0.0, 30.0, log=True)
    assert [log(v) for v in (1, 10, 100, 1000)] == pytest.approx([0, 10, 20, 30])


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [(Scale(0, 10, 0, 1), [0, 5, 10]), (Scale(-2.4, 2.4, 0, 1), [-2, -1, 0, 1, 2]),
     (Scale(250, 17000, 0, 1), [5000, 10000, 15000]), (Scale(90, 850, 0, 1, True), [100, 200, 500]),
     (Scale(0.5, 2e4, 0, 1, True), [1, 10, 100, 1000, 10000]), (Scale(-5.1, 4.2, 0, 1), [-4, -2, 0, 2, 4])],
)  # fmt: skip
def test_ticks(scale: Scale, ticks: Sequence[float]) -> None:
    assert scale.ticks() == pytest.approx(ticks)


def test_a_line_is_drawn_where_its_numbers_are() -> None:
    x, y = Scale(0, 4, 10, 90), Scale(0, 100, 200, 0)
    assert charts.path([(0, 0), (1, 25), (4, 100)], x, y) == "M10.0 200.0L30.0 150.0L90.0 0.0"
    chart = charts.line_chart([Line("a", [0, 10], [5, 1], dots=True)], "loss", y_range=(0, 10), size=(300, 200))
    assert chart is not None
    (drawn,) = re.findall(r'<path d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)" class="line k0">', chart)
    # y: 10 at the top (pixel 10), 0 at the bottom (pixel 176); x ends 12 before the right edge.
    assert [float(v) for v in drawn[1:]] == pytest.approx([93.0, 288.0, 159.4])
    assert 'aria-label="loss against step. a: from 5.000 at step 0 to 1.000 at step 10."' in chart


def test_what_is_not_finite_is_left_out() -> None:
    line = Line("a", [0, 1, 2, 3], [1.0, math.nan, math.inf, 4.0])
    assert line.points() == [(0.0, 1.0), (3.0, 4.0)]
    assert charts.line_chart([Line("a", [0.0], [math.nan])], "loss") is None
    long = Line("a", list(range(5000)), list(range(5000))).points()
    assert len(long) == charts.POINTS and long[0] == (0, 0) and long[-1] == (4999, 4999)


def test_one_point_and_equal_values_are_drawn() -> None:
    chart = charts.line_chart([Line("a", [5], [2.0]), Line("b", [5], [2.0], label=True)], "loss")
    assert chart is not None and "nan" not in chart and chart.count("<circle") == 2
    assert charts.line_chart([Line("a", [1, 2], [0.0, 0.0])], "loss") is not None


def test_which_axes_are_logarithmic() -> None:
    assert charts.is_log([800.0, 90.0, math.nan]) and not charts.is_log([3.0, 1.0])
    assert not charts.is_log([800.0, 0.0]) and not charts.is_log([-800.0, -1.0]) and not charts.is_log([])


def test_labels_keep_apart() -> None:
    assert charts._apart([50.0, 52.0, 90.0], 11, 10, 180) == [50.0, 61.0, 90.0]
    assert charts._apart([178.0, 179.0], 11, 10, 180) == [169.0, 180.0]


def test_colours() -> None:
    assert charts.colour([(0, 0, 0), (100, 200, 50), (0, 0, 0)], 0.25) == (50, 100, 25)
    assert charts.colour(charts.DIVERGING, 0.5) == charts.DIVERGING[3]
    assert charts.colour(charts.SEQUENTIAL, 2.0) == charts.SEQUENTIAL[-1]
    assert charts.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert charts.contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.478, abs=1e-3)


def test_colours_rise_in_lightness_so_that_they_need_no_hue() -> None:
    for anchors, direction in ((charts.SEQUENTIAL, -1), (charts.DARK, 1)):
        seen = [charts.contrast(charts.colour(anchors, i / 15), (0, 0, 0)) for i in range(16)]
        assert (np.diff(seen) * direction > 0).all()


def test_numbers_in_cells_can_be_read_on_every_colour() -> None:
    rules = re.findall(r"\.([sd])(\d+)\{background:#(\w{6});color:#(\w{6})\}", charts.cell_style())
    assert len(rules) == 3 * charts.LEVELS
    for *_, back, ink in rules:
        a, b = (tuple(bytes.fromhex(c)) for c in (back, ink))
        assert charts.contrast(a, b) >= 4.5, back  # type: ignore[arg-type]


def test_cells_take_the_class_of_their_value() -> None:
    assert [charts.cell_class(v, 0, 2) for v in (0, 1, 2, 3)] == ["s0", "s8", "s15", "s15"]
    assert [charts.cell_class(v, -1, 0.5) for v in (-1, 0, 0.5)] == ["d0", "d8", "d11"]
    assert charts.cell_class(math.nan, 0, 1) is None and charts.cell_class(0, 0, 0) == "s0"


def test_bars() -> None:
    drawn = charts.bar(0.5, 0.2, 0.9)
    assert drawn is not None
    assert '<rect x="0" y="5" width="70.0" height="8" class="value">' in drawn
    assert re.findall(r'x1="([\d.]+)"[^>]*class="(\w+)"', drawn) == [("28.0", "chance"), ("126.0", "ceiling")]
    assert charts.bar(1.7, None, None) is None and charts.bar(math.nan, None, None) is None


def picture(png: bytes, mode: str = "RGBA") -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)).convert(mode)).astype(int)


def test_a_montage_has_every_pixel_in_its_place() -> None:
    small = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 16)) / 255
    images = small.repeat(2, axis=2).repeat(2, axis=3)  # 4 x 32
    png, width, height = charts.montage(small, 3)
    assert (width, height) == (3 * 34 - 2, 2 * 6 - 2)
    pixels = picture(png)
    for i in range(5):
        top, left = i // 3 * 6, i % 3 * 34
        shown = pixels[top : top + 4, left : left + 32]
        assert (shown[..., :3] == (images[i] * 255).round().transpose(1, 2, 0)).all() and (shown[..., 3] == 255).all()
    assert (pixels[6:, 68:, 3] == 0).all() and (pixels[:, 32:34, 3] == 0).all()
    grey = charts.montage(images[:, :1], 3)[0]
    assert Image.open(io.BytesIO(grey)).mode == "LA" and picture(grey)[0, 0, 1] == round(images[0, 0, 0, 0] * 255)


def test_a_map_has_the_colours_of_its_values() -> None:
    pixels = picture(charts.map_png(np.array([[-2.0, 0.0, 2.0], [9.0, math.nan, -2.0]]), 2.0))
    blue, white, orange = charts.DIVERGING[0], charts.DIVERGING[3], charts.DIVERGING[-1]
    assert pixels[0, :, :3].tolist() == [list(blue), list(white), list(orange)]
    assert pixels[1, 0, :3].tolist() == list(orange) and pixels[1, 1, 3] == 0 and pixels[1, 2, 3] == 255


# ------------------------------------------------------------------------------------------------------------- profiles


def test_means_over_factors_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(1)
    factors_NK = rng.integers(0, (3, 4, 2), (200, 3))
    code = codes.make(rng.standard_normal((200, 2)), None, factors_NK)
    mean = profiles.means_over(code, (1, 0))
    assert mean.shape == (4, 3, 2)
    for i in range(4):
        for j in range(3):
            mine = (factors_NK[:, 1] == i) & (factors_NK[:, 0] == j)
            assert mean[i, j] == pytest.approx(code.mean_ND[mine].mean(axis=0))


def test_a_position_map_of_a_known_code() -> None:
    """z0 = posX - 2 posY + a part from other factors whose mean is 0; z1 knows the shape alone."""
    factors_NK = factors()
    shape, size, x, y = factors_NK.T
    code = codes.make(np.stack([x - 2.0 * y + (size - 1.5) * 7, shape - 1.0], axis=1), None, factors_NK)
    mean_XYD = profiles.means_over(code, (2, 3))
    assert mean_XYD[..., 0] == pytest.approx(np.subtract.outer(np.arange(6.0), 2.0 * np.arange(5.0)))
    assert np.abs(mean_XYD[..., 1]).max() < 1e-12
    assert profiles.means_over(code, (1, 0))[..., 1] == pytest.approx(np.tile([-1.0, 0.0, 1.0], (4, 1)))


def test_combinations_without_images_are_not_a_number() -> None:
    code = codes.make(np.array([[1.0], [3.0], [5.0]]), None, np.array([[0, 0], [0, 0], [1, 1]]))
    mean = profiles.means_over(code, (0, 1))[..., 0]
    assert mean[0, 0] == 2.0 and mean[1, 1] == 5.0 and np.isnan(mean[[0, 1], [1, 0]]).all()


def test_the_variance_explained_by_a_factor() -> None:
    factors_NK = factors()
    _, size, x, y = factors_NK.T.astype(float)
    angle = np.cos(2 * np.pi * x / 6)  # no correlation with x by its order, but a function of it
    code = codes.make(np.stack([size, angle, x + y, np.full(len(x), 0.1)], axis=1), None, factors_NK)
    share_DK = profiles.explained(code)
    assert share_DK[0] == pytest.approx([0, 1, 0, 0], abs=1e-12)
    assert share_DK[1, 2] == pytest.approx(1.0)
    # Var[x] : Var[y] = 35/12 : 2, less the chance correction (eta - p) / (1 - p), p = (V - 1) / (N - 1).
    for k, part in ((2, 35 / 12), (3, 2.0)):
        p = (SIZES[k] - 1) / (len(x) - 1)
        assert share_DK[2, k] == pytest.approx((part / (35 / 12 + 2) - p) / (1 - p))
    assert (share_DK[3] == 0).all()


def test_noise_explains_nothing_on_average() -> None:
    rng = np.random.default_rng(2)
    shares = [
        profiles.explained(codes.make(rng.standard_normal((60, 1)), None, rng.integers(0, 10, (60, 1))))[0, 0]
        for _ in range(300)
    ]
    assert np.mean(shares) < 0.05 and np.median(shares) < 0.01  # uncorrected: 9 / 59 = 0.15


def test_the_density_of_a_mixture() -> None:
    z_G = np.linspace(-6, 6, 101)
    assert profiles.mixture_density(np.zeros(1), np.zeros(1), z_G) == pytest.approx(profiles.normal_density(z_G))
    mean_N, logvar_N = np.array([-1.0, 2.0]), np.log([0.25, 4.0])
    by_hand = [
        sum(math.exp(-((z - m) ** 2) / (2 * s * s)) / s for m, s in ((-1, 0.5), (2, 2))) / 2 / math.sqrt(2 * math.pi)
        for z in z_G
    ]
    assert profiles.mixture_density(mean_N, logvar_N, z_G) == pytest.approx(by_hand)
    # Means N(0, 3/4) with sigma^2 = 1/4 are N(0, 1) together.
    quantiles = torch.distributions.Normal(0.0, math.sqrt(0.75)).icdf((torch.arange(20_000) + 0.5) / 20_000).numpy()
    together = profiles.mixture_density(quantiles, np.full(20_000, math.log(0.25)), z_G)
    assert together == pytest.approx(profiles.normal_density(z_G), abs=1e-3)


# ------------------------------------------------------------------------------------------------------------- sections


def test_roles_of_factors() -> None:
    dsprites = report_factors.roles(("shape", "scale", "orientation", "posX", "posY"), (3, 6, 40, 32, 32))
    assert dsprites == report_factors.Roles(3, 4, 0, [0, 1, 2])
    other = report_factors.roles(("digit", "pos_x"), (10, 4))
    assert (other.across, other.down, other.group, list(other.curves)) == (None, None, None, [0, 1])
    assert report_factors.roles(("x", "y"), (200, 200)).across is None
    many = report_factors.roles(("shape", "y", "x", "still"), (9, 3, 2, 1))
    assert (many.across, many.down, many.group, list(many.curves)) == (2, 1, None, [0])


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page)
    return [[re.sub(r"<[^>]+>", "", c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_the_latent_table() -> None:
    made = report_tables.latent_table([
        {"latent": "z1", "index": 1, "mean_mu": -0.5, "kl": 12.5, "status": "active", "gain": 2.0,
         "gain_error": 0.5, "inactive_burda": False, "inactive_yeung": True},
        {"latent": "z0", "index": 0, "mean_mu": None, "kl": 0.01, "status": "inactive", "gain": None,
         "gain_error": None, "inactive_burda": True, "inactive_yeung": True},
    ])  # fmt: skip
    assert made is not None
    assert cells(made.html) == [
        ["latent", "mean μ", "KL (nats)", "status", "gain (nats)", "inactive by"],
        ["z1", f"{markup.MINUS}0.5000", "12.500", "active", "2.0000 ± 0.5000", "1 of 2 rules"],
        ["z0", "n/a", "0.010", "inactive", "n/a", "2 of 2 rules"],
    ]
    assert 'data-v="12.5"' in made.html and '<tr class="muted">' in made.html
    assert re.findall(r'aria-sort="(\w+)"', made.html) == ["none", "none", "descending", "none", "none", "none"]


def test_matrices_are_named_ordered_and_drawn_once() -> None:
    matrix = np.array([[0.1, 0.2], [0.9, 0.3]])
    results = [
        metrics.Result(name, Score({"value": 1.0}, {}, {"mutual_information": matrix, "corr": np.eye(2)}))
        for name in ("mig", "med")
    ]
    best = {"latents": [{"latent": "z1", "nmi": 0.5}, {"latent": "z0", "nmi": 0.125}], "gap": 0.375}
    by_factor = [{"factor": "shape", **best, "informativeness": None}]
    made = report_tables.matrices(results, np.eye(2)[::-1], ("z0", "z1"), ("shape", "size"), [1, 0], [1], by_factor)
    assert made is not None and made.html.count("<table") == 4
    assert cells(made.html)[7] == ["shape", "z1", "0.5000", "z0", "0.1250", "0.3750", "n/a"]
    without = report_tables.matrices(results, np.eye(2)[::-1], ("z0", "z1"), ("shape", "size"), [1, 0], [1])
    assert without is not None and without.html.count("<table") == 3
    made = without
    assert made.html.index("mutual information (mig)") < made.html.index("<details>") < made.html.index("corr (mig)")
    rows = cells(made.html)
    counts = report_tables.heat_table(np.array([[3.0, 12.0]]), [""], ["a", "b"], "votes")
    assert cells(counts)[1] == ["", "3", "12"]
    assert rows[:3] == [["", "shape", "size"], ["z1", "1.00", "0.00"], ["z0", "0.00", "1.00"]]
    assert rows[3:6] == [["", "shape", "size"], ["z1", "0.90", "0.30"], ["z0", "0.10", "0.20"]]
    assert re.findall(r'<td class="n( s\d+)?">', made.html) == [
        " s15",
        " s0",
        "",
        "",
        " s15",
        " s5",
        "",
        "",
        " s0",
        " s15",
        "",
        "",
    ]


def test_metrics_with_what_they_are_compared_with() -> None:
    made = report_tables.metrics(example().results)
    assert made is not None
    assert cells(made.html)[1:] == [
        ["mig", "0.400", "0.500", "0.010", "0.900", ""],
        ["dci: disentanglement", "0.600", "", "", "", ""],
        ["dci: completeness", "n/a", "", "", "", ""],
        ["gaussian-tc", "1.700", "", "", "", ""],
    ]
    assert made.html.count('class="bar"') == 2 and "broken: &lt;script&gt;" in made.html


def test_pictures_say_in_numbers_what_they_show() -> None:
    light = np.zeros((3, 1, 5, 5))
    light[0, 0, 1, 1], light[2, 0, 3, 4] = 1.0, 0.5
    row = html.Traversal("z3", ["KL 2.00"], light)
    made = sections.traversals(html.Traversals([row], [-3.0, 0.0, 3.0], "About."))
    assert made is not None
    assert (
        f'alt="z3 from {markup.MINUS}3 to 3 in 3 images: mean pixel value from 0.04000 to 0.02000, mean change of '
        'a pixel 0.06000; the centre of brightness goes from column 1.0, row 1.0 to column 4.0, row 3.0."'
    ) in made.html
    code = example().codes
    assert code is not None
    maps = report_factors.profiles_of(code, [1])
    # posX of six values, standardised: from -2.5 to 2.5 over sqrt(35 / 12)
    assert maps is not None and f"lowest mean {markup.MINUS}1.46 at posX 0" in maps.html
    assert "highest 1.46 at posX 5" in maps.html


def test_position_maps_lie_as_the_images_do() -> None:
    """posX runs to the right, posY down."""
    code = example().codes
    corners = {}
    for d in (1, 2):  # posX, posY
        made = report_factors.profiles_of(code, [d])
        assert made is not None
        source = re.findall(r'base64,([^"]+)" width="192" height="192"', made.html)
        pixels = picture(base64.b64decode(source[0]))[..., :3]
        assert pixels.shape[:2] == (SIZES[3], SIZES[2])
        corners[d] = [tuple(pixels[i, j]) for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1))]
    low, high = charts.DIVERGING[0], charts.DIVERGING[-1]
    assert corners == {1: [low, high, low, high], 2: [low, low, high, high]}


def test_what_is_missing_is_left_out() -> None:
    full = example()
    bare = replace(
        full, history=None, reconstructions=None, samples_NCHW=None, samples_from="No samples: no prior.",
        traversals=None, codes=None, diagnosis={}, results=(), environment={},
    )  # fmt: skip
    page = html.render(bare)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Samples", "Latents", "Configuration and provenance"]
    assert "No samples: no prior." in page
    assert len(re.findall(r"<h2>", html.render(full))) == 11


def test_a_prior_that_is_not_standard_is_not_drawn() -> None:
    code = example().codes
    flat, deep = (report_factors.marginals(code, [0], standard) for standard in (True, False))
    assert flat is not None and flat.html.count("stroke-dasharray") == 2  # the curve and its key
    assert deep is not None and "stroke-dasharray" not in deep.html


# -------------------------------------------------------------------------------------------------------- run directory


def test_the_history_of_a_run() -> None:
    lines = [
        {"kind": "train", "step": 20, "recon": 5.0, "kl": 1.0},
        {"kind": "train", "step": 10, "recon": 7.0, "kl": float("nan")},
        {"kind": "val", "step": 20, "elbo": -6.0, "kl_j": [0.5, 0.25]},
        {"kind": "val", "step": 30, "elbo": True, "kl_j": [0.5]},
        {"kind": "note", "step": 20, "recon": 1.0},
        {"kind": "train", "step": None, "recon": 1.0},
        {"kind": "train", "step": 30, "recon": "<b>", "kl": 10**400},
    ]
    text = "\n".join([*map(json.dumps, lines), '{"kind": "train", "st', "[" * 100_000, "[]", "3"])
    history = report.history(text, 2)
    assert history is not None
    assert history.curves == {
        "train": {"recon": [(10, 7.0), (20, 5.0)], "kl": [(20, 1.0)]},
        "val": {"elbo": [(20, -6.0)]},
    }
    assert history.kl_D == [[(20, 0.5)], [(20, 0.25)]]
    assert report.history("", 2) is None and report.history("{}\n", 2) is None


def test_the_environment_without_the_name_of_the_machine() -> None:
    known = {
        "torch": "2.10",
        "host": "secret",
        "pid": 7,
        "argv": ["train", "--name", "a b"],
        "device": "cpu",
        "data": {},
    }
    assert report.environment(json.dumps(known)) == {
        "torch": "2.10", "device": "cpu", "command": "vae train --name 'a b'",
    }  # fmt: skip
    assert report.environment("nonsense") == {} and report.environment("[]") == {}


# -------------------------------------------------------------------------------------------------------------- command


def analysed(path: Path | str, limit: int | None = 100) -> Analysis:
    """Statistics and a made-up diagnosis of a real checkpoint."""
    loaded = checkpoint.load(path, torch.device("cpu"))
    dataset = data.load(loaded.config.data, loaded.info)
    return stand_in(loaded, dataset, None, limit)


def stand_in(
    loaded: checkpoint.Loaded, dataset: data.base.Dataset, split: str | None = None, limit: int | None = None, **_: Any
) -> Analysis:
    view = dataset.split(split or "test")
    device.seed(0, "analyze")
    hyper = loaded.model.hyper(loaded.step)
    batches = limited(view.batches(64), limit or len(view))
    stats = latent_statistics(loaded.model, batches, hyper)
    names = loaded.model.latent_names()
    verdict = diagnosis.verdict(stats, names, hyper, step=loaded.step)
    return Analysis(loaded, dataset, view, 0, stats, verdict, tables.records(stats, names))


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


EVERYTHING = [
    "Traversals", "Reconstructions", "Samples", "Explore", "Latents", "Latents against factors",
    "What each latent follows", "Marginals of q(z)", "Training", "Configuration and provenance",
]  # fmt: skip


def test_a_run_shows_all_that_it_has(tiny_run: Path) -> None:
    made = analysed(tiny_run)
    # A tiny model uses no latent: let it use one.
    with torch.no_grad():
        for name, parameter in made.loaded.model.named_parameters():
            parameter += 0.5 * torch.randn_like(parameter) if "encoder" in name else 0
    content = report.gather(stand_in(made.loaded, made.dataset, None, 100), "vae report tiny")
    page = html.render(content)
    assert headings(page) == EVERYTHING and "n/a" not in headings(page)
    assert content.step == 30 and content.title == "beta-vae on squares"
    assert content.computed["command"] == "vae report tiny"
    assert content.environment["vae"] and "host" not in content.environment
    assert content.history is not None and content.history.curves["val"]["recon"]
    # The names of the machine and of the process that trained are nobody's business.
    known = json.loads((tiny_run / "run.json").read_text())
    assert f">{known['host']}<" not in page
    assert not {known["host"], str(known["pid"])} & set(content.environment.values())


def test_reconstructions_are_those_of_the_model(tiny_run: Path) -> None:
    made = analysed(tiny_run)
    shown = report.gather(made, "").reconstructions
    assert shown is not None and shown.inputs_NCHW.shape == (16, 1, 16, 16)
    model, view = made.loaded.model, made.view
    count = made.stats.n
    x = view.take(count).x_BCHW[torch.linspace(0, count - 1, 16).round().long()]
    with torch.inference_mode():
        z = model.posterior(x).mean_BD
        assert np.allclose(shown.outputs_NCHW, model.decode(z).numpy(), atol=1e-6)
        assert shown.nll_N == pytest.approx(model.nll(x, z, model.hyper(30)).tolist())
    assert (shown.inputs_NCHW == x.numpy()).all()


def test_traversals_are_those_of_vae_traverse(tiny_run: Path) -> None:
    made = analysed(tiny_run)
    with torch.inference_mode():
        drawn = report._traversals(made, [2], {2: ("posX", 0.256)})
    assert drawn is not None and drawn.values == pytest.approx(np.linspace(-3, 3, 11))
    with torch.inference_mode():
        at = traverse.typical(traverse._codes(made.loaded, made.dataset))  # type: ignore[arg-type]
        x_BCHW = made.dataset.images.gather(torch.tensor([at]))
        z = made.loaded.model.posterior(x_BCHW).mean_BD.repeat(11, 1)
        own, z[:, 2] = float(z[0, 2]), torch.linspace(-3, 3, 11)
    assert drawn.rows[0].mark == pytest.approx((own + 3) / 6 * 10) and "a typical one" in drawn.about
    with torch.inference_mode():
        assert np.allclose(drawn.rows[0].images_SCHW, made.loaded.model.decode(z).numpy(), atol=1e-6)
    assert drawn.rows[0].name == "z2" and report._traversals(made, [], {}) is None


def test_a_bare_file_has_no_training_curves(tiny_run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "model.safetensors"
    bare.write_bytes((tiny_run / "checkpoints/latest/model.safetensors").read_bytes())
    page = html.render(report.gather(analysed(bare), "vae report model.safetensors"))
    assert "Training" not in headings(page) and "What trained the model" not in page
    assert report.run_folder(Path("model.safetensors")) is None
    assert report.run_folder(tiny_run / "checkpoints/latest/model.safetensors") == tiny_run.absolute()


def trained(vae: Callable[..., Result], *options: object) -> Path:
    done = vae("train", *options, "--steps", 20, "--runs-dir", "runs", "--name", "r", "-q")
    assert done.code == 0, done.err
    return Path(done.out.strip())


def test_a_code_without_distribution(vae: Callable[..., Result]) -> None:
    page = html.render(report.gather(analysed(trained(vae, "--model", "autoencoder", *TINY)), "x"))
    found = headings(page)
    assert "Marginals of q(z)" not in found and "Traversals" in found and "standard deviations" in page
    assert "No samples: a deterministic autoencoder has no prior" in page
    assert "ELBO (nats)" not in page and "reconstruction (nats)" in page


def test_a_hierarchy(vae: Callable[..., Result], toy_models: list[str]) -> None:
    run = trained(vae, "--model", "hierarchy", "--data", "squares", "--batch-size", 32)
    made = analysed(run)
    content = report.gather(made, "x")
    names = ["top.0", "top.1", *(f"low.{d}" for d in range(6))]
    assert not content.standard_prior and not content.mixture and list(content.names) == names
    page = html.render(content)
    # Of latents that depend on those above, q(z) is no mixture of what is known of each by itself.
    assert "Marginals of q(z)" not in headings(page) and "trained-out" not in page
    assert "The levels below one that moves follow." in page
    assert "Values of low are standard deviations from the mode of the prior." in page


def test_colour_images_without_factors(vae: Callable[..., Result], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        level = np.full((8, 8, 3), (6 * i, 250 - 6 * i, 90), np.uint8)
        Image.fromarray(level).save(folder / f"{i}.png")
    run = trained(vae, "--data", f"folder:{folder}", "--model", "vae", *TINY[2:])
    content = report.gather(analysed(run), "x")
    page = html.render(content)
    assert "What each latent follows" not in headings(page) and "Latents against factors" not in headings(page)
    assert content.reconstructions is not None and content.reconstructions.inputs_NCHW.shape[1] == 3
    first = re.findall(r'src="data:image/png;base64,([^"]+)"', page)[0]
    shown = picture(base64.b64decode(first))[2, 2, :3]
    assert (shown == (content.reconstructions.inputs_NCHW[0, :, 2, 2] * 255).round()).all()


def test_a_model_that_is_not_finite(tiny_run: Path) -> None:
    made = analysed(tiny_run)
    with torch.no_grad():
        for parameter in made.loaded.model.parameters():
            parameter *= 1e30
    broken = stand_in(made.loaded, made.dataset, None, 100)
    assert broken.verdict.name == "not finite"
    page = html.render(report.gather(broken, "x"))
    assert "NaN or infinity" in page
    shown = re.sub(r'base64,[^"]*', "", page.partition("</header>")[2].partition("<script>")[0])
    assert "n/a" in shown and not re.findall(r"\b(nan|inf)\b", shown, re.I)
    assert "Marginals of q(z)" not in headings(page)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with statistics alone."""
    monkeypatch.setattr(analysis, "analyze", stand_in)
    monkeypatch.setattr(Analysis, "record", lambda self: {"verdict": self.verdict.name})


def test_the_command_writes_the_page(vae: Callable[..., Result], tiny_run: Path, quick: None) -> None:
    done = vae("report", tiny_run, "--limit", 60, "--seed", 3)
    assert (done.code, done.out) == (0, "report.html\n"), done.err
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and page.endswith("</html>\n")
    assert f"vae report {tiny_run} --split val --seed 3 --limit 60" in re.sub("<[^>]+>", "", page)
    again = vae("report", tiny_run, "--limit", 60, "--seed", 3)
    assert again.code == 2 and "exists already" in again.err
    assert vae("report", tiny_run, "--limit", 60, "--seed", 3, "--force").code == 0
    assert Path("report.html").read_text(encoding="utf-8") == page  # nothing in it depends on when it was made
    piped = vae("report", tiny_run, "--limit", 60, "--seed", 3, "-o", "-", "-q")
    assert piped.code == 0 and piped.raw.decode() == page
    record = json.loads(vae("report", tiny_run, "--limit", 60, "-o", "b.html", "--json").out)
    assert record["path"] == "b.html" and record["verdict"] == analysed(tiny_run, 60).verdict.name


def test_mistakes_cost_nothing(vae: Callable[..., Result], tiny_run: Path, quick: None) -> None:
    assert vae("report", tiny_run, "-o", "nowhere/r.html").code == 3
    wrong = vae("report", tiny_run, "--metrics", "migg")
    assert wrong.code == 2 and "mig" in wrong.err
    assert vae("report", "no-such-run").code == 3 and not Path("report.html").exists()


def test_with_the_whole_analysis(vae: Callable[..., Result], tiny_run: Path) -> None:
    done = vae("report", tiny_run, "--metrics", "mig", "--json", "-q")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    page = Path("report.html").read_text(encoding="utf-8")
    found_headings = headings(page)
    assert found_headings.index("Metrics") + 1 == found_headings.index("Diagnosis") < found_headings.index("Training")
    rows = {row[0]: row[1:] for row in cells(page) if row}
    assert rows["distortion E -log p(x|z)"] == [f"{found['diagnosis']['distortion']:.2f} nats"]
    (mig,) = found["metrics"]
    assert rows["mig"][0] == markup.number(mig["values"]["mig"], 3)
    assert rows["mig"][3] == markup.number(mig["ceiling"]["mig"], 3)
    header, *rows_of_latents = cells(page.partition('id="latents"')[2].partition("</section>")[0])
    shown = {name: [row[i] for row in rows_of_latents] for i, name in enumerate(header)}
    assert shown["latent"] == [record["latent"] for record in found["latents"]]
    for key, name in (("kl", "KL (nats)"), ("kurtosis", "kurtosis"), ("gain", "gain (nats)")):
        values = [record[key] for record in found["latents"]]
        digits = markup.decimals(values)
        assert [text.partition(" ")[0] for text in shown[name]] == [markup.number(v, digits) for v in values]


def test_a_page_of_hostile_files(vae: Callable[..., Result], tiny_run: Path, quick: None) -> None:
    """A run directory can hold anything."""
    known = {"device": HOSTILE, "torch": HOSTILE, "argv": [HOSTILE], "host": "h"}
    (tiny_run / "run.json").write_text(json.dumps(known))
    lines = ('{"kind": "train", "step": 1e400, "recon": 1}', '{"kind": "val", "step": 5, "recon": 2}')
    (tiny_run / "metrics.jsonl").write_text("\n".join(lines))
    assert vae("report", tiny_run).code == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and page.count("&lt;script&gt;") == 3
