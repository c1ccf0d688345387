"""`train.log`: each tracker, by its own library and offline, has the numbers of metrics.jsonl."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Result, command

from vaecli.training import trackers

STEPS = ("-S", "train.log_every=10", "-S", "train.eval_every=20", "-S", "train.save_every=20")
RUN = Path("runs/r")


def line(*more: object, steps: int = 40) -> list[str]:
    start = ["train", "--model", "beta-vae", *TINY, *STEPS, "--steps", steps, "--runs-dir", "runs", "--name", "r", "-q"]
    return list(map(str, [*start, *more]))


def records() -> dict[tuple[str, int], dict[str, Any]]:
    lines = [json.loads(text) for text in (RUN / "metrics.jsonl").read_text().splitlines()]
    return {(record["kind"], record["step"]): record for record in lines}


def expected_of(kind: str, name: str) -> dict[int, float]:
    return {step: record[name] for (k, step), record in records().items() if k == kind}


def test_tensorboard_reads_back_what_was_logged(vae: Callable[..., Result]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def scalars(name: str) -> dict[int, float]:
        events = accumulator.EventAccumulator(str(RUN / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        return {event.step: event.value for event in events.Scalars(name)}

    assert vae(*line("-S", "train.log=[tensorboard]")).code == 0
    assert scalars("train/recon") == pytest.approx(expected_of("train", "recon"), rel=1e-6)
    assert set(scalars("train/recon")) == {10, 20, 30, 40}
    assert scalars("val/elbo") == pytest.approx(expected_of("val", "elbo"), rel=1e-6)
    first = {step: record["kl_j"][0] for (kind, step), record in records().items() if kind == "val"}
    assert scalars("val/kl_j/0") == pytest.approx(first, rel=1e-5)
    assert list(scalars("train/hyper/lr").values()) == pytest.approx([1e-3] * 4)
    # A resumed run goes on in the same place, and each step is there once.
    assert vae("train", "--resume", RUN, "--steps", 60, "-q").code == 0
    assert scalars("train/recon") == pytest.approx(expected_of("train", "recon"), rel=1e-6)
    assert set(scalars("train/recon")) == {10, 20, 30, 40, 50, 60}


@pytest.mark.slow
def test_mlflow_reads_back_what_was_logged(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = f"file:{tmp_path / 'mlruns'}"
    env = {**os.environ, "MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_FILE_STORE": "true"}
    subprocess.run(command(*line("-S", "train.log=[mlflow]")), check=True, env=env, timeout=240)
    again = command("train", "--resume", RUN, "--steps", 60, "-q")
    subprocess.run(again, check=True, env=env, timeout=240)
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("vaecli")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "r" and run.info.status == "FINISHED"
    assert run.data.params["model.latent_dim"] == "3" and run.data.params["train.steps"] == "40"
    found = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/recon")}
    assert found == pytest.approx(expected_of("train", "recon"), rel=1e-12) and set(found) == set(range(10, 61, 10))


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run(command(*line("-S", "train.log=[wandb]")), check=True, env=env, timeout=240)
    (file,) = (RUN / "wandb").glob("offline-run-*/*.wandb")
    from wandb.proto import wandb_internal_pb2

    found, config = {}, {}
    for data in log_entries(file.read_bytes()[7:], 7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
        config |= {item.key: item.value_json for item in record.run.config.update}
        if "train/recon" in items:
            found[record.history.step.num or int(items["_step"])] = json.loads(items["train/recon"])
    assert found == pytest.approx(expected_of("train", "recon"), rel=1e-9)
    assert json.loads(config["model"])["latent_dim"] == 3


def log_entries(data: bytes, start: int, block: int = 32768) -> Iterator[bytes]:
    """What is in a log of LevelDB's format, which the library writes; `start` bytes of a header stood before it."""
    at, parts = 0, b""
    while at + 7 <= len(data):
        if block - (at + start) % block < 7:  # no room for another header
            at += block - (at + start) % block
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.slow
def test_trackio_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command(*line("-S", "train.log=[trackio]")), check=True, env=env, timeout=240)
    script = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage as S\n"
        "print(json.dumps([S.get_runs('vaecli'), S.get_logs('vaecli', 'r')], default=str))\n"
    )
    out = subprocess.run([sys.executable, "-c", script], check=True, env=env, timeout=120, capture_output=True).stdout
    names, logs = json.loads(out)
    assert names == ["r"]
    found = {entry["step"]: entry["train/recon"] for entry in logs if "train/recon" in entry}
    assert found == pytest.approx(expected_of("train", "recon"), rel=1e-9)


def test_one_that_fails_warns_once(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Broken:
        def __init__(self, *_: object) -> None:
            pass

        def log(self, step: int, values: object) -> None:
            told.append(step)
            raise ConnectionError("no network\nat all")

        def close(self, failed: bool) -> None:
            raise AssertionError("it was left alone")

    monkeypatch.setattr(trackers, "check", lambda names: None)
    monkeypatch.setitem(trackers._KINDS, "mlflow", Broken)
    done = vae(*line("-S", "train.log=[mlflow]"))
    assert done.code == 0 and told == [10], done.err
    assert done.err.count("warning: train.log: mlflow failed and gets no more: ConnectionError: no network") == 1
    assert set(expected_of("train", "recon")) == {10, 20, 30, 40}


def test_a_failed_start_is_no_end(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no account")

    monkeypatch.setattr(trackers, "check", lambda names: None)
    monkeypatch.setitem(trackers._KINDS, "wandb", broken)
    done = vae(*line("-S", "train.log=[wandb]", steps=20))
    assert done.code == 0 and done.err.count("wandb failed") == 1


def test_usage(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    done = vae(*line("-S", "train.log=[csv]"))
    assert done.code == 2 and "train.log" in done.err and not RUN.exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = vae(*line("-S", "train.log=[tensorboard]"))
    assert done.code == 2 and 'pip install "vaecli[tensorboard]"' in done.err and not RUN.exists()


def test_nothing_is_imported_unless_named() -> None:
    names = ["tensorboard", "wandb", "trackio", "mlflow"]
    code = f"import vaecli.training.session, sys; assert not set({names}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
