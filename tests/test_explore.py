"""The explorer: what sliders show is what `vae decode` gives, in the page alone (Node, Chromium) and by the server."""

import base64
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_report_browser import CHROMIUM, Browser, complaints
from torch import nn

from vaecli import data
from vaecli.analysis import analyze
from vaecli.batch import DataInfo
from vaecli.commands import report
from vaecli.data import squares
from vaecli.models import build
from vaecli.nets import coders
from vaecli.registry import load
from vaecli.report import explorer, offline
from vaecli.speed import fast
from vaecli.training import checkpoint

CONNECT = socket.socket.connect  # which tests are kept from
NODE = shutil.which("node")
ASSETS = Path(explorer.__file__).parent
TOLERANCE = 5e-4


def in_node(layers: list[dict[str, Any]], z_ND: np.ndarray) -> list[np.ndarray]:
    """What `nets.js` makes of codes."""
    script = (
        (ASSETS / "nets.js").read_text()
        + """
    let text = ""; process.stdin.on("data", (c) => { text += c; }); process.stdin.on("end", () => {
      const {layers, codes} = JSON.parse(text); ready(layers);
      console.log(JSON.stringify(codes.map((z) => Array.from(decoded(layers, z).data)))); });"""
    )
    asked = json.dumps({"layers": layers, "codes": z_ND.tolist()})
    done = subprocess.run([NODE, "-e", script], input=asked, capture_output=True, text=True, check=True)  # type: ignore[list-item]
    return [np.array(image) for image in json.loads(done.stdout)]


NETS: list[tuple[Any, tuple[int, int, int]]] = [
    ({"name": "mlp", "hidden": [7, 9], "activation": name}, (1, 5, 6))
    for name in ("relu", "tanh", "elu", "silu", "leaky-relu", "softplus")
] + [
    ({"name": "higgins-fc"}, (1, 4, 4)),
    ({"name": "burgess"}, (1, 64, 64)),
    ({"name": "burgess"}, (3, 32, 32)),
    ({"name": "locatello"}, (1, 64, 64)),
    ({"name": "keras"}, (1, 28, 28)),
    ({"name": "conv", "width": 8, "dense": 16}, (3, 33, 30)),
    ({"name": "pooling", "widths": [6, 4]}, (1, 16, 12)),
    ({"name": "resnet", "width": 4, "blocks": 2}, (3, 13, 22)),
    ({"name": "resnet", "width": 4}, (1, 40, 36)),
]


@pytest.mark.skipif(NODE is None, reason="no Node")
@pytest.mark.parametrize(("net", "shape"), NETS, ids=[f"{n['name']}-{n.get('activation', s[1])}" for n, s in NETS])
def test_every_net_gives_the_same_numbers_in_the_page(net: Any, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    config = load("model", "vae").Config(latent_dim=4, net=net, likelihood="bernoulli")
    model = build(config, DataInfo("toy", shape, 10)).eval()
    for module in model.modules():  # at the start many are 0
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    z_ND = torch.randn(3, 4)
    with torch.inference_mode():
        wanted = model.image({"z": z_ND}).flatten(1).numpy()
    found = np.stack(in_node(offline.layers_of(model), z_ND.numpy()))
    assert wanted.std() > 1e-4
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    fast.accelerate(model)  # moves activations into the layers before them
    found = np.stack(in_node(offline.layers_of(model), z_ND.numpy()))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_decoder_that_does_more_than_its_layers_is_refused() -> None:
    info = DataInfo("toy", (1, 16, 16), 10)
    config = load("model", "vae").Config(latent_dim=3, net={"hidden": [5]}, likelihood="bernoulli")
    model = build(config, info).eval()
    model.image = lambda values: torch.sigmoid(model.decoder(values["z"])) ** 2  # type: ignore[method-assign]
    with pytest.raises(offline.Unwritable, match="more of its decoder's output"):
        offline.layers_of(model)
    model = build(config, info)
    model.decoder.append(nn.BatchNorm2d(1))  # type: ignore[operator]
    with pytest.raises(offline.Unwritable, match="BatchNorm2d"):
        offline.layers_of(model)
    labelled = load("model", "vq-vae")
    with pytest.raises(offline.Unwritable, match=r"vq-vae decodes from .* \(codes\)"):
        offline.layers_of(build(labelled.Config(**labelled.Config.tiny), info))


def test_names_cannot_leave_the_data() -> None:
    hostile = "</script><script>window.hacked = 1</script>"
    slider = explorer.Slider(hostile, "z", hostile, -3, 3)
    page = explorer.render(explorer.Exploration(hostile, hostile, (1, 2, 2), [slider], [0.0], [0.0], []))
    assert page.count("<script") == 2 and "<script>window" not in page
    assert "connect-src 'self'" in page and "default-src 'none'" in page
    alone = explorer.render(explorer.Exploration("t", "s", (1, 2, 2), [slider], [0.0], [0.0], [], net=[]))
    assert "connect-src" not in alone


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explored")
    command = [sys.executable, "-m", "vaecli", "train", "-q", "--data", "squares", "--model", "vae", "--steps", "20"]
    command += ["--latent-dim", "4", "-S", "model.net=resnet", "--runs-dir", str(folder), "--name", "r"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "r"


def vae(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vaecli", *map(str, args)], cwd=cwd, capture_output=True, text=True
    )  # fmt: skip


def decoded(run: Path, names: list[str], values: list[float]) -> np.ndarray:
    """What `vae decode` gives."""
    (run.parent / "z.csv").write_text(",".join(names) + "\n" + ",".join(map(repr, values)) + "\n")
    done = vae("decode", run, "z.csv", "-o", "out.npz", "--force", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    return np.load(run.parent / "out.npz")["images"][0].ravel()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    started = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


def moves(browser: Browser, run: Path) -> None:
    """A slider is moved by hand, and the picture is what `vae decode` makes of the code that the page tells."""
    shown = "Number(document.getElementById('explorer').dataset.shown || 0)"
    wait = f"new Promise((go) => {{const at = () => {shown} > BEFORE ? go(1) : setTimeout(at, 20); at();}})"
    browser.js(wait.replace("BEFORE", "0"))
    first = browser.js("document.getElementById('explorer').pixels()")
    before = browser.js(shown)
    browser.js(
        "{const s = document.querySelector('.slider input'); s.value = 2.25;"
        "s.dispatchEvent(new Event('input', {bubbles: true}))}"
    )
    browser.js(wait.replace("BEFORE", str(before)))
    names, code = browser.js("document.querySelector('textarea').value").split("\n")
    values = browser.js("Array.from(document.getElementById('explorer').values)")
    assert sorted(map(float, code.split(","))) == pytest.approx(sorted(values), rel=1e-6) and 2.25 in values
    pixels = np.array(browser.js("document.getElementById('explorer').pixels()"))
    assert np.abs(pixels - np.array(first)).max() > 1e-6
    np.testing.assert_allclose(pixels, decoded(run, names.split(","), [*map(float, code.split(","))]), atol=TOLERANCE)
    drawn = browser.js(
        "{const c = document.querySelector('canvas');"
        "Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)}".replace(
            "{", "(() => {", 1
        ).replace("Array.from(c.get", "return Array.from(c.get")
        + ")()"
    )
    np.testing.assert_allclose(np.array(drawn)[::4], np.rint(pixels.clip(0, 1) * 255), atol=1)


def test_the_page_alone_shows_what_decode_gives(run: Path, browser: Browser) -> None:
    done = vae("explore", run, "-o", "page.html", "--force", cwd=run.parent)
    assert (done.returncode, done.stdout) == (0, "page.html\n"), done.stderr
    browser.resize(1200)
    browser.open(run.parent / "page.html")
    moves(browser, run)
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert not [url for url in asked if url.startswith("http")]
    assert not [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    for width in (360, 600, 800, 1200, 1600):
        browser.resize(width)
        assert browser.js("document.documentElement.scrollWidth") <= width


def test_in_a_report_behind_a_button(run: Path, browser: Browser, tmp_path: Path) -> None:
    done = vae("report", run, "-o", tmp_path / "report.html", "--metrics", "none", "--limit", 200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    browser.open(tmp_path / "report.html")
    assert browser.js("document.querySelectorAll('#explorer canvas').length") == 0
    browser.js("document.getElementById('open').click()")
    moves(browser, run)
    assert complaints(browser) == []


def test_a_report_says_why_it_has_no_explorer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = checkpoint.load(run, torch.device("cpu"))
    made = analyze.analyze(loaded, data.load(loaded.config.data, loaded.info), None, 50)
    monkeypatch.setattr(report, "CARRIED", 10)
    with torch.inference_mode():
        shown, why = report._exploration(made, full=False)
        assert shown is None and why is not None and "vae explore" in why
        assert report._exploration(made, full=True)[0] is not None


class Served:
    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-m", "vaecli", "explore", str(run), "--no-browser", "-q"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def ask(self, path: str, body: bytes | None = None, host: str | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(self.url + path if "://" not in path else path, data=body)
        if host is not None:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Served]:
    made = Served(run)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{16,}/", made.url), made.process.communicate()
    yield made
    made.process.terminate()
    assert made.process.wait(20) == 143


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server on this machine may be asked."""
    monkeypatch.setattr(socket.socket, "connect", CONNECT)


@pytest.mark.usefixtures("local")
def test_the_server_decodes(served: Served, run: Path) -> None:
    status, body = served.ask("decode", json.dumps({"values": [0.5, -1.0, 2.0, 0.25]}).encode())
    pixels = np.frombuffer(base64.b64decode(json.loads(body)["pixels"]), "<f4")
    page = served.ask("")[1].decode()
    columns = json.loads(page.split('id="data">')[1].split("</script>")[0])["columns"]
    assert status == 200
    code = [[0.5, -1.0, 2.0, 0.25][slider] for _, slider, _ in columns]
    np.testing.assert_allclose(pixels, decoded(run, [name for name, _, _ in columns], code), atol=1e-6)


@pytest.mark.usefixtures("local")
def test_only_who_knows_the_token_is_answered(served: Served) -> None:
    root = served.url.rsplit("/", 2)[0]
    assert served.ask(root + "/")[0] == served.ask(root + "/decode", b"{}")[0] == 404
    assert served.ask(served.url + "../x")[0] == 404
    assert served.ask("", host="example.org")[0] == 404  # a page elsewhere whose name leads here
    for wrong in (b"", b"[]", b'{"values": [1]}', b'{"values": "abcd"}', b'{"values": [1, 2, 3, NaN]}', b"\xff"):
        assert served.ask("decode", wrong)[0] == 400
    long = b"0" * (32 << 20)  # more than the socket holds: unread, the connection is reset before the answer is had
    assert served.ask("decode", long)[0] == 413
    assert served.ask(root + "/decode", long)[0] == 404
    boastful = http.client.HTTPConnection(root.split("/")[2], timeout=60)
    boastful.request("POST", "/" + served.url.split("/")[3] + "/decode", headers={"Content-Length": "9" * 5000})
    assert boastful.getresponse().status == 413


def test_the_served_page_shows_what_decode_gives(served: Served, run: Path, browser: Browser) -> None:
    browser.resize(1200)
    browser.events.clear()
    browser("Page.navigate", url=served.url)
    while not any(event["method"] == "Page.loadEventFired" for event in browser.events):
        browser.events.append(browser.message())
    moves(browser, run)


def test_bad_input_is_one_line(run: Path, served: Served) -> None:
    port = served.url.split(":")[2].split("/")[0]
    taken = vae("explore", run, "--port", port, "--no-browser", cwd=run.parent)
    assert taken.returncode == 5 and f"port {port}" in taken.stderr
    for args, code in ((["-o", "x.pdf"], 2), (["-o", "nowhere/x.html"], 3), (["-o", "page.html"], 2)):
        (run.parent / "page.html").touch()
        done = vae("explore", run, *args, cwd=run.parent)
        assert done.returncode == code and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    assert not (run.parent / "x.pdf").exists()


def test_blocks_are_those_of_the_resnet() -> None:
    """`offline` names a private class of the nets."""
    assert issubclass(coders._Block, nn.Module) and squares.Config is not None
