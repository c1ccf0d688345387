"""two-stage-vae: both objectives by hand, the first stage standing still, resuming in either, and what the second is
for."""

import itertools
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, command
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch import distributions as td

from vaecli import config as configs
from vaecli import data, models
from vaecli.analysis import probes
from vaecli.analysis.draws import Source
from vaecli.batch import Batch, DataInfo
from vaecli.config import tree as trees
from vaecli.data.base import Dataset, Floats
from vaecli.data.squares import Config as Squares
from vaecli.errors import ConfigError
from vaecli.models import beta_vae, two_stage_vae
from vaecli.models.base import total
from vaecli.objectives.mmd import mmd2
from vaecli.settings.optim import Adam
from vaecli.training import checkpoint, steps

INFO = DataInfo("toy", (1, 4, 4), 64)
SMALL = {"latent_dim": 3, "net": {"name": "mlp", "hidden": [16]}, "second_hidden": [16, 12]}
LINE = ("train", "--model", "two-stage-vae", "--data", "squares", "--batch-size", 32, "--runs-dir", "runs", "-q")
TINY = tuple(word for key, value in SMALL.items() for word in ("-S", f"model.{key}={json.dumps(value)}"))


def build(begun: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    model = models.build(two_stage_vae.Config.model_validate({**SMALL, **options}), INFO).double()
    if begun:
        model.prepare(0, "second", None)
    return model


def batch(n: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(7)
    return Batch(torch.rand(n, 1, 4, 4, generator=generator).double(), torch.arange(n))


def logged(model: Any, player: str) -> dict[str, float]:
    torch.manual_seed(3)
    return {
        key: float(torch.as_tensor(v).detach())
        for key, v in total(model.loss(batch(), model.hyper(0), player))[1].items()
    }


# ---- the objectives


@torch.no_grad()
def test_the_first_objective_recomputed() -> None:
    model, x = build(begun=False), batch().x_BCHW
    model.likelihood.log_sigma.fill_(math.log(0.7))
    found = logged(model, "first")
    mean, logvar = model.encoder(x).split(3, dim=1)
    q = td.Normal(mean, (logvar / 2).exp())
    torch.manual_seed(3)
    z = mean + q.scale * torch.randn(64, 3, dtype=torch.float64)
    recon = -td.Normal(model.decoder(z), 0.7).log_prob(x).sum(dim=(1, 2, 3)).mean()
    kl = td.kl_divergence(q, td.Normal(0.0, 1.0)).sum(dim=1).mean()
    wanted = {"loss": recon + kl, "recon": recon, "kl": kl, "elbo": -(recon + kl), "gamma": 0.7}
    assert found.keys() == {*wanted, "recon.weight", "kl.weight"}
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), abs=1e-9)


def shortcut(net: Any, x: Tensor) -> Tensor:
    """Layers of ReLU, the input beside what the last of them gives."""
    first, second = (layer for layer in net.hidden if isinstance(layer, nn.Linear))
    h = (second.weight @ (first.weight @ x.T + first.bias[:, None]).clamp(min=0) + second.bias[:, None]).clamp(min=0)
    return (net.last.weight @ torch.cat([h, x.T]) + net.last.bias[:, None]).T


@torch.no_grad()
def test_the_second_objective_recomputed() -> None:
    """Of codes that are drawn, and in evaluation with the ELBO of both stages together beside it."""
    model, x = build().train(), batch().x_BCHW
    model.log_gamma_z.fill_(math.log(0.6))
    found = logged(model, "second")
    mean, logvar = model.encoder(x).split(3, dim=1)
    q_z = td.Normal(mean, (logvar / 2).exp())
    torch.manual_seed(3)
    z = mean + q_z.scale * torch.randn(64, 3, dtype=torch.float64)
    m, v = shortcut(model.up, z).split(3, dim=1)
    q_u = td.Normal(m, (v / 2).exp())
    u = m + q_u.scale * torch.randn(64, 3, dtype=torch.float64)
    log_p = td.Normal(shortcut(model.down, u), model.log_gamma_z.exp()).log_prob(z).sum(dim=1)
    kl = td.kl_divergence(q_u, td.Normal(0.0, 1.0)).sum(dim=1).mean()
    wanted = {"loss": -log_p.mean() + kl, "code": -log_p.mean(), "kl_u": kl, "gamma_z": 0.6}
    assert found.keys() == {*wanted, "code.weight", "kl_u.weight"}
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), abs=1e-9)
    evaluated = logged(model.eval(), "second")
    log_x = model.log_prob(x, {"z": z}, model.hyper(0))
    assert evaluated["recon"] == pytest.approx(-float(log_x.mean()), abs=1e-9) and "recon.weight" not in evaluated
    elbo = (log_x + log_p - q_z.log_prob(z).sum(dim=1)).mean() - kl
    assert evaluated["elbo"] == pytest.approx(float(elbo), abs=1e-9)
    assert evaluated["loss"] == pytest.approx(found["loss"], abs=1e-12)


@torch.no_grad()
def test_until_the_second_stage_begins_it_is_a_vae_under_the_standard_prior() -> None:
    model, plain = (
        build(begun=False),
        models.build(beta_vae.Config(latent_dim=3, net=SMALL["net"], likelihood="bernoulli"), INFO),
    )
    plain.double().load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith(("enc", "dec"))})
    x = batch().x_BCHW.repeat(200, 1, 1, 1)
    torch.manual_seed(1)
    rates = model.rates(model.infer(x, sample=True))
    assert bool((rates["u"] == 0).all())
    exact = plain.posterior(x).kl_BD.sum(dim=1).mean()
    assert float(rates["z"].mean()) == pytest.approx(float(exact), abs=5 * float(rates["z"].std()) / len(x) ** 0.5)
    torch.manual_seed(2)
    drawn = model.draw(4000)["z"]
    assert float(drawn.mean().abs()) < 0.05 and float(drawn.std()) == pytest.approx(1.0, abs=0.03)
    model.prepare(0, "second", None)
    assert bool((model.rates(model.infer(x[:8], sample=True))["u"] != 0).any())


def test_the_first_stage_stands_still_in_the_second_running_statistics_included() -> None:
    model = build(begun=False, likelihood={"name": "gaussian", "variance": "running"})
    model.encoder = nn.Sequential(model.encoder[0], nn.BatchNorm1d(16, dtype=torch.float64), *model.encoder[1:])
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    logged(model, "first")
    after = model.state_dict()
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert {"encoder.1.running_mean", "likelihood.variance"} <= moved  # as they do in the first
    model.eval()
    model.prepare(0, "second", None)
    model.train()
    assert model.training and not model.encoder.training and model.up.training
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.zero_grad()
    torch.autograd.backward(total(model.loss(batch(), model.hyper(0), "second"))[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    first, second = model.players(Adam())
    assert all(p.grad is None for p in first.parameters) and all(p.grad is not None for p in second.parameters)


# ---- the stages in training


def weights(run: str, step: int, file: str = "model.safetensors") -> dict[str, Tensor]:
    return load_file(Path("runs", run, "checkpoints", f"step-{step:08}", file))


def test_trained_strictly_after_the_first_and_schedules_count_from_each_stage(vae: Callable[..., Result]) -> None:
    """Bit for bit: the second's weights do not move in the first stage, nor the first's, or their optimizer's tensors,
    in the second."""
    falling = '{"schedule": "linear", "start": 0.01, "end": 0.0, "steps": 20}'
    sets = ("-S", "train.save_every=10", "-S", "train.log_every=10", "-S", "train.keep=9", "-S", f"optim.lr={falling}")
    sets += ("-S", f"model.second_optim.lr={falling}")
    done = vae(*LINE, *TINY, *sets, "-S", "train.steps={first: 30, second: 20}", "--name", "r")
    assert done.code == 0, done.err
    first = ("encoder.", "decoder.", "likelihood.")
    for earlier, later in ((10, 20), (30, 40), (40, 50)):
        a, b = weights("r", earlier), weights("r", later)
        moved = {k for k in a if not torch.equal(a[k], b[k])}
        assert moved and all(k.startswith(first) == (later <= 30) for k in moved - {"begun"}), moved
        assert ("begun" in moved) == (earlier == 30)
        x, y = (weights("r", step, "trainer/optimizer.safetensors") for step in (earlier, later))
        still = [k for k in x if k.startswith("first/")]
        assert all(torch.equal(x[k], y[k]) == (earlier >= 30) for k in still if "/step" in k) and len(still) > 0
        assert any(k.startswith("second/") for k in x) == (earlier > 30)
    rates = [r["hyper"]["lr"] for r in records("r", "train")]
    assert rates == pytest.approx([0.0055, 0.0005, 0.0, 0.0055, 0.0005])
    assert ["recon" in r for r in records("r", "train")] == [True] * 3 + [False] * 2


def records(run: str, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path("runs", run, "metrics.jsonl").read_text().splitlines()]
    return [r for r in lines if r["kind"] == kind]


def test_one_number_of_steps_is_that_of_each_stage(vae: Callable[..., Result]) -> None:
    done = vae(*[word for word in LINE if word != "-q"], *TINY, "--steps", 12, "--name", "r")
    assert done.code == 0, done.err
    assert "24 steps of 32 images" in done.err
    assert "first: adam lr 0.001, stage first of 12 steps" in done.err
    assert "second: adam lr 0.0001, stage second of 12 steps" in done.err
    assert "steps: {first: 12, second: 12}" in Path("runs/r/config.yaml").read_text()
    for given, said in (("{first: 5}", "how many steps has the stage 'second'?"), ("{first: 5, third: 4}", "'third'")):
        refused = vae(*LINE, *TINY, "-S", f"train.steps={given}", "--name", "no")
        assert refused.code == 2 and said in refused.err, refused.err


def test_a_dry_run_counts_what_a_step_of_each_stage_takes(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "probe", lambda model, config, data, first: (1.0 if first == 0 else 3.0, 10**9))
    sets = ("-S", "train.steps={first: 40, second: 20}", "--dry-run", "--json")
    assert json.loads(vae(*LINE, *TINY, *sets).out)["seconds"] == 100.0
    monkeypatch.undo()
    model = build(begun=False).float()
    config = configs.build(trees.Tree({"model": {"name": "two-stage-vae", **SMALL}, "data": "squares"}, {}))
    called = []
    original = model.loss
    monkeypatch.setattr(model, "loss", lambda b, hyper, player: called.append(player) or original(b, hyper, player))

    class Images:
        order = None

        def batch(self, step: int, stream: int = 0) -> Batch:
            return Batch(batch().x_BCHW.float(), torch.arange(64))

    for first, player in ((0, "first"), (config.train.steps["first"], "second")):
        called.clear()
        assert steps.probe(model, config, Images(), 2, first=first)[0] > 0 and set(called) == {player}


def test_steps_of_a_stage_that_is_over_cannot_be_changed(vae: Callable[..., Result]) -> None:
    sets = ("-S", "train.save_every=10", "-S", "train.keep=9", "-S", "train.steps={first: 20, second: 20}")
    assert vae(*LINE, *TINY, *sets, "--name", "r").code == 0
    for step, first in ((30, 25), (30, 10), (20, 10)):
        changed = f"train.steps={{first: {first}, second: 30}}"
        refused = vae("train", "--resume", f"runs/r/checkpoints/step-{step:08}", "-S", changed, "-q")
        assert refused.code == 2 and f"train.steps: step {step} was made in stage" in refused.err, refused.err
    changed = "train.steps={first: 30, second: 5}"
    longer = vae("train", "--resume", "runs/r/checkpoints/step-00000020", "-S", changed, "-q")
    assert longer.code == 0, longer.err
    sets = (*sets[:-1], changed)
    assert vae(*LINE, *TINY, *sets, "--name", "straight").code == 0
    a, b = weights("straight", 35), weights("r", 35)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_killed_in_the_second_stage_and_resumed(vae: Callable[..., Result]) -> None:
    """kill -9; the resumed run is the uninterrupted one, bit for bit (in the first stage: tests of every model)."""
    line = (*LINE, *TINY, "-S", "train.save_every=25", "-S", "train.log_every=7")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command(*line, "-S", "train.steps={first: 60, second: 1000000}", "--name", "killed"),
        stderr=subprocess.PIPE, env=alone,
    )  # fmt: skip
    folder = Path("runs/killed/checkpoints")
    deadline = time.monotonic() + 150
    while not (folder / "latest").is_symlink() or os.readlink(folder / "latest") < "step-00000125":
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    last = int(os.readlink(folder / "latest").removeprefix("step-")) + 30
    changed = f"train.steps={{first: 60, second: {last - 60}}}"
    resumed = vae("train", "--resume", "runs/killed", "-S", changed, "-q")
    assert resumed.code == 0, resumed.err
    assert vae(*line, "-S", changed, "--name", "straight").code == 0
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        a, b = weights("straight", last, file), weights("killed", last, file)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for kind in ("train", "val"):
        pairs = zip(records("straight", kind), records("killed", kind), strict=True)
        assert all({**x, "seconds": 0} == {**y, "seconds": 0} for x, y in pairs)


# ---- what it is for


def test_gamma_falls_to_the_error_that_is_left(vae: Callable[..., Result]) -> None:
    """The learned gamma^2 is the mean squared error a pixel where it has come to rest, and never rises on the way."""
    sets = ("-S", "train.log_every=50", "-S", "train.steps={first: 700, second: 1}", "--lr", "0.01")
    assert vae(*LINE, *TINY, *sets, "--name", "r").code == 0
    gammas = [r["gamma"] for r in records("r", "train") if "gamma" in r]
    assert len(gammas) == 14 and all(b < a for a, b in itertools.pairwise(gammas)), gammas
    loaded = checkpoint.load("runs/r", torch.device("cpu"))
    x = data.load(Squares(name="squares")).split("train").take(456).x_BCHW
    torch.manual_seed(0)
    with torch.no_grad():
        z = loaded.model.infer(x, sample=True).values["z"]
        mse = float((x - loaded.model.image({"z": z})).square().mean())
    assert loaded.model.facts()["noise_variance"] == pytest.approx(mse, rel=0.1)
    assert mse < 0.8 * float((x - x.mean(dim=0)).square().mean())


def trained_on_two_clusters() -> tuple[Any, Tensor]:
    """A second stage of a first whose q(z) is known: N((-1.5, 0), 0.2^2 I) and N((1.5, 0), 0.2^2 I), as often; and
    draws of it."""
    torch.manual_seed(0)
    config = {"latent_dim": 2, "net": {"name": "mlp", "hidden": []}, "second_hidden": [64, 64, 64]}
    model = models.build(two_stage_vae.Config.model_validate(config), DataInfo("toy", (1, 1, 2), 4000))
    model.prepare(0, "second", None)
    linear = model.encoder[-1]
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[:2] = 3 * torch.eye(2)
        linear.bias.copy_(torch.tensor([-1.5, -1.5, 2 * math.log(0.2), 2 * math.log(0.2)]))

    def images(n: int) -> Batch:
        x = torch.stack([(torch.rand(n) < 0.5).float(), torch.full((n,), 0.5)], dim=1)
        return Batch(x.view(n, 1, 1, 2), torch.arange(n))

    second = model.players(Adam())[1]
    optimizer = torch.optim.Adam(second.parameters, lr=2e-3)
    model.train()
    for _ in range(700):
        optimizer.zero_grad()
        torch.autograd.backward(total(model.loss(images(128), model.hyper(0), "second"))[0])
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return model, model.infer(images(1500).x_BCHW, sample=True).values["z"]


def test_the_second_stage_draws_where_codes_lie_and_the_first_does_not() -> None:
    """By MMD^2 with the kernel exp(-|a - b|^2 / 4), whose expectation for N(0, I) against the two clusters is known."""
    model, codes = trained_on_two_clusters()
    with torch.no_grad():
        both, first = model.draw(1500)["z"], model.draw_at("first", 1500)["z"]

    def kernel(distance: float, variance: float) -> float:
        """Its mean for a difference of N((distance, 0), variance I) in two dimensions."""
        width = 4 + 2 * variance
        return 4 / width * math.exp(-(distance**2) / width)

    within = 0.5 * (kernel(0, 0.08) + kernel(3, 0.08))
    exact = within + kernel(0, 2) - 2 * kernel(1.5, 1.04)
    assert float(mmd2(first, codes, "rbf")) == pytest.approx(exact, abs=0.02) and exact > 0.1
    assert float(mmd2(both, codes, "rbf")) < exact / 8
    between = [float((z[:, 0].abs() < 0.75).double().mean()) for z in (both, first, codes)]
    assert between[2] == 0 and between[0] < 0.15 and between[1] == pytest.approx(math.erf(0.75 / 2**0.5), abs=0.05)


@torch.no_grad()
def test_the_variance_loss_of_the_codes() -> None:
    """As of images, one stage up: Var z, Var z^ and mse_z of z^ = decoder'(encoder'(z)), every net at its means."""
    model, x = build().float().eval(), batch(400).x_BCHW.float()
    view = Dataset(INFO, Floats(x), None, {"all": torch.arange(400)}).split("all")
    (found,) = probes.variance_loss(Source(model), view).levels
    z = model.encoder(x)[:, :3].double()
    u = model.up(z.float()).chunk(2, dim=1)[0]
    back = model.down(u).double()
    assert found.level == "z"
    assert found.var_z == pytest.approx(float(z.var(dim=0, correction=0).mean()), rel=1e-6)
    assert found.var_zhat == pytest.approx(float(back.var(dim=0, correction=0).mean()), rel=1e-6)
    assert found.mse == pytest.approx(float((z - back).square().mean()), rel=1e-6)


@torch.no_grad()
def test_draws_of_the_first_stage() -> None:
    model = build().float()
    torch.manual_seed(1)
    values = model.draw_at("first", 5000)
    assert float(values["z"].std()) == pytest.approx(1.0, abs=0.03)
    torch.testing.assert_close(values["u"], shortcut(model.up, values["z"])[:, :3])  # what q(u|z) says of them
    assert bool((model.draw_at("first", 3, temperature=0.0)["z"] == 0).all())
    torch.manual_seed(1)
    second = model.draw_at("second", 10)
    torch.manual_seed(1)
    assert torch.equal(second["z"], model.draw(10)["z"])
    with pytest.raises(ConfigError, match="no prior of a stage 'main'"):
        model.draw_at("main", 3)


def test_samples_of_either_stage(vae: Callable[..., Result], tiny_run: Path) -> None:
    assert vae(*LINE, *TINY, "--steps", 20, "--name", "r").code == 0
    found = json.loads(vae("sample", "runs/r", "--density", "first", "-n", 4, "-o", "a.npz", "--json").out)
    assert found["stage"] == "first"
    assert "stage" not in json.loads(vae("sample", "runs/r", "-n", 4, "-o", "b.npz", "--json").out)
    assert Path("a.npz").read_bytes() != Path("b.npz").read_bytes()
    wrong = vae("sample", "runs/r", "--density", "third", "-o", "c.npz")
    assert wrong.code == 2 and "it must be stored, none, first or second" in wrong.err
    wrong = vae("sample", tiny_run, "--density", "main", "-o", "c.npz")
    assert wrong.code == 2 and "it must be stored or none" in wrong.err


def test_a_schedule_that_would_begin_anew_is_refused() -> None:
    sigma = {"schedule": "decay", "start": 1.0, "factor": 0.5, "every": 10}
    with pytest.raises(ValidationError, match="would begin anew with the second stage"):
        build(likelihood={"name": "gaussian", "sigma": sigma})
    assert build(likelihood={"name": "bernoulli"}).objective_text({"free_bits": 0.0}).count("KL") == 2
    assert build(second_optim={"lr": 1e-5}).config.second_optim == Adam(lr=1e-5)
    assert build(second_optim={"betas": [0.5, 0.9]}).config.second_optim.lr == 1e-4
