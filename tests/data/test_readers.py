"""Readers of datasets, on tiny data in the true layout: what is read is what lies there, and errors name the file."""

import hashlib
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation
from torch import Tensor
from torchvision import datasets, transforms
from torchvision.transforms import functional as vision

from seqjepa.data._parameters import ObjectParameters
from seqjepa.data.collation import Sample
from seqjepa.data.loading import ViewLoader
from seqjepa.data.readers import (
    CenterCrop,
    ImageNet,
    RandomResizedCrop,
    ThreeDIEBench,
    TinyImageNet,
    WithSaliency,
    cifar100,
    stl10,
)  # fmt: skip
from seqjepa.data.readers._cache import SharedTensor
from seqjepa.data.saccades import SaccadeViews
from seqjepa.groups import Product, Rotation3D

RECORDED = Path(__file__).parent.parent / "recordings" / "data_3diebench_latents.pt"
OBJECTS = [f"{synset}/{name:032x}" for synset in ("02691156", "03001627", "04530566") for name in range(5)]
VIEWS = 6
RAMP_MAP = torch.linspace(0.1, 1, 256).view(1, 16, 16)
BLANK = torch.zeros(3, 16, 16, dtype=torch.uint8)


def grey(level: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def write_object(folder: Path, number: int, latents: np.ndarray, size: int = 16) -> None:
    folder.mkdir(parents=True)
    for k, latent in enumerate(latents):
        grey(10 * number + k, (size, size)).save(folder / f"image_{k}.jpg", quality=95)
        np.save(folder / f"latent_{k}.npy", latent)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """15 objects of 3 synsets with 6 views; view k of object n is grey of level 10 n + k."""
    root = tmp_path / "3DIEBench"
    latents = np.random.default_rng(0).uniform(-1.5, 1.5, (len(OBJECTS), VIEWS, 7))
    for number, name in enumerate(OBJECTS):
        write_object(root / name, number, latents[number])
    (root / "LICENSE").write_text("words")
    return root


def write_index(folder: Path, entries: list[str], labels: list[int], split: str = "train") -> None:
    np.save(folder / f"{split}_images.npy", np.array(entries))
    np.save(folder / f"{split}_labels.npy", np.array(labels))


def read(root: Path, split: str = "train", **settings: Any) -> ThreeDIEBench:
    return ThreeDIEBench(root, split, **{"num_views": 3, "size": None, "views_per_object": VIEWS, **settings})


def level(image: Tensor) -> int:
    return round(image.float().mean().item())


# 3DIEBench: what is read


def test_actions_are_the_released_ones_but_for_their_canonical_form(tmp_path: Path) -> None:
    recorded = torch.load(RECORDED, weights_only=True)
    write_object(tmp_path / "02691156" / "a", 0, recorded["latents_50x7"].double().numpy())
    names = {
        "rot": ("rotation",),
        "color": ("floor_hue", "light_hue"),
        "rotcolor": ("rotation", "floor_hue", "light_hue"),
        "all": ("rotation", "floor_hue", "light_theta", "light_phi", "light_hue"),
    }
    compared = 0
    for case in recorded["cases"]:
        if case["experience"] != "quat":
            continue
        parts = names[case["latent_type"]]
        dataset = ThreeDIEBench(tmp_path, num_views=4, size=16, actions=parts)
        views, actions, parameters, label, group = dataset.views(0, case["views"].tolist())
        expected, absolute = case["rel_latents"].clone(), case["latents"].clone()
        if case["latent_type"] == "all":  # the released code appends the change of the quaternion's w as well
            expected = torch.cat([expected[:, :4], expected[:, 5:]], dim=1)
        columns = torch.cat([getattr(parameters, part).view(4, -1) for part in parts], dim=1)
        at = 0
        for part in parts:
            if part == "rotation":
                expected[:, :4] *= torch.where(expected[:, 3:4] < 0, -1, 1)
                absolute[:, :4] *= torch.where(absolute[:, 3:4] < 0, -1, 1)
            elif part.endswith("hue"):
                expected[:, at] = torch.remainder(expected[:, at] + 0.5, 1) - 0.5
            elif part == "light_phi":
                expected[:, at] = torch.remainder(expected[:, at] + torch.pi, 2 * torch.pi) - torch.pi
            at += 4 if part == "rotation" else 1
        torch.testing.assert_close(actions, expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(columns, absolute, atol=2e-6, rtol=0)
        assert label is not None
        assert (views.shape, views.dtype, int(label)) == ((4, 3, 16, 16), torch.uint8, 0)
        assert group.dim == actions.shape[1]
        compared += 1
    assert compared == 4


def test_the_rotation_is_scipy_s_extrinsic_xyz(bench: Path) -> None:
    dataset = read(bench)
    item = dataset.views(2, range(VIEWS))
    folder = bench / dataset.objects[2]
    angles = np.stack([np.load(folder / f"latent_{k}.npy") for k in range(VIEWS)])
    rotations = Rotation.from_euler("xyz", angles[:, :3])
    relative = torch.from_numpy((rotations[:-1].inv() * rotations[1:]).as_quat(canonical=True)).float()
    torch.testing.assert_close(item.actions, relative, atol=1e-6, rtol=0)
    assert isinstance(item.parameters, ObjectParameters)
    rest = torch.from_numpy(angles[:, 3:]).float()
    torch.testing.assert_close(torch.stack(item.parameters[1:5], dim=1), rest[:, [0, 3, 1, 2]])
    assert isinstance(item.group, Rotation3D)


def test_a_view_and_its_latent_belong_together(bench: Path) -> None:
    dataset = read(bench, actions=("rotation", "floor_hue", "light_hue"))
    for index in (0, 4, len(dataset) - 1):
        item = dataset[index]
        number = OBJECTS.index(dataset.objects[index])
        for image, hue in zip(item.views, item.parameters.floor_hue, strict=True):
            k = level(image) - 10 * number
            assert 0 <= k < VIEWS
            assert hue == pytest.approx(np.load(bench / OBJECTS[number] / f"latent_{k}.npy")[3])
        assert len({level(image) for image in item.views}) == 3  # never the same view twice
        assert int(item.parameters.instance) == index
        assert item.actions.shape == (2, 6)
        assert isinstance(item.group, Product)


@pytest.mark.parametrize("style", [
    "/{0}", "{0}", "3DIEBench/{0}", "/some/where/{0}/", ".\\{1}", "C:\\data\\{1}", "3DIEBench\\{1}",
])  # fmt: skip
def test_the_index_may_write_its_paths_in_any_style(bench: Path, style: str) -> None:
    chosen = [OBJECTS[7], OBJECTS[2]]
    write_index(bench, [style.format(name, name.replace("/", "\\")) for name in chosen], [42, 7])
    dataset = read(bench)
    assert dataset.objects == chosen
    assert dataset.labels.tolist() == [42, 7]
    assert level(dataset.views(0, [3]).views) == 73


def test_the_index_may_lie_elsewhere_and_serve_the_ood_set_too(bench: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    write_index(index, [f"/{name}" for name in OBJECTS[:10]], [0] * 5 + [1] * 5)
    write_index(index, [f"/{name}" for name in OBJECTS[10:]], [2] * 5, "val")
    ood = tmp_path / "3DIEBench-OOD"
    shutil.copytree(bench, ood)
    for root in (bench, ood):
        assert read(root, index=index).objects == OBJECTS[:10]
        assert read(root, "val", index=index).labels.tolist() == [2] * 5


def test_without_an_index_the_folders_are_split_by_the_objects_names_alone(bench: Path) -> None:
    train, val = read(bench), read(bench, "val")
    assert sorted(train.objects + val.objects) == OBJECTS
    assert [name.split("/")[0] for name in val.objects] == ["02691156", "03001627", "04530566"]  # a fifth of each
    assert val.labels.tolist() == [0, 1, 2]
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    write_object(bench / "01234567" / "new", 0, np.zeros((VIEWS, 7)))
    assert read(bench, "val").objects == val.objects  # other classes change nothing
    assert len(read(bench, "val", val_share=0.4)) == 6
    assert set(val.objects) < set(read(bench, "val", val_share=0.4).objects)


def test_views_are_resized_as_torchvision_does_it(tmp_path: Path) -> None:
    folder = tmp_path / "02691156" / "a"
    write_object(folder, 0, np.zeros((2, 7)))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for k in range(2):
        noise.save(folder / f"image_{k}.jpg", quality=95)
    item = ThreeDIEBench(tmp_path, num_views=2, size=24, views_per_object=2)[0]
    with Image.open(folder / "image_0.jpg") as image:
        resized = vision.pil_to_tensor(transforms.Resize(24)(image))
    assert (item.views[0].int() - resized.int()).abs().max() <= 1


def test_items_repeat_by_seed_and_epoch_whatever_the_workers(bench: Path) -> None:
    def labels_and_levels(workers: int, cache: str | None = None) -> list[Tensor]:
        loader = ViewLoader(read(bench, cache=cache), batch_size=4, seed=1, num_workers=workers)
        return [torch.cat([b.views.mean((2, 3, 4)), b.actions.flatten(1)], 1) for _ in range(2) for b in loader]

    expected = labels_and_levels(0)
    torch.testing.assert_close(labels_and_levels(2), expected, rtol=0, atol=0)
    torch.testing.assert_close(labels_and_levels(2, "memory"), expected, rtol=0, atol=0)
    assert torch.cat(expected).unique(dim=0).shape[0] == 24
    dataset = read(bench)
    first = dataset[3].views
    assert torch.equal(first, dataset[3].views)
    epochs = []
    for epoch in range(5):
        dataset.set_epoch(epoch)
        epochs.append(dataset[3].views)
    assert torch.equal(epochs[0], first)
    assert torch.stack(epochs).unique(dim=0).shape[0] > 1


def test_sample_draws_batches_as_the_renderer_does(bench: Path) -> None:
    dataset = read(bench)
    batch = dataset.sample(torch.tensor([3, 0, 3]), num_views=4, generator=torch.Generator().manual_seed(0))
    again = dataset.sample([3, 0, 3], num_views=4, generator=torch.Generator().manual_seed(0))
    assert batch.views.shape == (3, 4, 3, 16, 16)
    assert batch.views.dtype == torch.float32
    assert isinstance(batch.parameters, ObjectParameters)
    assert batch.parameters.instance.tolist() == [3, 0, 3]
    assert batch.parameters.rotation.shape == (3, 4, 4)
    assert torch.equal(batch.views, again.views)
    assert not torch.equal(batch.views[0], batch.views[2])
    assert 0 < batch.views.max() <= 1
    group = batch.group
    torch.testing.assert_close(group.actions(batch.parameters.rotation), batch.actions)
    assert dataset.sample([1]).views.shape[1] == 3


@pytest.mark.parametrize("names", [("rotation",), ("light_hue", "rotation", "light_phi"), ("floor_hue",)])
def test_actions_are_taken_from_the_elements_in_the_order_of_the_names(bench: Path, names: tuple[str, ...]) -> None:
    dataset = read(bench, actions=names)
    batch, item = dataset.sample([3, 0], generator=torch.Generator().manual_seed(0)), dataset.views(2, [0, 4])
    for sequence, shape in ((batch, (2, 3)), (item, (2,))):
        elements = dataset.elements(sequence.parameters)
        assert elements.shape == (*shape, dataset.group.dim)
        assert torch.equal(dataset.group.actions(elements), sequence.actions)
        parts = dataset.group.split(elements) if isinstance(dataset.group, Product) else {names[0]: elements}
        for name in names:
            part = getattr(sequence.parameters, name)
            assert torch.equal(parts[name], part if name == "rotation" else part[..., None])


def test_a_single_view_is_read_without_an_action(bench: Path) -> None:
    item = read(bench).views(1, [2])
    assert (item.views.shape, item.actions.shape) == ((1, 3, 16, 16), (0, 4))


# 3DIEBench: caches


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_cache_changes_nothing_but_the_time(bench: Path, tmp_path: Path, where: str) -> None:
    cache = where if where == "memory" else str(tmp_path)
    plain, cached = read(bench, size=8), read(bench, size=8, cache=cache)
    for index in range(len(plain)):
        for _ in range(2):
            assert torch.equal(plain.views(index, range(VIEWS)).views, cached.views(index, range(VIEWS)).views)
    grey(255).save(bench / cached.objects[5] / "image_2.jpg")  # none of those that are compared on opening
    assert level(plain.views(5, [2]).views) == 255
    assert level(cached.views(5, [2]).views) < 200
    copy = pickle.loads(pickle.dumps(cached))  # as for a spawned worker
    assert torch.equal(copy.views(0, [1, 2]).views, plain.views(0, [1, 2]).views)
    assert level(copy.views(5, [2]).views) == (255 if where == "memory" else level(cached.views(5, [2]).views))
    views = cached.views(3, [0]).views
    views.zero_()  # an item is the caller's own
    assert level(cached.views(3, [0]).views) == level(plain.views(3, [0]).views)


def test_a_cache_file_is_reused_and_told_from_others(bench: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    read(bench, cache=folder)
    (file,) = folder.iterdir()
    before = file.stat().st_mtime_ns
    read(bench, cache=folder)
    assert file.stat().st_mtime_ns == before
    read(bench, "val", cache=folder)
    read(bench, size=8, cache=folder)
    assert len(list(folder.iterdir())) == 3
    assert np.load(file, allow_pickle=False).shape == (12 * VIEWS, 3, 16, 16)


def test_caches_of_datasets_with_the_same_names_share_a_folder(bench: Path, tmp_path: Path) -> None:
    ood, moved, folder = tmp_path / "3DIEBench-OOD", tmp_path / "moved", tmp_path / "cache"
    folder.mkdir()
    for number, name in enumerate(OBJECTS):
        write_object(ood / name, number + 5, np.random.default_rng(number).uniform(1.6, 3, (VIEWS, 7)))
    for root in (bench, ood):
        plain, cached = read(root), read(root, cache=folder)
        assert all(torch.equal(plain.views(i, [1]).views, cached.views(i, [1]).views) for i in range(len(plain)))
    assert len(list(folder.iterdir())) == 2
    shutil.move(bench, moved)
    read(moved, cache=folder)
    assert len(list(folder.iterdir())) == 2  # the same data elsewhere has the same cache


def test_a_cache_that_does_not_fit_is_refused(bench: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    first = read(bench, cache=folder)
    (file,) = folder.iterdir()
    grey(255).save(bench / first.objects[0] / "image_0.jpg")
    with pytest.raises(
        ValueError, match=r"does not hold the images.*image 0 differs by 25\d levels.*a folder of its own.*delete it"
    ):
        read(bench, cache=folder)
    grey(0).save(bench / first.objects[0] / "image_0.jpg", quality=95)
    read(bench, cache=folder)
    grey(255).save(bench / first.objects[-1] / f"image_{VIEWS - 1}.jpg")
    with pytest.raises(ValueError, match=r"does not hold the images that the dataset has: image 71 differs"):
        read(bench, cache=folder)
    np.save(file, np.zeros((5, 3, 16, 16), np.uint8))
    with pytest.raises(ValueError, match=r"should hold \(72, 3, 16, 16\) uint8; it holds \(5, 3, 16, 16\) uint8"):
        read(bench, cache=folder)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"should be a cache of decoded images in NumPy's format"):
        read(bench, cache=folder)
    with pytest.raises(FileNotFoundError, match="cache must be 'memory' or a folder that exists; got 'nowhere'"):
        read(bench, cache="nowhere")


def test_a_cache_is_complete_or_not_there(bench: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    broken = bench / read(bench).objects[8] / "image_4.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"image_4\.jpg should be an image"):
        read(bench, cache=folder)
    assert list(folder.iterdir()) == []
    grey(1, (20, 20)).save(broken)
    with pytest.raises(
        ValueError, match=r"images of one size, \(3, 16, 16\); image \d+ has \(3, 20, 20\)\. Pass size="
    ):
        read(bench, cache=folder)
    assert list(folder.iterdir()) == []
    assert len(read(bench, size=16, cache=folder)) == 12


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_cache_file_may_be_read_by_whom_the_umask_lets_read(
    bench: Path, tmp_path: Path, umask: int, mode: int
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    before = os.umask(umask)
    try:
        read(bench, cache=folder)
    finally:
        os.umask(before)
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == mode


def test_a_cache_larger_than_any_memory_says_how_large() -> None:
    with pytest.raises(MemoryError, match=r"A cache of \(2251799813685248,\) torch\.uint8 needs 2251799\.8 GB"):
        SharedTensor((2**51,), torch.uint8)


# 3DIEBench: what is refused


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(("file", "breaks", "error", "message"), [
    ("image_2.jpg", truncate, ValueError, "should be an image and cannot be decoded: [Tt]runcated"),
    ("image_2.jpg", lambda p: p.write_bytes(b"nonsense" * 9), ValueError, "cannot be decoded: no format is recognised"),
    ("image_2.jpg", lambda p: p.write_bytes(b""), ValueError, "should be an image, and is empty"),
    ("image_2.jpg", os.remove, FileNotFoundError, r"is missing: an object has image_0\.jpg to image_5\.jpg"),
    ("latent_2.npy", os.remove, FileNotFoundError, "is missing; a latent, 7 numbers, should be there"),
    ("latent_2.npy", lambda p: np.save(p, np.zeros(3)), ValueError, r"7 floating-point numbers; it holds float64 of"),
    ("latent_2.npy", lambda p: np.save(p, np.zeros(7, int)), ValueError, r"it holds int64 of shape \(7,\)"),
    ("latent_2.npy", lambda p: np.save(p, np.full(7, np.nan)), ValueError, "7 finite numbers; it holds"),
    ("latent_2.npy", lambda p: np.save(p, np.array([{}] * 7)), ValueError, "without pickled objects; reading it gave"),
    ("latent_2.npy", lambda p: p.write_bytes(b""), ValueError, "should be a latent, 7 numbers, in NumPy's format"),
    ("latent_2.npy", lambda p: p.write_bytes(p.read_bytes()[:-9]), ValueError, "in NumPy's format"),
])  # fmt: skip
def test_a_broken_view_is_named_by_its_path(
    bench: Path, file: str, breaks: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    dataset = read(bench)
    path = bench / dataset.objects[1] / file
    breaks(path)
    with pytest.raises(error, match=f"{path}.*{message}"):
        dataset.views(1, range(VIEWS))
    assert dataset.views(0, range(VIEWS)).views.shape == (VIEWS, 3, 16, 16)


def test_an_index_that_does_not_fit_is_refused(bench: Path) -> None:
    write_index(bench, [f"/{OBJECTS[0]}", "/02691156/lost", "/99999999/lost"], [0, 0, 1])
    with pytest.raises(FileNotFoundError, match=r"names 2 objects of 3 that are not in .*, first 02691156/lost"):
        read(bench)
    write_index(bench, [f"/{OBJECTS[0]}"], [0, 1])
    with pytest.raises(ValueError, match=r"a whole number for each of the 1 objects .* it holds int64 of shape \(2,\)"):
        read(bench)
    np.save(bench / "train_labels.npy", np.array(["chair"]))
    with pytest.raises(ValueError, match=r"train_labels\.npy should hold a whole number"):
        read(bench)
    for entry in ("lonely", "../../etc", "02691156/.."):
        write_index(bench, [entry], [0])
        with pytest.raises(ValueError, match=r"should list objects as synset/object; it holds"):
            read(bench)
    write_index(bench, [], [])
    with pytest.raises(ValueError, match=r"should list objects, \(N,\) strings; it holds float64 \(0,\)"):
        read(bench)
    np.save(bench / "train_images.npy", np.array([["a", {}]], dtype=object))
    with pytest.raises(ValueError, match=r"train_images\.npy should be a part of the index .* without pickled objects"):
        read(bench)
    (bench / "train_images.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_images\.npy is missing; a part of the index"):
        read(bench)
    with pytest.raises(FileNotFoundError, match=r"val_images\.npy is missing"):
        read(bench, "val", index=bench)


@pytest.mark.parametrize("lost", ["train_images", "train_labels", "val_images", "val_labels", "val_", "train_"])
def test_a_part_of_an_index_is_not_made_up_for_by_walking(bench: Path, lost: str) -> None:
    write_index(bench, OBJECTS[:10], [0] * 10)
    write_index(bench, OBJECTS[10:], [1] * 5, "val")
    for file in bench.glob(f"{lost}*.npy"):
        file.unlink()
    whole, broken = ("train", "val") if lost.startswith("val") else ("val", "train")
    assert set(read(bench, whole).objects) <= set(OBJECTS)
    with pytest.raises(FileNotFoundError, match=rf"{lost}.*npy is missing; a part of the index .*, as .*\.npy is\. A"):
        read(bench, broken)
    for file in bench.glob("*.npy"):
        file.unlink()
    assert not set(read(bench).objects) & set(read(bench, "val").objects)


@pytest.mark.parametrize("default", ["device", "dtype"])
def test_reading_is_work_of_the_cpu_whatever_torch_s_defaults_are(
    bench: Path, imagenet: Path, tiny: Path, default: str
) -> None:
    def items() -> list[Any]:
        crop = RandomResizedCrop(8)
        return [
            read(bench, cache="memory")[3], read(bench).sample([1, 2], generator=torch.Generator().manual_seed(0)),
            ImageNet(imagenet / "images", saliency=imagenet / "maps", crop=crop)[1], TinyImageNet(tiny)[2],
            WithSaliency([(BLANK, 1)], RAMP_MAP, crop=crop)[0],
            read(bench).labels, ImageNet(imagenet / "images").labels, TinyImageNet(tiny).labels,
        ]  # fmt: skip

    expected = items()
    try:
        if default == "device":
            torch.set_default_device("meta")  # stands in for a GPU
        else:
            torch.set_default_dtype(torch.float64)
        found = items()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, Tensor):
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(tuple(one)[:4], tuple(other)[:4], rtol=0, atol=0)


def test_folders_and_settings_that_cannot_work_are_refused(bench: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    with pytest.raises(FileNotFoundError, match=r"empty is not a folder; 3DIEBench.*Get 3DIEBench from github\.com"):
        read(empty)
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="empty is empty; 3DIEBench"):
        read(empty)
    (empty / "LICENSE").write_text("words")
    with pytest.raises(FileNotFoundError, match=r"has no objects for the train split; folders synset/object"):
        read(empty)
    cases: dict[str, tuple[Any, str]] = {
        "num_views": (1, "from 2 to views_per_object, 6, .*; got 1"),
        "num_views ": (7, "from 2 to views_per_object, 6, .*; got 7"),
        "size": (0, "at least 1 pixel, or None; got 0"),
        "val_share": (1.0, r"val_share must lie between 0 and 1; got 1\.0"),
        "actions": (("rotation", "hue"), r"out of 'rotation', 'floor_hue', .*; got \('rotation', 'hue'\)"),
        "actions ": ((), r"each at most once.*; got \(\)"),
        "actions  ": (("rotation", "rotation"), "each at most once"),
        "actions   ": ("rotation", "actions is a tuple of names.*; got 'rotation'"),
    }
    for name, (value, message) in cases.items():
        setting: dict[str, Any] = {name.strip(): value}
        with pytest.raises(ValueError, match=message):
            read(bench, **setting)
    with pytest.raises(ValueError, match="split must be one of 'train', 'val'; got 'test'"):
        read(bench, "test")
    for which in ([], [6], [-1]):
        with pytest.raises(ValueError, match=r"Views count from 0 to 5; got \["):
            read(bench).views(0, which)
    with pytest.raises(ValueError, match="num_views goes from 2 to 6; got 7"):
        read(bench).sample([0], num_views=7)
    for name in ("num_views", "size", "views_per_object"):
        setting = {name: 2.5}
        with pytest.raises(TypeError, match=rf"{name} must be a whole number; got 2\.5"):
            read(bench, **setting)
    dataset = read(bench)
    for absent in (12, -1):
        with pytest.raises(ValueError, match=f"Objects are numbered from 0 to 11; got {absent}"):
            dataset.sample([3, absent])
        with pytest.raises(ValueError, match=f"Objects are numbered from 0 to 11; got {absent}"):
            dataset.views(absent, [0, 1])
    wrong: list[Any] = [[], [0.5], torch.tensor(3)]
    for instance in wrong:
        with pytest.raises(ValueError, match=r"instance must be \(B,\) whole numbers, at least one; got torch"):
            dataset.sample(instance)


# Crops of image and saliency


@given(height=st.integers(1, 200), width=st.integers(1, 200), seed=st.integers(0, 99))
def test_a_random_window_lies_in_the_image_and_keeps_its_bounds(height: int, width: int, seed: int) -> None:
    crop = RandomResizedCrop(8, scale=(0.2, 0.9), ratio=(0.5, 2.0))
    top, left, h, w = crop.window(height, width, generator=torch.Generator().manual_seed(seed))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0
    assert w > 0
    if 60 < height < 2 * width < 4 * height and width > 60:  # large enough that rounding to pixels is small
        assert 0.19 < h * w / (height * width) < 0.92
        assert 0.48 < w / h < 2.1


def test_random_windows_are_distributed_as_torchvision_s() -> None:
    crop, generator = RandomResizedCrop(8, scale=(0.2, 1.0)), torch.Generator().manual_seed(0)
    ours = torch.tensor([crop.window(60, 80, generator=generator) for _ in range(4000)], dtype=torch.float64)
    image = torch.zeros(3, 60, 80)
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)],
        dtype=torch.float64,
    )
    tolerance = 5 * (2 / 4000) ** 0.5 * theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < tolerance).all()
    assert ((ours.std(0) / theirs.std(0) - 1).abs() < 0.08).all()


def test_random_windows_reach_all_edges_and_are_as_often_high_as_wide() -> None:
    crop, generator = RandomResizedCrop(8, scale=(0.1, 0.4), ratio=(0.25, 4.0)), torch.Generator().manual_seed(0)
    windows = torch.tensor([crop.window(40, 40, generator=generator) for _ in range(2000)])
    top, left, h, w = windows.unbind(1)
    assert min(top) == min(left) == 0
    assert max(top + h) == max(left + w) == 40
    small = RandomResizedCrop(8, scale=(0.3, 0.4), ratio=(1.0, 1.0))
    starts = Counter(small.window(4, 4, generator=generator)[0] for _ in range(900))  # 2 of 4 pixels
    assert all(abs(starts[start] - 300) < 75 for start in range(3))
    assert abs((h > w).float().mean() - (w > h).float().mean()) < 0.1


def test_a_crop_s_pixels_are_torchvision_s() -> None:
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    crop = RandomResizedCrop(24)
    cropped, none = crop(image, generator=torch.Generator().manual_seed(3))
    window = crop.window(60, 80, generator=torch.Generator().manual_seed(3))
    expected = vision.resized_crop(image, *window, [24, 24], antialias=True)
    assert (cropped.int() - expected.int()).abs().max() <= 1
    assert none is None
    centre, _ = CenterCrop(32, share=32 / 60)(image)
    assert torch.equal(centre, vision.center_crop(image, [32, 32]))
    assert CenterCrop(24)(image[:, :30])[0].shape == (3, 24, 24)
    usual, _ = CenterCrop(28)(image[:, :32, :32])  # a side of 7/8
    assert torch.equal(usual, image[:, 2:30, 2:30])


def test_image_and_saliency_are_cropped_together() -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        row, column = int(torch.randint(24, 40, (), generator=generator)), int(
            torch.randint(24, 56, (), generator=generator)
        )  # fmt: skip
        image, saliency = torch.zeros(1, 64, 80, dtype=torch.uint8), torch.zeros(64, 80)
        image[0, row - 2 : row + 3, column - 2 : column + 3], saliency[row - 2 : row + 3, column - 2 : column + 3] = (
            255,
            1,
        )
        crop = RandomResizedCrop(32, scale=(0.6, 1.0))
        picture, cropped = crop(image, saliency, generator=torch.Generator().manual_seed(seed))
        assert cropped is not None
        torch.testing.assert_close(picture[0].float() / 255, cropped, atol=2 / 255, rtol=0)
        assert cropped.min() >= 0


def test_where_nothing_in_the_crop_is_salient_the_eye_may_go_anywhere() -> None:
    saliency = torch.zeros(60, 60)
    saliency[0, 0] = 1
    _, cropped = CenterCrop(8, share=0.5)(torch.zeros(3, 60, 60, dtype=torch.uint8), saliency)
    assert cropped is not None
    assert torch.equal(cropped, torch.ones(8, 8))


def test_crops_that_cannot_be_cut_are_refused() -> None:
    for crop in (RandomResizedCrop, CenterCrop):
        with pytest.raises(ValueError, match="size is at least 1 pixel; got 0"):
            crop(0)
        with pytest.raises(ValueError, match=r"the size \(H, W\) of its image, \(8, 8\); got \(8, 9\)"):
            crop(4)(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(8, 9))
    with pytest.raises(ValueError, match=r"share lies in \(0, 1\]; got 1\.5"):
        CenterCrop(4, share=1.5)
    for settings in ({"scale": (0.0, 1.0)}, {"scale": (0.5, 1.1)}, {"scale": (0.9, 0.5)}, {"ratio": (2.0, 1.0)}):
        with pytest.raises(ValueError, match=r"scale is a range in \(0, 1\], ratio one above 0; got scale="):
            RandomResizedCrop(4, **settings)


# Saliency for any dataset


@pytest.fixture
def maps() -> Tensor:
    return torch.rand(6, 12, 12) + 0.01


@pytest.mark.parametrize("form", [".npy", ".npy with channels", ".pt", ".safetensors", "tensor"])
def test_maps_come_in_any_safe_form_and_stay_with_their_images(tmp_path: Path, maps: Tensor, form: str) -> None:
    path: Any = tmp_path / f"maps{form.split(' ')[0]}"
    if form.startswith(".npy"):
        np.save(path, (maps[:, None] if "channels" in form else maps).numpy())
    elif form == ".pt":
        torch.save(maps, path)
    elif form == ".safetensors":
        save_file({"saliency": maps}, path)
    else:
        path = maps
    images = [(torch.full((3, 12, 12), i, dtype=torch.uint8), i) for i in range(6)]
    dataset = WithSaliency(images, path)
    for copy in (dataset, pickle.loads(pickle.dumps(dataset))):
        for i in range(6):
            item = copy[i]
            assert isinstance(item, Sample)
            assert (int(item.image[0, 0, 0]), item.label) == (i, i)
            torch.testing.assert_close(item.saliency, maps[i])


def test_saccades_fixate_where_the_file_s_saliency_lies_through_loader_and_crop(maps: Tensor) -> None:
    images, saliency = torch.zeros(8, 1, 64, 64, dtype=torch.uint8), torch.zeros(8, 64, 64)
    for i in range(8):
        row, column = 16 + 4 * i, 44 - 4 * i
        images[i, :, row - 1 : row + 2, column - 1 : column + 2] = 255
        saliency[i, row, column] = 1
    dataset = WithSaliency(list(images), saliency, crop=RandomResizedCrop(64, scale=(0.9, 1.0), ratio=(1.0, 1.0)))
    loader = ViewLoader(dataset, SaccadeViews(num_views=2, fovea=9, padding="reflect"), batch_size=8, num_workers=1)
    batch = next(iter(loader))
    assert (batch.views[:, 0, 0, 4, 4] > 0.5).all()  # the bright spot is in the middle of the first patch
    loader.set_epoch(0)
    assert torch.equal(next(iter(loader)).views, batch.views)


def test_maps_of_another_resolution_are_resized_and_of_another_shape_refused(tmp_path: Path) -> None:
    images = [torch.zeros(3, 96, 128, dtype=torch.uint8)]
    saliency = torch.linspace(0, 1, 48)[:, None].mul(torch.linspace(0, 1, 64))[None]
    fitted = WithSaliency(images, saliency)[0].saliency
    assert fitted.shape == (96, 128)
    torch.testing.assert_close(fitted.unfold(0, 2, 2).unfold(1, 2, 2).mean((2, 3)), saliency[0], atol=0.01, rtol=0)
    with pytest.raises(ValueError, match=r"the tensor, map 0 is 48 × 48 for an image of 96 × 128. Was it computed on"):
        WithSaliency(images, saliency[:, :, :48])[0]


@pytest.mark.parametrize(("value", "message"), [
    (torch.nan, "goes from nan to nan"), (-0.5, "goes from -0.5 to"), (torch.inf, "goes from .* to inf"),
])  # fmt: skip
def test_maps_that_are_no_weights_are_refused(tmp_path: Path, maps: Tensor, value: float, message: str) -> None:
    images = [torch.zeros(3, 12, 12, dtype=torch.uint8)] * 6
    maps[3, 4, 5] = value
    np.save(tmp_path / "maps.npy", maps.numpy())
    dataset = WithSaliency(images, tmp_path / "maps.npy")
    dataset[2]
    with pytest.raises(ValueError, match=rf"finite, at least 0, and above 0 somewhere; .*maps\.npy, map 3 {message}"):
        dataset[3]
    maps[3] = 0
    with pytest.raises(ValueError, match="map 3 goes from 0 to 0"):
        WithSaliency(images, maps)[3]


def test_saliency_files_that_do_not_fit_are_refused(tmp_path: Path, maps: Tensor) -> None:
    images = [torch.zeros(3, 12, 12, dtype=torch.uint8)] * 5
    with pytest.raises(ValueError, match=r"the tensor has 6 maps for 5 images. Is it that of another split"):
        WithSaliency(images, maps)
    with pytest.raises(ValueError, match=r"have the axes \(N, H, W\) or \(N, 1, H, W\); the tensor has \(12, 12\)"):
        WithSaliency(images, maps[0])
    with pytest.raises(ValueError, match=r"the tensor has \(3, 2, 12, 12\)"):
        WithSaliency(images, maps.reshape(3, 2, 12, 12))
    with pytest.raises(FileNotFoundError, match=r"lost\.npy is missing; saliency maps \(N, H, W\) should be there"):
        WithSaliency(images, tmp_path / "lost.npy")
    np.save(tmp_path / "objects.npy", np.array([{}] * 5))
    with pytest.raises(ValueError, match=r"objects\.npy should be saliency maps .* without pickled objects"):
        WithSaliency(images, tmp_path / "objects.npy")
    (tmp_path / "maps.mat").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"maps\.mat"):
        WithSaliency(images, tmp_path / "maps.mat")


# ImageNet


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Two classes of three images, 24 × 32, level 40 class + 10 number; maps whose brightest column is the number."""
    for c, wnid in enumerate(("n01440764", "n01443537")):
        (tmp_path / "images" / "train" / wnid).mkdir(parents=True)
        (tmp_path / "maps" / "train" / wnid).mkdir(parents=True)
        for k in range(3):
            grey(40 * c + 10 * k, (32, 24)).save(tmp_path / "images" / "train" / wnid / f"{wnid}_{k}.JPEG")
            saliency = np.full((24, 32), 0.1, np.float32)
            saliency[:, k] = 1
            np.save(tmp_path / "maps" / "train" / wnid / f"{wnid}_{k}_sal.npy", saliency)
    return tmp_path


def save_map(path: Path, saliency: np.ndarray, form: str) -> None:
    if form.endswith(".npy"):
        np.save(path, saliency)
    elif form.endswith(".pt"):
        torch.save(torch.from_numpy(saliency), path)
    else:
        dtype = np.uint16 if "16" in form else np.uint8
        Image.fromarray((saliency * np.iinfo(dtype).max).astype(dtype)).save(path)


@pytest.mark.parametrize("form", ["_sal.npy", "-sal.npy", ".npy", "_sal.pt", ".png", "_sal16.png"])
def test_images_of_class_folders_find_their_maps(imagenet: Path, form: str) -> None:
    ending = form.replace("16", "")
    for path in sorted((imagenet / "maps").rglob("*.npy")):
        saliency = np.load(path)
        path.unlink()
        save_map(path.with_name(path.name.replace("_sal.npy", ending)), saliency, form)
    dataset = ImageNet(imagenet / "images", "train", saliency=imagenet / "maps")
    assert dataset.classes == ["n01440764", "n01443537"]
    assert len(dataset) == 6
    for i, item in enumerate(dataset[i] for i in range(6)):
        assert level(item.image) == pytest.approx(40 * (i // 3) + 10 * (i % 3), abs=1)
        assert int(item.label) == i // 3 == int(dataset.labels[i])
        assert item.saliency.shape == (24, 32)
        assert item.saliency.argmax(dim=1).tolist() == [i % 3] * 24


def test_maps_may_lie_beside_the_images_and_images_may_come_without(imagenet: Path) -> None:
    shutil.copytree(imagenet / "maps", imagenet / "images", dirs_exist_ok=True)
    beside = ImageNet(imagenet / "images", "train", saliency=imagenet / "images")
    assert len(beside) == 6
    assert beside[1].saliency.argmax() == 1
    assert ImageNet(imagenet / "images", "train", saliency=imagenet / "maps" / "train")[1].saliency.argmax() == 1
    assert ImageNet(imagenet / "images")[1].saliency is None
    crop = RandomResizedCrop(16)
    dataset = ImageNet(imagenet / "images", saliency=imagenet / "maps", crop=crop)
    assert (dataset[0].image.shape, dataset[0].saliency.shape) == ((3, 16, 16), (16, 16))
    batch = next(iter(ViewLoader(dataset, SaccadeViews(num_views=2, fovea=8), batch_size=6)))
    assert batch.views.shape == (6, 2, 3, 8, 8)
    assert batch.labels is not None
    assert sorted(batch.labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_what_is_missing_or_broken_in_class_folders_is_named(imagenet: Path) -> None:
    folder = imagenet / "maps" / "train" / "n01440764"
    settings: dict[str, Any] = {"saliency": imagenet / "maps"}
    (folder / "n01440764_1_sal.npy").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"1 images have no saliency map in .*, first n01440764/n01440764_1\.JPEG, .*_1_sal\.npy",
    ):
        ImageNet(imagenet / "images", **settings)
    dataset = ImageNet(imagenet / "images", **settings, skip_missing=True)
    assert len(dataset) == 5
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1]
    np.save(folder / "n01440764_1_sal.npy", np.zeros((24, 32)))
    dataset = ImageNet(imagenet / "images", **settings)
    with pytest.raises(ValueError, match=r"n01440764_1_sal\.npy.* is 0 everywhere"):
        dataset[1]
    np.save(folder / "n01440764_1_sal.npy", np.ones((24, 24)))
    with pytest.raises(ValueError, match=r"_1_sal\.npy is 24 × 24 for an image of 24 × 32.*pass stretch=True"):
        dataset[1]
    assert ImageNet(imagenet / "images", **settings, stretch=True)[1].saliency.shape == (24, 32)
    np.save(folder / "n01440764_1_sal.npy", np.ones((24, 33)))  # of the same ratio but for rounding to pixels
    assert dataset[1].saliency.shape == (24, 32)
    np.save(folder / "n01440764_1_sal.npy", np.ones((24, 30)))
    with pytest.raises(ValueError, match=r"_1_sal\.npy is 24 × 30 for an image of 24 × 32"):
        dataset[1]
    np.save(folder / "n01440764_1_sal.npy", np.ones((2, 24, 32)))
    with pytest.raises(ValueError, match=r"_1_sal\.npy should hold the saliency map of one image; it holds 2"):
        dataset[1]
    np.save(folder / "n01440764_1_sal.npy", np.array({}))
    with pytest.raises(ValueError, match=r"_1_sal\.npy cannot be read"):
        dataset[1]
    (folder / "n01440764_2_sal.npy").unlink()
    (folder / "n01440764_2_sal.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"_2_sal\.png should be a saliency map and cannot be decoded: no"):
        ImageNet(imagenet / "images", **settings)[2]
    truncate_path = imagenet / "images" / "train" / "n01440764" / "n01440764_0.JPEG"
    truncate(truncate_path)
    with pytest.raises(ValueError, match=rf"{truncate_path} should be an image and cannot be decoded"):
        dataset[0]


def test_a_class_has_one_number_in_all_splits(tmp_path: Path) -> None:
    for split, names in {"train": "acd", "val": "bd", "empty": ""}.items():
        (tmp_path / split / "nothing").mkdir(parents=True)
        (tmp_path / split / "nothing" / ".hidden.png").write_bytes(b"")
        for number, name in enumerate(names):
            (tmp_path / split / name).mkdir()
            grey(10 * number).save(tmp_path / split / name / "1.PNG")
    (tmp_path / "maps" / "train" / "a").mkdir(parents=True)  # not a split: its folders hold no images
    (tmp_path / "maps" / "train" / "a" / "1_sal.png").write_bytes(b"")
    for split, labels in {"train": [0, 2, 3], "val": [1, 3]}.items():
        dataset = ImageNet(tmp_path, split)
        assert dataset.classes == ["a", "b", "c", "d"]
        assert dataset.labels.tolist() == labels
        assert [int(dataset[i].label) for i in range(len(dataset))] == labels
    chosen = ImageNet(tmp_path, "val", classes=["d", "x", "a"])  # those of a training set that lies elsewhere
    assert (chosen.classes, chosen.labels.tolist()) == (["d", "x", "a"], [0])
    with pytest.raises(FileNotFoundError, match="has no images in folders of classes"):
        ImageNet(tmp_path, "val", classes=["a"])


# Formats of image files

RAMP = np.linspace(0, 60000, 64 * 64).reshape(64, 64).astype(np.uint16)
LEVELS = np.rint(RAMP / 257).astype(np.uint8)


def coloured() -> Image.Image:
    return Image.fromarray(np.stack([LEVELS, 255 - LEVELS, LEVELS // 2], axis=2))


def one_blue_pixel() -> Image.Image:
    image = Image.fromarray(LEVELS).convert("RGB")
    image.putpixel((3, 4), (0, 0, 200))
    return image


def see_through(image: Image.Image, mode: str) -> Image.Image:
    image = image.convert(mode)
    image.putalpha(Image.fromarray(LEVELS))
    return image


def sixteen_bits(byteorder: str = "<") -> Image.Image:
    return Image.fromarray(RAMP.astype(f"{byteorder}u2"))


READABLE: dict[str, tuple[Callable[[], Image.Image], str, bool]] = {  # image, ending, whether it is grey
    "16 bits, PNG": (sixteen_bits, "png", True),
    "16 bits, TIFF": (sixteen_bits, "tif", True),
    "16 bits, TIFF of the other byte order": (lambda: sixteen_bits(">"), "tiff", True),
    "16 bits, PGM": (lambda: Image.fromarray(RAMP.astype(np.int32)), "pgm", True),
    "grey": (lambda: Image.fromarray(LEVELS), "png", True),
    "grey with transparency": (lambda: see_through(Image.fromarray(LEVELS), "L"), "png", True),
    "palette of greys": (lambda: Image.fromarray(LEVELS).convert("P"), "gif", True),
    "colours": (coloured, "BMP", False),
    "colours, PPM": (coloured, "ppm", False),
    "colours, TIFF": (coloured, "TIF", False),
    "colours, WebP": (lambda: coloured(), "webp", False),
    "colours with transparency": (lambda: see_through(coloured(), "RGB"), "png", False),
    "printer's colours": (lambda: coloured().convert("CMYK"), "tiff", False),
}


@pytest.mark.parametrize("name", READABLE)
def test_images_of_any_common_format_keep_their_proportions(tmp_path: Path, name: str) -> None:
    make, ending, is_grey = READABLE[name]
    (tmp_path / "train" / "a" / "images").mkdir(parents=True)
    options: dict[str, Any] = {"lossless": True, "exact": True} if ending == "webp" else {}
    make().save(tmp_path / "train" / "a" / f"x.{ending}", **options)
    make().save(tmp_path / "train" / "a" / "images" / f"x.{ending}", **options)
    expected = torch.from_numpy(np.array(Image.fromarray(LEVELS).convert("RGB") if is_grey else coloured()))
    for dataset in (ImageNet(tmp_path, "train"), TinyImageNet(tmp_path, "train")):
        (item,) = (dataset[i] for i in range(len(dataset)))
        assert (item.image.shape, item.image.dtype) == ((3, 64, 64), torch.uint8)
        inexact = name == "printer's colours"
        assert (item.image.permute(1, 2, 0).int() - expected.int()).abs().max() <= int(inexact)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(200))])
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_palette_becomes_its_colours(tmp_path: Path, transparency: Any) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    palette = coloured().quantize(256)
    palette.save(tmp_path / "train" / "a" / "x.png", **({} if transparency is None else {"transparency": transparency}))
    expected = np.array(palette.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(ImageNet(tmp_path, "train")[0].image.numpy(), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_no_known_white_are_refused_by_the_file_s_name(tmp_path: Path, dtype: Any) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "train" / "a" / "x.tiff")
    with pytest.raises(ValueError, match=r"x\.tiff should be an image; its pixels have 32 bits, .*: save it with 8 or"):
        ImageNet(tmp_path, "train")[0]


def test_pictures_in_formats_that_are_not_read_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    grey(3).save(tmp_path / "train" / "a" / "x.png")
    for companion in ("Thumbs.db", "notes.txt", ".hidden.HEIC", "x.json"):
        (tmp_path / "train" / "a" / companion).write_bytes(b"")
    assert len(ImageNet(tmp_path)) == 1
    (tmp_path / "train" / "a" / "y.HEIC").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a holds 1 pictures in a format that is not read, first y\.HEIC\. Convert"):
        ImageNet(tmp_path)


MAPS: dict[str, tuple[Callable[[], Image.Image], str, float]] = {  # image, ending, its unit over that of RAMP
    "16 bits, PNG": (sixteen_bits, "PNG", 1),
    "16 bits, TIFF": (sixteen_bits, "tif", 1),
    "32 bits": (lambda: Image.fromarray(RAMP.astype(np.int32)), "tif", 1),
    "floating point": (lambda: Image.fromarray((RAMP / 60000).astype(np.float32)), "tif", 1 / 60000),
    "8 bits": (lambda: Image.fromarray(LEVELS), "png", 1 / 257),
    "palette of greys": (lambda: Image.fromarray(255 - LEVELS).quantize(256), "png", 0),
    "grey as colours": (lambda: Image.fromarray(LEVELS).convert("RGB"), "bmp", 1 / 257),
    "grey as colours, opaque": (lambda: Image.fromarray(LEVELS).convert("RGBA"), "png", 1 / 257),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("beside", [False, True])
def test_maps_of_any_grey_format_keep_their_proportions(tmp_path: Path, name: str, beside: bool) -> None:
    make, ending, unit = MAPS[name]
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    grey(9, (64, 64)).save(folder / "x.png")
    where = tmp_path if beside else tmp_path / "maps"
    (where / "train" / "a").mkdir(parents=True, exist_ok=True)
    make().save(where / "train" / "a" / f"x_sal.{ending}")
    dataset = ImageNet(tmp_path, "train", saliency=where)
    assert len(dataset) == len(ImageNet(tmp_path, "train")) == 1  # also without saliency=, a map is no image
    assert level(dataset[0].image) == 9
    expected = RAMP * unit if unit else np.array(make().convert("L"))  # of a palette the greys, not their numbers
    assert np.abs(dataset[0].saliency.numpy() - expected).max() <= (0.51 if unit > 1e-4 and unit < 1 else 1e-3)


@pytest.mark.parametrize(("make", "message"), [
    (coloured, "it has colours, and a map has one number a pixel: save the numbers, not a heat map"),
    (one_blue_pixel, "it has colours"),
    (lambda: see_through(Image.fromarray(LEVELS), "L"), "a part of it is transparent, and nothing says what that"),
])  # fmt: skip
def test_maps_that_are_not_grey_are_refused_by_the_file_s_name(
    tmp_path: Path, make: Callable[[], Image.Image], message: str
) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    grey(9, (64, 64)).save(tmp_path / "train" / "a" / "x.png")
    make().save(tmp_path / "train" / "a" / "x-sal.png")
    with pytest.raises(ValueError, match=rf"x-sal\.png should be a saliency map; {message}"):
        ImageNet(tmp_path, "train", saliency=tmp_path)[0]


def test_no_image_is_its_own_map_nor_another_s(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for name in ("one.png", "two.jpg", "two.png", "odd_sal.png"):  # the last is an image: there is no odd.png
        grey(60).save(folder / name)
    for name in ("one_sal.npy", "two-sal.npy"):
        np.save(folder / name, np.ones((16, 16), np.float32))
    assert len(ImageNet(tmp_path)) == 4
    for where in (tmp_path, tmp_path / "train"):
        with pytest.raises(FileNotFoundError, match=r"1 images have no saliency map in .*, first a/odd_sal\.png"):
            ImageNet(tmp_path, saliency=where)
    np.save(folder / "odd_sal.npy", np.ones((16, 16), np.float32))  # the bare name of odd_sal.png
    dataset = ImageNet(tmp_path, saliency=tmp_path)
    assert len(dataset) == 4
    assert all(dataset[i].saliency.mean() == 1 for i in range(4))
    elsewhere = tmp_path / "maps" / "train" / "a"
    elsewhere.mkdir(parents=True)
    for stem, value in (("one", 1), ("two", 2), ("odd_sal", 3)):
        Image.new("L", (16, 16), value).save(elsewhere / f"{stem}.png")
    dataset = ImageNet(tmp_path, saliency=tmp_path / "maps")
    assert [dataset[i].saliency.mean() for i in range(4)] == [3, 1, 2, 2]


def test_of_several_maps_the_released_name_goes_first(tmp_path: Path) -> None:
    folder, maps = tmp_path / "train" / "a", tmp_path / "maps" / "train" / "a"
    folder.mkdir(parents=True)
    maps.mkdir(parents=True)
    grey(5).save(folder / "x.jpg")
    for name, value in (("x_sal.pth", 4), ("x_sal.npy", 3), ("x-sal.npy", 2), ("x.npy", 1)):
        saliency = np.full((16, 16), value, np.float32)
        if name.endswith("npy"):
            np.save(maps / name, saliency)
        else:
            torch.save(torch.from_numpy(saliency), maps / name)
    for expected in ("x_sal.npy", "x_sal.pth", "x-sal.npy", "x.npy"):
        value = {"x_sal.npy": 3, "x_sal.pth": 4, "x-sal.npy": 2, "x.npy": 1}[expected]
        assert ImageNet(tmp_path, saliency=tmp_path / "maps")[0].saliency.mean() == value
        (maps / expected).unlink()


def test_folders_without_images_in_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder; images, .* be there\. Pass as root"):
        ImageNet(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is empty; images, in a folder for each class.*Pass as root"):
        ImageNet(tmp_path)
    (tmp_path / "LICENSE").write_text("words")
    with pytest.raises(FileNotFoundError, match=r"has no folders; one for each split, such as train.*Pass as root"):
        ImageNet(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train is empty; images, in a folder for each class.*Pass as root"):
        ImageNet(tmp_path)
    with pytest.raises(ValueError, match="split must be one of 'train'; got 'val'"):
        ImageNet(tmp_path, "val")
    grey(3).save(tmp_path / "train" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(FileNotFoundError, match=r"has no images in folders of classes.* sort it by class first"):
        ImageNet(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"maps is not a folder; saliency maps.*leave saliency= out"):
        ImageNet(tmp_path, saliency=tmp_path / "maps")


# STL-10 and CIFAR-100, by torchvision


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def stl_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny binaries in the true form, whose sums stand in for the official ones."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3), ("unlabeled", 5)):
        (folder / f"{split}_X.bin").write_bytes(rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(range(1, count + 1)))
    (folder / "class_names.txt").write_text("airplane\n")
    for attribute in ("train_list", "test_list"):
        files = [[name, md5(folder / name)] for name, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, files)
    return tmp_path


def test_stl10_comes_with_the_released_maps(stl_root: Path) -> None:
    saliency = stl_root / "salmap-stl10"
    (saliency / "unlabeled").mkdir(parents=True)
    maps = np.random.default_rng(1).random((5, 1, 96, 96), dtype=np.float32)
    np.save(saliency / "unlabeled" / "saliency_unlabeled.npy", maps)
    raw = np.frombuffer((stl_root / "stl10_binary" / "unlabeled_X.bin").read_bytes(), np.uint8).reshape(5, 3, 96, 96)
    for path in (saliency, saliency / "unlabeled" / "saliency_unlabeled.npy"):
        dataset = stl10(stl_root, "unlabeled", saliency=path)
        assert isinstance(dataset, WithSaliency)
        for i in range(5):
            item = dataset[i]
            assert torch.equal(item.image, torch.tensor(raw[i]).mT)  # the binaries hold columns one after the other
            assert torch.equal(item.saliency, torch.from_numpy(maps[i, 0]))
            assert item.label == -1
    with pytest.raises(FileNotFoundError, match=r"saliency_train\.npy is missing"):
        stl10(stl_root, "train", saliency=saliency)
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder; the saliency maps of STL-10.*huggingface"):
        stl10(stl_root, "train", saliency=stl_root / "nowhere")
    batch = next(iter(ViewLoader(dataset, SaccadeViews(num_views=3, fovea=32), batch_size=5)))
    assert batch.views.shape == (5, 3, 3, 32, 32)


def test_stl10_without_maps_is_torchvision_s(stl_root: Path) -> None:
    dataset: Any = stl10(stl_root, "train")
    assert isinstance(dataset, datasets.STL10)
    assert [label for _, label in dataset] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="crop cuts image and saliency together; got no saliency"):
        stl10(stl_root, "train", crop=CenterCrop(64))
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', 'unlabeled'; got 'val'"):
        stl10(stl_root, "val")
    with pytest.raises(
        FileNotFoundError, match=r"stl10_binary is not a folder; STL-10 should be there\. Get stl10_bin"
    ):
        stl10(stl_root / "nowhere")
    truncate(stl_root / "stl10_binary" / "test_X.bin")
    with pytest.raises(ValueError, match=r"stl10_binary are missing or not the official ones: their MD5 differs"):
        stl10(stl_root, "train")


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


def test_cifar100_is_read_only_if_its_sums_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "fine_labels": [5, 4, 3, 2, 1, 0]}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple"]}))
    with pytest.raises(ValueError, match="their MD5 differs"):
        cifar100(tmp_path)
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": md5(folder / "meta")})
    dataset: Any = cifar100(tmp_path, "test")
    image, label = dataset[2]
    assert label == 3
    assert np.array_equal(np.array(image).transpose(2, 0, 1), pixels[2].reshape(3, 32, 32))
    (folder / "train").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="their MD5 differs"):
        cifar100(tmp_path)
    assert not (tmp_path / "unpickled").exists()
    with pytest.raises(ValueError, match="split must be one of 'train', 'test'; got 'val'"):
        cifar100(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python is not a folder; CIFAR-100 should be there"):
        cifar100(tmp_path / "nowhere")


# Tiny-ImageNet


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Classes in an order that is not the alphabet's; train image k of class c has level 60 c + k, val ones 200 + c."""
    root = tmp_path / "tiny-imagenet-200"
    wnids = ["n02124075", "n01443537"]
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for c, wnid in enumerate(wnids):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for k in range(3):
            grey(60 * c + k, (64, 64)).save(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", quality=95)
        Image.new("L", (64, 64), 200 + c).save(root / "val" / "images" / f"val_{c}.JPEG", quality=95)
        lines.append(f"val_{c}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    return root


@pytest.mark.parametrize("above", [False, True])
def test_tiny_imagenet_s_two_layouts_number_the_classes_alike(tiny: Path, above: bool) -> None:
    root = tiny.parent if above else tiny
    train, val = TinyImageNet(root, "train"), TinyImageNet(root, "val")
    assert train.classes == val.classes == ["n02124075", "n01443537"]
    assert len(train) == 6
    for item in (train[i] for i in range(6)):
        assert level(item.image) // 60 == int(item.label)
    for item in (val[i] for i in range(2)):
        assert item.image.shape == (3, 64, 64)
        assert level(item.image) - 200 == int(item.label)
    assert val.labels.tolist() == [1, 0]


def test_a_validation_set_sorted_by_class_is_read_too(tiny: Path) -> None:
    for c, wnid in enumerate(("n02124075", "n01443537")):
        (tiny / "val" / wnid).mkdir()
        shutil.move(tiny / "val" / "images" / f"val_{c}.JPEG", tiny / "val" / wnid / f"val_{c}.JPEG")
    shutil.rmtree(tiny / "val" / "images")
    (tiny / "val" / "val_annotations.txt").unlink()
    val = TinyImageNet(tiny, "val")
    assert [(level(val[i].image) - 200, int(val[i].label)) for i in range(2)] == [(1, 1), (0, 0)]
    (tiny / "wnids.txt").unlink()
    assert TinyImageNet(tiny, "val").classes == ["n01443537", "n02124075"]


def test_tiny_imagenet_may_be_cached(tiny: Path, tmp_path: Path) -> None:
    plain = TinyImageNet(tiny)
    for cache in ("memory", tmp_path):
        cached = TinyImageNet(tiny, cache=cache)
        for i in [*range(6), *range(6)]:
            image = cached[i].image
            assert torch.equal(plain[i].image, image)
            image.zero_()  # an item is the caller's own


def test_what_is_missing_in_tiny_imagenet_is_named(tiny: Path) -> None:
    broken = tiny / "train" / "n02124075" / "images" / "n02124075_1.JPEG"
    truncate(broken)
    dataset = TinyImageNet(tiny)
    with pytest.raises(ValueError, match=f"{broken} should be an image and cannot be decoded"):
        [dataset[i] for i in range(6)]
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn02124075\n\nval_9.JPEG\tn02124075\n")
    with pytest.raises(FileNotFoundError, match=r"val_9\.JPEG is missing; line 3 of .*val_annotations\.txt names it"):
        TinyImageNet(tiny, "val")
    annotations.write_text("val_0.JPEG\n")
    with pytest.raises(ValueError, match=r"line 1, should be: file, class, box\. It is 'val_0\.JPEG'"):
        TinyImageNet(tiny, "val")
    annotations.write_text("val_0.JPEG\tn99999999\n")
    with pytest.raises(ValueError, match=r"neither in wnids.txt nor a folder in train: n99999999"):
        TinyImageNet(tiny, "val")
    (tiny / "val" / "images").rename(tiny / "val" / "moved")
    with pytest.raises(
        FileNotFoundError, match=r"images is not a folder; the images of val_annotations\.txt.*Get tiny"
    ):
        TinyImageNet(tiny, "val")
    (tiny / "val" / "moved").rename(tiny / "val" / "images")
    annotations.unlink()
    shutil.rmtree(tiny / "val" / "images")
    (tiny / "val" / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"val has no images, neither in folders of classes nor"):
        TinyImageNet(tiny, "val")
    with pytest.raises(ValueError, match="split must be one of 'train', 'val'; got 'test'"):
        TinyImageNet(tiny, "test")
    with pytest.raises(
        FileNotFoundError, match=r"train is not a folder; a split of Tiny-ImageNet should be there\. Get"
    ):
        TinyImageNet(tiny / "nowhere")
