"""Reading a folder of images: ours, which decodes every file once into uint8, against torchvision and a DataLoader.

    python benchmarks/folder.py [--images 2000] [--side 178 218] [--rounds 5]

Photographs are imitated by smoothed noise of CelebA's size, as JPEG and as PNG, and brought to 64x64. Both use as many
workers as the machine has cores, in turn. The DataLoader pays its time again in every epoch, ours in the first only.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from vaecli import data, output, registry
from vaecli.speed import fast

SIDE = 64


def write_images(folder: Path, count: int, size: tuple[int, int], ending: str) -> None:
    rng = np.random.default_rng(0)
    (folder / "all").mkdir()
    for i in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(4)).save(folder / "all" / f"{i:06}.{ending}")


def ours(folder: Path) -> int:
    config = registry.load("dataset", "folder").Config(name="folder", path=str(folder), image_size=SIDE)
    return len(data.load(config).images)


def torchvision_loader(folder: Path) -> int:
    steps = [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.ToTensor()]
    loader = DataLoader(ImageFolder(str(folder), transforms.Compose(steps)), batch_size=64, num_workers=os.cpu_count())
    return sum(len(x) for x, _ in loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, nargs=2, default=(178, 218), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    output.configure(quiet=True)
    fast.tune_allocator()  # as the commands do; workers of both inherit it
    torch.set_num_threads(os.cpu_count() or 1)
    for ending in ("jpg", "png"):
        with tempfile.TemporaryDirectory() as name:
            write_images(Path(name), arguments.images, tuple(arguments.side), ending)
            times: dict[str, list[float]] = {"ours": [], "DataLoader": []}
            both = [("ours", ours), ("DataLoader", torchvision_loader)]
            for turn in range(arguments.rounds):
                for label, read in both[:: 1 if turn % 2 else -1]:
                    start = time.perf_counter()
                    assert read(Path(name)) == arguments.images
                    times[label].append(time.perf_counter() - start)
            ratios = [b / a for a, b in zip(times["ours"], times["DataLoader"], strict=True)]
            rates = {label: arguments.images / statistics.median(found) for label, found in times.items()}
            print(
                f"{ending}: ours {rates['ours']:,.0f} images/s, DataLoader {rates['DataLoader']:,.0f}; "
                f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
