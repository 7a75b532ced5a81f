"""One draw for all sources of a batch: the same actions, other views."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqjepa import ViewSequence
from seqjepa.data import AugmentedViews, RenderedObjects, RotatedViews, SaccadeViews

Sampled = Callable[..., ViewSequence]


def of_images(sampler: Any) -> Sampled:
    def sample(rows: int, seed: int, **options: Any) -> ViewSequence:
        images = torch.rand(rows, 3, 20, 20, generator=torch.Generator().manual_seed(rows))
        sequence: ViewSequence = sampler(images, generator=torch.Generator().manual_seed(seed), **options)
        return sequence

    return sample


def of_objects(**settings: Any) -> Sampled:
    objects = RenderedObjects(40, size=6, samples=1, **settings)

    def sample(rows: int, seed: int, **options: Any) -> ViewSequence:
        generator = torch.Generator().manual_seed(seed)
        return objects.sample(torch.arange(rows), num_views=3, generator=generator, **options)

    return sample


KINDS: dict[str, Sampled] = {
    "turned": of_images(RotatedViews(3)),
    "turned, shifted, scaled": of_images(RotatedViews(3, 40, 0.1, (0.7, 1.4))),
    "augmented": of_images(AugmentedViews(3, 8, actions=("crop", "jitter", "blur"))),
    "augmented, image": of_images(AugmentedViews(3, 8, actions=("blur", "hue", "flip", "crop"), frame="image")),
    "fixated": of_images(SaccadeViews(num_views=3, fovea=6)),
    "fixated at scales": of_images(SaccadeViews(num_views=3, fovea=6, scales=(1, 2), scales_as="views")),
    "objects": of_objects(),
    "objects and hues": of_objects(actions=("floor_hue", "rotation"), rotations="so3"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@given(rows=st.integers(2, 19), seed=st.integers(0, 2**31))
def test_all_sources_go_through_the_same_actions_and_are_seen_to_differ(kind: str, rows: int, seed: int) -> None:
    sequence = KINDS[kind](rows, seed, shared=True)
    assert torch.equal(sequence.actions, sequence.actions[:1].expand_as(sequence.actions))  # to the bit
    assert (sequence.views[0] != sequence.views[1]).flatten(1).any(1).all()
    again = KINDS[kind](rows, seed, shared=True)
    assert torch.equal(again.views, sequence.views)
    assert torch.equal(again.actions, sequence.actions)
    assert torch.equal(KINDS[kind](rows + 3, seed, shared=True).actions[0], sequence.actions[0])
    assert not torch.equal(KINDS[kind](rows, seed + 1, shared=True).actions, sequence.actions)


@kinds
def test_by_default_each_source_has_actions_of_its_own(kind: str) -> None:
    actions, plain = (KINDS[kind](5, 0, **options).actions for options in ({"shared": False}, {}))
    assert torch.equal(actions, plain)
    assert len(actions.unique(dim=0)) == 5


@kinds
def test_shared_draws_are_drawn_as_others_are(kind: str) -> None:
    """Of one source, what is shared is what that source alone would get, in whatever place it stands."""
    alone, shared = KINDS[kind](1, 7), KINDS[kind](1, 7, shared=True)
    assert torch.equal(alone.actions, shared.actions)


def differs(x: Tensor) -> bool:
    return not torch.equal(x, x[:1].expand_as(x))


def test_what_actions_do_not_tell_is_drawn_for_each_view() -> None:
    p = KINDS["objects"](8, 0, shared=True).parameters
    assert not differs(p.rotation)
    assert all(map(differs, (p.floor_hue, p.light_hue, p.light_theta, p.light_phi)))
    p = KINDS["objects and hues"](8, 0, shared=True).parameters
    assert not differs(p.rotation)
    assert not differs(p.floor_hue)
    assert all(map(differs, (p.light_hue, p.light_theta, p.light_phi)))
    p = KINDS["augmented"](8, 0, shared=True).parameters
    assert not any(map(differs, (p.crop, p.flip, p.jitter, p.blur)))
    assert all(map(differs, (p.order, p.grey)))
    p = KINDS["augmented, image"](8, 0, shared=True).parameters
    assert not any(map(differs, (p.crop, p.flip, p.jitter[..., 3], p.blur)))
    assert differs(p.jitter[..., :3])
    p = of_images(AugmentedViews(3, 8, actions=("crop",), frame="image"))(8, 0, shared=True).parameters
    assert not differs(p.crop)
    assert differs(p.flip)


def test_the_parameters_that_are_shared_make_the_views() -> None:
    images, generator = torch.rand(4, 3, 20, 20), torch.Generator().manual_seed(0)
    for sampler in (RotatedViews(3, 40, 0.1, (0.7, 1.4)), AugmentedViews(3, 8)):
        sequence = sampler(images, generator=generator, shared=True)
        assert torch.equal(sampler.render(images, sequence.parameters), sequence.views)
    saccades = SaccadeViews(num_views=3, fovea=6)
    sequence = saccades(images, generator=generator, shared=True)
    assert torch.equal(saccades.at(images, sequence.parameters).views, sequence.views)
    objects = RenderedObjects(4, size=6)
    sequence = objects.sample(torch.arange(4), num_views=3, generator=generator, shared=True)
    assert torch.equal(objects.render(sequence.parameters), sequence.views)


def test_shared_fixations_fall_where_the_mean_of_the_maps_says() -> None:
    images, maps = torch.rand(2, 3, 20, 20), torch.zeros(2, 20, 20)
    maps[0, 4, 5], maps[1, 12, 13] = 1.0, 0.001  # peaks count alike, however high they are
    sampler = SaccadeViews(num_views=2, fovea=5)
    for seed in range(8):
        path = sampler.fixate(images, saliency=maps, generator=torch.Generator().manual_seed(seed), shared=True)
        assert torch.equal(path[0], path[1])
        assert sorted(map(tuple, path[0].tolist())) == [(4, 5), (12, 13)]


def test_an_empty_batch_of_objects_shares_nothing() -> None:
    assert KINDS["objects"](0, 0, shared=True).views.shape == (0, 3, 3, 6, 6)


def test_what_is_shared_may_be_written_to_row_by_row() -> None:
    sequence = KINDS["turned"](3, 0, shared=True)
    sequence.actions[0] += 1
    assert differs(sequence.actions)
