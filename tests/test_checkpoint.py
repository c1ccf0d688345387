"""Checkpoints: whole or not at all, verified, and no way in for hostile files."""

import json
import os
import random
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vaecli import device
from vaecli.errors import MachineError
from vaecli.training import checkpoint
from vaecli.training.checkpoint import CheckpointError, Files

CPU = torch.device("cpu")


def rewrite(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint file whose stored JSON was changed."""
    metadata, _, _ = checkpoint.read_header(source)
    stored = json.loads(metadata["vaecli.config"])
    change(stored)
    save_file(load_file(source), target, metadata={**metadata, "vaecli.config": json.dumps(stored)})
    return target


@pytest.fixture
def file(tiny_run: Path) -> Path:
    return checkpoint.resolve(tiny_run)


def test_one_file_is_enough(file: Path, tmp_path: Path) -> None:
    """A bare .safetensors file elsewhere gives the same model as its run directory."""
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(file.read_bytes())
    a, b = checkpoint.load(file, CPU), checkpoint.load(alone, CPU)
    assert a.config == b.config and a.step == b.step == 30 and a.info == b.info
    x_BCHW = torch.rand(3, *a.info.shape)
    assert torch.equal(a.model.posterior(x_BCHW).mean_BD, b.model.posterior(x_BCHW).mean_BD)
    assert not a.model.training


def test_equal_trainings_write_equal_files(tiny_run: Path, vae: Callable[..., Result], tmp_path: Path) -> None:
    again = tmp_path / "runs" / "again"
    options = ("--model", "beta-vae", *TINY, "--steps", 30, "--runs-dir", again.parent, "--name", again.name, "-q")
    assert vae("train", *options).code == 0
    for name in ("model.safetensors", "config.json", "trainer/optimizer.safetensors"):
        one, two = ((run / "checkpoints" / "latest" / name).read_bytes() for run in (tiny_run, again))
        assert one == two, name
    metadata = checkpoint.read_header(checkpoint.resolve(again))[0]
    assert list(metadata) == sorted(metadata) and len(metadata) > 5
    assert (tiny_run / "config.yaml").read_bytes() == (again / "config.yaml").read_bytes()


def test_layout_and_modes(tiny_run: Path) -> None:
    step = tiny_run / "checkpoints" / "step-00000030"
    assert os.readlink(tiny_run / "checkpoints" / "latest") == step.name
    assert {p.relative_to(step).as_posix() for p in step.rglob("*") if p.is_file()} == {
        "model.safetensors",
        "config.json",
        "manifest.json",
        "trainer/optimizer.safetensors",
        "trainer/state.json",
    }
    umask = os.umask(0)
    os.umask(umask)
    assert (step / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    metadata, _, _ = checkpoint.read_header(step / "model.safetensors")
    assert metadata["format"] == "pt" and metadata["modelspec.architecture"] == "vaecli/beta-vae"
    assert metadata["vaecli.config"] == (step / "config.json").read_text()


# ---- writing


class Recorder(Files):
    """Counts file operations, keeps their order, and fails the one it is told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fail_at = fail_at

    def _note(self, name: str, path: Path) -> None:
        self.calls.append((name, path.name))
        if self.fail_at is not None and len(self.calls) > self.fail_at:
            raise OSError(28, "No space left on device")

    def write(self, path: Path, content: bytes) -> None:
        self._note("write", path)
        super().write(path, content)

    def fsync_folder(self, path: Path) -> None:
        self._note("fsync", path)
        super().fsync_folder(path)

    def rename(self, old: Path, new: Path) -> None:
        self._note("rename", new)
        super().rename(old, new)

    def symlink(self, target: str, link: Path) -> None:
        self._note("symlink", link)
        super().symlink(target, link)


def commit(loaded: checkpoint.Loaded, folder: Path, step: int, keep: int = 5) -> Path:
    return checkpoint.commit(
        folder, loaded.model, loaded.config, step, keep, {"main/0/x": torch.ones(3)}, {"seconds": 1.0}
    )


def test_order_of_durability(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, manifest last, folders, rename, parent, and only then `latest`."""
    recorder = Recorder()
    monkeypatch.setattr(checkpoint, "FILES", recorder)
    commit(checkpoint.load(file, CPU), tmp_path, 1)
    names = [name for name, _ in recorder.calls]
    targets = [target for _, target in recorder.calls]
    assert targets[4] == "manifest.json" and names[:5] == ["write"] * 5
    assert recorder.calls[5][0] == recorder.calls[6][0] == "fsync"
    assert recorder.calls[7] == ("rename", "step-00000001")
    assert recorder.calls[8] == ("fsync", tmp_path.name)
    assert recorder.calls[-2] == ("rename", "latest") and recorder.calls[-1][0] == "fsync"


def test_failure_at_every_operation(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever operation fails, `latest` still leads to a checkpoint that verifies, and no half one can be seen."""
    loaded = checkpoint.load(file, CPU)
    folder = tmp_path / "steps"
    folder.mkdir()
    monkeypatch.setattr(checkpoint, "FILES", Recorder(fail_at=1))
    with pytest.raises(MachineError) as first:
        commit(loaded, folder, 1)
    assert "there is no checkpoint before it" in str(first.value.hint)
    monkeypatch.undo()
    commit(loaded, folder, 1)
    for k in range(12):
        monkeypatch.setattr(checkpoint, "FILES", Recorder(fail_at=k))
        with pytest.raises(MachineError, match="could not be written") as caught:
            commit(loaded, folder, 2)
        assert "bytes" in str(caught.value.hint)
        monkeypatch.undo()
        for step in folder.glob("step-*"):
            checkpoint.verify(step)
        assert not list(folder.glob(".tmp-*"))
        assert checkpoint.load(folder, CPU).step == 1 or (folder / "step-00000002").exists()


def test_retention(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> None:
    loaded = checkpoint.load(file, CPU)
    for step in range(1, 6):
        commit(loaded, tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000004", "step-00000005"]

    class Stuck(Files):
        def remove(self, path: Path) -> None:
            raise OSError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "FILES", Stuck())
    commit(loaded, tmp_path, 6, keep=2)  # a failing deletion never stops a run
    assert "could not be deleted" in capfdbinary.readouterr().err.decode()


# ---- reading


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"1234567", "not a safetensors file"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
        (b"PK\x03\x04" + bytes(50), "zip or torch.save"),
        (b"\x80\x04\x95" + bytes(50), "pickle"),
        (struct.pack("<Q", 2**63) + b"{}" + bytes(50), "not a safetensors file"),
        (struct.pack("<Q", 99_000_000) + b"{" + bytes(50), "not a safetensors file"),
        (struct.pack("<Q", 20) + b"{" + b"[" * 19, "damaged"),
        (struct.pack("<Q", 2) + b"{}", "not one made by vae"),
    ],
)
def test_what_is_no_checkpoint(content: bytes, says: str, vae: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    start = time.monotonic()
    result = vae("info", path)
    assert result.code == 3 and says in result.err and "x.safetensors" in result.err
    assert result.out == "" and "Traceback" not in result.err and len(result.err.splitlines()) <= 2
    assert time.monotonic() - start < 5


def test_odd_paths(vae: Callable[..., Result], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dir").mkdir()
    for path, says in (
        ("pipe", "not a regular file"),
        ("dir", "holds no checkpoint"),
        ("nothing", "no such checkpoint"),
    ):
        result = vae("sample", tmp_path / path)
        assert result.code == 3 and says in result.err, result.err


def test_flipped_bits_and_cuts(file: Path, tiny_run: Path, vae: Callable[..., Result]) -> None:
    for name in ("model.safetensors", "trainer/state.json", "config.json"):
        path = file.parent / name
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        result = vae("sample", tiny_run, "-o", "s.png")
        assert result.code == 3 and Path(name).name in result.err, result.err
        path.write_bytes(content[:-5])
        assert vae("sample", tiny_run, "-o", "s.png").code == 3
        path.write_bytes(content)
    assert vae("sample", tiny_run, "-o", "s.png").code == 0


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(stored: dict[str, Any]) -> None:
        *front, last = path.split(".")
        for key in front:
            stored = stored[key]
        stored[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("config.model.name", "os.system", "no model is called"),
        ("config.model.name", "../../evil", "no model is called"),
        ("config.model.name", "x" * 10_000, "no model is called"),
        ("config.model.latent_dim", 10**9, "latent_dim"),
        ("config.model.latent_dim", 60_000, "disagree"),
        ("config.model.net", {"name": "mlp", "hidden": [65_536] * 60}, "disagree"),
        ("config.data.name", "os", "no dataset is called"),
        ("data.shape", [1, 100_000, 100_000], "not usable"),
        ("data.shape", [1, -1, 3], "not usable"),
        ("data.shape", "big", "damaged"),
        ("step", "a", "damaged"),
        ("format_version", 99, "upgrade"),
        ("config", [], "damaged"),
    ],
)
def test_hostile_configuration(path: str, value: Any, says: str, file: Path, tmp_path: Path) -> None:
    hostile = rewrite(file, tmp_path / "h.safetensors", _set(path, value))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(hostile, CPU)
    assert says in f"{caught.value} {caught.value.hint}"
    assert len(str(caught.value)) < 2_500


def test_weights_must_agree(file: Path, tmp_path: Path) -> None:
    metadata, _, _ = checkpoint.read_header(file)
    tensors = load_file(file)
    name = next(iter(tensors))
    cases = {
        "missing": {k: v for k, v in tensors.items() if k != name},
        "unexpected": {**tensors, "evil": torch.ones(1)},
        "differing": {**tensors, name: tensors[name].double()},
        "not finite": {**tensors, name: torch.full_like(tensors[name], float("nan"))},
    }
    for says, changed in cases.items():
        save_file(changed, tmp_path / "c.safetensors", metadata=metadata)
        with pytest.raises(CheckpointError, match=says):
            checkpoint.load(tmp_path / "c.safetensors", CPU)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "model.safetensors").write_bytes(file.read_bytes())
    (tmp_path / "d" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="do not agree"):
        checkpoint.load(tmp_path / "d", CPU)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_mutated_files(file: Path, tmp_path: Path, rnd: random.Random) -> None:
    """A file with random bytes changed, cut or added either loads or is refused with CheckpointError; nothing else."""
    content = bytearray(file.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(rnd.randint(1, 4)):
        content[rnd.randrange(header if rnd.random() < 0.9 else len(content))] = rnd.randrange(256)
    if rnd.random() < 0.2:
        del content[rnd.randrange(len(content)) :]
    target = tmp_path / "m.safetensors"
    target.write_bytes(content)
    try:
        checkpoint.load(target, CPU)
    except CheckpointError:
        pass


def test_no_pickle_is_ever_loaded() -> None:
    """A lint of our own: nothing in the package can unpickle."""
    package = Path(checkpoint.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text()
        for banned in ("torch.load(", "import pickle", "allow_pickle=True", "yaml.load(", "eval(", "exec("):
            hits = [line for line in text.splitlines() if banned in line and ".eval()" not in line and "#" not in line]
            assert not hits, f"{path.name}: {hits}"


def test_seed_depends_on_every_key() -> None:
    seeds = {device.derive(a, b) for a in range(30) for b in range(30)} | {device.derive("1/2"), device.derive(1, 2)}
    assert len(seeds) == 901  # (1, 2) is among the pairs
    device.seed(3, "step", 4)
    first = torch.randn(4)
    torch.randn(9)
    device.seed(3, "step", 4)
    assert torch.equal(torch.randn(4), first)
    torch.manual_seed(device.derive(3, "step", 4))
    assert torch.equal(torch.randn(4), first)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no accelerator")
def test_seeding_writes_down_no_stack_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed does, for each accelerator that is not there, which takes over a millisecond of every step."""
    written: list[int] = []
    real = traceback.format_stack
    monkeypatch.setattr(traceback, "format_stack", lambda *a, **k: written.append(1) or real(*a, **k))
    device.seed(0, "step", 1)
    assert not written


@pytest.mark.parametrize(
    "manifest",
    ['{"model.safetensors": {"bytes": 1e999, "sha256": "x"}}', '{"a\\u0000b": {"bytes": 1, "sha256": "x"}}',
     "{}", "[]", "3",
     '{"../../x": {"bytes": 1, "sha256": "x"}, "model.safetensors": {"bytes": 1, "sha256": "x"}}'],
)  # fmt: skip
def test_hostile_manifests(manifest: str, file: Path) -> None:
    (file.parent / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(file, CPU)


def test_copies_without_links(tiny_run: Path, tmp_path: Path) -> None:
    """`latest` as a plain directory, as copies and archives have it; a bare file beside foreign JSON."""
    import shutil

    shutil.copytree(tiny_run, tmp_path / "copy", symlinks=False)
    assert checkpoint.load(tmp_path / "copy", CPU).step == 30
    bare = tmp_path / "elsewhere" / "mine.safetensors"
    bare.parent.mkdir()
    bare.write_bytes(checkpoint.resolve(tiny_run).read_bytes())
    (bare.parent / "config.json").write_text("{}")
    (bare.parent / "manifest.json").write_text("{}")
    assert checkpoint.load(bare, CPU).step == 30


def test_hostile_numbers_and_text_in_the_header(file: Path, tmp_path: Path, vae: Callable[..., Result]) -> None:
    for value in (-5000, 10**400):
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(rewrite(file, tmp_path / "h.safetensors", _set("step", value)), CPU)
    named = rewrite(file, tmp_path / "n.safetensors", _set("data.name", "a\x1b[31m\tb\nc"))
    told = vae("info", named)
    assert told.code == 0 and "\x1b" not in told.out and "a\\x1b[31m\\tb\\nc" in told.out
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**4000, 2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "s.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert vae("info", tmp_path / "s.safetensors").code == 3


@pytest.mark.parametrize("change", ["shape", "missing", "key", "nan", "index"])
def test_hostile_optimizer_state(change: str, tiny_run: Path, vae: Callable[..., Result]) -> None:
    """A fused optimizer would read past the end of a tensor too small: everything is checked first."""
    import hashlib

    step = checkpoint.resolve(tiny_run).parent
    path = step / "trainer" / "optimizer.safetensors"
    tensors = load_file(path)
    if change == "shape":
        tensors["main/0/exp_avg"] = torch.zeros(2, 2)
    elif change == "missing":
        tensors = {}
    elif change == "key":
        tensors["main/0/evil"] = tensors.pop("main/0/exp_avg")
    elif change == "nan":
        tensors["main/0/exp_avg"] = torch.full_like(tensors["main/0/exp_avg"], float("nan"))
    else:
        tensors["main/999/exp_avg"] = torch.zeros(2)
    save_file(tensors, path)
    manifest = json.loads((step / "manifest.json").read_text())
    content = path.read_bytes()
    manifest["trainer/optimizer.safetensors"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (step / "manifest.json").write_text(json.dumps(manifest))
    refused = vae("train", "--resume", tiny_run, "--steps", 40)
    assert refused.code == 3 and "does not fit" in refused.err, refused.err


def test_tied_weights_and_all_kinds_of_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied weights stay tied; flags and counters come back; what is not stored is computed again."""
    from torch import nn

    from vaecli import config as configs
    from vaecli import data, models
    from vaecli.config import tree as trees
    from vaecli.models import vae as plain

    class Odd(plain.Model):
        def __init__(self, config: plain.Config, info: Any) -> None:
            super().__init__(config, info)
            self.twin = nn.Linear(5, 5)
            self.twin_too = nn.Linear(5, 5)
            self.twin_too.weight = self.twin.weight
            self.register_buffer("flag", torch.tensor(True))
            self.register_buffer("codes", torch.arange(4, dtype=torch.uint8))
            self.register_buffer("scratch", torch.arange(3.0), persistent=False)

    monkeypatch.setattr(plain, "Model", Odd)
    config = configs.build(trees.Tree({"data": "squares"}, {}))
    model = models.build(config.model, data.load(config.data).info)
    model.flag.fill_(False)
    checkpoint.commit(tmp_path, model, config, 1, 1, {}, {})
    again = checkpoint.load(tmp_path, CPU).model
    assert again.twin.weight is again.twin_too.weight
    assert not again.flag and again.codes.tolist() == [0, 1, 2, 3] and again.scratch.tolist() == [0, 1, 2]
    assert len(list(again.parameters())) == len(list(model.parameters()))
