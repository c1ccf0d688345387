"""The benchmark scripts run, for a moment; what they measure is not judged here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(script: str, *args: object) -> str:
    line = [sys.executable, ROOT / "benchmarks" / script, *map(str, args)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_speed(tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    out = run(
        "speed.py", "--net", "burgess", "--rounds", 2, "--seconds", 1.5, "--loops", "vae,plain,tuned", "--json", file
    )
    found = json.loads(file.read_text())["results"]["burgess"]
    assert found.keys() == {"vae", "plain", "tuned"} and found["plain"]["ratio"] == 1.0
    assert all(r["images_per_second"] > 0 and 0.1 < r["peak_gb"] < 8 for r in found.values())
    assert "| burgess | `vae train` |" in out


@pytest.mark.slow
def test_folder() -> None:
    out = run("folder.py", "--images", 8, "--rounds", 1)
    assert re.findall(r"^(jpg|png): ours [\d,]+ images/s", out, flags=re.M) == ["jpg", "png"]
