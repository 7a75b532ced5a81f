"""Readers of the datasets that the paper and its neighbours use, from their real form on disk.

| reader | yields | saliency |
|---|---|---|
| [`ThreeDIEBench`][seqjepa.data.readers.ThreeDIEBench] | views of rendered objects with their actions | |
| [`stl10`][seqjepa.data.readers.stl10] | 96 × 96 images | one file for all |
| [`ImageNet`][seqjepa.data.readers.ImageNet] | images of any size, in folders of classes | one file for each |
| [`cifar100`][seqjepa.data.readers.cifar100] | 32 × 32 images | |
| [`TinyImageNet`][seqjepa.data.readers.TinyImageNet] | 64 × 64 images | |
| [`WithSaliency`][seqjepa.data.readers.WithSaliency] | any dataset of images | one file for all |

Nothing is downloaded. Nothing is unpickled, but for CIFAR-100 by torchvision, which compares the MD5 of its files
before.
"""

from seqjepa.data.readers.crops import CenterCrop, PairCrop, RandomResizedCrop
from seqjepa.data.readers.folders import TinyImageNet, cifar100, stl10
from seqjepa.data.readers.saliency import ImageNet, WithSaliency
from seqjepa.data.readers.threediebench import ThreeDIEBench

__all__ = [
    "CenterCrop",
    "ImageNet",
    "PairCrop",
    "RandomResizedCrop",
    "ThreeDIEBench",
    "TinyImageNet",
    "WithSaliency",
    "cifar100",
    "stl10",
]
