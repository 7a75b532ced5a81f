"""The measures of inferred actions, in a world that is known exactly: the true action, leaks, and noise."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seqjepa import GaussianBottleneck, InverseModel, ViewSequence
from seqjepa.data import RotatedViews
from seqjepa.evaluation import (
    Features,
    FewLabels,
    LatentActions,
    action_retrieval,
    actions_from_latent,
    composition_error,
    evaluate,
    extract,
    few_labels,
    latent_actions,
    latent_cut,
    latent_from_actions,
    latent_identity,
    latent_transfer,
    redraw,
    regression_r2,
    top1,
)
from seqjepa.evaluation.latent_actions import _labelled
from seqjepa.functional import cosine_distance
from seqjepa.groups import Hue, Product, Rotation2D, Rotation3D, Translation
from tests.builders import tiny_model
from tests.evaluation.worlds import GROUP, IDENTITY, Exact, world

Inverse = Callable[[Tensor, Tensor], Tensor]


def pose(z: Tensor) -> Tensor:
    return Rotation3D.from_matrix(z[..., :9].unflatten(-1, (3, 3)))


def true(z: Tensor, z_next: Tensor) -> Tensor:
    return GROUP.relative(pose(z), pose(z_next))


def leaked(z: Tensor, z_next: Tensor) -> Tensor:
    return z_next


def noise(z: Tensor, z_next: Tensor) -> Tensor:
    return Rotation3D.random(*z.shape[:2], generator=torch.Generator().manual_seed(int(1000 * z.abs().sum()) % 2**31))


class Copying(Exact):
    """What it is told is what it predicts."""

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        return e


class Deaf(Exact):
    """It knows the source, and ignores what it is told."""

    def predict(self, state: Tensor, e: Tensor) -> Tensor:
        return state[:, : 9 + IDENTITY]


def shared_world(n: int = 24, draws: int = 5, views: int = 4) -> list[ViewSequence]:
    """Other sources in each draw, which go through the same rotations."""
    parts = []
    for seed in range(draws):
        sequence = world(n, views, seed=100 + seed)
        q = sequence.parameters[:1].expand(n, -1, -1)
        shown = torch.cat([Rotation3D.to_matrix(q).flatten(2), sequence.views[..., 9:]], dim=-1)
        parts.append(ViewSequence(shown, GROUP.actions(q), q, sequence.labels, GROUP))
    return parts


def measured(model: Any, inverse: Inverse) -> LatentActions:
    train, test = (extract(model, world(300, 4, seed), inverse=inverse) for seed in (0, 1))
    shared = extract(model, shared_world(), inverse=inverse)
    return latent_actions(model, inverse, train, test, shared)


@pytest.fixture(scope="module")
def found() -> dict[str, LatentActions]:
    cases: dict[str, tuple[Any, Inverse]] = {
        "true": (Exact(), true), "leak": (Copying(), leaked), "noise": (Exact(), noise),
    }  # fmt: skip
    return {name: measured(*case) for name, case in cases.items()}


def test_the_true_action_is_perfect_by_all_six(found: dict[str, LatentActions]) -> None:
    one = found["true"]
    assert one.informative.mean > 0.98
    assert one.informative.outputs == ("x", "y", "z")
    assert one.nothing_else.pooled > 0.98
    assert one.transfer is not None
    assert one.transfer.own.mrr == one.transfer.others.mrr == one.transfer.share == 1
    assert one.transfer.shuffled.mrr <= 0.5
    assert one.cut.own < 1e-6
    assert one.cut.relative == pytest.approx(1, abs=1e-4)  # of shared actions: as far as the views are apart
    assert one.identity.relative < 1e-6
    assert one.few_labels.inferred[10] > 0.95
    assert one.few_labels.views[10] < 0.5


def test_a_leak_is_unmasked_by_all_that_ask_what_else_is_in_it(found: dict[str, LatentActions]) -> None:
    one = found["leak"]
    assert one.informative.mean > 0.4  # it looks informative,
    assert one.transfer is not None
    assert one.transfer.own.mrr == 1  # and the loss is perfect
    assert one.cut.own < 1e-6
    assert one.nothing_else.pooled < 0.4
    assert one.transfer.others.mrr < 0.3
    assert one.transfer.share < 0.2
    assert one.cut.relative < 1e-4
    assert one.cut.apart > 0.3
    assert one.identity.relative == pytest.approx(1, abs=0.05)


def test_noise_is_no_better_than_knowing_nothing(found: dict[str, LatentActions]) -> None:
    one = found["noise"]
    assert abs(one.informative.mean) < 0.05
    assert abs(one.nothing_else.pooled) < 0.05
    assert one.transfer is not None
    own, others, shuffled = one.transfer.own, one.transfer.others, one.transfer.shuffled
    assert own.mrr == pytest.approx(shuffled.mrr, abs=0.07)
    assert others.mrr == pytest.approx(shuffled.mrr, abs=0.07)
    assert one.cut.cut > one.cut.own + 0.2
    assert one.identity.relative == pytest.approx(1, abs=0.1)
    assert all(r2 < 0.05 for r2 in one.few_labels.inferred.values())


def test_what_is_deaf_to_its_actions_is_told_nothing_by_any() -> None:
    features = extract(Deaf(), shared_world(), inverse=true)
    transfer = latent_transfer(Deaf(), true, features)
    assert transfer.own.mrr == transfer.others.mrr == transfer.shuffled.mrr
    assert math.isnan(transfer.share)
    assert str(transfer).endswith("by a wrong one: it tells nothing")


def test_a_copied_view_of_the_right_pose_is_no_transfer() -> None:
    """Among the views of one source alone the pose of the copy would find the right one."""
    features = extract(Copying(), shared_world(), inverse=leaked)
    crowded, pair = (latent_transfer(Copying(), leaked, features, rivals=rivals) for rivals in (20, 1))
    assert crowded.others.mrr < pair.others.mrr <= 0.5
    assert crowded.own.mrr == pair.own.mrr == 1


def test_rivals_went_through_the_same_and_are_other_sources() -> None:
    parts = shared_world(n=5, draws=3)
    sources = torch.tensor([0, 0, 1, 2, 3]).repeat(3)
    seen: list[Tensor] = []

    class Recorder(Deaf):
        def predict(self, state: Tensor, e: Tensor) -> Tensor:
            seen.append(e.unflatten(0, (15, 3)))
            return super().predict(state, e)

    def marked(z: Tensor, z_next: Tensor) -> Tensor:
        return torch.cat([z[..., 9:10], z_next[..., :3]], dim=-1)  # whose it is, and of which view

    features = extract(Recorder(), parts, inverse=marked, sources=sources)
    latent_transfer(Recorder(), marked, features)
    own, others, wrong = seen
    for row in range(15):
        givers = [i for i in range(15) if torch.equal(own[i, 0, :1], others[row, 0, :1])]
        assert len(givers) == 1
        assert givers[0] // 5 == row // 5
        assert sources[givers[0]] != sources[row]
        assert torch.equal(own[givers[0]], others[row])
        for k in range(3):
            told = [j for j in range(3) if torch.equal(own[givers[0], j], wrong[row, k])]
            assert len(told) == 1
            assert told[0] != k


def test_a_cut_is_the_plain_mean_over_pairs_of_sources() -> None:
    test = extract(Exact(), world(2, 3), inverse=true)  # of two sources the other one is known
    cut = latent_cut(Exact(), true, test)
    own, strange, apart = list[Tensor](), list[Tensor](), list[Tensor]()
    assert test.target is not None
    for row, k in ((row, k) for row in range(2) for k in (1, 2)):
        z, right, wrong = test.z[row, :1], test.target[row, k], test.target[1 - row, k]
        for view, into in ((right, own), (wrong, strange)):
            told = true(z[None], view[None, None])[0]
            into.append(cosine_distance(Exact().predict(Exact().aggregate(z[None], told[:0][None]), told), view[None]))
        apart.append(cosine_distance(right, wrong))
    for value, parts in ((cut.own, own), (cut.cut, strange), (cut.apart, apart)):
        assert value == pytest.approx(torch.stack([part.squeeze() for part in parts]).mean().item(), abs=1e-6)


def test_still_actions_are_those_of_a_view_and_itself() -> None:
    test = extract(Exact(), world(50, 3))
    twice = latent_identity(lambda z, z_next: torch.cat([z_next - z, 0.5 * z[..., 9:10]], dim=-1), test)
    assert twice.still == pytest.approx(0.25 * test.z[..., 9].double().var().item(), rel=1e-6)
    assert twice.still < twice.moved
    assert math.isnan(latent_identity(lambda z, z_next: torch.zeros_like(z), test).relative)
    assert latent_identity(lambda z, z_next: z_next - z, replace(test, target=None)).still == 0


def test_r2_is_that_of_the_regressions() -> None:
    mix = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    group = Product({"turn": Rotation2D(), "hue": Hue(), "shift": Translation(2)})

    def features(seed: int) -> Features:
        t = torch.rand(80, 3, 4, generator=torch.Generator().manual_seed(seed)) - 0.5
        t[..., 3] = 0  # one never varies
        return extract(
            lambda views: views, ViewSequence(t, group.actions(t), t, group=group),
            inverse=lambda z, z_next: (z_next - z) @ mix + 0.1 * z[..., :1],
        )  # fmt: skip

    train, test = features(0), features(1)
    assert train.inferred is not None
    assert test.inferred is not None
    rows = torch.arange(80).repeat_interleave(2)
    a, b, x, y = (f.flatten(0, 1) for f in (train.actions, test.actions, train.inferred, test.inferred))
    fit = actions_from_latent(train, test)
    expected = regression_r2(x, group.log(a), y, group.log(b), hidden=(), train_sources=rows, test_sources=rows)
    assert fit.mean == pytest.approx(expected.mean, abs=1e-9)
    assert fit.left_out == ("shift 1",)
    assert fit.outputs == ("turn", "hue", "shift 0", "shift 1")
    back = latent_from_actions(train, test, hidden=())
    errors = (y - regression_r2(
        group.log(a), x, group.log(b), y, hidden=(), train_sources=rows, test_sources=rows
    ).predictions).double().square().sum()  # fmt: skip
    assert back.pooled == pytest.approx(1 - (errors / (y - y.mean()).double().square().sum()).item(), abs=0.02)
    assert back.pooled_chance == pytest.approx(0, abs=0.02)
    curved = actions_from_latent(train, test, hidden=(16,))
    assert curved.outputs == ("turn cos", "turn sin", "hue cos", "hue sin", "shift 0", "shift 1")


def test_an_action_that_hardly_varies_hardly_counts() -> None:
    def features(seed: int) -> Features:
        t, g = torch.randn(200, 3, 1, generator=torch.Generator().manual_seed(seed)), torch.Generator().manual_seed(9)

        def inverse(z: Tensor, z_next: Tensor) -> Tensor:
            return torch.cat([z_next - z, 5 + 0.01 * torch.randn(z.shape, generator=g)], dim=-1)

        return extract(lambda views: views, ViewSequence(t, t.diff(dim=1), t, group=Translation(1)), inverse=inverse)

    fit = latent_from_actions(features(0), features(1), hidden=())
    assert fit.pooled > 0.999
    assert fit.mean < 0.6


def test_few_labels_are_of_different_sources_and_more_of_them_tell_more() -> None:
    train, test = (extract(Exact(), world(60, 3, seed), inverse=leaked) for seed in (0, 1))
    few = few_labels(train, test, labels=(6, 30, 120), draws=4)
    assert list(few.inferred) == list(few.spread) == list(few.views) == [6, 30, 120]
    assert few.inferred[6] < few.inferred[30] < few.inferred[120]
    assert few.spread[120] < 1e-5  # all there are, every time
    assert few_labels(train, test, labels=(6,), draws=4).inferred[6] == few.inferred[6]
    for seed in range(5):
        assert len((_labelled(train, 60, seed) // 2).unique()) == 60


def test_features_of_an_inverse_model_are_what_the_model_is_told() -> None:
    model = tiny_model(action_dim=3)
    inverse = InverseModel(model.encode(torch.rand(1, 1, 3, 8, 8)).shape[-1], 3, GaussianBottleneck())
    labels = torch.arange(20) % 2
    sequence = RotatedViews(4, shift=0.1)(torch.rand(20, 3, 8, 8))._replace(labels=labels)
    features = extract(model, sequence, inverse=inverse, batch_size=7)
    assert inverse.training
    assert model.training
    model.eval(), inverse.eval()
    with torch.no_grad():
        z, target = model.encode(sequence.views), model.target(sequence.views.flatten(0, 1)).unflatten(0, (20, 4))
        a = inverse(z[:, :-1], target[:, 1:])
        assert features.inferred is not None
        assert features.e is not None
        torch.testing.assert_close(features.inferred, a)
        torch.testing.assert_close(features.e, model.embed(a))
    assert torch.equal(features.actions, sequence.actions)
    assert features.draw(5).inferred is not None
    assert len(features.draw(5).inferred) == 5  # type: ignore[arg-type]
    assert top1(model, features, features, num_views=(2,)).states[2].accuracy > 0.4
    card = evaluate(model, features, features, hidden=(), progress=False)
    assert {"retrieval", "composition"} <= card.skipped.keys()
    for measure in (
        lambda: action_retrieval(model, features),
        lambda: composition_error(model, features),
        lambda: redraw(model, features, 30, num_views=2),
    ):
        with pytest.raises(ValueError, match="these features' model is told what an inverse"):
            measure()


def test_one_seed_one_result(found: dict[str, LatentActions]) -> None:
    again = measured(Exact(), true)
    assert str(again) == str(found["true"])
    lines = str(again).splitlines()
    assert [line[:14].strip() for line in lines] == [
        "informative", "nothing else", "transfer", "cut", "identity", "few labels",
    ]  # fmt: skip
    assert "needs shared actions" in str(replace(again, transfer=None))
    assert (
        str(FewLabels({10: 0.5}, {10: 0.1}, {10: 0.0}))
        == "R² 0.50 ± 0.10 with 10 labels, 0.00 without inferred actions"
    )


def test_what_cannot_be_measured_is_refused() -> None:
    features = extract(Exact(), world(6, 3), inverse=true)
    with pytest.raises(ValueError, match=r"row \d of 6 has actions that no other source has. Draw the views with"):
        latent_transfer(Exact(), true, features)
    shared = extract(Exact(), shared_world(4, 1, 2), inverse=true)
    with pytest.raises(ValueError, match=r"three views; got 2 views and rivals=9"):
        latent_transfer(Exact(), true, shared)
    with pytest.raises(ValueError, match=r"got 3 views and rivals=0"):
        latent_transfer(Exact(), true, features, rivals=0)
    plain = extract(Exact(), world(6, 3))
    with pytest.raises(ValueError, match=r"hold no inferred actions. Extract them with the inverse model"):
        actions_from_latent(plain, plain)
    with pytest.raises(ValueError, match=r"two views and two sources; got 3 views of 1 sources"):
        latent_cut(Exact(), true, extract(Exact(), world(1, 3), inverse=true))
    with pytest.raises(ValueError, match=r"got 1 sequences of 3 views"):
        latent_identity(true, extract(Exact(), world(1, 3), inverse=true))
    with pytest.raises(ValueError, match=r"from 2 to the 12 steps there are, drawn once at least; got labels=\(13,\)"):
        few_labels(features, features, labels=(13,))
    with pytest.raises(ValueError, match=r"Relative transformations need to know what an action is"):
        latent_from_actions(replace(features, group=None), features)
    with pytest.raises(ValueError, match=r"twice, to actions \(B, T, n\); of \(6, 2, 15\) it made \(6, 4\)"):
        extract(Exact(), world(6, 3), inverse=lambda z, z_next: true(z, z_next)[:, 0])
