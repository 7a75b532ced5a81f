"""What a model of the claims is measured by: the library's measures, as numbers by name, levels among them.

Every probe is fitted to many sequences of the training objects' views and scored on others. Each view is encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from claims_runs import OBJECTS, VIEWS, Worlds, untrained
from objects3d import Pool
from torch import nn
from wall import Walls

from seqjepa import SeqJEPA
from seqjepa.evaluation import (
    Features,
    action_retrieval,
    extract,
    invariance,
    path_integration,
    redraw,
    top1,
    transformation_r2,
)
from seqjepa.evaluation.paths import LEVELS

HIDDEN = (256, 256)
PAIRS = 16_000  # of views, for the relative rotation
LENGTHS = (1, 2, 3, 5, VIEWS)  # M_val
TOLD = {  # the library's variants of path integration, as the claims name them
    "views and actions": "views and actions",
    "actions only": "blank views, refitted",
    "probe robbed of views": "robbed of views",
    "probe robbed of earlier actions": "robbed of earlier actions",
}
Numbers = dict[str, float]


@dataclass(frozen=True)
class Split:
    """Sequences of the training objects, and of those held out."""

    fit: Features
    test: Features

    def few(self, rows: int) -> Split:
        """With so many to fit to."""
        return Split(self.fit.draw(rows), self.test)


def encoded(model: nn.Module, pool: Pool, rows: int, seed: int) -> Features:
    """So many sequences of the pool's views, each of which is encoded once."""
    return redraw(model, extract(model, pool.sequences()), rows, num_views=VIEWS, seed=seed)


def split_of(model: SeqJEPA, worlds: Worlds, seed: int) -> Split:
    """As many sequences as the preset's probes are fitted to, and four of each object held out."""
    train, test = worlds.pools
    fit = encoded(model, train, max(worlds.preset.rows, len(train.labels)), 1000 + seed)
    return Split(fit, encoded(model, test, 4 * len(test.labels), 2000 + seed))


def classes(model: SeqJEPA, split: Split, lengths: tuple[int, ...], seed: int) -> Numbers:
    """Top-1 in percent of z, of states, and of the mean of as many z: what an aggregator has to beat."""
    found = top1(model, split.fit, split.test, num_views=lengths, seed=seed)
    return (
        {"top-1 %, z": 100 * found.z.accuracy}
        | {f"top-1 %, state of {m}": 100 * of.accuracy for m, of in found.states.items()}
        | {f"top-1 %, mean of {m} z": 100 * of.accuracy for m, of in found.means.items()}
    )


def on_the_way(model: SeqJEPA, worlds: Worlds, seed: int) -> Numbers:
    """A point of the curves over steps."""
    split = split_of(model, worlds, seed).few(4000)
    pairs = transformation_r2(split.fit, split.test, hidden=HIDDEN, max_pairs=PAIRS, seed=seed)
    of_z = classes(model, split, (), seed)
    return of_z | {"R² relative": pairs.relative.mean, "MRR": action_retrieval(model, split.test, seed=seed).mrr}


def of_objects(condition: str, model: SeqJEPA, worlds: Worlds, seed: int) -> Numbers:
    """Claims 1 to 4; of the untrained model also what exact actions alone tell of a path."""
    split = split_of(model, worlds, seed)
    numbers = classes(model, split.few(4000), LENGTHS, seed) | transformations(model, split, seed)
    numbers |= pose_of_the_last_view(model, split.few(12_000), seed)
    levels = LEVELS[1:] if condition == OBJECTS[2] else ()
    paths = worlds.preset.paths
    for variant, curve in path_integration(
        model, split.fit, split.test, num_views=paths, variants=(*TOLD, *levels), hidden=HIDDEN, seed=seed
    ).items():
        numbers |= {f"path of {m}, {TOLD.get(variant, variant.replace('exact actions, in', 'exact actions in'))}":
                    fit.mean for m, fit in curve.items()}  # fmt: skip
    return numbers


def transformations(model: SeqJEPA, split: Split, seed: int) -> Numbers:
    """What z tells of rotations, and what the predictor does with them."""
    pairs = transformation_r2(split.fit, split.test, hidden=HIDDEN, max_pairs=PAIRS, seed=seed)
    linear = transformation_r2(split.fit, split.test, hidden=(), max_pairs=PAIRS, seed=seed)
    assert pairs.individual is not None
    assert linear.individual is not None
    assert pairs.relative_degrees is not None
    assert pairs.chance_degrees is not None
    found = action_retrieval(model, split.test, seed=seed)
    numbers = {
        "R² relative": pairs.relative.mean,
        "R² individual": pairs.individual.mean,
        "R² individual, linear": linear.individual.mean,
        "error in degrees": pairs.relative_degrees,
        "error in degrees, chance": pairs.chance_degrees,
        "MRR": found.mrr,
        "MRR, chance": found.chance.mrr,
    }
    return numbers | {f"R² relative, output {k}": v for k, v in enumerate(pairs.relative.per_output)}


def pose_of_the_last_view(model: SeqJEPA, split: Split, seed: int) -> Numbers:
    """Claim 3 at equal rows: R² of the last view's rotation, class among neighbours, variance between objects."""
    numbers: Numbers = {}
    for kind, found in invariance(model, split.fit, split.test, num_views=(1, 4, VIEWS), hidden=HIDDEN).items():
        name = kind.replace("mean z of 4", "mean of 4 z")
        assert found.pose is not None
        assert found.linear is not None
        assert found.neighbours is not None
        assert found.classes is not None
        assert found.between is not None
        numbers |= {
            f"pose, MLP, {name}": found.pose.mean,
            f"pose, linear, {name}": found.linear.mean,
            f"pose, 20 neighbours, {name}": found.neighbours.mean,
            f"class among neighbours %, {name}": 100 * found.classes.accuracy,
            f"variance between objects, {name}": found.between,
        }
    return numbers


def of_walls(condition: str, model: SeqJEPA, worlds: Worlds, seed: int) -> Numbers:
    """Claim 5: top-1 of states and of the mean of as many z, with the levels of an untrained model and the pictures."""
    gaze = condition.removeprefix("wall, ")
    numbers = top1_of_walls(model, worlds.walls, gaze, seed, (1, 2, 3, 4, 5))
    level = top1_of_walls(untrained(condition, seed, worlds), worlds.walls, gaze, seed, (5,))
    numbers |= {f"untrained, {name}": value for name, value in level.items()}
    rows = torch.arange(len(worlds.walls[1].labels))
    looked = worlds.walls[1].look(rows, 5, gaze, torch.Generator().manual_seed(seed))
    return numbers | {"pictures seen %": 100 * worlds.walls[1].seen(rows, looked)}


def top1_of_walls(
    model: SeqJEPA, walls: tuple[Walls, Walls], gaze: str, seed: int, lengths: tuple[int, ...]
) -> Numbers:
    generator = torch.Generator().manual_seed(1000 + seed)

    def features(of: Walls, draws: int) -> Features:
        parts = torch.arange(len(of.labels)).repeat(draws).split(200)
        looked = (of.look(rows, 5, gaze, generator) for rows in parts)
        sources = torch.arange(len(of.labels) // 2).repeat(2 * draws)  # two walls of each object
        return extract(model, looked, sources=sources)

    return classes(model, Split(features(walls[0], 1), features(walls[1], 2)), lengths, seed)
