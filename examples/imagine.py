"""How far ahead a model imagines, by what it was trained on: one step, a roll-out, or composed actions.

Handwritten digits turn by up to 45° at a time, from any angle. A small seq-JEPA sees three views of a digit and the
turns between; then it imagines five turns more, each of its predictions fed back as a view. Four are compared:

- one step: trained to predict the next view, as in the paper;
- roll-out: the next three as well, its predictions fed back;
- composed: as well another view from each alone, by the composed turn;
- untrained.

How much of the angle is left in what they imagine is read off by probes, on digits that were never seen, beside what
the encoded views hold, what the turns alone tell, and what the last view that was seen tells.

    python examples/imagine.py             # five minutes of one CPU core; a table, and a picture in runs/imagine
    python examples/imagine.py --seeds 3   # two further seeds; the table says how they differ

Ctrl-C stops it, and the same command goes on. Needs `pip install 'seqjepa[examples]'`. The digits come with
scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from claims_model import build, settled
from matplotlib.figure import Figure, SubFigure
from quickstart import SIDE, Digits, split
from resumed import as_json, asked, done, each, mean_and_spread, named, settings, write
from running import Draws, passes, polite_end
from small import resumable, small_convnet, small_recipe, train
from torch import Tensor

from seqjepa import SeqJEPA, SeqJEPAOutput, ViewSequence, pair_loss, rollout_loss
from seqjepa.data import RotatedViews, ViewLoader
from seqjepa.evaluation import Features, extract, retention
from seqjepa.functional import cosine_distance

DIM, BATCH, HIDDEN = 16, 128, (64,)
OBSERVED, TRAINED, HORIZON = 3, 3, 5  # views seen; steps of a roll-out in training; steps that are asked for
FITTED = 4  # sequences of each digit that probes learn from
GRID = 72  # angles, 5° apart, among whose views the imagined one is looked up
SHOWN = 3  # the held-out digit in the picture
KINDS = ("imagined", "encoded", "blank", "last")  # what probes read, as `retention` names it


@dataclass(frozen=True)
class Preset:
    """How much work."""

    seeds: int
    steps: int  # of each training
    digits: int = 1400  # to learn from
    held_out: int = 397


PRESETS = {"minutes": Preset(1, 700), "smoke": Preset(1, 2, digits=128, held_out=24)}


class TurningViews(RotatedViews):
    """From any angle, and on from there by up to `degrees` either way at each step.

    Nobody can tell an angle from the turns alone, nor from an old view for long.
    """

    def draw(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        shared: bool = False,
    ) -> Tensor:
        """As `RotatedViews.draw`."""
        turns = super().draw(batch, generator=generator, device=device, shared=shared)
        begun = 2 * math.pi * torch.rand(batch, 1, 1, generator=generator, device=device)
        return self.group.apply(begun, turns.cumsum(dim=1))


TRAINING = TurningViews(num_views=OBSERVED + TRAINED, degrees=45, size=SIDE, border="zero")
MEASURING = TurningViews(num_views=OBSERVED + HORIZON, degrees=45, size=SIDE, border="zero")
GROUP = TRAINING.group


class OneStep(SeqJEPA):
    """The model's own loss: the next view."""

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> SeqJEPAOutput:
        """The rest of a longer sequence is not looked at."""
        return super().forward(views[:, : OBSERVED + 1], actions[:, :OBSERVED], mask)


class RollOut(OneStep):
    """And the next three, its predictions fed back."""

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> SeqJEPAOutput:
        """The mean of both losses."""
        out = super().forward(views, actions, mask)
        loss, terms = rollout_loss(self, views, actions, observed=OBSERVED, horizon=TRAINED)
        return out._replace(loss=(out.loss + loss) / 2, terms=out.terms | terms)


class Composed(OneStep):
    """And from each observed view alone another, by the composed action."""

    def forward(self, views: Tensor, actions: Tensor, mask: Tensor | None = None) -> SeqJEPAOutput:
        """The mean of both losses."""
        out = super().forward(views, actions, mask)
        loss, terms = pair_loss(self, out, views[:, : OBSERVED + 1], actions[:, :OBSERVED], GROUP)
        return out._replace(loss=(out.loss + loss) / 2, terms=out.terms | terms)


UNTRAINED = "untrained"
CONDITIONS: Mapping[str, type[SeqJEPA]] = {
    "one step": OneStep,
    "roll-out": RollOut,
    "composed": Composed,
    UNTRAINED: OneStep,
}


def new_model(condition: str, steps: int, seed: int) -> SeqJEPA:
    """With its first weights, the same whatever it will learn from."""
    torch.manual_seed(seed)
    parts = build(SIDE, DIM, GROUP.dim, steps, encoder=small_convnet(SIDE, channels=1, dim=DIM))
    return CONDITIONS[condition](parts.encoder, parts.embedder, parts.aggregator, parts.predictor, parts.target)


def learn(condition: str, seed: int, digits: Digits, preset: Preset, folder: Path) -> SeqJEPA:
    """A model that has learnt; from where it was stopped, if it was."""
    model = new_model(condition, preset.steps, seed)
    loader = ViewLoader(digits, TRAINING, batch_size=min(BATCH, len(digits)), seed=seed)
    batches = passes(loader)
    if condition == UNTRAINED:
        return settled(model, lambda: next(batches))
    recipe = small_recipe(model, preset.steps)
    run = resumable(folder / named(condition, seed), model, recipe, loader=loader, draws=Draws())
    return train(model, lambda: next(batches), preset.steps, f"{condition}, seed {seed}", recipe, run)


def features(model: SeqJEPA, images: Tensor, draws: int, seed: int) -> Features:
    """Of sequences of each digit, drawn so many times."""
    generator = torch.Generator().manual_seed(seed)
    sequences: Iterator[ViewSequence] = (MEASURING(images, generator=generator) for _ in range(draws))
    return extract(model, sequences, sources=torch.arange(len(images)).repeat(draws))


@torch.no_grad()
def turned_to(model: SeqJEPA, images: Tensor, seen: Features) -> Tensor:
    """(N, K) the angle at which a digit looks most like what was imagined of it, of the angles of the grid."""
    assert seen.e is not None
    ahead = model.imagine_from(seen.z[:, :OBSERVED], seen.e[:, : OBSERVED - 1], seen.actions[:, OBSERVED - 1 :])
    grid = 2 * math.pi * torch.arange(GRID)[:, None] / GRID
    found = []
    for some, imagined in zip(images.split(50), ahead.split(50), strict=True):
        views = MEASURING.render(some, grid.expand(len(some), -1, -1))
        target = model.target(views.flatten(0, 1)).unflatten(0, (len(some), GRID))
        found.append(grid[cosine_distance(imagined[:, :, None], target[:, None]).argmin(dim=2), 0])
    return torch.cat(found)


def measured(model: SeqJEPA, digits: Tensor, held_out: Tensor, seed: int) -> dict[str, list[float]]:
    """By steps ahead: R² of the angle, its share of that from encoded views, the angle off, and a digit to show."""
    fit, test = features(model, digits, FITTED, seed + 1), features(model, held_out, FITTED, seed + 2)
    found = retention(model, fit, test, observed=OBSERVED, horizon=HORIZON, hidden=HIDDEN, seed=seed)
    numbers = {kind: [one.mean for one in getattr(found, kind).values()] for kind in KINDS}
    seen = features(model, held_out, 1, 0)  # the same for every seed
    assert seen.elements is not None
    angles = turned_to(model, held_out, seen)[..., None]
    off = GROUP.distance(angles, seen.elements[:, OBSERVED:]).rad2deg()
    return numbers | {
        "kept": list(found.curve.values()),
        "off": off.median(dim=0).values.tolist(),
        "shown": angles[SHOWN, :, 0].tolist(),
    }


Runs = dict[int, dict[str, dict[str, Any]]]  # seed → condition → what was written
MEASURES = {
    "imagined": "R² of the angle, imagined view",
    "encoded": "    encoded view",
    "blank": "    the turns alone",
    "last": "    last view that was seen",
    "kept": "imagined over encoded",
    "off": "degrees off, median",
}


def over_seeds(runs: Runs, condition: str, measure: str) -> list[list[float]]:
    """By steps ahead, a value a seed; NaN where there is none."""
    found = [run[condition]["numbers"][measure] for run in runs.values() if condition in run]
    return [[math.nan if value is None else value for value in values] for values in zip(*found, strict=True)]


def report(runs: Runs) -> str:
    """The table: of each model a row for each measure, a column for each step ahead."""
    lines = [f"{'steps ahead':<36}" + "".join(f"{k:>13}" for k in range(1, HORIZON + 1))]
    for condition in CONDITIONS:
        if not any(condition in run for run in runs.values()):
            continue
        lines.append(f"\n{condition}")
        for measure, name in MEASURES.items():
            cells = (mean_and_spread(values) for values in over_seeds(runs, condition, measure))
            lines.append(f"{name:<36}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def draw_curves(figure: SubFigure, runs: Runs) -> None:
    """R² by steps ahead: a line for each model, and the levels in grey."""
    axis, steps = figure.subplots(), range(1, HORIZON + 1)
    there = [condition for condition in CONDITIONS if any(condition in run for run in runs.values())]
    for condition in there:
        values = over_seeds(runs, condition, "imagined")
        spread = [statistics.stdev(of) if len(of) > 1 else 0.0 for of in values]
        axis.errorbar(steps, [statistics.fmean(of) for of in values], spread, fmt="o-", capsize=3, label=condition)
    for measure, style in (("encoded", "-."), ("last", "--"), ("blank", ":")):
        values = over_seeds(runs, there[0], measure)
        axis.plot(steps, [statistics.fmean(of) for of in values], style, color="grey", label=MEASURES[measure].strip())
    axis.axvline(TRAINED + 0.5, color="lightgrey", linewidth=1)
    axis.set(xlabel="steps ahead", ylabel="R² of the angle, imagined view", xticks=steps, ylim=(-0.1, 0.9))
    axis.legend(frameon=False, fontsize=8, ncols=2)
    figure.suptitle("How much of the angle is left")


def draw_digit(figure: SubFigure, images: Tensor, runs: Runs) -> None:
    """One digit as it turns, and as each model of the first seed imagines it, with how far off it is."""
    run, image = runs[min(runs)], images[SHOWN]
    true = MEASURING.draw(len(images), generator=torch.Generator().manual_seed(0))[SHOWN, :, 0]  # as `measured` has it
    lines = {"as it turned": true} | {c: torch.tensor(run[c]["numbers"]["shown"]) for c in CONDITIONS if c in run}
    figure.suptitle("Three views that are seen, five that are imagined")
    for axes, (name, angles) in zip(figure.subplots(len(lines), len(true)), lines.items(), strict=True):
        views = MEASURING.render(image[None], angles[None, :, None])[0]
        blank = len(true) - len(angles)
        for i, axis in enumerate(axes):
            axis.set(xticks=[], yticks=[])
            if i < blank:
                axis.set_frame_on(False)
                continue
            axis.imshow(views[i - blank, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            if blank:
                off = GROUP.distance(angles[i - blank, None], true[i, None]).rad2deg()
                axis.set_xlabel(f"{off:.0f}° off", fontsize=8, labelpad=1)
        axes[0].set_ylabel(name, fontsize=9)


def main() -> None:
    what = asked(__doc__, PRESETS, [*CONDITIONS], output="runs/imagine")
    preset, folder = what.preset, what.folder
    digits, held_out = (part[:count] for part, count in zip(split(), (preset.digits, preset.held_out), strict=True))
    images, others = (torch.stack([image for image, _ in part]) for part in (digits, held_out))
    with polite_end(folder):
        for seed, condition in each(what, lambda condition: 0.1 if condition == UNTRAINED else 1.0):
            numbers = measured(learn(condition, seed, digits, preset, folder), images, others, seed)
            result = {"condition": condition, "seed": seed, "numbers": numbers, "settings": settings(preset)}
            write(folder / f"{named(condition, seed)}.json", as_json(result))
    runs = done(folder, settings(preset))
    text = report(runs)
    write(folder / "report.txt", text)
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[0.6, 1])[0]
    draw_curves(left, runs)
    draw_digit(right, others, runs)
    figure.savefig(folder / "imagine.png", dpi=110)
    print(f"\n{text}\n\nFigure saved as {folder / 'imagine.png'}")


if __name__ == "__main__":
    main()
