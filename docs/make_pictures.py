"""Draw the pictures of the data pages into docs/assets/data, the same each time.

    python docs/make_pictures.py               # all of them
    python docs/make_pictures.py rotations     # one

Needs `pip install 'seqjepa[examples]'`. The photographs come with scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from seqjepa.data import (
    AugmentedViews,
    RenderedObjects,
    RotatedViews,
    SaccadeViews,
    show,
    spectral_residual,
)
from seqjepa.groups import Crop, Rotation3D

FOLDER = Path(__file__).parent / "assets" / "data"
LARGEST = 290_000  # bytes of a picture


def seeded(seed: int) -> torch.Generator:
    """A generator of this seed."""
    return torch.Generator().manual_seed(seed)


def photographs(side: int) -> Tensor:
    """A temple and a flower, the squares in their middle, (2, 3, side, side) in [0, 1]."""
    whole = (
        torch.stack(
            [torch.tensor(image) for image in load_sample_images().images]
        ).movedim(-1, 1)
        / 255
    )
    left = (whole.shape[-1] - whole.shape[-2]) // 2
    square = whole[..., left : left + whole.shape[-2]]
    return F.interpolate(
        square, (side, side), mode="bilinear", antialias=True
    ).clamp(0, 1)


def augmentations() -> Figure:
    """The paper's settings at 64 px."""
    figure = show(
        AugmentedViews.tiny_imagenet(num_views=4)(
            photographs(128), generator=seeded(3)
        )
    )
    figure.set_size_inches(6.8, 5.8)  # long captions
    return figure


def crops() -> Figure:
    """Two pairs of windows with one action in the frame of the view, and what the plain differences are."""
    action = torch.tensor([0.25, 0.5, 0.0, 0.0, 0.0])
    starts = torch.tensor(
        [[0.30, 0.24, 0.40, 0.40, 0.0], [0.62, 0.70, 0.20, 0.20, 0.0]]
    )  # y, x, height, width, flip
    image = photographs(128)[1]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    for axis, start in zip(figure.subplots(1, 2), starts, strict=True):
        following = Crop().apply(start, action)
        axis.imshow(image.movedim(0, -1), extent=(0, 1, 1, 0))
        for (y, x, height, width, _), style in (
            (start.tolist(), "-"),
            (following.tolist(), "--"),
        ):
            corner = x - width / 2, y - height / 2
            axis.add_patch(
                Rectangle(
                    corner,
                    width,
                    height,
                    fill=False,
                    color="white",
                    linewidth=2,
                    linestyle=style,
                )
            )
        (y, x), (to_y, to_x) = start[:2].tolist(), following[:2].tolist()
        axis.annotate(
            "",
            (to_x, to_y),
            (x, y),
            arrowprops={"arrowstyle": "->", "color": "white", "linewidth": 2},
        )
        axis.set(xticks=[], yticks=[])
        seen = "frame of the view: +0.25 down, +0.50 right"
        axis.set_xlabel(
            f"{seen}\nframe of the image: {to_y - y:+.2f} down, {to_x - x:+.2f} right",
            fontsize=8,
        )
    return figure


def rotations() -> Figure:
    """Any angle."""
    return show(
        RotatedViews(num_views=4, degrees=180, size=96)(
            photographs(128), generator=seeded(0)
        )
    )


def borders() -> Figure:
    """One turn, with each of the borders."""
    image, turn = photographs(128)[1:], torch.full((1, 1, 1), 0.5)
    figure = Figure(figsize=(6.4, 1.85), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].imshow(image[0].movedim(0, -1))
    axes[0].set_title("image", fontsize=9)
    for axis, border in zip(axes[1:], ("disc", "inside", "zero"), strict=True):
        view = RotatedViews(size=96, border=border).render(image, turn)[0, 0]  # type: ignore[arg-type]
        axis.imshow(view.movedim(0, -1))
        axis.set_title(f'"{border}"', fontsize=9)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return figure


def saccades() -> Figure:
    """Two photographs, their saliency and the path of the gaze, and what the fovea saw."""
    images = photographs(96)
    saliency = spectral_residual(images)
    sequence = SaccadeViews(num_views=5, fovea=32)(
        images, saliency=saliency, generator=seeded(0)
    )
    reached = F.pad(
        torch.ones(64, 64), (16, 16, 16, 16)
    )  # where a patch of 32 px around the gaze is inside the image
    return show(sequence, images=images, saliency=saliency * reached)


def objects() -> Figure:
    """Three objects in four views each."""
    rendered = RenderedObjects(16, size=128, seed=0)
    return show(
        rendered.sample(
            torch.tensor([5, 0, 11]), num_views=4, generator=seeded(0)
        )
    )


def classes() -> Figure:
    """Two instances of every class, three-quarters on, over one floor and under one lamp."""
    rendered = RenderedObjects(32, size=96, seed=0)
    drawn = rendered.draw(torch.arange(32), num_views=1, generator=seeded(0))
    turn = Rotation3D.from_euler(torch.tensor([0.0, 0.0, 0.6])).expand(32, 1, 4)
    fixed = {
        "floor_hue": 0.6,
        "light_hue": 0.12,
        "light_theta": 0.5,
        "light_phi": 0.8,
    }
    same = {name: torch.full((32, 1), value) for name, value in fixed.items()}
    views = rendered.render(drawn._replace(rotation=turn, **same))[:, 0]
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    for place, axis in enumerate(figure.subplots(4, 8).flat):
        instance = (
            place % 8 + 8 * (place // 16) + 16 * (place // 8 % 2)
        )  # the second instance below the first
        axis.imshow(views[instance].movedim(0, -1))
        axis.set(xticks=[], yticks=[])
        if place // 8 % 2 == 0:
            axis.set_title(rendered.class_names[instance % 16], fontsize=8)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    picture.__name__: picture
    for picture in (
        augmentations,
        crops,
        rotations,
        borders,
        saccades,
        objects,
        classes,
    )
}


def save(figure: Figure, path: Path) -> None:
    """In 256 colours only where a file would be large: they leave a grain on smooth grounds."""
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    if path.stat().st_size > LARGEST:
        picture = Image.open(path).convert("RGB")
        dither = Image.Dither.FLOYDSTEINBERG
        picture.quantize(palette=picture.quantize(256), dither=dither).save(
            path, optimize=True
        )


def main() -> None:
    """Draw those named, or all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        save(PICTURES[name](), FOLDER / f"{name}.png")
        print(
            f"{name}.png: {(FOLDER / f'{name}.png').stat().st_size // 1000} kB"
        )


if __name__ == "__main__":
    main()
