"""The loss: how far the prediction is from the target, and what else keeps an encoder from collapsing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._modes import autocast
from seqjepa.distributed import all_reduce
from seqjepa.functional import cosine_distance, mse_distance, smooth_l1_distance

__all__ = ["CosineDistance", "LossOutput", "MSEDistance", "SeqJEPALoss", "SmoothL1Distance", "VarianceCovariance"]


class LossOutput(NamedTuple):
    """A loss and its parts.

    Attributes:
        loss: () scalar with gradient.
        terms: the parts by name, () each, detached, before their weights: `distance`, then the regulariser's.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Tensor]


class SeqJEPALoss(nn.Module):
    """Mean distance between prediction and target, plus a regulariser of the encoder's outputs if one is given.

    The paper's is the cosine distance alone: `mean_b (1 − cos(prediction_b, target_b))`.

    Args:
        distance: a module (B, D), (B, D) → (B,): [`CosineDistance`][seqjepa.loss.CosineDistance] by default,
            [`SmoothL1Distance`][seqjepa.loss.SmoothL1Distance], [`MSEDistance`][seqjepa.loss.MSEDistance] or your own.
        regularizer: a module (z, mask) → [`LossOutput`][seqjepa.loss.LossOutput], such as
            [`VarianceCovariance`][seqjepa.loss.VarianceCovariance], for training without an EMA; None as in the paper.

    Shapes:
        prediction (B, D), target (B, D), z (B, T, D), mask (B, T) bool or None → loss (), terms () each.

    Raises:
        ValueError: prediction and target of different shapes, or a regulariser without z.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), section 3.

    Examples:
        >>> import torch
        >>> prediction = torch.randn(8, 512)
        >>> loss, terms = SeqJEPALoss()(prediction, 3 * prediction)
        >>> bool(loss.abs() < 1e-6), list(terms)
        (True, ['distance'])
    """

    def __init__(self, distance: nn.Module | None = None, regularizer: nn.Module | None = None) -> None:
        super().__init__()
        self.distance = CosineDistance() if distance is None else distance
        self.regularizer = regularizer

    def forward(
        self,
        prediction: Float[Tensor, "B D"],
        target: Float[Tensor, "B D"],
        z: Float[Tensor, "B T D"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> LossOutput:
        """The loss and its terms by name."""
        if prediction.shape != target.shape:
            raise ValueError(
                "Prediction and target must have one shape, (B, D); got "
                f"{tuple(prediction.shape)} and {tuple(target.shape)}."
            )
        loss = self.distance(prediction, target).mean()
        terms = {"distance": loss.detach()}
        if self.regularizer is not None:
            if z is None:
                raise ValueError(
                    "The regulariser looks at the encoder's outputs; got z=None. Pass z of shape (B, T, D)."
                )
            penalty, parts = self.regularizer(z, mask)
            loss = loss + penalty
            terms = {**terms, **parts}
        return LossOutput(loss, terms)


class CosineDistance(nn.Module):
    """One minus the cosine, in [0, 2]; see [`cosine_distance`][seqjepa.functional.cosine_distance].

    Shapes:
        (B, D), (B, D) → (B,).

    Examples:
        >>> import torch
        >>> CosineDistance()(torch.ones(1, 2), -torch.ones(1, 2)).round()
        tensor([2.])
    """

    def forward(self, prediction: Float[Tensor, "*B D"], target: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """The distance of each row."""
        return cosine_distance(prediction, target)


class SmoothL1Distance(nn.Module):
    """Quadratic below `beta`, linear above; see [`smooth_l1_distance`][seqjepa.functional.smooth_l1_distance].

    Args:
        beta: where the square turns into a line, above 0.

    Shapes:
        (B, D), (B, D) → (B,).

    Raises:
        ValueError: a beta that is not above 0.

    Examples:
        >>> import torch
        >>> SmoothL1Distance(beta=2.0)(torch.ones(1, 2), torch.zeros(1, 2))
        tensor([0.2500])
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta must be above 0; got {beta}.")
        self.beta = beta

    def forward(self, prediction: Float[Tensor, "*B D"], target: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """The distance of each row."""
        return smooth_l1_distance(prediction, target, self.beta)


class MSEDistance(nn.Module):
    """Mean squared difference; see [`mse_distance`][seqjepa.functional.mse_distance].

    Shapes:
        (B, D), (B, D) → (B,).

    Examples:
        >>> import torch
        >>> MSEDistance()(torch.ones(1, 2), torch.zeros(1, 2))
        tensor([1.])
    """

    def forward(self, prediction: Float[Tensor, "*B D"], target: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """The distance of each row."""
        return mse_distance(prediction, target)


class VarianceCovariance(nn.Module):
    """Keep every feature varied and different from the others, after VICReg.

    Over the N = B·T encoder outputs of a batch, with per-feature deviation s_d and covariance C:

    - variance: `mean_d max(0, std − s_d)`, s_d = √(C_dd + eps);
    - covariance: `Σ_{i≠j} C_ij² / D`.

    A single view has covariance 0.

    In training mode the batch is that of all ranks, where torch.distributed is in use: mean and covariance are summed
    over ranks, with gradient, once each, so every rank has the loss of the whole batch, whatever number of rows it
    holds. The gradient is right once it is averaged over ranks, as DistributedDataParallel and FSDP do; all ranks must
    call it. In eval mode the batch is this process's own.

    Loss: `variance_weight · variance + covariance_weight · covariance`, added to a distance of weight 1. VICReg's 25,
    25 and 1 for distance, variance and covariance are the defaults here, divided by 25.

    Args:
        variance_weight: at least 0.
        covariance_weight: at least 0.
        std: the deviation each feature is to reach.
        eps: added to the variance, so that the gradient at 0 is finite.

    Shapes:
        z (B, T, D), mask (B, T) bool or None → loss (), terms `variance` and `covariance`, () each and detached. Where
        the mask is False a view does not count. Computed in float32 or wider.

    Raises:
        ValueError: a negative weight.

    Source:
        Bardes, Ponce & LeCun 2022 (arXiv 2105.04906), equations 1-4.

    Examples:
        >>> import torch
        >>> loss, terms = VarianceCovariance()(torch.zeros(8, 3, 16))
        >>> round(terms["variance"].item(), 2), terms["covariance"].item()
        (0.99, 0.0)
    """

    def __init__(
        self, variance_weight: float = 1.0, covariance_weight: float = 0.04, *, std: float = 1.0, eps: float = 1e-4
    ) -> None:
        super().__init__()
        if variance_weight < 0 or covariance_weight < 0:
            raise ValueError(f"Weights must be at least 0; got {variance_weight} and {covariance_weight}.")
        self.variance_weight, self.covariance_weight, self.std, self.eps = variance_weight, covariance_weight, std, eps

    def forward(self, z: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> LossOutput:
        """The weighted sum and its parts."""
        x = z.flatten(0, 1).to(torch.promote_types(z.dtype, torch.float32))
        with autocast(x.device, enabled=False):  # sums of squares want the full type
            counts = x.new_ones(x.shape[0], 1) if mask is None else mask.reshape(-1, 1).to(x.dtype)
            x = torch.where(counts > 0, x, 0)  # NaN in the padding stays there
            total, n = self._over_ranks(torch.cat([x.sum(0), counts.sum(0)])).tensor_split([x.shape[1]])
            x = (x - total / n) * counts
            covariance = self._over_ranks(x.T @ x) / (n - 1).clamp(min=1)
            diagonal = covariance.diagonal()
            spread = (self.std - (diagonal + self.eps).sqrt()).relu().mean()
            off_diagonal = (covariance - diagonal.diag()).square().sum() / x.shape[1]
        loss = self.variance_weight * spread + self.covariance_weight * off_diagonal
        return LossOutput(loss, {"variance": spread.detach(), "covariance": off_diagonal.detach()})

    def _over_ranks(self, local: Tensor) -> Tensor:
        """The sum over ranks in training; an evaluation may run on one rank while the others go on."""
        return all_reduce(local) if self.training else local
