"""Multinomial logistic regression by L-BFGS, well conditioned, of all folds at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["LogisticFit", "LogisticPath", "cross_validate"]

CHUNK = 2**20  # logits in memory at once
TOGETHER = 2**21  # weights that one optimiser holds, some forty times over
PATIENCE = 2  # strengths in a row that are worse than the best


class LogisticFit(NamedTuple):
    """A strength of regularisation, and the weights and the bias at it."""

    l2: float
    weight: Float[Tensor, "D C"]
    bias: Float[Tensor, "C"]


class LogisticPath:
    """`min_W,b  mean_n CE(x_n W + b, y_n) + l2/2 ‖W‖²` for several l2, each started where the last one ended.

    Features of an encoder are far from independent, and plain L-BFGS then takes hundreds of steps. The Hessian is at
    most ½ XᵀX/n + l2 in the directions of the features (Böhning 1992), so the problem is solved in the coordinates in
    which that bound is the identity: `W = V (Λ/2 + l2)^−½ U`, XᵀX/n = V Λ Vᵀ. The minimum is the same.

    With `folds`, problem 0 is that of all rows, and problem f + 1 that of the rows outside fold f. They are solved side
    by side, as one problem whose parts do not meet: the features are then read once for all.
    """

    def __init__(
        self, x: Float[Tensor, "N D"], labels: Int[Tensor, "N"], num_classes: int, folds: Int[Tensor, "N"] | None = None
    ) -> None:
        covariance = (x.mT @ x).double() / len(x)
        eigenvalues, self.vectors = (part.to(x.dtype) for part in torch.linalg.eigh(covariance))
        self.eigenvalues = eigenvalues.clamp(min=0)
        self.rotated, self.labels = x @ self.vectors, labels
        learns = [torch.ones_like(labels, dtype=torch.bool)]
        self.held = [] if folds is None else [folds == fold for fold in range(int(folds.max()) + 1)]
        learns += [~held for held in self.held]
        self.share = torch.stack([rows.to(x.dtype) / rows.sum() for rows in learns], dim=1)  # (N, P), of each mean
        self.weight = x.new_zeros(x.shape[1], len(learns), num_classes)  # in the rotated coordinates
        self.bias = x.new_zeros(len(learns), num_classes)

    def solve(self, l2: float) -> LogisticFit:
        """Solve every problem at this l2; the fit to all rows."""
        together = max(1, TOGETHER // self.weight[:, 0].numel())
        for problems in torch.arange(self.weight.shape[1], device=self.weight.device).split(together):
            self._solve(problems, l2)
        return LogisticFit(l2, self.vectors @ self.weight[:, 0], self.bias[0].clone())

    def held_out_accuracy(self) -> float:
        """The share of held-out rows that the probe fitted without their fold classifies, at the last l2."""
        correct = rows = 0
        for problem, held in enumerate(self.held, start=1):
            logits = torch.addmm(self.bias[problem], self.rotated[held], self.weight[:, problem])
            correct += int((logits.argmax(1) == self.labels[held]).sum())
            rows += len(logits)
        return correct / rows

    def _solve(self, problems: Int[Tensor, "P"], l2: float, max_steps: int = 200) -> None:
        scale = (self.eigenvalues / 2 + l2).rsqrt()[:, None]
        weight, bias = self.weight[:, problems].flatten(1), self.bias[problems].flatten()
        share = self.share[:, problems]
        parameters = torch.cat([weight / scale, bias[None]]).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=max_steps, max_eval=2 * max_steps, tolerance_grad=1e-5, tolerance_change=1e-7,
            history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            loss, parameters.grad = self._loss(parameters.detach(), share, scale, l2)
            return loss

        optimizer.step(closure)
        solution = parameters.detach()
        self.weight[:, problems] = (solution[:-1] * scale).unflatten(1, (len(problems), -1))
        self.bias[problems] = solution[-1].unflatten(0, (len(problems), -1))

    def _loss(self, parameters: Tensor, share: Tensor, scale: Tensor, l2: float) -> tuple[Tensor, Tensor]:
        """The sum of the objectives and its gradient, by hand: two matrix products for each block of rows."""
        weight, bias = parameters[:-1] * scale, parameters[-1]
        loss = l2 / 2 * weight.double().square().sum()
        gradient, of_bias = l2 * weight, torch.zeros_like(bias)
        size, sizes = max(1, CHUNK // len(bias)), (share.shape[1], self.bias.shape[1])
        for x, labels, rows in zip(self.rotated.split(size), self.labels.split(size), share.split(size), strict=True):
            log_p = torch.log_softmax(torch.addmm(bias, x, weight).unflatten(1, sizes), dim=2)
            index = labels[:, None, None].expand(-1, share.shape[1], 1)
            loss = loss - (log_p.gather(2, index)[..., 0] * rows).sum(dtype=torch.float64)
            residual = log_p.exp_().scatter_add_(2, index, -torch.ones_like(index, dtype=log_p.dtype))
            residual = residual.mul_(rows[..., None]).flatten(1)
            gradient.addmm_(x.mT, residual)
            of_bias += residual.sum(0)
        return loss, torch.cat([gradient * scale, of_bias[None]])


def cross_validate(path: LogisticPath, grid: tuple[float, ...]) -> LogisticFit:
    """The fit to all rows at the strength whose probes classify their held-out folds best; among equals the strongest.

    From the strongest to the weakest. The rest is not tried once the share is 1, which nothing beats, or once two
    strengths in a row were worse than the best: the weakest cost the most steps, and overfit then.
    """
    best_accuracy, worse, best = -1.0, 0, None
    for l2 in sorted(grid, reverse=True):
        fit = path.solve(l2)
        accuracy = path.held_out_accuracy()
        worse = worse + 1 if accuracy < best_accuracy else 0
        if accuracy > best_accuracy:
            best_accuracy, best = accuracy, fit
        if best_accuracy == 1 or worse == PATIENCE:
            break
    assert best is not None
    return best
