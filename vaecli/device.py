"""Where tensors live and where randomness comes from."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vaecli.errors import ConfigError, MachineError

NAMES = ("auto", "cuda", "mps", "cpu")


class _Unfilled(TorchFunctionMode):
    """Fills no tensor of the meta device, which has no values. torch would import its compiler to do that: a second or
    two."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.normal_, torch.nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """What is built here has shapes and types, but takes no memory."""
    with torch.device("meta"), _Unfilled():
        yield


def available() -> list[str]:
    """Names of the devices that work here, best first."""
    found = (
        [f"cuda:{i}" if i else "cuda" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def pick(name: str = "auto") -> torch.device:
    """The device of that name; `auto` takes $VAE_DEVICE or the best there is. MachineError if it is not there."""
    if name == "auto":
        name = os.environ.get("VAE_DEVICE") or available()[0]
    if name.partition(":")[0] not in NAMES[1:]:
        raise ConfigError(f"no device is called {name!r}; there are: {', '.join(NAMES)}")
    if name not in available() and name != "cuda:0":
        raise MachineError(f"device {name!r} is not available here", f"available: {', '.join(available())}")
    if name.startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean it, in training and after; bf16 is there for speed
    return torch.device(name)


def describe(device: torch.device) -> str:
    """`cuda (NVIDIA H100)`, `cpu (2 threads)`."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else str(device)


def derive(*keys: int | str) -> int:
    """A 63-bit seed that depends on all keys and on nothing else."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed(*keys: int | str) -> None:
    """Seed torch's global generators from the keys.

    Training calls it with (seed, "step", n) before step n, so noise is a pure function of the seed and the step:
    resuming, or evaluating in between, cannot change it.
    """
    number = derive(*keys)
    # torch.manual_seed gives the same numbers, but writes down a stack trace for every accelerator that is not there:
    # over a millisecond, each time.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Within, torch's generators may be seeded and drawn from, on every device; afterwards they are where they were."""
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = range(torch.cuda.device_count()) if used else ()
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


def deterministic(device: torch.device) -> None:
    """Reproducible kernels: on the CPU always; on CUDA too, where an operation allows it."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # `use_deterministic_algorithms` does the same, but imports torch's compiler first, which takes over a second.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "warn")
    # A help in finding reads of memory that nothing has written; it costs a sixth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def quickest() -> None:
    """On CUDA: whichever kernels turn out to be quickest, those too whose sums come out in another order each time."""
    torch.set_deterministic_debug_mode("default")
    torch.backends.cudnn.benchmark = True
