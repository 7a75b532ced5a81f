"""Groups of numbers that add: on a line (Translation, Scale) or on a circle (Rotation2D, Hue)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.groups.base import FixedGroup, check_values

__all__ = ["Hue", "Rotation2D", "Scale", "Translation"]


class _Additive(FixedGroup):
    """Actions that add, number by number."""

    dim: int = 1

    def __init__(self, dim: int = 1) -> None:
        if dim < 1:
            raise ValueError(f"{type(self).__name__} needs at least one number; got {dim}.")
        self._settle(dim=dim)

    def identity(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "A"]:
        """Zeros."""
        return torch.zeros(self.dim, dtype=dtype, device=device)

    def _canonical(self, a: Tensor) -> Tensor:
        return a

    def relative(self, t0: Float[Tensor, "*#B A"], t1: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`t1 − t0`."""
        self._check(t0=t0, t1=t1)
        return self._canonical(t1 - t0)

    def apply(self, t: Float[Tensor, "*#B A"], a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`t + a`."""
        self._check(t=t, a=a)
        return self._canonical(t + a)

    def compose(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`a + b`."""
        self._check(a=a, b=b)
        return self._canonical(a + b)

    def inverse(self, a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`−a`."""
        self._check(a=a)
        return self._canonical(-a)

    def distance(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B"]:
        """Euclidean length of the difference, in the units of the action."""
        self._check(a=a, b=b)
        return torch.linalg.vector_norm(self._canonical(a - b), dim=-1)

    @property
    def local_dim(self) -> int:
        """As many as `dim`."""
        return self.dim

    def exp(self, v: Float[Tensor, "*B n"]) -> Float[Tensor, "*B A"]:
        """The numbers themselves, wrapped on a circle."""
        self._check_local(v)
        return self._canonical(v)

    def log(self, a: Float[Tensor, "*B A"]) -> Float[Tensor, "*B n"]:
        """The numbers themselves, wrapped on a circle."""
        self._check(a=a)
        return self._canonical(a)

    def describe(self, a: Float[Tensor, "A"]) -> str:
        """The numbers, signed."""
        self._check_one(a)
        return ", ".join(f"{number:+.2f}" for number in a.tolist())


class Translation(_Additive):
    """Vectors: an action is the difference of two, `t1 − t0`.

    For positions, and for any parameters that add.

    Args:
        dim: numbers in a vector, at least 1.

    Shapes:
        parameters and actions (…, dim), in any unit; distances (…), in the same unit.

    Raises:
        ValueError: `dim` below 1; another last axis.
        TypeError: not a floating-point tensor.

    Examples:
        >>> import torch
        >>> Translation(2).relative(torch.tensor([0.2, 0.5]), torch.tensor([0.5, 0.1]))
        tensor([ 0.3000, -0.4000])
    """


class _Circular(_Additive):
    """Numbers on circles of circumference `_period`, canonical in [−period/2, period/2)."""

    def _canonical(self, a: Tensor) -> Tensor:
        half = self._period / 2
        wrapped = torch.remainder(a + half, self._period) - half
        wrapped = torch.where(wrapped >= half, wrapped - self._period, wrapped)  # the remainder of -1e-9 is rounded up
        return torch.where((a >= -half) & (a < half), a, wrapped)  # to the last bit what needs no wrapping

    @property
    def _period(self) -> float:
        return 2 * math.pi


class Rotation2D(_Circular):
    """Rotations in the plane, by their angle: an action is `t1 − t0`, wrapped to [−π, π).

    Args:
        dim: how many independent angles, at least 1.

    Shapes:
        angles and actions (…, dim), radians, of any number of turns; results in [−π, π). Distances (…): the shorter way
        round, at most π (for several angles the Euclidean length).

    Raises:
        ValueError: `dim` below 1; another last axis.
        TypeError: not a floating-point tensor.

    Examples:
        >>> import torch
        >>> Rotation2D().relative(torch.tensor([3.0]), torch.tensor([-3.0]))        # onwards through π, not back
        tensor([0.2832])
    """

    def describe(self, a: Float[Tensor, "A"]) -> str:
        """Degrees."""
        self._check_one(a)
        return ", ".join(f"{math.degrees(number):+.0f}°" for number in a.tolist())


class Hue(_Circular):
    """Hues on the colour circle: an action is `t1 − t0` in turns, wrapped to [−½, ½).

    The released code does not wrap: there a quarter of the actions exceed half a turn, and equal changes of colour are
    different actions.

    Args:
        dim: how many independent hues, at least 1.

    Shapes:
        hues and actions (…, dim), in turns (1 is once round); results in [−½, ½). Distances (…): at most ½ (for several
        hues the Euclidean length).

    Raises:
        ValueError: `dim` below 1; another last axis.
        TypeError: not a floating-point tensor.

    Examples:
        >>> import torch
        >>> Hue().relative(torch.tensor([0.9]), torch.tensor([0.1]))                # red lies in between
        tensor([0.2000])
    """

    @property
    def _period(self) -> float:
        return 1.0

    def describe(self, a: Float[Tensor, "A"]) -> str:
        """Degrees on the colour circle."""
        self._check_one(a)
        return ", ".join(f"{360 * number:+.0f}°" for number in a.tolist())


class Scale(_Additive):
    """Sizes: an action is the logarithm of their ratio, `ln(t1 / t0)`.

    Args:
        dim: how many independent sizes, at least 1.

    Shapes:
        sizes (…, dim), above 0, in any unit; actions (…, dim), natural logarithms. Distances (…), of logarithms.

    Raises:
        ValueError: `dim` below 1; another last axis; a size of 0 or less.
        TypeError: not a floating-point tensor.

    Examples:
        >>> import torch
        >>> Scale().relative(torch.tensor([2.0]), torch.tensor([4.0])).exp()
        tensor([2.])
    """

    def relative(self, t0: Float[Tensor, "*#B A"], t1: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`ln t1 − ln t0`."""
        self._check_sizes(t0=t0, t1=t1)
        return t1.log() - t0.log()

    def apply(self, t: Float[Tensor, "*#B A"], a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`t · exp a`."""
        self._check_sizes(t=t)
        self._check(a=a)
        return t * a.exp()

    def describe(self, a: Float[Tensor, "A"]) -> str:
        """The ratio."""
        self._check_one(a)
        return ", ".join(f"×{math.exp(number):.2f}" for number in a.tolist())

    def _check_sizes(self, **sizes: Tensor) -> None:
        self._check(**sizes)
        for name, size in sizes.items():
            check_values(size > 0, size, f"A size must be above 0 in {name}", "A Scale's action is a logarithm.")
