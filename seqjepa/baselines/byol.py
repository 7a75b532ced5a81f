"""BYOL: each view predicts the other's projection by an average of the network."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa.baselines._base import Averaged, BaselineOutput, setting
from seqjepa.baselines.heads import Projector
from seqjepa.baselines.pairs import ViewPairs
from seqjepa.encoders import feature_width
from seqjepa.functional import cosine_distance
from seqjepa.predictor import ConditionedPredictor
from seqjepa.target import EMATarget, Momentum

__all__ = ["BYOL"]


class BYOL(Averaged):
    """Each view predicts the other's projection by an average of the network: no negatives.

    With p = h(g(z)), t the averaged encoder's and projector's output, and d one minus the cosine:

    `L = 2 d(p_0, t_1) + 2 d(p_1, t_0)`, in [0, 8].

    Invariant by design, the least equivariant of the published table: top-1 82.90 %, R² 0.12. The target must move:
    call `update_target()` after each optimiser step, or it stays the network it began as. A loss that falls to almost 0
    within few steps is most likely collapse: watch the rank of z. LARS's rate (0.2) makes Adam collapse; 3e-4 works.

    Left out: LARS, the weight decay that spares batch norm and biases, and the augmentations.

    Args:
        encoder: (N, …) → (N, D).
        projector: (…, D) → (…, P).
        predictor: state (N, P), embedded action (N, 0) → (N, P).
        momentum: of the target: a number, or a schedule of the step; CosineSchedule(0.996, 1.0, total_steps) as
            published.
        pairs: which views predict one another; the first two by default.

    Shapes:
        views (B, T+1, …), actions (B, T, A), of any A: only their shape is looked at.

    Raises:
        ValueError: views and actions that do not fit; a mask; a single source in training.

    Source:
        Grill et al. 2020 (arXiv 2006.07733).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> method = BYOL.from_encoder(encoder, view_shape=(3, 8, 8), widths=(32, 8))
        >>> out = method(torch.rand(4, 2, 3, 8, 8), torch.randn(4, 1, 4))
        >>> out.loss.backward()
        >>> method.update_target()
        >>> out.prediction.shape, out.target.requires_grad, 0 <= out.loss <= 8
        (torch.Size([8, 8]), False, tensor(True))
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        *,
        momentum: Momentum = 0.996,
        pairs: ViewPairs | None = None,
    ) -> None:
        super().__init__(encoder, pairs=pairs)
        self.projector, self.predictor = projector, predictor
        self.target = EMATarget(nn.Sequential(encoder, projector), momentum)

    @classmethod
    def from_encoder(
        cls,
        encoder: nn.Module,
        *,
        action_dim: int | None = None,
        view_shape: tuple[int, ...] = (3, 64, 64),
        settings: Literal["paper", "comparison"] = "comparison",
        widths: tuple[int, int] | None = None,
        momentum: Momentum = 0.996,
        pairs: ViewPairs | None = None,
    ) -> BYOL:
        """The method around your own encoder.

        Args:
            encoder: (N, …) → (N, D).
            action_dim: ignored: the method is told no actions.
            view_shape: shape of one view.
            settings: "comparison", the seq-JEPA table's: a projector D→2048→128 closed by batch norm, a predictor
                128→2048→128; "paper", its own: 4096 hidden, P = 256, no closing batch norm.
            widths: the hidden width of both and P, instead.
            momentum: of the target: a number, or a schedule of the step.
            pairs: which views predict one another.
        """
        dim = feature_width(encoder, view_shape)
        default, bias = setting(settings, {"comparison": ((2048, 128), False), "paper": ((4096, 256), True)})
        hidden, out = widths or default
        projector = Projector(dim, hidden, out, bias=bias, last="linear" if bias else "norm")
        return cls(encoder, projector, ConditionedPredictor(out, 0, out, hidden), momentum=momentum, pairs=pairs)

    def forward(
        self,
        views: Float[Tensor, "B views *image"],
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> BaselineOutput:
        """The loss of a batch; the actions are dropped, a mask is refused."""
        self._checked(views, actions, mask)
        paired = self.pairs(views, actions)
        target = self._target_of(paired.views)  # (B, V, P)
        z = self.encode(paired.views)  # (B, V, D)
        e = self.embed(actions[:, :1].expand(-1, z.shape[1], -1))  # (B, V, 0)
        prediction = self._predict_pairs(self.projector(z), e)  # (B, V, P)
        first, second = paired.first, paired.second
        onwards = cosine_distance(prediction[:, first], target[:, second]).mean()
        back = cosine_distance(prediction[:, second], target[:, first]).mean()
        distance = onwards + back
        return BaselineOutput(
            2 * distance,
            z,
            {"distance": distance.detach()},
            *(_both(x, a, b) for x, a, b in ((prediction, first, second), (target, second, first))),
        )


def _both(x: Float[Tensor, "B V P"], first: slice, second: slice) -> Float[Tensor, "N P"]:
    """The rows of one slice of the views, then those of the other."""
    return torch.cat([x[:, first].flatten(0, 1), x[:, second].flatten(0, 1)])
