"""Casting the rays of many pictures at many solids, tile by tile.

A bundle of rays leaves one point a view, along `rays @ (u, v, 1)` for the point (u, v) of the picture. What makes it
fast on a CPU: a part is cast only on the tiles of the picture that its outline can touch; the rows of one kind of solid
are cast together; they run along the last, contiguous axis. Every number of a view depends on that view alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seqjepa.data.objects.primitives import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    EMPTY,
    enter_box,
    enter_cylinder,
    enter_ellipsoid,
)  # fmt: skip

__all__ = ["TILE", "Grid", "Hits", "Parts", "cast"]

TILE = 8  # rays along a side of a tile
MARGIN = 0.01  # of the space between rays, added around an outline against rounding
NEAREST = 1e-3  # points of an outline must lie this far before the origin, or the part is cast everywhere


class Parts(NamedTuple):
    """The solids of V views, P each, in one frame for all views.

    Attributes:
        kind: (V, P) `BOX`, `ELLIPSOID`, `CYLINDER` or `EMPTY`.
        centre: (V, P, 3).
        frame: (V, P, 3, 3) from a solid's own frame.
        inverse: (V, P, 3, 3) into it.
        taper: (V, P).
        albedo: (V, P).
    """

    kind: Int[Tensor, "V P"]
    centre: Float[Tensor, "V P 3"]
    frame: Float[Tensor, "V P 3 3"]
    inverse: Float[Tensor, "V P 3 3"]
    taper: Float[Tensor, "V P"]
    albedo: Float[Tensor, "V P"]


class Grid(NamedTuple):
    """The rays of a square picture: its points, `samples` along each side of a pixel, and its tiles.

    Attributes:
        size: side of the picture in pixels.
        samples: along each side of a pixel; divides `TILE`.
        half_width: u and v of the picture's edges.
    """

    size: int
    samples: int
    half_width: float

    @property
    def step(self) -> float:
        """Between neighbouring rays, in u and in v."""
        return 2 * self.half_width / (self.size * self.samples)

    @property
    def tiles(self) -> int:
        """Tiles along a side; the last may reach beyond the picture."""
        return -(-self.size * self.samples // TILE)

    def at(self, index: Tensor) -> Float[Tensor, "..."]:
        """The u or v of rays counted from the left or the top."""
        return (index.to(torch.float32) + 0.5) * self.step - self.half_width


class Hits(NamedTuple):
    """What the rays meet first, on the A tiles that any outline touches.

    Attributes:
        tile: (A,) counted over views, then rows, then columns of tiles.
        depth: (A, TILE²) t along the ray, infinite where it meets nothing.
        part: (A, TILE²) view · P + part, of what it meets.
    """

    tile: Int[Tensor, "A"]
    depth: Float[Tensor, "A rays"]
    part: Int[Tensor, "A rays"]


def cast(
    parts: Parts,
    origin: Float[Tensor, "V 3"],
    rays: Float[Tensor, "V 3 3"],
    screen: Float[Tensor, "V 3 3"],
    grid: Grid,
) -> Hits:
    """Find the first part that each ray meets.

    Args:
        parts: in the frame that `origin` and `rays` are in.
        origin: (V, 3), outside all parts.
        rays: (V, 3, 3), a ray's direction is `rays @ (u, v, 1)`.
        screen: (V, 3, 3), the inverse of `rays`.
        grid: the points (u, v), the same in all views.
    """
    start = (parts.inverse @ (origin[:, None] - parts.centre)[..., None]).flatten(0, 1)[..., 0]
    slopes = (parts.inverse @ rays[:, None]).flatten(0, 1)
    touched = _touched_tiles(parts, origin, screen, grid)
    view, down, right, part = touched.nonzero().unbind(1)
    part = view * parts.kind.shape[1] + part
    kind, taper = parts.kind.flatten()[part], parts.taper.flatten()
    by_kind = [(kind == solid).nonzero().flatten() for solid in (BOX, ELLIPSOID, CYLINDER)]
    depths = []
    for solid, row in zip((BOX, ELLIPSOID, CYLINDER), by_kind, strict=True):
        of = part[row]
        origins = start[of].T.contiguous()[:, None, None]
        directions = _directions(slopes[of], grid.at(right[row] * TILE), grid.at(down[row] * TILE), grid.step)
        if solid == BOX:
            entry = enter_box(origins, directions)
        elif solid == ELLIPSOID:
            entry = enter_ellipsoid(origins, directions)
        else:
            entry = enter_cylinder(origins, directions, taper[of])
        depths.append(entry.flatten(0, 1).T)
    place = torch.cat(by_kind).argsort()  # where a row's depths are now
    tile = (view * grid.tiles + down) * grid.tiles + right
    return _nearest(tile, part, place, torch.cat(depths), parts.kind.shape[1])


def _directions(
    slopes: Float[Tensor, "N 3 3"], u: Float[Tensor, "N"], v: Float[Tensor, "N"], step: float
) -> Float[Tensor, "3 rows columns N"]:
    """The directions of a tile's rays in the solids' own frames; the first ray is at (u, v).

    Linear in u and v, so that each number costs one sum, of its row's part and its column's.
    """
    along, across, ahead = slopes.permute(2, 1, 0).contiguous().unbind(0)  # (3, N) each, of u, v and 1
    offsets = torch.arange(TILE, dtype=slopes.dtype, device=slopes.device)[:, None] * step
    columns = along[:, None] * (u + offsets)
    rows = across[:, None] * (v + offsets) + ahead[:, None]
    return rows[:, :, None] + columns[:, None]


def _touched_tiles(
    parts: Parts, origin: Float[Tensor, "V 3"], screen: Float[Tensor, "V 3 3"], grid: Grid
) -> Bool[Tensor, "V tiles tiles P"]:
    """Which tiles the rectangle around a part's outline touches: that of the corners of the box around it."""
    centre = (screen[:, None] @ (parts.centre - origin[:, None])[..., None])[..., 0]
    frame = screen[:, None] @ parts.frame
    a, b, c = frame.unbind(-1)
    corners = torch.stack([a + b + c, a + b - c, a - b + c, a - b - c], dim=2)
    corners = torch.cat([centre[:, :, None] + corners, centre[:, :, None] - corners], dim=2)
    ahead = corners[..., 2:]
    points = corners[..., :2] / ahead.clamp(min=NEAREST)
    everywhere = (ahead < NEAREST).any(dim=2)
    low = points.amin(dim=2).masked_fill(everywhere, -torch.inf)
    high = points.amax(dim=2).masked_fill(everywhere, torch.inf)
    # Positions counted in rays; a tile holds the rays from TILE · k to TILE · k + TILE − 1.
    low = (low + grid.half_width) / grid.step - (0.5 + MARGIN)
    high = (high + grid.half_width) / grid.step - (0.5 - MARGIN)
    first = torch.arange(grid.tiles, device=low.device)[:, None, None] * TILE
    inside = (low[:, None] <= first + (TILE - 1)) & (high[:, None] >= first)  # (V, tiles, P, 2)
    columns, rows = inside[:, None, :, :, 0], inside[:, :, None, :, 1]
    return rows & columns & (parts.kind != EMPTY)[:, None, None]


def _nearest(
    tile: Int[Tensor, "N"], part: Int[Tensor, "N"], place: Int[Tensor, "N"], depth: Float[Tensor, "N rays"], most: int
) -> Hits:
    """Of the rows of each tile, the nearest ray by ray; row n has the depths `depth[place[n]]`.

    `tile` is sorted, and has at most `most` rows. Tiles are taken in the order of how many rows they have, so that
    those with an r-th row are the first ones, and a slice updates them.
    """
    tile, count = torch.unique_consecutive(tile, return_counts=True)
    first = count.cumsum(0) - count
    count, order = count.sort(descending=True, stable=True)
    tile, first = tile[order], first[order]
    nearest = depth.index_select(0, place[first])
    owner = part[first][:, None].expand(-1, depth.shape[1]).contiguous()
    ranks = torch.arange(1, most, device=count.device)[:, None]
    for rank, tiles in enumerate((count > ranks).sum(dim=1).tolist(), start=1):  # read together: each read is a wait
        if not tiles:
            break
        row = first[:tiles] + rank
        there, before = depth.index_select(0, place[row]), nearest[: len(row)]
        closer = there < before
        torch.where(closer, part[row][:, None], owner[: len(row)], out=owner[: len(row)])
        torch.minimum(there, before, out=before)
    return Hits(tile, nearest, owner)
