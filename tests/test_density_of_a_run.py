"""`density:` of a run: checked before it starts, fitted after its last step as `vae density --fit` would."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Result
from safetensors.torch import load_file

from vaecli import config as configs
from vaecli.config import tree
from vaecli.densities import normal
from vaecli.training import stored_density
from vaecli.training.stop import Stop

RAE = ("train", "--model", "rae", *TINY, "--runs-dir", "runs")
LATEST = Path("checkpoints") / "latest"


def same_densities(a: Path, b: Path) -> None:
    x, y = (load_file(run / LATEST / "density.safetensors") for run in (a, b))
    assert x.keys() == y.keys() and len(x) > 0
    for key, tensor in x.items():
        assert torch.equal(tensor, y[key]), key


@pytest.mark.parametrize("settings", ["normal", "{name: mixture, components: 4}", "{name: vae, width: 8, steps: 20}"])
def test_it_is_what_vae_density_fits(settings: str, vae: Callable[..., Result]) -> None:
    if "mixture" in settings:
        pytest.importorskip("sklearn")
    done = vae(*RAE, "--steps", 30, "--seed", 5, "-S", f"density={settings}", "--name", "one")
    assert done.code == 0, done.err
    assert "density    " in done.err and "fitted to 456 codes when the training is over" in done.err
    assert vae(*RAE, "--steps", 30, "--seed", 5, "--name", "two", "-q").code == 0
    name, *rest = (part.split(":")[-1].strip() for part in settings.strip("{}").split(","))
    keys = [part.split(":")[0].strip() for part in settings.strip("{}").split(",")][1:]
    sets = [word for key, value in zip(keys, rest, strict=True) for word in ("-S", f"{key}={value}")]
    assert vae("density", "runs/two", "--fit", name, *sets, "--seed", 5, "-q").code == 0
    same_densities(Path("runs/one"), Path("runs/two"))
    told = [vae("density", f"runs/{run}").out for run in ("one", "two")]
    assert told[0] == told[1] and "456 codes (squares train)" in told[0]
    assert json.loads(Path("runs/one/run.json").read_text())["density"] == told[0].strip()
    assert vae("sample", "runs/one", "-n", 4, "-o", "s.png").code == 0  # rae has no prior of its own


def test_it_is_in_the_configuration_and_older_ones_load(vae: Callable[..., Result]) -> None:
    assert vae(*RAE, "--steps", 5, "-S", "density=normal", "--name", "r", "-q").code == 0
    text = Path("runs/r/config.yaml").read_text()
    assert "density: {name: normal}" in text
    plain = configs.build(tree.Tree({"model": "vae", "data": "squares"}, {}))
    assert plain.density is None and "density" not in plain.to_tree()
    with_one = configs.build(tree.Tree({"model": "vae", "data": "squares", "density": "normal"}, {}))
    assert with_one.density == normal.Config()
    assert configs.build(tree.Tree(with_one.to_tree(), {})) == with_one
    assert configs.build(tree.Tree({"model": "vae", "data": "squares", "density": None}, {})) == plain
    again = vae("train", "--config", "runs/r/config.yaml", "--runs-dir", "runs", "--name", "again", "-q")
    assert again.code == 0, again.err
    same_densities(Path("runs/r"), Path("runs/again"))


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("rae", "{name: mixture, components: 1000}", "1,000 components, but only 456 codes"),
        ("rae", "mixtur", "density.name: no density is called 'mixtur'; did you mean 'mixture'?"),
        ("rae", "{name: mixture, components: 0}", "density.components: "),
        ("rae", "{name: mixture, component: 3}", "density.component: no such option; did you mean 'components'?"),
        ("rae", "{components: 3}", "density.name: which density? There are: class-normal, mixture, normal, vae"),
        ("qlae", "normal", "level z of qlae is of codes"),
        ("infogan", "normal", "level noise of infogan is not inferred from an image"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    model: str, settings: str, said: str, vae: Callable[..., Result]
) -> None:
    net = () if model == "infogan" else ("-S", "model.net={name: mlp, hidden: [16]}")
    line = ("train", "--model", model, "--data", "squares", *net, "--runs-dir", "runs", "-S", f"density={settings}")
    for extra in ((), ("--dry-run",)):
        refused = vae(*line, *extra)
        assert refused.code == 2 and said in refused.err, refused.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(("asked", "said"), [
    (("mixtur",), "--fit: density.name: no density is called 'mixtur'; did you mean 'mixture'?"),
    (("normal", "--components", 5), "--components: density.components: no such option"),
    (("mixture", "--components", 5000), "--components: density.components: input should be less than or equal to 4096"),
    (("vae", "-S", "widht=8"), "--set: density.widht: no such option; did you mean 'width'?"),
    (("vae", "-S", "width"), "--set width: write --set key=value"),
])  # fmt: skip
def test_a_fit_that_is_none_is_refused_before_anything_is_read(
    asked: tuple[object, ...], said: str, vae: Callable[..., Result]
) -> None:
    refused = vae("density", "runs/that-there-is-not", "--fit", *asked)
    assert refused.code == 2 and said in refused.err, refused.err


def test_stopped_before_the_fit_it_is_fitted_on_resume(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a crash, by a signal while codes are made, and while there is nothing more to train."""
    line = (*RAE, "--steps", 30, "-S", "density=normal", "-q", "--name")
    assert vae(*line, "straight").code == 0
    original = stored_density.fit

    def crash(*_: Any) -> None:
        raise OSError("gone")

    def told(config: Any, model: Any, view: Any, seed: int, stop: Stop) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(config, model, view, seed, stop)

    for name, instead, code in (("crash", crash, 1), ("told", told, 143)):
        with monkeypatch.context() as patch:
            patch.setattr(stored_density, "fit", instead)
            stopped = vae(*line, name)
        assert stopped.code == code, stopped.err
        assert vae("density", f"runs/{name}").out == "none\n"
        if name == "told":
            assert "before the density was fitted" in stopped.err and "vae train --resume runs/told" in stopped.err
            assert json.loads(Path("runs/told/run.json").read_text())["status"] == "interrupted"
        resumed = vae("train", "--resume", f"runs/{name}")
        assert resumed.code == 0, resumed.err
        assert "images/s" not in resumed.err.partition("finished at step 30")[2].partition("\n")[0]
        same_densities(Path("runs/straight"), Path(f"runs/{name}"))
        x, y = (load_file(Path("runs", run) / LATEST / "model.safetensors") for run in ("straight", name))
        assert all(torch.equal(x[key], y[key]) for key in x)
        records = [Path("runs", run, "metrics.jsonl").read_text().splitlines() for run in ("straight", name)]
        assert len(records[0]) == len(records[1])
        assert "nothing to do" in vae("train", "--resume", f"runs/{name}").err


def test_a_run_that_goes_on_fits_anew_at_its_end(vae: Callable[..., Result]) -> None:
    assert vae(*RAE, "--steps", 20, "-S", "density=normal", "--name", "r", "-q").code == 0
    assert vae("train", "--resume", "runs/r", "--steps", 30, "-q").code == 0
    assert vae(*RAE, "--steps", 30, "-S", "density=normal", "--name", "straight", "-q").code == 0
    same_densities(Path("runs/straight"), Path("runs/r"))


def test_out_of_time_there_is_none_and_it_says_so(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    done = vae(*RAE, "--steps", 10**6, "--max-time", "1s", "-S", "density=normal", "--name", "r")
    assert done.code == 0 and "density    none: it is fitted when the training is over" in done.err, done.err
    assert json.loads(Path("runs/r/run.json").read_text())["status"] == "time limit"
    assert vae("density", "runs/r").out == "none\n"


def test_out_of_time_during_the_fit_nothing_half_fitted_is_stored(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = stored_density.fit

    def late(config: Any, model: Any, view: Any, seed: int, stop: Stop) -> Any:
        stop.deadline = 0.0
        return original(config, model, view, seed, stop)

    line = (*RAE, "--steps", 10, "-S", "density={name: vae, width: 8, steps: 20}", "--name", "r")
    with monkeypatch.context() as patch:
        patch.setattr(stored_density, "fit", late)
        done = vae(*line)
    assert done.code == 0 and "the time was over before it was fitted" in done.err, done.err
    assert json.loads(Path("runs/r/run.json").read_text())["status"] == "time limit"
    assert vae("density", "runs/r").out == "none\n"
    assert vae("train", "--resume", "runs/r", "-q").code == 0
    assert vae("density", "runs/r").out.startswith("a second VAE (8 wide, 20 steps)")


def test_a_model_in_closed_form_gets_one_too(vae: Callable[..., Result]) -> None:
    line = ("train", "--model", "pca", "--data", "squares", "--latent-dim", 3, "--runs-dir", "runs", "--name", "p")
    done = vae(*line, "-S", "density=normal")
    assert done.code == 0, done.err
    assert vae("density", "runs/p").out == "a Gaussian with full covariance, fitted to 456 codes (squares train)\n"


def test_of_several_levels_it_says_which(vae: Callable[..., Result]) -> None:
    small = ["-S", "model.net={name: mlp, hidden: [8]}", "--latent-dim", 2, "--batch-size", 8, "-q"]
    line = ("train", "--data", "squares", "--model", "two-stage-vae", *small, "--steps", 2, "--runs-dir", "runs")
    assert vae(*line, "--name", "t").code == 0
    assert vae("density", "runs/t", "--fit", "normal", "-q").code == 0
    assert "fitted to 456 codes of u and z (squares train)" in vae("density", "runs/t").out


def test_a_density_of_a_few_labels_says_how_many_codes_it_is_of(tiny_run: Path, vae: Callable[..., Result]) -> None:
    few = ("-S", "labelled=50", "-S", "factors=[size]")
    told = json.loads(vae("density", tiny_run, "--fit", "class-normal", *few, "--json").out)
    assert told["fitted_on"] == "50 codes (squares train)"
