"""The table of README.md: forty cases, and every test it names is there."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_case_has_tests_that_exist() -> None:
    rows = re.findall(r"^\| (\d+) .*? \| (.*) \|$", (HERE / "README.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 41))
    for number, cell in rows:
        named = re.findall(r"`(.+?)::(test_\w+)`", cell)
        assert named, f"case {number}"
        for file, test in named:
            assert f"def {test}(" in (HERE.parent / file).read_text(), f"case {number}: {file}::{test}"
