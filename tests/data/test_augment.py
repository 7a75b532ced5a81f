"""Augmented views against torchvision, sample by sample; against the released recipe; and the laws of their actions."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from seqjepa.data import Augmentation, AugmentationParameters, AugmentedViews
from seqjepa.data._colour import _at_once, _by_rows, grey, jitter, shift_hue, solarise
from seqjepa.data._resample import blur_matrix, separable
from seqjepa.groups import Crop, Hue, Product, Rotation2D, Translation

RECORDED = torch.load(Path(__file__).parent.parent / "recordings" / "data_augment.pt", weights_only=True)
ADJUST = [
    reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue,
]  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_by_one(sampler: AugmentedViews, image: Tensor, p: AugmentationParameters, b: int, v: int, taps: int) -> Tensor:
    """The view as torchvision makes it of one image."""
    top, left, height, width = p.crop[b, v].int().tolist()
    mode = InterpolationMode(sampler.interpolation)
    side = [sampler.size, sampler.size]
    x = reference.resized_crop(image, top, left, height, width, side, mode, antialias=True).clamp(0, 1)
    if p.flip[b, v]:
        x = reference.horizontal_flip(x)
    for operation in p.order[b, v].tolist():
        x = ADJUST[operation](x, p.jitter[b, v, operation].item())
    if p.grey[b, v]:
        x = reference.rgb_to_grayscale(x, 3)
    if p.blur[b, v]:
        x = reference.gaussian_blur(x, [taps, taps], [p.blur[b, v].item()] * 2)
    return reference.solarize(x, 0.5) if p.solarise[b, v] else x


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "taps", "sides"), [(32, 3, (32, 32)), (64, 7, (50, 90)), (16, 3, (40, 24))])
def test_views_are_those_of_torchvision_sample_by_sample(
    interpolation: str, size: int, taps: int, sides: tuple[int, int]
) -> None:
    sampler = AugmentedViews(3, size, interpolation=interpolation)  # type: ignore[arg-type]
    images = torch.rand(12, 3, *sides, generator=seeded())
    views, _, p, *_ = sampler(images, generator=seeded(1))
    for b in range(12):
        for v in range(3):
            torch.testing.assert_close(
                views[b, v], one_by_one(sampler, images[b], p, b, v, taps), rtol=0, atol=1e-5, msg=f"{b} {v}"
            )


def recorded_image() -> Tensor:
    image: Tensor = RECORDED["image_u8"].float() / 255
    return image[None]


def levels(view: Tensor, recorded: Tensor) -> Tensor:
    """Differences from an 8-bit picture, in grey levels."""
    return (255 * view - recorded.float()).abs()


def settings(**given: Tensor) -> AugmentationParameters:
    neutral = {
        "crop": torch.tensor([[[0.0, 0.0, 32.0, 32.0]]]), "flip": torch.zeros(1, 1),
        "jitter": torch.tensor([[[1.0, 1.0, 1.0, 0.0]]]), "order": torch.arange(4).view(1, 1, 4),
        "grey": torch.zeros(1, 1), "blur": torch.zeros(1, 1), "solarise": torch.zeros(1, 1),
    }  # fmt: skip
    return AugmentationParameters(**{**neutral, **given})


@pytest.mark.parametrize("case", RECORDED["crop"], ids=lambda c: str(c["params"].int().tolist()))
def test_crops_are_those_of_the_released_recipe(case: dict[str, Tensor]) -> None:
    *crop, flip = case["params"].float()
    p = settings(crop=torch.stack(crop).view(1, 1, 4), flip=flip.view(1, 1))
    view = AugmentedViews.cifar().render(recorded_image(), p)[0, 0]
    # PIL rounds to 8 bits after each of two passes; torchvision's float path lies as far from it.
    assert levels(view, case["out_u8"]).max() <= 255 * float(case["tensor_path_maxdiff"]) + 0.51


@pytest.mark.parametrize("case", RECORDED["jitter"], ids=lambda c: str(c["order"].tolist()))
def test_colours_are_those_of_the_released_recipe(case: dict[str, Tensor]) -> None:
    factors = torch.tensor([[[float(case[n]) for n in ("brightness", "contrast", "saturation", "hue")]]])
    p = settings(jitter=factors, order=case["order"].view(1, 1, 4), grey=torch.tensor([[float(case["gray"])]]))
    view = AugmentedViews.cifar().render(recorded_image(), p)[0, 0]
    error = levels(view, case["out_u8"])
    # PIL's hue is an 8-bit number, and every step rounds: torchvision's own float path lies as far from it.
    assert error.max() <= max(255 * float(case["tensor_path_maxdiff"]) + 2, 3)
    assert error.mean() <= 2


def test_grey_solarise_and_blur_are_those_of_the_released_recipe() -> None:
    image = recorded_image()
    assert levels(grey(image)[0], RECORDED["gray_only_u8"]).max() <= 1
    assert levels(solarise(image)[0], RECORDED["solarize_u8"]).max() < 1e-3
    for case in RECORDED["blur"]:
        view = AugmentedViews.cifar().render(image, settings(blur=torch.tensor([[case["sigma"]]])))[0, 0]
        torch.testing.assert_close(view, case["out_float_tensor_path"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", RECORDED["compose"], ids=lambda c: c["pipeline"])
def test_whole_pipelines_are_those_of_the_released_recipe(case: dict[str, Tensor]) -> None:
    *crop, flip = case["crop"].float()
    p = settings(
        crop=torch.stack(crop).view(1, 1, 4),
        flip=flip.view(1, 1),
        jitter=case["bcsh"].float().view(1, 1, 4) if case["jitter_applied"] else settings().jitter,
        order=case["order"].view(1, 1, 4),
        grey=torch.tensor([[float(case["gray"])]]),
        blur=torch.tensor([[float(case["sigma"]) if case["blur_applied"] else 0.0]]),
        solarise=torch.tensor([[float(case["solarize"])]]),
    )
    error = levels(AugmentedViews.cifar().render(recorded_image(), p)[0, 0], case["out_u8"])
    assert error.mean() < 2  # eight bits at every step; solarising a level more or less turns a pixel over
    assert (error > 8).float().mean() < 0.01
    sampler = AugmentedViews.cifar(frame="image")
    elements = sampler.elements(p, (32, 32))[0, 0]
    pixels = torch.tensor([32.0] * 4 + [1.0] * 5)
    torch.testing.assert_close(elements * pixels, case["cond_vector_9"].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["obs", "target"])
def test_settings_are_drawn_as_the_released_recipe_draws_them(which: str) -> None:
    recorded = RECORDED["distribution"][which]
    p = AugmentedViews.cifar(2).draw(20_000, (32, 32), generator=seeded())
    view = 0 if which == "obs" else 1
    jittered = (p.jitter[:, view] != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(-1)
    for name, share in {
        "flip": p.flip[:, view], "jitter": jittered.float(), "gray": p.grey[:, view],
        "blur": (p.blur[:, view] > 0).float(), "solarize": p.solarise[:, view],
    }.items():  # fmt: skip
        assert abs(share.mean() - recorded[f"p_{name}"]) < 0.015, name
    level = recorded["quantile_levels"]
    drawn = {f"q_{n}": p.crop[:, view, i] for i, n in enumerate("ijhw")}
    for i, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        drawn[f"q_{name}_given_applied"] = p.jitter[jittered, view, i]
    drawn["q_sigma_given_applied"] = p.blur[p.blur[:, view] > 0, view]
    for name, values in drawn.items():
        spread = recorded[name].max() - recorded[name].min()
        quantiles = torch.quantile(values, level)[1:-1]
        tolerance = 1.01 if name[-1] in "ijhw" else 0.03 * float(spread)  # whole pixels
        torch.testing.assert_close(quantiles, recorded[name][1:-1], rtol=0, atol=tolerance, msg=name)


def test_orders_of_the_jitter_are_equally_likely() -> None:
    order = AugmentedViews.cifar(2).draw(12_000, (32, 32), generator=seeded()).order[:, 0]
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 500.0).square() / 500).sum() < 49.7  # chi square, 23 degrees of freedom, 0.1 %


@pytest.mark.parametrize("side", [7, 32])
def test_a_crop_is_as_likely_at_every_place_where_it_fits_up_to_both_edges(side: int) -> None:
    quarter = Augmentation(crop_area=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    sampler = AugmentedViews(2, 8, observed=quarter, predicted=quarter)
    top, left, height, width = sampler.draw(10_000, (side, side), generator=seeded()).crop.flatten(0, 1).T
    assert set(height.tolist()) == set(width.tolist()) == {round(side / 2)}
    for start in (top, left):
        counts = torch.bincount(start.long())
        assert len(counts) == side - round(side / 2) + 1  # from the first edge to the last
        assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("view", [0, 1])
def test_what_is_drawn_from_a_range_is_uniform_in_it(view: int) -> None:
    one = Augmentation(crop_area=(0.1, 0.5), crop_ratio=(0.5, 2.0), brightness=0.3, contrast=1.5, saturation=0.8,
                       hue=0.4, jitter=1.0, blur=1.0, blur_sigma=(0.5, 3.0))  # fmt: skip
    pair = (one, Augmentation(flip=0.0)) if view == 0 else (Augmentation(flip=0.0), one)
    p = AugmentedViews(2, 8, observed=pair[0], predicted=pair[1]).draw(4000, (10_000, 10_000), generator=seeded())
    height, width = p.crop[:, view, 2], p.crop[:, view, 3]
    drawn = {
        "area": (height * width / 10_000**2, 0.1, 0.5),
        "logarithm of the ratio": ((width / height).log(), math.log(0.5), math.log(2.0)),
        "brightness": (p.jitter[:, view, 0], 0.7, 1.3), "contrast": (p.jitter[:, view, 1], 0.0, 2.5),
        "saturation": (p.jitter[:, view, 2], 0.2, 1.8), "hue": (p.jitter[:, view, 3], -0.4, 0.4),
        "sigma": (p.blur[:, view], 0.5, 3.0),
    }  # fmt: skip
    for name, (values, low, high) in drawn.items():
        assert kstest(values.numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3, name


@given(
    area=st.tuples(st.floats(1e-9, 1), st.floats(1e-9, 1)).map(sorted),
    ratio=st.tuples(st.floats(1e-4, 1e4), st.floats(1e-4, 1e4)).map(sorted),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_a_crop_holds_a_pixel_at_least_and_lies_inside(
    area: list[float], ratio: list[float], sides: tuple[int, int]
) -> None:
    some = Augmentation(crop_area=(area[0], area[1]), crop_ratio=(ratio[0], ratio[1]))
    views, actions, p, *_ = AugmentedViews(2, 4, observed=some, predicted=some)(
        torch.rand(3, 3, *sides, generator=seeded()), generator=seeded()
    )
    top, left, height, width = p.crop.unbind(-1)
    assert min(top.min(), left.min(), height.min() - 1, width.min() - 1) >= 0
    assert (top + height).max() <= sides[0]
    assert (left + width).max() <= sides[1]
    assert views.isfinite().all()
    assert actions.isfinite().all()


def test_a_crop_smaller_than_a_pixel_is_a_pixel_and_not_the_whole_image() -> None:
    tiny = Augmentation(crop_area=(1e-6, 1e-6))
    p = AugmentedViews(2, 8, observed=tiny, predicted=tiny).draw(100, (32, 32), generator=seeded())
    assert (p.crop[..., 2:] == 1).all()


def test_a_crop_as_wide_as_its_image_fits_and_lies_anywhere_along_it() -> None:
    square = Augmentation(crop_area=(0.5, 0.5), crop_ratio=(1.0, 1.0))
    sampler = AugmentedViews(2, 8, observed=square, predicted=square)
    for sides, axis in (((20, 10), 0), ((10, 20), 1)):
        crop = sampler.draw(200, sides, generator=seeded()).crop.flatten(0, 1)
        assert (crop[:, 2:] == 10).all()
        assert set(crop[:, axis].tolist()) == set(range(11))


@pytest.mark.parametrize(("ratio", "expected"), [(1e-4, [0, 29, 10, 1]), (1e4, [4, 0, 1, 60])])
def test_the_fall_back_is_a_pixel_wide_at_least(ratio: float, expected: list[int]) -> None:
    strip = Augmentation(crop_area=(1.0, 1.0), crop_ratio=(ratio, ratio))
    p = AugmentedViews(2, 8, observed=strip, predicted=strip).draw(2, (10, 60), generator=seeded())
    assert p.crop[0, 0].tolist() == expected


def test_the_paper_s_settings_are_the_defaults() -> None:
    assert AugmentedViews.cifar() == AugmentedViews() == AugmentedViews(4, 32)
    assert AugmentedViews.tiny_imagenet() == AugmentedViews(4, 64)


def test_crops_fall_back_to_the_middle_where_none_fits() -> None:
    settings = Augmentation(crop_area=(1.0, 1.0), crop_ratio=(3 / 4, 4 / 3))
    p = AugmentedViews(2, 8, observed=settings, predicted=settings).draw(4, (10, 60), generator=seeded())
    expected = RandomResizedCrop.make_params(  # torchvision's own fall-back on such an image
        RandomResizedCrop(8, scale=(1.0, 1.0)), [torch.zeros(3, 10, 60)]
    )
    assert p.crop[0, 0].tolist() == [expected[k] for k in ("top", "left", "height", "width")]


@given(
    sides=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    size=st.integers(4, 24),
    num_views=st.integers(2, 4),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_shapes_ranges_and_seeds(sides: tuple[int, int], size: int, num_views: int, batch: int, seed: int) -> None:
    images = torch.rand(batch, 3, *sides, generator=seeded(seed))
    sampler = AugmentedViews(num_views, size)
    views, actions, p, _, group = sampler(images, generator=seeded(seed))
    assert views.shape == (batch, num_views, 3, size, size)
    assert actions.shape == (batch, num_views - 1, group.dim) == (batch, num_views - 1, 10)
    assert views.min() >= 0
    assert views.max() <= 1
    assert (p.crop[..., :2] >= 0).all()
    assert (p.crop[..., 0] + p.crop[..., 2] <= sides[0]).all()
    assert (p.crop[..., 1] + p.crop[..., 3] <= sides[1]).all()
    again = sampler(images, generator=seeded(seed))
    assert torch.equal(again.views, views)
    assert torch.equal(again.actions, actions)
    state = torch.get_rng_state()
    sampler(images, generator=seeded(seed))
    assert torch.equal(torch.get_rng_state(), state)


@given(seed=st.integers(0, 2**31))
def test_a_view_does_not_depend_on_the_rest_of_the_batch(seed: int) -> None:
    images, sampler = torch.rand(5, 3, 20, 20, generator=seeded(seed)), AugmentedViews(3, 16)
    p = sampler.draw(5, (20, 20), generator=seeded(seed))
    alone = AugmentationParameters(*(part[2:3] for part in p))
    torch.testing.assert_close(sampler.render(images[2:3], alone)[0], sampler.render(images, p)[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("frame", ["view", "image"])
@given(seed=st.integers(0, 2**31))
def test_an_action_takes_the_settings_of_a_view_to_those_of_the_next(frame: str, seed: int) -> None:
    sampler = AugmentedViews(4, 8, frame=frame)  # type: ignore[arg-type]
    _, actions, p, _, group = sampler(torch.rand(6, 3, 16, 24, generator=seeded(seed)), generator=seeded(seed))
    elements = sampler.elements(p, (16, 24))
    torch.testing.assert_close(group.apply(elements[:, :-1], actions), elements[:, 1:], rtol=1e-4, atol=1e-5)


def test_in_the_frame_of_the_view_the_action_finds_the_next_crop() -> None:
    """Cut the next view out of the current one's surroundings by the action alone."""
    ramp = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")) / 64
    image = torch.cat([ramp, torch.zeros(1, 64, 64)])[None]  # each pixel holds its own row and column
    plain = Augmentation(jitter=0, grey=0, blur=0, crop_area=(0.1, 0.4))
    sampler = AugmentedViews(2, 16, observed=plain, predicted=plain, actions=("crop",), interpolation="bilinear")
    for seed in range(20):
        views, actions, *_ = sampler(image, generator=seeded(seed))
        now, following = (view[:2].flatten(1) for view in views[0])
        centre = now.mean(dim=1)  # of the current crop, (row, column)
        step = (views[0, 0, 0, 11] - views[0, 0, 0, 4]).mean() * 16 / 7  # a view's height, in the ramp's unit
        across = (views[0, 0, 1, :, 11] - views[0, 0, 1, :, 4]).mean() * 16 / 7  # below 0 where mirrored
        a = actions[0, 0]
        expected = torch.stack([centre[0] + a[0] * step, centre[1] + a[1] * across])
        torch.testing.assert_close(following.mean(dim=1), expected, rtol=0, atol=0.25 / 64)  # of a pixel
        width = (views[0, 1, 1, :, 11] - views[0, 1, 1, :, 4]).mean() * 16 / 7
        torch.testing.assert_close(width / across, a[3].exp() * (1 - 2 * a[4]), rtol=0.02, atol=0)


@pytest.mark.parametrize(("frame", "actions"), [
    ("view", ("crop", "jitter", "blur")), ("view", ("hue", "crop")), ("view", ("flip",)), ("view", ("blur", "jitter")),
    ("image", ("crop", "jitter", "blur")), ("image", ("blur", "flip", "crop")), ("image", ("hue",)),
])  # fmt: skip
def test_parameters_know_their_elements_of_the_group(frame: Any, actions: tuple[str, ...]) -> None:
    sampler = AugmentedViews(4, 8, frame=frame, actions=actions)
    batch = sampler(torch.rand(6, 3, 20, 30, generator=seeded()), generator=seeded())
    elements = batch.parameters.elements(batch.group)
    assert torch.equal(batch.group.actions(elements), batch.actions)
    assert torch.equal(sampler.elements(batch.parameters), elements)
    assert torch.equal(sampler.elements(batch.parameters._replace(sides=None), (20, 30)), elements)
    some = AugmentationParameters(*(part[2:4] for part in batch.parameters))
    part = some.elements(sampler.group)
    assert part is not None
    assert torch.equal(part, elements[2:4])


def test_elements_that_are_not_known_are_none() -> None:
    p = AugmentedViews.cifar().draw(2, (20, 30), generator=seeded())
    unknown = p._replace(sides=None)
    assert unknown.elements(AugmentedViews.cifar().group) is None
    assert unknown.elements(AugmentedViews.cifar(actions=("jitter", "blur")).group) is not None
    assert p.elements(Product({"crop": Crop(), "turn": Rotation2D()})) is None
    assert p.elements(Product({"crop": Translation(2)})) is None
    assert p.elements(Hue()) is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"needs the sides of the image; give sides=\(H, W\)"):
        AugmentedViews.cifar().elements(unknown)


def test_the_parts_of_an_action_are_those_named_in_their_order() -> None:
    images = torch.rand(4, 3, 32, 32, generator=seeded())
    whole = AugmentedViews.cifar(frame="image", actions=("crop", "flip", "jitter", "blur"))
    _, actions, p, _, group = whole(images, generator=seeded(1))
    for action in (("blur", "hue"), ("jitter", "crop"), ("flip",)):
        part = AugmentedViews.cifar(frame="image", actions=action)
        _, some, _, _, some_group = part(images, generator=seeded(1))
        assert list(some_group.groups) == list(action)
        for name in action:
            expected = (
                actions[..., group.columns("jitter")][..., 3:] if name == "hue" else actions[..., group.columns(name)]
            )
            torch.testing.assert_close(some[..., some_group.columns(name)], expected)
    hue = p.jitter[..., 3]
    torch.testing.assert_close(actions[..., group.columns("jitter")][..., 3], hue[:, 1:] - hue[:, :-1])
    assert isinstance(AugmentedViews.cifar().group.groups["crop"], Crop)


def test_differences_of_hue_are_wrapped() -> None:
    strong = Augmentation(hue=0.5, jitter=1.0)
    sampler = AugmentedViews.cifar(4, observed=strong, predicted=strong, actions=("hue",))
    _, actions, p, *_ = sampler(torch.rand(200, 3, 32, 32, generator=seeded()), generator=seeded())
    plain = p.jitter[:, 1:, 3] - p.jitter[:, :-1, 3]
    assert (plain.abs() > 0.5).float().mean() > 0.2  # a quarter of them, in the released code
    assert (actions.abs() <= 0.5).all()
    torch.testing.assert_close(
        torch.cos(2 * math.pi * actions[..., 0]), torch.cos(2 * math.pi * plain), rtol=0, atol=1e-4
    )


def test_an_action_does_not_depend_on_views_not_yet_seen() -> None:
    sampler = AugmentedViews.cifar(frame="image")
    p = sampler.draw(6, (32, 32), generator=seeded())
    other = sampler.draw(6, (32, 32), generator=seeded(1))
    changed = AugmentationParameters(*(torch.cat([a[:, :3], b[:, 3:]], dim=1) for a, b in zip(p, other, strict=True)))
    first, second = (sampler.group.actions(sampler.elements(x, (32, 32))) for x in (p, changed))
    assert torch.equal(first[:, :2], second[:, :2])


@given(seed=st.integers(0, 2**31))
def test_turning_the_hue_keeps_value_and_chroma_and_turns_back(seed: int) -> None:
    x = torch.rand(4, 3, 5, 5, generator=seeded(seed), dtype=torch.float64)
    turns = torch.rand(4, generator=seeded(seed), dtype=torch.float64) - 0.5
    turned = shift_hue(x, turns)
    torch.testing.assert_close(turned.amax(1), x.amax(1))
    torch.testing.assert_close(turned.amin(1), x.amin(1))
    torch.testing.assert_close(shift_hue(turned, -turns), x)
    third = torch.full((4,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(shift_hue(x, third), x.roll(1, dims=1))  # red becomes green
    grey_image = x[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(shift_hue(grey_image, turns), grey_image)


def test_neutral_factors_change_nothing() -> None:
    x = torch.rand(4, 3, 5, 5, generator=seeded())
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(4, 4)
    assert torch.equal(jitter(x, neutral, torch.arange(4).expand(4, 4)), x)


@pytest.mark.parametrize("change", [_by_rows, _at_once], ids=["by rows", "at once"])
def test_jitter_is_that_of_torchvision_in_every_order(change: Callable[..., Tensor]) -> None:
    orders = torch.tensor(list(itertools.permutations(range(4)))).repeat(3, 1)
    images = torch.rand(len(orders), 3, 6, 5, generator=seeded())
    low, high = torch.tensor([0.0, 0.0, 0.0, -0.5]), torch.tensor([2.0, 2.5, 3.0, 0.5])
    factors = low + (high - low) * torch.rand(len(orders), 4, generator=seeded(1))
    factors[24:48] = torch.where(
        torch.rand(24, 4, generator=seeded(2)) < 0.5, torch.tensor([1.0, 1, 1, 0]), factors[:24]
    )
    got = change(images, factors, orders)
    for image, order, factor, view in zip(images, orders.tolist(), factors, got, strict=True):
        for operation in order:
            image = ADJUST[operation](image, factor[operation].item())
        torch.testing.assert_close(view, image, rtol=0, atol=1e-5, msg=f"{order} {factor}")


def test_a_blur_of_no_width_blurs_nothing() -> None:
    assert torch.equal(blur_matrix(torch.zeros(2), size=9, kernel=5), torch.eye(9).expand(2, 9, 9))


@given(size=st.integers(4, 20), sigma=st.floats(0.1, 4), seed=st.integers(0, 2**31))
def test_a_blur_keeps_constants_and_the_order_of_rows_and_columns(size: int, sigma: float, seed: int) -> None:
    matrix = blur_matrix(torch.tensor([sigma]), size=size, kernel=7)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(1, size))
    x = torch.rand(1, 2, size, size, generator=seeded(seed))
    torch.testing.assert_close(separable(x, matrix, matrix).mT, separable(x.mT, matrix, matrix))


def test_images_of_one_channel_can_be_cropped_and_blurred() -> None:
    plain, predicted = Augmentation(jitter=0, grey=0), Augmentation(jitter=0, grey=0, solarise=1.0)
    views = AugmentedViews(3, 8, observed=plain, predicted=predicted)(torch.rand(4, 1, 16, 16)).views
    assert views.shape == (4, 3, 1, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_views_are_in_the_precision_of_the_images_and_actions_in_float32(dtype: torch.dtype) -> None:
    images = torch.rand(4, 3, 16, 16).to(dtype)
    batch = AugmentedViews(3, 8)(images, generator=seeded())
    assert batch.views.dtype == dtype
    assert batch.actions.dtype == torch.float32


def test_views_can_be_differentiated_with_respect_to_their_images() -> None:
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    AugmentedViews(3, 8)(images, generator=seeded()).views.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_views": 1}, r"at least 2, so that there is an action \(T ≥ 1\); got 1"),
        ({"size": 0}, "size is the side of a view in pixels, at least 1; got 0"),
        ({"frame": "world"}, "frame must be 'view' or 'image'; got 'world'"),
        ({"interpolation": "nearest"}, "interpolation must be 'bicubic' or 'bilinear'; got 'nearest'"),
        ({"actions": ("crop", "shear")}, r"at least one of 'crop', 'flip', .*; got \('crop', 'shear'\)"),
        ({"actions": ()}, r"at least one of 'crop'"),
        ({"actions": "crop"}, r"got \('c', 'r', 'o', 'p'\)"),
        ({"actions": ("crop", "flip")}, "in the frame of the view a crop holds its flip"),
        ({"actions": ("jitter", "hue")}, "jitter holds the hue"),
        ({"actions": ("blur", "blur")}, "can be named once"),
        ({"blur_kernel": 4}, "blur_kernel must be odd and reach less than a view's side; got 4"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentedViews(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1.5}, "flip is a probability, from 0 to 1; got 1.5"),
        ({"contrast": -0.1}, "contrast is a strength of at least 0; got -0.1"),
        ({"hue": 0.6}, "hue is in turns, from 0 to ½, which is all hues; got 0.6"),
        ({"crop_area": (0.5, 1.5)}, r"crop_area is \(lowest, highest\), above 0 and at most 1; got \(0.5, 1.5\)"),
        ({"crop_ratio": (2.0, 1.0)}, r"crop_ratio is \(lowest, highest\), .*; got \(2.0, 1.0\)"),
        ({"crop_ratio": (1.0, math.inf)}, r"crop_ratio is .* above 0 and finite; got \(1.0, inf\)"),
        ({"blur_sigma": (1.0, math.inf)}, r"blur_sigma is .* above 0 and finite; got \(1.0, inf\)"),
        ({"blur_sigma": (0.0, 1.0)}, r"blur_sigma is \(lowest, highest\), .*; got \(0.0, 1.0\)"),
    ],
)
def test_bad_strengths_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)  # type: ignore[arg-type]


def test_strengths_of_nothing_change_nothing() -> None:
    none = Augmentation(crop_area=(1, 1), crop_ratio=(1, 1), flip=0, jitter=1, brightness=0, contrast=0, saturation=0,
                        hue=0, grey=0, blur=0)  # fmt: skip
    images = torch.rand(4, 3, 16, 16, generator=seeded())
    views = AugmentedViews(2, 16, observed=none, predicted=none)(images, generator=seeded()).views
    torch.testing.assert_close(views, images[:, None].expand(-1, 2, -1, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [-0.25, 1.25])
def test_what_a_cubic_filter_overshoots_is_let_through_and_no_more(value: float) -> None:
    sampler, images = AugmentedViews.cifar(), torch.rand(2, 3, 32, 32)
    images[1, 0, 0, 0] = value
    assert sampler(images).views.isfinite().all()
    images[1, 0, 0, 0] = 1.01 * value
    with pytest.raises(ValueError, match=r"Images are numbers in \[0, 1\]; got"):
        sampler(images)


def test_bad_images_are_refused() -> None:
    sampler = AugmentedViews.cifar()
    with pytest.raises(
        TypeError, match=r"images must be floating point; got torch.uint8. Convert with images.float\(\) / 255"
    ):
        sampler(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must have the axes \(B, C, H, W\); got shape \(3, 32, 32\)"):
        sampler(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match=r"\(2, 32, 48, 3\) looks like \(…, H, W, C\)\. .*\.permute\(0, 3, 1, 2\)"):
        sampler(torch.rand(2, 32, 48, 3))
    with pytest.raises(ValueError, match=r"at least one image .* got shape \(0, 3, 32, 32\)"):
        sampler(torch.rand(0, 3, 32, 32))
    images = torch.rand(4, 3, 32, 32)
    images[2, 1, 3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 4 hold NaN or infinity, at rows \[2\]"):
        sampler(images)
    with pytest.raises(ValueError, match=r"Jitter and grey are for colour images, .* set jitter and grey to 0"):
        sampler(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"Images are numbers in \[0, 1\]; got .* to 2.* Divide bytes by 255"):
        sampler(255 * torch.rand(2, 3, 32, 32))


def test_a_crop_larger_than_its_image_is_refused() -> None:
    sampler = AugmentedViews.cifar()
    p = sampler.draw(2, (64, 64), generator=seeded())
    with pytest.raises(ValueError, match=r"Crops must lie inside their images.* for 2 images of 32 × 32 pixels"):
        sampler.render(torch.rand(2, 3, 32, 32), p)
    for side in (2, 3):
        flat = sampler.draw(2, (64, 64), generator=seeded())
        flat.crop[1, 0, side] = 0.0
        with pytest.raises(ValueError, match="Crops must lie inside"):
            sampler.render(torch.rand(2, 3, 64, 64), flat)
    with pytest.raises(ValueError, match="got 2 rows for 3 images"):
        sampler.render(torch.rand(3, 3, 64, 64), p)


def test_white_stays_within_the_range_whatever_is_blurred_or_made_grey() -> None:
    white = torch.ones(8, 3, 24, 24)
    settings = Augmentation(jitter=0.0, grey=0.5, blur=1.0, solarise=0.0)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        views = AugmentedViews(num_views=4, size=24, observed=settings, predicted=settings)(white, generator=generator)[
            0
        ]
        assert views.max() <= 1
        assert views.min() > 0.999
