"""`vae suggest DATA`: what is in a set of images, what to train on it, how long that takes here, and the command."""

import math
import shlex
from dataclasses import replace
from typing import Any

import torch

from vaecli import config as configs
from vaecli import data, device, models, output
from vaecli.analysis import pixel_order, suggestion
from vaecli.batch import DataInfo
from vaecli.commands.train import Layers, resolve
from vaecli.config import RunConfig
from vaecli.data import folder
from vaecli.data.base import Dataset
from vaecli.errors import ConfigError, InputError
from vaecli.speed import fast
from vaecli.training import placing, steps

TRIAL = 5.0  # seconds of training that are timed


def run(spec: str, sets: list[str], sigma: float | None, device_name: str, json: bool) -> None:
    """Look at the data, try some steps, and say what follows; `sigma` is the standard deviation of a pixel that the
    decoder is taken to have.

    ConfigError and InputError as `vae train` has them; InputError where all images are the same.
    """
    if given := [text for text in sets if not text.startswith("data.")]:
        raise ConfigError(f"--set {given[0]}: only settings of the data are given", "write --set data.KEY=VALUE")
    where = device.pick(device_name)
    fast.tune_allocator()
    asked = configs.build(resolve(Layers(flags={"data.name": ("DATA", spec)}, sets=sets)))
    config, size = _sized(asked)
    dataset = data.load(config.data)
    info, train = dataset.info, dataset.split("train")
    found = suggestion.spectrum(train)
    if found.images < 2 or found.total <= 0:
        raise InputError(f"{info.name}: all images are the same: there is nothing to learn", "give others")
    noise = found.noise() if sigma is None else sigma**2
    latents, why_latents = suggestion.latents(found, noise, dataset.varying_factors)
    c_max, why_c_max = suggestion.capacity(found, noise, latents, dataset)
    count = suggestion.steps(len(train), config.train.batch_size)
    section, reasons = models.settled(config.model.model_copy(update={"latent_dim": latents}), info)
    config = replace(config, model=section, train=config.train.model_copy(update={"steps": count}))
    seconds = _seconds_a_step(config, dataset, where)
    order = pixel_order.measure(dataset)
    sentence = pixel_order.sentence(order) if order and pixel_order.without(order) else None
    words = ["vae", "train", "--data", spec, *(part for text in sets for part in ("-S", text))]
    words += ["-S", f"data.image_size={_size_text(size)}"] if size else []
    words += ["--latent-dim", str(latents), "--steps", str(count)]
    command = shlex.join(words)
    likelihood: Any = getattr(section, "likelihood")  # noqa: B009 - every model with a net has one
    net: Any = getattr(section, "net")  # noqa: B009
    record: dict[str, Any] = {
        "data": {
            "name": info.name, "images": len(dataset.images), "to_train_on": len(train), "shape": list(info.shape),
            "range": info.source.get("range"), "binary": info.binary, "contrast": info.contrast,
            "labels": dict(zip(info.factor_names, info.factor_sizes, strict=True)),
            "spectrum": suggestion.record(found, noise),
        },
        "net": net.name, "likelihood": likelihood.name, "why": reasons, "latents": latents, "c_max": c_max,
        "steps": count, "seconds": count * seconds, "images_per_second": config.train.batch_size / seconds,
        "pixel_order": None if order is None else pixel_order.record(order), "warning": sentence, "command": command,
    }  # fmt: skip
    if json:
        output.result_json({"schema": 1, **record})
        return
    deviation = f"a decoder of standard deviation {math.sqrt(noise):.3f} a pixel"
    whose = f"{found.images:,} of the images" if found.images < len(train) else "the images"
    why = dict(reason.partition(": ")[::2] for reason in reasons)
    minutes = f"{_time(count * seconds)} at {config.train.batch_size / seconds:,.0f} images/s"
    rows = [
        ("images", f"{len(dataset.images):,} of {'x'.join(map(str, info.shape))}, {len(train):,} to train on"),
        ("pixels", _pixels_text(info)),
        ("labels", _labels_text(info)),
        ("spectrum", f"{_spectrum_text(found)}, of {whose}"),
        *((text.split(" ", 1)[0], f"{text.split(' ', 1)[1]}: {reason}") for text, reason in why.items()),
        ("latents", f"{latents}: {why_latents}, with {deviation}"),
        ("C_max", f"{c_max:.1f} nats: {why_c_max} (--model annealed-vae -S model.c_max={c_max:.3g})"),
        ("steps", f"{count:,} of {config.train.batch_size} images: {minutes}, {device.describe(where)}"),
        *([("beta", sentence)] if sentence else []),
        ("command", command),
    ]
    output.table(("", info.name), rows, left=2)


def _sized(config: RunConfig) -> tuple[RunConfig, list[int] | None]:
    """The configuration with a size for images of a folder that have several, or large ones; and that size."""
    if not isinstance(config.data, folder.Config) or config.data.image_size is not None:
        return config, None
    size = suggestion.image_size(folder.sizes(config.data))
    if size is None:
        return config, None
    return replace(config, data=config.data.model_copy(update={"image_size": size})), size


def _seconds_a_step(config: RunConfig, dataset: Dataset, where: torch.device) -> float:
    """The time of a training step on this machine, from some that are forgotten."""
    device.seed(config.seed, "init")
    model = placing.ready(models.build(config.model, dataset.info), config, where)
    batch_size = config.train.batch_size
    stream = placing.to_device(dataset, where).stream(config.seed, batch_size)
    return steps.probe(model, config, stream, seconds=TRIAL)[0]


def _size_text(size: list[int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"[{size[0]}, {size[1]}]"


def _pixels_text(info: DataInfo) -> str:
    kind = {1: "grey", 3: "colour"}.get(info.shape[0], f"{info.shape[0]} channels")
    if info.binary:
        return f"{kind}, every value black or white"
    ranges = info.source.get("range") or {}
    told = "".join(f"; {name} {low:g} is black, {high:g} white" for name, (low, high) in ranges.items())
    return f"{kind}, contrast {info.contrast:.2f}{told}"


def _labels_text(info: DataInfo) -> str:
    named = zip(info.factor_names, info.factor_sizes, strict=True)
    return ", ".join(f"{name} ({size:,} values)" for name, size in named) or "none"


def _spectrum_text(found: suggestion.Spectrum) -> str:
    """How many axes hold half, nine tenths and 99 % of the variance."""
    share_E = found.value_E.cumsum(0) / found.total
    counts = [int((share_E < share).sum()) + 1 for share in (0.5, 0.9, 0.99)]
    return (
        f"variance {found.total:.4g}; axes for half of it {counts[0]:,}, for 90 % {counts[1]:,}, for 99 % {counts[2]:,}"
    )


def _time(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
