"""What a terminal shows: commands behind a pseudo-terminal of 60, 80 and 120 columns, read from the screen.

`Screen` is as much of a terminal as rich drives (ECMA-48): text that wraps at the last column, carriage return, line
feed, cursor up, erase in line. What was overwritten or erased is not on it.
"""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

WIDTHS = (60, 80, 120)
NARROW = [60, 80, pytest.param(120, marks=pytest.mark.long)]  # what fits there fits in more


class Screen:
    def __init__(self, width: int) -> None:
        self.width, self.rows, self.x, self.y = width, [[]], 0, 0
        self.wrapped = 0  # lines that the terminal had to break by itself
        self.bars: list[str] = []  # lines that were redrawn, as they stood

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]|\x1b", text):
            if len(part) > 1:
                self._control(part)
            elif part == "\r":
                self.x = 0
            elif part == "\n":
                self._down()
            elif part >= " ":
                if self.x == self.width:
                    self.wrapped += 1
                    self._down()
                    self.x = 0
                row = self.rows[self.y]
                row.extend(" " * (self.x + 1 - len(row)))
                row[self.x] = part
                self.x += 1

    def _down(self) -> None:
        self.y += 1
        while len(self.rows) <= self.y:
            self.rows.append([])

    def _control(self, code: str) -> None:
        number = int(re.sub(r"\D", "", code) or 1)
        if code.endswith("A"):
            self.y = max(0, self.y - number)
        elif code.endswith("K"):
            self.bars.append("".join(self.rows[self.y]))
            self.rows[self.y] = []

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]


def on_screen(width: int, *args: str, cwd: Path) -> Screen:
    """`vae ARGS` in a terminal of that width; its exit code must be 0."""
    main, sub = pty.openpty()
    fcntl.ioctl(sub, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "CI", "FORCE_COLOR")}
    command = [sys.executable, "-m", "vaecli", *args]
    process = subprocess.Popen(
        command, stdin=sub, stdout=sub, stderr=sub, cwd=cwd, env={**env, "TERM": "xterm", "NO_COLOR": "1"}
    )
    os.close(sub)
    content = b""
    while True:
        try:
            chunk = os.read(main, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        content += chunk
    os.close(main)
    screen = Screen(width)
    screen.feed(content.decode())
    assert process.wait() == 0, "\n".join(screen.lines)
    return screen


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in beta."""
    root = tmp_path_factory.mktemp("screen")
    for beta in ("1", "4"):
        command = [sys.executable, "-m", "vaecli", "train", "-q", "--data", "squares", "--model", "beta-vae", "--beta"]
        command += [beta, "--steps", "20", "--runs-dir", "runs", "--name", f"a-name-that-is-long-{beta}"]
        command += ["-S", "model.net=mlp"]
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    return root / "runs"


def numbers_of(table: list[str]) -> set[str]:
    return set(re.findall(r"-?\d+\.\d+", " ".join(table)))


@pytest.mark.parametrize("width", NARROW)
def test_every_number_of_analyze_is_on_the_screen(runs: Path, width: int) -> None:
    run = "a-name-that-is-long-1"
    screen = on_screen(width, "analyze", run, "--metrics", "mig,mig-sup,jemmig,gaussian-total-correlation", cwd=runs)
    assert screen.wrapped == 0, screen.lines
    done = subprocess.run(
        [sys.executable, "-m", "vaecli", "analyze", run, "--metrics", "mig,mig-sup,jemmig", "--json"],
        cwd=runs, check=True, capture_output=True, text=True,
    )  # fmt: skip
    record = json.loads(done.stdout)
    seen = numbers_of(screen.lines)
    for latent in record["latents"]:
        assert {f"{latent[key]:.4f}" for key in ("kl", "mean_mu", "var_mu", "mean_sigma2", "sum")} <= seen
    assert {f"{m['values'][key]:.4f}" for m in record["metrics"] for key in m["values"]} <= seen
    assert any(line.strip().startswith("verdict: ") for line in screen.lines)
    assert not any("0..." in line or "0…" in line for line in screen.lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_compare_are_called_by_what_differs(runs: Path, width: int) -> None:
    screen = on_screen(width, "compare", "a-name-that-is-long-1", "a-name-that-is-long-4", cwd=runs)
    assert screen.wrapped == 0
    heads = [i for i, line in enumerate(screen.lines) if re.match(r" *run {2,}", line)]
    assert heads and (width < 120 or len(heads) == 1)
    for i in heads:  # however many tables there are
        assert screen.lines[i + 2].split()[:2] == ["beta", "1"] and screen.lines[i + 3].split()[:2] == ["beta", "4"]
    assert any("beta 4: a-name-that-is-long-4" in line for line in screen.lines)


@pytest.mark.parametrize("width", NARROW)
def test_listings_fit(runs: Path, width: int) -> None:
    for args in (["runs", "."], ["models", "beta-vae"], ["datasets", "folder", "--options"], ["doctor"], ["metrics"]):
        screen = on_screen(width, *args, cwd=runs)
        assert screen.wrapped == 0, (args, screen.lines)
    shown = " ".join(" ".join(on_screen(width, "runs", ".", cwd=runs).lines).split())
    assert "20/20" in shown and "finished" in shown and "beta 4" in shown


@pytest.mark.parametrize("width", NARROW)
def test_the_bar_shows_step_and_time_left(tmp_path: Path, width: int) -> None:
    args = ["--data", "squares", "--model", "vae", "--steps", "100000", "--max-time", "4s", "-S", "model.net=mlp"]
    screen = on_screen(width, "train", *args, "-S", "train.log_every=5", "--runs-dir", "r", cwd=tmp_path)
    drawn = [line for line in screen.bars if "left" in line]
    assert len(drawn) > 3 and screen.wrapped == 0
    for line in drawn:
        found = re.search(r"([\d,]+)/100,000  (\d+):(\d\d) left", line)
        assert found is not None and int(found[2]) == 0 and int(found[3]) <= 4, line  # towards the time limit
    assert any("elbo" in line for line in drawn)
    assert any(line.startswith("next ") and "--resume" in " ".join(screen.lines) for line in screen.lines)


def test_the_screen_is_a_terminal() -> None:
    screen = Screen(5)
    screen.feed("abcdefg\r\nxyz\r\x1b[2Kq\n")
    assert screen.lines == ["abcde", "fg", "q", ""] and screen.wrapped == 1 and screen.bars == ["xyz"]


def test_train_alone_starts_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "vaecli", "train"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Usage: vae train" in done.stderr + done.stdout and "\\n" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_flag_that_the_model_lacks_names_models_that_have_it(tmp_path: Path) -> None:
    args = ["train", "--preset", "vae-mnist", "--beta", "4"]
    done = subprocess.run([sys.executable, "-m", "vaecli", *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "the model vae has no beta" in done.stderr
    assert "--preset beta-vae-mnist" in done.stderr and "factor-vae" in done.stderr


def test_a_copied_preset_gives_the_same_configuration(tmp_path: Path) -> None:
    def vae(*args: str) -> str:
        command = [sys.executable, "-m", "vaecli", *args]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    for name in ("beta-vae-dsprites", "semafo-mnist-small"):  # the second extends another
        vae("presets", "--copy", name, f"{name}.yaml")
        assert vae("config", "show", "--config", f"{name}.yaml") == vae("config", "show", "--preset", name)
