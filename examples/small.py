"""What the smaller examples share: an encoder that a CPU trains in minutes, the shortest loop, and a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from running import Stop
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from seqjepa import ActionEmbedder, CosineSchedule, NoActions, SeqJEPA, ViewSequence
from seqjepa.baselines import Baseline
from seqjepa.functional import WarmupCosineSchedule
from seqjepa.presets import Preset
from seqjepa.training import Checkpoints

Trained = TypeVar("Trained", bound="SeqJEPA | Baseline")
SAVED = 200  # steps from one checkpoint to the next


class Recipe(NamedTuple):
    """What moves the weights."""

    optimizer: Optimizer
    scheduler: LambdaLR
    clip: float = math.inf  # most length of a gradient
    half: bool | None = None  # under bfloat16 autocast; None: on a GPU


class ResidualBlock(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) → (N, c_out, H / stride, W / stride)."""
        return F.relu(self.body(x) + self.skip(x))


def small_convnet(side: int, channels: int = 3, width: int = 16, dim: int = 16) -> nn.Module:
    """Views of `side` pixels, a multiple of 8, to `dim` numbers; 90,000 weights at 32 px.

    The last map is flattened, not averaged: where things are tells how they are turned. A small `dim` makes the encoder
    choose what to keep. Batch norm centres it: otherwise all sources point the same way, and cosines say little.
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        ResidualBlock(width, width, 1), ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 4 * width, 2),
        nn.Flatten(), nn.Linear(4 * width * (side // 8) ** 2, dim, bias=False), nn.BatchNorm1d(dim, affine=False),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def small_model(side: int, action_dim: int, steps: int, *, with_actions: bool = True, channels: int = 3) -> SeqJEPA:
    """The paper's model around it. A short run needs a target that follows faster than the paper's."""
    return SeqJEPA.from_encoder(
        small_convnet(side, channels),
        action_dim=action_dim,
        view_shape=(channels, side, side),
        embedder=ActionEmbedder(action_dim, 32) if with_actions else NoActions(),
        momentum=CosineSchedule(0.98, 1.0, steps),
    )


def small_recipe(model: nn.Module, steps: int, rate: float = 2e-3) -> Recipe:
    """AdamW with a cosine decay, as in the paper, at a rate for small models.

    At this rate the aggregator, whose norms come after its layers, needs a slow start and clipped gradients: without
    them some runs diverge after a few hundred steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1)  # the schedule sets the rate
    schedule = WarmupCosineSchedule(1e-4, rate, 1e-5, warmup_steps=min(200, steps // 2), total_steps=steps)
    return Recipe(optimizer, LambdaLR(optimizer, schedule), clip=1.0)


def paper_recipe(preset: Preset, model: nn.Module, steps: int) -> Recipe:
    """The paper's optimiser, and its schedule stretched over a run of this length: the same share of it warms up."""
    preset = replace(preset, epochs=steps, warmup_epochs=steps * preset.warmup_epochs // preset.epochs)
    optimizer = preset.optimizer(model)
    return Recipe(optimizer, preset.scheduler(optimizer, steps_per_epoch=1))


def resumable(folder: Path, model: nn.Module, recipe: Recipe, **others: Any) -> Checkpoints:
    """The checkpoints of a run in its folder, for `train`: model and recipe, and what the batches depend on."""
    return Checkpoints(folder, keep=1, model=model, optimizer=recipe.optimizer, scheduler=recipe.scheduler, **others)


def train(
    model: Trained,
    batch: Callable[[], ViewSequence],
    steps: int,
    name: str,
    recipe: Recipe,
    run: Checkpoints | None = None,
) -> Trained:
    """Lower the loss of each batch, for seq-JEPA that of predicting its last view, and let the target follow.

    Returns the model in eval mode. A method of `seqjepa.baselines` does as well. Given a run, of `resumable`, it goes
    on where that stopped, and saves it every 200 steps, and on Ctrl-C, once the step is done.

    What a run of hours needs besides, checkpoints and a monitor to begin with, is in train.py.
    """
    optimizer, scheduler, clip, half = recipe
    device = next(model.parameters()).device
    half = device.type == "cuda" if half is None else half
    model.train()
    begun = 0 if run is None else run.restore()
    with Stop() as stop:
        for step in (progress := tqdm(range(begun, steps), initial=begun, total=steps, desc=name, unit="step")):
            views, actions, *_ = batch()
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                out = model(views, actions)
            optimizer.zero_grad()
            out.loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            model.update_target()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{out.loss.item():.3f}")
            if run is not None and ((step + 1) % SAVED == 0 or step + 1 == steps or stop.signal):
                run.save(step + 1)
            if stop.signal:
                break
    model.eval()
    return model


def print_table(columns: dict[str, dict[str, float]]) -> None:
    """A column for each model, a row for each measure."""
    print(" " * 22 + "".join(f"{name:>17}" for name in columns))
    for row in next(iter(columns.values())):
        print(f"{row:<22}" + "".join(f"{c[row]:>17.{2 if 'R²' in row else 1}f}" for c in columns.values()))
    print()


def change(before: float, after: float) -> str:
    """What a number does, in words."""
    return f"{'rises' if after > before else 'falls'} from {before:.3g} to {after:.3g}"
