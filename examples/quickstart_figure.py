"""What the quickstart shows of its scorecards: a few numbers of each, and a figure that compares them."""

from __future__ import annotations

from matplotlib.figure import Figure

from seqjepa.evaluation import Scorecard


def numbers(card: Scorecard) -> dict[str, float]:
    """The card's main lines."""
    assert card.top1 is not None
    assert card.transformations is not None
    _, turn, down, right = card.transformations.relative.per_output  # cosine and sine of the turn, and the shift
    found = {"accuracy %, z": card.top1.z} | {f"accuracy %, state {m}": card.top1.states[m] for m in (1, 3, 5)}
    r2 = {"R² turn, z": turn, "R² shift, z": (down + right) / 2}
    r2 |= {f"R² both, state {m}": fit.relative.mean for m, fit in card.from_states.items()}
    return {name: 100 * fit.accuracy for name, fit in found.items()} | r2


def comparison(columns: dict[str, dict[str, float]]) -> Figure:
    """Left: the class, by the views seen. Right: what lies between two views, read off z and off the state."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    r2 = [name for name in next(iter(columns.values())) if name.startswith("R²")]
    for i, (name, column) in enumerate(columns.items()):
        left.plot([1, 3, 5], [column[f"accuracy %, state {m}"] for m in (1, 3, 5)], "o-", label=name)
        right.bar([k + 0.27 * (i - 1) for k in range(len(r2))], [max(0.0, column[row]) for row in r2], 0.25)
    left.set(title="class, from the state", xlabel="views seen", ylabel="accuracy %", xticks=[1, 3, 5])
    left.legend()
    right.set(title="action between two views", ylabel="R²", ylim=(0, 1))
    right.set_xticks(range(len(r2)), [row.removeprefix("R² ").replace(", ", "\n") for row in r2])
    return figure
