"""sample --label, intervene, mix, traverse --label and analyze --control, on a model whose every answer is known."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image
from torch import Tensor

from vaecli import data
from vaecli.analysis import control, readers
from vaecli.data.squares import Config as Squares

Vae = Callable[..., Result]
SQUARES = data.load(Squares(name="squares"))


@pytest.fixture
def run(vae: Vae, known_models: None) -> Path:
    done = vae("train", "--data", "squares", "--model", "painter", "--steps", 1, "--runs-dir", "r", "--name", "a", "-q")
    assert done.code == 0, done.err
    return Path(done.out.strip())


def said(done: Result) -> dict[str, Any]:
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def factors(images: Any) -> Tensor:
    return readers.templates(SQUARES).predict(torch.as_tensor(images))


# ---- sample


def test_a_column_a_value(run: Path, vae: Vae) -> None:
    done = vae("sample", run, "--label", "size=*", "-n", 9, "-o", "a.npz")
    assert done.code == 0, done.err
    assert "read back as asked for: size 100.0% by the model's q(y|x); size 100.0% by the oracle" in done.err
    with np.load("a.npz") as stored:
        images = stored["images"]
        assert images.shape == (9, 1, 16, 16) and stored["z"].shape == (9, 16 + 16 + 18 + 2)
        assert stored["asked"].tolist() == [[i % 3, -1] for i in range(9)]
        assert stored["label_names"].tolist() == ["size", "posX"]
        assert torch.equal(factors(images)[:, :2], torch.from_numpy(stored["labels"]))
        for name in ("read_by_model", "read_by_oracle"):
            assert np.array_equal(stored[name], stored["labels"])
    done = vae("sample", run, "--label", "size=*", "-n", 9, "-o", "a.png", "-q")
    assert done.code == 0 and done.err == ""
    # Three columns of images of 64 pixels with 4 between them, in three rows.
    assert Image.open("a.png").width < 4 * 68 + 40 and Image.open("a.png").height > 3 * 68


def test_labels_asked_for_and_read_back(run: Path, vae: Vae) -> None:
    found = said(vae("sample", run, "--label", "posX=3:4,size=2", "-n", 4, "-o", "a.png", "--json"))
    assert [image["asked"] for image in found["images"]] == [{"size": "2", "posX": str(3 + i % 2)} for i in range(4)]
    assert all(image["asked"] == image[by] for image in found["images"] for by in ("labels", "model", "oracle"))
    assert found["read_back"] == {"model": {"size": 1.0, "posX": 1.0}, "oracle": {"size": 1.0, "posX": 1.0}}
    assert found["n"] == 4 and found["reader"]["kind"] == "templates" and found["drawn_from"] == "the model"
    again = said(vae("sample", run, "--label", "posX=3:4,size=2", "-n", 2, "-o", "b.npz", "--json"))
    assert again["images"] == found["images"][:2]


def test_a_slip_is_told(vae: Vae, known_models: None) -> None:
    line = ["train", "--data", "squares", "--model", "painter", "-S", "model.slip=0.5", "--steps", 1, "-q"]
    done = vae(*line, "--runs-dir", "r", "--name", "b")
    found = said(vae("sample", done.out.strip(), "--label", "size=1", "-n", 200, "-o", "a.npz", "--json"))
    share = found["read_back"]["oracle"]["size"]
    assert found["read_back"]["model"]["size"] == share and abs(share - 0.5) < 4 * math.sqrt(0.25 / 200)
    with np.load("a.npz") as stored:
        assert share == float((factors(stored["images"])[:, 0] == 1).double().mean())
    assert all(image["labels"]["size"] == "1" for image in found["images"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--label", "sise=1"], "no factor is called 'sise'; did you mean 'size'?"),
        (["--label", "size=3"], "size has no value '3'; there are: 0, 1, 2"),
        (["--label", "posY=1"], "posY is a factor of squares, but the model has labels of size, posX alone"),
        (["--label", "size=*,posX=*", "-n", 38], "--label stands for 39 combinations, but -n is 38"),
        (["--label", "size"], "write FACTOR=VALUE"),
    ],
)
def test_labels_that_there_are_not(more: list[str], words: str, run: Path, vae: Vae) -> None:
    done = vae("sample", run, *more, "-o", "a.png")
    assert (done.code, done.out) == (2, "") and words in done.err and not Path("a.png").exists()


def test_models_without_labels(tiny_run: Path, vae: Vae) -> None:
    done = vae("sample", tiny_run, "--label", "size=1", "-o", "a.png")
    assert done.code == 2 and "beta-vae has no labels to ask for" in done.err


def test_without_the_data_nothing_is_read_back_by_an_oracle(
    run: Path, vae: Vae, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaecli.errors import InputError

    def gone(*_: object) -> None:
        raise InputError("squares: not there")

    monkeypatch.setattr(data, "load", gone)
    done = vae("sample", run, "--label", "size=1", "-n", 3, "-o", "a.png", "--json")
    found = said(done)
    assert found["reader"] is None and found["read_back"] == {"model": {"size": 1.0}, "oracle": None}
    assert "not read back by an oracle: squares: not there" in done.err
