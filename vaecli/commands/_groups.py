"""What `vae compare` compares: runs, seeds of one setting as a group, and the statistics of a group."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vaecli import config as configs
from vaecli.analysis.codes import Codes
from vaecli.batch import DataInfo
from vaecli.config import RunConfig


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
    likelihood: str | None = None  # in words, with its settings; None where there is none


class Summary(NamedTuple):
    """Over the seeds of a group. `mean` is None unless every seed has the value, `sd` (ddof 1) with fewer than two."""

    mean: float | None
    sd: float | None


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
    differing = {key for members in grouped for key in configs.diff(first.config, members[0].config)} - {"seed"}
    groups = []
    for members in grouped:
        flat = dict(configs.flat(members[0].config.to_tree()))
        settings = {key: flat.get(key) for key in sorted(differing)}
        if any((other[0].origin or {}).get("sha256") != (first.origin or {}).get("sha256") for other in grouped):
            origin = members[0].origin
            settings["init_from"] = origin and f"{origin['sha256'][:8]} at step {origin['step']:,}"
        if any(other[0].step != first.step for other in grouped):
            settings["step"] = members[0].step
        values = {c.key: summary([run.values.get(c.key) for run in members]) for c in columns}
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


def best_of(column: Column, groups: Sequence[Group]) -> list[int]:
    """The groups whose mean is best, more than one where they are equal; none where there is nothing to compare."""
    means = {i: m for i, group in enumerate(groups) if (m := group.values[column.key].mean) is not None}
    if not column.better or len(means) < 2:
        return []
    top = max(column.better * mean for mean in means.values())
    return [i for i, mean in means.items() if column.better * mean == top]
