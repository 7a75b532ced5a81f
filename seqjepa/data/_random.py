"""Random draws that take a generator, wherever it lives, and put the result where the data lie."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["constant", "draw_indices", "for_each", "generator_device", "index_at", "sent", "uniform"]


def generator_device(generator: torch.Generator | None, device: torch.device | str) -> torch.device:
    """Where to draw: on the generator's device, or on that of the data where there is no generator."""
    return torch.device(device) if generator is None else generator.device


def constant(values: object, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
    """Numbers of the program as a tensor, on its way to the device."""
    return sent(torch.tensor(values, dtype=dtype, device="cpu"), device)


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on the device; a GPU fetches it in its own time, and is not waited for."""
    device = torch.device(device)
    return x.to(device, non_blocking=device.type == "cuda")


def for_each(rows: int, one: Tensor) -> Tensor:
    """One row's numbers, (1, …), for each of so many rows, (rows, …).

    What is computed from equal rows is not always equal: a logarithm may differ in its last bit along a tensor.
    """
    return one.expand(rows, *one.shape[1:]).contiguous()


def uniform(
    shape: tuple[int, ...],
    low: float = 0.0,
    high: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "..."]:
    """Float32 numbers, uniform in [low, high)."""
    draws = torch.rand(shape, generator=generator, device=generator_device(generator, device), dtype=torch.float32)
    return sent(low + (high - low) * draws, device)


def draw_indices(weights: Float[Tensor, "B N"], *, generator: torch.Generator | None = None) -> Int[Tensor, "B"]:
    """One index a row, with probability proportional to `weights` (at least 0, some above 0), by inverting their sum.

    Not `torch.multinomial`: it holds at most 2²⁴ weights a row, and draws other numbers on other devices.
    """
    device = generator_device(generator, weights.device)
    share = torch.rand((len(weights), 1), dtype=torch.float64, generator=generator, device=device)
    return index_at(weights, sent(share, weights.device))


def index_at(weights: Float[Tensor, "B N"], share: Float[Tensor, "B 1"]) -> Int[Tensor, "B"]:
    """The first index of each row up to which more than this share, in [0, 1), of the row's weight lies.

    It always has weight: the sum does not grow at one that has none, and in double precision a share below 1 of the sum
    is below the sum.
    """
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)
    index = torch.searchsorted(cumulative, share * cumulative[:, -1:], right=True).squeeze(1)
    return index.clamp_(max=weights.shape[1] - 1)  # a row without weight breaks the rule, but not the memory
