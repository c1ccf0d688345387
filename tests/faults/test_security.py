"""What a stranger's file, name or directory cannot do. Each test fails when its protection is taken out."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Result
from PIL import EpsImagePlugin, Image
from safetensors.torch import load_file, save_file

from vaecli import paths, safe_files
from vaecli.data import folder
from vaecli.errors import MachineError
from vaecli.speed import native
from vaecli.training import checkpoint

# ----------------------------------------------------------------------------------------- programs that are not ours


@pytest.fixture
def ghostscript(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that exists as soon as anything called `gs` was started."""
    started, place = tmp_path / "started", tmp_path / "bin"
    place.mkdir()
    (place / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (place / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks once and remembers
    return started


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_interpreter_is_started_for_an_image(ghostscript: Path, tiny_run: Path, vae: Callable[..., Result]) -> None:
    """PostScript under the name of an image is no image, wherever images are read."""
    Path("evil").mkdir()
    for i in range(3):
        Path(f"evil/{i}.png").write_bytes(EPS)
    for args in (
        ["reconstruct", tiny_run, "evil/0.png"],
        ["interpolate", tiny_run, "evil/0.png", "0"],
        ["traverse", tiny_run, "--center", "evil/0.png"],
        ["encode", tiny_run, "evil/0.png", "-o", "-"],
        ["train", "--data", "folder:evil", "--runs-dir", "r"],
        ["train", "--data", "folder:evil", "-S", "data.image_size=16", "--runs-dir", "r"],
    ):
        done = vae(*args)
        assert done.code == 3 and "not an image of a known format" in done.err, done.err
    assert not ghostscript.exists()


def test_documented_formats_are_all_that_are_read(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 8), np.uint8))
    for kind in ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"):
        image.save(tmp_path / "x", kind)
        assert folder.read_header(str(tmp_path / "x"))[0] == (8, 8)
    for kind in ("PPM", "ICO", "TGA", "PCX", "SGI"):
        image.save(tmp_path / "x", kind)
        with pytest.raises(ValueError, match="known format"):
            folder.read_header(str(tmp_path / "x"))


EVIL = "import pathlib; pathlib.Path({marker!r}).touch()\nraise SystemExit(7)\n"


@pytest.fixture
def evil_modules(tmp_path: Path) -> Path:
    """Modules in the current directory, called like those Python and we need; the file exists once one was imported."""
    marker = tmp_path / "imported"
    for name in ("yaml", "struct", "pickle", "vaecli", "socket", "typer"):
        Path(f"{name}.py").write_text(EVIL.format(marker=str(marker)))
    return marker


def installed(*args: object, code: str = "from vaecli.cli import main; main()") -> subprocess.CompletedProcess[str]:
    """The command as its installed script starts it: with the script's folder on the path, not the current one."""
    script = Path("bin/vae")
    script.parent.mkdir()
    script.write_text(code)
    line = [sys.executable, str(script), *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


# The variable that does the same; empty it is off.
@pytest.mark.parametrize("safe_path", ["", pytest.param("1", marks=pytest.mark.long)])
def test_seeds_run_no_module_of_the_current_directory(
    safe_path: str, evil_modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", safe_path)
    done = installed("train", *TINY, "--steps", 2, "--runs-dir", "r", "--name", "x", "--seeds", "0-1", "-q")
    assert done.returncode == 0 and done.stdout == "r/x-s0\nr/x-s1\n", done.stderr
    assert not evil_modules.exists()


SPAWNED = """
import multiprocessing
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    import torch
    torch.set_num_threads(2)
    from vaecli import cli
    from vaecli.data import folder
    read = folder._read
    folder._SLOW_START = 1
    folder._read = lambda *args, **more: read(*args, **{**more, "enough": 1})
    cli.main()
"""


def test_readers_run_no_module_of_the_current_directory(evil_modules: Path) -> None:
    """Where processes do not start as copies, multiprocessing starts a Python of its own."""
    Path("images").mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 16), i, np.uint8)).save(f"images/{i}.png")
    done = installed("train", "--data", "folder:images", *TINY[2:], "-S", "data.holdout=0", "--dry-run", code=SPAWNED)
    assert done.returncode == 0, done.stderr
    assert not evil_modules.exists()


needs_kernels = pytest.mark.skipif(native.load() is None, reason=f"no compiled kernels here: {native.why_not}")


@needs_kernels
def test_the_linker_takes_nothing_from_the_current_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GNU ld looks for libgcc_s.so.1 there first: whatever it is, it must not even be opened."""
    Path("libgcc_s.so.1").write_text("no library: the linker fails on it")
    assert kernels_in(monkeypatch, tmp_path / "cache").is_file()


# --------------------------------------------------------------------------------------------------------------- caches


def test_flipped_codes_in_the_cache_are_made_again(
    tiny_run: Path, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Signs flipped in the cache gave other metrics, without a word."""
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))
    assert vae("encode", tiny_run, "-n", 50, "-o", "a.csv").code == 0
    (file,) = (tmp_path / "cache" / "codes").iterdir()
    content = bytearray(file.read_bytes())
    whole = bytes(content)
    for i in range(3, 400, 4):  # the highest byte of float32, from the end: its first bit is the sign
        content[-i + 2] ^= 0x80
    file.write_bytes(content)
    assert vae("encode", tiny_run, "-n", 50, "-o", "b.csv").code == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    assert file.read_bytes() == whole  # and the cache is whole again


def kernels_in(monkeypatch: pytest.MonkeyPatch, place: Path) -> Path:
    """Compiled there, in a second: how fast they are is nothing to these tests."""
    monkeypatch.setenv("VAE_CACHE_DIR", str(place))
    monkeypatch.setattr(native, "FLAGS", [flag.replace("-O3", "-O0") for flag in native.FLAGS])
    return native._library()


@needs_kernels
def test_compiled_code_that_is_not_as_it_was_written_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = kernels_in(monkeypatch, tmp_path / "cache")
    for change in ("a flipped bit", "writable by others", "a link"):
        whole, inode = path.read_bytes(), path.stat().st_ino
        assert native._library().stat().st_ino == inode  # not made again without need
        if change == "a flipped bit":
            path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
        elif change == "writable by others":
            path.chmod(0o666)
        else:
            path.rename(tmp_path / "elsewhere.so")
            path.symlink_to(tmp_path / "elsewhere.so")
        native._library()
        assert path.stat().st_ino != inode and not path.is_symlink(), change
        assert path.stat().st_mode & 0o777 == 0o600, change


@needs_kernels
def test_a_cache_that_anyone_can_exchange_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder itself is ours alone, but the one around it lets anybody rename it."""
    kernels_in(monkeypatch, tmp_path / "open")
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(RuntimeError, match="anyone can write"):
        native._library()
    (tmp_path / "open").chmod(0o1777)  # as /tmp is: only the owner of a folder can rename it
    assert native._library().is_file()


# ------------------------------------------------------------------------------------------- a stranger's run directory

STEP = "checkpoints/step-00000030"
WRITTEN = (".lock", "run.json", "config.yaml", "metrics.jsonl", "train.log")
GUESSABLE = (".run.json.tmp", ".config.yaml.tmp", ".metrics.jsonl.tmp", "diverged.json")
READ = tuple(
    f"{STEP}/{name}"
    for name in (
        "model.safetensors",
        "config.json",
        "manifest.json",
        "trainer/state.json",
        "trainer/optimizer.safetensors",
    )
)
MINE = "# MINE-AND-PRIVATE\n"


@pytest.fixture
def hurry() -> Iterator[None]:
    """A test that waits at a pipe fails."""

    def late(*_: object) -> None:
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def put(run: Path, name: str, kind: str, target: Path) -> None:
    place = run / name
    place.unlink(missing_ok=True)
    if kind == "link":
        place.symlink_to(target)
    elif kind == "hard link":
        os.link(target, place)
    else:
        os.mkfifo(place)


def every_use(run: Path, vae: Callable[..., Result]) -> Iterator[Result]:
    """What may be done with a run that was handed on."""
    yield vae("info", run)
    yield vae("report", run, "--metrics", "none", "--limit", 16, "-o", "page.html", "--force")
    yield vae("train", "--resume", run, "--steps", 40)
    yield vae(
        "train", *TINY, "--model", "beta-vae", "--steps", 3, "--runs-dir", run.parent, "--name", run.name, "--force"
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "link") for name in (*WRITTEN, GUESSABLE[0], *READ)]
    + [(name, "pipe") for name in (*WRITTEN, READ[0])]
    + [(name, "hard link") for name in WRITTEN]
    + [pytest.param(name, "link", marks=pytest.mark.long) for name in GUESSABLE[1:]]
    + [pytest.param(name, "pipe", marks=pytest.mark.long) for name in (*GUESSABLE, *READ[1:])],
)
def test_nothing_in_a_run_leads_out_of_it(
    name: str, kind: str, tiny_run: Path, vae: Callable[..., Result], tmp_path: Path, hurry: None
) -> None:
    """Whatever stands in the place of a file: no file elsewhere is emptied, written to or shown, and nothing waits."""
    target = tmp_path / "startup"
    target.write_text(MINE)
    put(tiny_run, name, kind, target)
    before = target.stat()
    for done in every_use(tiny_run, vae):
        assert done.code in (0, 2, 3, 5), done.err
        assert "MINE" not in done.out + done.err
        page = Path("page.html").read_text() if Path("page.html").exists() else ""
        assert kind == "hard link" or "MINE" not in page
        assert target.read_text() == MINE and target.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_a_report_shows_nothing_of_linked_files(
    name: str, tiny_run: Path, vae: Callable[..., Result], tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.write_text('{"preset": "MINE", "kind": "train", "step": 3, "loss": 1.0}\n')
    put(tiny_run, name, "link", private)
    done = vae("report", tiny_run, "--metrics", "none", "-o", "page.html")
    assert done.code == 0 and f"{name}: is a link" in done.err, done.err
    assert "MINE" not in Path("page.html").read_text()


def test_a_refused_start_leaves_the_target_of_the_lock(tiny_run: Path, vae: Callable[..., Result]) -> None:
    Path("mine").write_text(MINE)
    put(tiny_run, ".lock", "link", Path("mine").absolute())
    done = vae("train", *TINY, "--steps", 3, "--runs-dir", tiny_run.parent, "--name", tiny_run.name)
    assert done.code in (2, 5) and Path("mine").read_text() == MINE, done.err
    done = vae("train", "--resume", tiny_run, "--steps", 40)
    assert done.code == 5 and "is a link" in done.err and Path("mine").read_text() == MINE


def test_folders_behind_a_link_are_not_deleted(tiny_run: Path, vae: Callable[..., Result], tmp_path: Path) -> None:
    """Retention and tidying up delete folders by their names, which must be in the run itself."""
    (tiny_run / "checkpoints").rename(tmp_path / "mine")
    for name in ("step-00000001", "step-00000002", "step-99999999", ".tmp-photos"):
        (tmp_path / "mine" / name).mkdir()
        (tmp_path / "mine" / name / "thesis.tex").write_text("x")
    before = sorted(p.name for p in (tmp_path / "mine").iterdir())
    (tiny_run / "checkpoints").symlink_to(tmp_path / "mine")
    for done in (vae("train", "--resume", tiny_run, "--steps", 40, "-S", "train.keep=1"),):
        assert done.code == 5 and "checkpoints: is a link" in done.err, done.err
    with pytest.raises(OSError, match="is a link"):
        checkpoint.clean_up(tiny_run / "checkpoints", 30)
    loaded = checkpoint.load(tmp_path / "mine", torch.device("cpu"))
    with pytest.raises(MachineError, match="is a link"):
        checkpoint.commit(tiny_run / "checkpoints", loaded.model, loaded.config, 50, 1, {}, {})
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == before


def test_steps_that_are_links_are_none(tiny_run: Path, tmp_path: Path) -> None:
    """A folder of ours by the name of a step is neither read, nor moved, nor deleted."""
    other = tmp_path / "other"
    (tiny_run / STEP).rename(other)
    (tiny_run / STEP).symlink_to(other)
    with pytest.raises(checkpoint.CheckpointError, match="holds no"):
        checkpoint.newest_intact(tiny_run)
    with pytest.raises(checkpoint.CheckpointError, match="holds no"):
        checkpoint.resolve(tiny_run)


@pytest.mark.parametrize(
    "target", ["../../elsewhere", "/{tmp}/elsewhere", ".", "../checkpoints/step-00000030", "step-x"]
)
def test_latest_leads_to_a_step_beside_it_only(
    target: str, tiny_run: Path, tmp_path: Path, vae: Callable[..., Result]
) -> None:
    for place in (tmp_path / "elsewhere", tiny_run.parent / "elsewhere", tiny_run / "checkpoints" / "step-x"):
        shutil.copytree(tiny_run / STEP, place)
    (tiny_run / "checkpoints" / "latest").unlink()
    (tiny_run / "checkpoints" / "latest").symlink_to(target.format(tmp=tmp_path))
    assert checkpoint.resolve(tiny_run) == tiny_run / STEP / "model.safetensors"
    assert "does not lead to a checkpoint" in vae("info", tiny_run).err


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """At once, whoever reads or writes at the other end; and a folder or device is none."""
    os.mkfifo(tmp_path / "pipe")
    other_end = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
            for use in (safe_files.read, safe_files.append):
                with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
                    use(path)
    finally:
        os.close(other_end)


def test_new_files_have_names_that_nobody_can_foresee(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Made exclusively, and another name each time; nothing is left where the work ends in an error."""
    names: list[str] = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: names.append(Path(a).name) or real(a, b))
    for _ in range(2):
        safe_files.replace(tmp_path / "x", b"whole")
    assert len(set(names)) == 2 and all(str(os.getpid()) != name.split(".")[-2] for name in names)
    monkeypatch.setattr(safe_files.secrets, "token_hex", lambda n: "known")
    (tmp_path / "mine").write_text(MINE)
    (tmp_path / ".x.known.part").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError):
        safe_files.replace(tmp_path / "x", b"other")
    assert (tmp_path / "mine").read_text() == MINE and (tmp_path / "x").read_bytes() == b"whole"
    (tmp_path / ".x.known.part").unlink()
    with pytest.raises(KeyboardInterrupt), safe_files.replacing(tmp_path / "x") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "x"] and (tmp_path / "x").read_bytes() == b"whole"


# ---------------------------------------------------------------------------------------------------- a stranger's text

BAD = "b\nEVIL\x1b[31m\r\u2028EVIL\u202e\x9b"
_STARTS_A_LINE = re.compile(r"^\W*EVIL", re.MULTILINE)


def clean(text: str) -> bool:
    """Nothing drives the terminal, and no line is begun by the stranger."""
    lines = "\n".join(text.splitlines())  # at whatever breaks lines
    return not _STARTS_A_LINE.search(lines) and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", text)


def with_stored(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the newest step of a run says of itself, as whoever made it could have: everything agrees."""
    step = run / STEP
    metadata, _, _ = checkpoint.read_header(step / "model.safetensors")
    stored = json.loads(metadata["vaecli.config"])
    change(stored)
    text = json.dumps(stored)
    tensors = load_file(step / "model.safetensors")
    save_file(tensors, step / "model.safetensors", metadata={**metadata, "vaecli.config": text})
    (step / "config.json").write_text(text)
    manifest = {}
    for name in checkpoint._FILES_OF_A_STEP - {"README.md", checkpoint.DENSITY_FILE}:
        content = (step / name).read_bytes()
        manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (step / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def hostile_run(tiny_run: Path) -> Path:
    """A run whose directory, data path and names are hostile."""

    def change(stored: dict[str, Any]) -> None:
        stored["config"]["data"] = {"name": "folder", "path": f"/nowhere/{BAD}", "holdout": 0.1}
        stored["data"].update(name=BAD, factor_names=[BAD], source={"kind": BAD, BAD: BAD})

    with_stored(tiny_run, change)
    (tiny_run / "run.json").write_text(json.dumps({"preset": BAD, "status": BAD, "argv": [BAD]}))
    return tiny_run.rename(tiny_run.with_name(BAD))


def test_a_stored_text_of_several_lines_stays_in_one(hostile_run: Path, vae: Callable[..., Result]) -> None:
    """On stderr, in tables, CSV and YAML; and in train.log, which a link may have made another program's file."""
    for args in (
        ["info", hostile_run],
        ["sample", hostile_run, "-n", 2, "-o", "s.png"],
        ["traverse", hostile_run, "-o", "t.png"],
        ["reconstruct", hostile_run],
        ["interpolate", hostile_run, 0, 1],
        ["analyze", hostile_run],
        ["analyze", hostile_run, "--csv"],
        ["encode", hostile_run, "-o", "-"],
        ["report", hostile_run],
        ["compare", hostile_run, hostile_run],
        ["train", "--resume", hostile_run, "--steps", 40],
        ["train", "--init-from", hostile_run, "--data", "squares", "--steps", 1, "--runs-dir", "r", "--latent-dim", 3],
    ):
        done = vae(*args)
        assert clean(done.out) and clean(done.err), (args, done.out, done.err)
        assert "EVIL" in done.out + done.err, args
    assert clean((hostile_run / "train.log").read_text()) and "EVIL" in (hostile_run / "train.log").read_text()


def test_names_given_stay_in_one_line(tiny_run: Path, vae: Callable[..., Result]) -> None:
    """A shell's `*` gives any name that a stranger's archive holds."""
    Path(f"{BAD}.png").write_text("no image")
    Path(f"{BAD}.csv").write_text(f"{BAD},z1\n1,2\n")
    Path(f"{BAD}.yaml").write_text("a: [")
    Path(BAD).mkdir()
    Path(f"{BAD}/x.png").write_text("no image")
    commands = [
        *([name, BAD] for name in ("info", "sample", "analyze", "report", "compare", "traverse", "encode")),
        *([name, f"{BAD}.png"] for name in ("info", "sample", "analyze", "compare")),
        *([name, tiny_run, f"{BAD}.png"] for name in ("encode", "reconstruct", "info", "decode")),
        [BAD], ["config", BAD], ["info", "x", BAD], ["info", f"--{BAD}"], ["sample", tiny_run, "-n", BAD],
        ["interpolate", tiny_run, f"{BAD}.png", "0"], ["decode", tiny_run, f"{BAD}.csv"], ["decode", tiny_run, BAD],
        ["traverse", tiny_run, "--dim", BAD], ["traverse", tiny_run, "--center", BAD],
        ["sample", tiny_run, "-o", f"{BAD}/none/x.png"], ["encode", tiny_run, "-o", BAD],
        ["analyze", tiny_run, "--metrics", BAD], ["analyze", tiny_run, "--fail-if", BAD],
        ["analyze", tiny_run, "--split", BAD], ["analyze", tiny_run, "--device", BAD],
        ["config", "validate", f"{BAD}.yaml", BAD, f"{BAD}.csv"], ["config", "show", "-S", f"{BAD}=1"],
        ["config", "show", "-S", f"model.{BAD}=1"], ["config", "show", "--config", f"{BAD}.yaml"],
        *(["train", flag, BAD] for flag in ("--preset", "--config", "--data", "--model", "--resume", "--max-time")),
        *(["train", "--data", f"{kind}:{BAD}"] for kind in ("folder", "array", "dsprites", "squares")),
        *(["train", *TINY, flag, BAD] for flag in ("--name", "--seeds", "--init-from", "-S", "--device")),
    ]  # fmt: skip
    for args in commands:
        done = vae(*args)
        assert done.code in (2, 3), (args, done.err)
        assert clean(done.err) and done.out == "", (args, done.err)


def test_written_names_and_values_stay_in_one_line(vae: Callable[..., Result]) -> None:
    """Names in a file of codes; values in a configuration, which YAML would put on several lines."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 3, (60, 2))
    np.savez(
        "codes.npz", codes=rng.normal(size=(60, 2)) + factors, factors=factors,
        factor_names=np.array([BAD, f"c{BAD}"]), latent_names=np.array([BAD, f"c{BAD}"]),
    )  # fmt: skip
    for more in ([], ["--csv"], ["--metrics", "mig"], ["--metrics", "mig", "--csv"], ["--json"], ["--diagnosis"]):
        done = vae("analyze", "codes.npz", *more)
        assert done.code == 0 and clean(done.out) and clean(done.err), (done.out, done.err)
    for text in (BAD, "plain\nEVIL", f"{BAD} {'EVIL ' * 60}", f"word{' EVIL' * 60}", "it's: " + "EVIL " * 60):
        Path("c.yaml").write_text(json.dumps({"data": {"name": "folder", "path": text}, "model": "vae"}))
        for more in ([], ["--origin"], ["--json"]):
            done = vae("config", "show", "--config", "c.yaml", *more)
            assert done.code == 0 and clean(done.out) and "EVIL" in done.out, done.out
    Path("d.yaml").write_text(vae("config", "show", "--config", "c.yaml").out)
    assert (
        vae("config", "show", "--config", "d.yaml", "--json").out == vae("config", "show", "-c", "c.yaml", "--json").out
    )


def test_a_path_as_the_result_is_the_path(vae: Callable[..., Result]) -> None:
    """`run=$(vae train ...)` must name the directory that was made, whatever its name."""
    done = vae("train", *TINY, "--steps", 2, "--runs-dir", BAD, "--name", "x", "-q")
    assert done.code == 0 and done.raw == os.fsencode(f"{BAD}/x\n")
    assert clean(Path(f"{BAD}/x/train.log").read_text())


# ------------------------------------------------------------------------------------------------- what is handed on


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home directory with images, of somebody whose name is nobody's business; the working directory is in it."""
    home = tmp_path / "home" / "lovelace"
    (home / "faces").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(home / "faces" / f"{i}.png")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize("given", ["faces", "~/faces", "{home}/faces", "a link to the home"])
def test_what_is_handed_on_does_not_tell_the_users_name(
    given: str, ada: Path, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint, step directory and report; what it takes to repeat the run is in its run.json."""
    if given == "a link to the home":  # the working directory is told without links
        (ada.parent / "link").symlink_to(ada)
        monkeypatch.setenv("HOME", str(ada.parent / "link"))
        given = "faces"
    where = f"folder:{given.format(home=ada)}"
    done = vae("train", "--data", where, *TINY[2:], "--steps", 3, "--runs-dir", ada / "runs", "--name", "x", "-q")
    assert done.code == 0, done.err
    run = ada / "runs" / "x"
    for file in (run / "checkpoints").rglob("*"):
        assert not file.is_file() or b"lovelace" not in file.read_bytes(), file
    monkeypatch.chdir("/")  # wherever it is used from
    assert vae("report", run, "--metrics", "none", "-o", ada / "page.html").code == 0
    page = (ada / "page.html").read_text()
    assert "lovelace" not in re.sub(r"base64,[\w+/=]+", "", page) and "~/faces" in page
    told = json.loads(vae("info", run, "--json").out)
    assert "lovelace" not in json.dumps({**told, "checkpoint": ""}) and told["config"]["data"]["path"] == "~/faces"
    assert vae("train", "--resume", run, "--steps", 5, "-q").code == 0
    assert str(ada) in json.dumps(json.loads((run / "run.json").read_text())["argv"])


def test_a_checkpoint_with_the_whole_path_is_still_used(ada: Path, vae: Callable[..., Result]) -> None:
    """As they were written before, also by somebody else: its data are where it says."""
    assert vae("train", "--data", "folder:faces", *TINY[2:], "--steps", 30, "--name", "x", "-q").code == 0
    run = Path("runs/x")
    with_stored(run, lambda stored: stored["config"]["data"].update(path=str(ada / "faces")))
    assert vae("analyze", run).code == 0
    assert vae("train", "--resume", run, "--steps", 40, "-q").code == 0
    other = ada.parent / "bob"
    (ada / "faces").rename(other)
    with_stored(run, lambda stored: stored["config"]["data"].update(path=str(other)))
    assert vae("analyze", run / STEP).code == 0


def test_paths_of_others_are_not_shown_in_a_report() -> None:
    text = paths.without_homes(
        "vae train --data=folder:/home/bob/x -S data.path='/Users/Eve/my y' /srv/home/bob /home/a.b"
    )
    assert text == "vae train --data=folder:~/x -S data.path='~/my y' /srv/home/bob ~"
