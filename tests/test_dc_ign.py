"""DC-IGN: which latents a batch leaves free, what the others get in place of their gradient, and that latents go to the
factors they were given to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from safetensors.torch import load_file
from torch import Tensor

from vaecli import config as configs
from vaecli import device, presets
from vaecli.analysis.leak import leak
from vaecli.batch import Batch, DataInfo
from vaecli.data import squares
from vaecli.errors import ConfigError
from vaecli.models import dc_ign, vae
from vaecli.models.base import total
from vaecli.nets import coders

SPRITES = DataInfo(
    "sprites",
    (1, 8, 8),
    1000,
    ("color", "shape", "scale", "posX"),
    (1, 3, 6, 32),
    binary=True,
    value_names=((), ("square", "ellipse", "heart"), (), ()),
)


def model(**settings: Any) -> dc_ign.Model:
    """Four latents of an 8x8 image: z0 of scale, z1 of posX, z2 and z3 of shape."""
    torch.manual_seed(0)
    config = dc_ign.Config(
        **{"latent_dim": 4, "net": {"name": "mlp", "hidden": [12], "activation": "tanh"}, **settings}
    )
    return dc_ign.Model(config, SPRITES)


def batch(varies: str | None, n: int = 6) -> Batch:
    """Random images whose labels differ in one factor; unknown labels for None."""
    generator = torch.Generator().manual_seed(3)
    x_BCHW = torch.rand(n, 1, 8, 8, generator=generator)
    labels_BK = torch.tensor([0, 1, 4, 9]).repeat(n, 1)
    if varies is None:
        labels_BK.fill_(-1)
    else:
        k = SPRITES.factor_names.index(varies)
        labels_BK[:, k] = torch.arange(n) % SPRITES.factor_sizes[k]
    return Batch(x_BCHW, torch.arange(n), labels_BK, labels_BK)


def captured(m: dc_ign.Model, b: Batch) -> tuple[Tensor, Tensor, dict[str, Any], dict[str, Tensor]]:
    """Mean and log-variance as leaves that keep their gradients, the terms, and what the decoder and the noise saw."""
    mean_BD, logvar_BD = (t.detach().clone().requires_grad_() for t in m.features(b.x_BCHW))
    seen: dict[str, Tensor] = {}
    m.features = lambda x_BCHW: (mean_BD, logvar_BD)  # type: ignore[method-assign,assignment,misc]
    inner = m.out

    def out(z_BD: Tensor) -> Tensor:
        seen["z"] = z_BD
        return inner(z_BD)

    m.out = out  # type: ignore[method-assign]
    torch.manual_seed(5)
    return mean_BD, logvar_BD, m.loss(b, m.hyper(0)), seen


# ------------------------------------------------------------------------------------------------------------- clamping


def test_the_labels_of_a_batch_say_which_latents_are_active() -> None:
    m = model()
    assert m.latents == {"scale": [0], "posX": [1], "shape": [2, 3]}
    for varies, expected in (("scale", [1, 0, 0, 0]), ("posX", [0, 1, 0, 0]), ("shape", [0, 0, 1, 1])):
        assert m.active(batch(varies).labels_BK).int().tolist() == expected
    assert m.active(batch(None).labels_BK).all() and m.active(None).all()
    same = batch("scale").labels_BK
    assert same is not None
    assert not m.active(same[:1].repeat(4, 1)).any()  # images all alike: nothing varies
    partly = same.clone()
    partly[2, 3] = -1  # whether posX varies is not known
    assert m.active(partly).int().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("clamp", ["mean", "first"])
def test_inactive_latents_are_one_value_for_all_images(clamp: str) -> None:
    """Recomputed from the noise: z = v~ + exp(logvar~ / 2) eps, row by row."""
    m = model(clamp=clamp)
    mean_BD, logvar_BD, _, seen = captured(m, batch("posX"))
    torch.manual_seed(5)
    eps_BD = torch.randn(6, 4)
    for d in range(4):
        for n in range(6):
            mean, logvar = mean_BD[n, d].item(), logvar_BD[n, d].item()
            if d != 1:
                column = [(t[:, d].tolist(), t[0, d].item()) for t in (mean_BD, logvar_BD)]
                mean, logvar = (sum(values) / 6 if clamp == "mean" else first for values, first in column)
            expected = mean + torch.tensor(logvar / 2).exp().item() * eps_BD[n, d].item()
            assert seen["z"][n, d].item() == pytest.approx(expected, abs=1e-6)


def test_without_clamping_codes_are_a_vaes() -> None:
    m = model(clamp="none")
    mean_BD, logvar_BD, _, seen = captured(m, batch("posX"))
    torch.manual_seed(5)
    assert torch.equal(seen["z"], mean_BD + (0.5 * logvar_BD).exp() * torch.randn(6, 4))


def test_nothing_is_clamped_where_labels_are_unknown() -> None:
    """Evaluation and all that encodes: the mean is a function of each image alone."""
    m = model().eval()
    b = batch("posX")
    whole = m.posterior(b.x_BCHW).mean_BD
    alone = torch.cat([m.posterior(x_BCHW).mean_BD for x_BCHW in b.x_BCHW.split(1)])
    assert torch.allclose(whole, alone, atol=1e-6) and whole.var(dim=0).min() > 0
    _, _, terms, _ = captured(m, batch(None))
    assert terms["kl"].value == terms["kl_clamped"].value and terms["away"].value == 0


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("invariance", [0.0, 0.01])
def test_what_reaches_inactive_latents(invariance: float) -> None:
    """Nothing but invariance * (v - mean of v) / B (section 3 of the paper, a mean over the batch)."""
    m = model(invariance=invariance).double()
    b = batch("scale")
    b = Batch(b.x_BCHW.double(), b.index_B, b.labels_BK)
    mean_BD, logvar_BD, terms, _ = captured(m, b)
    total(terms)[0].backward()
    for v_BD in (mean_BD, logvar_BD):
        assert v_BD.grad is not None
        expected = invariance * (v_BD - v_BD.mean(dim=0)) / 6
        assert torch.allclose(v_BD.grad[:, 1:], expected[:, 1:], rtol=0, atol=1e-15)
        assert v_BD.grad[:, 0].abs().min() > 1e-6
    if invariance == 0:
        assert not mean_BD.grad[:, 1:].any() and not logvar_BD.grad[:, 1:].any()


def test_the_penalty_draws_inactive_latents_together() -> None:
    """One step down its gradient; with the opposite sign, as in the published code, they would move apart."""
    m = model(invariance=1.0)
    b = batch("posX")
    with torch.no_grad():
        before = [t.var(dim=0) for t in m.features(b.x_BCHW)]
    m.loss(b, m.hyper(0))["away"].value.backward()
    with torch.no_grad():
        for p in m.encoder.parameters():
            assert p.grad is not None
            p -= 0.05 * p.grad
        after = [t.var(dim=0) for t in m.features(b.x_BCHW)]
    for old, new in zip(before, after, strict=True):
        assert bool((new[[0, 2, 3]] < old[[0, 2, 3]]).all())


@pytest.mark.parametrize("clamp", ["mean", "first", "none"])
def test_gradient_by_finite_differences(clamp: str) -> None:
    """Of the whole loss in float64, with the shared values held where they are."""
    m = model(clamp=clamp, invariance=0.5, beta=2.0).double()
    b = batch("shape")
    b = Batch(b.x_BCHW.double(), b.index_B, b.labels_BK)
    shared = [m.shared(t) for t in m.features(b.x_BCHW)]
    weight = next(m.encoder.parameters())

    def value() -> Tensor:
        turn = iter(shared)
        m.shared = lambda v_BD: next(turn)  # type: ignore[method-assign]
        torch.manual_seed(5)
        return total(m.loss(b, m.hyper(0)))[0]

    value().backward()
    assert weight.grad is not None
    for i, j in ((0, 3), (5, 40), (11, 63)):
        with torch.no_grad():
            kept = weight[i, j].item()
            weight[i, j] = kept + 1e-5
            up = value().item()
            weight[i, j] = kept - 1e-5
            down = value().item()
            weight[i, j] = kept
        assert weight.grad[i, j].item() == pytest.approx((up - down) / 2e-5, abs=1e-4)
        assert abs(weight.grad[i, j].item()) > 1e-6


def test_terms_in_closed_form() -> None:
    """Every term recomputed in float64, number by number."""
    m = model(invariance=0.25, beta=3.0).double()
    b = batch("posX")
    b = Batch(b.x_BCHW.double(), b.index_B, b.labels_BK)
    mean_BD, logvar_BD, terms, seen = captured(m, b)
    mean, logvar = mean_BD.detach(), logvar_BD.detach()

    def kl(mu: Tensor, lv: Tensor) -> float:
        return float((0.5 * (mu**2 + lv.exp() - lv - 1)).sum(dim=1).mean())

    inactive = [0, 2, 3]
    clamped_mean, clamped_logvar = mean.clone(), logvar.clone()
    clamped_mean[:, inactive], clamped_logvar[:, inactive] = mean[:, inactive].mean(0), logvar[:, inactive].mean(0)
    away = sum(float(6 * t[:, d].var(correction=0)) for t in (mean, logvar) for d in inactive) / 6 / 2
    logits = m.decoder(seen["z"].detach())
    p = torch.sigmoid(logits)
    recon = -float((b.x_BCHW * p.log() + (1 - b.x_BCHW) * (1 - p).log()).flatten(1).sum(dim=1).mean().detach())
    expected = {"recon": recon, "kl": kl(mean, logvar), "kl_clamped": kl(clamped_mean, clamped_logvar), "away": away}
    for name, value in expected.items():
        assert float(terms[name].value.detach()) == pytest.approx(value, rel=1e-9), name
    weights = {name: term.weight for name, term in terms.items()}
    assert weights == {"recon": 1.0, "kl": None, "kl_clamped": 3.0, "away": 0.25}
    objective = recon + 3 * expected["kl_clamped"] + 0.25 * away
    assert float(total(terms)[0].detach()) == pytest.approx(objective, rel=1e-9)
    assert m.kl_weight(m.hyper(0)) is None  # it is the KL of clamped codes that is weighed
    plain = model(clamp="none", invariance=0.0, beta=3.0)
    assert plain.kl_weight(plain.hyper(0)) == 3.0


def test_a_vae_where_all_is_active() -> None:
    """The loss bit for bit and its gradients within rounding, with the same weights and the same noise."""
    m = model(invariance=0.0)
    torch.manual_seed(0)
    plain = vae.Model(vae.Config(latent_dim=4, net={"name": "mlp", "hidden": [12], "activation": "tanh"}), SPRITES)
    assert all(torch.equal(a, b) for a, b in zip(m.parameters(), plain.parameters(), strict=True))
    losses = []
    for one in (m, plain):
        torch.manual_seed(5)
        losses.append(total(one.loss(batch(None), one.hyper(0)))[0])
        losses[-1].backward()
    assert losses[0] == losses[1]
    for a, b in zip(m.parameters(), plain.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-8)


# ----------------------------------------------------------------------------------------------- latents, batches, nets


def test_latents_by_name_and_what_is_left() -> None:
    def latents(**settings: Any) -> dict[str, list[int]]:
        return dc_ign.latents_of_factors(dc_ign.Config(**settings), SPRITES)

    assert latents(latent_dim=10) == {"scale": [0], "posX": [1], "shape": [2, 3, 4, 5, 6, 7, 8, 9]}
    assert latents(latent_dim=5, latents_per_factor={"posX": 2}) == {"posX": [0, 1], "scale": [2], "shape": [3, 4]}
    named = {"shape": 2, "posX": 1, "scale": 1}
    assert latents(latent_dim=4, latents_per_factor=named) == {"shape": [0, 1], "posX": [2], "scale": [3]}
    ordered = squares.load(squares.Config(name="squares")).info
    config = dc_ign.Config(latent_dim=4)
    assert dc_ign.latents_of_factors(config, ordered) == {"size": [0, 1], "posX": [2], "posY": [3]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 2}, "latent_dim is 2, but the factors of sprites take 3 latents or more"),
        ({"latent_dim": 9, "latents_per_factor": {"shape": 1, "scale": 1, "posX": 1}}, "latent_dim is 9"),
        ({"latents_per_factor": {"color": 1}}, "no factor 'color' that varies"),
        ({"latents_per_factor": {"posx": 1}}, "did you mean 'posX'"),
        ({"ratio": {"shapes": 1.0}}, "model.ratio: no factor 'shapes'"),
        ({"ratio": {"shape": 0.0}}, "no batch varies shape"),
    ],
)
def test_latents_that_nothing_would_train_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(**settings)


def test_data_without_factors_are_refused(vae: Callable[..., Result]) -> None:
    with pytest.raises(ConfigError, match="two factors that vary or more, but digits has 1"):
        dc_ign.Model(dc_ign.Config(), DataInfo("digits", (1, 8, 8), 10, ("digit",), (10,)))
    blind = ["--data", "squares", "--model", "dc-ign", "--latent-dim", 3, "-S", "data.labelled=0.5"]
    refused = vae("train", *blind, "--steps", 5, "--runs-dir", "runs")
    assert refused.code == 2 and "labels of every image" in refused.err


def test_batches_vary_one_factor_as_often_as_its_ratio() -> None:
    """Over 5,000 batches, by the chi-square statistic of three types (13.8 is the 0.1 % point)."""
    data = squares.load(squares.Config(name="squares", holdout=0))
    config = dc_ign.Config(latent_dim=3, ratio={"posX": 3.0, "size": 0.5}, net={"name": "mlp", "hidden": [4]})
    m = dc_ign.Model(config, data.info)
    train = data.training(0)
    order = m.order(train, 0, 6)
    labels_NK = train.labels_NK
    assert labels_NK is not None
    counts = [0, 0, 0]
    for step in range(5000):
        active = m.active(labels_NK[order.indices(step)])
        assert int(active.sum()) <= 1
        if active.any():  # six draws from three sizes are all the same one in 243 times
            counts[int(active.int().argmax())] += 1
    same = 3.0**-5
    expected = [5000 * w / 4.5 * (1 - (same if w == 0.5 else 13.0**-5)) for w in (0.5, 3.0, 1.0)]
    assert sum((o - e) ** 2 / e for o, e in zip(counts, expected, strict=True)) < 13.8, counts


def test_pooling_net_is_the_tables() -> None:
    """Weights and multiply-adds of the row: 102.7 million a 64x64 image, both ways."""
    encoder, decoder = coders.build(coders.PoolingConfig(), (1, 64, 64), 20, 10)
    shapes = [tuple(p.shape) for net in (encoder, decoder) for p in net.parameters() if p.dim() > 1]
    assert shapes == [
        (96, 1, 3, 3), (48, 96, 3, 3), (48, 48, 3, 3), (20, 3072),
        (3072, 10), (48, 48, 3, 3), (96, 48, 3, 3), (1, 96, 3, 3),
    ]  # fmt: skip
    count = 0

    def add(layer: Any, _: Any, out: Tensor) -> None:
        nonlocal count
        count += out[0].numel() * layer.weight[0].numel()

    for layer in [*encoder, *decoder]:
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(add)
    z_BD = encoder(torch.rand(1, 1, 64, 64))[:, :10]
    assert decoder(z_BD).shape == (1, 1, 64, 64)
    layers = [(96, 64), (96 * 48, 32), (48 * 48, 16), (48 * 48, 16), (48 * 96, 32), (96, 64)]  # maps in x out, side
    assert count == sum(9 * maps * side**2 for maps, side in layers) + 3072 * (20 + 10)
    with pytest.raises(ConfigError, match="halves images 3 times, but the data has 28x28"):
        coders.build(coders.PoolingConfig(), (1, 28, 28), 20, 10)


@pytest.mark.parametrize("preset", ["dc-ign-dsprites", "dc-ign-dsprites-small"])
def test_presets_name_the_five_factors(preset: str) -> None:
    """Every factor of dSprites that varies has a latent, the shape six."""
    config = configs.build(presets.load(preset))
    info = DataInfo(
        "dsprites",
        (1, 64, 64),
        737_280,
        ("color", "shape", "scale", "orientation", "posX", "posY"),
        (1, 3, 6, 40, 32, 32),
    )
    assert isinstance(config.model, dc_ign.Config)
    latents = dc_ign.latents_of_factors(config.model, info)
    assert list(latents) == ["posX", "posY", "scale", "orientation", "shape"] and latents["shape"] == [4, 5, 6, 7, 8, 9]


# ----------------------------------------------------------------------------------------------------------------- leak


def test_leak_of_known_codes() -> None:
    """Of codes that are functions of the factors: variances of the grid's rows, within sampling error."""
    labels_NK = torch.cartesian_prod(torch.arange(4), torch.arange(10))
    labels_NK = torch.cat([labels_NK, torch.zeros(40, 1, dtype=torch.int64)], dim=1)  # and a factor that is constant
    codes_ND = torch.stack([labels_NK[:, 0], labels_NK[:, 1], labels_NK.sum(dim=1), 0 * labels_NK[:, 0]], dim=1).float()
    table = leak(lambda index_B: codes_ND[index_B], labels_NK, groups=400, size=200)
    a, b = 15 / 12, 99 / 12  # variances of 0..3 and 0..9
    expected = torch.tensor([[a, 0, a, 0], [0, b, b, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert torch.allclose(table, expected, rtol=0.02, atol=1e-12)
    assert torch.equal(table, leak(lambda index_B: codes_ND[index_B], labels_NK, groups=400, size=200))


@pytest.fixture(scope="module")
def trained() -> tuple[Tensor, Tensor]:
    """1,500 steps on squares: the leak table, and correlations of latents (rows) with factors."""
    data = squares.load(squares.Config(name="squares", holdout=0))
    train = data.training(0)
    device.seed(0, "init")
    net = {"name": "mlp", "hidden": [128, 128], "activation": "leaky-relu"}
    config = dc_ign.Config(latent_dim=3, net=net, invariance=1.0, output_bias="default")
    m = dc_ign.Model(config, data.info)
    stream = data.stream(0, 32, m.order(train, 0, 32))
    optimizer = torch.optim.Adam(m.parameters(), lr=2e-3)
    for step in range(1500):
        device.seed(0, "step", step)
        optimizer.zero_grad()
        total(m.loss(stream.batch(step), m.hyper(step)))[0].backward()
        optimizer.step()
    m.eval()
    with torch.no_grad():
        codes_ND = m.posterior(data.batch(torch.arange(507)).x_BCHW).mean_BD
    assert data.labels is not None
    table = leak(lambda index_B: codes_ND[index_B], data.labels)
    return table, torch.corrcoef(torch.cat([codes_ND, data.labels.float()], dim=1).T)[:3, 3:]


def test_latents_go_to_the_factors_they_were_given_to(trained: tuple[Tensor, Tensor]) -> None:
    """z1 is posX and z2 is posY: correlated with it, and still while anything else varies."""
    table, correlation = trained
    for latent in (1, 2):
        others = [k for k in range(3) if k != latent]
        assert float(correlation[latent, latent].abs()) > 0.75
        assert float(correlation[latent, others].abs().max()) < 0.3
        assert float(table[latent, latent]) > 0.3
        assert float(table[others, latent].max()) < 0.3 * float(table[latent, latent])
    assert float(table[1:, 0].max()) < 0.05  # the latent of size does not follow the position


def test_resume_is_bit_exact(vae: Callable[..., Result]) -> None:
    """12 steps straight equal 5 and then the rest."""
    args = ["--data", "squares", "--model", "dc-ign", "--latent-dim", 3, "-S", "model.net={name: mlp, hidden: [8]}"]
    common = ["train", *args, "--batch-size", 16, "--runs-dir", "runs", "-q"]
    assert vae(*common, "--steps", 12, "--name", "straight").code == 0
    assert vae(*common, "--steps", 5, "--name", "broken").code == 0
    assert vae("train", "--resume", "runs/broken", "--steps", 12, "-q").code == 0
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        a, b = (load_file(Path("runs") / name / "checkpoints/latest" / file) for name in ("straight", "broken"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
