"""How far predicted rotations of space are from the true ones, in degrees."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.evaluation._inputs import check_features, check_rows, check_same_device, check_sources
from seqjepa.evaluation._statistics import Interval, bootstrap, plain_arithmetic, sums_by_source
from seqjepa.groups import Rotation3D

__all__ = ["RotationError", "rotation_error"]


@dataclass(frozen=True, eq=False)
class RotationError:
    """How far predicted rotations are from the true ones, in degrees.

    Attributes:
        mean: mean angle between the two, in [0, 180].
        median: median angle.
        interval: 95 % bootstrap interval of the mean.
        chance: mean angle between predictions and the rotations of other rows (of other sources, where they are named),
            over all pairs up to two million, over evenly spaced shifts of the rows beyond; nan where there are none.
        degrees: (M,) angle of each row.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Rotation3D
        >>> q = Rotation3D.random(500, generator=torch.Generator().manual_seed(0))
        >>> error = rotation_error(q, q)
        >>> round(error.mean, 2), 120 < error.chance < 133                     # 126.5° for uniform rotations
        (0.0, True)
    """

    mean: float
    median: float
    interval: Interval
    chance: float
    degrees: Float[Tensor, "M"] = field(repr=False)

    def __str__(self) -> str:
        """One line."""
        low, high = self.interval
        return f"{self.mean:.1f}° [{low:.1f}, {high:.1f}], median {self.median:.1f}°, chance {self.chance:.1f}°"


def rotation_error(
    predicted: Float[Tensor, "M 4"],
    actual: Float[Tensor, "M 4"],
    *,
    sources: Int[Tensor, "M"] | None = None,
    seed: int = 0,
) -> RotationError:
    """The geodesic angle between predicted and true rotations, in degrees.

    `2 arccos |⟨q̂/‖q̂‖, q⟩|`. A regressed quaternion has no unit length; its direction is what counts. q and −q are one
    rotation, so the sign of neither matters.

    Args:
        predicted: (M, 4) quaternions x y z w, of any length above 0.
        actual: (M, 4) unit quaternions.
        sources: (M,) integers; the interval is then over sources, and chance is of other ones.
        seed: of the bootstrap.

    Returns:
        [`RotationError`][seqjepa.evaluation.RotationError].

    Raises:
        ValueError: shapes that are not (M, 4) or differ; NaN or infinity; actual rotations that have no unit length.
        TypeError: not floating point.

    Examples:
        >>> import torch
        >>> predicted = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]])   # quarter turns, not unit
        >>> print(rotation_error(predicted, torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(2, 4)))
        90.0° [90.0, 90.0], median 90.0°, chance 90.0°
    """
    q, truth = check_features("predicted", predicted), check_features("actual", actual)
    if not bool(q.any(dim=1).all()):
        raise ValueError("A predicted quaternion must have a direction; some are zero. Look at what predicts them.")
    check_rows(predicted=q, actual=truth)
    check_same_device(predicted=q, actual=truth)
    of_row = check_sources("sources", sources, len(q))
    for name, rotation in (("predicted", q), ("actual", truth)):
        if rotation.shape[1] != 4:
            raise ValueError(f"{name} must be quaternions x y z w, (M, 4); got shape {tuple(rotation.shape)}.")
    with plain_arithmetic(q.device):
        q, truth, group = F.normalize(q.double(), dim=1), truth.double(), Rotation3D()
        degrees = torch.rad2deg(group.distance(q, truth))
        shifts = range(1, len(q), max(1, len(q) ** 2 // 2**21))
        unit = torch.arange(len(q), device=q.device) if of_row is None else of_row.to(q.device)
        others = torch.zeros(2, dtype=torch.float64, device=q.device)  # sum and number
        for shift in shifts:
            other = unit != unit.roll(shift)
            angle = torch.rad2deg(group.distance(q, truth.roll(shift, 0)))
            others += torch.stack([(angle * other).sum(), other.sum().double()])
        sums = sums_by_source(torch.stack([degrees, torch.ones_like(degrees)], dim=1), of_row)
        return RotationError(
            mean=degrees.mean().item(),
            median=degrees.median().item(),
            interval=bootstrap(sums, lambda s: s[:, 0] / s[:, 1], torch.Generator().manual_seed(seed)),
            chance=(others[0] / others[1]).item(),
            degrees=degrees.to(predicted.dtype),
        )
