"""What the model is told of an action: an embedding, the raw numbers, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import check_axes, check_batch_norm, like_weights, weight_of

__all__ = ["ActionEmbedder", "NoActions", "RawActions"]

NORMS: dict[str | None, Callable[[int], nn.Module]] = {
    "batch": lambda dim: nn.BatchNorm1d(dim, affine=False),
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    None: lambda dim: nn.Identity(),
}


class ActionEmbedder(nn.Module):
    """A learnt embedding of each action, alone: e = norm(W a).

    The paper's is a linear map without bias and a batch norm without affine parameters, whose statistics are over all
    B·T actions of a batch. A bias is learnt only where no norm follows.

    Args:
        action_dim: A, numbers in an action, at least 1.
        embed_dim: E, width of the embedding (128 in the paper), at least 1.
        hidden_dim: width of the hidden ReLU layer of an MLP; None is the paper's linear map.
        norm: "batch" as in the paper; "layer" or "rms", which do not depend on the batch; or None.

    Shapes:
        actions (B, T, A) → (B, T, E); T may be 0.

    Raises:
        ValueError: another rank or action size, another device; a size below 1; an unknown norm.
        TypeError: a higher precision than the weights'.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), section 3.

    Examples:
        >>> import torch
        >>> ActionEmbedder(4, 128)(torch.randn(8, 3, 4)).shape
        torch.Size([8, 3, 128])
    """

    def __init__(
        self,
        action_dim: int,
        embed_dim: int = 128,
        *,
        hidden_dim: int | None = None,
        norm: Literal["batch", "layer", "rms"] | None = "batch",
    ) -> None:
        super().__init__()
        if action_dim < 1 or embed_dim < 1:
            raise ValueError(
                f"action_dim and embed_dim must be at least 1; got {action_dim} and {embed_dim}. "
                "For a model without actions use NoActions()."
            )
        if hidden_dim is not None and hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, or None for a linear map; got {hidden_dim}.")
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}; got {norm!r}.")
        self.action_dim = action_dim
        self.embed_dim = embed_dim
        self.hidden_dim = hidden_dim
        self.norm = norm
        last = nn.Linear(hidden_dim or action_dim, embed_dim, bias=norm is None)
        hidden = [nn.Linear(action_dim, hidden_dim), nn.ReLU()] if hidden_dim else []
        self.projection = nn.Sequential(*hidden, last)
        self.normalization = NORMS[norm](embed_dim)

    def forward(self, actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T E"]:
        """Embed every action by itself."""
        check_axes("actions", actions, "B T A")
        if actions.shape[-1] != self.action_dim:
            raise ValueError(
                f"An action has {self.action_dim} numbers here; got actions of shape {tuple(actions.shape)}, "
                f"{actions.shape[-1]} each. Build the embedder with action_dim={actions.shape[-1]}."
            )
        actions = like_weights("actions", actions, weight_of(self.projection))
        if self.norm == "batch":
            check_batch_norm(actions.shape[0] * actions.shape[1], self.training, "actions")
        e = self.normalization(self.projection(rearrange(actions, "b t a -> (b t) a")))
        return e.unflatten(0, actions.shape[:2])


class NoActions(nn.Module):
    """The ablation without action conditioning: every action is embedded in no numbers at all.

    Shapes:
        actions (B, T, A) → (B, T, 0), for any A.

    Raises:
        ValueError: actions of another rank.

    Examples:
        >>> import torch
        >>> NoActions()(torch.randn(8, 3, 4)).shape
        torch.Size([8, 3, 0])
    """

    embed_dim = 0

    def forward(self, actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T 0"]:
        """Drop the actions."""
        check_axes("actions", actions, "B T A")
        return actions[..., :0]


class RawActions(nn.Module):
    """The actions themselves, filled up with zeros to `embed_dim` numbers; nothing is learnt.

    The zeros let the token width D + E split into attention heads. Where the released code used raw actions it lost the
    last one (see the page on fidelity); this part keeps it.

    Args:
        embed_dim: E, at least the size of an action.

    Shapes:
        actions (B, T, A) → (B, T, E), A ≤ E.

    Raises:
        ValueError: actions of another rank, or of more than `embed_dim` numbers.

    Examples:
        >>> import torch
        >>> RawActions(4)(torch.ones(1, 1, 3))
        tensor([[[1., 1., 1., 0.]]])
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        if embed_dim < 1:
            raise ValueError(f"embed_dim must be at least 1, room for an action; got {embed_dim}.")
        self.embed_dim = embed_dim

    def forward(self, actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T E"]:
        """Append the zeros."""
        check_axes("actions", actions, "B T A")
        if actions.shape[-1] > self.embed_dim:
            raise ValueError(
                f"Raw actions have room for {self.embed_dim} numbers; got {actions.shape[-1]}. "
                f"Build RawActions(embed_dim={actions.shape[-1]}) or wider."
            )
        return F.pad(actions, (0, self.embed_dim - actions.shape[-1]))
