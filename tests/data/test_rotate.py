"""Turned images against rot90 and torchvision, and what must not be seen of a border."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from seqjepa.data import RotatedViews
from seqjepa.groups import Product, Rotation2D

borders = pytest.mark.parametrize("border", ["disc", "inside", "zero"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@borders
@pytest.mark.parametrize("quarters", [-1, 0, 1, 2])
def test_quarter_turns_of_the_image_are_quarter_turns_of_the_view(border: Any, quarters: int) -> None:
    images = torch.rand(3, 2, 17, 17, generator=seeded())
    sampler = RotatedViews(border=border)
    angles = torch.tensor([0.0, 0.3, 2.0]).view(1, 3, 1).expand(3, 3, 1)
    turned = sampler.render(images, angles + quarters * math.pi / 2)
    torch.testing.assert_close(turned, sampler.render(images, angles).rot90(quarters, (-2, -1)), rtol=0, atol=1e-5)
    of_turned = sampler.render(images.rot90(quarters, (-2, -1)), angles)
    torch.testing.assert_close(of_turned, turned, rtol=0, atol=1e-5)


def test_angles_and_shifts_and_scales_are_those_of_torchvision() -> None:
    images = torch.rand(4, 3, 24, 24, generator=seeded())
    sampler = RotatedViews(3, shift=0.2, scale=(0.7, 2.0), border="zero")
    parameters = sampler.draw(4, generator=seeded())
    views = sampler.render(images, parameters)
    for b in range(4):
        for v in range(3):
            angle, down, right, scale = parameters[b, v].tolist()
            expected = reference.affine(  # torchvision's angles are clockwise here
                images[b], -math.degrees(angle), [24 * right, 24 * down], scale, [0, 0], InterpolationMode.BILINEAR
            )
            torch.testing.assert_close(views[b, v], expected, rtol=0, atol=1e-4)


def test_angles_and_shifts_are_uniform_and_magnifications_in_their_logarithm() -> None:
    angle, down, right, scale = RotatedViews(2, 50, 0.3, (0.25, 3.0)).draw(3000, generator=seeded()).flatten(0, 1).T
    limit = math.radians(50)
    for values, low, high in (
        (angle, -limit, limit), (down, -0.3, 0.3), (right, -0.3, 0.3), (scale.log(), math.log(0.25), math.log(3.0)),
    ):  # fmt: skip
        assert kstest(values.numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3


def test_a_shift_moves_the_picture_down_and_right_in_the_view() -> None:
    images = torch.zeros(1, 1, 16, 16)
    images[0, 0, 8, 8] = 1
    sampler = RotatedViews(2, shift=0.3, border="zero")
    view = sampler.render(images, torch.tensor([[[0.0, 2 / 16, -4 / 16]]]))[0, 0, 0]
    assert view[10, 4] == pytest.approx(1, abs=1e-5)
    turned = sampler.render(images, torch.tensor([[[math.pi, 2 / 16, -4 / 16]]]))[0, 0, 0]  # first turned, then moved
    assert turned[9, 3] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("border", ["disc", "inside"])
@given(
    degrees=st.floats(5, 180),
    shift=st.floats(0, 0.4),
    low=st.floats(0.4, 1),
    high=st.floats(1, 2),
    seed=st.integers(0, 2**31),
)
def test_no_view_reaches_beyond_its_image(
    border: Any, degrees: float, shift: float, low: float, high: float, seed: int
) -> None:
    """Every pixel of this image holds its own place, so a view tells where it looks: continue that to its corners."""
    place = (torch.arange(20.0) + 0.5) / 20  # not so many that the image is shrunk first
    image = torch.stack(torch.meshgrid(place, place, indexing="ij"))[None].expand(8, -1, -1, -1)
    sampler = RotatedViews(4, degrees, shift, (low, high), 16, border)
    parameters = sampler.draw(8, generator=seeded(seed))
    parameters[0, 0, 0] = math.radians(min(degrees, 45.0))
    parameters[0, 0, 1:] = torch.tensor([shift] * 2 * (shift > 0) + [low] * (sampler.scale != (1.0, 1.0)))
    views = 2 * sampler.render(image, parameters) - 1  # (8, 4, 2, 16, 16), in [-1, 1] from side to side
    down, right = views[..., 8, 8] - views[..., 7, 8], views[..., 8, 8] - views[..., 8, 7]
    centre = views[..., 7:9, 7:9].mean((-2, -1))
    if border == "inside":
        reach = centre.abs() + 8 * (down.abs() + right.abs())
    else:
        reach = centre.abs() + 8 * (down.square() + right.square()).sqrt()
    assert reach.max() <= 1 + 1e-4
    if degrees >= 45 and border == "inside":
        assert reach[0, 0].max() > 0.99  # and no more is cut away than must be


def test_a_small_turn_keeps_more_of_the_image() -> None:
    extents = [RotatedViews(degrees=d, border="inside")._extent() for d in (1, 30, 45, 180)]
    assert extents == sorted(extents, reverse=True)
    assert extents[-1] == pytest.approx(1 / math.sqrt(2)) == extents[-2]


def test_outside_the_disc_all_views_are_alike() -> None:
    views = RotatedViews(4, border="disc")(torch.rand(6, 3, 32, 32, generator=seeded()), generator=seeded()).views
    corner = torch.arange(32).sub(15.5).square()
    outside = (corner[:, None] + corner[None]).sqrt() > 16
    assert (views[..., outside] == 0.5).all()
    assert outside.float().mean() == pytest.approx(1 - math.pi / 4, abs=0.02)


@given(
    sides=st.tuples(st.integers(3, 30), st.integers(3, 30)),
    channels=st.integers(1, 4),
    num_views=st.integers(2, 4),
    seed=st.integers(0, 2**31),
)
def test_shapes_actions_and_seeds(sides: tuple[int, int], channels: int, num_views: int, seed: int) -> None:
    images = torch.rand(3, channels, *sides, generator=seeded(seed))
    for sampler in (RotatedViews(num_views), RotatedViews(num_views, 30, 0.1, (0.5, 1.5), 12)):
        views, actions, parameters, _, group = sampler(images, generator=seeded(seed))
        assert views.shape == (3, num_views, channels, *[sampler.size or min(sides)] * 2)
        assert actions.shape == (3, num_views - 1, group.dim)
        assert views.min() >= 0
        assert views.max() <= 1
        assert parameters[..., 0].abs().max() <= math.radians(sampler.degrees) + 1e-6
        reached = group.apply(parameters[:, :-1], actions)
        torch.testing.assert_close(reached, parameters[:, 1:], rtol=1e-4, atol=1e-5)
        again = sampler(images, generator=seeded(seed))
        assert torch.equal(again.views, views)


def test_non_square_images_are_not_stretched() -> None:
    wide = torch.rand(2, 3, 20, 36, generator=seeded())
    square = wide[..., 8:28]
    angles = torch.tensor([[[0.0], [1.0]]]).expand(2, 2, 1)
    borders_inside: list[Any] = ["disc", "inside"]
    for border in borders_inside:
        sampler = RotatedViews(border=border)
        whole, middle = (sampler.render(images, angles)[..., 3:-3, 3:-3] for images in (wide, square))
        torch.testing.assert_close(whole, middle, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_places_are_computed_in_float32_whatever_the_images_are(dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 32, 32, generator=seeded())
    views, actions, parameters, *_ = RotatedViews()(images.to(dtype), generator=seeded())
    assert (views.dtype, actions.dtype, parameters.dtype) == (dtype, torch.float32, torch.float32)
    exact = RotatedViews().render(images.to(dtype).float(), parameters)
    torch.testing.assert_close(
        views.float(), exact, rtol=0, atol=torch.finfo(dtype).eps if dtype.itemsize < 4 else 1e-5
    )


def test_a_view_smaller_than_its_image_skips_no_pixel() -> None:
    board = (torch.arange(96)[:, None] + torch.arange(96)) % 2
    views = RotatedViews(size=32)(board.float().expand(2, 1, 96, 96), generator=seeded()).views
    assert views[..., 8:24, 8:24].std() < 0.02  # grey: without antialiasing it is as contrasted as the board


@pytest.mark.parametrize("low", [0.5, 1.0])
def test_a_view_of_the_smallest_magnification_skips_no_pixel(low: float) -> None:
    board = ((torch.arange(96)[:, None] + torch.arange(96)) % 2).float().expand(1, 1, 96, 96)
    sampler = RotatedViews(size=round(32 / low), scale=(low, 2.0), border="zero")
    view = sampler.render(board, torch.tensor([[[0.3, low]]]))[0, 0, 0]
    middle = len(view) // 2
    assert view[middle - 6 : middle + 6, middle - 6 : middle + 6].std() < 0.02
    assert RotatedViews(size=1, scale=(0.3, 1.0), border="zero")(board).views.isfinite().all()


def test_inside_the_disc_an_image_that_is_not_turned_is_seen_as_it_is() -> None:
    images = torch.rand(2, 3, 33, 33, generator=seeded())
    view = RotatedViews(border="disc").render(images, torch.zeros(2, 1, 1))[:, 0]
    place = torch.arange(33.0) - 16
    radius = (place[:, None].square() + place.square()).sqrt()
    torch.testing.assert_close(view[..., radius < 15.5], images[..., radius < 15.5], rtol=0, atol=1e-5)
    edge = (16.5 - radius).clamp(0, 1)  # half-way over a pixel
    torch.testing.assert_close(view, 0.5 + edge * (images - 0.5), rtol=0, atol=1e-5)


def test_inside_a_view_is_the_middle_of_the_image_enlarged() -> None:
    ramp = (torch.arange(32.0) + 0.5).div(32).expand(1, 1, 32, 32)
    view = RotatedViews(border="inside").render(ramp, torch.zeros(1, 1, 1))[0, 0, 0]
    expected = 0.5 + ((torch.arange(32.0) + 0.5) / 32 - 0.5) / math.sqrt(2)
    torch.testing.assert_close(view, expected.expand(32, 32), rtol=0, atol=1e-5)


def test_the_group_names_its_parts() -> None:
    assert RotatedViews() == RotatedViews(4, 180.0, 0.0, (1.0, 1.0), None, "disc")
    assert RotatedViews().group == Rotation2D()
    group = RotatedViews(shift=0.1, scale=(0.8, 1.25)).group
    assert isinstance(group, Product)
    assert list(group.groups) == ["rotation", "shift", "scale"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_views": 0}, r"at least 2, so that there is an action \(T ≥ 1\); got 0"),
        ({"degrees": 0}, "degrees is the largest angle, above 0 and at most 180; got 0"),
        ({"degrees": 200}, "at most 180; got 200"),
        ({"shift": 0.5}, "shift is in sides of a view, from 0, below ½; got 0.5"),
        ({"scale": (0.0, 1.0)}, r"scale is \(smallest, largest\) magnification, above 0; got \(0.0, 1.0\)"),
        ({"scale": (2.0, 1.0)}, r"scale is \(smallest, largest\)"),
        ({"size": 0}, "size is the side of a view in pixels, at least 1, or None; got 0"),
        ({"border": "wrap"}, "border must be 'disc', 'inside' or 'zero'; got 'wrap'"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotatedViews(**arguments)


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 hold NaN or infinity, at rows \[1\]"):
        RotatedViews()(torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), torch.nan)]))
    with pytest.raises(ValueError, match=r"Parameters must be \(B, V, 1\).* got \(2, 4, 3\) for 2 images"):
        RotatedViews().render(torch.rand(2, 1, 8, 8), torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="Parameters must be finite; got NaN"):
        RotatedViews().render(torch.rand(2, 1, 8, 8), torch.full((2, 4, 1), torch.nan))
