"""How much labels give: SemafoVAE on small sprites (benchmarks/sprites.py) at several shares of labels, beside a
beta-VAE of the same net without any. Prints a table; writes a figure.

    python benchmarks/label_rates.py sprites.npz DIR [--rates 0.02,0.05,0.1,0.5] [--seeds 0-1] [--figure rates.svg]

Control accuracy is the mean over the four factors of how often an image that was asked for is read as what was asked,
by a classifier trained on all labels; disentanglement is that of DCI. All numbers are of held-out images. Of fewer
labels than a fiftieth some of the 32 positions have none, which training refuses.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from semafo import vae

from vaecli.report import comparison
from vaecli.training import seeds as several_seeds

SAME = ("--latent-dim", 10, "-S", "model.net={name: mlp, hidden: [300, 300]}", "--batch-size", 64, "--lr", 1e-3)
COLUMNS = ("control accuracy", "label accuracy", "disentanglement", "E log p(x|z)")


def measured(data: Path, folder: Path, rate: float | None, seed: int, steps: int) -> dict[str, float | None]:
    name = f"vae-s{seed}" if rate is None else f"labels-{rate:g}-s{seed}"
    model: tuple[object, ...] = ("--model", "beta-vae", "--beta", 0.1)
    if rate is not None:
        model = ("--model", "semafo-vae", "-S", "model.warm_up=300", "-S", f"data.labelled={rate:g}")
    kept = folder / f"{name}.json"
    if not kept.exists():
        placed = ("--runs-dir", folder, "--name", name, "--resume", "auto")
        vae("train", "--data", f"array:{data}", *model, *SAME, "--steps", steps, "--seed", seed, *placed)
        asked = ("--split", "val", "--metrics", "dci", "--json", *([] if rate is None else ["--control"]))
        kept.write_text(vae("analyze", folder / name, *asked))
    return numbers(json.loads(kept.read_text()))


def numbers(record: dict[str, Any]) -> dict[str, float | None]:
    control = record.get("control") or {}
    asked = [factor["share"] for factor in control.get("control_accuracy") or []]
    read = [factor["q"]["share"] for factor in control.get("label_accuracy") or []]
    dci = next(metric["values"]["disentanglement"] for metric in record["metrics"] if metric["name"] == "dci")
    values = (statistics.mean(asked) if asked else None, statistics.mean(read) if read else None)
    return dict(zip(COLUMNS, (*values, dci, -record["totals"]["recon"]), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rates", default="0.02,0.05,0.1,0.5")
    parser.add_argument("--seeds", default="0-1")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    rates, seeds = [None, *map(float, given.rates.split(","))], several_seeds.parse(given.seeds)
    found = {rate: [measured(given.data, given.folder, rate, seed, given.steps) for seed in seeds] for rate in rates}
    print("| labels | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for rate, several in found.items():
        cells = []
        for column in COLUMNS:
            values = [value for one in several if (value := one[column]) is not None]
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}" if values else "")
        print(f"| {'none' if rate is None else f'{rate:.1%}'} | " + " | ".join(cells) + " |")
    if given.figure:
        given.figure.write_text(figure({rate: several for rate, several in found.items() if rate is not None}))


def figure(found: dict[float, list[dict[str, float | None]]]) -> str:
    """A panel a number over the shares of labels, each of which has a place: seeds as points, mean and deviation."""
    panels = []
    for column in COLUMNS:
        seeds = [[value for one in several if (value := one[column]) is not None] for several in found.values()]
        sd = [statistics.stdev(values) if len(values) > 1 else None for values in seeds]
        panels.append(comparison.Panel(column, seeds, [statistics.mean(values) for values in seeds], sd))
    return comparison.svg(panels, "share of labels", None, [f"{rate:.1%} of the labels" for rate in found])


if __name__ == "__main__":
    main()
