"""`vae sample`: images from the prior."""

import math
from collections.abc import Iterator

import torch

from vaecli import device as devices
from vaecli import output as streams
from vaecli.commands import _artifact
from vaecli.commands._artifact import Array
from vaecli.errors import ConfigError
from vaecli.models.base import Model
from vaecli.training import checkpoint as checkpoints

DEFAULT_NAME = "samples.png"
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
    _artifact.check_images(output, DEFAULT_NAME, n, force, json)
    loaded = checkpoints.load(checkpoint, devices.pick(device))
    devices.seed(seed, "sample")
    with torch.inference_mode(), streams.progress("sampling", n) as advance:
        chunks = draw(loaded.model, n, temperature)
        path = _artifact.write_images(output, DEFAULT_NAME, chunks, n, loaded.info.shape, force, advance)
    about = {"checkpoint": str(loaded.path), "step": loaded.step, "shape": list(loaded.info.shape)}
    _artifact.report(path, {**about, "n": n, "seed": seed, "temperature": temperature}, json)


def draw(model: Model, n: int, temperature: float) -> Iterator[tuple[Array, Array]]:
    """`n` images (float32 NCHW) with their latents (float32 ND), chunk by chunk; seed torch's generator first."""
    for start in range(0, n, CHUNK):
        z_BD = model.prior(CHUNK, temperature)
        x_BCHW = model.decode(z_BD)
        keep = min(CHUNK, n - start)
        yield x_BCHW[:keep].float().cpu().numpy(), z_BD[:keep].float().cpu().numpy()
