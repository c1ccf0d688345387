"""Labels in words, and combinations that are kept out of training."""

import pytest
import torch

from vaecli import data, label_expressions
from vaecli.batch import DataInfo
from vaecli.data.squares import Config as Squares
from vaecli.errors import ConfigError

FACTORS = ("shape", "scale", "digit", "sign")
INFO = DataInfo(
    "toy", (1, 4, 4), 9, FACTORS, (3, 20, 10, 2),
    value_names=(("square", "ellipse", "heart"), (), tuple("0123456789"), ("-1", "1")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["shape=heart"], {"shape": [2]}),
        (["shape=heart,scale=3"], {"shape": [2], "scale": [3]}),
        (["scale=3", "shape=heart"], {"scale": [3], "shape": [2]}),
        (["shape=heart|square"], {"shape": [2, 0]}),
        (["shape=*"], {"shape": [0, 1, 2]}),
        (["digit=*"], {"digit": list(range(10))}),
        (["scale=4:7"], {"scale": [4, 5, 6, 7]}),
        (["scale=4-7"], {"scale": [4, 5, 6, 7]}),
        (["scale=4:4"], {"scale": [4]}),
        (["digit=7:9|0|8"], {"digit": [7, 8, 9, 0]}),
        (["sign=-1"], {"sign": [0]}),
        (["sign=-1:1"], {"sign": [0, 1]}),
        ([" shape = heart , digit = 1 "], {"shape": [2], "digit": [1]}),
    ],
)
def test_what_an_expression_names(texts: list[str], expected: dict[str, list[int]]) -> None:
    assert label_expressions.wanted(texts, INFO, FACTORS) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shape=hart", "--label: shape has no value 'hart'; did you mean 'heart'?"),
        ("shape=zzzzz", "--label: shape has no value 'zzzzz'; there are: ellipse, heart, square"),
        ("shape=2", "shape has no value '2'"),
        ("shape=square:heart", "the values of shape have no order"),
        ("scale=20", "scale has no value '20'; there are: 0 to 19"),
        ("scale=3:20", "scale has no value '20'; there are: 0 to 19"),
        ("scale=7:4", "scale=7:4 goes downwards"),
        ("scale=-1", "scale has no value '-1'"),
        ("shap=heart", "no factor is called 'shap'; did you mean 'shape'?"),
        ("shape", "write FACTOR=VALUE"),
        ("shape=", "write FACTOR=VALUE"),
        ("", "write FACTOR=VALUE"),
        ("shape=heart,shape=square", "shape is given twice"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        label_expressions.wanted([text], INFO, FACTORS)
    assert words in str(error.value)


def test_a_factor_without_labels_in_the_model() -> None:
    with pytest.raises(ConfigError, match="scale is a factor of toy, but the model has labels of shape, digit alone"):
        label_expressions.wanted(["scale=3"], INFO, ("shape", "digit"))


def test_combinations_and_their_names() -> None:
    rows = label_expressions.combinations({"sign": [1, 0], "shape": [2, 1]}, FACTORS)
    assert rows == [[2, -1, -1, 1], [1, -1, -1, 1], [2, -1, -1, 0], [1, -1, -1, 0]]
    assert label_expressions.combinations({}, FACTORS) == [[-1, -1, -1, -1]]
    named = label_expressions.text_of([2, 19, -1, 0], INFO, FACTORS)
    assert named == {"shape": "heart", "scale": "19", "digit": None, "sign": "-1"}


def test_names_of_an_earlier_version() -> None:
    info = DataInfo("toy", (1, 4, 4), 9, ("shape",), (3,))
    assert label_expressions.wanted(["shape=1:2"], info, ("shape",)) == {"shape": [1, 2]}


# ---- data.exclude


def test_excluded_images_are_in_no_other_split() -> None:
    whole = data.load(Squares(name="squares"))
    dataset = data.load(Squares(name="squares", exclude={"size": 2, "posX": "0-5", "posY": [1, "7|8"]}))
    assert dataset.labels is not None
    size, left, top = dataset.labels.unbind(dim=1)
    expected = (size == 2) & (left <= 5) & torch.isin(top, torch.tensor([1, 7, 8]))
    assert int(expected.sum()) == 18
    assert sorted(dataset.splits["excluded"].tolist()) == expected.nonzero()[:, 0].tolist()
    for name in ("train", "val"):  # what is held out stays held out
        kept = whole.splits[name]
        assert torch.equal(dataset.splits[name], kept[~expected[kept]])
    assert dataset.info.size == len(dataset.splits["train"]) and len(dataset.split("all")) == 507
    assert len(dataset.split("excluded")) == 18 and dataset.split("excluded").name == "excluded"
    limited = data.load(Squares(name="squares", limit=30, exclude={"size": 2}))
    assert limited.info.size == 30 and not bool((limited.labels[limited.splits["train"], 0] == 2).any())  # type: ignore[index]


@pytest.mark.parametrize(
    ("exclude", "words"),
    [
        ({"sise": 2}, "data.exclude: no factor is called 'sise'; did you mean 'size'?"),
        ({"size": 3}, "data.exclude: size has no value '3'"),
        ({"size": "0-2"}, "data.exclude leaves no image to train on"),
        ({"size": "0|4"}, "data.exclude: size has no value '4'"),
    ],
)
def test_exclusions_that_do_not_fit(exclude: dict[str, str | int], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        data.load(Squares(name="squares", exclude=exclude))
    assert words in str(error.value)


def test_a_split_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"there are: train, val, test, all$"):
        data.load(Squares(name="squares")).split("excluded")
    with pytest.raises(ConfigError, match="train, val, test, all, excluded"):
        data.load(Squares(name="squares", exclude={"size": 1})).split("exclude")


def test_from_the_command_line(vae) -> None:  # type: ignore[no-untyped-def]
    done = vae("train", "--data", "squares", "--steps", 1, "-S", "data.exclude={size: 1, posX: 0-3}", "--dry-run")
    assert done.code == 0, done.err
    done = vae("train", "--data", "squares", "--steps", 1, "-S", "data.exclude={}", "--dry-run")
    assert done.code == 2 and "data.exclude" in done.err
