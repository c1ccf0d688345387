"""Images that a command is given one by one: files, or indices into the model's data set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vaecli import data
from vaecli.commands import _artifact
from vaecli.data.base import Dataset
from vaecli.errors import ConfigError
from vaecli.training.checkpoint import Loaded


def images(loaded: Loaded, given: Sequence[str], fit: bool = True) -> tuple[Tensor, list[str]]:
    """The images (N, C, H, W) and what to call them; the data set is loaded only if an index is given.

    ConfigError for an index that there is not; InputError for a file that is no image or, unless it may be made to
    `fit`, one of another size.
    """
    dataset: Dataset | None = None
    found, names = [], []
    for text in given:
        if text.isascii() and text.isdigit():
            dataset = dataset or data.load(loaded.config.data, loaded.info)
            if len(text) > 18 or int(text) >= len(dataset.images):
                raise ConfigError(f"{text[:40]}: the data set has images 0 to {len(dataset.images) - 1}")
            found.append(dataset.images.gather(torch.tensor([int(text)]))[0].cpu())
            names.append(f"image {int(text)} of {loaded.info.name}")
        else:
            found.append(_artifact.read_image(text, loaded.info, fit))
            names.append(text)
    return torch.stack(found), names
