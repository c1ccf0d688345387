"""The loop: stopping, divergence, resuming, records; and that models learn something measurable in seconds."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Result, command
from safetensors.torch import load_file

from vaecli import config as configs
from vaecli import data, device, models
from vaecli.batch import Batch
from vaecli.commands.train import Layers, duration, resolve
from vaecli.errors import ConfigError, Interrupted
from vaecli.models.base import Term
from vaecli.models.beta_vae import Model as BetaVAE
from vaecli.report import figures
from vaecli.settings import schedules
from vaecli.training import checkpoint, rundir, trainer
from vaecli.training.state import TrainState
from vaecli.training.steps import update
from vaecli.training.stop import Stop


def records(run: str | Path, kind: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `vae train` on the tiny problem in its own process and waits for the first checkpoint."""
    children: list[subprocess.Popen[bytes]] = []

    def start(name: str, *extra: object) -> subprocess.Popen[bytes]:
        args = [
            "train",
            *TINY,
            "--runs-dir",
            "runs",
            "--steps",
            10**7,
            "-S",
            "train.save_every=100",
            "--name",
            name,
            *extra,
        ]
        # A test run in the background has SIGINT ignored, and children inherit that.
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        child = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed)
        children.append(child)
        deadline = time.monotonic() + 150
        while not Path(f"runs/{name}/checkpoints/latest").exists():
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline, list(Path("runs").rglob("*"))
            time.sleep(0.02)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_can_be_resumed(
    number: signal.Signals, code: int, started: Callable[..., subprocess.Popen[bytes]], vae: Callable[..., Result]
) -> None:
    child = started("stopped")
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert out == b"" and b"saved" in err and b"Traceback" not in err
    facts = json.loads(Path("runs/stopped/run.json").read_text())
    assert facts["status"] == "interrupted" and facts["exit_code"] == code
    step = json.loads(vae("info", "runs/stopped", "--json").out)["step"]
    assert step == facts["step"]
    resumed = vae("train", "--resume", "runs/stopped", "--steps", step + 5, "-q")
    assert resumed.code == 0 and resumed.out == "runs/stopped\n", resumed.err


def test_two_writers_are_refused(started: Callable[..., subprocess.Popen[bytes]], vae: Callable[..., Result]) -> None:
    child = started("busy")
    for args in (["--resume", "runs/busy"], [*TINY, "--runs-dir", "runs", "--name", "busy"]):
        refused = vae("train", *args)
        assert refused.code == 5 and str(child.pid) in refused.err, refused.err
    child.kill()
    child.wait()
    freed = vae("train", *TINY, "--runs-dir", "runs", "--name", "busy")
    assert freed.code == 2 and "--force" in freed.err
    assert vae("train", *TINY, "--runs-dir", "runs", "--name", "busy", "--force", "--steps", 3).code == 0


def test_usr1_saves_and_goes_on(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    child = started("saving")
    before = os.readlink("runs/saving/checkpoints/latest")
    child.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while os.readlink("runs/saving/checkpoints/latest") == before:
        assert time.monotonic() < deadline, list(Path("runs").rglob("*"))
        time.sleep(0.02)
    assert child.poll() is None


def test_time_limit(vae: Callable[..., Result]) -> None:
    done = vae("train", *TINY, "--runs-dir", "runs", "--name", "t", "--steps", 10**7, "--max-time", "1s", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["status"] == "time limit" and facts["step"] > 10
    assert facts["val"]["elbo"] == pytest.approx(-(facts["val"]["recon"] + facts["val"]["kl"]), rel=1e-6)


def test_durations() -> None:
    assert [duration(t) for t in ("90", "90s", "2m", "1h30m", "1.5m", None)] == [90, 90, 120, 5400, 90, None]
    for text in ("", "2x", "m", "1m2h"):
        with pytest.raises(ConfigError):
            duration(text)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_is_reported_and_the_weights_stay_finite(
    where: str, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BetaVAE.loss

    def poisoned(self: BetaVAE, batch: Batch, hyper: dict[str, float], player: str = "main") -> dict[str, Term]:
        terms = original(self, batch, hyper, player)
        if int(self.training) and hyper["beta"] > 24.5:  # the schedule below says 25 at step 25
            bad = torch.full((), float("nan"))
            if where == "loss":
                terms["bad"] = Term(bad)
            else:
                parameter = next(self.parameters())
                terms["bad"] = Term((parameter.clamp(min=0) * 0).sum().sqrt())  # value 0, gradient NaN
        return terms

    monkeypatch.setattr(BetaVAE, "loss", poisoned)
    beta = "model.beta={schedule: linear, start: 0, end: 100, steps: 100}"
    args = [
        *TINY,
        "--model",
        "beta-vae",
        "-S",
        beta,
        "--steps",
        50,
        "--runs-dir",
        "runs",
        "--name",
        "d",
        "-S",
        "train.save_every=10",
    ]
    result = vae("train", *args)
    assert result.code == 4 and "step 25" in result.err and result.out == "", result.err
    facts = json.loads(Path("runs/d/diverged.json").read_text())
    assert facts["step"] == 25 and len(facts["batch_indices"]) == 32
    assert json.loads(Path("runs/d/run.json").read_text())["status"] == "diverged"
    assert json.loads(vae("info", "runs/d", "--json").out)["step"] == 25
    assert vae("analyze", "runs/d").code == 0  # the weights before the bad step were kept, and are finite


def test_what_blew_up_takes_no_sound_weights_along(vae: Callable[..., Result]) -> None:
    """Finite is not sound: a loss far above the untrained model's is warned of, and the last sound step stays."""
    often = ("-S", "train.save_every=4", "-S", "train.keep=1", "--runs-dir", "runs")
    points = "optim.lr={{schedule: piecewise, points: [[0, 1e-3],[20, 1e-3],[{}]]}}"
    done = vae("train", *TINY, "--model", "vae", "-S", points.format("21, 5"), "--steps", 60, *often, "--name", "w")
    assert done.code == 0 and done.err.count("that of the untrained model was") == 1, done.err
    assert "step 24: the loss is" in done.err and "step 20 is kept" in done.err
    sound = "runs/w/checkpoints/step-00000020"
    assert json.loads(vae("analyze", sound, "--json").out)["totals"]["elbo"] > -200
    assert json.loads(vae("analyze", "runs/w", "--json").out)["totals"]["elbo"] < -1e4
    # What lies between two saves is left behind, and the hint leads to weights that can be trained on.
    done = vae("train", *TINY, "--model", "vae", "-S", points.format("21, 1e6"), "--steps", 60, *often, "--name", "d")
    assert done.code == 4, done.err
    named = re.search(r"--init-from (\S+)", done.err)
    assert named is not None and json.loads(vae("info", named[1], "--json").out)["step"] == 20
    again = re.search(r"vae (train -c \S+ --init-from \S+)", done.err)  # as the hint has it
    assert again is not None and vae(*again[1].split(), "-S", "optim.lr=1e-3", "--steps", 5).code == 0


def test_a_divergence_before_anything_was_saved_keeps_the_last_finite_weights(vae: Callable[..., Result]) -> None:
    lr = "optim.lr={schedule: piecewise, points: [[0, 1e-3],[20, 1e-3],[24, 1e6]]}"
    done = vae("train", *TINY, "--model", "vae", "-S", lr, "--steps", 400, "--runs-dir", "runs", "--name", "e")
    assert done.code == 4 and "-c runs/e/config.yaml --init-from runs/e" in done.err.replace("\n", " ")
    assert vae("info", "runs/e").code == 0
    assert "no weights that were saved are sound" in done.err  # the loss is a thousand times what it was


def test_weights_that_blew_up_at_once_are_not_called_sound(vae: Callable[..., Result]) -> None:
    done = vae("train", *TINY, "--model", "vae", "--lr", 1e6, "--steps", 200, "--runs-dir", "runs", "--name", "f")
    assert done.code == 4 and "no weights that were saved are sound" in done.err and "last sound" not in done.err


def test_best_by_validation_stays_beside_the_newest(vae: Callable[..., Result]) -> None:
    options = ("-S", "train.save_every=20", "-S", "train.eval_every=20", "-S", "train.keep=1", "--runs-dir", "runs")
    lr = "optim.lr={schedule: piecewise, points: [[0, 1e-3],[60, 1e-3],[61, 0.3]]}"  # gets worse from there
    run = Path(
        vae("train", *TINY, "--model", "vae", "-S", lr, "--steps", 60, *options, "--name", "b", "-q").out.strip()
    )
    assert vae("train", "--resume", run, "--steps", 120, "-q").code == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["loss"] for r in records if r["kind"] == "val"}
    least = min(losses, key=losses.__getitem__)
    assert least < 120 and os.readlink(run / "checkpoints" / "best") == f"step-{least:08d}"
    assert {p.name for p in (run / "checkpoints").glob("step-*")} >= {f"step-{least:08d}", "step-00000120"}
    assert json.loads(vae("info", run / "checkpoints" / "best", "--json").out)["step"] == least
    # A schedule moves the objective itself: losses of two steps are of two objectives.
    beta = "model.beta={schedule: linear, start: 0, end: 4, steps: 40}"
    moving = vae("train", *TINY, "--model", "beta-vae", "-S", beta, "--steps", 40, *options, "--name", "m", "-q")
    assert not (Path(moving.out.strip()) / "checkpoints" / "best").is_symlink()


def test_it_saves_by_the_clock_too_and_changes_nothing(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps that take long little is lost, however many there are between two checkpoints."""
    now = iter(range(0, 10**9, 100))  # every look at the clock takes 100 seconds
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    kept = {}
    for minutes in (0, 10):
        minute = ("-S", f"train.save_minutes={minutes}", "-S", "train.keep=99", "-S", "train.log_every=5")
        done = vae("train", *TINY, "--steps", 30, *minute, "--runs-dir", "runs", "--name", minutes, "-q")
        assert done.code == 0, done.err
        kept[minutes] = sorted(
            int(p.name.removeprefix("step-")) for p in Path(f"runs/{minutes}/checkpoints").glob("step-*")
        )
    assert kept[0] == [30]
    assert 3 <= len(kept[10]) <= 6 and kept[10][-1] == 30  # a look or two a step, and seven are over 600 seconds
    plain, clocked = (load_file(f"runs/{minutes}/checkpoints/latest/model.safetensors") for minutes in (0, 10))
    assert all(torch.equal(plain[key], clocked[key]) for key in plain)


@pytest.mark.parametrize(("name", "links"), [("infogan", 1), ("vae-gan", 1), ("vae", 2)])
def test_a_moving_judge_finds_no_step_best_and_none_unsound(
    name: str, links: int, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a discriminator is least before the generator has learned anything; distances in features grow."""
    from test_every_model import options

    monkeypatch.setattr("vaecli.training.trainer.evaluate", lambda *_: {"loss": 1.0})
    count = TrainState.count
    monkeypatch.setattr(  # a loss that grows tenfold with every step
        TrainState, "count", lambda s, values, steps=1: count(s, {**values, "loss": 10.0**s.step}, steps)
    )
    done = vae(*options(name, steps=8, eval_every=4, save_every=4)[:-1], "--name", "r")
    assert done.code == 0, done.err
    assert len([p for p in Path("runs/r/checkpoints").iterdir() if p.is_symlink()]) == links
    assert ("that of the untrained model was" in done.err) == (name == "vae")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--model", "closed-form", "--lr", "0.1"], "optim.lr would do nothing"),
        (["--model", "closed-form", "--steps", "5", "--batch-size", "8"], "train.batch_size, train.steps would do"),
        (["--model", "vae", "-S", "train.steps={mian: 5}"], "did you mean 'main'"),
        (["--model", "stages", "-S", "train.steps={main: 5}"], "how many steps has the stage 'second'"),
        (["--model", "vae", "-S", "train.steps={main: 0}"], "greater than 0"),
    ],
)
def test_settings_that_do_nothing_or_fit_no_stage(
    options: list[str], word: str, toy_models: list[str], vae: Callable[..., Result]
) -> None:
    refused = vae("train", "--data", "squares", *options, "--runs-dir", "runs")
    assert refused.code == 2 and word in refused.err, refused.err
    assert not Path("runs").exists()


def test_weights_of_terms_are_recorded(vae: Callable[..., Result]) -> None:
    """The terms as they are and what they weigh: their sum is the loss, also while a weight passes through 1."""
    beta = "model.beta={schedule: linear, start: 0, end: 2, steps: 20}"
    args = [*TINY, "--model", "beta-vae", "-S", beta, "--steps", 20, "-S", "train.log_every=1", "--runs-dir", "runs"]
    assert vae("train", *args, "--name", "w", "-q").code == 0
    for n, record in enumerate(records("runs/w", "train")):
        assert record["weights"] == pytest.approx({"recon": 1.0, "kl": 0.1 * n})
        assert record["loss"] == pytest.approx(record["recon"] + 0.1 * n * record["kl"], rel=1e-5)
        assert record["elbo"] == pytest.approx(-record["recon"] - record["kl"], rel=1e-5)


def test_schedules_do_not_depend_on_evaluation(vae: Callable[..., Result]) -> None:
    """beta and lr at a step are the same with evaluations in between, and so is everything else."""
    args = [*TINY, "--model", "beta-vae", "--runs-dir", "runs", "--steps", 30, "-q", "-S", "train.log_every=1"]
    moving = [
        "-S",
        "model.beta={schedule: cosine, start: 1, end: 9, steps: 30}",
        "-S",
        "optim.lr={schedule: decay, start: 1e-2, factor: 0.5, every: 10}",
    ]
    assert vae("train", *args, *moving, "--name", "often", "-S", "train.eval_every=2").code == 0
    assert vae("train", *args, *moving, "--name", "never", "-S", "train.eval_every=1000").code == 0
    often, never = records("runs/often", "train"), records("runs/never", "train")
    for a, b in zip(often, never, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    beta = schedules.Cosine(schedule="cosine", start=1.0, end=9.0, steps=30)
    assert [r["hyper"]["beta"] for r in often] == pytest.approx([beta.at(s) for s in range(30)])
    assert [r["hyper"]["lr"] for r in often] == pytest.approx([1e-2] * 10 + [5e-3] * 10 + [2.5e-3] * 10)


def test_resume_refuses_another_configuration(tiny_run: Path, vae: Callable[..., Result]) -> None:
    for args, says in (
        (["-S", "model.latent_dim=9"], "model.latent_dim: 3 -> 9"),
        (["--seed", 5], "seed: 0 -> 5"),
        (["--steps", 10], "past train.steps"),
        (["-p", "beta-vae-dsprites"], "data.name: squares -> dsprites"),
    ):
        refused = vae("train", "--resume", tiny_run, *args)
        assert refused.code == 2 and says in refused.err, refused.err
    finished = vae("train", "--resume", tiny_run)
    assert finished.code == 0 and "nothing to do" in finished.err and finished.out.strip() == str(tiny_run)
    assert vae("train", "--resume", "nowhere").code == 2
    assert vae("train", "--resume", "auto").code == 2
    fresh = vae("train", "--resume", "auto", "--name", "a", *TINY, "--steps", 4, "--runs-dir", "runs")
    assert fresh.code == 0 and "starting afresh" in fresh.err
    again = vae("train", "--resume", "auto", "--name", "a", "--steps", 6, "--runs-dir", "runs")
    assert again.code == 0 and "resuming" in again.err, again.err
    # What a scheduler does: the very same line again.
    same = vae("train", "--resume", "auto", "--name", "a", *TINY, "--steps", 8, "--runs-dir", "runs")
    assert same.code == 0 and "resuming runs/a at step 6" in same.err, same.err


def test_damaged_newest_checkpoint(vae: Callable[..., Result]) -> None:
    """A run falls back, loudly, to the newest checkpoint that verifies; a step named by hand never does."""
    args = [*TINY, "--runs-dir", "runs", "--name", "r", "--steps", 30, "-S", "train.save_every=10", "-q"]
    assert vae("train", *args).code == 0
    newest = Path("runs/r/checkpoints/step-00000030")
    (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-7])
    assert vae("train", "--resume", newest, "--steps", 40).code == 3
    resumed = vae("train", "--resume", "runs/r", "--steps", 40)
    assert resumed.code == 0 and "damaged" in resumed.err and "resuming runs/r at step 20" in resumed.err, resumed.err


def test_init_from(tiny_run: Path, vae: Callable[..., Result]) -> None:
    same = vae(
        "train", *TINY, "--model", "vae", "--init-from", tiny_run, "--steps", 0, "--runs-dir", "runs", "--name", "i"
    )
    assert same.code == 0, same.err
    a, b = (json.loads(vae("analyze", run, "--json").out) for run in (tiny_run, "runs/i"))
    assert a["latents"] == b["latents"]
    other = vae("train", *TINY, "--latent-dim", 5, "--init-from", tiny_run, "--runs-dir", "runs")
    assert other.code == 2 and "do not fit" in other.err


def test_dry_run_writes_nothing(vae: Callable[..., Result], tmp_path: Path) -> None:
    result = vae("train", *TINY, "-n", "--json", "--runs-dir", "runs")
    assert result.code == 0 and json.loads(result.out)["parameters"] > 1000
    assert not (tmp_path / "runs").exists()


def test_disk_too_small(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("D", (), {"free": 1000})())
    result = vae("train", *TINY, "--runs-dir", "runs")
    assert result.code == 5 and "free" in result.err and not Path("runs").exists()


def test_out_of_memory_names_the_remedies(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "update", full)
    result = vae("train", *TINY, "--runs-dir", "runs")
    assert result.code == 5 and "train.batch_size" in result.err and "32 images" in result.err


def test_data_outside_the_range_is_refused(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    original = data.base.Stream.batch

    def bad(self: data.base.Stream, step: int) -> Batch:
        batch = original(self, step)
        x_BCHW = batch.x_BCHW.clone()
        x_BCHW[3, 0, 0, 0] = 7.0
        return Batch(x_BCHW, batch.index_B, batch.labels_BK)

    monkeypatch.setattr(data.base.Stream, "batch", bad)
    result = vae("train", *TINY, "--runs-dir", "runs")
    assert result.code == 3 and "outside [0, 1]" in result.err


def test_what_the_hint_of_a_refused_change_says_is_taken(tiny_run: Path, vae: Callable[..., Result]) -> None:
    refused = vae("train", "--resume", tiny_run, "--latent-dim", 5)
    named = re.search(r"vae (train -c \S+) with the change", refused.err)
    assert refused.code == 2 and named, refused.err
    anew = vae(*shlex.split(named[1]), "--latent-dim", 5, "--steps", 2, "--runs-dir", "runs", "--name", "n", "-q")
    assert anew.code == 0, anew.err
    alone = vae("train", "--init-from", tiny_run)
    named = re.search(r"vae (train -c \S+ --init-from \S+) ", alone.err)
    assert alone.code == 2 and named, alone.err
    assert vae(*shlex.split(named[1]), "--steps", 2, "--runs-dir", "runs", "--name", "o", "-q").code == 0


def test_resume_of_what_is_finished_tells_its_last_evaluation(tiny_run: Path, vae: Callable[..., Result]) -> None:
    found = json.loads(vae("train", "--resume", tiny_run, "--json").out)
    records = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    (last,) = [record for record in records if record["kind"] == "val"]
    assert found["val"]["images"] == 51 and found["val"]["elbo"] == last["elbo"]


def test_steps_are_nothing_to_a_fit_in_closed_form(vae: Callable[..., Result]) -> None:
    done = vae("train", "-d", "squares", "-m", "pca", "--runs-dir", "runs", "--name", "p", "-q")
    refused = vae("train", "--resume", done.out.strip(), "--steps", 5)
    assert refused.code == 2 and "train.steps would do nothing" in refused.err


def test_a_log_has_all_that_was_said_and_a_record_what_it_is_of(vae: Callable[..., Result]) -> None:
    assert vae("train", *TINY, "--steps", 3, "--name", "a").code == 0
    log, facts = Path("runs/a/train.log").read_text(), json.loads(Path("runs/a/run.json").read_text())
    assert "chosen     likelihood" in log and "model      vae: 3 latents" in log
    assert log.index("chosen") < log.index("run        runs/a") < log.index("latent\tKL (nats)") < log.index("verdict")
    assert facts["preset"] is None and "cudnn" in facts
    assert vae("train", "-p", "beta-vae-dsprites", "--steps", 1, "--name", "b", "-q").code == 0
    assert json.loads(Path("runs/b/run.json").read_text())["preset"] == "beta-vae-dsprites"
    assert "chosen" not in Path("runs/b/train.log").read_text()  # what another command said


def test_the_commit_of_the_programs_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "source" / "vaecli" / "training" / "rundir.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    monkeypatch.setattr(rundir, "__file__", str(source))
    assert rundir.provenance()["commit"] is None  # installed, and no checkout
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", tmp_path / "source", *words], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))  # as a hook of another repository has it
    found = rundir.provenance()["commit"]
    assert isinstance(found, str) and re.fullmatch(r"[0-9a-f]{40}", found)
    source.write_text("changed")
    assert rundir.provenance()["commit"] == f"{found}+changes"


def test_samples_are_drawn_at_every_evaluation_and_change_nothing(vae: Callable[..., Result]) -> None:
    line = ("train", *TINY, "--steps", 30, "-S", "train.eval_every=10", "-q")
    assert vae(*line, "--name", "a").code == 0 and vae(*line, "--name", "b", "-S", "train.samples=0").code == 0
    drawn = sorted(Path("runs/a/samples").iterdir())
    assert [path.name for path in drawn] == [f"step-{step:08}.png" for step in (10, 20, 30)]
    assert not Path("runs/b/samples").exists()
    a, b = (load_file(f"runs/{name}/checkpoints/latest/model.safetensors") for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    # The last are what the model draws from that noise, in reading order.
    loaded = checkpoint.load(Path("runs/a"), torch.device("cpu"))
    device.seed(0, "picture")
    with torch.no_grad():
        expected = loaded.model.image(loaded.model.draw(64)).numpy()
    assert drawn[-1].read_bytes() == figures.grid(expected)


def test_samples_of_images_of_five_channels_show_the_first(vae: Callable[..., Result], tmp_path: Path) -> None:
    np.savez("five.npz", images=np.random.default_rng(0).random((40, 8, 8, 5), dtype=np.float32))
    done = vae("train", "-d", "array:five.npz", "-m", "vae", "--steps", 2, "--name", "f")
    assert done.code == 0 and "--channels" not in done.err, done.err
    assert Path("runs/f/samples/step-00000002.png").is_file()


def test_samples_are_not_drawn_into_another_folder(vae: Callable[..., Result], tmp_path: Path) -> None:
    assert vae("train", *TINY, "--steps", 10, "--name", "a", "-q").code == 0
    shutil.rmtree("runs/a/samples")
    (tmp_path / "elsewhere").mkdir()
    Path("runs/a/samples").symlink_to(tmp_path / "elsewhere")
    done = vae("train", "--resume", "runs/a", "--steps", 20, "-q")
    assert done.code == 5 and "is a link" in done.err and not list((tmp_path / "elsewhere").iterdir())


def test_resume_takes_no_idle_options_and_dry_run_is_dry(tiny_run: Path, vae: Callable[..., Result]) -> None:
    before = sorted(tiny_run.rglob("*"))
    assert vae("train", "--resume", tiny_run, "--steps", 40, "-n").code == 0
    assert sorted(tiny_run.rglob("*")) == before
    for option in (["--name", "x"], ["--force"], ["--runs-dir", "y"], ["--init-from", tiny_run]):
        refused = vae("train", "--resume", tiny_run, "--steps", 40, *option)
        assert refused.code == 2 and option[0] in refused.err


def test_requeued_command_lines(vae: Callable[..., Result], tiny_run: Path) -> None:
    """`--resume auto` with the very same line: shorthand options, --init-from, killed before the first save."""
    line = ["train", "--resume", "auto", "--name", "q", *TINY, "--runs-dir", "runs", "-q"]
    annealed = [*line, "--model", "annealed-vae", "-S", "model.c_max=5", "-S", "model.c_steps=50"]
    for steps in (5, 8):
        assert vae(*annealed, "--steps", steps).code == 0
    started = [*line, "--model", "beta-vae", "--init-from", tiny_run, "--name", "i"]
    for steps in (5, 8):
        assert vae(*started, "--steps", steps).code == 0
    Path("runs/early/checkpoints").mkdir(parents=True)
    Path("runs/early/run.json").write_text("{}")
    early = vae(*line, "--name", "early", "--steps", 5)
    assert early.code == 0, early.err


def test_an_older_step_leaves_the_newer_ones_behind(vae: Callable[..., Result]) -> None:
    args = ["train", *TINY, "--runs-dir", "runs", "-q", "-S", "train.save_every=10", "-S", "train.log_every=5"]
    assert vae(*args, "--name", "r", "--steps", 30, "-S", "train.keep=5").code == 0
    (Path("runs/r/checkpoints") / ".tmp-step-00000099-1").mkdir()
    assert vae("train", "--resume", "runs/r/checkpoints/step-00000010", "--steps", 15, "-q").code == 0
    folder = Path("runs/r/checkpoints")
    assert {p.name for p in folder.glob("step-*")} == {"step-00000010", "step-00000015"}
    assert len(list(folder.glob("superseded-*"))) == 2 and not list(folder.glob(".tmp*"))
    assert json.loads(vae("info", "runs/r", "--json").out)["step"] == 15
    assert [r["step"] for r in records("runs/r", "train")] == [5, 10, 15]


def test_a_foreign_folder_is_left_alone(vae: Callable[..., Result]) -> None:
    Path("mine/checkpoints/foo").mkdir(parents=True)
    refused = vae("train", "--resume", "mine/checkpoints/foo")
    assert refused.code == 2 and "not a run directory" in refused.err
    assert [p.name for p in Path("mine").iterdir()] == ["checkpoints"]


def test_non_finite_weights_are_never_saved(vae: Callable[..., Result]) -> None:
    """A last step that blows up is seen too."""
    result = vae("train", *TINY, "--lr", "1e39", "--steps", 1, "--runs-dir", "runs", "--name", "x")
    assert result.code == 4 and "not finite" in result.err and "there is no checkpoint" in result.err
    assert not list(Path("runs/x/checkpoints").glob("step-*"))


def test_ignored_signals_stay_ignored(vae: Callable[..., Result]) -> None:
    """Under nohup a hang-up does not stop a run."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.signals():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, old)


def test_full_disk_is_the_machines_fault(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from vaecli.training.rundir import RunDir

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(RunDir, "record", full)
    result = vae("train", *TINY, "--steps", 200, "--runs-dir", "runs")
    assert result.code == 5 and "No space left" in result.err, result.err


def test_images_of_another_shape(vae: Callable[..., Result]) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    np.save("d.npy", generator.random((80, 16, 16)).astype("float32"))
    net = ["-S", "model.net={name: mlp, hidden: [8]}", "-S", "model.likelihood=gaussian"]
    assert (
        vae("train", "--data", "array:d.npy", *net, "--steps", 5, "--runs-dir", "runs", "--name", "r", "-q").code == 0
    )
    Path("sub").mkdir()
    os.chdir("sub")
    assert vae("analyze", "../runs/r").code == 0  # the path of the data was kept absolute
    os.chdir("..")
    np.save("d.npy", generator.random((80, 8, 8)).astype("float32"))
    for args in (["analyze", "runs/r"], ["reconstruct", "runs/r"], ["train", "--resume", "runs/r", "--steps", 9]):
        refused = vae(*args)
        assert refused.code == 3 and "trained on 1x16x16" in refused.err, refused.err


def test_labels_are_needed_and_hidden(toy_models: list[str], vae: Callable[..., Result]) -> None:
    import numpy as np

    np.save("d.npy", np.zeros((20, 4, 4), dtype="uint8"))
    refused = vae("train", "--data", "array:d.npy", "--model", "labels", "--runs-dir", "runs")
    assert refused.code == 2 and "needs labels" in refused.err, refused.err
    dataset = data.load(
        configs.build(resolve(Layers(flags={"data.name": ("", "squares")}, sets=["data.labelled=10"]))).data
    )
    seen = torch.cat([b.labels_BK for b in dataset.training(0).batches(50)])
    assert int((seen[:, 0] >= 0).sum()) == 10


# ---- learning


def test_a_beta_vae_learns_the_squares(vae: Callable[..., Result]) -> None:
    """Some seconds are enough for the ELBO to rise by far, and for the KL to fall with beta."""
    kl = {}
    for beta in (1, 3):
        run = f"b{beta}"
        args = [
            "-S",
            "model.net={name: mlp, hidden: [64, 64]}",
            "--steps",
            1500,
            "--lr",
            3e-3,
            "--runs-dir",
            "runs",
            "--name",
            run,
        ]
        assert vae("train", "--data", "squares", "--model", "beta-vae", "--beta", beta, *args, "-q").code == 0
        found = json.loads(vae("analyze", f"runs/{run}", "--json", "--split", "train").out)
        kl[beta] = found["totals"]["kl"]
        first, last = records(f"runs/{run}", "train")[0], records(f"runs/{run}", "train")[-1]
        assert last["elbo"] > first["elbo"] + 10
    assert kl[1] > 1.2 * kl[3] > 1
    # Eq. 4 is a bound with weight beta on the KL: the weaker the weight, the better the reconstruction.
    assert records("runs/b1", "train")[-1]["recon"] < records("runs/b3", "train")[-1]["recon"]


def test_update_minimises_what_it_logs() -> None:
    """One SGD step by hand in float64 gives the same weights as `update`."""
    tree = resolve(
        Layers(
            None,
            None,
            {"data.name": ("", "squares"), "model.name": ("", "vae")},
            ["model.net={name: mlp, hidden: [4]}", "optim={name: sgd, lr: 0.001}"],
        )
    )
    config = configs.build(tree)
    dataset = data.load(config.data)
    torch.manual_seed(1)
    model = models.build(config.model, dataset.info)
    twin = models.build(config.model, dataset.info).double()
    twin.load_state_dict(model.state_dict())
    batch = dataset.stream(0, 8).batch(0)
    state = TrainState.fresh(model, config)
    logged = update(model, config, state, batch)
    from vaecli import device

    device.seed(0, "step", 0)
    mean_BD, logvar_BD = twin.encoder(batch.x_BCHW.double()).chunk(2, dim=1)
    z_BD = mean_BD + torch.randn(mean_BD.shape).double() * (0.5 * logvar_BD).exp()
    logits = twin.decoder(z_BD)
    x = batch.x_BCHW.double()
    recon = (logits.clamp(min=0) - logits * x + (-logits.abs()).exp().log1p()).flatten(1).sum(1).mean()
    kl = 0.5 * (mean_BD**2 + logvar_BD.exp() - logvar_BD - 1).sum(1).mean()
    (recon + kl).backward()
    assert logged["recon"] == pytest.approx(recon.item(), rel=1e-5)
    assert logged["kl"] == pytest.approx(kl.item(), rel=1e-4)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b - 0.001 * b.grad, rtol=1e-4, atol=1e-6)


def test_a_collapse_is_warned_of_while_it_trains(vae: Callable[..., Result]) -> None:
    """Once, at the first evaluation that shows it; and not in a run that learns."""
    args = ["train", *TINY, "--model", "beta-vae", "--steps", 1600, "--runs-dir", "runs", "-S", "train.eval_every=200"]
    collapsed = vae(*args, "--beta", 1000, "--name", "collapsed", "-q")
    assert collapsed.code == 0 and collapsed.err.count("collapsed so far") == 1
    assert "beta" in collapsed.err
    sound = vae(*args, "--beta", 1, "--name", "sound", "-q")
    assert sound.code == 0 and "collapsed" not in sound.err


@pytest.mark.parametrize("what", ["signal", "deadline", "save"])
def test_a_stop_during_an_evaluation_is_saved(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes between two looks at the flags: what is said to be saved is saved."""
    layers = Layers(None, None, {"data.name": ("", "squares"), "model.name": ("", "vae")}, SMALL_STOP)
    config = configs.build(resolve(layers))
    dataset = data.load(config.data)
    model = models.build(config.model, dataset.info)
    state = TrainState.fresh(model, config)
    stop, run = Stop(), rundir.create(tmp_path, "r", what)
    plain = trainer.evaluate

    def evaluate(*args: Any) -> Any:
        record = plain(*args)
        if state.step == 15:
            stop.signal = signal.SIGTERM if what == "signal" else None
            stop.deadline = 0.0 if what == "deadline" else None
            stop.saves += what == "save"
        return record

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    split = dataset.split("val")
    going = trainer.fit(run, model, config, state, dataset.stream(0, 8), split, split, stop, trainer.Hooks())
    try:
        outcome = trainer.finish(going)
        assert outcome.status == ("time limit" if what == "deadline" else "finished")
    except Interrupted as error:
        assert what == "signal" and "step 15; saved" in str(error)
    finally:
        run.close()
    steps = sorted(p.name for p in run.checkpoints.glob("step-*"))
    assert steps == (["step-00000015", "step-00000030"] if what == "save" else ["step-00000015"])


SMALL_STOP = [
    "model.net={name: mlp, hidden: [4]}",
    "train={steps: 30, batch_size: 8, eval_every: 15, save_every: 30, keep: 5}",
]


def test_building_for_shapes_imports_no_compiler() -> None:
    """As checkpoints are loaded: drawing values that are not there would take more than a second. Three models build
    masks and tables."""
    code = """if True:
        import sys
        from vaecli import data, device, models, registry
        from vaecli.data.squares import Config
        info = data.load(Config(name="squares")).info
        nets = {"vae": ["conv", "semafo"], "infogan": ["spectral", "dcgan"]}
        for name in sorted(set(registry.names("model")) - {"iaf-vae", "m2", "qlae"}):
            kind = registry.load("model", name).Config
            for extra in ({}, *({"net": net} for net in nets.get(name, []))):
                with device.without_values():
                    model = models.build(kind.model_validate({**kind.tiny, **extra}), info)
                assert all(tensor.is_meta for tensor in model.state_dict().values()), name
                assert not {"torch._dynamo", "sympy"} & sys.modules.keys(), (name, extra)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "optimizer",
    ["adam", *(pytest.param(name, marks=pytest.mark.long) for name in ("adamw", "adagrad", "rmsprop", "sgd"))],
)
def test_training_imports_no_compiler(optimizer: str, tmp_path: Path) -> None:
    """torch's optimizers would import its compiler: more than a second before the first step, and 120 MB."""
    code = "import sys; from vaecli import cli; sys.argv[0] = 'vae'\ntry: cli.main()\n"
    code += "finally: print('torch._dynamo' in sys.modules or 'sympy' in sys.modules)"
    arguments = ["train", *TINY, "--steps", "3", "-S", f"optim={{name: {optimizer}, lr: 0.001}}", "-q"]
    program = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.endswith("False\n"), done.stdout + done.stderr
