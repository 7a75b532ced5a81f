"""Where a ray enters a box, an ellipsoid or a tapered cylinder, and which way the surface faces there.

Each solid lies in a frame of its own, in which it is as simple as can be:

- box: the cube [−1, 1]³;
- ellipsoid: the ball of radius 1;
- cylinder: |z| ≤ 1 and √(x² + y²) ≤ w(z), a radius that goes from 1 at z = −1 to `taper` at z = 1.

Affine maps take rays there; they keep the parameter t of a ray `origin + t · direction`, so depths compare. Components
come first, (3, …), so that every operation runs over long rows. Origins lie outside the solids. Only sums, products,
quotients and roots are used, which round alike however a batch is cut.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["BOX", "CYLINDER", "ELLIPSOID", "EMPTY", "enter_box", "enter_cylinder", "enter_ellipsoid", "outward"]

EMPTY, BOX, ELLIPSOID, CYLINDER = -1, 0, 1, 2
STEEPEST = 1e9  # 1 / direction is kept below it: a ray along a face would make 0 · ∞, not a number


def enter_box(origin: Float[Tensor, "3 *#rays"], direction: Float[Tensor, "3 *rays"]) -> Float[Tensor, "*rays"]:
    """Where rays enter the cube [−1, 1]³.

    Between a pair of faces a ray runs from `(−o − 1)/d` to `(−o + 1)/d`, for d > 0. It is inside between the last entry
    and the first exit of the three pairs.

    Args:
        origin: (3, …), outside the cube; broadcasts with the direction.
        direction: (3, …), of any length above 0.

    Returns:
        (…) the t of the entry, infinite where the ray misses.

    Examples:
        >>> enter_box(torch.tensor([0.2, 0.0, -4.0]), torch.tensor([0.0, 0.0, 1.0]))
        tensor(3.)
    """
    inverse = direction.reciprocal().clamp_(-STEEPEST, STEEPEST)
    centre, reach = (-origin) * inverse, inverse.abs_()
    near, far = (centre - reach).unbind(0), centre.add_(reach).unbind(0)
    entry = torch.maximum(torch.maximum(near[0], near[1]), near[2])
    leave = torch.minimum(torch.minimum(far[0], far[1]), far[2])
    return entry.masked_fill_(entry > leave, torch.inf)


def enter_ellipsoid(origin: Float[Tensor, "3 *#rays"], direction: Float[Tensor, "3 *rays"]) -> Float[Tensor, "*rays"]:
    """Where rays enter the ball of radius 1.

    With p the point of the ray that is closest to the centre, at t₀ = −⟨o, d⟩ / ⟨d, d⟩, the entry is
    `t₀ − √((1 − ‖p‖²) / ⟨d, d⟩)`. The usual b² − ac loses its digits for a small ball far away; this does not.

    Args:
        origin: (3, …), outside the ball; broadcasts with the direction.
        direction: (3, …), of any length above 0.

    Returns:
        (…) the t of the entry, infinite where the ray misses.

    Examples:
        >>> enter_ellipsoid(torch.tensor([0.0, 0.0, -4.0]), torch.tensor([0.0, 0.0, 2.0]))
        tensor(1.5000)
    """
    scale = _dot(direction, direction)
    closest = _dot(origin, direction).div_(scale).neg_()
    point = direction * closest
    point += origin
    inside = _dot(point, point).neg_().add_(1)
    missed = inside < 0
    return closest.sub_(inside.div_(scale).sqrt_()).masked_fill_(missed, torch.inf)


def enter_cylinder(
    origin: Float[Tensor, "3 *#rays"], direction: Float[Tensor, "3 *rays"], taper: Float[Tensor, "*#rays"]
) -> Float[Tensor, "*rays"]:
    """Where rays enter the capped cylinder |z| ≤ 1 of radius `w(z) = (1 + taper)/2 − z · (1 − taper)/2`.

    The side is x² + y² = w²: a quadratic in t, `a t² + 2 b t + c = 0`. The ray enters at its root `(−b − √D)/a`, also
    where a < 0 (a ray steeper than the side), and this entry counts where |z| ≤ 1. The cap that the origin sees
    counts where the ray crosses its disc. D = b² − ac is written as squares of 2 × 2 minors of origin and direction,
    which keeps its digits for a thin cylinder far away.

    Args:
        origin: (3, …), outside the cylinder; broadcasts with the direction.
        direction: (3, …), of any length above 0.
        taper: (…) radius at z = 1 where that at z = −1 is 1, in [0, 1]; broadcasts with the direction.

    Returns:
        (…) the t of the entry, infinite where the ray misses.

    Examples:
        >>> enter_cylinder(torch.tensor([-4.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor(0.0))
        tensor(3.5000)
    """
    (ox, oy, oz), (dx, dy, dz) = origin.unbind(0), direction.unbind(0)
    slope = (taper - 1) / 2
    ow, dw = slope * oz + (1 + taper) / 2, slope * dz
    a = (dx * dx).add_(dy * dy).sub_(dw * dw)
    b = (ox * dx).add_(oy * dy).sub_(ow * dw)
    c = ox * ox + oy * oy - ow * ow
    minors = (ox * dw).sub_(ow * dx), (oy * dw).sub_(ow * dy), (ox * dy).sub_(oy * dx)
    root = minors[0].square_().add_(minors[1].square_()).sub_(minors[2].square_()).sqrt_()  # not a number: a miss
    # c / (√D − b) is the same root; of the two forms, the one without a difference of equals is taken.
    side = torch.where(b < 0, c / (root - b), (b + root).div_(a).neg_())
    side.masked_fill_(~((dz * side).add_(oz).abs_() <= 1), torch.inf)
    face = oz.clamp(-1, 1)  # the cap on the origin's side
    radius = torch.where(oz.abs() > 1, (1 + taper) / 2 + slope * face, -1)  # no cap is seen from between the two
    cap = (face - oz) / dz
    x, y = (dx * cap).add_(ox), (dy * cap).add_(oy)
    cap.masked_fill_(~(x.square_().add_(y.square_()) <= radius * radius.abs()), torch.inf)
    return torch.minimum(side, cap)


def outward(kind: Tensor, point: Float[Tensor, "3 *rays"], taper: Float[Tensor, "*rays"]) -> Float[Tensor, "3 *rays"]:
    """The outward gradient of the surface at a point on it, of any length, in the solid's own frame.

    On a box the axis on which the point lies farthest out, with its sign; on an ellipsoid the point itself; on a
    cylinder the cap's axis, or `(x, y, w · (1 − taper)/2)` on the side, whichever surface the point is closer to.

    Args:
        kind: (…) `BOX`, `ELLIPSOID` or `CYLINDER`.
        point: (3, …).
        taper: (…) of cylinders; not read elsewhere.

    Returns:
        (3, …). The transpose of the map into this frame takes it back out, as it does every gradient.

    Examples:
        >>> outward(torch.tensor(BOX), torch.tensor([-1.0, 0.3, 0.2]), torch.tensor(1.0))
        tensor([-1.,  0.,  0.])
    """
    x, y, z = point.unbind(0)
    size = point.abs()
    largest = size.amax(dim=0)
    box = point.sign() * (size == largest)
    slope = (1 - taper) / 2
    w = (1 + taper) / 2 - slope * z
    on_cap = z * z * w * w > x * x + y * y
    cylinder = torch.stack([x, y, slope * w]).masked_fill(on_cap, 0)
    cylinder[2] += z * on_cap
    return torch.where(kind == BOX, box, torch.where(kind == ELLIPSOID, point, cylinder))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a[0] * b[0]).add_(a[1] * b[1]).add_(a[2] * b[2])
