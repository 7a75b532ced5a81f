"""The two results that travel between floors, and the axis glossary.

One letter, one meaning, everywhere in the package:

| axis    | meaning                                                        |
|---------|----------------------------------------------------------------|
| B       | batch: one source (image, object, scene) a row                 |
| T       | observed views of a source; the paper's M. Time is axis 1      |
| A       | numbers in an action                                           |
| E       | width of an action embedding                                   |
| D       | width of the encoder's output                                  |
| S       | width of the aggregate, D + E                                  |
| C, H, W | channels, height, width of an image                            |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

__all__ = ["SeqJEPAOutput", "ViewSequence"]


class ViewSequence(NamedTuple):
    """Views of one source a row, the actions between them, and what made each view.

    Attributes:
        views: (B, T+1, C, H, W), float in [0, 1].
        actions: (B, T, A); `actions[:, t]` takes view t to view t+1.
        parameters: the absolute transformation of each view, where the source of the views knows it: a tensor
            (B, T+1, …), or a NamedTuple of such tensors.
        labels: (B,) class of each source, where it is known.
        group: the [group][seqjepa.groups.Group] that the actions are elements of, where it is known.

    `torch.utils.data.default_collate` stacks sequences of one source, without the batch axis, as
    [`collate`][seqjepa.data.collate] does.

    Examples:
        >>> import torch
        >>> batch = ViewSequence(torch.rand(8, 4, 3, 32, 32), torch.randn(8, 3, 4))
        >>> views, actions, *_ = batch.to("cpu")
        >>> views.shape[1] - actions.shape[1]
        1
        >>> sources = [ViewSequence(torch.rand(4, 3, 32, 32), torch.randn(3, 4)) for _ in range(8)]
        >>> torch.utils.data.default_collate(sources).views.shape
        torch.Size([8, 4, 3, 32, 32])
    """

    views: Float[Tensor, "B views *image"]
    actions: Float[Tensor, "B T A"]
    parameters: Any = None
    labels: Tensor | None = None
    group: Any = None

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> ViewSequence:
        """The same sequence with its tensors on a device; the group comes along as it is."""
        return cast(ViewSequence, map_tensors(lambda part: part.to(device, non_blocking=non_blocking), self))

    def pin_memory(self) -> ViewSequence:
        """The same sequence with its tensors in page-locked memory, from which a copy to a GPU need not be waited for.

        A DataLoader with `pin_memory=True` calls this.
        """
        return cast(ViewSequence, map_tensors(lambda part: part.pin_memory(), self))


class SeqJEPAOutput(NamedTuple):
    """What one forward pass of [`SeqJEPA`][seqjepa.SeqJEPA] leaves.

    Attributes:
        loss: () scalar to call `.backward()` on.
        prediction: (B, D) predicted representation of the last view.
        target: (B, D) target encoder's representation of the last view, without gradient but for an `OnlineTarget`.
        state: (B, S) aggregate of the observed views: the invariant representation.
        z: (B, T, D) encoder outputs of the observed views: the equivariant representation.
        terms: the parts of the loss by name, () each, detached: for logging.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> out = SeqJEPA.from_timm("resnet18", action_dim=4, cifar_stem=True)(
        ...     torch.rand(4, 3, 3, 32, 32), torch.randn(4, 2, 4))
        >>> out.state.shape, list(out.terms)
        (torch.Size([4, 640]), ['distance'])
    """

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "B D"]
    target: Float[Tensor, "B D"]
    state: Float[Tensor, "B S"]
    z: Float[Tensor, "B T D"]
    terms: dict[str, Tensor]


def map_tensors(function: Callable[[Tensor], Tensor], part: Any) -> Any:
    """A part with each of its tensors changed, also in tuples, NamedTuples, lists and dicts; all else as it is."""
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, dict):
        return {key: map_tensors(function, value) for key, value in part.items()}
    if isinstance(part, tuple | list):
        changed = [map_tensors(function, value) for value in part]
        return cast(Any, type(part))(*changed) if hasattr(part, "_fields") else type(part)(changed)
    return part


def number_tensor(number: Any, name: str, what: str = "label") -> Tensor | None:
    """A label as a tensor: one that is a tensor already stays where it lies, a number lies on the CPU."""
    if number is None or isinstance(number, Tensor):
        return number
    try:
        return torch.as_tensor(number, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"A{'n' * (what[0] == 'a')} {what} is a number or a tensor; that of {name} is {number!r}. "
            f"{'Number the classes in the dataset' if what == 'label' else 'Make it a tensor in the dataset'}."
        ) from None


def stack_numbers(numbers: Sequence[Any], what: str, names: Sequence[str]) -> Tensor | None:
    """Stack labels, numbers or tensors; None where there are none at all."""
    if {type(number) for number in numbers} == {int}:  # the common case, without a tensor for each
        try:
            return torch.tensor(numbers, device="cpu")
        except (ValueError, RuntimeError, OverflowError):
            pass  # one is too large, and is named below
    return stack([number_tensor(number, name, what) for number, name in zip(numbers, names, strict=True)], what, names)


def stack(parts: Sequence[Tensor | None], what: str, names: Sequence[str]) -> Tensor | None:
    """Stack tensors of one shape; None where there are none at all."""
    if all(part is None for part in parts):
        return None
    shape = None
    for part, name in zip(parts, names, strict=True):
        if part is None:
            raise ValueError(f"All items of a batch have a {what}, or none has; {name} has none.")
        shape = part.shape if shape is None else shape
        if part.shape != shape:
            raise ValueError(
                f"The {what}s of a batch have one shape; {names[0]} has {tuple(shape)}, {name} has {tuple(part.shape)}."
                + (
                    " Cut windows of one length by seqjepa.data.EpisodeWindows, or fill up by pad_sequences."
                    if what == "view sequence" and part.shape[1:] == shape[1:]
                    else ""
                )
            )
    return torch.stack(cast("list[Tensor]", list(parts)))


def stack_sequences(items: Sequence[Any], names: Sequence[str]) -> ViewSequence:
    """A batch of sequences of one source each."""
    sequences = [_checked_sequence(item, name) for item, name in zip(items, names, strict=True)]
    first = sequences[0]
    for sequence, name in zip(sequences, names, strict=True):
        if sequence.views.dtype != first.views.dtype:
            raise TypeError(
                f"The views of a batch have one dtype; {names[0]} has {first.views.dtype}, {name} has "
                f"{sequence.views.dtype}."
            )
        if sequence.group is not first.group and sequence.group != first.group:
            raise ValueError(
                f"The actions of a batch are elements of one group; {names[0]} has {first.group}, {name} has "
                f"{sequence.group}. Give all items of the dataset one group."
            )
    views, actions, labels = (
        stack([getattr(sequence, field) for sequence in sequences], what, names)
        for field, what in (("views", "view sequence"), ("actions", "action sequence"), ("labels", "label"))
    )
    assert views is not None
    assert actions is not None
    parameters = _stack_nested([sequence.parameters for sequence in sequences], names)
    return ViewSequence(views, actions, parameters, labels, first.group)


def _checked_sequence(item: Any, name: str) -> ViewSequence:
    if not isinstance(item, ViewSequence):
        raise TypeError(f"All items of a batch are ViewSequences, or none is; {name} is a {type(item).__name__}.")
    views, actions, labels = (
        number_tensor(part, name, what)
        for part, what in ((item.views, "view sequence"), (item.actions, "action sequence"), (item.labels, "label"))
    )
    assert views is not None
    assert actions is not None
    if views.ndim < 2 or actions.ndim != 2 or len(views) != len(actions) + 1:
        raise ValueError(
            "A dataset's ViewSequence is one source without the batch axis, views (T+1, …) and actions (T, A); "
            f"{name} has {tuple(views.shape)} and {tuple(actions.shape)}."
        )
    if len(actions) == 0:
        raise ValueError(
            f"A sequence has at least two views, so that there is an action (T ≥ 1); {name} has one view. Let the "
            "dataset yield more views of each source."
        )
    if views.dtype != torch.uint8 and not views.is_floating_point():
        raise TypeError(
            f"Views are uint8, or floating point in [0, 1]; those of {name} are {views.dtype}. Divide them by their "
            "largest possible value: views / 65535 for 16 bits."
        )
    return item._replace(views=views, actions=actions, labels=labels)


def _stack_nested(parts: Sequence[Any], names: Sequence[str]) -> Any:
    """Tensors, NamedTuples or dicts of them, or None."""
    what = "parameter"
    if not any(isinstance(part, dict) or hasattr(part, "_fields") for part in parts):
        return stack_numbers(parts, what, names)
    first = parts[0]
    for part, name in zip(parts, names, strict=True):
        if type(part) is not type(first) or (isinstance(part, dict) and part.keys() != first.keys()):
            raise TypeError(
                f"The parameters of a batch are of one kind; {names[0]} has {_kind(first)}, {name} has {_kind(part)}."
            )
    if isinstance(first, dict):
        return {key: _stack_nested([part[key] for part in parts], names) for key in first}
    return cast(Any, type(first))(*(_stack_nested(list(field), names) for field in zip(*parts, strict=True)))


def _kind(part: Any) -> str:
    return f"a dict of {', '.join(map(repr, part))}" if isinstance(part, dict) else f"a {type(part).__name__}"


def _default_collate(items: Sequence[ViewSequence], *, collate_fn_map: Any = None) -> ViewSequence:
    return stack_sequences(items, [f"item {i} of the batch" for i in range(len(items))])


default_collate_fn_map[ViewSequence] = _default_collate
