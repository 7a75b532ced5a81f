"""A state after every view of a stream that does not end, at constant time and memory: what a causal aggregator is for.

A camera sees one object after another, each from sixteen sides, and nobody says when they change. A small seq-JEPA with
a `CausalAggregator`, which has learnt from sequences of eight views without labels, reads the stream view by view, with
a window of eight views and with none. A linear probe then names the object that is seen, after every view, beside what
it names from one view alone, from the mean of the last eight, and if the stream began anew with each object; and what
a step costs is told after ten views and after a thousand.

    python examples/stream.py                  # three minutes on two CPU cores: a table, a picture in runs/stream
    python examples/stream.py --preset grid    # and beside the paper's aggregator, from three views and from eight

Ctrl-C stops it, and the same command goes on. Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from claims_model import EMBED, build
from matplotlib.figure import Figure
from objects3d import Pool
from resumed import as_json, asked, done, each, mean_and_spread, named, settings, write
from running import Draws, passes, polite_end
from small import resumable, small_recipe, train
from torch import Tensor

from seqjepa import CausalAggregator, SeqJEPA
from seqjepa.causal import CausalCache
from seqjepa.data import RenderedObjects, ViewLoader, ViewPool
from seqjepa.evaluation import aggregate_states, extract, linear_probe, observation_grid

SIDE, DIM, SIDES, WINDOW = 24, 16, 16, 8  # pixels of a view, numbers in z, views of each object, views in a window
LENGTHS = (1, 2, 3, 5, 8)  # M_val of the grid
STREAMED = "causal, 8 views"  # that reads the stream
CONDITIONS = (STREAMED, "causal, 3 views", "paper, 8 views", "paper, 3 views")
NOW = "the newest view alone"
MEAN = f"mean of the last {WINDOW} z"
READERS = {f"window of {WINDOW}": WINDOW, "no window": None, "begun anew, no window": None}


@dataclass(frozen=True)
class Preset:
    """How much work."""

    seeds: int
    steps: int  # of each training
    conditions: tuple[str, ...]
    objects: int = 1000  # to learn from
    held_out: int = 320
    batch: int = 64
    streams: int = 32  # that are read side by side
    shown: int = 64  # objects in each


PRESETS = {
    "minutes": Preset(1, 700, (STREAMED,)),
    "grid": Preset(1, 1000, CONDITIONS),
    "smoke": Preset(1, 2, (STREAMED, "paper, 3 views"), objects=32, held_out=16, batch=16, streams=4, shown=3),
}


class World(NamedTuple):
    """Views of objects to learn from, and of others."""

    learning: ViewPool
    others: ViewPool

    @classmethod
    def rendered(cls, preset: Preset) -> World:
        """Sixteen sides of each, turned by Euler angles within ±45°."""
        pools = []
        for count, split in ((preset.objects, "train"), (preset.held_out, "val")):
            drawn = Pool(RenderedObjects(count, size=SIDE, split=split), SIDES)
            views, poses = drawn.pictures.cpu(), drawn.rotations.cpu()
            pools.append(ViewPool(views, poses, drawn.group, num_views=WINDOW + 1, labels=drawn.labels.cpu()))
        return cls(*pools)


def learn(condition: str, seed: int, world: World, preset: Preset, folder: Path) -> SeqJEPA:
    """A model that predicts the view after so many; from where it was stopped, if it was."""
    kind, observed = condition.removesuffix(" views").split(", ")
    torch.manual_seed(seed)
    model = build(SIDE, DIM, world.learning.group.dim, preset.steps)
    if kind == "causal":
        model.aggregator = CausalAggregator(DIM + EMBED, dropout=0.0, norm_first=True)
    pool = copy.copy(world.learning)
    pool.num_views = int(observed) + 1
    loader = ViewLoader(pool, batch_size=preset.batch, seed=seed)
    batches, recipe = passes(loader), small_recipe(model, preset.steps)
    run = resumable(folder / named(condition, seed), model, recipe, loader=loader, draws=Draws())
    return train(model, lambda: next(batches), preset.steps, f"{condition}, seed {seed}", recipe, run)


def grid_row(model: SeqJEPA, world: World, seed: int) -> dict[str, float]:
    """Accuracy of the state, %, by the views it is of; objects held out, each drawn four times."""
    found = []
    for i, pool in enumerate(world):
        generator, rows = torch.Generator().manual_seed(10 * seed + i), torch.arange(len(pool))
        sequences = (pool.sample(rows, num_views=max(LENGTHS), generator=generator) for _ in range(4))
        found.append(extract(model, sequences, sources=rows.repeat(4)))
    row = observation_grid({0: model}, {0: (found[0], found[1])}, num_views=LENGTHS, seed=seed)[0]
    return {str(m): 100 * one.accuracy for m, one in row.items()}


class Stream(NamedTuple):
    """Objects as they come before a camera, (B, L) numbers of object and view, (B, L − 1, 4) turns between views."""

    objects: Tensor
    sides: Tensor
    actions: Tensor

    @classmethod
    def of(cls, pool: ViewPool, streams: int, shown: int, generator: torch.Generator) -> Stream:
        """Each object from each of its sides, then another."""
        objects = torch.randint(len(pool), (streams, shown), generator=generator).repeat_interleave(SIDES, dim=1)
        sides = torch.rand(streams, shown, SIDES, generator=generator).argsort(dim=2).flatten(1)
        return cls(objects, sides, pool.group.actions(pool.elements[objects, sides]))


class Read(NamedTuple):
    """What a reader made of a stream, and at what cost."""

    states: list[Tensor]  # (B, S) after each view
    milliseconds: list[float]  # of each step
    kept: list[int]  # numbers in the cache of one stream


@torch.no_grad()
def read(model: SeqJEPA, pool: ViewPool, stream: Stream) -> tuple[dict[str, Read], Tensor]:
    """View by view, as they come, by each reader. And z of every view, (B, L, D)."""
    assert isinstance(model.aggregator, CausalAggregator)
    readers, caches = {}, dict[str, CausalCache]()
    for name, window in READERS.items():
        readers[name] = copy.deepcopy(model.aggregator)
        readers[name].window = window
    found = {name: Read([], [], []) for name in READERS}
    every: list[Tensor] = []
    finished = None
    for t in range(stream.objects.shape[1]):
        view = pool.views[stream.objects[:, t], stream.sides[:, t]] / 255
        z = model.encode(view[:, None])[:, 0]
        last = torch.cat([z, z.new_zeros(len(z), EMBED)], dim=1)  # what follows is not known yet
        for name, aggregator in readers.items():
            anew = t % SIDES == 0 and name.startswith("begun anew")
            begun = time.process_time()  # whatever else the machine does
            before, kept = (None, None) if anew else (finished, caches.get(name))
            state, cache = aggregator.step(before, last, kept)
            found[name].milliseconds.append(1000 * (time.process_time() - begun))
            found[name].states.append(state)
            found[name].kept.append(cache.keys[0].numel() + cache.values[0].numel())
            caches[name] = cache
        every.append(z)
        if t < stream.actions.shape[1]:
            finished = torch.cat([z, model.embed(stream.actions[:, t : t + 1])[:, 0]], dim=1)
    return found, torch.stack(every, dim=1)


def measured(model: SeqJEPA, world: World, preset: Preset, seed: int) -> dict[str, Any]:
    """Accuracy of the object that is seen, %, by the views since it came; time and memory by the views read."""
    learning, others = world
    generator = torch.Generator().manual_seed(seed)
    stream = Stream.of(others, preset.streams, preset.shown, generator)
    found, z = read(model, others, stream)
    rows = torch.arange(len(learning)).repeat(4)
    fit = extract(model, learning.sample(rows, num_views=WINDOW, generator=generator), sources=rows)
    assert fit.labels is not None
    assert others.labels is not None
    known = dict.fromkeys(READERS, aggregate_states(model, fit, WINDOW))
    known |= {NOW: fit.z[:, 0], MEAN: fit.z.mean(dim=1)}
    given = {name: torch.stack(one.states, dim=1) for name, one in found.items()}
    padded = torch.cat([z[:, :1].expand(-1, WINDOW - 1, -1), z], dim=1)
    given |= {NOW: z, MEAN: padded.unfold(1, WINDOW, 1).mean(dim=3)}
    labels, accuracy = others.labels[stream.objects], {}
    for name, x in given.items():
        probe = linear_probe(known[name], fit.labels, x.flatten(0, 1), labels.flatten(), train_sources=rows, seed=seed)
        right = (probe.predictions == labels.flatten()).float().unflatten(0, (len(x), preset.shown, SIDES))
        accuracy[name] = (100 * right[:, 1:].mean(dim=(0, 1))).tolist()  # of all objects but the first
    return {
        "accuracy": accuracy,
        "milliseconds": {name: one.milliseconds for name, one in found.items()},
        "kept": {name: one.kept for name, one in found.items()},
    }


Runs = dict[int, dict[str, dict[str, Any]]]  # seed → condition → what was written


def report(runs: Runs) -> str:
    """Both tables: accuracy by the views of a sequence, and along the stream with what it costs."""
    lines = [f"{'accuracy %, state of so many views':<36}" + "".join(f"{m:>13}" for m in LENGTHS)]
    for condition in CONDITIONS:
        rows = [run[condition]["grid"] for run in runs.values() if condition in run]
        if rows:
            cells = (mean_and_spread([row[str(m)] for row in rows]) for m in LENGTHS)
            lines.append(f"{condition:<36}" + "".join(f"{cell:>13}" for cell in cells))
    streams = [run[STREAMED]["stream"] for run in runs.values() if STREAMED in run]
    if not streams:
        return "\n".join(lines)
    lines.append(f"\n{'accuracy %, views since it came':<36}" + "".join(f"{m:>13}" for m in (*LENGTHS, SIDES)))
    for name in streams[0]["accuracy"]:
        cells = (mean_and_spread([s["accuracy"][name][m - 1] for s in streams]) for m in (*LENGTHS, SIDES))
        lines.append(f"{name:<36}" + "".join(f"{cell:>13}" for cell in cells))
    length = len(next(iter(streams[0]["kept"].values())))
    points = [n for n in (10, 30, 100, 300, 1000) if n <= length]
    lines.append(f"\n{'views read':<36}" + "".join(f"{n:>13}" for n in points))
    for name in READERS:
        if READERS[name] is not None or name == "no window":
            times = (statistics.median(streams[0]["milliseconds"][name][max(0, n - 10) : n]) for n in points)
            lines.append(f"{f'{name}, ms a step':<36}" + "".join(f"{value:>13.1f}" for value in times))
            kept = (streams[0]["kept"][name][n - 1] for n in points)
            lines.append(f"{f'{name}, numbers kept':<36}" + "".join(f"{value:>13,}" for value in kept))
    return "\n".join(lines)


def draw(stream: dict[str, Any]) -> Figure:
    """Left: is the object known, by the views since it came? Right: what is kept of the stream."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = {NOW: "--", MEAN: ":"}
    for name, line in stream["accuracy"].items():
        style = {"color": "grey", "linestyle": levels[name]} if name in levels else {"marker": "o", "markersize": 4}
        left.plot(range(1, SIDES + 1), line, label=name, **style)
    left.set(xlabel="views since the object came before the camera", ylabel="accuracy, %", ylim=(0, 100))
    left.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.12))
    for name in list(READERS)[:2]:
        right.plot(range(1, len(stream["kept"][name]) + 1), stream["kept"][name], label=name)
    right.set(xlabel="views read", ylabel="numbers kept of a stream")
    right.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    what = asked(__doc__, PRESETS, CONDITIONS, output="runs/stream")
    preset, folder = what.preset, what.folder
    what = what._replace(runs=[run for run in what.runs if run[1] in preset.conditions])
    world: World | None = None
    with polite_end(folder):
        for seed, condition in each(what, lambda condition: 2.3 if "8" in condition else 1.0):
            world = world or World.rendered(preset)  # once, if anything is left to do
            model = learn(condition, seed, world, preset, folder)
            result = {"condition": condition, "seed": seed, "settings": settings(preset)}
            result["grid"] = grid_row(model, world, seed)
            if condition == STREAMED:
                result["stream"] = measured(model, world, preset, seed)
            write(folder / f"{named(condition, seed)}.json", as_json(result))
    runs = done(folder, settings(preset))
    text = report(runs)
    write(folder / "report.txt", text)
    print(f"\n{text}")
    streams = [run[STREAMED]["stream"] for run in runs.values() if STREAMED in run]
    if streams:
        draw(streams[0]).savefig(folder / "stream.png", dpi=110)
        print(f"\nFigure saved as {folder / 'stream.png'}")


if __name__ == "__main__":
    main()
