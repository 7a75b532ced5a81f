"""Models that `torch.distributed.fsdp.fully_shard` has spread over ranks: methods that work, weights as one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

__all__ = ["register_forward_methods"]

Module = TypeVar("Module", bound=nn.Module)
METHODS = ("encode", "embed", "aggregate", "aggregate_prefixes", "predict", "imagine", "imagine_from")
WAYS_IN = ("prefixes", "step")  # of an aggregator, beside its forward


def register_forward_methods(model: Module) -> Module:
    """Let the methods of a sharded model be called: `encode`, `embed`, `aggregate`, `predict`, `imagine` and the rest.

    `fully_shard` gathers a module's weights when the module itself is called; its other methods and its target would
    find shards. After this they gather as a call does, once for the outermost: `imagine` and the model's own forward
    pass, which call the others, gather no more than before. `prefixes` and `step` of a
    [`CausalAggregator`][seqjepa.CausalAggregator] gather too, also where it is the only part that is sharded. A
    gathering is a collective: call the same methods on all ranks. A model that is not sharded, or only in its parts,
    which gather by themselves, stays as it is.

    Args:
        model: right after `fully_shard`, of it or of its parts. A second call changes nothing.

    Returns:
        The same model.

    Examples:
        >>> from seqjepa import SeqJEPA
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=4)          # then: fully_shard(model)
        >>> register_forward_methods(model) is model
        True
    """
    if not dist.is_available() or not dist.is_initialized():
        return model  # nothing can be sharded
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    aggregator = getattr(model, "aggregator", None)
    ways_in = [name for name in WAYS_IN if hasattr(aggregator, name)]
    if isinstance(aggregator, nn.Module) and isinstance(aggregator, FSDPModule):
        for name in ways_in:
            if name not in vars(aggregator):
                register_fsdp_forward_method(aggregator, name)
    if not isinstance(model, FSDPModule) or "forward" in vars(model):
        return model
    inside = [False]
    places: list[tuple[Any, str]] = [(model, name) for name in METHODS if hasattr(model, name)]
    places += [(aggregator, name) for name in ways_in]
    target = getattr(model, "target", None)
    for owner, name in [*places, *([(target, "forward")] if isinstance(target, nn.Module) else [])]:
        plain = getattr(owner, name)
        model._gathering = plain
        register_fsdp_forward_method(model, "_gathering")  # which puts a method that gathers in its place
        setattr(owner, name, _outermost(plain, model.__dict__.pop("_gathering"), inside))
    model.forward = _outermost(model.forward, model.forward, inside)
    return model


def _outermost(plain: Callable[..., Any], gathering: Callable[..., Any], inside: list[bool]) -> Callable[..., Any]:
    """A method that gathers, unless it is called by one that has."""

    @functools.wraps(plain)
    def method(*args: Any, **kwargs: Any) -> Any:
        if inside[0]:
            return plain(*args, **kwargs)
        inside[0] = True
        try:
            return gathering(*args, **kwargs)
        finally:
            inside[0] = False

    return method
