"""Checks that every sampler makes of the images it is given."""

from __future__ import annotations

import torch
from torch import Tensor

from seqjepa._checks import check_axes

__all__ = ["check_images", "check_num_views"]


def check_images(images: Tensor) -> None:
    """Raise unless `images` are (B, C, H, W), floating point and finite. Reads the values: one synchronisation."""
    check_axes("images", images, "B C H W")
    if 0 in images.shape:
        raise ValueError(f"A batch needs at least one image of at least one pixel; got shape {tuple(images.shape)}.")
    finite = torch.isfinite(images.flatten(1).sum(dim=1, dtype=torch.float32))
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"Images must be finite; {len(rows)} of {len(images)} hold NaN or infinity, at rows {rows[:8]}"
            f"{' …' if len(rows) > 8 else ''}. Look at what decoded or scaled them."
        )


def check_num_views(num_views: int) -> None:
    """Raise unless there are enough views for one action."""
    if num_views < 2:
        raise ValueError(
            f"num_views counts the observed views and the predicted one, at least 2, so that there is an action "
            f"(T ≥ 1); got {num_views}."
        )
