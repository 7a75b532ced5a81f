"""What a representation is sorted by: the object or its pose, for z, the state and the mean of z at equal rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.evaluation._coordinates import canonical, coordinates
from seqjepa.evaluation._fits import HIDDEN, Rows, TransformationFit, group_of, regress_all
from seqjepa.evaluation._inputs import check_labels
from seqjepa.evaluation._scores import Regression
from seqjepa.evaluation.features import Features
from seqjepa.evaluation.neighbours import knn_r2
from seqjepa.evaluation.probes import Classification, knn_probe
from seqjepa.evaluation.states import aggregate_states

__all__ = ["Invariance", "invariance", "share_between"]

NEIGHBOURS = 20
Made = Callable[[Features, int], Float[Tensor, "N D"]]  # of features, from a view on


@dataclass(frozen=True, eq=False)
class Invariance:
    """How much a representation knows of the pose, and how far it is sorted by the object instead.

    Attributes:
        pose: R² of the pose of the last view it is of, by the MLP (linear, where no hidden layers were asked for); None
            where absolute parameters are not known.
        linear: the same, by a linear probe.
        neighbours: the same, by the mean of 20 neighbours, with nothing fitted.
        classes: accuracy of the vote of 20 neighbours; None without labels.
        between: the share of the variance that lies between objects, in [0, 1]: the rest is what the views of one
            object differ by. Corrected for how many there are of each; None where no object has two.

    Examples:
        >>> Invariance(between=0.9).between
        0.9
    """

    pose: TransformationFit | None = None
    linear: TransformationFit | None = None
    neighbours: Regression | None = None
    classes: Classification | None = None
    between: float | None = None


def invariance(
    model: Any,
    train: Features,
    test: Features,
    *,
    num_views: Sequence[int] | None = None,
    hidden: Sequence[int] = HIDDEN,
    seed: int = 0,
) -> dict[str, Invariance]:
    """What z, states and means of z know of the pose, and how far they are sorted by the object, at equal rows.

    A row is of one sequence: "z" of its first view; for each M "state of M" of its first M views; and from two views on
    "state of M, actions zero", which was told nothing, and "mean z of M", which an aggregator must beat. The pose asked
    for is that of the last of these views. The share of variance is over all views of the test sequences for z, and
    over groups of M views that share none for the others.

    A predictor reads the views only through the state. It must know the last pose to say what an action will show, so a
    state that was told its actions is not invariant by R² at any size, however well it is sorted by the object.

    Args:
        model: anything with `aggregate`; unused for the features of an encoder alone, of which only z is measured.
        train: features of the training sources.
        test: features of other sources.
        num_views: M of the states; by default 1 and half of V.
        hidden: widths of the MLP's hidden layers; () leaves it out.
        seed: of the probes.

    Returns:
        Name of the representation → [`Invariance`][seqjepa.evaluation.Invariance].

    Raises:
        ValueError: M beyond the views there are; and what the probes refuse.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import MeanAggregate, extract
        >>> from seqjepa.groups import Translation
        >>> t, who = torch.randn(90, 4, 2), torch.randn(90, 1, 6).expand(-1, 4, -1)
        >>> sequence = ViewSequence(torch.cat([t, who], 2), t.diff(dim=1), t, torch.arange(90) % 2, Translation(2))
        >>> model = MeanAggregate(lambda views: views)
        >>> features = extract(model, sequence)
        >>> found = invariance(model, features, features, num_views=(2,), hidden=())
        >>> list(found), found["z"].between < found["state of 2"].between
        (['z', 'state of 2', 'state of 2, actions zero', 'mean z of 2'], True)
    """
    lengths = sorted({1, max(1, test.num_views // 2)}) if num_views is None else num_views
    if train.labels is not None and test.labels is not None:
        check_labels(train.labels, test.labels)  # before probes that take long
    made: dict[str, tuple[int, Made]] = {"z": (1, lambda f, start: f.z[:, start])}
    for m in lengths if train.e is not None and test.e is not None else ():
        made[f"state of {m}"] = m, _state(model, m, told=True)
        if m > 1:
            made[f"state of {m}, actions zero"] = m, _state(model, m, told=False)
            made[f"mean z of {m}"] = m, _mean(m)
    poses = _poses(train, test, made, hidden, seed)
    return {
        name: Invariance(**poses.get(name, {}), **_sorting(train, test, m, make, seed))
        for name, (m, make) in made.items()
    }


def _state(model: Any, m: int, *, told: bool) -> Made:
    def make(features: Features, start: int) -> Float[Tensor, "N S"]:
        e = features.e if told or features.e is None else torch.zeros_like(features.e)
        return aggregate_states(model, features, m, e=e, start=start)

    return make


def _mean(m: int) -> Made:
    return lambda features, start: features.z[:, start : start + m].mean(dim=1)


def _poses(
    train: Features, test: Features, made: Mapping[str, tuple[int, Made]], hidden: Sequence[int], seed: int
) -> dict[str, dict[str, Any]]:
    """Name → R² of the pose by probes and by neighbours; nothing where absolute parameters are not known."""
    if train.elements is None or test.elements is None:
        return {}
    group, pairs = group_of(train, test), dict[str, tuple[Rows, Rows]]()
    for name, (m, make) in made.items():
        fit, score = (
            Rows(make(f, 0), canonical(group, elements[:, m - 1]), f.source_numbers)
            for f, elements in ((train, train.elements), (test, test.elements))
        )
        pairs[name] = fit, score
    linear = regress_all(group, list(pairs.values()), (), seed)
    probes = regress_all(group, list(pairs.values()), hidden, seed) if hidden else linear
    found = {}
    for (name, (fit, score)), of_pose, by_line in zip(pairs.items(), probes, linear, strict=True):
        targets, actual = (coordinates(group, rows.action) for rows in (fit, score))
        k = min(NEIGHBOURS, len(fit.x))
        near = knn_r2(fit.x, targets, score.x, actual, k=k, test_sources=test.sources, seed=seed)
        found[name] = {"pose": of_pose, "linear": by_line, "neighbours": near}
    return found


def _sorting(train: Features, test: Features, m: int, make: Made, seed: int) -> dict[str, Any]:
    """Class among neighbours and the share of variance between objects; None where labels or rows are missing."""
    classes = None
    if train.labels is not None and test.labels is not None:
        fit, score = make(train, 0), make(test, 0)
        k = min(NEIGHBOURS, len(fit))
        classes = knn_probe(fit, train.labels, score, test.labels, k=k, test_sources=test.sources, seed=seed)
    starts = range(0, test.num_views - m + 1, m)
    groups = torch.cat([make(test, start) for start in starts])
    return {"classes": classes, "between": share_between(groups, test.source_numbers.repeat(len(starts)))}


def share_between(x: Float[Tensor, "N D"], sources: Int[Tensor, "N"]) -> float | None:
    """The share of the variance of rows that lies between sources, by the analysis of variance; None where it has none.

    `s² / (s² + w)`, w the mean square within sources, s² = (mean square between − w) / n: that of the sources' own
    means, without what chance adds to means of n rows. Sums are over features; sources of a single row are left out.
    """
    _, inverse, counts = sources.unique(return_inverse=True, return_counts=True)
    several = counts[inverse] > 1
    x, (_, inverse, counts) = x[several].double(), sources[several].unique(return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return None
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, inverse, x) / counts[:, None]
    within = (x - means[inverse]).square().sum() / (len(x) - len(counts))
    between = (counts[:, None] * (means - x.mean(dim=0)).square()).sum() / (len(counts) - 1)
    each = (len(x) - counts.double().square().sum() / len(x)) / (len(counts) - 1)
    own = ((between - within) / each).clamp(min=0)
    return (own / (own + within)).item() if own + within > 0 else None
