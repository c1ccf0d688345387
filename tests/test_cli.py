"""The command line as a shell sees it: streams, exit codes, pipes, and what is imported when."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Result, command

import vaecli

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "numpy", "safetensors", "PIL"):
            raise AssertionError(f"imported {name}")
sys.meta_path.insert(0, Refuse())
from vaecli.cli import main
main()
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["suggest", "--help"],
        ["config", "--help"],
        ["analyze", "-h"],
        ["presets"],
        ["models"],
        ["datasets"],
        ["metrics"],
        ["report", "--help"],
        ["presets", "--json"],
        ["models", "-q"],
    ],
)
def test_help_and_listings_import_nothing_heavy(args: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stderr


def test_completion_imports_nothing_heavy() -> None:
    env = {**os.environ, "_VAE_COMPLETE": "complete_bash", "COMP_WORDS": "vae train --preset beta", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, timeout=60, env=env)
    assert "beta-vae-dsprites" in done.stdout.split(), done.stderr


@pytest.mark.slow
def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command("--help"), capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) < 0.5  # of the processor: the clock's depends on what else runs


def test_listings(vae: Callable[..., Result]) -> None:
    names = vae("presets", "-q").out.splitlines()
    assert {
        "beta-vae-dsprites",
        "beta-vae-dsprites-conv",
        "vae-dsprites",
        "annealed-vae-dsprites",
        "beta-vae-mnist",
        "vae-mnist",
        "vae-fashion-mnist",
    } <= set(names)
    files = {path.stem for path in (Path(vaecli.__file__).parent / "models").glob("[a-z]*.py")} - {"base"}
    assert vae("models", "-q").out.splitlines() == sorted(name.replace("_", "-") for name in files)
    assert {"dsprites", "mnist", "fashion-mnist", "folder", "array", "squares"} <= set(
        vae("datasets", "-q").out.split()
    )
    for listing in ("presets", "models", "datasets", "metrics"):
        record = json.loads(vae(listing, "--json").out)
        assert record["schema"] == 1
        entries = record[listing]
        assert len(entries) > 3 and all(entry["name"] and len(entry["summary"]) > 10 for entry in entries)
        assert vae(listing).out.splitlines()[0] == "name\tsummary"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["trian"], 2, "No such command"),
        (["train", "--preset", "beta-vae-dsprits"], 2, "did you mean 'beta-vae-dsprites'?"),
        (["train", "--model", "bta-vae", "--data", "squares"], 2, "did you mean 'beta-vae'?"),
        (["train", "--data", "square"], 2, "did you mean 'squares'?"),
        (["train", "--data", "squares:x"], 2, "takes no path"),
        (["train", "--data", "folder:/nowhere/at/all"], 3, "/nowhere/at/all"),
        (["train", "--data", "array:/nowhere.npz"], 3, "/nowhere.npz"),
        (["train", "--config", "missing.yaml"], 2, "missing.yaml: no such configuration file"),
        (["train", "--device", "tpu", "--data", "squares"], 2, "no device is called"),
        (["train", "--device", "mps", "--data", "squares"], 5, "available: "),
        (["train", "--data", "squares", "--max-time", "soon"], 2, "not a duration"),
        (["train", "--data", "squares", "--name", "../x"], 2, "not usable as a run name"),
        (["train", "--data", "squares", "--name", "-x"], 2, "a letter or digit first"),
        (
            ["train", "--data", "squares", "-S", "data.holdout=1.5"],
            2,
            "a fraction is in [0, 1), and a number",
        ),
        (["train", "--data", "digits", "-m", "vae", "-S", "model.net=locatello"], 2, "resize the images to 64 pixels"),
        (["analyze", "x", "--density", "none"], 2, "--density says what --samples, --control or"),
        (["analyze", "x", "--nll-images", "5"], 2, "--nll-images says how many images --nll takes"),
        (["analyze", "x.npz", "--data", "squares"], 2, "--data is for checkpoints"),
        (["analyze", "x.npz", "--batch-size", "5"], 2, "--batch-size is for checkpoints"),
        (["encode", "x", "a.png", "--split", "val"], 2, "--split is of the model's data, but image files are given"),
        (["reconstruct", "x", "a.png", "--split", "val"], 2, "--split is of the model's data, but image files"),
        (["reconstruct", "x", "a.png", "-n", "3"], 2, "-n counts images of a split"),
        (["reconstruct", "x", "photos.npz", "--split", "val"], 2, "which is taken whole"),
        (["sweep", "-d", "squares", "--grid", "seed=1,2", "--trials", "3"], 2, "--trials is for a search"),
        (["sweep", "-d", "squares", "--grid", "seed=1,2", "--objective", "mig"], 2, "--objective is for a search"),
        (["runs", "nowhere"], 3, "vae runs FOLDER"),
        (["train", "--data", "squares", "-S", "model.net=burgess"], 2, "64x64"),
        (["train", "--data", "squares", "-S", "model.lantent_dim=2"], 2, "did you mean 'latent_dim'?"),
        (["train", "--data", "squares", "-S", "data.holdout=100000"], 2, "only"),
        (["sample", "nothing"], 3, "nothing: no such checkpoint"),
        (["sample", "x", "-n", "0"], 2, "Invalid value for '-n'"),
        (["analyze", "x", "--json", "--csv"], 2, "give one of them"),
    ],
)
def test_bad_usage_is_told_in_a_line_or_two(args: list[str], code: int, says: str, vae: Callable[..., Result]) -> None:
    if "mps" in args:
        import torch

        if torch.backends.mps.is_available():
            pytest.skip("there is an MPS device here")
    result = vae(*args)
    assert result.code == code, result.err
    assert says in result.err and result.out == ""
    assert "Traceback" not in result.err
    assert len([line for line in result.err.splitlines() if not line.startswith("Usage") and line]) <= 3
    assert not Path("runs").exists()


def test_runs_by_their_paths_and_which_elbo_is_of_training(vae: Callable[..., Result]) -> None:
    for name, more in (("a", []), ("b", ["-S", "data.holdout=0"])):
        assert vae("train", *TINY, "--steps", 3, "--name", name, "-q", *more).code == 0
    assert sorted(vae("runs", "-q").out.splitlines()) == ["runs/a", "runs/b"]
    shown = {line.split("\t")[0]: line.split("\t")[3] for line in vae("runs").out.splitlines()}
    assert shown["b"].endswith(" (train)") and "train" not in shown["a"] and float(shown["a"]) < 0
    told = {one["name"]: one["evaluated"] for one in json.loads(vae("runs", "--json").out)["runs"]}
    assert told == {"a": "val", "b": "train"}
    before = Path("runs/b/run.json")  # by a run of before that was recorded
    before.write_text(json.dumps({k: v for k, v in json.loads(before.read_text()).items() if k != "evaluated"}))
    assert {one["evaluated"] for one in json.loads(vae("runs", "--json").out)["runs"]} == {"val", "train"}


def test_offline_is_an_option_of_every_command(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAE_OFFLINE", "0")
    assert "VAE_OFFLINE forbids" in vae("--offline", "info", "hf://someone/something").err


def test_a_preset_that_is_there_is_not_told_of_an_option_that_is_not(vae: Callable[..., Result]) -> None:
    Path("mine.yaml").write_text("")
    done = vae("presets", "--copy", "vae-mnist", "mine.yaml")
    assert done.code == 2 and "-o" not in done.err and "give another name" in done.err


def test_read_only_place(vae: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = vae("train", *TINY, "--runs-dir", tmp_path / "file" / "runs", "--steps", 1)
    assert result.code == 5 and "cannot be made here" in result.err


def test_nothing_is_overwritten(tiny_run: Path, vae: Callable[..., Result]) -> None:
    Path("keep.png").write_bytes(b"mine")
    for args in (["sample", tiny_run, "-n", 2], ["traverse", tiny_run], ["reconstruct", tiny_run, "-n", 2]):
        refused = vae(*args, "-o", "keep.png")
        assert refused.code == 2 and "--force" in refused.err
        assert Path("keep.png").read_bytes() == b"mine"
    assert vae("sample", tiny_run, "-n", 2, "-o", "keep.png", "--force").code == 0
    assert Path("keep.png").read_bytes() != b"mine"
    again = vae("train", *TINY, "--steps", 1, "--runs-dir", tiny_run.parent, "--name", tiny_run.name)
    assert again.code == 2 and "--force" in again.err
    Path("runs2/mine").mkdir(parents=True)
    Path("runs2/mine/thesis.tex").write_text("x")
    foreign = vae("train", *TINY, "--steps", 1, "--runs-dir", "runs2", "--name", "mine", "--force")
    assert foreign.code == 2 and Path("runs2/mine/thesis.tex").exists()


def test_json_and_tsv(tiny_run: Path, vae: Callable[..., Result]) -> None:
    found = json.loads(vae("analyze", tiny_run, "--json").out)
    assert found["schema"] == 1 and len(found["latents"]) == 3
    lines = vae("analyze", tiny_run).out.splitlines()
    assert len(lines) == 4 and all(line.count("\t") == lines[0].count("\t") for line in lines)
    csv = vae("analyze", tiny_run, "--csv").out.splitlines()
    assert len(csv) == 4 and csv[0].count(",") == csv[1].count(",") > 3
    drawn = json.loads(vae("sample", tiny_run, "-n", 3, "-o", "x.png", "--json").out)
    assert drawn["path"].endswith("x.png") and drawn["schema"] == 1


def test_png_on_stdout_and_seeds(tiny_run: Path, vae: Callable[..., Result]) -> None:
    a, b, c = (vae("sample", tiny_run, "-n", 4, "--seed", seed, "-o", "-").raw for seed in (0, 0, 1))
    assert a.startswith(b"\x89PNG") and a == b != c


def test_same_seed_same_run(vae: Callable[..., Result]) -> None:
    from vaecli.training.checkpoint import resolve

    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert vae("train", *TINY, "--steps", 5, "--seed", seed, "--runs-dir", "r", "--name", name, "-q").code == 0
    weights = {name: resolve(f"r/{name}").read_bytes()[-4000:] for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


@pytest.mark.parametrize("args", [["models"], ["--help"], ["train", "--help"], ["presets", "--json"]])
def test_reader_went_away(args: list[str]) -> None:
    """141, as for any Unix producer, and nothing on stderr."""
    wait = f"( sleep 1; {' '.join(command(*args))}; echo $? >code ) | true; while [ ! -s code ]; do sleep 0.1; done"
    done = subprocess.run(["bash", "-c", wait], capture_output=True, text=True, timeout=60)
    assert Path("code").read_text().strip() == "141" and done.stderr == ""


def test_broken_pipe_is_141(monkeypatch: pytest.MonkeyPatch) -> None:
    from vaecli import output

    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        with pytest.raises(SystemExit) as stop:
            output.result("x" * 100_000)
        assert stop.value.code == 141


def test_an_interrupted_command_is_130(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from vaecli.commands import doctor

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupted)
    done = vae("doctor")
    assert (done.code, done.out, done.err) == (130, "", "")


def test_closed_stderr_does_not_stop_training() -> None:
    line = (
        " ".join(command("train", *(f"'{a}'" for a in TINY), "--steps", 5, "--runs-dir", "r", "--name", "x")) + " 2>&-"
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "r/x\n", done.stdout


def test_ascii_terminal(vae_process: Callable[..., Result], tiny_run: Path) -> None:
    done = vae_process("analyze", tiny_run, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.code == 0 and "latent" in done.out, done.err


def test_hostile_text_is_escaped(vae: Callable[..., Result]) -> None:
    result = vae("train", "--data", "folder:/x/[bold]\x1b[31m\u202e", "--runs-dir", "r")
    assert result.code == 3 and "\x1b" not in result.err and "\u202e" not in result.err and "[bold]" in result.err


def test_a_system_without_locks_is_told_in_one_line(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaecli.training import rundir

    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'fcntl'", name="fcntl")

    monkeypatch.setattr(rundir, "check_name", missing)
    result = vae("train", *TINY, "--name", "x")
    assert result.code == 5 and "Linux and macOS" in result.err and "bug" not in result.err


def test_a_file_system_without_locks_is_not_taken_for_another_process(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    result = vae("train", *TINY, "--steps", 1, "--name", "x")
    assert result.code == 5 and "cannot be locked: Operation not supported" in result.err and "in use" not in result.err


def test_unexpected_errors_are_named_bugs(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from vaecli.training import rundir

    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(rundir, "check_name", broken)
    result = vae("train", *TINY, "--name", "x")
    assert (
        result.code == 1 and "bug in vae" in result.err and "VAE_DEBUG" in result.err and "Traceback" not in result.err
    )
    monkeypatch.setenv("VAE_DEBUG", "1")
    assert "Traceback" in vae("train", *TINY, "--name", "x").err


def test_evaluate_is_analyze(vae: Callable[..., Result], tiny_run: Path) -> None:
    ours, theirs = (vae(name, tiny_run, "--json") for name in ("analyze", "evaluate"))
    assert ours.code == theirs.code == 0 and ours.out == theirs.out
    assert "evaluate" not in vae("--help").out
