"""Some views of every source, made once: sequences are drawn of them."""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from seqjepa._checks import check_axes, check_tensor
from seqjepa.data._images import unit_floats
from seqjepa.data.seeding import SeededDataset
from seqjepa.groups import Group
from seqjepa.types import ViewSequence, map_tensors

__all__ = ["ViewPool"]


class ViewPool(SeededDataset):
    """Some views of every source, made once; an item is a sequence of different ones and the actions between them.

    Of V views there are V (V − 1) ordered pairs: 50 views of an object hold 2,450. For views that take longer to make
    than to learn from: rendered ones, decoded ones, and features of a frozen encoder, as
    [`cache_features`][seqjepa.data.cache_features] keeps them. Give it to a [`ViewLoader`][seqjepa.data.ViewLoader]
    without a sampler. Reading items is cheap, and needs no worker processes.

    Args:
        views: (N, V, …): uint8 images, or floating point; half precision becomes float32 in the items.
        elements: (N, V, A) the absolute transformation of each view, elements of the group.
        group: of the transformations.
        num_views: of an item, from 2 to V.
        labels: (N,) class of each source, where it is known.

    Raises:
        ValueError: shapes that do not fit; a number of views out of range.

    Examples:
        >>> import torch
        >>> from seqjepa.data import RenderedObjects, ViewLoader
        >>> objects = RenderedObjects(32, size=16)
        >>> made = objects.sample(torch.arange(32), num_views=6)
        >>> pool = ViewPool((255 * made.views).byte(), made.parameters.rotation, objects.group, num_views=4)
        >>> for views, actions, *_ in ViewLoader(pool, batch_size=8):
        ...     pass
        >>> views.shape, actions.shape
        (torch.Size([8, 4, 3, 16, 16]), torch.Size([8, 3, 4]))
    """

    def __init__(
        self,
        views: Shaped[Tensor, "N V *view"],
        elements: Shaped[Tensor, "N V A"],
        group: Group,
        *,
        num_views: int,
        labels: Int[Tensor, "N"] | None = None,
    ) -> None:
        check_tensor("views", views)
        check_axes("elements", elements, "N V A")
        if views.ndim < 3 or views.shape[:2] != elements.shape[:2]:
            raise ValueError(
                f"views (N, V, …) and elements (N, V, A) have one N and one V; got {tuple(views.shape)} and "
                f"{tuple(elements.shape)}."
            )
        if elements.shape[2] != group.dim:
            raise ValueError(
                f"The group's elements have {group.dim} numbers; got elements of shape {tuple(elements.shape)}."
            )
        if labels is not None and labels.shape != views.shape[:1]:
            raise ValueError(f"labels must be ({len(views)},), one for each source; got {tuple(labels.shape)}.")
        self.views, self.elements, self.group, self.labels = views, elements, group, labels
        self.num_views = self._checked(num_views)

    def __len__(self) -> int:
        """N, the number of sources."""
        return len(self.views)

    def draw(self, index: int, generator: torch.Generator) -> ViewSequence:
        """`num_views` of the views of source `index`, in a random order: views (T+1, …), actions (T, A)."""
        return map_tensors(
            lambda part: part[0], self._sample(torch.tensor([index], device="cpu"), self.num_views, generator)
        )

    def sample(
        self, instance: Int[Tensor, "B"], *, num_views: int | None = None, generator: torch.Generator | None = None
    ) -> ViewSequence:
        """Sequences of several sources at once: views (B, T+1, …) floating point, actions (B, T, A).

        Args:
            instance: (B,) numbers in [0, N); one may come more than once.
            num_views: T+1; None is that of the pool.
            generator: on the CPU.

        Raises:
            ValueError: sources that are not there; too few or too many views.
        """
        check_tensor("instance", instance)
        if instance.ndim != 1 or instance.is_floating_point() or instance.dtype == torch.bool:
            raise ValueError(
                f"instance must be (B,) whole numbers; got {instance.dtype} of shape {tuple(instance.shape)}."
            )
        if len(instance) and not 0 <= int(instance.min()) <= int(instance.max()) < len(self):
            raise ValueError(
                f"Sources are numbered from 0 to {len(self) - 1}; got {int(instance.min())} to {int(instance.max())}."
            )
        count = self.num_views if num_views is None else self._checked(num_views)
        sequence = self._sample(instance.cpu(), count, generator)
        return sequence._replace(views=unit_floats(sequence.views))

    def _checked(self, num_views: int) -> int:
        if not 2 <= num_views <= self.views.shape[1]:
            raise ValueError(
                f"num_views goes from 2 to {self.views.shape[1]}, the views of a source, as none comes twice; got "
                f"{num_views}."
            )
        return num_views

    def _sample(self, rows: Tensor, count: int, generator: torch.Generator | None) -> ViewSequence:
        numbers = torch.rand(len(rows), self.views.shape[1], generator=generator, device="cpu", dtype=torch.float64)
        chosen = numbers.argsort(dim=1)[:, :count]

        def of(part: Tensor) -> Tensor:
            return part[rows[:, None].to(part.device), chosen.to(part.device)]

        views, elements = of(self.views), of(self.elements)
        if views.is_floating_point() and views.dtype.itemsize < 4:
            views = views.float()
        labels = None if self.labels is None else self.labels[rows.to(self.labels.device)]
        return ViewSequence(views, self.group.actions(elements), elements, labels, self.group)
