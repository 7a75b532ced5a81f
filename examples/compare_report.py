"""What came of the comparison: the table, the paired orderings that were fixed before the runs, and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from claims_rules import verdict
from compare_runs import ABLATION, CONDITIONS, METHODS, ONE, PAIRED, SEQJEPA, TWO_PAIRS, UNTRAINED, cost, method_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from resumed import mean_and_spread

Z, R2, INDIVIDUAL, MRR, CHANCE = "top-1 %, z", "R² relative", "R² individual", "MRR", "MRR, chance"
STATE, MEAN = "top-1 %, state of 5", "top-1 %, mean of 5 z"
COLUMNS = (Z, MEAN, STATE, R2, INDIVIDUAL, MRR)
NEAR = 0.03  # of chance: an MRR that knows nothing
Seed = Mapping[str, Mapping[str, float]]  # condition → the numbers of one seed
TOLD = [name for name, method in METHODS.items() if method.told and method.predicts and name != UNTRAINED]
TWO_VIEWS = [name for name, method in METHODS.items() if method.views == 2]


def above(a: str, b: str, number: str, by: float = 0.0) -> Callable[[Seed], bool]:
    return lambda s: s[a][number] > s[b][number] + by


# Words → what must be in the seed, and the rule. Published differences are in brackets.
ORDERINGS: dict[str, tuple[tuple[str, ...], Callable[[Seed], bool]]] = {
    "conditional BYOL is above BYOL in R² relative (0.31 / 0.12)":
        (("conditional BYOL", "BYOL"), above("conditional BYOL", "BYOL", R2)),
    "conditional BYOL is above BYOL in R² individual (0.47 / 0.25)":
        (("conditional BYOL", "BYOL"), above("conditional BYOL", "BYOL", INDIVIDUAL)),
    "SIE is above VICReg in R² relative (0.58 / 0.20)": (("SIE", "VICReg"), above("SIE", "VICReg", R2)),
    "seq-JEPA of one view is above conditional BYOL in R² relative (0.65 / 0.31)":
        ((ONE, "conditional BYOL"), above(ONE, "conditional BYOL", R2)),
    "seq-JEPA of one view is above conditional BYOL in top-1 of z (84.1 / 82.6)":
        ((ONE, "conditional BYOL"), above(ONE, "conditional BYOL", Z)),
    "BYOL has the least R² relative of all that are trained (0.12)":
        (tuple(METHODS), lambda s: min((n for n in METHODS if n != UNTRAINED), key=lambda n: s[n][R2]) == "BYOL"),
    f"MRR is above chance by more than {NEAR} for every method that is told actions and predicts":
        (tuple(TOLD), lambda s: all(s[name][MRR] > s[name][CHANCE] + NEAR for name in TOLD)),
    f"and within {NEAR} of it for BYOL and for seq-JEPA without actions":
        (("BYOL", ABLATION), lambda s: all(abs(s[n][MRR] - s[n][CHANCE]) <= NEAR for n in ("BYOL", ABLATION))),
    "seq-JEPA's state of 5 is above every z of a method of two views in top-1":
        ((SEQJEPA, *TWO_VIEWS), lambda s: all(s[SEQJEPA][STATE] > s[name][Z] for name in TWO_VIEWS)),
    "seq-JEPA's state of 5 is above the mean of its own 5 z in top-1":
        ((SEQJEPA,), lambda s: s[SEQJEPA][STATE] > s[SEQJEPA][MEAN]),
    "seq-JEPA's state of 5 is above the mean of 5 z of every other method in top-1":
        (tuple(METHODS), lambda s: all(s[SEQJEPA][STATE] > s[name][MEAN] for name in METHODS if name != PAIRED)),
    "seq-JEPA has the most R² relative of all but its own form with pairs":
        (tuple(METHODS), lambda s: max((n for n in METHODS if n != PAIRED), key=lambda n: s[n][R2]) == SEQJEPA),
}  # fmt: skip


def report(runs: Mapping[int, Seed]) -> tuple[dict[str, Any], str]:
    """What `summary.json` has, and the same as Markdown."""
    orderings = {}
    for words, (needs, rule) in ORDERINGS.items():
        held = [rule(seed) for seed in runs.values() if all(name in seed for name in needs)]
        if held:
            orderings[words] = {"verdict": verdict({words: held}), "seeds": held}
    rows = [name for name in CONDITIONS if any(name in seed for seed in runs.values())]
    table = {name: {column: values(runs, name, column) for column in COLUMNS} for name in rows}
    lines = [
        "| method | cost of a step | " + " | ".join(COLUMNS) + " | published: top-1, R² relative, individual |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for name, columns in table.items():
        published = None if name.endswith(TWO_PAIRS) else method_of(name).paper
        cells = [mean_and_spread(columns[column]) for column in COLUMNS]
        last = "" if published is None else "{:.1f}, {:.2f}, {:.2f}".format(*published)
        lines.append(f"| {name} | {cost(name):.1f} | " + " | ".join(cells) + f" | {last} |")
    chance = [v for name in rows for v in values(runs, name, CHANCE)]
    if chance:
        lines += ["", f"Chance: top-1 6.25 %, R² 0, MRR {statistics.fmean(chance):.2f}."]
    lines += ["", "| ordering | verdict | seed by seed |", "|---|---|---|"]
    for words, found in orderings.items():
        lines.append(
            f"| {words} | **{found['verdict']}** | {', '.join('yes' if h else 'no' for h in found['seeds'])} |"
        )
    return {"table": table, "orderings": orderings}, "\n".join(lines)


def values(runs: Mapping[int, Seed], condition: str, column: str) -> list[float]:
    """One of each seed that has it."""
    return [s[condition][column] for s in runs.values() if condition in s and column in s[condition]]


def draw(runs: Mapping[int, Seed]) -> Figure:
    """The plane of accuracy and R², as in the paper: ours with a dot a seed, and the published table."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    ours, published = figure.subplots(1, 2)
    here = {name: (values(runs, name, R2), values(runs, name, Z)) for name in METHODS if name != UNTRAINED}
    there = {name: ([m.paper[1]], [m.paper[0]]) for name, m in METHODS.items() if m.paper is not None}
    plane(ours, {name: xy for name, xy in here.items() if xy[0]})
    plane(published, there)
    untrained = ", ".join(f"{mean_and_spread(values(runs, UNTRAINED, column))}" for column in (R2, Z))
    ours.set(title="here: z of one view", xlabel="R² of the relative rotation", ylabel="top-1 %")
    ours.text(0.98, 0.02, f"untrained: {untrained} %", fontsize=7, color="0.5", ha="right", transform=ours.transAxes)
    published.set(title="published, 3DIEBench", xlabel="R² of the relative rotation")
    return figure


def plane(axis: Axes, points: Mapping[str, tuple[list[float], list[float]]]) -> None:
    """A dot a seed, and the names beside their means: as near as they lie upon no dot and no other name."""
    if not points:
        return
    means = {name: (statistics.fmean(x), statistics.fmean(y)) for name, (x, y) in points.items()}
    wide, high = (max(c) - min(c) or 1.0 for c in zip(*means.values(), strict=True))
    taken = [(x / wide, x / wide + 0.01, y / high) for x, y in means.values()]  # from, to, height
    for name, (x, y) in sorted(means.items(), key=lambda item: item[1][1]):
        color = "tab:red" if name.startswith(SEQJEPA) else "tab:blue"
        axis.plot(*points[name], ".", color=color, markersize=5)
        long = 0.026 * len(name)
        sides = (0.03, -long - 0.03, 0.2)
        places = ((x / wide + right, y / high + 0.045 * up) for right in sides for up in (0, 1, -1, 2, -2, 3, -3))
        left, at = next(
            (place for place in places if all(
                place[0] > end or place[0] + long < begin or abs(place[1] - level) > 0.04 for begin, end, level in taken
            )),
            (x / wide + 0.03, y / high),
        )  # fmt: skip
        taken.append((left, left + long, at))
        far = abs(at - y / high) > 0.01 or left - x / wide > 0.1
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.4} if far else None
        label = axis.annotate(
            name, (x, y), (left * wide, at * high), fontsize=7, color=color, va="center", arrowprops=line
        )  # fmt: skip
        label.set_in_layout(False)  # of one point alone it may lie outside
    axis.margins(x=0.3, y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
