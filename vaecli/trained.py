"""A trained model in Python: what `vae encode`, `decode`, `sample`, `reconstruct`, `analyze --nll` compute, on arrays.

Shapes: N images, C H W image, D latents (all levels that are inferred, side by side). Images are numbers in [0, 1] or
uint8 in 0..255, NumPy arrays or torch tensors; of a model of one channel they may be (N, H, W). What comes back is of
the kind that was given: an array for an array, a tensor (on the CPU) for a tensor.
"""

import copy
import functools
import math
from dataclasses import replace
from os import PathLike
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaecli import device as devices
from vaecli.analysis import codes as code_files
from vaecli.analysis import draws, likelihood
from vaecli.batch import DataInfo, at_once
from vaecli.commands import decode as decode_command
from vaecli.commands import reconstruct as reconstruct_command
from vaecli.commands import sample as sample_command
from vaecli.config import RunConfig
from vaecli.data.base import Dataset, Floats
from vaecli.errors import ConfigError, InputError
from vaecli.speed import fast
from vaecli.training import checkpoint as checkpoints
from vaecli.training.checkpoint import Loaded

Array = NDArray[Any]
Numbers = TypeVar("Numbers", Array, Tensor)


class Codes(NamedTuple):
    """q(z|x) of N images: means, float32 (N, D), and log-variances, (N, D), or None of a code without variances."""

    mean: Any
    logvar: Any


class Trained:
    """A model that was trained, ready for use; `vaecli.load` makes it. It draws no random number of the caller's."""

    def __init__(self, checkpoint: str | PathLike[str], device: str = "auto", density: str = "stored") -> None:
        self._loaded = checkpoints.load(str(checkpoint), devices.pick(device))
        self._source = draws.source(self._loaded, density)

    def __repr__(self) -> str:
        return f"<{self.config.model.name} of {self.info.name}, {len(self.latent_names)} latents, step {self.step:,}>"

    @property
    def config(self) -> RunConfig:
        """The configuration of its run: sections `model`, `data`, `optim` and `train`, and the `seed`."""
        return self._loaded.config

    @property
    def info(self) -> DataInfo:
        """The images it was trained on: `info.shape` is (C, H, W), `info.factor_names` what their labels are called."""
        return self._loaded.info

    @property
    def step(self) -> int:
        """Steps it was trained for."""
        return self._loaded.step

    @property
    def latent_names(self) -> list[str]:
        """The D columns of a table of codes: `z0`, `z1`, ..., or `level.0`, ... where there are several levels."""
        return self._loaded.model.latent_names()

    @property
    def module(self) -> torch.nn.Module:
        """The torch module, in evaluation mode."""
        return self._loaded.model

    def encode(self, images: Numbers) -> Numbers:
        """Images (N, C, H, W) to codes, the means of q(z|x): float32 (N, D), as `vae encode` writes them."""
        mean: Numbers = self.posterior(images).mean
        return mean

    def posterior(self, images: Numbers) -> Codes:
        """Images (N, C, H, W) to the means and log-variances of q(z|x), float32 (N, D) each, as `vae encode` writes
        them; without log-variances where a code has none, NaN for labels. ConfigError where no latents are inferred."""
        reconstruct_command.require_latents(self._loaded)
        view = self._data(images).split("all")
        with devices.aside():
            found = code_files.run_encoder(self._encoder, view, len(view), at_once(self.info.shape))
        logvar = found.get("logvar")
        return Codes(_as(images, found["mean"]), None if logvar is None else _as(images, logvar))

    def decode(self, codes: Numbers) -> Numbers:
        """Codes (N, D) to the expected images E[x|z], float32 (N, C, H, W), as `vae decode` draws them."""
        z_ND = _tensor(codes, "codes").float()
        names, whole = self.latent_names, self._loaded.model.latent_names(self._loaded.model.levels)
        if z_ND.dim() != 2 or z_ND.shape[1] not in (len(names), len(whole)):
            raise InputError(f"codes must be numbers of shape (N, {len(names)}), not {tuple(z_ND.shape)}")
        if not bool(z_ND.isfinite().all()):
            raise InputError("the codes are not finite")
        with torch.inference_mode(), devices.aside():
            parts = [x for x, _ in decode_command.decode(self._loaded.model, z_ND, at_once(self.info.shape))]
        return _as(codes, torch.from_numpy(np.concatenate(parts) if parts else np.empty((0, *self.info.shape), "f4")))

    def sample(self, n: int, seed: int = 0, temperature: float = 1.0) -> NDArray[np.float32]:
        """`n` images drawn from the prior (or the density stored with the model), float32 (n, C, H, W), as
        `vae sample -n N --seed SEED` draws them. `temperature` scales the prior's standard deviation.

        ConfigError where there is nothing to draw from, or for numbers out of range.
        """
        return self.sample_with_codes(n, seed, temperature)[0]

    def sample_with_codes(
        self, n: int, seed: int = 0, temperature: float = 1.0
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `sample`, with the latents of all levels that the images are of, float32 (n, D)."""
        if n < 1 or not (math.isfinite(temperature) and temperature >= 0):
            raise ConfigError(f"n is {n} and temperature {temperature}: at least 1 and at least 0 are needed")
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must never be negative")
        with torch.inference_mode(), devices.aside():
            devices.seed(seed, "sample")
            images, codes = zip(*sample_command.draw(self._source, n, temperature), strict=True)
        return np.concatenate(images), np.concatenate(codes)

    def reconstruct(self, images: Numbers, seed: int = 0) -> Numbers:
        """Images (N, C, H, W) to the expected images at the modes of q(z|x), float32 (N, C, H, W), as
        `vae reconstruct` draws them. ConfigError where the model infers no latents."""
        reconstruct_command.require_latents(self._loaded)
        x_NCHW = self._images(images)
        with devices.aside():
            devices.seed(seed, "reconstruct")
            found_NCHW = reconstruct_command.outputs(self._loaded, x_NCHW)[0]
        return _as(images, found_NCHW)

    def nll(self, images: Numbers, k: int = 500, seed: int = 0) -> Numbers:
        """-log p(x) of each image in nats, float64 (N,), estimated with `k` draws of q(z|x) by importance sampling
        (Burda et al. 2016, eq. 8), as `vae analyze --nll K`: at k = 1 the negative ELBO, and less with a larger k.

        ConfigError where the model has no likelihood, or no density of its posterior.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; it must be at least 1")
        view = self._data(images).split("all")
        model, hyper = self._encoder.model, self._loaded.hyper
        with devices.aside():
            refused = likelihood.refusal(model, view.take(2).x_BCHW, hyper)
            if refused is not None:
                raise ConfigError(f"there is no -log p(x): {refused}")
            found = likelihood.estimate(model, view, hyper, k, images=len(view), seed=seed)
        return _as(images, found.each_N)

    @functools.cached_property
    def _encoder(self) -> Loaded:
        """With layers of the fast path, as `vae encode` and `analyze` have them; other commands have the plain ones."""
        loaded = replace(self._loaded, model=copy.deepcopy(self._loaded.model))
        fast.accelerate(loaded.model)
        return loaded

    def _data(self, images: Array | Tensor) -> Dataset:
        info = replace(self.info, name="images", source={}, factor_names=(), factor_sizes=(), value_names=())
        return Dataset(info, Floats(self._images(images)), None, {})

    def _images(self, images: Array | Tensor) -> Tensor:
        """float32 (N, C, H, W) in [0, 1] on the CPU; InputError where they are none."""
        shape, x = self.info.shape, _tensor(images, "images")
        if x.dim() == 3 and shape[0] == 1:
            x = x.unsqueeze(1)
        if x.dim() != 4 or tuple(x.shape[1:]) != shape or not len(x):
            wanted = ", ".join(map(str, shape))
            raise InputError(f"images must be numbers of shape (N, {wanted}), not {tuple(x.shape)}")
        if x.dtype == torch.uint8:
            return x.float() / 255.0
        if not x.is_floating_point() and x.dtype != torch.bool:
            raise InputError(f"images must be floats in [0, 1] or uint8, not {x.dtype}".replace("torch.", ""))
        x = x.float()
        if not bool(((x >= 0) & (x <= 1)).all()):
            low, high = float(x.min()), float(x.max())
            raise InputError(f"images must lie in [0, 1]; these go from {low:g} to {high:g}", "uint8 is divided by 255")
        return x


def _tensor(given: Any, what: str) -> Tensor:
    """On the CPU; InputError where it is none and no array."""
    try:
        return torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be an array or a tensor of numbers, not {type(given).__name__}") from error


def _as(given: Numbers, found: Tensor) -> Numbers:
    """In the kind of what was given."""
    return found if isinstance(given, Tensor) else found.numpy()
