"""Distances and schedules: limits, invariances, and plain-Python references."""

import copy
import dataclasses
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqjepa.functional import (
    CosineSchedule,
    WarmupCosineSchedule,
    cosine_distance,
    mse_distance,
    smooth_l1_distance,
)

vectors = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 10_000))
scales = st.floats(1e-3, 1e3)


def pair(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    b, d, seed = shape
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, d, generator=g, dtype=dtype), torch.randn(b, d, generator=g, dtype=dtype)


@given(vectors, st.sampled_from([torch.float32, torch.float64]))
def test_cosine_distance_is_one_minus_the_cosine_in_0_2(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    p, t = pair(shape, dtype)
    got = cosine_distance(p, t)
    naive = [1 - sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)
             for x, y in zip(p.tolist(), t.tolist(), strict=True)]  # fmt: skip
    assert got.tolist() == pytest.approx(naive, abs=1e-5)
    assert got.dtype == dtype
    assert (got > -1e-6).all()
    assert (got < 2 + 1e-6).all()


@given(vectors, scales, scales)
def test_cosine_distance_ignores_the_scale_of_either_side(shape: tuple[int, int, int], a: float, b: float) -> None:
    p, t = pair(shape)
    torch.testing.assert_close(cosine_distance(a * p, b * t), cosine_distance(p, t), atol=1e-9, rtol=0)


@given(vectors, scales)
def test_cosine_distance_is_0_along_a_vector_and_2_against_it(shape: tuple[int, int, int], a: float) -> None:
    p, _ = pair(shape)
    torch.testing.assert_close(cosine_distance(p, a * p), torch.zeros(len(p), dtype=p.dtype), atol=1e-9, rtol=0)
    torch.testing.assert_close(cosine_distance(p, -a * p), torch.full((len(p),), 2.0, dtype=p.dtype), atol=1e-9, rtol=0)


def test_a_zero_vector_is_at_distance_one_with_a_finite_gradient() -> None:
    p = torch.zeros(1, 4, requires_grad=True)
    distance = cosine_distance(p, torch.ones(1, 4))
    distance.sum().backward()
    assert distance.item() == 1
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_norms_below_1e_8_count_as_1e_8() -> None:
    tiny = torch.tensor([[1e-9, 0.0]], dtype=torch.float64)
    assert cosine_distance(tiny, torch.tensor([[1.0, 0.0]], dtype=torch.float64)).item() == pytest.approx(0.9)


@given(vectors, st.floats(0.1, 3))
def test_smooth_l1_is_quadratic_below_beta_and_linear_above(shape: tuple[int, int, int], beta: float) -> None:
    p, t = pair(shape)
    naive = [
        sum(d * d / (2 * beta) if abs(d) < beta else abs(d) - beta / 2 for d in row) / len(row)
        for row in (p - t).tolist()
    ]
    assert smooth_l1_distance(p, t, beta).tolist() == pytest.approx(naive)


@given(vectors)
def test_mse_is_the_mean_square_over_features(shape: tuple[int, int, int]) -> None:
    p, t = pair(shape)
    assert mse_distance(p, t).tolist() == pytest.approx([sum(d * d for d in r) / len(r) for r in (p - t).tolist()])


@pytest.mark.parametrize("distance", [cosine_distance, smooth_l1_distance, mse_distance])
def test_distances_are_taken_over_the_last_axis_whatever_comes_before(distance) -> None:
    p, t = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(distance(p, t), distance(p.reshape(24, 5), t.reshape(24, 5)).reshape(2, 3, 4))


@pytest.mark.parametrize("distance", [cosine_distance, smooth_l1_distance, mse_distance])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(distance, half) -> None:
    p, t = (x.to(half) for x in pair((3, 5, 1), torch.float32))
    got = distance(p, t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, distance(p.float(), t.float()))
    assert distance(p, t.double()).dtype == torch.float64
    assert distance(p.double(), t).dtype == torch.float64


def test_smooth_l1_has_a_beta_of_one_by_default() -> None:
    assert smooth_l1_distance(torch.tensor([[0.5]]), torch.tensor([[0.0]])).item() == 0.125


@given(st.floats(-2, 2), st.floats(-2, 2), st.integers(1, 1000))
def test_the_cosine_schedule_goes_from_start_to_end_and_stays(start: float, end: float, total: int) -> None:
    schedule = CosineSchedule(start, end, total)
    values = [schedule(step) for step in range(total + 2)]
    assert values[0] == pytest.approx(start, abs=1e-12)
    assert values[total] == values[total + 1] == pytest.approx(end, abs=1e-12)
    steps = [(b - a) * (end - start) for a, b in itertools.pairwise(values)]
    assert all(s >= -1e-12 for s in steps)  # monotone
    for step in range(total + 1):
        released = end - (end - start) * (math.cos(math.pi * step / total) + 1) / 2
        assert values[step] == pytest.approx(released, abs=1e-12)


def test_the_cosine_schedule_is_half_way_at_half_time_and_a_quarter_turn_at_a_third() -> None:
    assert CosineSchedule(0.0, 1.0, 6)(3) == pytest.approx(0.5)
    assert CosineSchedule(0.0, 1.0, 6)(2) == pytest.approx(0.25)


@given(st.integers(1, 50), st.integers(1, 200))
def test_the_warmup_is_a_line_and_the_decay_a_cosine(warmup: int, rest: int) -> None:
    rate = WarmupCosineSchedule(1e-5, 4e-4, 2e-5, warmup, warmup + rest)
    for step in range(warmup + 1):
        assert rate(step) == pytest.approx(1e-5 + (4e-4 - 1e-5) * step / warmup)
    for step in range(rest + 1):
        assert rate(warmup + step) == pytest.approx(CosineSchedule(4e-4, 2e-5, rest)(step))
    assert rate(10_000) == pytest.approx(2e-5)


def test_no_warmup_starts_at_the_peak() -> None:
    assert WarmupCosineSchedule(0.0, 1.0, 0.0, 0, 10)(0) == 1.0


@pytest.mark.parametrize("total", [0, -3])
def test_a_run_without_steps_is_refused(total: int) -> None:
    with pytest.raises(ValueError, match=rf"length of the run in steps, at least 1; got {total}"):
        CosineSchedule(0.9, 1.0, total)
    assert CosineSchedule(0.9, 1.0, 1)(0) == pytest.approx(0.9)


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_a_warmup_that_does_not_end_is_refused(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"must end before the run does.*got {warmup} of 10 steps"):
        WarmupCosineSchedule(0.0, 1.0, 0.0, warmup, 10)


# --- schedules and checkpoints ---

SCHEDULES = [
    (CosineSchedule(1.0, 0.1, 10), CosineSchedule(1.0, 0.1, 100)),
    (WarmupCosineSchedule(0.1, 1.0, 0.1, 2, 10), WarmupCosineSchedule(0.1, 1.0, 0.1, 2, 100)),
]


@pytest.mark.parametrize(("short", "long"), SCHEDULES)
@pytest.mark.parametrize("kind", [torch.optim.lr_scheduler.LambdaLR, torch.optim.lr_scheduler.MultiplicativeLR])
@pytest.mark.parametrize("old", [False, True])
def test_a_run_resumed_with_another_schedule_follows_it(short: Any, long: Any, kind: Any, old: bool) -> None:
    def build(schedule: Any) -> tuple[torch.optim.SGD, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, kind(optimizer, schedule)

    def steps(optimizer: torch.optim.SGD, scheduler: Any, count: int) -> list[float]:
        rates = []
        for _ in range(count):
            optimizer.step()
            scheduler.step()
            rates.append(scheduler.get_last_lr()[0])
        return rates

    optimizer, scheduler = build(short)
    steps(optimizer, scheduler, 10)
    saved = [optimizer.state_dict(), scheduler.state_dict()]
    if old:  # a checkpoint from before, which holds the schedule's settings
        saved[1]["lr_lambdas"] = [dataclasses.asdict(short)]
    optimizer, scheduler = build(long)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    assert scheduler.lr_lambdas[0] == long
    rates = steps(optimizer, scheduler, 5)
    if kind is torch.optim.lr_scheduler.LambdaLR:
        assert rates == [long(step) for step in range(11, 16)]


@pytest.mark.parametrize("schedule", [schedule for pair in SCHEDULES for schedule in pair])
def test_a_schedule_is_a_value_that_nothing_changes(schedule: Any) -> None:
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)), dataclasses.replace(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert [twin(step) for step in range(12)] == [schedule(step) for step in range(12)]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'total_steps'"):
        schedule.total_steps = 3


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 50), st.integers(0, 60))
def test_a_schedule_gives_a_tensor_the_value_of_the_number(start: float, end: float, total: int, step: int) -> None:
    schedule = CosineSchedule(start, end, total)
    value = schedule(torch.tensor(step))
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(schedule(step), abs=1e-15)
