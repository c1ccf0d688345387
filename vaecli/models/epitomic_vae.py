"""Epitomic VAE: each image is explained by one of several overlapping parts of the latents.

Yeung et al. 2017, "Tackling Over-pruning in Variational Autoencoders", section 3. Epitome y, one of P with equal
probability, has the K latents from y * stride on; q(z|y,x) = N(m_y mu(x), exp(m_y log sigma^2(x))), so that a latent
outside is N(0, 1) and costs nothing. q(y|x) is all on y*, the epitome of the least cost
C_y = -log p(x | m_y z) + sum over its latents of KL, and KL(q(y|x) || p(y)) = log P.
Once an epoch y* is chosen for every training image, by the codes' means; batches hold the epitomes in their shares.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from vaecli.batch import Batch, DataInfo, Split
from vaecli.data.orders import Balanced, Order
from vaecli.errors import ConfigError
from vaecli.models.base import (
    FreeBitsConfig,
    GaussianVAE,
    Hyper,
    Level,
    Posterior,
    Term,
    Values,
    kl_terms,
    kl_text,
    unless_free,
)
from vaecli.objectives import distributions, terms
from vaecli.settings import schedules
from vaecli.settings.schedules import Weight
from vaecli.settings.section import PositiveInt


class Config(FreeBitsConfig):
    """`epitome` is K, the latents of each; `stride` from one to the next (K, the default, if None: no overlap).
    `beta` and `free_bits` are of what is minimised; y* is chosen by the bound itself."""

    tiny: ClassVar[dict[str, Any]] = {**FreeBitsConfig.tiny, "latent_dim": 4, "epitome": 2}
    name: Literal["epitomic-vae"] = "epitomic-vae"
    latent_dim: int = 24
    epitome: PositiveInt = 3
    stride: PositiveInt | None = None
    beta: Weight = 1.0

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.epitome > self.latent_dim:
            raise ValueError(f"`epitome` is {self.epitome}, but there are {self.latent_dim} latents")
        if (self.latent_dim - self.epitome) % self.step:
            raise ValueError(f"a stride of {self.step} leaves the last latents in no epitome")
        return self

    @property
    def step(self) -> int:
        return self.stride or self.epitome


class Model(GaussianVAE):
    """The VAE with a mask on its latents."""

    config: Config
    mask_PD: Tensor
    assignment_N: Tensor

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        starts = range(0, config.latent_dim - config.epitome + 1, config.step)
        mask_PD = torch.zeros(len(starts), config.latent_dim)
        for y, start in enumerate(starts):
            mask_PD[y, start : start + config.epitome] = 1.0
        self.register_buffer("mask_PD", mask_PD, persistent=False)
        # Of every image of the data set; -1 where it has none, as those held out.
        self.register_buffer("assignment_N", torch.full((max(info.total, info.size),), -1))
        self.levels = (
            Level("y", (len(starts),), "labels", sizes=(len(starts),)),
            Level("z", (config.latent_dim,), standard=True),
        )

    @property
    def epitomes(self) -> int:
        return len(self.mask_PD)

    # ---- which epitome

    def costs(self, x_BCHW: Tensor, mean_BD: Tensor, logvar_BD: Tensor, hyper: Hyper) -> Tensor:
        """C_y of every epitome in nats, (B, P), with z the mean; log P, the same for all, is left out."""
        kl_BD = terms.kl_normal(mean_BD, logvar_BD)
        columns = []
        for mask_D in self.mask_PD:
            log_prob_B = self.likelihood.log_prob(x_BCHW, self.out(mask_D * mean_BD), hyper)
            columns.append((kl_BD * mask_D).sum(dim=1) - log_prob_B)
        return torch.stack(columns, dim=1)

    def chosen(self, x_BCHW: Tensor, mean_BD: Tensor, logvar_BD: Tensor) -> Tensor:
        """y*, int64 (B,)."""
        with torch.no_grad():
            return self.costs(x_BCHW, mean_BD, logvar_BD, self.hyper(0)).argmin(dim=1)

    def due(self, step: int, stage: str = "main") -> bool:
        """At the start of every epoch; the batch size is that of the order last asked for."""
        return step % self._epoch == 0

    _epoch = 1

    def prepare(self, step: int, stage: str, train: Split) -> None:
        was_training = self.training
        self.eval()
        with torch.no_grad():
            for batch in train.batches(512):
                x_BCHW = batch.x_BCHW.to(self.device)
                self.assignment_N[batch.index_B.to(self.device)] = self.chosen(x_BCHW, *self.features(x_BCHW)[:2])
        self.train(was_training)

    def order(self, train: Split, seed: int, batch_size: int) -> Order:
        if schedules.moving(self.config.likelihood):
            raise ConfigError(
                "a schedule in model.likelihood would change which epitome is an image's best", "give a number"
            )
        self._epoch = max(1, math.ceil(len(train) / batch_size))
        return Balanced(self.assignment_N[train.indices.to(self.device)], seed, batch_size)

    # ---- the distributions

    def features(self, x_BCHW: Tensor) -> Any:
        """(mean, logvar) before the mask, (B, D) each, and the images, which choose the epitome."""
        mean_BD, logvar_BD = super().features(x_BCHW)
        return mean_BD, logvar_BD, x_BCHW

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        mean_BD, logvar_BD, x_BCHW = features
        if level == "y":
            y_B = self.chosen(x_BCHW, mean_BD, logvar_BD)
            sure_BP = torch.nn.functional.one_hot(y_B, self.epitomes).to(mean_BD.dtype)
            return OneHotCategorical(probs=sure_BP, validate_args=False)
        mask_BD = given["y"] @ self.mask_PD
        return distributions.Gaussian(mask_BD * mean_BD, mask_BD * logvar_BD)

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "y":
            even_NP = torch.zeros(n, self.epitomes, device=self.device)
            return OneHotCategorical(logits=even_NP, validate_args=False)
        return super().p(level, given, n)

    def masked(self, values: Values) -> Tensor:
        return (values["y"] @ self.mask_PD) * values["z"]

    def image(self, values: Values) -> Tensor:
        return self.likelihood.mean(self.out(self.masked(values)))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return self.likelihood.log_prob(x_BCHW, self.out(self.masked(values)), hyper)

    def posterior(self, x_BCHW: Tensor) -> Posterior:
        return super(GaussianVAE, self).posterior(x_BCHW)

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        mean_BD, logvar_BD, _ = self.features(batch.x_BCHW)
        y_B = self.assignment_N[batch.index_B.to(self.device)] if self.training else torch.full_like(batch.index_B, -1)
        if bool((y_B < 0).any()):
            y_B = torch.where(y_B < 0, self.chosen(batch.x_BCHW, mean_BD, logvar_BD), y_B.to(self.device))
        mask_BD = self.mask_PD[y_B]
        z_BD = terms.reparameterize(mean_BD, logvar_BD)
        recon = -self.likelihood.log_prob(batch.x_BCHW, self.out(mask_BD * z_BD), hyper).mean()
        kl = kl_terms(self.config, terms.kl_normal(mean_BD, logvar_BD) * mask_BD, hyper, hyper["beta"])
        choice = recon.new_full((), math.log(self.epitomes))
        return {
            "recon": Term(recon),
            **kl,
            "choice": Term(choice),
            "elbo": Term(-(recon + kl["kl"].value + choice), None),
        }

    def kl_weight(self, hyper: Hyper) -> float | None:
        return unless_free(hyper, hyper["beta"])

    def objective_text(self, hyper: Hyper) -> str:
        return (
            f"minimise recon + beta {kl_text(hyper)} within the epitome + log P; beta = {hyper['beta']:.4g}; "
            f"P = {self.epitomes} epitomes of {self.config.epitome} of {self.config.latent_dim} latents; "
            f"{self.likelihood.text(hyper)}; {terms.UNITS}"
        )
