"""Features of view sequences, computed once: what every protocol works on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqjepa._checks import check_axes
from seqjepa.groups import Group
from seqjepa.types import ViewSequence

__all__ = ["Features", "aggregate_states", "evaluating", "extract", "in_chunks"]

PICTURES = 64  # sources whose views are kept for the figure
ROWS = 4096  # sources or rows at a time where a batch size is not given


@dataclass(frozen=True, eq=False)
class Features:
    """What a model makes of N view sequences, and what is known of them.

    Attributes:
        z: (N, V, D) encoder outputs of all V views, float32.
        actions: (N, V − 1, A).
        e: (N, V − 1, E) embedded actions, or None of an encoder alone.
        target: (N, V, D) the target encoder's outputs, or None of a model without one.
        labels: (N,) classes, or None.
        group: the group of the actions, or None.
        elements: (N, V, A) absolute parameters as elements of the group, or None where they are not known.
        pictures: the views of the first sources, for the figure.
        sources: (N,) integers, which source each sequence shows, where several may show one. Probes then hold out whole
            sources, and intervals are over sources. None: each sequence is a source of its own.

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

    @property
    def num_views(self) -> int:
        """V."""
        return self.z.shape[1]

    @property
    def source_numbers(self) -> Int[Tensor, "N"]:
        """`sources`, or 0 … N−1 where each sequence is a source of its own."""
        return torch.arange(len(self.z), device=self.z.device) if self.sources is None else self.sources

    def first(self, count: int) -> Features:
        """The first `count` sequences, at least 1; all of them where there are fewer.

        Examples:
            >>> import torch
            >>> Features(z=torch.rand(8, 3, 4), actions=torch.rand(8, 2, 2)).first(5).z.shape
            torch.Size([5, 3, 4])
        """
        if count < 1:
            raise ValueError(f"count is a number of sequences, at least 1; got {count}.")
        rows: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {name: x[:count] for name, x in rows.items() if isinstance(x, Tensor)}
        return replace(self, **cut)

    def relative(self, i: Int[Tensor, "N"] | int, j: Int[Tensor, "N"] | int) -> Float[Tensor, "N A"]:
        """The action that leads from view i to view j of each source: by composition of the actions between."""
        if self.group is None:
            raise ValueError(
                "Relative transformations need to know what an action is; these features have no group. "
                "Give the ViewSequence its group, such as seqjepa.groups.Rotation3D()."
            )
        start = self.group.identity(dtype=self.actions.dtype, device=self.actions.device)
        path = [start.expand(len(self.actions), -1)]  # the action from the first view to each
        for t in range(self.actions.shape[1]):
            path.append(self.group.compose(path[-1], self.actions[:, t]))
        along = torch.stack(path, dim=1)
        rows = torch.arange(len(along), device=along.device)
        return self.group.compose(self.group.inverse(along[rows, i]), along[rows, j])


@contextmanager
def evaluating(*models: Any) -> Iterator[None]:
    """Without gradient, and with every module in eval mode; afterwards each is in the mode it was in.

    A probe that is fitted with the encoder in training mode moves its batch-norm statistics: what it measures is then
    no longer what was trained. Functions and other objects are searched for the modules that they use.
    """
    owners = [owner for model in models for owner in modules_of(model)]
    modes = [(part, part.training) for owner in owners for part in owner.modules()]
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def modules_of(model: Any, depth: int = 3) -> list[nn.Module]:
    """The modules behind a model: itself, or what a function, a partial or an object names, a few levels down.

    A module that is hidden deeper, such as in a list, is not found.
    """
    if isinstance(model, nn.Module):
        return [model]
    held: list[Any] = []
    if isinstance(model, functools.partial):
        held = [model.func, *model.args, *model.keywords.values()]
    elif inspect.ismethod(model):
        held = [model.__self__]
    elif inspect.isfunction(model):
        cells = [cell.cell_contents for cell in model.__closure__ or () if _is_filled(cell)]
        names = [model.__globals__[name] for name in model.__code__.co_names if name in model.__globals__]
        held = [*cells, *names, *(model.__defaults__ or ())]
    elif hasattr(model, "__dict__") and not inspect.isclass(model) and not inspect.ismodule(model):
        held = list(vars(model).values())
    return [module for part in held for module in modules_of(part, depth - 1)] if depth else []


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that is not set yet
        return False


def in_chunks(function: Callable[..., Tensor], *inputs: Tensor, rows: int = ROWS) -> Tensor:
    """`function` of the inputs, so many rows at a time, in float32."""
    parts = zip(*(x.split(rows) for x in inputs), strict=True)
    return torch.cat([function(*part).float() for part in parts])


def extract(
    model: Any,
    sequences: ViewSequence | Iterable[ViewSequence],
    *,
    batch_size: int = 256,
    autocast: torch.dtype | None = torch.bfloat16,
    sources: Int[Tensor, "N"] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Features:
    """Encode every view once, in eval mode and without gradient.

    A function is searched for the modules that it uses; one that is hidden deep in other objects is not found: put it
    in eval mode yourself.

    Args:
        model: a [`SeqJEPA`][seqjepa.SeqJEPA], or anything with `encode`, `embed`, `aggregate`, `predict` and `target`
            as it has them (the last two only for what is predicted); or a function (B, T, …) → (B, T, D), an encoder
            alone.
        sequences: one ViewSequence, or several in turn, such as a [`ViewLoader`][seqjepa.data.ViewLoader].
        batch_size: sequences to encode at a time, at least 1; larger ones that come in turn are cut.
        autocast: a dtype to encode in under autocast on a GPU; None for the model's own. On a CPU nothing is cast.
        sources: integers, which source each sequence shows, in the order in which they come: for several sequences of
            one source. Without them each sequence counts as a source of its own.
        progress: wraps the batches, such as `tqdm.tqdm`.

    Returns:
        [`Features`][seqjepa.evaluation.Features], on the device of the model's weights (or of the views).

    Raises:
        ValueError: no sequences; features that are not finite; sequences that differ in length, or in what is known;
            labels or sources of another number than the sequences.

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
    given = list(_batches(sequences, batch_size)) if isinstance(sequences, ViewSequence) else sequences
    parts, kept = [], 0
    with evaluating(model, getattr(model, "encode", None)):
        for sequence in given if progress is None else progress(given):
            for batch in _batches(sequence, batch_size):
                features = _extract_one(model, batch, autocast, max(0, PICTURES - kept))
                kept += len(features.z)
                parts.append(features)
    if not parts:
        raise ValueError("There is nothing to evaluate: the sequences are empty. Give at least one ViewSequence.")
    features = _joined(parts)
    if sources is None:
        return features
    if sources.shape != features.z.shape[:1] or sources.is_floating_point():
        raise ValueError(
            f"sources must be integers, one for each of the {len(features.z)} sequences; got {sources.dtype} of shape "
            f"{tuple(sources.shape)}."
        )
    return replace(features, sources=sources.to(features.z.device))


def _batches(sequence: ViewSequence, size: int) -> Iterator[ViewSequence]:
    if sequence.labels is not None and sequence.labels.shape != sequence.views.shape[:1]:
        raise ValueError(
            f"labels must be (B,), one for each of the {len(sequence.views)} sequences; got shape "
            f"{tuple(sequence.labels.shape)}."
        )
    for start in range(0, len(sequence.views), size):
        rows = slice(start, start + size)
        yield ViewSequence(
            sequence.views[rows],
            sequence.actions[rows],
            _rows(sequence.parameters, rows, len(sequence.views)),
            None if sequence.labels is None else sequence.labels[rows],
            sequence.group,
        )


def _rows(parameters: Any, rows: slice, count: int) -> Any:
    if isinstance(parameters, Tensor):
        return parameters[rows] if parameters.ndim and len(parameters) == count else parameters
    if isinstance(parameters, tuple) and hasattr(parameters, "_fields"):
        return type(parameters)(*(_rows(part, rows, count) for part in parameters))
    return parameters


def _extract_one(model: Any, batch: ViewSequence, autocast: torch.dtype | None, pictures: int) -> Features:
    check_axes("actions", batch.actions, "B T A")
    if batch.views.shape[1] != batch.actions.shape[1] + 1 or len(batch.views) != len(batch.actions):
        raise ValueError(
            f"V views need V − 1 actions; got views of shape {tuple(batch.views.shape)} and actions of shape "
            f"{tuple(batch.actions.shape)}."
        )
    weight = next((p for module in modules_of(model) for p in module.parameters()), None)
    device = batch.views.device if weight is None else weight.device
    views, actions = batch.views.to(device), batch.actions.to(device)
    whole = hasattr(model, "encode")
    with torch.autocast(
        device.type, autocast or torch.bfloat16, enabled=autocast is not None and device.type == "cuda"
    ):
        z = (model.encode if whole else model)(views)
        e = model.embed(actions) if whole else None
        predicts = whole and hasattr(model, "target")
        target = model.target(views.flatten(0, 1)).unflatten(0, views.shape[:2]) if predicts else None
    if not isinstance(z, Tensor) or z.ndim != 3 or z.shape[:2] != views.shape[:2]:
        came = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"An encoder maps views (B, T, …) to z (B, T, D); of views {tuple(views.shape)} it made {came}. "
            "For an encoder of single images (N, …) give lambda v: encoder(v.flatten(0, 1)).unflatten(0, v.shape[:2])."
        )
    device = z.device  # a function may have moved the views itself
    finite = z.isfinite().all(dim=-1).all(dim=-1)
    if not bool(finite.all()):
        raise ValueError(f"z must be finite; the encoder returned NaN or infinity for {int((~finite).sum())} sources.")
    return Features(
        z=z.float(),
        actions=actions.to(device).float(),
        e=None if e is None else e.float(),
        target=None if target is None else target.float(),
        labels=None if batch.labels is None else batch.labels.to(device),
        group=batch.group,
        elements=_elements(batch, device),
        pictures=batch.views[:pictures].cpu().clone(),  # a slice would keep all views of the batch in memory
    )


def _elements(batch: ViewSequence, device: torch.device) -> Tensor | None:
    """Absolute parameters (B, V, A) as elements of the group, where the sequence holds them in a form that is known."""
    parameters, group = batch.parameters, batch.group
    if group is None or parameters is None:
        return None
    if isinstance(parameters, Tensor):
        fits = parameters.shape == (*batch.views.shape[:2], group.dim)
        return parameters.to(device).float() if fits else None
    names = list(getattr(group, "groups", {"rotation": group}))  # of a Product, its parts by name
    if not all(hasattr(parameters, name) for name in names):
        return None
    columns = [getattr(parameters, name).float() for name in names]
    columns = [c[..., None] if c.ndim == 2 else c for c in columns]
    joined = torch.cat(columns, dim=-1).to(device)
    return joined if joined.shape[-1] == group.dim else None


def _joined(parts: list[Features]) -> Features:
    first = parts[0]
    for part in parts:
        known = [(x is None) for x in (part.labels, part.elements, part.group)]
        if part.z.shape[1:] != first.z.shape[1:] or known != [
            (x is None) for x in (first.labels, first.elements, first.group)
        ]:
            raise ValueError(
                "Sequences that are evaluated together must have one number of views, and the same must be known of "
                f"each (labels, parameters, group); got z of shapes {tuple(first.z.shape)} and {tuple(part.z.shape)}."
            )

    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    tensors: dict[str, Any] = {
        name: cat(name) for name in ("z", "actions", "e", "target", "labels", "elements", "pictures")
    }
    return Features(group=first.group, **tensors)


def aggregate_states(
    model: Any,
    features: Features,
    num_views: int,
    *,
    z: Float[Tensor, "N V D"] | None = None,
    e: Float[Tensor, "N T E"] | None = None,
    start: int = 0,
) -> Float[Tensor, "N S"]:
    """The state of `num_views` views of each source, from the view `start` on.

    Args:
        model: anything with `aggregate`.
        features: of [`extract`][seqjepa.evaluation.extract].
        num_views: M, from 1 to the views there are.
        z: instead of the features' own: blank or shuffled ones.
        e: likewise.
        start: the first view.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA, ViewSequence
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> features = extract(model, ViewSequence(torch.rand(4, 3, 3, 32, 32), torch.randn(4, 2, 2)))
        >>> aggregate_states(model, features, 2).shape
        torch.Size([4, 640])
    """
    if not 1 <= num_views <= features.num_views - start:
        raise ValueError(
            f"num_views (M_val) must be from 1 to the {features.num_views - start} views that there are; got "
            f"{num_views}. Make sequences of more views, or ask for fewer."
        )
    if features.e is None:
        raise ValueError("A state needs a model with embed and aggregate; these are the features of an encoder alone.")
    z, e = features.z if z is None else z, features.e if e is None else e
    stop = start + num_views
    with evaluating(model, getattr(model, "aggregate", None)):
        return in_chunks(model.aggregate, z[:, start:stop], e[:, start : stop - 1])
