"""Our own kernels (kernels.c), compiled once by the machine's C compiler and kept in the cache.

`load` gives None, and `why_not` says why, where they cannot be had: no compiler, another processor, a failed check.
Nothing depends on them but speed.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, UntypedStorage, nn

from vaecli.paths import cache_dir

Array = np.ndarray[Any, Any]

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-std=gnu11", "-fPIC", "-shared", "-fopenmp", "-Wl,--as-needed"]

why_not: str | None = None

_CONVOLUTION, _TRANSPOSED, _LINEAR, _TO_PLANES, _TO_PIXELS = range(5)


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("n", "h", "w", "cs", "cl", "kernel")]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("shape", _Shape),
        *[(name, ctypes.c_long) for name in ("kind", "after", "size")],
        *[(name, ctypes.c_void_p) for name in ("w", "bias", "out", "gw", "gb")],
        ("squares", ctypes.c_double),
    ]


Sides = tuple[int, ...]
# A layer, as far as the kernels care: its kind (an nn.Module class), the shape of its weight (for nn.Unflatten that of
# an image), and the activation that follows: "", "relu" or, after a linear layer, "tanh".
Spec = tuple[type[nn.Module], Sides, str]
ACTIVATIONS = ("", "relu", "tanh")
Weights = Sequence[tuple[Tensor, Tensor | None]]  # of the layers that have some: weight and bias


class _Moved(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("p", "m", "v", "g")],
        ("count", ctypes.c_long),
        *[(name, ctypes.c_float) for name in ("rate", "correction")],
    ]


@dataclass(frozen=True)
class Plan:
    """Layers in a row, for inputs of one shape."""

    template: Any  # a ctypes array of `_Layer`, without addresses
    sizes: list[int]  # values that each step puts out
    shape: Sides  # of what comes out at the end


class Kernels:
    """Layers in a row, run in one call: linear ones, convolutions of stride 2 with kernel 4 and padding 1 or kernel 2
    and none, their transposes, nn.Flatten and nn.Unflatten between the two.

    Images have channels last; weights are as in torch. Values and gradients are those of torch's layers within
    rounding; with `bf16` the factors of the products are rounded to bfloat16, where that pays, while sums and what is
    kept stay float32.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._library.forward.argtypes = [pointer, ctypes.c_long, pointer, number, number]
        self._library.backward.argtypes = [pointer, ctypes.c_long, pointer, pointer, pointer, number, number, number]
        self._library.bernoulli.argtypes = [*[pointer] * 4, ctypes.c_long, ctypes.c_long, number]
        self._library.bernoulli.restype = None
        self._library.move.argtypes = [pointer, ctypes.c_long, *[ctypes.c_float] * 6, number]
        self._library.move.restype = None
        self._library.squares.argtypes = [pointer, ctypes.c_long, number]
        self._library.squares.restype = ctypes.c_double
        self.has_bf16 = bool(self._library.has_bf16())
        # Of gradients made here, while they live: size, version and sum of squares.
        self._squares: WeakKeyDictionary[UntypedStorage, tuple[int, int, float]] = WeakKeyDictionary()

    def __deepcopy__(self, memo: Any) -> "Kernels":
        return self

    def __reduce__(self) -> Any:
        return load, ()

    @staticmethod
    def plan(specs: Sequence[Spec], shape: Sides) -> Plan | None:
        """How to run these layers on inputs of that shape; None if one of them does not fit."""
        steps: list[_Layer] = []
        sizes: list[int] = []
        for kind, weight, after in specs:
            found = _step(kind, weight, shape)
            if found is None or math.prod(shape) == 0 or (after == "tanh" and kind is not nn.Linear):
                return None
            code, sides, next_shape = found
            if code < _TO_PLANES or (sides.cs > 1 and sides.h * sides.w > 1):  # else the values lie as they should
                steps.append(_Layer(sides, code, ACTIVATIONS.index(after), math.prod(shape)))
                sizes.append(math.prod(next_shape))
            shape = next_shape
        return Plan((_Layer * len(steps))(*steps), sizes, shape) if steps else None

    def forward(
        self, plan: Plan, x: Tensor, weights: Weights, bf16: bool, spare: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What comes out, and what came out on the way, which takes the place of `spare` if there is room."""
        between = spare
        if between is None or between.numel() < sum(plan.sizes[:-1]):
            with torch.inference_mode(False):  # it may be used again where there are gradients
                between = torch.empty(sum(plan.sizes[:-1]), dtype=torch.float32, device="cpu")
        out = _empty(plan.shape)
        weights, x = _dense(weights), _last(x)
        call = self._call(plan, between, out, weights)
        if self._library.forward(call, len(call), x.data_ptr(), bf16 and self.has_bf16, torch.get_num_threads()):
            raise MemoryError("no memory for a network's layers")
        return out, between

    def backward(
        self,
        plan: Plan,
        grad: Tensor,
        x: Tensor,
        out: Tensor,
        between: Tensor,
        weights: Weights,
        bf16: bool,
        wants_x: bool,
        spend: bool = False,
    ) -> tuple[Tensor | None, Weights]:
        """The gradients by x, if wanted, and by every weight and bias; `spend` lets them overwrite `between`."""
        weights, x, grad = _dense(weights), _last(x), _last(grad)
        call = self._call(plan, between, out, weights)
        gradients = [(torch.empty_like(w), None if b is None else torch.empty_like(b)) for w, b in weights]
        for layer, (gw, gb) in zip(_weighted(call), gradients, strict=True):
            layer.gw, layer.gb = gw.data_ptr(), None if gb is None else gb.data_ptr()
        grad_x = _empty(x.shape) if wants_x else None
        addresses = x.data_ptr(), grad.data_ptr(), None if grad_x is None else grad_x.data_ptr()
        settings = bf16 and self.has_bf16, spend, torch.get_num_threads()
        if self._library.backward(call, len(call), *addresses, *settings):
            raise MemoryError("no memory for a network's layers")
        for layer, (gw, _) in zip(_weighted(call), gradients, strict=True):
            if layer.squares >= 0:  # neither unknown nor NaN
                self._squares[gw.untyped_storage()] = gw.numel(), gw._version, layer.squares
        return grad_x, gradients

    def bernoulli(self, x: Tensor, logits: Tensor, wants_slope: bool) -> tuple[Tensor, Tensor | None]:
        """Log-likelihood of every image, (B,), and if wanted its gradient by the logits; float32 throughout."""
        x, logits = (t if t.is_contiguous() else t.contiguous() for t in (x, logits))
        out, slope = logits.new_empty(len(x)), torch.empty_like(logits) if wants_slope else None
        addresses = x.data_ptr(), logits.data_ptr(), out.data_ptr(), None if slope is None else slope.data_ptr()
        self._library.bernoulli(*addresses, len(x), math.prod(x.shape[1:]), torch.get_num_threads())
        return out, slope

    def grow_trees(
        self, x_DN: Array, order_DN: Array, residual_TN: Array, turn_TD: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Regression trees of depth 3, one for each row of float64 residuals, every split the best there is.

        Inputs float32 with their rows by rising value, int32; of equal splits that of the input first in `turn_TD`
        (int32) is taken. Of the seven nodes of each tree, level by level: input, threshold (infinite where nothing is
        gained) and gain in the sum of squares, (T, 7) each; the leaf of every row, uint8 (T, N).
        """
        (d, n), trees = x_DN.shape, len(residual_TN)
        leaf_TN = np.empty((trees, n), dtype=np.uint8)
        input_TJ, threshold_TJ, gain_TJ = (
            np.empty((trees, 7), dtype=kind) for kind in (np.int32, np.float32, np.float64)
        )
        arrays = [(x_DN, np.float32), (order_DN, np.int32), (residual_TN, np.float64), (turn_TD, np.int32)]
        given = [np.ascontiguousarray(array, dtype=kind) for array, kind in arrays]
        sizes = [ctypes.c_long(size) for size in (n, d, trees)]
        out = [ctypes.c_void_p(array.ctypes.data) for array in (leaf_TN, input_TJ, threshold_TJ, gain_TJ)]
        addresses = [ctypes.c_void_p(array.ctypes.data) for array in given]
        self._library.grow_trees(*addresses, *sizes, ctypes.c_int(torch.get_num_threads()), *out)
        return input_TJ, threshold_TJ, gain_TJ, leaf_TN

    def move(
        self,
        tensors: Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor]],
        rates: Sequence[tuple[float, float]],
        betas: tuple[float, float],
        eps: float,
        decay: float,
        keep: float,
    ) -> None:
        """One step of Adam for weights, gradients, first and second moments; of Adagrad where there is no first one.

        All four are float32 and lie alike in memory. `rates`: the learning rate divided by the first bias correction,
        and the inverse root of the second. `decay` is added to the gradient, `keep` multiplies the weight.
        """
        each = [
            _Moved(p.data_ptr(), None if m is None else m.data_ptr(), v.data_ptr(), g.data_ptr(), p.numel(), *rate)
            for (p, g, m, v), rate in zip(tensors, rates, strict=True)
        ]
        b1, b2 = betas
        numbers = 1 - b1, b2, 1 - b2, eps, decay, keep
        self._library.move((_Moved * len(each))(*each), len(each), *numbers, torch.get_num_threads())
        torch.autograd.graph.increment_version([p for p, *_ in tensors])  # as any change of a tensor does

    def norm(self, tensors: Sequence[Tensor]) -> float:
        """The 2-norm of float32 tensors, taken together; they fill their memory without gaps.

        Gradients as `backward` made them are not read again. What changes one behind autograd's back, as through
        `.data`, is not seen.
        """
        known = [self._known_squares(t) for t in tensors]
        rest = [t for t, squares in zip(tensors, known, strict=True) if squares is None]
        each = [_Moved(None, None, None, t.data_ptr(), t.numel()) for t in rest]
        squares = self._library.squares((_Moved * len(each))(*each), len(each), torch.get_num_threads())
        return math.sqrt(squares + sum(squares for squares in known if squares is not None))

    def _known_squares(self, t: Tensor) -> float | None:
        made = self._squares.get(t.untyped_storage())
        return made[2] if made is not None and made[:2] == (t.numel(), t._version) else None

    @staticmethod
    def _call(plan: Plan, between: Tensor, out: Tensor, weights: Weights) -> Any:
        """The plan with addresses."""
        call = type(plan.template).from_buffer_copy(plan.template)
        place = between.data_ptr()
        for layer, size in zip(call, plan.sizes, strict=True):
            layer.out = place
            place += 4 * size
        layer.out = out.data_ptr()
        for layer, (w, b) in zip(_weighted(call), weights, strict=True):
            layer.w, layer.bias = w.data_ptr(), None if b is None else b.data_ptr()
        return call


def _step(kind: type[nn.Module], weight: Sides, shape: Sides) -> tuple[int, _Shape, Sides] | None:
    """Code, sizes and output's shape of one layer; None if it does not fit an input of `shape`."""
    n, sides = shape[0], len(shape)
    if kind is nn.Linear and sides == 2 and shape[1] == weight[1]:
        return _LINEAR, _Shape(n, 0, 0, *weight), (n, weight[0])
    if kind in (nn.Conv2d, nn.ConvTranspose2d) and sides == 4:
        small, large, kernel, _ = weight
        down = kind is nn.Conv2d
        height, width = (side // (2 if down else 1) for side in shape[2:])
        odd = down and (shape[2] % 2 or shape[3] % 2)
        few = large % 4 == 0 if kernel == 2 else large <= 4
        if shape[1] == (large if down else small) and not odd and small % 16 == 0 and (few or large % 16 == 0):
            sizes = _Shape(n, height, width, small, large, kernel)
            after = (n, small, height, width) if down else (n, large, 2 * height, 2 * width)
            return _CONVOLUTION if down else _TRANSPOSED, sizes, after
    if kind is nn.Flatten and sides == 4:
        return _TO_PLANES, _Shape(n, shape[2], shape[3], shape[1]), (n, math.prod(shape[1:]))
    if kind is nn.Unflatten and sides == 2 and len(weight) == 3 and shape[1] == math.prod(weight):
        return _TO_PIXELS, _Shape(n, weight[1], weight[2], weight[0]), (n, *weight)
    return None


def _weighted(call: Any) -> list[Any]:
    return [layer for layer in call if layer.kind < _TO_PLANES]


def _dense(weights: Weights) -> Weights:
    return [(_last(w), None if b is None else b.contiguous()) for w, b in weights]


def _empty(shape: Sequence[int]) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=layout)


def _last(x: Tensor) -> Tensor:
    """With channels last in memory, also where torch calls a layout contiguous because a size is 1."""
    if x.dim() != 4:
        return x.contiguous()
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, channels * width, channels)
    if x.stride() == strides:
        return x
    if channels == 1 and x.is_contiguous():  # the same memory by another name
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)


# ------------------------------------------------------------------------------------------------------------- building


@functools.cache
def load() -> Kernels | None:
    """The kernels, compiled if need be (some two seconds, once); None where they cannot be had, see `why_not`."""
    global why_not
    try:
        path = _library()
        try:
            kernels = Kernels(path)
        except (OSError, AttributeError):  # damaged: once more from the source
            path.unlink(missing_ok=True)
            kernels = Kernels(_library())
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            _check(kernels)
        return kernels
    except Exception as error:  # whatever it is, training goes on without them
        why_not = str(error)
        return None


def _library() -> Path:
    """The compiled file; its name says all that it depends on."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise RuntimeError("written for Linux on x86-64")
    flags = _processor_flags()
    if not {"avx2", "fma"} <= flags:
        raise RuntimeError("the processor has no AVX2")
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    found = shutil.which(compiler[0])
    if found is None:
        raise RuntimeError(f"there is no C compiler ({compiler[0]})")
    version = _output_of([*compiler, "--version"])[1]
    if "clang" in version:
        raise RuntimeError(f"{compiler[0]} is clang, whose OpenMP is not torch's; set CC to a gcc")
    source = SOURCE.read_bytes()
    key = hashlib.sha256(repr((source, compiler, FLAGS, version, sorted(flags), torch.__version__)).encode())
    folder = _folder()
    path = folder / f"kernels-{key.hexdigest()[:32]}.so"
    if not _intact(path):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch).absolute() / path.name
            # torch's own OpenMP library, by its path: a second one beside it would fight over the cores.
            # In the empty folder: a linker looks for the parts of gcc's library in the current one first.
            command = [os.path.abspath(found), *compiler[1:], *FLAGS, str(SOURCE.absolute()), "-o", str(built)]
            code, said = _output_of([*command, *_openmp()], scratch)
            if code != 0 or not built.exists():
                raise RuntimeError(f"{compiler[0]} failed: {said.strip()[:300]}")
            with built.open("rb+") as file:
                os.fchmod(file.fileno(), 0o600)  # whatever the umask
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.write(digest.encode())  # the loader passes over what follows the last section
                file.flush()
                os.fsync(file.fileno())
            os.replace(built, path)
    return path


def _intact(path: Path) -> bool:
    """Whether the compiled file is there, ours alone, and as it was written: it is executed."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
                return False
            content = file.read()
    except OSError:
        return False
    return hashlib.sha256(content[:-64]).hexdigest().encode() == content[-64:]


def _output_of(command: list[str], folder: str | None = None) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def _folder() -> Path:
    """A folder of ours that nobody else can write to: what lies there is executed."""
    folder = cache_dir() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RuntimeError(f"others own {folder} or can write to it")
    for above in folder.resolve().parents:
        if above.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise RuntimeError(f"anyone can write to {above}, and put another folder in the place of {folder}")
    return folder


def _openmp() -> list[str]:
    root = Path(torch.__file__).parent
    places = [root / "lib", root.parent / "torch.libs"]
    return [str(found) for place in places for found in sorted(place.glob("libgomp*"))][:1]


def _processor_flags() -> set[str]:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        return set(next((line for line in lines if line.startswith("flags")), "").split())


def _check(kernels: Kernels) -> None:
    """One layer of each kind against torch's. RuntimeError if they differ: a compiler is not to be trusted blindly."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    pairs: list[tuple[Tensor | None, Tensor]] = []

    def compare(kind: type[nn.Module], x: Tensor, weight: Tensor, plain: Callable[..., Tensor]) -> None:
        plan = kernels.plan([(kind, tuple(weight.shape), "")], tuple(x.shape))
        if plan is None:
            raise RuntimeError("a layer does not fit the kernels made for it")
        bias = some(weight.shape[1] if kind is nn.ConvTranspose2d else weight.shape[0])
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        with torch.enable_grad():
            expected = plain(*leaves)
        grad = some(*expected.shape)
        out, between = kernels.forward(plan, x, [(weight, bias)], False)
        grad_x, [gradients] = kernels.backward(plan, grad, x, out, between, [(weight, bias)], False, True)
        with torch.enable_grad():
            score = (expected * grad).sum()  # with `grad_outputs`, torch imports its compiler, which takes a second
        exact = torch.autograd.grad(score, leaves)
        pairs.extend(zip((out, grad_x, *gradients), (expected.detach(), *exact), strict=True))

    compare(nn.Linear, some(5, 32), some(16, 32), F.linear)
    for channels, kernel in ((1, 4), (16, 4), (16, 2)):
        weight, padding = some(16, channels, kernel, kernel), (kernel - 2) // 2
        compare(nn.Conv2d, some(3, channels, 6, 6), weight, partial(F.conv2d, stride=2, padding=padding))
        up = partial(F.conv_transpose2d, stride=2, padding=padding)
        compare(nn.ConvTranspose2d, some(3, 16, 3, 3), weight, up)
    if not all(a is not None and torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs):
        raise RuntimeError("the compiled kernels do not compute what they should")
