"""Plain layers, quicker on a CPU: linear ones by oneDNN with packed weights, convolutions by the cheaper of two ways.

Parameters, their names and what is saved stay; values and gradients are those of the plain layer within rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_CHANNELS = 4  # outputs up to which a transposed convolution is quicker as a convolution and a shuffle


# -------------------------------------------------------------------------------------------------------------- linear


def onednn_linear() -> Any:
    """oneDNN's matrix product, which torch uses only inside compiled graphs; None where this build lacks it."""
    try:
        op = torch.ops.mkldnn._linear_pointwise
        probe = op(torch.ones(2, 3), torch.ones(4, 3), None, "none", [], "")
        return op if torch.equal(probe, torch.full((2, 4), 3.0)) else None
    except (AttributeError, RuntimeError, TypeError):
        return None


class _Product(torch.autograd.Function):
    """x W' + b, all three products by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, op: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.op = op
        return op(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad_bias = grad.sum(0) if wants_bias else None
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: plain products, which have one
            return grad @ weight, grad.t() @ x, grad_bias, None
        grad_x = ctx.op(grad, weight.t(), None, "none", [], "") if wants_x else None
        grad_weight = ctx.op(grad.t(), x.t(), None, "none", [], "") if wants_weight else None
        return grad_x, grad_weight, grad_bias, None


class FastLinear(nn.Linear):
    """`nn.Linear`, and the activation after it, by our kernels or by oneDNN, not by torch's default BLAS."""

    op: Any = None
    alone: Callable[[Tensor], Tensor] | None = None  # this layer as a chain of one
    after = ""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor | None = None if self.alone is None else self.alone(x)
        if out is not None:
            return out
        whole, weight, bias = _cast(x, self)
        if x.dim() == 2 and x.numel() > 0 and _for_onednn(whole, weight):
            out = _Product.apply(whole, weight, bias, self.op)
        else:
            out = super().forward(x)
        return activated(out, self.after)


def activated(x: Tensor, name: str) -> Tensor:
    return x if name == "" else x.relu() if name == "relu" else x.tanh()


# -------------------------------------------------------------------------------------------------------- convolutions


class _Convolution(torch.autograd.Function):
    """A convolution, transposed or not, by oneDNN.

    The library is asked for the two products only: its gradient of the bias, a sum of the output's gradient, costs as
    much as both when it comes with those of a transposed convolution; apart from them it is next to nothing.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return _by_library(x, weight, bias, layer)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        layer = ctx.layer
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        if x.is_contiguous(memory_format=torch.channels_last):
            grad = grad.contiguous(memory_format=torch.channels_last)
        settings = (layer.stride, layer.padding, layer.dilation, layer.transposed, [0, 0], 1)
        wanted = [wants_x, wants_weight, False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, wanted)
        # Image by image first: one pass over the memory, and short sums keep their digits in bfloat16.
        grad_bias = grad.sum((2, 3), dtype=torch.float32).sum(0).to(grad.dtype) if wants_bias else None
        return grad_x, grad_weight, grad_bias, None


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
    """`nn.Conv2d`, and the ReLU after it, if any, quicker."""

    alone: Callable[[Tensor], Tensor] | None = None  # this layer as a chain of one
    after = ""

    def forward(self, x: Tensor) -> Tensor:
        return _convolved(self, x, super().forward)


class FastConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` (kernel 4, stride 2, padding 1), and the ReLU after it, if any, quicker."""

    alone: Callable[[Tensor], Tensor] | None = None  # this layer as a chain of one
    after = ""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _convolved(self, x, super().forward)


def _convolved(layer: Any, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    out: Tensor | None = None if layer.alone is None else layer.alone(x)
    if out is not None:
        return out
    out = plain(x) if x.dim() != 4 or x.numel() == 0 else _Convolution.apply(*_cast(x, layer), layer)
    return activated(out, layer.after)


def _cast(x: Tensor, layer: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias as autocast wants them.

    Autocast does not look into a Function of ours, and autograd does not see a cast within one: so it is done here.
    """
    weight, bias = layer.weight, layer.bias
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return x, weight, bias


def _for_onednn(x: Tensor, weight: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == weight.dtype != torch.float64


def usual(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of the kind that is written out above."""
    if type(layer) not in (nn.Conv2d, nn.ConvTranspose2d, FastConv2d, FastConvTranspose2d):
        return False
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    usual = layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if isinstance(layer, nn.ConvTranspose2d):
        usual &= (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
        usual &= layer.output_padding == (0, 0)
    return usual and not isinstance(layer.padding, str)


def halving(layer: nn.Module) -> bool:
    """Whether a layer is of the kind that our kernels are for: it halves or doubles an image by windows of 4 or 2."""
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    kinds = [((4, 4), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0))]
    return (layer.kernel_size, layer.stride, layer.padding) in kinds
