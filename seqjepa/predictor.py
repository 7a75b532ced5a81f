"""The predictor: from the state and the next action to the next view's representation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import check_axes, check_batch_norm, like_weights, weight_of

__all__ = ["ConditionedPredictor"]

NORMS: dict[str | None, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    None: lambda dim: nn.Identity(),
}


class ConditionedPredictor(nn.Module):
    """Predict the next view's representation from the state and the embedding of the action that leads to it.

    The paper's MLP on [state ; action]: linear without bias, batch norm, ReLU, linear. With `hidden_dim=None` the
    linear form: linear without bias, batch norm. In training mode batch norm needs at least two rows. A linear map has
    a bias only where no norm follows. A second hidden layer helps where an action does not add to what the state knows
    but turns it: a rotation of space is a product of the two.

    Args:
        state_dim: S, width of the state.
        action_dim: E, width of the action's embedding; 0 without actions.
        dim: D, width of the prediction: the encoder's.
        hidden_dim: width of a hidden layer (1024 in the paper), or None for the linear form.
        depth: hidden layers, each linear, norm, ReLU (1 in the paper); the linear form has none, and takes no other.
        norm: "batch" as in the paper; "layer" or "rms", which do not depend on the batch; or None.

    Shapes:
        state (B, S), action (B, E) → (B, D).

    Raises:
        ValueError: another rank, width, device, or batches that differ; an unknown norm; a depth below 1, or one for
            the linear form.
        TypeError: a higher precision than the weights'.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), section 3.

    Examples:
        >>> import torch
        >>> predictor = ConditionedPredictor(state_dim=640, action_dim=128, dim=512)
        >>> predictor(torch.randn(8, 640), torch.randn(8, 128)).shape
        torch.Size([8, 512])
        >>> deep = ConditionedPredictor(state_dim=48, action_dim=32, dim=16, hidden_dim=512, depth=2)
        >>> [layer.out_features for layer in deep.layers if isinstance(layer, torch.nn.Linear)]
        [512, 512, 16]
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        dim: int,
        hidden_dim: int | None = 1024,
        *,
        depth: int = 1,
        norm: Literal["batch", "layer", "rms"] | None = "batch",
    ) -> None:
        super().__init__()
        if state_dim < 1 or dim < 1 or action_dim < 0 or (hidden_dim is not None and hidden_dim < 1):
            raise ValueError(
                "state_dim, dim and hidden_dim must be at least 1 and action_dim at least 0; got "
                f"state_dim={state_dim}, action_dim={action_dim}, dim={dim}, hidden_dim={hidden_dim}. "
                "For the linear form use hidden_dim=None."
            )
        if depth < 1 or (hidden_dim is None and depth != 1):
            raise ValueError(
                f"depth is the number of hidden layers, at least 1; got depth={depth} and hidden_dim={hidden_dim}. "
                "The linear form, hidden_dim=None, has none: leave depth out."
            )
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}; got {norm!r}.")
        self.state_dim, self.action_dim, self.dim, self.hidden_dim = state_dim, action_dim, dim, hidden_dim
        self.depth, self.norm = depth, norm
        width, width_in = hidden_dim or dim, state_dim + action_dim
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(width_in, width, bias=norm is None), NORMS[norm](width)]
            if hidden_dim:
                layers.append(nn.ReLU())
            width_in = width
        if hidden_dim:
            layers.append(nn.Linear(width, dim))
        self.layers = nn.Sequential(*layers)

    def forward(self, state: Float[Tensor, "B S"], action: Float[Tensor, "B E"]) -> Float[Tensor, "B D"]:
        """The predicted representation of the view that `action` leads to."""
        state = self._checked("state", state, "B S", self.state_dim)
        action = self._checked("action", action, "B E", self.action_dim)
        if state.shape[0] != action.shape[0]:
            raise ValueError(f"Every state needs one action; got {state.shape[0]} states, {action.shape[0]} actions.")
        if self.norm == "batch":
            check_batch_norm(state.shape[0], self.training, "sources")
        return self.layers(torch.cat([state, action], dim=-1) if self.action_dim else state)

    def _checked(self, name: str, tensor: Tensor, axes: str, width: int) -> Tensor:
        check_axes(name, tensor, axes)
        if tensor.shape[-1] != width:
            raise ValueError(f"The {name} is {width} wide here; got shape {tuple(tensor.shape)}.")
        # Where actions are embedded in no numbers, neither their dtype nor their device matters.
        return like_weights(name, tensor, weight_of(self.layers)) if width else tensor
