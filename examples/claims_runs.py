"""The runs that the claims are tried on: how much work each preset is, the worlds, and one model trained in one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from claims_model import Batch, bf16_is_faster, build, settled, train_and_look, with_pairs
from objects3d import DEVICE, MOST, PAPER, Pool, build_the_paper_s
from small import train
from torch import Tensor
from wall import FOVEA, GAZES, Walls

from seqjepa import NoActions, SeqJEPA, ViewSequence
from seqjepa.data import RenderedObjects
from seqjepa.groups import Rotation3D

OBSERVED = 3  # views a model reads before it predicts the next
VIEWS = 8  # of a sequence of objects, when a model is measured; 5 of a wall
Look = Callable[[int, SeqJEPA], None]

OBJECTS = ("objects, with actions", "objects, without actions", "objects, untrained")
WALLS = tuple(f"wall, {gaze}" for gaze in GAZES)


@dataclass(frozen=True)
class Preset:
    """How much work."""

    seeds: int
    steps: int  # optimiser steps of a run on objects
    wall_steps: int  # of one on walls
    instances: int  # objects to train on
    held_out: int
    rows: int  # sequences that a probe is fitted to: many draws of the same objects
    paths: tuple[int, ...]  # views of the paths that are integrated
    looks: tuple[int, ...] = ()  # a model of objects is measured after these parts of its steps, too
    drawn: int = 16  # views rendered of each object to train on, once for all runs
    batch: int = 128
    paper: bool = False  # the paper's encoder, sizes, optimiser and whole box, new views in every step


PRESETS = {
    "hour": Preset(3, 4000, 1200, instances=2000, held_out=480, rows=20_000, paths=(2, 3, 5), looks=(4, 2)),
    "nightly": Preset(1, 1200, 600, instances=2000, held_out=480, rows=4000, paths=(3,)),
    "smoke": Preset(1, 3, 3, instances=64, held_out=32, rows=128, paths=(3,), looks=(2,), drawn=12, batch=16),
    "gpu": Preset(
        3, 100_000, 10_000, instances=41_900, held_out=4000, rows=40_000, paths=(2, 3, 5), batch=512, paper=True
    ),
}


class Worlds:
    """What the models see and are measured on: rendered once for all runs, when first asked for.

    Another `seed` makes other objects of the same classes, to choose settings on.
    """

    def __init__(self, preset: Preset, seed: int = 0) -> None:
        self.preset, self.seed = preset, seed
        self.size = PAPER.image_size if preset.paper else 32
        self.most = math.pi / 2 if preset.paper else MOST

    def objects(self, split: str) -> RenderedObjects:
        count = self.preset.instances if split == "train" else self.preset.held_out
        return RenderedObjects(count, size=self.size, split=split, seed=self.seed, device=DEVICE)

    @cached_property
    def pools(self) -> tuple[Pool, Pool]:
        """Views of objects to train on, and of those held out, turned by Euler angles."""
        probed = self.objects("train")
        if self.preset.paper:  # of which the probes learn; the model sees new views of all
            probed = RenderedObjects(8000, size=self.size, split="train", seed=self.seed, device=DEVICE)
        return Pool(probed, self.preset.drawn, most=self.most), Pool(self.objects("val"), 12, most=self.most)

    @cached_property
    def walls(self) -> tuple[Walls, Walls]:
        """Walls of objects to train on, and of those held out; the same for every seed."""
        pools = self.pools
        if self.preset.paper:  # walls stay small
            train, test = (RenderedObjects(n, size=32, split=s) for n, s in ((2000, "train"), (480, "val")))
            pools = Pool(train, 16), Pool(test, 16)
        fit, held_out = (Walls.of(pool.pictures.cpu(), pool.labels.cpu(), seed) for seed, pool in enumerate(pools))
        return fit, held_out


def world_batch(condition: str, worlds: Worlds, generator: torch.Generator) -> Batch:
    """What draws a batch to train on."""
    size = worlds.preset.batch
    if condition.startswith("wall"):
        walls, gaze = worlds.walls[0], condition.removeprefix("wall, ")
        count = len(walls.labels)
        return lambda: walls.look(torch.randint(count, (size,), generator=generator), OBSERVED + 1, gaze, generator)
    source = worlds.objects("train") if worlds.preset.paper else worlds.pools[0]
    count = worlds.preset.instances

    def sample() -> ViewSequence:
        rows = torch.randint(count, (size,), generator=generator)
        return source.sample(rows, num_views=OBSERVED + 1, generator=generator)

    return sample


def new_model(condition: str, steps: int, preset: Preset) -> SeqJEPA:
    """Untrained; its weights are drawn from torch's own generator."""
    if condition.startswith("wall"):
        return build(FOVEA, 32, 2, steps)
    with_actions = "without" not in condition
    if preset.paper:
        return PAPER.model(math.ceil(steps / 50), embedder=None if with_actions else NoActions()).to(DEVICE)
    return with_pairs(build(32, 16, 4, steps, with_actions=with_actions), Rotation3D())


def trained(condition: str, seed: int, worlds: Worlds, look: Look) -> SeqJEPA:
    """One model in one world. Objects are looked at on the way, after those parts of the steps."""
    preset, wall = worlds.preset, condition.startswith("wall")
    steps = preset.wall_steps if wall else preset.steps
    torch.manual_seed(seed)  # weights; the views have a generator of their own
    batch = world_batch(condition, worlds, torch.Generator().manual_seed(seed))
    if preset.paper and not wall:
        model, recipe = build_the_paper_s(steps, "without" not in condition)
        return train(model, batch, steps, f"{condition}, seed {seed}", recipe)
    model = new_model(condition, steps, preset)
    at = () if wall else [steps // part for part in preset.looks]
    half = bf16_is_faster(FOVEA if wall else 32)  # weights and the loss stay in float32
    return train_and_look(model, batch, steps, f"{condition}, seed {seed}", half, at, lambda step: look(step, model))


def untrained(condition: str, seed: int, worlds: Worlds) -> SeqJEPA:
    """The level of knowing nothing: the same architecture with its first weights, batch norms settled on the data."""
    torch.manual_seed(seed)
    model = new_model(condition, 1, worlds.preset)
    batch = world_batch(condition, worlds, torch.Generator().manual_seed(seed))

    def on_device() -> ViewSequence:
        sequence = batch()
        device: Tensor = next(model.parameters())
        return sequence._replace(views=sequence.views.to(device.device), actions=sequence.actions.to(device.device))

    return settled(model, on_device)
