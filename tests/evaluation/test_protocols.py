"""The protocols on a world that is known exactly, on models that know nothing, and on a small SeqJEPA."""

import inspect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqjepa import ViewSequence
from seqjepa.evaluation import (
    Features,
    Regression,
    action_retrieval,
    aggregate_states,
    composition_error,
    evaluate,
    extract,
    knn_probe,
    linear_probe,
    observation_grid,
    out_of_distribution,
    path_integration,
    prediction_retrieval_error,
    rotation_error,
    sensitivity,
    state_transformation_r2,
    top1,
    transformation_r2,
)
from seqjepa.evaluation._coordinates import coordinate_names
from seqjepa.evaluation._regressors import Asked, Regressor, fit_regressors
from seqjepa.evaluation.shuffles import LAST
from seqjepa.evaluation.transformations import coordinates
from seqjepa.functional import cosine_distance
from seqjepa.groups import Crop, Group, Hue, Product, Rotation2D, Rotation3D, Scale, Translation
from tests.evaluation.worlds import GROUP, IDENTITY, Exact, Ignorant, both, world


@given(seed=st.integers(0, 2**31))
def test_relative_transformations_are_those_of_the_parameters(seed: int) -> None:
    features = extract(Exact(), world(20, 5, seed))
    i, j = torch.randint(5, (2, 20), generator=torch.Generator().manual_seed(seed))
    assert features.elements is not None
    rows = torch.arange(20)
    expected = GROUP.relative(features.elements[rows, i], features.elements[rows, j])
    assert GROUP.distance(features.relative(i, j), expected).max() < 2e-3


def test_what_is_exact_scores_as_such() -> None:
    model, (train, test) = Exact(), both(Exact())
    found = action_retrieval(model, test)
    assert found.mrr == 1.0
    assert list(found.hits) == [1, 2]
    assert prediction_retrieval_error(model, test).error < 1e-3
    composed = composition_error(model, test)
    assert composed.distance < 1e-5
    assert composed.two_steps < 1e-5
    assert composed.chance > 0.1
    fit = transformation_r2(train, test)
    assert fit.relative.mean > 0.9
    assert fit.individual is not None
    assert fit.individual.mean > 0.95
    assert fit.relative_degrees is not None
    assert fit.chance_degrees is not None
    assert fit.relative_degrees < 0.3 * fit.chance_degrees
    assert fit.individual_degrees is not None
    assert fit.individual_degrees < 10
    accuracy = top1(model, train, test, num_views=(1, 4))
    assert accuracy.z.accuracy > 0.95
    assert list(accuracy.states) == [1, 4]


def test_what_knows_no_pose_scores_chance() -> None:
    model, (train, test) = Ignorant(), both(Ignorant())
    found = action_retrieval(model, test)
    assert found.mrr == pytest.approx(found.chance.mrr, abs=0.02)
    fit = transformation_r2(train, test)
    assert abs(fit.relative.mean) < 0.1
    assert fit.individual is not None
    assert abs(fit.individual.mean) < 0.1
    assert top1(model, train, test, num_views=(1,)).z.accuracy > 0.95
    moved = sensitivity(model, train, test)
    assert moved.loss["actions of other sources"] == moved.loss["as they are"]
    assert moved.loss["target of another source"] > moved.loss["as they are"] + 0.5


def test_a_path_is_integrated_from_what_holds_it() -> None:
    model, (train, test) = Exact(), both(Exact())
    curves = path_integration(model, train, test, hidden=())
    assert list(curves["views and actions"]) == [1, 2, 3]
    assert list(curves["state alone"]) == [2, 3]
    assert curves["views and actions"][1].mean > 0.999  # the upcoming action is the answer
    assert all(fit.mean > 0.999 for fit in curves["state alone"].values())  # this state holds the path
    for m in (1, 2, 3):  # where the last view points says a part of where the path led, and no more
        assert curves["views only"][m].mean < curves["views and actions"][m].mean - 0.1
    alone, (train, test) = Ignorant(), both(Ignorant())
    curves = path_integration(alone, train, test, hidden=())
    assert curves["views and actions"][1].mean > 0.999
    assert curves["views and actions"][3].mean < 0.7
    assert curves["state alone"][3].mean < 0.1
    assert path_integration(alone, train, test, num_views=(2,), variants=("views only",), hidden=()).keys() == {
        "views only"
    }


def test_a_variant_of_a_path_does_not_depend_on_the_others() -> None:
    train, test = (extract(Exact(), world(60, seed=seed)) for seed in (0, 1))
    together = path_integration(Exact(), train, test, hidden=())
    for variant, curve in together.items():
        alone = path_integration(Exact(), train, test, variants=(variant,), hidden=())[variant]
        assert all(torch.equal(alone[m].predictions, fit.predictions) for m, fit in curve.items())


def test_a_model_that_uses_its_actions_is_moved_by_other_ones() -> None:
    model, (train, test) = Exact(), both(Exact())
    moved = sensitivity(model, train, test)
    assert moved.loss["as they are"] < 1e-5
    assert moved.loss["last action of another source"] > 0.05
    assert moved.loss["views in another order"] > 0.05
    assert moved.top1["actions of other sources"] == pytest.approx(moved.top1["as they are"], abs=0.05)
    assert moved.path_r2["actions of other sources"] < moved.path_r2["as they are"] - 0.5
    assert sensitivity(model, train, test).path_r2 == moved.path_r2  # one seed, one result
    unlabelled = sensitivity(model, replace(train, labels=None), test)
    assert unlabelled.top1 == {}


def test_states_share_no_view_where_their_transformation_is_asked_for() -> None:
    train, test = both(Exact())
    fit = state_transformation_r2(Exact(), train, test, num_views=2)
    assert fit.relative.mean > 0.8  # the exact state shows the last pose
    assert fit.individual is not None
    assert fit.individual.mean > 0.9
    removed = state_transformation_r2(Ignorant(), *both(Ignorant()), num_views=2)
    assert abs(removed.relative.mean) < 0.15
    with pytest.raises(ValueError, match="sequences of 6 views or more; got 4"):
        state_transformation_r2(Exact(), train, test, num_views=3)


def test_probes_are_fitted_in_distribution_and_read_out_of_it() -> None:
    model = Exact()
    train, test = both(model)
    far = extract(model, world(seed=2, spread=3.0))
    result = out_of_distribution(train, test, far)
    assert result["in distribution"].relative.mean > result["out of distribution"].relative.mean


def test_the_grid_is_that_of_top1() -> None:
    train, test = both(Exact())
    grid = observation_grid({1: Exact(), 3: Exact()}, {1: (train, test), 3: (train, test)}, num_views=(1, 2))
    expected = top1(Exact(), train, test, num_views=(1, 2)).states
    assert {m: fit.accuracy for m, fit in grid[3].items()} == {m: fit.accuracy for m, fit in expected.items()}
    with pytest.raises(ValueError, match=r"got models of M_tr \[1\], features of \[2\]"):
        observation_grid({1: Exact()}, {2: (train, test)}, num_views=(1,))


def test_circular_targets_are_continuous() -> None:
    group: Group = Product({"turn": Rotation2D(), "shift": Translation(2), "hue": Hue()})
    near = torch.tensor([[torch.pi - 1e-4, 1.0, 2.0, 0.4999], [-torch.pi + 1e-4, 1.0, 2.0, -0.4999]])
    assert coordinates(group, near).shape == (2, 6)
    torch.testing.assert_close(*coordinates(group, near), rtol=0, atol=2e-3)
    angle = torch.tensor([[0.3, 1.2]])
    torch.testing.assert_close(coordinates(Rotation2D(2), angle), torch.cat([angle.cos(), angle.sin()], dim=1))
    turns = angle / (2 * torch.pi)
    torch.testing.assert_close(coordinates(Hue(2), turns), torch.cat([angle.cos(), angle.sin()], dim=1))


def test_degrees_find_the_rotation_behind_circular_parts() -> None:
    g = torch.Generator().manual_seed(0)
    group = Product({"hue": Hue(), "rotation": Rotation3D()})

    def features() -> Features:
        angles = (2 * torch.rand(300, 3, 3, generator=g) - 1) * 1.0
        t = torch.cat([torch.rand(300, 3, 1, generator=g), Rotation3D.from_euler(angles)], dim=-1)
        shown = coordinates(group, t)
        return extract(lambda v: v, ViewSequence(shown, group.actions(t), t, None, group))

    fit = transformation_r2(features(), features(), hidden=())
    assert fit.individual_degrees is not None
    assert fit.individual_degrees < 1


def test_sequences_of_one_source_do_not_count_as_independent() -> None:
    train, test = world(100, 3, seed=0), world(40, 3, seed=1)
    test = test._replace(views=test.views + torch.randn(test.views.shape), labels=torch.arange(40) % 2)

    def repeated(sequence: ViewSequence, times: int, named: bool) -> Features:
        sources = torch.arange(len(sequence.views)).repeat(times)
        return extract(Exact(), [sequence] * times, sources=sources if named else None)

    once, unnamed, named = (repeated(test, n, name) for n, name in ((1, False), (9, False), (9, True)))
    fit = repeated(train, 1, False)
    for measure in (
        lambda f: top1(Exact(), fit, f, num_views=()).z,
        lambda f: transformation_r2(fit, f, hidden=()).relative,
        lambda f: path_integration(Exact(), fit, f, num_views=(2,), hidden=())["views only"][2],
    ):
        widths = [(i := measure(f).interval).high - i.low for f in (once, unnamed, named)]
        assert widths[1] < 0.6 * widths[0]
        assert widths[2] > 0.75 * widths[0]
    card = evaluate(Exact(), fit, named, hidden=(), progress=False)
    assert (card.settings["test_sources"], card.settings["test_sequences"]) == (40, 360)


def test_the_limit_of_rows_holds_for_many_sources_too() -> None:
    train, test = both(Exact())
    fit = transformation_r2(train, test, hidden=(), max_pairs=150)
    assert len(fit.relative.predictions) == 50
    assert fit.individual is not None
    assert len(fit.individual.predictions) == 50


@pytest.mark.parametrize("beside", [False, True])
def test_the_sign_of_a_quaternion_is_no_part_of_a_pose(beside: bool) -> None:
    def features(seed: int) -> Features:
        sequence = world(200, 4, seed)
        sign = torch.where(torch.rand(200, 4, 1) < 0.5, -1.0, 1.0)
        features = extract(Exact(), sequence._replace(parameters=sequence.parameters * sign))
        if not beside or features.elements is None:
            return features
        group = Product({"hue": Hue(), "rotation": Rotation3D()})
        hue = torch.rand(200, 4, 1)
        elements = torch.cat([hue, features.elements], dim=-1)
        actions = torch.cat([hue.diff(dim=1), features.actions], dim=-1)
        z = torch.cat([features.z, coordinates(Hue(), hue)], dim=-1)
        return replace(features, group=group, elements=elements, actions=actions, z=z)

    fit = transformation_r2(features(0), features(1), hidden=())
    assert fit.individual is not None
    assert fit.individual.mean > 0.9


def test_states_of_blank_views_know_what_the_actions_give_away() -> None:
    train, test = both(Exact())
    fit = state_transformation_r2(Exact(), train, test, num_views=2)
    assert fit.blank is not None
    assert 0.1 < fit.blank.mean < fit.relative.mean - 0.2  # poses come from a box: actions locate them in it
    other = replace(test, z=test.z + 5)  # what is blank is the mean of training: the views do not enter
    one, again = (state_transformation_r2(Exact(), train, f, num_views=2, hidden=()).blank for f in (test, other))
    assert one is not None
    assert again is not None
    assert again.mean == one.mean
    assert state_transformation_r2(Exact(), train, test, num_views=1, hidden=()).blank is None


@pytest.mark.parametrize("views", [3, 4])
def test_no_view_stays_in_its_place_where_views_are_shuffled(views: int) -> None:
    seen = []

    class Recorder(Exact):
        def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
            seen.append(z)
            return super().aggregate(z, e)

    train, test = (extract(Exact(), world(40, views, seed)) for seed in (0, 1))
    moved = sensitivity(Recorder(), train, test, hidden=())
    told = [name for name in moved.path_r2 if name != LAST]  # whose state is that of the actions as they are
    shuffled = seen[told.index("views in another order")]
    observed = test.z[:, : views - 1]
    assert not (shuffled == observed).all(dim=2).any()
    assert torch.equal(shuffled.sort(dim=1).values, observed.sort(dim=1).values)
    short = sensitivity(Exact(), *(extract(Exact(), world(40, 2, seed)) for seed in (0, 1)), hidden=())
    assert "views in another order" not in short.loss


def test_what_sensitivity_measures_as_it_is_is_what_the_other_protocols_do() -> None:
    train, test = both(Exact())
    m, moved = 3, sensitivity(Exact(), train, test, hidden=())
    path = path_integration(Exact(), train, test, num_views=(m,), variants=("views and actions",), hidden=())
    expected = path["views and actions"][m]
    assert moved.path_r2["as they are"] == pytest.approx(expected.mean, abs=1e-5)
    assert abs(expected.mean - expected.pooled) > 0.01  # one scalar mean would show
    assert moved.top1["as they are"] == pytest.approx(top1(Exact(), train, test, num_views=(m,)).states[m].accuracy)
    alone = sensitivity(Ignorant(), *both(Ignorant()), hidden=())
    model, (_, test) = Ignorant(), both(Ignorant())
    assert test.target is not None
    predicted = model.predict(test.z[:, :m].mean(dim=1), torch.zeros(300, 4))
    assert alone.loss["as they are"] == pytest.approx(
        cosine_distance(predicted, test.target[:, m]).mean().item(), abs=1e-6
    )


class Telling(Ignorant):
    """Its state is what it was told; it keeps what it was asked."""

    def __init__(self) -> None:
        self.told: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.upcoming: list[Tensor] = []

    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        self.told.append(e)
        self.seen.append(z)
        return torch.cat([z.mean(dim=1), e.flatten(1)], dim=1)

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        self.upcoming.append(e)
        return 7 * state[:, :IDENTITY]


@pytest.mark.parametrize("times", [1, 4])
def test_no_source_is_told_its_own_actions_where_they_are_shuffled(times: int) -> None:
    sequence = world(24)
    sources = torch.arange(24) // times
    own = Rotation3D.random(24 // times, 1, generator=torch.Generator().manual_seed(0))[sources].expand(-1, 3, -1)
    test = extract(Ignorant(), sequence._replace(actions=own), sources=sources)
    model = Telling()
    moved = sensitivity(model, extract(Ignorant(), world(40, seed=1)), test, hidden=())
    names = list(moved.path_r2)
    aggregated = [name for name in names if name != LAST]  # whose state is that of the actions as they are
    *told, _ = model.told  # the last is of the training sources
    for name, actions in zip(aggregated, told, strict=True):
        assert (actions == own[:, :2]).all(dim=2).any() == (name != "actions of other sources")
    for name, upcoming in zip(names, model.upcoming, strict=True):
        assert (upcoming == own[:, 2]).all(dim=1).any() == (
            "other sources" not in name and "another source" not in name
        )
    assert names.index(LAST) == 2
    target = test.target
    assert target is not None
    others = [
        cosine_distance(7 * test.z[i, :3].mean(dim=0), target[j, 3])
        for i in range(24) for j in range(24) if sources[i] != sources[j]
    ]  # fmt: skip
    assert moved.loss["target of another source"] == pytest.approx(torch.stack(others).mean().item(), abs=1e-5)


def test_a_prediction_is_fed_back_at_the_length_of_a_view() -> None:
    model, test = Telling(), extract(Ignorant(), world(30))
    composition_error(model, test)
    fed_back = next(z for z in model.seen if z.shape[1] == 2)
    assert torch.equal(fed_back[:, 0], test.z[:, 0])
    torch.testing.assert_close(fed_back[:, 1].norm(dim=1), test.z[:, 0].norm(dim=1))
    assert not torch.allclose(fed_back[:, 1].norm(dim=1), (7 * test.z[:, 0]).norm(dim=1))


class Shifting(Exact):
    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        return z[:, -1]

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        return state + torch.cat([e, e.new_zeros(len(e), state.shape[1] - e.shape[1])], dim=1)


def test_chance_of_composition_is_of_other_sources_in_any_order() -> None:
    g = torch.Generator().manual_seed(0)
    source = torch.arange(10).repeat_interleave(8)
    who = torch.randn(10, 1, 4, generator=g)[source].expand(-1, 4, -1)
    t = torch.rand(80, 4, 2, generator=g)
    found = []
    for order in (torch.arange(80), torch.randperm(80, generator=g)):
        views = torch.cat([t, who], dim=-1)[order]
        sequence = ViewSequence(views, t.diff(dim=1)[order], t[order], None, Translation(2))
        found.append(composition_error(Shifting(), extract(Shifting(), sequence, sources=source[order])))
    assert found[0].chance == pytest.approx(found[1].chance, abs=1e-6)
    first, second, third = (torch.cat([t[:, k], who[:, 0]], dim=1) for k in range(3))
    fed_back = second / second.norm(dim=1, keepdim=True) * first.norm(dim=1, keepdim=True)
    two = Shifting().predict(fed_back, t[:, 2] - t[:, 1])
    others = [cosine_distance(two[i], third[j]) for i in range(80) for j in range(80) if source[i] != source[j]]
    assert found[0].chance == pytest.approx(torch.stack(others).mean().item(), abs=1e-5)
    assert found[0].distance == pytest.approx(cosine_distance(two, third).mean().item(), abs=1e-5)
    assert found[0].two_steps == pytest.approx(found[0].distance, abs=1e-5)
    assert found[0].one_step < 1e-5
    assert found[0].relative == pytest.approx(found[0].distance / found[0].chance)
    assert math.isnan(replace(found[0], distance=0.0, chance=0.0).relative)  # a constant predictor
    one = extract(Shifting(), sequence, sources=torch.zeros(80, dtype=torch.long))
    with pytest.raises(ValueError, match="chance two sources; got 4 views of 1 sources"):
        composition_error(Shifting(), one)
    with pytest.raises(ValueError, match="at least two sources and two views; got 1 sources of 4 views"):
        sensitivity(Shifting(), one, one)


@pytest.mark.parametrize(
    "protocol",
    [evaluate, out_of_distribution, path_integration, sensitivity, state_transformation_r2, transformation_r2],
)
def test_regressions_are_of_one_width_throughout(protocol: Callable[..., Any]) -> None:
    assert inspect.signature(protocol).parameters["hidden"].default == (256, 256)


def test_twenty_neighbours_vote_or_all_that_there_are() -> None:
    labels = torch.arange(300) % 2
    one, other = (Features(z=torch.randn(300, 1, 300), actions=torch.zeros(300, 0, 1), labels=labels) for _ in range(2))
    for rows, k in ((300, 20), (12, 12)):
        train = one.draw(rows)
        assert train.labels is not None
        found = top1(None, train, other).knn["z"].predictions
        by_k = [knn_probe(train.z[:, 0], train.labels, other.z[:, 0], labels, k=n).predictions for n in (k, k - 1)]
        assert torch.equal(found, by_k[0])
        assert len({top1(None, train, other, seed=seed).knn["z"].interval for seed in range(3)}) > 1
        assert not torch.equal(found, by_k[1])


def test_chance_is_that_of_the_commonest_class_of_training() -> None:
    train, test = both(Exact())
    labels = torch.arange(300)
    train, test = replace(train, labels=(labels % 3 > 0).long()), replace(test, labels=(labels % 10 == 0).long())
    assert top1(Exact(), train, test, num_views=()).z.chance == pytest.approx(0.1)


def numbered(n: int, views: int) -> Features:
    """z tells the source and the view, and so do the parameters."""
    number = torch.arange(n * views).view(n, views, 1).float()
    t = torch.cat([number // views, number % views], dim=-1)
    return extract(lambda v: v, ViewSequence(t, t.diff(dim=1), t, None, Translation(2)))


def rows_of(monkeypatch: pytest.MonkeyPatch, features: Features, **settings: Any) -> list[tuple[Tensor, ...]]:
    """What `transformation_r2` regresses: features, targets and sources of training, relative and individual."""
    asked: list[Asked] = []

    def spy(given: Sequence[Asked], **options: Any) -> list[Regressor]:
        asked.extend(given)
        return fit_regressors(given, **options)

    monkeypatch.setattr("seqjepa.evaluation._fits.fit_regressors", spy)
    transformation_r2(features, features, hidden=(), **settings)
    monkeypatch.undo()
    return [(one.x, one.y, cast(Tensor, one.sources)) for one in asked]


def test_pairs_are_of_two_views_of_a_source_and_drawn_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    features = numbered(30, 4)
    every = rows_of(monkeypatch, features)[0][0].view(-1, 4)
    assert len(every) == len(every.unique(dim=0)) == 30 * 12  # all ordered pairs, each once
    (x, y, sources), (single, parameters, _) = rows_of(monkeypatch, features, max_pairs=90)
    assert len(x) == 90
    assert (x[:, 0] == x[:, 2]).all()
    assert (x[:, 1] != x[:, 3]).all()
    assert sources is not None
    assert torch.equal(sources, x[:, 0].long())
    assert torch.equal(sources.bincount(), torch.full((30,), 3))  # as many of each
    assert torch.equal(y, x[:, 2:] - x[:, :2])
    pairs = {(int(a), int(b)) for a, b in x[:, [1, 3]]}
    assert len(pairs) == 12
    assert torch.equal(single, parameters)
    assert len(single) == len(single.unique(dim=0)) == 90
    assert set(single[:, 1].tolist()) == {0, 1, 2, 3}
    assert not torch.equal(rows_of(monkeypatch, features, max_pairs=90, seed=1)[0][0], x)
    few = rows_of(monkeypatch, features, max_pairs=20)
    assert len(few[0][0]) == len(few[1][0]) == 20
    drawn = few[0][2]
    assert drawn is not None
    assert len(drawn.unique()) == 20
    assert drawn.max() > 20  # sources from everywhere


def test_every_probe_is_told_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = torch.arange(60) // 2
    train = extract(Exact(), world(60), sources=sources)
    test = extract(Exact(), world(60, seed=1), sources=sources)
    told: list[tuple[str, Tensor, Tensor]] = []  # the probe, its rows, their sources

    def spied(real: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*rows: Tensor, **options: Any) -> Any:
            if real.__name__ == "linear_probe":
                told.append((f"{real.__name__} fit", rows[0], options["train_sources"]))
            if "test_sources" in options:
                told.append((f"{real.__name__} read", rows[2], options["test_sources"]))
            if real.__name__ == "rotation_error":
                told.append((real.__name__, rows[0], options["sources"]))
            return real(*rows, **options)

        return spy

    def fits(asked: Sequence[Asked], **options: Any) -> list[Regressor]:
        told.extend(("regression fit", one.x, cast(Tensor, one.sources)) for one in asked)
        return fit_regressors(asked, **options)

    def read(regressor: Regressor, test: Asked) -> Regression:
        told.append(("regression read", test.x, cast(Tensor, test.sources)))
        return reading(regressor, test)

    reading = Regressor.read
    for module in ("accuracy", "shuffles"):
        monkeypatch.setattr(f"seqjepa.evaluation.{module}.linear_probe", spied(linear_probe))
    monkeypatch.setattr("seqjepa.evaluation.accuracy.knn_probe", spied(knn_probe))
    monkeypatch.setattr("seqjepa.evaluation._fits.fit_regressors", fits)
    monkeypatch.setattr(Regressor, "read", read)
    monkeypatch.setattr("seqjepa.evaluation._fits.rotation_error", spied(rotation_error))
    top1(Exact(), train, test, num_views=(1, 2))
    transformation_r2(train, test, hidden=())
    state_transformation_r2(Exact(), train, test, num_views=2, hidden=())
    path_integration(Exact(), train, test, hidden=())
    sensitivity(Exact(), train, test, hidden=())
    assert Counter(name for name, _, _ in told) == {
        "linear_probe fit": 4 + 1,
        "linear_probe read": 4,  # shuffled states have no interval
        "knn_probe read": 3,
        "regression fit": 2 + 6 + 20 + 1,
        "regression read": 2 + 6 + 20 + 4 + 1,  # two readings of a robbed probe, at two lengths
        "rotation_error": 2 + 2,
    }
    assert all(len(rows) == len(of) and len(of.unique()) == 30 for _, rows, of in told)


def test_sequences_out_of_distribution_are_read_by_the_very_probes_of_those_in_it() -> None:
    train, test, ood = (extract(Exact(), world(60, 3, seed, spread)) for seed, spread in ((0, 0.5), (1, 0.5), (2, 1.0)))
    settings: dict[str, Any] = {"hidden": (8,), "seed": 1}
    both_sets = out_of_distribution(train, test, ood, **settings)
    for name, features in (("in distribution", test), ("out of distribution", ood)):
        alone, found = transformation_r2(train, features, **settings), both_sets[name]
        assert found.individual is not None
        assert alone.individual is not None
        for of_both, one in ((found.relative, alone.relative), (found.individual, alone.individual)):
            assert torch.equal(of_both.predictions, one.predictions)
            assert (of_both.mean, of_both.interval, of_both.steps) == (one.mean, one.interval, one.steps)


@pytest.mark.parametrize("max_sources", [20, 2000])
def test_pre_searches_sequences_drawn_from_all(max_sources: int) -> None:
    test = extract(Exact(), world(60)._replace(labels=None))
    found = prediction_retrieval_error(Exact(), test, max_sources=max_sources, seed=2)
    some = test.draw(max_sources, seed=2)
    expected = prediction_retrieval_error(Exact(), some, seed=2)
    assert (found.error, found.interval, found.chance) == (expected.error, expected.interval, expected.chance)
    assert (found.chance == prediction_retrieval_error(Exact(), test).chance) == (max_sources > 60)


@pytest.mark.parametrize("views", [2, 5])
def test_an_ignorant_predictor_has_the_pre_of_chance(views: int) -> None:
    class Same(Exact):
        def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
            return z[:, -1]

        def predict(self, state: Tensor, e: Tensor) -> Tensor:
            return state

    g = torch.Generator().manual_seed(0)
    q, z = Rotation3D.random(300, views, generator=g), torch.randn(300, views, 16, generator=g)
    test = extract(Same(), ViewSequence(z, GROUP.actions(q), q, None, GROUP))
    found = prediction_retrieval_error(Same(), test)
    assert found.interval.low < found.chance < found.interval.high
    expected = 1 - (q[:, :1] * q[:, 1:]).sum(dim=-1).square()  # each query finds the first view
    assert found.error == pytest.approx(expected.mean().item(), abs=1e-5)
    one = extract(Same(), ViewSequence(z[:, :1], q[:, :0], q[:, :1], None, GROUP))
    with pytest.raises(ValueError, match="PRE predicts other views than the first; got sequences of one view"):
        prediction_retrieval_error(Same(), one)


def test_intervals_of_retrieval_are_over_sources() -> None:
    once = extract(Exact(), world(30))
    noise = 2 * torch.randn(30, 4, 15, generator=torch.Generator().manual_seed(0))
    assert once.target is not None
    once = replace(once, z=once.z + noise, target=once.target)
    many: dict[str, Any] = {f: torch.cat([getattr(once, f)] * 9) for f in ("z", "actions", "e", "target", "elements")}
    unnamed = replace(once, labels=None, pictures=None, pictured=None, **many)
    named = replace(unnamed, sources=torch.arange(30).repeat(9))
    for measure in (action_retrieval, prediction_retrieval_error):
        widths = [(i := measure(Exact(), f).interval).high - i.low for f in (once, unnamed, named)]
        assert widths[1] < 0.6 * widths[0]
        assert widths[2] > 0.75 * widths[0]
        assert measure(Exact(), once, seed=1).interval != measure(Exact(), once).interval


def test_every_number_of_a_target_has_a_name() -> None:
    group = Product({
        "turn": Rotation3D(), "angles": Rotation2D(2), "crop": Crop(), "hue": Hue(), "size": Scale(),
        "shift": Translation(2), "inner": Product({"hue": Hue(), "blur": Translation(1)}),
    })  # fmt: skip
    names = coordinate_names(group)
    assert len(set(names)) == len(names) == coordinates(group, group.identity()[None]).shape[1]
    assert names[:9] == ("turn x", "turn y", "turn z", "turn w", "angles cos 0", "angles cos 1", "angles sin 0",
                         "angles sin 1", "crop y")  # fmt: skip
    assert names[-8:] == ("hue cos", "hue sin", "size", "shift 0", "shift 1", "inner hue cos", "inner hue sin",
                          "inner blur")  # fmt: skip
    fit = transformation_r2(*[numbered_line(60)] * 2, hidden=()).relative
    assert (fit.outputs, fit.left_out) == (("action",), ())


def numbered_line(n: int) -> Features:
    t = torch.rand(n, 3, 1, generator=torch.Generator().manual_seed(0))
    return extract(lambda v: v, ViewSequence(t, t.diff(dim=1), t, None, Translation(1)))


SHORT = extract(Exact(), world(10, 2))
ALONE = extract(lambda v: v, world(10, 3))
FULL = extract(Exact(), world(10, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: observation_grid({1: Exact()}, {1: (ALONE, ALONE)}, num_views=(1,)), "M_tr 1 are those of an encoder"),
        (lambda: aggregate_states(Exact(), FULL, 4), r"M_val\) must be from 1 to the 3 views that there are; got 4"),
        (lambda: aggregate_states(Exact(), FULL, 2, start=2), "must be from 1 to the 1 views that there are; got 2"),
        (lambda: aggregate_states(Exact(), ALONE, 1), "these are the features of an encoder alone"),
        (lambda: top1(Exact(), replace(FULL, labels=None), FULL), "Accuracy needs labels; the sequences have none"),
        (lambda: top1(Exact(), FULL, FULL, num_views=(9,)), "from 1 to the 3 views that there are; got 9"),
        (lambda: replace(FULL, group=None).relative(0, 1), "these features have no group"),
        (lambda: path_integration(Exact(), FULL, FULL, num_views=(3,)), r"from 1 to 2 in .* 3 views; got \(3,\)"),
        (lambda: path_integration(Exact(), FULL, FULL, variants=("blank",)), r"variants .*; got \('blank',\)"),
        (lambda: path_integration(Exact(), ALONE, ALONE), "features of an encoder alone"),
        (lambda: action_retrieval(Exact(), ALONE), "features of an encoder alone"),
        (lambda: prediction_retrieval_error(Exact(), replace(FULL, elements=None)), "PRE compares absolute rotations"),
        (lambda: composition_error(Exact(), SHORT), "Two steps need three views, .* got 2 views of 10 sources"),
        (lambda: sensitivity(Exact(), FULL, extract(Exact(), world(1, 3))), "at least two sources .* got 1 sources"),
        (lambda: extract(Exact(), []), "There is nothing to evaluate"),
        (lambda: FULL.draw(0), "count is a number of sequences, at least 1; got 0"),
        (lambda: evaluate(Exact(), FULL, FULL, max_sequences=1, progress=False), "at least 2; got 1"),
        (lambda: extract(Exact(), world(4), batch_size=0), "batch_size is .*, at least 1; got 0"),
        (lambda: extract(lambda v: v.flatten(1), world(4)), r"An encoder maps views \(B, T, …\) to z \(B, T, D\)"),
        (lambda: extract(lambda v: v * torch.nan, world(4)), "returned NaN or infinity for 4 sources"),
        (lambda: extract(Exact(), world(4)._replace(labels=torch.zeros(3))), r"labels must be \(B,\), .* 4 sequences"),
        (lambda: extract(Exact(), world(4), sources=torch.arange(3)), "one for each of the 4 sequences; got .* shape"),
        (lambda: transformation_r2(FULL, FULL, max_pairs=2), "max_pairs is .*, at least 3; got 2"),
        (lambda: path_integration(Exact(), FULL, SHORT, num_views=(2,)), r"from 1 to 1 in .* 2 views; got \(2,\)"),
        (lambda: extract(Exact(), [world(4, 3), world(4, 4)]), "must have one number of views"),
        (lambda: extract(Exact(), world(4)._replace(actions=torch.zeros(4, 1, 4))), "V views need V − 1 actions"),
        (lambda: evaluate(Exact(), FULL, SHORT, progress=False), "must be equally long; got 3 and 2 views"),
        (lambda: evaluate(Exact(), world(3), world(3), progress=False, num_views=(7,)), "the 4 views .* got 7"),
    ],
)  # fmt: skip
def test_bad_inputs_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
