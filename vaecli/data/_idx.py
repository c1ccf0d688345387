"""MNIST and its drop-in replacements: four idx files, 60,000 training and 10,000 test images of 28x28 bytes."""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from vaecli.data._fetch import fetch
from vaecli.data.base import Bits, Bytes, Coins, DataConfig, Dataset, Holdout, assemble
from vaecli.errors import InputError
from vaecli.paths import data_dir

TRAIN, TEST, SIDE = 60_000, 10_000, 28


class IdxConfig(DataConfig):
    """`pad`: black pixels added on each side (2 gives 32x32).

    `binarize`: true makes pixels of 0.5 and more white, others black. `dynamic` throws a coin for each pixel, white
    with the probability of its grey, anew in every step of training; `static` throws them once, for all models alike,
    as `dynamic` does for images that are not trained on.

    `join`: the published test images are trained on with the others, as some examples have it.
    """

    holdout: Holdout = 5000
    binarize: bool | Literal["static", "dynamic"] = False
    join: bool = False
    pad: Annotated[int, Field(ge=0, le=64)] = 0


@dataclass(frozen=True)
class Published:
    """A file as published: bytes and sha256 of the gz, sha256 of what it unpacks to."""

    name: str
    size: int
    sha256: str
    content: str


def load(
    config: IdxConfig,
    files: Sequence[Published],
    folders: Sequence[str],
    mirrors: Sequence[str],
    factor: str,
    value_names: Sequence[str],
) -> Dataset:
    """`files`: training images and labels, test images and labels; `folders`: where under the data directory.

    InputError for a file that is not the published one, MachineError where a missing one cannot be downloaded.
    """
    images, labels = [], []
    for n, image_file, label_file in ((TRAIN, files[0], files[1]), (TEST, files[2], files[3])):
        images.append(np.frombuffer(_content(image_file, folders, mirrors, 16 + n * SIDE**2), np.uint8, offset=16))
        labels.append(np.frombuffer(_content(label_file, folders, mirrors, 8 + n), np.uint8, offset=8))
    images_NCHW = np.concatenate(images).reshape(-1, 1, SIDE, SIDE)
    sha256 = hashlib.sha256(images_NCHW.data).hexdigest()
    if config.binarize is True:
        images_NCHW = (images_NCHW >= 128).view(np.uint8)
    if config.pad:
        images_NCHW = np.pad(images_NCHW, ((0, 0), (0, 0), (config.pad, config.pad), (config.pad, config.pad)))
    thrown = config.binarize in ("static", "dynamic")
    grey = (Coins if thrown else Bytes)(torch.from_numpy(images_NCHW))
    if config.binarize == "static":
        parts = [grey.gather(part).byte() for part in torch.split(torch.arange(len(images_NCHW)), 2_000)]
        images_NCHW = torch.cat(parts).numpy()
    return assemble(
        config,
        Bits.pack(images_NCHW) if config.binarize in (True, "static") else grey,
        labels_NK=torch.from_numpy(np.concatenate(labels)).long().unsqueeze(1),
        factor_names=(factor,),
        factor_sizes=(10,),
        value_names=(value_names,),
        binary=bool(config.binarize),
        source={"kind": "idx", "sha256": sha256} | ({"binarize": config.binarize} if thrown else {}),
        test=0 if config.join else TEST,
    )


def _content(file: Published, folders: Sequence[str], mirrors: Sequence[str], size: int) -> bytes:
    root = data_dir()
    raw = file.name.removesuffix(".gz")
    places = [root / folder / name for folder in (*folders, "") for name in (raw, file.name)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        urls = [mirror + file.name for mirror in mirrors]
        path = fetch(urls, root / folders[0] / file.name, file.sha256, file.size)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {error}", _remedy(path)) from None
    if hashlib.sha256(content).hexdigest() != file.content:
        raise InputError(f"{path} is not the published file", _remedy(path))
    return content


def _remedy(path: Path) -> str:
    return f"move {path.name} away to have it downloaded again; for images of your own there are `folder` and `array`"
