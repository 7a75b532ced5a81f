"""Conditional BYOL: a view and an action predict the other view's projection."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa.baselines._base import Averaged, BaselineOutput, embedding, setting
from seqjepa.baselines.heads import Projector
from seqjepa.baselines.pairs import ViewPairs
from seqjepa.encoders import feature_width
from seqjepa.functional import cosine_distance
from seqjepa.predictor import ConditionedPredictor
from seqjepa.target import EMATarget, Momentum

__all__ = ["ConditionalBYOL"]


class ConditionalBYOL(Averaged):
    """A view and an action predict the other view's projection by an average of the network.

    With e the embedded action that leads from the first view to the second, t the averaged network's projection, and d
    one minus the cosine:

    `L = 2 d(h([g(z_0) ; e]), t_1)`, one way, in [0, 4].

    It is seq-JEPA of one observed view without an aggregator, and costs half of BYOL: one online and one target pass.
    Published: top-1 82.61 %, R² 0.31. The target must move: call `update_target()` after each optimiser step.

    Left out: nothing of the comparison's; it has no paper of its own. The way back would need the inverse action
    (`group.inverse`), not the same one. CARE, cited near it, is another method.

    Args:
        encoder: (N, …) → (N, D).
        projector: (…, D) → (…, P).
        embedder: actions (B, K, A) → (B, K, E).
        predictor: state (N, P), embedded action (N, E) → (N, P).
        momentum: of the target: a number, or a schedule of the step.
        pairs: from which view which is predicted; the first and the second by default.

    Shapes:
        views (B, T+1, …), actions (B, T, A).

    Raises:
        ValueError: views and actions that do not fit; a mask; a single source in training.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), comparison; after Garrido et al. 2024 (arXiv 2403.00504).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> method = ConditionalBYOL.from_encoder(encoder, action_dim=4, view_shape=(3, 8, 8), widths=(32, 8))
        >>> out = method(torch.rand(4, 2, 3, 8, 8), torch.randn(4, 1, 4))
        >>> out.loss.backward()
        >>> method.update_target()
        >>> out.z.shape, out.prediction.shape                                # one view is encoded with gradient
        (torch.Size([4, 1, 16]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        embedder: nn.Module,
        predictor: nn.Module,
        *,
        momentum: Momentum = 0.996,
        pairs: ViewPairs | None = None,
    ) -> None:
        super().__init__(encoder, embedder, pairs)
        self.projector, self.predictor = projector, predictor
        self.target = EMATarget(nn.Sequential(encoder, projector), momentum)

    @classmethod
    def from_encoder(
        cls,
        encoder: nn.Module,
        *,
        action_dim: int | None = None,
        view_shape: tuple[int, ...] = (3, 64, 64),
        settings: Literal["comparison"] = "comparison",
        widths: tuple[int, int] | None = None,
        embedder: nn.Module | None = None,
        momentum: Momentum = 0.996,
        pairs: ViewPairs | None = None,
    ) -> ConditionalBYOL:
        """The method around your own encoder.

        Args:
            encoder: (N, …) → (N, D).
            action_dim: A, numbers in an action; needed without an embedder of your own.
            view_shape: shape of one view.
            settings: "comparison", the seq-JEPA table's: a projector D→2048→128 closed by batch norm, a predictor
                [128 ; E]→2048→128.
            widths: the hidden width of both and P, instead.
            embedder: `ActionEmbedder(action_dim, 128)` by default; `NoActions()` for the ablation.
            momentum: of the target: a number, or a schedule of the step.
            pairs: from which view which is predicted.
        """
        hidden, out = widths or setting(settings, {"comparison": (2048, 128)})
        embedder, width = embedding(embedder, action_dim, cls.__name__)
        projector = Projector(feature_width(encoder, view_shape), hidden, out, bias=False, last="norm")
        predictor = ConditionedPredictor(out, width, out, hidden)
        return cls(encoder, projector, embedder, predictor, momentum=momentum, pairs=pairs)

    def forward(
        self,
        views: Float[Tensor, "B views *image"],
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> BaselineOutput:
        """The loss of a batch; a mask is refused."""
        self._checked(views, actions, mask)
        paired = self.pairs(views, actions)
        target = self._target_of(paired.views[:, paired.second])  # (B, K, P)
        z = self.encode(paired.views[:, paired.first])  # (B, K, D)
        prediction = self._predict_pairs(self.projector(z), self.embed(paired.actions))  # (B, K, P)
        distance = cosine_distance(prediction, target).mean()
        terms = {"distance": distance.detach()}
        return BaselineOutput(2 * distance, z, terms, prediction.flatten(0, 1), target.flatten(0, 1))
