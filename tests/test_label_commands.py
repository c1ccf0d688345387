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

from vaecli import data, registry
from vaecli.analysis import intervention, labelled, readers
from vaecli.data.squares import Config as Squares
from vaecli.training import checkpoint

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


# ---- intervene


def place(size: int, left: int, top: int) -> int:
    """The image of the squares with these factors."""
    return (size * 13 + left) * 13 + top


def test_an_image_with_another_label(run: Path, vae: Vae) -> None:
    line = ["intervene", run, "--image", place(0, 4, 7), "--image", place(2, 9, 1), "--set", "y:size=1"]
    found = said(vae(*line, "--json", "-o", "a.png"))
    (only,) = found["interventions"]
    assert only["set"] == {"y:size": "1"} and only["read_as_set"] == {"size": 1.0}
    assert only["changed"] == {"size": 1.0, "posX": 0.0, "posY": 0.0}
    assert only["read"] == [{"size": "1", "posX": "4", "posY": "7"}, {"size": "1", "posX": "9", "posY": "1"}]
    assert found["path"] == "a.png" and found["n"] == 2 and Image.open("a.png").width > 3 * 64


def test_generated_images_and_all_values(run: Path, vae: Vae) -> None:
    done = vae("intervene", run, "--set", "y:posX=*", "-n", 30)
    assert done.code == 0, done.err
    assert "share of 30 images in which a factor is read otherwise than before, by an oracle" in done.err
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert header == ["set", "size", "posX", "posY"] and [row[0] for row in rows] == [f"posX {i}" for i in range(13)]
    assert all((row[1], row[3]) == ("0.000", "0.000") for row in rows)
    # Each image had one of the thirteen columns before, so that it stays once.
    assert sum(float(row[2]) for row in rows) == pytest.approx(12, abs=0.01)


def test_a_latent_in_deviations_of_its_prior(run: Path, vae: Vae) -> None:
    found = said(vae("intervene", run, "--set", "z0.16=-3:3:3", "--set", "y:size=0|2", "-n", 5, "--json"))
    combos = [(r["set"]["z0.16"], r["set"]["y:size"]) for r in found["interventions"]]
    assert combos == [(z, size) for z in (-3.0, 0.0, 3.0) for size in ("0", "2")]
    for r in found["interventions"]:
        row = min(12, int(13 * 0.5 * (1 + math.erf(r["set"]["z0.16"] / math.sqrt(2)))))
        assert all(one["posY"] == str(row) and one["size"] == r["set"]["y:size"] for one in r["read"])
        assert r["changed"]["posX"] == 0.0


def test_what_follows_and_what_is_kept(run: Path, vae: Vae) -> None:
    """The shade, z1, has the row's latent as its mean: it follows that unless it is kept. The image is white, so that
    z1 = -7.6; nine deviations further it is 1.4, and white becomes 1 - 0.2 sigmoid(1.4)."""
    dark = {}
    for keep in ([], ["--keep", "z1"]):
        line = ["intervene", run, "--image", place(1, 3, 6), "--set", "z0.16=9", *keep]
        assert vae(*line, "-o", f"{len(keep)}.png", "--json").code == 0
        picture = np.asarray(Image.open(f"{len(keep)}.png").convert("L"))
        last = picture[45:-45, -16 - 64 : -16]  # the last column's image
        dark[len(keep)] = int(np.bincount(last.ravel(), minlength=256)[205:225].max())
    assert dark[0] == 144 and dark[2] < 20  # three pixels a side, enlarged four times; the rest is of letters


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "nothing is set"),
        (["--set", "y:size=1", "--keep", "y"], "y cannot be both set and kept"),
        (["--set", "z0.3=1", "--keep", "z0"], "z0 cannot be both set and kept"),
        (["--set", "y:size=1", "--keep", "z00"], "--keep: no level is called 'z00'; did you mean 'z0'?"),
        (["--set", "q:size=1"], "--set: no level is called 'q'; there are: u, y, z0, z1"),
        (["--set", "z0:size=1"], "z0 is no level of labels"),
        (["--set", "y:sise=1"], "--set: no factor is called 'sise'; did you mean 'size'?"),
        (["--set", "y:size=5"], "--set: size has no value '5'"),
        (["--set", "z0.99=1"], "no such latent; there are u0.0 to z1.1".replace("u0.0", "u.0")),
        (["--set", "q.1=1"], "--set: no level is called 'q'"),
        (["--set", "z0.1=x"], "write a number, a|b, or LOW:HIGH:COUNT"),
        (["--set", "z0.1=1:2"], "write a number, a|b, or LOW:HIGH:COUNT"),
        (["--set", "z0.1=inf"], "write a number"),
        (["--set", "z0.1=0:1:9999999999"], "write a number"),
        (["--set", "z0.1"], "write LEVEL:FACTOR=VALUE or LATENT=NUMBER"),
        (["--set", "z0.1=1", "--set", "z0.1=2"], "z0.1 is set twice"),
        (["--set", "z0.1=0:1:99", "--set", "z0.2=0:1:99"], "stands for 9,801 combinations"),
        (["--set", "y:size=1", "--image", "507"], "the data set has images 0 to 506"),
        (["--set", "y:size=1", "--image", "0", "-n", "3"], "-n counts generated images"),
        (["--set", "y:size=1", "-o", "a.gif"], "writes no such kind of file"),
    ],
)
def test_interventions_that_cannot_be(more: list[str], words: str, run: Path, vae: Vae) -> None:
    done = vae("intervene", run, *more)
    assert (done.code, done.out) == (2, ""), done.err
    assert words in done.err, done.err


def test_an_image_of_another_size(run: Path, vae: Vae) -> None:
    Image.new("L", (17, 16)).save("x.png")
    for line in (
        ["intervene", run, "--image", "x.png", "--set", "y:size=1"],
        ["mix", run, "--row", "x.png", "--column", 0],
    ):
        done = vae(*line)
        assert done.code == 3 and "x.png: is of 17x16 pixels, the model's images of 16x16" in done.err, done.err


def test_a_model_of_one_level(tiny_run: Path, vae: Vae) -> None:
    """No labels to set: latents of N(0, I), read by the data's templates."""
    found = said(vae("intervene", tiny_run, "--set", "z1=-3|3", "-n", 4, "--json"))
    assert [r["set"] for r in found["interventions"]] == [{"z1": -3.0}, {"z1": 3.0}]
    assert set(found["interventions"][0]["changed"]) == {"size", "posX", "posY"}
    done = vae("intervene", tiny_run, "--set", "y:size=1")
    assert done.code == 2 and "no level is called 'y'; there are: z" in done.err


# ---- mix


def test_levels_of_one_image_with_those_of_another(run: Path, vae: Vae) -> None:
    line = ["mix", run, "--row", place(0, 4, 7), "--row", place(1, 0, 0), "--column", place(2, 9, 1)]
    done = vae(*line, "--take", "y", "-o", "y.png")
    assert (done.code, done.out) == (0, "y.png\n"), done.err
    found = said(vae(*line, "-o", "z1.png", "--json"))
    assert found["take"] == ["z1"] and found["rows"] == [str(place(0, 4, 7)), str(place(1, 0, 0))]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--row", "1"], "images are mixed with others"),
        (["--row", "1", "--column", "2", "--take", "q"], "--take: no level is called 'q'; there are: u, y, z0, z1"),
        (["--row", "1", "--column", "507"], "the data set has images 0 to 506"),
        (
            ["--row", "1", "--column", "2", *(w for x in ("u", "y", "z0", "z1") for w in ("--take", x))],
            "leaves no level",
        ),
    ],
)
def test_mixtures_that_cannot_be(more: list[str], words: str, run: Path, vae: Vae) -> None:
    done = vae("mix", run, *more)
    assert (done.code, done.out) == (2, "") and words in done.err, done.err


# ---- traverse


def test_around_the_prior_of_a_label(run: Path, vae: Vae) -> None:
    found = said(vae("traverse", run, "--level", "z0", "--label", "size=2,posX=5", "-o", "a.png", "--json"))
    latents = found["latents"]
    assert [one["latent"] for one in latents[:2]] == ["z0.16", "z0.17"] and len(latents) == 18
    assert found["labels"] == "the prior's mode given size 2, posX 5"
    spread = [one["prior_sd"] for one in latents]
    assert spread == sorted(spread, reverse=True) and spread[:2] == pytest.approx([1, 0.5], rel=1e-6)
    assert latents[0]["values"] == pytest.approx(np.linspace(-3, 3, 11))
    assert latents[1]["values"] == pytest.approx(2 + 0.5 * np.linspace(-3, 3, 11))
    assert found["unit"] == "standard deviations of the prior"
    both = said(vae("traverse", run, "--level", "z1,z0", "--label", "size=2,posX=5", "-o", "b.png", "--json"))
    assert [one["latent"] for one in both["latents"][:3]] == ["z1.0", "z1.1", "z0.16"]
    everything = said(vae("traverse", run, "--label", "size=2", "-o", "c.png", "--json"))
    assert [one["level"] for one in everything["latents"]] == ["z0"] * 18 + ["z1"] * 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--label", "size=*"], "--label stands for 3 combinations, but a traversal is around one"),
        (["--label", "size=1", "--center", "3"], "--label says where the others stay, and so does --center"),
        (["--label", "size=1", "--level", "z0,z9"], "--level: no level is called 'z9'"),
    ],
)
def test_traversals_that_cannot_be(more: list[str], words: str, run: Path, vae: Vae) -> None:
    done = vae("traverse", run, *more)
    assert (done.code, done.out) == (2, "") and words in done.err, done.err


# ---- analyze --control


def test_all_measures_in_one_object(run: Path, vae: Vae) -> None:
    found = said(vae("analyze", run, "--control", "--split", "all", "--json"))["control"]
    assert found["factors"] == ["size", "posX"] and found["reader"]["accuracy"] == {"size": 1, "posX": 1, "posY": 1}
    assert [r["share"] for r in found["control_accuracy"]] == [1.0, 1.0]
    assert set(found["combination_accuracy"]) == {"seen"}
    assert found["label_flip_rate"]["y"] == 1.0 and found["label_flip_rate"]["z0"] == 0.0
    assert [r["level"] for r in found["prior_gap"]] == ["z0", "z1"]
    assert all(abs(r["transitivity"]["slack"]) < 1e-9 for r in found["label_accuracy"])
    probes = {r["factor"]: r for r in found["probes"]}
    assert probes["size"]["linear"] == 1.0 and probes["posY"]["labelled"] is False
    assert [r["name"] for r in found["disentanglement"]] == ["mig", "dci", "sap"]
    names = found["disentanglement"][0]["settings"]
    assert (names["latents"], names["images"]) == (18, 507)


def test_a_table_of_it(run: Path, vae: Vae) -> None:
    done = vae("analyze", run, "--control")
    assert done.code == 0, done.err
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert header == ["measure", "of", "value"]
    assert ["control accuracy", "size", "100.0% +- 0.0%, 100.0% by q(y|x); chance 33.3%"] in rows
    assert ["label flip rate", "z1", "0.0%"] in rows
    assert "read by nearest of 507 images" in done.err and "verdict" in done.err


def test_control_of_a_model_without_labels(tiny_run: Path, vae: Vae) -> None:
    done = vae("analyze", tiny_run, "--control")
    assert done.code == 2 and "beta-vae has no labels to ask for" in done.err and done.out == ""


def test_the_report_has_a_section_of_it(run: Path, vae: Vae) -> None:
    found = said(vae("report", run, "-o", "a.html", "--metrics", "none", "--json"))
    assert found["control"]["control_accuracy"][0]["share"] == 1.0
    page = Path("a.html").read_text()
    section = page[page.index('<section id="control">') :].partition("</section>")[0]
    for heading in ("Labels asked for", "Interventions on size", "Recombination", "Prior of z0", "Prior of z1"):
        assert f"<h3>{heading}</h3>" in section
    assert section.count("<img") == 6 and "100.0% ± 0.0%" in section


def test_the_report_of_a_model_without_labels_has_none(tiny_run: Path, vae: Vae) -> None:
    found = said(vae("report", tiny_run, "-o", "a.html", "--metrics", "none", "--json"))
    assert "control" not in found and "Control by labels" not in Path("a.html").read_text()


# ---- the models that there are


def trained(name: str, vae: Vae) -> Path:
    tiny = registry.load("model", name).Config.tiny
    sets = [part for key, value in tiny.items() for part in ("-S", f"model.{key}={json.dumps(value)}")]
    line = ["train", "--data", "squares", "--model", name, *sets, "--steps", 3, "--batch-size", 32, "-q"]
    done = vae(*line, "--runs-dir", "r", "--name", name)
    assert done.code == 0, done.err
    return Path(done.out.strip())


@pytest.mark.parametrize("name", ["semafo-vae", "semafo-hvae", "m2", "ccvae"])
def test_the_models_with_labels(name: str, vae: Vae) -> None:
    """What holds of any of them, whatever it has learnt."""
    run = trained(name, vae)
    model = checkpoint.load(run, torch.device("cpu")).model
    names, lowest = [level.name for level in model.levels], model.levels[-1].name
    found = said(vae("sample", run, "--label", "size=*", "-n", 6, "-o", "a.npz", "--json"))
    assert [image["labels"]["size"] for image in found["images"]] == ["0", "1", "2"] * 2
    with np.load("a.npz") as stored:
        assert stored["z"].shape == (6, sum(level.size for level in model.levels))
    for line in (
        ["intervene", run, "--image", 7, "--set", "y:size=1", "--keep", lowest, "-o", "b.png"],
        ["mix", run, "--row", 1, "--column", 2, "--column", 300, "--take", lowest, "-o", "c.png"],
        ["traverse", run, "--label", "size=1", "--level", lowest, "--steps", 3, "-o", "d.png"],
    ):
        done = vae(*line)
        assert done.code == 0, done.err
    with torch.inference_mode():
        old = intervention.of_image(model, SQUARES.split("all").take(50).x_BCHW)
        new = intervention.apply(model, old, intervention.Change({0: 2}))
        assert labelled.labels_of(model, new)[:, 0].eq(2).all()
        assert torch.equal(labelled.labels_of(model, new)[:, 1:], labelled.labels_of(model, old)[:, 1:])
        back = intervention.apply(model, new, intervention.Change({0: labelled.labels_of(model, old)[:, 0]}))
        for level in names:  # there and back again: nothing of the noise is lost on the way
            np.testing.assert_allclose(back[level], old[level], rtol=1e-3, atol=1e-3)


def test_a_density_of_each_label_makes_any_model_one_of_labels(tiny_run: Path, vae: Vae) -> None:
    done = vae("density", tiny_run, "--fit", "class-normal", "--set", "factors=[size]", "-q")
    assert done.code == 0, done.err
    found = said(vae("sample", tiny_run, "--label", "size=*", "-n", 6, "-o", "a.npz", "--json"))
    assert [image["asked"] for image in found["images"]] == [{"size": str(i % 3)} for i in range(6)]
    assert found["read_back"]["model"] is None and set(found["read_back"]["oracle"]) == {"size"}
    with np.load("a.npz") as stored:
        assert stored["label_names"].tolist() == ["size"] and "labels" not in stored.files
    hot = vae("sample", tiny_run, "--label", "size=1", "--temperature", 2, "-o", "b.npz")
    assert hot.code == 2 and "a density has none" in hot.err
    control = said(vae("analyze", tiny_run, "--control", "--json"))["control"]
    assert control["control_accuracy"][0]["factor"] == "size" and control["interventions"] == []
    assert control["prior_gap"][0]["kl"] is None and control["drawn_from"].startswith("a Gaussian for each size")
    none = vae("analyze", tiny_run, "--control", "--density", "none")
    assert none.code == 2 and "has no labels to ask for" in none.err
