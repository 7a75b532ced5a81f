"""What a model of the claims is measured by: numbers by name, those of knowing nothing among them.

Every probe is fitted to many draws of the training objects and scored on others. Each picture is encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
LENGTHS = (1, 2, 3, 5, VIEWS)  # M_val
Numbers = dict[str, float]


@dataclass(frozen=True)
class Split:
    """Sequences of the training objects, and of those held out."""

    fit: Features
    test: Features


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


def accuracy(fit: Tensor, test: Tensor, split: Split, seed: int, rows: int = 4000) -> float:
    """Top-1 in percent of a linear probe."""
    assert split.fit.labels is not None
    assert split.test.labels is not None
    found = linear_probe(
        fit[:rows], split.fit.labels[:rows], test, split.test.labels, l2=L2,
        train_sources=split.fit.source_numbers[:rows], test_sources=split.test.source_numbers, seed=seed,
    )  # fmt: skip
    return 100 * found.accuracy


def r2(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], split: Split, hidden: tuple[int, ...] = HIDDEN) -> float:
    """R², the mean over outputs, of a probe from x to y, each of the fitted and of the tested rows."""
    fit, test = split.fit.source_numbers, split.test.source_numbers
    return regression_r2(x[0], y[0], x[1], y[1], hidden=hidden, train_sources=fit, test_sources=test).mean


def on_the_way(model: SeqJEPA, worlds: Worlds, seed: int) -> Numbers:
    """A point of the curves over steps."""
    split = split_of(model, worlds, seed)
    split = Split(split.fit.draw(8000), split.test)
    pairs = transformation_r2(split.fit, split.test, hidden=HIDDEN, max_pairs=16_000, seed=seed)
    return {
        "top-1 %, z": accuracy(split.fit.z[:, 0], split.test.z[:, 0], split, seed),
        "R² relative": pairs.relative.mean,
        "MRR": action_retrieval(model, split.test, seed=seed).mrr,
    }


def of_objects(condition: str, model: SeqJEPA, worlds: Worlds, seed: int) -> Numbers:
    """Claims 1 to 4; of the untrained model also what exact actions alone tell of a path."""
    split = split_of(model, worlds, seed)
    numbers = classes(model, split, seed) | transformations(model, split, seed)
    numbers |= pose_of_the_last_view(model, split, seed) | paths(model, split, worlds.preset.paths)
    if condition == OBJECTS[2]:
        numbers |= paths_of_exact_actions(split, worlds.preset.paths)
    return numbers


def classes(model: SeqJEPA, split: Split, seed: int) -> Numbers:
    """Top-1 of z, of states, and of the mean of as many z: what an aggregator has to beat."""
    parts = split.fit, split.test
    numbers = {"top-1 %, z": accuracy(*(p.z[:, 0] for p in parts), split, seed)}
    for m in LENGTHS:
        states = [aggregate_states(model, p, m) for p in parts]
        numbers[f"top-1 %, state of {m}"] = accuracy(*states, split, seed)
        if m > 1:
            numbers[f"top-1 %, mean of {m} z"] = accuracy(*(p.z[:, :m].mean(dim=1) for p in parts), split, seed)
    return numbers


def transformations(model: SeqJEPA, split: Split, seed: int) -> Numbers:
    """What z tells of rotations, and what the predictor does with them."""
    pairs = transformation_r2(split.fit, split.test, hidden=HIDDEN, max_pairs=16_000, seed=seed)
    assert pairs.individual is not None
    assert pairs.relative_degrees is not None
    assert pairs.chance_degrees is not None
    x, y = ((split.fit.z[:, 0], split.test.z[:, 0]), pose(split, 1))
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


def pose(split: Split, m: int) -> tuple[Tensor, Tensor]:
    """The rotation of the m-th view, one sign for each."""
    elements = [part.elements for part in (split.fit, split.test)]
    assert elements[0] is not None
    assert elements[1] is not None
    fit, test = (q[:, m - 1] * torch.where(q[:, m - 1, :1] < 0, -1.0, 1.0) for q in elements if q is not None)
    return fit, test


def pose_of_the_last_view(model: SeqJEPA, split: Split, seed: int) -> Numbers:
    """Claim 3 at equal rows: R² of the last view's rotation, class among neighbours, variance between objects."""
    split = Split(split.fit.draw(12_000), split.test)
    parts = split.fit, split.test
    kinds = {"z": (1, [p.z[:, 0] for p in parts])}
    for m in (1, 4, VIEWS):
        kinds[f"state of {m}"] = m, [aggregate_states(model, p, m) for p in parts]
    untold = [aggregate_states(model, p, 4, e=torch.zeros_like(p.e)) for p in parts if p.e is not None]
    kinds |= {"state of 4, actions zero": (4, untold), "mean of 4 z": (4, [p.z[:, :4].mean(dim=1) for p in parts])}
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


def neighbours_r2(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], k: int = 20) -> float:
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


def paths(model: SeqJEPA, split: Split, lengths: tuple[int, ...]) -> Numbers:
    """Claim 4: where a path of m views leads, from the predictor's input; refitted, and one probe robbed of a part."""
    blank = split.fit.z.mean(dim=(0, 1))
    numbers = {}
    for m in lengths:
        y = tuple(p.relative(0, m) for p in (split.fit, split.test))
        fit = path_input(model, split.fit, m)
        tests = {
            "views and actions": path_input(model, split.test, m),
            "robbed of views": path_input(model, blanked(split.test, blank), m),
            "robbed of earlier actions": path_input(model, split.test, m, told=False),
        }
        of = split.fit.source_numbers
        probe = regression_r2(
            fit, y[0], torch.cat(list(tests.values())), y[1].repeat(len(tests), 1), hidden=HIDDEN, train_sources=of
        )
        for name, predicted in zip(tests, probe.predictions.chunk(len(tests)), strict=True):
            numbers[f"path of {m}, {name}"] = explained(predicted, y[1])
        x = tuple(path_input(model, blanked(part, blank), m) for part in (split.fit, split.test))
        numbers[f"path of {m}, blank views, refitted"] = r2(x, y, split)  # type: ignore[arg-type]
    return numbers


def path_input(model: SeqJEPA, features: Features, m: int, told: bool = True) -> Tensor:
    """The state of m views beside the embedding of the action that leaves the last; earlier actions zero if untold."""
    assert features.e is not None
    state = aggregate_states(model, features, m, e=None if told else torch.zeros_like(features.e))
    return torch.cat([state, features.e[:, m - 1]], dim=1)


def blanked(features: Features, blank: Tensor) -> Features:
    return replace(features, z=blank.expand_as(features.z))


def paths_of_exact_actions(split: Split, lengths: tuple[int, ...]) -> Numbers:
    """What the actions tell without a model: in order, and by sums that know no order but for the last."""
    numbers = {}
    for m in lengths:
        parts = split.fit, split.test
        y = parts[0].relative(0, m), parts[1].relative(0, m)
        given = [p.actions[:, :m] for p in parts]
        orderly = given[0].flatten(1), given[1].flatten(1)
        numbers[f"path of {m}, exact actions in order"] = r2(orderly, y, split)
        blind = [torch.cat([sums(a[:, :-1]), a[:, -1]], dim=1) for a in given]
        numbers[f"path of {m}, exact actions, order-blind"] = r2((blind[0], blind[1]), y, split)
    return numbers


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
    parts = split.fit, split.test
    numbers = {"top-1 %, z": accuracy(*(p.z[:, 0] for p in parts), split, seed)}
    for m in lengths:
        states = [aggregate_states(model, p, m) for p in parts]
        numbers[f"top-1 %, state of {m}"] = accuracy(*states, split, seed)
    numbers[f"top-1 %, mean of {lengths[-1]} z"] = accuracy(
        *(p.z[:, : lengths[-1]].mean(dim=1) for p in parts), split, seed
    )
    return numbers
