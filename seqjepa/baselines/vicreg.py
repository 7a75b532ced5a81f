"""VICReg: two views agree, while features stay varied and different from one another."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa.baselines._base import Baseline, BaselineOutput, check_weights, setting
from seqjepa.baselines.heads import Projector
from seqjepa.baselines.pairs import ViewPairs
from seqjepa.encoders import feature_width
from seqjepa.functional import mse_distance
from seqjepa.loss import VarianceCovariance

__all__ = ["VICReg", "variance_covariance"]


class VICReg(Baseline):
    """Two views agree, while features stay varied and different from one another: no negatives, no averaged target.

    With y = g(z), v and c the variance and covariance terms of
    [`VarianceCovariance`][seqjepa.VarianceCovariance], each view by itself:

    `L = λ_i mse(y_0, y_1) + λ_v ½ (v(y_0) + v(y_1)) + λ_c (c(y_0) + c(y_1))`.

    The variance is averaged over the views and the covariance summed, as the original code does, to which 25 belongs;
    the paper's formula sums both. Invariant by design. Published: top-1 80.48 %, R² 0.20. Over several ranks variance
    and covariance are those of all rows. A covariance that falls to 0 early is collapse; a slow rise is normal.

    Left out: LARS, the large batches and the augmentations of the original.

    Args:
        encoder: (N, …) → (N, D).
        projector: (…, D) → (…, P).
        invariance_weight: λ_i, at least 0.
        variance_weight: λ_v, at least 0.
        covariance_weight: λ_c, at least 0.
        pairs: which views are compared; the first two by default.

    Shapes:
        views (B, T+1, …), actions (B, T, A), of any A: only their shape is looked at.

    Raises:
        ValueError: views and actions that do not fit; a mask; a single source in training; a negative weight.

    Source:
        Bardes, Ponce & LeCun 2022 (arXiv 2105.04906).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> method = VICReg.from_encoder(encoder, view_shape=(3, 8, 8), widths=(32, 32))
        >>> out = method(torch.rand(4, 2, 3, 8, 8), torch.randn(4, 1, 4))
        >>> i, v, c = out.terms.values()
        >>> torch.allclose(out.loss, 25 * i + 25 * v + c), list(out.terms)
        (True, ['invariance', 'variance', 'covariance'])
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        pairs: ViewPairs | None = None,
    ) -> None:
        super().__init__(encoder, pairs=pairs)
        check_weights(
            invariance_weight=invariance_weight, variance_weight=variance_weight, covariance_weight=covariance_weight
        )
        self.projector = projector
        self.invariance_weight = invariance_weight
        self.regularizer = VarianceCovariance(variance_weight / 2, covariance_weight)

    @classmethod
    def from_encoder(
        cls,
        encoder: nn.Module,
        *,
        action_dim: int | None = None,
        view_shape: tuple[int, ...] = (3, 64, 64),
        settings: Literal["paper", "comparison"] = "comparison",
        widths: tuple[int, ...] | None = None,
        pairs: ViewPairs | None = None,
    ) -> VICReg:
        """The method around your own encoder, with weights 25, 25 and 1.

        Args:
            encoder: (N, …) → (N, D).
            action_dim: ignored: the method is told no actions.
            view_shape: shape of one view.
            settings: "comparison", the seq-JEPA table's: a projector D→2048→2048→2048; "paper", its own: 8192 wide.
            widths: the projector's hidden widths and P, instead.
            pairs: which views are compared.
        """
        default = setting(settings, {"comparison": (2048, 2048, 2048), "paper": (8192, 8192, 8192)})
        projector = Projector(feature_width(encoder, view_shape), *(widths or default), last="bias-free")
        return cls(encoder, projector, pairs=pairs)

    def forward(
        self,
        views: Float[Tensor, "B views *image"],
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> BaselineOutput:
        """The loss of a batch; the actions are dropped, a mask is refused."""
        self._checked(views, actions, mask)
        paired = self.pairs(views, actions)
        z = self.encode(paired.views)  # (B, V, D)
        y = self.projector(z)  # (B, V, P)
        u, v = y[:, paired.first], y[:, paired.second]
        invariance = mse_distance(u, v).mean()
        penalty, terms = variance_covariance(self.regularizer, u, v)
        loss = self.invariance_weight * invariance + penalty
        return BaselineOutput(loss, z, {"invariance": invariance.detach(), **terms})


def variance_covariance(
    regularizer: VarianceCovariance, u: Float[Tensor, "B K P"], v: Float[Tensor, "B K P"]
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Variance averaged over the two views, covariance summed, of one pair of each source at a time.

    `regularizer` weighs what it makes of one view: half the weight of the variance, all of the covariance's.
    """
    made = [regularizer(y[:, None]) for y in (*u.unbind(1), *v.unbind(1))]
    variance, covariance = (torch.stack([terms[name] for _, terms in made]) for name in ("variance", "covariance"))
    loss = 2 * torch.stack([loss for loss, _ in made]).mean()  # two views, averaged over pairs
    return loss, {"variance": variance.mean(), "covariance": 2 * covariance.mean()}
