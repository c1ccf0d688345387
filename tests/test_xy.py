"""Data sets that are drawn or come with a library: the published hashes, images by hand, and the order pixels see."""

import hashlib
import sys

import numpy as np
import pytest
import torch

from vaecli import data, registry
from vaecli.analysis import pixel_order
from vaecli.data import _drawn, base, digits, dsprites, squares, xyobject, xysquares
from vaecli.data.base import grid_index, grid_labels
from vaecli.errors import ConfigError


@pytest.fixture(scope="module")
def objects():
    return data.load(xyobject.Config(name="xyobject"))


def frames(images, index_B):
    """uint8 (B, H, W, C), as the published sets store them; from the table itself, without a float in between."""
    return images.table[images.rows[index_B].long()].permute(0, 2, 3, 1).contiguous().numpy()


def xy(spacing=8, **options):
    return data.load(xysquares.Config(name="xysquares", spacing=spacing, **options))


# ---- xyobject


@pytest.mark.slow
def test_xyobject_is_the_published_set_bit_for_bit(objects):
    digest, total = hashlib.sha256(), 0
    for part in torch.arange(75_000).split(2_500):
        images = frames(objects.images, part)
        digest.update(images.data)
        total += int(images.sum(dtype=np.int64))
    assert total == 2_307_487_500
    assert digest.hexdigest() == "5029c29b4b0c8b2b08f3f365b09094416b5998a09383936a066a7c2f329eb6cb"


def test_xyobject_facts(objects):
    info = objects.info
    assert (info.shape, info.total, info.binary) == ((3, 64, 64), 75_000, False)
    assert info.factor_names == ("x", "y", "scale", "intensity", "hue")
    assert info.factor_sizes == (25, 25, 5, 4, 6)
    assert info.value_names == ((), (), (), (), ("red", "yellow", "green", "cyan", "blue", "magenta"))
    assert objects.varying_factors == 5
    assert objects.images.nbytes < 70e6  # 0.9 GB as bytes
    assert (len(objects.split("train")), len(objects.split("val"))) == (67_500, 7_500)


@pytest.mark.parametrize(
    ("labels", "left", "top", "side", "colour"),
    [
        ((0, 0, 4, 3, 0), 0, 0, 15, (255, 0, 0)),
        ((24, 24, 4, 3, 5), 48, 48, 15, (255, 0, 255)),
        ((0, 24, 0, 0, 1), 4, 52, 7, (63, 63, 0)),
        ((3, 1, 1, 1, 2), 9, 5, 9, (0, 127, 0)),
        ((10, 2, 2, 2, 3), 22, 6, 11, (0, 191, 191)),
        ((1, 2, 3, 3, 4), 3, 5, 13, (0, 0, 255)),
    ],
)
def test_xyobject_by_hand(objects, labels, left, top, side, colour):
    batch = objects.batch(grid_index(torch.tensor([labels]), (25, 25, 5, 4, 6)))
    expected = torch.zeros(3, 64, 64)
    expected[:, top : top + side, left : left + side] = torch.tensor(colour).float()[:, None, None] / 255
    assert torch.equal(batch.x_BCHW[0], expected)
    assert batch.truth_BK.tolist() == [list(labels)]


# ---- xysquares


def test_xysquares_are_the_published_set():
    images = frames(xy().images, torch.from_numpy(np.random.default_rng(0).integers(0, 8**6, 2000)))
    expected = "1576ee40457d379414c4713c19835b67d23a0719686ea352ba526074dc15f4f2"
    assert hashlib.sha256(images.data).hexdigest() == expected


@pytest.mark.parametrize(("spacing", "margin"), [(1, 24), (2, 21), (7, 3), (8, 0)])
def test_xysquares_by_hand(spacing, margin):
    dataset = xy(spacing)
    labels = torch.tensor([[0, 7, 3, 4, 6, 1], [7, 0, 0, 0, 7, 7]])
    batch = dataset.batch(grid_index(labels, (8,) * 6))
    assert torch.equal(batch.truth_BK, labels)
    for image, (x_r, y_r, x_g, y_g, x_b, y_b) in zip(batch.x_BCHW, labels.tolist(), strict=True):
        expected = torch.zeros(3, 64, 64)
        for channel, (x, y) in enumerate([(x_r, y_r), (x_g, y_g), (x_b, y_b)]):
            left, top = margin + spacing * x, margin + spacing * y
            expected[channel, top : top + 8, left : left + 8] = 1.0
        assert torch.equal(image, expected)
    info = dataset.info
    assert (info.shape, info.total, info.binary) == ((3, 64, 64), 262_144, True)
    assert info.factor_names == ("x_R", "y_R", "x_G", "y_G", "x_B", "y_B")
    assert info.factor_sizes == (8,) * 6
    assert dataset.varying_factors == 6


def test_xysquares_of_another_spacing_are_other_images():
    assert len({xy(spacing).info.source["sha256"] for spacing in (1, 4, 8)}) == 3
    assert xy().info.source == xy(holdout=0).info.source


@pytest.mark.parametrize("value", ["0", "9", "2.5"])
def test_xysquares_spacing_is_checked(vae, value):
    done = vae("train", "--data", "xysquares", "-S", f"data.spacing={value}", "--dry-run")
    assert done.code == 2
    assert "data.spacing" in done.err


# ---- the store


def test_channels_gather_what_they_stand_for():
    random = np.random.default_rng(0)
    table = torch.from_numpy(random.integers(0, 256, (5, 4, 6), dtype=np.uint8))
    rows = torch.from_numpy(random.integers(0, 5, (9, 3), dtype=np.int32))
    images = _drawn.Channels(table, rows)
    index = torch.tensor([8, 0, 0, 3])
    got = images.gather(index)
    assert got.dtype == torch.float32
    for x_CHW, i in zip(got, index.tolist(), strict=True):
        for c in range(3):
            assert torch.equal(x_CHW[c], table[int(rows[i, c])].float() / 255)
    assert (len(images), images.shape, images.nbytes) == (9, (3, 4, 6), 5 * 24 + 9 * 3 * 4)
    assert torch.equal(images.to("cpu").gather(index), got)
    other = _drawn.Channels(table, rows.flip(0))
    assert images.sha256 != other.sha256


# ---- digits


def test_digits_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.datasets")
    dataset = data.load(digits.Config(name="digits", holdout=0))
    published = sklearn.load_digits()
    batch = dataset.split("all").take(2000)
    assert torch.equal(batch.x_BCHW[:, 0].double() * 16, torch.from_numpy(published.images))
    assert batch.truth_BK[:, 0].tolist() == published.target.tolist()
    assert (float(batch.x_BCHW.min()), float(batch.x_BCHW.max())) == (0.0, 1.0)
    info = dataset.info
    assert (info.shape, info.total, info.binary) == ((1, 8, 8), 1797, False)
    assert (info.factor_names, info.factor_sizes) == (("digit",), (10,))
    assert info.value_names == (("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match="scikit-learn") as caught:
        data.load(digits.Config(name="digits"))
    assert caught.value.hint == 'pip install "vaecli[analyze]"'


def test_they_are_listed():
    assert {"xyobject", "xysquares", "digits"} <= set(registry.names("dataset"))
    assert "drawn" not in registry.names("dataset")


# ---- whether pixels know the order


def by_name(dataset, **options):
    return {found.factor: found for found in pixel_order.measure(dataset, **options)}


@pytest.mark.parametrize("spacing", [1, 4, 7, 8])
def test_pixel_order_of_xysquares(spacing):
    # A square moved by d places shares max(0, 8 - s d) columns of 8 pixels with itself; each other pixel differs twice.
    far = {d: 2 * 8 * min(8, spacing * d) for d in range(1, 8)}
    other = sum((8 - d) * far[d] for d in far) / 28
    for found in by_name(xy(spacing), lines=3).values():
        assert found.step == pytest.approx(far[1], rel=1e-9)
        assert found.other == pytest.approx(other, rel=1e-9)
        assert found.order == pytest.approx((1 - far[1] / other) / (1 - 3 / 9), abs=1e-9)
    assert (far[1] == other) == (spacing == 8)


def test_pixel_order_of_squares_by_hand():
    found = by_name(data.load(squares.Config(name="squares")))
    # Sides 2, 3, 4 grow by 5 and 7 pixels.
    assert (found["size"].step, found["size"].other) == (pytest.approx(6), pytest.approx(8))
    assert found["size"].ratio == pytest.approx(0.75)
    assert found["size"].order == pytest.approx(1.0)  # that of squared distances which add up
    # All 39 lines are fewer than those wanted, so the means over sides are exact.
    apart = [abs(a - b) for a in range(13) for b in range(13) if a != b]
    step = np.mean([2 * side for side in (2, 3, 4)])
    other = np.mean([[2 * side * min(side, d) for d in apart] for side in (2, 3, 4)])
    for name in ("posX", "posY"):
        assert (found[name].step, found[name].other) == (pytest.approx(step), pytest.approx(other))


def test_pixel_order_of_brightness():
    # Squared distances grow with the square of the steps between, which is 5 on average over the pairs of 5 values.
    value = grid_labels((5, 4)).double()
    images = base.Floats((value @ torch.tensor([[0.1], [0.0]]).double()).float().reshape(20, 1, 1, 1))
    config = base.DataConfig(name="toy", holdout=0)
    dataset = base.assemble(
        config, images, labels_NK=value.long(), factor_names=("a", "b"), factor_sizes=(5, 4), binary=False, source={}
    )
    a, b = pixel_order.measure(dataset)
    assert a.step == pytest.approx(0.01, rel=1e-6)
    assert a.other == pytest.approx(0.05, rel=1e-6)
    assert a.order == pytest.approx((1 - 1 / 5) / (1 - 3 / 6), rel=1e-6)
    assert (b.step, b.other, b.ratio, b.order) == (0.0, 0.0, None, None)


def test_pixel_order_follows_the_labels_not_the_rows():
    dataset = data.load(squares.Config(name="squares"))
    mixed = torch.randperm(507, generator=torch.Generator().manual_seed(0))
    shuffled = base.Dataset(
        dataset.info, base.Bits(dataset.images.data[mixed], (1, 16, 16)), dataset.labels[mixed], dataset.splits
    )
    assert pixel_order.measure(shuffled) == pixel_order.measure(dataset)


def test_pixel_order_is_seeded():
    dataset = data.load(squares.Config(name="squares"))
    first = pixel_order.measure(dataset, seed=1, lines=5)
    assert first == pixel_order.measure(dataset, seed=1, lines=5)
    assert first != pixel_order.measure(dataset, seed=2, lines=5)


def test_pixel_order_of_dsprites():
    # Without all of them, which take a while: one sprite at every place, drawn as the set draws it.
    words = dsprites._sprites(0, 5, 0).astype(">u8").reshape(1024, 64)
    images = base.Bits(torch.from_numpy(words.view(np.uint8).reshape(1024, -1)), (1, 64, 64))
    dataset = base.assemble(
        base.DataConfig(name="toy"), images, labels_NK=grid_labels((32, 32)), factor_names=("posX", "posY"),
        factor_sizes=(32, 32), binary=True, source={},
    )  # fmt: skip
    for found in pixel_order.measure(dataset):
        # A square of about 19 pixels moves by about one pixel, and by about eleven between any two places.
        assert found.step == pytest.approx(2 * 19.2, rel=0.1)
        assert 0.08 < found.ratio < 0.12
        assert found.order > 0.95
    assert pixel_order.measure(dataset)[0].named is False


def test_pixel_order_needs_a_grid():
    dataset = data.load(squares.Config(name="squares"))
    twice = dataset.labels.clone()
    twice[1] = twice[0]
    assert pixel_order.measure(base.Dataset(dataset.info, dataset.images, twice, dataset.splits)) is None
    assert pixel_order.measure(base.Dataset(dataset.info, dataset.images, None, dataset.splits)) is None
    labels = torch.arange(507)[:, None] % 2
    info = base.DataInfo("toy", (1, 16, 16), 507, ("class",), (2,))
    assert pixel_order.measure(base.Dataset(info, dataset.images, labels, dataset.splits)) is None


def test_pixel_order_sentences(objects):
    hopeless = pixel_order.sentence(pixel_order.measure(xy(), lines=2))
    assert "every factor" in hopeless and "no beta" in hopeless
    fine = pixel_order.sentence(pixel_order.measure(xy(2), lines=2))
    assert "nearer" in fine
    one = pixel_order.PixelOrder("a", 8, 10.0, 10.0)
    two = pixel_order.PixelOrder("b", 8, 1.0, 10.0)
    assert "values of a are as far" in pixel_order.sentence([one, two])
    named = pixel_order.PixelOrder("shape", 8, 10.0, 10.0, named=True)
    assert pixel_order.sentence([named, two]) == fine
    assert pixel_order.sentence([named, pixel_order.PixelOrder("side", 2, 10.0, 10.0)]) is None
    found = by_name(objects, lines=2)
    assert found["hue"].named and not found["x"].named
