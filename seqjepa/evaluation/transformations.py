"""Transformations from z, from states, and along paths: what equivariance is worth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seqjepa.evaluation._coordinates import canonical, coordinates
from seqjepa.evaluation._exact import in_order, order_blind
from seqjepa.evaluation._fits import (
    HIDDEN,
    ActionRegressor,
    Rows,
    TransformationFit,
    degrees_of,
    fit_actions,
    group_of,
    regress_all,
)
from seqjepa.evaluation.features import Features
from seqjepa.evaluation.states import aggregate_states, blank_views

__all__ = [
    "TransformationFit", "TransformationProbes", "TransformationR2", "coordinates", "out_of_distribution",
    "state_transformation_r2", "transformation_r2",
]  # fmt: skip

MAX_PAIRS = 24_000  # rows of a regression: more tell little, and take long


@dataclass(frozen=True, eq=False)
class TransformationR2:
    """How much of the transformations a regression explains.

    Attributes:
        relative: R² of the action that leads from one view to another, from both views' features side by side.
        individual: R² of the absolute parameters of a view from its features, or None where they are not known.
        relative_degrees: mean geodesic error of the relative rotation, where the action is or holds one of space.
        individual_degrees: that of the individual rotation.
        chance_degrees: mean error of the relative rotation where the predictions are of other pairs.
        individual_chance_degrees: that of the individual rotation, where the predictions are of other views.
        blank: of states of several views, `relative` where every view is blank: what the actions that a state was told
            tell through the aggregator. Only what `relative` has above it comes from the views.
        mean_z: beside states, `relative` from the means of z over the same views: what an aggregator must beat. Of one
            view it is z, at as many rows.
        actions_in_order: beside states of several views, `relative` from the exact actions that they were told.
        actions_order_blind: that from their sums, of first and second order.
    """

    relative: TransformationFit
    individual: TransformationFit | None
    relative_degrees: float | None = None
    individual_degrees: float | None = None
    chance_degrees: float | None = None
    blank: TransformationFit | None = None
    individual_chance_degrees: float | None = None
    mean_z: TransformationFit | None = None
    actions_in_order: TransformationFit | None = None
    actions_order_blind: TransformationFit | None = None


def transformation_r2(
    train: Features, test: Features, *, hidden: Sequence[int] = HIDDEN, max_pairs: int = MAX_PAIRS, seed: int = 0
) -> TransformationR2:
    """R² of relative and individual transformations from z: what equivariance is worth.

    Relative: random ordered pairs of different views of a source; features (z_i, z_j) side by side, target the action
    that leads from i to j. Individual: one view, target its absolute parameters. Targets are numbers that vary
    continuously: rotations of space as quaternions (as in the paper), angles and hues as cosine and sine. `mean` is the
    paper's R², `pooled` that of SIE and ContextSSL. Chance is 0 for `mean`; for `pooled` see the result.

    Args:
        train: features of the training sources, with a group.
        test: features of other sources, with the same group.
        hidden: widths of the MLP's hidden layers, (1024, 1024) in SIE; () is linear.
        max_pairs: the most rows to fit, at least 3; the test set is given a third of it.
        seed: of the pairs and the regression.

    Raises:
        ValueError: no group; a single view; max_pairs below 3; and what `regression_r2` refuses.

    Source:
        Garrido et al. 2023 (SIE, arXiv 2302.10283); Ghaemi et al. 2025 (arXiv 2505.03176), table 1.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> t = torch.randn(100, 3, 2)
        >>> sequence = ViewSequence(t, t.diff(dim=1), t, group=Translation(2))        # views that are their positions
        >>> features = extract(lambda views: views, sequence)
        >>> transformation_r2(features, features, hidden=()).relative.mean > 0.99
        True
    """
    group_of(train, test)
    return TransformationProbes(train, hidden=hidden, max_pairs=max_pairs, seed=seed).read(test)


class TransformationProbes:
    """Regressions of relative and individual transformations from z, fitted once and read on any features.

    Args:
        train: features of the training sources, with a group.
        hidden: widths of the MLP's hidden layers; () is linear.
        max_pairs: the most rows to fit, at least 3; each test set is given a third of it.
        seed: of the pairs and the regressions.
    """

    def __init__(self, train: Features, *, hidden: Sequence[int], max_pairs: int = MAX_PAIRS, seed: int) -> None:
        if max_pairs < 3:
            raise ValueError(f"max_pairs is the number of rows to fit, at least 3; got {max_pairs}.")
        self.train, self.hidden, self.max_pairs, self.seed = train, hidden, max_pairs, seed

    def read(self, test: Features) -> TransformationR2:
        """R² on the features of other sources."""
        group_of(self.train, test)
        most = self.max_pairs // 3
        pairs = _pairs(test, most, self._generator())
        relative = self._relative.read(pairs)
        degrees, chance = degrees_of(self._relative.group, relative, pairs)
        if self.train.elements is None or test.elements is None:
            return TransformationR2(relative, None, degrees, None, chance)
        singles = _singles(test, most, self._generator())
        individual = self._individual.read(singles)
        of_one, chance_of_one = degrees_of(self._individual.group, individual, singles)
        return TransformationR2(relative, individual, degrees, of_one, chance, individual_chance_degrees=chance_of_one)

    @functools.cached_property
    def _relative(self) -> ActionRegressor:
        return self._fitted(_pairs(self.train, self.max_pairs, self._generator()))

    @functools.cached_property
    def _individual(self) -> ActionRegressor:
        return self._fitted(_singles(self.train, self.max_pairs, self._generator()))

    def _fitted(self, rows: Rows) -> ActionRegressor:
        return fit_actions(group_of(self.train), [rows], self.hidden, self.seed)[0]

    def _generator(self) -> torch.Generator:
        return torch.Generator(device="cpu").manual_seed(self.seed)


def state_transformation_r2(
    model: Any,
    train: Features,
    test: Features,
    *,
    num_views: int = 1,
    levels: bool = True,
    hidden: Sequence[int] = HIDDEN,
    seed: int = 0,
) -> TransformationR2:
    """R² of transformations from states: what invariance should remove.

    Two states are made of each source, of its first `num_views` views and of the `num_views` after them; they share no
    view, and the action between the two groups enters neither. The relative target leads from the last view of the
    first to the last view of the second; the individual target is the parameters of the last view of the first.

    From two views on a state was also told actions, and these alone say much: of poses drawn from a box, where the
    last view lies compared with the others tells where in the box it is (R² 0.4 for two views of the paper's box, 0.6
    for four, without a look at a view). That is no failure of invariance. `blank` is that level for the model, the same
    states of blank views; `actions_in_order` and `actions_order_blind` ask no model.

    One row a sequence. `mean_z` has as many: for one view it is z, to compare the state of one view with.

    Args:
        model: anything with `aggregate`.
        train: features of the training sources, with a group.
        test: features of other sources.
        num_views: M_val of each state; the sequences need twice as many views.
        levels: whether to make those of exact actions.
        hidden: widths of the MLP's hidden layers; () is linear.
        seed: of the regression.

    Raises:
        ValueError: no group; fewer than 2 · M_val views; and what `regression_r2` refuses.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> t = torch.randn(40, 2, 2)
        >>> sequence = ViewSequence(torch.rand(40, 2, 3, 32, 32), t.diff(dim=1), t, group=Translation(2))
        >>> features = extract(model, sequence)
        >>> state_transformation_r2(model, features, features, hidden=()).relative.predictions.shape
        torch.Size([40, 2])
    """
    group = group_of(train, test)
    if train.num_views < 2 * num_views:
        raise ValueError(
            f"Two states of {num_views} views share no view only in sequences of {2 * num_views} views or more; got "
            f"{train.num_views}. Make longer sequences, or take a smaller num_views."
        )
    last, other = num_views - 1, 2 * num_views - 1

    def between(make: Callable[[Features, int], Tensor]) -> tuple[Rows, Rows]:
        """What is made of each group of views, by the view that begins it, and the action from one to the other."""
        fit, score = (
            Rows(torch.cat([make(f, 0), make(f, num_views)], dim=1), f.relative(last, other), f.source_numbers)
            for f in (train, test)
        )
        return fit, score

    pairs = {"relative": between(lambda f, start: aggregate_states(model, f, num_views, start=start))}
    pairs["mean_z"] = between(lambda f, start: f.z[:, start : start + num_views].mean(dim=1))
    if num_views > 1:
        pairs["blank"] = between(
            lambda f, start: aggregate_states(model, f, num_views, z=blank_views(f, train), start=start)
        )
        if levels:
            pairs["actions_in_order"] = between(lambda f, start: in_order(f, start, start + last))
            pairs["actions_order_blind"] = between(lambda f, start: order_blind(f, start, start + last))
    if train.elements is not None and test.elements is not None:
        fit, score = (
            Rows(rows.x.chunk(2, dim=1)[0], canonical(group, f.elements[:, last]), rows.source)
            for rows, f in zip(pairs["relative"], (train, test), strict=True)
            if f.elements is not None
        )
        pairs["individual"] = fit, score
    fits: dict[str, Any] = {"individual": None}
    fits |= zip(pairs, regress_all(group, list(pairs.values()), hidden, seed), strict=True)
    fits["relative_degrees"], fits["chance_degrees"] = degrees_of(group, fits["relative"], pairs["relative"][1])
    if "individual" in pairs:
        of_one, chance_of_one = degrees_of(group, fits["individual"], pairs["individual"][1])
        fits |= {"individual_degrees": of_one, "individual_chance_degrees": chance_of_one}
    return TransformationR2(**fits)


def out_of_distribution(
    train: Features, test: Features, ood: Features, *, hidden: Sequence[int] = HIDDEN, seed: int = 0
) -> dict[str, TransformationR2]:
    """R² of the transformations, with probes fitted in distribution, on sequences out of it.

    Args:
        train: features of the training sources.
        test: features of other sources, transformed as the training sources are.
        ood: features of sources transformed out of that range, such as rotations of 3DIEBench-OOD.
        hidden: widths of the MLP's hidden layers.
        seed: of the pairs and the regressions.

    Returns:
        "in distribution" and "out of distribution" → [`TransformationR2`][seqjepa.evaluation.TransformationR2].

    Source:
        Garrido et al. 2023 (SIE, arXiv 2302.10283) for the data.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> def features(scale):
        ...     t = scale * torch.randn(100, 3, 2)
        ...     return extract(lambda v: v, ViewSequence(t, t.diff(dim=1), t, group=Translation(2)))
        >>> result = out_of_distribution(features(1.0), features(1.0), features(3.0), hidden=())
        >>> result["out of distribution"].relative.mean > 0.99
        True
    """
    group_of(train, test, ood)
    probes = TransformationProbes(train, hidden=hidden, seed=seed)
    return {"in distribution": probes.read(test), "out of distribution": probes.read(ood)}


def _pairs(features: Features, limit: int, generator: torch.Generator) -> Rows:
    """Random ordered pairs of different views, as many of each source; of some sources where the limit is lower."""
    n, v = features.z.shape[:2]
    if v < 2:
        raise ValueError(f"A relative transformation needs two views of a source; got {v}.")
    kept = _some(n, limit, generator)
    n = len(kept)
    each = max(1, min(v * (v - 1), limit // n))
    ordered = _shuffled(n, v * (v - 1), each, generator)
    i = ordered // (v - 1)
    j = ordered % (v - 1)
    j = j + (j >= i)  # any view but i
    source = kept.repeat_interleave(each)
    device = features.z.device
    i, j, source = i.to(device), j.to(device), source.to(device)
    along, group = features.from_first(), group_of(features)
    x = torch.cat([features.z[source, i], features.z[source, j]], dim=1)
    between = group.compose(group.inverse(along[source, i]), along[source, j])
    return Rows(x, between, features.source_numbers[source])


def _singles(features: Features, limit: int, generator: torch.Generator) -> Rows:
    """Random views alone, as many of each source; of some sources where the limit is lower."""
    assert features.elements is not None
    assert features.group is not None
    n, v = features.z.shape[:2]
    kept = _some(n, limit, generator).to(features.z.device)
    each = max(1, min(v, limit // len(kept)))
    rows = kept.repeat_interleave(each)
    views = _shuffled(len(kept), v, each, generator).to(rows.device)
    elements = canonical(features.group, features.elements[rows, views])
    return Rows(features.z[rows, views], elements, features.source_numbers[rows])


def _some(count: int, limit: int, generator: torch.Generator) -> Int[Tensor, "N"]:
    """All rows, or as many as the limit allows, drawn from all: classes may come in order."""
    if count <= limit:
        return torch.arange(count, device="cpu")
    return torch.randperm(count, generator=generator, device="cpu")[:limit]


def _shuffled(rows: int, count: int, each: int, generator: torch.Generator) -> Int[Tensor, "N"]:
    """`each` different numbers below `count` for every row, one row after the other."""
    order = torch.rand(rows, count, generator=generator, dtype=torch.float32, device="cpu").argsort(dim=1)
    return order[:, :each].flatten()
