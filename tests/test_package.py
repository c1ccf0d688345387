"""A wheel, installed away from the checkout, lists and runs the presets."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_lists_and_runs_presets(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    wheel = next(tmp_path.glob("*.whl"))
    inside = set(zipfile.ZipFile(wheel).namelist())
    presets = {path.name for path in (ROOT / "presets").glob("*.yaml")}
    assert {f"vaecli/_presets/{name}" for name in presets} <= inside
    assert {"vaecli/report/page.css", "vaecli/report/page.js"} <= inside
    assert not any(name.startswith(("tests/", "presets/")) for name in inside)

    # A fresh environment that borrows the installed libraries, but not this checkout.
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    site = next(place.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = place / "bin" / "python"

    def vae(*args: str) -> str:
        done = subprocess.run(
            [python, "-m", "vaecli", *args], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import vaecli; print(vaecli.__file__)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert str(site) in where.stdout
    listed = vae("presets", "-q").split()
    assert {f"{name}.yaml" for name in listed} == {name for name in presets if not name.startswith("_")}
    run = vae(
        "train", "--preset", "beta-vae-dsprites", "--steps", "2", "-S", "model.net={name: mlp, hidden: [8]}"
    ).strip()
    assert vae("info", run, "--json").startswith("{")
