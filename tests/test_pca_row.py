"""The row of PCA beside every z_diff: of the same images, by the same protocol, from the cache the second time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Result

from vaecli import data, registry
from vaecli.analysis import metrics, pca_row
from vaecli.analysis.metrics import Result as MetricResult
from vaecli.analysis.metrics import Score, beta_vae
from vaecli.data import squares


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))


def results(*names: str) -> list[MetricResult]:
    return [MetricResult(name, Score({"value": 0.5})) for name in names]


def test_the_row_is_that_of_whitened_components() -> None:
    """Against an eigendecomposition of its own, score and all; near-equal eigenvalues
    leave their axes free to turn."""
    dataset = data.load(squares.Config(name="squares"))
    view = dataset.split("all")
    found = pca_row.beside(results("beta-vae-converged", "mig", "dci"), view, len(view), 3)
    assert [r.name for r in found] == ["beta-vae-converged", "mig", "dci"] and found[2].pca is None
    x_NP = dataset.images.gather(torch.arange(507)).flatten(1).double().numpy()
    centred = x_NP - x_NP.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / 507)
    z_ND = centred @ vectors[:, ::-1][:, :10] / np.sqrt(values[::-1][:10])
    assert dataset.labels is not None
    for result in found[:2]:
        expected = registry.load("metric", result.name).score(codes_of(z_ND, dataset.labels.numpy()), 3).values
        assert result.pca is not None and result.pca.keys() == expected.keys()
        for key, value in expected.items():
            assert result.pca[key] == pytest.approx(value, abs=0.02)
    assert found[0].pca is not None and found[0].pca["accuracy"] > 0.5


def codes_of(z_ND: Any, labels_NK: Any) -> Any:
    from vaecli.analysis import codes

    return codes.make(z_ND, None, labels_NK, ["size", "posX", "posY"])


def test_it_is_kept_by_images_seed_and_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    view = data.load(squares.Config(name="squares")).split("all")
    calls: list[int] = []
    monkeypatch.setattr(registry.load("metric", "beta-vae"), "score", lambda codes, seed: counted(calls, codes, seed))
    first = pca_row.beside(results("beta-vae"), view, 507, 0)
    assert pca_row.beside(results("beta-vae"), view, 507, 0) == first and calls == [507]
    pca_row.beside(results("beta-vae"), view, 507, 1)
    pca_row.beside(results("beta-vae"), view, 300, 0)
    assert calls == [507, 507, 300]
    for file in (Path("cache") / "pca").glob("*.json"):
        file.write_text('{"accuracy": "high"}')  # damaged: computed anew
    assert pca_row.beside(results("beta-vae"), view, 507, 0) == first and len(calls) == 4


def counted(calls: list[int], codes: Any, seed: int) -> Score:
    calls.append(len(codes))
    return Score({"accuracy": 0.25 + len(codes) / 1e4 + seed})


def test_there_is_none_where_it_says_nothing() -> None:
    view = data.load(squares.Config(name="squares")).split("all")
    for names in (["mig"], ["dci"], []):  # no z_diff is printed
        assert all(r.pca is None for r in pca_row.beside(results(*names), view, 507, 0))
    failed = [MetricResult("beta-vae", None, problem="no factors")]
    assert pca_row.beside(failed, view, 507, 0) == failed


def test_commands_print_it(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--protocol higgins`: PCA and MIG beside it, and over seeds the better half of all their scores."""
    monkeypatch.setattr(beta_vae, "STEPS", 300)
    monkeypatch.setattr(beta_vae, "TRAIN", 500)
    monkeypatch.setattr(beta_vae, "TEST", 250)
    for seed in (0, 1):
        args = ["--model", "beta-vae", *TINY, "--steps", 5, "--runs-dir", "runs", "--name", f"s{seed}", "--seed", seed]
        assert vae("train", *args, "-q").code == 0
    done = vae("analyze", "runs/s0", "--split", "all", "--protocol", "higgins")
    assert done.code == 0, done.err
    header, accuracy, half, mig = (line.split("\t") for line in done.out.splitlines())
    assert header[-1] == "PCA" and accuracy[0] == "beta-vae-higgins.accuracy" and mig[0] == "mig"
    assert float(accuracy[-1]) > 0.3 and float(half[-1]) >= float(accuracy[-1]) and float(mig[-1]) >= 0
    done = vae("compare", "runs/s0", "runs/s1", "--split", "all", "--protocol", "higgins", "--json")
    assert done.code == 0, done.err
    assert "PCA of the same images (squares all, 507 images), without training: beta-vae-higgins 0." in done.err
    record = json.loads(done.out)
    scores = [s for run in record["runs"] for m in run["metrics"] for s in m["settings"].get("accuracies", [])]
    found = record["groups"][0]["values"]
    assert len(scores) == 6 and found["beta-vae-higgins"]["mean"] == pytest.approx(np.mean(scores))
    best = sorted(scores)[3:]
    assert found["beta-vae-higgins-best-half"] == {
        "mean": pytest.approx(np.mean(best)), "sd": pytest.approx(np.std(best, ddof=1)),
    }  # fmt: skip
    table = vae("compare", "runs/s0", "runs/s1", "--split", "all", "--protocol", "higgins").out
    assert "beta-vae-higgins\tbeta-vae-higgins_sd\tbeta-vae-higgins-best-half" in table
    assert metrics.Z_DIFF == ("beta-vae", "beta-vae-higgins", "beta-vae-converged")
    page = vae("report", "runs/s0", "--split", "all", "--metrics", "none", "--protocol", "dlib", "-o", "r.html")
    assert page.code == 0, page.err
    assert "PCA: ten principal components of the same images" in Path("r.html").read_text()
    assert vae("analyze", "runs/s0", "--protocol", "higins").code == 2
