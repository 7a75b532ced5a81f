"""Several processes as one: gather and all-reduce with gradient, over torch.distributed. One process is the identity.

The convention, for everything here: a gradient is that of the *sum of all ranks' losses*. DistributedDataParallel and
FSDP average gradients over ranks, so what trains is the mean of the ranks' losses. Two kinds of loss then come out as
those of one process with the whole batch, W ranks of b rows each as one of W·b:

- a mean over the rows of each rank by itself, as the distance is: the mean of equal means is the mean;
- a value computed from all ranks' rows and equal on all of them, as
  [`VarianceCovariance`][seqjepa.VarianceCovariance] is: the mean of equal values is the value.

Every rank must come by, forward and backward: a rank that skips a call leaves the others waiting. Only the default
process group is used.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = [
    "all_reduce", "awaited", "broadcast_object", "gather", "gather_objects", "on_rank_0", "rank", "world_size",
]  # fmt: skip

T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0; 0 where torch.distributed is not in use.

    Examples:
        >>> rank(), world_size()
        (0, 1)
    """
    return dist.get_rank() if _in_use() else 0


def world_size() -> int:
    """How many processes there are; 1 where torch.distributed is not in use.

    Examples:
        >>> world_size()
        1
    """
    return dist.get_world_size() if _in_use() else 1


def awaited() -> int:
    """How many processes a launcher started (torchrun sets WORLD_SIZE) that torch.distributed doesn't join yet; else 0.

    The one thing that the package reads of its environment: a program that takes itself for the only one, and is not,
    does what all others do.

    Examples:
        >>> awaited()
        0
    """
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdecimal() and int(size) > 1 and not _in_use() else 0


def all_reduce(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sum over ranks of `x`, on every rank, with gradient: y = Σ_r x_r, dL/dx_r = Σ_s dL_s/dy.

    Half precision is summed in float32. Never waits for a GPU.

    Args:
        x: of one shape and dtype on all ranks.

    Returns:
        The sum; `x` itself in one process.

    Examples:
        >>> import torch
        >>> x = torch.randn(8, 3)
        >>> rows = all_reduce(x.new_tensor(len(x)))
        >>> mean = all_reduce(x.sum(0)) / rows                     # of all ranks' rows
        >>> torch.allclose(mean, x.mean(0))                        # here there is one rank
        True
    """
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)
    return total.to(x.dtype)


def gather(x: Shaped[Tensor, "N *rest"], rows: Sequence[int] | None = None) -> Shaped[Tensor, "total *rest"]:
    """The rows of all ranks, those of rank 0 first, on every rank, with gradient.

    Args:
        x: (N, …); N may differ between ranks and may be 0, the rest may not.
        rows: N of each rank, where all ranks know it. None asks them, which waits for the device.

    Returns:
        (Σ N, …); `x` itself in one process.

    Raises:
        ValueError: no axis of rows, or `rows` that are not those of the ranks.

    Examples:
        >>> import torch
        >>> x = torch.randn(8, 3, requires_grad=True)
        >>> gather(x).shape                                        # (W · 8, 3) on W ranks
        torch.Size([8, 3])
    """
    if x.ndim < 1:
        raise ValueError("Rows are gathered, so x needs an axis of them; got a tensor of shape (). Use x[None].")
    if rows is not None and (len(rows) != world_size() or rows[rank()] != len(x)):
        raise ValueError(f"rows has the number of rows of each rank; got {list(rows)}, and {len(x)} rows on {rank()}.")
    if world_size() == 1:
        return x
    if rows is None:
        mine = torch.tensor([len(x)], device=x.device)
        counts = [torch.empty_like(mine) for _ in range(world_size())]
        dist.all_gather(counts, mine)
        rows = cast("list[int]", torch.cat(counts).tolist())
    return cast(Tensor, _Gather.apply(x, tuple(rows)))


def gather_objects(value: T) -> list[T]:
    """A value of every rank, by rank, on every rank. For what is small and rare: it is pickled, and waits.

    Examples:
        >>> gather_objects("mine")
        ['mine']
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T) -> T:
    """The value of rank 0, on every rank. For what is small and rare: it is pickled, and waits.

    Examples:
        >>> broadcast_object("of rank 0")
        'of rank 0'
    """
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_rank_0(act: Callable[[], T]) -> T:
    """Act on rank 0 while the others wait: what it returns is returned on all ranks, what it raises is raised on all.

    Args:
        act: takes nothing; returns what can be pickled.

    Examples:
        >>> on_rank_0(lambda: "written")
        'written'
    """
    if world_size() == 1:
        return act()
    value: Any = None
    problem: Exception | None = None
    if rank() == 0:
        try:
            value = act()
        except Exception as error:
            problem = error
    theirs, value = broadcast_object((None if problem is None else _told(problem), value))
    if problem is not None:
        raise problem
    if theirs is not None:
        kind, arguments = theirs
        raise kind(*arguments)
    return cast(T, value)


def _told(problem: Exception) -> tuple[type[Exception], tuple[Any, ...]]:
    """An error as another rank can raise it."""
    try:
        type(problem)(*problem.args)
        pickle.dumps((type(problem), problem.args))
    except Exception:  # whatever an error's own making asks for
        return RuntimeError, (f"On rank 0: {type(problem).__name__}: {problem}",)
    return type(problem), problem.args


class _Sum(torch.autograd.Function):
    """Its own adjoint: the gradient of Σ_s L_s by x_r is the sum of the ranks' gradients by the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return cast(Tensor, _Sum.apply(gradients[0]))


class _Gather(torch.autograd.Function):
    """Rows of all ranks in one; back, each rank takes its rows of the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: tuple[int, ...]) -> Tensor:
        ctx.start = sum(rows[: rank()])
        ctx.rows = rows[rank()]
        most = max(rows)
        sent = x.new_zeros(most, *x.shape[1:])  # collectives want one shape: short ranks are filled up
        sent[: len(x)] = x
        received = [torch.empty_like(sent) for _ in rows]
        dist.all_gather(received, sent)
        return torch.cat([part[:n] for part, n in zip(received, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradients[0])[ctx.start : ctx.start + ctx.rows], None


def _in_use() -> bool:
    return dist.is_available() and dist.is_initialized()
