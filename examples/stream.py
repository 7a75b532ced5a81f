"""A state for every view of a stream that does not end, at constant time and memory: what a causal aggregator is for.

Four seq-JEPAs learn on features of rendered objects that a frozen network made (frozen_backbone.py computes them once):
the paper's aggregator and a causal one, each from three views and from eight. Their states classify the objects, from
one view to eight. Then the causal one reads a stream of a thousand views of each held-out object, view by view, with a
window of eight and with none.

    python examples/stream.py                 # three minutes on two CPU cores; tables, and runs/stream/stream.png

Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
from claims_model import EMBED, build, with_pairs
from frozen_backbone import BATCH, DIM, GROUP, SIDE, VIEWS, Adapter, pretrained_pools
from matplotlib.figure import Figure
from small import small_recipe, train
from torch import Tensor

from seqjepa import CausalAggregator, SeqJEPA, ViewSequence
from seqjepa.causal import CausalCache
from seqjepa.data import ViewPool
from seqjepa.evaluation import extract, linear_probe, observation_grid

OBSERVED = VIEWS - 1  # eight
WINDOW = 8
WITHOUT = 300  # views that are read without a window: each costs more than the one before


def learn(pool: ViewPool, observed: int, steps: int, seed: int, *, causal: bool) -> SeqJEPA:
    """A model that predicts the view after so many."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = with_pairs(build(SIDE, DIM, GROUP.dim, steps, encoder=Adapter("middle")), GROUP)
    if causal:
        model.aggregator = CausalAggregator(DIM + EMBED, dropout=0.0, norm_first=True)

    def batch() -> ViewSequence:
        rows = torch.randint(len(pool), (min(BATCH, len(pool)),), generator=generator)
        return pool.sample(rows, num_views=observed + 1, generator=generator)

    name = f"{'causal' if causal else 'the paper’s'}, {observed} views"
    return train(model, batch, steps, name, small_recipe(model, steps))


def long_walk(pool: ViewPool, objects: Tensor, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """So many views of each of these objects, drawn of its nine, and the actions between: (B, length, F), (B, …, A)."""
    which = torch.randint(VIEWS, (len(objects), length), generator=generator)
    return pool.views[objects[:, None], which].float(), GROUP.actions(pool.elements[objects[:, None], which])


class Read(NamedTuple):
    """What reading a stream gave and cost, at some lengths."""

    states: dict[int, Tensor]  # (B, S)
    milliseconds: dict[int, float]  # of a step, the mean of the last ten
    kept: dict[int, int]  # numbers in the cache of one stream


@torch.no_grad()
def read(model: SeqJEPA, views: Tensor, actions: Tensor, window: int | None, at: list[int]) -> Read:
    """View by view, as they would come."""
    aggregator = model.aggregator
    assert isinstance(aggregator, CausalAggregator)
    aggregator.window = window
    found, cache, finished = Read({}, {}, {}), None, None
    times: list[float] = []
    for t in range(max(at)):
        begun = time.perf_counter()
        z = model.encode(views[:, t : t + 1])[:, 0]
        state, cache = aggregator.step(finished, torch.cat([z, z.new_zeros(len(z), EMBED)], dim=1), cache)
        if t < actions.shape[1]:
            finished = torch.cat([z, model.embed(actions[:, t : t + 1])[:, 0]], dim=1)
        times.append(time.perf_counter() - begun)
        if t + 1 in at:
            assert isinstance(cache, CausalCache)
            found.states[t + 1] = state
            found.milliseconds[t + 1] = 1000 * sum(times[-10:]) / len(times[-10:])
            found.kept[t + 1] = cache.keys[0].numel() + cache.values[0].numel()
    return found


def draw(accuracy: dict[str, dict[int, float]], reads: dict[str, Read], path: Path) -> None:
    """Accuracy along the stream, and what a step costs."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, line in accuracy.items():
        left.plot(list(line), list(line.values()), "o-", label=name)
        right.plot(list(reads[name].kept), list(reads[name].kept.values()), "o-", label=name)
    left.axvline(OBSERVED, color="grey", linestyle=":", linewidth=1)
    left.annotate(" most views in training", (OBSERVED, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    left.set(xscale="log", xlabel="views read", ylabel="accuracy of the state, %")
    right.set(xscale="log", yscale="log", xlabel="views read", ylabel="numbers kept of a stream")
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--objects", type=int, default=432, help="to learn from; a third as many are held out")
    parser.add_argument("--length", type=int, default=1000, help="of the stream, views")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--features", type=Path, default=Path("runs/frozen"), help="folder of frozen_backbone.py")
    parser.add_argument("--output", type=Path, default=Path("runs/stream"), help="folder for the figure")
    args = parser.parse_args()
    for name, least in (("steps", 2), ("objects", 48), ("length", 10)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}; got {getattr(args, name)}")
    args.output.mkdir(parents=True, exist_ok=True)
    learning, others = pretrained_pools(args.features, args.objects)
    generator = torch.Generator().manual_seed(args.seed)
    fit, score = (pool.sample(torch.arange(len(pool)), generator=generator) for pool in (learning, others))
    print(f"\n{'accuracy %, held-out objects':<34}" + "".join(f"{m:>7}" for m in (1, 3, 5, 8)) + "  views")
    for causal in (False, True):
        models = {m: learn(learning, m, args.steps, args.seed, causal=causal) for m in (3, OBSERVED)}
        looked = {m: (extract(model, fit), extract(model, score)) for m, model in models.items()}
        for m, row in observation_grid(models, looked, num_views=(1, 3, 5, 8), seed=args.seed).items():
            name = f"{'causal' if causal else 'the paper’s'}, trained on {m}"
            print(f"{name:<34}" + "".join(f"{100 * one.accuracy:>7.1f}" for one in row.values()))
    model = models[OBSERVED]  # the causal one

    lengths = [n for n in (1, 3, 8, 30, 100, 300, 1000, 3000) if n <= args.length]
    objects, labels = torch.arange(len(others)), others.labels
    assert labels is not None
    assert learning.labels is not None
    walk = long_walk(others, objects, args.length, generator)
    examples = long_walk(learning, torch.arange(len(learning)), OBSERVED, generator)
    reads, accuracy = {}, {}
    for name, window in ((f"window of {WINDOW}", WINDOW), ("no window", None)):
        known = read(model, *examples, window, [OBSERVED]).states[OBSERVED]
        reads[name] = read(model, *walk, window, [n for n in lengths if window or n <= WITHOUT])
        accuracy[name] = {
            n: 100 * linear_probe(known, learning.labels, state, labels, seed=args.seed).accuracy
            for n, state in reads[name].states.items()
        }
    print(f"\n{'views of the stream':<34}" + "".join(f"{n:>9}" for n in lengths))
    for name, line in accuracy.items():
        print(f"{'accuracy %, ' + name:<34}" + "".join(f"{value:>9.1f}" for value in line.values()))
        print(f"{'ms a step':<34}" + "".join(f"{value:>9.1f}" for value in reads[name].milliseconds.values()))
        print(f"{'numbers kept of a stream':<34}" + "".join(f"{value:>9,}" for value in reads[name].kept.values()))
    draw(accuracy, reads, args.output / "stream.png")
    print(f"Figure saved as {args.output / 'stream.png'}")


if __name__ == "__main__":
    main()
