"""The features that an FID is taken in: Inception of Szegedy et al. 2016 in the version and with the weights of Heusel
et al. 2017, from a file that the user has.

torch-fidelity has the network with the quirks of the original (its resizing, its pooling). It would read the published
weights as a pickle, which runs code; here they are read from safetensors and handed over.

Shapes: B batch, C H W image, F = 2048 features.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from vaecli.errors import ConfigError, InputError

FEATURES = "2048"  # the last pooled ones, by torch-fidelity's name for them
LARGEST = 256 << 20  # bytes of a weights' file; the published ones are 91 MB
BATCH = 32  # at 299 x 299 pixels, 2.3 GB of activations at 256
CONVERT = (
    "the published weights (torch-fidelity's weights-inception-2015-12-05-6726825d.pth) become such a file by: "
    "python -c 'import torch, safetensors.torch as s; "
    's.save_file(torch.load("FILE.pth", weights_only=True), "FILE.safetensors")\''
)


@dataclass(frozen=True)
class Inception:
    """The network, in evaluation mode. `digest` is of the weights' file: with other weights it is another distance."""

    distance: ClassVar[str] = "FID"
    net: nn.Module
    digest: str

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Pooled activations, float32 (B, 2048), of images of 1 or 3 channels in [0, 1]; grey ones count as colour.

        Values are rounded to 8 bits first, as the network's input is of images from files.
        """
        with torch.inference_mode():
            device = next(self.net.parameters()).device
            bytes_BCHW = (x_BCHW.to(device).clamp(0, 1) * 255).round().to(torch.uint8)
            if bytes_BCHW.shape[1] == 1:
                bytes_BCHW = bytes_BCHW.expand(-1, 3, -1, -1)
            return torch.cat([self.net(part)[0] for part in torch.split(bytes_BCHW, BATCH)])

    def text(self) -> str:
        """What judges."""
        return "Inception with the weights given"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"digest": self.digest}


def inception(path: str, channels: int, device: torch.device | str = "cpu") -> Inception:
    """The network with the weights of a safetensors file.

    ConfigError without the package or for images of other than 1 or 3 channels, InputError for a file that does not
    hold these weights.
    """
    if channels not in (1, 3):
        raise ConfigError(f"--fid: images of {channels} channels; Inception reads colour or grey ones")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ConfigError("--fid needs torch-fidelity", "pip install 'vaecli[fid]'") from None
    if not path.endswith(".safetensors"):
        raise InputError(f"{path}: not a .safetensors file; a pickle is never loaded", CONVERT)
    try:
        if Path(path).stat().st_size > LARGEST:
            raise InputError(f"{path}: larger than {LARGEST >> 20} MB, which these weights are not", CONVERT)
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        weights = load_safetensors(content)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not readable as safetensors: {error}", CONVERT) from None
    # The constructor takes weights by path alone, and unpickles them: these it may, they are written on this line.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(weights, file)
        try:
            net = FeatureExtractorInceptionV3("inception", [FEATURES], feature_extractor_weights_path=str(file))
        except RuntimeError as error:  # names or shapes that differ
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise InputError(f"{path}: not the weights of this network: {first[:200]}", CONVERT) from None
    return Inception(net.to(device), hashlib.sha256(content).hexdigest()[:16])
