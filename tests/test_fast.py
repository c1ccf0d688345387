"""The fast path against the plain one: every net's values and gradients, layer by layer and through training."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, Result
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from vaecli import registry
from vaecli.batch import Batch, DataInfo
from vaecli.models import base
from vaecli.nets import coders as nets
from vaecli.objectives import likelihoods
from vaecli.settings.optim import OptimConfig
from vaecli.speed import fast, layers, native, optimizers
from vaecli.training.state import make_optimizer

NETS = {
    "higgins-fc": (nets.HigginsFcConfig(), (1, 16, 16)),
    "burgess": (nets.BurgessConfig(), (1, 64, 64)),
    "burgess-32-rgb": (nets.BurgessConfig(), (3, 32, 32)),
    "locatello": (nets.LocatelloConfig(), (1, 64, 64)),
    "locatello-rgb": (nets.LocatelloConfig(), (3, 64, 64)),
    "mlp": (nets.MlpConfig(hidden=[30]), (1, 9, 7)),
    "mlp-tanh": (nets.MlpConfig(hidden=[30, 20], activation="tanh"), (1, 9, 7)),
    "mlp-elu": (nets.MlpConfig(hidden=[30, 20], activation="elu"), (1, 9, 7)),
    "resnet": (nets.ResnetConfig(width=4), (2, 13, 9)),
}


@pytest.fixture(params=["kernels", "onednn"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled kernels, and as where they cannot be had."""
    if request.param == "onednn":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip(f"no compiled kernels here: {native.why_not}")
    return str(request.param)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[int, int, int]]:
    """The same net twice: fast in float32, plain in float64."""
    config, shape = NETS[name]
    torch.manual_seed(0)
    quick = nn.ModuleList(nets.build(config, shape, 10, 5))
    exact = copy.deepcopy(quick).double()
    names = list(quick.state_dict())
    if not fast.accelerate(quick):
        pytest.skip("nothing is accelerated on this machine")
    assert list(quick.state_dict()) == names
    return quick, exact, shape


def through(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    code = model[0](x)
    return code, model[1](code[:, :5])


@pytest.mark.parametrize("name", NETS)
def test_values_and_gradients_equal_plain_in_float64(name: str, kind: str) -> None:
    quick, exact, shape = pair(name)
    x = torch.rand(5, *shape).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    slope = torch.rand(5 * 3 * 64 * 64) - 0.3
    for model, inputs in ((quick, x), (exact, exact_x)):
        code, out = through(model, inputs)
        (code.square().sum() + (out * slope[: out.numel()].view_as(out)).sum()).backward()
    for a, b in zip(through(quick, x), through(exact, exact_x), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    pairs = [(x, exact_x), *zip(quick.parameters(), exact.parameters(), strict=True)]
    for a, b in pairs:
        if kind == "onednn":
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=3e-5 * float(b.grad.abs().max()))
        # As a whole: where rounding turns one ReLU on or off, a few values differ by more (layers: test_native.py).
        assert float((a.grad.double() - b.grad).norm()) < 1e-3 * float(b.grad.norm())


def test_all_of_a_net_is_switched(kind: str) -> None:
    quick, _, _ = pair("burgess")
    switched = [m for m in quick.modules() if list(m.parameters(recurse=False))]
    assert {type(m) for m in switched} == {layers.FastConv2d, layers.FastConvTranspose2d, layers.FastLinear}
    assert all((m.alone is None) == (kind == "onednn") for m in switched)
    assert not any(isinstance(m, nn.ReLU) for m in quick.modules())
    assert sum(m.after == "relu" for m in switched) == len(switched) - 2  # all but the two ends


@pytest.mark.parametrize(
    ("name", "calls"), [("locatello", 1), ("burgess", 1), ("higgins-fc", 1), ("mlp-tanh", 1), ("mlp-elu", 3)]
)
def test_the_kernels_are_used(name: str, calls: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole net is one call each way, unless there is something else between its layers."""
    made = []
    for way in ("forward", "backward"):
        real = getattr(native.Kernels, way)
        monkeypatch.setattr(native.Kernels, way, lambda *a, real=real, way=way: made.append(way) or real(*a))
    quick, _, _ = pair(name)
    quick[1](torch.randn(2, 5)).sum().backward()
    assert sorted(made) == (["backward"] * calls + ["forward"] * calls if kind == "kernels" else [])


def test_a_row_that_does_not_fit_goes_layer_by_layer(kind: str) -> None:
    """Here the second of two convolutions meets an odd size."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 4, 2, 1), nn.ReLU(), nn.Flatten())
    quick = copy.deepcopy(plain)
    fast.accelerate(quick)
    for size in (8, 14, 8):
        x = torch.randn(3, 1, size, size)
        torch.testing.assert_close(quick(x), plain(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quick[:2](x), plain[:2](x), rtol=1e-4, atol=1e-5)


def test_other_convolutions_are_left_alone() -> None:
    """Dilated, grouped, string-padded and differently shaped transposed ones are not what the fast ones compute."""
    layers = [
        nn.Conv2d(2, 2, 3, dilation=2),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding_mode="reflect", padding=1),
        nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1),
        nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, output_padding=1),
    ]
    model = nn.ModuleList(layers)
    kinds = [type(layer) for layer in layers]
    fast.accelerate(model)
    assert [type(layer) for layer in model] == kinds


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolution(channels: int, bias: bool, kind: str) -> None:
    torch.manual_seed(0)
    plain = nn.ConvTranspose2d(6, channels, 4, stride=2, padding=1, bias=bias)
    quick = nn.Sequential(copy.deepcopy(plain))
    fast.accelerate(quick)
    for shape in ((3, 6, 5, 7), (1, 6, 1, 1)):
        x = torch.randn(shape)
        torch.testing.assert_close(quick(x), plain(x), rtol=1e-5, atol=1e-5)


def test_second_derivatives(kind: str) -> None:
    """A gradient penalty through the fast layers equals that through the plain ones."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 1),
    )
    quick = copy.deepcopy(plain)
    fast.accelerate(quick)
    found = []
    for model in (plain, quick):
        x = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8).requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 4
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not fast.supports_bf16(torch.device("cpu")), reason="no bfloat16 arithmetic here")
def test_second_derivatives_under_autocast(kind: str) -> None:
    """The path through the weights must not get lost in a cast."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 16), nn.Tanh()
    )
    quick = copy.deepcopy(plain)
    fast.accelerate(quick)
    found = []
    for model in (plain, quick):
        x = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        (gradient,) = torch.autograd.grad(out.float().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.05


def test_a_graph_that_is_kept_can_be_gone_through_again(kind: str) -> None:
    """Gradients take the place of what the layers put out only on the last way back."""
    quick, _, shape = pair("burgess")
    out = through(quick, torch.rand(3, *shape))[1].square().sum()
    found = []
    for keep in (True, True, False):
        quick.zero_grad()
        out.backward(retain_graph=keep)
        found.append([p.grad.clone() for p in quick.parameters()])
    assert all(torch.equal(a, b) for again in found[1:] for a, b in zip(found[0], again, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


def test_a_part_put_in_later_is_used(kind: str) -> None:
    quick, _, shape = pair("burgess")
    x = torch.rand(2, *shape)
    before = quick[0](x)
    quick[0][-1] = nn.Linear(256, 3)
    assert quick[0](x).shape == (2, 3)
    fast.accelerate(quick)
    assert quick[0](x).shape == (2, 3) and copy.deepcopy(quick)[0](x).shape == (2, 3) and before.shape == (2, 10)


def test_weights_of_another_shape_put_in_later(kind: str) -> None:
    torch.manual_seed(0)
    quick = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    fast.accelerate(quick)
    x = torch.randn(20, 64)
    assert quick(x).shape == (20, 64)
    quick[2].weight, quick[2].bias = nn.Parameter(torch.randn(16, 64)), None
    torch.testing.assert_close(quick(x), F.linear(quick[0](x), quick[2].weight), rtol=1e-4, atol=1e-4)
    quick[2].weight = nn.Parameter(torch.randn(64, 32))
    with pytest.raises(RuntimeError):
        quick(x)


def test_hooks_are_called(kind: str) -> None:
    torch.manual_seed(0)
    quick = nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 8))
    fast.accelerate(quick)
    seen = []
    quick[2].register_forward_hook(lambda module, inputs, out: seen.append(out.shape))
    quick(torch.randn(4, 8)).sum().backward()
    assert seen == [(4, 8)] and quick[0].weight_orig.grad is not None


def test_looking_at_images_in_between_changes_nothing(kind: str) -> None:
    """The memory of a step is used again, but only when it is over: here two graphs are alive at once."""
    quick, exact, shape = pair("burgess")
    images = torch.rand(3, 4, *shape)
    quick[0](images[2]).square().sum().backward()  # leaves its memory behind, which only one of the next two may take
    quick.zero_grad()
    sums = [quick[0](x).square().sum() for x in images[:2]]
    with torch.no_grad():
        quick[0](images[2])
    for total in sums:
        total.backward()
    for look in (torch.no_grad, torch.inference_mode):
        with look():
            quick[0](images[2])
            quick[0](images[2, :1])
        quick[0](images[2]).square().sum().backward()
    for x in (*images, images[2]):
        exact[0](x.double()).square().sum().backward()
    for a, b in zip(quick[0].parameters(), exact[0].parameters(), strict=True):
        assert float((a.grad.double() - b.grad).norm()) < 1e-3 * float(b.grad.norm())


def test_training_after_inference(kind: str) -> None:
    """Memory from inference mode, whose tensors autograd refuses, is used again as well."""
    quick, _, shape = pair("burgess")
    with torch.inference_mode():
        quick[0](torch.rand(2, *shape))
    quick[0](torch.rand(2, *shape)).sum().backward()


def test_a_layer_used_twice_keeps_its_relu_apart(kind: str) -> None:
    torch.manual_seed(0)
    shared = nn.Linear(16, 16)
    plain = nn.ModuleList([nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared)])
    quick = copy.deepcopy(plain)
    fast.accelerate(quick)
    x = torch.randn(4, 16)
    for a, b in zip(plain, quick, strict=True):
        torch.testing.assert_close(a(x), b(x))


def test_a_switched_model_can_be_copied_and_takes_odd_inputs(kind: str) -> None:
    quick, exact, shape = pair("burgess")
    again = copy.deepcopy(quick)
    x = torch.rand(2, *shape)
    assert torch.equal(again[0](x), quick[0](x))
    assert quick[0](x[:0]).shape == (0, 10)
    convolution = quick[0][0]
    torch.testing.assert_close(convolution(x[0]), convolution(x)[0], rtol=1e-4, atol=1e-5)
    quick.double()
    torch.testing.assert_close(quick[0](x.double()), exact[0](x.double()))


# ---- likelihood


def test_bernoulli_likelihood(kind: str) -> None:
    """Values, gradients and gradients of gradients through the switched likelihood."""
    torch.manual_seed(0)
    plain = nn.Sequential(likelihoods.Bernoulli())
    quick = copy.deepcopy(plain)
    quick.append(nn.Linear(2, 2))
    fast.accelerate(quick)
    assert (type(quick[0]) is fast.FastBernoulli) == (kind == "kernels")
    x, start, weight = torch.rand(3, 2, 5, 7), torch.randn(3, 2, 5, 7), torch.rand(3)
    found = []
    for model, dtype in ((quick, torch.float32), (plain, torch.float64)):
        logits = start.to(dtype, copy=True).requires_grad_()
        out = model[0].log_prob(x.to(dtype), logits, {})
        (slope,) = torch.autograd.grad((out * weight).sum(), logits, retain_graph=True)
        (again,) = torch.autograd.grad((out * weight).sum(), logits, create_graph=True)
        again.square().sum().backward()
        found.append([out, slope, again, logits.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
    view = start.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(quick[0].log_prob(x, view, {}), plain[0].log_prob(x, view, {}))


# ---- optimizers


@pytest.mark.parametrize(
    "section",
    [
        {"name": "adam", "lr": 0.01},
        {"name": "adam", "lr": 0.01, "weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-3},
        {"name": "adam", "lr": 0.01, "betas": (0.9999999, 0.99999999)},
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        {"name": "adagrad", "lr": 0.1},
        {"name": "adagrad", "lr": 0.1, "weight_decay": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 3])
def test_optimizers_equal_torch_s_in_float64(
    section: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.load() is None:
        pytest.skip(f"no compiled kernels here: {native.why_not}")
    torch.manual_seed(0)
    config = TypeAdapter(OptimConfig).validate_python(section)
    made, move = [], native.Kernels.move
    monkeypatch.setattr(native.Kernels, "move", lambda *a, **settings: made.append(1) or move(*a, **settings))
    starts = [torch.randn(70, 33), last(torch.randn(8, 3, 4, 4)), torch.randn(5), torch.randn(())]
    runs = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for dtype in (torch.float32, torch.float64):
        parameters = [nn.Parameter(t.to(dtype, copy=True)) for t in starts]
        optimizer = make_optimizer(parameters, config)
        if dtype == torch.float32:
            optimizers.quicken(optimizer)
        generator = torch.Generator().manual_seed(1)
        for step in range(12):
            for i, p in enumerate(parameters):
                p.grad = None
                if (step + i) % 4 or step == 0:  # not all of them at every step
                    p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
            optimizer.param_groups[0]["lr"] = section["lr"] / (1 + step)  # a schedule
            optimizer.step()
        runs.append((parameters, [optimizer.state[p] for p in parameters]))
    torch.set_num_threads(before)
    assert len(made) == (12 if section["name"] == "adagrad" else 11)  # torch makes the first step, and Adam's state
    for a, b, state, exact in zip(*(r for pair in zip(*runs, strict=True) for r in pair), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
        for key, value in state.items():
            torch.testing.assert_close(value.double(), exact[key].double(), rtol=1e-5, atol=1e-7)


def test_a_quicker_optimizer_is_still_torch_s(kind: str) -> None:
    """Schedulers and closures work with it, autograd notices its steps, and what it has not is done by torch."""
    p = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([p], TypeAdapter(OptimConfig).validate_python({"name": "adamw", "lr": 0.1}))
    optimizers.quicken(optimizer)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    called = []
    for _ in range(3):
        p.grad = torch.ones(3)
        version = p._version
        optimizer.step(None if called else lambda: called.append(1))
        schedule.step()
    assert kind == "onednn" or p._version > version
    assert called == [1] and optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)
    before = p.detach().clone()
    optimizer.found_inf = torch.ones(())  # gradient scaling says: not this time
    optimizer.step()
    del optimizer.found_inf
    assert torch.equal(p, before)
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.state[p]["max_exp_avg_sq"] = torch.full_like(p, 2.0**40)
    before = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=0.01)  # torch's own step divides by the largest
    assert float(optimizer.state[p]["max_exp_avg_sq"].min()) == 2.0**40


@pytest.mark.skipif(native.load() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "black"), [(64, False), (40, False), (64, True)])
def test_norm_of_gradients_that_were_just_made(rows: int, black: bool, bf16: bool) -> None:
    """Squares of a linear layer's gradient are summed while it is made, and again if somebody changes it."""
    kernels = native.load()
    assert kernels is not None
    if bf16 and not kernels.has_bf16:
        pytest.skip("this processor has no bfloat16 products")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1200, 1056), nn.ReLU(), nn.Linear(1056, 32), nn.ReLU(), nn.Linear(32, 20))
    fast.accelerate(net)
    x = torch.randn(rows, 1200)
    if black:
        x[:, 100:] = 0
    parameters = list(net.parameters())

    def backward() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            torch.autograd.backward(net(x).float().pow(2).sum())
        return [p.grad for p in parameters if p.grad is not None]

    def check(grads: list[Tensor], known: int) -> None:
        assert sum(kernels._known_squares(g) is not None for g in grads) == known
        exact = torch.cat([g.double().flatten() for g in grads]).norm()
        torch.testing.assert_close(optimizers.total_norm(grads).double(), exact, rtol=1e-6, atol=0)

    check(backward(), 2)
    grads = backward()  # added to those of before
    check(grads, 0)
    net.zero_grad()
    grads = backward()
    check([grads[0][:7], grads[0].t().contiguous(), *grads[1:]], 1)  # a part of a gradient is not the whole
    check(grads, 2)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        net.zero_grad()
        found.append(optimizers.total_norm(backward()[:1]))
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]
    grads = backward()
    with torch.no_grad():
        parameters[0].grad.mul_(3)  # type: ignore[union-attr]
    check(grads, 0)
    net.zero_grad()
    handle = parameters[2].register_hook(lambda g: g * 2)
    check(backward(), 1)
    handle.remove()
    net.zero_grad()
    kept = len(kernels._squares)
    del grads
    assert len(kernels._squares) <= kept - 2  # forgotten with the gradients
    x[3, 5] = torch.nan
    assert not optimizers.total_norm(backward()).isfinite()


def test_norm_of_all_gradients(kind: str) -> None:
    torch.manual_seed(0)
    grads = [
        torch.randn(70, 33),
        last(torch.randn(8, 3, 4, 4)),
        torch.randn(5),
        torch.randn(()),
        torch.randn(9, 9)[:, :4],
    ]
    for some in (grads, grads[:4]):
        exact = torch.cat([g.double().flatten() for g in some]).norm()
        torch.testing.assert_close(optimizers.total_norm(some).double(), exact, rtol=1e-6, atol=0)
    many = [torch.randn(300, 301)]
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(optimizers.total_norm(many))
    torch.set_num_threads(before)
    assert kind == "onednn" or found[0] == found[1] == found[2]
    for bad in (float("nan"), float("inf")):
        grads[0][3, 3] = bad
        assert not optimizers.total_norm(grads[:4]).isfinite()


# ---- precision


@pytest.mark.skipif(not fast.supports_bf16(torch.device("cpu")), reason="no bfloat16 arithmetic here")
@pytest.mark.parametrize("quick", [True, False])
def test_bf16_is_near_fp32_and_only_in_training(quick: bool, kind: str) -> None:
    section = {"name": "beta-vae", "net": {"name": "burgess"}, "beta": 4.0}
    module = registry.load("model", "beta-vae")
    torch.manual_seed(0)
    model = module.Model(module.Config.model_validate(section), DataInfo("x", (1, 64, 64), 100, binary=True))
    batch = Batch((torch.rand(16, 1, 64, 64) > 0.8).float(), torch.arange(16))
    if quick:
        fast.accelerate(model)
    found, grads = {}, {}
    for precision in ("fp32", "bf16"):
        model.precision = precision
        for training in (True, False):
            model.train(training)
            model.zero_grad()
            torch.manual_seed(1)
            terms = model.loss(batch, {"beta": 4.0})
            loss = base.total(terms)[0]
            assert loss.dtype == torch.float32
            found[precision, training] = loss.item(), terms["kl"].value.item()
            loss.backward()
            grads[precision, training] = torch.cat([p.grad.flatten() for p in model.parameters()])
    exact = found["fp32", True]
    rounded = found["bf16", True]
    assert rounded[0] == pytest.approx(exact[0], rel=5e-3) and rounded[1] == pytest.approx(exact[1], rel=2e-2)
    assert rounded != exact
    assert found["bf16", False] == found["fp32", False] == exact
    cosine = torch.nn.functional.cosine_similarity(grads["bf16", True], grads["fp32", True], dim=0)
    assert float(cosine) > 0.995
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_bf16_is_refused_where_the_hardware_has_none(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "supports_bf16", lambda device: False)
    done = vae("train", *TINY, "--steps", 2, "-S", "train.precision=bf16", "--runs-dir", "runs")
    assert done.code == 5 and "bfloat16" in done.err and not Path("runs").exists()


# ---- through the command


def records(run: str) -> list[dict[str, float]]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == "train"]


def test_fast_and_plain_training_agree(vae: Callable[..., Result]) -> None:
    for value in ("true", "false"):
        settings = ("-S", f"train.fast={value}", "-S", "train.log_every=5")
        assert vae("train", *TINY, "--steps", 20, "--runs-dir", "runs", "--name", value, *settings, "-q").code == 0
    for a, b in zip(records("runs/true"), records("runs/false"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "rmsprop", "sgd"])
def test_a_resumed_convolutional_run_is_bit_exact(optimizer: str, vae: Callable[..., Result]) -> None:
    """The optimizer's state goes back into the layout of the fast layers' weights."""
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (40, 32, 32), dtype=np.uint8))
    args = ["train", "--data", "array:images.npy", "--model", "vae", "-S", "model.net=burgess"]
    args += ["-S", f"optim={{name: {optimizer}, lr: 0.001}}", "--batch-size", 8, "--runs-dir", "runs", "-q"]
    args += ["-S", "train.save_every=4", "-S", "train.log_every=1"]
    straight = vae(*args, "--steps", 8, "--name", "straight")
    assert straight.code == 0, straight.err
    assert vae(*args, "--steps", 4, "--name", "twice").code == 0
    assert vae("train", "--resume", "runs/twice", "-S", "train.steps=8", "-q").code == 0
    files = [Path("runs") / name / "checkpoints/latest/model.safetensors" for name in ("straight", "twice")]
    a, b = map(load_file, files)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- which kernels


def test_on_a_cpu_every_run_repeats_itself(vae: Callable[..., Result]) -> None:
    for name, settings in (("a", ()), ("b", ("-S", "train.deterministic=false"))):
        done = vae("train", *TINY, "--steps", 12, "--runs-dir", "runs", "--name", name, "--device", "cpu", *settings)
        assert done.code == 0 and ("is of no effect on cpu" in done.err) is (name == "b"), done.err
    a, b = (load_file(Path(f"runs/{name}/checkpoints/latest/model.safetensors")) for name in "ab")
    assert a and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpu_takes_the_quickest_kernels_where_it_may(deterministic: bool, vae: Callable[..., Result]) -> None:
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    try:
        setting = ("-S", f"train.deterministic={str(deterministic).lower()}")
        done = vae("train", *TINY, "--steps", 12, "--runs-dir", "runs", "--device", "cuda", *setting)
        assert done.code == 0, done.err
        assert (torch.get_deterministic_debug_mode() == 1) is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]
