"""vae: train, sample, traverse, reconstruct and analyze variational autoencoders; `load` one in Python."""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaecli.trained import Trained

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(checkpoint: "str | PathLike[str]", device: str = "auto", density: str = "stored") -> "Trained":
    """The trained model of a run, a step directory, a `.safetensors` file or `hf://owner/name[@revision]`.

    `device` is `auto`, `cpu`, `cuda` or `mps`; `density` says what `sample` draws from: the density that is `stored`
    with the model, if any, or the model's own prior (`none`). Torch is imported here, not with `vaecli`.

    Raises `vaecli.errors.InputError` where there is no such checkpoint or it is damaged, `MachineError` where the
    device is absent, `ConfigError` for another word.
    """
    from vaecli.trained import Trained

    return Trained(checkpoint, device, density)
