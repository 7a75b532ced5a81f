"""The scorecard's table."""

from __future__ import annotations

from seqjepa.evaluation._results import Results
from seqjepa.evaluation.probes import Classification
from seqjepa.evaluation.regression import Regression

__all__ = ["table"]


def table(card: Results) -> list[str]:
    """The lines of the card: each measure, its value and its chance."""
    rows: list[tuple[str, str, str]] = [("", "", "chance")]

    def r2(name: str, fit: Regression | None, degrees: float | None = None, by_chance: float | None = None) -> None:
        if fit is not None:
            angle = "" if degrees is None else f"  {degrees:.1f}°"
            chance = f"{fit.chance:.3f}, pooled {fit.pooled_chance:.3f}"
            chance += "" if by_chance is None else f", {by_chance:.1f}°"
            rows.append((name, f"{fit.mean:.3f} {fit.interval}  pooled {fit.pooled:.3f}{angle}", chance))

    def percent(name: str, fit: Classification) -> None:
        value = f"{100 * fit.accuracy:.1f} % [{100 * fit.interval.low:.1f}, {100 * fit.interval.high:.1f}]"
        rows.append((name, value, f"{100 * fit.chance:.1f} %"))

    if card.top1 is not None:
        percent("top-1, z", card.top1.z)
        for m, fit in card.top1.states.items():
            percent(f"top-1, state of {m}", fit)
        for name, fit in card.top1.knn.items():
            percent(f"top-1 of 20 neighbours, {name}", fit)
    if card.transformations is not None:
        t = card.transformations
        r2("R² relative, z pairs", t.relative, t.relative_degrees, t.chance_degrees)
        r2("R² individual, z", t.individual, t.individual_degrees, t.individual_chance_degrees)
    for m, t in card.from_states.items():
        r2(f"R² relative, states of {m}", t.relative, t.relative_degrees, t.chance_degrees)
        r2(f"R² relative, states of {m} blank views", t.blank)
        r2(f"R² individual, state of {m}", t.individual, t.individual_degrees, t.individual_chance_degrees)
    if card.out_of_distribution is not None:
        t = card.out_of_distribution
        r2("R² relative, z, out of distribution", t.relative, t.relative_degrees, t.chance_degrees)
        r2("R² individual, z, out of distribution", t.individual, t.individual_degrees, t.individual_chance_degrees)
    for variant, curve in card.paths.items():
        values = "  ".join(f"{m}: {fit.mean:.2f}" for m, fit in curve.items())
        if values:
            rows.append((f"R² path, {variant}", values, "0"))
    if card.retrieval is not None:
        r = card.retrieval
        hits = "  ".join(f"H@{k} {value:.3f}" for k, value in r.hits.items())
        rows.append(("retrieval by action, MRR", f"{r.mrr:.3f} {r.interval}  {hits}", f"{r.chance.mrr:.3f}"))
    if card.pre is not None:
        rows.append(("retrieval by action, PRE", f"{card.pre.error:.3f} {card.pre.interval}", f"{card.pre.chance:.3f}"))
    if card.composition is not None:
        c = card.composition
        rows.append(("two steps against one composed", f"{c.distance:.3f}", f"{c.chance:.3f}"))
    if card.sensitivity is not None:
        for name, values_of in (
            ("loss", card.sensitivity.loss),
            ("top-1", card.sensitivity.top1),
            ("path R²", card.sensitivity.path_r2),
        ):
            for condition, value in values_of.items():
                rows.append((f"{name}, {condition}", f"{value:.3f}", ""))
    for name, values_by in card.collapse.items():
        rows.append((f"RankMe, {name}", f"{values_by['rankme']:.1f} of {values_by['dim']:.0f}", ""))
        rows.append((f"mean cosine, {name}", f"{values_by['mean_cosine']:.2f}", ""))
    left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f"{name:<{left}}  {value:<{middle}}  {chance}".rstrip() for name, value, chance in rows]
