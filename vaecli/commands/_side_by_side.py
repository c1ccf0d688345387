"""Groups of runs side by side: as a table on a terminal, as rows of a file, as a record."""

import json as json_format
import sys
from collections.abc import Sequence
from typing import Any

from vaecli import output as streams
from vaecli.analysis.tables import number_text
from vaecli.commands._groups import Column, Group, Summary


def flat(groups: Sequence[Group], columns: Sequence[Column], missing: str | None) -> tuple[list[str], list[list[str]]]:
    """Headings and rows with mean and standard deviation apart; rounded where `missing` says what stands for none,
    else with all digits."""
    keys = list(groups[0].settings)
    headings = ["run", "seeds", *keys, *(text for c in columns for text in (c.key, f"{c.key}_sd"))]
    rows = []
    for group in groups:
        row = [group.name, str(len(group.runs)), *(_setting_text(group.settings[key]) for key in keys)]
        for column in columns:
            for value in group.values[column.key]:
                if missing is None:
                    row.append("" if value is None else repr(value))
                else:
                    row.append(missing if value is None else f"{value:.{_digits(column, group)}f}")
        rows.append(row)
    return headings, rows


def _digits(column: Column, group: Group) -> int:
    """A mean of counts needs a decimal that a count does not."""
    return max(column.digits, 1) if len(group.runs) > 1 else column.digits


def _setting_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json_format.dumps(value)


def _cell(value: Summary, digits: int) -> str:
    spread = "" if value.sd is None else f" +- {value.sd:.{digits}f}"
    return f"{number_text(value.mean, digits)}{spread}"


def draw(groups: Sequence[Group], columns: Sequence[Column], best: dict[str, list[int]]) -> None:
    """On a terminal: the best of each column bold and with a star. Where it is too narrow for all columns they go
    into several tables, one below the other, each with the names of the runs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def number(i: int, column: Column) -> Text:
        text = _cell(groups[i].values[column.key], _digits(column, groups[i]))
        return Text(f"{text} *", style="bold") if i in best[column.key] else Text(text)

    parts = [
        [Text(key), *(Text(streams.safe(_setting_text(g.settings[key]))) for g in groups)] for key in groups[0].settings
    ]
    parts.append([Text("seeds"), *(Text(str(len(group.runs))) for group in groups)])
    parts += [[Text(c.heading), *(number(i, c) for i in range(len(groups)))] for c in columns]
    names = [Text(streams.safe(group.name)) for group in groups]
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    width_of_names = min(max(map(len, names)), max(streams.NARROW, console.width // 3))
    widths = [max(map(len, part)) for part in parts]
    for block in streams.blocks(widths, width_of_names + 2, console.width):
        taken = [parts[i] for i in block]
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        drawn.add_column(Text("run"), overflow="fold")
        for heading, *_ in taken:
            drawn.add_column(heading, justify="right", no_wrap=True)
        for name, *cells in zip(names, *(cells for _, *cells in taken), strict=True):
            drawn.add_row(name, *cells)
        console.print(drawn)
    if any(best.values()):
        streams.notice("* the best mean of its column")
    if any(len(group.runs) > 1 for group in groups):
        streams.notice("+- the standard deviation over seeds (n - 1)")


def record(groups: Sequence[Group], columns: Sequence[Column], best: dict[str, list[int]], seed: int) -> dict[str, Any]:
    runs = [
        {
            "name": run.name, "checkpoint": str(run.file), "group": i, "seed": run.config.seed, "step": run.step,
            "model": run.config.model.name, "data": run.info.name, "over": run.over, "n": run.n,
            "values": run.values, "metrics": run.metrics,
        }
        for i, group in enumerate(groups)
        for run in group.runs
    ]  # fmt: skip
    return {
        "schema": 1,
        "seed": seed,
        "columns": [c.key for c in columns],
        "runs": runs,
        "groups": [
            {
                "name": group.name,
                "runs": [run.name for run in group.runs],
                "seeds": [run.config.seed for run in group.runs],
                "settings": group.settings,
                "values": {key: value._asdict() for key, value in group.values.items()},
            }
            for group in groups
        ],
        "best": best,
    }
