"""The density fitted to a model's codes, and how it stands beside the weights, in a step directory and its manifest.

Shapes: N codes, D latents.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from vaecli import densities, output, safe_files
from vaecli import device as devices
from vaecli.data.base import SplitView
from vaecli.densities.base import Density, DensityConfig
from vaecli.errors import ConfigError, InputError, MachineError
from vaecli.models.base import Model
from vaecli.training import checkpoint
from vaecli.training.checkpoint import CheckpointError
from vaecli.training.stop import Stop

CODES = 60_000  # images whose codes a density is fitted to, at most
BATCH = 512


@dataclass(frozen=True)
class Fitted:
    """A density, the codes it is fitted to, in words which they are, and whether the fit was ended early."""

    density: Density
    codes_ND: Tensor
    fitted_on: str
    cut_short: bool


def latents(model: Model) -> int:
    """Those of a code; ConfigError where codes are no numbers, or not all of them are inferred."""
    for level in model.levels:
        if not level.inferred or level.kind not in ("gaussian", "point"):
            what = f"of {level.kind}" if level.inferred else "not inferred from an image"
            where = f"level {level.name} of {model.config.name}"
            raise ConfigError(f"a density is fitted to codes that are numbers, but {where} is {what}")
    return sum(level.size for level in model.levels)


def check(config: DensityConfig, model: Model, images: int) -> Density:
    """The density that would be fitted to so many images' codes, without memory. ConfigError where it cannot be."""
    with devices.without_values():
        density = densities.build(config, latents(model))
    density.check(min(images, CODES))
    if density.labelled and not model.info.factor_names:
        raise ConfigError(f"density {config.name} is fitted to labels, but {model.info.name} has none")
    return density


def fit(config: DensityConfig, model: Model, view: SplitView, seed: int, stop: Stop) -> Fitted:
    """Fit a density to one draw from q(z|x) of each image of a view (at most `CODES` of them), or to the points that a
    deterministic encoder gives. ConfigError where that cannot be."""
    view = view.sample(CODES)
    check(config, model, len(view))
    codes_ND = codes(model, view, seed, stop)
    devices.seed(seed, "density")
    density = densities.build(config, latents(model))
    ended = False

    def stopped() -> bool:
        nonlocal ended
        ended = stop.reason is not None
        return ended

    if density.labelled and view.dataset.labels is not None:
        density.told(view.dataset.labels[view.indices.to(view.dataset.labels.device)][: len(codes_ND)], model.info)
    if stop.signal is None:
        with output.progress("fitting", len(codes_ND)) as advance:
            density.fit(codes_ND, stopped, advance)
    of = f" of {' and '.join(level.name for level in model.levels)}" if len(model.levels) > 1 else ""
    count = len(codes_ND) if density.used is None else density.used
    fitted_on = f"{count:,} codes{of} ({model.info.name} {view.name})"
    return Fitted(density, codes_ND, fitted_on, ended or stop.signal is not None)


def codes(model: Model, view: SplitView, seed: int, stop: Stop) -> Tensor:
    """Draws from q(z|x), or points, of the images of a view, as far as no signal stops it: float64 (N, D), CPU."""
    parts = [torch.empty(0, latents(model), dtype=torch.float64)]
    with torch.inference_mode(), output.progress("encoding", len(view)) as advance:
        for i, batch in enumerate(view.batches(BATCH)):
            if stop.signal is not None:
                break
            devices.seed(seed, "codes", i)
            found = model.infer(batch.x_BCHW.to(model.device), sample=True)
            parts.append(model.flatten(found.values).cpu().double())
            advance(len(batch.x_BCHW))
    return torch.cat(parts)


def add(step: Path, density: Density, fitted_on: str) -> Path:
    """Put a fitted density into a step directory, in place of one that is there, and into its manifest.

    MachineError if the disk refuses; then the checkpoint is what it was. CheckpointError where there is no manifest.
    """
    checkpoint.verify(step)
    content = save_safetensors(checkpoint.contiguous(density.state_dict()), metadata=densities.dump(density, fitted_on))
    manifest = json.loads(safe_files.read(step / "manifest.json", 100_000))
    manifest[checkpoint.DENSITY_FILE] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    mark = f"{os.getpid()}-{os.urandom(4).hex()}"
    new, listed = step / f".{checkpoint.DENSITY_FILE}-{mark}", step / f".manifest-{mark}"
    without = {name: entry for name, entry in manifest.items() if name != checkpoint.DENSITY_FILE}
    try:
        checkpoint.FILES.write(new, content)
        # Not listed while it is exchanged: at no moment does the manifest speak of another file than is there.
        for entries in (without, manifest):
            checkpoint.FILES.write(listed, json.dumps(entries, indent=1, sort_keys=True).encode())
            checkpoint.FILES.rename(listed, step / "manifest.json")
            if entries is without:
                checkpoint.FILES.rename(new, step / checkpoint.DENSITY_FILE)
        checkpoint.FILES.fsync_folder(step)
    except OSError as error:
        for rest in (new, listed):
            rest.unlink(missing_ok=True)
        raise MachineError(f"{step / checkpoint.DENSITY_FILE}: could not be written: {error.strerror}") from error
    return step / checkpoint.DENSITY_FILE


def load(step: Path, latents: int) -> tuple[Density, str] | None:
    """The density fitted to the codes of a checkpoint, and in words what it was fitted to; None where there is none.

    A file that the manifest does not list is none. CheckpointError where it is damaged or another model's.
    """
    path = step / checkpoint.DENSITY_FILE
    if not safe_files.is_plain(path) or not safe_files.is_plain(step / "manifest.json"):
        return None
    checkpoint.verify(step)
    if checkpoint.DENSITY_FILE not in json.loads(safe_files.read(step / "manifest.json", 100_000)):
        return None
    metadata, _, _ = checkpoint.read_header(path)
    try:
        return densities.load(metadata, load_safetensors(safe_files.read(path)), latents)
    except (SafetensorError, InputError) as error:
        raise CheckpointError(f"{path}: {error}") from None
