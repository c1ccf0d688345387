"""All that the tool can say about a trained model over a data set, gathered once: `analyze`, `report`, `compare`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import aggregate, diagnosis, metrics, probes
from vaecli.analysis import codes as code_files
from vaecli.analysis.aggregate import RULES
from vaecli.analysis.codes import Array, Codes
from vaecli.analysis.diagnosis import Evidence, Statistics, Verdict, number_text
from vaecli.data.base import Dataset, SplitView
from vaecli.models.base import Model
from vaecli.speed import fast
from vaecli.training.checkpoint import Loaded

TESTED = 10_000  # draws each of q(z) and p(z) on which the classifier is tested, and as many to train it
COMPARED = 2_000  # draws each for the MMD

FIELDS = ("latent", "mean_mu", "var_mu", "mean_sigma2", "sum", "kl", "status")  # of a latent, in every analysis
SHAPE = (
    "mean_sigma", "skewness", "skewness_error", "kurtosis", "kurtosis_error", "ks", "marginal_kl", "range_low",
    "range_high", "rho2_10", "rho2_50", "rho2_90",
)  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """`latents` has one record a latent, ordered by KL; `diagnosis` the numbers of the model as a whole that take more
    than one pass, empty unless asked for; `record()` is what `vae analyze --json` prints."""

    loaded: Loaded
    dataset: Dataset
    view: SplitView
    seed: int
    stats: Statistics
    verdict: Verdict
    latents: list[dict[str, Any]]
    codes: Codes | None = None  # where metrics or the diagnosis needed them
    diagnosis: dict[str, Any] = field(default_factory=dict)
    results: list[metrics.Result] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "checkpoint": str(self.loaded.path),
            "step": self.loaded.step,
            "model": self.loaded.config.model.name,
            "data": {"name": self.loaded.info.name, "source": self.loaded.info.source},
            "split": self.view.name,
            **_record(self),
        }


@dataclass(frozen=True)
class CodesAnalysis:
    """The same for codes whose encoder is not at hand: no reconstruction, and a prior taken to be N(0, I)."""

    source: str
    seed: int
    stats: Statistics
    verdict: Verdict
    latents: list[dict[str, Any]]
    codes: Codes
    diagnosis: dict[str, Any] = field(default_factory=dict)
    results: list[metrics.Result] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {"schema": 1, "codes": self.source, **_record(self)}


def _record(found: Analysis | CodesAnalysis) -> dict[str, Any]:
    return {
        "n": found.stats.n,
        "seed": found.seed,
        "latents": found.latents,
        "totals": diagnosis.totals(found.stats),
        "verdict": {"name": found.verdict.name, "sentences": found.verdict.sentences},
        "diagnosis": found.diagnosis or None,
        "metrics": [result.record() for result in found.results],
    }


# -------------------------------------------------------------------------------------------------------------- analyze


def analyze(
    loaded: Loaded,
    dataset: Dataset,
    split: str | None = None,
    limit: int | None = None,
    *,
    metric_names: Sequence[str] = (),
    diagnose: bool = False,
    batch_size: int = 512,
    seed: int = 0,
    lenient: bool = True,
) -> Analysis:
    """Statistics, verdict and, on demand, the diagnosis of q(z) and metrics; progress on stderr.

    Over `limit` images of a split, but for the parts that run the model many times, which take a part of these.
    `lenient`: a metric whose library is missing is a result with a problem, and no ConfigError.
    """
    fast.tune_allocator()
    fast.accelerate(loaded.model)
    whole = dataset.split(split or "test")
    view = whole.sample(limit)
    images = len(view)
    instead = f" (there is no split {split or 'test'})" if view.name != (split or "test") else ""
    streams.notice(f"{loaded.info.name}: split {view.name}{instead}, {images:,} of {len(whole):,} images")
    model, names = loaded.model, loaded.model.latent_names()
    hyper = model.hyper(loaded.step)
    devices.seed(seed, "analyze")
    with torch.inference_mode(), streams.progress("analyzing", images) as advance:
        batches = diagnosis.limited(view.batches(batch_size), images)
        stats = diagnosis.latent_statistics(model, batches, hyper, advance)
    about: dict[str, Any] = {"factors": dataset.varying_factors, "step": loaded.step}
    standard_prior = len(model.groups) == 1
    verdict = diagnosis.verdict(stats, names, hyper, **about, standard_prior=standard_prior)
    latents = diagnosis.records(stats, names)
    unusable = {"not finite": "the codes are not finite", "n/a": "one image is too few"}.get(verdict.name)
    if unusable is not None or not (metric_names or diagnose):
        results = [metrics.Result(name, None, problem=unusable) for name in metric_names]
        return Analysis(loaded, dataset, view, seed, stats, verdict, latents, results=results)
    with streams.progress("encoding", images) as advance:
        codes = code_files.encode(loaded, view, images, batch_size, advance)
    numbers: dict[str, Any] = {}
    if diagnose:
        standard_prior = standard_prior and _prior_is_normal(stats, codes)
        columns, numbers = _of_codes(codes, _prior(model, standard_prior, seed), standard_prior, seed)
        more, of_model = _of_model(loaded, view, stats, standard_prior, seed)
        rules, counts = _rules(codes, standard_prior, more["gain"])
        numbers = {**numbers, **of_model, "inactive": counts}
        latents = _with_columns(latents, {**columns, **more, **rules})
        evidence = _evidence(loaded, hyper, numbers)
        verdict = diagnosis.verdict(stats, names, hyper, **about, standard_prior=standard_prior, evidence=evidence)
    results = _metrics(metric_names, codes, seed, lenient)
    return Analysis(loaded, dataset, view, seed, stats, verdict, latents, codes, numbers, results)


def analyze_codes(
    codes: Codes, *, metric_names: Sequence[str] = (), diagnose: bool = False, seed: int = 0, lenient: bool = True
) -> CodesAnalysis:
    """What can be said of codes alone; their KL and distances are to N(0, I)."""
    m = aggregate.marginals(codes.mean_ND, codes.logvar_ND)
    tensors = {name: None if a is None else torch.from_numpy(a) for name, a in (("s", m.sigma2_D), ("kl", m.kl_D))}
    mean_D, var_D = torch.from_numpy(m.mean_D.copy()), torch.from_numpy(m.var_mu_D.copy())
    stats = Statistics(len(codes), mean_D, var_D, tensors["s"], tensors["kl"], None, None, None)
    names = codes.latent_names
    latents = diagnosis.records(stats, names)
    numbers: dict[str, Any] = {}
    evidence = None
    if diagnose and len(codes) > 1:
        standard_prior = codes.logvar_ND is not None
        prior_MD = _normal_draws(codes.latents, seed) if standard_prior else None
        columns, numbers = _of_codes(codes, prior_MD, standard_prior, seed)
        rules, numbers["inactive"] = _rules(codes, standard_prior, None)
        latents = _with_columns(latents, {**columns, **rules})
        evidence = _evidence(None, {}, numbers)
    factors = len(codes.varying) if codes.factors_NK is not None else None
    verdict = diagnosis.verdict(stats, names, factors=factors, evidence=evidence)
    # What to try first is advice about a training, and nothing is known of how these codes were made.
    found = [sentence for sentence in verdict.sentences if not sentence.startswith(("First", "Then"))]
    verdict = Verdict(verdict.name, found)
    results = _metrics(metric_names, codes, seed, lenient)
    return CodesAnalysis(codes.source, seed, stats, verdict, latents, codes, numbers, results)


def _metrics(names: Sequence[str], codes: Codes, seed: int, lenient: bool) -> list[metrics.Result]:
    if not names:
        return []
    with streams.progress("metrics", len(names)) as advance:
        return metrics.evaluate(names, codes, seed, lambda name: advance(1), lenient=lenient)


def _prior_is_normal(stats: Statistics, codes: Codes) -> bool:
    """Whether the KL that the model reports is the one to N(0, I)."""
    if stats.kl_D is None or codes.kl_D is None:
        return False
    return bool(np.allclose(stats.kl_D.numpy(), codes.kl_D, rtol=1e-3, atol=1e-3))


def _normal_draws(latents: int, seed: int) -> Array:
    rng = np.random.default_rng(devices.derive(seed, "prior"))
    return rng.standard_normal((2 * TESTED + COMPARED, latents))


def _prior(model: Model, standard_prior: bool, seed: int) -> Array | None:
    """Draws from p(z) for the two-sample tests; None without a prior."""
    if standard_prior:
        return _normal_draws(sum(model.groups.values()), seed)
    devices.seed(seed, "prior")
    with torch.inference_mode():
        drawn = probes.prior_draws(model, 2 * TESTED + COMPARED)
    return None if drawn is None else drawn.cpu().double().numpy()


def _of_codes(
    codes: Codes, prior_MD: Array | None, standard_prior: bool, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns of the latents by name, numbers of the whole) that follow from the codes and the prior."""
    mean_ND, logvar_ND = codes.mean_ND, codes.logvar_ND
    m = aggregate.marginals(mean_ND, logvar_ND)
    columns: dict[str, Any] = dict.fromkeys(SHAPE)
    columns |= {
        "skewness": m.skewness_D,
        "skewness_error": m.skewness_error_D,
        "kurtosis": m.kurtosis_D,
        "kurtosis_error": m.kurtosis_error_D,
        "mean_sigma": m.sigma_D,
    }
    numbers: dict[str, Any] = dict.fromkeys(("information", "moment_kl", "mmd", "classifier", "law"))
    numbers["largest_covariance"] = aggregate.largest_covariance(mean_ND, logvar_ND)
    if logvar_ND is not None and m.rho2_3D is not None:
        columns |= {f"rho2_{q}": row for q, row in zip((10, 50, 90), m.rho2_3D, strict=True)}
        with streams.progress("information in q(z)", len(codes)) as advance:
            information = aggregate.information(mean_ND, logvar_ND, seed, advance)
        with streams.progress("shape of q(z)", len(codes)) as advance:
            shape = aggregate.shape(mean_ND, logvar_ND, advance)
        record = asdict(information)
        record.pop("dwkl_D")
        if standard_prior:
            columns |= {"ks": shape.ks_D, "marginal_kl": information.dwkl_D}
            numbers["moment_kl"] = aggregate.moment_kl(m.mean_D, aggregate.covariance(mean_ND, logvar_ND))
            off_D = np.abs(m.variance_D - 1)
            worst = int(off_D.argmax())
            numbers["law"] = {
                "mean": float(m.variance_D.mean()),
                "worst": float(m.variance_D[worst]),
                "worst_latent": codes.latent_names[worst],
            }
        else:
            record |= dict.fromkeys(("dwkl", "dwkl_error", "kl", "residual", "residual_error"))
        columns |= {"range_low": shape.low_D, "range_high": shape.high_D}
        numbers["information"] = record
    if prior_MD is not None:
        rng = np.random.default_rng(devices.derive(seed, "mmd draws"))
        index = np.resize(rng.permutation(len(codes)), COMPARED)
        drawn_MD = aggregate.draw(mean_ND, logvar_ND, index, rng)
        numbers["mmd"] = asdict(aggregate.mmd(drawn_MD, prior_MD[:COMPARED], seed))
        with streams.progress("telling q(z) from p(z)", 500) as advance:
            separation = aggregate.classifier(mean_ND, logvar_ND, prior_MD[COMPARED:], seed, 500, advance)
        numbers["classifier"] = asdict(separation)
    return columns, numbers


def _rules(codes: Codes, standard_prior: bool, gain_D: Array | None) -> tuple[dict[str, Any], dict[str, int | None]]:
    """(columns of the latents, number of inactive latents), both by rule."""
    m = aggregate.marginals(codes.mean_ND, codes.logvar_ND)
    found = aggregate.inactive(m, gain_D, standard_prior=standard_prior)
    counts = {rule: None if flags_D is None else int(flags_D.sum()) for rule, flags_D in found.items()}
    return {f"inactive_{rule}": flags_D for rule, flags_D in found.items()}, counts


def _of_model(
    loaded: Loaded, view: SplitView, stats: Statistics, standard_prior: bool, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns of the latents by name, numbers of the whole) that need the model."""
    model, hyper = loaded.model, loaded.model.hyper(loaded.step)
    latents = len(stats.mean_D)
    variance_D = stats.var_D if stats.total_D is None else stats.total_D
    images = min(len(view), probes.latent_images(latents))
    with streams.progress("what each latent is worth", images * latents) as advance:
        mean_D = None if standard_prior else stats.mean_D
        worth = probes.latents(model, view, hyper, variance_D.sqrt(), mean_D, images=images, seed=seed, advance=advance)
    images = min(len(view), probes.VARIANCE_IMAGES)
    with streams.progress("variance loss", images) as advance:
        loss = probes.variance_loss(model, view, images=images, seed=seed, advance=advance)
    bound = None
    if standard_prior:
        samples = probes.IMPORTANCE_SAMPLES
        images = min(len(view), probes.DECODES // samples)
        with streams.progress("IWAE bound", images) as advance:
            bound = probes.iwae(model, view, hyper, images=images, samples=samples, seed=seed, advance=advance)
    columns = {
        "gain": worth.gain_D,
        "gain_error": worth.gain_error_D,
        "prior_gain": worth.prior_gain_D,
        "prior_gain_error": worth.prior_gain_error_D,
        "sensitivity": worth.sensitivity_D,
    }
    numbers = {
        "rate": stats.kl,
        "distortion": stats.recon,
        "latent_probe": {"images": worth.images, "instead": worth.instead},
        "variance_loss": {**asdict(loss), "gap": loss.gap},
        "gamma": loss.gamma,
        "iwae": None if bound is None else asdict(bound),
    }
    return columns, numbers


def _with_columns(latents: list[dict[str, Any]], columns: Mapping[str, Array | None]) -> list[dict[str, Any]]:
    """The records with more fields, each array read at the latent's index."""
    return [
        {**record, **{key: None if a is None else a[record["index"]].item() for key, a in columns.items()}}
        for record in latents
    ]


def _evidence(loaded: Loaded | None, hyper: Mapping[str, float], numbers: Mapping[str, Any]) -> Evidence:
    """What the verdict needs of the diagnosis."""
    information, separation = numbers["information"] or {}, numbers["classifier"] or {}
    auc = separation.get("auc", math.nan)
    weight, sigma, gamma = None, None, numbers.get("gamma")
    if loaded is not None:
        weight = hyper.get("beta")
        if "beta_norm" in hyper:
            weight = hyper["beta_norm"] * loaded.info.pixels / sum(loaded.model.groups.values())
        likelihood = getattr(loaded.config.model, "likelihood", None)
        if getattr(likelihood, "variance", None) == "fixed" and "likelihood.sigma" in hyper and gamma:
            sigma = hyper["likelihood.sigma"]
            weight = (1.0 if weight is None else weight) * (sigma / gamma) ** 2
    return Evidence(
        mi=information.get("mi"),
        auc=auc if math.isfinite(auc) else None,
        auc_error=separation.get("error"),
        moment_kl=numbers["moment_kl"],
        weight=weight,
        sigma=sigma,
        gamma=gamma,
    )


# --------------------------------------------------------------------------------------------------------------- tables
METRIC_HEADERS = ("metric", "value", "over active", "chance", "ceiling")


def latent_columns(latents: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields of a latent's record that are columns of a file: the seven of every analysis first."""
    return [*FIELDS, *(key for key in latents[0] if key not in FIELDS and key != "index")]


def latent_tables(latents: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The columns of a full diagnosis as tables that fit a terminal: (title, headers, rows)."""

    def pair(record: Mapping[str, Any], key: str, digits: int) -> str:
        value, error = record.get(key), record.get(f"{key}_error")
        if value is None or not math.isfinite(value):
            return "n/a"
        return f"{value:.{digits}f} +- {number_text(error, digits)}"

    def several(record: Mapping[str, Any], keys: Sequence[str]) -> str:
        values = [record.get(key) for key in keys]
        return "n/a" if None in values else " ".join(f"{value:.3g}" for value in values)

    shape = [
        [
            record["latent"], pair(record, "skewness", 2), pair(record, "kurtosis", 2), number_text(record["ks"], 3),
            number_text(record["marginal_kl"], 3), several(record, ("range_low", "range_high")),
        ]
        for record in latents
    ]  # fmt: skip
    use = [
        [
            record["latent"], pair(record, "gain", 2), pair(record, "prior_gain", 2),
            number_text(record.get("sensitivity"), 3), several(record, ("rho2_10", "rho2_50", "rho2_90")),
        ]
        for record in latents
    ]  # fmt: skip
    rules = [
        [record["latent"], *({None: "n/a", True: "yes", False: "-"}[record[f"inactive_{rule}"]] for rule in RULES)]
        for record in latents
    ]
    return [
        ("q(z) of each latent", ["latent", "skewness", "kurtosis", "KS", "KL(q||p)", "1 %, 99 %"], shape),
        (
            "worth of each latent",
            ["latent", "gain (nats)", "by prior", "|dx/dz|", "rho^2 10, 50, 90 %"],
            use,
        ),
        ("inactive by rule", ["latent", *RULES], rules),
    ]


def diagnosis_rows(numbers: Mapping[str, Any]) -> list[list[str]]:
    """The numbers of `Analysis.diagnosis` in words: what it is, and its value with error and settings."""
    rows: list[list[str]] = []

    def add(what: str, text: str) -> None:
        rows.append([what, text])

    def pm(values: Mapping[str, Any], key: str, error: str, digits: int = 2) -> str:
        return f"{number_text(values[key], digits)} +- {number_text(values[error], digits)}"

    if numbers.get("rate") is not None:
        add("rate E KL(q(z|x) || p(z))", f"{number_text(numbers['rate'], 3)} nats")
    if "distortion" in numbers:
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
    add("largest covariance of two latents", number_text(numbers["largest_covariance"], 4))
    if (found := numbers.get("mmd")) is not None:
        add(
            "MMD^2 between q(z) and p(z)",
            f"{found['mmd2']:.2e} (95 % of equal samples are below {found['null']:.2e}; p = {found['p_value']:.3f}; "
            f"RBF, bandwidth {found['bandwidth']:.3g}, {found['points']:,} draws each)",
        )
    if (found := numbers.get("classifier")) is not None:
        add(
            "AUC of a classifier, q(z) against p(z)",
            f"{pm(found, 'auc', 'error', 3)} (0.5: alike; {found['held_out']:,} draws each)",
        )
    if (loss := numbers.get("variance_loss")) is not None:
        add(
            "variance loss, a pixel",
            f"images {loss['var_x']:.5f} - reconstructions {loss['var_xhat']:.5f} = {loss['gap']:.5f}; "
            f"mse {loss['mse']:.5f}"
            + ("" if loss["var_generated"] is None else f"; samples {loss['var_generated']:.5f}"),
        )
    if numbers.get("gamma") is not None:
        add("gamma, the best Gaussian sigma", f"{numbers['gamma']:.4f}")
    for rule, count in numbers["inactive"].items():
        if count is not None:
            add(f"inactive by rule {rule}", f"{count}: {RULES[rule]}")
    return rows


def metric_rows(results: Sequence[metrics.Result], digits: int = 4) -> list[list[str]]:
    """metric, value, over active latents, chance, ceiling; a metric of several values has a row for each."""
    rows = []
    for result in results:
        if result.score is None:
            rows.append([result.name, "n/a", "n/a", "n/a", "n/a"])
            continue
        for key, value in result.score.values.items():
            name = result.name if len(result.score.values) == 1 else f"{result.name}.{key}"
            active = None if result.active is None else result.active.values.get(key)
            others = [None if of is None else of.get(key) for of in (result.chance, result.ceiling)]
            rows.append([name, *(number_text(v, digits) for v in (value, active, *others))])
    return rows
