"""Pictures of view sequences."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa._checks import check_axes
from seqjepa.groups import Group, Translation
from seqjepa.types import ViewSequence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["show"]


def show(
    sequence: ViewSequence,
    *,
    images: Float[Tensor, "B C H W"] | None = None,
    saliency: Float[Tensor, "B H W"] | None = None,
    rows: int = 6,
) -> Figure:
    """Draw view sequences, one source a row, each with the action to the next view in plain units.

    Actions are written by their group's `describe`: degrees, turns of hue, pixels for saccades over given images.

    Args:
        sequence: what a sampler returns; the views have one or three channels, or more, of which three are shown.
        images: for saccades, the images they were cut from: each row begins with the path of the gaze over its image.
        saliency: for saccades, the maps: drawn over the images.
        rows: the most sources to draw.

    Returns:
        A matplotlib figure. A notebook shows it; `figure.savefig(path)` writes it.

    Raises:
        ImportError: matplotlib is not installed: `pip install 'seqjepa[examples]'`.
        ValueError: views, images or maps of another rank or number; saliency without images; images for views
            that are not saccades.

    Examples:
        >>> import torch
        >>> from seqjepa.data import RotatedViews, show
        >>> figure = show(RotatedViews(num_views=3)(torch.rand(2, 3, 32, 32)))
        >>> len(figure.axes)
        6
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("show draws with matplotlib; install it with pip install 'seqjepa[examples]'.") from error
    check_axes("views", sequence.views, "B T+1 C H W")
    check_axes("actions", sequence.actions, "B T A")
    if saliency is not None and images is None:
        raise ValueError("Saliency is drawn over the images it belongs to; got none. Give images= too.")
    if images is not None:
        _check_saccades(sequence, images, saliency)
    if rows < 1:
        raise ValueError(f"rows is the number of sources to draw, at least 1; got {rows}.")
    rows = min(rows, len(sequence.views))
    columns = sequence.views.shape[1] + (images is not None)
    figure = Figure(figsize=(1.9 * columns, 2.15 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, axes in enumerate(grid):
        if images is not None:
            _path(axes[0], images[row], sequence.parameters[row], None if saliency is None else saliency[row])
        for t, axis in enumerate(axes[columns - sequence.views.shape[1] :]):
            _picture(axis, sequence.views[row, t])
            if row == 0:
                axis.set_title(f"view {t + 1}" if t < sequence.actions.shape[1] else "to predict", fontsize=9)
            if t < sequence.actions.shape[1]:
                axis.set_xlabel(_caption(sequence.group, sequence.actions[row, t], images) + "  →", fontsize=7)
    return figure


def _check_saccades(sequence: ViewSequence, images: Tensor, saliency: Tensor | None) -> None:
    check_axes("images", images, "B C H W")
    positions = sequence.parameters
    if not isinstance(positions, Tensor) or positions.ndim != 3 or positions.shape[-1] != 2:
        raise ValueError(
            "images are for saccades, whose parameters are positions (B, T+1, 2); "
            f"got {tuple(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__}. "
            "Leave images out."
        )
    if len(images) != len(sequence.views):
        raise ValueError(f"Give one image a row; got {len(images)} images for {len(sequence.views)} rows of views.")
    if saliency is not None and saliency.shape != (len(images), *images.shape[-2:]):
        raise ValueError(
            f"Saliency must be (B, H, W), {(len(images), *images.shape[-2:])} for these images; "
            f"got {tuple(saliency.shape)}."
        )


def _picture(axis: Any, image: Float[Tensor, "C H W"]) -> None:
    """One view, in colour or grey; of more than three channels the first three."""
    shown = image.detach().float().clamp(0, 1).cpu()
    channels = 3 if len(shown) >= 3 else 1
    axis.imshow(shown[:channels].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def _path(axis: Any, image: Tensor, positions: Float[Tensor, "V 2"], saliency: Tensor | None) -> None:
    """The image, its saliency as a veil, and the gaze from the first fixation to the last."""
    _picture(axis, image)
    if saliency is not None:
        veil = saliency.detach().float().cpu() / saliency.max().clamp(min=torch.finfo(torch.float32).tiny).cpu()
        axis.imshow(veil.numpy(), cmap="inferno", alpha=0.5, vmin=0, vmax=1)
    height, width = image.shape[-2:]
    size = torch.tensor([height, width], device="cpu")
    y, x = (positions.detach().float().cpu() * size - 0.5).T.tolist()
    axis.plot(x, y, "-", color="white", linewidth=1.5)
    axis.plot(x, y, "-", color="black", linewidth=0.7)
    for t, (column, row) in enumerate(zip(x, y, strict=True)):
        bubble = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.6}
        axis.text(column, row, str(t + 1), fontsize=6, ha="center", va="center", bbox=bubble)


def _caption(group: Group | None, action: Tensor, images: Tensor | None) -> str:
    action = action.detach().float().cpu()
    if images is not None and isinstance(group, Translation):
        down, right = (action * torch.tensor(images.shape[-2:], device="cpu")).tolist()
        return f"{down:+.0f} px down, {right:+.0f} px right"
    if group is None:
        return ", ".join(f"{number:+.2f}" for number in action.tolist())
    return "\n".join(textwrap.fill(part, width=28) for part in group.describe(action).split("; "))
