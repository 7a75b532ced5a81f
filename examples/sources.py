"""Data by name, as a loader of batches of views: rendered objects, digits, datasets on disk, a folder of images."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from seqjepa import ViewSequence
from seqjepa.data import (
    AugmentedViews,
    RenderedObjects,
    RotatedViews,
    SaccadeViews,
    Sample,
    SeededDataset,
    ViewLoader,
    derive_seed,
)
from seqjepa.data.readers import CenterCrop, ImageNet, ThreeDIEBench, TinyImageNet, cifar100, stl10
from seqjepa.distributed import rank

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


@dataclass
class Source:
    """Batches of views, and what a model and a probe must know of them."""

    loader: ViewLoader
    action_dim: int
    view_shape: tuple[int, ...]
    num_classes: int | None


class ObjectPool(SeededDataset):
    """Some views of every object, rendered once: rendering takes a CPU as long as training. Items are sequences."""

    def __init__(self, count: int, views: int, num_views: int, size: int, seed: int, device: torch.device) -> None:
        if not 2 <= num_views <= views:
            raise ValueError(f"--pool is of at least as many views as a sequence has, {num_views}; got {views}.")
        objects = RenderedObjects(count, size=size, samples=1, device=device)
        generator = torch.Generator().manual_seed(derive_seed("pool", seed))
        hundreds = tqdm(torch.arange(count).split(100), desc="rendering", leave=False, disable=rank() > 0)
        parts = [objects.sample(part, num_views=views, generator=generator) for part in hundreds]
        self.views = torch.cat([(255 * part.views).round().byte().cpu() for part in parts])
        self.rotation = torch.cat([part.parameters.rotation.cpu() for part in parts])
        self.labels, self.group, self.num_views = objects.labels.cpu(), objects.group, num_views

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, index: int, generator: torch.Generator) -> ViewSequence:
        """Some of an object's views, none twice."""
        chosen = torch.randperm(self.views.shape[1], generator=generator)[: self.num_views]
        rotation = self.rotation[index, chosen]
        actions = self.group.actions(rotation[None])[0]
        return ViewSequence(self.views[index, chosen], actions, rotation, self.labels[index], self.group)


class Pictures(SeededDataset):
    """A folder of images, cut to squares; its subfolders are classes, if it has any."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        self.files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise ValueError(f"--data {folder} holds no image: none of {', '.join(SUFFIXES)}.")
        tops = [file.relative_to(folder).parts[0] if file.parent != folder else "" for file in self.files]
        self.classes = sorted(set(tops))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = None if "" in self.classes else torch.tensor([numbers[top] for top in tops])

    def __len__(self) -> int:
        return len(self.files)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Nothing is random."""
        from PIL import Image, ImageOps

        with Image.open(self.files[index]) as image:
            square = ImageOps.fit(image.convert("RGB"), (self.size, self.size))
        return Sample(square, None if self.labels is None else self.labels[index])


def digits(size: int) -> list[tuple[Tensor, Tensor]]:
    """The 8 × 8 digits that come with scikit-learn, enlarged: no download."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    large = F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return list(zip((255 * large).round().byte().expand(-1, 3, -1, -1), torch.tensor(data.target), strict=True))


READERS: dict[str, Callable[[Any, torch.device], Any]] = {
    "objects": lambda s, device: ObjectPool(s.objects, s.pool, s.observed + 1, s.size, s.seed, device),
    "digits": lambda s, _: digits(s.size),
    "stl10": lambda s, _: stl10(s.root, "unlabeled"),
    "cifar100": lambda s, _: cifar100(s.root),
    "tinyimagenet": lambda s, _: TinyImageNet(s.root),
    "imagenet": lambda s, _: ImageNet(s.root, "train", crop=CenterCrop(s.size)),
    "3diebench": lambda s, _: ThreeDIEBench(s.root, num_views=s.observed + 1, size=s.size),
}
SEQUENCES = ("objects", "3diebench")  # have views and actions of their own; others take a sampler
SAMPLERS: dict[str, Callable[[Any], Callable[..., ViewSequence]]] = {
    "rotated": lambda s: RotatedViews(num_views=s.observed + 1, degrees=45, shift=0.1, size=s.size, border="zero"),
    "augmented": lambda s: AugmentedViews(num_views=s.observed + 1, size=s.size),
    "saccades": lambda s: SaccadeViews(num_views=s.observed + 1, fovea=s.size // 2),
}


def open_source(settings: Any, device: torch.device) -> Source:
    """The data of a run, by `settings.data`, the name of a dataset or a folder.

    Raises:
        ValueError: neither of them (near matches are named), or no batch for every rank.
    """
    name = settings.data
    if name in READERS:
        dataset = READERS[name](settings, device)
    elif Path(name).is_dir():
        dataset = Pictures(Path(name), settings.size)
    else:
        near = difflib.get_close_matches(name, READERS, n=3)
        hint = f"Near matches: {', '.join(near)}." if near else f"The names are {', '.join(READERS)}."
        raise ValueError(f"--data is the name of a dataset or a folder of images; {name!r} is neither. {hint}")
    loader = ViewLoader(
        dataset, None if name in SEQUENCES else SAMPLERS[settings.sampler](settings), batch_size=settings.batch_size,
        seed=settings.seed, device=device, num_workers=settings.workers,
        loader_options={"worker_init_fn": leave_signals_alone},
    )  # fmt: skip
    labels = getattr(dataset, "labels", None)
    if name == "digits":
        labels = torch.arange(10)
    first = next(iter(ViewLoader(dataset, loader.sampler, batch_size=2, device=device, rank=0, world_size=1)))
    classes = None if labels is None or int(labels.max()) < 1 else int(labels.max()) + 1
    return Source(loader, first.actions.shape[-1], tuple(first.views.shape[2:]), classes)


def leave_signals_alone(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; a worker waits for the run, which saves and then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
