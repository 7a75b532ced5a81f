"""A contrast over several processes is that of one with all rows."""

from __future__ import annotations

import torch
from torch import Tensor

from seqjepa.baselines import NTXent
from tests.ranks import on_ranks
from tests.test_distributed import check_a_loss


def contrast(z: Tensor, x: Tensor, share: slice) -> Tensor:
    """Of two views of each source; in eval mode a process contrasts its own rows only."""
    return NTXent(0.3).train(share != slice(0, 12))(z[:, 0], z[:, 1])


def _check(rank: int, world: int) -> None:
    for uneven in (False, True):
        check_a_loss(contrast, rank, uneven)


def test_two_ranks_contrast_as_one_process_with_all_rows() -> None:
    torch.manual_seed(0)
    on_ranks(_check)
