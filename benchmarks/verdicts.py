"""Verdicts on small models whose fault is known, as a confusion table: `python benchmarks/verdicts.py`.

Each model trains in seconds on `--data digits` or on arrays made here, and its fault is one that was put there. The
verdict is that of `vae analyze --diagnosis` over all images. Writes docs/verdicts.md.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

NET = ("-S", "model.net={name: mlp, hidden: [64]}", "--batch-size", "64", "--lr", "0.002")
GAUSSIAN = "model.likelihood={name: gaussian, variance: fixed, sigma: %s}"
# What was done, what a careful reader may call it, and the training: name -> verdicts that are right, options.
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}


def case(kind: str, right: tuple[str, ...], *options: str, seeds: int = 2, data: str = "digits") -> None:
    for seed in range(seeds):
        CASES[f"{kind} {len([k for k in CASES if k.rsplit(' ', 1)[0] == kind])}"] = (
            right, ("--data", data, *NET, "--seed", str(seed), *options),
        )  # fmt: skip


def cases(folder: Path) -> None:
    """At least 24 models in ten kinds."""
    rng = np.random.default_rng(0)
    np.save(folder / "constant.npy", np.full((400, 8, 8), 0.5, dtype=np.float32))
    np.save(folder / "few.npy", rng.random((40, 8, 8)).astype(np.float32))
    beta = ("--model", "beta-vae")
    case("healthy", ("healthy",), *beta, "--beta", "1", "--latent-dim", "4", "--steps", "4000", seeds=3)
    case("collapsed", ("collapsed",), *beta, "--beta", "1000", "--latent-dim", "8", "--steps", "3000", seeds=3)
    case("partly", ("partly collapsed",), *beta, "--beta", "4", "--latent-dim", "12", "--steps", "4000", seeds=3)
    over = ("over-regularised", "partly collapsed")
    case("over", over, *beta, "--beta", "8", "--latent-dim", "4", "--steps", "4000", seeds=3)
    case("under", ("under-regularised",), *beta, "--beta", "0.0001", "--latent-dim", "16", "--steps", "3000", seeds=3)
    mismatch = ("prior mismatch", "under-regularised")
    case("mismatch", mismatch, *beta, "--beta", "0.1", "--latent-dim", "8", "--steps", "4000", seeds=2)
    case("undertrained", ("undertrained",), *beta, "--beta", "1", "--latent-dim", "8", "--steps", "15", seeds=3)
    blown = ("undertrained", "not finite")
    case("diverged", blown, "--model", "vae", "--lr", "0.5", "--latent-dim", "8", "--steps", "300", seeds=2)
    few_of_many = ("-S", "data.limit=60", "-S", "data.holdout=20", "-S", "train.eval_every=100", "-S", GAUSSIAN % 0.1)
    case("overfitted", ("overfitted",), "--model", "vae", "--latent-dim", "4", "--steps", "3000", *few_of_many)
    constant = f"array:{folder / 'constant.npy'}"
    case("constant data", ("collapsed",), *beta, "--latent-dim", "4", "--steps", "1500", data=constant)
    few = ("not judged", "undertrained", "under-regularised")
    case(
        "too few images",
        few,
        "--model",
        "vae",
        "--latent-dim",
        "4",
        "--steps",
        "1500",
        data=f"array:{folder / 'few.npy'}",
    )


def verdict(options: tuple[str, ...], folder: Path, name: str) -> str:
    vae = [sys.executable, "-m", "vaecli"]
    run = folder / name.replace(" ", "-")
    train = [*vae, "train", *options, "--runs-dir", str(folder), "--name", run.name, "-q"]
    done = subprocess.run(train, capture_output=True, text=True)
    if done.returncode not in (0, 4):
        return f"error {done.returncode}"
    judged = subprocess.run(
        [*vae, "analyze", str(run), "--diagnosis", "--split", "all", "--json", "-q"], capture_output=True, text=True
    )
    return str(json.loads(judged.stdout)["verdict"]["name"]) if judged.returncode == 0 else f"error {judged.returncode}"


def measure(names: list[str] | None = None) -> dict[str, tuple[str, bool]]:
    """The verdict on each model, and whether it is one of those that are right."""
    with tempfile.TemporaryDirectory() as text:
        cases(Path(text))
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        found = {}
        for name, (right, options) in CASES.items():
            if names is None or name in names:
                said = verdict(options, Path(text), name)
                found[name] = said, said in right
                print(f"{name}: {said}{'' if said in right else ' (wrong)'}", file=sys.stderr, flush=True)
        return found


def page(found: dict[str, tuple[str, bool]]) -> str:
    kinds = list(dict.fromkeys(name.rsplit(" ", 1)[0] for name in found))
    said = list(dict.fromkeys(verdict for verdict, _ in found.values()))
    counts = Counter((name.rsplit(" ", 1)[0], verdict) for name, (verdict, _) in found.items())
    right = sum(fits for _, fits in found.values())
    lines = [
        "# Verdicts on models whose fault is known", "",
        "Made by `benchmarks/verdicts.py`, which says how each model was trained and which verdicts count as right: "
        f"{right} of {len(found)} are. `healthy` was said of {sum(v == 'healthy' for v, _ in found.values())}.", "",
        "| what was done | " + " | ".join(said) + " | right |", "|---" * (len(said) + 2) + "|",
    ]  # fmt: skip
    for kind in kinds:
        mine = [fits for name, (_, fits) in found.items() if name.rsplit(" ", 1)[0] == kind]
        cells = [str(counts[kind, verdict] or "") for verdict in said]
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {sum(mine)} of {len(mine)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = page(measure())
    (Path(__file__).parents[1] / "docs" / "verdicts.md").write_text(text)
    print(text)
