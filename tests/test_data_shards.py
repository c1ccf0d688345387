"""Shards: what is in them, the three ways to read them, and the order of a shuffle buffer."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaecli import data
from vaecli.data import _disk, folder, shards
from vaecli.data.orders import Buffered
from vaecli.errors import ConfigError, InputError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def shard(path, members, mode="w"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def some(n=30, per=8):
    """n images of 6x5 in shards; their classes in .cls, a number and a word in .json, here behind and there before."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 6, 5, 3), dtype=np.uint8)
    for s in range(0, n, per):
        members = []
        for i in range(s, min(n, s + per)):
            about = json.dumps({"angle": 10 * (i % 4), "kind": "ab"[i % 2], "box": [1, 2]}).encode()
            members += [(f"./x/{i:03d}.cls", b"%d\n" % (i % 3)), (f"./x/{i:03d}.png", png(pixels[i])),
                        (f"./x/{i:03d}.json", about), (f"./x/._{i:03d}.png", b"no image")]  # fmt: skip
        shard(f"d/s-{s // per}.tar", members)
    return pixels


def load(path="d", **options):
    return shards.load(shards.Config(name="shards", path=path, **{"holdout": 0.2, **options}))


def everything(dataset):
    return dataset.images.gather(torch.arange(len(dataset.images)))


def test_what_is_in_shards():
    pixels = some()
    dataset = load()
    assert torch.equal(everything(dataset), torch.from_numpy(pixels).movedim(3, 1).float() / 255)
    assert dataset.info.factor_names == ("class", "angle", "kind")
    assert dataset.info.value_names == ((), ("0", "10", "20", "30"), ("a", "b"))
    assert dataset.labels.tolist() == [[i % 3, i % 4, i % 2] for i in range(30)]
    assert dataset.files[:2] == ["s-0.tar/x/000.png", "s-0.tar/x/001.png"] and dataset.files[29] == "s-3.tar/x/029.png"
    one = load("d/s-1.tar", holdout=0)
    assert torch.equal(everything(one), everything(dataset)[8:16]) and one.files[0] == "s-1.tar/x/008.png"


def test_three_ways_agree(monkeypatch):
    some()
    in_memory, on_disk, streamed = (load(store=store) for store in ("memory", "disk", "stream"))
    assert isinstance(on_disk.images, _disk.OnDisk) and isinstance(streamed.images, shards.Streamed)
    for other in (on_disk, streamed):
        assert torch.equal(everything(other), everything(in_memory))
        assert torch.equal(other.labels, in_memory.labels) and other.files == in_memory.files
        assert other.info.source["sha256"] == in_memory.info.source["sha256"]
        assert other.info.source["held_below"] == in_memory.info.source["held_below"]
        assert {name: index.tolist() for name, index in other.splits.items()} == {
            name: index.tolist() for name, index in in_memory.splits.items()
        }
    index = torch.tensor([29, 3, 3, 17])
    assert torch.equal(streamed.images.gather(index), in_memory.images.gather(index))
    monkeypatch.setattr("tarfile.open", None)  # what is in the shards is remembered
    assert torch.equal(everything(load(store="stream")), everything(in_memory))
    again = data.load(shards.Config(name="shards", path="d", store="stream"), trained_on=in_memory.info)
    assert again.splits["val"].tolist() == in_memory.splits["val"].tolist()


def test_images_are_fitted_as_those_of_a_folder():
    big = np.random.default_rng(1).integers(0, 256, (6, 40, 30), dtype=np.uint8)
    shard("d/a.tar", [(f"{i}.png", png(big[i])) for i in range(6)])
    Path("f").mkdir()
    for i in range(6):
        Image.fromarray(big[i]).save(f"f/{i}.png")
    for fit in ("crop", "pad"):
        expected = folder.load(folder.Config(name="folder", path="f", image_size=16, fit=fit))
        for store in ("memory", "stream"):
            assert torch.equal(everything(load(image_size=16, fit=fit, store=store)), everything(expected))


@pytest.mark.parametrize("buffer", [1, 5, 13, 30, 100])
def test_the_order_of_a_buffer(buffer):
    n, batch = 30, 7
    shard_N, place_N = torch.arange(n) // 8, torch.arange(n)
    mix = torch.randperm(n, generator=torch.Generator().manual_seed(0))  # a split is in random order
    order = Buffered(shard_N[mix], place_N[mix], seed=3, batch_size=batch, buffer=buffer)
    row = torch.cat([order.indices(step) for step in range(60)])
    epochs = [mix[row[start : start + n]] for start in range(0, 390, n)]
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs) or buffer == 1  # of four shards
    for epoch in epochs:
        shards_in_turn = list(dict.fromkeys((epoch // 8).tolist()))
        if buffer == 1:
            lying = [i for s in shards_in_turn for i in range(8 * s, min(n, 8 * s + 8))]
            assert epoch.tolist() == lying
    fresh = Buffered(shard_N[mix], place_N[mix], seed=3, batch_size=batch, buffer=buffer)
    assert torch.equal(fresh.indices(41), order.indices(41)) and torch.equal(fresh.indices(2), order.indices(2))
    other = Buffered(shard_N[mix], place_N[mix], seed=4, batch_size=batch, buffer=buffer)
    assert any(not torch.equal(other.epoch(e), fresh.epoch(e)) for e in range(5))
    assert torch.equal(order.indices(5, stream=2), fresh.indices(5, stream=2))


def test_a_buffer_reaches_no_farther_than_it_is():
    n = 2000
    order = Buffered(torch.zeros(n, dtype=torch.int64), torch.arange(n), seed=0, batch_size=n, buffer=50)
    epoch = order.epoch(0)
    assert int((epoch - torch.arange(n)).max()) <= 50  # read ahead
    late = (torch.arange(n) - epoch)[:1950].float()
    # The wait of an image in the buffer is geometric, of mean 50, less the way it was ahead.
    assert float((torch.arange(n) - epoch).float().mean()) == 0 and 30 < float(late.std()) < 70


def test_training_takes_the_order_of_the_shards():
    some()
    dataset = load(store="stream", buffer=4)
    stream = dataset.stream(0, 6)
    assert isinstance(stream.order, Buffered)
    seen = torch.cat([stream.indices(step) for step in range(4)])
    assert sorted(seen.tolist()) == sorted(dataset.splits["train"].tolist())
    assert torch.equal(stream.batch(2).x_BCHW, everything(dataset)[stream.indices(2)])
    assert not isinstance(load(store="memory").stream(0, 6).order, Buffered)


def test_a_streamed_run_resumes(vae):
    some(60)
    common = ("--data", "shards:d", "--latent-dim", 2, "--runs-dir", "r", "-q", "--batch-size", 16, "-S",
              "model.net={name: mlp, hidden: [8]}", "-S", "data.store=stream", "-S", "data.buffer=9")  # fmt: skip
    for name, steps in (("a", 12), ("b", 5)):
        done = vae("train", *common, "--steps", steps, "--name", name)
        assert done.code == 0, done.err
    assert vae("train", "--resume", "r/b", "--steps", 12, "-q").code == 0
    a, b = ((Path("r") / n / "checkpoints/latest/model.safetensors").read_bytes() for n in "ab")
    assert a[8 + int.from_bytes(a[:8], "little") :] == b[8 + int.from_bytes(b[:8], "little") :]
    dry = vae("train", "--data", "shards:d", "--latent-dim", 2, "-S", "data.store=stream", "--dry-run")
    assert "decoded as they are read; in training a buffer of 4,096" in dry.err


def test_shards_that_are_refused():
    with pytest.raises(InputError, match="no shards found"):
        load("nowhere")
    shard("d/a.tar", [("a.txt", b"x")])
    with pytest.raises(InputError, match="no images in 1 shards"):
        load()
    shard("d/a.tar", [("a.png", png(np.zeros((4, 4), np.uint8)))], mode="w:gz")
    with pytest.raises(InputError, match=r"a\.tar: not a tar archive"):
        load()
    image = png(np.zeros((4, 4), np.uint8))
    shard("d/a.tar", [("a.png", image), ("./a.png", image)])
    with pytest.raises(InputError, match=r"two images are called a\.tar/a\.png"):
        load()
    shard("d/a.tar", [("a.png", image), ("../../b.png", image), ("c.png", image[:-30])])
    with pytest.raises(InputError, match=r"c\.png"):
        load(image_size=4)
    with pytest.raises(InputError, match=r"c\.png"):
        everything(load(image_size=4, store="stream", holdout=0))
    left = load(image_size=4, on_bad_image="skip", holdout=0)
    assert left.files == ["a.tar/a.png", "a.tar/b.png"]
    with pytest.raises(ConfigError, match="known only when it is read"):
        load(image_size=4, on_bad_image="skip", store="stream")
    with tarfile.open("d/a.tar", "w") as archive:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(InputError, match="no images"):
        load()


# ---- Parquet


def table(path, images, **columns):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    features = {"label": {"names": ["ship", "cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    made = pa.table({"image": [{"bytes": png(image), "path": None} for image in images], **columns})
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(made.replace_schema_metadata(about), path, row_group_size=7)


def test_parquet_as_hugging_face_has_it(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8)
    table("d/t-0.parquet", pixels[:12], label=[i % 2 for i in range(12)], angle=[0.5 * (i % 3) for i in range(12)])
    table("d/t-1.parquet", pixels[12:], label=[1] * 7 + [None], good=[True, False] * 4)
    in_memory = load(store="memory")
    assert torch.equal(everything(in_memory)[:, 0], torch.from_numpy(pixels).float() / 255)
    assert in_memory.info.factor_names == ("label", "angle", "good")
    assert in_memory.info.value_names == (("ship", "cat", "dog"), ("0", "0.5", "1"), ())
    assert in_memory.info.factor_sizes == (3, 3, 2)
    assert in_memory.labels[:, 0].tolist() == [0, 1] * 6 + [1] * 7 + [-1]
    assert in_memory.labels[:, 1].tolist() == [0, 1, 2] * 4 + [-1] * 8
    assert in_memory.labels[:, 2].tolist() == [-1] * 12 + [1, 0] * 4
    assert in_memory.files[12] == "t-1.parquet/0"
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", None)  # the bytes are kept
    for store in ("disk", "stream"):
        other = load(store=store)
        assert torch.equal(everything(other), everything(in_memory)) and torch.equal(other.labels, in_memory.labels)
        assert other.splits["val"].tolist() == in_memory.splits["val"].tolist()


def test_parquet_that_is_refused(monkeypatch):
    pytest.importorskip("pyarrow")
    Path("d").mkdir()
    Path("d/a.parquet").write_bytes(b"PAR1" * 20)
    with pytest.raises(InputError, match=r"a\.parquet: not a Parquet table"):
        load()
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"x": [1, 2]}), "d/a.parquet")
    with pytest.raises(InputError, match="no column `image`"):
        load()
    assert not list(Path("cache").glob("*.bytes"))
    shard("d/b.tar", [])
    with pytest.raises(InputError, match="both kinds"):
        load()


def test_parquet_without_its_reader(monkeypatch):
    Path("d").mkdir()
    Path("d/a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match="PyArrow") as caught:
        load("d/a.parquet")
    assert caught.value.hint == 'pip install "vaecli[parquet]"'
