"""Runs per hour of a sweep of 12 by each engine beside a plain loop in the shell, on one core and on two; and images
per second of one model by one process of one or two threads beside two processes (torchrun).

python benchmarks/sweeps.py [--steps 300] [--seconds 15] [--rounds 2] [--engines loop,local,slurm,ray]

Everything runs in turn, so that rounds differ only by what else the machine does. submitit runs by its local executor,
Ray on a cluster that `ray start` begins here and ends; both need the extras [slurm] and [ray], and are left out where
these are not installed.
"""

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VAE = [sys.executable, "-P", "-m", "vaecli"]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PORT = 26479
PRESETS = ["vae-mnist", "beta-vae-dsprites-conv"]  # of fully connected layers, and of convolutions
GRID = ["--grid", "model.beta=1,2,4,8", "--seeds", "0-2"]


def timed(command: list[str], cores: list[int], **environment: str) -> float:
    """Seconds of a command that sees these cores only."""
    start = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def sweep(engine: str, cores: list[int], steps: int, place: str) -> float:
    """Runs per hour of twelve runs of `beta-vae` on MNIST."""
    runs = ["--model", "beta-vae", "--data", "mnist", "--steps", str(steps)]
    if engine == "loop":  # what people write without a tool: a line after the other, with as many threads as cores
        one = shlex.join([*VAE, "train", *runs, "-q", "--runs-dir", place])
        line = f"for beta in 1 2 4 8; do for s in 0 1 2; do {one} --beta $beta --seed $s --name b$beta-s$s; done; done"
        return 12 / timed(["sh", "-ec", line], cores, OMP_NUM_THREADS=str(len(cores))) * 3600
    on = {
        "local": ["--jobs", str(len(cores))],
        "slurm": ["--on", "slurm", "--option", "cluster=local"],
        "ray": ["--on", "ray", "--option", f"address=127.0.0.1:{PORT}"],
    }
    asked = [*VAE, "sweep", *runs, *GRID, *on[engine], "--runs-dir", place, "--name", engine]
    if engine != "ray":
        return 12 / timed(asked, cores) * 3600
    start = [
        "--head",
        f"--port={PORT}",
        f"--num-cpus={len(cores)}",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    here = [
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        f"--temp-dir=/tmp/ray-{os.getpid()}",
        "--object-store-memory=100000000",
    ]
    timed([*RAY, "start", *start, *here], cores)
    try:
        return 12 / timed(asked, cores) * 3600
    finally:
        subprocess.run([*RAY, "stop", "--force"], capture_output=True)


def together(preset: str, processes: int, threads: int, seconds: float, place: str) -> float:
    """Images per second of a preset with batches of 256, between the first and the last record of its log."""
    name = f"{processes}x{threads}"
    train = ["train", "-p", preset, "--batch-size", "256", "--steps", "1000000", "--max-time", f"{seconds:g}s"]
    train += ["-S", "train.log_every=10", "--runs-dir", place, "--name", name, "--json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "vaecli"]
    command = [*(VAE if processes == 1 else torchrun), *train]
    timed(command, list(range(processes * threads)), OMP_NUM_THREADS=str(threads))
    log = [json.loads(line) for line in (Path(place) / name / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [entry for entry in log if entry["kind"] == "train"]
    return (last["step"] - first["step"]) * 256 / (last["seconds"] - first["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--engines", default="loop,local,slurm,ray")
    given = parser.parse_args()
    needs = {"slurm": "submitit", "ray": "ray"}
    asked = given.engines.split(",") if given.engines else []
    engines = [name for name in asked if name not in needs or importlib.util.find_spec(needs[name])]
    print(f"runs per hour, 12 runs of {given.steps} steps\n{'':8} 1 core  2 cores")
    for engine in engines:
        found = []
        for cores in ([0], [0, 1]):
            with tempfile.TemporaryDirectory() as place:
                found.append(sweep(engine, cores, given.steps, place))
        print(f"{engine:8} {found[0]:6.0f}  {found[1]:6.0f}", flush=True)
    print("\nimages/s, processes x threads")
    for preset, turn in [(preset, turn) for preset in PRESETS for turn in range(given.rounds)]:
        with tempfile.TemporaryDirectory() as place:
            speeds = {f"{p}x{t}": together(preset, p, t, given.seconds, place) for p, t in [(1, 1), (1, 2), (2, 1)]}
        print(
            f"{preset}, round {turn}: " + ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
