"""Runs and files that were copied, cut, moved or made to mislead: the newest that can be used is, the rest is named."""

import fcntl
import json
import random
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Result

from vaecli.training import checkpoint
from vaecli.training.checkpoint import CheckpointError

Vae = Callable[..., Result]


@pytest.fixture
def run(vae: Vae, tmp_path: Path) -> Path:
    """A run of 30 steps with a checkpoint every ten."""
    options = (*TINY, "--model", "vae", "--steps", 30, "-S", "train.save_every=10", "-S", "train.keep=3", "-q")
    done = vae("train", *options, "--runs-dir", tmp_path / "runs", "--name", "r")
    assert done.code == 0, done.err
    return Path(done.out.strip())


def test_a_step_without_what_resuming_needs_is_passed_over(run: Path, vae: Vae) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000030" / "trainer")
    done = vae("train", "--resume", run, "--steps", 40)
    assert done.code == 0 and "trainer: missing" in done.err and "at step 20" in done.err, done.err


def test_where_no_step_can_be_resumed_it_is_said(run: Path, vae: Vae) -> None:
    for step in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(step / "trainer")
    done = vae("train", "--resume", run, "--steps", 40)
    assert done.code == 3 and "--init-from" in done.err


@pytest.mark.parametrize("link", ["latest", "best"])
def test_a_copy_made_without_links_is_trained_on(run: Path, vae: Vae, link: str) -> None:
    """Cloud storage and some archives turn links into folders: every save failed on such a copy."""
    (run / "checkpoints" / link).unlink(missing_ok=True)
    shutil.copytree(run / "checkpoints" / "step-00000030", run / "checkpoints" / link)
    done = vae("train", "--resume", run, "--steps", 40, "-S", "train.eval_every=10")
    assert done.code == 0, done.err
    assert (run / "checkpoints" / "latest").resolve().name == "step-00000040"
    assert not list((run / "checkpoints").glob(".tmp-*"))


@pytest.mark.parametrize("change", ["no manifest", "empty folder", "dangling latest"])
def test_resuming_falls_back_to_what_is_whole(run: Path, vae: Vae, change: str) -> None:
    newest = run / "checkpoints" / "step-00000030"
    if change == "no manifest":
        (newest / "manifest.json").unlink()
    elif change == "empty folder":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        shutil.rmtree(newest)
    if change == "no manifest":
        assert vae("train", "--resume", newest, "--steps", 40).code == 3  # a step named by hand is that or nothing
    assert vae("analyze", run, "-q").code == 0
    done = vae("train", "--resume", run, "--steps", 40)
    assert done.code == 0 and "at step 20" in done.err, done.err


def file_of(header: dict[str, object] | bytes, data: bytes, path: Path) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"w": ONE}, b"123", "cut off"),
        ({"w": ONE}, b"12345", "more bytes"),
        ({"w": ONE, "v": ONE}, b"1234", "side by side"),  # two tensors in one place
        ({"w": ONE, "v": {**ONE, "data_offsets": [8, 12]}}, b"1234" * 3, "side by side"),  # a hole
        ({"w": {**ONE, "data_offsets": [-4, 0]}}, b"", "side by side"),
        ({"w": {**ONE, "dtype": "F99"}}, b"1234", "header is damaged"),
        ({"w": {**ONE, "shape": [2]}}, b"1234", "header is damaged"),
        (b'{"w": %b, "w": %b}' % ((json.dumps(ONE).encode(),) * 2), b"1234", "header is damaged"),
        ({f"t{i}": {**ONE, "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)}, b"", "20,001 tensors"),
        ({"w": {**ONE, "shape": [2**40]}}, b"1234", "not usable"),
        ({"w": {**ONE, "shape": [1] * 9}}, b"1234", "not usable"),  # nine sides, which a message would list
        ({"w" * 501: ONE}, b"1234", "not usable"),
        (json.dumps({"w": ONE}).encode() + b" " * 16_000_000, b"1234", "not a safetensors file"),
        (b'{"w": [' + b"[]," * 5_000_000 + b"[]]}", b"", "header is damaged"),
    ],
)
def test_headers_that_mislead_are_refused_before_a_tensor_is_read(
    header: dict[str, object] | bytes, data: bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        checkpoint.read_header(file_of(header, data, tmp_path / "x.safetensors"))


def with_configuration(file: Path, change: Callable[[dict[str, Any]], None], target: Path) -> Path:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    stored = json.loads(header["__metadata__"]["vaecli.config"])
    change(stored)
    header["__metadata__"]["vaecli.config"] = json.dumps(stored, ensure_ascii=False)
    return file_of(header, content[8 + length :], target)


@pytest.mark.parametrize("n", [100_000, 600_000])
@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("config", lambda n: {f"s{i}": 1 for i in range(n)}),
        ("config.model", lambda n: {f"s{i}": 1 for i in range(n)}),
        ("config.model.net", lambda n: {"name": "mlp", "hidden": ["x"] * n}),
        ("data", lambda n: {"factor_names": [1] * n}),
    ],
)
def test_a_configuration_of_very_many_mistakes(
    place: str, values: Callable[[int], dict[str, Any]], n: int, run: Path, tmp_path: Path
) -> None:
    """Told in some lines, in some memory: a hundred thousand bad values, and more than a configuration can have."""

    def change(stored: dict[str, Any]) -> None:
        for key in place.split("."):
            stored = stored[key]
        stored.update(values(n))

    file = with_configuration(checkpoint.resolve(run), change, tmp_path / "x.safetensors")
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(file, torch.device("cpu"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 200e6 and time.process_time() - start < 20 and len(str(caught.value)) < 5_000


def test_text_that_is_none_in_a_configuration(run: Path, tmp_path: Path) -> None:
    """Half of a surrogate pair, which JSON can hold and UTF-8 cannot."""

    def change(stored: dict[str, Any]) -> None:
        stored["config"]["model"]["\ud800"] = 1

    step = checkpoint.resolve(run).parent
    with_configuration(step / "model.safetensors", change, step / "model.safetensors")
    (step / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="do not agree"):
        checkpoint.load(run, torch.device("cpu"))
    (step / "config.json").unlink()
    with pytest.raises(CheckpointError, match="valid string"):
        checkpoint.load(run, torch.device("cpu"))


def test_info_tells_a_file_that_was_cut(run: Path, vae: Vae, tmp_path: Path) -> None:
    whole = checkpoint.resolve(run).read_bytes()
    for content in (whole[:-9], whole + b"xxx"):
        (tmp_path / "x.safetensors").write_bytes(content)
        assert vae("info", tmp_path / "x.safetensors").code == 3
    (tmp_path / "x.safetensors").write_bytes(whole)
    assert vae("info", tmp_path / "x.safetensors").code == 0


def test_a_file_of_holes_is_not_read(run: Path, tmp_path: Path) -> None:
    """A sparse file of 100 GB takes no room on the disk, and would take all memory."""
    whole = checkpoint.resolve(run).read_bytes()
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(whole)
        file.truncate(100 << 30)
    with pytest.raises(CheckpointError, match="more bytes"):
        checkpoint.read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("rounds", [60, pytest.param(2000, marks=pytest.mark.long)])
def test_mutated_runs(run: Path, rounds: int) -> None:
    """Any file of a step changed, cut or grown: it verifies, loads and resumes as it was, or CheckpointError says why
    not; no other error, and nothing written beside it."""
    step = run / "checkpoints" / "step-00000030"
    whole = {p: p.read_bytes() for p in step.rglob("*") if p.is_file()}
    rng = random.Random(rounds)
    refused = 0
    for _ in range(rounds):
        victim = rng.choice(sorted(whole))
        content = bytearray(whole[victim])
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(min(len(content), 20_000))] = rng.randrange(256)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        if rng.random() < 0.1:
            content += rng.randbytes(rng.randrange(100))
        victim.write_bytes(content)
        for use in (
            lambda: checkpoint.verify(step),
            lambda: checkpoint.load(step, torch.device("cpu")),
            lambda: checkpoint.load_trainer(step),
        ):
            try:
                use()
            except CheckpointError as error:
                refused += 1
                assert "\n" not in error.message
        victim.write_bytes(whole[victim])
    assert refused > rounds / 2
    assert {p for p in step.rglob("*") if p.is_file()} == whole.keys()
    checkpoint.verify(step)


def test_a_name_that_is_too_long_is_told(vae: Vae) -> None:
    done = vae("info", "a" * 5000)
    assert done.code == 3 and len(done.err) < 400


# ------------------------------------------------------------------------------------------------------- where runs go


def test_the_place_is_looked_at_before_the_data(vae: Vae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the data were loaded for a place that cannot be used")

    monkeypatch.setattr("vaecli.data.load", loaded)
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "runs"):
        for more in ((), ("--seeds", "0-1")):
            done = vae("train", *TINY, "--model", "vae", "--runs-dir", place, *more)
            assert done.code == 5 and "cannot be made here" in done.err, done.err


def test_a_batch_without_bound_is_refused(vae: Vae) -> None:
    done = vae("train", *TINY, "--model", "vae", "-S", "train.batch_size=1000000000000")
    assert done.code == 2 and "batch_size" in done.err and not Path("runs").exists()


def test_a_step_that_cannot_be_deleted_is_told_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    class Stuck(checkpoint.Files):
        def remove(self, path: Path) -> None:
            raise OSError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "FILES", Stuck())
    loaded = checkpoint.load(run, torch.device("cpu"))
    for step in range(1, 5):
        checkpoint.commit(tmp_path / "c", loaded.model, loaded.config, step, 1, {}, {})
    assert capfdbinary.readouterr().err.decode().count("step-00000001: an old checkpoint could not be deleted") == 1


def test_a_lock_that_holds_no_text(run: Path, vae: Vae) -> None:
    with (run / ".lock").open("wb") as other:
        other.write(b"\xff\x1b[31m")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        done = vae("train", "--resume", run, "--steps", 40)
    assert done.code == 5 and "in use by \\xff\\x1b[31m" in done.err, done.err
