"""What every probe shares: standardising, a held-out part of the training set, intervals by the bootstrap."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

__all__ = ["Interval", "Standardizer", "bootstrap", "hold_out", "plain_arithmetic", "resampled_sums", "sums_by_source"]

RESAMPLES = 1000


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
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


class Standardizer:
    """Subtract the mean and divide by the deviation of the training rows; features without any become 0.

    A feature whose deviation is rounding noise, below 1e-6 of its size in float32, carries nothing. It must not be
    blown up to deviation 1, so it is dropped.
    """

    def __init__(self, x: Float[Tensor, "N D"]) -> None:
        self.mean = x.mean(0, dtype=torch.float64)
        deviation = ((x - self.mean.to(x.dtype)).square().mean(0, dtype=torch.float64)).sqrt()
        noise = 8 * torch.finfo(x.dtype).eps * (self.mean.square() + deviation.square()).sqrt()
        self.deviation = deviation
        self.scale = torch.where(deviation > noise, deviation, torch.inf).reciprocal()

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """The standardised rows, a new tensor in the dtype of `x`."""
        return (x - self.mean.to(x.dtype)) * self.scale.to(x.dtype)


def hold_out(
    rows: int,
    fraction: float,
    generator: torch.Generator,
    *,
    labels: Int[Tensor, "N"] | None = None,
    sources: Int[Tensor, "N"] | None = None,
) -> Bool[Tensor, "N"]:
    """Which training rows to hold out: about `fraction` of each class, never all of one; a source is never split.

    With sources, whole sources are drawn, each with the label of its last row. On the CPU, so that one seed holds out
    the same rows on every device.
    """
    of_row = torch.arange(rows) if sources is None else sources.cpu()
    units = int(of_row.max()) + 1
    unit_label = torch.zeros(units, dtype=torch.long)
    if labels is not None:
        unit_label[of_row] = labels.cpu()
    shuffled = torch.randperm(units, generator=generator)
    by_class = shuffled[torch.argsort(unit_label[shuffled], stable=True)]  # classes together, shuffled inside
    sizes = torch.bincount(unit_label)
    rank = torch.arange(units) - (sizes.cumsum(0) - sizes)[unit_label[by_class]]
    quota = torch.minimum((sizes * fraction).ceil().long(), sizes - 1)  # one stays to learn from
    held = torch.zeros(units, dtype=torch.bool)
    held[by_class] = rank < quota[unit_label[by_class]]
    return held[of_row]


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
        drawn = torch.randint(units, (size, units), generator=generator)
        flat = (drawn + units * torch.arange(size)[:, None]).flatten()
        counts = torch.bincount(flat, minlength=size * units).view(size, units)
        totals.append(counts.double() @ sums)
    return torch.cat(totals)


def bootstrap(
    sums: Float[Tensor, "U K"], statistic: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Interval:
    """The 95 % percentile interval of a statistic (R, K) → (R,) of sums over units."""
    return interval_of(statistic(resampled_sums(sums, generator)))


def interval_of(draws: Float[Tensor, "R"]) -> Interval:
    """The 2.5 and 97.5 percentiles; resamples in which the statistic is undefined do not count."""
    draws = draws[draws.isfinite()]
    low, high = torch.quantile(draws, draws.new_tensor([0.025, 0.975])).tolist()
    return Interval(low, high)
