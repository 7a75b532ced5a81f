"""MRR, H@k and the prediction retrieval error."""

import contextlib
import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqjepa.evaluation import action_retrieval, extract, pre, prediction_retrieval_error, retrieval
from seqjepa.groups import Rotation3D
from tests.evaluation.worlds import Exact, world


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def slow_ranks(queries: Tensor, gallery: Tensor) -> list[list[int]]:
    ranks = []
    for some, views in zip(queries.double(), gallery.double(), strict=True):
        cosines = [[cosine(query, view) for view in views] for query in some]
        ranks.append([1 + sum(c > row[v] for c in row) for v, row in enumerate(cosines)])
    return ranks


@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 5))
def test_ranks_are_those_of_a_plain_count(objects: int, views: int, width: int) -> None:
    queries, gallery = torch.randn(objects, views, width + 1), torch.randn(objects, views, width + 1)
    got = retrieval(queries, gallery, ks=(1, 2, 3))
    ranks = slow_ranks(queries, gallery)
    flat = [rank for row in ranks for rank in row]
    assert got.ranks.tolist() == ranks
    assert got.mrr == pytest.approx(sum(1 / rank for rank in flat) / len(flat))
    for k in (1, 2, 3):
        assert got.hits[k] == pytest.approx(sum(rank <= k for rank in flat) / len(flat))


def test_the_defaults_of_torch_change_nothing(torch_defaults: Any) -> None:
    queries, gallery, found = torch.randn(4, 300, 8), torch.randn(4, 300, 8), []
    for block in (contextlib.nullcontext, torch_defaults):
        with block():
            found.append(retrieval(queries, gallery, ks=(1, 7)))
    assert found[1].ranks.dtype == torch.float32
    assert torch.equal(found[0].ranks, found[1].ranks)
    assert (found[0].mrr, found[0].hits, found[0].interval) == (found[1].mrr, found[1].hits, found[1].interval)


def test_chance_is_the_paper_s_for_fifty_views() -> None:
    g = torch.Generator().manual_seed(0)
    got = retrieval(torch.randn(400, 50, 8, generator=g), torch.randn(400, 50, 8, generator=g))
    assert list(got.hits) == [1, 2, 5, 10]
    assert got.chance.mrr == pytest.approx(0.090, abs=5e-4)
    assert (got.chance.hits[1], got.chance.hits[5]) == (0.02, 0.10)
    assert got.mrr == pytest.approx(got.chance.mrr, abs=0.005)
    assert got.hits[1] == pytest.approx(0.02, abs=0.005)
    assert got.interval.low < got.chance.mrr < got.interval.high


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_collapsed_encoder_gets_chance_not_a_perfect_score(noise: float) -> None:
    gallery = torch.ones(20, 7, 33) + noise * torch.randn(20, 7, 33)
    got = retrieval(gallery, gallery, ks=(1, 2, 9))
    assert got.mrr == pytest.approx(got.chance.mrr)
    assert got.hits == pytest.approx({1: 1 / 7, 2: 2 / 7, 9: 1.0})
    assert got.hits == pytest.approx(got.chance.hits)
    assert (got.ranks == 4).all()


def test_ties_are_averaged_over_their_orders() -> None:
    a, b, c = torch.eye(3)
    gallery = torch.stack([a, b, b, c])[None]  # views 1 and 2 look alike
    query = (b + 0.5 * a)[None, None]
    got = retrieval(query, gallery, targets=torch.tensor([[1]]), ks=(1, 2))
    assert got.mrr == pytest.approx((1 + 1 / 2) / 2)
    assert got.hits == pytest.approx({1: 0.5, 2: 1.0})
    assert got.ranks.item() == 1.5


def test_a_perfect_prediction_scores_one_at_any_length() -> None:
    gallery = torch.randn(5, 6, 16)
    got = retrieval(gallery * torch.rand(5, 6, 1).add(0.1), gallery)
    assert got.mrr == got.hits[1] == 1.0


def test_targets_name_the_view_to_find() -> None:
    gallery = torch.randn(8, 5, 16)
    targets = torch.randint(5, (8, 3))
    queries = gallery.gather(1, targets[..., None].expand(-1, -1, 16))
    assert retrieval(queries, gallery, targets=targets).hits[1] == 1.0
    assert retrieval(queries, gallery, targets=(targets + 1) % 5).hits[1] < 0.5


def test_memory_is_bounded_by_chunks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = torch.randn(9, 4, 8), torch.randn(9, 4, 8)
    rotations = Rotation3D.random(9, 4)
    whole, error = retrieval(queries, gallery), pre(queries, gallery, rotations)
    monkeypatch.setattr(sys.modules[retrieval.__module__], "CHUNK", 50)
    assert torch.equal(retrieval(queries, gallery).ranks, whole.ranks)
    assert pre(queries, gallery, rotations).error == pytest.approx(error.error, abs=1e-6)


def test_pre_is_the_pose_of_the_nearest_row_of_any_object() -> None:
    queries, gallery, q = torch.randn(6, 4, 5), torch.randn(6, 4, 5), Rotation3D.random(6, 4)
    flat, rotations, errors = gallery.flatten(0, 1).double(), q.flatten(0, 1).double(), []
    for i, query in enumerate(queries.flatten(0, 1).double()):
        nearest = max(range(24), key=lambda j: cosine(query, flat[j]))
        errors.append(1 - float(rotations[i] @ rotations[nearest]) ** 2)
    got = pre(queries, gallery, q)
    assert got.error == pytest.approx(sum(errors) / 24, abs=1e-5)
    pairs = [1 - float(rotations[i] @ rotations[j]) ** 2 for i in range(24) for j in range(24)]
    assert got.chance == pytest.approx(sum(pairs) / 24**2, abs=1e-6)
    assert str(got).startswith(f"PRE {got.error:.3f} [")


def test_pre_and_its_chance_are_of_the_views_to_be_found() -> None:
    queries, gallery, q = torch.randn(6, 3, 5), torch.randn(6, 4, 5), Rotation3D.random(6, 4)
    targets = torch.randint(4, (6, 3))
    got, row = pre(queries, gallery, q, targets=targets), gallery.flatten(0, 1).double()
    rotations = q.flatten(0, 1).double()
    errors, chances = [], []
    for i in range(6):
        for k in range(3):
            nearest = max(range(24), key=lambda j: cosine(queries[i, k].double(), row[j]))
            sought = q[i, int(targets[i, k])].double()
            errors.append(1 - float(sought @ rotations[nearest]) ** 2)
            chances += [1 - float(sought @ other) ** 2 for other in rotations]
    assert got.error == pytest.approx(sum(errors) / 18, abs=1e-5)
    assert got.chance == pytest.approx(sum(chances) / len(chances), abs=1e-6)
    assert pre(queries[:, :1], gallery, q, targets=targets[:, :1]).chance != got.chance


def test_intervals_are_over_objects_and_over_sources_where_they_are_named() -> None:
    g = torch.Generator().manual_seed(0)
    gallery, q = torch.randn(40, 4, 16, generator=g), Rotation3D.random(40, 4, generator=g)
    lost = (torch.arange(40) % 2 == 0)[:, None, None]  # half of the objects are found in every view, half in none
    queries = torch.where(lost, torch.randn(40, 4, 16, generator=g), gallery)
    sources = torch.arange(40) % 4  # two found, two lost
    for measure in (
        lambda **named: retrieval(queries, gallery, **named),
        lambda **named: pre(queries, gallery, q, **named),
    ):
        by_object, by_source = measure().interval, measure(sources=sources).interval
        spread = 1.96 * 2 * 0.5 / 40**0.5  # of the mean of forty that are there or not, where rows would be 160
        assert 0.3 * spread < by_object.high - by_object.low < 1.2 * spread
        assert by_source.high - by_source.low > 2 * (by_object.high - by_object.low)
        with pytest.raises(ValueError, match="source of each of the 40 rows; got 39"):
            measure(sources=sources[1:])


def test_the_sign_of_a_quaternion_means_nothing() -> None:
    queries, gallery, q = torch.randn(6, 4, 5), torch.randn(6, 4, 5), Rotation3D.random(6, 4)
    signs = (torch.rand(6, 4, 1) < 0.5).float() * 2 - 1
    assert pre(queries, gallery, q * signs).error == pytest.approx(pre(queries, gallery, q).error, abs=1e-6)


def test_random_pre_is_0_63_in_the_box_of_3diebench_and_0_75_for_uniform_rotations() -> None:
    g = torch.Generator().manual_seed(0)
    box = Rotation3D.from_euler(math.pi * (torch.rand(100, 10, 3, generator=g) - 0.5))
    queries, gallery = torch.randn(100, 10, 8, generator=g), torch.randn(100, 10, 8, generator=g)
    got = pre(queries, gallery, box)
    assert got.chance == pytest.approx(0.63, abs=0.02)
    assert got.error == pytest.approx(got.chance, abs=0.03)
    assert pre(queries, gallery, Rotation3D.random(100, 10, generator=g)).chance == pytest.approx(0.75, abs=0.01)


def test_a_collapsed_encoder_has_the_pre_of_chance() -> None:
    rotations = Rotation3D.random(20, 5)
    same = torch.ones(20, 5, 17)
    got = pre(same, same, rotations)
    assert got.error == pytest.approx(got.chance, abs=1e-5)


def test_a_predictor_is_asked_a_bounded_number_of_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Counting(Exact):
        def predict(self, state: Tensor, e: Tensor) -> Tensor:
            asked.append(len(state))
            return super().predict(state, e)

    test = extract(Exact(), world(20))
    whole = action_retrieval(Counting(), test)
    assert asked == [80]
    monkeypatch.setattr(sys.modules[retrieval.__module__], "ROWS", 25)
    assert torch.equal(action_retrieval(Counting(), test).ranks, whole.ranks)
    assert max(asked[1:]) == 24


def test_one_seed_one_result() -> None:
    queries, gallery, q = torch.randn(6, 4, 5), torch.randn(6, 4, 5), Rotation3D.random(6, 4)
    before = torch.get_rng_state()
    assert retrieval(queries, gallery).interval == retrieval(queries, gallery).interval
    assert retrieval(queries, gallery).interval != retrieval(queries, gallery, seed=1).interval
    assert pre(queries, gallery, q).interval == pre(queries, gallery, q).interval
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_input_is_refused() -> None:
    x, q = torch.randn(3, 4, 5), Rotation3D.random(3, 4)
    with pytest.raises(ValueError, match=r"same objects in one width.* got \(2, 4, 5\) and \(3, 4, 5\)"):
        retrieval(x[:2], x)
    with pytest.raises(ValueError, match=r"same objects in one width"):
        retrieval(x[..., :4], x)
    with pytest.raises(ValueError, match=r"got 2 queries and 4 views\. Name the views with targets="):
        retrieval(x[:, :2], x)
    with pytest.raises(ValueError, match=r"two views of each object at least; got 1"):
        retrieval(x[:, :1], x[:, :1])
    with pytest.raises(ValueError, match=r"from 1 up; got ks=\(0, 1\)"):
        retrieval(x, x, ks=(0, 1))
    with pytest.raises(ValueError, match=r"queries must be finite; 3 of 3 rows"):
        retrieval(x * torch.nan, x)
    with pytest.raises(ValueError, match=r"gallery must have the axes \(O, V, D\); got shape \(12, 5\)"):
        retrieval(x, x.flatten(0, 1))
    with pytest.raises(ValueError, match=r"a view for each query, \(3, 4\); got torch.int64 of shape \(3,\)"):
        retrieval(x, x, targets=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(3, 4\)"):
        retrieval(x, x, targets=torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"views of the gallery, 0 … 3; got 4 … 4"):
        retrieval(x, x, targets=torch.full((3, 4), 4))
    with pytest.raises(ValueError, match=r"\(O, Q, D\), \(O, V, D\) and \(O, V, 4\); got \(3, 4, 5\), \(3, 4, 5\) and"):
        pre(x, x, q[:, :3])
    with pytest.raises(ValueError, match=r"got 3 queries and 4 views\. Name the views with targets="):
        pre(x[:, :3], x, q)
    with pytest.raises(ValueError, match=r"must be unit quaternions, x y z w; some have another length"):
        pre(x, x, 2 * q)


@pytest.mark.parametrize("views", [2, 4])
def test_the_exact_model_finds_every_view_and_its_pose_from_the_first_alone(views: int) -> None:
    test = extract(Exact(), world(20, views=views))
    assert action_retrieval(Exact(), test).mrr == 1
    assert prediction_retrieval_error(Exact(), test).error < 1e-3
