"""Groups of runs side by side: as a table on a terminal, as rows of a file, as a record."""

import sys
from collections.abc import Sequence
from typing import Any

from vaecli import output as streams
from vaecli.analysis.tables import number_text
from vaecli.commands._groups import Column, Group, Summary
from vaecli.commands._labels import labels, short, value_text
from vaecli.report import comparison


def flat(groups: Sequence[Group], columns: Sequence[Column], missing: str | None) -> tuple[list[str], list[list[str]]]:
    """Headings and rows with mean, standard deviation and standard error apart; rounded where `missing` says what
    stands for none, else with all digits."""
    keys = list(groups[0].settings)
    parts = {c.key: [f for f in Summary._fields if f != "error" or _has_error(groups, c)] for c in columns}
    short = {"mean": "", "sd": "_sd", "error": "_se"}
    headings = ["run", "seeds", *keys, *(f"{c.key}{short[part]}" for c in columns for part in parts[c.key])]
    rows = []
    for group in groups:
        row = [group.name, str(len(group.runs)), *(value_text(group.settings[key]) for key in keys)]
        for column in columns:
            for value in (getattr(group.values[column.key], part) for part in parts[column.key]):
                if missing is None:
                    row.append("" if value is None else repr(value))
                else:
                    row.append(missing if value is None else f"{value:.{_digits(column, group)}f}")
        rows.append(row)
    return headings, rows


def _digits(column: Column, group: Group) -> int:
    """A mean of counts needs a decimal that a count does not."""
    return max(column.digits, 1) if len(group.runs) > 1 else column.digits


def _has_error(groups: Sequence[Group], column: Column) -> bool:
    return any(group.values[column.key].error is not None for group in groups)


def _cell(value: Summary, digits: int) -> str:
    off = value.error if value.sd is None else value.sd
    spread = "" if off is None else f" +- {off:.{digits}f}"
    return f"{number_text(value.mean, digits)}{spread}"


def named(groups: Sequence[Group]) -> list[str]:
    """What each group is called: the settings in which it differs from the others, else the name of its run."""
    found = labels([group.settings for group in groups])
    if not all(found) or len(set(found)) < len(found):
        return [streams.safe(group.name) for group in groups]
    return [streams.safe(label) for label in found]


def formatted(groups: Sequence[Group], columns: Sequence[Column], best: dict[str, list[int]], form: str) -> list[str]:
    """Lines of a table for a paper (`latex`) or a page (`markdown`): mean and deviation in a cell, the best bold."""
    rows = []
    for i, (label, group) in enumerate(zip(named(groups), groups, strict=True)):
        cells = []
        for column in columns:
            text, bold = _cell(group.values[column.key], _digits(column, group)), i in best[column.key]
            if form == "latex":
                text = text.replace(" +- ", r" \pm ")
                cells.append(text if text == "n/a" else rf"$\mathbf{{{text}}}$" if bold else f"${text}$")
            else:
                text = text.replace(" +- ", " ± ")
                cells.append(f"**{text}**" if bold else text)
        rows.append([label, str(len(group.runs)), *cells])
    headings = ["run", "seeds", *(column.heading for column in columns)]
    return (comparison.latex if form == "latex" else comparison.markdown)(headings, rows)


def plot(groups: Sequence[Group], columns: Sequence[Column]) -> str:
    """The columns against what differs between the groups, as SVG."""
    keys = list(groups[0].settings)
    x = [group.settings[keys[0]] for group in groups] if len(keys) == 1 else []
    numeric = bool(x) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in x)
    panels = [
        comparison.Panel(
            column.heading,
            [[v for run in group.runs if (v := run.values.get(column.key)) is not None] for group in groups],
            [group.values[column.key].mean for group in groups],
            [group.values[column.key].sd for group in groups],
        )
        for column in columns
    ]
    name = next(iter(short(keys).values())) if len(keys) == 1 else "run"
    return comparison.svg(panels, name, [float(v) for v in x] if numeric else None, named(groups))


def draw(groups: Sequence[Group], columns: Sequence[Column], best: dict[str, list[int]]) -> None:
    """On a terminal: a row is called by the settings in which it differs; the best of each column bold and with a
    star. Where it is too narrow for all columns they go into several tables, one below the other."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def number(i: int, column: Column) -> Text:
        text = _cell(groups[i].values[column.key], _digits(column, groups[i]))
        return Text(f"{text} *", style="bold") if i in best[column.key] else Text(text)

    parts = [[Text("seeds"), *(Text(str(len(group.runs))) for group in groups)]]
    parts += [[Text(c.heading), *(number(i, c) for i in range(len(groups)))] for c in columns]
    called = named(groups)
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    width_of_names = min(max(map(len, ["run", *called])), max(streams.NARROW, console.width // 3))
    names = [Text(name) for name in streams.shortened(called, width_of_names)]
    widths = [max(map(len, part)) for part in parts]
    for block in streams.blocks(widths, width_of_names + 2, console.width):
        taken = [parts[i] for i in block]
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        drawn.add_column(Text("run"), max_width=width_of_names)
        for heading, *_ in taken:
            drawn.add_column(heading, justify="right", no_wrap=True)
        for name, *cells in zip(names, *(cells for _, *cells in taken), strict=True):
            drawn.add_row(name, *cells)
        console.print(drawn)
    if called != [group.name for group in groups]:
        for label, group in zip(called, groups, strict=True):
            streams.notice(f"{label}: {', '.join(run.name for run in group.runs)}")
    legend(groups, columns, best, "*")


def legend(groups: Sequence[Group], columns: Sequence[Column], best: dict[str, list[int]], mark: str) -> None:
    """What the marks and the deviations of a table mean."""
    if any(best.values()):
        known = "by more than two standard errors of the difference"
        if all(len(group.runs) < 2 for group in groups):
            known += " over images, where known; of one seed each, which does not tell how far seeds lie apart"
        elif any(len(group.runs) < 2 for group in groups):
            known += ", where there is more than one seed"
        streams.notice(f"{mark} the best mean of its column, {known}")
    if any(len(group.runs) > 1 for group in groups):
        streams.notice("+- the standard deviation over seeds (n - 1)")
    if any(group.values[c.key].error is not None for group in groups for c in columns if len(group.runs) == 1):
        streams.notice("+- of one run: the standard error of the mean over images")


def _summary(value: Summary) -> dict[str, float | None]:
    error = {} if value.error is None else {"standard_error": value.error}
    return {"mean": value.mean, "sd": value.sd, **error}


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
                "values": {key: _summary(value) for key, value in group.values.items()},
            }
            for group in groups
        ],
        "best": best,
    }
