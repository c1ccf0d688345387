"""What becomes of people's own images: the range of their values, labels and folders as they come, and what is said."""

import dataclasses
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaecli import data
from vaecli.data import _range, array, folder
from vaecli.errors import ConfigError, InputError


def everything(dataset):
    return dataset.split("all").take(len(dataset.images)).x_BCHW


def load_folder(path="d", **options):
    return data.load(folder.Config(name="folder", path=str(path), **{"holdout": 0, **options}))


def load_array(path, **options):
    return data.load(array.Config(name="array", path=str(path), **{"holdout": 0, **options}))


def save(path, values, **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path, **options)


def save_all(images, where="d", ending="png"):
    for i, image in enumerate(images):
        save(f"{where}/{i:03}.{ending}", image)


def plain(n=6, low=0, high=256, dtype=np.uint8, shape=(4, 5), seed=0):
    """Random images in which the smallest and the greatest value occur."""
    images = np.random.default_rng(seed).integers(low, high, (n, *shape)).astype(dtype)
    images[0].flat[:2] = low, high - 1
    return images


# ---- the range


@pytest.mark.parametrize(
    ("kind", "extent", "ends"),
    [
        ("uint8", (0, 255), [0, 255]),
        ("uint8", (3, 17), [0, 255]),
        ("uint8", (0, 2), [0, 255]),
        ("uint8", (0, 1), [0, 1]),
        ("uint16", (0, 1), [0, 1]),
        ("uint16", (0, 255), [0, 255]),
        ("uint16", (0, 256), [0, 1023]),
        ("uint16", (100, 1300), [0, 4095]),
        ("uint16", (0, 4096), [0, 16383]),
        ("uint16", (0, 16384), [0, 65535]),
        ("int32", (0, 70_000), [0, 2**24 - 1]),
        ("uint32", (0, 2**32 - 1), [0, 2**32 - 1]),
        ("uint64", (0, 2.0**64), [0, 2.0**64]),
        ("float", (0.2, 0.3), [0, 1]),
        ("float", (-0.1, 1.1), [0, 1]),
        ("bool", (0, 1), [0, 1]),
    ],
)
def test_the_range_that_is_found(kind, extent, ends):
    assert _range.find("auto", {kind: extent}) == {kind: ends}


@pytest.mark.parametrize(
    ("kind", "ends"), [("uint8", [0, 255]), ("uint16", [0, 65535]), ("int16", [-32768, 32767]), ("float", [0, 1])]
)
def test_the_range_that_is_asked_for(kind, ends):
    assert _range.find("dtype", {kind: (0, 1)}) == {kind: ends}
    assert _range.find([-3, 5.5], {kind: (0, 1)}) == {kind: [-3, 5.5]}
    assert _range.find({kind: [2, 4]}, {kind: (0, 1)}) == {kind: [2, 4]}
    assert _range.find({"another": [2, 4]}, {kind: (0, 1)}) == {kind: ends}
    assert _range.find([-3, 5.5], {"bool": (0, 1)}) == {"bool": [0, 1]}


def test_values_become_bytes_and_units():
    values = np.array([0, 1, 100, 1300, 2047, 2048, 4095, 5000], np.uint16)
    assert _range.to_bytes(values, [0, 4095]).tolist() == [0, 0, 6, 81, 127, 128, 255, 255]
    assert _range.to_bytes(np.array([0, 257, 258, 65535], np.uint16), [0, 65535]).tolist() == [0, 1, 1, 255]
    assert _range.to_bytes(np.array([0, 1], np.uint8), [0, 1]).tolist() == [0, 255]
    assert _range.to_bytes(np.array([-1024, 0, 3000], np.int16), [-1024, 3071]).tolist() == [0, 64, 251]
    exact = np.array([0.1, 1 / 3, 1.0], np.float32)
    assert _range.to_unit(exact, [0, 1]).tobytes() == exact.tobytes()
    assert _range.to_unit(np.array([-1, -0.5, 0, 1, 2.0]), [-1, 1]).tolist() == [0, 0.25, 0.5, 1, 1]


# ---- one rule for every door


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (plain(), lambda x: x / np.float32(255)),
        (plain(high=2), lambda x: x.astype(np.float32)),
        (plain(shape=(4, 5, 3)), lambda x: x / np.float32(255)),
        (plain(high=2, shape=(4, 5, 3)), lambda x: x.astype(np.float32)),
        (plain(low=100, high=1301, dtype=np.uint16), lambda x: np.rint(x / 4095 * 255) / np.float32(255)),
        (plain(high=65536, dtype=np.uint16), lambda x: np.rint(x / 257) / np.float32(255)),
        (plain(high=2, dtype=np.uint16), lambda x: x.astype(np.float32)),
    ],
    ids=["bytes", "mask", "colour", "colour mask", "12 bits", "16 bits", "deep mask"],
)
def test_an_image_is_the_same_through_every_door(images, expected):
    np.save("d.npy", images)
    save_all(images)
    wanted = torch.from_numpy(expected(images).astype(np.float32))
    wanted = wanted[:, None] if wanted.ndim == 3 else wanted.permute(0, 3, 1, 2)
    by_array, by_folder = load_array("d.npy"), load_folder()
    assert torch.equal(everything(by_array), wanted)
    assert torch.equal(everything(by_folder), wanted)
    assert by_array.info.source["range"] == by_folder.info.source["range"]
    assert by_array.info.source["sha256"] == by_folder.info.source["sha256"]
    assert by_array.info.binary == by_folder.info.binary
    for info in (by_array.info, by_folder.info):
        channels, height, width = info.shape
        for i in range(len(images)):
            pixels = folder.read_pixels(f"d/{i:03}.png", channels, height, width, info.source["range"])
            assert torch.equal(torch.from_numpy(pixels) / 255.0, wanted[i])


def test_floats_are_the_same_to_half_a_level():
    images = np.random.default_rng(0).random((6, 4, 5), dtype=np.float32)
    np.save("d.npy", images)
    save_all(images, ending="tif")
    assert torch.equal(everything(load_array("d.npy"))[:, 0], torch.from_numpy(images))
    assert (everything(load_folder())[:, 0] - torch.from_numpy(images)).abs().max() <= 0.5 / 255 + 1e-6


def test_a_mask_is_resized_as_one():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 3:] = 1
    save("d/0.png", mask)
    save("e/0.png", mask * 255)
    assert torch.equal(everything(load_folder(image_size=4)), everything(load_folder("e", image_size=4)))
    assert 0 < float(everything(load_folder(image_size=4))[0, 0, 0, 1]) < 1


def test_types_side_by_side_have_ranges_of_their_own():
    save("d/a.png", plain(1, high=256)[0])
    save("d/b.png", plain(1, high=1000, dtype=np.uint16)[0])
    dataset = load_folder()
    assert dataset.info.source["range"] == {"uint8": [0, 255], "uint16": [0, 1023]}
    deep = np.rint(plain(1, high=1000, dtype=np.uint16)[0] / 1023 * 255)
    assert torch.equal(everything(dataset)[1, 0] * 255, torch.from_numpy(deep).float())


@pytest.mark.parametrize("source", ["array", "folder"])
def test_a_range_that_is_given(source):
    images = plain(low=100, high=300, dtype=np.uint16)
    np.save("d.npy", images)
    save_all(images)
    dataset = load_array("d.npy", range=[100, 200]) if source == "array" else load_folder(range=[100, 200])
    expected = np.rint(np.clip((images - 100.0) / 100, 0, 1) * 255)
    assert torch.equal(everything(dataset)[:, 0], torch.from_numpy(expected).float() / 255)
    assert dataset.info.source["range"] == {"uint16": [100, 200]}
    whole = load_array("d.npy", range="dtype") if source == "array" else load_folder(range="dtype")
    assert torch.equal(everything(whole)[:, 0] * 255, torch.from_numpy(np.rint(images / 257)).float())


def test_floats_by_a_range_that_is_given():
    images = np.random.default_rng(0).uniform(-1, 1, (6, 4, 5))
    np.save("d.npy", images)
    got = everything(load_array("d.npy", range=[-1, 1]))[:, 0]
    assert torch.allclose(got, torch.from_numpy((images + 1) / 2).float(), atol=1e-6)
    images[3, 1, 1] = np.nan
    np.save("d.npy", images)
    with pytest.raises(InputError, match="image 3 has values that are no numbers"):
        load_array("d.npy", range=[-1, 1])


@pytest.mark.parametrize("source", ["array", "folder"])
def test_later_images_are_read_by_the_range_of_the_run(source, capsys):
    def load(images, **options):
        np.save("d.npy", images)
        save_all(images)
        config = (
            array.Config(name="array", path="d.npy", holdout=0)
            if source == "array"
            else folder.Config(name="folder", path="d", holdout=0)
        )
        return data.load(config, **options)

    first = load(plain(low=100, high=1301, dtype=np.uint16))
    capsys.readouterr()
    later = plain(low=100, high=5000, dtype=np.uint16)
    dataset = load(later, trained_on=first.info)
    assert "beyond is clipped" in capsys.readouterr().err
    expected = np.rint(np.minimum(later / 4095, 1) * 255)
    assert torch.equal(everything(dataset)[:, 0], torch.from_numpy(expected).float() / 255)
    assert dataset.info.source["range"] == {"uint16": [0, 4095]}
    dark = plain(high=2, dtype=np.uint16)  # alone, these would be taken for masks
    assert everything(load(dark, trained_on=first.info)).max() == 0
    # A run of an earlier version kept none: folders were read by the whole type, arrays of bytes as they are now.
    source_then = {key: value for key, value in first.info.source.items() if key != "range"}
    then = dataclasses.replace(first.info, source=source_then)
    masks = plain(high=2)
    assert everything(load(masks, trained_on=then)).max() == (1.0 if source == "array" else np.float32(1 / 255))


def test_the_range_stands_in_the_run(vae):
    np.save("d.npy", plain(20, low=100, high=1301, dtype=np.uint16))
    done = vae("train", "--data", "array:d.npy", "--steps", 1, "--latent-dim", 2, "--runs-dir", "r", "--name", "a")
    assert done.code == 0, done.err
    assert "d.npy: uint16 values from 100 to 1,300: 0 becomes black and 4,095 white" in done.err
    again = vae("encode", "r/a", "-n", 3, "-o", "c.csv")
    assert again.code == 0, again.err
    assert "warning" not in again.err and "becomes black" not in again.err
    assert '"uint16"' in Path("r/a/checkpoints/latest/config.json").read_text()


# ---- what is said of values


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (plain(), None),
        (np.random.default_rng(0).random((6, 4, 5)), None),
        (plain(high=2) == 1, None),
        (plain(high=2), "uint8 values from 0 to 1: 0 becomes black and 1 white"),
        (plain(high=30), "warning: d.npy: uint8 values from 0 to 29: 0 becomes black and 255 white, so the images are"),
        (plain(high=30), "data.range=[0, 29]"),
        (plain(low=9, high=1000, dtype=np.uint16), "uint16 values from 9 to 999: 0 becomes black and 1,023 white"),
        (np.linspace(0, 1.0000002, 120).reshape(6, 4, 5), "white, what is beyond is clipped"),
        (np.linspace(-0.2, 1, 120).reshape(6, 4, 5), "warning: d.npy: float values from -0.2 to 1: 0 becomes black"),
    ],
)  # fmt: skip
def test_what_is_said_of_values(images, words, capsys):
    np.save("d.npy", images)
    x = everything(load_array("d.npy"))
    said = capsys.readouterr().err
    assert (words in said) if words else said == ""
    assert float(x.min()) >= 0 and float(x.max()) <= 1
    if images.dtype.kind == "f":
        assert torch.equal(x[:, 0], torch.from_numpy(images.astype(np.float32)).clamp(0, 1))


@pytest.mark.parametrize(
    ("low", "high", "hint"),
    [
        (-1, 1, "data.range=[-1, 1]"),
        (-0.5, 0.5, "data.range=[-1, 1]"),
        (0, 255, "data.range=[0, 255]"),
        (0, 109, "data.range=[0, 255]"),
        (-2.5, 3, "data.range=[-2.5, 3]"),
        (0, 1000, "data.range=[0, 1000]"),
    ],
)
def test_floats_that_are_no_images_yet(low, high, hint):
    images = np.linspace(low, high, 120).reshape(6, 4, 5)
    np.save("d.npy", images)
    with pytest.raises(InputError, match=r"not in \[0, 1\]") as caught:
        load_array("d.npy")
    assert hint in caught.value.hint
    save_all(images.astype(np.float32), ending="tif")
    with pytest.raises(InputError, match=r"not in \[0, 1\]"):
        load_folder()
    given = [float(end) for end in caught.value.hint.partition("[")[2].partition("]")[0].split(", ")]
    expected = (images - given[0]) / (given[1] - given[0])
    assert np.abs(everything(load_folder(range=given))[:, 0].numpy() - expected).max() <= 0.5 / 255 + 1e-6


def test_negative_integers_need_a_range():
    np.save("d.npy", plain(low=-1024, high=3000, dtype=np.int16))
    with pytest.raises(InputError, match="below 0") as caught:
        load_array("d.npy")
    assert "data.range=[-1024, 2999]" in caught.value.hint
    x = everything(load_array("d.npy", range=[-1024, 2999]))
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)


@pytest.mark.parametrize("value", ["[1, 1]", "[5, 0]", "[1]", "[0, 1, 2]", "loud", "{uint8: [3, 2]}", "[0, .nan]"])
def test_a_range_that_makes_no_sense(vae, value):
    np.save("d.npy", plain())
    done = vae("train", "--data", "array:d.npy", "-S", f"data.range={value}", "--dry-run")
    assert done.code == 2 and "data.range" in done.err


def test_a_range_in_the_wrong_order_is_refused_in_folders():
    save_all(plain())
    with pytest.raises(ConfigError, match=r"\[5, 0\]"):
        load_folder(range=[5, 0])


# ---- labels of arrays


def arrays(labels, **more):
    np.savez("d.npz", images=plain(len(labels)), labels=labels, **more)
    return load_array("d.npz")


def test_labels_of_minus_one_and_one(capsys):
    labels = np.where(np.random.default_rng(0).random((60, 4)) > 0.5, 1, -1)
    dataset = arrays(labels)
    assert torch.equal(dataset.labels, torch.from_numpy((labels + 1) // 2))
    assert (dataset.info.factor_sizes, dataset.info.value_names) == ((2,) * 4, (("-1", "1"),) * 4)
    assert "one of two values" in capsys.readouterr().err
    # With a third value, -1 is what is not known.
    assert arrays(np.array([-1, 0, 1])).labels[:, 0].tolist() == [-1, 0, 1]
    assert arrays(np.array([-1, -1, -1])).labels[:, 0].tolist() == [-1, -1, -1]
    assert arrays(np.array([1, 1])).labels[:, 0].tolist() == [1, 1]


def test_one_hot_labels(capsys):
    dataset = arrays(np.eye(3, dtype=int)[[0, 1, 2, 1, 0, 2]], factor_names=["cat", "dog", "ship"])
    assert dataset.labels[:, 0].tolist() == [0, 1, 2, 1, 0, 2]
    assert (dataset.info.factor_names, dataset.info.factor_sizes) == (("class",), (3,))
    assert dataset.info.value_names == (("cat", "dog", "ship"),)
    assert "one-hot" in capsys.readouterr().err
    attributes = np.eye(3, dtype=int)[[0, 1, 2, 1]]
    attributes[0, 1] = 1
    assert arrays(attributes).info.factor_sizes == (2, 2, 2)
    assert arrays(np.eye(2, dtype=bool)[[0, 1, 1]]).labels[:, 0].tolist() == [0, 1, 1]


def test_factor_names_in_other_types(capsys):
    factors = np.stack([np.arange(6) % 3, np.arange(6) % 2], 1)
    assert arrays(factors, factor_names=np.array([b"floor", "wände".encode()])).info.factor_names == ("floor", "wände")
    assert capsys.readouterr().err == ""
    objects = arrays(factors, factor_names=np.array(["floor", "wall"], dtype=object))
    assert objects.info.factor_names == ("factor0", "factor1")
    assert objects.labels.tolist() == factors.tolist()
    assert "factor_names are Python objects" in capsys.readouterr().err
    assert arrays(factors, factor_names=["one"]).info.factor_names == ("factor0", "factor1")
    assert "1 factor_names for 2 factors" in capsys.readouterr().err


def test_one_photo(capsys):
    photo = plain(1, shape=(9, 7, 3))[0]
    np.save("p.npy", photo)
    dataset = data.load(array.Config(name="array", path="p.npy"))
    assert torch.equal(everything(dataset)[0], torch.from_numpy(photo.transpose(2, 0, 1) / np.float32(255)))
    assert "one colour image" in capsys.readouterr().err
    np.save("p.npy", photo[:3, :3])  # as likely three images of 3x3
    assert load_array("p.npy").info.shape == (1, 3, 3)


# ---- folders


def test_classes_have_their_names_and_numbers_their_order():
    for name in ("10", "2", "1", "b", "007"):
        save_all(plain(1, seed=int(name) if name.isdecimal() else 0), f"d/{name}")
    dataset = load_folder()
    assert dataset.info.value_names == (("1", "2", "007", "10", "b"),)
    names = [dataset.info.value_names[0][k] for k in dataset.labels[:, 0].tolist()]
    assert names == ["007", "1", "10", "2", "b"]  # the images themselves are in the order of their paths


def test_images_beside_the_classes_have_no_label(capsys):
    for name in ("cat", "dog"):
        save_all(plain(3), f"d/{name}")
    save("d/ball.png", plain(1)[0])
    dataset = load_folder(labelled={"class": 6})
    assert dataset.labels[:, 0].tolist() == [-1, 0, 0, 0, 1, 1, 1]
    assert (dataset.info.factor_names, dataset.info.factor_sizes) == (("class",), (2,))
    assert "1 images lie beside the folders of the classes" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid"), ("train", "test")])
def test_folders_of_parts(names, capsys):
    level = {}
    for p, part in enumerate(names):
        for name in ("ship", "cat", "dog"):
            for i in range(3 if p == 0 else 2):
                level[len(level)] = (part, name)
                save(f"d/{part}/{name}/{i}.png", np.full((4, 4), len(level) - 1, np.uint8))
    dataset = load_folder(holdout=0.5 if "val" in names else 0)
    assert dataset.info.value_names == (("cat", "dog", "ship"),)
    parts = {name: dataset.split(name) for name in dataset.splits}
    kinds = {"train": "train", "Training": "train", "val": "val", "valid": "val", "test": "test"}
    assert parts.keys() == {kinds[name] for name in names}
    for part in names:
        view = parts[kinds[part]]
        batch = view.take(len(view))
        seen = [level[round(255 * float(x.mean()))] for x in batch.x_BCHW]
        assert {found for found, _ in seen} == {part}
        assert [name for _, name in seen] == [("cat", "dog", "ship")[k] for k in batch.labels_BK[:, 0].tolist()]
        assert len(view) == (9 if part == names[0] else 6)
    assert dataset.info.size == 9
    said = capsys.readouterr().err
    assert "parts of the set" in said


def test_parts_hold_out_as_ever_where_there_is_no_val():
    for part, n in (("train", 10), ("test", 4)):
        save_all(plain(n), f"d/{part}")
    dataset = load_folder(holdout=0.2)
    assert {name: len(index) for name, index in dataset.splits.items()} == {"train": 8, "val": 2, "test": 4}
    assert set(dataset.splits["test"].tolist()) == set(range(10, 14))
    assert dataset.labels is None


@pytest.mark.parametrize("names", [("train", "car"), ("val", "test"), ("train", "training")])
def test_folders_that_are_no_parts(names):
    for name in names:
        save_all(plain(2), f"d/{name}")
    dataset = load_folder()
    assert dataset.splits.keys() == {"train"}
    assert dataset.info.value_names == (tuple(sorted(names)),)


def test_frames_that_are_left_out_are_named(capsys):
    frames = [Image.fromarray(np.full((4, 4), 4 * t, np.uint8)) for t in range(60)]
    Path("d").mkdir()
    for name in ("a.tif", "b.gif", "c.png", "d.webp"):
        frames[0].save(
            f"d/{name}", save_all=True, append_images=frames[1:], **({"lossless": True} if "webp" in name else {})
        )
    save("d/e.png", plain(1, shape=(4, 4))[0])
    dataset = load_folder(channels=1)
    assert len(dataset.images) == 5 and everything(dataset)[:4].max() == 0
    said = capsys.readouterr().err
    assert "4 files hold several frames" in said and "236 are left out" in said
    for name in ("a.tif", "b.gif", "c.png", "d.webp"):
        os.unlink(f"d/{name}")
    load_folder()
    assert "frames" not in capsys.readouterr().err


def test_files_that_are_passed_over_are_named(capsys):
    save_all(plain(2))
    save_all(plain(10), ending="pgm")
    for name in ("notes.txt", ".hidden.pgm", "labels.csv"):
        Path("d", name).write_text("x")
    Path("d/scan").write_text("x")
    assert len(load_folder().images) == 2
    assert "warning: d: 11 files are passed over: .pgm (10), no ending (1)" in capsys.readouterr().err
    for path in [*Path("d").glob("*.pgm"), Path("d/scan")]:
        path.unlink()
    load_folder()
    assert capsys.readouterr().err == ""


def test_grey_palettes_have_one_channel():
    for ending in ("gif", "png"):
        for i in range(4):
            image = Image.fromarray(np.full((4, 4), 40 * i, np.uint8)).convert("P")
            image.putpalette([level for level in range(256) for _ in range(3)])
            Path(ending).mkdir(exist_ok=True)
            image.save(f"{ending}/{i}.{ending}")
        for options in ({}, {"image_size": 4}):
            dataset = load_folder(ending, **options)
            assert dataset.info.shape == (1, 4, 4)
            assert (everything(dataset)[:, 0, 0, 0] * 255).round().tolist() == [0, 40, 80, 120]
        coloured = Image.new("P", (4, 4))
        coloured.putpalette([10, 20, 30])
        coloured.save(f"{ending}/4.{ending}")
        assert load_folder(ending).info.shape == (3, 4, 4)


def test_a_crop_is_said(capsys):
    save_all(plain(3, shape=(80, 400)))
    load_folder(image_size=64)
    assert "3 images are cropped to the proportions of 64x64, which cuts off 80% of each" in capsys.readouterr().err
    load_folder(image_size=[16, 80])
    assert capsys.readouterr().err == ""


def tiff(path, values, kind):
    """An uncompressed TIFF of 64-bit values, which Pillow does not read."""
    content = values.astype("<f8" if kind == 3 else "<i8").tobytes()
    h, w = values.shape
    tags = [
        (256, w),
        (257, h),
        (258, 64),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, h),
        (279, len(content)),
        (339, kind),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory)


def test_a_tiff_that_is_not_read_is_described():
    tiff("d/a.tif", np.zeros((4, 4)), 3)
    with pytest.raises(InputError, match="a TIFF of 1 channels of 64-bit floats, which is not read"):
        load_folder()
    tiff("d/a.tif", np.zeros((4, 4)), 2)
    with pytest.raises(InputError, match="64-bit signed integers"):
        load_folder()
    Path("d/a.tif").write_bytes(b"II*\0\xff\xff\xff\x7f")
    with pytest.raises(InputError, match=r"a\.tif"):
        load_folder()


def test_a_path_alone_is_taken(vae):
    save_all(plain(20))
    assert data.parse("d") == {"name": "folder", "path": "d"}
    assert data.parse("./d/") == {"name": "folder", "path": "./d/"}
    np.save("x.npy", plain())
    assert data.parse("x.npy") == {"name": "array", "path": "x.npy"}
    os.mkdir("mnist")
    assert data.parse("mnist") == {"name": "mnist"}
    for word in ("e", "y.npy", "d/000.png"):
        with pytest.raises(ConfigError, match="no dataset is called"):
            data.parse(word)
    assert vae("train", "--data", "d", "--latent-dim", 2, "--dry-run").code == 0
