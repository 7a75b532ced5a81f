"""Exact actions alone, without a model and without a view: how much of an answer was told."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.evaluation._coordinates import coordinates
from seqjepa.evaluation._fits import group_of
from seqjepa.evaluation.features import Features

__all__ = ["IN_ORDER", "ORDER_BLIND", "in_order", "order_blind"]

IN_ORDER, ORDER_BLIND = "exact actions, in order", "exact actions, order-blind"


def in_order(features: Features, start: int, stop: int) -> Float[Tensor, "N L"]:
    """The actions from `start` to `stop`, side by side."""
    return _coordinates(features)[:, start:stop].flatten(1)


def order_blind(features: Features, start: int, stop: int) -> Float[Tensor, "N L"]:
    """Sums over the actions from `start` to `stop`, of their numbers and of the products of two of them."""
    told = _coordinates(features)[:, start:stop]
    i, j = torch.triu_indices(told.shape[2], told.shape[2], device=told.device)
    return torch.cat([told, told[..., i] * told[..., j]], dim=2).sum(dim=1)


def _coordinates(features: Features) -> Float[Tensor, "N T K"]:
    return coordinates(group_of(features), features.actions)
