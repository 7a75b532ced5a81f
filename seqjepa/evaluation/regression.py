"""What a frozen representation knows of transformations: R² of a linear or MLP regression, and angles in degrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seqjepa.evaluation._inputs import check_features, check_rows, check_same_device, check_sources
from seqjepa.evaluation._mlp import fit_mlp
from seqjepa.evaluation._ridge import Moments, Ridge, RidgeFit, cross_validate
from seqjepa.evaluation._statistics import (
    Interval,
    Standardizer,
    bootstrap,
    draw_folds,
    hold_out,
    interval_of,
    plain_arithmetic,
    resampled_sums,
    sums_by_source,
)
from seqjepa.groups import Rotation3D

__all__ = [
    "Reading", "Regression", "RotationError", "regression_inputs", "regression_r2", "regressions_r2", "rotation_error",
    "scored",
]  # fmt: skip

L2_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
NOISE = 1e-12  # share of a sum of squares below which what is left of a difference is rounding


@dataclass(frozen=True, eq=False)
class Regression:
    """How much of the targets a probe explains on the test rows.

    Two forms of R² are in use and differ. `mean` is `mean_k (1 − Σ_n (t − o)² / Σ_n (t − t̄_k)²)`: each output against
    its own mean. `pooled` is `1 − Σ_nk (t − o)² / Σ_nk (t − m)²` with one scalar mean m over all targets: an output
    whose mean is far from m is explained by a constant.

    Attributes:
        mean: R² per output, averaged; at most 1, 0 for the test mean, below 0 for worse.
        pooled: the pooled form; at most 1.
        per_output: R² of each output; nan for one that never varies.
        interval: 95 % bootstrap interval of `mean`, over test rows, or test sources where they are named.
        pooled_interval: that of `pooled`.
        chance: `mean` of the constant that is the mean of the training targets: 0 or a little below.
        pooled_chance: `pooled` of that constant; about 0.23 on quaternions of 3DIEBench, so not 0.
        predictions: predicted targets, in the shape of the test targets, in float32 or wider.
        l2: the regularisation of a linear fit that was chosen, or None.
        steps: optimiser steps of the MLP that was kept, or None.
        constant: the outputs without any spread in the training or in the test rows, by number. Every figure but
            `per_output` is of the others alone; they are predicted all the same.

    Examples:
        >>> import torch
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> fit = regression_r2(x[:100], 2 * x[:100, :2] + 1, x[100:], 2 * x[100:, :2] + 1, hidden=())
        >>> round(fit.mean, 3), round(fit.pooled, 3)
        (1.0, 1.0)
    """

    mean: float
    pooled: float
    per_output: tuple[float, ...]
    interval: Interval
    pooled_interval: Interval
    chance: float
    pooled_chance: float
    predictions: Float[Tensor, "M *K"] = field(repr=False)
    l2: float | None = None
    steps: int | None = None
    constant: tuple[int, ...] = ()

    def __str__(self) -> str:
        """One line."""
        left_out = f"; without output {_listed(self.constant)}, constant" if self.constant else ""
        return (
            f"R² {self.mean:.3f} {self.interval} (mean over outputs), chance {self.chance:.3f}; "
            f"{self.pooled:.3f} {self.pooled_interval} (pooled), chance {self.pooled_chance:.3f}{left_out}"
        )


def regression_r2(
    train_x: Float[Tensor, "N D"],
    train_y: Float[Tensor, "N *K"],
    test_x: Float[Tensor, "M D"],
    test_y: Float[Tensor, "M *K"],
    *,
    hidden: Sequence[int] = (1024, 1024),
    l2: float | Sequence[float] = L2_GRID,
    max_epochs: int = 300,
    train_sources: Int[Tensor, "N"] | None = None,
    test_sources: Int[Tensor, "M"] | None = None,
    seed: int = 0,
) -> Regression:
    """Regress targets from features, and report R² on the test rows in both forms.

    Features and targets are standardised by the training rows.

    - `hidden=()`: ridge regression in closed form, `min_W mean_n ‖y_n − x_n W‖² + l2 ‖W‖²`. l2 is chosen by five folds
      of the training rows (whole sources where they are named): the least squared error on the rows held out. The fit
      is to all of them. The normal equations are in float64: squaring the features squares their condition number.
      scikit-learn's `Ridge(alpha=l2 · N)` is the same.
    - otherwise an MLP with ReLU, squared error, Adam at 1e-3, batches of 256, as in SIE. A tenth of the training rows
      is held out; training stops when three rounds (each an epoch, or 64 steps) have not brought them 0.001 of R²,
      and the averaged weights of the best round are kept. In float32: rounding is far below the noise of minibatches.

    An output that never varies, such as a turn about an axis that no view was turned about, has no R². It is left out,
    and named in `constant`.

    An MLP fits small sets of pairs by heart. Draw many pairs of views from each source, and name the sources.

    Args:
        train_x: (N, D): z of one view, or of two side by side for what leads from one to the other.
        train_y: (N, K) or (N,).
        test_x: (M, D).
        test_y: (M, K) or (M,).
        hidden: widths of the hidden layers; () is linear.
        l2: of the linear fit: one strength, or several to choose from. 0 is allowed where the features are independent.
        max_epochs: of the MLP, where it does not stop before; SIE's 300.
        train_sources: (N,) integers, the source of each row where a source has several rows or pairs; a source is then
            never on both sides of a split.
        test_sources: (M,) integers; the interval is then over sources.
        seed: of the split or the folds, the weights, the batches and the bootstrap.

    Returns:
        [`Regression`][seqjepa.evaluation.Regression].

    Raises:
        ValueError: shapes or devices that do not fit; NaN or infinity; no output that varies; too few rows to hold one
            out.
        TypeError: not floating point.

    Source:
        SIE (Garrido et al. 2023, arXiv 2302.10283) for the MLP and the pooled form; Ghaemi et al. 2025 (arXiv
        2505.03176) for the mean over outputs. SIE trains 300 epochs; early stopping departs from it, because
        without it small sets of pairs give R² below 0.

    Examples:
        >>> import torch
        >>> x = torch.randn(1200, 4, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, :1] * x[:, 1:2]).tanh()                                 # no linear map can tell
        >>> linear = regression_r2(x[:1000], y[:1000], x[1000:], y[1000:], hidden=())
        >>> mlp = regression_r2(x[:1000], y[:1000], x[1000:], y[1000:], hidden=(64, 64))
        >>> linear.mean < 0.1, mlp.mean > 0.7
        (True, True)
    """
    readings = [Reading(test_x, test_y, test_sources)]
    return regressions_r2(
        train_x, train_y, readings, hidden=hidden, l2=l2, max_epochs=max_epochs, train_sources=train_sources, seed=seed
    )[0]


class Reading(NamedTuple):
    """Test rows that a fitted probe is read on: features, targets, and the source of each row."""

    x: Tensor
    y: Tensor
    sources: Tensor | None


def regressions_r2(
    train_x: Float[Tensor, "N D"],
    train_y: Float[Tensor, "N *K"],
    readings: Sequence[Reading],
    *,
    hidden: Sequence[int],
    l2: float | Sequence[float] = L2_GRID,
    max_epochs: int = 300,
    train_sources: Int[Tensor, "N"] | None = None,
    seed: int = 0,
) -> list[Regression]:
    """One probe, fitted as `regression_r2` does, read on several sets of test rows."""
    widths = tuple(hidden)
    if any(width < 1 for width in widths):
        raise ValueError(
            f"hidden lists the widths of the hidden layers, each at least 1, or () for none; got {hidden}."
        )
    if max_epochs < 1:
        raise ValueError(f"max_epochs must be at least 1; got {max_epochs}.")
    grid = (float(l2),) if isinstance(l2, int | float) else tuple(map(float, l2))
    if not grid or min(grid) < 0:
        raise ValueError(f"l2 must be at least 0, or several such; got {l2}.")
    checked = [regression_inputs(train_x, train_y, reading.x, reading.y) for reading in readings]
    train, targets, _, first = checked[0]
    of_train = check_sources("train_sources", train_sources, len(train))
    of_tests = [
        check_sources("test_sources", reading.sources, len(actual))
        for reading, (*_, actual) in zip(readings, checked, strict=True)
    ]
    generator = torch.Generator().manual_seed(seed)
    with plain_arithmetic(train.device):
        standardize, center = Standardizer(train), Standardizer(targets)
        learnt, _ = _varying(center, first)
        x, y = standardize(train), center(targets)[:, learnt].to(train.dtype)
        fit: Callable[[Tensor], Tensor]
        chosen, steps = None, None
        if widths:
            held = hold_out(_check_two(x, of_train), 0.1, generator, sources=of_train)
            fit, steps = fit_mlp(x, y, held, widths, max_epochs, generator)
        else:
            ridge = _ridge(x, y, grid, of_train, generator)
            fit, chosen = ridge.predict, ridge.l2
        drawn, results = generator.get_state(), []
        for reading, (*_, test, actual), of_test in zip(readings, checked, of_tests, strict=True):
            predicted = center.mean.to(actual.dtype).expand_as(actual).clone()
            predicted[:, learnt] += fit(standardize(test)).to(actual.dtype) * center.deviation[learnt].to(actual.dtype)
            generator.set_state(drawn)  # what one reading draws does not depend on the others
            result = scored(center, actual, predicted, of_test, generator, reading.y.shape)
            results.append(replace(result, l2=chosen, steps=steps))
    return results


def scored(
    center: Standardizer,
    actual: Tensor,
    predicted: Tensor,
    sources: Tensor | None,
    generator: torch.Generator,
    shape: Sequence[int],
) -> Regression:
    """R² in both forms of predictions, beside that of the training mean; they are returned in this shape."""
    _, kept = _varying(center, actual)
    constant = center.mean.to(actual.dtype).expand_as(actual)
    scores = _Scores(actual[:, kept], predicted[:, kept], sources)
    chance = _Scores(actual[:, kept], constant[:, kept], None)
    interval, pooled_interval = scores.intervals(generator)
    per_output = torch.full_like(center.mean, torch.nan).masked_scatter(kept, scores.per_output)
    return Regression(
        mean=scores.mean,
        pooled=scores.pooled,
        per_output=tuple(per_output.tolist()),
        interval=interval,
        pooled_interval=pooled_interval,
        chance=chance.mean,
        pooled_chance=chance.pooled,
        predictions=predicted.reshape(shape),
        constant=tuple((~kept).nonzero().flatten().tolist()),
    )


@dataclass(frozen=True, eq=False)
class RotationError:
    """How far predicted rotations are from the true ones, in degrees.

    Attributes:
        mean: mean angle between the two, in [0, 180].
        median: median angle.
        interval: 95 % bootstrap interval of the mean.
        chance: mean angle between predictions and the rotations of other rows (of other sources, where they are named),
            over all pairs up to two million, over evenly spaced shifts of the rows beyond; nan where there are none.
        degrees: (M,) angle of each row.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Rotation3D
        >>> q = Rotation3D.random(500, generator=torch.Generator().manual_seed(0))
        >>> error = rotation_error(q, q)
        >>> round(error.mean, 2), 120 < error.chance < 133                     # 126.5° for uniform rotations
        (0.0, True)
    """

    mean: float
    median: float
    interval: Interval
    chance: float
    degrees: Float[Tensor, "M"] = field(repr=False)

    def __str__(self) -> str:
        """One line."""
        low, high = self.interval
        return f"{self.mean:.1f}° [{low:.1f}, {high:.1f}], median {self.median:.1f}°, chance {self.chance:.1f}°"


def rotation_error(
    predicted: Float[Tensor, "M 4"],
    actual: Float[Tensor, "M 4"],
    *,
    sources: Int[Tensor, "M"] | None = None,
    seed: int = 0,
) -> RotationError:
    """The geodesic angle between predicted and true rotations, in degrees.

    `2 arccos |⟨q̂/‖q̂‖, q⟩|`. A regressed quaternion has no unit length; its direction is what counts. q and −q are one
    rotation, so the sign of neither matters.

    Args:
        predicted: (M, 4) quaternions x y z w, of any length above 0.
        actual: (M, 4) unit quaternions.
        sources: (M,) integers; the interval is then over sources, and chance is of other ones.
        seed: of the bootstrap.

    Returns:
        [`RotationError`][seqjepa.evaluation.RotationError].

    Raises:
        ValueError: shapes that are not (M, 4) or differ; NaN or infinity; actual rotations that have no unit length.
        TypeError: not floating point.

    Examples:
        >>> import torch
        >>> predicted = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]])   # quarter turns, not unit
        >>> print(rotation_error(predicted, torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(2, 4)))
        90.0° [90.0, 90.0], median 90.0°, chance 90.0°
    """
    q, truth = check_features("predicted", predicted), check_features("actual", actual)
    if not bool(q.any(dim=1).all()):
        raise ValueError("A predicted quaternion must have a direction; some are zero. Look at what predicts them.")
    check_rows(predicted=q, actual=truth)
    check_same_device(predicted=q, actual=truth)
    of_row = check_sources("sources", sources, len(q))
    for name, rotation in (("predicted", q), ("actual", truth)):
        if rotation.shape[1] != 4:
            raise ValueError(f"{name} must be quaternions x y z w, (M, 4); got shape {tuple(rotation.shape)}.")
    with plain_arithmetic(q.device):
        q, truth, group = F.normalize(q.double(), dim=1), truth.double(), Rotation3D()
        degrees = torch.rad2deg(group.distance(q, truth))
        shifts = range(1, len(q), max(1, len(q) ** 2 // 2**21))
        unit = torch.arange(len(q), device=q.device) if of_row is None else of_row.to(q.device)
        others = torch.zeros(2, dtype=torch.float64, device=q.device)  # sum and number
        for shift in shifts:
            other = unit != unit.roll(shift)
            angle = torch.rad2deg(group.distance(q, truth.roll(shift, 0)))
            others += torch.stack([(angle * other).sum(), other.sum().double()])
        sums = sums_by_source(torch.stack([degrees, torch.ones_like(degrees)], dim=1), of_row)
        return RotationError(
            mean=degrees.mean().item(),
            median=degrees.median().item(),
            interval=bootstrap(sums, lambda s: s[:, 0] / s[:, 1], torch.Generator().manual_seed(seed)),
            chance=(others[0] / others[1]).item(),
            degrees=degrees.to(predicted.dtype),
        )


def regression_inputs(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features in one dtype and (N, K) targets, or an error."""
    train, test = check_features("train_x", train_x), check_features("test_x", test_x)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"Training and test features must come from one encoder; got widths {train.shape[1]} and {test.shape[1]}."
        )
    targets, actual = (
        check_features(name, y[:, None] if isinstance(y, Tensor) and y.ndim == 1 else y, "N K")
        for name, y in (("train_y", train_y), ("test_y", test_y))
    )
    if targets.shape[1] != actual.shape[1]:
        raise ValueError(
            f"Training and test targets must have one number of outputs; got {targets.shape[1]} and {actual.shape[1]}."
        )
    check_rows(train_x=train, train_y=targets)
    check_rows(test_x=test, test_y=actual)
    check_same_device(train_x=train, train_y=targets, test_x=test, test_y=actual)
    return train, targets, test.to(train.dtype), actual


def _varying(train: Standardizer, actual: Tensor) -> tuple[Bool[Tensor, "K"], Bool[Tensor, "K"]]:
    """The outputs with a spread in training, which can be learnt, and those of them with one in the test."""
    learnt, in_test = train.scale > 0, Standardizer(actual).scale > 0
    if not bool((learnt & in_test).any()):
        without = "; ".join(
            f"{name} has none in output {_listed((~varies).nonzero().flatten().tolist())}"
            for name, varies in (("train_y", learnt), (f"test_y, of {len(actual)} rows,", in_test))
            if not bool(varies.all())
        )
        raise ValueError(
            "R² compares with the spread of the targets, and no output has any in both training and test: "
            f"{without}. Draw rows in which one changes."
        )
    return learnt, learnt & in_test


def _ridge(
    x: Tensor, y: Tensor, grid: tuple[float, ...], sources: Tensor | None, generator: torch.Generator
) -> RidgeFit:
    """The ridge regression on all rows, at the l2 that is given or, of several, chosen."""
    if len(grid) == 1:
        return Ridge(Moments.of(x, y)).at(grid[0])
    folds = draw_folds(_check_two(x, sources), generator, sources=sources)
    return cross_validate(x, y, folds.to(x.device), grid)


def _check_two(x: Tensor, sources: Tensor | None) -> int:
    """The number of rows; an error unless some rows, or sources where they are named, can be held out from others."""
    if (len(x) if sources is None else int(sources.max()) + 1) < 2:
        raise ValueError(
            f"The fit holds out part of the training rows, and needs two rows (or sources) at least; got {len(x)} rows"
            f"{'' if sources is None else ' of one source'}. Give more, or for a linear fit one l2, such as l2=1e-3."
        )
    return len(x)


def _listed(outputs: Sequence[int]) -> str:
    return ", ".join(map(str, outputs))


class _Scores:
    """R² in both forms, from sums over rows that a bootstrap can draw again."""

    def __init__(self, actual: Tensor, predicted: Tensor, sources: Tensor | None) -> None:
        actual, predicted = actual.double(), predicted.double()
        means = actual.mean(0)
        shifted = actual - means  # each output from its own mean: sums of squares stay small
        self.offset = (means - means.mean()).cpu()
        columns = [torch.ones_like(actual[:, :1]), shifted, shifted.square(), (actual - predicted).square()]
        self.outputs = actual.shape[1]
        self.sums = sums_by_source(torch.cat(columns, dim=1), sources)
        per_output, pooled = self._r2(self.sums.sum(0, keepdim=True))
        self.per_output = per_output[0]
        self.mean, self.pooled = per_output.mean().item(), pooled.item()

    def _r2(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """(R, 3K + 1) sums → R² per output (R, K), and pooled (R,)."""
        n, total, squares, errors = sums.split([1, *[self.outputs] * 3], dim=1)
        spread = squares - total.square() / n
        spread = spread.where(spread > NOISE * squares, 0)  # of rows that are alike: no R², not an endless one
        centre = total / n + self.offset
        between = (centre - centre.mean(1, keepdim=True)).square().sum(1)
        pooled_spread = spread.sum(1) + n[:, 0] * between
        return 1 - errors / spread, 1 - errors.sum(1) / pooled_spread

    def intervals(self, generator: torch.Generator) -> tuple[Interval, Interval]:
        """Of the mean over outputs, and of the pooled form."""
        per_output, pooled = self._r2(resampled_sums(self.sums, generator))
        return interval_of(per_output.mean(1)), interval_of(pooled)
