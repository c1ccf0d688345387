"""The compiled kernels, layer by layer against torch's layers in float64, and how they are built."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from torch import Tensor

from vaecli import native

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


def convolution(
    kernels: native.Kernels, shape: tuple[int, ...], transposed: bool, relu: bool, bf16: bool
) -> list[float]:
    """Errors of output and gradients by input, weight and bias."""
    torch.manual_seed(0)
    n, h, w, small, large, kernel = shape
    x = last(torch.randn(n, small, h, w) if transposed else torch.randn(n, large, 2 * h, 2 * w))
    weight = last(torch.randn(small, large, kernel, kernel))
    bias = torch.randn(large if transposed else small)
    assert (kernels.fits_transposed if transposed else kernels.fits)(x, weight, bias)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    out = (F.conv_transpose2d if transposed else F.conv2d)(*exact, stride=2, padding=(kernel - 2) // 2)
    if relu:
        out = out.relu()
    grad = last(torch.randn(out.shape))
    out.backward(grad.double())
    found = kernels.forward(x, weight, bias, transposed, relu, bf16)
    kept = out.detach().float() if relu else None  # the exact one, so that both mask the same
    gradients = kernels.backward(grad, x, kept, weight, transposed, bf16, True, True)
    assert found.shape == out.shape and gradients[0].shape == x.shape
    wanted = [out.detach(), *(t.grad for t in exact)]
    return [error(a, b) for a, b in zip([found, *gradients], wanted, strict=True)]


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])
def test_convolutions_equal_those_in_float64(
    shape: tuple[int, ...], transposed: bool, relu: bool, threads: int
) -> None:
    assert max(convolution(KERNELS, shape, transposed, relu, bf16=False)) < 5e-6


@needs_kernels
@pytest.mark.skipif(KERNELS is None or not KERNELS.has_bf16, reason="no bfloat16 arithmetic here")
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])
def test_convolutions_in_bf16_are_near(shape: tuple[int, ...], transposed: bool, threads: int) -> None:
    errors = convolution(KERNELS, shape, transposed, relu=True, bf16=True)
    assert max(errors) < 3e-2 and min(errors[:3]) > 1e-4  # rounded, and to 8 bits
    assert errors[3] < 5e-6  # a sum, no product


@needs_kernels
@pytest.mark.parametrize("sizes", [(64, 48, 80), (37, 16, 32), (1, 160, 16), (100, 1040, 1200)], ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_linear_layers_equal_those_in_float64(
    sizes: tuple[int, int, int], relu: bool, bf16: bool, threads: int
) -> None:
    if bf16 and not KERNELS.has_bf16:
        pytest.skip("no bfloat16 arithmetic here")
    torch.manual_seed(0)
    m, n, k = sizes
    x, weight, bias, grad = torch.randn(m, k), torch.randn(n, k), torch.randn(n), torch.randn(m, n)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    out = F.linear(*exact)
    if relu:
        out = out.relu()
    out.backward(grad.double())
    found = KERNELS.linear(x, weight, bias, relu, bf16)
    kept = out.detach().float() if relu else None
    gradients = KERNELS.linear_backward(grad, x, kept, weight, bf16, True, True)
    errors = [error(a, b) for a, b in zip([found, *gradients], [out.detach(), *(t.grad for t in exact)], strict=True)]
    assert max(errors) < (2e-2 if bf16 else 5e-6)
    assert errors[3] < 5e-6 and (not bf16 or min(errors[:3]) > 1e-4)


@needs_kernels
def test_what_is_not_wanted_is_not_computed() -> None:
    x, weight = torch.randn(2, 16, 4, 4), torch.randn(16, 16, 4, 4)
    grad_x, grad_weight, grad_bias = KERNELS.backward(
        torch.randn(2, 16, 2, 2), x, None, weight, False, False, False, False
    )
    assert grad_x is None and grad_bias is None and grad_weight.shape == weight.shape


@needs_kernels
def test_nan_goes_through() -> None:
    """A value that is no number must not be hidden by a ReLU: training looks for it to stop."""
    x, weight = torch.full((1, 16, 4, 4), float("nan")), torch.randn(16, 16, 4, 4)
    assert KERNELS.forward(x, weight, None, False, True, False).isnan().all()
    assert KERNELS.forward(x, weight, None, True, True, False).isnan().all()
    assert KERNELS.linear(torch.full((1, 16), float("nan")), torch.randn(16, 16), None, True, False).isnan().all()


@needs_kernels
def test_other_memory_layouts() -> None:
    """Images and weights come as torch lays them out by default, too, and gradients as views."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 16, 6, 6), torch.randn(32, 16, 4, 4)
    expected = F.conv2d(x.double(), weight.double(), stride=2, padding=1)
    for a in (x, last(x), x.transpose(2, 3).contiguous().transpose(2, 3)):
        for b in (weight, last(weight)):
            assert error(KERNELS.forward(a, b, None, False, False, False), expected) < 5e-6
    one = torch.randn(3, 1, 6, 6)  # one channel: torch calls several layouts contiguous
    for a in (one, last(one), one.expand(3, 2, 6, 6)[:, :1]):
        b = torch.randn(16, 1, 4, 4)
        assert (
            error(KERNELS.forward(a, b, None, False, False, False), F.conv2d(a.double(), b.double(), None, 2, 1)) < 5e-6
        )


@needs_kernels
def test_the_same_numbers_again() -> None:
    torch.manual_seed(0)
    x, weight, grad = torch.randn(7, 32, 16, 16), torch.randn(32, 32, 4, 4), torch.randn(7, 32, 8, 8)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = [KERNELS.backward(grad, x, None, weight, False, False, True, True) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


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
            assert max(convolution(narrow, shape, transposed, relu=True, bf16=False)) < 5e-6
    x, weight = torch.randn(5, 48), torch.randn(32, 48)
    assert error(narrow.linear(x, weight, None, False, False), F.linear(x.double(), weight.double())) < 5e-6


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

    def wrong(self: native.Kernels, *arguments: object) -> object:
        grad_x, grad_weight, grad_bias = real(self, *arguments)
        return grad_x, grad_weight * 1.1, grad_bias

    monkeypatch.setattr(native.Kernels, "backward", wrong)
    with pytest.raises(RuntimeError, match="do not compute"):
        native._check(KERNELS)


@needs_kernels
@pytest.mark.parametrize("content", [b"", b"no library"], ids=["empty", "text"])
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
    x, weight, bias = torch.randn(2, 16, 4, 4), torch.randn(16, 16, 4, 4), torch.randn(16)
    fits = KERNELS.fits
    assert fits(x, weight, bias) and fits(x, weight, None)
    assert not fits(x.double(), weight, bias) and not fits(x, weight, bias.double())
    assert not fits(x.to("meta"), weight, bias) and not fits(x[:0], weight, bias)
    assert not fits(x[:, :, :3], weight, bias) and not fits(x, weight[:8], bias)
    assert not KERNELS.fits_linear(torch.randn(3, 17), torch.randn(16, 17), None)
    strided = torch.randn(32)[::2]
    expected = F.conv2d(x.double(), weight.double(), strided.double(), 2, 1)
    assert error(KERNELS.forward(x, weight, strided, False, False, False), expected) < 5e-6


@needs_kernels
def test_they_do_not_depend_on_torch_s_defaults() -> None:
    x, weight = torch.randn(2, 16, 4, 4), torch.randn(16, 16, 4, 4)
    torch.set_default_dtype(torch.float64)
    try:
        out = KERNELS.forward(x, weight, None, False, False, False)
        gradients = KERNELS.backward(out, x, None, weight, False, False, True, True)
        assert native.load.__wrapped__() is not None
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in (out, *gradients)} == {torch.float32}
