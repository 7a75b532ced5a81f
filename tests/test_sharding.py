"""Models that `fully_shard` has spread over ranks train, and are averaged, as one process trains and averages them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode

from seqjepa import ConditionedPredictor, CosineSchedule, EMATarget, SeqJEPA
from seqjepa.training import register_forward_methods, sync_batch_norm
from tests.builders import TinyEncoder, sequence, tiny_model
from tests.ranks import on_ranks

pytestmark = pytest.mark.skipif(torch.__version__ < "2.7", reason="fully_shard runs on CPUs since torch 2.7")


class Scale(nn.Module):
    """One number: a weight of which most ranks hold nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def build(buffers: Any = "own", batch_norm: bool = False) -> SeqJEPA:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(192, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 8), Scale()]
    encoder = TinyEncoder() if batch_norm else nn.Sequential(*layers)
    norm: Any = "batch" if batch_norm else "layer"
    return tiny_model(
        encoder=encoder,
        target=EMATarget(encoder, CosineSchedule(0.7, 1.0, 8), buffers=buffers),
        predictor=ConditionedPredictor(12, 4, 8, 16, norm=norm),
        norm=norm,
        dropout=0.0,
    )


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train(model: SeqJEPA, share: slice, steps: range = range(3), optimizer: Any = None) -> torch.optim.Optimizer:
    """Some steps on a share of each batch, with a look at the outputs between the optimiser's step and the target's."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2, eps=1e-2) if optimizer is None else optimizer
    for step in steps:
        views, actions = (x[share] for x in sequence(batch=8, seed=step))
        model(views, actions).loss.backward()
        for p in learning:
            if share != slice(None) and not isinstance(p.grad, DTensor) and p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.eval()(views, actions)
            model.train()
        model.update_target()
    return optimizer


def check_same(model: SeqJEPA, alone: SeqJEPA, what: str) -> None:
    state, expected = model.state_dict(), alone.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        apart = (whole(value).double() - expected[name].double()).abs().max().item()
        assert apart < 2e-6, f"{what}: {name} is {apart:.1e} from one process's"
    assert model.target.step == alone.target.step == 3


def encoder_alone(model: SeqJEPA) -> None:
    fully_shard(model.encoder)


def target_alone(model: SeqJEPA) -> None:
    fully_shard(model.target.encoder)


def both(model: SeqJEPA) -> None:
    fully_shard(model.encoder)
    fully_shard(model.target.encoder)


def both_that_stay_whole(model: SeqJEPA) -> None:
    fully_shard(model.encoder, reshard_after_forward=False)
    fully_shard(model.target, reshard_after_forward=False)


def other_axes(model: SeqJEPA) -> None:
    fully_shard(model.encoder)
    fully_shard(model.target.encoder, shard_placement_fn=lambda p: Shard(int(p.shape[-1] == 192)))


def other_meshes(model: SeqJEPA) -> None:
    fully_shard(model.encoder)
    fully_shard(model.target.encoder, mesh=init_device_mesh("cpu", (1, 2), mesh_dim_names=("copies", "shards")))


def blocks(model: SeqJEPA) -> None:
    for encoder in (model.encoder, model.target.encoder):
        fully_shard(encoder[1])
        fully_shard(encoder[4])
    fully_shard(model.encoder)


def everything(model: SeqJEPA) -> None:
    fully_shard(model)


def everything_that_is_sharded_again(model: SeqJEPA) -> None:
    fully_shard(model, reshard_after_forward=True)


def everything_in_parts(model: SeqJEPA) -> None:
    for part in (model.encoder, model.target.encoder, model.aggregator, model):
        fully_shard(part)


WAYS: list[Callable[[SeqJEPA], None]] = [
    encoder_alone, target_alone, both, both_that_stay_whole, other_axes, other_meshes, blocks, everything,
    everything_that_is_sharded_again, everything_in_parts,
]  # fmt: skip


def averages(me: int, world: int) -> None:
    alone, share = build(), slice(me, None, world)
    train(alone, slice(None))
    for shard in WAYS:
        model = build()
        shard(model)
        train(model, share)
        check_same(model, alone, shard.__name__)

    # Batch norm's statistics are whole on every rank, and kept, copied or averaged as ever.
    for buffers in ("own", "copy", "ema"):
        alone, model = build(buffers, batch_norm=True), sync_batch_norm(build(buffers, batch_norm=True))
        fully_shard(model)
        train(alone, slice(None))
        train(model, share)
        check_same(model, alone, buffers)

    # A copy is made before shards are; weights flattened into one have nothing to be followed by.
    model = build()
    fully_shard(model.encoder)
    with pytest.raises(ValueError, match=r"sharded over ranks already\. Build the model first"):
        EMATarget(model.encoder)
    flat = build()
    with pytest.raises(ValueError, match=r"FullyShardedDataParallel flattens weights into one.*use .*fully_shard"):
        flat.target.update(FullyShardedDataParallel(flat.encoder, device_id=torch.device("cpu")))


def gatherings(model: SeqJEPA, views: Tensor, actions: Tensor) -> int:
    """How often weights are gathered in one forward pass."""
    with CommDebugMode() as counted, torch.no_grad():
        model(views, actions)
    return counted.get_total_counts()


def methods(me: int, world: int) -> None:
    alone, share = build().eval(), slice(me, None, world)
    views, actions = sequence(batch=8, seed=3)
    mine = views[share], actions[share]
    future = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z, e = alone.encode(views), alone.embed(actions)
        state = alone.aggregate(z[:, :3], e[:, :2])
        expected = {
            "encode": z, "embed": e, "aggregate": state, "predict": alone.predict(state, e[:, 2]),
            "imagine": alone.imagine(views[:, :3], actions[:, :2], future), "target": alone.target(views[:, 3]),
        }  # fmt: skip
    given = {
        "encode": mine[:1], "embed": mine[1:], "aggregate": (z[share, :3], e[share, :2]),
        "predict": (state[share], e[share, 2]), "imagine": (mine[0][:, :3], mine[1][:, :2], future[share]),
        "target": (mine[0][:, 3],),
    }  # fmt: skip
    for shard in (encoder_alone, everything, everything_in_parts, everything_that_is_sharded_again):
        for name, inputs in given.items():  # each the first that is called, and after the others
            model = build().eval()
            shard(model)
            if shard is everything and name == "imagine":
                with pytest.raises(RuntimeError, match="mixed torch.Tensor and DTensor"):
                    model.imagine(*inputs)
            assert register_forward_methods(register_forward_methods(model)) is model
            with torch.no_grad():
                torch.testing.assert_close(getattr(model, name)(*inputs), expected[name][share])
        with torch.no_grad():
            for name, inputs in given.items():
                torch.testing.assert_close(getattr(model, name)(*inputs), expected[name][share])

    # Training through the methods, and gathering no more often than without them.
    for shard in (everything, everything_that_is_sharded_again):
        alone, plain, model = build(), build(), build()
        shard(plain)
        shard(model)
        register_forward_methods(model)
        assert gatherings(model, *mine) == gatherings(plain, *mine) > 0
        for each, part in ((alone, slice(None)), (model, share)):
            each.imagine(views[part, :3], actions[part, :2], future[part]).square().mean().backward()
        for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None and q.grad is not None:
                torch.testing.assert_close(whole(p.grad), q.grad, atol=1e-6, rtol=1e-5)
        train(model.train(), share)
        train(alone.train(), slice(None))
        check_same(model, alone, shard.__name__)


def laws(me: int, world: int) -> None:
    averages(me, world)
    methods(me, world)


def test_a_sharded_model_is_averaged_as_a_whole_one_however_it_is_sharded() -> None:
    on_ranks(laws)
