"""Optimizers without torch's compiler, and on a CPU the norm of the gradients and the steps of Adam, AdamW and Adagrad
by our own kernels."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vaecli.speed import native


@functools.cache
def without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """torch's optimizers import its compiler, only to tell it to leave them alone: 1.4 seconds and 120 MB of memory.

    Nothing is compiled here. So the methods get the mark that the compiler would give them, and a step is made without
    the wrapper around it. Where a version of torch is built otherwise, the import happens.
    """
    for method in vars(torch.optim.Optimizer).values():
        original = getattr(method, "__wrapped__", None)
        if inspect.isfunction(method) and original is not None:
            original.__dict__.setdefault("__dynamo_disable", original)
    return type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))})


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
