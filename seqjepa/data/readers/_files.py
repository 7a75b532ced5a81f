"""Files into tensors; errors name the file, what was expected of it, and what to do. Nothing is unpickled."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Shaped, UInt8
from torch import Tensor

__all__ = ["decode", "folders_in", "images_in", "read_npy", "require_folder", "require_split", "resized"]

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def decode(path: Path) -> UInt8[Tensor, "3 H W"]:
    """An image file as RGB.

    By Pillow. torchvision's decoder gave the same pixels in 70 % of the time, but it warns that it will be removed.
    """
    import numpy as np
    from PIL import Image

    data = read_bytes(path, "an image")
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))  # convert would copy
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no format is recognised" if "cannot identify" in str(error) else error
        raise ValueError(
            f"{path} should be an image and cannot be decoded: {reason}. Unpack the archive again, or leave it out."
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_bytes(path: Path, what: str) -> bytes:
    """All of a file that should not be empty."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing; {what} should be there. Unpack the archive again.") from None
    if not data:
        raise ValueError(f"{path} should be {what}, and is empty. Unpack the archive again.")
    return data


def read_npy(path: Path, what: str, *, mmap: bool = False) -> Any:
    """A NumPy array from a .npy file, never a pickled one."""
    import numpy as np

    try:
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing; {what} should be there.") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} should be {what} in NumPy's format, without pickled objects; reading it gave: "
            f"{str(error).splitlines()[0]}"
        ) from None


def resized(image: Shaped[Tensor, "C H W"], height: int, width: int) -> Shaped[Tensor, "C height width"]:
    """Bilinear with antialiasing, as `torchvision.transforms.Resize` does it."""
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def require_folder(path: Path, what: str, where: str) -> Path:
    """The folder, if it is there and not empty."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; {what} should be there. {where}")
    if next(iter(os.scandir(path)), None) is None:
        raise FileNotFoundError(f"{path} is empty; {what} should be there. {where}")
    return path


def require_split(split: str, splits: Iterable[str]) -> str:
    """The name of a split, if it is one of those that there are."""
    if split not in splits:
        raise ValueError(f"split must be one of {', '.join(map(repr, splits))}; got {split!r}.")
    return split


def folders_in(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones do not count."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_in(path: Path) -> list[str]:
    """Names of the image files in a folder, sorted; hidden ones do not count."""
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries]
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
