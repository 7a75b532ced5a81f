"""What a model of the claims is measured by: numbers by name, those of knowing nothing among them.

Every probe is fitted to many draws of the training objects and scored on others. Each picture is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from claims_runs import OBJECTS, VIEWS, Worlds, untrained
from objects3d import Pool
from torch import Tensor
from wall import Walls

from seqjepa import SeqJEPA
from seqjepa.evaluation import (
    Features,
    action_retrieval,
    aggregate_states,
    extract,
    knn_probe,
    linear_probe,
    regression_r2,
    transformation_r2,
)

HIDDEN = (256, 256)
L2 = (1e-4, 1e-3, 1e-2)  # of linear probes of classes
PAIRS = 16_000  # of views, for the relative rotation
LENGTHS = (1, 2, 3, 5, VIEWS)  # M_val
Numbers = dict[str, float]
Pair = tuple[Tensor, Tensor]  # of the fitted rows, of the tested ones


@dataclass(frozen=True)
class Split:
    """Sequences of the training objects, and of those held out."""

    fit: Features
    test: Features

    def each(self, of: Callable[[Features], Tensor]) -> Pair:
        """The same of both."""
        return of(self.fit), of(self.test)


@torch.no_grad()
def encoded(model: SeqJEPA, pool: Pool, draws: int, seed: int) -> Features:
    """Sequences of each object's views, `draws` times over, of pictures encoded once."""
    weight = next(model.parameters())
    parts = [part.float().to(weight.device) / 255 for part in pool.pictures.split(64)]
    z = torch.cat([model.encode(part).float() for part in parts])
    target = torch.cat([model.target(part.flatten(0, 1)).float() for part in parts]).view_as(z)
    objects, drawn = z.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    row = torch.arange(objects).repeat(draws).to(z.device)
    column = torch.rand(len(row), drawn, generator=generator).argsort(dim=1)[:, :VIEWS].to(z.device)
    elements = pool.rotations.to(z.device)[row[:, None], column]
    actions = pool.group.actions(elements)
    return Features(
        z=z[row[:, None], column], actions=actions, e=model.embed(actions).float(), target=target[row[:, None], column],
        labels=pool.labels.to(z.device)[row], group=pool.group, elements=elements, sources=row,
    )  # fmt: skip


def split_of(model: SeqJEPA, worlds: Worlds, seed: int) -> Split:
    """As many sequences as the preset's probes are fitted to, and four of each object held out."""
    train, test = worlds.pools
    draws = max(1, worlds.preset.rows // len(train.labels))
    return Split(encoded(model, train, draws, 1000 + seed), encoded(model, test, 4, 2000 + seed))


def accuracy(x: Pair, split: Split, seed: int, rows: int = 4000) -> float:
    """Top-1 in percent of a linear probe."""
    assert split.fit.labels is not None
    assert split.test.labels is not None
    found = linear_probe(
        x[0][:rows], split.fit.labels[:rows], x[1], split.test.labels, l2=L2,
        train_sources=split.fit.source_numbers[:rows], test_sources=split.test.source_numbers, seed=seed,
    )  # fmt: skip
    return 100 * found.accuracy


def r2(x: Pair, y: Pair, split: Split, hidden: tuple[int, ...] = HIDDEN) -> float:
    """R², the mean over outputs, of a probe from x to y."""
    fit, test = split.fit.source_numbers, split.test.source_numbers
    return regression_r2(x[0], y[0], x[1], y[1], hidden=hidden, train_sources=fit, test_sources=test).mean


def on_the_way(model: SeqJEPA, worlds: Worlds, seed: int) -> Numbers:
    """A point of the curves over steps."""
    split = split_of(model, worlds, seed)
    split = Split(split.fit.draw(8000), split.test)
    pairs = transformation_r2(split.fit, split.test, hidden=HIDDEN, max_pairs=2 * len(split.fit.z), seed=seed)
    return {
        "top-1 %, z": accuracy(split.each(lambda p: p.z[:, 0]), split, seed),
        "R² relative": pairs.relative.mean,
        "MRR": action_retrieval(model, split.test, seed=seed).mrr,
    }


def of_objects(condition: str, model: SeqJEPA, worlds: Worlds, seed: int) -> Numbers:
    """Claims 1 to 4; of the untrained model also what exact actions alone tell of a path."""
    split = split_of(model, worlds, seed)
    numbers = classes(model, split, seed) | transformations(model, split, seed)
    numbers |= pose_of_the_last_view(model, split, seed)
    for m in worlds.preset.paths:
        numbers |= path(model, split, m)
        if condition == OBJECTS[2]:
            numbers |= path_of_exact_actions(split, m)
    return numbers


def classes(model: SeqJEPA, split: Split, seed: int) -> Numbers:
    """Top-1 of z, of states, and of the mean of as many z: what an aggregator has to beat."""
    numbers = {"top-1 %, z": accuracy(split.each(lambda p: p.z[:, 0]), split, seed)}
    for m in LENGTHS:
        states = split.each(partial(aggregate_states, model, num_views=m))
        numbers[f"top-1 %, state of {m}"] = accuracy(states, split, seed)
        if m > 1:
            numbers[f"top-1 %, mean of {m} z"] = accuracy(split.each(partial(mean_of_z, m)), split, seed)
    return numbers


def mean_of_z(m: int, features: Features) -> Tensor:
    return features.z[:, :m].mean(dim=1)


def transformations(model: SeqJEPA, split: Split, seed: int) -> Numbers:
    """What z tells of rotations, and what the predictor does with them."""
    most = min(PAIRS, 2 * len(split.fit.z))
    pairs = transformation_r2(split.fit, split.test, hidden=HIDDEN, max_pairs=most, seed=seed)
    assert pairs.individual is not None
    assert pairs.relative_degrees is not None
    assert pairs.chance_degrees is not None
    x, y = split.each(lambda p: p.z[:, 0]), pose(split, 1)
    found = action_retrieval(model, split.test, seed=seed)
    numbers = {
        "R² relative": pairs.relative.mean,
        "R² individual": pairs.individual.mean,
        "R² individual, linear": r2(x, y, split, hidden=()),
        "error in degrees": pairs.relative_degrees,
        "error in degrees, chance": pairs.chance_degrees,
        "MRR": found.mrr,
        "MRR, chance": found.chance.mrr,
    }
    return numbers | {f"R² relative, output {k}": v for k, v in enumerate(pairs.relative.per_output)}


def pose(split: Split, m: int) -> Pair:
    """The rotation of the m-th view, one sign for each."""

    def of(features: Features) -> Tensor:
        assert features.elements is not None
        q = features.elements[:, m - 1]
        return q * torch.where(q[:, :1] < 0, -1.0, 1.0)

    return split.each(of)


def pose_of_the_last_view(model: SeqJEPA, split: Split, seed: int) -> Numbers:
    """Claim 3 at equal rows: R² of the last view's rotation, class among neighbours, variance between objects."""
    split = Split(split.fit.draw(12_000), split.test)
    kinds = {"z": (1, split.each(lambda p: p.z[:, 0]))}
    for m in (1, 4, VIEWS):
        kinds[f"state of {m}"] = m, split.each(partial(aggregate_states, model, num_views=m))
    kinds["state of 4, actions zero"] = 4, split.each(partial(untold, model, m=4))
    kinds["mean of 4 z"] = 4, split.each(partial(mean_of_z, 4))
    assert split.fit.labels is not None
    assert split.test.labels is not None
    numbers = {}
    for name, (m, (fit, test)) in kinds.items():
        y = pose(split, m)
        numbers[f"pose, MLP, {name}"] = r2((fit, test), y, split)
        numbers[f"pose, linear, {name}"] = r2((fit, test), y, split, hidden=())
        numbers[f"pose, 20 neighbours, {name}"] = neighbours_r2((fit, test), y)
        among = knn_probe(fit, split.fit.labels, test, split.test.labels, seed=seed)
        numbers[f"class among neighbours %, {name}"] = 100 * among.accuracy
        numbers[f"variance between objects, {name}"] = between_objects(test, split.test.source_numbers)
    return numbers


def untold(model: SeqJEPA, features: Features, m: int) -> Tensor:
    """The state of m views, all actions zero."""
    assert features.e is not None
    return aggregate_states(model, features, m, e=torch.zeros_like(features.e))


def neighbours_r2(x: Pair, y: Pair, k: int = 20) -> float:
    """R² of the mean of the k nearest training rows: what is near, with nothing fitted."""
    predicted = [y[0][torch.cdist(rows, x[0]).topk(k, largest=False).indices].mean(dim=1) for rows in x[1].split(256)]
    return explained(torch.cat(predicted), y[1])


def explained(predicted: Tensor, y: Tensor) -> float:
    """Share of the variance of each output, the mean over outputs."""
    return (1 - (y - predicted).square().sum(dim=0) / (y - y.mean(dim=0)).square().sum(dim=0)).mean().item()


def between_objects(x: Tensor, sources: Tensor) -> float:
    """Share of the variance that lies between objects: one less that within each, which few draws do not bias."""
    _, which, counts = sources.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(counts), x.shape[1], device=x.device).index_add_(0, which, x) / counts[:, None]
    within = (x - means[which]).square().sum() / (len(x) - len(counts))
    return (1 - within / x.var(dim=0).sum()).item()


def path(model: SeqJEPA, split: Split, m: int) -> Numbers:
    """Claim 4: where a path of m views leads, from the predictor's input; refitted, and one probe robbed of a part."""
    blank, y = split.fit.z.mean(dim=(0, 1)), split.each(lambda p: p.relative(0, m))
    tests = {
        "views and actions": path_input(model, split.test, m),
        "robbed of views": path_input(model, blanked(split.test, blank), m),
        "robbed of earlier actions": path_input(model, split.test, m, told=False),
    }
    probe = regression_r2(
        path_input(model, split.fit, m), y[0], torch.cat(list(tests.values())), y[1].repeat(len(tests), 1),
        hidden=HIDDEN, train_sources=split.fit.source_numbers,
    )  # fmt: skip
    predicted = zip(tests, probe.predictions.chunk(len(tests)), strict=True)
    numbers = {f"path of {m}, {name}": explained(part, y[1]) for name, part in predicted}
    x = split.each(lambda p: path_input(model, blanked(p, blank), m))
    return numbers | {f"path of {m}, blank views, refitted": r2(x, y, split)}


def path_input(model: SeqJEPA, features: Features, m: int, told: bool = True) -> Tensor:
    """The state of m views beside the embedding of the action that leaves the last; earlier actions zero if untold."""
    assert features.e is not None
    state = aggregate_states(model, features, m) if told else untold(model, features, m)
    return torch.cat([state, features.e[:, m - 1]], dim=1)


def blanked(features: Features, blank: Tensor) -> Features:
    return replace(features, z=blank.expand_as(features.z))


def path_of_exact_actions(split: Split, m: int) -> Numbers:
    """What the actions tell without a model: in order, and by sums that know no order but for the last."""
    y = split.each(lambda p: p.relative(0, m))
    orderly = split.each(lambda p: p.actions[:, :m].flatten(1))
    blind = split.each(lambda p: torch.cat([sums(p.actions[:, : m - 1]), p.actions[:, m - 1]], dim=1))
    return {
        f"path of {m}, exact actions in order": r2(orderly, y, split),
        f"path of {m}, exact actions, order-blind": r2(blind, y, split),
    }


def sums(actions: Tensor) -> Tensor:
    """(N, T, 4) → sums over the path of each number and of each product of two: no order is left in them."""
    i, j = torch.triu_indices(4, 4)
    return torch.cat([actions.sum(dim=1), (actions[..., i] * actions[..., j]).sum(dim=1)], dim=1)


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

    split = Split(features(walls[0], 1), features(walls[1], 2))
    numbers = {"top-1 %, z": accuracy(split.each(lambda p: p.z[:, 0]), split, seed)}
    for m in lengths:
        states = split.each(partial(aggregate_states, model, num_views=m))
        numbers[f"top-1 %, state of {m}"] = accuracy(states, split, seed)
    last = lengths[-1]
    return numbers | {f"top-1 %, mean of {last} z": accuracy(split.each(partial(mean_of_z, last)), split, seed)}
