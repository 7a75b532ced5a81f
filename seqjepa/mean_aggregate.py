"""The mean of the views: the level that an aggregator must beat."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import unwrap

__all__ = ["MeanAggregate"]


class MeanAggregate:
    """A model's encoder with the mean of z over the views as its state: what an aggregator must beat.

    It ignores actions and order, and has nothing to learn. Every protocol takes it as a model that predicts nothing.

    Args:
        model: a model with `encode` and `embed`, or a function (B, T, …) → (B, T, D), an encoder alone, whose actions
            are then embedded as they are.

    Examples:
        >>> import torch
        >>> from seqjepa import ViewSequence
        >>> from seqjepa.evaluation import aggregate_states, extract
        >>> model = MeanAggregate(lambda views: views)
        >>> features = extract(model, ViewSequence(torch.randn(5, 3, 4), torch.randn(5, 2, 2)))
        >>> torch.equal(aggregate_states(model, features, 2), features.z[:, :2].mean(dim=1))
        True
    """

    def __init__(self, model: Any) -> None:
        self.model: Any = unwrap(model) if isinstance(model, nn.Module) else model

    def encode(self, views: Float[Tensor, "B T *view"]) -> Float[Tensor, "B T D"]:
        """The model's z."""
        encoded: Tensor = getattr(self.model, "encode", self.model)(views)
        return encoded

    def embed(self, actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T E"]:
        """The model's embedded actions, or the actions themselves."""
        return self.model.embed(actions) if hasattr(self.model, "embed") else actions

    def aggregate(self, z: Float[Tensor, "B T D"], e: Float[Tensor, "B steps E"]) -> Float[Tensor, "B D"]:
        """The mean of z over the views."""
        return z.mean(dim=1)
