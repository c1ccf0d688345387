"""Grey images thrown as coins: against the same hash in Python's whole numbers, and by the statistics of a throw."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vaecli import data
from vaecli.data import mnist
from vaecli.data.base import Coins, DataConfig, Dataset, assemble

MASK = 2**64 - 1


def mixed(x: int) -> int:
    """SplitMix64's finalizer of x times the golden ratio's odd number."""
    x = x * 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def grey(n: int = 40, side: int = 5) -> Tensor:
    images = torch.randint(20, 236, (n, 1, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = 0, 255
    return images


def dataset(n: int = 40) -> Dataset:
    config = DataConfig(name="coins", holdout=10)
    labels = torch.arange(n)[:, None]
    return assemble(
        config, Coins(grey(n)), labels_NK=labels, factor_names=("which",), factor_sizes=(n,), binary=True, source={}
    )


def test_a_throw_by_hand() -> None:
    images, n = grey(), 40
    for index in (3, 3 + n * 7, 39 + n * 123_456_789):
        thrown = Coins(images).gather(torch.tensor([index]))[0].flatten()
        expected = [
            float((mixed(index * 25 + p) & (2**24 - 1)) * 255 < int(byte) * 2**24)
            for p, byte in enumerate(images[index % n].flatten())
        ]
        assert thrown.tolist() == expected


def test_white_as_often_as_grey_says_and_independently() -> None:
    images = grey()
    throws = 4000
    index = torch.arange(throws) * 40 + 5
    x = Coins(images).gather(index).flatten(1).double()
    p = images[5].flatten().double() / 255
    deviation = (x.mean(dim=0) - p) / (p * (1 - p) / throws).sqrt().clamp(min=1e-9)
    assert float(deviation.abs().max()) < 4.5
    assert x[:, 0].sum() == 0 and x[:, 1].sum() == throws
    standard = (x - x.mean(dim=0))[:, 2:]
    correlation = torch.corrcoef(standard.T) - torch.eye(23)
    assert float(correlation.abs().max()) < 4.5 / throws**0.5
    over_time = (standard[1:] * standard[:-1]).mean(dim=0) / standard.square().mean(dim=0)
    assert float(over_time.abs().max()) < 4.5 / throws**0.5


def test_training_throws_anew_and_held_out_images_stay() -> None:
    found = dataset()
    stream = found.stream(seed=0, batch_size=30)
    first, second = stream.batch(0), stream.batch(1)
    order = [batch.index_B.argsort() for batch in (first, second)]
    assert torch.equal(first.index_B[order[0]], second.index_B[order[1]])  # the same images, each with its label
    assert torch.equal(first.labels_BK, first.index_B[:, None])
    assert not torch.equal(first.x_BCHW[order[0]], second.x_BCHW[order[1]])
    again, other = found.stream(0, 30).batch(1), found.stream(1, 30).batch(1)
    assert torch.equal(again.x_BCHW, second.x_BCHW)  # a function of seed and step
    assert not torch.equal(other.x_BCHW[other.index_B.argsort()], second.x_BCHW[order[1]])
    val = found.split("val")
    assert torch.equal(val.take(10).x_BCHW, torch.cat([batch.x_BCHW for batch in val.batches(3)]))


@pytest.fixture
def idx(monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST of 60 and 10 images."""

    def content(file: Any, *_: Any) -> bytes:
        n = 60 if file.name.startswith("train") else 10
        return bytes(16) + grey(n, 28).numpy().tobytes() if "images" in file.name else bytes(8 + n)

    monkeypatch.setattr(mnist._idx, "TRAIN", 60)
    monkeypatch.setattr(mnist._idx, "TEST", 10)
    monkeypatch.setattr(mnist._idx, "_content", content)


def test_published_test_images_can_be_trained_on(idx: None) -> None:
    joined = data.load(mnist.Config(name="mnist", holdout=0, join=True))
    assert {name: len(index) for name, index in joined.splits.items()} == {"train": 70}
    apart = data.load(mnist.Config(name="mnist", holdout=0))
    assert {name: len(index) for name, index in apart.splits.items()} == {"train": 60, "test": 10}
    assert torch.equal(joined.batch(torch.arange(70)).x_BCHW, apart.batch(torch.arange(70)).x_BCHW)


def test_static_is_what_dynamic_shows_of_held_out_images(idx: None) -> None:
    static, dynamic, plain = (
        data.load(mnist.Config(name="mnist", holdout=10, binarize=how)) for how in ("static", "dynamic", False)
    )
    for split in ("val", "test", "train"):
        x = static.split(split).take(100).x_BCHW
        assert torch.equal(x, dynamic.split(split).take(100).x_BCHW)
        assert set(x.unique().tolist()) == {0.0, 1.0}
    assert static.info.binary and dynamic.info.binary and not plain.info.binary
    a, b = (static.stream(0, 8).batch(step) for step in (0, 0))
    assert torch.equal(a.x_BCHW, b.x_BCHW)
    assert torch.equal(a.x_BCHW, static.batch(a.index_B).x_BCHW)
    drawn = dynamic.stream(0, 8).batch(0)
    assert torch.equal(drawn.index_B, a.index_B) and not torch.equal(drawn.x_BCHW, a.x_BCHW)
    assert np.allclose(plain.batch(a.index_B).x_BCHW[:, 0, 0, 1], 1.0)
    assert dynamic.info.source["binarize"] == "dynamic" and "binarize" not in plain.info.source
