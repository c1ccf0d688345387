"""`vae reproduce`: rows are read strictly, judged by their tolerance, and never loosened by a budget."""

import contextlib
import io
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import HERE, Result

from vaecli import cli, output
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


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of a row run here: a process of its own for each takes most of a test's time."""

    def run(line: list[str], stdout: int, check: bool) -> subprocess.CompletedProcess[bytes]:
        assert line[:4] == [sys.executable, "-P", "-m", "vaecli"] and stdout == subprocess.PIPE and not check
        text, quiet, code = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), output.is_quiet(), 0
        with contextlib.redirect_stdout(text), pytest.MonkeyPatch.context() as here:
            here.setattr(sys, "argv", ["vae", *line[4:]])
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            text.flush()
        monkeypatch.setattr(output, "_quiet", quiet)
        return subprocess.CompletedProcess(line, code, text.buffer.getvalue())

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))


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
    assert record["verdict"] == "holds" and record["seeds"] == [0, 1] and record["found_again"] == 0
    assert record["obtained"]["latents"] == {"mean": 3.0, "sd": 0.0, "values": [3.0, 3.0]}
    assert record["obtained"]["minus"]["mean"] == -3.0 and "first" in record["obtained"]
    first, second = sorted(Path("runs").iterdir())
    assert re.fullmatch(r"vae-[0-9a-f]{8}-s0", first.name) and second.name == first.name[:-1] + "1"
    # Found again: nothing is trained twice.
    before = (first / "metrics.jsonl").read_text()
    again = vae("reproduce", "squares", "-o", "runs")
    assert again.code == 0 and "nothing to do" in again.err
    assert (first / "metrics.jsonl").read_text() == before
    assert "squares\tlatents\t3\t0\t3\tholds" in again.out
    quiet = vae("reproduce", "squares", "-o", "runs", "-q")
    assert quiet.code == 0 and quiet.err == "" and quiet.out == again.out


def test_a_run_is_named_by_what_its_preset_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAE_PRESET_PATH", "presets")
    Path("presets").mkdir()
    Path("presets/base.yaml").write_text("# Base\nmodel: {name: vae, latent_dim: 2}\n")
    preset, words = Path("presets/mine.yaml"), ["--preset", "mine", "--seed", "0"]
    names = []
    for text in ("model: {beta: 1}", "# Other words\nmodel: {beta: 1}", "model: {beta: 2}", "model: {beta: 1}"):
        preset.write_text(f"# Mine\nextends: base\n{text}\n")
        names.append(reproduce._named_by(words))
    assert names[0] == names[1] == names[3] != names[2]
    Path("presets/base.yaml").write_text("# Base\nmodel: {name: vae, latent_dim: 3}\n")
    assert reproduce._named_by(words) != names[0]


SHORT = """- {value: latents, expected: 3.2, tolerance: 0.1}
- {value: latents, expected: 3.2, tolerance: 5 %}
- {less: [latents, minus]}
- {less: [minus, latents], by: 6.1}"""


@pytest.mark.usefixtures("in_this_process")
def test_what_falls_short_is_exit_6(row: Callable[..., None], vae: Callable[..., Result]) -> None:
    """By each kind of judgement; and one that holds beside it does not save the row."""
    row(judge=f"{HOLDS}\n{SHORT}")
    done = vae("reproduce", "squares", "-o", "runs", "--json", "-q")
    assert done.code == 6 and "falls short" in done.err
    (record,) = json.loads(done.out)["rows"]
    assert record["verdict"] == "falls short"
    assert [check["holds"] for check in record["checks"]] == [True] * 2 + [False] * 4


@pytest.mark.usefixtures("in_this_process")
def test_a_budget_leaves_a_row_not_judged(row: Callable[..., None], vae: Callable[..., Result]) -> None:
    """Even one that falls short: a training cut off says nothing."""
    row(judge="- {value: latents, expected: 9, tolerance: 0.1}", steps=10**7)
    done = vae("reproduce", "squares", "-o", "runs", "--budget", "1s", "--json", "-q")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["verdict"] == "not judged"


@pytest.mark.usefixtures("in_this_process")
def test_a_run_cut_short_is_gone_on_with_and_judged(row: Callable[..., None], vae: Callable[..., Result]) -> None:
    row(steps=4_000)
    cut = vae("reproduce", "squares", "-o", "runs", "--budget", "0.2s", "--json", "-q")
    (record,) = json.loads(cut.out)["rows"]
    assert cut.code == 0 and record["verdict"] == "not judged" and not record["complete"]
    assert record["command"] == "vae reproduce squares --budget 0.2s"
    (run,) = Path("runs").iterdir()
    reached = max(int(line["step"]) for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    assert reached < 4_000
    row(steps=4_000)
    assert "not judged" in vae("reproduce", "squares", "-o", "runs", "--budget", "0.2s").out  # nor by what holds
    done = vae("reproduce", "squares", "-o", "runs", "--json")
    assert done.code == 0 and json.loads(done.out)["rows"][0]["verdict"] == "holds"
    assert list(Path("runs").iterdir()) == [run] and "resum" in done.err.lower()


SEVERAL = """# Several seeds of two models, a density, a text, and what is derived of them
kind: direction
source: here
time: 5s
seeds: 0-2
train:
  vae: "--data squares --model vae -S 'model.net={name: mlp, hidden: [16]}' --latent-dim 3 --steps 30 --seed {seed}"
  wide: "--data squares --model vae -S 'model.net={name: mlp, hidden: [16]}' --latent-dim 5 --steps 30 --seed {seed}"
then:
- "density {vae} --fit normal --force"
measure:
  hash: {command: "datasets squares", value: frames_sha256}
  kl: {command: "analyze {vae}", value: latents.*.kl}
  largest: {command: "analyze {vae}", value: max latents.*.kl}
  first: {command: "analyze {vae}", value: latents.0.kl}
  elbo: {command: &all "compare {vae:all} {wide:all}", value: runs.*.values.elbo}
  recon: {command: *all, value: runs.*.values.recon}
  latents: {command: "analyze {wide}", value: totals.latents}
  density: {command: "density {vae}", value: density}
derive:
  least: {min: kl}
  most: {max: kl}
  spread: {spread: kl}
  apart: {apart: [largest, latents]}
  ratio: {ratio: [latents, latents]}
  ranks: {spearman: [elbo, recon]}
judge:
- {value: hash, expected: HASH, tolerance: exact}
- {value: latents, expected: 5, tolerance: exact}
- {value: density, expected: normal, tolerance: exact}
- {less: [0, least]}
- {less: [ranks, 0]}
"""


@pytest.mark.usefixtures("in_this_process")
def test_seeds_together_texts_and_what_is_derived(
    row: Callable[..., None], vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, for there are many commands."""
    said: list[str] = []

    def run_here(arguments: Sequence[str]) -> Any:
        said.append(shlex.join(arguments))
        done = vae(*arguments)
        assert done.code == 0, done.err
        return json.loads(done.out)

    monkeypatch.setattr(reproduce, "_vae", run_here)
    found = run_here(["datasets", "squares", "--json", "-q"])["frames_sha256"]
    row()
    path = rows.folder() / "several.yaml"  # type: ignore[operator]
    path.write_text(SEVERAL.replace("HASH", found))
    record = reproduce._reproduce(rows.load("several"), [0, 1, 2], None, Path("runs"))
    assert record["verdict"] == "holds", record["checks"]
    assert [sum(line.startswith(word) for line in said) for word in ("compare", "density", "train")] == [1, 6, 6]
    got = {key: value["values"] for key, value in record["obtained"].items()}
    assert len(got["kl"]) == 9 and len(got["largest"]) == 3 and len(got["elbo"]) == 6
    assert got["largest"] == [max(got["kl"][i : i + 3]) for i in (0, 3, 6)] == got["first"]  # ordered by KL
    assert got["least"] == [min(got["kl"])] and got["most"] == [max(got["kl"])]
    assert got["spread"][0] == pytest.approx(max(got["kl"]) - min(got["kl"]))
    assert got["apart"][0] == pytest.approx(5 - sorted(got["largest"])[1]) and got["ratio"] == [1.0]
    order = [[sorted(got[key]).index(v) for v in got[key]] for key in ("elbo", "recon")]
    squares = sum((a - b) ** 2 for a, b in zip(*order, strict=True))
    assert got["ranks"][0] == pytest.approx(1 - 6 * squares / (6 * 35))
    assert record["obtained"]["hash"]["mean"] == found
    assert record["data"] == [{"name": "squares", "source": record["data"][0]["source"]}]
    assert "runs/" not in json.dumps(record["settings"])
    # Rows that need the same run share it; a hash is expected to the last letter.
    path.with_name("other.yaml").write_text(SEVERAL.replace("HASH", "0" * 64))
    before = len(list(Path("runs").iterdir()))
    other = reproduce._reproduce(rows.load("other"), [0], None, Path("runs"))
    assert other["found_again"] == 2 and record["found_again"] == 0
    assert other["verdict"] == "falls short" and [c["holds"] for c in other["checks"][:2]] == [False, True]
    assert len(list(Path("runs").iterdir())) == before == 6


def test_ranks_share_equal_places() -> None:
    assert reproduce._ranks([3.0, 1.0, 3.0, 2.0]) == [3.0, 0.5, 3.0, 1.5]
    values = {"a": [1.0, 2.0, 3.0], "b": [5.0, 5.0, 5.0]}
    assert math.isnan(reproduce._derived({"spearman": ["a", "b"]}, values))
    assert not reproduce._judged({"less": [0, "r"]}, {"r": {"mean": math.nan}})["holds"]


@pytest.mark.usefixtures("in_this_process")
def test_a_published_row_is_measured_and_not_judged(row: Callable[..., None], vae: Callable[..., Result]) -> None:
    row(kind="published", judge="  []", text=ROW + "print: {{latents: 7}}\n")
    done = vae("reproduce", "squares", "-o", "runs", "-q")
    assert done.code == 0 and "squares\tlatents\t7\t\t3\t" in done.out
    assert done.out.startswith("row\tvalue\tpublished\t")  # nobody expects it to come out
    assert vae("reproduce", "--list", "--published").out.splitlines()[1].split("\t") == [
        "squares",
        "latents",
        "7",
        "here",
    ]


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
        (("measure:", "then: ['density {van}']\nmeasure:"), "no run is called 'van'"),
        (("measure:", "derive: {a: {mean: latents}}\nmeasure:"), "did you mean"),
        (("measure:", "derive: {a: {ratio: latents}}\nmeasure:"), "ratio is of 2"),
        (("measure:", "derive: {a: {max: latent}}\nmeasure:"), "did you mean 'latents'"),
        (("value: totals.latents", "value: mac totals.latents"), "did you mean 'max'"),
        (("expected: 3,", "expected: three,"), "tolerance: exact"),
        (("[minus, latents]", "[minus]"), "less is of two"),
        (("--seed {seed}", "--seed {seed} --init-from {later}"), "no run before it"),
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


@pytest.mark.usefixtures("in_this_process")
def test_bad_usage(row: Callable[..., None], vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    row()
    assert vae("reproduce").code == 2
    wrong = vae("reproduce", "sqares")
    assert wrong.code == 2 and "did you mean 'squares'" in wrong.err
    assert vae("reproduce", "squares", "--seeds", "x").code == 2
    row(text=ROW.replace("time: 5s", "time: 5s\nneeds: [mnist]"))
    monkeypatch.setenv("VAE_DATA_DIR", "/nowhere")
    missing = vae("reproduce", "squares", "-o", "runs")
    assert missing.code == 5 and "squares needs mnist" in missing.err and "VAE_OFFLINE" in missing.err
    Path("data/mnist").mkdir(parents=True)  # as a download that failed leaves it
    monkeypatch.setenv("VAE_DATA_DIR", str(Path("data").resolve()))
    empty = vae("reproduce", "squares", "-o", "runs")
    assert empty.code == 5 and "squares needs mnist" in empty.err
    assert vae("reproduce", "squares", "--budget", "1x").code == 2
    row(text=ROW.replace("time: 5s", "time: 5s\nneeds: [beta-wae]"))
    model = vae("reproduce", "squares", "-o", "runs")
    assert model.code == 2 and "'beta-wae', which is not there; did you mean 'beta-vae'" in model.err
    row(text=ROW.replace("time: 5s", "time: 5s\nneeds: [scikit-learn, vae, squares]"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    library = vae("reproduce", "squares", "-o", "runs")
    assert library.code == 2 and "needs scikit-learn" in library.err and "pip install" in library.err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("in_this_process")
def test_what_is_known_of_a_row_that_falls_short_is_said_then(
    row: Callable[..., None], vae: Callable[..., Result]
) -> None:
    row(judge="- {value: latents, expected: 4, tolerance: exact}\nfound: there are but three.")
    done = vae("reproduce", "squares", "-o", "runs")
    assert done.code == 6 and "squares fell short before: there are but three." in done.err.replace("\n", " ")
    row(judge="- {value: latents, expected: 3, tolerance: exact}\nfound: there are but three.")
    done = vae("reproduce", "squares", "-o", "runs")
    assert done.code == 0 and "but three" not in done.err


def test_every_row_that_fell_short_says_what_was_found_out_about_it() -> None:
    records = [json.loads(path.read_text()) for path in (HERE.parent / "docs" / "reproduce").glob("*.json")]
    short = [record["row"] for record in records if record["verdict"] == "falls short"]
    assert short
    assert [name for name in short if not rows.load(name).found] == []


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.usefixtures("in_this_process")
def test_what_rows_gave_is_printed_where_a_later_one_fails(
    json_too: bool, row: Callable[..., None], vae: Callable[..., Result]
) -> None:
    row()
    row("broken", text=ROW.replace("value: totals.latents", "value: totals.latent"))
    done = vae("reproduce", "squares", "broken", "-o", "runs", *(["--json"] if json_too else []))
    assert done.code == 2 and "there is no number at 'totals.latent'" in done.err
    if json_too:
        assert [record["row"] for record in json.loads(done.out)["rows"]] == ["squares"]
    else:
        assert "squares\tlatents\t3\t0\t3\tholds" in done.out and "broken" not in done.out


@pytest.mark.usefixtures("in_this_process")
def test_what_is_there_is_no_hindrance(row: Callable[..., None], vae: Callable[..., Result]) -> None:
    row(text=ROW.replace("time: 5s", "time: 5s\nneeds: [scikit-learn, vae, squares]"))
    done = vae("reproduce", "squares", "-o", "runs")
    assert done.code == 0, done.err


def test_rows_of_downloaded_data_say_that_they_need_them() -> None:
    for row in map(rows.load, rows.names()):
        said = " ".join([*row.train.values(), *(entry["command"] for entry in row.measure.values())])
        assert ("fashion-mnist" in said) <= ("fashion-mnist" in row.needs), row.name
        assert ("mnist" in said.replace("fashion-mnist", "")) <= ("mnist" in row.needs), row.name


def test_records_are_of_what_their_rows_judge_now() -> None:
    """A row that has come to judge more, or otherwise, is to be run again."""
    for path in (HERE.parent / "docs" / "reproduce").glob("*.json"):
        record, row = json.loads(path.read_text()), rows.load(path.stem)
        asked = [{key: check[key] for key in check if key != "holds"} for check in record["checks"]]
        assert asked == [dict(check) for check in row.judge], path.stem
