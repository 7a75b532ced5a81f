"""From images, and what is done to each of their views, to the views: batched, on the device of the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.data._augmentation import AugmentationParameters
from seqjepa.data._colour import grey, jitter, solarise
from seqjepa.data._resample import blur_matrix, resize_matrix, separable
from seqjepa.groups.base import readable

__all__ = ["augmented"]

# Numbers of an image batch at a time: on a CPU its temporaries should stay in the cache, on a GPU fill it.
CHUNK = {"cpu": 2**18, "cuda": 2**26}


def augmented(
    images: Float[Tensor, "B C H W"], parameters: AugmentationParameters, *, size: int, bicubic: bool, kernel: int
) -> Float[Tensor, "B V C h w"]:
    """Views of `size` pixels a side, blurred by `kernel` taps. Crops must lie inside their images.

    A part of the batch at a time, so that what is between the steps stays near the processor.
    """
    views = images.new_empty(len(images), parameters.crop.shape[1], images.shape[1], size, size)
    per_image = max(images[0].numel(), views[0].numel())
    chunk = max(1, CHUNK.get(images.device.type, CHUNK["cuda"]) // per_image)
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        fields: Any = (None if field is None else field[rows] for field in parameters)
        views[rows] = _some(images[rows], AugmentationParameters(*fields), size, bicubic, kernel)
    return views


def _some(images: Tensor, parameters: AugmentationParameters, size: int, bicubic: bool, kernel: int) -> Tensor:
    top, left, height, width = parameters.crop.flatten(0, 1).unbind(-1)
    rows = resize_matrix(top, height, source=images.shape[-2], size=size, bicubic=bicubic)
    columns = resize_matrix(left, width, source=images.shape[-1], size=size, bicubic=bicubic)
    mirrored = parameters.flip.flatten().bool()[:, None, None]
    columns = torch.where(mirrored, columns.flip(1), columns)
    shape = parameters.flip.shape
    views = separable(
        images.unsqueeze(1), rows.to(images.dtype).unflatten(0, shape), columns.to(images.dtype).unflatten(0, shape)
    )
    x = views.flatten(0, 1).clamp_(0, 1)  # cubic interpolation overshoots
    if images.shape[1] == 3:
        x = jitter(x, parameters.jitter.flatten(0, 1).to(x.dtype), parameters.order.flatten(0, 1))
        x = _where(parameters.grey, x, lambda part, _: grey(part).clamp_(0, 1).expand(-1, 3, -1, -1))
    x = _where(parameters.blur, x, lambda part, sigma: _blur(part, sigma, kernel))
    x = _where(parameters.solarise, x, lambda part, _: solarise(part))
    return x.unflatten(0, shape)


def _blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    blur = blur_matrix(sigma, size=images.shape[-1], kernel=kernel).to(images.dtype)
    return separable(images, blur, blur).clamp_(0, 1)  # weights sum to 1 but for rounding


def _where(
    strength: Float[Tensor, "B V"], images: Float[Tensor, "N C H W"], change: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, "N C H W"]:
    """The images, changed where the strength is not 0: those alone on a CPU, where that can be read; elsewhere all."""
    strength = strength.flatten()
    if not readable(images):
        return torch.where((strength != 0)[:, None, None, None], change(images, strength), images)
    chosen = strength.nonzero().squeeze(1)
    if len(chosen):
        images[chosen] = change(images[chosen], strength[chosen])
    return images
