"""A sequence moves, is pinned and is stacked as one thing, also by tools that don't know it."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, default_convert
from torch.utils.data._utils.pin_memory import pin_memory

from seqjepa.data.collation import ImageBatch, collate
from seqjepa.groups import Product, Rotation2D, Translation
from seqjepa.types import ViewSequence

GROUP = Product({"shift": Translation(2), "turn": Rotation2D()})


class Parameters(NamedTuple):
    shift: Tensor
    turn: Any = None


def source(i: int, **fields: Any) -> ViewSequence:
    """One source: three views of level i."""
    parameters = Parameters(torch.full((3, 2), float(i)))
    whole = ViewSequence(torch.full((3, 1, 2, 2), i, dtype=torch.uint8), torch.rand(2, 3), parameters, None, GROUP)
    return whole._replace(**fields)


def batch(**fields: Any) -> ViewSequence:
    stacked = collate([source(i, **fields) for i in range(4)])
    assert isinstance(stacked, ViewSequence)
    return stacked


def tensors(part: Any) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    values = part.values() if isinstance(part, dict) else part if isinstance(part, tuple | list) else []
    return [tensor for value in values for tensor in tensors(value)]


@pytest.mark.parametrize(
    "parameters", [None, torch.rand(4, 3, 2), Parameters(torch.rand(4, 3, 2)), {"a": torch.rand(4)}]
)
@pytest.mark.parametrize("labels", [None, torch.arange(4)])
def test_all_tensors_of_a_sequence_move_and_nothing_else_changes(parameters: Any, labels: Tensor | None) -> None:
    sequence = batch()._replace(parameters=parameters, labels=labels)
    for moved in (sequence.to("meta"), sequence.to(torch.device("meta"), non_blocking=True)):
        assert type(moved) is ViewSequence
        assert type(moved.parameters) is type(parameters)
        assert moved.group is GROUP
        assert (moved.labels is None) == (labels is None)
        assert len(tensors(moved)) == len(tensors(sequence)) == 2 + len(tensors((parameters, labels)))
        assert {part.device.type for part in tensors(moved)} == {"meta"}
        assert [part.shape for part in tensors(moved)] == [part.shape for part in tensors(sequence)]
    assert {part.device.type for part in tensors(sequence)} == {"cpu"}  # the old one stays where it was
    views, actions, *rest = sequence.to("cpu")
    assert views is sequence.views
    assert actions is sequence.actions
    assert len(rest) == 3


def test_a_batch_of_images_moves_too() -> None:
    images = ImageBatch(torch.zeros(2, 3, 4, 4), torch.arange(2)).to("meta", non_blocking=True)
    assert type(images) is ImageBatch
    assert {part.device.type for part in tensors(images)} == {"meta"}
    assert images.saliency is None


def test_a_dataloader_pins_a_sequence_by_its_own_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor, *device: tensor + 1)  # there may be no GPU to pin for
    sequence = batch(labels=7)
    for pinned in (sequence.pin_memory(), pin_memory(sequence)):
        assert type(pinned) is ViewSequence
        assert pinned.group is GROUP
        for one, other in zip(tensors(pinned), tensors(sequence), strict=True):
            assert torch.equal(one, other + 1)


@pytest.mark.parametrize("fields", [
    {}, {"labels": 3}, {"labels": torch.tensor(2), "parameters": torch.rand(3, 1)}, {"parameters": None, "group": None},
    {"parameters": {"shift": torch.rand(3, 2), "name": None}},
])  # fmt: skip
def test_torch_s_own_collate_stacks_sequences_as_ours_does(fields: dict[str, Any]) -> None:
    sources = [source(i, **fields) for i in range(4)]
    expected = collate(sources)
    in_workers = next(iter(DataLoader(sources, batch_size=4, num_workers=1)))  # type: ignore[arg-type]
    for stacked in (default_collate(sources), in_workers, default_collate([(s, 0) for s in sources])[0]):
        assert type(stacked) is ViewSequence
        assert stacked.group == expected.group  # type: ignore[union-attr]
        torch.testing.assert_close(tuple(stacked)[:4], tuple(expected)[:4], rtol=0, atol=0)
    assert default_convert(expected).views is expected.views  # type: ignore[union-attr]


@pytest.mark.parametrize(("fields", "error", "message"), [
    ({"group": Translation(3)}, ValueError, r"elements of one group; item 0 .* has Product.*, item 1 of the b"),
    ({"group": None}, ValueError, "item 1 of the batch has None. Give all items of the dataset one group"),
    ({"views": torch.rand(3, 1, 2, 2)}, TypeError, "have one dtype; item 0 .* has torch.uint8, item 1 of .*32"),
    ({"views": torch.ones(3, 1, 2, 2, dtype=torch.int32)}, TypeError, r"of item 1 .* torch.int32\. Divide them by"),
    ({"parameters": None}, TypeError, "of one kind; item 0 .* has a Parameters, item 1 .* a NoneType"),
    ({"parameters": {"a": 1}}, TypeError, "item 1 of the batch has a dict of 'a'"),
    ({"parameters": Parameters(torch.ones(2))}, ValueError, r"parameters of a batch have one shape; .* has \(2,\)"),
    ({"labels": 1}, ValueError, "have a label, or none has; item 0 of the batch has none"),
    ({"actions": "left"}, TypeError, "An action sequence is a number or a tensor; that of item 1 .* is 'left'"),
    ({"actions": torch.rand(3, 3)}, ValueError, r"one source without the batch axis.*has \(3, 1, 2, 2\) and \(3, 3\)"),
])  # fmt: skip
def test_sequences_that_do_not_belong_together_are_refused(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    for stacked in (collate, default_collate):
        with pytest.raises(error, match=message):
            stacked([source(0), source(1, **fields)])


def test_equal_groups_of_two_items_are_one_group() -> None:
    twin = Product({"shift": Translation(2), "turn": Rotation2D()})
    assert collate([source(0), source(1, group=twin)]).group == GROUP  # type: ignore[union-attr]
