"""Windows are frames and composed actions of one episode; padded sequences give what each gives alone."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from seqjepa import ViewSequence
from seqjepa.data import EpisodeWindows, ViewLoader, pad_sequences
from seqjepa.evaluation import extract
from seqjepa.groups import Rotation3D, Translation
from tests.builders import tiny_model


def video(frames: int, number: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame i of a video holds 50 · number + i, action i is (i, number)."""
    views = (50 * number + torch.arange(frames)).byte().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return views, torch.stack([torch.arange(frames - 1.0), torch.full((frames - 1,), float(number))], dim=1)


@given(
    lengths=st.lists(st.integers(2, 14), min_size=1, max_size=4),
    num_views=st.integers(2, 4),
    skip=st.integers(1, 3),
    stride=st.integers(1, 4),
)
def test_windows_are_all_that_fit_with_their_actions_added_up(
    lengths: list[int], num_views: int, skip: int, stride: int
) -> None:
    episodes = [video(frames, number) for number, frames in enumerate(lengths)]
    expected = []
    for number, (views, actions) in enumerate(episodes):
        start = 0
        while start + (num_views - 1) * skip < len(views):
            shown = [start + k * skip for k in range(num_views)]
            sums = [actions[a:b].sum(dim=0) for a, b in pairwise(shown)]
            expected.append((number, [int(views[i, 0, 0, 0]) for i in shown], sums))
            start += stride
    if not expected:
        with pytest.raises(ValueError, match=rf"the longest of {len(lengths)} episodes has {max(lengths)}\. Take"):
            EpisodeWindows(episodes, num_views=num_views, skip=skip, stride=stride)
        return
    windows = EpisodeWindows(episodes, num_views=num_views, skip=skip, stride=stride)
    assert len(windows) == len(expected)
    for i, (number, shown, sums) in enumerate(expected):
        assert windows.sources[i] == number
        assert windows[i].views[:, 0, 0, 0].tolist() == shown
        torch.testing.assert_close(windows[i].actions, torch.stack(sums))


def test_actions_of_a_skip_are_composed_by_the_group_and_parameters_follow_the_views() -> None:
    poses, group = Rotation3D.random(12, generator=torch.Generator().manual_seed(0)), Rotation3D()
    episode = ViewSequence(torch.rand(12, 3, 4, 4), group.actions(poses), poses, torch.tensor(7), group)
    windows = EpisodeWindows([episode], num_views=3, skip=4)
    for i in range(len(windows)):
        window = windows[i]
        torch.testing.assert_close(window.parameters, poses[[i, i + 4, i + 8]])
        there = group.apply(window.parameters[:-1], window.actions)
        assert group.distance(there, window.parameters[1:]).max() < 1e-3
        assert (window.labels, window.group) == (torch.tensor(7), group)


def test_parameters_by_name_are_cut_as_the_views_are() -> None:
    views, actions = video(6)
    episode = ViewSequence(views, actions, {"joints": torch.arange(6.0)})
    assert EpisodeWindows([episode], num_views=2, skip=3)[2].parameters["joints"].tolist() == [2, 5]


def test_no_frame_is_copied_before_a_batch_is_made() -> None:
    views, actions = torch.zeros(50, 3, 8, 8, dtype=torch.uint8), torch.zeros(49, 2)
    window = EpisodeWindows([(views, actions)], num_views=4, skip=3)[0]
    assert window.views.untyped_storage().data_ptr() == views.untyped_storage().data_ptr()


def test_windows_go_through_a_loader_into_features_that_know_their_episode() -> None:
    windows = EpisodeWindows([video(9, 1), video(4, 2), video(7, 3)], num_views=3, skip=2)
    loader = ViewLoader(windows, batch_size=4, shuffle=False, drop_last=False)
    features = extract(lambda views: views.flatten(2).mean(-1, keepdim=True), loader, sources=windows.sources)
    assert features.sources is not None
    assert features.sources.tolist() == [1 - 1] * 5 + [2] * 3  # the second episode is shorter than a window
    assert torch.equal((255 * features.z[:, 0, 0] / 50).round().long(), features.sources + 1)
    assert features.group == Translation(2)


@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=5))
def test_a_padded_sequence_is_predicted_as_it_is_alone(lengths: list[int]) -> None:
    torch.manual_seed(0)
    model = tiny_model().eval()
    sequences = [(torch.rand(n, 3, 8, 8), torch.randn(n - 1, 3)) for n in lengths]
    padded = pad_sequences(sequences)
    assert padded.mask.sum(1).tolist() == [n - 1 for n in lengths]
    out = model(*padded)
    for i, (views, actions) in enumerate(sequences):
        alone = model(views[None], actions[None])
        for name in ("prediction", "target", "state"):
            torch.testing.assert_close(getattr(out, name)[i], getattr(alone, name)[0], atol=1e-5, rtol=1e-4)


def test_whole_episodes_come_out_of_a_loader_of_torch_in_their_dtype() -> None:
    batch = next(iter(DataLoader([video(n) for n in (3, 5)], batch_size=2, collate_fn=pad_sequences)))  # type: ignore[arg-type]
    assert batch.views.dtype == torch.uint8
    assert batch.views[0, :, 0, 0, 0].tolist() == [0, 1, 2, 0, 0]
    assert batch.to("cpu").mask.tolist() == [[True, True, False, False], [True] * 4]


def cut(episodes: list[Any], **options: Any) -> EpisodeWindows:
    return EpisodeWindows(episodes, **{"num_views": 2, **options})


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda v, a: cut([(v, a[:-1])]), ValueError, r"episode 0 has \(5, 3, 2, 2\) and \(3, 2\)\.$"),
        (
            lambda v, a: cut([(v[:-1], a)]),
            ValueError,
            r"at its frame, drop the last; where it led to it, the first",
        ),
        (
            lambda v, a: cut([(v, a), (v, a.long())]),
            TypeError,
            r"episode 1 are torch.int64\. Numbers of buttons",
        ),
        (
            lambda v, a: cut([v]),
            TypeError,
            r"a pair \(views, actions\) or .* episode 0 is a Tensor",
        ),
        (lambda v, a: cut([(v.numpy(), a)]), TypeError, r"views of episode 0 must be a torch.Tensor; got a ndarray"),
        (
            lambda v, a: cut([(torch.zeros(5, 32, 40, 3), a)]),
            ValueError,
            r"views of episode 0 .*; \(5, 32, 40, 3\) looks like \(…, H, W, C\)\. .*\.permute\(0, 3, 1, 2\)",
        ),
        (
            lambda v, a: cut([(v, a)], group=Translation(3)),
            ValueError,
            r"has 3 numbers; those of episode 0 have 2",
        ),
        (lambda v, a: cut([(v, a)], skip=0), ValueError, r"skip must be at least 1; got 0"),
        (lambda v, a: cut([(v, a)], num_views=1), ValueError, r"num_views must be at least 2; got 1"),
        (lambda v, a: cut([]), ValueError, r"the longest of 0 episodes has 0"),
        (lambda v, a: pad_sequences([]), ValueError, r"at least one sequence; got none"),
        (lambda v, a: pad_sequences([(v, a), (v.float(), a)]), ValueError, r"uint8, those of sequence 1 .*float32"),
        (lambda v, a: pad_sequences([(v, a), (v, a[:, :1])]), ValueError, r"actions of sequence 0 are \(2,\) each"),
        (
            lambda v, a: cut([(v, a), (v, torch.where(torch.arange(4)[:, None] == 2, torch.nan, a))]),
            ValueError,
            r"action 2 of episode 1 is \[nan, nan\]\. Cut the episode there",
        ),
        (lambda v, a: pad_sequences([(v, a / 0)]), ValueError, r"Actions are finite; action 0 of sequence 0 is"),
        (lambda v, a: pad_sequences([(v[:1], a[:0])]), ValueError, r"n frames, at least 2, has the n − 1 actions"),
    ],
)
def test_what_is_no_video_with_actions_is_refused_in_words(
    make: Callable[[torch.Tensor, torch.Tensor], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make(*video(5))
