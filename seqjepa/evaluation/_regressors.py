"""Regressions that are fitted together and read one by one, on as many sets of test rows as there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from seqjepa.evaluation._inputs import check_sources, regression_inputs, regression_rows
from seqjepa.evaluation._mlp import Problem, fit_mlps
from seqjepa.evaluation._ridge import Moments, Ridge, RidgeFit, cross_validate
from seqjepa.evaluation._scores import Regression, scored, varying
from seqjepa.evaluation._statistics import Standardizer, draw_folds, hold_out, plain_arithmetic

__all__ = ["Asked", "Regressor", "fit_regressors"]

L2_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


class Asked(NamedTuple):
    """What a regression is fitted to: features (N, D), targets (N, K) or (N,), and the source of each row."""

    x: Tensor
    y: Tensor
    sources: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Regressor:
    """A fitted regression of standardised targets from standardised features.

    Attributes:
        asked: what it was fitted to.
        fit: from standardised features to the standardised targets that can be learnt.
        standardize: of the features.
        center: of the targets.
        learnt: which of the targets vary in training.
        drawn: state of the generator after the fit; a reading's bootstrap begins there, whatever else is read.
        l2: of a linear fit.
        steps: of an MLP.
    """

    asked: Asked
    fit: Callable[[Tensor], Tensor]
    standardize: Standardizer
    center: Standardizer
    learnt: Bool[Tensor, "K"]
    drawn: Tensor
    l2: float | None
    steps: int | None

    def read(self, test: Asked) -> Regression:
        """R² on test rows."""
        _, _, x, actual = regression_inputs(self.asked.x, self.asked.y, test.x, test.y)
        sources = check_sources("test_sources", test.sources, len(actual))
        with plain_arithmetic(x.device):
            predicted = self.center.mean.to(actual.dtype).expand_as(actual).clone()
            deviation = self.center.deviation[self.learnt].to(actual.dtype)
            predicted[:, self.learnt] += self.fit(self.standardize(x)).to(actual.dtype) * deviation
            generator = torch.Generator(device="cpu")
            generator.set_state(self.drawn)
            result = scored(self.center, actual, predicted, sources, generator, test.y.shape)
        return replace(result, l2=self.l2, steps=self.steps)


def fit_regressors(
    asked: Sequence[Asked],
    *,
    hidden: Sequence[int],
    l2: float | Sequence[float] = L2_GRID,
    max_epochs: int = 300,
    seed: int = 0,
) -> list[Regressor]:
    """One regression for each set of training rows, each as `regression_r2` fits it; MLPs are fitted side by side."""
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
    begun = [_Begun(one, seed) for one in asked]
    if not widths:
        return [each.linear(grid) for each in begun]
    problems = [each.problem() for each in begun]
    with torch.inference_mode(False), torch.no_grad():
        fits = fit_mlps(problems, widths, max_epochs)
    return [each.fitted(fit, steps=steps) for each, (fit, steps) in zip(begun, fits, strict=True)]


class _Begun:
    """Rows that are checked and standardised, and nothing fitted yet."""

    def __init__(self, asked: Asked, seed: int) -> None:
        x, targets = regression_rows("train", asked.x, asked.y)
        self.asked = asked
        self.sources = check_sources("train_sources", asked.sources, len(x))
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        with plain_arithmetic(x.device):
            self.standardize, self.center = Standardizer(x), Standardizer(targets)
            self.learnt, _ = varying(self.center, None)
            self.x, self.y = self.standardize(x), self.center(targets)[:, self.learnt].to(x.dtype)

    def linear(self, grid: tuple[float, ...]) -> Regressor:
        with plain_arithmetic(self.x.device):
            ridge = _ridge(self.x, self.y, grid, self.sources, self.generator)
        return self.fitted(ridge.predict, l2=ridge.l2)

    def problem(self) -> Problem:
        held = hold_out(_check_two(self.x, self.sources), 0.1, self.generator, sources=self.sources)
        return Problem(self.x, self.y, held, self.generator)

    def fitted(
        self, fit: Callable[[Tensor], Tensor], *, l2: float | None = None, steps: int | None = None
    ) -> Regressor:
        drawn = self.generator.get_state()
        return Regressor(self.asked, fit, self.standardize, self.center, self.learnt, drawn, l2, steps)


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
