"""Images turned about their centre, shifted and scaled, and the turn between two views as the action."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from seqjepa.data._images import check_images, check_num_views, spoil
from seqjepa.data._random import constant, for_each, sent, uniform
from seqjepa.groups import Group, Product, Rotation2D, Scale, Translation
from seqjepa.groups.base import all_true
from seqjepa.types import ViewSequence

__all__ = ["RotatedViews"]


@dataclass(frozen=True)
class RotatedViews:
    """Each image turned about its centre by random angles; optionally shifted and scaled too.

    A turned square leaves corners empty, and a corner tells the angle by itself: an encoder would learn to read
    borders. `border` says how they are kept out:

    - `"disc"`: a view shows the disc that fits into it, and grey (½) outside, whatever the angle;
    - `"inside"`: a view shows the largest square that never leaves the image, whatever the angle, enlarged: at any
      angle the middle 1/√2 of the side;
    - `"zero"`: the whole image, and zeros where it ends. Right for images on a black ground, such as digits,
      whose ground has no border to be seen.

    With shifts and scales, the first two look at a part of the image small enough never to reach beyond it.

    Args:
        num_views: V = T + 1, the observed views and the predicted one, at least 2.
        degrees: angles are uniform in [−degrees, degrees], counter-clockwise; above 0, at most 180, which is all.
        shift: shifts are uniform in [−shift, shift], down and to the right, in sides of a view; from 0, below ½.
        scale: (smallest, largest) magnification, above 0; uniform in their logarithm.
        size: side of a view in pixels; None is the shorter side of the images. Larger images are shrunk, antialiased,
            as far as the smallest magnification needs.
        border: "disc", "inside" or "zero".

    Shapes:
        images (B, C, H, W) in [0, 1] → views (B, V, C, size, size), actions (B, V − 1, A), parameters (B, V, A). The
        last two, float32, hold the angle (radians); then, if there are shifts, the shift down and right (sides of a
        view); then, if there are scales, the magnification (of which an action is the logarithm). `group` is
        [`Rotation2D`][seqjepa.groups.Rotation2D], or a [`Product`][seqjepa.groups.Product] of "rotation", "shift" and
        "scale".

    Raises:
        ValueError: fewer than two views; ranges outside their limits; images of another rank, or that are not finite.
        TypeError: images that are not floating point.

    Values are read on the CPU alone; on other devices an image that is not finite, or far from [0, 1], gives NaN views.

    Examples:
        >>> import torch
        >>> sampler = RotatedViews(num_views=4, degrees=180)
        >>> generator = torch.Generator().manual_seed(0)
        >>> views, actions, angles = sampler(torch.rand(8, 3, 32, 32), generator=generator)[:3]
        >>> views.shape, actions.shape, angles.shape
        (torch.Size([8, 4, 3, 32, 32]), torch.Size([8, 3, 1]), torch.Size([8, 4, 1]))
        >>> bool((sampler.group.apply(angles[:, :-1], actions) - angles[:, 1:]).abs().max() < 1e-5)
        True
    """

    num_views: int = 4
    degrees: float = 180.0
    shift: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    size: int | None = None
    border: Literal["disc", "inside", "zero"] = "disc"

    def __post_init__(self) -> None:
        check_num_views(self.num_views)
        if not 0 < self.degrees <= 180:
            raise ValueError(f"degrees is the largest angle, above 0 and at most 180; got {self.degrees}.")
        if not 0 <= self.shift < 0.5:
            raise ValueError(f"shift is in sides of a view, from 0, below ½; got {self.shift}.")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale is (smallest, largest) magnification, above 0; got {self.scale}.")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is the side of a view in pixels, at least 1, or None; got {self.size}.")
        if self.border not in ("disc", "inside", "zero"):
            raise ValueError(f"border must be 'disc', 'inside' or 'zero'; got {self.border!r}.")

    @property
    def group(self) -> Group:
        """The group of the actions."""
        parts: dict[str, Group] = {"rotation": Rotation2D()}
        if self.shift:
            parts["shift"] = Translation(2)
        if self.scale != (1.0, 1.0):
            parts["scale"] = Scale()
        return Product(parts) if len(parts) > 1 else parts["rotation"]

    def __call__(
        self, images: Float[Tensor, "B C H W"], *, generator: torch.Generator | None = None, shared: bool = False
    ) -> ViewSequence:
        """Draw a turn, and what else there is, for every view; make the views; and say how they differ.

        Args:
            images: (B, C, H, W), in [0, 1].
            generator: on any device.
            shared: one draw for all images: each goes through the same actions, the same whatever B is.
        """
        images = check_images(images)
        parameters = self.draw(len(images), generator=generator, device=images.device, shared=shared)
        actions = self.group.actions(parameters)
        if shared:
            actions = for_each(len(images), actions[:1])
        return ViewSequence(self._render(images, parameters), actions, parameters, None, self.group)

    def draw(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        shared: bool = False,
    ) -> Float[Tensor, "B V A"]:
        """Random parameters (B, V, A) for the views of `batch` images; with `shared` one draw for all of them."""
        if shared:
            return for_each(batch, self.draw(1, generator=generator, device=device))

        def draws(count: int, low: float, high: float) -> Tensor:
            return uniform((batch, self.num_views, count), low, high, generator=generator, device=device)

        limit = math.radians(self.degrees)
        parts = [draws(1, -limit, limit)]
        if self.shift:
            parts.append(draws(2, -self.shift, self.shift))
        if self.scale != (1.0, 1.0):
            parts.append(draws(1, math.log(self.scale[0]), math.log(self.scale[1])).exp())
        return torch.cat(parts, dim=-1)

    def render(
        self, images: Float[Tensor, "B C H W"], parameters: Float[Tensor, "B V A"]
    ) -> Float[Tensor, "B V C h w"]:
        """The views that these parameters make of the images; draws nothing.

        Examples:
            >>> import torch
            >>> images, sampler = torch.rand(8, 3, 32, 32), RotatedViews(border="zero")
            >>> upright = sampler.render(images, torch.zeros(8, 1, 1))[:, 0]
            >>> bool((upright - images).abs().max() < 1e-5)
            True
        """
        images = check_images(images)
        if len(parameters) != len(images) or parameters.shape[2:] != (self.group.dim,):
            raise ValueError(
                f"Parameters must be (B, V, {self.group.dim}), one row an image; got {tuple(parameters.shape)} for "
                f"{len(images)} images."
            )
        finite = parameters.isfinite().all(dim=-1)
        sound = all_true(finite)
        if sound is False:
            raise ValueError("Parameters must be finite; got NaN or infinity. Look at what computed them.")
        views = self._render(images, sent(parameters.float(), images.device))
        return views if sound else spoil(views, sent(finite, images.device))

    def _render(self, images: Tensor, parameters: Float[Tensor, "B V A"]) -> Tensor:
        """In float32 where places are computed: half precision would be pixels off."""
        batch, views = parameters.shape[:2]
        height, width = images.shape[-2:]
        size = self.size or min(height, width)
        turns = parameters[..., 0]
        shift = parameters[..., 1:3] if self.shift else torch.zeros_like(parameters[..., :1]).expand(-1, -1, 2)
        scale = parameters[..., -1] if self.scale != (1.0, 1.0) else torch.ones_like(turns)
        # From a place p in the view, in half sides, to one in the image: undo the shift, then scale and turn.
        cos, sin = turns.cos(), turns.sin()
        back = (
            torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2)) * (self._extent() / scale)[..., None, None]
        )
        offset = -back @ (2 * shift.flip(-1))[..., None]  # x before y, and half sides
        shorter = min(height, width) / constant([width, height], images.device)
        affine = torch.cat([back, offset], dim=-1) * shorter[:, None]
        grid = F.affine_grid(affine.flatten(0, 1), [batch * views, 1, size, size], align_corners=False)
        # Where a pixel of the view covers several of the image, shrink the image first: no pixel is skipped.
        covered = min(height, width) / size * self._extent() / self.scale[0]
        if covered > 1.5:
            sides = [max(1, round(side / covered)) for side in (height, width)]
            images = F.interpolate(images.float(), sides, mode="bilinear", antialias=True).to(images.dtype)
        dtype = torch.promote_types(images.dtype, torch.float32)
        source = images.to(dtype)[:, None].expand(-1, views, -1, -1, -1).flatten(0, 1)
        padding = "zeros" if self.border == "zero" else "border"  # never reached beyond half a pixel
        out = F.grid_sample(source, grid.to(dtype), mode="bilinear", padding_mode=padding, align_corners=False)
        if self.border == "disc":
            out = torch.lerp(torch.full_like(out[:1, :1], 0.5), out, _disc(size, out.device).to(out.dtype))
        return out.to(images.dtype).unflatten(0, (batch, views))

    def _extent(self) -> float:
        """How much of the image's shorter side a view of magnification 1 shows."""
        if self.border == "zero":
            return 1.0
        # A corner at (1, 1) turned by θ reaches cos θ + sin θ, most at 45°; a disc reaches 1 at any angle.
        angle = math.radians(min(self.degrees, 45.0))
        reach = 1.0 if self.border == "disc" else math.cos(angle) + math.sin(angle)
        furthest = 2 * self.shift * (math.sqrt(2) if self.border == "disc" else reach)  # in half sides of a view
        return self.scale[0] / (reach + furthest)


def _disc(size: int, device: torch.device) -> Float[Tensor, "h w"]:
    """1 inside the disc that fits into the square, 0 outside, half-way across the pixels on its edge."""
    place = torch.arange(size, device=device, dtype=torch.float32) + 0.5 - size / 2
    radius = (place[:, None] ** 2 + place[None, :] ** 2).sqrt()
    return (size / 2 - radius).clamp(0, 1)
