"""The loss and its regulariser."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqjepa import SeqJEPALoss, VarianceCovariance
from seqjepa.functional import cosine_distance, mse_distance, smooth_l1_distance
from seqjepa.loss import CosineDistance, LossOutput, MSEDistance, SmoothL1Distance

sizes = st.integers(1, 6)


@given(sizes, sizes)
def test_the_default_is_the_mean_cosine_distance_in_0_2(b: int, d: int) -> None:
    prediction, target = torch.randn(b, d).double(), torch.randn(b, d).double()
    out = SeqJEPALoss()(prediction, target)
    assert isinstance(out, LossOutput)
    torch.testing.assert_close(out.loss, cosine_distance(prediction, target).sum() / b)
    assert -1e-9 < out.loss < 2 + 1e-9
    torch.testing.assert_close(SeqJEPALoss()(3 * prediction, target / 7).loss, out.loss)
    assert SeqJEPALoss()(prediction, 2 * prediction).loss.abs() < 1e-9
    assert list(out.terms) == ["distance"]
    assert out.terms["distance"] == out.loss


def test_terms_are_detached_and_the_loss_is_not() -> None:
    prediction = torch.randn(4, 3, requires_grad=True)
    z = torch.randn(4, 2, 3, requires_grad=True)
    out = SeqJEPALoss(regularizer=VarianceCovariance())(prediction, torch.randn(4, 3), z)
    assert out.loss.requires_grad
    assert list(out.terms) == ["distance", "variance", "covariance"]
    assert not any(term.requires_grad for term in out.terms.values())
    out.loss.backward()
    assert prediction.grad is not None
    assert z.grad is not None


@pytest.mark.parametrize(("make", "function"), [
    (CosineDistance, cosine_distance), (MSEDistance, mse_distance), (SmoothL1Distance, smooth_l1_distance),
    (lambda: SmoothL1Distance(0.3), lambda p, t: smooth_l1_distance(p, t, 0.3)),
])  # fmt: skip
def test_distances_are_parts(make, function) -> None:
    part = make()
    prediction, target = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(part(prediction, target), function(prediction, target))
    torch.testing.assert_close(SeqJEPALoss(part)(prediction, target).loss, function(prediction, target).mean())


def naive_variance_covariance(x: torch.Tensor, std: float, eps: float) -> tuple[float, float]:
    n, d = x.shape
    mean = [sum(x[:, i]) / n for i in range(d)]
    cov = [[sum((x[k, i] - mean[i]) * (x[k, j] - mean[j]) for k in range(n)) / (n - 1) for j in range(d)]
           for i in range(d)]  # fmt: skip
    variance = sum(max(0.0, std - (float(cov[i][i]) + eps) ** 0.5) for i in range(d)) / d
    covariance = sum(float(cov[i][j]) ** 2 for i in range(d) for j in range(d) if i != j) / d
    return variance, covariance


@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 4), st.floats(0.2, 2), st.floats(1e-4, 0.1))
def test_the_regulariser_is_vicreg_s(b: int, t: int, d: int, std: float, eps: float) -> None:
    z = torch.randn(b, t, d, dtype=torch.float64)
    variance, covariance = naive_variance_covariance(z.reshape(b * t, d), std, eps)
    out = VarianceCovariance(2.0, 0.5, std=std, eps=eps)(z)
    assert out.terms["variance"].item() == pytest.approx(variance, abs=1e-9)
    assert out.terms["covariance"].item() == pytest.approx(covariance, abs=1e-9)
    assert out.loss.item() == pytest.approx(2.0 * variance + 0.5 * covariance, abs=1e-9)


def test_its_default_weights_are_vicreg_s_over_25() -> None:
    part = VarianceCovariance()
    assert (part.variance_weight, part.covariance_weight, part.std, part.eps) == (25 / 25, 1 / 25, 1.0, 1e-4)


def test_views_that_do_not_count_change_nothing() -> None:
    z = torch.randn(4, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, True, True], [True, False, True]])
    expected = VarianceCovariance()(z[mask][:, None])
    junk = z.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    got = VarianceCovariance()(junk, mask)
    torch.testing.assert_close(got.loss, expected.loss)
    torch.testing.assert_close(got.terms, expected.terms)
    got.loss.backward()
    assert junk.grad is not None
    assert junk.grad.isfinite().all()
    through_the_loss = SeqJEPALoss(regularizer=VarianceCovariance())(z[:, 0], z[:, 0], junk, mask)
    torch.testing.assert_close(through_the_loss.loss, expected.loss)


def test_a_collapsed_encoder_has_a_finite_gradient() -> None:
    z = torch.zeros(4, 2, 3, requires_grad=True)
    VarianceCovariance()(z).loss.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_half_precision_is_computed_in_float32_also_under_autocast() -> None:
    z = torch.randn(16, 4, 8)
    exact = VarianceCovariance()(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(VarianceCovariance()(z).loss, exact.loss)
    assert VarianceCovariance()(z.bfloat16()).loss.dtype == torch.float32


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, \(B, D\); got \(4, 3\) and \(4, 2\)"):
        SeqJEPALoss()(torch.randn(4, 3), torch.randn(4, 2))
    with pytest.raises(
        ValueError,
        match=r"^The regulariser looks at the encoder's outputs; got z=None\. Pass z of shape \(B, T, D\)\.$",
    ):
        SeqJEPALoss(regularizer=VarianceCovariance())(torch.randn(4, 3), torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"beta must be above 0; got 0"):
        SmoothL1Distance(0)
    for weights in ((-1.0, 0.0), (0.0, -1.0)):
        with pytest.raises(ValueError, match=rf"at least 0; got {weights[0]} and {weights[1]}"):
            VarianceCovariance(*weights)
    assert VarianceCovariance(0.0, 0.0)(torch.randn(2, 2, 2)).loss == 0


def test_a_single_view_has_no_covariance() -> None:
    out = VarianceCovariance()(torch.randn(1, 1, 4))
    assert out.terms["covariance"] == 0
    assert out.loss.isfinite()
