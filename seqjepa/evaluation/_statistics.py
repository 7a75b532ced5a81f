"""What every probe shares: standardising, held-out parts of the training set, intervals by the bootstrap."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from seqjepa._modes import autocast

__all__ = [
    "Interval", "Standardizer", "bootstrap", "draw_folds", "hold_out", "interval_of", "plain_arithmetic",
    "resampled_sums", "sums_by_source",
]  # fmt: skip

RESAMPLES = 1000
FOLDS = 5


class Interval(NamedTuple):
    """A 95 % interval by the percentile bootstrap, over test rows, or over sources where they are named."""

    low: float
    high: float

    def __str__(self) -> str:
        """Both ends, three decimals."""
        return f"[{self.low:.3f}, {self.high:.3f}]"


@contextlib.contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Without autocast, without gradient, and outside inference mode, whatever the caller works under."""
    with torch.inference_mode(False), torch.no_grad(), autocast(device, enabled=False):
        yield


class Standardizer:
    """Subtract the mean and divide by the deviation of the training rows; features without any become 0.

    A feature whose deviation is rounding noise, below 1e-6 of its size in float32, carries nothing. It must not be
    blown up to deviation 1, so it is dropped.
    """

    def __init__(self, x: Float[Tensor, "N D"]) -> None:
        self.mean = x.mean(0, dtype=torch.float64)
        centred = x - self.mean.to(x.dtype)  # squared in float64: float32 overflows at 2e19
        deviation = torch.linalg.vector_norm(centred, dim=0, dtype=torch.float64) / len(x) ** 0.5
        noise = 8 * torch.finfo(x.dtype).eps * (self.mean.square() + deviation.square()).sqrt()
        self.deviation = deviation
        self.scale = torch.where(deviation > noise, deviation, torch.inf).reciprocal()

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """The standardised rows, a new tensor in the dtype of `x`."""
        return (x - self.mean.to(x.dtype)) * self.scale.to(x.dtype)


def hold_out(
    rows: int, fraction: float, generator: torch.Generator, *, sources: Int[Tensor, "N"] | None = None
) -> Bool[Tensor, "N"]:
    """Which training rows to hold out: about `fraction`, never all; a source is never split.

    On the CPU, so that one seed holds out the same rows on every device.
    """
    of_row = _units(rows, sources)
    units = int(of_row.max()) + 1
    held = torch.zeros(units, dtype=torch.bool, device="cpu")
    held[_shuffled(units, generator)[: min(math.ceil(units * fraction), units - 1)]] = True
    return held[of_row]


def draw_folds(
    rows: int,
    generator: torch.Generator,
    *,
    labels: Int[Tensor, "N"] | None = None,
    sources: Int[Tensor, "N"] | None = None,
) -> Int[Tensor, "N"]:
    """The fold of each training row, 0 … K − 1 with K up to 5, or −1 for rows that are always learnt from.

    Folds differ in size by one unit at most, and so do the units of each class in them, a unit being a source where
    they are named (with the class of its last row), or a row. A source is never split. A class whose rows all lie in
    one fold could not be learnt without it, so its units belong to none. On the CPU, as `hold_out`.
    """
    of_row = _units(rows, sources)
    units = int(of_row.max()) + 1
    label = torch.zeros(rows, dtype=torch.long, device="cpu") if labels is None else labels.cpu()
    of_unit = torch.zeros(units, dtype=torch.long, device="cpu")
    of_unit[of_row] = label
    shuffled = _shuffled(units, generator)
    by_class = shuffled[torch.argsort(of_unit[shuffled], stable=True)]  # classes together, shuffled inside
    fold = torch.empty(units, dtype=torch.long, device="cpu")
    fold[by_class] = torch.arange(units, device="cpu") % FOLDS
    size, classes = (label.max() + 1) * FOLDS, label * FOLDS
    spread = torch.bincount(classes + fold[of_row], minlength=int(size)).view(-1, FOLDS).count_nonzero(1)
    fold[of_row[spread[label] == 1]] = -1
    left, numbered = torch.unique(fold[of_row], return_inverse=True)  # an empty fold is none
    return numbered - int((left < 0).any())


def _units(rows: int, sources: Tensor | None) -> Tensor:
    return torch.arange(rows, device="cpu") if sources is None else sources.cpu()


def _shuffled(units: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(units, generator=generator, device="cpu")


def sums_by_source(values: Shaped[Tensor, "N K"], sources: Int[Tensor, "N"] | None) -> Float[Tensor, "U K"]:
    """Sums over the rows of each source, in float64 on the CPU; the rows themselves where no sources are named."""
    values = values.double().cpu()
    if sources is None:
        return values
    units = sources.cpu()
    return values.new_zeros(int(units.max()) + 1, values.shape[1]).index_add_(0, units, values)


def resampled_sums(sums: Float[Tensor, "U K"], generator: torch.Generator) -> Float[Tensor, "R K"]:
    """Sums over U units drawn with replacement, 1,000 times over."""
    units = len(sums)
    block = max(1, min(RESAMPLES, 2**22 // units))
    totals = []
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        drawn = torch.randint(units, (size, units), generator=generator, device="cpu")
        flat = (drawn + units * torch.arange(size, device="cpu")[:, None]).flatten()
        counts = torch.bincount(flat, minlength=size * units).view(size, units)
        totals.append(counts.double() @ sums)
    return torch.cat(totals)


def bootstrap(
    sums: Float[Tensor, "U K"], statistic: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Interval:
    """The 95 % percentile interval of a statistic (R, K) → (R,) of sums over units."""
    return interval_of(statistic(resampled_sums(sums, generator)))


def interval_of(draws: Float[Tensor, "R"]) -> Interval:
    """The 2.5 and 97.5 percentiles; resamples in which the statistic is undefined do not count. NaN if it is in all."""
    draws = draws[draws.isfinite()]
    if len(draws) == 0:
        return Interval(math.nan, math.nan)
    low, high = torch.quantile(draws, draws.new_tensor([0.025, 0.975])).tolist()
    return Interval(low, high)
