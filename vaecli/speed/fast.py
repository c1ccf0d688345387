"""The fast path of training on a CPU: the same computation, faster on the machine at hand.

`accelerate` changes the class of a model's plain layers to those below. Parameters, their names and what is saved stay;
values and gradients are those of the plain layer within rounding, and are tested against it. `train.fast: false` runs
the plain path, which is the reference.
"""

import ctypes
import functools
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaecli.objectives import likelihoods
from vaecli.speed import native

_MALLOPT = {"M_MMAP_THRESHOLD": -3, "M_TRIM_THRESHOLD": -1}
SPARE = 2**27  # values that a chain keeps the memory of, at most
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
    alone: "Chain | None" = None
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
        return _activated(out, self.after)


def _activated(x: Tensor, name: str) -> Tensor:
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

    alone: "Chain | None" = None
    after = ""

    def forward(self, x: Tensor) -> Tensor:
        return _convolved(self, x, super().forward)


class FastConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` (kernel 4, stride 2, padding 1), and the ReLU after it, if any, quicker."""

    alone: "Chain | None" = None
    after = ""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _convolved(self, x, super().forward)


def _convolved(layer: Any, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    out: Tensor | None = None if layer.alone is None else layer.alone(x)
    if out is not None:
        return out
    out = plain(x) if x.dim() != 4 or x.numel() == 0 else _Convolution.apply(*_cast(x, layer), layer)
    return _activated(out, layer.after)


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


# ----------------------------------------------------------------------------------------------------- layers in a row


class _Chained(torch.autograd.Function):
    """Layers in a row by our kernels: one call forward, one back, and nothing of torch between the layers."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        chain: "Chain",
        plan: native.Plan,
        settings: tuple[bool, bool],
        *weights: Tensor | None,
    ) -> Any:
        bf16, comes_back = settings
        out, between = chain.kernels.forward(plan, x, _pairs(weights), bf16, chain.spare)
        chain.spare = None
        if comes_back:
            ctx.save_for_backward(x, between, out if chain.layers[-1].after else None, *weights)
            ctx.chain, ctx.plan, ctx.bf16 = chain, plan, bf16
        else:
            chain.keep(between)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, between, out, *weights = ctx.saved_tensors
        wants_x, _, _, _, *wants = ctx.needs_input_grad
        nothing = (None, None, None)
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: plain layers, which have one
            inputs = [t for t, wanted in zip((x, *weights), (wants_x, *wants), strict=True) if wanted]
            plain = ctx.chain.plain(x, _pairs(weights))
            each = iter(torch.autograd.grad(plain, inputs, grad, create_graph=True))
            grad_x, *grads = [next(each) if wanted else None for wanted in (wants_x, *wants)]
            return grad_x, *nothing, *grads
        last = _last_use()
        found = ctx.chain.kernels.backward(
            ctx.plan, grad, x, between if out is None else out, between, _pairs(weights), ctx.bf16, wants_x, last
        )
        if last:
            ctx.chain.keep(between)
        grad_x, pairs = found
        return grad_x, *nothing, *(gradient for pair in pairs for gradient in pair)


def _last_use() -> bool:
    """Whether nobody will go back through the graph again."""
    try:
        return not torch._C._autograd._get_current_graph_task_keep_graph()
    except AttributeError:  # torch's own business: another version may not tell
        return False


def _pairs(weights: Sequence[Any]) -> native.Weights:
    return list(zip(weights[::2], weights[1::2], strict=True))


class Chain:
    """Layers in a row, as our kernels run them; `parts` are the modules, nn.Flatten and nn.Unflatten among them."""

    def __init__(self, kernels: native.Kernels, parts: list[Any]) -> None:
        self.kernels, self.parts = kernels, parts
        self.layers = [part for part in parts if hasattr(part, "weight")]
        self.plans: dict[Any, native.Plan | None] = {}
        self.spare: Tensor | None = None  # memory of a step that is over

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plans": {}, "spare": None}  # neither can be copied, nor need be

    def __call__(self, x: Tensor) -> Tensor | None:
        """What comes out; None where the kernels do not fit the sizes, types or the device."""
        bf16 = False
        if torch.is_autocast_enabled("cpu") and x.is_cpu:
            bf16 = self.kernels.has_bf16 and torch.get_autocast_dtype("cpu") == torch.bfloat16
            if not bf16:
                return None
            x = x.float()  # the kernels round by themselves, inside
        weights = [t for layer in self.layers for t in (layer.weight, layer.bias)]
        if not all(t is None or (t.dtype == torch.float32 and t.is_cpu) for t in (x, *weights)):
            return None
        shapes = x.shape, *[None if t is None else t.shape for t in weights]
        if shapes not in self.plans:
            if len(self.plans) >= 16:
                self.plans.clear()
            self.plans[shapes] = self.kernels.plan([_spec(part) for part in self.parts], tuple(x.shape))
        plan = self.plans[shapes]
        if plan is None:
            return None
        out: Tensor = _Chained.apply(x, self, plan, (bf16, torch.is_grad_enabled()), *weights)
        return out

    def keep(self, between: Tensor) -> None:
        """Have the memory of a pass that is over used by the next one.

        Big pieces that are freed and asked for again and again leave ever larger gaps, and are cleared by the kernel.
        """
        if between.numel() <= SPARE:
            self.spare = between

    def has_hooks(self) -> bool:
        """Whether somebody wants to be called before or after one of the parts."""
        return any(part._forward_hooks or part._forward_pre_hooks for part in self.parts)

    def plain(self, x: Tensor, weights: native.Weights) -> Tensor:
        """The same by torch's layers in float32."""
        given = iter(weights)
        for part in self.parts:
            if not hasattr(part, "weight"):
                x = part(x)
                continue
            weight, bias = next(given)
            if isinstance(part, nn.Linear):
                x = F.linear(x, weight, bias)
            else:
                convolve = F.conv_transpose2d if part.transposed else F.conv2d
                x = convolve(x, weight, bias, part.stride, part.padding)
            x = _activated(x, part.after)
        return x


def _spec(part: Any) -> native.Spec:
    kinds: list[type[nn.Module]] = [nn.Linear, nn.Conv2d, nn.ConvTranspose2d]
    for kind in kinds:
        if isinstance(part, kind):
            shape: torch.Size = part.weight.shape  # type: ignore[assignment]
            return kind, tuple(shape), str(part.after)
    return type(part), tuple(getattr(part, "unflattened_size", ())), ""


class FastSequential(nn.Sequential):
    """`nn.Sequential` that runs as many of its layers as possible in one call."""

    pieces: Sequence[Any] = ()  # chains, and modules between them
    made_of: tuple[nn.Module, ...] = ()  # what the pieces were made of

    def forward(self, x: Tensor) -> Tensor:
        piece: Any
        for piece in self.pieces if self.made_of == tuple(self) else self:
            out = None if isinstance(piece, Chain) and piece.has_hooks() else piece(x)
            if out is None:  # layer by layer
                out = x
                for part in piece.parts:
                    out = part(out)
            x = out
        return x


def _pieces(sequence: nn.Sequential, kernels: native.Kernels, chained: list[Any]) -> list[Any]:
    """The parts of a Sequential, those that the kernels can run in a row as chains."""
    pieces: list[Any] = []
    row: list[Any] = []

    def end() -> None:
        after: list[Any] = []
        while row and row[-1] not in chained:  # reshaping at the end is but a view outside
            after.insert(0, row.pop())
        pieces.extend([*([Chain(kernels, row.copy())] if row else []), *after])
        row.clear()

    for part in sequence:
        flat = type(part) is nn.Flatten and (part.start_dim, part.end_dim) == (1, -1)
        image = type(part) is nn.Unflatten and part.dim == 1 and len(part.unflattened_size) == 3
        if part in chained or flat or image:
            row.append(part)
        elif type(part) is not nn.Identity:
            end()
            pieces.append(part)
    end()
    return pieces


# ---------------------------------------------------------------------------------------------------------- likelihood


class _LogProb(torch.autograd.Function):
    """The Bernoulli log-likelihood of images, its gradient formed on the way: one pass instead of seven."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, kernels: native.Kernels) -> Any:
        out, slope = kernels.bernoulli(x, logits, ctx.needs_input_grad[1])
        ctx.save_for_backward(x, logits, slope)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, logits, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            slope = x - logits.sigmoid()
        return None, grad.view(-1, *[1] * (x.dim() - 1)) * slope, None


class FastBernoulli(likelihoods.Bernoulli):
    """`likelihoods.Bernoulli`, quicker."""

    kernels: native.Kernels

    def log_prob(self, x_BCHW: Tensor, out_BCHW: Tensor, hyper: Mapping[str, float]) -> Tensor:
        fits = all(t.is_cpu and t.dtype == torch.float32 and t.numel() for t in (x_BCHW, out_BCHW))
        if not fits or x_BCHW.requires_grad or x_BCHW.shape != out_BCHW.shape:
            return super().log_prob(x_BCHW, out_BCHW, hyper)
        log_prob: Tensor = _LogProb.apply(x_BCHW, out_BCHW, self.kernels)
        return log_prob


# ---------------------------------------------------------------------------------------------------------- optimizers


def total_norm(grads: list[Tensor]) -> Tensor:
    """`torch.nn.utils.get_total_norm`, quicker."""
    kernels = native.load()
    if kernels is None or not all(_gapless(g) for g in grads):
        return torch.nn.utils.get_total_norm(grads)
    return torch.tensor(kernels.norm(grads), dtype=torch.float32)


def quicken(optimizer: torch.optim.Optimizer) -> None:
    """Let an Adam, AdamW or Adagrad on the CPU make its steps by our kernels; its state stays what it is."""
    kind: Any = type(optimizer)
    if native.load() is not None and issubclass(kind, (torch.optim.Adam, torch.optim.Adagrad)):  # AdamW is an Adam
        optimizer.__class__ = _quickened(kind)


@functools.cache
def _quickened(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    def step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        kernels = native.load()
        if closure is None and kernels is not None and _step(self, kernels):
            return None
        return kind.step(self, closure)

    return type(kind.__name__, (kind,), {"step": step})


def _step(optimizer: torch.optim.Optimizer, kernels: native.Kernels) -> bool:
    """One step; False, and nothing done, where there is something that the kernels do not have."""
    if getattr(optimizer, "found_inf", None) is not None or getattr(optimizer, "grad_scale", None) is not None:
        return False  # gradient scaling, which may tell an optimizer to stay where it is
    groups: list[tuple[dict[str, Any], list[tuple[Tensor, Tensor, dict[str, Tensor]]]]] = []
    for group in optimizer.param_groups:
        moving = [(p, p.grad, optimizer.state.get(p, {})) for p in group["params"] if p.grad is not None]
        groups.append((group, moving))
        if group.get("amsgrad") or group.get("maximize") or not all(_alike(p, g, state) for p, g, state in moving):
            return False  # above all the first step, which makes the state
    for group, moving in groups:
        if not moving:
            continue
        torch._foreach_add_([state["step"] for _, _, state in moving], 1)
        steps, lr, decay = [float(state["step"]) for _, _, state in moving], group["lr"], group["weight_decay"]
        if isinstance(optimizer, torch.optim.Adagrad):
            kernels.move(
                [(p, g, None, state["sum"]) for p, g, state in moving],
                [(lr / (1 + (n - 1) * group["lr_decay"]), 1.0) for n in steps],
                (0.0, 0.0),
                group["eps"],
                decay,
                keep=1.0,
            )
            continue
        b1, b2 = group["betas"]
        apart = group["decoupled_weight_decay"]
        kernels.move(
            [(p, g, state["exp_avg"], state["exp_avg_sq"]) for p, g, state in moving],
            [(lr / (1 - b1**n), (1 - b2**n) ** -0.5) for n in steps],
            (b1, b2),
            group["eps"],
            0.0 if apart else decay,
            keep=1 - lr * decay if apart else 1.0,
        )
    return True


def _alike(p: Tensor, grad: Tensor, state: dict[str, Tensor]) -> bool:
    """Whether a weight, its gradient and what the optimizer keeps of it can be gone through side by side."""
    parts = [p, grad, *(t for key, t in state.items() if key != "step")]
    return len(parts) > 2 and _gapless(p) and all(t.stride() == p.stride() and t.dtype == p.dtype for t in parts)


def _gapless(x: Tensor) -> bool:
    """Whether a tensor is float32 on the CPU and fills its memory without gaps."""
    filled = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return filled and x.is_cpu and x.dtype == torch.float32


# --------------------------------------------------------------------------------------------------------------- switch


def accelerate(model: nn.Module) -> list[str]:
    """Switch a model on the CPU to the faster pieces that work here; says which.

    A layer takes in the activation after it in a Sequential: called by itself, it gives what comes after that.
    """
    parameters = next(model.parameters(), None)
    if parameters is None or parameters.device.type != "cpu":
        return []
    op = _onednn_linear()
    linears: list[Any] = [m for m in model.modules() if type(m) in (nn.Linear, FastLinear)]
    convolutions: list[Any] = [m for m in model.modules() if _usual(m)]
    if op is None or not (linears or convolutions):
        return []
    for linear in linears:
        linear.__class__ = FastLinear
        linear.op = op
    swaps: dict[type, type] = {nn.Conv2d: FastConv2d, nn.ConvTranspose2d: FastConvTranspose2d}
    for convolution in convolutions:
        convolution.__class__ = swaps.get(type(convolution), type(convolution))
    if convolutions:
        model.to(memory_format=torch.channels_last)
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    sequences: list[Any] = [m for m in model.modules() if type(m) in (nn.Sequential, FastSequential)]
    for sequence in sequences:
        for i, (layer, after) in enumerate(pairwise(list(sequence)), start=1):
            # One pass less over the memory; a layer that is used elsewhere too may have nothing after it there.
            fits = (
                layer in linears
                if type(after) is nn.Tanh
                else type(after) is nn.ReLU and layer in convolutions + linears
            )
            if fits and uses[layer] == 1:
                layer.after, sequence[i] = type(after).__name__.lower(), nn.Identity()
    kernels = native.load()
    if kernels is None:
        return [f"oneDNN ({native.why_not})"]
    chained = [*linears, *filter(_halving, convolutions)]
    for layer in chained:
        layer.alone = Chain(kernels, [layer])
    for likelihood in [m for m in model.modules() if type(m) is likelihoods.Bernoulli]:
        quick: Any = likelihood
        quick.__class__, quick.kernels = FastBernoulli, kernels
    for sequence in sequences:
        sequence.__class__ = FastSequential
        sequence.pieces, sequence.made_of = _pieces(sequence, kernels, chained), tuple(sequence)
    return ["compiled kernels"]
