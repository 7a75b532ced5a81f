"""The protocols on a world that is known exactly, on models that know nothing, and on a small SeqJEPA."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqjepa import NoActions, ViewSequence
from seqjepa.data import AugmentedViews, RotatedViews
from seqjepa.evaluation import (
    Features,
    action_retrieval,
    aggregate_states,
    composition_error,
    evaluate,
    extract,
    observation_grid,
    out_of_distribution,
    path_integration,
    prediction_retrieval_error,
    sensitivity,
    state_transformation_r2,
    top1,
    transformation_r2,
)
from seqjepa.evaluation.transformations import coordinates
from seqjepa.groups import Crop, Group, Hue, Product, Rotation2D, Rotation3D, Scale, Translation
from tests.builders import tiny_model

GROUP = Rotation3D()
IDENTITY = 6  # numbers that say which source it is


def world(n: int = 300, views: int = 4, seed: int = 0, spread: float = 1.0) -> ViewSequence:
    """Views that are what they show: a rotation matrix and the source's own numbers, whose first gives the class."""
    g = torch.Generator().manual_seed(seed)
    angles = (2 * torch.rand(n, views, 3, generator=g) - 1) * spread
    q = Rotation3D.from_euler(angles)
    who = torch.randn(n, 1, IDENTITY, generator=g).expand(n, views, IDENTITY)
    shown = torch.cat([Rotation3D.to_matrix(q).flatten(2), who], dim=-1)
    return ViewSequence(shown, GROUP.actions(q), q, (who[:, 0, 0] > 0).long(), GROUP)


class Exact:
    """A model that computes what seq-JEPA learns: z shows the pose, the state sums the source up and where it is."""

    def encode(self, views: Tensor) -> Tensor:
        return views

    def target(self, views: Tensor) -> Tensor:
        return views

    def embed(self, actions: Tensor) -> Tensor:
        return actions

    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        path = GROUP.path_composition(e) if e.abs().sum() else torch.zeros(len(z), 4)
        return torch.cat([z[:, -1, :9], z[..., 9:].mean(dim=1), path], dim=-1)

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        turned = state[:, :9].unflatten(1, (3, 3)) @ Rotation3D.to_matrix(e)
        return torch.cat([turned.flatten(1), state[:, 9 : 9 + IDENTITY]], dim=-1)


class Ignorant(Exact):
    """One that keeps the source's numbers and ignores pose and actions: invariant throughout."""

    def encode(self, views: Tensor) -> Tensor:
        return views[..., 9:] + 0

    def target(self, views: Tensor) -> Tensor:
        return views[..., 9:] + 0

    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        return z.mean(dim=1)

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        return state


def both(model: Any, views: int = 4) -> tuple[Features, Features]:
    return extract(model, world(seed=0, views=views)), extract(model, world(seed=1, views=views))


@given(seed=st.integers(0, 2**31))
def test_relative_transformations_are_those_of_the_parameters(seed: int) -> None:
    features = extract(Exact(), world(20, 5, seed))
    i, j = torch.randint(5, (2, 20), generator=torch.Generator().manual_seed(seed))
    assert features.elements is not None
    rows = torch.arange(20)
    expected = GROUP.relative(features.elements[rows, i], features.elements[rows, j])
    assert GROUP.distance(features.relative(i, j), expected).max() < 2e-3


def test_relative_transformations_are_actions_where_parameters_are_not() -> None:
    group = Product({"window": Crop(), "size": Scale()})
    g = torch.Generator().manual_seed(0)
    sides = torch.randn(20, 4, 3, generator=g).exp()
    flip = torch.randint(2, (20, 4, 1), generator=g).float()
    t = torch.cat([torch.randn(20, 4, 2, generator=g), sides[..., :2], flip, sides[..., 2:]], dim=-1)
    features = extract(lambda v: v, ViewSequence(t, group.actions(t), t, None, group))
    torch.testing.assert_close(features.relative(3, 1), group.relative(t[:, 3], t[:, 1]), rtol=1e-3, atol=1e-3)


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


def batches(sampler: Any, labels: Tensor, channels: int = 3, size: int = 8) -> ViewSequence:
    g = torch.Generator().manual_seed(int(labels.sum()))
    images = torch.rand(len(labels), channels, size, size, generator=g) * (0.3 + 0.7 * labels[:, None, None, None])
    sequence: ViewSequence = sampler(images, generator=g)
    return sequence._replace(labels=labels)


def test_extraction_moves_nothing_of_the_model_and_does_not_depend_on_chunks() -> None:
    model = tiny_model(action_dim=1).train()
    model.encoder.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    sequence = batches(RotatedViews(3), torch.arange(10) % 2)
    whole = extract(model, sequence, batch_size=10)
    for batch_size in (1, 3):
        chunked = extract(model, sequence, batch_size=batch_size)
        for name in ("z", "e", "target", "labels", "elements", "pictures"):
            torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    several = extract(model, [sequence._replace(views=sequence.views), sequence])
    assert len(several.z) == 20
    assert not whole.z.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert whole.e is not None
    expected = model.eval().aggregate(whole.z[:, :2], whole.e[:, :1])
    torch.testing.assert_close(aggregate_states(model, whole, 2), expected)


def test_parameters_by_name_become_elements_where_the_group_names_them() -> None:
    sequence = batches(AugmentedViews(3, 8), torch.arange(6) % 2)
    assert extract(lambda v: v.flatten(2), sequence).elements is None  # crops need the image's size
    sequence = batches(RotatedViews(3), torch.arange(6) % 2)
    elements = extract(lambda v: v.flatten(2), sequence).elements
    assert elements is not None
    torch.testing.assert_close(elements, sequence.parameters)


def test_the_scorecard_holds_everything_and_is_written_whole(tmp_path: Path) -> None:
    model = tiny_model(action_dim=1)
    train, test = (batches(RotatedViews(4, 60), (torch.arange(80) + k) % 2) for k in range(2))
    card = evaluate(model, train, test, ood=test, hidden=(), progress=False)
    assert set(card.skipped) == {"pre"}
    assert card.top1 is not None
    assert list(card.top1.states) == [1, 2, 3, 4]
    assert list(card.from_states) == [1, 2]
    text = str(card)
    for words in ("80 training and 80 test", "top-1, state of 4", "R² relative, z pairs", "R² path, views and actions",
                  "MRR", "two steps against", "RankMe, state", "out of distribution", "loss, target of another source",
                  "no rotations of space are known"):  # fmt: skip
        assert words in text, words
    card.to_json(tmp_path / "new" / "card.json")
    read = json.loads((tmp_path / "new" / "card.json").read_text(encoding="utf-8"))
    assert read["top1"]["z"]["accuracy"] == card.top1.z.accuracy
    assert read["paths"]["views and actions"]["1"]["mean"] == card.paths["views and actions"][1].mean
    assert "test" not in read
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["card.json"]
    figure = card.figure(tmp_path / "card.png")
    assert (tmp_path / "card.png").stat().st_size > 10_000
    assert any("Path integration" in axis.get_title() for axis in figure.axes)
    assert (
        evaluate(model, train, test, ood=test, hidden=(), progress=False).to_dict()["paths"] == card.to_dict()["paths"]
    )


def test_an_encoder_alone_is_measured_as_far_as_it_goes(tmp_path: Path) -> None:
    train, test = (batches(RotatedViews(3, 60), (torch.arange(60) + k) % 2) for k in range(2))
    card = evaluate(lambda v: v.flatten(2), train, test, hidden=(), progress=False)
    assert card.top1 is not None
    assert card.transformations is not None
    assert card.top1.states == {}
    assert card.states is None
    assert "an encoder alone" in card.skipped["paths"]
    card.figure(tmp_path / "card.png")
    bare = evaluate(lambda v: v.flatten(2), train._replace(labels=None, group=None), test, hidden=(), progress=False)
    assert "no labels" in bare.skipped["top1"]
    assert "do not know their group" in bare.skipped["transformations"]


def test_regressions_from_states_are_fitted_to_the_first_sequences() -> None:
    train, test = both(Exact())
    few, others = train.first(100), test.first(50)
    assert train.elements is not None
    assert few.elements is not None
    assert len(few.z) == len(few.actions) == 100
    assert torch.equal(few.elements, train.elements[:100])
    assert len(train.first(10_000).z) == len(train.z)
    card = evaluate(Exact(), train, test, hidden=(), max_sequences=100, progress=False)
    alone = path_integration(Exact(), few, others, hidden=())
    for variant, curve in alone.items():
        assert {m: fit.mean for m, fit in card.paths[variant].items()} == {m: fit.mean for m, fit in curve.items()}


def test_a_model_without_actions_is_measured_too() -> None:
    model = tiny_model(action_dim=1, embedder=NoActions())
    train, test = (batches(RotatedViews(3, 60), (torch.arange(60) + k) % 2) for k in range(2))
    card = evaluate(model, train, test, hidden=(), progress=False)
    assert card.sensitivity is not None
    assert card.sensitivity.loss["actions of other sources"] == pytest.approx(card.sensitivity.loss["as they are"])


def normed(images: Tensor) -> Tensor:
    """An encoder whose batch norm is hidden behind a function."""
    return NORM(images.flatten(2).flatten(0, 1)).unflatten(0, images.shape[:2])


NORM = torch.nn.BatchNorm1d(15)


class Holder:
    def __init__(self, norm: torch.nn.Module) -> None:
        self.norm = norm

    def __call__(self, views: Tensor) -> Tensor:
        return normed(views)


@pytest.mark.parametrize(
    "encoder", [normed, lambda v: NORM(v.flatten(0, 1)).unflatten(0, v.shape[:2]), partial(normed), Holder(NORM)]
)
def test_modules_behind_a_function_are_in_eval_mode_too(encoder: Any) -> None:
    NORM.train()
    before = NORM.running_mean.clone() if NORM.running_mean is not None else None
    extract(encoder, world(8, 3))
    torch.testing.assert_close(NORM.running_mean, before, rtol=0, atol=0)
    assert NORM.training


def test_what_comes_in_turn_is_cut_and_only_features_are_kept() -> None:
    seen = []

    def encoder(views: Tensor) -> Tensor:
        seen.append(len(views))
        return views * 1

    features = extract(encoder, [world(100, 3), world(30, 3)], batch_size=32)
    assert max(seen) == 32
    assert len(features.z) == 130
    sequence = world(100, 3)
    for part in (features, extract(encoder, sequence, batch_size=32)):
        assert part.pictures is not None
        assert part.pictures.shape[0] == 64
        assert part.pictures.untyped_storage().nbytes() == part.pictures.nbytes


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
    other = replace(test, z=test.z.flip(0))
    again = state_transformation_r2(Exact(), train, other, num_views=2).blank
    assert again is not None
    assert again.mean == fit.blank.mean  # the views do not enter
    assert state_transformation_r2(Exact(), train, test, num_views=1).blank is None


@pytest.mark.parametrize("views", [3, 4])
def test_no_view_stays_in_its_place_where_views_are_shuffled(views: int) -> None:
    seen = []

    class Recorder(Exact):
        def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
            seen.append(z)
            return super().aggregate(z, e)

    train, test = (extract(Exact(), world(40, views, seed)) for seed in (0, 1))
    moved = sensitivity(Recorder(), train, test, hidden=())
    shuffled = seen[list(moved.path_r2).index("views in another order")]
    observed = test.z[:, : views - 1]
    assert not (shuffled == observed).all(dim=2).any()
    assert torch.equal(shuffled.sort(dim=1).values, observed.sort(dim=1).values)
    short = sensitivity(Exact(), *(extract(Exact(), world(40, 2, seed)) for seed in (0, 1)), hidden=())
    assert "views in another order" not in short.loss


def test_a_model_that_predicts_nothing_is_measured_as_far_as_it_goes() -> None:
    exact = Exact()
    parts = SimpleNamespace(encode=exact.encode, embed=exact.embed, aggregate=exact.aggregate)
    card = evaluate(parts, world(60), world(60, seed=1), hidden=(), progress=False)
    assert card.top1 is not None
    assert list(card.top1.knn) == ["z", "state of 4"]
    assert card.paths
    assert card.from_states
    assert {"retrieval", "sensitivity", "composition", "pre"} <= set(card.skipped)


SHORT = extract(Exact(), world(10, 2))
ALONE = extract(lambda v: v, world(10, 3))
FULL = extract(Exact(), world(10, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate_states(Exact(), FULL, 4), r"M_val\) must be from 1 to the 3 views that there are; got 4"),
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
        (lambda: FULL.first(0), "count is a number of sequences, at least 1; got 0"),
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
