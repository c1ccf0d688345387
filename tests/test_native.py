"""The compiled kernels, layer by layer against torch's layers in float64, and how they are built."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from torch import Tensor, nn

from vaecli.speed import native

KERNELS = native.load()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason=f"no compiled kernels here: {native.why_not}")
# Images, height and width of the small image, its channels, those of the large image, kernel.
SHAPES = [
    (5, 16, 16, 32, 32, 4),  # more tiles than go together: one image at a time
    (9, 8, 8, 64, 32, 4),  # four images together, the last alone
    (3, 7, 5, 16, 48, 4),  # odd: the last tile is half empty, and tiles fill no block of rows
    (2, 1, 1, 16, 16, 4),
    (1, 2, 3, 48, 16, 4),
    (6, 8, 8, 32, 1, 4),
    (3, 5, 7, 16, 2, 4),
    (3, 5, 7, 32, 3, 4),
    (3, 5, 7, 16, 4, 4),
    (4, 4, 4, 64, 64, 2),
    (3, 5, 7, 16, 12, 2),
]


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def error(found: Tensor, exact: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def layer(
    kernels: native.Kernels,
    kind: type[nn.Module],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    after: str = "",
    bf16: bool = False,
) -> Tensor:
    """What one layer puts out."""
    plan = kernels.plan([(kind, tuple(weight.shape), after)], tuple(x.shape))
    assert plan is not None
    return kernels.forward(plan, x, [(weight, bias)], bf16)[0]


def errors(
    kernels: native.Kernels,
    kind: type[nn.Module],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    plain: Callable[..., Tensor],
    after: str,
    bf16: bool,
) -> list[float]:
    """Errors of one layer's output and gradients by input, weight and bias, against float64."""
    plan = kernels.plan([(kind, tuple(weight.shape), after)], tuple(x.shape))
    assert plan is not None
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    out = plain(*exact)
    out = getattr(torch, after)(out) if after else out
    grad = torch.randn(out.shape)
    out.backward(grad.double())
    found, between = kernels.forward(plan, x, [(weight, bias)], bf16)
    kept = out.detach().float() if after else found  # the exact one, so that both mask the same
    grad_x, [gradients] = kernels.backward(
        plan, grad, x, native._last(kept), between, [(weight, bias)], bf16, wants_x=True
    )
    assert found.shape == out.shape and grad_x.shape == x.shape
    wanted = [out.detach(), *(t.grad for t in exact)]
    return [error(a, b) for a, b in zip([found, grad_x, *gradients], wanted, strict=True)]


def convolution(
    kernels: native.Kernels, shape: tuple[int, ...], transposed: bool, after: str, bf16: bool
) -> list[float]:
    torch.manual_seed(0)
    n, h, w, small, large, kernel = shape
    x = last(torch.randn(n, small, h, w) if transposed else torch.randn(n, large, 2 * h, 2 * w))
    weight = last(torch.randn(small, large, kernel, kernel))
    bias = torch.randn(large if transposed else small)
    kind: type[nn.Module] = nn.ConvTranspose2d if transposed else nn.Conv2d
    plain = partial(F.conv_transpose2d if transposed else F.conv2d, stride=2, padding=(kernel - 2) // 2)
    return errors(kernels, kind, x, weight, bias, plain, after, bf16)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("after", ["", "relu"])
@pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])
def test_convolutions_equal_those_in_float64(
    shape: tuple[int, ...], transposed: bool, after: str, threads: int
) -> None:
    assert max(convolution(KERNELS, shape, transposed, after, bf16=False)) < 5e-6


@needs_kernels
@pytest.mark.skipif(KERNELS is None or not KERNELS.has_bf16, reason="no bfloat16 arithmetic here")
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])
def test_convolutions_in_bf16_are_near(shape: tuple[int, ...], transposed: bool, threads: int) -> None:
    errors = convolution(KERNELS, shape, transposed, "relu", bf16=True)
    assert max(errors) < 3e-2 and min(errors[:3]) > 1e-4  # rounded, and to 8 bits
    assert errors[3] < 5e-6  # a sum, no product


@needs_kernels
@pytest.mark.parametrize(
    "sizes",
    [
        (64, 48, 80),
        (37, 16, 32),
        (1, 160, 16),
        (100, 1040, 1200),
        (20, 1040, 1024),
        (250, 32, 48),
        (64, 20, 256),
        (5, 1, 7),
    ],
    ids=str,
)
@pytest.mark.parametrize("after", native.ACTIVATIONS)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_linear_layers_equal_those_in_float64(
    sizes: tuple[int, int, int], after: str, bf16: bool, threads: int
) -> None:
    if bf16 and not KERNELS.has_bf16:
        pytest.skip("no bfloat16 arithmetic here")
    torch.manual_seed(0)
    m, n, k = sizes
    found = errors(
        KERNELS, nn.Linear, torch.randn(m, k), torch.randn(n, k) / k**0.5, torch.randn(n), F.linear, after, bf16
    )
    assert max(found) < (2e-2 if bf16 else 5e-6)
    assert found[3] < 5e-6 and (not bf16 or min(found[:3]) > 1e-4)


@needs_kernels
@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_images_that_are_mostly_black(share: float, bf16: bool, threads: int) -> None:
    """Few of their vectors are not 0 (or, with the last, too many to go from one to the next)."""
    torch.manual_seed(0)
    x = torch.randn(37, 20, 16) * (torch.rand(37, 20, 1) < share)
    x[0, 0, 3], x[1] = 1.0, 0.0
    weight, bias = torch.randn(48, 320) / 320**0.5, torch.randn(48)
    for after in native.ACTIVATIONS:
        found = errors(KERNELS, nn.Linear, x.flatten(1), weight, bias, F.linear, after, bf16)
        assert max(found) < (2e-2 if bf16 else 5e-6)
    x[5, 2, 7] = float("nan")
    out = layer(KERNELS, nn.Linear, x.flatten(1), weight, bias)
    assert out[5].isnan().all() and out[:5].isfinite().all()


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_black_parts_hide_nothing(bad: float) -> None:
    """0 times a value that is no number is none, as if every product were made."""
    x, weight = torch.zeros(8, 64), torch.randn(32, 64)
    x[:, 3] = 1.0
    weight[5, 40] = bad
    out = layer(KERNELS, nn.Linear, x, weight)
    assert out[:, 5].isnan().all() and out.isfinite().sum() == 8 * 31
    x[2, 3], weight = bad, torch.ones(32, 64)
    plan = KERNELS.plan([(nn.Linear, (32, 64), "tanh")], (8, 64))
    pairs = [(weight, torch.zeros(32))]
    out, between = KERNELS.forward(plan, x, pairs, False)
    _, [(grad_weight, _)] = KERNELS.backward(plan, torch.ones(8, 32), x, out, between, pairs, False, False)
    assert grad_weight[:, 3].isnan().all()  # infinity times the slope of tanh there, which is 0


ROW: list[native.Spec] = [
    (nn.Conv2d, (16, 1, 4, 4), "relu"),
    (nn.Conv2d, (32, 16, 4, 4), "relu"),
    (nn.Flatten, (), ""),
    (nn.Linear, (20, 32 * 4 * 3), "tanh"),
    (nn.Linear, (32 * 4 * 3, 20), ""),
    (nn.Unflatten, (32, 4, 3), ""),
    (nn.ConvTranspose2d, (32, 32, 4, 4), "relu"),
    (nn.ConvTranspose2d, (32, 16, 4, 4), "relu"),
    (nn.ConvTranspose2d, (16, 3, 4, 4), ""),
]


OTHER_ROW: list[native.Spec] = [  # what the first does not have: a gradient on its way through other things
    (nn.Linear, (128, 9), "tanh"),
    (nn.Unflatten, (16, 4, 2), ""),
    (nn.Conv2d, (16, 16, 2, 2), "relu"),
    (nn.ConvTranspose2d, (16, 4, 4, 4), "relu"),
    (nn.Conv2d, (32, 4, 4, 4), "relu"),
    (nn.Flatten, (), ""),
    (nn.Linear, (21, 64), "relu"),
    (nn.Linear, (16, 21), "tanh"),
    (nn.Linear, (16, 16), "tanh"),
]


@needs_kernels
@pytest.mark.parametrize(("row", "sides"), [(ROW, (7, 1, 16, 12)), (OTHER_ROW, (7, 9))], ids=["convolutions", "other"])
def test_layers_in_a_row_equal_those_in_float64(row: list[native.Spec], sides: tuple[int, ...], threads: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(sides)
    shapes = [(kind, shape) for kind, shape, _ in row if len(shape) in (2, 4)]
    weights = [torch.randn(shape) / math.prod(shape[1:]) ** 0.5 for _, shape in shapes]
    biases = [torch.randn(s[1] if kind is nn.ConvTranspose2d else s[0]) for kind, s in shapes]
    exact = [t.double().requires_grad_() for t in (x, *weights, *biases)]
    y, given = exact[0], iter(zip(exact[1 : 1 + len(shapes)], exact[1 + len(shapes) :], strict=True))
    for kind, shape, after in row:
        if kind is nn.Flatten:
            y = y.flatten(1)
        elif kind is nn.Unflatten:
            y = y.unflatten(1, shape)
        elif kind is nn.Linear:
            y = F.linear(y, *next(given))
        else:
            convolve = F.conv2d if kind is nn.Conv2d else F.conv_transpose2d
            y = convolve(y, *next(given), stride=2, padding=(shape[2] - 2) // 2)
        y = getattr(torch, after)(y) if after else y
    grad = torch.randn(y.shape)
    y.backward(grad.double())
    plan = KERNELS.plan(row, tuple(x.shape))
    pairs = list(zip(weights, biases, strict=True))
    out, between = KERNELS.forward(plan, x, pairs, False)
    grad_x, gradients = KERNELS.backward(plan, grad, x, out, between, pairs, False, True)
    assert error(out, y.detach()) < 5e-6
    for a, b in zip([grad_x, *(g for pair in zip(*gradients, strict=True) for g in pair)], exact, strict=True):
        assert a.shape == b.shape and float((a - b.grad).norm() / b.grad.norm()) < 5e-6
    assert KERNELS.backward(plan, grad, x, out, between, pairs, False, False)[0] is None
    spent_x, spent = KERNELS.backward(plan, grad, x, out, between, pairs, False, True, spend=True)
    assert torch.equal(spent_x, grad_x)
    assert all(torch.equal(a, b) for two in zip(spent, gradients, strict=True) for a, b in zip(*two, strict=True))


@needs_kernels
def test_nan_goes_through() -> None:
    """A value that is no number must not be hidden by a ReLU: training looks for it to stop."""
    x, weight = torch.full((1, 16, 4, 4), float("nan")), torch.randn(16, 16, 4, 4)
    for kind in (nn.Conv2d, nn.ConvTranspose2d):
        assert layer(KERNELS, kind, x, weight, after="relu").isnan().all()
    assert layer(KERNELS, nn.Linear, torch.full((1, 16), float("nan")), torch.randn(16, 16), after="relu").isnan().all()


@needs_kernels
def test_other_memory_layouts() -> None:
    """Images and weights come as torch lays them out by default, too, and gradients as views."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 16, 6, 6), torch.randn(32, 16, 4, 4)
    expected = F.conv2d(x.double(), weight.double(), stride=2, padding=1)
    for a in (x, last(x), x.transpose(2, 3).contiguous().transpose(2, 3)):
        for b in (weight, last(weight)):
            assert error(layer(KERNELS, nn.Conv2d, a, b), expected) < 5e-6
    one = torch.randn(3, 1, 6, 6)  # one channel: torch calls several layouts contiguous
    for a in (one, last(one), one.expand(3, 2, 6, 6)[:, :1]):
        b = torch.randn(16, 1, 4, 4)
        assert error(layer(KERNELS, nn.Conv2d, a, b), F.conv2d(a.double(), b.double(), None, 2, 1)) < 5e-6
    strided = torch.randn(64)[::2]
    expected = F.conv2d(x.double(), weight.double(), strided.double(), 2, 1)
    assert error(layer(KERNELS, nn.Conv2d, x, weight, strided), expected) < 5e-6


@needs_kernels
def test_the_same_numbers_again() -> None:
    torch.manual_seed(0)
    x, weight, grad = torch.randn(7, 32, 16, 16), torch.randn(32, 32, 4, 4), torch.randn(7, 32, 8, 8)
    plan = KERNELS.plan([(nn.Conv2d, (32, 32, 4, 4), "")], tuple(x.shape))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        out, between = KERNELS.forward(plan, x, [(weight, None)], False)
        runs = [KERNELS.backward(plan, grad, x, out, between, [(weight, None)], False, True) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert runs[0][1][0][1] is None  # no bias, no gradient of it
    for grad_x, [(grad_weight, _)] in runs[1:]:
        assert torch.equal(grad_x, runs[0][0]) and torch.equal(grad_weight, runs[0][1][0][0])


@needs_kernels
@pytest.mark.parametrize("values", [1, 15, 16, 100, 4096])
def test_bernoulli_likelihood_equals_that_in_float64(values: int, threads: int) -> None:
    """Over all sizes of logits, and both for black and white and for grey pixels."""
    torch.manual_seed(0)
    logits = torch.cat([torch.randn(20, values) * 5, torch.randn(20, values) * 1e-3, torch.randn(20, values) * 40])
    x = torch.where(torch.rand(60, 1) < 0.5, torch.rand(60, values), (torch.rand(60, values) < 0.5).float())
    exact = logits.double().requires_grad_()
    terms = F.binary_cross_entropy_with_logits(exact, x.double(), reduction="none")
    terms.sum().backward()
    out, slope = KERNELS.bernoulli(x, logits, wants_slope=True)
    # Against the sum of the terms' sizes: where x l and log(1 + e^l) nearly cancel, float32 has no more digits.
    scale = (x * logits.abs()).double().sum(1) + terms.sum(1).detach()
    assert float(((out.double() + terms.sum(1)).detach().abs() / scale).max()) < 5e-7
    torch.testing.assert_close(slope.double(), -exact.grad, rtol=1e-5, atol=2e-7)
    assert KERNELS.bernoulli(x, logits, wants_slope=False)[1] is None
    logits[3, values // 2] = float("nan")
    out, slope = KERNELS.bernoulli(x, logits, wants_slope=True)
    assert out.isnan().nonzero().tolist() == [[3]] and slope.isnan().nonzero().tolist() == [[3, values // 2]]


@needs_kernels
def test_tanh_keeps_the_digits() -> None:
    x = torch.cat([torch.logspace(-30, 1.5, 500), torch.tensor([0.0, 0.39999, 0.4, 0.40001, 88.0, 1e4])])
    x = torch.cat([x, -x])[:, None].repeat(1, 16)
    out = layer(KERNELS, nn.Linear, x, torch.eye(16), after="tanh")
    torch.testing.assert_close(out.double(), x.double().tanh(), rtol=5e-7, atol=0)


# ---- building


def test_they_are_there_where_they_can_be() -> None:
    """A kernel that fails its check must fail here, not skip every test above."""
    reasons = ("written for", "has no AVX2", "no C compiler", "is clang")
    assert KERNELS is not None or any(reason in str(native.why_not) for reason in reasons), native.why_not


@needs_kernels
def test_without_the_wide_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What processors without AVX-512 get."""
    monkeypatch.setattr(native, "FLAGS", [*native.FLAGS, "-mno-avx512f"])
    narrow = native.Kernels(native._library())
    assert not narrow.has_bf16
    for shape in (SHAPES[1], SHAPES[2], SHAPES[7], SHAPES[10]):
        for transposed in (False, True):
            assert max(convolution(narrow, shape, transposed, "relu", bf16=False)) < 5e-6
    x = torch.randn(5, 4, 48)
    for rows in (x.flatten(1), (x * (torch.rand(5, 4, 1) < 0.2)).flatten(1), torch.randn(5, 6000)):
        weight, bias = torch.randn(192, rows.shape[1]) * 0.1, torch.randn(192)
        assert max(errors(narrow, nn.Linear, rows, weight, bias, F.linear, "relu", bf16=False)) < 5e-6


@needs_kernels
def test_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path = native._library()
    real, calls = subprocess.run, []
    monkeypatch.setattr(subprocess, "run", lambda command, **kw: calls.append(command) or real(command, **kw))
    assert native._library() == path and all("--version" in command for command in calls)


@needs_kernels
@pytest.mark.parametrize(
    ("compiler", "said"), [("no-such-compiler", "there is no C compiler"), ("false", "failed")], ids=["none", "broken"]
)
def test_without_a_compiler_training_goes_on(compiler: str, said: str, tmp_path: Path) -> None:
    """Slower, with a word about why."""
    environment = {**os.environ, "CC": compiler, "VAE_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "vaecli", "train", *TINY, "--steps", "3", "--name", "a"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"oneDNN ({said}" in done.stderr or f"oneDNN ({compiler} {said}" in done.stderr


@needs_kernels
def test_a_folder_others_can_write_to_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    with pytest.raises(RuntimeError, match="can write to it"):
        native._library()


@needs_kernels
def test_a_miscompiled_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = native.Kernels.backward

    def wrong(self: native.Kernels, *arguments: Any) -> Any:
        grad_x, [(grad_weight, grad_bias)] = real(self, *arguments)
        return grad_x, [(grad_weight * 1.1, grad_bias)]

    monkeypatch.setattr(native.Kernels, "backward", wrong)
    with pytest.raises(RuntimeError, match="do not compute"):
        native._check(KERNELS)


@needs_kernels
@pytest.mark.parametrize("content", [b"", pytest.param(b"no library", marks=pytest.mark.long)], ids=["empty", "text"])
def test_a_damaged_library_is_built_again(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path))
    native._library().write_bytes(content)
    assert native.load.__wrapped__() is not None, native.why_not


@needs_kernels
def test_no_error_of_building_ends_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for compiler in ("gcc '", "true", "false", str(tmp_path), "no-such-compiler"):
        monkeypatch.setenv("CC", compiler)
        assert native.load.__wrapped__() is None and native.why_not


@needs_kernels
def test_what_does_not_fit_is_not_taken() -> None:
    def fits(*shape: int, kind: type[nn.Module] = nn.Conv2d, weight: tuple[int, ...] = (16, 16, 4, 4)) -> bool:
        return KERNELS.plan([(kind, weight, "")], shape) is not None

    assert fits(2, 16, 4, 4) and fits(2, 16, 4, 4, kind=nn.ConvTranspose2d)
    assert not fits(0, 16, 4, 4) and not fits(2, 16, 3, 4) and not fits(2, 8, 4, 4) and not fits(16, 4, 4)
    assert not fits(2, 16, 4, 4, weight=(8, 16, 4, 4)) and not fits(2, 5, 4, 4, weight=(16, 5, 4, 4))
    assert fits(3, 17, kind=nn.Linear, weight=(5, 17)) and not fits(3, 16, kind=nn.Linear, weight=(5, 17))
    assert not fits(3, 2, 17, kind=nn.Linear, weight=(5, 17))
    assert KERNELS.plan([ROW[3], ROW[5]], (2, 384)) is None  # 20 values are no image of 32 x 4 x 3
    assert KERNELS.plan([ROW[2]], (2, 3)) is None


@needs_kernels
def test_they_do_not_depend_on_torch_s_defaults() -> None:
    x, weight = torch.randn(2, 16, 4, 4), torch.randn(16, 16, 4, 4)
    plan = KERNELS.plan([(nn.Conv2d, (16, 16, 4, 4), "")], tuple(x.shape))
    torch.set_default_dtype(torch.float64)
    try:
        out, between = KERNELS.forward(plan, x, [(weight, None)], False)
        grad_x, [(grad_weight, _)] = KERNELS.backward(plan, out, x, out, between, [(weight, None)], False, True)
        assert native.load.__wrapped__() is not None
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in (out, grad_x, grad_weight)} == {torch.float32}
