"""Folders of photographs where there are none: pieces of the few that come with Python packages, cut at random.

    python benchmarks/photos.py sklearn photos --side 64 -n 3000    # two: a temple in China, a flower
    python benchmarks/photos.py skimage photos --side 128           # six: a face, a cat, coffee, a rocket, a motorcycle

scikit-learn (or scikit-image) must be installed, or --images name a folder that holds the files. A piece is a square of
`side` to three times as many pixels, resized, mirrored half of the time. Those of `val` are cut from the right-hand
quarter of each photograph, which no piece of `train` reaches into: they are of the same scenes, but not the same
pixels. What is written is a function of the seed.
"""

import argparse
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

SETS = {
    "sklearn": ("sklearn.datasets.images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "skimage.data",
        ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png"),
    ),
}
HELD_OUT = 0.25  # of each photograph's width
LARGEST = 3  # times the side wanted


def photographs(name: str, folder: str | None) -> list[Image.Image]:
    """The photographs of a set, in RGB."""
    package, files = SETS[name]
    found = []
    for file in files:
        path = Path(folder) / file if folder else resources.files(package) / file
        with path.open("rb") as stream:
            found.append(Image.open(stream).convert("RGB"))
    return found


def piece(photograph: Image.Image, side: int, held_out: bool, rng: np.random.Generator) -> Image.Image:
    """A square of one of the two parts of a photograph, at `side` pixels."""
    edge = round(photograph.width * (1 - HELD_OUT))
    start, end = (edge, photograph.width) if held_out else (0, edge)
    largest = min(LARGEST * side, end - start, photograph.height)
    cut = int(rng.integers(min(side, largest), largest + 1))
    left = int(rng.integers(start, end - cut + 1))
    top = int(rng.integers(0, photograph.height - cut + 1))
    found = photograph.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + cut, top + cut))
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.integers(2) else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("folder", help="where to write train/ and val/")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("-n", type=int, default=3000, help="pieces to train on; a tenth as many are held out")
    parser.add_argument("--images", help="a folder with the photographs, in place of the package's")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    every = photographs(arguments.set, arguments.images)
    rng = np.random.default_rng(arguments.seed)
    for part, n in (("train", arguments.n), ("val", max(1, arguments.n // 10))):
        folder = Path(arguments.folder) / part
        folder.mkdir(parents=True)
        for i in range(n):
            piece(every[i % len(every)], arguments.side, part == "val", rng).save(folder / f"{i:05d}.png")


if __name__ == "__main__":
    main()
