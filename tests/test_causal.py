"""The causal aggregator: prefixes in one pass, streams view by view, and what neither may know."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seqjepa import ActionEmbedder, CausalAggregator, ConditionedPredictor, NoActions, SeqJEPA, SequenceAggregator
from seqjepa.causal import CausalCache
from tests.builders import randomise, sequence, tiny_model

SETTINGS: dict[str, dict[str, Any]] = {
    "causal": {}, "none": {"mixing": "none"}, "window": {"window": 3}, "narrow": {"window": 1, "depth": 2},
    "blind window": {"window": 2, "mixing": "none"}, "rotary": {"rotary": 100.0},
    "all": {"window": 3, "rotary": 10.0, "norm_first": True, "mlp_ratio": 2, "depth": 1},
}  # fmt: skip
settings = pytest.mark.parametrize("name", list(SETTINGS))
D, E, S = 5, 3, 8


def build(name: str = "causal", **options: Any) -> CausalAggregator:
    aggregator = CausalAggregator(S, heads=2, **SETTINGS[name], **options)
    return randomise(aggregator).double().eval()


def draw(batch: int = 3, views: int = 6) -> tuple[Tensor, Tensor]:
    """Tokens [z ; e], and the same views with empty slots."""
    tokens = torch.randn(batch, views, S, dtype=torch.float64)
    return tokens, torch.cat([tokens[..., :D], torch.zeros(batch, views, E, dtype=torch.float64)], dim=-1)


def first(tokens: Tensor, last: Tensor, t: int) -> Tensor:
    """The first t views as a sequence: the last one's slot empty."""
    return torch.cat([tokens[:, : t - 1], last[:, t - 1 : t]], dim=1)


def masks(batch: int, views: int) -> dict[str, Tensor]:
    steps, lengths = torch.arange(views), torch.randint(1, views + 1, (batch, 1))
    holes = torch.rand(batch, views) < 0.6
    holes[:, 0] = False
    return {"right": steps < lengths, "left": steps >= views - lengths, "holes": holes}


def same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def by_hand(aggregator: CausalAggregator, tokens: Tensor, last: Tensor) -> Tensor:
    """The states of one sequence (T, S), one token after the other, attention as sums: the definition, slowly."""
    window = aggregator.window or len(tokens)
    heads, width = aggregator.heads, aggregator.dim // aggregator.heads

    def turned(x: Tensor, index: int) -> Tensor:
        if aggregator.rotary is None:
            return x
        out = x.clone()
        for h in range(heads):
            for pair in range(width // 2):
                angle = index * aggregator.rotary ** (-2 * pair / width)
                i, j = h * width + pair, h * width + pair + width // 2
                out[i] = x[i] * math.cos(angle) - x[j] * math.sin(angle)
                out[j] = x[i] * math.sin(angle) + x[j] * math.cos(angle)
        return out

    def layer(part: Any, x: Tensor, index: int, others: list[tuple[Tensor, int]]) -> Tensor:
        def inside(y: Tensor) -> Tensor:
            return part.norm1(y) if aggregator.norm_first else y

        q, seen = turned(part.q(inside(x)), index), [*others, (x, index)]
        mixed = torch.zeros_like(x)
        for h in range(heads):
            cut = slice(h * width, (h + 1) * width)
            pairs = [part.kv(inside(y)).chunk(2) for y, _ in seen]
            logits = [turned(k, i)[cut] @ q[cut] / width**0.5 for (k, _), (_, i) in zip(pairs, seen, strict=True)]
            for weight, (_, v) in zip(torch.stack(logits).softmax(0), pairs, strict=True):
                mixed[cut] += weight * v[cut]
        x = x + part.out(mixed)
        if aggregator.norm_first:
            return x + part.mlp(part.norm2(x))
        x = part.norm1(x)
        return part.norm2(x + part.mlp(x))

    contents, queries = list(tokens), [x + aggregator.token[0, 0] for x in last]
    for part in aggregator.layers:
        new_contents = []
        for t, x in enumerate(contents):
            before = [(contents[i], i) for i in range(max(t - window + 1, 0), t)]
            new_contents.append(layer(part, x, t, before if aggregator.mixing == "causal" else []))
        queries = [
            layer(part, x, t, [(contents[i], i) for i in range(max(t - window + 1, 0), t)])
            for t, x in enumerate(queries)
        ]
        contents = new_contents
    return torch.stack([aggregator.norm(x) for x in queries])


@settings
def test_prefixes_are_the_definition_token_by_token(name: str) -> None:
    aggregator, (tokens, last) = build(name), draw(2, 5)
    expected = torch.stack([by_hand(aggregator, *row) for row in zip(tokens, last, strict=True)])
    same(aggregator.prefixes(tokens, last), expected)


@settings
@given(st.integers(1, 3), st.integers(1, 6))
def test_prefixes_are_the_states_of_each_length(name: str, batch: int, views: int) -> None:
    aggregator, (tokens, last) = build(name), draw(batch, views)
    states = aggregator.prefixes(tokens, last)
    same(states, torch.stack([aggregator(first(tokens, last, t)) for t in range(1, views + 1)], dim=1))
    for mask in masks(batch, views).values():
        empty = tokens.clone()  # as the model makes them: nothing after a row's last view
        empty[..., D:] *= (torch.arange(views) < torch.where(mask, torch.arange(views), 0).amax(1)[:, None])[..., None]
        states = aggregator.prefixes(tokens, last, mask)
        same(aggregator(empty, mask), states[:, -1])
        for t in range(1, views + 1):
            for row in range(batch):
                counting = mask[row, :t].nonzero().flatten().tolist()
                if counting:
                    kept = first(tokens[row : row + 1, counting], last[row : row + 1, counting], len(counting))
                    same(states[row, t - 1], aggregator(kept)[0])
                else:
                    same(states[row, t - 1], aggregator(torch.zeros(1, 1, S).double())[0])


@settings
def test_a_stream_is_the_batch(name: str) -> None:
    aggregator, (tokens, last) = build(name), draw(3, 8)
    for mask in (None, *masks(3, 8).values()):
        expected = aggregator.prefixes(tokens, last, mask)
        cache = None
        for t in range(8):
            finished = None if t == 0 else tokens[:, t - 1]
            counts = None if mask is None or t == 0 else mask[:, t - 1]
            state, cache = aggregator.step(finished, last[:, t], cache, counts)
            newest = slice(None) if mask is None else mask[:, t]
            same(state[newest], expected[newest, t])
        assert cache is not None
        assert cache.seen.tolist() == ([7] * 3 if mask is None else mask[:, :7].sum(1).tolist())


@settings
@given(st.integers(0, 5), st.integers(0, 3))
def test_several_tokens_may_be_finished_at_once(name: str, before: int, more: int) -> None:
    aggregator, (tokens, last) = build(name), draw(2, 9)
    _, cache = aggregator.step(tokens[:, :before], last[:, before], None)
    state, _ = aggregator.step(tokens[:, before : before + more], last[:, before + more], cache)
    same(state, aggregator.prefixes(tokens, last)[:, before + more])


@settings
def test_a_later_view_changes_no_earlier_state(name: str) -> None:
    aggregator, (tokens, last) = build(name), draw(2, 6)
    tokens.requires_grad_()
    states = aggregator.prefixes(tokens, last)
    for t in range(6):
        (gradient,) = torch.autograd.grad(states[:, t].square().sum(), tokens, retain_graph=True)
        assert not gradient[:, t:].any()  # its own token neither: of the newest view only what `last` holds is known
        reached = aggregator.window or 6
        if t:
            assert gradient[:, t - 1].any() == (reached > 1)
        if aggregator.mixing == "none":
            assert not gradient[:, : max(t - reached + 1, 0)].any()


def test_without_mixing_the_state_is_blind_to_order_and_with_it_it_is_not() -> None:
    tokens, last = draw(2, 5)
    turned = tokens[:, [2, 0, 3, 1, 4]]
    blind, causal = build("none"), build("causal")
    same(blind.prefixes(turned, last)[:, -1], blind.prefixes(tokens, last)[:, -1])
    same(blind(first(turned, last, 5)), blind(first(tokens, last, 5)))
    assert (causal.prefixes(turned, last)[:, -1] - causal.prefixes(tokens, last)[:, -1]).abs().max() > 1e-2
    rotary = build("none", rotary=10.0)
    assert (rotary.prefixes(turned, last)[:, -1] - rotary.prefixes(tokens, last)[:, -1]).abs().max() > 1e-3


def test_a_window_of_all_views_is_none() -> None:
    tokens, last = draw(2, 6)
    for mixing in ("causal", "none"):
        same(build(window=6, mixing=mixing).prefixes(tokens, last), build(mixing=mixing).prefixes(tokens, last))
    assert (build(window=5).prefixes(tokens, last) - build().prefixes(tokens, last)).abs().max() > 1e-4


def test_rotary_depends_on_no_index_of_its_own() -> None:
    aggregator, (tokens, last) = build("all"), draw(2, 8)
    expected = aggregator.prefixes(tokens, last)
    _, cache = aggregator.step(None, last[:, 0], None)
    cache = cache._replace(seen=cache.seen + 1000)  # as if a thousand views had gone by
    for t in range(1, 8):
        state, cache = aggregator.step(tokens[:, t - 1], last[:, t], cache)
        torch.testing.assert_close(state, expected[:, t], rtol=1e-8, atol=1e-8)
    assert cache.seen.tolist() == [1007, 1007]


def test_nan_in_the_padding_stays_there() -> None:
    for name in SETTINGS:
        aggregator, (tokens, last) = build(name), draw(3, 5)
        for mask in masks(3, 5).values():
            junk, junk_last = (x.masked_fill(~mask[..., None], torch.nan).requires_grad_() for x in (tokens, last))
            same(aggregator(junk, mask), aggregator(tokens, mask))
            states = aggregator.prefixes(junk, junk_last, mask)
            same(states, aggregator.prefixes(tokens, last, mask))
            (states.sum() + aggregator(junk, mask).square().sum()).backward()
            for leaf in (junk, junk_last):
                assert leaf.grad is not None
                assert leaf.grad.isfinite().all()
                assert not leaf.grad[~mask].any()
        state, cache = aggregator.step(tokens[:, 0], last[:, 1], None)
        gone = torch.tensor([True, False, True])
        spoilt = tokens[:, 1].masked_fill(~gone[:, None], torch.nan)
        state, cache = aggregator.step(spoilt, last[:, 2], cache, gone)
        _, begun = aggregator.step(tokens[:, 0], last[:, 1], None)
        same(state, aggregator.step(tokens[:, 1], last[:, 2], begun, gone)[0])
        assert all(part.isfinite().all() for part in cache)


def test_with_a_window_memory_stays_as_it_is_and_rows_keep_their_own() -> None:
    aggregator = CausalAggregator(8, heads=2, depth=2, window=4).eval()
    token = torch.randn(2, 8)
    state, cache = aggregator.step(None, token, None)
    sizes = set()
    with torch.no_grad():
        for t in range(1000):
            counts = torch.tensor([True, t % 7 == 0])
            state, cache = aggregator.step(torch.randn(2, 8), token, cache, counts)
            if t >= 3:
                sizes.add(tuple(tuple(part.shape) for part in cache))
    assert sizes == {((2, 2, 2, 3, 4), (2, 2, 2, 3, 4), (2, 3), (2,))}
    assert cache.order.sort(dim=1).values.tolist() == [[997, 998, 999], [140, 141, 142]]
    assert cache.seen.tolist() == [1000, 143]
    assert state.isfinite().all()


def test_a_cache_is_a_value_that_goes_on_in_many_ways() -> None:
    aggregator, (tokens, last) = build("window"), draw(2, 6)
    _, cache = aggregator.step(tokens[:, :3], last[:, 3], None)
    before = [part.clone() for part in cache]
    many = CausalCache(*(part.repeat_interleave(4, 0) for part in cache))
    ways, ends = torch.randn(8, S).double(), torch.randn(8, S).double()
    states, _ = aggregator.step(ways, ends, many)
    for row in range(8):
        i = row // 4
        alone = torch.cat([tokens[i : i + 1, :3], ways[row][None, None], ends[row][None, None]], dim=1)
        same(states[row], aggregator(alone)[0])
    for got, expected in zip(cache, before, strict=True):
        assert torch.equal(got, expected)


def test_gradients_flow_through_a_stream_as_through_the_batch() -> None:
    aggregator, (tokens, last) = build("causal"), draw(2, 4)
    weights = list(aggregator.parameters())
    mixed = torch.randn(2, 4, S, dtype=torch.float64)
    expected = torch.autograd.grad((aggregator.prefixes(tokens, last) * mixed).sum(), weights)
    total, cache = torch.zeros(()).double(), None
    for t in range(4):
        state, cache = aggregator.step(tokens[:, t - 1] if t else None, last[:, t], cache)
        total = total + (state * mixed[:, t]).sum()
    torch.testing.assert_close(torch.autograd.grad(total, weights), expected)


def test_one_view_is_read_as_the_paper_s_transformer_reads_a_token_that_is_agg_itself() -> None:
    """Alone, a query attends to itself: a transformer of one token, token + [AGG]."""
    aggregator = build()
    paper = SequenceAggregator(S, heads=2).double().eval()
    paper.load_state_dict(aggregator.state_dict())  # the same weights by the same names
    token = torch.randn(3, 1, S, dtype=torch.float64)
    x = token + aggregator.token
    for layer in paper.layers:
        x = layer(x, None)
    same(aggregator(token), paper.norm(x)[:, 0])


def test_dropout_acts_in_training_alone() -> None:
    tokens, last = draw()
    aggregator = build(dropout=0.5)
    same(aggregator.prefixes(tokens, last), aggregator.prefixes(tokens, last))
    aggregator.train()
    assert not torch.equal(aggregator(tokens), aggregator(tokens))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_and_autocast_keeps_a_stream_going(half: torch.dtype) -> None:
    aggregator: Any = CausalAggregator(S, heads=2, rotary=100.0, window=3).eval()
    tokens, last = (x.float() for x in draw())
    expected = aggregator.prefixes(tokens, last)
    torch.testing.assert_close(
        copy.deepcopy(aggregator).to(half).prefixes(tokens.to(half), last.to(half)).float(),
        expected,
        atol=0.2,
        rtol=0.1,
    )
    with torch.autocast("cpu", torch.bfloat16):
        cache = None
        for t in range(6):
            state, cache = aggregator.step(tokens[:, t - 1] if t else None, last[:, t], cache)
            torch.testing.assert_close(state.float(), expected[:, t], atol=0.2, rtol=0.1)


def test_it_runs_on_a_device_without_values() -> None:
    for options in SETTINGS.values():
        with torch.device("meta"):
            aggregator = CausalAggregator(S, heads=2, **options)
            tokens, mask = torch.randn(3, 5, S), torch.ones(3, 5, dtype=torch.bool)
        assert aggregator(tokens, mask).shape == aggregator(tokens).shape == (3, S)
        assert aggregator.prefixes(tokens, tokens, mask).shape == (3, 5, S)
        cache = None
        for t in range(5):
            state, cache = aggregator.step(tokens[:, t], tokens[:, t], cache, mask[:, t])
            assert state.is_meta
            assert all(part.is_meta for part in cache)


@pytest.mark.parametrize(("options", "message"), [
    ({"dim": 10}, r"split evenly into heads; got dim=10 and heads=4.* 1, 2, 5, 10"),
    ({"depth": 0}, "depth is the number of layers, at least 1; got 0"),
    ({"mlp_ratio": 0}, "a whole number from 1; got 0"),
    ({"mixing": "all"}, r"mixing must be 'causal' or 'none'; got 'all'"),
    ({"window": 0}, r"A window holds at least the newest view, 1; got 0\. For all views, window=None"),
    ({"rotary": 0.0}, r"at a base above 0; got rotary=0\.0"),
    ({"heads": 8, "rotary": 100.0}, r"got rotary=100\.0 and heads of width 1\. Choose heads so"),
])  # fmt: skip
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalAggregator(**{"dim": 8, **options})


def test_wrong_input_is_refused() -> None:
    aggregator = CausalAggregator(8, heads=2, depth=2)
    tokens, token = torch.randn(3, 4, 8), torch.randn(3, 8)
    with pytest.raises(ValueError, match=r"Tokens are 8 wide here; got shape \(3, 4, 7\)"):
        aggregator(tokens[..., :7])
    with pytest.raises(ValueError, match=r"tokens must have the axes \(B, T, S\); got shape \(3, 8\)"):
        aggregator(token)
    with pytest.raises(ValueError, match=r"one entry per observed view, shape \(3, 4\); got \(3, 3\)"):
        aggregator(tokens, torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"tokens must have the dtype of the weights"):
        aggregator(tokens.double())
    with pytest.raises(ValueError, match=r"the same views, .* got shapes \(3, 4, 8\) and \(3, 3, 8\)"):
        aggregator.prefixes(tokens, tokens[:, 1:])
    with pytest.raises(ValueError, match=r"last must have the axes \(B, S\); got shape \(3, 4, 8\)"):
        aggregator.step(None, tokens, None)
    with pytest.raises(ValueError, match=r"have one batch; got 2 and 3 rows"):
        aggregator.step(token[:2], token, None)
    with pytest.raises(ValueError, match=r"which finished tokens count; got one without any"):
        aggregator.step(None, token, None, torch.ones(3, dtype=torch.bool))
    _, cache = aggregator.step(token, token, None)
    with pytest.raises(ValueError, match=r"The cache is of a batch of 3 rows; got 2\. Go on with the rows"):
        aggregator.step(token[:2], token[:2], cache)
    with pytest.raises(ValueError, match=r"of another aggregator: .* are 2, 4, 2 here; got 2, 2, 4\. Begin with"):
        CausalAggregator(8, heads=4, depth=2).step(token, token, cache)


# --- in the model ---


def model_with(aggregator: nn.Module, **parts: Any) -> SeqJEPA:
    return randomise(tiny_model(aggregator=aggregator, **parts)).double().eval()


@pytest.mark.parametrize("embedder", [None, NoActions()])
@pytest.mark.parametrize("kind", ["paper", *SETTINGS])
def test_the_model_s_prefixes_are_its_states_of_each_length(kind: str, embedder: nn.Module | None) -> None:
    dim = 8 if embedder else 12
    options = SETTINGS.get(kind, {})
    aggregator = SequenceAggregator(dim, heads=2) if kind == "paper" else CausalAggregator(dim, heads=2, **options)
    model = model_with(aggregator, embedder=embedder)
    z, actions = torch.randn(4, 6, 8).double(), torch.randn(4, 5, 3).double()
    e = model.embed(actions)
    states = model.aggregate_prefixes(z, e)
    for t in range(1, 7):
        same(states[:, t - 1], model.aggregate(z[:, :t], e[:, : t - 1]))
    for mask in masks(4, 6).values():
        states = model.aggregate_prefixes(z, e, mask)
        for t in range(1, 7):
            same(states[:, t - 1], model.aggregate(z[:, :t], e[:, : t - 1], mask[:, :t]))
        junk, beyond = z.masked_fill(~mask[..., None], torch.nan), e.clone()
        leads_on = torch.arange(5) < torch.where(mask, torch.arange(6), 0).amax(1)[:, None]
        beyond[~leads_on] = torch.nan
        same(model.aggregate_prefixes(junk, beyond, mask)[:, -1], states[:, -1])


@pytest.mark.parametrize("kind", ["paper", *SETTINGS])
def test_imagining_is_encoding_and_reading_again_at_each_step(kind: str) -> None:
    options = SETTINGS.get(kind, {})
    aggregator = SequenceAggregator(12, heads=2) if kind == "paper" else CausalAggregator(12, heads=2, **options)
    model = model_with(aggregator)
    views, actions = sequence(4, 6, dtype=torch.float64)
    for observed in (1, 3):
        past, future = actions[:, : observed - 1], actions[:, observed - 1 :]
        z, e = model.encode(views[:, :observed]), model.embed(actions)
        got = model.imagine_from(z, e[:, : observed - 1], future)
        assert torch.equal(model.imagine(views[:, :observed], past, future), got)
        for k in range(future.shape[1]):
            state = model.aggregate(z, e[:, : observed - 1 + k])
            z = torch.cat([z, model.predict(state, e[:, observed - 1 + k])[:, None]], dim=1)
        same(got, z[:, observed:])


def test_imagining_from_z_reads_each_view_once_where_the_aggregator_can() -> None:
    class Counted(CausalAggregator):
        read = 0

        def step(self, finished: Any, last: Any, cache: Any, mask: Any = None) -> Any:
            self.read += finished.shape[1] if finished.ndim == 3 else 1
            return super().step(finished, last, cache, mask)

    aggregator = Counted(12, heads=2)
    model = tiny_model(aggregator=aggregator).eval()
    model.imagine_from(torch.randn(2, 4, 8), torch.randn(2, 3, 4), torch.randn(2, 5, 3))
    assert aggregator.read == 3 + 4  # three finished views, then the last one and all imagined but the last


def test_wrong_futures_are_refused() -> None:
    model = tiny_model()
    z, e = torch.randn(2, 3, 8), torch.randn(2, 2, 4)
    for shape in ((2, 0, 3), (3, 1, 3)):
        with pytest.raises(ValueError, match=r"future_actions must be \(B, K, A\) with K of at least 1 and the B of z"):
            model.imagine_from(z, e, torch.randn(shape))
    with pytest.raises(ValueError, match=r"future_actions must have the axes \(B, K, A\)"):
        model.imagine_from(z, e, torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"3 views have 2 actions between them"):
        model.imagine_from(z, e[:, :1], torch.randn(2, 1, 3))
    with pytest.raises(ValueError, match=r"z must have the axes \(B, T, D\)"):
        model.imagine_from(z[:, 0], e, torch.randn(2, 1, 3))
    with pytest.raises(ValueError, match=r"3 views have 2 actions between them"):
        model.aggregate_prefixes(z, e[:, :1])


def test_widths_that_do_not_fit_are_refused_by_the_aggregator_s_own_name() -> None:
    parts = ActionEmbedder(3, 4), ConditionedPredictor(12, 4, 8)
    with pytest.raises(ValueError, match=r"The predictor reads states 12 wide; the aggregator makes them 16 wide"):
        SeqJEPA(nn.Linear(3, 8), parts[0], CausalAggregator(16), parts[1])
    with pytest.raises(ValueError, match=r"13 wide; the aggregator takes 12\. Build CausalAggregator\(13\)"):
        SeqJEPA(nn.Linear(3, 9), parts[0], CausalAggregator(12), ConditionedPredictor(12, 4, 9))


def test_it_trains_in_the_model() -> None:
    model = tiny_model(aggregator=CausalAggregator(12, heads=2))
    views, actions = sequence()
    mask = torch.tensor([[False, True, True], [True] * 3, [True, True, False], [True] * 3])
    model(views, actions, mask).loss.backward()
    for name, parameter in model.aggregator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    assert model.aggregator.token.grad.any()
