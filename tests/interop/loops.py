"""The plain PyTorch loop that others' loops are compared with, and a small run for both."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from seqjepa import CosineSchedule, SeqJEPA
from seqjepa.data import RotatedViews, ViewLoader
from seqjepa.functional import WarmupCosineSchedule
from seqjepa.training import seed_step, weight_groups

STEPS, BATCHES = 8, 4
RATE = WarmupCosineSchedule(1e-3, 1e-2, 1e-3, 3, STEPS)


def build(side: int = 8, batch_size: int = 4) -> tuple[SeqJEPA, ViewLoader]:
    """A model with batch norm and dropout, and an epoch of four batches."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 8), nn.BatchNorm1d(8))
    model = SeqJEPA.from_encoder(
        encoder, action_dim=1, view_shape=(3, side, side), heads=2, momentum=CosineSchedule(0.9, 1.0, STEPS)
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4 * BATCHES, 3, side, side), dtype=torch.uint8, generator=generator)
    return model, ViewLoader(list(images), RotatedViews(num_views=3, degrees=30), batch_size=batch_size)


def plain(accumulate: int = 1, *, by_groups: bool = True) -> tuple[list[float], SeqJEPA]:
    """Each batch's loss, and the model after the last step.

    A gradient's length is a sum, which rounds by its order: that of the optimiser's groups, or of the model.
    """
    model, loader = build()
    optimizer = torch.optim.AdamW(weight_groups(model, 1e-3), lr=1.0)
    groups = [p for group in optimizer.param_groups for p in group["params"]]
    weights = groups if by_groups else list(model.parameters())
    losses: list[float] = []
    step = 0
    while step < STEPS:
        for number, (views, actions, *_) in enumerate(loader):
            if number % accumulate == 0:
                seed_step(0, step)
                for group in optimizer.param_groups:
                    group["lr"] = RATE(step)
            loss = model(views, actions).loss
            (loss / accumulate).backward()
            losses.append(loss.item())
            if (number + 1) % accumulate == 0:
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                model.update_target()
                step += 1
                if step == STEPS:
                    break
    return losses, model


def assert_same(model: Any, other: Any) -> None:
    """All weights, the target's and its count among them."""
    assert model.target.step == other.target.step
    theirs = other.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=1e-5, msg=name)
