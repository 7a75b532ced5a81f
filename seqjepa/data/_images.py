"""Checks that every sampler makes of the images it is given."""

from __future__ import annotations

import torch
from torch import Tensor

from seqjepa._checks import check_axes
from seqjepa.groups.base import all_true

__all__ = ["check_channels_first", "check_images", "check_num_views", "spoil", "unit_floats"]

LOWEST, HIGHEST = -0.25, 1.25


def check_images(images: Tensor, *, any_range: bool = False) -> Tensor:
    """The images, if they are (B, C, H, W), floating point, finite and about [0, 1]; else raise.

    A little beyond [0, 1] is let through: resizing by cubic convolution overshoots. Values are read on the CPU alone.
    On other devices, which must not be waited for, an image whose values break the rule comes back as NaN.
    """
    check_axes("images", images, "B C H W")
    check_channels_first("images", images)
    if 0 in images.shape:
        raise ValueError(f"A batch needs at least one image of at least one pixel; got shape {tuple(images.shape)}.")
    low, high = images.detach().flatten(1).amin(dim=1), images.detach().flatten(1).amax(dim=1)  # NaN goes through both
    finite = low.isfinite() & high.isfinite()
    valid = finite if any_range else finite & (low >= LOWEST) & (high <= HIGHEST)
    sound = all_true(valid)
    if sound is not False:
        return images if sound else spoil(images, valid)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"Images must be finite; {len(rows)} of {len(images)} hold NaN or infinity, at rows {rows[:8]}"
            f"{' …' if len(rows) > 8 else ''}. Look at what decoded or scaled them."
        )
    raise ValueError(
        f"Images are numbers in [0, 1]; got {low.min():.4g} to {high.max():.4g}. Divide bytes by 255; normalise the "
        "views, not the images."
    )


def check_channels_first(name: str, images: Tensor) -> None:
    """Raise where images (B, C, H, W) are three pixels wide or so, and have many channels: those are (B, H, W, C)."""
    if images.ndim == 4 and images.shape[-1] in (1, 3, 4) and min(images.shape[1:3]) > 4:
        raise ValueError(
            f"{name} must have the axes (…, C, H, W); {tuple(images.shape)} looks like (…, H, W, C). Bring the "
            "channels forward by .permute(0, 3, 1, 2)."
        )


def unit_floats(images: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; anything else as it is."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def spoil(x: Tensor, valid: Tensor) -> Tensor:
    """`x`, NaN where the leading axes are not valid: what tells of a broken rule without waiting for the device."""
    return x.masked_fill(~valid.view(*valid.shape, *[1] * (x.ndim - valid.ndim)), torch.nan)


def check_num_views(num_views: int) -> None:
    """Raise unless there are enough views for one action."""
    if num_views < 2:
        raise ValueError(
            f"num_views counts the observed views and the predicted one, at least 2, so that there is an action "
            f"(T ≥ 1); got {num_views}."
        )
