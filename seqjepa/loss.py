"""The loss: how far the prediction is from the target, and what else keeps an encoder from collapsing."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._checks import check_axes, check_mask
from seqjepa._modes import autocast
from seqjepa.distributed import all_reduce, rank, world_size
from seqjepa.functional import cosine_distance, mse_distance, smooth_l1_distance

__all__ = [
    "CosineDistance", "LossOutput", "MSEDistance", "SIGReg", "SeqJEPALoss", "SmoothL1Distance", "VarianceCovariance",
]  # fmt: skip


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
            [`VarianceCovariance`][seqjepa.VarianceCovariance] or [`SIGReg`][seqjepa.SIGReg], for training without an
            EMA; None as in the paper.

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
            n = (n - 1).clamp(min=1)
            if x.shape[0] < x.shape[1] and not (self.training and world_size() > 1):
                # Wider than it is high: ‖X Xᵀ‖ = ‖Xᵀ X‖ of a smaller matrix. Its rows are of this process alone.
                diagonal = x.square().sum(0) / n
                off_diagonal = ((x @ x.T / n).square().sum() - diagonal.square().sum()) / x.shape[1]
            else:
                covariance = self._over_ranks(x.T @ x) / n
                diagonal = covariance.diagonal()
                off_diagonal = (covariance - diagonal.diag()).square().sum() / x.shape[1]
            spread = (self.std - (diagonal + self.eps).sqrt()).relu().mean()
        loss = self.variance_weight * spread + self.covariance_weight * off_diagonal
        return LossOutput(loss, {"variance": spread.detach(), "covariance": off_diagonal.detach()})

    def _over_ranks(self, local: Tensor) -> Tensor:
        """The sum over ranks in training; an evaluation may run on one rank while the others go on."""
        return all_reduce(local) if self.training else local


class SIGReg(nn.Module):
    """Keep the encoder's outputs normally distributed, as seen from random directions: LeJEPA's regulariser.

    The N outputs of one time step are projected on a unit vector a. Their characteristic function
    `φ_N(t) = mean_n exp(i t ⟨a, z_n⟩)` is that of a standard normal, `exp(−t²/2)`, just where they are normal with mean
    0 and deviation 1, so the term is

    `N ∫ |φ_N(t) − exp(−t²/2)|² exp(−t²/2) dt`, the mean over directions, then over time steps.

    No output can then be constant, no two features be copies of one another, at any order, where
    [`VarianceCovariance`][seqjepa.VarianceCovariance] looks at the second alone. Normal rows give about 1.06, however
    many; N rows of zeros 0.41 N. Give it outputs that can be normal: an encoder that ends in a ReLU cannot, one that
    ends in batch norm without weights can.

    Directions are drawn anew at each call, from torch's own generator on the device of z: seed that, as
    [`seed_step`][seqjepa.training.seed_step] does. In training mode the batch is that of all ranks, and so are rank 0's
    directions: every rank has the loss of the whole batch, with a gradient that is right once it is averaged over
    ranks, and all must call it. In eval mode the batch is this process's own.

    Args:
        weight: of the term beside a distance of weight 1, at least 0.
        slices: how many directions, at least 1.
        knots: of the trapezoid rule on [0, t_max], at least 2. The integrand is even: the other half is the same.
        t_max: where the integral is cut off, above 0. Of rows that are all zero the defaults leave 1.6 % aside.

    Shapes:
        z (B, T, D), mask (B, T) bool or None → loss (), term `sigreg` (), detached and before its weight. Where the
        mask is False a view does not count; a time step without views is left out of the mean. Computed in float32 or
        wider.

    Raises:
        ValueError: settings out of range; other axes; a mask of another shape.
        TypeError: z that is not floating point; a mask that is not bool.

    Source:
        Balestriero & LeCun 2025 (arXiv 2511.08544), after the test of Epps & Pulley 1983. LeWorldModel (arXiv
        2603.19312) trains a world model by it, with weight 0.09 and an [`OnlineTarget`][seqjepa.OnlineTarget].

    Examples:
        >>> import torch
        >>> normal, collapsed = torch.randn(512, 3, 16), torch.zeros(512, 3, 16)
        >>> [round(SIGReg()(z).terms["sigreg"].item()) for z in (normal, collapsed)]
        [1, 206]
        >>> loss = SeqJEPALoss(regularizer=SIGReg(weight=0.1))
    """

    def __init__(self, weight: float = 0.1, slices: int = 256, knots: int = 17, t_max: float = 3.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"The weight must be at least 0; got {weight}.")
        if slices < 1 or knots < 2:
            raise ValueError(f"It takes 1 slice and 2 knots at least; got slices={slices} and knots={knots}.")
        if not 0 < t_max < math.inf:
            raise ValueError(f"t_max, where the integral is cut off, must be above 0 and finite; got {t_max}.")
        self.weight, self.slices, self.knots, self.t_max = weight, slices, knots, t_max

    def forward(self, z: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> LossOutput:
        """The weighted term, and the term."""
        check_axes("z", z, "B T D")
        if mask is not None:
            check_mask(mask, z)
        x = z.to(torch.promote_types(z.dtype, torch.float32))
        with autocast(x.device, enabled=False):  # of the cosine of a large number half precision knows nothing
            counts = x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)
            x = torch.where(counts[..., None] > 0, x, 0)  # NaN in the padding stays there
            t = torch.linspace(0, self.t_max, self.knots, device=x.device, dtype=x.dtype)
            angles = (x @ self._directions(x).T)[..., None] * t  # (B, T, slices, knots)
            sums = torch.einsum("bt,pbtmk->ptmk", counts, torch.stack([angles.cos(), angles.sin()]))
            n = counts.sum(0)
            if self.training:  # an evaluation may run on one rank while the others go on
                sums, n = all_reduce(sums), all_reduce(n)
            normal = (-t.square() / 2).exp()
            real, imaginary = sums / n.clamp(min=1)[:, None, None]
            squared = (real - normal).square() + imaginary.square()  # (T, slices, knots)
            weights = torch.full_like(t, 2 * self.t_max / (self.knots - 1))  # both halves of the integral
            weights[[0, -1]] /= 2
            by_step = n * (squared @ (weights * normal)).mean(-1)
            term = by_step.sum() / (n > 0).sum().clamp(min=1)
        return LossOutput(self.weight * term, {"sigreg": term.detach()})

    def _directions(self, x: Tensor) -> Tensor:
        """Unit vectors (slices, D): in training those of rank 0 on every rank."""
        drawn = torch.randn(self.slices, x.shape[-1], device=x.device, dtype=x.dtype)
        if self.training:
            drawn = all_reduce(drawn * (rank() == 0))
        return drawn / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)
