"""Windows on an image, mirrored or not."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.groups.base import FixedGroup, check_values

__all__ = ["Crop", "Flip"]


class Flip(FixedGroup):
    """Mirrored or not: an action is 1 where that changes, `t0 ⊕ t1`.

    There are no small flips, so it has no local coordinates, 0 of them: what searches those of a `Product` with this
    part leaves it at the identity.

    Shapes:
        parameters and actions (…, 1), 0 or 1 in floating point. Distances (…), 0 or 1.

    Raises:
        ValueError: another last axis; the logarithm of a flip.
        TypeError: not a floating-point tensor.

    Examples:
        >>> import torch
        >>> Flip().relative(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [1.0]])).flatten()
        tensor([1., 0.])
    """

    @property
    def dim(self) -> int:
        """One."""
        return 1

    def identity(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "A"]:
        """Zero: no change."""
        return torch.zeros(1, dtype=dtype, device=device)

    def relative(self, t0: Float[Tensor, "*#B A"], t1: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`t0 ⊕ t1`."""
        self._check(t0=t0, t1=t1)
        return t0 + t1 - 2 * t0 * t1

    def apply(self, t: Float[Tensor, "*#B A"], a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`t ⊕ a`."""
        return self.relative(t, a)

    def compose(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """`a ⊕ b`."""
        return self.relative(a, b)

    def inverse(self, a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """The action itself."""
        self._check(a=a)
        return a

    def distance(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B"]:
        """1 where one flips and the other does not."""
        return self.relative(a, b).squeeze(-1)

    @property
    def local_dim(self) -> int:
        """None."""
        return 0

    def exp(self, v: Float[Tensor, "*B n"]) -> Float[Tensor, "*B A"]:
        """No change, whatever the no numbers are."""
        self._check_local(v)
        return v.sum(dim=-1, keepdim=True)  # of no numbers: zero, with a gradient to hand back

    def log(self, a: Float[Tensor, "*B A"]) -> Float[Tensor, "*B n"]:
        """No numbers, (…, 0)."""
        self._check(a=a)
        _check_unflipped(a)
        return a[..., :0]

    def describe(self, a: Float[Tensor, "A"]) -> str:
        """Whether it flips."""
        self._check_one(a)
        return "flip" if a.item() > 0.5 else "no flip"


class Crop(FixedGroup):
    """Windows on an image: an action says where the next lies, seen from the current one, and how much larger it is.

    A window is (y, x, height, width, flip): its centre and its sides in any unit, and 1 where its picture is mirrored
    left to right. With s₀ = −1 for a mirrored current window and 1 otherwise, the action is

    `((y₁ − y₀) / h₀, s₀ (x₁ − x₀) / w₀, ln(h₁ / h₀), ln(w₁ / w₀), flip₀ ⊕ flip₁)`:

    the shift in sides of the current window, down and to the right *as the current view shows it*, which is all that an
    encoder of that view can know. Actions do not depend on the unit, nor on where in the image the path began.

    Local coordinates are the first four of these numbers: shift and logarithms. A flip has none.

    Shapes:
        windows and actions (…, 5). Distances (…): Euclidean, of shifts in windows, logarithms and flips alike.

    Raises:
        ValueError: another last axis; a side of 0 or less; the logarithm of an action that flips.
        TypeError: not a floating-point tensor.

    Examples:
        >>> import torch
        >>> here = torch.tensor([16.0, 16.0, 16.0, 16.0, 0.0])
        >>> Crop().relative(here, torch.tensor([16.0, 24.0, 16.0, 16.0, 0.0]))         # half a window to the right
        tensor([0.0000, 0.5000, 0.0000, 0.0000, 0.0000])
        >>> mirrored = torch.tensor([16.0, 16.0, 16.0, 16.0, 1.0])
        >>> Crop().relative(mirrored, torch.tensor([16.0, 24.0, 16.0, 16.0, 1.0]))     # seen in a mirror, to the left
        tensor([ 0.0000, -0.5000,  0.0000,  0.0000,  0.0000])
    """

    @property
    def dim(self) -> int:
        """Five."""
        return 5

    def identity(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "A"]:
        """Zeros: the same window."""
        return torch.zeros(5, dtype=dtype, device=device)

    def relative(self, t0: Float[Tensor, "*#B A"], t1: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """The second window seen from the first."""
        self._check_windows(t0=t0, t1=t1)
        shift = (t1[..., :2] - t0[..., :2]) * _mirror(t0) / t0[..., 2:4]
        size = t1[..., 2:4].log() - t0[..., 2:4].log()
        return torch.cat([shift, size, Flip().relative(t0[..., 4:], t1[..., 4:])], dim=-1)

    def apply(self, t: Float[Tensor, "*#B A"], a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """The window to which the action leads."""
        self._check_windows(t=t)
        self._check(a=a)
        centre = t[..., :2] + a[..., :2] * _mirror(t) * t[..., 2:4]
        sides = t[..., 2:4] * a[..., 2:4].exp()
        return torch.cat([centre, sides, Flip().apply(t[..., 4:], a[..., 4:])], dim=-1)

    def compose(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """First a, then b from where it led."""
        self._check(a=a, b=b)
        shift = a[..., :2] + b[..., :2] * _mirror(a) * a[..., 2:4].exp()
        return torch.cat([shift, a[..., 2:4] + b[..., 2:4], Flip().compose(a[..., 4:], b[..., 4:])], dim=-1)

    def inverse(self, a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """Back to the window that it came from."""
        self._check(a=a)
        shift = -a[..., :2] * _mirror(a) * (-a[..., 2:4]).exp()
        return torch.cat([shift, -a[..., 2:4], a[..., 4:]], dim=-1)

    def distance(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B"]:
        """Euclidean length of the difference of the five numbers."""
        self._check(a=a, b=b)
        return torch.linalg.vector_norm(a - b, dim=-1)

    @property
    def local_dim(self) -> int:
        """Four."""
        return 4

    def exp(self, v: Float[Tensor, "*B n"]) -> Float[Tensor, "*B A"]:
        """Shift and logarithms as they are, no flip."""
        self._check_local(v)
        return torch.cat([v, torch.zeros_like(v[..., :1])], dim=-1)

    def log(self, a: Float[Tensor, "*B A"]) -> Float[Tensor, "*B n"]:
        """Shift and logarithms."""
        self._check(a=a)
        _check_unflipped(a)
        return a[..., :4]

    def describe(self, a: Float[Tensor, "A"]) -> str:
        """Shift in windows, sizes as ratios."""
        self._check_one(a)
        y, x, height, width, flip = a.tolist()
        words = f"{y:+.2f} down, {x:+.2f} right, ×{math.exp(height):.2f} high, ×{math.exp(width):.2f} wide"
        return words + (", flip" if flip > 0.5 else "")

    def _check_windows(self, **windows: Tensor) -> None:
        self._check(**windows)
        for name, window in windows.items():
            sides = window[..., 2:4]
            check_values(sides > 0, sides, f"The sides of a window must be above 0 in {name}", "Drop empty crops.")


def _check_unflipped(a: Tensor) -> None:
    """Raise where an action is known to flip: no path of small actions leads there."""
    flip = a[..., -1]
    check_values(
        flip.abs() < 0.5, flip, "A flip has no local coordinates; the last number of a must be 0", "Set it to 0 first."
    )


def _mirror(element: Tensor) -> Tensor:
    """(…, 2): 1 for y, and for x −1 where the window is mirrored."""
    flip = element[..., 4:]
    return torch.cat([torch.ones_like(flip), 1 - 2 * flip], dim=-1)
