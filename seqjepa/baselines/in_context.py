"""ContextSSL after training: views read after a fixed context of pairs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._checks import check_sequence
from seqjepa._modes import fresh_casts
from seqjepa.baselines.pair_transformer import pair_tokens, token

__all__ = ["InContext"]


class InContext(nn.Module):
    """A [`ContextSSL`][seqjepa.baselines.ContextSSL] as it reads after a fixed context: what its paper measures.

    A view stands after all pairs of the context and sees them and itself. The context is encoded anew by the method's
    present weights in each call, and only there: the method and its training know nothing of it.

    Args:
        method: whose weights these are.
        views: (C, 2, …), C pairs of training sources, at least 1.
        actions: (C, 1, A).

    Shapes:
        `contextual`: views (B, T, …) → (B, T, P), of length 1. The rest as the method's, which the scorecard asks for.

    Raises:
        ValueError: no pairs, or views and actions that make none.

    Examples:
        >>> import torch
        >>> from seqjepa.baselines import ContextSSL
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = ContextSSL.from_encoder(encoder, action_dim=2, view_shape=(3, 2, 2), widths=(16, 8)).eval()
        >>> views, actions = torch.rand(5, 2, 3, 2, 2), torch.randn(5, 1, 2)
        >>> reader = method.in_context(views[1:], actions[1:])
        >>> alone, read = method.contextual(views[:1]), reader.contextual(views[:1])
        >>> read.shape, torch.allclose(read, alone)
        (torch.Size([1, 2, 8]), False)
    """

    predicts_z = False
    method: Any
    views: Tensor
    actions: Tensor

    def __init__(self, method: Any, views: Float[Tensor, "C 2 *image"], actions: Float[Tensor, "C 1 A"]) -> None:
        super().__init__()
        check_sequence(views, actions)
        if views.shape[1] != 2 or len(views) < 1:
            raise ValueError(
                f"A context is of pairs of views, (C, 2, …), one at least; got views of shape {tuple(views.shape)}. "
                "Give views[:, :2] and actions[:, :1]."
            )
        self.method = method
        self.register_buffer("views", views, persistent=False)
        self.register_buffer("actions", actions, persistent=False)

    def encode(self, views: Float[Tensor, "B T *image"]) -> Float[Tensor, "B T D"]:
        """The method's z."""
        return self.method.encode(views)

    def embed(self, actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T E"]:
        """The method's embedded actions."""
        return self.method.embed(actions)

    def aggregate(
        self, z: Float[Tensor, "B T D"], e: Float[Tensor, "B steps E"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B D"]:
        """Z of the last view."""
        return self.method.aggregate(z, e, mask)

    def predict(self, state: Float[Tensor, "B D"], e: Float[Tensor, "B E"]) -> Float[Tensor, "B P"]:
        """What is read at a first token after the context."""
        return self.method.read(token(state, e), self._context())

    def target(self, views: Float[Tensor, "B *image"]) -> Float[Tensor, "B P"]:
        """What is read at a second token after the context, without gradient."""
        with torch.no_grad(), fresh_casts(views.device):
            return self.method.read(self.method.second_tokens(views[:, None]), self._context())

    def contextual(self, views: Float[Tensor, "B T *image"]) -> Float[Tensor, "B T P"]:
        """What is read of each view after the context, without an action, at length 1."""
        o = self.method.read(self.method.second_tokens(views), self._context())
        return F.normalize(o, dim=-1).unflatten(0, views.shape[:2])

    def _context(self) -> Float[Tensor, "tokens S"]:
        z, e = self.method.encode(self.views), self.method.embed(self.actions)[:, 0]
        return pair_tokens(z[:, 0], e, z[:, 1]).flatten(0, 1)
