"""What a trained model's latents do: moments of q(z|x) over a data set, which latents are in use, and a verdict.

Everything accumulates in float64, batch by batch, so a data set of any size fits. All KL and likelihoods in nats.

Shapes: B batch, D latents.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vaecli.batch import Batch
from vaecli.errors import InputError

if TYPE_CHECKING:
    from vaecli.models.base import Model

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5: a latent is active if Var_x[E_q[z|x]] exceeds it
ACTIVE_SHARE = 1e-4  # a deterministic code has no scale of its own: its variance is compared with the largest one
COLLAPSED_KL = 0.1  # nats in all latents together; less cannot tell two images apart
LAW_TOLERANCE = 0.1
EARLY = 1000  # steps before which nothing else is worth trying
FRESH_START = "First: a smaller learning rate (--set optim.lr=...), or another seed."
STEPS_SHARE = 20  # of all steps a twentieth must be over before a run in training is called collapsed
FEW_IMAGES = 100  # with fewer, neither log N nor the moments of q(z) say much
SEPARABLE = 0.97  # AUC of a classifier between q(z) and p(z); the presets come to 0.6 to 0.95
FAR_MOMENTS = 2.0  # nats in KL(N(mean, cov of q) || p): as far as a shift of two standard deviations
OFF_SCALE = 0.5  # the same, nats a latent: a variance of 3.4 or 0.24 in every one
VERDICTS = (
    "healthy", "partly collapsed", "collapsed", "over-regularised", "under-regularised", "prior mismatch", "not finite",
)  # fmt: skip
HEADERS = ("latent", "mean mu", "var mu", "mean sigma^2", "sum", "KL (nats)", "status")


class Moments:
    """Running mean and variance of rows, merged batch by batch (Chan, Golub & LeVeque 1983, eq. 2.1).

    Stable where the textbook sum of squares cancels: means far from zero, millions of rows.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)  # sum of squared deviations from the mean

    def add(self, rows: Tensor) -> None:
        """Take in rows along the first axis: (B,) or (B, D), any float type, any device."""
        # MPS has no float64, and B x D numbers are cheap to move.
        values = rows.detach().cpu().double()
        count = len(values)
        if count == 0:
            return
        mean = values.mean(dim=0)
        delta = mean - self.mean
        total = self.n + count
        self._squares = self._squares + (values - mean).square().sum(dim=0) + delta.square() * (self.n * count / total)
        self.mean = self.mean + delta * (count / total)
        self.n = total

    @property
    def variance(self) -> Tensor:
        """Population variance (divided by N)."""
        return self._squares / max(self.n, 1)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean; NaN for fewer than two rows."""
        if self.n < 2:
            return torch.full_like(self._squares, math.nan)
        return (self._squares / (self.n - 1) / self.n).sqrt()


@dataclass(frozen=True)
class Statistics:
    """Moments of q(z|x) over `n` images; vectors are float64 of shape (D,).

    A deterministic code has neither `sigma2_D` nor `kl_D`, hence no KL and no ELBO.
    """

    n: int
    mean_D: Tensor  # E_x[mu]
    var_D: Tensor  # Var_x[mu]
    sigma2_D: Tensor | None  # E_x[sigma^2]
    kl_D: Tensor | None  # E_x[KL(q(z_j|x) || p(z_j))]
    recon: float | None  # E_x[-log p(x|z)], one z ~ q(z|x) an image; None where there are codes and no model
    recon_error: float | None  # standard error of `recon`
    elbo_error: float | None

    @property
    def total_D(self) -> Tensor | None:
        """Var_x[mu] + E_x[sigma^2], the variance of the aggregated posterior.

        The variance law: exactly 1, with mean 0, whatever beta and the likelihood, over the training images at a
        stationary point of a loss in which only the KL to N(0, I) penalises q, if a shift and a scaling of z_j can be
        undone: the heads for mu and log sigma^2 and the decoder's first layer are affine with free weights and biases
        (no weight decay on them, no batch norm between, no log sigma^2 at its bounds). For then the derivatives of the
        KL along both vanish: E[mu] = 0 and E[mu^2 + sigma^2] = 1. Latents that ignore the image satisfy it as 0 + 1.
        """
        return None if self.sigma2_D is None else self.var_D + self.sigma2_D

    @property
    def active_D(self) -> Tensor:
        """Which latents depend on the image: Var_x[mu] > 0.01; for a deterministic code, a hundredth of the largest
        standard deviation."""
        if self.sigma2_D is not None:
            return self.var_D > ACTIVE_VARIANCE
        return self.var_D > ACTIVE_SHARE * self.var_D.max()

    @property
    def active(self) -> int:
        """Number of active units."""
        return int(self.active_D.sum())

    @property
    def kl(self) -> float | None:
        """E_x[KL(q(z|x) || p(z))], all latents together."""
        return None if self.kl_D is None else float(self.kl_D.sum())

    @property
    def elbo(self) -> float | None:
        """The evidence lower bound, -(recon + KL) with weight 1 whatever the training objective."""
        return None if self.kl is None or self.recon is None else -(self.recon + self.kl)

    @property
    def moment_kl(self) -> float | None:
        """KL(N(mean, diag variance of q) || N(0, I)) in nats: how far q(z) is from the prior by its marginal moments
        alone, at most the same with the whole covariance."""
        total_D = self.total_D
        if total_D is None:
            return None
        return float(0.5 * (total_D + self.mean_D.square() - 1 - total_D.log()).sum())

    def order(self) -> list[int]:
        """Latents by mean KL, largest first; those of a deterministic code by variance."""
        key_D = self.var_D if self.kl_D is None else self.kl_D
        # NaN compares as nothing, so it is put last by hand.
        return torch.argsort(key_D.nan_to_num(nan=-math.inf), descending=True, stable=True).tolist()

    def status(self, latent: int) -> str:
        """`active`, `inactive` or, where a number is not finite, `n/a`."""
        if not math.isfinite(float(self.var_D[latent])):
            return "n/a"
        return "active" if bool(self.active_D[latent]) else "inactive"


class Verdict(NamedTuple):
    """One of `VERDICTS`, or `n/a`, and what speaks for it in plain sentences."""

    name: str
    sentences: list[str]


@dataclass(frozen=True)
class Evidence:
    """What the verdict takes from a full diagnosis; None where the model has no such number.

    `weight` is what the KL weighs against -log p(x|z) at its best: beta, times sigma^2 / gamma^2 where the likelihood
    is a Gaussian of fixed sigma, gamma^2 being the mean squared error a pixel (gamma is then the best sigma).
    """

    mi: float | None = None  # I(x; z), nats
    auc: float | None = None  # of a classifier between q(z) and p(z)
    auc_error: float | None = None
    moment_kl: float | None = None  # with the whole covariance
    weight: float | None = None
    sigma: float | None = None  # of a Gaussian likelihood, where fixed
    gamma: float | None = None


def limited(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """At most the first `images` images of a stream of batches."""
    for batch in batches:
        if images <= 0:
            return
        if len(batch.x_BCHW) > images:
            labels_BK = None if batch.labels_BK is None else batch.labels_BK[:images]
            batch = Batch(batch.x_BCHW[:images], batch.index_B[:images], labels_BK)
        images -= len(batch.x_BCHW)
        yield batch


def latent_statistics(
    model: "Model",
    batches: Iterable[Batch],
    hyper: Mapping[str, float],
    on_batch: Callable[[int], None] | None = None,
) -> Statistics:
    """Stream over images and gather `Statistics`; the model should be in evaluation mode.

    The one z an image drawn for the reconstruction comes from torch's global generator: seed it first.
    `on_batch` is told the number of images of each batch. InputError if there are no images.
    """
    mean, sigma2, kl, recon, bound = Moments(), Moments(), Moments(), Moments(), Moments()
    with torch.inference_mode():
        for batch in batches:
            x_BCHW = batch.x_BCHW.to(model.device)
            q = model.posterior(x_BCHW)
            nll_B = model.nll(x_BCHW, q.sample(), hyper)
            mean.add(q.mean_BD)
            recon.add(nll_B)
            if q.logvar_BD is not None:
                sigma2.add(q.logvar_BD.cpu().double().exp())
            if q.kl_BD is not None:
                kl.add(q.kl_BD)
                bound.add(nll_B + q.kl_BD.sum(dim=1))
            if on_batch is not None:
                on_batch(len(x_BCHW))
    if mean.n == 0:
        raise InputError("there are no images to analyze")
    return Statistics(
        n=mean.n,
        mean_D=mean.mean,
        var_D=mean.variance,
        sigma2_D=sigma2.mean if sigma2.n else None,
        kl_D=kl.mean if kl.n else None,
        recon=float(recon.mean),
        recon_error=float(recon.standard_error),
        elbo_error=float(bound.standard_error) if bound.n else None,
    )


def records(stats: Statistics, names: Sequence[str]) -> list[dict[str, str | int | float | bool | None]]:
    """One record a latent, in the order of `Statistics.order`; None where a model has no such number."""
    total_D = stats.total_D

    def number(values_D: Tensor | None, d: int) -> float | None:
        return None if values_D is None else float(values_D[d])

    return [
        {
            "latent": names[d],
            "index": d,
            "mean_mu": float(stats.mean_D[d]),
            "var_mu": float(stats.var_D[d]),
            "mean_sigma2": number(stats.sigma2_D, d),
            "sum": number(total_D, d),
            "kl": number(stats.kl_D, d),
            "status": stats.status(d),
        }
        for d in stats.order()
    ]


def table_rows(stats: Statistics, names: Sequence[str]) -> tuple[Sequence[str], list[list[str]], list[str | None]]:
    """Headers, cells and row styles for `output.table`, one row a latent in the order of `Statistics.order`; rows of
    inactive latents are dimmed."""
    latents = records(stats, names)
    styles = ["dim" if record["status"] == "inactive" else None for record in latents]
    return HEADERS, [cells(record) for record in latents], styles


def cells(record: Mapping[str, object]) -> list[str]:
    """The record of a latent as text, under `HEADERS`."""
    numbers = [record[key] for key in ("mean_mu", "var_mu", "mean_sigma2", "sum", "kl")]
    return [str(record["latent"]), *(number_text(n, 4) for n in numbers), str(record["status"])]


def totals(stats: Statistics) -> dict[str, int | float | None]:
    """The numbers of the model as a whole."""
    return {
        "images": stats.n,
        "elbo": stats.elbo,
        "elbo_standard_error": stats.elbo_error,
        "recon": stats.recon,
        "recon_standard_error": stats.recon_error,
        "kl": stats.kl,
        "latents": len(stats.mean_D),
        "active_units": stats.active,
    }


def totals_text(stats: Statistics) -> str:
    """The totals in one line."""
    parts = []
    if stats.recon is not None:
        if stats.kl is not None:
            parts.append(f"ELBO {number_text(stats.elbo, 2)} +- {number_text(stats.elbo_error, 2)} nats")
        parts.append(f"reconstruction {number_text(stats.recon, 2)} nats")
    if stats.kl is not None:
        parts.append(f"KL {number_text(stats.kl, 3)} nats")
    return "; ".join([*parts, f"{stats.active} of {len(stats.mean_D)} latents active", f"{stats.n:,} images"])


def number_text(value: object, digits: int) -> str:
    """A number with so many decimals; `n/a` for None, NaN and infinities."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) and math.isfinite(value) else "n/a"


# ------------------------------------------------------------------------------------------------------------ verdict


def verdict(
    stats: Statistics,
    names: Sequence[str] | None = None,
    hyper: Mapping[str, float] | None = None,
    *,
    factors: int | None = None,
    step: int | None = None,
    standard_prior: bool = True,
    evidence: Evidence | None = None,
) -> Verdict:
    """Is the latent space in use, and is it what the prior promises? The first that holds:

    Not finite: a number is not. Collapsed: no latent depends on the image, or all together hold less than 0.1 nats.
    Partly collapsed: fewer latents are active than the data have factors or, with factors unknown, at most half of
    them. Other unused latents are what a KL penalty does with spare ones, and no fault.
    Over-regularised: z holds less than half of the log N nats that tell N images apart, and something can be blamed: a
    KL that weighs more than 1, or a capacity that is used up. (A rate as low at weight 1 is what the data are worth.)
    Under-regularised: the rate is more than log N, q(z) is far from the prior, and the KL weighs less than a half or
    the latents have lost the prior's scale. A rate above log N alone is no fault: a sound VAE on MNIST has twice that.
    Prior mismatch: q(z) is far from the prior, by a classifier's AUC of 0.97 or by its moments: samples decode from
    where no image was encoded.

    `hyper` are the model's numbers at the checkpoint (its remedies depend on them), `factors` the number of factors
    that vary in the data where that is known, `step` the training step. `standard_prior`: p(z) = N(0, I), without
    which the variance law and the moments say nothing. `evidence`: the diagnosis, without which information is bounded
    by the KL, and a mismatch is seen only in the means and variances.
    """
    names = names or [f"z{d}" for d in range(len(stats.mean_D))]
    vectors = [v for v in (stats.mean_D, stats.var_D, stats.sigma2_D, stats.kl_D) if v is not None]
    bad = [name for d, name in enumerate(names) if not all(math.isfinite(float(v[d])) for v in vectors)]
    if bad or not math.isfinite(stats.recon or 0.0):
        where = f"latents {_some(bad)}" if bad else "the reconstruction term"
        remedy = "First: an earlier checkpoint; in training a smaller --set optim.lr, or --set optim.grad_clip=1."
        return Verdict("not finite", [f"NaN or infinity in {where} over {stats.n:,} images.", remedy])
    if stats.n < 2:
        return Verdict("n/a", ["One image cannot show which latents depend on the image; give more."])
    if stats.kl is None or stats.sigma2_D is None:
        return _verdict_of_code(stats, names)
    hyper, active, kl = hyper or {}, stats.active, stats.kl
    unused = [name for d, name in enumerate(names) if not stats.active_D[d]]
    recon = "" if stats.recon is None else f", reconstruction {stats.recon:.4g}"
    sentences = [
        f"{active} of {len(names)} latents are active (variance of mu above {ACTIVE_VARIANCE:g}); "
        f"KL {kl:.3g} nats in all{recon}."
    ]
    if active == 0 or kl < COLLAPSED_KL:
        if kl < COLLAPSED_KL:
            sentences.append("z tells the decoder next to nothing: all reconstructions are nearly the same image.")
        else:
            sentences.append("q(z|x) is nearly the same for every image: the KL is paid and tells the decoder nothing.")
        return Verdict("collapsed", [*sentences, f"First: {_remedy(hyper, step)}"])
    partly = bool(unused) and (active < factors if factors else 2 * active <= len(names))
    if partly and factors:
        sentences.append(f"The data vary in {factors} factors, more than {active} latents can hold apart.")
    elif partly:
        sentences.append(
            f"{len(unused)} unused latents are no fault if the data need no more than {active}: train once with "
            f"latent_dim {active}, and if the reconstruction stays as good, nothing is lost."
        )
    elif unused:
        more = f", the more so with beta = {hyper['beta']:g}" if hyper.get("beta", 1.0) > 1 else ""
        need = f"the {factors} factors" if factors and len(names) > factors else "the data"
        sentences.append(f"Unused: {_some(unused)}. Normal where latent_dim is larger than {need} need{more}.")
    restless = _law(stats, names) if standard_prior else []
    if partly:
        fix = f"{'Then' if restless else 'First'}, to use more latents: {_remedy(hyper, step)}"
        return Verdict("partly collapsed", [*sentences, *restless, fix])
    evidence = evidence or Evidence()
    found = _over(stats, hyper, step, evidence) or _far(stats, hyper, standard_prior, evidence)
    if found is None:
        return Verdict("healthy", [*sentences, *_known(evidence, stats.n), *restless])
    return Verdict(found.name, [*sentences, *restless, *found.sentences])


def _known(evidence: Evidence, images: int) -> list[str]:
    """What a diagnosis found that is no fault."""
    parts = []
    if evidence.mi is not None:
        parts.append(
            f"I(x; z) is {evidence.mi:.3g} of the {math.log(images):.3g} nats that tell {images:,} images apart."
        )
    if evidence.auc is not None:
        parts.append(f"A small network tells q(z) from the prior with AUC {evidence.auc:.2f} (0.5: not at all).")
    return parts


def _over(stats: Statistics, hyper: Mapping[str, float], step: int | None, evidence: Evidence) -> Verdict | None:
    """Over-regularised, if so."""
    assert stats.kl is not None
    held, log_n = stats.kl if evidence.mi is None else evidence.mi, math.log(stats.n)
    early = step is not None and step < EARLY
    if stats.n < FEW_IMAGES or early or held >= 0.5 * log_n:
        return None
    weight = hyper.get("beta", 1.0) if evidence.weight is None else evidence.weight
    capacity = hyper.get("capacity", math.inf) if "gamma" in hyper else math.inf
    if abs(stats.kl - capacity) <= 0.5:
        cause = f"the capacity of {capacity:g} nats is used up"
    elif weight > 1 or hyper.get("beta_norm", 0.0) > 0:
        cause = f"the KL weighs {weight:.3g} times what it should against the reconstruction"
        if evidence.weight is None:
            cause = "the KL weighs more than 1"
    else:
        return None
    about = "I(x; z)" if evidence.mi is not None else "I(x; z), at most the KL,"
    finding = (
        f"{about} is {held:.3g} nats, less than half of the {log_n:.3g} that tell {stats.n:,} images apart: z sorts "
        f"them into about {math.exp(held):,.0f} kinds, and {cause}."
    )
    return Verdict("over-regularised", [finding, f"First: {_remedy(hyper, step, evidence)}"])


def _far(stats: Statistics, hyper: Mapping[str, float], standard_prior: bool, evidence: Evidence) -> Verdict | None:
    """Under-regularised or prior mismatch, if so."""
    assert stats.kl is not None
    if stats.n < FEW_IMAGES:
        return None
    log_n, latents = math.log(stats.n), len(stats.mean_D)
    moment_kl = None
    if standard_prior:
        moment_kl = stats.moment_kl if evidence.moment_kl is None else evidence.moment_kl
    reasons = []
    if evidence.auc is not None and evidence.auc - 2 * (evidence.auc_error or 0.0) >= SEPARABLE:
        reasons.append(f"a small network tells one from the other with AUC {evidence.auc:.3f} (0.5: not at all)")
    if moment_kl is not None and moment_kl >= max(FAR_MOMENTS, 0.1 * stats.kl):
        reasons.append(f"its mean and covariance alone are {moment_kl:.3g} nats away")
    if not reasons:
        return None
    far = f"q(z) is far from the prior: {', and '.join(reasons)}."
    weight = hyper.get("beta", 1.0) if evidence.weight is None else evidence.weight
    off_scale = moment_kl is not None and moment_kl > OFF_SCALE * latents
    if stats.kl > log_n and (weight < 0.5 or off_scale):
        finding = f"The rate, {stats.kl:.3g} nats, is more than the {log_n:.3g} that number all {stats.n:,} images" + (
            f", and the KL weighs {weight:.3g} of what it should." if weight < 0.5 else "."
        )
        return Verdict("under-regularised", [finding, far, f"First: {_more_weight(hyper, evidence)}"])
    return Verdict(
        "prior mismatch",
        [
            f"{far[:-1]}, so what is decoded from the prior need not look like what was encoded.",
            f"First: train longer. Then: {_more_weight(hyper, evidence)}",
        ],
    )


def warn_while_training(
    kl_D: Sequence[float | None], step: int, steps: int | None = None, hyper: Mapping[str, float] | None = None
) -> str | None:
    """One sentence if the KL of every latent (nats; None where not finite) at `step` says that a run goes wrong.

    A collapse is called one after 1000 steps and a twentieth of all `steps`, as sound runs too start with a KL near 0;
    and not while a capacity schedule asks for such a KL. The threshold is that of `verdict`.
    """
    hyper = hyper or {}
    bad = [f"z{d}" for d, kl in enumerate(kl_D) if kl is None or not math.isfinite(kl)]
    if bad:
        return f"not finite: the KL of {_some(bad)} at step {step:,}; a smaller optim.lr, or optim.grad_clip=1"
    total = sum(kl for kl in kl_D if kl is not None)
    early = step < max(EARLY, (steps or 0) // STEPS_SHARE)
    asked_for = "gamma" in hyper and hyper.get("capacity", math.inf) < COLLAPSED_KL
    if not kl_D or early or asked_for or total >= COLLAPSED_KL:
        return None
    return (
        f"collapsed so far: KL {total:.2g} nats in all {len(kl_D)} latents after {step:,} steps, z tells the decoder "
        f"next to nothing; try {_remedy(hyper, step)}"
    )


def _law(stats: Statistics, names: Sequence[str]) -> list[str]:
    """A word about the variance law where it is off by more than a tenth."""
    assert stats.total_D is not None and stats.sigma2_D is not None
    if stats.n < FEW_IMAGES:
        return []
    # Of so many images mean and variance come out so uncertain, three standard errors of a normal latent's.
    mean_error_D, variance_error_D = (stats.total_D / stats.n).sqrt(), stats.total_D * math.sqrt(2 / stats.n)
    off_D = torch.maximum((stats.total_D - 1).abs() - 3 * variance_error_D, stats.mean_D.abs() - 3 * mean_error_D)
    worst = int(off_D.argmax())
    if float(off_D[worst]) <= LAW_TOLERANCE:
        return []
    mean, var, sigma2, total = (float(v[worst]) for v in (stats.mean_D, stats.var_D, stats.sigma2_D, stats.total_D))
    return [
        f"Not at rest: a trained-out latent has mean 0 and variance of mu + mean sigma^2 = 1; {names[worst]} has mean "
        f"{mean:.2f} and {var:.2f} + {sigma2:.2f} = {total:.2f} ({int((off_D > LAW_TOLERANCE).sum())} of {len(names)} "
        f"latents are off by more than {LAW_TOLERANCE:g}).",
        "First: train longer. Weight decay, a further penalty on q(z), or images unlike the training images do it too.",
    ]


def _verdict_of_code(stats: Statistics, names: Sequence[str]) -> Verdict:
    """A code without distribution: all that can be seen is whether it varies."""
    about = "A deterministic code has no KL: only its variance over the images can be judged."
    if float(stats.var_D.max()) <= 1e-12 * float(stats.mean_D.square().max()):
        return Verdict("collapsed", [about, "No latent varies: every image has the same code.", FRESH_START])
    unused = [name for d, name in enumerate(names) if not stats.active_D[d]]
    if unused:
        finding = f"{len(unused)} of {len(names)} latents vary less than a hundredth as much as the largest"
        return Verdict("partly collapsed", [about, f"{finding} ({_some(unused)}): a smaller latent_dim would do."])
    return Verdict("healthy", [about, f"All {len(names)} latents vary."])


def _remedy(hyper: Mapping[str, float], step: int | None, evidence: Evidence | None = None) -> str:
    """The cheapest thing to try first for more information in z, as far as the numbers of the model tell."""
    if step is not None and step < EARLY:
        return f"train longer: after {step:,} steps the KL of a sound run can still be near 0."
    for name in ("beta", "beta_norm"):
        weight = hyper.get(name, 0.0)
        if weight > (1.0 if name == "beta" else 0.0):
            smaller = max(1.0, weight / 4) if name == "beta" else weight / 4
            return f"a smaller {name} (now {weight:g}), --set model.{name}={smaller:g}."
    if "capacity" in hyper and "gamma" in hyper:
        return f"a larger capacity (now {hyper['capacity']:g} nats), or train until its schedule has risen."
    if evidence is not None and evidence.sigma is not None and evidence.gamma is not None:
        return _best_sigma(evidence.sigma, evidence.gamma)
    sigma = hyper.get("likelihood.sigma", 0.0)
    if sigma >= 0.5:
        remedy = f"--set model.likelihood.sigma={sigma / 4:g}"
        return f"a smaller sigma (now {sigma:g}), so that the reconstruction counts more: {remedy}."
    warm_up = "{schedule: linear, start: 0, end: 1, steps: 10000}"
    return f"warm the KL up, --set model.name=beta-vae --set 'model.beta={warm_up}'."


def _more_weight(hyper: Mapping[str, float], evidence: Evidence) -> str:
    """The cheapest way to a q(z) nearer to the prior."""
    if evidence.sigma is not None and evidence.gamma is not None and evidence.sigma < 0.7 * evidence.gamma:
        return _best_sigma(evidence.sigma, evidence.gamma)
    beta = hyper.get("beta")
    if beta is not None:
        return f"a larger beta (now {beta:g}), --set model.beta={1.0 if beta < 1 else 2 * beta:g}."
    return "a larger weight on the KL, --set model.name=beta-vae --set model.beta=2, or fewer latents."


def _best_sigma(sigma: float, gamma: float) -> str:
    return (
        f"the sigma that the error calls for, --set model.likelihood.sigma={gamma:.2g} (now {sigma:g}), or "
        "--set model.likelihood.variance=optimal, which keeps it there."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
