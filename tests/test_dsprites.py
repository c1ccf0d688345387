"""dSprites against the frames its authors show, their published statistics, and a sprite computed by hand."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vaecli.data import dsprites
from vaecli.data.base import grid_index
from vaecli.errors import InputError

FRAMES = np.load(Path(__file__).parent / "data" / "dsprites_gif_frames.npz", allow_pickle=False)
SIZES = (3, 6, 40, 32, 32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """All rendered images; the cache folder cannot be made, so that no test run leaves 377 MB behind."""
    folder = tmp_path_factory.mktemp("dsprites")
    (folder / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_DATA_DIR", str(folder))
        patch.setenv("VAE_CACHE_DIR", str(folder / "file" / "cache"))
        return dsprites.load(dsprites.Config(name="dsprites"))


def test_official_frames_bit_for_bit(dataset):
    factors = torch.from_numpy(FRAMES["latents_classes"][:, 1:].astype(np.int64))
    index = grid_index(factors, SIZES)
    assert index.tolist() == np.ravel_multi_index(tuple(factors.numpy().T), SIZES).tolist()
    batch = dataset.batch(index)
    assert len(index) == 320
    assert torch.equal(batch.x_BCHW[:, 0], torch.from_numpy(FRAMES["imgs"]).float())
    assert torch.equal(batch.labels_BK, factors)


def test_published_statistics(dataset):
    ones = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)
    count_N = ones[dataset.images.data.numpy()].sum(axis=1, dtype=np.int64)
    # The published pixel mean is 128,328,862 white pixels; ties may round otherwise in some tens of places.
    assert abs(int(count_N.sum()) - round(0.042494423521889584 * 737280 * 4096)) <= 50
    mean_N = count_N / 4096
    std = np.sqrt(mean_N * (1 - mean_N) * 4096 / 4095).mean()
    assert std == pytest.approx(0.1951664588, abs=1e-8)


def test_square_by_hand(dataset):
    # Scale 1, upright, far left and top: corners at 16 +- 9.6, so the pixel centres 6.5 ... 25.5 are inside.
    image = dataset.batch(grid_index(torch.tensor([[0, 5, 0, 0, 0]]), SIZES)).x_BCHW[0, 0]
    expected = torch.zeros(64, 64)
    expected[6:26, 6:26] = 1.0
    assert torch.equal(image, expected)
    # posX = 1 moves it by 32 pixels to the right, posY = 1 downwards.
    far = dataset.batch(grid_index(torch.tensor([[0, 5, 0, 31, 0], [0, 5, 0, 0, 31]]), SIZES)).x_BCHW[:, 0]
    assert torch.equal(far[0], expected.roll(32, dims=1))
    assert torch.equal(far[1], expected.roll(32, dims=0))


def test_last_orientation_is_the_first(dataset):
    factors = torch.tensor([[s, c, o, 11, 23] for o in (0, 39) for s in range(3) for c in range(6)])
    images = dataset.batch(grid_index(factors, SIZES)).x_BCHW
    assert torch.equal(images[:18], images[18:])
    assert images.sum() > 0


def test_facts_and_splits(dataset):
    info = dataset.info
    assert (info.shape, info.binary) == ((1, 64, 64), True)
    assert dict(zip(info.factor_names, info.factor_sizes, strict=True)) == dsprites.FACTORS
    assert info.source["kind"] == "rendered"
    assert info.source["sha256"] == hashlib.sha256(dataset.images.data.numpy().data).hexdigest()
    assert (info.size, len(dataset.split("train")), len(dataset.split("val"))) == (729_907, 729_907, 7_373)
    assert len(torch.unique(torch.cat(list(dataset.splits.values())))) == 737_280


def write_npz(path, images):
    metadata = np.array({"a": "pickle"}, dtype=object)
    np.savez_compressed(path, imgs=images, metadata=metadata)


def test_read_official(tmp_path):
    images = np.random.default_rng(0).integers(0, 2, (4100, 64, 64), dtype=np.uint8)
    write_npz(tmp_path / "d.npz", images)
    packed = dsprites.read_official(tmp_path / "d.npz", 4100)
    assert np.array_equal(np.unpackbits(packed, axis=1).reshape(-1, 64, 64), images)
    with pytest.raises(InputError, match="imgs"):
        dsprites.read_official(tmp_path / "d.npz", 4099)


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut"])
def test_read_official_damaged(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(InputError, match="not readable as dSprites"):
        dsprites.read_official(tmp_path / "d.npz", 10)
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        archive.writestr("other.npy", b"")
    with pytest.raises(InputError, match="not readable as dSprites"):
        dsprites.read_official(tmp_path / "e.npz", 10)


@pytest.mark.parametrize("place", [".", "dsprites"])
def test_wrong_checksum_of_a_found_file(tmp_path, monkeypatch, place):
    monkeypatch.setenv("VAE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / dsprites.OFFICIAL).write_bytes(b"something")
    with pytest.raises(InputError, match="its md5 is 437b930db84b8079c2dd804a71936b5f"):
        dsprites.load(dsprites.Config(name="dsprites"))


def test_named_file_missing(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        dsprites.load(dsprites.Config(name="dsprites", path=str(tmp_path / "none.npz")))


def test_official_file_is_used_and_cached(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(dsprites, "SIZE", 24)
    monkeypatch.setattr(dsprites, "FACTORS", {"shape": 3, "posX": 8})
    images = np.random.default_rng(1).integers(0, 2, (24, 64, 64), dtype=np.uint8)
    write_npz(tmp_path / "d.npz", images)
    monkeypatch.setattr(dsprites, "OFFICIAL_MD5", hashlib.md5((tmp_path / "d.npz").read_bytes()).hexdigest())
    monkeypatch.setattr(dsprites, "read_official", lambda path, f=dsprites.read_official: f(path, 24))
    config = dsprites.Config(name="dsprites", path=str(tmp_path / "d.npz"), holdout=0)
    first = dsprites.load(config)
    assert "24 official images, cached in" in capsys.readouterr().err
    monkeypatch.setattr(dsprites, "read_official", None)  # the second time the cache serves
    second = dsprites.load(config)
    for dataset in (first, second):
        assert dataset.info.source["kind"] == "official"
        assert torch.equal(dataset.batch(torch.arange(24)).x_BCHW[:, 0], torch.from_numpy(images).float())
    assert first.info == second.info


def test_cache_repairs_itself_and_leaves_no_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(dsprites, "SIZE", 3)
    images = np.random.default_rng(2).integers(0, 256, (3, 512), dtype=np.uint8)
    made = []

    def make():
        made.append(1)
        return images

    path = tmp_path / "x.bits"
    for damage in (None, lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:], lambda b: b[:-1], lambda b: b""):
        if damage:
            path.write_bytes(damage(path.read_bytes()))
        for _ in range(2):
            packed, sha256 = dsprites._cached("x", make)
            assert np.array_equal(packed, images)
            assert sha256 == hashlib.sha256(images.tobytes()).hexdigest()
    assert len(made) == 4
    assert capsys.readouterr().err.count("is damaged") == 3
    assert [p.name for p in tmp_path.iterdir()] == ["x.bits"]


def test_full_disk_keeps_the_images_in_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dsprites.os, "fsync", full)
    monkeypatch.setattr(dsprites, "SIZE", 3)
    packed, _ = dsprites._cached("x", lambda: np.ones((3, 512), np.uint8))
    assert packed.sum() == 3 * 512
    assert "memory only" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_pooled_images_are_means(tmp_path, monkeypatch):
    """Against NumPy; no image but those asked for is made."""
    packed = np.zeros((dsprites.SIZE, dsprites.SIDE**2 // 8), np.uint8)
    packed[:3] = np.random.default_rng(0).integers(0, 256, (3, packed.shape[1]), dtype=np.uint8)
    monkeypatch.setenv("VAE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(dsprites, "_cached", lambda name, make: (packed, "hash"))
    whole, pooled = (dsprites.load(dsprites.Config(name="dsprites", pool=pool)) for pool in (1, 2))
    white = np.unpackbits(packed[:3], axis=1).reshape(3, 32, 2, 32, 2)
    assert pooled.info.shape == (1, 32, 32) and not pooled.info.binary and whole.info.binary
    np.testing.assert_array_equal(pooled.batch(torch.arange(3)).x_BCHW[:, 0], white.mean(axis=(2, 4)))
    assert pooled.info.source["pool"] == 2 and "pool" not in whole.info.source
    assert pooled.to("cpu").images.nbytes == whole.images.nbytes and len(pooled.images) == dsprites.SIZE
