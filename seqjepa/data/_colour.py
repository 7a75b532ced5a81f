"""Changes of colour, batched: a strength of its own for every image. Images (N, 3, H, W) in [0, 1].

They agree with torchvision's functional transforms on float images, and run on the device of the images.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.groups.base import readable

__all__ = ["grey", "jitter", "shift_hue", "solarise"]

Images = Float[Tensor, "N 3 H W"]


def grey(images: Images) -> Float[Tensor, "N 1 H W"]:
    """Luma (Rec. 601), as PIL and torchvision take it."""
    r, g, b = images.unbind(dim=1)
    return torch.add(torch.add(r * 0.2989, g, alpha=0.587), b, alpha=0.114).unsqueeze(1)


def solarise(images: Images) -> Images:
    """Invert what is at least half as bright as can be."""
    return torch.where(images >= 0.5, 1 - images, images)


def shift_hue(images: Images, turns: Float[Tensor, "N"]) -> Images:
    """Turn the hue in HSV space; saturation and value stay.

    With the largest channel V, the chroma C and the hue in sixths h, a channel is V − C · clamp(min(k, 4 − k), 0, 1),
    k = (n + h) mod 6 with n = 5, 3, 1 for red, green, blue.
    """
    r, g, b = images.unbind(dim=1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    inverse = 1 / chroma.masked_fill(chroma <= 0, 1.0)
    sixth = torch.where(
        value == r, (g - b) * inverse, torch.where(value == g, (b - r) * inverse + 2, (r - g) * inverse + 4)
    )
    sixth = sixth + (6 * turns)[:, None, None]
    shifted = []
    for n in (5.0, 3.0, 1.0):
        k = sixth + n
        k = k - 6 * (k / 6).floor()  # the remainder, several times faster than torch.remainder
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        shifted.append(torch.addcmul(value, chroma, share, value=-1))
    return torch.stack(shifted, dim=1)


def _blend(images: Images, other: Tensor, factor: Float[Tensor, "N"]) -> Images:
    """`factor · images + (1 − factor) · other`, cut to [0, 1]."""
    return torch.lerp(other.expand_as(images), images, factor[:, None, None, None]).clamp_(0, 1)


def jitter(images: Images, factors: Float[Tensor, "N 4"], order: Int[Tensor, "N 4"]) -> Images:
    """Brightness, contrast, saturation (factors; 1 changes nothing) and hue (turns; 0), each image in its own order.

    `order[n]` lists the operations 0 brightness, 1 contrast, 2 saturation, 3 hue as they are done to image n.
    """
    return (_by_rows if readable(images) else _at_once)(images, factors, order)


def _by_rows(images: Images, factors: Tensor, order: Tensor) -> Images:
    """At each place in the order, the images whose turn it is for an operation are changed together."""
    images = images.clone()
    for place in range(4):
        for operation in range(4):
            neutral = 0.0 if operation == 3 else 1.0
            rows = ((order[:, place] == operation) & (factors[:, operation] != neutral)).nonzero().squeeze(1)
            if len(rows):
                images[rows] = _one(images[rows], operation, factors[rows, operation])
    return images


def _at_once(images: Images, factors: Tensor, order: Tensor) -> Images:
    """Each operation on all images, so that none must be found first: a GPU would have to be waited for.

    An image has its hue turned once, before some of its other operations and after the rest. So: the operations before
    the hue, place by place; the hue of all images; the operations after it. Out of turn, an operation changes nothing.
    """
    hue_done = (order == 3).cumsum(dim=1) > 0
    for after in (False, True):
        for place in range(1, 4) if after else range(3):
            operation = order[:, place]
            factor = factors.gather(1, operation[:, None]).squeeze(1)
            turn = (operation != 3) & (hue_done[:, place] == after)
            images = _blend_as(images, operation, factor.masked_fill(~turn, 1.0))
        if not after:
            still = (factors[:, 3] == 0)[:, None, None, None]
            images = torch.where(still, images, shift_hue(images, factors[:, 3]))
    return images


def _blend_as(images: Images, operation: Int[Tensor, "N"], factor: Float[Tensor, "N"]) -> Images:
    """Each image blended with black, its own mean grey or its grey picture; by a factor of 1 it stays as it is."""
    operation = operation[:, None, None, None]
    picture = grey(images)
    other = torch.where(operation == 1, picture.mean(dim=(1, 2, 3), keepdim=True), picture)
    return _blend(images, other.masked_fill(operation == 0, 0.0), factor)


def _one(images: Images, operation: int, factor: Float[Tensor, "N"]) -> Images:
    if operation == 0:
        return (images * factor[:, None, None, None]).clamp_(0, 1)
    if operation == 1:
        return _blend(images, grey(images).mean(dim=(1, 2, 3), keepdim=True), factor)
    if operation == 2:
        return _blend(images, grey(images), factor)
    return shift_hue(images, factor)
