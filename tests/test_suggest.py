"""`vae suggest`: the spectrum against NumPy and against the linear VAE it speaks of; sizes, counts, the command."""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image

from vaecli import data, registry
from vaecli.analysis import suggestion
from vaecli.data import array
from vaecli.data.base import Dataset

Vae = Callable[..., Result]


def arrays(n: int = 300, side: int = 8, seed: int = 0) -> Dataset:
    """Images of a falling spectrum, none of them clipped."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(side * side, side * side)))[0]
    scales = 0.5 * 0.8 ** np.arange(side * side)
    x = 0.5 + (rng.uniform(-0.5, 0.5, (n, side * side)) * scales) @ axes.T
    assert x.min() > 0 and x.max() < 1
    np.save("x.npy", x.reshape(n, side, side).astype(np.float32))
    return data.load(array.Config(name="array", path="x.npy", holdout=0))


@pytest.mark.parametrize("n", [300, 40])  # more images than pixels, and fewer
def test_spectrum_is_that_of_the_covariance(n: int) -> None:
    dataset = arrays(n)
    found = suggestion.spectrum(dataset.split("train"))
    x = np.load("x.npy").reshape(n, -1).astype(np.float64)
    expected = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1][: min(n, 64)]
    np.testing.assert_allclose(found.value_E.numpy(), np.maximum(expected, 0), rtol=1e-5, atol=1e-9)
    assert found.images == n and found.pixels == 64
    assert found.total == pytest.approx(x.var(axis=0).sum(), rel=1e-6)
    assert found.noise(0.25) == pytest.approx(x.var(axis=0).mean() / 4, rel=1e-6)


def test_numbers_are_those_of_the_linear_vae_in_closed_form(vae: Vae) -> None:
    """Fitted at the decoder variance that is taken, it has as many active latents, and that KL."""
    dataset = arrays()
    found = suggestion.spectrum(dataset.split("train"))
    noise = found.noise(0.2)
    active = found.active(noise)
    assert 3 < active < 20
    for latents in (active + 5, active - 2):
        fitted = vae(
            *(
                "train",
                "--data",
                "array:x.npy",
                "-S",
                "data.holdout=0",
                "--model",
                "linear-vae",
                "--latent-dim",
                latents,
            ),
            *("-S", f"model.variance={noise!r}", "--name", "linear", "--force", "-q"),
        )
        assert fitted.code == 0, fitted.err
        told = json.loads(vae("analyze", "runs/linear", "--split", "train", "--json").out)
        assert told["totals"]["kl"] == pytest.approx(found.rate(noise, latents), rel=1e-4)
        used = sum(row["kl"] > 1e-6 for row in told["latents"])
        assert used == min(active, latents)


def test_latents_are_bounded_by_what_is_known_to_vary() -> None:
    value = np.array([8.0, 4.0, 2.0, 1.0, 0.5])
    found = suggestion.Spectrum(torch.tensor(value), 100, 10)
    assert found.active(1.0) == 3 and found.active(0.1) == 5
    assert found.rate(1.0, 2) == pytest.approx((math.log(8) + math.log(4)) / 2)
    assert found.rate(1.0, 99) == pytest.approx((math.log(8) + math.log(4) + math.log(2)) / 2)
    assert suggestion.latents(found, 0.1, None)[0] == 5
    assert suggestion.latents(found, 0.1, 2)[0] == 4
    assert suggestion.latents(found, 0.1, 3)[0] == 5
    assert suggestion.latents(found, 7.0, None)[0] == 2
    flat = suggestion.Spectrum(torch.ones(1000), 2000, 1000)
    assert suggestion.latents(flat, 0.1, None)[0] == suggestion.MOST_LATENTS
    few = suggestion.Spectrum(torch.ones(53, dtype=torch.float64), 54, 1000)  # as many axes as the images allow
    assert suggestion.latents(few, 0.1, None)[0] == 13 and "too few" in suggestion.latents(few, 0.1, None)[1]
    assert suggestion.latents(few, 0.1, 3)[0] == 6
    enough = suggestion.Spectrum(torch.ones(53, dtype=torch.float64), 106, 1000)
    assert suggestion.latents(enough, 0.1, None)[0] == 53


def test_capacity_of_a_grid_is_no_more_than_twice_what_tells_its_images_apart() -> None:
    squares = data.load(registry.load("dataset", "squares").Config(name="squares", holdout=0))
    found = suggestion.spectrum(squares.split("train"))
    noise = found.noise(0.001)
    assert found.rate(noise, 50) > 2 * math.log(507)
    assert suggestion.capacity(found, noise, 50, squares)[0] == pytest.approx(2 * math.log(507))
    assert suggestion.capacity(found, noise, 1, squares)[0] == pytest.approx(math.log(found.value_E[0] / noise) / 2)


def test_steps_are_a_hundred_passes_within_bounds() -> None:
    assert suggestion.steps(500, 64) == 5_000
    assert suggestion.steps(6_400, 64) == 10_000
    assert suggestion.steps(737_280, 64) == 50_000


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([(64, 64)] * 5, None),
        ([(28, 100)] * 5, None),
        ([(480, 640)] * 9 + [(640, 480)], [64, 80]),  # 64 * 4/3 = 85.3, to a multiple of 16
        ([(480, 640), (640, 480), (500, 500)], [64, 64]),
        ([(400, 80)] * 3, [320, 64]),
        ([(40, 40), (50, 50)], [32, 32]),
        ([(5, 7), (6, 9)], [16, 16]),
        ([(100, 4000)] * 2, [64, 512]),
    ],
)
def test_image_size(sizes: list[tuple[int, int]], wanted: list[int] | None) -> None:
    assert suggestion.image_size(sizes) == wanted


def suggested(vae: Vae, *args: object) -> dict[str, Any]:
    done = vae("suggest", *args, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_a_folder_of_photos_and_the_command_runs(vae: Vae) -> None:
    Path("my photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        size = (36, 48, 3) if i % 10 else (60, 80, 3)
        smooth = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(smooth).resize(size[1::-1], Image.Resampling.BICUBIC).save(f"my photos/{i}.png")
    found = suggested(vae, "folder:my photos")
    assert found["schema"] == 1 and found["net"] == "conv" and found["likelihood"] == "gaussian"
    assert found["data"]["shape"] == [3, 32, 48] and found["data"]["images"] == 30
    assert found["steps"] == 5_000 and found["seconds"] == pytest.approx(5_000 * 64 / found["images_per_second"])
    assert 2 <= found["latents"] <= 27 and found["c_max"] > 0 and found["warning"] is None
    words = shlex.split(found["command"])
    assert words[:4] == ["vae", "train", "--data", "folder:my photos"] and "data.image_size=[32, 48]" in words
    done = vae(*words[1:], "--steps", 2, "--name", "r")
    assert done.code == 0 and "net conv" in done.err, done.err
    table = vae("suggest", "folder:my photos")
    assert table.code == 0 and f"command\t{found['command']}\n" in table.out


def test_the_decoders_deviation_can_be_given(vae: Vae) -> None:
    dataset = arrays()
    found = suggestion.spectrum(dataset.split("train"))
    told = suggested(vae, "array:x.npy", "--sigma", 0.02, "-S", "data.holdout=0")
    assert told["latents"] == found.active(0.02**2)
    assert told["data"]["spectrum"]["decoder_sigma"] == pytest.approx(0.02)
    assert "-S data.holdout=0" in told["command"]


def test_factors_that_pixels_cannot_line_up_are_named(vae: Vae) -> None:
    """Squares that move by more than their size: every two places are as far apart."""
    labels = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), axis=-1).reshape(-1, 2)
    x = np.zeros((16, 16, 16), np.uint8)
    for image, (row, column) in zip(x, labels, strict=True):
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255
    np.savez("grid.npz", images=x, factors=labels, factor_names=np.array(["row", "column"]))
    told = suggested(vae, "array:grid.npz")
    assert "no beta will line them up" in told["warning"] and told["likelihood"] == "bernoulli"
    assert told["latents"] == 4 and told["c_max"] <= 2 * math.log(16) + 1e-9
    assert suggested(vae, "squares")["warning"] is None
    assert "beta\tin pixels" in vae("suggest", "array:grid.npz").out


def test_what_cannot_be_suggested_for(vae: Vae) -> None:
    np.save("same.npy", np.full((9, 8, 8), 0.5, np.float32))
    for args, code, words in (
        (["array:same.npy"], 3, "all images are the same"),
        (["squares", "-S", "model.net=mlp"], 2, "only settings of the data"),
        (["folder:nowhere"], 3, "is not a folder"),
        (["nothing"], 2, "no dataset is called"),
        (["squares", "--sigma", "0"], 2, "--sigma"),
    ):
        done = vae("suggest", *args)
        assert done.code == code and words in done.err, done.err
