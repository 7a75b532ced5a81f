"""Pictures to look at, with their saliency: digits in clutter, or a folder of images; to train on, and held out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from tqdm import tqdm

from seqjepa.data import spectral_residual

VARIANTS = 8  # pictures made of each training digit, in other clutter
TRAIN_DIGITS = 1400  # of 1,797; the rest are held out, and so is the clutter behind them
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


class Pictures(NamedTuple):
    images: Tensor  # (N, 3, side, side) uint8
    saliency: Tensor  # (N, side, side)
    labels: Tensor | None  # (N,)

    def take(self, rows: Tensor) -> Pictures:
        return Pictures(self.images[rows], self.saliency[rows], None if self.labels is None else self.labels[rows])


def with_saliency(images: Tensor, labels: Tensor | None, device: torch.device) -> Pictures:
    """Saliency is found once; the views are new in every step."""
    images = images.to(device)
    maps = torch.cat([spectral_residual(chunk.float() / 255) for chunk in images.split(1024)])
    return Pictures(images, maps, None if labels is None else labels.to(device))


def digits_in_clutter(side: int, device: torch.device) -> tuple[Pictures, Pictures]:
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
    return with_saliency(train, labels[fit].repeat(VARIANTS), device), with_saliency(test, labels[held_out], device)


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


def folder_of_images(folder: Path, side: int, device: torch.device) -> tuple[Pictures, Pictures]:
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
    pictures = with_saliency(images, labels, device)
    return pictures.take(train), pictures.take(test)
