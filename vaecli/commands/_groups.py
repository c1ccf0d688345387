"""What `vae compare` compares: runs, seeds of one setting as a group, and the statistics of a group."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vaecli import config as configs
from vaecli import models
from vaecli.analysis.codes import Array, Codes
from vaecli.batch import DataInfo
from vaecli.commands._labels import IDLE
from vaecli.config import RunConfig

WITHIN = 2.0  # standard errors of a difference below which no group is called the best


class Column(NamedTuple):
    """A number to compare: `better` is 1 where larger is better, -1 where smaller is, 0 where neither."""

    key: str
    heading: str
    digits: int
    better: int


@dataclass
class Run:
    """One checkpoint and what was measured of it; `values` by column, None where there is none."""

    given: str
    file: Path
    config: RunConfig
    info: DataInfo
    step: int
    name: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)  # of a z_diff, one of each classifier
    over: str = ""  # in words, the images it was measured over
    images: str = ""  # the same as a checksum: equal where the images are
    n: int = 0
    codes: Codes | None = None
    origin: dict[str, Any] | None = None  # of the weights that training started from
    per_image: dict[str, Array] = field(default_factory=dict)  # of columns that are means over images
    likelihood: str | None = None  # in words, with its settings; None where there is none


class Summary(NamedTuple):
    """Over the seeds of a group. `mean` is None unless every seed has the value, `sd` (ddof 1) with fewer than two.

    `error` is the standard error of a mean over images, None for other numbers.
    """

    mean: float | None
    sd: float | None
    error: float | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed; `settings` are the values in which groups differ."""

    runs: list[Run]
    settings: dict[str, Any]
    values: dict[str, Summary]

    @property
    def name(self) -> str:
        more = f" +{len(self.runs) - 1}" if len(self.runs) > 1 else ""
        return self.runs[0].name + more


def summarised(grouped: Sequence[list[Run]], columns: Sequence[Column]) -> list[Group]:
    first = grouped[0][0]
    differing = {key for members in grouped for key in configs.diff(first.config, members[0].config)}
    differing -= {"seed", *IDLE}
    groups = []
    for members in grouped:
        flat = dict(configs.flat(members[0].config.to_tree()))
        if not models.takes_steps(members[0].config.model):  # what stands there does nothing
            flat = {key: value for key, value in flat.items() if not key.startswith(("train.", "optim."))}
        settings = {key: flat.get(key) for key in sorted(differing)}
        if any((other[0].origin or {}).get("sha256") != (first.origin or {}).get("sha256") for other in grouped):
            origin = members[0].origin
            settings["init_from"] = origin and f"{origin['sha256'][:8]} at step {origin['step']:,}"
        if any(other[0].step != first.step for other in grouped):
            settings["step"] = members[0].step
        values = {
            c.key: summary([run.values.get(c.key) for run in members])._replace(error=_error(c.key, members))
            for c in columns
        }
        groups.append(Group(members, settings, values))
    if any(one is not other and one.settings == other.settings for one in groups for other in groups):
        for group in groups:  # the same settings, on images that have changed
            group.settings["data.sha256"] = str(group.runs[0].info.source.get("sha256"))[:8]
    return groups


def summary(values: Sequence[float | None]) -> Summary:
    """Mean and sample standard deviation; a value that is missing or not finite leaves nothing to average."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return Summary(None, None)
    return Summary(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def _per_image(key: str, runs: Sequence[Run]) -> Array | None:
    """What a column is the mean of, each image's mean over the runs, (N,); None where they have none of the kind, or
    are over several sets of images."""
    found = [run.per_image[key] for run in runs if key in run.per_image]
    if not found or len(found) < len(runs) or len({run.images for run in runs}) > 1:
        return None
    return np.asarray(np.mean(found, axis=0))


def _error(key: str, runs: Sequence[Run]) -> float | None:
    value_N = _per_image(key, runs)
    return None if value_N is None else _standard_error(value_N)


def _standard_error(value_N: Array) -> float | None:
    return float(value_N.std(ddof=1) / math.sqrt(len(value_N))) if len(value_N) > 1 else None


def best_of(column: Column, groups: Sequence[Group]) -> list[int]:
    """The group whose mean is best, with those that are equal to it; none where there is nothing to compare, or where
    another is within `WITHIN` standard errors of the difference."""
    means = {i: m for i, group in enumerate(groups) if (m := group.values[column.key].mean) is not None}
    if not column.better or len(means) < 2:
        return []
    top = max(column.better * mean for mean in means.values())
    best = [i for i, mean in means.items() if column.better * mean == top]
    others = [i for i in means if i not in best]
    close = [
        i
        for i in others
        if abs(means[best[0]] - means[i]) <= WITHIN * difference_error(column.key, groups[best[0]], groups[i])
    ]
    return [] if close else best


def difference_error(key: str, a: Group, b: Group) -> float:
    """The standard error of the difference of two groups' means, as far as it is known: over the seeds of each and,
    for means over images, over the same images in both; 0 where one seed each is all there is."""
    square = 0.0
    for group in (a, b):
        sd = group.values[key].sd
        square += 0.0 if sd is None else sd * sd / len(group.runs)
    a_N, b_N = _per_image(key, a.runs), _per_image(key, b.runs)
    if a_N is not None and b_N is not None and a.runs[0].images == b.runs[0].images:
        square += (_standard_error(a_N - b_N) or 0.0) ** 2
    return math.sqrt(square)
