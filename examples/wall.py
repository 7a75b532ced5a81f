"""A wall with pictures of an object on it: a world for saccades, where most places show nothing.

    python examples/wall.py                      # draws some walls and scan paths: runs/wall/wall.png

Nine cells of a grey wall, five of them with a picture of the same object from other sides. To tell the object one has
to look at the pictures, and at several of them: that is what saliency and inhibition of return are for.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from seqjepa import ViewSequence
from seqjepa.data import RenderedObjects, SaccadeViews

CELLS, CELL, PICTURE, FOVEA = 3, 36, 24, 24  # cells a side, and pixels of each, of a picture and of the fovea
SIDE = CELLS * CELL
NOISE = 0.08  # standard deviation of the wall's pixels
GAZES = ("saliency and inhibition", "saliency only", "uniform")  # uniform with inhibition, as in the paper


def saliency_of(covered: Tensor) -> Tensor:
    """(N, SIDE, SIDE): the pictures, blurred and sharpened to their middles, as a learnt model might say.

    `spectral_residual` answers to fine detail and not to things: on these walls it finds the pictures no better than
    uniform fixations do.
    """
    mask = covered[:, None].float()
    for window in ((13, 1), (1, 13)) * 2:
        mask = F.avg_pool2d(mask, window, stride=1, padding=(window[0] // 2, window[1] // 2))
    return mask[:, 0] ** 6


@dataclass(frozen=True)
class Walls:
    """Walls, where their pictures are, and of which class their objects."""

    images: Tensor  # (N, 3, SIDE, SIDE) uint8
    covered: Tensor  # (N, SIDE, SIDE) bool: a picture's pixel
    saliency: Tensor  # (N, SIDE, SIDE)
    labels: Tensor  # (N,)

    @classmethod
    def of(cls, pictures: Tensor, labels: Tensor, seed: int, hung: int = 5, walls: int = 2) -> Walls:
        """So many `walls` for each object, with so many of its pictures `hung`, each at random in a cell of its own.

        Args:
            pictures: (objects, views, 3, s, s) uint8, shrunk here.
            labels: (objects,).
            seed: of the draw.
            hung: from 1 to the nine cells and the views there are.
            walls: for each object.
        """
        if not 1 <= hung <= min(CELLS**2, pictures.shape[1]):
            raise ValueError(
                f"A wall has {CELLS**2} cells and there are {pictures.shape[1]} pictures of an object; got hung={hung}."
            )
        generator = torch.Generator().manual_seed(seed)
        n = walls * len(pictures)
        of = torch.arange(len(pictures)).repeat(walls)
        small = F.interpolate(pictures.flatten(0, 1).float(), (PICTURE, PICTURE), mode="area").to(torch.uint8)
        small = small.unflatten(0, pictures.shape[:2])
        images = 255 * (0.5 + NOISE * torch.randn(n, 1, SIDE, SIDE, generator=generator)).clamp(0, 1)
        images, covered = images.to(torch.uint8).repeat(1, 3, 1, 1), torch.zeros(n, SIDE, SIDE, dtype=torch.bool)
        which = torch.rand(n, pictures.shape[1], generator=generator).argsort(dim=1)[:, :hung]
        cells = torch.rand(n, CELLS**2, generator=generator).argsort(dim=1)[:, :hung]
        shift = torch.randint(CELL - PICTURE + 1, (n, hung, 2), generator=generator)
        corner = torch.stack([cells // CELLS, cells % CELLS], dim=-1) * CELL + shift
        span, walls_of = torch.arange(PICTURE), torch.arange(n)[:, None, None]
        for k in range(hung):
            down, along = (corner[:, k, axis, None] + span for axis in (0, 1))
            place = walls_of, slice(None), down[:, :, None], along[:, None, :]
            images[place] = small[of, which[:, k]].permute(0, 2, 3, 1)
            covered[walls_of, down[:, :, None], along[:, None, :]] = True
        return cls(images, covered, torch.cat([saliency_of(part) for part in covered.split(256)]), labels[of])

    def look(self, rows: Tensor, num_views: int, gaze: str, generator: torch.Generator) -> ViewSequence:
        """Fixations on these walls by one of `GAZES`."""
        sampler = SaccadeViews(num_views=num_views, fovea=FOVEA)
        if gaze == "saliency only":
            sampler = replace(sampler, inhibition=None)
        saliency = None if gaze == "uniform" else self.saliency[rows]
        drawn = sampler(self.images[rows].float() / 255, saliency=saliency, generator=generator)
        return drawn._replace(labels=self.labels[rows])

    def seen(self, rows: Tensor, sequence: ViewSequence) -> float:
        """Share of the pictures' pixels that the fixations of a sequence saw, each counted once."""
        positions = sequence.parameters
        assert isinstance(positions, Tensor)
        corner = (positions * SIDE - 0.5).round().long() - FOVEA // 2
        seen = torch.zeros(len(rows), SIDE, SIDE, dtype=torch.bool)
        pixel = torch.arange(SIDE)
        for place in corner.unbind(1):
            down, along = ((pixel >= place[:, i, None]) & (pixel < place[:, i, None] + FOVEA) for i in (0, 1))
            seen |= down[:, :, None] & along[:, None, :]
        covered = self.covered[rows]
        return ((seen & covered).sum() / covered.sum()).item()


def draw_path(axis: Axes, walls: Walls, row: int, gaze: str, seed: int = 0) -> None:
    """One wall, and five fixations on it, numbered."""
    rows = torch.tensor([row])
    sequence = walls.look(rows, 5, gaze, torch.Generator().manual_seed(seed))
    assert isinstance(sequence.parameters, Tensor)
    places = (sequence.parameters[0] * SIDE - 0.5).numpy()
    axis.imshow(walls.images[row].permute(1, 2, 0).numpy())
    axis.plot(places[:, 1], places[:, 0], color="yellow", linewidth=1)
    for i, (down, along) in enumerate(places):
        corner = along - FOVEA / 2, down - FOVEA / 2
        axis.add_patch(Rectangle(corner, FOVEA, FOVEA, fill=False, edgecolor="yellow", linewidth=0.8))
        axis.text(along, down, str(i + 1), color="black", fontsize=7, backgroundcolor="yellow", ha="center")
    axis.set(xticks=[], yticks=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/wall"), help="folder for the figure")
    args = parser.parse_args()
    objects = RenderedObjects(4, size=32, split="val")
    views = objects.sample(torch.arange(4), num_views=8, generator=torch.Generator().manual_seed(0)).views
    walls = Walls.of((255 * views).to(torch.uint8), objects.labels, seed=0, walls=1)
    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.subplots(len(GAZES), 4)
    for axes, gaze in zip(grid, GAZES, strict=True):
        axes[0].set_ylabel(gaze)
        for row, axis in enumerate(axes):
            draw_path(axis, walls, row, gaze)
    args.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output / "wall.png", dpi=120)
    print(f"Figure saved as {args.output / 'wall.png'}")


if __name__ == "__main__":
    main()
