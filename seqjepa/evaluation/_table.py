"""The scorecard's table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from seqjepa.evaluation._exact import IN_ORDER, ORDER_BLIND
from seqjepa.evaluation._fits import TransformationFit
from seqjepa.evaluation._results import Results
from seqjepa.evaluation._scores import Regression
from seqjepa.evaluation.probes import Classification
from seqjepa.evaluation.transformations import TransformationR2

__all__ = ["table", "won_by_untrained"]

TOLD = {  # what the variants of a path are, where the name does not say it
    "actions only": "actions only (what actions alone tell)",
    "probe robbed of views": "robbed of views, same probe",
    "probe robbed of earlier actions": "robbed of earlier actions, same probe",
}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: of the measure.
        value: as it is printed.
        chance: as it is printed, and the other levels that ask no model.
        scores: what is compared with the untrained model's, as printed: one number, or one for each M_val.
        better: 1 where higher is better, −1 where lower is, 0 where neither is.
    """

    name: str
    value: str
    chance: str = ""
    scores: Mapping[int | None, str] = field(default_factory=dict)
    better: int = 0

    def lost_to(self, other: Row) -> list[int | None]:
        """The scores at which the other row is better, in the digits that are printed."""
        shared = self.scores.keys() & other.scores.keys()
        return [m for m in self.scores if m in shared and self.better * (_number(other, m) - _number(self, m)) > 0]


def _number(row: Row, m: int | None) -> float:
    return float(row.scores[m].removesuffix(" %"))


def table(card: Results) -> list[str]:
    """The lines of the card: each measure, its value, and the levels of knowing nothing."""
    untrained = {} if card.untrained is None else {row.name: row for row in _rows(card.untrained)}
    lines = [("", "", "chance" if card.untrained is None else "chance; untrained model")]
    for row in _rows(card):
        other, chance = untrained.get(row.name), row.chance
        if other is not None and other.scores:
            joined = "  ".join(s if m is None else f"{m}: {s}" for m, s in other.scores.items())
            chance += f"{'; ' if chance else ''}untrained {joined}"
            lost = row.lost_to(other)
            where = "" if lost in ([], [None]) else f" at {', '.join(map(str, lost))}"
            chance += f"  ◄ the untrained model wins{where}" if lost else ""
        lines.append((row.name, row.value, chance))
    left, middle = (max(len(line[i]) for line in lines) for i in (0, 1))
    return [f"{name:<{left}}  {value:<{middle}}  {chance}".rstrip() for name, value, chance in lines]


def won_by_untrained(card: Results) -> tuple[str, ...]:
    """The rows at which the untrained model is better, those of several M_val with the M_val."""
    if card.untrained is None:
        return ()
    untrained = {row.name: row for row in _rows(card.untrained)}
    return tuple(
        row.name if m is None else f"{row.name}, {m}"
        for row in _rows(card)
        if row.name in untrained
        for m in row.lost_to(untrained[row.name])
    )


def _rows(card: Results) -> Iterator[Row]:
    yield from _accuracy(card)
    if card.transformations is not None:
        yield from _transformation(card.transformations, "z pairs", "z", better=1)
    for m, t in card.from_states.items():
        yield from _transformation(t, f"states of {m}", f"state of {m}", better=0)
    if card.out_of_distribution is not None:
        name = "z, out of distribution"
        yield from _transformation(card.out_of_distribution, name, name, better=1)
    yield from _invariance(card)
    yield from _paths(card)
    yield from _predictions(card)
    for name, values in card.collapse.items():
        rank, cosine = f"{values['rankme']:.1f}", f"{values['mean_cosine']:.2f}"
        yield Row(f"RankMe, {name}", f"{rank} of {values['dim']:.0f}", scores={None: rank})
        yield Row(f"mean cosine, {name}", cosine, scores={None: cosine})


def _percent(name: str, fit: Classification) -> Row:
    accuracy = f"{100 * fit.accuracy:.1f} %"
    value = f"{accuracy} [{100 * fit.interval.low:.1f}, {100 * fit.interval.high:.1f}]"
    return Row(name, value, f"{100 * fit.chance:.1f} %", {None: accuracy}, 1)


def _accuracy(card: Results) -> Iterator[Row]:
    if card.top1 is None:
        return
    yield _percent("top-1, z", card.top1.z)
    for m, fit in card.top1.states.items():
        yield _percent(f"top-1, state of {m}", fit)
        if m in card.top1.means:
            yield _percent(f"top-1, mean z of {m}", card.top1.means[m])
    for name, fit in card.top1.knn.items():
        yield _percent(f"top-1 of 20 neighbours, {name}", fit)


def _transformation(t: TransformationR2, pairs: str, single: str, better: int) -> Iterator[Row]:
    told = {"actions in order": t.actions_in_order, "order-blind": t.actions_order_blind}
    levels = "".join(f"; {name} {fit.mean:.3f}" for name, fit in told.items() if fit is not None)
    yield _r2(f"R² relative, {pairs}", t.relative, t.relative_degrees, t.chance_degrees, levels, better)
    if t.mean_z is not None:
        yield _r2(f"R² relative, {pairs.replace('states', 'means of z')}", t.mean_z)
    if t.blank is not None:
        yield _r2(f"R² relative, {pairs} blank views", t.blank)
    if t.individual is not None:
        degrees = t.individual_degrees, t.individual_chance_degrees
        yield _r2(f"R² individual, {single}", t.individual, *degrees, better=better)


def _r2(
    name: str,
    fit: Regression,
    degrees: float | None = None,
    by_chance: float | None = None,
    levels: str = "",
    better: int = 0,
) -> Row:
    angle = "" if degrees is None else f"  {degrees:.1f}°"
    chance = f"{fit.chance:.3f}, pooled {fit.pooled_chance:.3f}"
    chance += ("" if by_chance is None else f", {by_chance:.1f}°") + levels
    value = f"{fit.mean:.3f} {fit.interval}  pooled {fit.pooled:.3f}{angle}"
    return Row(name, value, chance, {None: f"{fit.mean:.3f}"}, better)


def _invariance(card: Results) -> Iterator[Row]:
    for name, found in card.invariance.items():
        poses = {"probe": found.pose, "linear": found.linear, "20 neighbours": found.neighbours}
        values = "  ".join(f"{how} {fit.mean:.3f}" for how, fit in poses.items() if fit is not None)
        if found.pose is not None and values:
            yield Row(f"pose at equal rows, R², {name}", values, "0", {None: f"{found.pose.mean:.3f}"})
        if found.classes is not None:
            yield _percent(f"class among 20 neighbours, {name}", found.classes)
        if found.between is not None:
            share = f"{found.between:.2f}"
            yield Row(
                f"share of variance between objects, {name}", share, "0", {None: share}, int(name.startswith("state"))
            )


def _paths(card: Results) -> Iterator[Row]:
    exact = {"in order": card.paths.get(IN_ORDER, {}), "order-blind": card.paths.get(ORDER_BLIND, {})}
    told = "".join(f"; exact actions {name} {_curve(curve)}" for name, curve in exact.items() if curve)
    for variant, curve in card.paths.items():
        if curve and variant not in (IN_ORDER, ORDER_BLIND):
            scores: dict[int | None, str] = {m: f"{fit.mean:.2f}" for m, fit in curve.items()}
            chance = "0" + (told if variant == "views and actions" else "")
            better = 1 if variant in ("views and actions", "state alone") else 0
            yield Row(f"R² path, {TOLD.get(variant, variant)}", _curve(curve), chance, scores, better)


def _curve(curve: Mapping[int, TransformationFit]) -> str:
    return "  ".join(f"{m}: {fit.mean:.2f}" for m, fit in curve.items())


def _predictions(card: Results) -> Iterator[Row]:
    if card.retrieval is not None:
        r = card.retrieval
        hits, mrr = "  ".join(f"H@{k} {value:.3f}" for k, value in r.hits.items()), f"{r.mrr:.3f}"
        chance = f"{r.chance.mrr:.3f}"
        yield Row("retrieval by action, MRR", f"{mrr} {r.interval}  {hits}", chance, {None: mrr}, 1)
    if card.pre is not None:
        error, chance = f"{card.pre.error:.3f}", f"{card.pre.chance:.3f}"
        yield Row("retrieval by action, PRE", f"{error} {card.pre.interval}", chance, {None: error}, -1)
    if card.composition is not None:
        distance, chance = f"{card.composition.distance:.3f}", f"{card.composition.chance:.3f}"
        yield Row("two steps against one composed", distance, chance, {None: distance})
    if card.sensitivity is not None:
        moved = {"loss": card.sensitivity.loss, "top-1": card.sensitivity.top1, "path R²": card.sensitivity.path_r2}
        for name, values_of in moved.items():
            for condition, value in values_of.items():
                shown, better = f"{value:.3f}", (-1 if name == "loss" else 1) if condition == "as they are" else 0
                yield Row(f"{name}, {condition}", shown, scores={None: shown}, better=better)
