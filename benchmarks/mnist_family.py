"""Models with a preset for MNIST that need no labels, trained equally long by that preset's settings, as a table.

It tells that each learns; it ranks none, for their nets differ, and most presets ask for ten times as many steps. Runs
are found again, and refused where they are of another number of steps.

    python benchmarks/mnist_family.py DIR [--steps 3000] [--presets vae-mnist,rae-mnist]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from semafo import vae

ANALYZE = ("--split", "test", "--samples", "10000")
NLL = ("--nll", "64", "--nll-images", "1000")
LEFT_OUT = ("semafo", "m2-", "ccvae-", "fashion")  # models of labels have a page of their own
FITTED = ("rae-", "vq-")  # which draw from a density of their codes


PRESETS = Path(__file__).resolve().parent.parent / "presets"


def names() -> list[str]:
    found = [path.stem for path in sorted(PRESETS.glob("*-mnist.yaml"))]
    return [name for name in found if not any(part in name for part in LEFT_OUT)]


def measured(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """What `vae analyze` says of it, kept beside the run; without -log p(x) where the model has none."""
    kept, run = folder / f"{name}.json", folder / name
    if not kept.exists():
        # Of several stages each gets its share of the steps.
        stages = ("-S", f"train.steps={{first: {steps // 2}, second: {steps - steps // 2}}}")
        asked = stages if name.startswith("two-stage") else ("--steps", steps)
        vae("train", "-p", name, *asked, "--runs-dir", folder, "--name", name, "--seed", 0, "--resume", "auto")
        if name.startswith(FITTED):
            vae("density", run, "--fit", "mixture", "--components", 10, "--force")
        try:
            found = vae("analyze", run, *ANALYZE, *NLL, "--json")
        except SystemExit as refused:
            if "--nll" not in str(refused):
                raise
            found = vae("analyze", run, *ANALYZE, "--json")
        kept.write_text(found)
    record = dict(json.loads(kept.read_text()))
    if record["step"] != steps:
        sys.exit(f"{kept} is of {record['step']:,} steps")
    return record


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def line(name: str, found: dict[str, Any], steps: int) -> str:
    totals, nll, samples = found["totals"], found.get("nll") or {}, found.get("samples") or {}
    active = "" if totals.get("active_units") is None else f"{totals['active_units']} of {totals['latents']}"
    cells = [
        number(totals.get("elbo")), number(totals.get("recon")), number(totals.get("kl")), number(nll.get("nll")),
        nll.get("kind") or "", active, number(samples.get("fcd"), 1), number(samples.get("precision")),
        number(samples.get("recall")), samples.get("drawn_from") or "",
    ]  # fmt: skip
    return f"| {name} | {found['step']:,} of {steps:,} | {' | '.join(cells)} |"


def whole(name: str) -> int:
    """Steps that the preset asks for."""
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    steps = (values.get("train") or {}).get("steps")
    if steps is None:
        return whole(values["extends"])
    return sum(steps.values()) if isinstance(steps, dict) else int(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--presets", help="some of them")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    columns = "ELBO | reconstruction | KL | -log p(x) | p is a | active | FCD | precision | recall | samples from"
    print(f"| preset | steps | {columns} |\n|---|" + "---:|" * 11, flush=True)
    for name in given.presets.split(",") if given.presets else names():
        print(line(name, measured(name, given.folder, given.steps), whole(name)), flush=True)


if __name__ == "__main__":
    main()
