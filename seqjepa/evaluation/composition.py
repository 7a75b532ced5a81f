"""Two predicted steps against one step by the composed action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from seqjepa.evaluation._fits import group_of
from seqjepa.evaluation._frozen import call, unwrapped
from seqjepa.evaluation._others import distance_to_others
from seqjepa.evaluation.features import Features, check_told
from seqjepa.evaluation.retrieval import targets_of
from seqjepa.evaluation.states import aggregate_states
from seqjepa.functional import cosine_distance

__all__ = ["CompositionError", "composition_error"]


@dataclass(frozen=True, eq=False)
class CompositionError:
    """Two predicted steps against one step by the composed action, as cosine distances in [0, 2].

    Attributes:
        distance: between the two predictions: 0 for a predictor that respects the group.
        chance: between the two predictions of different sources, over all such pairs.
        two_steps: of the two predicted steps to the target.
        one_step: of the one composed step to the target.

    Examples:
        >>> round(CompositionError(0.1, 0.5, 0.3, 0.2).relative, 3)
        0.2
    """

    distance: float
    chance: float
    two_steps: float
    one_step: float

    @property
    def relative(self) -> float:
        """`distance` over `chance`: 0 is consistent, 1 is no better than predictions of different sources."""
        return self.distance / self.chance if self.chance > 0 else float("nan")


def composition_error(model: Any, test: Features) -> CompositionError:
    """Equivariance along composed actions: two predicted steps against one composed step.

    From the first view: predict view 2 by a₁, feed the prediction back as a view (at the length of the first view's
    z, for the loss leaves the length of predictions free), predict view 3 by a₂; against predicting view 3 from
    view 1 by a₁ ∘ a₂.

    Args:
        model: anything with `embed`, `aggregate` and `predict`, whose predictions are in the space of z: a model
            says that they are not by an attribute `predicts_z` that is False.
        test: features with targets and a group, of three views or more and at least two sources.

    Raises:
        ValueError: fewer than three views or two sources; an encoder alone; no group; predictions that are no z; a
            model that is told inferred actions.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> sequence = ViewSequence(torch.rand(6, 3, 3, 32, 32), torch.randn(6, 2, 2), group=Translation(2))
        >>> 0 <= composition_error(model, extract(model, sequence)).distance <= 2
        True
    """
    group_of(test)
    check_told(test)
    if not getattr(model, "predicts_z", True):
        raise ValueError(
            f"Two steps feed a prediction back as a view; those of {type(unwrapped(model)).__name__} are not in the "
            "space of z."
        )
    target, sources = targets_of(test), test.source_numbers
    if test.num_views < 3 or len(sources.unique()) < 2:
        raise ValueError(
            f"Two steps need three views, and chance two sources; got {test.num_views} views of "
            f"{len(sources.unique())} sources."
        )
    assert test.e is not None
    state = aggregate_states(model, test, 1)
    first = call(model, "predict", state, test.e[:, 0])
    length = test.z[:, 0].norm(dim=-1, keepdim=True)
    first = first / first.norm(dim=-1, keepdim=True).clamp(min=1e-8) * length
    imagined = torch.cat([test.z[:, :1], first[:, None]], dim=1)
    two = call(model, "predict", call(model, "aggregate", imagined, test.e[:, :1]), test.e[:, 1])
    composed = call(model, "embed", test.relative(0, 2)[:, None]).squeeze(1)
    one = call(model, "predict", state, composed)
    return CompositionError(
        distance=cosine_distance(two, one).mean().item(),
        chance=distance_to_others(two, one, sources),
        two_steps=cosine_distance(two, target[:, 2]).mean().item(),
        one_step=cosine_distance(one, target[:, 2]).mean().item(),
    )
