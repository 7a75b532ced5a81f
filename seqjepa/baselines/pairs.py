"""Pairs of views of one source, and the action that leads from the first of a pair to the second."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.groups import Group

__all__ = ["Paired", "ViewPairs"]

POLICIES = ("first", "disjoint", "consecutive", "random")


class Paired(NamedTuple):
    """The K pairs of each source, side by side.

    Attributes:
        views: (B, V, …) the views that are in a pair, each once.
        first: which of the V begin a pair, K of them.
        second: which end it, in the same order.
        actions: (B, K, A), from the first of each pair to its second.
        taken: (B, V), where in its sequence each of the views stands.
    """

    views: Float[Tensor, "B V *image"]
    first: slice
    second: slice
    actions: Float[Tensor, "B K A"]
    taken: Int[Tensor, "B V"]

    def of(self, known: Float[Tensor, "B views *rest"]) -> Float[Tensor, "B V *rest"]:
        """Of what is known of every view of a sequence, such as poses, that of the views in a pair."""
        return known[torch.arange(len(known), device=known.device)[:, None], self.taken]


class ViewPairs:
    """Which pairs of views of a sequence a method of two views is given.

    Losses that compare sources are taken of one pair of each source at a time and averaged over the K, so that no
    source is its own negative.

    Args:
        policy: "first": views 0 and 1 alone, as the released code; "disjoint": (0, 1), (2, 3), …; "consecutive": (t,
            t+1) for all t; "random": one pair i < j of each source, any as likely, with the actions between composed.
        group: what composes actions; for "random" alone.
        generator: of the draws of "random", on the CPU.

    Shapes:
        views (B, T+1, …), actions (B, T, A) → views (B, V, …), actions (B, K, A).

    Raises:
        ValueError: an unknown policy; a random one without group.

    Examples:
        >>> import torch
        >>> views, actions = torch.rand(8, 4, 3, 8, 8), torch.randn(8, 3, 2)
        >>> paired = ViewPairs("disjoint")(views, actions)
        >>> torch.equal(paired.views[:, paired.second], views[:, [1, 3]])
        True
        >>> torch.equal(paired.actions, actions[:, [0, 2]])
        True
    """

    def __init__(
        self,
        policy: Literal["first", "disjoint", "consecutive", "random"] = "first",
        *,
        group: Group | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(map(repr, POLICIES))}; got {policy!r}.")
        if policy == "random" and group is None:
            raise ValueError(
                "Between two views drawn at random lie several actions, which their group composes; got group=None. "
                "Give the group of your actions, such as seqjepa.groups.Rotation3D()."
            )
        self.policy, self.group, self.generator = policy, group, generator

    def __call__(self, views: Float[Tensor, "B views *image"], actions: Float[Tensor, "B T A"]) -> Paired:
        """The pairs of a batch."""
        if self.policy == "random":
            return self._random(views, actions)
        even, odd = slice(0, None, 2), slice(1, None, 2)
        count = {"first": 2, "disjoint": views.shape[1] // 2 * 2, "consecutive": views.shape[1]}[self.policy]
        taken = torch.arange(count, device=views.device).expand(len(views), -1)
        if self.policy == "consecutive":
            return Paired(views, slice(0, -1), slice(1, None), actions, taken)
        return Paired(views[:, :count], even, odd, actions[:, : count - 1 : 2], taken)

    def _random(self, views: Float[Tensor, "B views *image"], actions: Float[Tensor, "B T A"]) -> Paired:
        assert self.group is not None
        taken = self._drawn(len(views), views.shape[1]).to(views.device, non_blocking=True)  # (B, 2)
        along = self.group.along(actions)
        rows = torch.arange(len(views), device=views.device)[:, None]
        start, end = along[rows, taken].unbind(1)
        composed = self.group.compose(self.group.inverse(start), end)
        return Paired(views[rows, taken], slice(0, None, 2), slice(1, None, 2), composed[:, None], taken)

    def _drawn(self, sources: int, views: int) -> Int[Tensor, "B 2"]:
        """One pair i < j of each source."""
        every = torch.triu_indices(views, views, offset=1, device="cpu").T
        return every[torch.randint(len(every), (sources,), generator=self.generator, device="cpu")]

    def __repr__(self) -> str:
        """As it is built."""
        return f"ViewPairs({self.policy!r}, group={self.group!r})"
