"""The density fitted to a model's codes, beside the weights in a step directory and in its manifest."""

import hashlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from vaecli import densities, safe_files
from vaecli.densities.base import Density
from vaecli.errors import InputError, MachineError
from vaecli.training import checkpoint
from vaecli.training.checkpoint import CheckpointError


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
