"""What holds of every method: one way to call it, one thing it learns, one way to move its target."""

from __future__ import annotations

import copy

import pytest
import torch

from seqjepa.baselines import MeanAggregate, ViewPairs
from seqjepa.data import RotatedViews
from seqjepa.evaluation import MeanAggregate as measured_mean
from seqjepa.evaluation import Monitor, evaluate
from tests.baselines.builders import AVERAGED, METHODS, PAIRED, PREDICTIVE, SIDE, A, tiny
from tests.builders import sequence

each = pytest.mark.parametrize("name", METHODS)


@each
def test_a_step_learns_from_every_weight_but_the_target_s(name: str) -> None:
    method = tiny(name)
    views, actions = sequence(batch=4, observed=2, action_dim=A)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    out = method(views, actions)
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert not any(term.requires_grad for term in out.terms.values())
    before = copy.deepcopy(method.encoder.state_dict())
    optimizer.step()
    optimizer.zero_grad()
    method.update_target()
    assert not torch.equal(before["conv1.weight"], method.encoder.state_dict()["conv1.weight"])
    assert out.loss.shape == ()
    assert out.z.shape[::2] == (4, 8)
    assert (out.prediction is None) == (name not in PREDICTIVE)
    if out.prediction is not None:
        assert out.prediction.shape == out.target.shape
        assert not out.target.requires_grad
    Monitor(every=1)(z=out.z, prediction=out.prediction, target=out.target)


@each
def test_the_weights_are_kept_once_and_come_back(name: str) -> None:
    method, again = tiny(name), tiny(name)
    again.load_state_dict(method.state_dict())
    averaged = 2 if name in AVERAGED else 1
    encoder = sum(p.numel() for p in method.encoder.parameters())
    assert sum(p.numel() for key, p in method.named_parameters() if "conv" in key or ".bn" in key) == averaged * encoder
    views, actions = sequence(batch=4, action_dim=A)
    z, e = method.eval().encode(views), method.embed(actions)
    torch.testing.assert_close(again.eval().encode(views), z)
    if name in PREDICTIVE:
        state = method.aggregate(z[:, :1], e[:, :0])
        assert method.predict(state, e[:, 0]).shape == method.target(views[:, 1]).shape == (4, 6)
        torch.testing.assert_close(again.predict(state, e[:, 0]), method.predict(state, e[:, 0]))
        assert not method.target(views[:, 1]).requires_grad
    else:
        assert not hasattr(method, "target")
        assert not hasattr(method, "predict")


@each
def test_a_blank_of_a_batch_is_refused(name: str) -> None:
    method = tiny(name)
    views, actions = sequence(batch=4, observed=2, action_dim=A)
    with pytest.raises(ValueError, match="takes no mask: a pair of views must not meet padding"):
        method(views, actions, torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"3 views need 2 actions, one per step; got 1\. Add an action"):
        method(views, actions[:, :1])
    with pytest.raises(ValueError, match="must have one batch size; got 4 and 3"):
        method(views, actions[:3])
    with pytest.raises(ValueError, match="at least two views of a source; got 1"):
        method(views[:, :1], actions[:, :0])
    with pytest.raises(ValueError, match="at least two sources; got 1"):
        method(views[:1], actions[:1])
    with pytest.raises(ValueError, match=r"settings must be one of .*; got 'best'"):
        tiny(name, settings="best", widths=None)


@pytest.mark.parametrize("name", [name for name in PREDICTIVE if name != "BYOL"])
def test_a_method_that_is_told_actions_asks_for_their_size(name: str) -> None:
    with pytest.raises(ValueError, match="is told actions, and must know their size; got None"):
        tiny(name, action_dim=None)


@pytest.mark.parametrize("name", [name for name in PREDICTIVE if name != "BYOL"])
def test_actions_of_another_size_are_refused_and_not_filled_up(name: str) -> None:
    views, actions = sequence(batch=4, observed=1, action_dim=A)
    for action_dim in (A - 1, A + 1):
        with pytest.raises(ValueError, match=rf"An action has {action_dim} numbers here"):
            tiny(name, action_dim=action_dim)(views, actions)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in PREDICTIVE] + ["BYOL"])
def test_a_method_that_is_told_none_does_not_look_at_actions(name: str) -> None:
    method = tiny(name, action_dim=None).eval()
    views, actions = sequence(batch=4, observed=2, action_dim=7)
    assert torch.equal(method(views, actions).loss, method(views, actions * torch.nan).loss)


@each
def test_it_runs_in_float64_and_under_autocast(name: str) -> None:
    method = tiny(name)
    views, actions = sequence(batch=4, observed=2, action_dim=A)
    with torch.autocast("cpu", torch.bfloat16):
        out = method(views, actions)
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    out = tiny(name).double()(views.double(), actions.double())
    assert out.loss.dtype == torch.float64
    assert out.target is None or out.target.dtype == torch.float64


@each
def test_all_views_are_encoded_in_one_call_and_all_targets_in_another(name: str) -> None:
    method = tiny(name)
    online: list[int] = []
    averaged: list[int] = []
    method.encoder.register_forward_hook(lambda *call: online.append(len(call[1][0])))
    if name in AVERAGED:
        method.target.encoder.register_forward_hook(lambda *call: averaged.append(len(call[1][0])))
    out = method(*sequence(batch=4, observed=2, action_dim=A))
    assert online == [out.z.shape[0] * out.z.shape[1]]
    assert averaged == ([] if name not in AVERAGED else [8] if name == "BYOL" else [4])


@pytest.mark.parametrize("name", PAIRED)
def test_several_pairs_of_a_source_are_averaged_and_are_no_negatives(name: str) -> None:
    method = tiny(name).eval()  # batch norm would see other batches
    views, actions = sequence(batch=4, observed=3, action_dim=A)
    losses = {}
    for start in (0, 2):
        losses[start] = method(views[:, start : start + 2], actions[:, start : start + 1]).loss
    method.pairs = ViewPairs("disjoint")
    torch.testing.assert_close(method(views, actions).loss, (losses[0] + losses[2]) / 2)
    method.pairs = ViewPairs("consecutive")
    losses[1] = (lambda m: m(views[:, 1:3], actions[:, 1:2]).loss)(method)
    torch.testing.assert_close(method(views, actions).loss, (losses[0] + losses[1] + losses[2]) / 3)


@pytest.mark.parametrize("name", AVERAGED)
def test_the_target_moves_by_its_momentum_and_never_by_gradient(name: str) -> None:
    views, actions = sequence(batch=4, observed=1, action_dim=A)
    for momentum in (0.0, 1.0):
        method = tiny(name, momentum=momentum)
        before = copy.deepcopy(method.target.state_dict())
        method(views, actions).loss.backward()
        assert all(p.grad is None for p in method.target.parameters())
        with torch.no_grad():
            for p in [*method.encoder.parameters(), *method.projector.parameters()]:
                p.add_(0.1)
        method.update_target()
        online = torch.nn.Sequential(method.encoder, method.projector)
        for key, p in method.target.encoder.named_parameters():
            assert torch.equal(p, before[f"encoder.{key}"] if momentum else online.get_parameter(key))


@pytest.mark.parametrize("name", [*METHODS])
def test_the_scorecard_takes_it(name: str) -> None:
    sampler = RotatedViews(num_views=3)
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2
    train, test = (
        sampler(torch.rand(24, 3, SIDE, SIDE, generator=g), generator=g)._replace(labels=labels) for _ in "ab"
    )
    action_dim = train.actions.shape[-1]
    method = tiny(name, action_dim=action_dim, widths=(12, 8))  # P = D: by its shape a prediction could be a z
    card = evaluate(method, train, test, hidden=(), progress=False)
    assert card.top1 is not None
    assert card.transformations is not None
    assert list(card.top1.states) == [1, 2, 3]
    assert (card.retrieval is not None) == (name in PREDICTIVE)
    assert (card.sensitivity is not None) == (name in PREDICTIVE)
    assert card.composition is None
    if name in PREDICTIVE:
        assert "not in the space of z" in card.skipped["composition"]
    if name not in PREDICTIVE:
        assert "without target and predict" in card.skipped["retrieval"]
    assert method.training


def test_ten_methods_stand_side_by_side() -> None:
    names = "SimCLR BYOL VICReg VICRegTraj SEN EquiMod SIE ConditionalBYOL ContextSSL ConvIJEPA"
    assert set(METHODS) == set(names.split())
    assert MeanAggregate is measured_mean


def test_averaging_z_over_views_stands_beside_every_state() -> None:
    method = tiny("SimCLR").eval()
    views, actions = sequence(batch=4, observed=2, action_dim=A)
    average = MeanAggregate(method)
    z = average.encode(views)
    torch.testing.assert_close(average.aggregate(z, average.embed(actions)), method.encode(views).mean(1))
