"""What a training says of its players and its data, in banner and records; and what a fit that was stopped says."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Result

from vaecli.models import ppca


def records() -> list[dict[str, dict[str, float]]]:
    lines = [json.loads(line) for line in Path("runs/r/metrics.jsonl").read_text().splitlines()]
    return [r["hyper"] for r in lines if r["kind"] == "train"]


def test_learning_rates_of_all_players(vae: Callable[..., Result]) -> None:
    line = ("train", "--model", "factor-vae", *TINY, "--steps", 20, "--runs-dir", "runs", "--name", "r")
    falling = '{"schedule": "linear", "start": 0.001, "end": 0.0, "steps": 20}'
    done = vae(*line, "-S", "train.log_every=10", "-S", f"model.critic_optim.lr={falling}", "--lr", "0.01")
    assert done.code == 0, done.err
    assert "player     main: adam lr 0.01\nplayer     critic: adam lr 0.001\n" in done.err
    assert records() == [
        {"lr": 0.01, "critic.lr": pytest.approx(0.00055)},
        {"lr": 0.01, "critic.lr": pytest.approx(0.00005)},
    ]


def test_one_player_is_in_the_line_of_the_training(vae: Callable[..., Result]) -> None:
    done = vae("train", "--model", "vae", *TINY, "--steps", 5, "--runs-dir", "runs", "--name", "r")
    assert "adam lr 0.001, fp32" in done.err and "player" not in done.err


def test_the_range_of_the_images_values(vae: Callable[..., Result]) -> None:
    images = np.zeros((40, 8, 8), dtype=np.uint16)
    images[:, 2:5, 2:5] = 4000
    np.save("images.npy", images)
    net = ("-S", "model.net={name: mlp, hidden: [8]}", "--steps", 2, "--runs-dir", "runs")
    done = vae("train", "--model", "vae", "--data", "array:images.npy", *net)
    assert done.code == 0 and "; uint16 0 is black, 4095 white\n" in done.err, done.err
    done = vae("train", "--model", "vae", "--data", "array:images.npy", *net, "-S", "data.range=[0, 8000]")
    assert done.code == 0 and "; uint16 0 is black, 8000 white\n" in done.err, done.err
    assert "black and white" not in vae("train", "--model", "vae", *TINY, "--steps", 2, "--runs-dir", "runs").err


def test_a_fit_that_a_signal_stopped_points_to_no_resuming(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to go on with: the fit is of the images seen until then."""
    original = ppca.Model.fit

    def told(self: ppca.Model, train: object, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        def on(images: float) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        original(self, train, stop, on)  # type: ignore[arg-type]

    monkeypatch.setattr(ppca.Model, "fit", told)
    done = vae("train", "--model", "ppca", "--data", "squares", "--latent-dim", 2, "--runs-dir", "runs", "--name", "r")
    assert done.code == 130, done.err
    assert "stopped by SIGINT; saved is the fit to the images seen until then" in done.err
    assert "--resume" not in done.err.partition("stopped by")[2]
