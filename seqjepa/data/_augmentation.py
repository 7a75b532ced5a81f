"""What is done to the views of an image: how strongly, and the settings that are drawn from that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.data._random import constant, uniform
from seqjepa.groups import Crop, Product

__all__ = ["JITTER", "Augmentation", "AugmentationParameters", "draw_parameters"]

JITTER = ("brightness", "contrast", "saturation", "hue")
ATTEMPTS = 10  # to draw a crop that fits, as in torchvision


@dataclass(frozen=True)
class Augmentation:
    """How strongly to augment: ranges and probabilities. The defaults are the paper's for 32 and 64 px.

    Attributes:
        crop_area: (lowest, highest) share of the image's area in a crop, in (0, 1].
        crop_ratio: (lowest, highest) width over height of a crop, above 0.
        flip: probability of a mirror image, left to right.
        jitter: probability of colour jitter.
        brightness, contrast, saturation: factors are drawn from [1 − s, 1 + s], and at least 0; s is at least 0.
        hue: turns are drawn from [−hue, hue], at most ½.
        grey: probability of a grey image.
        blur: probability of a Gaussian blur.
        blur_sigma: (lowest, highest) standard deviation of the blur, in pixels of the view, above 0.
        solarise: probability of inverting the brighter half of the range.

    Raises:
        ValueError: a probability outside [0, 1], a range upside down or outside its limits.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), appendix; the recipe is that of Grill et al. 2020 (arXiv 2006.07733).

    Examples:
        >>> Augmentation(jitter=0.0, flip=0.0).grey
        0.2
    """

    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, from 0 to 1; got {getattr(self, name)}.")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a strength of at least 0; got {getattr(self, name)}.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue is in turns, from 0 to ½, which is all hues; got {self.hue}.")
        for name, most in (("crop_area", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            if not (0 < low <= high <= most and high < math.inf):
                limit = f"at most {most:g}" if most < math.inf else "finite"
                raise ValueError(f"{name} is (lowest, highest), above 0 and {limit}; got {(low, high)}.")


class AugmentationParameters(NamedTuple):
    """What was done to each view: the absolute parameters t_i.

    Attributes:
        crop: (B, V, 4) top, left, height, width of the crop, in whole pixels of the image.
        flip: (B, V) 1 where the view is mirrored left to right.
        jitter: (B, V, 4) factors of brightness, contrast, saturation, and the turn of the hue; 1, 1, 1, 0 for none.
        order: (B, V, 4) the order of the four, as indices into `jitter`.
        grey: (B, V) 1 where the view is grey.
        blur: (B, V) standard deviation of the blur in pixels of the view; 0 for none.
        solarise: (B, V) 1 where the view is solarised.
        sides: (B, V, 2) height and width of the image in pixels; None where they are not known.

    Examples:
        >>> import torch
        >>> from seqjepa.data import AugmentedViews
        >>> parameters = AugmentedViews.cifar().draw(8, (32, 32), generator=torch.Generator().manual_seed(0))
        >>> top, left, height, width = parameters.crop.unbind(-1)
        >>> bool((left + width <= 32).all()), bool((width >= 1).all())
        (True, True)
    """

    crop: Float[Tensor, "B V 4"]
    flip: Float[Tensor, "B V"]
    jitter: Float[Tensor, "B V 4"]
    order: Int[Tensor, "B V 4"]
    grey: Float[Tensor, "B V"]
    blur: Float[Tensor, "B V"]
    solarise: Float[Tensor, "B V"]
    sides: Any = None  # Float[Tensor, "B V 2"] | None

    def elements(self, group: Product) -> Float[Tensor, "B V A"] | None:
        """The parameters as elements of the group of a sampler's actions: `group.actions` of them are the actions.

        Args:
            group: of the parts that a sampler's `actions` names. Its crop is a [`Crop`][seqjepa.groups.Crop], or a
                `Translation(4)` of top, left, height and width over the sides.

        Returns:
            (B, V, A), or None where the sides of the images are not known, or the group has other parts.

        Examples:
            >>> import torch
            >>> from seqjepa.data import AugmentedViews
            >>> batch = AugmentedViews.cifar(frame="image")(torch.rand(8, 3, 32, 32))
            >>> torch.equal(batch.group.actions(batch.parameters.elements(batch.group)), batch.actions)
            True
        """
        groups = getattr(group, "groups", {})
        flip = self.flip[..., None]
        parts = {"flip": flip, "jitter": self.jitter, "hue": self.jitter[..., 3:], "blur": self.blur[..., None]}
        if self.sides is not None:
            crop = self.crop / torch.cat([self.sides, self.sides], dim=-1)
            centred = torch.cat([crop[..., :2] + crop[..., 2:] / 2, crop[..., 2:], flip], dim=-1)
            parts["crop"] = centred if isinstance(groups.get("crop"), Crop) else crop
        if not groups or any(name not in parts or parts[name].shape[-1] != groups[name].dim for name in groups):
            return None
        return group.join({name: parts[name] for name in groups})


def draw_parameters(
    settings: Sequence[Augmentation],
    batch: int,
    sides: tuple[int, int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> AugmentationParameters:
    """Random parameters of `batch` images of the given height and width, a view for each of the settings."""

    def draws(*shape: int) -> Tensor:
        return uniform((batch, len(settings), *shape), generator=generator, device=device)

    def setting(name: str) -> Tensor:  # (V, …)
        return constant([getattr(each, name) for each in settings], device)

    crop = _draw_crops(draws(ATTEMPTS, 4), sides, setting("crop_area"), setting("crop_ratio"))
    strength = torch.stack([setting(name) for name in JITTER], dim=-1)  # (V, 4)
    neutral = constant([1.0, 1.0, 1.0, 0.0], device)
    low = torch.maximum(neutral - strength, constant([0.0, 0.0, 0.0, -0.5], device))
    factors = low + (neutral + strength - low) * draws(4)
    jittered = (draws() < setting("jitter"))[..., None]
    sigma_low, sigma_high = setting("blur_sigma").unbind(-1)
    sigma = sigma_low + (sigma_high - sigma_low) * draws()
    return AugmentationParameters(
        crop=crop,
        flip=(draws() < setting("flip")).float(),
        jitter=torch.where(jittered, factors, neutral),
        order=draws(4).argsort(dim=-1),
        grey=(draws() < setting("grey")).float(),
        blur=sigma.masked_fill(draws() >= setting("blur"), 0.0),
        solarise=(draws() < setting("solarise")).float(),
        sides=constant(sides, device).expand(batch, len(settings), 2),
    )


def _draw_crops(draws: Tensor, sides: tuple[int, int], area: Tensor, ratio: Tensor) -> Tensor:
    """Top, left, height, width (B, V, 4) of the first attempt that fits; failing all, the middle of the image.

    A side is a pixel at least.
    """
    height, width = sides
    low, high = area.unbind(-1)
    target = height * width * (low[:, None] + (high - low)[:, None] * draws[..., 0])
    log_low, log_high = ratio.log().unbind(-1)
    aspect = torch.exp(log_low[:, None] + (log_high - log_low)[:, None] * draws[..., 1])
    w, h = (target * aspect).sqrt().round().clamp(min=1), (target / aspect).sqrt().round().clamp(min=1)
    fits = (w <= width) & (h <= height)
    top, left = (draws[..., 2] * (height - h + 1)).floor(), (draws[..., 3] * (width - w + 1)).floor()
    first = fits.to(torch.uint8).argmax(dim=-1)
    crop = torch.take_along_dim(torch.stack([top, left, h, w], dim=-1), first[..., None, None], dim=2).squeeze(2)
    # The largest crop of an allowed aspect ratio, where none of the attempts fits.
    nearest = torch.clamp(torch.full_like(ratio[:, 0], width / height), ratio[:, 0], ratio[:, 1])
    h = torch.clamp(width / nearest, max=height).round().clamp(min=1)
    w = torch.clamp(height * nearest, max=width).round().clamp(min=1)
    middle = torch.stack([((height - h) / 2).floor(), ((width - w) / 2).floor(), h, w], dim=-1)
    return torch.where(fits.any(dim=-1)[..., None], crop, middle)
