"""Every disentanglement metric of trained models beside what it gives codes that were never trained.

    python benchmarks/disentanglement.py RUN... -o table.md

The floor, over the same images: the first run's network before its first step, the first ten principal components of
the raw pixels, and random numbers; besides, each metric's own chance level and ceiling. Made for dSprites; any data set
whose images are a full grid of factors will do.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaecli import data
from vaecli.training import checkpoint

COMPONENTS = 10
FITTED = 20_000  # images from which the principal components are found


def vae(*arguments: object) -> str:
    command = [sys.executable, "-m", "vaecli", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def floors(run: str, folder: Path) -> dict[str, str]:
    """Name -> checkpoint or file of codes."""
    untrained = vae(
        "train", "--config", Path(run) / "config.yaml", "--steps", 0, "--runs-dir", folder, "--name", "untrained", "-q"
    ).strip()
    loaded = checkpoint.load(run, torch.device("cpu"))
    dataset = data.load(loaded.config.data, loaded.info)
    index = torch.randperm(len(dataset.images), generator=torch.Generator().manual_seed(0))[:FITTED]
    pixels = dataset.images.gather(index).flatten(1)
    mean = pixels.mean(dim=0)
    _, vectors = torch.linalg.eigh((pixels - mean).T @ (pixels - mean))
    directions = vectors[:, -COMPONENTS:].flip(1)
    parts = torch.arange(len(dataset.images)).split(8192)
    projected = torch.cat([(dataset.images.gather(part).flatten(1) - mean) @ directions for part in parts])
    random = np.random.default_rng(0).standard_normal(projected.shape)
    assert dataset.labels is not None
    labels, names = dataset.labels.numpy(), list(loaded.info.factor_names)
    for name, codes in (("pca", projected.numpy()), ("random", random)):
        np.savez(folder / f"{name}.npz", codes=codes, factors=labels, factor_names=names)
    return {"untrained": untrained, "PCA": str(folder / "pca.npz"), "random": str(folder / "random.npz")}


def scores(found: dict[str, Any]) -> dict[str, tuple[float | None, float | None, float | None]]:
    """metric or metric.part -> value, chance, ceiling."""
    table = {}
    for metric in found["metrics"]:
        values = metric["values"] or {}
        for key, value in values.items():
            name = metric["name"] if len(values) == 1 else f"{metric['name']}.{key}"
            table[name] = (value, (metric["chance"] or {}).get(key), (metric["ceiling"] or {}).get(key))
    return table


def text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("-o", "--output", default="-")
    parser.add_argument("--limit", type=int, help="so many images, the same of all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        of = {Path(run).resolve().name: run for run in arguments.runs} | floors(arguments.runs[0], Path(name))
        columns: dict[str, Any] = {}
        for label, what in of.items():
            print(f"{label} ...", file=sys.stderr, flush=True)
            if not what.endswith(".npz"):
                what = vae("encode", what, "--split", "all", "-o", Path(name) / f"{label}.npz").strip()
            limit = () if arguments.limit is None else ("--limit", arguments.limit)
            columns[label] = scores(json.loads(vae("analyze", what, *limit, "--metrics", "all", "--json")))
    first = next(iter(columns.values()))
    lines = [f"| metric | {' | '.join(columns)} | chance | ceiling |", "|---|" + "---:|" * (len(columns) + 2)]
    for metric, (_, chance, ceiling) in first.items():
        values = [text(column.get(metric, (None,))[0]) for column in columns.values()]
        lines.append(f"| {metric} | {' | '.join(values)} | {text(chance)} | {text(ceiling)} |")
    table = "\n".join(lines) + "\n"
    if arguments.output == "-":
        print(table, end="")
    else:
        Path(arguments.output).write_text(table)


if __name__ == "__main__":
    main()
