"""CelebA: 202,599 colour photographs of faces with 40 attributes; from your folder of aligned images.

Liu et al. 2015, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: the folder img_align_celeba (178x218, unpacked), and
list_attr_celeba and list_eval_partition (.txt, or .csv as some copies have them). The partition is the split.
"""

import os
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from vaecli.data import _disk, _labels, _published, folder
from vaecli.data._labels import Factors
from vaecli.data.base import DataConfig, Dataset
from vaecli.errors import InputError

SOURCE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
FOLDERS = ["img_align_celeba/img_align_celeba", "img_align_celeba"]  # the first is what some archives unpack to
MD5 = {
    "list_attr_celeba.txt": "75e246fa4810816ffd6ee81facbd244c",
    "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
}
WIDTH = 178


class Config(DataConfig):
    """`path`: the folder that has img_align_celeba and the lists; else $VAE_DATA_DIR/celeba and $VAE_DATA_DIR.

    `crop`: the side of the square in the middle that is kept, of 178 pixels. `image_size`: what it is resized to.
    `store`: as of a folder.
    """

    path: str | None = None
    crop: Annotated[int, Field(gt=0, le=WIDTH)] = 148
    image_size: Annotated[int, Field(gt=0, le=512)] = 64
    store: _disk.Where = "auto"


def load(config: Config) -> Dataset:
    """InputError where files are missing or the lists are not the published ones."""
    root = _published.find(config.path, "celeba", FOLDERS, SOURCE)
    home = str(config.path) if config.path is not None else None
    lists = {}
    for stem in ("list_attr_celeba", "list_eval_partition"):
        path = _published.find(home, "celeba", [f"{stem}.txt", f"{stem}.csv"], SOURCE)
        if path.name in MD5:
            _published.check_md5(path, MD5[path.name])
        lists[stem] = _rows(path)
    _, partition = lists["list_eval_partition"]
    names, attributes = lists["list_attr_celeba"]
    if partition.keys() != attributes.keys():
        raise InputError(f"{root.parent}: the two lists of CelebA name different images", f"get them from {SOURCE}")
    parts = {os.path.join(root, name): int(row[0]) for name, row in partition.items()}
    missing = [path for path in parts if not os.path.isfile(path)]
    if missing:
        raise InputError(f"{root}: {len(missing):,} of {len(parts):,} images are missing, {missing[0]} among them")

    def factors(good: list[str], files: list[str]) -> Factors:
        labels_NK = torch.tensor([[(int(cell) + 1) // 2 for cell in attributes[name]] for name in files])
        return Factors(labels_NK, names, [["-1", "1"] for _ in names])

    common = config.model_dump(exclude={"path", "crop"})
    read = folder.Config(**common, path=str(root), channels=3)
    read._division = config._division
    return folder.read(read, root, list(parts), parts, factors, middle=config.crop / WIDTH)


def _rows(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of columns (none of a list without them) and cells by image; a list of words has their count first."""
    if path.suffix == ".csv":
        rows = _labels.read_table(path).rows
    else:
        with _labels.text(path) as lines:
            rows = [line.split() for line in lines if line.strip()]
        if len(rows[0]) == 1:
            rows = [["image_id", *rows[1]], *rows[2:]]
    names = rows[0][1:] if not rows[0][0].endswith((".jpg", ".png")) else []
    body = rows[bool(names) :]
    try:
        cells = {row[0]: row[1:] for row in body}
        if {len(row) for row in cells.values()} != {len(names) or 1} or len(cells) != len(body):
            raise ValueError
        {int(cell) for row in cells.values() for cell in row}
    except (ValueError, IndexError):
        raise InputError(f"{path} is not a list of CelebA", f"get it from {SOURCE}") from None
    return names, cells
