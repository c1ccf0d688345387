"""The tables of the page: latents, latents against factors, metrics, facts.

Shapes: D latents, K factors, R rows and C columns of a matrix.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vaecli.analysis import told
from vaecli.analysis.codes import Array
from vaecli.analysis.metrics import Result
from vaecli.report import charts
from vaecli.report.markup import MISSING, Cell, Html, decimals, details, join, number, table, tag
from vaecli.report.section import Section, note, section

FIRST_MATRICES = ("mutual_information", "importance")  # shown at once, the others on demand
MOST_ROWS = 64  # of a matrix
HEADINGS = {
    "share": "of variance", "mean_mu": "mean μ", "var_mu": "var μ", "mean_sigma2": "mean σ²", "kl": "KL (nats)",
    "mean_sigma": "mean sd", "ks": "KS", "marginal_kl": "KL of q(z) (nats)", "range_low": "1 % of q(z)",
    "range_high": "99 % of q(z)", "rho2_10": "ρ² 10 %", "rho2_50": "ρ² 50 %", "rho2_90": "ρ² 90 %",
    "best_factor": "tells most of", "best_factor_nmi": "NMI with it",
    "gain": "gain (nats)", "prior_gain": "gain by prior (nats)", "sensitivity": "|∂x/∂z|",
}  # fmt: skip
RULE = "inactive_"
# Columns that fit beside each other; the others are shown on demand.
MAIN = ("latent", "level", "kl", "mean_mu", "var_mu", "mean_sigma2", "sum", "perplexity", "status", "factor", "share")


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
    more = [k not in MAIN for k in keys]
    whole = table(headings, rows, caption, numeric=numeric, sorted_by=sorted_by, muted=muted, more=more)
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
    by_factor: Sequence[Mapping[str, Any]] = (),
) -> Section | None:
    """Latents against factors: the variance explained, and the matrices of the metrics, each drawn once.

    `by_factor` are the records of `analysis.told`, `latents` all of them in index order, `order` the order of the
    rows; those not in `active` stay without colour.
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
    if len(factors) == 1:  # the table of latents says as much
        parts, others = [], [*parts, *others]
    about = note("Rows are latents by KL; those of inactive latents are without colour.") if any(plain) else None
    more = (
        details(f"{len(others)} {'more' if parts else 'tables'}, of other metrics", tag("div", *others, class_="pair"))
        if others
        else None
    )
    best = _best_two(by_factor) if len(factors) > 1 else None
    return section("matrices", "Latents against factors", about, tag("div", *parts, class_="pair"), best, more)


def _best_two(by_factor: Sequence[Mapping[str, Any]]) -> Html | None:
    if not by_factor:
        return None
    caption = (
        "The two latents that tell most of each factor: mutual information of binned means over the factor's entropy "
        "(NMI), and the gap between them, whose mean is MIG; informativeness is the accuracy of DCI's predictor."
    )
    cells = [[Cell(text) for text in row] for row in told.rows(by_factor)]
    return table(told.HEADERS, cells, caption, numeric=(False, False, True, False, True, True, True))


def leaks(found: Mapping[str, Any] | None, latents: Sequence[Mapping[str, Any]]) -> Section | None:
    """The variance of each latent while one factor alone varies (`analysis.leak.table`), in the latents' order."""
    shown = [r for r in latents if r["latent"] in found["variance"]][:MOST_ROWS] if found is not None else []
    if found is None or not shown:
        return None
    variance_RK = np.array([found["variance"][record["latent"]] for record in shown])
    plain = [record.get("status") in ("inactive", "constant") for record in shown]
    about = note(
        f"Variance of μ among images that differ in one factor alone: mean of {found['groups']} groups of "
        f"{found['size']} images. A latent that holds one factor has one value in its row, and a factor that one "
        "latent holds one in its column; unlike a score it shows a factor that no latent follows."
    )
    names = [record["latent"] for record in shown]
    drawn = heat_table(variance_RK, names, found["factors"], "Variance while one factor varies", plain)
    return section("leak", "Leak between factors", about, drawn)


def _numbers(count: int) -> list[str]:
    return [str(i) for i in range(count)] if count > 1 else [""]


def metrics(results: Sequence[Result]) -> Section | None:
    """Every value with what chance and the factors themselves would score."""
    if not results:
        return None
    rows, notes, settings = [], [], []
    beside = any(result.pca is not None for result in results)
    problems: dict[str, list[str]] = {}
    for result in results:
        if result.score is None:
            problems.setdefault(result.problem or "could not be computed", []).append(result.name)
            continue
        for name, value in result.score.values.items():
            active, chance, ceiling, pca = (
                None if values is None else values.get(name)
                for values in (
                    result.active.values if result.active else None, result.chance, result.ceiling, result.pca
                )
            )  # fmt: skip
            label = result.name if len(result.score.values) == 1 else f"{result.name}: {name}"
            rows.append([
                Cell(label.replace("_", " ")),
                Cell(number(value, 3), value),
                Cell("" if active is None else number(active, 3), active),
                Cell("" if chance is None else number(chance, 3), chance),
                Cell("" if ceiling is None else number(ceiling, 3), ceiling),
                *([Cell("" if pca is None else number(pca, 3), pca)] if beside else []),
                Cell(charts.bar(value, chance, ceiling) or "", class_="mid"),
            ])  # fmt: skip
        notes += [tag("li", tag("b", result.name), ": ", sentence) for sentence in result.score.notes]
        if result.score.settings:
            text = "; ".join(f"{k.replace('_', ' ')} {v}" for k, v in flat(result.score.settings).items())
            settings.append(tag("li", tag("b", result.name), ": ", text))
    left_out = [tag("li", tag("b", ", ".join(names)), f": {why}") for why, names in problems.items()]
    whole = table(
        ("metric", "value", "active latents only", "chance", "ceiling", *["PCA"] * beside, "from 0 to 1"),
        rows,
        "Chance: codes that know nothing of the factors. Ceiling: the factors themselves as codes. "
        + "PCA: ten principal components of the same images, without training. " * beside
        + "In the bars chance is the mark below, the ceiling the mark above.",
        numeric=(False, True, True, True, True, *[True] * beside, False),
    )
    # Of one factor most metrics ask what is between factors.
    few = rows and all(str((r.score.settings if r.score else {}).get("factors", 1)) == "1" for r in results)
    drawn = [
        whole if rows else None,
        tag("ul", *notes, class_="note") if notes else None,
        note("Not computed:") if problems else None,
        tag("ul", *left_out, class_="note") if problems else None,
        details("Settings of the estimators", tag("ul", *settings, class_="note")) if settings else None,
    ]
    if few:
        drawn = [details(f"{len(rows)} values, of data with one factor", *drawn)]
    return section("metrics", "Metrics", *drawn)


def diagnosis(numbers: Mapping[str, str]) -> Section | None:
    """The numbers of the model as a whole that take more than one pass, in words."""
    found = facts(numbers, "The model as a whole")
    return section("diagnosis", "Diagnosis", None if found is None else details(f"{len(numbers)} numbers", found))
