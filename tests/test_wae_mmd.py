"""`wae-mmd`: every term against the published formula in float64, and codes that come to the prior."""

import math

import pytest
import torch
from torch import Tensor

from vaecli import models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Model, total

INFO = DataInfo("toy", (1, 4, 4), 50)
F64 = torch.float64
SCALES = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]


def made(**settings: object) -> Model:
    torch.manual_seed(0)
    values = {"name": "wae-mmd", "latent_dim": 3, "net": {"name": "mlp", "hidden": [8], "activation": "tanh"}}
    return models.build(registry.load("model", "wae-mmd").Config.model_validate({**values, **settings}), INFO).double()


def batch(n: int = 6) -> Batch:
    x_BCHW = torch.rand(n, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    return Batch(x_BCHW, torch.arange(n))


def penalty(z_BD: Tensor, prior_BD: Tensor) -> Tensor:
    """The published penalty: seven inverse multiquadratics, distances by inner products, the diagonals masked."""
    n, d = z_BD.shape

    def squares(a: Tensor, b: Tensor) -> Tensor:
        return a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T

    found = torch.zeros((), dtype=F64)
    off = 1 - torch.eye(n, dtype=F64)
    for scale in SCALES:
        c = 2 * d * scale
        within = sum((c / (c + squares(t, t)) * off).sum() for t in (z_BD, prior_BD)) / (n * n - n)
        found = found + within - 2 * (c / (c + squares(z_BD, prior_BD))).mean()
    return found


def test_every_term() -> None:
    model, b = made(strength=7.0), batch()
    torch.manual_seed(4)
    parts = model.loss(b, model.hyper(0))
    torch.manual_seed(4)
    z_BD, prior_BD = model.encoder(b.x_BCHW), torch.randn(6, 3, dtype=F64)
    error = (b.x_BCHW - model.decoder(z_BD)).square().flatten(1).sum(1).mean()
    constant = 16 * 0.5 * math.log(math.pi)  # of a Gaussian of variance 1/2
    assert parts["recon"].value.item() == pytest.approx(error.item() + constant, abs=1e-9)
    mmd = penalty(z_BD, prior_BD)
    assert parts["mmd"].value.item() == pytest.approx(mmd.item(), abs=1e-9) and parts["mmd"].weight == 7.0
    loss = total(parts)[0]
    assert loss.item() == pytest.approx(error.item() + constant + 7 * mmd.item(), abs=1e-9)
    (found,) = torch.autograd.grad(loss, model.encoder[-1].weight)  # type: ignore[arg-type,index,union-attr]
    (wanted,) = torch.autograd.grad(error + 7 * mmd, model.encoder[-1].weight)  # type: ignore[arg-type,index,union-attr]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_the_prior_is_standard_and_is_drawn_from() -> None:
    model = made()
    torch.manual_seed(0)
    z_BD = model.draw(20_000)["z"]
    torch.testing.assert_close(z_BD.T.cov(), torch.eye(3), rtol=0, atol=0.04)
    assert float(z_BD.mean(0).abs().max()) < 0.03
    assert model.posterior(batch().x_BCHW).logvar_BD is None  # a point, not a distribution
    assert "lambda = 10" in model.objective_text(model.hyper(0))


def test_codes_come_to_the_prior() -> None:
    """A linear encoder of Gaussian images with the penalty alone: mean 0, variance 1, no covariance."""
    model = made(net={"name": "mlp", "hidden": []})
    x_BCHW = torch.randn(256, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    b = Batch(x_BCHW, torch.arange(256))
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=0.05)
    torch.manual_seed(0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        optimizer.zero_grad()
        model.loss(b, model.hyper(0))["mmd"].value.backward()
        optimizer.step()
    z_BD = model.encoder(x_BCHW).detach()
    torch.testing.assert_close(z_BD.mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=0.12)
    torch.testing.assert_close(z_BD.T.cov(), torch.eye(3, dtype=F64), rtol=0, atol=0.2)
