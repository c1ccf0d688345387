"""SemafoVAE on MNIST with 220 labels beside M2, CCVAE and a beta-VAE to whose codes a Gaussian of each digit was
fitted, with the same nets, labels and steps, as a table: what docs/semafo.md shows.

    python benchmarks/semafo.py DIR [--seeds 0-2] [--suffix -small]     runs are found again and gone on with
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaecli.training import seeds as several_seeds

LABELS = 220
MODELS = {"semafo-vae": "semafo-mnist", "m2": "m2-mnist", "ccvae": "ccvae-mnist", "beta-vae": "beta-vae-mnist-matched"}
ANALYZE = ("--split", "test", "--samples", "10000", "--json")


def vae(*arguments: object) -> str:
    done = subprocess.run([sys.executable, "-P", "-m", "vaecli", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def analysed(run: Path, name: str, *more: str) -> dict[str, Any]:
    """What `vae analyze` says of it, kept beside the run."""
    kept = run.parent / f"{run.name}{name}.json"
    if not kept.exists():
        kept.write_text(vae("analyze", run, *ANALYZE, *more))
    return dict(json.loads(kept.read_text()))


def measure(folder: Path, seed: int, suffix: str) -> dict[str, dict[str, float | None]]:
    """Of each model, for one seed."""
    found = {}
    for model, preset in MODELS.items():
        run = folder / f"{model}-s{seed}"
        vae(
            "train", "-p", preset + suffix, "--seed", seed, "--runs-dir", folder, "--name", run.name, "--resume", "auto"
        )
        if model != "beta-vae":
            found[model] = numbers_of(analysed(run, "", "--control"))
            continue
        found["beta-vae, N(0, I)"] = numbers_of(analysed(run, ""))
        if not (run.parent / f"{run.name}-class.json").exists():
            vae("density", run, "--fit", "class-normal", "-S", f"labelled={LABELS}", "--seed", seed, "--force")
        found["beta-vae, a Gaussian a digit"] = numbers_of(analysed(run, "-class", "--control"))
    return found


def numbers_of(record: dict[str, Any]) -> dict[str, float | None]:
    control = record.get("control") or {}
    read = (control.get("label_accuracy") or [{}])[0].get("q") or {}
    asked = (control.get("control_accuracy") or [{}])[0]
    return {
        "q(y|x)": read.get("share"),
        "control": asked.get("share"),
        "E log p(x|z)": -record["totals"]["recon"],
        "FCD": record["samples"]["fcd"],
        "precision": record["samples"]["precision"],
        "recall": record["samples"]["recall"],
    }


def row(name: str, seeds: Sequence[dict[str, float | None]]) -> str:
    cells = []
    for key in seeds[0]:
        values = [value for one in seeds if (value := one[key]) is not None]
        spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
        digits = 3 if max(map(abs, values), default=0) < 1.5 else 2
        cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--suffix", default="-small")
    given = parser.parse_args()
    seeds = [measure(given.folder, seed, given.suffix) for seed in several_seeds.parse(given.seeds)]
    print("| | " + " | ".join(next(iter(seeds[0].values()))) + " |\n" + "|---" * 7 + "|")
    for name in seeds[0]:
        print(row(name, [one[name] for one in seeds]))


if __name__ == "__main__":
    main()
