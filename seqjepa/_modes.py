"""Run a module as an onlooker would: without gradient, in eval mode, and leaving no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["autocast", "eval_mode", "fresh_casts"]


def fresh_casts(device: torch.device) -> Any:
    """A context in which autocast, where it is on, keeps no cast weight and takes none that it kept.

    Autocast casts a weight once and hands out that copy until its block ends. A copy made in a pass without gradient
    has no way back to the weight: before torch 2.13 the pass that learns was handed it all the same, and the weight got
    no gradient. So every pass without gradient over weights that learn runs in this context.
    """
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return autocast(device, torch.get_autocast_dtype(device.type), cache_enabled=False)


def autocast(device: torch.device, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """`torch.autocast` on the device of a tensor; nothing on the meta device, which has none."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, dtype, **options)


@contextlib.contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Everything in eval mode inside a `with` block; every submodule back in the mode it was in outside."""
    modes = [(module, module.training) for top in modules for module in top.modules()]
    try:
        for top in modules:
            top.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
