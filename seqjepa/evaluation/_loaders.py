"""Sequences as they come: known in advance or from a loader, checked before anything is encoded, cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from seqjepa._checks import check_tensor
from seqjepa.evaluation._inputs import check_integers
from seqjepa.types import ViewSequence

__all__ = ["batches", "check_given", "known_sequences"]

ORDER = {"epoch", "batch", "length", "batch_size", "drop_last", "shuffle", "world_size"}  # of a ViewLoader's state


def known_sequences(sequences: Any) -> list[ViewSequence] | None:
    """The sequences, where they all lie there; None where they come in turn."""
    if isinstance(sequences, ViewSequence):
        return [sequences]
    if isinstance(sequences, list | tuple) and all(isinstance(part, ViewSequence) for part in sequences):
        return list(sequences)
    return None


def check_given(sequences: Any, sources: Tensor | None = None) -> None:
    """Raise for labels or sources that do not fit, and for a loader that would not hand out all of its items in order.

    Whatever can be known before the encoding, which takes long.
    """
    known = known_sequences(sequences)
    for sequence in known or ():
        check_sequence_labels(sequence)
    if sources is not None:
        count = None if known is None else sum(len(sequence.views) for sequence in known)
        check_sequence_sources(sources, count)
    if isinstance(sequences, DataLoader):
        dropped, ranks, shuffled = _of_dataloader(sequences)
    elif isinstance(state := _state(sequences), Mapping) and state.keys() >= ORDER:
        dropped = state["length"] % state["batch_size"] if state["drop_last"] else 0
        ranks, shuffled = state["world_size"], bool(state["shuffle"])
        if state["batch"]:
            raise ValueError(
                f"This loader stands in the middle of an epoch, at batch {state['batch']}; what comes before it would "
                f"never be measured. Begin an epoch with set_epoch({state['epoch']})."
            )
    else:
        return
    if ranks > 1:
        raise ValueError(
            f"This loader hands out one rank's share of its items, one in {ranks}; the others would never be measured. "
            "Build one with world_size=1 and rank=0 (or without a DistributedSampler)."
        )
    if dropped:
        several = "the last" if dropped < 0 else str(dropped)
        raise ValueError(
            f"This loader leaves out {several} of its items, those that do not fill a batch; they would never be "
            "measured. Build it with drop_last=False."
        )
    if shuffled and sources is not None:
        raise ValueError(
            "sources name the sequences in the order in which they come, and this loader shuffles them. Build it with "
            "shuffle=False."
        )


def _of_dataloader(loader: DataLoader[Any]) -> tuple[int, int, bool]:
    """How many items are dropped (−1 where that is not known), over how many ranks, and whether they are shuffled."""
    batched = loader.batch_sampler
    sampler: Any = loader.sampler if batched is None else getattr(batched, "sampler", None)
    dropped = 0
    if getattr(batched, "drop_last", False) or loader.drop_last:
        size = getattr(batched, "batch_size", loader.batch_size)
        dropped = len(sampler) % size if size and hasattr(sampler, "__len__") else -1
    at_random = isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler)
    return dropped, getattr(sampler, "num_replicas", 1), at_random or bool(getattr(sampler, "shuffle", False))


def _state(loader: Any) -> Any:
    """The state of a ViewLoader, which says how it reads."""
    return loader.state_dict() if hasattr(loader, "state_dict") else None


def check_sequence_labels(sequence: ViewSequence) -> None:
    """Raise unless the labels are integers, one for each sequence."""
    labels = sequence.labels
    if labels is None:
        return
    check_tensor("labels", labels)
    if labels.shape != sequence.views.shape[:1]:
        raise ValueError(
            f"labels must be (B,), one for each of the {len(sequence.views)} sequences; got shape "
            f"{tuple(labels.shape)}."
        )
    check_integers("labels", labels, "the class of each sequence")


def check_sequence_sources(sources: Tensor, count: int | None) -> None:
    """Raise unless the sources are integers, one for each of so many sequences."""
    if sources.ndim != 1 or sources.is_floating_point() or len(sources) != (len(sources) if count is None else count):
        raise ValueError(
            f"sources must be integers, one for each of the {'' if count is None else f'{count} '}sequences; got "
            f"{sources.dtype} of shape {tuple(sources.shape)}."
        )


def check_kind(sequence: Any) -> None:
    """Raise unless this is a batch of sequences; a loop over views and actions, or over a dataset, comes here too."""
    if not isinstance(sequence, ViewSequence):
        raise TypeError(
            f"What is measured is a seqjepa.ViewSequence, or several in turn; got a {type(sequence).__name__}. Make "
            "one of views and actions: ViewSequence(views, actions, labels=labels, group=group). Padded batches with a "
            "mask cannot be measured: cut windows of one length by seqjepa.data.EpisodeWindows."
        )
    if isinstance(sequence.actions, Tensor) and sequence.actions.ndim == 2:
        raise ValueError(
            "A ViewSequence that is measured has a batch axis, actions (B, T, A); got "
            f"{tuple(sequence.actions.shape)}, of one source. Batches of a dataset come from ViewLoader(dataset, "
            "batch_size=256, shuffle=False, drop_last=False)."
        )


def batches(sequence: ViewSequence, size: int) -> Iterator[ViewSequence]:
    """At most `size` sources at a time."""
    check_kind(sequence)
    check_sequence_labels(sequence)
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
    if isinstance(parameters, dict):
        return {name: _rows(part, rows, count) for name, part in parameters.items()}
    return parameters
