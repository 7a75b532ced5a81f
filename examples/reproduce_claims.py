"""Do the paper's claims hold here? Train small models on rendered objects and on saccades, measure, and say so.

    python examples/reproduce_claims.py                     # three seeds each; an hour on two CPU cores
    python examples/reproduce_claims.py --preset nightly    # one seed, short runs: four minutes
    python examples/reproduce_claims.py --only objects      # a part of the runs

Each run writes its numbers when it is done, and is not done again: stop it when you like, and start it again. The
report says of every claim whether it holds, holds partly or fails, by the rule written beside it.

Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from objects3d import MOST, Pool
from saccades import DIGITS, build, digits_in_clutter
from small import small_model, small_recipe, train
from torch import Tensor

from seqjepa import SeqJEPA, ViewSequence
from seqjepa.data import AugmentedViews, RenderedObjects, SaccadeViews
from seqjepa.evaluation import Scorecard, evaluate, linear_probe, regression_r2

OBSERVED = 3  # views a model reads before it predicts the next
VIEWS = 8  # of a source, when a model is measured


@dataclass(frozen=True)
class Preset:
    """How much work."""

    seeds: int
    steps: int  # optimiser steps of a run on objects; one on saccades takes half
    instances: int  # objects to train on
    held_out: int
    drawn: int  # views rendered of each object to train on, once for all runs
    batch: int = 128


PRESETS = {
    "hour": Preset(seeds=3, steps=2000, instances=2000, held_out=480, drawn=16),
    "nightly": Preset(seeds=1, steps=700, instances=1200, held_out=320, drawn=16),
    "smoke": Preset(seeds=1, steps=4, instances=96, held_out=48, drawn=8, batch=16),  # does it run?
}


World = Callable[[str, int, Tensor | None, torch.Generator], ViewSequence]


def objects(preset: Preset) -> World:
    """Rendered objects, turned within half of the paper's Euler box; out of distribution, beyond it."""
    train_set, held_out = (
        RenderedObjects(count, size=32, split=split)
        for count, split in ((preset.instances, "train"), (preset.held_out, "val"))
    )
    pools = {
        "train": Pool(train_set, preset.drawn),
        "test": Pool(held_out, 12),
        "ood": Pool(held_out, 12, most=2 * MOST, least=MOST),
    }

    def sequence(split: str, num_views: int, rows: Tensor | None, generator: torch.Generator) -> ViewSequence:
        pool = pools[split]
        rows = torch.arange(len(pool.labels)) if rows is None else rows
        return pool.sample(rows, num_views=num_views, generator=generator)

    return sequence


def saccades(salient: bool, inhibited: bool) -> World:
    """Digits in clutter, looked at through a fovea."""
    train_set, test_set = digits_in_clutter(DIGITS.side)
    inhibition = {"radius": DIGITS.radius} if inhibited else {"inhibition": None}

    def sequence(split: str, num_views: int, rows: Tensor | None, generator: torch.Generator) -> ViewSequence:
        pictures = train_set if split == "train" else test_set
        pictures = pictures if rows is None else pictures.take(rows)
        sampler = SaccadeViews(num_views=num_views, fovea=DIGITS.fovea, **inhibition)
        maps = pictures.saliency if salient else None
        drawn = sampler(pictures.images.float() / 255, saliency=maps, generator=generator)
        return drawn._replace(labels=pictures.labels)

    return sequence


# name of the runs → (world, with actions)
CONDITIONS = {
    "objects, with actions": ("objects", True),
    "objects, without actions": ("objects", False),
    "saccades, saliency and inhibition": ("saccades", True),
    "saccades, saliency only": ("saccades", True),
    "saccades, uniform": ("saccades", True),
}


def world_of(condition: str, preset: Preset) -> World:
    if condition.startswith("objects"):
        return objects(preset)
    return saccades(salient="uniform" not in condition, inhibited="only" not in condition)


def run(condition: str, seed: int, preset: Preset, world: World) -> tuple[dict[str, Any], SeqJEPA]:
    """Train one model and measure it: the numbers that the claims are about, by name, and the model."""
    with_objects, with_actions = CONDITIONS[condition][0] == "objects", CONDITIONS[condition][1]
    steps = preset.steps if with_objects else max(1, preset.steps // 2)
    begun = time.perf_counter()
    torch.manual_seed(seed)  # weights and dropout; the views have a generator of their own
    generator = torch.Generator().manual_seed(seed)
    sources = len(world("train", 2, None, generator).views)

    def batch() -> ViewSequence:
        return world("train", OBSERVED + 1, torch.randint(sources, (preset.batch,), generator=generator), generator)

    model = small_model(32, 4, steps, with_actions=with_actions) if with_objects else build(DIGITS, steps, None)[0]
    train(model, batch, steps, f"{condition}, seed {seed}", small_recipe(model, steps))
    trained = time.perf_counter()
    views = VIEWS if with_objects else 5  # more fixations than fit into an image without coming back say little
    generator = torch.Generator().manual_seed(1000 + seed)
    rows = torch.arange(sources)[: preset.instances]
    fit, test = world("train", views, rows, generator), world("test", views, None, generator)
    ood = world("ood", views, None, generator) if with_objects else None
    card = evaluate(model, fit, test, ood=ood, progress=False)
    numbers = numbers_of(card)
    if with_objects and with_actions:
        numbers["top-1, z, probe in training mode"] = probed_in_training_mode(model, fit, test, seed)
    seconds = {"training": trained - begun, "measuring": time.perf_counter() - trained}
    return {"numbers": numbers, "seconds": seconds, "card": card.to_dict()}, model


def numbers_of(card: Scorecard) -> dict[str, float]:
    """What the table shows, of all that the card holds."""
    assert card.top1 is not None
    assert card.transformations is not None
    assert card.retrieval is not None
    numbers = {"top-1, z": 100 * card.top1.z.accuracy}
    numbers |= {f"top-1, state of {m}": 100 * fit.accuracy for m, fit in card.top1.states.items()}
    t = card.transformations
    numbers |= {"R² relative, z": t.relative.mean, "R² relative, z, pooled": t.relative.pooled}
    if t.individual is not None:
        numbers["R² individual, z"] = t.individual.mean
    if t.relative_degrees is not None and t.chance_degrees is not None:
        numbers |= {"error in degrees, z": t.relative_degrees, "error in degrees, chance": t.chance_degrees}
    for m, fit in card.from_states.items():
        numbers[f"R² relative, state of {m}"] = fit.relative.mean
        if fit.blank is not None:
            numbers[f"R² relative, state of {m} blank views"] = fit.blank.mean
    if card.out_of_distribution is not None:
        numbers["R² relative, z, out of distribution"] = card.out_of_distribution.relative.mean
    for variant, curve in card.paths.items():
        numbers |= {f"R² path, {variant}, {m}": fit.mean for m, fit in curve.items()}
    numbers |= {"MRR": card.retrieval.mrr, "MRR, chance": card.retrieval.chance.mrr}
    return numbers | {f"RankMe, {name}": values["rankme"] for name, values in card.collapse.items()}


@torch.no_grad()
def probed_in_training_mode(model: SeqJEPA, fit: ViewSequence, test: ViewSequence, seed: int) -> float:
    """The released code's fault: the probe sees features of an encoder in training mode, whose statistics drift."""
    generator = torch.Generator().manual_seed(seed)
    model.encoder.train()
    for _ in range(20):  # epochs of a probe; the features of the last are those it is fitted to
        order = torch.randperm(len(fit.views), generator=generator)
        parts = [model.encoder(fit.views[rows, 0]) for rows in order.split(256)]
    model.encoder.eval()
    z = torch.cat([model.encoder(part) for part in test.views[:, 0].split(256)])
    assert fit.labels is not None
    assert test.labels is not None
    return 100 * linear_probe(torch.cat(parts), fit.labels[order], z, test.labels).accuracy


def leak_of_normalised_actions() -> dict[str, float]:
    """The released code's other fault: R² of the predicted view's crop from the actions between the views before it."""
    sampler = AugmentedViews.cifar(4, frame="image")
    elements = sampler.elements(sampler.draw(20_000, (32, 32), generator=torch.Generator().manual_seed(0)), (32, 32))
    pixels = elements * torch.tensor([32.0] * 4 + [1.0] * 5)
    plain, divided = pixels, torch.nn.functional.normalize(pixels, dim=1)  # over the views, the predicted one included
    fit, test = slice(0, 15_000), slice(15_000, None)
    r2 = {}
    for name, parameters in (("plain differences", plain), ("normalised across views", divided)):
        before, last = parameters[:, :3].diff(dim=1).flatten(1), pixels[:, 3, :4]
        r2[name] = regression_r2(before[fit], last[fit], before[test], last[test], hidden=(256, 256)).mean
    return r2


Runs = Mapping[str, list[dict[str, float]]]  # condition → the numbers of each seed


def spread(runs: Runs, condition: str, name: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds."""
    values = [numbers[name] for numbers in runs.get(condition, []) if name in numbers]
    if not values:
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def verdict(parts: list[bool]) -> str:
    return "holds" if all(parts) else "partly" if any(parts) else "fails here"


def claims(runs: Runs) -> list[tuple[str, str, str]]:
    """(claim, the rule and what came of it, verdict), of means over seeds."""
    a, b = "objects, with actions", "objects, without actions"

    def mean(condition: str, name: str) -> float:
        return spread(runs, condition, name)[0]

    found = []
    if a in runs:
        z, one, five, last = (mean(a, f"top-1, {n}") for n in ("z", "state of 1", "state of 5", f"state of {VIEWS}"))
        found.append((
            "1. The state classifies better than z, and better the more views it has seen",
            f"state of {VIEWS} ({last:.1f}) > z ({z:.1f}); state of 1 ({one:.1f}) < of 5 ({five:.1f}) ≤ of {VIEWS}",
            verdict([last > z, one < five <= last + 0.5]),
        ))  # fmt: skip
    if a in runs and b in runs:
        with_, without = mean(a, "R² relative, z"), mean(b, "R² relative, z")
        accuracy = [mean(c, f"top-1, state of {VIEWS}") for c in (a, b)]
        found.append((
            "2. Without actions, R² of the rotation from z falls by more than half, top-1 by at most 2 points",
            f"R² {with_:.2f} → {without:.2f}; top-1, state of {VIEWS}: {accuracy[0]:.1f} → {accuracy[1]:.1f}",
            verdict([with_ > 0.1 and without < with_ / 2, accuracy[1] > accuracy[0] - 2]),
        ))  # fmt: skip
    if a in runs:
        z, one, four = (mean(a, f"R² relative, {n}") for n in ("z", "state of 1", "state of 4"))
        found.append((
            "3. R² from the state is far below that from z (less than half)",
            f"z {z:.2f}; states of one view {one:.2f}, of four {four:.2f}",
            verdict([z > 0.1 and one < z / 2, z > 0.1 and four < z / 2]),
        ))  # fmt: skip
    if a in runs and b in runs:
        m = 3
        full, blank, none = (
            mean(c, f"R² path, {v}, {m}")
            for c, v in ((a, "views and actions"), (a, "actions only"), (b, "views and actions"))
        )
        found.append((
            "4. Path integration: actions and views above blank views, and those above no actions",
            f"after {m} views: {full:.2f}, blank views {blank:.2f}, model without actions {none:.2f}",
            verdict([full > blank, blank > none]),
        ))  # fmt: skip
    names = ("saliency and inhibition", "saliency only", "uniform")
    if all(f"saccades, {name}" in runs for name in names):
        both, salient, uniform = (mean(f"saccades, {name}", "top-1, state of 5") for name in names)
        found.append((
            "5. Saccades: saliency helps, and so does inhibition of return, by a point or more",
            f"state of 5: uniform {uniform:.1f}, saliency {salient:.1f}, with inhibition {both:.1f}",
            verdict([both > uniform + 1, both > salient + 1]),
        ))  # fmt: skip
    return found


def report(runs: Runs, seconds: float) -> str:
    """Markdown: the claims, and the numbers they rest on, mean ± standard deviation over seeds."""
    lines = ["| claim | seen, mean over seeds | here | seed by seed |", "|---|---|---|---|"]
    count = min(map(len, runs.values()), default=0)
    alone = [claims({condition: [numbers[i]] for condition, numbers in runs.items()}) for i in range(count)]
    for row, (claim, seen, word) in enumerate(claims(runs)):
        lines.append(f"| {claim} | {seen} | **{word}** | {', '.join(seed[row][2] for seed in alone)} |")
    names = list(dict.fromkeys(name for numbers in runs.values() for seed in numbers for name in seed))
    lines += ["", "| | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for name in names:
        cells = []
        for condition in runs:
            value, deviation = spread(runs, condition, name)
            digits = 1 if name.startswith(("top-1", "RankMe", "error")) else 2
            around = "" if math.isnan(deviation) else f" ± {deviation:.{digits}f}"
            cells.append("" if math.isnan(value) else f"{value:.{digits}f}{around}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    leak = leak_of_normalised_actions()
    lines += ["", "R² of the predicted view's crop from the actions before it: "]
    lines[-1] += ", ".join(f"{name} {value:.2f}" for name, value in leak.items()) + "."
    lines.append(f"Seeds: {max(map(len, runs.values()), default=0)}. Time of all runs: {seconds / 60:.0f} minutes.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="hour", help="how much work")
    parser.add_argument("--only", default="", help="conditions whose name begins so, such as objects or saccades")
    parser.add_argument("--output", type=Path, default=Path("runs/claims"), help="folder for the results of runs")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    folder = args.output / args.preset
    folder.mkdir(parents=True, exist_ok=True)
    for condition in (name for name in CONDITIONS if name.startswith(args.only)):
        world = None
        for seed in range(preset.seeds):
            path = folder / f"{condition.replace(', ', '-').replace(' ', '_')}-{seed}.json"
            if path.exists():
                continue
            world = world or world_of(condition, preset)  # rendered once for all seeds
            result, model = run(condition, seed, preset, world)
            result = {"condition": condition, "seed": seed, "preset": asdict(preset), **result}
            torch.save(model.state_dict(), path.with_suffix(".pt"))  # to measure it again
            part = path.with_suffix(".part")
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            part.replace(path)
    runs: dict[str, list[dict[str, float]]] = {}
    seconds = 0.0
    for condition in CONDITIONS:
        for path in sorted(folder.glob(f"{condition.replace(', ', '-').replace(' ', '_')}-*.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["preset"] != asdict(preset):
                raise SystemExit(f"{path} is of other settings than --preset {args.preset} has now; move it away.")
            runs.setdefault(condition, []).append(result["numbers"])
            seconds += sum(result["seconds"].values())
    text = report(runs, seconds)
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
