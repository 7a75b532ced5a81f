"""Figures of what `reproduce_claims.py` found, one a claim, of the runs that are done.

    python examples/claims_figures.py runs/claims/hour docs/assets/results

Bars and lines are means over seeds; each seed is a dot. What knows nothing is grey.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from claims_rules import CHANCE, UNTRAINED, WITH, WITHOUT
from claims_runs import PRESETS, VIEWS, WALLS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from objects3d import Pool
from resumed import done, settings
from wall import GAZES, Walls, draw_path

from seqjepa.data import RenderedObjects

Runs = Mapping[int, Mapping[str, Mapping[str, Any]]]
NOTHING = "0.6"  # the grey of levels
LENGTHS = (1, 2, 3, 5, VIEWS)


def values(runs: Runs, condition: str, name: str) -> list[float]:
    """One of each seed that has it."""
    return [of[condition]["numbers"][name] for of in runs.values() if condition in of]


def bars(axis: Axes, parts: list[tuple[str, list[float], str]]) -> None:
    """A bar a name, and a dot a seed."""
    parts = [part for part in parts if part[1]]
    for i, (_, heights, color) in enumerate(parts):
        axis.bar(i, statistics.fmean(heights), color=color)
        axis.plot([i] * len(heights), heights, "k.", markersize=4)
    axis.set_xticks(range(len(parts)), [name for name, _, _ in parts], fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def lines(axis: Axes, runs: Runs, condition: str, name: str, label: str, color: str, first: int = 1) -> None:
    """Top-1 over the number of views."""
    lengths = [m for m in LENGTHS if m >= first]
    found = [values(runs, condition, name.format(m)) for m in lengths]
    if found[0]:
        axis.plot(lengths, [statistics.fmean(of) for of in found], color=color, label=label)
        for m, of in zip(lengths, found, strict=True):
            axis.plot([m] * len(of), of, ".", color=color, markersize=4)


def claim_1(runs: Runs) -> Figure:
    """Top-1 over views: states, the mean of as many z, and both of an untrained network."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    lines(axis, runs, WITH, "top-1 %, state of {}", "state", "tab:blue")
    lines(axis, runs, WITH, "top-1 %, mean of {} z", "mean of z", "tab:orange", first=2)
    lines(axis, runs, UNTRAINED, "top-1 %, state of {}", "state, untrained", NOTHING)
    lines(axis, runs, UNTRAINED, "top-1 %, mean of {} z", "mean of z, untrained", "0.8", first=2)
    axis.axhline(CHANCE, color="k", linewidth=0.7, linestyle=":")
    axis.set(xlabel="views, M_val", ylabel="top-1 %", ylim=(0, 100))
    axis.legend(fontsize=7, frameon=False)
    return figure


def claim_2(runs: Runs) -> Figure:
    """R² of the relative rotation and MRR over steps, with actions and without."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("R² relative", "MRR"), strict=True):
        for condition, color in ((WITH, "tab:blue"), (WITHOUT, "tab:orange")):
            for of in (found[condition] for found in runs.values() if condition in found):
                points = {int(step): numbers[name] for step, numbers in of["curve"].items()}
                points[of["settings"]["steps"]] = of["numbers"][name]
                axis.plot(*zip(*sorted(points.items()), strict=True), ".-", color=color)
        level = values(runs, UNTRAINED, name)
        if level:
            axis.axhline(statistics.fmean(level), color=NOTHING)
        axis.set(xlabel="steps", ylabel=name)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("with actions (blue), without (orange), untrained (grey)", fontsize=9)
    return figure


def claim_3(runs: Runs) -> Figure:
    """Of z, states and the mean of z: R² of the pose, and the variance between objects."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    kinds = ("z", "state of 1", "state of 4", f"state of {VIEWS}", "state of 4, actions zero", "mean of 4 z")
    names = ("pose, MLP, ", "class among neighbours %, ", "variance between objects, ")
    for axis, name in zip(figure.subplots(1, 3), names, strict=True):
        color = {"mean of 4 z": NOTHING}
        parts = [(kind, values(runs, WITH, name + kind), color.get(kind, "tab:blue")) for kind in kinds]
        bars(axis, [(kind.replace(", ", ",\n").replace(" of", "\nof"), of, shade) for kind, of, shade in parts])
        axis.set_title(name.rstrip(", ").replace("pose, MLP", "R² of the last view's rotation"), fontsize=9)
    return figure


def claim_4(runs: Runs) -> Figure:
    """R² of where a path leads over its length: the models, one probe robbed, and what actions alone tell."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    curves = [
        (WITH, "views and actions", "with actions", "tab:blue", "-"),
        (WITH, "robbed of views", "the same probe robbed of views", "tab:cyan", "--"),
        (WITH, "robbed of earlier actions", "and of earlier actions", "tab:cyan", ":"),
        (WITHOUT, "views and actions", "trained without actions", "tab:orange", "-"),
        (UNTRAINED, "views and actions", "untrained", NOTHING, "-"),
        (WITH, "blank views, refitted", "blank views, refitted", NOTHING, "--"),
        (UNTRAINED, "exact actions, order-blind", "exact actions, order-blind", NOTHING, "-."),
        (UNTRAINED, "exact actions in order", "exact actions in order", NOTHING, ":"),
    ]
    some = next(iter(runs.values()))[WITH]["numbers"]
    lengths = sorted(int(name.split()[2].rstrip(",")) for name in some if name.endswith(", robbed of views"))
    for condition, variant, label, color, style in curves:
        found = [values(runs, condition, f"path of {m}, {variant}") for m in lengths]
        axis.plot(lengths, [statistics.fmean(of) for of in found], style, color=color, label=label)
        for m, of in zip(lengths, found, strict=True):
            axis.plot([m] * len(of), of, ".", color=color, markersize=4)
    axis.set(xlabel="views in the path", ylabel="R² of where it leads", xticks=lengths, ylim=(-1, 1.05))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=7, loc="outside right center")
    return figure


def claim_5(runs: Runs) -> Figure:
    """Top-1 of five fixations beside the levels, and above each a scan path."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.25])[:, 0]
    pool = Pool(RenderedObjects(2, size=32, split="val"), 8)
    walls = Walls.of(pool.pictures.cpu(), pool.labels.cpu(), seed=1)
    for axis, gaze in zip(top.subplots(1, 3), GAZES, strict=True):
        draw_path(axis, walls, 0, gaze)
        axis.set_title(gaze, fontsize=9)
    names = {
        "state\nof 1": ("top-1 %, state of 1", "tab:cyan"),
        "state\nof 5": ("top-1 %, state of 5", "tab:blue"),
        "mean of\n5 z": ("top-1 %, mean of 5 z", "tab:orange"),
        "untrained:\nstate\nof 5": ("untrained, top-1 %, state of 5", NOTHING),
        "untrained:\nmean of\n5 z": ("untrained, top-1 %, mean of 5 z", "0.8"),
    }
    for axis, condition in zip(bottom.subplots(1, 3, sharey=True), WALLS, strict=True):
        bars(axis, [(name, values(runs, condition, number), color) for name, (number, color) in names.items()])
        axis.axhline(CHANCE, color="k", linewidth=0.7, linestyle=":")
    return figure


DRAWN: dict[str, tuple[tuple[str, ...], Callable[[Runs], Figure]]] = {
    "claim1": ((WITH,), claim_1),
    "claim2": ((WITH, WITHOUT), claim_2),
    "claim3": ((WITH,), claim_3),
    "claim4": ((WITH, WITHOUT, UNTRAINED), claim_4),
    "claim5": (WALLS, claim_5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder that reproduce_claims.py wrote")
    parser.add_argument("output", type=Path, help="folder for the figures")
    parser.add_argument("--preset", choices=PRESETS, default="hour", help="that the runs were made with")
    args = parser.parse_args()
    runs = done(args.runs, settings(PRESETS[args.preset]))
    args.output.mkdir(parents=True, exist_ok=True)
    for name, (needs, draw) in DRAWN.items():
        whole = {seed: of for seed, of in runs.items() if all(need in of for need in needs)}
        if whole:
            draw(whole).savefig(args.output / f"{name}.png", dpi=110)
            print(f"Figure saved as {args.output / f'{name}.png'}")


if __name__ == "__main__":
    main()
