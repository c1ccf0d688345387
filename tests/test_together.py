"""Several processes, as torchrun starts them: the numbers of one process, one run directory, one decision to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, command
from safetensors.torch import load_file

from vaecli.training.together import Group, Rows

TRAIN = (
    "train",
    "--model",
    "beta-vae",
    *TINY,
    "--runs-dir",
    "runs",
    "-S",
    "train.log_every=10",
    "-S",
    "train.eval_every=20",
)


OPTIMAL = "model.likelihood={name: gaussian, variance: optimal}"  # of each batch


def torchrun(*args: object, processes: int = 2) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port=0"]
    return [*start, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "vaecli", *map(str, args)]


def run(*args: object, processes: int = 2) -> "subprocess.CompletedProcess[str]":
    """Train with so many processes; what came of it."""
    line = torchrun(*args, processes=processes) if processes > 1 else command(*args)
    return subprocess.run(line, capture_output=True, text=True, timeout=240)


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]


def status(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs", name, "run.json").read_text())
    return found


def weights(name: str) -> dict[str, torch.Tensor]:
    return load_file(f"runs/{name}/checkpoints/latest/model.safetensors")


def assert_same(a: str, b: str) -> None:
    for one, other in zip(records(a), records(b), strict=True):
        assert (one["kind"], one["step"]) == (other["kind"], other["step"])
        for key in ("loss", "recon", "kl", "elbo", "grad_norm"):
            if key in one:
                assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), (one["step"], key)
    for key, tensor in weights(a).items():
        torch.testing.assert_close(weights(b)[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_are_as_one_and_each_goes_on_with_the_other() -> None:
    assert run(*TRAIN, "--steps", 60, "--name", "one", "-q", processes=1).returncode == 0
    two = run(*TRAIN, "--steps", 30, "--name", "two")
    assert two.returncode == 0 and two.stdout == "runs/two\n", two.stderr
    assert two.stderr.count("objective  ") == 1 and "Warning" not in two.stderr  # the first alone speaks
    assert status("two")["processes"] == 2 and status("two")["status"] == "finished"
    assert [r["step"] for r in records("two")] == [10, 20, 20, 30, 30]
    # The rest with one process, which says what that means; then the whole with two.
    rest = run("train", "--resume", "runs/two", "--steps", 60, processes=1)
    assert rest.returncode == 0 and "before it were 2: the continuation is not bit-exact" in rest.stderr, rest.stderr
    assert [r["loss"] for r in records("two") if r["kind"] == "train" and r["step"] > 30] == pytest.approx(
        [r["loss"] for r in records("one") if r["kind"] == "train" and r["step"] > 30], rel=1e-4
    )
    back = run("train", "--resume", "runs/one", "--steps", 80, "-q")
    assert back.returncode == 0 and back.stdout == "runs/one\n", back.stderr
    assert status("one")["processes"] == 2 and records("one")[-1]["step"] == 80
    whole = run("train", "--resume", "runs/two", "--steps", 80, "-q", processes=1)
    assert whole.returncode == 0
    torch.testing.assert_close(weights("one"), weights("two"), rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_other_objectives_are_as_one() -> None:
    """Several draws an image: noise of two axes for each."""
    settings = ("train", "--model", "iwae", *TINY, "--runs-dir", "runs", "--steps", 20, "-S", "train.log_every=5", "-q")
    assert run(*settings, "--name", "one", processes=1).returncode == 0
    two = run(*settings, "--name", "two")
    assert two.returncode == 0, two.stderr
    assert_same("one", "two")


@pytest.mark.slow
def test_all_obey_a_signal() -> None:
    line = torchrun(*TRAIN, "--steps", 1_000_000, "--name", "long", "-S", "train.save_every=20")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(900):
        if Path("runs/long/checkpoints/latest").exists():
            break
        time.sleep(0.1)
    # One of them alone is told: both stop after the same step.
    os.kill(status("long")["pid"], signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    state = status("long")
    assert process.returncode != 0 and state["status"] == "interrupted" and state["exit_code"] == 143, err
    latest = json.loads(Path("runs/long/checkpoints/latest/trainer/state.json").read_text())
    assert latest["step"] == state["step"] > 0
    assert err.count("stopped by SIGTERM at step") == 1
    again = run("train", "--resume", "runs/long", "--steps", state["step"] + 10, "-q", processes=1)
    assert again.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("--model", "beta-tcvae"), "terms of its objective depend on which images share a batch"),
        # The rest is refused by the same questions, and each takes two processes.
        pytest.param(
            ("--model", "factor-vae"), "FactorVAE|depend on which images|several players", marks=pytest.mark.long
        ),
        (("--model", "beta-vae", "--batch-size", 33), "train.batch_size is 33, which 2 processes cannot share"),
        pytest.param(("--model", "vae", "-S", OPTIMAL), "keeps numbers of its batches", marks=pytest.mark.long),
        pytest.param(
            ("--model", "annealed-vae"),
            "terms of its objective depend on which images share a batch",
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("--model", "vae", "-S", "model.free_bits=0.1"),
            "free bits are counted over a whole batch",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_is_no_mean_over_images_is_refused(settings: tuple[object, ...], says: str) -> None:
    import re

    done = run("train", *TINY, *settings, "--steps", 5, "--runs-dir", "runs", "--name", "r")
    assert done.returncode != 0 and re.search(says, done.stderr), done.stderr
    assert done.stderr.count("vae: error:") == 1 and done.stdout == "" and not Path("runs/r").exists()


class Alone(Group):
    """A process of a group that there is not."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("shape", [(8,), (8, 3), (8, 2, 5), (24, 3), (5, 8, 3), (5, 3)])
def test_rows_of_noise_make_up_the_whole(shape: tuple[int, ...]) -> None:
    """Whatever is drawn for a part of a batch of 8 x 2 is a part of what is drawn for the whole."""
    axis = 0 if shape[0] % 8 == 0 else 1 if len(shape) > 1 and shape[1] == 8 else None
    whole_shape = shape if axis is None else (*shape[:axis], shape[axis] * 2, *shape[axis + 1 :])
    ways = {
        "randn": lambda s: torch.randn(s),
        "rand": lambda s: torch.rand(*s),
        "randn_like": lambda s: torch.randn_like(torch.zeros(s)),
        "normal": lambda s: torch.normal(torch.zeros(s), torch.ones(s)),
        "exponential_": lambda s: torch.empty(s).exponential_(),
        "Normal": lambda s: torch.distributions.Normal(torch.zeros(s), torch.ones(s)).rsample(),
    }
    for name, draw in ways.items():
        torch.manual_seed(3)
        whole = draw(whole_shape)
        parts = []
        for rank in range(2):
            torch.manual_seed(3)
            with Rows(Alone(rank, 2), 8):
                parts.append(draw(shape))
        found = parts[0] if axis is None else torch.cat(parts, dim=axis)
        assert torch.equal(found, whole), name
    assert not torch.equal(parts[0], parts[1]) or axis is None


def test_foreign_draws_are_named() -> None:
    with Rows(Alone(0, 2), 4) as rows:
        torch.randn(4)
        torch.randperm(4)
    assert rows.foreign == ["randperm"]
