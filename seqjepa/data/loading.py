"""Any dataset of images into batches of views: loaded by workers, seeded per item and per batch, made on the device."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from seqjepa import distributed
from seqjepa.data.collation import ImageBatch, collate_named
from seqjepa.data.seeding import GlobalStates, batch_generator, derive_seed, seeded_items
from seqjepa.types import ViewSequence

__all__ = ["ViewLoader"]


class ViewLoader:
    """Batches of views of any dataset of images, on a device.

    Each pass over the loader is an epoch: the images in a new order, loaded by worker processes, moved to the device as
    uint8 where they are uint8, turned into floats in [0, 1] there, and handed to the sampler with a generator.

    Seeds. What comes out depends on the seed, the epoch, the rank and the number of ranks, and on the kind of device,
    where the sampler draws; not on the number of workers, nor on what else the program draws. Random transforms in the
    dataset find the global generators of torch, NumPy and Python seeded for this item of this epoch; the state that
    they had before is put back. (Seeding NumPy's and Python's takes longer than many items do: they are seeded from the
    first batch on that is seen to draw from them, which is loaded once more. Draws whose traces an item wipes out, by
    putting their state back itself, are not seen.) A [`SeededDataset`][seqjepa.data.SeededDataset] is handed a
    generator for each item, at any depth: inside `Subset`, `ConcatDataset` or a dataset of your own that asks it for
    items by index. Items are loaded on the CPU, whatever `torch.set_default_device` says.

    Ranks. torch.distributed is asked for them when a pass begins, so a loader may be built before the process group
    is. All ranks draw one order of the N images of an epoch; rank r takes every `world_size`-th, from the r-th on.
    Each rank takes ⌊N / world_size⌋ of them, none twice: the N mod world_size last of the order are left out of this
    epoch, and with `drop_last` those that don't fill a batch. With `shuffle` they are others each epoch.

    Epochs. A pass goes on with the epoch after the last one, also where that was broken off. `set_epoch` chooses the
    next. Several passes at a time don't disturb each other: each is of its own epoch, with workers of its own.

    Evaluation wants `shuffle=False, drop_last=False`: by default the items that don't fill a batch are left out, and
    would never be scored. On several ranks, `rank=0, world_size=1` lets each of them see all items.

    Args:
        dataset: with `len` and an index; items as [`collate`][seqjepa.data.collate] takes them.
        sampler: called as `sampler(images, generator=g)`, images (B, C, H, W) in [0, 1], and with `saliency=maps`,
            (B, H, W), where the items have them; returns a [`ViewSequence`][seqjepa.types.ViewSequence]. None where the
            items are ViewSequences already.
        batch_size: sources in a batch, on each rank, at least 1.
        seed: of the run.
        device: where the batches are made.
        num_workers: processes that load; 0 loads in this one.
        shuffle: a new order each epoch, or always that of the dataset.
        drop_last: leave out a last batch of less than `batch_size`.
        rank: of this process; None asks torch.distributed when a pass begins, and is 0 where that is not in use.
        world_size: number of ranks; None likewise, else 1.
        loader_options: more for the `torch.utils.data.DataLoader` underneath, such as
            `{"prefetch_factor": 4, "multiprocessing_context": "spawn"}`. Workers persist over epochs and memory is
            pinned for a GPU, unless said otherwise here.

    Raises:
        ValueError: no batch in an epoch; a size below its least; a rank outside 0 … world_size − 1; `in_order=False`.
        TypeError: a dataset without length or index; a sampler that returns something else, or takes no saliency where
            the items have it.
        RuntimeError: a pass, a length or a state asked for in one of several processes (by WORLD_SIZE in the
            environment) before torch.distributed was started.

    Examples:
        >>> import torch
        >>> from seqjepa.types import ViewSequence
        >>> def flips(images, *, generator=None):
        ...     flip = torch.rand(len(images), generator=generator).lt(0.5).float()
        ...     flipped = torch.where(flip.view(-1, 1, 1, 1) > 0, images.flip(-1), images)
        ...     return ViewSequence(torch.stack([images, flipped], dim=1), flip.view(-1, 1, 1))
        >>> images = torch.randint(0, 256, (100, 3, 8, 8), dtype=torch.uint8)
        >>> loader = ViewLoader(list(zip(images, range(100))), flips, batch_size=32, seed=0)
        >>> for batch in loader:
        ...     pass
        >>> len(loader), batch.views.shape, batch.actions.shape, batch.labels.shape
        (3, torch.Size([32, 2, 3, 8, 8]), torch.Size([32, 1, 1]), torch.Size([32]))
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        sampler: Callable[..., ViewSequence] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        loader_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.order = EpochOrder(
            _length(dataset), batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, rank=rank,
            world_size=world_size,
        )  # fmt: skip
        self.sampler, self.device, self.seed = sampler, torch.device(device), seed
        self._takes_saliency = _takes_saliency(sampler)
        self._next, self._following = (0, 0), 1
        self._running: list[_Pass] = []
        options: dict[str, Any] = {
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "pin_memory": self.device.type == "cuda",
            **(loader_options or {}),
        }
        if not options.get("in_order", True):
            raise ValueError(
                "A batch's random numbers hang on its place in the epoch; with in_order=False that would hang on the "
                "workers. Leave it out of loader_options."
            )
        # Workers that persist serve one pass at a time. A pass beside another gets some for itself.
        self._persistent, self._temporary = (
            DataLoader(
                SeededItems(dataset, seed),
                batch_sampler=cast(Any, self.order),
                collate_fn=_collate_items,
                generator=torch.Generator("cpu"),  # for the workers' seeds: not from the global generator
                **{**options, "persistent_workers": persistent},
            )
            for persistent in (options["persistent_workers"], False)
        )
        self._lent = False

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.order)

    @property
    def batch_sampler(self) -> EpochOrder:
        """What makes up the batches. Tools that find a `sampler` here ask for this too; ours makes views."""
        return self.order

    def __iter__(self) -> Iterator[ViewSequence]:
        """One pass over the data: the rest of the epoch where a state was loaded, else a whole one."""
        self.order.check()  # of the ranks there are now
        this = _Pass(*self._next)
        self._next, self._following = (self._following, 0), self._following + 1
        borrower = not self._lent
        self._lent = True
        try:
            self.order.start_at(this.epoch, this.batch)
            with _on_the_cpu():  # DataLoader draws a seed on the default device
                batches = iter(self._persistent if borrower else self._temporary)
            for number, batch in enumerate(batches, start=this.batch):
                generator = batch_generator(
                    self.seed, epoch=this.epoch, rank=self.order.rank, batch=number, device=self.device
                )
                sequence = self._views(batch, generator)
                this.batch = number + 1
                self._stands_in(this)
                yield sequence
        finally:  # also when the caller breaks the pass off
            self._lent = self._lent and not borrower
            self._running = [other for other in self._running if other is not this]

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch, from its first batch."""
        epoch = operator.index(epoch)
        if epoch < 0:
            raise ValueError(f"Epochs count from 0; got {epoch}.")
        self._next, self._following, self._running = (epoch, 0), epoch + 1, []

    def state_dict(self) -> dict[str, int | bool]:
        """Where the loader stands: all that a loader of the same settings needs to go on as this one will.

        While a pass is under way that is the rest of it: after the loop's last batch, after `break`, and after an
        exception, it is the next epoch. To go on in the middle of an epoch, take the state inside the loop.

        An iterator that you hold in a variable is a pass under way. Of several, the state is that of the one that
        handed out a batch last; when that one has come to its end, it is the next epoch.
        """
        epoch, batch, following = *self._next, self._following
        if self._running:
            this = self._running[-1]
            epoch, batch, following = this.epoch, this.batch, self._next[0]
        return {"epoch": epoch, "batch": batch, "next_epoch": following, **self.order.settings()}

    def load_state_dict(self, state: Mapping[str, int | bool]) -> None:
        """Let the next pass go on where a loader of the same settings stood.

        Raises:
            ValueError: keys that are missing or unknown; in the middle of an epoch, other settings than were saved.
        """
        settings = self.order.settings()
        if state.keys() | {"next_epoch"} != {"epoch", "batch", "next_epoch"} | settings.keys():
            raise ValueError(
                f"A loader's state has the keys epoch, batch, next_epoch, {', '.join(settings)}; got "
                f"{', '.join(state) or 'none'}."
            )
        epoch, batch = int(state["epoch"]), int(state["batch"])
        following = int(state.get("next_epoch", epoch + 1))  # version 0.1 did not save it
        changed = [f"{name} was {state[name]} and is {now}" for name, now in settings.items() if state[name] != now]
        if batch and changed:
            raise ValueError(
                f"A loader goes on in the middle of an epoch only with the settings it had; {', '.join(changed)}. "
                f"Build it as before, or begin the next epoch with set_epoch({epoch + 1})."
            )
        if min(epoch, following) < 0 or not 0 <= batch < len(self):
            raise ValueError(
                f"Epochs count from 0, batches from 0 to {len(self) - 1}; got epoch {epoch}, batch {batch} and "
                f"next_epoch {following}."
            )
        self._next, self._following, self._running = (epoch, batch), following, []

    def _stands_in(self, this: _Pass) -> None:
        """A pass has handed out a batch: if it was its last, others count as under way only when they go on."""
        others = [other for other in self._running if other is not this]
        self._running = [*others, this] if this.batch < len(self) else []

    def _views(self, batch: ImageBatch | ViewSequence, generator: torch.Generator) -> ViewSequence:
        # A copy from a GPU to the CPU must be waited for.
        batch = batch.to(self.device, non_blocking=self.device.type not in ("cpu", "mps"))
        if isinstance(batch, ViewSequence):
            if self.sampler is not None:
                raise TypeError(
                    f"This dataset yields ViewSequences, which {_name(self.sampler)} cannot take; leave the sampler "
                    "out: ViewLoader(dataset, batch_size=…)."
                )
            return batch._replace(views=_unit_floats(batch.views))
        if self.sampler is None:
            raise TypeError(
                "Images need a sampler that makes views of them; got none. Pass one as the second argument, such as "
                "seqjepa.data.RotatedViews(num_views=4)."
            )
        images = _unit_floats(batch.images)
        if batch.saliency is None:
            sequence = self.sampler(images, generator=generator)
        elif self._takes_saliency:
            sequence = self.sampler(images, saliency=batch.saliency, generator=generator)
        else:
            raise TypeError(
                f"This dataset yields saliency maps, which {_name(self.sampler)} does not take. Build the dataset "
                "without them, or use a sampler that looks at them, such as seqjepa.data.SaccadeViews."
            )
        if not isinstance(sequence, ViewSequence):
            raise TypeError(
                f"A sampler returns a seqjepa.types.ViewSequence; {_name(self.sampler)} returned a "
                f"{type(sequence).__name__}."
            )
        return sequence if batch.labels is None else sequence._replace(labels=batch.labels)


class _Pass:
    """One pass over a loader: its epoch, and how many of the epoch's batches have been handed out."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch


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
        indices = self.indices(epoch)
        batches = [indices[b * self.batch_size : (b + 1) * self.batch_size] for b in range(first, len(self))]
        return iter([[(epoch, index) for index in batch] for batch in batches])

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
        before, moved = GlobalStates(), None
        with _on_the_cpu():
            try:
                while True:
                    error = None
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
                if moved is None or moved:
                    before.restore()

    def _items(self, keys: Sequence[tuple[int, int]]) -> list[tuple[int, Any]]:
        with seeded_items(self.seed) as begin:
            items = []
            for epoch, index in keys:
                begin(epoch, index, self._seeded)
                items.append((index, self.dataset[index]))
            return items


def _collate_items(items: Sequence[tuple[int, Any]]) -> ImageBatch | ViewSequence:
    return collate_named([item for _, item in items], [f"item {index} of the dataset" for index, _ in items])


def _on_the_cpu() -> AbstractContextManager[Any]:
    """Inside, the default device is the CPU. Not entered where it is that already: it would slow each call of torch."""
    try:
        if torch.empty(0).device.type == "cpu":
            return nullcontext()
    except RuntimeError:  # a GPU is the default, in a forked worker that can't use it
        pass
    return torch.device("cpu")


def _unit_floats(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _takes_saliency(sampler: Callable[..., ViewSequence] | None) -> bool:
    if sampler is None:
        return False
    parameters = inspect.signature(sampler).parameters.values()
    return any(p.name == "saliency" or p.kind is p.VAR_KEYWORD for p in parameters)


def _name(sampler: Callable[..., ViewSequence] | None) -> str:
    return getattr(sampler, "__name__", type(sampler).__name__)


def _length(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"A dataset has a length and items by index; {type(dataset).__name__} does not. For a stream, use a "
            "DataLoader with collate_fn=seqjepa.data.collate, and call the sampler with seqjepa.data.batch_generator."
        )
    return len(dataset)
