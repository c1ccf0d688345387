"""Every registered model, and toys that use every part of the model contract, through every command.

A model is tested by existing: what is asked of it follows from what it says of itself.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HERE, Result, command
from safetensors.torch import load_file

from vaecli import data, device, models, noise, registry
from vaecli.analysis import aggregate, control, leak, probes
from vaecli.data.squares import Config as Squares
from vaecli.models.base import Model, NoPrior
from vaecli.objectives.distributions import Point
from vaecli.settings.optim import Adam
from vaecli.training import checkpoint

NAMES = sorted([*registry.names("model"), *(p.stem.replace("_", "-") for p in (HERE / "models").glob("[a-z]*.py"))])


def built(name: str) -> Model:
    module = registry.load("model", name)
    return models.build(module.Config.model_validate(module.Config.tiny), data.load(Squares(name="squares")).info)


def options(name: str, **train: Any) -> list[object]:
    """A tiny network, and for a model with steps the settings of training."""
    module = registry.load("model", name)
    tiny = [f"model.{key}={json.dumps(value)}" for key, value in module.Config.tiny.items()]
    steps = [] if module.Model.closed_form else [f"train.{key}={json.dumps(value)}" for key, value in train.items()]
    batch = [] if module.Model.closed_form else ["--batch-size", 32]
    settings = [part for setting in [*tiny, *steps] for part in ("-S", setting)]
    return ["train", "--data", "squares", "--model", name, *batch, *settings, "--runs-dir", "runs", "-q"]


def can_be_drawn(model: Model) -> bool:
    try:
        model.draw(2)
    except NoPrior:
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(name: str, toy_models: list[str]) -> None:
    """By some player, that of a likelihood with a scale of its own among them."""
    module, info = registry.load("model", name), data.load(Squares(name="squares")).info
    learned = {"name": "gaussian", "variance": "learned"}
    has = "likelihood" in module.Config.model_fields
    try:
        config = module.Config.model_validate({**module.Config.tiny, **({"likelihood": learned} if has else {})})
    except ValueError:  # of its own likelihood alone
        config = module.Config.model_validate(module.Config.tiny)
    model = models.build(config, info)
    if model.closed_form:
        return
    moved = {id(p) for player in model.players(Adam()) for p in player.parameters}
    assert [key for key, p in model.named_parameters() if p.requires_grad and id(p) not in moved] == []


@pytest.mark.parametrize("name", NAMES)
def test_all_commands(
    name: str, toy_models: list[str], vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What takes most of the time, of fewer images, draws and steps: its numbers are tested elsewhere.
    monkeypatch.setattr(noise, "draws", lambda images: 4)
    monkeypatch.setattr(leak, "leak", partial(leak.leak, groups=3))
    monkeypatch.setattr(probes, "classifier", partial(probes.classifier, steps=20))
    separate = aggregate.classifier
    monkeypatch.setattr(
        aggregate, "classifier", lambda mean, logvar, prior, seed, *_: separate(mean, logvar, prior, seed, 20)
    )
    subject = control.subject
    monkeypatch.setattr(control, "subject", lambda *args: replace(subject(*args), images=60))
    model = built(name)
    done = vae(*options(name, steps=40, eval_every=20), "--name", "r")
    assert done.code == 0, done.err
    assert done.out == "runs/r\n"
    records = [json.loads(line) for line in Path("runs/r/metrics.jsonl").read_text().splitlines()]
    assert json.loads(Path("runs/r/run.json").read_text())["status"] == "finished"
    if not model.closed_form:
        last = 40 * len(model.stages) if model.sequential else 40
        assert [r["step"] for r in records if r["kind"] == "val"] == list(range(20, last + 1, 20))

    drawn = vae("sample", "runs/r", "-n", 4, "-o", "s.npz")
    if can_be_drawn(model):
        assert drawn.code == 0, drawn.err
    else:
        assert drawn.code == 2 and "prior" in drawn.err
    args: list[Any]
    for args in (
        ["traverse", "runs/r", "-o", "t.png", "--steps", 5],
        ["reconstruct", "runs/r", "-n", 3, "-o", "r.png"],
    ):
        result = vae(*args)
        assert result.code == 0, result.err
        assert Path(result.out.strip()).read_bytes().startswith(b"\x89PNG")
    assert ("nats" in vae("reconstruct", "runs/r", "-n", 3, "-o", "r2.png").err) <= model.has_likelihood
    analysis = vae("analyze", "runs/r", "--json")
    assert analysis.code == 0, analysis.err
    told = json.loads(analysis.out)
    compare_elbo("runs/r", told["totals"].get("elbo"))
    judged = [level["latents"] for level in told["levels"] if "active_units" in level]
    assert told["totals"]["latents"] == sum(judged) if judged else told["totals"]["active_units"] is None
    encoded = vae("encode", "runs/r", "-o", "alone.npz", "--json")
    if encoded.code == 0 and json.loads(encoded.out)["logvar"] and judged:
        of_codes = json.loads(vae("analyze", "alone.npz", "--json").out)["totals"]
        assert of_codes["latents"] == told["totals"]["latents"]
    likely = vae("analyze", "runs/r", "--nll", 30, "--nll-images", 20, "--json")
    if likely.code == 0:
        nll = json.loads(likely.out)["nll"]
        assert nll["nll"] <= nll["negative_elbo"] + 1e-6 and 1 <= nll["effective_draws"] <= 30 + 1e-6
    else:
        assert likely.code == 2 and "error: --nll: " in likely.err, likely.err
    # Metrics are of codes, whatever they are from, and all of them take most of a page's time.
    page = vae("report", "runs/r", "-o", "r.html", "--metrics", "mig")
    assert page.code == 0, page.err
    assert Path("r.html").read_text().startswith("<!doctype html>")
    for args in (
        ["encode", "runs/r", "-o", "codes.npz"],
        ["decode", "runs/r", "codes.npz", "-o", "d.png"],
        ["info", "runs/r/checkpoints/latest", "--json"],
        ["info", "runs/r/checkpoints/latest/model.safetensors", "--json"],
    ):
        result = vae(*args)
        assert result.code == 0, (args, result.err)
    between = vae("interpolate", "runs/r", 0, 1, "-o", "i.png")
    if any(level.kind == "codes" for level in model.inferred):
        assert between.code == 2 and "codebook" in between.err
    else:
        assert between.code == 0, between.err


def compare_elbo(run: str, printed: float | None) -> None:
    """Where there is a likelihood and every posterior has a density, the ELBO of `analyze` is that of the model's own
    draws on the same images, log p(x|z) less the rates, within the error of the draws. Where not, none is printed."""
    loaded = checkpoint.load(run, torch.device("cpu"))
    model, batch = loaded.model.eval(), data.load(Squares(name="squares")).split("test").take(10_000)
    with torch.no_grad():
        points = any(isinstance(q, Point) for q in model.infer(batch.x_BCHW).posteriors.values())
        if not model.has_likelihood or points or not can_be_drawn(model):
            assert printed is None
            return
        elbos = []
        for draw in range(50):
            device.seed(draw, "elbo")
            found = model.infer(batch.x_BCHW, sample=True)
            elbo_B = model.log_prob(batch.x_BCHW, model.complete(found.values), model.hyper(loaded.step))
            assert elbo_B is not None
            for rate in model.rates(found).values():
                elbo_B = elbo_B - (rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate)
            elbos.append(elbo_B.mean())
    mean, spread = torch.stack(elbos).mean().item(), torch.stack(elbos).std().item()
    assert printed == pytest.approx(mean, abs=6 * spread + 1e-3)  # `analyze` has one draw or several of each image


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_bit_exact(
    name: str, toy_models: list[str], vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 steps straight equal the rest from step 17, in the middle of an epoch, of a window of records and, where there
    are several, of a stage; there, and where there is work between steps, also from step 34, in the middle of the next:
    weights, buffers, optimizers and records."""
    model = built(name)
    if model.closed_form:
        pytest.skip("takes no steps")
    monkeypatch.setattr(noise, "draws", lambda images: 2)  # of each image, in the evaluations
    stages = model.stages
    steps = 40 if len(stages) == 1 else {stage: 40 // len(stages) for stage in stages}
    total = 40 if len(stages) == 1 else 40 // len(stages) * len(stages)
    line = options(name, steps=steps, log_every=7, eval_every=10, save_every=17, keep=9)
    assert vae(*line, "--name", "straight").code == 0
    for step in (17, 34) if len(stages) > 1 or type(model).due is not Model.due else (17,):
        shutil.copytree("runs/straight", f"runs/from-{step}", symlinks=True)
        resumed = vae("train", "--resume", f"runs/from-{step}/checkpoints/step-{step:08}", "-q")
        assert resumed.code == 0, resumed.err
        assert json.loads(vae("info", f"runs/from-{step}", "--json").out)["step"] == total
        same_run(Path("runs/straight"), Path(f"runs/from-{step}"))


def same_run(a: Path, b: Path) -> None:
    """Equal tensors in the last checkpoints, and equal records apart from times."""
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        x, y = (load_file(run / "checkpoints" / "latest" / file) for run in (a, b))
        assert x.keys() == y.keys() and len(x) > 0
        for key in x:
            assert torch.equal(x[key], y[key]), key

    def records(run: Path) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in r.items() if k not in ("seconds", "weights")} for r in lines]

    def weights(run: Path) -> list[dict[str, float]]:
        return [json.loads(line).get("weights", {}) for line in (run / "metrics.jsonl").read_text().splitlines()]

    assert records(a) == records(b)
    on_cpu = os.environ["VAE_DEVICE"] == "cpu"  # a GPU adds equal numbers up in other ways
    assert weights(a) == [each if on_cpu else pytest.approx(each) for each in weights(b)]
    assert records(a)


# One of each kind of state: plain, of two players, of codebooks, of assignments, of two stages, of running estimates.
KILLED = ("vae", "factor-vae", "vq-vae", "epitomic-vae", "two-stage-vae", "infogan")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in KILLED else pytest.mark.long) for n in registry.names("model")],
)
def test_killed_in_the_middle_and_resumed(name: str, vae: Callable[..., Result]) -> None:
    """kill -9 at an arbitrary moment; what remains verifies, and the resumed run equals the uninterrupted one."""
    model = built(name)
    if model.closed_form:
        pytest.skip("takes no steps")
    line = options(name, save_every=50)
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # as this process: sums of other threads round otherwise
    child = subprocess.Popen(command(*line, "--steps", 10**6, "--name", "killed"), stderr=subprocess.PIPE, env=alone)
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
    assert vae(*line, "--steps", total, "--name", "straight").code == 0
    same_run(Path("runs/straight"), Path("runs/killed"))
