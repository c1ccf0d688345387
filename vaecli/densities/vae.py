"""A second VAE, on the codes: the second stage of Dai & Wipf 2019, section 4.

Codes (standardised) are modelled by a Gaussian VAE with as many latents u as there are codes and one learned standard
deviation g: minimise |z - z'(u)|^2 / (2 g^2) + D log g + KL(q(u|z) || N(0, I)). A draw is z'(u) + g eps, u ~ N(0, I).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from vaecli.densities import base
from vaecli.nets.stochastic import Shortcut
from vaecli.objectives import terms
from vaecli.settings.section import Positive, PositiveInt, Width


class Config(base.DensityConfig):
    """Three hidden layers of `width` on each side, whose input is given to the last layer again; Adam at `lr`, halved
    at a half and at three quarters of the `steps`."""

    name: Literal["vae"] = "vae"
    width: Width = 512
    steps: PositiveInt = 10_000
    batch_size: PositiveInt = 128
    lr: Positive = 5e-4


class Density(base.Density):
    config: Config
    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, config: Config, latents: int) -> None:
        super().__init__(config, latents)
        self.encoder = Shortcut(latents, [config.width] * 3, 2 * latents)
        self.decoder = Shortcut(latents, [config.width] * 3, latents)
        # Small at first: started at 1, as large as the codes themselves, a fit can stay where u says nothing of z.
        self.log_g = nn.Parameter(torch.full((), math.log(0.1)))
        self.register_buffer("mean_D", torch.zeros(latents))
        self.register_buffer("scale_D", torch.ones(latents))

    def loss(self, z_BD: Tensor) -> Tensor:
        """-ELBO of standardised codes in nats, (B,), one draw of u each."""
        mean_BD, logvar_BD = self.encoder(z_BD).chunk(2, dim=1)
        logvar_BD = terms.clamp_logvar(logvar_BD)
        found_BD = self.decoder(terms.reparameterize(mean_BD, logvar_BD))
        log_prob_BD = terms.log_normal(z_BD, found_BD, 2 * self.log_g)
        return (terms.kl_normal(mean_BD, logvar_BD) - log_prob_BD).sum(dim=1)

    def fit(self, codes_ND: Tensor, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        base.cholesky(torch.cov(codes_ND.T, correction=0).reshape(self.latents, self.latents))  # something must vary
        self.mean_D.copy_(codes_ND.mean(dim=0))
        self.scale_D.copy_(codes_ND.std(dim=0, correction=0).clamp(min=1e-12))
        z_ND = ((codes_ND - codes_ND.mean(dim=0)) / codes_ND.std(dim=0, correction=0).clamp(min=1e-12)).float()
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.lr)
        steps = self.config.steps
        for step in range(steps):
            if stop():
                break
            optimizer.param_groups[0]["lr"] = self.config.lr * 0.5 ** ((step >= steps // 2) + (step >= 3 * steps // 4))
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(z_ND[torch.randint(len(z_ND), (self.config.batch_size,))]).mean())
            optimizer.step()
            with torch.no_grad():  # a code that fits to rounding has no best g
                self.log_g.clamp_(min=math.log(1e-3))
            progress(len(codes_ND) / steps)

    def sample(self, n: int) -> Tensor:
        with torch.no_grad():
            z_ND = self.decoder(torch.randn(n, self.latents))
            z_ND = z_ND + self.log_g.exp() * torch.randn(n, self.latents)
            drawn: Tensor = self.mean_D + self.scale_D * z_ND
        return drawn

    def text(self) -> str:
        return f"a second VAE ({self.config.width} wide, {self.config.steps:,} steps)"
