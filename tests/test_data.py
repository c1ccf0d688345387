"""Data sources: stores, splits, the training stream, files of all kinds, downloads."""

import dataclasses
import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from pydantic import ValidationError

from vaecli import data, registry
from vaecli.batch import DataInfo
from vaecli.data import _fetch, array, base, fashion_mnist, folder, mnist, squares
from vaecli.errors import ConfigError, InputError, MachineError


def random_images(*shape, top=256, seed=0):
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8)


def toy(n=10, *, holdout=0, labels=None, **options):
    """n images of one pixel whose value is their number."""
    images = base.Floats(torch.arange(n).float().reshape(n, 1, 1, 1))
    config = base.DataConfig(name="toy", holdout=holdout, **options)
    return base.assemble(config, images, labels_NK=labels, binary=False, source={}, test=0)


# ---- stores


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 5, 7), (1, 1, 1), (1, 28, 28)])
def test_bits_round_trip(shape):
    images = random_images(20, *shape, top=2)
    store = base.Bits.pack(images)
    index = torch.tensor([19, 0, 7, 7])
    assert torch.equal(store.gather(index), torch.from_numpy(images[index.numpy()]).float())
    assert store.gather(index).dtype == torch.float32
    assert len(store) == 20
    assert store.nbytes == 20 * -(-np.prod(shape) // 8)


def test_bytes_and_floats():
    images = random_images(20, 3, 5, 7)
    images[0, 0, 0, :2] = 0, 255
    index = torch.tensor([3, 0])
    got = base.Bytes(torch.from_numpy(images)).gather(index)
    assert torch.equal(got, torch.from_numpy((images[[3, 0]] / np.float32(255)).astype(np.float32)))
    assert got[1, 0, 0, :2].tolist() == [0.0, 1.0]
    values = torch.rand(4, 1, 2, 3)
    assert torch.equal(base.Floats(values).gather(index), values[[3, 0]])


@pytest.mark.parametrize(
    ("images", "kind", "binary"),
    [
        (np.array([[0, 255]], np.uint8), base.Bits, True),
        (np.array([[0, 254]], np.uint8), base.Bytes, False),
        (np.array([[0, 1]], np.uint8), base.Bytes, False),
        (np.array([[0.0, 1.0]], np.float32), base.Bits, True),
        (np.array([[0.0, 0.5]], np.float64), base.Floats, False),
    ],
)
def test_store_takes_the_smallest(images, kind, binary):
    store, is_binary = base.store(images.reshape(1, 1, 1, 2))
    assert (type(store), is_binary) == (kind, binary)
    expected = images / 255 if images.dtype == np.uint8 else images
    assert store.gather(torch.tensor([0])).flatten().tolist() == pytest.approx(expected.flatten().tolist())


# ---- configuration


@pytest.mark.parametrize("holdout", [0, 0.0, 0.01, 0.999, 1, 5000])
def test_holdout_keeps_its_type(holdout):
    got = base.DataConfig(name="x", holdout=holdout).holdout
    assert got == holdout
    assert type(got) is type(holdout)


@pytest.mark.parametrize("holdout", [True, 1.0, -1, -0.1, "1", 5000.5, float("nan"), None])
def test_bad_holdout(holdout):
    with pytest.raises(ValidationError):
        base.DataConfig(name="x", holdout=holdout)


def test_parse():
    assert data.parse("dsprites") == {"name": "dsprites"}
    assert data.parse("folder:a:b/c") == {"name": "folder", "path": "a:b/c"}
    assert data.parse("array:x.npz") == {"name": "array", "path": "x.npz"}
    for bad, words in {"mnist:x": "takes no path", "folder:": "missing", "mnits": "did you mean 'mnist'"}.items():
        with pytest.raises(ConfigError, match=words):
            data.parse(bad)


def test_listing_needs_no_torch():
    code = "import sys, vaecli.data as d; d.parse('mnist'); print(d.registry.names('dataset'), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.strip() == f"{registry.names('dataset')} False"
    assert "dsprites" in out
    assert all(len(registry.summary("dataset", name)) > 20 for name in registry.names("dataset"))


def test_directories(monkeypatch):
    for name in ("VAE_DATA_DIR", "VAE_CACHE_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    assert (data.data_dir(), data.cache_dir()) == (Path("/home/u/.local/share/vae"), Path("/home/u/.cache/vae"))
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert (data.data_dir(), data.cache_dir()) == (Path("/x/vae"), Path("/home/u/.cache/vae"))
    monkeypatch.setenv("VAE_DATA_DIR", "~/d")
    assert data.data_dir() == Path("/home/u/d")


# ---- splits


def test_splits_are_disjoint_whole_and_fixed():
    dataset = toy(100, holdout=0.25)
    parts = [dataset.split(name).indices.tolist() for name in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == list(range(100))
    assert [len(part) for part in parts] == [75, 25]
    assert dataset.info.size == 75
    assert toy(100, holdout=25).split("val").indices.tolist() == parts[1]
    limited = toy(100, holdout=25, limit=10)
    assert limited.split("val").indices.tolist() == parts[1]
    assert limited.split("train").indices.tolist() == parts[0][:10]
    assert limited.info.size == 10
    assert len(limited.split("all")) == 100


def test_split_fallbacks():
    held = toy(10, holdout=3)
    assert [held.split(name).name for name in ("train", "val", "test", "all")] == ["train", "val", "val", "all"]
    whole = toy(10)
    assert [whole.split(name).name for name in ("val", "test")] == ["train", "train"]
    tested = base.assemble(base.DataConfig(name="t", holdout=0), held.images, binary=False, source={}, test=4)
    assert [tested.split(name).name for name in ("val", "test")] == ["train", "test"]
    assert tested.split("test").indices.tolist() == [6, 7, 8, 9]
    assert sorted(tested.split("train").indices.tolist()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match="'valid'"):
        held.split("valid")


def test_holdout_needs_training_images():
    with pytest.raises(ConfigError, match="holdout is 10"):
        toy(10, holdout=10)
    assert len(toy(1, holdout=0.9).split("train")) == 1  # a fraction never takes the only image


def test_views_read_in_order():
    view = toy(10).split("all")
    batches = list(view.batches(4))
    assert [batch.index_B.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert torch.cat([batch.x_BCHW for batch in batches]).flatten().tolist() == list(range(10))
    assert view.take(3).x_BCHW.flatten().tolist() == [0, 1, 2]
    assert len(view.take(99).index_B) == 10


# ---- the stream


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 30])
def test_stream_is_a_row_of_permutations(batch_size):
    dataset = toy(10, holdout=3)
    train = set(dataset.split("train").indices.tolist())
    steps = -(-70 // batch_size)
    stream = dataset.stream(5, batch_size)
    batches = [stream.batch(step) for step in range(steps)]
    assert all(len(batch.index_B) == batch_size for batch in batches)
    row = torch.cat([batch.index_B for batch in batches]).tolist()
    epochs = [row[start : start + 7] for start in range(0, 70, 7)]
    assert all(set(epoch) == train for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert torch.cat([batch.x_BCHW for batch in batches]).flatten().tolist() == row
    # Pure in (seed, step): read backwards from a fresh stream, and with other batch sizes, the row is the same.
    fresh = dataset.stream(5, batch_size)
    assert [fresh.batch(step).index_B.tolist() for step in reversed(range(steps))] == [
        batch.index_B.tolist() for batch in reversed(batches)
    ]
    assert torch.cat([dataset.stream(5, 2).batch(step).index_B for step in range(35)]).tolist() == row[:70]
    assert dataset.stream(6, 70).batch(0).index_B.tolist() != row[:70]


def test_stream_far_out_is_cheap_and_right():
    dataset = toy(10)
    far = dataset.stream(0, 4).batch(10**15).index_B.tolist()
    epoch = dataset.stream(0, 10).batch(4 * 10**14).index_B.tolist()
    assert far == epoch[:4]


# ---- labels


@pytest.mark.parametrize(("labelled", "expected"), [(0, 0), (10, 10), (0.1, 8), (1.0, 80), (80, 80), (0.0, 0)])
def test_labelled_counts_are_stratified(labelled, expected):
    labels = (torch.arange(100) % 4).unsqueeze(1)
    dataset = toy(100, holdout=0.2, labels=labels, labelled=labelled)
    batch = dataset.stream(0, 80).batch(0)
    known = batch.labels_BK[:, 0] >= 0
    assert int(known.sum()) == expected
    assert torch.equal(batch.labels_BK[known], labels[batch.index_B[known]])
    counts = Counter(batch.labels_BK[known, 0].tolist())
    if 4 <= expected < 40:
        assert max(counts.values()) - min(counts[c] for c in range(4)) <= 1
    # The same images stay visible over the epochs; another seed shows others; outside the stream all labels are there.
    seen = set(batch.index_B[known].tolist())
    second = dataset.stream(0, 80).batch(1)
    assert set(second.index_B[second.labels_BK[:, 0] >= 0].tolist()) == seen
    if expected == 10:
        third = dataset.stream(1, 80).batch(0)
        assert set(third.index_B[third.labels_BK[:, 0] >= 0].tolist()) != seen
    assert torch.equal(dataset.split("train").take(80).labels_BK, labels[dataset.splits["train"]])


def test_labelled_with_several_factors():
    labels = base.grid_labels((4, 5))
    dataset = toy(20, labels=labels, labelled=7)
    batch = dataset.stream(0, 20).batch(0)
    known = (batch.labels_BK >= 0).all(dim=1)
    assert int(known.sum()) == 7
    assert torch.equal(batch.labels_BK[known], labels[batch.index_B[known]])
    assert (batch.labels_BK[~known] == -1).all()


def test_labelled_that_does_not_fit():
    with pytest.raises(ConfigError, match="no labels"):
        toy(10, labelled=3)
    with pytest.raises(ConfigError, match="labelled is 11"):
        toy(10, labels=torch.zeros(10, 1, dtype=torch.int64), labelled=11)


def test_grid():
    labels = base.grid_labels((3, 4, 5))
    assert labels.tolist() == [list(place) for place in np.ndindex(3, 4, 5)]
    assert base.grid_index(labels, (3, 4, 5)).tolist() == list(range(60))


def test_squares():
    dataset = data.load(squares.Config(name="squares"))
    assert dataset.info == DataInfo(
        "squares", (1, 16, 16), 456, ("size", "posX", "posY"), (3, 13, 13), True, dataset.info.source, 507,
        contrast=1.0,
    )  # fmt: skip
    for batch in dataset.split("all").batches(1):
        size, x, y = batch.labels_BK[0].tolist()
        expected = torch.zeros(16, 16)
        expected[y : y + size + 2, x : x + size + 2] = 1.0
        assert torch.equal(batch.x_BCHW[0, 0], expected)


# ---- idx

REAL = data.data_dir().resolve()
real = pytest.mark.skipif(
    not (REAL / "mnist").is_dir() or not (REAL / "fashion_mnist").is_dir(),
    reason="needs MNIST and Fashion-MNIST in $VAE_DATA_DIR",
)


@real
@pytest.mark.parametrize(("module", "mean", "std"), [(mnist, 0.13066, 0.30811), (fashion_mnist, 0.28604, 0.35302)])
def test_idx_published_means(module, mean, std, monkeypatch):
    monkeypatch.setenv("VAE_OFFLINE", "1")
    monkeypatch.setenv("VAE_DATA_DIR", str(REAL))
    dataset = module.load(module.Config(name="x"))
    assert {name: len(index) for name, index in dataset.splits.items()} == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
    }
    pixels = dataset.images.data[:60_000].double() / 255
    assert float(pixels.mean()) == pytest.approx(mean, abs=5e-6)
    assert float(pixels.std()) == pytest.approx(std, abs=5e-6)
    counts = torch.bincount(dataset.split("test").take(10_000).labels_BK[:, 0]).tolist()
    published = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert counts == (published if module is mnist else [1000] * 10)
    binary = module.load(module.Config(name="x", binarize=True, pad=2))
    assert (binary.info.binary, binary.info.shape) == (True, (1, 32, 32))
    index = torch.arange(100, 200)
    expected = (dataset.batch(index).x_BCHW >= 0.5).float()
    assert torch.equal(binary.batch(index).x_BCHW[:, :, 2:30, 2:30], expected)
    assert binary.batch(index).x_BCHW.sum() == expected.sum()


def test_idx_wrong_file_and_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("VAE_OFFLINE", "1")
    with pytest.raises(MachineError, match="VAE_OFFLINE") as caught:
        mnist.load(mnist.Config(name="mnist"))
    assert str(tmp_path / "mnist" / "train-images-idx3-ubyte.gz") in caught.value.hint
    for place, name in (("", "train-images-idx3-ubyte"), ("mnist", "train-images-idx3-ubyte.gz")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / name).write_bytes(b"<html>")
        with pytest.raises(InputError, match=name):
            mnist.load(mnist.Config(name="mnist"))


# ---- folders


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def load_folder(path, **options):
    return folder.load(folder.Config(name="folder", path=str(path), **{"holdout": 0, **options}))


def everything(dataset):
    return dataset.split("all").take(len(dataset.images)).x_BCHW


def test_folder_grey_not_square_with_classes(tmp_path):
    pixels = random_images(4, 6, 9)
    for i, name in enumerate(["b/1.png", "b/deep/2.PNG", "a/9.png", "c/x.bmp"]):
        save(tmp_path / name, pixels[i])
    save(tmp_path / "a" / "._9.png", pixels[0])  # hidden
    (tmp_path / "a" / "notes.txt").write_text("no image")
    dataset = load_folder(tmp_path)
    assert dataset.info.shape == (1, 6, 9)
    assert (dataset.info.factor_names, dataset.info.factor_sizes) == (("class",), (3,))
    assert torch.equal(everything(dataset)[:, 0], torch.from_numpy(pixels[[2, 0, 1, 3]]).float() / 255)
    assert dataset.labels[:, 0].tolist() == [0, 1, 1, 2]
    assert load_folder(tmp_path, channels=3).info.shape == (3, 6, 9)


def test_folder_colour_without_classes(tmp_path):
    pixels = random_images(2, 5, 4, 3)
    save(tmp_path / "1.png", pixels[0])
    save(tmp_path / "sub" / "2.png", pixels[1])
    dataset = load_folder(tmp_path)
    assert dataset.labels is None
    assert torch.equal(everything(dataset), torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(255)))
    luma = load_folder(tmp_path, channels=1)
    expected = pixels.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(everything(luma)[:, 0].numpy() * 255 - expected).max() < 1.0


def test_folder_black_and_white_is_binary(tmp_path):
    pixels = random_images(3, 4, 4, top=2) * 255
    for i in range(3):
        save(tmp_path / f"{i}.png", pixels[i])
    dataset = load_folder(tmp_path)
    assert dataset.info.binary
    assert torch.equal(everything(dataset)[:, 0], torch.from_numpy(pixels // 255).float())


def test_folder_sizes(tmp_path):
    ramp = np.broadcast_to(10 + 3 * np.arange(64, dtype=np.uint8), (16, 64))
    save(tmp_path / "1.png", np.ascontiguousarray(ramp))
    save(tmp_path / "2.png", np.full((8, 8), 200, np.uint8))
    with pytest.raises(InputError, match=r"2 sizes \(width x height\): 64x16 \(1\), 8x8 \(1\)") as caught:
        load_folder(tmp_path)
    assert "image_size" in caught.value.hint
    # The square in the middle spans the columns 24 to 39; each new pixel stands for four of them.
    square = everything(load_folder(tmp_path, image_size=4))[:, 0] * 255
    assert np.abs(square[0].numpy() - (10 + 3 * np.array([25.5, 29.5, 33.5, 37.5]))).max() <= 1.0
    assert torch.allclose(square[1], torch.tensor(200.0))
    # Two columns of four rows: an aspect of 1/2, so the columns 28 to 35.
    tall = everything(load_folder(tmp_path, image_size=[4, 2]))[:, 0] * 255
    assert tall.shape == (2, 4, 2)
    assert np.abs(tall[0].numpy() - (10 + 3 * np.array([29.5, 33.5]))).max() <= 1.0


def test_folder_modes(tmp_path):
    def one(name, image, **options):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name, **options)
        return load_folder((tmp_path / name).parent)

    deep = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    assert torch.equal(everything(one("16/a.png", deep)).flatten(), torch.tensor([0.0, 1 / 255, 1.0]))
    alpha = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8))
    got = everything(one("alpha/a.png", alpha))[0, :, 0].T
    assert torch.allclose(got, torch.tensor([[1.0, 0, 0], [1, 1, 1], [0.8, 0.8, 0.8]]), atol=1e-6)
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert (everything(one("p/a.gif", palette)).flatten() * 255).tolist() == pytest.approx([10, 20, 30])
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = everything(one("cmyk/a.jpg", cmyk)).mean(dim=(0, 2, 3))
    assert torch.allclose(red, torch.tensor([1.0, 0.0, 0.0]), atol=0.02)
    floats = Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32))
    assert torch.allclose(everything(one("f/a.tif", floats)).flatten(), torch.tensor([0.0, 0.2, 1.0]))
    frames = [Image.new("L", (2, 2), level) for level in (0, 255)]
    animated = one("gif/a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert everything(animated).sum() == 0
    turned = Image.fromarray(np.array([[0, 255, 255]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    upright = one("exif/a.png", turned, exif=exif)
    assert upright.info.shape == (1, 3, 1)
    assert everything(upright).flatten().tolist() == [0.0, 1.0, 1.0]
    for compression in (None, "tiff_lzw"):
        upright = one(f"{compression}/a.tif", turned, tiffinfo={0x0112: 6}, compression=compression)
        assert upright.info.shape == (1, 3, 1)
        assert everything(upright).flatten().tolist() == [0.0, 1.0, 1.0]


def test_folder_resizes_as_pillow_does(tmp_path):
    """Against bicubic resampling of the same part by Pillow, whose own way to average big images first is used."""
    shapes = {
        (218, 178): (0, 20, 178, 198),
        (90, 131): (20, 0, 110, 90),
        (600, 801): (100, 0, 700, 600),
        (20, 33): (6.5, 0, 26.5, 20),
        (2, 3): (0.5, 0, 2.5, 2),
    }
    for i, (shape, box) in enumerate(shapes.items()):
        for channels in (1, 3):
            rough = random_images(1, *shape, channels, seed=i)[0]
            image = Image.fromarray(rough.squeeze()).filter(ImageFilter.GaussianBlur(2))
            image.save(tmp_path / "a.png")
            expected = image.resize((64, 64), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
            got = folder.read_pixels(str(tmp_path / "a.png"), channels, 64, 64)
            difference = got.transpose(1, 2, 0).astype(int) - np.asarray(expected).reshape(64, 64, channels)
            assert np.abs(difference).max() <= 3
            assert np.abs(difference).mean() < 0.2


def test_folder_with_a_size_has_colour_if_one_image_has(tmp_path):
    """The header that decides may be the last one, and a damaged one decides nothing."""
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png", random_images(1, 8, 8)[0])
    (tmp_path / "0.png").write_bytes(b"no")
    assert load_folder(tmp_path, image_size=4, on_bad_image="skip").info.shape == (1, 4, 4)
    save(tmp_path / "z.png", random_images(1, 8, 8, 3)[0])
    assert load_folder(tmp_path, image_size=4, on_bad_image="skip").info.shape == (3, 4, 4)
    assert load_folder(tmp_path, image_size=4, on_bad_image="skip", channels=1).info.shape == (1, 4, 4)


def test_folder_in_processes_is_the_same(tmp_path, capsys, monkeypatch):
    pixels = random_images(90, 7, 5)
    for i in range(90):
        save(tmp_path / "ab"[i % 2] / f"{i:02}.png", pixels[i])
    (tmp_path / "a" / "41.png").write_bytes(b"no")
    alone = load_folder(tmp_path, on_bad_image="skip")
    read, kept = folder._read, torch.get_rng_state()
    monkeypatch.setattr(folder, "_read", lambda *a, **kw: read(*a, **{**kw, "enough": 10}))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    started = []
    monkeypatch.setattr(
        multiprocessing.Process, "start", lambda self, start=multiprocessing.Process.start: started.append(start(self))
    )
    together = load_folder(tmp_path, on_bad_image="skip")
    assert len(started) == 4
    assert torch.equal(everything(together), everything(alone))
    assert torch.equal(together.labels, alone.labels)
    assert torch.equal(torch.get_rng_state(), kept)
    assert capsys.readouterr().err.count("1 images that cannot be read") == 2


def test_folder_whose_reader_is_killed(tmp_path, monkeypatch):
    for i in range(8):
        save(tmp_path / f"{i}.png", random_images(1, 3, 3)[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    config = folder.Config(name="folder", path=str(tmp_path))
    paths = folder._find(tmp_path)
    with pytest.raises(MachineError, match=r"scanning images: DataLoader worker .*(killed by signal|exited)"):
        list(folder._read(config, "scanning images", paths, lambda _: os.kill(os.getpid(), signal.SIGKILL), 1, 4))


def test_folder_images_need_no_shared_memory(tmp_path, monkeypatch):
    """As tensors they would: a container's may be full, and torch then waits without end."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    config = folder.Config(name="folder", path=str(tmp_path))
    images = [image for _, image in folder._read(config, "reading", ["a"] * 80, lambda _: np.ones(5), 5, enough=1)]
    assert len(images) == 80
    assert {type(image) for image in images} == {np.ndarray}


def test_folder_leaves_no_process_behind(tmp_path):
    """Those who read may be waiting for a disk that does not answer when the command is killed."""
    script = """if True:
        import multiprocessing, time, numpy as np, torch
        from vaecli.data import folder
        torch.set_num_threads(2)
        config = folder.Config(name="folder", path="any")
        image = np.ones((3, 64, 64), np.uint8)
        paths = ["some"] * 64 + ["one that never comes"] * 4096
        read = lambda path: image if path == "some" else time.sleep(100)
        found = folder._read(config, "reading", paths, read, image.size, enough=1)
        next(found)
        time.sleep(1)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        readers = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(readers) == 2
    deadline = time.monotonic() + 20
    while left := [pid for pid in readers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def bomb():
    """A png whose header promises 20,000 x 20,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_folder_bad_images(tmp_path, capsys):
    good = random_images(2, 40, 40)
    save(tmp_path / "a.png", good[0])
    save(tmp_path / "z.png", good[1])
    whole = (tmp_path / "a.png").read_bytes()
    bad = {"cut.png": whole[:600], "empty.png": b"", "text.jpg": b"hello", "bomb.png": bomb()}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_folder(tmp_path, image_size=40)
        dataset = load_folder(tmp_path, on_bad_image="skip")
        assert torch.equal(everything(dataset)[:, 0], torch.from_numpy(good).float() / 255)
        assert "1 images that cannot be read" in capsys.readouterr().err
        (tmp_path / name).unlink()


def test_folder_of_bad_images_names_the_first(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"00\.png \(not an image of a known format\)") as caught:
        load_folder(tmp_path, on_bad_image="skip")
    assert "09.png" in str(caught.value)
    assert "10.png" not in str(caught.value)


def test_folder_without_images(tmp_path):
    with pytest.raises(InputError, match="no images found"):
        load_folder(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        load_folder(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(InputError, match="no images found"):
        load_folder(tmp_path)


def test_folder_name_that_is_no_text(tmp_path):
    pixels = random_images(1, 3, 3)
    save(tmp_path / "a.png", pixels[0])
    (tmp_path / "a.png").rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")))
    assert torch.equal(everything(load_folder(tmp_path))[:, 0], torch.from_numpy(pixels).float() / 255)


def test_too_big_for_memory(tmp_path, monkeypatch):
    save(tmp_path / "a.png", random_images(1, 3, 3)[0])
    with pytest.raises(MachineError, match="GiB"):
        base.require_memory(2**60, "it", "hint")
    monkeypatch.setattr(folder, "require_memory", lambda n, *_: (_ for _ in ()).throw(MachineError(str(n))))
    with pytest.raises(MachineError, match=str(3 * 8192 * 8192)):
        load_folder(tmp_path, image_size=8192, channels=3)


# ---- arrays


def load_array(path, **options):
    return array.load(array.Config(name="array", path=str(path), **{"holdout": 0, **options}))


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
@pytest.mark.parametrize("kind", ["bytes", "float32", "float64", "bool", "bits", "fortran", "big-endian"])
def test_array_layouts_and_types(tmp_path, layout, kind):
    channels = 1 if layout == "NHW" else 3
    pixels = random_images(6, channels, 5, 7)
    expected = torch.from_numpy(pixels / np.float32(255))
    images = pixels
    if kind in ("float32", "float64"):
        images = (pixels / 255).astype(kind)
    elif kind in ("bool", "bits"):
        images = (pixels > 99).astype(bool if kind == "bool" else np.uint8)
        expected = torch.from_numpy(images).float()
    elif kind == "big-endian":
        images = (pixels / 255).astype(">f4")
    images = {"NHW": images[:, 0], "NHWC": images.transpose(0, 2, 3, 1), "NCHW": images}[layout]
    if kind == "fortran":
        images = np.asfortranarray(images)
    np.save(tmp_path / "a.npy", images)
    dataset = load_array(tmp_path / "a.npy")
    assert dataset.info.binary == (kind in ("bool", "bits"))
    assert torch.equal(everything(dataset), expected)


@pytest.mark.parametrize("names", [("images", "factors"), ("imgs", "latents_classes"), ("x", "labels"), ("mine", None)])
def test_array_npz(tmp_path, names):
    images, factors = random_images(12, 4, 4), base.grid_labels((3, 4)).numpy()
    arrays = {names[0]: images}
    if names[1]:
        arrays |= {
            names[1]: factors,
            "factor_names": np.array(["shape", "size"]),
            "metadata": np.array({}, dtype=object),
        }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    dataset = load_array(tmp_path / "a.npz")
    assert torch.equal(everything(dataset)[:, 0], torch.from_numpy(images).float() / 255)
    if names[1]:
        assert dataset.labels.tolist() == factors.tolist()
        assert (dataset.info.factor_names, dataset.info.factor_sizes) == (("shape", "size"), (3, 4))
    else:
        assert dataset.labels is None


def test_array_classes_and_holdout(tmp_path):
    np.savez(tmp_path / "a.npz", images=random_images(50, 2, 2), labels=np.arange(50) % 5)
    dataset = array.load(array.Config(name="array", path=str(tmp_path / "a.npz")))
    assert (dataset.info.factor_names, dataset.info.factor_sizes, dataset.info.size) == (("class",), (5,), 45)
    batch = dataset.split("test").take(5)
    assert batch.labels_BK[:, 0].tolist() == (batch.index_B % 5).tolist()


def npy(value):
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


GOOD = np.zeros((4, 2, 2), np.uint8)
BAD_FLOATS = np.full((5000, 2, 2), 0.5)
BAD_ARRAYS = {
    "html": (b"<!DOCTYPE html><html>", "looks like a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "empty": (b"", "not a NumPy file"),
    "pickle": (b"\x80\x04K\x01.", "pickle, which is never read"),
    "cut": (npy(np.ones((9, 8, 8)))[:300], "damaged"),
    "cut header": (npy(GOOD)[:20], "damaged"),
    "cut zip": (npz(images=GOOD)[:200], "damaged"),
    "objects": (npy(np.array([{}, 1], dtype=object)), "Python objects"),
    "objects in npz": (npz(images=np.array([{}, 1], dtype=object)), "Python objects"),
    "keys": (npz(a=GOOD, b=GOOD), "its arrays: a, b"),
    "type": (npy(np.zeros((4, 2, 2), np.complex64)), "type complex64"),
    "text": (npy(np.array(["a"])), "type <U1"),
    "shape": (npy(np.zeros((4, 2, 2, 2), np.uint8)), r"shape \(4, 2, 2, 2\)"),
    "flat": (npy(np.zeros((4, 2), np.uint8)), r"shape \(4, 2\)"),
    "none": (npy(np.zeros((0, 2, 2), np.uint8)), "no images"),
    "rows": (npz(images=GOOD, labels=np.zeros(3, int)), "3 rows of labels for 4 images"),
    "complex labels": (npz(images=GOOD, labels=np.zeros(4, complex)), "labels of type complex128"),
    "nan": (
        npy(np.where(np.arange(5000)[:, None, None] == 4321, np.nan, BAD_FLOATS)),
        "image 4321 has values that are no numbers",
    ),
    "inf": (npy(np.where(np.arange(5000)[:, None, None] == 7, np.inf, BAD_FLOATS)), "image 7 has values from inf"),
    "range": (npy(np.arange(8.0).reshape(2, 2, 2) / 7 * 255), "image 0 has values from 0 to 109.286, not in"),
    "negative": (npy(-BAD_FLOATS), "image 0 has values from -0.5 to -0.5"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_array_bad_files(tmp_path, case):
    content, words = BAD_ARRAYS[case]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load_array(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert "allow_pickle" not in f"{caught.value} {caught.value.hint}"


def test_array_hostile_size_is_not_allocated(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1048576, 1048576, 1048576), }"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises((InputError, MachineError), match=r"GiB|damaged"):
        load_array(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", content)
    with pytest.raises((InputError, MachineError), match=r"GiB|damaged"):
        load_array(tmp_path / "a.npz")


def test_array_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none", "."):
        with pytest.raises(InputError, match=r"no file|no such file"):
            load_array(tmp_path / name)


# ---- downloads

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URL = "https://example.invalid/file.gz"


class Response(io.BytesIO):
    """A stalled socket follows the content where `stalls`."""

    def __init__(self, content, stalls=False):
        super().__init__(content)
        self.stalls = stalls

    def read(self, size=-1):
        chunk = super().read(size)
        if not chunk and self.stalls:
            raise TimeoutError("timed out")
        return chunk


def serve(monkeypatch, answers):
    """Replace the network by a table of URLs; returns the list of those asked for."""
    asked = []

    class Opener:
        def open(self, url, timeout):
            asked.append(url)
            answer = answers[url]
            if isinstance(answer, BaseException):
                raise answer
            return answer

    monkeypatch.setattr(_fetch, "_opener", Opener())
    monkeypatch.delenv("VAE_OFFLINE", raising=False)
    return asked


def test_fetch(tmp_path, monkeypatch, capsys):
    target = tmp_path / "new" / "file.gz"
    serve(monkeypatch, {URL: Response(CONTENT)})
    assert _fetch.fetch([URL], target, SHA256, len(CONTENT)).read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["file.gz"]
    said = capsys.readouterr().err
    assert URL in said
    assert str(target) in said
    assert "1.0 MB" in said


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Response(CONTENT[:500_000]), "only 500,000 bytes"),
        (Response(CONTENT[:500_000], stalls=True), "timed out after 500,000"),
        (Response(CONTENT[:-1] + b"x"), "checksum"),
        (Response(b"<html>not found</html>"), "only 22 bytes"),
        (Response(CONTENT + b"x"), "more than"),
        (_fetch.urllib.error.HTTPError(URL, 404, "Not Found", None, None), "Not Found"),
        (_fetch.urllib.error.URLError("no route"), "no route"),
        (_fetch.http.client.RemoteDisconnected("closed"), "closed"),
    ],
)
def test_fetch_failures_leave_nothing(tmp_path, monkeypatch, answer, words):
    target = tmp_path / "file.gz"
    serve(monkeypatch, {URL: answer})
    with pytest.raises(MachineError, match=words) as caught:
        _fetch.fetch([URL], target, SHA256, len(CONTENT))
    assert URL in str(caught.value)
    assert str(target) in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    # The next mirror is tried, and a second attempt succeeds.
    mirror = "https://mirror.invalid/file.gz"
    serve(monkeypatch, {URL: _fetch.urllib.error.URLError("down"), mirror: Response(CONTENT)})
    assert _fetch.fetch([URL, mirror], target, SHA256, len(CONTENT)).read_bytes() == CONTENT


def test_fetch_interrupted_leaves_nothing(tmp_path, monkeypatch):
    serve(monkeypatch, {URL: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        _fetch.fetch([URL], tmp_path / "file.gz", SHA256, len(CONTENT))
    assert list(tmp_path.iterdir()) == []


def test_fetch_offline_and_https_only(tmp_path, monkeypatch):
    asked = serve(monkeypatch, {})
    monkeypatch.setenv("VAE_OFFLINE", "1")
    with pytest.raises(MachineError, match="VAE_OFFLINE"):
        _fetch.fetch([URL], tmp_path / "new" / "file.gz", SHA256, len(CONTENT))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("VAE_OFFLINE", "0")
    with pytest.raises(MachineError, match="not https"):
        _fetch.fetch(["http://example.invalid/file.gz"], tmp_path / "file.gz", SHA256, len(CONTENT))
    assert asked == []
    request = _fetch.urllib.request.Request(URL)
    with pytest.raises(_fetch.urllib.error.URLError, match="refused to follow"):
        _fetch._HttpsOnly().redirect_request(request, None, 302, "", {}, "http://example.invalid/file.gz")


def test_fetch_disk_trouble(tmp_path, monkeypatch):
    serve(monkeypatch, {URL: Response(CONTENT)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_fetch.os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        _fetch.fetch([URL], tmp_path / "file.gz", SHA256, len(CONTENT))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        _fetch.fetch([URL], tmp_path / "file" / "sub" / "file.gz", SHA256, len(CONTENT))


def test_fetch_waits_for_the_first_process_and_uses_its_file(tmp_path, monkeypatch, capsys):
    target = tmp_path / "file.gz"
    asked = serve(monkeypatch, {})
    code = (
        "import sys, time; from pathlib import Path; from vaecli.data import _fetch\n"
        "with _fetch._alone(Path(sys.argv[1]).parent):\n"
        "    print('locked', flush=True); time.sleep(0.5); Path(sys.argv[1]).write_text('theirs')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "locked\n"
        assert _fetch.fetch([URL], target, SHA256, len(CONTENT)).read_text() == "theirs"
    assert asked == []
    assert "waiting for another download" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- held out by content


def _squares_in(root, shades):
    root.mkdir(exist_ok=True)
    for shade in shades:
        Image.fromarray(np.full((6, 6), shade, np.uint8)).save(root / f"{shade:03d}.png")


def _held_out(dataset):
    """The grey levels of the images in `val`; each image has one."""
    return {round(255 * float(x.max())) for x in dataset.split("val").take(1000).x_BCHW}


def test_what_is_held_out_stays_so_whatever_is_added_renamed_or_copied(tmp_path):
    root = tmp_path / "d"
    _squares_in(root, range(10, 110))
    config = folder.Config(name="folder", path=str(root), range="dtype")
    first = data.load(config)
    before = _held_out(first)
    assert len(before) == 10 and len(first.splits["train"]) == 90
    _squares_in(root, range(110, 150))
    for shade in sorted(before)[:3] + sorted(set(range(10, 110)) - before)[:3]:
        shutil.copy(root / f"{shade:03d}.png", root / f"copy-{shade}.png")
    os.rename(root / "050.png", root / "zzz.png")
    again = data.load(config, first.info)
    assert _held_out(again) & set(range(10, 110)) == before
    copies = [again.files[i] for i in again.splits["val"].tolist() if again.files[i].startswith("copy")]
    assert sorted(copies) == sorted(f"copy-{shade}.png" for shade in sorted(before)[:3])
    # By position, as runs from before, the added images would have moved others.
    old = dataclasses.replace(first.info, source={**first.info.source, "held_below": "position"})
    assert _held_out(data.load(config, old)) & set(range(10, 110)) != before


def test_equal_images_are_on_one_side(tmp_path):
    images = np.repeat(np.arange(20, dtype=np.uint8)[:, None, None] * 12, 5, axis=0) * np.ones((100, 4, 4), np.uint8)
    np.save(tmp_path / "a.npy", images)
    found = data.load(array.Config(name="array", path=str(tmp_path / "a.npy")))
    train, val = (set(found.split(name).take(100).x_BCHW[:, 0, 0, 0].tolist()) for name in ("train", "val"))
    assert not train & val and len(val) == 2
    np.save(tmp_path / "b.npy", np.full((8, 4, 4), 7, np.uint8))
    alike = data.load(array.Config(name="array", path=str(tmp_path / "b.npy")))
    assert "val" not in alike.splits and len(alike.splits["train"]) == 8


@pytest.mark.parametrize("stored", ["7", 7, "g" * 16, ["0" * 16], "0" * 17, "POSITION"])
def test_a_damaged_division_is_refused(stored):
    info = DataInfo("folder", (1, 4, 4), 3, source={"held_below": stored})
    with pytest.raises(InputError, match="division of the data stored with the model is damaged"):
        data.division_of(info)
