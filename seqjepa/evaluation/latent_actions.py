"""Are inferred actions actions? What they know of the true ones, what else is in them, and all six measures at once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.evaluation._coordinates import coordinates, line_coordinates, line_names, steady_line_coordinates
from seqjepa.evaluation._fits import HIDDEN, Rows, TransformationFit, group_of, regress
from seqjepa.evaluation._regressors import Asked, fit_regressors
from seqjepa.evaluation._scores import Regression
from seqjepa.evaluation.features import Features, occurrence
from seqjepa.evaluation.latent_leaks import (
    LatentCut,
    LatentIdentity,
    LatentTransfer,
    latent_cut,
    latent_identity,
    latent_transfer,
)

__all__ = ["FewLabels", "LatentActions", "actions_from_latent", "few_labels", "latent_actions", "latent_from_actions"]


def actions_from_latent(
    train: Features, test: Features, *, hidden: Sequence[int] = (), max_rows: int = 24_000, seed: int = 0
) -> TransformationFit:
    """What inferred actions know of the true ones: R² of the true action of a step from the inferred one.

    Linear by default, of turns as angles and rotation vectors: what was learnt is then the action up to a linear map.
    By itself it proves nothing: a copied view has the turn in it as well.

    Args:
        train: features with a group and inferred actions, of `extract(..., inverse=inverse)`.
        test: the same of other sources.
        hidden: widths of an MLP's hidden layers; its targets are those of
            [`transformation_r2`][seqjepa.evaluation.transformation_r2]. Angles that go all the way round need one.
        max_rows: how many steps to fit to, and to score at most.
        seed: of the draw and the regression.

    Returns:
        [`TransformationFit`][seqjepa.evaluation.TransformationFit]: at most 1, chance 0.

    Raises:
        ValueError: features without inferred actions or a group; no coordinate that varies.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> t = torch.randn(200, 3, 2, generator=torch.Generator().manual_seed(0))
        >>> sequence = ViewSequence(t, t.diff(dim=1), t, group=Translation(2))
        >>> features = extract(lambda views: views, sequence, inverse=lambda z, z_next: 3 * (z_next - z))
        >>> print(actions_from_latent(features, features))                                    # doctest: +ELLIPSIS
        R² 1.000 [1.000, 1.000] (mean over outputs), chance -0.000; ...
    """
    group = group_of(train, test)
    (fit, inferred), (score, read) = (_steps(features, max_rows, seed) for features in (train, test))
    if hidden:
        rows = (Rows(x, f.actions.flatten(0, 1), _sources(f)) for f, x in ((fit, inferred), (score, read)))
        return regress(group, (next(rows), next(rows)), hidden, seed)
    regressor = fit_regressors([Asked(inferred, _line(fit), _sources(fit))], hidden=(), seed=seed)[0]
    regression = regressor.read(Asked(read, _line(score), _sources(score)))
    return TransformationFit(**vars(regression), outputs=tuple(name or "action" for name in line_names(group)))


def latent_from_actions(
    train: Features, test: Features, *, hidden: Sequence[int] = HIDDEN, max_rows: int = 24_000, seed: int = 0
) -> Regression:
    """Whether nothing else is in inferred actions: R² of the inferred action of a step from the true one.

    What true actions do not explain is something else: the view, the source, the lamp. Read `pooled`, the share of the
    inferred actions' variance, in which a number that hardly varies hardly counts: they are centred by the training
    rows, so its chance is 0.

    Args:
        train: as in [`actions_from_latent`][seqjepa.evaluation.actions_from_latent].
        test: the same of other sources.
        hidden: widths of the MLP's hidden layers; () is linear.
        max_rows: how many steps to fit to, and to score at most.
        seed: of the draw and the regression.

    Returns:
        [`Regression`][seqjepa.evaluation.Regression]: `pooled` is at most 1, chance 0.

    Raises:
        ValueError: features without inferred actions or a group; inferred actions that never vary.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> t = torch.randn(200, 3, 2, generator=torch.Generator().manual_seed(0))
        >>> sequence = ViewSequence(t, t.diff(dim=1), t, group=Translation(2))
        >>> leaks = extract(lambda views: views, sequence, inverse=lambda z, z_next: z_next)
        >>> 0.4 < latent_from_actions(leaks, leaks, hidden=()).pooled < 0.6  # a shift tells half of where it leads
        True
    """
    group = group_of(train, test)
    (fit, inferred), (score, read) = (_steps(features, max_rows, seed) for features in (train, test))
    made = line_coordinates if not hidden else coordinates
    mean = inferred.double().mean(dim=0).to(inferred)
    asked, other = (
        Asked(made(group, f.actions.flatten(0, 1)), x - mean, _sources(f)) for f, x in ((fit, inferred), (score, read))
    )
    return fit_regressors([asked], hidden=hidden, seed=seed)[0].read(other)


@dataclass(frozen=True, eq=False)
class FewLabels:
    """How far a few true actions go; R² by how many were known, means over draws of which.

    Attributes:
        inferred: of a linear map from the inferred actions.
        spread: standard deviation of that over draws.
        views: of a linear map from z of both views, which no inferred action helps.

    Examples:
        >>> print(FewLabels(inferred={10: 0.8}, spread={10: 0.05}, views={10: 0.1}))
        R² 0.80 ± 0.05 with 10 labels, 0.10 without inferred actions
    """

    inferred: Mapping[int, float]
    spread: Mapping[int, float]
    views: Mapping[int, float]

    def __str__(self) -> str:
        """One line."""
        return "; ".join(
            f"R² {r2:.2f} ± {self.spread[n]:.2f} with {n} labels, {self.views[n]:.2f} without inferred actions"
            for n, r2 in self.inferred.items()
        )


def few_labels(
    train: Features,
    test: Features,
    *,
    labels: Sequence[int] = (10, 100),
    draws: int = 10,
    max_rows: int = 24_000,
    seed: int = 0,
) -> FewLabels:
    """How many true actions must be known to give the inferred ones their names: R² of the true action from few.

    A linear map is fitted to the steps whose true action is known, drawn from as many sources as there are, and read on
    all others; beside it the same from z of both views.

    Args:
        train: as in [`actions_from_latent`][seqjepa.evaluation.actions_from_latent].
        test: the same of other sources.
        labels: how many actions are known, 2 at least.
        draws: of which; the figures are their means.
        max_rows: how many steps to score at most.
        seed: of the draws.

    Raises:
        ValueError: features without inferred actions or a group; more labels than steps, fewer than two, or no draws.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> from seqjepa.groups import Translation
        >>> views = torch.randn(200, 3, 8, generator=torch.Generator().manual_seed(0))
        >>> sequence = ViewSequence(views, views[..., :2].diff(dim=1), group=Translation(2))
        >>> features = extract(lambda v: v, sequence, inverse=lambda z, z_next: z_next[..., :2] - z[..., :2])
        >>> few = few_labels(features, features, labels=(10,))
        >>> few.inferred[10] > 0.99 > few.views[10]
        True
    """
    group_of(train, test)
    steps = len(train.z) * (train.num_views - 1)
    if not labels or not 2 <= min(labels) <= max(labels) <= steps or draws < 1:
        raise ValueError(
            f"labels are numbers of known actions, from 2 to the {steps} steps there are, drawn once at least; got "
            f"labels={tuple(labels)} and draws={draws}."
        )
    score, read = _steps(test, max_rows, seed)
    inferred, views = (Asked(x, _line(score), _sources(score)) for x in (read, _both(score)))
    found: dict[int, list[tuple[float, float]]] = {n: [] for n in labels}
    for n in labels:
        for draw in range(draws):
            rows = _labelled(train, n, seed + draw)
            made = (Asked(x[rows], _line(train)[rows]) for x in (_inferred(train), _both(train)))
            fits = fit_regressors(list(made), hidden=(), seed=seed)
            found[n].append((fits[0].read(inferred).mean, fits[1].read(views).mean))
    return FewLabels(
        inferred={n: statistics.fmean(r2 for r2, _ in pairs) for n, pairs in found.items()},
        spread={n: statistics.pstdev(r2 for r2, _ in pairs) for n, pairs in found.items()},
        views={n: statistics.fmean(r2 for _, r2 in pairs) for n, pairs in found.items()},
    )


@dataclass(frozen=True, eq=False)
class LatentActions:
    """Whether inferred actions are actions: each of six measures beside what tells nothing.

    Attributes:
        informative: R² of the true action from the inferred one; chance 0.
        nothing_else: R² of the inferred action from the true one; read `pooled`.
        transfer: what another source's action leads to, and a wrong one. None without sequences of shared actions.
        cut: the error where the next view is another source's.
        identity: how much actions vary where nothing happened.
        few_labels: R² of the true action where few are known, beside the same without inferred actions.

    Examples:
        >>> from dataclasses import fields
        >>> [field.name for field in fields(LatentActions)]
        ['informative', 'nothing_else', 'transfer', 'cut', 'identity', 'few_labels']
    """

    informative: TransformationFit
    nothing_else: Regression
    transfer: LatentTransfer | None
    cut: LatentCut
    identity: LatentIdentity
    few_labels: FewLabels

    def __str__(self) -> str:
        """A line for each measure."""
        lines = {
            "informative": f"R² {self.informative.mean:.3f}, chance {self.informative.chance:.3f}",
            "nothing else": f"R² {self.nothing_else.pooled:.3f}, chance {self.nothing_else.pooled_chance:.3f}",
        }
        rest = {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)[2:]}
        lines |= {name: "needs shared actions" if value is None else str(value) for name, value in rest.items()}
        return "\n".join(f"{name:<14}{line}" for name, line in lines.items())


def latent_actions(
    model: Any,
    inverse: Any,
    train: Features,
    test: Features,
    shared: Features | None = None,
    *,
    hidden: Sequence[int] = HIDDEN,
    labels: Sequence[int] = (10, 100),
    seed: int = 0,
) -> LatentActions:
    """All six measures of inferred actions: an action that leaks the next view looks perfect by the loss alone.

    Args:
        model: anything with `aggregate`, `embed` and `predict`, told inferred actions.
        inverse: an [`InverseModel`][seqjepa.InverseModel], or anything that maps z (B, T, D) and the next views' target
            to actions (B, T, n).
        train: features of `extract(model, sequences, inverse=inverse)`, with the true actions and their group, that the
            regressions are fitted to.
        test: the same of other sources.
        shared: the same of other sources, in sequences that share their actions; the cut is then of these, too.
        hidden: widths of the hidden layers that read inferred actions from true ones.
        labels: how many known actions to give names by.
        seed: of draws, regressions and intervals.

    Raises:
        ValueError: what the single measures refuse.

    Examples:
        >>> import torch
        >>> from seqjepa import GaussianBottleneck, InverseModel, SeqJEPA
        >>> from seqjepa.data import RotatedViews
        >>> from seqjepa.evaluation import extract
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> inverse, sampler = InverseModel(512, 2, GaussianBottleneck()), RotatedViews(num_views=3)
        >>> images = torch.rand(40, 3, 32, 32)
        >>> train, test, shared = (extract(model, sequence, inverse=inverse) for sequence in (
        ...     sampler(images[:20]), sampler(images[20:]), sampler(images[20:], shared=True)))
        >>> print(latent_actions(model, inverse, train, test, shared, hidden=(), labels=(10,)))  # doctest: +ELLIPSIS
        informative   R² ...
        nothing else  R² ...
        transfer      MRR ...
        cut           distance ...
        identity      variance ...
        few labels    R² ...
    """
    return LatentActions(
        informative=actions_from_latent(train, test, seed=seed),
        nothing_else=latent_from_actions(train, test, hidden=hidden, seed=seed),
        transfer=None if shared is None else latent_transfer(model, inverse, shared, seed=seed),
        cut=latent_cut(model, inverse, test if shared is None else shared, seed=seed),
        identity=latent_identity(inverse, test),
        few_labels=few_labels(train, test, labels=labels, seed=seed),
    )


def _inferred(features: Features) -> Float[Tensor, "R n"]:
    """The inferred action of every step."""
    if features.inferred is None:
        raise ValueError(
            "These features hold no inferred actions. Extract them with the inverse model: extract(model, sequences, "
            "inverse=inverse)."
        )
    return features.inferred.flatten(0, 1)


def _steps(features: Features, max_rows: int, seed: int) -> tuple[Features, Float[Tensor, "R n"]]:
    """So many steps at most, of sequences drawn at random, and their inferred actions."""
    some = features.draw(max(1, max_rows // max(1, features.num_views - 1)), seed=seed)
    return some, _inferred(some)


def _line(features: Features) -> Float[Tensor, "R K"]:
    """The true action of every step as numbers that grow with it."""
    assert features.group is not None
    return steady_line_coordinates(features.group, features.actions.flatten(0, 1))


def _both(features: Features) -> Float[Tensor, "R twice_D"]:
    """Z of both ends of every step."""
    return torch.cat([features.z[:, :-1], features.z[:, 1:]], dim=-1).flatten(0, 1)


def _sources(features: Features) -> Tensor:
    return features.source_numbers.repeat_interleave(features.num_views - 1)


def _labelled(features: Features, count: int, seed: int) -> Tensor:
    """Steps drawn at random, of as many sources as can be."""
    sources = _sources(features).cpu()
    order = torch.randperm(len(sources), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    in_turn = order[occurrence(sources[order])[0].argsort(stable=True)]  # all sources before any comes again
    return in_turn[:count].to(features.z.device)
