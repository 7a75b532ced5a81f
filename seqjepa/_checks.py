"""Checks on shapes, dtypes and devices that say the rule, what came and the way out. Values are never read."""

from __future__ import annotations

import sys
from typing import cast

import torch
from torch import Tensor, nn

__all__ = [
    "check_axes", "check_batch_norm", "check_floating", "check_like", "check_tensor", "is_compiled", "unwrap",
    "weight_of",
]  # fmt: skip


def check_axes(name: str, tensor: Tensor, axes: str) -> None:
    """Raise unless `tensor` is floating point and has the axes named in `axes`, such as `"B T A"`."""
    check_tensor(name, tensor)
    if tensor.ndim != len(axes.split()):
        raise ValueError(f"{name} must have the axes ({', '.join(axes.split())}); got shape {tuple(tensor.shape)}.")
    check_floating(name, tensor)


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` is one."""
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor; got {type(tensor).__name__}. Convert with torch.as_tensor({name})."
        )


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` is floating point."""
    if not tensor.is_floating_point():
        bytes_too = " / 255" if tensor.dtype == torch.uint8 else ""
        raise TypeError(f"{name} must be floating point; got {tensor.dtype}. Convert with {name}.float(){bytes_too}.")


def check_batch_norm(rows: int, training: bool, what: str) -> None:
    """Raise where batch norm would have a single row to take statistics of."""
    if training and rows == 1:
        raise ValueError(
            f"In training mode batch norm needs at least two {what}; got 1. Use a larger batch, or call model.eval()."
        )


def weight_of(module: nn.Module) -> Tensor | None:
    """The module's first floating-point parameter, which tells its device and dtype."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter
    return None


def check_like(name: str, tensor: Tensor, weight: Tensor | None, *, lower_precision_too: bool = False) -> None:
    """Raise unless `tensor` lies on the device of `weight`, in its dtype (or one that autocast converts).

    With `lower_precision_too`, half precision and float32 may meet: some encoders convert by themselves.
    """
    if weight is None:
        return
    if tensor.device != weight.device:
        raise ValueError(
            f"{name} must lie where the weights do, on {weight.device}; got {tensor.device}. "
            f"Move one of them: {name}.to({str(weight.device)!r})."
        )
    if tensor.dtype == weight.dtype:
        return
    meets = torch.float64 not in (tensor.dtype, weight.dtype) and (lower_precision_too or _autocasts(tensor))
    if not meets:
        raise TypeError(
            f"{name} must have the dtype of the weights, {weight.dtype}; got {tensor.dtype}. "
            f"Convert with {name}.to({weight.dtype}), or run under torch.autocast."
        )


def _autocasts(tensor: Tensor) -> bool:
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` wraps the module. Asks without importing the compiler, which takes a second."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and DistributedDataParallel wrappers, if there are any."""
    while True:
        if is_compiled(module):
            module = cast(nn.Module, module._orig_mod)
        elif isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module
