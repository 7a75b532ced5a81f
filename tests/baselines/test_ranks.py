"""Methods that compare sources over several processes are those of one process with all rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seqjepa import ActionEmbedder, ConditionedPredictor, RawActions
from seqjepa.baselines import (
    BYOL,
    SEN,
    SIE,
    ConditionalBYOL,
    ContextSSL,
    ConvIJEPA,
    EquiMod,
    HyperPredictor,
    NTXent,
    PairTransformer,
    Projector,
    SimCLR,
    VICReg,
    VICRegTraj,
)
from seqjepa.groups import Translation
from tests.baselines.builders import METHODS, A, linear
from tests.builders import sequence
from tests.ranks import on_ranks
from tests.test_distributed import assert_close, check_a_loss, shares

CONTRASTIVE = ("SimCLR", "SEN", "EquiMod", "ContextSSL")  # whole losses of all rows: shares need not be equal


def contrast(z: Tensor, x: Tensor, share: slice) -> Tensor:
    """Of two views of each source; in eval mode a process contrasts its own rows only."""
    return NTXent(0.3).train(share != slice(0, 12))(z[:, 0], z[:, 1])


def method_of_rows(name: str) -> Any:
    """A method without batch norm, whose loss of two half batches could be that of the whole."""
    torch.manual_seed(0)
    encoder, embedder = linear(5), ActionEmbedder(A, 4, norm=None)

    def head(dim: int = 5) -> Projector:
        return Projector(dim, 6)

    def predictor(e: int) -> nn.Module:
        return ConditionedPredictor(6, e, 6, 7, norm=None)

    made: dict[str, Any] = {
        "SimCLR": lambda: SimCLR(encoder, head()),
        "BYOL": lambda: BYOL(encoder, head(), predictor(0)),
        "VICReg": lambda: VICReg(encoder, head()),
        "VICRegTraj": lambda: VICRegTraj(encoder, head()),
        "SEN": lambda: SEN(encoder, head(), embedder, predictor(4)),
        "EquiMod": lambda: EquiMod(encoder, head(), head(), embedder, predictor(4)),
        "SIE": lambda: SIE(encoder, head(2), head(3), RawActions(A), HyperPredictor(6, A)),
        "ConditionalBYOL": lambda: ConditionalBYOL(encoder, head(), embedder, predictor(4)),
        "ConvIJEPA": lambda: ConvIJEPA(encoder, head(), embedder, predictor(4), group=Translation(A)),
        "ContextSSL": lambda: ContextSSL(encoder, PairTransformer(9, 8, 6), embedder, context_pairs=3, hide=0.0),
    }
    return made[name]().double()


def check_a_method(name: str, me: int, world: int, uneven: bool) -> None:
    views, actions = sequence(batch=12, observed=2, action_dim=A, dtype=torch.float64)
    alone, wrapped = method_of_rows(name).eval(), DistributedDataParallel(method_of_rows(name))
    expected = alone(views, actions).loss  # in eval mode a process counts its own rows only
    expected.backward()
    share = shares(world, uneven)[me]
    loss = wrapped(views[share], actions[share]).loss
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    assert_close(mean / world, expected.detach())
    for got, one in zip(wrapped.module.parameters(), alone.parameters(), strict=True):
        assert (one.grad is None) == (got.grad is None)
        if one.grad is not None:
            assert_close(got.grad, one.grad)


def _check(rank: int, world: int) -> None:
    for uneven in (False, True):
        check_a_loss(contrast, shares(world, uneven)[rank])
    for name in METHODS:
        check_a_method(name, rank, world, uneven=False)
    for name in CONTRASTIVE:
        check_a_method(name, rank, world, uneven=True)


def test_two_ranks_are_one_process_with_all_rows() -> None:
    torch.manual_seed(0)
    on_ranks(_check)
