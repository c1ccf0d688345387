"""PIWAE: the tight IWAE bound for the decoder, and for the encoder MIWAE's, whose gradient has less noise.

Rainforth et al. 2018, "Tighter Variational Bounds are Not Necessarily Better", section 6, with M K draws an image:
the decoder minimises -log (1/MK) sum_mk w_mk, the encoder -(1/M) sum_m log (1/K) sum_k w_mk.
Here each of the two players draws anew, the encoder after the decoder has moved; the paper shares the draws, which
changes no gradient's expectation and saves a pass.

pythae (0.1.2) takes the encoder's logarithm over the M groups and its mean over the K draws: with M = K, as in its
example, that is the same number, with M != K it trains another bound.
"""

from typing import Literal

from vaecli.batch import Batch
from vaecli.models import _importance
from vaecli.models.base import Hyper, Player, Term
from vaecli.objectives import terms
from vaecli.settings.optim import OptimConfig


class Config(_importance.Config):
    """`groups` is M and `samples` K: an image is drawn M K times. The rest is as in `iwae`."""

    name: Literal["piwae"] = "piwae"
    groups: _importance.Samples = 8
    samples: _importance.Samples = 8

    @property
    def draws(self) -> int:
        return self.groups * self.samples


class Model(_importance.Model):
    """IWAE's model with two players: `main`, all that generates, and `encoder`, all that infers."""

    config: Config

    def players(self, optim: OptimConfig) -> list[Player]:
        infers = [*self.encoder.parameters(), *(self.above.parameters() if self.config.upper is not None else ())]
        return [Player("main", self.parameters_but(infers), optim), Player("encoder", infers, optim)]

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        m, k = self.config.groups, self.config.samples
        if player == "main":
            return self.bound(batch, hyper, 1, m * k)
        return {"nll_bound": self.bound(batch, hyper, m, k, gradient=self.config.gradient)["nll_bound"]}

    def kl_weight(self, hyper: Hyper) -> float | None:
        """1 for one draw; with more of them the bound is no sum of a reconstruction and a KL."""
        return 1.0 if self.config.samples * self.config.groups == 1 else None

    def objective_text(self, hyper: Hyper) -> str:
        m, k = self.config.groups, self.config.samples
        return (
            f"decoder: minimise -log (1/MK) sum of p(x, z) / q(z|x), encoder: the mean over M groups of that of K; "
            f"M = {m}, K = {k}, {self.config.gradient} gradient; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )
