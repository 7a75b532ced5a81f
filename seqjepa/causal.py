"""The causal aggregator: the state after every view in one pass, and view by view as they come."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seqjepa._checks import check_axes
from seqjepa.aggregator import Layer, check_sizes, checked_tokens, last_view

__all__ = ["CausalAggregator", "CausalCache"]


class CausalCache(NamedTuple):
    """What a [`CausalAggregator`][seqjepa.CausalAggregator] keeps of the finished tokens: a value that nothing changes.

    Each of its tensors has the batch in front, so `CausalCache(*(x.repeat_interleave(n, 0) for x in cache))` goes on n
    ways from every row.

    Attributes:
        keys: (B, depth, heads, tokens, S / heads).
        values: (B, depth, heads, tokens, S / heads).
        order: (B, tokens), which view of its row a token is, from 0; −1 where it does not count.
        seen: (B,), how many finished views of each row counted, those that left the window too.
    """

    keys: Float[Tensor, "B depth heads tokens width"]
    values: Float[Tensor, "B depth heads tokens width"]
    order: Int[Tensor, "B tokens"]
    seen: Int[Tensor, "B"]


class CausalAggregator(nn.Module):
    """Aggregate a sequence of tokens into one state, after each view, in one pass: a view sees only those before it.

    ```
    content_t = token_t = [z_t ; e_t]      attends to content_1 … content_t
    query_t   = [z_t ; 0] + [AGG]          attends to content_1 … content_{t−1} and to itself
    state_t   = norm(query_t)              after the layers, whose weights both streams share
    ```

    state_t is the state had the sequence ended with view t, the zero slot of its last action included: what `forward`
    makes of the first t views, without a pass for each. A content never changes once its action is known, so a stream
    is aggregated view by view (`step`), at the cost of one view a step.

    It takes the place of a [`SequenceAggregator`][seqjepa.SequenceAggregator], and is not the paper's: there every
    token sees every other, and no state can be had without a pass of its own. With `mixing="causal"` order can be told
    from who sees whom; with "none" contents see themselves alone and the state is as blind to order as the paper's.

    Args:
        dim: S, width of a token.
        depth: layers, at least 1.
        heads: attention heads; must divide `dim`.
        mixing: "causal", or "none": contents attend to themselves alone.
        window: how many views a token attends to at most, its own included, from 1; None for all. It bounds the memory
            of `step`, not what a state may know: with "causal" mixing each layer reaches a window further back.
        rotary: None; or the base of the wavelengths (10000 is common), to turn queries and keys by the index of their
            view, so that attention can tell how far back a view lies. Actions say so already.
        mlp_ratio: hidden width of a layer's MLP over `dim` (4).
        dropout: probability in [0, 1) (0.1), in training mode, where a `SequenceAggregator` has it.
        norm_first: LayerNorm before each sublayer instead of after it.

    Shapes:
        tokens (B, T, S), mask (B, T) bool, True where a token counts → state (B, S), of each row's last view that
        counts. Tokens that do not count are never read, whatever they hold, and are not counted for window and rotary.

    Raises:
        ValueError: heads that do not divide `dim`; an unknown mixing; a window below 1; heads of odd width, or a base
            of 0 or less, for rotary; another rank, width or device; a mask of another shape; a cache of another batch.
        TypeError: tokens of a higher precision than the weights; a mask that is not bool.

    Examples:
        >>> import torch
        >>> aggregator = CausalAggregator(640).eval()
        >>> tokens, last = torch.randn(2, 8, 5, 640)                       # last: with empty action slots
        >>> states = aggregator.prefixes(tokens, last)
        >>> third = aggregator(torch.cat([tokens[:, :2], last[:, 2:3]], dim=1))
        >>> states.shape, torch.allclose(states[:, 2], third, atol=1e-4)
        (torch.Size([8, 5, 640]), True)
        >>> state, cache = aggregator.step(None, last[:, 0], None)         # the first view
        >>> state, cache = aggregator.step(tokens[:, 0], last[:, 1], cache)  # its action is known, and the second view
        >>> torch.allclose(states[:, 1], state, atol=1e-4)
        True
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int = 3,
        heads: int = 4,
        mixing: Literal["causal", "none"] = "causal",
        window: int | None = None,
        rotary: float | None = None,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(dim, depth, heads, mlp_ratio)
        if mixing not in ("causal", "none"):
            raise ValueError(f"mixing must be 'causal' or 'none'; got {mixing!r}.")
        if window is not None and window < 1:
            raise ValueError(f"A window holds at least the newest view, 1; got {window}. For all views, window=None.")
        if rotary is not None and (not rotary > 0 or dim // heads % 2):
            raise ValueError(
                f"Rotary turns pairs of numbers, at a base above 0; got rotary={rotary} and heads of width "
                f"{dim // heads}. Choose heads so that dim / heads is even."
            )
        self.dim, self.depth, self.heads, self.mlp_ratio = dim, depth, heads, mlp_ratio
        self.mixing, self.window, self.rotary = mixing, window, rotary
        self.dropout, self.norm_first = dropout, norm_first
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.layers = nn.ModuleList(
            Layer(dim, heads, mlp_ratio * dim, dropout, norm_first=norm_first) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Float[Tensor, "B T S"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B S"]:
        """The state of each sequence."""
        tokens = checked_tokens("tokens", tokens, mask, self.token)
        if mask is None:
            contents, last = tokens[:, :-1], tokens[:, -1:]
        else:
            end = last_view(mask, tokens)[:, None]
            contents, last = tokens, tokens.take_along_dim(end[..., None], dim=1)
            mask = mask & (torch.arange(tokens.shape[1], device=tokens.device) < end)
        index = _view_index(contents, mask)
        states, _ = self._pass(last, (index >= 0).sum(1, keepdim=True), contents, index)
        return states[:, 0]

    def prefixes(
        self,
        tokens: Float[Tensor, "B T S"],
        last: Float[Tensor, "B T S"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T S"]:
        """The state of the first view, of the first two, and so on, in one pass.

        Args:
            tokens: (B, T, S), each view with the action that leaves it. The last one is not read: nothing follows it.
            last: (B, T, S), each view as the last of its sequence: with an empty action slot.
            mask: (B, T) bool, True where a view counts.

        Returns:
            (B, T, S): `[:, t - 1]` is the state of the first t views, of those among them that count.
        """
        tokens = checked_tokens("tokens", tokens, mask, self.token)
        last = checked_tokens("last", last, mask, self.token)
        if tokens.shape != last.shape:
            raise ValueError(
                "tokens and last are the same views, with and without the action that leaves each; got shapes "
                f"{tuple(tokens.shape)} and {tuple(last.shape)}."
            )
        index = _view_index(tokens, mask)
        before = index if mask is None else mask.cumsum(1) - mask.long()  # how many views came before each
        states, _ = self._pass(last, before, tokens[:, :-1], index[:, :-1])
        if mask is None:
            return states
        newest = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), 0).cummax(1).values
        return states.take_along_dim(newest[..., None], dim=1)

    def step(
        self,
        finished: Float[Tensor, "B S"] | Float[Tensor, "B n S"] | None,
        last: Float[Tensor, "B S"],
        cache: CausalCache | None,
        mask: Bool[Tensor, "B"] | Bool[Tensor, "B n"] | None = None,
    ) -> tuple[Float[Tensor, "B S"], CausalCache]:
        """The state after one more view of a stream.

        Args:
            finished: (B, S), the token before, now that the action that leaves it is known; or several of them in their
                order, (B, n, S); None where none was finished, as before the first view.
            last: (B, S), the newest view's token, with an empty action slot. The cache does not keep it.
            cache: what the step before returned; None at first. It is not changed: one cache goes on in many ways.
            mask: (B,) or (B, n) bool, True where a finished token counts: for streams that begin at different steps.

        Returns:
            The state, (B, S), and the cache with the finished tokens in it. With a window it stops growing.

        Raises:
            ValueError: a cache of another batch or aggregator; a mask without finished tokens.
        """
        check_axes("last", last, "B S")
        last = checked_tokens("last", last[:, None], None, self.token)
        if finished is None:
            if mask is not None:
                raise ValueError("mask tells which finished tokens count; got one without any. Leave it out.")
            finished = last[:, :0]
        elif finished.ndim == 2:
            finished, mask = finished[:, None], None if mask is None else mask[:, None]
        contents = checked_tokens("finished", finished, mask, self.token)
        if contents.shape[0] != last.shape[0]:
            raise ValueError(
                f"Finished tokens and the newest have one batch; got {contents.shape[0]} and {last.shape[0]} rows."
            )
        if cache is None:
            cache = self._nothing(last)
        self._check_cache(cache, last)
        index = _view_index(contents, mask)
        views = cache.seen + (index >= 0).sum(1)
        index = torch.where(index >= 0, index + cache.seen[:, None], -1)
        states, (keys, values) = self._pass(last, views[:, None], contents, index, cache)
        if cache.order.shape[1]:
            keys, values = torch.cat([cache.keys, keys], dim=3), torch.cat([cache.values, values], dim=3)
            index = torch.cat([cache.order, index], dim=1)
        return states[:, 0], self._trimmed(CausalCache(keys, values, index, views))

    def _pass(
        self, last: Tensor, before: Tensor, contents: Tensor, index: Tensor, cache: CausalCache | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States (B, Q, S) of the views `last`, with `before` (B, Q) views before each; keys and values of contents."""
        x, n = torch.cat([last + self.token, contents], dim=1), last.shape[1]
        batch = max(before.shape[0], index.shape[0])
        before, index = before.expand(batch, -1), index.expand(batch, -1)
        views = torch.cat([before, index], dim=1)
        attend = self._who_sees_whom(before, index, index[:, :0] if cache is None else cache.order)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for depth, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            read = n if depth == self.depth - 1 else None  # of the last layer nothing but the states
            q, k, v = layer.project(x, read)
            if self.rotary is not None:
                q, k = _turned(q, views[:, :read], self.rotary), _turned(k, views, self.rotary)
            keys.append(k[:, :, n:])
            values.append(v[:, :, n:])
            if cache is not None and cache.order.shape[1]:
                k, v = torch.cat([cache.keys[:, depth], k], dim=2), torch.cat([cache.values[:, depth], v], dim=2)
            x = layer.close(x[:, :read], q, k, v, attend[:, :, :read])
        return self.norm(x), (torch.stack(keys, dim=1), torch.stack(values, dim=1))

    def _who_sees_whom(self, before: Tensor, index: Tensor, past: Tensor) -> Tensor:
        """(B, 1, queries and contents, those cached and queries and contents), True where the one sees the other."""
        nobody = torch.full_like(before, -1)  # a query is seen by itself alone
        rows, columns = torch.cat([before, index], dim=1), torch.cat([past, nobody, index], dim=1)
        back = rows[:, :, None] - columns[:, None]
        row = torch.arange(rows.shape[1], device=rows.device)[:, None]
        query = row < before.shape[1]
        sees = (columns >= 0)[:, None] & (back >= query)  # contents see their own view too; a query has its own at hand
        if self.window is not None:
            sees = sees & (back < self.window)
        if self.mixing == "none":
            sees = sees & query
        itself = torch.arange(columns.shape[1], device=rows.device) == row + past.shape[1]
        return (sees | itself)[:, None]

    def _trimmed(self, cache: CausalCache) -> CausalCache:
        """What the next views may still see: the newest window − 1 that count of each row."""
        if self.window is None or cache.order.shape[1] < self.window:
            return cache
        index, kept = cache.order.topk(self.window - 1, dim=1)
        keys, values = (x.take_along_dim(kept[:, None, None, :, None], dim=3) for x in (cache.keys, cache.values))
        return CausalCache(keys, values, index, cache.seen)

    def _nothing(self, last: Tensor) -> CausalCache:
        """A cache of no tokens."""
        batch, width = last.shape[0], self.dim // self.heads
        empty = last.new_empty(batch, self.depth, self.heads, 0, width)
        views = torch.zeros(batch, dtype=torch.int64, device=last.device)
        return CausalCache(empty, empty, views[:, None][:, :0], views)

    def _check_cache(self, cache: CausalCache, last: Tensor) -> None:
        if cache.keys.shape[0] != last.shape[0]:
            raise ValueError(
                f"The cache is of a batch of {cache.keys.shape[0]} rows; got {last.shape[0]}. Go on with the rows it "
                "was made of, or begin with cache=None."
            )
        expected = self.depth, self.heads, self.dim // self.heads
        came = (*cache.keys.shape[1:3], cache.keys.shape[4])
        if came != expected:
            raise ValueError(
                "The cache is of another aggregator: depth, heads and width of a head are "
                f"{', '.join(map(str, expected))} here; got {', '.join(map(str, came))}. Begin with cache=None."
            )


def _view_index(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Which view of its row each token is, from 0; −1 where it does not count: (1, T) or (B, T)."""
    if mask is None:
        return torch.arange(tokens.shape[1], device=tokens.device)[None]
    return torch.where(mask, mask.cumsum(1) - 1, -1)


def _turned(x: Tensor, views: Tensor, base: float) -> Tensor:
    """Queries or keys (B, heads, tokens, width), each pair of numbers turned by the index of the view (B, tokens).

    The dot product of two of them then depends on how far apart their views lie, and on no index of its own.

    Source: Su et al. 2021 (arXiv 2104.09864).
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.arange(0, x.shape[-1], 2, device=x.device, dtype=wide.dtype) / x.shape[-1]
    angles = views[:, None, :, None] * base**-pairs
    first, second = wide.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
