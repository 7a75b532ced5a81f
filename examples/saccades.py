"""Train seq-JEPA on saccades: a small fovea jumps over an image, from one salient place to the next.

The model reads a few views and the jumps between them, and predicts the representation of the next, without labels.
Probes then measure it on images it never saw: how well it tells the class, and how far apart two fixations were.

    python examples/saccades.py                              # digits in clutter: a table, figures in runs/saccades
    python examples/saccades.py --compare                    # the same again without actions, side by side
    python examples/saccades.py --fixations uniform          # without saliency
    python examples/saccades.py --images my/photographs      # classes are subfolders; without any, no accuracies
    python examples/saccades.py --preset gpu --images stl10  # the paper's settings: ResNet-18, 96-px images

On two CPU cores each takes minutes; the last wants a GPU. Needs `pip install 'seqjepa[examples]'`. The digits and the
photographs behind them come with scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_images
from sklearn.decomposition import PCA
from small import Recipe, ResidualBlock, change, paper_recipe, print_table, small_recipe, train
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
from seqjepa.data import SaccadeViews, show, spectral_residual
from seqjepa.evaluation import Features, aggregate_states, extract, state_transformation_r2, top1, transformation_r2
from seqjepa.presets import get_preset

VARIANTS = 8  # pictures made of each training digit, in other clutter
TRAIN_DIGITS = 1400  # of 1,797; the rest are held out, and so is the clutter behind them
CHUNK = 256  # images encoded at a time when the model is measured
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


class Pictures(NamedTuple):
    images: Tensor  # (N, 3, side, side) uint8
    saliency: Tensor  # (N, side, side)
    labels: Tensor | None  # (N,)

    def take(self, rows: Tensor) -> Pictures:
        return Pictures(self.images[rows], self.saliency[rows], None if self.labels is None else self.labels[rows])


def with_saliency(images: Tensor, labels: Tensor | None) -> Pictures:
    """Saliency is found once; the views are new in every step."""
    images = images.to(DEVICE)
    maps = torch.cat([spectral_residual(chunk.float() / 255) for chunk in images.split(1024)])
    return Pictures(images, maps, None if labels is None else labels.to(DEVICE))


def digits_in_clutter(side: int) -> tuple[Pictures, Pictures]:
    """Digits on grey crops of two photographs: to train on, then held out. The same for every seed."""
    generator = torch.Generator().manual_seed(0)
    data, photographs = load_digits(), load_sample_images().images
    order = torch.randperm(len(data.images), generator=generator)
    digits, labels = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16, torch.tensor(data.target)[order]
    grey = torch.stack([torch.tensor(photograph).float().mean(dim=2) / 255 for photograph in photographs])
    left, right = grey.chunk(2, dim=2)
    fit, held_out = slice(0, TRAIN_DIGITS), slice(TRAIN_DIGITS, None)
    train = draw_digits(digits[fit].repeat(VARIANTS, 1, 1, 1), left, side, generator)
    test = draw_digits(digits[held_out], right, side, generator)
    return with_saliency(train, labels[fit].repeat(VARIANTS)), with_saliency(test, labels[held_out])


def draw_digits(digits: Tensor, photographs: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Each digit bright on its own piece of a photograph, whose brightness and contrast are evened out."""
    n, (count, height, width) = len(digits), photographs.shape
    span = torch.arange(0, 2 * side, 2)  # every other pixel: more of the scene in the picture
    which = torch.randint(count, (n, 1, 1), generator=generator)
    top = torch.randint(height - 2 * side + 1, (n, 1, 1), generator=generator)
    left = torch.randint(width - 2 * side + 1, (n, 1, 1), generator=generator)
    clutter = photographs[which, top + span[:, None], left + span]
    mean, deviation = clutter.mean(dim=(1, 2), keepdim=True), clutter.std(dim=(1, 2), keepdim=True)
    clutter = (0.3 + 0.12 * (clutter - mean) / (deviation + 0.02)).clamp(0, 0.7)
    part = round(0.8 * side)
    ink = F.interpolate(digits, (part, part), mode="bicubic", align_corners=False).clamp(0, 1)
    shift = torch.randint(side - part + 1, (n, 2), generator=generator)
    place = torch.arange(side) - shift[..., None]  # pixel of the digit at each pixel of the picture
    inside = (place >= 0) & (place < part)
    rows, columns = place.clamp(0, part - 1).unbind(1)
    ink = ink[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
    ink = ink * (inside[:, 0, :, None] & inside[:, 1, None, :])
    picture = clutter * (1 - ink) + 0.95 * ink
    return (255 * picture).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()


def folder_of_images(folder: Path, side: int) -> tuple[Pictures, Pictures]:
    """Images of a folder, the middle square of each; a fifth is held out. Classes are its subfolders, if it has any."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 10:
        raise SystemExit(f"{folder} holds {len(files)} images; ten are the least to train on and to hold out.")
    classes = sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder})
    labelled = bool(classes) and all(path.parent != folder for path in files)
    images = torch.empty(len(files), 3, side, side, dtype=torch.uint8)
    for i, path in enumerate(tqdm(files, desc="reading", unit="image")):
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
        images[i] = torch.from_numpy(np.array(square)).permute(2, 0, 1)
    labels = torch.tensor([classes.index(p.relative_to(folder).parts[0]) for p in files]) if labelled else None
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
    test, train = order.split([len(files) // 5, len(files) - len(files) // 5])
    pictures = with_saliency(images, labels)
    return pictures.take(train), pictures.take(test)


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


def build(setting: Setting, steps: int, embedder: nn.Module | None) -> tuple[SeqJEPA, Recipe]:
    """The model and what moves it: the paper's, or smaller ones that learn faster."""
    if setting == PAPER:
        preset = get_preset("saccades-32")
        model = replace(preset, epochs=steps).model(1, embedder=embedder)
        model = model.to(DEVICE).to(memory_format=torch.channels_last)
        return model, paper_recipe(preset, model, steps)
    model = SeqJEPA.from_encoder(
        small_convnet(),
        action_dim=2,
        view_shape=(3, setting.fovea, setting.fovea),
        embedder=ActionEmbedder(action_dim=2, embed_dim=16) if embedder is None else embedder,
        momentum=CosineSchedule(0.98, 1.0, steps),  # a short run needs a target that follows faster than the paper's
        loss=SeqJEPALoss(regularizer=VarianceCovariance()),  # the paper has none: alone, its loss learns the place here
    ).to(DEVICE)
    return model, small_recipe(model, steps)


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows to train on, without end: all of them in a new order, again and again."""
    while True:
        yield from torch.randperm(n, generator=generator)[: max(1, n // size) * size].split(size)


def train_one(pictures: Pictures, gaze: Gaze, steps: int, seed: int, actions: bool) -> SeqJEPA:
    """A model with or without actions."""
    torch.manual_seed(seed)  # weights and dropout; the views have a generator of their own
    generator = torch.Generator().manual_seed(seed)
    model, recipe = build(gaze.setting, steps, None if actions else NoActions())
    rows = batches(len(pictures.images), gaze.setting.batch, generator)

    def batch() -> ViewSequence:
        return gaze(pictures.take(next(rows)), gaze.setting.observed + 1, generator)

    return train(model, batch, steps, "with actions" if actions else "without actions", recipe)


def features(model: SeqJEPA, pictures: Pictures, gaze: Gaze, draws: int, generator: torch.Generator) -> Features:
    """Of five views of every picture, drawn `draws` times."""
    rows = torch.arange(len(pictures.images)).repeat(draws)
    looks = (gaze(pictures.take(chunk), 5, generator) for chunk in rows.split(CHUNK))
    return extract(model, looks, sources=rows)


def measure(model: SeqJEPA, split: tuple[Pictures, Pictures], gaze: Gaze, seed: int) -> dict[str, float]:
    """The rows of the table: probes learn on views of training pictures and are scored on held-out ones."""
    generator = torch.Generator().manual_seed(seed + 1)
    fit, test = (
        features(model, pictures.take(torch.arange(min(most, len(pictures.images)))), gaze, 2, generator)
        for pictures, most in zip(split, (2000, 1000), strict=True)
    )
    table: dict[str, float] = {}
    if fit.labels is not None:
        accuracy = top1(model, fit, test, num_views=(1, 3, 5), seed=seed)
        table["accuracy %, z"] = 100 * accuracy.z.accuracy
        table |= {f"accuracy %, state {m}": 100 * state.accuracy for m, state in accuracy.states.items()}
    table["R² position, z"] = transformation_r2(fit, test, seed=seed).relative.mean
    # Longer paths tell where they end by their actions alone: the image has edges.
    of_state = state_transformation_r2(model, fit, test, num_views=1, seed=seed)
    return table | {"R² position, state 1": of_state.relative.mean}


def draw(model: SeqJEPA, pictures: Pictures, gaze: Gaze, folder: Path) -> None:
    """Two figures: where the gaze goes and what the model sees there; z and state of held-out pictures."""
    folder.mkdir(parents=True, exist_ok=True)
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
    print(f"Figures saved as {folder / 'views.png'} and {folder / 'saccades.png'}")


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images; digits in clutter without it")
    parser.add_argument(
        "--preset", choices=("cpu", "gpu"), default="cpu", help="small and quick, or the paper's settings"
    )
    parser.add_argument("--fixations", choices=("saliency", "uniform"), default="saliency", help="where to look")
    parser.add_argument("--compare", action="store_true", help="also train without actions")
    parser.add_argument("--steps", type=int, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="one seed, one result")
    parser.add_argument("--output", type=Path, default=Path("runs/saccades"), help="folder for the figures")
    args = parser.parse_args()
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps must be at least 1; got {args.steps}")
    setting = PAPER if args.preset == "gpu" else PHOTOGRAPHS if args.images else DIGITS
    split = folder_of_images(args.images, setting.side) if args.images else digits_in_clutter(setting.side)
    steps = setting.steps if args.steps is None else args.steps
    if steps is None:
        steps = get_preset("saccades-32").epochs * max(1, len(split[0].images) // setting.batch)
    gaze = Gaze(setting, args.fixations == "saliency")
    columns = {}
    for name in ("with actions", "without actions") if args.compare else ("with actions",):
        model = train_one(split[0], gaze, steps, args.seed, name == "with actions")
        if name == "with actions":
            draw(model, split[1], gaze, args.output)
        columns[name] = measure(model, split, gaze, args.seed)
    report(columns)


if __name__ == "__main__":
    main()
