"""dSprites at 32x32 pixels with the orientation at rest, as an array of one's own: 18,432 images, small enough for two
cores to learn labels from in minutes.

    python benchmarks/sprites.py sprites.npz
"""

import sys

import numpy as np
import torch

from vaecli import data, output
from vaecli.data import dsprites

KEPT = ["shape", "scale", "posX", "posY"]


def main() -> None:
    output.configure(quiet=True)
    dataset = data.load(dsprites.Config(name="dsprites", pool=2, holdout=0))
    assert dataset.labels is not None
    factors_NK, names = dataset.labels.numpy(), dataset.info.factor_names
    at_N = np.flatnonzero(factors_NK[:, names.index("orientation")] == 0)
    images = (dataset.images.gather(torch.from_numpy(at_N)) * 255).round().byte().numpy()
    columns = [names.index(name) for name in KEPT]
    np.savez_compressed(sys.argv[1], images=images[:, 0], factors=factors_NK[at_N][:, columns], factor_names=KEPT)


if __name__ == "__main__":
    main()
