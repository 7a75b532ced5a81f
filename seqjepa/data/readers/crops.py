"""Crops of an image and its saliency map together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from seqjepa.data.readers._files import resized

__all__ = ["CenterCrop", "PairCrop", "RandomResizedCrop"]


@runtime_checkable
class PairCrop(Protocol):
    """What cuts an image and its saliency map in the same way."""

    def __call__(
        self,
        image: Shaped[Tensor, "C H W"],
        saliency: Float[Tensor, "H W"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Shaped[Tensor, "C size size"], Float[Tensor, "size size"] | None]:
        """The crop of both."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random window of an image and of its saliency map, resized to a square.

    The share of the area is uniform in `scale`, the logarithm of width over height uniform in that of `ratio`. A
    window that does not fit is drawn again, up to ten times; then it is the largest centred one within `ratio`.

    The released ImageNet code crops the image and not its saliency, so that the eye is led to places that are not
    there.

    Args:
        size: of the square, in pixels.
        scale: least and largest share of the area, in (0, 1].
        ratio: least and largest width over height, above 0.

    Shapes:
        image (C, H, W), saliency (H, W) or None → (C, size, size) of the image's dtype, (size, size) float32 or None.

    Raises:
        ValueError: a size below 1; ranges that are empty or out of bounds; a map of another size than the image.

    Source:
        Szegedy et al. 2015 (arXiv 1409.4842), as in torchvision's RandomResizedCrop.

    Examples:
        >>> import torch
        >>> image, saliency = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.ones(60, 80)
        >>> crop = RandomResizedCrop(32)
        >>> [part.shape for part in crop(image, saliency, generator=torch.Generator().manual_seed(0))]
        [torch.Size([3, 32, 32]), torch.Size([32, 32])]
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"scale is a range in (0, 1], ratio one above 0; got scale={self.scale} and ratio={self.ratio}."
            )

    def __call__(
        self,
        image: Shaped[Tensor, "C H W"],
        saliency: Float[Tensor, "H W"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Shaped[Tensor, "C size size"], Float[Tensor, "size size"] | None]:
        """A random crop of both."""
        return _cut(image, saliency, self.window(image.shape[1], image.shape[2], generator=generator), self.size)

    def window(self, height: int, width: int, *, generator: torch.Generator | None = None) -> tuple[int, int, int, int]:
        """A window (top, left, height, width) of an image of this size."""
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area, ratio, y, x = torch.rand(4, generator=generator, dtype=torch.float64, device="cpu").tolist()
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
            ratio = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * ratio)
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class CenterCrop:
    """The centre of an image and of its saliency map, resized to a square: nothing is random.

    The window is a centred square of `share` of the shorter side.

    Args:
        size: of the square, in pixels.
        share: of the shorter side, in (0, 1]; 7/8 is the usual resizing to 256 and cutting of 224.

    Shapes:
        image (C, H, W), saliency (H, W) or None → (C, size, size) of the image's dtype, (size, size) float32 or None.

    Raises:
        ValueError: a size below 1; a share outside (0, 1]; a map of another size than the image.

    Examples:
        >>> import torch
        >>> CenterCrop(32)(torch.zeros(3, 60, 80, dtype=torch.uint8))[0].shape
        torch.Size([3, 32, 32])
    """

    size: int
    share: float = 7 / 8

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.share <= 1:
            raise ValueError(f"share lies in (0, 1]; got {self.share}.")

    def __call__(
        self,
        image: Shaped[Tensor, "C H W"],
        saliency: Float[Tensor, "H W"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Shaped[Tensor, "C size size"], Float[Tensor, "size size"] | None]:
        """The centre of both."""
        height, width = image.shape[1:]
        side = max(1, round(self.share * min(height, width)))
        return _cut(image, saliency, ((height - side) // 2, (width - side) // 2, side, side), self.size)


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"A crop's size is at least 1 pixel; got {size}.")


def _cut(
    image: Tensor, saliency: Tensor | None, window: tuple[int, int, int, int], size: int
) -> tuple[Tensor, Tensor | None]:
    if saliency is not None and saliency.shape != image.shape[1:]:
        raise ValueError(
            f"A saliency map has the size (H, W) of its image, {tuple(image.shape[1:])}; got {tuple(saliency.shape)}."
        )
    top, left, height, width = window
    here = slice(top, top + height), slice(left, left + width)
    cropped = resized(image[:, here[0], here[1]], size, size)
    if saliency is None:
        return cropped, None
    part = saliency[here][None, None].float()
    part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0, 0]
    # Where nothing in the window is salient, the eye may go anywhere.
    return cropped, part if bool((part > 0).any()) else torch.ones_like(part)
