"""Table 1 of the beta-VAE paper (Higgins et al., ICLR 2017) beside what is obtained here: z_diff by the protocol
`higgins`, with and without the paper's dropping of the lower half, by a classifier that has converged, and MIG.

    python benchmarks/higgins_table.py DIR [--seeds 0-4] [NAME=RUN ...] > docs/higgins-table.md

What needs no training is computed for each seed, in DIR, and found again there. Of trained systems (dc-ign, infogan,
vae, beta-vae; several runs of a name are its seeds) the runs are given. The published number of steps is known of none
but InfoGAN, of a later paper. Scores are of 60,000 images drawn at random, of pixels 10,000; of pixels no classifier is
run until it has converged, which on 4,096 columns takes it longer than all else together.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semafo import vae

from vaecli.training import seeds as several_seeds

IMAGES = 60_000
DSPRITES = ("--data", "dsprites", "-S", "data.holdout=0")
FREE = {  # name: its training, the images it is scored on, and whether the seed changes what is scored
    "ground truth": ((*DSPRITES, "--model", "factors"), IMAGES, False),
    "PCA, 10 whitened": (("-p", "pca-white-dsprites"), IMAGES, False),
    "ICA": (("-p", "ica-dsprites"), IMAGES, True),
    "PCA turned at random": (("-p", "pca-white-dsprites", "-S", "model.name=random-rotation"), IMAGES, True),
    "random codes": ((*DSPRITES, "--model", "random"), IMAGES, True),
    "VAE, untrained": (("-p", "beta-vae-dsprites", "--steps", 0), IMAGES, True),
    "raw pixels": ((*DSPRITES, "--model", "pixels"), 10000, False),
}
PAPER = {
    "ground truth": "100", "raw pixels": "45.75 ± 0.8", "PCA, 10 whitened": "84.9 ± 0.4", "ICA": "42.0 ± 10.6",
    "VAE, untrained": "44.14 ± 2.5", "dc-ign": "99.3 ± 0.1", "infogan": "73.5 ± 0.9", "vae": "61.58 ± 0.5",
    "beta-vae": "99.23 ± 0.1",
}  # fmt: skip
METRICS = "beta-vae-higgins,beta-vae-converged,mig"
FEWER = {"raw pixels": "beta-vae-higgins,mig"}
COLUMNS = {
    "z_diff": ("beta-vae-higgins", "accuracy"),
    "better half": ("beta-vae-higgins", "best_half"),
    "converged": ("beta-vae-converged", "accuracy"),
    "MIG": ("mig", "mig"),
}


def scored(run: Path, limit: int, seed: int, kept: Path, metrics: str = METRICS) -> dict[str, Any]:
    """What `vae analyze` says of it with this seed."""
    if not kept.exists():
        asked = ("--split", "all", "--limit", limit, "--seed", seed, "--metrics", metrics, "--json")
        kept.write_text(vae("analyze", run, *asked))
    return dict(json.loads(kept.read_text()))


def free(folder: Path, name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    training, limit, seeded = FREE[name]
    found, short = [], name.replace(",", "").replace(" ", "-")
    for seed in seeds:
        run = folder / f"{short}-s{seed if seeded else 0}"
        if not run.exists():
            vae("train", *training, "--seed", seed, "--runs-dir", folder, "--name", run.name)
        found.append(scored(run, limit, seed, folder / f"{short}-s{seed}.json", FEWER.get(name, METRICS)))
    return found


def line(name: str, steps: str, several: Sequence[dict[str, Any]]) -> str:
    cells = []
    for column, (metric, key) in COLUMNS.items():
        values = [one["values"][key] for record in several for one in record["metrics"] if one["name"] == metric]
        if not values:
            cells.append("")
            continue
        factor, digits = (1, 3) if column == "MIG" else (100, 1)
        spread = f" ± {factor * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{factor * statistics.mean(values):.{digits}f}{spread}")
    return f"| {name} | {PAPER.get(name, '')} | {' | '.join(cells)} | {len(several)} | {steps} |"


def steps_of(name: str, several: Sequence[dict[str, Any]]) -> str:
    taken = ", ".join(sorted({f"{record['step']:,}" for record in several}))
    return f"{taken} of 288,000 (InfoGAN-CR)" if name == "infogan" else taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="*", help="NAME=RUN")
    parser.add_argument("--seeds", default="0-4")
    given = parser.parse_intermixed_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f"| system | paper | {' | '.join(COLUMNS)} | seeds | steps |\n" + "|---" * (len(COLUMNS) + 4) + "|")
    trained: dict[str, list[Path]] = {}
    for text in given.runs:
        name, _, run = text.partition("=")
        trained.setdefault(name, []).append(Path(run))
    for name, runs in trained.items():
        several = [scored(run, IMAGES, 0, given.folder / f"{name}-{'-'.join(run.parts)}.json") for run in runs]
        print(line(name, steps_of(name, several), several), flush=True)
    for name in FREE:
        print(line(name, "", free(given.folder, name, several_seeds.parse(given.seeds))), flush=True)


if __name__ == "__main__":
    main()
