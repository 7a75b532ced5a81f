"""What holds for every sampler, tried on images of your own: what a new one must pass before any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.data.seeding import GlobalStates
from seqjepa.groups import Group
from seqjepa.types import ViewSequence

__all__ = ["check_sampler"]


def check_sampler(
    sampler: Callable[..., ViewSequence],
    images: Float[Tensor, "B C H W"],
    *,
    saliency: Float[Tensor, "B H W"] | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Raise unless a sampler of views keeps what the library's samplers keep.

    It is called a few times. Tried are shapes, devices and values; that all it draws comes from the generator; that
    each source's views show its own image; and that the actions are what the group makes of the parameters.

    Args:
        sampler: your own, called as `sampler(images, generator=g)`.
        images: (B, C, H, W) in [0, 1], B at least 2, all different.
        saliency: maps to call it with, for one that takes them.
        tolerance: what an action may be off by, in the units of the group's distance.

    Raises:
        ValueError: the law that is broken, what came, and what to look at; fewer than two images.
        TypeError: something else than a [`ViewSequence`][seqjepa.types.ViewSequence] comes back.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.data import RotatedViews, check_sampler
        >>> images = torch.rand(8, 3, 16, 16)
        >>> check_sampler(RotatedViews(num_views=3), images)
        >>> def flips(images, *, generator=None):
        ...     flip = torch.rand(len(images), 1, 1) < 0.5                     # the generator is not used
        ...     views = torch.where(flip[..., None], images.flip(-1), images)
        ...     return ViewSequence(torch.stack([images, views], dim=1), flip.float())
        >>> check_sampler(flips, images)                                              # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: flips breaks the law that every draw comes from the generator: the global generator of...
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"A sampler is tried on at least two images (B, C, H, W); got {tuple(images.shape)}.")
    laws = _Laws(sampler, saliency)
    given, states = images.clone(), GlobalStates()
    first = laws.call(images, seed=0)
    moved = sorted(states.moved() - {"random"})  # Python's own type checkers draw from too; the next law sees its draws
    if moved:
        raise laws.broken(
            "that every draw comes from the generator",
            f"the global generator of {' and of '.join(moved)} moved. Draw with torch.rand(…, generator=generator)",
        )
    if not torch.equal(images, given):
        raise laws.broken("that images are left as they are", "they were changed in place. Work on a copy")
    laws.check_form(first, images)
    again, other = laws.call(images, seed=0), laws.call(images, seed=1)
    if not (torch.equal(first.views, again.views) and torch.equal(first.actions, again.actions)):
        raise laws.broken("one seed, one result", "two calls with generators of one seed differ. Keep no state")
    if torch.equal(first.views, other.views) and torch.equal(first.actions, other.actions):
        raise laws.broken("another seed, other views", "generators of seeds 0 and 1 give the same. Is it handed on")
    laws.check_rows(first, images)
    laws.check_actions(first, tolerance)


class _Laws:
    """One sampler's."""

    def __init__(self, sampler: Callable[..., ViewSequence], saliency: Tensor | None) -> None:
        self.sampler, self.name = sampler, getattr(sampler, "__name__", type(sampler).__name__)
        self.maps = {} if saliency is None else {"saliency": saliency}

    def broken(self, law: str, came: str) -> ValueError:
        return ValueError(f"{self.name} breaks the law {law}: {came}.")

    def call(self, images: Tensor, seed: int) -> ViewSequence:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        sequence = self.sampler(images, generator=generator, **self.maps)
        if not isinstance(sequence, ViewSequence):
            raise TypeError(
                f"A sampler returns a seqjepa.ViewSequence; {self.name} returned a {type(sequence).__name__}. "
                "Return ViewSequence(views, actions, parameters, group=…)."
            )
        return sequence

    def check_form(self, sequence: ViewSequence, images: Tensor) -> None:
        views, actions = sequence.views, sequence.actions
        shapes = f"views {tuple(views.shape)} and actions {tuple(actions.shape)}"
        if views.ndim != 5 or len(views) != len(images) or views.shape[1] < 2 or views.shape[2] != images.shape[1]:
            raise self.broken(
                "views (B, V, C, h, w), V ≥ 2, of images (B, C, H, W)", f"of {tuple(images.shape)} it made {shapes}"
            )
        if actions.ndim != 3 or actions.shape[:2] != (views.shape[0], views.shape[1] - 1):
            raise self.broken("actions (B, V − 1, A), one from each view to the next", f"it made {shapes}")
        for what, part in (("views", views), ("actions", actions)):
            if not part.is_floating_point() or part.device != images.device:
                raise self.broken(
                    f"that {what} are floating point, where the images are", f"they are {part.dtype} on {part.device}"
                )
        low, high = views.min().item(), views.max().item()
        if not (low >= 0 and high <= 1):  # nor NaN
            raise self.broken("that views are in [0, 1]", f"they go from {low:.4g} to {high:.4g}")

    def check_rows(self, first: ViewSequence, images: Tensor) -> None:
        """A source whose image is another one shows it, and nobody else does."""
        changed = images.clone()
        changed[0] = images[0].flip(-1, -2) if not torch.equal(images[0], images[0].flip(-1, -2)) else 1 - images[0]
        views = self.call(changed, seed=0).views
        moved = (views - first.views).abs().flatten(1).amax(dim=1) > 1e-4
        if bool(moved[1:].any()):
            row = int(moved[1:].nonzero()[0]) + 1
            raise self.broken(
                "that a source's views show its own image",
                f"another image 0 changes the views of source {row}. Views are (B, V, …): look at the order of axes",
            )
        if not bool(moved[0]):
            raise self.broken("that a source's views show its own image", "another image 0 changes none of its views")

    def check_actions(self, sequence: ViewSequence, tolerance: float) -> None:
        group, parameters = sequence.group, sequence.parameters
        if group is None:
            return
        if not isinstance(group, Group) or group.dim != sequence.actions.shape[-1]:
            raise self.broken(
                "that actions are elements of the group",
                f"they have {sequence.actions.shape[-1]} numbers, and the group is {group!r}",
            )
        elements: Any = getattr(self.sampler, "elements", None)
        if elements is not None and parameters is not None:
            parameters = elements(parameters)
        if not isinstance(parameters, Tensor):
            return
        if parameters.shape != (*sequence.views.shape[:2], group.dim):
            raise self.broken(
                f"parameters (B, V, {group.dim}), one row a view",
                f"there are {tuple(parameters.shape)} of {sequence.views.shape[1]} views",
            )
        apart = group.distance(group.actions(parameters), sequence.actions)
        if not bool((apart <= tolerance).all()):
            wrong = (~(apart <= tolerance)).nonzero()[0].tolist()
            raise self.broken(
                "actions[:, t] = relative(parameters[:, t], parameters[:, t + 1])",
                f"they are {apart[tuple(wrong)].item():.4g} apart at {wrong}. Take group.actions(parameters)",
            )
