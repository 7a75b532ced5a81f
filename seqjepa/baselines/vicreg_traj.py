"""VICReg-Traj: VICReg, and projections along a path of views that go straight on."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._modes import autocast
from seqjepa.baselines._base import Baseline, BaselineOutput, check_weights, setting
from seqjepa.baselines.heads import Projector
from seqjepa.baselines.vicreg import variance_covariance
from seqjepa.encoders import feature_width
from seqjepa.functional import mse_distance
from seqjepa.loss import VarianceCovariance

__all__ = ["VICRegTraj", "straightness"]


class VICRegTraj(Baseline):
    """VICReg on two neighbouring views, and a path of three that goes straight on: no actions are told.

    Of views 0, 1 and 2 with projections l, c and r, the steps c − l and r − c are projected onto the plane at right
    angles to c, to u_1 and u_2:

    `L = VICReg(l, c) + α · (−mean cos(u_1, u_2))`.

    It presumes *adjacent* views on a smooth path: sample small steps. Views at random are no path. The released code
    projects with c itself in the place of c / ‖c‖, which leaves both steps along c, and the term near +1 whatever the
    views; here it is normalised.

    Left out: the paths of the original's data; its α is not known here, 1 is the comparison's.

    Args:
        encoder: (N, …) → (N, D).
        projector: (…, D) → (…, P).
        trajectory_weight: α, at least 0.
        invariance_weight: λ_i, at least 0.
        variance_weight: λ_v, at least 0.
        covariance_weight: λ_c, at least 0.

    Shapes:
        views (B, T+1, …) with T of at least 2: the first three are used; actions (B, T, A), of any A: only their shape
        is looked at.

    Raises:
        ValueError: fewer than three views; views and actions that do not fit; a mask; a single source in training; a
            negative weight.

    Source:
        Wang, Chen & Yu 2024 (arXiv 2403.14973).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> method = VICRegTraj.from_encoder(encoder, view_shape=(3, 8, 8), widths=(32, 32))
        >>> out = method(torch.rand(4, 3, 3, 8, 8), torch.randn(4, 2, 4))
        >>> i, v, c, path = out.terms.values()
        >>> torch.allclose(out.loss, 25 * i + 25 * v + c + path), -1 <= path <= 1
        (True, tensor(True))
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        trajectory_weight: float = 1.0,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
    ) -> None:
        super().__init__(encoder)
        check_weights(
            trajectory_weight=trajectory_weight,
            invariance_weight=invariance_weight,
            variance_weight=variance_weight,
            covariance_weight=covariance_weight,
        )
        self.projector = projector
        self.trajectory_weight, self.invariance_weight = trajectory_weight, invariance_weight
        self.regularizer = VarianceCovariance(variance_weight / 2, covariance_weight)

    @classmethod
    def from_encoder(
        cls,
        encoder: nn.Module,
        *,
        action_dim: int | None = None,
        view_shape: tuple[int, ...] = (3, 64, 64),
        settings: Literal["comparison"] = "comparison",
        widths: tuple[int, ...] | None = None,
    ) -> VICRegTraj:
        """The method around your own encoder, with weights 25, 25, 1 and α = 1.

        Args:
            encoder: (N, …) → (N, D).
            action_dim: ignored: the method is told no actions.
            view_shape: shape of one view.
            settings: "comparison", the seq-JEPA table's: a projector D→2048→2048→2048.
            widths: the projector's hidden widths and P, instead.
        """
        default = setting(settings, {"comparison": (2048, 2048, 2048)})
        return cls(encoder, Projector(feature_width(encoder, view_shape), *(widths or default), last="bias-free"))

    def forward(
        self,
        views: Float[Tensor, "B views *image"],
        actions: Float[Tensor, "B T A"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> BaselineOutput:
        """The loss of a batch; the actions are dropped, a mask is refused."""
        self._checked(views, actions, mask)
        if views.shape[1] < 3:
            raise ValueError(f"A path has three views at least; got {views.shape[1]}. Sample longer sequences.")
        z = self.encode(views[:, :3])  # (B, 3, D)
        left, centre, right = self.projector(z).unbind(1)  # (B, P) each
        invariance = mse_distance(left, centre).mean()
        penalty, terms = variance_covariance(self.regularizer, left[:, None], centre[:, None])
        trajectory = -straightness(left, centre, right).mean()
        loss = self.invariance_weight * invariance + penalty + self.trajectory_weight * trajectory
        return BaselineOutput(loss, z, {"invariance": invariance.detach(), **terms, "trajectory": trajectory.detach()})


def straightness(
    left: Float[Tensor, "B P"], centre: Float[Tensor, "B P"], right: Float[Tensor, "B P"]
) -> Float[Tensor, "B"]:
    """The cosine between the steps before and after `centre`, both at right angles to it; 0 where one is none."""
    dtype = torch.promote_types(centre.dtype, torch.float32)
    with autocast(centre.device, enabled=False):
        left, centre, right = (x.to(dtype) for x in (left, centre, right))
        along = F.normalize(centre, dim=-1, eps=1e-8)
        before, after = (
            step - (step * along).sum(dim=-1, keepdim=True) * along for step in (centre - left, right - centre)
        )
        return F.cosine_similarity(before, after, dim=-1, eps=1e-8)
