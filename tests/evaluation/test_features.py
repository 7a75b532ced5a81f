"""Features of sequences: what is drawn of them, what an element is, and which models and loaders are taken."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from seqjepa import CausalAggregator, StopGradientTarget, ViewSequence
from seqjepa.data import AugmentedViews, RotatedViews, ViewLoader, pad_sequences
from seqjepa.evaluation import Features, aggregate_states, extract, prediction_retrieval_error, top1
from seqjepa.evaluation._frozen import Remembering
from seqjepa.evaluation._others import distance_to_others, of_other_sources
from seqjepa.functional import cosine_distance
from seqjepa.groups import Crop, Group, Hue, Product, Rotation3D, Scale, Translation
from tests.builders import tiny_model
from tests.evaluation.worlds import Exact, batches, world


def test_relative_transformations_are_actions_where_parameters_are_not() -> None:
    group = Product({"window": Crop(), "size": Scale()})
    g = torch.Generator().manual_seed(0)
    sides = torch.randn(20, 4, 3, generator=g).exp()
    flip = torch.randint(2, (20, 4, 1), generator=g).float()
    t = torch.cat([torch.randn(20, 4, 2, generator=g), sides[..., :2], flip, sides[..., 2:]], dim=-1)
    features = extract(lambda v: v, ViewSequence(t, group.actions(t), t, None, group))
    torch.testing.assert_close(features.relative(3, 1), group.relative(t[:, 3], t[:, 1]), rtol=1e-3, atol=1e-3)


def test_extraction_moves_nothing_of_the_model_and_does_not_depend_on_chunks() -> None:
    model = tiny_model(action_dim=1).train()
    model.encoder.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    sequence = batches(RotatedViews(3), torch.arange(10) % 2)
    whole = extract(model, sequence, batch_size=10)
    for batch_size in (1, 3):
        chunked = extract(model, sequence, batch_size=batch_size)
        for name in ("z", "e", "target", "labels", "elements", "pictures"):
            torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    several = extract(model, [sequence._replace(views=sequence.views), sequence])
    assert len(several.z) == 20
    assert not whole.z.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert whole.e is not None
    expected = model.eval().aggregate(whole.z[:, :2], whole.e[:, :1])
    torch.testing.assert_close(aggregate_states(model, whole, 2), expected)


def test_parameters_by_name_become_elements_where_the_group_names_them() -> None:
    sequence = batches(AugmentedViews(3, 8), torch.arange(6) % 2)
    unknown = sequence._replace(parameters=sequence.parameters._replace(sides=None))
    assert extract(lambda v: v.flatten(2), unknown).elements is None  # crops need the image's size
    sequence = batches(RotatedViews(3), torch.arange(6) % 2)
    elements = extract(lambda v: v.flatten(2), sequence).elements
    assert elements is not None
    torch.testing.assert_close(elements, sequence.parameters)


def normed(images: Tensor) -> Tensor:
    """An encoder whose batch norm is hidden behind a function."""
    return NORM(images.flatten(2).flatten(0, 1)).unflatten(0, images.shape[:2])


NORM = torch.nn.BatchNorm1d(15)


class Holder:
    def __init__(self, norm: torch.nn.Module) -> None:
        self.norm = norm

    def __call__(self, views: Tensor) -> Tensor:
        return normed(views)


@pytest.mark.parametrize(
    "encoder", [normed, lambda v: NORM(v.flatten(0, 1)).unflatten(0, v.shape[:2]), partial(normed), Holder(NORM)]
)
def test_modules_behind_a_function_are_in_eval_mode_too(encoder: Any) -> None:
    NORM.train()
    before = NORM.running_mean.clone() if NORM.running_mean is not None else None
    extract(encoder, world(8, 3))
    torch.testing.assert_close(NORM.running_mean, before, rtol=0, atol=0)
    assert NORM.training


def test_what_comes_in_turn_is_cut_and_only_features_are_kept() -> None:
    seen = []

    def encoder(views: Tensor) -> Tensor:
        seen.append(len(views))
        return views * 1

    features = extract(encoder, [world(100, 3), world(30, 3)], batch_size=32)
    assert max(seen) == 32
    assert len(features.z) == 130
    sequence = world(100, 3)
    for part in (features, extract(encoder, sequence, batch_size=32)):
        assert part.pictures is not None
        assert part.pictures.shape[0] == 64
        assert part.pictures.untyped_storage().nbytes() == part.pictures.nbytes


def labelled(labels: Tensor, sources: Tensor | None = None) -> Features:
    """Features that are the numbers of their sequences."""
    number = torch.arange(len(labels)).float()
    return Features(
        z=number.view(-1, 1, 1), actions=number.view(-1, 1, 1)[:, :0], elements=number.view(-1, 1, 1), labels=labels,
        sources=sources, pictures=torch.zeros(len(labels), 1, 3, 2, 2),
    )  # fmt: skip


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(1, 60), st.integers(0, 9))
def test_a_draw_has_every_class_in_proportion_and_in_order(classes: list[int], count: int, seed: int) -> None:
    labels = torch.tensor(classes)
    drawn = labelled(labels).draw(count, seed=seed)
    assert drawn.labels is not None
    assert drawn.elements is not None
    rows = drawn.z.flatten().long()
    assert len(rows) == min(count, len(classes))
    assert (rows.diff() > 0).all()
    assert torch.equal(drawn.labels, labels[rows])
    assert torch.equal(drawn.elements, drawn.z)
    assert len(drawn.actions) == len(rows)
    in_all, in_draw = Counter(classes), Counter(drawn.labels.tolist())
    if count >= len(in_all):
        assert in_draw.keys() == in_all.keys()
    share = {c: in_draw[c] / n for c, n in in_all.items()}
    for c, n in in_all.items():  # none could give one of its own to a class that has relatively fewer
        assert all((in_draw[c] - 1) / n <= share[d] + 1e-9 for d in in_all), (in_all, in_draw)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.integers(1, 60))
def test_no_source_is_drawn_twice_before_each_is_drawn(numbers: list[int], count: int) -> None:
    sources = torch.tensor(numbers)
    drawn = labelled(torch.zeros(len(sources), dtype=torch.long), sources).draw(count)
    assert drawn.sources is not None
    assert torch.equal(drawn.sources, sources[drawn.z.flatten().long()])
    in_all, in_draw = Counter(numbers), Counter(drawn.sources.tolist())
    most = max(in_draw.values())
    assert all(in_draw[s] >= min(most - 1, n) for s, n in in_all.items())


def test_draws_are_random_and_repeatable() -> None:
    features = labelled(torch.zeros(200, dtype=torch.long))
    one, again, other = (features.draw(100, seed=seed).z for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert 70 < one.mean() < 130
    assert features.draw(200) is features
    assert features.draw(100).pictures is None
    of_source = [labelled(torch.zeros(60, dtype=torch.long), torch.arange(60) // 6).draw(10, seed=s).z for s in (0, 1)]
    assert not torch.equal(*of_source)  # which of a source's sequences comes first is drawn too


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 9))
def test_another_source_is_never_the_same(numbers: list[int], seed: int) -> None:
    sources = torch.tensor([*numbers, 6])
    drawn = of_other_sources(sources, torch.Generator().manual_seed(seed))
    assert (sources[drawn] != sources).all()


def test_every_row_of_another_source_is_as_likely() -> None:
    sources = torch.tensor([5, 2, 2, 5, 9])
    g = torch.Generator().manual_seed(0)
    counts = torch.zeros(5, 5)
    for _ in range(2000):
        counts[torch.arange(5), of_other_sources(sources, g)] += 1
    other = (sources[:, None] != sources).float()
    assert (counts / 2000 - other / other.sum(dim=1, keepdim=True)).abs().max() < 0.05


@given(st.integers(0, 2**31))
def test_the_distance_to_other_sources_is_that_of_all_their_pairs(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b, sources = torch.randn(12, 4, generator=g), torch.randn(12, 4, generator=g), torch.arange(12) % 5 % 3
    rows = [
        torch.stack([cosine_distance(a[i], b[j]) for j in range(12) if sources[j] != sources[i]]).mean()
        for i in range(12)
    ]
    assert distance_to_others(a, b, sources) == pytest.approx(torch.stack(rows).mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"frame": "image"}, {"frame": "image", "actions": ("crop",)}, {"actions": ("jitter", "blur")},
        {"frame": "image", "actions": ("flip", "blur")},
    ],
)  # fmt: skip
def test_elements_of_augmented_views_differ_by_their_actions(settings: dict[str, Any]) -> None:
    sampler = AugmentedViews(num_views=3, size=8, **settings)
    images = torch.rand(16, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    batch = sampler(images, generator=torch.Generator().manual_seed(0))
    elements = extract(lambda views: views.flatten(2), batch, batch_size=3).elements  # the last batch is a single one
    assert elements is not None
    torch.testing.assert_close(sampler.group.actions(elements), batch.actions, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", [Translation(2), Hue(), Rotation3D()])
def test_one_part_in_another_unit_is_no_element(part: Group) -> None:
    g = torch.Generator().manual_seed(0)
    t = Rotation3D.random(30, 3, generator=g)[..., : part.dim]
    group = Product({"other": Translation(1), "part": part})
    elements = torch.cat([torch.rand(30, 3, 1, generator=g), t], dim=-1)
    actions = group.actions(elements)

    def known(parameters: Tensor) -> Tensor | None:
        return extract(lambda v: v, ViewSequence(t, actions, parameters, None, group)).elements

    found = known(elements)
    assert found is not None
    assert torch.equal(found, elements)
    assert (
        known(elements + 0.002 * torch.randn(elements.shape, generator=g) * torch.tensor([1.0] + [0.0] * part.dim))
        is not None
    )
    assert known(torch.cat([32 * elements[..., :1], t], dim=-1)) is None
    assert known(torch.cat([elements[..., :1], 0.3 * t], dim=-1)) is None
    assert known(elements[:, :2]) is None
    assert known(elements[..., :1]) is None


def test_half_precision_leaves_rotations_their_length() -> None:
    group, q = Product({"turn": Rotation3D(), "shift": Translation(1)}), Rotation3D.random(40, 3)
    t = torch.cat([q, torch.rand(40, 3, 1)], dim=-1)
    half = ViewSequence(q, group.actions(t).bfloat16(), t.bfloat16(), None, group)
    features = extract(lambda v: v, half)
    torch.testing.assert_close(features.relative(0, 2), group.relative(t[:, 0], t[:, 2]), rtol=0, atol=0.05)
    assert features.elements is not None
    torch.testing.assert_close(features.elements[..., :4].norm(dim=-1), torch.ones(40, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_a_model_of_any_dtype_is_measured_in_float32_or_wider(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = tiny_model(action_dim=2, dropout=0.0).eval()
    t = torch.rand(8, 3, 2)
    sequence = ViewSequence(torch.rand(8, 3, 3, 8, 8), t.diff(dim=1), t, None, Translation(2))
    reference = extract(model, sequence)
    model.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for some in (sequence, sequence._replace(views=sequence.views.to(dtype), actions=sequence.actions.to(dtype))):
        features = extract(model, some)
        assert features.z.dtype == aggregate_states(model, features, 2).dtype == wide
        assert features.e is not None
        assert features.target is not None
        assert features.e.dtype == features.target.dtype == wide
        torch.testing.assert_close(features.z, reference.z.to(wide), rtol=0.05, atol=0.05)
        exact = model.aggregate(features.z[:, :2].to(dtype), features.e[:, :1].to(dtype))
        torch.testing.assert_close(aggregate_states(model, features, 2), exact.to(wide))


def test_a_backbone_in_half_precision_may_have_wider_heads() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(192, 8).bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.flatten(1))

    model = tiny_model(action_dim=2, encoder=Backbone(), target=StopGradientTarget(Backbone()))
    features = extract(model, ViewSequence(torch.rand(4, 3, 3, 8, 8), torch.rand(4, 2, 2)))
    assert features.z.dtype == aggregate_states(model, features, 3).dtype == torch.float32


@pytest.fixture
def one_process() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "wrap",
    [
        nn.parallel.DistributedDataParallel, nn.DataParallel, partial(torch.compile, backend="eager"),
        lambda m: torch.compile(nn.DataParallel(nn.parallel.DistributedDataParallel(m)), backend="eager"),
    ],
)  # fmt: skip
def test_a_wrapped_model_is_measured_as_the_bare_one(wrap: Callable[[Any], Any], one_process: None) -> None:
    model = tiny_model(action_dim=1)
    sequence = batches(RotatedViews(3, 60), torch.arange(8) % 2)
    bare, wrapped = extract(model, sequence), extract(wrap(model), sequence)
    for name in ("z", "e", "target"):
        assert torch.equal(getattr(wrapped, name), getattr(bare, name))
    assert torch.equal(aggregate_states(wrap(model), bare, 2), aggregate_states(model, bare, 2))
    alone = nn.Sequential(nn.Flatten(2), nn.Linear(192, 4))
    assert torch.equal(extract(wrap(alone), sequence).z, extract(alone, sequence).z)
    train, test = (extract(Exact(), world(30, seed=seed)) for seed in (0, 1))

    class Turned(nn.Module, Exact):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    turned = wrap(Turned())
    assert prediction_retrieval_error(turned, test).error == prediction_retrieval_error(Exact(), test).error
    assert list(top1(turned, train, test, num_views=(2,)).states) == [2]


class Items(Dataset[ViewSequence]):
    """Ten sequences, each of its number."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> ViewSequence:
        return ViewSequence(torch.full((2, 3, 4, 4), index / 10), torch.zeros(1, 2), labels=torch.tensor(index))


def stacked(items: list[ViewSequence]) -> ViewSequence:
    views, actions, _, labels, _ = zip(*items, strict=True)
    return ViewSequence(torch.stack(views), torch.stack(actions), None, torch.stack(labels))


class Endless(Sampler[int]):
    """Nobody knows how many."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


IMAGES = [(torch.full((3, 4, 4), i / 10), i) for i in range(10)]


def twice(images: Tensor, *, generator: torch.Generator | None = None) -> ViewSequence:
    return ViewSequence(torch.stack([images, images], dim=1), images.new_zeros(len(images), 1, 2))


def flat(views: Tensor) -> Tensor:
    assert views.max() < 2, "encoded"
    return views.flatten(2)


@pytest.mark.parametrize(
    ("loader", "named", "message"),
    [
        (lambda: ViewLoader(IMAGES, twice, batch_size=4), False, "leaves out 2 of its items.*drop_last=False"),
        (lambda: ViewLoader(IMAGES, twice, batch_size=4, drop_last=False, rank=1, world_size=2), False, "one in 2"),
        (lambda: ViewLoader(IMAGES, twice, batch_size=5), True, "this loader shuffles.*shuffle=False"),
        (lambda: DataLoader(Items(), 4, collate_fn=stacked, drop_last=True), False, "leaves out 2 of its items"),
        (lambda: DataLoader(Items(), 5, sampler=Endless(), drop_last=True), False, "leaves out the last of its items"),
        (lambda: DataLoader(Items(), 5, collate_fn=stacked, shuffle=True), True, "this loader shuffles"),
        (lambda: DataLoader(Items(), 5, sampler=DistributedSampler(Items(), 2, 0)), False, "one in 2"),
    ],
)  # fmt: skip
def test_a_loader_that_would_leave_sequences_out_is_refused(loader: Any, named: bool, message: str) -> None:
    sources = torch.arange(10) if named else None
    with pytest.raises(ValueError, match=message):
        extract(lambda v: pytest.fail("encoded before it was checked"), loader(), sources=sources)


def test_a_loader_in_the_middle_of_an_epoch_is_refused_until_it_begins_one() -> None:
    first, resumed = (ViewLoader(IMAGES, twice, batch_size=5) for _ in range(2))
    running = iter(first)
    next(running)
    resumed.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"middle of an epoch, at batch 1; .* Begin an epoch with set_epoch\(0\)"):
        extract(flat, resumed)
    resumed.set_epoch(0)
    assert len(extract(flat, resumed).z) == 10


@pytest.mark.parametrize(
    ("loader", "named"),
    [
        (lambda: ViewLoader(IMAGES, twice, batch_size=4, drop_last=False), False),
        (lambda: ViewLoader(IMAGES, twice, batch_size=5), False),
        (lambda: ViewLoader(IMAGES, twice, batch_size=5, shuffle=False), True),
        (lambda: DataLoader(Items(), 4, collate_fn=stacked, shuffle=True), False),
        (lambda: DataLoader(Items(), 5, collate_fn=stacked, drop_last=True), True),
    ],
)
def test_all_that_a_loader_holds_is_measured(loader: Any, named: bool) -> None:
    features = extract(flat, loader(), sources=torch.arange(10) if named else None)
    assert features.labels is not None
    assert sorted(features.labels.tolist()) == list(range(10))
    assert torch.allclose(features.z[:, 0, 0], features.labels / 10)
    if named:
        assert torch.equal(features.labels, features.source_numbers)


@pytest.mark.parametrize(
    ("labels", "sources", "error", "message"),
    [
        (torch.zeros(4), None, TypeError, "labels must be the class of each sequence, as integers; got torch.float32"),
        ([0, 1, 0, 1], None, TypeError, "labels must be a torch.Tensor; got list"),
        (torch.arange(3), None, ValueError, r"labels must be \(B,\), .* 4 sequences"),
        (torch.arange(4)[:, None], None, ValueError, r"labels must be \(B,\)"),
        (None, torch.arange(3), ValueError, "one for each of the 4 sequences"),
        (None, torch.zeros(4), ValueError, "sources must be integers.* got torch.float32"),
        (None, torch.zeros(4, 1, dtype=torch.long), ValueError, r"got torch.int64 of shape \(4, 1\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("several", [False, True])
def test_labels_and_sources_are_checked_before_anything_is_encoded(
    labels: Tensor | None, sources: Tensor | None, error: type[Exception], message: str, several: bool
) -> None:
    sequence = world(4)._replace(labels=labels)
    with pytest.raises(error, match=message):
        extract(lambda v: pytest.fail("encoded"), [sequence] if several else sequence, sources=sources)


def one_by_one(n: int) -> list[ViewSequence]:
    """Each by itself, as a dataset of windows yields them."""
    views, actions = world(n)[:2]
    return [ViewSequence(v, a) for v, a in zip(views, actions, strict=True)]


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (tuple(world(4)[:2]), TypeError, r"got a Tensor\. Make one of views and actions: ViewSequence\("),
        ([tuple(world(4)[:2])], TypeError, r"got a tuple\."),
        ([pad_sequences(one_by_one(4))], TypeError, r"got a PaddedViews\..*EpisodeWindows"),
        (one_by_one(4), ValueError, r"a batch axis.*ViewLoader\(dataset"),
    ],
)  # fmt: skip
def test_what_is_no_batch_of_sequences_is_refused_in_words(what: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        extract(lambda v: pytest.fail("encoded"), what)


def test_views_that_are_encoded_to_nothing_finite_are_counted() -> None:
    views = world(5, 3).views
    views[1] = torch.nan
    views[3, 2, 4] = torch.inf
    with pytest.raises(ValueError, match="returned NaN or infinity for 2 sources"):
        extract(lambda v: v, ViewSequence(views, torch.rand(5, 2, 4)))


def test_sources_of_what_comes_in_turn_are_counted_in_the_end() -> None:
    with pytest.raises(ValueError, match="one for each of the 8 sequences"):
        extract(Exact(), (world(4) for _ in range(2)), sources=torch.arange(7))


def test_pictures_are_of_sequences_from_everywhere() -> None:
    sequence = world(300, 2)
    features = extract(lambda v: v * 1, (sequence, sequence._replace(views=sequence.views + 1)), batch_size=50)
    assert features.pictures is not None
    assert features.pictured is not None
    assert len(features.pictures) == len(features.pictured.unique()) == 64
    assert torch.equal(features.pictures, features.z[features.pictured])
    assert (features.pictured.diff() > 0).all()
    assert 15 < (features.pictured < 300).sum() < 49
    sizes = (ViewSequence(torch.rand(3, 2, 3, side, side), torch.rand(3, 1, 2)) for side in (4, 6))
    assert extract(lambda v: v.mean(dim=(-2, -1)), sizes).pictures is None


@pytest.mark.parametrize("setting", ["device", "dtype"])
def test_features_do_not_depend_on_torch_s_defaults(setting: str) -> None:
    def measured() -> list[Tensor]:
        features = extract(Exact(), sequence, batch_size=16, sources=torch.arange(40, device="cpu") // 2)
        some = features.draw(10)
        other = of_other_sources(features.source_numbers, torch.Generator(device="cpu").manual_seed(0))
        assert features.pictured is not None
        return [some.relative(0, 2), some.z, aggregate_states(Exact(), some, 2), other, features.pictured]

    sequence = world(40)
    expected = measured()
    before = torch.get_default_dtype()
    try:
        torch.set_default_device("meta") if setting == "device" else torch.set_default_dtype(torch.float64)
        found = measured()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_sequences_of_different_groups_are_not_read_as_those_of_one() -> None:
    views, actions = torch.rand(4, 3, 2), torch.randn(4, 2, 2)
    one, other = (ViewSequence(views, actions, group=group) for group in (Translation(2), None))
    assert len(extract(lambda v: v, [one, one._replace(group=Translation(2))]).z) == 8
    for both in ([one, other], [other, one], [one, one._replace(group=Scale())]):
        with pytest.raises(ValueError, match=r"have actions of one group; got .* and .*Extract each by itself"):
            extract(lambda v: v, both)


def test_parameters_in_a_dict_are_read_as_those_in_a_tuple_and_cut_with_their_rows() -> None:
    hue, scale = torch.rand(7, 3, 1), 1 + torch.rand(7, 3, 1)
    group = Product({"hue": Hue(), "scale": Scale()})
    elements = torch.cat([hue, scale], dim=-1)
    sequence = ViewSequence(torch.rand(7, 3, 2), group.actions(elements), {"scale": scale, "hue": hue}, group=group)
    features = extract(lambda v: v, sequence, batch_size=3)
    assert features.elements is not None
    torch.testing.assert_close(features.elements, elements)


def test_a_causal_aggregator_makes_the_states_of_a_card_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    aggregator = CausalAggregator(12, depth=2, heads=2)
    model = tiny_model(aggregator=aggregator).eval()
    features = extract(model, ViewSequence(torch.rand(9, 5, 3, 8, 8), torch.randn(9, 4, 3)))
    alone = [aggregate_states(model, features, m) for m in range(1, 6)]
    passes, whole = Counter[str](), aggregator.prefixes

    def counted(*inputs: Tensor) -> Tensor:
        passes["prefixes"] += 1
        return whole(*inputs)

    monkeypatch.setattr(aggregator, "prefixes", counted)
    monkeypatch.setattr(aggregator, "forward", lambda *_: pytest.fail("a pass for one length"))
    card = Remembering(model, of=(features,))
    for m, state in enumerate(alone, start=1):
        torch.testing.assert_close(aggregate_states(card, features, m), state, atol=1e-5, rtol=0)
    assert passes == {"prefixes": 1}
