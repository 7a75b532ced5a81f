"""The aggregator: a transformer that aggregates a sequence into one state, the invariant representation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seqjepa._checks import check_axes, check_mask, like_weights
from seqjepa._modes import eval_mode, fresh_casts

__all__ = ["SequenceAggregator", "SinusoidalPositions"]


class SequenceAggregator(nn.Module):
    """Aggregate a sequence of tokens into one state, read at a learnt [AGG] token.

    A transformer encoder over [AGG], token 1 … token T, with a LayerNorm after the stack. Without `positions` the state
    does not depend on the order of the tokens. Only [AGG] is read from the last layer, so only [AGG] is computed there:
    the same numbers, for about a fifth less work.

    Args:
        dim: S, width of a token.
        depth: layers (3 in the paper), at least 1.
        heads: attention heads (4 in the paper); must divide `dim`.
        mlp_ratio: hidden width of a layer's MLP over `dim` (4).
        dropout: probability in [0, 1) (0.1), in training mode: on attention weights, after attention, in the MLP and
            after it.
        norm_first: LayerNorm before each sublayer instead of after it (the paper's is after it).
        positions: a module that maps indices of views to vectors, (…) → (…, S), added to the tokens: such as
            [`SinusoidalPositions`][seqjepa.aggregator.SinusoidalPositions] or `nn.Embedding(max_views, dim)`. Padding
            is not counted. None, the paper's, is blind to order.

    Shapes:
        tokens (B, T, S), mask (B, T) bool, True where a token counts → state (B, S). Tokens that do not count are
        never read, whatever they hold.

    Raises:
        ValueError: heads that do not divide `dim`; another rank, width or device; a mask of another shape; fewer
            positions than views, or positions of another width.
        TypeError: tokens of a higher precision than the weights; a mask that is not bool.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), section 3; layers after Vaswani et al. 2017.

    Examples:
        >>> import torch
        >>> aggregator = SequenceAggregator(640).eval()
        >>> tokens = torch.randn(8, 3, 640)
        >>> state = aggregator(tokens)
        >>> state.shape, torch.allclose(state, aggregator(tokens.flip(1)), atol=1e-5)
        (torch.Size([8, 640]), True)
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int = 3,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        norm_first: bool = False,
        positions: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_sizes(dim, depth, heads, mlp_ratio)
        self.dim, self.depth, self.heads, self.mlp_ratio = dim, depth, heads, mlp_ratio
        self.dropout, self.norm_first = dropout, norm_first
        self.positions = positions
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.layers = nn.ModuleList(
            Layer(dim, heads, mlp_ratio * dim, dropout, norm_first=norm_first) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Float[Tensor, "B T S"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B S"]:
        """The state of each sequence."""
        x, attend = self._sequence(tokens, mask)
        for layer in self.layers[:-1]:
            x = layer(x, attend)
        x = self.layers[-1](x, attend, queries=1)
        return self.norm(x)[:, 0]

    @torch.no_grad()
    def attention(
        self, tokens: Float[Tensor, "B T S"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B depth heads tokens tokens"]:
        """The attention weights, to look at: where each token looks, in every layer and head, without dropout.

        Args:
            tokens: (B, T, S).
            mask: (B, T) bool, True where a token counts.

        Returns:
            (B, depth, heads, 1+T, 1+T): from the token in the row to the one in the column, [AGG] first. Rows sum to
            1; columns of tokens that do not count are 0.

        Examples:
            >>> import torch
            >>> SequenceAggregator(64).eval().attention(torch.randn(2, 3, 64)).shape
            torch.Size([2, 3, 4, 4, 4])
        """
        with eval_mode(self), fresh_casts(tokens.device):
            x, attend = self._sequence(tokens, mask)
            weights = []
            for layer in self.layers:
                assert isinstance(layer, Layer)
                weights.append(layer.attention_weights(x, attend))
                x = layer(x, attend)
            return torch.stack(weights, dim=1)

    def _sequence(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[AGG] in front of the tokens, and who may be attended to: (B, 1, 1, 1+T)."""
        tokens = checked_tokens("tokens", tokens, mask, self.token)
        attend = None
        if mask is not None:
            attend = F.pad(mask, (1, 0), value=True)[:, None, None]
        if self.positions is not None:
            tokens = tokens + self._positions(tokens, mask).to(tokens.dtype)
        return torch.cat([self.token.expand(tokens.shape[0], 1, -1), tokens], dim=1), attend

    def _positions(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The encoded index of each view, or an error that says which views have none."""
        assert self.positions is not None
        length, rows = tokens.shape[1], getattr(self.positions, "num_embeddings", None)
        try:
            if rows is not None and mask is None and length > rows:  # a GPU would not say so, but stop altogether
                raise IndexError(f"{rows} rows")
            encoded = self.positions(_indices(tokens, mask))
        except IndexError as error:
            raise ValueError(
                f"Every view of a sequence needs a position; {type(self.positions).__name__} has too few for {length} "
                f"views ({error}). Build the aggregator with more: positions=nn.Embedding({length}, {self.dim})."
            ) from error
        if encoded.shape[-1] != self.dim:
            raise ValueError(
                f"Positions are added to the tokens, {self.dim} wide; {type(self.positions).__name__} makes them "
                f"{encoded.shape[-1]} wide. Build it {self.dim} wide."
            )
        return encoded


class SinusoidalPositions(nn.Module):
    """Sines and cosines of an index, at wavelengths from 2π to 2π·10⁴.

    Args:
        dim: S, width of a token; even.

    Shapes:
        indices (…), integer → (…, S), float32.

    Raises:
        ValueError: an odd width.

    Source:
        Vaswani et al. 2017 (arXiv 1706.03762), section 3.5; sines first, then cosines.

    Examples:
        >>> import torch
        >>> SinusoidalPositions(8)(torch.arange(3)).shape
        torch.Size([3, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"Sines and cosines come in pairs: dim must be even, at least 2; got {dim}.")
        self.dim = dim

    def forward(self, indices: Int[Tensor, "*B"]) -> Float[Tensor, "*B S"]:
        """Encode each index."""
        pairs = torch.arange(0, self.dim, 2, device=indices.device, dtype=torch.float32)
        angles = indices[..., None] * torch.exp(pairs * (-math.log(1e4) / self.dim))
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Layer(nn.Module):
    """One transformer layer; `queries` limits the output to that many leading tokens."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float, *, norm_first: bool) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim))
        self.dropout = nn.Dropout(dropout)
        bound = math.sqrt(6 / (dim + 3 * dim))  # as nn.MultiheadAttention starts: all three drawn as one matrix
        for projection in (self.q, self.kv):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out.bias)
        self.register_load_state_dict_pre_hook(_split_joint_projection)

    def forward(self, x: Tensor, attend: Tensor | None, queries: int | None = None) -> Tensor:
        q, k, v = self.project(x, queries)
        return self.close(x[:, :queries], q, k, v, attend)

    def project(self, x: Tensor, queries: int | None = None) -> list[Tensor]:
        """Queries, keys and values, (B, heads, tokens, dim / heads) each."""
        if self.norm_first:
            x = self.norm1(x)
        k, v = self.kv(x).chunk(2, dim=-1)
        return [rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (self.q(x[:, :queries]), k, v)]

    def close(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None) -> Tensor:
        """What the layer makes of x once it is projected: attention, the MLP, and what goes past them."""
        p = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, dropout_p=p)
        x = x + self.dropout(self.out(rearrange(mixed, "b h n d -> b n (h d)")))
        if self.norm_first:
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(x)
        return self.norm2(x + self.dropout(self.mlp(x)))

    def attention_weights(self, x: Tensor, attend: Tensor | None) -> Tensor:
        q, k, _ = self.project(x)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if attend is not None:
            logits = logits.masked_fill(~attend, -torch.inf)
        return logits.softmax(-1)


def _split_joint_projection(layer: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load hook: weights saved when one projection `qkv` made queries, keys and values."""
    for kind in ("weight", "bias"):
        joint = state_dict.pop(f"{prefix}qkv.{kind}", None)
        if joint is not None:
            dim = len(joint) // 3
            state_dict[f"{prefix}q.{kind}"], state_dict[f"{prefix}kv.{kind}"] = joint[:dim], joint[dim:]


def check_sizes(dim: int, depth: int, heads: int, mlp_ratio: int) -> None:
    """Raise unless a stack of layers can be built of these."""
    if depth < 1:
        raise ValueError(f"depth is the number of layers, at least 1; got {depth}.")
    if dim < 1:
        raise ValueError(f"dim is the width of a token, at least 1; got {dim}.")
    if mlp_ratio < 1:
        raise ValueError(f"mlp_ratio is the MLP's width over dim, a whole number from 1; got {mlp_ratio}.")
    if heads < 1 or dim % heads:
        fits = [n for n in range(1, 17) if dim % n == 0]
        raise ValueError(
            f"The token width must split evenly into heads; got dim={dim} and heads={heads}. "
            f"Head counts up to 16 that divide {dim}: {', '.join(map(str, fits))}."
        )


def checked_tokens(name: str, tokens: Tensor, mask: Tensor | None, weight: Tensor) -> Tensor:
    """Tokens (B, T, S) in the dtype of a weight as wide as they, zero where the mask leaves them out; or an error."""
    check_axes(name, tokens, "B T S")
    if tokens.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"Tokens are {weight.shape[-1]} wide here; got shape {tuple(tokens.shape)}, {tokens.shape[-1]} wide. A "
            "token is an encoder output and an action embedding, side by side: dim = D + E."
        )
    tokens = like_weights(name, tokens, weight)
    if mask is None:
        return tokens
    check_mask(mask, tokens)
    return tokens.masked_fill(~mask[..., None], 0)  # so that a NaN in the padding stays there


def _indices(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The index of each view in its sequence, padding not counted: (T,) or (B, T)."""
    if mask is None:
        return torch.arange(tokens.shape[1], device=tokens.device)
    return (mask.cumsum(1) - 1).clamp(min=0)


def last_view(mask: Tensor, sequence: Tensor) -> Tensor:
    """The index of each row's last view that counts, (B,)."""
    check_mask(mask, sequence)
    indices = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, indices, 0).amax(dim=1)
