"""Tiny files in the layouts that the pages on data read from, so that their blocks run."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seqjepa.data._epochs import EpochOrder


def write_photographs(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Two classes of images of any size, as torchvision's ImageFolder reads them."""
    for name, size in (("cats", (120, 100)), ("dogs", (100, 160))):
        (folder / "photographs" / name).mkdir(parents=True)
        Image.new("RGB", size).save(folder / "photographs" / name / "first.jpg")


def write_datasets(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """3DIEBench, STL-10, ImageNet, CIFAR-100 and Tiny-ImageNet, of fewer images than a page's batch."""
    patch.setattr(EpochOrder, "check", lambda self: None)
    _write_3diebench(folder)
    _write_stl10(folder, patch)
    _write_imagenet(folder)
    _write_cifar100(folder, patch)
    _write_tiny_imagenet(folder)


def _write_3diebench(folder: Path) -> None:
    objects = ["02691156/first", "02691156/second"]
    for root in ("3DIEBench", "3DIEBench-OOD"):
        for name in objects:
            (folder / root / name).mkdir(parents=True)
            for k in range(50):
                Image.new("RGB", (256, 256)).save(folder / root / name / f"image_{k}.jpg")
                np.save(folder / root / name / f"latent_{k}.npy", np.full(7, 0.01 * k))
    (folder / "SIE" / "data").mkdir(parents=True)
    for split in ("train", "val"):
        np.save(folder / "SIE" / "data" / f"{split}_images.npy", np.array(objects))
        np.save(folder / "SIE" / "data" / f"{split}_labels.npy", np.array([0, 0]))


def _write_stl10(folder: Path, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    binaries = folder / "data" / "stl10_binary"
    binaries.mkdir(parents=True)
    for split in ("train", "test", "unlabeled"):
        (binaries / f"{split}_X.bin").write_bytes(bytes(2 * 3 * 96 * 96))
        (binaries / f"{split}_y.bin").write_bytes(bytes([1, 2]))
    (binaries / "class_names.txt").write_text("airplane\n")
    for files in ("train_list", "test_list"):
        sums = [[name, _md5(binaries / name)] for name, _ in getattr(STL10, files)]
        patch.setattr(STL10, files, sums)
    (folder / "salmap-stl10" / "unlabeled").mkdir(parents=True)
    maps = np.ones((2, 96, 96), np.float32)
    np.save(folder / "salmap-stl10" / "unlabeled" / "saliency_unlabeled.npy", maps)


def _write_imagenet(folder: Path) -> None:
    for root in ("imagenet", "saliency"):
        (folder / root / "train" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (300, 260)).save(folder / "imagenet" / "train" / "n01440764" / "n01440764_18.JPEG")
    np.save(folder / "saliency" / "train" / "n01440764" / "n01440764_18_sal.npy", np.ones((260, 300), np.float32))


def _write_cifar100(folder: Path, patch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    batches = folder / "data" / "cifar-100-python"
    batches.mkdir(parents=True)
    for name in ("train", "test"):
        images = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}
        (batches / name).write_bytes(pickle.dumps(images))
    (batches / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear"]}))
    patch.setattr(CIFAR100, "train_list", [["train", _md5(batches / "train")]])
    patch.setattr(CIFAR100, "test_list", [["test", _md5(batches / "test")]])
    patch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": _md5(batches / "meta")})


def _write_tiny_imagenet(folder: Path) -> None:
    images = folder / "tiny-imagenet-200" / "val" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(images / "val_0.JPEG")
    (images.parent / "val_annotations.txt").write_text("val_0.JPEG\tn03444034\t0\t32\t44\t62\n")
    (folder / "tiny-imagenet-200" / "wnids.txt").write_text("n03444034\n")


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
