"""`vae train --seeds`: every run as if it had been alone, whether runs take turns or have processes of their own."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, Result, command
from safetensors.torch import load_file

from vaecli.errors import ConfigError
from vaecli.speed import graph
from vaecli.training import placing, session
from vaecli.training import seeds as _seeds


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("7", [7]), ("0,2, 5-6", [0, 2, 5, 6]), ("3,1", [3, 1])]
)
def test_parse(text: str, seeds: list[int]) -> None:
    assert _seeds.parse(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "0-", "1,1", "0-2,2", "0-1000", "1.5"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        _seeds.parse(text)


def test_arguments_of_one_seed() -> None:
    argv = ["train", "--seeds", "0-2", "--name=x", "-S", "model.beta=2", "--json", "--seeds=0-2", "--name", "y"]
    assert _seeds.arguments_of(argv, 4, "y") == ["train", "-S", "model.beta=2", "--seed", "4", "--name", "y-s4"]
    assert _seeds.arguments_of(argv, 4, None) == ["train", "-S", "model.beta=2", "--seed", "4"]


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "checkpoints/latest/model.safetensors")


ARGS = ["train", *TINY, "--model", "beta-vae", "--steps", 30, "--runs-dir", "runs", "-q", "-S", "train.log_every=10"]


@pytest.mark.parametrize("way", ["processes", "turns", "recorded turns"])
def test_each_run_is_as_if_alone(way: str, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 2):
        assert vae(*ARGS, "--seed", seed, "--name", f"alone-s{seed}").code == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if way != "processes":
        monkeypatch.setattr(session, "_share_the_device", lambda *_: True)
    if way == "recorded turns":
        monkeypatch.setattr(
            placing,
            "recorded",
            lambda model, config, state, stream: graph.StaticSteps(model, config, stream, *state.players["main"]),
        )
    done = vae(*[word for word in ARGS if word != "-q"], "--seeds", "0,2", "--name", "many")
    assert done.code == 0, done.err
    assert done.out == "runs/many-s0\nruns/many-s2\n"
    assert "next       vae compare runs/many-s0 runs/many-s2 for mean and spread" in done.err
    for seed in (0, 2):
        a, b = weights(f"runs/alone-s{seed}"), weights(f"runs/many-s{seed}")
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
        if way == "turns":
            assert all(torch.equal(a[key], b[key]) for key in a)
        assert json.loads(Path(f"runs/many-s{seed}/run.json").read_text())["status"] == "finished"
        lines = [Path(f"runs/{name}-s{seed}/metrics.jsonl").read_text().splitlines() for name in ("alone", "many")]
        steps = [[(r["kind"], r["step"]) for r in map(json.loads, some)] for some in lines]
        assert steps[0] == steps[1]
    assert not torch.equal(weights("runs/many-s0")["decoder.0.weight"], weights("runs/many-s2")["decoder.0.weight"])


@pytest.mark.parametrize("turns", [True, False])
def test_one_failure_leaves_the_others_and_is_told(
    turns: bool, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs/many-s0").mkdir(parents=True)  # in the way of the first seed
    monkeypatch.setattr(session, "_share_the_device", lambda *_: turns)
    done = vae(*ARGS, "--seeds", "0-1", "--name", "many", "--json")
    assert done.code == 2 and "exists already" in done.err and "1 of 2 seeds" in done.err
    runs = json.loads(done.out)["runs"]
    assert [run["run"] for run in runs] == ["runs/many-s1"] and runs[0]["status"] == "finished"


def test_usage(vae: Callable[..., Result]) -> None:
    assert vae(*ARGS, "--seeds", "0-1", "--seed", 3).code == 2
    assert vae(*ARGS, "--seeds", "0-1", "-S", "seed=3").code == 2
    assert vae("train", "--resume", "runs/x", "--seeds", "0-1").code == 2


def test_a_signal_reaches_every_process() -> None:
    endless = ["train", *TINY, "--steps", 10_000_000, "--runs-dir", "runs", "--name", "many", "--seeds", "0-5"]
    process = subprocess.Popen(command(*endless), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = Path("runs/many-s0/metrics.jsonl")
    for _ in range(600):
        if metrics.is_file() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and out == "", err
    states = [json.loads(p.read_text()) for p in Path("runs").glob("*/run.json")]
    assert states and {state["status"] for state in states} == {"interrupted"}
    assert len(states) <= (os.cpu_count() or 1)  # the waiting seeds are not started any more
    for run in Path("runs").iterdir():
        assert (run / "checkpoints/latest/model.safetensors").is_file()


def test_a_seed_that_could_not_be_started_is_missed(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    done = vae(*ARGS, "--seeds", "0,3", "--name", "many")
    assert done.code == 5 and done.out == "" and "did not finish: 0, 3" in done.err
