"""Small models and inputs for the tests."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from seqjepa import (
    ActionEmbedder,
    ConditionedPredictor,
    EMATarget,
    NoActions,
    SeqJEPA,
    SeqJEPALoss,
    SequenceAggregator,
)

Module = TypeVar("Module", bound=nn.Module)


class TinyEncoder(nn.Module):
    """The recordings' encoder: three convolutions with batch norm, (N, 3, H, W) → (N, width)."""

    def __init__(self, width: int = 8, cifar_stem: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False) if cifar_stem else nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.Identity() if cifar_stem else nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Conv2d(64, 8, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, width, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn1(self.conv1(x)).relu())
        x = self.bn2(self.conv2(x)).relu()
        return self.bn3(self.conv3(x)).relu().mean((2, 3))


def tiny_model(
    *,
    action_dim: int = 3,
    dim: int = 8,
    embed_dim: int = 4,
    depth: int = 2,
    heads: int = 2,
    dropout: float = 0.1,
    embedder: nn.Module | None = None,
    norm: Any = "batch",
    **parts: Any,
) -> SeqJEPA:
    """A SeqJEPA of a few thousand weights; any part can be given."""
    encoder = parts.pop("encoder", None) or TinyEncoder(dim)
    embedder = embedder or ActionEmbedder(action_dim, embed_dim, norm=norm)
    e = 0 if isinstance(embedder, NoActions) else embed_dim
    return SeqJEPA(
        encoder=encoder,
        embedder=embedder,
        aggregator=parts.pop("aggregator", None)
        or SequenceAggregator(dim + e, depth=depth, heads=heads, dropout=dropout),
        predictor=parts.pop("predictor", None) or ConditionedPredictor(dim + e, e, dim, 16),
        target=parts.pop("target", None) or EMATarget(encoder, 0.9),
        loss=parts.pop("loss", None) or SeqJEPALoss(),
        **parts,
    )


def sequence(
    batch: int = 4, observed: int = 3, action_dim: int = 3, side: int = 8, seed: int = 0, dtype: Any = torch.float32
) -> tuple[Tensor, Tensor]:
    """Views (B, T+1, 3, side, side) in [0, 1] and actions (B, T, A)."""
    g = torch.Generator().manual_seed(seed)
    views = torch.rand(batch, observed + 1, 3, side, side, generator=g, dtype=dtype)
    return views, torch.randn(batch, observed, action_dim, generator=g, dtype=dtype)


def randomise(module: Module, seed: int = 0) -> Module:
    """Give every parameter and every floating buffer a value of its own, so that no zero or one hides a mistake."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3 + (p.ndim == 1) * 0.5)
        for name, b in module.named_buffers():
            if b.is_floating_point():
                b.copy_(torch.rand(b.shape, generator=g) + 0.5 if "var" in name else torch.randn(b.shape, generator=g))
    return module


def joint(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they were when one projection made queries, keys and values."""
    merged = {key.replace(".q.", ".qkv."): value for key, value in state.items() if ".kv." not in key}
    for key, value in state.items():
        if ".kv." in key:
            old = key.replace(".kv.", ".qkv.")
            merged[old] = torch.cat([merged[old], value])
    return merged
