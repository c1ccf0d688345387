"""compare: groups of seeds, their statistics, what differs, and which is best, against numbers worked by hand."""

import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Result

from vaecli import data, registry
from vaecli.analysis import analyze as analysis
from vaecli.analysis import codes
from vaecli.analysis.diagnosis import Statistics
from vaecli.analysis.metrics import Result as MetricResult
from vaecli.analysis.metrics import Score
from vaecli.commands import _side_by_side, compare
from vaecli.commands._groups import Column, Group, Run, Summary, best_of, summary
from vaecli.commands._labels import labels
from vaecli.data.base import Dataset
from vaecli.errors import ConfigError
from vaecli.training import checkpoint

Vae = Callable[..., Result]

RECON = {(4.0, 0): 40.0, (4.0, 1): 42.0, (4.0, 2): 47.0, (1.0, 0): 30.0}
KL = {(4.0, 0): 3.0, (4.0, 1): 4.0, (4.0, 2): 8.0, (1.0, 0): 20.0}
ACTIVE = {(4.0, 0): 2, (4.0, 1): 2, (4.0, 2): 3, (1.0, 0): 3}
SCORE = {(4.0, 0): 0.5, (4.0, 1): 0.25, (4.0, 2): 0.75, (1.0, 0): 0.125}


@pytest.fixture
def trained(vae: Vae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`trained(name, seed, "--beta", 4)` -> the path of a run of two steps."""
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))

    def run(name: str, seed: int = 0, *more: object, model: str = "beta-vae", steps: int = 2) -> str:
        options = ("--model", model, *TINY, "--steps", steps, "--seed", seed, "--runs-dir", "runs", "--name", name)
        done = vae("train", *options, *more, "-q")
        assert done.code == 0, done.err
        return done.out.strip()

    return run


@pytest.fixture
def seeds(trained: Callable[..., str]) -> list[str]:
    """Three seeds with beta 4 and, between them, one run with beta 1."""
    b4 = [trained(f"b4-{seed}", seed) for seed in range(3)]
    return [b4[0], trained("b1", 0, "--beta", 1), b4[1], b4[2]]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Instead of measuring, numbers by beta and seed; the calls are recorded."""
    calls: list[dict[str, Any]] = []

    def analyze(
        loaded: checkpoint.Loaded,
        dataset: Dataset,
        split: str | None = None,
        limit: int | None = None,
        *,
        metric_names: list[str],
        seed: int,
        lenient: bool,
    ) -> SimpleNamespace:
        calls.append(
            {
                "dataset": dataset,
                "split": split,
                "limit": limit,
                "metrics": metric_names,
                "seed": seed,
                "lenient": lenient,
            }
        )
        view = dataset.split(split or "test")
        n = min(limit or len(view), len(view))
        key = (loaded.config.model.model_dump().get("beta", 4.0), loaded.config.seed)
        variance_D = torch.zeros(3).index_fill_(0, torch.arange(ACTIVE[key]), 1.0).double()
        kl_D = torch.full((3,), KL[key] / 3, dtype=torch.float64)
        zero_D = torch.zeros(3, dtype=torch.float64)
        stats = Statistics(n, zero_D, variance_D, zero_D + 1, kl_D, RECON[key], 0.1, 0.1)
        score = {"mig": SCORE[key], "gaussian-total-correlation": SCORE[key]}
        results = [MetricResult(name, Score({name: score.get(name, 1.0), "second": 9.0})) for name in metric_names]
        return SimpleNamespace(loaded=loaded, view=view, stats=stats, results=results, codes=None)

    monkeypatch.setattr(analysis, "analyze", analyze)
    return calls


# ------------------------------------------------------------------------------------------------------------- numbers


def test_summary() -> None:
    assert summary([2.0, 4.0, 9.0]) == Summary(5.0, math.sqrt((9 + 1 + 16) / 2))
    assert summary([3.0]) == Summary(3.0, None)
    assert summary([1e9 + 1, 1e9 + 3]) == Summary(1e9 + 2, pytest.approx(math.sqrt(2)))
    for broken in ([2.0, None], [2.0, math.nan], [math.inf, 1.0], []):
        assert summary(broken) == Summary(None, None)


def group(**means: float | None) -> Group:
    return Group([], {}, {key: Summary(mean, None) for key, mean in means.items()})


def test_best() -> None:
    up, down, neither = (Column("x", "x", 2, better) for better in (1, -1, 0))
    groups = [group(x=1.0), group(x=3.0), group(x=None), group(x=3.0), group(x=-2.0)]
    assert best_of(up, groups) == [1, 3]
    assert best_of(down, groups) == [4]
    assert best_of(neither, groups) == []
    assert best_of(up, [group(x=1.0), group(x=None)]) == []  # nothing to be better than


def test_directions() -> None:
    assert {c.key: c.better for c in compare.TOTALS} == {"elbo": 1, "recon": -1, "kl": 0, "active_units": 0}
    assert compare.direction("mig") == 1
    assert compare.direction("gaussian-total-correlation") == 0  # 0, the best there is, for a collapsed model


# --------------------------------------------------------------------------------------------------------- the command


def test_a_run_from_other_weights_is_no_seed_of_those_from_scratch(
    vae: Vae, trained: Callable[..., str], measured: list[dict[str, Any]]
) -> None:
    scratch = [trained(f"b4-{seed}", seed) for seed in range(2)]
    tuned = trained("b4-2", 2, "--init-from", scratch[0])
    record = json.loads(vae("compare", *scratch, tuned, "--json").out)
    assert [group["runs"] for group in record["groups"]] == [["b4-0", "b4-1"], ["b4-2"]]
    sha = hashlib.sha256((Path(scratch[0]) / "checkpoints/latest/model.safetensors").read_bytes()).hexdigest()
    assert record["groups"][1]["settings"]["init_from"] == f"{sha[:8]} at step 2"
    assert vae("train", "--resume", tuned, "--steps", 3, "-q").code == 0
    for origin in (
        json.loads((Path(tuned) / "run.json").read_text())["origin"],
        json.loads(vae("info", tuned, "--json").out)["init_from"],
    ):
        assert (origin["sha256"], origin["step"]) == (sha, 2) and origin["path"].endswith("model.safetensors")
    assert json.loads(vae("info", scratch[0], "--json").out)["init_from"] is None


def test_a_run_that_cannot_be_used_is_left_out_and_told(
    vae: Vae, seeds: list[str], measured: list[dict[str, Any]]
) -> None:
    Path("runs/young/checkpoints").mkdir(parents=True)
    shutil.copy(Path(seeds[0]) / "run.json", "runs/young/run.json")
    done = vae("compare", seeds[0], "runs/young", seeds[1], "--json")
    assert done.code == 3 and [group["runs"] for group in json.loads(done.out)["groups"]] == [["b4-0"], ["b1"]]
    assert "runs/young: this run holds no checkpoint yet; left out" in done.err and "left out: runs/young" in done.err
    assert vae("compare", "runs/young", "--json").out == ""


def test_compare_json(vae: Vae, seeds: list[str], measured: list[dict[str, Any]]) -> None:
    done = vae("compare", *seeds, "--metrics", "mig", "--limit", 20, "--seed", 7, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["schema"] == 1 and record["columns"] == ["elbo", "recon", "kl", "active_units", "mig"]
    b4, b1 = record["groups"]
    assert (b4["name"], b4["runs"], b4["seeds"]) == ("b4-0 +2", ["b4-0", "b4-1", "b4-2"], [0, 1, 2])
    assert (b1["name"], b1["runs"], b1["seeds"]) == ("b1", ["b1"], [0])
    assert (b4["settings"], b1["settings"]) == ({"model.beta": 4.0}, {"model.beta": 1.0})
    expected = {
        "elbo": [-43.0, -46.0, -55.0],
        "recon": [40.0, 42.0, 47.0],
        "kl": [3.0, 4.0, 8.0],
        "active_units": [2, 2, 3],
        "mig": [0.5, 0.25, 0.75],
    }
    for key, values in expected.items():
        assert b4["values"][key]["mean"] == pytest.approx(sum(values) / 3)
        assert b4["values"][key]["sd"] == pytest.approx(statistics.stdev(values))
    assert b1["values"]["elbo"] == {"mean": -50.0, "sd": None}
    # By the seeds an ELBO of 48 is uncertain by 6.2 / sqrt(3), more than half of what there is between the two.
    assert record["best"] == {"elbo": [], "recon": [1], "kl": [], "active_units": [], "mig": [0]}
    runs = {run["name"]: run for run in record["runs"]}
    assert [run["name"] for run in record["runs"]] == ["b4-0", "b4-1", "b4-2", "b1"]
    assert runs["b4-2"]["values"] == {"elbo": -55.0, "recon": 47.0, "kl": 8.0, "active_units": 3.0, "mig": 0.75}
    assert (runs["b4-2"]["group"], runs["b1"]["group"], runs["b4-2"]["seed"], runs["b1"]["n"]) == (0, 1, 2, 20)
    assert runs["b1"]["metrics"][0]["values"] == {"mig": 0.125, "second": 9.0}
    assert "warning" not in done.err
    assert {(call["limit"], call["seed"], *call["metrics"]) for call in measured} == {(20, 7, "mig")}


def test_data_set_is_loaded_once(
    vae: Vae, seeds: list[str], measured: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = data.load
    monkeypatch.setattr(data, "load", lambda *args: loads.append(args) or load(*args))
    assert vae("compare", *seeds).code == 0
    assert len(measured) == 4 and len(loads) == 1
    assert len({id(call["dataset"]) for call in measured}) == 1


def test_compare_csv_has_all_digits(vae: Vae, seeds: list[str], measured: list[dict[str, Any]]) -> None:
    done = vae("compare", *seeds, "--metrics", "mig", "--csv")
    b4, b1 = csv.DictReader(io.StringIO(done.out))
    assert list(b4)[:3] == ["run", "seeds", "model.beta"]
    assert (b4["run"], b4["seeds"], b4["model.beta"]) == ("b4-0 +2", "3", "4")
    assert float(b4["elbo"]) == -48.0 and float(b4["elbo_sd"]) == statistics.stdev([43.0, 46.0, 55.0])
    assert (b1["elbo"], b1["elbo_sd"], b1["mig"]) == ("-50.0", "", "0.125")


def test_compare_in_a_pipe(vae: Vae, seeds: list[str], measured: list[dict[str, Any]]) -> None:
    lines = [line.split("\t") for line in vae("compare", *seeds).out.splitlines()]
    totals = ["elbo", "elbo_sd", "recon", "recon_sd", "kl", "kl_sd", "active_units", "active_units_sd"]
    assert lines[0] == ["run", "seeds", "model.beta", *totals]
    assert lines[1] == ["b4-0 +2", "3", "4", "-48.00", "6.24", "43.00", "3.61", "5.00", "2.65", "2.3", "0.6"]
    assert lines[2] == ["b1", "1", "1", "-50.00", "n/a", "30.00", "n/a", "20.00", "n/a", "3", "n/a"]


def test_terminal_shows_the_best_bold_and_starred(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    one, two = (Run(name, Path(name), None, None, 5, name) for name in ("[/one]", "two"))  # type: ignore[arg-type]
    columns = [Column("elbo", "ELBO", 2, 1), Column("kl", "KL", 2, 0)]
    groups = [
        Group([one], {"model.beta": 4.0}, {"elbo": Summary(-3.0, None), "kl": Summary(None, None)}),
        Group([two, two], {"model.beta": None}, {"elbo": Summary(-2.5, 0.125), "kl": Summary(1.0, 0.0)}),
    ]
    _side_by_side.draw(groups, columns, {"elbo": [1], "kl": []})
    shown = terminal.getvalue()
    assert "\x1b[1m-2.50 +- 0.12 *\x1b[0m" in shown and shown.count("*") == 1
    assert "[/one]" in shown and "two +1" in shown and "-3.00" in shown and "n/a" in shown


def test_wide_tables_wrap_and_lose_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    run = Run("r", Path("r"), None, None, 5, "a-very-long-name-of-a-run-20261120T231500Z")  # type: ignore[arg-type]
    columns = [Column(f"metric-{i}", f"metric-{i}", 3, 1) for i in range(6)]
    values = {c.key: Summary(100.125 + i, 0.5) for i, c in enumerate(columns)}
    _side_by_side.draw([Group([run, run], {}, values)], columns, {c.key: [] for c in columns})
    shown = terminal.getvalue()
    assert all(f"{100.125 + i:.3f} +- 0.500" in shown and f"metric-{i}" in shown for i in range(6))
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines())) <= 60


# ------------------------------------------------------------------------------------------------------------- grouping


def test_models_that_differ_have_their_settings_as_columns(
    vae: Vae, trained: Callable[..., str], measured: list[dict[str, Any]]
) -> None:
    runs = [trained("a"), trained("b", model="vae"), trained("c", 0, "--lr", 0.01), trained("d", steps=3)]
    groups = json.loads(vae("compare", *runs, "--json").out)["groups"]
    keys = {"model.name", "model.beta", "model.beta_norm", "optim.lr", "step", "train.steps"}
    assert {key for g in groups for key in g["settings"]} <= keys and len(groups) == 4
    settings = [[g["settings"][k] for k in ("model.name", "model.beta", "optim.lr", "step")] for g in groups]
    assert settings == [
        ["beta-vae", 4.0, 0.001, 2],
        ["vae", None, 0.001, 2],
        ["beta-vae", 4.0, 0.01, 2],
        ["beta-vae", 4.0, 0.001, 3],
    ]


def test_steps_are_no_setting_of_a_fit_in_closed_form(vae: Vae, trained: Callable[..., str]) -> None:
    run = trained("a", model="vae")
    fitted = vae("train", "-m", "pca", "-d", "squares", "--runs-dir", "runs", "--name", "p", "-q").out.strip()
    found = json.loads(vae("compare", fitted, run, "--json").out)["groups"]
    assert [(g["settings"]["train.steps"], g["settings"].get("optim.lr")) for g in found] == [(None, None), (2, None)]


def test_what_bold_means_is_said_of_one_seed_and_of_several(
    vae: Vae, seeds: list[str], measured: list[dict[str, Any]]
) -> None:
    several = vae("compare", *seeds, "--format", "latex")
    assert "mathbf" in several.out and "bold: the best mean of its column, by more than two" in several.err
    assert "where there is more than one seed" in several.err and "+- the standard deviation over seeds" in several.err
    one = next(run for run in seeds if json.loads(vae("info", run, "--json").out)["config"]["model"]["beta"] == 1)
    alone = vae("compare", seeds[0], one, "--format", "markdown")
    assert "**" in alone.out and "of one seed each, which does not tell how far seeds lie apart" in alone.err


def test_steps_of_one_run_are_told_apart(vae: Vae, trained: Callable[..., str], measured: list[dict[str, Any]]) -> None:
    run = trained("a", 0, "-S", "train.save_every=2", steps=4)
    steps = [f"{run}/checkpoints/step-0000000{step}" for step in (2, 4)]
    groups = json.loads(vae("compare", *steps, "--json").out)["groups"]
    assert [g["settings"] for g in groups] == [{"step": 2}, {"step": 4}]
    assert [g["name"] for g in groups] == steps  # both would be called `a`


def test_same_file_counts_once_and_same_seed_is_warned_of(
    vae: Vae, trained: Callable[..., str], measured: list[dict[str, Any]]
) -> None:
    run = trained("a")
    shutil.copytree(run, "runs/copy", symlinks=True)
    done = vae("compare", run, f"{run}/", os.path.realpath(f"{run}/checkpoints/latest"), "runs/copy", "--json")
    (found,) = json.loads(done.out)["groups"]
    assert found["runs"] == ["a", "copy"] and done.err.count("already in the comparison") == 2
    assert "copy has the seed of a (0)" in done.err


def test_different_images_are_warned_of_and_nothing_is_best(
    vae: Vae, trained: Callable[..., str], measured: list[dict[str, Any]]
) -> None:
    runs = [trained("a"), trained("b", 0, "-S", "data.holdout=0.2")]
    done = vae("compare", *runs, "--metrics", "mig", "--json")
    assert "not comparable" in done.err and "squares val, 51 images (a); squares val, 101 images (b)" in done.err
    record = json.loads(done.out)
    assert record["comparable"] is False and not any(record["best"].values())
    # The first 20 held-out images are the same in both.
    done = vae("compare", *runs, "--metrics", "mig", "--json", "--limit", 20)
    assert "not comparable" not in done.err and json.loads(done.out)["comparable"] is True


def test_different_likelihoods_are_warned_of(
    vae: Vae, trained: Callable[..., str], measured: list[dict[str, Any]]
) -> None:
    runs = [trained("a"), trained("b", 0, "-S", "model.likelihood={name: gaussian, sigma: 1.0}", "--beta", 1)]
    done = vae("compare", *runs, "--metrics", "mig", "--json")
    assert "not comparable between likelihoods: Bernoulli (a); Gaussian, sigma = 1 (b)" in done.err
    best = json.loads(done.out)["best"]
    assert best["elbo"] == best["recon"] == [] and best["mig"] == [0]


def test_a_wrong_path_costs_no_work(vae: Vae, seeds: list[str], measured: list[dict[str, Any]]) -> None:
    done = vae("compare", *seeds, "runs/absent")
    assert (done.code, done.out) == (3, "") and "runs/absent" in done.err and measured == []
    assert vae("compare", *seeds, "--metrics", "migg").code == 2 and measured == []


def test_only_all_forgives_a_missing_library(vae: Vae, seeds: list[str], measured: list[dict[str, Any]]) -> None:
    assert vae("compare", seeds[0], "--metrics", "mig").code == 0
    assert measured.pop()["lenient"] is False
    assert vae("compare", seeds[0], "--metrics", "all").code == 0
    assert measured.pop()["lenient"] is True


def test_numbers_are_those_of_the_analysis(vae: Vae, seeds: list[str]) -> None:
    done = vae("compare", *seeds[:2], "--metrics", "mig", "--json", "--seed", 3, "--split", "all")
    assert done.code == 0, done.err
    runs = json.loads(done.out)["runs"]
    for run, path in zip(runs, seeds, strict=False):
        loaded = checkpoint.load(path, torch.device("cpu"))
        dataset = data.load(loaded.config.data)
        found = analysis.analyze(loaded, dataset, "all", metric_names=["mig"], seed=3)
        assert run["values"] == pytest.approx({
            "elbo": found.stats.elbo,
            "recon": found.stats.recon,
            "kl": found.stats.kl,
            "active_units": found.stats.active,
            "mig": found.results[0].score.value,  # type: ignore[union-attr]
        })  # fmt: skip
        assert run["n"] == 507 and run["metrics"][0]["name"] == "mig"


# ---------------------------------------------------------------------------------------------- several models at once


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """In place of `udr`, a metric of several models that gives 0, 1, ... and keeps what it was given."""
    given: list[list[Any]] = []

    def score_models(codes: list[Any], seed: int) -> list[Score]:
        given.append(codes)
        return [Score({"first": float(i), "second": -1.0}) for i in range(len(codes))]

    load = registry.load
    fake = SimpleNamespace(SEVERAL=True, score_models=score_models)
    monkeypatch.setattr(registry, "load", lambda kind, name: fake if name == "udr" else load(kind, name))
    return given


def test_udr_is_over_the_seeds_of_a_group(
    vae: Vae, seeds: list[str], measured: list[dict[str, Any]], several: list[list[Any]]
) -> None:
    done = vae("compare", *seeds, "--metrics", "mig,udr", "--limit", 20, "--json")
    record = json.loads(done.out)
    assert [g["values"]["udr"] for g in record["groups"]] == [{"mean": 1.0, "sd": 1.0}, {"mean": None, "sd": None}]
    assert [run["values"]["udr"] for run in record["runs"]] == [0, 1, 2, None]
    assert [run["metrics"][1]["values"] for run in record["runs"]][2:] == [{"first": 2.0, "second": -1.0}, None]
    assert "b1: no udr: it needs two or more seeds" in done.err
    assert all(call["metrics"] == ["mig"] for call in measured)
    (given,) = several
    assert [len(c) for c in given] == [20, 20, 20]
    view = data.load(checkpoint.load(seeds[0], torch.device("cpu")).config.data).split("test")
    x_BCHW = view.take(20).x_BCHW
    for code, path in zip(given, (seeds[0], seeds[2], seeds[3]), strict=True):
        with torch.inference_mode():
            mean = checkpoint.load(path, torch.device("cpu")).model.posterior(x_BCHW).mean_BD
        np.testing.assert_allclose(code.mean_ND, mean.numpy(), rtol=1e-5, atol=1e-7)


def test_udr_takes_the_same_sample_of_every_run(
    vae: Vae,
    seeds: list[str],
    measured: list[dict[str, Any]],
    several: list[list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "IMAGES_OF_SEVERAL", 10)
    assert vae("compare", *seeds, "--metrics", "udr", "--split", "all").code == 0
    (given,) = several
    assert [len(c) for c in given] == [10, 10, 10]
    assert all(np.array_equal(c.factors_NK, given[0].factors_NK) for c in given)
    assert np.ptp(given[0].factors_NK[:, 0]) == 2  # a fair sample of the grid, not its first rows


def test_several_without_their_library(vae: Vae, seeds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ConfigError("udr needs scikit-learn", "pip install 'vaecli[analyze]'")

    monkeypatch.setattr(registry.load("metric", "udr"), "score_models", missing)
    names = registry.names
    monkeypatch.setattr(registry, "names", lambda kind: ["udr"] if kind == "metric" else names(kind))  # for `all`
    assert vae("compare", *seeds, "--metrics", "udr").code == 2
    done = vae("compare", *seeds, "--metrics", "all", "--json")
    assert done.code == 0 and "b4-1: no udr: udr needs scikit-learn" in done.err
    assert json.loads(done.out)["runs"][0]["values"]["udr"] is None


def test_udr_is_that_of_the_metric(vae: Vae, seeds: list[str]) -> None:
    pytest.importorskip("sklearn")
    done = vae("compare", seeds[0], seeds[2], seeds[3], "--metrics", "udr", "--split", "all", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    made = []
    for path in (seeds[0], seeds[2], seeds[3]):
        loaded = checkpoint.load(path, torch.device("cpu"))
        made.append(codes.encode(loaded, data.load(loaded.config.data).split("all")))
    expected = [score.value for score in registry.load("metric", "udr").score_models(made, 0)]
    assert [run["values"]["udr"] for run in record["runs"]] == pytest.approx(expected, rel=1e-9)
    assert record["groups"][0]["values"]["udr"]["sd"] == pytest.approx(statistics.stdev(expected))


def test_a_table_for_a_paper() -> None:
    from vaecli.report import comparison

    made = comparison.latex(["run", "ELBO (nats)"], [["beta_norm 4 & 5%", r"$\mathbf{-3.10 \pm 0.20}$"]])
    assert made[0] == r"\begin{tabular}{lr}" and made[-1] == r"\end{tabular}"
    assert made[4] == r"beta\_norm 4 \& 5\% & $\mathbf{-3.10 \pm 0.20}$ \\"
    made = comparison.markdown(["run", "KL"], [["a|b", "1.0 ± 0.1"]])
    assert made == ["| run | KL |", "|---|---:|", "| a\\|b | 1.0 ± 0.1 |"]


def test_a_plot_has_seeds_means_and_deviations_where_they_are() -> None:
    import xml.etree.ElementTree as ElementTree

    from vaecli.report import comparison

    panel = comparison.Panel("KL <nats>", [[1.0, 3.0], [8.0]], [2.0, 8.0], [1.4142, None])
    root = ElementTree.fromstring(comparison.svg([panel], "beta", [1.0, 4.0], ["beta 1", "beta 4"]))
    space = "{http://www.w3.org/2000/svg}"
    assert [t.text for t in root.iter(f"{space}text") if t.get("class") == "head"] == ["KL <nats>"]
    groups = [g for g in root.iter(f"{space}g") if "k1" in g.get("class", "")]
    seeds = sorted((float(c.get("cx", 0)), float(c.get("cy", 0))) for c in groups[0])
    assert len(seeds) == 3 and seeds[0][0] == seeds[1][0] < seeds[2][0]
    top, low, high = seeds[2][1], *sorted((seeds[0][1], seeds[1][1]))
    assert (high - low) / (low - top) == pytest.approx((3 - 1) / (8 - 3), rel=0.02)
    named = comparison.svg([panel], "run", None, ["vae", "pca"])
    assert "vae" in named and "pca" in named


def test_what_rows_are_called() -> None:
    vae_, beta, tc = {"model.name": "vae"}, {"model.name": "beta-vae", "model.beta": 4.0}, {"model.name": "beta-tcvae"}
    both = {"model.free_bits": 0.0, "model.beta": None}  # the same for all that have it tells nothing
    told = labels([{**both, **vae_}, {**both, **beta}, {**tc, "model.beta": 6.0, "model.free_bits": None}])
    assert told == ["vae", "beta-vae, beta 4", "beta-tcvae, beta 6"]
    # But where nothing else tells them apart it does.
    assert labels([{"model.c": 25.0}, {"model.c": None}]) == ["c 25", ""]
    assert labels([{"optim.lr": 1e-3}, {"optim.lr": 1e-4}]) == ["lr 0.001", "lr 0.0001"]
