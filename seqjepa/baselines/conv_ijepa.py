"""Conv-IJEPA: every observed view, by itself, predicts the last one's projection."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa.baselines._base import Averaged, BaselineOutput, embedding, setting
from seqjepa.baselines.heads import Projector
from seqjepa.encoders import feature_width
from seqjepa.functional import cosine_distance
from seqjepa.groups import Group
from seqjepa.predictor import ConditionedPredictor
from seqjepa.target import EMATarget, Momentum

__all__ = ["ConvIJEPA"]


class ConvIJEPA(Averaged):
    """Every observed view, by itself, predicts the last one's projection by an average of the network.

    With a_{t→T} the action that leads from view t to the last one, composed of those between, e(·) its embedding, ȳ the
    averaged network's projection, and d one minus the cosine:

    `L = mean_t d(h([g(z_t) ; e(a_{t→T})]), ȳ_T)`, t = 0 … T − 1, in [0, 2].

    It is seq-JEPA without the aggregator, at the same cost: what several views tell together is never asked for. With
    one observed view it is half of [`ConditionalBYOL`][seqjepa.baselines.ConditionalBYOL]'s loss. How actions compose
    is for their group to say: a sum is right for saccades, `Translation(2)`, and wrong for rotations. The target must
    move: call `update_target()` after each optimiser step. A sudden drop of the loss means partial collapse.

    It stands in for I-JEPA, which predicts blocks of patches of a ViT, where the encoder is a ConvNet and views are
    glimpses of an image. Left out: all of that, and smooth-L1 to layer-normed targets.

    Args:
        encoder: (N, …) → (N, D).
        projector: (…, D) → (…, P).
        embedder: actions (B, T, A) → (B, T, E).
        predictor: state (N, P), embedded action (N, E) → (N, P).
        momentum: of the target: a number, or a schedule of the step; CosineSchedule(0.996, 1.0, total_steps) as
            published.
        group: what composes actions; needed for more than one observed view.

    Shapes:
        views (B, T+1, …), actions (B, T, A).

    Raises:
        ValueError: views and actions that do not fit; several actions without a group; a mask; a single source in
            training.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), whose baseline on saccades it is; after Assran et al. 2023 (arXiv
        2301.08243).

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Translation
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> method = ConvIJEPA.from_encoder(
        ...     encoder, action_dim=2, view_shape=(3, 8, 8), widths=(32, 8), group=Translation(2))
        >>> out = method(torch.rand(4, 4, 3, 8, 8), torch.randn(4, 3, 2))
        >>> out.loss.backward()
        >>> method.update_target()
        >>> out.z.shape, out.prediction.shape                        # three observed views of four sources predict
        (torch.Size([4, 3, 16]), torch.Size([12, 8]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        embedder: nn.Module,
        predictor: nn.Module,
        *,
        momentum: Momentum = 0.996,
        group: Group | None = None,
    ) -> None:
        super().__init__(encoder, embedder)
        self.projector, self.predictor = projector, predictor
        self.target = EMATarget(nn.Sequential(encoder, projector), momentum)
        self.group = group

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
        group: Group | None = None,
    ) -> ConvIJEPA:
        """The method around your own encoder.

        Args:
            encoder: (N, …) → (N, D).
            action_dim: A, numbers in an action; needed without an embedder of your own.
            view_shape: shape of one view.
            settings: "comparison", the seq-JEPA paper's: a projector D→2048→128 closed by batch norm, a predictor
                [128 ; E]→1024→128.
            widths: the hidden width of both and P, instead.
            embedder: `ActionEmbedder(action_dim, 128)` by default; `NoActions()` for the ablation.
            momentum: of the target: a number, or a schedule of the step.
            group: what composes actions: `seqjepa.groups.Translation(2)` for saccades.
        """
        default = setting(settings, {"comparison": (2048, 1024, 128)})
        hidden, predictor_hidden, out = default if widths is None else (widths[0], *widths)
        embedder, width = embedding(embedder, action_dim, cls.__name__)
        projector = Projector(feature_width(encoder, view_shape), hidden, out, bias=False, last="norm")
        predictor = ConditionedPredictor(out, width, out, predictor_hidden)
        return cls(encoder, projector, embedder, predictor, momentum=momentum, group=group)

    def forward(
        self,
        views: Float[Tensor, "B views *image"],
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> BaselineOutput:
        """The loss of a batch; a mask is refused."""
        self._checked(views, actions, mask)
        onwards = self._to_last(actions)  # (B, T, A)
        target = self._target_of(views[:, -1:]).expand(-1, actions.shape[1], -1)  # (B, T, P)
        z = self.encode(views[:, :-1])  # (B, T, D)
        prediction = self._predict_pairs(self.projector(z), self.embed(onwards))  # (B, T, P)
        distance = cosine_distance(prediction, target).mean()
        terms = {"distance": distance.detach()}
        return BaselineOutput(distance, z, terms, prediction.flatten(0, 1), target.flatten(0, 1))

    def _to_last(self, actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T A"]:
        """The action from each observed view to the last."""
        steps = actions.shape[1]
        if steps == 1:
            return actions
        if self.group is None:
            raise ValueError(
                f"From the first view to the last lead {steps} actions, which their group composes; got group=None. "
                "Build the method with the group of your actions, such as seqjepa.groups.Translation(2) for saccades."
            )
        path = [actions[:, -1]]
        for t in range(steps - 2, -1, -1):
            path.append(self.group.compose(actions[:, t], path[-1]))
        return torch.stack(path[::-1], dim=1)
