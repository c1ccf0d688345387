"""Likelihoods p(x|z): what the decoder's raw output means, chosen by `likelihood:` in a model's section.

`bernoulli` reads the output as logits. `gaussian` reads it as means with one standard deviation sigma for all pixels,
so that with sigma = 1 the reconstruction term is half the squared error plus a constant. Shapes: B batch, C H W image.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from vaecli.objectives import terms
from vaecli.settings import schedules
from vaecli.settings.schedules import Scalar
from vaecli.settings.section import Positive, Section


class AutoConfig(Section):
    """The likelihood that fits the pixels: `bernoulli` of black and white ones, else a Gaussian; see `chosen`."""

    name: Literal["auto"] = "auto"


class BernoulliConfig(Section):
    """Each pixel is a coin of probability sigmoid(output)."""

    name: Literal["bernoulli"] = "bernoulli"


class GaussianLikelihoodConfig(Section):
    """Each pixel is N(output, sigma^2).

    `variance`  `fixed`: sigma is the number or schedule given. `learned`: sigma is a parameter that starts there.
                `optimal`: sigma^2 is the batch's mean squared error (sigma-VAE), and sigma serves until the first step.
                `running`: sigma^2 follows it down from where it starts and never rises (Asperti & Trentin).
    """

    name: Literal["gaussian"] = "gaussian"
    variance: Literal["fixed", "learned", "optimal", "running"] = "fixed"
    sigma: Scalar = 1.0

    @model_validator(mode="after")
    def _sigma(self) -> "GaussianLikelihoodConfig":
        if schedules.lowest(self.sigma) <= 0:
            raise ValueError("`sigma` must be greater than 0")
        if self.variance != "fixed" and not isinstance(self.sigma, (int, float)):
            raise ValueError(f"a schedule for `sigma` does nothing when `variance` is {self.variance!r}; give a number")
        return self


class LaplaceConfig(Section):
    """Each pixel is Laplace(output, scale): the reconstruction is the absolute error. The scale is fixed or learned."""

    name: Literal["laplace"] = "laplace"
    variance: Literal["fixed", "learned"] = "fixed"
    scale: Positive = 1.0


class ContinuousBernoulliConfig(Section):
    """Each pixel is in [0, 1] with the density that a Bernoulli's cross-entropy lacks the constant to be."""

    name: Literal["continuous-bernoulli"] = "continuous-bernoulli"


class DiscretizedLogisticConfig(Section):
    """Each pixel is one of `levels` grey levels, by a logistic around the output cut into bins; one learned scale."""

    name: Literal["discretized-logistic"] = "discretized-logistic"
    levels: Annotated[int, Field(ge=2, le=65_536)] = 256
    scale: Positive = 0.1


_ALIASES = {"bce": "bernoulli", "mse": "gaussian"}


def _expand(value: Any) -> Any:
    """`gaussian` for `{name: gaussian}`, and the names under which users know the losses."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return {**value, "name": _ALIASES.get(value["name"], value["name"])}
    return value


LikelihoodConfig = Annotated[
    AutoConfig
    | BernoulliConfig
    | GaussianLikelihoodConfig
    | LaplaceConfig
    | ContinuousBernoulliConfig
    | DiscretizedLogisticConfig,
    Field(discriminator="name"),
    BeforeValidator(_expand),
]


class Likelihood(nn.Module):
    """p(x|out), where `out` (B, C, H, W) is the decoder's raw output.

    `levels`: how many values a pixel has, evenly spaced in [0, 1], of whose images it is a probability; None of a
    density. `logits`: `out` is a logit, not a value of the image.
    """

    levels: int | None = None
    logits: ClassVar[bool] = False

    def mean(self, out_BCHW: Tensor) -> Tensor:
        """The expected image, (B, C, H, W)."""
        raise NotImplementedError

    def raw(self, mean: Tensor) -> Tensor:
        """The output whose expected image is `mean` (any shape), kept a little inside (0, 1) where it must be."""
        raise NotImplementedError

    def log_prob(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        """log p(x|out) in nats, summed over pixels, (B,)."""
        raise NotImplementedError

    def text(self, hyper: Mapping[str, float]) -> str:
        """One phrase for the banner."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Independent coins; for pixels between 0 and 1 the cross-entropy, as is usual."""

    levels = 2
    logits = True

    def mean(self, out_BCHW: Tensor) -> Tensor:
        return torch.sigmoid(out_BCHW)

    def raw(self, mean: Tensor) -> Tensor:
        return mean.clamp(0.001, 0.999).logit()  # the bounds of Burda et al.'s code

    def log_prob(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        return terms.bernoulli_log_prob(x_BCHW, out_BCHW)

    def text(self, hyper: Mapping[str, float]) -> str:
        return "Bernoulli likelihood"


class Gaussian(Likelihood):
    """One sigma for all pixels, read from `hyper["likelihood.sigma"]`."""

    def mean(self, out_BCHW: Tensor) -> Tensor:
        return out_BCHW

    def raw(self, mean: Tensor) -> Tensor:
        return mean

    def sigma(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> float | Tensor:
        """The standard deviation that scores this batch, one number."""
        return hyper["likelihood.sigma"]

    def log_prob(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        return terms.gaussian_log_prob(x_BCHW, out_BCHW, self.sigma(x_BCHW, out_BCHW, hyper))

    def text(self, hyper: Mapping[str, float]) -> str:
        return f"Gaussian likelihood, sigma = {hyper['likelihood.sigma']:.4g}"


class LearnedGaussian(Gaussian):
    """One sigma for all pixels, trained with the network through its logarithm (Dai & Wipf 2019)."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.full((), math.log(sigma)))

    def sigma(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        return self.log_sigma.exp()

    def text(self, hyper: Mapping[str, float]) -> str:
        return "Gaussian likelihood, sigma learned"


class OptimalGaussian(Gaussian):
    """sigma^2 = the batch's mean squared error, the maximum of the likelihood (sigma-VAE, Rybkin et al. 2021, eq. 5).

    It may be held constant for the gradient: at a maximum in sigma the derivative through sigma is zero. A running
    mean of the training batches' values serves in eval mode, so that there every image is scored by one fixed density
    whatever else is in its batch.
    """

    RATE = 0.05  # the running mean spans about 20 batches: it follows a falling error and averages the noise
    FLOOR = 1e-6  # below the rounding of 8-bit images (1/255)^2 / 12 a narrower density measures nothing
    variance: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.register_buffer("variance", torch.full((), sigma**2))

    def sigma(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        if not self.training:
            return self.variance.sqrt()
        mse = (x_BCHW - out_BCHW.detach()).square().mean().clamp(min=self.FLOOR)
        # A value that is not finite ends the run, and must not be among what is kept of it.
        seen = torch.where(mse.isfinite(), mse.to(self.variance.dtype), self.variance)
        self.variance.lerp_(seen, self.RATE)
        return mse.sqrt()

    def text(self, hyper: Mapping[str, float]) -> str:
        return "Gaussian likelihood, sigma^2 = the batch's mean squared error"


class RunningGaussian(Gaussian):
    """sigma^2 <- min(sigma^2, 0.99 sigma^2 + 0.01 MSE) over the training batches: it follows the error down and never
    rises (Asperti & Trentin 2020, section 4, and their code). Constant for the gradient.

    A ratchet: batches below it pull it down and none pushes it up, so that it ends below the error, by a tenth with
    batches of 128 of MNIST and by a fortieth with 2048 (the row asperti-sigma).

    At sigma^2 = MSE the reconstruction is D/2 log MSE and a constant, so that the balance of reconstruction and KL
    stays what it is while the error falls.
    """

    RATE = 0.01
    FLOOR = 1e-6
    variance: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.register_buffer("variance", torch.full((), sigma**2))

    def sigma(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        if self.training:
            mse = (x_BCHW - out_BCHW.detach()).square().mean().clamp(min=self.FLOOR)
            seen = torch.where(mse.isfinite(), mse.to(self.variance.dtype), self.variance)
            self.variance.copy_(torch.minimum(self.variance, torch.lerp(self.variance, seen, self.RATE)))
        return self.variance.sqrt()

    def text(self, hyper: Mapping[str, float]) -> str:
        return "Gaussian likelihood, sigma^2 = a running mean of the squared error that never rises"


class Laplace(Likelihood):
    """One scale for all pixels, fixed or learned through its logarithm."""

    def __init__(self, scale: float, learned: bool) -> None:
        super().__init__()
        self.fixed = None if learned else scale
        if learned:
            self.log_scale = nn.Parameter(torch.full((), math.log(scale)))

    def mean(self, out_BCHW: Tensor) -> Tensor:
        return out_BCHW

    def raw(self, mean: Tensor) -> Tensor:
        return mean

    def log_prob(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        return terms.laplace_log_prob(x_BCHW, out_BCHW, self.log_scale.exp() if self.fixed is None else self.fixed)

    def text(self, hyper: Mapping[str, float]) -> str:
        return "Laplace likelihood, scale " + ("learned" if self.fixed is None else f"= {self.fixed:.4g}")


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1] with the Bernoulli's cross-entropy in it (Loaiza-Ganem & Cunningham 2019)."""

    logits = True

    def mean(self, out_BCHW: Tensor) -> Tensor:
        return terms.continuous_bernoulli_mean(out_BCHW)

    def raw(self, mean: Tensor) -> Tensor:
        # The mean rises with the logit: halve the interval that holds it. Beyond +-998 it is within 0.001 of the ends.
        mean = mean.clamp(0.001, 0.999)
        low, high = torch.full_like(mean, -1000.0), torch.full_like(mean, 1000.0)
        for _ in range(60):
            middle = (low + high) / 2
            above = terms.continuous_bernoulli_mean(middle) > mean
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def log_prob(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        return terms.continuous_bernoulli_log_prob(x_BCHW, out_BCHW)

    def text(self, hyper: Mapping[str, float]) -> str:
        return "continuous Bernoulli likelihood"


class DiscretizedLogistic(Likelihood):
    """One scale for all pixels, learned through its logarithm; the output's mean is the expected image but for the cut
    at 0 and 1."""

    levels: int

    def __init__(self, levels: int, scale: float) -> None:
        super().__init__()
        self.levels = levels
        self.log_scale = nn.Parameter(torch.full((), math.log(scale)))

    def mean(self, out_BCHW: Tensor) -> Tensor:
        return out_BCHW.clamp(0.0, 1.0)

    def raw(self, mean: Tensor) -> Tensor:
        return mean

    def log_prob(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        return terms.discretized_logistic_log_prob(x_BCHW, out_BCHW, self.log_scale, self.levels)

    def text(self, hyper: Mapping[str, float]) -> str:
        return f"logistic likelihood over {self.levels} levels, scale learned"


NEARLY_BINARY = 0.8  # contrast from which on pixels count as black and white: MNIST has 0.84, photographs 0.2 to 0.4
START = 0.3  # the learned standard deviation's start: about that of photographs around their mean


def chosen(binary: bool, contrast: float = 0.0) -> tuple[BernoulliConfig | GaussianLikelihoodConfig, str]:
    """The likelihood for pixels of this contrast (see `DataInfo`) where none is asked for, and why."""
    if binary:
        return BernoulliConfig(), "likelihood bernoulli: every pixel is black or white"
    if contrast >= NEARLY_BINARY:
        return BernoulliConfig(), f"likelihood bernoulli: pixels are nearly black and white (contrast {contrast:.2f})"
    gaussian = GaussianLikelihoodConfig(variance="learned", sigma=START)
    return gaussian, f"likelihood gaussian of learned variance: pixels take values between (contrast {contrast:.2f})"


def build(config: Any, binary: bool = True, contrast: float = 0.0) -> Likelihood:
    """The likelihood that a checked section describes; of `auto`, that of such pixels."""
    if isinstance(config, AutoConfig):
        config = chosen(binary, contrast)[0]
    if isinstance(config, BernoulliConfig):
        return Bernoulli()
    if isinstance(config, LaplaceConfig):
        return Laplace(config.scale, config.variance == "learned")
    if isinstance(config, ContinuousBernoulliConfig):
        return ContinuousBernoulli()
    if isinstance(config, DiscretizedLogisticConfig):
        return DiscretizedLogistic(config.levels, config.scale)
    if isinstance(config.sigma, (int, float)):
        variances = {"learned": LearnedGaussian, "optimal": OptimalGaussian, "running": RunningGaussian}
        if config.variance in variances:
            return variances[config.variance](config.sigma)
    return Gaussian()
