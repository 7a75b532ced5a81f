"""Weights that torch shards over ranks (`fully_shard`, tensor parallelism), as one rank holds them."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

__all__ = ["gathered", "is_sharded", "reshard", "same_shards"]


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


def same_shards(mine: Any, theirs: Any) -> tuple[Tensor, Tensor]:
    """What this rank holds of `mine`, to be written to, and what belongs there of `theirs`, sharded alike or not.

    Nothing is sent where both are sharded alike or `theirs` is whole. All ranks must come by otherwise.
    """
    if not is_sharded(mine):
        return mine, gathered(theirs)
    from torch.distributed.tensor import DTensor, Replicate

    mesh = mine.device_mesh
    if is_sharded(theirs) and theirs.device_mesh != mesh:
        theirs = gathered(theirs)
    if not is_sharded(theirs):
        theirs = DTensor.from_local(theirs, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return mine.to_local(), theirs.redistribute(placements=mine.placements).to_local()
