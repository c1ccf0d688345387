"""Statistics as records and tables: what a model does not have is not there.

A latent's record has the fields of its level's kind; in files several levels stay one table, with a column that names
the level.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from vaecli import extras
from vaecli.analysis import axes, leak, metrics
from vaecli.analysis.aggregate import RULES
from vaecli.analysis.statistics import WORTH, LevelStatistics, Statistics

HEADINGS = {
    "latent": "latent", "kl": "KL (nats)", "mean_mu": "mean mu", "var_mu": "var mu", "mean_sigma2": "mean sigma^2",
    "sum": "sum", "perplexity": "perplexity", "status": "status", "level": "level",
}  # fmt: skip
FIELDS = ("latent", "kl", "mean_mu", "var_mu", "mean_sigma2", "sum", "status")  # of a latent, in every analysis
LABEL_FIELDS = ("latent", "mean_mu", "var_mu", "status")
CODE_FIELDS = ("latent", "perplexity", "status")
DIM = ("inactive", "constant")
NONE = "n/a"
METRIC_HEADERS = ("metric", "value", "over active", "chance", "ceiling", "PCA")

Record = dict[str, Any]


class Table(NamedTuple):
    """As `output.table` takes it."""

    title: str | None
    headers: list[str]
    rows: list[list[str]]
    styles: list[str | None]


def fields_of(part: LevelStatistics) -> tuple[str, ...]:
    """The fields that the latents of a level have in files."""
    return {"codes": CODE_FIELDS, "labels": LABEL_FIELDS}.get(part.level.kind, FIELDS)


def records(stats: Statistics, names: Sequence[str]) -> list[Record]:
    """One record a latent, in the order of `Statistics.order`; None where a model has no such number."""
    found, start, several = [], 0, len(stats.parts) > 1
    for part in stats.parts:
        found += [_record(part, d, start + d, names[start + d], several) for d in part.order()]
        start += len(part.mean_D)
    return found


def _record(part: LevelStatistics, d: int, index: int, name: str, several: bool) -> Record:
    def number(values_D: Any) -> float | None:
        return None if values_D is None else float(values_D[d])

    numbers = {
        "mean_mu": part.mean_D,
        "var_mu": part.var_D,
        "mean_sigma2": part.sigma2_D,
        "sum": part.total_D,
        "kl": part.kl_D,
        "perplexity": None if part.usage is None else part.usage.perplexity_D,
    }
    fields = fields_of(part)
    record: Record = {"latent": name, "index": index}
    record |= {key: number(values_D) for key, values_D in numbers.items() if key in fields}
    return record | {"status": part.status(d)} | ({"level": part.level.name} if several else {})


def columns(latents: Sequence[Record]) -> list[str]:
    """The fields that are columns of a file: those of the statistics first, then the level's name, then the others."""
    known = [key for key in HEADINGS if any(key in record for record in latents)]
    others = dict.fromkeys(key for record in latents for key in record)
    return [*known, *(key for key in others if key not in HEADINGS and key != "index")]


def level_tables(stats: Statistics, names: Sequence[str], latents: Sequence[Record] | None = None) -> list[Table]:
    """A table a level for a reader, with the columns that its latents have; rows of inactive latents are dimmed."""
    latents, start, found = records(stats, names) if latents is None else latents, 0, []
    for part in stats.parts:
        here = [r for r in latents if start <= r["index"] < start + len(part.mean_D)]
        start += len(part.mean_D)
        shown = [key for key in fields_of(part) if any(r[key] is not None for r in here)]
        if not part.level.standard and "sum" in shown:
            shown.remove("sum")  # it is there for the variance law
        rows = [[cell(key, r.get(key)) for key in shown] for r in here]
        styles = ["dim" if r["status"] in DIM else None for r in here]
        title = level_title(part) if len(stats.parts) > 1 else None
        found.append(Table(title, [HEADINGS[key] for key in shown], rows, styles))
    return found


def table_rows(stats: Statistics, names: Sequence[str]) -> tuple[list[str], list[list[str]], list[str | None]]:
    """Headers, cells and row styles of all latents as one table."""
    latents = records(stats, names)
    keys = [key for key in columns(latents) if any(r.get(key) is not None for r in latents)]
    styles = ["dim" if r["status"] in DIM else None for r in latents]
    return [HEADINGS[key] for key in keys], [[cell(key, r.get(key)) for key in keys] for r in latents], styles


def cell(key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    return number_text(value, 2 if key == "perplexity" else 4)


def level_title(part: LevelStatistics) -> str:
    """The level's name, its kind and what it costs."""
    rate = rate_text(part)
    return f"{part.level.name} ({part.level.kind})" + (f": {rate}" if rate else "")


def rate_text(part: LevelStatistics) -> str:
    if part.rate is None:
        return ""
    if part.exact:
        return f"rate {number_text(part.rate, 3)} nats"
    return f"rate {number_text(part.rate, 3)} +- {number_text(part.rate_error, 3)} nats (sampled)"


# ------------------------------------------------------------------------------------------------ the model as a whole


def totals(stats: Statistics) -> Record:
    """The numbers of the model as a whole."""
    found: Record = {
        "images": stats.n,
        "elbo": stats.elbo,
        "elbo_standard_error": stats.elbo_error,
        "recon": stats.recon,
        "recon_standard_error": stats.recon_error,
        "kl": stats.kl,
        "latents": stats.judged or len(stats.mean_D),  # those that active_units are of
        "active_units": stats.active,
        "active_rule": stats.active_rule or None,
        "latents_with_kl": stats.worth,
    }
    if stats.kl_error is not None:
        found["kl_standard_error"] = stats.kl_error
    if stats.mse is not None:
        found |= {"mse": stats.mse, "mse_standard_error": stats.mse_error}
    return found


def level_records(stats: Statistics) -> list[Record]:
    """Of each level, in order of generation those inferred, then those that are not."""
    found: list[Record] = []
    for part in stats.parts:
        level = part.level
        record: Record = {"name": level.name, "kind": level.kind, "latents": level.size, "inferred": True}
        if part.rate is not None:
            record |= {"rate": part.rate, "rate_standard_error": part.rate_error, "exact": part.exact}
        if level.kind in ("gaussian", "point"):
            record["active_units"] = int(part.active_D.sum())
        if part.usage is not None:
            used = part.usage
            varying = int(used.varies_D.sum())
            record |= {"codes": used.codes, "perplexity": used.perplexity, "dead": used.dead, "varying": varying}
        if part.labels:
            record["labels"] = [
                {"factor": a.factor, "accuracy": a.accuracy, "standard_error": a.error, "images": a.images}
                for a in part.labels
            ]
        found.append(record)
    for level in stats.noise:
        what: Record = {"name": level.name, "kind": level.kind, "latents": level.size, "inferred": False}
        found.append(what | {"status": "not inferred"})
    return found


def totals_text(stats: Statistics) -> str:
    """The totals in one line."""
    parts = []
    if stats.elbo is not None:
        parts.append(f"ELBO {number_text(stats.elbo, 2)} +- {number_text(stats.elbo_error, 2)} nats")
    if stats.recon is not None:
        parts.append(f"reconstruction {number_text(stats.recon, 2)} +- {number_text(stats.recon_error, 2)} nats")
    if stats.mse is not None:
        parts.append(f"MSE {number_text(stats.mse, 6)} +- {number_text(stats.mse_error, 6)} a pixel")
    if stats.kl is not None:
        if stats.kl_error is None:
            parts.append(f"KL {number_text(stats.kl, 3)} nats")
        else:
            parts.append(f"rate {number_text(stats.kl, 3)} +- {number_text(stats.kl_error, 3)} nats (sampled)")
    if stats.judged:
        parts.append(f"{stats.active} of {stats.judged} latents active by {stats.active_rule}")
        if stats.worth is not None:
            parts.append(f"{stats.worth} with KL > {WORTH:g} nats")
    return "; ".join([*parts, f"{stats.n:,} images"])


def nll_text(model: Any) -> str | None:
    """What the reconstruction of a model is, said once, where it is the logarithm of a density."""
    likelihood = getattr(model, "likelihood", None)
    if not model.has_likelihood or likelihood is None or likelihood.levels is not None:
        return None
    return (
        "the reconstruction is -log of a density of pixel values: it may fall below 0, and is compared only with runs "
        "of the same likelihood on pixels of the same range"
    )


def level_texts(stats: Statistics) -> list[str]:
    """What is to be said of levels beyond their latents: codes in use, labels that are right, noise."""
    found = []
    for part in stats.parts:
        if part.usage is not None:
            used = part.usage
            found.append(
                f"{part.level.name}: perplexity {used.perplexity:.1f} of {used.codes} codes, {used.dead:.0%} of them "
                f"never used; {int(used.varies_D.sum())} of {len(used.perplexity_D)} positions vary"
            )
        for a in part.labels:
            found.append(
                f"{part.level.name}: {a.factor} right in {a.accuracy:.1%} +- {a.error:.1%} of {a.images:,} images with "
                "a known label"
            )
    return found + [f"{level.name}: {level.size} latents of noise, not inferred" for level in stats.noise]


def facts_text(facts: Mapping[str, float]) -> str:
    """What a model knows of itself, in one line."""
    return "model: " + "; ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in facts.items())


def number_text(value: object, digits: int) -> str:
    """A number with so many decimals; `n/a` for None, NaN and infinities."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) and math.isfinite(value) else NONE


# ------------------------------------------------------------------------------------------------------- full diagnosis


def latent_tables(latents: Sequence[Record]) -> list[tuple[str, list[str], list[list[str]]]]:
    """What metrics and a full diagnosis add to the latents, as tables that fit a terminal: (title, headers, rows);
    without the columns that no latent has a value in."""

    def pair(record: Record, key: str, digits: int) -> str:
        value, error = record.get(key), record.get(f"{key}_error")
        if value is None or not math.isfinite(value):
            return NONE
        return f"{value:.{digits}f} +- {number_text(error, digits)}"

    def several(record: Record, keys: Sequence[str]) -> str:
        values = [record.get(key) for key in keys]
        return NONE if None in values else " ".join(f"{value:.3g}" for value in values)

    wanted: dict[str, dict[str, Callable[[Record], str]]] = {
        "what each latent tells": {
            "factor": lambda r: r.get("best_factor", NONE),
            "NMI": lambda r: number_text(r.get("best_factor_nmi"), 4),
        },
        "q(z) of each latent": {
            "skewness": lambda r: pair(r, "skewness", 2),
            "kurtosis": lambda r: pair(r, "kurtosis", 2),
            "KS": lambda r: number_text(r.get("ks"), 3),
            "KL(q||p)": lambda r: number_text(r.get("marginal_kl"), 3),
            "1 %, 99 %": lambda r: several(r, ("range_low", "range_high")),
        },
        "worth of each latent": {
            "gain (nats)": lambda r: pair(r, "gain", 2),
            "by prior": lambda r: pair(r, "prior_gain", 2),
            "|dx/dz|": lambda r: number_text(r.get("sensitivity"), 3),
            "rho^2 10, 50, 90 %": lambda r: several(r, ("rho2_10", "rho2_50", "rho2_90")),
        },
        "inactive by rule": {rule: partial(_flag, key=f"inactive_{rule}") for rule in RULES},
    }
    found = []
    for title, texts in wanted.items():
        cells = {heading: [text(record) for record in latents] for heading, text in texts.items()}
        cells = {heading: column for heading, column in cells.items() if set(column) != {NONE}}
        rows = [list(row) for row in zip([record["latent"] for record in latents], *cells.values(), strict=True)]
        if cells:
            found.append((title, ["latent", *cells], rows))
    return found


def _flag(record: Record, key: str) -> str:
    return {None: NONE, True: "yes", False: "-"}[record.get(key)]


def diagnosis_rows(numbers: Mapping[str, Any]) -> list[list[str]]:
    """The numbers of `Analysis.diagnosis` in words: what it is, and its value with error and settings."""
    rows: list[list[str]] = []

    def add(what: str, text: str) -> None:
        rows.append([what, text])

    def pm(values: Mapping[str, Any], key: str, error: str, digits: int = 2) -> str:
        return f"{number_text(values[key], digits)} +- {number_text(values[error], digits)}"

    if numbers.get("rate") is not None:
        if numbers.get("rate_error") is None:
            add("rate E KL(q(z|x) || p(z))", f"{number_text(numbers['rate'], 3)} nats")
        else:
            add("rate E[log q(z|x) - log p(z)]", f"{pm(numbers, 'rate', 'rate_error', 3)} nats (sampled)")
    if numbers.get("distortion") is not None:
        add("distortion E -log p(x|z)", f"{number_text(numbers['distortion'], 2)} nats")
    if (bound := numbers.get("iwae")) is not None:
        add(
            "IWAE bound on -log p(x)",
            f"{pm(bound, 'nll', 'error')} nats (K = {bound['samples']}, {bound['images']:,} images, whose -ELBO is "
            f"{number_text(bound['negative_elbo'], 2)})",
        )
    if (info := numbers.get("information")) is not None:
        most = f"log N = {number_text(info['log_n'], 2)} nats at most"
        add("information I(x; z)", f"{pm(info, 'mi', 'mi_error')} nats ({most})")
        add("total correlation of q(z)", f"{pm(info, 'tc', 'tc_error')} nats")
        if info["dwkl"] is not None:
            add("sum of KL(q(z_i) || p(z_i))", f"{pm(info, 'dwkl', 'dwkl_error', 3)} nats")
            add(
                "KL less these three",
                f"{pm(info, 'residual', 'residual_error', 3)} nats (0 but for sampling; {info['points']:,} draws, "
                f"{info['dtype']}, numerical error {info['numerical_error']:.0e})",
            )
    if numbers.get("moment_kl") is not None:
        add("KL(N(mean, cov of q(z)) || N(0, I))", f"{number_text(numbers['moment_kl'], 4)} nats")
    if (law := numbers.get("law")) is not None:
        add(
            "variance law Var[mu] + E[sigma^2] = 1",
            f"mean {law['mean']:.3f}, worst {law['worst']:.3f} in {law['worst_latent']}",
        )
    if numbers.get("largest_covariance") is not None:
        add("largest covariance of two latents", number_text(numbers["largest_covariance"], 4))
    prior = numbers.get("drawn_from", "the prior")
    prior = "p(z)" if prior == "the prior" else prior
    if (found := numbers.get("mmd")) is not None:
        add(
            f"MMD^2 between q(z) and {prior}",
            f"{found['mmd2']:.2e} (95 % of equal samples are below {found['null']:.2e}; p = {found['p_value']:.3f}; "
            f"RBF, bandwidth {found['bandwidth']:.3g}, {found['points']:,} draws each)",
        )
    if (found := numbers.get("classifier")) is not None:
        add(
            f"AUC of a classifier, q(z) against {prior}",
            f"{pm(found, 'auc', 'error', 3)} (0.5: alike; {found['held_out']:,} draws each)",
        )
    if (loss := numbers.get("variance_loss")) is not None:
        made = "resyntheses" if numbers.get("distortion") is None else "reconstructions"
        add(
            "variance loss, a pixel",
            f"images {loss['var_x']:.5f} - {made} {loss['var_xhat']:.5f} = {loss['gap']:.5f}; "
            f"mse {loss['mse']:.5f}"
            + ("" if loss["var_generated"] is None else f"; samples from {prior} {loss['var_generated']:.5f}"),
        )
        for level in loss["levels"]:
            add(
                f"variance loss of {level['level']} given the levels above, a latent",
                f"codes {level['var_z']:.5f} - expected {level['var_zhat']:.5f} = "
                f"{level['var_z'] - level['var_zhat']:.5f}; mse {level['mse']:.5f}",
            )
    if numbers.get("gamma") is not None:
        add("gamma, the best Gaussian sigma", f"{numbers['gamma']:.4f}")
    if (order := numbers.get("pixel_order")) is not None and order["sentence"] is not None:
        each = ", ".join(f"{f['factor']} {f['order']:.2f}" for f in order["factors"] if f["order"] is not None)
        add("order of values in pixels", f"{each} (1: distances add up; 0: a neighbour is as far as any other)")
    if (found := numbers.get("axes")) is not None and found["latents"]:
        add("principal axis of each latent", axes.text(found))
    for rule, count in numbers["inactive"].items():
        if count is not None:
            add(f"inactive by rule {rule}", f"{count}: {RULES[rule]}")
    return rows


def leak_table(found: Mapping[str, Any], latents: Sequence[Record]) -> Table:
    """The variance of each latent while one factor alone varies, in the latents' order; and the second largest as a
    share of the largest, of those that are in use."""
    headers, rows, styles = ["latent", *found["factors"], "most by", "next"], [], []
    for record in latents:
        variance_K = found["variance"].get(record["latent"])
        if variance_K is None:
            continue
        k, next_ = leak.spill(variance_K)
        used = record["status"] not in DIM and next_ is not None
        most = [found["factors"][k], f"{next_:.1%}"] if used else [NONE, NONE]
        rows.append([record["latent"], *(f"{value:.4g}" for value in variance_K), *most])
        styles.append(None if used else "dim")
    title = (
        f"leak: variance of a latent while one factor alone varies (mean of {found['groups']} groups of "
        f"{found['size']} images); next: the second largest as a share of the largest"
    )
    return Table(title, headers, rows, styles)


def settings_texts(results: Sequence[metrics.Result]) -> list[str]:
    """How each metric was estimated, those with the same settings together, and the versions at work; without what is
    said of all of them, the images, latents and factors."""
    by_text: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    for result in results:
        if result.score is None:
            continue
        shown = []
        for key, value in result.score.settings.items():
            if key in ("images", "latents", "factors", "seed"):
                continue
            if key == "scikit-learn":
                versions[key] = str(value)
            else:
                shown.append(f"{key.replace('_', ' ')} {_setting(value)}")
        by_text.setdefault(", ".join(shown), []).append(result.name)
    found = [f"{', '.join(names)}: {text or 'nothing to set'}" for text, names in by_text.items()]
    versions = {**extras.versions(), **versions}
    return [*found, ", ".join(f"{name} {number}" for name, number in versions.items())] if found else []


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def metric_rows(results: Sequence[metrics.Result], digits: int = 4) -> list[list[str]]:
    """metric, value, over active latents, chance, ceiling, PCA; a metric of several values has a row for each."""
    rows = []
    for result in results:
        if result.score is None:
            rows.append([result.name, *[NONE] * (len(METRIC_HEADERS) - 1)])
            continue
        for key, value in result.score.values.items():
            name = result.name if len(result.score.values) == 1 else f"{result.name}.{key}"
            active = None if result.active is None else result.active.values.get(key)
            others = [None if of is None else of.get(key) for of in (result.chance, result.ceiling, result.pca)]
            rows.append([name, *(number_text(v, digits) for v in (value, active, *others))])
    return rows
