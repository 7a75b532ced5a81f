"""ContextSSL: who sees whom, what it is without a context, and how it is read in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqjepa import NoActions
from seqjepa.baselines import ContextSSL, PairTransformer, ViewPairs
from seqjepa.baselines.pair_transformer import causal_pairs, pair_tokens
from seqjepa.evaluation import evaluate
from seqjepa.functional import mse_distance
from seqjepa.groups import Translation
from seqjepa.types import ViewSequence
from tests.baselines.builders import A, slow_ntxent, tiny
from tests.builders import randomise, sequence

S, W, P = 5, 12, 6


def transformer(depth: int = 3) -> PairTransformer:
    return randomise(PairTransformer(S, W, P, depth=depth)).double()


def pairs(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(1, count, 2, S, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(part: nn.Module, of: Tensor) -> Tensor:
    """(1, pairs, 2, S) → (pairs, 2, P)."""
    return part(of.flatten(1, 2), causal_pairs(of.shape[1])).unflatten(1, (-1, 2))[0]


def method_without_hiding(**options: Any) -> ContextSSL:
    method = tiny("ContextSSL", **options)
    method.hide = 0.0
    return method.double()


def batch(sources: int = 6, views: int = 2) -> tuple[Tensor, Tensor]:
    return sequence(batch=sources, observed=views - 1, action_dim=A, dtype=torch.float64)


def test_a_pair_changes_nothing_of_those_before_it_not_a_bit() -> None:
    part, before = transformer(), pairs()
    for k in range(4):
        after = before.clone()
        after[:, k] = torch.randn(2, S)
        old, new = read(part, before), read(part, after)
        assert torch.equal(old[:k], new[:k])
        assert (old[k:] != new[k:]).any(dim=-1).all()


def test_the_tokens_of_a_pair_do_not_see_each_other() -> None:
    part, tokens = transformer(), pairs().requires_grad_()
    for k in range(4):
        for side in (0, 1):
            (gradient,) = torch.autograd.grad(read(part, tokens)[k, side].sum(), tokens)
            seen = gradient[0].abs().sum(-1) > 0
            assert seen[:k].all()
            assert not seen[k + 1 :].any()
            assert seen[k].tolist() == [side == 0, side == 1]


def test_one_layer_does_not_know_in_which_order_the_pairs_before_came() -> None:
    """With more it does: what it makes of a pair of the context depends on those before that one."""
    tokens = pairs(5)
    moved = tokens[:, [2, 0, 3, 1, 4]]
    for depth, same in ((1, True), (3, False)):
        part = transformer(depth)
        assert torch.allclose(read(part, tokens)[4], read(part, moved)[4], atol=1e-10) == same


def test_it_is_attention_after_its_definition() -> None:
    part, tokens = transformer(depth=1), pairs()
    layer: Any = part.layers[0]
    x = part.read_in(tokens.flatten(1, 2))[0]
    q, k, v = layer.qkv(layer.norm1(x)).split(W, dim=-1)
    rows = []
    for i in range(8):
        seen = [j for j in range(i + 1) if not (i % 2 and j == i - 1)]
        heads = []
        for h in range(4):
            own = slice(3 * h, 3 * h + 3)
            weights = torch.stack([q[i, own] @ k[j, own] / 3**0.5 for j in seen]).softmax(0)
            heads.append(sum(w * v[j, own] for w, j in zip(weights, seen, strict=True)))
        y = x[i] + layer.out(torch.cat(heads))
        hidden = nn.functional.gelu(layer.mlp[0](layer.norm2(y)))
        rows.append(part.read_out(part.norm(y + layer.mlp[2](hidden))))
    torch.testing.assert_close(read(part, tokens).flatten(0, 1), torch.stack(rows))


@pytest.mark.parametrize("way", ["contexts of one", "all overlooked", "read alone"])
def test_without_context_it_contrasts_a_function_of_each_token(way: str) -> None:
    views, actions = batch()
    method = method_without_hiding(context_pairs=1 if way == "contexts of one" else 3)
    method.encoder.eval()
    if way == "all overlooked":
        method.hide = 1.0
    z, e = method.encode(views), method.embed(actions)
    first, second = pair_tokens(z[:, 0], e[:, 0], z[:, 1]).unbind(1)

    def of_token(x: Tensor) -> Tensor:
        part: Any = method.transformer
        x = part.read_in(x)
        for layer in part.layers:
            x = x + layer.out(layer.qkv(layer.norm1(x))[..., 2 * W :])
            x = x + layer.mlp(layer.norm2(x))
        return part.read_out(part.norm(x))

    u, v = of_token(first), of_token(second)
    if way == "read alone":
        torch.testing.assert_close(method.predict(z[:, 0], e[:, 0]), u)
        torch.testing.assert_close(method.target(views[:, 1]), v)
        torch.testing.assert_close(method.contextual(views)[:, 1], nn.functional.normalize(v, dim=-1))
        return
    out = method(views, actions)
    torch.testing.assert_close(out.loss, slow_ntxent(u, v, 0.1))
    torch.testing.assert_close(out.prediction, u)
    torch.testing.assert_close(out.target, v)


def test_a_batch_is_its_contexts_in_order_contrasted_together() -> None:
    views, actions = batch(6)
    method = method_without_hiding(context_pairs=3).eval()
    z, e = method.encode(views), method.embed(actions)
    tokens = pair_tokens(z[:, 0], e[:, 0], z[:, 1])
    o = torch.cat([read(method.transformer, tokens[None, rows]) for rows in (slice(0, 3), slice(3, 6))])
    out = method(views, actions)
    torch.testing.assert_close(out.loss, slow_ntxent(o[:, 0], o[:, 1], 0.1))
    torch.testing.assert_close(out.prediction, o[:, 0])


def test_tokens_overlook_pairs_in_training_alone_and_again_with_the_seed() -> None:
    views, actions = batch()

    def loss(hide: float, seed: int, training: bool = True) -> Tensor:
        method = randomise(tiny("ContextSSL", context_pairs=3).double()).train(training)
        method.encoder.eval()
        method.hide, method.generator = hide, torch.Generator().manual_seed(seed)
        return method(views, actions).loss

    assert torch.equal(loss(0.5, 1), loss(0.5, 1))
    assert not torch.equal(loss(0.5, 1), loss(0.5, 2))
    assert torch.equal(loss(0.5, 1, training=False), loss(0.0, 1, training=False))


def test_a_query_overlooks_whole_pairs_as_often_as_it_is_told_to_and_never_itself() -> None:
    seen: list[Tensor] = []
    part = PairTransformer(S, W, P, depth=200)
    for layer in part.layers:
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[1]))
    part(torch.randn(1, 6, S), causal_pairs(3), hide=0.75, generator=torch.Generator().manual_seed(0))
    drawn = torch.stack(seen)
    assert drawn[:, range(6), range(6)].all()
    assert not (drawn & ~causal_pairs(3)).any()
    earlier = drawn[:, 4:, :4].unflatten(-1, (2, 2))
    assert torch.equal(earlier[..., 0], earlier[..., 1])
    assert abs(earlier.double().mean().item() - 0.25) < 0.06


def test_a_batch_that_contexts_do_not_divide_is_refused_with_a_way_out() -> None:
    views, actions = batch(6)
    with pytest.raises(ValueError, match=r"contexts of 4 pairs; got 6 sources, of which 2 .* context_pairs=3\."):
        tiny("ContextSSL", context_pairs=4)(views, actions)
    with pytest.raises(ValueError, match=r"contexts of 64 pairs; got 6 sources, .* context_pairs=6\."):
        tiny("ContextSSL", context_pairs=64)(views, actions)
    with pytest.raises(ValueError, match=r"contexts of 2 pairs; got 5 sources, .* drop_last in the loader\.$"):
        tiny("ContextSSL")(views[:5], actions[:5])


def test_poses_are_regressed_from_both_tokens_at_length_1() -> None:
    views, actions = batch()
    poses = torch.randn(6, 2, A, dtype=torch.float64)
    method = method_without_hiding(context_pairs=3, settings="paper").eval()
    out, head = method(views, actions, poses=poses), method.get_submodule("pose_head")
    guesses = [head(o / o.norm(dim=-1, keepdim=True)) for o in (out.prediction, out.target)]
    pose = (mse_distance(guesses[0], poses[:, 1]).mean() + mse_distance(guesses[1], poses[:, 1]).mean()) / 2
    torch.testing.assert_close(out.terms["pose"], pose)
    torch.testing.assert_close(out.loss, out.terms["contrast"] + 5 * pose)
    assert "pose" not in tiny("ContextSSL").double()(views, actions).terms


@pytest.mark.parametrize("policy", ["first", "disjoint", "consecutive", "random"])
def test_the_pose_is_that_of_the_second_view_of_each_pair(policy: Any) -> None:
    views, actions = batch(6, views=4)
    poses = torch.arange(24.0).view(6, 4, 1)
    paired = ViewPairs(policy, group=Translation(A))(views, actions)
    torch.testing.assert_close(views[torch.arange(6)[:, None], paired.of(poses)[..., 0].long() % 4], paired.views)


def test_one_part_of_an_action_is_told_and_asked_for_in_a_batch() -> None:
    views, actions = batch()
    method = tiny("ContextSSL", context_pairs=3, parts=(2, 1), settings="paper").double()
    method.generator = torch.Generator().manual_seed(0)
    told: list[Tensor] = []
    method.embedder.register_forward_pre_hook(lambda part, inputs: told.append(inputs[0]))
    poses = torch.full((6, 2, A), torch.nan, dtype=torch.float64)
    for _ in range(20):
        method(views, actions, poses=torch.zeros_like(poses))
    kinds = {tuple((x != 0).any(dim=(0, 1)).tolist()) for x in told}
    assert kinds == {(True, True, False), (False, False, True)}
    told.clear()
    poses[..., :2] = 0
    finite = {bool(method(views, actions, poses=poses).loss.isfinite()): told[-1][0, 0] for _ in range(20)}
    assert finite[True][2] == 0
    assert finite[False][2] != 0
    method.eval()(views, actions, poses=torch.zeros_like(poses))
    assert torch.equal(told[-1], actions)


def test_a_reader_sees_the_context_and_no_other_query() -> None:
    views, actions = batch(8)
    method = method_without_hiding().eval()
    reader = method.in_context(views[:3], actions[:3])
    z, e = method.encode(views), method.embed(actions)[:, 0]
    context = pair_tokens(z[:3, 0], e[:3], z[:3, 1])
    own = pair_tokens(z[3:, 0], e[3:], z[3:, 1])
    for k in range(5):  # as the last pair of four
        first, second = read(method.transformer, torch.cat([context, own[k : k + 1]])[None])[3]
        torch.testing.assert_close(reader.predict(z[3 + k : 4 + k, 0], e[3 + k : 4 + k])[0], first)
        torch.testing.assert_close(reader.target(views[3:, 1])[k], second)
        torch.testing.assert_close(reader.contextual(views[3:])[k, 1], second / second.norm())
    assert not reader.target(views[3:, 1]).requires_grad
    assert torch.equal(reader.encode(views), z)
    with pytest.raises(ValueError, match=r"pairs of views, \(C, 2, …\), one at least"):
        method.in_context(*batch(3, views=3))


def test_more_queries_than_are_read_at_a_time_are_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    views, actions = batch(8)
    reader = method_without_hiding().eval().in_context(views[:3], actions[:3])
    whole = reader.target(views[:, 1])
    monkeypatch.setattr("seqjepa.baselines.context_ssl.QUERIES", 3)
    torch.testing.assert_close(reader.target(views[:, 1]), whole)


def test_the_scorecard_takes_what_is_read_in_a_context() -> None:
    g = torch.Generator().manual_seed(0)

    def sequences() -> ViewSequence:
        places = torch.randn(24, 3, A, generator=g)
        views = torch.rand(24, 3, 3, 8, 8, generator=g)
        return ViewSequence(views, places.diff(dim=1), places, torch.arange(24) % 2, Translation(A))

    method, train, test = tiny("ContextSSL"), sequences(), sequences()
    reader = method.in_context(train.views[:5, :2], train.actions[:5, :1])
    card = evaluate(reader, train, test, hidden=(), progress=False)
    alone = evaluate(method, train, test, hidden=(), progress=False)
    assert card.retrieval is not None
    assert alone.retrieval is not None
    assert torch.equal(card.train.z, alone.train.z)
    assert not torch.allclose(card.train.target, alone.train.target)  # type: ignore[arg-type]
    assert "not in the space of z" in card.skipped["composition"]
    read_only = evaluate(reader.contextual, train, test, hidden=(), progress=False)
    assert read_only.train.z.shape == (24, 3, 6)
    assert read_only.transformations is not None
    assert method.training


def test_without_actions_a_token_is_a_view() -> None:
    method = tiny("ContextSSL", embedder=NoActions())
    views, actions = sequence(batch=4, observed=1, action_dim=A)
    assert method.transformer.token_dim == 8
    assert torch.equal(method.eval()(views, actions).loss, method(views, actions * torch.nan).loss)


def test_wrong_settings_and_poses_are_refused() -> None:
    views, actions = batch()
    poses = torch.randn(6, 2, A, dtype=torch.float64)
    with pytest.raises(ValueError, match="context_pairs is the number of pairs of a context, at least 1; got 0"):
        tiny("ContextSSL", context_pairs=0)
    with pytest.raises(ValueError, match=r"parts are the sizes of an action's parts, each at least 1; got \(3, 0\)"):
        tiny("ContextSSL", parts=(3, 0))
    with pytest.raises(ValueError, match=r"parts=\(2, 2\) are 4 numbers in all; an action has 3"):
        tiny("ContextSSL", parts=(2, 2))(views, actions)
    with pytest.raises(ValueError, match="give both or neither; got poses without one"):
        tiny("ContextSSL")(views, actions, poses=poses)
    with pytest.raises(ValueError, match="give both or neither; got poses=None beside one"):
        tiny("ContextSSL", settings="paper")(views, actions)
    with pytest.raises(ValueError, match="Each of 2 views has a pose of 3 numbers"):
        tiny("ContextSSL", settings="paper")(views, actions, poses=poses[:, :1])
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"hide is a probability, in \[0, 1\]"):
            ContextSSL(nn.Identity(), transformer(), NoActions(), hide=wrong)
    with pytest.raises(ValueError, match="pose_weight must be at least 0; got -1"):
        ContextSSL(nn.Identity(), transformer(), NoActions(), pose_weight=-1.0)
    with pytest.raises(ValueError, match=r"must split evenly into heads; got token_dim=5, dim=10"):
        PairTransformer(S, 10, P)
    with pytest.raises(ValueError, match="Tokens are 5 wide here"):
        transformer()(torch.randn(1, 2, S + 1, dtype=torch.float64))
