"""`vae sample`: images from the prior."""

import math
from collections.abc import Iterator, Sequence

import torch

from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import draws, labelled
from vaecli.analysis.draws import Source
from vaecli.commands import _artifact, _labelled
from vaecli.commands._artifact import Array
from vaecli.errors import ConfigError

DEFAULT_NAME = "samples.png"


def run(
    checkpoint: str,
    n: int,
    output: str | None,
    seed: int,
    temperature: float,
    device: str,
    force: bool,
    json: bool,
    density: str = "stored",
    label: Sequence[str] = (),
    data_at: str | None = None,
) -> None:
    """Decode `n` draws: a grid (PNG), a folder of PNG files, or `.npz` with `images` and `z`, all levels side by side.

    From the density fitted to the model's codes where one is stored, unless `density` is `none` or names a stage of
    the training, else from the prior.
    `temperature` scales the prior's standard deviations. NoPrior where there is neither.

    With `label` (`label_expressions`) images of these labels, every combination in turn, a column each; the labels are
    in the `.npz` and the JSON, those asked for beside those read back. NoLabels where nothing can be asked for,
    ConfigError with the names that there are.
    """
    if n < 1:
        raise ConfigError(f"-n is {n}; it must be at least 1")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"--temperature is {temperature}; it must be 0 or more")
    _artifact.check_images(output, DEFAULT_NAME, n, force, json)
    loaded = _artifact.load(checkpoint, devices.pick(device), data_at)
    source = draws.source(loaded, density)
    asked = _labelled.request(labelled.sampler(source), loaded.info, label, n) if label else None
    if source.density is not None:
        streams.notice(f"drawing from {source.text}, fitted to the model's codes")
    if source.stage is not None:
        streams.notice(f"drawing from {source.text}")
    about = {"checkpoint": str(loaded.path), "step": loaded.step, "shape": list(loaded.info.shape)}
    record = {**about, "n": n, "seed": seed, "temperature": temperature}
    if source.density is not None:
        record["density"] = source.density.config.name
    if source.stage is not None:
        record["stage"] = source.stage
    devices.seed(seed, "sample")
    if asked is not None:
        drawn = _labelled.draw(asked, n, temperature, loaded)
        streams.notice(drawn.text())
        title = _artifact.title(loaded.config.model.name, loaded.info.name, f"step {loaded.step:,}")
        path = _artifact.write_images(
            output, DEFAULT_NAME, _labelled.batches(drawn), n, loaded.info.shape, force, lambda done: None,
            drawn.arrays, lambda images: drawn.sheet(title),
        )  # fmt: skip
        _artifact.report(path, {**record, **drawn.record()}, json)
        return
    with torch.inference_mode(), streams.progress("sampling", n) as advance:
        chunks = draw(source, n, temperature)
        path = _artifact.write_images(output, DEFAULT_NAME, chunks, n, loaded.info.shape, force, advance)
    _artifact.report(path, record, json)


def draw(source: Source, n: int, temperature: float) -> Iterator[tuple[Array, Array]]:
    """`n` images (float32 NCHW) with their latents (float32 ND), chunk by chunk; seed torch's generator first."""
    for x_BCHW, values in source.images(n, temperature):
        z_BD = source.model.flatten(values, source.model.levels)
        yield x_BCHW.float().cpu().numpy(), z_BD.float().cpu().numpy()
