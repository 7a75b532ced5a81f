"""What moves when actions or views are shuffled: what shows that a model uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.evaluation._coordinates import coordinates
from seqjepa.evaluation._fits import HIDDEN, Rows, group_of, regress
from seqjepa.evaluation._frozen import call
from seqjepa.evaluation._others import distance_to_others, of_other_sources
from seqjepa.evaluation.features import Features
from seqjepa.evaluation.probes import linear_probe
from seqjepa.evaluation.retrieval import targets_of
from seqjepa.evaluation.states import aggregate_states
from seqjepa.functional import cosine_distance

__all__ = ["Sensitivity", "sensitivity"]

LAST = "last action of another source"


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What changes when actions or views are shuffled: what shows that a model uses them.

    Each field maps a condition to a number: "as they are"; "actions of other sources": every sequence is told those
    of another source; "last action of another source": only the upcoming one; "views in another order": observed views
    permuted within their sequence so that none stays in its place, actions left (where two or more are observed); and
    for the loss "target of another source", which is chance.

    Attributes:
        loss: mean cosine distance between prediction and target, all but the last view observed.
        top1: accuracy of the state; the probe was fitted to states as they are. Empty without labels.
        path_r2: R² of path integration; the probe was fitted to paths as they are, and the answer is the true path.
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
    target, m = targets_of(test)[:, -1], test.num_views - 1
    count = len(test.source_numbers.unique())
    if count < 2 or m < 1:
        raise ValueError(f"Shuffling needs at least two sources and two views; got {count} sources of {m + 1} views.")
    group_of(train, test)
    conditions = _conditions(test, torch.Generator(device="cpu").manual_seed(seed))
    states = {name: aggregate_states(model, test, m, z=z, e=e) for name, (z, e) in conditions.items() if name != LAST}
    states = {name: states.get(name, states["as they are"]) for name in conditions}  # the last action is not yet in it
    upcoming = {name: e[:, m - 1] for name, (_, e) in conditions.items()}
    loss = {}
    for name, state in states.items():
        prediction = call(model, "predict", state, upcoming[name])
        loss[name] = cosine_distance(prediction, target).mean().item()
        if name == "as they are":
            loss["target of another source"] = distance_to_others(prediction, target, test.source_numbers)
    fit = aggregate_states(model, train, m)
    assert train.e is not None
    inputs = {name: torch.cat([state, upcoming[name]], dim=1) for name, state in states.items()}
    paths = Rows(torch.cat([fit, train.e[:, m - 1]], dim=1), train.relative(0, m), train.source_numbers)
    return Sensitivity(
        loss,
        {} if train.labels is None or test.labels is None else _accuracies(fit, states, train, test, seed),
        _path_r2(paths, inputs, test, hidden, seed),
    )


def _conditions(test: Features, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """Condition → what is observed, (N, V, D), and the embedded actions, (N, V − 1, E)."""
    assert test.e is not None
    n, m, e = len(test.z), test.num_views - 1, test.e
    other = e[of_other_sources(test.source_numbers, generator)]
    conditions = {
        "as they are": (test.z, e),
        "actions of other sources": (test.z, other),
        LAST: (test.z, torch.cat([e[:, :-1], other[:, -1:]], dim=1)),
    }
    if m > 1:  # each view is replaced by the next on a random ring
        ring = torch.rand(n, m, generator=generator, dtype=torch.float32, device="cpu").argsort(dim=1)
        order = torch.empty_like(ring).scatter_(1, ring, ring.roll(-1, dims=1))[..., None].to(test.z.device)
        moved = torch.cat([torch.take_along_dim(test.z[:, :m], order, dim=1), test.z[:, m:]], dim=1)
        conditions["views in another order"] = moved, e
    return conditions


def _accuracies(
    fit: Float[Tensor, "N S"], states: Mapping[str, Tensor], train: Features, test: Features, seed: int
) -> dict[str, float]:
    """Condition → accuracy of one probe, fitted to states as they are."""
    assert train.labels is not None
    assert test.labels is not None
    every = test.labels.repeat(len(states))
    probe = linear_probe(
        fit, train.labels, torch.cat(list(states.values())), every, train_sources=train.sources, seed=seed
    )
    right = (probe.predictions == every).view(len(states), -1).double().mean(dim=1)
    return dict(zip(states, right.tolist(), strict=True))


def _path_r2(
    train: Rows, inputs: Mapping[str, Tensor], test: Features, hidden: Sequence[int], seed: int
) -> dict[str, float]:
    """Condition → R² of the path, by one regression that is fitted to paths as they are."""
    repeats, group = len(inputs), group_of(test)
    path, sources = test.relative(0, test.num_views - 1), test.source_numbers
    score = Rows(torch.cat(list(inputs.values())), path.repeat(repeats, 1), sources.repeat(repeats))
    regression = regress(group, (train, score), hidden, seed)
    kept = [i for i in range(len(regression.outputs)) if i not in regression.constant]
    actual = coordinates(group, path)[:, kept]
    squared = (regression.predictions[:, kept].unflatten(0, (repeats, len(path))) - actual).square().sum(dim=1)
    r2 = 1 - squared / (actual - actual.mean(dim=0)).square().sum(dim=0)
    return dict(zip(inputs, r2.mean(dim=1).tolist(), strict=True))
