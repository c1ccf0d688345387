"""The verdict: is the latent space in use, and is it what the prior promises; and what to try first where it is not.

Only what is defined for a model is judged, and advice speaks only of settings that the model has. All KL in nats.

Shapes: D latents.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from vaecli.analysis import tables
from vaecli.analysis.advice import EARLY, Evidence, Levers, levers, more_weight, remedy
from vaecli.analysis.gathering import latent_statistics, limited
from vaecli.analysis.statistics import WORTH, LevelStatistics, Statistics
from vaecli.analysis.tables import Table, table_rows
from vaecli.batch import Batch
from vaecli.models.base import Model
from vaecli.settings import schedules
from vaecli.training.rundir import Past

__all__ = [
    "VERDICTS", "Evidence", "Verdict", "discriminator_wins", "final_report", "latent_statistics", "limited",
    "table_rows", "verdict", "warn_while_training", "with_past",
]  # fmt: skip

COLLAPSED_KL = 0.1  # nats in all latents together; less cannot tell two images apart
LAW_TOLERANCE = 0.1
FRESH_START = "First: a smaller learning rate (--set optim.lr=...), or another seed."
STEPS_SHARE = 20  # of all steps a twentieth must be over before a run in training is called collapsed
FEW_IMAGES = 100  # with fewer, neither log N nor the moments of q(z) say much
ONE_IMAGE = "One image cannot show which latents depend on the image; give more."
FEW_LINES = 5  # of a run's log, whose mean ELBO is compared
FALLEN_NATS, FALLEN = 1.0, 0.05  # a held-out ELBO is worse by far by so many nats and this share of the best
LONGER = "train longer"  # the advice that no overfitted run is given
FEW_TO_COUNT = 20  # with fewer their mean image is near to each of them, and a latent may be the same by chance
SEPARABLE = 0.95  # AUC of a classifier between q(z) and p(z), two errors below it
FAR_MOMENTS = 2.0  # nats in KL(N(mean, cov of q) || p): as far as a shift of two standard deviations
OFF_SCALE = 0.5  # the same, nats a latent: a variance of 3.4 or 0.24 in every one
VERDICTS = (
    "healthy", "undertrained", "partly collapsed", "collapsed", "over-regularised", "under-regularised",
    "prior mismatch", "overfitted", "not judged", "not finite",
)  # fmt: skip


class Verdict(NamedTuple):
    """One of `VERDICTS` and what speaks for it in plain sentences."""

    name: str
    sentences: list[str]


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
    model: Model | None = None,
) -> Verdict:
    """Is the latent space in use, and is it what the prior promises? The first that holds:

    Not finite: a number is not.
    Undertrained: the reconstructions are no better than one constant image, the mean, or the KL costs more than the
    latents gain over it: the training was too short, or went wrong. And, last of all, a sound model that is not at
    rest: the variance law of a trained-out latent is off by more than a tenth.
    Collapsed: no latent depends on the image, or all together hold less than 0.1 nats.
    Partly collapsed: fewer latents are active than the data have factors or, with factors unknown, at most half of
    them, on 20 images or more. Other unused latents are what a KL penalty does with spare ones, and no fault.
    Over-regularised: z holds less than half of the log N nats that tell N images apart, and something can be blamed: a
    KL that weighs more than 1, or a capacity that is used up. (A rate as low at weight 1 is what the data are worth.)
    Under-regularised: the rate is more than log N, q(z) is far from the prior, and the KL weighs less than a half or
    the latents have lost the prior's scale. A rate above log N alone is no fault: a sound VAE on MNIST has twice that.
    Prior mismatch: q(z) is far from the prior, by a classifier's AUC of 0.95 or by its moments: samples decode from
    where no image was encoded.
    Overfitted (`with_past`): healthy, undertrained or not judged by these rules, but the held-out ELBO was better by
    far before.
    Not judged: the model is none of which this is defined, being without likelihood or of several levels, or its
    latents being codes or labels; then the sentences say why, and what can be seen.

    `hyper` are the model's numbers at the checkpoint (its remedies depend on them; `model` says which are what their
    names say), `factors` the number of factors that vary in the data where that is known, `step` the training step.
    `standard_prior`: p(z) = N(0, I), without which the variance law and the moments say nothing. `evidence`: the
    diagnosis, without which information is bounded by the KL, and a mismatch is seen only in the means and variances.
    """
    names = names or [f"z{d}" for d in range(len(stats.mean_D))]
    if (broken := _not_finite(stats, names)) is not None:
        return broken
    if stats.n < 2:
        return Verdict("not judged", [ONE_IMAGE])
    parts = stats.parts
    standard_prior = standard_prior and len(parts) == 1 and parts[0].standard
    if len(parts) == 1 and stats.sigma2_D is None and parts[0].level.kind == "point":
        return _verdict_of_code(stats, names, model)
    if len(parts) != 1 or parts[0].level.kind != "gaussian" or stats.mse is not None or stats.kl is None:
        return _without_standard(stats, names)
    known, active, kl = levers(hyper or {}, model), stats.active or 0, stats.kl
    unused = [name for d, name in enumerate(names) if not stats.active_D[d]]
    recon = "" if stats.recon is None else f", reconstruction {stats.recon:.4g}"
    sentences = [
        f"{active} of {len(names)} latents are active ({stats.active_rule}{_worth(stats)}); "
        f"{'KL' if stats.kl_error is None else 'rate'} {kl:.3g} nats in all{recon}."
    ]
    if (worse := _worse_than_blank(stats, known, step)) is not None:
        return Verdict(worse.name, [*sentences, *worse.sentences])
    if active == 0 or kl < COLLAPSED_KL:
        if kl < COLLAPSED_KL:
            sentences.append("z tells the decoder next to nothing: all reconstructions are nearly the same image.")
        else:
            sentences.append("q(z|x) is nearly the same for every image: the KL is paid and tells the decoder nothing.")
        return Verdict("collapsed", [*sentences, f"First: {remedy(known, step)}"])
    few = stats.n < FEW_TO_COUNT
    partly = bool(unused) and not few and (active < factors if factors else 2 * active <= len(names))
    if partly and factors:
        sentences.append(f"The data vary in {factors} factors, more than {active} latents can hold apart.")
    elif partly:
        sentences.append(
            f"{len(unused)} unused latents are no fault if the data need no more than {active}: train once with "
            f"latent_dim {active}, and if the reconstruction stays as good, nothing is lost."
        )
    elif unused and not few:
        beta = known.beta or 0.0
        more = f", the more so with beta = {beta:g}" if beta > 1 else ""
        need = f"the {factors} factors" if factors and len(names) > factors else "the data"
        sentences.append(f"Unused: {_some(unused)}. Normal where latent_dim is larger than {need} need{more}.")
    # The law is that of an objective in which the KL alone weighs on q(z|x).
    lawful = model is None or model.kl_weight(hyper or {}) is not None
    restless = _law(stats, names) if standard_prior and lawful and not known.fitted else []
    if partly:
        fix = f"{'Then' if restless else 'First'}, to use more latents: {remedy(known, step)}"
        return Verdict("partly collapsed", [*sentences, *restless, fix])
    evidence = evidence or Evidence()
    found = _over(stats, known, step, evidence) or _far(stats, known, standard_prior, evidence)
    if found is None:
        if stats.n < FEW_IMAGES:
            too_few = (
                f"{stats.n:,} images are too few to tell whether z holds too much or too little; it takes {FEW_IMAGES}"
            )
            return Verdict(
                "not judged", [*sentences, f"{too_few}: hold out more, or give it more of them (--split all, --limit)."]
            )
        return Verdict("undertrained" if restless else "healthy", [*sentences, *_known(evidence, stats.n), *restless])
    return Verdict(found.name, _one_first([*sentences, *restless, *found.sentences]))


def _worth(stats: Statistics) -> str:
    """How many latents hold a KL that is worth naming, where they are others than the active ones."""
    if stats.worth is None or stats.worth == stats.active:
        return ""
    return f", {stats.worth} with a KL above {WORTH:g} nats"


def _one_first(sentences: Sequence[str]) -> list[str]:
    """Advice in order: what is second is not called first as well, nor said again."""
    told, done = [], False
    for sentence in sentences:
        if done and sentence.startswith("First: "):
            sentence = sentence.removeprefix("First: train longer. ")
            sentence = sentence.replace("First: ", "Then: ", 1)
        done = done or sentence.startswith("First: ")
        told.append(sentence)
    return told


def _worse_than_blank(stats: Statistics, known: Levers, step: int | None) -> Verdict | None:
    """A verdict on a model to which one constant image would be preferred, if so: sound ones are better by far."""
    if stats.blank is None or stats.recon is None or stats.kl is None or stats.n < FEW_TO_COUNT:
        return None
    # What blew up on a few images has an error as large as itself: three of it would excuse anything.
    error = math.hypot(stats.blank_error or 0.0, min(stats.recon_error or 0.0, abs(stats.recon) / 12))
    margin = 3 * error + 0.02 * abs(stats.blank)
    if stats.recon > stats.blank + margin:
        finding = (
            f"One constant image, the mean, would do better than these reconstructions: {stats.blank:.4g} nats in "
            f"place of {stats.recon:.4g}."
        )
    elif stats.recon + stats.kl > stats.blank + margin:
        finding = (
            f"The KL of {stats.kl:.4g} nats costs more than the latents gain over one constant image, the mean: "
            f"{stats.blank:.4g} - {stats.recon:.4g} = {stats.blank - stats.recon:.4g} nats."
        )
        if known.weight is not None and known.weight < 0.5:
            return Verdict("under-regularised", [finding, f"First: {more_weight(known, Evidence())}"])
    else:
        return None
    if step is not None and step < EARLY and not known.fitted:
        return Verdict("undertrained", [finding, f"First: train longer than {step:,} steps."])
    advice = "an earlier checkpoint (`checkpoints/best`) if there is one; in training a smaller --set optim.lr=..."
    return Verdict("undertrained", [finding, f"First: {advice}"])


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


def _over(stats: Statistics, known: Levers, step: int | None, evidence: Evidence) -> Verdict | None:
    """Over-regularised, if so."""
    assert stats.kl is not None
    held, log_n = stats.kl if evidence.mi is None else evidence.mi, math.log(stats.n)
    early = step is not None and step < EARLY
    if stats.n < FEW_IMAGES or early or held >= 0.5 * log_n:
        return None
    if known.capacity is not None and abs(stats.kl - known.capacity) <= 0.5:
        cause = f"the capacity of {known.capacity:g} nats is used up"
    elif evidence.weight is not None and evidence.weight > 1:
        cause = f"the KL weighs {evidence.weight:.3g} times what it should against the reconstruction"
    elif evidence.weight is None and known.heavy:
        cause = "the KL weighs more than 1"
    else:
        return None
    about = "I(x; z)" if evidence.mi is not None else "I(x; z), at most the KL,"
    finding = (
        f"{about} is {held:.3g} nats, less than half of the {log_n:.3g} that tell {stats.n:,} images apart: z sorts "
        f"them into about {math.exp(held):,.0f} kinds, and {cause}."
    )
    return Verdict("over-regularised", [finding, f"First: {remedy(known, step, evidence)}"])


def _far(stats: Statistics, known: Levers, standard_prior: bool, evidence: Evidence) -> Verdict | None:
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
    weight = next((w for w in (evidence.weight, known.weight) if w is not None), 1.0)
    off_scale = moment_kl is not None and moment_kl > OFF_SCALE * latents
    if stats.kl > log_n and (weight < 0.5 or off_scale):
        finding = f"The rate, {stats.kl:.3g} nats, is more than the {log_n:.3g} that number all {stats.n:,} images" + (
            f", and the KL weighs {weight:.3g} of what it should." if weight < 0.5 else "."
        )
        return Verdict("under-regularised", [finding, far, f"First: {more_weight(known, evidence)}"])
    first = "First" if known.fitted else "First: train longer. Then"
    return Verdict(
        "prior mismatch",
        [
            f"{far[:-1]}, so what is decoded from the prior need not look like what was encoded.",
            f"{first}: {more_weight(known, evidence)}",
        ],
    )


def with_past(found: Verdict, past: Past | None, step: int, model: Model) -> Verdict:
    """The verdict and, where the ELBO of held-out images was better by far at an earlier step of the run while that of
    training images has risen since, that: what is said of a model at rest, or not, is then no longer the question.
    Of a checkpoint from before it fell, that longer training will not help.

    Not of a model whose objective changes on the way, by a schedule or in stages: its ELBO may fall because less of it
    is asked for.
    """
    comparable = len(model.stages) == 1 and not schedules.moving(model.config)
    if past is None or not comparable or found.name == "not finite" or found.sentences == [ONE_IMAGE]:
        return found
    if (fall := _fall(Past([(at, elbo) for at, elbo in past.held_out if at <= step], past.train, past.best))) is None:
        later = _fall(past)
        return found if later is None or step < later.at else _no_longer(found, later)
    kept = (
        f"an earlier checkpoint, `checkpoints/best` of step {past.best:,}. In training"
        if past.better(step, fall.now)
        else "train"
    )
    told = [
        f"Overfitted: the ELBO of held-out images was {fall.best:.5g} nats at step {fall.at:,} and is {fall.now:.5g} "
        f"at step {fall.last:,}, while that of training images has risen.",
        f"First: {kept} fewer steps (--steps {fall.at}), with more images or a smaller model.net.",
    ]
    if found.name in ("healthy", "undertrained", "not judged"):
        return Verdict("overfitted", [*(s for s in found.sentences if not s.startswith("First:")), *told])
    return Verdict(found.name, _one_first([*found.sentences, *told]))


class _Fall(NamedTuple):
    """The best held-out ELBO of a run, in nats, with its step, and the last, worse by far."""

    at: int
    best: float
    last: int
    now: float


def _fall(past: Past) -> _Fall | None:
    """None where the last is not worse by far, or where the ELBO of training images has not risen since the best."""
    if len(past.held_out) < 2:
        return None
    (last, now), (at, best) = past.held_out[-1], max(past.held_out, key=lambda pair: pair[1])
    then = [elbo for s, elbo in past.train if s <= at][-FEW_LINES:]
    since = [elbo for s, elbo in past.train if at < s <= last][-FEW_LINES:]
    risen = then and since and statistics.fmean(since) > statistics.fmean(then)
    return _Fall(at, best, last, now) if best - now > FALLEN_NATS + FALLEN * abs(best) and risen else None


def _no_longer(found: Verdict, later: _Fall) -> Verdict:
    """The verdict on a checkpoint after which the run overfitted: longer training, where that is advised, will not
    help."""
    if not any(LONGER in sentence for sentence in found.sentences):
        return found
    advice = [s.removeprefix(f"First: {LONGER}.").strip() for s in found.sentences if s.startswith("First:")]
    told = (
        f"First: more images or a smaller model.net. To {LONGER} will not help: the ELBO of held-out images was "
        f"{later.best:.5g} nats at step {later.at:,} of this run and {later.now:.5g} at step {later.last:,}."
    )
    kept = [s for s in found.sentences if not s.startswith("First:")]
    return Verdict(found.name, _one_first([*kept, told, *(s for s in advice if s and LONGER not in s)]))


def with_pixel_order(found: Verdict, order: Mapping[str, Any] | None) -> Verdict:
    """The verdict and, where the values of a factor have no order in the pixels (`pixel_order.record`), that too: it is
    in the data, and what is advised will not mend it."""
    if order is None or not order["without"]:
        return found
    return Verdict(found.name, [*found.sentences, order["sentence"][0].upper() + order["sentence"][1:] + "."])


def warn_while_training(
    kl_D: Sequence[float | None],
    step: int,
    steps: int | None = None,
    hyper: Mapping[str, float] | None = None,
    model: Model | None = None,
) -> str | None:
    """One sentence if the KL of every latent (nats; None where not finite) at `step` says that a run goes wrong.

    A collapse is called one after 1000 steps and a twentieth of all `steps`, as sound runs too start with a KL near 0;
    not while a capacity schedule asks for such a KL, nor of a model without likelihood, which need not have one. The
    threshold is that of `verdict`. With a model, latents are named and advice is about settings that it has.
    """
    known = levers(hyper or {}, model)
    names = [f"z{d}" for d in range(len(kl_D))] if model is None else model.latent_names()
    bad = [name for name, kl in zip(names, kl_D, strict=False) if kl is None or not math.isfinite(kl)]
    if bad:
        return f"not finite: the KL of {_some(bad)} at step {step:,}; a smaller optim.lr, or optim.grad_clip=1"
    total = sum(kl for kl in kl_D if kl is not None)
    early = step < max(EARLY, (steps or 0) // STEPS_SHARE)
    asked_for = known.capacity is not None and known.capacity < COLLAPSED_KL
    judged = model is None or model.has_likelihood
    if not kl_D or early or asked_for or not judged or total >= COLLAPSED_KL:
        return None
    return (
        f"collapsed so far: KL {total:.2g} nats in all {len(kl_D)} latents after {step:,} steps, z tells the decoder "
        f"next to nothing; try {remedy(known, step)}"
    )


def final_report(
    model: Model,
    batches: Iterable[Batch],
    hyper: Mapping[str, float],
    *,
    title: str = "",
    factors: int | None = None,
    step: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    draws: int = 1,
) -> tuple[Statistics, list[Table], list[str], Verdict]:
    """The statistics of a model over images, with the noise that `analyze` has; the tables of its latents, one a level;
    lines about the model and its levels; the verdict.

    `{images}` in `title` becomes the number of images. The model should be in evaluation mode. InputError if there are
    no images.
    """
    stats = latent_statistics(model, batches, hyper, on_batch, draws=draws)
    names = model.latent_names()
    shown = []
    for table in tables.level_tables(stats, names):
        heading = " - ".join(filter(None, [table.title, title.replace("{images}", f"{stats.n:,}")]))
        shown.append(table._replace(title=heading or None))
    said = verdict(stats, names, hyper, factors=factors, step=step, model=model)
    lines = [
        tables.totals_text(stats),
        *filter(None, [tables.nll_text(model)]),
        *tables.level_texts(stats),
    ]
    return stats, shown, lines, said


def discriminator_wins(record: Mapping[str, Any]) -> bool:
    """Whether, in an evaluation of an adversarial model, D knows every image: D(x) above 0.98, D(G) below 0.02."""
    real, made = record.get("D_real"), record.get("D_made", record.get("D_drawn"))
    return real is not None and made is not None and real > 0.98 and made < 0.02


def _not_finite(stats: Statistics, names: Sequence[str]) -> Verdict | None:
    bad, start = [], 0
    for part in stats.parts:
        vectors = [v for v in (part.mean_D, part.var_D, part.sigma2_D, part.kl_D) if v is not None]
        for d in range(len(part.mean_D)):
            if not all(math.isfinite(float(v[d])) for v in vectors):
                bad.append(names[start + d])
        start += len(part.mean_D)
    wholes = {
        "the reconstruction term": stats.recon,
        "the images made of the latents": stats.mse,
        **{f"the rate of {part.level.name}": part.sampled for part in stats.parts},
    }
    where = (
        [f"latents {_some(bad)}"] if bad else [k for k, v in wholes.items() if v is not None and not math.isfinite(v)]
    )
    if not where:
        return None
    first = "First: an earlier checkpoint; in training a smaller --set optim.lr, or --set optim.grad_clip=1."
    return Verdict("not finite", [f"NaN or infinity in {where[0]} over {stats.n:,} images.", first])


def _without_standard(stats: Statistics, names: Sequence[str]) -> Verdict:
    """What can be seen of models for which no more is defined: whether anything depends on the image."""
    parts = stats.parts
    if not parts:
        return Verdict("not judged", ["Nothing infers latents from an image."])
    sentences, start, dead = [], 0, 0
    for part in parts:
        d = len(part.mean_D)
        here, start = [names[start + i] for i in range(d)], start + d
        dead += not bool(part.active_D.any())
        sentences.append(_about_level(part, here, alone=len(parts) == 1))
    if dead == len(parts):
        return Verdict("collapsed", sentences if len(parts) == 1 else [*sentences, "No latent depends on the image."])
    return Verdict("not judged", [*sentences, f"Not judged: {_why_not(stats)}"])


def _about_level(part: LevelStatistics, names: Sequence[str], alone: bool) -> str:
    level, count = part.level, int(part.active_D.sum())
    whose = "" if alone else f"{level.name}: "
    rate = tables.rate_text(part)
    costs = f"; {rate}" if rate else ""
    if level.kind == "codes":
        return f"{whose}{count} of {len(names)} positions have more than one code over the images{costs}."
    if level.kind == "labels":
        return f"{whose}the probabilities of {count} of {len(names)} labels vary with the image{costs}."
    unused = [name for name, active in zip(names, part.active_D.tolist(), strict=True) if not active]
    without = f"; not {_some(unused)}" if unused and count else ""
    return f"{whose}{count} of {len(names)} latents depend on the image{without}{costs}."


def _why_not(stats: Statistics) -> str:
    if stats.mse is not None:
        return "without a likelihood there is no reconstruction in nats for the KL to be weighed against."
    if len(stats.parts) > 1:
        return "how many nats each of several levels should hold, none of the rules for one level can tell."
    if stats.kl is None:
        return "what the latents cost in nats is not known."
    if stats.parts[0].level.kind == "codes":
        return "what codes cost is fixed by the codebook, and their indices have neither mean nor variance."
    return "labels have no scale."


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


def _verdict_of_code(stats: Statistics, names: Sequence[str], model: Model | None) -> Verdict:
    """A code without distribution: all that can be seen is whether it varies."""
    about = "A deterministic code has no KL: only its variance over the images can be judged."
    if float(stats.var_D.max()) <= 1e-12 * float(stats.mean_D.square().max()):
        return Verdict("collapsed", [about, "No latent varies: every image has the same code.", FRESH_START])
    unused = [name for d, name in enumerate(names) if not stats.active_D[d]]
    if unused:
        finding = f"{len(unused)} of {len(names)} latents vary less than a hundredth as much as the largest"
        smaller = ": a smaller latent_dim would do" if model is None or hasattr(model.config, "latent_dim") else ""
        return Verdict("partly collapsed", [about, f"{finding} ({_some(unused)}){smaller}."])
    return Verdict("healthy", [about, f"All {len(names)} latents vary."])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
