"""Published sets that people have on disk: where their files are looked for, and what is said where they are not.

Nothing here is ever downloaded.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from vaecli.data.base import chunks
from vaecli.errors import InputError
from vaecli.paths import data_dir

Array = np.ndarray[Any, Any]


def find(given: str | None, folder: str, names: Sequence[str], source: str) -> Path:
    """The first of these files or folders, in the place that is `given` (it or a folder with it) or else in
    $VAE_DATA_DIR/`folder` and $VAE_DATA_DIR.

    InputError, with the places and the `source` to get it from, where there is none.
    """
    roots = [Path(given).expanduser()] if given is not None else [data_dir() / folder, data_dir()]
    if given is not None and roots[0].is_file():
        return roots[0]
    for root in roots:
        for name in names:
            if (root / name).exists():
                return root / name
    what, where = " or ".join(names), " and ".join(map(str, roots))
    hint = f"get it from {source}, and put it there or give its place as data.path"
    raise InputError(f"{folder}: there is no {what} in {where}", hint)


def check_md5(path: Path, expected: str) -> None:
    """InputError for another file than the published one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise InputError(f"{path} is not the published file: its md5 is {found}, not {expected}", "get it again")


def check_shape(path: Path, found: tuple[int, ...], dtype: np.dtype[Any], expected: tuple[int, ...]) -> None:
    """InputError unless these are bytes of that shape."""
    if found != expected or dtype != np.uint8:
        raise InputError(f"{path}: images of type {dtype} and shape {found}, the published ones are uint8 {expected}")


def resized(images_NCHW: Array, side: int) -> Array:
    """Square images of bytes at another size, bicubic and antialiased."""
    if images_NCHW.shape[2:] == (side, side):
        return np.ascontiguousarray(images_NCHW)
    result = np.empty((*images_NCHW.shape[:2], side, side), np.uint8)
    for part, target in zip(chunks(images_NCHW), chunks(result), strict=True):
        whole = torch.from_numpy(np.ascontiguousarray(part))
        target[:] = functional.interpolate(whole, size=(side, side), mode="bicubic", antialias=True).numpy()
    return result
