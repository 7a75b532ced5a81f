"""The runs of the comparison: what each method is, how much work each preset is, one model trained and measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from claims_measures import encoded
from claims_model import DECORRELATE, EMBED, bf16_is_faster, build, fast_convnet, settled, with_pairs
from claims_runs import OBSERVED, Worlds
from claims_runs import Preset as World
from objects3d import DEVICE, PAPER
from small import Recipe, paper_recipe, small_recipe, train
from torch import nn

from seqjepa import ActionEmbedder, CosineSchedule, NoActions, SeqJEPA, ViewSequence
from seqjepa.baselines import (
    BYOL,
    SEN,
    SIE,
    Baseline,
    ConditionalBYOL,
    ContextSSL,
    ConvIJEPA,
    EquiMod,
    SimCLR,
    VICReg,
    VICRegTraj,
    ViewPairs,
)
from seqjepa.evaluation import Features, action_retrieval, top1, transformation_r2
from seqjepa.groups import Rotation3D

SIDE, DIM, ACTION = 32, 16, 4
DEEP, SHALLOW = (128, 128, 64), (128, 64)  # widths of heads: as many times D as the papers' are, or nearly
RATES = (1e-3, 2e-3, 4e-3, 8e-3)  # of which each method gets its own, chosen on other objects
MEASURED = (1, 3, 5)  # views at test
PROBE, PAIRS = (256, 256), 16_000
Model = SeqJEPA | Baseline
Numbers = dict[str, float]


@dataclass(frozen=True)
class Preset:
    """How much work."""

    seeds: int
    search: int  # steps of a run that a rate is chosen by; 0: the paper's rate
    world: World  # objects, sizes, and steps of a run


def world(steps: int, *, instances: int = 2000, held_out: int = 480, rows: int = 8000, **more: Any) -> World:
    """The objects of the claims."""
    return World(1, steps, 0, instances=instances, held_out=held_out, rows=rows, paths=(3,), **more)


PRESETS = {
    "laptop": Preset(3, 1000, world(4000)),  # a rate that is best for much shorter runs is not best for these
    "short": Preset(3, 300, world(1000)),
    "smoke": Preset(1, 2, world(2, instances=64, held_out=32, rows=128, drawn=12, batch=32)),
    "gpu": Preset(3, 0, world(100_000, instances=41_900, held_out=4000, rows=40_000, batch=512, paper=True)),
}


@dataclass(frozen=True)
class Parts:
    """What methods are made of here."""

    encoder: nn.Module
    steps: int
    pairs: ViewPairs
    paper: bool  # the table's own sizes

    def momentum(self) -> CosineSchedule:
        """As seq-JEPA's: a short run needs a target that follows faster than the papers'."""
        return CosineSchedule(0.996 if self.paper else 0.98, 1.0, self.steps)


Build = Callable[[Parts], Model]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    `views`, `passes` (with gradient) and `targets` (through an average) are of one source in one step.
    """

    build: Build
    views: int
    passes: int
    targets: int = 0
    told: bool = False  # actions
    predicts: bool = False  # from one view another, so that an action can be retrieved
    pairs: bool = False  # whether it may be given two pairs of four views
    paper: tuple[float, float, float] | None = None  # top-1, R² relative and individual, as published

    @property
    def cost(self) -> float:
        """Of a step, over seq-JEPA's: a forward pass 1, a backward 2."""
        return (3 * self.passes + self.targets) / (3 * OBSERVED + 1)


def whole(parts: Parts, *, with_actions: bool = True) -> SeqJEPA:
    """The model of the claims with the paper's loss, or the paper's."""
    if parts.paper:
        return PAPER.model(1, embedder=None if with_actions else NoActions())
    return build(SIDE, DIM, ACTION, parts.steps, with_actions=with_actions, encoder=parts.encoder)


def paired(parts: Parts) -> SeqJEPA:
    """With pairs of views and decorrelated features in the loss: what lets most of a rotation into z."""
    return with_pairs(whole(parts), Rotation3D(), DECORRELATE)


def of(kind: Any, widths: tuple[int, ...], *, pairs: bool = True, embeds: bool = False, averaged: bool = False,
       **more: Any) -> Build:  # fmt: skip
    """A baseline around the encoder, with heads of these widths; with the table's own sizes, where those are asked."""

    def made(parts: Parts) -> Baseline:
        given = dict(more)
        if pairs:
            given["pairs"] = parts.pairs
        if averaged:
            given["momentum"] = parts.momentum()
        if not parts.paper:
            given["widths"] = widths
            if embeds:
                given["embedder"] = ActionEmbedder(ACTION, EMBED, hidden_dim=64)
        side = PAPER.image_size if parts.paper else SIDE
        return kind.from_encoder(
            parts.encoder, action_dim=ACTION, view_shape=(3, side, side), settings="comparison", **given
        )

    return made


SEQJEPA, ONE, ABLATION, UNTRAINED = "seq-JEPA", "seq-JEPA of one view", "seq-JEPA without actions", "untrained"
PAIRED = "seq-JEPA with pairs"
SEQUENCE = OBSERVED + 1
METHODS: Mapping[str, Method] = {
    SEQJEPA: Method(whole, SEQUENCE, OBSERVED, 1, told=True, predicts=True, paper=(87.41, 0.71, 0.74)),
    ONE: Method(whole, 2, 1, 1, told=True, predicts=True, paper=(84.08, 0.65, 0.69)),
    ABLATION: Method(partial(whole, with_actions=False), SEQUENCE, OBSERVED, 1, predicts=True,
                     paper=(86.05, 0.29, 0.37)),
    PAIRED: Method(paired, SEQUENCE, OBSERVED, SEQUENCE, told=True, predicts=True),
    "SimCLR": Method(of(SimCLR, DEEP), 2, 2, pairs=True, paper=(81.13, 0.35, 0.54)),
    "BYOL": Method(of(BYOL, SHALLOW, averaged=True), 2, 2, 2, predicts=True, pairs=True, paper=(82.90, 0.12, 0.25)),
    "VICReg": Method(of(VICReg, DEEP), 2, 2, pairs=True, paper=(80.48, 0.20, 0.36)),
    "VICReg-Traj": Method(of(VICRegTraj, DEEP, pairs=False), 3, 3),
    "SEN": Method(of(SEN, DEEP, embeds=True), 2, 2, told=True, predicts=True, pairs=True, paper=(83.43, 0.35, 0.57)),
    "EquiMod": Method(of(EquiMod, DEEP, embeds=True), 2, 2, told=True, predicts=True, pairs=True,
                      paper=(84.29, 0.32, 0.55)),
    "SIE": Method(of(SIE, DEEP), 2, 2, told=True, predicts=True, pairs=True, paper=(77.49, 0.58, 0.62)),
    "conditional BYOL": Method(of(ConditionalBYOL, SHALLOW, embeds=True, averaged=True), 2, 1, 1, told=True,
                               predicts=True, pairs=True, paper=(82.61, 0.31, 0.47)),
    "ContextSSL": Method(of(ContextSSL, (128, 64), context_pairs=32), 2, 2, told=True, predicts=True,
                         paper=(80.40, 0.74, 0.78)),
    "Conv-IJEPA": Method(of(ConvIJEPA, SHALLOW, pairs=False, embeds=True, averaged=True, group=Rotation3D()), SEQUENCE,
                         OBSERVED, 1, told=True, predicts=True),
    UNTRAINED: Method(whole, SEQUENCE, 0, told=True, predicts=True),
}  # fmt: skip
TWO_PAIRS = ", two pairs"
CONDITIONS = (*METHODS, *(f"{name}{TWO_PAIRS}" for name, method in METHODS.items() if method.pairs))


def method_of(condition: str) -> Method:
    return METHODS[condition.removesuffix(TWO_PAIRS)]


def cost(condition: str) -> float:
    """Of a step, over seq-JEPA's."""
    return method_of(condition).cost * (2 if condition.endswith(TWO_PAIRS) else 1)


def new_model(condition: str, seed: int, steps: int, paper: bool) -> Model:
    """Untrained. All methods of a seed begin with the same encoder."""
    torch.manual_seed(seed)
    encoder = PAPER.model(1).encoder if paper else fast_convnet(SIDE, DIM)
    pairs = ViewPairs("disjoint" if condition.endswith(TWO_PAIRS) else "first")
    return method_of(condition).build(Parts(encoder, steps, pairs, paper)).to(DEVICE)


def trained(condition: str, seed: int, worlds: Worlds, steps: int, rate: float | None) -> Model:
    """One method in its world. All of a seed see the same objects in each step."""
    preset = worlds.preset
    model = new_model(condition, seed, steps, preset.paper)
    views = 4 if condition.endswith(TWO_PAIRS) else method_of(condition).views
    generator = torch.Generator().manual_seed(seed)
    source = worlds.objects("train") if preset.paper else worlds.pools[0]

    def batch() -> ViewSequence:
        rows = torch.randint(preset.instances, (preset.batch,), generator=generator)
        drawn = source.sample(rows, num_views=views, generator=generator)
        return drawn._replace(views=drawn.views.to(DEVICE), actions=drawn.actions.to(DEVICE))

    if condition == UNTRAINED:
        assert isinstance(model, SeqJEPA)
        return settled(model, batch)
    recipe = recipe_of(model, steps, rate)
    return train(model, batch, steps, f"{condition}, seed {seed}", recipe)


def recipe_of(model: Model, steps: int, rate: float | None) -> Recipe:
    """The same for all: AdamW with a cosine, at the method's own rate; the paper's without one."""
    if rate is None:
        return paper_recipe(PAPER, model, steps)
    return small_recipe(model, steps, rate)._replace(half=bf16_is_faster(SIDE))


def measured(condition: str, model: Model, worlds: Worlds, seed: int) -> Numbers:
    """The columns of the table. The mean of z over as many views stands beside the state of seq-JEPA."""
    fit, test = sequences(model, worlds, seed)
    numbers = accuracies(model, fit.draw(4000), test, seed)
    pairs = transformation_r2(fit, test, hidden=PROBE, max_pairs=PAIRS, seed=seed)
    assert pairs.individual is not None
    numbers |= {
        "R² relative": pairs.relative.mean,
        "R² relative, pooled": pairs.relative.pooled,
        "R² individual": pairs.individual.mean,
    }
    if method_of(condition).predicts:
        found = action_retrieval(model, test, seed=seed)
        numbers |= {"MRR": found.mrr, "MRR, chance": found.chance.mrr}
    return numbers


def sequences(model: Model, worlds: Worlds, seed: int) -> tuple[Features, Features]:
    """To fit probes to, and to score them on: four of each object held out."""
    train_pool, test_pool = worlds.pools
    fit = encoded(model, train_pool, max(worlds.preset.rows, len(train_pool.labels)), 1000 + seed)
    return fit, encoded(model, test_pool, 4 * len(test_pool.labels), 2000 + seed)


def accuracies(model: Model, fit: Features, test: Features, seed: int) -> Numbers:
    """Top-1 of z, of the mean of several, and of the states of a model that has such."""
    found = top1(model, fit, test, num_views=MEASURED, seed=seed)
    numbers = {"top-1 %, z": 100 * found.z.accuracy}
    numbers |= {f"top-1 %, mean of {m} z": 100 * of.accuracy for m, of in found.means.items()}
    if isinstance(model, SeqJEPA):
        numbers |= {f"top-1 %, state of {m}": 100 * of.accuracy for m, of in found.states.items()}
    return numbers


def best_rate(condition: str, worlds: Worlds, steps: int) -> tuple[float, dict[str, float]]:
    """Of the grid, that with the largest sum of top-1 and R², both of 1, on objects of its own."""
    scores = {}
    for rate in RATES:
        fit, test = sequences(trained(condition, 0, worlds, steps, rate), worlds, 0)
        accuracy = top1(None, fit.draw(2000), test, num_views=()).z.accuracy
        r2 = transformation_r2(fit, test, hidden=PROBE, max_pairs=PAIRS // 4).relative.mean
        scores[rate] = accuracy + r2 if math.isfinite(accuracy + r2) else -math.inf
    return max(scores, key=lambda rate: scores[rate]), {str(rate): score for rate, score in scores.items()}


def run(condition: str, seed: int, worlds: Worlds, rate: float | None) -> dict[str, Any]:
    """What is written of a run."""
    begun = time.perf_counter()
    model = trained(condition, seed, worlds, worlds.preset.steps, rate)
    training = time.perf_counter() - begun
    begun = time.perf_counter()
    numbers = measured(condition, model, worlds, seed)
    seconds = {"training": training, "measuring": time.perf_counter() - begun}
    return {"condition": condition, "seed": seed, "rate": rate, "numbers": numbers, "seconds": seconds}
