"""R² of predictions that a regression made, in both forms, with intervals and chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seqjepa.evaluation._statistics import Interval, Standardizer, interval_of, resampled_sums, sums_by_source

__all__ = ["Regression", "scored", "varying"]

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
        actual: the test targets themselves, in the same form.
        l2: the regularisation of a linear fit that was chosen, or None.
        steps: optimiser steps of the MLP that was kept, or None.
        constant: the outputs without any spread in the training or in the test rows, by number. Every figure but
            `per_output` is of the others alone; they are predicted all the same.

    Examples:
        >>> import torch
        >>> from seqjepa.evaluation import regression_r2
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
    actual: Float[Tensor, "M *K"] = field(repr=False)
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


def scored(
    center: Standardizer,
    actual: Tensor,
    predicted: Tensor,
    sources: Tensor | None,
    generator: torch.Generator,
    shape: Sequence[int],
) -> Regression:
    """R² in both forms of predictions, beside that of the training mean; they are returned in this shape."""
    _, kept = varying(center, actual)
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
        actual=actual.reshape(shape),
        constant=tuple((~kept).nonzero().flatten().tolist()),
    )


def varying(train: Standardizer, actual: Tensor | None) -> tuple[Bool[Tensor, "K"], Bool[Tensor, "K"]]:
    """The outputs with a spread in training, which can be learnt, and those of them with one in the test, if known."""
    learnt = train.scale > 0
    in_test = torch.ones_like(learnt) if actual is None else Standardizer(actual).scale > 0
    if not bool((learnt & in_test).any()):
        test = "" if actual is None else f"test_y, of {len(actual)} rows,"
        without = "; ".join(
            f"{name} has none in output {_listed((~varies).nonzero().flatten().tolist())}"
            for name, varies in (("train_y", learnt), (test, in_test))
            if not bool(varies.all())
        )
        raise ValueError(
            "R² compares with the spread of the targets, and no output has any in both training and test: "
            f"{without}. Draw rows in which one changes."
        )
    return learnt, learnt & in_test


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
