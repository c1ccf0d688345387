"""Runs made by earlier versions still load, give the same codes and go on as if nothing had happened.

`tests/data/runs-0.1` holds a run of 20 steps of each model that version 0.1.0 had, and its codes of eight images.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE, Result
from safetensors.torch import load_file

RUNS = HERE / "data" / "runs-0.1"
NAMES = sorted(path.name for path in RUNS.iterdir())


def copy(name: str) -> Path:
    shutil.copytree(RUNS / name, Path("old"), symlinks=True)
    return Path("old")


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_those_of_then(name: str, vae: Callable[..., Result]) -> None:
    run = copy(name)
    done = vae("encode", run, "-n", 8, "-o", "codes.npz")
    assert done.code == 0, done.err
    now, then = np.load("codes.npz"), np.load(run / "codes.npz")
    assert set(now.files) == set(then.files)
    for key in ("codes", "logvar"):
        if key in then:
            np.testing.assert_allclose(now[key], then[key], rtol=1e-4, atol=1e-5)
    assert list(now["latent_names"]) == list(then["latent_names"])
    np.testing.assert_array_equal(now["index"], then["index"])
    assert vae("analyze", run).code == 0


@pytest.mark.parametrize("name", NAMES)
def test_resumed_as_if_never_interrupted(name: str, vae: Callable[..., Result]) -> None:
    run = copy(name)
    resumed = vae("train", "--resume", run, "--steps", 40, "-q")
    assert resumed.code == 0, resumed.err
    straight = vae("train", "--config", run / "config.yaml", "--steps", 40, "--runs-dir", "runs", "--name", "new", "-q")
    assert straight.code == 0, straight.err
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        old, new = (load_file(path / "checkpoints" / "latest" / file) for path in (run, Path("runs/new")))
        assert old.keys() == new.keys()
        for key in old:  # another machine made the first 20 steps, so to rounding and not to the bit
            torch.testing.assert_close(old[key], new[key], rtol=1e-3, atol=1e-5)
