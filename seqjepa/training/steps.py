"""Random numbers that depend on the step alone."""

from __future__ import annotations

import torch

from seqjepa.data.seeding import derive_seed, seed_globals
from seqjepa.distributed import rank

__all__ = ["seed_step"]


def seed_step(seed: int, step: int) -> None:
    """Seed the global generators for one step of a run: a resumed run draws what it would have drawn.

    Those of torch on the CPU and, where they are in use, on the current GPU, those of Python and, where it is loaded,
    of NumPy. What the step draws (dropout, drop path) then depends on `seed`, `step` and the rank, and no checkpoint
    has to hold a generator's state. Takes some 20 microseconds and waits for no device.

    Args:
        seed: of the run.
        step: optimiser steps done, from 0; call it once a step, before the forward pass.

    Raises:
        TypeError: a number that is not whole.

    Examples:
        >>> import torch
        >>> seed_step(0, 7)
        >>> first = torch.rand(2)
        >>> seed_step(0, 7)
        >>> torch.equal(first, torch.rand(2))
        True
    """
    derived = derive_seed("step", seed, rank(), step)
    seed_globals(derived)
    for device in (torch.cuda, torch.xpu):
        if device.is_initialized():  # torch.manual_seed would note the call for later where it is not
            device.manual_seed(derived)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(derived)
