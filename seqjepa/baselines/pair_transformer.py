"""A causal transformer over pairs of tokens, blind to order: what reads a view in a context of others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqjepa._checks import check_axes, like_weights

__all__ = ["PairTransformer", "after_context", "causal_pairs", "pair_tokens", "token"]


class PairTransformer(nn.Module):
    """Tokens that attend to the pairs before them, without positions: pre-norm layers between two linear maps.

    Tokens come in pairs, first and second of each; a second token does not see its own first one. With `hide`, every
    query overlooks each pair with that probability, drawn anew in each layer, but never itself.

    Args:
        token_dim: width of a token.
        dim: W, width inside (2048 in the paper).
        out_dim: P, width of what is read.
        depth: layers (3 in the paper), at least 1.
        heads: attention heads (4 in the paper); must divide W.
        mlp_ratio: hidden width of a layer's MLP over W (4 in the paper).

    Shapes:
        tokens (C, N, S), attend (N, N) bool or None → (C, N, P). True where a row's token sees a column's; None: each
        sees all.

    Raises:
        ValueError: sizes below 1, heads that do not divide W; tokens of another rank, width or device.
        TypeError: tokens of a higher precision than the weights.

    Source:
        Gupta et al. 2024 (arXiv 2405.18193), after Radford et al. 2019 (GPT-2).

    Examples:
        >>> import torch
        >>> transformer, tokens = PairTransformer(10, 32, 8), torch.randn(2, 6, 10)
        >>> attend = causal_pairs(3)
        >>> attend.int()[3].tolist()                              # the second of pair 1 sees pair 0 and itself
        [1, 1, 0, 1, 0, 0]
        >>> transformer(tokens, attend).shape
        torch.Size([2, 6, 8])
    """

    def __init__(
        self, token_dim: int, dim: int, out_dim: int, *, depth: int = 3, heads: int = 4, mlp_ratio: int = 4
    ) -> None:
        super().__init__()
        if min(token_dim, dim, out_dim, depth, heads, mlp_ratio) < 1 or dim % heads:
            raise ValueError(
                "Sizes are at least 1, and the width must split evenly into heads; got "
                f"token_dim={token_dim}, dim={dim}, out_dim={out_dim}, depth={depth}, heads={heads}, "
                f"mlp_ratio={mlp_ratio}."
            )
        self.token_dim = token_dim
        self.read_in = nn.Linear(token_dim, dim)
        self.layers = nn.ModuleList(_Layer(dim, heads, mlp_ratio * dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.read_out = nn.Linear(dim, out_dim)

    def forward(
        self,
        tokens: Float[Tensor, "C N S"],
        attend: Bool[Tensor, "N N"] | None = None,
        *,
        hide: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "C N P"]:
        """What is read at every token.

        Args:
            tokens: (C, N, S), C contexts.
            attend: (N, N), who sees whom; the diagonal is True.
            hide: the probability in [0, 1] with which a query overlooks a pair, N even then.
            generator: of these draws, on the CPU.
        """
        check_axes("tokens", tokens, "C N S")
        if tokens.shape[-1] != self.token_dim:
            raise ValueError(f"Tokens are {self.token_dim} wide here; got shape {tuple(tokens.shape)}.")
        x = self.read_in(like_weights("tokens", tokens, self.read_in.weight))
        for layer in self.layers:
            x = layer(x, attend if hide == 0 else _overlooking(attend, x, hide, generator))
        return self.read_out(self.norm(x))


def token(z: Float[Tensor, "*B D"], e: Float[Tensor, "*B E"]) -> Float[Tensor, "*B S"]:
    """Side by side; where actions are embedded in no numbers, neither their dtype nor their device matters."""
    return torch.cat([z, e], dim=-1) if e.shape[-1] else z


def pair_tokens(
    z0: Float[Tensor, "*B D"], e: Float[Tensor, "*B E"], z1: Float[Tensor, "*B D"]
) -> Float[Tensor, "*B 2 S"]:
    """The two tokens of each pair: the first with the action that leads to the second, the second with zeros."""
    return torch.stack([token(z0, e), token(z1, torch.zeros_like(e))], dim=-2)


def causal_pairs(pairs: int, device: torch.device | None = None) -> Bool[Tensor, "N N"]:
    """Who sees whom among the tokens of `pairs` pairs: those before it and itself, a second token not its own first."""
    query, key = torch.arange(2 * pairs, device=device)[:, None], torch.arange(2 * pairs, device=device)
    own_first = (query % 2 == 1) & (key == query - 1)
    return (key <= query) & ~own_first


def after_context(pairs: int, queries: int, device: torch.device | None = None) -> Bool[Tensor, "N N"]:
    """Who sees whom where queries follow a context of pairs: each query all of the context, itself, no other query."""
    context = 2 * pairs
    attend = torch.eye(context + queries, dtype=torch.bool, device=device)
    attend[:context, :context] = causal_pairs(pairs, device)
    attend[context:, :context] = True
    return attend


def _overlooking(
    attend: Tensor | None, x: Float[Tensor, "C N W"], hide: float, generator: torch.Generator | None
) -> Bool[Tensor, "N N"]:
    """`attend` without the pairs that each query overlooks; nobody overlooks itself."""
    n = x.shape[1]
    seen = torch.rand(n, n // 2, generator=generator, device="cpu") >= hide
    seen = seen.repeat_interleave(2, dim=1) | torch.eye(n, dtype=torch.bool, device="cpu")
    seen = seen.to(x.device, non_blocking=True)
    return seen if attend is None else attend & seen


class _Layer(nn.Module):
    """Attention, then an MLP, each of normed tokens and added to what came."""

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(part, "c n (h d) -> c h n d", h=self.heads) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        x = x + self.out(rearrange(mixed, "c h n d -> c n (h d)"))
        return x + self.mlp(self.norm2(x))
