"""Samplers on devices that must not be waited for, and under other defaults of torch.

`meta` tensors have no values, so whatever reads one fails there: it stands in for a GPU. What a GPU would compute
without reading is computed here on the CPU, by letting the samplers believe that they are inside a graph.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqjepa.data import (
    Augmentation,
    AugmentedViews,
    Camera,
    RenderedObjects,
    RotatedViews,
    SaccadeViews,
    load_saliency,
    spectral_residual,
)  # fmt: skip
from seqjepa.types import ViewSequence

CPU: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
STRONG = Augmentation(
    brightness=1.5, contrast=0.9, saturation=1.2, hue=0.5, jitter=0.9, grey=0.5, blur=0.5, solarise=0.5
)
PLAIN = Augmentation(jitter=0.0, grey=0.0, blur=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def pictures(batch: int = 9, channels: int = 3) -> Tensor:
    return torch.rand(batch, channels, 40, 24, generator=seeded(1), **CPU)


def maps(batch: int = 9) -> Tensor:
    return torch.rand(batch, 40, 24, generator=seeded(2), **CPU) ** 3


def variants() -> Iterator[tuple[str, Callable[..., ViewSequence], bool]]:
    """Every sampler with every setting, and whether it looks at saliency."""
    actions = {"view": (("crop", "jitter", "blur"), ("blur", "hue")), "image": (("flip", "crop", "jitter"),)}
    for (frame, named), strength in itertools.product(actions.items(), (None, STRONG, PLAIN)):
        for parts, taps, interpolation in itertools.product(named, (None, 5), ("bicubic", "bilinear")):
            settings: dict[str, Any] = {} if strength is None else {"observed": strength, "predicted": strength}
            settings |= {"actions": parts, "frame": frame, "interpolation": interpolation, "blur_kernel": taps}
            yield f"augment {settings}", AugmentedViews(3, 16, **settings), False
    for border, shift, scale, size in itertools.product(
        ("disc", "inside", "zero"), (0.0, 0.2), ((1.0, 1.0), (0.5, 2.0)), (None, 8)
    ):
        yield f"rotate {border} {shift} {scale} {size}", RotatedViews(3, 120, shift, scale, size, border), False  # type: ignore[arg-type]
    for inhibition, padding, bias, (scales, scales_as), radius in itertools.product(
        ("square", "round", None), (None, "reflect"), (None, 0.2),
        (((1,), "channels"), ((3, 1), "views"), ((1, 2), "channels")), (None, 50.0),
    ):  # fmt: skip
        if radius is None or inhibition is not None:  # of 50 pixels: nothing is left after one fixation
            sampler = SaccadeViews(
                num_views=4, fovea=8, inhibition=inhibition, padding=padding, center_bias=bias, scales=scales,  # type: ignore[arg-type]
                scales_as=scales_as, radius=radius,  # type: ignore[arg-type]
            )  # fmt: skip
            yield f"saccades {sampler}", sampler, True


VARIANTS = list(variants())  # every fifth holds each choice of each setting


def tensors(part: Any) -> list[Tensor]:
    """Those of a sequence and of its parameters."""
    if isinstance(part, Tensor):
        return [part]
    return [tensor for field in part for tensor in tensors(field)] if isinstance(part, tuple) else []


def same_kind(got: ViewSequence, expected: ViewSequence) -> None:
    assert [(x.shape, x.dtype) for x in tensors(got)] == [(x.shape, x.dtype) for x in tensors(expected)]
    assert got.group == expected.group


def same(got: Any, expected: Any, name: str = "") -> None:
    for x, y in zip(tensors(got), tensors(expected), strict=True):
        assert (x.device, x.dtype) == (y.device, y.dtype), name
        assert torch.equal(x, y), name


@contextmanager
def nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, values on the CPU are not read, as those of a GPU are not."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        yield


# ── Nothing is read ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("from_generator", [True, False])
def test_a_sampler_runs_on_tensors_without_values(from_generator: bool) -> None:
    images, saliency = pictures(), maps()
    for _, sampler, looks in VARIANTS[from_generator::5]:
        for given in ({}, {"saliency": saliency}) if looks else ({},):
            expected = sampler(images, generator=seeded(), **given)
            on_meta = {name: x.to("meta") for name, x in given.items()}
            got = sampler(images.to("meta"), generator=seeded() if from_generator else None, **on_meta)
            assert all(x.is_meta for x in tensors(got))
            same_kind(got, expected)


def test_the_parts_of_a_sampler_run_on_tensors_without_values() -> None:
    grey, images = pictures(channels=1).to("meta"), pictures().to("meta")
    plain = AugmentedViews(3, 16, observed=PLAIN, predicted=PLAIN)
    assert plain(grey).views.shape == (9, 3, 1, 16, 16)
    augment, rotate, saccades = AugmentedViews(3, 16), RotatedViews(3, shift=0.1), SaccadeViews(num_views=3, fovea=8)
    parameters = augment.draw(9, (40, 24), device="meta")
    assert augment.render(images, parameters).is_meta
    assert augment.elements(parameters, (40, 24)).shape == augment.elements(parameters).shape == (9, 3, 10)
    assert rotate.render(images, rotate.draw(9, device="meta")).is_meta
    assert saccades.fixate(images, saliency=maps().to("meta")).shape == (9, 3, 2)
    positions = torch.full((9, 5, 2), 0.5, device="meta")
    for some in (saccades, SaccadeViews(num_views=2, fovea=8, scales=(1, 2), scales_as="views", padding="reflect")):
        assert some.at(images, positions).views.shape[2:] == (3, 8, 8)
    assert spectral_residual(images).shape == (9, 40, 24)


def test_views_are_the_same_where_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    images, saliency = pictures(), maps()
    for name, sampler, looks in VARIANTS:
        given = {"saliency": saliency} if looks else {}
        expected = sampler(images, generator=seeded(), **given)
        with nothing_can_be_read(monkeypatch):
            got = sampler(images, generator=seeded(), **given)
        torch.testing.assert_close(got.views, expected.views, atol=1e-6, rtol=0, msg=name)
        same(got.parameters, expected.parameters, name)
        assert torch.equal(got.actions, expected.actions), name
        if isinstance(sampler, SaccadeViews) and sampler.scales_as == "channels":
            for places in (got.parameters, (0.9 * got.parameters + 0.05).clamp(0.25, 0.75)):  # on pixels and between
                expected = sampler.at(images, places)
                with nothing_can_be_read(monkeypatch):
                    got = sampler.at(images, places)
                torch.testing.assert_close(got.views, expected.views, atol=1e-6, rtol=0, msg=name)


def test_gradients_are_the_same_where_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = AugmentedViews(4, 16, observed=STRONG, predicted=PLAIN)
    weight = torch.rand(9, 4, 3, 16, 16, generator=seeded(3), **CPU)
    gradients = []
    for read in (True, False):
        images = pictures().requires_grad_()
        with nothing_can_be_read(monkeypatch) if not read else monkeypatch.context():
            views = sampler(images, generator=seeded()).views
        gradients.append(torch.autograd.grad((weight * views).sum(), images)[0])
    assert gradients[1].isfinite().all()
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


def broken(x: Tensor, row: int, value: float) -> Tensor:
    x = x.clone()
    x[row].flatten()[7] = value
    return x


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 255.0, -1.0])
def test_an_image_that_breaks_a_rule_unread_gives_views_that_are_no_numbers(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers: list[Any] = [AugmentedViews(3, 16), RotatedViews(3), SaccadeViews(num_views=3, fovea=8)]
    for sampler in samplers:
        with nothing_can_be_read(monkeypatch):
            views = sampler(broken(pictures(), 4, value), generator=seeded()).views
        assert views[4].isnan().all()
        assert torch.equal(views[5:], sampler(pictures(), generator=seeded()).views[5:])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -1.0])
def test_a_map_that_breaks_a_rule_unread_gives_actions_that_are_no_numbers(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = SaccadeViews(num_views=3, fovea=8)
    border = torch.zeros(40, 24, **CPU)
    border[0] = 1  # salient where the fovea would leave the image
    for saliency in (broken(maps(), 4, value), torch.stack([border if i == 4 else x for i, x in enumerate(maps())])):
        with nothing_can_be_read(monkeypatch):
            batch = sampler(pictures(), saliency=saliency, generator=seeded())
            pixels = sampler.fixate(pictures(), saliency=saliency, generator=seeded())
        assert batch.actions[4].isnan().all()
        assert batch.parameters[4].isnan().all()
        assert batch.actions[:4].isfinite().all()
        assert batch.actions[5:].isfinite().all()
        assert ((pixels >= 4) & (pixels < torch.tensor([37, 21], device="cpu"))).all()


def test_parameters_that_break_a_rule_unread_give_views_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    images, augment, rotate = pictures(3), AugmentedViews(3, 16), RotatedViews(3)
    outside = augment.draw(3, (40, 24), generator=seeded())
    outside.crop[1, 2, 0] = 39.0
    turned = rotate.draw(3, generator=seeded())
    turned[1, 2] = torch.nan
    positions = torch.full((3, 3, 2), 0.5, **CPU)
    positions[1, 2] = torch.tensor([0.5, 7.0])
    lost = positions.clone()
    lost[1, 2] = torch.nan
    gaze = SaccadeViews(num_views=2, fovea=8)
    expected = augment.render(images, augment.draw(3, (40, 24), generator=seeded()))
    with nothing_can_be_read(monkeypatch):
        views = [augment.render(images, outside), rotate.render(images, turned)]
        seen = [gaze.at(images, positions), gaze.at(images, lost)]
    for made in views:
        assert made[1, 2].isnan().all()
        assert made[[0, 0, 1, 2], [0, 2, 1, 2]].isfinite().all()
    assert torch.equal(views[0][0], expected[0])
    for batch in seen:
        assert batch.parameters[1, 2].isnan().any()
        assert batch.actions[1, 1].isnan().any()
        assert batch.views[[0, 1], [2, 1]].isfinite().all()


# ── What the renderer reads ──────────────────────────────────────────────────────────────────────────────────────────


class Reads(TorchDispatchMode):
    """Counts what a GPU would have to be waited for, but for lists, which no dispatch sees."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "unique_consecutive", "masked_select", "equal", "is_nonzero")
        self.count += func.overloadpacket.__name__ in waits
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [1, 16, 40])
def test_rendering_reads_a_stated_few_values_however_many_pictures_and_parts(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists: list[Tensor] = []
    tolist = Tensor.tolist

    def listed(x: Tensor) -> Any:
        lists.append(x)
        return tolist(x)

    objects = RenderedObjects(48, size=24)
    parameters = objects.draw(torch.arange(batch), num_views=3, generator=seeded())
    with nothing_can_be_read(monkeypatch), monkeypatch.context() as patch, Reads() as reads:
        patch.setattr(Tensor, "tolist", listed)
        objects._render(parameters)
    assert reads.count + len(lists) == 13


# ── Other defaults ───────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def defaults(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def everything(directory: str) -> dict[str, Any]:
    """What each sampler and reader of maps makes on the CPU, everything about it drawn from seeds."""
    images, saliency = pictures(3), maps(3)
    made: dict[str, Any] = {
        name: sampler(images, generator=seeded(), **({"saliency": saliency} if looks else {}))
        for name, sampler, looks in VARIANTS[::5]
    }
    made["no saliency"] = SaccadeViews(num_views=3, fovea=8, center_bias=0.2)(images, generator=seeded())
    made["at"] = SaccadeViews(num_views=2, fovea=8).at(images, torch.full((3, 2, 2), 0.51, **CPU))
    for rotations in ("euler", "so3", "ood"):
        actions = ("rotation", "floor_hue", "light_hue")
        objects = RenderedObjects(32, size=16, rotations=rotations, actions=actions, camera=Camera.facing(0.4))
        made[rotations] = objects.sample(torch.arange(32, device="cpu"), num_views=2, generator=seeded())
        made[f"solids {rotations}"] = objects.solids
    made["spectral"] = spectral_residual(images)
    torch.save(saliency.double(), f"{directory}/maps.pt")
    made["load"] = load_saliency(f"{directory}/maps.pt")
    return made


@pytest.mark.parametrize("other", [{"device": "meta"}, {"dtype": torch.float64}, {"dtype": torch.float16}])
def test_defaults_of_torch_change_nothing_on_the_cpu(other: dict[str, Any], tmp_path: Any) -> None:
    expected = everything(str(tmp_path))
    with defaults(**other):
        got = everything(str(tmp_path))
    for name, made in expected.items():
        same(got[name], made, name)
