"""Labels as people keep them: other keys and types in arrays, tables beside images, parts of a set in one file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaecli.data import array, folder
from vaecli.errors import ConfigError, InputError


def plain(n=6, high=256, seed=0):
    return np.random.default_rng(seed).integers(0, high, (n, 4, 5), dtype=np.uint8)


def load_array(path="d.npz", **options):
    return array.load(array.Config(name="array", path=path, **{"holdout": 0, **options}))


def load_folder(**options):
    return folder.load(folder.Config(name="folder", path="d", **{"holdout": 0, **options}))


def everything(dataset):
    return dataset.split("all").take(len(dataset.images)).x_BCHW


def pixels(images):
    return torch.from_numpy(images).float()[:, None] / 255


# ---- which arrays


def test_the_array_of_images_is_chosen():
    np.savez("d.npz", images=plain(), other=plain(seed=1), kind=np.arange(6) % 3, labels=np.zeros(6, int))
    assert torch.equal(everything(load_array(key="other")), pixels(plain(seed=1)))
    dataset = load_array(labels="kind")
    assert torch.equal(everything(dataset), pixels(plain()))
    assert dataset.labels[:, 0].tolist() == [0, 1, 2, 0, 1, 2]
    for option in ("key", "labels"):
        with pytest.raises(InputError, match=f"data.{option} is 'nothing', but its arrays are: images, kind, labels"):
            load_array(**{option: "nothing"})


def test_the_only_images_need_no_name(capsys):
    np.savez("d.npz", pictures=plain(), y=np.arange(6), marks=np.arange(6), note=np.arange(2))
    dataset = load_array()
    assert torch.equal(everything(dataset), pixels(plain())) and dataset.labels[:, 0].tolist() == list(range(6))
    said = capsys.readouterr().err
    assert "taken from 'pictures'" in said and "not used: marks;" in said and "note" not in said


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (("x_train", "x_test"), ("y_train", "y_test")),
        (("train_images", "test_images"), ("train_labels", "test_labels")),
        (("images.training", "images.testing"), ("target.training", "target.testing")),
    ],
)
def test_parts_of_a_set_in_one_file(images, labels, capsys):
    first, second = plain(8), plain(3, seed=1)
    values = {images[1]: second, images[0]: first, labels[0]: np.arange(8)[:, None], labels[1]: np.arange(3)}
    np.savez("d.npz", **{**values, labels[1]: np.arange(3)[:, None]})
    dataset = load_array(holdout=2)
    assert torch.equal(everything(dataset), pixels(np.concatenate([first, second])))
    assert dataset.splits["test"].tolist() == [8, 9, 10] and len(dataset.splits["val"]) == 2
    assert set(dataset.splits["train"].tolist()) | set(dataset.splits["val"].tolist()) == set(range(8))
    assert dataset.labels[:, 0].tolist() == [*range(8), 0, 1, 2]
    assert "are taken for the parts of the set" in capsys.readouterr().err


def test_parts_that_are_named():
    first, second = plain(8), plain(3, seed=1)
    np.savez("d.npz", a=first, b=second, la=np.arange(8), lb=np.arange(3))
    dataset = load_array(key={"train": "a", "val": "b"}, labels={"train": "la", "val": "lb"}, holdout=0.5)
    assert sorted(dataset.splits["val"].tolist()) == [8, 9, 10] and dataset.info.size == 8
    assert dataset.labels[:, 0].tolist() == [*range(8), 0, 1, 2]
    with pytest.raises(ConfigError, match="no array to train on"):
        load_array(key={"test": "a"})
    with pytest.raises(ConfigError, match=r"data\.labels names arrays for train"):
        load_array(key={"train": "a", "val": "b"}, labels={"train": "la"})
    np.savez("d.npz", a=first, b=second[:, :3])
    with pytest.raises(InputError, match="several shapes"):
        load_array(key={"train": "a", "val": "b"})


# ---- what labels may be


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        (np.array([0.0, 2, 1, 2, np.nan, 0]), [0, 2, 1, 2, -1, 0], ()),
        (np.array([0.5, -30, 0.25, 0.5, np.nan, 0.25]), [2, 0, 1, 2, -1, 1], ("-30", "0.25", "0.5")),
        (np.array(["dog", "cat", "img10", "img2", "", "dog"]), [1, 0, 3, 2, -1, 1], ("cat", "dog", "img2", "img10")),
        (np.array([b"b", b"a", b"a", b"b", b"", b"a"]), [1, 0, 0, 1, -1, 0], ("a", "b")),
        (np.array([-7, 3, 3, -7, 100000, 3]), [0, 1, 1, 0, 2, 1], ("-7", "3", "100000")),
        (np.array([4, 4, 2, 2, 0, -1]), [4, 4, 2, 2, 0, -1], ()),
        (np.array([True, False, True, True, False, False]), [1, 0, 1, 1, 0, 0], ()),
    ],
)
def test_types_of_labels(labels, expected, names):
    np.savez("d.npz", images=plain(), labels=labels)
    dataset = load_array()
    assert dataset.labels[:, 0].tolist() == expected
    assert dataset.info.value_names == (names,) and dataset.info.factor_sizes == (max(expected) + 1,)


def test_labels_that_are_no_classes_stop_nothing(capsys):
    images = np.random.default_rng(0).integers(0, 256, (1200, 2, 2), dtype=np.uint8)
    values = np.stack([np.random.default_rng(1).random(1200), np.arange(1200) % 4], 1)
    np.savez("d.npz", images=images, labels=values, factor_names=["weight", "kind"])
    dataset = load_array()
    assert dataset.info.factor_names == ("kind",) and dataset.labels[:, 0].tolist() == [i % 4 for i in range(1200)]
    assert "of more than 1,000 different values, which are no classes: weight; left out" in capsys.readouterr().err
    np.savez("d.npz", images=images, labels=values[:, 0])
    assert load_array().labels is None


# ---- tables beside images


def write(path, *lines):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def some_files(n=4, folder="d"):
    for i in range(n):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(plain(n)[i]).save(f"{folder}/{i:03d}.png")


TABLES = {
    "names with endings": ("image,kind,angle", "003.png,b,30", "000.png,a,-30", "001.png,a,0", "002.png,c,30"),
    "without endings": ("kind;id;angle", "b;003;30", "a;000;-30", "a;001;0", "c;002;30"),
    "with folders": ("x\tkind\tangle", "./003.png\tb\t30", "000.png\ta\t-30", "001.png\ta\t0", "002.png\tc\t30"),
    "quoted": ('"name","kind","angle"', '"003.png","b",30', '"000.png","a",-30', '"001.png","a",0', "002.png,c,30"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_beside_a_folder(case):
    some_files()
    write("d/labels.csv", *TABLES[case])
    dataset = load_folder(labels="labels.csv")
    assert dataset.info.factor_names == ("kind", "angle")
    assert dataset.info.value_names == (("a", "b", "c"), ("-30", "0", "30"))
    assert dataset.labels.tolist() == [[0, 0], [0, 1], [2, 2], [1, 2]]


def test_a_table_without_names_of_columns():
    some_files()
    write("labels.csv", *(f"{i:03d}.png,{i % 2}" for i in range(4)))
    dataset = load_folder(labels="labels.csv")
    assert dataset.info.factor_names == ("class",) and dataset.labels[:, 0].tolist() == [0, 1, 0, 1]


def test_a_table_that_does_not_name_all(capsys):
    some_files()
    write("labels.csv", "file,kind,set", "001.png,1,-1", "002.png,0,1", "009.png,1,1")
    dataset = load_folder(labels="labels.csv")
    assert dataset.labels.tolist() == [[-1, -1], [1, 0], [0, 1], [-1, -1]]
    assert dataset.info.value_names == ((), ("-1", "1"))
    said = capsys.readouterr().err
    assert "2 images are in no row and have no label, '000.png' among them" in said
    assert "1 rows name no image here, '009.png' among them" in said


def test_a_table_and_the_classes_of_folders():
    some_files(2, "d/x")
    some_files(2, "d/y")
    write("labels.csv", "file,kind", "x/000.png,1", "x/001.png,0", "y/000.png,1", "y/001.png,1")
    dataset = load_folder(labels="labels.csv")
    assert dataset.info.factor_names == ("class", "kind")
    assert dataset.labels.tolist() == [[0, 1], [0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("file,kind", "a.png,1"), "no row names an image: it has 'a.png', the images are called '000.png'"),
        (("file,kind", "000.png,1", "000.png,2"), "rows 2 and 3 name 000.png"),
        (("file,kind", "000.png,1,2"), "row 2 has 3 columns, the first has 2"),
        (("file", "000.png"), "has one column"),
        (("file,kind,kind", "000.png,1,2"), "two columns of the table are called 'kind'"),
        (("",), "is empty"),
    ],
)
def test_tables_that_are_refused(lines, words):
    some_files()
    write("labels.csv", *lines)
    with pytest.raises(InputError, match=words):
        load_folder(labels="labels.csv")
    with pytest.raises(InputError, match="no such file"):
        load_folder(labels="none.csv")


def test_a_table_beside_an_array():
    np.save("d.npy", plain())
    write("labels.csv", "kind,angle", *(f"{'ab'[i % 2]},{10 * i}" for i in range(6)))
    dataset = load_array("d.npy", labels="labels.csv")
    assert dataset.info.factor_names == ("kind", "angle") and dataset.labels[:, 0].tolist() == [0, 1] * 3
    assert dataset.info.value_names[1] == ("0", "10", "20", "30", "40", "50")
    write("labels.csv", "kind", "1")
    with pytest.raises(InputError, match="2 rows for 6 images"):
        load_array("d.npy", labels="labels.csv")


# ---- tables of pixels


def test_a_table_of_pixels():
    images, labels = plain(5)[:, :4, :4], [3, 0, 1, 2, 3]
    rows = [",".join(map(str, image.ravel())) for image in images]
    header = "label," + ",".join(f"pixel{i}" for i in range(16))
    write("d.csv", header, *(f"{label},{row}" for label, row in zip(labels, rows, strict=True)))
    for _ in range(2):
        dataset = load_array("d.csv")
        assert torch.equal(everything(dataset), pixels(images)) and dataset.labels[:, 0].tolist() == labels
        assert dataset.info.factor_names == ("class",) and dataset.info.source["kind"] == "table"
        Path("d.csv").write_text(Path("d.csv").read_text().partition("\n")[2])  # and without names of columns
    write("d.csv", *(f"{row}" for row in rows))
    assert torch.equal(everything(load_array("d.csv")), pixels(images)) and load_array("d.csv").labels is None
    assert load_array("d.csv", shape=[2, 8]).info.shape == (1, 2, 8)
    assert load_array("d.csv", shape=[4, 2, 2]).info.shape == (4, 2, 2)
    np.save("d.npy", images)
    assert load_array("d.npy").info.source["sha256"] == load_array("d.csv").info.source["sha256"]
    write("words.csv", header.replace("label", "class"), *(f"{'ab'[i % 2]},{row}" for i, row in enumerate(rows)))
    assert load_array("words.csv").info.value_names == (("a", "b"),)


def test_a_table_of_floats():
    values = np.random.default_rng(0).random((3, 9)).astype(np.float32)
    write("d.csv", *(",".join(map(repr, row.tolist())) for row in values))
    assert torch.equal(everything(load_array("d.csv")).flatten(1), torch.from_numpy(values))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("1,2,3,4", "1,2,x,4"), "row 2 has cells that are no numbers"),
        (("a,b,c,d", "1,2,3,4", "1,2,3"), "row 3 has 3 cells, not 4"),
        (("1,2,3,4,5,6,7",), "rows of 7 pixels, which are no square images"),
        (("a,b,c,d",), "no images in this table"),
    ],
)
def test_tables_of_pixels_that_are_refused(lines, words):
    write("d.csv", *lines)
    with pytest.raises(InputError, match=words):
        load_array("d.csv")
