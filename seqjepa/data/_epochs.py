"""An epoch: which items make up its batches on each rank, and the items themselves, seeded."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import Dataset

from seqjepa import distributed
from seqjepa.data.seeding import GlobalStates, derive_seed, seeded_items

__all__ = ["EpochOrder", "SeededItems", "on_the_cpu"]


class EpochOrder:
    """Which items make up each batch of an epoch on one rank: a batch sampler of (epoch, index) pairs.

    The epoch travels with the index, so that workers which persist over epochs know it. Ranks that are None are those
    of torch.distributed.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        if (rank is None) != (world_size is None):
            raise ValueError(
                f"rank and world_size go together; got rank={rank} and world_size={world_size}. Give both."
            )
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"Ranks go from 0 to world_size − 1; got rank {rank} of {world_size}.")
        self.length, self.batch_size, self.seed = length, batch_size, operator.index(seed)
        self.shuffle, self.drop_last, self._given = shuffle, drop_last, (rank, world_size)
        self._start = (0, 0)
        if rank is not None or not distributed.awaited():
            self.check()

    @property
    def rank(self) -> int:
        """Of this process, now."""
        return distributed.rank() if self._given[0] is None else self._given[0]

    @property
    def world_size(self) -> int:
        """The number of ranks, now."""
        if self._given[1] is not None:
            return self._given[1]
        if distributed.awaited():
            raise RuntimeError(
                f"WORLD_SIZE says that this is one of {distributed.awaited()} processes, and torch.distributed, "
                "which tells a loader the rank of this one, is not started: each would load the same batches. Call "
                "torch.distributed.init_process_group() first, or build the loader with rank=… and world_size=…"
            )
        return distributed.world_size()

    def check(self) -> None:
        """Raise where an epoch has no batch."""
        world_size = self.world_size
        if len(self) == 0:
            raise ValueError(
                f"An epoch needs at least one batch; {self.length} items over {world_size} "
                f"rank{'s' * (world_size != 1)} are {self.length // world_size} each, and batch_size is "
                f"{self.batch_size}{' with drop_last=True' if self.drop_last else ''}. "
                "Take a smaller batch_size, or look at why the dataset is so small."
            )

    def settings(self) -> dict[str, int | bool]:
        """All that decides what a batch's number stands for, but the rank."""
        names = ("seed", "length", "batch_size", "world_size", "shuffle", "drop_last")
        return {name: getattr(self, name) for name in names}

    def start_at(self, epoch: int, batch: int) -> None:
        """What the next iteration begins with."""
        self._start = (epoch, batch)

    def __len__(self) -> int:
        """Batches in an epoch."""
        share = self.length // self.world_size
        return share // self.batch_size if self.drop_last else -(-share // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """The batches that are left of the epoch. Not a generator: the start is read now, not at the first batch."""
        epoch, first = self._start
        indices, size = self.indices(epoch), self.batch_size
        starts = range(first * size, len(self) * size, size)
        return ([(epoch, index) for index in indices[start : start + size]] for start in starts)

    def indices(self, epoch: int) -> list[int]:
        """The items of this rank in one epoch, in order."""
        if self.shuffle:
            generator = torch.Generator("cpu").manual_seed(derive_seed("order", self.seed, epoch))
            order = torch.randperm(self.length, generator=generator, device="cpu")
        else:
            order = torch.arange(self.length, device="cpu")
        share = self.length // self.world_size
        mine: list[int] = order[: share * self.world_size][self.rank :: self.world_size].tolist()
        return mine


class SeededItems(Dataset[Any]):
    """A dataset asked for (epoch, index) pairs; what an item draws depends on the pair and the seed alone."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        # The global generators that are seeded for each item: those that items were seen to draw from, and torch's,
        # which takes no time and which items draw from without a trace, by torch.random.fork_rng().
        self._seeded = {"torch"}

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[tuple[int, Any]]:
        """All items of a batch with their indices, made on the CPU; the global generators are left as they were."""
        before, moved = GlobalStates(), None  # None: not known yet
        with on_the_cpu():
            try:
                while True:
                    error, moved = None, None
                    try:
                        items = self._items(keys)
                    except Exception as raised:  # by what was drawn, maybe: then it is drawn again, seeded
                        error = raised
                    moved = before.moved()
                    if moved <= self._seeded:
                        if error is not None:
                            raise error
                        return items
                    self._seeded |= moved
            finally:
                if moved is None:  # broken off
                    before.restore()
                else:
                    before.restore(only=moved)

    def _items(self, keys: Sequence[tuple[int, int]]) -> list[tuple[int, Any]]:
        with seeded_items(self.seed) as begin:
            items = []
            for epoch, index in keys:
                begin(epoch, index, self._seeded)
                items.append((index, self.dataset[index]))
            return items


def on_the_cpu() -> AbstractContextManager[Any]:
    """Inside, the default device is the CPU. Not entered where it is that already: it would slow each call of torch."""
    try:
        if torch.empty(0).device.type == "cpu":
            return nullcontext()
    except RuntimeError:  # a GPU is the default, in a forked worker that can't use it
        pass
    return torch.device("cpu")
