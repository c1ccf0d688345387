"""`rae` and `qlae`: every term against an independent float64 computation, and what they learn in seconds."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result
from safetensors.torch import load_file
from torch import Tensor

from vaecli import models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.models.base import Model, NoPrior
from vaecli.settings.optim import AdamW
from vaecli.training.state import make_optimizer

INFO = DataInfo("toy", (1, 4, 4), 50, binary=True)  # for a Bernoulli likelihood
F64 = torch.float64


def made(name: str, **settings: object) -> Model:
    torch.manual_seed(0)
    values = {"name": name, "latent_dim": 3, "net": {"name": "mlp", "hidden": [8], "activation": "tanh"}, **settings}
    return models.build(registry.load("model", name).Config.model_validate(values), INFO).double()


def batch(n: int = 5) -> Batch:
    x_BCHW = torch.rand(n, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    return Batch(x_BCHW, torch.arange(n))


# ------------------------------------------------------------------------------------------------------------------ rae


def test_rae_is_squared_error_and_code_size() -> None:
    model, b = made("rae", regulariser="none", beta=0.3), batch()
    parts = model.loss(b, model.hyper(0))
    z_BD = model.encoder(b.x_BCHW)
    error = (b.x_BCHW - model.decoder(z_BD)).square().flatten(1).sum(1).mean()
    constant = 16 * 0.5 * math.log(math.pi)  # of a Gaussian of variance 1/2
    assert float(parts["recon"].value) == pytest.approx(float(error) + constant, abs=1e-9)
    assert float(parts["code"].value) == pytest.approx(0.5 * float(z_BD.square().sum(1).mean()), abs=1e-12)
    assert parts["code"].weight == 0.3 and set(parts) == {"recon", "code"}


def test_rae_weights_are_those_of_the_decoder() -> None:
    model = made("rae", regulariser="l2", strength=0.7)
    part = model.loss(batch(), model.hyper(0))["weights"]
    exact = sum(float(p.square().sum()) for n, p in model.decoder.named_parameters() if n.endswith("weight"))
    assert float(part.value) == pytest.approx(exact, rel=1e-12) and part.weight == 0.7


def test_rae_slope_is_the_jacobians_norm() -> None:
    """By the latent (not by the image); one random direction is right on average, and exactly by expectation."""
    model = made("rae", regulariser="gradient-penalty")
    z_BD = torch.randn(2, 3, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda z: model.decoder(z[None])[0], z_BD[0])
    exact = float(jacobian.square().sum())
    torch.manual_seed(2)
    found = model.slope(z_BD[:1])
    torch.manual_seed(2)
    v_P = torch.randn(1, 1, 4, 4, dtype=F64).flatten()  # of one draw exactly: |v^T J|^2
    assert float(found.detach()) == pytest.approx(float((v_P @ jacobian.reshape(16, 3)).square().sum()), rel=1e-9)
    torch.manual_seed(2)
    with torch.no_grad():
        draws = torch.stack([model.slope(z_BD[:1])[0] for _ in range(4000)])
    error = float(draws.std() / len(draws) ** 0.5)
    assert float(draws.mean()) == pytest.approx(exact, abs=4 * error) and error < 0.05 * exact
    part = model.loss(batch(), model.hyper(0))["slope"]
    (gradient,) = torch.autograd.grad(part.value, model.decoder[0].weight)  # it can be minimised
    assert float(gradient.abs().max()) > 0


def test_rae_spectral_norm_bounds_every_layer() -> None:
    model = made("rae", regulariser="spectral-norm")
    model.train()
    for _ in range(60):  # power iterations
        model.loss(batch(), model.hyper(0))
    for part in (model.encoder, model.decoder):
        for layer in part:
            if hasattr(layer, "weight"):
                assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("regulariser", ["l2", "gradient-penalty", "spectral-norm", "none"])
def test_rae_trains_and_resumes(regulariser: str, vae: Callable[..., Result]) -> None:
    args = ["train", "--data", "squares", "--model", "rae", "-S", "model.net={name: mlp, hidden: [32]}"]
    args += ["-S", f"model.regulariser={regulariser}", "--latent-dim", 4, "--lr", 3e-3, "--runs-dir", "runs", "-q"]
    assert vae(*args, "--steps", 400, "--name", "straight").code == 0
    assert vae(*args, "--steps", 150, "--name", "broken").code == 0
    resumed = vae("train", "--resume", "runs/broken", "--steps", 400, "-q")
    assert resumed.code == 0, resumed.err
    from safetensors.torch import load_file

    a, b = (load_file(f"runs/{r}/checkpoints/latest/model.safetensors") for r in ("straight", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    lines = [json.loads(line) for line in Path("runs/straight/metrics.jsonl").read_text().splitlines()]
    recon = [line["recon"] for line in lines if line["kind"] == "train"]
    floor = 256 * 0.5 * math.log(math.pi)
    bound = 0.9 if regulariser == "spectral-norm" else 0.7  # layers that may not stretch learn slowly
    assert recon[-1] - floor < bound * (recon[0] - floor)
    refused = vae("sample", "runs/straight", "-o", "s.png")
    assert refused.code == 2 and "vae density" in refused.err


def test_rae_has_no_prior() -> None:
    with pytest.raises(NoPrior, match="no prior"):
        made("rae").draw(2)


# ----------------------------------------------------------------------------------------------------------------- qlae


def brute(model: Model, z_BD: Tensor) -> tuple[Tensor, Tensor]:
    values, ranks = [], []
    for row in z_BD:
        best = []
        for j, z in enumerate(row):
            book = sorted(model.codebook_DV[j].tolist())
            best.append(min(range(len(book)), key=lambda v, z=z, book=book: abs(book[v] - float(z))))
        ranks.append(best)
        values.append([sorted(model.codebook_DV[j].tolist())[v] for j, v in enumerate(best)])
    return torch.tensor(values, dtype=F64), torch.tensor(ranks)


def test_qlae_quantises_latent_by_latent() -> None:
    model = made("qlae", values=4)
    model.codebook_DV.data = torch.randn(3, 4, dtype=F64)  # in no order
    z_BD = torch.randn(40, 3, dtype=F64)
    values_BD, ranks_BD = model.nearest(z_BD)
    exact_BD, wanted_BD = brute(model, z_BD)
    torch.testing.assert_close(values_BD.detach(), exact_BD, rtol=0, atol=1e-12)
    assert torch.equal(ranks_BD, wanted_BD)
    assert torch.equal(model.values(ranks_BD), values_BD)
    assert bool((values_BD[z_BD[:, 0].argsort(), 0].diff() >= 0).all())  # a rank rises with its value


def test_qlae_terms_and_straight_through_gradients() -> None:
    model, b = made("qlae", values=4, quantisation=0.5, commitment=0.25), batch()
    parts = model.loss(b, model.hyper(0))
    z_BD = model.encoder(b.x_BCHW)
    value_BD, _ = brute(model, z_BD.detach())
    square = float((z_BD - value_BD).square().sum(1).mean())
    for name, weight in (("quantisation", 0.5), ("commitment", 0.25)):
        assert float(parts[name].value) == pytest.approx(square, abs=1e-12)
        assert parts[name].weight == pytest.approx(weight * 16 / 3, rel=1e-12)  # of means over pixels and latents
    logits = model.decoder(value_BD)
    exact = torch.nn.functional.binary_cross_entropy_with_logits(logits, b.x_BCHW, reduction="none").flatten(1).sum(1)
    assert float(parts["recon"].value) == pytest.approx(float(exact.mean()), abs=1e-9)
    # What the decoder says of v reaches the encoder as if it were of z, and never the codebook.
    leaf_BD = value_BD.clone().requires_grad_(True)
    nll = torch.nn.functional.binary_cross_entropy_with_logits(model.decoder(leaf_BD), b.x_BCHW, reduction="none")
    (slope_BD,) = torch.autograd.grad(nll.flatten(1).sum(1).mean(), leaf_BD)
    (wanted,) = torch.autograd.grad(z_BD, model.encoder[-1].weight, slope_BD)
    found = torch.autograd.grad(parts["recon"].value, [model.encoder[-1].weight, model.codebook_DV], allow_unused=True)
    torch.testing.assert_close(found[0], wanted, rtol=1e-9, atol=1e-12)
    assert found[1] is None
    sides = [torch.autograd.grad(parts[n].value, model.codebook_DV, allow_unused=True, retain_graph=True)[0] for n in
             ("quantisation", "commitment")]  # fmt: skip
    assert sides[0] is not None and sides[1] is None


def test_qlae_decays_weights_alone() -> None:
    """A step with gradients of zero moves what decays, by lr * decay of itself, and nothing else."""
    model = made("qlae", values=4)
    for p in model.parameters():
        p.data = torch.randn_like(p)
        p.grad = torch.zeros_like(p)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (player,) = model.players(AdamW(name="adamw", lr=0.5, weight_decay=0.1))
    make_optimizer(list(player.parameters), player.optim, player.undecayed).step()
    for name, p in model.named_parameters():
        spared = name == "codebook_DV" or name.endswith("bias")
        torch.testing.assert_close(p.detach(), before[name] * (1.0 if spared else 0.95), rtol=1e-12, atol=0)


def test_what_is_spared_from_decay_stays_so(vae: Callable[..., Result]) -> None:
    """While the trainer moves a scheduled decay, and after it goes on from a checkpoint. Without its term the codebook
    has no gradient, so that decay alone would move it."""
    few = (
        "--model",
        "qlae",
        "-S",
        "model.quantisation=0",
        "-S",
        "model.net={name: mlp, hidden: [4]}",
        "--latent-dim",
        2,
    )
    decay = ("-S", "optim={name: adamw, lr: 1e-3, weight_decay: {schedule: linear, start: 0.5, end: 1.0, steps: 4}}")
    args = ("train", "--data", "squares", *few, *decay, "--batch-size", 8, "--runs-dir", "runs", "--name", "r")
    assert vae(*args, "--steps", 2, "-q").code == 0
    assert vae("train", "--resume", "runs/r", "--steps", 4, "-q").code == 0
    whole = vae(*args[:-1], "w", "--steps", 4, "-q")
    assert whole.code == 0, whole.err
    one, other = (load_file(f"runs/{name}/checkpoints/step-00000004/model.safetensors") for name in ("r", "w"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(one["codebook_DV"], torch.linspace(-0.5, 0.5, 10).expand(2, -1))


def test_qlae_rate_is_that_of_the_uniform_prior() -> None:
    model = made("qlae", values=7)
    found = model.infer(batch().x_BCHW)
    torch.testing.assert_close(model.rates(found)["z"], torch.full((5, 3), math.log(7)).to(torch.float32))
    assert model.draw(100)["z"].unique().tolist() == list(range(7))


def test_qlae_learns(vae: Callable[..., Result]) -> None:
    args = ["train", "--data", "squares", "--model", "qlae", "-S", "model.net={name: mlp, hidden: [64]}"]
    args += ["--latent-dim", 4, "--steps", 1500, "--lr", 2e-3, "--runs-dir", "runs", "--name", "q", "-q"]
    assert vae(*args).code == 0
    lines = [json.loads(line) for line in Path("runs/q/metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert train[-1]["recon"] < 0.5 * train[0]["recon"]
    assert train[-1]["commitment"] < 0.5 * train[0]["commitment"] and train[-1]["used"] > 0.5
