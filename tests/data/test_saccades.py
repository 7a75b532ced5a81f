"""Saccades: where the gaze falls, what the fovea sees there, and what the actions say of it."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor

from seqjepa.data.saccades import SaccadeViews, cut_patches
from seqjepa.groups import Product, Translation

RECORDINGS = Path(__file__).parent.parent / "recordings"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions_of(pixels: Tensor, images: Tensor) -> Tensor:
    return (pixels + 0.5) / torch.tensor(images.shape[2:])


# ── Slow references ──────────────────────────────────────────────────────────────────────────────────────────────────


def mirrored(index: int, size: int) -> int:
    if size == 1:
        return 0
    while not 0 <= index < size:
        index = -index if index < 0 else 2 * (size - 1) - index
    return index


def cut_by_loops(image: Tensor, row: float, column: float, side: int, before: int) -> Tensor:
    """A patch (C, side, side) whose `before`-th pixel lies at (row, column): bilinear, mirrored outside."""
    c, h, w = image.shape
    patch = torch.zeros(c, side, side, dtype=image.dtype)
    for i, j in itertools.product(range(side), repeat=2):
        y, x = row - before + i, column - before + j
        for down, right in itertools.product((0, 1), repeat=2):
            weight = abs(1 - down - (y - math.floor(y))) * abs(1 - right - (x - math.floor(x)))
            if weight > 0:
                r, k = mirrored(math.floor(y) + down, h), mirrored(math.floor(x) + right, w)
                patch[:, i, j] += weight * image[:, r, k]
    return patch


def near(p: tuple[int, int], q: tuple[int, int], radius: float, shape: str | None) -> bool:
    down, right = abs(p[0] - q[0]), abs(p[1] - q[1])
    if shape is None:
        return False
    return max(down, right) <= radius if shape == "square" else math.hypot(down, right) <= radius


def reachable(sampler: SaccadeViews, h: int, w: int) -> list[tuple[int, int]]:
    """The pixels on which the fovea stays inside, found by trying all of them."""
    f = sampler.fovea
    return [
        (r, c)
        for r, c in itertools.product(range(h), range(w))
        if sampler.padding or (r - f // 2 >= 0 and r - f // 2 + f <= h and c - f // 2 >= 0 and c - f // 2 + f <= w)
    ]


def path_probabilities(sampler: SaccadeViews, saliency: Tensor) -> dict[tuple[tuple[int, int], ...], float]:
    """The probability of every sequence of fixations, by walking through all of them."""
    h, w = saliency.shape
    middle = torch.tensor([h / 2, w / 2])
    original = {}
    for r, c in reachable(sampler, h, w):
        far = (((torch.tensor([r, c]) + 0.5 - middle) / torch.tensor([h, w])) ** 2).sum().item()
        bias = 1.0 if sampler.center_bias is None else math.exp(-far / 2 / sampler.center_bias**2)
        original[r, c] = saliency[r, c].item() * bias
    radius = sampler.fovea / 2 if sampler.radius is None else sampler.radius
    found: dict[tuple[tuple[int, int], ...], float] = {}

    def walk(path: tuple[tuple[int, int], ...], inhibited: set[tuple[int, int]], probability: float) -> None:
        if len(path) == sampler.num_views:
            found[path] = probability
            return
        weights = {p: v for p, v in original.items() if p not in inhibited}
        if not weights:
            weights, inhibited = dict(original), set()
        if sum(weights.values()) == 0:
            weights = dict.fromkeys(weights, 1.0)
        for p, weight in weights.items():
            if weight > 0:
                around = {q for q in original if near(p, q, radius, sampler.inhibition)}
                walk((*path, p), inhibited | around, probability * weight / sum(weights.values()))

    walk((), set(), 1.0)
    return found


def p_value(observed: dict[Any, int], expected: dict[Any, float]) -> float:
    """Chi-square; outcomes expected less than five times count as one."""
    assert set(observed) <= set(expected), "something impossible happened"
    common = {k for k, v in expected.items() if v >= 5}
    rare = [k for k in expected if k not in common]
    seen, hoped = [observed.get(k, 0) for k in common], [expected[k] for k in common]
    if rare:
        seen, hoped = [*seen, sum(observed.get(k, 0) for k in rare)], [*hoped, sum(expected[k] for k in rare)]
    return 1.0 if len(seen) == 1 else float(chisquare(seen, hoped).pvalue)


# ── Where the gaze falls ─────────────────────────────────────────────────────────────────────────────────────────────

SPARSE = torch.zeros(6, 7)
SPARSE[2, 2], SPARSE[2, 3], SPARSE[4, 4] = 3.0, 1.0, 2.0


@pytest.mark.parametrize(("settings", "saliency"), [
    ({"num_views": 2, "fovea": 2}, None),
    ({"num_views": 2, "fovea": 3}, "random"),
    ({"num_views": 2, "fovea": 2, "inhibition": "round", "radius": 2.3}, "random"),
    ({"num_views": 2, "fovea": 3, "inhibition": "round"}, "random"),      # of radius 1.5: a diagonal step is near
    ({"num_views": 2, "fovea": 3, "inhibition": None}, "random"),
    ({"num_views": 2, "fovea": 3, "padding": "reflect", "radius": 0}, "random"),
    ({"num_views": 2, "fovea": 1, "center_bias": 0.2}, "random"),
    ({"num_views": 2, "fovea": 2, "center_bias": 0.15}, None),
    ({"num_views": 3, "fovea": 2}, "sparse"),                             # the salient runs out: then uniform
    ({"num_views": 3, "fovea": 4, "radius": 9}, "random"),                # everything is inhibited: then anew
    ({"num_views": 3, "fovea": 3, "radius": 2, "inhibition": "round"}, "sparse"),
])  # fmt: skip
def test_paths_are_as_likely_as_the_slow_reference_says(settings: dict[str, Any], saliency: str | None) -> None:
    n = 40_000
    sampler = SaccadeViews(**settings)
    maps = {None: torch.ones(6, 7), "random": torch.rand(6, 7) ** 2, "sparse": SPARSE}[saliency]
    images = torch.zeros(1, 1, 6, 7).expand(n, -1, -1, -1)
    fixations = sampler.fixate(
        images, saliency=None if saliency is None else maps.expand(n, -1, -1), generator=seeded()
    )
    paths, counts = fixations.flatten(1).unique(dim=0, return_counts=True)
    observed = {
        tuple(zip(path[::2], path[1::2], strict=True)): count
        for path, count in zip(paths.tolist(), counts.tolist(), strict=True)
    }
    expected = {path: n * p for path, p in path_probabilities(sampler, maps).items()}
    assert sum(expected.values()) == pytest.approx(n)
    assert p_value(observed, expected) > 1e-3


def test_the_first_fixation_follows_the_saliency() -> None:
    maps = torch.rand(1, 12, 9)
    images = torch.zeros(1, 1, 12, 9).expand(20_000, -1, -1, -1)
    first = SaccadeViews(num_views=2, fovea=1).fixate(images, saliency=maps.expand(20_000, -1, -1), generator=seeded())[
        :, 0
    ]
    counts = torch.bincount(first[:, 0] * 9 + first[:, 1], minlength=108)
    assert chisquare(counts, 20_000 * (maps.double() / maps.double().sum()).flatten()).pvalue > 1e-3


def test_while_anything_salient_is_left_the_gaze_falls_nowhere_else() -> None:
    images = torch.zeros(1, 1, 200, 200).expand(200, -1, -1, -1)
    saliency = torch.zeros(200, 200, 200)
    saliency[:, 60:80, 90] = torch.logspace(-6, 0, 20)  # 20 pixels of 40,000, some a millionth of the peak
    sampler = SaccadeViews(num_views=20, fovea=1, inhibition=None)
    row, column = sampler.fixate(images, saliency=saliency, generator=seeded()).flatten(0, 1).T
    assert ((row >= 60) & (row < 80) & (column == 90)).all()


@pytest.mark.parametrize("with_saliency", [True, False])
@pytest.mark.parametrize(("shape", "radius"), [("square", None), ("square", 9.0), ("round", None), ("round", 20.5)])
def test_no_two_fixations_are_neighbours_while_there_is_room(
    shape: Any, radius: float | None, with_saliency: bool
) -> None:
    images = torch.rand(50, 1, 80, 110)
    saliency = torch.rand(50, 80, 110) if with_saliency else None
    sampler = SaccadeViews(num_views=4, fovea=20, inhibition=shape, radius=radius)
    path = sampler.fixate(images, saliency=saliency, generator=seeded())
    gaps = (path[:, :, None] - path[:, None]).abs().double()
    distance = gaps.amax(dim=-1) if shape == "square" else gaps.square().sum(dim=-1).sqrt()
    apart = distance[:, ~torch.eye(4, dtype=torch.bool)]
    assert apart.min() > (10 if radius is None else radius)


@pytest.mark.parametrize("padding", [None, "reflect"])
@pytest.mark.parametrize("fovea", [1, 4, 5, 11])
def test_every_pixel_is_reached_from_which_the_fovea_stays_inside_and_no_other(fovea: int, padding: Any) -> None:
    sampler = SaccadeViews(num_views=2, fovea=fovea, padding=padding)
    images = torch.zeros(1, 1, 11, 13).expand(4000, -1, -1, -1)
    found = {tuple(p) for p in sampler.fixate(images, generator=seeded()).flatten(0, 1).tolist()}
    assert found == set(reachable(sampler, 11, 13))


def test_no_saliency_means_the_same_everywhere() -> None:
    images, sampler = torch.rand(5, 3, 40, 30), SaccadeViews(num_views=4, fovea=8)
    for got, expected in zip(
        sampler(images, generator=seeded())[:3],
        sampler(images, saliency=torch.full((5, 40, 30), 0.25), generator=seeded())[:3],
        strict=True,
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_only_the_proportions_of_saliency_matter(scale: float) -> None:
    images, maps, sampler = torch.rand(5, 3, 40, 30), torch.rand(5, 40, 30), SaccadeViews(num_views=4, fovea=8)
    expected = sampler.fixate(images, saliency=maps, generator=seeded())
    assert torch.equal(sampler.fixate(images, saliency=maps * scale, generator=seeded()), expected)


def test_a_smaller_center_bias_draws_the_gaze_to_the_middle_however_small() -> None:
    images = torch.zeros(500, 1, 60, 90)
    spread = [
        (SaccadeViews(num_views=2, fovea=4, center_bias=bias, radius=0)(images, generator=seeded()).parameters - 0.5)
        .square().mean().sqrt().item()
        for bias in (None, 0.2, 0.05, 1e-9)
    ]  # fmt: skip
    assert spread == sorted(spread, reverse=True)
    assert spread[2] == pytest.approx(0.05, rel=0.1)
    assert spread[3] < 0.02


def test_a_seed_gives_one_result_and_leaves_all_else_alone() -> None:
    images, maps = torch.rand(6, 3, 40, 40), torch.rand(6, 40, 40)
    before = images.clone(), maps.clone(), torch.get_rng_state()
    sampler = SaccadeViews(num_views=5, fovea=16)
    first, second = (sampler(images, saliency=maps, generator=seeded(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    assert not torch.equal(first.parameters, sampler(images, saliency=maps, generator=seeded(4)).parameters)
    assert all(torch.equal(a, b) for a, b in zip((images, maps, torch.get_rng_state()), before, strict=True))
    torch.manual_seed(1)
    without = sampler(images, saliency=maps)
    torch.manual_seed(1)
    assert torch.equal(without.views, sampler(images, saliency=maps).views)


# ── What the fovea sees ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fovea", [8, 9])
@pytest.mark.parametrize(("row", "column"), [(10, 30), (25, 7), (4, 4)])
def test_a_patch_is_cut_where_the_saliency_was_read(fovea: int, row: int, column: int) -> None:
    impulse = torch.zeros(1, 1, 40, 60)
    impulse[0, 0, row, column] = 1
    views, _, positions = SaccadeViews(num_views=2, fovea=fovea)(impulse, saliency=impulse[0], generator=seeded())[:3]
    assert views[0, 0, 0].nonzero().tolist() == [[fovea // 2, fovea // 2]]
    torch.testing.assert_close(positions[0, 0], torch.tensor([(row + 0.5) / 40, (column + 0.5) / 60]))


@given(st.data())
def test_patches_are_the_image_s_own_pixels(data: st.DataObject) -> None:
    b, c, v = (data.draw(st.integers(1, 3)) for _ in range(3))
    h, w = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    f = data.draw(st.integers(1, min(h, w)))
    padding: Any = data.draw(st.sampled_from([None, "reflect"]))
    images = torch.rand(b, c, h, w, dtype=data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16])))
    sampler = SaccadeViews(num_views=v + 1, fovea=f, padding=padding)
    views, actions, positions = sampler(images, saliency=torch.rand(b, h, w), generator=seeded())[:3]
    assert views.shape == (b, v + 1, c, f, f)
    assert views.dtype == images.dtype
    assert actions.shape == (b, v, 2)
    pixels = positions * torch.tensor([h, w]) - 0.5
    torch.testing.assert_close(pixels, pixels.round())
    for i, k in itertools.product(range(b), range(v + 1)):
        row, column = (round(p) for p in pixels[i, k].tolist())
        assert torch.equal(views[i, k], cut_by_loops(images[i], row, column, f, f // 2))
        if padding is None:
            top, left = row - f // 2, column - f // 2
            assert torch.equal(views[i, k], images[i, :, top : top + f, left : left + f])
    again = sampler.at(images, positions)
    assert all(torch.equal(a, b) for a, b in zip(again[:3], (views, actions, positions), strict=True))


@given(st.data())
def test_between_pixels_patches_are_bilinear(data: st.DataObject) -> None:
    h, w = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    f = data.draw(st.integers(1, min(h, w)))
    padding: Any = data.draw(st.sampled_from([None, "reflect"]))
    images = torch.rand(2, 2, h, w, dtype=torch.float64)
    sampler = SaccadeViews(num_views=2, fovea=f, padding=padding)
    share = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=12, max_size=12))).view(2, 3, 2).double()
    size = torch.tensor([h, w])
    low, high = (torch.zeros(2), size) if padding else (torch.tensor(f // 2 + 0.5), size - f + f // 2 + 0.5)
    positions = (low + share * (high - low)) / size
    views = sampler.at(images, positions).views
    for i, k in itertools.product(range(2), range(3)):
        row, column = (positions[i, k] * size - 0.5).tolist()
        torch.testing.assert_close(views[i, k], cut_by_loops(images[i], row, column, f, f // 2), atol=2e-3, rtol=0)


def test_between_pixels_a_patch_is_exact_on_a_plane() -> None:
    row, column = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    plane = (row / 40 + column / 90)[None, None].double()
    positions = torch.tensor([[[0.5123, 0.4567], [0.3001, 0.7003]]], dtype=torch.float64)
    at = positions * torch.tensor([20, 30]) - 0.5
    views = SaccadeViews(num_views=2, fovea=5).at(plane, positions).views
    steps = torch.arange(-2, 3)
    expected = (at[..., :1, None] + steps[:, None]) / 40 + (at[..., 1:, None] + steps) / 90
    torch.testing.assert_close(views[:, :, 0], expected)


@pytest.mark.parametrize("size", [96, 3999])
def test_a_position_in_single_precision_still_means_its_pixel(size: int) -> None:
    images = torch.rand(1, 1, 3, size)
    sampler = SaccadeViews(num_views=2, fovea=1)
    columns = torch.arange(size)
    positions = torch.stack([torch.full((size,), 0.5), (columns + 0.5) / size], dim=-1)[None]
    assert torch.equal(sampler.at(images, positions).views.flatten(), images[0, 0, 1])


@pytest.mark.parametrize("fovea", [6, 7])
def test_mirrored_images_show_mirrored_views_at_mirrored_positions(fovea: int) -> None:
    images, sampler = torch.rand(2, 3, 20, 31), SaccadeViews(num_views=2, fovea=fovea, padding="reflect")
    pixels = torch.stack([torch.randint(3, 17, (2, 5)), torch.randint(3, 28, (2, 5))], dim=-1)
    mirrored_pixels = pixels.clone()
    mirrored_pixels[..., 1] = 31 - 1 - pixels[..., 1] + (fovea + 1) % 2  # an even fovea reaches one pixel less ahead
    there = sampler.at(images.flip(3), positions_of(mirrored_pixels, images))
    assert torch.equal(there.views, sampler.at(images, positions_of(pixels, images)).views.flip(4))
    transposed = sampler.at(images.transpose(2, 3), positions_of(pixels, images).flip(2))
    assert torch.equal(transposed.views, sampler.at(images, positions_of(pixels, images)).views.transpose(3, 4))


def test_layout_and_strides_of_the_images_change_nothing() -> None:
    images, maps, sampler = torch.rand(4, 3, 24, 28), torch.rand(4, 24, 28), SaccadeViews(num_views=3, fovea=8)
    expected = sampler(images, saliency=maps, generator=seeded()).views
    strided = torch.empty(4, 3, 48, 28)[:, :, ::2].copy_(images)
    for same in (images.to(memory_format=torch.channels_last), strided):
        assert torch.equal(sampler(same, saliency=maps, generator=seeded()).views, expected)


def test_gradients_reach_the_pixels_that_are_seen() -> None:
    images = torch.rand(2, 1, 12, 12, requires_grad=True)
    pixels = torch.tensor([[[4, 4], [5, 5]], [[6, 6], [6, 6]]])
    SaccadeViews(num_views=2, fovea=3).at(images, positions_of(pixels, images)).views.sum().backward()
    expected = torch.zeros(2, 1, 12, 12)
    for image, path in enumerate(pixels.tolist()):
        for r, c in path:
            expected[image, 0, r - 1 : r + 2, c - 1 : c + 2] += 1
    assert images.grad is not None
    assert torch.equal(images.grad, expected)


# ── What the actions say ─────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(2, 6), st.integers(1, 12), st.integers(12, 30), st.integers(12, 30))
def test_actions_are_differences_of_positions(v: int, f: int, h: int, w: int) -> None:
    images = torch.rand(3, 1, h, w)
    batch = SaccadeViews(num_views=v, fovea=f)(images, generator=seeded())
    assert batch.group == Translation(2)
    torch.testing.assert_close(batch.actions, batch.parameters[:, 1:] - batch.parameters[:, :-1], rtol=0, atol=0)
    torch.testing.assert_close(
        batch.group.path_composition(batch.actions), batch.parameters[:, -1] - batch.parameters[:, 0]
    )
    assert ((batch.parameters > 0) & (batch.parameters < 1)).all()


def test_an_action_downwards_moves_what_is_seen_upwards() -> None:
    image = torch.arange(40.0).view(1, 1, 40, 1).expand(1, 1, 40, 40) / 40
    batch = SaccadeViews(num_views=2, fovea=7).at(image, torch.tensor([[[0.3125, 0.5125], [0.4125, 0.5125]]]))
    torch.testing.assert_close(batch.actions, torch.tensor([[[0.1, 0.0]]]))
    assert torch.equal(batch.views[0, 1, 0, :3], batch.views[0, 0, 0, 4:])  # 0.1 of 40 pixels


# ── Several scales ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_scales_are_channels_in_their_order_and_the_fovea_stays_sharp() -> None:
    images, maps = torch.rand(3, 2, 40, 50), torch.rand(3, 40, 50)
    plain, wide = (
        SaccadeViews(num_views=3, fovea=8, scales=scales)(images, saliency=maps, generator=seeded())
        for scales in ((1,), (4, 1, 2.5))
    )
    assert wide.views.shape == (3, 3, 6, 8, 8)
    assert torch.equal(wide.views[:, :, 2:4], plain.views)
    assert torch.equal(wide.parameters, plain.parameters)
    assert wide.group == plain.group
    pixels = (plain.parameters * torch.tensor([40, 50]) - 0.5).round().long()
    for i, k in itertools.product(range(3), range(3)):
        row, column = pixels[i, k].tolist()
        for channel, side in ((0, 32), (4, 20)):
            crop = cut_by_loops(images[i], row, column, side, side // 2)
            expected = F.interpolate(crop[None], (8, 8), mode="bilinear", antialias=True, align_corners=False)[0]
            torch.testing.assert_close(wide.views[i, k, channel : channel + 2], expected)


@pytest.mark.parametrize(("fovea", "scales"), [(4, (1, 2, 3)), (5, (1, 3, 1.4)), (4, (1.5, 1))])
@pytest.mark.parametrize("offset", [0.0, 0.37])
def test_crops_of_all_scales_share_their_centre(fovea: int, scales: tuple[float, ...], offset: float) -> None:
    row, column = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    plane = (row / 80 + column / 110)[None, None].double()
    positions = torch.tensor([[[18.5 + offset, 21.5 + offset]]], dtype=torch.float64) / 40
    views = SaccadeViews(num_views=2, fovea=fovea, scales=scales).at(plane, positions).views
    means = views[0, 0].mean(dim=(1, 2))
    torch.testing.assert_close(means, means[:1].expand(len(scales)))


def test_scales_as_views_are_steps_of_their_own() -> None:
    images = torch.rand(3, 2, 40, 50)
    settings: dict[str, Any] = {"num_views": 3, "fovea": 8, "scales": (4, 1)}
    channels = SaccadeViews(**settings)(images, generator=seeded())
    batch = SaccadeViews(**settings, scales_as="views")(images, generator=seeded())
    assert batch.views.shape == (3, 6, 2, 8, 8)
    assert torch.equal(batch.views, channels.views.unflatten(2, (2, 2)).flatten(1, 2))
    assert isinstance(batch.group, Product)
    assert batch.actions.shape == (3, 5, batch.group.dim) == (3, 5, 3)
    assert torch.equal(batch.parameters[..., 2], torch.tensor([4.0, 1.0] * 3).expand(3, -1))
    assert torch.equal(batch.parameters[:, ::2, :2], channels.parameters)
    assert torch.equal(batch.actions[:, ::2, :2], torch.zeros(3, 3, 2))  # from one scale to the next, in place
    torch.testing.assert_close(batch.actions[0, :, 2].exp(), torch.tensor([0.25, 4, 0.25, 4, 0.25]))
    torch.testing.assert_close(batch.group.apply(batch.parameters[:, :-1], batch.actions), batch.parameters[:, 1:])


def test_scales_are_as_precise_as_positions() -> None:
    sampler = SaccadeViews(num_views=2, fovea=5, scales=(1, 1.4), scales_as="views")
    batch = sampler.at(torch.rand(1, 1, 20, 20), torch.full((1, 2, 2), 0.5, dtype=torch.float64))
    assert batch.parameters[0, :, 2].tolist() == [1, 1.4, 1, 1.4]


def test_a_crop_may_be_wider_than_its_image() -> None:
    images = torch.rand(1, 1, 7, 5)
    patches = cut_patches(images, torch.tensor([[[-9, -10]]]), 24, mirror=True)
    assert torch.equal(patches[0, 0], cut_by_loops(images[0], 3, 2, 24, 12))
    views = SaccadeViews(num_views=2, fovea=4, scales=(1, 6))(torch.full((1, 1, 7, 5), 0.3)).views
    torch.testing.assert_close(views, torch.full((1, 2, 2, 4, 4), 0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wider_crops_of_images_in_half_precision_are_those_of_single_precision_rounded(dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 40, 50).to(dtype)
    sampler = SaccadeViews(num_views=3, fovea=8, scales=(1, 2, 4))
    half, single = (sampler(x, generator=seeded()) for x in (images, images.float()))
    assert half.views.dtype == dtype
    assert torch.equal(half.views, single.views.to(dtype))


# ── Against the released code ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    content: dict[str, Any] = torch.load(RECORDINGS / "data_saccade.pt", weights_only=True)
    return content


def test_at_recorded_fixations_patches_are_pixels_and_the_recorded_ones_lie_at_the_transposed_place(
    recorded: dict[str, Any],
) -> None:
    image = recorded["image_u8"].float()[None] / 255
    sampler, whole = SaccadeViews(num_views=2, fovea=32), SaccadeViews(num_views=2, fovea=1)
    spacing = torch.linspace(-1, 1, 32) * 16 - 0.5  # where the release samples about its centre: 32/31 pixels apart
    inside = 0
    for (row, column), theirs in zip(
        recorded["fixed"]["centers_row_col"].tolist(), recorded["fixed"]["patches_float"], strict=True
    ):
        if not (17 <= row <= 80 and 17 <= column <= 80):
            continue
        inside += 1
        here, there = sampler.at(image, torch.tensor([[[row, column], [column, row]]]).add(0.5) / 96).views[0]
        assert torch.equal(here, image[0, :, row - 16 : row + 16, column - 16 : column + 16])
        # The middle pixel is the same up to the offset of 0.016 pixels; rows and columns further out drift by up to ½.
        assert (there[:, 16, 16] - theirs[:, 16, 16]).abs().max() < 0.02
        middle = (there - theirs)[:, 12:21, 12:21].abs().mean()
        assert middle < 0.03
        if row != column:
            assert middle < (here - theirs)[:, 12:21, 12:21].abs().mean() / 4
        # Bilinear views of one pixel at the released code's own places give its patch.
        y, x = torch.meshgrid(column + spacing, row + spacing, indexing="ij")
        pixels = whole.at(image, torch.stack([y, x], dim=-1).view(1, -1, 2).add(0.5) / 96).views
        torch.testing.assert_close(pixels.view(32, 32, 3).permute(2, 0, 1), theirs, atol=2e-4, rtol=0)
    assert inside >= 2


def test_an_impulse_that_the_released_code_misses_is_in_the_middle_of_the_fovea(recorded: dict[str, Any]) -> None:
    row, column = recorded["impulse"]["image_row_col"].tolist()
    image = torch.zeros(1, 1, 96, 96)
    image[0, 0, row, column] = 1
    centers = recorded["impulse"]["centers_row_col"]
    views = SaccadeViews(num_views=2, fovea=32).at(image, (centers[None] + 0.5) / 96).views[0, :, 0]
    for center, ours, theirs in zip(centers.tolist(), views, recorded["impulse"]["patches"], strict=True):
        if center == [row, column]:
            assert ours.nonzero().tolist() == [[16, 16]]
            assert theirs.max() == 0
        elif center == [column, row]:
            assert ours.max() == 0
            assert divmod(int(theirs.argmax()), 32) == (16, 16)


def test_inhibition_leaves_what_the_released_code_leaves(recorded: dict[str, Any]) -> None:
    sampler = SaccadeViews(num_views=5, fovea=32, padding="reflect")  # the release fixates anywhere
    traces = [trace for trace in recorded["traces"] if trace["use_sal"] and trace["ior"]]
    assert traces
    for trace in traces:
        weights = recorded["saliency"].clone()
        for k in range(5):
            shares = weights if k == 0 else (weights + 1e-16) / (weights + 1e-16).sum()
            probe = shares.flatten()[trace["probe_index"]]
            torch.testing.assert_close(probe, trace["weights_at_probe"][k], atol=1e-9, rtol=1e-4)
            assert int((weights == 0).sum()) == trace["n_zero_or_floor"][k]
            sampler._inhibit(weights, torch.stack([trace["rows"][k : k + 1], trace["cols"][k : k + 1]], dim=1))


@pytest.mark.parametrize(("stats", "settings"), [
    ("stats_sal_ior", {}), ("stats_sal_noior", {"inhibition": None}), ("stats_unif", {"inhibition": None}),
])  # fmt: skip
def test_fixations_are_distributed_as_in_the_released_code(
    recorded: dict[str, Any], stats: str, settings: dict[str, Any]
) -> None:
    theirs, n = recorded[stats], 4000
    images = torch.zeros(1, 1, 96, 96).expand(n, -1, -1, -1)
    maps = None if stats == "stats_unif" else recorded["saliency"].expand(n, -1, -1)
    path = SaccadeViews(num_views=5, fovea=32, padding="reflect", **settings).fixate(
        images, saliency=maps, generator=seeded()
    )
    for k in range(5):
        bins = path[:, k, 0] // 8 * 12 + path[:, k, 1] // 8
        table = torch.stack(
            [torch.bincount(bins, minlength=144).float(), theirs["hist_fix_rowbin_colbin"][k].flatten()]
        )
        common = table.sum(dim=0) >= 20
        table = torch.cat([table[:, common], table[:, ~common].sum(dim=1, keepdim=True)], dim=1)
        table = table[:, table.sum(dim=0) > 0]
        assert chi2_contingency(table.numpy()).pvalue > 1e-3, f"fixation {k}"
    first, second = torch.triu_indices(5, 5, 1)
    gaps = (path[:, first] - path[:, second]).abs().amax(dim=-1)
    close = (gaps <= 16).float().mean().item()
    assert close == pytest.approx(theirs["frac_pairs_within_16"].item(), abs=0.02)
    if stats == "stats_sal_ior":
        assert close == 0
        assert gaps.min() == theirs["min_pairwise_chebyshev"] == 17


# ── Wrong input ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_views": 1}, r"at least 2, so that there is an action \(T ≥ 1\); got 1"),
    ({"fovea": 0}, "at least one pixel wide; got fovea=0"),
    ({"inhibition": "oval"}, "inhibition must be one of 'square', 'round', None; got 'oval'"),
    ({"padding": "zeros"}, "padding must be one of 'reflect', None; got 'zeros'"),
    ({"scales_as": "batch"}, "scales_as must be one of 'channels', 'views'; got 'batch'"),
    ({"radius": -1}, "distance in pixels, at least 0; got -1"),
    ({"radius": math.nan}, "distance in pixels, at least 0; got nan"),
    ({"radius": 4, "inhibition": None}, "nothing for radius=4 to measure"),
    ({"center_bias": 0}, "standard deviation as a share of the image's side, above 0; got 0"),
    ({"scales": ()}, r"scales must be different numbers, 1 \(the fovea\) and wider ones.*got \(\)"),
    ({"scales": (2, 4)}, r"1 \(the fovea\) and wider ones.*got \(2, 4\)"),
    ({"scales": (1, 0.5)}, r"1 \(the fovea\) and wider ones.*got \(1, 0.5\)"),
    ({"scales": (1, math.inf)}, r"1 \(the fovea\) and wider ones.*got \(1, inf\)"),
    ({"scales": (1, math.nan)}, r"1 \(the fovea\) and wider ones.*got \(1, nan\)"),
    ({"scales": (1, 2, 2)}, r"different numbers.*got \(1, 2, 2\)"),
    ({"scales": (1, 1.3)}, "a scale of 1.3 makes a crop of 20.8 around a fovea of 16"),
    ({"fovea": 15, "scales": (1, 2)}, "an even number of pixels wider.*a scale of 2 makes a crop of 30 around .* 15"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaccadeViews(**{"num_views": 3, "fovea": 16, **settings})


@pytest.mark.parametrize("setting", [{"num_views": 2.5}, {"num_views": 3.0}, {"fovea": 16.0}])
def test_numbers_that_are_not_whole_are_refused(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(TypeError, match=f"{name} must be a whole number; got {value}"):
        SaccadeViews(**{"num_views": 3, "fovea": 16, **setting})
    numpy_s: dict[str, Any] = {"num_views": np.int64(3), "fovea": np.int32(4)}
    assert SaccadeViews(**numpy_s)(torch.rand(1, 3, 8, 8)).views.shape == (1, 3, 3, 4, 4)


def corrupted(maps: Tensor, row: int, value: float) -> Tensor:
    maps = maps.clone()
    maps[row, 3, 4] = value
    return maps


MAPS = torch.ones(4, 24, 32)
BORDER = torch.zeros(4, 24, 32).index_fill(2, torch.tensor([0, 31]), 1.0)


@pytest.mark.parametrize(("maps", "error", "message"), [
    (torch.ones(4, 12, 16), ValueError, r"one map for each image .* \(4, 24, 32\); got \(4, 12, 16\).*F.interpolate\("),
    (torch.ones(3, 24, 32), ValueError, r"\(4, 24, 32\); got \(3, 24, 32\)"),
    (torch.ones(4, 1, 24, 32), ValueError, r"saliency must have the axes \(B, H, W\); got shape \(4, 1, 24, 32\)"),
    (MAPS.byte(), TypeError, r"saliency must be floating point; got torch.uint8.*saliency.float\(\) / 255"),
    (MAPS.numpy(), TypeError, "saliency must be a torch.Tensor; got ndarray"),
    (corrupted(MAPS, 1, -0.5), ValueError, r"row 1 goes down to -0.5\. Log-densities want saliency.exp\(\)"),
    (corrupted(MAPS, 2, math.nan), ValueError, "row 2 holds NaN or infinity"),
    (corrupted(MAPS, 2, math.inf), ValueError, "row 2 holds NaN or infinity"),
    (corrupted(MAPS, 2, -math.inf), ValueError, "row 2 holds NaN or infinity"),
    (MAPS.index_fill(0, torch.tensor([3]), 0.0), ValueError, "row 3 is 0 everywhere.*saliency out"),
    (BORDER, ValueError, "row 0 lies wholly where a fovea of 16 would leave the image, outside rows 8 … 16 and columns "
                         r'8 … 24\. Build SaccadeViews\(padding="reflect"\)'),
    (torch.ones(4, 24, 32, device="meta"), ValueError, "must lie where the images do, on cpu; got meta"),
])  # fmt: skip
def test_saliency_that_is_no_weight_is_refused(maps: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SaccadeViews(num_views=2, fovea=16)(torch.rand(4, 3, 24, 32), saliency=maps)


def test_saliency_at_the_border_is_seen_with_padding_and_an_overwhelmed_one_is_named() -> None:
    images = torch.rand(4, 3, 24, 32)
    columns = SaccadeViews(num_views=2, fovea=16, padding="reflect").fixate(images, saliency=BORDER)[:, 0, 1]
    assert set(columns.tolist()) <= {0, 31}
    with pytest.raises(ValueError, match=r"or center_bias=0\.001 leaves nothing of it"):
        SaccadeViews(num_views=2, fovea=1, center_bias=0.001)(images, saliency=BORDER)


def test_images_that_cannot_be_seen_are_refused() -> None:
    sampler, positions = SaccadeViews(num_views=2, fovea=16), torch.full((1, 1, 2), 0.5)
    holed = torch.rand(1, 3, 24, 24)
    holed[0, 0, 0, 0] = math.nan
    for images, error, message in (
        (torch.rand(1, 3, 12, 24), ValueError, r"a fovea of 16 pixels and images of \(12, 24\)"),
        (torch.rand(1, 3, 24, 12), ValueError, r"a fovea of 16 pixels and images of \(24, 12\)"),
        (holed, ValueError, "Images must be finite; 1 of 1 hold NaN"),
        (torch.rand(3, 24, 24), ValueError, r"images must have the axes \(B, C, H, W\)"),
        (torch.zeros(1, 3, 24, 24).byte(), TypeError, r"images.float\(\) / 255"),
        (torch.rand(0, 3, 24, 24), ValueError, "at least one image"),
    ):
        with pytest.raises(error, match=message):
            sampler(images)
        with pytest.raises(error, match=message):
            sampler.at(images, positions)


@pytest.mark.parametrize(("positions", "error", "message"), [
    ([[[0.5, 0.5], [0.5, 0.2]]], ValueError,
     r"needs x in \[0.2656, 0.7656\] on images of \(24, 32\); got 0.2000 in row 0, view 1\. Move it, or build"),
    ([[[0.8, 0.5]]], ValueError, r"needs y in \[0.3542, 0.6875\].*got 0.8000 in row 0, view 0"),
    ([[[math.nan, 0.5]]], ValueError, "Positions must be finite"),
    ([[0.5, 0.5]], ValueError, r"positions must have the axes \(B, V, 2\)"),
    ([[[0.5, 0.5, 1.0]]], ValueError, r"in each of 1 images, \(1, V, 2\); got shape \(1, 1, 3\)"),
    ([[[0.5, 0.5]], [[0.5, 0.5]]], ValueError, r"got shape \(2, 1, 2\)"),
    ([[[1, 0]]], TypeError, "positions must be floating point"),
])  # fmt: skip
def test_positions_that_cannot_be_seen_are_refused(positions: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SaccadeViews(num_views=2, fovea=16).at(torch.rand(1, 3, 24, 32), torch.tensor(positions))


def test_no_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"V ≥ 1 fixations in each of 1 images, .* got shape \(1, 0, 2\)"):
        SaccadeViews(num_views=2, fovea=16).at(torch.rand(1, 3, 24, 32), torch.zeros(1, 0, 2))


def test_positions_off_the_image_are_refused_with_padding_too() -> None:
    sampler, images = SaccadeViews(num_views=2, fovea=16, padding="reflect"), torch.rand(1, 3, 24, 32)
    assert sampler.at(images, torch.tensor([[[0.0, 1.0]]])).views.isfinite().all()
    with pytest.raises(ValueError, match=r"needs x in \[0.0000, 1.0000\].*got 1.1000 in row 0, view 0\.$"):
        sampler.at(images, torch.tensor([[[0.0, 1.1]]]))
    with pytest.raises(ValueError, match="Positions must lie where the images do, on cpu; got meta"):
        sampler.at(images, torch.zeros(1, 1, 2, device="meta"))


# ── On a GPU ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"inhibition": "round"}, {"padding": "reflect"}, {"scales": (1, 2)}])
def test_a_generator_of_the_cpu_gives_the_same_views_on_a_gpu(settings: dict[str, Any]) -> None:
    images, maps = torch.rand(16, 3, 96, 96), torch.rand(16, 96, 96)
    sampler = SaccadeViews(num_views=5, fovea=32, **settings)
    expected = sampler(images, saliency=maps, generator=seeded())
    got = sampler(images.cuda(), saliency=maps.cuda(), generator=seeded())
    assert got.views.is_cuda
    assert torch.equal(got.parameters.cpu(), expected.parameters)
    torch.testing.assert_close(got.views.cpu(), expected.views, atol=1e-5, rtol=0)
    on_gpu = sampler(images.cuda(), saliency=maps.cuda(), generator=torch.Generator("cuda").manual_seed(0))
    assert on_gpu.views.shape == expected.views.shape
