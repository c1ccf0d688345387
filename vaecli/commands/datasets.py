"""`vae datasets NAME`: what a data set holds, with a hash of all its images."""

import hashlib
import sys
from typing import Any

import torch

from vaecli import config as configs
from vaecli import data, output, registry
from vaecli.commands import settings
from vaecli.commands.train import Layers, resolve
from vaecli.data.base import Dataset
from vaecli.errors import ConfigError

ENTRIES = 2**24  # pixels looked at together


def show(spec: str, sets: list[str], json: bool) -> None:
    """Sizes, factors, splits and source of a data set, its mean pixel and variance, and a hash of every frame.

    ConfigError and InputError as `vae train` has them.
    """
    layers = Layers(flags={"data.name": ("NAME", spec)}, sets=sets)
    try:
        config = configs.build(resolve(layers))
    except ConfigError as error:
        kind = spec.partition(":")[0]
        if kind in registry.names("dataset"):
            error.hint = error.hint or f"vae datasets {kind} --options lists what can be set"
        raise
    dataset = data.load(config.data)
    info = dataset.info
    record: dict[str, Any] = {
        "name": info.name,
        "images": len(dataset.images),
        "shape": list(info.shape),
        "binary": info.binary,
        "factors": dict(zip(info.factor_names, info.factor_sizes, strict=True)),
        "splits": {name: len(index) for name, index in dataset.splits.items()},
        "source": info.source,
        **numbers(dataset),
    }
    found = settings.options("dataset", spec.partition(":")[0])
    if json:
        output.result_json({"schema": 1, **record, "options": [option._asdict() for option in found]})
    else:
        output.table(("data set", info.name), [[key, text(value)] for key, value in list(record.items())[1:]], left=2)
        if sys.stdout.isatty():  # in a pipe there is one table: --options gives this one
            settings.table(found)


def numbers(dataset: Dataset) -> dict[str, Any]:
    """Over all images: mean pixel; variance, summed over the pixels; sha256 of the frames as bytes 0 to 255, (H, W, C)
    each, one after the other."""
    info, pixels, n = dataset.info, dataset.info.pixels, len(dataset.images)
    sum_P, squares = torch.zeros(pixels, dtype=torch.float64), 0.0
    digest = hashlib.sha256()
    with output.progress("reading", n) as advance:
        for index in torch.split(torch.arange(n), max(1, ENTRIES // pixels)):
            x_BCHW = dataset.images.gather(index)
            frames_BCHW = x_BCHW.to(torch.uint8) * 255 if info.binary else (x_BCHW * 255).round().to(torch.uint8)
            frames_BHWC = frames_BCHW.permute(0, 2, 3, 1).contiguous()
            # Counts of white pixels are exact in float32.
            sum_P += x_BCHW.flatten(1).sum(dim=0, dtype=torch.float32 if info.binary else torch.float64)
            if not info.binary:
                squares += float(x_BCHW.square().sum(dtype=torch.float64))
            digest.update(frames_BHWC.numpy().data)
            advance(len(index))
    mean_P, squares = sum_P / n, float(sum_P.sum()) if info.binary else squares
    return {
        "mean_pixel": float(mean_P.mean()),
        "total_variance": squares / n - float(mean_P.square().sum()),
        "frames_sha256": digest.hexdigest(),
    }


def text(value: Any) -> str:
    """A value of a record for a reader."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items()) or "none"
    if value is None:
        return "-"
    if isinstance(value, list):  # sizes, or ends of a range
        sizes = all(isinstance(item, int) for item in value)
        return "x".join(map(str, value)) if sizes else " to ".join(map(text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.10g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
