"""Any dataset of images into batches of views: loaded by workers, seeded per item and per batch, made on the device."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from seqjepa.data._epochs import EpochOrder, SeededItems, on_the_cpu
from seqjepa.data._images import unit_floats
from seqjepa.data.collation import ImageBatch, collate_named
from seqjepa.data.seeding import batch_generator
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
            with on_the_cpu():  # DataLoader draws a seed on the default device
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
            return batch._replace(views=unit_floats(batch.views))
        if self.sampler is None:
            raise TypeError(
                "Images need a sampler that makes views of them; got none. Pass one as the second argument, such as "
                "seqjepa.data.RotatedViews(num_views=4)."
            )
        images = unit_floats(batch.images)
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


def _collate_items(items: Sequence[tuple[int, Any]]) -> ImageBatch | ViewSequence:
    return collate_named([item for _, item in items], [f"item {index} of the dataset" for index, _ in items])


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
