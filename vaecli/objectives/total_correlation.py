"""Estimators of log q(z) from the codes of one batch, and the KL taken apart with them.

q(z) = 1/N sum_n q(z|x_n) is a mixture over all N training images, of which a batch knows B. Each estimator puts a
weighted mixture of the batch in its place, q^(z_i) = sum_j w_ij q(z_i|x_j) with z_i ~ q(z|x_i), and likewise latent by
latent (Chen et al. 2018, "Isolating Sources of Disentanglement in Variational Autoencoders", section 3.1, appendix C):

`mss`        stratified: w_ii = 1/N; of the M = B - 1 others one weighs 1/M - 1/N, the rest 1/M each. q^(z) is unbiased,
             its logarithm is too low: MI reads high, and the more latents the lower TC reads.
`mws`        weighted: w = 1 / (B N). Sums to 1/N: MI, TC and -DWKL read log N, (D - 1) log N and D log N more than by
             `minibatch`, with the same gradients.
`minibatch`  w = 1/B, the batch as if it were all there is. MI reads at most log B, and TC high.

Nats. Shapes: B batch, D latents.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vaecli.errors import ConfigError
from vaecli.objectives import terms

Estimator = Literal["mss", "mws", "minibatch"]


@dataclass(frozen=True)
class Parts:
    """What adds up to log q(z|x) - log p(z) for every image, (B,) each (Chen et al. 2018, eq. 2)."""

    mi_B: Tensor  # log q(z|x) - log q(z): between image and code
    tc_B: Tensor  # log q(z) - sum_d log q(z_d): the total correlation
    dwkl_B: Tensor  # sum_d log q(z_d) - log p(z_d): of each latent to its prior


def decompose(z_BD: Tensor, mean_BD: Tensor, logvar_BD: Tensor, n: int, estimator: Estimator) -> Parts:
    """The parts for one draw z of each q(z|x) = N(mean, exp(logvar)) under p(z) = N(0, I); `n` training images.

    ConfigError as of `check`.
    """
    joint_B, marginal_BD = log_mixture(z_BD, mean_BD, logvar_BD, log_weights(len(z_BD), n, estimator, z_BD))
    marginal_B = marginal_BD.sum(dim=1)
    own_B = terms.log_normal(z_BD, mean_BD, logvar_BD).sum(dim=1)
    prior_B = -0.5 * (z_BD.square() + terms.LOG_2PI).sum(dim=1)
    return Parts(own_B - joint_B, joint_B - marginal_B, marginal_B - prior_B)


def log_mixture(z_BD: Tensor, mean_KD: Tensor, logvar_KD: Tensor, log_weight_BK: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_k w_bk N(z_b; mean_k, exp(logvar_k)), (B,), and the same of every latent alone, (B, D)."""
    log_q_BKD = terms.log_normal(z_BD.unsqueeze(1), mean_KD, logvar_KD)
    joint_B = torch.logsumexp(log_q_BKD.sum(dim=2) + log_weight_BK, dim=1)
    return joint_B, torch.logsumexp(log_q_BKD + log_weight_BK.unsqueeze(2), dim=1)


def log_weights(b: int, n: int, estimator: Estimator, like: Tensor) -> Tensor:
    """log w_ij, (B, B), of the dtype and on the device of `like`; row i is for a draw from q(z|x_i).

    ConfigError as of `check`; the one image of a batch of 1 is then all there is.
    """
    check(b, n, estimator)
    if estimator != "mss" or b == 1:
        return torch.full((b, b), -math.log(b * n if estimator == "mws" else b), dtype=like.dtype, device=like.device)
    m = b - 1
    others = torch.full((b, b), -math.log(m), dtype=like.dtype, device=like.device)
    own = torch.eye(b, dtype=torch.bool, device=like.device)
    # Which of the others has the odd weight does not matter to the expectation: here the next one of the batch.
    odd = own.roll(1, dims=1)
    return others.masked_fill(own, -math.log(n)).masked_fill(odd, math.log((n - m) / (n * m)))


def check(b: int, n: int, estimator: Estimator) -> None:
    """ConfigError where batches of b out of n images do not allow the estimator."""
    if estimator == "mss" and b > n:
        raise ConfigError(
            f"mss takes a batch for images drawn without replacement, but {b} is more than the {n} there are",
            hint=f"set train.batch_size to {n} or less, or model.estimator to minibatch",
        )
