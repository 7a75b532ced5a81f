"""What a loop of one's own calls: seeds of a step, groups of weights, batch norm over ranks, checkpoints."""

from __future__ import annotations

import copy
import errno
import functools
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler

from seqjepa import ConditionedPredictor, CosineSchedule, EMATarget, SequenceAggregator
from seqjepa.functional import WarmupCosineSchedule
from seqjepa.training import Checkpoints, RunningStatistics, SyncBatchNorm, seed_step, sync_batch_norm, weight_groups
from tests.builders import TinyEncoder, randomise, sequence, tiny_model
from tests.disks import room_for
from tests.ranks import on_ranks

# ---------------------------------------------------------------------------------------------------------- seed_step


def drawn() -> list[float]:
    return [torch.rand(1).item(), random.random(), float(np.random.rand())]  # noqa: NPY002


def test_what_a_step_draws_depends_on_seed_and_step_alone() -> None:
    seed_step(0, 7)
    first = drawn()
    drawn()
    seed_step(0, 7)
    assert drawn() == first
    others = [(0, 8), (1, 7), (7, 0)]
    for seed, step in others:
        seed_step(seed, step)
        assert not set(drawn()) & set(first)


def test_steps_and_seeds_are_whole() -> None:
    with pytest.raises(TypeError, match=r"whole numbers and names; got 1\.5"):
        seed_step(0, 1.5)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ weight_groups


def named_groups(model: nn.Module) -> tuple[set[str], set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = weight_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in groups)
    return decayed, spared


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
                                  "convnext_atto", "deit_tiny_distilled_patch16_224"])  # fmt: skip
def test_every_weight_that_learns_is_in_one_group_and_vectors_tokens_and_places_do_not_decay(name: str) -> None:
    encoder: Any = timm.create_model(name, num_classes=0)
    decayed, spared = named_groups(encoder)
    learning = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert decayed | spared == learning
    assert not decayed & spared
    theirs = set(encoder.no_weight_decay()) if hasattr(encoder, "no_weight_decay") else set()
    assert theirs & learning <= spared
    for n, p in encoder.named_parameters():
        matrix = p.ndim >= 2 and not any(word in n for word in ("token", "pos_embed", "relative_position"))
        assert (n in decayed) == matrix, n


def test_the_agg_token_positions_norms_and_biases_of_a_model_do_not_decay() -> None:
    model = tiny_model(aggregator=SequenceAggregator(12, depth=1, heads=2, positions=nn.Embedding(9, 12)))
    decayed, spared = named_groups(model)
    assert {"aggregator.token", "aggregator.positions.weight", "aggregator.norm.weight", "encoder.bn1.weight"} <= spared
    assert {"encoder.conv1.weight", "embedder.projection.0.weight", "predictor.layers.3.weight"} <= decayed
    assert not any(name.startswith("target.") for name in decayed | spared)
    assert all(name.endswith(("weight", "token")) for name in decayed)


def test_frozen_weights_and_the_target_s_are_left_out_and_shared_ones_come_once() -> None:
    model = tiny_model()
    model.requires_grad_(True)  # which melts the target too
    for p in model.encoder.conv1.parameters():
        p.requires_grad_(False)
    model.encoder.conv1_again = model.encoder.conv1
    model.encoder.twice = model.encoder.conv2
    ids = [id(p) for group in weight_groups(model, 0.1) for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert not set(ids) & {id(p) for p in [*model.target.parameters(), *model.encoder.conv1.parameters()]}
    assert id(model.encoder.conv2.weight) in ids


def test_groups_of_a_wrapped_or_compiled_model_are_those_of_the_model() -> None:
    encoder = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    expected = [[id(p) for p in group["params"]] for group in weight_groups(encoder, 0.1)]
    wrappers: list[Any] = [torch.compile(encoder), nn.Sequential(encoder)]
    for wrapped in wrappers:
        assert [[id(p) for p in group["params"]] for group in weight_groups(wrapped, 0.1)] == expected


def test_norms_of_several_axes_and_of_others_making_do_not_decay() -> None:
    class MyRmsNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

    model = nn.Sequential(nn.LayerNorm((3, 4, 4)), MyRmsNorm2d(), nn.Conv2d(3, 3, 1))
    assert named_groups(model) == ({"2.weight"}, {"0.weight", "0.bias", "1.scale", "2.bias"})


def test_impossible_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight_decay must be at least 0; got -1"):
        weight_groups(nn.Linear(2, 2), -1)
    with pytest.raises(ValueError, match=r"No weight of this model learns"):
        weight_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)
    assert len(weight_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


# ---------------------------------------------------------------------------------------------------- sync_batch_norm

FAMILIES = ["resnet18", "efficientnet_b0", "regnetx_002", "mobilenetv3_small_050", "densenet121", "resnetv2_50",
            "mixnet_s", "ghostnet_050", "hrnet_w18_small", "vovnet39a", "convnext_atto"]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_synchronised_batch_norms_give_the_same_outputs_under_the_same_names(name: str) -> None:
    model = nn.ModuleDict({"encoder": timm.create_model(name, num_classes=0)})
    model["target"] = EMATarget(model["encoder"])
    randomise(model).eval()
    names, x = list(model.state_dict()), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model["encoder"](x), model["target"](x)
        hidden = [type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for _ in range(2):  # a second call changes nothing
            assert sync_batch_norm(model) is model
            got = model["encoder"](x), model["target"](x)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    now = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(now) == len(hidden)
    assert all(isinstance(m, SyncBatchNorm) for m in now)
    assert list(model.state_dict()) == names


def test_what_hangs_on_a_batch_norm_stays_there() -> None:
    model = tiny_model().train()
    calls: list[str] = []
    norm = model.encoder.bn1
    norm.register_forward_hook(lambda *_: calls.append("hook"))
    norm.weight.requires_grad_(False)
    norm.eval()
    assert sync_batch_norm(model).encoder.bn1 is norm
    assert not norm.training
    assert not norm.weight.requires_grad
    assert isinstance(model.embedder.normalization, SyncBatchNorm)
    assert isinstance(model.predictor.layers[1], SyncBatchNorm)
    assert isinstance(model.target.encoder.bn1, SyncBatchNorm)
    model(*sequence()).loss.backward()
    assert calls == ["hook"]
    copy.deepcopy(model)


def test_a_batch_norm_with_a_forward_of_its_own_is_refused_before_anything_changes() -> None:
    class Scaled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(nn.BatchNorm2d(3), Scaled(3))
    with pytest.raises(TypeError, match=r"1 is a Scaled, a batch norm with a forward pass of its own"):
        sync_batch_norm(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_a_group_of_one_process_is_one_process(tmp_path: Path) -> None:
    x, norm = torch.randn(8, 3), nn.BatchNorm1d(3)
    expected = copy.deepcopy(norm)(x)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert torch.equal(sync_batch_norm(norm)(x), expected)
    finally:
        dist.destroy_process_group()


def test_statistics_are_put_back_as_they_were() -> None:
    model = tiny_model(action_dim=3)
    statistics = RunningStatistics(model)
    for dtype in (torch.float32, torch.float64):  # also of a model that has moved
        model.to(dtype)
        model(*sequence(dtype=dtype))
        statistics.keep()
        before = {name: b.clone() for name, b in model.named_buffers()}
        views, actions = sequence(seed=1, dtype=dtype)
        model(views * torch.inf, actions)
        assert any(not b.isfinite().all() for b in model.buffers())
        statistics.put_back()
        assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def trained(model: Any, share: slice | None) -> tuple[Tensor, list[Tensor]]:
    """Losses of three steps with accumulation, and all weights and statistics after them."""
    wrapped = model if share is None else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(weight_groups(model, 0.1), lr=0.05, momentum=0.9)
    losses = []
    for step in range(3):
        total = torch.zeros(())
        for micro in range(2):
            views, actions = sequence(batch=8, seed=10 * step + micro)
            mask = torch.arange(3) < torch.arange(8)[:, None] % 3 + 1
            if share is not None:
                views, actions, mask = views[share], actions[share], mask[share]
            if share is not None and micro == 0:
                with wrapped.no_sync():
                    loss = wrapped(views, actions, mask).loss / 2
                    loss.backward()
            else:
                loss = wrapped(views, actions, mask).loss / 2
                loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        model.update_target()
        if share is not None:
            dist.all_reduce(total)
            total /= dist.get_world_size()
        losses.append(total)
    return torch.stack(losses), [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]


def parity(me: int, world: int) -> None:
    share = slice(me, None, world)
    for norm in ("batch", "layer"):

        def build(norm: Any = norm) -> nn.Module:
            torch.manual_seed(0)
            encoder: nn.Module = TinyEncoder() if norm == "batch" else nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
            return tiny_model(
                encoder=encoder, norm=norm, dropout=0.0, predictor=ConditionedPredictor(12, 4, 8, 16, norm=norm)
            )

        losses, weights = trained(sync_batch_norm(build()), share)
        expected_losses, expected_weights = trained(build(), None)
        torch.testing.assert_close(losses, expected_losses, atol=1e-6, rtol=0)
        for got, expected in zip(weights, expected_weights, strict=True):
            torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-6)

    # The norm alone, as F.batch_norm on all rows, uneven shares, without affine, cumulative, channels-last, bf16.
    x = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mine = x[: 3 if me == 0 else 0] if me == 0 else x[3:]
    for options in ({}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}):
        whole, part = (nn.BatchNorm2d(3, **options).double() for _ in range(2))
        sync_batch_norm(part)
        for _ in range(2):
            expected, got = whole(x), part(mine.to(memory_format=torch.channels_last))
        torch.testing.assert_close(got, expected[: len(mine)] if me == 0 else expected[3:], atol=1e-12, rtol=1e-12)
        for b, c in zip(part.buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(b, c, atol=1e-12, rtol=1e-12)
    half = sync_batch_norm(nn.BatchNorm2d(3))(mine.bfloat16())
    assert half.dtype == torch.bfloat16

    # What a step draws differs by rank.
    seed_step(0, 3)
    draws: list[Any] = [None, None]
    dist.all_gather_object(draws, torch.rand(1).item())
    assert draws[0] != draws[1]


def checkpoints_of_two(me: int, world: int, folder: str) -> None:
    """What is the same is kept once, what is not of each rank; what goes wrong on rank 0 is raised on all."""
    model, place = nn.Linear(2, 2), Place(10 + me)
    torch.manual_seed(me)
    wrapped = DistributedDataParallel(model)  # which gives all ranks the weights of rank 0
    run = Checkpoints(folder, model=wrapped, place=place)
    assert run.restore() == 0
    run.save(4)
    kept = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    place.at = 0
    assert run.restore() == 4
    assert torch.equal(model.weight, kept)
    assert place.at == 10 + me
    with pytest.raises(ValueError, match="Steps count up; got 3"):
        run.save(3)
    with room_for(10 if me == 0 else 10**9), pytest.raises(OSError, match=r"5\.pt was not saved; .*00000004\.pt"):
        run.save(5)
    with pytest.raises(ValueError, match="It holds model, place; to be restored are model"):
        Checkpoints(folder, model=model).restore()
    with pytest.raises(RuntimeError, match=r"has taken .* over"):
        run.save(5)


def two_ranks(me: int, world: int, folder: str) -> None:
    parity(me, world)
    checkpoints_of_two(me, world, folder)


def test_two_ranks_train_as_one_and_share_a_checkpoint(tmp_path: Path) -> None:
    on_ranks(two_ranks, str(tmp_path))
    place, model = Place(0), nn.Linear(2, 2)
    with pytest.warns(UserWarning, match=r"is of 2 ranks, and here are 1: all go on from rank 0's place"):
        assert Checkpoints(tmp_path, model=model, place=place).restore() == 4
    assert place.at == 10


# -------------------------------------------------------------------------------------------------------- Checkpoints


class Place:
    """Stands for a loader: where it is, and whether it goes on from there."""

    def __init__(self, at: int, refuses: bool = False) -> None:
        self.at, self.refuses = at, refuses

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.refuses and state["at"] != self.at:
            raise ValueError("other settings")
        self.at = state["at"]


class Run:
    """A few steps of a model with everything that a run has."""

    def __init__(self, seed: int = 0, total: int = 10, peak: float = 1e-2, decay: float = 0.1) -> None:
        torch.manual_seed(seed)
        encoder = TinyEncoder()
        self.model = tiny_model(encoder=encoder, target=EMATarget(encoder, CosineSchedule(0.9, 1.0, total)))
        self.optimizer = torch.optim.AdamW(weight_groups(self.model, decay), lr=1.0)
        schedule = WarmupCosineSchedule(1e-3, peak, 1e-4, 2, total)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.place = Place(0)

    def things(self) -> dict[str, Any]:
        return {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "place": self.place,
            "scaler": torch.amp.GradScaler("cpu", enabled=False), "nothing": None,
        }  # fmt: skip

    def train(self, steps: range) -> Run:
        for step in steps:
            seed_step(0, step)
            self.optimizer.zero_grad()
            self.model(*sequence(seed=step)).loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.model.update_target()
            self.place.at = step
        return self

    def rate(self) -> float:
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate


def everything(run: Run) -> list[Tensor]:
    state = run.optimizer.state_dict()["state"]
    return [*run.model.state_dict().values(), *(t for entry in state.values() for t in entry.values())]


def assert_same(one: Run, other: Run) -> None:
    pairs = list(zip(everything(one), everything(other), strict=True))
    assert len(pairs) > 50
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (one.rate(), one.place.at) == (other.rate(), other.place.at)


def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path: Path) -> None:
    straight = Run().train(range(6))
    first = Run().train(range(3))
    Checkpoints(tmp_path, **first.things()).save(3)
    again = Run(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoints = Checkpoints(tmp_path, **again.things())
        assert checkpoints.restore() == 3
    assert checkpoints.latest == tmp_path / "checkpoints" / "step-00000003.pt"
    assert_same(again.train(range(3, 6)), straight)


def test_the_newest_are_kept_and_a_folder_without_any_is_step_0(tmp_path: Path) -> None:
    run = Checkpoints(tmp_path, keep=2, model=nn.Linear(2, 2))
    assert run.restore() == 0
    assert run.latest is None
    for step in (1, 2, 9, 10):
        run.save(step)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir()) if path.name != ".lock"]
    assert names == ["step-00000009.pt", "step-00000010.pt"]
    assert Checkpoints(tmp_path, model=nn.Linear(2, 2)).restore() == 10


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    weights = torch.full((64, 64), 0.5).numpy().tobytes()[:64]
    data[data.index(weights) + 5] ^= 1  # one bit of a weight: only the checksum tells
    path.write_bytes(data)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign_text(path: Path) -> None:
    path.write_text("not a checkpoint")


def foreign_tensor(path: Path) -> None:
    torch.save({"step": 3}, path)


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


def foreign_code(path: Path) -> None:
    torch.save({"format": "seqjepa.training.Checkpoints 1", "step": Harmful()}, path)


@pytest.mark.parametrize("spoil", [damage_cut, damage_flip, damage_empty, foreign_text, foreign_tensor, foreign_code])
def test_a_damaged_or_foreign_file_is_named_and_the_one_before_it_used(
    spoil: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(64, 64)
    run = Checkpoints(tmp_path, model=model)
    for step in (1, 2):
        nn.init.constant_(model.weight, 0.25 * step)
        run.save(step)
    spoil(tmp_path / "checkpoints" / "step-00000002.pt")
    nn.init.zeros_(model.weight)
    again = Checkpoints(tmp_path, model=model)
    with pytest.warns(
        UserWarning, match=r"step-00000002\.pt is damaged, or no checkpoint of ours \(.+\); an older one"
    ):
        assert again.restore() == 1
    assert model.weight.eq(0.25).all()
    assert not (tmp_path / "harmed").exists()
    again.save(2)  # the run comes by there again
    assert Checkpoints(tmp_path, model=model).restore() == 2


def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_half_loaded(tmp_path: Path) -> None:
    saved = Run().train(range(2))
    Checkpoints(tmp_path, **saved.things()).save(2)
    run = Run(seed=1).train(range(1))
    before = copy.deepcopy(everything(run))

    def refused(match: str, **other: Any) -> None:
        with pytest.raises(ValueError, match=match):
            Checkpoints(tmp_path, **(run.things() | other)).restore()
        assert all(torch.equal(a, b) for a, b in zip(everything(run), before, strict=True))
        assert run.place.at == 0

    refused(
        r"is of another model or run .* nothing was loaded.*These weights are for another model",
        model=tiny_model(action_dim=5),
    )
    refused(r"nothing was loaded.*It holds model, .*; to be restored are .*probe", probe=Place(0))
    refused(r"to be restored are model, optimizer, place, scheduler\.", scaler=None)
    refused(r"other settings", place=Place(5, refuses=True))
    refused(r"nothing was loaded", optimizer=torch.optim.AdamW(run.model.parameters()))
    refused(r"Missing key\(s\) in state_dict: .weight.", model=nn.Linear(2, 2))


def test_a_folder_with_a_run_is_not_overwritten_by_another(tmp_path: Path) -> None:
    Checkpoints(tmp_path, model=nn.Linear(2, 2)).save(5)
    fresh = Checkpoints(tmp_path, model=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"holds a run that came to step 5\. Call restore\(\)"):
        fresh.save(6)
    fresh.restore()
    fresh.save(6)
    with pytest.raises(ValueError, match=r"Steps count up; got 4, and .*step-00000006\.pt is saved already"):
        fresh.save(4)


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep is how many checkpoints stay, at least 1; got 0"):
        Checkpoints(tmp_path, keep=0, model=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"what is passed by name, such as model=model; got nothing"):
        Checkpoints(tmp_path, model=None)
    with pytest.raises(TypeError, match=r"numbers must have state_dict and load_state_dict; list has not both"):
        Checkpoints(tmp_path, numbers=[1, 2])
    place = Place(0)
    place.state_dict = lambda: {"at": np.float64(1.0)}  # type: ignore[method-assign, dict-item]
    run = Checkpoints(tmp_path, place=place)
    with pytest.raises(TypeError, match=r"safe to load; ranks\.0\.place\.at is a numpy\.float64"):
        run.save(1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [".lock"]


# ------------------------------------------------------------------------------- settings that change between two runs


def test_a_longer_schedule_another_rate_and_another_decay_take_effect_and_are_said(tmp_path: Path) -> None:
    Checkpoints(tmp_path, **Run(total=10).train(range(4)).things()).save(4)
    changed = Run(seed=1, total=20, peak=2e-2, decay=0.3)
    with pytest.warns(UserWarning, match=r"hold from now on: .*weight_decay 0\.1 → 0\.3.*rate at this step"):
        assert Checkpoints(tmp_path, **changed.things()).restore() == 4
    new = WarmupCosineSchedule(1e-3, 2e-2, 1e-4, 2, 20)
    for step in range(4, 20):
        assert changed.rate() == pytest.approx(new(step), rel=1e-12)
        assert [group["weight_decay"] for group in changed.optimizer.param_groups] == [0.3, 0.0]
        changed.train(range(step, step + 1))
    assert changed.model.target.step == 20


def warmed_up(optimizer: Any, length: int) -> Any:
    warmup = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=length // 8)
    return lr_scheduler.SequentialLR(
        optimizer, [warmup, lr_scheduler.CosineAnnealingLR(optimizer, length)], [length // 8]
    )


def chained(optimizer: Any, length: int) -> Any:
    decay = lr_scheduler.ExponentialLR(optimizer, 1 - 1 / length)
    return lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(optimizer, 0.1, total_iters=length), decay])


SCHEDULES: dict[str, Any] = {
    "none": lambda optimizer, length: None,
    "cosine": lr_scheduler.CosineAnnealingLR,
    "step": lambda optimizer, length: lr_scheduler.StepLR(optimizer, length // 2),
    "sequential": warmed_up,
    "chained": chained,
    "one cycle": lambda optimizer, length: lr_scheduler.OneCycleLR(
        optimizer, optimizer.param_groups[0]["lr"], total_steps=2 * length
    ),
    "restarts": lambda optimizer, length: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, length // 4),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # by SequentialLR itself, before torch 2.9
@pytest.mark.parametrize("kind", SCHEDULES)
def test_of_torch_s_schedules_too(kind: str, tmp_path: Path) -> None:
    def build(rate: float, length: int) -> tuple[Any, Any, Any]:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        return model, optimizer, SCHEDULES[kind](optimizer, length)

    def run(parts: tuple[Any, Any, Any], steps: int) -> list[float]:
        model, optimizer, scheduler = parts
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        return rates

    def names(parts: tuple[Any, Any, Any]) -> dict[str, Any]:
        return dict(zip(("model", "optimizer", "scheduler"), parts, strict=True))

    parts = build(0.1, 8)
    run(parts, 3)
    Checkpoints(tmp_path, **names(parts)).save(3)
    straight = build(0.4, 16)
    expected = run(straight, 10)[3:]
    changed = build(0.4, 16)
    with pytest.warns(UserWarning, match=r"lr [\d.]+ → [\d.]+"):
        Checkpoints(tmp_path, **names(changed)).restore()
    assert run(changed, 7) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("saved", "built", "message"),
    [
        (torch.optim.AdamW, torch.optim.SGD, "of another optimiser than SGD: no dampening, momentum"),
        (torch.optim.SGD, torch.optim.AdamW, "of another optimiser than AdamW: no betas, eps"),
        (torch.optim.AdamW, functools.partial(torch.optim.AdamW, amsgrad=True), "without amsgrad=True"),
    ],
)
def test_the_state_of_an_optimiser_of_another_kind_is_refused_before_it_fails_at_a_step(
    saved: Any, built: Any, message: str, tmp_path: Path
) -> None:
    def things(kind: Any) -> dict[str, Any]:
        model = nn.Linear(2, 2)
        return {"model": model, "optimizer": kind(model.parameters(), lr=0.1)}

    first = things(saved)
    run = Checkpoints(tmp_path, **first)
    first["model"](torch.ones(1, 2)).sum().backward()
    first["optimizer"].step()
    run.save(1)
    other = things(built)
    weight, groups = other["model"].weight.clone(), copy.deepcopy(other["optimizer"].state_dict())
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path, **other).restore()
    assert torch.equal(other["model"].weight, weight)
    assert other["optimizer"].state_dict() == groups


def test_a_rate_that_the_run_itself_moved_stays_where_it_was(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)

    model, optimizer, scheduler = build()
    run = Checkpoints(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler)
    for loss in (1.0, 2.0, 3.0):
        optimizer.step()
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] < 0.01
    run.save(3)
    again = build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Checkpoints(tmp_path, model=again[0], optimizer=again[1], scheduler=again[2]).restore()
    assert again[1].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


# -------------------------------------------------------------------------------------- whole or not at all; two runs


def litter(folder: Path) -> list[str]:
    return [path.name for path in (folder / "checkpoints").iterdir() if path.name.endswith(".tmp")]


def test_a_full_disk_leaves_the_last_good_one_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(300, 300)
    run = Checkpoints(tmp_path, model=model)
    run.save(1)
    kept = model.weight.detach().clone()
    nn.init.zeros_(model.weight)
    real = open

    class Full:
        """A file on a disk with room for a few kilobytes more."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 50_000

        def write(self, data: Any) -> int:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    monkeypatch.setattr("builtins.open", lambda path, mode="r", *a, **k: (
        Full(real(path, mode, *a, **k)) if ".tmp" in str(path) else real(path, mode, *a, **k)
    ))  # fmt: skip
    with pytest.raises(OSError, match=r"step-00000002\.pt was not saved; the last whole one is .*step-00000001\.pt"):
        run.save(2)
    monkeypatch.undo()
    assert litter(tmp_path) == []
    assert Checkpoints(tmp_path, model=model).restore() == 1
    assert torch.equal(model.weight, kept)


def test_wherever_in_a_file_the_disk_is_full_the_last_good_one_stays(tmp_path: Path) -> None:
    model = nn.Linear(100, 100)
    run = Checkpoints(tmp_path, model=model)
    with room_for(1000), pytest.raises(OSError, match=r"step-00000001\.pt was not saved; there is no other"):
        run.save(1)
    run.save(1)
    kept = model.weight.detach().clone()
    size = (tmp_path / "checkpoints" / "step-00000001.pt").stat().st_size
    for room in (0, 1, 500, 5000, size // 2, size - 500, size - 50, size - 1):  # also in the table at its end
        nn.init.zeros_(model.weight)
        with room_for(room), pytest.raises(OSError, match=r"step-00000002\.pt was not saved; the last .*00000001\.pt"):
            run.save(2)
        assert litter(tmp_path) == []
        assert run.restore() == 1
        assert torch.equal(model.weight, kept)
    with room_for(size):
        run.save(2)
    assert run.restore() == 2


def test_a_run_is_restored_also_where_nothing_can_be_written(tmp_path: Path) -> None:
    Checkpoints(tmp_path, model=nn.Linear(2, 2)).save(3)
    (tmp_path / "checkpoints" / ".lock").unlink()  # as that of another process, which wrote its number into it
    with room_for(0):
        run = Checkpoints(tmp_path, model=nn.Linear(2, 2))
        assert run.restore() == 3
    run.save(4)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_save_that_fails_at_any_moment_leaves_the_last_good_one(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Checkpoints(tmp_path, model=nn.Linear(2, 2))
    run.save(1)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match=r"the disk is gone: .*step-00000002\.pt was not saved"):
        run.save(2)
    monkeypatch.undo()
    assert litter(tmp_path) == []
    assert Checkpoints(tmp_path, model=nn.Linear(2, 2)).restore() == 1


def test_what_a_killed_save_left_is_cleared_away(tmp_path: Path) -> None:
    Checkpoints(tmp_path, model=nn.Linear(2, 2)).save(1)
    (tmp_path / "checkpoints" / ".step-00000002.pt.123.tmp").write_bytes(b"half")
    (tmp_path / "checkpoints" / "notes.txt").write_text("somebody's")
    Checkpoints(tmp_path, model=nn.Linear(2, 2))
    assert litter(tmp_path) == []
    assert (tmp_path / "checkpoints" / "notes.txt").exists()


HOLDER = """
import sys, time, torch
from torch.utils.data import DataLoader
from seqjepa.training import Checkpoints
run = Checkpoints(sys.argv[1], model=torch.nn.Linear(2, 2))
batches = iter(DataLoader(list(range(8)), num_workers=1, multiprocessing_context="fork"))
next(batches)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


def test_two_runs_on_one_folder_are_refused_until_the_first_is_dead(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=rf"Another run has .*checkpoints: process {holder.pid} on .*choose another"):
        Checkpoints(tmp_path, model=nn.Linear(2, 2))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    run = Checkpoints(tmp_path, model=nn.Linear(2, 2))  # at once, though its forked worker may still be there
    run.save(1)
    run.close()
    with pytest.raises(RuntimeError, match=r"taken .* over, or this one was closed"):
        run.save(2)


def test_nothing_of_the_clock_or_the_machine_is_in_a_checkpoint(tmp_path: Path) -> None:
    """Two saves of one state are one file, bit by bit: what is kept is the state and nothing else."""
    model = nn.Linear(2, 2)
    files = []
    for name in ("a", "b"):
        Checkpoints(tmp_path / name, model=model).save(1)
        files.append((tmp_path / name / "checkpoints" / "step-00000001.pt").read_bytes())
        time.sleep(0.01)
    assert files[0] == files[1]
