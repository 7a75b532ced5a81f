"""An evaluation and a monitor over two ranks say what one process with everything does."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from seqjepa import ViewSequence
from seqjepa.data import RotatedViews, ViewLoader
from seqjepa.distributed import gather_objects
from seqjepa.evaluation import Features, Monitor, evaluate, extract
from seqjepa.training import register_forward_methods
from tests.builders import TinyEncoder, randomise, tiny_model
from tests.evaluation.worlds import Exact, batches, world
from tests.ranks import on_ranks


def assert_same(got: Features, expected: Features) -> None:
    for field in fields(Features):
        mine, theirs = getattr(got, field.name), getattr(expected, field.name)
        if isinstance(theirs, Tensor):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
        else:
            assert type(mine) is type(theirs), field.name


def rows_of(sequence: ViewSequence, rows: slice) -> ViewSequence:
    labels = None if sequence.labels is None else sequence.labels[rows]
    cut = (sequence.views[rows], sequence.actions[rows], sequence.parameters[rows])
    return ViewSequence(*cut, labels, sequence.group)


def features(me: int) -> None:
    model = tiny_model(action_dim=1)
    for part in (model.encoder, model.embedder, model.target):
        randomise(part)
    sequence = batches(RotatedViews(3), torch.arange(11) % 2)
    for size in (2, 4, 5, 11, 20):  # whole rounds and not; a rank without a batch
        assert_same(extract(model, sequence, batch_size=size, over_ranks=True), extract(model, sequence))
    whole = world(23)
    several = [rows_of(whole, part) for part in (slice(0, 9), slice(9, 10), slice(10, 23))]
    sources = torch.arange(23) // 2
    got = extract(Exact(), several, batch_size=4, sources=sources, over_ranks=True)
    assert_same(got, extract(Exact(), whole, sources=sources))
    assert got.elements is not None
    assert_same(extract(lambda v: v, iter(several), over_ranks=True), extract(lambda v: v, whole))
    images = [(i / 10 * torch.ones(3, 8, 8), i) for i in range(10)]
    loader = ViewLoader(images, RotatedViews(3), batch_size=3, shuffle=False, drop_last=False, rank=0, world_size=1)
    got = extract(model, loader, over_ranks=True)
    assert got.labels is not None
    assert got.labels.tolist() == list(range(10))

    # A sharded model is called equally often on all ranks.
    if torch.__version__ >= "2.7":
        expected = extract(model, sequence)
        fully_shard(model)
        register_forward_methods(model)
        assert_same(extract(model, sequence, batch_size=4, over_ranks=True), expected)

    # A card of them scores each source once.
    train, test = (extract(Exact(), world(40, seed=seed), batch_size=8, over_ranks=True) for seed in (0, 1))
    card = evaluate(Exact(), train, test, hidden=(), progress=False)
    alone = evaluate(Exact(), world(40, seed=0), world(40, seed=1), hidden=(), progress=False)
    assert card.settings["test_sources"] == 40
    assert numbers(card) == numbers(alone)


def numbers(card: Any) -> dict[str, Any]:
    found: dict[str, Any] = card.to_dict()
    return {k: v for k, v in found.items() if k != "settings"}


def refusals(me: int) -> None:
    sequence = world(20)
    views = sequence.views.clone()
    views[7] = torch.nan  # of rank 1
    kind, message = (ValueError, "z must be finite") if me else (RuntimeError, "On rank 1: ValueError: z must be fin")
    with pytest.raises(kind, match=message):
        extract(Exact(), sequence._replace(views=views), batch_size=5, over_ranks=True)
    mine = rows_of(sequence, slice(me, None, 2))
    with pytest.raises(ValueError, match=r"ranks 0 and 1 were given others.*world_size=1"):
        extract(Exact(), mine, batch_size=5, over_ranks=True)
    with pytest.raises(ValueError, match="There is nothing to evaluate"):
        extract(Exact(), [], over_ranks=True)
    known = [sequence, sequence._replace(labels=None)]
    with pytest.raises(ValueError, match="must have one number of views, and the same must be known"):
        extract(Exact(), known, batch_size=20, over_ranks=True)


def monitors(me: int) -> None:
    g = torch.Generator().manual_seed(0)
    online, target = (randomise(TinyEncoder(), seed) for seed in (0, 1))
    for cut in (8, 5, 15):  # evenly, not, and one row on a rank
        share = slice(0, cut) if me == 0 else slice(cut, 16)
        over, alone = Monitor(every=2, over_ranks=True), Monitor(every=2)
        for _ in range(4):
            z, state, prediction = (torch.randn(16, *shape, generator=g) for shape in ((3, 12), (20,), (12,)))
            given: dict[str, Any] = {
                "z": z, "state": state, "prediction": prediction, "target": prediction + z[:, 0]
            }  # fmt: skip
            encoders: dict[str, Any] = {"encoder": online, "target_encoder": target}
            report = over(**{k: x[share] for k, x in given.items()}, **encoders)
            expected = alone(**given, **encoders)
        assert report is not None
        assert expected is not None
        assert report.z is not None
        assert report.z.rows == 48
        assert asdict(report) == asdict(expected)
        assert gather_objects(report) == [report, report]
        assert over.state_dict() == alone.state_dict()

    # The rows that are looked at are bounded; what is broken on one rank is said on all.
    assert Monitor(1, rows=12, over_ranks=True)(z=z[share]) == Monitor(1, rows=12)(z=z)
    z[12] = torch.inf
    report = Monitor(1, over_ranks=True)(z=z[share])
    assert report is not None
    assert report.verdict == "broken: z holds NaN or infinity"
    assert target.bn1.running_mean is not None
    if me == 1:
        target.bn1.running_mean.fill_(torch.nan)
    report = Monitor(1, over_ranks=True)(encoder=online, target_encoder=target)
    assert report is not None
    assert report.verdict == "broken: a batch norm of the encoders holds NaN or infinity"
    if me == 0:  # a call that is not due asks nobody
        assert Monitor(2, over_ranks=True)(z=z) is None
    with pytest.raises(ValueError, match=r"z must be \(B, T, D\) or \(B, D\) with B at least 2; got shape \(1, 4\)"):
        Monitor(1, over_ranks=True)(z=torch.zeros(1 - me, 4))


def laws(me: int, _: int) -> None:
    features(me)
    refusals(me)
    monitors(me)


def test_two_ranks_evaluate_and_monitor_as_one_process_with_everything() -> None:
    on_ranks(laws)


def test_one_process_is_itself() -> None:
    sequence = world(9)
    assert_same(extract(Exact(), sequence, batch_size=4, over_ranks=True), extract(Exact(), sequence))
    z = torch.randn(8, 3, 5)
    assert Monitor(1, over_ranks=True)(z=z) == Monitor(1)(z=z)
