"""SEN: SimCLR between a predicted projection and the true one."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa.baselines._base import BaselineOutput, OnlineProjection, embedding, setting
from seqjepa.baselines.contrast import NTXent, over_pairs
from seqjepa.baselines.heads import Projector
from seqjepa.baselines.pairs import ViewPairs
from seqjepa.encoders import feature_width
from seqjepa.predictor import ConditionedPredictor

__all__ = ["SEN"]


class SEN(OnlineProjection):
    """The projection that a view and an action predict, against the true one and all other sources.

    `L = NTX(h([g(z_0) ; e]), g(z_1); τ)`, with e the embedded action from the first view to the second; the gradient
    goes through both sides.

    Nothing forbids the predictor from ignoring the action: then it *is* SimCLR, and the published R² of both is 0.35.
    Report MRR beside it. Published: top-1 83.43 %.

    This is the contrastive form of the comparison. Left out: the original's symmetric embedding network with
    group-equivariant networks behind it, and its hinge loss.

    Args:
        encoder: (N, …) → (N, D).
        projector: (…, D) → (…, P).
        embedder: actions (B, K, A) → (B, K, E).
        predictor: state (N, P), embedded action (N, E) → (N, P), such as
            [`HyperPredictor`][seqjepa.baselines.HyperPredictor] of raw actions.
        temperature: τ, above 0.
        pairs: from which view which is predicted; the first and the second by default.

    Shapes:
        views (B, T+1, …), actions (B, T, A).

    Raises:
        ValueError: views and actions that do not fit; a mask; a single source.

    Source:
        Park et al. 2022 (arXiv 2204.11371), in the form of Ghaemi et al. 2025 (arXiv 2505.03176).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> method = SEN.from_encoder(encoder, action_dim=4, view_shape=(3, 8, 8), widths=(32, 8))
        >>> out = method(torch.rand(4, 2, 3, 8, 8), torch.randn(4, 1, 4))
        >>> out.z.shape, out.prediction.shape, list(out.terms)
        (torch.Size([4, 2, 16]), torch.Size([4, 8]), ['contrast'])
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        embedder: nn.Module,
        predictor: nn.Module,
        *,
        temperature: float = 0.5,
        pairs: ViewPairs | None = None,
    ) -> None:
        super().__init__(encoder, embedder, pairs)
        self.projector, self.predictor = projector, predictor
        self.contrast = NTXent(temperature)

    @classmethod
    def from_encoder(
        cls,
        encoder: nn.Module,
        *,
        action_dim: int | None = None,
        view_shape: tuple[int, ...] = (3, 64, 64),
        settings: Literal["comparison"] = "comparison",
        widths: tuple[int, ...] | None = None,
        embedder: nn.Module | None = None,
        pairs: ViewPairs | None = None,
    ) -> SEN:
        """The method around your own encoder.

        Args:
            encoder: (N, …) → (N, D).
            action_dim: A, numbers in an action; needed without an embedder of your own.
            view_shape: shape of one view.
            settings: "comparison", the seq-JEPA table's: a projector D→2048→2048→2048 closed by batch norm, a linear
                predictor, τ = 0.5. The predictor's batch norm is affine, where the comparison's is not.
            widths: the projector's hidden widths and P, instead.
            embedder: `ActionEmbedder(action_dim, 128)` by default; `NoActions()` for the ablation.
            pairs: from which view which is predicted.
        """
        widths = widths or setting(settings, {"comparison": (2048, 2048, 2048)})
        embedder, width = embedding(embedder, action_dim, cls.__name__)
        projector = Projector(feature_width(encoder, view_shape), *widths, bias=False, last="norm")
        predictor = ConditionedPredictor(widths[-1], width, widths[-1], None)
        return cls(encoder, projector, embedder, predictor, pairs=pairs)

    def forward(
        self,
        views: Float[Tensor, "B views *image"],
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> BaselineOutput:
        """The loss of a batch; a mask is refused."""
        self._checked(views, actions, mask)
        paired = self.pairs(views, actions)
        z = self.encode(paired.views)  # (B, V, D)
        y = self.projector(z)  # (B, V, P)
        prediction = self._predict_pairs(y[:, paired.first], self.embed(paired.actions))  # (B, K, P)
        target = y[:, paired.second]  # (B, K, P)
        loss = over_pairs(self.contrast, prediction, target)
        terms = {"contrast": loss.detach()}
        return BaselineOutput(loss, z, terms, prediction.flatten(0, 1), target.detach().flatten(0, 1))
