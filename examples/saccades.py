"""Train seq-JEPA on saccades: a small fovea jumps over an image, from one salient place to the next.

The model reads a few views and the jumps between them, and predicts the representation of the next, without labels.
Probes then measure it on images it never saw: how well it tells the class, and how far apart two fixations were.

    python examples/saccades.py                              # digits in clutter: a table, figures; all in runs/saccades
    python examples/saccades.py --compare                    # the same again without actions, side by side
    python examples/saccades.py --fixations uniform          # without saliency
    python examples/saccades.py --images my/photographs      # classes are subfolders; without any, no accuracies
    python examples/saccades.py --preset gpu --images stl10  # the paper's settings: ResNet-18, 96-px images

On two CPU cores each takes minutes; the last wants a GPU. Ctrl-C stops it, and the same command goes on. Needs
`pip install 'seqjepa[examples]'`. The digits and the photographs behind them come with scikit-learn; nothing is
downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from command_line import parsed, parser_of
from matplotlib.figure import Figure
from pictures import Pictures, digits_in_clutter, folder_of_images
from resumed import as_json, write
from running import Draws, polite_end
from sklearn.decomposition import PCA
from small import Recipe, ResidualBlock, change, paper_recipe, print_table, resumable, small_recipe, train
from torch import Tensor, nn
from tqdm import tqdm

from seqjepa import (
    ActionEmbedder,
    CosineSchedule,
    NoActions,
    SeqJEPA,
    SeqJEPALoss,
    VarianceCovariance,
    ViewSequence,
)
from seqjepa.data import SaccadeViews, show
from seqjepa.evaluation import Features, aggregate_states, extract, state_transformation_r2, top1, transformation_r2
from seqjepa.presets import get_preset

CHUNK = 256  # images encoded at a time when the model is measured


@dataclass(frozen=True)
class Setting:
    """What differs between a laptop and a GPU."""

    side: int  # pixels of an image
    fovea: int  # pixels of a view
    radius: float | None  # pixels inhibited around a fixation; None for the paper's half fovea
    observed: int  # views the model reads before it predicts the next, the paper's M
    batch: int
    steps: int | None  # optimiser steps; None for the paper's number of epochs


# A digit is seen through a large fovea that moves little: else the place of a view on it is learnt, and not its class.
DIGITS = Setting(side=32, fovea=20, radius=4, observed=3, batch=128, steps=3000)
PHOTOGRAPHS = Setting(side=64, fovea=24, radius=None, observed=3, batch=128, steps=3000)
PAPER = Setting(side=96, fovea=32, radius=None, observed=4, batch=512, steps=None)


class Gaze(NamedTuple):
    """Where to look: the sampler for a number of views, with saliency or without."""

    setting: Setting
    salient: bool

    def __call__(self, pictures: Pictures, num_views: int, generator: torch.Generator) -> ViewSequence:
        saccades = SaccadeViews(num_views=num_views, fovea=self.setting.fovea, radius=self.setting.radius)
        saliency = pictures.saliency if self.salient else None
        sequence = saccades(pictures.images.float() / 255, saliency=saliency, generator=generator)
        return sequence._replace(labels=pictures.labels)


def small_convnet(width: int = 16) -> nn.Module:
    """Any module from images (N, C, H, W) to vectors (N, D) is an encoder; D is 64 here."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        ResidualBlock(width, width, 1), ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def build(setting: Setting, steps: int, embedder: nn.Module | None, device: torch.device) -> tuple[SeqJEPA, Recipe]:
    """The model and what moves it: the paper's, or smaller ones that learn faster."""
    if setting == PAPER:
        preset = get_preset("saccades-32")
        model = replace(preset, epochs=steps).model(1, embedder=embedder)
        model = model.to(device).to(memory_format=torch.channels_last)
        return model, paper_recipe(preset, model, steps)
    model = SeqJEPA.from_encoder(
        small_convnet(),
        action_dim=2,
        view_shape=(3, setting.fovea, setting.fovea),
        embedder=ActionEmbedder(action_dim=2, embed_dim=16) if embedder is None else embedder,
        momentum=CosineSchedule(0.98, 1.0, steps),  # a short run needs a target that follows faster than the paper's
        loss=SeqJEPALoss(regularizer=VarianceCovariance()),  # the paper has none: alone, its loss learns the place here
    ).to(device)
    return model, small_recipe(model, steps)


class Rows:
    """Rows to train on, without end: all of them in a new order, again and again. A checkpoint keeps where it is."""

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self.n, self.size, self.generator = n, size, generator
        self.left = torch.empty(0, dtype=torch.int64)

    def __next__(self) -> Tensor:
        if not len(self.left):
            whole = max(1, self.n // self.size) * self.size
            self.left = torch.randperm(self.n, generator=self.generator)[:whole]
        rows, self.left = self.left[: self.size], self.left[self.size :]
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["n"] != self.n:
            raise SystemExit(f"The run there is of {state['n']} pictures, not of {self.n}. Give another --output.")
        self.left = state["left"]


def train_one(pictures: Pictures, gaze: Gaze, steps: int, seed: int, actions: bool, place: Path) -> SeqJEPA:
    """A model with or without actions, kept in a folder."""
    torch.manual_seed(seed)  # weights and dropout; the views have a generator of their own
    generator = torch.Generator().manual_seed(seed)
    model, recipe = build(gaze.setting, steps, None if actions else NoActions(), pictures.images.device)
    rows = Rows(len(pictures.images), gaze.setting.batch, generator)

    def batch() -> ViewSequence:
        return gaze(pictures.take(next(rows)), gaze.setting.observed + 1, generator)

    run = resumable(place, model, recipe, rows=rows, draws=Draws(generator))
    train(model, batch, steps, "with actions" if actions else "without actions", recipe, run)
    model.save_pretrained(place / "model")
    return model


def features(model: SeqJEPA, pictures: Pictures, gaze: Gaze, draws: int, generator: torch.Generator) -> Features:
    """Of five views of every picture, drawn `draws` times."""
    rows = torch.arange(len(pictures.images)).repeat(draws)
    chunks = tqdm(rows.split(CHUNK), desc="encoding", unit="batch", leave=False)
    looks = (gaze(pictures.take(chunk), 5, generator) for chunk in chunks)
    return extract(model, looks, sources=rows)


def measure(model: SeqJEPA, split: tuple[Pictures, Pictures], gaze: Gaze, seed: int) -> dict[str, float]:
    """The rows of the table: probes learn on views of training pictures and are scored on held-out ones."""
    generator = torch.Generator().manual_seed(seed + 1)
    fit, test = (
        features(model, pictures.take(torch.arange(min(most, len(pictures.images)))), gaze, 2, generator)
        for pictures, most in zip(split, (2000, 1000), strict=True)
    )
    table: dict[str, float] = {}
    with tqdm(total=3, desc="measuring", unit="measure", leave=False) as bar:
        if fit.labels is not None:
            accuracy = top1(model, fit, test, num_views=(1, 3, 5), seed=seed)
            table["accuracy %, z"] = 100 * accuracy.z.accuracy
            table |= {f"accuracy %, state {m}": 100 * state.accuracy for m, state in accuracy.states.items()}
        bar.update()
        table["R² position, z"] = transformation_r2(fit, test, seed=seed).relative.mean
        bar.update()
        # Longer paths tell where they end by their actions alone: the image has edges.
        of_state = state_transformation_r2(model, fit, test, num_views=1, seed=seed)
        bar.update()
    return table | {"R² position, state 1": of_state.relative.mean}


def draw(model: SeqJEPA, pictures: Pictures, gaze: Gaze, folder: Path) -> None:
    """Two figures: where the gaze goes and what the model sees there; z and state of held-out pictures."""
    generator = torch.Generator().manual_seed(0)
    few = pictures.take(torch.arange(min(6, len(pictures.images))))
    sequence = gaze(few, gaze.setting.observed + 1, generator)
    shown = show(sequence, images=few.images.float() / 255, saliency=few.saliency if gaze.salient else None)
    shown.savefig(folder / "views.png", dpi=100)

    some = pictures.take(torch.arange(min(400, len(pictures.images))))
    known = features(model, some, gaze, 6, generator)
    assert known.elements is not None
    down = known.elements[:, -1, 0].cpu().numpy()
    rows = known.z[:, -1], aggregate_states(model, known, 5)
    figure = Figure(figsize=(10, 8), layout="constrained")
    grid = figure.subplots(2, 2, subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for axes, x, title in zip(grid, rows, ("z of a view", "state of five views"), strict=True):
        own = x - x.unflatten(0, (6, -1)).mean(dim=0).repeat(6, 1)
        across, within = (PCA(2).fit_transform(part.cpu().numpy()) for part in (x, own))
        colours = np.zeros(len(across)) if some.labels is None else some.labels.repeat(6).cpu().numpy()
        by_class = axes[0].scatter(*across.T, c=colours, cmap="tab10", s=6, linewidths=0)
        if some.labels is not None:
            figure.colorbar(by_class, ax=axes[0])
        by_place = axes[1].scatter(*within.T, c=down, cmap="coolwarm", s=6, linewidths=0)
        figure.colorbar(by_place, ax=axes[1], label="position of the last view, down")
        axes[0].set_title(title if some.labels is None else f"{title}, by class")
        axes[1].set_title("less its picture's mean, by position")
    figure.suptitle("Held-out pictures in the plane of two principal components")
    figure.savefig(folder / "saccades.png", dpi=130)


def report(columns: dict[str, dict[str, float]]) -> None:
    """The table, and what its numbers say, whatever they are."""
    print("\nHeld-out pictures; z of one view, state m of m views. accuracy: of a linear probe.")
    print("R²: share of the variance of the difference between two fixations on a picture that an MLP explains,")
    print("    given both views' z or both their states; the mean of down and right.\n")
    print_table(columns)
    t, bare = columns["with actions"], columns.get("without actions")
    if "accuracy %, z" in t:
        print(f"From z of one view to state 5, accuracy {change(t['accuracy %, z'], t['accuracy %, state 5'])} %.")
    if bare:
        print(f"Without actions, the R² of position from z {change(t['R² position, z'], bare['R² position, z'])}.")


def main() -> None:
    parser = parser_of(__doc__, output="runs/saccades")
    parser.add_argument("--images", type=Path, help="folder of images; digits in clutter without it")
    parser.add_argument(
        "--preset", choices=("cpu", "gpu"), default="cpu", help="small and quick, or the paper's settings [%(default)s]"
    )
    parser.add_argument(
        "--fixations", choices=("saliency", "uniform"), default="saliency", help="where to look [%(default)s]"
    )
    parser.add_argument("--compare", action="store_true", help="also train without actions")
    parser.add_argument("--steps", type=int, help="optimiser steps [3000; gpu: those of 2000 epochs]")
    args = parsed(parser, steps=1)
    setting = PAPER if args.preset == "gpu" else PHOTOGRAPHS if args.images else DIGITS
    if args.images:
        split = folder_of_images(args.images, setting.side, args.device)
    else:
        split = digits_in_clutter(setting.side, args.device)
    steps = args.steps or setting.steps
    if steps is None:
        steps = get_preset("saccades-32").epochs * max(1, len(split[0].images) // setting.batch)
    gaze, columns = Gaze(setting, args.fixations == "saliency"), {}
    data = args.images.resolve().name if args.images else "digits"
    folder = args.output / f"{args.preset}-{data}-{args.fixations}-{steps}-steps-seed-{args.seed}"
    with polite_end(folder):
        for name in ("with actions", "without actions") if args.compare else ("with actions",):
            place = folder / name.replace(" ", "-")
            model = train_one(split[0], gaze, steps, args.seed, name == "with actions", place)
            if name == "with actions":
                draw(model, split[1], gaze, folder)
            columns[name] = measure(model, split, gaze, args.seed)
    write(folder / "table.json", as_json(columns))
    report(columns)
    encoder = ", encoder=saccades.small_convnet()" if args.preset == "cpu" else ""
    print(f"""
In {folder}: views.png, saccades.png, table.json,
and for each model model/, for SeqJEPA.from_pretrained(…{encoder}).""")


if __name__ == "__main__":
    main()
