"""All methods, small, and what is known of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqjepa import baselines
from seqjepa.groups import Translation
from tests.builders import TinyEncoder

A, SIDE, WIDTHS = 3, 8, (12, 6)
METHODS = [name for name in baselines.__all__ if hasattr(getattr(baselines, name), "from_encoder")]
PREDICTIVE = [name for name in METHODS if hasattr(getattr(baselines, name), "predict")]
AVERAGED = ("BYOL", "ConditionalBYOL", "ConvIJEPA")
PAIRED = [name for name in METHODS if name not in ("VICRegTraj", "ConvIJEPA")]  # told which views make a pair
OPTIONS: dict[str, Any] = {"ConvIJEPA": {"group": Translation(A)}, "ContextSSL": {"context_pairs": 2}}


def tiny(name: str, **options: Any) -> Any:
    """A method around an encoder of D = 8."""
    encoder = options.pop("encoder", None) or TinyEncoder(8)
    options = {"action_dim": A, "view_shape": (3, SIDE, SIDE), "widths": WIDTHS, **OPTIONS.get(name, {}), **options}
    return getattr(baselines, name).from_encoder(encoder, **options)


def linear(width: int = 5) -> nn.Module:
    """An encoder without batch norm: a batch is the sum of its rows."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, width))


class First(nn.Module):
    """A predictor that expects no change."""

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return state


def slow_ntxent(u: Tensor, v: Tensor, temperature: float) -> Tensor:
    """The definition, row by row."""
    w = [x / x.norm() for x in (*u, *v)]
    n, total = len(u), torch.zeros((), dtype=u.dtype)
    for r in range(2 * n):
        positive = (r + n) % (2 * n)
        others = torch.stack([w[r] @ w[c] / temperature for c in range(2 * n) if c != r])
        total = total + others.exp().sum().log() - w[r] @ w[positive] / temperature
    return total / (2 * n)


def slow_vicreg(u: Tensor, v: Tensor, weights: tuple[float, float, float] = (25.0, 25.0, 1.0)) -> Tensor:
    """The definition, with torch's own covariance."""

    def parts(y: Tensor) -> tuple[Tensor, Tensor]:
        c = torch.cov(y.T)
        spread = (1 - (c.diagonal() + 1e-4).sqrt()).clamp(min=0).mean()
        return spread, (c.square().sum() - c.diagonal().square().sum()) / y.shape[1]

    (v0, c0), (v1, c1) = parts(u), parts(v)
    return weights[0] * (u - v).square().mean() + weights[1] * (v0 + v1) / 2 + weights[2] * (c0 + c1)


def given(method: Any, u: Tensor, v: Tensor, *more: Tensor) -> Any:
    """What a method makes of views that *are* their projections: the actions are zeros."""
    views = torch.stack([u, v, *more], dim=1)
    return method(views, torch.zeros(len(u), views.shape[1] - 1, A, dtype=u.dtype))
