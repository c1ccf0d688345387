"""The report in a real browser: headless Chromium over its DevTools pipe, so no socket and no library. Skipped without.

https://chromedevtools.github.io/devtools-protocol/: JSON messages that end in NUL, to file descriptor 3 and from 4.
"""

import base64
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, example

from vaecli import report as html

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--no-proxy-server",
)  # fmt: skip
LIMIT = 60.0  # seconds for any answer
WIDTHS = (320, 400, 768, 1600)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


class Browser:
    """A browser with one page. `events` are all messages that answered no command."""

    def __init__(self, executable: str, profile: Path) -> None:
        read_end, write_end = os.pipe(), os.pipe()
        # Above 9, so that moving them to 3 and 4 overwrites neither.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (read_end[0], write_end[1])]
        self.to, self.source = read_end[1], write_end[0]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}', "bash", executable, *FLAGS,
             f"--user-data-dir={profile}", "about:blank"],
            pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (*theirs, read_end[0], write_end[1]):
            os.close(fd)
        self.number, self.rest, self.events, self.session = 0, b"", [], None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def message(self) -> dict[str, Any]:
        deadline = time.monotonic() + LIMIT
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.source], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.source, 1 << 20) if ready else b""
            assert chunk, "the browser does not answer"
            self.rest += chunk
        first, self.rest = self.rest.split(b"\0", 1)
        return json.loads(first)

    def open(self, path: Path) -> None:
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def js(self, expression: str) -> Any:
        """The value of an expression; functions of the page's own only run if its policy lets them."""
        done = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, name: str, media: str = "") -> None:
        self("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": name}])

    def press(self, key: str, code: int, text: str | None = None) -> None:
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self("Input.dispatchKeyEvent", type="keyUp", **about)

    def screenshot(self, path: Path, clip: dict[str, float] | None = None) -> None:
        options: dict[str, Any] = {"captureBeyondViewport": True}
        if clip:
            options["clip"] = {**clip, "scale": 1}
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png", **options)["data"]))

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.to)
        os.close(self.source)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    started = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html.render(example()), encoding="utf-8")
    return path


@pytest.fixture
def page(browser: Browser, report: Path) -> Browser:
    browser.scheme("light")
    browser.resize(1200)
    browser.open(report)
    return browser


def complaints(browser: Browser) -> list[Any]:
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Audits.issueAdded")
    return [event for event in browser.events if event["method"] in kinds]


def test_opens_silently_and_asks_the_network_for_nothing(page: Browser, report: Path) -> None:
    page.js("0")
    asked = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    assert report.as_uri() in asked  # the check can see requests
    assert [url for url in asked if not url.startswith("data:image/png;base64,")] == [report.as_uri()]
    assert complaints(page) == []
    assert page.js("document.characterSet") == "UTF-8" and page.js("document.compatMode") == "CSS1Compat"


def test_the_policy_holds(page: Browser) -> None:
    """What a hostile file could try is refused: scripts, styles, pictures from elsewhere."""
    page.js(
        "document.body.insertAdjacentHTML('beforeend', "
        '\'<img src="https://example.org/x.png"><p style="color:red">\')'
    )
    page.js("{const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)}")
    page.js("new Promise((go) => setTimeout(go, 300))")
    assert page.js("window.ran === undefined")
    refused = [e["params"]["entry"]["text"] for e in page.events if e["method"] == "Log.entryAdded"]
    assert len([text for text in refused if "Content Security Policy" in text]) >= 3, refused


def test_hostile_names_stay_text(page: Browser) -> None:
    assert HOSTILE in page.js("document.body.innerText")
    assert page.js("document.querySelectorAll('script').length") == 1
    assert page.js("document.querySelectorAll('[onerror], [onload], [onclick]').length") == 0
    assert page.js("window.hacked === undefined")


def test_pictures_are_there_and_described(page: Browser) -> None:
    pictures = page.js("Array.from(document.images, (i) => [i.naturalWidth, i.alt])")
    assert len(pictures) > 10
    assert [p for p in pictures if p[0] == 0] == []
    assert [p for p in pictures if len(p[1]) < 30] == []
    charts = page.js("Array.from(document.querySelectorAll('svg[role=img]'), (s) => s.getAttribute('aria-label'))")
    assert len(charts) > 10 and min(map(len, charts)) > 30
    assert page.js("document.querySelectorAll('svg:not([role=img]):not([aria-hidden=true])').length") == 0


COLUMN = """(name) => {
  const table = document.querySelector("#latents table");
  const heads = Array.from(table.tHead.rows[0].cells);
  const i = heads.findIndex((head) => head.textContent === name);
  return {sort: heads.map((head) => head.getAttribute("aria-sort")), at: i,
          cells: Array.from(table.tBodies[0].rows, (row) => row.cells[i].textContent),
          rows: Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent)}}"""


def column(page: Browser, name: str) -> dict[str, Any]:
    return page.js(f"({COLUMN})({json.dumps(name)})")


def values(cells: list[str]) -> list[float]:
    return [float(cell.replace("\N{MINUS SIGN}", "-").partition(" ")[0]) for cell in cells if cell != "n/a"]


def click(page: Browser, name: str) -> None:
    """With the mouse, where the header is."""
    at = column(page, name)["at"]
    box = page.js(
        f"""(() => {{const b = document.querySelectorAll("#latents thead button")[{at}];
        b.scrollIntoView({{block: "center", inline: "center"}}); const r = b.getBoundingClientRect();
        return [r.x + r.width / 2, r.y + r.height / 2]}})()"""
    )
    for kind in ("mousePressed", "mouseReleased"):
        page("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)


def test_a_click_on_a_header_sorts(page: Browser) -> None:
    before = column(page, "KL (nats)")
    assert before["sort"][before["at"]] == "descending"
    assert values(before["cells"]) == sorted(values(before["cells"]), reverse=True)
    click(page, "mean μ")
    falling = column(page, "mean μ")
    assert falling["sort"][falling["at"]] == "descending" and falling["sort"].count("none") == len(falling["sort"]) - 1
    assert values(falling["cells"]) == sorted(values(falling["cells"]), reverse=True)
    assert falling["rows"] != before["rows"] and sorted(falling["rows"]) == sorted(before["rows"])
    click(page, "mean μ")
    rising = column(page, "mean μ")
    assert rising["sort"][rising["at"]] == "ascending"
    assert values(rising["cells"]) == values(falling["cells"])[::-1]
    click(page, "latent")
    assert column(page, "latent")["rows"] == [f"z{d}" for d in range(10)] + ["z10", "z11"]


def test_every_column_can_be_reached(page: Browser) -> None:
    """Those that fit are shown at once, the others when they are asked for."""
    shown = "Array.from(document.querySelectorAll('#latents thead th'), (h) => h.offsetWidth)"
    count = f"{shown}.filter((w) => w > 0).length"
    box = "document.querySelector('#latents .scroll')"
    columns = page.js("document.querySelectorAll('#latents thead th').length")
    assert page.js(count) < columns
    for width in (360, 600, 800, 1200, 1600):
        page.resize(width)
        cut = page.js(f"{box}.scrollWidth - {box}.clientWidth")
        assert width < 800 or cut <= 0, width  # on a telephone the box scrolls
    page.js("document.querySelector('.wide input').click()")
    assert page.js(count) == columns


def test_rows_without_a_number_come_last_both_ways(page: Browser) -> None:
    page.js("document.querySelector('.wide input').click()")
    for direction in (True, False):
        click(page, "gain (nats)")
        cells = column(page, "gain (nats)")["cells"]
        assert cells[-1] == "n/a" and "n/a" not in cells[:-1]
        assert values(cells) == sorted(values(cells), reverse=direction)


def test_the_keyboard_sorts(page: Browser) -> None:
    at = column(page, "var μ")["at"]
    page.js(f"document.querySelectorAll('#latents thead button')[{at}].focus()")
    page.press("Enter", 13, "\r")
    falling = column(page, "var μ")
    assert falling["sort"][at] == "descending"
    assert values(falling["cells"]) == sorted(values(falling["cells"]), reverse=True)
    page.press(" ", 32, " ")
    assert column(page, "var μ")["sort"][at] == "ascending"
    page.press("Tab", 9)
    assert page.js("document.activeElement.textContent") == "mean σ²"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(page: Browser, width: int) -> None:
    page.resize(width)
    assert page.js("document.documentElement.scrollWidth") <= width
    outside = page.js(
        f"""Array.from(document.querySelectorAll("body *")).filter((e) => !e.closest(".scroll, pre, svg")
        && e.getBoundingClientRect().right > {width} + 1).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert outside == []
    # Text in charts is drawn no smaller than it can be read.
    small = page.js(
        """Math.min(...Array.from(document.querySelectorAll("svg text"),
        (t) => t.getBoundingClientRect().height))"""
    )
    assert small >= 9


CONTRAST = """(() => {
  const parse = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || e.closest("script, style")) continue;
    const style = getComputedStyle(e);
    const ink = light(parse(e.closest("svg") ? style.fill : style.color)), paper = light(back(e));
    found.push([(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), e.outerHTML.slice(0, 100)]);
  }
  return found})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(page: Browser, scheme: str) -> None:
    page.scheme(scheme)
    found = page.js(CONTRAST)
    assert len(found) > 300
    assert [entry for entry in found if entry[0] < 4.5] == []


def test_light_and_dark_differ(page: Browser) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        colours[scheme] = [page.js(f"getComputedStyle(document.body).{p}") for p in ("backgroundColor", "color")]
    sums = {k: [sum(map(int, re.findall(r"\d+", c))) for c in pair] for k, pair in colours.items()}
    assert sums["light"][0] > 700 and sums["light"][1] < 150
    assert sums["dark"][0] < 150 and sums["dark"][1] > 600


def test_print_is_light_and_nothing_is_cut_off(page: Browser) -> None:
    page.scheme("dark", media="print")
    back = page.js("getComputedStyle(document.documentElement).getPropertyValue('--back')").strip()
    assert back == "#ffffff"
    assert page.js("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_it_can_be_walked_by_headings_and_tables(page: Browser) -> None:
    levels = page.js("Array.from(document.querySelectorAll('h1, h2, h3'), (h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.js("document.querySelectorAll('table:not(:has(caption))').length") == 0
    assert page.js("document.querySelectorAll('tbody tr:not(:has(th[scope=row]))').length") == 0
    ids = page.js("Array.from(document.querySelectorAll('[id]'), (e) => e.id)")
    links = page.js("Array.from(document.querySelectorAll('nav a'), (a) => a.getAttribute('href'))")
    assert len(set(ids)) == len(ids) and links == [f"#{name}" for name in ids]


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("VAE_DATA_DIR"), reason="needs MNIST: set VAE_DATA_DIR")
def test_mnists_report_fits_five_screens(page: Browser, tmp_path: Path) -> None:
    """Of 1200 by 900 pixels, with all it shows of twenty active latents."""
    vae = [sys.executable, "-m", "vaecli"]
    train = [*vae, "train", "-q", "-p", "vae-mnist", "--steps", "300", "--runs-dir", tmp_path, "--name", "r"]
    subprocess.run(train, check=True, capture_output=True)
    page_at = tmp_path / "report.html"
    subprocess.run([*vae, "report", tmp_path / "r", "-o", page_at], check=True, capture_output=True)
    page.resize(1200)
    page.open(page_at)
    assert 3_000 < page.js("document.documentElement.scrollHeight") <= 5 * 900
