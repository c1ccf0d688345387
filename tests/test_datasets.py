"""`vae datasets NAME`: what it says of a set against NumPy, and how it refuses."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result

from vaecli.commands import datasets


def test_numbers_of_an_array(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "ENTRIES", 7 * 5 * 3 * 4)  # several blocks, the last one smaller
    images_NHWC = np.random.default_rng(0).integers(0, 256, (23, 5, 3, 3), dtype=np.uint8)
    np.save("images.npy", images_NHWC)
    done = vae("datasets", "array:images.npy", "--set", "data.holdout=3", "--json", "-q")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    x_NP = images_NHWC.reshape(23, -1) / 255
    assert found["schema"] == 1 and found["images"] == 23 and found["shape"] == [3, 5, 3]
    assert found["splits"] == {"train": 20, "val": 3} and found["factors"] == {} and not found["binary"]
    assert found["mean_pixel"] == pytest.approx(x_NP.mean(), rel=1e-6)
    assert found["total_variance"] == pytest.approx(x_NP.var(axis=0).sum(), rel=1e-6)
    assert found["frames_sha256"] == hashlib.sha256(images_NHWC.tobytes()).hexdigest()


def test_numbers_of_a_binary_array(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "ENTRIES", 7 * 5 * 4)
    images_NHW = np.random.default_rng(0).integers(0, 2, (23, 5, 4), dtype=np.uint8) * np.uint8(255)
    np.save("images.npy", images_NHW)
    found = json.loads(vae("datasets", "array:images.npy", "--json", "-q").out)
    x_NP = images_NHW.reshape(23, -1) / 255
    assert found["binary"] and found["mean_pixel"] == pytest.approx(x_NP.mean(), rel=1e-12)
    assert found["total_variance"] == pytest.approx(x_NP.var(axis=0).sum(), rel=1e-12)
    assert found["frames_sha256"] == hashlib.sha256(images_NHW.tobytes()).hexdigest()


def test_the_table_and_the_list(vae: Callable[..., Result]) -> None:
    done = vae("datasets", "squares", "-q")
    assert done.code == 0 and "shape\t1x16x16" in done.out and "frames_sha256\t" in done.out
    assert '"squares"' in vae("datasets", "--json").out


def test_mistakes(vae: Callable[..., Result]) -> None:
    wrong = vae("datasets", "sqares")
    assert wrong.code == 2 and "did you mean 'squares'" in wrong.err
    assert "--set is for a data set" in vae("datasets", "--set", "data.spacing=1").err
    assert "no such option" in vae("datasets", "squares", "--set", "data.spacing=1").err
    assert vae("datasets", "array:none.npy").code in (2, 3) and not Path("none.npy").exists()


def test_what_a_data_set_lacks_is_said_with_where_its_settings_are(vae: Callable[..., Result]) -> None:
    bare = vae("datasets", "folder")
    assert bare.code == 2 and "data.path: is required" in bare.err and "vae datasets folder --options" in bare.err
    assert "--options" not in vae("datasets", "flder").err
