"""What it costs a step that numbers are checked to be finite, and that a signal or time limit is looked for.

    python benchmarks/checks.py [--rounds 60] [--steps 100] [--hidden 16]

Equal trainings of a small model on the drawn squares take turns in one process, some steps each; for two of the three
the checks are taken out. Printed: the ratio of their seconds of CPU to those of one without, its median over rounds
with the quartiles, and the seconds of a step. The other one without gives what the clock itself is good for. Gradient
norms are computed in all: they are in the records.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from unittest import mock

import torch

from vaecli import config as configs
from vaecli import data, models
from vaecli.config import tree as trees
from vaecli.training import placing, rundir, steps, trainer
from vaecli.training.state import TrainState
from vaecli.training.stop import Stop


class Nothing:
    """In place of what is kept from before a step."""

    def __init__(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    with (
        mock.patch.object(steps, "Before", Nothing),
        mock.patch.object(steps, "all", lambda _: True, create=True),
        mock.patch.object(Stop, "reason", None),
        mock.patch.object(Stop, "agree", lambda _: None),
    ):
        yield


def training(hidden: int) -> Generator[None, None, object]:
    """Endless steps of one training, without evaluations and saves in between; each `next` is one."""
    never = 10**9
    tree = {
        "data": "squares",
        "model": {"name": "beta-vae", "latent_dim": 3, "net": {"name": "mlp", "hidden": [hidden]}},
        "train": {"steps": never, "batch_size": 32, "eval_every": never, "save_every": never, "log_every": never},
    }
    config = configs.build(trees.Tree(tree, {}))
    dataset = data.load(config.data)
    model = placing.ready(models.build(config.model, dataset.info), config, torch.device("cpu"))
    state, split = TrainState.fresh(model, config), dataset.split("train")
    nowhere = rundir.Elsewhere(Path("nowhere"))
    stream = dataset.stream(config.seed, config.train.batch_size)
    return trainer.fit(nowhere, model, config, state, stream, split, split, Stop(never), trainer.Hooks())


def seconds(going: Generator[None, None, object], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        next(going)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=16)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    going = {name: training(asked.hidden) for name in ("with checks", "without", "without, once more")}
    spent: dict[str, list[float]] = {name: [] for name in going}
    for n in range(asked.rounds + 1):
        for name in sorted(going, reverse=bool(n % 2)):
            with contextlib.nullcontext() if name == "with checks" else without_checks():
                took = seconds(going[name], asked.steps)
            if n:  # the first round warms up
                spent[name].append(took / asked.steps)
    for name in ("with checks", "without, once more"):
        ratios = [a / b for a, b in zip(spent[name], spent["without"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name}: {middle:.3f} times the seconds of a step without ({low:.3f} to {high:.3f})")
    print(
        f"{1000 * statistics.median(spent['with checks']):.2f} ms a step, {asked.rounds} rounds of {asked.steps} steps"
    )


if __name__ == "__main__":
    main()
