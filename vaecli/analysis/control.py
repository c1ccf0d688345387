"""How far labels control what a model makes: asked for and read back, kept and changed, above and below.

Factors are read by a `readers.Reader`, which knows nothing of the model. Shares are of images; an error is a standard
error of a share. Each measure seeds torch's global generator itself, so that it does not depend on those before it.

Shapes: B images, K factors of the data, L labels that can be asked for, S steps of a traversal, N held-out images.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import aggregate, draws, intervention, labelled, metrics, probes, readers
from vaecli.analysis import codes as code_files
from vaecli.analysis.labelled import Sampler
from vaecli.analysis.readers import Reader
from vaecli.analysis.transitivity import transitivity
from vaecli.data.base import Dataset, SplitView
from vaecli.errors import ConfigError
from vaecli.models.base import Level, Model, Values
from vaecli.objectives import distributions
from vaecli.training.checkpoint import Loaded

IMAGES = 500  # that are made for each factor or level
HELD_OUT = 5_000  # images of the split that posterior and prior are compared over
BATCH = 250
STEPS, RANGE = 11, 3.0  # of a prior traversal, in standard deviations of the prior
LATENTS, CENTRES = 5, 6  # that it goes through: those of largest deviation, around so many combinations of labels
METRICS = ("mig", "dci", "sap")
HEADERS = ("measure", "of", "value")

Record = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model with labels, what draws its images of given labels, and who reads them.

    `factors` are those that can be asked for, `columns` their places among the data's.
    """

    sampler: Sampler
    reader: Reader
    dataset: Dataset
    seed: int = 0
    images: int = IMAGES

    @property
    def model(self) -> Model:
        return self.sampler.model

    @property
    def factors(self) -> tuple[str, ...]:
        return self.sampler.factors

    @property
    def columns(self) -> list[int]:
        return [self.dataset.info.factor_names.index(factor) for factor in self.factors]

    @property
    def sizes(self) -> list[int]:
        return [self.dataset.info.factor_sizes[k] for k in self.columns]

    def read(self, values: Values) -> Tensor:
        """The factors of the images of these values, int64 (B, K), on the CPU."""
        with torch.inference_mode():
            n = len(next(iter(values.values())))
            parts = []
            for start in range(0, n, BATCH):
                x_BCHW = self.model.image({name: value[start : start + BATCH] for name, value in values.items()})
                parts.append(self.reader.predict(x_BCHW.float()).cpu())
        return torch.cat(parts)

    def draw(self, labels_BL: Tensor, *key: int | str) -> Values:
        """Images of these labels; the noise is a function of the key."""
        devices.seed(self.seed, *key)
        with torch.inference_mode():
            return self.sampler.draw(labels_BL)

    def right(self, read_BK: Tensor, labels_BL: Tensor) -> Tensor:
        """Whether each label was read that was asked for, bool (B, L)."""
        read_BL = read_BK[:, self.columns]
        return self.alike(read_BL) == self.alike(labels_BL.cpu())

    def alike(self, labels_BL: Tensor) -> Tensor:
        """Labels with one of each that no image tells apart."""
        return readers.canonical(self.reader, labels_BL, self.factors)


def share(hits_B: Tensor) -> Record:
    """Of all, with its standard error."""
    p, n = float(hits_B.double().mean()), len(hits_B)
    return {"share": p, "error": math.sqrt(p * (1 - p) / n), "images": n}


# ------------------------------------------------------------------------------------------------- asked and read back


def control_accuracy(subject: Subject) -> list[Record]:
    """Each factor asked for by itself, all its values equally often, the others drawn: how often the reader reads what
    was asked for; `own`, how often the model's own q(y|x) does; `chance`, how often saying one value always would be
    right."""
    found = []
    for k, (factor, size) in enumerate(zip(subject.factors, subject.sizes, strict=True)):
        n = size * max(1, round(subject.images / size))
        labels_BL = torch.full((n, len(subject.factors)), -1, dtype=torch.int64)
        labels_BL[:, k] = torch.arange(n) % size
        values = subject.draw(labels_BL, "control accuracy", factor)
        hits_B = subject.right(subject.read(values), labels_BL)[:, k]
        asked_B = subject.alike(labels_BL)[:, k]
        own_BL = _read_by_itself(subject, values)
        own = None if own_BL is None else float((subject.alike(own_BL)[:, k] == asked_B).double().mean())
        found.append({"factor": factor, **share(hits_B), "chance": _commonest(asked_B[:, None]), "own": own})
    return found


def combination_accuracy(subject: Subject) -> dict[str, Record] | None:
    """All labels asked for at once: combinations that images of training have (`seen`), and those that `data.exclude`
    kept from them (`excluded`, where the model has labels of all the factors that make them). `all` is the share of
    images with every label as asked for. None for a single label."""
    found: dict[str, Record] = {}
    labels_NK, splits = subject.dataset.labels, subject.dataset.splits
    assert labels_NK is not None
    for name, split in (("seen", "train"), ("excluded", "excluded")):
        if split not in splits or (name == "seen" and len(subject.factors) < 2):
            continue
        rows_NL = labels_NK[splits[split].to(labels_NK.device)].cpu()[:, subject.columns]
        rows_NL = rows_NL[(rows_NL >= 0).all(dim=1)]
        if name == "excluded" and not _never_seen(subject, rows_NL):
            continue
        place = np.random.default_rng(devices.derive(subject.seed, "combinations", name))
        labels_BL = rows_NL[torch.from_numpy(place.choice(len(rows_NL), subject.images))]
        hits_BL = subject.right(subject.read(subject.draw(labels_BL, "combination accuracy", name)), labels_BL)
        by_factor = {factor: share(hits_B) for factor, hits_B in zip(subject.factors, hits_BL.T, strict=True)}
        chance = math.prod(
            1 / len(torch.unique(subject.alike(_column(subject, k))[:, k])) for k in range(len(subject.sizes))
        )
        found[name] = {"all": share(hits_BL.all(dim=1)), "factors": by_factor, "chance": chance}
    return found or None


def _never_seen(subject: Subject, rows_NL: Tensor) -> bool:
    """Whether no image of training has the labels of any of these rows."""
    labels_NK = subject.dataset.labels
    assert labels_NK is not None
    seen_NL = labels_NK[subject.dataset.splits["train"].to(labels_NK.device)].cpu()[:, subject.columns]
    seen = {tuple(row) for row in torch.unique(seen_NL, dim=0).tolist()}
    return len(rows_NL) > 0 and not any(tuple(row) in seen for row in torch.unique(rows_NL, dim=0).tolist())


def _column(subject: Subject, k: int) -> Tensor:
    """Every value of one label, the others 0."""
    labels_VL = torch.zeros(subject.sizes[k], len(subject.sizes), dtype=torch.int64)
    labels_VL[:, k] = torch.arange(subject.sizes[k])
    return labels_VL


def _read_by_itself(subject: Subject, values: Values) -> Tensor | None:
    """The labels that the model's own q(y|x) reads in the images of these values, (B, L)."""
    if not labelled.blocks(subject.model):
        return None
    n, parts = len(next(iter(values.values()))), []
    with torch.inference_mode():
        for start in range(0, n, BATCH):
            x_BCHW = subject.model.image({name: value[start : start + BATCH] for name, value in values.items()})
            parts.append(labelled.read(subject.model, x_BCHW).cpu())
    return torch.cat(parts)


def _commonest(rows_BL: Tensor) -> float:
    """The share of the row that is there most often."""
    return int(torch.unique(rows_BL, dim=0, return_counts=True)[1].max()) / len(rows_BL)


# ---------------------------------------------------------------------------------------------------- kept and changed


def intervention_matrix(subject: Subject) -> list[Record]:
    """What changes in images when a level gets another value, their noise being the same: a record a label (another
    value of it, at random) and a level of numbers (another draw of it given what is above), with the share of images
    in which the reader then reads another value, by factor of the data."""
    model, seed, factors = subject.model, subject.seed, subject.reader.factors
    if not labelled.blocks(model):
        return []
    rng = np.random.default_rng(devices.derive(seed, "interventions"))
    columns = [torch.from_numpy(rng.integers(0, size, subject.images)) for size in subject.sizes]
    labels_BL, key = torch.stack(columns, dim=1), (seed, "intervention")
    with torch.inference_mode():
        base = intervention.generated(model, labels_BL, *key)
        before_BK = subject.read(base)
        found: list[Record] = []
        for k, block in enumerate(labelled.blocks(model)):
            other_BL = labels_BL.clone()
            other_BL[:, k] = _another(subject, k, labels_BL, rng)
            after_BK = subject.read(intervention.generated(model, other_BL, *key))
            found.append({"level": block.level, "set": block.factor, "changes": _changes(before_BK, after_BK, factors)})
        for level in model.levels:
            if level.kind == "gaussian":
                after_BK = subject.read(intervention.redrawn(model, base, level.name, *key, level.name))
                found.append({"level": level.name, "set": None, "changes": _changes(before_BK, after_BK, factors)})
    return found


def _another(subject: Subject, k: int, labels_BL: Tensor, rng: np.random.Generator) -> Tensor:
    """Another value of one label for each row, of those that an image tells from its own."""
    alike_V = subject.alike(_column(subject, k))[:, k]
    now_B = alike_V[labels_BL[:, k]]
    weight_BV = (alike_V[None] != now_B[:, None]).double().numpy()
    share_BV = weight_BV.cumsum(axis=1) / weight_BV.sum(axis=1, keepdims=True).clip(min=1)
    return torch.from_numpy((rng.random((len(now_B), 1)) >= share_BV).sum(axis=1).clip(max=len(alike_V) - 1))


def _changes(before_BK: Tensor, after_BK: Tensor, factors: Sequence[str]) -> dict[str, float]:
    moved_K = (before_BK != after_BK).double().mean(dim=0).tolist()
    return dict(zip(factors, moved_K, strict=True))


def flip_rates(matrix: Sequence[Record], factors: Sequence[str]) -> dict[str, float]:
    """By level, how often a label changes with it, mean over the labels: at the level of labels that which was set."""
    rates: dict[str, list[float]] = {}
    for record in matrix:
        changes = record["changes"]
        flips = [changes[record["set"]]] if record["set"] else [changes[factor] for factor in factors]
        rates.setdefault(record["level"], []).extend(flips)
    return {level: float(np.mean(values)) for level, values in rates.items()}


# ------------------------------------------------------------------------------------------------ posterior and prior


def prior_gap(subject: Subject, view: SplitView) -> list[Record]:
    """How far what is inferred lies from what is drawn for the same labels, a record a level of numbers that labels
    control: `kl`, E KL(q(z|x) || p(z|u)) in nats with u from the true labels; `kl_standard`, to N(0, I); and how well a
    classifier tells z ~ q(z|x) from z ~ p(z|u), as `auc` with its error (1/2: not at all)."""
    model, levels = subject.model, [level for level in labelled.below_labels(subject.model) if level.inferred]
    sums = {level.name: [0.0, 0.0] for level in levels}
    inferred: dict[str, list[Tensor]] = {level.name: [] for level in levels}
    drawn: dict[str, list[Tensor]] = {level.name: [] for level in levels}
    n, exact = 0, {level.name: True for level in levels}
    with torch.inference_mode():
        for i, (x_BCHW, labels_BL) in enumerate(_known(subject, view)):
            devices.seed(subject.seed, "prior gap", i)
            given = model.condition(labels_BL.to(model.device)) if labelled.blocks(model) else {}
            found = model.infer(x_BCHW, given, sample=True)
            devices.seed(subject.seed, "prior gap", i, "prior")
            prior = subject.sampler.draw(labels_BL)
            n += len(x_BCHW)
            for level in levels:
                value, q = found.values[level.name], found.posteriors[level.name]
                inferred[level.name].append(value.flatten(1).cpu().double())
                drawn[level.name].append(prior[level.name].flatten(1).cpu().double())
                if given:
                    p = model.p(level.name, model.complete(found.values), len(value))
                    sums[level.name][0] += _summed(distributions.rate(q, p, value))
                standard = distributions.Standard((len(value), *level.shape), model.device)
                sums[level.name][1] += _summed(distributions.rate(q, standard, value))
                exact[level.name] = distributions.exact_kl(q, standard)
    records = []
    for level in levels if n else []:
        q_ND, p_ND = (torch.cat(parts[level.name]).numpy() for parts in (inferred, drawn))
        # The classifier trains on the first half of these, and splits may be in order.
        p_ND = np.random.default_rng(devices.derive(subject.seed, "prior gap")).permutation(p_ND)
        separation = aggregate.classifier(q_ND, None, p_ND, devices.derive(subject.seed, "prior gap", level.name))
        kl, kl_standard = (total / n for total in sums[level.name])
        known = bool(labelled.blocks(model))
        record: Record = {"level": level.name, "kl": kl if known else None, "kl_standard": kl_standard, "images": n}
        records.append({**record, "auc": separation.auc, "auc_error": separation.error})
    return records


def _summed(rate: Tensor | None) -> float:
    return math.nan if rate is None else float(rate.double().sum())


def _known(subject: Subject, view: SplitView) -> list[tuple[Tensor, Tensor]]:
    """Images on the model's device with their true labels (B, L), of those whose labels are all known."""
    labels_NK = view.dataset.labels
    assert labels_NK is not None
    index_N = view.sample(HELD_OUT).indices.to(labels_NK.device)
    rows_NL = labels_NK[index_N][:, subject.columns]
    index_N = index_N[(rows_NL >= 0).all(dim=1)]
    found = []
    for index_B in torch.split(index_N, BATCH):
        x_BCHW = view.dataset.images.gather(index_B).to(subject.model.device)
        found.append((x_BCHW, labels_NK[index_B][:, subject.columns].cpu()))
    return found


def label_accuracy(subject: Subject, view: SplitView) -> list[Record]:
    """By label, over images of a split: how often q(y|x), at the modes of the levels it is inferred from, says the true
    one, and how often p(y|u) does with u from it; that is None where labels stand at the top. And what the labels share
    along the way, in nats: `transitivity` of (the label of z ~ q(z|x), the label of u ~ q(u|y), the true label)."""
    model = subject.model
    if not labelled.blocks(model):
        return []
    above = any(level.kind != "labels" for level in model.levels[:1])
    read, guessed, decoded, truth = [], [], [], []
    with torch.inference_mode():
        for i, (x_BCHW, labels_BL) in enumerate(_known(subject, view)):
            devices.seed(subject.seed, "label accuracy", i)
            read.append(labelled.read(model, x_BCHW).cpu())
            posteriors = model.infer(x_BCHW, sample=True).posteriors
            names = {block.level for block in labelled.blocks(model)}
            modes = {name: distributions.mode(posteriors[name]) for name in names}
            guessed.append(labelled.labels_of(model, modes).cpu())
            given = model.condition(labels_BL.to(model.device))
            modes = {name: distributions.mode(model.p(name, given, len(x_BCHW))) for name in names}
            decoded.append(labelled.labels_of(model, modes).cpu())
            truth.append(labels_BL)
    records = []
    for k, factor in enumerate(subject.factors if truth else ()):
        a, b, y, own = (torch.cat(parts)[:, k] for parts in (guessed, decoded, truth, read))
        record: Record = {"factor": factor, "q": share(own == y), "p": share(b == y) if above else None}
        shared = transitivity(a, b, y) if above else None
        of_counts = None if shared is None else {**asdict(shared), "bound": shared.bound, "slack": shared.slack}
        records.append({**record, "transitivity": of_counts})
    return records


# ------------------------------------------------------------------------------------------------- prior traversals


def prior_traversals(subject: Subject) -> list[Record]:
    """The latents of largest deviation of each level that labels control go through +- 3 standard deviations of their
    prior around its mean, for some combinations of labels, the levels below following at their modes.

    `smoothness` is the mean change of pixels from image to image divided by that from end to end: 1 / (S - 1) where the
    way is straight, more where it turns back or jumps; over latents that move anything. `kept` is the share of images
    in which a label is read as asked for, by factor.
    """
    if not labelled.blocks(subject.model):
        return []
    labels_CL = _centres(subject)
    records = []
    for level in labelled.below_labels(subject.model):
        ratios, hits = [], []
        for c, labels_L in enumerate(labels_CL):
            for column in deviating(subject, labels_L, level)[:LATENTS]:
                values = around(subject, labels_L, level, column, "prior traversal", c)
                with torch.inference_mode():
                    x_SP = subject.model.image(values).float().flatten(1).cpu()
                    read_SK = subject.reader.predict(subject.model.image(values).float()).cpu()
                step, whole = float((x_SP[1:] - x_SP[:-1]).abs().mean()), float((x_SP[-1] - x_SP[0]).abs().mean())
                ratios += [step / whole] if whole > 1e-6 else []
                hits.append(subject.right(read_SK, labels_L.expand(STEPS, -1)))
        kept_L = torch.cat(hits).double().mean(dim=0).tolist()
        kept = dict(zip(subject.factors, kept_L, strict=True))
        smoothness = float(np.mean(ratios)) if ratios else None
        straight, moving = 1 / (STEPS - 1), len(ratios) / len(hits)
        records.append(
            {"level": level.name, "smoothness": smoothness, "straight": straight, "moving": moving, "kept": kept}
        )
    return records


def _centres(subject: Subject) -> Tensor:
    """Combinations of labels, each label going through its values at a pace of its own, (C, L)."""
    rng = np.random.default_rng(devices.derive(subject.seed, "centres"))
    columns = [torch.from_numpy(np.resize(rng.permutation(size), CENTRES)) for size in subject.sizes]
    return torch.stack(columns, dim=1)


@torch.inference_mode()
def rest(subject: Subject, labels_L: Tensor, *key: int | str) -> Values:
    """One image of these labels, every level at the mode of its prior."""
    devices.seed(subject.seed, *key)
    return subject.model.complete(labelled.from_labels(subject.model, labels_L[None]))


@torch.inference_mode()
def deviating(subject: Subject, labels_L: Tensor, level: Level) -> list[int]:
    """The latents of a level by the standard deviation of their prior, the largest first."""
    middle = rest(subject, labels_L, "prior traversal")
    variance = distributions.moments(subject.model.p(level.name, middle, 1))[1]
    assert variance is not None
    order: list[int] = variance.flatten().argsort(descending=True, stable=True).tolist()
    return order


@torch.inference_mode()
def around(subject: Subject, labels_L: Tensor, level: Level, column: int, *key: int | str) -> Values:
    """All levels along a traversal of one latent, (S, ...)."""
    middle = rest(subject, labels_L, *key)
    steps = [
        intervention.follow(subject.model, middle, {}, intervention.Change({}, {(level.name, column): sd}))
        for sd in np.linspace(-RANGE, RANGE, STEPS).tolist()
    ]
    return {name: torch.cat([values[name] for values in steps]) for name in middle}


# ------------------------------------------------------------------------------------------------------------ together


@dataclass(frozen=True)
class Control:
    """All measures of a model; what it has not what it takes for is None or empty."""

    subject: Subject
    split: str
    accuracy: list[Record]
    combinations: dict[str, Record] | None
    matrix: list[Record]
    flips: dict[str, float]
    gap: list[Record]
    labels: list[Record]
    traversals: list[Record]
    probe: list[Record]
    disentanglement: list[metrics.Result]

    def record(self) -> Record:
        """For JSON."""
        return {
            "factors": list(self.subject.factors),
            "drawn_from": self.subject.sampler.text,
            "reader": self.subject.reader.record(),
            "split": self.split,
            "control_accuracy": self.accuracy,
            "combination_accuracy": self.combinations,
            "interventions": self.matrix,
            "label_flip_rate": self.flips,
            "prior_gap": self.gap,
            "label_accuracy": self.labels,
            "prior_traversals": self.traversals,
            "probes": self.probe,
            "disentanglement": [result.record() for result in self.disentanglement],
        }


def subject(loaded: Loaded, dataset: Dataset, seed: int = 0, density: str = "stored") -> Subject:
    """What the measures are of. NoLabels where nothing can be asked for, ConfigError without a reader."""
    sampler = labelled.sampler(draws.source(loaded, density))
    reader = readers.reader(dataset, loaded.model.device)
    if reader is None:
        raise ConfigError(f"{dataset.info.name}: nothing reads factors from images")
    return Subject(sampler, reader, dataset, seed)


def measure(loaded: Loaded, one: Subject, view: SplitView) -> Control:
    """All measures; those that need true labels over images of the split."""
    with streams.progress("control", 7) as advance:
        accuracy, combinations = control_accuracy(one), combination_accuracy(one)
        advance(1)
        matrix = intervention_matrix(one)
        advance(1)
        gap = prior_gap(one, view)
        advance(1)
        labels = label_accuracy(one, view)
        advance(1)
        traversals = prior_traversals(one)
        advance(1)
        codes = _codes(loaded, one, view)
        probe = [] if codes is None else _probes(one, codes, view)
        advance(1)
        results = [] if codes is None else metrics.evaluate(METRICS, codes, one.seed, lenient=True)
        advance(1)
    flips = flip_rates(matrix, one.factors)
    return Control(one, view.name, accuracy, combinations, matrix, flips, gap, labels, traversals, probe, results)


def _codes(loaded: Loaded, one: Subject, view: SplitView) -> code_files.Codes | None:
    """Means of the first level of numbers that labels control, z0."""
    levels = [level for level in labelled.below_labels(one.model) if level.inferred]
    if not levels:
        return None
    start = 0
    for level in one.model.inferred:
        if level.name == levels[0].name:
            break
        start += level.size
    found = code_files.encode(loaded, view.sample(HELD_OUT))
    return found.latents_only(list(range(start, start + levels[0].size)))


def _probes(one: Subject, codes: code_files.Codes, view: SplitView) -> list[Record]:
    """By factor, how often a linear classifier of the codes is right on others, and one with a hidden layer: a label
    that stands linearly in z0 leaves nothing to gain."""
    records = []
    for k in codes.varying:
        assert codes.factors_NK is not None
        name, z_ND, y_N = (
            codes.factor_names[k],
            torch.from_numpy(codes.mean_ND),
            torch.from_numpy(codes.factors_NK[:, k]),
        )
        linear, deep = (probes.classifier(z_ND, y_N, hidden, one.seed) for hidden in (0, 128))
        records.append({"factor": name, "linear": linear, "nonlinear": deep, "labelled": name in one.factors})
    return records


def rows(found: Control) -> list[tuple[str, str, str]]:
    """(measure, of what, value) for tables."""
    table: list[tuple[str, str, str]] = []
    for r in found.accuracy:
        own = "" if r["own"] is None else f", {r['own']:.1%} by q(y|x)"
        table.append(("control accuracy", r["factor"], f"{_percent(r)}{own}; chance {r['chance']:.1%}"))
    for name, r in (found.combinations or {}).items():
        parts = ", ".join(f"{factor} {part['share']:.1%}" for factor, part in r["factors"].items())
        table.append(
            (f"combinations {name}", "all labels", f"{_percent(r['all'])} ({parts}); chance {r['chance']:.2%}")
        )
    for r in found.matrix:
        what = f"{r['level']}:{r['set']}" if r["set"] else r["level"]
        table.append(("factors that change with", what, ", ".join(f"{f} {v:.1%}" for f, v in r["changes"].items())))
    for level, value in found.flips.items():
        table.append(("label flip rate", level, f"{value:.1%}"))
    for r in found.gap:
        kl = "" if r["kl"] is None else f"KL to p(z|labels) {r['kl']:.2f}, "
        text = f"{kl}to N(0, I) {r['kl_standard']:.2f} nats; AUC {r['auc']:.3f} +- {r['auc_error']:.3f}"
        table.append(("prior gap", r["level"], text))
    for r in found.labels:
        decoded = "" if r["p"] is None else f"; p(y|u) {r['p']['share']:.1%}"
        table.append(("label accuracy", r["factor"], f"q(y|x) {_percent(r['q'])}{decoded}"))
        if (t := r["transitivity"]) is not None:
            text = f"I(a;b) {t['a_b']:.3f} >= I(a;y) {t['a_y']:.3f} + I(y;b) {t['y_b']:.3f} - H(y) {t['y']:.3f} nats"
            table.append(("transitivity", r["factor"], text))
    for r in found.traversals:
        kept = ", ".join(f"{factor} {value:.1%}" for factor, value in r["kept"].items())
        smooth = "moves nothing" if r["smoothness"] is None else f"smoothness {r['smoothness']:.3f}"
        table.append(("prior traversal", r["level"], f"{smooth} (straight {r['straight']:.3f}); kept {kept}"))
    for r in found.probe:
        of = r["factor"] + ("" if r["labelled"] else " (no label)")
        table.append(("probe of z0", of, f"linear {r['linear']:.1%}, with a hidden layer {r['nonlinear']:.1%}"))
    for result in found.disentanglement:
        values = {} if result.score is None else result.score.values
        for name, value in values.items():
            named = result.name if len(values) == 1 else f"{result.name} {name}"
            table.append((named, "z0", f"{value:.3f}" if math.isfinite(value) else "not defined"))
        if not values:
            table.append((result.name, "z0", result.problem or ""))
    return table


def _percent(r: Record) -> str:
    return f"{r['share']:.1%} +- {r['error']:.1%}"
