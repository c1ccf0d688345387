"""Training speed of nets side by side, on colour images: how much `conv` costs beside `burgess`, and a `resnet` that
lowers its resolution first beside one that has blocks at every size.

    python benchmarks/nets.py                        # the table, some minutes
    python benchmarks/nets.py --rounds 3 --seconds 1 --nets conv@64,burgess@64
    python benchmarks/nets.py --photos folder:photos --time 60 --seeds 0-2     # held-out ELBO after equal time

Every net trains a VAE (64 latents, Gaussian likelihood, Adam) as `vae train` does, on random images in memory, in turn
within one process, A B C A B C: each has the machine for its slice, and what the machine does otherwise falls on all
alike. Reported are medians over the rounds of images a second and of the ratio to the net named beside it in the same
round, and the lowest and highest ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import machine

LATENTS = 64
EVERY_SIZE = {"name": "resnet", "width": 16, "blocks_up_to": 8192}  # what `resnet` was before
NETS = {
    "burgess": "burgess",
    "conv": "conv",
    "resnet": "resnet",
    "resnet-at-every-size": EVERY_SIZE,
}
# Contender -> what it is compared with, and the ratio wanted.
BESIDE = {
    "burgess@64": ("burgess@64", None),
    "conv@64": ("burgess@64", 0.8),
    "conv@128": ("burgess@64", 0.2),
    "resnet-at-every-size@64": ("resnet-at-every-size@64", None),
    "resnet@64": ("resnet-at-every-size@64", 5.0),
    "resnet-at-every-size@128": ("resnet-at-every-size@128", None),
    "resnet@128": ("resnet-at-every-size@128", 5.0),
}


class Contender:
    """A net at a side, with its batch and optimizer."""

    def __init__(self, name: str, batch_size: int) -> None:
        import torch

        from vaecli import config as configs
        from vaecli import models
        from vaecli.batch import Batch, DataInfo
        from vaecli.config.tree import Tree
        from vaecli.training import placing
        from vaecli.training.state import TrainState

        self.name, self.batch_size = name, batch_size
        net, _, side = name.partition("@")
        info = DataInfo("random", (3, int(side), int(side)), 10_000, contrast=0.3)
        model = {"name": "vae", "latent_dim": LATENTS, "net": NETS[net]}
        self.config = configs.build(Tree({"data": {"name": "squares"}, "model": model}))
        torch.manual_seed(0)
        self.model = placing.ready(models.build(self.config.model, info), self.config, torch.device("cpu"))
        self.state = TrainState.fresh(self.model, self.config)
        self.batch = Batch(torch.rand(batch_size, *info.shape), torch.arange(batch_size))
        for _ in range(2):
            self.step()

    def step(self) -> None:
        from vaecli.training import steps

        steps.update(self.model, self.config, self.state, self.batch)

    def slice(self, seconds: float) -> float:
        """Images a second over a slice of at least that long."""
        started, made = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds or made == 0:
            self.step()
            made += 1
        return made * self.batch_size / elapsed


def measure(names: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, float | str | None]]:
    from vaecli.speed import fast

    fast.tune_allocator()
    contenders = [Contender(name, arguments.batch_size) for name in names]
    rounds = []
    for number in range(arguments.rounds):
        rounds.append({c.name: c.slice(arguments.seconds) for c in contenders})
        print(f"round {number + 1}: " + ", ".join(f"{n} {v:,.0f}" for n, v in rounds[-1].items()), flush=True)
    found: dict[str, dict[str, float | str | None]] = {}
    for name in names:
        beside, wanted = BESIDE[name]
        ratios = [r[name] / r[beside] for r in rounds if beside in r]
        found[name] = {
            "images_per_second": statistics.median(r[name] for r in rounds),
            "beside": beside,
            "wanted": wanted,
            "ratio": statistics.median(ratios) if ratios else None,
            "lowest": min(ratios, default=None),
            "highest": max(ratios, default=None),
        }
    return found


def table(found: dict[str, dict[str, float | str | None]], arguments: argparse.Namespace) -> str:
    lines = ["| net | images/s | beside | ratio | wanted |", "|---|---:|---|---:|---:|"]
    for name, r in found.items():
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f} ({r['lowest']:.2f} to {r['highest']:.2f})"
        wanted = "" if r["wanted"] is None else f"{r['wanted']:g}"
        lines.append(f"| {name} | {r['images_per_second']:,.0f} | {r['beside']} | {ratio} | {wanted} |")
    about = f"Batches of {arguments.batch_size}, medians of {arguments.rounds} rounds of {arguments.seconds:g} s each. "
    return "\n".join([*lines, "", about + machine() + "."])


def elbos(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Held-out ELBO of both resnets after the same time of training, one after the other for each seed."""
    first, _, last = arguments.seeds.partition("-")
    found: dict[str, list[float]] = {name: [] for name in arguments.nets.split(",")}
    vae = [sys.executable, "-P", "-m", "vaecli"]
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "VAE_DEVICE": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(int(first), int(last or first) + 1):
            for name in found:
                net, run = NETS[name.partition("@")[0]], f"{name.replace('@', '-')}-{seed}"
                line = [
                    *vae, "train", "--data", arguments.photos, "-S", f"model.net={json.dumps(net)}",
                    "--latent-dim", str(LATENTS), "--seed", str(seed), "--max-time", f"{arguments.time}s",
                    "--steps", "100000000", "--runs-dir", folder, "--name", run, "-q",
                ]  # fmt: skip
                for setting in arguments.set:
                    line += ["-S", setting]
                subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=environment)
                asked = [*vae, "analyze", f"{folder}/{run}", "--split", "val", "--json", "-q"]
                answer = json.loads(subprocess.run(asked, check=True, capture_output=True, env=environment).stdout)
                found[name].append(answer["totals"]["elbo"])
                print(f"seed {seed}: {name} {found[name][-1]:,.1f} nats", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", help=f"some of {', '.join(BESIDE)}")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a slice")
    parser.add_argument("--photos", help="a data set: compare held-out ELBOs after equal time instead")
    parser.add_argument("--time", type=int, default=60, help="seconds of training each, with --photos")
    parser.add_argument("--seeds", default="0-2", help="with --photos")
    parser.add_argument("--set", "-S", action="append", default=[], help="settings of the data, with --photos")
    parser.add_argument("--json", help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.photos:
        arguments.nets = arguments.nets or "resnet-at-every-size@64,resnet@64"
        results: dict = elbos(arguments)
        for name, values in results.items():
            print(f"{name}: {statistics.mean(values):,.1f} nats ({', '.join(f'{value:,.1f}' for value in values)})")
    else:
        names = arguments.nets.split(",") if arguments.nets else list(BESIDE)
        if unknown := set(names) - BESIDE.keys():
            raise SystemExit(f"--nets: {', '.join(sorted(unknown))}: choose from {', '.join(BESIDE)}")
        results = measure(names, arguments)
        print(table(results, arguments))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
