"""The rules by which a claim holds, written before they are run, and what came of them: verdicts, figures, levels.

Every rule is judged seed by seed. A claim *holds* if all parts of its rule hold in every seed, *fails* if none holds in
any, and holds *partly* otherwise. Beside it stands the verdict by the paper's own words, where ours differ from them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from claims_runs import OBJECTS, VIEWS, WALLS
from resumed import mean_and_spread, plain

WITH, WITHOUT, UNTRAINED = OBJECTS
BOTH, SALIENT, UNIFORM = WALLS
CHANCE = 100 / 16  # percent: classes are balanced
SOME = 0.05  # R² below which there is nothing to fall
# numbers, and beginnings of their names
Z, FIVE, LAST = "top-1 %, z", "top-1 %, state of 5", f"top-1 %, state of {VIEWS}"
POSE, AMONG, BETWEEN = "pose, MLP, ", "class among neighbours %, ", "variance between objects, "
FULL, BLANK = "path of 3, views and actions", "path of 3, blank views, refitted"
Seed = Mapping[str, Mapping[str, float]]  # condition → the numbers of one seed
Part = Callable[[Seed], bool]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and its rule."""

    number: str
    words: str
    needs: tuple[str, ...]  # conditions
    rule: dict[str, Part]  # all must hold
    paper: dict[str, Part]  # the paper's words, where they ask for something else
    figures: dict[str, tuple[str, str]]  # name → condition, number
    levels: dict[str, tuple[str, str]]
    chance: Callable[[Seed], float] | None = None

    def judged(self, seeds: list[Seed]) -> dict[str, Any]:
        """The entry of `summary.json`."""
        rule = {text: [part(seed) for seed in seeds] for text, part in self.rule.items()}
        paper = {text: [part(seed) for seed in seeds] for text, part in (self.paper or self.rule).items()}
        levels = {name: mean_of(seeds, *where) for name, where in self.levels.items()}
        levels["chance"] = CHANCE if self.chance is None else statistics.fmean(map(self.chance, seeds))
        return {
            "claim": self.words,
            "verdict": verdict(rule),
            "verdict by the paper's words": verdict(paper),
            "seeds": len(seeds),
            "rule": rule,
            "the paper's words": paper,
            "figures": {name: mean_of(seeds, *where) for name, where in self.figures.items()},
            "spread": {name: spread_of(seeds, *where) for name, where in self.figures.items()},
            "levels": levels,
        }


def mean_of(seeds: list[Seed], condition: str, name: str) -> float:
    return statistics.fmean(seed[condition][name] for seed in seeds)


def spread_of(seeds: list[Seed], condition: str, name: str) -> float | None:
    """Standard deviation over seeds; None of one."""
    values = [seed[condition][name] for seed in seeds]
    return statistics.stdev(values) if len(values) > 1 else None


def verdict(parts: Mapping[str, list[bool]]) -> str:
    held = [value for values in parts.values() for value in values]
    return "holds" if all(held) else "partly" if any(held) else "fails"


def no_r2(_: Seed) -> float:
    """What chance explains."""
    return 0.0


def classes() -> Claim:
    return Claim(
        "1", "The state classifies better than z, and better the more views it has seen", (WITH, UNTRAINED),
        {
            f"top-1 of the state of {VIEWS} is above that of z": lambda s: s[WITH][LAST] > s[WITH][Z],
            f"that of 1 is below that of 5, and that of 5 at most half a point above that of {VIEWS}":
                lambda s: s[WITH]["top-1 %, state of 1"] < s[WITH][FIVE] <= s[WITH][LAST] + 0.5,
            f"the state of {VIEWS} of an untrained network is below": lambda s: s[UNTRAINED][LAST] < s[WITH][LAST],
        }, {},
        {name: (WITH, name) for name in (Z, *(f"top-1 %, state of {m}" for m in (1, 2, 3, 5, VIEWS)))},
        {
            "untrained": (UNTRAINED, LAST), "untrained, z": (UNTRAINED, Z),
            f"mean of {VIEWS} z": (WITH, f"top-1 %, mean of {VIEWS} z"),
            f"untrained, mean of {VIEWS} z": (UNTRAINED, f"top-1 %, mean of {VIEWS} z"),
        },
    )  # fmt: skip


def same_accuracy(s: Seed) -> bool:
    return abs(s[WITHOUT][LAST] - s[WITH][LAST]) <= 2


def halves(name: str) -> Part:
    """Without actions it is less than half of what it is with them."""
    return lambda s: s[WITH][name] > SOME and s[WITHOUT][name] < s[WITH][name] / 2


def equivariance() -> Claim:
    return Claim(
        "2", "Without actions z tells less of the rotation, and the class as well", (WITH, WITHOUT, UNTRAINED),
        {
            f"top-1 of the state of {VIEWS} within two points": same_accuracy,
            "MRR without actions within 0.03 of chance, with them above 0.5":
                lambda s: abs(s[WITHOUT]["MRR"] - s[WITHOUT]["MRR, chance"]) <= 0.03 and s[WITH]["MRR"] > 0.5,
            "linear R² of the individual rotation falls by more than half": halves("R² individual, linear"),
            "MLP R² of the relative rotation falls by 0.12 or more":
                lambda s: s[WITH]["R² relative"] - s[WITHOUT]["R² relative"] >= 0.12,
        },
        {
            "MLP R² of the relative rotation falls by more than half": halves("R² relative"),
            f"top-1 of the state of {VIEWS} within two points": same_accuracy,
        },
        {
            f"{name}, {told} actions": (condition, name)
            for name in ("R² relative", "R² individual", "R² individual, linear", "MRR", LAST)
            for told, condition in (("with", WITH), ("without", WITHOUT))
        },
        {
            "untrained": (UNTRAINED, "R² relative"), "untrained, R² individual": (UNTRAINED, "R² individual"),
            "untrained, R² individual, linear": (UNTRAINED, "R² individual, linear"),
            "untrained, MRR": (UNTRAINED, "MRR"), "MRR, chance": (WITH, "MRR, chance"),
        },
        no_r2,
    )  # fmt: skip


def rises(kind: str) -> Part:
    """From z to the states of several views."""
    return lambda s: s[WITH][f"{kind}z"] < min(s[WITH][f"{kind}state of {m}"] for m in (4, VIEWS))


def invariance() -> Claim:
    return Claim(
        "3", "The state is invariant where z is equivariant", (WITH, UNTRAINED),
        {
            f"class among 20 neighbours rises from z to the states of 4 and {VIEWS}": rises(AMONG),
            f"variance between objects rises from z to the states of 4 and {VIEWS}": rises(BETWEEN),
        },
        {"R² of the last view's rotation from the state of 4 is less than half of that from z, at equal rows":
            lambda s: s[WITH][f"{POSE}z"] > SOME and s[WITH][f"{POSE}state of 4"] < s[WITH][f"{POSE}z"] / 2},
        {
            f"{kind}{name}": (WITH, f"{kind}{name}")
            for kind in (POSE, AMONG, BETWEEN)
            for name in ("z", "state of 1", "state of 4", f"state of {VIEWS}", "state of 4, actions zero")
        },
        {"untrained": (UNTRAINED, f"{POSE}state of 4"), "untrained, z": (UNTRAINED, f"{POSE}z")}
        | {f"{kind}mean of 4 z": (WITH, f"{kind}mean of 4 z") for kind in (POSE, AMONG, BETWEEN)}
        | {f"untrained, {kind}state of 4": (UNTRAINED, f"{kind}state of 4") for kind in (AMONG, BETWEEN)},
        no_r2,
    )  # fmt: skip


def path_integration(paths: tuple[int, ...]) -> Claim:
    """`paths`: how many views the paths have that are integrated; the rule is about those of three."""
    assert 3 in paths
    return Claim(
        "4", "Path integration: views and actions tell where a path leads", (WITH, WITHOUT, UNTRAINED),
        {
            "after three views, R² is above that of the model without actions by 0.3":
                lambda s: s[WITH][FULL] > s[WITHOUT][FULL] + 0.3,
            "and above that of an untrained network": lambda s: s[WITH][FULL] > s[UNTRAINED][FULL],
        },
        {
            "views and actions are above blank views": lambda s: s[WITH][FULL] > s[WITH][BLANK],
            "blank views are above the model without actions": lambda s: s[WITH][BLANK] > s[WITHOUT][FULL],
        },
        {f"path of {m}, {name}": (WITH, f"path of {m}, {name}") for m in paths
         for name in ("views and actions", "blank views, refitted", "robbed of views", "robbed of earlier actions")}
        | {f"path of {m}, without actions": (WITHOUT, f"path of {m}, views and actions") for m in paths},
        {"untrained": (UNTRAINED, FULL)}
        | {f"untrained, path of {m}": (UNTRAINED, f"path of {m}, views and actions") for m in paths}
        | {f"path of {m}, {name}": (UNTRAINED, f"path of {m}, {name}") for m in paths
           for name in ("exact actions in order", "exact actions, order-blind")},
        no_r2,
    )  # fmt: skip


def saccades() -> Claim:
    gazes = {gaze: gaze.removeprefix("wall, ") for gaze in WALLS}
    return Claim(
        "5", "Saccades: saliency helps, and so does inhibition of return", WALLS,
        {
            "top-1 of the state of 5 with both is above uniform fixations by a point":
                lambda s: s[BOTH][FIVE] > s[UNIFORM][FIVE] + 1,
            "and above saliency alone by a point": lambda s: s[BOTH][FIVE] > s[SALIENT][FIVE] + 1,
            "and above that of an untrained network that looks alike, by a point":
                lambda s: s[BOTH][FIVE] > s[BOTH][f"untrained, {FIVE}"] + 1,
        }, {},
        {name: (gaze, FIVE) for gaze, name in gazes.items()}
        | {f"z, {name}": (gaze, Z) for gaze, name in gazes.items()},
        {"untrained": (BOTH, f"untrained, {FIVE}")}
        | {f"untrained, {name}": (gaze, f"untrained, {FIVE}") for gaze, name in gazes.items()}
        | {f"mean of 5 z, {name}": (gaze, "top-1 %, mean of 5 z") for gaze, name in gazes.items()}
        | {f"pictures seen %, {name}": (gaze, "pictures seen %") for gaze, name in gazes.items()},
    )  # fmt: skip


def summary(runs: Mapping[int, Seed], paths: tuple[int, ...]) -> dict[str, Any]:
    """Of each claim, what the seeds say whose runs are all done. Claims of which no seed is done are left out."""
    judged = {}
    for claim in (classes(), equivariance(), invariance(), path_integration(paths), saccades()):
        seeds = [numbers for numbers in runs.values() if all(need in numbers for need in claim.needs)]
        if seeds:
            judged[claim.number] = claim.judged(seeds)
    return {"claims": judged}


def report(found: Mapping[str, Any], runs: Mapping[int, Seed]) -> str:
    """Markdown: verdicts, rules, and every number, mean ± standard deviation over seeds."""
    lines = ["| claim | seeds | verdict | by the paper's words |", "|---|---|---|---|"]
    for number, claim in found["claims"].items():
        cells = claim["claim"], claim["seeds"], f"**{claim['verdict']}**", claim["verdict by the paper's words"]
        lines.append(f"| {number}. " + " | ".join(map(str, cells)) + " |")
    for number, claim in found["claims"].items():
        lines += ["", f"Claim {number}, rule, and whether it held, seed by seed:", ""]
        for text, held in (claim["rule"] | claim["the paper's words"]).items():
            whose = "" if text in claim["rule"] else "(the paper's words) "
            lines.append(f"- {whose}{text}: {', '.join('yes' if value else 'no' for value in held)}")
        lines += ["", "| figure | mean ± deviation over seeds |", "|---|---|"]
        for name, value in claim["figures"].items():
            lines.append(f"| {name} | {plain(value, claim['spread'][name])} |")
        lines += [f"| *level: {name}* | {plain(value)} |" for name, value in claim["levels"].items()]
    for kind in (OBJECTS, WALLS):
        lines += ["", *table(kind, runs)]
    return "\n".join(lines)


def table(conditions: tuple[str, ...], runs: Mapping[int, Seed]) -> list[str]:
    """All numbers of some conditions, side by side."""
    names: dict[str, None] = {}
    for seed in runs.values():
        for condition in conditions:
            names |= dict.fromkeys(seed.get(condition, {}))
    lines = ["| | " + " | ".join(conditions) + " |", "|---" * (len(conditions) + 1) + "|"]
    for name in names:
        cells = []
        for condition in conditions:
            values = [seed[condition][name] for seed in runs.values() if name in seed.get(condition, {})]
            cells.append(mean_and_spread(values))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines if names else []
