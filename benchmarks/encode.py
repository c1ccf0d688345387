"""Encoding of a data set by `vae encode` and `vae analyze` against a bare loop over the encoder, in turn.

python benchmarks/encode.py RUN [--images 50000] [--rounds 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from vaecli import data, output
from vaecli.analysis import codes
from vaecli.speed import fast
from vaecli.training import checkpoint


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    output.configure(quiet=True)
    ours = checkpoint.load(arguments.run, torch.device("cpu"))
    plain = checkpoint.load(arguments.run, torch.device("cpu"))
    dataset = data.load(ours.config.data, ours.info)
    view = dataset.split("all")
    count = min(arguments.images, len(view))
    batches = [dataset.images.gather(part) for part in view.indices[:count].split(512)]
    fast.tune_allocator()
    fast.accelerate(ours.model)

    def bare(model: torch.nn.Module) -> None:
        with torch.inference_mode():
            for x in batches:
                model.encoder(x)

    ways = {
        "ours": lambda: codes.run_encoder(ours, view, count, 512, lambda n: None),
        "bare loop, our layers, images ready": lambda: bare(ours.model),
        "bare loop, plain layers, images ready": lambda: bare(plain.model),
    }
    times = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, work in ways.items():
            times[name].append(seconds(work))
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times["ours"], strict=True))
        print(f"{name}: {count / statistics.median(found):,.0f} images/s ({1 / ratio:.2f} times ours)")


if __name__ == "__main__":
    main()
