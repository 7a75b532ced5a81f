"""Features of view sequences, computed once: what every protocol works on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa._checks import check_axes
from seqjepa.evaluation._coordinates import are_elements, unit_rotations
from seqjepa.evaluation._frozen import evaluating, infer, modules_of, to_weights, unwrapped, widened
from seqjepa.evaluation._loaders import batches, check_given, check_sequence_sources
from seqjepa.evaluation._ranks import Shares
from seqjepa.groups import Group
from seqjepa.groups.base import FixedGroup
from seqjepa.types import ViewSequence

__all__ = ["Features", "check_told", "drawn_rows", "extract", "occurrence", "same_group"]

PICTURES = 64  # sources whose views are kept for the figure


@dataclass(frozen=True, eq=False)
class Features:
    """What a model makes of N view sequences, and what is known of them.

    Attributes:
        z: (N, V, D) encoder outputs of all V views, float32, or float64 of a model in float64.
        actions: (N, V − 1, A).
        e: (N, V − 1, E) embedded actions, or None of an encoder alone; those inferred where an inverse model was given.
        target: (N, V, D) the target encoder's outputs, or None of a model without one.
        labels: (N,) classes, or None.
        group: the group of the actions, or None.
        elements: (N, V, A) absolute parameters as elements of the group, or None where they are not known: their
            differences are the actions.
        pictures: the views of some sequences drawn at random, for the figure.
        sources: (N,) integers, which source each sequence shows, where several may show one. Probes then hold out whole
            sources, and intervals are over sources. None: each sequence is a source of its own.
        pictured: (P,) the sequences whose views are `pictures`.
        inferred: (N, V − 1, n) what an inverse model made of the steps, or None without one.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.groups import Translation
        >>> views = torch.rand(8, 4, 3, 6, 6)
        >>> sequence = ViewSequence(views, torch.randn(8, 3, 2), group=Translation(2))
        >>> extract(lambda views: views.flatten(2), sequence).z.shape
        torch.Size([8, 4, 108])
    """

    z: Float[Tensor, "N V D"]
    actions: Float[Tensor, "N T A"]
    e: Float[Tensor, "N T E"] | None = None
    target: Float[Tensor, "N V D"] | None = None
    labels: Int[Tensor, "N"] | None = None
    group: Group | None = None
    elements: Float[Tensor, "N V A"] | None = None
    pictures: Tensor | None = None
    sources: Int[Tensor, "N"] | None = None
    pictured: Int[Tensor, "P"] | None = None
    inferred: Float[Tensor, "N T n"] | None = None

    @property
    def num_views(self) -> int:
        """V."""
        return self.z.shape[1]

    @property
    def source_numbers(self) -> Int[Tensor, "N"]:
        """`sources`, or 0 … N−1 where each sequence is a source of its own."""
        return torch.arange(len(self.z), device=self.z.device) if self.sources is None else self.sources

    def draw(self, count: int, *, seed: int = 0) -> Features:
        """`count` sequences drawn at random, in their order; all of them where there are fewer.

        Every class is drawn in proportion, and once at least where the count allows it; every source as often as any
        other of its class. Data often come sorted by class: the first sequences would be of a few classes.

        Args:
            count: at least 1.
            seed: of the draw.

        Examples:
            >>> import torch
            >>> labels = torch.arange(80) // 40                                                   # sorted by class
            >>> features = Features(z=torch.rand(80, 3, 4), actions=torch.rand(80, 2, 2), labels=labels)
            >>> features.draw(10).labels
            tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
        """
        if count < 1:
            raise ValueError(f"count is a number of sequences, at least 1; got {count}.")
        if count >= len(self.z):
            return self
        return _rows(self, drawn_rows(self, count, seed))

    def from_first(self) -> Float[Tensor, "N V A"]:
        """The action that leads from the first view to each, by composition of the actions between; needs a group."""
        if self.group is None:
            raise ValueError(
                "Relative transformations need to know what an action is; these features have no group. "
                "Give the ViewSequence its group, such as seqjepa.groups.Rotation3D()."
            )
        return self.group.along(self.actions)

    def relative(self, i: Int[Tensor, "N"] | int, j: Int[Tensor, "N"] | int) -> Float[Tensor, "N A"]:
        """The action that leads from view i to view j of each source: by composition of the actions between."""
        along = self.from_first()
        assert self.group is not None
        rows = torch.arange(len(along), device=along.device)
        return self.group.compose(self.group.inverse(along[rows, i]), along[rows, j])


def _rows(features: Features, rows: Int[Tensor, "M"] | slice) -> Features:
    """Some of the sequences, without pictures."""
    known = {f.name: getattr(features, f.name) for f in fields(features) if f.name not in ("pictures", "pictured")}
    cut: dict[str, Any] = {name: x[rows] for name, x in known.items() if isinstance(x, Tensor)}
    return replace(features, pictures=None, pictured=None, **cut)


def check_told(features: Features) -> None:
    """Raise where the model is told inferred actions: a measure that composes others has only the group's."""
    if features.inferred is not None:
        raise ValueError(
            "This measure tells the model actions of the group, and these features' model is told what an inverse "
            "model inferred. Ask latent_transfer whether its actions lead where they should."
        )


def drawn_rows(features: Features, count: int, seed: int) -> Int[Tensor, "M"]:
    """The rows that `Features.draw` draws."""
    in_turn = _in_turn(features.source_numbers, features.labels, seed)
    return in_turn[:count].sort().values.to(features.z.device)


def _in_turn(sources: Int[Tensor, "N"], labels: Int[Tensor, "N"] | None, seed: int) -> Int[Tensor, "N"]:
    """All rows in a random order whose every beginning has each class in proportion, and each source as often."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    rows = torch.randperm(len(sources), generator=generator, device="cpu")
    rows = rows[occurrence(sources.cpu()[rows])[0].argsort(stable=True)]  # all sources before any comes again
    if labels is None:
        return rows
    earlier, count = occurrence(labels.cpu()[rows])
    return rows[(earlier.double() / count).argsort(stable=True)]


def occurrence(values: Int[Tensor, "N"]) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """How often each value has occurred before, and how often it occurs in all."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    order = inverse.argsort(stable=True)
    begins = (counts.cumsum(0) - counts)[inverse[order]]
    earlier = torch.empty_like(inverse)
    earlier[order] = torch.arange(len(values), device=values.device) - begins
    return earlier, counts[inverse]


def extract(
    model: Any,
    sequences: ViewSequence | Iterable[ViewSequence],
    *,
    inverse: Any = None,
    batch_size: int = 256,
    autocast: torch.dtype | None = torch.bfloat16,
    sources: Int[Tensor, "N"] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    over_ranks: bool = False,
) -> Features:
    """Encode every view once, in eval mode and without gradient.

    A function is searched for the modules that it uses; one that is hidden deep in other objects is not found: put it
    in eval mode yourself.

    Args:
        model: a [`SeqJEPA`][seqjepa.SeqJEPA], or anything with `encode`, `embed`, `aggregate`, `predict` and `target`
            as it has them (the last two only for what is predicted); or a function (B, T, …) → (B, T, D), an encoder
            alone.
        sequences: one ViewSequence, or several in turn, such as a [`ViewLoader`][seqjepa.data.ViewLoader] with
            `drop_last=False`.
        inverse: an [`InverseModel`][seqjepa.InverseModel], or anything that maps z (B, T, D) and the next views' target
            (z of a model without one) to actions (B, T, n): for a model that is told inferred actions. Those of the
            sequences are kept for comparison, and the model never sees them.
        batch_size: sequences to encode at a time, at least 1; larger ones that come in turn are cut.
        autocast: a dtype to encode in under autocast on a GPU; None for the model's own. On a CPU nothing is cast.
        sources: integers, which source each sequence shows, in the order in which they come: for several sequences of
            one source. Without them each sequence counts as a source of its own.
        progress: wraps the batches, such as `tqdm.tqdm`.
        over_ranks: with torch.distributed, each rank encodes its share of the batches, every W-th, and all get all
            features, those of one process, in their order. Give every rank all sequences, alike: a `ViewLoader` with
            `rank=0, world_size=1` (it makes all views on each rank, of which each encodes its share). What goes wrong
            on one rank is raised on all. Without it each rank works by itself, and encodes all that it is given.

    Returns:
        [`Features`][seqjepa.evaluation.Features], on the device of the model's weights (or of the views).

    Raises:
        ValueError: no sequences; features that are not finite; sequences that differ in length, or in what is known;
            labels or sources of another number than the sequences; a loader that leaves items out (`drop_last`, or one
            rank's share), or with `sources` one that shuffles them; with `over_ranks`, other sequences on other ranks.
        TypeError: labels that are no integers.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> features = extract(model, ViewSequence(torch.rand(4, 3, 3, 32, 32), torch.randn(4, 2, 2)))
        >>> features.z.shape, features.e.shape, model.training
        (torch.Size([4, 3, 512]), torch.Size([4, 2, 128]), True)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is the number of sources to encode at a time, at least 1; got {batch_size}.")
    check_given(sequences, sources)
    model, inverse = unwrapped(model), unwrapped(inverse)
    given = list(batches(sequences, batch_size)) if isinstance(sequences, ViewSequence) else sequences
    shares, pictures = Shares(over_ranks), _Pictures()

    def cut() -> Iterator[ViewSequence]:
        for sequence in given if progress is None else progress(given):
            for batch in batches(sequence, batch_size):
                pictures.offer(batch.views)
                yield batch

    def encode() -> Features:
        parts = []
        with evaluating(model, getattr(model, "encode", None)):
            for batch, counts in shares.of(cut()):
                part = _extract_one(model, batch, autocast, inverse)
                parts.append(part if counts else _rows(part, slice(0)))
        if not parts:
            raise ValueError("There is nothing to evaluate: the sequences are empty. Give at least one ViewSequence.")
        return _joined(parts)

    features = _with_elements_that_fit(shares.joined(encode))
    features = replace(features, pictures=pictures.views(), pictured=pictures.rows())
    if sources is None:
        return features
    check_sequence_sources(sources, len(features.z))
    return replace(features, sources=sources.to(features.z.device))


class _Pictures:
    """Views of sequences drawn at random from all that come in turn: each is given a number, the lowest are kept."""

    def __init__(self) -> None:
        self.generator = torch.Generator(device="cpu").manual_seed(0)
        self.kept: list[tuple[float, int, Tensor]] = []  # number, row, views
        self.seen = 0

    def offer(self, views: Tensor) -> None:
        """Some more sequences."""
        drawn = torch.rand(len(views), generator=self.generator, dtype=torch.float64, device="cpu").tolist()
        offered = [(number, row, None) for row, number in enumerate(drawn, start=self.seen)]
        lowest = sorted([*self.kept, *offered], key=lambda entry: entry[:2])[:PICTURES]
        self.kept = [
            (number, row, views[row - self.seen].cpu().clone() if held is None else held)  # not all of the batch
            for number, row, held in lowest
        ]
        self.seen += len(views)

    def rows(self) -> Int[Tensor, "P"]:
        """Which sequences are kept, in their order."""
        return torch.tensor(sorted(row for _, row, _ in self.kept), dtype=torch.long, device="cpu")

    def views(self) -> Tensor | None:
        """Their views, where these are of one size."""
        views = [held for _, _, held in sorted(self.kept, key=lambda entry: entry[1])]
        return torch.stack(views) if len({held.shape for held in views}) == 1 else None


def _extract_one(model: Any, batch: ViewSequence, autocast: torch.dtype | None, inverse: Any) -> Features:
    check_axes("actions", batch.actions, "B T A")
    if batch.views.shape[1] != batch.actions.shape[1] + 1 or len(batch.views) != len(batch.actions):
        raise ValueError(
            f"V views need V − 1 actions; got views of shape {tuple(batch.views.shape)} and actions of shape "
            f"{tuple(batch.actions.shape)}."
        )
    weight = next((p for module in modules_of(model) for p in module.parameters()), None)
    device = batch.views.device if weight is None else weight.device
    whole = hasattr(model, "encode")
    (views,) = to_weights(model, "encode", batch.views.to(device))
    (actions,) = to_weights(model, "embed", batch.actions.to(device))
    with torch.autocast(
        device.type, autocast or torch.bfloat16, enabled=autocast is not None and device.type == "cuda"
    ):
        z = (model.encode if whole else model)(views)
        _check_z(z, views)
        predicts = whole and hasattr(model, "target")
        target = model.target(views.flatten(0, 1)).unflatten(0, views.shape[:2]) if predicts else None
        told, inferred = actions, None
        if inverse is not None:
            inferred = infer(inverse, z[:, :-1], (z if target is None else target)[:, 1:])
            (told,) = to_weights(model, "embed", inferred)
        e = model.embed(told) if whole else None
    device = z.device  # a function may have moved the views itself
    finite = z.isfinite().all(dim=-1).all(dim=-1)
    if not bool(finite.all()):
        raise ValueError(f"z must be finite; the encoder returned NaN or infinity for {int((~finite).sum())} sources.")
    return Features(
        z=widened(z),
        actions=_exact(batch.actions.to(device), batch.group),
        e=None if e is None else widened(e),
        target=None if target is None else widened(target),
        labels=None if batch.labels is None else batch.labels.to(device).long(),
        group=batch.group,
        elements=_elements(batch, device),
        inferred=inferred,
    )


def _check_z(z: Any, views: Tensor) -> None:
    if not isinstance(z, Tensor) or z.ndim != 3 or z.shape[:2] != views.shape[:2]:
        came = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"An encoder maps views (B, T, …) to z (B, T, D); of views {tuple(views.shape)} it made {came}. "
            "For an encoder of single images (N, …) give lambda v: encoder(v.flatten(0, 1)).unflatten(0, v.shape[:2])."
        )


def _exact(elements: Tensor, group: Group | None) -> Tensor:
    """In float32 or wider; rotations in half precision have another length than 1 then, which is put right."""
    half = elements.dtype in (torch.float16, torch.bfloat16)
    return widened(elements) if group is None or not half else unit_rotations(group, widened(elements))


def _elements(batch: ViewSequence, device: torch.device) -> Tensor | None:
    """Absolute parameters (B, V, A) in the form of the group's elements, where the sequence holds such."""
    parameters, group = batch.parameters, batch.group
    if group is None or parameters is None:
        return None
    if isinstance(parameters, Tensor):
        joined = parameters
    elif hasattr(parameters, "elements"):  # parameters that know their own form as elements
        found = parameters.elements(group)
        if found is None:
            return None
        joined = found
    else:
        names = list(getattr(group, "groups", {"rotation": group}))  # of a Product, its parts by name
        known = parameters if isinstance(parameters, dict) else {n: getattr(parameters, n, None) for n in names}
        columns = [known.get(name) for name in names]
        if not all(isinstance(column, Tensor) for column in columns):
            return None
        joined = torch.cat([c[..., None] if c.ndim == 2 else c for c in columns if c is not None], dim=-1)
    if joined.shape != (*batch.views.shape[:2], group.dim):
        return None
    return _exact(joined.to(device) if joined.is_floating_point() else joined.to(device).float(), group)


def _joined(parts: list[Features]) -> Features:
    first = parts[0]
    for part in parts:
        if not same_group(part.group, first.group):
            raise ValueError(
                "Sequences that are evaluated together have actions of one group; got "
                f"{first.group} and {part.group}. Extract each by itself, or give all their group: "
                "sequence._replace(group=…)."
            )
        known = [(x is None) for x in (part.labels, part.elements)]
        if part.z.shape[1:] != first.z.shape[1:] or known != [(x is None) for x in (first.labels, first.elements)]:
            raise ValueError(
                "Sequences that are evaluated together must have one number of views, and the same must be known of "
                f"each (labels, parameters); got z of shapes {tuple(first.z.shape)} and {tuple(part.z.shape)}."
            )

    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    tensors: dict[str, Any] = {
        name: cat(name) for name in ("z", "actions", "e", "target", "labels", "elements", "inferred")
    }
    return Features(group=first.group, **tensors)


def same_group(a: Group | None, b: Group | None) -> bool:
    """Whether they are one group; those of a person's own may not know that they are equal, and are by their kind."""
    return type(a) is type(b) and (a == b or not isinstance(a, FixedGroup))


def _with_elements_that_fit(features: Features) -> Features:
    """Without elements where their differences are not the actions, as of a crop in pixels."""
    elements, group = features.elements, features.group
    if elements is None or group is None or are_elements(group, elements, features.actions):
        return features
    return replace(features, elements=None)  # actions are in sides of the image
