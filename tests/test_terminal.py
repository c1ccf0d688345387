"""Tables in terminals of any width: no number is cut, nothing is lost."""

import io
import re
import sys

import pytest

from vaecli import output

HEADERS = ["latent", "mean mu", "var mu", "mean sigma^2", "KL (nats)", "status"]
ROWS = [
    [f"level_with_a_name.{i}", f"{-826.869 * i:.4f}", f"{72624.119 + i:.4f}", "0.1995", f"{i}.5", "active"]
    for i in range(3)
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_no_number_is_cut_and_every_one_is_shown(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    output.table(HEADERS, ROWS, title="latents")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert max(map(len, shown.splitlines())) <= width
    words = shown.split()
    for row in ROWS:
        assert all(cell in words for cell in row[1:])
    assert shown.count("latents") == 1
    if width == 120:
        assert shown.count("status") == 1 and "level_with_a_name.2" in words


def test_columns_fill_the_lines() -> None:
    assert output.blocks([5, 5, 5], 10, 34) == [[0, 1, 2]]
    assert output.blocks([5, 5, 5], 10, 33) == [[0, 1], [2]]
    assert output.blocks([50, 5], 10, 20) == [[0], [1]]  # wider than the line: alone
    assert output.blocks([], 10, 20) == [[]]
