"""Can the predicted representation be found among the actual ones? MRR, H@k and the prediction retrieval error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.evaluation._coordinates import rotation_columns
from seqjepa.evaluation._fits import group_of
from seqjepa.evaluation._frozen import ROWS, call
from seqjepa.evaluation._inputs import check_features, check_rows, check_same_device, check_sources
from seqjepa.evaluation._statistics import Interval, bootstrap, plain_arithmetic, sums_by_source
from seqjepa.evaluation.features import Features, check_told
from seqjepa.evaluation.states import aggregate_states

__all__ = [
    "PredictionRetrievalError", "Retrieval", "RetrievalChance", "action_retrieval", "pre",
    "prediction_retrieval_error", "retrieval",
]  # fmt: skip

CHUNK = 2**24  # similarities in memory at once
TIE = 1e-6  # cosines closer than this are equal: rounding must not rank the views of a collapsed encoder


@dataclass(frozen=True)
class RetrievalChance:
    """What random ranking gets among V views: MRR `Σ_r 1/r / V`, H@k `k/V`.

    Examples:
        >>> import torch
        >>> same = torch.ones(1, 50, 2)
        >>> chance = retrieval(same, same).chance
        >>> round(chance.mrr, 3), chance.hits[1], chance.hits[5]
        (0.09, 0.02, 0.1)
    """

    mrr: float
    hits: dict[int, float]


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Ranks of the right view among the views of its object.

    Attributes:
        mrr: mean of 1/rank, in (0, 1].
        hits: share of queries whose view has rank k or better, by k.
        interval: 95 % bootstrap interval of `mrr`, over objects, or over sources where they are named.
        chance: `.mrr` and `.hits` of random ranking.
        ranks: (O, Q) rank of the right view, from 1; the middle one where several views tie.

    Examples:
        >>> import torch
        >>> views = torch.eye(4).expand(3, 4, 4)
        >>> print(retrieval(views, views, ks=(1,)))
        MRR 1.000 [1.000, 1.000], chance 0.521; H@1 1.000, chance 0.250
    """

    mrr: float
    hits: dict[int, float]
    interval: Interval
    chance: RetrievalChance
    ranks: Float[Tensor, "O Q"] = field(repr=False)

    def __str__(self) -> str:
        """One line."""
        hits = "; ".join(f"H@{k} {hit:.3f}, chance {self.chance.hits[k]:.3f}" for k, hit in self.hits.items())
        return f"MRR {self.mrr:.3f} {self.interval}, chance {self.chance.mrr:.3f}; {hits}"


def retrieval(
    queries: Float[Tensor, "O Q D"],
    gallery: Float[Tensor, "O V D"],
    *,
    targets: Int[Tensor, "O Q"] | None = None,
    ks: Sequence[int] = (1, 2, 5, 10),
    sources: Int[Tensor, "O"] | None = None,
    seed: int = 0,
) -> Retrieval:
    """Rank the views of an object by their cosine with a predicted representation, and look where the right one stands.

    `rank = 1 + #{v : cos(query, gallery_v) > cos(query, gallery_right)}`; MRR is the mean of 1/rank, H@k the share of
    ranks up to k. Each object is its own gallery, so knowing which object it is helps nothing: only what the action
    did counts. Where views tie (within 1e-6), every order of them is averaged. A collapsed encoder, for which all
    views are equal, gets chance, not a perfect score.

    Args:
        queries: (O, Q, D) predictions: of object o, after the action that leads to a view.
        gallery: (O, V, D) actual representations, from the encoder the predictions aim at (the target encoder).
        targets: (O, Q) integers, the view that each query is to find; view q for query q by default, with Q = V.
        ks: the k of H@k.
        sources: (O,) integers, where several rows show one object: the interval is then over these.
        seed: of the bootstrap.

    Returns:
        [`Retrieval`][seqjepa.evaluation.Retrieval]. Chance for 50 views: MRR 0.090, H@1 0.02, H@5 0.10.

    Raises:
        ValueError: shapes or devices that do not fit; fewer than two views; targets that are no view; k below 1; NaN or
            infinity.
        TypeError: not floating point.

    Source:
        Garrido et al. 2023 (SIE, arXiv 2302.10283); Kipf et al. 2020 (arXiv 1911.12247). How ties count is ours.

    Examples:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> gallery = torch.randn(100, 50, 16, generator=generator)
        >>> good = gallery + 0.3 * torch.randn(gallery.shape, generator=generator)
        >>> hits = retrieval(good, gallery)
        >>> hits.mrr > 0.9, hits.hits[5] > 0.95
        (True, True)
    """
    q, g = check_features("queries", queries, "O Q D"), check_features("gallery", gallery, "O V D")
    views = g.shape[1]
    if q.shape[0] != g.shape[0] or q.shape[2] != g.shape[2]:
        raise ValueError(
            "Queries and gallery must hold the same objects in one width, (O, Q, D) and (O, V, D); got "
            f"{tuple(q.shape)} and {tuple(g.shape)}."
        )
    if views < 2:
        raise ValueError("Ranking needs two views of each object at least; got 1. Give the gallery more views.")
    if any(k < 1 for k in ks):
        raise ValueError(f"H@k counts ranks up to k, from 1 up; got ks={tuple(ks)}.")
    right, of_object = _targets(targets, q, views), check_sources("sources", sources, len(q))
    check_same_device(queries=q, gallery=g, targets=right)
    with plain_arithmetic(q.device):
        better, tied = [], []
        for some_q, some_g, some_right in zip(*(x.split(_rows(q, views)) for x in (q, g, right)), strict=True):
            cosine = F.normalize(some_q, dim=-1) @ F.normalize(some_g, dim=-1).mT  # (o, Q, V)
            excess = cosine - cosine.gather(2, some_right[..., None])
            better.append((excess > TIE).sum(2))
            tied.append((excess.abs() <= TIE).sum(2))  # with the right one itself
        g_count, t_count = torch.cat(better), torch.cat(tied).double()
        counted = torch.arange(views + 1, dtype=torch.float64, device=q.device)
        harmonic = torch.where(counted > 0, 1 / counted, 0.0).cumsum(0)
        reciprocal = (harmonic[(g_count + t_count).long()] - harmonic[g_count]) / t_count
        found = {k: ((k - g_count).clamp(min=0) / t_count).clamp(max=1) for k in ks}
        return Retrieval(
            mrr=reciprocal.mean().item(),
            hits={k: hit.mean().item() for k, hit in found.items()},
            interval=_interval(reciprocal.mean(1), of_object, seed),
            chance=RetrievalChance(harmonic[-1].item() / views, {k: min(1.0, k / views) for k in ks}),
            ranks=(g_count + (t_count + 1) / 2).float(),
        )


@dataclass(frozen=True, eq=False)
class PredictionRetrievalError:
    """How far the pose of what a prediction finds is from the pose it was to find.

    Attributes:
        error: mean of 1 − ⟨q, q_found⟩², in [0, 1].
        interval: 95 % bootstrap interval, over objects, or over sources where they are named.
        chance: the error of finding any row of the gallery: about 0.63 for the Euler box of 3DIEBench, 0.75 for
            uniform rotations.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Rotation3D
        >>> q = Rotation3D.random(20, 5, generator=torch.Generator().manual_seed(0))
        >>> print(pre(q, q, q))
        PRE 0.000 [0.000, 0.000], chance 0.740
    """

    error: float
    interval: Interval
    chance: float

    def __str__(self) -> str:
        """One line."""
        return f"PRE {self.error:.3f} {self.interval}, chance {self.chance:.3f}"


def pre(
    queries: Float[Tensor, "O Q D"],
    gallery: Float[Tensor, "O V D"],
    rotations: Float[Tensor, "O V 4"],
    *,
    targets: Int[Tensor, "O Q"] | None = None,
    sources: Int[Tensor, "O"] | None = None,
    seed: int = 0,
) -> PredictionRetrievalError:
    """Prediction retrieval error (PRE): the pose of the nearest neighbour of a prediction in the whole split.

    `mean 1 − ⟨q_k, q_nn⟩²` over the absolute rotations q, as unit quaternions, of the view a query is to find and of
    the row of the gallery, of any object, that is nearest to it by cosine. In [0, 1]; 0 when poses agree, since
    `1 − ⟨q, p⟩² = sin²(angle/2)`. An object found in its right pose scores 0 whichever object it is. Where several rows
    are nearest (within 1e-6), they are averaged.

    Args:
        queries: (O, Q, D) predictions of views of object o.
        gallery: (O, V, D) actual representations.
        rotations: (O, V, 4) absolute rotations of the views, unit quaternions x y z w.
        targets: (O, Q) integers, the view that each query is to find; view q for query q by default, with Q = V. A
            query that was told the view it is to find finds it without knowing anything: leave it out.
        sources: (O,) integers, where several rows show one object: the interval is then over these.
        seed: of the bootstrap.

    Returns:
        [`PredictionRetrievalError`][seqjepa.evaluation.PredictionRetrievalError].

    Raises:
        ValueError: shapes or devices that do not fit; targets that are no view; quaternions that have no unit length;
            NaN or infinity.
        TypeError: not floating point.

    Source:
        Garrido et al. 2023 (SIE, arXiv 2302.10283), section 5.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Rotation3D
        >>> generator = torch.Generator().manual_seed(0)
        >>> q = Rotation3D.random(20, 5, generator=generator)
        >>> gallery = torch.randn(20, 5, 16, generator=generator)
        >>> pre(gallery, gallery, q).error < 1e-6
        True
    """
    q, g = check_features("queries", queries, "O Q D"), check_features("gallery", gallery, "O V D")
    pose = check_features("rotations", rotations, "O V 4")
    if q.shape[::2] != g.shape[::2] or pose.shape != (*g.shape[:2], 4):
        raise ValueError(
            "Queries, gallery and rotations must be (O, Q, D), (O, V, D) and (O, V, 4); got "
            f"{tuple(q.shape)}, {tuple(g.shape)} and {tuple(pose.shape)}."
        )
    check_rows(queries=q, gallery=g, rotations=pose)
    right, of_object = _targets(targets, q, g.shape[1]), check_sources("sources", sources, len(q))
    check_same_device(queries=q, gallery=g, rotations=pose, targets=right)
    if not bool(((pose.double().norm(dim=-1) - 1).abs() < 1e-2).all()):
        raise ValueError("rotations must be unit quaternions, x y z w; some have another length. Divide by the norm.")
    with plain_arithmetic(q.device):
        pose = F.normalize(pose.double(), dim=-1).flatten(0, 1)
        outer = (pose[:, :, None] * pose[:, None, :]).flatten(1)  # ⟨q, p⟩² is the product of their outer products
        flat_q, flat_g = (F.normalize(x.flatten(0, 1), dim=-1) for x in (q, g))
        first = torch.arange(len(g), device=g.device)[:, None] * g.shape[1]
        sought = outer[(first + right).flatten()]
        agreement = []
        rows = max(1, CHUNK // len(flat_g))
        for some, true in zip(flat_q.split(rows), sought.split(rows), strict=True):
            cosine = some @ flat_g.mT
            nearest = (cosine >= cosine.amax(1, keepdim=True) - TIE).to(some.dtype)
            found = (nearest @ outer.to(some.dtype)).double() / nearest.sum(1, keepdim=True)
            agreement.append((true * found).sum(1))
        error = (1 - torch.cat(agreement)).clamp(0, 1)
        return PredictionRetrievalError(
            error=error.mean().item(),
            interval=_interval(error.view(q.shape[:2]).mean(1), of_object, seed),
            chance=1 - (sought.mean(0) * outer.mean(0)).sum().item(),
        )


def _interval(per_object: Float[Tensor, "O"], sources: Tensor | None, seed: int) -> Interval:
    """The bootstrap interval of a mean over objects, drawn by source."""
    sums = sums_by_source(torch.stack([per_object, torch.ones_like(per_object)], dim=1), sources)
    return bootstrap(sums, lambda s: s[:, 0] / s[:, 1], torch.Generator(device="cpu").manual_seed(seed))


def _targets(targets: Tensor | None, queries: Tensor, views: int) -> Int[Tensor, "O Q"]:
    """The view that each query is to find."""
    objects, count = queries.shape[:2]
    if targets is None:
        if count != views:
            raise ValueError(
                f"Without targets, query v is to find view v, so there are as many of each; got {count} queries and "
                f"{views} views. Name the views with targets=."
            )
        return torch.arange(views, device=queries.device).expand(objects, views)
    if targets.shape != (objects, count) or targets.is_floating_point():
        raise ValueError(
            f"targets must be integers, a view for each query, {(objects, count)}; got {targets.dtype} of shape "
            f"{tuple(targets.shape)}."
        )
    if not 0 <= int(targets.min()) <= int(targets.max()) < views:
        raise ValueError(
            f"targets must be views of the gallery, 0 … {views - 1}; got {int(targets.min())} … {int(targets.max())}."
        )
    return targets.long()


def _rows(queries: Tensor, views: int) -> int:
    return max(1, CHUNK // (queries.shape[1] * views))


def action_retrieval(model: Any, test: Features, *, seed: int = 0) -> Retrieval:
    """Does the predictor find the view that an action leads to, among all views of the same object? MRR and H@k.

    From the state of the first view alone, the predictor is told the action to view k, for every k of the source;
    what it predicts is ranked against the target encoder's outputs of all the source's views by cosine. Chance
    depends on the number of views: the result says it.

    Args:
        model: anything with `aggregate`, `embed` and `predict`.
        test: features with targets and a group.
        seed: of the interval.

    Raises:
        ValueError: the features of an encoder alone, or without a group; a model that is told inferred actions.

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
    return retrieval(_predicted_from_first(model, test), targets_of(test), ks=ks, sources=test.sources, seed=seed)


def prediction_retrieval_error(
    model: Any, test: Features, *, max_sources: int = 2000, seed: int = 0
) -> PredictionRetrievalError:
    """How wrong is the pose of what the predictor's output is nearest to, among the views of all objects? PRE.

    The queries of [`action_retrieval`][seqjepa.evaluation.action_retrieval] but the first, whose answer is the view
    that the state is of; the error of the nearest target's absolute rotation, 1 − ⟨q, q'⟩², in [0, 1].

    Args:
        model: anything with `aggregate`, `embed` and `predict`.
        test: features with targets and absolute parameters, of a group that is or holds one `Rotation3D`.
        max_sources: how many sequences to search, at least 1, drawn from the test set: the time grows with their
            square.
        seed: of the draw and the interval.

    Raises:
        ValueError: the features of an encoder alone; no rotations, or not one; sequences of a single view; a model that
            is told inferred actions.

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
    if test.num_views < 2:
        raise ValueError("PRE predicts other views than the first; got sequences of one view. Make longer ones.")
    some = test.draw(max_sources, seed=seed)
    assert some.elements is not None
    queries = _predicted_from_first(model, some)[:, 1:]
    targets = torch.arange(1, some.num_views, device=queries.device).expand(queries.shape[:2])
    rotations = some.elements[..., columns]
    return pre(queries, targets_of(some), rotations, targets=targets, sources=some.sources, seed=seed)


def _predicted_from_first(model: Any, features: Features) -> Float[Tensor, "N V D"]:
    """What the predictor expects at every view of a source, told the action that leads there from the first."""
    check_told(features)
    state, actions = aggregate_states(model, features, 1), features.from_first()
    targets_of(features)
    views, rows = features.num_views, max(1, ROWS // features.num_views)
    predicted = []
    for some, told in zip(state.split(rows), actions.split(rows), strict=True):
        e = call(model, "embed", told).flatten(0, 1)
        predicted.append(call(model, "predict", some.repeat_interleave(views, dim=0), e).unflatten(0, (-1, views)))
    return torch.cat(predicted)


def targets_of(features: Features) -> Float[Tensor, "N V D"]:
    """The target encoder's outputs, or an error that says there are none."""
    if features.target is None:
        raise ValueError(
            "This measure needs the target encoder's outputs; these are the features of a model without one."
        )
    return features.target
