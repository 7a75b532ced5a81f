"""Checks on shapes, dtypes and devices that say the rule, what came and the way out. Values are never read."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

__all__ = [
    "check_axes", "check_batch_norm", "check_floating", "check_like", "check_mask", "check_sequence", "check_tensor",
    "is_compiled", "like_weights",
    "plain_names", "unwrap", "weight_of",
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


def check_mask(mask: Tensor, sequence: Tensor) -> None:
    """Raise unless `mask` is a bool (B, T) for a `sequence` of shape (B, T, …)."""
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True where a view counts; got {mask.dtype}. Convert with mask.bool().")
    if mask.shape != sequence.shape[:2]:
        raise ValueError(
            f"mask must have one entry per observed view, shape {tuple(sequence.shape[:2])}; got {tuple(mask.shape)}."
        )
    if mask.device != sequence.device:
        raise ValueError(f"mask must lie on {sequence.device}, where the views do; got {mask.device}.")


def check_sequence(views: Tensor, actions: Tensor) -> None:
    """Raise unless the views and the actions between them belong together."""
    check_axes("actions", actions, "B T A")
    check_tensor("views", views)
    if views.ndim < 3:
        raise ValueError(
            f"views must have the axes (B, T+1, …), for images (B, T+1, C, H, W); got {tuple(views.shape)}."
        )
    n, m = views.shape[1], actions.shape[1]
    if m != n - 1:
        raise ValueError(
            f"{n} views need {n - 1} actions, one per step; got {m}. "
            + ("Add an action or drop the last view." if m < n - 1 else "Drop the last action or add a view.")
            + (
                " Actions are relative: of absolute parameters, one a view, take the differences first."
                if m == n
                else ""
            )
            + (f" Axis 1 of views counts them, (B, T+1, …); got {tuple(views.shape)}." if views.ndim < 5 else "")
        )
    if views.shape[0] != actions.shape[0]:
        raise ValueError(f"Views and actions must have one batch size; got {views.shape[0]} and {actions.shape[0]}.")


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


def like_weights(name: str, tensor: Tensor, weight: Tensor | None) -> Tensor:
    """The tensor in the dtype of `weight`, promoted where it is of lower precision, as `torch.cat` would.

    Raises where it lies on another device, or is of higher precision and autocast does not convert it.
    """
    if weight is None:
        return tensor
    _check_device(name, tensor, weight)
    if tensor.dtype == weight.dtype or (_meet(tensor, weight) and _autocasts(tensor)):
        return tensor
    if torch.promote_types(tensor.dtype, weight.dtype) != weight.dtype:
        raise _other_dtype(name, tensor, weight)
    return tensor.to(weight.dtype)


def check_like(name: str, tensor: Tensor, weight: Tensor | None) -> None:
    """Raise unless `tensor` lies on the device of `weight`, both in float64 or neither: encoders may convert."""
    if weight is None:
        return
    _check_device(name, tensor, weight)
    if not _meet(tensor, weight) and tensor.dtype != weight.dtype:
        raise _other_dtype(name, tensor, weight)


def _check_device(name: str, tensor: Tensor, weight: Tensor) -> None:
    if tensor.device != weight.device:
        raise ValueError(
            f"{name} must lie where the weights do, on {weight.device}; got {tensor.device}. "
            f"Move one of them: {name}.to({str(weight.device)!r})."
        )


def _meet(tensor: Tensor, weight: Tensor) -> bool:
    return torch.float64 not in (tensor.dtype, weight.dtype)


def _other_dtype(name: str, tensor: Tensor, weight: Tensor) -> TypeError:
    otherwise = ", or run under torch.autocast" if _meet(tensor, weight) else ""  # which leaves float64 as it is
    return TypeError(
        f"{name} must have the dtype of the weights, {weight.dtype}; got {tensor.dtype}. "
        f"Convert with {name}.to({weight.dtype}){otherwise}."
    )


def _autocasts(tensor: Tensor) -> bool:
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` wraps the module. Asks without importing the compiler, which takes a second."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of compiling, parallel training and checkpointing, if there are any."""
    while (name := _wraps(module)) is not None:
        module = cast(nn.Module, getattr(module, name))
    return module


def _wraps(module: nn.Module) -> str | None:
    """The name under which a wrapper keeps what it wraps; None for any other module."""
    if is_compiled(module):
        return "_orig_mod"
    # Two questions: torch 2.6 cannot compile a union of types.
    if isinstance(module, nn.parallel.DistributedDataParallel) or isinstance(module, nn.DataParallel):  # noqa: SIM101
        return "module"
    checkpointing = sys.modules.get("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    if checkpointing is not None and isinstance(module, checkpointing.ActivationWrapper):
        return "_checkpoint_wrapped_module"
    return None


def plain_names(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The names of weights without what wrappers of compiling, parallel training and checkpointing put into them."""
    inside = [(name, _wraps(module)) for name, module in model.named_modules(remove_duplicate=False)]
    # Inner ones first, so that the outer parts of a name are still as they were.
    wrappers = [f"{name}.{inner}.".lstrip(".") for name, inner in inside if inner is not None][::-1]
    plain = []
    for name in names:
        for wrapper in wrappers:
            if name.startswith(wrapper):
                name = wrapper[: wrapper.rindex(".", 0, -1) + 1 if "." in wrapper[:-1] else 0] + name[len(wrapper) :]
        plain.append(name)
    return plain
