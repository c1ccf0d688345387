"""Every registered model, and toys that use every part of the model contract, through every command.

A model is tested by existing: nothing here names one, except for what is known to be refused.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import HERE, Result, command
from safetensors.torch import load_file

from vaecli import registry

NAMES = sorted([*registry.names("model"), *(p.stem.replace("_", "-") for p in (HERE / "models").glob("[a-z]*.py"))])
SMALL = ["--data", "squares", "--batch-size", 32]
NO_PRIOR = {"autoencoder"}


def options(name: str) -> list[object]:
    """A tiny network where the model takes one."""
    fields = registry.load("model", name).Config.model_fields
    net = ["-S", "model.net={name: mlp, hidden: [16]}"] if "net" in fields else []
    return [*SMALL, "--model", name, *net, *(["--latent-dim", 3] if "latent_dim" in fields else [])]


@pytest.mark.parametrize("name", NAMES)
def test_all_commands(name: str, toy_models: list[str], vae: Callable[..., Result], tmp_path: Path) -> None:
    done = vae("train", *options(name), "--steps", 40, "--runs-dir", "runs", "--name", "r", "-S", "train.eval_every=20")
    assert done.code == 0, done.err
    assert done.out == "runs/r\n"
    records = [json.loads(line) for line in Path("runs/r/metrics.jsonl").read_text().splitlines()]
    assert json.loads(Path("runs/r/run.json").read_text())["status"] == "finished"
    if registry.load("model", name).Model.phases:
        assert [r["step"] for r in records if r["kind"] == "val"] == [20, 40]

    drawn = vae("sample", "runs/r", "-n", 4, "-o", "s.npz")
    assert drawn.code == (2 if name in NO_PRIOR else 0), drawn.err
    if name in NO_PRIOR:
        assert "no prior" in drawn.err
    for args in (
        ["traverse", "runs/r", "-o", "t.png", "--steps", 5],
        ["reconstruct", "runs/r", "-n", 3, "-o", "r.png"],
    ):
        result = vae(*args)
        assert result.code == 0, result.err
        assert Path(result.out.strip()).read_bytes().startswith(b"\x89PNG")
    analysis = vae("analyze", "runs/r", "--json")
    assert analysis.code == 0, analysis.err
    found = json.loads(analysis.out)
    latents = len(found["latents"])
    assert latents == (5 if name == "hierarchy" else 3)
    if name == "hierarchy":
        assert {entry["latent"] for entry in found["latents"]} == {"top.0", "top.1", "low.0", "low.1", "low.2"}
    page = vae("report", "runs/r", "-o", "r.html")
    assert page.code == 0, page.err
    assert Path("r.html").read_text().startswith("<!doctype html>")
    assert vae("encode", "runs/r", "-o", "codes.npz").code == 0
    assert vae("decode", "runs/r", "codes.npz", "-o", "d.png").code == 0
    assert vae("interpolate", "runs/r", 0, 1, "-o", "i.png").code == 0
    for path in ("runs/r/checkpoints/latest", "runs/r/checkpoints/latest/model.safetensors"):
        assert vae("info", path, "--json").code == 0


@pytest.mark.parametrize(
    "name", [n for n in NAMES if registry.names("model").count(n) or n in ("two-player", "hierarchy")]
)
def test_resume_is_bit_exact(name: str, toy_models: list[str], vae: Callable[..., Result]) -> None:
    """40 steps straight equal 17 and then the rest: weights, optimizers and records."""
    if not registry.load("model", name).Model.phases:
        pytest.skip("takes no steps")
    common = [
        "train",
        *options(name),
        "--runs-dir",
        "runs",
        "-q",
        "-S",
        "train.log_every=7",
        "-S",
        "train.eval_every=10",
    ]
    assert vae(*common, "--steps", 40, "--name", "straight").code == 0
    assert vae(*common, "--steps", 17, "--name", "broken").code == 0
    resumed = vae("train", "--resume", "runs/broken", "--steps", 40, "-q")
    assert resumed.code == 0, resumed.err
    same_run(Path("runs/straight"), Path("runs/broken"), skip_val={17})


def same_run(a: Path, b: Path, skip_val: set[int]) -> None:
    """Equal tensors in the last checkpoints, and equal records apart from times."""
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        x, y = (load_file(run / "checkpoints" / "latest" / file) for run in (a, b))
        assert x.keys() == y.keys() and len(x) > 0
        for key in x:
            assert torch.equal(x[key], y[key]), key

    def records(run: Path) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [
            {k: v for k, v in r.items() if k != "seconds"}
            for r in lines
            if not (r["kind"] == "val" and r["step"] in skip_val)
        ]

    assert records(a) == records(b)
    assert records(a)


@pytest.mark.parametrize("name", registry.names("model"))
def test_killed_in_the_middle_and_resumed(name: str, vae: Callable[..., Result]) -> None:
    """kill -9 at an arbitrary moment; what remains verifies, and the resumed run equals the uninterrupted one."""
    args = ["train", *options(name), "--runs-dir", "runs", "-S", "train.save_every=50", "-q"]
    child = subprocess.Popen(command(*args, "--steps", 10**6, "--name", "killed"), stderr=subprocess.PIPE)
    folder = Path("runs/killed/checkpoints")
    deadline = time.monotonic() + 150
    while not (folder / "latest").is_symlink() or os.readlink(folder / "latest") < "step-00000150":
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    # The killed run was to go on for long; `--steps` is one of the few things a resumed run may change.
    total = int(os.readlink(folder / "latest").removeprefix("step-")) + 60
    resumed = vae("train", "--resume", "runs/killed", "--steps", total, "-q")
    assert resumed.code == 0, resumed.err
    assert vae(*args, "--steps", total, "--name", "straight").code == 0
    same_run(Path("runs/straight"), Path("runs/killed"), skip_val=set())


def test_closed_form_is_fitted_not_trained(toy_models: list[str], vae: Callable[..., Result]) -> None:
    """Probabilistic PCA through the same commands: the variance law holds exactly, and no step is taken."""
    assert (
        vae("train", "--data", "squares", "--model", "closed-form", "--runs-dir", "runs", "--name", "pca", "-q").code
        == 0
    )
    result = json.loads(vae("analyze", "runs/pca", "--split", "train", "--json").out)
    for latent in result["latents"]:
        assert latent["var_mu"] + latent["mean_sigma2"] == pytest.approx(1.0, abs=1e-4)
    assert json.loads(vae("info", "runs/pca", "--json").out)["step"] == 0


def test_labels_reach_the_model(toy_models: list[str], vae: Callable[..., Result]) -> None:
    args = ["train", "--data", "squares", "--model", "hierarchy", "--steps", 50, "--runs-dir", "runs", "-q"]
    assert vae(*args, "--name", "some", "-S", "data.labelled=0.25", "-S", "train.log_every=50").code == 0
    first = json.loads(Path("runs/some/metrics.jsonl").read_text().splitlines()[0])
    assert first["seen"] == pytest.approx(0.25, abs=0.05)
    refused = vae("train", "--data", "squares", "--model", "vae", "-S", "data.labelled=0.25", "--runs-dir", "runs")
    assert refused.code == 2 and "uses no labels" in refused.err
