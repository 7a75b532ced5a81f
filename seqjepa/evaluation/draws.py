"""Many sequences from the views of each source, each view encoded once."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seqjepa.evaluation._frozen import call
from seqjepa.evaluation.features import Features, check_told, drawn_rows

__all__ = ["redraw"]


def redraw(model: Any, features: Features, rows: int, *, num_views: int | None = None, seed: int = 0) -> Features:
    """Many sequences of the same views: each is a new order of some of them, its actions composed anew.

    A regression from states needs thousands of rows, and a picture need be encoded once. Encode each source's views
    once, as many as there are, and draw shorter sequences of them. No two sequences drawn from one are alike, and each
    is drawn from as often as any other (once more or less). All sequences drawn from one are of one source.

    The order of views must be free, as that of poses drawn independently is; that of fixations with inhibition of
    return is so within what inhibition keeps apart.

    Args:
        model: anything with `embed`; unused for the features of an encoder alone.
        features: of [`extract`][seqjepa.evaluation.extract], with a group.
        rows: how many sequences to draw, at least 1.
        num_views: of each, from 1 to the views there are; all of them by default.
        seed: of the draw.

    Raises:
        ValueError: no group; num_views beyond the views there are; more rows than different sequences; a
            model that is told inferred actions.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> t = torch.randn(10, 8, 2)
        >>> features = extract(lambda v: v, ViewSequence(t, t.diff(dim=1), t, group=Translation(2)))
        >>> many = redraw(None, features, 200, num_views=4)
        >>> many.z.shape, torch.allclose(many.actions, many.z.diff(dim=1), atol=1e-5)
        (torch.Size([200, 4, 2]), True)
    """
    check_told(features)
    count, views = features.z.shape[:2]
    length = views if num_views is None else num_views
    if not 1 <= length <= views:
        raise ValueError(
            f"num_views must be from 1 to the {views} views that there are; got {length}. Encode more views of each "
            "source, or draw shorter sequences."
        )
    orders = math.perm(views, length)
    if not 1 <= rows <= count * orders:
        raise ValueError(
            f"rows must be from 1 to {count * orders}: each of the {count} sequences of {views} views gives {orders} "
            f"of {length}; got {rows}. Encode more sources or views, or ask for fewer rows."
        )
    source, order = (part.to(features.z.device) for part in _orders(features, rows, length, seed))
    along, group = features.from_first()[source[:, None], order], features.group
    assert group is not None
    actions = group.compose(group.inverse(along[:, :-1]), along[:, 1:]) if length > 1 else features.actions[source, :0]

    def picked(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[source[:, None], order]

    z = picked(features.z)
    assert z is not None
    return replace(
        features,
        z=z,
        actions=actions,
        e=None if features.e is None else call(model, "embed", actions) if length > 1 else features.e[source, :0],
        target=picked(features.target),
        labels=None if features.labels is None else features.labels[source],
        elements=picked(features.elements),
        pictures=None,
        sources=features.source_numbers[source],
        pictured=None,
    )


def _orders(features: Features, rows: int, length: int, seed: int) -> tuple[Int[Tensor, "R"], Int[Tensor, "R M"]]:
    """For each row the sequence it is drawn from, and the views it takes, in their order."""
    count, views = features.z.shape[:2]
    drawn = random.Random(seed)
    each = torch.full((count,), rows // count, device="cpu")
    if rows % count:
        each[drawn_rows(features, rows % count, seed).cpu()] += 1
    orders = [
        _order(number, views, length)
        for some in each.tolist()
        for number in drawn.sample(range(math.perm(views, length)), some)
    ]
    source = torch.arange(count, device="cpu").repeat_interleave(each)
    return source, torch.tensor(orders, dtype=torch.long, device="cpu")


def _order(number: int, views: int, length: int) -> list[int]:
    """The ordered choice of `length` views that has this number."""
    left, order = list(range(views)), []
    for _ in range(length):
        number, place = divmod(number, len(left))
        order.append(left.pop(place))
    return order
