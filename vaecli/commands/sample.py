"""`vae sample`: images from the prior."""

import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vaecli import checkpoint as checkpoints
from vaecli import device as devices
from vaecli import figures
from vaecli import output as streams
from vaecli.commands import _artifact
from vaecli.errors import ConfigError, MachineError
from vaecli.models.base import Model

Array = NDArray[np.float32]
CHUNK = 64  # drawn at a time, always whole: the first images do not depend on how many are asked for


def run(
    checkpoint: str, n: int, output: str | None, seed: int, temperature: float, device: str, force: bool, json: bool
) -> None:
    """Decode `n` draws from the prior: a grid (PNG), a folder of PNG files, or `.npz` with `images` and `z`.

    `temperature` scales the prior's standard deviations. NoPrior where the model has no prior.
    """
    if n < 1:
        raise ConfigError(f"-n is {n}; it must be at least 1")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"--temperature is {temperature}; it must be 0 or more")
    folder = _folder(output, n, force)
    path = "" if folder else _artifact.check(output, "samples.png", force, json)
    loaded = checkpoints.load(checkpoint, devices.pick(device))
    devices.seed(seed, "sample")
    if not folder and not path.endswith(".npz"):
        height, width = loaded.info.shape[1:]
        columns = figures.columns_for(n, height, width)
        figures.check_size(-(-n // columns), columns, height, width)
    with torch.inference_mode(), streams.progress("sampling", n) as advance:
        chunks = draw(loaded.model, n, temperature)
        if folder:
            path = str(folder)
            _write_folder(folder, chunks, advance)
        else:
            images, codes = [], []
            for x_NCHW, z_ND in chunks:
                images.append(x_NCHW)
                codes.append(z_ND)
                advance(len(z_ND))
            x_NCHW, z_ND = np.concatenate(images), np.concatenate(codes)
            data = _npz(x_NCHW, z_ND) if path.endswith(".npz") else figures.grid(x_NCHW)
            path = _artifact.write(output, "samples.png", data, force)
    about = {"checkpoint": str(loaded.path), "step": loaded.step, "shape": list(loaded.info.shape)}
    _artifact.report(path, {**about, "n": n, "seed": seed, "temperature": temperature}, json)


def draw(model: Model, n: int, temperature: float) -> Iterator[tuple[Array, Array]]:
    """`n` images (float32 NCHW) with their latents (float32 ND), chunk by chunk; seed torch's generator first."""
    for start in range(0, n, CHUNK):
        z_BD = model.prior(CHUNK, temperature)
        x_BCHW = model.decode(z_BD)
        keep = min(CHUNK, n - start)
        yield x_BCHW[:keep].float().cpu().numpy(), z_BD[:keep].float().cpu().numpy()


def _npz(images: Array, z: Array) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, images=images, z=z)
    return stream.getvalue()


def _folder(output: str | None, n: int, force: bool) -> Path | None:
    """The folder that `-o` names (it exists, or the name ends in a slash), after checking that it can be used."""
    if output is None or not (output.endswith(("/", os.sep)) or os.path.isdir(output)):
        return None
    folder = Path(output)
    if folder.is_dir():
        taken = [name for i in range(n) if (folder / (name := f"{i:05d}.png")).exists()]
        if taken and not force:
            raise ConfigError(f"{folder / taken[0]}: exists already", "--force overwrites it, -o writes elsewhere")
        _artifact.require_folder(folder, output)
    elif folder.exists():
        raise ConfigError(f"{output}: is a file, not a folder")
    else:
        _artifact.require_folder(Path(os.path.realpath(folder)).parent, output)
    return folder


def _write_folder(folder: Path, chunks: Iterator[tuple[Array, Array]], advance: Callable[[float], None]) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder}: cannot be made: {error.strerror}") from None
    number = 0
    for x_NCHW, _ in chunks:
        for image_CHW in x_NCHW:
            _artifact.write(str(folder / f"{number:05d}.png"), "", figures.single(image_CHW), force=True)
            number += 1
        advance(len(x_NCHW))
