"""Files into tensors; errors name the file, what was expected of it, and what to do. Nothing is unpickled."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from seqjepa.data.collation import rgb_image

__all__ = [
    "IMAGE_SUFFIXES", "decode", "decode_map", "folders_in", "has_images", "images_in", "read_npy", "require_folder",
    "require_split", "resized",
]  # fmt: skip

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
FOREIGN_SUFFIXES = (".arw", ".cr2", ".dng", ".heic", ".heif", ".jxl", ".nef", ".svg")  # pictures that Pillow can't read
MARKERS = ("_sal", "-sal")  # before the ending of a map's file


def decode(path: Path) -> UInt8[Tensor, "3 H W"]:
    """An image file as RGB; of several frames or pages, the first. 16 bits become 8 in proportion.

    By Pillow. torchvision's decoder gave the same pixels in 70 % of the time, but it warns that it will be removed.
    """
    with opened(path, "an image") as image:
        bits16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        if image.mode in ("I", "F") and not bits16:
            raise _UnclearError("its pixels have 32 bits, and nothing says which is white: save it with 8 or 16 bits")
        if bits16:
            return _eight_bits(image).expand(3, -1, -1)
        return torch.from_numpy(_array(rgb_image(image))).permute(2, 0, 1)


def decode_map(path: Path) -> Float[Tensor, "H W"]:
    """A saliency map from a grey image file, in the file's own unit: 8, 16 or 32 bits, or floating point."""
    with opened(path, "a saliency map") as image:
        if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
            return torch.from_numpy(_array(image).astype("float32"))
        pixels = _array(image.convert("RGBA"))
        if (pixels[..., 3] < 255).any():
            raise _UnclearError("a part of it is transparent, and nothing says what that stands for: save it as grey")
        if (pixels[..., :3] != pixels[..., :1]).any():
            raise _UnclearError("it has colours, and a map has one number a pixel: save the numbers, not a heat map")
        return torch.from_numpy(pixels[..., 0].astype("float32"))


@contextmanager
def opened(path: Path, what: str) -> Iterator[Any]:
    """A PIL image; whatever fails inside names the file."""
    from PIL import Image

    data = read_bytes(path, what)
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except _UnclearError as error:
        raise ValueError(f"{path} should be {what}; {error}.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no format is recognised" if "cannot identify" in str(error) else error
        raise ValueError(
            f"{path} should be {what} and cannot be decoded: {reason}. Unpack the archive again, or leave it out."
        ) from None


class _UnclearError(Exception):
    """What cannot be known of an image that was decoded."""


def _array(image: Any) -> Any:
    import numpy as np

    return np.array(image)


def _eight_bits(image: Any) -> UInt8[Tensor, "H W"]:
    levels = torch.from_numpy(_array(image).astype("float32"))
    return (levels / 257).round().clamp(0, 255).to(torch.uint8)  # 65535 / 255 = 257


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
    """Names of the image files in a folder, sorted; hidden ones do not count, nor do saliency maps beside an image.

    A file is such a map if it is called as an image there is, with _sal or -sal before the ending.
    """
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    foreign = [name for name in names if name.lower().endswith(FOREIGN_SUFFIXES)]
    if foreign:
        raise ValueError(
            f"{path} holds {len(foreign)} pictures in a format that is not read, first {foreign[0]}. Convert them to "
            "PNG or JPEG, or move them away."
        )
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    stems = {os.path.splitext(name)[0] for name in images}
    maps = {stem + marker for stem in stems for marker in MARKERS}
    return [name for name in images if os.path.splitext(name)[0] not in maps]


def has_images(path: Path) -> bool:
    """Whether a folder holds an image file."""
    with os.scandir(path) as entries:
        return any(e.name.lower().endswith(IMAGE_SUFFIXES) and not e.name.startswith(".") for e in entries)
