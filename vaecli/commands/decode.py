"""`vae decode`: codes to images."""

from collections.abc import Iterator

import torch

from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import codes as code_files
from vaecli.batch import at_once
from vaecli.commands import _artifact
from vaecli.commands._artifact import Array
from vaecli.models.base import Model

DEFAULT_NAME = "decoded.png"


def run(
    checkpoint: str, codes: str, output: str | None, batch_size: int | None, device: str, force: bool, json: bool
) -> None:
    """The expected images E[x|z] of the codes in a file (`-`: stdin): a grid (PNG), a folder of PNG files, or `.npz`
    with `images` and `z`.

    InputError where there are more or fewer latents than the model has, or a code is not finite.
    """
    table = code_files.read_table(codes)
    _artifact.check_images(output, DEFAULT_NAME, len(table), force, json)
    loaded = _artifact.load(checkpoint, devices.pick(device))
    names, whole = loaded.model.latent_names(), loaded.model.latent_names(loaded.model.levels)
    if len(whole) > len(names) and table.values_NC.shape[1] == len(whole):  # with noise, as `vae sample` writes it
        names = whole
    z_ND = torch.from_numpy(table.latents(names, loaded.info.factor_names)).float()
    n = len(z_ND)
    with torch.inference_mode(), streams.progress("decoding", n) as advance:
        chunks = decode(loaded.model, z_ND, batch_size or at_once(loaded.info.shape))
        path = _artifact.write_images(output, DEFAULT_NAME, chunks, n, loaded.info.shape, force, advance)
    about = {"checkpoint": str(loaded.path), "step": loaded.step, "shape": list(loaded.info.shape)}
    _artifact.report(path, {**about, "n": n, "codes": table.source}, json)


def decode(model: Model, z_ND: torch.Tensor, batch_size: int) -> Iterator[tuple[Array, Array]]:
    """Images (float32 BCHW) with their latents (float32 BD), batch by batch."""
    for z_BD in torch.split(z_ND, batch_size):
        yield model.decode(z_BD.to(model.device)).float().cpu().numpy(), z_BD.numpy()
