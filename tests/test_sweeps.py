"""`vae sweep`: grids and searches, on processes, submitit and a real Ray cluster; killed, repeated, and compared."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, command

from vaecli.errors import ConfigError
from vaecli.sweeps import engines, plan
from vaecli.sweeps.plan import Range
from vaecli.training.seeds import Done, Ended

NET = ("-S", "model.net={name: mlp, hidden: [16]}", "-S", "model.latent_dim=3", "-S", "train.batch_size=32")
BASE = ("sweep", "--model", "beta-vae", "--data", "squares", *NET, "--runs-dir", "runs", "--name", "s", "-q")
SWEEP = Path("runs/s")


def status(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SWEEP / run / "run.json").read_text())
    return found


# ---- what is varied


def test_grids() -> None:
    grid = plan.parse_grid(["model.beta=1, 4", "optim={name: sgd, lr: 1},{name: adam}", "a.b=2..9", "c=1e-4..1e-2:log"])
    assert grid == {
        "model.beta": ["1", "4"], "optim": ["{name: sgd, lr: 1}", "{name: adam}"],
        "a.b": Range(2, 9, False, True), "c": Range(1e-4, 1e-2, True, False),
    }  # fmt: skip


@pytest.mark.parametrize("bad", ["beta", "=1", "b=1,,2", "b=1,1", "b=", "b=9..2", "b=0..1:log", "seed=1,2", "b-c=1"])
def test_grids_that_are_none(bad: str) -> None:
    with pytest.raises(ConfigError):
        plan.parse_grid([bad])
    with pytest.raises(ConfigError, match="twice"):
        plan.parse_grid(["a=1", "a=2"])


def test_tasks_carry_what_varies() -> None:
    found = plan.tasks({"model.beta": ["1", "4.5"], "optim.lr": ["1e-3"]}, [0, 7])
    assert [task.name for task in found] == [
        "beta_1-lr_1e-3-s0", "beta_1-lr_1e-3-s7", "beta_4.5-lr_1e-3-s0", "beta_4.5-lr_1e-3-s7",
    ]  # fmt: skip
    assert found[3].sets == ("model.beta=4.5", "optim.lr=1e-3") and found[3].seed == 7
    two = plan.tasks({"model.net": ["{name: mlp, hidden: [16]}", "{name: mlp, hidden: [32]}"]}, [0])
    assert len({task.name for task in two}) == 2 and all(len(task.name) < 121 for task in two)
    names = plan.tasks({"a.lr": ["1"], "b.lr": ["2"]}, [0])
    assert names[0].name == "a.lr_1-b.lr_2-s0"
    with pytest.raises(ConfigError, match="more than"):
        plan.tasks({key: list(map(str, range(50))) for key in "abc"}, [0])


def test_what_is_killed_is_run_again() -> None:
    codes = {"a": [0], "b": [-9, -9, 0], "c": [4], "d": [-9, -9, -9]}
    calls: list[list[str]] = []

    ended: list[tuple[str, int]] = []

    def engine(commands: engines.Commands, tell: Ended) -> list[Done]:
        calls.append([name for name, _ in commands])
        found = [Done(name, codes[name].pop(0), "", "") for name, _ in commands]
        for done in found:
            tell(done)
        return found

    results = engines.again(engine)([(name, []) for name in "abcd"], lambda done: ended.append((done.name, done.code)))
    assert [(done.name, done.code) for done in results] == [("a", 0), ("b", 0), ("c", 4), ("d", -9)]
    assert calls == [["a", "b", "c", "d"], ["b", "d"], ["b", "d"]]
    assert ended == [("a", 0), ("c", 4), ("b", 0), ("d", -9)]  # each once, when it is over


# ---- processes on this machine


def test_a_grid_is_run_once_grows_and_is_compared(vae: Callable[..., Result]) -> None:
    done = vae(*BASE, "--steps", 20, "--grid", "model.beta=1,4", "--seeds", "0-1")
    assert done.code == 0 and done.out == "runs/s\n", done.err
    names = ["beta_1-s0", "beta_1-s1", "beta_4-s0", "beta_4-s1"]
    assert [path.name for path in plan.runs(SWEEP)] == names
    for name in names:
        record = json.loads((SWEEP / name / "checkpoints/latest/config.json").read_text())
        assert record["config"]["model"]["beta"] == float(name[5]) and record["config"]["seed"] == int(name[-1])
    started = {name: status(name)["started"] for name in names}
    # Once more with one more value: the four are left alone.
    aloud = [word for word in BASE if word != "-q"]
    grown = vae(*aloud, "--steps", 20, "--grid", "model.beta=1,4,8", "--seeds", "0", "--json")
    assert grown.code == 0 and len(json.loads(grown.out)["runs"]) == 5, grown.err
    assert "3 runs, 2 of them finished before" in grown.err  # no process is started for these
    assert re.search(r"^\[1/1\] beta_8-s0: ELBO -\d+\.\d+, reconstruction .* of 3 active, [a-z-]+$", grown.err, re.M)
    assert "objective  " not in grown.err and "objective  " in (SWEEP / "beta_8-s0/train.log").read_text()
    assert {name: status(name)["started"] for name in names} == started
    compared = vae("compare", SWEEP, "--json", "-q")
    groups = json.loads(compared.out)["groups"]
    assert {g["settings"]["model.beta"]: sorted(g["seeds"]) for g in groups} == {1.0: [0, 1], 4.0: [0, 1], 8.0: [0]}
    values = {run["name"]: run["values"]["elbo"] for run in json.loads(compared.out)["runs"]}
    elbo = next(g["values"]["elbo"] for g in groups if g["settings"]["model.beta"] == 1.0)
    a, b = values["beta_1-s0"], values["beta_1-s1"]
    assert elbo["mean"] == pytest.approx((a + b) / 2) and elbo["sd"] == pytest.approx(abs(a - b) / 2**0.5)
    other = vae(*BASE, "--steps", 30, "--grid", "model.beta=1")
    assert other.code == 2 and "is a sweep of" in other.err


def test_failures_are_listed_and_the_rest_goes_on(vae: Callable[..., Result]) -> None:
    (SWEEP / "beta_1-s0").mkdir(parents=True)  # in the way of the first
    (SWEEP / "sweep.json").write_text(json.dumps({"base": []}))
    asked = [*BASE, "--steps", 5, "--grid", "model.beta=1,2"]
    assert vae(*asked).code == 2  # a sweep of something else
    (SWEEP / "sweep.json").unlink()
    assert "exists and is no sweep" in vae(*asked).err
    (SWEEP / "beta_1-s0").rmdir()
    SWEEP.rmdir()
    base = ["--data", "squares", "--model", "beta-vae", "--steps", "5"]
    base += [word.replace("-S", "--set") if word == "-S" else word for word in NET]
    plan.write(SWEEP, {"base": base})
    (SWEEP / "beta_1-s0").mkdir()
    done = vae(*asked, "--json")
    assert done.code == 2 and "1 of the runs did not finish" in done.err, done.err
    assert "beta_1-s0: exit code 2: runs/s/beta_1-s0: exists already" in done.err.replace(str(Path.cwd()) + "/", "")
    told = json.loads(done.out)
    assert [entry["run"] for entry in told["failed"]] == ["beta_1-s0"]
    assert status("beta_2-s0")["status"] == "finished"


def wait_for_checkpoint(run: str, process: "subprocess.Popen[str]") -> int:
    """The process that is at work on a run, once it has saved."""
    for _ in range(1200):
        if (SWEEP / run / "checkpoints/latest").exists():
            return int(status(run)["pid"])
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no checkpoint came")


# Enough steps that a worker is met at its work, on a machine that is busy or not.
LONG = ("--steps", 1500, "-S", "train.save_every=100", "-S", "train.eval_every=1000", "-S", "train.keep=1")


def kill_one(*more: object, env: dict[str, str] | None = None) -> str:
    """Start a sweep of one run, kill its worker at work, and wait for the end; what the sweep said."""
    line = command(*[word for word in BASE if word != "-q"], *LONG, "--grid", "model.beta=2", *more)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        os.kill(wait_for_checkpoint("beta_2-s0", process), signal.SIGKILL)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0 and out == "runs/s\n", err
    record = status("beta_2-s0")
    assert record["status"] == "finished" and record["resumed_at"] >= 100 and record["step"] == 1500
    assert "[beta_2-s0] its worker was killed; it goes on from where it was saved" in err
    return err


def test_a_killed_worker_is_resumed() -> None:
    kill_one()


def test_a_signal_stops_all_and_the_sweep_goes_on_later() -> None:
    line = [*BASE, *LONG, "--grid", "model.beta=2,3,4,5", "--jobs", 1]
    process = subprocess.Popen(command(*line), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint("beta_2-s0", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "beta_5-s0: exit code 143: it was not started" in err, err
    assert status("beta_2-s0")["status"] == "interrupted" and not (SWEEP / "beta_5-s0").exists()


# ---- submitit and Ray


def test_slurm_is_not_there(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    done = vae(*BASE, "--grid", "model.beta=1", "--on", "slurm")
    assert done.code == 5 and "there is no sbatch here" in done.err and not SWEEP.exists()
    wrong = vae(*BASE, "--grid", "model.beta=1", "--on", "slurm", "--option", "cluster=local", "--option", "hours=9")
    assert wrong.code == 2 and "--option" in wrong.err and not plan.is_sweep(SWEEP), wrong.err


@pytest.mark.slow
def test_submitit_and_a_killed_job() -> None:
    pytest.importorskip("submitit")
    kill_one("--on", "slurm", "--option", "cluster=local", "--option", "timeout_min=9")
    assert list((SWEEP / "slurm").glob("*_submission.sh")) or list((SWEEP / "slurm").glob("*_submitted.pkl"))


@pytest.fixture
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a cluster of two workers that `ray start` has begun on this machine."""
    pytest.importorskip("ray")
    place = tmp_path_factory.mktemp("r", numbered=True)
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "127.0.0.1:26379"}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [
        *ray,
        "start",
        "--head",
        "--port=26379",
        "--num-cpus=2",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    more = [
        "--node-ip-address=127.0.0.1",
        f"--temp-dir=/tmp/{place.name}-{os.getpid()}",
        "--object-store-memory=100000000",
    ]
    done = subprocess.run([*start, *more], env=env, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip(f"ray start: {done.stderr[-300:]}")
    try:
        yield env
    finally:
        subprocess.run([*ray, "stop", "--force"], env=env, capture_output=True, timeout=120)


@pytest.mark.slow
def test_ray_and_a_killed_worker(ray_cluster: dict[str, str], vae_process: Callable[..., Result]) -> None:
    kill_one("--on", "ray", "--option", "address=127.0.0.1:26379", env=ray_cluster)
    # Two workers at once, and one whose settings diverge: the other is not touched by it.
    asked = [*BASE, *LONG, "--grid", "model.beta=2,3", "--on", "ray", "--option", "address=127.0.0.1:26379", "--json"]
    done = vae_process(*asked, timeout=300, **ray_cluster)
    assert done.code == 0, done.err
    assert status("beta_3-s0")["status"] == "finished" and len(json.loads(done.out)["runs"]) == 2


# ---- Optuna


@pytest.mark.slow
def test_two_processes_share_a_search(vae: Callable[..., Result]) -> None:
    optuna = pytest.importorskip("optuna")
    search = ("--search", "optuna", "--grid", "model.beta=0.5..8:log", "--grid", "optim.lr=1e-3,1e-2", "--jobs", 1)
    line = command(*BASE, "--steps", 20, *search, "--trials", 4, "--json")
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(SWEEP / "optuna.journal")))
    trials = optuna.load_study(study_name="sweep", storage=storage).trials
    assert len(trials) == 4 and all(trial.state.name == "COMPLETE" for trial in trials)
    assert len({trial.user_attrs["owner"] for trial in trials}) == 2
    runs = {path.name: path for path in plan.runs(SWEEP)}
    assert len(runs) == 4
    best = max(trials, key=lambda trial: trial.value)
    told = max((json.loads(out)["best"] for out, _ in outs), key=lambda found: found["value"])
    assert told["trial"] == best.number and told["value"] == best.value
    for trial in trials:
        (name,) = [name for name in runs if name.startswith(f"trial_{trial.number}-")]
        config = json.loads((runs[name] / "checkpoints/latest/config.json").read_text())["config"]
        assert config["model"]["beta"] == pytest.approx(trial.params["model.beta"], rel=1e-5)
        assert config["optim"]["lr"] == float(trial.params["optim.lr"])
        compared = json.loads(vae("compare", runs[name], "--json", "-q").out)
        assert compared["runs"][0]["values"]["elbo"] == pytest.approx(trial.value, rel=1e-9)


@pytest.mark.slow
def test_a_trial_of_the_dead_is_taken_over(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    from vaecli.sweeps import search

    space = {"model.beta": ["1", "2"]}
    SWEEP.mkdir(parents=True)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    mine = search.MINE
    monkeypatch.setattr(search, "MINE", f"{mine.rpartition(':')[0]}:{gone.stdout.strip()}")
    (left,) = search.Study(SWEEP, space, [0]).take(1, 3)
    monkeypatch.setattr(search, "MINE", mine)
    study = search.Study(SWEEP, space, [0])
    first, second = study.take(2, 3)
    assert (first.number, first.values) == (left.number, left.values) and second.number == 1
    assert [trial.number for trial in study.take(2, 3)] == [2] and study.take(2, 3) == []
    study.tell(first, 1.5)
    study.tell(second, None)
    assert study.counts() == {"COMPLETE": 1, "FAIL": 1, "RUNNING": 1}
    found = study.best()
    assert found is not None and found[0].number == left.number and found[1] == 1.5


# ---- bad input


def test_usage(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(says: str, *args: object, code: int = 2) -> None:
        done = vae(*args)
        assert done.code == code and says in done.err and done.out == "" and not SWEEP.exists(), done.err

    refused("nothing to train is named", "sweep", "--grid", "model.beta=1")
    refused("no such option", *BASE, "--grid", "model.betta=1,2")
    refused("model.beta", *BASE, "--grid", "model.beta=1,-3")
    refused("is set, too", *BASE, "-S", "model.beta=2", "--grid", "model.beta=1,4")
    refused("only --search takes", *BASE, "--grid", "model.beta=1..4")
    refused("no such engine; there are: local, slurm, ray", *BASE, "--grid", "model.beta=1", "--on", "moon")
    refused("processes here have --jobs", *BASE, "--grid", "model.beta=1", "--option", "a=1")
    refused("not KEY=VALUE", *BASE, "--grid", "model.beta=1", "--option", "a", "--on", "slurm")
    refused("not usable as a run name", *BASE[:-3], "--name", "a/b", "--grid", "model.beta=1")
    optuna = (*BASE, "--search", "optuna")
    refused("needs a space", *optuna)
    refused("no such search", *BASE, "--search", "hyperband", "--grid", "model.beta=1,2")
    refused(
        "no metric is called 'migg'; did you mean 'mig'", *optuna, "--grid", "model.beta=1,2", "--objective", "migg"
    )
    refused("at least 1", *optuna, "--grid", "model.beta=1,2", "--trials", 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused('pip install "vaecli[sweep]"', *optuna, "--grid", "model.beta=1,2")
    refused('pip install "vaecli[slurm]"', *BASE, "--grid", "model.beta=1", "--on", "slurm")
    refused('pip install "vaecli[ray]"', *BASE, "--grid", "model.beta=1", "--on", "ray")
    Path("runs").write_text("a file")
    assert vae(*BASE, "--grid", "model.beta=1").code == 5


def test_an_empty_sweep_is_told(vae: Callable[..., Result]) -> None:
    plan.write(SWEEP, {"base": []})
    done = vae("compare", SWEEP)
    assert done.code == 3 and "has no run yet" in done.err


def test_a_mistake_in_the_grid_is_said_of_the_grid(vae: Callable[..., Result]) -> None:
    for grid, said in (
        ("model.bta=1,4", "--grid: model.bta: no such option"),
        ("model.beta=1,x", "--grid: model.beta: "),
    ):
        done = vae("sweep", "--model", "beta-vae", "--data", "squares", "--grid", grid, "-n")
        assert done.code == 2 and said in done.err and "--set" not in done.err, done.err
