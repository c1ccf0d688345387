"""docs/correctness.md says what is there: models, tests, and the numbers of benchmarks/correctness.py."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from vaecli import registry

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "correctness.md"


@pytest.fixture(scope="module")
def effects() -> ModuleType:
    spec = importlib.util.spec_from_file_location("correctness", ROOT / "benchmarks" / "correctness.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_model_has_a_row_with_a_test() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*\|$", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(registry.names("model"))


def test_every_file_of_objectives_is_named() -> None:
    files = {f.name for f in (ROOT / "vaecli" / "objectives").glob("[a-z]*.py")}
    assert files <= set(re.findall(r"objectives/(\w+\.py)", PAGE.read_text()))


def test_the_tests_that_are_named_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text()))
    assert len(named) > 60
    missing = [f"{file}::{test}" for file, test in named if test not in functions(ROOT / file)]
    assert not missing, missing
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            assert "`tests/" in line, line


def test_the_numbers_are_those_of_the_script(effects: ModuleType) -> None:
    page = PAGE.read_text()
    assert effects.written(page, effects.table()) == page


def test_the_effects_are_what_is_known_of_them(effects: ModuleType) -> None:
    """Against numbers found by others: a simulation of the stratified weights, and what is arithmetic."""
    numbers = {
        effect.__name__: [float(n) for n in re.findall(r"-?\d+\.\d+", effect().numbers)] for effect in effects.EFFECTS
    }
    mi, tc, mi_wrong, tc_wrong = numbers["stratified_weights"]
    assert (mi, tc) == (pytest.approx(13.5, abs=0.2), pytest.approx(1.8, abs=0.3))
    assert (mi_wrong, tc_wrong) == (pytest.approx(4.3, abs=0.2), pytest.approx(8.8, abs=0.3))
    assert numbers["mean_over_pixels"][1] == pytest.approx(0.00025 * 3 * 64 * 64 / 2, rel=0.01)
    assert numbers["dc_ign_sign"] == [pytest.approx(0.9**2, abs=0.01), pytest.approx(1.2**2, abs=0.01)]
    assert numbers["mig_without_transposing"][0] > 0.99 and numbers["mig_without_transposing"][1] < 0.01
