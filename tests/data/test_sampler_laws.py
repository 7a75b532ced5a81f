"""A sampler that breaks what holds for all is refused by that law; the library's pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from seqjepa import ViewSequence
from seqjepa.data import AugmentedViews, RotatedViews, SaccadeViews, check_sampler, spectral_residual
from seqjepa.groups import Translation

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def rolled(images: Tensor, *, generator: torch.Generator | None = None, **changed: Any) -> ViewSequence:
    """Three views, each the image rolled by so many pixels; and what a test spoils."""
    shifts = torch.randint(0, 16, (len(images), 3), generator=generator)
    columns = (torch.arange(16) - shifts[..., None]) % 16
    views = images[:, None].expand(-1, 3, -1, -1, -1).gather(-1, columns[:, :, None, None].expand(-1, -1, 3, 16, -1))
    parameters, group = shifts[..., None].float(), Translation(1)
    made = ViewSequence(views, group.actions(parameters), parameters, None, group)
    return made._replace(**{name: change(getattr(made, name)) for name, change in changed.items()})


def spoilt(**changed: Callable[[Any], Any]) -> Callable[..., ViewSequence]:
    def sampler(images: Tensor, *, generator: torch.Generator | None = None) -> ViewSequence:
        return rolled(images, generator=generator, **changed)

    return sampler


def with_images(change: Callable[[Tensor], Tensor]) -> Callable[..., ViewSequence]:
    def sampler(images: Tensor, *, generator: torch.Generator | None = None) -> ViewSequence:
        return rolled(change(images), generator=generator)

    return sampler


def with_generator(change: Callable[[Any], Any]) -> Callable[..., ViewSequence]:
    def sampler(images: Tensor, *, generator: torch.Generator | None = None) -> ViewSequence:
        return rolled(images, generator=change(generator))

    return sampler


@pytest.mark.parametrize(
    "sampler",
    [
        rolled, AugmentedViews(3, 8), AugmentedViews(3, 8, frame="image"), RotatedViews(3, 60.0, 0.1, (0.8, 1.2)),
        spoilt(group=lambda _: None), spoilt(parameters=lambda _: None),
    ],
    ids=lambda sampler: getattr(sampler, "__qualname__", type(sampler).__name__),
)  # fmt: skip
def test_samplers_that_keep_the_laws_pass(sampler: Callable[..., ViewSequence]) -> None:
    check_sampler(sampler, IMAGES)


def test_a_sampler_of_saccades_is_called_with_its_maps() -> None:
    check_sampler(SaccadeViews(num_views=3, fovea=6), IMAGES, saliency=spectral_residual(IMAGES))


count = iter(range(10**6))
BROKEN = {
    "global draws": (with_generator(lambda _: None), r"every draw comes from the generator: .* of torch moved"),
    "a seed of its own": (with_generator(lambda _: torch.Generator().manual_seed(0)), r"another seed, other views"),
    "a state": (with_generator(lambda _: torch.Generator().manual_seed(next(count))), r"one seed, one result"),
    "axes in the wrong order": (
        spoilt(views=lambda v: v.transpose(0, 1).reshape(v.shape)), r"show its own image: another image 0 changes"
    ),
    "one image for all": (with_images(lambda x: x[:1].expand_as(x)), r"changes the views of source 1"),
    "no image": (with_images(lambda x: torch.ones_like(x) / 2), r"changes none of its views"),
    "bytes": (spoilt(views=lambda v: (255 * v).byte()), r"views are floating point"),
    "normalised": (spoilt(views=lambda v: (v - 0.5) / 0.25), r"views are in \[0, 1\]: they go from -"),
    "not a number": (spoilt(views=lambda v: v * torch.nan), r"they go from nan"),
    "in place": (with_images(lambda x: x.mul_(0.9)), r"left as they are"),
    "one view": (spoilt(views=lambda v: v[:, :1], actions=lambda a: a[:, :0]), r"V ≥ 2"),
    "one too many": (spoilt(actions=lambda a: torch.cat([a, a[:, :1]], 1)), r"one from each view to the next"),
    "actions backwards": (spoilt(actions=lambda a: -a), r"actions\[:, t\] = relative"),
    "actions a step late": (spoilt(actions=lambda a: a.roll(1, 1)), r"apart at \[0, 0\]"),
    "actions of neighbours": (spoilt(actions=lambda a: a.roll(1, 0)), r"Take group.actions"),
    "another group": (spoilt(group=lambda _: Translation(2)), r"elements of the group: they have 1 numbers"),
    "a class for a group": (spoilt(group=lambda _: Translation), r"elements of the group"),
    "too few parameters": (spoilt(parameters=lambda p: p[:, 1:]), r"parameters \(B, V, 1\), one row a view"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sampler_is_refused_by_the_law_that_it_breaks(name: str) -> None:
    sampler, words = BROKEN[name]
    with pytest.raises(ValueError, match=rf"sampler breaks the law .*({words})"):
        check_sampler(sampler, IMAGES.clone())


def test_what_is_no_sequence_and_what_tries_nothing_are_refused() -> None:
    with pytest.raises(TypeError, match=r"<lambda> returned a tuple\. Return ViewSequence"):
        check_sampler(lambda images, generator: (images, images), IMAGES)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"at least two images .*got \(1, 3, 16, 16\)"):
        check_sampler(rolled, IMAGES[:1])
