"""The scorecard's page of pictures."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.evaluation._fits import TransformationFit
from seqjepa.evaluation._results import Results
from seqjepa.evaluation.features import drawn_rows

__all__ = ["draw"]

SHOWN = 600  # test sequences, or pairs, in a picture
QUERIES = 4  # rows of neighbours
NEIGHBOURS = 5


def draw(card: Results) -> Any:
    """Curves and the accuracy–R² plane on top, planes and displacements in the middle, neighbours below."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The figure needs matplotlib; pip install 'seqjepa[examples]'.") from error
    figure = Figure(figsize=(14, 14), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, squeeze=False, height_ratios=[1.25, 1, 1.05])[:, 0]
    curves = top.subplots(1, 3)
    _accuracy(curves[0], card)
    _paths(curves[1], card)
    _plane(curves[2], card)
    _middle(middle, card)
    _neighbours(bottom, card)
    return figure


def _absent(axis: Any, why: str) -> None:
    axis.axis("off")
    axis.text(0.5, 0.5, why, ha="center", va="center", fontsize=9, wrap=True, transform=axis.transAxes)


def _accuracy(axis: Any, card: Results) -> None:
    """Top-1 over M_val, z for comparison."""
    if card.top1 is None:
        return _absent(axis, f"accuracy: {card.skipped.get('top1', '')}")
    z = card.top1.z
    axis.axhline(100 * z.accuracy, color="tab:orange", label="z of one view")
    axis.axhspan(100 * z.interval.low, 100 * z.interval.high, color="tab:orange", alpha=0.15, linewidth=0)
    if card.top1.states:
        m = list(card.top1.states)
        fits = list(card.top1.states.values())
        low, high = [100 * fit.interval.low for fit in fits], [100 * fit.interval.high for fit in fits]
        axis.plot(m, [100 * fit.accuracy for fit in fits], "o-", color="tab:blue", label="state of M views")
        axis.fill_between(m, low, high, color="tab:blue", alpha=0.15, linewidth=0)
        axis.set_xticks(m)
    axis.axhline(100 * z.chance, color="grey", linestyle=":", label="chance")
    axis.set(title="Top-1 of a linear probe, %", xlabel="views seen, M_val")
    _legend(axis)
    return None


def _paths(axis: Any, card: Results) -> None:
    """Path integration over M_val, by variant."""
    if not card.paths:
        return _absent(axis, f"path integration: {card.skipped.get('paths', '')}")
    for variant, curve in card.paths.items():
        if curve and "robbed" not in variant:  # far below 0, and without an order
            m, fits = list(curve), list(curve.values())
            style = "s:" if "exact" in variant else "o-"
            (line,) = axis.plot(m, [fit.mean for fit in fits], style, label=variant, markersize=4)
            low, high = [fit.interval.low for fit in fits], [fit.interval.high for fit in fits]
            axis.fill_between(m, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    level = {} if card.untrained is None else card.untrained.paths.get("views and actions", {})
    if level:
        untrained = [fit.mean for fit in level.values()]
        axis.plot(list(level), untrained, "x--", color="black", label="views and actions, untrained", markersize=4)
    axis.axhline(0, color="grey", linestyle=":", label="chance")
    axis.set(title="Path integration, R²", xlabel="views in the path, M_val", ylim=(-0.15, 1.05))
    axis.set_xticks(sorted({m for curve in card.paths.values() for m in curve}))
    _legend(axis)
    return None


def _legend(axis: Any) -> None:
    """Below the axes: within them curves may run anywhere."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8, frameon=False)


def _plane(axis: Any, card: Results) -> None:
    """The plane of the paper's first figure: what is invariant lies low and right, what is equivariant high."""
    if card.top1 is None or card.transformations is None:
        missing = {name: card.skipped[name] for name in ("top1", "transformations") if name in card.skipped}
        return _absent(axis, "\n".join(f"{name}: {why}" for name, why in missing.items()))
    points = [("z", card.top1.z, card.transformations.relative)]
    for m, fit in card.from_states.items():
        if m in card.top1.states:
            points.append((f"state of {m}", card.top1.states[m], fit.relative))
            if fit.blank is not None:
                points.append((f"state of {m}, blank views", card.top1.states[m], fit.blank))
    for name, accuracy, r2 in points:
        x, y, blank = 100 * accuracy.accuracy, r2.mean, "blank" in name
        color = "tab:orange" if name == "z" else "grey" if blank else "tab:blue"
        across = [[max(0.0, x - 100 * accuracy.interval.low)], [max(0.0, 100 * accuracy.interval.high - x)]]
        along = [[max(0.0, y - r2.interval.low)], [max(0.0, r2.interval.high - y)]]
        axis.errorbar(x, y, along, None if blank else across, marker="_" if blank else "o", color=color, linewidth=0.8)
        offset, align = ((-6, -11), "right") if blank else ((6, 4), "left")
        axis.annotate(name, (x, y), xytext=offset, textcoords="offset points", fontsize=9, ha=align, color=color)
    low = min(r2.interval.low for _, _, r2 in points)
    axis.margins(0.3)
    axis.axhline(0, color="grey", linestyle=":")
    axis.set_ylim(min(-0.1, low - 0.05), 1.05)  # one scale for all models: noise around 0 must not fill the page
    axis.set(title="Invariance and equivariance", xlabel="top-1, %", ylabel="R² of the relative transformation")
    return None


def _project(x: Float[Tensor, "N D"]) -> tuple[Any, str]:
    """Two numbers a row: UMAP's where it is installed, else the two principal components."""
    x = x.float().cpu()
    if importlib.util.find_spec("umap") is not None:
        import umap

        return umap.UMAP(random_state=0).fit_transform(x.numpy()), "UMAP"
    centred = (x - x.mean(dim=0)).double()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    projected = torch.zeros(len(x), 2, dtype=torch.float64, device="cpu")  # of one row, or one number, no plane
    projected[:, : len(directions)] = centred @ directions[:2].T
    share = projected.square().sum() / centred.square().sum().clamp(min=1e-30)
    return projected.numpy(), f"PCA, {100 * share:.0f} % of the variance"


def _middle(figure: Any, card: Results) -> None:
    """Draw z and state in the plane, by class, and what probes read off them of the relative transformation."""
    axes = figure.subplots(1, 4)
    for axis, (name, x) in zip(axes[:2], (("z", card.test.z[:, 0]), ("state", card.states)), strict=True):
        _by_class(axis, card, name, x)
    m = min(card.from_states, default=None)
    of_state = None if m is None else card.from_states[m].relative
    _read_off(axes[2], card, "z", None if card.transformations is None else card.transformations.relative)
    _read_off(axes[3], card, f"states of {m}", of_state)


def _by_class(axis: Any, card: Results, name: str, x: Tensor | None) -> None:
    if x is None or card.test.labels is None:
        return _absent(axis, f"no states: {card.skipped.get('states', '')}" if x is None else "no labels")
    rows = drawn_rows(card.test, SHOWN, 0)
    points, how = _project(x[rows])
    labels = card.test.labels[rows].cpu().numpy()
    axis.scatter(*points.T, c=labels % 20, cmap="tab20", vmin=0, vmax=19, s=7, linewidths=0)
    axis.set(frame_on=False, xticks=[], yticks=[])
    axis.set_title(f"{name}, by class ({how})", fontsize=10)
    return None


def _read_off(axis: Any, card: Results, name: str, fit: TransformationFit | None) -> None:
    """What the probe says of the displacement between two views against what it was: on the diagonal, or flat.

    The output shown is the one that the probe of z explains best.
    """
    best = None if card.transformations is None else card.transformations.relative
    if fit is None or best is None:
        return _absent(
            axis, f"displacements: {card.skipped.get('transformations', card.skipped.get('from_states', ''))}"
        )
    output = max((r2, k) for k, r2 in enumerate(best.per_output) if not math.isnan(r2))[1]
    generator = torch.Generator(device="cpu").manual_seed(0)
    rows = torch.randperm(len(fit.predictions), generator=generator, device="cpu")[:SHOWN]
    actual, predicted = (x[:, output].float().cpu()[rows].numpy() for x in (fit.actual, fit.predictions))
    low, high = float(actual.min()), float(actual.max())
    axis.plot([low, high], [low, high], color="grey", linestyle=":", linewidth=1)
    axis.scatter(actual, predicted, s=7, linewidths=0, alpha=0.6, color="tab:orange" if name == "z" else "tab:blue")
    margin = 0.05 * (high - low)
    axis.set(
        xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), xlabel=f"{fit.outputs[output]}, true"
    )
    axis.set_ylabel("read off by the probe")
    axis.set_title(f"displacement from {name}, R² {fit.per_output[output]:.2f}", fontsize=10)
    return None


def _neighbours(figure: Any, card: Results) -> None:
    """Test sources nearest to a few queries, by z of the first view and by state."""
    pictures = card.test.pictures
    count = 0 if pictures is None else len(pictures)
    image = pictures is not None and pictures.ndim == 5 and pictures.shape[2] in (1, 3)
    if pictures is None or count < NEIGHBOURS + QUERIES or not image:
        axis = figure.subplots(1, 1)
        return _absent(axis, "neighbours are drawn for image views of more sources")
    from matplotlib.patches import Rectangle

    grid = figure.subplots(QUERIES, 2 * NEIGHBOURS + 3, squeeze=False)
    known = torch.arange(count, device="cpu") if card.test.pictured is None else card.test.pictured
    rows, sources = known.to(card.test.z.device), card.test.source_numbers.cpu()[known]
    labels = None if card.test.labels is None else card.test.labels.cpu()[known]
    framed = "" if labels is None else "; framed: of the query's class"
    figure.suptitle(f"Nearest by cosine among {count} test sequences{framed}", fontsize=10)
    queries = [round(i * (count - 1) / (QUERIES - 1)) for i in range(QUERIES)]
    for row, query in enumerate(queries):
        cells: list[tuple[int | None, str]] = [(query, "query")]
        for name, x in (("by z", card.test.z[:, 0]), ("by the state", card.states)):
            cells.append((None, ""))
            order = [] if x is None else _nearest(x[rows].float().cpu(), query)
            others = [(i, name) for i in order if sources[i] != sources[query]][:NEIGHBOURS]
            cells += [*others, *[(None, "")] * (NEIGHBOURS - len(others))]
        for axis, (index, title) in zip(grid[row], cells, strict=True):
            axis.axis("off")
            if index is not None:
                view = pictures[index, 0].float().clamp(0, 1).permute(1, 2, 0).squeeze(-1)
                axis.imshow(view.numpy(), cmap="gray", vmin=0, vmax=1)
                if row == 0:
                    axis.set_title(title, fontsize=8)
                if labels is not None and index != query and int(labels[index]) == int(labels[query]):
                    height, width = view.shape[:2]
                    frame = Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="black", linewidth=5)
                    axis.add_patch(frame)
    return None


def _nearest(x: Float[Tensor, "N D"], query: int) -> list[int]:
    """All rows, the most similar to the query first."""
    near = torch.nn.functional.normalize(x, dim=1)
    order: list[int] = (near @ near[query]).argsort(descending=True).tolist()
    return order
