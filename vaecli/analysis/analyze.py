"""All that the tool can say about a trained model over a data set, gathered once: `analyze`, `report`, `compare`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from vaecli import device as devices
from vaecli import extras, noise
from vaecli import output as streams
from vaecli.analysis import (
    aggregate,
    axes,
    diagnosis,
    draws,
    leak,
    likelihood,
    metrics,
    pca_row,
    pixel_order,
    probes,
    quality,
    tables,
    told,
)
from vaecli.analysis import codes as code_files
from vaecli.analysis.aggregate import RULES
from vaecli.analysis.codes import Array, Codes
from vaecli.analysis.diagnosis import Evidence, Verdict
from vaecli.analysis.draws import Source
from vaecli.analysis.gathering import latent_statistics, limited
from vaecli.analysis.likelihood import Nll
from vaecli.analysis.statistics import Statistics
from vaecli.batch import at_once
from vaecli.data.base import Dataset, SplitView
from vaecli.speed import fast
from vaecli.training import rundir
from vaecli.training.checkpoint import Loaded

TESTED = 10_000  # draws each of q(z) and p(z) on which the classifier is tested, and as many to train it
BIASED = 10_000  # images, of so few histograms have a bias that shows
COMPARED = 2_000  # draws each for the MMD

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
    factors: list[dict[str, Any]] = field(default_factory=list)  # as `told.measure` has them, where there are metrics
    judged: quality.Quality = field(default_factory=quality.Quality)

    def record(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "checkpoint": str(self.loaded.path),
            "step": self.loaded.step,
            "model": self.loaded.config.model.name,
            "data": {"name": self.dataset.info.name, "source": self.dataset.info.source},  # what was measured
            "split": self.view.name,
            **_record(self),
            "levels": tables.level_records(self.stats),
            "facts": self.loaded.model.facts(),
            **self.judged.record(),
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
    factors: list[dict[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {"schema": 1, "codes": self.source, **_record(self)}


def _record(found: Analysis | CodesAnalysis) -> dict[str, Any]:
    return {
        "n": found.stats.n,
        "seed": found.seed,
        "latents": found.latents,
        "totals": tables.totals(found.stats),
        "verdict": {"name": found.verdict.name, "sentences": found.verdict.sentences},
        "diagnosis": found.diagnosis or None,
        "metrics": [result.record() for result in found.results],
        "factors": found.factors,
        "versions": extras.versions(),
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
    batch_size: int | None = None,
    seed: int = 0,
    lenient: bool = True,
    asked: quality.Request = quality.NOTHING,
) -> Analysis:
    """Statistics, verdict and, on demand, the diagnosis of q(z), metrics and what is `asked`; progress on stderr.

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
    batch_size = batch_size or at_once(loaded.info.shape)
    model, names = loaded.model, loaded.model.latent_names()
    hyper = loaded.hyper
    prepared = quality.prepare(asked, loaded, dataset, view)
    with torch.inference_mode(), streams.progress("analyzing", images) as advance:
        batches = limited(view.batches(batch_size), images)
        stats = latent_statistics(model, batches, hyper, advance, seed=seed, draws=noise.draws(images))
    about: dict[str, Any] = {"factors": dataset.varying_factors, "step": loaded.step, "model": model}
    verdict = diagnosis.verdict(stats, names, hyper, **about)
    past = rundir.past(loaded.path) if "val" in dataset.splits else None
    verdict = diagnosis.with_past(verdict, past, loaded.step, model)
    latents = tables.records(stats, names)
    unusable = "the codes are not finite" if verdict.name == "not finite" else None
    if stats.n < 2:
        unusable = "one image is too few"
    if not model.inferred:
        unusable = "nothing infers latents from an image"
    judged = quality.Quality()
    if verdict.name != "not finite":
        judged = quality.measure(asked, prepared, loaded, dataset, view, seed)
    if unusable is not None or not (metric_names or diagnose):
        results = [metrics.Result(name, None, problem=unusable) for name in metric_names]
        return Analysis(loaded, dataset, view, seed, stats, verdict, latents, results=results, judged=judged)
    with streams.progress("encoding", images) as advance:
        codes = code_files.encode(loaded, view, images, batch_size, advance)
    numbers: dict[str, Any] = {}
    if diagnose:
        source = draws.source(loaded, asked.density)
        columns, numbers = _of_codes(
            codes, _posterior(loaded, view, stats, codes, seed), _prior(source, stats, seed), standard(stats), seed
        )
        more, of_model = _of_model(source, loaded, view, stats, seed)
        rules, counts = _rules(codes, stats, more["gain"])
        numbers = {**numbers, **of_model, "inactive": counts, "drawn_from": source.text}
        numbers |= {"leak": _leak(loaded, dataset, stats, seed), "pixel_order": _pixel_order(dataset, seed)}
        numbers["axes"] = axes.measure(loaded.model, dataset.split("train"))
        if not model.has_likelihood or model.kl_weight(hyper) is None:
            numbers["law"] = None  # which follows from a KL as the one term that weighs on q(z|x)
        latents = _with_columns(latents, {**columns, **more, **rules})
        evidence = _evidence(loaded, hyper, numbers)
        verdict = diagnosis.verdict(stats, names, hyper, **about, evidence=evidence)
        verdict = diagnosis.with_past(verdict, past, loaded.step, model)
        verdict = diagnosis.with_pixel_order(verdict, numbers["pixel_order"])
    seen = codes
    if metric_names:
        _say_part_of_grid(dataset, images)
        seen = code_files.fully_known(codes, view, images)
        if len(seen) < diagnosis.FEW_IMAGES:
            streams.notice(f"metrics of {len(seen):,} images say little, as the columns chance and ceiling show")
    compared = _numbers(seen, stats)
    results = _metrics(metric_names, compared, seed, lenient)
    latents, factors = told.measure(compared, latents, results, seed)
    if seen is codes:  # of the same images
        results = pca_row.beside(results, view, images, seed)
    return Analysis(loaded, dataset, view, seed, stats, verdict, latents, codes, numbers, results, factors, judged)


def analyze_codes(
    codes: Codes, *, metric_names: Sequence[str] = (), diagnose: bool = False, seed: int = 0, lenient: bool = True
) -> CodesAnalysis:
    """What can be said of codes alone; their KL and distances are to N(0, I).

    Latents without a log-variance, where others have one, are seen by the metrics alone: probabilities of labels.
    """
    every, gaussian_D = codes, codes.gaussian_D
    if codes.logvar_ND is not None and not gaussian_D.all():
        codes = codes.latents_only(gaussian_D)
        rest = every.latents - codes.latents
        streams.notice(f"{rest} of these have no log-variance, as labels have none: metrics alone see them")
    m = aggregate.marginals(codes.mean_ND, codes.logvar_ND)
    tensors = {name: None if a is None else torch.from_numpy(a) for name, a in (("s", m.sigma2_D), ("kl", m.kl_D))}
    mean_D, var_D = torch.from_numpy(m.mean_D.copy()), torch.from_numpy(m.var_mu_D.copy())
    stats = Statistics(len(codes), mean_D, var_D, tensors["s"], tensors["kl"], None, None, None)
    names = codes.latent_names
    latents = tables.records(stats, names)
    numbers: dict[str, Any] = {}
    evidence = None
    if diagnose and len(codes) > 1:
        standard_prior = codes.logvar_ND is not None
        prior_MD = _normal_draws(codes.latents, seed) if standard_prior else None
        columns, numbers = _of_codes(codes, codes, prior_MD, standard_prior, seed)
        rules, numbers["inactive"] = _rules(codes, stats, None)
        if (factors_NK := codes.factors_NK) is not None:
            mean_ND, labels_NK = torch.from_numpy(codes.mean_ND), torch.from_numpy(factors_NK)
            numbers["leak"] = leak.table(lambda index_B: mean_ND[index_B], labels_NK, codes.factor_names, names, seed)
        latents = _with_columns(latents, {**columns, **rules})
        evidence = _evidence(None, {}, numbers)
    verdict = diagnosis.verdict(stats, names, factors=told.varying_factors(codes), evidence=evidence)
    # What to try first is advice about a training, and nothing is known of how these codes were made.
    found = [sentence for sentence in verdict.sentences if not sentence.startswith(("First", "Then"))]
    verdict = Verdict(verdict.name, found)
    results = _metrics(metric_names, every, seed, lenient)
    latents, factors = told.measure(every, latents, results, seed)
    return CodesAnalysis(codes.source, seed, stats, verdict, latents, codes, numbers, results, factors)


def _say_part_of_grid(dataset: Dataset, images: int) -> None:
    """That scores over a part of a full grid of factors are off, where whole grids are what others score over."""
    sizes = [size for size in dataset.info.factor_sizes if size > 1]
    if sizes and math.prod(sizes) == len(dataset.images) > images and images <= BIASED:
        streams.notice(
            f"metrics are of {images:,} of the {len(dataset.images):,} images of a full grid of factors: informations "
            "read high by chance, and gaps between latents low, as the columns chance and ceiling show; "
            "--split all takes the whole grid"
        )


def are_numbers(stats: Statistics) -> Array:
    """Which latents are numbers that can be compared, bool (D,): all but indices of a codebook without order."""
    return np.concatenate([np.full(len(p.mean_D), p.usage is None or p.level.ordered) for p in stats.parts])


def _numbers(codes: Codes, stats: Statistics) -> Codes | None:
    """The latents that are numbers, active as the statistics have it; None where none is."""
    keep_D = are_numbers(stats)
    codes = replace(codes, known_active_D=stats.active_D.numpy())
    return codes.latents_only(keep_D) if keep_D.any() else None


def _leak(loaded: Loaded, dataset: Dataset, stats: Statistics, seed: int) -> dict[str, Any] | None:
    """Over images of all splits, in which alone others may be found that differ in one factor."""
    keep_D, model, names = are_numbers(stats), loaded.model, loaded.model.latent_names()
    if dataset.labels is None or not keep_D.any():
        return None
    kept = torch.from_numpy(np.flatnonzero(keep_D))

    def encode(index_B: torch.Tensor) -> torch.Tensor:
        return model.posterior(dataset.batch(index_B).x_BCHW.to(model.device)).mean_BD.cpu()[:, kept]

    with torch.inference_mode():
        return leak.table(encode, dataset.labels, dataset.info.factor_names, [names[d] for d in kept], seed)


def _pixel_order(dataset: Dataset, seed: int) -> dict[str, Any] | None:
    found = pixel_order.measure(dataset, seed)
    return pixel_order.record(found) if found else None


def _metrics(names: Sequence[str], codes: Codes | None, seed: int, lenient: bool) -> list[metrics.Result]:
    if not names:
        return []
    if codes is None:
        return [metrics.Result(name, None, problem="the indices of a codebook are no numbers") for name in names]
    with streams.progress("metrics", len(names)) as advance:
        return metrics.evaluate(names, codes, seed, lambda name: advance(1), lenient=lenient)


def mixture(stats: Statistics) -> bool:
    """Whether q(z) is the mixture of the Gaussians (or points) that the codes describe: one level, inferred from the
    image alone, whose latents are independent given the image."""
    if len(stats.parts) != 1:
        return False
    part = stats.parts[0]
    return part.level.kind == "point" or (part.level.kind == "gaussian" and part.normal)


def standard(stats: Statistics) -> bool:
    """Whether densities of q(z) can be held against N(0, I)."""
    return mixture(stats) and stats.parts[0].standard


def _normal_draws(latents: int, seed: int) -> Array:
    rng = np.random.default_rng(devices.derive(seed, "prior"))
    return rng.standard_normal((2 * TESTED + COMPARED, latents))


def _prior(source: Source, stats: Statistics, seed: int) -> Array | None:
    """Draws of what `vae sample` draws from, for the two-sample tests; None where there is none."""
    if source.density is None and standard(stats):
        return _normal_draws(len(stats.mean_D), seed)
    devices.seed(seed, "prior")
    with torch.inference_mode():
        drawn = source.table(2 * TESTED + COMPARED)
    return None if drawn is None else drawn.cpu().double().numpy()


def _posterior(loaded: Loaded, view: SplitView, stats: Statistics, codes: Codes, seed: int) -> Codes | None:
    """What q(z) is a mixture of: the codes or, where these do not describe it, points, one ancestral draw an image.
    None for indices of a codebook, between which there is no distance."""
    if mixture(stats):
        return codes
    if any(part.usage is not None for part in stats.parts):
        return None
    devices.seed(seed, "posterior")
    parts = [
        draws.posterior_table(loaded.model, batch.x_BCHW.to(loaded.model.device)).cpu().double()
        for batch in limited(view.batches(512), len(codes))
    ]
    return Codes(torch.cat(parts).numpy(), latent_names=codes.latent_names)


def _of_codes(
    codes: Codes, posterior: Codes | None, prior_MD: Array | None, standard_prior: bool, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns of the latents by name, numbers of the whole) that follow from the codes, draws of q(z) and the prior.

    Where `posterior` is not the codes themselves these do not describe q(z), and only draws are compared.
    """
    columns: dict[str, Any] = dict.fromkeys(SHAPE)
    numbers: dict[str, Any] = dict.fromkeys(
        ("information", "moment_kl", "mmd", "classifier", "law", "largest_covariance")
    )
    if posterior is codes:
        mixed, numbers_of = _of_mixture(codes, standard_prior, seed)
        columns |= mixed
        numbers |= numbers_of
    if prior_MD is not None and posterior is not None:
        mean_ND, logvar_ND = posterior.mean_ND, posterior.logvar_ND
        rng = np.random.default_rng(devices.derive(seed, "mmd draws"))
        index = np.resize(rng.permutation(len(codes)), COMPARED)
        drawn_MD = aggregate.draw(mean_ND, logvar_ND, index, rng)
        numbers["mmd"] = asdict(aggregate.mmd(drawn_MD, prior_MD[:COMPARED], seed))
        with streams.progress("telling q(z) from p(z)", 500) as advance:
            separation = aggregate.classifier(mean_ND, logvar_ND, prior_MD[COMPARED:], seed, 500, advance)
        numbers["classifier"] = asdict(separation)
    return columns, numbers


def _of_mixture(codes: Codes, standard_prior: bool, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What follows from q(z) being the mixture of what the codes describe."""
    mean_ND, logvar_ND = codes.mean_ND, codes.logvar_ND
    m = aggregate.marginals(mean_ND, logvar_ND)
    columns: dict[str, Any] = {
        "skewness": m.skewness_D,
        "skewness_error": m.skewness_error_D,
        "kurtosis": m.kurtosis_D,
        "kurtosis_error": m.kurtosis_error_D,
        "mean_sigma": m.sigma_D,
    }
    numbers: dict[str, Any] = {"largest_covariance": aggregate.largest_covariance(mean_ND, logvar_ND)}
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
    return columns, numbers


def _rules(codes: Codes, stats: Statistics, gain_D: Array | None) -> tuple[dict[str, Any], dict[str, int | None]]:
    """(columns of the latents, number of inactive latents), both by rule."""
    found: dict[str, Array | None] = dict.fromkeys(RULES)
    if mixture(stats):
        m = aggregate.marginals(codes.mean_ND, codes.logvar_ND)
        found = aggregate.inactive(m, gain_D, standard_prior=standard(stats))
    counts = {rule: None if flags_D is None else int(flags_D.sum()) for rule, flags_D in found.items()}
    return {f"inactive_{rule}": flags_D for rule, flags_D in found.items()}, counts


def _of_model(
    source: Source, loaded: Loaded, view: SplitView, stats: Statistics, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns of the latents by name, numbers of the whole) that need the model."""
    model, hyper = loaded.model, loaded.hyper
    latents = len(stats.mean_D)
    variance_D = torch.cat([part.var_D if part.total_D is None else part.total_D for part in stats.parts])
    centred = all(part.level.standard for part in stats.parts)
    images = min(len(view), probes.latent_images(latents))
    with streams.progress("what each latent is worth", images * latents) as advance:
        mean_D = None if centred else stats.mean_D
        worth = probes.latents(
            source, view, hyper, variance_D.sqrt(), mean_D, images=images, seed=seed, advance=advance
        )
    images = min(len(view), probes.VARIANCE_IMAGES)
    with streams.progress("variance loss", images) as advance:
        loss = probes.variance_loss(source, view, images=images, seed=seed, advance=advance)
    bound = None
    if likelihood.refusal(model, view.take(2).x_BCHW, hyper) is None:
        k, images = likelihood.GLANCE[0], min(len(view), likelihood.GLANCE[1])
        with streams.progress("IWAE bound", images) as advance:
            bound = likelihood.estimate(model, view, hyper, k, images=images, seed=seed, advance=advance)
    columns = {
        "gain": worth.gain_D,
        "gain_error": worth.gain_error_D,
        "prior_gain": worth.prior_gain_D,
        "prior_gain_error": worth.prior_gain_error_D,
        "sensitivity": worth.sensitivity_D,
    }
    numbers = {
        "rate": stats.kl,
        "rate_error": stats.kl_error,
        "distortion": stats.recon,
        "latent_probe": {"images": worth.images, "instead": worth.instead},
        "variance_loss": {**asdict(loss), "gap": loss.gap},
        "gamma": loss.gamma if model.has_likelihood else None,
        "iwae": None if bound is None else _glance(bound),
    }
    return columns, numbers


def _glance(bound: Nll) -> dict[str, Any]:
    about = {"nll": bound.nll, "error": bound.error, "negative_elbo": bound.negative_elbo}
    return {**about, "samples": bound.k, "images": bound.images}


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
        weight = loaded.model.kl_weight(hyper)
        likelihood = getattr(loaded.config.model, "likelihood", None)
        if getattr(likelihood, "variance", None) == "fixed" and "likelihood.sigma" in hyper and gamma:
            sigma = hyper["likelihood.sigma"]
            weight = (1.0 if weight is None else weight) * (sigma / gamma) ** 2
    return Evidence(
        mi=information.get("mi"),
        # Against a density fitted to the codes it says nothing of the model's own prior.
        auc=auc if math.isfinite(auc) and numbers.get("drawn_from", "the prior") == "the prior" else None,
        auc_error=separation.get("error"),
        moment_kl=numbers["moment_kl"],
        weight=weight,
        sigma=sigma,
        gamma=gamma,
    )
