"""Images that have moved, and new ones through a trained model: `--data`, folders and arrays in place of files."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Result
from PIL import Image

from vaecli.batch import at_once
from vaecli.models.base import GaussianVAE

Vae = Callable[..., Result]


@pytest.fixture
def run(vae: Vae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Trained on the folder `here`, 20 grey images of 8x8."""
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))
    os.mkdir("here")
    for i in range(20):
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(f"here/{i:02d}.png")
    train = ("train", "--model", "vae", *TINY[2:], "--data", "folder:here", "--steps", 2, "--runs-dir", "runs", "-q")
    return vae(*train, "--name", "r").out.strip()


def codes(text: str) -> dict[str, list[float]]:
    return {row["file"]: [float(row[f"z{d}"]) for d in range(3)] for row in csv.DictReader(io.StringIO(text))}


def test_a_moved_folder_is_named_to_every_command(vae: Vae, run: str) -> None:
    before = vae("encode", run, "--split", "all", "-o", "-").out
    elbo = json.loads(vae("analyze", run, "--json").out)["totals"]["elbo"]
    os.rename("here", "there")
    gone = vae("analyze", run)
    assert gone.code == 3 and "--data folder:PATH" in gone.err
    assert vae("encode", run, "--split", "all", "--data", "folder:there", "-o", "-").out == before
    found = vae("analyze", run, "--data", "there", "--json")
    assert json.loads(found.out)["totals"]["elbo"] == elbo and "are not those" not in found.err
    for command in (
        ("report", run, "--metrics", "none", "-o", "r.html"),
        ("reconstruct", run, "-n", 2),
        ("traverse", run, "--center", "3"),
        ("interpolate", run, "1", "2"),
        ("density", run, "--fit", "normal"),
        ("compare", run),
    ):
        assert vae(*command).code in (0, 3)
        done = vae(*command, "--data", "folder:there", *(["--force"] if command[0] != "compare" else []))
        assert done.code == 0, done.err


def test_resume_takes_the_same_images_from_another_place(vae: Vae, run: str) -> None:
    os.rename("here", "there")
    done = vae("train", "--resume", run, "--data", "folder:there", "--steps", 3)
    assert done.code == 0 and "data.path" in done.err, done.err
    assert vae("analyze", run).code == 0  # the run remembers
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save("there/99.png")
    os.rename("there", "elsewhere")
    done = vae("train", "--resume", run, "--data", "folder:elsewhere", "--steps", 4)
    assert done.code == 3 and "not the images the run was trained on" in done.err


def test_new_images_as_a_folder_or_an_array(vae: Vae, run: str) -> None:
    known = codes(vae("encode", run, "--split", "all", "-o", "-").out)
    os.mkdir("new")
    Image.fromarray(np.full((8, 8, 3), 70, np.uint8)).save("new/colour.png")
    Image.fromarray(np.full((16, 16), 120, np.uint8)).save("new/large.png")
    found = codes(vae("encode", run, "new", "-o", "-").out)
    assert found["colour.png"] == pytest.approx(known["07.png"], rel=1e-4)
    assert found["large.png"] == pytest.approx(known["12.png"], rel=1e-4)
    np.save("new.npy", np.stack([np.full((8, 8), shade, np.uint8) for shade in (120, 30)]))
    rows = list(csv.DictReader(io.StringIO(vae("encode", run, "new.npy", "-o", "-").out)))
    assert [float(rows[1][f"z{d}"]) for d in range(3)] == pytest.approx(known["03.png"], rel=1e-4)
    assert vae("reconstruct", run, "new", "-n", 2).code == 0
    mixed = vae("encode", run, "new", "here/01.png", "-o", "-")
    assert mixed.code == 2 and "alone" in mixed.err
    np.save("other.npy", np.zeros((2, 9, 9), np.uint8))
    wrong = vae("encode", run, "other.npy", "-o", "-")
    assert wrong.code == 3 and "1x9x9 now, the model was trained on 1x8x8" in wrong.err


def test_networks_take_few_large_images_at_once(monkeypatch: pytest.MonkeyPatch, vae: Vae) -> None:
    """Whatever is held out, evaluation takes no more at once than as many pixels as 512 grey images of 64x64."""
    assert [at_once(shape) for shape in ((1, 64, 64), (1, 28, 28), (3, 128, 128), (3, 2048, 2048))] == [512, 512, 42, 1]
    monkeypatch.setattr("vaecli.batch.MOST_VALUES", 200)
    sizes: list[int] = []
    features = GaussianVAE.features
    monkeypatch.setattr(GaussianVAE, "features", lambda self, x: sizes.append(len(x)) or features(self, x))
    np.save("a.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8))
    train = ("train", "--model", "vae", *TINY[2:], "--data", "array:a.npy", "--steps", 1, "--batch-size", 2)
    run = vae(*train, "--set", "data.holdout=30", "--set", "model.likelihood=bernoulli", "-q").out.strip()
    assert vae("analyze", run).code == vae("reconstruct", run, "-n", 20).code == vae("encode", run).code == 0
    assert len(sizes) > 30 and max(sizes) == 3
