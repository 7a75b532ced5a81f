"""Models that `fully_shard` has spread over ranks train, and are averaged, as one process trains and averages them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode

from seqjepa import (
    CausalAggregator,
    ConditionedPredictor,
    CosineSchedule,
    EMATarget,
    SeqJEPA,
    ViewSequence,
    pair_loss,
)
from seqjepa.evaluation import extract
from seqjepa.groups import Translation
from seqjepa.training import Checkpoints, register_forward_methods, sync_batch_norm
from tests.builders import TinyEncoder, randomise, sequence, tiny_model
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


def optimizer_of(model: SeqJEPA) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-2)


def train(model: SeqJEPA, share: slice, steps: range = range(3), optimizer: Any = None) -> torch.optim.Optimizer:
    """Some steps on a share of each batch, with a look at the outputs between the optimiser's step and the target's."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(model) if optimizer is None else optimizer
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
            "imagine_from": alone.imagine_from(z[:, :3], e[:, :2], future),
            "aggregate_prefixes": alone.aggregate_prefixes(z[:, :3], e[:, :2]),
        }  # fmt: skip
    given = {
        "encode": mine[:1], "embed": mine[1:], "aggregate": (z[share, :3], e[share, :2]),
        "predict": (state[share], e[share, 2]), "imagine": (mine[0][:, :3], mine[1][:, :2], future[share]),
        "target": (mine[0][:, 3],), "imagine_from": (z[share, :3], e[share, :2], future[share]),
        "aggregate_prefixes": (z[share, :3], e[share, :2]),
    }  # fmt: skip
    for shard in (encoder_alone, everything, everything_in_parts, everything_that_is_sharded_again):
        for name, inputs in given.items():  # each the first that is called, and after the others
            model = build().eval()
            shard(model)
            if shard is everything and name == "imagine":
                with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
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


def aggregator_alone(model: SeqJEPA) -> None:
    fully_shard(model.aggregator)


class Paired(SeqJEPA):
    """Pairs of views in the forward, drawn alike on all ranks."""

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> Any:
        out = super().forward(views, actions, mask)
        generator = torch.Generator().manual_seed(5)
        loss, terms = pair_loss(self, out, views, actions, Translation(3), mask=mask, generator=generator)
        return out._replace(loss=(out.loss + loss) / 2, terms=out.terms | terms)


def build_causal() -> Paired:
    torch.manual_seed(1)
    parts = build()
    aggregator = CausalAggregator(12, heads=2, depth=2, window=3, dropout=0.0)
    return Paired(parts.encoder, parts.embedder, aggregator, parts.predictor, parts.target)


def streamed(model: SeqJEPA, z: Tensor, e: Tensor) -> Tensor:
    """The state after every view, view by view."""
    empty, states = torch.zeros_like(e[:, 0]), []
    finished: Tensor | None = None
    cache: Any = None
    for t in range(z.shape[1]):
        state, cache = model.aggregator.step(finished, torch.cat([z[:, t], empty], dim=1), cache)
        states.append(state)
        if t < e.shape[1]:
            finished = torch.cat([z[:, t], e[:, t]], dim=1)
    return torch.stack(states, dim=1)


def streams(me: int, world: int) -> None:
    # Pairs in the forward train as in one process, whichever parts are sharded.
    share = slice(me, None, world)
    ways = (aggregator_alone, everything, everything_that_is_sharded_again, everything_in_parts)
    alone = build_causal()
    train(alone, slice(None))
    for shard in ways:
        model = build_causal()
        shard(model)
        train(model, share)
        check_same(model, alone, f"pairs, {shard.__name__}")

    # A causal aggregator's ways in gather as its forward does, and the gradient through them is that of the whole.
    drawn = torch.randn(8, 5, 12, generator=torch.Generator().manual_seed(2))
    z, e = drawn[..., :8], drawn[:, :4, 8:]
    reads: list[Callable[[SeqJEPA, Tensor, Tensor], Tensor]] = [lambda m, z, e: m.aggregate_prefixes(z, e), streamed]
    for shard in ways:
        for read in reads:
            whole_model, model = build_causal(), build_causal()
            shard(model)
            assert register_forward_methods(register_forward_methods(model)) is model
            expected, got = read(whole_model, z, e), read(model, z[share], e[share])
            torch.testing.assert_close(got, expected[share])
            expected.square().mean().backward()
            got.square().mean().backward()
            for p, q in zip(model.aggregator.parameters(), whole_model.aggregator.parameters(), strict=True):
                grad = p.grad
                assert grad is not None
                assert q.grad is not None
                if not isinstance(grad, DTensor):
                    dist.all_reduce(grad)
                    grad = grad / world
                torch.testing.assert_close(whole(grad), q.grad, atol=1e-6, rtol=1e-5)


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = (optimizer.state[p] for group in optimizer.param_groups for p in group["params"])
    return [whole(value) for state in states for value in state.values()]


def same(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    return all(torch.equal(whole(a), b) for a, b in zip(mine, theirs, strict=True))


def load(folder: Path, model: SeqJEPA) -> torch.optim.Optimizer:
    """A model and its optimiser from a distributed checkpoint, whatever they were and are spread over."""
    optimizer = optimizer_of(model)
    weights, theirs = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": theirs}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=theirs)
    return optimizer


def save(folder: Path, model: SeqJEPA, optimizer: torch.optim.Optimizer) -> None:
    weights, theirs = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": theirs}, checkpoint_id=folder)


def content(folder: Path) -> tuple[Any, ...]:
    """What a saved model's files say; safetensors keeps no order in its metadata."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        bits = {name: (str(t.dtype), t.shape, t.flatten().view(torch.uint8).tolist()) for name, t in tensors.items()}
        return bits, file.metadata(), (folder / "config.json").read_text(encoding="utf-8")


def files(me: int, world: int, folder: Path) -> None:
    # One process's checkpoint goes on in two, exactly; and the two's is left for one.
    alone, share = build(), slice(me, None, world)
    learning = train(alone, slice(None), range(2))
    model = randomise(build(), seed=5)
    fully_shard(model)
    optimizer = load(folder / "one", model)
    assert same(model.state_dict().values(), alone.state_dict().values())
    assert same(moments(optimizer), moments(learning))
    assert model.target.step == 2
    train(model, share, range(2, 3), optimizer)
    train(alone, slice(None), range(2, 3), learning)
    check_same(model, alone, "loaded")
    save(folder / "two", model, optimizer)
    kept = {name: whole(value).clone() for name, value in model.state_dict().items()}
    kept_moments = [m.clone() for m in moments(optimizer)]
    if me == 0:
        torch.save((kept, kept_moments), folder / "full.pt")

    # Whole weights are loaded into shards, and shards into a whole model; what does not fit is refused whole.
    for shard in (everything, encoder_alone):
        other = randomise(build(), seed=6)
        shard(other)
        other.load_state_dict(kept)
        assert same(other.state_dict().values(), kept.values())
    plain = randomise(build(), seed=7)
    plain.load_state_dict(model.state_dict())
    assert same(plain.state_dict().values(), kept.values())
    with pytest.raises(RuntimeError, match="nothing was loaded"):
        other.load_state_dict(kept | {"encoder.4.weight": torch.zeros(3, 3)})
    assert same(other.state_dict().values(), kept.values())

    # A sharded model is saved as the whole one is, bit by bit, by rank 0; so is one that all ranks hold.
    everything_in_parts(parts := build())
    parts.load_state_dict(kept)
    for name, saved in (("sharded", model), ("parts", parts), ("plain", plain)):
        saved.save_pretrained(folder / name)
    if me == 1:
        plain.save_pretrained(folder / "not by rank 1")
    dist.barrier()
    assert not (folder / "not by rank 1").exists()
    for name in ("sharded", "parts"):
        assert content(folder / name) == content(folder / "plain"), name
    assert json.loads((folder / "parts" / "config.json").read_text())["aggregator"]["type"] == "SequenceAggregator"
    with pytest.raises(OSError, match=r"File exists"):
        model.save_pretrained(folder / "full.pt")

    # Evaluation looks at all of it.
    register_forward_methods(model)
    views, actions = sequence(batch=6, seed=9)
    got, expected = (extract(m, ViewSequence(views, actions)) for m in (model, plain))
    for name in ("z", "e", "target"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-6, rtol=1e-5)

    # Our own checkpoints hold what is whole.
    with pytest.raises(TypeError, match=r"model is sharded over ranks\. .* torch\.distributed\.checkpoint"):
        Checkpoints(folder / "run", model=model, optimizer=optimizer).save(1)
    with pytest.raises(TypeError, match=r"optimizer is sharded over ranks"):
        Checkpoints(folder / "run", optimizer=optimizer).restore()
    assert list((folder / "run" / "checkpoints").glob("step-*")) == []


def laws(me: int, world: int, folder: Path) -> None:
    averages(me, world)
    methods(me, world)
    streams(me, world)
    files(me, world, folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_a_sharded_model_trains_is_called_saved_and_moved_as_a_whole_one(tmp_path: Path) -> None:
    model = build()
    save(tmp_path / "one", model, train(model, slice(None), range(2)))
    on_ranks(laws, tmp_path)
    model = randomise(build(), seed=8)
    optimizer = load(tmp_path / "two", model)
    weights, kept_moments = torch.load(tmp_path / "full.pt", weights_only=True)
    assert same(model.state_dict().values(), weights.values())
    assert same(moments(optimizer), kept_moments)
    assert model.target.step == 3
    again = SeqJEPA.from_pretrained(tmp_path / "sharded", encoder=build().encoder)
    assert same(again.state_dict().values(), weights.values())
