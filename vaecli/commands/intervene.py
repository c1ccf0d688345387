"""`vae intervene`: images with a level set to another value, what is above it kept, what is below following.

Shapes: B images, K factors that are read, C H W image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaecli import device as devices
from vaecli import label_expressions
from vaecli import output as streams
from vaecli.analysis import intervention, labelled, readers, traversal
from vaecli.analysis.intervention import Change
from vaecli.analysis.readers import Reader
from vaecli.batch import at_once
from vaecli.commands import _artifact, _inputs, _labelled
from vaecli.errors import ConfigError
from vaecli.models.base import Level, Model, Values
from vaecli.registry import nearest
from vaecli.report import figures

MOST = 1000  # changes at once


@dataclass(frozen=True)
class Setting:
    """One `--set`: a label or a latent, and the values that it takes, each with what it is called."""

    name: str
    level: str
    column: int  # of a label among the model's, of a latent within its level
    factor: str | None  # of a label
    values: Sequence[float]
    texts: Sequence[str]


def run(
    checkpoint: str,
    sets: Sequence[str],
    keep: Sequence[str],
    images: Sequence[str],
    n: int | None,
    output: str | None,
    seed: int,
    device: str,
    force: bool,
    json: bool,
    data_at: str | None = None,
) -> None:
    """Every combination of the values set, for images given or `n` generated ones, whose noise stays what it was.

    `sets` are LEVEL:FACTOR=VALUES of labels (`label_expressions`), and LATENT=VALUE, a|b or LOW:HIGH:COUNT of numbers,
    in standard deviations of the prior given what is above. stdout has a table, a row a combination: in which share of
    images each factor is then read otherwise; with `output` the images are drawn. ConfigError for levels, latents,
    labels and values that there are not, or a level both set and kept; InputError for an image of another size.
    """
    if images and n is not None:
        raise ConfigError("-n counts generated images, but --image gives them", "leave out one of them")
    if output is not None:
        _artifact.check(output, "", force, json, endings=(".png",))
    loaded = _artifact.load(checkpoint, devices.pick(device), data_at)
    model = loaded.model
    settings = [setting(text, model) for text in sets]
    if not settings:
        raise ConfigError("nothing is set", f"--set {_example(model)}")
    twice = [s.name for i, s in enumerate(settings) if s.name in [other.name for other in settings[:i]]]
    if twice:
        raise ConfigError(f"--set: {twice[0]} is set twice", "a|b gives it several values")
    kept = [level_of(name, model, "--keep").name for name in keep]
    if both := [s.level for s in settings if s.level in kept]:
        raise ConfigError(f"{both[0]} cannot be both set and kept", "leave out --keep or --set of it")
    if (count := math.prod(len(s.values) for s in settings)) > MOST:
        raise ConfigError(f"--set stands for {count:,} combinations; at most {MOST:,} are made at once")
    with torch.inference_mode():
        if images:
            x_BCHW, names = _inputs.images(loaded, images, fit=False)
            old = intervention.of_image(model, x_BCHW)
        else:
            x_BCHW, names = None, []
            old = _generated(model, n or 8, seed)
        rows = len(next(iter(old.values())))
        if output is not None:
            figures.check_size(rows, count + 1 + bool(images), *loaded.info.shape[1:])
        reader = _labelled.of(loaded, train=not images)
        changed = [Outcome(combination, _apply(model, old, combination, kept)) for combination in combine(settings)]
        drawn = [_images(model, values) for values in (old, *(one.values for one in changed))]
        read = [_read(model, reader, x) for x in drawn]
    factors = _factors(model, reader)
    records = [
        one.record(factors, read[0], after, reader, loaded.info) for one, after in zip(changed, read[1:], strict=True)
    ]
    path = None
    if output is not None:
        title = _artifact.title(loaded.config.model.name, loaded.info.name, f"step {loaded.step:,}")
        footer = f"kept: {', '.join(kept)}; what is below what is set follows" if kept else "what is below follows"
        picture = sheet(x_BCHW, drawn, [one.text for one in changed], names, title, f"{footer}, its noise kept")
        path = _artifact.write(output, "", picture, force)
    about = {"checkpoint": str(loaded.path), "step": loaded.step, "seed": seed, "keep": kept, "n": rows}
    if json:
        whole = {**about, "images": names or None, "path": path, "reader": reader and reader.record()}
        streams.result_json({"schema": 1, **whole, "interventions": records})
        return
    by = "by an oracle" if reader is not None else "by the model's own q(y|x)"
    streams.notice(f"share of {rows} images in which a factor is read otherwise than before, {by}")
    cells = [[one.text, *(f"{r['changed'][f]:.3f}" for f in factors)] for one, r in zip(changed, records, strict=True)]
    streams.table(["set", *factors], cells, to_stderr=path == "-")


# --------------------------------------------------------------------------------------------------- what is asked for


def level_of(name: str, model: Model, option: str) -> Level:
    """ConfigError with the names that there are."""
    found = [level for level in model.levels if level.name == name]
    if not found:
        names = [level.name for level in model.levels]
        raise ConfigError(f"{option}: no level is called {name[:80]!r}{nearest(name, names)}")
    return found[0]


def setting(text: str, model: Model) -> Setting:
    """ConfigError naming what is wrong and what there is."""
    left, equals, values = (part.strip() for part in text.partition("="))
    name, colon, factor = (part.strip() for part in left.partition(":"))
    if not equals or not left or not values:
        raise ConfigError(f"--set {text[:80]}: write LEVEL:FACTOR=VALUE or LATENT=NUMBER", f"--set {_example(model)}")
    if colon:
        level = level_of(name, model, "--set")
        blocks = [block for block in labelled.blocks(model) if block.level == level.name]
        if not blocks:
            raise ConfigError(f"--set {text[:80]}: {name} is no level of labels", f"--set {_example(model)}")
        factors = [block.factor for block in blocks]
        (factor, positions), *_ = label_expressions.wanted([f"{factor}={values}"], model.info, factors, "--set").items()
        all_names = label_expressions.names_of(model.info, factor)
        column = [block.factor for block in labelled.blocks(model)].index(factor)
        return Setting(left, level.name, column, factor, positions, [f"{factor} {all_names[p]}" for p in positions])
    for mover in traversal.movers(model, model.levels):
        if mover.name == name and mover.level.kind == "gaussian":
            numbers = _numbers(values, text)
            texts = [f"{name} {number + 0.0:g}" for number in numbers]
            return Setting(name, mover.level.name, mover.column, None, numbers, texts)
    level_of(name.partition(".")[0] if len(model.levels) > 1 else name.rstrip("0123456789"), model, "--set")
    latents = [m.name for m in traversal.movers(model, model.levels) if m.level.kind == "gaussian"]
    if not latents:
        raise ConfigError(
            f"--set {name[:80]}: no latent of {model.config.name} has a prior, in whose deviations it would be set",
            f"--set {_example(model)}" if labelled.blocks(model) else "vae traverse moves what there is",
        )
    there = f"{latents[0]} to {latents[-1]}"
    raise ConfigError(f"--set {name[:80]}: no such latent; there are {there}", f"--set {_example(model)}")


def _numbers(text: str, whole: str) -> list[float]:
    """`1.5`, `a|b` or `low:high:count`."""
    found: list[float] = []
    try:
        for word in text.split("|"):
            ends = word.split(":")
            if len(ends) == 3:
                found += np.linspace(float(ends[0]), float(ends[1]), max(1, int(ends[2]))).tolist()
            elif len(ends) == 1:
                found.append(float(word))
            else:
                raise ValueError
    except (ValueError, OverflowError, MemoryError):
        found = []
    if not found or len(found) > MOST or not all(map(math.isfinite, found)):
        raise ConfigError(f"--set {whole[:80]}: write a number, a|b, or LOW:HIGH:COUNT as in -3:3:7")
    return found


def _example(model: Model) -> str:
    """What could be set."""
    for block in labelled.blocks(model):
        return f"{block.level}:{block.factor}={label_expressions.names_of(model.info, block.factor)[0]}"
    numbers = [m.name for m in traversal.movers(model, model.levels) if m.level.kind == "gaussian"]
    return f"{numbers[0] if numbers else 'LATENT'}=-3:3:7"


# ----------------------------------------------------------------------------------------------------- what comes of it


Combination = tuple[tuple[Setting, int], ...]  # each setting with the place of its value


def combine(settings: Sequence[Setting]) -> list[Combination]:
    """Every combination of values, those of the last setting changing fastest."""
    places = product(*(range(len(s.values)) for s in settings))
    return [tuple(zip(settings, chosen, strict=True)) for chosen in places]


@dataclass(frozen=True)
class Outcome:
    """The images' values after a combination was set."""

    combination: Combination
    values: Values

    @property
    def text(self) -> str:
        return ", ".join(s.texts[i] for s, i in self.combination)

    def record(
        self, factors: Sequence[str], before_BK: Tensor, after_BK: Tensor, reader: Reader | None, info: Any
    ) -> dict[str, Any]:
        """Which factors are read otherwise than before, and how often labels that were set are read so."""
        moved_K = (before_BK != after_BK).double().mean(dim=0).tolist()
        as_set = {}
        for s, i in self.combination:
            if s.factor is not None and s.factor in factors:
                wanted_B1 = torch.full((len(after_BK), 1), int(s.values[i]))
                k = list(factors).index(s.factor)
                same = [readers.canonical(reader, t, [s.factor]) for t in (after_BK[:, k : k + 1], wanted_B1)]
                as_set[s.factor] = float((same[0] == same[1]).double().mean())
        named = {s.name: s.texts[i].partition(" ")[2] if s.factor else s.values[i] for s, i in self.combination}
        read = [label_expressions.text_of(row, info, factors) for row in after_BK.tolist()]
        changed = dict(zip(factors, moved_K, strict=True))
        return {"set": named, "changed": changed, "read_as_set": as_set, "read": read}


def _apply(model: Model, old: Values, combination: Combination, keep: Sequence[str]) -> Values:
    labels = {s.column: int(s.values[i]) for s, i in combination if s.factor is not None}
    numbers = {(s.level, s.column): s.values[i] for s, i in combination if s.factor is None}
    return intervention.apply(model, old, Change(labels, numbers, keep))


def _generated(model: Model, n: int, seed: int) -> Values:
    """Of labels drawn where there are labels, so that what follows from labels alone has noise of its own."""
    blocks = labelled.blocks(model)
    if blocks:
        return intervention.generated(model, torch.full((n, len(blocks)), -1), seed, "intervene")
    devices.seed(seed, "intervene")
    return model.draw(n)


def _images(model: Model, values: Values) -> Tensor:
    size, n = at_once(model.info.shape), len(next(iter(values.values())))
    parts = [
        model.image({name: v[start : start + size] for name, v in values.items()}).float().cpu()
        for start in range(0, n, size)
    ]
    return torch.cat(parts)


def _factors(model: Model, reader: Reader | None) -> list[str]:
    return [block.factor for block in labelled.blocks(model)] if reader is None else list(reader.factors)


def _read(model: Model, reader: Reader | None, x_BCHW: Tensor) -> Tensor:
    """By the reader, else by the model; of a model without labels nothing."""
    if reader is not None:
        return reader.predict(x_BCHW).cpu()
    if not labelled.blocks(model):
        return torch.zeros(len(x_BCHW), 0, dtype=torch.int64)
    return labelled.read(model, x_BCHW).cpu()


def sheet(
    x_BCHW: Tensor | None, drawn: Sequence[Tensor], texts: Sequence[str], names: Sequence[str], title: str, footer: str
) -> bytes:
    """A row an image: as given, as the model makes it, and after each change."""
    columns = [*([] if x_BCHW is None else [x_BCHW.cpu()]), *drawn]
    headings = [*([] if x_BCHW is None else ["image"]), "as it is", *texts]
    rows = []
    for b in range(len(drawn[0])):
        images_NCHW = torch.stack([column[b] for column in columns]).numpy()
        rows.append(figures.Row(images_NCHW, streams.safe(names[b]) if names else ""))
    return figures.png(figures.sheet(rows, headings, title, footer))
