"""`vae reproduce`: rows are read strictly, judged by their tolerance, and never loosened by a budget."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import HERE, Result

from vaecli.commands import reproduce
from vaecli.errors import ConfigError
from vaecli.presets import rows

ROW = """# Squares, to see the command at work
kind: {kind}
source: here
time: 5s
train:
  vae: >-
    --data squares --model vae -S 'model.net={{name: mlp, hidden: [16]}}' --latent-dim 3 --steps {steps} --seed {{seed}}
measure:
  latents: {{command: "analyze {{vae}}", value: totals.latents}}
  minus: {{command: "analyze {{vae}}", value: -totals.latents}}
  first: {{command: "analyze {{vae}}", value: latents.z0.index}}
judge:
{judge}
"""
HOLDS = "- {value: latents, expected: 3, tolerance: 0}\n- {less: [minus, latents], by: 5.9}"


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    (tmp_path / "presets" / "reproduce").mkdir(parents=True)
    monkeypatch.setenv("VAE_PRESET_PATH", str(tmp_path / "presets"))

    def write(name: str = "squares", kind: str = "exact", judge: str = HOLDS, steps: int = 30, text: str = ROW) -> None:
        path = tmp_path / "presets" / "reproduce" / f"{name}.yaml"
        path.write_text(text.format(kind=kind, judge=judge, steps=steps))

    return write


def test_every_row_of_ours_is_read() -> None:
    assert rows.folder() == HERE.parent / "presets" / "reproduce"
    for name in rows.names():
        row = rows.load(name)
        assert len(row.summary) > 20 and row.source and row.time


def test_a_row_is_trained_measured_and_judged(row: Callable[..., None], vae: Callable[..., Result]) -> None:
    row()
    listed = vae("reproduce", "--list")
    assert listed.out.splitlines()[1].split("\t") == ["squares", "exact", "5s", "Squares, to see the command at work"]
    done = vae("reproduce", "squares", "--seeds", "0-1", "-o", "runs", "--json", "-q")
    assert done.code == 0, done.err
    (record,) = json.loads(done.out)["rows"]
    assert record["verdict"] == "holds" and record["seeds"] == [0, 1]
    assert record["obtained"]["latents"] == {"mean": 3.0, "sd": 0.0, "values": [3.0, 3.0]}
    assert record["obtained"]["minus"]["mean"] == -3.0 and "first" in record["obtained"]
    assert sorted(p.name for p in Path("runs").iterdir()) == ["squares-vae-s0", "squares-vae-s1"]
    # Found again: nothing is trained twice.
    before = Path("runs/squares-vae-s0/metrics.jsonl").read_text()
    again = vae("reproduce", "squares", "-o", "runs")
    assert again.code == 0 and "nothing to do" in again.err
    assert Path("runs/squares-vae-s0/metrics.jsonl").read_text() == before
    assert "squares\tlatents\t3\t0\t3\tholds" in again.out


@pytest.mark.parametrize(
    "judge",
    [
        "- {value: latents, expected: 3.2, tolerance: 0.1}",
        "- {value: latents, expected: 3.2, tolerance: 5 %}",
        "- {less: [latents, minus]}",
        "- {less: [minus, latents], by: 6.1}",
    ],
)
def test_what_falls_short_is_exit_6(judge: str, row: Callable[..., None], vae: Callable[..., Result]) -> None:
    row(judge=judge)
    done = vae("reproduce", "squares", "-o", "runs", "--json", "-q")
    assert done.code == 6 and "falls short" in done.err
    assert json.loads(done.out)["rows"][0]["verdict"] == "falls short"


def test_a_budget_leaves_a_row_not_judged(row: Callable[..., None], vae: Callable[..., Result]) -> None:
    """Even one that falls short: a training cut off says nothing."""
    row(judge="- {value: latents, expected: 9, tolerance: 0.1}", steps=10**7)
    done = vae("reproduce", "squares", "-o", "runs", "--budget", "1s", "--json", "-q")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["verdict"] == "not judged"


def test_tolerances() -> None:
    def holds(mean: float, expected: float, tolerance: object) -> bool:
        check = {"value": "v", "expected": expected, "tolerance": tolerance}
        return bool(reproduce._judged(check, {"v": {"mean": mean}})["holds"])

    assert holds(105.0, 105.6, 0.6001) and not holds(105.0, 105.6, 0.59)
    assert holds(99, 100, "1 %") and not holds(98.9, 100, "1 %")
    assert holds(-99, -100, "1%") and not holds(float("nan"), 1, 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("kind: exact", "kind: exakt"), "did you mean 'exact'"),
        (("source: here\n", ""), "kind, source, time"),
        (("time: 5s", "time: 5s\nseed: 1"), "'seed'"),
        (("value: latents, expected", "value: latent, expected"), "did you mean 'latents'"),
        (("analyze {vae}", "analyze {van}"), "no run is called 'van'"),
        (("tolerance: 0}", "tolerances: 0}"), "tolerance"),
        (("kind: exact", "kind: published"), "not judged"),
    ],
)
def test_mistakes_in_a_row_are_named(change: tuple[str, str], word: str, row: Callable[..., None]) -> None:
    row()
    path = rows.folder() / "squares.yaml"  # type: ignore[operator]
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ConfigError, match=word):
        rows.load("squares")


def test_bad_usage(row: Callable[..., None], vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    row()
    assert vae("reproduce").code == 2
    wrong = vae("reproduce", "sqares")
    assert wrong.code == 2 and "did you mean 'squares'" in wrong.err
    assert vae("reproduce", "squares", "--seeds", "x").code == 2
    row(text=ROW.replace("time: 5s", "time: 5s\nneeds: [mnist]"))
    monkeypatch.setenv("VAE_DATA_DIR", "/nowhere")
    missing = vae("reproduce", "squares", "-o", "runs")
    assert missing.code == 3 and "mnist" in missing.err and "VAE_DATA_DIR" in missing.err
    assert not Path("runs").exists()
