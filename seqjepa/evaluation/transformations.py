"""Transformations from z, from states, and along paths: what equivariance is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.evaluation.features import Features, aggregate_states
from seqjepa.evaluation.regression import Regression, regression_r2, rotation_error
from seqjepa.groups import Group, Hue, Product, Rotation2D, Rotation3D

__all__ = [
    "TransformationR2", "coordinates", "out_of_distribution", "path_integration", "state_transformation_r2",
    "transformation_r2",
]  # fmt: skip

HIDDEN = (256, 256)
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

    Examples:
        >>> TransformationR2.__name__
        'TransformationR2'
    """

    relative: Regression
    individual: Regression | None
    relative_degrees: float | None = None
    individual_degrees: float | None = None
    chance_degrees: float | None = None


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
        max_pairs: the most rows to fit; the test set is given a third of it.
        seed: of the pairs and the regression.

    Raises:
        ValueError: no group; a single view; and what `regression_r2` refuses.

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
    generator = torch.Generator().manual_seed(seed)
    group = group_of(train)
    fit, score = (
        _pairs(features, limit, generator) for features, limit in ((train, max_pairs), (test, max_pairs // 3))
    )
    relative = _regress(group, fit, score, hidden, seed)
    individual, individual_degrees = None, None
    if train.elements is not None and test.elements is not None:
        one = [_singles(f, n) for f, n in ((train, max_pairs), (test, max_pairs // 3))]
        individual = _regress(group, one[0], one[1], hidden, seed)
        individual_degrees = _degrees(group, individual, one[1].action)[0]
    degrees, chance = _degrees(group, relative, score.action)
    return TransformationR2(relative, individual, degrees, individual_degrees, chance)


def state_transformation_r2(
    model: Any,
    train: Features,
    test: Features,
    *,
    num_views: int = 1,
    hidden: Sequence[int] = HIDDEN,
    seed: int = 0,
) -> TransformationR2:
    """R² of transformations from states: what invariance should remove.

    Two states are made of each source, of its first `num_views` views and of the `num_views` after them; they share no
    view, and the action between the two groups enters neither. The relative target leads from the last view of the
    first to the last view of the second; the individual target is the parameters of the last view of the first.

    Args:
        model: anything with `aggregate`.
        train: features of the training sources, with a group.
        test: features of other sources.
        num_views: M_val of each state; the sequences need twice as many views.
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
    group = group_of(train)
    if train.num_views < 2 * num_views:
        raise ValueError(
            f"Two states of {num_views} views share no view only in sequences of {2 * num_views} views or more; got "
            f"{train.num_views}. Make longer sequences, or take a smaller num_views."
        )
    last, other = num_views - 1, 2 * num_views - 1
    sets = []
    for features in (train, test):
        first = aggregate_states(model, features, num_views)
        second = aggregate_states(model, features, num_views, start=num_views)
        sources = torch.arange(len(first), device=first.device)
        pair = _Rows(torch.cat([first, second], dim=1), features.relative(last, other), sources)
        alone = None if features.elements is None else _Rows(first, features.elements[:, last], sources)
        sets.append((pair, alone))
    relative = _regress(group, sets[0][0], sets[1][0], hidden, seed)
    individual, individual_degrees = None, None
    if sets[0][1] is not None and sets[1][1] is not None:
        individual = _regress(group, sets[0][1], sets[1][1], hidden, seed)
        individual_degrees = _degrees(group, individual, sets[1][1].action)[0]
    degrees, chance = _degrees(group, relative, sets[1][0].action)
    return TransformationR2(relative, individual, degrees, individual_degrees, chance)


def path_integration(
    model: Any,
    train: Features,
    test: Features,
    *,
    num_views: Sequence[int] | None = None,
    variants: Sequence[str] = ("views and actions", "views only", "actions only", "state alone"),
    hidden: Sequence[int] = HIDDEN,
    seed: int = 0,
) -> dict[str, dict[int, Regression]]:
    """R² of where a path of M views leads: the transformation from the first view to the one after the last.

    Regressed from the predictor's own input, the state of M views and the embedding of the action that leaves the last
    of them. For M = 1 that action is the answer, so the curve starts at 1; then the path must be integrated.

    - "views and actions": all that the model is given;
    - "views only": the embedded actions are replaced by zeros, in the state and beside it;
    - "actions only": every view is replaced by the mean view's z: blank views;
    - "state alone": without the upcoming action, and to the last view observed, which is where the state has been
      (for M = 1 the answer is the identity: nothing to explain, so it starts at 2).

    The probe is fitted anew for every variant: each number says what that input holds. Chance is 0.

    Args:
        model: anything with `aggregate`.
        train: features of the training sources, with a group.
        test: features of other sources.
        num_views: M_val; by default 1 to V − 1.
        variants: which of the four.
        hidden: widths of the MLP's hidden layers; () is linear.
        seed: of the regressions.

    Returns:
        variant → M_val → [`Regression`][seqjepa.evaluation.Regression].

    Raises:
        ValueError: an unknown variant; no group; M_val beyond V − 1; the features of an encoder alone.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), figure on path integration.

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
    known = ("views and actions", "views only", "actions only", "state alone")
    if not variants or set(variants) - set(known):
        raise ValueError(f"variants must be some of {', '.join(map(repr, known))}; got {tuple(variants)}.")
    group = group_of(train)
    lengths = range(1, train.num_views) if num_views is None else num_views
    if any(not 1 <= m < train.num_views for m in lengths):
        raise ValueError(
            f"A path of M views leads to view M + 1, so M_val must be from 1 to {train.num_views - 1} in sequences of "
            f"{train.num_views} views; got {tuple(lengths)}."
        )
    curves: dict[str, dict[int, Regression]] = {}
    for variant in variants:
        curves[variant] = {}
        for m in lengths:
            if variant == "state alone" and m == 1:
                continue
            fit, score = (_path_rows(model, f, m, variant, train) for f in (train, test))
            curves[variant][m] = _regress(group, fit, score, hidden, seed)
    return curves


def _path_rows(model: Any, features: Features, m: int, variant: str, train: Features) -> _Rows:
    assert features.e is not None or aggregate_states(model, features, m) is not None  # says what is missing
    e = torch.zeros_like(features.e) if variant == "views only" else features.e  # type: ignore[arg-type]
    blank = train.z.mean(dim=(0, 1)).expand_as(features.z) if variant == "actions only" else None
    state = aggregate_states(model, features, m, z=blank, e=e)
    sources = torch.arange(len(state), device=state.device)
    if variant == "state alone":
        return _Rows(state, features.relative(0, m - 1), sources)
    assert e is not None
    return _Rows(torch.cat([state, e[:, m - 1]], dim=1), features.relative(0, m), sources)


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
    return {
        "in distribution": transformation_r2(train, test, hidden=hidden, seed=seed),
        "out of distribution": transformation_r2(train, ood, hidden=hidden, seed=seed),
    }


def coordinates(group: Group, action: Float[Tensor, "*N A"]) -> Float[Tensor, "*N K"]:
    """An action as numbers that vary continuously with it: what a regression is asked for.

    Angles and hues as cosine and sine; everything else as it is, quaternions as in the paper.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Hue
        >>> coordinates(Hue(), torch.tensor([[0.25], [-0.5]])).round(decimals=3).abs()
        tensor([[0., 1.],
                [1., 0.]])
    """
    if isinstance(group, Product):
        parts = group.split(action)
        return torch.cat([coordinates(part, parts[name]) for name, part in group.groups.items()], dim=-1)
    if isinstance(group, Rotation2D | Hue):
        angle = action * (1.0 if isinstance(group, Rotation2D) else 2 * torch.pi)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)
    return action


@dataclass(frozen=True, eq=False)
class _Rows:
    """Inputs of a regression, the action each row is asked for, and the source it belongs to."""

    x: Float[Tensor, "N D"]
    action: Float[Tensor, "N A"]
    source: Int[Tensor, "N"]


def group_of(features: Features) -> Group:
    """The group of the actions, or an error that asks for it."""
    features.relative(0, 0)  # raises where the group is not known
    assert features.group is not None
    return features.group


def _pairs(features: Features, limit: int, generator: torch.Generator) -> _Rows:
    """Random ordered pairs of different views, as many of each source."""
    n, v = features.z.shape[:2]
    if v < 2:
        raise ValueError(f"A relative transformation needs two views of a source; got {v}.")
    each = max(1, min(v * (v - 1), limit // n))
    ordered = torch.rand(n, v * (v - 1), generator=generator).argsort(dim=1)[:, :each].flatten()
    i = ordered // (v - 1)
    j = ordered % (v - 1)
    j = j + (j >= i)  # any view but i
    source = torch.arange(n).repeat_interleave(each)
    device = features.z.device
    i, j, source = i.to(device), j.to(device), source.to(device)
    repeated = Features(z=features.z[source, :1], actions=features.actions[source], group=features.group)
    x = torch.cat([features.z[source, i], features.z[source, j]], dim=1)
    return _Rows(x, repeated.relative(i, j), source)


def _singles(features: Features, limit: int) -> _Rows:
    """Views alone, as many of each source as the limit allows."""
    assert features.elements is not None
    n, v = features.z.shape[:2]
    each = max(1, min(v, limit // n))
    source = torch.arange(n, device=features.z.device).repeat_interleave(each)
    elements = features.elements[:, :each].flatten(0, 1)
    assert features.group is not None
    identity = features.group.identity(dtype=elements.dtype, device=elements.device)
    canonical = features.group.compose(identity, elements) if isinstance(features.group, Rotation3D) else elements
    return _Rows(features.z[:, :each].flatten(0, 1), canonical, source)


def _regress(group: Group, fit: _Rows, score: _Rows, hidden: Sequence[int], seed: int) -> Regression:
    return regression_r2(
        fit.x, coordinates(group, fit.action), score.x, coordinates(group, score.action),
        hidden=hidden, train_sources=fit.source, test_sources=score.source, seed=seed,
    )  # fmt: skip


def rotation_columns(group: Group | None) -> slice | None:
    """Which numbers of an action are its rotation of space, if it is one or holds just one."""
    if isinstance(group, Rotation3D):
        return slice(0, 4)
    if isinstance(group, Product):
        found = [name for name, part in group.groups.items() if isinstance(part, Rotation3D)]
        return group.columns(found[0]) if len(found) == 1 else None
    return None


def _degrees(group: Group, regression: Regression, actual: Float[Tensor, "N A"]) -> tuple[float | None, float | None]:
    """Mean geodesic error of the rotation of space among the actions, if there is just one, and its chance."""
    columns = rotation_columns(group)
    if columns is None:
        return None, None
    before = actual[..., : columns.start]
    start = coordinates(_leading(group, columns), before).shape[-1] if columns.start else 0
    error = rotation_error(regression.predictions[:, start : start + 4], actual[:, columns])
    return error.mean, error.chance


def _leading(group: Group, columns: slice) -> Group:
    """The parts of a product before these columns: their coordinates may be more numbers than they are."""
    assert isinstance(group, Product)
    return Product({name: part for name, part in group.groups.items() if group.columns(name).stop <= columns.start})
