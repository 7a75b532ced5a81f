"""Weights that torch shards over ranks (`fully_shard`, tensor parallelism), as one rank holds them."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

__all__ = ["gathered", "held", "is_sharded", "plain_type", "reshard", "sharded_as"]


def is_sharded(value: Any) -> bool:
    """Whether a value is a DTensor. Asks without importing them, which takes a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def reshard(*modules: nn.Module) -> None:
    """Let FSDP put the shards of these modules back, where a pass left whole weights in their places.

    Those are copies: what is written to them is lost. FSDP registers the shards again when a module is asked for its
    state, whichever module above it was sharded.

    Raises:
        ValueError: weights inside FullyShardedDataParallel, the older FSDP, which have neither shape nor place here.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return
    for module in modules:
        if any(getattr(parameter, "_fsdp_flattened", False) for parameter in module.parameters()):
            raise ValueError(
                "FullyShardedDataParallel flattens weights into one, and an average has nothing to follow; use "
                "torch.distributed.fsdp.fully_shard, which keeps them."
            )
        if any(part._state_dict_pre_hooks for part in module.modules()):
            module.state_dict()


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, on every rank: all must come by. A tensor that is not sharded is itself."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def sharded_as(mine: Any, theirs: Tensor) -> Tensor:
    """The values of `theirs` in shards like those of `mine`, or whole where it is whole.

    Nothing is sent where both are sharded alike or `theirs` is whole. All ranks must come by otherwise.
    """
    if not is_sharded(mine):
        return gathered(theirs)
    from torch.distributed.tensor import DTensor, Replicate

    shards: Any = theirs
    if is_sharded(shards) and shards.device_mesh != mine.device_mesh:
        shards = gathered(shards)
    if not is_sharded(shards):
        copies = [Replicate()] * mine.device_mesh.ndim
        shards = DTensor.from_local(shards, mine.device_mesh, copies, run_check=False)
    moved: Tensor = shards.redistribute(placements=mine.placements)
    return moved


def held(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; to write to it is to write to the tensor."""
    mine: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return mine


def plain_type(module: Any) -> type:
    """The class of a module as it was before `fully_shard`, which makes one of its own."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(module, fsdp.FSDPModule):
        return type(module)
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, fsdp.FSDPModule))
