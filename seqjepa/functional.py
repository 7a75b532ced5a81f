"""Pure maths: the distances the loss is made of, and schedules as functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["CosineSchedule", "WarmupCosineSchedule", "cosine_distance", "mse_distance", "smooth_l1_distance"]


def _at_least_float32(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(dtype), target.to(dtype)


def cosine_distance(prediction: Float[Tensor, "*B D"], target: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
    """One minus the cosine of the angle between two vectors.

    `1 − ⟨p, t⟩ / (‖p‖ ‖t‖)`, in [0, 2] up to rounding, whatever the (positive) scale of either side. Norms below
    1e-8 count as 1e-8, so a zero vector is at distance 1 from everything. Half precision is computed in
    float32.

    Args:
        prediction: (…, D).
        target: (…, D).

    Returns:
        (…) distances, float32 or wider.

    Examples:
        >>> import torch
        >>> cosine_distance(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
        tensor([0., 1.])
    """
    prediction, target = _at_least_float32(prediction, target)
    return 1 - F.cosine_similarity(prediction, target, dim=-1, eps=1e-8)


def smooth_l1_distance(
    prediction: Float[Tensor, "*B D"], target: Float[Tensor, "*B D"], beta: float = 1.0
) -> Float[Tensor, "*B"]:
    """Huber-like distance, mean over features: quadratic below `beta`, linear above.

    `d²/(2β)` where |d| < β, else `|d| − β/2`, with d = prediction − target. At least 0; depends on scale.

    Args:
        prediction: (…, D).
        target: (…, D).
        beta: where the square turns into a line, above 0.

    Returns:
        (…) distances, float32 or wider.

    Examples:
        >>> import torch
        >>> smooth_l1_distance(torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2))
        tensor([1.2500])
    """
    prediction, target = _at_least_float32(prediction, target)
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta).mean(-1)


def mse_distance(prediction: Float[Tensor, "*B D"], target: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
    """Squared distance, mean over features. At least 0; depends on scale.

    Args:
        prediction: (…, D).
        target: (…, D).

    Returns:
        (…) distances, float32 or wider.

    Examples:
        >>> import torch
        >>> mse_distance(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 3.0]]))
        tensor([0.5000])
    """
    prediction, target = _at_least_float32(prediction, target)
    return (prediction - target).square().mean(-1)


class _Settings:
    """A schedule's settings belong to the run that made it, never to a checkpoint.

    torch's `LambdaLR` saves the `__dict__` of a schedule and, on loading, writes what was saved into the new one's: a
    run resumed with a longer schedule would go on with the old length, and end at rate zero. Here the values live in
    slots, which come before the `__dict__`: there is nothing in it to save, and what is written to it is not looked at.
    """

    __slots__ = ("__dict__",)


@dataclass(frozen=True, slots=True)
class CosineSchedule(_Settings):
    """A value that moves from `start` to `end` on a cosine (half a period), and stays there.

    `end − (end − start) · (1 + cos(π · step / total_steps)) / 2`, for step 0 … total_steps. The paper's target
    momentum is `CosineSchedule(0.996, 1.0, total_steps)`. A checkpoint never changes a schedule: what it was built with
    holds, also where a resumed run is to be longer.

    Attributes:
        start: value at step 0.
        end: value from `total_steps` on.
        total_steps: length of the run in optimiser steps, at least 1.

    Raises:
        ValueError: `total_steps` is below 1.

    Examples:
        >>> momentum = CosineSchedule(0.996, 1.0, total_steps=1000)
        >>> momentum(0), round(momentum(500), 6), momentum(1000)
        (0.996, 0.998, 1.0)
    """

    start: float
    end: float
    total_steps: int

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"total_steps is the length of the run in steps, at least 1; got {self.total_steps}.")

    @overload
    def __call__(self, step: int) -> float: ...
    @overload
    def __call__(self, step: Int[Tensor, ""]) -> Float[Tensor, ""]: ...

    def __call__(self, step: int | Tensor) -> float | Tensor:
        """The value at `step`, counted from 0: of a tensor a tensor, on its device, which is not waited for."""
        if isinstance(step, Tensor):
            progress = (step.to(_widest_float(step.device)) / self.total_steps).clamp(max=1.0)
            return self.end - (self.end - self.start) * (1 + torch.cos(math.pi * progress)) / 2
        return self.end - (self.end - self.start) * (1 + math.cos(math.pi * min(step / self.total_steps, 1.0))) / 2


def _widest_float(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True, slots=True)
class WarmupCosineSchedule(_Settings):
    """A learning rate with a linear warm-up from `start` to `peak`, then a cosine decay to `end`.

    The paper's: `WarmupCosineSchedule(1e-5, 4e-4, 1e-5, warmup_steps, total_steps)`. Called with the step, it gives the
    rate itself; on an optimiser, set it as the example does. A checkpoint never changes a schedule: what it was built
    with holds, also where a resumed run is to be longer.

    Attributes:
        start: rate at step 0.
        peak: rate at the end of the warm-up.
        end: rate from `total_steps` on.
        warmup_steps: length of the climb, from 0 up, below `total_steps`.
        total_steps: length of the run in optimiser steps.

    Raises:
        ValueError: the warm-up is negative or does not end before the run does.

    Examples:
        >>> import torch
        >>> rate = WarmupCosineSchedule(1e-5, 4e-4, 1e-5, warmup_steps=20, total_steps=1000)
        >>> optimizer = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters(), lr=1.0)   # lr=1: the schedule sets it
        >>> scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        >>> scheduler.get_last_lr(), rate(20)
        ([1e-05], 0.0004)
    """

    start: float
    peak: float
    end: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"The warm-up must end before the run does, 0 <= warmup_steps < total_steps; got {self.warmup_steps} "
                f"of {self.total_steps} steps. Shorten the warm-up."
            )

    def __call__(self, step: int) -> float:
        """The rate at `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        return CosineSchedule(self.peak, self.end, self.total_steps - self.warmup_steps)(step - self.warmup_steps)
