"""`info-vae` and the MMD: against sums by hand, closed forms of Gaussians, and every term in float64."""

import math

import pytest
import torch
from torch import Tensor

from vaecli import models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Model, total
from vaecli.objectives.mmd import Kernel, mmd2

INFO = DataInfo("toy", (1, 4, 4), 50, binary=True)  # for a Bernoulli likelihood
F64 = torch.float64


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def by_hand(a_MD: Tensor, b_ND: Tensor, name: Kernel, scales: list[float]) -> float:
    """The unbiased MMD^2 as three sums over pairs of points."""

    def k(x: list[float], y: list[float]) -> float:
        square = sum((u - v) ** 2 for u, v in zip(x, y, strict=True))
        widths = [2 * len(x) * scale for scale in scales]
        return sum(math.exp(-square / c) if name == "rbf" else c / (c + square) for c in widths)

    a, b = a_MD.tolist(), b_ND.tolist()

    def within(points: list[list[float]]) -> float:
        pairs = [k(x, y) for i, x in enumerate(points) for j, y in enumerate(points) if i != j]
        return sum(pairs) / len(pairs)

    across = [k(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(across) / len(across)


# ------------------------------------------------------------------------------------------------------------------ MMD


@pytest.mark.parametrize("name", ["rbf", "imq"])
@pytest.mark.parametrize("scales", [[1.0], [0.1, 1.0, 10.0]])
def test_mmd_equals_sums_over_pairs(name: Kernel, scales: list[float]) -> None:
    a_MD, b_ND = rand(7, 3), 0.5 + rand(5, 3, seed=1)
    assert float(mmd2(a_MD, b_ND, name, scales)) == pytest.approx(by_hand(a_MD, b_ND, name, scales), abs=1e-12)


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_mmd_is_unbiased(name: Kernel) -> None:
    """0 on average for equal distributions, where the estimate with its diagonal is above."""
    found = torch.stack([mmd2(rand(6, 4, seed=2 * i), rand(6, 4, seed=2 * i + 1), name) for i in range(4000)])
    error = float(found.std()) / math.sqrt(len(found))
    assert float(found.mean()) == pytest.approx(0, abs=4 * error) and error < 2e-3
    assert float(found.min()) < 0


def test_mmd_of_gaussians_is_its_closed_form() -> None:
    """For rbf: the difference of two draws is N(m, v) in each latent, and E exp(-d^2 / C) over it is
    (1 + 2 v / C)^(-1/2) exp(-m^2 / (C + 2 v))."""
    d, shift, sigma2, scale = 3, 0.7, 0.25, 0.5
    c = 2 * d * scale

    def expected(m: float, v: float) -> float:
        return (1 + 2 * v / c) ** (-d / 2) * math.exp(-d * m**2 / (c + 2 * v))

    exact = expected(0, 2 * sigma2) + expected(0, 2) - 2 * expected(shift, 1 + sigma2)
    draws = [
        mmd2(shift + rand(400, d, seed=2 * i, scale=math.sqrt(sigma2)), rand(400, d, seed=2 * i + 1), "rbf", [scale])
        for i in range(30)
    ]
    found = torch.stack(draws)
    error = float(found.std()) / math.sqrt(len(found))
    assert float(found.mean()) == pytest.approx(exact, abs=4 * error) and error < 0.02 * exact


def test_one_point_gives_a_number() -> None:
    assert math.isfinite(float(mmd2(rand(1, 2), rand(1, 2, seed=1), "imq")))


# ------------------------------------------------------------------------------------------------------------ the model


def made(**settings: object) -> Model:
    torch.manual_seed(0)
    values = {"name": "info-vae", "latent_dim": 3, "net": {"name": "mlp", "hidden": [8], "activation": "tanh"}}
    return models.build(registry.load("model", "info-vae").Config.model_validate({**values, **settings}), INFO).double()


def batch(n: int = 6) -> Batch:
    x_BCHW = torch.rand(n, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    return Batch(x_BCHW, torch.arange(n))


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_every_term(name: Kernel) -> None:
    model, b = made(alpha=0.3, strength=20.0, kernel=name, scales=[0.5, 2.0]), batch()
    torch.manual_seed(4)
    parts = model.loss(b, model.hyper(0))
    torch.manual_seed(4)
    mean_BD, logvar_BD = model.encoder(b.x_BCHW).detach().chunk(2, dim=1)
    z_BD = mean_BD + (0.5 * logvar_BD).exp() * torch.randn(6, 3, dtype=F64)
    prior_BD = torch.randn(6, 3, dtype=F64)
    logits = model.decoder(z_BD).detach()
    recon = -(b.x_BCHW * logits.sigmoid().log() + (1 - b.x_BCHW) * (-logits).sigmoid().log()).flatten(1).sum(1).mean()
    kl = 0.5 * (mean_BD.square() + logvar_BD.exp() - logvar_BD - 1).sum(1).mean()
    mmd = by_hand(z_BD, prior_BD, name, [0.5, 2.0])
    wanted = {"recon": (float(recon), 1.0), "kl": (float(kl), 0.7), "mmd": (mmd, 19.3)}
    for key, (value, weight) in wanted.items():
        assert parts[key].value.item() == pytest.approx(value, abs=1e-9)
        assert parts[key].weight == pytest.approx(weight, abs=1e-12)
    loss = sum(value * weight for value, weight in wanted.values())
    assert total(parts)[0].item() == pytest.approx(loss, abs=1e-9)


def test_its_corners() -> None:
    """alpha = 0 and lambda = 1 is the VAE, alpha = 1 leaves the KL free."""
    vae, free = made(alpha=0.0, strength=1.0), made(alpha=1.0, strength=5.0)
    parts = vae.loss(batch(), vae.hyper(0))
    assert (parts["kl"].weight, parts["mmd"].weight) == (1.0, 0.0) and vae.kl_weight(vae.hyper(0)) == 1.0
    parts = free.loss(batch(), free.hyper(0))
    assert (parts["kl"].weight, parts["mmd"].weight) == (0.0, 5.0) and free.kl_weight(free.hyper(0)) is None
    assert "0 KL + 5 MMD^2(rbf)" in free.objective_text(free.hyper(0))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"alpha": 1.5}, "never exceed 1"),
        ({"alpha": {"schedule": "linear", "start": 0.0, "end": 2.0, "steps": 5}}, "never exceed 1"),
        ({"alpha": {"schedule": "piecewise", "points": [[0, 0.5], [9, 1.1]]}}, "never exceed 1"),
        ({"alpha": 0.2, "strength": 0.5}, "at least 1"),
        ({"scales": []}, "at least 1 item"),
        ({"scales": [-1.0]}, "greater than 0"),
    ],
)
def test_weights_below_nothing_are_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        made(**settings)


def test_its_codes_come_to_the_prior_where_the_kl_is_free() -> None:
    """A linear encoder of fixed images, minimising the MMD alone: mean 0 and variance 1 of every latent."""
    model = made(net={"name": "mlp", "hidden": []}, scales=[0.1, 1.0])
    b = batch(128)
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=0.05)
    torch.manual_seed(0)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        optimizer.zero_grad()
        model.loss(b, model.hyper(0))["mmd"].value.backward()
        optimizer.step()
    mean_BD, logvar_BD = (t.detach() for t in model.features(b.x_BCHW))
    variance_D = mean_BD.var(0) + logvar_BD.exp().mean(0)
    torch.testing.assert_close(mean_BD.mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=0.15)
    torch.testing.assert_close(variance_D, torch.ones(3, dtype=F64), rtol=0, atol=0.2)
