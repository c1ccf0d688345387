"""A decoder as data that `nets.js` computes with: layers, their shapes and their weights.

Only what is written here is written at all, and what comes of it is compared with the model before: a page never shows
something else than `vae decode`.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaecli.errors import ConfigError
from vaecli.models.base import Model
from vaecli.nets import coders

LARGEST = 48 << 20  # bytes of weights in a page
TOLERANCE = 1e-4
# What follows the decoder's output, tried in this order.
LAST: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "": lambda x: x, "clamp": lambda x: x.clamp(0, 1), "tanh": torch.tanh
}  # fmt: skip
POINTWISE: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.LeakyReLU: "leaky-relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.ELU: "elu",
    nn.SiLU: "silu", nn.Softplus: "softplus",
}  # fmt: skip


class Unwritable(ConfigError):
    """A decoder that no page can hold, with the reason."""


def layers_of(model: Model) -> list[dict[str, Any]]:
    """The decoder of a model of one level of numbers, from its latents to the expected image.

    Unwritable where it has layers that are none of those, more weights than fit, or does more than its layers.
    """
    name = model.config.name
    if len(model.levels) != 1 or model.levels[0].kind not in ("gaussian", "point"):
        levels = ", ".join(f"{level.name} ({level.kind})" for level in model.levels)
        raise Unwritable(f"{name} decodes from {levels}: a page can hold one level of numbers", _SERVED)
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, nn.Sequential):
        raise Unwritable(f"{name} has no decoder made of layers one after the other", _SERVED)
    size = size_of(model)
    if size > LARGEST:
        raise Unwritable(f"the decoder has {size / 1e6:.0f} MB of weights; a page holds {LARGEST / 1e6:.0f}", _SERVED)
    layers = [layer for module in decoder for layer in _layers(module)]
    generator = torch.Generator().manual_seed(0)
    z_BD = torch.randn(4, model.levels[0].size, generator=generator).to(model.device)
    with torch.inference_mode():
        wanted = model.image({model.levels[0].name: z_BD.reshape(4, *model.levels[0].shape)}).float()
        raw = decoder(z_BD).float()
    for last, function in LAST.items():
        if raw.shape == wanted.shape and float((function(raw) - wanted).abs().max()) < TOLERANCE:
            return [*layers, {"kind": last}] if last else layers
    raise Unwritable(f"{name} makes more of its decoder's output than a page can", _SERVED)


def size_of(model: Model) -> int:
    """Bytes of the decoder's weights."""
    return sum(p.numel() * 4 for p in getattr(model, "decoder", nn.Identity()).parameters())


_SERVED = "without -o a server on this machine decodes"


def _layers(module: nn.Module) -> list[dict[str, Any]]:
    """A module's layers; the fast path has taken the activation after a layer into it (`speed.fast.accelerate`)."""
    if isinstance(module, nn.Identity):
        return []
    after = getattr(module, "after", None)
    return [_layer(module), *([{"kind": after}] if after else [])]


def _layer(module: nn.Module) -> dict[str, Any]:
    for kind, name in POINTWISE.items():
        if type(module) is kind:
            return {"kind": name} | ({"slope": module.negative_slope} if isinstance(module, nn.LeakyReLU) else {})
    if isinstance(module, nn.Linear):
        return {"kind": "linear", **_weights(module)}
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return _convolution(module)
    if isinstance(module, nn.Unflatten):
        return {"kind": "shape", "shape": list(module.unflattened_size)}
    if isinstance(module, nn.Flatten):
        return {"kind": "flatten"}
    if isinstance(module, nn.ZeroPad2d):
        return {"kind": "pad", "borders": [int(side) for side in module.padding]}
    if isinstance(module, nn.Upsample) and module.mode == "nearest":
        if module.size is not None:
            to = module.size if isinstance(module.size, (tuple, list)) else (module.size, module.size)
            return {"kind": "resize", "to": [int(side) for side in to]}
        by: Any = module.scale_factor
        return {"kind": "resize", "by": [float(f) for f in (by if isinstance(by, (tuple, list)) else (by, by))]}
    if isinstance(module, coders._Block):
        act = {"kind": "silu"}
        return {"kind": "block", "layers": [act, _convolution(module.inner), act, _convolution(module.outer)]}
    raise Unwritable(f"the decoder has a layer {type(module).__name__}, which the page cannot compute", _SERVED)


def _convolution(module: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    if not plain or isinstance(module.padding, str):
        raise Unwritable("the decoder has a convolution with groups, dilation or another padding", _SERVED)
    about = {"stride": list(module.stride), "padding": list(module.padding), **_weights(module)}
    if isinstance(module, nn.ConvTranspose2d):
        return {"kind": "transposed", "extra": list(module.output_padding), **about}
    return {"kind": "conv", **about}


def _weights(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    bias = {} if module.bias is None else {"bias": packed(module.bias)}
    return {"size": list(module.weight.shape), "weight": packed(module.weight), **bias}


def packed(values: Tensor) -> str:
    """Numbers as little-endian float32 in base64."""
    array = values.detach().cpu().float().contiguous().numpy()
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def unpacked(text: str, shape: Sequence[int]) -> Tensor:
    """The inverse."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").reshape(tuple(shape)).copy())
