"""Path integration: what a state knows of the way it came, beside what the actions alone say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.evaluation._exact import IN_ORDER, ORDER_BLIND, in_order, order_blind
from seqjepa.evaluation._fits import HIDDEN, Rows, TransformationFit, fit_actions, group_of
from seqjepa.evaluation.features import Features
from seqjepa.evaluation.states import aggregate_states, blank_views
from seqjepa.groups import Group

__all__ = ["LEVELS", "MODEL_VARIANTS", "VARIANTS", "path_integration"]

WITHOUT_VIEWS, WITHOUT_ACTIONS = "probe robbed of views", "probe robbed of earlier actions"
ROBBED = (WITHOUT_VIEWS, WITHOUT_ACTIONS)
MODEL_VARIANTS = ("views and actions", "views only", "actions only", "state alone", *ROBBED)
LEVELS = ("mean of z", IN_ORDER, ORDER_BLIND)
VARIANTS = (*MODEL_VARIANTS, *LEVELS)
FROM_TWO = ("state alone", *ROBBED)  # these begin at two views

Curve = dict[int, TransformationFit]


def path_integration(
    model: Any,
    train: Features,
    test: Features,
    *,
    num_views: Sequence[int] | None = None,
    variants: Sequence[str] = VARIANTS,
    hidden: Sequence[int] = HIDDEN,
    seed: int = 0,
) -> dict[str, dict[int, TransformationFit]]:
    """R² of where a path of M views leads: the transformation from the first view to the one after the last.

    Regressed from the predictor's own input, the state of M views and the embedding of the action that leaves the last
    of them. For M = 1 that action is the answer, so the curve starts at 1; then the path must be integrated. A probe is
    fitted anew for each of these inputs, and its number says what that input holds:

    - "views and actions": all that the model is given;
    - "views only": the embedded actions are replaced by zeros, in the state and beside it;
    - "actions only": every view is replaced by the mean view's z: what actions alone tell through the aggregator;
    - "state alone": without the upcoming action, and to the last view observed, which is where the state has been
      (for M = 1 the answer is the identity: nothing to explain, so it starts at 2);
    - "mean of z": the mean of z over the views in place of the state, and the upcoming action.

    Two levels ask no model. The answer lies in the actions, and a good reader of them needs no view:

    - "exact actions, in order": all M actions, side by side;
    - "exact actions, order-blind": sums of the earlier actions, and of products of two of their numbers, and the
      upcoming one: what an aggregator without positions can have of actions without views.

    Two are of the probe of "views and actions", not fitted again, and given less. Such inputs are new to it; that it
    fails on them says that it uses what was taken, and the order of two failures says nothing:

    - "probe robbed of views": the mean view's z in place of every view;
    - "probe robbed of earlier actions": zeros in place of all embedded actions but the upcoming one.

    Rows decide more than most settings: from 2,000 to 20,000 R² of views and actions rose by 0.25, that of actions only
    by 0.04. [`redraw`][seqjepa.evaluation.redraw] makes many sequences of the same views.

    Args:
        model: anything with `aggregate`.
        train: features of the training sources, with a group.
        test: features of other sources.
        num_views: M_val; by default 1 to V − 1.
        variants: which of these nine.
        hidden: widths of the MLP's hidden layers; () is linear.
        seed: of the regressions.

    Returns:
        variant → M_val → [`TransformationFit`][seqjepa.evaluation.TransformationFit].

    Raises:
        ValueError: an unknown variant; no group; M_val beyond V − 1; the features of an encoder alone.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), figure on path integration, for the first four.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> sequence = ViewSequence(torch.rand(60, 3, 3, 32, 32), torch.randn(60, 2, 2), group=Translation(2))
        >>> features = extract(model, sequence)
        >>> curve = path_integration(model, features, features, variants=("views and actions",), hidden=())
        >>> curve["views and actions"][1].mean > 0.99
        True
    """
    if not variants or set(variants) - set(VARIANTS):
        raise ValueError(f"variants must be some of {', '.join(map(repr, VARIANTS))}; got {tuple(variants)}.")
    group = group_of(train, test)
    lengths = tuple(range(1, train.num_views) if num_views is None else num_views)
    shorter = min(train.num_views, test.num_views)
    if any(not 1 <= m < shorter for m in lengths):
        raise ValueError(
            f"A path of M views leads to view M + 1, so M_val must be from 1 to {shorter - 1} in sequences of "
            f"{shorter} views; got {lengths}."
        )
    longer = tuple(m for m in lengths if m > 1)
    inputs, made = _Inputs(model, train), dict[str, Curve]()
    for variant in variants:
        base = _fitted_to(variant)
        own = longer if base in FROM_TWO else lengths
        if variant not in made:
            fits = {m: inputs.rows(train, base, m) for m in own}
            read = {
                name: {m: inputs.rows(test, name, m) for m in (longer if name in FROM_TWO else own)}
                for name in variants
                if _fitted_to(name) == base
            }
            made |= _curves(group, fits, read, hidden, seed)
    return {variant: made[variant] for variant in variants}


def _fitted_to(variant: str) -> str:
    """The variant whose rows the probe of this one is fitted to."""
    return "views and actions" if variant in ROBBED else variant


def _curves(
    group: Group,
    fits: Mapping[int, Rows],
    read: Mapping[str, Mapping[int, Rows]],
    hidden: Sequence[int],
    seed: int,
) -> dict[str, Curve]:
    """What is read off by the probes fitted to these rows, one for each M_val: variant → M_val → R²."""
    curves: dict[str, Curve] = {name: {} for name in read}
    asked = [m for m in fits if any(m in rows for rows in read.values())]
    probes = fit_actions(group, [fits[m] for m in asked], hidden, seed)
    for m, probe in zip(asked, probes, strict=True):
        for name, rows in read.items():
            if m in rows:
                curves[name][m] = probe.read(rows[m])
    return curves


class _Inputs:
    """What the probes of each variant are given; a state that several are given is made once."""

    def __init__(self, model: Any, train: Features) -> None:
        self.model, self.train = model, train
        self.made: dict[tuple[int, str, int], Tensor] = {}

    def rows(self, features: Features, variant: str, m: int) -> Rows:
        """Inputs, the path that each is asked for, and sources."""
        where = features.relative(0, m - 1 if variant == "state alone" else m)
        return Rows(self._x(features, variant, m), where, features.source_numbers)

    def _x(self, features: Features, variant: str, m: int) -> Float[Tensor, "N L"]:
        if variant == IN_ORDER:
            return in_order(features, 0, m)
        if variant == ORDER_BLIND:
            return torch.cat([order_blind(features, 0, m - 1), in_order(features, m - 1, m)], dim=1)
        if variant == "state alone":
            return self._state(features, "as it is", m)
        if features.e is None:
            return self._state(features, "as it is", m)  # raises
        upcoming = features.e[:, m - 1]
        if variant == "mean of z":
            return torch.cat([features.z[:, :m].mean(dim=1), upcoming], dim=1)
        blank = variant in ("actions only", WITHOUT_VIEWS)
        untold = variant in ("views only", WITHOUT_ACTIONS)
        state = self._state(features, "blank" if blank else "untold" if untold else "as it is", m)
        return torch.cat([state, torch.zeros_like(upcoming) if variant == "views only" else upcoming], dim=1)

    def _state(self, features: Features, kind: str, m: int) -> Float[Tensor, "N S"]:
        key = (id(features), kind, m)
        if key not in self.made:
            z = blank_views(features, self.train) if kind == "blank" else None
            e = torch.zeros_like(features.e) if kind == "untold" and features.e is not None else None
            self.made[key] = aggregate_states(self.model, features, m, z=z, e=e)
        return self.made[key]
