"""Saccades: an image seen through a small fovea that jumps from one salient place to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa._checks import check_axes
from seqjepa.data._images import check_images, check_num_views, spoil
from seqjepa.data._random import constant, draw_indices, for_each
from seqjepa.data.saliency import check_saliency
from seqjepa.groups import Group, Product, Scale, Translation
from seqjepa.groups.base import all_true
from seqjepa.types import ViewSequence

__all__ = ["SaccadeViews"]

FLOOR = 1e-30  # share of a map's peak that every pixel weighs at least: where to look once all that is salient was seen
SNAP = 1e-3  # pixels; positions in float32 are not sharper than this on images of thousands of pixels


@dataclass(frozen=True, kw_only=True)
class SaccadeViews:
    """Views of an image through a fovea: patches cut where its saliency map says, never twice at the same place.

    Fixations are pixels (r, c), drawn one after the other with probability proportional to saliency. After each, the
    map is set to zero around it: inhibition of return. The fovea at (r, c) holds the image's own pixels, unchanged:

    ```
    patch     rows r − ⌊f/2⌋ … r + ⌈f/2⌉ − 1, and columns likewise; centred on the pixel where the fovea f is odd
    position  ((r + ½) / H, (c + ½) / W)
    action    position of the next view − position of this one
    ```

    Without saliency all pixels weigh the same; inhibition still applies. When all that is salient has been inhibited,
    the next fixation falls anywhere outside the inhibited places, uniformly; when they cover everything, inhibition is
    forgotten and the map starts anew.

    Args:
        num_views: V = T + 1, fixations an image, at least 2.
        fovea: f, side of a patch in pixels.
        inhibition: the shape of what is inhibited, "square" as in the paper or "round"; None to let the gaze return.
        radius: half-width of the square or radius of the disc, in pixels: both hold the pixels at most this far away.
            None is the paper's, f / 2.
        padding: None draws fixations only where the fovea stays inside the image. "reflect" draws them anywhere, and
            mirrors the image at its edges.
        center_bias: standard deviation of a Gaussian about the middle of the image that saliency is multiplied by, as a
            share of each side; None for no such bias.
        scales: sides of the concentric crops at each fixation over the fovea's, each resized to f × f with
            antialiasing; 1 is the fovea itself and must be among them. The wider ones may reach beyond the image,
            which is mirrored there.
        scales_as: "channels" puts the S crops of a fixation side by side as channels, in the order of `scales`;
            "views" makes each a view of its own in that order, with an action that says how the scale changes.

    Shapes:
        images (B, C, H, W) in [0, 1], saliency (B, H, W) at least 0 → views (B, V, S·C, f, f), actions (B, V−1, 2) of
        [`Translation(2)`][seqjepa.groups.Translation], parameters (B, V, 2): positions (y, x) over (H, W), in (0, 1).
        With scales as views: views (B, V·S, C, f, f), actions (B, V·S−1, 3) of a
        [`Product`][seqjepa.groups.Product] of position and scale, parameters (B, V·S, 3): y, x, scale.

    Raises:
        ValueError: settings or inputs that break a rule above; saliency that is not finite, negative, all zero, of
            another size, or zero wherever the fovea fits; a fovea larger than the image; images with NaN.
        TypeError: images or saliency that are not floating point; a number of views or a fovea that is not whole.

    Values are read on the CPU alone; on other devices an image that breaks a rule gives NaN views, a map NaN actions.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), section 3, predictive learning across saccades. The released code reads
        saliency at (row, column) and cuts at (column, row), shrinks patches by 3 %, and pads with zeros; this does not.

    Examples:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> saccades = SaccadeViews(num_views=5, fovea=32)
        >>> images, maps = torch.rand(8, 3, 96, 96), torch.rand(8, 96, 96)
        >>> views, actions, positions = saccades(images, saliency=maps, generator=g)[:3]
        >>> views.shape, actions.shape, positions.shape
        (torch.Size([8, 5, 3, 32, 32]), torch.Size([8, 4, 2]), torch.Size([8, 5, 2]))
        >>> torch.equal(saccades.at(images, positions).views, views)
        True
    """

    num_views: int
    fovea: int
    inhibition: Literal["square", "round"] | None = "square"
    radius: float | None = None
    padding: Literal["reflect"] | None = None
    center_bias: float | None = None
    scales: tuple[float, ...] = (1,)
    scales_as: Literal["channels", "views"] = "channels"

    def __post_init__(self) -> None:
        for name in ("num_views", "fovea"):
            if not isinstance(number := getattr(self, name), Integral):
                raise TypeError(f"{name} must be a whole number; got {number!r}. Convert it with int().")
        check_num_views(self.num_views)
        if self.fovea < 1:
            raise ValueError(f"The fovea is at least one pixel wide; got fovea={self.fovea}.")
        for name, choices in (
            ("inhibition", ("square", "round", None)),
            ("padding", ("reflect", None)),
            ("scales_as", ("channels", "views")),
        ):
            if (choice := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {choice!r}.")
        if self.radius is not None and not self.radius >= 0:
            raise ValueError(f"radius is a distance in pixels, at least 0; got {self.radius}.")
        if self.radius is not None and self.inhibition is None:
            raise ValueError(f"Without inhibition there is nothing for radius={self.radius} to measure. Leave one out.")
        if self.center_bias is not None and not self.center_bias > 0:
            raise ValueError(
                f"center_bias is a standard deviation as a share of the image's side, above 0; got {self.center_bias}."
            )
        self._check_scales()

    def _check_scales(self) -> None:
        sound = all(1 <= scale < math.inf for scale in self.scales)  # False of NaN, too
        if 1 not in self.scales or not sound or len(set(self.scales)) < len(self.scales):
            raise ValueError(
                "scales must be different numbers, 1 (the fovea) and wider ones, such as (1, 2, 4); "
                f"got {tuple(self.scales)}."
            )
        for scale in self.scales:
            side = scale * self.fovea
            if side != round(side) or (round(side) - self.fovea) % 2:
                raise ValueError(
                    "Crops of all scales share their centre, so they must be an even number of pixels wider than the "
                    f"fovea; a scale of {scale} makes a crop of {side:g} around a fovea of {self.fovea}."
                )

    @property
    def group(self) -> Group:
        """What an action is an element of."""
        position = Translation(2)
        return position if self.scales_as == "channels" else Product({"position": position, "scale": Scale()})

    def __call__(
        self,
        images: Float[Tensor, "B C H W"],
        *,
        saliency: Float[Tensor, "B H W"] | None = None,
        generator: torch.Generator | None = None,
        shared: bool = False,
    ) -> ViewSequence:
        """Draw fixations, and cut the views there.

        Args:
            images: (B, C, H, W), in [0, 1].
            saliency: (B, H, W), at least 0, where the images lie; None weighs all pixels the same.
            generator: on any device.
            shared: the same fixations for all images, drawn by the mean of their maps, the peak of each 1.
        """
        images, weights = self._start(images, saliency, shared)
        pixels = self._fixations(weights, generator)
        positions = [(pixels[..., axis].float() + 0.5) / images.shape[2 + axis] for axis in (0, 1)]
        sound = weights[:, 0, 0].isfinite()  # a map that broke a rule, unread, weighs NaN
        place = spoil(torch.stack(positions, dim=-1), sound)
        if not shared:
            return self._sequence(images, place, pixels)
        sequence = self._sequence(images, for_each(len(images), place), for_each(len(images), pixels))
        return sequence._replace(actions=for_each(len(images), sequence.actions[:1]))

    def at(self, images: Float[Tensor, "B C H W"], positions: Float[Tensor, "B V 2"]) -> ViewSequence:
        """Cut the views at given positions: the image's own pixels, and between pixels their bilinear mean.

        A position within a thousandth of a pixel of a pixel's counts as that pixel's.

        Args:
            images: (B, C, H, W), in [0, 1].
            positions: (B, V, 2), (y, x) over (H, W): pixel (r, c) lies at ((r + ½) / H, (c + ½) / W). Any V ≥ 1.

        Returns:
            What a call would that had drawn these fixations.

        Raises:
            ValueError: positions of another shape, not finite, or where the fovea would leave the image.
        """
        images = check_images(images)
        self._check_fits(images)
        _check_positions(positions, images)
        exact = []
        for axis, size in enumerate(images.shape[2:]):
            place = positions[..., axis].double() * size - 0.5
            place = torch.where((place - place.round()).abs() < SNAP, place.round(), place)
            first, last = (-0.5, size - 0.5) if self.padding else self._reach(size)
            inside = (place >= first) & (place <= last)
            fits = all_true(inside)
            if fits is False:
                row, view = (~inside).nonzero()[0].tolist()
                raise ValueError(
                    f"A fovea of {self.fovea} needs {'yx'[axis]} in [{(first + 0.5) / size:.4f}, "
                    f"{(last + 0.5) / size:.4f}] on images of {tuple(images.shape[2:])}; got "
                    f"{positions[row, view, axis].item():.4f} in row {row}, view {view}."
                    + ("" if self.padding else ' Move it, or build SaccadeViews(padding="reflect").')
                )
            if fits is None:  # unread: a place outside is seen nowhere, and reads no memory that is not the image's
                positions, place = spoil(positions, inside), place.masked_fill(~inside, float(first))
            exact.append(place)
        place = torch.stack(exact, dim=-1)
        pixels = place.floor().long()
        return self._sequence(images, positions, pixels, (place - pixels).to(images.dtype))

    def fixate(
        self,
        images: Float[Tensor, "B C H W"],
        *,
        saliency: Float[Tensor, "B H W"] | None = None,
        generator: torch.Generator | None = None,
        shared: bool = False,
    ) -> Int[Tensor, "B V 2"]:
        """Draw the fixations alone.

        Args:
            images: (B, C, H, W); for their number, size and device.
            saliency: (B, H, W), at least 0, where the images lie; None weighs all pixels the same.
            generator: on any device.
            shared: the same for all images, drawn by the mean of their maps.

        Returns:
            (B, V, 2) pixels: row in [0, H), column in [0, W).
        """
        images, weights = self._start(images, saliency, shared)
        pixels = self._fixations(weights, generator)
        return for_each(len(images), pixels) if shared else pixels

    def _start(self, images: Tensor, saliency: Tensor | None, shared: bool) -> tuple[Tensor, Tensor]:
        """The images, and the weights of the first fixation: one map where it is shared."""
        images = check_images(images)
        self._check_fits(images)
        weights = self._weights(images, saliency)
        return images, weights.mean(dim=0, keepdim=True) if shared else weights

    @torch.no_grad()
    def _fixations(self, fresh: Float[Tensor, "B h w"], generator: torch.Generator | None) -> Int[Tensor, "B V 2"]:
        """Pixels, drawn one after the other by weights that inhibition takes away."""
        weights = fresh if self.inhibition is None else fresh.clone()
        batch = torch.arange(len(fresh), device=fresh.device)
        rows = fresh_rows = fresh.sum(dim=2)
        fixations: list[Tensor] = []
        for view in range(self.num_views):
            if view and self.inhibition is not None:
                self._inhibit(weights, fixations[-1])
                rows = weights.sum(dim=2)
                left = rows.sum(dim=1) != 0
                if not all_true(left):  # nothing is left of some maps, or nobody can tell at once
                    weights = torch.where(left[:, None, None], weights, fresh)
                    rows = torch.where(left[:, None], rows, fresh_rows)
            row = draw_indices(rows, generator=generator)  # a row, then a place in it: two short sums, not a long one
            column = draw_indices(weights[batch, row], generator=generator)
            fixations.append(torch.stack([row, column], dim=1))
        return torch.stack(fixations, dim=1) + (0 if self.padding else self.fovea // 2)

    def _reach(self, size: int) -> tuple[int, int]:
        """The first and the last pixel, of so many along an axis, that a fixation may be drawn on."""
        before = self.fovea // 2
        return (0, size - 1) if self.padding else (before, size - (self.fovea - before))

    @torch.no_grad()
    def _weights(
        self, images: Float[Tensor, "B C H W"], saliency: Float[Tensor, "B H W"] | None
    ) -> Float[Tensor, "B h w"]:
        """What each pixel within reach weighs in the draw: the peak of each map 1, everything at least `FLOOR`."""
        height, width = images.shape[2:]
        (top, bottom), (left, right) = self._reach(height), self._reach(width)
        if saliency is None:
            shape = (len(images), bottom - top + 1, right - left + 1)
            weights = torch.ones(shape, dtype=torch.float32, device=images.device)
        else:
            saliency = check_saliency(saliency, images)
            weights = saliency[:, top : bottom + 1, left : right + 1]
            weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
        if self.center_bias is not None:
            down, along = (
                (torch.arange(first, last + 1, dtype=torch.float32, device=images.device) + 0.5) / size - 0.5
                for (first, last), size in (((top, bottom), height), ((left, right), width))
            )
            far = down.square()[:, None] + along.square()
            weights = weights * (-0.5 * (far - far.min()) / self.center_bias**2).exp()
        peak = weights.amax(dim=(1, 2), keepdim=True)
        seen = peak > 0
        if all_true(seen) is False:
            row = int((peak.flatten() <= 0).nonzero()[0])
            biased = "" if self.center_bias is None else f" or center_bias={self.center_bias} leaves nothing of it"
            raise ValueError(
                f"The saliency of row {row} lies wholly where a fovea of {self.fovea} would leave the image, outside "
                f"rows {top} … {bottom} and columns {left} … {right}{biased}. "
                'Build SaccadeViews(padding="reflect"), or use a smaller fovea.'
            )
        return (weights / peak.masked_fill(~seen, torch.nan)).float().add_(FLOOR)

    def _inhibit(self, weights: Float[Tensor, "B h w"], fixation: Int[Tensor, "B 2"]) -> None:
        """Set the weights around each row's fixation to zero, in place."""
        radius = self.fovea / 2 if self.radius is None else self.radius
        down, along = (
            (torch.arange(size, device=weights.device) - fixation[:, axis, None]).abs()
            for axis, size in enumerate(weights.shape[1:])
        )
        if self.inhibition == "square":
            near = (down <= radius)[:, :, None] & (along <= radius)[:, None, :]
        else:
            near = down.square()[:, :, None] + along.square()[:, None, :] <= radius**2
        weights.masked_fill_(near, 0)

    def _sequence(
        self,
        images: Float[Tensor, "B C H W"],
        positions: Float[Tensor, "B V 2"],
        pixels: Int[Tensor, "B V 2"],
        offset: Float[Tensor, "B V 2"] | None = None,
    ) -> ViewSequence:
        """The views at pixels, or `offset` in [0, 1) of a pixel further down and to the right."""
        if offset is not None and all_true(offset == 0):
            offset = None
        crops = [self._crop(images, pixels, offset, round(scale * self.fovea)) for scale in self.scales]
        if self.scales_as == "views":
            n = len(self.scales)
            scale = constant(self.scales, positions.device, positions.dtype)[:, None]
            place = positions[:, :, None].expand(-1, -1, n, -1)
            parameters = torch.cat([place, scale.expand(*place.shape[:2], n, 1)], dim=-1).flatten(1, 2)
            views = torch.stack(crops, dim=2).flatten(1, 2)
        else:
            views, parameters = crops[0] if len(crops) == 1 else torch.cat(crops, dim=2), positions
        return ViewSequence(views, self.group.actions(parameters), parameters, group=self.group)

    def _crop(self, images: Tensor, pixels: Tensor, offset: Tensor | None, side: int) -> Float[Tensor, "B V C f f"]:
        """Crops of that side about the centre of the fovea at each pixel, resized to the fovea where they are wider."""
        corner = pixels - self.fovea // 2 - (side - self.fovea) // 2
        if offset is None:
            patches = cut_patches(images, corner, side, mirror=self.padding is not None or side > self.fovea)
        else:  # one pixel more each way: where the offset is 0 it counts nothing, and may lie outside
            patches = cut_patches(images, corner, side + 1, mirror=True)
            down, along = (part[..., None, None, None] for part in offset.unbind(-1))
            patches = torch.lerp(patches[..., :-1, :], patches[..., 1:, :], down)
            patches = torch.lerp(patches[..., :-1], patches[..., 1:], along)
        if side == self.fovea:
            return patches
        size = (self.fovea, self.fovea)
        wide = patches.flatten(0, 1).to(torch.promote_types(patches.dtype, torch.float32))  # antialiased in these alone
        small = F.interpolate(wide, size, mode="bilinear", antialias=True, align_corners=False)
        return small.to(patches.dtype).unflatten(0, patches.shape[:2])

    def _check_fits(self, images: Tensor) -> None:
        if self.fovea > min(images.shape[2:]):
            raise ValueError(
                f"The fovea must fit into the image; got a fovea of {self.fovea} pixels and images of "
                f"{tuple(images.shape[2:])}. Use a smaller fovea, or larger images."
            )


def cut_patches(
    images: Float[Tensor, "B C H W"], corner: Int[Tensor, "B V 2"], side: int, *, mirror: bool = False
) -> Float[Tensor, "B V C side side"]:
    """Squares of each image from their upper left corners on, by one copy of their rows.

    With `mirror` up to half of a square and one pixel may lie outside the image, which is reflected there.
    """
    b, c, h, w = images.shape
    top, left = corner.unbind(-1)
    rows = top[..., None] + torch.arange(side, device=images.device)
    if mirror:
        margin = side // 2 + 1
        rows, images, left, w = _reflected(rows, h), _mirror_columns(images, margin), left + margin, w + 2 * margin
    planes = torch.arange(b * c, device=images.device).view(b, 1, c, 1)
    starts = (planes * h + rows[:, :, None]) * w + left[..., None, None]  # of each row of a patch, in the flat batch
    windows = images.reshape(-1).unfold(0, side, 1)  # a view: all runs of `side` pixels
    return windows.index_select(0, starts.flatten()).view(*starts.shape, side)


def _mirror_columns(images: Float[Tensor, "B C H W"], margin: int) -> Float[Tensor, "B C H wider"]:
    width = images.shape[3]
    if margin < width:
        return F.pad(images, (margin, margin, 0, 0), mode="reflect")
    columns = torch.arange(-margin, width + margin, device=images.device)  # what `F.pad` refuses: mirrors in mirrors
    return images.index_select(3, _reflected(columns, width))


def _reflected(index: Int[Tensor, "*N"], size: int) -> Int[Tensor, "*N"]:
    """The pixel seen at an index that may lie outside, as in … 2 1 0 1 2 …: the edge is not repeated."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * size - 2)
    return torch.minimum(index, 2 * size - 2 - index)


def _check_positions(positions: Tensor, images: Tensor) -> None:
    check_axes("positions", positions, "B V 2")
    if positions.shape[0] != len(images) or positions.shape[1] < 1 or positions.shape[2] != 2:
        raise ValueError(
            f"Positions are (y, x) of V ≥ 1 fixations in each of {len(images)} images, ({len(images)}, V, 2); "
            f"got shape {tuple(positions.shape)}."
        )
    if positions.device != images.device:
        raise ValueError(
            f"Positions must lie where the images do, on {images.device}; got {positions.device}. "
            f"Move one of them: positions.to({str(images.device)!r})."
        )
    if all_true(positions.isfinite()) is False:
        raise ValueError("Positions must be finite; got NaN or infinity.")
