"""An evaluation over ranks: batches that all are given alike are shared out in turn, and features joined."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from seqjepa.distributed import gather, gather_objects, rank, world_size
from seqjepa.types import ViewSequence

__all__ = ["Shares"]


class Shares:
    """A rank's share of the batches: every W-th, from its own number on; all of them where nothing is shared out."""

    def __init__(self, over_ranks: bool) -> None:
        self.rank, self.world = (rank(), world_size()) if over_ranks else (0, 1)
        self.sizes: list[int] = []
        self.seen = hashlib.blake2b(digest_size=16)

    def of(self, batches: Iterable[ViewSequence]) -> Iterator[tuple[ViewSequence, bool]]:
        """The batches of this rank, and whether they count.

        All ranks come by equally often, since a sharded model gathers its weights at each batch: in the last round, a
        rank for which there is none left is given another's, which does not count.
        """
        mine: ViewSequence | None = None
        for batch in batches:
            turn = len(self.sizes) % self.world
            self._note(batch)
            if turn == self.rank:
                mine = batch
            if turn == self.world - 1 and mine is not None:
                yield mine, True
                mine = None
        if len(self.sizes) % self.world:
            yield (batch, False) if mine is None else (mine, True)

    def _note(self, batch: ViewSequence) -> None:
        self.sizes.append(len(batch.views))
        if self.world > 1:
            for tensor in (batch.actions, batch.labels):
                if tensor is not None:
                    self.seen.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def joined(self, encode: Callable[[], Any]) -> Any:
        """The features of all ranks, in the order of the sequences, on every rank; what one raises is raised on all."""
        if self.world == 1:
            return encode()
        features: Any = None
        problem: Exception | None = None
        try:
            features = encode()
        except Exception as error:
            problem = error
        told = gather_objects((
            None if problem is None else f"{type(problem).__name__}: {problem}",
            (self.sizes, self.seen.hexdigest()),
            {} if features is None else {name: (x.shape[1:], x.dtype) for name, x in _tensors(features).items()},
        ))  # fmt: skip
        if problem is not None:
            raise problem
        for number, (theirs, given, made) in enumerate(told):
            if theirs is not None:
                raise RuntimeError(f"On rank {number}: {theirs}")
            if given != told[0][1]:
                raise ValueError(
                    "over_ranks shares out sequences that every rank is given alike, all of them; ranks 0 and "
                    f"{number} were given others. Give all ranks the same, such as a ViewLoader with rank=0 and "
                    "world_size=1, or extract without over_ranks."
                )
            if made != told[0][2]:
                raise ValueError(
                    "Sequences that are evaluated together must have one number of views, and the same must be known "
                    f"of each (labels, parameters, group); got {told[0][2]} on rank 0 and {made} on rank {number}."
                )
        return replace(features, **{name: self._in_order(x) for name, x in _tensors(features).items()})

    def _in_order(self, x: Tensor) -> Tensor:
        rows = torch.arange(sum(self.sizes), device="cpu").split(self.sizes)
        of_rank = [torch.cat([*rows[number :: self.world], rows[0][:0]]) for number in range(self.world)]
        order = torch.cat(of_rank).argsort().to(x.device)
        return gather(x, [len(mine) for mine in of_rank])[order]


def _tensors(features: Any) -> dict[str, Tensor]:
    values = {field.name: getattr(features, field.name) for field in fields(features)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
