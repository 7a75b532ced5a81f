"""Resampling by matrices: each row of a matrix says how much of every source pixel goes into one pixel of the view.

A crop that is resized and a blur are both separable: one matrix for rows, one for columns, different for every view.
Products of matrices are what hardware does fastest, and they treat each view of a batch by itself.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["blur_matrix", "resize_matrix", "separable"]


def resize_matrix(
    start: Float[Tensor, "N"], length: Float[Tensor, "N"], *, source: int, size: int, bicubic: bool
) -> Float[Tensor, "N size source"]:
    """The weights that resize source pixels `start` … `start + length − 1` to `size`, antialiased, as PIL does.

    The filter is as wide as a pixel of the view where that is the larger, and stops at the border of the crop, where
    its weights are made to sum to 1 again. Cubic convolution with a = −½ (PIL, and PyTorch where it antialiases), or
    a triangle.
    """
    device = start.device
    scale = (length / size)[:, None, None]  # source pixels to a pixel of the view
    filter_scale = scale.clamp(min=1.0)
    centre = start[:, None, None] + (torch.arange(size, device=device, dtype=start.dtype) + 0.5)[None, :, None] * scale
    pixel = torch.arange(source, device=device, dtype=start.dtype)[None, None, :]
    weights = _cubic if bicubic else _triangle
    weight = weights(((pixel + 0.5 - centre) / filter_scale).abs())
    inside = (pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weight = weight * inside
    return weight / weight.sum(dim=-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution at the distance x ≥ 0, with a = −½."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def blur_matrix(sigma: Float[Tensor, "N"], *, size: int, kernel: int) -> Float[Tensor, "N size size"]:
    """The weights of a Gaussian blur with an odd number of taps, its picture continued by reflection.

    A sigma of 0 blurs nothing.
    """
    reach = kernel // 2
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    sigma = sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
    taps = torch.exp(-0.5 * (offset[None, :] / sigma[:, None]) ** 2)
    taps = taps / taps.sum(dim=1, keepdim=True)
    pixel = torch.arange(size, device=sigma.device)
    read = (pixel[:, None] + offset[None, :]).abs()  # −1 reads 1
    read = torch.where(read >= size, 2 * (size - 1) - read, read)
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device, dtype=taps.dtype)
    for tap in range(kernel):  # reflected taps fall on pixels that have one already
        matrix[:, pixel, read[:, tap]] += taps[:, tap, None]
    return matrix


def separable(
    images: Float[Tensor, "*#N C H W"], rows: Float[Tensor, "*#N h H"], columns: Float[Tensor, "*#N w W"]
) -> Float[Tensor, "*N C h w"]:
    """`rows · image · columnsᵀ` for each channel; leading axes broadcast."""
    return rows.unsqueeze(-3) @ (images @ columns.mT.unsqueeze(-3))
