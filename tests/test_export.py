"""`vae export`, `vae push` and `hf://`: programs that give what the model gives, and a hub that is on this machine."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, Result

import vaecli

SIZES = (1, 2, 5)  # the batch is of any size


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).random((n, 1, 16, 16), dtype=np.float32)


def readme_block(folder: Path) -> str:
    """The Python in the README of an export."""
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    return str(block)


def test_onnx_gives_what_the_model_gives(
    tiny_run: Path, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    done = vae("export", tiny_run, "--format", "onnx", "-o", "out", "--json", "-q")
    assert done.code == 0, done.err
    assert json.loads(done.out)["files"] == ["README.md", "config.json", "decoder.onnx", "encoder.onnx"]
    model, code = vaecli.load(tiny_run), readme_block(Path("out"))
    monkeypatch.chdir("out")
    for n in SIZES:
        known: dict[str, Any] = {"images": images(n)}
        exec(code, known)
        expected = model.posterior(images(n))
        (logvar,) = known["logvar"]
        np.testing.assert_allclose(known["mean"], expected.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logvar, expected.logvar, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(known["decoded"], model.decode(expected.mean), rtol=1e-4, atol=1e-5)
    assert np.ptp(known["mean"], axis=0).min() > 0  # the images differ, and so do the codes


def test_torch_programs_need_no_vae(tiny_run: Path, vae: Callable[..., Result]) -> None:
    done = vae("export", tiny_run, "--format", "torch", "-o", "out", "-q")
    assert done.code == 0 and done.out == "out\n", done.err
    np.savez("in.npz", **{str(n): images(n) for n in SIZES})
    script = (
        "import sys, numpy as np\n"
        "out = {}\n"
        f"for n in {SIZES}:\n"
        "    images = np.load('../in.npz')[str(n)]\n"
        + "".join(f"    {line}\n" for line in readme_block(Path("out")).splitlines())
        + "    out |= {f'mean{n}': mean.numpy(), f'logvar{n}': logvar[0].numpy(), f'decoded{n}': decoded.numpy()}\n"
        "assert 'vaecli' not in sys.modules\n"
        "np.savez('../out.npz', **out)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd="out", check=True, timeout=240)
    model, found = vaecli.load(tiny_run), np.load("out.npz")
    for n in SIZES:
        expected = model.posterior(images(n))
        np.testing.assert_allclose(found[f"mean{n}"], expected.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"logvar{n}"], expected.logvar, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"decoded{n}"], model.decode(expected.mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "says"), [("vae", None), pytest.param("iaf-vae", "z0, z1", marks=pytest.mark.long), ("m2", "y.0, y.1")]
)
def test_draws_are_told_of_where_they_are_right(model: str, says: str | None, vae: Callable[..., Result]) -> None:
    """Of Gaussians with independent latents alone; and torch is quiet about what it records."""
    small = ["-S", "model.net={name: mlp, hidden: [8]}", "--latent-dim", 2, "--steps", 2, "--batch-size", 8, "-q"]
    data = ("--data", "digits", *(("-S", "data.labelled=50") if model == "m2" else ()))
    assert vae("train", *data, "--model", model, *small, "--runs-dir", "runs", "--name", "r").code == 0
    done = vae("export", "runs/r", "--format", "torch", "-o", "out", "-q")
    assert done.code == 0 and done.err == "", done.err
    text = Path("out/README.md").read_text()
    assert ("A draw of q(z|x) is" in text) == (says is None)
    assert says is None or f"No draws of q(z|x) can be made of these for {says}" in text
    assert ("is a probability" in text) == (model == "m2")


@pytest.mark.parametrize(
    ("model", "steps"), [("two-stage-vae", 2), ("two-stage-vae", 0), ("ladder-vae", 2), ("qlae", 2)]
)
def test_models_of_other_kinds(model: str, steps: int, vae: Callable[..., Result]) -> None:
    """Programs of any number of images that give what the model gives: of several levels, of a second stage that has
    begun and one that has not, of codes from a book."""
    small = ["-S", "model.net={name: mlp, hidden: [8]}", "--batch-size", 8, "--runs-dir", "runs", "--name", "t", "-q"]
    assert vae("train", "--data", "digits", "--model", model, *small, "--steps", steps).code == 0
    done = vae("export", "runs/t", "--format", "torch", "-o", "out", "-q")
    assert done.code == 0, done.err
    of_run = vaecli.load("runs/t")
    encoder, decoder = (torch.export.load(f"out/{part}.pt2").module() for part in ("encoder", "decoder"))
    for n in SIZES:
        x_BCHW = np.random.default_rng(n).random((n, 1, 8, 8), dtype=np.float32)
        found = encoder(torch.from_numpy(x_BCHW))
        mean_BD, *logvar = found if isinstance(found, tuple) else (found,)
        expected = of_run.posterior(x_BCHW)
        np.testing.assert_allclose(mean_BD.numpy(), expected.mean, rtol=1e-4, atol=1e-5)
        assert len(logvar) == (0 if model == "qlae" else 1)
        if logvar:
            np.testing.assert_allclose(logvar[0].numpy(), expected.logvar, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(decoder(mean_BD).numpy(), of_run.decode(expected.mean), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_what_torch_cannot_trace_is_told_in_a_line(vae: Callable[..., Result]) -> None:
    """The Hamiltonian posterior goes along gradients of its own."""
    small = ["-S", "model.net={name: mlp, hidden: [8]}", "--latent-dim", 2, "--batch-size", 8, "-q"]
    line = ("train", "--data", "digits", "--model", "hamiltonian-vae", *small, "--steps", 2, "--runs-dir", "runs")
    assert vae(*line, "--name", "t").code == 0
    done = vae("export", "runs/t", "--format", "torch", "-o", "out", "-q")
    assert done.code == 2 and done.err.count("\n") <= 2 and "cannot be exported" in done.err, done.err


def test_what_the_hub_reads(tiny_run: Path, vae: Callable[..., Result]) -> None:
    assert vae("export", tiny_run, "--format", "hub", "-o", "out", "-q").code == 0
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"README.md", "config.json", "manifest.json", "model.safetensors"}
    _, front, text = Path("out/README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["library_name"] == "vaecli" and {"vae", "beta-vae", "squares"} <= set(card["tags"])
    (result,) = card["model-index"][0]["results"]
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    elbo = next(line["elbo"] for line in reversed(lines) if line["kind"] == "val")
    assert {m["type"]: m["value"] for m in result["metrics"]}["elbo"] == round(elbo, 4)
    assert "# beta-vae of squares" in text and "latent_dim: 3" in text
    # The folder is a checkpoint: whole, verified, with the same codes.
    assert np.array_equal(vaecli.load("out").encode(images(4)), vaecli.load(tiny_run).encode(images(4)))
    with open("out/model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert "damaged" in vae("info", "out").err or vae("sample", "out", "-o", "s.png").code == 3


def test_bad_input(tiny_run: Path, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(code: int, says: str, *args: object) -> None:
        done = vae(*args)
        assert done.code == code and says in done.err and done.out == "", done.err
        assert len(done.err.splitlines()) <= 4

    refused(2, "must be onnx, torch or hub", "export", tiny_run, "--format", "tflite", "-o", "out")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    refused(2, "exists already", "export", tiny_run, "--format", "hub", "-o", "full")
    refused(2, "is a file", "export", tiny_run, "--format", "hub", "-o", "full/mine.txt")
    refused(3, "does not exist", "export", tiny_run, "--format", "hub", "-o", "no/where")
    refused(3, "no such checkpoint", "export", "nowhere", "--format", "hub", "-o", "out")
    assert not Path("out").exists() and [p.name for p in Path("full").iterdir()] == ["mine.txt"]
    assert vae("export", tiny_run, "--format", "hub", "-o", "full", "--force", "-q").code == 0
    assert Path("full/mine.txt").read_text() == "mine" and Path("full/config.json").is_file()
    refused(2, "not the name of a repository", "push", tiny_run, "a/b/c")
    refused(2, "not the name of a repository", "info", "hf://..")
    refused(5, "VAE_OFFLINE", "info", "hf://someone/something")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delenv("VAE_OFFLINE")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(2, 'pip install "vaecli[hub]"', "push", tiny_run, "me/model")
    refused(2, 'pip install "vaecli[hub]"', "info", "hf://me/model")
    refused(2, 'pip install "vaecli[onnx]"', "export", tiny_run, "--format", "onnx", "-o", "out")
    assert not Path("out").exists()


def test_what_cannot_be_traced_is_told(
    vae: Callable[..., Result], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaecli.commands import export

    def decode(self: object, codes: Any) -> Any:
        raise ValueError("a branch on a number of the image\nand more")

    monkeypatch.setattr(export.Decoder, "forward", decode)
    done = vae("export", tiny_run, "--format", "torch", "-o", "out")
    assert done.code == 2 and "beta-vae: its decoder cannot be exported" in done.err and "--format hub" in done.err
    assert not Path("out").exists() and not list(Path().glob(".vae-*"))


# ---- a hub on this machine


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its library asks for: repositories of small files, in memory; `secret` is the token."""

    repositories: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", kind: str = "application/json", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, kind: str) -> None:
        self.answer(404, json.dumps({"error": kind}).encode(), X_Error_Code=kind)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/revision/([\w-]+))?", path):
            files = self.repositories.get(found[1])
            if files is None:
                return self.missing("RepoNotFound")
            siblings = [{"rfilename": name} for name in files]
            about = {"id": found[1], "sha": self.commit, "siblings": siblings, "private": False, "tags": []}
            return self.answer(200, json.dumps(about).encode())
        if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/tree/([\w-]+)", path):
            files = self.repositories.get(found[1], {})
            tree = [{"type": "file", "path": n, "size": len(c), "oid": self.oid(c)} for n, c in files.items()]
            return self.answer(200, json.dumps(tree).encode())
        if found := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([\w-]+)/(.+)", path):
            files = self.repositories.get(found[1])
            if files is None:
                return self.missing("RepoNotFound")
            if found[3] not in files:
                return self.missing("EntryNotFound")
            content = files[found[3]]
            marks = {"ETag": f'"{self.oid(content)}"', "X_Repo_Commit": self.commit}
            return self.answer(200, content, "application/octet-stream", **marks)
        self.answer(404)

    do_HEAD = do_GET

    @staticmethod
    def oid(content: bytes) -> str:
        return hashlib.sha1(content).hexdigest()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer secret":
            return self.answer(401, json.dumps({"error": "Invalid credentials"}).encode())
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repositories.setdefault(name, {})
            return self.answer(200, json.dumps({"url": f"https://huggingface.co/{name}", "id": name}).encode())
        if path == "/api/validate-yaml":
            return self.answer(200, b'{"errors": [], "warnings": []}')
        if re.search("/preupload/", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, json.dumps({"files": files}).encode())
        if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/commit/([\w-]+)", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.repositories[found[1]][value["path"]] = base64.b64decode(value["content"])
            told = {"commitUrl": f"https://huggingface.co/{found[1]}/commit/{self.commit}", "commitOid": self.commit}
            return self.answer(200, json.dumps(told).encode())
        self.answer(404)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which the library speaks to a hub on the loopback."""
    pytest.importorskip("huggingface_hub")
    Hub.repositories = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "secret", "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "VAE_OFFLINE": "0",
        "VAE_CACHE_DIR": str(tmp_path / "cache"),
    }  # fmt: skip
    server.shutdown()
    server.server_close()


def test_pushed_and_fetched_again(
    tiny_run: Path, hub: dict[str, str], vae: Callable[..., Result], vae_process: Callable[..., Result], tmp_path: Path
) -> None:
    done = vae_process("push", tiny_run, "me/squares", **hub)
    assert done.code == 0 and done.out == "hf://me/squares\n", done.err
    files = Hub.repositories["me/squares"]
    assert set(files) == {"README.md", "config.json", "manifest.json", "model.safetensors"}
    assert files["model.safetensors"] == (tiny_run / "checkpoints/latest/model.safetensors").read_bytes()
    drawn = vae_process("sample", "hf://me/squares", "-n", 3, "-o", "a.npz", **hub)
    assert drawn.code == 0, drawn.err
    assert vae("sample", tiny_run, "-n", 3, "-o", "b.npz", "-q").code == 0
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert np.array_equal(a["images"], b["images"])
    # What was fetched is used when the hub may not be asked; a file that has changed on the way is not.
    again = vae_process("info", "hf://me/squares", "--json", **{**hub, "VAE_OFFLINE": "1"})
    assert again.code == 0 and json.loads(again.out)["step"] == 30, again.err
    Hub.repositories["me/squares"]["model.safetensors"] = files["model.safetensors"][:-1] + b"\x55"
    spoiled = vae_process("sample", "hf://me/squares", "-o", "c.png", **{**hub, "VAE_CACHE_DIR": str(tmp_path / "n")})
    assert spoiled.code == 3 and "damaged" in spoiled.err and not Path("c.png").exists()


@pytest.mark.slow
def test_the_hub_says_no(tiny_run: Path, hub: dict[str, str], vae_process: Callable[..., Result]) -> None:
    without = vae_process("push", tiny_run, "me/squares", **{**hub, "HF_TOKEN": ""})
    assert without.code == 2 and "no token" in without.err, without.err
    wrong = vae_process("push", tiny_run, "me/squares", **{**hub, "HF_TOKEN": "another"})
    assert wrong.code == 5 and "401" in wrong.err and not Hub.repositories, wrong.err
    absent = vae_process("info", "hf://me/nothing", **hub)
    assert absent.code == 3 and "no such repository" in absent.err, absent.err
    away = vae_process("info", "hf://me/nothing", **{**hub, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert away.code == 5 and "cannot be reached" in away.err, away.err
    Hub.repositories["me/other"] = {"README.md": b"hello"}
    other = vae_process("info", "hf://me/other", **hub)
    assert other.code == 3 and "holds no model.safetensors" in other.err, other.err
    for done in (without, wrong, absent, away, other):
        assert "Traceback" not in done.err


def test_other_kinds_of_models(vae: Callable[..., Result]) -> None:
    """A code without variances: the encoder gives the code alone."""
    settings = [arg for arg in TINY if arg != "beta-vae"]
    assert (
        vae("train", "--model", "autoencoder", *settings, "--steps", 2, "--runs-dir", "runs", "--name", "a").code == 0
    )
    done = vae("export", "runs/a", "--format", "torch", "-o", "out", "--json", "-q")
    assert done.code == 0, done.err
    assert json.loads(done.out)["programs"]["encoder"]["outputs"] == ["mean"]
