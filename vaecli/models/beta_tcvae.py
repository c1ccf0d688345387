"""beta-TCVAE: weighs the part of the KL that is the latents' total correlation.

Chen et al. 2018, "Isolating Sources of Disentanglement in Variational Autoencoders", eq. 4:
loss = -E_q(z|x)[log p(x|z)] + alpha MI(x; z) + beta TC(z) + gamma sum_d KL(q(z_d) || p(z_d)),
whose last three are the KL when alpha = beta = gamma = 1. They need log q(z), which is estimated from the batch: see
`objectives.total_correlation` for the ways and what each does to the numbers.
"""

import math
from typing import Literal

from torch import Tensor

from vaecli.batch import Split
from vaecli.data.orders import Order
from vaecli.models.base import GaussianVAE, Hyper, NetConfig, Posterior, Term
from vaecli.objectives import terms
from vaecli.objectives.total_correlation import Estimator, check, decompose
from vaecli.settings.schedules import Weight


class Config(NetConfig):
    """`alpha` weighs the information between image and code, `beta` the total correlation, `gamma` the divergence of
    single latents from the prior. `estimator` is how log q(z) is told from a batch."""

    name: Literal["beta-tcvae"] = "beta-tcvae"
    alpha: Weight = 1.0
    beta: Weight = 6.0
    gamma: Weight = 1.0
    estimator: Estimator = "mss"


class Model(GaussianVAE):
    """The VAE whose KL is three terms; as estimates from one draw they add up to log q(z|x) - log p(z) exactly."""

    config: Config
    batch_dependent = True
    least_batch = 2

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.logvar_BD is not None
        parts = decompose(z_BD, q.mean_BD, q.logvar_BD, self.info.size, self.config.estimator)
        return {
            "mi": Term(parts.mi_B.mean(), hyper["alpha"]),
            "tc": Term(parts.tc_B.mean(), hyper["beta"]),
            "dwkl": Term(parts.dwkl_B.mean(), hyper["gamma"]),
        }

    def order(self, train: Split, seed: int, batch_size: int) -> Order:
        check(batch_size, self.info.size, self.config.estimator)
        return super().order(train, seed, batch_size)

    def kl_weight(self, hyper: Hyper) -> float | None:
        weights = {hyper["alpha"], hyper["beta"], hyper["gamma"]}
        return weights.pop() if len(weights) == 1 else None

    def objective_text(self, hyper: Hyper) -> str:
        weights = ", ".join(f"{name} = {hyper[name]:.4g}" for name in ("alpha", "beta", "gamma"))
        log_n, d = math.log(self.info.size), self.config.latent_dim
        offsets = f"{log_n:+.1f}, {(d - 1) * log_n:+.1f} and {-d * log_n:+.1f} nats"
        remark = {
            "mss": "mss (unbiased for q(z), not for its logarithm: mi reads high, tc low in small batches)",
            "minibatch": "minibatch (the batch's own mixture: mi reads at most log B)",
            "mws": f"mws (mi, tc and dwkl read {offsets} from those of the batch's own mixture, same gradients)",
        }
        return (
            f"minimise recon + alpha MI + beta TC + gamma DWKL; {weights}; log q(z) by "
            f"{remark[self.config.estimator]}; {self.likelihood.text(hyper)}; {terms.UNITS}"
        )
