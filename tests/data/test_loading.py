"""Any dataset feeds a sampler: what comes out hangs on the seed, the epoch and the rank, and on nothing else."""

import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split

from seqjepa.data._epochs import EpochOrder
from seqjepa.data._parameters import ObjectParameters
from seqjepa.data.collation import ImageBatch, Sample, collate
from seqjepa.data.loading import ViewLoader
from seqjepa.data.readers import WithSaliency
from seqjepa.data.seeding import GlobalStates, SeededDataset, batch_generator, derive_seed, isolated_rng, seeded_items
from seqjepa.groups import Translation
from seqjepa.types import ViewSequence


def noisy_pairs(images: Tensor, *, generator: torch.Generator | None = None) -> ViewSequence:
    """A sampler: each image, and the image moved by a random grey level."""
    shift = torch.rand(len(images), 1, generator=generator, device=images.device, dtype=images.dtype) / 10
    views = torch.stack([images, (images + shift[:, :, None, None]).clamp(0, 1)], dim=1)
    return ViewSequence(views, shift[:, None], group=Translation(1))


def looking(
    images: Tensor, *, saliency: Tensor | None = None, generator: torch.Generator | None = None
) -> ViewSequence:
    """A sampler that takes saliency, and hands it out as parameters."""
    return noisy_pairs(images, generator=generator)._replace(parameters=saliency)


class Numbered(Dataset[Any]):
    """Item i is a grey image of level i with label i, plus one draw from each global generator."""

    def __init__(self, length: int = 24) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        draws = [float(torch.rand(())), np.random.random(), random.random()]  # noqa: NPY002 - users' transforms do
        return torch.full((1, 2, 2), index, dtype=torch.uint8), torch.tensor([float(index), *draws])


class Drawn(SeededDataset):
    """Item i is noise drawn from the generator that is handed in."""

    def __len__(self) -> int:
        return 24

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        return Sample(torch.rand(3, 4, 4, generator=generator), index)


def passes(loader: ViewLoader, epochs: int = 1) -> list[ViewSequence]:
    return [batch for _ in range(epochs) for batch in loader]


def assert_same(a: list[ViewSequence], b: list[ViewSequence]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(tuple(one)[:4], tuple(other)[:4], rtol=0, atol=0)


def items(batches: list[ViewSequence]) -> list[int]:
    return [int(label[0]) for batch in batches if batch.labels is not None for label in batch.labels]


# Seeds


def test_no_two_batches_of_a_grid_of_seeds_epochs_ranks_and_batches_share_a_seed() -> None:
    grid = [("batch", s, e, r, b) for s in range(5) for e in range(10) for r in range(8) for b in range(100)]
    assert len({derive_seed(*key) for key in grid}) == len(grid)
    states = {batch_generator(s, epoch=e, rank=r, batch=b).initial_seed() for _, s, e, r, b in grid[:2000]}
    assert len(states) == 2000


def test_the_order_s_stream_is_no_batch_s() -> None:
    batches = {batch_generator(0, epoch=e, batch=b).initial_seed() for e in range(20) for b in range(20)}
    assert not batches & {derive_seed("order", 0, e) for e in range(20)}


def test_neighbouring_streams_are_uncorrelated() -> None:
    # 400 streams of 1,000 numbers that differ in one of seed, epoch, rank, batch by one: 79,800 correlations,
    # of deviation 1/sqrt(1000). The largest of so many normal ones lies near 4.6 deviations; a shared stream gives 31.
    keys: list[dict[str, Any]] = [
        {"epoch": e, "rank": r, "batch": b} for e in range(10) for r in range(8) for b in range(5)
    ]
    streams = torch.stack([torch.rand(1000, generator=batch_generator(0, **key)) for key in keys])
    correlation = torch.corrcoef(streams).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / 1000**0.5
    assert abs(correlation.std().item() * 1000**0.5 - 1) < 0.02


def test_a_seed_is_a_known_function_of_its_parts() -> None:
    assert derive_seed("order", 0, 7) == 8513930683133252023
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("1") != derive_seed(1)
    assert derive_seed(int(np.int64(5))) == derive_seed(np.int64(5))  # type: ignore[arg-type]
    assert 0 <= derive_seed(-1) < 2**63
    with pytest.raises(TypeError, match=r"whole numbers and names; got 1\.5 of type float"):
        derive_seed(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one number or name; got none"):
        derive_seed()


def test_isolated_draws_repeat_and_leave_no_trace() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.random()), random.random()  # noqa: NPY002

    with isolated_rng(3):
        first = draw()
    torch.manual_seed(11), np.random.seed(11), random.seed(11)  # noqa: NPY002
    expected = draw()
    torch.manual_seed(11), np.random.seed(11), random.seed(11)  # noqa: NPY002

    def fail() -> None:
        with isolated_rng(3):
            assert draw() == first
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert draw() == expected


def test_the_generators_of_numpy_and_python_draw_different_numbers() -> None:
    for seed in range(3):
        with isolated_rng(derive_seed("item", seed)):  # above 32 bits
            assert {random.random() for _ in range(5)}.isdisjoint(np.random.random(5).tolist())  # noqa: NPY002


def test_a_seeded_dataset_repeats_its_items_until_the_epoch_changes() -> None:
    dataset = Drawn()
    first = dataset[5].image
    assert torch.equal(first, dataset[5].image)
    assert torch.equal(first, dataset[-19].image)
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[5].image)
    with pytest.raises(IndexError, match="Index 24 is out of range for 24 items, 0 to 23"):
        dataset[24]


# Datasets inside datasets


class Holder(Dataset[Any]):
    """A user's own wrapper: it knows nothing of seeds."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


class Averages(Holder):
    """An item is the mean of two, one of them asked for twice."""

    def __getitem__(self, index: int) -> Any:
        other = self.inner[(index + 1) % len(self.inner)]
        assert torch.equal(self.inner[index].image, self.inner[index].image)  # as without a loader
        assert not torch.equal(self.inner[index].image, other.image)
        return Sample((self.inner[index].image + other.image) / 2, self.inner[index].label)


class Framed(SeededDataset):
    """A seeded dataset that asks another one by index."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def draw(self, index: int, generator: torch.Generator) -> Any:
        item = self.inner[index]
        noise = torch.rand(item.image.shape, generator=generator)
        assert not torch.equal(noise, item.image)  # streams of their own
        return Sample((item.image + noise) / 2, item.label)


HELD: dict[str, Callable[[], Any]] = {
    "Subset": lambda: Subset(Drawn(), range(24)),
    "ConcatDataset": lambda: ConcatDataset([Drawn(), Drawn()]),
    "random_split": lambda: random_split(Drawn(), [12, 12], torch.Generator().manual_seed(0))[1],
    "nested": lambda: Subset(ConcatDataset([Subset(Drawn(), [3, 3, 5]), Subset(Drawn(), range(9))]), range(12)),
    "a user's": lambda: Holder(Holder(Drawn())),
    "a user's, of two": lambda: Averages(Drawn()),
    "a seeded one": lambda: Framed(Drawn()),
    "WithSaliency": lambda: WithSaliency(Subset(Drawn(), range(24)), torch.ones(24, 4, 4)),
}


@pytest.mark.parametrize("name", HELD)
def test_a_seeded_dataset_draws_anew_each_item_epoch_and_seed_whatever_holds_it(name: str) -> None:
    def drawn(seed: int, **settings: Any) -> Tensor:
        dataset = HELD[name]()
        loader = ViewLoader(dataset, looking, batch_size=len(dataset), shuffle=False, seed=seed, **settings)
        return torch.stack([batch.views[:, 0] for batch in passes(loader, epochs=2)])

    zero, one = drawn(0), drawn(1)
    drawings = torch.stack([zero, one]).flatten(0, 2).flatten(1)
    assert drawings.unique(dim=0).shape == drawings.shape  # no item twice
    assert torch.equal(zero, drawn(0))
    assert torch.equal(zero, drawn(0, num_workers=2))


def test_holding_a_dataset_changes_nothing_of_what_it_draws() -> None:
    expected = passes(ViewLoader(Drawn(), noisy_pairs, batch_size=5, seed=4), epochs=2)
    held: list[Dataset[Any]] = [Subset(Drawn(), range(24)), ConcatDataset([Drawn()]), Holder(Drawn())]
    for dataset in held:
        assert_same(passes(ViewLoader(dataset, noisy_pairs, batch_size=5, seed=4), epochs=2), expected)


def test_a_loader_leaves_what_is_asked_by_hand_as_it_was() -> None:
    dataset = Drawn()
    before = dataset[5].image
    loader = ViewLoader(Subset(dataset, range(24)), noisy_pairs, batch_size=5)
    for _ in loader:
        assert torch.equal(dataset[5].image, before)

    class Failing(Holder):
        def __getitem__(self, index: int) -> Any:
            raise KeyError("nothing there")

    with pytest.raises(KeyError, match="nothing there"):
        passes(ViewLoader(Failing(dataset), noisy_pairs, batch_size=5))
    assert torch.equal(dataset[5].image, before)


def test_a_dataset_that_overrides_its_items_is_asked_for_them() -> None:
    class Inverted(Drawn):
        def __getitem__(self, index: int) -> Sample:
            item = super().__getitem__(index)
            return Sample(1 - item.image, item.label)

    plain = passes(ViewLoader(Drawn(), noisy_pairs, batch_size=6))
    inverted = passes(ViewLoader(Inverted(), noisy_pairs, batch_size=6))
    for one, other in zip(plain, inverted, strict=True):
        torch.testing.assert_close(one.views[:, 0], 1 - other.views[:, 0])


# Batches


@pytest.mark.parametrize("dataset", [Numbered(), Drawn()], ids=["global generators", "SeededDataset"])
def test_equal_seeds_give_equal_batches_whatever_the_number_of_workers(dataset: Any) -> None:
    def batches(**settings: Any) -> list[ViewSequence]:
        return passes(ViewLoader(dataset, noisy_pairs, batch_size=5, **settings), epochs=2)

    expected = batches(seed=3)
    assert_same(expected, batches(seed=3, num_workers=1))
    assert_same(expected, batches(seed=3, num_workers=2))
    assert_same(expected, batches(seed=3, num_workers=2, loader_options={"persistent_workers": False}))
    assert not torch.equal(expected[0].views, batches(seed=4)[0].views)


def test_every_item_draws_anew_each_epoch_and_each_seed() -> None:
    def draws(seed: int) -> Tensor:
        loader = ViewLoader(Numbered(), noisy_pairs, batch_size=24, seed=seed)
        labels = [batch.labels for batch in passes(loader, epochs=2)]
        return torch.stack([part[part[:, 0].argsort()] for part in labels if part is not None])

    table = torch.cat([draws(0), draws(1)])  # (2 seeds × 2 epochs, 24 items, index and 3 draws)
    assert torch.equal(table[0, :, 0], torch.arange(24.0))
    assert table[:, :, 1:].flatten().unique().numel() == 4 * 24 * 3


def test_the_program_s_own_random_numbers_are_left_alone() -> None:
    def state() -> tuple[Any, ...]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), numpy_state[2:]  # type: ignore[index]

    before = state()
    for workers in (0, 2):
        loader = ViewLoader(Numbered(), noisy_pairs, batch_size=4, num_workers=workers)
        for _ in loader:
            assert state() == before
    assert state() == before


class Rarely(Dataset[Any]):
    """Plain images, but for one that draws from one global generator, or fails by what it draws; loads are counted."""

    def __init__(self, draw: Callable[[], float], worst: float = 2.0) -> None:
        self.draw, self.worst, self.loaded = draw, worst, 0

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        self.loaded += 1
        drawn = self.draw() if index == 13 else 0.0
        if drawn > self.worst:
            raise KeyError(f"drew {drawn}")
        return torch.zeros(1, 2, 2), float(drawn)


@pytest.mark.parametrize("name", ["torch", "random", "numpy"])
def test_an_item_that_draws_once_in_a_while_is_seeded_like_all_others(name: str) -> None:
    draws = {"torch": lambda: float(torch.rand(())), "random": random.random, "numpy": np.random.random}
    draw: Any = draws[name]

    def drawn(worst: float = 2.0) -> tuple[float, int]:
        dataset = Rarely(draw, worst)
        loader = ViewLoader(dataset, noisy_pairs, batch_size=4, shuffle=False)
        return float(sum(batch.labels.sum() for batch in loader if batch.labels is not None)), dataset.loaded

    with isolated_rng(derive_seed("item", 0, 0, 13)):
        expected = draw()
    for _ in range(2):  # whatever the program has drawn
        draw()
        found, loaded = drawn()
        assert found == pytest.approx(expected)
        assert loaded == 24 + 4 * (name != "torch")  # the batch that showed it is loaded again
    with pytest.raises(KeyError, match=f"drew {expected}"):  # not what it drew before it was seeded
        drawn(worst=0.0)


DRAWS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None, "uniform": np.random.random, "normal": np.random.normal,
    "seed": lambda: np.random.seed(0),  # noqa: NPY002
}  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(list(DRAWS)), st.booleans()), max_size=12))
def test_numpy_s_state_is_known_whatever_was_drawn_since_it_was_read(program: list[tuple[str, bool]]) -> None:
    """Also the second of two normal numbers, which NumPy keeps for the next draw."""

    def plain(state: Any) -> Any:
        name, words, *rest = state
        return name, words.tolist(), rest

    def state() -> Any:
        return plain(np.random.get_state())  # noqa: NPY002

    before, then = GlobalStates(), state()
    for draw, read in program:
        DRAWS[draw]()
        if read:
            assert ("numpy" in before.moved()) == (state() != then)
            before, then = GlobalStates(), state()
            assert plain(before.numpy) == then
    before.restore()
    assert state() == then


def test_a_kept_normal_number_that_was_put_back_is_known_to_be_there() -> None:
    with isolated_rng(0):
        DRAWS["normal"]()  # draws two, keeps one
        before = GlobalStates()
        DRAWS["normal"]()  # takes the one: nothing in the generator's memory moves
        assert "numpy" in before.moved()
        before.restore()
        assert before.moved() == set()


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6), index=st.integers(0, 10**12))
def test_the_global_generators_of_an_item_have_the_seed_that_is_derived_for_it(
    seed: int, epoch: int, index: int
) -> None:
    with isolated_rng(0), seeded_items(seed) as begin:
        begin(epoch, index, ("torch",))
        assert torch.initial_seed() == derive_seed("item", seed, epoch, index)


class Forked(Numbered):
    """An item's label is drawn where torch's generator is put back at once, and its seed is read."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            drawn = torch.rand((), dtype=torch.float64)
        return torch.zeros(1, 2, 2), torch.stack([drawn, torch.tensor(float(torch.initial_seed() % 10**6))])


def test_an_item_that_leaves_no_trace_on_torch_s_generator_draws_its_own_all_the_same() -> None:
    def labels(workers: int, **settings: Any) -> Tensor:
        loader = ViewLoader(
            Forked(), noisy_pairs, batch_size=4, shuffle=False, num_workers=workers, **settings
        )  # fmt: skip
        return torch.cat([batch.labels for batch in passes(loader, 2) if batch.labels is not None])

    table = labels(0)
    assert all(len(column.unique()) == 48 for column in table.T)  # 24 items, two epochs
    assert torch.equal(table, labels(2))
    assert not torch.equal(table, labels(0, seed=1))


def test_what_draws_nothing_is_loaded_once_and_what_fails_by_itself_fails() -> None:
    dataset = Rarely(lambda: 0.5)
    passes(ViewLoader(dataset, noisy_pairs, batch_size=4))
    assert dataset.loaded == 24
    with pytest.raises(KeyError, match=r"drew 0\.5"):
        passes(ViewLoader(Rarely(lambda: 0.5, worst=0.1), noisy_pairs, batch_size=4))


def test_the_sampler_gets_the_stream_of_its_batch_and_the_labels_stay_with_their_images() -> None:
    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=4, seed=7, rank=1, world_size=2)
    loader.set_epoch(5)
    for number, batch in enumerate(loader):
        generator = batch_generator(7, epoch=5, rank=1, batch=number)
        assert torch.equal(batch.actions, noisy_pairs(torch.zeros(4, 1, 2, 2), generator=generator).actions)
        assert batch.labels is not None
        torch.testing.assert_close(batch.views[:, 0, 0, 0, 0] * 255, batch.labels[:, 0])
        assert batch.group == Translation(1)


@given(
    length=st.integers(1, 60), size=st.integers(1, 9), world=st.integers(1, 5), epoch=st.integers(0, 3),
    shuffle=st.booleans(), drop_last=st.booleans(),
)  # fmt: skip
def test_ranks_share_an_epoch_out_evenly_without_overlap(
    length: int, size: int, world: int, epoch: int, shuffle: bool, drop_last: bool
) -> None:
    share = length // world
    batches = share // size if drop_last else -(-share // size)
    if batches == 0:
        return
    taken: list[int] = []
    for rank in range(world):
        order = EpochOrder(
            length, size, seed=0, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=world
        )  # fmt: skip
        order.start_at(epoch, 0)
        mine = [index for batch in order for _, index in batch]
        assert len(list(order)) == len(order) == batches
        assert len(mine) == (batches * size if drop_last else share)
        taken += mine
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(length))
    if not shuffle and not drop_last:
        assert sorted(taken) == list(range(share * world))


def test_ranks_take_turns_in_one_order_which_is_another_for_each_seed() -> None:
    def order(rank: int = 0, world_size: int = 1, seed: int = 0) -> list[int]:
        settings: dict[str, Any] = {"seed": seed, "rank": rank, "world_size": world_size}
        return EpochOrder(20, 2, shuffle=True, drop_last=True, **settings).indices(5)

    assert [order(rank, 3) for rank in range(3)] == [order()[rank:18:3] for rank in range(3)]
    assert len({tuple(order(seed=seed)) for seed in range(5)}) == 5


def test_the_rank_is_that_of_torch_distributed_where_that_is_in_use() -> None:
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    explicit = items(passes(ViewLoader(Numbered(), noisy_pairs, batch_size=4, rank=2, world_size=3)))
    distributed.init_process_group("fake", store=FakeStore(), rank=2, world_size=3)
    try:
        asked = items(passes(ViewLoader(Numbered(), noisy_pairs, batch_size=4)))
    finally:
        distributed.destroy_process_group()
    assert asked == explicit
    assert len(asked) == 8


def test_a_loader_may_be_built_before_the_process_group_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    explicit = passes(ViewLoader(Numbered(), noisy_pairs, batch_size=4, rank=2, world_size=3))
    monkeypatch.setenv("WORLD_SIZE", "3")
    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=4)
    for ask in (len, ViewLoader.state_dict, lambda loader: next(iter(loader))):
        with pytest.raises(RuntimeError, match=r"one of 3 processes, .*init_process_group\(\) first"):
            ask(loader)
    too_small = ViewLoader(Numbered(9), noisy_pairs, batch_size=4)  # of one rank it would do
    assert len(passes(ViewLoader(Numbered(), noisy_pairs, batch_size=4, rank=0, world_size=1))) == 6
    distributed.init_process_group("fake", store=FakeStore(), rank=2, world_size=3)
    try:
        assert len(loader) == loader.state_dict()["world_size"] - 1 == 2
        assert_same(passes(loader), explicit)
        with pytest.raises(ValueError, match="9 items over 3 ranks are 3 each, and batch_size is 4"):
            iter(too_small).__next__()
    finally:
        distributed.destroy_process_group()


def test_each_epoch_is_another_order_of_all_images() -> None:
    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=6)
    orders = [items(passes(loader)) for _ in range(3)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    still = ViewLoader(Numbered(), noisy_pairs, batch_size=5, shuffle=False, drop_last=False)
    assert items(passes(still, 2)) == 2 * list(range(24))
    assert len(still) == 5


def test_every_image_is_left_out_as_often_as_any_other() -> None:
    order = EpochOrder(10, 3, seed=0, shuffle=True, drop_last=True, rank=0, world_size=1)
    seen: Counter[int] = Counter()
    for epoch in range(300):
        order.start_at(epoch, 0)
        seen.update(index for batch in order for _, index in batch)
    assert all(abs(seen[i] - 270) < 30 for i in range(10))


# Epochs and resuming


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_batches_it_would_have_had(workers: int) -> None:
    def make() -> ViewLoader:
        return ViewLoader(Numbered(), noisy_pairs, batch_size=5, seed=2, num_workers=workers)

    whole = passes(make(), epochs=3)  # 4 batches each
    for done in (6,) if workers else (0, 1, 3, 4, 6, 8):
        loader, states, count = make(), [make().state_dict()], 0
        for _ in range(3):
            for _ in loader:
                states.append(loader.state_dict())
                count += 1
        assert count == 12
        resumed = make()
        resumed.load_state_dict(states[done])
        assert_same(passes(resumed, epochs=3)[: 12 - done], whole[done:])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # where there are fewer cores
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_run_goes_on_from_every_place_of_an_epoch_with_any_number_of_workers(workers: int) -> None:
    def make(workers: int) -> ViewLoader:
        return ViewLoader(Numbered(23), noisy_pairs, batch_size=5, seed=2, num_workers=workers, drop_last=False)

    whole = passes(make(0), epochs=2)  # 5 batches each, the last of 3
    loader = make(workers)
    states = [loader.state_dict(), *(loader.state_dict() for _ in loader)]
    for place, state in enumerate(states):
        for now in {workers, (workers + place) % 4}:
            resumed = make(now)
            resumed.load_state_dict(state)
            assert_same(passes(resumed, epochs=2)[: 10 - place], whole[place:])


def test_the_state_can_be_saved_without_pickle(tmp_path: Any) -> None:
    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=5)
    batches = iter(loader)
    next(batches)
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["epoch"], state["batch"]) == (0, 1)
    del batches  # the pass is over
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)
    passes(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_is_broken_off_is_followed_by_the_next_epoch(workers: int) -> None:
    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=5, num_workers=workers)
    first, second = passes(loader), passes(loader)
    loader.set_epoch(0)
    for _ in loader:
        break
    assert_same(passes(loader), second)
    loader.set_epoch(0)
    assert_same(passes(loader), first)


def test_a_state_of_other_settings_is_refused_in_the_middle_of_an_epoch() -> None:
    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=5)
    next(running := iter(loader))
    other = ViewLoader(Numbered(), noisy_pairs, batch_size=6, seed=1)
    with pytest.raises(
        ValueError, match=r"seed was 0 and is 1, batch_size was 5 and is 6\. Build it as before, or begin"
    ):
        other.load_state_dict(loader.state_dict())
    list(running), passes(loader)
    other.load_state_dict(loader.state_dict())  # between epochs they may change
    assert other.state_dict()["epoch"] == 2
    with pytest.raises(ValueError, match=r"has the keys epoch, batch, next_epoch, seed, .*; got epoch"):
        loader.load_state_dict({"epoch": 1})
    with pytest.raises(ValueError, match="batches from 0 to 3; got epoch 0, batch 4 and next_epoch 3"):
        loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batch": 4})


def of_epochs(*epochs: int, **settings: Any) -> list[list[ViewSequence]]:
    """The passes that a loader makes when nothing disturbs it."""
    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=5, **settings)
    wanted = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        wanted.append(passes(loader))
    return wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_beside_each_other_do_not_disturb_each_other(workers: int) -> None:
    zero, one, two, three, four = of_epochs(0, 1, 2, 3, 4)
    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=5, num_workers=workers)
    together = list(zip(loader, loader, loader, strict=True))
    for wanted, got in zip((zero, one, two), zip(*together, strict=True), strict=True):
        assert_same(wanted, list(got))
    loader.set_epoch(0)
    held = iter(loader)
    assert_same([next(held)], zero[:1])
    main = []
    for batch in loader:  # epoch 1, beside the one that is held, with a look aside that is broken off
        main.append(batch)
        if len(main) == 2:
            assert_same([next(iter(loader))], two[:1])
    assert_same(main, one)
    assert_same([next(iter(loader))], three[:1])
    assert_same(list(held), zero[1:])
    assert_same(passes(loader), four)


class Processes(Numbered):
    """An item's label is the process that made it."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return super().__getitem__(index)[0], torch.tensor(os.getpid())


def test_workers_persist_also_after_passes_that_overlapped() -> None:
    def processes(batches: Iterator[ViewSequence]) -> set[int]:
        return {int(label) for batch in batches if batch.labels is not None for label in batch.labels}

    loader = ViewLoader(Processes(), noisy_pairs, batch_size=5, num_workers=2)
    mine = processes(iter(loader))
    first, second = iter(loader), iter(loader)
    next(first), next(second)
    del first  # the one with the workers that persist ends before the other
    assert not processes(second) & mine
    assert processes(iter(loader)) == processes(iter(loader)) == mine
    fresh = ViewLoader(
        Processes(), noisy_pairs, batch_size=5, num_workers=2, loader_options={"persistent_workers": False}
    )
    assert not processes(iter(fresh)) & processes(iter(fresh))


@given(program=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4), data=st.data())
def test_a_run_resumed_from_any_state_is_the_run_that_was_not_cut(
    program: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Passes of 1 to 4 batches of 4, the shorter ones ended by break, some with a look aside; saved at any batch."""

    def make() -> ViewLoader:
        return ViewLoader(Numbered(), noisy_pairs, batch_size=5, seed=1)

    def run(loader: ViewLoader, program: list[tuple[int, bool]], done: int = 0) -> Iterator[tuple[int, Any, Any]]:
        for number, (count, aside) in enumerate(program):
            yield number, done if number == 0 else 0, None  # between passes
            for taken, batch in enumerate(loader, start=done + 1 if number == 0 else 1):
                if aside and taken == 1:
                    next(iter(loader))
                yield number, taken, batch
                if taken == count:
                    break
        yield len(program), 0, None

    whole, loader = [], make()
    for number, taken, batch in run(loader, program):
        whole.append((number, taken, batch, loader.state_dict()))
    cut = data.draw(st.integers(0, len(whole) - 1))
    number, taken, batch, state = whole[cut]
    between = batch is None
    left = program[number:]
    if not between and taken == program[number][0]:  # saved inside the loop, after the last batch before `break`
        return
    resumed = make()
    resumed.load_state_dict(state)
    got = [batch for _, _, batch in run(resumed, left, 0 if between else taken) if batch is not None]
    assert_same(got, [batch for _, _, batch, _ in whole[cut + 1 :] if batch is not None])


def test_of_several_passes_the_state_is_that_of_the_one_that_handed_out_a_batch_last() -> None:
    def state() -> tuple[int, int, int]:
        saved = loader.state_dict()
        return saved["epoch"], saved["batch"], saved["next_epoch"]

    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=5)
    held = iter(loader)
    next(held)
    assert state() == (0, 1, 1)
    for number, _ in enumerate(loader, start=1):
        assert state() == ((1, number, 2) if number < 4 else (2, 0, 3))
    assert state() == (2, 0, 3)  # the held one is not what the loop would go on with
    next(held)
    assert state() == (0, 2, 2)  # until it goes on
    loader.set_epoch(7)
    assert state() == (7, 0, 8)
    next(held)
    loader.load_state_dict({**loader.state_dict(), "epoch": 3, "batch": 2, "next_epoch": 9})
    assert state() == (3, 2, 9)
    del held
    assert state() == (3, 2, 9)


def test_a_pass_that_fails_is_over() -> None:
    class Once(Numbered):
        def __getitem__(self, index: int) -> Any:
            if index == 13 and not fixed:
                raise KeyError("not there")
            return super().__getitem__(index)

    fixed: list[bool] = []
    loader = ViewLoader(Once(), noisy_pairs, batch_size=5, shuffle=False)
    with pytest.raises(KeyError, match="not there"):
        passes(loader)
    fixed.append(True)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)
    assert_same(passes(loader), of_epochs(1, shuffle=False)[0])


def test_a_state_saved_before_the_next_epoch_was_part_of_it_is_read() -> None:
    loader = ViewLoader(Numbered(), noisy_pairs, batch_size=5)
    next(running := iter(loader))
    state = loader.state_dict()
    del running, state["next_epoch"]
    loader.load_state_dict(state)
    zero, one = of_epochs(0, 1)
    assert_same(passes(loader, epochs=2), zero[1:] + one)
    with pytest.raises(ValueError, match=r"Epochs count from 0, .*; got epoch 0, batch 1 and next_epoch -1\."):
        loader.load_state_dict({**state, "next_epoch": -1})
    with pytest.raises(ValueError, match="Epochs count from 0; got -1"):
        loader.set_epoch(-1)


# Defaults of torch


@pytest.fixture(params=["device", "dtype"])
def other_defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch.set_default_device("meta"), which stands in for a GPU, or torch.set_default_dtype(torch.float64)."""
    dtype = torch.get_default_dtype()
    try:
        if request.param == "device":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)


class Unnamed(SeededDataset):
    """Items of a user who names no device: numbers, and tensors made where torch makes them by default."""

    def __len__(self) -> int:
        return 24

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        image = torch.rand(1, 2, 2, generator=generator, dtype=torch.float32) * torch.ones((), dtype=torch.float32)
        return Sample(image, index, torch.full((2, 2), index + 1.0, dtype=torch.float32))


def unnamed(workers: int) -> list[ViewSequence]:
    return passes(ViewLoader(Unnamed(), looking, batch_size=5, num_workers=workers, device="cpu"), epochs=2)


def collated() -> Any:
    return collate([{"image": Image.new("L", (2, 2)), "label": i, "saliency": np.ones((2, 2))} for i in range(3)])


BY_DEFAULT, COLLATED = unnamed(0), collated()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("other_defaults")
def test_loading_is_work_of_the_cpu_whatever_torch_s_defaults_are(workers: int) -> None:
    assert_same(unnamed(workers), BY_DEFAULT)
    for shuffle in (False, True):
        order = EpochOrder(9, 3, seed=0, shuffle=shuffle, drop_last=True, rank=0, world_size=1)
        assert sorted(order.indices(0)) == list(range(9))


@pytest.mark.usefixtures("other_defaults")
def test_collating_and_drawing_by_hand_name_their_device() -> None:
    torch.testing.assert_close(tuple(collated()), tuple(COLLATED), rtol=0, atol=0)
    assert batch_generator(0).device.type == "cpu"


# Items


def test_bytes_floats_and_pil_images_become_the_same_batch() -> None:
    pixels = torch.randint(0, 256, (6, 3, 5, 7), dtype=torch.uint8)
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    palette = [image.convert("RGB").quantize(256) for image in pil]
    datasets: dict[str, list[Any]] = {
        "uint8": list(pixels),
        "float": list(pixels / 255),
        "pil": pil,
        "pairs": [(image, 3) for image in pixels],
        "lists": [[image, 3] for image in pixels],
        "samples": [Sample(image, torch.tensor(3)) for image in pil],
        "mappings": [{"image": image, "label": np.int64(3)} for image in pil],
        "PNG with a palette": [image.convert("RGB") for image in palette],
    }
    batches = {name: passes(ViewLoader(data, noisy_pairs, batch_size=6))[0] for name, data in datasets.items()}
    batches["TensorDataset"] = passes(ViewLoader(TensorDataset(pixels), noisy_pairs, batch_size=6))[0]
    order = EpochOrder(6, 6, seed=0, shuffle=True, drop_last=True, rank=0, world_size=1).indices(0)
    for name, batch in batches.items():
        assert batch.views.dtype == torch.float32
        if name != "PNG with a palette":
            torch.testing.assert_close(batch.views[:, 0], pixels[order] / 255, rtol=0, atol=1e-7)
        labelled = name in ("pairs", "lists", "samples", "mappings")
        assert (batch.labels is not None) == labelled
        if batch.labels is not None:
            assert batch.labels.tolist() == [3] * 6
            assert batch.labels.dtype == torch.int64


def test_grey_pil_images_keep_one_channel_and_others_become_rgb() -> None:
    shapes = {mode: collate([Image.new(mode, (4, 3))])[0].shape for mode in ("L", "1", "P", "RGBA", "CMYK", "LA")}
    assert {mode: shape[1] for mode, shape in shapes.items()} == {
        "L": 1, "1": 1, "P": 3, "RGBA": 3, "CMYK": 3, "LA": 3
    }  # fmt: skip
    assert collate([Image.new("1", (2, 2), 1)])[0].unique().tolist() == [255]
    palette = Image.new("RGB", (4, 3), (9, 80, 200)).quantize(4)
    palette.info["transparency"] = b"\x00"  # Pillow warns where such a palette goes straight to RGB
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert collate([palette])[0][0, :, 0, 0].tolist() == [9, 80, 200]
    assert shapes["L"][2:] == (3, 4)


def test_saliency_reaches_the_sampler_row_by_row() -> None:
    maps = torch.rand(6, 4, 4)
    data = [Sample(torch.full((1, 4, 4), i, dtype=torch.uint8), i, maps[i][None]) for i in range(6)]
    batch = passes(ViewLoader(data, looking, batch_size=6))[0]
    assert batch.labels is not None
    assert torch.equal(batch.parameters, maps[batch.labels])
    with pytest.raises(TypeError, match="yields saliency maps, which noisy_pairs does not take"):
        passes(ViewLoader(data, noisy_pairs, batch_size=6))


def test_a_dataset_of_view_sequences_needs_no_sampler() -> None:
    def item(i: int) -> ViewSequence:
        floor, light, theta, phi = torch.rand(4, 3)
        flat = ObjectParameters(torch.rand(3, 4), floor, light, theta, phi, torch.tensor(i))
        return ViewSequence(
            torch.full((3, 1, 2, 2), i, dtype=torch.uint8), torch.rand(2, 4), flat, torch.tensor(i), Translation(4)
        )

    data = [item(i) for i in range(6)]
    batch = passes(ViewLoader(data, batch_size=3, num_workers=1))[0]
    assert batch.views.shape == (3, 3, 1, 2, 2)
    assert isinstance(batch.parameters, ObjectParameters)
    assert batch.labels is not None
    assert torch.equal(batch.parameters.instance, batch.labels)
    assert batch.parameters.rotation.shape == (3, 3, 4)
    assert batch.group == Translation(4)
    torch.testing.assert_close(batch.views[:, 0, 0, 0, 0] * 255, batch.parameters.instance.float())
    assert torch.equal(batch.actions, torch.stack([data[int(i)].actions for i in batch.parameters.instance]))
    plain = collate([sequence._replace(parameters=None, labels=None) for sequence in data])
    assert isinstance(plain, ViewSequence)
    assert plain.parameters is None
    assert plain.labels is None
    with pytest.raises(ValueError, match=r"at least two views, so .* \(T ≥ 1\); item 1 of the batch has one view"):
        collate([data[0], data[1]._replace(views=data[1].views[:1], actions=torch.zeros(0, 4))])
    with pytest.raises(TypeError, match="yields ViewSequences, which noisy_pairs cannot take; leave the sampler out"):
        passes(ViewLoader(data, noisy_pairs, batch_size=3))


def test_collate_serves_a_dataloader_of_one_s_own_with_streams_for_each_rank_and_epoch() -> None:
    def draws(rank: int, epoch: int) -> Tensor:
        generator = batch_generator(0, epoch=epoch, rank=rank)
        loader = DataLoader(Numbered(), batch_size=4, num_workers=2, collate_fn=collate, generator=generator)
        return torch.cat([batch.labels[:, 1:] for batch in loader])  # (24, 3): torch, NumPy, Python

    table = torch.stack([draws(0, 0), draws(1, 0), draws(0, 1)])
    assert torch.equal(table[0], draws(0, 0))
    assert table.flatten().unique().numel() == 3 * 24 * 3


@pytest.mark.gpu
def test_batches_are_made_on_the_gpu() -> None:
    data = list(zip(torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8), range(32), strict=True))
    settings: dict[str, Any] = {"batch_size": 8, "device": "cuda"}
    batches = passes(ViewLoader(data, noisy_pairs, num_workers=2, **settings))
    assert all(part.device.type == "cuda" for batch in batches for part in (batch.views, batch.actions, batch.labels))  # type: ignore[union-attr]
    assert_same(batches, passes(ViewLoader(data, noisy_pairs, **settings)))
    on_cpu = passes(ViewLoader(data, noisy_pairs, batch_size=8))
    assert torch.equal(batches[0].labels.cpu(), on_cpu[0].labels)  # type: ignore[union-attr,arg-type]


# What is refused


def image(*shape: int) -> Tensor:
    return torch.zeros(shape or (3, 8, 8), dtype=torch.uint8)


def test_images_of_different_sizes_are_named_by_their_index() -> None:
    data = [image() for _ in range(8)]
    data[5] = image(3, 8, 9)
    with pytest.raises(
        ValueError,
        match=r"one size \(C, H, W\); item 0 of the dataset has \(3, 8, 8\), item 5 of the dataset has \(3, 8, 9\)\. "
        r"Give the dataset a transform that makes them equal, such as Resize\(\(96, 96\)\)",
    ):
        passes(ViewLoader(data, noisy_pairs, batch_size=8, shuffle=False))


@pytest.mark.parametrize(("broken", "error", "message"), [
    ([], ValueError, "at least one item; got none"),
    ([image(8, 8)], ValueError, r"axes \(C, H, W\); item 0 of the batch has shape \(8, 8\)"),
    ([image(3, 0, 8)], ValueError, r"axes \(C, H, W\); item 0 of the batch has shape \(3, 0, 8\)"),
    ([image().long()], TypeError, "uint8, or floating point.*; item 0 of the batch is torch.int64"),
    ([image().to(torch.uint16)], TypeError, r"item 0 of the batch is torch.uint16\. Divide .*: image / 65535 for 16 b"),
    ([image() + 60000.0], ValueError, "goes from 6e\\+04 to 6e\\+04"),
    ([(torch.ones(4, 3, 8, 8), torch.ones(3, 2))], ValueError, r"\(4, 3, 8, 8\)\. Views with the .*ViewSequence"),
    ([image(), image().float()], TypeError, "one dtype; item 0 of the batch is torch.uint8, item 1"),
    ([np.zeros((8, 8, 3))], TypeError, r"is of type ndarray\. Convert an array \(H, W, C\) with torch.from_numpy"),
    ([Image.new("I", (2, 2))], TypeError, "8 bits a channel; item 0 of the batch has mode 'I'"),
    ([image().float(), image() - 1.8], ValueError, r"in \[0, 1\]; item 1 of the batch goes from -1\.8 to -1\.8\. L"),
    ([image() + 200.0], ValueError, "goes from 200 to 200.*divide by 255"),
    ([image() + 1.3], ValueError, r"goes from 1\.3 to 1\.3"),
    ([image() - 0.3], ValueError, r"goes from -0\.3 to -0\.3"),
    ([image() * torch.nan], ValueError, "goes from nan to nan.*look for NaN"),
    ([(image(), "cat")], TypeError, "label is a number or a tensor; that of item 0 of the batch is 'cat'"),
    ([(image(), 1), image()], ValueError, "have a label, or none has; item 1 of the batch has none"),
    ([(image(), torch.ones(2)), (image(), 1)], ValueError, r"labels of a batch have one shape; item 0 .* has \(2,\)"),
    ([(image(), 1, torch.ones(8, 8), 0)], TypeError, r"\(image, label, saliency\); item 0 .* is a tuple of 4"),
    ([()], TypeError, "item 0 of the batch is a tuple of 0"),
    ([{"img": image()}], TypeError, "keys image, label and saliency .*; item 0 of the batch has 'img'"),
    ([{"image": image(), "fine_label": 1}], TypeError, "has 'image', 'fine_label'"),
    ([(image(), 1, torch.ones(4, 8))], ValueError, r"size \(H, W\) of its image, \(8, 8\); .* has shape \(4, 8\)"),
    ([(image(), 1, torch.ones(8, 8)), (image(), 1)], ValueError, "have a saliency map, or none has; item 1"),
    ([ViewSequence(torch.ones(3, 1, 2, 2), torch.ones(2, 1)), image()], TypeError, "item 1 of the batch is a Tensor"),
    ([ViewSequence(torch.ones(4, 3, 1, 2, 2), torch.ones(4, 2, 1))], ValueError, "one source without the batch axis"),
    ([ViewSequence(torch.ones(3, 1, 2, 2), torch.ones(3, 1))], ValueError, r"has \(3, 1, 2, 2\) and \(3, 1\)"),
])  # fmt: skip
def test_items_that_are_no_images_are_refused(broken: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        collate(broken)


def test_what_a_bicubic_resize_leaves_outside_the_range_is_cut_off() -> None:
    batch = collate([torch.tensor([[[-0.1, 0.5, 1.1]]])])
    assert isinstance(batch, ImageBatch)
    assert batch.images.flatten().tolist() == [0, 0.5, 1]


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter([image()])


def test_settings_that_cannot_work_are_refused() -> None:
    data = [image() for _ in range(10)]
    with pytest.raises(
        ValueError, match="at least one batch; 10 items over 1 rank are 10 each, and batch_size is 16 with"
    ):
        ViewLoader(data, noisy_pairs, batch_size=16)
    with pytest.raises(ValueError, match="0 items over 1 rank are 0 each"):
        ViewLoader([], noisy_pairs, batch_size=1, drop_last=False)
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        ViewLoader(data, noisy_pairs, batch_size=0)
    with pytest.raises(ValueError, match="Ranks go from 0 to world_size − 1; got rank 2 of 2"):
        ViewLoader(data, noisy_pairs, batch_size=1, rank=2, world_size=2)
    with pytest.raises(ValueError, match=r"go together; got rank=1 and world_size=None\. Give both"):
        ViewLoader(data, noisy_pairs, batch_size=1, rank=1)
    with pytest.raises(TypeError, match=r"A dataset has a length and items by index; Stream does not. For a stream"):
        ViewLoader(Stream(), noisy_pairs, batch_size=1)
    with pytest.raises(TypeError, match=r"Images need a sampler that makes views of them; got none\."):
        passes(ViewLoader(data, batch_size=5))
    with pytest.raises(TypeError, match=r"returns a seqjepa.types.ViewSequence; <lambda> returned a tuple"):
        passes(ViewLoader(data, lambda images, generator: (images, images), batch_size=5))  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"with in_order=False that would hang on the workers\. Leave it out"):
        ViewLoader(data, noisy_pairs, batch_size=5, loader_options={"in_order": False})
    with pytest.raises(TypeError, match="unexpected keyword argument 'prefetch'"):
        ViewLoader(data, noisy_pairs, batch_size=5, loader_options={"prefetch": 2})
