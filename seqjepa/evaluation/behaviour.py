"""What a model does with views and actions: accuracy by number of views, retrieval, sensitivity, composition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.evaluation._coordinates import coordinates, rotation_columns
from seqjepa.evaluation.features import ROWS, Features, aggregate_states, evaluating, in_chunks
from seqjepa.evaluation.probes import Classification, knn_probe, linear_probe
from seqjepa.evaluation.regression import regression_r2
from seqjepa.evaluation.retrieval import PredictionRetrievalError, Retrieval, pre, retrieval
from seqjepa.evaluation.transformations import HIDDEN, group_of
from seqjepa.functional import cosine_distance

__all__ = [
    "CompositionError", "Sensitivity", "Top1", "action_retrieval", "composition_error", "observation_grid",
    "prediction_retrieval_error", "sensitivity", "top1",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Top1:
    """Accuracy of linear probes: of z, and of the state of M views for several M.

    Attributes:
        z: of the encoder output of each source's first view.
        states: M_val → of the state of each source's first M views; empty for an encoder alone.
        knn: "z", and "state of M" for the largest M_val → of the 20 nearest neighbours, for which nothing is fitted.

    Examples:
        >>> Top1.__name__
        'Top1'
    """

    z: Classification
    states: Mapping[int, Classification]
    knn: Mapping[str, Classification] = field(default_factory=dict)


def top1(model: Any, train: Features, test: Features, *, num_views: Sequence[int] = (1, 3, 5), seed: int = 0) -> Top1:
    """Top-1 accuracy of z and of the state at each M_val: what invariance is worth.

    A linear probe is fitted to the training features and scored on the test features. z is that of the first view, as
    in SIE; the state is of the first M views. The paper claims that the state classifies better than z, and better the
    more views it has seen. Chance is the share of the commonest class.

    Args:
        model: anything with `aggregate`; unused for the features of an encoder alone.
        train: features of the training sources, with labels.
        test: features of other sources, with labels.
        num_views: M_val of the states.
        seed: of the probes.

    Raises:
        ValueError: no labels; M_val beyond the views there are; and what `linear_probe` refuses.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), tables 1 and 2, figure 4.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> views, labels = torch.randn(80, 2, 4), torch.arange(80) % 2
        >>> sequence = ViewSequence(views + 3 * labels[:, None, None], torch.randn(80, 1, 2), labels=labels)
        >>> features = extract(lambda v: v, sequence)
        >>> top1(None, features, features).z.accuracy > 0.9
        True
    """
    if train.labels is None or test.labels is None:
        raise ValueError("Accuracy needs labels; the sequences have none. Give the ViewSequences their labels.")
    sets: dict[str | int, tuple[Tensor, Tensor]] = {"z": (train.z[:, 0], test.z[:, 0])}
    for m in num_views if train.e is not None else ():
        sets[m] = aggregate_states(model, train, m), aggregate_states(model, test, m)
    most = max((m for m in sets if isinstance(m, int)), default="z")
    probes, knn = {}, {}
    for name, (fit, score) in sets.items():
        rows = fit, train.labels, score, test.labels
        probes[name] = linear_probe(*rows, train_sources=train.sources, test_sources=test.sources, seed=seed)
        if name in ("z", most):
            key = "z" if name == "z" else f"state of {name}"
            knn[key] = knn_probe(*rows, k=min(20, len(fit)), test_sources=test.sources, seed=seed)
    return Top1(z=probes["z"], states={m: fit for m, fit in probes.items() if isinstance(m, int)}, knn=knn)


def observation_grid(
    models: Mapping[int, Any],
    features: Mapping[int, tuple[Features, Features]],
    *,
    num_views: Sequence[int],
    seed: int = 0,
) -> dict[int, dict[int, Classification]]:
    """The M_tr × M_val grid: accuracy of the state, by how many views models were trained on and are given.

    Args:
        models: M_tr → model.
        features: M_tr → (train, test) features of that model.
        num_views: the M_val.
        seed: of the probes.

    Returns:
        M_tr → M_val → [`Classification`][seqjepa.evaluation.Classification].

    Raises:
        ValueError: models and features of different M_tr; M_val beyond the views there are; no labels.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), figure 4.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> labels = torch.arange(20) % 2
        >>> sequence = ViewSequence(torch.rand(20, 3, 3, 32, 32), torch.randn(20, 2, 2), labels=labels)
        >>> features = extract(model, sequence)
        >>> list(observation_grid({2: model}, {2: (features, features)}, num_views=(1, 3))[2])
        [1, 3]
    """
    if models.keys() != features.keys():
        raise ValueError(f"Give features for every model; got models of M_tr {[*models]}, features of {[*features]}.")
    return {
        m_tr: dict(top1(models[m_tr], train, test, num_views=num_views, seed=seed).states)
        for m_tr, (train, test) in features.items()
    }


def action_retrieval(model: Any, test: Features) -> Retrieval:
    """Does the predictor find the view that an action leads to, among all views of the same object? MRR and H@k.

    From the state of the first view alone, the predictor is told the action to view k, for every k of the source;
    what it predicts is ranked against the target encoder's outputs of all the source's views by cosine. Chance
    depends on the number of views: the result says it.

    Args:
        model: anything with `aggregate`, `embed` and `predict`.
        test: features with targets and a group.

    Raises:
        ValueError: the features of an encoder alone, or without a group.

    Source:
        Garrido et al. 2023 (SIE, arXiv 2302.10283), with 50 views an object.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> sequence = ViewSequence(torch.rand(6, 5, 3, 32, 32), torch.randn(6, 4, 2), group=Translation(2))
        >>> 0 < action_retrieval(model, extract(model, sequence)).mrr <= 1
        True
    """
    ks = [k for k in (1, 2, 5, 10) if k <= test.num_views]
    return retrieval(_predicted_from_first(model, test), _targets(test), ks=ks)


def prediction_retrieval_error(model: Any, test: Features, *, max_sources: int = 2000) -> PredictionRetrievalError:
    """How wrong is the pose of what the predictor's output is nearest to, among the views of all objects? PRE.

    The queries of [`action_retrieval`][seqjepa.evaluation.action_retrieval]; the error of the nearest target's absolute
    rotation, 1 − ⟨q, q'⟩², in [0, 1].

    Args:
        model: anything with `aggregate`, `embed` and `predict`.
        test: features with targets and absolute parameters, of a group that is or holds one `Rotation3D`.
        max_sources: how many sources to search, the first of the test set: the time grows with their square.

    Raises:
        ValueError: the features of an encoder alone; no rotations, or not one.

    Source:
        Garrido et al. 2023 (SIE, arXiv 2302.10283).

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Rotation3D
        >>> model, q = SeqJEPA.from_timm("resnet18", action_dim=4, cifar_stem=True), Rotation3D.random(6, 3)
        >>> group = Rotation3D()
        >>> sequence = ViewSequence(torch.rand(6, 3, 3, 32, 32), group.actions(q), q, group=group)
        >>> 0 <= prediction_retrieval_error(model, extract(model, sequence)).error <= 1
        True
    """
    columns = rotation_columns(group_of(test))
    if columns is None or test.elements is None:
        raise ValueError(
            "PRE compares absolute rotations of space: it needs a group that is or holds one Rotation3D, and the "
            "rotations as the sequence's parameters."
        )
    found = _predicted_from_first(model, test), _targets(test), test.elements[..., columns]
    return pre(*(x[:max_sources] for x in found))


def _predicted_from_first(model: Any, features: Features) -> Float[Tensor, "N V D"]:
    """What the predictor expects at every view of a source, told the action that leads there from the first."""
    state = aggregate_states(model, features, 1)
    actions = torch.stack([features.relative(0, k) for k in range(features.num_views)], dim=1)

    def predict(state: Tensor, actions: Tensor) -> Tensor:
        repeated = state[:, None].expand(-1, actions.shape[1], -1).flatten(0, 1)
        return model.predict(repeated, model.embed(actions).flatten(0, 1)).unflatten(0, actions.shape[:2])

    with evaluating(model, getattr(model, "predict", None)):
        return in_chunks(predict, state, actions, rows=max(1, ROWS // features.num_views))


def _targets(features: Features) -> Float[Tensor, "N V D"]:
    if features.target is None:
        raise ValueError(
            "This measure needs the target encoder's outputs; these are the features of a model without one."
        )
    return features.target


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What changes when actions or views are shuffled: what shows that a model uses them.

    Each field maps a condition to a number: "as they are"; "actions of other sources": every source is told the actions
    of another; "last action of another source": only the upcoming one; "views in another order": observed views
    permuted within their sequence so that none stays in its place, actions left (where two or more are observed); and
    for the loss "target of another source", which is chance.

    Attributes:
        loss: mean cosine distance between prediction and target, all but the last view observed.
        top1: accuracy of the state; the probe was fitted to states as they are. Empty without labels.
        path_r2: R² of path integration; the probe was fitted to paths as they are, and the answer is the true path.

    Examples:
        >>> Sensitivity.__name__
        'Sensitivity'
    """

    loss: Mapping[str, float]
    top1: Mapping[str, float]
    path_r2: Mapping[str, float]


def sensitivity(
    model: Any, train: Features, test: Features, *, hidden: Sequence[int] = HIDDEN, seed: int = 0
) -> Sensitivity:
    """How far the loss, the accuracy and path integration move when actions or views are shuffled.

    A model that ignores its actions is not moved by others. Probes are fitted to features as they are.

    Args:
        model: anything with `embed`, `aggregate` and `predict`.
        train: features of the training sources, with a group.
        test: features of other sources, at least two, of two views or more.
        hidden: widths of the path regression's hidden layers.
        seed: of the shuffles and the probes.

    Raises:
        ValueError: the features of an encoder alone; fewer than two sources or views.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> sequence = ViewSequence(torch.rand(30, 3, 3, 32, 32), torch.randn(30, 2, 2), group=Translation(2))
        >>> features = extract(model, sequence)
        >>> list(sensitivity(model, features, features, hidden=()).path_r2)[:2]
        ['as they are', 'actions of other sources']
    """
    target = _targets(test)[:, -1]
    group, n, m = group_of(train), len(test.z), test.num_views - 1
    if n < 2 or m < 1:
        raise ValueError(f"Shuffling needs at least two sources and two views; got {n} sources of {m + 1} views.")
    generator = torch.Generator().manual_seed(seed)
    other = (torch.arange(n) + 1 + int(torch.randint(n - 1, (), generator=generator))) % n  # no source keeps its own
    assert test.e is not None
    ring = torch.rand(n, m, generator=generator).argsort(dim=1)  # each view is replaced by the next on a random ring
    order = torch.empty_like(ring).scatter_(1, ring, ring.roll(-1, dims=1))[..., None].to(test.z.device)
    other, e = other.to(test.z.device), test.e
    shuffled_views = torch.cat([torch.take_along_dim(test.z[:, :m], order, dim=1), test.z[:, m:]], dim=1)
    conditions = {
        "as they are": (test.z, e),
        "actions of other sources": (test.z, e[other]),
        "last action of another source": (test.z, torch.cat([e[:, :-1], e[other][:, -1:]], dim=1)),
    }
    if m > 1:
        conditions["views in another order"] = shuffled_views, e
    states = {name: aggregate_states(model, test, m, z=z, e=e) for name, (z, e) in conditions.items()}
    loss = {}
    with evaluating(model, getattr(model, "predict", None)):
        for name, (_, used) in conditions.items():
            prediction = in_chunks(model.predict, states[name], used[:, m - 1])
            loss[name] = cosine_distance(prediction, target).mean().item()
            if name == "as they are":
                loss["target of another source"] = cosine_distance(prediction, target[other]).mean().item()
    fit = aggregate_states(model, train, m)
    accuracy = {}
    if train.labels is not None and test.labels is not None:
        rows = torch.cat(list(states.values()))
        every = test.labels.repeat(len(states))
        probe = linear_probe(fit, train.labels, rows, every, train_sources=train.sources, seed=seed)
        right = (probe.predictions.to(test.labels.device).view(len(states), n) == test.labels).float().mean(dim=1)
        accuracy = dict(zip(states, right.tolist(), strict=True))
    assert train.e is not None
    beside = torch.cat([torch.cat([states[name], used[:, m - 1]], dim=1) for name, (_, used) in conditions.items()])
    actual = coordinates(group, test.relative(0, m))
    regression = regression_r2(
        torch.cat([fit, train.e[:, m - 1]], dim=1),
        coordinates(group, train.relative(0, m)),
        beside,
        actual.repeat(len(conditions), 1),
        hidden=hidden,
        train_sources=train.sources,
        seed=seed,
    )
    squared = (regression.predictions.view(len(conditions), n, -1) - actual).square().sum(dim=1)
    r2 = 1 - squared / (actual - actual.mean(dim=0)).square().sum(dim=0)
    return Sensitivity(loss, accuracy, dict(zip(conditions, r2.mean(dim=1).tolist(), strict=True)))


@dataclass(frozen=True, eq=False)
class CompositionError:
    """Two predicted steps against one step by the composed action, as cosine distances in [0, 2].

    Attributes:
        distance: between the two predictions: 0 for a predictor that respects the group.
        chance: between the two predictions of different sources.
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
        model: anything with `embed`, `aggregate` and `predict`.
        test: features with targets and a group, of three views or more and at least two sources.

    Raises:
        ValueError: fewer than three views or two sources; an encoder alone; no group.

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
    target = _targets(test)
    if test.num_views < 3 or len(test.z) < 2:
        raise ValueError(
            f"Two steps need three views, and chance two sources; got {test.num_views} views of {len(test.z)} sources."
        )
    assert test.e is not None
    state = aggregate_states(model, test, 1)
    with evaluating(model, getattr(model, "predict", None)):
        first = in_chunks(model.predict, state, test.e[:, 0])
        length = test.z[:, 0].norm(dim=-1, keepdim=True)
        first = first / first.norm(dim=-1, keepdim=True).clamp(min=1e-8) * length
        imagined = torch.cat([test.z[:, :1], first[:, None]], dim=1)
        both = in_chunks(model.aggregate, imagined, test.e[:, :1])
        two = in_chunks(model.predict, both, test.e[:, 1])
        composed = in_chunks(model.embed, test.relative(0, 2)[:, None]).squeeze(1)
        one = in_chunks(model.predict, state, composed)
    return CompositionError(
        distance=cosine_distance(two, one).mean().item(),
        chance=cosine_distance(two, one.roll(1, dims=0)).mean().item(),
        two_steps=cosine_distance(two, target[:, 2]).mean().item(),
        one_step=cosine_distance(one, target[:, 2]).mean().item(),
    )
