"""Images with saliency maps computed before: one file for all, or one file for each image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from seqjepa.data.collation import Sample, as_sample, image_tensor
from seqjepa.data.readers._files import (
    IMAGE_SUFFIXES,
    MARKERS,
    decode,
    decode_map,
    folders_in,
    has_images,
    images_in,
    read_npy,
    require_folder,
    require_split,
)
from seqjepa.data.readers.crops import PairCrop
from seqjepa.data.saliency import load_saliency
from seqjepa.data.seeding import SeededDataset

__all__ = ["MAP_SUFFIXES", "ImageNet", "WithSaliency", "fitted_saliency"]

MAP_SUFFIXES = (".npy", ".pt", ".pth", ".safetensors")  # files of tensors; a single map may also be an image

WHERE = (
    "Pass as root the folder that holds root/split/class/name.JPEG; ImageNet-1k is at "
    "huggingface.co/datasets/ILSVRC/imagenet-1k."
)
WHERE_MAPS = (
    "Pass the folder that holds split/class/name_sal.npy, or leave saliency= out; those of ImageNet-1k are at "
    "huggingface.co/datasets/Hafez/ImageNet1k-Saliency-Maps."
)


class WithSaliency(SeededDataset):
    """Any dataset of images, with a saliency map for each from one file.

    Args:
        dataset: items (image, label) or images, as [`collate`][seqjepa.data.collate] takes them. Whole
            images: a crop or a flip in its own transform would leave the map behind.
        saliency: maps (N, H, W) or (N, 1, H, W), in the dataset's order: a tensor, or a file .npy, .pt (a tensor) or
            .safetensors (with one tensor). A .npy file stays on disk; others are read into memory. None is unpickled.
        crop: cuts image and map together, such as
            [`RandomResizedCrop`][seqjepa.data.readers.RandomResizedCrop]; None leaves both whole.

    Shapes:
        An item is a [`Sample`][seqjepa.data.Sample](image uint8 (C, H, W), label, saliency (H, W) float32). A map of
        another resolution is resized to its image if its aspect ratio is the same.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another number of maps than images; when an item is read, a map of another aspect ratio, or one that
            is not finite, negative somewhere, or zero everywhere.

    Examples:
        >>> import torch
        >>> images = torch.randint(0, 256, (10, 3, 96, 96), dtype=torch.uint8)
        >>> dataset = WithSaliency([(image, 0) for image in images], torch.rand(10, 96, 96))
        >>> dataset[3].saliency.shape
        torch.Size([96, 96])
    """

    def __init__(
        self, dataset: Any, saliency: Tensor | str | os.PathLike[str], *, crop: PairCrop | None = None
    ) -> None:
        self.dataset, self.crop = dataset, crop
        self.maps = _open_maps(saliency)
        shape = self.maps.shape
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[1] != 1):
            raise ValueError(f"Saliency maps have the axes (N, H, W) or (N, 1, H, W); {self.maps.name} has {shape}.")
        if shape[0] != len(dataset):
            raise ValueError(
                f"Each image needs its saliency map; {self.maps.name} has {shape[0]} maps for {len(dataset)} images. "
                "Is it that of another split?"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Image `index`, its label and its saliency."""
        seeded = isinstance(self.dataset, SeededDataset)
        item = as_sample(self.dataset.draw(index, generator) if seeded else self.dataset[index], f"item {index}")
        image = image_tensor(item.image, f"item {index}")
        saliency = fitted_saliency(self.maps.row(index), image, f"{self.maps.name}, map {index}")
        if self.crop is not None:
            image, cropped = self.crop(image, saliency, generator=generator)
            return Sample(image, item.label, cropped)
        return Sample(image, item.label, saliency)


class ImageNet(SeededDataset):
    """Images in a folder for each class, such as ImageNet-1k, with or without a saliency map for each.

    On disk: `root/split/class/name.JPEG`, or another format that Pillow reads. The classes of all splits together are
    numbered in alphabetical order, so that a class has one number in each. Maps lie in a folder of the same shape,
    `saliency/split/class/name_sal.npy`; the ending may also be `-sal` or none, and the file .npy, .pt, .safetensors (a
    tensor) or a grey image of 8, 16 or 32 bits, such as .png. `saliency` may be `root` itself: a map that is an image
    then needs `_sal` or `-sal`, which sets it apart from the images.

    Args:
        root: the folder of the splits.
        split: such as "train" or "val": a folder in `root`.
        saliency: the folder of the maps; None for images alone.
        crop: cuts image and map together; None leaves both whole, so that batches need a batch size of 1.
        stretch: take maps whose aspect ratio is not the image's, as covering the whole image all the same.
        skip_missing: leave out images that have no map.
        classes: names of class folders in the order of their numbers, for splits in different roots, or for some of the
            classes only; None takes all that any split in `root` has images of.

    Shapes:
        An item is a [`Sample`][seqjepa.data.Sample](image uint8 (3, H, W), label, saliency (H, W) float32 or None). A
        map of another resolution is resized to its image. 16 bits become 8 in proportion; transparency is left out.

    Attributes:
        classes: names of the class folders, in the order of the labels.
        labels: (N,) class of each image.

    Raises:
        FileNotFoundError: folders that are missing or empty; images without a map.
        ValueError: pictures in formats that are not read; when an item is read, images or maps that cannot be decoded,
            or whose pixels have no known white, each by its path; maps that do not fit.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "train" / "n01440764").mkdir(parents=True)
        >>> Image.new("RGB", (80, 60)).save(root / "train" / "n01440764" / "n01440764_18.JPEG")
        >>> from seqjepa.data.readers import CenterCrop
        >>> ImageNet(root, "train", crop=CenterCrop(32))[0].image.shape
        torch.Size([3, 32, 32])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        saliency: str | os.PathLike[str] | None = None,
        crop: PairCrop | None = None,
        stretch: bool = False,
        skip_missing: bool = False,
        classes: Sequence[str] | None = None,
    ) -> None:
        import numpy as np

        what = "images, in a folder for each class,"
        splits = folders_in(require_folder(Path(root), what, WHERE))
        if not splits:
            raise FileNotFoundError(
                f"{root} has no folders; one for each split, such as train, should be there. {WHERE}"
            )
        require_split(split, splits)
        self.folder = require_folder(Path(root) / split, what, WHERE)
        self.crop, self.stretch = crop, stretch
        self.classes = _classes([Path(root) / name for name in splits]) if classes is None else list(classes)
        self.maps_folder = None if saliency is None else _maps_folder(Path(saliency), split)
        images, maps, labels, lost = [], [], [], []
        there = set(folders_in(self.folder))
        for label, name in enumerate(self.classes):
            if name not in there:
                continue
            files = images_in(self.folder / name)
            found = {} if self.maps_folder is None else _maps_in(self.maps_folder / name, self.folder / name, files)
            for file in files:
                beside = _map_of(os.path.splitext(file)[0], found)
                if beside is None and self.maps_folder is not None:
                    lost.append(f"{name}/{file}")
                    continue
                images.append(os.fsencode(f"{name}/{file}"))
                maps.append(os.fsencode(f"{name}/{beside}"))
                labels.append(label)
        if lost and not skip_missing:
            raise FileNotFoundError(
                f"{len(lost)} images have no saliency map in {self.maps_folder}, first {lost[0]}, for which there "
                f"should be {Path(lost[0]).with_suffix('')}_sal.npy. Compute them, or leave these images out with "
                "skip_missing=True."
            )
        if not images:
            raise FileNotFoundError(
                f"{self.folder} has no images in folders of classes, class/name.JPEG"
                f"{'' if saliency is None else ' with a saliency map each'}. ImageNet's validation archive unpacks "
                "into one folder: sort it by class first."
            )
        # Arrays of bytes, not lists: a million strings would be copied into every worker as their counts change.
        self._images, self._maps = np.array(images), np.array(maps)
        self.labels = torch.tensor(labels, device="cpu")

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Image `index`, its label and its saliency."""
        image = decode(self.folder / os.fsdecode(self._images[index]))
        saliency = None
        if self.maps_folder is not None:
            path = self.maps_folder / os.fsdecode(self._maps[index])
            saliency = fitted_saliency(_read_map(path), image, str(path), stretch=self.stretch)
        if self.crop is not None:
            image, saliency = self.crop(image, saliency, generator=generator)
        return Sample(image, self.labels[index], saliency)


def fitted_saliency(saliency: Tensor, image: Tensor, name: str, *, stretch: bool = False) -> Float[Tensor, "H W"]:
    """The map, checked, at the resolution of its image."""
    saliency = saliency.squeeze(0) if saliency.ndim == 3 else saliency
    height, width = image.shape[1:]
    if saliency.ndim != 2 or 0 in saliency.shape:
        raise ValueError(f"A saliency map has the axes (H, W); {name} has shape {tuple(saliency.shape)}.")
    saliency = saliency.float()
    low, high = saliency.min().item(), saliency.max().item()  # both are NaN where anything is
    if not (low >= 0 and 0 < high < float("inf")):
        raise ValueError(
            f"A saliency map is finite, at least 0, and above 0 somewhere; {name} goes from {low:.4g} to {high:.4g}. "
            "Take the exponential of log densities."
        )
    if saliency.shape == (height, width):
        return saliency
    h, w = saliency.shape
    alike = min(abs(w - width * h / height), abs(h - height * w / width)) <= 1  # but for rounding to pixels
    if not (alike or stretch):
        raise ValueError(
            f"A saliency map covers its image and has its aspect ratio; {name} is {h} × {w} for an image of {height} × "
            f"{width}. Was it computed on a crop? If it covers the whole image, pass stretch=True, or resize it before."
        )
    return F.interpolate(saliency[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]


class _TensorMaps:
    """Maps in memory."""

    def __init__(self, maps: Tensor, name: str) -> None:
        self.maps, self.shape, self.name = maps, tuple(maps.shape), name

    def row(self, index: int) -> Tensor:
        """Map `index`."""
        return self.maps[index]


class _MappedMaps:
    """Maps in a .npy file that stays on disk: the released one for STL-10's unlabelled images has 3.7 GB."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.maps = read_npy(path, "saliency maps (N, H, W)", mmap=True)
        self.shape = tuple(self.maps.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # NumPy would pickle the maps; a spawned worker opens the file again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def row(self, index: int) -> Tensor:
        """Map `index`."""
        import numpy as np

        return torch.from_numpy(np.array(self.maps[index]))


def _open_maps(saliency: Tensor | str | os.PathLike[str]) -> _TensorMaps | _MappedMaps:
    if isinstance(saliency, Tensor):
        return _TensorMaps(saliency, "the tensor")
    path = Path(saliency)
    return _MappedMaps(path) if path.suffix.lower() == ".npy" else _TensorMaps(load_saliency(path), str(path))


def _maps_folder(folder: Path, split: str) -> Path:
    require_folder(folder, "saliency maps, in a folder for each class,", WHERE_MAPS)
    return folder / split if (folder / split).is_dir() else folder


def _classes(splits: Sequence[Path]) -> list[str]:
    """The classes that any split has images of."""
    return sorted({name for split in splits for name in folders_in(split) if has_images(split / name)})


def _maps_in(folder: Path, images_folder: Path, images: Sequence[str]) -> dict[str, str]:
    """Name without its ending → name, of all files in a folder that may be maps: an image is none."""
    if not folder.is_dir():
        return {}
    names = set(os.listdir(folder)) - set(images if folder.samefile(images_folder) else ())
    files = [name for name in names if name.lower().endswith((*MAP_SUFFIXES, *IMAGE_SUFFIXES))]
    # Of several that differ in the ending alone, the first in the alphabet.
    return {os.path.splitext(file)[0]: file for file in sorted(files, reverse=True)}


def _map_of(image: str, maps: Mapping[str, str]) -> str | None:
    """The map's file for an image's name without its ending.

    Of several, `_sal` (which the released reader looks for) goes before `-sal` (which the released script writes), and
    both before the bare name.
    """
    return next((maps[image + marker] for marker in (*MARKERS, "") if image + marker in maps), None)


def _read_map(path: Path) -> Tensor:
    """One map from one file."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return decode_map(path)
    try:
        maps = load_saliency(path)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    if len(maps) != 1:
        raise ValueError(f"{path} should hold the saliency map of one image; it holds {len(maps)}.")
    return maps[0]
