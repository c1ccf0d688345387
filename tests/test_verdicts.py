"""The verdicts on models whose fault is known (`benchmarks/verdicts.py`, which writes docs/verdicts.md of them)."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_verdicts_name_the_fault_and_call_none_of_them_healthy() -> None:
    spec = importlib.util.spec_from_file_location("verdicts", ROOT / "benchmarks" / "verdicts.py")
    assert spec is not None and spec.loader is not None
    verdicts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verdicts)
    found = verdicts.measure()
    assert len(found) >= 24
    assert not [n for n, (said, _) in found.items() if said == "healthy" and not n.startswith("healthy")]
    assert sum(fits for _, fits in found.values()) >= 0.85 * len(found), found
