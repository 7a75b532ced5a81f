"""Closed forms of the methods, and one method as the limit of another."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given as examples
from hypothesis import strategies as st
from torch import nn

from seqjepa import NoActions
from seqjepa.baselines import (
    BYOL,
    SEN,
    SIE,
    ConditionalBYOL,
    ConvIJEPA,
    NTXent,
    SIEWeights,
    SimCLR,
    VICReg,
    VICRegTraj,
    ViewPairs,
)
from seqjepa.baselines.vicreg_traj import straightness
from seqjepa.functional import cosine_distance
from seqjepa.groups import Group, Rotation3D, Translation
from tests.baselines.builders import A, First, given, slow_ntxent, slow_vicreg, tiny
from tests.builders import randomise, sequence

keep = nn.Identity


def two(n: int = 6, p: int = 4, seed: int = 0, views: int = 2) -> Any:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(views, n, p, generator=g, dtype=torch.float64).unbind(0)


def vicreg(**options: Any) -> VICReg:
    return VICReg(keep(), keep(), **options)


@examples(st.integers(2, 5), st.integers(1, 4))
def test_simclr_and_vicreg_are_their_definitions(n: int, p: int) -> None:
    u, v = (x.requires_grad_() for x in two(n, p + 1))
    method = SimCLR(keep(), keep(), temperature=0.3)
    fast, slow = given(method, u, v).loss, slow_ntxent(u, v, 0.3)
    torch.testing.assert_close(fast, slow)
    fast, slow = given(vicreg(), u, v).loss, slow_vicreg(u, v)
    torch.testing.assert_close(fast, slow)
    gradients = (torch.autograd.grad(x, [u, v]) for x in (fast, slow))
    torch.testing.assert_close(*gradients)


def test_vicreg_has_its_closed_forms() -> None:
    one = torch.ones(6, 3, dtype=torch.float64)
    assert given(vicreg(), one, one).loss.item() == pytest.approx(25 * 0.99)
    orthogonal = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert given(vicreg(), orthogonal, orthogonal).loss.item() == pytest.approx(0, abs=1e-12)
    column = torch.randn(6, 1, dtype=torch.float64)
    same = column.expand(6, 5)
    assert given(vicreg(), same, same).terms["covariance"].item() == pytest.approx(2 * 4 * column.var().item() ** 2)
    u, v = two()
    torch.testing.assert_close(given(vicreg(), u + 3, v + 3).loss, given(vicreg(), u, v).loss)


def test_vicreg_is_lightly_s_and_pytorch_metric_learning_s() -> None:
    lightly = pytest.importorskip("lightly.loss")
    metric_learning = pytest.importorskip("pytorch_metric_learning.losses")
    u, v = (x.requires_grad_() for x in two(8, 5))
    ours = given(vicreg(), u, v).loss
    for theirs in (lightly.VICRegLoss()(u, v), metric_learning.VICRegLoss()(u, ref_emb=v)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        gradients = (torch.autograd.grad(x, [u, v], retain_graph=True) for x in (ours, theirs))
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_byol_is_twice_the_cosine_distance_both_ways() -> None:
    method = randomise(tiny("BYOL")).eval()
    views, actions = sequence(batch=4, observed=1, action_dim=A)
    out = method(views, actions)
    z = method.encode(views)
    p = [method.predict(z[:, i], z.new_zeros(4, 0)) for i in (0, 1)]
    t = [method.target(views[:, i]) for i in (0, 1)]
    expected = 2 * cosine_distance(p[0], t[1]).mean() + 2 * cosine_distance(p[1], t[0]).mean()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.prediction, torch.cat(p))
    torch.testing.assert_close(out.target, torch.cat(t[::-1]))
    torch.testing.assert_close(method(views.flip(1), actions).loss, out.loss)
    assert 0 <= out.loss <= 8
    equal = BYOL(nn.Flatten(), keep(), First())
    same = torch.rand(4, 1, 5).expand(4, 2, 5)
    assert equal(same, torch.zeros(4, 1, A)).loss.abs() < 1e-6


def test_byol_does_not_depend_on_lengths() -> None:
    u, v = (x.float() for x in two())
    method = BYOL(keep(), keep(), First())
    torch.testing.assert_close(given(method, 3 * u, v / 7).loss, given(method, u, v).loss)


def test_byol_is_lightly_s() -> None:
    lightly = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    out = randomise(tiny("BYOL")).eval()(*sequence(batch=4, observed=1, action_dim=A))
    (p0, p1), (t1, t0) = out.prediction.chunk(2), out.target.chunk(2)
    torch.testing.assert_close(out.loss, 4 + 2 * lightly(p0, t1) + 2 * lightly(p1, t0), rtol=1e-6, atol=1e-6)


def test_conditional_byol_both_ways_without_actions_is_byol() -> None:
    both = randomise(tiny("BYOL")).eval()
    one = ConditionalBYOL(both.encoder, both.projector, NoActions(), both.predictor).eval()
    views, actions = sequence(batch=4, observed=1, action_dim=A)
    both.update_target()
    one.target.load_state_dict(both.target.state_dict())
    there, back = one(views, actions), one(views.flip(1), actions)
    torch.testing.assert_close(there.loss + back.loss, both(views, actions).loss)
    assert 0 <= there.loss <= 4


def moved(places: torch.Tensor, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Views that show where they were taken, and the actions between."""
    return places, group.actions(places)


def conv_ijepa(group: Group) -> ConvIJEPA:
    encoder = nn.Linear(group.dim, 8)
    shape = {"action_dim": group.dim, "view_shape": (group.dim,)}
    return randomise(ConvIJEPA.from_encoder(encoder, group=group, widths=(12, 6), **shape)).double()  # type: ignore[arg-type]


GROUPS = [Translation(3), Rotation3D()]


def places_of(group: Group) -> torch.Tensor:
    if isinstance(group, Rotation3D):
        return Rotation3D.random(20, generator=torch.Generator().manual_seed(0)).double().unflatten(0, (5, 4))
    return torch.randn(5, 4, 3, dtype=torch.float64)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_conv_ijepa_predicts_the_last_view_from_each_by_the_action_that_leads_there(group: Group) -> None:
    method, places = conv_ijepa(group).eval(), places_of(group)
    out = method(*moved(places, group))
    z, target = method.encode(places), method.target(places[:, -1])
    distances = []
    for t in range(3):
        e = method.embed(group.relative(places[:, t], places[:, -1])[:, None])[:, 0]
        distances.append(cosine_distance(method.predict(z[:, t], e), target).mean())
    torch.testing.assert_close(out.loss, sum(distances) / 3, atol=1e-6, rtol=1e-6)
    assert out.prediction is not None
    assert out.target is not None
    torch.testing.assert_close(out.target.unflatten(0, (5, 3))[:, 1], target)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_conv_ijepa_ignores_the_order_of_views_whose_actions_move_along(group: Group) -> None:
    method, places = conv_ijepa(group), places_of(group)
    loss = method(*moved(places, group)).loss
    again = method(*moved(places[:, [2, 0, 1, 3]], group)).loss
    torch.testing.assert_close(again, loss, atol=1e-6, rtol=1e-6)
    assert not torch.isclose(method(*moved(places[:, [0, 1, 3, 2]], group)).loss, loss, rtol=1e-4)


def test_conv_ijepa_of_one_observed_view_is_half_of_conditional_byol() -> None:
    one = randomise(tiny("ConvIJEPA", group=None))
    other = ConditionalBYOL(one.encoder, one.projector, one.embedder, one.predictor)
    other.target.load_state_dict(one.target.state_dict())
    views, actions = sequence(batch=4, observed=1, action_dim=A)
    torch.testing.assert_close(2 * one(views, actions).loss, other(views, actions).loss)


def test_conv_ijepa_asks_for_the_group_of_several_actions() -> None:
    with pytest.raises(ValueError, match=r"From the first view to the last lead 2 actions, .*; got group=None"):
        tiny("ConvIJEPA", group=None)(*sequence(batch=4, observed=2, action_dim=A))


def test_sen_that_expects_no_change_is_simclr() -> None:
    u, v = two()
    sen = SEN(keep(), keep(), NoActions(), First(), temperature=0.3)
    simclr = SimCLR(keep(), keep(), temperature=0.3)
    torch.testing.assert_close(given(sen, u, v).loss, given(simclr, u, v).loss, atol=1e-12, rtol=0)


def test_sen_and_equimod_compare_the_prediction_with_the_other_view() -> None:
    views, actions = sequence(batch=4, observed=1, action_dim=A)
    for name in ("SEN", "EquiMod"):
        method = randomise(tiny(name)).eval()
        z, e = method.encode(views), method.embed(actions)
        p, t = method.predict(z[:, 0], e[:, 0]), method.target(views[:, 1])
        out = method(views, actions)
        term = out.terms["contrast" if name == "SEN" else "equivariance"]
        torch.testing.assert_close(term, slow_ntxent(p, t, 0.5), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.prediction, p)
        torch.testing.assert_close(out.target, t)


def test_equimod_without_its_second_part_is_simclr() -> None:
    method = tiny("EquiMod").eval()
    method.equivariance_weight = 0.0
    simclr = SimCLR(method.encoder, method.invariant).eval()
    views, actions = sequence(batch=4, observed=1, action_dim=A)
    loss = method(views, actions).loss
    torch.testing.assert_close(loss, simclr(views, actions).loss)
    loss.backward()
    for part in (method.projector, method.predictor, method.embedder):
        assert not any(p.grad is not None and p.grad.any() for p in part.parameters())


def test_equimod_s_invariant_head_does_not_feel_the_actions() -> None:
    method = tiny("EquiMod").eval()
    views, actions = sequence(batch=4, observed=1, action_dim=A)
    gradients = []
    for told in (actions, -actions):
        loss = method(views, told).loss
        gradients.append(torch.autograd.grad(loss, list(method.invariant.parameters())))
    torch.testing.assert_close(*gradients)


def sie_of(u: torch.Tensor, v: torch.Tensor, method: SIE) -> torch.Tensor:
    """The definition of SIE's loss, from torch's own covariance."""
    w, half = method.weights, method.invariant_dim
    a = torch.ones(len(u), A, dtype=u.dtype)
    predicted = method.predictor(u[:, half:], a)
    spread = (1 - (predicted.var(0) + 1e-4).sqrt()).clamp(min=0).mean()
    return (
        w.invariance * (u - v)[:, :half].square().mean()
        + w.equivariance * (predicted - v[:, half:]).square().mean()
        + slow_vicreg(u, v, (0.0, w.variance, w.covariance))
        + w.variance * spread / 2
    )


class Half(nn.Identity):
    in_dim = 2


def sie(weights: SIEWeights | None = None) -> SIE:
    predictor = tiny("SIE", widths=(2,)).predictor.double()
    return SIE(keep(), Half(), Half(), NoActions(), predictor, weights=weights)  # type: ignore[arg-type]


def test_sie_is_its_definition_gradients_too() -> None:
    u, v = (x.requires_grad_() for x in two())
    for weights in (None, SIEWeights(25.0, 25.0, 25.0, 1.0)):
        method = sie(weights)
        method.embedder = nn.Identity()
        loss = method(torch.stack([u, v], 1), torch.ones(6, 1, A, dtype=u.dtype)).loss
        slow = sie_of(u, v, method)
        torch.testing.assert_close(loss, slow)
        gradients = (torch.autograd.grad(x, [u, v, method.predictor.weight]) for x in (loss, slow))
        torch.testing.assert_close(*gradients)


def test_sie_of_an_identity_and_equal_views_has_no_equivariance_term() -> None:
    method = sie()
    method.embedder = nn.Identity()
    with torch.no_grad():
        method.predictor.weight.copy_(torch.eye(2, dtype=torch.float64).expand(A, 2, 2) / A)  # W(1, 1, 1) = I
    u = two()[0]
    out = method(torch.stack([u, u], 1), torch.ones(6, 1, A, dtype=u.dtype))
    assert out.terms["equivariance"] < 1e-20


def test_sie_whose_action_says_nothing_is_vicreg_on_the_halves() -> None:
    """Where nothing is predicted, ŷ = 0 adds a constant: its variance is as low as can be."""
    u, v = two()
    method = sie(SIEWeights(20.0, 0.0, 25.0, 1.0))
    method.embedder = nn.Identity()
    out = given(method, u, v)
    rest = slow_vicreg(u, v, (0.0, 25.0, 1.0)) + 20 * (u - v)[:, :2].square().mean()
    torch.testing.assert_close(out.loss, rest + 25 * 0.99 / 2)


def test_vicreg_traj_is_vicreg_where_its_path_does_not_count() -> None:
    left, centre, right = two(views=3)
    path = VICRegTraj(keep(), keep(), trajectory_weight=0.0)
    torch.testing.assert_close(given(path, left, centre, right).loss, slow_vicreg(left, centre))
    path = VICRegTraj(keep(), keep(), trajectory_weight=2.0)
    out = given(path, left, centre, right)
    torch.testing.assert_close(out.loss, slow_vicreg(left, centre) + 2 * out.terms["trajectory"])
    with pytest.raises(ValueError, match="A path has three views at least; got 2"):
        given(path, left, centre)


def straight(left: torch.Tensor, centre: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The cosine of two steps, each without its part along the centre, of one row."""
    steps = [s - (s @ centre) / (centre @ centre) * centre for s in (centre - left, right - centre)]
    return (steps[0] @ steps[1]) / (steps[0].norm() * steps[1].norm())


def test_a_path_on_a_great_circle_goes_straight_on_and_one_that_turns_back_does_not() -> None:
    frames = torch.linalg.qr(torch.randn(5, 6, 2, dtype=torch.float64)).Q
    left, centre, right = (math.cos(t) * frames[..., 0] + math.sin(t) * frames[..., 1] for t in (0.2, 0.7, 1.2))
    one = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(straightness(left, centre, right), one)
    torch.testing.assert_close(straightness(left, centre, left), -one)
    a, b, c = two(5, 6, views=3)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    torch.testing.assert_close(straightness(3 * a @ turn, 3 * b @ turn, 3 * c @ turn), straightness(a, b, c))
    points = [x.requires_grad_() for x in (a, b, c)]
    slow = torch.stack([straight(*rows) for rows in zip(*points, strict=True)])
    torch.testing.assert_close(straightness(*points), slow)
    gradients = (torch.autograd.grad(x.square().sum(), points) for x in (straightness(*points), slow))
    torch.testing.assert_close(*gradients)
    still = a.requires_grad_()
    straightness(still, still, still).sum().backward()
    assert still.grad is not None
    assert still.grad.isfinite().all()


def test_settings_by_name_are_what_was_published() -> None:
    assert tiny("SIE").weights == SIEWeights(10.0, 4.5, 10.0, 1.0)
    assert tiny("SIE", settings="comparison").weights == SIEWeights(25.0, 25.0, 25.0, 1.0)
    assert tiny("SimCLR").contrast.temperature == 0.5
    assert tiny("SimCLR", settings="paper").contrast.temperature == 0.1
    assert [tiny("EquiMod", settings="paper").predicted_contrast.temperature] == [0.2]
    widths = {"SimCLR": 128, "BYOL": 256}
    for name, out in widths.items():
        assert tiny(name, settings="paper", widths=None).projector.dim == out
    for name, out in {"SimCLR": 2048, "BYOL": 128, "ConditionalBYOL": 128, "EquiMod": 128, "SIE": 1024}.items():
        assert tiny(name, settings="comparison" if name != "SIE" else "paper", widths=None).projector.dim == out


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="invariance_weight must be at least 0; got -1"):
        vicreg(invariance_weight=-1.0)
    with pytest.raises(ValueError, match="trajectory_weight must be at least 0; got -1"):
        VICRegTraj(keep(), keep(), trajectory_weight=-1.0)
    for weight in ("invariance_weight", "variance_weight", "covariance_weight"):
        for kind in (VICReg, VICRegTraj):
            for wrong in (-1.0, math.nan):
                options: dict[str, Any] = {weight: wrong}
                with pytest.raises(ValueError, match=rf"^{weight} must be at least 0; got {wrong}"):
                    kind(keep(), keep(), **options)
    with pytest.raises(ValueError, match="equivariance must be at least 0; got nan"):
        sie(SIEWeights(equivariance=math.nan))


def test_wrong_actions_raise_the_loss_of_a_trained_sen_alone() -> None:
    places = torch.randn(64, 2, 3)
    actions = places.diff(dim=1)
    losses = {}
    for embedder in (None, NoActions()):
        torch.manual_seed(0)
        method = SEN.from_encoder(nn.Linear(3, 8), action_dim=3, view_shape=(3,), widths=(16, 8), embedder=embedder)
        optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
        for _ in range(40):
            method(places, actions).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses[embedder is None] = [method(places, told).loss.item() for told in (actions, actions.roll(1, 0))]
    assert losses[True][1] > losses[True][0] + 0.1
    assert losses[False][1] == losses[False][0]


def test_the_pairs_of_a_method_can_be_drawn_at_random() -> None:
    method = tiny("SEN", pairs=ViewPairs("random", group=Translation(A)))
    assert method(*sequence(batch=4, observed=3, action_dim=A)).loss.isfinite()
    assert isinstance(method.contrast, NTXent)
