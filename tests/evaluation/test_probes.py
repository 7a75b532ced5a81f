"""Linear and nearest-neighbour classifiers on cached features."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from seqjepa.evaluation import Classification, knn_probe, linear_probe
from seqjepa.evaluation._inputs import check_same_device
from seqjepa.evaluation._logistic import LogisticPath, cross_validate
from seqjepa.evaluation._statistics import FOLDS, Standardizer, bootstrap, draw_folds, hold_out, resampled_sums


def clusters(
    n: int = 600, d: int = 24, classes: int = 5, spread: float = 2.5, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overlapping classes with correlated, shifted and scaled features: train and test."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=g)
    mix = torch.randn(d, d, generator=g) * torch.arange(1, d + 1) ** -0.7
    y = torch.arange(2 * n) % classes
    x = (centres[y] + spread * torch.randn(2 * n, d, generator=g)) @ mix
    x = x * torch.logspace(-2, 2, d) + 5
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_the_linear_probe_agrees_with_scikit_learn(l2: float) -> None:
    x, y, tx, ty = clusters()
    scaler = StandardScaler().fit(x.numpy())
    reference = LogisticRegression(C=1 / (l2 * len(x)), max_iter=5000, tol=1e-6)
    reference.fit(scaler.transform(x.double().numpy()), y.numpy())
    expected = reference.predict(scaler.transform(tx.double().numpy()))
    got = linear_probe(x, y, tx, ty, l2=l2)
    assert got.l2 == l2
    assert abs(got.accuracy - (expected == ty.numpy()).mean()) < 0.005
    assert (got.predictions.numpy() == expected).mean() > 0.995
    precise = linear_probe(x.double(), y, tx.double(), ty, l2=l2)
    assert (precise.predictions.numpy() == expected).mean() > 0.995


def test_the_chosen_regularisation_is_the_best_for_new_rows() -> None:
    x, y, tx, ty = clusters(n=150, d=100, spread=4.0)
    grid = (1e-5, 1e-1, 1.0)
    each = {l2: linear_probe(x, y, tx, ty, l2=l2).accuracy for l2 in grid}
    chosen = linear_probe(x, y, tx, ty, l2=grid)
    assert each[1.0] > each[1e-5] + 0.03
    assert chosen.accuracy > each[1e-5] + 0.02
    assert chosen.accuracy == each[chosen.l2 or 0.0]


def test_sources_keep_the_choice_from_rewarding_recognition() -> None:
    g = torch.Generator().manual_seed(0)
    source = torch.arange(60).repeat_interleave(6)  # six near copies of each source
    y = torch.randint(2, (120,), generator=g)
    centre = torch.randn(120, 100, generator=g)
    centre[:, 0] += 2 * y
    of = torch.cat([source, source + 60])
    x = centre[of] + 0.05 * torch.randn(720, 100, generator=g)
    labels = y[of]
    args = x[:360], labels[:360], x[360:], labels[360:]
    named = linear_probe(*args, train_sources=source, test_sources=source)
    unnamed = linear_probe(*args)
    assert named.l2 is not None
    assert unnamed.l2 is not None
    assert named.l2 > unnamed.l2
    wide, narrow = named.interval, linear_probe(*args, l2=named.l2).interval
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)  # six views of a source are not six draws


def slow_knn(x: Tensor, y: Tensor, tx: Tensor, k: int, temperature: float) -> list[int]:
    answers = []
    for query in tx.double():
        cosines = [
            (float(query @ row / query.norm() / row.norm()), int(label))
            for row, label in zip(x.double(), y, strict=True)
        ]
        votes: dict[int, float] = {}
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(cosine / temperature)
        answers.append(max(votes, key=lambda label: votes[label]))
    return answers


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (30, 0.5)])
def test_neighbours_vote_by_the_exponential_of_their_cosine(k: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(1)
    x, tx = torch.randn(60, 4, generator=g), torch.randn(40, 4, generator=g)
    y, ty = torch.randint(4, (60,), generator=g), torch.randint(4, (40,), generator=g)
    got = knn_probe(x, y, tx, ty, k=k, temperature=temperature)
    assert got.predictions.tolist() == slow_knn(x, y, tx, k, temperature)
    assert got.accuracy == pytest.approx((got.predictions == ty).float().mean().item())


def test_with_equal_votes_it_is_scikit_learn_s() -> None:
    x, y, tx, ty = clusters(n=200, d=6, classes=2)
    reference = KNeighborsClassifier(n_neighbors=9, metric="cosine").fit(x.numpy(), y.numpy())
    expected = reference.predict(tx.numpy())
    assert (knn_probe(x, y, tx, ty, k=9, temperature=1e6).predictions.numpy() == expected).mean() > 0.99


def test_a_tiny_temperature_is_the_nearest_neighbour_alone() -> None:
    x, y, tx, ty = clusters(n=100, d=6)
    one = knn_probe(x, y, tx, ty, k=1)
    assert torch.equal(knn_probe(x, y, tx, ty, k=20, temperature=1e-6).predictions, one.predictions)


def test_memory_is_bounded_by_chunks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, tx, ty = clusters(n=100, d=6)
    whole = knn_probe(x, y, tx, ty)
    monkeypatch.setattr("seqjepa.evaluation.probes.CHUNK", 700)
    assert torch.equal(knn_probe(x, y, tx, ty).predictions, whole.predictions)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_labels_may_be_any_integers(probe) -> None:
    x, y, tx, ty = clusters(n=150, classes=3)
    names = torch.tensor([-7, 40, 4])
    plain, named = probe(x, y, tx, ty), probe(x, names[y], tx, names[ty].int())
    assert named.accuracy == pytest.approx(plain.accuracy, abs=0.01)
    assert set(named.predictions.tolist()) <= set(names.tolist())


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_features_without_labels_in_them_give_chance(probe) -> None:
    g = torch.Generator().manual_seed(0)
    y, ty = (torch.rand(800, generator=g) < 0.3).long(), (torch.rand(800, generator=g) < 0.3).long()
    got = probe(torch.randn(800, 5, generator=g), y, torch.randn(800, 5, generator=g), ty)
    assert got.chance == pytest.approx((ty == 0).float().mean().item())
    assert got.accuracy < got.chance + 0.02
    collapsed = probe(torch.ones(800, 5), y, torch.ones(800, 5), ty)
    assert collapsed.accuracy == pytest.approx(got.chance)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_one_seed_one_result_and_the_global_generator_stays(probe) -> None:
    args = clusters(n=100)
    before = torch.get_rng_state()
    first, second, other = probe(*args), probe(*args), probe(*args, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.predictions, second.predictions)
    assert first.interval == second.interval
    assert first.interval != other.interval


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_it_works_under_inference_mode_and_autocast_and_on_features_with_gradient(probe) -> None:
    x, y, tx, ty = clusters(n=100)
    expected = probe(x, y, tx, ty)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        under = probe(x.clone(), y, tx.clone(), ty)
    assert torch.equal(under.predictions, expected.predictions)
    attached = probe(x.clone().requires_grad_(), y, tx, ty)
    assert torch.equal(attached.predictions, expected.predictions)
    half = probe(x.bfloat16(), y, tx.bfloat16(), ty)
    assert half.accuracy == pytest.approx(expected.accuracy, abs=0.1)


def test_scale_shift_and_dead_features_change_nothing_for_the_linear_probe() -> None:
    x, y, tx, ty = clusters(n=200)
    expected = linear_probe(x, y, tx, ty, l2=1e-2)
    scale, shift = torch.linspace(0.1, 50, 24), torch.linspace(-3, 30, 24)
    dead, moved = torch.full((200, 1), 0.1), torch.randn(200, 1) * 1e3
    got = linear_probe(
        torch.cat([x * scale + shift, dead], 1), y, torch.cat([tx * scale + shift, moved], 1), ty, l2=1e-2
    )
    assert (got.predictions == expected.predictions).float().mean() > 0.99


def test_the_interval_covers_what_it_says() -> None:
    g = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(200):
        correct = (torch.rand(150, generator=g) < 0.7).double()
        sums = torch.stack([correct, torch.ones(150)], 1)
        interval = bootstrap(sums, lambda s: s[:, 0] / s[:, 1], torch.Generator().manual_seed(seed))
        covered += interval.low <= 0.7 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_among_equal_strengths_the_strongest_is_taken() -> None:
    y = torch.arange(200) % 2
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + 20 * y[:, None]  # every strength separates
    assert linear_probe(x, y, x, y, l2=(1e-4, 1e-2, 1.0, 1e-3)).l2 == 1.0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_chosen_strength_is_as_good_as_scikit_learn_s() -> None:
    """Small sets, where one noisy split misleads; on more of them, the page of measures gives the figures."""
    behind = []
    for load, seeds in ((load_wine, (0, 1, 2)), (load_breast_cancer, (0,))):
        x, y = load(return_X_y=True)
        for seed in seeds:
            train, test = train_test_split(np.arange(len(y)), test_size=1 / 3, random_state=seed)
            scaler = StandardScaler().fit(x[train])
            reference = LogisticRegressionCV(max_iter=1000).fit(scaler.transform(x[train]), y[train])
            features, labels = torch.tensor(x), torch.tensor(y)
            got = linear_probe(features[train], labels[train], features[test], labels[test])
            behind.append(reference.score(scaler.transform(x[test]), y[test]) - got.accuracy)
    assert sum(behind) / len(behind) < 0.008


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_features_of_any_precision_are_taken(probe, dtype: torch.dtype) -> None:
    x, y, tx, ty = clusters(n=100, d=6)
    x, tx = (t / t.std(0) for t in (x, tx))
    assert abs(probe(x.to(dtype), y, tx.to(dtype), ty).accuracy - probe(x, y, tx, ty).accuracy) < 0.05


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_the_defaults_of_torch_change_nothing(probe, torch_defaults) -> None:
    x, y, tx, ty = clusters(n=60, d=6)
    expected = probe(x, y, tx, ty)
    with torch_defaults():
        got = probe(x, y, tx, ty)
    assert torch.equal(got.predictions, expected.predictions)
    assert (got.accuracy, got.interval, got.chance, got.l2) == (
        expected.accuracy, expected.interval, expected.chance, expected.l2,
    )  # fmt: skip


def test_chance_is_that_of_the_commonest_class_in_training() -> None:
    x = torch.randn(90, 3)
    y = torch.tensor([0] * 60 + [1] * 30)
    ty = torch.tensor([0] * 20 + [1] * 70)
    for probe in (linear_probe, knn_probe):
        assert probe(x, y, x, ty).chance == pytest.approx(20 / 90)  # a guesser knows only what it was trained on


def test_standardising_drops_rounding_noise() -> None:
    x = torch.randn(500, 3)
    x[:, 1] = 1000 + 1e-4 * torch.randn(500)  # below the step of float32 there
    z = Standardizer(x)(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]))


def test_the_result_prints_as_one_short_line() -> None:
    x, y, tx, ty = clusters(n=100)
    got = linear_probe(x, y, tx, ty, l2=0.01)
    assert isinstance(got, Classification)
    low, high = got.interval
    assert str(got) == f"accuracy {got.accuracy:.3f} [{low:.3f}, {high:.3f}], chance {got.chance:.3f}, l2 0.01"
    assert low <= got.accuracy <= high
    assert "tensor" not in repr(got)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_wrong_input_is_refused(probe) -> None:
    x, y, tx, ty = clusters(n=40, classes=4)
    bad = x.clone()
    bad[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"train_features must be finite; 1 of 40 rows .* at \[3\]"):
        probe(bad, y, tx, ty)
    with pytest.raises(ValueError, match=r"test_features must be finite"):
        probe(x, y, bad, ty)
    with pytest.raises(ValueError, match=r"same view; got 40 rows of train_features, 39 rows of train_labels"):
        probe(x, y[:-1], tx, ty)
    with pytest.raises(ValueError, match=r"same view; got 40 rows of test_features, 39 rows of test_labels"):
        probe(x, y, tx, ty[:-1])
    with pytest.raises(ValueError, match=r"one encoder; got widths 24 and 23"):
        probe(x, y, tx[:, :-1], ty)
    with pytest.raises(TypeError, match=r"train_labels .* as integers; got torch.float32. .*train_labels\.long\(\)"):
        probe(x, y.float(), tx, ty)
    with pytest.raises(ValueError, match=r"test_labels must be the class of each row, with the axis \(N\)"):
        probe(x, y, tx, ty[:, None])
    with pytest.raises(ValueError, match=r"two classes at least; all labels are 2"):
        probe(x, torch.full_like(y, 2), tx, torch.full_like(ty, 2))
    with pytest.raises(ValueError, match=r"Each class of the test set must occur in training; 1 do not: \[3\]"):
        probe(x[y < 3], y[y < 3], tx, ty)
    with pytest.raises(ValueError, match=r"train_features must have the axes \(N, D\); got shape \(40, 2, 12\)"):
        probe(x.view(40, 2, 12), y, tx, ty)
    with pytest.raises(TypeError, match=r"train_features must be floating point; got torch.int64"):
        probe(x.long(), y, tx, ty)
    with pytest.raises(TypeError, match=r"train_features must be a torch.Tensor; got ndarray"):
        probe(x.numpy(), y, tx, ty)
    with pytest.raises(ValueError, match=r"something on every axis; got shape \(0, 24\)"):
        probe(x, y, tx[:0], ty[:0])
    with pytest.raises(ValueError, match=r"source of each of the 40 rows; got 7"):
        probe(x, y, tx, ty, test_sources=torch.arange(7))


def test_inputs_on_two_devices_are_refused() -> None:
    x, y, _, _ = clusters(n=40, classes=4)
    with pytest.raises(ValueError, match=r"one device; got x on cpu, y on meta\. Move them"):
        check_same_device(x=x, y=y.to("meta"), sources=None)


def test_wrong_settings_are_refused() -> None:
    x, y, tx, ty = clusters(n=40, classes=4)
    for l2 in (0.0, -1.0, (), (1e-3, 0.0)):
        with pytest.raises(ValueError, match=r"l2 must be above 0, or several such; got"):
            linear_probe(x, y, tx, ty, l2=l2)
    with pytest.raises(ValueError, match=r"no class has a row \(or source\) to spare\. Give one l2"):
        linear_probe(x[:4], y[:4], tx, ty)
    assert linear_probe(x[:4], y[:4], x[:4], y[:4], l2=1e-3).accuracy == 1
    with pytest.raises(ValueError, match=r"the 40 training rows, 1 … 40; got 41"):
        knn_probe(x, y, tx, ty, k=41)
    with pytest.raises(ValueError, match=r"1 … 40; got 0"):
        knn_probe(x, y, tx, ty, k=0)
    with pytest.raises(ValueError, match=r"temperature must be above 0; got 0"):
        knn_probe(x, y, tx, ty, temperature=0)


@given(st.integers(2, 60), st.integers(1, 4), st.sampled_from([0.1, 0.2, 0.5]), st.booleans())
def test_holding_out_splits_no_source_and_leaves_one(units: int, views: int, fraction: float, named: bool) -> None:
    g = torch.Generator().manual_seed(units)
    source = torch.arange(units).repeat_interleave(views)[torch.randperm(units * views, generator=g)] if named else None
    held = hold_out(units * views if named else units, fraction, g, sources=source)
    if source is not None:
        assert not set(source[held].tolist()) & set(source[~held].tolist())
    assert int(held.sum()) // (views if named else 1) == min(math.ceil(units * fraction), units - 1)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_folds_are_even_split_no_source_and_leave_every_class_to_learn(
    units: int, classes: int, views: int, named: bool
) -> None:
    g = torch.Generator().manual_seed(units)
    unit_label = torch.randint(classes, (units,), generator=g)
    source = torch.arange(units).repeat_interleave(views)[torch.randperm(units * views, generator=g)] if named else None
    labels = unit_label if source is None else unit_label[source]
    folds = draw_folds(len(labels), g, labels=labels, sources=source)
    of_unit = folds if source is None else torch.stack([folds[source == unit][0] for unit in range(units)])
    if source is not None:
        assert torch.equal(of_unit[source], folds)
    kept = unit_label[of_unit >= 0]
    sizes = unit_label.bincount(minlength=classes)
    assert torch.equal(of_unit < 0, sizes[unit_label] == 1)  # a class of one unit is always learnt
    numbers = range(int(folds.max()) + 1)
    assert len(numbers) == min(FOLDS, len(kept)) or not (sizes > FOLDS).any()
    for label in kept.unique():
        in_fold = of_unit[unit_label == label].bincount(minlength=len(numbers))
        assert in_fold.max() - in_fold.min() <= 1
        assert in_fold.count_nonzero() >= 2
    for fold in numbers:
        assert (folds == fold).any()
        assert set(labels[folds != fold].tolist()) == set(labels.tolist())


@given(st.integers(2, 30), st.integers(2, 4), st.integers(2, 5))
def test_folds_leave_every_class_to_learn_where_a_source_has_rows_of_several(
    units: int, classes: int, views: int
) -> None:
    g = torch.Generator().manual_seed(units)
    source = torch.arange(units).repeat_interleave(views)
    labels = torch.randint(classes, (len(source),), generator=g)
    folds = draw_folds(len(labels), g, labels=labels, sources=source)
    for fold in range(int(folds.max()) + 1):
        assert set(labels[folds != fold].tolist()) == set(labels.tolist())
    assert torch.equal(folds.view(units, views), folds[::views, None].expand(-1, views))


def test_weaker_strengths_are_not_tried_once_two_in_a_row_did_worse() -> None:
    x, y, *_ = clusters(n=150, d=100, spread=4.0)
    folds = draw_folds(len(y), torch.Generator().manual_seed(0), labels=y)
    grid = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

    class Recorded(LogisticPath):
        accuracies: list[float]

        def held_out_accuracy(self) -> float:
            self.accuracies.append(super().held_out_accuracy())
            return self.accuracies[-1]

    path, alone = Recorded(Standardizer(x)(x), y, 5, folds), LogisticPath(Standardizer(x)(x), y, 5, folds)
    path.accuracies, expected = [], []
    for l2 in sorted(grid, reverse=True):
        alone.solve(l2)
        expected.append(alone.held_out_accuracy())
        if len(expected) > 2 and max(expected[-2:]) < max(expected[:-2]):
            break
    assert len(expected) < len(grid)
    chosen = cross_validate(path, grid)
    assert path.accuracies == expected
    assert chosen.l2 == sorted(grid, reverse=True)[expected.index(max(expected))]


def test_more_features_than_rows_have_an_optimum_at_any_strength() -> None:
    x, y, *_ = clusters(n=40, d=300, classes=4)  # variances that round below zero
    assert linear_probe(x, y, x, y, l2=1e-9).accuracy == 1


def test_all_training_rows_may_be_neighbours() -> None:
    x, y, tx, ty = clusters(n=40, d=6, classes=4)
    assert knn_probe(x, y, tx, ty, k=40).predictions.tolist() == slow_knn(x, y, tx, 40, 0.07)


@pytest.mark.parametrize("units", [1, 7, 5000])
def test_a_thousand_resamples_are_drawn_in_blocks_of_bounded_memory(units: int) -> None:
    sums = torch.stack([torch.ones(units), torch.arange(units)], dim=1).double()
    drawn = resampled_sums(sums, torch.Generator().manual_seed(0))
    assert drawn.shape == (1000, 2)
    assert (drawn[:, 0] == units).all()
    assert drawn[:, 1].mean().item() == pytest.approx(sums[:, 1].sum().item(), rel=0.05)
    assert units == 1 or len(drawn[:, 1].unique()) > 10
