"""What an inferred action carries that is no action: three questions that need no labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.evaluation._frozen import call, infer
from seqjepa.evaluation._others import of_other_sources
from seqjepa.evaluation.features import Features
from seqjepa.evaluation.retrieval import Retrieval, retrieval, targets_of
from seqjepa.functional import cosine_distance

__all__ = ["LatentCut", "LatentIdentity", "LatentTransfer", "latent_cut", "latent_identity", "latent_transfer"]


@dataclass(frozen=True, eq=False)
class LatentTransfer:
    """Whether an action that was inferred from one source leads another source where its own would.

    Attributes:
        own: how well the right view is found by a source's own inferred action.
        others: the same by the action inferred from another source, which went through the same.
        shuffled: the same by that source's action to another view: what is found without knowing the action.

    Examples:
        >>> import torch
        >>> views, wrong = torch.eye(4).expand(3, 4, 4), torch.ones(3, 4, 4)
        >>> print(LatentTransfer(*(retrieval(predicted, views) for predicted in (views, wrong, wrong))))
        MRR 1.000 by its own action, 0.521 by another's, 0.521 by a wrong one: 0 % of it transfers
    """

    own: Retrieval
    others: Retrieval
    shuffled: Retrieval

    @property
    def share(self) -> float:
        """How much of what its own action tells another's tells, too: 1 for an action, about 0 for a leak.

        `(others − shuffled) / (own − shuffled)` of the MRR; nan where its own tells nothing, and of little use where it
        tells little.
        """
        told = self.own.mrr - self.shuffled.mrr
        return (self.others.mrr - self.shuffled.mrr) / told if told > 0 else math.nan

    def __str__(self) -> str:
        """One line."""
        transfers = "it tells nothing" if math.isnan(self.share) else f"{100 * self.share:.0f} % of it transfers"
        return (
            f"MRR {self.own.mrr:.3f} by its own action, {self.others.mrr:.3f} by another's, {self.shuffled.mrr:.3f} by "
            f"a wrong one: {transfers}"
        )


def latent_transfer(model: Any, inverse: Any, shared: Features, *, rivals: int = 9, seed: int = 0) -> LatentTransfer:
    """Whether an action inferred from one source leads another source to the right one of its views: MRR.

    Of each source, from the state of the first view alone, the predictor is told the action inferred from the first
    view and the k-th, for every k from 2 on; what it predicts is ranked by cosine against the target encoder's outputs
    of all these views, of this source and some others that went through the same actions. Then the same, told what was
    inferred from *another* source, one of these. An action that holds the other source's view instead of what changed
    finds that view: the gap is the leak.

    Views of the others are there for that: a copied view may show the right turn of the wrong source, and among the
    views of one source it would find the right one.

    Args:
        model: anything with `aggregate`, `embed` and `predict`, told inferred actions.
        inverse: an [`InverseModel`][seqjepa.InverseModel], or anything that maps z (B, T, D) and the next views' target
            to actions (B, T, n).
        shared: features with targets, of three views or more, of sequences that share their actions: from a sampler
            with `shared=True`, in one call or several, each with two sources at least. Rows with equal actions belong
            together.
        rivals: of how many other sources the views stand beside its own, at least 1; fewer, where fewer went through
            the same.
        seed: of which others, and of the intervals.

    Raises:
        ValueError: features without targets; fewer than three views; actions that no other source went through; no
            rivals.

    Source:
        The exchange is that of Yu et al. 2025 (arXiv 2501.08712), as a measure.

    Examples:
        >>> import torch
        >>> from seqjepa import GaussianBottleneck, InverseModel, SeqJEPA
        >>> from seqjepa.data import RotatedViews
        >>> from seqjepa.evaluation import extract
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> inverse = InverseModel(dim=512, action_dim=2, bottleneck=GaussianBottleneck())
        >>> sequence = RotatedViews(num_views=4)(torch.rand(6, 3, 32, 32), shared=True)
        >>> shared = extract(model, sequence, inverse=inverse)
        >>> latent_transfer(model, inverse, shared).own.ranks.shape                 # three views of each are looked for
        torch.Size([6, 3])
    """
    targets = targets_of(shared)
    if shared.num_views < 3 or rivals < 1:
        raise ValueError(
            "An action must find its view among another of its source and those of one rival at least, in sequences of "
            f"three views; got {shared.num_views} views and rivals={rivals}."
        )
    generator = torch.Generator(device="cpu").manual_seed(seed)
    others = _rivals(shared, rivals, generator)
    told, later = _from_first(inverse, shared, targets), targets[:, 1:]
    gallery = torch.cat([later, *(later[others[:, i]] for i in range(others.shape[1]))], dim=1)
    n, steps = later.shape[:2]
    right = torch.arange(steps, device=later.device).expand(n, steps)
    further = torch.randint(1, steps, (n, 1), generator=generator, device="cpu").to(later.device)
    exchanged = told[others[:, 0]]
    wrong = torch.take_along_dim(exchanged, ((right + further) % steps)[..., None], dim=1)
    ks = [k for k in (1, 2, 5, 10) if k <= gallery.shape[1]]
    return LatentTransfer(
        *(
            retrieval(
                _predicted(model, shared, actions), gallery, targets=right, ks=ks, sources=shared.sources, seed=seed
            )
            for actions in (told, exchanged, wrong)
        )
    )


@dataclass(frozen=True, eq=False)
class LatentCut:
    """Whether a view that does not belong to the sequence is predicted all the same; cosine distances in [0, 2].

    Attributes:
        own: of the prediction to the next view, told the action inferred from it.
        cut: the same where the next view is another source's.
        apart: between the next views of the two sources.

    Examples:
        >>> print(LatentCut(own=0.1, cut=0.8, apart=0.9))
        distance 0.100 to its own next view, 0.800 to another source's, which is 0.900 away from it
    """

    own: float
    cut: float
    apart: float

    @property
    def relative(self) -> float:
        """How far the prediction stays behind: 0 where another source's view is copied, 1 where nothing of it passes.

        `(cut − own) / (apart − own)`; nan where an own view is predicted no better than by another source's.
        """
        return (self.cut - self.own) / (self.apart - self.own) if self.apart > self.own else math.nan

    def __str__(self) -> str:
        """One line."""
        return (
            f"distance {self.own:.3f} to its own next view, {self.cut:.3f} to another source's, which is "
            f"{self.apart:.3f} away from it"
        )


def latent_cut(model: Any, inverse: Any, test: Features, *, seed: int = 0) -> LatentCut:
    """Whether a next view is predicted that is another source's: an action cannot lead there, a copied view does.

    From the first view alone to each later one, as in [`latent_transfer`][seqjepa.evaluation.latent_transfer]: the
    action is inferred from the first view and the same later view of another source, and the prediction is compared
    with that one. Where sequences share their parameters, the other source is one that did the same: both later views
    show the same transformation, and an exact model has `cut` = `apart`. Of other sequences it has a little less, for
    it follows the other source's pose.

    Args:
        model: anything with `aggregate`, `embed` and `predict`, told inferred actions.
        inverse: as in `latent_transfer`.
        test: features with targets, of two views or more and two sources; best from a sampler with `shared=True`.
        seed: of which other source.

    Raises:
        ValueError: features without targets; fewer than two views or sources.

    Examples:
        >>> import torch
        >>> from seqjepa import InverseModel, SeqJEPA, ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> inverse = InverseModel(dim=512, action_dim=2)
        >>> test = extract(model, ViewSequence(torch.rand(6, 3, 3, 32, 32), torch.randn(6, 2, 4)), inverse=inverse)
        >>> 0 <= latent_cut(model, inverse, test).cut <= 2
        True
    """
    targets, sources = targets_of(test), test.source_numbers
    count = len(sources.unique())
    if test.num_views < 2 or count < 2:
        raise ValueError(
            f"A cut leads from a view of one source to a view of another: it takes two views and two sources; got "
            f"{test.num_views} views of {count} sources."
        )
    strange = targets[_strangers(test, torch.Generator(device="cpu").manual_seed(seed))]
    own, cut = (
        cosine_distance(_predicted(model, test, _from_first(inverse, test, views)), views[:, 1:]).mean().item()
        for views in (targets, strange)
    )
    return LatentCut(own, cut, cosine_distance(targets[:, 1:], strange[:, 1:]).mean().item())


@dataclass(frozen=True, eq=False)
class LatentIdentity:
    """How much inferred actions vary where nothing happened; variances, summed over their numbers.

    Attributes:
        still: of the actions inferred from a view and itself, over all views.
        moved: of those inferred from a view and the next.

    Examples:
        >>> print(LatentIdentity(still=0.02, moved=2.0))
        variance 0.0200 where nothing happened, 2.0000 where something did: 1 %
    """

    still: float
    moved: float

    @property
    def relative(self) -> float:
        """`still` over `moved`: 0 for an action, about 1 for what holds the view; nan where actions never vary."""
        return self.still / self.moved if self.moved > 0 else math.nan

    def __str__(self) -> str:
        """One line."""
        share = "it never varies" if math.isnan(self.relative) else f"{100 * self.relative:.0f} %"
        return f"variance {self.still:.4f} where nothing happened, {self.moved:.4f} where something did: {share}"


def latent_identity(inverse: Any, test: Features) -> LatentIdentity:
    """Whether the action from a view to itself is the same for all views: what holds a view varies with it.

    Args:
        inverse: as in [`latent_transfer`][seqjepa.evaluation.latent_transfer].
        test: features of two views or more and two sequences; of targets where there are any, else of z on both ends.

    Raises:
        ValueError: fewer than two sequences or views.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import extract
        >>> t = torch.randn(50, 3, 2)
        >>> features = extract(lambda views: views, ViewSequence(t, t.diff(dim=1)))
        >>> latent_identity(lambda z, z_next: z_next - z, features).relative
        0.0
        >>> round(latent_identity(lambda z, z_next: z_next, features).relative)                # a leak
        1
    """
    z, targets = test.z, test.z if test.target is None else test.target
    if len(z) < 2 or test.num_views < 2:
        raise ValueError(
            "Actions are compared over sequences and between two views; got "
            f"{len(z)} sequences of {test.num_views} views."
        )
    still, moved = infer(inverse, z, targets), infer(inverse, z[:, :-1], targets[:, 1:])
    return LatentIdentity(*(x.flatten(0, 1).double().var(dim=0).sum().item() for x in (still, moved)))


def _from_first(inverse: Any, features: Features, targets: Float[Tensor, "N V D"]) -> Float[Tensor, "N T n"]:
    """The actions inferred from the first view and each later one."""
    later = targets[:, 1:]
    return infer(inverse, features.z[:, :1].expand(-1, later.shape[1], -1), later)


def _predicted(model: Any, features: Features, actions: Float[Tensor, "N T n"]) -> Float[Tensor, "N T D"]:
    """What the predictor expects after each of these actions, from the state of the first view alone."""
    e = call(model, "embed", actions)
    state = call(model, "aggregate", features.z[:, :1], e[:, :0])
    steps = e.shape[1]
    return call(model, "predict", state.repeat_interleave(steps, dim=0), e.flatten(0, 1)).unflatten(0, (-1, steps))


def _alike(features: Features) -> list[Int[Tensor, "M"]]:
    """The rows that share their actions, by actions, on the CPU."""
    classes = torch.unique(features.actions.flatten(1), dim=0, return_inverse=True)[1].cpu()
    return [(classes == number).nonzero().flatten() for number in range(int(classes.max()) + 1)]


def _strangers(features: Features, generator: torch.Generator) -> Int[Tensor, "N"]:
    """For each row one of another source; one that shares its actions, if all have such."""
    sources, alike = features.source_numbers.cpu(), _alike(features)
    if any(len(sources[rows].unique()) < 2 for rows in alike):
        alike = [torch.arange(len(sources), device="cpu")]
    other = torch.empty_like(sources)
    for rows in alike:
        other[rows] = rows[of_other_sources(sources[rows], generator)]
    return other.to(features.z.device)


def _rivals(shared: Features, most: int, generator: torch.Generator) -> Int[Tensor, "N R"]:
    """For each row some of other sources that share its actions, drawn at random."""
    sources, alike, drawn, count = shared.source_numbers.cpu(), _alike(shared), [], most
    for rows in alike:
        another = sources[rows][:, None] != sources[rows]
        count = min(count, int(another.sum(dim=1).min()))
        if count < 1:
            raise ValueError(
                "An action transfers to another source that went through the same actions; row "
                f"{int(rows[0])} of {len(sources)} has actions that no other source has. Draw the views with "
                "shared=True, such as RotatedViews(...)(images, shared=True)."
            )
        order = torch.rand(another.shape, generator=generator, device="cpu").masked_fill(~another, -1)
        drawn.append(rows[order.argsort(dim=1, descending=True)])
    rivals = torch.empty(len(sources), count, dtype=torch.long, device="cpu")
    for rows, others in zip(alike, drawn, strict=True):
        rivals[rows] = others[:, :count]
    return rivals.to(shared.z.device)
