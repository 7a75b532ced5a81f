"""Multinomial logistic regression by L-BFGS, well conditioned."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["LogisticPath"]


class LogisticPath:
    """`min_W,b  mean_n CE(x_n W + b, y_n) + l2/2 ‖W‖²` for several l2, each started where the last one ended.

    Features of an encoder are far from independent, and plain L-BFGS then takes hundreds of steps. The Hessian is at
    most ½ XᵀX/n + l2 in the directions of the features (Böhning 1992), so the problem is solved in the coordinates in
    which that bound is the identity: `W = V (Λ/2 + l2)^−½ U`, XᵀX/n = V Λ Vᵀ. The minimum is the same.
    """

    def __init__(self, x: Float[Tensor, "N D"], labels: Int[Tensor, "N"], num_classes: int) -> None:
        covariance = (x.mT @ x).double() / len(x)
        eigenvalues, self.vectors = (part.to(x.dtype) for part in torch.linalg.eigh(covariance))
        self.eigenvalues = eigenvalues.clamp(min=0)
        self.rotated = x @ self.vectors
        self.labels = labels
        self.weight = x.new_zeros(x.shape[1], num_classes)  # in the rotated coordinates
        self.bias = x.new_zeros(num_classes)

    def solve(self, l2: float, max_steps: int = 200) -> tuple[Float[Tensor, "D C"], Float[Tensor, "C"]]:
        """The weights and the bias at this l2."""
        scale = (self.eigenvalues / 2 + l2).rsqrt()[:, None]
        parameters = torch.cat([self.weight / scale, self.bias[None]]).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=max_steps, max_eval=2 * max_steps, tolerance_grad=1e-5, tolerance_change=1e-7,
            history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            loss, parameters.grad = self._loss(parameters.detach(), scale, l2)
            return loss

        optimizer.step(closure)
        solution = parameters.detach()
        self.weight, self.bias = solution[:-1] * scale, solution[-1]
        return self.vectors @ self.weight, self.bias

    def _loss(self, parameters: Tensor, scale: Tensor, l2: float) -> tuple[Tensor, Tensor]:
        """The objective and its gradient, by hand: two matrix products, and nothing kept in between."""
        weight, bias = parameters[:-1] * scale, parameters[-1]
        log_p = torch.log_softmax(torch.addmm(bias, self.rotated, weight), dim=1)
        index = self.labels[:, None]
        loss = -log_p.gather(1, index).mean(dtype=torch.float64) + l2 / 2 * weight.double().square().sum()
        residual = log_p.exp_().scatter_add_(1, index, -torch.ones_like(index, dtype=log_p.dtype)) / len(log_p)
        gradient = (self.rotated.mT @ residual + l2 * weight) * scale
        return loss, torch.cat([gradient, residual.sum(0, keepdim=True)])


def walk(path: LogisticPath, grid: tuple[float, ...]) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Solutions from the strongest l2 to the weakest."""
    for l2 in sorted(grid, reverse=True):
        yield l2, *path.solve(l2)
