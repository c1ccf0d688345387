"""A set larger than memory on disk against a small one in memory: images/s and peak memory of `vae train`, in turn.

    python benchmarks/larger_than_memory.py FOLDER [--gb 20] [--images 20000] [--steps 300] [--rounds 3]

FOLDER gets an array of 64x64 colour images that is sparse: the first 24 values of each image are written, the rest
takes no room on the disk, though in the system's page cache it takes as much as that of any file. The first use looks
at all images, which is timed by itself. Peak memory is of the whole process (ru_maxrss), PyTorch included.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

SHAPE = (64, 64, 3)
SIZE = int(np.prod(SHAPE))
STAMP = 24  # values


def write(path: Path, count: int) -> None:
    """Images whose first values are random, the others 0; nothing where they are there already."""
    if path.exists():
        return
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (count, *SHAPE)}
        )  # fmt: skip
        start = file.tell()
        file.truncate(start + count * SIZE)
    stamps = np.random.default_rng(0).integers(0, 256, (count, STAMP), dtype=np.uint8)
    handle = os.open(part, os.O_WRONLY)
    for i, stamp in enumerate(stamps):
        os.pwrite(handle, stamp.tobytes(), start + i * SIZE)
    os.close(handle)
    part.rename(path)


def measured(folder: Path, name: str, path: Path, store: str, steps: int, extra: list[str]) -> tuple[float, float]:
    """images/s after the first tenth, and GB at the peak, of one training in a process of its own."""
    batch, every = 64, max(1, steps // 10)
    line = [
        sys.executable, "-m", "vaecli", "train", "-q", "--data", f"array:{path}", "-S", f"data.store={store}",
        "-S", "data.holdout=500", "-S", f"train.log_every={every}", "--batch-size", str(batch), "--steps", str(steps),
        "--runs-dir", str(folder), "--name", name, "--force", *extra,
    ]  # fmt: skip
    child = os.posix_spawn(sys.executable, line, os.environ, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])  # fmt: skip
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"vae train failed: {' '.join(line[1:])}")
    records = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    logged = [(r["step"], r["seconds"]) for r in records if "seconds" in r]
    (first, then), (last, now) = logged[0], logged[-1]
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return (last - first) * batch / (now - then), peak / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gb", type=float, default=20.0)
    parser.add_argument("--images", type=int, default=20_000, help="of the set in memory")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", "-S", action="append", default=[], help="a setting of both trainings")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    count = int(given.gb * 1e9 / SIZE)
    large, small = given.folder / "large.npy", given.folder / "small.npy"
    write(large, count)
    write(small, given.images)
    extra = [word for setting in given.set for word in ("-S", setting)]
    start = time.monotonic()
    measured(given.folder, "first", large, "disk", 20, extra)
    print(f"{count:,} images, {count * SIZE / 1e9:.2f} GB: first use {time.monotonic() - start:.0f} s", flush=True)
    found: dict[str, list[tuple[float, float]]] = {"memory": [], "disk": []}
    for r in range(given.rounds):
        for store, path in (("memory", small), ("disk", large))[:: 1 if r % 2 else -1]:
            found[store].append(measured(given.folder, store, path, store, given.steps, extra))
    ratios = [disk / memory for (memory, _), (disk, _) in zip(found["memory"], found["disk"], strict=True)]
    print("| set | images/s | times that in memory | peak memory |\n|---|---:|---:|---:|")
    for store, size in (("memory", given.images), ("disk", count)):
        rate = statistics.median(rate for rate, _ in found[store])
        of = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if store == "disk" else "1.00"
        what = f"{size * SIZE / 1e9:,.2f} GB {'on ' if store == 'disk' else 'in '}{store}"
        print(f"| {what} | {rate:,.0f} | {of} | {max(peak for _, peak in found[store]):.2f} GB |")


if __name__ == "__main__":
    main()
