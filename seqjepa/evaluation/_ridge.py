"""Ridge regression in closed form, from sums over rows, at every strength of one eigendecomposition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Moments", "Ridge", "RidgeFit", "cross_validate"]


class Moments(NamedTuple):
    """Sums over rows, in float64: their number, x, y, xᵀx and xᵀy."""

    rows: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Float[Tensor, "N D"], y: Float[Tensor, "N K"]) -> Moments:
        """Those of some rows, a few thousand at a time."""
        d, k = x.shape[1], y.shape[1]
        total = cls(*(x.new_zeros(shape, dtype=torch.float64) for shape in ((), (d,), (k,), (d, d), (d, k))))
        for some_x, some_y in zip(x.split(8192), y.split(8192), strict=True):
            a, b = some_x.double(), some_y.double()
            total = total.plus(cls(a.new_tensor(len(a)), a.sum(0), b.sum(0), a.mT @ a, a.mT @ b))
        return total

    def plus(self, other: Moments) -> Moments:
        """Those of both sets of rows."""
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))


class RidgeFit(NamedTuple):
    """A strength of regularisation, and the weights and the bias at it."""

    l2: float
    weight: Float[Tensor, "D K"]
    bias: Float[Tensor, "K"]

    def predict(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """The outputs."""
        return torch.addmm(self.bias.to(x.dtype), x, self.weight.to(x.dtype))


class Ridge:
    """`min_W,b  mean_n ‖y_n − x_n W − b‖² + l2 ‖W‖²`, whatever the l2."""

    def __init__(self, moments: Moments) -> None:
        n, self.x_mean, self.y_mean = moments.rows, moments.x / moments.rows, moments.y / moments.rows
        eigenvalues, self.vectors = torch.linalg.eigh(moments.xx / n - torch.outer(self.x_mean, self.x_mean))
        self.eigenvalues = eigenvalues.clamp(min=0)
        self.xy = self.vectors.mT @ (moments.xy / n - torch.outer(self.x_mean, self.y_mean))

    def at(self, l2: float) -> RidgeFit:
        """The fitted map; directions without variance get no weight."""
        divisor = self.eigenvalues + l2
        empty = divisor <= 1e-12 * self.eigenvalues[-1]
        weight = self.vectors @ (self.xy / torch.where(empty, torch.inf, divisor)[:, None])
        return RidgeFit(l2, weight, self.y_mean - self.x_mean @ weight)


def cross_validate(
    x: Float[Tensor, "N D"], y: Float[Tensor, "N K"], folds: Int[Tensor, "N"], grid: tuple[float, ...]
) -> RidgeFit:
    """The fit to all rows at the strength of least squared error on held-out folds; among equals the strongest."""
    rows = [(folds == fold).nonzero().flatten() for fold in range(int(folds.max()) + 1)]
    moments = [Moments.of(x[held], y[held]) for held in rows]
    whole = moments[0]
    for other in moments[1:]:
        whole = whole.plus(other)
    strongest_first = sorted(grid, reverse=True)
    errors = torch.zeros(len(grid), dtype=torch.float64, device=x.device)
    for held, left_out in zip(rows, moments, strict=True):
        candidates = Ridge(Moments(*(a - b for a, b in zip(whole, left_out, strict=True))))
        x_held, y_held = x[held], y[held]
        errors += torch.stack([
            (candidates.at(l2).predict(x_held) - y_held).square().sum(dtype=torch.float64) for l2 in strongest_first
        ])  # fmt: skip
    return Ridge(whole).at(strongest_first[int(errors.argmin())])
