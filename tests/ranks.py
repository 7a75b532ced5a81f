"""Several processes for the tests of what they do together: gloo, one thread each, no network."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(function: Callable[..., None], *arguments: Any, world: int = 2) -> None:
    """Call `function(rank, world, *arguments)` in `world` processes; what one of them raises is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (world, f"file://{Path(folder, 'store')}", function, arguments), nprocs=world)


def _rank(rank: int, world: int, store: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )  # fmt: skip
    try:
        function(rank, world, *arguments)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # Torch itself may hold the group for good: default arguments in torch.distributed.nn.functional, caches of DTensor.
    # Its threads live on then, and one that lets go of a tensor while Python ends aborts the process ("terminate called
    # without an active exception"). So Python is not ended, but the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
