"""SIE: one half of the representation agrees between views, the other is predicted by the action."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._modes import fresh_casts
from seqjepa.actions import RawActions
from seqjepa.baselines._base import BaselineOutput, OnlineProjection, check_weights, setting, told
from seqjepa.baselines.heads import HyperPredictor, Projector
from seqjepa.baselines.pairs import ViewPairs
from seqjepa.baselines.vicreg import variance_covariance
from seqjepa.encoders import feature_width
from seqjepa.functional import mse_distance
from seqjepa.loss import VarianceCovariance

__all__ = ["SIE", "SIEWeights"]


class SIEWeights(NamedTuple):
    """The weights of SIE's loss; by default its own run's.

    Attributes:
        invariance: λ_i.
        equivariance: λ_e.
        variance: λ_v.
        covariance: λ_c.

    Examples:
        >>> SIEWeights()._replace(equivariance=0.0)
        SIEWeights(invariance=10.0, equivariance=0.0, variance=10.0, covariance=1.0)
    """

    invariance: float = 10.0
    equivariance: float = 4.5
    variance: float = 10.0
    covariance: float = 1.0


class SIE(OnlineProjection):
    """One half of z agrees between two views, the other is mapped from one to the next by the action.

    With z = [z^i ; z^e], y^i = g_i(z^i), y^e = g_e(z^e), Y = [y^i ; y^e], and a hypernetwork that is linear in the
    action, ŷ^e_1 = W(a) y^e_0 (see [`HyperPredictor`][seqjepa.baselines.HyperPredictor]):

    `L = λ_i mse(y^i_0, y^i_1) + λ_e mse(ŷ^e_1, y^e_1) + λ_v ½ (v(Y_0) + v(Y_1) + v(ŷ^e_1)) + λ_c (c(Y_0) + c(Y_1))`.

    The variance of ŷ keeps the predictor's output from shrinking; the covariance crosses the halves, so they do not
    repeat each other. Probe all of z, and each half: `method.encode(views)[..., :method.invariant_dim]` and the rest.
    The predictor works in the space of g_e, and so do `predict` and `target`. Actions are raw and must be canonical:
    W(−q) = −W(q). Actions that add, such as translations, are 0 where nothing changes: build with `affine=True`.
    Published: top-1 77.49 %, R² 0.58.

    Left out: the original's sizes, 256 px and batch 1024.

    Args:
        encoder: (N, …) → (N, D).
        invariant: the projector g_i of the first numbers of z, a [`Projector`][seqjepa.baselines.Projector].
        projector: the projector g_e of the rest, of D − `invariant.in_dim` numbers.
        embedder: actions (B, K, A) → (B, K, A): `RawActions(A)`. Batch statistics in W would not be SIE.
        predictor: state (N, P), action (N, A) → (N, P).
        weights: of the loss, each at least 0.
        pairs: from which view which is predicted; the first and the second by default.

    Shapes:
        views (B, T+1, …), actions (B, T, A).

    Raises:
        ValueError: views and actions that do not fit, or actions of another size; a mask; a single source in training;
            a negative weight.

    Source:
        Garrido et al. 2023 (arXiv 2302.10283).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> method = SIE.from_encoder(encoder, action_dim=4, view_shape=(3, 8, 8), widths=(32, 8))
        >>> out = method(torch.rand(4, 2, 3, 8, 8), torch.randn(4, 1, 4))
        >>> i, e, v, c = out.terms.values()
        >>> torch.allclose(out.loss, 10 * i + 4.5 * e + 10 * v + c), method.invariant_dim
        (True, 8)
    """

    def __init__(
        self,
        encoder: nn.Module,
        invariant: Projector,
        projector: Projector,
        embedder: nn.Module,
        predictor: nn.Module,
        *,
        weights: SIEWeights | None = None,
        pairs: ViewPairs | None = None,
    ) -> None:
        super().__init__(encoder, embedder, pairs)
        self.weights = SIEWeights() if weights is None else weights
        check_weights(**self.weights._asdict())
        self.invariant, self.projector, self.predictor = invariant, projector, predictor
        self.regularizer = VarianceCovariance(self.weights.variance / 2, self.weights.covariance)
        self.spread = VarianceCovariance(0.5, 0.0)  # of predictions

    @property
    def invariant_dim(self) -> int:
        """How many numbers of z, from the first on, are the invariant half."""
        return self.invariant.in_dim

    @classmethod
    def from_encoder(
        cls,
        encoder: nn.Module,
        *,
        action_dim: int | None = None,
        view_shape: tuple[int, ...] = (3, 64, 64),
        settings: Literal["paper", "comparison"] = "paper",
        widths: tuple[int, ...] | None = None,
        affine: bool = False,
        pairs: ViewPairs | None = None,
    ) -> SIE:
        """The method around your own encoder; half of its D numbers, rounded down, are the invariant half.

        Args:
            encoder: (N, …) → (N, D), D at least 2.
            action_dim: A, numbers in an action; needed.
            view_shape: shape of one view.
            settings: the weights λ_i, λ_e, λ_v, λ_c: "paper", its own run's 10, 4.5, 10, 1; "comparison", the seq-JEPA
                table's 25, 25, 25, 1. Both have projectors of 1024, 1024, 1024.
            widths: the projectors' hidden widths and P, instead.
            affine: add a map that does not depend on the action, for actions that add.
            pairs: from which view which is predicted.
        """
        weights = setting(settings, {"paper": SIEWeights(), "comparison": SIEWeights(25.0, 25.0, 25.0, 1.0)})
        size, dim = told(action_dim, cls.__name__), feature_width(encoder, view_shape)
        widths = widths or (1024, 1024, 1024)
        invariant, projector = (Projector(half, *widths, last="bias-free") for half in (dim // 2, dim - dim // 2))
        predictor = HyperPredictor(widths[-1], size, affine=affine)
        return cls(encoder, invariant, projector, RawActions(size), predictor, weights=weights, pairs=pairs)

    def predict(self, state: Float[Tensor, "B D"], e: Float[Tensor, "B E"]) -> Float[Tensor, "B P"]:
        """The equivariant half's projection expected of the view that an action leads to."""
        return self.predictor(self.projector(state[..., self.invariant_dim :]), e)

    def target(self, views: Float[Tensor, "B *image"]) -> Float[Tensor, "B P"]:
        """The equivariant half's projection of one view of each source, without gradient."""
        with torch.no_grad(), fresh_casts(views.device):
            return self.projector(self.encode(views[:, None])[:, 0, self.invariant_dim :])

    def forward(
        self,
        views: Float[Tensor, "B views *image"],
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> BaselineOutput:
        """The loss of a batch; a mask is refused."""
        self._checked(views, actions, mask)
        paired = self.pairs(views, actions)
        first, second = paired.first, paired.second
        z = self.encode(paired.views)  # (B, V, D)
        same = self.invariant(z[..., : self.invariant_dim])  # (B, V, P)
        moved = self.projector(z[..., self.invariant_dim :])  # (B, V, P)
        prediction = self._predict_pairs(moved[:, first], self.embed(paired.actions))  # (B, K, P)
        target = moved[:, second]  # (B, K, P)
        invariance = mse_distance(same[:, first], same[:, second]).mean()
        equivariance = mse_distance(prediction, target).mean()
        whole = torch.cat([same, moved], dim=-1)  # (B, V, 2P)
        penalty, terms = variance_covariance(self.regularizer, whole[:, first], whole[:, second])
        spread = torch.stack([self.spread(y[:, None]).loss for y in prediction.unbind(1)]).mean()
        w = self.weights
        loss = w.invariance * invariance + w.equivariance * equivariance + penalty + w.variance * spread
        terms["variance"] = terms["variance"] + spread.detach()
        terms = {"invariance": invariance.detach(), "equivariance": equivariance.detach(), **terms}
        return BaselineOutput(loss, z, terms, prediction.flatten(0, 1), target.detach().flatten(0, 1))
