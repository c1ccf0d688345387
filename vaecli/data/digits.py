"""Digits: 1,797 grey 8x8 handwritten digits that come with scikit-learn, for quick trials; factor `digit`.

Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI; scikit-learn holds the published test set. A
pixel counts the dark points among 4x4, so it is a sixteenth times 0 to 16.
"""

import hashlib

import numpy as np
import torch

from vaecli.data.base import DataConfig, Dataset, Floats, assemble
from vaecli.errors import ConfigError


class Config(DataConfig):
    """The common options only."""


def load(config: Config) -> Dataset:
    """ConfigError where scikit-learn is not installed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("the digits come with scikit-learn", 'pip install "vaecli[analyze]"') from None
    images_NP, digit_N = load_digits(return_X_y=True)
    images_NCHW = (images_NP / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return assemble(
        config,
        Floats(torch.from_numpy(images_NCHW)),
        labels_NK=torch.from_numpy(digit_N.astype(np.int64))[:, None],
        factor_names=("digit",),
        factor_sizes=(10,),
        value_names=(tuple(map(str, range(10))),),
        binary=False,
        source={"kind": "scikit-learn", "sha256": hashlib.sha256(images_NCHW.data).hexdigest()},
    )
