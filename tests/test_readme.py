"""What README and examples promise: the commands run, the options exist, the pictures are there."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Result

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def shell_lines() -> list[str]:
    """Every command line of `vae` in a shell block of the README, comments cut off."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", README, flags=re.S)
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [call for line in lines for call in re.split(r"&&|\||;|\$\(|\)", line)]
    return sorted({call.strip() for call in calls if call.strip().startswith("vae ")})


def test_there_are_commands() -> None:
    words = {line.split()[1] for line in shell_lines()}
    assert {"train", "sample", "traverse", "reconstruct", "analyze"} <= words


@pytest.mark.parametrize("line", shell_lines())
def test_options_in_the_readme_exist(line: str, vae: Callable[..., Result]) -> None:
    """Each option a README command uses is in the help of that command."""
    words = shlex.split(line.partition(">")[0])
    name = words[1:3] if words[1] == "config" else words[1:2]
    if name[0].startswith("-"):
        return
    text = vae(*name, "--help").out
    for word in words[2:]:
        if word.startswith("-") and word != "-" and not re.fullmatch(r"-\d.*", word):
            option = word.partition("=")[0]
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"{option} is not in the help of {name}"


def test_presets_in_the_readme_exist(vae: Callable[..., Result]) -> None:
    known = vae("presets", "-q").out.split()
    named = re.findall(r"--preset[ =]([a-z0-9-]+)", README)
    assert named and set(named) <= set(known)


def test_pictures_in_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).read_bytes().startswith((b"\x89PNG", b"GIF8"))


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., str]:
    """Runs a script of examples/ with `vae` on the path."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "vae").write_text(f'#!/bin/sh\nexec {sys.executable} -m vaecli "$@"\n')
    (bin_dir / "vae").chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}", "VAE_RUNS_DIR": str(tmp_path / "runs")}

    def run(script: str, *args: object) -> str:
        line = [str(ROOT / "examples" / script), *map(str, args)]
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


NET = ("-S", "model.net={name: mlp, hidden: [32]}", "--steps", 60)


@pytest.mark.slow
def test_pipeline(shell: Callable[..., str]) -> None:
    lines = shell("pipeline.sh", "beta-vae-dsprites", "-S", "data.limit=500", *NET).split()
    run = Path(lines[-1])
    for name in ("samples.png", "reconstructions.png", "traversals.png"):
        assert (run / name).read_bytes().startswith((b"\x89PNG", b"GIF8"))
    assert len((run / "latents.tsv").read_text().splitlines()) == 11


@pytest.mark.slow
def test_sweep_and_active_latents(shell: Callable[..., str], tmp_path: Path, vae: Callable[..., Result]) -> None:
    rows = [line.split("\t") for line in shell("sweep.sh", "1 30", *TINY, "--steps", 300, "--lr", "0.003").splitlines()]
    assert sorted(row[0] for row in rows) == ["1", "30"] and all(len(row) == 4 for row in rows)
    assert float(rows[0][1]) >= float(rows[1][1])
    trained = vae("train", *TINY, "--steps", 600, "--lr", "0.003", "--runs-dir", "runs", "--name", "a", "-q")
    assert trained.code == 0
    shell("active_latents.sh", tmp_path / "runs" / "a", tmp_path / "a.gif")
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF8")
    # Of several levels the status is not the last column.
    levels = ("--data", "squares", "--model", "two-stage-vae", "--latent-dim", 3, "-S", "model.second_hidden=[8]")
    small = ("-S", "model.net={name: mlp, hidden: [64]}", "--steps", 600, "--lr", "0.003", "-q")
    assert vae("train", *levels, *small, "--runs-dir", "runs", "--name", "b").code == 0
    shell("active_latents.sh", tmp_path / "runs" / "b", tmp_path / "b.gif")
    assert (tmp_path / "b.gif").read_bytes().startswith(b"GIF8")


@pytest.mark.slow
def test_asked_for(shell: Callable[..., str], tmp_path: Path, vae: Callable[..., Result]) -> None:
    options = ("-S", "data.labelled=50", "--latent-dim", 4, "-S", "model.warm_up=20", *NET)
    trained = vae("train", "--data", "digits", "--model", "semafo-vae", *options, "--name", "a", "--runs-dir", "runs")
    assert trained.code == 0, trained.err
    shell("asked_for.sh", tmp_path / "runs" / "a", tmp_path / "pictures")
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["interventions.png", "labels.png", "mix.png", "traversals.png"]
