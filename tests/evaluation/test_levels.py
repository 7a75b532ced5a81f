"""The levels of knowing nothing: an untrained twin, exact actions, the mean of z, a robbed probe, many draws."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqjepa import ViewSequence
from seqjepa.evaluation import (
    Features,
    MeanAggregate,
    Scorecard,
    aggregate_states,
    evaluate,
    extract,
    invariance,
    knn_r2,
    path_integration,
    redraw,
    regression_r2,
    state_transformation_r2,
    top1,
)
from seqjepa.evaluation._exact import in_order, order_blind
from seqjepa.evaluation.invariance import share_between
from seqjepa.groups import Translation
from tests.builders import tiny_model
from tests.evaluation.worlds import GROUP, Exact, Ignorant, both, world


class Untrained(Exact):
    """The exact model's shapes around an encoder that mixes what it sees at random."""

    def __init__(self, seed: int = 0) -> None:
        self.weight = torch.randn(15, 15, generator=torch.Generator().manual_seed(seed))

    def encode(self, views: Tensor) -> Tensor:
        return (views @ self.weight).tanh()

    def target(self, views: Tensor) -> Tensor:
        return self.encode(views)


def card_of(model: Any, train: Any, test: Any, **settings: Any) -> Scorecard:
    return evaluate(model, train, test, **{"hidden": (), "progress": False, "num_views": (2,), **settings})


def both3(model: Any) -> tuple[Features, Features]:
    return extract(model, world(90, seed=0)), extract(model, world(90, seed=1))


@pytest.fixture(scope="module")
def beside() -> Scorecard:
    return card_of(Exact(), world(80, 3), world(80, 3, seed=1), untrained=Untrained)


def test_an_exact_model_beats_its_untrained_twin(beside: Scorecard) -> None:
    assert beside.untrained is not None
    for card, other in ((beside, beside.untrained),):
        assert card.top1 is not None
        assert other.top1 is not None
        assert card.top1.z.accuracy > other.top1.z.accuracy + 0.05
        assert card.transformations is not None
        assert other.transformations is not None
        assert card.transformations.relative.mean > other.transformations.relative.mean + 0.1
        assert card.retrieval is not None
        assert other.retrieval is not None
        assert card.retrieval.mrr > other.retrieval.mrr + 0.3
    assert not [name for name in beside.untrained_wins if "path" not in name]
    assert "the untrained model wins" not in next(line for line in str(beside).splitlines() if "MRR" in line)


def test_the_untrained_level_is_what_evaluating_it_alone_gives(beside: Scorecard) -> None:
    alone = card_of(Untrained(), world(80, 3), world(80, 3, seed=1)).to_dict()
    level = beside.to_dict()["untrained"]
    for name in ("top1", "transformations", "retrieval", "pre", "sensitivity", "composition", "collapse", "invariance"):
        assert level[name] == alone[name], name
    for variant, curve in level["paths"].items():
        assert curve == alone["paths"][variant]
    assert not [variant for variant in level["paths"] if "exact" in variant]  # those ask no model


def test_a_measure_that_the_untrained_model_wins_is_marked(tmp_path: Path) -> None:
    card = card_of(Untrained(), world(80, 3), world(80, 3, seed=1), untrained=Exact())
    marked = [line.split("  ")[0] for line in str(card).splitlines() if "◄ the untrained model wins" in line]
    assert {"top-1, z", "R² relative, z pairs", "retrieval by action, MRR", "retrieval by action, PRE"} <= {*marked}
    assert "loss, as they are" in marked
    assert {name for name in card.untrained_wins if not name.startswith("R² path")} <= {*marked}
    assert not [name for name in marked if "states of" in name or "cosine" in name]  # neither high nor low is better
    card.to_json(tmp_path / "card.json")
    read = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert read["untrained_wins"] == list(card.untrained_wins)
    assert read["untrained"]["retrieval"]["mrr"] == 1.0
    assert read["untrained"]["untrained"] is None


def test_sequences_that_come_once_are_shown_to_both() -> None:
    def once(seed: int) -> Iterator[ViewSequence]:
        whole = world(60, 3, seed)
        for rows in torch.arange(60).split(25):
            known = {name: getattr(whole, name)[rows] for name in ("views", "actions", "parameters", "labels")}
            yield whole._replace(**known)

    in_turn = card_of(Exact(), once(0), once(1), untrained=Untrained, ood=once(2))
    whole = card_of(Exact(), *(world(60, 3, seed) for seed in (0, 1)), untrained=Untrained, ood=world(60, 3, 2))
    assert in_turn.untrained is not None
    assert in_turn.untrained.out_of_distribution is not None
    drop = {"settings"}
    assert {k: v for k, v in in_turn.to_dict()["untrained"].items() if k not in drop} == {
        k: v for k, v in whole.to_dict()["untrained"].items() if k not in drop
    }


def test_of_features_the_untrained_model_s_card_is_the_level() -> None:
    train, test = both3(Exact())
    without = card_of(Exact(), train, test, untrained=Untrained)
    assert without.untrained is None
    assert "train was given as features, which hold no views" in without.skipped["untrained"]
    level = card_of(Untrained(), *both3(Untrained()))
    card = card_of(Exact(), train, test, untrained=level)
    assert card.untrained is level
    assert "untrained" not in card.skipped
    others = card_of(Untrained(), *both3(Untrained())[::-1])
    assert "is of other train sequences" in card_of(Exact(), train, test, untrained=others).skipped["untrained"]
    narrow = card_of(Ignorant(), *both3(Ignorant()))
    assert "its z is 6 wide, the model's 15" in card_of(Exact(), train, test, untrained=narrow).skipped["untrained"]


class Failing(Untrained):
    def encode(self, views: Tensor) -> Tensor:
        raise RuntimeError("no weights today")


@pytest.mark.parametrize(
    ("untrained", "why"),
    [(Ignorant, "its z is 6 wide, the model's 15"), (Failing, "RuntimeError: no weights today")],
)
def test_an_untrained_model_that_cannot_be_used_costs_nothing(untrained: type, why: str) -> None:
    card = card_of(Exact(), world(40), world(40, seed=1), untrained=untrained)
    assert card.untrained is None
    assert why in card.skipped["untrained"]
    assert why in str(card)
    alone = card_of(Exact(), world(40), world(40, seed=1)).to_dict()
    measured = card.to_dict()
    assert all(measured[name] == alone[name] for name in alone if name not in ("skipped", "settings"))


def test_an_untrained_model_of_another_architecture_is_refused_before_anything_is_encoded() -> None:
    model, sequence = tiny_model(action_dim=4), world(8, 3)._replace(views=torch.rand(8, 3, 3, 8, 8))
    with pytest.raises(ValueError, match=r"same architecture; encoder.* is of shape .* in the model and of shape"):
        card_of(model, sequence, sequence, untrained=tiny_model(action_dim=4, dim=12))
    with pytest.raises(ValueError, match="has the weights of the model, every one: it is a copy"):
        card_of(model, sequence, sequence, untrained=copy.deepcopy(model))
    with pytest.raises(ValueError, match="untrained is the model itself"):
        card_of(model, sequence, sequence, untrained=model)
    with pytest.raises(ValueError, match="one is an encoder alone, the other is a model"):
        card_of(model, sequence, sequence, untrained=lambda v: v)
    card = card_of(model, sequence, sequence, untrained=lambda: tiny_model(action_dim=4))
    assert card.untrained is not None


class Needy(Untrained):
    def __init__(self, width: int) -> None:
        super().__init__(width)


@pytest.mark.parametrize(
    ("untrained", "message"),
    [
        (3, "a function without arguments that makes a model; got int. Give one"),
        (lambda: None, "that makes a model; got NoneType, made by the function"),
        (Needy, "Needy needs width. Give untrained=lambda: Needy"),
    ],
)
def test_what_is_no_untrained_model_is_refused_before_anything_is_encoded(untrained: Any, message: str) -> None:
    model = Failing()  # if it encoded
    with pytest.raises(TypeError, match=message):
        card_of(model, world(8), world(8), untrained=untrained)


class Narrow(Untrained):
    """Its z is as wide as the exact model's, its state is not."""

    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        return z.mean(dim=1)

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        return state


def test_an_untrained_model_with_a_state_of_another_width_is_no_level() -> None:
    card = card_of(Exact(), world(40), world(40, seed=1), untrained=Narrow)
    assert card.untrained is None
    assert "its state is 15 wide, the model's 19" in card.skipped["untrained"]
    level = card_of(Narrow(), *both3(Narrow()))
    given = card_of(Exact(), *both3(Exact()), untrained=level)
    assert "its state is 15 wide, the model's 19" in given.skipped["untrained"]


def test_labels_that_cannot_be_told_apart_cost_invariance_its_classes_alone() -> None:
    train, test = (world(40, seed=seed)._replace(labels=torch.zeros(40).long()) for seed in (0, 1))
    card = card_of(Exact(), train, test)
    assert "two classes at least; all labels are 0" in card.skipped["invariance.classes"]
    assert "invariance" not in card.skipped
    assert card.invariance["z"].pose is not None
    assert card.invariance["z"].between is not None


@pytest.mark.parametrize("lacking", ["train", "test"])
def test_the_card_says_which_sequences_lack_labels(lacking: str) -> None:
    sets = {name: world(40, seed=seed) for seed, name in enumerate(("train", "test"))}
    sets[lacking] = sets[lacking]._replace(labels=None)
    card = card_of(Exact(), sets["train"], sets["test"])
    which = {"train": "training", "test": "test"}[lacking]
    assert card.skipped["invariance.classes"] == card.skipped["top1"] == f"the {which} sequences have no labels"


def test_an_encoder_alone_has_an_untrained_level() -> None:
    sequence = world(60)
    card = card_of(lambda v: v, sequence, sequence, untrained=lambda v: v[..., :15] * 0 + torch.rand(15))
    assert card.untrained is not None
    assert card.untrained.transformations is not None
    assert card.untrained.transformations.relative.mean < 0.1


def test_sums_cannot_tell_the_order_of_rotations_and_exact_actions_in_order_can() -> None:
    features = extract(Exact(), world(50))
    actions = features.actions.clone()
    actions[:, :2] = actions[:, :2].flip(1)
    swapped = replace(features, actions=actions)
    apart = GROUP.distance(features.relative(0, 2), swapped.relative(0, 2))
    assert apart.median() > 0.05  # they lead elsewhere
    torch.testing.assert_close(order_blind(features, 0, 2), order_blind(swapped, 0, 2))
    assert not torch.isclose(in_order(features, 0, 2), in_order(swapped, 0, 2)).all(dim=1).any()


def test_an_answer_that_lies_in_the_order_is_read_from_exact_actions_in_order_alone() -> None:
    quarter = torch.tensor([[0.5**0.5, 0.0, 0.0, 0.5**0.5], [0.0, 0.5**0.5, 0.0, 0.5**0.5]])  # about x, about y

    def features(seed: int) -> Features:
        first = torch.arange(200).remainder(2)
        still = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(200, 1, 4)
        actions = torch.cat([quarter[torch.stack([first, 1 - first], dim=1)], still], dim=1)
        return extract(Exact(), ViewSequence(torch.rand(200, 4, 15), actions, None, None, GROUP))

    levels = ("exact actions, in order", "exact actions, order-blind")
    curves = path_integration(Exact(), features(0), features(1), variants=levels, num_views=(3,), hidden=())
    assert curves[levels[0]][3].mean > 0.999
    assert curves[levels[1]][3].mean < 0.01


def test_sums_of_displacements_are_all_that_a_path_needs() -> None:
    def features(seed: int) -> Features:
        t = torch.randn(200, 4, 2, generator=torch.Generator().manual_seed(seed))
        return extract(Exact(), ViewSequence(torch.zeros(200, 4, 15), t.diff(dim=1), t, None, Translation(2)))

    curves = path_integration(
        MeanAggregate(lambda v: v), features(0), features(1), hidden=(), variants=("exact actions, order-blind",)
    )
    assert all(fit.mean > 0.999 for fit in curves["exact actions, order-blind"].values())


def test_exact_actions_do_not_depend_on_the_model() -> None:
    names = ("exact actions, in order", "exact actions, order-blind")
    found = [
        path_integration(model, *both(model), variants=names, hidden=())
        for model in (Exact(), Ignorant(), MeanAggregate(lambda v: v))
    ]
    for other in found[1:]:
        for name in names:
            assert {m: fit.mean for m, fit in other[name].items()} == {m: fit.mean for m, fit in found[0][name].items()}
    t = state_transformation_r2(Exact(), *both3(Exact()), num_views=2, hidden=())
    assert t.actions_in_order is not None
    assert t.actions_order_blind is not None
    assert 0.1 < t.actions_in_order.mean < t.relative.mean - 0.2
    assert state_transformation_r2(Exact(), *both3(Exact()), hidden=()).actions_in_order is None


class FromViews(Exact):
    """Its state shows the last view and nothing that it was told."""

    def aggregate(self, z: Tensor, e: Tensor) -> Tensor:
        return torch.cat([z[:, 0], z[:, -1]], dim=-1)


@pytest.mark.parametrize("hidden", [(), (32,)])
def test_a_robbed_probe_misses_what_it_used(hidden: tuple[int, ...]) -> None:
    curves = path_integration(FromViews(), *both(FromViews()), num_views=(1, 2), hidden=hidden)
    full, views, actions = (
        curves[name] for name in ("views and actions", "probe robbed of views", "probe robbed of earlier actions")
    )
    assert list(views) == list(actions) == [2]
    assert views[2].mean < full[2].mean - 0.2
    assert torch.equal(actions[2].predictions, full[2].predictions)  # this state was told no earlier action
    assert views[2].l2 == full[2].l2
    assert views[2].steps == full[2].steps


def test_the_mean_aggregate_is_the_mean_of_z() -> None:
    model = MeanAggregate(Exact())
    train, test = both(model)
    for m in (1, 3):
        assert torch.equal(aggregate_states(model, train, m), train.z[:, :m].mean(dim=1))
    blind = MeanAggregate(tiny_model(action_dim=4))
    assert not hasattr(blind, "predict")
    states, means = (found := top1(model, train, test, num_views=(1, 2, 4))).states, found.means
    assert list(means) == [2, 4]
    assert {m: fit.accuracy for m, fit in means.items()} == {m: states[m].accuracy for m in means}
    assert found.knn["state of 4"].accuracy == found.knn["mean z of 4"].accuracy
    for m in (1, 2):
        fit = state_transformation_r2(model, train, test, num_views=m, hidden=())
        assert fit.mean_z is not None
        assert fit.mean_z.mean == fit.relative.mean
    curves = path_integration(model, train, test, hidden=(), variants=("views and actions", "mean of z"))
    assert {m: fit.mean for m, fit in curves["mean of z"].items()} == {
        m: fit.mean for m, fit in curves["views and actions"].items()
    }
    rows = invariance(model, train, test, num_views=(2,), hidden=())
    assert rows["mean z of 2"].between == rows["state of 2"].between == rows["state of 2, actions zero"].between


def test_a_batch_norm_behind_the_mean_aggregate_stands_still() -> None:
    model = tiny_model(action_dim=4)
    before = copy.deepcopy(model.state_dict())
    extract(MeanAggregate(model), world(8, 3)._replace(views=torch.rand(8, 3, 3, 8, 8)))
    assert model.training
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_drawn_sequences_are_what_encoding_their_views_would_give() -> None:
    model, whole = Exact(), world(12, 5)
    features = extract(model, whole)
    many = redraw(model, features, 50, num_views=3, seed=1)
    assert many.z.shape == (50, 3, 15)
    assert many.sources is not None
    assert int(many.sources.bincount().max() - many.sources.bincount().min()) <= 1
    assert many.elements is not None
    expected = extract(model, ViewSequence(many.z, GROUP.actions(many.elements), many.elements, many.labels, GROUP))
    torch.testing.assert_close(many.actions, expected.actions, atol=1e-4, rtol=0)
    torch.testing.assert_close(many.e, expected.e, atol=1e-4, rtol=0)
    torch.testing.assert_close(many.target, expected.target)
    for row, source in enumerate(many.sources.tolist()):
        assert many.labels is not None
        assert features.labels is not None
        assert many.labels[row] == features.labels[source]
        places = (whole.views[source][:, None] == many.z[row][None]).all(dim=2).nonzero()
        assert len(places) == len(places[:, 0].unique()) == 3
    assert not torch.equal(redraw(model, features, 50, num_views=3, seed=2).z, many.z)


def test_no_two_drawn_sequences_are_alike() -> None:
    features = extract(Exact(), world(4, 3))
    every = redraw(Exact(), features, 24).z.flatten(1)
    assert len(every.unique(dim=0)) == 24  # all orders of three views
    with pytest.raises(ValueError, match="from 1 to 24: each of the 4 sequences of 3 views gives 6 of 3; got 25"):
        redraw(Exact(), features, 25)
    with pytest.raises(ValueError, match="from 1 to the 3 views that there are; got 4"):
        redraw(Exact(), features, 5, num_views=4)
    with pytest.raises(ValueError, match="these features have no group"):
        redraw(Exact(), replace(features, group=None), 5)


def test_fewer_draws_than_rows_asked_for_cost_the_rows_alone() -> None:
    card = card_of(Exact(), world(30, 2), world(30, 2, seed=1), path_rows=500)
    assert "each of the 30 sequences of 2 views gives 2 of 2; got 500" in card.skipped["paths.rows"]
    plain = card_of(Exact(), world(30, 2), world(30, 2, seed=1))
    assert card.to_dict()["paths"] == plain.to_dict()["paths"]


def test_path_rows_are_draws_of_the_same_sources() -> None:
    train, test = (extract(Exact(), world(40, seed=seed)) for seed in (0, 1))
    card = card_of(Exact(), train, test, path_rows=300, seed=2)
    drawn = redraw(Exact(), train, 300, seed=2), redraw(Exact(), test, 150, seed=2)
    alone = path_integration(Exact(), *drawn, hidden=(), seed=2)
    assert {m: f.mean for m, f in card.paths["views and actions"].items()} == {
        m: f.mean for m, f in alone["views and actions"].items()
    }
    assert card.settings["path_rows"] == 300


def test_the_share_between_objects_is_that_of_the_variances() -> None:
    g = torch.Generator().manual_seed(0)
    sources = torch.arange(2000).repeat_interleave(3)
    x = 2 * torch.randn(2000, 5, generator=g)[sources] + torch.randn(6000, 5, generator=g)
    assert share_between(x, sources) == pytest.approx(4 / 5, abs=0.02)
    noise = share_between(torch.randn(6000, 5, generator=g), sources)
    assert noise == pytest.approx(0, abs=0.02)  # means of three differ by chance, which is taken out
    assert share_between(x[::3], sources[::3]) is None
    assert share_between(x[:1999].repeat(2, 1), torch.arange(1999).repeat(2)) == 1


def test_z_at_equal_rows_is_the_state_of_one_view_that_shows_it() -> None:
    train, test = both(Ignorant())
    found = invariance(Ignorant(), train, test, num_views=(1, 2), hidden=())
    assert list(found) == ["z", "state of 1", "state of 2", "state of 2, actions zero", "mean z of 2"]
    for name, result in found.items():
        assert result.pose is not None
        assert result.pose is result.linear
        assert result.neighbours is not None
        assert abs(result.pose.mean) < 0.1, name
        assert result.neighbours.mean < 0.1, name
        assert result.between == pytest.approx(1)
        assert result.classes is not None
    exact = invariance(Exact(), *both3(Exact()), num_views=(2,), hidden=())
    assert exact["z"].pose is not None
    assert exact["state of 2"].pose is not None
    assert exact["z"].pose.mean > 0.98
    assert exact["state of 2"].pose.mean > 0.98
    assert exact["z"].between is not None
    assert exact["z"].between < 0.9


def test_labels_and_parameters_that_are_missing_cost_their_columns_alone() -> None:
    train, test = (world(40, seed=seed)._replace(labels=None, parameters=None) for seed in (0, 1))
    card = card_of(Exact(), train, test)
    assert card.invariance["z"].between is not None
    assert card.invariance["z"].classes is None
    assert card.skipped["invariance.classes"] == "the sequences have no labels"
    assert "absolute parameters are not known" in card.skipped["invariance.pose"]
    single = card_of(Exact(), *(world(40, 1, seed) for seed in (0, 1)), num_views=())
    assert "takes two rows of each object" in single.skipped["invariance.between"]


def test_neighbours_predict_the_mean_of_their_targets() -> None:
    g = torch.Generator().manual_seed(0)
    x, y, test_x, test_y = (torch.randn(n, k, generator=g) for n, k in ((50, 3), (50, 2), (20, 3), (20, 2)))
    expected = []
    for query in test_x:
        cosine = torch.stack([torch.nn.functional.cosine_similarity(query, row, dim=0) for row in x])
        expected.append(y[cosine.argsort(descending=True)[:7]].mean(dim=0))
    found = knn_r2(x, y, test_x, test_y, k=7)
    torch.testing.assert_close(found.predictions, torch.stack(expected))
    flat = knn_r2(x, y[:, 0], test_x, test_y[:, 0], k=50)  # every row is a neighbour: the mean
    assert flat.mean == pytest.approx(flat.chance, abs=1e-5)
    assert flat.predictions.shape == (20,)
    assert flat.chance == pytest.approx(regression_r2(x, y[:, 0], test_x, test_y[:, 0], hidden=()).chance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: knn_r2(x, x, x, x, k=0), r"k counts neighbours among the 5 training rows, 1 … 5; got 0"),
        (lambda x: knn_r2(x, x, x, x, k=6), r"1 … 5; got 6"),
        (lambda x: knn_r2(x, x, x[:, :1], x), "must come from one encoder; got widths 2 and 1"),
    ],
)
def test_bad_neighbours_are_refused(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.randn(5, 2))
