"""How the shapes are put together: numbers that belong to one instance for ever, and parts placed by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.data._random import constant
from seqjepa.data.objects.primitives import BOX, CYLINDER, ELLIPSOID, EMPTY

__all__ = ["Assembly", "Numbers", "Solids", "instance_numbers"]

Value = int | float | Tensor  # one number for all instances, or (N,) numbers, one each
Turn = tuple[str, Value]  # an axis of the object, "x", "y" or "z", and an angle about it in radians

AXES = {"z": (0, 1, 2), "x": (1, 2, 0), "y": (2, 0, 1)}  # where a part's own x, y, z point, its z along the named axis


class Solids(NamedTuple):
    """N objects of up to P parts, each object inside the ball of radius 1 about the origin.

    x points right, y away from the viewer, z up; an object that is not turned faces the viewer.

    Attributes:
        kind: (N, P) `BOX`, `ELLIPSOID`, `CYLINDER`, or `EMPTY` for no part.
        centre: (N, P, 3).
        frame: (N, P, 3, 3), its columns the part's half axes: `centre + frame @ x` for x in the solid's own frame.
        taper: (N, P) of cylinders, in [0, 1].
        albedo: (N, P) share of white light that the surface gives back, in [0, 1]; objects are grey.
    """

    kind: Int[Tensor, "N P"]
    centre: Float[Tensor, "N P 3"]
    frame: Float[Tensor, "N P 3 3"]
    taper: Float[Tensor, "N P"]
    albedo: Float[Tensor, "N P"]

    def at(self, index: Int[Tensor, "M"]) -> Solids:
        """The objects of these rows."""
        return Solids(*(field[index] for field in self))

    def to(self, device: torch.device | str) -> Solids:
        """The same objects on another device."""
        return Solids(*(field.to(device) for field in self))


def instance_numbers(identity: Int[Tensor, "N"], seed: int, count: int) -> Float[Tensor, "N K"]:
    """`count` numbers in [0, 1) for each identity: a hash of identity, seed and place.

    Not a random stream: an object is the same whichever others are made, on every device and with every version of
    torch. At each place, different identities (below 2³²) have different 32-bit words, of which the leading 24 bits
    are kept.
    """
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    key = _mix(_mix(torch.tensor(low, device="cpu")) ^ high)
    keys = _mix(key ^ _mix(torch.arange(1, count + 1, device="cpu") * 0x9E3779B9))
    words = _mix(_mix(identity.cpu()[:, None] ^ keys) + keys.flip(0))
    return (words >> 8).to(torch.float32) / 2**24


def _mix(word: Tensor) -> Tensor:
    """A bijection of 32-bit words that flips about half the bits when one changes (Wellons' lowbias32), in int64."""
    word = word & 0xFFFFFFFF
    word = (word ^ (word >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    word = (word ^ (word >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return word ^ (word >> 16)


class Numbers:
    """The numbers of N instances, handed out from the first to the last.

    Args:
        numbers: (N, K) in [0, 1).

    Raises:
        IndexError: more were asked for than there are.
    """

    def __init__(self, numbers: Float[Tensor, "N K"]) -> None:
        self.numbers, self.used = numbers, 0

    def between(self, low: Value, high: Value) -> Float[Tensor, "N"]:
        """Uniform in [low, high), one for each instance."""
        self.used += 1
        return low + (high - low) * self.numbers[:, self.used - 1]

    def chance(self, probability: float) -> Tensor:
        """True with this probability, (N,)."""
        return self.between(0.0, 1.0) < probability


class Assembly:
    """Collects the parts of N objects of one class, in any unit, and scales them into the unit ball.

    A part's numbers are floats or (N,) tensors. `where` says which instances have the part. `turn` turns a part about
    an axis of the object, through the part's centre. `tone` is one of `tones`: albedos by name.

    Args:
        count: N.
        tones: name → (N,) albedo, on the CPU.
    """

    def __init__(self, count: int, tones: dict[str, Tensor]) -> None:
        self.count, self.tones = count, tones
        self.parts: list[tuple[Tensor, ...]] = []

    def box(
        self, at: Sequence[Value], half: Sequence[Value], *, turn: Turn | None = None, tone: str = "main",
        where: Tensor | bool = True,
    ) -> None:  # fmt: skip
        """A box of these half sides."""
        self._add(BOX, at, half, "z", turn, 1.0, tone, where)

    def ellipsoid(
        self, at: Sequence[Value], half: Sequence[Value], *, turn: Turn | None = None, tone: str = "main",
        where: Tensor | bool = True,
    ) -> None:  # fmt: skip
        """An ellipsoid of these half axes."""
        self._add(ELLIPSOID, at, half, "z", turn, 1.0, tone, where)

    def cylinder(
        self, at: Sequence[Value], radius: Value, half: Value, *, axis: str = "z", taper: Value = 1.0,
        turn: Turn | None = None, tone: str = "main", where: Tensor | bool = True, square: Tensor | bool = False,
    ) -> None:  # fmt: skip
        """A cylinder of this radius and half length along an axis; `taper` times the radius at its far end.

        Where `square`, a box of the same half sides instead.
        """
        self._add(
            torch.where(self._flags(square), BOX, CYLINDER), at, (radius, radius, half), axis, turn, taper, tone, where
        )

    def solids(self) -> Solids:
        """The objects, centred in the box that holds their parts' corners, the farthest corner at distance 1."""
        kind, centre, frame, taper, albedo = (torch.stack(field, dim=1) for field in zip(*self.parts, strict=True))
        signs = torch.cartesian_prod(*[constant([-1.0, 1.0], "cpu")] * 3)
        corners = centre[:, :, None] + torch.einsum("npij,sj->npsi", frame, signs)
        absent = (kind == EMPTY)[:, :, None, None]
        low = corners.masked_fill(absent, torch.inf).amin(dim=(1, 2))
        high = corners.masked_fill(absent, -torch.inf).amax(dim=(1, 2))
        middle = ((low + high) / 2)[:, None]
        reach = (corners - middle[:, None]).norm(dim=-1).masked_fill(absent[..., 0], 0).amax(dim=(1, 2))
        scale = 1 / reach[:, None, None]
        return Solids(kind, (centre - middle) * scale, frame * scale[..., None], taper, albedo)

    def _full(self, value: Value) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32, device="cpu").expand(self.count)

    def _flags(self, value: Tensor | bool) -> Tensor:
        return torch.as_tensor(value, device="cpu").expand(self.count)

    def _add(
        self, kind: Tensor | int, at: Sequence[Value], half: Sequence[Value], axis: str, turn: Turn | None,
        taper: Value, tone: str, where: Tensor | bool,
    ) -> None:  # fmt: skip
        frame = torch.zeros(self.count, 3, 3, dtype=torch.float32, device="cpu")
        for own, of_object in enumerate(AXES[axis]):
            frame[:, of_object, own] = self._full(half[own])
        if turn is not None:
            x, y, z = AXES[turn[0]]
            cos, sin = self._full(turn[1]).cos(), self._full(turn[1]).sin()
            rotation = torch.zeros_like(frame)
            rotation[:, z, z] = 1
            rotation[:, x, x], rotation[:, x, y] = cos, -sin
            rotation[:, y, x], rotation[:, y, y] = sin, cos
            frame = rotation @ frame
        kind = torch.where(self._flags(where), kind, EMPTY)
        centre = torch.stack([self._full(number) for number in at], dim=-1)
        self.parts.append((kind, centre, frame, self._full(taper), self.tones[tone]))
