"""The loss and its regularisers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqjepa import SeqJEPALoss, SIGReg, VarianceCovariance
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


# --- SIGReg ---


def whole_integral(x: torch.Tensor) -> torch.Tensor:
    """N ∫ |φ_N(t) − exp(−t²/2)|² exp(−t²/2) dt of N numbers, over the whole line, in closed form."""
    n = len(x)
    pairs = (-(x[:, None] - x[None]).square() / 2).exp().sum() / n
    return math.sqrt(2 * math.pi) * (pairs - math.sqrt(2) * (-x.square() / 4).exp().sum() + n / math.sqrt(3))


def exact_sigreg(**options: float) -> SIGReg:
    """So many knots, so far out, that the sum is the integral."""
    return SIGReg(1.0, knots=401, t_max=12.0, **options)  # type: ignore[arg-type]


@given(st.integers(1, 9), st.floats(0.1, 3), st.floats(-2, 2))
def test_of_one_feature_sigreg_is_the_closed_form(n: int, spread: float, middle: float) -> None:
    x = torch.randn(n, dtype=torch.float64) * spread + middle
    got = exact_sigreg(slices=2)(x[:, None, None])
    torch.testing.assert_close(got.loss, whole_integral(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(got.terms, {"sigreg": got.loss})


def test_its_default_knots_come_near_the_whole_integral() -> None:
    for x in (torch.randn(200), torch.zeros(200), torch.rand(200) * 4, torch.randn(200) + 3):
        torch.testing.assert_close(SIGReg(1.0)(x[:, None, None]).loss, whole_integral(x), rtol=0.02, atol=0.02)


def test_normal_rows_give_one_value_however_many_and_equal_rows_one_in_proportion() -> None:
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))  # ∫ (1 − exp(−t²)) exp(−t²/2) dt: 1.06
    for n in (10, 100):
        z = torch.randn(n, 1000, 4)
        torch.testing.assert_close(SIGReg(1.0, slices=8)(z).loss, torch.tensor(expected), rtol=0.05, atol=0)
    equal = math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    for n in (1, 7):
        torch.testing.assert_close(exact_sigreg()(torch.zeros(n, 2, 3)).loss, torch.tensor(equal * n))


@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 4))
def test_sigreg_is_the_mean_over_steps_and_directions(b: int, t: int, d: int) -> None:
    """Beside a loop over steps, directions and knots, with the directions that the same seed draws."""
    z = torch.randn(b, t, d, dtype=torch.float64)
    torch.manual_seed(1)
    got = SIGReg(0.3, slices=4, knots=5, t_max=2.0)(z)
    torch.manual_seed(1)
    directions = torch.randn(4, d, dtype=torch.float64)
    total = 0.0
    for step in range(t):
        for a in directions:
            projected = z[:, step] @ a / a.norm()
            for k in range(5):
                knot = k * 0.5
                real = sum(math.cos(knot * float(x)) for x in projected) / b - math.exp(-(knot**2) / 2)
                imaginary = sum(math.sin(knot * float(x)) for x in projected) / b
                width = 0.5 if k in (0, 4) else 1.0  # twice the trapezoids' half, for both signs of t
                total += b * (real**2 + imaginary**2) * math.exp(-(knot**2) / 2) * width / (4 * t)
    assert got.terms["sigreg"].item() == pytest.approx(total, abs=1e-9)
    assert got.loss.item() == pytest.approx(0.3 * total, abs=1e-9)


def sigreg(z: torch.Tensor, mask: torch.Tensor | None = None, seed: int = 0) -> LossOutput:
    torch.manual_seed(seed)
    return SIGReg(1.0, slices=8)(z, mask)


def test_a_batch_doubled_doubles_sigreg() -> None:
    z = torch.randn(6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(sigreg(torch.cat([z, z])).loss, 2 * sigreg(z).loss, rtol=1e-12, atol=0)


def test_sigreg_does_not_look_at_axes_but_at_every_direction() -> None:
    z = torch.randn(32, 2, 6, dtype=torch.float64).exp()  # far from normal
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    many = SIGReg(1.0, slices=1000)
    torch.testing.assert_close(many(z @ turn).loss, many(z).loss, rtol=0.05, atol=0)
    copies = z[..., :1].expand(-1, -1, 6)  # each feature as varied as the other, all the same
    copies = (copies - copies.mean(0)) / copies.std(0)
    assert many(copies).loss > 5 * many(torch.randn_like(z)).loss


def test_sigreg_counts_no_view_that_the_mask_leaves_out() -> None:
    z = torch.randn(5, 4, 3, dtype=torch.float64)
    mask = torch.rand(5, 4) < 0.6
    mask[0], mask[:, 2] = True, False  # a step without a view does not count
    junk = z.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    got = sigreg(junk, mask)
    each = torch.stack([sigreg(z[mask[:, t], t][:, None]).loss for t in (0, 1, 3)])
    torch.testing.assert_close(got.loss, each.mean())
    got.loss.backward()
    assert junk.grad is not None
    assert (junk.grad[~mask] == 0).all()
    assert junk.grad[mask].abs().min() > 0
    nothing = sigreg(junk, torch.zeros_like(mask))
    assert nothing.loss == 0
    through_the_loss = SeqJEPALoss(regularizer=SIGReg(0.5))(z[:, 0], z[:, 0], junk, mask)
    assert list(through_the_loss.terms) == ["distance", "sigreg"]
    assert through_the_loss.loss.isfinite()


def test_sigreg_pushes_collapsed_rows_apart_and_leaves_exact_zeros() -> None:
    zeros = torch.zeros(8, 1, 4, requires_grad=True)
    sigreg(zeros).loss.backward()
    assert zeros.grad is not None
    assert not zeros.grad.any()  # a point of balance, which the smallest difference leaves
    near = (1e-3 * torch.randn(8, 1, 4)).requires_grad_()
    sigreg(near).loss.backward()
    assert near.grad is not None
    assert ((near - 0.1 * near.grad).var(0) > near.var(0)).all()


def test_sigreg_makes_numbers_normal() -> None:
    x = (torch.rand(64, 1, 2) * 0.2).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(200):
        loss = SIGReg(1.0, slices=8)(x).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    flat = x.detach()[:, 0]
    torch.testing.assert_close(torch.cov(flat.T), torch.eye(2), rtol=0, atol=0.15)
    assert flat.mean(0).abs().max() < 0.1
    assert max(whole_integral(column) for column in flat.T) < 0.3  # draws from a normal have 1.06


def test_sigreg_computes_half_precision_in_float32_also_under_autocast() -> None:
    z = torch.randn(16, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sigreg(z).loss, sigreg(z).loss)
        under = sigreg(z).loss
    assert torch.equal(under, sigreg(z).loss)
    assert sigreg(z.bfloat16()).loss.dtype == torch.float32


def test_one_seed_gives_one_sigreg_and_each_call_draws_anew() -> None:
    z = torch.randn(16, 4, 8)
    assert torch.equal(sigreg(z, seed=3).loss, sigreg(z, seed=3).loss)
    part = SIGReg(1.0, slices=8)
    assert not torch.equal(part(z).loss, part(z).loss)


def test_wrong_sigregs_are_refused() -> None:
    for options, message in (
        ({"weight": -1.0}, r"weight must be at least 0; got -1"),
        ({"weight": math.nan}, r"weight must be at least 0; got nan"),
        ({"slices": 0}, r"1 slice and 2 knots at least; got slices=0 and knots=17"),
        ({"knots": 1}, r"got slices=256 and knots=1"),
        ({"t_max": 0.0}, r"must be above 0 and finite; got 0"),
        ({"t_max": math.inf}, r"must be above 0 and finite; got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            SIGReg(**options)
    with pytest.raises(ValueError, match=r"z must have the axes \(B, T, D\); got shape \(4, 3\)"):
        SIGReg()(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"one entry per observed view, shape \(4, 3\); got \(4, 2\)"):
        SIGReg()(torch.randn(4, 3, 2), torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask must be bool"):
        SIGReg()(torch.randn(4, 3, 2), torch.ones(4, 3))
    part = SIGReg()
    assert (part.weight, part.slices, part.knots, part.t_max) == (0.1, 256, 17, 3.0)
