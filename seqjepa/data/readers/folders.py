"""STL-10, CIFAR-100 and Tiny-ImageNet from their folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from seqjepa.data.collation import Sample
from seqjepa.data.readers._cache import open_cache
from seqjepa.data.readers._files import decode, folders_in, images_in, require_folder, require_split
from seqjepa.data.readers.crops import PairCrop
from seqjepa.data.readers.saliency import MAP_SUFFIXES, WithSaliency
from seqjepa.data.seeding import SeededDataset

__all__ = ["TinyImageNet", "cifar100", "stl10"]

TINY = "Get tiny-imagenet-200.zip from cs231n.stanford.edu and unpack it."


def stl10(
    root: str | os.PathLike[str],
    split: str = "unlabeled",
    *,
    saliency: str | os.PathLike[str] | None = None,
    crop: PairCrop | None = None,
) -> Dataset[Any]:
    """STL-10 by torchvision, with the released saliency maps if they are given.

    On disk: `root/stl10_binary/unlabeled_X.bin` and the others, as the archive unpacks; torchvision checks their MD5.
    The maps: `saliency/unlabeled/saliency_unlabeled.npy`, as released, or a file that
    [`WithSaliency`][seqjepa.data.readers.WithSaliency] takes.

    Args:
        root: the folder that holds `stl10_binary`.
        split: "train" (5,000), "test" (8,000) or "unlabeled" (100,000, labels −1).
        saliency: the folder of the released maps, or one file; None for images alone.
        crop: cuts image and map together; images are 96 × 96.

    Returns:
        torchvision's dataset of (PIL image, label), or a WithSaliency of it.

    Raises:
        FileNotFoundError: folders or files that are missing.
        ValueError: files whose MD5 is another; an unknown split; a crop without saliency; maps that do not fit.

    Examples:
        >>> dataset = stl10("data", "unlabeled", saliency="data/salmap-stl10")    # doctest: +SKIP
    """
    require_split(split, ("train", "test", "unlabeled"))
    where = "Get stl10_binary.tar.gz from cs.stanford.edu/~acoates/stl10 and unpack it into root."
    require_folder(Path(root) / "stl10_binary", "STL-10", where)
    if crop is not None and saliency is None:
        raise ValueError("crop cuts image and saliency together; got no saliency. Crop the views, or pass saliency=.")
    from torchvision.datasets import STL10

    dataset = _checked(STL10, root, where, split=split)
    if saliency is None:
        return dataset
    path = Path(saliency)
    if path.suffix.lower() not in MAP_SUFFIXES:
        require_folder(path, "the saliency maps of STL-10", "Get them from huggingface.co/datasets/Hafez/salmap-stl10.")
        path = path / split / f"saliency_{split}.npy"
    return WithSaliency(dataset, path, crop=crop)


def cifar100(root: str | os.PathLike[str], split: str = "train") -> Dataset[Any]:
    """CIFAR-100 by torchvision.

    On disk: `root/cifar-100-python/train` and `test`, as the archive unpacks. These are pickles: torchvision reads
    them, and compares their MD5 with the official ones before, so nothing else is ever unpickled.

    Args:
        root: the folder that holds `cifar-100-python`.
        split: "train" (50,000) or "test" (10,000).

    Returns:
        torchvision's dataset of (PIL image 32 × 32, label 0 … 99).

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: files whose MD5 is another; an unknown split.

    Examples:
        >>> dataset = cifar100("data", "train")    # doctest: +SKIP
    """
    require_split(split, ("train", "test"))
    where = "Get cifar-100-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html and unpack it into root."
    require_folder(Path(root) / "cifar-100-python", "CIFAR-100", where)
    from torchvision.datasets import CIFAR100

    return _checked(CIFAR100, root, where, train=split == "train")


def _checked(kind: Any, root: str | os.PathLike[str], where: str, **options: Any) -> Dataset[Any]:
    """Torchvision's dataset, never downloaded; its constructor compares the MD5 of all files."""
    try:
        dataset: Dataset[Any] = kind(os.fspath(root), download=False, **options)
    except RuntimeError:
        raise ValueError(
            f"Files in {Path(root) / kind.base_folder} are missing or not the official ones: their MD5 differs. {where}"
        ) from None
    return dataset


class TinyImageNet(SeededDataset):
    """Tiny-ImageNet: 64 × 64 images of 200 classes.

    On disk: `root/train/n01443537/images/*.JPEG`; `root/val/images/*.JPEG` with the classes in
    `root/val/val_annotations.txt`; `root/wnids.txt`, whose order numbers the classes. A validation set that was sorted
    into folders of classes, `root/val/n01443537/…`, is read too.

    Args:
        root: the folder that holds `train`, or that holds `tiny-imagenet-200`.
        split: "train" (100,000) or "val" (10,000).
        cache: None; "memory" keeps decoded images, 1.2 GB for the training set; a folder keeps them in a .npy file.

    Shapes:
        An item is a [`Sample`][seqjepa.data.Sample](image uint8 (3, 64, 64), label).

    Attributes:
        classes: WordNet numbers in the order of the labels.
        labels: (N,) class of each image.

    Raises:
        FileNotFoundError: folders or files that are missing or empty.
        ValueError: annotations that name unknown classes; when an item is read, an image that cannot be decoded.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "train" / "n01443537" / "images").mkdir(parents=True)
        >>> Image.new("L", (64, 64)).save(root / "train" / "n01443537" / "images" / "n01443537_0.JPEG")
        >>> TinyImageNet(root, "train")[0].image.shape                       # grey files become RGB
        torch.Size([3, 64, 64])
    """

    def __init__(
        self, root: str | os.PathLike[str], split: str = "train", *, cache: str | os.PathLike[str] | None = None
    ) -> None:
        require_split(split, ("train", "val"))
        path = Path(root)
        self.root = path / "tiny-imagenet-200" if (path / "tiny-imagenet-200").is_dir() else path
        require_folder(self.root / split, "a split of Tiny-ImageNet", TINY)
        self.classes = _wnids(self.root)
        annotations = self.root / split / "val_annotations.txt"
        found = _annotated(annotations) if annotations.exists() else _in_class_folders(self.root / split)
        if not found:
            raise FileNotFoundError(
                f"{self.root / split} has no images, neither in folders of classes nor, with val_annotations.txt, in "
                f"images. {TINY}"
            )
        unknown = sorted({wnid for _, wnid in found} - set(self.classes))
        if unknown:
            raise ValueError(
                f"Images in {self.root / split} have classes that are neither in wnids.txt nor a folder in train: "
                f"{', '.join(unknown[:5])}."
            )
        numbers = {wnid: number for number, wnid in enumerate(self.classes)}
        self.files = [file for file, _ in found]
        self.labels = torch.tensor([numbers[wnid] for _, wnid in found], device="cpu")
        self._images = open_cache(cache, self._decode, self.files, views=1, label=f"tinyimagenet-{split}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Image `index` and its label; nothing is random."""
        return Sample(self._images[index], self.labels[index])

    def _decode(self, index: int) -> Any:
        return decode(self.root / self.files[index])


def _wnids(root: Path) -> list[str]:
    """The order of wnids.txt; without it, that of the alphabet."""
    if (root / "wnids.txt").exists():
        return (root / "wnids.txt").read_text(encoding="utf-8").split()
    return folders_in(require_folder(root / "train", "the classes of Tiny-ImageNet, as wnids.txt is missing,", TINY))


def _annotated(annotations: Path) -> list[tuple[str, str]]:
    """(file, class) of each line: the file's name, the class, and a box that is not used here."""
    split = annotations.parent
    there = set(images_in(require_folder(split / "images", "the images of val_annotations.txt", TINY)))
    found = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 2:
            raise ValueError(f"{annotations}, line {number}, should be: file, class, box. It is {line!r}.")
        if fields[0] not in there:
            raise FileNotFoundError(
                f"{split / 'images' / fields[0]} is missing; line {number} of {annotations} names it. Unpack the "
                "archive again."
            )
        found.append((f"{split.name}/images/{fields[0]}", fields[1]))
    return found


def _in_class_folders(split: Path) -> list[tuple[str, str]]:
    """(file, class) of each image in class/images, or in class."""
    found = []
    for wnid in folders_in(split):
        folder = split / wnid / "images" if (split / wnid / "images").is_dir() else split / wnid
        inside = folder.relative_to(split.parent).as_posix()
        found += [(f"{inside}/{file}", wnid) for file in images_in(folder)]
    return found
