"""Our own convolution kernels (kernels.c), compiled once by the machine's C compiler and kept in the cache.

`load` gives None, and `why_not` says why, where they cannot be had: no compiler, another processor, a failed check.
Nothing depends on them but speed.
"""

import ctypes
import functools
import glob
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
FLAGS = ["-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-fopenmp"]
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

    @staticmethod
    def fits_linear(x: Tensor, weight: Tensor) -> bool:
        """Whether a linear layer has the sizes and types that the kernels are written for."""
        n_out, n_in = weight.shape
        return (
            x.dim() == 2
            and x.shape[0] > 0
            and x.shape[1] == n_in
            and x.dtype == weight.dtype == torch.float32
            and n_out % 16 == 0
            and n_in % 16 == 0
        )

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, bf16: bool) -> Tensor:
        """(B, N_in) to (B, N_out)."""
        out = torch.empty(x.shape[0], weight.shape[0])
        self._products(self._library.linear, x, weight, relu=relu, bf16=bf16, x=x.contiguous(), bias=bias, out=out)
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
        grad_x = torch.empty(x.shape) if wants_x else None
        grad_weight = torch.empty(weight.shape)
        grad_bias = torch.empty(weight.shape[0]) if wants_bias else None
        self._products(
            self._library.linear_backward,
            x,
            weight,
            relu=False,
            bf16=bf16,
            x=x.contiguous(),
            g=grad.contiguous(),
            kept=kept,
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
    def fits(x: Tensor, weight: Tensor, transposed: bool) -> bool:
        """Whether a convolution has the sizes and types that the kernels are written for."""
        small, large, kernel = weight.shape[:3]
        return (
            x.dim() == 4
            and x.numel() > 0
            and x.shape[1] == (small if transposed else large)
            and x.dtype == weight.dtype == torch.float32
            and small % 16 == 0
            and (large % 4 == 0 if kernel == 2 else large <= 4 or large % 16 == 0)
            and (transposed or (x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0))
        )

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, relu: bool, bf16: bool
    ) -> Tensor:
        """The layer's output with bias and, if `relu`, ReLU."""
        shape = _shape(x, weight, transposed)
        size = (shape.n, shape.cl, 2 * shape.h, 2 * shape.w) if transposed else (shape.n, shape.cs, shape.h, shape.w)
        out = torch.empty(size, memory_format=torch.channels_last)
        image = {"s" if transposed else "l": _last(x)}
        self._run(
            _UP if transposed else _DOWN, shape, relu=relu, bf16=bf16, w=_last(weight), bias=bias, out=out, **image
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
        grad_bias = torch.empty(grad.shape[1]) if wants_bias else None
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


def _at(tensors: Mapping[str, Tensor | None]) -> dict[str, int | None]:
    return {name: None if t is None else t.data_ptr() for name, t in tensors.items()}


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
        kernels = Kernels(_library())
        _check(kernels)
        return kernels
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
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
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    source = SOURCE.read_bytes()
    key = hashlib.sha256(repr((source, compiler, FLAGS, version, sorted(flags), torch.__version__)).encode())
    folder = _folder()
    path = folder / f"kernels-{key.hexdigest()[:32]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            # torch's own OpenMP library, by its path: a second one beside it would fight over the cores.
            command = [*compiler, *FLAGS, str(SOURCE), "-o", str(built), *_openmp()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode != 0:
                raise RuntimeError(f"{compiler[0]} failed: {done.stderr.strip()[:300]}")
            os.replace(built, path)
    return path


def _folder() -> Path:
    """A folder that nobody else can write to: what lies there is executed."""
    folder = cache_dir() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RuntimeError(f"others can write to {folder}")
    return folder


def _openmp() -> list[str]:
    root = Path(torch.__file__).parent
    found = [*glob.glob(str(root / "lib" / "libgomp*")), *glob.glob(str(root.parent / "torch.libs" / "libgomp*"))]
    return found[:1]


def _processor_flags() -> set[str]:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        return set(next((line for line in lines if line.startswith("flags")), "").split())


def _check(kernels: Kernels) -> None:
    """One layer of each kind against torch's. RuntimeError if they differ: a compiler is not to be trusted blindly."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 32, generator=generator), torch.randn(16, 32, generator=generator)
    pairs = [(kernels.linear(x, weight, None, False, False), F.linear(x, weight))]
    for channels in (1, 16):
        weight = torch.randn(16, channels, 4, 4, generator=generator)
        large, small = (
            torch.randn(3, channels, 6, 6, generator=generator),
            torch.randn(3, 16, 3, 3, generator=generator),
        )
        pairs += [
            (kernels.forward(large, weight, None, False, False, False), F.conv2d(large, weight, None, 2, 1)),
            (kernels.forward(small, weight, None, True, False, False), F.conv_transpose2d(small, weight, None, 2, 1)),
        ]
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs):
        raise RuntimeError("the compiled kernels do not compute what they should")
