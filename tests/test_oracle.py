"""The classifier that images are judged by: what it learns, what it says of itself, and its cache."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vaecli.analysis import oracle as oracles
from vaecli.analysis.oracle import Classifier, Oracle, oracle
from vaecli.data.base import DataConfig, Dataset, assemble, store
from vaecli.errors import ConfigError, MachineError

N = 240


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(oracles, "LEAST_STEPS", 40)
    monkeypatch.setattr(oracles, "SEEN", 40 * oracles.BATCH)


def coloured(n: int = N, side: int = 16, test: int = 0, known: bool = True, seed: int = 0) -> Dataset:
    """Noise with one of four quarters lit (`place`), and a label that has nothing to do with the image (`noise`)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (n, 3, side, side)).astype(np.uint8)
    place = rng.integers(0, 4, n)
    half = side // 2
    for i, quarter in enumerate(place):
        top, left = half * (quarter // 2), half * (quarter % 2)
        images[i, :, top : top + half, left : left + half] += 190
    labels = torch.from_numpy(np.stack([place, rng.integers(0, 2, n)], axis=1))
    return assemble(
        DataConfig(name="coloured"),
        store(images)[0],
        labels_NK=labels if known else None,
        factor_names=("place", "noise") if known else (),
        factor_sizes=(4, 2) if known else (),
        binary=False,
        source={"kind": "test", "sha256": f"coloured {n} {side} {seed}"},
        test=test,
    )


def files() -> list[Path]:
    from vaecli.paths import cache_dir

    return sorted((cache_dir() / "oracles").glob("*"))


def same(a: Oracle, b: Oracle) -> bool:
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return a.digest == b.digest and a.accuracy == b.accuracy and torch.equal(a.features(x), b.features(x))


def test_learns_what_can_be_learned_and_says_so() -> None:
    data = coloured(test=80)
    found = oracle(data)
    assert found.accuracy["place"] == 1.0
    assert 0.3 < found.accuracy["noise"] < 0.7  # a coin, of which nothing can be known
    assert (found.trained_on, found.held_out) == (N - 80, 80)
    test_N = torch.arange(N - 80, N)
    assert data.labels is not None
    predicted_NK = found.predict(data.images.gather(test_N))
    assert torch.equal(predicted_NK[:, 0], data.labels[test_N, 0])
    right = (predicted_NK[:, 1] == data.labels[test_N, 1]).double().mean()
    assert found.accuracy["noise"] == pytest.approx(float(right), abs=1e-12)
    commonest = int(torch.bincount(data.labels[test_N, 0]).max())
    assert found.chance["place"] == pytest.approx(commonest / 80, abs=1e-12)
    assert found.text().startswith("classifier trained on 160 images; right on 80 others: place 100.0%, noise ")
    assert found.record()["digest"] == found.digest


def test_features_are_what_the_heads_read() -> None:
    found = oracle(coloured())
    x = torch.rand(6, 3, 16, 16)
    features = found.features(x)
    assert features.shape == (6, oracles.FEATURES)
    logits = found.net.heads[0](features)
    assert torch.equal(logits.argmax(dim=1), found.predict(x)[:, 0])
    # Of each image by itself, and of the image that would be shown.
    torch.testing.assert_close(found.features(x[:1]), features[:1], rtol=1e-5, atol=1e-5)
    assert torch.equal(found.features(2 * x - 0.5), found.features((2 * x - 0.5).clamp(0, 1)))


def test_cache_hit_equals_fresh(capfd: pytest.CaptureFixture[str]) -> None:
    first = oracle(coloured())
    assert "training a classifier of place, noise" in capfd.readouterr().err
    (file,) = files()
    again = oracle(coloured())
    assert same(first, again) and capfd.readouterr().err == ""
    file.unlink()
    assert same(first, oracle(coloured()))  # trained once more: by the seed alone


def test_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    oracle(coloured())
    assert torch.equal(torch.rand(4), expected)


def test_other_data_or_seed_is_another_oracle() -> None:
    made = [oracle(coloured()), oracle(coloured(seed=1)), oracle(coloured(), seed=1)]
    assert len({one.digest for one in made}) == len(files()) == 3
    other = coloured()
    assert other.labels is not None
    other.labels[:, 1] = 1 - other.labels[:, 1]
    oracle(other)
    assert len(files()) == 4


def test_options_of_a_run_do_not_matter() -> None:
    whole, part = coloured(), coloured()
    part.splits["train"] = part.splits["train"][:30]
    part.labelled = 10
    assert same(oracle(whole), oracle(part)) and len(files()) == 1


@pytest.mark.parametrize("damage", ["bit", "cut", "text", "accuracy", "steps", "weights"])
def test_damaged_cache_is_trained_again(damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    first = oracle(coloured())
    (file,) = files()
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[-100] ^= 1
    elif damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "text":
        content = bytearray(b"not a classifier")
    elif damage == "accuracy":
        at = content.index(b'\\"place\\": ') + len(b'\\"place\\": ')
        content[at : at + 3] = b"0.5"
    if damage in ("bit", "cut", "text", "accuracy"):
        file.write_bytes(content)
    else:
        tensors = load_file(file)
        about = json.dumps({"chance": {}, "right": {}, "steps": 7 if damage == "steps" else 40})
        if damage == "weights":
            tensors.pop("heads.0.weight")
        save_file(tensors, file, metadata={"about": about, "sha256": oracles._checksum(tensors, about)})
    capfd.readouterr()
    assert same(first, oracle(coloured()))
    assert "training a classifier" in capfd.readouterr().err
    assert same(first, oracle(coloured())) and capfd.readouterr().err == ""


def test_may_be_asked_for_in_inference_mode() -> None:
    with torch.inference_mode():
        assert oracle(coloured()).accuracy["place"] == 1.0


def test_unknown_labels_are_left_out() -> None:
    data = coloured(test=60)
    assert data.labels is not None
    data.labels[:100] = -1
    data.labels[:, 1] = -1
    data.labels[120, 1] = 0
    found = oracle(data)
    assert found.trained_on == N - 60 - 100
    assert found.accuracy == {"place": 1.0}


def test_refuses_what_it_cannot_learn_from() -> None:
    with pytest.raises(ConfigError, match="coloured: the images have no labels"):
        oracle(coloured(known=False))
    with pytest.raises(ConfigError, match="12 labelled images are too few"):
        oracle(coloured(n=12))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 33, 17), (1, 64, 64), (3, 128, 100)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    net = Classifier(shape, (3, 1)).eval()
    x = torch.rand(2, *shape, requires_grad=True)
    logits = net(x)
    assert [tuple(part.shape) for part in logits] == [(2, 3), (2, 1)]
    # Every pixel is looked at, those of the last row and column too.
    net.convolutions(x).sum().backward()
    assert x.grad is not None and bool((x.grad[..., -1, :] != 0).any()) and bool((x.grad[..., -1] != 0).any())


@pytest.mark.long
def test_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    from vaecli.data import mnist

    monkeypatch.setattr(oracles, "SEEN", 180_000)
    try:
        data = mnist.load(mnist.Config(name="mnist"))
    except MachineError:
        pytest.skip("MNIST is not here")
    assert oracle(data).accuracy["digit"] >= 0.99
