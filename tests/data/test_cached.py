"""Features of a frozen encoder on disk: their laws, what is refused, and calls that are cut off."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from seqjepa import SeqJEPA, ViewSequence
from seqjepa.data import RenderedObjects, ViewLoader, ViewPool, cache_features, cached
from seqjepa.groups import Rotation3D
from tests.disks import room_for

IMAGES = torch.randint(0, 256, (11, 3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trunk(seed: int = 0, width: int = 5) -> nn.Sequential:
    """With what differs between training and eval mode."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, width)
    )


def on_the_spot(encoder: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return encoder.eval()(images.flatten(0, 1).float() / 255).unflatten(0, images.shape[:2])


class Cut(nn.Module):
    """An encoder that fails after so many calls, and counts what it is asked for."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.left, self.seen = encoder, 1000, 0

    def forward(self, views: Tensor) -> Tensor:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.seen += len(views)
        return self.encoder(views)


@settings(max_examples=10)
@given(
    st.integers(1, 12), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), st.booleans(), st.booleans()
)
def test_the_file_holds_what_the_encoder_makes_on_the_spot_whatever_the_chunk(
    tmp_path_factory: pytest.TempPathFactory, chunk: int, dtype: torch.dtype, training: bool, floats: bool
) -> None:
    path = tmp_path_factory.mktemp("cache") / "features.safetensors"
    encoder = trunk().train(training)
    images = IMAGES.float() / 255 if floats else IMAGES
    features = cache_features(path, encoder, images, chunk=chunk, dtype=dtype)
    assert encoder.training == encoder[1].training == training
    torch.testing.assert_close(features, on_the_spot(encoder).to(dtype))
    with safe_open(path, framework="pt") as file:  # the format is safetensors' own
        assert torch.equal(file.get_tensor("features"), features)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_opening_computes_nothing_but_a_few_sources_and_a_change_stays_out_of_the_file(tmp_path: Path) -> None:
    encoder = Cut(trunk())
    images = IMAGES.repeat(10, 1, 1, 1, 1)
    features = cache_features(tmp_path / "f", encoder, images)
    encoder.seen = 0
    features[0] = 7.0
    again = cache_features(tmp_path / "f", encoder, images)
    assert encoder.seen <= 5 * 3
    assert torch.equal(again[1:], features[1:])
    assert not (again[0] == 7).any()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are put on the disk two at a time."""
    monkeypatch.setattr(cached, "SYNCED", 2)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("calls", [1, 2, 4, 6])
def test_what_is_interrupted_is_not_there_and_goes_on_where_it_stopped(tmp_path: Path, calls: int) -> None:
    path, encoder = tmp_path / "f", Cut(trunk())
    encoder.left = calls
    with pytest.raises(KeyboardInterrupt):
        cache_features(path, encoder, IMAGES, chunk=2)
    assert not path.exists()
    encoder.left, encoder.seen = 1000, 0
    features = cache_features(path, encoder, IMAGES, chunk=2)
    torch.testing.assert_close(features, on_the_spot(encoder.encoder).half())
    kept = max(calls - 2, 0) * 2  # one call is for the shape, and the last rows are not counted on
    assert encoder.seen <= 3 * (1 + 4 + 4 + len(IMAGES) - kept)
    assert not path.with_name("f.part").exists()


@pytest.mark.usefixtures("often")
def test_what_a_full_disk_cuts_off_is_gone_on_with_when_there_is_room(tmp_path: Path) -> None:
    encoder = Cut(trunk())
    whole = cache_features(tmp_path / "whole", encoder, IMAGES, chunk=2)
    size = (tmp_path / "whole").stat().st_size
    for room in (0, 10, size - 200, size - 61, size - 1):
        with room_for(room), pytest.raises(OSError, match="File too large"):
            cache_features(tmp_path / "f", encoder, IMAGES, chunk=2)
        assert not (tmp_path / "f").exists()
    encoder.seen = 0
    assert torch.equal(cache_features(tmp_path / "f", encoder, IMAGES, chunk=2), whole)
    assert encoder.seen < 3 * (1 + 4 + 4 + len(IMAGES))  # not all of it again


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_file_that_a_power_cut_left_is_gone_on_with(tmp_path: Path, chunk: int) -> None:
    path, part = tmp_path / "f", tmp_path / "f.part"
    whole = cache_features(path, trunk(), IMAGES, chunk=2).clone()
    held = path.read_bytes()
    for end in (0, 3, 100, len(held) - 61, len(held) - 30, len(held)):
        path.unlink(missing_ok=True)
        part.write_bytes(held[: max(end - 20, 0)] + b"\0" * (min(end, 20)))  # its last bytes were not written
        assert torch.equal(cache_features(path, trunk(), IMAGES, chunk=chunk), whole)


def test_what_was_made_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    cache_features(path, trunk(), IMAGES)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"f holds the features of something else: encoder Sequential \w+, not Seq"):
        cache_features(path, trunk(1), IMAGES)
    nearly = trunk()
    nearly.get_parameter("5.bias").data[0] += 1e-6
    with pytest.raises(ValueError, match="something else: encoder"):
        cache_features(path, nearly, IMAGES)
    with pytest.raises(ValueError, match=r"views of a source \(3, 3, 8, 8\), not \(2, 3, 8, 8\); features F16"):
        cache_features(path, trunk(), IMAGES[:, :2])
    with pytest.raises(ValueError, match=r"features F16 \(11, 3, 5\), not F32 \(11, 3, 5\).* a path of their own"):
        cache_features(path, trunk(), IMAGES, dtype=torch.float32)
    with pytest.raises(ValueError, match="sources 11, not 10"):
        cache_features(path, trunk(), IMAGES[:10])
    with pytest.raises(ValueError, match=r"not hold the features of these views: those of source \d+ differ by"):
        cache_features(path, trunk(), IMAGES.flip(0))
    half = nn.Sequential(trunk())
    with pytest.raises(ValueError, match="something else: encoder"):
        cache_features(path, half, IMAGES)
    assert path.read_bytes() == before
    path.rename(path.with_name("f.part"))
    with pytest.raises(ValueError, match=r"f\.part holds the features of something else: encoder"):
        cache_features(path, trunk(1), IMAGES)


def test_of_a_function_what_it_makes_is_compared(tmp_path: Path) -> None:
    encoder = trunk().eval()
    cache_features(tmp_path / "f", encoder.forward, IMAGES)
    with pytest.raises(ValueError, match=r"those of source 0 differ by \d+ %"):
        cache_features(tmp_path / "f", lambda views: encoder(1 - views), IMAGES)


def test_files_of_others_and_broken_ones_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"something else altogether")
    with pytest.raises(ValueError, match="holds no features that were computed here"):
        cache_features(path, trunk(), IMAGES)
    path.unlink()
    cache_features(path, trunk(), IMAGES)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"was cut off: it has \d+ bytes\. Delete it"):
        cache_features(path, trunk(), IMAGES)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk": 0}, ValueError, "chunk is a number of sources, at least 1; got 0"),
        ({"dtype": torch.int8}, ValueError, r"dtype must be one of torch.float16, .*; got torch.int8"),
        ({"views": []}, ValueError, "nothing to encode: views has length 0"),
        ({"views": IMAGES[0, 0, 0, 0]}, ValueError, r"views\[0\] is \(\)\. Give a single view an axis"),
        ({"views": [IMAGES[0], IMAGES[1, :2]]}, ValueError, r"\(3, 3, 8, 8\) as the first has; views\[1\] is \(2, 3"),
        ({"views": IMAGES.int()}, ValueError, r"uint8 or floating point; views\[0\] has torch.int32"),
        ({"encoder": lambda v: v.sum()}, ValueError, r"must map 3 views to \(3, \*F\); got \(\)"),
        (
            {"encoder": lambda v: 1e6 * v},
            ValueError,
            r"finite in torch.float16; those of source 0 .* dtype=torch.bfloat16",
        ),
        ({"path": "none/f"}, FileNotFoundError, r"none is not there; f would be written into it\. Make the folder"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"path": "f", "encoder": trunk(), "views": IMAGES} | options
    with pytest.raises(error, match=message):
        cache_features(tmp_path / given.pop("path"), given.pop("encoder"), given.pop("views"), **given)
    assert not (tmp_path / "f").exists()


def slow(path: Path, counts: Any) -> None:
    class Slow(nn.Module):
        def forward(self, views: Tensor) -> Tensor:
            time.sleep(0.02)
            with counts.get_lock():
                counts.value += len(views)
            return views.flatten(1)

    cache_features(path, Slow(), IMAGES, chunk=1)


def test_processes_that_call_together_compute_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    counts = fork.Value("i", 0)
    processes = [fork.Process(target=slow, args=(tmp_path / "f", counts)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert counts.value <= 3 * (len(IMAGES) + 3 * 5)  # once, and for each of them the shape and four to compare
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_sequences_are_cached_by_their_views_and_with_workers(tmp_path: Path) -> None:
    sequences = [ViewSequence(views, torch.zeros(2, 1)) for views in IMAGES]
    features = cache_features(tmp_path / "f", trunk(), sequences, chunk=3, num_workers=1)
    torch.testing.assert_close(features, on_the_spot(trunk()).half())


# ViewPool


def pool(dtype: torch.dtype = torch.float16, **options: Any) -> ViewPool:
    """Views that say which they are: source, number, and their pose."""
    generator = torch.Generator().manual_seed(0)
    poses = torch.stack([Rotation3D.random(6, generator=generator) for _ in range(9)])
    source, number = torch.meshgrid(torch.arange(9), torch.arange(6), indexing="ij")
    views = torch.stack([source, number], dim=-1).to(dtype)
    given: dict[str, Any] = {"num_views": 4, "labels": torch.arange(9) % 3}
    return ViewPool(views, poses, Rotation3D(), **given | options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_items_are_different_views_of_one_source_and_the_way_between_them(dtype: torch.dtype) -> None:
    held = pool(dtype)
    for views, actions, poses, labels, _ in ViewLoader(held, batch_size=3, seed=1):
        assert views.dtype == torch.float32
        source, number = views[..., 0].long(), views[..., 1].long()
        assert (source == source[:, :1]).all()
        assert all(len(set(row.tolist())) == 4 for row in number)
        assert isinstance(poses, Tensor)
        assert torch.equal(poses, held.elements[source, number])
        assert labels is not None
        assert torch.equal(labels, source[:, 0] % 3)
        torch.testing.assert_close(actions, Rotation3D().actions(poses))


def test_every_order_of_every_pair_comes_as_often_as_any_other() -> None:
    drawn = pool(num_views=2).sample(torch.zeros(6000, dtype=torch.long), generator=torch.Generator().manual_seed(0))
    pairs = (6 * drawn.views[:, 0, 1] + drawn.views[:, 1, 1]).long().bincount(minlength=36).view(6, 6)
    assert pairs.diagonal().sum() == 0
    others = pairs[~torch.eye(6, dtype=torch.bool)].float()
    assert (others - 200).abs().max() < 5 * 200**0.5


def test_images_of_bytes_become_floats_and_features_stay_what_they_are() -> None:
    views = torch.full((2, 3, 1, 2, 2), 51, dtype=torch.uint8)
    held = ViewPool(views, torch.eye(4)[:3].repeat(2, 1, 1), Rotation3D(), num_views=2)
    assert held[0].views.dtype == torch.uint8
    assert held.sample(torch.tensor([1])).views.unique().tolist() == [pytest.approx(0.2)]
    assert next(iter(ViewLoader(held, batch_size=2))).views.unique().tolist() == [pytest.approx(0.2)]


def test_an_adapter_learns_from_a_pool_what_it_would_learn_with_the_trunk_before_it(tmp_path: Path) -> None:
    objects = RenderedObjects(6, size=8)
    made = objects.sample(torch.arange(6), num_views=3, generator=torch.Generator().manual_seed(0))
    frozen, adapter = trunk(width=7).requires_grad_(False).eval(), nn.Linear(7, 8)
    features = cache_features(tmp_path / "f", frozen, made.views, dtype=torch.float32)
    held = ViewPool(features, made.parameters.rotation, objects.group, num_views=3)
    torch.manual_seed(0)
    model = SeqJEPA.from_encoder(adapter, action_dim=4, view_shape=(7,)).eval()
    assert not any(parameter.shape[0] == 64 for parameter in model.parameters())  # no trunk, nor a copy of it
    torch.manual_seed(0)
    whole = SeqJEPA.from_encoder(nn.Sequential(frozen, adapter), action_dim=4, view_shape=(3, 8, 8)).eval()
    whole.aggregator, whole.predictor, whole.embedder = model.aggregator, model.predictor, model.embedder
    drawn = torch.Generator().manual_seed(3)
    cached = held.sample(torch.arange(6), generator=drawn)
    images = ViewPool(made.views, made.parameters.rotation, objects.group, num_views=3)
    plain = images.sample(torch.arange(6), generator=torch.Generator().manual_seed(3))
    assert torch.equal(cached.actions, plain.actions)
    torch.testing.assert_close(model(*cached[:2]).loss, whole(*plain[:2]).loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_views": 1}, "num_views goes from 2 to 6, .* as none comes twice; got 1"),
        ({"num_views": 7}, "got 7"),
        ({"labels": torch.zeros(8)}, r"labels must be \(9,\), one for each source; got \(8,\)"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool(**options)


def test_poses_and_sources_that_do_not_fit_a_pool_are_refused() -> None:
    views, poses = torch.rand(3, 4, 5), torch.rand(3, 4, 4)
    with pytest.raises(ValueError, match=r"one N and one V; got \(3, 4, 5\) and \(3, 3, 4\)"):
        ViewPool(views, poses[:, :3], Rotation3D(), num_views=2)
    with pytest.raises(ValueError, match=r"elements have 4 numbers; got elements of shape \(3, 4, 2\)"):
        ViewPool(views, poses[..., :2], Rotation3D(), num_views=2)
    held = ViewPool(views, poses, Rotation3D(), num_views=2)
    with pytest.raises(ValueError, match="numbered from 0 to 2; got 1 to 3"):
        held.sample(torch.tensor([1, 3]))
    with pytest.raises(ValueError, match=r"instance must be \(B,\) whole numbers; got torch.float32"):
        held.sample(torch.ones(2))
    with pytest.raises(ValueError, match="goes from 2 to 4"):
        held.sample(torch.tensor([1]), num_views=5)
