"""Every row of `vae reproduce` that we ship: its command lines are those of the real command, and quick ones hold."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HERE, Result

from vaecli import config as configs
from vaecli import models, registry
from vaecli.analysis import metrics
from vaecli.batch import DataInfo
from vaecli.commands import reproduce
from vaecli.commands import train as train_command
from vaecli.presets import rows

DATA = {
    "dsprites": ((1, 64, 64), ("shape", "scale", "orientation", "posX", "posY"), (3, 6, 40, 32, 32)),
    "mnist": ((1, 28, 28), ("digit",), (10,)),
    "fashion-mnist": ((1, 28, 28), ("class",), (10,)),
    "digits": ((1, 8, 8), ("digit",), (10,)),
    "xysquares": ((3, 64, 64), ("x_R", "y_R", "x_G", "y_G", "x_B", "y_B"), (8,) * 6),
}
NAMES = rows.names()


def filled(text: str, row: rows.Row) -> list[str]:
    named = {"seed": ["0"], **{run: [f"runs/{run}"] for run in row.train}}
    return shlex.split(reproduce._filled(text, named | {f"{run}:all": ["a", "b"] for run in row.train}))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, vae: Callable[..., Result]) -> Callable[[list[str]], tuple[Any, ...]]:
    """The arguments with which a command line calls its command, which is not run."""

    def call(words: list[str]) -> tuple[Any, ...]:
        found: list[tuple[Any, ...]] = []
        module = __import__(f"vaecli.commands.{words[0]}", fromlist=["run"])
        monkeypatch.setattr(module, "show" if words[0] == "datasets" else "run", lambda *a, **k: found.append((*a, k)))
        done = vae(*words, "--json")
        assert done.code == 0, f"{shlex.join(words)}: {done.err}"
        return found[0]

    return call


@pytest.mark.parametrize("name", NAMES)
def test_command_lines_are_of_the_real_command(name: str, called: Callable[[list[str]], tuple[Any, ...]]) -> None:
    row = rows.load(name)
    assert row.summary.endswith((".", "codes")) and len(row.summary) < 130
    for arguments in row.train.values():
        layers = called(["train", *filled(arguments, row)])[0]
        config = configs.build(train_command.resolve(layers))
        assert config.seed == 0 and str(layers.flags["seed"][1]) == "0"
        shape, factors, sizes = DATA[config.data.name]
        side = shape[1] // getattr(config.data, "pool", 1)
        info = DataInfo(config.data.name, (shape[0], side, side), 1000, factors, sizes, total=1000)
        with torch.device("meta"):
            assert models.build(config.model, info).players(config.optim) is not None
        if config.data.name in ("mnist", "fashion-mnist") or config.data.name not in registry.names("dataset"):
            assert config.data.name in row.needs
    for command in row.then:
        called(filled(command, row))
    for key, entry in row.measure.items():
        words = filled(entry["command"], row)
        called(words)
        if "--metrics" in words:
            text = words[words.index("--metrics") + 1]
            several = words[0] == "compare"
            chosen = metrics.chosen(text, several=several)
            part = entry["value"].removeprefix("max ").split(".")
            if part[0] == "metrics":
                assert part[1] in chosen, key
            if not {"beta-vae", "beta-vae-converged", "sap", "dci-sklearn", "explicitness", "udr"}.isdisjoint(chosen):
                assert "scikit-learn" in row.needs, "the classifiers are scikit-learn's"
    assert all(value in {*row.measure, *row.derive} or row.kind == "published" for value in row.published)


def test_every_kind_and_every_claim_is_there() -> None:
    """The rows of the three papers: Higgins', Burgess', Asperti's, and those that they cite."""
    kinds = {rows.load(name).kind for name in NAMES}
    assert kinds == set(rows.KINDS)
    for start in ("linear-vae", "zdiff", "iwae", "asperti", "burgess", "higgins", "semafo", "two-stage", "rae"):
        assert any(name.startswith(start) for name in NAMES), start


@pytest.mark.long
def test_the_linear_vae_on_digits_holds(vae: Callable[..., Result]) -> None:
    pytest.importorskip("sklearn")
    done = vae("reproduce", "linear-vae-digits", "-o", "runs", "--json", "-q")
    (record,) = json.loads(done.out)["rows"]
    assert done.code == 0 and record["verdict"] == "holds", record["checks"]
    assert record["obtained"]["elbo_10"]["mean"] == pytest.approx(17.4519, abs=5e-4)


@pytest.mark.long
def test_xyobject_is_the_published_set(vae: Callable[..., Result]) -> None:
    done = vae("reproduce", "xyobject-hash", "--json", "-q")
    assert done.code == 0 and json.loads(done.out)["rows"][0]["verdict"] == "holds"


REAL = Path(os.environ.get("VAE_DATA_DIR", HERE.parent.parent / "shared" / "data")).resolve()
LONG = ["linear-vae-mnist", "linear-vae-fashion", "linear-vae-collapse", "linear-vae-variance-law", "dsprites-pixels"]


@pytest.mark.long
@pytest.mark.parametrize("name", [*LONG, "linear-vae-digits-sampled", "zdiff-factors", "dsprites-pca"])
def test_exact_rows_hold(name: str, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    if not (REAL / "mnist").is_dir():
        pytest.skip("no MNIST here")
    monkeypatch.setenv("VAE_DATA_DIR", str(REAL))
    done = vae("reproduce", name, "-o", "runs", "--json", "-q")
    assert done.code == 0, done.err
