"""Gather and all-reduce with gradient: what W ranks compute is what one process with all rows does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seqjepa import SeqJEPALoss, SIGReg, VarianceCovariance
from seqjepa.distributed import (
    all_reduce,
    awaited,
    broadcast_object,
    gather,
    gather_objects,
    on_rank_0,
    rank,
    world_size,
)
from tests.ranks import on_ranks


def assert_close(got: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


def averaged(gradient: Tensor | None) -> Tensor:
    """What DistributedDataParallel makes of the ranks' gradients."""
    assert gradient is not None
    gradient = gradient.clone()
    dist.all_reduce(gradient)
    return gradient / dist.get_world_size()


def whole_batch(rows: int) -> Tensor:
    return torch.randn(rows, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


UNEVEN = {2: (3, 9), 3: (7, 0, 5), 4: (1, 6, 0, 5)}  # of 12 rows; also one and none


def shares(world: int, uneven: bool) -> list[slice]:
    """The rows of each rank, of 12."""
    ends = [0, *itertools.accumulate(UNEVEN[world] if uneven else [12 // world] * world)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def check_a_loss(loss: Callable[[Tensor, Tensor, slice], Tensor], share: slice) -> None:
    """Value and gradient of a loss of all 12 rows, from a share of them, by a shared weight and by the rows."""
    x = whole_batch(12)
    weight = torch.eye(5, dtype=torch.float64).mul_(1.5).requires_grad_()
    alone, mine = (x.clone().requires_grad_() for _ in range(2))
    everything = slice(0, 12)
    expected = loss(alone @ weight, alone, everything)
    by_weight, by_rows = torch.autograd.grad(expected, [weight, alone])

    part = mine[share]
    got = loss(part @ weight, part, share)
    got.backward()
    assert_close(got, expected)
    assert_close(averaged(weight.grad), by_weight)
    assert mine.grad is not None
    assert_close(mine.grad[share] / dist.get_world_size(), by_rows[share])


def regularised(mask: Tensor | None) -> Callable[[Tensor, Tensor, slice], Tensor]:
    def loss(z: Tensor, x: Tensor, share: slice) -> Tensor:
        whole_or_share = VarianceCovariance(2.0, 0.5, std=2.0)
        if share == slice(0, 12):
            return whole_or_share.eval()(z, mask).loss  # in eval mode a process counts its own rows only
        return whole_or_share(z, None if mask is None else mask[share]).loss

    return loss


def sliced(mask: Tensor | None) -> Callable[[Tensor, Tensor, slice], Tensor]:
    def loss(z: Tensor, x: Tensor, share: slice) -> Tensor:
        part = SIGReg(2.0, slices=8)
        if share == slice(0, 12):
            torch.manual_seed(7)  # what rank 0 draws; rank 1 draws something else
            return part.eval()(z, mask).loss
        torch.manual_seed(7 + rank())
        return part(z, None if mask is None else mask[share]).loss

    return loss


def contrastive(z: Tensor, x: Tensor, share: slice) -> Tensor:
    """Each row against all others, its own partner the row itself: equal on all ranks, since all rows are gathered."""
    y = z[:, 0] if share == slice(0, 12) else gather(z[:, 0])
    return (y @ y.T).logsumexp(1).mean() - y.square().mean()


class Peculiar(Exception):
    """Made of other arguments than it keeps."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail(error: Exception) -> None:
    raise error


def losses(me: int, world: int) -> None:
    """Of the regularisers, masked or not, and of gathered rows: those of the whole batch, shared out evenly or not."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(12, 3, generator=generator) < 0.6).index_fill(1, torch.tensor([0]), True)
    for uneven in (False, True):
        share = shares(world, uneven)[me]
        for loss in (regularised(None), regularised(mask), sliced(None), sliced(mask), contrastive):
            check_a_loss(loss, share)


def rows(me: int, world: int) -> None:
    """Gathered: by rank, none too; integers, booleans and half precision as they are, and a gradient for each."""
    whole = whole_batch(12)
    for uneven in (False, True):
        share = shares(world, uneven)[me]
        for x in (whole, whole > 0, (8 * whole).long(), whole.bfloat16(), whole[:, 0, 0], whole[:, :0]):
            got = gather(x[share])
            assert got.dtype == x.dtype
            assert torch.equal(got, x)
        sizes = [part.stop - part.start for part in shares(world, uneven)]
        mine = whole[share].clone().requires_grad_()
        (gather(mine, sizes) * (1 + me) * torch.arange(12)[:, None, None]).sum().backward()
        of_all = sum(1 + r for r in range(world)) * torch.arange(12.0, dtype=torch.float64)[share]
        assert mine.grad is not None
        assert torch.equal(mine.grad, of_all[:, None, None].expand_as(mine))
    assert gather_objects(me) == list(range(world))
    assert broadcast_object(me) == 0


def laws(me: int, world: int) -> None:
    assert (rank(), world_size()) == (me, world)
    losses(me, world)
    rows(me, world)

    # Through DistributedDataParallel, together with the distance: a mean of equal shares.
    x = whole_batch(12)
    torch.manual_seed(0)
    alone = nn.Linear(5, 5).double()
    wrapped = DistributedDataParallel(nn.Linear(5, 5).double())
    wrapped.module.load_state_dict(alone.state_dict())
    share = shares(world, uneven=False)[me]
    one = SeqJEPALoss(regularizer=VarianceCovariance().eval())
    each = SeqJEPALoss(regularizer=VarianceCovariance())
    z = alone(x)
    one(z[:, 0], x[:, 0], z).loss.backward()
    z = wrapped(x[share])
    each(z[:, 0], x[share][:, 0], z).loss.backward()
    for got, expected in zip(wrapped.parameters(), alone.parameters(), strict=True):
        assert_close(got.grad, expected.grad)

    # Gather wants the true numbers of rows; all-reduce is twice differentiable.
    with pytest.raises(ValueError, match=r"rows has the number of rows of each rank; got \[2, 2\], and 1 rows on "):
        gather(torch.ones(1), rows=[2, 2])
    assert torch.autograd.gradcheck(
        lambda t: all_reduce(t) / world, torch.randn(3, dtype=torch.float64).requires_grad_()
    )
    x = torch.full((2,), 1.0 + me, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(all_reduce(x).pow(3).sum(), x, create_graph=True)
    torch.testing.assert_close(first, torch.full((2,), 2 * 3 * 9.0).double())  # two ranks' losses, 3 (1 + 2)²
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, torch.full((2,), 4 * 6 * 3.0).double())

    # Half precision is summed in float32: 256 + 1 is no bfloat16, the sum of two of them is.
    half = torch.tensor([257.0 if me else 255.0]).bfloat16()
    assert all_reduce(half).dtype == torch.bfloat16

    # Objects.
    assert gather_objects({"rank": me}) == [{"rank": 0}, {"rank": 1}]
    assert broadcast_object(f"rank {me}") == "rank 0"

    # What rank 0 does for all: its value and its error reach all, whatever the error is made of.
    assert on_rank_0(lambda: f"rank {me}") == "rank 0"
    errors: list[tuple[Exception, type[Exception], str]] = [
        (FileNotFoundError(2, "not there"), FileNotFoundError, "not there"),
        (Peculiar(1, 2), Peculiar if me == 0 else RuntimeError, "1 and 2"),
        (ValueError(lambda: 0), ValueError if me == 0 else RuntimeError, "lambda"),
    ]
    for error, kind, message in errors:
        with pytest.raises(kind, match=message):
            on_rank_0(partial(fail, error))


def test_two_ranks_of_a_share_each_are_one_process_with_all_rows() -> None:
    on_ranks(laws)


def test_one_process_is_the_identity() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert all_reduce(x) is x
    assert gather(x) is x
    assert gather(x, rows=[4]) is x
    assert gather_objects(3) == [3]
    assert broadcast_object(3) == 3
    assert on_rank_0(lambda: 3) == 3
    assert (rank(), world_size()) == (0, 1)


def test_rows_need_an_axis() -> None:
    with pytest.raises(ValueError, match=r"needs an axis of them; got a tensor of shape \(\)"):
        gather(torch.tensor(1.0))


def test_processes_that_were_started_are_awaited_until_torch_distributed_joins_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for said, expected in {"": 0, "1": 0, "4": 4, "many": 0}.items():
        monkeypatch.setenv("WORLD_SIZE", said)
        assert awaited() == expected
    monkeypatch.setenv("WORLD_SIZE", "4")
    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    try:
        assert awaited() == 0
        assert (rank(), world_size()) == (2, 4)
    finally:
        dist.destroy_process_group()
