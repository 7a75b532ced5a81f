"""The scorecard: what it covers, what it leaves out and says so, and what it is written as."""

import ast
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import seqjepa.evaluation
from seqjepa import NoActions, ViewSequence
from seqjepa.data import Augmentation, AugmentedViews, RotatedViews, ViewLoader
from seqjepa.evaluation import (
    Features,
    Scorecard,
    action_retrieval,
    evaluate,
    extract,
    lidar,
    path_integration,
    prediction_retrieval_error,
    sensitivity,
    transformation_r2,
)
from seqjepa.evaluation._measuring import MEASURES
from seqjepa.groups import Hue, Product, Rotation3D, Translation
from tests.builders import tiny_model
from tests.evaluation.worlds import Exact, Ignorant, batches, both, world


def card_of(model: Any, train: Any, test: Any, **settings: Any) -> Scorecard:
    return evaluate(model, train, test, **{"hidden": (), "progress": False, **settings})


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
    assert "states" not in read
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["card.json"]
    figure = card.figure(tmp_path / "card.png")
    assert (tmp_path / "card.png").stat().st_size > 10_000
    keyed = {axis.get_title().partition(",")[0]: axis for axis in figure.axes if axis.get_legend() is not None}
    assert keyed.keys() == {"Top-1 of a linear probe", "Path integration"}
    for axis in keyed.values():  # over no curve, and on the page
        legend = axis.get_legend().get_window_extent()
        assert not any(legend.overlaps(other.get_window_extent()) for other in figure.axes)
        assert figure.bbox.extents[0] <= legend.x0 < legend.x1 <= figure.bbox.extents[2]
    assert (
        evaluate(model, train, test, ood=test, hidden=(), progress=False).to_dict()["paths"] == card.to_dict()["paths"]
    )


def test_measures_that_are_left_out_are_absent_and_change_no_other() -> None:
    train, test = (world(60, seed=seed) for seed in (0, 1))
    cards = [card_of(Exact(), train, test, ood=test, leave_out=MEASURES[half::2]) for half in (0, 1)]
    for half, card in enumerate(cards):
        left_out = MEASURES[half::2]
        assert card.skipped == dict.fromkeys(left_out, "left out, as asked")
        assert all(f"  {name}: left out, as asked" in str(card) for name in left_out)
        assert not any(getattr(card, name) for name in left_out)
        card.figure()
    whole = card_of(Exact(), train, test, ood=test).to_dict()
    one, other = (card.to_dict() for card in cards)
    assert {name: (other if name in MEASURES[::2] else one)[name] for name in MEASURES} == {
        n: whole[n] for n in MEASURES
    }


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
    bare.figure()
    assert "do not know their group" in bare.skipped["transformations"]


def test_a_model_without_actions_is_measured_too() -> None:
    model = tiny_model(action_dim=1, embedder=NoActions())
    train, test = (batches(RotatedViews(3, 60), (torch.arange(60) + k) % 2) for k in range(2))
    card = evaluate(model, train, test, hidden=(), progress=False)
    assert card.sensitivity is not None
    assert card.sensitivity.loss["actions of other sources"] == pytest.approx(card.sensitivity.loss["as they are"])


def test_a_model_that_predicts_nothing_is_measured_as_far_as_it_goes() -> None:
    exact = Exact()
    parts = SimpleNamespace(encode=exact.encode, embed=exact.embed, aggregate=exact.aggregate)
    card = evaluate(parts, world(60), world(60, seed=1), hidden=(), progress=False)
    assert card.top1 is not None
    assert list(card.top1.knn) == ["z", "state of 4", "mean z of 4"]
    assert card.paths
    assert card.from_states
    assert {"retrieval", "sensitivity", "composition", "pre"} <= set(card.skipped)


def test_regressions_from_states_are_fitted_to_sequences_drawn_from_all() -> None:
    train, test = both(Exact())
    card = card_of(Exact(), train, test, max_sequences=100, seed=3)
    few, others = train.draw(100, seed=3), test.draw(50, seed=3)
    alone = path_integration(Exact(), few, others, hidden=(), seed=3)
    for variant, curve in card.paths.items():
        assert {m: fit.mean for m, fit in curve.items()} == {m: alone[variant][m].mean for m in curve}
    levels = ("mean of z", "exact actions, in order", "exact actions, order-blind")
    assert {name: list(card.paths[name]) for name in ("views only", *levels)} == {  # of one view a level is the answer
        "views only": [1, 2, 3]
    } | {name: [2, 3] for name in levels}
    moved = sensitivity(Exact(), few, others, hidden=(), seed=3)
    assert card.sensitivity is not None
    assert (card.sensitivity.loss, card.sensitivity.top1) == (moved.loss, moved.top1)
    assert card.from_states[1].relative.predictions.shape == (50, 4)
    found, error = action_retrieval(Exact(), test, seed=3), prediction_retrieval_error(Exact(), test, seed=3)
    assert card.retrieval is not None
    assert card.pre is not None
    assert (card.retrieval.interval, card.pre.interval) == (found.interval, error.interval)
    assert card.settings["max_sequences"] == 100


def sorted_classes(per_class: int, seed: int) -> ViewSequence:
    """Ten classes, one after the other, as in folders."""
    sequence = world(10 * per_class, 3, seed)
    labels = torch.arange(10 * per_class) // per_class
    shown = torch.cat([sequence.views, torch.eye(10)[labels][:, None].expand(-1, 3, -1)], dim=-1)
    return sequence._replace(views=shown, labels=labels)


def test_accuracy_is_by_the_paper_s_numbers_of_views_or_those_that_are_asked_for() -> None:
    train, test = (world(60, 9, seed)._replace(group=None) for seed in (0, 1))
    states = [
        list(card.top1.states)
        for num_views in (None, (9, 1))
        if (card := card_of(Summing(), train, test, num_views=num_views)).top1
    ]
    assert states == [[1, 2, 3, 5, 8, 9], [1, 9]]


class Summing(Exact):
    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        return z.sum(dim=1)


class Showing(Exact):
    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        return z.mean(dim=1)

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        return state


def test_data_sorted_by_class_are_covered_in_all_classes() -> None:
    card = card_of(Showing(), sorted_classes(40, 0), sorted_classes(10, 1), max_sequences=100)
    assert card.sensitivity is not None
    assert card.sensitivity.top1["as they are"] > 0.95
    assert card.top1 is not None
    assert card.top1.z.chance == pytest.approx(0.1)


def absent(value: Any, name: str) -> list[str]:
    """Names of the fields that hold nothing, in the results of a card."""
    if value is None or (isinstance(value, Mapping) and not value):
        return [name]
    if isinstance(value, Mapping):
        return [found for key, part in value.items() for found in absent(part, f"{name}.{key}")]
    if is_dataclass(value) and not isinstance(value, type):
        shown = [f.name for f in fields(value) if f.name in ("states", "individual", "top1")]
        return [found for field in shown for found in absent(getattr(value, field), f"{name}.{field}")]
    return []


def short(views: int, **known: Any) -> ViewSequence:
    return ViewSequence(*[x[:, :count] for x, count in zip(world(60), (views, views - 1), strict=False)], **known)


LABELS = {"labels": torch.arange(60) % 2}


@pytest.mark.parametrize(
    ("model", "sequence"),
    [
        (Exact(), world(60)),
        (Exact(), short(1, **LABELS, group=Rotation3D())),
        (Exact(), short(2, **LABELS, group=Rotation3D())),
        (Exact(), short(4)),
        (Exact(), short(4, group=Rotation3D())),
        (Exact(), world(60)._replace(labels=torch.zeros(60, dtype=torch.long))),
        (lambda v: v, world(60)),
        (lambda v: v, short(1)),
        (SimpleNamespace(encode=lambda v: v, embed=lambda a: a, aggregate=Exact().aggregate), world(60)),
    ],
)
def test_whatever_a_card_lacks_it_names(model: Any, sequence: ViewSequence) -> None:
    card = card_of(model, sequence, sequence)
    measures = ("top1", "transformations", "from_states", "paths", "retrieval", "pre", "sensitivity", "composition",
                "out_of_distribution", "collapse")  # fmt: skip
    lacking = {name for measure in measures for name in absent(getattr(card, measure), measure)}
    named = {".".join(part for part in name.split(".") if not part.isdigit()) for name in lacking}
    assert named <= card.skipped.keys()
    assert named or card.skipped
    assert ("lidar" in card.collapse["z"]) != ("collapse.lidar" in card.skipped)
    assert ("state" in card.collapse) != ("collapse.state" in card.skipped)
    two = card.sensitivity is not None and "views in another order" not in card.sensitivity.loss
    assert two == ("sensitivity.views in another order" in card.skipped)
    text = str(card)
    assert all(f"  {name}: {why}" in text for name, why in card.skipped.items())
    assert all(why for why in card.skipped.values())
    known = {"from_states", "paths", "pre", "composition", "out_of_distribution", "collapse.state", "collapse.lidar"}
    assert not [name for name in known & card.skipped.keys() if "Error: " in card.skipped[name]]
    if "collapse.state" in card.skipped:
        assert "an encoder alone" in card.skipped["collapse.state"]


def test_states_that_cannot_be_made_cost_nothing_that_z_has() -> None:
    def fails(z: Tensor, e: Tensor) -> Tensor:
        raise RuntimeError("no states today")

    sequence = world(60)
    whole = card_of(Exact(), sequence, sequence)
    for aggregate, why in ((fails, "no states today"), (lambda z, e: z.mean(1) * torch.nan, "must be finite")):
        model = SimpleNamespace(encode=lambda v: v, embed=lambda a: a, aggregate=aggregate)
        card = card_of(model, sequence, sequence)
        assert card.top1 is not None
        assert whole.top1 is not None
        assert card.top1.z.accuracy == whole.top1.z.accuracy
        assert card.collapse == {"z": whole.collapse["z"]}
        assert why in card.skipped["states"]
        assert why in card.skipped["top1.states"]
        assert "there are no states" in card.skipped["collapse.state"]
        assert "top1" not in card.skipped
        card.figure()


def test_training_and_test_actions_are_of_one_group() -> None:
    model, sequence = tiny_model(action_dim=1), batches(RotatedViews(4, 60), torch.arange(40) % 2)
    other = sequence._replace(group=Translation(1))
    card = card_of(model, sequence, other, ood=other)
    for name in ("transformations", "from_states", "paths", "sensitivity", "out_of_distribution"):
        assert "got Rotation2D(dim=1) in training and Translation(dim=1) in the test" in card.skipped[name]
    unknown = card_of(model, sequence, sequence._replace(group=None))
    assert "do not know their group" in unknown.skipped["paths"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_dtype_has_a_whole_card(dtype: torch.dtype) -> None:
    sequence = world(60, 3)
    sequence = sequence._replace(views=torch.rand(60, 3, 3, 8, 8).to(dtype), actions=sequence.actions.to(dtype))
    card = card_of(tiny_model(action_dim=4).to(dtype), sequence, sequence, ood=sequence)
    assert card.skipped == {}


class Failing(Exact):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no"), torch.OutOfMemoryError("no")])
def test_a_measure_that_fails_does_not_cost_the_card(error: Exception) -> None:
    card = card_of(Failing(error), world(30, 3), world(30, 3, seed=1), num_views=(1,))
    assert card.skipped.keys() == {"retrieval", "pre", "sensitivity", "composition", "out_of_distribution"}
    assert card.skipped["pre"] == f"{type(error).__name__}: {error}"
    assert card.top1 is not None
    assert card.paths
    with pytest.raises(KeyboardInterrupt):
        card_of(
            Failing(KeyboardInterrupt()), *(sequence._replace(labels=None) for sequence in (world(10, 2), world(10, 2)))
        )


def test_a_probe_that_cannot_be_fitted_costs_sensitivity_its_accuracy_alone() -> None:
    labels = torch.arange(60) % 30  # two rows of a class, and regressions see one or none
    train, test = (world(60, 2, seed)._replace(labels=labels) for seed in (0, 1))
    card = card_of(Exact(), train, test, max_sequences=20, num_views=())
    assert card.sensitivity is not None
    assert card.sensitivity.top1 == {}
    assert card.skipped["top1.states"] == "no num_views were asked for"
    assert "ValueError" in card.skipped["sensitivity.top1"]
    assert "sensitivity" not in card.skipped
    assert card.top1 is not None


def test_classes_are_compared_before_anything_is_encoded() -> None:
    def encoder(views: Tensor) -> Tensor:
        return pytest.fail("encoded")

    train, test = world(8), world(8)
    train, test = train._replace(labels=torch.arange(8) % 2), test._replace(labels=torch.arange(8) % 3)
    message = r"Each class of the test set must occur in training; 1 do not: \[2\]"
    with pytest.raises(ValueError, match=message):
        card_of(encoder, train, test)
    with pytest.raises(ValueError, match=message):
        card_of(encoder, [train, train], [test])
    with pytest.raises(TypeError, match="labels must be the class of each sequence, as integers"):
        card_of(encoder, train, test._replace(labels=torch.zeros(8)))
    with pytest.raises(ValueError, match="must be equally long; got 4 and 3 views"):
        card_of(encoder, train, world(8, 3))
    with pytest.raises(ValueError, match="leaves out 2 of its items"):
        card_of(encoder, train, train, ood=ViewLoader([(torch.zeros(3, 4, 4), 0)] * 8, batch_size=3))
    features = extract(lambda v: v, train)
    assert features.labels is not None
    with pytest.raises(TypeError, match="as integers"):
        card_of(encoder, replace(features, labels=features.labels.float()), test)
    with pytest.raises(ValueError, match="8 rows of z, 7 rows of labels"):
        card_of(encoder, replace(features, labels=features.labels[:7]), test)
    in_turn = card_of(lambda v: v, iter([train]), iter([test]))  # known when the encoding is paid for
    assert "1 do not: [2]" in in_turn.skipped["top1"]
    assert in_turn.transformations is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_sequences": 1}, "at least 2; got 1"),
        ({"hidden": (64, 0)}, r"each at least 1, or \(\) for none; got \(64, 0\)"),
        ({"path_rows": 1}, "at least 2; got 1"),
        ({"num_views": (2, 7)}, "from 1 to the 4 views that there are; got 7"),
        ({"num_views": (0,)}, r"num_views \(M_val\) must be .* 1.*; got 0"),
        ({"num_views": 3}, r"lists whole numbers of views, such as \(1, 3, 5\); got 3"),
        ({"leave_out": ("path",)}, "by name, some of top1, .*paths.*; got 'path'"),
        ({"leave_out": "paths"}, r"such as \('paths',\); got 'paths' alone"),
        ({"num_views": (2.5,)}, r"lists whole numbers of views, such as \(1, 3, 5\); got \(2.5,\)"),
    ],
)
def test_settings_are_refused_before_anything_is_encoded(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        card_of(lambda v: pytest.fail("encoded"), world(8), world(8), **settings)
    in_turn = [iter([world(8)]) for _ in range(2)]
    if settings == {"num_views": (2, 7)}:  # known when the encoding is paid for
        card = card_of(Exact(), *in_turn, **settings)
        assert card.top1 is not None
        assert list(card.top1.states) == [2]
        assert card.skipped["top1, state of 7"] == "num_views (M_val) beyond the 4 views that there are"
        return
    with pytest.raises((ValueError, TypeError), match=message):
        card_of(lambda v: v, *in_turn, **settings)


def about_z(n: int, seed: int) -> ViewSequence:
    g = torch.Generator().manual_seed(seed)
    angles = torch.zeros(n, 3, 3)
    angles[..., 2] = torch.rand(n, 3, generator=g)
    q = Rotation3D.from_euler(angles)
    return ViewSequence(Rotation3D.to_matrix(q).flatten(2), Rotation3D().actions(q), q, None, Rotation3D())


def unflipped(n: int, seed: int) -> ViewSequence:
    plain, g = Augmentation(flip=0.0), torch.Generator().manual_seed(seed)
    sampler = AugmentedViews(num_views=3, size=8, observed=plain, predicted=plain)
    return sampler(torch.rand(n, 3, 16, 16, generator=g), generator=g)


@pytest.mark.parametrize(("make", "names"), [(about_z, ("x", "y")), (unflipped, ("crop flip",))])
def test_a_part_of_the_action_that_never_varies_is_left_out_and_named(
    make: Callable[[int, int], ViewSequence], names: tuple[str, ...]
) -> None:
    def encode(views: Tensor) -> Tensor:
        return views.flatten(2)

    card = card_of(encode, make(60, 0), make(60, 1))
    assert card.transformations is not None
    fit = card.transformations.relative
    assert fit.left_out == names
    assert len(fit.per_output) == len(fit.outputs) == fit.predictions.shape[1]
    assert [name for name, r2 in zip(fit.outputs, fit.per_output, strict=True) if math.isnan(r2)] == list(names)
    for name in names:
        assert "never varies" in card.skipped[f"R² of {name}"]
        assert f"R² of {name}" in str(card)
    if make is about_z:
        assert fit.per_output[2] > 0.99
        assert (fit.predictions[:, :2] == 0).all()
        assert card.transformations.relative_degrees is not None
        assert card.transformations.relative_degrees < 5
        rows = [extract(Showing3(), make(60, seed)) for seed in (0, 1)]
        path = path_integration(Showing3(), *rows, num_views=(2,), variants=("views and actions",), hidden=())
        moved = sensitivity(Showing3(), *rows, hidden=())
        assert moved.path_r2["as they are"] == pytest.approx(path["views and actions"][2].mean, abs=1e-5)
    still = make(60, 0)
    nothing = still.group.identity().expand_as(still.actions)
    features = extract(encode, still._replace(actions=nothing, parameters=None))
    with pytest.raises(ValueError, match="no output has any in both training and test"):
        transformation_r2(features, features)


class Showing3(Showing):
    def embed(self, actions: Tensor) -> Tensor:
        return actions


def test_rounding_is_no_variation() -> None:
    def features(seed: int) -> Features:
        g = torch.Generator().manual_seed(seed)
        group = Product({"turn": Rotation3D(), "hue": Hue(), "shift": Translation(1)})
        sequence = about_z(80, seed)
        hue, shift = 1e-9 * torch.randn(80, 3, 1, generator=g), 1e-9 * torch.randn(80, 3, 1, generator=g)
        noisy = sequence.parameters + 1e-8 * torch.randn(80, 3, 4, generator=g)
        t = torch.cat([noisy, hue, shift], dim=-1)
        return extract(lambda v: v, ViewSequence(sequence.views, group.actions(t), t, None, group))

    fit = transformation_r2(features(0), features(1), hidden=())
    assert fit.relative.left_out == ("turn x", "turn y", "hue cos", "hue sin")
    assert fit.relative.outputs[-1] == "shift"  # a unit may be small: nothing says what rounding is


def test_degrees_of_individual_rotations_have_a_chance_of_their_own() -> None:
    def noise(seed: int) -> Features:
        g = torch.Generator().manual_seed(seed)
        q = Rotation3D.from_euler((torch.rand(300, 3, 3, generator=g) - 0.5) * torch.pi)
        views = torch.randn(300, 3, 8, generator=g)
        return extract(lambda v: v * 1, ViewSequence(views, Rotation3D().actions(q), q, None, Rotation3D()))

    card = card_of(lambda v: v, noise(0), noise(1))
    fit = card.transformations
    assert fit is not None
    assert fit.individual_degrees == pytest.approx(fit.individual_chance_degrees, abs=3)
    assert fit.relative_degrees == pytest.approx(fit.chance_degrees, abs=3)
    assert fit.individual_degrees is not None
    assert fit.relative_degrees is not None
    assert fit.relative_degrees > fit.individual_degrees + 10
    assert f"{fit.individual_chance_degrees:.1f}°" in str(card)


def test_lidar_takes_the_views_of_a_source_together() -> None:
    sequence, sources = world(90, 3), torch.arange(30).repeat(3)
    named = extract(lambda v: v, sequence, sources=sources)
    card = card_of(lambda v: v, named, named)
    assert (card.settings["train_sources"], card.settings["test_sources"]) == (30, 30)
    assert (card.settings["train_sequences"], card.settings["test_sequences"]) == (90, 90)
    together = torch.cat([sequence.views[i * 30 : (i + 1) * 30] for i in range(3)], dim=1)
    assert card.collapse["z"]["lidar"] == pytest.approx(lidar(together), rel=1e-4)
    uneven = extract(lambda v: v, sequence, sources=torch.cat([sources[:60], sources[:30].clamp(min=10)]))
    assert card_of(lambda v: v, uneven, uneven).collapse["z"]["lidar"] == pytest.approx(
        lidar(together[:, :6]), rel=1e-4
    )
    alone = extract(lambda v: v, sequence)
    assert card_of(lambda v: v, alone, alone).collapse["z"]["lidar"] == pytest.approx(lidar(sequence.views), rel=1e-6)


def test_the_figure_knows_the_rows_of_its_pictures(tmp_path: Path) -> None:
    train, test = (batches(RotatedViews(3, 60), torch.arange(90) // 45) for _ in range(2))
    card = card_of(lambda v: v.flatten(2), train, test)
    figure = card.figure(tmp_path / "new" / "card.png")
    images = [axis.get_images()[0].get_array() for axis in figure.axes if axis.get_images()]
    assert len(images) == 4 * 6
    z, pictured = card.test.z[:, 0], card.test.pictured
    assert pictured is not None
    near = torch.nn.functional.normalize(z[pictured], dim=1)
    for row in range(4):
        shown = [torch.as_tensor(images[6 * row + i].data).permute(2, 0, 1).flatten() for i in range(6)]
        query = int((z[pictured] - shown[0]).square().sum(dim=1).argmin())
        expected = (near @ near[query]).argsort(descending=True)[1:6]
        torch.testing.assert_close(torch.stack(shown[1:]), z[pictured[expected]])
    assert {int(pictured[0]) < 45, int(pictured[-1]) < 45} == {True, False}


class Counting(Exact):
    """Notes what its aggregator is given, and how often."""

    def __init__(self) -> None:
        self.given: Counter[bytes] = Counter()

    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        self.given[z.numpy().tobytes() + e.numpy().tobytes()] += 1
        return super().aggregate(z, e)


def test_no_state_of_a_card_is_made_twice() -> None:
    model = Counting()
    train, test = both(model)
    card = card_of(model, train, test, num_views=(1, 2, 4))
    assert card.skipped.keys() == {"out_of_distribution"}
    for features in (train, test):
        assert features.e is not None
        for m in (1, 2, 3, 4):
            seen, told = features.z[:, :m], features.e[:, : m - 1]
            assert model.given[seen.numpy().tobytes() + told.numpy().tobytes()] == 1, m


def test_displacements_lie_on_the_diagonal_where_z_tells_them_and_flat_where_it_does_not() -> None:
    slopes = []
    for model in (Exact(), Ignorant()):
        axes = {axis.get_title(): axis for axis in card_of(model, *both(model)).figure().axes}
        shown = next(axis for title, axis in axes.items() if title.startswith("displacement from z"))
        true, read = torch.as_tensor(shown.collections[0].get_offsets().data).T
        slopes.append(((true - true.mean()) * read).sum() / (true - true.mean()).square().sum())
        assert any(title.startswith("displacement from states of 1") for title in axes)
        assert shown.get_xlim() == shown.get_ylim()
    assert slopes[0] > 0.9
    assert abs(slopes[1]) < 0.1


@pytest.mark.parametrize("name", seqjepa.evaluation.__all__)
def test_a_result_cannot_be_changed_and_can_be_a_key(name: str) -> None:
    result = getattr(seqjepa.evaluation, name)
    if is_dataclass(result) and isinstance(result, type):
        parameters = result.__dataclass_params__  # type: ignore[attr-defined]
        assert parameters.frozen
        assert result.__hash__ is not None


def test_no_file_of_the_evaluation_imports_itself_through_others() -> None:
    folder = Path(seqjepa.evaluation.__file__).parent
    graph = {}
    for path in folder.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {(node.module or "").removeprefix("seqjepa.evaluation.") for node in nodes}
        graph[path.stem] = {name for name in names if (folder / f"{name}.py").exists()}

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        while more := {below for above in found | {name} for below in graph[above]} - found:
            found |= more
        return found

    assert {name for name in graph if name in reached(name)} == set()
    assert "_results" in graph["_figure"]


def test_the_figure_of_one_test_sequence_is_drawn() -> None:
    train, test = (ViewSequence(torch.rand(n, 3, 3, 8, 8), *world(n, 3)[1:]) for n in (20, 1))
    card = card_of(tiny_model(action_dim=4), train, test)
    assert any("PCA" in axis.get_title() for axis in card.figure().axes)


@pytest.mark.parametrize("setting", ["device", "dtype"])
def test_a_card_does_not_depend_on_torch_s_defaults(setting: str) -> None:
    model = tiny_model(action_dim=4)
    train, test = (ViewSequence(torch.rand(60, 3, 3, 8, 8), *world(60, 3, seed)[1:]) for seed in (0, 1))
    before = torch.get_default_dtype()
    expected = card_of(model, train, test, ood=test)
    try:
        torch.set_default_device("meta") if setting == "device" else torch.set_default_dtype(torch.float64)
        card = card_of(model, train, test, ood=test)
        card.figure()
        text = str(card)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    assert card.skipped == {}
    assert text == str(expected)
