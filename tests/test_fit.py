"""`data.fit`: what becomes of images of other proportions, by values worked out by hand; said, and kept with a run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image
from pydantic import ValidationError

from vaecli import data
from vaecli.batch import DataInfo
from vaecli.data import _fit, folder
from vaecli.errors import InputError

Vae = Callable[..., Result]
RAMP = (np.arange(64, dtype=np.uint8) * 3 + 10).reshape(1, 64).repeat(16, axis=0)  # 16x64: 3 levels a column


def grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def test_pad_keeps_the_whole_image_in_the_middle_of_black() -> None:
    """16x64 to 8x8: a quarter of the height is the image, at an eighth: rows 3 and 4, each pixel of 8 columns."""
    padded = _fit.fitted(grey(RAMP), 8, 8, "pad")
    assert padded.shape == (1, 8, 8) and padded.dtype == np.uint8
    assert not padded[0, :3].any() and not padded[0, 5:].any()
    expected = 10 + 3 * (8 * np.arange(8) + 3.5)
    # Bicubic at the outermost pixels sees beyond the border, where there is nothing.
    assert np.abs(padded[0, 3:5, 1:-1] - expected[1:-1]).max() <= 1
    assert np.abs(padded[0, 3:5] - expected).max() <= 4
    tall = _fit.fitted(grey(RAMP.T), 8, 8, "pad")
    np.testing.assert_array_equal(tall[0], padded[0].T)


def test_stretch_takes_each_direction_by_a_factor_of_its_own() -> None:
    stretched = _fit.fitted(grey(RAMP), 8, 8, "stretch")
    expected = 10 + 3 * (8 * np.arange(8) + 3.5)
    assert np.abs(stretched[0, :, 1:-1] - expected[1:-1]).max() <= 1
    assert np.abs(stretched[0, :, 0] - expected[0]).max() <= 4
    assert np.abs(stretched[0] - stretched[0, :1]).max() <= 1
    larger = _fit.fitted(grey(RAMP[:, :4]), 32, 4, "stretch")  # enlarged in one direction alone
    assert np.abs(larger[0] - RAMP[:1, :4]).max() <= 1


def test_crop_is_the_middle() -> None:
    cropped = _fit.fitted(grey(RAMP), 4, 4, "crop")
    assert np.abs(cropped[0] - (10 + 3 * np.array([25.5, 29.5, 33.5, 37.5]))).max() <= 1


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(64, 64), (37, 11), (8, 8)])
def test_the_same_proportions_are_resized_alike(fit: _fit.Fit, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = grey(rng.integers(0, 256, size, dtype=np.uint8))
    np.testing.assert_array_equal(_fit.fitted(image, *size, fit)[0], np.asarray(image))
    half = size[0] * 2, size[1] * 2
    np.testing.assert_array_equal(_fit.fitted(image, *half, fit), _fit.fitted(image, *half, "crop"))
    constant = grey(np.full((300, 200, 3), (10, 20, 30), np.uint8))
    assert (_fit.fitted(constant, 30, 20, fit) == np.array([10, 20, 30])[:, None, None]).all()


def test_misfit_is_what_crop_cuts_off_and_what_pad_leaves_black() -> None:
    assert _fit.misfit(grey(RAMP), 4, 4) == 0.75
    assert _fit.misfit(grey(RAMP), 8, 32) == 0
    white = grey(np.full((80, 400), 255, np.uint8))
    assert (_fit.fitted(white, 100, 100, "pad") == 0).mean() == pytest.approx(_fit.misfit(white, 100, 100)) == 0.8


def wide(n: int = 12) -> None:
    Path("d").mkdir()
    rng = np.random.default_rng(1)
    for i in range(n):
        grey(rng.integers(1, 256, (16, 64), dtype=np.uint8)).save(f"d/{i:02}.png")


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        ("crop", "12 images are cropped to the proportions of 16x16, which cuts off 75% of each; data.fit=pad"),
        ("pad", "12 images are padded to 16x16: 75% of each is black border"),
        ("stretch", "12 images are stretched to 16x16, by up to 4.00 in one direction"),
    ],
)
def test_the_fit_is_said_and_kept_for_files_and_folders(fit: str, said: str, vae: Vae) -> None:
    wide()
    done = vae(
        *("train", "--data", "folder:d", "-S", "data.image_size=16", "-S", f"data.fit={fit}", "--steps", 2),
        *("--latent-dim", 2, "-S", "data.holdout=0", "--batch-size", 4, "--name", "r"),
    )
    assert done.code == 0, done.err
    assert said in done.err
    banner = {"crop": "up to 75% of an image cut off", "pad": "75% of an image black", "stretch": "by up to 4.00"}
    assert f"of other proportions than 16x16: {fit}" in done.err and banner[fit] in done.err
    # A file given to the model, and a folder in place of files, are fitted as in training.
    for given in (["d/03.png"], ["d"]):
        assert vae("encode", "runs/r", *given, "-o", "some.npz", "--force").code == 0
        codes = np.load("some.npz")["codes"]
        assert vae("encode", "runs/r", "--split", "all", "-o", "all.npz", "--force").code == 0
        every = np.load("all.npz")["codes"]
        np.testing.assert_allclose(codes, every if given == ["d"] else every[3:4], rtol=1e-5, atol=1e-6)


def test_sizes_are_height_and_width() -> None:
    wide(3)
    for fit in ("crop", "pad", "stretch"):
        config = folder.Config(name="folder", path="d", image_size=[8, 32], fit=fit)
        assert folder.load(config).info.shape == (1, 8, 32)
    for size in ([8], [8, 8, 8], [0, 8], [8.5, 8], "8x8"):
        with pytest.raises(ValidationError):
            folder.Config.model_validate({"name": "folder", "path": "d", "image_size": size})
    with pytest.raises(ValidationError):
        folder.Config.model_validate({"name": "folder", "path": "d", "fit": "squash"})


def test_runs_of_before_are_cropped_and_a_strangers_fit_is_refused() -> None:
    assert data.fit_of(DataInfo("folder", (1, 8, 8), 3)) == "crop"
    for stored in ("pad", {"how": "no"}, {}, ["pad"]):
        with pytest.raises(InputError, match="damaged"):
            data.fit_of(DataInfo("folder", (1, 8, 8), 3, source={"fit": stored}))
