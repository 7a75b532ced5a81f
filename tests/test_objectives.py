"""Objectives beside the model's own: their laws, and slow loops over sources and views."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seqjepa import (
    CausalAggregator,
    NoActions,
    OnlineTarget,
    RawActions,
    SeqJEPA,
    SeqJEPALoss,
    SIGReg,
    StopGradientTarget,
    pair_loss,
    random_observed,
    rollout_loss,
)
from seqjepa.groups import Group, Hue, Rotation2D, Rotation3D, Translation
from seqjepa.loss import CosineDistance, MSEDistance, SmoothL1Distance
from tests.builders import TinyEncoder, randomise, sequence, tiny_model
from tests.ranks import on_ranks

small = st.integers(1, 4)
distances = st.sampled_from([CosineDistance, MSEDistance, SmoothL1Distance])
groups = st.sampled_from([Translation(3), Rotation2D(), Hue(), Rotation3D()])
TARGETS = [None, StopGradientTarget, OnlineTarget]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def eval_model(target: Any = None, **parts: Any) -> SeqJEPA:
    encoder = TinyEncoder()
    return randomise(tiny_model(encoder=encoder, target=target and target(encoder), **parts)).double().eval()


def posed(group: Group, batch: int, observed: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Views, the actions between them, and the poses that they were made of."""
    views, _ = sequence(batch, observed, seed=seed, dtype=torch.float64)
    poses = torch.randn(batch, observed + 1, group.dim, generator=seeded(seed), dtype=torch.float64)
    if isinstance(group, Rotation3D):
        poses = nn.functional.normalize(poses, dim=-1)
    return views, group.actions(poses), poses


def one_pair(model: SeqJEPA, group: Group, views: Tensor, poses: Tensor, i: int, j: int) -> Tensor:
    """How far from view j what one row's view i predicts of it: everything anew, for these two views alone."""
    e = model.embed(group.relative(poses[None, i : i + 1], poses[None, j : j + 1]))
    state = model.aggregate(model.encode(views[None, i : i + 1]), e[:, :0])
    return model.loss.distance(model.predict(state, e[:, 0]), model.target(views[None, j]))


def slow_pairs(
    model: SeqJEPA, group: Group, views: Tensor, poses: Tensor, further: int, mask: Tensor | None = None
) -> Tensor:
    """Pair by pair; `mask` (B, T) says which views are observed, and what follows a row's last is its target."""
    found = []
    for row in range(len(views)):
        n = views.shape[1]
        for i in range(n - 1):
            j = (i + further) % n
            seen = list(range(n - 1)) if mask is None else mask[row].nonzero().flatten().tolist()
            if i in seen and j in [*seen, seen[-1] + 1]:
                found.append(one_pair(model, group, views[row], poses[row], i, j))
    return torch.cat(found).mean() if found else torch.zeros((), dtype=views.dtype)


def drawn(observed: int, seed: int) -> int:
    return 1 + int(torch.randint(observed, (), generator=seeded(seed)))


class LastView(nn.Module):
    """The state of a world that hides nothing: the last token."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return tokens[:, -1]


class Step(nn.Module):
    """A predictor that knows its world: z and an action make the next z."""

    def __init__(self, dim: int, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.dim, self.step = dim, step

    def forward(self, state: Tensor, e: Tensor) -> Tensor:
        return self.step(state[:, : self.dim], e)


class Apart(nn.Module):
    """The group's own distance, which knows that angles go round."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.group.distance(prediction, target)


def world(dim: int, action_dim: int, step: Callable[[Tensor, Tensor], Tensor]) -> SeqJEPA:
    """A SeqJEPA whose views are their representations, moved by actions as `step` says."""
    encoder = nn.Identity()
    parts = RawActions(action_dim), LastView(), Step(dim, step)
    return SeqJEPA(encoder, *parts, StopGradientTarget(encoder), SeqJEPALoss(MSEDistance()))


# pair_loss


@given(small, small, groups, distances, st.integers(0, 99))
def test_pairs_are_each_observed_view_one_other_and_the_action_between_them(
    b: int, t: int, group: Group, distance: type[nn.Module], seed: int
) -> None:
    model = eval_model(action_dim=group.dim, loss=SeqJEPALoss(distance(), SIGReg()))
    views, actions, poses = posed(group, b, t, seed)
    loss, terms = pair_loss(model, model(views, actions), views, actions, group, generator=seeded(seed))
    torch.testing.assert_close(loss, slow_pairs(model, group, views, poses, drawn(t, seed)))
    assert list(terms) == ["pairs"]
    assert terms["pairs"] == loss
    assert loss.requires_grad
    assert not terms["pairs"].requires_grad


@pytest.mark.parametrize("target", TARGETS)
def test_pairs_have_the_gradient_of_the_loop_whatever_the_target(target: Any) -> None:
    group = Rotation3D()
    model = eval_model(target, action_dim=4)
    views, actions, poses = posed(group, 3, 3)
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss, _ = pair_loss(model, model(views, actions), views, actions, group, generator=seeded(1))
    slow = slow_pairs(model, group, views, poses, drawn(3, 1))
    torch.testing.assert_close(loss, slow)
    for got, expected in zip(
        *(torch.autograd.grad(value, parameters, allow_unused=True) for value in (loss, slow)), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("target", TARGETS)
def test_pairs_encode_no_view_a_second_time(target: Any) -> None:
    model = eval_model(target)
    views, actions = sequence(dtype=torch.float64)
    out = model(views, actions)
    encoded = []
    model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    pair_loss(model, out, views, actions, Translation(3))
    assert not encoded


@given(small, small, groups, st.integers(0, 99))
def test_in_a_world_that_its_group_moves_all_pairs_are_predicted_exactly(
    b: int, t: int, group: Group, seed: int
) -> None:
    _, actions, poses = posed(group, b, t, seed)
    exact = world(group.dim, group.dim, group.apply)
    exact.loss.distance = Apart(group)
    loss, _ = pair_loss(exact, exact(poses, actions), poses, actions, group, generator=seeded(seed))
    assert loss < 1e-6


@given(small, small, st.integers(0, 99), st.data())
def test_pairs_of_masked_rows_are_those_both_of_whose_views_count(b: int, t: int, seed: int, data: Any) -> None:
    group = Rotation3D()
    model = eval_model(action_dim=4)
    views, actions, poses = posed(group, b, t, seed)
    mask = torch.zeros(b, t, dtype=torch.bool)
    for row in range(b):
        last = data.draw(st.integers(0, t - 1))
        seen = data.draw(st.sets(st.integers(0, last))) | {last}  # padding before, after and between
        mask[row, list(seen)] = True
        views[row, last + 2 :], actions[row, last + 1 :] = math.nan, math.nan
        views[row, : min(seen)], actions[row, : min(seen)] = math.nan, math.nan
    loss, _ = pair_loss(model, model(views, actions, mask), views, actions, group, mask=mask, generator=seeded(seed))
    expected = slow_pairs(model, group, views, poses, drawn(t, seed), mask)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for part in (model.embedder, model.aggregator, model.predictor):
        assert all(p.grad is None or p.grad.isfinite().all() for p in part.parameters())


def test_a_mask_that_hides_nothing_changes_nothing() -> None:
    model, mask = eval_model(), torch.ones(4, 3, dtype=torch.bool)
    views, actions = sequence(dtype=torch.float64)
    masked = pair_loss(
        model, model(views, actions, mask), views, actions, Translation(3), mask=mask, generator=seeded()
    )
    plain = pair_loss(model, model(views, actions), views, actions, Translation(3), generator=seeded())
    torch.testing.assert_close(masked, plain)


def test_of_two_views_there_is_one_pair_and_it_is_the_model_s_own() -> None:
    model = eval_model()
    views, actions = sequence(observed=1, dtype=torch.float64)
    out = model(views, actions)
    loss, _ = pair_loss(model, out, views, actions, Translation(3))
    torch.testing.assert_close(loss, out.terms["distance"])


def test_without_actions_a_pair_is_invariance_from_one_view() -> None:
    model = eval_model(embedder=NoActions())
    views, actions, poses = posed(Rotation3D(), 3, 3)
    out = model(views, actions)
    loss, _ = pair_loss(model, out, views, actions, Rotation3D(), generator=seeded(2))
    torch.testing.assert_close(loss, slow_pairs(model, Rotation3D(), views, poses, drawn(3, 2)))
    turned, _ = pair_loss(model, out, views, actions.flip(1), Rotation3D(), generator=seeded(2))
    torch.testing.assert_close(loss, turned)


def test_all_pairs_come_equally_often_and_a_generator_decides_which() -> None:
    model = eval_model(depth=1)
    views, actions, poses = posed(Translation(3), 1, 3)
    out = model(views, actions)
    each = [slow_pairs(model, Translation(3), views, poses, k).item() for k in (1, 2, 3)]
    before, generator = torch.get_rng_state(), seeded()
    draws = 300
    found = [pair_loss(model, out, views, actions, Translation(3), generator=generator).loss for _ in range(draws)]
    assert torch.equal(before, torch.get_rng_state())
    which = Counter(min(range(3), key=lambda k: abs(each[k] - loss.item())) for loss in found)
    assert all(abs(which[k] - draws / 3) < 4 * math.sqrt(draws * 2 / 9) for k in range(3))


class Paired(SeqJEPA):
    """The model with pairs in its forward, as the docstring shows it."""

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> Any:
        out = super().forward(views, actions, mask)
        loss, terms = pair_loss(self, out, views, actions, Translation(3), mask=mask, generator=seeded(5))
        return out._replace(loss=(out.loss + loss) / 2, terms=out.terms | terms)


def paired() -> Paired:
    model = eval_model()
    return Paired(model.encoder, model.embedder, model.aggregator, model.predictor, model.target).eval()


def check_that_shares_make_the_whole(rank: int, world: int) -> None:
    views, actions = sequence(dtype=torch.float64)
    whole, shared = paired(), paired()
    whole(views, actions).loss.backward()
    wrapped = DistributedDataParallel(shared)
    wrapped(views[rank::world], actions[rank::world]).loss.backward()
    for mine, theirs in zip(shared.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_under_data_parallel_a_forward_with_pairs_has_the_gradient_of_the_whole_batch() -> None:
    on_ranks(check_that_shares_make_the_whole)


def test_what_does_not_fit_is_said() -> None:
    model = eval_model()
    views, actions = sequence(dtype=torch.float64)
    out = model(views, actions)
    with pytest.raises(ValueError, match=r"group's actions have 4 numbers; got actions of shape \(4, 3, 3\)"):
        pair_loss(model, out, views, actions, Rotation3D())
    with pytest.raises(ValueError, match=r"with z of \(4, 2\) views; got z of shape \(4, 3, 8\)"):
        pair_loss(model, out, views[:, :3], actions[:, :2], Translation(3))
    with pytest.raises(ValueError, match="4 views need 3 actions"):
        pair_loss(model, out, views, actions[:, :2], Translation(3))
    model.loss = nn.Identity()
    with pytest.raises(TypeError, match=r"Identity has none\. Give it a module `distance`"):
        pair_loss(model, out, views, actions, Translation(3))


# rollout_loss


def slow_rollout(model: SeqJEPA, views: Tensor, actions: Tensor, observed: int, horizon: int) -> list[Tensor]:
    """Step by step and view by view, the whole sequence aggregated anew at each."""
    z = [model.encode(views[:, t : t + 1])[:, 0] for t in range(observed)]
    steps = []
    for k in range(horizon):
        now = observed + k
        e = model.embed(actions[:, :now])
        z.append(model.predict(model.aggregate(torch.stack(z, dim=1), e[:, :-1]), e[:, -1]))
        steps.append(model.loss.distance(z[-1], model.target(views[:, now])).mean())
    return steps


@given(small, small, small, distances, st.sampled_from(["paper", "causal"]))
def test_a_roll_out_feeds_predictions_back_and_compares_each_with_the_view_that_came(
    b: int, observed: int, horizon: int, distance: type[nn.Module], kind: str
) -> None:
    parts = {"aggregator": CausalAggregator(12, heads=2)} if kind == "causal" else {}
    model = eval_model(loss=SeqJEPALoss(distance(), SIGReg()), **parts)
    views, actions = sequence(b, observed + horizon, dtype=torch.float64)  # one view more than is looked at
    loss, terms = rollout_loss(model, views, actions, observed=observed, horizon=horizon)
    steps = slow_rollout(model, views, actions, observed, horizon)
    assert list(terms) == [f"rollout_{k}" for k in range(1, horizon + 1)]
    torch.testing.assert_close(list(terms.values()), [step.detach() for step in steps])
    torch.testing.assert_close(loss, torch.stack(steps).mean())
    assert not any(term.requires_grad for term in terms.values())


@given(small, small, distances, st.booleans())
def test_one_step_ahead_is_the_model_s_own_distance(b: int, t: int, distance: type[nn.Module], training: bool) -> None:
    model = eval_model(loss=SeqJEPALoss(distance()), dropout=0.0).train(training and b > 1)
    views, actions = sequence(b, t, dtype=torch.float64)
    loss, _ = rollout_loss(model, views, actions, observed=t, horizon=1)
    torch.testing.assert_close(loss, model(views, actions).loss)


@given(small, small, st.integers(0, 99))
def test_in_a_linear_world_the_error_is_that_of_what_is_known_of_it(observed: int, horizon: int, seed: int) -> None:
    by, known = torch.randn(2, 5, 3, generator=seeded(seed), dtype=torch.float64)
    actions = torch.randn(4, observed + horizon - 1, 3, generator=seeded(seed), dtype=torch.float64)
    views = torch.cat([torch.zeros(4, 1, 5).double(), actions.cumsum(1) @ by.T], dim=1)
    right, wrong = world(5, 3, lambda z, a: z + a @ by.T), world(5, 3, lambda z, a: z + a @ known.T)
    _, terms = rollout_loss(right, views, actions, observed=observed, horizon=horizon)
    assert all(term < 1e-20 for term in terms.values())
    _, terms = rollout_loss(wrong, views, actions, observed=observed, horizon=horizon)
    way = actions[:, observed - 1 :].cumsum(1) @ (known - by).T  # (B, K, D): what the wrong steps add up to
    torch.testing.assert_close(torch.stack(list(terms.values())), way.square().mean((0, 2)))


@pytest.mark.parametrize("target", TARGETS)
def test_a_roll_out_teaches_the_encoder_through_the_observed_views(target: Any) -> None:
    model = eval_model(target)
    views, actions = sequence(observed=5, dtype=torch.float64)
    views.requires_grad_()
    loss, terms = rollout_loss(model, views, actions, observed=2, horizon=3)
    reached = torch.autograd.grad(loss, views, retain_graph=True)[0].flatten(2).abs().amax((0, 2)) > 0
    assert reached.tolist() == [True, True, *[target is OnlineTarget] * 3, False]
    parameters = [p for p in model.parameters() if p.requires_grad]
    slow = torch.stack(slow_rollout(model, views, actions, 2, 3)).mean()
    for got, expected in zip(*(torch.autograd.grad(value, parameters) for value in (loss, slow)), strict=True):
        torch.testing.assert_close(got, expected)
        assert got.abs().sum() > 0
    assert len(terms) == 3


def test_one_observed_view_can_be_trained_from() -> None:
    model = tiny_model().train()
    views, actions = sequence(observed=2)
    rollout_loss(model, views, actions, observed=1, horizon=2).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())


@pytest.mark.parametrize(("observed", "horizon"), [(0, 1), (1, 0), (-1, 3)])
def test_a_roll_out_takes_a_view_and_a_step(observed: int, horizon: int) -> None:
    with pytest.raises(ValueError, match=f"got observed={observed} and horizon={horizon}"):
        rollout_loss(eval_model(), *sequence(), observed=observed, horizon=horizon)


def test_a_roll_out_takes_as_many_views_as_it_observes_and_imagines() -> None:
    with pytest.raises(ValueError, match=r"3 observed views and 2 steps ahead take 5 views; got 4\. Load more"):
        rollout_loss(eval_model(), *sequence(), observed=3, horizon=2)
    model = eval_model()
    cast(Any, model).loss = nn.Identity()
    with pytest.raises(TypeError, match="Identity has none"):
        rollout_loss(model, *sequence(), observed=1, horizon=2)


# random_observed


@given(small, st.integers(1, 6), st.integers(0, 99))
def test_what_is_left_of_a_cut_sequence_is_its_beginning(b: int, t: int, seed: int) -> None:
    whole = sequence(b, t)
    views, actions = random_observed(*whole, generator=seeded(seed))
    n = actions.shape[1]
    assert 1 <= n <= t
    assert views.shape[1] == n + 1
    assert torch.equal(views, whole[0][:, : n + 1])
    assert torch.equal(actions, whole[1][:, :n])
    assert views.data_ptr() == whole[0].data_ptr()  # no copy
    again = random_observed(*whole, generator=seeded(seed))[1]
    assert again.shape == actions.shape


@pytest.mark.parametrize("longest", [1, 2, 5])
def test_every_length_is_equally_likely(longest: int) -> None:
    views, actions = sequence(1, longest, side=1)
    before, generator, draws = torch.get_rng_state(), seeded(), 600
    lengths = Counter(random_observed(views, actions, generator=generator)[1].shape[1] for _ in range(draws))
    assert torch.equal(before, torch.get_rng_state())
    share = 1 / longest
    for n in range(1, longest + 1):
        assert abs(lengths[n] - draws * share) <= 4 * math.sqrt(draws * share * (1 - share))


def test_a_model_takes_what_is_left_and_a_single_view_cannot_be_cut() -> None:
    model = tiny_model()
    for seed in range(4):
        model(*random_observed(*sequence(), generator=seeded(seed))).loss.backward()
    views, actions = sequence()
    with pytest.raises(ValueError, match="Two views and one action are the least that can be learnt from; got 1"):
        random_observed(views[:, :1], actions[:, :0])
    with pytest.raises(ValueError, match="4 views need 3 actions"):
        random_observed(views, actions[:, :2])
