"""Steps without the host, unrecorded and so on any device, against `update`; recorded where there is a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaecli import config as configs
from vaecli import data, models
from vaecli.config import RunConfig, tree
from vaecli.errors import Diverged
from vaecli.models.base import Model
from vaecli.speed import graph
from vaecli.training import rundir, trainer
from vaecli.training.state import TrainState
from vaecli.training.stop import Stop

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LINEAR = {"schedule": "linear", "start": 0.0, "end": 4.0, "steps": 20}
FALLING = {"schedule": "decay", "start": 0.01, "factor": 0.5, "every": 7}
CASES: dict[str, dict[str, Any]] = {
    "vae": {"model": {"name": "vae"}},
    "schedule": {"model": {"name": "beta-vae", "beta": LINEAR}},
    "capacity": {"model": {"name": "annealed-vae", "capacity": {**LINEAR, "end": 3.0}, "gamma": 10.0}},
    "sigma": {"model": {"name": "vae", "likelihood": {"name": "gaussian", "sigma": {**LINEAR, "start": 1.0}}}},
    "learned sigma": {"model": {"name": "vae", "likelihood": {"name": "gaussian", "variance": "learned"}}},
    "optimal sigma": {"model": {"name": "vae", "likelihood": {"name": "gaussian", "variance": "optimal"}}},
    "rates": {"model": {"name": "vae"}, "optim": {"name": "adamw", "lr": FALLING, "weight_decay": 0.1}},
    "clipped": {"model": {"name": "vae"}, "optim": {"name": "adam", "lr": 0.01, "grad_clip": 5.0}},
    "adagrad": {"model": {"name": "vae"}, "optim": {"name": "adagrad", "lr": 0.01}},
}


def config_of(case: dict[str, Any], steps: int = 30) -> RunConfig:
    net = {} if "net" in case["model"] else {"net": {"name": "mlp", "hidden": [16]}, "latent_dim": 3}
    values = {
        "data": {"name": "squares"},
        "optim": {"name": "adam", "lr": 0.01},
        "train": {"steps": steps, "batch_size": 16, "log_every": 10, "eval_every": 15, "save_every": steps},
        "seed": 3,
        **case,
        "model": {**case["model"], **net},
    }
    return configs.build(tree.Tree(values, {}))


def train(config: RunConfig, where: str, recorded: bool, path: Path, change: Any = lambda model: None) -> Model:
    dataset = data.load(config.data).to(where)
    torch.manual_seed(0)
    model = models.build(config.model, dataset.info).to(where)
    change(model)
    state = TrainState.fresh(model, config)
    stream = dataset.stream(config.seed, config.train.batch_size)
    steps = graph.StaticSteps(model, config, stream, *state.players["main"]) if recorded else None
    run = rundir.create(path, "r", path.name + str(recorded))
    try:
        split = dataset.split("val")
        stop, quiet = Stop(), trainer.Hooks()
        trainer.finish(trainer.fit(run, model, config, state, stream, split, split, stop, quiet, steps))
    finally:
        run.close()
    if recorded and where == "cuda":
        assert steps is not None and steps.graph is not None
    return model


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("window", [1000, 7])
def test_static_steps_equal_update(
    name: str, where: str, window: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(graph, "WINDOW", window)  # steps are uploaded in pieces, and launched in smaller ones
    monkeypatch.setattr(graph, "AHEAD", 4 if window == 7 else 100)
    config = config_of(CASES[name])
    one, other = (train(config, where, recorded, tmp_path) for recorded in (False, True))
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    runs = [tmp_path / f"{tmp_path.name}{recorded}" for recorded in (False, True)]
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    assert [(r["kind"], r["step"]) for r in logs[0]] == [(r["kind"], r["step"]) for r in logs[1]] and len(logs[0]) == 5
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"kind", "seconds", "hyper", "kl_j"}:
            if key == "weights":
                assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6)
                continue
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-5), key


class Poison(nn.Module):
    """A likelihood whose value is NaN from the n-th training batch on."""

    def __init__(self, inner: nn.Module, good: int) -> None:
        super().__init__()
        self.inner, self.good = inner, good
        self.register_buffer("seen", torch.zeros(()))

    def log_prob(self, x: Tensor, out: Tensor, hyper: Any) -> Tensor:
        value = self.inner.log_prob(x, out, hyper)
        if not self.training:
            return value
        poisoned = torch.where(self.seen >= self.good, torch.nan, 1.0)
        self.seen.add_(1.0)
        return value * poisoned


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("name", ["vae", "rates", "adagrad"])
def test_weights_freeze_at_the_last_good_step(name: str, where: str, tmp_path: Path) -> None:
    def poison(model: Model) -> None:
        model.likelihood = Poison(model.likelihood, 17).to(where)

    seventeen = train(config_of(CASES[name], 17), where, False, tmp_path, poison)
    with pytest.raises(Diverged, match="step 17"):
        train(config_of(CASES[name]), where, True, tmp_path, poison)
    run = next(p for p in tmp_path.iterdir() if p.name.endswith("True"))
    assert json.loads((run / "diverged.json").read_text())["step"] == 17
    from safetensors.torch import load_file

    kept = load_file(run / "checkpoints/latest/model.safetensors")
    for key, value in seventeen.state_dict().items():
        if "seen" not in key:
            torch.testing.assert_close(kept[key], value.cpu(), rtol=1e-4, atol=1e-6)


def test_noise_is_that_of_the_global_generator() -> None:
    def draw() -> list[Tensor]:
        x = torch.full((5, 7), 0.5)
        return [
            torch.randn_like(x),
            torch.randn(3, 40),
            torch.rand(9),
            torch.rand_like(x),
            torch.bernoulli(x),
            torch.empty(4).normal_(),
        ]

    torch.manual_seed(5)
    wanted = draw()
    torch.manual_seed(99)
    with graph.Noise(torch.Generator().manual_seed(5)):
        found = draw()
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    with graph.Noise(torch.Generator()), pytest.raises(NotImplementedError, match="generator"):
        torch.randperm(4)


@pytest.mark.parametrize(
    ("optim", "word"),
    [
        ({"name": "rmsprop", "lr": 0.1}, "rmsprop"),
        ({"name": "adagrad", "lr": FALLING}, "adagrad"),
        ({"name": "adagrad", "lr": 0.1, "lr_decay": 0.1}, "adagrad"),
        ({"name": "adagrad", "lr": 0.1, "weight_decay": 0.1}, "adagrad"),
        ({"name": "adam", "lr": 0.1, "weight_decay": FALLING}, "weight_decay"),
        ({"name": "adam", "lr": FALLING}, None),
    ],
)
def test_what_cannot_be_recorded_is_said(optim: dict[str, Any], word: str | None) -> None:
    config = config_of({"model": {"name": "vae"}, "optim": optim})
    model = models.build(config.model, data.load(config.data).info)
    found = graph.obstacle(model, config)
    assert (found is None) if word is None else (found is not None and word in found)


def test_a_failed_recording_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def fail(self: graph.StaticSteps, step: int, until: int) -> int:
        raise graph.CannotRecord("operation not permitted when stream is capturing")

    config = config_of(CASES["vae"])
    plain = train(config, "cpu", False, tmp_path)
    monkeypatch.setattr(graph.StaticSteps, "launch", fail)
    other = train(config, "cpu", True, tmp_path)
    assert "one by one: operation not permitted" in capfd.readouterr().err
    for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("what", ["save", "deadline"])
def test_flags_between_launches(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to save or stop that comes while recorded steps run is obeyed there, and once."""
    monkeypatch.setattr(graph, "AHEAD", 4)
    config = config_of(CASES["vae"])
    dataset = data.load(config.data)
    model = models.build(config.model, dataset.info)
    state = TrainState.fresh(model, config)
    stream = dataset.stream(config.seed, config.train.batch_size)
    steps, stop = graph.StaticSteps(model, config, stream, *state.players["main"]), Stop()
    plain = steps.launch

    def launch(step: int, until: int) -> int:
        if step == 14:
            if what == "save":
                stop.saves += 1
            else:
                stop.deadline = 0.0
        return plain(step, until)

    monkeypatch.setattr(steps, "launch", launch)
    run = rundir.create(tmp_path, "r", what)
    split = dataset.split("val")
    quiet = trainer.Hooks()
    outcome = trainer.finish(trainer.fit(run, model, config, state, stream, split, split, stop, quiet, steps))
    run.close()
    saved = sorted(int(p.name[5:]) for p in run.checkpoints.glob("step-*"))
    assert saved == ([15, 30] if what == "save" else [15])
    assert outcome.status == ("finished" if what == "save" else "time limit")
