"""R² of linear and MLP regressions, and angles of rotations."""

import copy
import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from seqjepa.evaluation import Regression, _mlp, regression_r2, rotation_error
from seqjepa.evaluation._statistics import FOLDS, Standardizer, draw_folds, hold_out
from seqjepa.groups import Rotation3D

SMALL: dict[str, Any] = {"hidden": (64, 64)}


def linear_data(n: int = 400, d: int = 20, noise: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets of three scales and offsets, linear in ill-scaled features, with noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, d, generator=g) @ torch.randn(d, d, generator=g) * torch.logspace(-2, 2, d) + 3
    y = (x - 3) / torch.logspace(-2, 2, d) @ torch.randn(d, 3, generator=g) / d**0.5
    y = (y + noise * torch.randn(2 * n, 3, generator=g)) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor(
        [0.0, 50.0, 3.0]
    )
    return x[:n], y[:n], x[n:], y[n:]


def curved_data(n: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets that no linear map tells: products and a sine, with a little noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, 8, generator=g)
    y = torch.stack([x[:, 0] * x[:, 1], (2 * x[:, 2]).sin() + x[:, 3].abs()], 1) + 0.1 * torch.randn(
        2 * n, 2, generator=g
    )
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.parametrize("l2", [1e-4, 1e-1, 10.0])
def test_the_linear_fit_is_scikit_learn_s_ridge(l2: float) -> None:
    x, y, tx, ty = linear_data()
    scaler = StandardScaler().fit(x.double().numpy())
    mean, std = y.double().mean(0), y.double().std(0, correction=0)
    reference = Ridge(alpha=l2 * len(x)).fit(scaler.transform(x.double().numpy()), ((y - mean) / std).numpy())
    expected = torch.tensor(reference.predict(scaler.transform(tx.double().numpy()))) * std + mean
    got = regression_r2(x, y, tx, ty, hidden=(), l2=l2)
    torch.testing.assert_close(got.predictions.double(), expected, rtol=1e-3, atol=1e-3)
    assert got.mean == pytest.approx(r2_score(ty.numpy(), expected.numpy()), abs=1e-4)
    assert got.per_output == pytest.approx(r2_score(ty.numpy(), expected.numpy(), multioutput="raw_values"), abs=1e-4)
    assert got.l2 == l2
    assert got.steps is None


def test_without_regularisation_it_is_least_squares_also_where_features_repeat() -> None:
    x, y, tx, ty = (part.double() for part in linear_data())
    expected = regression_r2(x, y, tx, ty, hidden=(), l2=0.0)
    twice = regression_r2(x.repeat(1, 2), y, tx.repeat(1, 2), ty, hidden=(), l2=0.0)
    torch.testing.assert_close(twice.predictions, expected.predictions, rtol=1e-6, atol=1e-6)
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    solution = torch.linalg.lstsq(torch.cat([x, ones], 1), y, driver="gelsd").solution
    torch.testing.assert_close(expected.predictions, torch.cat([tx, ones], 1) @ solution, rtol=1e-6, atol=1e-6)


def test_the_chosen_regularisation_is_near_the_best_for_new_rows() -> None:
    x, y, tx, ty = linear_data(n=60, d=50, noise=8.0)
    grid = (1e-6, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    each = {l2: regression_r2(x, y, tx, ty, hidden=(), l2=l2).mean for l2 in grid}
    chosen = regression_r2(x, y, tx, ty, hidden=(), l2=grid)
    assert chosen.mean > max(each.values()) - 0.05
    assert chosen.mean > each[1e-6] + 0.2
    assert chosen.mean == each[chosen.l2 or 0.0]


def test_the_mlp_agrees_with_scikit_learn_s() -> None:
    x, y, tx, ty = curved_data(3000)
    mean, std = y.mean(0), y.std(0)
    reference = MLPRegressor(
        hidden_layer_sizes=(64, 64),
        early_stopping=True,
        batch_size=256,
        n_iter_no_change=20,
        random_state=0,
        max_iter=400,
    )
    reference.fit(x.numpy(), ((y - mean) / std).numpy())
    expected = r2_score(ty.numpy(), reference.predict(tx.numpy()) * std.numpy() + mean.numpy())
    got = regression_r2(x, y, tx, ty, **SMALL)
    assert got.mean > 0.9
    assert abs(got.mean - expected) < 0.01
    assert regression_r2(x, y, tx, ty, hidden=()).mean < 0.3


def test_an_mlp_of_pure_noise_stays_near_zero_instead_of_far_below() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 100, generator=g), torch.randn(400, 3, generator=g)
    got = regression_r2(x[:200], y[:200], x[200:], y[200:], hidden=(256, 256))
    assert -0.05 < got.mean < 0.05
    assert got.chance <= 0


def test_the_best_round_is_kept_not_the_last() -> None:
    x, y, tx, ty = linear_data(n=120, d=100, noise=3.0)
    early, late = (regression_r2(x, y, tx, ty, hidden=(256,), max_epochs=n) for n in (300, 1))
    assert early.steps is not None
    assert late.steps is not None
    assert late.steps <= 2
    assert early.mean > -0.1


def test_fitting_stops_after_three_rounds_without_progress_and_keeps_the_mean_where_nothing_was_learnt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    predict = _mlp.predict

    def counted(parameters: list[Tensor], x: Tensor) -> Tensor:
        looks.append(x.shape[1])
        return predict(parameters, x)

    monkeypatch.setattr(_mlp, "predict", counted)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 20, generator=g), torch.randn(300, 2, generator=g) + 5  # nothing to learn
    got = regression_r2(x[:200], y[:200], x[200:], y[200:], hidden=(32,))
    assert looks == [20, 20, 20, 100]  # three looks at the held-out tenth, then the test rows
    assert got.steps == 0
    torch.testing.assert_close(got.predictions, y[:200].mean(0).expand(100, 2))


@pytest.mark.parametrize("settings", [{"hidden": ()}, {**SMALL, "max_epochs": 2}])
def test_the_defaults_of_torch_change_nothing(settings: dict[str, Any], torch_defaults: Any) -> None:
    x, y, tx, ty = linear_data(n=60)
    expected = regression_r2(x, y, tx, ty, **settings)
    with torch_defaults():
        got = regression_r2(x, y, tx, ty, **settings)
    assert torch.equal(got.predictions, expected.predictions)
    assert (got.mean, got.interval, got.pooled_interval) == (
        expected.mean, expected.interval, expected.pooled_interval,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_features_of_any_precision_are_taken(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=g)
    y = x[:, :2] + 0.1 * torch.randn(200, 2, generator=g)
    got = regression_r2(x[:100].to(dtype), y[:100].to(dtype), x[100:].to(dtype), y[100:].to(dtype), hidden=())
    assert got.mean == pytest.approx(regression_r2(x[:100], y[:100], x[100:], y[100:], hidden=()).mean, abs=0.02)


def naive_r2(y: Tensor, o: Tensor) -> tuple[float, float]:
    n, k = y.shape
    per = []
    for j in range(k):
        mean = sum(float(v) for v in y[:, j]) / n
        per.append(
            1 - sum(float(y[i, j] - o[i, j]) ** 2 for i in range(n)) / sum((float(v) - mean) ** 2 for v in y[:, j])
        )
    m = sum(float(v) for v in y.flatten()) / (n * k)
    error = sum(float(v) ** 2 for v in (y - o).flatten())
    return sum(per) / k, 1 - error / sum((float(v) - m) ** 2 for v in y.flatten())


@given(st.integers(3, 12), st.integers(1, 4))
def test_both_forms_of_r2_are_what_their_formulas_say(n: int, k: int) -> None:
    x, y = torch.randn(2 * n, 3).double(), (torch.randn(2 * n, k) + torch.arange(k)).double()
    got = regression_r2(x[:n], y[:n], x[n:], y[n:], hidden=(), l2=1.0)
    mean, pooled = naive_r2(y[n:], got.predictions)
    assert (got.mean, got.pooled) == pytest.approx((mean, pooled), rel=1e-9)
    chance = naive_r2(y[n:], y[:n].mean(0).expand(n, k))
    assert (got.chance, got.pooled_chance) == pytest.approx(chance, rel=1e-9)


def test_a_constant_scores_zero_in_one_form_and_0_23_on_quaternions_in_the_other() -> None:
    g = torch.Generator().manual_seed(0)
    euler = math.pi * (torch.rand(40_000, 3, generator=g) - 0.5)  # 3DIEBench's box
    q = Rotation3D.from_euler(euler)
    relative = Rotation3D().relative(q[:20_000], q[20_000:])
    noise = torch.randn(20_000, 2, generator=g)
    got = regression_r2(noise[:10_000], relative[:10_000], noise[10_000:], relative[10_000:], hidden=())
    assert got.chance == pytest.approx(0, abs=1e-3)
    assert got.pooled_chance == pytest.approx(0.23, abs=0.03)
    assert got.pooled == pytest.approx(got.pooled_chance, abs=1e-3)


def test_offsets_and_scales_of_features_and_targets_change_nothing() -> None:
    x, y, tx, ty = curved_data(500)
    for settings in ({"hidden": ()}, {**SMALL, "max_epochs": 5}):
        plain = regression_r2(x, y, tx, ty, **settings)
        moved = regression_r2(4 * x + 8, 100 + 64 * y, 4 * tx + 8, 100 + 64 * ty, **settings)
        assert moved.mean == pytest.approx(plain.mean, abs=2e-3)


def test_one_output_may_come_as_a_vector() -> None:
    x, y, tx, ty = linear_data()
    column = regression_r2(x, y[:, :1], tx, ty[:, :1], hidden=())
    vector = regression_r2(x, y[:, 0], tx, ty[:, 0], hidden=())
    assert vector.predictions.shape == (len(tx),)
    assert vector.mean == column.mean == pytest.approx(vector.pooled)


def test_sources_make_the_interval_honest() -> None:
    g = torch.Generator().manual_seed(0)
    source = torch.arange(50).repeat_interleave(8)
    of_source = torch.randn(100, 1, generator=g)
    x = torch.randn(800, 1, generator=g)
    both = torch.cat([source, source + 50])
    y = x + of_source[both]  # the error is the source's
    args = x[:400], y[:400], x[400:], y[400:]
    named = regression_r2(*args, hidden=(), l2=1e-3, test_sources=source)
    unnamed = regression_r2(*args, hidden=(), l2=1e-3)
    assert named.mean == pytest.approx(unnamed.mean)
    width, narrow = (r.interval.high - r.interval.low for r in (named, unnamed))
    assert width > 1.3 * narrow
    assert named.interval.low < named.mean < named.interval.high
    assert named.pooled_interval.low < named.pooled < named.pooled_interval.high


def test_resamples_of_rows_that_are_alike_give_the_interval_no_r2_beyond_one() -> None:
    x, y, tx, _ = linear_data()
    rare = 1e3 + torch.eye(40)[:, :1]  # one row in 40: it is in two resamples of three
    got = regression_r2(x, 1e3 + y[:, :1], tx[:40], rare, hidden=())
    for interval, value in ((got.interval, got.mean), (got.pooled_interval, got.pooled)):
        assert interval.low <= value <= interval.high <= 1


@pytest.mark.parametrize("settings", [{"hidden": ()}, {**SMALL, "max_epochs": 3}])
def test_one_seed_one_result_whatever_the_caller_works_under(settings: dict[str, Any]) -> None:
    x, y, tx, ty = curved_data(300)
    before = torch.get_rng_state()
    first = regression_r2(x, y, tx, ty, **settings)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        second = regression_r2(x.clone(), y.clone(), tx.clone(), ty.clone(), **settings)
    third = regression_r2(x.clone().requires_grad_(), y, tx, ty, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.predictions, second.predictions)
    assert torch.equal(first.predictions, third.predictions)
    assert not first.predictions.requires_grad
    assert first.interval == second.interval
    assert regression_r2(x, y, tx, ty, **settings, seed=1).interval != first.interval


def test_the_result_prints_as_one_line() -> None:
    got = regression_r2(*linear_data(), hidden=(), l2=1.0)
    assert isinstance(got, Regression)
    assert str(got).startswith(f"R² {got.mean:.3f} [")
    assert f"{got.pooled:.3f} [" in str(got)
    assert "\n" not in str(got)
    assert "tensor" not in repr(got)


def test_wrong_input_is_refused() -> None:
    x, y, tx, ty = linear_data(n=30)
    constant = y.clone()
    constant[:, 1] = 3.3
    with pytest.raises(ValueError, match=r"no output has any in both .* train_y has none in output 0\. Draw rows"):
        regression_r2(x, constant[:, 1:2], tx, ty[:, 1:2])
    with pytest.raises(ValueError, match=r"no output has any in both .* test_y, of 1 rows, has none in output 0, 1, 2"):
        regression_r2(x, y, tx[:1], ty[:1])
    with pytest.raises(ValueError, match=r"train_y must be finite; 30 of 30 rows"):
        regression_r2(x, y * torch.nan, tx, ty)
    with pytest.raises(ValueError, match=r"got 30 rows of train_x, 29 rows of train_y"):
        regression_r2(x, y[1:], tx, ty)
    with pytest.raises(ValueError, match=r"got 30 rows of test_x, 29 rows of test_y"):
        regression_r2(x, y, tx, ty[1:])
    with pytest.raises(ValueError, match=r"one number of outputs; got 3 and 2"):
        regression_r2(x, y, tx, ty[:, :2])
    with pytest.raises(ValueError, match=r"one encoder; got widths 20 and 19"):
        regression_r2(x, y, tx[:, 1:], ty)
    with pytest.raises(TypeError, match=r"train_y must be floating point; got torch.int64"):
        regression_r2(x, y.long(), tx, ty)
    with pytest.raises(TypeError, match=r"train_y must be a torch.Tensor; got list"):
        regression_r2(x, y.tolist(), tx, ty)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"test_y must have the axes \(N, K\); got shape \(30, 3, 1\)"):
        regression_r2(x, y, tx, ty[..., None])
    with pytest.raises(ValueError, match=r"hidden lists the widths .* got \(8, 0\)"):
        regression_r2(x, y, tx, ty, hidden=(8, 0))
    with pytest.raises(ValueError, match=r"max_epochs must be at least 1; got 0"):
        regression_r2(x, y, tx, ty, max_epochs=0)
    for l2 in (-1.0, (), (1.0, -1e-9)):
        with pytest.raises(ValueError, match=r"l2 must be at least 0"):
            regression_r2(x, y, tx, ty, hidden=(), l2=l2)
    one = torch.zeros(30, dtype=torch.long)
    with pytest.raises(ValueError, match=r"two rows \(or sources\) at least; got 30 rows of one source"):
        regression_r2(x, y, tx, ty, hidden=(), train_sources=one)
    assert regression_r2(x, y, tx, ty, hidden=(), l2=1.0, train_sources=one).l2 == 1.0


def test_the_angle_is_right_whatever_the_length_and_the_sign() -> None:
    g = torch.Generator().manual_seed(0)
    truth = Rotation3D.random(300, generator=g)
    turn = torch.rand(300, generator=g) * math.pi
    axis = torch.nn.functional.normalize(torch.randn(300, 3, generator=g), dim=1)
    by = torch.cat([axis * (turn / 2).sin()[:, None], (turn / 2).cos()[:, None]], 1)
    predicted = Rotation3D().compose(truth, by) * torch.linspace(-3, 2.9, 300)[:, None]
    got = rotation_error(predicted, truth)
    torch.testing.assert_close(got.degrees, torch.rad2deg(turn), atol=1e-2, rtol=0)
    assert got.mean == pytest.approx(torch.rad2deg(turn).mean().item(), abs=1e-2)
    assert got.median == pytest.approx(torch.rad2deg(turn).median().item(), abs=1e-2)
    assert got.interval.low < got.mean < got.interval.high
    assert str(got).startswith(f"{got.mean:.1f}° [")


def test_chance_is_that_of_other_rows() -> None:
    g = torch.Generator().manual_seed(0)
    uniform = Rotation3D.random(3000, generator=g)
    expected = math.degrees(math.pi / 2 + 2 / math.pi)  # the mean angle of a Haar rotation
    assert rotation_error(uniform, uniform).chance == pytest.approx(expected, abs=1)
    few = Rotation3D.random(5, generator=g)
    pairs = [math.degrees(Rotation3D().distance(few[i], few[j])) for i in range(5) for j in range(5) if i != j]
    assert rotation_error(few, few).chance == pytest.approx(sum(pairs) / 20, abs=1e-3)
    named = rotation_error(
        few.repeat(3, 1), few.repeat(3, 1), sources=torch.arange(5).repeat(3)
    )  # no pose meets itself
    assert named.chance == pytest.approx(sum(pairs) / 20, abs=1e-3)
    assert math.isnan(rotation_error(few, few, sources=torch.zeros(5, dtype=torch.long)).chance)
    assert math.isnan(rotation_error(few[:1], few[:1]).chance)


def test_wrong_rotations_are_refused() -> None:
    q = Rotation3D.random(6)
    with pytest.raises(ValueError, match=r"have a direction; some are zero"):
        rotation_error(torch.zeros(6, 4), q)
    with pytest.raises(ValueError, match=r"predicted must be quaternions x y z w, \(M, 4\); got shape \(6, 3\)"):
        rotation_error(q[:, :3], q)
    with pytest.raises(ValueError, match=r"got 5 rows of predicted, 6 rows of actual"):
        rotation_error(q[1:], q)
    with pytest.raises(ValueError, match=r"length"):
        rotation_error(q, 2 * q)
    with pytest.raises(ValueError, match=r"actual must be finite"):
        rotation_error(q, q * torch.nan)


@pytest.mark.parametrize("settings", [{"hidden": ()}, {**SMALL, "max_epochs": 3}])
def test_an_output_that_never_varies_is_named_and_changes_nothing_of_the_others(settings: dict[str, Any]) -> None:
    x, y, tx, ty = linear_data()
    without = regression_r2(x, y, tx, ty, **settings)
    value = torch.full((len(y), 1), 3.3)
    got = regression_r2(
        x, torch.cat([y[:, :1], value, y[:, 1:]], 1), tx, torch.cat([ty[:, :1], value, ty[:, 1:]], 1), **settings
    )
    assert got.constant == (1,)
    assert without.constant == ()
    for name in ("mean", "pooled", "interval", "pooled_interval", "chance", "pooled_chance", "l2", "steps"):
        assert getattr(got, name) == getattr(without, name), name
    assert math.isnan(got.per_output[1])
    assert (got.per_output[0], *got.per_output[2:]) == without.per_output
    torch.testing.assert_close(got.predictions[:, 1:2], value)
    assert torch.equal(got.predictions[:, [0, 2, 3]], without.predictions)
    assert str(got).endswith("; without output 1, constant")
    assert "without" not in str(without)


@pytest.mark.parametrize("settings", [{"hidden": ()}, {**SMALL, "max_epochs": 3}])
def test_an_output_that_varies_in_one_set_alone_is_left_out_too(settings: dict[str, Any]) -> None:
    x, y, tx, ty = linear_data()
    still = torch.full((len(y),), 3.3)
    learnt = regression_r2(x, y, tx, torch.stack([ty[:, 0], ty[:, 1], still], 1), **settings)
    unlearnt = regression_r2(x, torch.stack([still, y[:, 1], y[:, 2]], 1), tx, ty, **settings)
    assert (learnt.constant, unlearnt.constant) == ((2,), (0,))
    whole = regression_r2(x, y, tx, ty, **settings)
    assert learnt.mean == pytest.approx(sum(whole.per_output[:2]) / 2)
    assert torch.equal(learnt.predictions, whole.predictions)  # what varied in training is predicted all the same
    assert unlearnt.predictions[:, 0].unique().tolist() == pytest.approx([3.3])


def test_the_choice_of_the_linear_fit_is_that_of_folds_done_by_hand() -> None:
    x, y, tx, ty = (part.double() for part in linear_data(n=60, d=50, noise=8.0))
    source = torch.arange(60) // 2
    grid = (1e-2, 1e-1, 1.0, 10.0)
    z, t = Standardizer(x)(x), Standardizer(y)(y)
    folds = draw_folds(60, torch.Generator().manual_seed(3), sources=source)
    errors = []
    for l2 in grid:
        error = 0.0
        for fold in range(FOLDS):
            held = folds == fold
            fit = Ridge(alpha=l2 * int((~held).sum())).fit(z[~held].numpy(), t[~held].numpy())
            error += ((fit.predict(z[held].numpy()) - t[held].numpy()) ** 2).sum()
        errors.append(error)
    got = regression_r2(x, y, tx, ty, hidden=(), l2=grid, train_sources=source, seed=3)
    assert got.l2 == grid[errors.index(min(errors))]
    assert regression_r2(x, y, tx, ty, hidden=(), l2=grid[::-1], train_sources=source, seed=3).l2 == got.l2


def test_among_equal_strengths_the_strongest_is_chosen() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.zeros(40, 3), torch.randn(40, 2, generator=g)  # nothing to learn from: every l2 is as good
    assert regression_r2(x, y, x, y, hidden=(), l2=(1e-3, 10.0, 1.0)).l2 == 10.0


def test_targets_keep_their_precision_beside_features_of_less() -> None:
    x, y, tx, ty = (part.double() for part in linear_data())
    far = torch.tensor([1e9, 0.0, 0.0], dtype=torch.float64)
    got = regression_r2(x.float(), y + far, tx.float(), ty + far, hidden=(), l2=1.0)
    plain = regression_r2(x.float(), y, tx.float(), ty, hidden=(), l2=1.0)
    assert got.per_output == pytest.approx(plain.per_output, abs=1e-4)


@pytest.mark.parametrize(("rows", "batch"), [(100, 64), (600, 64), (2000, 128), (4200, 256)])
def test_the_mlp_learns_from_each_row_once_an_epoch_in_a_new_order(
    monkeypatch: pytest.MonkeyPatch, rows: int, batch: int
) -> None:
    forward, seen = _mlp._forward, []

    def recorded(parameters: list[Tensor], x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(x[0, :, 0])
        return forward(parameters, x)

    monkeypatch.setattr(_mlp, "_forward", recorded)
    g = torch.Generator().manual_seed(0)
    x, y = torch.arange(rows)[:, None].float(), torch.randn(rows, 1, generator=g)
    held = hold_out(rows, 0.1, g)
    with torch.no_grad():
        _, steps = _mlp.fit_mlps([_mlp.Problem(x, y, held, g)], (4,), 3)[0]
    learnt = rows - rows // 10
    sizes = [batch] * (learnt // batch) + [learnt % batch]
    assert steps <= len(seen) == 3 * len(sizes)
    assert [len(one) for one in seen] == sizes * 3
    epochs = [torch.cat(seen[i : i + len(sizes)]) for i in range(0, len(seen), len(sizes))]
    assert all(torch.equal(epoch.sort().values, x[~held, 0]) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


class ByHand(NamedTuple):
    """A problem fitted alone, with the layers and the optimiser of torch.nn."""

    model: torch.nn.Module
    steps: int


def fitted_by_hand(problem: _mlp.Problem, hidden: tuple[int, ...], max_epochs: int) -> ByHand:
    x, y, held, generator = problem
    rows, sizes = (~held).nonzero().flatten(), (x.shape[1], *hidden, y.shape[1])
    model = torch.nn.Sequential()
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        linear = torch.nn.Linear(fan_in, fan_out, dtype=x.dtype)
        drawn = 2 * torch.rand(fan_out, fan_in, generator=generator) - 1
        last = layer == len(hidden)
        linear.weight.data = drawn.to(x.dtype) / fan_in**0.5 * (not last)
        linear.bias.data.zero_()
        model.extend([linear] if last else [linear, torch.nn.ReLU()])
    average, optimizer = copy.deepcopy(model), torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = min(256, max(64, len(rows) // 14))
    epoch = math.ceil(len(rows) / batch)
    best, best_error, mark, since, step = copy.deepcopy(model), y[held].square().mean(), y[held].square().mean(), 0, 0
    steps, queue = 0, rows[:0]
    while step < max_epochs * epoch and since < 3:
        for _ in range(min(max(64, epoch), max_epochs * epoch - step)):
            if not len(queue):
                queue = rows[torch.randperm(len(rows), generator=generator)]
            now, queue = queue[:batch], queue[batch:]
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x[now]), y[now]).backward()
            optimizer.step()
            step += 1
            keep = min(0.99, step / (step + 10))
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.data = keep * old.data + (1 - keep) * new.data
        with torch.no_grad():
            error = (average(x[held]) - y[held]).square().mean()
        since, mark = (0, error) if error < mark - 1e-3 else (since + 1, mark)
        if error < best_error:
            best_error, best, steps = error, copy.deepcopy(average), step
    return ByHand(best, steps)


@pytest.mark.parametrize("hidden", [(), (16,), (24, 16)])
def test_mlps_fitted_side_by_side_are_those_fitted_by_hand_one_by_one(hidden: tuple[int, ...]) -> None:
    def problems() -> list[_mlp.Problem]:
        made = []
        for number, (width, rows, noise) in enumerate([(3, 200, 0.1), (7, 200, 5.0), (2, 90, 0.1), (5, 200, 0.5)]):
            g = torch.Generator().manual_seed(number)
            x = torch.randn(rows, width, generator=g, dtype=torch.float64)
            y = x[:, :2].tanh() + x[:, 1:2] * x[:, :1] + noise * torch.randn(rows, 2, generator=g, dtype=torch.float64)
            made.append(_mlp.Problem(x, (y - y.mean(0)) / y.std(0), hold_out(rows, 0.1, g), g))
        return made

    together, alone = problems(), problems()
    with torch.no_grad():
        fits = _mlp.fit_mlps(together, hidden, 40)
    stopped = set()
    for (fit, steps), one, other in zip(fits, alone, together, strict=True):
        expected = fitted_by_hand(one, hidden, 40)
        assert steps == expected.steps
        with torch.no_grad():
            torch.testing.assert_close(fit(one.x), expected.model(one.x), atol=1e-7, rtol=1e-6)
        assert torch.equal(one.generator.get_state(), other.generator.get_state())  # what is drawn next is alike
        stopped.add(steps)
    assert len(stopped) > 1  # they do not end together


@pytest.mark.parametrize("width", [2, 50])
def test_hidden_weights_are_drawn_as_nn_linear_draws_them_and_the_last_layer_is_zero(width: int) -> None:
    first, bias, *rest = _mlp._parameters((width, 4000, 3), torch.Generator().manual_seed(0), torch.zeros(1))
    bound = torch.nn.Linear(width, 4000).weight.detach().abs().max().item()
    assert first.abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert first.mean().item() == pytest.approx(0, abs=bound / 50)
    assert first.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not any(part.any() for part in (bias, *rest))


def test_what_the_mlp_keeps_is_a_fading_average_of_the_weights_of_adam() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=g, dtype=torch.float64)
    y, held = 5 * x[:, :1] - 3, hold_out(60, 0.1, g)  # a long way at a constant rate: every round is progress
    with torch.no_grad():
        fit, steps = _mlp.fit_mlps([_mlp.Problem(x, y, held, g)], (), 1100)[0]
    assert steps == 1100
    ones = torch.ones(54, 1, dtype=torch.float64)
    inputs, weight = torch.cat([x[~held], ones], 1), torch.zeros(3, 1, dtype=torch.float64)
    first, second, average = weight.clone(), weight.clone(), weight.clone()
    for step in range(1, steps + 1):
        gradient = 2 * inputs.mT @ (inputs @ weight - y[~held]) / 54
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight = weight - 1e-3 * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        memory = min(0.99, step / (step + 10))
        average = memory * average + (1 - memory) * weight
    torch.testing.assert_close(fit(torch.eye(2, dtype=torch.float64)), average[:2] + average[2])


def test_resamples_in_which_an_output_never_varies_do_not_count() -> None:
    x, y, tx, _ = linear_data()
    rare = 1e3 + 90.3 * torch.eye(40)[:, :1]  # missing in one resample of three, which then has no R²
    got = regression_r2(x, 1e3 + y[:, :1], tx[:40], rare, hidden=())
    assert got.interval.low > -1
    assert got.pooled_interval.low > -1


def test_both_intervals_are_of_r2_of_rows_drawn_again() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=g, dtype=torch.float64)
    y = x[:, :2] + torch.randn(80, 2, generator=g, dtype=torch.float64) + torch.tensor([0.0, 4.0])
    got = regression_r2(x[:40], y[:40], x[40:], y[40:], hidden=(), l2=0.1)
    again = torch.randint(40, (300, 40), generator=g)
    found = torch.tensor([naive_r2(y[40:][rows], got.predictions[rows]) for rows in again])
    low, high = found.quantile(torch.tensor([0.025, 0.975]), dim=0)
    for interval, (a, b) in zip(
        (got.interval, got.pooled_interval), zip(low.tolist(), high.tolist(), strict=True), strict=True
    ):
        assert interval == pytest.approx((a, b), abs=0.2 * (b - a))
