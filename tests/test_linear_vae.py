"""Linear models trained to convergence against probabilistic PCA, where every optimum is known in closed form.

With p(x|z) = N(W z + b, s^2 I) and data covariance U diag(L) U', the best W is U (L - s^2 I)^(1/2) over the
eigenvalues above s^2 (Tipping & Bishop 1999), a latent carries 0.5 log(L_i / s^2) nats, and its posterior has variance
s^2 / L_i and mean of variance 1 - s^2 / L_i: together 1. Weighing the KL by beta is the same as s^2 -> beta s^2.
"""

import math
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from vaecli.batch import Batch, DataInfo
from vaecli.models import autoencoder, beta_vae, vae
from vaecli.models.base import Model, total

EIGENVALUES = torch.tensor([4.0, 2.0, 1.0, 0.15, 0.1, 0.1], dtype=torch.float64)
SIGMA, LATENTS, N = 0.5, 5, 400  # s^2 = 0.25: three active units


@cache
def data() -> Tensor:
    """N points whose sample covariance (1/N) has exactly the eigenvalues above, in a random basis, mean 0.3."""
    torch.manual_seed(0)
    raw = torch.randn(N, 6, dtype=torch.float64)
    white = torch.linalg.qr(raw - raw.mean(0))[0] * math.sqrt(N)
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    return (0.3 + white * EIGENVALUES.sqrt() @ basis).view(N, 1, 2, 3)


@cache
def trained(module: ModuleType, beta: float | None = None) -> Any:
    options: dict[str, Any] = {} if beta is None else {"beta": beta}
    config = module.Config.model_validate(
        {
            "latent_dim": LATENTS,
            "net": {"name": "mlp", "hidden": []},
            "likelihood": {"name": "gaussian", "sigma": SIGMA},
            **options,
        }
    )
    torch.manual_seed(1)
    model: Model = module.Model(config, DataInfo("gaussian", (1, 2, 3), N)).double()
    batch = Batch(data(), torch.arange(N))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    steps = 2500
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        total(model.loss(batch, model.hyper(step)))[0].backward()
        optimizer.step()
        schedule.step()
    return model


def test_aggregate_posterior_of_every_latent_has_variance_one() -> None:
    q = trained(vae).posterior(data())
    law = q.mean_BD.var(dim=0, unbiased=False) + q.logvar_BD.exp().mean(dim=0)
    torch.testing.assert_close(law, torch.ones_like(law), rtol=0.0, atol=1e-2)


def test_active_units_are_the_eigenvalues_above_sigma_squared() -> None:
    q = trained(vae).posterior(data())
    assert int((q.mean_BD.var(dim=0) > 0.01).sum()) == int((EIGENVALUES > SIGMA**2).sum()) == 3
    widths = q.logvar_BD.exp().mean(dim=0).sort().values
    expected = torch.cat([SIGMA**2 / EIGENVALUES[:3], torch.ones(2, dtype=torch.float64)])
    torch.testing.assert_close(widths, expected, rtol=0.0, atol=1e-2)


def test_log_likelihood_reaches_that_of_probabilistic_pca() -> None:
    model, s2 = trained(vae), SIGMA**2
    with torch.no_grad():
        b = model.decoder(torch.zeros(1, LATENTS, dtype=torch.float64)).flatten()
        w = (model.decoder(torch.eye(LATENTS, dtype=torch.float64)).flatten(1) - b).T
        covariance = w @ w.T + s2 * torch.eye(6, dtype=torch.float64)
        reached = torch.distributions.MultivariateNormal(b, covariance).log_prob(data().flatten(1)).mean()
    variances = EIGENVALUES.clamp(min=s2)
    best = -0.5 * ((2 * math.pi * variances).log() + EIGENVALUES / variances).sum()
    assert best - 5e-3 < reached < best + 1e-9
    # And the bound is tight, because the exact posterior is within the encoder's reach.
    torch.manual_seed(2)
    with torch.no_grad():
        batch = Batch(data(), torch.arange(N))
        elbo = torch.stack([model.loss(batch, model.hyper(0))["elbo"].value for _ in range(200)])
    assert elbo.mean().item() == pytest.approx(best.item(), abs=0.03)


@pytest.mark.parametrize("beta", [1.0, 2.5, 6.0])
def test_kl_of_a_beta_vae(beta: float) -> None:
    """3, 3 and 2 latents carry something: the KL shrinks with beta exactly as PCA with noise beta s^2 does."""
    q = trained(beta_vae, beta).posterior(data())
    expected = 0.5 * (EIGENVALUES / (beta * SIGMA**2)).log().clamp(min=0.0).sum()
    assert q.kl_BD.sum(dim=1).mean().item() == pytest.approx(expected.item(), abs=0.02)


def test_autoencoder_reaches_the_reconstruction_of_pca() -> None:
    model = trained(autoencoder)
    with torch.no_grad():
        error = (model.decode(model.posterior(data()).mean_BD) - data()).square().flatten(1).sum(dim=1).mean()
    assert error.item() == pytest.approx(EIGENVALUES[LATENTS:].sum().item(), rel=1e-3)
