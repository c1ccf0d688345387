"""What a density on codes is asked for. Shapes: N codes, B draws, D latents."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from vaecli.batch import DataInfo
from vaecli.errors import InputError
from vaecli.settings.section import Section


class DensityConfig(Section):
    """What every density's section has: the registered name."""

    name: str


class Density(nn.Module):
    """p(z) over D latents; its parameters and buffers are what is saved.

    `labelled`: whether it is fitted to codes with labels, which it is `told`. `used`: how many of the codes it was
    fitted to, where not to all.
    """

    labelled: ClassVar[bool] = False
    used: int | None = None

    def __init__(self, config: DensityConfig, latents: int) -> None:
        super().__init__()
        self.config, self.latents = config, latents

    def check(self, codes: int) -> None:
        """ConfigError where the settings do not fit so many codes, or what fits them is not installed."""

    def told(self, labels_NK: Tensor, info: DataInfo) -> None:
        """The labels of the codes that it is fitted to next, int64 (N, K), -1 where one is not known. ConfigError where
        the settings do not fit them."""

    def fit(self, codes_ND: Tensor, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        """Fit to float64 codes. ConfigError as of `check`; `stop()` ends a long fit early.

        Randomness comes from torch's global generator.
        """
        raise NotImplementedError

    def sample(self, n: int) -> Tensor:
        """n draws, float32 (n, D), from torch's global generator."""
        raise NotImplementedError

    def log_prob(self, z_BD: Tensor) -> Tensor | None:
        """log p(z) in nats, (B,); None where it is not known."""
        return None

    def text(self) -> str:
        """In a few words, for messages."""
        raise NotImplementedError


def cholesky(covariance: Tensor) -> Tensor:
    """The lower factor of covariances (..., D, D) in float64; directions without variance get 1e-12 of the largest.

    InputError where no latent varies.
    """
    largest = covariance.diagonal(dim1=-2, dim2=-1).amax()
    if not float(largest) > 0:
        raise InputError("no latent varies: there is nothing to fit a density to")
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    factor: Tensor = torch.linalg.cholesky(covariance + 1e-12 * largest * eye)
    return factor
