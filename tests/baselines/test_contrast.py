"""NTXent: its closed forms, its limits, and a slow loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjepa.baselines import NTXent
from tests.baselines.builders import slow_ntxent


def rows(n: int, p: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, n, p, generator=g, dtype=torch.float64)
    return u.requires_grad_(), v.requires_grad_()


def simplex(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64) - 1 / n


@given(st.integers(2, 6), st.integers(2, 5), st.sampled_from([0.01, 0.1, 0.5, 2.0]))
def test_it_is_the_definition_gradients_too(n: int, p: int, temperature: float) -> None:
    u, v = rows(n, p, n * p)
    fast, slow = NTXent(temperature)(u, v), slow_ntxent(u, v, temperature)
    torch.testing.assert_close(fast, slow)
    assert fast >= 0
    by_rows, expected = torch.autograd.grad(fast, [u, v]), torch.autograd.grad(slow, [u, v])
    torch.testing.assert_close(by_rows, expected)
    for x, gradient in zip((u, v), by_rows, strict=True):  # the length of a row never matters
        assert (x * gradient).sum(1).abs().max() < 1e-9


def test_it_has_its_closed_forms() -> None:
    loss = NTXent(0.5)
    for n in (2, 4, 9):
        assert loss(torch.ones(n, 3), torch.ones(n, 3)).item() == pytest.approx(math.log(2 * n - 1), abs=1e-6)
        at_right_angles = math.log(1 + (2 * n - 2) * math.exp(-1 / 0.5))
        assert loss(torch.eye(n), torch.eye(n)).item() == pytest.approx(at_right_angles, abs=1e-6)
        least = math.log(1 + (2 * n - 2) * math.exp(-(1 + 1 / (n - 1)) / 0.5))
        assert loss(simplex(n), simplex(n)).item() == pytest.approx(least, abs=1e-9)
        u, v = rows(n, n)
        assert loss(u, v) > least
        assert NTXent(1e9)(u, v).item() == pytest.approx(math.log(2 * n - 1), abs=1e-6)
    assert loss(torch.eye(4), torch.eye(4)).item() == pytest.approx(0.594438, abs=1e-6)
    assert loss(simplex(4), simplex(4)).item() == pytest.approx(0.348472, abs=1e-6)
    assert NTXent(0.1)(
        torch.eye(512, dtype=torch.float64), torch.eye(512, dtype=torch.float64)
    ).item() == pytest.approx(0.045354, abs=1e-6)


@given(st.integers(2, 5))
@settings(max_examples=5)
def test_sides_sources_and_lengths_may_be_changed_about(n: int) -> None:
    u, v = rows(n, 4, n)
    loss = NTXent(0.3)
    order = torch.randperm(n)
    for other in (loss(v, u), loss(u[order], v[order]), loss(3 * u, v / 7)):
        torch.testing.assert_close(other, loss(u, v))


def test_half_precision_and_autocast_change_no_logit() -> None:
    u, v = (x.detach().float() for x in rows(6, 8))
    exact = NTXent(0.1)(u, v)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(NTXent(0.1)(u, v), exact)
    half = NTXent(0.01)(u.half(), v.half())
    assert half.dtype == torch.float32
    assert half.isfinite()


def test_a_zero_row_has_a_finite_loss_and_gradient() -> None:
    u = torch.zeros(3, 4, requires_grad=True)
    loss = NTXent(0.1)(u, torch.randn(3, 4))
    loss.backward()
    assert loss.isfinite()
    assert u.grad is not None
    assert u.grad.isfinite().all()


def test_wrong_input_is_refused() -> None:
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            NTXent(temperature)
    with pytest.raises(ValueError, match=r"one shape, \(N, P\); got \(3, 4\) and \(2, 4\)"):
        NTXent()(torch.randn(3, 4), torch.randn(2, 4))
    for part in (NTXent(), NTXent().eval()):
        with pytest.raises(ValueError, match="takes two of them at least; got 1"):
            part(torch.randn(1, 4), torch.randn(1, 4))


def test_it_is_lightly_s_and_pytorch_metric_learning_s() -> None:
    lightly = pytest.importorskip("lightly.loss")
    metric_learning = pytest.importorskip("pytorch_metric_learning.losses")
    u, v = rows(6, 5)
    names = torch.arange(6).repeat(2)
    others = (
        lambda t: lightly.NTXentLoss(temperature=t, memory_bank_size=0)(u, v),
        lambda t: metric_learning.NTXentLoss(t)(torch.cat([u, v]), names),
    )
    for temperature in (0.1, 0.5):
        ours = NTXent(temperature)(u, v)
        for other in others:
            theirs = other(temperature)
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
            gradients = (torch.autograd.grad(x, [u, v], retain_graph=True) for x in (ours, theirs))
            torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
