"""The benchmark scripts run, for a moment; what they measure is not judged here."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def run(script: str, *args: object) -> str:
    line = [sys.executable, ROOT / "benchmarks" / script, *map(str, args)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
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


@pytest.mark.long
def test_larger_than_memory(tmp_path: Path) -> None:
    out = run(
        "larger_than_memory.py", tmp_path, "--gb", 0.01, "--images", 600, "--steps", 10, "--rounds", 1,
        "--set", "model.net={name: mlp, hidden: [8]}",
    )  # fmt: skip
    assert "813 images, 0.01 GB: first use" in out
    assert re.search(r"^\| 0.01 GB on disk \| [\d,]+ \| [\d.]+ \(.*\) \| [\d.]+ GB \|$", out, flags=re.M)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
def test_nets(tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    line = ["--nets", "burgess@64,conv@64", "--rounds", 2, "--seconds", 0.2, "--batch-size", 4, "--json", file]
    assert "| conv@64 |" in run("nets.py", *line)
    found = json.loads(file.read_text())["results"]
    assert found["burgess@64"]["ratio"] == 1.0 and found["conv@64"]["wanted"] == 0.8
    assert all(r["lowest"] <= r["ratio"] <= r["highest"] for r in found.values())


def test_photos_keeps_what_is_held_out_apart(tmp_path: Path) -> None:
    """Pieces to train on are of the left of each photograph, those held out of its right-hand quarter."""
    gradient = np.tile(np.arange(200, dtype=np.uint8), (120, 1))
    (tmp_path / "in").mkdir()
    for name in ("china.jpg", "flower.jpg"):
        Image.fromarray(gradient).convert("RGB").save(tmp_path / "in" / name, format="PNG")
    run("photos.py", "sklearn", tmp_path / "out", "--side", 16, "-n", 40, "--images", tmp_path / "in")
    for part, n, low, high in (("train", 40, 0, 150), ("val", 4, 150, 200)):
        files = sorted((tmp_path / "out" / part).glob("*.png"))
        assert len(files) == n
        x = np.stack([np.asarray(Image.open(file)) for file in files])
        assert x.shape == (n, 16, 16, 3) and low <= x.min() and x.max() < high


def test_page_of_rows(tmp_path: Path) -> None:
    """A record is taken in, and stands in the table of its kind and with its numbers; others are said not to be run."""
    record = {
        "row": "linear-vae-digits", "kind": "exact", "summary": "", "source": "closed form", "published": {},
        "obtained": {
            "elbo_10": {"mean": 17.45, "sd": None, "values": [17.45]},
            "elbo_5": {"mean": 8.0, "sd": 0.1, "values": [7.9, 8.1]},
        },
        "checks": [
            {"value": "elbo_10", "expected": 17.4519, "tolerance": 0.05, "holds": True},
            {"value": "elbo_5", "expected": 8.9, "tolerance": 0.05, "holds": False},
            {"less": ["elbo_5", "elbo_10"], "by": 2, "holds": True},
        ],
        "verdict": "falls short", "complete": True, "seeds": [0, 1], "settings": {}, "command": "",
        "data": [{"name": "digits", "source": {"kind": "scikit-learn"}}], "seconds": 1234.5, "versions": {"vae": "1"},
    }  # fmt: skip
    (tmp_path / "printed.json").write_text(json.dumps({"schema": 1, "rows": [record]}))
    folder = tmp_path / "records"
    page = run(
        "reproduce.py", "--record", tmp_path / "printed.json", "--commit", "abc1234", "--records", folder, "-o", "-"
    )
    stored = json.loads((folder / "linear-vae-digits.json").read_text())
    assert stored["commit"] == "abc1234" and "cores" in stored["machine"]
    assert "1 were run: 0 hold, 1 fall short, 0 are not judged" in page.replace("\n", " ")
    assert re.search(r"\| \[linear-vae-digits\].*\| \*\*falls short\*\* \| 2 \| 1,23[45] \|", page)
    assert "| elbo_10 | 17.4519 | 0.05 | 17.45 | holds |" in page
    assert "| elbo_5 | 8.9 | 0.05 | 8 +- 0.1 | falls short |" in page
    assert "| elbo_5 + 2 <= elbo_10 |  |  |  | holds |" in page
    assert "commit abc1234" in page and "digits (scikit-learn)" in page
    assert re.search(r"\| mnist-vae-pytorch \|.*\| not run \(2m\) \|", page)
    script = (ROOT / "benchmarks" / "reproduce.py").read_text()
    listed = re.findall(r'"([a-z0-9-]+)"', script.partition("CLAIMS = {")[2].partition("# fmt")[0])
    assert len(listed) > 20 and not set(listed) - {path.stem for path in (ROOT / "presets/reproduce").glob("*.yaml")}
    linear = next(line for line in page.splitlines() if line.startswith("| linear VAEs"))
    assert linear.split(" | ")[1:4] == ["", "[linear-vae-digits](#linear-vae-digits)", ""]
    assert "linear-vae-mnist, " in linear
    for title in ("Exact", "Re-runs", "Directions", "Published"):
        assert f"## {title}" in page


def test_checks() -> None:
    out = run("checks.py", "--rounds", 2, "--steps", 3)
    assert re.findall(r"^(with checks|without, once more): [\d.]+ times", out, flags=re.M) == [
        "with checks", "without, once more",
    ]  # fmt: skip


def test_numbers_are_what_their_columns_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of records whose values are known: DCI is that of z0 where there are labels' levels beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import higgins_table
    import label_rates
    import mnist_family

    def dci(value: float) -> list[dict[str, object]]:
        return [{"name": "mig", "values": {"mig": 9.0}}, {"name": "dci", "values": {"disentanglement": value}}]

    read = [{"q": {"share": 0.5}}, {"q": {"share": 0.7}}]
    control = {
        "control_accuracy": [{"share": 0.2}, {"share": 0.4}],
        "label_accuracy": read,
        "disentanglement": dci(0.3),
    }
    record = {"totals": {"recon": 12.0}, "metrics": dci(0.9), "control": control}
    found = label_rates.numbers(record)
    assert found == {"control": pytest.approx(0.3), "label": pytest.approx(0.6), "E log p(x|z)": -12.0, "DCI": 0.3}
    assert label_rates.numbers({"totals": {"recon": 12.0}, "metrics": dci(0.9)})["DCI"] == 0.9

    def scores(higgins: float, mig: float) -> dict[str, Any]:
        of = {"beta-vae-higgins": {"accuracy": higgins, "best_half": higgins + 0.1}, "mig": {"mig": mig}}
        of["beta-vae-converged"] = {"accuracy": 0.75}
        return {"step": 10, "metrics": [{"name": name, "values": values} for name, values in of.items()]}

    line = higgins_table.line("vae", "10", [scores(0.5, 0.1), scores(0.7, 0.3)])
    cells = "60.0 ± 14.1 | 70.0 ± 14.1 | 75.0 ± 0.0 | 0.200 ± 0.141 | 2 | 10"
    assert line == f"| vae | 61.58 ± 0.5 | {cells} |"
    without = scores(0.5, 0.1)
    without["metrics"] = [one for one in without["metrics"] if one["name"] != "beta-vae-converged"]
    assert (
        higgins_table.line("raw pixels", "", [without])
        == "| raw pixels | 45.75 ± 0.8 | 50.0 | 60.0 |  | 0.100 | 1 |  |"
    )
    assert higgins_table.steps_of("infogan", [scores(0, 0)]) == "10 of 288,000 (InfoGAN-CR)"

    totals = {"elbo": -100.0, "recon": 80.0, "kl": 20.0, "active_units": 3, "latents": 5}
    samples = {"fcd": 7.5, "precision": 0.5, "recall": 0.25, "drawn_from": "the prior"}
    line = mnist_family.line("vae-mnist", {"step": 9, "totals": totals, "nll": None, "samples": samples}, 20)
    assert line == "| vae-mnist | 9 of 20 | -100.00 | 80.00 | 20.00 |  |  | 3 of 5 | 7.5 | 0.50 | 0.25 | the prior |"
    assert mnist_family.whole("two-stage-vae-mnist") == 50_000


def test_what_a_preset_reached_is_put_into_its_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import presets

    header = "# A title\n#\n# Expect: not measured yet. The paper reports 99.3 %; look\n#   at the latents.\n"
    header += "# Time: not measured yet.\n"
    found = {"elbo": -100.04, "recon": 80.0, "kl": 20.04, "active_units": 3, "latents": 5}
    text = presets.reached({"totals": found})
    assert text == "ELBO -100.0, reconstruction 80.0, KL 20.0 nats, 3 of 5 latents active"
    assert presets.reached({"totals": {"active_units": 5, "latents": 5}}) == "all 5 latents active"
    written = presets.headed(header + "model:\n", f"short: {text}.", f"{presets.duration(5400)}.")
    said, time = re.findall(r"# (?:Expect|Time): (.*\n(?:#   .*\n)*)", written)
    assert " ".join(said.replace("#", "").split()) == f"short: {text}. The paper reports 99.3 %; look at the latents."
    assert time == "1.5 hours.\n" and written.startswith("# A title\n#\n") and written.endswith("\nmodel:\n")
    assert presets.headed(written, "again", "again") == written
    assert presets.duration(80) == "80 seconds" and presets.duration(3 * 86400) == "3.0 days"

    (tmp_path / "run.json").write_text(json.dumps({"step": 4, "seconds": 10.0}))
    lines = [{"kind": "train", "step": 10, "seconds": 9.0}, {"kind": "val", "step": 10}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert presets.step_time(tmp_path) == 2.5
    lines.append({"kind": "train", "step": 30, "seconds": 10.0})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert presets.step_time(tmp_path) == 0.05
