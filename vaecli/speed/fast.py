"""The fast path of training on a CPU: the same computation, faster on the machine at hand.

`accelerate` changes the class of a model's plain layers to those below. Parameters, their names and what is saved stay;
values and gradients are those of the plain layer within rounding, and are tested against it. `train.fast: false` runs
the plain path, which is the reference.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaecli.objectives import likelihoods
from vaecli.speed import native
from vaecli.speed.layers import FastConv2d, FastConvTranspose2d, FastLinear, activated, halving, onednn_linear, usual

_MALLOPT = {"M_MMAP_THRESHOLD": -3, "M_TRIM_THRESHOLD": -1}
SPARE = 2**27  # values that a chain keeps the memory of, at most


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
            # Views, so that this gradient ends here, also where x has come through the same weights before.
            x, *weights = (None if t is None else t.view_as(t) for t in (x, *weights))
            inputs: list[Any] = [t for t, wanted in zip((x, *weights), (wants_x, *wants), strict=True) if wanted]
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
            x = activated(x, part.after)
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


# --------------------------------------------------------------------------------------------------------------- switch


def accelerate(model: nn.Module) -> list[str]:
    """Switch a model on the CPU to the faster pieces that work here; says which.

    A layer takes in the activation after it in a Sequential: called by itself, it gives what comes after that.
    """
    parameters = next(model.parameters(), None)
    if parameters is None or parameters.device.type != "cpu":
        return []
    op = onednn_linear()
    linears: list[Any] = [m for m in model.modules() if type(m) in (nn.Linear, FastLinear)]
    convolutions: list[Any] = [m for m in model.modules() if usual(m)]
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
    chained = [*linears, *filter(halving, convolutions)]
    for layer in chained:
        layer.alone = Chain(kernels, [layer])
    for likelihood in [m for m in model.modules() if type(m) is likelihoods.Bernoulli]:
        quick: Any = likelihood
        quick.__class__, quick.kernels = FastBernoulli, kernels
    for sequence in sequences:
        sequence.__class__ = FastSequential
        sequence.pieces, sequence.made_of = _pieces(sequence, kernels, chained), tuple(sequence)
    return ["compiled kernels"]
