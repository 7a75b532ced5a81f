"""Rotations of space."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.groups.base import FixedGroup, check_elements, check_values

__all__ = ["Rotation3D"]


class Rotation3D(FixedGroup):
    """Rotations of space, as unit quaternions x y z w: an action is `q = q0⁻¹ q1`, so that R(q) = R(q0)ᵀ R(q1).

    q and −q are one rotation. What comes out has the canonical sign: w ≥ 0, and where w = 0 (half turns) the first
    of x, y, z that is not zero is positive. Parameters may come with either sign. Results have unit length, however
    long a path they compose.

    Local coordinates are the rotation vector: its direction is the axis, its length the angle in radians.

    Shapes:
        parameters and actions (…, 4); local coordinates (…, 3). Distances (…): the angle of the rotation between the
        two, radians in [0, π].

    Raises:
        ValueError: another last axis; quaternions whose length is not 1 (within 1e-3, in half precision 2e-2).
        TypeError: not a floating-point tensor.

    Source:
        The order x y z w and the relative rotation are those of 3DIEBench (Garrido et al. 2023, arXiv 2302.10283) and
        of SciPy. Their signs are not canonical, which makes one rotation two actions.

    Examples:
        >>> import torch
        >>> group = Rotation3D()
        >>> q0 = Rotation3D.from_euler(torch.tensor([0.0, 0.0, 0.5]))
        >>> q1 = Rotation3D.from_euler(torch.tensor([0.0, 0.0, 0.8]))
        >>> q = group.relative(q0, q1)
        >>> group.distance(q, group.identity())                       # radians
        tensor(0.3000)
        >>> group.describe(q)
        '17° about (+0.0, +0.0, +1.0)'
        >>> group.log(q)                                              # axis times angle
        tensor([0.0000, 0.0000, 0.3000])
    """

    @property
    def dim(self) -> int:
        """Four."""
        return 4

    def identity(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "A"]:
        """(0, 0, 0, 1)."""
        return torch.eye(4, dtype=dtype, device=device)[3]  # made where it lies: a list would make a GPU wait

    def relative(self, t0: Float[Tensor, "*#B A"], t1: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`t0⁻¹ t1`."""
        _check_unit(t0=t0, t1=t1)
        return canonical(multiply(conjugate(t0), t1))

    def apply(self, t: Float[Tensor, "*#B A"], a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`t a`."""
        return self.compose(t, a)

    def compose(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`a b`."""
        _check_unit(a=a, b=b)
        return canonical(multiply(a, b))

    def inverse(self, a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """The conjugate."""
        _check_unit(a=a)
        return canonical(conjugate(a))

    def distance(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B"]:
        """The geodesic: the angle that turns the one into the other, radians in [0, π].

        By the arc tangent, which keeps its precision near 0 and near π, where an arc cosine loses half its digits.
        """
        _check_unit(a=a, b=b)
        q = multiply(conjugate(a), b)
        return 2 * torch.atan2(torch.linalg.vector_norm(q[..., :3], dim=-1), q[..., 3].abs())

    @property
    def local_dim(self) -> int:
        """Three."""
        return 3

    def exp(self, v: Float[Tensor, "*B n"]) -> Float[Tensor, "*B A"]:
        """The rotation about v by |v| radians: `(v/|v| sin(|v|/2), cos(|v|/2))`."""
        self._check_local(v)
        squared = v.square().sum(dim=-1, keepdim=True)
        angle, small = _root(squared)
        over_angle = torch.where(small, 0.5 - squared / 48, (angle / 2).sin() / angle)
        w = torch.where(small, 1 - squared / 8 + squared.square() / 384, (angle / 2).cos())
        return canonical(torch.cat([v * over_angle, w], dim=-1))

    def log(self, a: Float[Tensor, "*B A"]) -> Float[Tensor, "*B n"]:
        """The rotation vector, at most π long."""
        _check_unit(a=a)
        q = canonical(a)
        xyz, w = q[..., :3], q[..., 3:]
        squared = xyz.square().sum(dim=-1, keepdim=True)
        sine, small = _root(squared)
        tangent = squared / w.square().clamp(min=0.5)  # the square of the tangent where that is small
        series = (1 - tangent / 3 + tangent.square() / 5) / w.clamp(min=0.5)
        return 2 * xyz * torch.where(small, series, torch.atan2(sine, w) / sine)

    def describe(self, a: Float[Tensor, "A"]) -> str:
        """Angle in degrees, and the axis."""
        self._check_one(a)
        _check_unit(a=a)
        q = canonical(a)
        angle = 2 * torch.atan2(torch.linalg.vector_norm(q[:3]), q[3]).item()
        x, y, z = (q[:3] / torch.linalg.vector_norm(q[:3]).clamp(min=1e-12)).tolist()
        return f"{math.degrees(angle):.0f}° about ({x:+.1f}, {y:+.1f}, {z:+.1f})"

    @staticmethod
    def random(
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "*shape 4"]:
        """Rotations drawn uniformly (Haar), (…, 4), on the generator's device unless another is named.

        Examples:
            >>> import torch
            >>> Rotation3D.random(8, generator=torch.Generator().manual_seed(0)).shape
            torch.Size([8, 4])
        """
        device = device if generator is None or device is not None else generator.device
        drawn_on = device if generator is None else generator.device
        q = torch.randn(*shape, 4, generator=generator, dtype=dtype, device=drawn_on).to(device)
        return canonical(q)  # the direction of a normal vector is uniform on the sphere

    @staticmethod
    def from_euler(angles: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4"]:
        """Extrinsic x, y, z angles in radians → quaternions: R = R_z R_y R_x, as in 3DIEBench.

        Examples:
            >>> import torch
            >>> Rotation3D.from_euler(torch.tensor([torch.pi, 0.0, 0.0])).abs().round(decimals=3)
            tensor([1., 0., 0., 0.])
        """
        check_elements("Euler angles", 3, angles=angles)
        half = angles / 2
        (cx, cy, cz), (sx, sy, sz) = half.cos().unbind(-1), half.sin().unbind(-1)
        x, y, z = sx * cy * cz - cx * sy * sz, cx * sy * cz + sx * cy * sz, cx * cy * sz - sx * sy * cz
        return canonical(torch.stack([x, y, z, cx * cy * cz + sx * sy * sz], dim=-1))

    @staticmethod
    def from_matrix(matrix: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 4"]:
        """Rotation matrices → quaternions.

        Of the four columns 4 q_i q of the outer product, the longest is taken, so that nothing is divided by a small
        number, at half turns too.

        Examples:
            >>> import torch
            >>> Rotation3D.from_matrix(torch.eye(3))
            tensor([0., 0., 0., 1.])
        """
        check_elements("rotation matrix", 3, matrix=matrix)
        if matrix.ndim < 2 or matrix.shape[-2] != 3:
            raise ValueError(f"A rotation matrix has the axes (…, 3, 3); got shape {tuple(matrix.shape)}.")
        error = (matrix @ matrix.mT - torch.eye(3, dtype=matrix.dtype, device=matrix.device)).abs().amax((-2, -1))
        check_values(
            error < 1e-2, error, "R Rᵀ of a rotation matrix R is the identity within 0.01", "Orthonormalise it."
        )
        determinant = torch.linalg.det(matrix.detach().float())
        check_values(determinant > 0, determinant, "A rotation matrix has determinant +1", "Others are reflections.")
        rows = [matrix[..., i, j] for i in range(3) for j in range(3)]
        xx, xy, xz, yx, yy, yz, zx, zy, zz = rows
        outer = torch.stack([
            torch.stack([1 + xx - yy - zz, xy + yx, xz + zx, zy - yz], dim=-1),
            torch.stack([xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx], dim=-1),
            torch.stack([xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy], dim=-1),
            torch.stack([zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz], dim=-1),
        ], dim=-2)  # fmt: skip
        longest = outer.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
        return canonical(torch.take_along_dim(outer, longest[..., None, None], dim=-2).squeeze(-2))

    @staticmethod
    def to_matrix(q: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 3 3"]:
        """Quaternions → rotation matrices; the matrix times a column vector turns the vector.

        Examples:
            >>> import torch
            >>> quarter = torch.tensor([0.0, 0.0, 0.5, 0.5]).sqrt()                 # about z
            >>> Rotation3D.to_matrix(quarter).round() @ torch.tensor([1.0, 0.0, 0.0])
            tensor([0., 1., 0.])
        """
        _check_unit(q=q)
        x, y, z, w = (q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)).unbind(-1)
        entries = [
            1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
        ]  # fmt: skip
        return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))

    @staticmethod
    def to_6d(q: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 6"]:
        """Quaternions → the first two columns of the matrix, one after the other: continuous, with no sign to choose.

        Source:
            Zhou et al. 2019 (arXiv 1812.07035).

        Examples:
            >>> import torch
            >>> Rotation3D.to_6d(torch.tensor([0.0, 0.0, 0.0, 1.0]))
            tensor([1., 0., 0., 0., 1., 0.])
        """
        return Rotation3D.to_matrix(q)[..., :2].mT.flatten(-2)

    @staticmethod
    def from_6d(columns: Float[Tensor, "*B 6"]) -> Float[Tensor, "*B 4"]:
        """Two columns, made orthonormal by Gram–Schmidt → quaternions. They need not be orthonormal, only independent.

        Examples:
            >>> import torch
            >>> Rotation3D.from_6d(torch.tensor([2.0, 0.0, 0.0, 5.0, 3.0, 0.0]))
            tensor([0., 0., 0., 1.])
        """
        check_elements("6-D rotations", 6, columns=columns)
        a, b = columns[..., :3], columns[..., 3:]
        first = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True)
        rest = b - (first * b).sum(dim=-1, keepdim=True) * first
        length = torch.linalg.vector_norm(rest, dim=-1, keepdim=True)
        check_values(
            (length > 1e-6 * torch.linalg.vector_norm(b, dim=-1, keepdim=True)) & length.isfinite(),
            length,
            "The two columns of a 6-D rotation must point in different directions, neither zero, the second away from "
            "the first",
            "Look at what predicts them.",
        )
        second = rest / length
        return Rotation3D.from_matrix(torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1))


def _check_unit(**quaternions: Tensor) -> None:
    """Raise unless all are quaternions of length 1."""
    check_elements("Rotation3D (x y z w)", 4, **quaternions)
    for name, q in quaternions.items():
        tolerance = 1e-3 if q.dtype in (torch.float32, torch.float64) else 2e-2
        length = torch.linalg.vector_norm(q.detach(), dim=-1)
        check_values(
            (length - 1).abs() <= tolerance,  # also false of NaN
            length,
            f"Quaternions must have length 1 (within {tolerance:g}) in {name}",
            f"Divide by the length: {name} / {name}.norm(dim=-1, keepdim=True).",
        )


def _root(squared: Tensor) -> tuple[Tensor, Tensor]:
    """The root of a squared length, and where that is so small that a series is exact: there 1, for a finite gradient.

    Below 1e-3 the terms that a series of three leaves out are smaller than what float64 can tell.
    """
    small = squared < 1e-6
    return torch.where(small, 1.0, squared).sqrt(), small


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The quaternion product a b, in the order x y z w."""
    ax, ay, az, aw = a.unbind(-1)
    bx, by, bz, bw = b.unbind(-1)
    return torch.stack([
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    ], dim=-1)  # fmt: skip


def conjugate(q: Tensor) -> Tensor:
    """(−x, −y, −z, w)."""
    return torch.cat([-q[..., :3], q[..., 3:]], dim=-1)


def canonical(q: Tensor) -> Tensor:
    """Unit length; of q and −q the one whose w is positive, or at w = 0 the first number that is not zero."""
    x, y, z, w = q.detach().unbind(-1)
    leading = torch.where(w != 0, w, torch.where(x != 0, x, torch.where(y != 0, y, z)))
    sign = torch.where(leading < 0, -1.0, 1.0).to(q.dtype)
    unit = q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    return unit * sign[..., None] + 0.0  # + 0.0: no negative zeros
