"""The leak table and the order of values in pixels, as the diagnosis and the report show them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result

from vaecli import data
from vaecli.analysis import analyze as analysis
from vaecli.analysis import diagnosis, leak, likelihood, pixel_order, probes
from vaecli.analysis.diagnosis import Verdict
from vaecli.data import dsprites, xysquares

SIZES = {"size": 3, "posX": 13, "posY": 13}  # of squares


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws for what is not looked at here."""
    monkeypatch.setattr(analysis, "TESTED", 200)
    monkeypatch.setattr(analysis, "COMPARED", 100)
    monkeypatch.setattr(probes, "DECODES", 500)
    monkeypatch.setattr(likelihood, "GLANCE", (10, 20))


def test_most_and_next() -> None:
    assert leak.spill([0.1, 2.0, 0.5]) == (1, 0.25)
    assert leak.spill([0.0, 0.0]) == (0, None)


def test_factors_leak_nothing(vae: Callable[..., Result]) -> None:
    """The factors themselves as codes: each varies with its own alone, by the variance of so many even steps of [0, 1].
    Of groups of 20 out of s values, with replacement where they are fewer, 19 / 20 of it or, without, that of the
    values there are."""
    assert vae("train", "--data", "squares", "--model", "factors", "--runs-dir", "runs", "--name", "f", "-q").code == 0
    done = vae("analyze", "runs/f", "--diagnosis", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["diagnosis"]["leak"]
    assert found["factors"] == list(SIZES) and (found["groups"], found["size"]) == (50, 20)
    for d, (factor, size) in enumerate(SIZES.items()):
        variance_K = found["variance"][f"z{d}"]
        assert leak.spill(variance_K) == (d, 0.0), factor
        assert found["next"][f"z{d}"] == 0.0
        even = (size**2 - 1) / 12 / (size - 1) ** 2
        assert variance_K[d] == pytest.approx(0.95 * even, rel=0.1)
    made = vae("report", "runs/f", "--metrics", "none", "-o", "r.html")
    assert made.code == 0, made.err
    page = Path("r.html").read_text()
    assert 'id="leak"' in page and "Variance while one factor varies" in page


def test_leak_of_codes_in_a_file(vae: Callable[..., Result]) -> None:
    """z0 is a + b / 2, so that it moves with b a quarter as much; z1 is noise of no size."""
    a, b = np.meshgrid(np.arange(6), np.arange(6), indexing="ij")
    factors = np.stack([a.ravel(), b.ravel()], axis=1)
    codes = np.stack([factors[:, 0] + factors[:, 1] / 2, np.zeros(36)], axis=1)
    np.savez("c.npz", codes=codes, factors=factors, factor_names=np.array(["a", "b"]))
    done = vae("analyze", "c.npz", "--diagnosis", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["diagnosis"]["leak"]
    most, next_ = leak.spill(found["variance"]["z0"])
    assert most == 0 and next_ == pytest.approx(0.25, rel=0.15)
    assert found["variance"]["z1"] == [0.0, 0.0]
    table = vae("analyze", "c.npz", "--diagnosis").err
    assert "latent\ta\tb\tmost by\tnext" in table and "z1\t0\t0\tn/a\tn/a" in table


def test_there_is_no_leak_without_images_that_differ_in_one_factor() -> None:
    alone = torch.tensor([[0, 0], [1, 1], [2, 2]])
    assert leak.table(lambda index_B: index_B[:, None].float(), alone, ["a", "b"], ["z0"]) is None
    unknown = torch.tensor([[0, 0], [0, 1], [1, 0], [-1, 1]])
    assert leak.table(lambda index_B: index_B[:, None].float(), unknown, ["a", "b"], ["z0"]) is None
    one = torch.tensor([[0, 0], [0, 1]])
    assert leak.table(lambda index_B: index_B[:, None].float(), one, ["a", "b"], ["z0"]) is None


def test_ordered_codes_are_numbers(vae: Callable[..., Result]) -> None:
    """Metrics and leak take the ranks of qlae's values, not the indices of a codebook."""
    args = ["--data", "squares", "--steps", 3, "--runs-dir", "runs", "-q"]
    net = "model.net={name: mlp, hidden: [8]}"
    assert vae("train", "--model", "qlae", "-S", net, "--latent-dim", 3, "--name", "q", *args).code == 0
    record = json.loads(vae("analyze", "runs/q", "--metrics", "mig", "--diagnosis", "--json").out)
    assert 0 <= record["metrics"][0]["values"]["mig"] <= 1
    assert list(record["diagnosis"]["leak"]["variance"]) == ["z0", "z1", "z2"]
    tiny = ["-S", "model.net={name: spatial, width: 8}", "-S", "model.codes=8", "-S", "model.code_dim=4"]
    done = vae("train", "--model", "vq-vae", "--name", "vq", *args, *tiny)
    assert done.code == 0, done.err
    record = json.loads(vae("analyze", "runs/vq", "--metrics", "mig", "--diagnosis", "--json").out)
    assert record["metrics"][0]["problem"] == "the indices of a codebook are no numbers"
    assert record["diagnosis"]["leak"] is None


# -------------------------------------------------------------------------------------------------- order in the pixels


def test_a_verdict_says_that_no_beta_will_help() -> None:
    found = Verdict("healthy", ["All is well."])
    flat = [pixel_order.PixelOrder("x", 8, 10.0, 10.0), pixel_order.PixelOrder("y", 8, 9.99, 10.0)]
    said = diagnosis.with_pixel_order(found, pixel_order.record(flat))
    assert said.name == "healthy" and said.sentences[0] == "All is well."
    assert said.sentences[1].startswith("In pixels, neighbouring values of every factor are as far apart")
    assert said.sentences[1].endswith("no beta will line them up.")
    steep = pixel_order.record([pixel_order.PixelOrder("x", 8, 3.0, 10.0)])
    assert diagnosis.with_pixel_order(found, steep) == found == diagnosis.with_pixel_order(found, None)


@pytest.mark.parametrize(("spacing", "hopeless"), [(8, True), (1, False)])
def test_diagnosis_of_xysquares(spacing: int, hopeless: bool, vae: Callable[..., Result]) -> None:
    net = ["-S", "model.net={name: mlp, hidden: [2]}", "--latent-dim", 2, "-S", f"data.spacing={spacing}"]
    args = ["--data", "xysquares", "--model", "vae", *net, "--batch-size", 4, "-S", "train.eval_images=8"]
    done = vae("train", *args, "--steps", 2, "--runs-dir", "runs", "--name", "x", "-q")
    assert done.code == 0, done.err
    done = vae("analyze", "runs/x", "--diagnosis", "--limit", 20, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    order = record["diagnosis"]["pixel_order"]
    assert len(order["factors"]) == 6 and len(order["without"]) == (6 if hopeless else 0)
    assert any("no beta will line them up" in s for s in record["verdict"]["sentences"]) is hopeless


@pytest.mark.slow
def test_all_of_dsprites_has_order_in_its_pixels() -> None:
    found = pixel_order.measure(data.load(dsprites.Config(name="dsprites")), lines=16)
    assert found is not None and pixel_order.record(found)["without"] == []
    assert "every factor are nearer" in str(pixel_order.sentence(found))
    order = {f.factor: f.order for f in found}
    assert order["posX"] > 0.8 and order["posY"] > 0.8 and order["orientation"] > 0.3  # type: ignore[operator]
    squares = data.load(xysquares.Config(name="xysquares"))
    lost = pixel_order.measure(squares, lines=4)
    assert lost is not None and len(pixel_order.without(lost)) == 6
