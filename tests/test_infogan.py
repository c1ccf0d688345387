"""InfoGAN: whom each term teaches, how spectral norm moves, and that Q finds the codes again."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Result
from safetensors.torch import load_file
from torch import Tensor, nn

from vaecli import config as configs
from vaecli import device, noise, presets
from vaecli.batch import Batch, DataInfo
from vaecli.commands import train
from vaecli.errors import ConfigError
from vaecli.models import infogan
from vaecli.models.base import Term, total
from vaecli.nets import adversarial, spectral
from vaecli.settings.optim import Adam

DOTS = DataInfo("dots", (1, 8, 8), 8)
SPRITES = DataInfo("sprites", (1, 64, 64), 1000)
TINY: dict[str, Any] = {"name": "infogan", "codes": 3, "noise": 2, "net": {"name": "mlp", "hidden": [16]}}


def model(info: DataInfo = DOTS, **settings: Any) -> infogan.Model:
    torch.manual_seed(0)
    return infogan.Model(infogan.Config(**{**TINY, **settings}), info)


def batch(info: DataInfo = DOTS, n: int = 6) -> Batch:
    x_BCHW = torch.rand(n, *info.shape, generator=torch.Generator().manual_seed(3))
    return Batch(x_BCHW, torch.arange(n))


def terms(m: infogan.Model, b: Batch, player: str, seed: int = 5) -> dict[str, Term]:
    torch.manual_seed(seed)
    return m.loss(b, m.hyper(0), player)


# --------------------------------------------------------------------------------------------------------------- levels


def test_levels_and_priors() -> None:
    """Codes and noise are uniform in (-1, 1): mean 0, variance 1/3; only codes are inferred."""
    m = model()
    assert [(level.name, level.shape, level.inferred) for level in m.levels] == [
        ("noise", (2,), False), ("code", (3,), True),
    ]  # fmt: skip
    assert m.latent_names() == ["code.0", "code.1", "code.2"]
    drawn = m.draw(20_000)
    for value in drawn.values():
        assert value.abs().max() <= 1 and value.abs().max() > 0.99
        assert float(value.mean()) == pytest.approx(0, abs=0.02)
        assert float(value.var()) == pytest.approx(1 / 3, abs=0.01)
    assert torch.corrcoef(m.flatten(drawn, m.levels).T).fill_diagonal_(0).abs().max() < 0.03


def test_there_is_no_likelihood_and_no_rate() -> None:
    m = model().eval()
    b = batch()
    assert not m.has_likelihood and m.log_prob(b.x_BCHW, m.draw(6), {}) is None
    found = m.infer(b.x_BCHW)
    assert m.rates(found) == {} and m.posterior(b.x_BCHW).kl_BD is None
    assert m.kl_weight(m.hyper(0)) is None
    names = {*terms(m, b, "discriminator"), *terms(m, b, "generator")}
    assert not names & {"recon", "elbo", "kl"}


def test_resynthesis_is_the_image_of_qs_mean_without_noise() -> None:
    """decode(mean) is G(Q(x), 0)."""
    m = model().eval()
    mean_BD = m.posterior(batch().x_BCHW).mean_BD
    assert torch.equal(mean_BD, m.coder(m.trunk(batch().x_BCHW)))
    expected = m.generator(torch.cat([torch.zeros(6, 2), mean_BD], dim=1)).sigmoid()
    assert torch.equal(m.decode(mean_BD), expected)


def test_symmetric_pixels() -> None:
    """Networks see and make [-1, 1], everybody else [0, 1]."""
    m = model(pixels="symmetric").eval()
    drawn = m.draw(4)
    raw = m.generator(torch.cat([drawn["noise"], drawn["code"]], dim=1))
    assert torch.allclose(m.seen(m.image(drawn)), raw.tanh(), atol=1e-6)
    assert m.seen(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1.0, 0.0, 1.0]


def test_instance_noise_is_for_training_alone() -> None:
    m = model(pixels="symmetric", instance_noise=0.2)
    x_BCHW = batch(n=500).x_BCHW
    noise = m.seen(x_BCHW, 0.2) - (2 * x_BCHW - 1)
    assert float(noise.std()) == pytest.approx(0.2, rel=0.02) and float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert torch.equal(m.eval().seen(x_BCHW, 0.2), 2 * x_BCHW - 1)


# ---------------------------------------------------------------------------------------------------------------- terms


def test_terms_in_closed_form() -> None:
    """Every number recomputed in float64 from what the networks say."""
    m = model(info_weight=0.3).double()
    b = Batch(batch().x_BCHW.double(), torch.arange(6))
    m.eval()  # spectral norm stays where it is
    drawn = {name: value.double() for name, value in m.draw(6).items()}
    m.draw = lambda n, given=None, temperature=1.0: drawn  # type: ignore[method-assign]
    found = terms(m, b, "discriminator")
    made = m.image(drawn).detach()
    real_B = m.verdict(m.trunk(b.x_BCHW))[:, 0].sigmoid()
    made_B = m.verdict(m.trunk(made))[:, 0].sigmoid()
    error_BD = (drawn["code"] - m.coder(m.trunk(made))).square()
    info = float((0.5 * error_BD + 0.5 * math.log(2 * math.pi)).sum(dim=1).mean().detach())
    expected = {
        "real": float(-real_B.log().mean().detach()),
        "made": float(-(1 - made_B).log().mean().detach()),
        "info": info,
        "D_real": float(real_B.mean().detach()),
        "D_made": float(made_B.mean().detach()),
        **{f"r2_{d}": 1 - 3 * float(error_BD[:, d].mean().detach()) for d in range(3)},
        "white": float((made > 0.5).double().mean()),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name].value.mean().detach()) == pytest.approx(value, rel=1e-9), name
    assert float(total(found)[0].detach()) == pytest.approx(expected["real"] + expected["made"] + 0.3 * info, rel=1e-9)
    weights = {name: term.weight for name, term in found.items()}
    assert weights["info"] == 0.3 and weights["white"] is None and weights["r2_0"] is None
    fooled = terms(m, b, "generator")
    assert float(fooled["fool"].value.mean().detach()) == pytest.approx(float(-made_B.log().mean().detach()), rel=1e-9)
    assert float(fooled["info"].value.mean().detach()) == pytest.approx(info, rel=1e-9)


@pytest.mark.parametrize(("knows", "per_code"), [(True, 0.9189), (False, 1.0856)])
def test_bounds_of_the_information_term(knows: bool, per_code: float) -> None:
    """0.5 log 2 pi a code where Q says the code, 1/6 more where it always says 0 (over a fine grid of codes)."""
    m = model(codes=2, noise=1)
    grid = (torch.arange(200) + 0.5) / 100 - 1
    code_BD = torch.cartesian_prod(grid, grid)
    m.draw = lambda n, given=None, temperature=1.0: {"noise": torch.zeros(n, 1), "code": code_BD}  # type: ignore
    m.coder = nn.Sequential()  # type: ignore[assignment]
    said = code_BD if knows else torch.zeros_like(code_BD)
    m.network = lambda net, x: said if net is m.coder else net(x)  # type: ignore[method-assign]
    found = m.loss(Batch(torch.rand(40_000, 1, 8, 8), torch.arange(40_000)), m.hyper(0), "discriminator")
    assert float(found["info"].value.mean()) == pytest.approx(2 * per_code, abs=2e-4)
    assert float(found["r2_1"].value) == pytest.approx(1.0 if knows else 0.0, abs=1e-4)


def test_learned_variance_is_bounded() -> None:
    m = model(q_variance="learned")
    features = torch.zeros(1, 16)
    for raw, expected in ((0.5, 0.5), (-40.0, -6.0), (40.0, 6.0)):
        last: Any = m.coder[-1]
        with torch.no_grad():
            last.bias.fill_(raw)
        assert m.q("code", features, {}).logvar.detach().tolist() == [[expected] * 3]


def test_whom_the_terms_teach() -> None:
    """Information reaches D's trunk and Q in their player's turn and G in its own, and never D's verdict; while G plays
    nobody else gets a gradient; while D plays G gets none."""
    m = model()

    def touched(value: Tensor) -> set[str]:
        m.zero_grad()
        value.mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        return {name.partition(".")[0] for name, p in m.named_parameters() if p.grad is not None and p.grad.any()}

    judge, make = terms(m, batch(), "discriminator"), terms(m, batch(), "generator")
    assert touched(judge["info"].value) == {"trunk", "coder"}
    assert touched(judge["real"].value + judge["made"].value) == {"trunk", "verdict"}
    assert touched(make["info"].value) == {"generator"}
    assert touched(make["fool"].value) == {"generator"}
    assert all(p.requires_grad for p in m.parameters())


def test_the_players_are_the_published_ones() -> None:
    m = model(discriminator_optim=Adam(lr=2e-3))
    judge, make = m.players(Adam(lr=1e-3))
    assert (judge.name, judge.updates, judge.optim.lr) == ("discriminator", 1, 2e-3)
    assert (make.name, make.updates, make.optim.lr) == ("generator", 2, 1e-3)
    owned = [id(p) for player in (judge, make) for p in player.parameters]
    assert sorted(owned) == sorted(id(p) for p in m.parameters())


def test_two_updates_of_the_generator_move_it_twice_and_nothing_else() -> None:
    m = model(SPRITES, net="spectral")
    _, make = m.players(Adam(lr=1e-3))
    optimizer = torch.optim.Adam(make.parameters, lr=1e-3)
    others = {k: v.clone() for k, v in m.state_dict().items() if not k.startswith("generator.")}
    weights = [m.generator[0].weight.detach().clone()]
    for turn in range(2):
        m.zero_grad()
        total(terms(m, batch(SPRITES), "generator", turn))[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        weights.append(m.generator[0].weight.detach().clone())
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert all(torch.equal(m.state_dict()[name], value) for name, value in others.items())
    assert any(name.endswith("u_O") for name in others)


def test_updates_of_a_step_share_their_codes() -> None:
    """As published: D and both updates of G work on the same codes and noise, the next step has others; with `redraw`
    each has its own, as has whatever is only evaluated."""

    def codes(m: infogan.Model, players: list[str]) -> list[Tensor]:
        made, found = m.image, []

        def image(values: Any) -> Tensor:
            found.append(torch.cat([values["noise"], values["code"]], dim=1))
            return made(values)

        m.image = image  # type: ignore[method-assign]
        torch.manual_seed(0)
        for player in players:
            m.loss(batch(), m.hyper(0), player)
        return found

    step = ["discriminator", "generator", "generator"]
    shared = codes(model(), step * 2)
    assert all(torch.equal(shared[0], one) for one in shared[:3])
    assert all(torch.equal(shared[3], one) for one in shared[3:]) and not torch.equal(shared[0], shared[3])
    trained = model()
    codes(trained, step)
    for others in (codes(model(redraw=True), step), codes(trained.eval(), step)):
        assert not any(torch.equal(others[i], others[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


# -------------------------------------------------------------------------------------------------------- spectral norm


@pytest.mark.parametrize("make", [lambda: spectral.SpectralLinear(30, 20), lambda: spectral.SpectralConv2d(3, 20, 4)])
def test_spectral_norm_of_a_fixed_weight(make: Callable[[], Any]) -> None:
    """After 50 steps the largest singular value of what is applied is 1, by an independent decomposition; gradients are
    those of W / sigma(W) itself."""
    torch.manual_seed(1)
    layer = make().double()
    with torch.no_grad():
        layer.weight *= 7
    for _ in range(50):
        spectral.iterate(layer)
    largest = torch.linalg.svdvals(layer.normed().detach().flatten(1))[0]
    assert float(largest) == pytest.approx(1.0, abs=0.01)
    direction = torch.randn_like(layer.weight)
    (layer.normed() * direction).sum().backward()
    with torch.no_grad():
        step = 1e-6 * torch.randn_like(layer.weight)

        def exact(weight: Tensor) -> float:
            return float((weight / torch.linalg.svdvals(weight.flatten(1))[0] * direction).sum())

        slope = (exact(layer.weight + step) - exact(layer.weight - step)) / 2
        assert float((layer.weight.grad * step).sum()) == pytest.approx(slope, rel=0.05)


def test_spectral_layers_are_plain_ones_with_a_scaled_weight() -> None:
    torch.manual_seed(1)
    linear, convolution = spectral.SpectralLinear(5, 4), spectral.SpectralConv2d(2, 4, 4, stride=2, padding=1)
    x = torch.rand(3, 5)
    sigma = float(linear.sigma().detach())
    assert torch.allclose(linear(x), F.linear(x, linear.weight / sigma, linear.bias), atol=1e-6)
    image = torch.rand(3, 2, 8, 8)
    sigma = float(convolution.sigma().detach())
    plain = F.conv2d(image, convolution.weight / sigma, convolution.bias, 2, 1)
    assert torch.allclose(convolution(image), plain, atol=1e-6)


def test_spectral_norm_moves_once_a_discriminators_update_only() -> None:
    m = model()
    first: Any = m.trunk[1]

    def u() -> Tensor:
        kept: Tensor = first.u_O.clone()
        return kept

    with torch.no_grad():
        first.weight.copy_(torch.randn_like(first.weight))
    before = u()
    m.features(batch().x_BCHW)
    terms(m, batch(), "generator")
    m.eval()
    terms(m, batch(), "discriminator")
    assert torch.equal(u(), before)
    m.train()
    terms(m, batch(), "discriminator")
    weight = first.weight.detach()
    expected = F.normalize(weight @ F.normalize(weight.T @ before, dim=0), dim=0)
    assert torch.allclose(u(), expected, atol=1e-6) and not torch.allclose(before, expected, atol=1e-3)


# ----------------------------------------------------------------------------------------------------------------- nets


@pytest.mark.parametrize("net", ["spectral", "dcgan"])
def test_nets_have_the_published_layers(net: str) -> None:
    """Weights by shape; 10 latents, 5 codes, 64x64x1."""
    nets = adversarial.build(infogan.Config(net=net).net, (1, 64, 64), 10, 5)
    found = [[tuple(p.shape) for p in part.parameters() if p.dim() > 1] for part in nets]
    heads = {
        "spectral": [[(128, 1024), (1, 128)], [(128, 1024), (5, 128)]],
        "dcgan": [[(256, 4096), (1, 256)], [(128, 4096), (5, 128)]],
    }
    bodies = {
        "spectral": [
            [(128, 10), (1024, 128), (64, 64, 4, 4), (64, 32, 4, 4), (32, 32, 4, 4), (32, 1, 4, 4)],
            [(32, 1, 4, 4), (32, 32, 4, 4), (64, 32, 4, 4), (64, 64, 4, 4)],
        ],
        "dcgan": [
            [(256, 10), (4096, 256), (256, 128, 4, 4), (128, 64, 4, 4), (64, 32, 4, 4), (32, 1, 4, 4)],
            [(32, 1, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4)],
        ],
    }
    assert found == [*bodies[net], *heads[net]]
    for layer in nn.ModuleList(nets).modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and layer.weight.numel() > 1000:
            # A Gaussian cut off at two standard deviations has 0.88 of its own.
            assert float(layer.weight.detach().std()) == pytest.approx(0.02 * 0.88, rel=0.08)
            assert layer.bias is not None and not layer.bias.any()
    x_BCHW = nets.generator(torch.rand(3, 10))
    assert x_BCHW.shape == (3, 1, 64, 64)
    assert nets.verdict(nets.trunk(x_BCHW)).shape == (3, 1) and nets.coder(nets.trunk(x_BCHW)).shape == (3, 5)


@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("net", ["spectral", "dcgan"])
def test_smaller_images(net: str, side: int) -> None:
    m = model(DataInfo("small", (3, side, side), 10), net=net)
    image = m.image(m.draw(4))
    assert image.shape == (4, 3, side, side) and bool(((image >= 0) & (image <= 1)).all())
    assert m.features(image).shape[0] == 4


def test_other_sizes_are_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match="square images of 8, 16, 32 or 64 pixels, but the data has 28x28"):
        model(DataInfo("digits", (1, 28, 28), 10), net="dcgan")
    m = model(DataInfo("digits", (1, 28, 20), 10))
    assert m.image(m.draw(2)).shape == (2, 1, 28, 20)


# -------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("preset", "rates", "facts"),
    [
        ("infogan-dsprites", (1e-3, 2e-3), ("spectral", "unit", 0.0, 2, 0.05)),
        ("infogan-higgins", (1e-3, 2e-4), ("dcgan", "symmetric", 0.2, 1, 1.0)),
    ],
)
def test_presets(preset: str, rates: tuple[float, float], facts: tuple[Any, ...]) -> None:
    config = configs.build(presets.load(preset))
    section = config.model
    assert isinstance(section, infogan.Config)
    found = section.net.name, section.pixels, section.instance_noise, section.generator_updates, section.info_weight
    assert found == facts and (section.codes, section.noise) == (5, 5)
    assert (config.optim.lr, section.discriminator_optim.lr) == rates
    for optim in (config.optim, section.discriminator_optim):
        assert isinstance(optim, Adam) and optim.betas == (0.5, 0.999)


# ------------------------------------------------------------------------------------------------------------- learning


def dots() -> Tensor:
    """Eight 8x8 images, each of one white pixel, in the same row."""
    x_NCHW = torch.zeros(8, 1, 8, 8)
    x_NCHW[torch.arange(8), 0, 3, torch.arange(8)] = 1
    return x_NCHW


def test_q_finds_the_code_of_a_moving_dot() -> None:
    """R^2 of the one code, on draws of its own, and images about as white as the real ones (1/64)."""
    x_NCHW = dots()
    device.seed(0, "init")
    settings = {"codes": 1, "noise": 1, "info_weight": 1.0, "net": {"name": "mlp", "hidden": [64, 64]}}
    m = infogan.Model(infogan.Config(**settings), DOTS)
    rates = {"discriminator": 2e-3, "generator": 1e-3}
    players = m.players(Adam())
    optimizers = [torch.optim.Adam(p.parameters, lr=rates[p.name], betas=(0.5, 0.999)) for p in players]
    before = knowledge(m)
    assert m.eval().facts()["r2_code.0"] == pytest.approx(before[0], abs=0.05)  # knowing little: its scale is seen
    m.train()
    for step in range(600):
        device.seed(0, "step", step)
        index_B = torch.randint(8, (64,))
        for player, optimizer in zip(players, optimizers, strict=True):
            for _ in range(player.updates):
                m.zero_grad()
                b = Batch(x_NCHW[index_B], index_B)
                total(m.loss(b, m.hyper(step), player.name))[0].backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    r2, white = knowledge(m)
    assert r2 > 0.8 > 0.3 > before[0]
    assert 0.5 / 64 < white < 2 / 64
    state = torch.random.get_rng_state()
    facts = m.eval().facts()
    assert facts == m.facts() and torch.equal(state, torch.random.get_rng_state())
    assert facts["r2_code.0"] == pytest.approx(r2, abs=0.02) and facts["white"] == pytest.approx(white, abs=0.002)
    assert facts["codes_found"] == 1 and model().eval().facts()["codes_found"] == 0


def knowledge(m: infogan.Model) -> tuple[float, float]:
    """R^2 of the first code and the share of white pixels over 2,000 draws, in evaluation mode."""
    m.eval()
    device.seed(7, "knowledge")
    with torch.no_grad():
        drawn = m.draw(2000)
        made = m.image(drawn)
        mean_BD = m.q("code", m.features(made), {}).mean
    m.train()
    error = (drawn["code"] - mean_BD)[:, 0].square().mean()
    return 1 - float(error) / (1 / 3), float((made > 0.5).float().mean())


# --------------------------------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("net", ["spectral", "dcgan"])
def test_resume_is_bit_exact(net: str, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """6 steps straight equal 2 and then the rest: weights, u, running statistics, both optimizers."""
    monkeypatch.setattr(infogan, "MADE", 500)  # images that the evaluations are of
    monkeypatch.setattr(noise, "draws", lambda images: 2)
    args = ["train", "--data", "squares", "--model", "infogan", "-S", f"model.net={net}", "--batch-size", 8, "-q"]
    args += ["-S", "model.instance_noise=0.1", "-S", "train.eval_images=16", "--runs-dir", "runs"]
    assert vae(*args, "--steps", 6, "--name", "straight").code == 0
    assert vae(*args, "--steps", 2, "--name", "broken").code == 0
    assert vae("train", "--resume", "runs/broken", "--steps", 6, "-q").code == 0
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        a, b = (load_file(Path("runs") / name / "checkpoints/latest" / file) for name in ("straight", "broken"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    names = load_file("runs/straight/checkpoints/latest/model.safetensors").keys()
    assert any(name.endswith("running_mean") for name in names)
    assert any(name.endswith("u_O") for name in names) == (net == "spectral")


def test_commands_speak_of_no_elbo(vae: Callable[..., Result]) -> None:
    """Train, sample, encode, decode and traverse; codes are Q's means, and nothing printed is a bound."""
    args = ["--data", "squares", "--model", "infogan", "-S", "model.net={name: mlp, hidden: [16]}", "--batch-size", 16]
    done = vae("train", *args, "--steps", 20, "--runs-dir", "runs", "--name", "g", "-S", "train.log_every=10")
    assert done.code == 0, done.err
    assert "ELBO" not in done.err and "recon" not in done.err
    for line in Path("runs/g/metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert not {"elbo", "recon", "kl", "kl_j"} & record.keys()
        assert {"r2_0", "r2_4", "white", "D_real", "generator.fool", "generator.info"} <= record.keys()
    assert vae("sample", "runs/g", "-n", 4, "-o", "s.png").code == 0
    assert vae("encode", "runs/g", "-o", "codes.npz").code == 0
    assert vae("decode", "runs/g", "codes.npz", "-o", "d.png").code == 0
    traversal = vae("traverse", "runs/g", "-o", "t.png", "--steps", 5, "--json")
    assert traversal.code == 0, traversal.err
    record = json.loads(traversal.out)  # codes from end to end of their prior, whatever --range
    assert record["values"] == [-1.0, -0.5, 0.0, 0.5, 1.0] and record["unit"] == "latent, over the range of the prior"
    page = vae("report", "runs/g", "-o", "r.html", "--metrics", "none")
    assert page.code == 0, page.err
    text = re.sub(r"base64,[\w+/=]+", "", Path("r.html").read_text())
    assert "Resyntheses" in text and not re.search(
        r"ELBO|[Rr]econstruction", text.split("<main>")[1].split("</main>")[0]
    )


def test_a_discriminator_that_wins_for_long_is_said_to() -> None:
    """D(x) above 0.98 and D(G) below 0.02 in all evaluations of 2,000 steps; else counting starts anew."""
    m, judge, config = model(), train.Judge(), configs.build(presets.load("infogan-dsprites"))

    def said(step: int, real: float, made: float) -> str | None:
        return judge.concern(m, {"D_real": real, "D_made": made}, config, step, 100_000)

    assert said(1000, 0.99, 0.01) is None and said(2000, 0.99, 0.01) is None
    warning = said(3000, 0.99, 0.01)
    assert warning is not None and "since step 1,000" in warning
    assert all(word in warning for word in ("spectral norm", "instance noise", "lower learning rate"))
    assert said(4000, 0.97, 0.01) is None and said(5000, 0.99, 0.01) is None and said(6000, 0.99, 0.03) is None
    assert said(7000, 0.99, 0.01) is None and said(9000, 0.99, 0.01) is not None
    assert judge.concern(model(), {"D_real": 0.99, "D_made": 0.01}, config, 9000, 100_000) is None  # another run's
