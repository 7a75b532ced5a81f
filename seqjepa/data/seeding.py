"""Seeds that do not collide: one stream of random numbers for each batch, each item, each epoch's order."""

from __future__ import annotations

import ctypes
import hashlib
import operator
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils.data import Dataset

__all__ = ["SeededDataset", "batch_generator", "derive_seed", "isolated_rng", "seed_globals"]


def derive_seed(*parts: int | str) -> int:
    """A seed from a list of numbers and names: the first 63 bits of the BLAKE2b hash of the list.

    A sum such as `seed + epoch + rank` gives rank 1 of epoch 0 the stream of rank 0 of epoch 1. A hash gives each list
    a seed of its own, and neighbouring lists seeds that have nothing in common.

    Args:
        parts: whole numbers and names, in an order of your choice; at least one.

    Returns:
        A number in [0, 2⁶³), the same on every machine and in every version of Python.

    Raises:
        TypeError: a part that is neither a whole number nor a name.
        ValueError: no parts.

    Examples:
        >>> derive_seed(0, 1) != derive_seed(1, 0)
        True
        >>> derive_seed("order", 0, 7)
        8513930683133252023
    """
    if not parts:
        raise ValueError("A seed is derived from at least one number or name; got none.")
    canonical = []
    for part in parts:
        try:
            canonical.append(part if isinstance(part, str) else int(operator.index(part)))
        except TypeError:
            raise TypeError(
                f"A seed is derived from whole numbers and names; got {part!r} of type {type(part).__name__}. "
                "Convert it with int() or str()."
            ) from None
    digest = hashlib.blake2b(repr(canonical).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def batch_generator(
    seed: int, *, epoch: int = 0, rank: int = 0, batch: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator for one batch of one epoch on one rank: all that a loop of your own needs to hand to a sampler.

    Every batch starts a stream of its own, so a run that is resumed at any batch goes on exactly as it would have.

    Args:
        seed: of the run.
        epoch: number of the pass over the data, from 0.
        rank: number of this process, from 0.
        batch: number of the batch in its epoch, from 0.
        device: where the generator draws. Generators of a CPU and of a GPU give different numbers for one seed.

    Returns:
        A generator on `device`. A CPU generator keeps 32 bits of its seed: among 10,000 batches two share a stream with
        a chance of one in a hundred, and then they do so on different images.

    Raises:
        TypeError: a number that is not whole.

    Examples:
        >>> import torch
        >>> torch.rand(2, generator=batch_generator(0, epoch=3, rank=1, batch=7))
        tensor([0.8012, 0.2566])
    """
    return torch.Generator(device).manual_seed(derive_seed("batch", seed, epoch, rank, batch))


def seed_globals(seed: int, *, only: Collection[str] = ("torch", "random", "numpy")) -> None:
    """Seed the global generators of torch (CPU), Python and, where it is loaded, NumPy; or only those named."""
    if "torch" in only:
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would seed the GPU's generators too
    if "random" in only:
        random.seed(seed)
    if "numpy" in only and (numpy := sys.modules.get("numpy")) is not None:
        # The 1 sets it apart from Python's generator, which is the same one: from equal words it draws equal numbers.
        numpy.random.seed([seed & 0xFFFFFFFF, seed >> 32, 1])


class GlobalStates:
    """How the global generators of torch (CPU), Python and NumPy stood when this was made."""

    def __init__(self) -> None:
        numpy = sys.modules.get("numpy")  # its random is loaded when it is first asked for
        self.torch, self.random = torch.default_generator.get_state(), random.getstate()
        self.numpy = None if numpy is None else _numpy_state(numpy)

    def restore(self, only: Collection[str] = ("torch", "random", "numpy")) -> None:
        """Put them back, or only those named; NumPy's only if it was loaded then."""
        if "torch" in only:
            torch.default_generator.set_state(self.torch)
        if "random" in only:
            random.setstate(self.random)
        if self.numpy is not None and "numpy" in only:
            sys.modules["numpy"].random.set_state(self.numpy)
            _forget_numpy_state()

    def moved(self) -> set[str]:
        """Which of them something has been drawn from, or that was seeded, since."""
        now = GlobalStates()
        moved = set() if torch.equal(self.torch, now.torch) else {"torch"}
        if self.random != now.random:
            moved.add("random")
        if self.numpy is None or now.numpy is None or self.numpy is now.numpy:
            return moved if self.numpy is now.numpy else moved | {"numpy"}
        same = self.numpy[2:] == now.numpy[2:] and (self.numpy[1] == now.numpy[1]).all()
        return moved if same else moved | {"numpy"}


_KNOWN: tuple[bytes | None, Any] = (None, None)  # what NumPy's generator held in memory, and the state that this was


def _numpy_state(numpy: Any) -> Any:
    """`numpy.random.get_state()`, which takes as long as ten items do: read only if the generator's memory has changed.

    Not in that memory is the second of two normal numbers, kept for the next draw: while there is one, it is read.
    """
    global _KNOWN
    held = _numpy_memory(numpy)
    if held is None or held != _KNOWN[0]:
        state = numpy.random.get_state()
        _KNOWN = (None if held is None or state[3] else held, state)
    return _KNOWN[1]


def _forget_numpy_state() -> None:
    """After a state was set: its memory may be one that is known, and its kept normal number another."""
    global _KNOWN
    _KNOWN = (None, None)


def _numpy_memory(numpy: Any) -> bytes | None:
    """The words of the global Mersenne twister and its place in them; None of another generator, or of old NumPy."""
    generator: Any = getattr(numpy.random, "get_bit_generator", lambda: None)()
    if type(generator) is not numpy.random.MT19937:
        return None
    return ctypes.string_at(generator.ctypes.state_address, 4 * 625)


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed the global generators inside a `with` block, and leave them outside as they were.

    For code that draws from the global generators of torch (CPU), NumPy (where it is loaded) or Python, such as
    the transforms of torchvision: inside the block it draws the same numbers each time.

    Args:
        seed: at least 0; [`derive_seed`][seqjepa.data.derive_seed] makes one of several numbers.

    Examples:
        >>> import torch
        >>> with isolated_rng(derive_seed(0, "crops")):
        ...     first = torch.rand(3)
        >>> with isolated_rng(derive_seed(0, "crops")):
        ...     print(torch.equal(first, torch.rand(3)))
        True
    """
    states = GlobalStates()
    try:
        seed_globals(seed)
        yield
    finally:
        states.restore()


class SeededDataset(Dataset[Any], ABC):
    """A dataset whose items depend on an index and on a generator: random crops, random views of an object.

    Write [`draw`][seqjepa.data.SeededDataset.draw] and `__len__`.
    [`ViewLoader`][seqjepa.data.ViewLoader] hands every item a generator of its own, also where this dataset is inside
    another one that asks it for items by index: `Subset`, `ConcatDataset`, or a class of your own. Elsewhere,
    `dataset[i]` draws the same item each time, another one after `set_epoch`.

    Attributes:
        seed: of the items that `dataset[i]` draws.
        epoch: of the items that `dataset[i]` draws.

    Examples:
        >>> import torch
        >>> class Noise(SeededDataset):
        ...     def __len__(self):
        ...         return 10
        ...     def draw(self, index, generator):
        ...         return torch.rand(3, 8, 8, generator=generator)
        >>> noise = Noise()
        >>> torch.equal(noise[4], noise[4]), torch.equal(noise[4], noise[5])
        (True, False)
    """

    seed: int = 0
    epoch: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def draw(self, index: int, generator: torch.Generator) -> Any:
        """Item `index`, with whatever is random in it drawn from the generator (a CPU one)."""

    def set_epoch(self, epoch: int) -> None:
        """Let `dataset[i]` draw the items of another epoch.

        A ViewLoader has an epoch of its own, and doesn't look at this one. Worker processes hold copies of a dataset:
        with a DataLoader of your own and `persistent_workers=True` they would not learn of it.
        """
        self.epoch = operator.index(epoch)

    def __getitem__(self, index: int) -> Any:
        """Item `index` of this seed and epoch; negative indices count from the end."""
        index = operator.index(index)
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"Index {index} is out of range for {length} items, 0 to {length - 1}.")
        index %= length
        item = _ITEM.get()
        if item is None:
            return self.draw(index, item_generator(self.seed, self.epoch, index))
        return self.draw(index, item.generator(self, index))


class _Item:
    """The item of a loader that is made now: the streams of all that SeededDatasets are asked for on its behalf.

    The first gets the stream of the item, so that a dataset draws the same inside a `Subset` of all as by itself; what
    else is asked for gets streams of its own. What is asked for twice is the same twice, as it is without a loader.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.key = seed, (seed, 0, 0)
        self.asked: dict[tuple[int, int], tuple[int, SeededDataset]] = {}  # a dataset that is held keeps its id

    def begin(self, epoch: int, index: int) -> None:
        self.key = (self.seed, epoch, index)
        self.asked.clear()

    def generator(self, dataset: SeededDataset, index: int) -> torch.Generator:
        number, _ = self.asked.setdefault((id(dataset), index), (len(self.asked), dataset))
        return item_generator(*self.key, *([number] if number else []))


_ITEM: ContextVar[_Item | None] = ContextVar("item", default=None)


@contextmanager
def seeded_items(seed: int) -> Iterator[Callable[[int, int, Collection[str]], None]]:
    """A function of epoch, index and names of global generators, to call before each item.

    Until the next call, SeededDatasets at any depth and those global generators draw what seed, epoch and index say.
    """
    seeds: dict[int, Callable[[int], int]] = {}  # by epoch
    item = _Item(seed)

    def begin(epoch: int, index: int, only: Collection[str]) -> None:
        if only:
            if epoch not in seeds:
                seeds[epoch] = _item_seeds(seed, epoch)
            seed_globals(seeds[epoch](index), only=only)
        item.begin(epoch, index)

    token = _ITEM.set(item)
    try:
        yield begin
    finally:
        _ITEM.reset(token)


def _item_seeds(seed: int, epoch: int) -> Callable[[int], int]:
    """`derive_seed("item", seed, epoch, index)` as a function of the index; what all items share is hashed once."""
    shared = hashlib.blake2b(repr(["item", seed, epoch])[:-1].encode(), digest_size=8)

    def of(index: int) -> int:
        whole = shared.copy()
        whole.update(f", {index}]".encode())
        return int.from_bytes(whole.digest(), "little") >> 1

    return of


def item_generator(seed: int, epoch: int, index: int, *more: int) -> torch.Generator:
    """The CPU generator of one item in one epoch, or of one more thing that is drawn for it."""
    return torch.Generator("cpu").manual_seed(derive_seed("item", seed, epoch, index, *more))
