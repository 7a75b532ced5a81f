"""Heads: the projector, thrown away after training, and a predictor whose weights an action makes."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import check_axes, check_batch_norm, like_weights, weight_of

__all__ = ["HyperPredictor", "Projector"]


class Projector(nn.Module):
    """An MLP from z to the space of a loss: linear layers with batch norm and ReLU between.

    Args:
        widths: D, hidden widths, P: two numbers at least.
        bias: whether the linear layers before the last have one.
        last: "linear", "bias-free", or "norm": bias-free, and closed by a batch norm without affine parameters.

    Shapes:
        z (…, D) → (…, P). All rows are one batch to batch norm, which needs two in training.

    Raises:
        ValueError: fewer than two widths, or one below 1; an unknown `last`; another width of z; a single row.

    Examples:
        >>> import torch
        >>> Projector(512, 2048, 128, last="norm")(torch.randn(8, 2, 512)).shape
        torch.Size([8, 2, 128])
    """

    def __init__(
        self, *widths: int, bias: bool = True, last: Literal["linear", "bias-free", "norm"] = "linear"
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths are D, hidden ones and P, each at least 1; got {widths}.")
        if last not in ("linear", "bias-free", "norm"):
            raise ValueError(f"last must be 'linear', 'bias-free' or 'norm'; got {last!r}.")
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths[:-1]):
            layers += [nn.Linear(before, after, bias=bias), nn.BatchNorm1d(after), nn.ReLU()]
        layers.append(nn.Linear(widths[-2], widths[-1], bias=last == "linear"))
        if last == "norm":
            layers.append(nn.BatchNorm1d(widths[-1], affine=False))
        self.layers = nn.Sequential(*layers)
        self.in_dim, self.dim = widths[0], widths[-1]

    def forward(self, z: Float[Tensor, "*B D"]) -> Float[Tensor, "*B P"]:
        """Project every row."""
        if z.shape[-1] != self.in_dim:
            raise ValueError(f"The projector takes vectors {self.in_dim} wide; got shape {tuple(z.shape)}.")
        rows = like_weights("z", z.flatten(0, -2), weight_of(self.layers))
        check_batch_norm(len(rows), self.training and len(self.layers) > 1, "views")
        return self.layers(rows).unflatten(0, z.shape[:-1])


class HyperPredictor(nn.Module):
    """A linear map of y that is itself linear in the action: ŷ = W(a) y, W(a) = Σ_k a_k U_k.

    The maps are applied before they are weighed, (B, A, P), and W is never built, (B, P, P). U starts uniform in
    ±√(3/P), so that each U_k keeps the length of y on average.

    An action and its negative ask for opposite predictions, so quaternions must be canonical, as those of
    [`Rotation3D`][seqjepa.groups.Rotation3D] are. An action that adds, such as a translation, is 0 where nothing
    changes, and would map everything to 0: use `affine`.

    Args:
        dim: P, width of y and of the prediction.
        action_dim: A, numbers in an action.
        affine: W(a) = U_0 + Σ_k a_k U_k.

    Shapes:
        state (B, P), action (B, A) → (B, P).

    Raises:
        ValueError: sizes below 1; other shapes.

    Source:
        Garrido et al. 2023 (arXiv 2302.10283).

    Examples:
        >>> import torch
        >>> predictor, y, a = HyperPredictor(8, 4), torch.randn(5, 8), torch.randn(5, 4)
        >>> torch.allclose(predictor(y, 2 * a), 2 * predictor(y, a), atol=1e-5)
        True
    """

    def __init__(self, dim: int, action_dim: int, *, affine: bool = False) -> None:
        super().__init__()
        if dim < 1 or action_dim < 1:
            raise ValueError(f"dim and action_dim must be at least 1; got {dim} and {action_dim}.")
        self.dim, self.action_dim, self.affine = dim, action_dim, affine
        self.weight = nn.Parameter(torch.empty(action_dim + affine, dim, dim))  # with affine, the last is U_0
        nn.init.uniform_(self.weight, -math.sqrt(3 / dim), math.sqrt(3 / dim))

    def forward(self, state: Float[Tensor, "B P"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B P"]:
        """The predicted projection of the view that `action` leads to."""
        check_axes("state", state, "B P")
        check_axes("action", action, "B A")
        if state.shape[1] != self.dim or action.shape[1] != self.action_dim or len(state) != len(action):
            raise ValueError(
                f"state must be (B, {self.dim}) and action (B, {self.action_dim}); got {tuple(state.shape)} and "
                f"{tuple(action.shape)}."
            )
        state, action = (like_weights(name, x, self.weight) for name, x in (("state", state), ("action", action)))
        if self.affine:
            action = F.pad(action, (0, 1), value=1.0)
        mapped = F.linear(state, self.weight.flatten(0, 1)).unflatten(1, self.weight.shape[:2])  # (B, A, P)
        return (mapped * action[..., None]).sum(dim=1)
