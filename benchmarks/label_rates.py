"""How much labels give: SemafoVAE at several shares of labels, beside a beta-VAE of the same net without any. Prints a
table; writes a figure.

    python benchmarks/label_rates.py mnist DIR [--rates 0.002,0.004,0.01,0.05,0.1,0.5] [--seeds 0-1] [--figure F.svg]
    python benchmarks/label_rates.py sprites.npz DIR [--rates 0.02,0.05,0.1,0.5] ...       (benchmarks/sprites.py)

MNIST is trained by the preset semafo-mnist-small. The sprites have four factors, and positions of 32 values each: of
fewer labels than a fiftieth some have none, which training refuses. Control is how often an image that was asked for is
read as what was asked by one who learned all labels, label how often a label is read from an image, both the mean over
factors; DCI is disentanglement of the latents of the image alone (z0), not of the labels' levels. All numbers are of
held-out images; runs that are there are not trained again, and refused where they are of another number of steps.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from semafo import row, vae

from vaecli.report import comparison
from vaecli.training import seeds as several_seeds

SPRITES = ("--latent-dim", 10, "-S", "model.net={name: mlp, hidden: [300, 300]}", "--batch-size", 64, "--lr", 1e-3)
# Positions are many labels: they are learned before unknown ones are guessed, and no gradient goes through a guess, or
# all images end with the same label, which the nets above it find easiest.
LABELLED = ("-S", "model.warm_up=1500", "-S", "model.labels=hard", "-S", "model.prior=deep")


def trained(data: str, rate: float | None, steps: int) -> tuple[object, ...]:
    """The arguments of `vae train`."""
    share = () if rate is None else ("-S", f"data.labelled={rate:g}")
    if data == "mnist":
        return ("-p", "beta-vae-mnist-matched-small" if rate is None else "semafo-mnist-small", *share)
    model = ("--model", "beta-vae", "--beta", 0.1) if rate is None else ("--model", "semafo-vae", *LABELLED)
    return ("--data", f"array:{data}", *model, *SPRITES, *share, "--steps", steps)


def measured(data: str, folder: Path, rate: float | None, seed: int, steps: int) -> dict[str, float | None]:
    name = f"{Path(data).stem}-vae-s{seed}" if rate is None else f"{Path(data).stem}-labels-{rate:g}-s{seed}"
    kept = folder / f"{name}.json"
    if not kept.exists():
        placed = ("--runs-dir", folder, "--name", name, "--resume", "auto")
        vae("train", *trained(data, rate, steps), "--seed", seed, *placed)
        wanted = ("--split", "test", "--samples", 10000) if data == "mnist" else ("--split", "val")
        more = ("--metrics", "dci") if rate is None and data != "mnist" else () if rate is None else ("--control",)
        kept.write_text(vae("analyze", folder / name, *wanted, *more, "--json"))
    record = json.loads(kept.read_text())
    if data != "mnist" and record["step"] != steps:
        sys.exit(f"{kept} is of {record['step']:,} steps")
    return numbers(record)


def numbers(record: dict[str, Any]) -> dict[str, float | None]:
    control = record.get("control") or {}
    asked = [factor["share"] for factor in control.get("control_accuracy") or []]
    read = [factor["q"]["share"] for factor in control.get("label_accuracy") or []]
    found = {
        "control": statistics.mean(asked) if asked else None,
        "label": statistics.mean(read) if read else None,
        "E log p(x|z)": -record["totals"]["recon"],
    }
    if record.get("samples"):
        return {**found, "FCD": record["samples"]["fcd"]}
    metrics = control.get("disentanglement") or record["metrics"]
    dci = next(metric["values"]["disentanglement"] for metric in metrics if metric["name"] == "dci")
    return {**found, "DCI": dci}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rates")
    parser.add_argument("--seeds", default="0-1")
    parser.add_argument("--steps", type=int, default=8000, help="of the sprites")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    usual = "0.002,0.004,0.01,0.05,0.1,0.5" if given.data == "mnist" else "0.02,0.05,0.1,0.5"
    rates, seeds = [None, *map(float, (given.rates or usual).split(","))], several_seeds.parse(given.seeds)
    given.folder.mkdir(exist_ok=True)
    found = {rate: [measured(given.data, given.folder, rate, seed, given.steps) for seed in seeds] for rate in rates}
    columns = list(found[None][0])
    print("| labels | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for rate, several in found.items():
        print(row("none (beta-vae)" if rate is None else f"{rate:.1%}", several))
    if given.figure:
        given.figure.write_text(figure({rate: several for rate, several in found.items() if rate is not None}))


def figure(found: dict[float, list[dict[str, float | None]]]) -> str:
    """A panel a number over the shares of labels; seeds as points, their mean as a line, its deviation as a bar."""
    panels = []
    for column in next(iter(found.values()))[0]:
        seeds = [[value for one in several if (value := one[column]) is not None] for several in found.values()]
        sd = [statistics.stdev(values) if len(values) > 1 else None for values in seeds]
        panels.append(comparison.Panel(column, seeds, [statistics.mean(values) for values in seeds], sd))
    exponents = [math.log10(100 * rate) for rate in found]
    return comparison.svg(panels, "labels: 10^x % of the images", exponents, [f"{rate:.1%}" for rate in found])


if __name__ == "__main__":
    main()
