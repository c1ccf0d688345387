"""Regularised autoencoder: a deterministic code, kept small and its decoder kept smooth.

Ghosh et al. 2020, "From Variational to Deterministic Autoencoders", eq. 7 to 9:
loss = |x - D(E(x))|^2 + beta |z|^2 / 2 + lambda R, where R is the squared norm of the decoder's weights (`l2`), that of
its derivative by the latent, |grad_z D(z)|^2 (`gradient-penalty`), or nothing. `spectral-norm` bounds every layer's
largest singular value by 1 instead. The default likelihood, a Gaussian of variance 1/2, is the squared error and a
constant.

There is no prior: fit a density to the codes (`vae density RUN --fit mixture`), from which `vae sample` then draws.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils import parametrizations

from vaecli.batch import Batch, DataInfo, Split
from vaecli.data.orders import Order
from vaecli.errors import ConfigError
from vaecli.models.base import Hyper, NetConfig, NetModel, NoPrior, Term, Values
from vaecli.objectives import likelihoods
from vaecli.objectives.distributions import Point
from vaecli.settings.schedules import Weight

STRENGTH = 1e-4


class Config(NetConfig):
    """`beta` weighs |z|^2 / 2, `strength` is lambda, the weight of the regulariser."""

    name: Literal["rae"] = "rae"
    likelihood: likelihoods.LikelihoodConfig = likelihoods.GaussianLikelihoodConfig(sigma=math.sqrt(0.5))
    latent_dim: int = 16
    beta: Weight = 1e-2
    regulariser: Literal["l2", "gradient-penalty", "spectral-norm", "none"] = "l2"
    strength: Weight = STRENGTH


class Model(NetModel):
    """z = E(x): a point, not a distribution."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        if config.regulariser == "spectral-norm":
            for module in [*self.encoder.modules(), *self.decoder.modules()]:
                if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                    parametrizations.spectral_norm(module)

    def order(self, train: Split, seed: int, batch_size: int) -> Order:
        """ConfigError for a strength of nothing; a run that has one can be read nevertheless."""
        config = self.config
        if config.regulariser in ("spectral-norm", "none") and config.strength not in (0.0, STRENGTH):
            raise ConfigError(f"model.strength would do nothing: model.regulariser is {config.regulariser}")
        return super().order(train, seed, batch_size)

    def features(self, x_BCHW: Tensor) -> Tensor:
        return self.network(self.encoder, x_BCHW)

    def q(self, level: str, features: Tensor, given: Values) -> Point:
        return Point(features)

    def p(self, level: str, given: Values, n: int) -> Distribution:
        raise NoPrior("a regularised autoencoder has no prior to sample from", "fit one: vae density RUN --fit mixture")

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        z_BD = self.features(batch.x_BCHW)
        recon = -self.log_prob(batch.x_BCHW, {"z": z_BD}, hyper).mean()
        parts = {"recon": Term(recon), "code": Term(0.5 * z_BD.square().sum(dim=1).mean(), hyper["beta"], "1")}
        if self.config.regulariser == "l2":
            parts["weights"] = Term(self.weights(), hyper["strength"], "1")
        elif self.config.regulariser == "gradient-penalty":
            parts["slope"] = Term(self.slope(z_BD).mean(), hyper["strength"], "1")
        return parts

    def weights(self) -> Tensor:
        """The squared norm of the decoder's weights, biases apart, ()."""
        return torch.stack([p.square().sum() for p in self.decoder.parameters() if p.dim() > 1]).sum()

    def slope(self, z_BD: Tensor) -> Tensor:
        """|d E[x|z] / dz|^2, the squared Frobenius norm of the decoder's Jacobian, (B,), estimated without bias by one
        random direction v of images: E |v^T J|^2 = |J|^2 for v ~ N(0, I)."""
        with torch.enable_grad():
            z_BD = z_BD if z_BD.requires_grad else z_BD.detach().requires_grad_(True)
            x_BCHW = self.likelihood.mean(self.out(z_BD))
            (row_BD,) = torch.autograd.grad(x_BCHW, z_BD, torch.randn_like(x_BCHW), create_graph=self.training)
        return row_BD.square().sum(dim=1)

    def objective_text(self, hyper: Hyper) -> str:
        names = {"l2": " + lambda |decoder's weights|^2", "gradient-penalty": " + lambda |dx/dz|^2"}
        added = names.get(self.config.regulariser, "")
        weight = f", lambda = {hyper['strength']:.4g}" if added else ""
        normed = "; spectral norm of every layer at most 1" if self.config.regulariser == "spectral-norm" else ""
        return (
            f"minimise recon + beta |z|^2 / 2{added}; beta = {hyper['beta']:.4g}{weight}{normed}; "
            f"{self.likelihood.text(hyper)}; sum over pixels and latents, mean over the batch"
        )
