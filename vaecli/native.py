"""Our own convolution kernels (kernels.c), compiled once by the machine's C compiler and kept in the cache.

`load` gives None, and `why_not` says why, where they cannot be had: no compiler, another processor, a failed check.
Nothing depends on them but speed.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vaecli.paths import cache_dir

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ["-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-fopenmp", "-Wl,--as-needed"]
_DOWN, _UP, _DOWN_BACKWARD, _UP_BACKWARD = range(4)

why_not: str | None = None


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("n", "h", "w", "cs", "cl", "kernel")]


class _Call(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("l", "s", "kept", "w", "bias", "out", "gw", "gb")],
        *[(name, ctypes.c_int) for name in ("relu", "bf16", "threads")],
    ]


class _Linear(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("x", "w", "bias", "g", "kept", "out", "gw", "gb")],
        *[(name, ctypes.c_long) for name in ("m", "n", "k")],
        *[(name, ctypes.c_int) for name in ("relu", "bf16", "threads")],
    ]


class Kernels:
    """Linear layers; convolutions of stride 2 with kernel 4 and padding 1 or kernel 2 and none, and their transposes.

    All take a ReLU along. Images have channels last. Weights are as in torch, so (N_small, N_large, kernel, kernel)
    for both kinds of convolutions. Values and gradients are those of torch's layers within rounding; with `bf16` the
    factors of the products are rounded to bfloat16, where that pays, while sums and what is kept stay float32.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for function in (self._library.wide, self._library.direct):
            function.argtypes = [ctypes.c_int, _Shape, _Call]
        for function in (self._library.linear, self._library.linear_backward):
            function.argtypes = [_Linear]
        self.has_bf16 = bool(self._library.has_bf16())

    def __deepcopy__(self, memo: Any) -> "Kernels":
        return self

    def __reduce__(self) -> Any:
        return load, ()

    @staticmethod
    def fits_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether a linear layer has the sizes and types that the kernels are written for."""
        n_out, n_in = weight.shape
        return (
            x.dim() == 2
            and x.numel() > 0
            and x.shape[1] == n_in
            and _plain(x, weight, bias)
            and n_out % 16 == 0
            and n_in % 16 == 0
        )

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, bf16: bool) -> Tensor:
        """(B, N_in) to (B, N_out)."""
        out = x.new_empty(x.shape[0], weight.shape[0])
        self._products(
            self._library.linear, x, weight, relu=relu, bf16=bf16, x=x.contiguous(), bias=_dense(bias), out=out
        )
        return out

    def linear_backward(
        self,
        grad: Tensor,
        x: Tensor,
        kept: Tensor | None,
        weight: Tensor,
        bf16: bool,
        wants_x: bool,
        wants_bias: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Gradients of input, weight and bias; `kept` is the output where the layer ended in a ReLU."""
        grad_x = x.new_empty(x.shape) if wants_x else None
        grad_weight = x.new_empty(weight.shape)
        grad_bias = x.new_empty(weight.shape[0]) if wants_bias else None
        self._products(
            self._library.linear_backward,
            x,
            weight,
            relu=False,
            bf16=bf16,
            x=x.contiguous(),
            g=grad.contiguous(),
            kept=_dense(kept),
            out=grad_x,
            gw=grad_weight,
            gb=grad_bias,
        )
        return grad_x, grad_weight, grad_bias

    def _products(
        self, function: Any, rows: Tensor, weight: Tensor, relu: bool, bf16: bool, **tensors: Tensor | None
    ) -> None:
        tensors["w"] = weight.contiguous()
        sizes = dict(zip("mnk", (rows.shape[0], *weight.shape), strict=True))
        call = _Linear(relu=relu, bf16=bf16 and self.has_bf16, threads=torch.get_num_threads(), **sizes, **_at(tensors))
        if function(call):
            raise MemoryError("no memory for a linear layer")

    @staticmethod
    def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether a convolution has the sizes and types that the kernels are written for."""
        return (
            _fits_channels(x, weight, bias)
            and x.shape[1] == weight.shape[1]
            and x.shape[2] % 2 == 0
            and x.shape[3] % 2 == 0
        )

    @staticmethod
    def fits_transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """The same for a transposed convolution."""
        return _fits_channels(x, weight, bias) and x.shape[1] == weight.shape[0]

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, relu: bool, bf16: bool
    ) -> Tensor:
        """The layer's output with bias and, if `relu`, ReLU."""
        shape = _shape(x, weight, transposed)
        size = (shape.n, shape.cl, 2 * shape.h, 2 * shape.w) if transposed else (shape.n, shape.cs, shape.h, shape.w)
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        image = {"s" if transposed else "l": _last(x)}
        self._run(
            _UP if transposed else _DOWN,
            shape,
            relu=relu,
            bf16=bf16,
            w=_last(weight),
            bias=_dense(bias),
            out=out,
            **image,
        )
        return out

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        kept: Tensor | None,
        weight: Tensor,
        transposed: bool,
        bf16: bool,
        wants_x: bool,
        wants_bias: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Gradients of input, weight and bias; `kept` is the output where the layer ended in a ReLU."""
        grad_x = torch.empty_like(x, memory_format=torch.channels_last) if wants_x else None
        grad_weight = torch.empty_like(weight, memory_format=torch.channels_last)
        grad_bias = x.new_empty(grad.shape[1]) if wants_bias else None
        small, large = (x, grad) if transposed else (grad, x)
        self._run(
            _UP_BACKWARD if transposed else _DOWN_BACKWARD,
            _shape(x, weight, transposed),
            relu=False,
            bf16=bf16,
            l=_last(large),
            s=_last(small),
            kept=None if kept is None else _last(kept),
            w=_last(weight),
            out=grad_x,
            gw=grad_weight,
            gb=grad_bias,
        )
        return grad_x, grad_weight, grad_bias

    def _run(self, which: int, shape: _Shape, relu: bool, bf16: bool, **tensors: Tensor | None) -> None:
        call = _Call(relu=relu, bf16=bf16 and self.has_bf16, threads=torch.get_num_threads(), **_at(tensors))
        function = self._library.wide if shape.kernel == 4 and shape.cl > 4 else self._library.direct
        if function(which, shape, call):
            raise MemoryError("no memory for a convolution")


def _fits_channels(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    small, large, kernel = weight.shape[:3]
    few = large % 4 == 0 if kernel == 2 else large <= 4
    return x.dim() == 4 and x.numel() > 0 and _plain(x, weight, bias) and small % 16 == 0 and (few or large % 16 == 0)


def _plain(*tensors: Tensor | None) -> bool:
    """Whether all are float32 in the memory of this machine."""
    return all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors)


def _at(tensors: Mapping[str, Tensor | None]) -> dict[str, int | None]:
    return {name: None if t is None else t.data_ptr() for name, t in tensors.items()}


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _last(x: Tensor) -> Tensor:
    """With channels last in memory, also where torch calls a layout contiguous because a size is 1."""
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, channels * width, channels)
    if x.stride() == strides:
        return x
    if channels == 1 and x.is_contiguous():  # the same memory by another name
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)


def _shape(x: Tensor, weight: Tensor, transposed: bool) -> _Shape:
    n, _, height, width = x.shape
    part = 1 if transposed else 2
    return _Shape(n, height // part, width // part, *weight.shape[:3])


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
    if shutil.which(compiler[0]) is None:
        raise RuntimeError(f"there is no C compiler ({compiler[0]})")
    version = _output_of([*compiler, "--version"])[1]
    if "clang" in version:
        raise RuntimeError(f"{compiler[0]} is clang, whose OpenMP is not torch's; set CC to a gcc")
    source = SOURCE.read_bytes()
    key = hashlib.sha256(repr((source, compiler, FLAGS, version, sorted(flags), torch.__version__)).encode())
    folder = _folder()
    path = folder / f"kernels-{key.hexdigest()[:32]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            # torch's own OpenMP library, by its path: a second one beside it would fight over the cores.
            code, said = _output_of([*compiler, *FLAGS, str(SOURCE), "-o", str(built), *_openmp()])
            if code != 0 or not built.exists():
                raise RuntimeError(f"{compiler[0]} failed: {said.strip()[:300]}")
            with built.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(built, path)
    return path


def _output_of(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    return done.returncode, done.stdout + done.stderr


def _folder() -> Path:
    """A folder of ours that nobody else can write to: what lies there is executed."""
    folder = cache_dir() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RuntimeError(f"others own {folder} or can write to it")
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

    x, weight, grad = some(5, 32), some(16, 32), some(5, 16)
    pairs: list[tuple[Tensor | None, Tensor]] = [(kernels.linear(x, weight, None, False, False), x @ weight.t())]
    found = kernels.linear_backward(grad, x, None, weight, False, True, True)
    pairs += zip(found, (grad @ weight, grad.t() @ x, grad.sum(0)), strict=True)
    for channels, kernel in ((1, 4), (16, 4), (16, 2)):
        weight, large, small = some(16, channels, kernel, kernel), some(3, channels, 6, 6), some(3, 16, 3, 3)
        settings = (weight, None, 2, (kernel - 2) // 2)
        pairs += [
            (kernels.forward(large, weight, None, False, False, False), F.conv2d(large, *settings)),
            (kernels.forward(small, weight, None, True, False, False), F.conv_transpose2d(small, *settings)),
        ]
        for transposed, x, grad in ((False, large, small), (True, small, large)):
            found = kernels.backward(grad, x, None, weight, transposed, False, True, True)
            shapes = ([2, 2], [settings[3]] * 2, [1, 1], transposed, [0, 0], 1, [True, True, True])
            bias = [grad.shape[1]]
            pairs += zip(found, torch.ops.aten.convolution_backward(grad, x, weight, bias, *shapes), strict=True)
    if not all(a is not None and torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs):
        raise RuntimeError("the compiled kernels do not compute what they should")
