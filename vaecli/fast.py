"""The fast path of training on a CPU: the same computation, faster on the machine at hand.

`accelerate` changes the class of a model's plain layers to those below. Parameters, their names and what is saved stay;
values and gradients are those of the plain layer within rounding, and are tested against it. `train.fast: false` runs
the plain path, which is the reference.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaecli import native

_MALLOPT = {"M_MMAP_THRESHOLD": -3, "M_TRIM_THRESHOLD": -1}
FEW_CHANNELS = 4  # outputs up to which a transposed convolution is quicker as a convolution and a shuffle


def tune_allocator() -> None:
    """Let glibc keep big temporaries instead of returning their pages to the kernel and faulting them in each step."""
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL(None)
        for option in _MALLOPT.values():
            libc.mallopt(option, 2**31 - 1)
    except (OSError, AttributeError):
        pass  # another C library: slower, not wrong


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done by the hardware, not imitated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _bf16_instructions()


def _bf16_instructions() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return any(name in flags.split() for name in ("avx512_bf16", "amx_bf16", "bf16"))


# -------------------------------------------------------------------------------------------------------------- linear


def _onednn_linear() -> Any:
    """oneDNN's matrix product, which torch uses only inside compiled graphs; None where this build lacks it."""
    try:
        op = torch.ops.mkldnn._linear_pointwise
        probe = op(torch.ones(2, 3), torch.ones(4, 3), None, "none", [], "")
        return op if torch.equal(probe, torch.full((2, 4), 3.0)) else None
    except (AttributeError, RuntimeError, TypeError):
        return None


class _Product(torch.autograd.Function):
    """x W' + b, and the ReLU after it, if any: by `kernels`, or all three products by oneDNN."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Any, kernels: native.Kernels | None, bf16: bool
    ) -> Any:
        if kernels:
            out = kernels.linear(x, weight, bias, layer.relu, bf16)
        else:
            out = layer.op(x, weight, bias, "none", [], "")
            if layer.relu:
                out.relu_()
        ctx.save_for_backward(x, weight, out if layer.relu else None)
        ctx.layer, ctx.kernels, ctx.bf16 = layer, kernels, bf16
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, kept = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        if ctx.kernels and not torch.is_grad_enabled():
            return *ctx.kernels.linear_backward(grad, x, kept, weight, ctx.bf16, wants_x, wants_bias), None, None, None
        if kept is not None:
            grad = torch.ops.aten.threshold_backward(grad, kept, 0)
        grad_bias = grad.sum(0) if wants_bias else None
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: plain products, which have one
            return grad @ weight, grad.t() @ x, grad_bias, None, None, None
        op = ctx.layer.op
        grad_x = op(grad, weight.t(), None, "none", [], "") if wants_x else None
        grad_weight = op(grad.t(), x.t(), None, "none", [], "") if wants_weight else None
        return grad_x, grad_weight, grad_bias, None, None, None


class FastLinear(nn.Linear):
    """`nn.Linear`, and the ReLU after it where `relu`, by our kernels or by oneDNN, not by torch's default BLAS."""

    op: Any = None
    kernels: native.Kernels | None = None
    relu = False

    def forward(self, x: Tensor) -> Tensor:
        x, weight, bias, kernels, bf16 = _prepared(x, self, native.Kernels.fits_linear)
        if kernels is None and (x.dim() != 2 or x.numel() == 0 or not _for_onednn(x, weight)):
            plain = super().forward(x)
            return plain.relu() if self.relu else plain
        out: Tensor = _Product.apply(x, weight, bias, self, kernels, bf16)
        return out


# -------------------------------------------------------------------------------------------------------- convolutions


class _Convolution(torch.autograd.Function):
    """A convolution, transposed or not, and the ReLU after it, if any: by `kernels`, or by oneDNN.

    The library is asked for the two products only: its gradient of the bias, a sum of the output's gradient, costs as
    much as both when it comes with those of a transposed convolution; apart from them it is next to nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Any, kernels: native.Kernels | None, bf16: bool
    ) -> Any:
        if kernels:
            out = kernels.forward(x, weight, bias, layer.transposed, layer.relu, bf16)
        else:
            out = _by_library(x, weight, bias, layer)
            if layer.relu:
                out.relu_()
        ctx.save_for_backward(x, weight, out if layer.relu else None)
        ctx.layer, ctx.kernels, ctx.bf16 = layer, kernels, bf16
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, kept = ctx.saved_tensors
        layer = ctx.layer
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        if ctx.kernels and not torch.is_grad_enabled():
            found = ctx.kernels.backward(grad, x, kept, weight, layer.transposed, ctx.bf16, wants_x, wants_bias)
            return *found, None, None, None
        if x.is_contiguous(memory_format=torch.channels_last):
            grad = grad.contiguous(memory_format=torch.channels_last)
        if kept is not None:
            grad = torch.ops.aten.threshold_backward(grad, kept, 0)
        settings = (layer.stride, layer.padding, layer.dilation, layer.transposed, [0, 0], 1)
        wanted = [wants_x, wants_weight, False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, wanted)
        # Image by image first: one pass over the memory, and short sums keep their digits in bfloat16.
        grad_bias = grad.sum((2, 3), dtype=torch.float32).sum(0).to(grad.dtype) if wants_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None


def _by_library(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Any) -> Tensor:
    if not layer.transposed:
        return F.conv2d(x, weight, bias, layer.stride, layer.padding)
    if weight.shape[1] <= FEW_CHANNELS:
        return _by_shuffle(x, weight, bias)
    return F.conv_transpose2d(x, weight, bias, layer.stride, layer.padding)


def _by_shuffle(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The transposed convolution with kernel 4, stride 2, padding 1 as a 2x2 convolution and a depth-to-space.

    Output 2u - 1 + r (r = 0, 1) sees the inputs u - 1 and u through the kernel's rows 2 + r and r; so for every r, in
    both directions, a convolution with half the kernel gives a quarter of the pixels.
    """
    n_in, n_out = weight.shape[:2]
    halves = weight.view(n_in, n_out, 2, 2, 2, 2).flip(2, 4)  # in, out, rows 2 + r then r, r, and the same for columns
    kernel = halves.permute(1, 3, 5, 0, 2, 4).reshape(4 * n_out, n_in, 2, 2)
    if x.is_contiguous(memory_format=torch.channels_last):
        kernel = kernel.contiguous(memory_format=torch.channels_last)
    quarters = F.conv2d(x, kernel, None if bias is None else bias.repeat_interleave(4), padding=1)
    b, _, rows, columns = quarters.shape
    parts = quarters.permute(0, 2, 3, 1).reshape(b, rows, columns, n_out, 2, 2)  # quicker than pixel_shuffle
    whole = parts.permute(0, 3, 1, 4, 2, 5).reshape(b, n_out, 2 * rows, 2 * columns)
    return whole[:, :, 1:-1, 1:-1].contiguous()


class FastConv2d(nn.Conv2d):
    """`nn.Conv2d`, and the ReLU after it where `relu`, quicker."""

    kernels: native.Kernels | None = None
    relu = False

    def forward(self, x: Tensor) -> Tensor:
        x, weight, bias, kernels, bf16 = _prepared(x, self, native.Kernels.fits)
        if x.dim() != 4 or x.numel() == 0:
            plain = super().forward(x)
            return plain.relu() if self.relu else plain
        out: Tensor = _Convolution.apply(x, weight, bias, self, kernels, bf16)
        return out


class FastConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` (kernel 4, stride 2, padding 1), and the ReLU after it where `relu`, quicker."""

    kernels: native.Kernels | None = None
    relu = False

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        x, weight, bias, kernels, bf16 = _prepared(x, self, native.Kernels.fits_transposed)
        if x.dim() != 4 or x.numel() == 0:
            plain = super().forward(x)
            return plain.relu() if self.relu else plain
        out: Tensor = _Convolution.apply(x, weight, bias, self, kernels, bf16)
        return out


def _prepared(
    x: Tensor, layer: Any, fits: Callable[[Tensor, Tensor, Tensor | None], bool]
) -> tuple[Tensor, Tensor, Tensor | None, native.Kernels | None, bool]:
    """Input, weight and bias as the layer takes them, the kernels if they fit, and whether bfloat16 is asked for.

    Autocast does not look into a Function of ours, and autograd does not see a cast within one: so both are done here.
    """
    weight, bias, kernels = layer.weight, layer.bias, layer.kernels
    dtype = None
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if kernels and not (kernels.has_bf16 and dtype == torch.bfloat16):
            kernels = None
    if kernels:
        whole = x if dtype is None else x.float()  # the kernels round by themselves, inside
        if fits(whole, weight, bias):
            return whole, weight, bias, kernels, dtype is not None
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return x, weight, bias, None, False


def _for_onednn(x: Tensor, weight: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == weight.dtype != torch.float64


def _usual(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of the kind that is written out above."""
    if type(layer) not in (nn.Conv2d, nn.ConvTranspose2d, FastConv2d, FastConvTranspose2d):
        return False
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    usual = layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if isinstance(layer, nn.ConvTranspose2d):
        usual &= (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
        usual &= layer.output_padding == (0, 0)
    return usual and not isinstance(layer.padding, str)


def _halving(layer: nn.Module) -> bool:
    """Whether a layer is of the kind that our kernels are for: it halves or doubles an image by windows of 4 or 2."""
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    kinds = [((4, 4), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0))]
    return (layer.kernel_size, layer.stride, layer.padding) in kinds


# --------------------------------------------------------------------------------------------------------------- switch


def accelerate(model: nn.Module) -> list[str]:
    """Switch a model on the CPU to the faster pieces that work here; says which.

    A layer with a ReLU after it in a Sequential takes that in: called by itself, it gives what comes after the ReLU.
    """
    parameters = next(model.parameters(), None)
    if parameters is None or parameters.device.type != "cpu":
        return []
    op = _onednn_linear()
    linears: list[Any] = [m for m in model.modules() if type(m) in (nn.Linear, FastLinear)]
    convolutions: list[Any] = [m for m in model.modules() if _usual(m)]
    if op is None or not (linears or convolutions):
        return []
    kernels = native.load()
    for linear in linears:
        linear.__class__ = FastLinear
        linear.op, linear.kernels = op, kernels
    swaps: dict[type, type] = {nn.Conv2d: FastConv2d, nn.ConvTranspose2d: FastConvTranspose2d}
    for convolution in convolutions:
        convolution.__class__ = swaps.get(type(convolution), type(convolution))
        convolution.kernels = kernels if _halving(convolution) else None
    if convolutions:
        model.to(memory_format=torch.channels_last)
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for sequence in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
        for i, (layer, after) in enumerate(pairwise(list(sequence)), start=1):
            # One pass less over the memory; a layer that is used elsewhere too may have no ReLU there.
            if layer in (*linears, *convolutions) and type(after) is nn.ReLU and uses[layer] == 1:
                fused: Any = layer
                fused.relu, sequence[i] = True, nn.Identity()
    if kernels is None:
        return [f"oneDNN ({native.why_not})"]
    return ["compiled kernels"]
