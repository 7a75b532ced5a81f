"""Decoded images kept for the next epoch: in memory that worker processes share, or in a memory-mapped file."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from seqjepa.data.readers._files import read_npy

__all__ = ["FolderCache", "MemoryCache", "NoCache", "SharedTensor", "open_cache"]

Decode = Callable[[int], Tensor]
Fingerprint = Callable[[int], bytes]


class SharedTensor:
    """Zeros to be filled in, seen by all worker processes that are forked off; a spawned one begins with its own.

    Anonymous memory, so it takes no room in /dev/shm, and pages that are never written take none at all.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        numbers = math.prod(self.shape)
        size = numbers * dtype.itemsize
        try:
            self.memory = mmap.mmap(-1, max(size, 1))
        except OSError as error:
            raise MemoryError(f"A cache of {self.shape} {dtype} needs {size / 1e9:.1f} GB: {error}.") from None
        self.tensor: Shaped[Tensor, "..."] = torch.frombuffer(self.memory, dtype=dtype, count=numbers).view(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class NoCache:
    """Decode each time."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode

    def __getitem__(self, number: int) -> UInt8[Tensor, "C H W"]:
        """Image `number`."""
        return self.decode(number)


class MemoryCache:
    """Decode once, and keep in memory."""

    def __init__(self, decode: Decode, count: int, shape: Sequence[int]) -> None:
        self.decode = decode
        self.pixels = SharedTensor((count, *shape), torch.uint8)
        self.filled = SharedTensor((count,), torch.bool)

    def __getitem__(self, number: int) -> UInt8[Tensor, "C H W"]:
        """Image `number`."""
        pixels = self.pixels.tensor[number]
        if not self.filled.tensor[number]:
            pixels.copy_(_of_shape(self.decode(number), pixels.shape, number))
            self.filled.tensor[number] = True  # after the pixels: another worker reads them only then
        return pixels.clone()


class FolderCache:
    """Decode all at once into a .npy file, which later runs map into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pixels = read_npy(path, "a cache of decoded images", mmap=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # NumPy would pickle the pixels

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __getitem__(self, number: int) -> UInt8[Tensor, "C H W"]:
        """Image `number`."""
        import numpy as np

        return torch.from_numpy(np.array(self.pixels[number]))


def open_cache(
    cache: str | os.PathLike[str] | None,
    decode: Decode,
    names: Sequence[str],
    *,
    views: int,
    label: str,
    fingerprint: Fingerprint | None = None,
) -> NoCache | MemoryCache | FolderCache:
    """The cache that an argument asks for: None, "memory", or a folder.

    A file in the folder is named by what it holds: the names of the images, their size, and the fingerprints of a few.
    It is written under another name first, so that it is complete or not there, with the permissions that the umask
    gives to any file; and when it is read, its size and a few of its images are checked.

    Args:
        cache: None, "memory" or a folder.
        decode: image number → (C, H, W) uint8.
        names: what tells one dataset from another, in order.
        views: images for each name.
        label: begins the file's name.
        fingerprint: image number → bytes that differ where another dataset has images of the same names; None where
            there is no such dataset.
    """
    if cache is None:
        return NoCache(decode)
    count = len(names) * views
    shape = tuple(decode(0).shape)
    if cache == "memory":
        return MemoryCache(decode, count, shape)
    folder = Path(cache)
    if not folder.is_dir():
        raise FileNotFoundError(f"cache must be 'memory' or a folder that exists; got {str(cache)!r}. Make the folder.")
    known = hashlib.blake2b(repr((shape, views, list(names))).encode(), digest_size=8)
    if fingerprint is not None:
        for number in _spread(count):
            known.update(fingerprint(number))
    digest = known.hexdigest()
    path = folder / f"{label}-{shape[-1]}px-{digest}.npy"
    if not path.exists():
        _write(path, decode, count, shape)
    opened = FolderCache(path)
    _validate(opened, decode, count, shape)
    return opened


def _write(path: Path, decode: Decode, count: int, shape: tuple[int, ...]) -> None:
    import numpy as np

    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.part")  # tempfile's would be for this user alone
    try:
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, *shape))

        def fill(number: int) -> None:
            pixels[number] = _of_shape(decode(number), shape, number).numpy()

        with ThreadPoolExecutor(max(torch.get_num_threads(), 1)) as pool:
            for start in range(0, count, 4096):  # in portions: an error surfaces, and memory stays small
                list(pool.map(fill, range(start, min(start + 4096, count))))
        pixels.flush()
        del pixels
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _validate(cache: FolderCache, decode: Decode, count: int, shape: tuple[int, ...]) -> None:
    """Shape and type, and eight images: decoders differ by a level here and there, other pictures by many."""
    found = (cache.pixels.shape, str(cache.pixels.dtype))
    if found != ((count, *shape), "uint8"):
        raise ValueError(
            f"{cache.path} should hold {(count, *shape)} uint8; it holds {found[0]} {found[1]}. Delete it: it will be "
            "written again."
        )
    for number in _spread(count):
        difference = (cache[number].float() - decode(number).float()).abs().mean().item()
        if difference > 4:
            raise ValueError(
                f"{cache.path} does not hold the images that the dataset has: image {number} differs by "
                f"{difference:.0f} levels of 255 on average. If another dataset of the same names wrote it, pass a "
                "folder of its own as cache=. If the images have changed, delete it: it will be written again."
            )


def _spread(count: int) -> list[int]:
    """Eight numbers from the first to the last."""
    return sorted({round(k * (count - 1) / 7) for k in range(8)})


def _of_shape(image: Tensor, shape: Sequence[int], number: int) -> Tensor:
    if tuple(image.shape) != tuple(shape):
        raise ValueError(
            f"A cache holds images of one size, {tuple(shape)}; image {number} has {tuple(image.shape)}. Pass size=, "
            "so that all are resized."
        )
    return image
