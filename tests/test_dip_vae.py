"""`dip-vae-i` and `dip-vae-ii`: covariances of known codes, and every term in float64."""

import pytest
import torch
from torch import Tensor

from vaecli import models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Model, total
from vaecli.objectives.covariance import covariance, from_identity

INFO = DataInfo("toy", (1, 4, 4), 50, binary=True)  # for a Bernoulli likelihood
F64 = torch.float64
both = pytest.mark.parametrize("name", ["dip-vae-i", "dip-vae-ii"])


def made(name: str, **settings: object) -> Model:
    torch.manual_seed(0)
    values = {"name": name, "latent_dim": 3, "net": {"name": "mlp", "hidden": [8], "activation": "tanh"}, **settings}
    return models.build(registry.load("model", name).Config.model_validate(values), INFO).double()


def batch(n: int = 6) -> Batch:
    x_BCHW = torch.rand(n, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    return Batch(x_BCHW, torch.arange(n))


def by_hand(mean_BD: Tensor, variance_BD: Tensor | None) -> list[list[float]]:
    """E[mu_i mu_j] - E[mu_i] E[mu_j], and E[sigma_i^2] besides where i = j."""
    rows, b = mean_BD.tolist(), len(mean_BD)
    d = len(rows[0])
    first = [sum(row[i] for row in rows) / b for i in range(d)]
    found = [[sum(row[i] * row[j] for row in rows) / b - first[i] * first[j] for j in range(d)] for i in range(d)]
    for i in range(d):
        found[i][i] += 0.0 if variance_BD is None else float(variance_BD[:, i].mean())
    return found


def test_covariance_of_known_codes() -> None:
    mean_BD = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, -2.0], [-1.0, 2.0], [3.0, 0.0], [-3.0, 0.0]], dtype=F64)
    exact = torch.tensor([[22 / 6, 0.0], [0.0, 16 / 6]], dtype=F64)  # with 1/B, not 1/(B - 1)
    torch.testing.assert_close(covariance(mean_BD), exact, rtol=0, atol=1e-12)
    logvar_BD = torch.tensor([0.5, 2.0], dtype=F64).log().expand(6, 2)
    total_DD = exact + torch.diag(torch.tensor([0.5, 2.0], dtype=F64))
    torch.testing.assert_close(covariance(mean_BD, logvar_BD), total_DD, rtol=0, atol=1e-12)
    off, diagonal = from_identity(torch.tensor([[1.5, 0.2], [0.3, 4.0]], dtype=F64))
    assert float(off) == pytest.approx(0.13, abs=1e-12) and float(diagonal) == pytest.approx(9.25, abs=1e-12)


def test_the_second_covariance_is_that_of_draws() -> None:
    """Cov[mu] + E[sigma^2] is what z ~ q(z) has."""
    g = torch.Generator().manual_seed(0)
    mean_BD = torch.randn(400, 3, dtype=F64, generator=g) @ torch.randn(3, 3, dtype=F64, generator=g)
    logvar_BD = torch.randn(400, 3, dtype=F64, generator=g)
    z_BD = (mean_BD + (0.5 * logvar_BD).exp() * torch.randn(2000, 400, 3, dtype=F64, generator=g)).flatten(0, 1)
    torch.testing.assert_close(z_BD.T.cov(correction=0), covariance(mean_BD, logvar_BD), rtol=0.01, atol=0.01)


@both
def test_every_term(name: str) -> None:
    model, b = made(name, lambda_od=3.0, lambda_d=0.7), batch()
    with torch.no_grad():
        model.encoder[-1].weight.mul_(6)  # type: ignore[index,union-attr]
    torch.manual_seed(4)
    parts = model.loss(b, model.hyper(0))
    torch.manual_seed(4)
    mean_BD, logvar_BD = model.encoder(b.x_BCHW).detach().chunk(2, dim=1)
    z_BD = mean_BD + (0.5 * logvar_BD).exp() * torch.randn(6, 3, dtype=F64)
    logits = model.decoder(z_BD).detach()
    recon = -(b.x_BCHW * logits.sigmoid().log() + (1 - b.x_BCHW) * (-logits).sigmoid().log()).flatten(1).sum(1).mean()
    kl = 0.5 * (mean_BD.square() + logvar_BD.exp() - logvar_BD - 1).sum(1).mean()
    c = by_hand(mean_BD, None if name == "dip-vae-i" else logvar_BD.exp())
    off = sum(c[i][j] ** 2 for i in range(3) for j in range(3) if i != j)
    diagonal = sum((c[i][i] - 1) ** 2 for i in range(3))
    wanted = {
        "recon": (float(recon), 1.0),
        "kl": (float(kl), 1.0),
        "off_diagonal": (off, 3.0),
        "diagonal": (diagonal, 0.7),
    }
    for key, (value, weight) in wanted.items():
        assert parts[key].value.item() == pytest.approx(value, abs=1e-9)
        assert parts[key].weight == weight
    loss = sum(value * weight for value, weight in wanted.values())
    assert total(parts)[0].item() == pytest.approx(loss, abs=1e-9)
    assert off > 1e-2


@both
def test_the_diagonals_weight_follows_the_other_unless_given(name: str) -> None:
    multiple = {"dip-vae-i": 10.0, "dip-vae-ii": 1.0}[name]
    ramp = {"schedule": "linear", "start": 0.0, "end": 8.0, "steps": 100}
    model = made(name, lambda_od=ramp)
    parts = model.loss(batch(), model.hyper(50))
    assert (parts["off_diagonal"].weight, parts["diagonal"].weight) == (4.0, 4.0 * multiple)
    assert f"lambda_od = 4, lambda_d = {4 * multiple:.4g}" in model.objective_text(model.hyper(50))
    assert model.kl_weight(model.hyper(0)) == 1.0 and model.kl_weight(model.hyper(50)) is None
    terms = made(name, lambda_od=2.0, lambda_d=0.0).loss(batch(), {"lambda_od": 2.0, "lambda_d": 0.0, "beta": 1.0})
    assert terms["diagonal"].weight == 0


@both
def test_it_learns_the_identity(name: str) -> None:
    """With the penalty alone, 300 steps bring a linear encoder's C to I."""
    model = made(name, net={"name": "mlp", "hidden": []}, lambda_od=1.0, lambda_d=1.0)
    b = batch(64)
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=0.05)
    for _ in range(300):
        parts = model.loss(b, model.hyper(0))
        optimizer.zero_grad()
        (parts["off_diagonal"].value + parts["diagonal"].value).backward()
        optimizer.step()
    mean_BD, logvar_BD = (t.detach() for t in model.features(b.x_BCHW))
    c = by_hand(mean_BD, None if name == "dip-vae-i" else logvar_BD.exp())
    for i in range(3):
        for j in range(3):
            assert c[i][j] == pytest.approx(float(i == j), abs=0.02)
