"""Videos with their actions: windows of one length cut out of episodes, or whole episodes filled up to the longest."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from seqjepa.data._images import check_channels_first
from seqjepa.groups import Group, Translation
from seqjepa.types import ViewSequence, map_tensors

__all__ = ["EpisodeWindows", "PaddedViews", "pad_sequences"]


class EpisodeWindows(Dataset[ViewSequence]):
    """All windows of one length in videos with actions: a dataset for a [`ViewLoader`][seqjepa.data.ViewLoader].

    An episode is a video of N frames and the N − 1 actions between them. A window is V of its frames, `skip` apart:

    ```
    views      frame s, s + skip, …, s + (V − 1) · skip         s = 0, stride, 2 · stride, …
    actions    of each skip, the composition of its actions     of a Translation their sum
    ```

    Nothing is copied before a window is asked for, so frames may lie in a file that is mapped into memory. An episode
    shorter than a window has none.

    Windows of one episode are one source: split training from test by episodes, and hand `sources` to
    [`extract`][seqjepa.evaluation.extract].

    Args:
        episodes: [`ViewSequence`][seqjepa.types.ViewSequence]s of one source, without the batch axis, or pairs
            (views, actions): views (N, C, H, W), uint8 or float in [0, 1], actions (N − 1, A). Parameters (N, …) and a
            label come along, if there are any.
        num_views: V = T + 1, at least 2.
        skip: frames from one view to the next, at least 1: neighbours in a video are nearly alike.
        stride: frames from the beginning of one window to that of the next, at least 1.
        group: what the actions are elements of; None is that of the ViewSequences, else `Translation(A)`, whose
            actions add up.

    Attributes:
        sources: (windows,) the number of each window's episode.

    Raises:
        ValueError: no window in any episode; another number of actions than N − 1; actions that are not of the group or
            not finite; a size below its least.
        TypeError: an episode of another kind; actions that are not floating point.

    Examples:
        >>> import torch
        >>> from seqjepa.data import EpisodeWindows, ViewLoader
        >>> video, actions = torch.zeros(20, 3, 16, 16, dtype=torch.uint8), torch.ones(19, 2)
        >>> windows = EpisodeWindows([(video, actions)] * 3, num_views=4, skip=5)
        >>> len(windows), windows.sources.tolist()                        # a window is 16 frames long
        (15, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
        >>> windows[0].actions[0]                                          # five frames' actions
        tensor([5., 5.])
        >>> next(iter(ViewLoader(windows, batch_size=8))).views.shape
        torch.Size([8, 4, 3, 16, 16])
    """

    sources: Int[Tensor, "windows"]

    def __init__(
        self,
        episodes: Sequence[Any],
        *,
        num_views: int,
        skip: int = 1,
        stride: int = 1,
        group: Group | None = None,
    ) -> None:
        for name, size, least in (("num_views", num_views, 2), ("skip", skip, 1), ("stride", stride, 1)):
            if operator.index(size) < least:
                raise ValueError(f"{name} must be at least {least}; got {size}.")
        self.num_views, self.skip, self.stride = num_views, skip, stride
        self.episodes = [_episode(episode, f"episode {i}", group) for i, episode in enumerate(episodes)]
        longest = max((len(episode.views) for episode in self.episodes), default=0)
        starts = [
            torch.arange(0, max(0, len(episode.views) - self.frames + 1), stride, device="cpu")
            for episode in self.episodes
        ]
        counts = torch.tensor([len(part) for part in starts], dtype=torch.long, device="cpu")
        self.sources = torch.repeat_interleave(counts)
        if len(self.sources) == 0:
            raise ValueError(
                f"A window of {num_views} views, {skip} frames apart, is {self.frames} frames long; the longest of "
                f"{len(self.episodes)} episodes has {longest}. Take fewer views or a smaller skip."
            )
        self.starts = torch.cat(starts)

    @property
    def frames(self) -> int:
        """Frames from a window's first to its last: (V − 1) · skip + 1."""
        return (self.num_views - 1) * self.skip + 1

    def __len__(self) -> int:
        """Windows in all episodes."""
        return len(self.sources)

    def __getitem__(self, index: int) -> ViewSequence:
        """One window, without the batch axis: views (V, C, H, W), actions (V − 1, A)."""
        episode, start = self.episodes[int(self.sources[index])], int(self.starts[index])
        stop = start + self.frames

        def seen(frames: Tensor) -> Tensor:
            return frames[start : stop : self.skip]

        steps = episode.actions[start : stop - 1].unflatten(0, (self.num_views - 1, self.skip))
        return episode._replace(
            views=seen(episode.views),
            actions=steps[:, 0] if self.skip == 1 else episode.group.path_composition(steps),
            parameters=map_tensors(seen, episode.parameters),
        )


class PaddedViews(NamedTuple):
    """Sequences of several lengths in one batch: what [`SeqJEPA`][seqjepa.SeqJEPA] is called with.

    Attributes:
        views: (B, T+1, …), T of the longest; zeros follow a shorter one.
        actions: (B, T, A), filled up with zeros too.
        mask: (B, T) bool, True where an observed view counts; the view after a row's last True is its target.

    Examples:
        >>> import torch
        >>> from seqjepa import SeqJEPA
        >>> videos = [(torch.rand(n, 3, 32, 32), torch.randn(n - 1, 2)) for n in (3, 5)]
        >>> model = SeqJEPA.from_timm("resnet18", action_dim=2, cifar_stem=True)
        >>> model(*pad_sequences(videos)).prediction.shape
        torch.Size([2, 512])
    """

    views: Shaped[Tensor, "B views *image"]
    actions: Float[Tensor, "B T A"]
    mask: Bool[Tensor, "B T"]

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> PaddedViews:
        """The same batch on a device."""
        return cast(PaddedViews, map_tensors(lambda part: part.to(device, non_blocking=non_blocking), self))

    def pin_memory(self) -> PaddedViews:
        """The same batch in page-locked memory; a DataLoader with `pin_memory=True` calls this."""
        return cast(PaddedViews, map_tensors(lambda part: part.pin_memory(), self))


def pad_sequences(sequences: Sequence[Any]) -> PaddedViews:
    """Sequences of several lengths as one batch with its mask: the `collate_fn` of a DataLoader of whole episodes.

    Args:
        sequences: at least one, ViewSequences of one source without the batch axis or pairs (views, actions): views
            (n, …) with n ≥ 2, actions (n − 1, A). Only n may differ.

    Returns:
        [`PaddedViews`][seqjepa.data.PaddedViews], views in the dtype in which they came.

    Raises:
        ValueError: none; another number of actions than n − 1; actions that are not finite; views or actions of several
            shapes or dtypes.
        TypeError: a sequence of another kind; actions that are not floating point.

    Examples:
        >>> import torch
        >>> padded = pad_sequences([(torch.rand(n, 3, 8, 8), torch.randn(n - 1, 2)) for n in (3, 5)])
        >>> padded.views.shape, padded.actions.shape
        (torch.Size([2, 5, 3, 8, 8]), torch.Size([2, 4, 2]))
        >>> padded.mask.int()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 1]], dtype=torch.int32)
    """
    if not len(sequences):
        raise ValueError("A batch needs at least one sequence; got none.")
    parts = [_pair(sequence, f"sequence {i}") for i, sequence in enumerate(sequences)]
    for i, (views, actions) in enumerate(parts):
        for what, part, other in (("views", views, parts[0][0]), ("actions", actions, parts[0][1])):
            if (part.shape[1:], part.dtype) != (other.shape[1:], other.dtype):
                raise ValueError(
                    f"The sequences of a batch differ in length alone; the {what} of sequence 0 are "
                    f"{_each(other)}, those of sequence {i} {_each(part)}. Bring them to one size in the dataset."
                )
    views, actions = (
        torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True) for part in zip(*parts, strict=True)
    )
    lengths = torch.tensor([len(part) for _, part in parts], device=actions.device)
    steps = torch.arange(actions.shape[1], device=actions.device)
    return PaddedViews(views, actions, steps < lengths[:, None])


def _each(part: Tensor) -> str:
    return f"{tuple(part.shape[1:])} each, {part.dtype}"


def _episode(episode: Any, name: str, group: Group | None) -> ViewSequence:
    """A checked episode that knows its group."""
    views, actions = _pair(episode, name)
    known = episode if isinstance(episode, ViewSequence) else ViewSequence(views, actions)
    group = group or known.group or Translation(actions.shape[-1])
    if actions.shape[-1] != group.dim:
        raise ValueError(
            f"An action of {type(group).__name__} has {group.dim} numbers; those of {name} have {actions.shape[-1]}."
        )
    return known._replace(group=group)


def _pair(sequence: Any, name: str) -> tuple[Tensor, Tensor]:
    """The views and the actions of one source."""
    pair = isinstance(sequence, tuple | list) and len(sequence) == 2
    if not isinstance(sequence, ViewSequence) and not pair:
        raise TypeError(
            f"A video with actions is a pair (views, actions) or a seqjepa.ViewSequence of one source; {name} is a "
            f"{type(sequence).__name__}."
        )
    views, actions = sequence[:2]
    for what, part in (("views", views), ("actions", actions)):
        if not isinstance(part, Tensor):
            raise TypeError(
                f"The {what} of {name} must be a torch.Tensor; got a {type(part).__name__}. "
                f"Convert with torch.as_tensor({what})."
            )
    check_channels_first(f"The views of {name}", views)
    if not actions.is_floating_point():
        raise TypeError(
            f"Actions are floating point; those of {name} are {actions.dtype}. Numbers of buttons are "
            "torch.nn.functional.one_hot(buttons, how_many).float()."
        )
    if actions.ndim != 2 or views.ndim < 2 or len(views) != len(actions) + 1 or len(actions) < 1:
        aligned = actions.ndim == 2 and len(views) == len(actions)
        raise ValueError(
            "A video of n frames, at least 2, has the n − 1 actions between them: views (n, C, H, W), actions "
            f"(n − 1, A); {name} has {tuple(views.shape)} and {tuple(actions.shape)}."
            + (
                " Where each action was taken at its frame, drop the last; where it led to it, the first; where it is "
                "no action but a state, take group.actions(states)."
                if aligned
                else ""
            )
        )
    if not actions.isfinite().all():
        first = int((~actions.isfinite().all(dim=1)).nonzero()[0])
        raise ValueError(
            f"Actions are finite; action {first} of {name} is {actions[first].tolist()}. Cut the episode there: in "
            "training, one such number makes all weights nan."
        )
    return views, actions
